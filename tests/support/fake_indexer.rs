//! A tx-indexer on loopback: GraphQL over HTTP and over a WebSocket on one path. It answers what it is asked (filters
//! and variables are read, with the real one's traps), and misbehaves when told to.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "each test file uses a part of it"
)]

pub mod chain;
pub mod query;

use std::sync::{Arc, Mutex, MutexGuard};

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};

use super::http::{self, Reply};
pub use chain::{FakeBlock, FakeTx, blocks_from, hash_of, new_token, transfer};
pub use query::{Asked, Bounds};

/// A way to misbehave; it hits every question until [`FakeIndexer::heal`], or so many that ask about it
/// ([`FakeIndexer::lie`]).
#[derive(Debug, Clone)]
pub enum Fault {
    /// Every list is `null`, whatever there is.
    Null,
    /// No more than so many of anything, with `data` and `errors` (the real one: 10,000).
    Cap(usize),
    /// This block was never stored.
    MissingBlock(u64),
    /// This transaction of this block was never stored.
    MissingTx(u64, u64),
    /// A transaction comes twice.
    TxTwice(u64, u64),
    /// A block comes twice.
    BlockTwice(u64),
    /// A transaction of another height comes along.
    StrayTx,
    /// A block of another height comes along.
    StrayBlock,
    /// This block has one transaction more than it says.
    TxTooMany(u64),
    /// This block names another parent.
    BadLink(u64),
    /// This block names itself in hex.
    BadHash(u64),
    /// All blocks are of this chain.
    ChainId(&'static str),
    /// 200 with these words as an error, for every question.
    Refused(&'static str),
    /// As `Refused`, for pages alone.
    PageRefused(&'static str),
    /// `latestBlockHeight` is an error, as on an indexer that has nothing yet.
    NothingYet,
    /// `latestBlockHeight` is so much higher than what can be asked for.
    HeadAhead(u64),
    /// Nothing above this height is there.
    HeadAt(u64),
    /// This status with this body.
    Http(u16, &'static str),
    /// 429 with `Retry-After`.
    RetryAfter(u64),
    /// 200 with this body.
    Body(&'static str),
    /// No answer at all.
    Hang,
    /// No answer to pages of more blocks than that.
    HangBeyond(u64),
    /// Half of the body, then the connection is closed.
    CutBody,
    /// The connection is closed at once.
    DropSocket,
}

impl Fault {
    /// Whether this question is answered in another way because of it.
    fn is_about(&self, asked: &Asked) -> bool {
        match self {
            Fault::HeadAhead(_) => asked.head,
            Fault::ChainId(_) => asked.blocks.is_some(),
            _ => true,
        }
    }
}

struct State {
    blocks: Vec<FakeBlock>,
    faults: Vec<Fault>,
    /// How often each is still told.
    lies: Vec<(u64, Fault)>,
    asked: Vec<Asked>,
    /// Whether `func` is known, as before v0.7.0.
    knows_func: bool,
}

/// The indexer.
pub struct FakeIndexer {
    state: Arc<Mutex<State>>,
    announce: broadcast::Sender<String>,
    port: u16,
    task: JoinHandle<()>,
}

impl FakeIndexer {
    /// Serves these blocks, ascending.
    pub async fn start(blocks: Vec<FakeBlock>) -> FakeIndexer {
        let (faults, lies, asked) = Default::default();
        let state = Arc::new(Mutex::new(State { blocks, faults, lies, asked, knows_func: false }));
        let (announce, _) = broadcast::channel(64);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(accept(listener, Arc::clone(&state), announce.clone()));
        FakeIndexer { state, announce, port, task }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/graphql/query", self.port)
    }

    /// The page for people.
    pub fn playground(&self) -> String {
        format!("http://127.0.0.1:{}/graphql", self.port)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Another chain from now on, without a push.
    pub fn set_chain(&self, blocks: Vec<FakeBlock>) {
        self.state().blocks = blocks;
    }

    pub fn know_func(&self) {
        self.state().knows_func = true;
    }

    /// Tells the subscribers of this block, which need not be there.
    pub fn push(&self, block: &FakeBlock) {
        let data = json!({"getBlocks": {"height": block.height, "hash": block.hash}});
        let message = json!({"type": "next", "id": "1", "payload": {"data": data}});
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

    /// Misbehaves so towards the next so many questions that are about it, and not towards others.
    pub fn lie(&self, times: u64, fault: Fault) {
        self.state().lies.push((times, fault));
    }

    /// Whether every lie was told as often as it was to be.
    pub fn has_lied(&self) -> bool {
        self.state().lies.is_empty()
    }

    pub fn heal(&self) {
        self.state().lies.clear();
        self.state().faults.clear();
    }

    /// Every question so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.state().asked.clone()
    }

    /// The questions for blocks with their transactions so far.
    pub fn pages(&self) -> Vec<Asked> {
        self.asked().into_iter().filter(|asked| asked.blocks.is_some() && asked.transactions.is_some()).collect()
    }
}

impl Drop for FakeIndexer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, state: Arc<Mutex<State>>, announce: broadcast::Sender<String>) {
    let mut open = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (state, announce) = (Arc::clone(&state), announce.clone());
        open.spawn(async move {
            // Queries and subscriptions share the path: what comes tells them apart.
            let mut head = vec![0; 4096];
            loop {
                let Ok(seen) = stream.peek(&mut head).await else { return };
                if seen == 0 {
                    return;
                }
                if head[..seen].windows(4).any(|w| w == b"\r\n\r\n") || seen == head.len() {
                    let upgrade = String::from_utf8_lossy(&head[..seen]).to_lowercase().contains("upgrade: websocket");
                    if upgrade {
                        serve_pushes(stream, announce).await;
                    } else {
                        http::serve(stream, "", |head, body| reply(&state, head, body)).await;
                    }
                    return;
                }
                tokio::task::yield_now().await;
            }
        });
    }
}

/// `graphql-transport-ws` as the real server speaks it: it never pings, and it wants to be greeted first.
async fn serve_pushes(stream: TcpStream, announce: broadcast::Sender<String>) -> Option<()> {
    #[expect(clippy::result_large_err, reason = "the library's own type")]
    let agree = |request: &Request, mut response: Response| {
        assert_eq!(request.uri().path(), "/graphql/query");
        assert!(request.headers().get("origin").is_none(), "a foreign origin is refused");
        assert_eq!(request.headers()["sec-websocket-protocol"], "graphql-transport-ws");
        response.headers_mut().insert("sec-websocket-protocol", "graphql-transport-ws".parse().unwrap());
        Ok(response)
    };
    let mut socket = tokio_tungstenite::accept_hdr_async(stream, agree).await.ok()?;
    let Message::Text(init) = socket.next().await?.ok()? else { return None };
    assert_eq!(serde_json::from_str::<Value>(&init).unwrap()["type"], "connection_init");
    socket.send(Message::text(json!({"type": "connection_ack"}).to_string())).await.ok()?;
    let mut pushes: Option<broadcast::Receiver<String>> = None;
    loop {
        let push = async {
            match &mut pushes {
                Some(pushes) => pushes.recv().await.ok(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            push = push => match push {
                Some(push) if !push.is_empty() => socket.send(Message::text(push)).await.ok()?,
                _ => return None,
            },
            message = socket.next() => {
                let Message::Text(text) = message?.ok()? else { continue };
                let message: Value = serde_json::from_str(&text).unwrap();
                match message["type"].as_str().unwrap() {
                    "subscribe" => {
                        let query = message["payload"]["query"].as_str().unwrap();
                        assert!(query.starts_with("subscription") && query.contains("getBlocks"), "{query}");
                        pushes = Some(announce.subscribe());
                    }
                    "ping" => socket.send(Message::text(json!({"type": "pong"}).to_string())).await.ok()?,
                    other => panic!("a message of type {other}"),
                }
            }
        }
    }
}

fn reply(state: &Mutex<State>, head: &str, body: &[u8]) -> Reply {
    let whole = |status: u16, body: &str| Reply::Whole(status, String::new(), body.to_owned());
    if head.starts_with("post /graphql http") {
        return whole(200, "<!DOCTYPE html><html><title>GraphQL playground</title></html>");
    }
    if !head.starts_with("post /graphql/query http") {
        return whole(404, "404 page not found\n");
    }
    if !head.contains("content-type: application/json") {
        return whole(415, "");
    }
    let mut state = state.lock().unwrap();
    let request: Value = serde_json::from_slice(body).unwrap();
    let asked = Asked::read(request["query"].as_str().unwrap(), &request["variables"]);
    state.asked.push(asked.clone());
    if asked.func && !state.knows_func {
        let error = json!({"message": "Cannot query field \"func\" on type \"GnoEvent\".",
            "extensions": {"code": "GRAPHQL_VALIDATION_FAILED"}});
        return whole(422, &json!({"errors": [error], "data": null}).to_string());
    }
    let page = asked.blocks.is_some() || asked.transactions.is_some();
    let mut cut = false;
    for fault in &state.faults {
        match fault {
            Fault::Http(status, body) => return whole(*status, body),
            Fault::RetryAfter(seconds) => {
                return Reply::Whole(429, format!("retry-after: {seconds}\r\n"), "{\"error\": \"slow\"}\n".into());
            }
            Fault::Body(body) => return whole(200, body),
            Fault::Hang => return Reply::Hang,
            Fault::HangBeyond(most) if asked.width().is_some_and(|width| width > *most) => return Reply::Hang,
            Fault::DropSocket => return Reply::Drop,
            Fault::CutBody => cut = true,
            Fault::PageRefused(words) if page => return whole(200, &refusal(words, Value::Null)),
            Fault::Refused(words) => return whole(200, &refusal(words, Value::Null)),
            Fault::NothingYet if asked.head => {
                return whole(200, &refusal("unable to get latest height: storage is empty", Value::Null));
            }
            _ => {}
        }
    }
    let honest = state.faults.len();
    let State { lies, faults, .. } = &mut *state;
    for (left, lie) in lies.iter_mut().filter(|(_, lie)| lie.is_about(&asked)) {
        *left -= 1;
        faults.push(lie.clone());
    }
    lies.retain(|(left, _)| *left > 0);
    let (data, cap) = query::answer(&asked, &state.blocks, &state.faults);
    state.faults.truncate(honest);
    let body = match cap {
        Some(cap) => refusal(&format!("max elements per query reached ({cap})"), data),
        None => json!({ "data": data }).to_string(),
    };
    if cut { Reply::Cut(body) } else { whole(200, &body) }
}

fn refusal(words: &str, data: Value) -> String {
    json!({"errors": [{"message": words, "path": ["getBlocks"]}], "data": data}).to_string()
}
