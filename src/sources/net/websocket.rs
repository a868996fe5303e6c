//! WebSocket connections over TCP or TLS.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;
use rustls::pki_types::ServerName;
use rustls_platform_verifier::ConfigVerifierExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::header::SEC_WEBSOCKET_PROTOCOL;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// Largest message that is read: pushes are small, and a server that sends more is not what we think it is.
const LARGEST_MESSAGE: usize = 4 << 20;
/// Most bytes that wait to be taken by the server: it owes us to read the answers to its pings.
const LARGEST_BACKLOG: usize = 64 << 10;
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// What a WebSocket runs over.
pub trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// An open WebSocket.
pub type Socket = WebSocketStream<Box<dyn Transport>>;

/// Opens a WebSocket to a `ws` or `wss` URL, within 10 s.
///
/// # Errors
/// Why there is no connection, in words that hold nothing of the URL but its host.
pub async fn connect(url: &Url) -> Result<Socket, String> {
    within(open(url, None)).await
}

/// As [`connect`], for a server that must agree to speak this subprotocol.
///
/// # Errors
/// As [`connect`], and where the server does not agree.
pub async fn connect_speaking(url: &Url, protocol: &'static str) -> Result<Socket, String> {
    within(open(url, Some(protocol))).await
}

async fn within(open: impl Future<Output = Result<Socket, String>>) -> Result<Socket, String> {
    tokio::time::timeout(CONNECT_WITHIN, open).await.map_err(|_| format!("no connection within {CONNECT_WITHIN:?}"))?
}

async fn open(url: &Url, protocol: Option<&'static str>) -> Result<Socket, String> {
    let host = url.host_str().ok_or("no host")?.to_owned();
    let port = url.port_or_known_default().ok_or("no port")?;
    // IPv6 hosts stand in brackets in URLs.
    let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let tcp = TcpStream::connect((name.as_str(), port)).await.map_err(|e| e.to_string())?;
    tcp.set_nodelay(true).map_err(|e| e.to_string())?;
    let transport: Box<dyn Transport> = if url.scheme() == "wss" {
        // The error says that a provider is installed already, which is all we want.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = rustls::ClientConfig::with_platform_verifier().map_err(|e| e.to_string())?;
        let name = ServerName::try_from(name).map_err(|e| e.to_string())?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        Box::new(connector.connect(name, tcp).await.map_err(|e| e.to_string())?)
    } else {
        Box::new(tcp)
    };
    open_over(transport, url, protocol).await
}

async fn open_over(transport: Box<dyn Transport>, url: &Url, protocol: Option<&'static str>) -> Result<Socket, String> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(LARGEST_MESSAGE))
        .max_frame_size(Some(LARGEST_MESSAGE))
        .write_buffer_size(LARGEST_BACKLOG / 4)
        .max_write_buffer_size(LARGEST_BACKLOG);
    let mut request = url.as_str().into_client_request().map_err(|e| e.to_string())?;
    if let Some(protocol) = protocol {
        request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    let opened = tokio_tungstenite::client_async_with_config(request, transport, Some(config)).await;
    opened.map(|(socket, _)| socket).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use futures::{SinkExt, StreamExt};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio_tungstenite::tungstenite::Message;

    use super::*;

    /// What the pipe between the two holds in each direction.
    const PIPE: usize = 1 << 10;
    /// Head and payload of the longest ping.
    const PING: [u8; 127] = {
        let mut frame = [7; 127];
        (frame[0], frame[1]) = (0x89, 125);
        frame
    };

    #[tokio::test]
    async fn answers_that_the_server_does_not_read_are_not_kept_without_end() {
        let (ours, theirs) = duplex(PIPE);
        let url = Url::parse("ws://node.example/").expect("a URL");
        let (opened, accepted) =
            tokio::join!(open_over(Box::new(ours), &url, None), tokio_tungstenite::accept_async(theirs));
        let (mut socket, mut server) = (opened.expect("open"), accepted.expect("a handshake").into_inner());
        // An answer is at least as long as its ping: eight times of what may wait.
        let pings = 8 * LARGEST_BACKLOG / PING.len();
        let flood = async {
            for _ in 0..pings {
                server.write_all(&PING).await.expect("it reads");
            }
        };
        let heard = async {
            for n in 0..pings {
                let message = socket.next().await;
                assert!(matches!(message, Some(Ok(Message::Ping(_)))), "{n}: {message:?}");
            }
        };
        tokio::join!(flood, heard);
        let sent = async {
            socket.flush().await.expect("the server reads now");
            drop(socket);
        };
        let mut kept = Vec::new();
        let (_, read) = tokio::join!(sent, server.read_to_end(&mut kept));
        read.expect("to the end");
        assert!(kept.len() > PIPE, "{} bytes", kept.len());
        assert!(kept.len() <= 2 * LARGEST_BACKLOG + PIPE, "{} bytes", kept.len());
    }
}
