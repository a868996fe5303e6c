//! What the server does with a statement: the fence, then the effect. Each effect is held against the promises.

use ebbtide::chain::decide::{Base, Checkpoint};
use ebbtide::chain::fence::{self, Fence, Standing};
use ebbtide::chain::plan::counting;

use super::{Broken, Fault, Looked, Model, Run, broken};
use crate::tables::{Block, Db, HEIGHTS, Name, Plan, Rows, height, reference, stored_block};

impl Model {
    /// `sql/queries/apply.sql`. False: the fence did not hold, nothing was written.
    pub(super) fn apply(&self, db: &mut Db, run: &Run) -> Result<bool, Broken> {
        let checkpoint = db.checkpoint();
        let mut base = Base { seq: run.seq.into(), block: Some(reference(run.on.0)) };
        let any = self.has(Fault::AnyRevision);
        let mut held = vec![(reference(run.on.0), run.on.1.filter(|_| !any).map(i64::from))];
        for (at, block) in run.blocks.iter().flatten() {
            held.push((reference((*at, block.path)), Some(block.revision.into()).filter(|_| !any)));
        }
        let through = held.last().expect("the block before").0.height;
        let mut standing = Standing { checkpoint: &checkpoint, complete_to: db.seen.complete_to.map(height) };
        self.doctor(&mut base, standing.checkpoint);
        let blind = Checkpoint { redo_from: None, ..checkpoint.clone() };
        if self.has(Fault::RunIgnoresRedo) {
            standing.checkpoint = &blind;
        }
        let fence = Fence { base: &base, held: &held, complete_to: run.needs_complete_to.map(height), through };
        let skips = self.has(Fault::SkipStoredBlocks);
        let stored = |at| {
            let is_asked = !skips || held.iter().any(|(block, _)| block.height == at);
            db.seen.stored(at).filter(|_| is_asked)
        };
        if !fence::holds(&fence, &standing, stored) {
            return Ok(false);
        }
        self.put(db, &run.blocks, run.journal_above, run.start)?;
        if self.compares_state && run.state != db.state_below(run) {
            broken(format!("{} took effect on another state than it was sent on", run.what()))?;
        }
        Ok(true)
    }

    /// A comparison left out compares with what it finds.
    fn doctor(&self, base: &mut Base, checkpoint: &Checkpoint) {
        if self.has(Fault::SeqAlone) {
            base.block.clone_from(&checkpoint.block);
        }
        if self.has(Fault::BlockAlone) {
            base.seq = checkpoint.seq;
        }
    }

    /// Writes blocks on top: state, undo, journal, checkpoint. They must be what is stored, and follow what is applied.
    fn put(
        &self,
        db: &mut Db,
        blocks: &[Option<(u8, Block)>],
        journal_above: Option<u8>,
        start: u8,
    ) -> Result<(), Broken> {
        for (at, block) in blocks.iter().flatten() {
            let at = *at as usize;
            if db.state[at].is_some() {
                broken(format!("block {at} is applied twice"))?;
            }
            if db.state[at..].iter().any(Option::is_some) {
                broken(format!("block {at} is applied below one that is applied"))?;
            }
            if db.seen.blocks[at] != Some(*block) {
                broken(format!("block {at} is applied as it was, and not as it stands"))?;
            }
            match (0..at).rev().find(|h| db.state[*h].is_some()) {
                Some(below) if (below + 1..at).any(|h| db.seen.blocks[h].is_some()) => {
                    broken(format!("block {at} is applied on {below}, and one between is skipped"))?;
                }
                Some(below) if below + 1 == at && db.state[below].expect("found").path != block.path >> 1 => {
                    broken(format!("block {at} is applied on a block that is not its parent"))?;
                }
                Some(below) if below + 1 < at && db.seen.complete_to.is_none_or(|to| (to as usize) < at - 1) => {
                    broken(format!("block {at} is applied on {below}, which is not its parent"))?;
                }
                _ => {}
            }
            let is_noted = journal_above.is_none_or(|above| at as u8 > above);
            db.state[at] = Some(*block);
            db.undo[at] = is_noted || self.keeps_history;
            if is_noted {
                db.seen.journal[at] = Some(*block);
            } else {
                db.seen.journal_from = Some(at as u8 + 1);
            }
            db.seen.tip = Some((at as u8, block.path));
            db.seen.through = Some(at as u8);
            db.seen.begun_at = Some(start);
        }
        db.check_journal()
    }

    /// `sql/queries/prune_applied.sql`, and with it the undo that is recorded of tracked tables.
    pub(super) fn prune(&self, db: &mut Db, seq: i8, horizon: u8) {
        let mut checkpoint = db.checkpoint();
        if self.has(Fault::PruneAnySeq) {
            checkpoint.seq = seq.into();
        }
        if !fence::may_prune(&checkpoint, seq.into()) {
            return;
        }
        let horizon = match db.horizon() {
            Some(latest) if self.has(Fault::PruneToLatestFinal) => latest,
            _ => horizon,
        };
        for at in 0..=horizon as usize {
            db.seen.journal[at] = None;
            db.undo[at] &= self.keeps_history;
        }
        if db.seen.journal_from.is_none_or(|from| from <= horizon) {
            db.seen.journal_from = Some(horizon + 1);
        }
    }

