//! The tables of the model: a chain of at most four heights and one projection's state on it, and what a look sees of them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::LazyLock;

use ebbtide::chain::decide::{Checkpoint, Look, Move, Rules, Wait, decide};
use ebbtide::chain::plan::StoredBlock;
use ebbtide::chain::{BlockRef, Hash, Height};

use crate::model::Broken;
use crate::search::Fingerprints;

/// Heights are 0 to 3.
pub const HEIGHTS: usize = 4;

/// A block at its height: the path of branches that leads to it, as bits, newest lowest: a hash names its parents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Block {
    pub path: u8,
    pub revision: u8,
}

/// Blocks by height.
pub type Rows = [Option<Block>; HEIGHTS];

/// Height and path.
pub type Name = (u8, u8);

/// All that a look sees: the chain tables, the checkpoint, the journal of applied blocks.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Seen {
    pub blocks: Rows,
    pub final_height: Option<u8>,
    pub complete_to: Option<u8>,
    pub tip: Option<Name>,
    pub through: Option<u8>,
    pub begun_at: Option<u8>,
    pub redo_from: Option<u8>,
    pub deep_change: bool,
    pub journal_from: Option<u8>,
    pub paused: Option<Option<u8>>,
    pub journal: Rows,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Db {
    pub seen: Seen,
    /// What the balances are the fold of.
    pub state: Rows,
    /// Whether what a block did can be taken back.
    pub undo: [bool; HEIGHTS],
}

/// A [`Move`] in small numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Plan {
    Begin,
    Extend { to: u8 },
    PassEmpty { to: u8 },
    Switch { ancestor: Option<Name>, to: Option<u8>, redo_from: Option<u8> },
    Rebuild { to: Option<u8> },
    Wait { is_stopped: bool },
}

impl Plan {
    /// Whether the look found that what is applied is what counts, as far as it went.
    pub fn has_compared(self) -> bool {
        matches!(self, Plan::Extend { .. } | Plan::PassEmpty { .. } | Plan::Wait { is_stopped: false })
    }
}

static NAMES: LazyLock<Vec<Vec<Hash>>> = LazyLock::new(|| {
    let named = |height: usize, path: usize| {
        (0..=height).rev().map(|bit| if path >> bit & 1 == 0 { 'a' } else { 'b' }).collect::<String>()
    };
    (0..HEIGHTS).map(|height| (0..2 << height).map(|path| Hash::new(named(height, path))).collect()).collect()
});

/// The hash of a block.
pub fn name((height, path): Name) -> &'static Hash {
    &NAMES[height as usize][path as usize]
}

pub fn height(at: u8) -> Height {
    Height::from(u32::from(at))
}

pub fn reference(of: Name) -> BlockRef {
    BlockRef { height: height(of.0), hash: name(of).clone() }
}

fn small(height: Height) -> u8 {
    height.get().min(u64::from(u8::MAX)) as u8
}

/// A stored row as it is read.
pub fn stored_block(blocks: &Rows, at: u8) -> Option<StoredBlock> {
    let block = blocks[at as usize]?;
    let parent_hash = if at == 0 { Hash::new("") } else { name((at - 1, block.path >> 1)).clone() };
    Some(StoredBlock {
        height: height(at),
        hash: name((at, block.path)).clone(),
        parent_hash,
        revision: block.revision.into(),
        complete: true,
    })
}

impl Seen {
    /// The highest stored block.
    pub fn top(&self) -> Option<Name> {
        (0..HEIGHTS).rev().find_map(|at| self.blocks[at].map(|block| (at as u8, block.path)))
    }

    /// The block of a height, by its hash and revision.
    pub fn stored(&self, at: Height) -> Option<(&'static Hash, i64)> {
        let block = self.blocks.get(at.get() as usize).copied().flatten()?;
        Some((name((at.get() as u8, block.path)), i64::from(block.revision)))
    }

    /// The lowest stored height: no other start is set.
    pub fn start(&self) -> Option<u8> {
        (0..HEIGHTS).find(|at| self.blocks[*at].is_some()).map(|at| at as u8)
    }

