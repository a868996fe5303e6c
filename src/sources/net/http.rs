//! HTTP as sources need it: bounded in time and size, polite, and silent about secrets in URLs.

use std::error::Error as _;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Client, Url};

use crate::sources::SourceError;

/// Longest `Retry-After` that is honoured: a server that says "next week" is asked again sooner.
const LONGEST_PATIENCE: Duration = Duration::from_secs(300);

/// A client with a limit on everything.
#[derive(Debug, Clone)]
pub struct HttpClient {
    client: Client,
    timeout: Duration,
    body_limit: usize,
}

/// What a server answered, whatever its status.
#[derive(Debug)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// How long the server asked us to stay away; at most 5 minutes.
    pub retry_after: Option<Duration>,
    /// The body, uncompressed, whole.
    pub body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpFault {
    /// No complete answer in time.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// No connection, or it broke before or within the answer.
    #[error("{0}")]
    Broken(String),
    /// The answer is larger than we read.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
}

impl Reply {
    /// The body from its first character on.
    pub fn text(&self) -> &[u8] {
        self.body.trim_ascii_start()
    }
}

impl HttpClient {
    /// A client whose requests take at most `timeout` each, body included, and at most `body_limit` bytes of answer
    /// after decompression.
    ///
    /// # Errors
    /// Permanent, when this machine's certificates cannot be read.
    pub fn new(timeout: Duration, body_limit: usize) -> Result<HttpClient, SourceError> {
        // The error says that a provider is installed already, which is all we want.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .user_agent(concat!("ebbtide/", env!("CARGO_PKG_VERSION")))
            .timeout(timeout)
            .connect_timeout(timeout.min(Duration::from_secs(10)))
            // Another host gets neither our question nor, as `Referer`, the URL with its key.
            .redirect(reqwest::redirect::Policy::custom(|attempt| match is_at_home(&attempt) {
                true => attempt.follow(),
                false => attempt.stop(),
            }))
            .referer(false)
            .build()
            .map_err(|e| SourceError::permanent(format!("cannot set up HTTP: {}", causes(&e))))?;
        Ok(HttpClient { client, timeout, body_limit })
    }

    /// Sends JSON and reads the whole answer.
    ///
    /// # Errors
    /// When there is no complete answer; a status that says "error" is an answer.
    pub async fn post_json(&self, url: &Url, body: Vec<u8>) -> Result<Reply, HttpFault> {
        let request = self.client.post(url.clone()).header(CONTENT_TYPE, "application/json").body(body);
        let mut response = request.send().await.map_err(|e| self.fault(e))?;
        let status = response.status().as_u16();
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.trim().parse().ok())
            .map(|seconds| Duration::from_secs(seconds).min(LONGEST_PATIENCE));
        if response.content_length().is_some_and(|size| size > self.body_limit as u64) {
            return Err(HttpFault::TooLarge(self.body_limit));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.fault(e))? {
            if body.len() + chunk.len() > self.body_limit {
                return Err(HttpFault::TooLarge(self.body_limit));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Reply { status, retry_after, body })
    }

    fn fault(&self, error: reqwest::Error) -> HttpFault {
        if error.is_timeout() {
            HttpFault::TimedOut(self.timeout)
        } else {
            // Paths and queries of URLs hold keys.
            HttpFault::Broken(causes(&error.without_url()))
        }
    }
}

/// Reads a URL that a setting gave.
///
/// # Errors
/// Permanent, naming the setting; the text itself is not repeated, since it may hold a key.
pub fn parse_url(setting: &str, text: &str, schemes: &[&str]) -> Result<Url, SourceError> {
    let wanted = schemes.iter().map(|s| format!("{s}://")).collect::<Vec<_>>().join(" or ");
    let url = Url::parse(text.trim())
        .map_err(|e| SourceError::permanent(format!("{setting} is not a URL ({e}): {wanted} is wanted")))?;
    if !schemes.contains(&url.scheme()) || url.host_str().is_none_or(str::is_empty) {
        return Err(SourceError::permanent(format!("{setting} {} is not usable: {wanted} is wanted", shown(&url))));
    }
    Ok(url)
}

