//! The branch that a file has told of so far, and what a further line means for it. Pure.
//!
//! ```text
//! height | 7 | 8 | 9 | 10
//! tip    | A   B   C   D
//! a line   that names C as block 10's parent: a reorg that keeps 7 to 9
//! a line   that names an orphan E (of B) as its parent: the flip B, E, new
//! ```

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use crate::chain::{Block, Hash, Height, Link};

/// Heights of the branch that are remembered below its tip: how far the syncer can walk down.
pub(super) const REMEMBERED_HEIGHTS: usize = 10_000;

/// Replaced blocks that are remembered, by name.
const REMEMBERED_ORPHANS: usize = 20_000;

/// Blocks stay in memory up to this many bytes of their lines; older ones are read again when they are needed.
const BYTES_KEPT: usize = 24 << 20;

/// A block that a file told of.
#[derive(Debug, Clone)]
pub(super) struct Known {
    /// Its place.
    pub(super) link: Link,
    /// The line it is on.
    pub(super) line: u64,
    /// The length of that line.
    pub(super) bytes: usize,
    /// What it holds, while that is in memory.
    pub(super) block: Option<Arc<Block>>,
    /// Its place in the queue of blocks that are held in memory.
    kept: Option<u64>,
}

impl Known {
    /// A block as a line of `bytes` bytes tells of it.
    pub(super) fn new(link: Link, line: u64, bytes: usize, block: Option<Arc<Block>>) -> Known {
        Known { link, line, bytes, block, kept: None }
    }
}

/// What becomes of the branch with a line.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// The block is on the branch already.
    Repeat,
    /// The blocks of the branch up to `keep` stay (none: none do), `again` comes back, then the block follows.
    Follows {
        /// Height of the common ancestor.
        keep: Option<Height>,
        /// Known, replaced blocks between the common ancestor and the block, ascending.
        again: Vec<Known>,
    },
}

/// Why a line fits nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Misfit {
    #[error("block {0} ({1}) names the parent {2}, which is no block of this file")]
    UnknownParent(Height, Hash, Hash),
    #[error("block {0} ({1}) names the parent {2}, which is block {3}: heights must rise by one")]
    HeightGap(Height, Hash, Hash, Height),
    #[error("block {0} ({1}) came before at height {2}")]
    OtherHeight(Height, Hash, Height),
    #[error("block {0} ({1}) came before with the parent {2}: a hash names one block only")]
    OtherParent(Height, Hash, Hash),
    #[error("the head {0} ({1}) is no block of this file")]
    UnknownHead(Height, Hash),
}

/// The branch and what is remembered beside it.
#[derive(Debug, Default)]
pub(super) struct Branch {
    /// Ascending without holes; the last is the tip.
    links: VecDeque<Known>,
    heights: HashMap<Hash, Height>,
    /// Whether blocks below the first of `links` were known once.
    forgot: bool,
    orphans: HashMap<Hash, Known>,
    orphans_by_age: VecDeque<Hash>,
    /// Blocks held in memory, oldest first.
    kept: BTreeMap<u64, (Hash, usize)>,
    kept_bytes: usize,
    kept_next: u64,
}

impl Branch {
    /// The newest block.
    pub(super) fn tip(&self) -> Option<&Known> {
        self.links.back()
    }

    /// The lowest block that is remembered, and whether there were lower ones.
    pub(super) fn lowest(&self) -> Option<(Height, bool)> {
        self.links.front().map(|known| (known.link.height, self.forgot))
    }

    /// The block of the branch at a height, if it is remembered.
    pub(super) fn at(&self, height: Height) -> Option<&Known> {
        let lowest = self.links.front()?.link.height.get();
        self.links.get(usize::try_from(height.get().checked_sub(lowest)?).ok()?)
    }

    /// Whether this block is on the branch.
    pub(super) fn holds(&self, hash: &Hash) -> bool {
        self.heights.contains_key(hash)
    }

    /// A block on the branch or among the replaced ones.
    pub(super) fn known(&self, hash: &Hash) -> Option<&Known> {
        self.heights.get(hash).and_then(|height| self.at(*height)).or_else(|| self.orphans.get(hash))
    }

