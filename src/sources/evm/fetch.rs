//! Blocks with their logs from one endpoint, each checked against the header it belongs to.
//!
//! Near the head logs are asked for by block hash, so that an answer can only be of that block. Deep in history they
//! are asked for by range, and the hash in each log is compared with the header at its height.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::RangeInclusive;

use alloy_primitives::hex;
use serde_json::{Value, json};

use super::decode::{Decoder, LogFilter, RawLog};
use super::factory::{Following, Made};
use super::wire::{self, Blooms, Header, PlacedLog};
use super::{parse_address, wire::quantity};
use crate::chain::{Block, Hash, Height, Link};
use crate::sources::SourceError;
use crate::sources::rpc::endpoint::{Answer, Call, Endpoint};
use crate::sources::rpc::fault::Verdict;

/// Blocks that are read by hash in one go.
const BY_HASH_AT_ONCE: u64 = 64;
/// Most addresses of a filter that are looked up in each bloom one by one: with more, some address nearly always
/// seems to be there.
const ADDRESSES_LOOKED_UP: usize = 8;

/// How far below the head blocks are read by hash.
pub(super) const NEAR_HEAD: u64 = 64;

/// What headers' blooms are good for on a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BloomTrust {
    /// They hold what the block's logs hold.
    Exact,
    /// There are logs beside them, but what they hold, some log holds.
    Promise,
    /// Nothing.
    None,
}

/// What a fetch needs to know besides the heights and what to look for.
pub(super) struct Fetch<'f> {
    pub(super) endpoint: &'f Endpoint,
    pub(super) decoder: &'f Decoder,
    /// How far headers' blooms can be believed.
    pub(super) blooms: BloomTrust,
    /// Up to here the chain is old enough to be read by range.
    pub(super) old_to: Option<Height>,
}

/// The headers at these heights; it ends at the first one that the node does not have.
///
/// # Errors
/// `Changed` when one does not name the one before it as its parent.
pub(super) async fn headers(endpoint: &Endpoint, heights: RangeInclusive<Height>) -> Result<Vec<Header>, SourceError> {
    let asked: Vec<u64> = (heights.start().get()..=heights.end().get()).collect();
    let calls: Vec<Call> = asked.iter().map(|h| header_call(&format!("{h:#x}"))).collect();
    let answers = endpoint.ask(&calls).await?;
    let mut headers: Vec<Header> = Vec::with_capacity(asked.len());
    let mut missing = None;
    for ((height, call), answer) in asked.into_iter().zip(&calls).zip(answers) {
        let Some(header) = read_header(endpoint, call, answer)? else {
            missing.get_or_insert(height);
            continue;
        };
        let found = header.link.height;
        if found.get() != height {
            return Err(endpoint.transient(format!("asked for block {height}, it gave block {found}")));
        }
        if let Some(missing) = missing {
            return Err(endpoint.transient(format!("it has block {found} but not block {missing}")));
        }
        if headers.last().is_some_and(|before| before.link.hash != header.link.parent_hash) {
            return Err(SourceError::Changed { height: found });
        }
        headers.push(header);
    }
    Ok(headers)
}

pub(super) fn header_call(block: &str) -> Call {
    Call::new("eth_getBlockByNumber", json!([block, false]))
}

/// One header out of an answer; none for null, which is also what a node's "unknown block" means.
pub(super) fn read_header(endpoint: &Endpoint, call: &Call, answer: Answer) -> Result<Option<Header>, SourceError> {
    match answer {
        Ok(raw) => wire::header(&raw).map_err(|what| endpoint.transient(what)),
        Err(error) if endpoint.verdict(call.method, &error) == Verdict::UnknownBlock => Ok(None),
        Err(error) => Err(endpoint.refused(call, &error, None)),
    }
}

/// Names of the blocks at these heights.
pub(super) async fn links(endpoint: &Endpoint, heights: RangeInclusive<Height>) -> Result<Vec<Link>, SourceError> {
    Ok(headers(endpoint, heights).await?.into_iter().map(|header| header.link).collect())
}

