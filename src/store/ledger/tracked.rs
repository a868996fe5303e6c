//! Projections whose tables triggers keep undo for: SQL functions, and code that writes through a [`BlockTransaction`].

use std::fmt;

use serde_json::Value;
use tokio::sync::OnceCell;
use tokio_postgres::{Client, Row, Statement, Transaction};

use super::{Fence, LedgerWrite, Refused, Switch, Undone, count, height};
use crate::chain::{Amount, BlockRef, ChainId, Event, Height, Kind, TokenEvent};
use crate::store::numeric::Numeric;
use crate::store::vaults::VaultStatements;
use crate::store::{Store, StoreError};

/// A projection as `projections` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectionRow {
    /// Its name.
    pub name: String,
    /// Whether an SQL function applies it; otherwise the program does.
    pub is_function: bool,
    /// The projection it follows in one transaction.
    pub after: Option<String>,
    /// The one chain it concerns; none: every chain.
    pub chain: Option<ChainId>,
    /// The kind of chain it concerns; none: every kind.
    pub kind: Option<Kind>,
}

/// One block for a projection with tracked tables.
#[derive(Debug, Clone)]
pub struct StepBlock {
    /// The block that the checkpoint must stand on. None means that nothing is applied yet.
    pub on: Option<BlockRef>,
    /// Blocks to hold: the one before it, and itself.
    pub fence: Fence,
    /// The block.
    pub block: BlockRef,
    /// The height the state began at.
    pub start: Height,
    /// Whether undo is recorded: not for blocks that are final.
    pub record: bool,
    /// What the state is made by.
    pub digest: Option<String>,
    /// It follows another projection, which is further on: balances come from a replica at this block.
    pub on_replica: bool,
}

/// Statements of [`LedgerWrite`] for tracked tables.
#[derive(Debug)]
pub(super) struct TrackedStatements {
    apply_sql_blocks: Statement,
    follow_block: Statement,
    undo_followers: Statement,
    leave_followers_behind: Statement,
    begin_block: Statement,
    enter_block: Statement,
    leave_block: Statement,
    vaults: OnceCell<VaultStatements>,
    undo_blocks: Statement,
    empty_projection: Statement,
}

impl TrackedStatements {
    pub(super) async fn prepare(client: &Client) -> Result<TrackedStatements, StoreError> {
        let blocks = "($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12";
        Ok(TrackedStatements {
            apply_sql_blocks: client.prepare(&["select apply_sql_blocks", blocks, ", $13)"].concat()).await?,
            follow_block: client.prepare("select follow_block($1, $2, $3, $4, $5, $6, $7, $8, $9)").await?,
            leave_followers_behind: client.prepare("select leave_followers_behind($1, $2, $3)").await?,
            undo_followers: client.prepare("select undo_followers($1, $2, $3, $4, $5, $6)").await?,
            begin_block: client.prepare(&["select begin_block", blocks, ")"].concat()).await?,
            enter_block: client
                .prepare("select check_shapes($1), set_config('search_path', enter_block($1, $2, $3, $4), true)")
                .await?,
            // Sent under the path of the block, which finds whatever else has these names.
            leave_block: client
                .prepare("select ebbtide.leave_block($1), pg_catalog.set_config('search_path', 'ebbtide', true)")
                .await?,
            vaults: OnceCell::new(),
            undo_blocks: client.prepare("select * from undo_blocks($1, $2, $3, $4, $5, $6, $7, $8)").await?,
            empty_projection: client.prepare("select * from empty_projection($1, $2, $3, $4, $5, $6)").await?,
        })
    }
}

/// Moves a checkpoint over blocks that follow one another. `on_replica`: and applies them, with the balances of a replica or
/// the live ones.
async fn move_over<C: tokio_postgres::GenericClient>(
    client: &C,
    statement: &Statement,
    (chain, projection, seq): (ChainId, &str, i64),
    blocks: &[StepBlock],
    on_replica: Option<bool>,
) -> Result<Option<i64>, StoreError> {
    let Some((first, others)) = blocks.split_first() else {
        return Err(StoreError::Nonsense { what: "an apply without a block".to_owned() });
    };
    let mut fence = first.fence.clone();
    for step in others {
        // The block before it is held already.
        let own = step.fence.heights.len() - 1;
        fence.heights.push(step.fence.heights[own]);
        fence.hashes.push(step.fence.hashes[own].clone());
        fence.revisions.push(step.fence.revisions[own]);
        fence.complete_to = fence.complete_to.max(step.fence.complete_to);
    }
    let (on_height, on_hash) =
        (first.on.as_ref().map(|b| b.height.to_sql()), first.on.as_ref().map(|b| b.hash.as_str()));
    let start = first.start.to_sql();
    let mut params: Vec<&(dyn postgres_types::ToSql + Sync)> = vec![
        &chain.0,
        &projection,
        &seq,
        &on_height,
        &on_hash,
        &fence.heights,
        &fence.hashes,
        &fence.revisions,
        &fence.complete_to,
        &start,
        &first.record,
        &first.digest,
    ];
    if let Some(on_replica) = &on_replica {
        params.push(on_replica);
    }
    Ok(client.query_one(statement, &params).await?.try_get(0)?)
}

