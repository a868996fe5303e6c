//! Reads for the REST interface: one snapshot for one answer.
//!
//! Every statement walks a primary key from where the last page ended; none scans history. The planner is told so (see
//! [`Reader::snapshot`]), since a plan that suits today's statistics may not suit tomorrow's table.

mod history;

use deadpool_postgres::{Object, Transaction};
use tokio_postgres::types::ToSql;
use tokio_postgres::{IsolationLevel, Row};

use super::{Store, StoreError};
use crate::chain::Kind;

pub use history::{HistoryPage, HistoryRequest, Position, Transfer};

/// As a height to read at: the newest state.
pub const NOW: i64 = i64::MAX;

/// A connection for reading.
pub struct Reader {
    client: Object,
}

/// One state of the database, however many statements are asked of it.
pub struct Snapshot<'a> {
    tx: Transaction<'a>,
}

/// A chain and the block its balances stand at.
#[derive(Debug, Clone)]
pub struct ChainState {
    /// Local number.
    pub chain_id: i64,
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
    /// The history of balances below this height was pruned.
    pub history_from: Option<i64>,
    /// The state is to be applied again from this height.
    redo_from: Option<i64>,
    /// The lowest block whose undo is kept.
    window_from: Option<i64>,
}

impl ChainState {
    /// Below this height every block present is applied; at and above it the journal says which are.
    fn settled_below(&self) -> i64 {
        let end = self.through_height.map_or(i64::MIN, |through| through.saturating_add(1));
        let window_from = self.window_from.unwrap_or(end);
        window_from.min(self.redo_from.unwrap_or(i64::MAX)).min(end)
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

/// The moment a request asks about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum At {
    /// The newest state.
    Now,
    /// Once the block at this height was applied.
    Height(i64),
    /// Once the block of this hash was applied.
    Hash(String),
    /// The newest state that no reorganisation is expected to change.
    Final,
}

/// What a moment resolves to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Moment {
    /// The state at `height`, whose newest block is `block` (none: no block is applied yet).
    Stands {
        /// Height to read at; [`NOW`] for the newest state.
        height: i64,
        /// The block the answer is true at.
        block: Option<NamedBlock>,
        /// Applied up to here, empty heights included.
        through_height: Option<i64>,
    },
    /// Not applied, or never seen.
    UnknownBlock,
    /// It was replaced by another block.
    BlockReplaced,
}

/// One balance, or one total.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balance {
    /// The token.
    pub token: String,
    /// The account; empty in totals.
    pub address: String,
    /// Base units as decimal digits, with a minus where history is missing.
    pub amount: String,
}

/// A range of tokens by bytes: from `low`, up to but without `high` (none: no end).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRange {
    /// Inclusive.
    pub low: String,
    /// Exclusive.
    pub high: Option<String>,
}

impl TokenRange {
    /// Every token.
    pub fn all() -> TokenRange {
        TokenRange { low: String::new(), high: None }
    }

    /// Exactly this token.
    pub fn exactly(token: &str) -> TokenRange {
        TokenRange { low: token.to_owned(), high: Some(successor(token)) }
    }

    /// Every token that begins with `prefix`, which must not end in the last character there is.
    pub fn beginning_with(prefix: &str) -> TokenRange {
        let mut high = prefix.to_owned();
        let next = high.pop().and_then(|last| char::from_u32(last as u32 + 1));
        high.extend(next);
        TokenRange { low: prefix.to_owned(), high: next.map(|_| high) }
    }

    /// What of this range lies after `token`.
    #[must_use]
    pub fn after(mut self, token: &str) -> TokenRange {
        let next = successor(token);
        if next > self.low {
            self.low = next;
        }
        self
    }
}

/// The lowest text above `text`: texts hold no NUL, so nothing fits between them.
fn successor(text: &str) -> String {
    format!("{text}\u{1}")
}

/// One chain in `/chains` and `/status`.
#[derive(Debug, Clone)]
pub struct ChainRow {
    /// Its name.
    pub name: String,
    /// Its kind, as a word.
    pub kind: String,
    /// What the node calls itself.
    pub network_id: Option<String>,
    /// First height that counts.
    pub start_height: Option<i64>,
    /// Blocks below the head that are taken as final.
    pub finality_depth: i64,
    /// The source's newest height.
    pub head_height: Option<i64>,
    /// Final height.
    pub final_height: Option<i64>,
    /// Up to here a missing height is an empty block.
    pub complete_to: Option<i64>,
    /// Our newest block.
    pub tip: Option<NamedBlock>,
}

