//! New heads over a WebSocket, as a bell and nothing more: what rings is never believed, only looked at.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use rand::RngExt;
use reqwest::Url;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval, timeout};
use tokio_tungstenite::tungstenite::Message;

use crate::sources::http::{parse_url, shown};
use crate::sources::{SourceError, websocket};

/// Shortest time between two wakes: a node that rings without end must not be asked without end.
const BETWEEN_WAKES: Duration = Duration::from_millis(20);
const PING_EVERY: Duration = Duration::from_secs(15);
/// Without a sign of life for this long, pongs included, the connection counts as dead.
const SILENT_FOR: Duration = Duration::from_secs(45);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// When to look again: at a ring, if there is a WebSocket, and else after a while.
#[derive(Debug)]
pub(in crate::sources) struct Bell {
    url: Option<Url>,
    subscribe: &'static str,
    heads: OnceLock<Heads>,
    last_wake: Mutex<Option<Instant>>,
}

impl Bell {
    /// `subscribe`: the request that makes the node at `url` ring at new heads. Asks nobody yet.
    ///
    /// # Errors
    /// Permanent: the URL is no WebSocket's.
    pub(in crate::sources) fn new(url: Option<&str>, subscribe: &'static str) -> Result<Bell, SourceError> {
        let url = url.map(|text| parse_url("ws_url", text, &["ws", "wss"])).transpose()?;
        Ok(Bell { url, subscribe, heads: OnceLock::new(), last_wake: Mutex::new(None) })
    }

    /// Returns when there may be something new, at the latest after `at_most`.
    ///
    /// # Cancel safety
    /// A ring that came while this was dropped is kept for the next call.
    pub(in crate::sources) async fn wait(&self, at_most: Duration) {
        match &self.url {
            Some(url) => {
                let heads = self.heads.get_or_init(|| Heads::listen(url.clone(), self.subscribe));
                let pause = self.until_next_wake().min(at_most);
                tokio::time::sleep(pause).await;
                // Both ends are the same to the caller: look again.
                let _ = timeout(at_most - pause, heads.rung()).await;
                *self.last_wake.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            }
            None => tokio::time::sleep(at_most).await,
        }
    }

    fn until_next_wake(&self) -> Duration {
        let last = *self.last_wake.lock().unwrap_or_else(PoisonError::into_inner);
        last.map_or(Duration::ZERO, |last| BETWEEN_WAKES.saturating_sub(last.elapsed()))
    }
}

/// A subscription that reconnects for as long as this lives.
#[derive(Debug)]
struct Heads {
    bell: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Heads {
    /// Starts listening. Must be called inside a runtime.
    fn listen(url: Url, subscribe: &'static str) -> Heads {
        let bell = Arc::new(Notify::new());
        let task = tokio::spawn(keep_listening(url, subscribe, Arc::clone(&bell)));
        Heads { bell, task }
    }

    /// Returns at the next ring, or at once if the bell rang since the last call. Cancel safe.
    async fn rung(&self) {
        self.bell.notified().await;
    }
}

impl Drop for Heads {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep_listening(url: Url, subscribe: &'static str, bell: Arc<Notify>) {
    let node = shown(&url);
    let mut pause = FIRST_PAUSE;
    let mut told = false;
    loop {
        let since = Instant::now();
        let why = match listen_once(&url, subscribe, &bell).await {
            Ok(never) => match never {},
            Err(why) => why,
        };
        if since.elapsed() > LONGEST_PAUSE {
            (pause, told) = (FIRST_PAUSE, false);
        }
        // Polling goes on meanwhile, so a node without subscriptions is worth one line, not one a minute.
        if told {
            tracing::debug!(%node, %why, "no subscription");
        } else {
            tracing::warn!(%node, %why, "Lost the subscription to new heads: polling until it is back");
        }
        told = true;
        let jitter = rand::rng().random_range(0.5..1.0);
        tokio::time::sleep(pause.mul_f64(jitter)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

enum Never {}

async fn listen_once(url: &Url, subscribe: &str, bell: &Notify) -> Result<Never, String> {
    let mut socket = websocket::connect(url).await?;
    socket.send(Message::text(subscribe)).await.map_err(|e| e.to_string())?;
    let mut pings = interval(PING_EVERY);
    let mut last_sign = Instant::now();
    loop {
        tokio::select! {
            message = socket.next() => {
                last_sign = Instant::now();
                match message {
                    Some(Ok(Message::Text(text))) => {
                        refusal(&text).map_or(Ok(()), Err)?;
                        // The answer to the subscription rings too: heads may have gone by while it was not there.
                        bell.notify_one();
                    }
                    Some(Ok(Message::Close(_))) | None => return Err("the node closed it".into()),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(error.to_string()),
                }
            }
            _ = pings.tick() => {
                if last_sign.elapsed() > SILENT_FOR {
                    return Err(format!("not a sign of life for {SILENT_FOR:?}"));
                }
                let ping = socket.send(Message::Ping(Vec::new().into()));
                timeout(PING_EVERY, ping).await.map_err(|_| "stuck".to_owned())?.map_err(|e| e.to_string())?;
            }
        }
    }
}

/// The node's error, if that is what it sent.
fn refusal(text: &str) -> Option<String> {
    let answer: Value = serde_json::from_str(text).ok()?;
    let error = answer.get("error").filter(|error| !error.is_null())?;
    let message = error.get("message").and_then(Value::as_str).unwrap_or("an error").chars().take(200);
    Some(message.filter(|c| !c.is_control()).collect())
}
