//! Blocks for a fake indexer: made up, or with recorded transactions in them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// A block as the indexer has it.
#[derive(Debug, Clone)]
pub struct FakeBlock {
    pub height: u64,
    /// Empty for genesis.
    pub hash: String,
    /// Empty for genesis, and for block 1.
    pub parent: String,
    pub chain_id: String,
    pub time: String,
    pub txs: Vec<FakeTx>,
}

/// A transaction with its events as they are answered.
#[derive(Debug, Clone)]
pub struct FakeTx {
    pub index: u64,
    pub hash: String,
    pub success: bool,
    pub events: Vec<Value>,
}

impl FakeTx {
    /// A recorded transaction. What was recorded without `__typename` gets the one that the server would give.
    pub fn recorded(tx: &Value) -> FakeTx {
        let events = tx["response"]["events"].as_array().cloned().unwrap_or_default();
        FakeTx {
            index: tx["index"].as_u64().unwrap(),
            hash: tx["hash"].as_str().unwrap().to_owned(),
            success: tx["success"].as_bool().unwrap(),
            events: events.into_iter().map(typed).collect(),
        }
    }

    pub(super) fn row(&self, height: u64, func: bool) -> Value {
        let mut events = self.events.clone();
        if !func {
            // What is not selected is not sent.
            events.iter_mut().filter_map(Value::as_object_mut).for_each(|event| {
                event.remove("func");
            });
        }
        json!({"block_height": height, "index": self.index, "hash": self.hash, "success": self.success,
               "response": {"events": events}})
    }
}

/// An event with its `__typename`; those of other kinds come with that alone.
pub fn typed(mut event: Value) -> Value {
    if event.get("__typename").is_some() || !event.is_object() {
        return event;
    }
    if event.get("type").is_none() {
        return json!({});
    }
    event["__typename"] = json!("GnoEvent");
    event
}

impl FakeBlock {
    pub fn header(&self) -> Value {
        json!({"height": self.height, "hash": self.hash, "last_block_hash": self.parent, "chain_id": self.chain_id,
               "time": self.time, "num_txs": self.txs.len()})
    }
}

/// 32 bytes in base64 that stand for a label.
pub fn hash_of(label: &str) -> String {
    STANDARD.encode(Sha256::digest(label.as_bytes()))
}

/// The name of genesis: the hash of its chain and time.
pub fn genesis_hash(block: &FakeBlock) -> String {
    hash_of(&format!("gno-genesis|{}|{}", block.chain_id, block.time))
}

/// `len` blocks from `from` on after `before`; the branch tells their hashes from others'. `events` gives each
/// block's transactions, as lists of events.
pub fn blocks_from(
    from: u64,
    len: u64,
    before: Option<&FakeBlock>,
    branch: &str,
    events: impl Fn(u64) -> Vec<Vec<Value>>,
) -> Vec<FakeBlock> {
    let mut parent = before.map_or(String::new(), |before| before.hash.clone());
    let block = |height: u64| {
        // One in a few thousand looks like hex that begins with 0x: here all of them do.
        let hash = format!("0x{}", &hash_of(&format!("{branch}/{height}"))[2..]);
        let hash = if height == 0 { String::new() } else { hash };
        let parent = std::mem::replace(&mut parent, hash.clone());
        let txs = (0..).zip(events(height)).map(|(index, events)| FakeTx {
            index,
            hash: format!("0X{}", &hash_of(&format!("{branch}/{height}/{index}"))[2..]),
            success: true,
            events,
        });
        let time = format!("2026-07-01T{:02}:{:02}:{:02}.5Z", height / 3600 % 24, height / 60 % 60, height % 60);
        FakeBlock { height, hash, parent, chain_id: "test-13".to_owned(), time, txs: txs.collect() }
    };
    (from..from + len).map(block).collect()
}

pub fn event(package: &str, kind: &str, attrs: &[(&str, &str)]) -> Value {
    let attrs: Vec<Value> = attrs.iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
    json!({"__typename": "GnoEvent", "type": kind, "pkg_path": package, "attrs": attrs})
}

/// A movement as today's library says it.
pub fn transfer(token: &str, from: &str, to: &str, amount: u64) -> Value {
    let amount = amount.to_string();
    let attrs = [("token", token), ("from", from), ("to", to), ("value", &amount)];
    event("gno.land/p/demo/tokens/grc20", "Transfer", &attrs)
}

/// A token is announced.
pub fn new_token(token: &str, name: &str, symbol: &str, decimals: &str) -> Value {
    let attrs = [("token", token), ("name", name), ("symbol", symbol), ("decimals", decimals)];
    event("gno.land/p/demo/tokens/grc20", "NewToken", &attrs)
}
