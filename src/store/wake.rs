//! The doorbell: one connection that LISTENs, and everybody who waits for it.
//!
//! Register, then look at the tables, then sleep until the bell or the poll interval. A reconnect rings too, since
//! something may have been missed meanwhile.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::channel::mpsc;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_postgres::AsyncMessage;
use tokio_util::task::AbortOnDropHandle;

use super::{Store, StoreError};
use crate::chain::ChainId;

/// How a process learns that there may be something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WakeMode {
    /// LISTEN, and poll as a safety net.
    Listen,
    /// Poll alone: for engines without LISTEN, and behind poolers that lose it.
    Poll,
}

/// The bell of one process. Cheap to clone; each clone waits for itself.
#[derive(Debug, Clone)]
pub struct Wake {
    rings: watch::Receiver<Rings>,
    /// The chain it is about. None means all of them together: what names none.
    chain: Option<ChainId>,
    seen: u64,
    state: Arc<State>,
    // Ends the listener with the last clone.
    _listener: Option<Arc<AbortOnDropHandle<()>>>,
}

#[derive(Debug, Default)]
struct State {
    connected: AtomicBool,
    reconnects: AtomicU64,
}

/// How often it rang. It only says "look": a number that is too high costs a look, and nothing else.
#[derive(Debug, Default)]
struct Rings {
    /// For everybody: no chain is named (id 0), or what was said meanwhile was not heard.
    all: u64,
    /// For one chain.
    chains: HashMap<i64, u64>,
}

impl Rings {
    fn of(&self, chain: Option<ChainId>) -> u64 {
        self.all + chain.and_then(|chain| self.chains.get(&chain.0)).copied().unwrap_or_default()
    }

    fn ring(&mut self, payload: &str) {
        match payload.parse() {
            Ok(chain) if chain > 0 => *self.chains.entry(chain).or_default() += 1,
            _ => self.all += 1,
        }
    }
}

const CHANNEL: &str = "ebbtide_blocks";
/// A listener that hears nothing for this long asks the server for a sign of life.
const CHECK_AFTER: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

impl Wake {
    /// Starts listening in the background; never fails: until the connection stands, polling does.
    pub fn start(store: &Store, mode: WakeMode) -> Wake {
        let (ring, rings) = watch::channel(Rings::default());
        let state = Arc::new(State::default());
        let listener = (mode == WakeMode::Listen).then(|| {
            let task = tokio::spawn(listen_forever(store.clone(), ring, state.clone()));
            Arc::new(AbortOnDropHandle::new(task))
        });
        Wake { rings, chain: None, seen: 0, state, _listener: listener }
    }

    /// The bell for one chain: it rings for that chain, and where no chain is named.
    #[must_use]
    pub fn of(&self, chain: ChainId) -> Wake {
        Wake { chain: Some(chain), ..self.clone() }
    }

    /// Marks everything up to now as seen: call it before looking at the tables.
    pub fn mark_seen(&mut self) {
        self.seen = self.rings.borrow_and_update().of(self.chain);
    }

    /// Returns when the bell rang since [`mark_seen`](Wake::mark_seen), at the latest after `at_most`.
    /// Cancel safe.
    pub async fn wait(&mut self, at_most: Duration) {
        // Without a listener the sender is gone; then only the poll interval counts.
        let (chain, seen) = (self.chain, self.seen);
        let rung = async {
            if self.rings.wait_for(|rings| rings.of(chain) != seen).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let _ = timeout(at_most, rung).await;
    }

    /// Whether the listening connection stands and was heard.
    pub fn is_connected(&self) -> bool {
        self.state.connected.load(Ordering::Relaxed)
    }

    /// How often the listening connection had to be made again.
    pub fn reconnects(&self) -> u64 {
        self.state.reconnects.load(Ordering::Relaxed)
    }
}

async fn listen_forever(store: Store, ring: watch::Sender<Rings>, state: Arc<State>) {
    let mut pause = FIRST_PAUSE;
    let mut said_deaf = false;
    loop {
        let started = tokio::time::Instant::now();
        let end = listen_once(&store, &ring, &state, &mut said_deaf).await;
        state.connected.store(false, Ordering::Relaxed);
        state.reconnects.fetch_add(1, Ordering::Relaxed);
        ring.send_modify(|rings| rings.all += 1);
        match end {
            Ok(()) => tracing::warn!("The listening connection ended; connecting again, polling meanwhile"),
            Err(error) => tracing::warn!(%error, "Listening failed; connecting again, polling meanwhile"),
        }
        if started.elapsed() > LONGEST_PAUSE {
            pause = FIRST_PAUSE;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn listen_once(
    store: &Store,
    ring: &watch::Sender<Rings>,
    state: &State,
    said_deaf: &mut bool,
) -> Result<(), StoreError> {
    let (client, mut connection) = store.reached(&store.config).await?;
    // Unbounded, but drained at once by the loop below, which never waits for anything else.
    let (heard, mut hearing) = mpsc::unbounded();
    let driver = AbortOnDropHandle::new(tokio::spawn(async move {
        let mut messages = futures::stream::poll_fn(move |cx| connection.poll_message(cx));
        while let Some(message) = messages.next().await {
            match message {
                Ok(AsyncMessage::Notification(n)) => {
                    if heard.unbounded_send((n.channel().to_owned(), n.payload().to_owned())).is_err() {
                        return;
                    }
                }
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }));
    let probe = format!("ebbtide_probe_{:016x}", rand::random::<u64>());
    store.greet(&client, &store.greeting.clone().and(&[("statement_timeout", "0")])).await?;
    client.batch_execute(&format!("listen {CHANNEL}; listen {probe}; notify {probe}")).await?;
    // A pooler takes LISTEN and drops it: only hearing ourselves proves that we are heard.
    let heard_ourselves = timeout(Duration::from_secs(2), async {
        while let Some((channel, payload)) = hearing.next().await {
            ring.send_modify(|rings| rings.ring(&payload));
            if channel == probe {
                return true;
            }
        }
        false
    })
    .await
    .unwrap_or(false);
    if heard_ourselves {
        client.batch_execute(&format!("unlisten {probe}")).await?;
        state.connected.store(true, Ordering::Relaxed);
        *said_deaf = false;
        tracing::debug!("Listening on {CHANNEL}");
    } else if !std::mem::replace(said_deaf, true) {
        tracing::error!(
            "LISTEN is not heard on this connection (a pooler in transaction mode?): polling alone; \
             give a direct address, or set wake = \"poll\""
        );
    }
    ring.send_modify(|rings| rings.all += 1);
    loop {
        match timeout(CHECK_AFTER, hearing.next()).await {
            Ok(Some((_, payload))) => ring.send_modify(|rings| rings.ring(&payload)),
            Ok(None) => {
                drop(driver);
                return Ok(());
            }
            Err(_) => {
                let alive = timeout(Duration::from_secs(10), client.check_connection()).await;
                if !matches!(alive, Ok(Ok(()))) {
                    return Ok(());
                }
            }
        }
    }
}
