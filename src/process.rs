//! Compares what the chain is with what was applied, and moves, one block at a time, from the second to the first.
//!
//! One task per chain and projection (`task`): it looks, asks [`decide`](crate::chain::decide), carries out the answer and
//! waits. All look through one connection and work on a bounded number of others. The bell only says "look": a lost,
//! repeated or late one changes nothing but the moment.

mod engine;
mod evidence;
mod extend;
mod progress;
mod read;
mod switch;
mod task;
mod workers;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use self::engine::{Engine, Work};
use self::task::{Caution, Task};
pub use self::workers::Connections;
use self::workers::Lookout;
use crate::chain::ChainId;
use crate::projections::{Projection, token_balances};
use crate::store::{Store, StoreError, StoreFault, Wake};

/// How the processor goes about it.
#[derive(Debug, Clone)]
pub struct ProcessSettings {
    /// Longest sleep between two looks. Defaults to 1 s.
    pub poll_interval: Duration,
    /// Most final blocks merged into one commit: a cap on what far behind is merged anyhow, up to 10,000 events. Defaults to
    /// no cap.
    pub batch: usize,
    /// Pairs of connections to work with: for balances, again for functions and code, and again for functions that follow
    /// another projection and go their own way. Defaults to 4, so that a processor has at most 26 connections, whatever the
    /// number of chains: these, one to look through, one that listens.
    pub workers: usize,
    /// Ends when there is nothing left to do.
    pub once: bool,
    /// Replaced blocks (`orphaned_blocks`) and reorganisations (`reorgs`) are dropped so many days after they were noted.
    /// Neither undo nor verification reads them; a block that is asked for by its hash is then unknown and no longer "replaced".
    /// None, the default, keeps them for ever.
    ///
    /// Refused events (`rejected_events`) have no age: as long as its block stands, such a row says what the balances lack,
    /// `rejected retry` and `verify` go by it, and `anomalies` shows it. It goes when its block is replaced, or when the
    /// event is taken in.
    pub keep_evidence_days: Option<u32>,
    /// The ledger's own settings.
    pub token_balances: token_balances::Settings,
    /// What to do when final blocks changed, for projections other than `token_balances`; those not named rebuild.
    pub on_deep_change: HashMap<String, token_balances::OnDeepChange>,
    /// Projections that this program applies itself.
    pub projections: Projections,
}

/// The projections that a program applies by code of its own, by name. None by default.
#[derive(Clone, Default)]
pub struct Projections(Vec<Arc<dyn Projection>>);

impl Projections {
    /// Adds one.
    #[must_use]
    pub fn with(mut self, projection: impl Projection + 'static) -> Projections {
        self.0.push(Arc::new(projection));
        self
    }

    fn named(&self, name: &str) -> Option<Arc<dyn Projection>> {
        self.0.iter().find(|p| p.name() == name).cloned()
    }
}

impl fmt::Debug for Projections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|p| p.name())).finish()
    }
}

impl Default for ProcessSettings {
    fn default() -> ProcessSettings {
        ProcessSettings {
            poll_interval: Duration::from_secs(1),
            batch: usize::MAX,
            workers: 4,
            once: false,
            keep_evidence_days: None,
            token_balances: token_balances::Settings::default(),
            on_deep_change: HashMap::new(),
            projections: Projections::default(),
        }
    }
}