/// How far one projection is on one chain.
#[derive(Debug, Clone)]
pub struct ProjectionRow {
    /// The chain's name.
    pub chain: String,
    /// The projection's name.
    pub projection: String,
    /// The last applied block.
    pub block: Option<NamedBlock>,
    /// Applied up to here.
    pub through_height: Option<i64>,
    /// Balance history begins here.
    pub history_from: Option<i64>,
    /// To be applied again from here.
    pub redo_from: Option<i64>,
    /// An operator holds it.
    pub paused: bool,
    /// Where it is held.
    pub pause_at: Option<i64>,
    /// Why it stopped.
    pub halted_reason: Option<String>,
    /// When it last moved, by the database's clock.
    pub updated_at: jiff::Timestamp,
}

/// One reorganisation, with its cost.
#[derive(Debug, Clone)]
pub struct ReorgRow {
    /// Its number; later ones are higher.
    pub id: i64,
    /// The chain's name.
    pub chain: String,
    /// The projection that moved.
    pub projection: String,
    /// The last block both branches share; none: they share none.
    pub ancestor: Option<i64>,
    /// Blocks left behind.
    pub depth: i64,
    /// Where it stood.
    pub old_tip: NamedBlock,
    /// Where it went; none: to before the start.
    pub new_tip: Option<NamedBlock>,
    /// Blocks undone.
    pub blocks_undone: i64,
    /// Blocks applied in their place.
    pub blocks_applied: i64,
    /// Rows written.
    pub rows_touched: i64,
    /// Time it took, in milliseconds.
    pub duration_ms: f64,
    /// When, by the database's clock.
    pub at: jiff::Timestamp,
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
    /// Begins a snapshot: all that is read from it is of one moment. It ends when dropped.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn snapshot(&mut self) -> Result<Snapshot<'_>, StoreError> {
        let tx = self
            .client
            .build_transaction()
            .isolation_level(IsolationLevel::RepeatableRead)
            .read_only(true)
            .start()
            .await?;
        Ok(Snapshot { tx })
    }
}

/// Every statement here is a walk along an index, stopped by a limit: plans that sort or scan a whole table read the
/// table's length instead of the page's. Planned anew each time, since the right plan follows from the values.
const WALK_INDEXES: &str = "set local plan_cache_mode = force_custom_plan; set local enable_seqscan = off;
    set local enable_bitmapscan = off; set local enable_hashjoin = off; set local enable_mergejoin = off;
    set local enable_sort = off; set local jit = off";

