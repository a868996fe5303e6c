//! Reading the next blocks that count, with their movements netted.

use crate::chain::decide::Look;
use crate::chain::plan::{StoredBlock, counting};
use crate::chain::{BlockRef, ChainId, Height};
use crate::projections::token_balances::{Accounts, Netted};
use crate::store::{LedgerRead, Movement, StoreError};

/// A chunk holds about so many events: as many as one commit may. Two chunks are in memory at once.
pub(super) const CHUNK_EVENTS: u64 = 10_000;
/// Most blocks of a chunk.
const CHUNK_BLOCKS: u64 = 2_000;
/// Blocks of the first chunk: what they hold is not known yet.
const FIRST_BLOCKS: u64 = 16;

/// Most events of a kind that code is given at once.
const RANGE_EVENTS: u64 = 10_000;

/// What is read of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// Their movements, netted.
    Netted,
    /// No more than their names.
    Names,
    /// Their names, of as many as hold the events that code is given at once.
    Ranges,
}

/// A block read, checked and netted.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) block: BlockRef,
    pub(super) revision: i64,
    /// What its movements come to; empty for projections that read for themselves.
    pub(super) netted: Netted,
    /// Heights between the block before and this one were taken as empty.
    pub(super) gap: bool,
}

/// Consecutive blocks, with the accounts that they touch.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) blocks: Vec<Prepared>,
    pub(super) accounts: Accounts,
}

/// Reads what counts after a block, chunk by chunk.
pub(super) struct Reader<'a> {
    pub(super) read: &'a LedgerRead,
    pub(super) chain: ChainId,
    pub(super) look: &'a Look,
    pub(super) start: Height,
    /// Up to this height.
    pub(super) to: Height,
    /// The last block read. None means none yet: the state begins at `start`.
    pub(super) before: Option<BlockRef>,
    pub(super) reading: Reading,
    /// Blocks that the look has seen already; read first.
    known: Option<&'a [StoredBlock]>,
    limit: u64,
    ended: bool,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        read: &'a LedgerRead,
        chain: ChainId,
        look: &'a Look,
        bounds: (Height, Height),
        before: Option<BlockRef>,
        reading: Reading,
    ) -> Reader<'a> {
        let (start, to) = bounds;
        Reader { read, chain, look, start, to, before, reading, known: None, limit: FIRST_BLOCKS, ended: false }
    }

    /// Reading goes on from the checkpoint: the look has the first blocks.
    pub(super) fn with_those_ahead(mut self) -> Reader<'a> {
        self.known = Some(&self.look.ahead);
        self
    }

    /// The next blocks that count, at most `most`. None means there are no more, or a break comes next.
    pub(super) async fn next(&mut self, most: u64) -> Result<Option<Chunk>, StoreError> {
        if self.ended || most == 0 {
            return Ok(None);
        }
        // Revisions first, events after: an edit in between shows as another revision when the block is held.
        let limit = self.limit.min(most);
        let mut stored = match self.known.take() {
            Some(known) => {
                let within =
                    known.iter().filter(|b| b.height <= self.to).take(usize::try_from(limit).unwrap_or(usize::MAX));
                within.cloned().collect()
            }
            None => {
                let from = self.before.as_ref().map_or(self.start, |b| b.height.next());
                self.read.stored_blocks(self.chain, from, self.to, limit.cast_signed()).await?
            }
        };
        let whole = stored.len() as u64 == limit;
        let counted = counting(self.before.as_ref(), self.start, self.look.complete_to, &stored);
        self.ended = !whole || counted < stored.len();
        stored.truncate(counted);
        if let (Reading::Ranges, [first, .., last]) = (self.reading, &stored[..])
            && let Some(full) = self.read.range_end(self.chain, first.height, last.height, RANGE_EVENTS).await?
        {
            stored.truncate(stored.partition_point(|block| block.height < full).max(1));
            self.ended = false;
        }
        let Some(last) = stored.last() else { return Ok(None) };
        let last = BlockRef { height: last.height, hash: last.hash.clone() };
        let chunk = self.net(&stored).await?;
        self.before = Some(last);
        // As many blocks as hold a chunk's events, but never more than four times as many as now.
        let events: u64 = chunk.blocks.iter().map(|b| b.netted.events).sum();
        let fitting = limit * CHUNK_EVENTS / events.max(1);
        self.limit = fitting.clamp(1, (self.limit * 4).min(CHUNK_BLOCKS));
        Ok(Some(chunk))
    }

    /// Whether the last chunk was the end of what counted when it was read.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    async fn net(&self, stored: &[StoredBlock]) -> Result<Chunk, StoreError> {
        let mut expected = self.before.as_ref().map_or(self.start, |b| b.height.next());
        let mut blocks: Vec<Prepared> = stored
            .iter()
            .map(|b| {
                let gap = b.height != expected;
                expected = b.height.next();
                let block = BlockRef { height: b.height, hash: b.hash.clone() };
                Prepared { block, revision: b.revision, netted: Netted::default(), gap }
            })
            .collect();
        let mut accounts = Accounts::new(self.look.kind, self.look.checkpoint.tells);
        if let (Reading::Netted, Some(first), Some(last)) = (self.reading, stored.first(), stored.last()) {
            let mut at = 0;
            let take = |height: Height, movement: &Movement<'_>| {
                while at < blocks.len() && blocks[at].block.height < height {
                    at += 1;
                }
                // Events of a height without a block row do not count.
                if let Some(block) = blocks.get_mut(at).filter(|p| p.block.height == height) {
                    accounts.take(&mut block.netted, height, movement);
                }
            };
            self.read.movements(self.chain, first.height, last.height, take).await?;
        }
        for block in &mut blocks {
            block.netted.close();
        }
        Ok(Chunk { blocks, accounts })
    }
}
