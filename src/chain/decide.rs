//! `decide(look, rules)`: what a projection does next, from what is applied and what is stored. Pure; the processor asks it
//! once per look and carries out the answer.

use std::collections::BTreeMap;

use super::plan::{Mark, Step, StoredBlock, Theirs, Window, counting, plan};
use super::{BlockRef, Hash, Height, Kind};

/// All that a decision is made from: a chain, a projection's checkpoint on it, and the blocks around it, in one snapshot.
#[derive(Debug, Clone, Default)]
pub struct Look {
    /// The chain's name.
    pub chain_name: String,
    /// The grammar of its texts.
    pub kind: Kind,
    /// First height that counts. None means the lowest present.
    pub start_height: Option<Height>,
    /// Blocks below the head taken as final.
    pub finality_depth: u64,
    /// The source's head. None means no source follows this chain.
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
    /// Whether sinks wait for it to have caught up with its chain.
    pub awaited: bool,
    /// Digest of its function as it is now. None means it has no function in the database.
    pub digest: Option<String>,
    /// The projection's checkpoint.
    pub checkpoint: Checkpoint,
    /// Applied blocks whose undo is kept, ascending, each with the revision it was applied at.
    pub journal: Vec<(BlockRef, i64)>,
    /// The last stored block below the window that is compared.
    pub below: Option<BlockRef>,
    /// The stored blocks of the window, ascending: from where the journal begins to where the projection stands.
    pub stored: Vec<StoredBlock>,
    /// The last stored block below `redo_from`, where that is set, at or below the checkpoint's block.
    pub redo_below: Option<BlockRef>,
    /// The next stored blocks above the checkpoint, ascending, at most a few.
    pub ahead: Vec<StoredBlock>,
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
    /// One more for every apply and every undo.
    pub seq: i64,
    /// The last block applied.
    pub block: Option<BlockRef>,
    /// Applied up to here: above the block's height where the last heights are empty.
    pub through: Option<Height>,
    /// The height its state began at.
    pub begun_at: Option<Height>,
    /// Apply again from here.
    pub redo_from: Option<Height>,
    /// Whether the chain changed at or below its final height.
    pub deep_change: bool,
    /// The history of balances reaches back to here. None means to the start.
    pub history_from: Option<Height>,
    /// The journal of applied blocks is whole from here on. None means from the start. What lies below is final.
    pub journal_from: Option<Height>,
    /// Whether an operator paused it.
    pub paused: bool,
    /// Where it stays while paused. None means where it is.
    pub pause_at: Option<Height>,
    /// Why it does not go on.
    pub halted_reason: Option<String>,
    /// What its state was made by.
    pub digest: Option<String>,
    /// The block that could not be applied, and why; tried again.
    pub failed: Option<(Option<Height>, String)>,
    /// What is to be told of each block.
    pub tells: Tells,
}

/// What the sinks of a projection want to hear of its blocks, as `checkpoints.tells` holds it: a sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tells(pub i32);

impl Tells {
    /// Whether anything is to be told.
    pub fn anything(self) -> bool {
        self.0 != 0
    }

    /// Whether each movement of tokens is.
    pub fn transfers(self) -> bool {
        self.0 & 2 != 0
    }

    /// Whether each balance is that a block changes.
    pub fn balances(self) -> bool {
        self.0 & 4 != 0
    }
}

/// A checkpoint as a statement expects to find it. Both parts are compared: on the seq alone a statement that was sent
/// ahead would land on what a competitor applied under that number, on the block alone an undo in between would not show.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Base {
    /// The checkpoint's seq.
    pub seq: i64,
    /// The block it stands on. None means nothing is applied.
    pub block: Option<BlockRef>,
}

impl Base {
    /// What the checkpoint is once a transaction that applies up to `block` has taken effect on this one.
    pub fn after(&self, block: BlockRef) -> Base {
        Base { seq: self.seq + 1, block: Some(block) }
    }
}