/// A URL as errors and logs may show it: scheme, host and port alone, since the rest may hold a key.
pub fn shown(url: &Url) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{}{port}", url.scheme(), url.host_str().unwrap_or("?"))
}

/// A text that should be a URL, with nothing but scheme, host and port of it.
pub fn redacted(text: &str) -> String {
    match Url::parse(text.trim()) {
        Ok(url) if url.has_host() => shown(&url) + "/…",
        _ => "…".to_owned(),
    }
}

/// Whether a redirect stays on its host, and does not give up its encryption: 3 of those are followed.
fn is_at_home(attempt: &reqwest::redirect::Attempt<'_>) -> bool {
    let (to, way) = (attempt.url(), attempt.previous());
    way.len() <= 3
        && way.first().is_some_and(|from| {
            let same_place = from.scheme() == to.scheme() && from.port_or_known_default() == to.port_or_known_default();
            from.host_str() == to.host_str() && (same_place || from.scheme() == "http" && to.scheme() == "https")
        })
}

/// What of a URL may be a key, in every form in which a server may say it back.
#[derive(Clone)]
pub struct Secrets(Vec<String>);

/// Parts of paths that are no keys, of those that are long enough for one.
const WORDS: [&str; 16] = [
    "http", "https", "json", "jsonrpc", "node", "data", "rest", "public", "graphql", "query", "mainnet", "testnet",
    "sepolia", "holesky", "polygon", "base",
];
/// Something shorter is no key.
const SHORTEST_KEY: usize = 4;
/// Something shorter may be part of a word by chance, and is hidden only where it stands alone.
const SURELY_A_KEY: usize = 8;

impl Secrets {
    /// The parts of this URL's path, query and user that may be keys, as written and decoded.
    pub fn of(url: &Url) -> Secrets {
        let path = url.path_segments().into_iter().flatten().filter(|part| !WORDS.contains(part)).map(str::to_owned);
        let query = url.query().into_iter().flat_map(|query| query.split('&'));
        let query = query.map(|part| part.split_once('=').map_or(part, |(_, value)| value).to_owned());
        let pairs = url.query_pairs().map(|(_, value)| value.into_owned());
        let user = [url.username().to_owned(), url.password().unwrap_or_default().to_owned()];
        let mut parts: Vec<String> = path.chain(query).chain(pairs).chain(user.clone()).collect();
        let decoded = |text: &str| percent_decoded(text);
        parts.extend(parts.iter().map(|part| decoded(part)).collect::<Vec<_>>());
        // As it goes over the wire.
        parts.push(STANDARD.encode(format!("{}:{}", decoded(&user[0]), decoded(&user[1]))));
        parts.retain(|part| part.len() >= SHORTEST_KEY);
        // A key may hold another one.
        parts.sort_by_key(|part| std::cmp::Reverse(part.len()));
        parts.dedup();
        Secrets(parts)
    }

    /// The text without them. Before it is cut: half a key is a key to guess.
    pub fn hide(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, secret| match secret.len() {
            SURELY_A_KEY.. => text.replace(secret, "***"),
            _ => without_word(&text, secret),
        })
    }
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets(…)")
    }
}

