//! An [`EvmSource`] on a [`FakeNode`], a chain with something on it, and what reading it must give.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use ebbtide::chain::{Block, BlockRef, Hash, Height, Link};
use ebbtide::sources::evm::decode::{DecodeSettings, Decoder};
use ebbtide::sources::evm::{EvmSettings, EvmSource};
use ebbtide::sources::{Source, SourceError};
use serde_json::json;

use super::{FakeBlock, FakeNode, chain, transfer};

pub const TOKEN: &str = "0x1111111111111111111111111111111111111111";
pub const OTHER: &str = "0x2222222222222222222222222222222222222222";
pub const ALICE: &str = "0xaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
pub const BOB: &str = "0xbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

pub fn settings(nodes: &[&FakeNode]) -> EvmSettings {
    EvmSettings {
        urls: nodes.iter().map(|node| node.url()).collect(),
        request_timeout: Duration::from_secs(10),
        ..EvmSettings::default()
    }
}

/// For nodes that hang.
pub fn impatient(nodes: &[&FakeNode]) -> EvmSettings {
    EvmSettings { request_timeout: Duration::from_millis(500), ..settings(nodes) }
}

pub fn source(nodes: &[&FakeNode]) -> EvmSource {
    EvmSource::new(settings(nodes)).unwrap()
}

/// A source that already knows how high the chain is, so that old blocks are read by range.
pub async fn following(nodes: &[&FakeNode], tokens: &[&str]) -> EvmSource {
    let tokens = tokens.iter().map(|t| (*t).to_owned()).collect();
    let source = EvmSource::new(EvmSettings { tokens, ..settings(nodes) }).unwrap();
    source.head().await.unwrap();
    source
}

pub fn height(n: u64) -> Height {
    Height::new(n).unwrap()
}

pub fn range(from: u64, to: u64) -> RangeInclusive<Height> {
    height(from)..=height(to)
}

pub fn block_ref(block: &FakeBlock) -> BlockRef {
    BlockRef { height: height(block.number), hash: Hash::new(block.hash.as_str()) }
}

/// Every third block holds two transfers of `TOKEN` and one of `OTHER`.
pub fn lively(len: u64, salt: &str) -> Vec<FakeBlock> {
    chain(0, len, None, salt, some_logs)
}

pub fn some_logs(number: u64) -> Vec<serde_json::Value> {
    if !number.is_multiple_of(3) {
        return Vec::new();
    }
    let amount = u128::from(number) + 1;
    vec![
        transfer(TOKEN, ALICE, BOB, amount, 0),
        transfer(OTHER, BOB, ALICE, amount, 1),
        transfer(TOKEN, BOB, ALICE, 2 * amount, 2),
    ]
}

/// What the blocks hold, decoded without any node between.
pub fn expected(blocks: &[FakeBlock], tokens: &[&str]) -> Vec<Block> {
    let tokens = tokens.iter().map(|t| (*t).to_owned()).collect();
    let decoder = Decoder::new(&DecodeSettings { tokens, ..DecodeSettings::default() }, Some(31337)).unwrap();
    let decoded = blocks.iter().map(|block| {
        let decoded = decoder.decode(serde_json::from_value(json!(block.logs)).unwrap());
        Block {
            link: Link {
                height: height(block.number),
                hash: Hash::new(block.hash.as_str()),
                parent_hash: Hash::new(block.parent_hash.as_str()),
            },
            time: jiff::Timestamp::from_second(block.timestamp as i64).ok(),
            transactions: decoded.transactions,
            token_events: decoded.token_events,
            events: decoded.events,
            rejects: decoded.rejects,
        }
    });
    decoded.collect()
}

/// Reads a range as a syncer would: what is too large is halved, what was left out is asked for again.
pub async fn read_all(source: &EvmSource, from: u64, to: u64) -> Vec<Block> {
    let (mut at, mut size, mut blocks) = (from, to - from + 1, Vec::new());
    while at <= to {
        match source.blocks(range(at, (at + size - 1).min(to))).await {
            Ok(more) => {
                at = more.last().unwrap().link.height.get() + 1;
                blocks.extend(more);
            }
            Err(SourceError::RangeTooLarge { at_most, .. }) => {
                let smaller = at_most.unwrap_or(size / 2);
                assert!(smaller >= 1 && smaller < size, "{smaller} is no way down from {size}");
                size = smaller;
            }
            Err(error) => panic!("{error}"),
        }
    }
    blocks
}

pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