impl Fetch<'_> {
    /// What these filters match at these heights, or at the first of them.
    pub(super) async fn read(
        &self,
        heights: RangeInclusive<Height>,
        filters: &[LogFilter],
    ) -> Result<Reading, SourceError> {
        let (first, last) = (*heights.start(), *heights.end());
        let old_last = self.old_to.map(|old_to| old_to.min(last)).filter(|old_last| *old_last > first);
        let by_range = old_last.is_some();
        let last = old_last.unwrap_or_else(|| last.min(first.plus(BY_HASH_AT_ONCE - 1)));
        let (headers, mut logs) = if by_range {
            // Logs first: what they name is then compared with headers that are newer than they are.
            let logs = self.logs_by_range(filters, first, last).await?;
            (headers(self.endpoint, first..=last).await?, logs)
        } else {
            let headers = headers(self.endpoint, first..=last).await?;
            let logs = self.logs_by_hash(filters, &headers.iter().collect::<Vec<_>>()).await?;
            (headers, logs)
        };
        if headers.is_empty() {
            return Err(self.endpoint.lies(first, "it is not there, though the head is not below it"));
        }
        self.check_all(filters, &headers, &mut logs, by_range).await?;
        Ok(Reading { headers, logs, by_range })
    }

    /// Adds what more filters match in these blocks, from this height on.
    pub(super) async fn read_more(
        &self,
        reading: &mut Reading,
        from: Height,
        filters: &[LogFilter],
    ) -> Result<(), SourceError> {
        let begin = reading.headers.partition_point(|header| header.link.height < from);
        let headers = &reading.headers[begin..];
        let (Some(first), Some(last)) = (headers.first(), headers.last()) else { return Ok(()) };
        let mut logs = if reading.by_range {
            self.logs_by_range(filters, first.link.height, last.link.height).await?
        } else {
            self.logs_by_hash(filters, &headers.iter().collect::<Vec<_>>()).await?
        };
        self.check_all(filters, headers, &mut logs, reading.by_range).await?;
        for (hash, more) in logs {
            // A log that both asked for is in both: an exact copy counts once.
            reading.logs.entry(hash).or_default().extend(more);
        }
        Ok(())
    }

    /// What the factories say in these blocks.
    pub(super) fn made_in(&self, reading: &Reading) -> Vec<Made> {
        let logs = |header: &Header| reading.logs.get(&header.link.hash).map(Vec::as_slice).unwrap_or_default();
        let headers = reading.headers.iter();
        headers.flat_map(|header| self.decoder.made_in(header.link.height, logs(header))).collect()
    }

    /// The blocks that were read, decoded.
    pub(super) fn blocks(&self, mut reading: Reading, following: &mut Following<'_>) -> Vec<Block> {
        let headers = reading.headers.into_iter();
        headers.map(|header| self.block(header, &mut reading.logs, following)).collect()
    }

    fn block(&self, header: Header, logs: &mut Logs, following: &mut Following<'_>) -> Block {
        let logs = logs.remove(&header.link.hash).unwrap_or_default();
        let decoded = self.decoder.decode_following(logs, following);
        Block {
            link: header.link,
            time: header.time,
            transactions: decoded.transactions,
            token_events: decoded.token_events,
            events: decoded.events,
            rejects: decoded.rejects,
        }
    }

    /// Compares logs with headers, and sees to blocks that may hold more.
    async fn check_all(
        &self,
        filters: &[LogFilter],
        headers: &[Header],
        logs: &mut Logs,
        by_range: bool,
    ) -> Result<(), SourceError> {
        let suspects = self.check(filters, headers, logs)?;
        let suspects: Vec<&Header> = headers.iter().filter(|h| suspects.contains(&h.link.hash)).collect();
        if by_range {
            self.read_again(filters, &suspects, logs).await
        } else {
            self.prove_complete(filters, &suspects, logs).await
        }
    }

    async fn logs_by_range(&self, filters: &[LogFilter], first: Height, last: Height) -> Result<Logs, SourceError> {
        let place =
            [("fromBlock", json!(format!("{:#x}", first.get()))), ("toBlock", json!(format!("{:#x}", last.get())))];
        let calls: Vec<Call> = filters.iter().map(|filter| logs_call(&place, Some(filter))).collect();
        let answers = self.endpoint.ask(&calls).await?;
        let mut logs = Logs::new();
        let heights = last.get() - first.get() + 1;
        for (call, answer) in calls.iter().zip(answers) {
            let raw = answer.map_err(|error| self.endpoint.refused(call, &error, Some(heights)))?;
            for placed in wire::logs(&raw).map_err(|what| self.endpoint.transient(what))? {
                if !(first..=last).contains(&placed.height) {
                    let what = format!("its log was given for the range {first} to {last}");
                    return Err(self.endpoint.lies(placed.height, what));
                }
                if placed.removed {
                    return Err(SourceError::Changed { height: placed.height });
                }
                logs.entry(placed.block_hash).or_default().push(placed.log);
            }
        }
        Ok(logs)
    }

    async fn logs_by_hash(&self, filters: &[LogFilter], headers: &[&Header]) -> Result<Logs, SourceError> {
        let mut asked = Vec::with_capacity(headers.len() * filters.len());
        let mut calls = Vec::with_capacity(headers.len() * filters.len());
        for header in headers {
            for filter in filters {
                asked.push(*header);
                calls.push(logs_call(&[("blockHash", json!(header.link.hash.as_str()))], Some(filter)));
            }
        }
        self.ask_by_hash(&asked, &calls).await
    }

    /// Makes these calls, each for the logs of the block whose header stands beside it.
    async fn ask_by_hash(&self, asked: &[&Header], calls: &[Call]) -> Result<Logs, SourceError> {
        let answers = self.endpoint.ask(calls).await?;
        let mut logs = Logs::new();
        for ((header, call), answer) in asked.iter().zip(calls).zip(answers) {
            let height = header.link.height;
            let raw = match answer {
                Ok(raw) if raw.get() == "null" => return Err(SourceError::Changed { height }),
                Ok(raw) => raw,
                // The hash is of this moment: if the node does not know it any more, the block was replaced.
                Err(error) if self.endpoint.verdict(call.method, &error) == Verdict::UnknownBlock => {
                    return Err(SourceError::Changed { height });
                }
                Err(error) => return Err(self.endpoint.refused(call, &error, None)),
            };
            for placed in wire::logs(&raw).map_err(|what| self.endpoint.transient(what))? {
                let PlacedLog { block_hash, removed, log, .. } = placed;
                if removed {
                    return Err(SourceError::Changed { height });
                }
                if placed.height != height || block_hash != header.link.hash {
                    return Err(self.endpoint.lies(height, "its logs are of another block"));
                }
                logs.entry(block_hash).or_default().push(log);
            }
        }
        Ok(logs)
    }

    /// Compares logs with headers, and drops exact copies. Returns the blocks that may hold more than was given.
    fn check(&self, filters: &[LogFilter], headers: &[Header], logs: &mut Logs) -> Result<HashSet<Hash>, SourceError> {
        let known: HashSet<&Hash> = headers.iter().map(|header| &header.link.hash).collect();
        if let Some(stray) = logs.keys().find(|hash| !known.contains(hash)) {
            // The headers end early, the block was replaced between two calls, or two nodes behind one URL differ.
            tracing::debug!(block = %stray, "logs of a block that is not among the headers");
            let height = headers.last().map(|header| header.link.height).unwrap_or_default();
            return Err(SourceError::Changed { height });
        }
        let mut blooms = Blooms::default();
        let mut suspects = HashSet::new();
        for header in headers {
            let found = logs.remove(&header.link.hash).unwrap_or_default();
            let found = self.check_logs(filters, header, found, &mut blooms)?;
            let bloom = header.bloom.as_ref().filter(|_| self.blooms != BloomTrust::None);
            if bloom.is_some_and(|bloom| may_hold_more(filters, bloom, &found, &mut blooms)) {
                suspects.insert(header.link.hash.clone());
            }
            if !found.is_empty() {
                logs.insert(header.link.hash.clone(), found);
            }
        }
        Ok(suspects)
    }

    /// Checks one block's logs: asked for, in its bloom, and no two of them at one place.
    fn check_logs(
        &self,
        filters: &[LogFilter],
        header: &Header,
        logs: Vec<RawLog>,
        blooms: &mut Blooms,
    ) -> Result<Vec<RawLog>, SourceError> {
        let height = header.link.height;
        let mut by_place: BTreeMap<(u64, u64), RawLog> = BTreeMap::new();
        let mut transactions: HashMap<u64, String> = HashMap::new();
        for log in logs {
            if !filters.iter().any(|filter| matches(filter, &log)) {
                return Err(self.endpoint.lies(height, "a log that was not asked for"));
            }
            if let Some(bloom) = header.bloom.as_ref().filter(|_| self.blooms == BloomTrust::Exact)
                && !items(&log).all(|item| blooms.may_hold(bloom, &item))
            {
                let what =
                    "a log that the header's bloom rules out (if this chain keeps no blooms: check_bloom = false)";
                return Err(self.endpoint.lies(height, what));
            }
            let tx_hash = transactions.entry(log.tx_index).or_insert_with(|| log.tx_hash.clone());
            if *tx_hash != log.tx_hash {
                return Err(self.endpoint.lies(height, format!("two hashes for transaction {}", log.tx_index)));
            }
            if let Some(other) = by_place.get(&(log.tx_index, log.log_index))
                && *other != log
            {
                return Err(self.endpoint.lies(height, format!("two logs at place {}", log.log_index)));
            }
            by_place.insert((log.tx_index, log.log_index), log);
        }
        Ok(by_place.into_values().collect())
    }

    /// History: asks again, by hash, for blocks whose bloom promises more. Blooms promise too much now and then.
    async fn read_again(
        &self,
        filters: &[LogFilter],
        suspects: &[&Header],
        logs: &mut Logs,
    ) -> Result<(), SourceError> {
        if suspects.is_empty() {
            return Ok(());
        }
        let again = self.logs_by_hash(filters, suspects).await?;
        let mut blooms = Blooms::default();
        for (header, found) in by_header(suspects, again) {
            let found = self.check_logs(filters, header, found, &mut blooms)?;
            let before = logs.get(&header.link.hash).map_or(0, Vec::len);
            if found.len() < before {
                return Err(self.endpoint.lies(header.link.height, "fewer logs by hash than by range"));
            }
            if found.len() > before {
                let (height, node) = (header.link.height, &self.endpoint.shown);
                tracing::warn!(%height, %node, "The node's answer by range left out logs of block {height}");
                logs.insert(header.link.hash.clone(), found);
            }
        }
        Ok(())
    }

    /// Near the head: a node may name a block before it has its logs, and then answers with an empty list. All logs
    /// of the block together must make up the header's bloom.
    async fn prove_complete(
        &self,
        filters: &[LogFilter],
        suspects: &[&Header],
        logs: &mut Logs,
    ) -> Result<(), SourceError> {
        if suspects.is_empty() {
            return Ok(());
        }
        let by_hash = |header: &&Header| logs_call(&[("blockHash", json!(header.link.hash.as_str()))], None);
        let calls: Vec<Call> = suspects.iter().map(by_hash).collect();
        let all = self.ask_by_hash(suspects, &calls).await?;
        let mut blooms = Blooms::default();
        for (header, found) in by_header(suspects, all) {
            let mut bits = [0u8; 256];
            for item in found.iter().flat_map(items) {
                blooms.add(&mut bits, &item);
            }
            // Bits too many are a log that the bloom rules out: `check_logs` sees to that.
            let promised = header.bloom.iter().flat_map(|bloom| bloom.iter());
            if promised.zip(&bits).any(|(promised, given)| promised & !given != 0) {
                let what = "its logs do not make up its bloom, some are missing (if this chain's blooms are not of \
                            its logs: check_bloom = false)";
                return Err(self.endpoint.lies(header.link.height, what));
            }
            let ours = found.into_iter().filter(|log| filters.iter().any(|filter| matches(filter, log))).collect();
            let ours = self.check_logs(filters, header, ours, &mut blooms)?;
            logs.insert(header.link.hash.clone(), ours);
        }
        Ok(())
    }
}

