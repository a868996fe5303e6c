//! An EVM node on loopback that serves a given chain, and misbehaves when told to.
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "each test file uses a part of it"
)]

pub mod blocks;
pub mod read;

use std::collections::HashMap;

use serde_json::{Value, json};

pub use super::rpc_node::Fault;
use super::rpc_node::{Answer, RpcNode, Serves, State};
pub use blocks::{FakeBlock, chain, data_file, data_lines, data_text, follow, transfer};

/// What an EVM node knows beside its blocks.
pub struct Evm {
    chain_id: u64,
    finalized: Option<u64>,
    code_from: HashMap<String, u64>,
    answers: HashMap<(String, String), String>,
}

impl Serves for Evm {
    type Block = FakeBlock;

    fn call(state: &State<Evm>, method: &str, params: &Value) -> Answer {
        call_result(state, method, params)
    }
}

/// The node.
pub type FakeNode = RpcNode<Evm>;

impl FakeNode {
    /// Serves these blocks (ascending, without a hole).
    pub async fn start(chain_id: u64, blocks: Vec<FakeBlock>) -> FakeNode {
        let kind = Evm { chain_id, finalized: None, code_from: HashMap::new(), answers: HashMap::new() };
        RpcNode::serve(kind, blocks).await
    }

    /// Another chain from now on; what is not on it is forgotten, as real nodes do. Rings.
    pub fn set_chain(&self, blocks: Vec<FakeBlock>) {
        self.set_chain_quietly(blocks);
        self.ring();
    }

    /// Tells the subscribers of the newest block.
    pub fn ring(&self) {
        let head = self.state().blocks.last().map(FakeBlock::header);
        self.notify("eth_subscription", json!({"subscription": "0x1", "result": head}));
    }

    pub fn set_chain_id(&self, chain_id: u64) {
        self.state().chain_id = chain_id;
    }

    /// What the tags `safe` and `finalized` mean; none: the head.
    pub fn set_finalized(&self, height: Option<u64>) {
        self.state().finalized = height;
    }

    /// This contract has code from that height on.
    pub fn set_code(&self, address: &str, from: u64) {
        self.state().code_from.insert(address.to_owned(), from);
    }

    /// What `eth_call` gives for the four bytes of a method; others revert.
    pub fn set_answer(&self, address: &str, selector: &str, answer: &str) {
        self.state().answers.insert((address.to_owned(), selector.to_owned()), answer.to_owned());
    }
}

fn call_result(state: &State<Evm>, method: &str, params: &Value) -> Answer {
    let head = state.blocks.last().map_or(0, |block| block.number);
    let height = |tag: &Value| match tag.as_str().unwrap() {
        "latest" | "pending" => Ok(head),
        "finalized" | "safe" if state.faults.iter().any(|f| matches!(f, Fault::NoFinalized)) => {
            Err((-32602, "invalid argument 0: hex string without 0x prefix".to_owned()))
        }
        "finalized" | "safe" => Ok(state.finalized.unwrap_or(head).min(head)),
        "earliest" => Ok(0),
        number => Ok(u64::from_str_radix(&number[2..], 16).unwrap()),
    };
    let missing =
        |block: &FakeBlock| state.faults.iter().any(|f| matches!(f, Fault::MissingBlock(h) if *h == block.number));
    match method {
        "eth_chainId" => {
            let other =
                state.faults.iter().find_map(|f| if let Fault::NetworkIs(id) = f { Some(json!(id)) } else { None });
            Ok(other.unwrap_or_else(|| json!(format!("{:#x}", state.chain_id))))
        }
        "eth_blockNumber" => {
            let made_up = state.faults.iter().find_map(|f| if let Fault::HeadAt(at) = f { Some(*at) } else { None });
            Ok(json!(format!("{:#x}", made_up.unwrap_or(head))))
        }
        "eth_getBlockByNumber" => {
            let mut wanted = height(&params[0])?;
            if state.faults.iter().any(|f| matches!(f, Fault::WrongBlock)) {
                wanted = wanted.saturating_sub(1);
            }
            let made_up = state.faults.iter().find_map(|fault| match (fault, params[0].as_str().unwrap()) {
                (Fault::HeadAt(at), "latest") | (Fault::FinalizedAt(at), "finalized") => Some(*at),
                _ => None,
            });
            if let Some(number) = made_up {
                let hash = format!("0x{number:064x}");
                return Ok(FakeBlock::new(number, hash.clone(), hash, number, Vec::new()).header());
            }
            let named = params[0] == "latest";
            let found = state.blocks.iter().find(|b| b.number == wanted && (named || !missing(b)));
            Ok(found.map_or(Value::Null, FakeBlock::header))
        }
        "eth_getBlockByHash" => {
            let found = state.blocks.iter().find(|b| b.hash == params[0] && !missing(b));
            Ok(found.map_or(Value::Null, FakeBlock::header))
        }
        "eth_getLogs" => logs(state, &params[0], height),
        "eth_getCode" => {
            let wanted = height(&params[1])?;
            if wanted < head && state.faults.iter().any(|f| matches!(f, Fault::NoState)) {
                return Err((-32000, "missing trie node 0xabc (path )".into()));
            }
            let from = state.code_from.get(params[0].as_str().unwrap());
            Ok(json!(if from.is_some_and(|from| *from <= wanted) { "0x6001" } else { "0x" }))
        }
        "eth_call" => {
            let of = |key: &str| params[0][key].as_str().unwrap().to_owned();
            let answer = state.answers.get(&(of("to"), of("data")));
            answer.map(|a| json!(a)).ok_or((3, "execution reverted".into()))
        }
        _ => Err((-32601, "method not found".into())),
    }
}

