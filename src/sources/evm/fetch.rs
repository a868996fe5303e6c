//! Blocks with their logs from one endpoint, each checked against the header it belongs to.
//!
//! Near the head logs are asked for by block hash, so that an answer can only be of that block. Deep in history they
//! are asked for by range, and the hash in each log is compared with the header at its height. How deep something lies is
//! shown by a block far above it, and not by what was said to be the head.

use std::ops::RangeInclusive;

use alloy_primitives::hex;
use serde_json::{Value, json};

use super::check::{self, BloomTrust, Check, Fault, Logs};
use super::decode::{Decoder, LogFilter, RawLog};
use super::factory::{Following, Made};
use super::wire::{self, Blooms, Header, PlacedLog, quantity};
use crate::chain::{Block, Height, Link};
use crate::sources::SourceError;
use crate::sources::rpc::endpoint::{Call, Endpoint};
use crate::sources::rpc::fault::Verdict;
use crate::sources::rpc::linked::{Form, Linked, is_old, linked, numbers, some};

/// Blocks that are read by hash in one go.
const BY_HASH_AT_ONCE: u64 = 64;
/// How far below the head blocks are read by hash.
pub(super) const NEAR_HEAD: u64 = 64;

/// What a fetch needs to know besides the heights and what to look for.
pub(super) struct Fetch<'f> {
    pub(super) endpoint: &'f Endpoint,
    pub(super) decoder: &'f Decoder,
    /// How far headers' blooms can be believed.
    pub(super) blooms: BloomTrust,
    /// Up to here the chain is old enough to be read by range.
    pub(super) old_to: Option<Height>,
    /// The newest header, if it is one of those that are read.
    pub(super) newest: Option<Header>,
}

impl Linked for Header {
    fn link(&self) -> &Link {
        &self.link
    }
}

/// How headers are asked for.
pub(super) const HEADERS: Form<Header> = Form { call: header_at, read: wire::header, requests: usize::MAX };
/// How logs are asked for.
pub(super) const GET_LOGS: &str = "eth_getLogs";

pub(super) fn header_at(height: u64) -> Call {
    header_call(&format!("{height:#x}"))
}

pub(super) fn header_call(block: &str) -> Call {
    Call::new("eth_getBlockByNumber", json!([block, false]))
}

