//! Reads for the REST interface: one snapshot for one answer.
//!
//! Every statement walks a primary key from where the last page ended; none scans history. The planner is told so
//! ([`ALONG_INDEXES`]), since a plan that suits today's statistics may not suit tomorrow's table.

mod balances;
mod history;
mod moment;
mod now;
mod parameter;
mod states;

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{Object, Pool, Transaction};
use futures::{join, try_join};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_postgres::{IsolationLevel, Row};

use super::greeting::Greeting;
use super::sessions::{Loan, lent};
use super::{Store, StoreError, StoreSettings, connection, pool};
use crate::chain::Kind;

pub use balances::{Balance, TokenRange};
pub use history::{HistoryPage, HistoryRequest, Position, Transfer};
pub use moment::{At, Moment, NOW};
pub use now::{ListNow, Spelt};
pub use parameter::Parameter;
pub use states::{ChainStatus, ReorgRow};

/// Most connections for REST. A core of a server is kept busy by two or three readers; more of them only wait for each other.
const CONNECTIONS: usize = 16;
/// Of those, how many may read whole lists at once.
const WALKS: usize = 8;
/// Longest wait for one. A client that is told to come again in a second has the answer sooner than one that waits ten.
const WAIT: Duration = Duration::from_secs(1);

/// What the planner is told on a connection of the REST interface. Every read is a walk along an index, stopped by a limit: plans
/// that sort or scan a whole table read the table's length instead of the page's. So the plan of a statement is known, and made
/// once for a connection.
pub const ALONG_INDEXES: &[(&str, &str)] = &[
    ("default_transaction_read_only", "on"),
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("enable_sort", "off"),
];

/// Connections for reading. Cheap to clone.
#[derive(Clone)]
pub struct Readers {
    pool: Pool,
    place: Arc<str>,
    /// None means that each connection keeps its session.
    loan: Option<Loan>,
    /// One for each connection: with a permit in hand, the pool has a connection.
    places: Arc<Semaphore>,
    walks: Arc<Semaphore>,
}

/// A connection for reading.
pub struct Reader {
    client: Object,
    loan: Option<Loan>,
    // Given back after the connection: fields are dropped in this order.
    _place: OwnedSemaphorePermit,
    _walk: Option<OwnedSemaphorePermit>,
}

/// One state of the database, however many statements are asked of it.
pub struct Snapshot<'a> {
    tx: Transaction<'a>,
    is_lent: bool,
}

/// A chain and the block a projection stands at on it.
#[derive(Debug, Clone)]
pub struct ChainNow {
    /// Local number.
    pub chain_id: i64,
    /// Its name here.
    pub name: String,
    /// Which grammar its texts follow.
    pub kind: Kind,
    /// What the network called itself when a source stored its first blocks. None where none has, or none that knows.
    pub network_id: Option<String>,
    /// The last applied block.
    pub block: Option<NamedBlock>,
    /// Applied up to here; above the last block where the last heights are empty.
    pub through_height: Option<i64>,
}

/// The same, with what tells which of its earlier states can be read.
#[derive(Debug, Clone)]
pub struct ChainState {
    /// As it is now.
    pub now: ChainNow,
    /// Whose state this is.
    pub projection: String,
    /// Nothing up to here is expected to be replaced.
    pub final_height: Option<i64>,
    /// The projection's history below this height was pruned. Option vaults keep theirs whatever this says.
    pub history_from: Option<i64>,
    /// From this height on, where no journal is, the chain tables may hold other blocks than those applied.
    changed_from: Option<i64>,
    /// The lowest block whose undo is kept.
    window_from: Option<i64>,
}

impl ChainNow {
    /// As `chain_now.sql` tells, and what has its columns.
    fn of(row: &Row) -> Result<ChainNow, StoreError> {
        Ok(ChainNow {
            chain_id: row.try_get("chain_id")?,
            name: row.try_get("name")?,
            kind: Kind::parse(row.try_get("kind")?).unwrap_or(Kind::Other),
            network_id: row.try_get("network_id")?,
            block: named_block(row, "height", "hash")?,
            through_height: row.try_get("through_height")?,
        })
    }
}

impl Deref for ChainState {
    type Target = ChainNow;

    fn deref(&self) -> &ChainNow {
        &self.now
    }
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
pub enum ChainChoice<C> {
    /// This one.
    Found(C),
    /// No chain of that name, or none at all.
    Unknown,
    /// None named, and there are several.
    Ambiguous,
}

impl Store {
    /// Connections for the REST interface alone: what its clients take, no other part waits for. No statement runs longer
    /// than `timeout`. Nothing is connected yet.
    pub fn readers(&self, timeout: Duration) -> Readers {
        let settings = StoreSettings { statement_timeout: timeout, ..self.settings.clone() };
        let greeting = Greeting::new(&settings).and(ALONG_INDEXES);
        let loan = self.loan(&greeting);
        let pool = pool(&self.config, &self.tls, CONNECTIONS, loan.is_none().then_some(greeting));
        let places = |count| Arc::new(Semaphore::new(count));
        Readers { pool, place: self.place.as_str().into(), loan, places: places(CONNECTIONS), walks: places(WALKS) }
    }
}

impl Readers {
    /// A connection for a read that costs some look-ups, whatever there is in the database.
    ///
    /// # Errors
    /// [`StoreError::Busy`] when others have them all.
    pub async fn read(&self) -> Result<Reader, StoreError> {
        self.place(None).await
    }

