//! What nodes send, checked on entry: nothing behind this file has to doubt a hash or a number.

use std::borrow::Cow;
use std::collections::HashMap;

use alloy_primitives::{U256, hex, keccak256};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::decode::{RawLog, read_word};
use crate::chain::{Hash, Height, Link};

/// A block's header, as far as we use it.
#[derive(Debug, Clone)]
pub struct Header {
    /// Its names.
    pub link: Link,
    /// None when the chain's clock is beyond what a timestamp can hold.
    pub time: Option<jiff::Timestamp>,
    /// None when the node leaves it out.
    pub bloom: Option<Box<[u8; 256]>>,
}

/// A log and the block it is said to belong to.
#[derive(Debug, Clone)]
pub struct PlacedLog {
    /// Its block's height.
    pub height: Height,
    /// Its block's hash.
    pub block_hash: Hash,
    /// The node took it back: it is of a block that was replaced.
    pub removed: bool,
    /// What it says; each text is hex of the right length.
    pub log: RawLog,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireHeader {
    number: String,
    hash: String,
    parent_hash: String,
    timestamp: String,
    #[serde(default)]
    logs_bloom: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireLog<'r> {
    address: String,
    topics: Vec<String>,
    data: String,
    // Only read, so not copied: a log comes by the million.
    #[serde(borrow)]
    block_number: Cow<'r, str>,
    #[serde(borrow)]
    block_hash: Cow<'r, str>,
    #[serde(borrow)]
    transaction_hash: Cow<'r, str>,
    #[serde(borrow)]
    transaction_index: Cow<'r, str>,
    #[serde(borrow)]
    log_index: Cow<'r, str>,
    #[serde(default)]
    removed: Option<bool>,
}

/// Reads a header; `Ok(None)` for null.
///
/// # Errors
/// What is wrong with it, in words.
pub fn header(raw: &RawValue) -> Result<Option<Header>, String> {
    let wire: Option<WireHeader> = serde_json::from_str(raw.get()).map_err(|e| format!("not a block: {e}"))?;
    let Some(wire) = wire else { return Ok(None) };
    let height = quantity(&wire.number).and_then(Height::new).ok_or("a block whose number is no height")?;
    let hash = word(&wire.hash).ok_or("a block whose hash is no hash")?;
    let parent_hash = word(&wire.parent_hash).ok_or("a block whose parent hash is no hash")?;
    let time = quantity(&wire.timestamp)
        .and_then(|seconds| i64::try_from(seconds).ok())
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    let bloom = match wire.logs_bloom {
        None => None,
        Some(text) => {
            let mut bits = Box::new([0u8; 256]);
            hex::decode_to_slice(text.trim_start_matches("0x"), bits.as_mut_slice())
                .map_err(|_| "a block whose logsBloom is not 256 bytes")?;
            Some(bits)
        }
    };
    Ok(Some(Header { link: Link { height, hash, parent_hash }, time, bloom }))
}

/// Reads the answer to `eth_getLogs`.
///
/// # Errors
/// What is wrong with it, in words.
pub fn logs(raw: &RawValue) -> Result<Vec<PlacedLog>, String> {
    let wire: Option<Vec<WireLog<'_>>> = serde_json::from_str(raw.get()).map_err(|e| format!("not logs: {e}"))?;
    // Nodes that do not know a block answer null where others answer with an error.
    let wire = wire.ok_or("null for logs")?;
    let mut placed: Vec<PlacedLog> = Vec::with_capacity(wire.len());
    for log in wire {
        // A block's logs come together: one text for all of them.
        let same = placed.last().map(|before| &before.block_hash).filter(|hash| hash.as_str() == log.block_hash);
        let block_hash = same.cloned().or_else(|| word(&log.block_hash)).ok_or("a log without a block hash")?;
        placed.push(place(log, block_hash)?);
    }
    Ok(placed)
}

fn place(wire: WireLog<'_>, block_hash: Hash) -> Result<PlacedLog, String> {
    let topics = wire.topics.iter().all(|topic| read_word(topic).is_some());
    let data = wire.data.strip_prefix("0x").is_some_and(hex::check_raw);
    if wire.topics.len() > 4 || !topics || !data || super::parse_address(&wire.address).is_none() {
        return Err("a log whose address, topics or data are no hex of the right length".into());
    }
    let position = |text: &str| quantity(text).filter(|n| *n <= Height::MAX.get());
    let (Some(tx_index), Some(log_index)) = (position(&wire.transaction_index), position(&wire.log_index)) else {
        return Err("a log without a place".into());
    };
    Ok(PlacedLog {
        height: quantity(&wire.block_number).and_then(Height::new).ok_or("a log without a height")?,
        block_hash,
        removed: wire.removed == Some(true),
        log: RawLog {
            tx_hash: read_word(&wire.transaction_hash)
                .map(hex::encode_prefixed)
                .ok_or("a log without a transaction hash")?,
            tx_index,
            log_index,
            address: wire.address,
            topics: wire.topics,
            data: wire.data,
        },
    })
}

/// A number as nodes write it: `0x` and hex digits.
pub(super) fn quantity(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("0x")?;
    if (1..=16).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return u64::from_str_radix(digits, 16).ok();
    }
    // Wider than 64 bits only when it is padded: leading zeros are let pass.
    u64::try_from(U256::from_str_radix(digits, 16).ok().filter(|_| !digits.is_empty())?).ok()
}

