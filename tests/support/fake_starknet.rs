//! A Starknet node on loopback that serves a given chain, and misbehaves when told to. Real HTTP, real WebSocket.

use std::collections::HashMap;

use ebbtide::chain::felt::Felt;
use serde_json::{Value, json};

use super::rpc_node::{Answer, Fault, RpcNode, Serves, State};

pub const TOKEN: &str = "0x70c0";
pub const OTHER: &str = "0x70c1";
pub const ALICE: &str = "0xa11ce";
pub const BOB: &str = "0xb0b";

/// A transaction with what it said.
#[derive(Debug, Clone, PartialEq)]
pub struct FakeTx {
    pub hash: String,
    pub reverted: bool,
    /// `{from_address, keys, data}` each.
    pub events: Vec<Value>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct FakeStarkBlock {
    pub number: u64,
    pub hash: String,
    pub parent_hash: String,
    pub timestamp: u64,
    pub transactions: Vec<FakeTx>,
}

/// A way to misbehave that only Starknet nodes have; it hits every request until [`FakeStarknet::heal`].
#[derive(Debug, Clone)]
pub enum Oddity {
    /// The block at this height is pre-confirmed: it has neither a hash nor a parent.
    PreConfirmed(u64),
    /// As nodes of version 0.8 name what is not confirmed: no number either.
    Pending(u64),
    /// The block at this height was rejected.
    Rejected(u64),
    /// The receipts of this block say that they are another's.
    StrangeReceipts(u64),
    /// One transaction of this block stands there twice.
    DoubledTransaction(u64),
    /// The last receipt of this block is missing, and the header does not know how many there are.
    LostReceipt(u64),
    /// The last event of this block is missing, and the header knows how many there are.
    LostEvent(u64),
    /// The transactions of this block have another order in receipts.
    ReversedReceipts(u64),
    /// `starknet_getEvents` gives the same token again and again.
    RepeatedToken,
    /// `starknet_getEvents` gives empty pages and a new token with each.
    EndlessTokens,
    /// So many empty pages come before each one that holds events, as from nodes that scan a few blocks at a time.
    EmptyPages(u64),
    /// `starknet_getEvents` gives an event of another contract.
    StrayEvent,
    /// `starknet_getEvents` gives an event of a block that is not confirmed.
    PendingEvent,
    /// `starknet_getEvents` gives one event more than the receipts of this block hold.
    InventedEvent(u64),
    /// `starknet_getEvents` gives this block's events with another hash.
    OtherHash(u64),
    /// The most events on a page; more is an error.
    LargestPage(u64),
    /// `l1_accepted` is not known, as in version 0.8.
    NoL1,
}

/// What a Starknet node knows beside its blocks.
pub struct Starknet {
    chain_id: String,
    spec: String,
    oddities: Vec<Oddity>,
    on_l1: Option<u64>,
    there_from: HashMap<String, u64>,
    answers: HashMap<(String, String), Vec<String>>,
    /// Answers to whole blocks, byte for byte, by height.
    replayed: HashMap<u64, Value>,
}

impl Serves for Starknet {
    type Block = FakeStarkBlock;

    fn call(state: &State<Starknet>, method: &str, params: &Value) -> Answer {
        state.call(method, params)
    }

    fn heal(&mut self) {
        self.oddities.clear();
    }
}

/// The node.
pub type FakeStarknet = RpcNode<Starknet>;

impl FakeStarknet {
    /// Serves these blocks (ascending, without a hole).
    pub async fn start(blocks: Vec<FakeStarkBlock>) -> FakeStarknet {
        let kind = Starknet {
            chain_id: "0x534e5f5345504f4c4941".into(),
            spec: "0.9.0".into(),
            oddities: Vec::new(),
            on_l1: None,
            there_from: HashMap::new(),
            answers: HashMap::new(),
            replayed: HashMap::new(),
        };
        RpcNode::serve(kind, blocks).await
    }

