//! Logs against the headers of their blocks. Pure: nobody is asked, so the same answers always pass or fail alike.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::RangeInclusive;

use alloy_primitives::{Address, B256};

use super::decode::{LogFilter, RawLog, read_word};
use super::parse_address;
use super::wire::{Blooms, Header, PlacedLog};
use crate::chain::{Hash, Height};

/// Most addresses of a filter that are looked up in each bloom one by one: with more, some address nearly always
/// seems to be there.
const ADDRESSES_LOOKED_UP: usize = 8;

/// What headers' blooms are good for on a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BloomTrust {
    /// They hold what the block's logs hold.
    Exact,
    /// There are logs beside them, but what they hold, some log holds.
    Promise,
    /// Nothing.
    None,
}

/// Logs by the hash of their block.
pub type Logs = HashMap<Hash, Vec<RawLog>>;

/// Why a node's answers cannot be taken together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The chain changed between two answers: look again.
    #[error("block {height} was replaced meanwhile")]
    Changed {
        /// Where.
        height: Height,
    },
    /// Two things that cannot both be true.
    #[error("block {height}: {what}")]
    Lie {
        /// Where.
        height: Height,
        /// Which, in words.
        what: String,
    },
}

impl Fault {
    fn lie(height: Height, what: impl Into<String>) -> Fault {
        Fault::Lie { height, what: what.into() }
    }
}

/// Puts the logs of a range beside their blocks.
///
/// # Errors
/// A log from outside of the range, or one that the node took back.
pub fn take_range(placed: Vec<PlacedLog>, range: &RangeInclusive<Height>, logs: &mut Logs) -> Result<(), Fault> {
    for PlacedLog { height, block_hash, removed, log } in placed {
        if !range.contains(&height) {
            let what = format!("its log was given for the range {} to {}", range.start(), range.end());
            return Err(Fault::lie(height, what));
        }
        if removed {
            return Err(Fault::Changed { height });
        }
        logs.entry(block_hash).or_default().push(log);
    }
    Ok(())
}

/// What logs were asked for, and what their headers are good for.
#[derive(Debug, Clone, Copy)]
pub struct Check<'f> {
    /// Each log fits one of these.
    pub filters: &'f [LogFilter],
    /// How far headers' blooms can be believed.
    pub blooms: BloomTrust,
}

