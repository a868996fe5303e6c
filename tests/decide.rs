//! `decide`, drawn: what is applied and what is stored, and the move that follows; and as a property: whatever happens to a
//! chain, the moves decided from it come to an end, and then what counts is what is applied.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::collections::BTreeMap;

use ebbtide::chain::decide::{After, Checkpoint, Look, Move, Rebuild, Rules, Switch, Wait, decide};
use ebbtide::chain::plan::{StoredBlock, counting};
use ebbtide::chain::{BlockRef, Hash, Height};
use proptest::prelude::*;

fn at(height: u64) -> Height {
    Height::new(height).unwrap()
}

fn block(height: u64, hash: &str) -> BlockRef {
    BlockRef { height: at(height), hash: Hash::new(hash) }
}

const RULES: Rules =
    Rules { digest: None, halts_on_deep_change: false, undoes_final: true, most_blocks: u64::MAX, stuck_at: None };

#[derive(Debug, Clone, PartialEq)]
struct Row {
    hash: String,
    parent: String,
    revision: i64,
    complete: bool,
}

/// A chain and one projection's state on it, as the tables have them.
#[derive(Debug, Clone, Default)]
struct Tables {
    start: Option<u64>,
    complete_to: Option<u64>,
    final_height: Option<u64>,
    blocks: BTreeMap<u64, Row>,
    revision: i64,
    applied: BTreeMap<u64, (String, i64)>,
    /// Heights of `applied` that are in the journal.
    journal_from: Option<u64>,
    checkpoint: Checkpoint,
    after: Option<After>,
}

impl Tables {
    /// One letter a block, '.' a height without one; a block names the letter before it as its parent.
    fn drawn(applied: &str, stored: &str) -> Tables {
        let mut tables = Tables::default();
        for (height, hash) in (0u64..).zip(stored.chars()).filter(|(_, c)| *c != '.') {
            let parent = height.checked_sub(1).and_then(|below| stored.chars().nth(below as usize));
            let (hash, parent) = (hash.to_string(), parent.filter(|p| *p != '.').unwrap_or('?').to_string());
            tables.blocks.insert(height, Row { hash, parent, revision: 1, complete: true });
        }
        for (height, hash) in (0u64..).zip(applied.chars()).filter(|(_, c)| *c != '.') {
            tables.applied.insert(height, (hash.to_string(), 1));
        }
        tables.revision = 1;
        tables.stand();
        tables.checkpoint.begun_at = tables.applied.keys().next().map(|h| at(*h));
        tables
    }

    /// The checkpoint is on the last block applied.
    fn stand(&mut self) {
        self.checkpoint.block = self.applied.last_key_value().map(|(height, (hash, _))| block(*height, hash));
        self.checkpoint.through = self.checkpoint.block.as_ref().map(|b| b.height);
    }

    fn with(mut self, change: impl FnOnce(&mut Tables)) -> Tables {
        change(&mut self);
        self
    }

    fn stored(&self, from: u64, to: u64) -> Vec<StoredBlock> {
        let rows = if from <= to { Some(self.blocks.range(from..=to)) } else { None };
        rows.into_iter()
            .flatten()
            .map(|(height, row)| StoredBlock {
                height: at(*height),
                hash: Hash::new(row.hash.clone()),
                parent_hash: Hash::new(row.parent.clone()),
                revision: row.revision,
                complete: row.complete,
            })
            .collect()
    }

    fn last_below(&self, height: u64) -> Option<BlockRef> {
        self.blocks.range(..height).next_back().map(|(h, row)| block(*h, &row.hash))
    }