/// What the processor tells whoever watches it (metrics, readiness). Called often; must be quick.
pub trait Watcher: Send + Sync {
    /// A task looked at its chain.
    fn looked(&self, _of: Of<'_>) {}
    /// Blocks were applied.
    fn applied(&self, _of: Of<'_>, _done: Done) {}
    /// One branch was left for another.
    fn switched(&self, _of: Of<'_>, _depth: u64, _took: Duration) {}
    /// A task cannot go on for now; None means the processor itself.
    fn troubled(&self, _of: Option<Of<'_>>, _reason: &str) {}
    /// A task goes on, or is where it should be; None means the processor itself.
    fn well(&self, _of: Option<Of<'_>>) {}
    /// The chain is gone, or the projection.
    fn ended(&self, _of: Of<'_>) {}
    /// The state of the bell: whether it is heard, and how often it was set up again.
    fn bell(&self, _connected: bool, _reconnects: u64) {}
}

/// Watches nothing.
#[derive(Debug, Clone, Copy)]
pub struct Unwatched;

impl Watcher for Unwatched {}

/// One projection on one chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Of<'a> {
    /// The chain's name.
    pub chain: &'a str,
    /// The projection.
    pub projection: &'a str,
}

/// What was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Done {
    /// Blocks.
    pub blocks: u64,
    /// Their events, where they are counted.
    pub events: u64,
    /// Touched balances that are negative now.
    pub negative: u64,
    /// Events that were left out.
    pub refused: u64,
    /// How long it took.
    pub took: Duration,
}

/// Processes every chain of the database until `shutdown`, or with `once` until nothing is left to do.
///
/// # Errors
/// With `once`, a fault that did not go away by itself, or a halted projection. Without it, none: it waits for
/// Postgres as long as it takes.
pub async fn run(
    store: Store,
    settings: ProcessSettings,
    wake: Wake,
    watcher: std::sync::Arc<dyn Watcher>,
    shutdown: CancellationToken,
) -> Result<(), ProcessError> {
    let connections = Connections::new(&store, settings.workers);
    run_on(&connections, settings, wake, watcher, shutdown).await
}

/// [`run`] on connections that are kept: one run after another on the same ones is spared the time to open them and to
/// prepare their statements.
///
/// # Errors
/// As those of [`run`].
pub async fn run_on(
    connections: &Connections,
    settings: ProcessSettings,
    mut wake: Wake,
    watcher: std::sync::Arc<dyn Watcher>,
    shutdown: CancellationToken,
) -> Result<(), ProcessError> {
    let Connections { store, lookout, for_balances, for_functions, for_followers } = connections;
    let dropping = settings.keep_evidence_days.map(|days| {
        let dropping = evidence::drop_old(for_balances.clone(), days, settings.once, shutdown.child_token());
        AbortOnDropHandle::new(tokio::spawn(dropping))
    });
    let mut tasks: HashMap<(ChainId, String), JoinHandle<Result<(), ProcessError>>> = HashMap::new();
    let mut registered = Vec::new();
    let mut pause = Pause::default();
    let mut result = Ok(());
    while !shutdown.is_cancelled() {
        wake.mark_seen();
        watcher.bell(wake.is_connected(), wake.reconnects());
        let found = match tasks_to_run(store, lookout, &settings, &mut registered).await {
            Ok(found) => found,
            Err(error) => {
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
        let mut is_well = true;
        for (key, task) in tasks.extract_if(|_, task| task.is_finished()) {
            if let Err(error) = ended(task.await) {
                tracing::error!(chain = key.0.0, projection = %key.1, %error, "A projection's task ended; starting it again");
                watcher.troubled(None, &error.to_string());
                is_well = false;
            }
        }
        if is_well {
            watcher.well(None);
        }
        // Those that follow another come last: with `once`, when it is where it goes.
        for follows in [false, true] {
            let wave = found.iter().filter(|found| found.follows == follows);
            for Found { chain, name, work, .. } in wave {
                let key = (*chain, name.clone());
                if let Entry::Vacant(place) = tasks.entry(key) {
                    let on_deep_change = match work {
                        Work::Balances => settings.token_balances.on_deep_change,
                        Work::Function | Work::Code(_) => {
                            settings.on_deep_change.get(name).copied().unwrap_or_default()
                        }
                    };
                    let workers = if matches!(work, Work::Balances) { for_balances } else { for_functions };
                    let task = Task {
                        engine: Engine::new(
                            *chain,
                            name.clone(),
                            work.clone(),
                            settings.token_balances,
                            on_deep_change,
                        ),
                        lookout: lookout.clone(),
                        workers: workers.clone(),
                        for_followers: for_followers.clone(),
                        settings: settings.clone(),
                        wake: wake.of(*chain),
                        watcher: watcher.clone(),
                        shutdown: shutdown.child_token(),
                        caution: Caution::default(),
                    };
                    place.insert(tokio::spawn(task.run()));
                }
            }
            if settings.once {
                for (_, task) in tasks.drain() {
                    result = result.and(ended(task.await));
                }
            }
        }
        if settings.once {
            break;
        }
        tokio::select! { () = wake.wait(settings.poll_interval) => {}, () = shutdown.cancelled() => {} }
    }
    for (_, task) in tasks {
        result = result.and(ended(task.await));
    }
    if let Some(dropping) = dropping {
        result = result.and(dropping.await.map_err(|panic| ProcessError::Panicked { what: panic.to_string() }));
    }
    result
}

fn ended(task: Result<Result<(), ProcessError>, tokio::task::JoinError>) -> Result<(), ProcessError> {
    task.unwrap_or_else(|panic| Err(ProcessError::Panicked { what: panic.to_string() }))
}

/// A projection to run on a chain.
struct Found {
    chain: ChainId,
    name: String,
    work: Work,
    /// Whether it runs after another one.
    follows: bool,
}

/// Every chain with every projection that concerns it, as far as this program can apply it.
async fn tasks_to_run(
    store: &Store,
    lookout: &Lookout,
    settings: &ProcessSettings,
    registered: &mut Vec<String>,
) -> Result<Vec<Found>, StoreError> {
    let reader = lookout.read().await?;
    let chains = reader.chains().await?;
    for projection in &settings.projections.0 {
        let concerned = chains.iter().any(|(_, kind)| projection.kind().is_none_or(|only| only == *kind));
        if concerned && !registered.iter().any(|name| name == projection.name()) {
            match register(store, projection).await {
                Ok(()) => registered.push(projection.name().to_owned()),
                // One that cannot begin holds up no other; asked again at the next look.
                Err(error) if !settings.once && error.fault() == StoreFault::Permanent => {
                    tracing::error!(projection = projection.name(), %error, "A projection cannot begin");
                    continue;
                }
                Err(error) => return Err(error),
            }
        }
    }
    // A follower's too, so that it is taken along from the first block on.
    reader.make_checkpoints().await?;
    let mut found = Vec::new();
    for row in reader.projections().await? {
        let work = match settings.projections.named(&row.name) {
            Some(code) if registered.contains(&row.name) => Work::Code(code),
            Some(_) => continue,
            None if row.name == token_balances::NAME => Work::Balances,
            None if row.is_function => Work::Function,
            // Applied by another program.
            None => continue,
        };
        let concerned = chains.iter().filter(|(chain, kind)| {
            row.chain.is_none_or(|only| only == *chain) && row.kind.is_none_or(|only| only == *kind)
        });
        for (chain, _) in concerned {
            let follows = row.after.is_some();
            found.push(Found { chain: *chain, name: row.name.clone(), work: work.clone(), follows });
        }
    }
    Ok(found)
}

async fn register(store: &Store, projection: &Arc<dyn Projection>) -> Result<(), StoreError> {
    projection.prepare(store).await?;
    let ignores = projection.ignores_catching_up();
    store.register_projection(projection.name(), &projection.tables(), projection.kind(), ignores).await?;
    match projection.settings() {
        Some(settings) => store.keep_settings(projection.name(), &settings).await,
        None => Ok(()),
    }
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
    /// A task of ours panicked: a bug.
    #[error("a task panicked: {what}")]
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
