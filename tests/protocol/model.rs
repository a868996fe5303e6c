//! The tables and the actors as plain values, and the steps that each may take. What is decided is decided by
//! `chain::decide`, what counts by `chain::plan::counting`, and what takes effect by `chain::fence`.

use std::fmt;

use ebbtide::chain::decide::{Base, Checkpoint};
use ebbtide::chain::fence::{self, Fence, Standing};
use ebbtide::chain::plan::counting;

use crate::tables::{Block, Db, HEIGHTS, Name, Plan, Rows, height, reference, stored_block};

/// Statements that one processor has sent and not heard of.
pub const IN_FLIGHT: usize = 2;
/// Most blocks of a run.
pub const MOST_BLOCKS: usize = 2;

/// A condition left out, or a read that comes too late: the search must find each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The checkpoint is compared by its seq.
    SeqAlone,
    /// The checkpoint is compared by the block it stands on.
    BlockAlone,
    /// Blocks are held by their hash, whatever their revision.
    AnyRevision,
    /// The journal is pruned whatever the checkpoint's seq.
    PruneAnySeq,
    /// The journal is pruned without a look that compared.
    PruneUncompared,
    /// The journal is pruned up to what is final by then, and not up to what was when the state was compared.
    PruneToLatestFinal,
    /// A run is applied although something is to be applied again.
    RunIgnoresRedo,
    /// A transaction clears what is to be applied again, whether it knew of it or not.
    SwitchIgnoresRedo,
    /// A transaction undoes although the journal was pruned since.
    SwitchIgnoresPruning,
    /// A state is built from a start that is another one by now.
    SwitchIgnoresStart,
    /// Heights count as empty as long as the chain is complete to there, although a block is stored there by now.
    SkipStoredBlocks,
}

/// What is searched.
#[derive(Debug, Clone)]
pub struct Model {
    /// What was left out.
    pub faults: &'static [Fault],
    /// Blocks of a run, by processor.
    pub batches: [usize; 2],
    /// Whether history is kept of every block; otherwise undo is recorded of blocks that were not final, until pruned.
    pub keeps_history: bool,
    /// Whether heights without a block may be declared empty.
    pub has_gaps: bool,
    /// Heights of the blocks stored at first, and up to where the chain is complete.
    pub blocks: &'static [u8],
    pub complete_to: Option<u8>,
    /// What is final at first, and the highest height that may become so.
    pub final_height: (Option<u8>, u8),
    /// Things that may happen beside the processors; becoming final is free.
    pub disturbances: u8,
    /// Whether a statement must find the very state it was sent on, block by block.
    pub compares_state: bool,
}

/// A run of blocks, sent (`sql/queries/apply.sql`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Run {
    /// Relative to the checkpoint's: 0 is as it stands, below 0 never again.
    seq: i8,
    /// The block before, with its revision if it is known.
    on: (Name, Option<u8>),
    blocks: [Option<(u8, Block)>; MOST_BLOCKS],
    needs_complete_to: Option<u8>,
    journal_above: Option<u8>,
    start: u8,
    /// The state it was sent on.
    state: Rows,
    /// Its sender has looked again since and does not wait for it.
    is_forgotten: bool,
}

/// What a processor knows from its look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Looked {
    seq: i8,
    tip: Option<Name>,
    redo_from: Option<u8>,
    final_height: Option<u8>,
    complete_to: Option<u8>,
    journal_from: Option<u8>,
    stop: u8,
    start: Option<u8>,
    /// The highest block that counted, as far as readers saw; -1: none.
    counted: i8,
}

/// Where an extending processor is: on what it sends next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cursor {
    seq: i8,
    on: (Name, Option<u8>),
    to: u8,
    start: u8,
    final_height: Option<u8>,
    complete_to: Option<u8>,
    is_journalled: bool,
    state: Rows,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    Idle,
    Extending(Cursor),
    Decided(Looked, Plan),
    Pruning { seq: i8, horizon: u8 },
}