    /// As `sql/queries/look.sql` puts it together.
    fn look(&self) -> Look {
        let checkpoint = Checkpoint { journal_from: self.journal_from.map(at), ..self.checkpoint.clone() };
        let stop = if checkpoint.paused { checkpoint.pause_at.map(Height::get) } else { None };
        let lowest = self.blocks.keys().next().copied();
        let start = self.start.or(lowest);
        let journal: Vec<(BlockRef, i64)> = self
            .applied
            .range(self.journal_from.unwrap_or(0)..)
            .map(|(height, (hash, revision))| (block(*height, hash), *revision))
            .collect();
        let tip = checkpoint.block.as_ref().map(|b| b.height.get());
        let first = [
            self.journal_from.or(start),
            journal.first().map(|(b, _)| b.height.get()).or(tip),
            stop.map(|stop| stop + 1),
            self.after.as_ref().and_then(|a| a.block.as_ref()).map(|b| b.height.get() + 1),
        ];
        let first = first.into_iter().flatten().min().filter(|_| checkpoint.through.is_some());
        let through = checkpoint.through.map(Height::get);
        Look {
            chain_name: "main".to_owned(),
            start_height: self.start.map(at),
            final_height: self.final_height.map(at),
            complete_to: self.complete_to.map(at),
            lowest: lowest.map(at),
            highest: self.blocks.keys().next_back().map(|h| at(*h)),
            after: self.after.clone(),
            below: first.and_then(|first| self.last_below(first)),
            stored: first.zip(through).map(|(first, through)| self.stored(first, through)).unwrap_or_default(),
            redo_below: checkpoint
                .redo_from
                .and_then(|from| self.last_below(from.get().min(tip.map_or(0, |tip| tip + 1)))),
            ahead: tip
                .map(|tip| tip + 1)
                .or(start)
                .map(|from| self.stored(from, stop.unwrap_or(u64::from(u32::MAX))))
                .unwrap_or_default(),
            checkpoint,
            journal,
            ..Look::default()
        }
    }

    fn decide(&self, rules: &Rules) -> Move {
        decide(&self.look(), rules)
    }

    /// What counts, by a way of its own.
    fn counts(&self, stop: u64) -> BTreeMap<u64, (String, i64)> {
        let mut counts = BTreeMap::new();
        let Some(start) = self.start.or(self.blocks.keys().next().copied()) else { return counts };
        let is_empty_to = |height: u64| self.complete_to.is_some_and(|to| height <= to);
        let mut before: Option<(u64, &Row)> = None;
        for (height, row) in self.blocks.range(start..) {
            let follows = match before {
                None => *height == start || is_empty_to(height - 1),
                Some((below, row_below)) if below + 1 == *height => row_below.hash == row.parent,
                Some(_) => is_empty_to(height - 1),
            };
            if !follows || !row.complete || *height > stop {
                break;
            }
            counts.insert(*height, (row.hash.clone(), row.revision));
            before = Some((*height, row));
        }
        counts
    }

    fn stop(&self) -> u64 {
        self.checkpoint.stops_at().map_or(0, Height::get)
    }

    /// Applies at most `most` blocks of what counts above the checkpoint, as far as `to`.
    fn apply(&mut self, to: u64, most: usize) -> usize {
        let start = self.start.or(self.blocks.keys().next().copied()).expect("it applies from a start");
        let tip = self.checkpoint.block.clone();
        let stored = self.stored(tip.as_ref().map_or(start, |b| b.height.get() + 1), to);
        let count = counting(tip.as_ref(), at(start), self.complete_to.map(at), &stored).min(most);
        // The journal has no holes: above blocks that are in it, all are.
        let mut is_journalled = !self.look().journal.is_empty();
        for stored in &stored[..count] {
            let height = stored.height.get();
            is_journalled |= self.final_height.is_none_or(|f| height > f);
            if !is_journalled {
                self.journal_from = Some(height + 1);
            }
            self.applied.insert(height, (stored.hash.to_string(), stored.revision));
        }
        if count > 0 {
            self.stand();
            self.checkpoint.begun_at = Some(at(start));
        }
        count
    }

    fn undo_to(&mut self, ancestor: Option<u64>) {
        let first = ancestor.map_or(0, |a| a + 1);
        self.applied.split_off(&first);
        self.stand();
        self.journal_from = self.journal_from.filter(|_| ancestor.is_some()).map(|from| from.min(first));
        if ancestor.is_none() {
            self.checkpoint.begun_at = None;
        }
    }