/// The text without a word, where that stands between signs of another kind.
fn without_word(text: &str, word: &str) -> String {
    let (mut kept, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find(word) {
        let (before, after) = (&rest[..at], &rest[at + word.len()..]);
        let stands_alone = !before.ends_with(char::is_alphanumeric) && !after.starts_with(char::is_alphanumeric);
        kept.push_str(before);
        kept.push_str(if stands_alone { "***" } else { word });
        rest = after;
    }
    kept + rest
}

/// A part of a URL with `%2F` and the like as what they stand for.
fn percent_decoded(text: &str) -> String {
    // A query without `=` is one name, which is decoded so; `+` stands for itself in paths.
    let query = text.replace('+', "%2B").replace(['&', '='], "");
    match Url::parse(&format!("http://x/?{query}")) {
        Ok(url) => url.query_pairs().next().map(|(name, _)| name.into_owned()).unwrap_or_default(),
        Err(_) => String::new(),
    }
}

/// An error with everything behind it: reqwest's own text says only that "sending failed".
fn causes(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_in_urls_are_never_shown() {
        let url =
            parse_url("url", "https://user:pw@node.example:8443/v3/SECRET?key=SECRET", &["https"]).expect("a URL");
        assert_eq!(shown(&url), "https://node.example:8443");
        let error = parse_url("url", "ftp://node.example/SECRET", &["http", "https"]).expect_err("wrong scheme");
        assert!(!error.to_string().contains("SECRET"), "{error}");
        assert!(parse_url("url", "node.example:8545", &["http"]).is_err());
    }

    #[test]
    fn keys_are_hidden_whatever_their_form_and_length() {
        let url = "https://user:p%40ssw0rd@node.example/v3/graphql/0123456789abcdef/aB3x?key=q1w2e3&flag%2Fed%20key";
        let secrets = Secrets::of(&Url::parse(url).expect("a URL"));
        let basic = STANDARD.encode("user:p@ssw0rd");
        for said in [
            "no project 0123456789abcdef",
            "key0123456789abcdefkey",
            "p%40ssw0rd is wrong",
            "p@ssw0rd is wrong",
            "unknown key aB3x",
            "unknown key \"q1w2e3\"",
            "flag%2Fed%20key, or flag/ed key",
            basic.as_str(),
        ] {
            let hidden = secrets.hide(said);
            for key in ["0123456789abcdef", "ssw0rd", "aB3x", "q1w2e3", "flag", basic.as_str()] {
                assert!(!hidden.contains(key), "{key} in {hidden}");
            }
        }
        // Words that happen to stand in a URL, and pieces of other words, say what is wrong.
        let plain = "graphql query v3 failed: aB3xyz, the users of xaB3x";
        assert_eq!(secrets.hide(plain), plain);
    }

    #[tokio::test]
    async fn redirects_to_another_host_are_not_followed_and_those_at_home_tell_no_referer() {
        use std::sync::{Arc, Mutex};

        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        use tokio::net::TcpListener;

        /// Answers each request with one of these; gives the requests.
        async fn serve(answers: Vec<String>) -> (u16, Arc<Mutex<Vec<String>>>) {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let port = listener.local_addr().expect("an address").port();
            let seen: Arc<Mutex<Vec<String>>> = Arc::default();
            let kept = Arc::clone(&seen);
            tokio::spawn(async move {
                for answer in answers {
                    let (mut stream, _) = listener.accept().await.expect("a connection");
                    let mut buffer = vec![0; 8192];
                    let n = stream.read(&mut buffer).await.expect("a request");
                    kept.lock().expect("whole").push(String::from_utf8_lossy(&buffer[..n]).into_owned());
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            });
            (port, seen)
        }
        let moved = |to: &str| {
            format!("HTTP/1.1 307 Moved\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        };
        let fine = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}".to_owned();
        let client = HttpClient::new(Duration::from_secs(5), 1 << 20).expect("a client");
        let ask = async |port: u16| {
            let url = Url::parse(&format!("http://127.0.0.1:{port}/SECRETKEY")).expect("a URL");
            client.post_json(&url, b"{}".to_vec()).await.expect("an answer").status
        };
        let (elsewhere, stolen) = serve(vec![fine.clone()]).await;
        let (port, _) = serve(vec![moved(&format!("http://localhost:{elsewhere}/"))]).await;
        assert_eq!(ask(port).await, 307);
        // Another port of one host is another's server, too.
        let (port, _) = serve(vec![moved(&format!("http://127.0.0.1:{elsewhere}/"))]).await;
        assert_eq!(ask(port).await, 307);
        assert!(stolen.lock().expect("whole").is_empty());
        let (port, seen) = serve(vec![moved("/other"), fine]).await;
        assert_eq!(ask(port).await, 200);
        let seen = seen.lock().expect("whole");
        assert!(seen.len() == 2 && seen[1].starts_with("POST /other"), "{seen:?}");
        assert!(!seen[1].to_lowercase().contains("referer"), "{seen:?}");
    }
}
