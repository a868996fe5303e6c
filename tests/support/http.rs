//! HTTP by hand, since a server library would not let us break it.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What a server does with a request.
pub enum Reply {
    /// Status, more headers, body.
    Whole(u16, String, String),
    /// Half of this body, and then nothing.
    Cut(String),
    Hang,
    Drop,
    /// After so long.
    Late(Duration, Box<Reply>),
}

/// Answers the requests of one connection, given their heads in lower case and their bodies. Every answer has these
/// headers.
pub async fn serve(mut stream: TcpStream, headers: &str, answer: impl Fn(&str, &[u8]) -> Reply + Send) -> Option<()> {
    let mut seen = Vec::new();
    loop {
        let body_at = loop {
            if let Some(at) = seen.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut seen).await.ok()? == 0 {
                return None;
            }
        };
        let head = String::from_utf8_lossy(&seen[..body_at]).to_lowercase();
        let size: usize = head.split("content-length: ").nth(1)?.split("\r\n").next()?.parse().ok()?;
        while seen.len() < body_at + size {
            if stream.read_buf(&mut seen).await.ok()? == 0 {
                return None;
            }
        }
        let body: Vec<u8> = seen.drain(..body_at + size).skip(body_at).collect();
        let mut reply = answer(&head, &body);
        while let Reply::Late(after, late) = reply {
            tokio::time::sleep(after).await;
            reply = *late;
        }
        let (status, more, body, cut) = match reply {
            Reply::Whole(status, more, body) => (status, more, body, false),
            Reply::Cut(body) => (200, String::new(), body, true),
            Reply::Hang => {
                tokio::time::sleep(Duration::from_secs(3600)).await;
                return None;
            }
            Reply::Drop | Reply::Late(..) => return None,
        };
        let head = format!("HTTP/1.1 {status} Said\r\n{headers}{more}content-length: {}\r\n\r\n", body.len());
        let cut_at = if cut { body.len() / 2 } else { body.len() };
        // In one piece: two small writes would meet Nagle and the delayed ACK, 40 ms each time.
        stream.write_all(&[head.as_bytes(), &body.as_bytes()[..cut_at]].concat()).await.ok()?;
        if cut {
            return None;
        }
    }
}

/// What `/ready` of an operator port says: whether it is, and its words.
pub async fn ready(operator: SocketAddr) -> (bool, String) {
    let answer = get(operator, "/ready").await;
    (answer.starts_with("HTTP/1.1 200"), answer)
}

/// What is answered for this path, head and body; nothing where nobody answers.
pub async fn get(address: SocketAddr, path: &str) -> String {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        let question = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        stream.write_all(question.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    ask.await.unwrap_or_default()
}

/// JSON-RPC as a person would try it.
pub struct Rpc {
    http: reqwest::Client,
    url: String,
}

impl Rpc {
    pub fn new(url: &str) -> Rpc {
        // Another part of the process may have installed it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Rpc { http: reqwest::Client::builder().no_proxy().build().unwrap(), url: url.to_owned() }
    }

    pub async fn try_call(&self, method: &str, params: Value) -> Result<Value, String> {
        let question = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let answer = self.http.post(&self.url).body(question.to_string()).header("content-type", "application/json");
        let text = answer.send().await.map_err(|e| e.to_string())?.text().await.map_err(|e| e.to_string())?;
        let mut answer: Value = serde_json::from_str(&text).map_err(|e| format!("{e}: {text}"))?;
        if answer.get("error").is_some() {
            return Err(answer["error"].to_string());
        }
        Ok(answer["result"].take())
    }

    /// Calls a method; fails the test on an error.
    pub async fn call(&self, method: &str, params: Value) -> Value {
        self.try_call(method, params).await.unwrap_or_else(|e| panic!("{method}: {e}"))
    }
}
