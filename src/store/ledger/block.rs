//! Blocks being applied by code: what the chain says they hold, and where what follows from it is written.

use std::fmt;

use serde_json::Value;
use tokio_postgres::Transaction;
use tokio_postgres::types::ToSql;

use super::Refused;
use crate::chain::{Amount, BlockRef, ChainId, Event, Height, TokenEvent};
use crate::store::numeric::Numeric;
use crate::store::{Prepared, Session, StoreError};

/// The events of one block.
#[derive(Debug, Clone)]
pub struct BlockEvents {
    /// The block.
    pub block: BlockRef,
    /// When the chain says it was made, in seconds since 1970; None means that it does not say.
    pub time: Option<i64>,
    /// Its events, in the order of the chain.
    pub events: Vec<Event>,
}

/// One block, or a run of final ones, being applied in one transaction: nobody sees anything in between. The projection's
/// tables are restored automatically when a block that is not final is replaced; no other table may be written.
#[derive(Clone, Copy)]
pub struct RangeTransaction<'a> {
    pub(super) tx: &'a Transaction<'a>,
    pub(super) prepared: &'a Prepared,
    pub(super) chain: ChainId,
    pub(super) projection: &'a str,
    pub(super) blocks: &'a [BlockRef],
}

impl fmt::Debug for RangeTransaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} blocks of chain {} for {}", self.blocks.len(), self.chain, self.projection)
    }
}

impl<'a> RangeTransaction<'a> {
    /// The chain's number, for `chain_id` columns.
    pub fn chain(&self) -> ChainId {
        self.chain
    }

    /// The blocks, ascending, at least one. Heights between them have no block.
    pub fn blocks(&self) -> &'a [BlockRef] {
        self.blocks
    }

    /// Each of the blocks by itself.
    pub fn each(&self) -> impl Iterator<Item = BlockTransaction<'a>> + use<'a> {
        let range = *self;
        range.blocks.iter().map(move |block| BlockTransaction { range, block })
    }

    /// Statements on the projection's own tables, and reading of all others; each is prepared at its first use on this
    /// connection. On the search path are `ebbtide`, the schemas of the projection's tables and `public`.
    pub fn session(&self) -> Session<'a> {
        Session::new(self.tx.client(), self.prepared)
    }

    /// The blocks that have events, ascending, with their events.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn events(&self) -> Result<Vec<BlockEvents>, StoreError> {
        let [Some(first), Some(last)] = [self.blocks.first(), self.blocks.last()] else { return Ok(Vec::new()) };
        let sql = include_str!("../../../sql/queries/events_of_blocks.sql");
        let parameters: [&(dyn ToSql + Sync); 3] = [&self.chain.0, &first.height.to_sql(), &last.height.to_sql()];
        let rows = self.session().query(sql, &parameters).await?;
        let mut found: Vec<BlockEvents> = Vec::new();
        let mut blocks = self.blocks.iter();
        for row in &rows {
            let (height, event) = crate::store::chains::stored_event(row)?;
            if found.last().is_none_or(|last| last.block.height < height) {
                let Some(block) = blocks.find(|block| block.height >= height).filter(|block| block.height == height)
                else {
                    return Err(StoreError::Nonsense { what: format!("events at {height}, which is no block held") });
                };
                found.push(BlockEvents { block: block.clone(), time: row.try_get("block_time")?, events: Vec::new() });
            }
            if let Some(last) = found.last_mut() {
                last.events.push(event);
            }
        }
        Ok(found)
    }

    /// Leaves events out and keeps them as evidence in `rejected_events`.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn reject(&self, refused: &[Refused]) -> Result<(), StoreError> {
        if refused.is_empty() {
            return Ok(());
        }
        let hash_of = |height: Height| self.blocks.iter().find(|b| b.height == height).map(|b| b.hash.as_str());
        let heights: Vec<i64> = refused.iter().map(|r| r.height.to_sql()).collect();
        let hashes: Vec<Option<&str>> = refused.iter().map(|r| hash_of(r.height)).collect();
        let transactions: Vec<i64> = refused.iter().map(|r| r.tx_index).collect();
        let events: Vec<i64> = refused.iter().map(|r| r.event_index).collect();
        let raws: Vec<&Value> = refused.iter().map(|r| &r.raw).collect();
        let reasons: Vec<&str> = refused.iter().map(|r| r.reason).collect();
        let sql = include_str!("../../../sql/queries/reject_events.sql");
        let parameters: [&(dyn ToSql + Sync); 8] =
            [&self.chain.0, &self.projection, &heights, &hashes, &transactions, &events, &raws, &reasons];
        self.session().query(sql, &parameters).await?;
        Ok(())
    }
}

