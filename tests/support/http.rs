//! HTTP by hand, since a server library would not let us break it.

use std::time::Duration;

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
        let (status, more, body, cut) = match answer(&head, &body) {
            Reply::Whole(status, more, body) => (status, more, body, false),
            Reply::Cut(body) => (200, String::new(), body, true),
            Reply::Hang => {
                tokio::time::sleep(Duration::from_secs(3600)).await;
                return None;
            }
            Reply::Drop => return None,
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
