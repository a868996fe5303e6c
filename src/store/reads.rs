//! Reads for the REST interface: one snapshot for one answer.
//!
//! Every statement walks a primary key from where the last page ended; none scans history. The planner is told so (see
//! `walk_indexes.sql`), since a plan that suits today's statistics may not suit tomorrow's table.

mod balances;
mod history;
mod moment;
mod states;

use std::time::Duration;

use deadpool_postgres::{Object, Transaction};
use tokio_postgres::types::ToSql;
use tokio_postgres::{IsolationLevel, Row};

use super::{Store, StoreError};
use crate::chain::Kind;

pub use balances::{Balance, TokenRange};
pub use history::{HistoryPage, HistoryRequest, Position, Transfer};
pub use moment::{At, Moment, NOW};
pub use states::{ChainStatus, ProjectionStatus, ReorgRow};

/// A connection for reading.
pub struct Reader {
    client: Object,
}

/// One state of the database, however many statements are asked of it.
pub struct Snapshot<'a> {
    tx: Transaction<'a>,
}

/// A chain and the block a projection stands at on it.
#[derive(Debug, Clone)]
pub struct ChainState {
    /// Local number.
    pub chain_id: i64,
    /// Whose state this is.
    pub projection: String,
    /// Its name here.
    pub name: String,
    /// Which grammar its texts follow.
    pub kind: Kind,
    /// What the node calls itself, if a source has asked.
    pub network_id: Option<String>,
    /// Nothing up to here is expected to be replaced.
    pub final_height: Option<i64>,
    /// The last applied block.
    pub block: Option<NamedBlock>,
    /// Applied up to here; above the last block where the last heights are empty.
    pub through_height: Option<i64>,
    /// The projection's history below this height was pruned. Option vaults keep theirs whatever this says.
    pub history_from: Option<i64>,
    /// From this height on, where no journal is, the chain tables may hold other blocks than those applied.
    changed_from: Option<i64>,
    /// The lowest block whose undo is kept.
    window_from: Option<i64>,
}

impl ChainState {
    /// Where the journal holds nothing, blocks below this height are applied all the same: below the window (its undo was
    /// pruned), and up to the final height (a block that is final when it is applied is not journaled). A change there
    /// sets `changed_from`.
    fn applied_without_journal_below(&self) -> i64 {
        self.window_from().max(self.final_height.map_or(i64::MIN, |height| height.saturating_add(1))).min(self.end())
    }

    /// The same without what changed since.
    fn settled_below(&self) -> i64 {
        self.applied_without_journal_below().min(self.changed_from.unwrap_or(i64::MAX))
    }

    fn window_from(&self) -> i64 {
        self.window_from.unwrap_or(i64::MAX).min(self.end())
    }

    /// The height after the last one applied.
    fn end(&self) -> i64 {
        self.through_height.map_or(i64::MIN, |through| through.saturating_add(1))
    }
}

/// Names one block; a height of -1 would be the state before genesis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedBlock {
    /// Its height.
    pub height: i64,
    /// Its hash.
    pub hash: String,
}

/// Which chain a request gets.
#[derive(Debug)]
pub enum ChainChoice {
    /// This one.
    Found(ChainState),
    /// No chain of that name, or none at all.
    Unknown,
    /// None named, and there are several.
    Ambiguous,
}

impl Store {
    /// A connection to read from.
    ///
    /// # Errors
    /// When none can be had in time.
    pub async fn read(&self) -> Result<Reader, StoreError> {
        Ok(Reader { client: self.reader().await? })
    }
}

impl Reader {
    /// Begins a snapshot: all that is read from it is of one moment. It ends when dropped. No statement of it runs longer
    /// than `timeout`.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn snapshot(&mut self, timeout: Duration) -> Result<Snapshot<'_>, StoreError> {
        let tx = self
            .client
            .build_transaction()
            .isolation_level(IsolationLevel::RepeatableRead)
            .read_only(true)
            .start()
            .await?;
        let snapshot = Snapshot { tx };
        let timeout_ms = timeout.as_millis().max(1).to_string();
        let sql = "select set_config('statement_timeout', $1, true)";
        let parameters: &[&(dyn ToSql + Sync)] = &[&timeout_ms];
        // In one round trip: the driver sends both before it waits for either.
        let (walk, bounded) = tokio::join!(
            snapshot.tx.batch_execute(include_str!("../../sql/queries/walk_indexes.sql")),
            snapshot.rows(sql, parameters)
        );
        walk?;
        bounded?;
        Ok(snapshot)
    }
}

impl Snapshot<'_> {
    /// The chain of this name, with the block the projection stands at; without a name, the only one there is.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn chain(&self, name: Option<&str>, projection: &str) -> Result<ChainChoice, StoreError> {
        let sql = include_str!("../../sql/queries/chain_to_read.sql");
        let mut rows = self.rows(sql, &[&name, &projection]).await?;
        if rows.len() > 1 {
            return Ok(ChainChoice::Ambiguous);
        }
        let Some(row) = rows.pop() else { return Ok(ChainChoice::Unknown) };
        Ok(ChainChoice::Found(ChainState {
            chain_id: row.try_get("chain_id")?,
            projection: projection.to_owned(),
            name: row.try_get("name")?,
            kind: Kind::parse(row.try_get("kind")?).unwrap_or(Kind::Other),
            network_id: row.try_get("network_id")?,
            final_height: row.try_get("final_height")?,
            block: named_block(&row, "height", "hash")?,
            through_height: row.try_get("through_height")?,
            history_from: row.try_get("history_from")?,
            changed_from: row.try_get("changed_from")?,
            window_from: row.try_get("window_from")?,
        }))
    }

    /// The rows of a statement with its parameters. It is prepared at its first use on this connection, and kept.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn rows(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, StoreError> {
        let statement = self.tx.prepare_cached(sql).await?;
        Ok(self.tx.query(&statement, parameters).await?)
    }
}

fn named_block(row: &Row, height: &str, hash: &str) -> Result<Option<NamedBlock>, StoreError> {
    let (height, hash) = (row.try_get::<_, Option<i64>>(height)?, row.try_get::<_, Option<String>>(hash)?);
    Ok(height.zip(hash).map(|(height, hash)| NamedBlock { height, hash }))
}
