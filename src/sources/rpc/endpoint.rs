//! One URL that speaks JSON-RPC: batches out, answers matched to their calls.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::Dialect;
use super::fault::Verdict;
use crate::chain::Height;
use crate::sources::SourceError;
use crate::sources::net::http::HttpFault;
use crate::sources::net::server::Server;

/// Requests of one call of ours that are under way at once on one endpoint.
const REQUESTS_AT_ONCE: usize = 4;
/// A node that refused batches is offered them again after this: the refusal may have been a passing fault.
const OFFER_AGAIN: Duration = Duration::from_secs(60);

/// What an error means stands in its first words, in characters.
const LONGEST_JUDGED: usize = 600;

/// One method call.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) method: &'static str,
    pub(crate) params: Value,
    /// How many heights are asked about at once. None means that less cannot be asked for.
    heights: Option<u64>,
}

/// A node's error for one call.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct RpcError {
    #[serde(default)]
    pub(crate) code: Value,
    #[serde(default)]
    pub(crate) message: Value,
    #[serde(default)]
    pub(crate) data: Value,
}

/// What came of one call; `null` for "there is no such thing".
pub(crate) type Answer = Result<Box<RawValue>, RpcError>;

/// One URL.
#[derive(Debug)]
pub(crate) struct Endpoint {
    server: Server,
    /// For blocks, shared with the other URLs of the chain: as many requests at once as the settings allow.
    blocks: Lane,
    /// For what blocks need not wait for, one request at a time: a contract may let it wait for as long as a request may take.
    aside: Lane,
    pub(crate) dialect: &'static Dialect,
    /// Whether the last question for a range met a limit that did not say which.
    limited: AtomicBool,
}

/// Requests that take turns, and the calls that one of them may hold: what is learned from questions of one kind is no measure
/// for those of another.
#[derive(Debug)]
struct Lane {
    gate: Arc<Semaphore>,
    most_calls: AtomicUsize,
    shrunk_at: Mutex<Option<Instant>>,
}

#[derive(Serialize)]
struct Request<'c> {
    jsonrpc: &'static str,
    id: usize,
    method: &'static str,
    params: &'c Value,
}

#[derive(Deserialize)]
struct Response<'b> {
    #[serde(default)]
    id: Value,
    #[serde(default, borrow, deserialize_with = "present")]
    result: Option<&'b RawValue>,
    #[serde(default)]
    error: Option<Value>,
}

/// Why a request has to be cut into smaller ones.
enum Sent {
    Answers(Vec<Answer>),
    Fewer { at_most: usize },
}

impl Call {
    pub(crate) fn new(method: &'static str, params: Value) -> Call {
        Call { method, params, heights: None }
    }

    /// A call about so many heights; about fewer, if that is too many.
    pub(crate) fn over(method: &'static str, params: Value, heights: u64) -> Call {
        Call { method, params, heights: Some(heights) }
    }

    /// How many heights are asked about, if less can be asked for.
    fn divisible(&self) -> Option<u64> {
        self.heights.filter(|heights| *heights > 1)
    }
}

impl RpcError {
    /// The node's words as they came: to be judged by, and to be shown by [`Server::quote`] alone.
    pub(crate) fn words(&self) -> String {
        let mut text = match &self.message {
            Value::String(text) => text.clone(),
            Value::Null => String::from("an error without a message"),
            other => other.to_string(),
        };
        // Some nodes keep the reason in `data` ("execution reverted", "block range …").
        if let Value::String(data) = &self.data
            && !data.starts_with("0x")
        {
            text.push_str(": ");
            text.push_str(data);
        }
        text
    }

    pub(crate) fn verdict(&self, dialect: &Dialect, method: &str) -> Verdict {
        let words: String = self.words().chars().take(LONGEST_JUDGED).collect();
        (dialect.judge)(method, self.code.as_i64().unwrap_or_default(), &words)
    }
}

impl Lane {
    fn new(gate: Arc<Semaphore>, dialect: &Dialect) -> Lane {
        Lane { gate, most_calls: AtomicUsize::new(dialect.most_calls), shrunk_at: Mutex::new(None) }
    }