/// What a projection is, as far as it decides.
#[derive(Debug, Clone)]
pub struct Rules {
    /// What its state is made by now; another one than before has it rebuilt. None means it is never compared.
    pub digest: Option<String>,
    /// Whether it halts where the chain changed at or below its final height, and does not rebuild.
    pub halts_on_deep_change: bool,
    /// Whether it can undo blocks that are no longer in the journal of applied blocks.
    pub undoes_final: bool,
    /// Most blocks to undo in one transaction.
    pub most_blocks: u64,
    /// A block of a new branch that failed: a switch ends below it.
    pub stuck_at: Option<Height>,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Move {
    /// Nothing, until something changes.
    Wait(Wait),
    /// Apply the first block, after what stood before it.
    Begin {
        /// The height at which the state begins.
        start: Height,
    },
    /// Apply what counts above the checkpoint.
    Extend {
        /// As far as this height.
        to: Height,
    },
    /// No block is stored in the heights above the checkpoint: count them as applied, or no longer.
    PassEmpty {
        /// Applied up to here from then on.
        to: Height,
    },
    /// Undo to the ancestor and apply what stands above it, in one transaction.
    Switch(Switch),
    /// Apply everything again, from nothing, in one transaction.
    Rebuild(Rebuild),
    /// Stop, until an operator resumes it.
    Halt {
        /// Why, with what to do.
        reason: &'static str,
    },
}

/// What a projection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// An operator: it is paused or halted.
    Operator,
    /// A first block.
    FirstBlock,
    /// The next block; everything that counts is applied.
    NextBlock,
    /// The blocks missing below those that are stored: the chain has a break above the checkpoint.
    MissingBlock,
    /// The next block of the projection that it follows, and stands where that one stands.
    InStep,
    /// The projection that it follows, which is about to leave its own block.
    Followed,
}

/// From one branch to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Switch {
    /// The last block that stays applied. None means nothing does.
    pub ancestor: Option<BlockRef>,
    /// Apply as far as this height. None means undo alone.
    pub to: Option<Height>,
    /// Heights taken back.
    pub depth: u64,
    /// Apply again from here, still to be done afterwards.
    pub redo_from: Option<Height>,
    /// Whether only a part is undone: the ancestor is a block of the old branch alone.
    pub is_part: bool,
    /// Whether the same blocks are applied again, which leaves no branch: no reorganisation.
    pub is_replay: bool,
    /// Why blocks below the journal are undone. None means all of them are in it.
    pub below_journal: Option<&'static str>,
}

/// Everything is applied again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rebuild {
    /// Why.
    pub reason: &'static str,
    /// Apply as far as this height. None means apply nothing.
    pub to: Option<Height>,
    /// Heights taken back.
    pub depth: u64,
    /// Whether the branch stays the same.
    pub is_replay: bool,
}

impl Look {
    /// The height at which the projection begins. None means no block is there, and no start is set.
    pub fn start(&self) -> Option<Height> {
        self.start_height.or(self.lowest).map(|s| self.projection_start.map_or(s, |p| p.max(s)))
    }

    /// Whether a block at this height is final.
    pub fn is_final(&self, height: Height) -> bool {
        self.final_height.is_some_and(|f| height <= f)
    }

    /// Up to here blocks are applied without a journal: they are final, and the journal holds none that may be undone. None
    /// means each block is noted.
    pub fn unjournalled_to(&self) -> Option<Height> {
        self.final_height.filter(|_| self.journal.is_empty())
    }

    /// The lowest height whose undo is in the journal; where it is empty, that of the block stood on.
    fn journalled_from(&self) -> Option<Height> {
        self.journal.first().map(|(block, _)| block.height).or(self.checkpoint.block.as_ref().map(|b| b.height))
    }

    /// Heights taken back by going to `ancestor`, or to before the state began.
    fn depth_to(&self, ancestor: Option<&BlockRef>) -> u64 {
        let Some(tip) = &self.checkpoint.block else { return 0 };
        match ancestor {
            Some(ancestor) => tip.height.get().saturating_sub(ancestor.height.get()),
            None => (tip.height.get() + 1).saturating_sub(self.checkpoint.begun_at.map_or(0, Height::get)),
        }
    }
}

