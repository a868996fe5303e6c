//! Several URLs for one chain: one is current, and the next takes over when it fails.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use serde_json::json;
use serde_json::value::RawValue;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::endpoint::{Call, Endpoint};
use super::{Dialect, Since};
use crate::chain::BlockRef;
use crate::sources::http::{HttpClient, parse_url};
use crate::sources::{FaultKind, SourceError};

/// How long the other URLs may take to name their network at the start.
const FIRST_LOOK: Duration = Duration::from_secs(5);

/// The endpoints of one chain.
#[derive(Debug)]
pub(in crate::sources) struct Pool {
    endpoints: Vec<Arc<Endpoint>>,
    current: AtomicUsize,
    /// The first network id that was seen: every endpoint must give it.
    network_id: Mutex<Option<String>>,
    looked_at_others: AtomicBool,
    /// Since when no other endpoint could be asked about an undo.
    alone: Since,
}

impl Pool {
    /// Endpoints at these URLs, with at most `concurrency` requests under way over all of them. Asks nobody yet.
    ///
    /// # Errors
    /// Permanent, naming the setting that is wrong.
    pub(in crate::sources) fn new(
        urls: &[String],
        request_timeout: Duration,
        body_limit: usize,
        concurrency: usize,
        dialect: &'static Dialect,
    ) -> Result<Pool, SourceError> {
        let least = |setting: &str, ok: bool, bound: &str| {
            if ok { Ok(()) } else { Err(SourceError::permanent(format!("{setting} must be at least {bound}"))) }
        };
        least("url: their number", !urls.is_empty(), "1")?;
        least("request_timeout", request_timeout >= Duration::from_millis(10), "10 ms")?;
        least("body_limit", body_limit >= 64 << 10, "64 KiB")?;
        least("concurrency", concurrency >= 1, "1")?;
        let client = HttpClient::new(request_timeout, body_limit)?;
        let gate = Arc::new(Semaphore::new(concurrency.min(Semaphore::MAX_PERMITS)));
        let mut endpoints = Vec::with_capacity(urls.len());
        for text in urls {
            let url = parse_url("url", text, &["http", "https"])?;
            endpoints.push(Arc::new(Endpoint::new(url, client.clone(), Arc::clone(&gate), dialect)));
        }
        Ok(Pool {
            endpoints,
            current: AtomicUsize::new(0),
            network_id: Mutex::new(None),
            looked_at_others: AtomicBool::new(false),
            alone: Since::default(),
        })
    }

    /// The network id, once it is known.
    pub(in crate::sources) fn network_id(&self) -> Option<String> {
        self.network_id.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Every endpoint but the one that answered last.
    pub(in crate::sources) fn others(&self) -> Vec<Arc<Endpoint>> {
        let current = self.current.load(Ordering::Relaxed);
        let others = self.endpoints.iter().enumerate().filter(|(index, _)| *index != current);
        others.map(|(_, endpoint)| Arc::clone(endpoint)).collect()
    }

    /// Asks the current endpoint and, while that fails, each of the others once: the caller paces the rounds.
    pub(in crate::sources) async fn run<'s, T>(
        &'s self,
        ask: impl Fn(Arc<Endpoint>) -> BoxFuture<'s, Result<T, SourceError>>,
    ) -> Result<T, SourceError> {
        let first = self.current.load(Ordering::Relaxed);
        let mut faults = Vec::new();
        for step in 0..self.endpoints.len() {
            let index = (first + step) % self.endpoints.len();
            let endpoint = &self.endpoints[index];
            let answer = match self.verify(endpoint).await {
                Ok(()) => ask(Arc::clone(endpoint)).await,
                Err(error) => Err(error),
            };
            match answer {
                Err(error) if matches!(error.kind(), FaultKind::Transient | FaultKind::Permanent) => {
                    endpoint.verified.store(false, Ordering::Relaxed);
                    faults.push(error);
                }
                answer => {
                    // Two calls may fail over at the same time: what counts is that this endpoint answers.
                    if step > 0 {
                        tracing::warn!(node = %endpoint.shown, "Failed over to another node");
                        self.current.store(index, Ordering::Relaxed);
                    }
                    return answer;
                }
            }
        }
        Err(merged(faults))
    }

