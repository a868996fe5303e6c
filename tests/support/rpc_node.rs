//! A JSON-RPC node on loopback, whatever kind of chain it serves: real HTTP, real WebSocket, and faults that every node
//! may have.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used, reason = "each test file uses a part of it")]

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;

use super::http::{self, Reply};

/// A way to misbehave; it hits every request until [`RpcNode::heal`], or so many that ask about it ([`RpcNode::lie`]).
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
    /// No answer at all to requests that call this method.
    HangOn(&'static str),
    /// Answers to requests that call this method come so much later.
    SlowOn(&'static str, Duration),
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
    /// The block at this height is null by number and by hash, and its logs are not known.
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
    /// The network calls itself this.
    NetworkIs(&'static str),
    /// The node does not know the `finalized` tag.
    NoFinalized,
    /// Calls about old state fail.
    NoState,
}

impl Fault {
    /// Whether this call is answered in another way because of it; what is no lie about the chain strikes every call.
    fn is_about(&self, call: &Value) -> bool {
        let call = call.to_string();
        let names = |words: &[&str]| words.iter().any(|word| call.contains(word));
        match self {
            Fault::HeadAt(_) => names(&["\"latest\"", "eth_blockNumber", "starknet_blockHashAndNumber"]),
            Fault::FinalizedAt(_) => names(&["\"finalized\"", "\"l1_accepted\""]),
            Fault::NetworkIs(_) => names(&["_chainId\""]),
            _ => true,
        }
    }
}

/// What a node says to one call.
pub type Answer = Result<Value, (i64, String)>;

/// A kind of chain.
pub trait Serves: Sized + Send + 'static {
    type Block: Clone + Send + 'static;

    fn call(state: &State<Self>, method: &str, params: &Value) -> Answer;

    /// Forgets faults that only this kind has.
    fn heal(&mut self) {}
}

/// What a node of one kind knows; what only that kind knows is reached through it.
pub struct State<C: Serves> {
    pub(super) blocks: Vec<C::Block>,
    pub(super) faults: Vec<Fault>,
    /// How often each is still told.
    lies: Vec<(u64, Fault)>,
    requests: u64,
    calls: HashMap<String, u64>,
    swap: Option<(u64, Vec<C::Block>)>,
    kind: C,
}

impl<C: Serves> Deref for State<C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.kind
    }
}

impl<C: Serves> DerefMut for State<C> {
    fn deref_mut(&mut self) -> &mut C {
        &mut self.kind
    }
}

/// The node.
pub struct RpcNode<C: Serves> {
    state: Arc<Mutex<State<C>>>,
    announce: broadcast::Sender<String>,
    http: u16,
    ws: u16,
    tasks: Vec<JoinHandle<()>>,
}

impl<C: Serves> RpcNode<C> {
    /// Serves these blocks (ascending, without a hole).
    pub(super) async fn serve(kind: C, blocks: Vec<C::Block>) -> RpcNode<C> {
        let state = State {
            blocks,
            faults: Vec::new(),
            lies: Vec::new(),
            requests: 0,
            calls: HashMap::new(),
            swap: None,
            kind,
        };
        let state = Arc::new(Mutex::new(state));
        let (announce, _) = broadcast::channel(64);
        let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ws = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ports = (http.local_addr().unwrap().port(), ws.local_addr().unwrap().port());
        let tasks =
            vec![tokio::spawn(accept_http(http, Arc::clone(&state))), tokio::spawn(accept_ws(ws, announce.clone()))];
        RpcNode { state, announce, http: ports.0, ws: ports.1, tasks }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/key/TOPSECRET", self.http)
    }

    pub fn ws_url(&self) -> String {
        format!("ws://127.0.0.1:{}/key/TOPSECRET", self.ws)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State<C>> {
        self.state.lock().unwrap()
    }

    /// Another chain from now on; what is not on it is forgotten, as real nodes do. The subscription stays silent.
    pub fn set_chain_quietly(&self, blocks: Vec<C::Block>) {
        self.state().blocks = blocks;
    }

    /// After so many more requests the chain is another one.
    pub fn set_chain_after(&self, requests: u64, blocks: Vec<C::Block>) {
        self.state().swap = Some((requests, blocks));
    }

    /// Sends a notice to every subscriber.
    pub fn notify(&self, method: &str, params: Value) {
        let _ = self.announce.send(json!({"jsonrpc": "2.0", "method": method, "params": params}).to_string());
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

    /// Misbehaves so towards the next so many requests that are about it, and not towards others.
    pub fn lie(&self, times: u64, fault: Fault) {
        self.state().lies.push((times, fault));
    }

    /// Whether every lie was told as often as it was to be.
    pub fn has_lied(&self) -> bool {
        self.state().lies.is_empty()
    }

    pub fn heal(&self) {
        let mut state = self.state();
        state.lies.clear();
        state.faults.clear();
        state.kind.heal();
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

impl<C: Serves> Drop for RpcNode<C> {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Subscribers hear what is announced; an empty text hangs up.
async fn accept_ws(listener: TcpListener, announce: broadcast::Sender<String>) {
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

async fn accept_http<C: Serves>(listener: TcpListener, state: Arc<Mutex<State<C>>>) {
    let mut open = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let state = Arc::clone(&state);
        open.spawn(http::serve(stream, "content-type: application/json\r\n", move |head, body| {
            assert!(head.contains("user-agent: ebbtide/") || head.contains("user-agent: curl"), "{head}");
            serde_json::from_slice(body).map_or(Reply::Drop, |request| reply(&state, &request))
        }));
    }
}

fn reply<C: Serves>(state: &Mutex<State<C>>, request: &Value) -> Reply {
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
    let calls = calls_of(request);
    let honest = state.faults.len();
    let State { lies, faults, .. } = &mut *state;
    for (left, lie) in lies.iter_mut().filter(|(_, lie)| calls.iter().any(|call| lie.is_about(call))) {
        *left -= 1;
        faults.push(lie.clone());
    }
    lies.retain(|(left, _)| *left > 0);
    let reply = said(&state.faults, request, |call| C::call(&state, call["method"].as_str().unwrap(), &call["params"]));
    let late = state.faults.iter().find_map(|fault| match fault {
        Fault::SlowOn(method, after) if calls.iter().any(|call| call["method"] == *method) => Some(*after),
        _ => None,
    });
    state.faults.truncate(honest);
    match late {
        Some(after) => Reply::Late(after, Box::new(reply)),
        None => reply,
    }
}

/// The calls of a request.
fn calls_of(request: &Value) -> Vec<Value> {
    request.as_array().cloned().unwrap_or_else(|| vec![request.clone()])
}

/// What a node with these faults says to a request, whatever kind of chain it is of.
fn said(faults: &[Fault], request: &Value, result: impl Fn(&Value) -> Answer) -> Reply {
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
            Fault::HangOn(method) if calls.iter().any(|call| call["method"] == *method) => return Reply::Hang,
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

fn answer(faults: &[Fault], call: &Value, result: impl Fn(&Value) -> Answer) -> Value {
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