    /// Carries out what is decided. False: nothing is left to do.
    fn carry_out(&mut self, decided: &Move, batch: usize) -> bool {
        match decided {
            Move::Wait(_) => return false,
            Move::Begin { .. } => assert_eq!(self.apply(self.stop(), 1), 1, "a first block counts"),
            Move::Extend { to } => {
                // What it extends by counts: no block that does not is in between.
                assert!(self.apply(to.get(), batch) > 0, "something counts above");
            }
            Move::PassEmpty { to } => {
                let tip = self.checkpoint.block.as_ref().unwrap().height.get();
                assert!(to.get() == tip || self.blocks.range(tip + 1..=to.get()).next().is_none());
                assert!(to.get() == tip || self.complete_to.is_some_and(|complete| to.get() <= complete));
                self.checkpoint.through = Some(*to);
            }
            Move::Switch(switch) => {
                let ancestor = switch.ancestor.as_ref();
                if let Some(ancestor) = ancestor {
                    let applied = &self.applied[&ancestor.height.get()];
                    assert_eq!(applied.0, ancestor.hash.as_str(), "the ancestor is applied");
                }
                self.undo_to(ancestor.map(|a| a.height.get()));
                self.checkpoint.redo_from = switch.redo_from;
                self.checkpoint.deep_change &= switch.redo_from.is_some();
                if let Some(to) = switch.to {
                    self.apply(to.get(), usize::MAX);
                }
            }
            Move::Rebuild(rebuild) => {
                let is_first = self.applied.is_empty();
                self.undo_to(None);
                (self.checkpoint.redo_from, self.checkpoint.deep_change) = (None, false);
                if let Some(to) = rebuild.to {
                    self.apply(to.get(), if is_first { 1 } else { usize::MAX });
                }
            }
            Move::Halt { .. } => self.checkpoint.halted_reason = Some("told to".to_owned()),
        }
        if matches!(decided, Move::Begin { .. } | Move::Extend { .. } | Move::PassEmpty { .. }) {
            let through = self.checkpoint.through.map(Height::get);
            assert!(through.is_none_or(|through| through <= self.stop()), "it moved past its stop");
        }
        true
    }

    /// `sql/triggers/10_chain.sql`: rows of blocks at or above this height changed.
    fn touch(&mut self, height: u64) {
        if self.complete_to.is_some_and(|to| height <= to) {
            self.complete_to = height.checked_sub(1);
        }
        if self.final_height.is_some_and(|f| height <= f)
            && self.checkpoint.through.is_some_and(|through| height <= through.get())
        {
            let from = self.checkpoint.redo_from.map_or(height, |from| from.get().min(height));
            self.checkpoint.redo_from = Some(at(from));
            self.checkpoint.deep_change = true;
        }
    }
}

