//! What the syncer reads and writes: chains and their blocks. One writer per chain holds an advisory lock.

mod following;
mod write;

use std::fmt;

use futures::try_join;
use serde_json::Value;
use tokio_postgres::{Client, Row, Statement, Transaction};

use super::greeting::{SILENT_AT_MOST, alive_during};
use super::numeric::Numeric;
use super::{Store, StoreError};
use crate::chain::delta::Delta;
use crate::chain::{Block, BlockRef, ChainId, Event, Hash, Height, Kind, Text};

pub use following::{CaughtUp, Missed, RegisteredVault};

/// What the settings say of a chain; what is none stays as the database has it.
#[derive(Debug, Clone)]
pub struct ChainSettings {
    /// Unique.
    pub name: String,
    /// The grammar of its texts.
    pub kind: Kind,
    /// First height that counts.
    pub start_height: Option<Height>,
    /// Blocks below the head taken as final.
    pub finality_depth: Option<u64>,
    /// Packages whose `NewToken` events are believed (gno).
    pub announcers: Option<Vec<String>>,
}

/// A row of `chains`.
#[derive(Debug, Clone)]
pub struct ChainRow {
    /// Its number.
    pub id: ChainId,
    /// Its name.
    pub name: String,
    /// The grammar of its texts.
    pub kind: Kind,
    /// What the network called itself when its first blocks were stored.
    pub network_id: Option<String>,
    /// First height that counts.
    pub start_height: Option<Height>,
    /// Blocks below the head taken as final.
    pub finality_depth: u64,
    /// The source's head when it was last seen.
    pub head_height: Option<Height>,
    /// Nothing up to here is expected to be replaced.
    pub final_height: Option<Height>,
    /// Where a source goes on that cannot be asked twice.
    pub source_position: Option<Value>,
}

/// Our newest block of a chain.
pub type Tip = Option<BlockRef>;

/// What is stored of a chain, in one snapshot.
#[derive(Debug, Clone)]
pub struct StoredChain {
    /// Its row.
    pub chain: ChainRow,
    /// Our newest block.
    pub tip: Tip,
    /// The height of our lowest block.
    pub lowest: Option<Height>,
    /// The registered vaults, where the source is told whom to follow.
    pub vaults: Option<Vec<RegisteredVault>>,
}

/// Blocks to write in one transaction.
#[derive(Debug)]
pub struct NewBlocks<'a> {
    /// They come on top of this block; None means nothing stands below them.
    pub ancestor: Option<&'a BlockRef>,
    /// Whether what stands above the ancestor is archived and removed first; without it, such blocks make the
    /// write stale.
    pub replace: bool,
    /// Ascending, linked.
    pub blocks: &'a [Block],
    /// The source's head.
    pub head_height: Height,
    /// What the source and the settings call final by then; never above the last of the blocks.
    pub final_height: Option<Height>,
    /// Stored with the blocks; None leaves what was there.
    pub position: Option<&'a Value>,
    /// The chain began again: the final height may fall.
    pub reset: bool,
    /// What the network calls itself: kept with the first blocks.
    pub network_id: Option<&'a str>,
    /// Registered vaults whose events the blocks hold.
    pub vaults: &'a [Text],
}

/// What a token says of itself.
#[derive(Debug, Clone, Copy)]
pub struct TokenDescription<'a> {
    /// Its address or path.
    pub token: &'a str,
    /// Its ticker.
    pub symbol: Option<&'a str>,
    /// Its name.
    pub name: Option<&'a str>,
    /// How many decimals a person would show.
    pub decimals: Option<i16>,
}

/// How a write turned out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// It stands.
    Stored {
        /// Blocks archived and removed.
        removed: u64,
    },
    /// Someone else changed the chain since the plan: look again.
    Stale,
}

pub(super) fn height(row: &Row, column: &str) -> Result<Option<Height>, StoreError> {
    row.try_get::<_, Option<i64>>(column)?
        .map(|h| Height::try_from(h).map_err(|e| StoreError::Nonsense { what: format!("{column}: {e}") }))
        .transpose()
}

fn chain_row(row: &Row) -> Result<ChainRow, StoreError> {
    let kind: &str = row.try_get("kind")?;
    Ok(ChainRow {
        id: ChainId(row.try_get("chain_id")?),
        name: row.try_get("name")?,
        kind: Kind::parse(kind).ok_or_else(|| StoreError::Nonsense { what: format!("chains.kind {kind}") })?,
        network_id: row.try_get("network_id")?,
        start_height: height(row, "start_height")?,
        finality_depth: row.try_get::<_, i64>("finality_depth")?.unsigned_abs(),
        head_height: height(row, "head_height")?,
        final_height: height(row, "final_height")?,
        source_position: row.try_get("source_position")?,
    })
}

