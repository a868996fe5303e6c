//! Reading blocks and their transactions, and every check of specs/gno-token-balances 3.6: the indexer can lose
//! either for good and says nothing, so what it gives is counted and its links are followed.

use std::collections::BTreeMap;

use serde_json::json;

use super::decode::Decoder;
use super::endpoint::{Endpoint, Size};
use super::gaps::Gaps;
use super::page::{self, Asked, Fault, Given, INCOMPLETE, Page, link};
use super::wire::{HeadData, Indexes, NO_HASH, PageData, Query, WireBlock, synthetic_hash};
use crate::chain::{Block, Hash, Height, Link, Reject};
use crate::sources::SourceError;

/// Most blocks asked for without their transactions: below the server's 10,000 of anything.
const MOST_HEADERS: u64 = 9_000;
/// Heights looked through for a block below a head that is missing.
const BELOW_HEAD: u64 = 100;
/// Transactions of one block read at once when all of them are too many.
const PART: u64 = 1_000;

/// What one read needs.
pub(super) struct Fetch<'a> {
    pub(super) endpoint: &'a Endpoint,
    pub(super) decoder: &'a Decoder,
    /// What every block must name; None means not known yet.
    pub(super) chain_id: Option<&'a str>,
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
        page::checked(data.get_blocks.unwrap_or_default(), self.asked(from, to)).map_err(|fault| self.fault(fault))
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
    /// not begin with genesis. `accept`: what is lacking and old in here is done without.
    pub(super) async fn page(&self, from: u64, to: u64, accept: Option<&Gaps>) -> Result<Page, SourceError> {
        let accepted = |height| accept.is_some_and(|gaps| gaps.is_old(height));
        let query = Query::page(from, to, self.decoder.require_func);
        let data: PageData = match self.endpoint.ask(&query, Size::Divisible).await {
            Err(SourceError::RangeTooLarge { .. }) if from == to => self.in_parts(from).await?,
            data => data?,
        };
        let mut given = Given::new(data, self.asked(from, to)).map_err(|fault| self.fault(fault))?;
        given.genesis = if from == 1 { self.genesis().await? } else { None };
        // Only the first one: its name is looked up, and the page already holds the answer for what follows.
        if !given.holds(from) && accepted(from) {
            given.first_in_name_alone = self.missing(from).await?;
        }
        given.page(self.decoder, accepted).map_err(|fault| self.fault(fault))
    }

    fn asked(&self, from: u64, to: u64) -> Asked<'_> {
        Asked { from, to, chain_id: self.chain_id }
    }

    fn fault(&self, fault: Fault) -> SourceError {
        match fault {
            Fault::Passing(what) => self.endpoint.transient(what),
            Fault::OtherChain(what) => self.endpoint.permanent(what),
        }
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
}