    /// Where a new block belongs.
    pub(super) fn place(&self, link: &Link) -> Result<Place, Misfit> {
        let Link { height, hash, parent_hash } = link.clone();
        if let Some(known) = self.known(&hash) {
            if known.link.height != height {
                return Err(Misfit::OtherHeight(height, hash, known.link.height));
            }
            if known.link.parent_hash != parent_hash {
                return Err(Misfit::OtherParent(height, hash, known.link.parent_hash.clone()));
            }
            if self.holds(&hash) {
                return Ok(Place::Repeat);
            }
        }
        if self.links.is_empty() {
            return Ok(Place::Follows { keep: None, again: Vec::new() });
        }
        if let Some(parent) = self.known(&parent_hash)
            && parent.link.height.next() != height
        {
            return Err(Misfit::HeightGap(height, hash, parent_hash, parent.link.height));
        }
        let (keep, again) =
            self.way_to(&parent_hash, height).ok_or(Misfit::UnknownParent(height, hash, parent_hash))?;
        Ok(Place::Follows { keep, again })
    }

    /// What becomes of the branch when a known block is its tip.
    pub(super) fn place_head(&self, height: Height, hash: &Hash) -> Result<Place, Misfit> {
        let unknown = || Misfit::UnknownHead(height, hash.clone());
        let known = self.known(hash).ok_or_else(unknown)?;
        if known.link.height != height {
            return Err(Misfit::OtherHeight(height, hash.clone(), known.link.height));
        }
        if self.tip().is_some_and(|tip| tip.link.hash == *hash) {
            return Ok(Place::Repeat);
        }
        let (keep, again) = self.way_to(hash, height.next()).ok_or_else(unknown)?;
        Ok(Place::Follows { keep, again })
    }

    /// From the branch to `hash`, by way of replaced blocks; `above` is the height of the block that names it.
    fn way_to(&self, hash: &Hash, above: Height) -> Option<(Option<Height>, Vec<Known>)> {
        let mut again = Vec::new();
        let (mut hash, mut above) = (hash, above);
        loop {
            if let Some(height) = self.heights.get(hash) {
                again.reverse();
                return Some((Some(*height), again));
            }
            let first = self.links.front()?;
            if !self.forgot && first.link.parent_hash == *hash && first.link.height == above {
                // All that is known is replaced: both branches stand on the block before the file's first.
                again.reverse();
                return Some((None, again));
            }
            // Heights rise by one from parent to child, so this ends.
            let orphan = self.orphans.get(hash)?;
            again.push(orphan.clone());
            (hash, above) = (&orphan.link.parent_hash, orphan.link.height);
        }
    }

    /// Drops what is above `keep` and appends these blocks. They must follow as [`Place::Follows`] said.
    pub(super) fn switch(&mut self, keep: Option<Height>, blocks: Vec<Known>) {
        while self.links.back().is_some_and(|tip| keep.is_none_or(|keep| tip.link.height > keep)) {
            let Some(gone) = self.links.pop_back() else { break };
            self.heights.remove(&gone.link.hash);
            self.orphans_by_age.push_back(gone.link.hash.clone());
            self.orphans.insert(gone.link.hash.clone(), gone);
        }
        let given = blocks.len();
        for mut known in blocks {
            if let Some(old) = self.orphans.remove(&known.link.hash).and_then(|orphan| orphan.kept) {
                self.kept_bytes -= self.kept.remove(&old).map_or(0, |(_, bytes)| bytes);
            }
            self.heights.insert(known.link.hash.clone(), known.link.height);
            self.keep(&mut known);
            self.links.push_back(known);
        }
        while self.links.len() > REMEMBERED_HEIGHTS.max(given) {
            if let Some(old) = self.links.pop_front() {
                self.heights.remove(&old.link.hash);
                self.forgot = true;
            }
        }
        while self.orphans_by_age.len() > REMEMBERED_ORPHANS {
            if let Some(hash) = self.orphans_by_age.pop_front() {
                self.orphans.remove(&hash);
            }
        }
        self.let_go(given);
    }

    fn keep(&mut self, known: &mut Known) {
        known.kept = known.block.as_ref().map(|_| self.kept_next);
        if known.block.is_some() {
            self.kept.insert(self.kept_next, (known.link.hash.clone(), known.bytes));
            self.kept_next += 1;
            self.kept_bytes += known.bytes;
        }
    }

    /// Lets go of the oldest blocks' content beyond the bound, but never of the newest `but` of them.
    fn let_go(&mut self, but: usize) {
        while self.kept_bytes > BYTES_KEPT && self.kept.len() > but {
            let Some((_, (hash, bytes))) = self.kept.pop_first() else { break };
            self.kept_bytes -= bytes;
            let at = self.heights.get(&hash).copied();
            let first = self.links.front().map_or(0, |known| known.link.height.get());
            let known = match at {
                // A height in the map is at or above the first remembered one.
                Some(height) => self.links.get_mut((height.get() - first) as usize),
                None => self.orphans.get_mut(&hash),
            };
            if let Some(known) = known {
                known.block = None;
            }
        }
    }
}
