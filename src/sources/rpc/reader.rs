//! What every source that speaks JSON-RPC does alike: names, heads, second opinions, waits.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use serde_json::json;
use serde_json::value::RawValue;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::Dialect;
use super::endpoint::{Answer, Call, Endpoint};
use super::linked::{linked, numbers, opinion};
use crate::chain::{BlockRef, Height, Kind, Link};
use crate::sources::net::bell::{Bell, Manner};
use crate::sources::net::http::parse_url;
use crate::sources::net::pool::{Pool, Reach, least};
use crate::sources::{Head, Identity, SourceError};

/// How often in a row the chain may change under a read before that is a fault of the node: "look again at once" must
/// not become a storm of requests.
const CHANGES_IN_A_ROW: u32 = 3;

/// The settings that every such source has.
#[derive(Debug)]
pub(crate) struct ReaderSettings<'s> {
    pub(crate) reach: Reach<'s>,
    pub(crate) ws_url: Option<&'s str>,
    pub(crate) concurrency: usize,
    pub(crate) confirm_grace: Duration,
}

/// The nodes of one chain, and what was seen of it.
#[derive(Debug)]
pub(crate) struct Reader {
    pool: Pool<Endpoint>,
    /// What the network called itself when it was asked last ([`identify`](Reader::identify)): every node must give it.
    network_id: Mutex<Option<String>>,
    /// Since when no other node could be asked about an undo.
    alone_since: Mutex<Option<Instant>>,
    confirm_grace: Duration,
    /// The newest head seen.
    head: Seen,
    /// The newest block that was called final.
    finalized: Seen,
    changes_in_a_row: AtomicU32,
    bell: Bell,
}

/// The height last seen of something that moves.
#[derive(Debug, Default)]
struct Seen {
    /// Plus one; 0 means none yet.
    height: AtomicU64,
}

impl Seen {
    fn set(&self, height: Height) {
        self.height.store(height.get() + 1, Ordering::Relaxed);
    }

    fn get(&self) -> Option<Height> {
        self.height.load(Ordering::Relaxed).checked_sub(1).and_then(Height::new)
    }
}

impl Reader {
    /// Checks the settings; asks nobody yet.
    ///
    /// # Errors
    /// Permanent, naming the setting that is wrong.
    pub(crate) fn new(
        settings: ReaderSettings<'_>,
        dialect: &'static Dialect,
        manner: &'static Manner,
    ) -> Result<Reader, SourceError> {
        let concurrency = settings.concurrency;
        least("concurrency", concurrency >= 1, "1")?;
        let gate = Arc::new(Semaphore::new(concurrency.min(Semaphore::MAX_PERMITS)));
        let pool = Pool::new(settings.reach, |server| Endpoint::new(server, Arc::clone(&gate), dialect))?;
        let ws_url = settings.ws_url.map(|text| parse_url("ws_url", text, &["ws", "wss"])).transpose()?;
        Ok(Reader {
            pool,
            network_id: Mutex::new(None),
            alone_since: Mutex::new(None),
            confirm_grace: settings.confirm_grace,
            head: Seen::default(),
            finalized: Seen::default(),
            changes_in_a_row: AtomicU32::new(0),
            bell: Bell::new(ws_url, manner),
        })
    }

    /// The network id, once it is known.
    pub(crate) fn network_id(&self) -> Option<String> {
        self.network_id.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks the current node and, while that fails, each of the others once: the caller paces the rounds.
    pub(crate) async fn run<'s, T>(
        &'s self,
        ask: impl Fn(Arc<Endpoint>) -> BoxFuture<'s, Result<T, SourceError>>,
    ) -> Result<T, SourceError> {
        self.pool.run(|candidate| Box::pin(self.verify(candidate.endpoint)), ask, || true).await
    }

    /// Asks for the network's id, unless it was given since the node last failed.
    async fn verify(&self, endpoint: Arc<Endpoint>) -> Result<(), SourceError> {
        if endpoint.trusted.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.name_network(&endpoint).await
    }

    /// Asks for the network's id, unless it is known.
    pub(crate) async fn know_network(&self) -> Result<(), SourceError> {
        self.run(|_| Box::pin(async { Ok(()) })).await
    }

    /// Asks for the network's id even where it was given before.
    pub(crate) async fn name_network(&self, endpoint: &Endpoint) -> Result<(), SourceError> {
        let raw = endpoint.ask_one(Call::new(endpoint.dialect.network, json!([]))).await?;
        self.check_network(endpoint, &raw)
    }

