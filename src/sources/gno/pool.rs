//! Several URLs of one chain: one is current. Another one takes over only if it has our blocks, since two hosts of a
//! network may well follow different chains of one name.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;

use super::decode::Decoder;
use super::endpoint::Endpoint;
use super::fetch::Fetch;
use crate::chain::{Block, BlockRef, Hash};
use crate::sources::{FaultKind, SourceError};

/// Blocks of ours that are remembered to compare another server with.
const MOST_ANCHORS: usize = 64;

/// The endpoints of one chain.
#[derive(Debug)]
pub(super) struct Pool {
    endpoints: Vec<Arc<Endpoint>>,
    decoder: Arc<Decoder>,
    current: AtomicUsize,
    /// What every block must name; the first that was seen, if no setting says it.
    chain_id: Mutex<Option<String>>,
    /// Blocks we have, by height.
    anchors: Mutex<BTreeMap<u64, Hash>>,
    /// Whether our tip is known: before that, nobody can take over for good.
    resumed: AtomicBool,
}

impl Pool {
    /// `endpoints` must not be empty.
    pub(super) fn new(endpoints: Vec<Endpoint>, decoder: Arc<Decoder>, chain_id: Option<String>) -> Pool {
        Pool {
            endpoints: endpoints.into_iter().map(Arc::new).collect(),
            decoder,
            current: AtomicUsize::new(0),
            chain_id: Mutex::new(chain_id),
            anchors: Mutex::default(),
            resumed: AtomicBool::new(false),
        }
    }

    /// What the network calls itself, once it is known.
    pub(super) fn chain_id(&self) -> Option<String> {
        self.chain_id.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The endpoint that is asked first, and the others.
    pub(super) fn in_order(&self) -> (Arc<Endpoint>, Vec<Arc<Endpoint>>) {
        let mut all = self.endpoints.clone();
        let current = all.remove(self.current.load(Ordering::Relaxed));
        (current, all)
    }

    /// Our tip is this; what was remembered beyond it was never stored.
    pub(super) fn resume(&self, tip: Option<&BlockRef>) {
        let tip = tip.map(|tip| (tip.height.get(), tip.hash.clone()));
        *self.anchors.lock().unwrap_or_else(PoisonError::into_inner) = tip.into_iter().collect();
        self.resumed.store(true, Ordering::Relaxed);
    }

    /// These blocks were handed out: they are ours from now on, and what we had at their heights is not.
    pub(super) fn handed_out(&self, blocks: &[Block]) {
        let (Some(first), Some(last)) = (blocks.first(), blocks.last()) else { return };
        let mut anchors = self.anchors.lock().unwrap_or_else(PoisonError::into_inner);
        anchors.split_off(&first.link.height.get());
        anchors.insert(last.link.height.get(), last.link.hash.clone());
        while anchors.len() > MOST_ANCHORS {
            anchors.pop_first();
        }
    }

    /// Asks the current endpoint and, while that fails, each of the others once: the caller paces the rounds.
    pub(super) async fn run<'s, T>(
        &'s self,
        ask: impl Fn(Arc<Endpoint>, Option<String>) -> BoxFuture<'s, Result<T, SourceError>>,
    ) -> Result<T, SourceError> {
        let first = self.current.load(Ordering::Relaxed);
        let mut faults = Vec::new();
        for step in 0..self.endpoints.len() {
            let index = (first + step) % self.endpoints.len();
            let endpoint = &self.endpoints[index];
            let fit = if step == 0 { Ok(()) } else { self.compare(endpoint).await };
            let answer = match fit {
                Ok(()) => ask(Arc::clone(endpoint), self.chain_id()).await,
                Err(error) => Err(error),
            };
            match answer {
                Err(error)
                    if matches!(error.kind(), FaultKind::Transient | FaultKind::Permanent | FaultKind::Incomplete) =>
                {
                    endpoint.compared.store(false, Ordering::Relaxed);
                    faults.push(error);
                }
                answer => {
                    // Two calls may fail over at the same time: what counts is that this endpoint answers.
                    if step > 0 && self.resumed.load(Ordering::Relaxed) {
                        tracing::warn!(server = %endpoint.shown, "Failed over to another indexer");
                        self.current.store(index, Ordering::Relaxed);
                    }
                    return answer;
                }
            }
        }
        Err(merged(faults))
    }

    /// Learns what the network calls itself, and insists on it.
    pub(super) async fn learn_chain_id(&self, endpoint: &Endpoint) -> Result<String, SourceError> {
        let found = self.fetch(endpoint, None).chain_id().await?;
        let mut known = self.chain_id.lock().unwrap_or_else(PoisonError::into_inner);
        match known.as_ref() {
            Some(expected) if *expected != found => {
                Err(endpoint.permanent(format!("is chain {found}, expected {expected}")))
            }
            _ => {
                *known = Some(found.clone());
                Ok(found)
            }
        }
    }

    fn fetch<'f>(&'f self, endpoint: &'f Endpoint, chain_id: Option<&'f str>) -> Fetch<'f> {
        Fetch { endpoint, decoder: &self.decoder, chain_id }
    }

    /// Whether this endpoint has our blocks: the newest of ours that it can have must be the same.
    async fn compare(&self, endpoint: &Endpoint) -> Result<(), SourceError> {
        if endpoint.compared.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.learn_chain_id(endpoint).await?;
        let anchors = self.anchors.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let fetch = self.fetch(endpoint, None);
        let head = if anchors.is_empty() { 0 } else { fetch.head_height().await? };
        for (height, ours) in anchors.iter().rev().filter(|(height, _)| **height <= head) {
            let Some(theirs) = fetch.links(*height, *height).await?.pop() else { continue };
            if theirs.hash != *ours {
                let theirs = theirs.hash;
                return Err(endpoint.permanent(format!(
                    "is another chain of this name: its block {height} is {theirs}, ours is {ours}"
                )));
            }
            endpoint.compared.store(true, Ordering::Relaxed);
            return Ok(());
        }
        if anchors.is_empty() {
            return Ok(());
        }
        Err(endpoint.transient(format!("has none of our newest blocks yet (its head is {head}): not known to be ours")))
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