fn stored_chain(row: &Row) -> Result<StoredChain, StoreError> {
    let tip = match (height(row, "tip_height")?, row.try_get::<_, Option<&str>>("tip_hash")?) {
        (Some(height), Some(hash)) => Some(BlockRef { height, hash: Hash::new(hash) }),
        _ => None,
    };
    let vaults = row.try_get::<_, Option<Value>>("vaults")?.map(following::registered).transpose()?;
    Ok(StoredChain { chain: chain_row(row)?, tip, lowest: height(row, "lowest_height")?, vaults })
}

pub(crate) fn stored_event(row: &Row) -> Result<(Height, Event), StoreError> {
    let height = Height::try_from(row.try_get::<_, i64>("height")?)
        .map_err(|e| StoreError::Nonsense { what: format!("events.height: {e}") })?;
    let texts = |column: &str| -> Result<Vec<Text>, StoreError> {
        Ok(row.try_get::<_, Vec<&str>>(column)?.into_iter().map(Text::from).collect())
    };
    let event = Event {
        tx_index: row.try_get::<_, i64>("tx_index")?.unsigned_abs(),
        event_index: row.try_get::<_, i64>("event_index")?.unsigned_abs(),
        emitter: row.try_get::<_, &str>("emitter")?.into(),
        name: row.try_get::<_, &str>("name")?.into(),
        keys: texts("keys")?,
        data: texts("data")?,
        attributes: row.try_get("attributes")?,
    };
    Ok((height, event))
}

impl Store {
    /// The chain of this name, made if it is not there. One that is there stays as it is: settings are written by the
    /// one that holds its lock ([`SyncLock::claim`]).
    pub async fn ensure_chain(&self, name: &str, kind: Kind) -> Result<ChainId, StoreError> {
        let client = self.reader().await?;
        let find = "select chain_id from chains where name = $1";
        // Selected first: an insert waits for a transaction that writes the row, and a syncer at work always has one.
        if let Some(row) = client.query_opt(find, &[&name]).await? {
            return Ok(ChainId(row.try_get(0)?));
        }
        let make = "insert into chains (name, kind) values ($1, $2) on conflict (name) do nothing";
        client.execute(make, &[&name, &kind.as_str()]).await?;
        let row = client.query_one(find, &[&name]).await?;
        Ok(ChainId(row.try_get(0)?))
    }

    /// Tokens that have events among `tokens` but no metadata row yet.
    pub async fn tokens_without_metadata(&self, chain: ChainId, tokens: &[Text]) -> Result<Vec<Text>, StoreError> {
        let tokens: Vec<&str> = tokens.iter().map(|t| &**t).collect();
        let rows = self
            .reader()
            .await?
            .query(
                "select t.token from unnest($2::text[]) t (token) where not exists \
                 (select from token_metadata m where m.chain_id = $1 and m.token = t.token)",
                &[&chain.0, &tokens],
            )
            .await?;
        Ok(rows.iter().map(|row| Text::from(row.get::<_, &str>(0))).collect())
    }

    /// Keeps what tokens say of themselves; what was read first stays.
    pub async fn put_metadata(&self, chain: ChainId, tokens: &[TokenDescription<'_>]) -> Result<(), StoreError> {
        let names: Vec<&str> = tokens.iter().map(|t| t.token).collect();
        let symbols: Vec<Option<&str>> = tokens.iter().map(|t| t.symbol).collect();
        let long_names: Vec<Option<&str>> = tokens.iter().map(|t| t.name).collect();
        let decimals: Vec<Option<i16>> = tokens.iter().map(|t| t.decimals).collect();
        let sql = include_str!("../../sql/queries/put_metadata.sql");
        self.reader().await?.execute(sql, &[&chain.0, &names, &symbols, &long_names, &decimals]).await?;
        Ok(())
    }
}

/// What is stored of a chain, held against other writers until the settings are written or this is dropped.
#[allow(missing_debug_implementations, reason = "a transaction has none")]
pub struct Claim<'a> {
    tx: Transaction<'a>,
    read: &'a Statement,
    stored: StoredChain,
}