    /// Where an operator wants it to stay; beyond all heights if nowhere.
    pub fn stop(&self) -> u8 {
        match self.paused {
            Some(Some(at)) => at,
            Some(None) | None => u8::MAX,
        }
    }

    /// Heights in the journal, as far as it is whole.
    pub fn journal_seen(&self) -> impl Iterator<Item = usize> + '_ {
        let from = self.journal_from.unwrap_or(0) as usize;
        (from.min(HEIGHTS)..HEIGHTS).filter(|at| self.journal[*at].is_some())
    }

    /// `blocks_touched` in `sql/triggers/10_chain.sql`: rows of blocks at or above this height came, went or changed.
    pub fn touch(&mut self, at: u8) {
        if self.complete_to.is_some_and(|to| at <= to) {
            self.complete_to = at.checked_sub(1);
        }
        if self.final_height.is_some_and(|f| at <= f) && self.through.is_some_and(|through| at <= through) {
            self.redo_from = Some(self.redo_from.map_or(at, |from| from.min(at)));
            self.deep_change = true;
        }
    }

    /// The run of blocks from the start in which each names its predecessor: written again, and not by `counting`.
    pub fn counts(&self, complete_to: Option<u8>) -> Rows {
        let mut counts = [None; HEIGHTS];
        let mut before: Option<(usize, u8)> = None;
        for (at, block) in self.blocks.iter().enumerate() {
            let Some(block) = *block else { continue };
            let follows = match before {
                None => true,
                Some((below, path)) if below + 1 == at => path == block.path >> 1,
                Some(_) => complete_to.is_some_and(|to| at - 1 <= to as usize),
            };
            if !follows {
                break;
            }
            counts[at] = Some(block);
            before = Some((at, block.path));
        }
        counts
    }

    /// `sql/queries/look.sql`.
    fn look(&self) -> Look {
        let last_below = |at: u8| {
            (0..at.min(HEIGHTS as u8)).rev().find_map(|h| self.blocks[h as usize].map(|b| reference((h, b.path))))
        };
        let stored = |from: usize, to: usize| -> Vec<StoredBlock> {
            (from..=to.min(HEIGHTS - 1)).filter_map(|at| stored_block(&self.blocks, at as u8)).collect()
        };
        let start = self.start();
        let journal: Vec<(BlockRef, i64)> = self
            .journal_seen()
            .filter_map(|at| self.journal[at].map(|b| (reference((at as u8, b.path)), i64::from(b.revision))))
            .collect();
        let journalled = self.journal_seen().next().map(|at| at as u8).or(self.tip.map(|(at, _)| at));
        let first =
            [self.journal_from.or(start), journalled, Some(self.stop().saturating_add(1))].into_iter().flatten().min();
        let window = first.filter(|_| self.through.is_some());
        let ahead_from = self.tip.map(|(at, _)| at + 1).or(start);
        Look {
            final_height: self.final_height.map(height),
            complete_to: self.complete_to.map(height),
            lowest: start.map(height),
            highest: self.top().map(|(at, _)| height(at)),
            checkpoint: self.checkpoint(),
            journal,
            below: window.and_then(last_below),
            stored: match (window, self.through) {
                (Some(first), Some(through)) if first <= through => stored(first as usize, through as usize),
                _ => Vec::new(),
            },
            redo_below: self.redo_from.and_then(|from| last_below(from.min(self.tip.map_or(0, |(at, _)| at + 1)))),
            ahead: ahead_from.map(|from| stored(from as usize, self.stop() as usize)).unwrap_or_default(),
            ..Look::default()
        }
    }

    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            seq: 0,
            block: self.tip.map(reference),
            through: self.through.map(height),
            begun_at: self.begun_at.map(height),
            redo_from: self.redo_from.map(height),
            deep_change: self.deep_change,
            journal_from: self.journal_from.map(height),
            paused: self.paused.is_some(),
            pause_at: self.paused.flatten().map(height),
            ..Checkpoint::default()
        }
    }
}

thread_local! {
    /// Far fewer looks than states: each is decided once.
    static PLANS: RefCell<HashMap<(u128, bool), Plan>> = RefCell::new(HashMap::new());
}

