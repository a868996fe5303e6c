//! How an indexer is made to ring: it pushes blocks before it can be asked for them, and some that it never stores.

use std::time::Duration;

use serde_json::Value;

use crate::sources::net::bell::{Heard, Manner};

const SUBSCRIBE: &str =
    r#"{"id":"1","type":"subscribe","payload":{"query":"subscription Wake { getBlocks(where: {}) { height hash } }"}}"#;

/// `graphql-transport-ws`, in which the server never pings.
pub(super) static PUSHES: Manner = Manner {
    subprotocol: Some("graphql-transport-ws"),
    greeting: r#"{"type":"connection_init"}"#,
    hear,
    ping: Some(r#"{"type":"ping"}"#),
    missed_pings: 2,
    // An indexer that catches up pushes hundreds of old blocks a second.
    between_wakes: Duration::from_millis(250),
};

fn hear(text: &str) -> Result<Heard, String> {
    let message: Value = serde_json::from_str(text).map_err(|e| format!("not JSON: {e}"))?;
    Ok(match message["type"].as_str() {
        // Nothing is replayed: blocks may have gone by while the subscription was not there.
        Some("connection_ack") => Heard { rings: true, answer: Some(SUBSCRIBE), ..Heard::default() },
        Some("next") => Heard { rings: true, ..Heard::default() },
        Some("ping") => Heard { answer: Some(r#"{"type":"pong"}"#), ..Heard::default() },
        Some("pong") => Heard { is_pong: true, ..Heard::default() },
        Some(end @ ("error" | "complete")) => {
            return Err(format!("the server ended it ({end}): {}", message["payload"]));
        }
        _ => Heard::default(),
    })
}

#[cfg(test)]
mod tests {
    use futures::{SinkExt, StreamExt};
    use reqwest::Url;
    use serde_json::json;
    use tokio::net::TcpListener;
    use tokio::sync::Notify;
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};

    use super::*;
    use crate::sources::net::bell::listen_once;

    const QUICK: Duration = Duration::from_millis(20);

    /// Greets, and answers so many pings; returns how many came before the other end went away.
    async fn serve(listener: TcpListener, answered: u32) -> u32 {
        #[expect(clippy::result_large_err, reason = "the library's own type")]
        let agree = |_: &Request, mut response: Response| {
            response.headers_mut().insert("sec-websocket-protocol", "graphql-transport-ws".parse().expect("a header"));
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
            if socket.send(Message::text(json!({ "type": reply }).to_string())).await.is_err() {
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
            let why = listen_once(&url, &PUSHES, &bell, QUICK).await.expect_err("silence");
            assert!(why.contains("were not answered"), "{why}");
            assert_eq!(server.await.expect("the server"), answered + PUSHES.missed_pings, "answered {answered}");
            bell.notified().await;
        }
    }
}