impl Claim<'_> {
    /// What is stored.
    pub fn stored(&self) -> &StoredChain {
        &self.stored
    }

    /// Writes the settings; what they leave open stays. `listed_only`: the source brings events of those contracts
    /// alone that it was told of.
    pub async fn settle(
        self,
        settings: &ChainSettings,
        kind: Kind,
        listed_only: bool,
    ) -> Result<StoredChain, StoreError> {
        let chain = self.stored.chain.id.0;
        self.tx
            .execute(
                include_str!("../../sql/queries/settle_chain.sql"),
                &[
                    &chain,
                    &kind.as_str(),
                    &settings.start_height.map(Height::to_sql),
                    &settings.finality_depth.map(|d| i64::try_from(d).unwrap_or(i64::MAX)),
                    &settings.announcers,
                    &listed_only,
                ],
            )
            .await?;
        let settled = stored_chain(&self.tx.query_one(self.read, &[&chain]).await?)?;
        self.tx.commit().await?;
        Ok(settled)
    }
}

/// The one syncer of a chain: holds its advisory lock as long as its connection lives. What it writes goes through that same
/// connection, so that a syncer that has lost the lock writes nothing.
///
/// The server ends a connection that says nothing for nine seconds, and with it the lock of a process that stands still: await
/// whatever is not said to Postgres in [`hold_during`](SyncLock::hold_during).
pub struct SyncLock {
    client: Client,
    chain: ChainId,
    statements: Statements,
}

/// Who has a chain's lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockHolder {
    /// Its server process, by which `pg_terminate_backend` ends its session. None means it let go meanwhile.
    pub pid: Option<i32>,
    /// What it calls itself.
    pub application_name: Option<String>,
    /// Bytes that a COPY of it has taken in, while that waits for more. None means that it does not.
    pub copied: Option<i64>,
}

impl fmt::Display for LockHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.pid, self.application_name.as_deref().filter(|name| !name.is_empty())) {
            (Some(pid), Some(name)) => write!(f, "pid {pid}, {name}"),
            (Some(pid), None) => write!(f, "pid {pid}, which has no name"),
            (None, _) => write!(f, "gone by now"),
        }
    }
}

/// Prepared once a connection.
struct Statements {
    stored_chain: Statement,
    block_refs: Statement,
    note_head: Statement,
    write: write::Statements,
}

impl std::fmt::Debug for SyncLock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SyncLock").field("chain", &self.chain).finish_non_exhaustive()
    }
}

/// The writer's turn: see sql/triggers/10_chain.sql.
const TAKE_TURN: &str = "update chains set writes = writes + 1 where chain_id = $1";

/// Upper half of the syncers' advisory locks ("ebbs" in ASCII); the lower half is the chain.
const SYNC_LOCK: i64 = 0x6562_6273 << 32;

fn lock_key(chain: ChainId) -> i64 {
    SYNC_LOCK | (chain.0 & 0xffff_ffff)
}

impl SyncLock {
    /// The lock with a connection of its own, or who has it.
    ///
    /// # Errors
    /// Whatever Postgres says, and a pooler in between, which gives the lock to a session that others use too.
    pub async fn acquire(store: &Store, chain: ChainId) -> Result<Result<SyncLock, LockHolder>, StoreError> {
        let silent = SILENT_AT_MOST.as_millis().to_string();
        let greeting = store.greeting.clone().and(&[("idle_session_timeout", &silent)]);
        let client = store.connect_as(&greeting).await?;
        let key = lock_key(chain);
        let held: bool = client.query_one("select pg_try_advisory_lock($1)", &[&key]).await?.get(0);
        let holder = client.query_opt(include_str!("../../sql/queries/lock_holder.sql"), &[&key]).await?;
        let is_ours = holder.as_ref().map(|row| row.try_get::<_, bool>("is_ours")).transpose()?;
        if !held {
            let Some(row) = holder else {
                return Ok(Err(LockHolder { pid: None, application_name: None, copied: None }));
            };
            return Ok(Err(LockHolder {
                pid: Some(row.try_get("pid")?),
                application_name: row.try_get("application_name")?,
                copied: row.try_get("copied")?,
            }));
        }
        if is_ours != Some(true) {
            return Err(StoreError::Pooled);
        }
        let (stored_chain, block_refs, note_head) = try_join!(
            client.prepare(include_str!("../../sql/queries/stored_chain.sql")),
            client.prepare(
                "select height, hash from blocks where chain_id = $1 and height between $2 and $3 order by height"
            ),
            client.prepare(include_str!("../../sql/queries/note_head.sql")),
        )?;
        let write = write::Statements::prepare(&client).await?;
        Ok(Ok(SyncLock { client, chain, statements: Statements { stored_chain, block_refs, note_head, write } }))
    }

