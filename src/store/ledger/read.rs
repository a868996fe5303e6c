//! The reading side: what a plan begins with, and the blocks and movements that come next.

use futures::{TryStreamExt, pin_mut, try_join};
use tokio_postgres::{Client, Row, Statement};

use super::{Balance, Keys, count, height, needed_height};
use crate::chain::decide::{After, Base, Checkpoint, Look, Tells};
use crate::chain::delta::Delta;
use crate::chain::plan::StoredBlock;
use crate::chain::{BlockRef, ChainId, Hash, Height, Kind};
use crate::store::numeric::Numeric;
use crate::store::{Store, StoreError};

/// The reading side of a processor: sees committed states only, holds no locks.
#[derive(Debug)]
pub struct LedgerRead {
    pub(super) client: Client,
    look: Statement,
    stored_blocks: Statement,
    movements: Statement,
    range_end: Statement,
    balances_of_keys: Statement,
}

/// Blocks ahead of the checkpoint that a look brings.
const BLOCKS_AHEAD: i64 = 16;

impl LedgerRead {
    /// A connection of its own.
    pub async fn connect(store: &Store) -> Result<LedgerRead, StoreError> {
        let client = store.connect_as(&store.greeting.clone().and(super::BY_THEIR_KEYS)).await?;
        // All at once: a connection costs few round trips.
        let (look, stored_blocks, movements, range_end, balances_of_keys) = try_join!(
            client.prepare(include_str!("../../../sql/queries/look.sql")),
            client.prepare(include_str!("../../../sql/queries/stored_blocks.sql")),
            client.prepare(include_str!("../../../sql/queries/movements.sql")),
            client.prepare(include_str!("../../../sql/queries/range_end.sql")),
            client.prepare(include_str!("../../../sql/queries/balances_of_keys.sql")),
        )?;
        Ok(LedgerRead { client, look, stored_blocks, movements, range_end, balances_of_keys })
    }

    /// Whether the connection is gone.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// The chains there are, by number, with their kinds.
    pub async fn chains(&self) -> Result<Vec<(ChainId, Kind)>, StoreError> {
        let rows = self.client.query("select chain_id, kind from chains order by chain_id", &[]).await?;
        rows.iter()
            .map(|row| {
                let kind: &str = row.try_get(1)?;
                let unknown = || StoreError::Nonsense { what: format!("chains.kind {kind}") };
                Ok((ChainId(row.try_get(0)?), Kind::parse(kind).ok_or_else(unknown)?))
            })
            .collect()
    }

    /// What the next step is decided from. None means the chain is gone, or the projection, or its checkpoint was never made.
    pub async fn look(&self, chain: ChainId, projection: &str) -> Result<Option<Look>, StoreError> {
        let row = self.client.query_opt(&self.look, &[&chain.0, &projection, &BLOCKS_AHEAD]).await?;
        row.map(|row| look(&row)).transpose()
    }

    /// Puts the revisions to come above all that were given: before a change is compared with what was applied.
    pub async fn lift_revisions(&self) -> Result<(), StoreError> {
        Ok(self.client.batch_execute("select lift_revisions()").await?)
    }

    /// Notes that a block could not be applied; the next one that can be takes the note away. On this side: nothing that failed
    /// ran here.
    pub async fn note_failure(
        &self,
        chain: ChainId,
        projection: &str,
        base: &Base,
        at: Option<Height>,
        reason: &str,
    ) -> Result<(), StoreError> {
        let (height, hash) = super::columns(base);
        let at = at.map(Height::to_sql);
        let sql = include_str!("../../../sql/queries/note_failure.sql");
        self.client.execute(sql, &[&chain.0, &projection, &base.seq, &height, &hash, &at, &reason]).await?;
        Ok(())
    }