impl LedgerWrite {
    /// Applies blocks of an SQL projection, one after the other, in a transaction of their own; may be sent before earlier
    /// ones were answered. Their undo is recorded for all of them or for none. None means that the fence did not hold and
    /// nothing was written; otherwise the checkpoint's new seq.
    pub async fn apply_functions(
        &self,
        chain: ChainId,
        projection: &str,
        seq: i64,
        blocks: &[StepBlock],
    ) -> Result<Option<i64>, StoreError> {
        let on_replica = blocks.first().map(|b| b.on_replica);
        let statement = &self.statements.tracked.apply_sql_blocks;
        move_over(&self.client, statement, (chain, projection, seq), blocks, on_replica).await
    }

    /// Lets go of the replica, if there is one: the projection is where the one is that it follows.
    pub async fn drop_replica(&self) -> Result<(), StoreError> {
        self.client.execute("select drop_replica()", &[]).await?;
        Ok(())
    }

    /// A transaction for one block, which [`Switch::begin_block`] fences.
    pub async fn block_transaction(
        &mut self,
        chain: ChainId,
        projection: &str,
        seq: i64,
    ) -> Result<Switch<'_>, StoreError> {
        let statements = &self.statements;
        let tx = self.client.transaction().await?;
        Ok(Switch::new(tx, statements, chain, projection, seq, None))
    }

    /// Prunes undo up to the horizon, if the state still is the one compared at `seq`.
    pub async fn prune_undo(
        &self,
        chain: ChainId,
        projection: &str,
        horizon: Height,
        seq: i64,
    ) -> Result<(), StoreError> {
        self.client
            .execute("select prune_undo($1, $2, $3, $4)", &[&chain.0, &projection, &horizon.to_sql(), &seq])
            .await?;
        Ok(())
    }

    /// Notes that a block could not be applied; the next one that can be takes the note away.
    pub async fn note_failure(
        &self,
        chain: ChainId,
        projection: &str,
        seq: i64,
        at: Option<Height>,
        reason: &str,
    ) -> Result<(), StoreError> {
        self.client
            .execute(
                "update checkpoints set failed_height = $4, failed_reason = $5, failures = failures + 1, \
                 updated_at = now() where chain_id = $1 and projection = $2 and seq = $3",
                &[&chain.0, &projection, &seq, &at.map(Height::to_sql), &reason],
            )
            .await?;
        Ok(())
    }

    /// Takes the note of a failure away, if the state still is the one that was looked at: nothing is left that fails.
    pub async fn forget_failure(&self, chain: ChainId, projection: &str, seq: i64) -> Result<(), StoreError> {
        self.client
            .execute(
                "update checkpoints set failed_height = null, failed_reason = null, failures = 0, updated_at = now() \
                 where chain_id = $1 and projection = $2 and seq = $3 and failed_reason is not null",
                &[&chain.0, &projection, &seq],
            )
            .await?;
        Ok(())
    }
}

