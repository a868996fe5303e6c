//! An indexer's answer as blocks. Pure: every check of specs/gno-token-balances 3.6 that needs nobody to be asked.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::decode::{Decoded, Decoder};
use super::wire::{NO_HASH, PageData, WireBlock, WireTransaction, is_hash, synthetic_hash};
use crate::chain::{Block, Hash, Height, Link, Reject, Text, TokenEvent, Transaction};
use crate::sources::TokenMetadata;

/// Longest hash of a transaction; the chain's own has 44 characters.
const LONGEST_TX_HASH: usize = 128;
/// Most transactions of a block that are named as lost.
const MOST_NAMED: usize = 1_000;
/// What a loss that an operator accepted is recorded as.
pub(super) const INCOMPLETE: &str = "incomplete_block";

/// A page as far as it is whole.
#[derive(Debug)]
pub struct Page {
    /// Ascending, without a hole, each naming the one before it.
    pub blocks: Vec<Block>,
    /// Tokens announced in them, with the places of their announcements.
    pub announced: Vec<(Place, TokenMetadata)>,
    /// Where it is not whole. The blocks end before the first of these.
    pub gaps: Vec<Gap>,
}

/// Height, transaction, event.
pub type Place = (u64, u64, u64);

/// A block that is missing, or lacks transactions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// Its height.
    pub height: u64,
    /// What is lacking, in words.
    pub what: String,
}

/// Why an answer cannot be taken, in words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Not what was asked for, or two things that cannot both be true; it may pass.
    #[error("{0}")]
    Passing(String),
    /// Another chain's answer.
    #[error("{0}")]
    OtherChain(String),
}

/// What was asked for.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The first height.
    pub from: u64,
    /// The last height.
    pub to: u64,
    /// What every block must name; None means not known yet.
    pub chain_id: Option<&'a str>,
}

/// What an answer gave, each part of it one that was asked for.
#[derive(Debug)]
pub struct Given<'a> {
    asked: Asked<'a>,
    blocks: BTreeMap<u64, WireBlock>,
    transactions: BTreeMap<u64, BTreeMap<u64, WireTransaction>>,
    /// The parent of a block 1 that names none, where there is one.
    pub(super) genesis: Option<Link>,
    /// Stands for the first block, where that is lost for good.
    pub(super) first_in_name_alone: Option<Block>,
}

