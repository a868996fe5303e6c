//! What a statement of the processor asks of the checkpoint and of the chain tables before it takes effect, as pure functions:
//! the conditions that `sql/queries` carries, for the model that searches the protocol (`tests/protocol`).
//!
//! A statement is sent on a state that was read, or only predicted; when it takes effect, anything may have happened. So each
//! compares what it was sent on with what is there, under the locks that it takes, and writes nothing where they differ.

use super::decide::{Base, Checkpoint};
use super::{BlockRef, Hash, Height};

/// What a run of blocks asks for (`sql/queries/apply.sql`).
#[derive(Debug, Clone, Copy)]
pub struct Fence<'a> {
    /// The checkpoint that it was sent on.
    pub base: &'a Base,
    /// The block before the run and the run's blocks, ascending, each with the revision it was read at. None means any.
    pub held: &'a [(BlockRef, Option<i64>)],
    /// The chain must be complete to here: heights without a block were taken as empty. None means there were none.
    pub complete_to: Option<Height>,
    /// Applied up to here afterwards.
    pub through: Height,
}

/// What is there when a statement takes effect.
#[derive(Debug, Clone, Copy)]
pub struct Standing<'a> {
    /// The projection's checkpoint.
    pub checkpoint: &'a Checkpoint,
    /// Up to here a missing height is an empty block.
    pub complete_to: Option<Height>,
}

impl Standing<'_> {
    fn is_complete(&self, to: Height) -> bool {
        self.complete_to.is_some_and(|complete| complete >= to)
    }
}

/// Whether a run of blocks may be applied: the checkpoint is the one it was sent on and may move, each block is what was
/// read, and where a height was taken as empty, none is stored. `stored` is the block of a height under the statement's lock.
pub fn holds<'s>(
    fence: &Fence<'_>,
    standing: &Standing<'_>,
    stored: impl Fn(Height) -> Option<(&'s Hash, i64)>,
) -> bool {
    let is_held = |(block, revision): &(BlockRef, Option<i64>)| {
        stored(block.height).is_some_and(|(hash, now)| *hash == block.hash && revision.is_none_or(|read| read == now))
    };
    let is_free = |below: &BlockRef, above: &BlockRef| {
        heights(below.height, above.height).all(|between| stored(between).is_none())
    };
    stands_on(standing.checkpoint, fence.base)
        && may_move_to(standing.checkpoint, fence.through)
        && fence.complete_to.is_none_or(|to| standing.is_complete(to))
        && fence.held.iter().all(is_held)
        && fence.held.windows(2).all(|pair| is_free(&pair[0].0, &pair[1].0))
}

/// Whether the checkpoint is the one that a statement was sent on: its seq and the block it stands on. On the seq alone, a
/// statement sent ahead would land on what a competitor applied under that number; on the block alone, an undo in between
/// would not show.
pub fn stands_on(checkpoint: &Checkpoint, base: &Base) -> bool {
    checkpoint.seq == base.seq && checkpoint.block == base.block
}

/// Whether blocks may be applied up to a height: nothing is to be applied again first, and no operator stopped it below.
pub fn may_move_to(checkpoint: &Checkpoint, through: Height) -> bool {
    checkpoint.redo_from.is_none() && checkpoint.stops_at().is_some_and(|stop| through <= stop)
}

/// Whether heights without a block may be counted as empty up to `to` (`sql/queries/pass_empty_blocks.sql`): while the chain
/// is complete to there, and no block is stored there. Back to the height of the checkpoint's block it may always go.
pub fn may_pass_empty<'s>(
    standing: &Standing<'_>,
    base: &Base,
    to: Height,
    stored: impl Fn(Height) -> Option<(&'s Hash, i64)>,
) -> bool {
    let tip = base.block.as_ref().map(|block| block.height);
    let is_empty = tip.is_some_and(|tip| heights(tip, to.next()).all(|height| stored(height).is_none()));
    stands_on(standing.checkpoint, base)
        && may_move_to(standing.checkpoint, to)
        && (tip == Some(to) || standing.is_complete(to) && is_empty)
}

/// Whether a transaction that undoes, begins or rebuilds may go on (`sql/queries/hold_checkpoint.sql`): the checkpoint is
/// the one that was looked at. What is to be applied again must be what was known, since the transaction clears it; and the
/// journal must reach back as far, since pruning moves no seq and takes along what undoing needs.
pub fn may_switch(checkpoint: &Checkpoint, looked: &Checkpoint) -> bool {
    stands_on(checkpoint, &looked.base())
        && checkpoint.redo_from == looked.redo_from
        && checkpoint.journal_from == looked.journal_from
        && checkpoint.halted_reason.is_none()
}

/// Whether a state may be built from `start`: the chain still begins there. Built from another start, it would hold nothing.
pub fn may_begin(start: Option<Height>, looked: Option<Height>) -> bool {
    looked.is_none() || start == looked
}

/// Whether the journal may be pruned (`sql/queries/prune_applied.sql`): only for a state that was compared as it stands, so
/// that no difference goes with the journal. The seq was read and not predicted, so it names the state.
pub fn may_prune(checkpoint: &Checkpoint, seq: i64) -> bool {
    checkpoint.seq == seq
}

/// The heights between two, both exclusive.
fn heights(below: Height, above: Height) -> impl Iterator<Item = Height> {
    std::iter::successors(Some(below.next()), |height| Some(height.next())).take_while(move |height| *height < above)
}
