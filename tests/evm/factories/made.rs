//! A chain on which factories make contracts, and what must be kept of it: worked out by nothing of ours.

use std::collections::BTreeSet;

use alloy_primitives::keccak256;
use ebbtide::chain::Block;
use ebbtide::sources::evm::FactorySettings;
use serde_json::{Value, json};

use crate::support::fake_node::{FakeBlock, chain};

pub const FACTORY: &str = "0xfac0000000000000000000000000000000000001";
pub const OTHER_FACTORY: &str = "0xfac0000000000000000000000000000000000002";
const STRANGER: &str = "0x5757575757575757575757575757575757575757";

pub struct Dice(pub u64);

impl Dice {
    pub fn throw(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

pub fn child(n: u64) -> String {
    format!("0xc41d{n:036x}")
}

fn word(text: &str) -> String {
    format!("0x{:0>64}", &text[2..])
}

fn log(address: &str, signature: &str, topics: &[&str], data: &str, index: usize) -> Value {
    let mut all = vec![keccak256(signature).to_string()];
    all.extend(topics.iter().map(|topic| word(topic)));
    json!({
        "tx_hash": keccak256(format!("{address} {index}")).to_string(), "tx_index": index, "log_index": index,
        "address": address, "topics": all, "data": data,
    })
}

pub fn made(factory: &str, contract: &str, index: usize) -> Value {
    log(factory, "Made(address,uint256)", &[contract], &word("0x7"), index)
}

pub fn ping(contract: &str, n: u64, index: usize) -> Value {
    log(contract, "Ping(uint256)", &[], &word(&format!("{n:#x}")), index)
}

pub fn paid(token: &str, amount: u64, index: usize) -> Value {
    let (from, to) = (child(0xaaaa), child(0xbbbb));
    log(token, "Transfer(address,address,uint256)", &[&from, &to], &word(&format!("{amount:#x}")), index)
}

/// Both factories: one makes tokens that also say Ping, the other things that say Ping alone.
pub fn settings() -> Vec<FactorySettings> {
    let one = |address: &str, tokens| FactorySettings {
        address: vec![address.to_owned()],
        event: "Made(address indexed contract, uint256 n)".into(),
        parameter: "contract".into(),
        events: vec!["Ping(uint256 n)".into()],
        tokens,
    };
    vec![one(FACTORY, true), one(OTHER_FACTORY, false)]
}

/// Blocks in which contracts are made, once or again, speak too early, at once and later, and strangers pretend.
pub fn busy(from: u64, len: u64, parent: Option<&FakeBlock>, seed: u64, contracts: u64) -> Vec<FakeBlock> {
    chain(from, len, parent, &seed.to_string(), |number| {
        let mut dice = Dice(seed.wrapping_add(number.wrapping_mul(0x9e37_79b9)));
        let mut logs = Vec::new();
        for index in 0..dice.throw(6) as usize {
            let contract = child(dice.throw(contracts));
            logs.push(match dice.throw(12) {
                0 => made(FACTORY, &contract, index),
                1 => made(OTHER_FACTORY, &contract, index),
                2 => made(STRANGER, &contract, index),
                3..8 => ping(&contract, number, index),
                _ => paid(&contract, number + 1, index),
            });
        }
        logs
    })
}

/// What is kept of a chain: (height, place, contract, what).
pub type Kept = BTreeSet<(u64, u64, String, String)>;

/// Reads the logs in order, from the first block on.
pub fn expected(blocks: &[FakeBlock]) -> Kept {
    let topic = |signature: &str| json!(keccak256(signature).to_string());
    let (made, ping) = (topic("Made(address,uint256)"), topic("Ping(uint256)"));
    let (mut tokens, mut others) = (BTreeSet::new(), BTreeSet::new());
    let mut kept = Kept::new();
    for block in blocks {
        for log in &block.logs {
            let address = log["address"].as_str().unwrap().to_owned();
            let place = log["log_index"].as_u64().unwrap();
            let first = &log["topics"][0];
            let what = if *first == made {
                let contract = format!("0x{}", &log["topics"][1].as_str().unwrap()[26..]);
                match address.as_str() {
                    FACTORY => tokens.insert(contract),
                    OTHER_FACTORY => others.insert(contract),
                    _ => continue,
                };
                "Made"
            } else if *first == ping {
                if !tokens.contains(&address) && !others.contains(&address) {
                    continue;
                }
                "Ping"
            } else {
                if !tokens.contains(&address) {
                    continue;
                }
                "Transfer"
            };
            kept.insert((block.number, place, address, what.to_owned()));
        }
    }
    kept
}

/// What a source gave.
pub fn kept(blocks: &[Block]) -> Kept {
    let mut kept = Kept::new();
    for block in blocks {
        assert!(block.rejects.is_empty(), "{:?}", block.rejects);
        let height = block.link.height.get();
        for e in &block.events {
            assert!(kept.insert((height, e.event_index, e.emitter.to_string(), e.name.to_string())));
        }
        for e in &block.token_events {
            assert!(kept.insert((height, e.event_index, e.token.to_string(), "Transfer".into())));
        }
    }
    kept
}
