//! Blocks for a fake node: made up, or from the recorded data.

use std::io::Read;
use std::path::PathBuf;

use alloy_primitives::{Bloom, BloomInput, hex, keccak256};
use serde_json::{Value, json};

/// Keccak of an empty trie: what `receiptsRoot` says of a block without transactions.
const EMPTY_ROOT: &str = "0x56e81f171bcc55a6ff8345e692c0f86e5b48e01b996cadc001622fb5e363b421";

/// A block as the recorded feeds have it.
#[derive(Debug, Clone)]
pub struct FakeBlock {
    pub number: u64,
    pub hash: String,
    pub parent_hash: String,
    pub timestamp: u64,
    /// `{tx_hash, tx_index, log_index, address, topics, data}` each.
    pub logs: Vec<Value>,
    bloom: String,
}

impl FakeBlock {
    pub fn new(number: u64, hash: String, parent_hash: String, timestamp: u64, logs: Vec<Value>) -> FakeBlock {
        let mut bloom = Bloom::default();
        for log in &logs {
            let topics = log["topics"].as_array().unwrap().iter().map(|t| t.as_str().unwrap());
            for item in std::iter::once(log["address"].as_str().unwrap()).chain(topics) {
                bloom.accrue(BloomInput::Raw(&hex::decode(item).unwrap()));
            }
        }
        FakeBlock { number, hash, parent_hash, timestamp, logs, bloom: hex::encode_prefixed(bloom) }
    }

    /// Reads a line of a feed or of a block file.
    pub fn from_json(line: &Value) -> FakeBlock {
        let text = |key: &str| line[key].as_str().unwrap().to_owned();
        FakeBlock::new(
            line["number"].as_u64().unwrap(),
            text("hash"),
            text("parent_hash"),
            line["timestamp"].as_u64().unwrap(),
            line["logs"].as_array().unwrap().clone(),
        )
    }

    pub fn with_bloom(mut self, bloom: &str) -> FakeBlock {
        self.bloom = bloom.to_owned();
        self
    }

    pub fn header(&self) -> Value {
        json!({
            "number": format!("{:#x}", self.number),
            "hash": self.hash,
            "parentHash": self.parent_hash,
            "timestamp": format!("{:#x}", self.timestamp),
            "logsBloom": self.bloom,
            "receiptsRoot": if self.logs.is_empty() { EMPTY_ROOT.to_owned() } else { self.hash.clone() },
            "gasUsed": "0x0",
            "transactions": [],
        })
    }

    pub fn log(&self, log: &Value) -> Value {
        json!({
            "address": log["address"], "topics": log["topics"], "data": log["data"],
            "blockNumber": format!("{:#x}", self.number), "blockHash": self.hash,
            "transactionHash": log["tx_hash"],
            "transactionIndex": format!("{:#x}", log["tx_index"].as_u64().unwrap()),
            "logIndex": format!("{:#x}", log["log_index"].as_u64().unwrap()),
            "removed": false,
        })
    }
}

/// `len` blocks on top of `parent`, each with the logs that `logs` gives for its height; `salt` tells branches apart.
pub fn chain(
    from: u64,
    len: u64,
    parent: Option<&FakeBlock>,
    salt: &str,
    logs: impl Fn(u64) -> Vec<Value>,
) -> Vec<FakeBlock> {
    let mut parent_hash = parent.map_or_else(|| format!("0x{}", "00".repeat(32)), |p| p.hash.clone());
    let mut blocks = Vec::new();
    for number in from..from + len {
        let hash = keccak256(format!("{salt}/{number}/{parent_hash}")).to_string();
        blocks.push(FakeBlock::new(number, hash.clone(), parent_hash, 1_700_000_000 + 12 * number, logs(number)));
        parent_hash = hash;
    }
    blocks
}

/// An ERC-20 Transfer log, the `index`th of its block, alone in its transaction.
pub fn transfer(token: &str, from: &str, to: &str, amount: u128, index: u64) -> Value {
    let pad = |address: &str| format!("0x{}{}", "00".repeat(12), &address[2..]);
    json!({
        "tx_hash": keccak256(format!("{token}{from}{to}{amount}{index}")).to_string(),
        "tx_index": index, "log_index": index, "address": token,
        "topics": [keccak256("Transfer(address,address,uint256)").to_string(), pad(from), pad(to)],
        "data": format!("0x{amount:064x}"),
    })
}

/// Where the real data is; `None` and a word when it is not there (with CI=true that fails).
pub fn data_file(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("EBBTIDE_DATA")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/data"), PathBuf::from);
    let path = root.join(name);
    if path.exists() {
        return Some(path);
    }
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{} is missing", path.display());
    println!("skipped: {} is missing", path.display());
    None
}

/// The whole of a data file as text, uncompressed.
pub fn data_text(name: &str) -> Option<String> {
    let file = std::fs::File::open(data_file(name)?).unwrap();
    let mut text = String::new();
    if name.ends_with(".gz") {
        flate2::read::MultiGzDecoder::new(file).read_to_string(&mut text).unwrap();
    } else {
        std::io::BufReader::new(file).read_to_string(&mut text).unwrap();
    }
    Some(text)
}

/// A data file of one JSON value a line.
pub fn data_lines(name: &str) -> Option<Vec<Value>> {
    Some(data_text(name)?.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// Applies a line of a recorded feed to the chain that its follower sees.
pub fn follow(chain: &mut Vec<FakeBlock>, line: &Value) {
    let number = line["number"].as_u64().unwrap();
    if line["event"] == "head" {
        chain.retain(|block| block.number <= number);
    } else {
        chain.retain(|block| block.number < number);
        chain.push(FakeBlock::from_json(line));
    }
}