    /// First statistics after the first blocks: plans made on empty tables are bad ones. Later ones are the server's affair.
    pub async fn analyze(&self) -> Result<(), StoreError> {
        self.client
            .batch_execute(
                "do $$ begin
                    if exists (select from pg_class
                               where oid in ('balances'::regclass, 'balance_history'::regclass) and reltuples <= 0) then
                        analyze balances;
                        analyze balance_history;
                    end if;
                end $$",
            )
            .await?;
        Ok(())
    }

    /// The balances of these keys, in their order, with numbers for those that do not exist.
    pub async fn balances_of(&self, chain: ChainId, keys: &Keys) -> Result<Vec<Balance>, StoreError> {
        super::balances_of(&self.client, &self.balances_of_keys, chain, keys).await
    }

    /// Makes the checkpoints that are missing of every chain and the projections that concern it.
    pub async fn make_checkpoints(&self) -> Result<(), StoreError> {
        self.client.execute(include_str!("../../../sql/queries/make_checkpoints.sql"), &[]).await?;
        Ok(())
    }

    /// Stored blocks from one height to another (inclusive), ascending, at most `limit`.
    pub async fn stored_blocks(
        &self,
        chain: ChainId,
        from: Height,
        to: Height,
        limit: i64,
    ) -> Result<Vec<StoredBlock>, StoreError> {
        let rows = self.client.query(&self.stored_blocks, &[&chain.0, &from.to_sql(), &to.to_sql(), &limit]).await?;
        rows.iter()
            .map(|row| {
                Ok(StoredBlock {
                    height: needed_height(row, "height")?,
                    hash: Hash::new(row.try_get::<_, &str>("hash")?),
                    parent_hash: Hash::new(row.try_get::<_, &str>("parent_hash")?),
                    revision: row.try_get("revision")?,
                    complete: row.try_get("complete")?,
                })
            })
            .collect()
    }

    /// The height at which a run of blocks from one height to another (inclusive) has more than `most` events of a kind: it
    /// ends below. None means it has no more than that.
    pub async fn range_end(
        &self,
        chain: ChainId,
        from: Height,
        to: Height,
        most: u64,
    ) -> Result<Option<Height>, StoreError> {
        let row =
            self.client.query_one(&self.range_end, &[&chain.0, &from.to_sql(), &to.to_sql(), &(most as i64)]).await?;
        height(&row, "height")
    }

    /// Hands every movement of a run of blocks (inclusive) to `each`, in order, without holding them all.
    pub async fn movements(
        &self,
        chain: ChainId,
        from: Height,
        to: Height,
        mut each: impl FnMut(Height, &Movement<'_>),
    ) -> Result<(), StoreError> {
        let params: [&(dyn postgres_types::ToSql + Sync); 3] = [&chain.0, &from.to_sql(), &to.to_sql()];
        let rows = self.client.query_raw(&self.movements, params).await?;
        pin_mut!(rows);
        while let Some(row) = rows.try_next().await? {
            let movement = Movement {
                tx_index: row.try_get(1)?,
                event_index: row.try_get(2)?,
                token: row.try_get(3)?,
                from: row.try_get(4)?,
                to: row.try_get(5)?,
                amount: row.try_get::<_, Numeric>(6)?.0,
            };
            each(needed_height(&row, "height")?, &movement);
        }
        Ok(())
    }
}

/// A row of `token_events`, as it is read.
#[derive(Debug, Clone, Copy)]
pub struct Movement<'a> {
    /// Its transaction.
    pub tx_index: i64,
    /// Its place.
    pub event_index: i64,
    /// The token.
    pub token: &'a str,
    /// Who loses. None means a mint.
    pub from: Option<&'a str>,
    /// Who gains. None means a burn.
    pub to: Option<&'a str>,
    /// How much; at least 0.
    pub amount: Delta,
}