/// What is applied, what is stored, what else there is, and the move.
type Case = (&'static str, &'static str, &'static str, fn(&mut Tables), Move);

fn switch(ancestor: Option<BlockRef>, to: Option<u64>, depth: u64) -> Switch {
    Switch { ancestor, to: to.map(at), depth, redo_from: None, is_part: false, is_replay: false, below_journal: None }
}

fn rebuild(reason: &'static str, to: Option<u64>, depth: u64, is_replay: bool) -> Move {
    Move::Rebuild(Rebuild { reason, to: to.map(at), depth, is_replay })
}

const END: Height = Height::MAX;

#[test]
fn each_move_is_drawn() {
    let stays = |_: &mut Tables| {};
    let cases: Vec<Case> = vec![
        ("no block is there", "", "", stays, Move::Wait(Wait::FirstBlock)),
        ("a first block is there", "", "abc", stays, Move::Begin { start: at(0) }),
        ("the lowest present begins it", "", "..cd", stays, Move::Begin { start: at(2) }),
        ("the first block is missing", "", "..cd", |t| t.start = Some(1), Move::Wait(Wait::MissingBlock)),
        ("its first block is not there yet", "", "ab", |t| t.start = Some(5), Move::Wait(Wait::FirstBlock)),
        ("blocks are there above", "ab", "abcd", stays, Move::Extend { to: END }),
        ("everything is applied", "abc", "abc", stays, Move::Wait(Wait::NextBlock)),
        ("a block is missing", "ab", "ab.d", stays, Move::Wait(Wait::MissingBlock)),
        (
            "the next names another parent",
            "ab",
            "abc",
            |t| t.blocks.get_mut(&2).unwrap().parent = "x".to_owned(),
            Move::Wait(Wait::MissingBlock),
        ),
        (
            "the next lacks events",
            "ab",
            "abc",
            |t| t.blocks.get_mut(&2).unwrap().complete = false,
            Move::Wait(Wait::MissingBlock),
        ),
        ("a missing height is empty", "ab", "ab.d", |t| t.complete_to = Some(2), Move::Extend { to: END }),
        ("the last heights are empty", "ab", "ab", |t| t.complete_to = Some(4), Move::PassEmpty { to: at(4) }),
        (
            "they are empty no longer",
            "ab",
            "ab.d",
            |t| {
                t.checkpoint.through = Some(at(4));
                t.complete_to = Some(1);
            },
            Move::PassEmpty { to: at(1) },
        ),
        ("another branch, as high", "abc", "axy", stays, Move::Switch(switch(Some(block(0, "a")), Some(2), 2))),
        ("another branch, lower", "abc", "ax", stays, Move::Switch(switch(Some(block(0, "a")), Some(2), 2))),
        ("the chain got shorter", "abc", "ab", stays, Move::Switch(switch(Some(block(1, "b")), Some(2), 1))),
        (
            "an edit below equal hashes",
            "abc",
            "abc",
            |t| t.blocks.get_mut(&1).unwrap().revision = 2,
            Move::Switch(switch(Some(block(0, "a")), Some(2), 2)),
        ),
        (
            "a block in a height that was empty",
            "a.c",
            "abc",
            |t| t.blocks.get_mut(&2).unwrap().parent = "b".to_owned(),
            Move::Switch(switch(Some(block(0, "a")), Some(2), 2)),
        ),
        ("all of it on another branch", "abc", "xyz", stays, Move::Switch(switch(None, Some(2), 3))),
        ("nothing is left", "abc", "", stays, rebuild("its start moved", None, 3, false)),
        ("its start moved", "abc", "abc", |t| t.start = Some(1), rebuild("its start moved", Some(2), 3, false)),
        (
            "a replay",
            "abc",
            "abc",
            |t| t.checkpoint.redo_from = Some(at(1)),
            Move::Switch(Switch { is_replay: true, ..switch(Some(block(0, "a")), Some(2), 2) }),
        ),
        (
            "a replay from above",
            "ab",
            "abcde",
            |t| t.checkpoint.redo_from = Some(at(4)),
            Move::Switch(Switch { is_replay: true, ..switch(Some(block(1, "b")), Some(1), 0) }),
        ),
        (
            "a replay before the start",
            "",
            "abc",
            |t| t.checkpoint.redo_from = Some(at(0)),
            rebuild("a replay from before the start", Some(END.get()), 0, true),
        ),
        (
            "a replay from below the journal, by the history",
            "abc",
            "abc",
            |t| {
                t.journal_from = Some(2);
                t.checkpoint.redo_from = Some(at(1));
            },
            Move::Switch(Switch {
                is_replay: true,
                below_journal: Some("a replay from below the undo horizon"),
                ..switch(Some(block(0, "a")), Some(2), 2)
            }),
        ),
        (
            "a change below the history",
            "abc",
            "abc",
            |t| {
                t.journal_from = Some(2);
                t.checkpoint.history_from = Some(at(1));
                t.checkpoint.redo_from = Some(at(1));
                t.checkpoint.deep_change = true;
            },
            rebuild("the chain changed below its final height", Some(2), 3, false),
        ),
        ("paused where it is", "ab", "abc", |t| t.checkpoint.paused = true, Move::Wait(Wait::Operator)),
        ("paused, and the chain is another", "ab", "axy", |t| t.checkpoint.paused = true, Move::Wait(Wait::Operator)),
        (
            "paused below",
            "abc",
            "abc",
            |t| (t.checkpoint.paused, t.checkpoint.pause_at) = (true, Some(at(0))),
            Move::Switch(switch(Some(block(0, "a")), Some(0), 2)),
        ),
        (
            "paused above",
            "a",
            "abc",
            |t| (t.checkpoint.paused, t.checkpoint.pause_at) = (true, Some(at(1))),
            Move::Extend { to: at(1) },
        ),
        (
            "paused here",
            "ab",
            "abc",
            |t| (t.checkpoint.paused, t.checkpoint.pause_at) = (true, Some(at(1))),
            Move::Wait(Wait::NextBlock),
        ),
        ("halted", "ab", "axy", |t| t.checkpoint.halted_reason = Some("why".to_owned()), Move::Wait(Wait::Operator)),
    ];
    let drawn = cases.len();
    for (name, applied, stored, change, expected) in cases {
        let tables = Tables::drawn(applied, stored).with(change);
        assert_eq!(tables.decide(&RULES), expected, "{name}: {applied:?} is applied, {stored:?} is stored");
    }
    println!("{drawn} drawings");
}

#[test]
fn what_a_projection_is_decides_too() {
    let forked = || Tables::drawn("abcd", "axyz");
    let parts = Rules { most_blocks: 2, ..RULES };
    let part = Switch { is_part: true, ..switch(Some(block(1, "b")), None, 2) };
    assert_eq!(forked().decide(&parts), Move::Switch(part), "a part of the old branch at a time");
    let exact = Rules { most_blocks: 3, ..RULES };
    assert_eq!(forked().decide(&exact), Move::Switch(switch(Some(block(0, "a")), Some(3), 3)), "all of it fits");
    let stuck = Rules { stuck_at: Some(at(2)), ..RULES };
    assert_eq!(forked().decide(&stuck), Move::Switch(switch(Some(block(0, "a")), Some(1), 3)), "to below what fails");
    let stuck = Rules { stuck_at: Some(at(0)), ..RULES };
    let all = Tables::drawn("ab", "xy").decide(&stuck);
    assert_eq!(all, Move::Switch(switch(None, None, 2)), "nothing is below height 0");
    let deep = |t: &mut Tables| {
        (t.checkpoint.redo_from, t.checkpoint.deep_change) = (Some(at(0)), true);
    };
    let halts = Rules { halts_on_deep_change: true, ..RULES };
    assert!(matches!(Tables::drawn("ab", "ab").with(deep).decide(&halts), Move::Halt { .. }));
    assert_eq!(forked().decide(&halts), forked().decide(&RULES), "a reorganisation above it is none of that");
    let pruned = |t: &mut Tables| {
        t.journal_from = Some(2);
        t.checkpoint.redo_from = Some(at(1));
    };
    let tracked = Rules { undoes_final: false, ..RULES };
    assert_eq!(
        Tables::drawn("abc", "abc").with(pruned).decide(&tracked),
        rebuild("a replay from below the undo horizon", Some(2), 3, true),
        "without a history nothing is undone below the journal"
    );
    let now = |digest: &str| Rules { digest: Some(digest.to_owned()), ..RULES };
    let made_by = |t: &mut Tables| t.checkpoint.digest = Some("old".to_owned());
    let made = Tables::drawn("abc", "abc").with(made_by);
    assert_eq!(made.decide(&now("new")), rebuild("its function changed", Some(2), 3, true));
    assert_eq!(made.decide(&now("old")), Move::Wait(Wait::NextBlock));
}

/// The projection that it follows stands on a block, or on none.
fn following(applied: &str, stored: &str, on: Option<BlockRef>) -> Tables {
    let tables = Tables::drawn(applied, stored);
    let stands =
        on.as_ref().is_some_and(|b| tables.blocks.get(&b.height.get()).is_some_and(|r| r.hash == b.hash.as_str()));
    tables.with(|t| t.after = Some(After { block: on, stands }))
}

#[test]
fn a_follower_goes_where_the_one_goes_that_it_follows() {
    let b = || Some(block(1, "b"));
    assert_eq!(following("ab", "abcd", b()).decide(&RULES), Move::Wait(Wait::InStep));
    let passes = following("ab", "ab", b()).with(|t| t.complete_to = Some(3));
    assert_eq!(passes.decide(&RULES), Move::PassEmpty { to: at(3) }, "empty heights are passed by each for itself");
    assert_eq!(following("a", "abcd", b()).decide(&RULES), Move::Extend { to: at(1) }, "as far as that one");
    assert_eq!(following("", "abcd", b()).decide(&RULES), Move::Begin { start: at(0) });
    assert_eq!(
        following("abc", "abc", b()).decide(&RULES),
        Move::Switch(switch(b(), Some(1), 1)),
        "that one was taken back"
    );
    assert_eq!(
        following("axy", "abc", Some(block(2, "c"))).decide(&RULES),
        Move::Switch(switch(Some(block(0, "a")), Some(2), 2)),
        "its own way to that one's branch"
    );
    assert_eq!(
        following("abc", "axy", Some(block(2, "c"))).decide(&RULES),
        Move::Wait(Wait::InStep),
        "it is taken along"
    );
    assert_eq!(following("a", "axy", Some(block(2, "c"))).decide(&RULES), Move::Wait(Wait::Followed));
    assert_eq!(
        following("ab", "ab", None).decide(&RULES),
        rebuild("the projection that it follows has no block", None, 2, false)
    );
    assert_eq!(following("", "ab", None).decide(&RULES), Move::Wait(Wait::Followed));
    let replayed = following("ab", "ab", b()).with(|t| t.checkpoint.redo_from = Some(at(1)));
    assert_eq!(
        replayed.decide(&RULES),
        Move::Switch(Switch { is_replay: true, ..switch(Some(block(0, "a")), Some(1), 1) }),
        "in step, but to be applied again"
    );
    let below = following("ab", "ab", b()).with(|t| {
        (t.checkpoint.paused, t.checkpoint.pause_at) = (true, Some(at(0)));
    });
    assert_eq!(below.decide(&RULES), Move::Switch(switch(Some(block(0, "a")), Some(0), 1)));
    let halted = following("ab", "abc", Some(block(2, "c"))).with(|t| t.checkpoint.halted_reason = Some("why".into()));
    assert_eq!(halted.decide(&RULES), Move::Wait(Wait::Operator));
}

/// Something that happens to the tables.
#[derive(Debug, Clone)]
enum Event {
    Put {
        height: u64,
        links: bool,
    },
    Insert {
        height: u64,
    },
    Edit(u64),
    Delete(u64),
    Drop(u64),
    Announces(u64),
    CompleteTo(u64),
    Final(u64),
    Start(Option<u64>),
    Replay(u64),
    Pause(Option<u64>),
    Resume,
    /// The processor works this many moves, and prunes where nothing is left to do.
    Works {
        moves: usize,
        batch: usize,
    },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0..10u64, prop::bool::weighted(0.9)).prop_map(|(height, links)| Event::Put { height, links }),
        1 => (0..10u64).prop_map(|height| Event::Insert { height }),
        2 => (0..10u64).prop_map(Event::Edit),
        1 => (0..10u64).prop_map(Event::Delete),
        1 => (0..10u64).prop_map(Event::Drop),
        1 => (0..10u64).prop_map(Event::Announces),
        2 => (0..12u64).prop_map(Event::CompleteTo),
        2 => (0..8u64).prop_map(Event::Final),
        1 => prop::option::of(0..4u64).prop_map(Event::Start),
        1 => (0..12u64).prop_map(Event::Replay),
        1 => prop::option::of(0..10u64).prop_map(Event::Pause),
        1 => Just(Event::Resume),
        6 => (1..5usize, 1..4usize).prop_map(|(moves, batch)| Event::Works { moves, batch }),
    ]
}

