//! What the syncer reads and writes: chains and their blocks. One writer per chain holds an advisory lock.

mod registry;

use postgres_types::{ToSql, Type};
use serde_json::Value;
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::{Client, Row, Transaction};

use super::numeric::Numeric;
use super::{Store, StoreError};
use crate::chain::delta::Delta;
use crate::chain::{Block, BlockRef, ChainId, Event, Hash, Height, Kind, Text};

pub use registry::{CaughtUp, Missed, RegisteredVault};

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
    /// What the network called itself at first sight.
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

/// Blocks to write in one transaction.
#[derive(Debug)]
pub struct NewBlocks<'a> {
    /// They come on top of this block; none: nothing stands below them.
    pub ancestor: Option<&'a BlockRef>,
    /// Whether what stands above the ancestor is archived and removed first; without it, such blocks make the
    /// write stale.
    pub replace: bool,
    /// Ascending, linked.
    pub blocks: &'a [Block],
    /// The source's head.
    pub head_height: Height,
    /// What the source and the settings call final.
    pub final_height: Option<Height>,
    /// Stored with the blocks; none: leaves what was there.
    pub position: Option<&'a Value>,
    /// The chain began anew: the final height may fall.
    pub reset: bool,
    /// Registered vaults whose events the blocks hold.
    pub vaults: &'a [Text],
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

fn chain_row(row: &Row) -> Result<ChainRow, StoreError> {
    let height = |column: &str| -> Result<Option<Height>, StoreError> {
        row.try_get::<_, Option<i64>>(column)?
            .map(|h| Height::try_from(h).map_err(|e| StoreError::Nonsense { what: format!("{column}: {e}") }))
            .transpose()
    };
    let kind: &str = row.try_get("kind")?;
    Ok(ChainRow {
        id: ChainId(row.try_get("chain_id")?),
        name: row.try_get("name")?,
        kind: Kind::parse(kind).ok_or_else(|| StoreError::Nonsense { what: format!("chains.kind {kind}") })?,
        network_id: row.try_get("network_id")?,
        start_height: height("start_height")?,
        finality_depth: row.try_get::<_, i64>("finality_depth")?.unsigned_abs(),
        head_height: height("head_height")?,
        final_height: height("final_height")?,
        source_position: row.try_get("source_position")?,
    })
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
    /// The chain of this name, made if it is not there; the settings win over the row (DESIGN 9).
    pub async fn ensure_chain(&self, settings: &ChainSettings) -> Result<ChainRow, StoreError> {
        let client = self.reader().await?;
        let row = client
            .query_one(
                include_str!("../../sql/queries/ensure_chain.sql"),
                &[
                    &settings.name,
                    &settings.kind.as_str(),
                    &settings.start_height.map(Height::to_sql),
                    &settings.finality_depth.map(|d| i64::try_from(d).unwrap_or(i64::MAX)),
                    &settings.announcers,
                ],
            )
            .await?;
        chain_row(&row)
    }
}

/// The one syncer of a chain: holds its advisory lock as long as its connection lives.
#[derive(Debug)]
pub struct SyncLock {
    client: Client,
    chain: ChainId,
}

/// Upper half of the syncers' advisory locks ("ebbs" in ASCII); the lower half is the chain.
const SYNC_LOCK: i64 = 0x6562_6273 << 32;

impl SyncLock {
    /// The lock with a connection of its own; none: another syncer has it.
    pub async fn acquire(store: &Store, chain: ChainId) -> Result<Option<SyncLock>, StoreError> {
        let client = store.connect().await?;
        let key = SYNC_LOCK | (chain.0 & 0xffff_ffff);
        let held: bool = client.query_one("select pg_try_advisory_lock($1)", &[&key]).await?.get(0);
        // Behind a pooler the lock may sit on another backend than the one that answers us.
        let ours: bool = client
            .query_one(
                "select exists (select from pg_locks where locktype = 'advisory' and pid = pg_backend_pid())",
                &[],
            )
            .await?
            .get(0);
        Ok((held && ours).then_some(SyncLock { client, chain }))
    }

    /// The chain's row as it is now.
    pub async fn chain(&self) -> Result<ChainRow, StoreError> {
        let row = self.client.query_one("select * from chains where chain_id = $1", &[&self.chain.0]).await?;
        chain_row(&row)
    }

    /// Our newest block.
    pub async fn tip(&self) -> Result<Tip, StoreError> {
        let row = self
            .client
            .query_opt(
                "select height, hash from blocks where chain_id = $1 order by height desc limit 1",
                &[&self.chain.0],
            )
            .await?;
        row.as_ref().map(block_ref).transpose()
    }

    /// Our lowest block.
    pub async fn lowest(&self) -> Result<Option<Height>, StoreError> {
        let row = self
            .client
            .query_opt("select height, hash from blocks where chain_id = $1 order by height limit 1", &[&self.chain.0])
            .await?;
        Ok(row.as_ref().map(block_ref).transpose()?.map(|b| b.height))
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
        let rows = self
            .client
            .query(
                "select height, hash from blocks where chain_id = $1 and height between $2 and $3 order by height",
                &[&self.chain.0, &from.to_sql(), &to.to_sql()],
            )
            .await?;
        rows.iter().map(block_ref).collect()
    }