impl Checkpoint {
    /// The checkpoint as statements expect to find it.
    pub fn base(&self) -> Base {
        Base { seq: self.seq, block: self.block.clone() }
    }

    /// Up to where blocks may be applied. None means it stays where it is, paused or halted.
    pub fn stops_at(&self) -> Option<Height> {
        match (&self.halted_reason, self.paused, self.pause_at) {
            (Some(_), ..) | (None, true, None) => None,
            (None, true, Some(at)) => Some(at),
            (None, false, _) => Some(Height::MAX),
        }
    }
}

impl Move {
    /// After which block the first one is applied: its height and hash (none: before the start). None means none is applied.
    pub fn applies_after(&self, look: &Look) -> Option<(i64, Option<Hash>)> {
        let after = |block: &BlockRef| (block.height.to_sql(), Some(block.hash.clone()));
        let from_the_start = || look.start().map(|start| (start.to_sql() - 1, None));
        match self {
            Move::Begin { .. } => look.ahead.first().map(|first| (first.height.to_sql() - 1, None)),
            Move::Extend { .. } => look.checkpoint.block.as_ref().map(after),
            Move::Switch(Switch { to: Some(_), ancestor, .. }) => ancestor.as_ref().map(after).or_else(from_the_start),
            Move::Rebuild(Rebuild { to: Some(_), .. }) => from_the_start(),
            _ => None,
        }
    }
}

/// Decides what a projection does next.
pub fn decide(look: &Look, rules: &Rules) -> Move {
    let checkpoint = &look.checkpoint;
    if let Some(after) = &look.after
        && let Some(decided) = follow(look, rules, after)
    {
        return decided;
    }
    let Some(stop) = checkpoint.stops_at() else { return Move::Wait(Wait::Operator) };
    // A follower goes as far as the projection that it follows, and no further.
    let followed = look.after.as_ref().and_then(|after| after.block.as_ref());
    let stop = followed.map_or(stop, |block| stop.min(block.height));
    match difference(look, rules, stop) {
        Some(_) if checkpoint.deep_change && rules.halts_on_deep_change => {
            Move::Halt { reason: "the chain changed at or below its final height; `ebbtide resume` rebuilds" }
        }
        Some(difference) => difference,
        None => go_on(look, stop),
    }
}

/// What is applied is what counts: what comes after it?
fn go_on(look: &Look, stop: Height) -> Move {
    let checkpoint = &look.checkpoint;
    let is_broken = |from: Height| look.highest.is_some_and(|highest| highest >= from && from <= stop);
    let waiting = |from: Height| Wait::missing_if(is_broken(from));
    let Some(start) = look.start() else { return Move::Wait(Wait::FirstBlock) };
    let ahead = up_to(&look.ahead, stop);
    let (Some(tip), Some(through)) = (&checkpoint.block, checkpoint.through) else {
        let begins = counting(None, start, look.complete_to, ahead) > 0;
        return match (begins, is_broken(start)) {
            (true, _) => Move::Begin { start },
            (false, true) => Move::Wait(Wait::MissingBlock),
            (false, false) => Move::Wait(Wait::FirstBlock),
        };
    };
    if counting(Some(tip), start, look.complete_to, ahead) > 0 {
        return Move::Extend { to: stop };
    }
    match pass_empty(look, tip, stop) {
        Some(to) => Move::PassEmpty { to },
        None => Move::Wait(waiting(through.next())),
    }
}

impl Wait {
    fn missing_if(is_broken: bool) -> Wait {
        if is_broken { Wait::MissingBlock } else { Wait::NextBlock }
    }
}

