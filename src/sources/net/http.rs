//! HTTP as sources need it: bounded in time and size, polite, and silent about secrets in URLs.

use std::error::Error as _;
use std::time::Duration;

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
            .redirect(reqwest::redirect::Policy::limited(3))
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

/// The parts of a URL that may be a key: whatever a server sends back must not carry them into logs. Parts of fewer
/// than 8 characters are words, not keys.
pub fn secrets(url: &Url) -> Vec<String> {
    let path = url.path_segments().into_iter().flatten();
    let query = url.query().into_iter().flat_map(|query| query.split(['&', '=']));
    let user = [url.username(), url.password().unwrap_or_default()];
    path.chain(query).chain(user).filter(|part| part.len() >= 8).map(str::to_owned).collect()
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
        let url = Url::parse("https://user1234:password@node.example/v3/0123456789?key=abcdefgh").expect("a URL");
        assert_eq!(secrets(&url), ["0123456789", "abcdefgh", "user1234", "password"]);
        let error = parse_url("url", "ftp://node.example/SECRET", &["http", "https"]).expect_err("wrong scheme");
        assert!(!error.to_string().contains("SECRET"), "{error}");
        assert!(parse_url("url", "node.example:8545", &["http"]).is_err());
    }
}