impl Switch<'_> {
    /// Fences one block of a projection with tracked tables. False: the fence did not hold; roll back and look again.
    pub async fn begin_block(&mut self, block: &StepBlock) -> Result<bool, StoreError> {
        let statements = &self.statements.tracked;
        let stands = (self.chain, self.projection.as_str(), self.seq);
        let blocks = std::slice::from_ref(block);
        let seq = move_over(&self.tx, &statements.begin_block, stands, blocks, None).await?;
        let Some(seq) = seq else { return Ok(false) };
        self.seq = seq;
        let tracking = match (&self.tables_beside, block.record) {
            (None, true) => "on",
            (None, false) => "final",
            (Some(_), false) => "beside",
            (Some(_), true) => return Err(StoreError::Nonsense { what: "undo of tables built beside".to_owned() }),
        };
        let at = block.block.height.to_sql();
        self.tx.execute(&statements.enter_block, &[&self.projection, &self.chain.0, &at, &tracking]).await?;
        Ok(true)
    }

    /// The block begun by [`begin_block`](Self::begin_block), to write it.
    pub fn block<'a>(&'a self, block: &'a BlockRef) -> BlockTransaction<'a> {
        let vaults = self.tables_beside.as_ref().unwrap_or(&self.statements.tracked.vaults);
        BlockTransaction { tx: &self.tx, chain: self.chain, projection: &self.projection, block, vaults }
    }

    /// Ends the block: nothing else may have been written.
    pub async fn leave_block(&self) -> Result<(), StoreError> {
        self.tx.execute(&self.statements.tracked.leave_block, &[&self.projection]).await?;
        Ok(())
    }

    /// Applies one block of an SQL projection on top. False: the fence did not hold.
    pub async fn apply_function(&mut self, block: &StepBlock) -> Result<bool, StoreError> {
        let stands = (self.chain, self.projection.as_str(), self.seq);
        let (statement, blocks) = (&self.statements.tracked.apply_sql_blocks, std::slice::from_ref(block));
        let seq = move_over(&self.tx, statement, stands, blocks, Some(block.on_replica)).await?;
        self.seq = seq.unwrap_or(self.seq);
        Ok(seq.is_some())
    }

    /// After a block of this projection: the same block for all that follow it and stand where it stood before.
    pub async fn follow_block(
        &self,
        before: Option<&BlockRef>,
        block: &BlockRef,
        revision: i64,
        start: Height,
        record: bool,
    ) -> Result<(), StoreError> {
        self.tx
            .execute(
                &self.statements.tracked.follow_block,
                &[
                    &self.chain.0,
                    &self.projection,
                    &before.map(|b| b.height.to_sql()),
                    &before.map(|b| b.hash.as_str()),
                    &block.height.to_sql(),
                    &block.hash.as_str(),
                    &revision,
                    &start.to_sql(),
                    &record,
                ],
            )
            .await?;
        Ok(())
    }

    /// After an undo of this projection: the same for all that follow it and stood where it stood.
    pub async fn undo_followers(&self, from: &BlockRef, ancestor: Option<&BlockRef>) -> Result<(), StoreError> {
        self.tx
            .execute(
                &self.statements.tracked.undo_followers,
                &[
                    &self.chain.0,
                    &self.projection,
                    &from.height.to_sql(),
                    &from.hash.as_str(),
                    &ancestor.map(|b| b.height.to_sql()),
                    &ancestor.map(|b| b.hash.as_str()),
                ],
            )
            .await?;
        Ok(())
    }

    /// Before an undo that takes nobody along: whoever follows and stands above the ancestor goes back by itself.
    pub async fn leave_followers_behind(&self, ancestor: Option<&BlockRef>) -> Result<(), StoreError> {
        let to = ancestor.map(|b| b.height.to_sql());
        let statement = &self.statements.tracked.leave_followers_behind;
        self.tx.execute(statement, &[&self.chain.0, &self.projection, &to]).await?;
        Ok(())
    }

    /// Restores the tracked tables to what they were after `ancestor`; None means before everything. `from`: the block that
    /// they stand on.
    pub async fn undo_tables(
        &mut self,
        from: Option<&BlockRef>,
        ancestor: Option<&BlockRef>,
        redo_from: Option<Height>,
    ) -> Result<Undone, StoreError> {
        let height = ancestor.map(|a| a.height.to_sql());
        let hash = ancestor.map(|a| a.hash.as_str());
        let row = self
            .tx
            .query_one(
                &self.statements.tracked.undo_blocks,
                &[
                    &self.chain.0,
                    &self.projection,
                    &self.seq,
                    &from.map(|b| b.height.to_sql()),
                    &from.map(|b| b.hash.as_str()),
                    &height,
                    &hash,
                    &redo_from.map(Height::to_sql),
                ],
            )
            .await?;
        self.tables_undone(&row)
    }

    /// Empties the tracked tables of this chain, which stand on `from`. `beside`: they stand as they are; final blocks are applied, from nothing,
    /// in tables of this transaction's own, until [`Switch::replace_tables_by_built`].
    pub async fn empty_tables(&mut self, from: Option<&BlockRef>, beside: bool) -> Result<Undone, StoreError> {
        self.unlimited().await?;
        let statement = &self.statements.tracked.empty_projection;
        let (height, hash) = (from.map(|b| b.height.to_sql()), from.map(|b| b.hash.as_str()));
        let row = self
            .tx
            .query_one(statement, &[&self.chain.0, &self.projection, &self.seq, &height, &hash, &beside])
            .await?;
        self.tables_beside = beside.then(OnceCell::new);
        self.tables_undone(&row)
    }

    /// Makes the live tables what was built beside them. Returns how many rows differed; 0 if nothing was.
    pub async fn replace_tables_by_built(&mut self) -> Result<u64, StoreError> {
        if self.tables_beside.take().is_none() {
            return Ok(0);
        }
        let sql = "select replace_tables_by_built($1, $2)";
        let row = self.tx.query_one(sql, &[&self.projection, &self.chain.0]).await?;
        Ok(row.get::<_, i64>(0).unsigned_abs())
    }

    fn tables_undone(&mut self, row: &Row) -> Result<Undone, StoreError> {
        let Some(seq) = row.try_get::<_, Option<i64>>("seq")? else {
            let what = format!("the checkpoint of {}, which was held, stands on another block", self.projection);
            return Err(StoreError::Nonsense { what });
        };
        let restored = count(row, "restored")?;
        let undone = Undone { seq, keys: restored, restored, changes: restored, blocks: count(row, "blocks")? };
        self.seq = undone.seq;
        Ok(undone)
    }

    /// Tells whoever listens that a projection was made anew.
    pub async fn note_rebuilt(&self, tip: Option<&BlockRef>, reason: &str) -> Result<(), StoreError> {
        self.tx
            .execute(
                "select note_rebuilt($1, $2, $3, $4, $5)",
                &[
                    &self.chain.0,
                    &self.projection,
                    &tip.map(|t| t.height.to_sql()),
                    &tip.map(|t| t.hash.as_str()),
                    &reason,
                ],
            )
            .await?;
        Ok(())
    }
}

