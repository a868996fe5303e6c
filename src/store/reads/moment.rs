//! Which block a request is about, on the branch that is applied.

use super::{ChainState, NamedBlock, Snapshot, StoreError, named_block};

/// As a height to read at: the newest state.
pub const NOW: i64 = i64::MAX;

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

impl Snapshot<'_> {
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
        if let Some(changed_from) = chain.changed_from {
            height = height.min(changed_from - 1);
        }
        let sql = include_str!("../../../sql/queries/settled_height.sql");
        let rows = self.rows(sql, &[&chain.chain_id, &height, &chain.projection]).await?;
        if let Some(row) = rows.first() {
            height = row.try_get::<_, i64>(0)? - 1;
        }
        Ok((height >= 0).then_some(height))
    }

    async fn height_of(&self, chain: &ChainState, hash: &str) -> Result<Result<i64, Moment>, StoreError> {
        let sql = include_str!("../../../sql/queries/block_named.sql");
        let rows = self.rows(sql, &[&chain.chain_id, &hash, &chain.projection]).await?;
        let Some(row) = rows.first() else { return Ok(Err(Moment::UnknownBlock)) };
        let height: Option<i64> = row.try_get("height")?;
        let journaled_hash: Option<String> = row.try_get("journaled_hash")?;
        let replaced: bool = row.try_get("replaced")?;
        let is_applied = |height| match &journaled_hash {
            Some(journaled) => journaled == hash,
            None => height < chain.settled_below(),
        };
        Ok(match height {
            Some(height) if is_applied(height) => Ok(height),
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
        let sql = include_str!("../../../sql/queries/applied_block_at.sql");
        let below = chain.applied_without_journal_below();
        let rows = self.rows(sql, &[&chain.chain_id, &height, &below, &chain.projection]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let journaled: bool = row.try_get("journaled")?;
        // Changed where no journal is and not applied again yet: what stood there has no name any more.
        let is_known = |block: &NamedBlock| journaled || chain.changed_from.is_none_or(|from| block.height < from);
        Ok(named_block(row, "height", "hash")?.filter(is_known))
    }

    /// Whether the chain still holds this block.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn block_is_in_chain(&self, chain: &ChainState, block: &NamedBlock) -> Result<bool, StoreError> {
        let sql = include_str!("../../../sql/queries/block_is_in_chain.sql");
        let rows = self.rows(sql, &[&chain.chain_id, &block.height, &block.hash]).await?;
        Ok(rows.first().map(|row| row.try_get(0)).transpose()?.unwrap_or(false))
    }
}