    /// Another chain from now on. Rings as nodes do: a word on the reorganisation where there was one, then the head.
    pub fn set_chain(&self, blocks: Vec<FakeStarkBlock>) {
        let lost = self.state().blocks.iter().find(|old| !blocks.contains(old)).cloned();
        self.set_chain_quietly(blocks);
        if let Some(lost) = lost {
            let lost = json!({"starting_block_hash": lost.hash, "starting_block_number": lost.number});
            self.tell("starknet_subscriptionReorg", lost);
        }
        self.ring();
    }

    /// Tells the subscribers of the newest block.
    pub fn ring(&self) {
        let head = self.state().blocks.last().map(|head| head.header(false));
        self.tell("starknet_subscriptionNewHeads", json!(head));
    }

    /// Tells the subscribers of something.
    pub fn tell(&self, method: &str, result: Value) {
        self.notify(method, json!({"subscription_id": "1", "result": result}));
    }

    pub fn odd(&self, oddity: Oddity) {
        self.state().oddities.push(oddity);
    }

    pub fn set_chain_id(&self, chain_id: &str) {
        self.state().chain_id = chain_id.to_owned();
    }

    pub fn set_spec(&self, version: &str) {
        self.state().spec = version.to_owned();
    }

    pub fn set_on_l1(&self, height: Option<u64>) {
        self.state().on_l1 = height;
    }

    /// This contract is there from that height on.
    pub fn set_there(&self, address: &str, from: u64) {
        self.state().there_from.insert(address.to_owned(), from);
    }

    /// What calling this entry point gives; others fail.
    pub fn set_answer(&self, address: &str, name: &str, felts: &[&str]) {
        let key = (address.to_owned(), Felt::selector(name).to_string());
        self.state().answers.insert(key, felts.iter().map(|felt| (*felt).to_owned()).collect());
    }

    /// The whole block at this height is answered with this, as a node once did.
    pub fn replay(&self, height: u64, answer: Value) {
        self.state().replayed.insert(height, answer);
    }
}

impl FakeStarkBlock {
    /// Place of the transaction, place in it, the transaction, the event.
    fn events(&self) -> Vec<(usize, usize, &FakeTx, &Value)> {
        let mut events = Vec::new();
        for (tx_index, tx) in self.transactions.iter().enumerate() {
            events.extend(tx.events.iter().enumerate().map(|(index, event)| (tx_index, index, tx, event)));
        }
        events
    }

    fn header(&self, on_l1: bool) -> Value {
        json!({
            "status": if on_l1 { "ACCEPTED_ON_L1" } else { "ACCEPTED_ON_L2" },
            "block_hash": padded(&self.hash), "parent_hash": padded(&self.parent_hash),
            "block_number": self.number, "timestamp": self.timestamp,
            "new_root": "0x1", "sequencer_address": "0x1176a1bd84444c89232ec27754698e5d2e7e1a7f1539f12027f28b23ec9f3d8",
            "starknet_version": "0.14.1", "l1_da_mode": "BLOB",
            "transaction_count": self.transactions.len(), "event_count": self.events().len(),
        })
    }

    fn receipts(&self) -> Vec<Value> {
        let receipted = |tx: &FakeTx| {
            json!({
                "transaction": { "type": "INVOKE", "version": "0x3", "nonce": "0x1", "calldata": ["0x1"] },
                "receipt": {
                    "type": "INVOKE", "transaction_hash": padded(&tx.hash), "messages_sent": [],
                    "execution_status": if tx.reverted { "REVERTED" } else { "SUCCEEDED" },
                    "finality_status": "ACCEPTED_ON_L2", "actual_fee": { "amount": "0x1", "unit": "FRI" },
                    "events": tx.events,
                },
            })
        };
        self.transactions.iter().map(receipted).collect()
    }
}

/// Some nodes write all 64 digits.
fn padded(felt: &str) -> String {
    format!("0x{:0>64}", felt[2..].to_uppercase())
}

fn not_found() -> Answer {
    Err((24, "Block not found".to_owned()))
}

impl State<Starknet> {
    fn head(&self) -> u64 {
        self.blocks.last().map_or(0, |block| block.number)
    }