impl<'a> Given<'a> {
    /// Sorts an answer by heights.
    ///
    /// # Errors
    /// What was not asked for, came twice or is no block.
    pub fn new(data: PageData, asked: Asked<'a>) -> Result<Given<'a>, Fault> {
        let blocks = checked(data.get_blocks.unwrap_or_default(), asked)?;
        let blocks = blocks.into_iter().map(|block| (block.height, block)).collect();
        let transactions = by_block(data.get_transactions.unwrap_or_default(), asked)?;
        Ok(Given { asked, blocks, transactions, genesis: None, first_in_name_alone: None })
    }

    pub(super) fn holds(&self, height: u64) -> bool {
        self.blocks.contains_key(&height)
    }

    /// The blocks with all they hold, from the front as far as they are whole. What a block lacks at an `accepted`
    /// height is done without.
    ///
    /// # Errors
    /// Blocks that are not linked, or transactions that cannot be.
    pub fn page(mut self, decoder: &Decoder, accepted: impl Fn(u64) -> bool) -> Result<Page, Fault> {
        let Asked { from, to, .. } = self.asked;
        let mut page = Page { blocks: Vec::new(), announced: Vec::new(), gaps: Vec::new() };
        for height in from..=to {
            let transactions = self.transactions.remove(&height).unwrap_or_default();
            let Some(block) = self.blocks.remove(&height) else {
                match self.first_in_name_alone.take().filter(|_| height == from) {
                    Some(block) => page.blocks.push(block),
                    None => page.gaps.push(Gap { height, what: format!("block {height} is missing below the head") }),
                }
                continue;
            };
            if let Some(beyond) = transactions.keys().next_back().filter(|index| **index >= block.num_txs) {
                let what = format!("block {height} has {} transactions, but one is number {beyond}", block.num_txs);
                return Err(Fault::Passing(what));
            }
            let lacks = block.num_txs - transactions.len() as u64;
            if lacks > 0 && !accepted(height) {
                let what = format!("block {height} lacks {lacks} of its {} transactions", block.num_txs);
                page.gaps.push(Gap { height, what });
            }
            if !page.gaps.is_empty() {
                continue;
            }
            let link = link(&block, self.genesis.as_ref());
            check_parent(page.blocks.last(), &link)?;
            // The count is the server's word: it may be anything.
            let missing = (0..block.num_txs).filter(|index| !transactions.contains_key(index));
            let missing: Vec<u64> = missing.take(MOST_NAMED).collect();
            let mut taken = take(decoder, &block, link, transactions, &mut page.announced)?;
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
}

/// In ascending order, each of them one that was asked for and of our chain.
pub(super) fn checked(mut blocks: Vec<WireBlock>, asked: Asked<'_>) -> Result<Vec<WireBlock>, Fault> {
    blocks.sort_by_key(|block| block.height);
    for (n, block) in blocks.iter().enumerate() {
        let height = block.height;
        let fault = |what: String| Err(Fault::Passing(what));
        if !(asked.from..=asked.to).contains(&height) {
            return fault(format!("block {height} came, but {} to {} were asked for", asked.from, asked.to));
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
        if let Some(expected) = asked.chain_id.filter(|chain_id| *chain_id != block.chain_id) {
            let is = &block.chain_id;
            return Err(Fault::OtherChain(format!("block {height} is of chain {is}, expected {expected}")));
        }
    }
    Ok(blocks)
}

/// Transactions by block and place; each one that was asked for, and none twice.
fn by_block(
    transactions: Vec<WireTransaction>,
    asked: Asked<'_>,
) -> Result<BTreeMap<u64, BTreeMap<u64, WireTransaction>>, Fault> {
    let mut of_height: BTreeMap<u64, BTreeMap<u64, WireTransaction>> = BTreeMap::new();
    for transaction in transactions {
        let (height, index) = (transaction.block_height, transaction.index);
        if !(asked.from..=asked.to).contains(&height) {
            let Asked { from, to, .. } = asked;
            let what = format!("a transaction of block {height} came, but {from} to {to} were asked for");
            return Err(Fault::Passing(what));
        }
        if of_height.entry(height).or_default().insert(index, transaction).is_some() {
            return Err(Fault::Passing(format!("transaction {index} of block {height} came twice")));
        }
    }
    Ok(of_height)
}

fn check_parent(before: Option<&Block>, link: &Link) -> Result<(), Fault> {
    match before {
        Some(before) if before.link.hash != link.parent_hash => Err(Fault::Passing(format!(
            "block {} names the parent {}, but the one before it is {}",
            link.height, link.parent_hash, before.link.hash
        ))),
        _ => Ok(()),
    }
}

fn take(
    decoder: &Decoder,
    block: &WireBlock,
    link: Link,
    transactions: BTreeMap<u64, WireTransaction>,
    announced: &mut Vec<(Place, TokenMetadata)>,
) -> Result<Block, Fault> {
    let mut decoded = Decoded::default();
    let mut hashes: BTreeMap<u64, Text> = BTreeMap::new();
    for (index, transaction) in transactions {
        let hash = &transaction.hash;
        if hash.is_empty() || hash.len() > LONGEST_TX_HASH || !hash.bytes().all(|b| b.is_ascii_graphic()) {
            let what = format!("transaction {index} of block {} names itself {hash:?}", block.height);
            return Err(Fault::Passing(what));
        }
        // Older chains kept the events of transactions that failed.
        if !transaction.success {
            continue;
        }
        decoder.take(index, transaction.response.events.as_deref().unwrap_or_default(), &mut decoded);
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

fn positions(decoded: &Decoded) -> impl Iterator<Item = u64> {
    let moved = decoded.token_events.iter().map(|event: &TokenEvent| event.tx_index);
    let said = decoded.events.iter().map(|event| event.tx_index);
    moved.chain(said).chain(decoded.rejects.iter().map(|reject| reject.tx_index))
}

/// A block's name. Genesis is named after its chain and time, and is the parent of a block 1 that names none.
pub(super) fn link(block: &WireBlock, genesis: Option<&Link>) -> Link {
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
