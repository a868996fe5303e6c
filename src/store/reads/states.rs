//! How far everything is, and what reorganisations there were.

use super::{NamedBlock, Snapshot, StoreError, named_block};
use crate::chain::verdict::Facts;

/// One chain in `/chains` and `/status`.
#[derive(Debug, Clone)]
pub struct ChainStatus {
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

/// One reorganisation, with its cost.
#[derive(Debug, Clone)]
pub struct ReorgRow {
    /// Its number; later ones are higher.
    pub id: i64,
    /// The chain's name.
    pub chain: String,
    /// The projection that moved.
    pub projection: String,
    /// The last block both branches share; None means they share none.
    pub ancestor: Option<i64>,
    /// Blocks left behind.
    pub depth: i64,
    /// Where it stood.
    pub old_tip: NamedBlock,
    /// Where it went; None means to before the start.
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

impl Snapshot<'_> {
    /// All chains, or the one of this name.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn chains(&self, name: Option<&str>) -> Result<Vec<ChainStatus>, StoreError> {
        let rows = self.rows(include_str!("../../../sql/queries/chain_states.sql"), &[&name]).await?;
        rows.iter()
            .map(|row| {
                Ok(ChainStatus {
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

    /// What the verdict on all chains, or on the one of this name, is made from.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn facts(&self, chain: Option<&str>) -> Result<Facts, StoreError> {
        super::super::standing::facts(&*self.tx, chain).await
    }

    /// Up to `limit` reorganisations with an id below `before`, newest first.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn reorgs(&self, chain: Option<&str>, before: i64, limit: i64) -> Result<Vec<ReorgRow>, StoreError> {
        let rows = self.rows(include_str!("../../../sql/queries/reorgs.sql"), &[&chain, &before, &limit]).await?;
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
}