    /// The height that a lie gives the head.
    fn made_up(&self) -> Option<u64> {
        self.faults.iter().find_map(|f| if let Fault::HeadAt(at) = f { Some(*at) } else { None })
    }

    fn is_odd(&self, matches: impl Fn(&Oddity) -> bool) -> bool {
        self.oddities.iter().any(matches)
    }

    fn call(&self, method: &str, params: &Value) -> Answer {
        match method {
            "starknet_chainId" => {
                let other =
                    self.faults.iter().find_map(|f| if let Fault::NetworkIs(id) = f { Some(json!(id)) } else { None });
                Ok(other.unwrap_or_else(|| json!(self.chain_id)))
            }
            "starknet_specVersion" => Ok(json!(self.spec)),
            "starknet_blockNumber" => Ok(json!(self.head())),
            "starknet_blockHashAndNumber" => match self.blocks.last() {
                Some(_) if self.made_up().is_some() => {
                    let number = self.made_up();
                    Ok(
                        json!({"block_hash": padded(&format!("{:#x}", number.unwrap_or_default())), "block_number": number}),
                    )
                }
                Some(head) => Ok(json!({"block_hash": padded(&head.hash), "block_number": head.number})),
                None => Err((32, "There are no blocks".to_owned())),
            },
            "starknet_getBlockWithTxHashes" => self.block(&params["block_id"], false),
            "starknet_getBlockWithReceipts" => self.block(&params["block_id"], true),
            "starknet_getEvents" => self.page(&params["filter"]),
            "starknet_getClassHashAt" => {
                if self.faults.iter().any(|f| matches!(f, Fault::NoState)) {
                    return Err((-32603, "state at that block is pruned".into()));
                }
                let from = self.there_from.get(params["contract_address"].as_str().unwrap());
                let at = params["block_id"]["block_number"].as_u64().unwrap();
                if from.is_some_and(|from| *from <= at) {
                    Ok(json!("0xc1a55"))
                } else {
                    Err((20, "Contract not found".into()))
                }
            }
            "starknet_call" => {
                let of = |key: &str| params["request"][key].as_str().unwrap().to_owned();
                let answer = self.answers.get(&(of("contract_address"), of("entry_point_selector")));
                answer.map(|felts| json!(felts)).ok_or((40, "Contract error".into()))
            }
            _ => Err((-32601, "Method not found".into())),
        }
    }

    fn block(&self, id: &Value, receipts: bool) -> Answer {
        let lie = self.faults.iter().find_map(|f| if let Fault::FinalizedAt(at) = f { Some(*at) } else { None });
        if let Some(number) = lie.filter(|_| id == "l1_accepted") {
            let hash = format!("{number:#x}");
            let block =
                FakeStarkBlock { number, parent_hash: hash.clone(), hash, timestamp: number, transactions: vec![] };
            let mut answer = block.header(true);
            answer["transactions"] = json!([]);
            return Ok(answer);
        }
        let number = match id {
            Value::String(tag) if tag == "latest" => self.head(),
            Value::String(tag) if tag == "l1_accepted" => match self.on_l1 {
                _ if self.is_odd(|odd| matches!(odd, Oddity::NoL1)) => {
                    return Err((-32602, "Invalid params: unknown variant `l1_accepted`".into()));
                }
                Some(on_l1) => on_l1,
                None => return not_found(),
            },
            other => other["block_number"].as_u64().unwrap(),
        };
        if let Some(answer) = self.replayed.get(&number).filter(|_| receipts) {
            return Ok(answer.clone());
        }
        let wrong = self.faults.iter().any(|f| matches!(f, Fault::WrongBlock)) && id.is_object();
        let number = if wrong { number.saturating_sub(1) } else { number };
        let missing = self.faults.iter().any(|f| matches!(f, Fault::MissingBlock(h) if *h == number));
        let Some(block) = self.blocks.iter().find(|b| b.number == number && !missing) else { return not_found() };
        let mut answer = block.header(self.on_l1.is_some_and(|on_l1| number <= on_l1));
        answer["transactions"] = if receipts {
            json!(block.receipts())
        } else {
            json!(block.transactions.iter().map(|tx| padded(&tx.hash)).collect::<Vec<_>>())
        };
        for oddity in &self.oddities {
            self.disfigure(oddity, block, &mut answer, receipts);
        }
        Ok(answer)
    }