/// Where no block is stored above the tip up to `complete_to`, those heights are empty and count as applied. Where one came
/// that does not count yet, or `complete_to` fell, they count no longer. None means that is so already.
fn pass_empty(look: &Look, tip: &BlockRef, stop: Height) -> Option<Height> {
    let empty_to = look.complete_to.map_or(tip.height, |c| c.min(stop)).max(tip.height);
    let is_empty = look.ahead.first().is_none_or(|next| next.height > empty_to);
    let to = if is_empty { empty_to } else { tip.height };
    (look.checkpoint.through != Some(to)).then_some(to)
}

/// What a follower does, if it need not go its own way.
fn follow(look: &Look, rules: &Rules, after: &After) -> Option<Move> {
    let checkpoint = &look.checkpoint;
    let stops_at = checkpoint.stops_at();
    let in_step = |block: &BlockRef| {
        checkpoint.block.as_ref() == Some(block)
            && checkpoint.redo_from.is_none()
            // Another start may lead to the same block.
            && checkpoint.begun_at == look.start()
            && rules.digest == checkpoint.digest
            && stops_at.is_none_or(|at| block.height <= at)
    };
    match &after.block {
        // Heights without a block are passed by each for itself.
        Some(block) if in_step(block) => Some(
            stops_at
                .and_then(|at| pass_empty(look, block, at))
                .map_or(Move::Wait(Wait::InStep), |to| Move::PassEmpty { to }),
        ),
        Some(_) if after.stands => None,
        // It left its last block without this one: nothing stands any more.
        None if checkpoint.block.is_some() && stops_at.is_some() => Some(Move::Rebuild(Rebuild {
            reason: "the projection that it follows has no block",
            to: None,
            depth: look.depth_to(None),
            is_replay: false,
        })),
        // It is about to go to another branch, and takes along those that stand where it stands.
        _ => Some(Move::Wait(Wait::Followed)),
    }
}

/// Compares what was applied with what counts, over the window above the final height; changes below it come as `redo_from`.
fn difference(look: &Look, rules: &Rules, stop: Height) -> Option<Move> {
    let checkpoint = &look.checkpoint;
    let start = look.start();
    let rebuild = |reason, is_replay| {
        let to = start.map(|_| checkpoint.through.map_or(stop, |through| through.min(stop)));
        Some(Move::Rebuild(Rebuild { reason, to, depth: look.depth_to(None), is_replay }))
    };
    let (Some(tip), Some(through)) = (&checkpoint.block, checkpoint.through) else {
        return checkpoint.redo_from.and_then(|_| rebuild("a replay from before the start", true));
    };
    if rules.digest.is_some() && checkpoint.digest.is_some() && rules.digest != checkpoint.digest {
        return rebuild("its function changed", true);
    }
    if checkpoint.begun_at != start {
        return rebuild("its start moved", false);
    }
    let journalled = look.journalled_from().unwrap_or(tip.height);
    let parted = parts_at(look, tip, start, stop);
    let redo = checkpoint.redo_from.map(|from| from.min(through.next())).filter(|from| match &parted {
        None => true,
        Some(ancestor) => ancestor.as_ref().is_some_and(|a| a.height >= *from),
    });
    let (ancestor, lowest_undone, is_replay) = match (redo, parted) {
        (None, None) => return None,
        (Some(from), parted) => {
            // From above what is applied there is nothing to undo: the tip is the ancestor.
            let below =
                look.redo_below.clone().filter(|b| start.is_some_and(|s| b.height >= s) && b.height <= tip.height);
            (below, from, parted.is_none() && !checkpoint.deep_change)
        }
        (None, Some(ancestor)) => {
            let lowest = ancestor.as_ref().map_or(checkpoint.begun_at, |a| Some(a.height.next()));
            (ancestor, lowest.unwrap_or_default(), false)
        }
    };
    let below_journal =
        (lowest_undone < journalled || look.journal.is_empty()).then_some(match (checkpoint.deep_change, is_replay) {
            (true, _) => "the chain changed below its final height",
            (false, true) => "a replay from below the undo horizon",
            (false, false) => "a reorganisation to below the undo horizon",
        });
    // The history does not reach back, or all of it would be undone: cheaper applied again.
    let is_in_history =
        |ancestor: &BlockRef| rules.undoes_final && checkpoint.history_from.is_none_or(|from| ancestor.height >= from);
    if let Some(reason) = below_journal
        && !ancestor.as_ref().is_some_and(is_in_history)
    {
        return rebuild(reason, is_replay);
    }
    let applied = look.journal.iter().rev().map(|(block, _)| block);
    let mut down = applied.take_while(|block| ancestor.as_ref().is_none_or(|a| block.height > a.height));
    // A transaction of this size ran too long: take a part of the old branch back first, without leaving it.
    let part =
        usize::try_from(rules.most_blocks).ok().filter(|_| below_journal.is_none()).and_then(|most| down.nth(most));
    let is_part = part.is_some();
    let ancestor = part.cloned().or(ancestor);
    let to = through.min(stop);
    let to = rules.stuck_at.map_or(Some(to), |stuck| stuck.prev().map(|below| to.min(below)));
    Some(Move::Switch(Switch {
        depth: look.depth_to(ancestor.as_ref()),
        ancestor,
        to: to.filter(|_| !is_part && start.is_some()),
        redo_from: checkpoint.redo_from.filter(|_| is_part),
        is_part,
        is_replay,
        below_journal,
    }))
}

