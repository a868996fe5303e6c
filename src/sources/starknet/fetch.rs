//! Blocks from one endpoint, each checked against the one before it.
//!
//! Near the head, and wherever every token is wanted, whole blocks are read with their receipts. Deep in history, where
//! contracts are listed, `starknet_getEvents` tells which blocks hold anything; those are read with their receipts,
//! since only they tell an event's exact place in every version of the specification, and of the others only headers.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use serde_json::json;

use super::decode::{Decoder, RawTransaction, Wanted};
use super::follow::{Found, Next, Turn, Turns};
use super::search::{self, Holding};
use super::wire::{self, Confirmed};
use crate::chain::felt::Felt;
use crate::chain::{Block, Height, Link};
use crate::sources::SourceError;
use crate::sources::rpc::endpoint::{Call, Endpoint};
use crate::sources::rpc::linked::{Form, Linked, is_old, linked, numbers, some};

/// How far below the head blocks are read whole.
pub(super) const NEAR_HEAD: u64 = 64;
/// With more contracts than this, asking for each one's events costs more than reading whole blocks.
const MOST_SEARCHED: usize = 16;
/// Heights that are read at once to find what they name, where nobody else reads them.
const GAP_AT_ONCE: u64 = 50;

const WITH_RECEIPTS: &str = "starknet_getBlockWithReceipts";
const WITH_HASHES: &str = "starknet_getBlockWithTxHashes";

/// What a fetch needs to know besides the heights.
pub(super) struct Fetch<'f> {
    pub(super) endpoint: &'f Endpoint,
    pub(super) decoder: Arc<Decoder>,
    pub(super) turns: &'f Turns,
    /// Up to here the chain is old enough to be searched.
    pub(super) old_to: Option<Height>,
}

type Receipted = Confirmed<RawTransaction>;

impl<T> Linked for Confirmed<T> {
    fn link(&self) -> &Link {
        &self.link
    }
}

/// How headers are asked for.
pub(super) const HEADERS: Form<Confirmed<Felt>> = Form { call: header_at, read: wire::with_hashes, requests: 4 };
/// How blocks are asked for with their receipts. These are large: each answer is given back before the next is asked for.
const RECEIPTS: Form<Receipted> = Form {
    call: |height| Call::new(WITH_RECEIPTS, json!({ "block_id": { "block_number": height } })),
    read: wire::with_receipts,
    requests: 1,
};

pub(super) fn header_at(height: u64) -> Call {
    header_call(json!({ "block_number": height }))
}

pub(super) fn header_call(block: serde_json::Value) -> Call {
    Call::new(WITH_HASHES, json!({ "block_id": block }))
}

