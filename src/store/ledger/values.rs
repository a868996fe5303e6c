//! What the processor learns from a look, and what it writes down after a reorganisation.

use crate::chain::{BlockRef, Height, Kind};

/// A chain and one projection's checkpoint on it, in one snapshot.
#[derive(Debug, Clone)]
pub struct Look {
    /// The chain's name.
    pub chain_name: String,
    /// The grammar of its texts.
    pub kind: Kind,
    /// First height that counts; none: the lowest present.
    pub start_height: Option<Height>,
    /// Blocks below the head taken as final.
    pub finality_depth: u64,
    /// The source's head; none: no source follows this chain.
    pub head_height: Option<Height>,
    /// Nothing up to here is expected to be replaced.
    pub final_height: Option<Height>,
    /// Up to here a missing height is an empty block.
    pub complete_to: Option<Height>,
    /// Lowest height stored.
    pub lowest: Option<Height>,
    /// Highest height stored.
    pub highest: Option<Height>,
    /// Blocks below this height do not concern the projection.
    pub projection_start: Option<Height>,
    /// The projection it follows, if it follows one.
    pub after: Option<After>,
    /// Whether others follow it.
    pub followed: bool,
    /// What its function is now; none: it has none in the database.
    pub digest: Option<String>,
    /// The projection's checkpoint.
    pub checkpoint: Checkpoint,
}

/// Where the projection stands that another one follows.
#[derive(Debug, Clone)]
pub struct After {
    /// The last block it applied.
    pub block: Option<BlockRef>,
    /// Whether that is still a block of the chain.
    pub stands: bool,
}

/// Where a projection stands.
#[derive(Debug, Clone, Default)]
pub struct Checkpoint {
    /// The fence.
    pub seq: i64,
    /// The last block applied.
    pub block: Option<BlockRef>,
    /// Applied up to here.
    pub through: Option<Height>,
    /// The height its state began at.
    pub begun_at: Option<Height>,
    /// Apply again from here.
    pub redo_from: Option<Height>,
    /// Whether the chain changed at or below its final height.
    pub deep_change: bool,
    /// The journal reaches back to here; none: to the start.
    pub history_from: Option<Height>,
    /// The journal of applied blocks is whole from here on; none: from the start. What lies below is final.
    pub journal_from: Option<Height>,
    /// Whether an operator paused it.
    pub paused: bool,
    /// Where it stays while paused; none: where it is.
    pub pause_at: Option<Height>,
    /// Why it does not go on.
    pub halted_reason: Option<String>,
    /// What its state was made by.
    pub digest: Option<String>,
    /// The block that could not be applied, and why; tried again.
    pub failed: Option<(Option<Height>, String)>,
}

impl Look {
    /// The height at which the projection begins; none: no block is there, and no start is set.
    pub fn start(&self) -> Option<Height> {
        self.start_height.or(self.lowest).map(|s| self.projection_start.map_or(s, |p| p.max(s)))
    }
}

impl Checkpoint {
    /// Up to where blocks may be applied; none: it stays where it is, paused or halted.
    pub fn stops_at(&self) -> Option<Height> {
        match (&self.halted_reason, self.paused, self.pause_at) {
            (Some(_), ..) | (None, true, None) => None,
            (None, true, Some(at)) => Some(at),
            (None, false, _) => Some(Height::MAX),
        }
    }
}

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
