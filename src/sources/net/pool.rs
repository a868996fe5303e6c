//! Several URLs for one chain: one is current, and the next takes over when it fails.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use tokio::time::timeout;

use super::http::{HttpClient, parse_url};
use super::server::Server;
use crate::sources::{FaultKind, SourceError};

/// How long the other URLs may take to name their chain at the start.
const FIRST_LOOK: Duration = Duration::from_secs(5);

/// How the URLs of one chain are reached.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reach<'s> {
    /// `http` or `https`, at least one.
    pub(crate) urls: &'s [String],
    /// For one request, its answer included; at least 10 ms.
    pub(crate) request_timeout: Duration,
    /// Largest answer that is read, in bytes; at least 64 KiB.
    pub(crate) body_limit: usize,
    /// See [`Server::refusal`].
    pub(crate) after_too_many: Option<Duration>,
}

/// The endpoints of one chain.
#[derive(Debug)]
pub(crate) struct Pool<E> {
    endpoints: Vec<Arc<E>>,
    current: AtomicUsize,
    looked_at_others: AtomicBool,
}

/// An endpoint before it is asked: whether it is the current one.
pub(crate) struct Candidate<E> {
    pub(crate) endpoint: Arc<E>,
    pub(crate) is_current: bool,
}

impl<E: Deref<Target = Server>> Pool<E> {
    /// Endpoints at these URLs. Asks nobody yet.
    ///
    /// # Errors
    /// Permanent, naming the setting that is wrong.
    pub(crate) fn new(reach: Reach<'_>, endpoint: impl Fn(Server) -> E) -> Result<Pool<E>, SourceError> {
        least("url: their number", !reach.urls.is_empty(), "1")?;
        least("request_timeout", reach.request_timeout >= Duration::from_millis(10), "10 ms")?;
        least("body_limit", reach.body_limit >= 64 << 10, "64 KiB")?;
        let client = HttpClient::new(reach.request_timeout, reach.body_limit)?;
        let mut endpoints = Vec::with_capacity(reach.urls.len());
        for text in reach.urls {
            let url = parse_url("url", text, &["http", "https"])?;
            endpoints.push(Arc::new(endpoint(Server::new(url, client.clone(), reach.after_too_many))));
        }
        Ok(Pool { endpoints, current: AtomicUsize::new(0), looked_at_others: AtomicBool::new(false) })
    }

    /// The endpoint that is asked first.
    pub(crate) fn current(&self) -> Arc<E> {
        Arc::clone(&self.endpoints[self.current.load(Ordering::Relaxed)])
    }

    /// Every other endpoint.
    pub(crate) fn others(&self) -> Vec<Arc<E>> {
        let current = self.current.load(Ordering::Relaxed);
        let others = self.endpoints.iter().enumerate().filter(|(index, _)| *index != current);
        others.map(|(_, endpoint)| Arc::clone(endpoint)).collect()
    }

    /// Each endpoint is verified before it is asked the next time.
    pub(crate) fn distrust_all(&self) {
        self.endpoints.iter().for_each(|endpoint| endpoint.trusted.store(false, Ordering::Relaxed));
    }

    /// Asks the current endpoint and, while that fails, each of the others once: the caller paces the rounds. `fit`: whether
    /// an endpoint may be asked at all. `may_take_over`: whether another one that answered is the current one from then on.
    pub(crate) async fn run<'s, T>(
        &'s self,
        fit: impl Fn(Candidate<E>) -> BoxFuture<'s, Result<(), SourceError>>,
        ask: impl Fn(Arc<E>) -> BoxFuture<'s, Result<T, SourceError>>,
        may_take_over: impl Fn() -> bool,
    ) -> Result<T, SourceError> {
        let first = self.current.load(Ordering::Relaxed);
        let mut faults = Vec::new();
        for step in 0..self.endpoints.len() {
            let index = (first + step) % self.endpoints.len();
            let endpoint = &self.endpoints[index];
            let answer = match fit(Candidate { endpoint: Arc::clone(endpoint), is_current: step == 0 }).await {
                Ok(()) => ask(Arc::clone(endpoint)).await,
                Err(error) => Err(error),
            };
            match answer {
                Err(error)
                    if matches!(error.kind(), FaultKind::Transient | FaultKind::Permanent | FaultKind::Incomplete) =>
                {
                    endpoint.trusted.store(false, Ordering::Relaxed);
                    faults.push(error);
                }
                answer => {
                    // Two calls may fail over at the same time: what counts is that this endpoint answers.
                    if step > 0 && may_take_over() {
                        tracing::warn!(node = %endpoint.shown, "Failed over to another node");
                        self.current.store(index, Ordering::Relaxed);
                    }
                    return answer;
                }
            }
        }
        Err(merged(faults))
    }

    /// Asks the other endpoints, once and not for long: a wrong URL in the settings should be told at the start, not on the
    /// night when it is needed. Gives what those said that answered.
    ///
    /// # Errors
    /// The first permanent one.
    pub(crate) async fn look_at_others<'s, T>(
        &'s self,
        look: impl Fn(Arc<E>) -> BoxFuture<'s, Result<T, SourceError>>,
    ) -> Result<Vec<(Arc<E>, T)>, SourceError> {
        let mut answers = Vec::new();
        if self.looked_at_others.load(Ordering::Relaxed) {
            return Ok(answers);
        }
        let others = self.others();
        let looks = others.iter().map(|other| timeout(FIRST_LOOK, look(Arc::clone(other))));
        for (other, look) in others.iter().zip(join_all(looks).await) {
            match look {
                Ok(Err(error @ SourceError::Permanent { .. })) => return Err(error),
                Ok(Ok(answer)) => answers.push((Arc::clone(other), answer)),
                _ => tracing::warn!(node = %other.shown, "This node does not answer: it cannot take over for now"),
            }
        }
        self.looked_at_others.store(true, Ordering::Relaxed);
        Ok(answers)
    }
}

/// A setting's lower bound.
///
/// # Errors
/// Permanent, naming setting and bound.
pub(crate) fn least(setting: &str, ok: bool, bound: &str) -> Result<(), SourceError> {
    if ok { Ok(()) } else { Err(SourceError::permanent(format!("{setting} must be at least {bound}"))) }
}

/// One error for a whole round: it may pass as long as one of them may.
fn merged(mut faults: Vec<SourceError>) -> SourceError {
    if faults.len() == 1
        && let Some(only) = faults.pop()
    {
        return only;
    }
    let what = faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    let incomplete = faults.iter().find_map(|fault| match fault {
        SourceError::Incomplete { height, .. } => Some(*height),
        _ => None,
    });
    if let Some(height) = incomplete {
        return SourceError::Incomplete { height, what };
    }
    let patience = |fault: &SourceError| match fault {
        SourceError::Transient { retry_after, .. } => Some(*retry_after),
        _ => None,
    };
    // The one that may be asked first.
    match faults.iter().filter_map(patience).min() {
        Some(retry_after) => SourceError::Transient { what, retry_after },
        None => SourceError::permanent(what),
    }
}