impl Tables {
    fn put(&mut self, height: u64, parent: String) {
        self.revision += 1;
        let row = Row { hash: format!("h{}", self.revision), parent, revision: self.revision, complete: true };
        self.blocks.insert(height, row);
        self.touch(height);
    }

    fn happen(&mut self, event: &Event, rules: &Rules) {
        match event {
            Event::Put { height, links } => {
                // Next to the tip more often than not: chains grow.
                let next = self.blocks.keys().next_back().map_or(0, |h| h + 1);
                let height = if self.blocks.contains_key(height) { *height } else { next };
                self.blocks.split_off(&height);
                let below = height.checked_sub(1).and_then(|h| self.blocks.get(&h)).filter(|_| *links);
                let parent = below.map_or_else(|| "?".to_owned(), |row| row.hash.clone());
                self.put(height, parent);
            }
            Event::Insert { height } if !self.blocks.contains_key(height) => {
                let below = height.checked_sub(1).and_then(|h| self.blocks.get(&h));
                self.put(*height, below.map_or_else(|| "?".to_owned(), |row| row.hash.clone()));
            }
            Event::Edit(height) => {
                self.revision += 1;
                if let Some(row) = self.blocks.get_mut(height) {
                    row.revision = self.revision;
                    self.touch(*height);
                }
            }
            Event::Announces(height) => {
                self.revision += 1;
                if let Some(row) = self.blocks.get_mut(height) {
                    (row.revision, row.complete) = (self.revision, !row.complete);
                    self.touch(*height);
                }
            }
            Event::Delete(height) if self.blocks.remove(height).is_some() => self.touch(*height),
            Event::Drop(height) if !self.blocks.split_off(height).is_empty() => self.touch(*height),
            Event::CompleteTo(to) => self.complete_to = self.complete_to.max(Some(*to)),
            Event::Final(to) => self.final_height = self.final_height.max(Some(*to)),
            Event::Start(start) => self.start = *start,
            Event::Replay(from) => {
                self.checkpoint.redo_from = Some(self.checkpoint.redo_from.map_or(at(*from), |f| f.min(at(*from))));
            }
            Event::Pause(to) => {
                (self.checkpoint.paused, self.checkpoint.pause_at) = (true, to.map(at));
            }
            Event::Resume => {
                (self.checkpoint.paused, self.checkpoint.pause_at) = (false, None);
                (self.checkpoint.halted_reason, self.checkpoint.deep_change) = (None, false);
            }
            Event::Works { moves, batch } => {
                for _ in 0..*moves {
                    let decided = self.decide(rules);
                    if !self.carry_out(&decided, *batch) {
                        self.prune(&decided);
                        break;
                    }
                }
            }
            Event::Insert { .. } | Event::Delete(_) | Event::Drop(_) => {}
        }
    }