/// A hash in canonical form.
fn word(text: &str) -> Option<Hash> {
    let word = read_word(text)?;
    Some(Hash::new(hex::encode_prefixed(word)))
}

/// Bloom filters of headers; remembers what it hashed, since a few tokens make most logs.
#[derive(Default)]
pub(super) struct Blooms(HashMap<Vec<u8>, [u16; 3]>);

impl Blooms {
    /// Whether `bloom` may hold this address or topic: false is certain, true is not.
    pub(super) fn may_hold(&mut self, bloom: &[u8; 256], item: &[u8]) -> bool {
        self.bits(item).iter().all(|bit| bloom[usize::from(255 - bit / 8)] & (1 << (bit % 8)) != 0)
    }

    /// Adds an address or topic.
    pub(super) fn add(&mut self, bloom: &mut [u8; 256], item: &[u8]) {
        for bit in self.bits(item) {
            bloom[usize::from(255 - bit / 8)] |= 1 << (bit % 8);
        }
    }

    fn bits(&mut self, item: &[u8]) -> [u16; 3] {
        if let Some(bits) = self.0.get(item) {
            return *bits;
        }
        let hash = keccak256(item);
        let bits = [0, 2, 4].map(|at| u16::from_be_bytes([hash[at], hash[at + 1]]) % 2048);
        if self.0.len() < 100_000 {
            self.0.insert(item.to_vec(), bits);
        }
        bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy_primitives::{Bloom, BloomInput};

    #[test]
    fn numbers_are_read_as_nodes_write_them() {
        assert_eq!(quantity("0x0"), Some(0));
        assert_eq!(quantity("0x00ff"), Some(255));
        assert_eq!(quantity("0xffffffff"), Some(u64::from(u32::MAX)));
        for bad in ["", "0x", "12", "0x1ffffffffffffffff", "0xg", "0x-1"] {
            assert_eq!(quantity(bad), None, "{bad}");
        }
    }

    #[test]
    fn our_bloom_is_everybodys_bloom() {
        let mut ours = [0u8; 256];
        let mut theirs = Bloom::default();
        let mut blooms = Blooms::default();
        for n in 0u8..50 {
            blooms.add(&mut ours, &[n; 20]);
            theirs.accrue(BloomInput::Raw(&[n; 20]));
        }
        assert_eq!(ours, theirs.0.0);
        assert!(blooms.may_hold(&ours, &[7; 20]));
        assert!(!blooms.may_hold(&[0; 256], &[7; 20]));
    }

    #[test]
    fn each_log_has_its_own_blocks_hash_in_one_form() {
        let (a, b) = (format!("0x{}", "ab".repeat(32)), format!("0x{}", "cd".repeat(32)));
        let log = |block_hash: &str, escaped: bool| {
            let index = if escaped { "\\u0030x7" } else { "0x7" };
            format!(
                r#"{{"address":"0x{}","topics":[],"data":"0x","blockNumber":"0x1","blockHash":"{block_hash}",
                "transactionHash":"{}","transactionIndex":"0x0","logIndex":"{index}"}}"#,
                "11".repeat(20),
                a.to_uppercase().replace("0X", "0x"),
            )
        };
        let upper = a.to_uppercase().replace("0X", "0x");
        let all = [log(&a, false), log(&a, true), log(&upper, false), log(&b, false), log(&a, false)];
        let raw = RawValue::from_string(format!("[{}]", all.join(","))).expect("JSON");
        let placed = logs(&raw).expect("logs");
        let hashes: Vec<&str> = placed.iter().map(|log| log.block_hash.as_str()).collect();
        assert_eq!(hashes, [&a, &a, &a, &b, &a]);
        assert!(placed.iter().all(|placed| placed.log.tx_hash == a && placed.log.log_index == 7));
        let bad = RawValue::from_string(format!("[{}]", log("0xab", false))).expect("JSON");
        assert_eq!(logs(&bad).err().as_deref(), Some("a log without a block hash"));
    }

    #[test]
    fn a_clock_beyond_time_is_no_time() {
        let zeros = "0x".to_owned() + &"00".repeat(32);
        let block = |seconds: &str| {
            let json = serde_json::json!({"number": "0x1", "hash": zeros, "parentHash": zeros, "timestamp": seconds});
            let raw = RawValue::from_string(json.to_string()).expect("JSON");
            header(&raw).expect("a block").expect("not null").time
        };
        assert_eq!(block("0xffffffffffffffff"), None);
        // 9999-12-31T00:00:00Z, and the last second of the type.
        assert_eq!(block("0x3afff2f000"), None);
        assert_eq!(block("0x3afff2d3e0"), jiff::Timestamp::from_second(253_402_207_200).ok());
        assert_eq!(block("0x0"), Some(jiff::Timestamp::UNIX_EPOCH));
    }
}