    /// Asks for less at once, for a while.
    fn shrink(&self, at_most: usize) {
        self.most_calls.fetch_min(at_most, Ordering::Relaxed);
        if let Ok(mut shrunk_at) = self.shrunk_at.lock() {
            *shrunk_at = Some(Instant::now());
        }
    }

    fn most_calls(&self, dialect: &Dialect) -> usize {
        if let Ok(mut shrunk_at) = self.shrunk_at.lock()
            && shrunk_at.is_some_and(|at| at.elapsed() > OFFER_AGAIN)
        {
            *shrunk_at = None;
            self.most_calls.store(dialect.most_calls, Ordering::Relaxed);
        }
        self.most_calls.load(Ordering::Relaxed).max(1)
    }
}

impl Deref for Endpoint {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl Endpoint {
    pub(crate) fn new(server: Server, gate: Arc<Semaphore>, dialect: &'static Dialect) -> Endpoint {
        Endpoint {
            server,
            blocks: Lane::new(gate, dialect),
            aside: Lane::new(Arc::new(Semaphore::new(1)), dialect),
            dialect,
            limited: AtomicBool::new(false),
        }
    }

    /// Makes all these calls, in as few requests as the node allows; the answers are in the order of the calls. The
    /// first request that fails ends it.
    pub(crate) async fn ask(&self, calls: &[Call]) -> Result<Vec<Answer>, SourceError> {
        self.ask_in(&self.blocks, calls).await
    }

    /// As [`ask`](Endpoint::ask), for what no block waits for: one request after the other, and none of those that blocks may
    /// have at once.
    pub(crate) async fn ask_aside(&self, calls: &[Call]) -> Result<Vec<Answer>, SourceError> {
        self.ask_in(&self.aside, calls).await
    }

    async fn ask_in(&self, lane: &Lane, calls: &[Call]) -> Result<Vec<Answer>, SourceError> {
        let size = lane.most_calls(self.dialect);
        // Boxed by hand: the compiler cannot see that a closure over a borrowed part may cross threads.
        let mut parts: Vec<BoxFuture<'_, Result<Vec<Answer>, SourceError>>> = Vec::new();
        for part in calls.chunks(size) {
            parts.push(Box::pin(self.ask_part(lane, part)));
        }
        let answers: Vec<Vec<Answer>> = futures::stream::iter(parts).buffered(REQUESTS_AT_ONCE).try_collect().await?;
        Ok(answers.into_iter().flatten().collect())
    }

    /// One answer that must be there: a null or an error is a fault.
    pub(crate) async fn ask_one(&self, call: Call) -> Result<Box<RawValue>, SourceError> {
        let answer = self.ask(std::slice::from_ref(&call)).await?.pop();
        match answer {
            Some(Ok(raw)) => Ok(raw),
            Some(Err(error)) => Err(self.refused(&call, &error)),
            None => Err(self.transient("no answer")),
        }
    }

    /// One chunk; cut smaller, here and for the future, when the node wants that.
    async fn ask_part(&self, lane: &Lane, calls: &[Call]) -> Result<Vec<Answer>, SourceError> {
        let at_most = match self.send(lane, calls).await? {
            Sent::Answers(answers) => return Ok(answers),
            Sent::Fewer { at_most } => at_most.clamp(1, calls.len().div_ceil(2)),
        };
        tracing::debug!(node = %self.shown, at_most, "node wants smaller batches");
        lane.shrink(at_most);
        let mut answers = Vec::with_capacity(calls.len());
        // One after the other, so that a node in trouble is not asked more often than before.
        for part in calls.chunks(at_most) {
            match self.send(lane, part).await? {
                Sent::Answers(more) => answers.extend(more),
                Sent::Fewer { .. } if part.len() > 1 => {
                    lane.most_calls.store(1, Ordering::Relaxed);
                    return Err(self.transient("the node refuses batches: going on with single requests"));
                }
                Sent::Fewer { .. } => return Err(self.transient("the node refuses even single requests")),
            }
        }
        Ok(answers)
    }