type Queue = [Option<Run>; IN_FLIGHT];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Processor {
    phase: Phase,
    sent: Queue,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    pub db: Db,
    processors: [Processor; 2],
    /// What a crashed processor had sent and the server has not carried out yet.
    left: Queue,
    disturbances: u8,
}

/// One thing that happens. Heights are heights, processors 0 and 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A syncer writes the next block; `skips` heights are left out.
    Extends { skips: u8 },
    /// A syncer writes another block here; those above go.
    Replaces(u8),
    /// The chain got shorter: this block and those above go.
    Drops(u8),
    /// Somebody deletes one block.
    Deletes(u8),
    /// Somebody inserts a block where there was none.
    Inserts(u8),
    /// A block's events are edited.
    Edits(u8),
    /// Everything up to here is there, says the syncer.
    Completes(u8),
    /// One height more is final.
    Finalises,
    /// An operator has blocks applied again from here.
    Replays(u8),
    /// An operator has it go to a height and stay there, or stay where it is.
    Pauses(Option<u8>),
    /// An operator lets it go on.
    Resumes,
    /// A processor dies; this many of its statements reached the server.
    Crashes(u8, u8),
    /// A processor looks and decides.
    Looks(u8),
    /// A processor looks and begins by pruning.
    LooksToPrune(u8),
    /// A processor reads the next blocks and sends them.
    Sends(u8),
    /// The server carries out a processor's next statement; 2: what a crashed one left.
    TakesEffect(u8),
    /// The server carries out what a processor decided: a transaction that undoes, begins or rebuilds, or a pruning.
    CarriesOut(u8),
}

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken(pub String);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn broken(text: impl Into<String>) -> Result<(), Broken> {
    Err(Broken(text.into()))
}

impl State {
    /// Blocks are stored, nothing is applied.
    pub fn new(model: &Model) -> State {
        let idle = Processor { phase: Phase::Idle, sent: [None; IN_FLIGHT] };
        let mut db = Db::default();
        for at in model.blocks {
            db.seen.blocks[*at as usize] = Some(Block { path: 0, revision: 0 });
        }
        db.seen.final_height = model.final_height.0;
        db.seen.complete_to = model.complete_to;
        State { db, processors: [idle; 2], left: [None; IN_FLIGHT], disturbances: model.disturbances }
    }

    /// A revision that no one has seen of this block: one more than the newest that anybody still remembers.
    fn next_revision(&self, at: u8, path: u8) -> u8 {
        let mut newest: Option<u8> = None;
        let mut take = |block: &Option<Block>| {
            if let Some(block) = block.filter(|b| b.path == path) {
                newest = newest.max(Some(block.revision));
            }
        };
        for rows in [&self.db.seen.blocks, &self.db.seen.journal, &self.db.state] {
            take(&rows[at as usize]);
        }
        for run in self.runs() {
            take(&run.state[at as usize]);
            for (_, block) in run.blocks.iter().flatten().filter(|(h, _)| *h == at) {
                take(&Some(*block));
            }
        }
        for processor in &self.processors {
            if let Phase::Extending(cursor) = &processor.phase {
                take(&cursor.state[at as usize]);
            }
        }
        newest.map_or(0, |revision| revision + 1)
    }

    fn runs(&self) -> impl Iterator<Item = &Run> {
        self.processors.iter().map(|p| &p.sent).chain([&self.left]).flat_map(|queue| queue.iter().flatten())
    }

    fn write(&mut self, at: u8, path: u8) {
        let revision = self.next_revision(at, path);
        self.db.seen.blocks[at as usize] = Some(Block { path, revision });
    }