    /// What is final and was found to be what counts is not compared again.
    fn prune(&mut self, decided: &Move) {
        let through = self.checkpoint.through.map(Height::get);
        let horizon = self.final_height.zip(through).map(|(f, through)| f.min(through));
        if let Some(horizon) = horizon.filter(|_| !matches!(decided, Move::Wait(Wait::Operator))) {
            self.journal_from = self.journal_from.max(Some(horizon + 1));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happened_the_moves_end_where_what_counts_is_applied(
        events in prop::collection::vec(event(), 1..40),
        undoes_final in any::<bool>(),
        most_blocks in prop_oneof![Just(u64::MAX), 1..3u64],
        halts_on_deep_change in prop::bool::weighted(0.2),
    ) {
        let rules = Rules { undoes_final, most_blocks, halts_on_deep_change, ..RULES };
        let mut tables = Tables::default();
        for event in &events {
            tables.happen(event, &rules);
        }
        // Halted, or paused where it is, nothing moves.
        if tables.checkpoint.stops_at().is_none() {
            prop_assert_eq!(tables.decide(&rules), Move::Wait(Wait::Operator));
        }
        if tables.checkpoint.halted_reason.is_some() || tables.checkpoint.pause_at.is_none() {
            tables.happen(&Event::Resume, &rules);
        }
        let rules = Rules { halts_on_deep_change: false, ..rules };
        let mut moves = 0;
        loop {
            let decided = tables.decide(&rules);
            if !tables.carry_out(&decided, 2) {
                break;
            }
            moves += 1;
            prop_assert!(moves < 60, "it comes to no end: {decided:?}, {tables:?}");
        }
        let counts = tables.counts(tables.stop());
        prop_assert_eq!(&tables.applied, &counts, "{:?}", tables);
        let through = counts.keys().next_back().map(|tip| {
            let empty_to = tables.complete_to.map_or(*tip, |to| to.min(tables.stop())).max(*tip);
            if tables.blocks.range(tip + 1..).next().is_none_or(|(next, _)| *next > empty_to) { empty_to } else { *tip }
        });
        prop_assert_eq!(tables.checkpoint.through.map(Height::get), through);
        prop_assert_eq!(tables.checkpoint.redo_from, None);
    }
}