impl Snapshot<'_> {
    /// The chain of this name; without a name, the only one there is.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn chain(&self, name: Option<&str>) -> Result<ChainChoice, StoreError> {
        // In one round trip: the driver sends both before it waits for either.
        let sql = include_str!("../../sql/queries/chain_to_read.sql");
        let parameters: &[&(dyn ToSql + Sync)] = &[&name];
        let (settings, rows) = tokio::join!(self.tx.batch_execute(WALK_INDEXES), self.rows(sql, parameters));
        settings?;
        let mut rows = rows?;
        if rows.len() > 1 {
            return Ok(ChainChoice::Ambiguous);
        }
        let Some(row) = rows.pop() else { return Ok(ChainChoice::Unknown) };
        Ok(ChainChoice::Found(ChainState {
            chain_id: row.try_get("chain_id")?,
            name: row.try_get("name")?,
            kind: Kind::parse(row.try_get("kind")?).unwrap_or(Kind::Other),
            network_id: row.try_get("network_id")?,
            final_height: row.try_get("final_height")?,
            block: named_block(&row, "height", "hash")?,
            through_height: row.try_get("through_height")?,
            history_from: row.try_get("history_from")?,
            redo_from: row.try_get("redo_from")?,
            window_from: row.try_get("window_from")?,
        }))
    }

    /// What block a request's moment is, on the branch that is applied.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn moment(&self, chain: &ChainState, at: &At) -> Result<Moment, StoreError> {
        let height = match at {
            At::Now => {
                return Ok(Moment::Stands {
                    height: NOW,
                    block: chain.block.clone(),
                    through_height: chain.through_height,
                });
            }
            At::Height(height) => *height,
            At::Final => match self.settled_final_height(chain).await? {
                Some(height) => height,
                None => return Ok(Moment::UnknownBlock),
            },
            At::Hash(hash) => match self.height_of(chain, hash).await? {
                Ok(height) => height,
                Err(absent) => return Ok(absent),
            },
        };
        let Some(through) = chain.through_height.filter(|through| height <= *through) else {
            return Ok(Moment::UnknownBlock);
        };
        // Empty heights above the last block are part of its state.
        let block = self.applied_block_at(chain, height).await?;
        Ok(match block {
            Some(_) => Moment::Stands { height, block, through_height: Some(height.min(through)) },
            None => Moment::UnknownBlock,
        })
    }

    /// The newest height that is final, applied, and applied as the chain tables have it: a projection that has not
    /// yet left a replaced branch must not show it as final.
    async fn settled_final_height(&self, chain: &ChainState) -> Result<Option<i64>, StoreError> {
        let (Some(final_height), Some(through)) = (chain.final_height, chain.through_height) else { return Ok(None) };
        let mut height = final_height.min(through);
        if let Some(redo_from) = chain.redo_from {
            height = height.min(redo_from - 1);
        }
        let rows = self.rows(include_str!("../../sql/queries/settled_height.sql"), &[&chain.chain_id, &height]).await?;
        if let Some(row) = rows.first() {
            height = row.try_get::<_, i64>(0)? - 1;
        }
        Ok((height >= 0).then_some(height))
    }

    async fn height_of(&self, chain: &ChainState, hash: &str) -> Result<Result<i64, Moment>, StoreError> {
        let rows = self.rows(include_str!("../../sql/queries/block_named.sql"), &[&chain.chain_id, &hash]).await?;
        let Some(row) = rows.first() else { return Ok(Err(Moment::UnknownBlock)) };
        let height: Option<i64> = row.try_get("height")?;
        let journaled: bool = row.try_get("journaled")?;
        let replaced: bool = row.try_get("replaced")?;
        Ok(match height {
            Some(height) if journaled || height < chain.settled_below() => Ok(height),
            // Back in the chain after a flip, only not applied yet: it is not gone.
            Some(_) => Err(Moment::UnknownBlock),
            None if replaced => Err(Moment::BlockReplaced),
            None => Err(Moment::UnknownBlock),
        })
    }

    async fn applied_block_at(&self, chain: &ChainState, height: i64) -> Result<Option<NamedBlock>, StoreError> {
        if chain.through_height == Some(height) {
            return Ok(chain.block.clone());
        }
        let window_from = chain.window_from.unwrap_or(i64::MAX);
        let sql = include_str!("../../sql/queries/applied_block_at.sql");
        let rows = self.rows(sql, &[&chain.chain_id, &height, &window_from]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let block = named_block(row, "height", "hash")?;
        // Changed below the window and not applied again yet: what stood there has no name any more.
        Ok(block.filter(|b| b.height >= window_from || chain.redo_from.is_none_or(|redo| b.height < redo)))
    }

    /// Whether any account ever had an event of exactly this token.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn token_is_known(&self, chain: &ChainState, token: &str) -> Result<bool, StoreError> {
        let sql = include_str!("../../sql/queries/token_is_known.sql");
        let rows = self.rows(sql, &[&chain.chain_id, &token]).await?;
        Ok(rows.first().map(|row| row.try_get(0)).transpose()?.unwrap_or(false))
    }

    /// Up to `limit` sums per token, in token order.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn totals(
        &self,
        chain: &ChainState,
        tokens: &TokenRange,
        height: i64,
        zero: bool,
        limit: i64,
    ) -> Result<Vec<Balance>, StoreError> {
        let sql = include_str!("../../sql/queries/totals.sql");
        let rows = self.rows(sql, &[&chain.chain_id, &tokens.low, &tokens.high, &height, &zero, &limit]).await?;
        rows.iter()
            .map(|row| {
                Ok(Balance { token: row.try_get("token")?, address: String::new(), amount: row.try_get("amount")? })
            })
            .collect()
    }

    /// Up to `limit` balances of one account, in token order.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn balances_of_account(
        &self,
        chain: &ChainState,
        tokens: &TokenRange,
        address: &str,
        height: i64,
        zero: bool,
        limit: i64,
    ) -> Result<Vec<Balance>, StoreError> {
        let sql = include_str!("../../sql/queries/balances_of_account.sql");
        let parameters: &[&(dyn ToSql + Sync)] =
            &[&chain.chain_id, &tokens.low, &tokens.high, &address, &height, &zero, &limit];
        self.rows(sql, parameters).await?.iter().map(balance).collect()
    }

    /// Up to `limit` balances in the tokens of the range, after the account `after` of its first token, in key order.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn balances_of_token(
        &self,
        chain: &ChainState,
        tokens: &TokenRange,
        after: &str,
        height: i64,
        zero: bool,
        limit: i64,
    ) -> Result<Vec<Balance>, StoreError> {
        let sql = include_str!("../../sql/queries/balances_of_token.sql");
        let parameters: &[&(dyn ToSql + Sync)] =
            &[&chain.chain_id, &tokens.low, &after, &tokens.high, &height, &zero, &limit];
        self.rows(sql, parameters).await?.iter().map(balance).collect()
    }

    /// Whether the chain still holds this block.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn block_is_in_chain(&self, chain: &ChainState, block: &NamedBlock) -> Result<bool, StoreError> {
        let sql = include_str!("../../sql/queries/block_is_in_chain.sql");
        let rows = self.rows(sql, &[&chain.chain_id, &block.height, &block.hash]).await?;
        Ok(rows.first().map(|row| row.try_get(0)).transpose()?.unwrap_or(false))
    }

    /// All chains, or the one of this name.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn chains(&self, name: Option<&str>) -> Result<Vec<ChainRow>, StoreError> {
        let rows = self.rows(include_str!("../../sql/queries/chain_states.sql"), &[&name]).await?;
        rows.iter()
            .map(|row| {
                Ok(ChainRow {
                    name: row.try_get("name")?,
                    kind: row.try_get("kind")?,
                    network_id: row.try_get("network_id")?,
                    start_height: row.try_get("start_height")?,
                    finality_depth: row.try_get("finality_depth")?,
                    head_height: row.try_get("head_height")?,
                    final_height: row.try_get("final_height")?,
                    complete_to: row.try_get("complete_to")?,
                    tip: named_block(row, "tip_height", "tip_hash")?,
                })
            })
            .collect()
    }

    /// How far each projection is, on all chains or on the one of this name.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn projections(&self, chain: Option<&str>) -> Result<Vec<ProjectionRow>, StoreError> {
        let rows = self.rows(include_str!("../../sql/queries/projection_states.sql"), &[&chain]).await?;
        rows.iter()
            .map(|row| {
                Ok(ProjectionRow {
                    chain: row.try_get("chain")?,
                    projection: row.try_get("projection")?,
                    block: named_block(row, "height", "hash")?,
                    through_height: row.try_get("through_height")?,
                    history_from: row.try_get("history_from")?,
                    redo_from: row.try_get("redo_from")?,
                    paused: row.try_get("paused")?,
                    pause_at: row.try_get("pause_at")?,
                    halted_reason: row.try_get("halted_reason")?,
                    updated_at: row.try_get("updated_at")?,
                })
            })
            .collect()
    }

    /// Up to `limit` reorganisations with an id below `before`, newest first.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn reorgs(&self, chain: Option<&str>, before: i64, limit: i64) -> Result<Vec<ReorgRow>, StoreError> {
        let rows = self.rows(include_str!("../../sql/queries/reorgs.sql"), &[&chain, &before, &limit]).await?;
        rows.iter()
            .map(|row| {
                Ok(ReorgRow {
                    id: row.try_get("id")?,
                    chain: row.try_get("chain")?,
                    projection: row.try_get("projection")?,
                    ancestor: row.try_get("ancestor")?,
                    depth: row.try_get("depth")?,
                    old_tip: NamedBlock { height: row.try_get("old_tip_height")?, hash: row.try_get("old_tip_hash")? },
                    new_tip: named_block(row, "new_tip_height", "new_tip_hash")?,
                    blocks_undone: row.try_get("blocks_undone")?,
                    blocks_applied: row.try_get("blocks_applied")?,
                    rows_touched: row.try_get("rows_touched")?,
                    duration_ms: row.try_get("duration_ms")?,
                    at: row.try_get("at")?,
                })
            })
            .collect()
    }

    async fn rows(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, StoreError> {
        let statement = self.tx.prepare_cached(sql).await?;
        Ok(self.tx.query(&statement, parameters).await?)
    }
}

fn balance(row: &Row) -> Result<Balance, StoreError> {
    Ok(Balance { token: row.try_get("token")?, address: row.try_get("address")?, amount: row.try_get("amount")? })
}

fn named_block(row: &Row, height: &str, hash: &str) -> Result<Option<NamedBlock>, StoreError> {
    let (height, hash) = (row.try_get::<_, Option<i64>>(height)?, row.try_get::<_, Option<String>>(hash)?);
    Ok(height.zip(hash).map(|(height, hash)| NamedBlock { height, hash }))
}
