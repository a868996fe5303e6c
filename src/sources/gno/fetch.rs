//! Reading blocks and their transactions, and every check of specs/gno-token-balances 3.6: the indexer can lose
//! either for good and says nothing, so what it gives is counted and its links are followed.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::decode::{Decoded, Decoder};
use super::endpoint::{Endpoint, Size};
use super::gaps::Gaps;
use super::wire::{HeadData, Indexes, NO_HASH, PageData, Query, WireBlock, WireTransaction, is_hash, synthetic_hash};
use crate::chain::{Block, Hash, Height, Link, Reject, Text, TokenEvent, Transaction};
use crate::sources::{SourceError, TokenMetadata};

/// Most blocks asked for without their transactions: below the server's 10,000 of anything.
const MOST_HEADERS: u64 = 9_000;
/// Heights looked through for a block below a head that is missing.
const BELOW_HEAD: u64 = 100;
/// Transactions of one block read at once when all of them are too many.
const PART: u64 = 1_000;
/// Longest hash of a transaction; the chain's own has 44 characters.
const LONGEST_TX_HASH: usize = 128;
/// Most transactions of a block that are named as lost.
const MOST_NAMED: usize = 1_000;
/// What a loss that an operator accepted is recorded as.
const INCOMPLETE: &str = "incomplete_block";

/// What one read needs.
pub(super) struct Fetch<'a> {
    pub(super) endpoint: &'a Endpoint,
    pub(super) decoder: &'a Decoder,
    /// What every block must name; none: not known yet.
    pub(super) chain_id: Option<&'a str>,
}

/// A page as far as it is whole.
pub(super) struct Page {
    pub(super) blocks: Vec<Block>,
    pub(super) announced: Vec<(Place, TokenMetadata)>,
    /// Where it is not whole. The blocks end before the first of these.
    pub(super) gaps: Vec<Gap>,
}

/// Height, transaction, event.
pub(super) type Place = (u64, u64, u64);

/// A block that is missing, or lacks transactions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gap {
    pub(super) height: u64,
    pub(super) what: String,
}

