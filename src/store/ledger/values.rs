//! What is written down after a reorganisation, and how much of it went.

use crate::chain::{BlockRef, Height};

/// A row of `reorgs`.
#[derive(Debug, Clone)]
pub struct ReorgNote {
    /// Height of the last shared block.
    pub ancestor: Option<Height>,
    /// Heights undone.
    pub depth: u64,
    /// The block stood on before.
    pub old_tip: BlockRef,
    /// The block stood on after, if any.
    pub new_tip: Option<BlockRef>,
    /// Blocks undone.
    pub blocks_undone: u64,
    /// Blocks applied in their place.
    pub blocks_applied: u64,
    /// Balances taken back.
    pub rows_touched: u64,
    /// From the plan to the commit.
    pub duration_ms: f64,
}

/// How much evidence was dropped because of its age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DroppedEvidence {
    /// Rows of `orphaned_blocks`.
    pub blocks: u64,
    /// Rows of `reorgs`.
    pub reorgs: u64,
}