    /// Asks an endpoint for its network id, unless that was done since it last failed.
    pub(in crate::sources) async fn verify(&self, endpoint: &Endpoint) -> Result<(), SourceError> {
        if endpoint.verified.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.name_network_again(endpoint).await
    }

    /// Asks for the network's id even where it was given before.
    pub(in crate::sources) async fn name_network_again(&self, endpoint: &Endpoint) -> Result<(), SourceError> {
        let raw = endpoint.ask_one(Call::new(endpoint.dialect.network, json!([]))).await?;
        self.check_network(endpoint, &raw)
    }

    /// Whether a second endpoint agrees that blocks are undone; `ask` gives one's opinion (see
    /// [`opinion`](super::opinion)). With one endpoint there is nobody else to ask. When for `grace` no other one can be
    /// asked at all, the one that is left is believed, rather than standing still.
    pub(in crate::sources) async fn agrees<'s>(
        &'s self,
        new: &BlockRef,
        grace: Duration,
        ask: impl Fn(Arc<Endpoint>) -> BoxFuture<'s, Result<Option<bool>, SourceError>>,
    ) -> Result<bool, SourceError> {
        let others = self.others();
        if others.is_empty() {
            // What it said since the head may be another network's: a URL can be pointed elsewhere at any moment.
            self.run(|endpoint| Box::pin(async move { self.name_network_again(&endpoint).await })).await?;
            return Ok(true);
        }
        let asked = others.iter().map(|other| async {
            self.verify(other).await?;
            ask(Arc::clone(other)).await
        });
        let mut faults = Vec::new();
        let mut answered = false;
        for (other, opinion) in others.iter().zip(join_all(asked).await) {
            match opinion {
                Ok(Some(true)) => {
                    self.alone.end();
                    return Ok(true);
                }
                Ok(_) => answered = true,
                Err(error) => {
                    other.verified.store(false, Ordering::Relaxed);
                    faults.push(error.to_string());
                }
            }
        }
        if answered {
            self.alone.end();
            return Ok(false);
        }
        if self.alone.lasts() >= grace {
            tracing::warn!(height = %new.height, "No second node can be asked: believing the one that answers");
            return Ok(true);
        }
        Err(SourceError::transient(format!("no second node to confirm block {new}: {}", faults.join("; "))))
    }

    /// Asks the endpoints that were not asked yet for their network, once and not for long: a wrong URL in the settings
    /// should be told at the start, not on the night when it is needed.
    pub(in crate::sources) async fn look_at_others(&self) -> Result<(), SourceError> {
        if self.looked_at_others.load(Ordering::Relaxed) {
            return Ok(());
        }
        let others = self.others();
        let looks = others.iter().map(|other| timeout(FIRST_LOOK, self.verify(other)));
        for (other, look) in others.iter().zip(join_all(looks).await) {
            match look {
                Ok(Err(error @ SourceError::Permanent { .. })) => return Err(error),
                Ok(Ok(())) => {}
                _ => tracing::warn!(node = %other.shown, "This node does not answer: it cannot take over for now"),
            }
        }
        self.looked_at_others.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Compares an answer with a network's id with the one first seen.
    pub(in crate::sources) fn check_network(&self, endpoint: &Endpoint, answer: &RawValue) -> Result<(), SourceError> {
        let id = serde_json::from_str::<String>(answer.get())
            .ok()
            .and_then(|text| (endpoint.dialect.read_network)(&text))
            .ok_or_else(|| endpoint.transient(format!("{} gives no network", endpoint.dialect.network)))?;
        let mut known = self.network_id.lock().unwrap_or_else(PoisonError::into_inner);
        match known.as_ref() {
            Some(expected) if *expected != id => {
                Err(SourceError::permanent(format!("URL {} is chain {id}, expected {expected}", endpoint.shown)))
            }
            _ => {
                *known = Some(id);
                endpoint.verified.store(true, Ordering::Relaxed);
                Ok(())
            }
        }
    }
}

/// One error for a whole round: it may pass as long as one of them may.
fn merged(mut faults: Vec<SourceError>) -> SourceError {
    if faults.len() == 1
        && let Some(only) = faults.pop()
    {
        return only;
    }
    let what = faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
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
