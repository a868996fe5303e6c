//! Compares what the chain is with what was applied, and moves, one block at a time, from the second to the first.
//!
//! One task per chain and projection; each lives on two connections of its own: one reads ahead, one applies. The
//! bell only says "look": a lost, repeated or late one changes nothing but the moment.

mod extend;
mod look;
mod switch;

use std::collections::HashMap;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::chain::ChainId;
use crate::projections::token_balances;
use crate::store::{LedgerRead, LedgerWrite, Store, StoreError, StoreFault, Wake};

/// How the processor goes about it.
#[derive(Debug, Clone)]
pub struct ProcessSettings {
    /// Longest sleep between two looks. Defaults to 1 s.
    pub poll_interval: Duration,
    /// Most final blocks merged into one commit; 1: every block has its own. Defaults to 1.
    pub batch: usize,
    /// Ends when there is nothing left to do.
    pub once: bool,
    /// The ledger's own settings.
    pub token_balances: token_balances::Settings,
}

impl Default for ProcessSettings {
    fn default() -> ProcessSettings {
        ProcessSettings {
            poll_interval: Duration::from_secs(1),
            batch: 1,
            once: false,
            token_balances: token_balances::Settings::default(),
        }
    }
}

/// What the processor tells whoever watches it (metrics, readiness). Called often; must be quick.
pub trait Watcher: Send + Sync {
    /// A task looked at its chain and knows where it stands.
    fn looked(&self, _seen: &Seen<'_>) {}
    /// Blocks were applied.
    fn applied(&self, _chain: &str, _blocks: u64, _events: u64, _negative: u64, _refused: u64, _took: Duration) {}
    /// One branch was left for another.
    fn switched(&self, _chain: &str, _depth: u64, _took: Duration) {}
    /// The task cannot go on for now.
    fn troubled(&self, _chain: Option<&str>, _reason: &str) {}
    /// The chain is gone.
    fn ended(&self, _chain: &str) {}
    /// The state of the bell: whether it is heard, and how often it was hung anew.
    fn bell(&self, _connected: bool, _reconnects: u64) {}
}

/// Watches nothing.
#[derive(Debug, Clone, Copy)]
pub struct Unwatched;

impl Watcher for Unwatched {}

/// Where a projection stands on a chain.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// The chain's name.
    pub chain: &'a str,
    /// Applied up to here.
    pub applied: Option<u64>,
    /// Our newest block.
    pub tip: Option<u64>,
    /// The source's head.
    pub head: Option<u64>,
    /// Final up to here.
    pub final_height: Option<u64>,
    /// Paused by an operator.
    pub paused: bool,
    /// Why it does not go on.
    pub halted: Option<&'a str>,
    /// Blocks are stored above what counts: the chain has a break.
    pub broken: bool,
    /// Nothing is left to do for now.
    pub idle: bool,
}

/// Processes every chain of the database until `shutdown`, or with `once` until nothing is left to do.
///
/// # Errors
/// With `once`, a fault that did not go away by itself, or a halted projection. Without it, none: it waits for
/// Postgres as long as it takes.
pub async fn run(
    store: Store,
    settings: ProcessSettings,
    mut wake: Wake,
    watcher: std::sync::Arc<dyn Watcher>,
    shutdown: CancellationToken,
) -> Result<(), ProcessError> {
    let mut tasks: HashMap<ChainId, JoinHandle<Result<(), ProcessError>>> = HashMap::new();
    let mut reader: Option<LedgerRead> = None;
    let mut pause = Pause::default();
    let mut result = Ok(());
    while !shutdown.is_cancelled() {
        wake.mark_seen();
        watcher.bell(wake.is_connected(), wake.reconnects());
        let chains = match chains(&store, &mut reader).await {
            Ok(chains) => chains,
            Err(error) => {
                reader = None;
                if settings.once && error.fault() != StoreFault::Contended {
                    return Err(error.into());
                }
                tracing::warn!(%error, "The chains cannot be read; trying again");
                watcher.troubled(None, &error.to_string());
                tokio::select! { () = pause.sleep() => {}, () = shutdown.cancelled() => {} }
                continue;
            }
        };
        pause = Pause::default();
        for chain in chains {
            if tasks.get(&chain).is_none_or(|task| task.is_finished() && !settings.once) {
                let task = look::Task::new(
                    store.clone(),
                    chain,
                    settings.clone(),
                    wake.clone(),
                    watcher.clone(),
                    shutdown.child_token(),
                );
                tasks.insert(chain, tokio::spawn(task.run()));
            }
        }
        if settings.once {
            break;
        }
        tokio::select! { () = wake.wait(settings.poll_interval) => {}, () = shutdown.cancelled() => {} }
    }
    for (_, task) in tasks {
        match task.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => result = Err(error),
            Err(panic) => result = Err(ProcessError::Panicked { what: panic.to_string() }),
        }
    }
    result
}

async fn chains(store: &Store, reader: &mut Option<LedgerRead>) -> Result<Vec<ChainId>, StoreError> {
    let reader = match reader {
        Some(reader) => reader,
        None => reader.insert(LedgerRead::connect(store).await?),
    };
    reader.chain_ids().await
}

/// Why processing ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// Postgres would not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The projection is halted.
    #[error("chain {chain}: {projection} is halted: {reason}")]
    Halted {
        /// The chain's name.
        chain: String,
        /// The projection.
        projection: String,
        /// Why.
        reason: String,
    },
    /// A task of ours broke off: a bug.
    #[error("a task broke off: {what}")]
    Panicked {
        /// What it said.
        what: String,
    },
}

/// A growing pause with jitter, for faults that may go away.
#[derive(Debug)]
struct Pause {
    next: Duration,
}

impl Default for Pause {
    fn default() -> Pause {
        Pause { next: Duration::from_millis(10) }
    }
}

impl Pause {
    const LONGEST: Duration = Duration::from_secs(5);

    /// How long to wait now; longer each time.
    fn next(&mut self) -> Duration {
        let jitter = 0.5 + rand::random::<f64>() / 2.0;
        let now = self.next.mul_f64(jitter);
        self.next = (self.next * 2).min(Pause::LONGEST);
        now
    }

    async fn sleep(&mut self) {
        tokio::time::sleep(self.next()).await;
    }
}

/// A task's connections.
#[derive(Debug)]
struct Session {
    read: LedgerRead,
    write: LedgerWrite,
}

impl Session {
    async fn connect(store: &Store) -> Result<Session, StoreError> {
        Ok(Session { read: LedgerRead::connect(store).await?, write: LedgerWrite::connect(store).await? })
    }
}