fn logs(state: &State<Evm>, filter: &Value, height: impl Fn(&Value) -> Result<u64, (i64, String)>) -> Answer {
    let by_hash = filter.get("blockHash").and_then(Value::as_str);
    let blocks: Vec<&FakeBlock> = match by_hash {
        Some(hash) => {
            let missing =
                |b: &FakeBlock| state.faults.iter().any(|f| matches!(f, Fault::MissingBlock(h) if *h == b.number));
            let found = state.blocks.iter().find(|b| b.hash == hash && !missing(b));
            vec![found.ok_or((-32000, "unknown block".to_owned()))?]
        }
        None => {
            let (from, to) = (height(&filter["fromBlock"])?, height(&filter["toBlock"])?);
            for fault in &state.faults {
                if let Fault::MaxRange(most, message) = fault
                    && to - from + 1 > *most
                {
                    return Err((-32000, (*message).to_owned()));
                }
            }
            state.blocks.iter().filter(|b| (from..=to).contains(&b.number)).collect()
        }
    };
    let one_of = |wanted: &Value, value: &str| match wanted {
        Value::Null => true,
        Value::String(one) => one.eq_ignore_ascii_case(value),
        many => many.as_array().unwrap().iter().any(|w| w.as_str().unwrap().eq_ignore_ascii_case(value)),
    };
    let wanted = |log: &&Value| {
        let topic0 = log["topics"][0].as_str().unwrap_or_default();
        one_of(&filter["address"], log["address"].as_str().unwrap())
            && (filter["topics"][0].is_null() || one_of(&filter["topics"][0], topic0))
    };
    let left_out = |block: &&&FakeBlock| {
        !state.faults.iter().any(|f| match f {
            Fault::LogsLeftOut(h) => *h == block.number,
            Fault::LogsLeftOutOfRanges(h) => *h == block.number && by_hash.is_none(),
            _ => false,
        })
    };
    let mut found: Vec<Value> = blocks
        .iter()
        .filter(left_out)
        .flat_map(|block| block.logs.iter().filter(wanted).map(|log| block.log(log)))
        .collect();
    for fault in &state.faults {
        match fault {
            Fault::MaxLogs(most, message) if found.len() > *most => return Err((-32005, (*message).to_owned())),
            Fault::DoubledLogs => found = found.iter().flat_map(|log| [log.clone(), log.clone()]).collect(),
            Fault::ContradictedLogs => {
                let other = |log: &Value| {
                    let mut log = log.clone();
                    log["data"] = json!(format!("0x{:064x}", 666));
                    log
                };
                found = found.iter().flat_map(|log| [log.clone(), other(log)]).collect();
            }
            Fault::TwoHashes if by_hash.is_none() => {
                found.iter_mut().step_by(2).for_each(|log| log["blockHash"] = json!(format!("0x{}", "ab".repeat(32))));
            }
            Fault::StrayLog => {
                if let Some(first) = found.first().cloned() {
                    let mut stray = first;
                    stray["address"] = json!(format!("0x{}", "cd".repeat(20)));
                    stray["topics"][0] = json!(format!("0x{}", "cd".repeat(32)));
                    stray["logIndex"] = json!("0xffff");
                    found.push(stray);
                }
            }
            _ => {}
        }
    }
    Ok(Value::Array(found))
}
