//! A JSON-RPC node on loopback that serves a given chain, and misbehaves when told to. Real HTTP, real WebSocket.
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
use std::sync::{Arc, Mutex, MutexGuard};

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;

use super::http::{self, Reply};
pub use blocks::{FakeBlock, chain, data_file, data_lines, data_text, follow, transfer};

/// A way to misbehave; it hits every request until [`FakeNode::heal`].
#[derive(Debug, Clone)]
pub enum Fault {
    /// Every result is null.
    NullAnswers,
    /// Each answer comes twice.
    DoubledAnswers,
    /// Each answer comes twice, the second one being another.
    ContradictedAnswers,
    /// The last answer is missing.
    MissingAnswer,
    /// Answers are for calls nobody made.
    WrongIds,
    /// Answers in reverse order, ids as texts: right, but unusual.
    ReversedAnswers,
    /// An error for every call.
    Refused(i64, &'static str),
    /// One error object for the whole batch; single calls are answered.
    BatchRefused(i64, &'static str),
    /// HTTP 400 for batches of more than so many; others are answered.
    LargestBatch(usize),
    /// No answer at all to batches of more than so many.
    HangAbove(usize),
    /// This status with this body.
    Http(u16, &'static str),
    /// 429 with `Retry-After`.
    RetryAfter(u64),
    /// 200 with this body.
    Body(&'static str),
    /// No answer at all.
    Hang,
    /// Half of the body, then the connection is closed.
    CutBody,
    /// The connection is closed at once.
    DropSocket,
    /// `eth_getLogs` fails for more heights than that, in these words.
    MaxRange(u64, &'static str),
    /// `eth_getLogs` fails for more logs than that, in these words.
    MaxLogs(usize, &'static str),
    /// The block at this height is null by number and by hash.
    MissingBlock(u64),
    /// `eth_getLogs` leaves out every log of this block.
    LogsLeftOut(u64),
    /// As before, but only for ranges.
    LogsLeftOutOfRanges(u64),
    /// Each log comes twice.
    DoubledLogs,
    /// Each log comes twice, with another amount.
    ContradictedLogs,
    /// Half of the logs of a range name another block hash.
    TwoHashes,
    /// A log of a contract that nobody asked for comes along.
    StrayLog,
    /// A block is answered with the one below it.
    WrongBlock,
    /// `latest` is a block at this height that nobody made.
    HeadAt(u64),
    /// `finalized` is a block at this height that nobody made.
    FinalizedAt(u64),
    /// The node does not know the `finalized` tag.
    NoFinalized,
    /// Calls about old state fail.
    NoState,
}

struct State {
    chain_id: u64,
    blocks: Vec<FakeBlock>,
    faults: Vec<Fault>,
    finalized: Option<u64>,
    requests: u64,
    calls: HashMap<String, u64>,
    code_from: HashMap<String, u64>,
    answers: HashMap<(String, String), String>,
    swap: Option<(u64, Vec<FakeBlock>)>,
}

/// The node.
pub struct FakeNode {
    state: Arc<Mutex<State>>,
    announce: broadcast::Sender<String>,
    http: u16,
    ws: u16,
    tasks: Vec<JoinHandle<()>>,
}

impl FakeNode {
    /// Serves these blocks (ascending, without a hole).
    pub async fn start(chain_id: u64, blocks: Vec<FakeBlock>) -> FakeNode {
        let state = Arc::new(Mutex::new(State {
            chain_id,
            blocks,
            faults: Vec::new(),
            finalized: None,
            requests: 0,
            calls: HashMap::new(),
            code_from: HashMap::new(),
            answers: HashMap::new(),
            swap: None,
        }));
        let (announce, _) = broadcast::channel(64);
        let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ws = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ports = (http.local_addr().unwrap().port(), ws.local_addr().unwrap().port());
        let state_of = Arc::clone(&state);
        let answer: Answerer = Arc::new(move |request| reply(&state_of, request));
        let tasks = vec![tokio::spawn(accept_http(http, answer)), tokio::spawn(accept_ws(ws, announce.clone()))];
        FakeNode { state, announce, http: ports.0, ws: ports.1, tasks }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/key/TOPSECRET", self.http)
    }

    pub fn ws_url(&self) -> String {
        format!("ws://127.0.0.1:{}/key/TOPSECRET", self.ws)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Another chain from now on; what is not on it is forgotten, as real nodes do. Rings.
    pub fn set_chain(&self, blocks: Vec<FakeBlock>) {
        self.set_chain_quietly(blocks);
        self.ring();
    }

    /// As `set_chain`, but the subscription stays silent.
    pub fn set_chain_quietly(&self, blocks: Vec<FakeBlock>) {
        self.state().blocks = blocks;
    }

    /// After so many more requests the chain is another one.
    pub fn set_chain_after(&self, requests: u64, blocks: Vec<FakeBlock>) {
        self.state().swap = Some((requests, blocks));
    }

    /// Tells the subscribers of the newest block.
    pub fn ring(&self) {
        let head = self.state().blocks.last().map(FakeBlock::header);
        let message =
            json!({"jsonrpc": "2.0", "method": "eth_subscription", "params": {"subscription": "0x1", "result": head}});
        let _ = self.announce.send(message.to_string());
    }

    /// Closes every subscription.
    pub fn hang_up(&self) {
        let _ = self.announce.send(String::new());
    }

    pub fn subscribers(&self) -> usize {
        self.announce.receiver_count()
    }

    /// Misbehaves so until healed; several faults add up.
    pub fn fault(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    pub fn heal(&self) {
        self.state().faults.clear();
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

    /// HTTP requests so far.
    pub fn request_count(&self) -> u64 {
        self.state().requests
    }

    /// Calls of a method so far, each of a batch counted.
    pub fn call_count(&self, method: &str) -> u64 {
        self.state().calls.get(method).copied().unwrap_or_default()
    }
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Subscribers hear what is announced; an empty text hangs up.
pub async fn accept_ws(listener: TcpListener, announce: broadcast::Sender<String>) {
    let mut open = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let announce = announce.clone();
        open.spawn(async move {
            let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { return };
            let Some(Ok(Message::Text(subscribe))) = socket.next().await else { return };
            assert!(subscribe.to_lowercase().contains("newheads"));
            let mut heads = announce.subscribe();
            let _ = socket.send(Message::text(r#"{"jsonrpc":"2.0","id":1,"result":"0x1"}"#)).await;
            loop {
                tokio::select! {
                    head = heads.recv() => match head {
                        Ok(head) if !head.is_empty() => {
                            if socket.send(Message::text(head)).await.is_err() { return }
                        }
                        _ => return,
                    },
                    message = socket.next() => if !matches!(message, Some(Ok(_))) { return },
                }
            }
        });
    }
}

/// What a node says to a request, which may be a batch.
pub type Answerer = Arc<dyn Fn(&Value) -> Reply + Send + Sync>;

pub async fn accept_http(listener: TcpListener, answer: Answerer) {
    let mut open = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let answer = Arc::clone(&answer);
        open.spawn(http::serve(stream, "content-type: application/json\r\n", move |head, body| {
            assert!(head.contains("user-agent: ebbtide/") || head.contains("user-agent: curl"), "{head}");
            serde_json::from_slice(body).map_or(Reply::Drop, |request| answer(&request))
        }));
    }
}

fn reply(state: &Mutex<State>, request: &Value) -> Reply {
    let mut state = state.lock().unwrap();
    state.requests += 1;
    if let Some((left, _)) = &mut state.swap {
        if *left == 0 {
            state.blocks = state.swap.take().unwrap().1;
        } else {
            *left -= 1;
        }
    }
    for call in calls_of(request) {
        *state.calls.entry(call["method"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    let state = &*state;
    said(&state.faults, request, |call| call_result(state, call["method"].as_str().unwrap(), &call["params"]))
}

/// The calls of a request.
pub fn calls_of(request: &Value) -> Vec<Value> {
    request.as_array().cloned().unwrap_or_else(|| vec![request.clone()])
}

/// What a node with these faults says to a request, whatever kind of chain it is of.
pub fn said(faults: &[Fault], request: &Value, result: impl Fn(&Value) -> Result<Value, (i64, String)>) -> Reply {
    let calls = calls_of(request);
    let whole = |status: u16, body: &str| Reply::Whole(status, String::new(), body.to_owned());
    for fault in faults {
        match fault {
            Fault::Http(status, body) => return whole(*status, body),
            Fault::RetryAfter(seconds) => {
                return Reply::Whole(429, format!("retry-after: {seconds}\r\n"), "slow down".into());
            }
            Fault::Body(body) => return whole(200, body),
            Fault::Hang => return Reply::Hang,
            Fault::DropSocket => return Reply::Drop,
            Fault::BatchRefused(code, message) if request.is_array() => {
                return whole(
                    200,
                    &json!({"jsonrpc": "2.0", "id": null, "error": {"code": code, "message": message}}).to_string(),
                );
            }
            Fault::HangAbove(most) if calls.len() > *most => return Reply::Hang,
            Fault::LargestBatch(most) if request.is_array() && calls.len() > *most => return whole(400, "no"),
            _ => {}
        }
    }
    let mut answers: Vec<Value> = calls.iter().map(|call| answer(faults, call, &result)).collect();
    for fault in faults {
        match fault {
            Fault::NullAnswers => {
                answers.iter_mut().for_each(|a| *a = json!({"jsonrpc": "2.0", "id": a["id"], "result": null}))
            }
            Fault::DoubledAnswers => answers = answers.iter().flat_map(|a| [a.clone(), a.clone()]).collect(),
            Fault::ContradictedAnswers => {
                let other = |a: &Value| json!({"jsonrpc": "2.0", "id": a["id"], "result": "0x7"});
                answers = answers.iter().flat_map(|a| [a.clone(), other(a)]).collect();
            }
            Fault::MissingAnswer => drop(answers.pop()),
            Fault::WrongIds => answers.iter_mut().for_each(|a| a["id"] = json!(a["id"].as_u64().unwrap() + 1000)),
            Fault::ReversedAnswers => {
                answers.iter_mut().for_each(|a| a["id"] = json!(a["id"].to_string()));
                answers.reverse();
            }
            _ => {}
        }
    }
    let body = match (request.is_array(), answers.as_slice()) {
        (false, [only]) => only.to_string(),
        _ => Value::Array(answers).to_string(),
    };
    if faults.iter().any(|f| matches!(f, Fault::CutBody)) { Reply::Cut(body) } else { whole(200, &body) }
}

fn answer(faults: &[Fault], call: &Value, result: impl Fn(&Value) -> Result<Value, (i64, String)>) -> Value {
    let result = faults
        .iter()
        .find_map(|fault| match fault {
            Fault::Refused(code, message) => Some(Err((*code, (*message).to_owned()))),
            _ => None,
        })
        .unwrap_or_else(|| result(call));
    match result {
        Ok(result) => json!({"jsonrpc": "2.0", "id": call["id"], "result": result}),
        Err((code, message)) => {
            json!({"jsonrpc": "2.0", "id": call["id"], "error": {"code": code, "message": message}})
        }
    }
}

fn call_result(state: &State, method: &str, params: &Value) -> Result<Value, (i64, String)> {
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
        "eth_chainId" => Ok(json!(format!("{:#x}", state.chain_id))),
        "eth_blockNumber" => Ok(json!(format!("{head:#x}"))),
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

fn logs(
    state: &State,
    filter: &Value,
    height: impl Fn(&Value) -> Result<u64, (i64, String)>,
) -> Result<Value, (i64, String)> {
    let by_hash = filter.get("blockHash").and_then(Value::as_str);
    let blocks: Vec<&FakeBlock> = match by_hash {
        Some(hash) => {
            let found = state.blocks.iter().find(|b| b.hash == hash);
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