/// The last block that what is applied and what counts share, where they part; the inner None means none is shared.
#[expect(clippy::option_option, reason = "whether they part, and where")]
fn parts_at(look: &Look, tip: &BlockRef, start: Option<Height>, stop: Height) -> Option<Option<BlockRef>> {
    let checkpoint = &look.checkpoint;
    let journalled = look.journalled_from().unwrap_or(tip.height);
    // The window: from where the journal is whole, and not from the first block in it: below that one, a block may have
    // come where none was. What lies below the window was final, and a change there comes as redo_from.
    let first = checkpoint.journal_from.or(start).map_or(journalled, |from| from.min(journalled));
    // Paused below the window: go there in one step.
    let first = first.min(stop.next());
    let below = look.below.as_ref().filter(|b| start.is_some_and(|s| b.height >= s));
    let counted = match start {
        Some(start) => {
            let stored = up_to(&look.stored, stop);
            &stored[..counting(below, start, look.complete_to, stored)]
        }
        None => &[],
    };
    let window = window(tip, &look.journal, below, first, counted);
    let newest = counted.last().map(|b| BlockRef { height: b.height, hash: b.hash.clone() });
    match plan(&window, &Theirs::Truth(newest.or_else(|| below.cloned()))) {
        Ok(Step::Reorg { ancestor }) => Some(ancestor),
        _ => None,
    }
}

/// The blocks (ascending) at or below a height.
fn up_to(blocks: &[StoredBlock], height: Height) -> &[StoredBlock] {
    &blocks[..blocks.partition_point(|block| block.height <= height)]
}

fn window(
    tip: &BlockRef,
    ours: &[(BlockRef, i64)],
    below: Option<&BlockRef>,
    first: Height,
    counted: &[StoredBlock],
) -> Window {
    let mut known: BTreeMap<Height, (Option<Mark>, Option<Mark>)> = BTreeMap::new();
    let floor = below.map_or(first, |b| b.height);
    known.entry(floor).or_default();
    if let Some(below) = below {
        let mark = Mark { hash: below.hash.clone(), revision: 0 };
        known.insert(below.height, (Some(mark.clone()), Some(mark)));
    }
    for (block, revision) in ours {
        known.entry(block.height).or_default().0 = Some(Mark { hash: block.hash.clone(), revision: *revision });
    }
    let journalled = !ours.is_empty();
    for block in counted {
        // Without a journal row the block was final when it was applied: its hash alone is compared.
        let revision = if journalled { block.revision } else { 0 };
        known.entry(block.height).or_default().1 = Some(Mark { hash: block.hash.clone(), revision });
    }
    if !journalled {
        known.entry(tip.height).or_default().0 = Some(Mark { hash: tip.hash.clone(), revision: 0 });
    }
    Window { tip: Some(tip.clone()), floor, more_below: false, known }
}