impl Db {
    pub fn checkpoint(&self) -> Checkpoint {
        self.seen.checkpoint()
    }

    /// What a processor decides that looks now.
    pub fn plan(&self, keeps_history: bool) -> Plan {
        let key = (Fingerprints::of(&self.seen), keeps_history);
        if let Some(plan) = PLANS.with_borrow(|plans| plans.get(&key).copied()) {
            return plan;
        }
        let rules = Rules {
            digest: None,
            halts_on_deep_change: false,
            undoes_final: keeps_history,
            most_blocks: u64::MAX,
            stuck_at: None,
        };
        let named = |block: &BlockRef| {
            let at = small(block.height);
            let path = NAMES[at as usize].iter().position(|hash| *hash == block.hash).expect("one of the model's");
            (at, path as u8)
        };
        let plan = match decide(&self.seen.look(), &rules) {
            Move::Begin { .. } => Plan::Begin,
            Move::Extend { to } => Plan::Extend { to: small(to) },
            Move::PassEmpty { to } => Plan::PassEmpty { to: small(to) },
            Move::Switch(switch) => Plan::Switch {
                ancestor: switch.ancestor.as_ref().map(named),
                to: switch.to.map(small),
                redo_from: switch.redo_from.map(small),
            },
            Move::Rebuild(rebuild) => Plan::Rebuild { to: rebuild.to.map(small) },
            Move::Wait(wait) => Plan::Wait { is_stopped: wait == Wait::Operator },
            Move::Halt { reason } => unreachable!("it rebuilds: {reason}"),
        };
        PLANS.with_borrow_mut(|plans| plans.insert(key, plan));
        plan
    }

    /// Up to where the journal may be pruned, if it is not pruned that far.
    pub fn horizon(&self) -> Option<u8> {
        let horizon = self.seen.final_height?.min(self.seen.through?);
        self.seen.journal_from.is_none_or(|from| from <= horizon).then_some(horizon)
    }

    /// The checkpoint stands on the last block applied, and the journal says what is applied where it is whole.
    pub fn check_journal(&self) -> Result<(), Broken> {
        let seen = &self.seen;
        let top = (0..HEIGHTS).rev().find_map(|at| self.state[at].map(|block| (at as u8, block.path)));
        if top != seen.tip {
            return Err(Broken(format!("the checkpoint stands on {:?}, but {top:?} was applied last", seen.tip)));
        }
        for at in 0..HEIGHTS {
            let is_whole = seen.journal_from.is_none_or(|from| at >= from as usize);
            if (is_whole || seen.journal[at].is_some()) && seen.journal[at] != self.state[at] {
                return Err(Broken(format!("the journal of block {at} is not what is applied")));
            }
        }
        Ok(())
    }

    /// Nothing is left to do: what is applied is what counts, as far as an operator lets it go.
    pub fn check_settled(&self) -> Result<(), Broken> {
        let seen = &self.seen;
        if seen.paused == Some(None) {
            return Ok(());
        }
        let mut counts = seen.counts(seen.complete_to);
        let stop = seen.stop() as usize;
        counts.iter_mut().enumerate().filter(|(at, _)| *at > stop).for_each(|(_, block)| *block = None);
        if counts != self.state {
            return Err(Broken(format!(
                "it waits, but what counts is {counts:?}, and what is applied {:?}",
                self.state
            )));
        }
        let top = (0..HEIGHTS).rev().find(|at| counts[*at].is_some());
        let through = top.map(|top| {
            let empty_to = seen.complete_to.map_or(top, |to| (to as usize).min(stop)).max(top);
            if (top + 1..=empty_to).any(|at| at < HEIGHTS && seen.blocks[at].is_some()) { top } else { empty_to }
        });
        if through != seen.through.map(usize::from) {
            return Err(Broken(format!("it waits applied up to {:?}, not {through:?}", seen.through)));
        }
        if seen.redo_from.is_some_and(|from| self.state.iter().any(Option::is_some) && (from as usize) < HEIGHTS) {
            return Err(Broken(format!("it waits, but {:?} is to be applied again", seen.redo_from)));
        }
        Ok(())
    }
}