fn look(row: &Row) -> Result<Look, StoreError> {
    let kind: &str = row.try_get("kind")?;
    let after = match row.try_get::<_, Option<&str>>("after")? {
        None => None,
        Some(_) => {
            let block = block(row, "after_height", "after_hash")?;
            Some(After { block, stands: row.try_get("after_stands")? })
        }
    };
    let heights = heights(row, "journal_heights")?;
    let blocks = heights.into_iter().zip(texts(row, "journal_hashes")?).map(|(height, hash)| BlockRef { height, hash });
    Ok(Look {
        after,
        followed: row.try_get("followed")?,
        awaited: row.try_get("awaited")?,
        chain_name: row.try_get("name")?,
        kind: Kind::parse(kind).ok_or_else(|| StoreError::Nonsense { what: format!("chains.kind {kind}") })?,
        start_height: height(row, "start_height")?,
        finality_depth: count(row, "finality_depth")?,
        head_height: height(row, "head_height")?,
        final_height: height(row, "final_height")?,
        // -1: nothing is complete.
        complete_to: row.try_get::<_, Option<i64>>("complete_to")?.and_then(|h| Height::try_from(h).ok()),
        lowest: height(row, "lowest")?,
        highest: height(row, "highest")?,
        projection_start: height(row, "projection_start")?,
        digest: row.try_get("digest")?,
        checkpoint: Checkpoint {
            seq: row.try_get("seq")?,
            block: block(row, "height", "hash")?,
            through: height(row, "through_height")?,
            begun_at: height(row, "begun_at")?,
            redo_from: height(row, "redo_from")?,
            deep_change: row.try_get("deep_change")?,
            history_from: height(row, "history_from")?,
            journal_from: height(row, "journal_from")?,
            paused: row.try_get("paused")?,
            pause_at: height(row, "pause_at")?,
            halted_reason: row.try_get("halted_reason")?,
            digest: row.try_get("apply_digest")?,
            failed: super::tracked::failed(row)?,
            tells: Tells(row.try_get("tells")?),
        },
        journal: blocks.zip(row.try_get::<_, Option<Vec<i64>>>("journal_revisions")?.unwrap_or_default()).collect(),
        below: block(row, "below_height", "below_hash")?,
        stored: stored(
            row,
            ["stored_heights", "stored_hashes", "stored_parents", "stored_revisions", "stored_complete"],
        )?,
        redo_below: block(row, "redo_height", "redo_hash")?,
        ahead: stored(row, ["ahead_heights", "ahead_hashes", "ahead_parents", "ahead_revisions", "ahead_complete"])?,
    })
}

fn block(row: &Row, height_column: &str, hash_column: &str) -> Result<Option<BlockRef>, StoreError> {
    Ok(match (height(row, height_column)?, row.try_get::<_, Option<&str>>(hash_column)?) {
        (Some(height), Some(hash)) => Some(BlockRef { height, hash: Hash::new(hash) }),
        _ => None,
    })
}

fn heights(row: &Row, column: &str) -> Result<Vec<Height>, StoreError> {
    let heights = row.try_get::<_, Option<Vec<i64>>>(column)?.unwrap_or_default();
    let read = |h| Height::try_from(h).map_err(|e| StoreError::Nonsense { what: format!("{column}: {e}") });
    heights.into_iter().map(read).collect()
}

fn texts(row: &Row, column: &str) -> Result<Vec<Hash>, StoreError> {
    Ok(row.try_get::<_, Option<Vec<&str>>>(column)?.unwrap_or_default().into_iter().map(Hash::new).collect())
}

fn stored(
    row: &Row,
    [heights_at, hashes, parents, revisions, complete]: [&str; 5],
) -> Result<Vec<StoredBlock>, StoreError> {
    let revisions = row.try_get::<_, Option<Vec<i64>>>(revisions)?.unwrap_or_default();
    let complete = row.try_get::<_, Option<Vec<bool>>>(complete)?.unwrap_or_default();
    let names = heights(row, heights_at)?.into_iter().zip(texts(row, hashes)?).zip(texts(row, parents)?);
    let blocks = names.zip(revisions).zip(complete).map(|((((height, hash), parent_hash), revision), complete)| {
        StoredBlock { height, hash, parent_hash, revision, complete }
    });
    Ok(blocks.collect())
}