impl Fetch<'_> {
    /// What these filters match at these heights, or at the first of them.
    pub(super) async fn read(
        &self,
        heights: RangeInclusive<Height>,
        filters: &[LogFilter],
    ) -> Result<Reading, SourceError> {
        let newest = self.newest.clone().filter(|newest| heights.contains(&newest.link.height));
        let is_kept = newest.is_some();
        match self.read_with(heights.clone(), filters, newest).await {
            // What was kept need no longer be so, or the node does not have it yet: as if nothing had been kept.
            Err(SourceError::Changed { .. }) if is_kept => self.read_with(heights, filters, None).await,
            read => read,
        }
    }

    async fn read_with(
        &self,
        heights: RangeInclusive<Height>,
        filters: &[LogFilter],
        newest: Option<Header>,
    ) -> Result<Reading, SourceError> {
        let (first, last) = (*heights.start(), *heights.end());
        let old_last = self.old_to.map(|old_to| old_to.min(last)).filter(|old_last| *old_last > first);
        let by_range = old_last.is_some();
        let last = old_last.unwrap_or_else(|| last.min(first.plus(BY_HASH_AT_ONCE - 1)));
        let newest = newest.filter(|newest| newest.link.height <= last);
        let asked = numbers(&(first..=last));
        let (headers, mut logs) = if by_range {
            // Logs first: what they name is then compared with headers that are newer than they are.
            let logs = self.logs_by_range(filters, first, last).await?;
            (linked(self.endpoint, asked, &HEADERS, newest).await?, logs)
        } else {
            let headers = linked(self.endpoint, asked, &HEADERS, newest).await?;
            let logs = self.logs_by_hash(filters, &headers.iter().collect::<Vec<_>>()).await?;
            (headers, logs)
        };
        let headers = some(self.endpoint, first, headers)?;
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
        self.decoder.decode_following(logs, following).block(header.link, header.time)
    }

    /// Compares logs with headers, and sees to blocks that may hold more.
    async fn check_all(
        &self,
        filters: &[LogFilter],
        headers: &[Header],
        logs: &mut Logs,
        by_range: bool,
    ) -> Result<(), SourceError> {
        let suspects = self.check(filters).blocks(headers, logs).map_err(|fault| self.fault(fault))?;
        let suspects: Vec<&Header> = headers.iter().filter(|h| suspects.contains(&h.link.hash)).collect();
        let Some(highest) = suspects.last().map(|header| header.link.height) else { return Ok(()) };
        if by_range && is_old(self.endpoint, highest, NEAR_HEAD, &HEADERS).await? {
            self.read_again(filters, &suspects, logs).await
        } else {
            self.prove_complete(filters, &suspects, logs).await
        }
    }

    fn check<'c>(&self, filters: &'c [LogFilter]) -> Check<'c> {
        Check { filters, blooms: self.blooms }
    }

    fn fault(&self, fault: Fault) -> SourceError {
        match fault {
            Fault::Changed { height } => SourceError::Changed { height },
            Fault::Lie { height, what } => self.endpoint.lies(height, what),
        }
    }

    async fn logs_by_range(&self, filters: &[LogFilter], first: Height, last: Height) -> Result<Logs, SourceError> {
        let place =
            [("fromBlock", json!(format!("{:#x}", first.get()))), ("toBlock", json!(format!("{:#x}", last.get())))];
        let heights = last.get() - first.get() + 1;
        let call = |filter: &LogFilter| Call::over(GET_LOGS, logs_params(&place, Some(filter)), heights);
        let calls: Vec<Call> = filters.iter().map(call).collect();
        let answers = self.endpoint.ask(&calls).await?;
        let mut logs = Logs::new();
        for (call, answer) in calls.iter().zip(answers) {
            let raw = answer.map_err(|error| self.endpoint.refused(call, &error))?;
            let placed = wire::logs(&raw).map_err(|what| self.endpoint.transient(what))?;
            check::take_range(placed, &(first..=last), &mut logs).map_err(|fault| self.fault(fault))?;
        }
        Ok(logs)
    }

    async fn logs_by_hash(&self, filters: &[LogFilter], headers: &[&Header]) -> Result<Logs, SourceError> {
        let mut asked = Vec::with_capacity(headers.len() * filters.len());
        let mut calls = Vec::with_capacity(headers.len() * filters.len());
        for header in headers {
            for filter in filters {
                asked.push(*header);
                calls.push(logs_of(header, Some(filter)));
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
                Err(error) => return Err(self.endpoint.refused(call, &error)),
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

    /// History: asks again, by hash, for blocks whose bloom promises more. Blooms promise too much now and then.
    async fn read_again(
        &self,
        filters: &[LogFilter],
        suspects: &[&Header],
        logs: &mut Logs,
    ) -> Result<(), SourceError> {
        let again = self.logs_by_hash(filters, suspects).await?;
        let mut blooms = Blooms::default();
        for (header, found) in by_header(suspects, again) {
            let found = self.check(filters).logs(header, found, &mut blooms).map_err(|fault| self.fault(fault))?;
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

    /// Near the head, also where it was said to be farther off: a node may name a block before it has its logs, and then
    /// answers with an empty list. All logs of the block together must make up the header's bloom.
    async fn prove_complete(
        &self,
        filters: &[LogFilter],
        suspects: &[&Header],
        logs: &mut Logs,
    ) -> Result<(), SourceError> {
        let calls: Vec<Call> = suspects.iter().map(|header| logs_of(header, None)).collect();
        let all = self.ask_by_hash(suspects, &calls).await?;
        let mut blooms = Blooms::default();
        for (header, found) in by_header(suspects, all) {
            let ours = self.check(filters).whole(header, found, &mut blooms).map_err(|fault| self.fault(fault))?;
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

fn by_header<'h>(headers: &[&'h Header], mut logs: Logs) -> Vec<(&'h Header, Vec<RawLog>)> {
    headers.iter().map(|header| (*header, logs.remove(&header.link.hash).unwrap_or_default())).collect()
}

fn logs_of(header: &Header, filter: Option<&LogFilter>) -> Call {
    Call::new(GET_LOGS, logs_params(&[("blockHash", json!(header.link.hash.as_str()))], filter))
}

fn logs_params(place: &[(&str, Value)], filter: Option<&LogFilter>) -> Value {
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
    json!([object])
}

/// A height out of an answer that is a bare number.
pub(super) fn read_quantity(raw: &serde_json::value::RawValue) -> Option<u64> {
    quantity(&serde_json::from_str::<String>(raw.get()).ok()?)
}