/// A block being applied: what the chain says it holds, and the transaction to write what follows from it. The
/// projection's tables are restored automatically when the block is replaced; no other table may be written.
#[derive(Clone, Copy)]
pub struct BlockTransaction<'a> {
    range: RangeTransaction<'a>,
    block: &'a BlockRef,
}

impl fmt::Debug for BlockTransaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {} of chain {} for {}", self.block, self.range.chain, self.range.projection)
    }
}

impl<'a> BlockTransaction<'a> {
    /// The chain's number, for `chain_id` columns.
    pub fn chain(&self) -> ChainId {
        self.range.chain
    }

    /// The block.
    pub fn block(&self) -> &'a BlockRef {
        self.block
    }

    /// This block as a range of its own.
    pub fn alone(&self) -> RangeTransaction<'a> {
        RangeTransaction { blocks: std::slice::from_ref(self.block), ..self.range }
    }

    /// The transaction, for what [`query`](Self::query) and [`execute`](Self::execute) do not offer. On the search path are
    /// `ebbtide`, the schemas of the projection's tables and `public`. It is committed, or rolled back, by whoever opened it.
    pub fn client(&self) -> &'a Transaction<'a> {
        self.range.tx
    }

    /// The rows of a statement with its parameters. It is prepared at its first use on this connection, and kept.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn query(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<tokio_postgres::Row>, StoreError> {
        self.range.session().query(sql, parameters).await
    }

    /// Runs a statement with its parameters; how many rows it touched. It is prepared at its first use on this connection,
    /// and kept.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn execute(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<u64, StoreError> {
        self.range.session().execute(sql, parameters).await
    }

    /// The block's token movements, in the order of the chain.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn token_events(&self) -> Result<Vec<TokenEvent>, StoreError> {
        let sql = include_str!("../../../sql/queries/movements.sql");
        let at = self.block.height.to_sql();
        let rows = self.query(sql, &[&self.range.chain.0, &at, &at]).await?;
        rows.iter()
            .map(|row| {
                Ok(TokenEvent {
                    tx_index: row.try_get::<_, i64>(1)?.unsigned_abs(),
                    event_index: row.try_get::<_, i64>(2)?.unsigned_abs(),
                    token: row.try_get::<_, &str>(3)?.into(),
                    from: row.try_get::<_, Option<&str>>(4)?.map(Into::into),
                    to: row.try_get::<_, Option<&str>>(5)?.map(Into::into),
                    amount: Amount::from(row.try_get::<_, Numeric>(6)?.0.magnitude()),
                })
            })
            .collect()
    }

    /// The block's other events, in the order of the chain.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn events(&self) -> Result<Vec<Event>, StoreError> {
        Ok(self.alone().events().await?.into_iter().flat_map(|block| block.events).collect())
    }

    /// When the chain says the block was made, in seconds since 1970; None means that it does not say.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn time(&self) -> Result<Option<i64>, StoreError> {
        let sql = "select extract(epoch from b.time)::bigint from blocks b where b.chain_id = $1 and b.height = $2";
        let rows = self.query(sql, &[&self.range.chain.0, &self.block.height.to_sql()]).await?;
        Ok(rows.first().map(|row| row.try_get(0)).transpose()?.flatten())
    }

    /// Leaves an event out and keeps it as evidence in `rejected_events`.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn reject(
        &self,
        tx_index: u64,
        event_index: u64,
        raw: Value,
        reason: &'static str,
    ) -> Result<(), StoreError> {
        let (tx_index, event_index) = (tx_index as i64, event_index as i64);
        self.alone().reject(&[Refused { height: self.block.height, tx_index, event_index, raw, reason }]).await
    }
}

/// Why blocks could not be applied by a projection's own code.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlockError {
    /// Postgres refused a statement.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The code refuses the block.
    #[error("{reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// One block of several.
    #[error("block {block}: {error}")]
    At {
        /// The block.
        block: BlockRef,
        /// What is wrong with it.
        #[source]
        error: Box<BlockError>,
    },
}

impl BlockError {
    /// The same, said of one block of a range.
    #[must_use]
    pub fn at(self, block: &BlockRef) -> BlockError {
        BlockError::At { block: block.clone(), error: Box::new(self) }
    }

    /// What is wrong with the block, without its name.
    pub(crate) fn into_store(self) -> StoreError {
        match self {
            BlockError::Store(error) => error,
            BlockError::Refused { reason } => StoreError::Refused { reason },
            BlockError::At { error, .. } => error.into_store(),
        }
    }
}

impl From<tokio_postgres::Error> for BlockError {
    fn from(error: tokio_postgres::Error) -> BlockError {
        BlockError::Store(error.into())
    }
}