/// A block being applied: what the chain says it holds, and the transaction to write what follows from it. The
/// projection's tables are restored by themselves when the block is replaced; no other table may be written.
pub struct BlockTransaction<'a> {
    tx: &'a Transaction<'a>,
    chain: ChainId,
    projection: &'a str,
    block: &'a BlockRef,
    vaults: &'a OnceCell<VaultStatements>,
}

impl fmt::Debug for BlockTransaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {} of chain {} for {}", self.block, self.chain, self.projection)
    }
}

impl<'a> BlockTransaction<'a> {
    /// The chain's number, for `chain_id` columns.
    pub fn chain(&self) -> ChainId {
        self.chain
    }

    /// The block.
    pub fn block(&self) -> &BlockRef {
        self.block
    }

    /// The transaction: any statement on the projection's own tables, and reading of all others. On the search path are
    /// `ebbtide`, the schemas of the projection's tables and `public`. It is committed, or rolled back, by whoever opened it.
    pub fn client(&self) -> &Transaction<'a> {
        self.tx
    }

    /// The statements of the option vaults, prepared at their first use on this connection. Until the block ends, the
    /// planner looks rows up by their keys.
    pub(crate) async fn vaults(&self) -> Result<&'a VaultStatements, StoreError> {
        self.tx.batch_execute("set local enable_hashjoin = off; set local enable_mergejoin = off").await?;
        self.vaults.get_or_try_init(|| VaultStatements::prepare(self.tx)).await
    }

    /// The block's token movements, in the order of the chain.
    pub async fn token_events(&self) -> Result<Vec<TokenEvent>, StoreError> {
        let sql = include_str!("../../../sql/queries/movements.sql");
        let at = self.block.height.to_sql();
        let rows = self.tx.query(sql, &[&self.chain.0, &at, &at]).await?;
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
    pub async fn events(&self) -> Result<Vec<Event>, StoreError> {
        let sql = include_str!("../../../sql/queries/events_of_block.sql");
        let rows = self.tx.query(sql, &[&self.chain.0, &self.block.height.to_sql()]).await?;
        rows.iter().map(crate::store::chains::stored_event).map(|read| read.map(|(_, event)| event)).collect()
    }

    /// When the chain says the block was made, in seconds since 1970; none: it does not say.
    pub async fn time(&self) -> Result<Option<i64>, StoreError> {
        let sql = "select extract(epoch from b.time)::bigint from blocks b where b.chain_id = $1 and b.height = $2";
        let row = self.tx.query_one(sql, &[&self.chain.0, &self.block.height.to_sql()]).await?;
        Ok(row.try_get(0)?)
    }

    /// Leaves an event out and keeps it as evidence in `rejected_events`.
    pub async fn reject(
        &self,
        tx_index: u64,
        event_index: u64,
        raw: Value,
        reason: &'static str,
    ) -> Result<(), StoreError> {
        let refused = Refused {
            height: self.block.height,
            tx_index: tx_index as i64,
            event_index: event_index as i64,
            raw,
            reason,
        };
        self.tx
            .execute(
                "select reject_event($1, $2, $3, $4, $5, $6, $7, $8)",
                &[
                    &self.chain.0,
                    &self.projection,
                    &refused.height.to_sql(),
                    &self.block.hash.as_str(),
                    &refused.tx_index,
                    &refused.event_index,
                    &refused.raw,
                    &refused.reason,
                ],
            )
            .await?;
        Ok(())
    }
}