    /// A connection for a read whose cost grows with the tokens of a chain or the accounts of a token. A part of the
    /// connections takes those, so that they leave the others to [`read`](Readers::read).
    ///
    /// # Errors
    /// [`StoreError::Busy`] when others have them all.
    pub async fn walk(&self) -> Result<Reader, StoreError> {
        let walk = place(&self.walks, "as many reads of whole lists as may run at once are running").await?;
        self.place(Some(walk)).await
    }

    async fn place(&self, walk: Option<OwnedSemaphorePermit>) -> Result<Reader, StoreError> {
        let place = place(&self.places, "all connections for reading are in use").await?;
        let client = connection(&self.pool, &self.place).await?;
        Ok(Reader { client, loan: self.loan.clone(), _place: place, _walk: walk })
    }
}

async fn place(places: &Arc<Semaphore>, busy: &'static str) -> Result<OwnedSemaphorePermit, StoreError> {
    let place = tokio::time::timeout(WAIT, places.clone().acquire_owned()).await;
    Ok(place.map_err(|_| StoreError::Busy { what: busy })?.expect("nobody closes it"))
}

impl Reader {
    /// Begins a snapshot: all that is read from it is of one moment. It ends when dropped. No statement of it runs longer
    /// than `timeout`.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn snapshot(&mut self, timeout: Duration) -> Result<Snapshot<'_>, StoreError> {
        let begin = self.client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true);
        // Statements with many parameters that may be absent are planned each time: the right plan follows from the values.
        let timeout_ms = timeout.as_millis().max(1).to_string();
        let greeting = self.loan.as_ref().map_or("", Loan::greeting);
        let settings =
            [greeting, "set local plan_cache_mode = force_custom_plan; set local statement_timeout = ", &timeout_ms];
        let begun = async {
            let tx = begin.start().await?;
            tx.batch_execute(&settings.concat()).await?;
            Ok::<_, tokio_postgres::Error>(tx)
        };
        let is_lent = self.loan.is_some();
        let tx = if is_lent { lent(begun).await? } else { begun.await? };
        Ok(Snapshot { tx, is_lent })
    }

    /// The rows of a statement with its parameters, a snapshot by itself. It is prepared at its first use on this connection,
    /// and planned once; in a session that is lent it is a transaction without a name, sent as a whole.
    async fn rows(&self, sql: &str, parameters: &[&dyn Parameter]) -> Result<Vec<Row>, StoreError> {
        let Some(loan) = &self.loan else {
            let statement = self.client.prepare_cached(sql).await?;
            return Ok(self.client.query(&statement, &parameter::of_statement(&statement, parameters)).await?);
        };
        let begin = ["begin isolation level read committed, read only; ", loan.greeting()].concat();
        let typed = parameter::typed(parameters);
        // Whichever of them fails, the last one is sent: the session is given back as it was.
        let rest = async {
            Ok::<_, StoreError>(join!(self.client.query_typed(sql, &typed), self.client.batch_execute("rollback")))
        };
        let ((), (rows, _)) = try_join!(lent(self.client.batch_execute(&begin)), rest)?;
        Ok(rows?)
    }
}

impl Snapshot<'_> {
    /// The chain of this name, with the block the projection stands at; without a name, the only one there is.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn chain(&self, name: Option<&str>, projection: &str) -> Result<ChainChoice<ChainState>, StoreError> {
        let sql = include_str!("../../sql/queries/chain_to_read.sql");
        choice(&self.rows(sql, &[&name, &projection]).await?, |row| {
            Ok(ChainState {
                now: ChainNow::of(row)?,
                projection: projection.to_owned(),
                final_height: row.try_get("final_height")?,
                history_from: row.try_get("history_from")?,
                changed_from: row.try_get("changed_from")?,
                window_from: row.try_get("window_from")?,
            })
        })
    }

    /// The rows of a statement with its parameters. It is prepared at its first use on this connection, and kept; in a session
    /// that is lent it has no name.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn rows(&self, sql: &str, parameters: &[&dyn Parameter]) -> Result<Vec<Row>, StoreError> {
        if self.is_lent {
            return Ok(self.tx.query_typed(sql, &parameter::typed(parameters)).await?);
        }
        let statement = self.tx.prepare_cached(sql).await?;
        Ok(self.tx.query(&statement, &parameter::of_statement(&statement, parameters)).await?)
    }
}

/// Which chain it is, of up to two rows.
fn choice<C>(rows: &[Row], of: impl FnOnce(&Row) -> Result<C, StoreError>) -> Result<ChainChoice<C>, StoreError> {
    match rows {
        [] => Ok(ChainChoice::Unknown),
        [row] => Ok(ChainChoice::Found(of(row)?)),
        _ => Ok(ChainChoice::Ambiguous),
    }
}

fn named_block(row: &Row, height: &str, hash: &str) -> Result<Option<NamedBlock>, StoreError> {
    let (height, hash) = (row.try_get::<_, Option<i64>>(height)?, row.try_get::<_, Option<String>>(hash)?);
    Ok(height.zip(hash).map(|(height, hash)| NamedBlock { height, hash }))
}