    /// The transaction that a decision asks for. Returns by how much the seq rose; 0: it found another state and did nothing.
    pub(super) fn carry_out(&self, db: &mut Db, looked: &Looked, plan: Plan) -> Result<i8, Broken> {
        let checkpoint = db.checkpoint();
        let mut base = Base { seq: looked.seq.into(), block: looked.tip.map(reference) };
        self.doctor(&mut base, &checkpoint);
        if let Plan::PassEmpty { to } = plan {
            let standing = Standing { checkpoint: &checkpoint, complete_to: db.seen.complete_to.map(height) };
            let skips = self.has(Fault::SkipStoredBlocks);
            if !fence::may_pass_empty(&standing, &base, height(to), |at| db.seen.stored(at).filter(|_| !skips)) {
                return Ok(0);
            }
            let tip = looked.tip.map_or(0, |(at, _)| at);
            let is_free = (tip + 1..=to).all(|at| db.seen.stored(height(at)).is_none());
            if !is_free {
                broken(format!("height {to} counts as applied, and a block below is skipped"))?;
            }
            db.seen.through = Some(to);
            return Ok(1);
        }
        let mut known = Checkpoint {
            seq: base.seq,
            block: base.block,
            redo_from: looked.redo_from.map(height),
            journal_from: looked.journal_from.map(height),
            ..Checkpoint::default()
        };
        if self.has(Fault::SwitchIgnoresRedo) {
            known.redo_from = checkpoint.redo_from;
        }
        if self.has(Fault::SwitchIgnoresPruning) {
            known.journal_from = checkpoint.journal_from;
        }
        let may_begin = fence::may_begin(db.seen.start().map(height), looked.start.map(height));
        if !fence::may_switch(&checkpoint, &known) || !(may_begin || self.has(Fault::SwitchIgnoresStart)) {
            return Ok(0);
        }
        let mut after = db.clone();
        let moves = match plan {
            Plan::Begin => self.extend_within(&mut after, looked, None, u8::MAX, 1)?.map(|n| n.min(1)),
            Plan::Switch { ancestor, to, redo_from } => {
                if let Some((at, path)) = ancestor
                    && db.seen.blocks[at as usize].is_none_or(|b| b.path != path)
                {
                    return Ok(0);
                }
                self.undo(&mut after, looked, ancestor, redo_from)?;
                match to {
                    Some(to) => self.extend_within(&mut after, looked, ancestor, to, HEIGHTS)?.map(|n| 1 + n.min(1)),
                    None => Some(1),
                }
            }
            Plan::Rebuild { to } => {
                self.undo_all(&mut after, looked)?;
                let most = if looked.tip.is_some() { HEIGHTS } else { 1 };
                match to {
                    Some(to) => self.extend_within(&mut after, looked, None, to, most)?.map(|n| 1 + n.min(1)),
                    None => Some(1),
                }
            }
            Plan::Extend { .. } | Plan::PassEmpty { .. } | Plan::Wait { .. } => unreachable!("not a transaction"),
        };
        // A part of it was refused by the fence: all of it is rolled back.
        let Some(moves) = moves else { return Ok(0) };
        let tip = |db: &Db| db.seen.tip.map_or(-1, |(at, _)| at as i8);
        // The chain was shorter when it was looked at, or is now.
        let least = looked.counted.min(counted(db, looked.stop));
        if tip(&after) < tip(db).min(least) {
            broken(format!("the height fell from {} to {} without need", tip(db), tip(&after)))?;
        }
        *db = after;
        db.check_journal()?;
        Ok(moves as i8)
    }