/// Why a block could not be applied by a projection's own code.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlockError {
    /// Postgres would not.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The code will not.
    #[error("{reason}")]
    Refused {
        /// Why.
        reason: String,
    },
}

impl From<tokio_postgres::Error> for BlockError {
    fn from(error: tokio_postgres::Error) -> BlockError {
        BlockError::Store(error.into())
    }
}

impl Store {
    /// Makes a projection of the program known and its tables reorg-safe; nothing changes where that was done before.
    ///
    /// # Errors
    /// Tables that cannot be tracked, or others than those it had, with the remedy.
    pub async fn register_projection(
        &self,
        name: &str,
        tables: &[String],
        kind: Option<Kind>,
    ) -> Result<(), StoreError> {
        let kind = kind.map(Kind::as_str);
        self.reader().await?.execute("select register_projection($1, $2, $3)", &[&name, &tables, &kind]).await?;
        Ok(())
    }

    /// A connection of its own for a projection's preparations, such as making its tables.
    pub async fn preparing(&self) -> Result<Client, StoreError> {
        self.connect().await
    }
}

impl super::LedgerRead {
    /// All projections, by name.
    pub async fn projections(&self) -> Result<Vec<ProjectionRow>, StoreError> {
        let sql = "select name, apply is not null, after, chain_id, kind from projections order by name";
        let rows = self.client.query(sql, &[]).await?;
        rows.iter()
            .map(|row| {
                Ok(ProjectionRow {
                    name: row.try_get(0)?,
                    is_function: row.try_get(1)?,
                    after: row.try_get(2)?,
                    chain: row.try_get::<_, Option<i64>>(3)?.map(ChainId),
                    kind: row.try_get::<_, Option<&str>>(4)?.and_then(Kind::parse),
                })
            })
            .collect()
    }

    /// Shows how far a rebuild has come; it works in one transaction, which nobody else can look into.
    pub async fn rebuild_is_at(
        &self,
        chain: ChainId,
        projection: &str,
        reason: &str,
        heights: (Height, Height, Height),
    ) -> Result<(), StoreError> {
        let (from, at, to) = heights;
        self.client
            .execute(
                "insert into rebuilds (chain_id, projection, reason, from_height, at_height, to_height) \
                 values ($1, $2, $3, $4, $5, $6) on conflict (chain_id, projection) do update \
                 set reason = excluded.reason, at_height = excluded.at_height, to_height = excluded.to_height",
                &[&chain.0, &projection, &reason, &from.to_sql(), &at.to_sql(), &to.to_sql()],
            )
            .await?;
        Ok(())
    }

    /// The rebuild is over, one way or the other.
    pub async fn rebuild_ended(&self, chain: ChainId, projection: &str) -> Result<(), StoreError> {
        let sql = "delete from rebuilds where chain_id = $1 and projection = $2";
        self.client.execute(sql, &[&chain.0, &projection]).await?;
        Ok(())
    }
}

/// The checkpoint's columns that only tracked projections use.
pub(super) fn failed(row: &Row) -> Result<Option<(Option<Height>, String)>, StoreError> {
    let reason: Option<String> = row.try_get("failed_reason")?;
    reason.map(|reason| Ok((height(row, "failed_height")?, reason))).transpose()
}
