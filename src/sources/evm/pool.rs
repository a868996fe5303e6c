//! Several URLs for one chain: one is current, and the next takes over when it fails.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use alloy_primitives::U256;
use futures::future::BoxFuture;
use serde_json::json;
use serde_json::value::RawValue;

use super::endpoint::{Call, Endpoint};
use crate::sources::{FaultKind, SourceError};

/// The endpoints of one chain.
#[derive(Debug)]
pub(super) struct Pool {
    endpoints: Vec<Arc<Endpoint>>,
    current: AtomicUsize,
    /// The first network id that was seen: every endpoint must give it.
    network_id: Mutex<Option<String>>,
}

impl Pool {
    /// `endpoints` must not be empty.
    pub(super) fn new(endpoints: Vec<Endpoint>) -> Pool {
        let endpoints = endpoints.into_iter().map(Arc::new).collect();
        Pool { endpoints, current: AtomicUsize::new(0), network_id: Mutex::new(None) }
    }

    /// The network id, once it is known.
    pub(super) fn network_id(&self) -> Option<String> {
        self.network_id.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Every endpoint but the one that answered last.
    pub(super) fn others(&self) -> Vec<Arc<Endpoint>> {
        let current = self.current.load(Ordering::Relaxed);
        let others = self.endpoints.iter().enumerate().filter(|(index, _)| *index != current);
        others.map(|(_, endpoint)| Arc::clone(endpoint)).collect()
    }

    /// Asks the current endpoint and, while that fails, each of the others once: the caller paces the rounds.
    pub(super) async fn run<'s, T>(
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
    pub(super) async fn verify(&self, endpoint: &Endpoint) -> Result<(), SourceError> {
        if endpoint.verified.load(Ordering::Relaxed) {
            return Ok(());
        }
        let raw = endpoint.ask_one(Call::new("eth_chainId", json!([]))).await?;
        self.check_network(endpoint, &raw)
    }

    /// Compares an answer to `eth_chainId` with the network id first seen.
    pub(super) fn check_network(&self, endpoint: &Endpoint, answer: &RawValue) -> Result<(), SourceError> {
        let id = serde_json::from_str::<String>(answer.get())
            .ok()
            .and_then(|text| U256::from_str_radix(text.strip_prefix("0x")?, 16).ok())
            .ok_or_else(|| endpoint.transient("eth_chainId gives no number"))?
            .to_string();
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