    async fn send(&self, lane: &Lane, calls: &[Call]) -> Result<Sent, SourceError> {
        let requests: Vec<Request<'_>> = calls
            .iter()
            .enumerate()
            .map(|(id, call)| Request { jsonrpc: "2.0", id: id + 1, method: call.method, params: &call.params })
            .collect();
        let body = match requests.as_slice() {
            [only] => serde_json::to_vec(only),
            many => serde_json::to_vec(many),
        }
        .map_err(|e| self.transient(format!("cannot write the request: {e}")))?;
        let reply = {
            let _turn = lane.gate.acquire().await.map_err(|_| self.transient("shutting down"))?;
            self.post(body).await
        };
        let reply = match reply {
            Ok(reply) => reply,
            Err(HttpFault::TooLarge(_)) if calls.len() > 1 => return Ok(Sent::Fewer { at_most: calls.len() / 2 }),
            Err(HttpFault::TooLarge(limit)) => return Err(self.too_large(&calls[0], limit)),
            Err(fault) => {
                // It may have been too much for one request: the same again would never be answered.
                if matches!(fault, HttpFault::TimedOut(_)) && calls.len() > 1 {
                    lane.shrink(calls.len() / 2);
                }
                return Err(self.transient(fault.to_string()));
            }
        };
        if let Some(refusal) = self.refusal(&reply) {
            return Err(refusal);
        }
        let later = |what: String| self.later(what, reply.retry_after);
        let (status, text) = (reply.status, reply.text());
        let single = match text.first() {
            Some(b'[') => {
                let answers: Vec<Option<Response<'_>>> = serde_json::from_slice(text)
                    .map_err(|e| later(format!("an answer that is not whole JSON: {e}")))?;
                return match self.matched(calls, answers.into_iter().flatten())? {
                    Some(answers) => Ok(Sent::Answers(answers)),
                    None => Ok(Sent::Fewer { at_most: 1 }),
                };
            }
            Some(b'{') => serde_json::from_slice::<Response<'_>>(text)
                .map_err(|e| later(format!("an answer that is not whole JSON: {e}")))?,
            Some(b'<') => return Err(self.permanent("answers with a web page, not with JSON-RPC: is the URL right?")),
            _ if calls.len() > 1 && matches!(status, 400 | 405 | 413..=415 | 422) => {
                return Ok(Sent::Fewer { at_most: if status == 413 { calls.len() / 2 } else { 1 } });
            }
            _ if (400..500).contains(&status) => {
                return Err(self.permanent(format!("answers HTTP {status}: is the URL right?")));
            }
            Some(_) => return Err(later("an answer that is not JSON".into())),
            None => return Err(later("an empty answer".into())),
        };
        if calls.len() == 1 {
            let answers = self.matched(calls, std::iter::once(single))?;
            return answers.map(Sent::Answers).ok_or_else(|| later("an answer to another call".into()));
        }
        // One object for a whole batch: the node says why it took none of it.
        let Some(error) = single.error.map(read_error) else {
            return Err(later("one answer to many calls".into()));
        };
        match self.verdict("", &error) {
            Verdict::BatchRefused { at_most } => {
                let at_most = at_most.and_then(|n| usize::try_from(n).ok()).unwrap_or(calls.len() / 2);
                Ok(Sent::Fewer { at_most })
            }
            Verdict::Busy => Err(later(format!("says {:?}", self.quote(&error.words())))),
            Verdict::NoAccess => Err(self.permanent(format!("says {:?}", self.quote(&error.words())))),
            // It may not know batches, or be in trouble: the first single call will tell.
            _ => Ok(Sent::Fewer { at_most: 1 }),
        }
    }