impl Check<'_> {
    /// Compares logs with headers, and drops exact copies. Returns the blocks that may hold more than was given.
    ///
    /// # Errors
    /// Logs of no block among the headers, logs that nobody asked for, that a header rules out, or that contradict
    /// each other.
    pub fn blocks(self, headers: &[Header], logs: &mut Logs) -> Result<HashSet<Hash>, Fault> {
        let known: HashSet<&Hash> = headers.iter().map(|header| &header.link.hash).collect();
        if let Some(stray) = logs.keys().find(|hash| !known.contains(hash)) {
            // The headers end early, the block was replaced between two calls, or two nodes behind one URL differ.
            tracing::debug!(block = %stray, "logs of a block that is not among the headers");
            let height = headers.last().map(|header| header.link.height).unwrap_or_default();
            return Err(Fault::Changed { height });
        }
        let mut blooms = Blooms::default();
        let mut suspects = HashSet::new();
        for header in headers {
            let found = logs.remove(&header.link.hash).unwrap_or_default();
            let found = self.logs(header, found, &mut blooms)?;
            let bloom = header.bloom.as_ref().filter(|_| self.blooms != BloomTrust::None);
            if bloom.is_some_and(|bloom| self.may_hold_more(bloom, &found, &mut blooms)) {
                suspects.insert(header.link.hash.clone());
            }
            if !found.is_empty() {
                logs.insert(header.link.hash.clone(), found);
            }
        }
        Ok(suspects)
    }

    /// Checks one block's logs: asked for, in its bloom, and no two of them at one place.
    pub(super) fn logs(self, header: &Header, logs: Vec<RawLog>, blooms: &mut Blooms) -> Result<Vec<RawLog>, Fault> {
        let height = header.link.height;
        let mut by_place: BTreeMap<(u64, u64), RawLog> = BTreeMap::new();
        let mut transactions: HashMap<u64, String> = HashMap::new();
        for log in logs {
            if !self.wants(&log) {
                return Err(Fault::lie(height, "a log that was not asked for"));
            }
            if let Some(bloom) = header.bloom.as_ref().filter(|_| self.blooms == BloomTrust::Exact)
                && !items(&log).all(|item| blooms.may_hold(bloom, item.as_ref()))
            {
                let what =
                    "a log that the header's bloom rules out (if this chain keeps no blooms: check_bloom = false)";
                return Err(Fault::lie(height, what));
            }
            let tx_hash = transactions.entry(log.tx_index).or_insert_with(|| log.tx_hash.clone());
            if *tx_hash != log.tx_hash {
                return Err(Fault::lie(height, format!("two hashes for transaction {}", log.tx_index)));
            }
            if let Some(other) = by_place.get(&(log.tx_index, log.log_index))
                && *other != log
            {
                return Err(Fault::lie(height, format!("two logs at place {}", log.log_index)));
            }
            by_place.insert((log.tx_index, log.log_index), log);
        }
        Ok(by_place.into_values().collect())
    }

    /// All of a block's logs, asked for without a filter: those that were wanted, if together they make up its bloom.
    pub(super) fn whole(self, header: &Header, all: Vec<RawLog>, blooms: &mut Blooms) -> Result<Vec<RawLog>, Fault> {
        let mut bits = [0u8; 256];
        for item in all.iter().flat_map(items) {
            blooms.add(&mut bits, item.as_ref());
        }
        // Bits too many are a log that the bloom rules out: `logs` sees to that.
        let promised = header.bloom.iter().flat_map(|bloom| bloom.iter());
        if promised.zip(&bits).any(|(promised, given)| promised & !given != 0) {
            let what = "its logs do not make up its bloom, some are missing (if this chain's blooms are not of its \
                        logs: check_bloom = false)";
            return Err(Fault::lie(header.link.height, what));
        }
        self.logs(header, all.into_iter().filter(|log| self.wants(log)).collect(), blooms)
    }

    fn wants(self, log: &RawLog) -> bool {
        self.filters.iter().any(|filter| matches(filter, log))
    }

    /// Whether the bloom promises logs, for some filter or for some token of it, of which there is none.
    fn may_hold_more(self, bloom: &[u8; 256], logs: &[RawLog], blooms: &mut Blooms) -> bool {
        self.filters.iter().any(|filter| {
            let any_topic = filter.topics0.is_empty();
            if !any_topic && !filter.topics0.iter().any(|topic| blooms.may_hold(bloom, topic.as_slice())) {
                return false;
            }
            let mine = || logs.iter().filter(|log| matches(filter, log));
            if filter.addresses.is_empty() {
                return mine().next().is_none();
            }
            let mut promised = filter.addresses.iter().filter(|a| blooms.may_hold(bloom, a.as_slice())).peekable();
            if filter.addresses.len() > ADDRESSES_LOOKED_UP {
                return promised.peek().is_some() && mine().next().is_none();
            }
            promised.any(|address| !mine().any(|log| parse_address(&log.address).as_ref() == Some(address)))
        })
    }
}

fn matches(filter: &LogFilter, log: &RawLog) -> bool {
    let topic = || log.topics.first().and_then(|topic| read_word(topic));
    let address = || parse_address(&log.address);
    (filter.topics0.is_empty() || topic().is_some_and(|topic| filter.topics0.contains(&topic)))
        && (filter.addresses.is_empty() || address().is_some_and(|a| filter.addresses.binary_search(&a).is_ok()))
}

/// What a log puts into its block's bloom.
fn items(log: &RawLog) -> impl Iterator<Item = Item> {
    let address = Item::Address(parse_address(&log.address).unwrap_or_default());
    let topics = log.topics.iter().map(|topic| Item::Topic(read_word(topic).unwrap_or_default()));
    std::iter::once(address).chain(topics)
}

/// Bytes of one or the other length.
enum Item {
    Address(Address),
    Topic(B256),
}

impl AsRef<[u8]> for Item {
    fn as_ref(&self) -> &[u8] {
        match self {
            Item::Address(address) => address.as_slice(),
            Item::Topic(topic) => topic.as_slice(),
        }
    }
}