impl Fetch<'_> {
    /// The blocks at these heights, or at the first of them.
    pub(super) async fn blocks(&self, heights: RangeInclusive<Height>) -> Result<Vec<Block>, SourceError> {
        if !self.decoder.discovers() {
            let mut nothing = Found::default();
            let read = if self.worth_searching(&heights, &nothing).await? {
                self.search(&heights, &nothing).await?
            } else {
                self.whole(heights).await?
            };
            return Ok(self.decode(&read, &mut nothing).0);
        }
        let turn = self.turns.begin(&heights);
        if self.worth_searching(&heights, &self.turns.found()).await? {
            // What to search for shows only when everything below was decoded.
            loop {
                self.come(&turn).await?;
                let below = self.turns.found();
                let read = self.search(&heights, &below).await?;
                let as_searched = |found: &mut Found| {
                    // Another call may have gone back meanwhile, and found something else.
                    if *found != below {
                        return (None, None);
                    }
                    let (blocks, last) = self.decode(&read, found);
                    (Some(blocks), last)
                };
                if let Some(blocks) = self.turns.decode(*heights.start(), as_searched).flatten() {
                    return Ok(blocks);
                }
            }
        }
        let read = self.whole(heights.clone()).await?;
        loop {
            self.come(&turn).await?;
            if let Some(blocks) = self.turns.decode(*heights.start(), |found| self.decode(&read, found)) {
                return Ok(blocks);
            }
        }
    }

    /// Waits for this range's turn; what nobody else brings is read here.
    async fn come(&self, turn: &Turn<'_>) -> Result<(), SourceError> {
        while let Next::Nobodys(gap) = turn.come().await {
            let end = (*gap.end()).min(gap.start().plus(GAP_AT_ONCE - 1));
            tracing::debug!(from = %gap.start(), to = %end, "Reading blocks again for the contracts that they name");
            let gap = *gap.start()..=end;
            let first = *gap.start();
            let read = self.whole(gap).await?;
            // Not decoded where somebody else came first: then there is another turn to wait for.
            let _ = self.turns.decode(first, |found| self.decode(&read, found));
        }
        Ok(())
    }

    /// A node may have a block before it finds the events in it, so that a search is for blocks that are old.
    async fn worth_searching(&self, heights: &RangeInclusive<Height>, found: &Found) -> Result<bool, SourceError> {
        let worth = self.old_to.is_some_and(|old_to| *heights.end() <= old_to)
            && self.decoder.wanted(found).is_some_and(|wanted| wanted.len() <= MOST_SEARCHED);
        Ok(worth && is_old(self.endpoint, *heights.end(), NEAR_HEAD, &HEADERS).await?)
    }

    async fn whole(&self, heights: RangeInclusive<Height>) -> Result<Vec<Receipted>, SourceError> {
        let read = linked(self.endpoint, numbers(&heights), &RECEIPTS, None).await?;
        some(self.endpoint, *heights.start(), read)
    }

    /// The blocks, and the last height of them.
    fn decode(&self, read: &[Receipted], found: &mut Found) -> (Vec<Block>, Option<Height>) {
        let decoded = |read: &Receipted, found: &mut Found| {
            self.decoder.decode(read.link.height, &read.transactions, found).block(read.link.clone(), read.time)
        };
        let blocks: Vec<Block> = read.iter().map(|read| decoded(read, found)).collect();
        let last = blocks.last().map(|block| block.link.height);
        (blocks, last)
    }

    /// Old blocks, those with receipts that hold anything. `below`: what was found below them.
    async fn search(&self, heights: &RangeInclusive<Height>, below: &Found) -> Result<Vec<Receipted>, SourceError> {
        let mut receipts: BTreeMap<Height, Receipted> = BTreeMap::new();
        let mut asked: BTreeSet<Wanted> = BTreeSet::new();
        let mut found = below.clone();
        // Once around for each generation of contracts that are named within these heights.
        loop {
            let wanted = self.decoder.wanted(&found).unwrap_or_default();
            let new: Vec<Wanted> = wanted.difference(&asked).cloned().collect();
            if new.is_empty() {
                break;
            }
            let holding = search::holding(self.endpoint, &new, heights.clone(), None).await?;
            let unread = holding.blocks.keys().filter(|height| !receipts.contains_key(height));
            let unread: Vec<u64> = unread.map(|height| height.get()).collect();
            for block in linked(self.endpoint, unread, &RECEIPTS, None).await? {
                receipts.insert(block.link.height, block);
            }
            check(self.endpoint, &holding, &receipts)?;
            asked.extend(new);
            found = below.clone();
            for (height, block) in &receipts {
                self.decoder.decode(*height, &block.transactions, &mut found);
            }
        }
        // Last: what was read before is then compared with headers that are newer.
        let headers = linked(self.endpoint, numbers(heights), &HEADERS, None).await?;
        let headers = some(self.endpoint, *heights.start(), headers)?;
        let mut blocks = Vec::with_capacity(headers.len());
        for header in headers {
            let Confirmed { link, time, on_l1, transactions } = header;
            let Some(block) = receipts.remove(&link.height) else {
                blocks.push(Confirmed { link, time, on_l1, transactions: Vec::new() });
                continue;
            };
            if block.link != link {
                return Err(SourceError::Changed { height: link.height });
            }
            if !block.transactions.iter().map(|tx| tx.hash).eq(transactions) {
                return Err(self.endpoint.lies(link.height, "its receipts are not those of its transactions"));
            }
            blocks.push(block);
        }
        match receipts.keys().next() {
            Some(height) => Err(SourceError::Changed { height: *height }),
            None => Ok(blocks),
        }
    }

    /// What these contracts said at these heights, or at the first of them; and the last height covered.
    pub(super) async fn events_of(
        &self,
        contracts: &BTreeSet<Felt>,
        heights: RangeInclusive<Height>,
    ) -> Result<(Vec<Block>, Height), SourceError> {
        let wanted: Vec<Wanted> = contracts.iter().map(|a| Wanted { address: *a, selector: None }).collect();
        let holding = search::holding(self.endpoint, &wanted, heights, Some(search::BLOCKS_AT_ONCE)).await?;
        let asked: Vec<u64> = holding.blocks.keys().map(|height| height.get()).collect();
        let receipts = linked(self.endpoint, asked, &RECEIPTS, None).await?;
        let receipts: BTreeMap<Height, Receipted> =
            receipts.into_iter().map(|block| (block.link.height, block)).collect();
        check(self.endpoint, &holding, &receipts)?;
        let of_them = |read: &Receipted| {
            let decoded = self.decoder.decode_more(contracts, read.link.height, &read.transactions);
            decoded.block(read.link.clone(), read.time)
        };
        Ok((receipts.values().map(of_them).collect(), holding.through))
    }
}

/// Compares what `starknet_getEvents` told of blocks with their receipts.
fn check(endpoint: &Endpoint, holding: &Holding, receipts: &BTreeMap<Height, Receipted>) -> Result<(), SourceError> {
    for (height, hash) in &holding.blocks {
        let block = receipts.get(height).ok_or(SourceError::Changed { height: *height })?;
        if block.link.hash.as_str() != hash.to_string() {
            return Err(SourceError::Changed { height: *height });
        }
    }
    for ((height, wanted), told) in &holding.counts {
        let Some(block) = receipts.get(height) else { continue };
        let events = block.transactions.iter().flat_map(|tx| &tx.events);
        let held = events.filter(|(_, event)| wanted.fits(event)).count() as u64;
        if held < *told {
            return Err(endpoint.lies(*height, "its receipts hold fewer events than starknet_getEvents gave"));
        }
        if held > *told {
            let node = &endpoint.shown;
            tracing::warn!(%height, %node, "starknet_getEvents left out events of block {height}");
        }
    }
    Ok(())
}
