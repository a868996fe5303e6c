//! New blocks over a WebSocket, as a bell and nothing more: the indexer pushes blocks before it can be asked for
//! them, and some that it never stores.

use std::sync::Arc;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use rand::RngExt;
use reqwest::Url;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::sources::http::shown;
use crate::sources::websocket::{self, Transport};

const PROTOCOL: &str = "graphql-transport-ws";
const SUBSCRIPTION: &str = "subscription Wake { getBlocks(where: {}) { height hash } }";
/// In this protocol the server never pings.
const PING_EVERY: Duration = Duration::from_secs(15);
/// Two pongs that did not come.
const MISSED_PONGS: u32 = 2;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A subscription that reconnects for as long as this lives.
#[derive(Debug)]
pub(super) struct Pushes {
    bell: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Pushes {
    /// Starts listening. Must be called inside a runtime.
    pub(super) fn listen(url: Url) -> Pushes {
        let bell = Arc::new(Notify::new());
        let task = tokio::spawn(keep_listening(url, Arc::clone(&bell)));
        Pushes { bell, task }
    }

    /// Returns at the next ring, or at once if the bell rang since the last call. Cancel safe.
    pub(super) async fn rung(&self) {
        self.bell.notified().await;
    }
}

impl Drop for Pushes {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep_listening(url: Url, bell: Arc<Notify>) {
    let server = shown(&url);
    let mut pause = FIRST_PAUSE;
    let mut told = false;
    loop {
        let since = Instant::now();
        let why = match listen_once(&url, &bell, PING_EVERY).await {
            Ok(never) => match never {},
            Err(why) => why,
        };
        if since.elapsed() > LONGEST_PAUSE {
            (pause, told) = (FIRST_PAUSE, false);
        }
        // Polling goes on meanwhile, so a server without subscriptions is worth one line, not one a minute.
        if told {
            tracing::debug!(%server, %why, "no subscription");
        } else {
            tracing::warn!(%server, %why, "No subscription to new blocks: polling until there is one");
        }
        told = true;
        let jitter = rand::rng().random_range(0.5..1.0);
        tokio::time::sleep(pause.mul_f64(jitter)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[derive(Debug)]
enum Never {}

async fn listen_once(url: &Url, bell: &Notify, ping_every: Duration) -> Result<Never, String> {
    let mut socket = websocket::connect_speaking(url, PROTOCOL).await?;
    say(&mut socket, &json!({"type": "connection_init"})).await?;
    let mut pings = interval(ping_every);
    let mut unanswered = 0;
    loop {
        tokio::select! {
            message = socket.next() => match message {
                Some(Ok(Message::Text(text))) => {
                    let message: Value = serde_json::from_str(&text).map_err(|e| format!("not JSON: {e}"))?;
                    match message["type"].as_str() {
                        Some("connection_ack") => {
                            let payload = json!({"query": SUBSCRIPTION});
                            say(&mut socket, &json!({"id": "1", "type": "subscribe", "payload": payload})).await?;
                            // Nothing is replayed: blocks may have gone by while the subscription was not there.
                            bell.notify_one();
                        }
                        Some("next") => bell.notify_one(),
                        Some("ping") => say(&mut socket, &json!({"type": "pong"})).await?,
                        Some("pong") => unanswered = 0,
                        Some(end @ ("error" | "complete")) => {
                            let said: String = message["payload"].to_string().chars().take(200).collect();
                            return Err(format!("the server ended it ({end}): {said}"));
                        }
                        _ => {}
                    }
                }
                Some(Ok(Message::Close(_))) | None => return Err("the server closed it".into()),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.to_string()),
            },
            _ = pings.tick() => {
                if unanswered >= MISSED_PONGS {
                    return Err(format!("{MISSED_PONGS} pings were not answered"));
                }
                unanswered += 1;
                say(&mut socket, &json!({"type": "ping"})).await?;
            }
        }
    }
}

async fn say<T: Transport>(socket: &mut WebSocketStream<T>, message: &Value) -> Result<(), String> {
    let sent = timeout(PING_EVERY, socket.send(Message::text(message.to_string()))).await;
    sent.map_err(|_| "stuck".to_owned())?.map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};

    use super::*;

    const QUICK: Duration = Duration::from_millis(20);

    /// Greets, and answers so many pings; returns how many came before the other end went away.
    async fn serve(listener: TcpListener, answered: u32) -> u32 {
        #[expect(clippy::result_large_err, reason = "the library's own type")]
        let agree = |_: &Request, mut response: Response| {
            response.headers_mut().insert("sec-websocket-protocol", PROTOCOL.parse().expect("a header"));
            Ok(response)
        };
        let (stream, _) = listener.accept().await.expect("a connection");
        let mut socket = tokio_tungstenite::accept_hdr_async(stream, agree).await.expect("a handshake");
        let mut pings = 0;
        while let Some(Ok(Message::Text(text))) = socket.next().await {
            let message: Value = serde_json::from_str(&text).expect("JSON");
            let reply = match message["type"].as_str() {
                Some("connection_init") => "connection_ack",
                Some("ping") => {
                    pings += 1;
                    if pings > answered {
                        continue;
                    }
                    "pong"
                }
                _ => continue,
            };
            if say(&mut socket, &json!({ "type": reply })).await.is_err() {
                break;
            }
        }
        pings
    }

    #[tokio::test]
    async fn a_connection_whose_pings_are_not_answered_is_given_up() {
        for answered in [0, 7] {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let url = format!("ws://{}/graphql/query", listener.local_addr().expect("an address"));
            let url = Url::parse(&url).expect("a URL");
            let server = tokio::spawn(serve(listener, answered));
            let bell = Notify::new();
            let why = listen_once(&url, &bell, QUICK).await.expect_err("silence");
            assert!(why.contains("were not answered"), "{why}");
            assert_eq!(server.await.expect("the server"), answered + MISSED_PONGS, "answered {answered}");
            bell.notified().await;
        }
    }
}
