//! Blocks from one endpoint, each checked against the one before it.
//!
//! Near the head, and wherever every token is wanted, whole blocks are read with their receipts. Deep in history, where
//! contracts are listed, `starknet_getEvents` tells which blocks hold anything; those are read with their receipts,
//! since only they tell an event's exact place in every version of the specification, and of the others only headers.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use serde_json::json;
use serde_json::value::RawValue;

use super::decode::{Decoded, Decoder, RawTransaction, Wanted};
use super::follow::{Found, Next, Turn, Turns};
use super::search::{self, Holding};
use super::wire::{self, Confirmed};
use crate::chain::felt::Felt;
use crate::chain::{Block, Height};
use crate::sources::SourceError;
use crate::sources::rpc::endpoint::{Answer, Call, Endpoint};
use crate::sources::rpc::fault::Verdict;

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

/// Reads one block; none for what is not a confirmed block.
type Read<T> = fn(&RawValue) -> Result<Option<Confirmed<T>>, String>;

/// How blocks are asked for.
struct Form<T> {
    method: &'static str,
    read: Read<T>,
    /// Requests under way at once for one call of ours.
    requests: usize,
}

const HEADERS: Form<Felt> = Form { method: WITH_HASHES, read: wire::with_hashes, requests: 4 };
/// These are large: each answer is given back before the next one is asked for.
const RECEIPTS: Form<RawTransaction> = Form { method: WITH_RECEIPTS, read: wire::with_receipts, requests: 1 };

/// Names and transactions of the blocks at these heights; it ends at the first one that the node does not have.
pub(super) async fn headers(
    endpoint: &Endpoint,
    heights: RangeInclusive<Height>,
) -> Result<Vec<Confirmed<Felt>>, SourceError> {
    linked(endpoint, numbers(&heights), &HEADERS).await
}

/// The call for a block's header.
pub(super) fn header_call(block: serde_json::Value) -> Call {
    Call::new(WITH_HASHES, json!({ "block_id": block }))
}

/// One header out of an answer; none for null, which is also what a node's "unknown block" means.
pub(super) fn read_header(
    endpoint: &Endpoint,
    call: &Call,
    answer: Answer,
) -> Result<Option<Confirmed<Felt>>, SourceError> {
    read_block(endpoint, call, answer, wire::with_hashes)
}

fn read_block<T>(
    endpoint: &Endpoint,
    call: &Call,
    answer: Answer,
    read: Read<T>,
) -> Result<Option<Confirmed<T>>, SourceError> {
    match answer {
        Ok(raw) => read(&raw).map_err(|what| endpoint.transient(what)),
        Err(error) if endpoint.verdict(call.method, &error) == Verdict::UnknownBlock => Ok(None),
        Err(error) => Err(endpoint.refused(call, &error, None)),
    }
}

fn numbers(heights: &RangeInclusive<Height>) -> Vec<u64> {
    (heights.start().get()..=heights.end().get()).collect()
}

/// Blocks at these heights (ascending), each the one asked for and, where they follow one another, linked.
async fn linked<T>(endpoint: &Endpoint, heights: Vec<u64>, form: &Form<T>) -> Result<Vec<Confirmed<T>>, SourceError> {
    let mut blocks: Vec<Confirmed<T>> = Vec::with_capacity(heights.len());
    let mut missing = None;
    for part in heights.chunks(endpoint.dialect.most_calls * form.requests) {
        let call = |height: &u64| Call::new(form.method, json!({ "block_id": { "block_number": height } }));
        let calls: Vec<Call> = part.iter().map(call).collect();
        let answers = endpoint.ask(&calls).await?;
        for ((height, call), answer) in part.iter().zip(&calls).zip(answers) {
            let Some(block) = read_block(endpoint, call, answer, form.read)? else {
                missing.get_or_insert(*height);
                continue;
            };
            let found = block.link.height;
            if found.get() != *height {
                return Err(endpoint.transient(format!("asked for block {height}, it gave block {found}")));
            }
            if let Some(missing) = missing {
                return Err(endpoint.transient(format!("it has block {found} but not block {missing}")));
            }
            let unlinked = |before: &Confirmed<T>| {
                before.link.height.next() == found && before.link.hash != block.link.parent_hash
            };
            if blocks.last().is_some_and(unlinked) {
                return Err(SourceError::Changed { height: found });
            }
            blocks.push(block);
        }
        if missing.is_some() {
            break;
        }
    }
    Ok(blocks)
}

impl Fetch<'_> {
    /// The blocks at these heights, or at the first of them.
    pub(super) async fn blocks(&self, heights: RangeInclusive<Height>) -> Result<Vec<Block>, SourceError> {
        if !self.decoder.discovers() {
            let mut nothing = Found::default();
            let read = if self.worth_searching(&heights, &nothing) {
                self.search(&heights, &nothing).await?
            } else {
                self.whole(heights).await?
            };
            return Ok(self.decode(&read, &mut nothing).0);
        }
        let turn = self.turns.begin(&heights);
        if self.worth_searching(&heights, &self.turns.found()) {
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

    fn worth_searching(&self, heights: &RangeInclusive<Height>, found: &Found) -> bool {
        self.old_to.is_some_and(|old_to| *heights.end() <= old_to)
            && self.decoder.wanted(found).is_some_and(|wanted| wanted.len() <= MOST_SEARCHED)
    }

    async fn whole(&self, heights: RangeInclusive<Height>) -> Result<Vec<Receipted>, SourceError> {
        let first = *heights.start();
        let read = linked(self.endpoint, numbers(&heights), &RECEIPTS).await?;
        self.some(first, read)
    }

    fn some<T>(&self, first: Height, read: Vec<T>) -> Result<Vec<T>, SourceError> {
        if read.is_empty() {
            return Err(self.endpoint.lies(first, "it is not there, though the head is not below it"));
        }
        Ok(read)
    }

    /// The blocks, and the last height of them.
    fn decode(&self, read: &[Receipted], found: &mut Found) -> (Vec<Block>, Option<Height>) {
        let decoded = |read: &Receipted, found: &mut Found| {
            self.block(read, self.decoder.decode(read.link.height, &read.transactions, found))
        };
        let blocks: Vec<Block> = read.iter().map(|read| decoded(read, found)).collect();
        let last = blocks.last().map(|block| block.link.height);
        (blocks, last)
    }

    fn block(&self, read: &Receipted, decoded: Decoded) -> Block {
        Block {
            link: read.link.clone(),
            time: read.time,
            transactions: decoded.transactions,
            token_events: decoded.token_events,
            events: decoded.events,
            rejects: decoded.rejects,
        }
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
            for block in linked(self.endpoint, unread, &RECEIPTS).await? {
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
        let headers = self.some(*heights.start(), headers(self.endpoint, heights.clone()).await?)?;
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
        let receipts = linked(self.endpoint, asked, &RECEIPTS).await?;
        let receipts: BTreeMap<Height, Receipted> =
            receipts.into_iter().map(|block| (block.link.height, block)).collect();
        check(self.endpoint, &holding, &receipts)?;
        let of_them = |read: &Receipted| {
            self.block(read, self.decoder.decode_more(contracts, read.link.height, &read.transactions))
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