    /// Puts answers beside their calls. None means it was a single call, answered with an error for no call at all.
    fn matched<'b>(
        &self,
        calls: &[Call],
        responses: impl Iterator<Item = Response<'b>>,
    ) -> Result<Option<Vec<Answer>>, SourceError> {
        let mut answers: Vec<Option<Answer>> = calls.iter().map(|_| None).collect();
        let mut unnamed = None;
        for response in responses {
            let id = match &response.id {
                Value::String(text) => text.parse::<u64>().ok(),
                other => other.as_u64(),
            };
            let place = id.and_then(|id| usize::try_from(id).ok()).and_then(|id| id.checked_sub(1));
            let answer = match (response.error, response.result) {
                (Some(Value::Null) | None, Some(result)) => Ok(result.to_owned()),
                (Some(Value::Null) | None, None) => return Err(self.transient("an answer without a result")),
                (Some(error), _) => Err(read_error(error)),
            };
            let Some(place) = place.filter(|place| *place < calls.len()) else {
                // An error without an id belongs to the only call there is, or to all.
                match answer {
                    Err(error) if response.id.is_null() => unnamed = Some(error),
                    _ => return Err(self.transient(format!("an answer to a call {} that was not made", response.id))),
                }
                continue;
            };
            let same = |other: &Answer| match (other, &answer) {
                (Ok(a), Ok(b)) => a.get() == b.get(),
                (Err(_), Err(_)) => true,
                _ => false,
            };
            if answers[place].as_ref().is_some_and(|other| !same(other)) {
                return Err(self.transient(format!("two different answers to one {}", calls[place].method)));
            }
            answers[place] = Some(answer);
        }
        if let Some(error) = unnamed {
            if self.verdict("", &error) == Verdict::Busy {
                return Err(self.transient(format!("says {:?}", self.quote(&error.words()))));
            } else if let [only @ None] = answers.as_mut_slice() {
                *only = Some(Err(error));
            } else if answers.iter().all(Option::is_none) {
                return Ok(None);
            }
        }
        let missing = answers.iter().filter(|a| a.is_none()).count();
        if missing > 0 {
            return Err(self.transient(format!("{missing} of {} answers are missing", calls.len())));
        }
        Ok(Some(answers.into_iter().flatten().collect()))
    }

    /// What an error of this method means, in the words of this kind of chain.
    pub(crate) fn verdict(&self, method: &str, error: &RpcError) -> Verdict {
        error.verdict(self.dialect, method)
    }

    /// What a call's error means.
    pub(crate) fn refused(&self, call: &Call, error: &RpcError) -> SourceError {
        let what = self.say(format!("{} failed: {:?}", call.method, self.quote(&error.words())));
        let too_large = |at_most: Option<u64>| match call.divisible() {
            Some(asked) => {
                SourceError::RangeTooLarge { what: what.clone(), at_most: at_most.filter(|n| *n > 0 && *n < asked) }
            }
            None => SourceError::transient(what.clone()),
        };
        let was_limited = self.limited.swap(false, Ordering::Relaxed);
        match self.verdict(call.method, error) {
            Verdict::RangeTooLarge { at_most } => too_large(at_most),
            // Once it may be a limit of requests, for which asking for less at once would be asking more often.
            Verdict::SomeLimit if was_limited => too_large(None),
            Verdict::SomeLimit => {
                self.limited.store(true, Ordering::Relaxed);
                SourceError::transient(what)
            }
            Verdict::NoMethod | Verdict::NoAccess => SourceError::permanent(what),
            Verdict::NoHistory => SourceError::permanent(format!("{what}: this needs a node that keeps old blocks")),
            Verdict::Busy | Verdict::BatchRefused { .. } | Verdict::UnknownBlock | Verdict::Other => {
                SourceError::transient(what)
            }
        }
    }

    fn too_large(&self, call: &Call, limit: usize) -> SourceError {
        let what = self.say(format!("the answer to {} is larger than {limit} bytes", call.method));
        match call.divisible() {
            Some(_) => SourceError::RangeTooLarge { what, at_most: None },
            None => SourceError::transient(what),
        }
    }

    /// A fault at a height: the node tells two things that cannot both be true.
    pub(crate) fn lies(&self, height: Height, what: impl std::fmt::Display) -> SourceError {
        self.transient(format!("block {height}: {what}"))
    }
}

/// A result that is `null` is a result; one that is not there is a fault.
fn present<'de, D: Deserializer<'de>>(result: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(result).map(Some)
}

/// Some nodes send a bare text where an object belongs.
fn read_error(error: Value) -> RpcError {
    let bare = |message: Value| RpcError { code: Value::Null, message, data: Value::Null };
    match error {
        Value::Object(_) => serde_json::from_value(error).unwrap_or_else(|_| bare(Value::Null)),
        other => bare(other),
    }
}