impl Fetch<'_> {
    /// The newest height that the indexer names; no promise that anything is there.
    pub(super) async fn head_height(&self) -> Result<u64, SourceError> {
        let head: HeadData = self.endpoint.ask(&Query::head(), Size::Least).await?;
        u64::try_from(head.latest_block_height)
            .ok()
            .and_then(Height::new)
            .map(Height::get)
            .ok_or_else(|| self.endpoint.transient(format!("names the head {}", head.latest_block_height)))
    }

    /// The highest block at or below this height; some may be missing just below the head.
    pub(super) async fn highest_at(&self, height: u64) -> Result<Link, SourceError> {
        let mut to = height;
        for width in [1, BELOW_HEAD, MOST_HEADERS] {
            let from = (to + 1).saturating_sub(width).max(1).min(to);
            if let Some(highest) = self.links(from, to).await?.pop() {
                return Ok(highest);
            }
            if from == 0 {
                break;
            }
            to = from - 1;
        }
        Err(self.endpoint.transient(format!("names the head {height}, but gives no block at or below it")))
    }

    /// What the network calls itself, said by a block near the head.
    pub(super) async fn chain_id(&self) -> Result<String, SourceError> {
        let head = self.head_height().await?;
        let from = (head + 1).saturating_sub(BELOW_HEAD).max(1).min(head);
        let newest = self.headers(from, head).await?.pop();
        newest.map(|block| block.chain_id).ok_or_else(|| self.endpoint.transient("gives no block below its head"))
    }

    /// Genesis, if the indexer has it.
    pub(super) async fn genesis(&self) -> Result<Option<Link>, SourceError> {
        Ok(self.headers(0, 0).await?.pop().map(|block| link(&block, None)))
    }

    /// Blocks without their transactions, ascending, those that are there. Several heights must not begin with genesis.
    async fn headers(&self, from: u64, to: u64) -> Result<Vec<WireBlock>, SourceError> {
        let data: PageData = self.endpoint.ask(&Query::headers(from, to), Size::Least).await?;
        self.checked(from, to, data.get_blocks.unwrap_or_default())
    }

    /// Names of the blocks that are there.
    pub(super) async fn links(&self, from: u64, to: u64) -> Result<Vec<Link>, SourceError> {
        let mut links = Vec::new();
        let genesis = if from <= 1 { self.genesis().await? } else { None };
        if from == 0 {
            links.extend(genesis.clone());
        }
        let mut at = from.max(1);
        while at <= to {
            let last = to.min(at + MOST_HEADERS - 1);
            links.extend(self.headers(at, last).await?.iter().map(|block| link(block, genesis.as_ref())));
            at = last + 1;
        }
        Ok(links)
    }

    /// As `links`, with names for the blocks that are missing: the one below a block that is there is named by it, the
    /// others are named after that one. The same on every call, as long as nothing is repaired.
    pub(super) async fn links_without_gaps(&self, from: u64, to: u64) -> Result<Vec<Link>, SourceError> {
        let below = from.saturating_sub(1);
        let mut known: BTreeMap<u64, Link> = self.by_height(below, to).await?;
        // The run that the range begins or ends in may go on outside of it.
        let mut at = to;
        while !known.range(to..).any(|_| true) {
            let more = self.by_height(at + 1, at + MOST_HEADERS).await?;
            if more.is_empty() {
                // Nothing above it names it: it cannot be named yet.
                break;
            }
            known.extend(more);
            at += MOST_HEADERS;
        }
        let chain = self.chain_id.unwrap_or_default();
        let named = |height: u64| -> Option<Hash> {
            let (above, next) = known.range(height..).next()?;
            Some(match above - height {
                0 => next.hash.clone(),
                1 => next.parent_hash.clone(),
                _ => synthetic_hash(&format!("gno-missing|{chain}|{height}|{}", next.parent_hash)),
            })
        };
        let mut links = Vec::new();
        for height in from..=to {
            let parent = match (known.get(&height), height) {
                (Some(link), _) => Some(link.parent_hash.clone()),
                (None, 0) => Some(Hash::new(NO_HASH)),
                (None, height) => named(height - 1),
            };
            let (Some(at), Some(hash), Some(parent_hash)) = (Height::new(height), named(height), parent) else { break };
            links.push(Link { height: at, hash, parent_hash });
        }
        Ok(links)
    }

    async fn by_height(&self, from: u64, to: u64) -> Result<BTreeMap<u64, Link>, SourceError> {
        Ok(self.links(from, to).await?.into_iter().map(|link| (link.height.get(), link)).collect())
    }

    /// The blocks at these heights with all they hold, from the front as far as they are whole. Several heights must
    /// not begin with genesis. `accept`: what is lacking and old in here is done
    /// without.
    pub(super) async fn page(&self, from: u64, to: u64, accept: Option<&Gaps>) -> Result<Page, SourceError> {
        let accepted = |height| accept.is_some_and(|gaps| gaps.is_old(height));
        let query = Query::page(from, to, self.decoder.require_func);
        let data: PageData = match self.endpoint.ask(&query, Size::Divisible).await {
            Err(SourceError::RangeTooLarge { .. }) if from == to => self.in_parts(from).await?,
            data => data?,
        };
        let blocks = self.checked(from, to, data.get_blocks.unwrap_or_default())?;
        let mut blocks: BTreeMap<u64, WireBlock> = blocks.into_iter().map(|block| (block.height, block)).collect();
        let mut of_height = self.by_block(from, to, data.get_transactions.unwrap_or_default())?;
        let genesis = if from == 1 { self.genesis().await? } else { None };
        let mut page = Page { blocks: Vec::new(), announced: Vec::new(), gaps: Vec::new() };
        for height in from..=to {
            let transactions = of_height.remove(&height).unwrap_or_default();
            let Some(block) = blocks.remove(&height) else {
                // Only as the first one: its name is looked up, and the page already holds the answer for what follows.
                let in_name_alone = if height == from && accepted(height) { self.missing(height).await? } else { None };
                match in_name_alone {
                    Some(block) => page.blocks.push(block),
                    None => page.gaps.push(Gap { height, what: format!("block {height} is missing below the head") }),
                }
                continue;
            };
            if let Some(beyond) = transactions.keys().next_back().filter(|index| **index >= block.num_txs) {
                let what = format!("block {height} has {} transactions, but one is number {beyond}", block.num_txs);
                return Err(self.endpoint.transient(what));
            }
            let lacks = block.num_txs - transactions.len() as u64;
            if lacks > 0 && !accepted(height) {
                let what = format!("block {height} lacks {lacks} of its {} transactions", block.num_txs);
                page.gaps.push(Gap { height, what });
            }
            if !page.gaps.is_empty() {
                continue;
            }
            let link = link(&block, genesis.as_ref());
            self.check_parent(page.blocks.last(), &link)?;
            // The count is the server's word: it may be anything.
            let missing = (0..block.num_txs).filter(|index| !transactions.contains_key(index));
            let missing: Vec<u64> = missing.take(MOST_NAMED).collect();
            let mut taken = self.take(&block, link, transactions, &mut page.announced)?;
            if let Some(first) = missing.first() {
                let raw = json!({"height": height, "num_txs": block.num_txs, "missing": missing});
                let reason = INCOMPLETE.to_owned();
                taken.rejects.push(Reject { tx_index: *first, event_index: 0, raw, reason });
                taken.rejects.sort_by_key(|reject| (reject.tx_index, reject.event_index));
            }
            page.blocks.push(taken);
        }
        Ok(page)
    }

    /// A block that is not there, by its name alone; its loss is recorded with it.
    async fn missing(&self, height: u64) -> Result<Option<Block>, SourceError> {
        let Some(link) = self.links_without_gaps(height, height).await?.pop() else { return Ok(None) };
        let raw = json!({"height": height, "missing": "block"});
        let reject = Reject { tx_index: 0, event_index: 0, raw, reason: INCOMPLETE.to_owned() };
        Ok(Some(Block {
            link,
            time: None,
            transactions: Vec::new(),
            token_events: Vec::new(),
            events: Vec::new(),
            rejects: vec![reject],
        }))
    }

    /// One block that holds more than the server gives at once: its transactions by ranges of their index.
    async fn in_parts(&self, height: u64) -> Result<PageData, SourceError> {
        let blocks: PageData = self.endpoint.ask(&Query::headers(height, height), Size::Least).await?;
        let count = blocks.get_blocks.as_deref().and_then(|blocks| blocks.first()).map_or(0, |block| block.num_txs);
        let mut transactions = Vec::new();
        let (mut from, mut width) = (0, PART);
        // The count is the server's word, and a transaction that it never stored leaves a range empty: where nothing is,
        // the next range is twice as wide, so that few questions tell whether anything comes after it.
        while from < count {
            let indexes = Indexes { from, to_exclusive: from.saturating_add(width).min(count) };
            let size = if indexes.to_exclusive - from > 1 { Size::Divisible } else { Size::Least };
            let query = Query::transactions(height, indexes, self.decoder.require_func);
            match self.endpoint.ask::<PageData>(&query, size).await {
                Err(SourceError::RangeTooLarge { .. }) => width = ((indexes.to_exclusive - from) / 2).max(1),
                part => {
                    let part = part?.get_transactions.unwrap_or_default();
                    if part.is_empty() {
                        width = width.saturating_mul(2);
                    }
                    transactions.extend(part);
                    from = indexes.to_exclusive;
                }
            }
        }
        Ok(PageData { get_transactions: Some(transactions), ..blocks })
    }

    /// In ascending order, each of them one that was asked for and of our chain.
    fn checked(&self, from: u64, to: u64, mut blocks: Vec<WireBlock>) -> Result<Vec<WireBlock>, SourceError> {
        blocks.sort_by_key(|block| block.height);
        for (n, block) in blocks.iter().enumerate() {
            let height = block.height;
            let fault = |what: String| Err(self.endpoint.transient(what));
            if !(from..=to).contains(&height) {
                return fault(format!("block {height} came, but {from} to {to} were asked for"));
            }
            if n > 0 && blocks[n - 1].height == height {
                return fault(format!("block {height} came twice"));
            }
            // Genesis has no hash, and block 1 then none of its parent.
            let named = is_hash(&block.hash) || (height == 0 && block.hash.is_empty());
            let linked = is_hash(&block.last_block_hash) || (height <= 1 && block.last_block_hash.is_empty());
            if !named || !linked {
                let (hash, parent) = (&block.hash, &block.last_block_hash);
                return fault(format!("block {height} names itself {hash:?} and its parent {parent:?}"));
            }
            if self.chain_id.is_some_and(|chain_id| chain_id != block.chain_id) {
                let (is, expected) = (&block.chain_id, self.chain_id.unwrap_or_default());
                return Err(self.endpoint.permanent(format!("block {height} is of chain {is}, expected {expected}")));
            }
        }
        Ok(blocks)
    }

    /// Transactions by block and place; each one that was asked for, and none twice.
    fn by_block(
        &self,
        from: u64,
        to: u64,
        transactions: Vec<WireTransaction>,
    ) -> Result<BTreeMap<u64, BTreeMap<u64, WireTransaction>>, SourceError> {
        let mut of_height: BTreeMap<u64, BTreeMap<u64, WireTransaction>> = BTreeMap::new();
        for transaction in transactions {
            let (height, index) = (transaction.block_height, transaction.index);
            if !(from..=to).contains(&height) {
                let what = format!("a transaction of block {height} came, but {from} to {to} were asked for");
                return Err(self.endpoint.transient(what));
            }
            if of_height.entry(height).or_default().insert(index, transaction).is_some() {
                let what = format!("transaction {index} of block {height} came twice");
                return Err(self.endpoint.transient(what));
            }
        }
        Ok(of_height)
    }

    fn check_parent(&self, before: Option<&Block>, link: &Link) -> Result<(), SourceError> {
        match before {
            Some(before) if before.link.hash != link.parent_hash => Err(self.endpoint.transient(format!(
                "block {} names the parent {}, but the one before it is {}",
                link.height, link.parent_hash, before.link.hash
            ))),
            _ => Ok(()),
        }
    }

    fn take(
        &self,
        block: &WireBlock,
        link: Link,
        transactions: BTreeMap<u64, WireTransaction>,
        announced: &mut Vec<(Place, TokenMetadata)>,
    ) -> Result<Block, SourceError> {
        let mut decoded = Decoded::default();
        let mut hashes: BTreeMap<u64, Text> = BTreeMap::new();
        for (index, transaction) in transactions {
            let hash = &transaction.hash;
            if hash.is_empty() || hash.len() > LONGEST_TX_HASH || !hash.bytes().all(|b| b.is_ascii_graphic()) {
                let what = format!("transaction {index} of block {} names itself {hash:?}", block.height);
                return Err(self.endpoint.transient(what));
            }
            // Older chains kept the events of transactions that failed.
            if !transaction.success {
                continue;
            }
            self.decoder.take(index, transaction.response.events.as_deref().unwrap_or_default(), &mut decoded);
            hashes.insert(index, Text::from(transaction.hash));
        }
        announced.extend(decoded.announced.drain(..).map(|((tx, event), found)| ((block.height, tx, event), found)));
        let kept: BTreeSet<u64> = positions(&decoded).collect();
        let transactions = hashes
            .into_iter()
            .filter(|(index, _)| kept.contains(index))
            .map(|(tx_index, hash)| Transaction { tx_index, hash, success: true })
            .collect();
        Ok(Block {
            link,
            time: block.time.parse().ok(),
            transactions,
            token_events: decoded.token_events,
            events: decoded.events,
            rejects: decoded.rejects,
        })
    }
}

fn positions(decoded: &Decoded) -> impl Iterator<Item = u64> {
    let moved = decoded.token_events.iter().map(|event: &TokenEvent| event.tx_index);
    let said = decoded.events.iter().map(|event| event.tx_index);
    moved.chain(said).chain(decoded.rejects.iter().map(|reject| reject.tx_index))
}

/// A block's name. Genesis is named after its chain and time, and is the parent of a block 1 that names none.
fn link(block: &WireBlock, genesis: Option<&Link>) -> Link {
    let hash = if block.hash.is_empty() {
        synthetic_hash(&format!("gno-genesis|{}|{}", block.chain_id, block.time))
    } else {
        Hash::new(block.hash.as_str())
    };
    let parent_hash = match (block.last_block_hash.as_str(), block.height, genesis) {
        ("", 1, Some(genesis)) => genesis.hash.clone(),
        ("", ..) => Hash::new(NO_HASH),
        (parent, ..) => Hash::new(parent),
    };
    Link { height: Height::new(block.height).unwrap_or(Height::MAX), hash, parent_hash }
}