    /// Remembers what the network calls itself, at first sight.
    pub async fn note_network(&self, network_id: &str) -> Result<(), StoreError> {
        self.client
            .execute(
                "update chains set network_id = $2 where chain_id = $1 and network_id is null",
                &[&self.chain.0, &network_id],
            )
            .await?;
        Ok(())
    }

    /// Remembers a head that brought no block.
    pub async fn note_head(
        &self,
        head: Height,
        final_height: Option<Height>,
        position: Option<&Value>,
    ) -> Result<(), StoreError> {
        self.client
            .execute(
                include_str!("../../sql/queries/note_head.sql"),
                &[&self.chain.0, &head.to_sql(), &final_height.map(Height::to_sql), &position],
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

    /// Tokens that have events among `tokens` but no metadata row yet.
    pub async fn tokens_without_metadata(&self, tokens: &[Text]) -> Result<Vec<Text>, StoreError> {
        let tokens: Vec<&str> = tokens.iter().map(|t| &**t).collect();
        let rows = self
            .client
            .query(
                "select t.token from unnest($2::text[]) t (token) where not exists \
                 (select from token_metadata m where m.chain_id = $1 and m.token = t.token)",
                &[&self.chain.0, &tokens],
            )
            .await?;
        Ok(rows.iter().map(|row| Text::from(row.get::<_, &str>(0))).collect())
    }

    /// Keeps what a token says of itself; what was read first stays.
    pub async fn put_metadata(
        &self,
        token: &str,
        symbol: Option<&str>,
        name: Option<&str>,
        decimals: Option<i16>,
    ) -> Result<(), StoreError> {
        self.client
            .execute(
                "insert into token_metadata (chain_id, token, symbol, name, decimals) values ($1, $2, $3, $4, $5) \
                 on conflict do nothing",
                &[&self.chain.0, &token, &symbol, &name, &decimals],
            )
            .await?;
        Ok(())
    }

    /// Writes blocks with all they hold, in one transaction, and rings the bell.
    pub async fn write(&mut self, new: &NewBlocks<'_>) -> Result<Written, StoreError> {
        let chain = self.chain.0;
        let tx = self.client.transaction().await?;
        // The writer's turn (sql/triggers/10_chain.sql); the bulk path leaves the event tables' triggers out.
        tx.batch_execute("set local ebbtide.bulk = 'on'; set local enable_seqscan = off").await?;
        tx.execute("update chains set writes = writes + 1 where chain_id = $1", &[&chain]).await?;
        let above = match new.ancestor {
            Some(ancestor) => {
                let held = tx
                    .query_opt(
                        "select from blocks where chain_id = $1 and height = $2 and hash = $3",
                        &[&chain, &ancestor.height.to_sql(), &ancestor.hash.as_str()],
                    )
                    .await?;
                if held.is_none() {
                    return Ok(Written::Stale);
                }
                ancestor.height.to_sql()
            }
            None => -1,
        };
        let removed = if new.replace {
            tx.execute("delete from blocks where chain_id = $1 and height > $2", &[&chain, &above]).await?
        } else {
            let row = tx
                .query_one("select exists (select from blocks where chain_id = $1 and height > $2)", &[&chain, &above])
                .await?;
            if row.get::<_, bool>(0) {
                return Ok(Written::Stale);
            }
            0
        };
        copy_blocks(&tx, self.chain, new.blocks).await?;
        tx.execute(
            include_str!("../../sql/queries/note_written.sql"),
            &[
                &chain,
                &new.head_height.to_sql(),
                &new.final_height.map(Height::to_sql),
                &new.position,
                &new.reset,
                &new.ancestor.map(|a| a.height.to_sql()),
            ],
        )
        .await?;
        registry::note_followed(&tx, self.chain, new).await?;
        tx.commit().await?;
        Ok(Written::Stored { removed })
    }
}

fn block_ref(row: &Row) -> Result<BlockRef, StoreError> {
    let height: i64 = row.try_get("height")?;
    Ok(BlockRef {
        height: Height::try_from(height).map_err(|e| StoreError::Nonsense { what: e.to_string() })?,
        hash: Hash::new(row.try_get::<_, &str>("hash")?),
    })
}

/// Indexes come from outside as u64 and are bounded there; above bigint they would be a bug of the source.
fn index(n: u64) -> Result<i64, StoreError> {
    i64::try_from(n).map_err(|_| StoreError::Nonsense { what: format!("event or transaction index {n}") })
}

/// The bulk path is not looked at by the trigger that refuses 0x hex with capitals: that would make two accounts of one.
fn refuse_capitals(text: &str) -> Result<(), StoreError> {
    let bytes = text.as_bytes();
    if bytes.len() > 1
        && bytes[0] == b'0'
        && matches!(bytes[1], b'x' | b'X')
        && bytes.iter().any(u8::is_ascii_uppercase)
    {
        return Err(StoreError::Nonsense { what: format!("{text} is 0x hex with capitals") });
    }
    Ok(())
}

/// Events first, blocks last: the block row is the commit mark.
async fn copy_blocks(tx: &Transaction<'_>, chain: ChainId, blocks: &[Block]) -> Result<(), StoreError> {
    if blocks.iter().any(|b| !b.transactions.is_empty()) {
        let mut copy = Copy::begin(
            tx,
            "copy transactions (chain_id, height, tx_index, hash, success) from stdin binary",
            &[Type::INT8, Type::INT8, Type::INT8, Type::TEXT, Type::BOOL],
        )
        .await?;
        for block in blocks {
            for t in &block.transactions {
                let (height, tx_index) = (block.link.height.to_sql(), index(t.tx_index)?);
                copy.row(&[&chain.0, &height, &tx_index, &&*t.hash, &t.success]).await?;
            }
        }
        copy.end().await?;
    }
    if blocks.iter().any(|b| !b.token_events.is_empty()) {
        let mut copy = Copy::begin(
            tx,
            "copy token_events (chain_id, height, tx_index, event_index, token, from_address, to_address, amount) \
             from stdin binary",
            &[Type::INT8, Type::INT8, Type::INT8, Type::INT8, Type::TEXT, Type::TEXT, Type::TEXT, Type::NUMERIC],
        )
        .await?;
        for block in blocks {
            let height = block.link.height.to_sql();
            for e in &block.token_events {
                for text in [Some(&e.token), e.from.as_ref(), e.to.as_ref()].into_iter().flatten() {
                    refuse_capitals(text)?;
                }
                copy.row(&[
                    &chain.0,
                    &height,
                    &index(e.tx_index)?,
                    &index(e.event_index)?,
                    &&*e.token,
                    &e.from.as_deref(),
                    &e.to.as_deref(),
                    &Numeric::from(e.amount),
                ])
                .await?;
            }
        }
        copy.end().await?;
    }
    if blocks.iter().any(|b| !b.events.is_empty()) {
        let mut copy = Copy::begin(
            tx,
            "copy events (chain_id, height, tx_index, event_index, emitter, name, keys, data, attributes) \
             from stdin binary",
            &[
                Type::INT8,
                Type::INT8,
                Type::INT8,
                Type::INT8,
                Type::TEXT,
                Type::TEXT,
                Type::TEXT_ARRAY,
                Type::TEXT_ARRAY,
                Type::JSONB,
            ],
        )
        .await?;
        for block in blocks {
            let height = block.link.height.to_sql();
            for e in &block.events {
                let keys: Vec<&str> = e.keys.iter().map(|k| &**k).collect();
                let data: Vec<&str> = e.data.iter().map(|d| &**d).collect();
                copy.row(&[
                    &chain.0,
                    &height,
                    &index(e.tx_index)?,
                    &index(e.event_index)?,
                    &&*e.emitter,
                    &&*e.name,
                    &keys,
                    &data,
                    &e.attributes,
                ])
                .await?;
            }
        }
        copy.end().await?;
    }
    put_rejects(tx, chain, blocks).await?;
    if !blocks.is_empty() {
        let mut copy = Copy::begin(
            tx,
            "copy blocks (chain_id, height, hash, parent_hash, time) from stdin binary",
            &[Type::INT8, Type::INT8, Type::TEXT, Type::TEXT, Type::TIMESTAMPTZ],
        )
        .await?;
        for block in blocks {
            let link = &block.link;
            copy.row(&[&chain.0, &link.height.to_sql(), &link.hash.as_str(), &link.parent_hash.as_str(), &block.time])
                .await?;
        }
        copy.end().await?;
    }
    Ok(())
}

async fn put_rejects(tx: &Transaction<'_>, chain: ChainId, blocks: &[Block]) -> Result<(), StoreError> {
    for block in blocks.iter().filter(|b| !b.rejects.is_empty()) {
        for reject in &block.rejects {
            tx.execute(
                include_str!("../../sql/queries/put_source_reject.sql"),
                &[
                    &chain.0,
                    &block.link.height.to_sql(),
                    &index(reject.tx_index)?,
                    &index(reject.event_index)?,
                    &block.link.hash.as_str(),
                    &reject.raw,
                    &reject.reason,
                ],
            )
            .await?;
        }
    }
    Ok(())
}

/// A binary COPY under way.
struct Copy {
    writer: std::pin::Pin<Box<BinaryCopyInWriter>>,
}

impl Copy {
    async fn begin(tx: &Transaction<'_>, statement: &str, types: &[Type]) -> Result<Copy, StoreError> {
        let sink = tx.copy_in(statement).await?;
        Ok(Copy { writer: Box::pin(BinaryCopyInWriter::new(sink, types)) })
    }

    async fn row(&mut self, values: &[&(dyn ToSql + Sync)]) -> Result<(), StoreError> {
        Ok(self.writer.as_mut().write(values).await?)
    }

    async fn end(mut self) -> Result<u64, StoreError> {
        Ok(self.writer.as_mut().finish().await?)
    }
}