    /// Whether a second node agrees that blocks are undone: it must know the new block, or know that the lowest of ours is not
    /// part of the chain; a node that lags behind has no opinion. With one node there is nobody else to ask. When for the
    /// grace of the settings no other one can be asked at all, the one that is left is believed, rather than standing still.
    pub(crate) async fn confirm_undo(&self, undone: &[BlockRef], new: &BlockRef) -> Result<bool, SourceError> {
        let others = self.pool.others();
        if others.is_empty() {
            // What it said since the head may be another network's: a URL can be pointed elsewhere at any moment.
            self.run(|endpoint| Box::pin(async move { self.name_network(&endpoint).await })).await?;
            return Ok(true);
        }
        let asked = others.iter().map(|other| async {
            self.verify(Arc::clone(other)).await?;
            opinion(other, undone, new).await
        });
        let mut faults = Vec::new();
        let mut answered = false;
        for (other, opinion) in others.iter().zip(join_all(asked).await) {
            match opinion {
                Ok(Some(true)) => {
                    self.no_longer_alone();
                    return Ok(true);
                }
                Ok(_) => answered = true,
                Err(error) => {
                    other.trusted.store(false, Ordering::Relaxed);
                    faults.push(error.to_string());
                }
            }
        }
        if answered {
            self.no_longer_alone();
            return Ok(false);
        }
        let mut since = self.alone_since.lock().unwrap_or_else(PoisonError::into_inner);
        if since.get_or_insert_with(Instant::now).elapsed() >= self.confirm_grace {
            tracing::warn!(height = %new.height, "No second node can be asked: believing the one that answers");
            return Ok(true);
        }
        Err(SourceError::transient(format!("no second node to confirm block {new}: {}", faults.join("; "))))
    }

    fn no_longer_alone(&self) {
        *self.alone_since.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Compares an answer with a network's id with the one that was given to [`identify`](Reader::identify).
    fn check_network(&self, endpoint: &Endpoint, answer: &RawValue) -> Result<(), SourceError> {
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
                endpoint.trusted.store(true, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// As [`run`](Reader::run), for blocks: where the chain changed under the read, to look again at once is right, but not
    /// for ever.
    pub(crate) async fn read<'s, T>(
        &'s self,
        ask: impl Fn(Arc<Endpoint>) -> BoxFuture<'s, Result<T, SourceError>>,
    ) -> Result<T, SourceError> {
        let read = self.run(ask).await;
        match read {
            Err(SourceError::Changed { height }) => {
                if self.changes_in_a_row.fetch_add(1, Ordering::Relaxed) + 1 < CHANGES_IN_A_ROW {
                    return Err(SourceError::Changed { height });
                }
                self.changes_in_a_row.store(0, Ordering::Relaxed);
                Err(SourceError::transient(format!(
                    "the chain changed {CHANGES_IN_A_ROW} times in a row while block {height} was read"
                )))
            }
            read => {
                if read.is_ok() {
                    self.changes_in_a_row.store(0, Ordering::Relaxed);
                }
                read
            }
        }
    }

    /// What is behind the URLs, asked again: an earlier wrong answer does not count, since only what is stored with blocks
    /// must stay. `name_itself`: what one node says of itself, its network at the least.
    pub(crate) async fn identify<'s>(
        &'s self,
        kind: Kind,
        name_itself: impl Fn(Arc<Endpoint>) -> BoxFuture<'s, Result<(), SourceError>>,
    ) -> Result<Identity, SourceError> {
        *self.network_id.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.pool.distrust_all();
        self.run(name_itself).await?;
        self.pool.look_at_others(|endpoint| Box::pin(self.verify(endpoint))).await?;
        Ok(Identity { kind, network_id: self.network_id() })
    }

    /// Makes these calls, and has the node name its network with them: another chain may move in behind a URL at any moment.
    pub(crate) async fn ask_of_our_chain(
        &self,
        endpoint: &Endpoint,
        mut calls: Vec<Call>,
    ) -> Result<impl Iterator<Item = (Call, Answer)>, SourceError> {
        calls.push(Call::new(endpoint.dialect.network, json!([])));
        let mut answers = endpoint.ask(&calls).await?;
        if let (Some(call), Some(network)) = (calls.pop(), answers.pop()) {
            let network = network.map_err(|error| endpoint.refused(&call, &error))?;
            self.check_network(endpoint, &network)?;
        }
        Ok(calls.into_iter().zip(answers))
    }

    /// A node's head, and the newest block that it calls final, if it names one. Once one was named, a node that names none (a
    /// busy one, or another one after a fail-over) must not make it look as if nothing were final; nor does one above the head
    /// say anything, since not both can be true.
    pub(crate) fn head(&self, block: BlockRef, finalized: Option<Height>) -> Head {
        if let Some(finalized) = finalized.filter(|finalized| *finalized <= block.height) {
            self.finalized.set(finalized);
        }
        self.head.set(block.height);
        let finalized = self.finalized.get().map(|finalized| finalized.min(block.height));
        Head { block, finalized, position: None, last: false, truth: false }
    }

    /// The height so far below the newest head seen, if there is one.
    pub(crate) fn below_head(&self, n: u64) -> Option<Height> {
        self.head.get()?.get().checked_sub(n).and_then(Height::new)
    }

    /// Names of the blocks at these heights. `known`: what an endpoint gave a moment ago.
    pub(crate) async fn links(
        &self,
        heights: RangeInclusive<Height>,
        known: impl Fn(&Endpoint) -> Option<Link>,
    ) -> Result<Vec<Link>, SourceError> {
        if heights.is_empty() {
            return Ok(Vec::new());
        }
        self.run(|endpoint| {
            let (heights, known) = (numbers(&heights), known(&endpoint));
            Box::pin(async move { linked(&endpoint, heights, &endpoint.dialect.links, known).await })
        })
        .await
    }

    /// # Cancel safety
    /// A wake that came while this was dropped is kept for the next call.
    pub(crate) async fn wait(&self, at_most: Duration) {
        self.bell.wait(at_most).await;
    }
}
