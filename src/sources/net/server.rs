//! One URL: what is sent there, and what may be said of it.

use std::fmt::Display;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use reqwest::Url;

use super::http::{HttpClient, HttpFault, Reply, Secrets, shown};
use crate::ops::plain;
use crate::sources::SourceError;

/// Longest text of a server that is passed on, in characters.
const LONGEST_TEXT: usize = 300;

/// One URL.
#[derive(Debug)]
pub(crate) struct Server {
    url: Url,
    /// Scheme, host and port: what errors may show.
    pub(crate) shown: String,
    /// What errors must not show, though a server may say it.
    secrets: Secrets,
    client: HttpClient,
    /// Least patience with a server that counts requests, where it names none. None means none.
    after_too_many: Option<Duration>,
    /// Whether it was found to serve our chain since it last failed.
    pub(crate) trusted: AtomicBool,
}

impl Server {
    pub(crate) fn new(url: Url, client: HttpClient, after_too_many: Option<Duration>) -> Server {
        let (shown, secrets) = (shown(&url), Secrets::of(&url));
        Server { url, shown, secrets, client, after_too_many, trusted: AtomicBool::new(false) }
    }

    pub(crate) async fn post(&self, body: Vec<u8>) -> Result<Reply, HttpFault> {
        self.client.post_json(&self.url, body).await
    }

    /// What a status says by itself. None means that the body counts.
    pub(crate) fn refusal(&self, reply: &Reply) -> Option<SourceError> {
        match reply.status {
            429 => Some(self.later("too many requests (HTTP 429)", reply.retry_after.max(self.after_too_many))),
            // A server's own words are worth more than its status; a proxy's page is not.
            status @ (408 | 425 | 500..) if !matches!(reply.text().first(), Some(b'{' | b'[')) => {
                Some(self.later(format!("answers HTTP {status}"), reply.retry_after))
            }
            status @ 300..=399 => Some(self.permanent(format!(
                "redirects to another place (HTTP {status}), which is not followed: give the URL of that place"
            ))),
            status @ 401..=403 => Some(self.permanent(format!("refuses access (HTTP {status}): is its key right?"))),
            _ => None,
        }
    }

    /// A fault that may pass, after so much patience as was asked for.
    pub(crate) fn later(&self, what: impl Display, retry_after: Option<Duration>) -> SourceError {
        SourceError::Transient { what: self.say(what), retry_after }
    }

    /// A fault of this server that may pass.
    pub(crate) fn transient(&self, what: impl Display) -> SourceError {
        self.later(what, None)
    }

    /// A fault of this server that will not pass without someone's doing.
    pub(crate) fn permanent(&self, what: impl Display) -> SourceError {
        SourceError::permanent(self.say(what))
    }

    /// Names the server, and shows nothing of the URL that may be a key, nor anything that a terminal obeys.
    pub(crate) fn say(&self, what: impl Display) -> String {
        plain(&self.secrets.hide(&format!("{}: {what}", self.shown))).into_owned()
    }

    /// The server's own words: whole first, so that no key is cut in half and missed, then not without end.
    pub(crate) fn quote(&self, words: &str) -> String {
        shortened(&self.secrets, words)
    }
}

/// What a server said, fit to be shown.
pub(crate) fn shortened(secrets: &Secrets, said: &str) -> String {
    plain(&secrets.hide(said)).chars().take(LONGEST_TEXT).collect()
}