    fn disfigure(&self, oddity: &Oddity, block: &FakeStarkBlock, answer: &mut Value, receipts: bool) {
        let drop = |answer: &mut Value, fields: &[&str]| {
            fields.iter().for_each(|field| drop(answer.as_object_mut().unwrap().remove(*field)));
        };
        let here = |height: &u64| *height == block.number;
        match oddity {
            Oddity::PreConfirmed(height) if here(height) => {
                answer["status"] = json!("PRE_CONFIRMED");
                drop(answer, &["block_hash", "parent_hash", "new_root"]);
            }
            Oddity::Pending(height) if here(height) => drop(answer, &["status", "block_hash", "block_number"]),
            Oddity::Rejected(height) if here(height) => answer["status"] = json!("REJECTED"),
            Oddity::StrangeReceipts(height) if here(height) && receipts => {
                answer["transactions"][0]["receipt"]["block_hash"] = json!("0xbad");
            }
            Oddity::DoubledTransaction(height) if here(height) => {
                let first = answer["transactions"][0].clone();
                answer["transactions"].as_array_mut().unwrap().push(first);
                drop(answer, &["transaction_count", "event_count"]);
            }
            Oddity::LostReceipt(height) if here(height) && receipts => {
                answer["transactions"].as_array_mut().unwrap().pop();
                drop(answer, &["transaction_count", "event_count"]);
            }
            Oddity::LostEvent(height) if here(height) && receipts => {
                let last = block.transactions.len() - 1;
                answer["transactions"][last]["receipt"]["events"].as_array_mut().unwrap().pop();
            }
            Oddity::ReversedReceipts(height) if here(height) && receipts => {
                answer["transactions"].as_array_mut().unwrap().reverse();
            }
            _ => {}
        }
    }

