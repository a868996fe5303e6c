//! Several URLs of one chain: one is current. Another one takes over only if it has our blocks, since two hosts of a
//! network may well follow different chains of one name.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;

use super::decode::Decoder;
use super::endpoint::Endpoint;
use super::fetch::Fetch;
use crate::chain::{Block, BlockRef, Hash};
use crate::sources::SourceError;
use crate::sources::net::pool::{Candidate, Pool};

/// Blocks of ours that are remembered to compare another server with.
const MOST_ANCHORS: usize = 64;

/// The servers of one chain.
#[derive(Debug)]
pub(super) struct Servers {
    pool: Pool<Endpoint>,
    decoder: Arc<Decoder>,
    /// What the settings say that every block names.
    set_chain_id: Option<String>,
    /// What every block must name: what was said when it was asked last ([`identify`](Servers::identify)), if no setting says it.
    chain_id: Mutex<Option<String>>,
    /// Blocks we have, by height.
    anchors: Mutex<BTreeMap<u64, Hash>>,
    /// Whether our tip is known: before that, nobody can take over for good.
    resumed: AtomicBool,
}

impl Servers {
    pub(super) fn new(pool: Pool<Endpoint>, decoder: Arc<Decoder>, chain_id: Option<String>) -> Servers {
        let resumed = AtomicBool::new(false);
        Servers {
            pool,
            decoder,
            chain_id: Mutex::new(chain_id.clone()),
            set_chain_id: chain_id,
            anchors: Mutex::default(),
            resumed,
        }
    }

    /// What the network calls itself, once it is known.
    pub(super) fn chain_id(&self) -> Option<String> {
        self.chain_id.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the network calls itself, asked again: an earlier wrong answer does not count, since only what is stored with
    /// blocks must stay.
    pub(super) async fn identify(&self) -> Result<String, SourceError> {
        self.chain_id.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&self.set_chain_id);
        self.pool.distrust_all();
        let name = |endpoint: Arc<Endpoint>, _| -> BoxFuture<'_, _> {
            Box::pin(async move { self.learn_chain_id(&endpoint).await })
        };
        let chain_id = self.run(name).await?;
        self.look_at_others().await?;
        Ok(chain_id)
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

    /// Asks the current server and, while that fails, each of the others once: the caller paces the rounds.
    pub(super) async fn run<'s, T>(
        &'s self,
        ask: impl Fn(Arc<Endpoint>, Option<String>) -> BoxFuture<'s, Result<T, SourceError>>,
    ) -> Result<T, SourceError> {
        let fit = |candidate: Candidate<Endpoint>| -> BoxFuture<'s, _> {
            Box::pin(async move { if candidate.is_current { Ok(()) } else { self.compare(&candidate.endpoint).await } })
        };
        let may_take_over = || self.resumed.load(Ordering::Relaxed);
        self.pool.run(fit, |endpoint| ask(endpoint, self.chain_id()), may_take_over).await
    }

    /// Has the others name their chain and its first block, once: those that follow another chain of this name are not used.
    async fn look_at_others(&self) -> Result<(), SourceError> {
        let first_block = |endpoint: Arc<Endpoint>| -> BoxFuture<'_, Result<Option<Hash>, SourceError>> {
            Box::pin(async move {
                self.learn_chain_id(&endpoint).await?;
                Ok(self.fetch(&endpoint, None).links(1, 1).await?.pop().map(|link| link.hash))
            })
        };
        let others = self.pool.look_at_others(first_block).await?;
        if others.is_empty() {
            return Ok(());
        }
        let ours = first_block(self.pool.current()).await.ok().flatten();
        for (other, theirs) in others {
            if let (Some(ours), Some(theirs)) = (&ours, theirs)
                && *ours != theirs
            {
                tracing::warn!(node = %other.shown, "This indexer follows another chain of this name: not used");
            }
        }
        Ok(())
    }

    /// Learns what the network calls itself, and insists on it.
    async fn learn_chain_id(&self, endpoint: &Endpoint) -> Result<String, SourceError> {
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
        if endpoint.trusted.load(Ordering::Relaxed) {
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
            endpoint.trusted.store(true, Ordering::Relaxed);
            return Ok(());
        }
        if anchors.is_empty() {
            return Ok(());
        }
        Err(endpoint.transient(format!("has none of our newest blocks yet (its head is {head}): not known to be ours")))
    }
}