    /// Applies what counts after `before`, inside a transaction. None: the fence did not hold.
    fn extend_within(
        &self,
        db: &mut Db,
        looked: &Looked,
        before: Option<Name>,
        to: u8,
        most: usize,
    ) -> Result<Option<usize>, Broken> {
        let start = looked.start.expect("it applies from a start");
        let from = before.map_or(start, |(at, _)| at + 1);
        let stored: Vec<_> =
            (from..HEIGHTS as u8).filter(|at| *at <= to).filter_map(|at| stored_block(&db.seen.blocks, at)).collect();
        let on = before.map(reference);
        let count = counting(on.as_ref(), height(start), looked.complete_to.map(height), &stored).min(most);
        let blocks: Vec<Option<(u8, Block)>> = stored[..count]
            .iter()
            .map(|b| b.height.get() as u8)
            .map(|at| db.seen.blocks[at as usize].map(|block| (at, block)))
            .collect();
        let Some(through) = blocks.iter().flatten().last().map(|(at, _)| *at) else { return Ok(Some(0)) };
        let mut expected = from;
        let mut needs = None;
        for (at, _) in blocks.iter().flatten() {
            if *at != expected {
                needs = Some(height(*at - 1));
            }
            expected = at + 1;
        }
        let checkpoint = db.checkpoint();
        let standing = Standing { checkpoint: &checkpoint, complete_to: db.seen.complete_to.map(height) };
        // The blocks were read in this transaction: they are held as they are.
        let base = checkpoint.base();
        let fence = Fence { base: &base, held: &[], complete_to: needs, through: height(through) };
        if !fence::holds(&fence, &standing, |_| None) {
            return Ok(None);
        }
        // The journal has no holes: above blocks that are in it, all are.
        let is_journalled = match before {
            Some((at, _)) => self.keeps_history || db.seen.journal_from.is_none_or(|from| at >= from),
            None => false,
        };
        self.put(db, &blocks, looked.final_height.filter(|_| !is_journalled), start)?;
        Ok(Some(count))
    }

    /// `sql/queries/undo.sql`.
    fn undo(&self, db: &mut Db, looked: &Looked, ancestor: Option<Name>, redo_from: Option<u8>) -> Result<(), Broken> {
        let first = ancestor.map_or(0, |(at, _)| at as usize + 1);
        for at in first..HEIGHTS {
            if db.state[at].is_some() {
                self.may_undo(db, looked, at, false)?;
                if !db.undo[at] {
                    broken(format!("block {at} is undone, but its undo was pruned or never kept"))?;
                }
            }
        }
        if let Some((at, path)) = ancestor
            && db.state[at as usize].is_none_or(|b| b.path != path)
        {
            broken(format!("the state is taken back to block {at}, which was never applied"))?;
        }
        db.forget_from(first);
        let seen = &mut db.seen;
        seen.tip = ancestor;
        seen.through = ancestor.map(|(at, _)| at);
        seen.begun_at = seen.begun_at.filter(|_| ancestor.is_some());
        seen.journal_from = seen.journal_from.filter(|_| ancestor.is_some()).map(|from| from.min(first as u8));
        seen.redo_from = redo_from;
        seen.deep_change &= redo_from.is_some();
        Ok(())
    }

    /// `sql/queries/begin_again.sql`.
    fn undo_all(&self, db: &mut Db, looked: &Looked) -> Result<(), Broken> {
        for at in 0..HEIGHTS {
            if db.state[at].is_some() {
                self.may_undo(db, looked, at, true)?;
            }
        }
        db.forget_from(0);
        let seen = &mut db.seen;
        (seen.tip, seen.through, seen.begun_at, seen.journal_from) = (None, None, None, None);
        (seen.redo_from, seen.deep_change) = (None, false);
        Ok(())
    }

    /// Nothing that stands is taken back, final or not, unless something at its height or below differs, was changed at or
    /// below the final height, is to be applied again, or an operator wants it lower.
    fn may_undo(&self, db: &Db, looked: &Looked, at: usize, all: bool) -> Result<(), Broken> {
        let seen = &db.seen;
        let differs = |complete_to| {
            let counts = seen.counts(complete_to);
            (0..=at).any(|h| db.state[h] != counts[h])
        };
        let is_asked = seen.redo_from.is_some_and(|from| all || from as usize <= at)
            || (looked.stop.min(seen.stop()) as usize) < at
            || (all && (looked.stop.min(seen.stop()) as usize) < HEIGHTS)
            || seen.begun_at != seen.start()
            || differs(seen.complete_to)
            || differs(looked.complete_to);
        if is_asked {
            return Ok(());
        }
        let is_final = seen.final_height.is_some_and(|f| at <= f as usize);
        broken(format!("block {at}{} is undone without need", if is_final { ", which is final," } else { "" }))
    }
}

impl Run {
    fn what(&self) -> String {
        let heights: Vec<String> = self.blocks.iter().flatten().map(|(at, _)| at.to_string()).collect();
        format!("the run of blocks {}", heights.join(" and "))
    }
}

impl Db {
    /// What stood before a run that has just been applied.
    fn state_below(&self, run: &Run) -> Rows {
        let mut state = self.state;
        for (at, _) in run.blocks.iter().flatten() {
            state[*at as usize] = None;
        }
        state
    }

    fn forget_from(&mut self, first: usize) {
        self.state[first..].fill(None);
        self.undo[first..].fill(false);
        self.seen.journal[first..].fill(None);
    }
}

/// The highest block that counts up to where readers see and operators let it go; -1 means none.
pub(super) fn counted(db: &Db, stop: u8) -> i8 {
    let stop = stop.min(db.seen.stop()).min(db.seen.through.unwrap_or(u8::MAX));
    let counts = db.seen.counts(db.seen.complete_to);
    (0..HEIGHTS).rev().find(|at| counts[*at].is_some() && *at <= stop as usize).map_or(-1, |at| at as i8)
}