    /// Ends the session of a holder whose COPY has taken in no more since it was seen: none of the server's limits ends one that
    /// waits for its client. False: it has gone on, or this role may not.
    pub async fn end_stalled(store: &Store, chain: ChainId, holder: &LockHolder) -> Result<bool, StoreError> {
        let sql = concat!(
            "select pg_terminate_backend(h.pid) from (",
            include_str!("../../sql/queries/lock_holder.sql"),
            ") h where h.pid = $2 and h.copied = $3"
        );
        let ended = store.reader().await?.query_opt(sql, &[&lock_key(chain), &holder.pid, &holder.copied]).await?;
        Ok(ended.map(|row| row.try_get(0)).transpose()?.unwrap_or_default())
    }

    /// Awaits something that is not said to Postgres, and keeps the lock meanwhile.
    pub async fn hold_during<T>(&self, other: impl Future<Output = T>) -> T {
        alive_during(&self.client, other).await
    }

    /// Takes the writer's turn (sql/triggers/10_chain.sql) and says what is stored.
    pub async fn claim(&mut self) -> Result<Claim<'_>, StoreError> {
        let tx = self.client.transaction().await?;
        tx.execute(TAKE_TURN, &[&self.chain.0]).await?;
        let row = tx.query_one(&self.statements.stored_chain, &[&self.chain.0]).await?;
        let stored = stored_chain(&row)?;
        Ok(Claim { tx, read: &self.statements.stored_chain, stored })
    }

    /// What is stored of the chain.
    pub async fn stored(&self) -> Result<StoredChain, StoreError> {
        stored_chain(&self.client.query_one(&self.statements.stored_chain, &[&self.chain.0]).await?)
    }

    /// All stored events of these kinds (emitter, none: anybody; name), in chain order.
    pub async fn events_named(&self, kinds: &[(Option<&str>, &str)]) -> Result<Vec<(Height, Event)>, StoreError> {
        let (emitters, names): (Vec<_>, Vec<_>) = kinds.iter().copied().unzip();
        let sql = include_str!("../../sql/queries/events_named.sql");
        let rows = self.client.query(sql, &[&self.chain.0, &emitters, &names]).await?;
        rows.iter().map(stored_event).collect()
    }

    /// Our blocks at these heights (inclusive), ascending.
    pub async fn block_refs(&self, from: Height, to: Height) -> Result<Vec<BlockRef>, StoreError> {
        let rows =
            self.client.query(&self.statements.block_refs, &[&self.chain.0, &from.to_sql(), &to.to_sql()]).await?;
        rows.iter().map(block_ref).collect()
    }

    /// Remembers a head that brought no block, if that changes anything.
    pub async fn note_head(
        &self,
        stored: &StoredChain,
        head: Height,
        final_height: Option<Height>,
        position: Option<&Value>,
    ) -> Result<(), StoreError> {
        let (chain, tip) = (&stored.chain, stored.tip.as_ref().map(|tip| tip.height));
        let is_known = chain.head_height == Some(head)
            && final_height <= chain.final_height
            && chain.final_height <= tip
            && (position.is_none() || position == chain.source_position.as_ref());
        if is_known {
            return Ok(());
        }
        self.client
            .execute(
                &self.statements.note_head,
                &[
                    &self.chain.0,
                    &head.to_sql(),
                    &final_height.map(Height::to_sql),
                    &position,
                    &tip.map(Height::to_sql),
                ],
            )
            .await?;
        Ok(())
    }

    /// Writes opening balances, replacing those of the same accounts.
    pub async fn put_opening_balances(&self, balances: &[(Text, Text, Delta)]) -> Result<(), StoreError> {
        let tokens: Vec<&str> = balances.iter().map(|b| &*b.0).collect();
        let addresses: Vec<&str> = balances.iter().map(|b| &*b.1).collect();
        let amounts: Vec<Numeric> = balances.iter().map(|b| Numeric(b.2)).collect();
        self.client
            .execute(
                include_str!("../../sql/queries/put_opening_balances.sql"),
                &[&self.chain.0, &tokens, &addresses, &amounts],
            )
            .await?;
        Ok(())
    }
}

fn block_ref(row: &Row) -> Result<BlockRef, StoreError> {
    let height: i64 = row.try_get("height")?;
    Ok(BlockRef {
        height: Height::try_from(height).map_err(|e| StoreError::Nonsense { what: e.to_string() })?,
        hash: Hash::new(row.try_get::<_, &str>("hash")?),
    })
}
