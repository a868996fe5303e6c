//! One URL that answers GraphQL, and what its faults mean (specs/gno-token-balances 3.8).

use std::ops::Deref;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::wire::{Answer, Query};
use crate::sources::SourceError;
use crate::sources::net::http::HttpFault;
use crate::sources::net::server::Server;

/// Least patience with a server that counts requests: it counts them by the minute.
pub(super) const AFTER_TOO_MANY: Duration = Duration::from_secs(10);
/// The same error so often in a row is not going away.
const SAME_ERRORS: u32 = 5;
/// Errors that come together (several requests are under way at once) are one.
const ONE_ERROR: Duration = Duration::from_millis(150);
/// A server that did not answer so often in a row is down, rather than asked for too much.
const SILENT_TIMES: u32 = 3;

/// What may be done about a query that is too much for the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    /// Ask for less.
    Divisible,
    /// It cannot be smaller, so it is a fault.
    Least,
}

/// One URL.
#[derive(Debug)]
pub(super) struct Endpoint {
    server: Server,
    last_error: Mutex<Option<Repeated>>,
    silent: AtomicU32,
}

#[derive(Debug)]
struct Repeated {
    text: String,
    times: u32,
    at: Instant,
}

impl Deref for Endpoint {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl Endpoint {
    pub(super) fn new(server: Server) -> Endpoint {
        Endpoint { server, last_error: Mutex::new(None), silent: AtomicU32::new(0) }
    }

    /// Asks once. An answer with any error in it is void.
    pub(super) async fn ask<T: DeserializeOwned>(&self, query: &Query, size: Size) -> Result<T, SourceError> {
        let body = serde_json::to_vec(&json!({"query": query.text, "variables": query.variables}))
            .map_err(|e| self.transient(format!("cannot write the request: {e}")))?;
        let too_large = |what: String| match size {
            Size::Divisible => SourceError::RangeTooLarge { what: self.say(what), at_most: None },
            Size::Least => self.transient(what),
        };
        let reply = match self.post(body).await {
            Ok(reply) => reply,
            Err(fault @ HttpFault::TooLarge(_)) => return Err(too_large(fault.to_string())),
            Err(fault @ HttpFault::TimedOut(_)) => {
                let silent = self.silent.fetch_add(1, Ordering::Relaxed) + 1;
                let down = silent >= SILENT_TIMES;
                return Err(if down { self.transient(fault.to_string()) } else { too_large(fault.to_string()) });
            }
            Err(fault) => return Err(self.transient(fault.to_string())),
        };
        self.silent.store(0, Ordering::Relaxed);
        let later = |what: String| self.later(what, reply.retry_after);
        match reply.status {
            // Whatever it says: it is in trouble.
            408 | 425 | 500.. => return Err(later(format!("answers HTTP {}", reply.status))),
            _ => self.refusal(&reply).map_or(Ok(()), Err)?,
        }
        let text = reply.text();
        if text.first() == Some(&b'<') {
            return Err(self.permanent("answers with a web page: is the URL right? It ends with /graphql/query"));
        }
        let answer = serde_json::from_slice::<Answer<&RawValue>>(text);
        let said = answer.as_ref().ok().and_then(|a| a.errors.as_ref()?.first().map(|e| self.quote(&e.words())));
        match (reply.status, said) {
            (422, said) => {
                let said = said.unwrap_or_else(|| "nothing".to_owned());
                let hint = "does its version fit (require_func is for tx-indexer before v0.7.0)?";
                return Err(self.permanent(format!("does not know what it is asked for, {hint} It says {said:?}")));
            }
            (status @ 400..500, said) => {
                let said = said.map_or(String::new(), |said| format!(" It says {said:?}"));
                let what = format!("answers HTTP {status}: is the URL right? It ends with /graphql/query.{said}");
                return Err(self.permanent(what));
            }
            _ => {}
        }
        let answer = answer.map_err(|e| later(format!("an answer that is not whole GraphQL JSON: {e}")))?;
        if let Some(errors) = answer.errors.filter(|errors| !errors.is_empty()) {
            if let Some(cap) = errors.iter().find(|error| error.is_cap()) {
                return Err(too_large(format!("says {:?}", self.quote(&cap.words()))));
            }
            return Err(self.refused(&self.quote(&errors[0].words()), query.patient));
        }
        let data = answer.data.ok_or_else(|| later("an answer without data".to_owned()))?;
        let data = serde_json::from_str(data.get()).map_err(|e| later(format!("an answer of another shape: {e}")))?;
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(data)
    }

    /// An error that the server words itself: it may pass, until it has come too often.
    fn refused(&self, text: &str, patient: bool) -> SourceError {
        if patient {
            return self.transient(format!("says {text:?}"));
        }
        let mut last = self.last_error.lock().unwrap_or_else(PoisonError::into_inner);
        let times = match &mut *last {
            Some(last) if last.text == text => {
                if last.at.elapsed() >= ONE_ERROR {
                    (last.times, last.at) = (last.times + 1, Instant::now());
                }
                last.times
            }
            last => {
                *last = Some(Repeated { text: text.to_owned(), times: 1, at: Instant::now() });
                1
            }
        };
        if times >= SAME_ERRORS {
            self.permanent(format!("says {text:?}, {times} times in a row"))
        } else {
            self.transient(format!("says {text:?}"))
        }
    }
}