    fn page(&self, filter: &Value) -> Answer {
        let bound = |key: &str| filter[key]["block_number"].as_u64().unwrap();
        let (from, to) = (bound("from_block"), bound("to_block"));
        let size = filter["chunk_size"].as_u64().unwrap();
        for oddity in &self.oddities {
            if let Oddity::LargestPage(most) = oddity
                && size > *most
            {
                return Err((31, "Requested page size is too big".into()));
            }
        }
        for fault in &self.faults {
            if let Fault::MaxRange(most, message) = fault
                && to - from + 1 > *most
            {
                return Err((-32602, (*message).to_owned()));
            }
        }
        let number = |felt: &Value| Felt::parse(felt.as_str().unwrap()).ok();
        let wanted = |event: &Value| {
            let key = filter.pointer("/keys/0/0").and_then(number);
            number(&event["from_address"]) == number(&filter["address"])
                && key.is_none_or(|key| event["keys"].get(0).and_then(number) == Some(key))
        };
        let left_out = |block: &FakeStarkBlock| {
            self.faults.iter().any(|f| matches!(f, Fault::LogsLeftOut(h) if *h == block.number))
        };
        let mut all = Vec::new();
        for block in self.blocks.iter().filter(|b| (from..=to).contains(&b.number) && !left_out(b)) {
            let mut of_block = Vec::new();
            for (tx_index, event_index, tx, event) in
                block.events().into_iter().filter(|(_, _, _, event)| wanted(event))
            {
                let mut placed = event.clone();
                let other = self.is_odd(|odd| matches!(odd, Oddity::OtherHash(h) if *h == block.number));
                placed["block_hash"] = json!(if other { "0xbad".to_owned() } else { padded(&block.hash) });
                placed["block_number"] = json!(block.number);
                placed["transaction_hash"] = json!(padded(&tx.hash));
                if self.spec.as_str() >= "0.9" {
                    placed["transaction_index"] = json!(tx_index);
                    placed["event_index"] = json!(event_index);
                }
                of_block.push(placed);
            }
            if self.is_odd(|odd| matches!(odd, Oddity::InventedEvent(h) if *h == block.number)) {
                of_block.extend(of_block.last().cloned());
            }
            all.extend(of_block);
        }
        if self.is_odd(|odd| matches!(odd, Oddity::StrayEvent)) {
            all.iter_mut().take(1).for_each(|event| event["from_address"] = json!("0x57a4"));
        }
        if self.is_odd(|odd| matches!(odd, Oddity::PendingEvent)) {
            all.extend(all.last().cloned().map(|mut event| {
                event.as_object_mut().unwrap().retain(|key, _| !key.starts_with("block_"));
                event
            }));
        }
        let mut token = filter["continuation_token"].as_str().unwrap_or("0").split('/');
        let start: usize = token.next().unwrap().parse().unwrap();
        let empty: u64 = token.next().map_or(0, |empty| empty.parse().unwrap());
        let due = |odd: &Oddity| match odd {
            Oddity::EndlessTokens => true,
            Oddity::EmptyPages(pages) => empty < *pages,
            _ => false,
        };
        if self.is_odd(due) {
            return Ok(json!({ "events": [], "continuation_token": format!("{start}/{}", empty + 1) }));
        }
        let end = (start + usize::try_from(size).unwrap()).min(all.len());
        let repeated = self.is_odd(|odd| matches!(odd, Oddity::RepeatedToken));
        let mut page = json!({ "events": all[start.min(end)..end] });
        if repeated {
            page = json!({ "events": [], "continuation_token": "0" });
        } else if end < all.len() {
            page["continuation_token"] = json!(end.to_string());
        }
        Ok(page)
    }
}

/// `len` blocks on top of `parent`, each with the transactions given for its height; `salt` tells branches apart.
pub fn chain(
    from: u64,
    len: u64,
    parent: Option<&FakeStarkBlock>,
    salt: &str,
    transactions: impl Fn(u64) -> Vec<FakeTx>,
) -> Vec<FakeStarkBlock> {
    let mut parent_hash = parent.map_or_else(|| "0x0".to_owned(), |p| p.hash.clone());
    let mut blocks = Vec::new();
    for number in from..from + len {
        let hash = Felt::selector(&format!("{salt}/{number}/{parent_hash}")).to_string();
        let mut transactions = transactions(number);
        // No hash of a transaction returns in another block.
        for (index, tx) in transactions.iter_mut().enumerate() {
            tx.hash = Felt::selector(&format!("{hash}/{index}")).to_string();
        }
        let timestamp = 1_700_000_000 + 6 * number;
        blocks.push(FakeStarkBlock { number, hash: hash.clone(), parent_hash, timestamp, transactions });
        parent_hash = hash;
    }
    blocks
}

/// A transaction that worked.
pub fn tx(events: Vec<Value>) -> FakeTx {
    FakeTx { hash: String::new(), reverted: false, events }
}

/// A transaction that did not; what it said is its fee.
pub fn reverted(events: Vec<Value>) -> FakeTx {
    FakeTx { reverted: true, ..tx(events) }
}

/// An event by its name.
pub fn named(emitter: &str, name: &str, keys: &[&str], data: &[&str]) -> Value {
    let selector = Felt::selector(name).to_string();
    let keys: Vec<&str> = std::iter::once(selector.as_str()).chain(keys.iter().copied()).collect();
    json!({ "from_address": padded(emitter), "keys": keys, "data": data })
}

/// A Transfer of a token of the first years.
pub fn old_transfer(token: &str, from: &str, to: &str, amount: u128) -> Value {
    named(token, "Transfer", &[], &[from, to, &format!("{amount:#x}"), "0x0"])
}

/// A Transfer of a newer token.
pub fn new_transfer(token: &str, from: &str, to: &str, amount: u128) -> Value {
    named(token, "Transfer", &[from, to], &[&format!("{amount:#x}"), "0x0"])
}
