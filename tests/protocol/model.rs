//! The tables and the actors as plain values, and the steps that each may take. What is decided is decided by
//! `chain::decide`, what counts by `chain::plan::counting`, and what takes effect by `chain::fence`.

mod statements;

use std::fmt;

use ebbtide::chain::plan::counting;

use self::statements::counted;
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