/// Blocks in hand, checked and not decoded yet.
pub(super) struct Reading {
    /// Never empty; without a hole.
    headers: Vec<Header>,
    logs: Logs,
    by_range: bool,
}

impl Reading {
    /// The height after the last block.
    pub(super) fn next(&self) -> Height {
        self.headers.last().map(|header| header.link.height.next()).unwrap_or_default()
    }
}

/// Logs by the hash of their block.
type Logs = HashMap<Hash, Vec<RawLog>>;

fn by_header<'h>(headers: &[&'h Header], mut logs: Logs) -> Vec<(&'h Header, Vec<RawLog>)> {
    headers.iter().map(|header| (*header, logs.remove(&header.link.hash).unwrap_or_default())).collect()
}

fn logs_call(place: &[(&str, Value)], filter: Option<&LogFilter>) -> Call {
    let mut object: serde_json::Map<String, Value> =
        place.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    if let Some(filter) = filter {
        if !filter.addresses.is_empty() {
            let addresses: Vec<String> = filter.addresses.iter().map(hex::encode_prefixed).collect();
            object.insert("address".into(), json!(addresses));
        }
        if !filter.topics0.is_empty() {
            let topics: Vec<String> = filter.topics0.iter().map(hex::encode_prefixed).collect();
            object.insert("topics".into(), json!([topics]));
        }
    }
    Call::new("eth_getLogs", json!([object]))
}

fn matches(filter: &LogFilter, log: &RawLog) -> bool {
    let address = parse_address(&log.address);
    let topic = log.topics.first().and_then(|topic| super::decode::read_word(topic));
    (filter.topics0.is_empty() || topic.is_some_and(|topic| filter.topics0.contains(&topic)))
        && (filter.addresses.is_empty() || address.is_some_and(|a| filter.addresses.binary_search(&a).is_ok()))
}

/// What a log puts into its block's bloom.
fn items(log: &RawLog) -> impl Iterator<Item = Vec<u8>> {
    std::iter::once(&log.address).chain(&log.topics).map(|text| hex::decode(text).unwrap_or_default())
}

/// Whether the bloom promises logs, for some filter or for some token of it, of which there is none.
fn may_hold_more(filters: &[LogFilter], bloom: &[u8; 256], logs: &[RawLog], blooms: &mut Blooms) -> bool {
    filters.iter().any(|filter| {
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

/// A height out of an answer that is a bare number.
pub(super) fn read_quantity(raw: &serde_json::value::RawValue) -> Option<u64> {
    quantity(&serde_json::from_str::<String>(raw.get()).ok()?)
}