    /// The checkpoint moved: what was read or sent on its seq is one behind.
    fn moved(&mut self, times: i8) {
        let older = |seq: i8| (seq - times).max(-1);
        for processor in &mut self.processors {
            match &mut processor.phase {
                Phase::Idle => {}
                // A number that is predicted may come true again.
                Phase::Extending(cursor) => cursor.seq -= times,
                Phase::Decided(looked, _) => looked.seq = older(looked.seq),
                Phase::Pruning { seq, .. } => *seq = older(*seq),
            }
            processor.sent.iter_mut().flatten().for_each(|run| run.seq = older(run.seq));
        }
        self.left.iter_mut().flatten().for_each(|run| run.seq = older(run.seq));
    }
}

impl Model {
    fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }

    /// Takes at once what nobody can tell from later: a refusal that is certain is heard, a run that has ended is over.
    fn settle_certainties(&self, state: &mut State) {
        // Where a comparison is left out, what is behind may come true.
        if self.has(Fault::BlockAlone) || self.has(Fault::PruneAnySeq) {
            return;
        }
        let drop_behind = |queue: &mut Queue| {
            for place in 0..IN_FLIGHT {
                while queue[place].is_some_and(|run| run.seq < 0 && run.is_forgotten) {
                    queue[place] = None;
                    queue[place..].rotate_left(1);
                }
            }
        };
        for (p, processor) in state.processors.iter_mut().enumerate() {
            match &processor.phase {
                Phase::Decided(Looked { seq, .. }, _) | Phase::Pruning { seq, .. } if *seq < 0 => {
                    processor.phase = Phase::Idle;
                }
                _ => {}
            }
            if processor.sent[0].is_some_and(|run| run.seq < 0 && !run.is_forgotten) {
                processor.phase = Phase::Idle;
                processor.sent.iter_mut().flatten().for_each(|run| run.is_forgotten = true);
            }
            drop_behind(&mut processor.sent);
            if let Phase::Extending(cursor) = &processor.phase
                && processor.sent[0].is_none()
                && self.read_run(&state.db, cursor, self.batches[p]).is_none()
            {
                processor.phase = Phase::Idle;
            }
        }
        drop_behind(&mut state.left);
    }

    /// What may happen next.
    pub fn steps(&self, state: &State, found: &mut Vec<Step>) {
        for p in 0..2u8 {
            let processor = &state.processors[p as usize];
            let is_drained = processor.sent[0].is_none();
            match &processor.phase {
                Phase::Idle => {
                    let plan = state.db.plan(self.keeps_history);
                    if !matches!(plan, Plan::Wait { .. }) {
                        found.push(Step::Looks(p));
                    }
                    if (plan.has_compared() || self.has(Fault::PruneUncompared)) && state.db.horizon().is_some() {
                        found.push(Step::LooksToPrune(p));
                    }
                }
                Phase::Extending(cursor) => {
                    if processor.sent[IN_FLIGHT - 1].is_none()
                        && self.read_run(&state.db, cursor, self.batches[p as usize]).is_some()
                    {
                        found.push(Step::Sends(p));
                    }
                }
                Phase::Decided(..) | Phase::Pruning { .. } if is_drained => found.push(Step::CarriesOut(p)),
                Phase::Decided(..) | Phase::Pruning { .. } => {}
            }
            if !is_drained {
                found.push(Step::TakesEffect(p));
            }
        }
        if state.left[0].is_some() {
            found.push(Step::TakesEffect(2));
        }
        let seen = &state.db.seen;
        if seen.final_height.map_or(0, |f| f + 1) <= self.final_height.1 {
            found.push(Step::Finalises);
        }
        if seen.paused.is_some() {
            found.push(Step::Resumes);
        }
        if state.disturbances > 0 {
            self.disturb(state, found);
        }
    }

    fn disturb(&self, state: &State, found: &mut Vec<Step>) {
        let seen = &state.db.seen;
        let top = seen.top();
        let next = top.map_or(0, |(at, _)| at + 1);
        if (next as usize) < HEIGHTS {
            found.push(Step::Extends { skips: 0 });
        }
        if self.has_gaps && (next as usize) + 1 < HEIGHTS && next > 0 {
            found.push(Step::Extends { skips: 1 });
        }
        for at in 0..HEIGHTS as u8 {
            if seen.blocks[at as usize].is_some() {
                found.extend([Step::Replaces(at), Step::Drops(at), Step::Edits(at)]);
                if top.is_some_and(|(top, _)| at < top) {
                    found.push(Step::Deletes(at));
                }
            } else if at > 0 && at < next {
                found.push(Step::Inserts(at));
            }
            if self.has_gaps && at < next && seen.complete_to.is_none_or(|to| at > to) {
                found.push(Step::Completes(at));
            }
        }
        if self.has_gaps && (next as usize) < HEIGHTS && next > 0 && seen.complete_to.is_none_or(|to| next > to) {
            found.push(Step::Completes(next));
        }
        if seen.through.is_some() {
            found.extend((0..HEIGHTS as u8 - 1).map(Step::Replays));
        }
        if seen.paused.is_none() {
            found.extend([Step::Pauses(None), Step::Pauses(Some(0)), Step::Pauses(Some(1))]);
        }
        if state.left[0].is_none() {
            for p in 0..2u8 {
                let processor = &state.processors[p as usize];
                let sent = processor.sent.iter().flatten().count() as u8;
                // One that is idle and has nothing on the way is as one that starts.
                if sent > 0 || processor.phase != Phase::Idle {
                    found.extend((0..=sent).map(|reached| Step::Crashes(p, reached)));
                }
            }
        }
    }

    /// Takes a step. An error is a promise that it broke.
    pub fn take(&self, state: &State, step: Step) -> Result<State, Broken> {
        let mut next = self.take_one(state, step)?;
        self.settle_certainties(&mut next);
        Ok(next)
    }

    fn take_one(&self, state: &State, step: Step) -> Result<State, Broken> {
        let mut next = state.clone();
        let db = &mut next.db;
        match step {
            Step::Looks(_) | Step::LooksToPrune(_) | Step::Sends(_) | Step::TakesEffect(_) | Step::CarriesOut(_) => {
                return self.process(next, step);
            }
            Step::Finalises => db.seen.final_height = Some(db.seen.final_height.map_or(0, |f| f + 1)),
            Step::Resumes => {
                db.seen.paused = None;
                db.seen.deep_change = false;
            }
            Step::Extends { skips } => {
                let (at, path) = match db.seen.top() {
                    None => (0, 0),
                    Some((at, path)) => (0..=skips).fold((at, path), |(at, path), _| (at + 1, path << 1 | path & 1)),
                };
                next.write(at, path);
                next.db.seen.touch(at);
            }
            Step::Replaces(at) => {
                let path = db.seen.blocks[at as usize].expect("it is there").path ^ 1;
                db.seen.blocks[at as usize..].fill(None);
                next.write(at, path);
                next.db.seen.touch(at);
            }
            Step::Drops(at) => {
                db.seen.blocks[at as usize..].fill(None);
                db.seen.touch(at);
            }
            Step::Deletes(at) => {
                db.seen.blocks[at as usize] = None;
                db.seen.touch(at);
            }
            Step::Inserts(at) => {
                // As the next block above names it.
                let above = (at as usize + 1..HEIGHTS).find(|h| db.seen.blocks[*h].is_some()).expect("one is above");
                let path = db.seen.blocks[above].expect("it is there").path >> (above - at as usize);
                next.write(at, path);
                next.db.seen.touch(at);
            }
            Step::Edits(at) => {
                let path = db.seen.blocks[at as usize].expect("it is there").path;
                next.write(at, path);
                next.db.seen.touch(at);
            }
            Step::Completes(at) => db.seen.complete_to = Some(at),
            Step::Replays(at) => db.seen.redo_from = Some(db.seen.redo_from.map_or(at, |from| from.min(at))),
            Step::Pauses(to) => db.seen.paused = Some(to),
            Step::Crashes(p, reached) => {
                let processor = &mut next.processors[p as usize];
                processor.phase = Phase::Idle;
                let mut left = std::mem::replace(&mut processor.sent, [None; IN_FLIGHT]);
                left[reached as usize..].fill(None);
                left.iter_mut().flatten().for_each(|run| run.is_forgotten = true);
                next.left = left;
            }
        }
        if !matches!(step, Step::Finalises | Step::Resumes) {
            next.disturbances -= 1;
        }
        Ok(next)
    }

    fn process(&self, mut next: State, step: Step) -> Result<State, Broken> {
        match step {
            Step::Looks(p) => {
                let phase = match next.db.plan(self.keeps_history) {
                    Plan::Extend { to } => Phase::Extending(self.cursor(&next.db, to)),
                    plan => Phase::Decided(looked(&next.db), plan),
                };
                next.processors[p as usize].phase = phase;
            }
            Step::LooksToPrune(p) => {
                let horizon = next.db.horizon().expect("asked before");
                next.processors[p as usize].phase = Phase::Pruning { seq: 0, horizon };
            }
            Step::Sends(p) => {
                let processor = &mut next.processors[p as usize];
                let Phase::Extending(cursor) = &mut processor.phase else { unreachable!("it extends") };
                let run = self.read_run(&next.db, cursor, self.batches[p as usize]).expect("asked before");
                cursor.seq += 1;
                for (at, block) in run.blocks.iter().flatten() {
                    cursor.on = ((*at, block.path), Some(block.revision));
                    if self.compares_state {
                        cursor.state[*at as usize] = Some(*block);
                    }
                }
                *processor.sent.iter_mut().find(|place| place.is_none()).expect("asked before") = Some(run);
            }
            Step::TakesEffect(2) => {
                let run = shift(&mut next.left);
                self.apply_and_move(&mut next, &run)?;
            }
            Step::TakesEffect(p) => {
                let run = shift(&mut next.processors[p as usize].sent);
                if !self.apply_and_move(&mut next, &run)? && !run.is_forgotten {
                    // It looks again; what it sent after this one is on its way.
                    let processor = &mut next.processors[p as usize];
                    processor.phase = Phase::Idle;
                    processor.sent.iter_mut().flatten().for_each(|run| run.is_forgotten = true);
                }
            }
            Step::CarriesOut(p) => match std::mem::replace(&mut next.processors[p as usize].phase, Phase::Idle) {
                Phase::Decided(looked, plan) => {
                    let moves = self.carry_out(&mut next.db, &looked, plan)?;
                    next.moved(moves);
                }
                Phase::Pruning { seq, horizon } => self.prune(&mut next.db, seq, horizon),
                Phase::Idle | Phase::Extending(_) => unreachable!("it decided"),
            },
            _ => unreachable!("the processors' steps"),
        }
        Ok(next)
    }

    fn cursor(&self, db: &Db, to: u8) -> Cursor {
        let seen = &db.seen;
        let tip = seen.tip.expect("it extends from a block");
        let journalled = seen.journal_seen().filter(|at| *at == tip.0 as usize).last();
        Cursor {
            seq: 0,
            on: (tip, journalled.and_then(|at| seen.journal[at]).map(|block| block.revision)),
            to,
            start: seen.start().unwrap_or(0),
            final_height: seen.final_height,
            complete_to: seen.complete_to,
            is_journalled: seen.journal_seen().next().is_some(),
            state: if self.compares_state { db.state } else { [None; HEIGHTS] },
        }
    }

    fn apply_and_move(&self, next: &mut State, run: &Run) -> Result<bool, Broken> {
        let applied = self.apply(&mut next.db, run)?;
        if applied {
            next.moved(1);
        }
        Ok(applied)
    }

    /// The next blocks that count, as many as go into one run: several only while they are final.
    fn read_run(&self, db: &Db, cursor: &Cursor, batch: usize) -> Option<Run> {
        let ((tip, path), revision) = cursor.on;
        let stored: Vec<_> = (tip + 1..HEIGHTS as u8)
            .filter(|at| *at <= cursor.to)
            .filter_map(|at| stored_block(&db.seen.blocks, at))
            .collect();
        let on = reference((tip, path));
        let count = counting(Some(&on), height(cursor.start), cursor.complete_to.map(height), &stored);
        let is_final = |at: u8| cursor.final_height.is_some_and(|f| at <= f);
        let mut run = Run {
            seq: cursor.seq,
            on: ((tip, path), revision),
            blocks: [None; MOST_BLOCKS],
            needs_complete_to: None,
            journal_above: cursor.final_height.filter(|_| !cursor.is_journalled),
            start: cursor.start,
            state: cursor.state,
            is_forgotten: false,
        };
        let mut last = tip;
        for (place, block) in stored[..count].iter().take(batch).enumerate() {
            let at = block.height.get() as u8;
            if place > 0 && !(is_final(last) && is_final(at)) {
                break;
            }
            if at != last + 1 {
                run.needs_complete_to = Some(at - 1);
            }
            run.blocks[place] = db.seen.blocks[at as usize].map(|block| (at, block));
            last = at;
        }
        run.blocks[0].is_some().then_some(run)
    }

    /// `sql/queries/apply.sql`. False: the fence did not hold, nothing was written.
    fn apply(&self, db: &mut Db, run: &Run) -> Result<bool, Broken> {
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
    fn prune(&self, db: &mut Db, seq: i8, horizon: u8) {
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
    fn carry_out(&self, db: &mut Db, looked: &Looked, plan: Plan) -> Result<i8, Broken> {
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

    /// One processor alone, undisturbed, comes to an end, and then what counts is what is applied.
    pub fn settle(&self, db: &Db) -> Result<Vec<Db>, Broken> {
        let mut db = db.clone();
        let mut passed = vec![db.clone()];
        for _ in 0..4 * HEIGHTS {
            match db.plan(self.keeps_history) {
                Plan::Wait { .. } => {
                    db.check_settled()?;
                    if db.seen.paused != Some(None) {
                        return Ok(passed);
                    }
                    db.seen.paused = None;
                }
                Plan::Extend { to } => {
                    let cursor = self.cursor(&db, to);
                    let Some(run) = self.read_run(&db, &cursor, 1) else {
                        return Err(Broken(format!("it wants to extend, but nothing counts: {db:?}")));
                    };
                    if !self.apply(&mut db, &run)? {
                        return Err(Broken(format!("alone and undisturbed, it is refused: {db:?}")));
                    }
                }
                plan => {
                    let looked = looked(&db);
                    if self.carry_out(&mut db, &looked, plan)? == 0 {
                        return Err(Broken(format!("alone and undisturbed, {plan:?} is refused: {db:?}")));
                    }
                }
            }
            passed.push(db.clone());
        }
        Err(Broken(format!("alone and undisturbed, it comes to no end: {db:?}")))
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

fn shift(queue: &mut Queue) -> Run {
    let first = queue[0].take().expect("asked before");
    queue.rotate_left(1);
    first
}

fn looked(db: &Db) -> Looked {
    let seen = &db.seen;
    Looked {
        seq: 0,
        tip: seen.tip,
        redo_from: seen.redo_from,
        final_height: seen.final_height,
        complete_to: seen.complete_to,
        journal_from: seen.journal_from,
        stop: seen.stop(),
        start: seen.start(),
        counted: counted(db, u8::MAX),
    }
}

/// The highest block that counts up to where readers see and operators let it go; -1 means none.
fn counted(db: &Db, stop: u8) -> i8 {
    let stop = stop.min(db.seen.stop()).min(db.seen.through.unwrap_or(u8::MAX));
    let counts = db.seen.counts(db.seen.complete_to);
    (0..HEIGHTS).rev().find(|at| counts[*at].is_some() && *at <= stop as usize).map_or(-1, |at| at as i8)
}
