//! The reading side: what a plan begins with, and the blocks and movements that come next.

use futures::{TryStreamExt, pin_mut};
use tokio_postgres::{Client, Statement};

use super::{After, Checkpoint, Look, count, height, needed_height};
use crate::chain::plan::StoredBlock;
use crate::chain::{BlockRef, ChainId, Hash, Height, Kind, Text, TokenEvent};
use crate::store::numeric::Numeric;
use crate::store::{Store, StoreError};

/// The reading side of a processor: sees committed states only, holds no locks.
#[derive(Debug)]
pub struct LedgerRead {
    pub(super) client: Client,
    look: Statement,
    stored_blocks: Statement,
    applied_blocks: Statement,
    block_below: Statement,
    movements: Statement,
    range_end: Statement,
}

impl LedgerRead {
    /// A connection of its own.
    pub async fn connect(store: &Store) -> Result<LedgerRead, StoreError> {
        let client = store.connect().await?;
        // Index lookups whatever the statistics say: they may come from an empty table.
        client.batch_execute("set enable_seqscan = off; set plan_cache_mode = force_generic_plan").await?;
        Ok(LedgerRead {
            look: client.prepare(include_str!("../../../sql/queries/look.sql")).await?,
            stored_blocks: client.prepare(include_str!("../../../sql/queries/stored_blocks.sql")).await?,
            applied_blocks: client.prepare(include_str!("../../../sql/queries/applied_blocks.sql")).await?,
            block_below: client.prepare(include_str!("../../../sql/queries/block_below.sql")).await?,
            movements: client.prepare(include_str!("../../../sql/queries/movements.sql")).await?,
            range_end: client.prepare(include_str!("../../../sql/queries/range_end.sql")).await?,
            client,
        })
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

    /// What a plan begins with; none: the chain is gone, or the projection. Makes the checkpoint if there is none.
    pub async fn look(&self, chain: ChainId, projection: &str) -> Result<Option<Look>, StoreError> {
        let mut rows = self.client.query(&self.look, &[&chain.0, &projection]).await?;
        if rows.is_empty() {
            self.client
                .execute(
                    "insert into checkpoints (chain_id, projection) \
                     select c.chain_id, p.name from chains c, projections p \
                     where c.chain_id = $1 and p.name = $2 and coalesce(p.chain_id, c.chain_id) = c.chain_id \
                     and coalesce(p.kind, c.kind) = c.kind on conflict do nothing",
                    &[&chain.0, &projection],
                )
                .await?;
            rows = self.client.query(&self.look, &[&chain.0, &projection]).await?;
        }
        let Some(row) = rows.first() else { return Ok(None) };
        let kind: &str = row.try_get("kind")?;
        let block = match (height(row, "height")?, row.try_get::<_, Option<&str>>("hash")?) {
            (Some(height), Some(hash)) => Some(BlockRef { height, hash: Hash::new(hash) }),
            _ => None,
        };
        let after = match row.try_get::<_, Option<&str>>("after")? {
            None => None,
            Some(_) => Some(After {
                block: match (height(row, "after_height")?, row.try_get::<_, Option<&str>>("after_hash")?) {
                    (Some(height), Some(hash)) => Some(BlockRef { height, hash: Hash::new(hash) }),
                    _ => None,
                },
                stands: row.try_get("after_stands")?,
            }),
        };
        Ok(Some(Look {
            after,
            followed: row.try_get("followed")?,
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
                block,
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
            },
        }))
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
    /// ends below. None: it has no more than that.
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

    /// Blocks applied and not yet pruned, ascending.
    pub async fn applied_blocks(&self, chain: ChainId, projection: &str) -> Result<Vec<(BlockRef, i64)>, StoreError> {
        let rows = self.client.query(&self.applied_blocks, &[&chain.0, &projection]).await?;
        rows.iter()
            .map(|row| {
                let hash = Hash::new(row.try_get::<_, &str>("hash")?);
                Ok((BlockRef { height: needed_height(row, "height")?, hash }, row.try_get("revision")?))
            })
            .collect()
    }

    /// The last stored block below a height.
    pub async fn block_below(&self, chain: ChainId, below: Height) -> Result<Option<BlockRef>, StoreError> {
        let row = self.client.query_opt(&self.block_below, &[&chain.0, &below.to_sql()]).await?;
        row.map(|row| {
            Ok(BlockRef { height: needed_height(&row, "height")?, hash: Hash::new(row.try_get::<_, &str>("hash")?) })
        })
        .transpose()
    }

    /// Hands every movement of a run of blocks (inclusive) to `each`, in order, without holding them all.
    pub async fn movements(
        &self,
        chain: ChainId,
        from: Height,
        to: Height,
        mut each: impl FnMut(Height, TokenEvent),
    ) -> Result<u64, StoreError> {
        let params: [&(dyn postgres_types::ToSql + Sync); 3] = [&chain.0, &from.to_sql(), &to.to_sql()];
        let rows = self.client.query_raw(&self.movements, params).await?;
        pin_mut!(rows);
        let mut seen = 0;
        while let Some(row) = rows.try_next().await? {
            let side = |column: usize| -> Result<Option<Text>, StoreError> {
                Ok(row.try_get::<_, Option<&str>>(column)?.map(Text::from))
            };
            let amount = row.try_get::<_, Numeric>(6)?.0;
            let event = TokenEvent {
                tx_index: row.try_get::<_, i64>(1)?.unsigned_abs(),
                event_index: row.try_get::<_, i64>(2)?.unsigned_abs(),
                token: row.try_get::<_, &str>(3)?.into(),
                from: side(4)?,
                to: side(5)?,
                amount: crate::chain::Amount::from(amount.magnitude()),
            };
            each(needed_height(&row, "height")?, event);
            seen += 1;
        }
        Ok(seen)
    }
}
