//! The services, alone or all in one process.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use ebbtide::api::{self, ApiSettings};
use ebbtide::chain::verdict::{Ended, State};
use ebbtide::config::{ChainConfig, ConfigError, Settings, SourceConfig};
use ebbtide::heart::Heart;
use ebbtide::ops::{Health, HealthReport, Metrics};
use ebbtide::private_postgres::{Options, PrivatePostgres};
use ebbtide::process;
use ebbtide::projections::token_balances::NegativeBalances;
use ebbtide::sources::Source;
use ebbtide::sources::devnet::Devnet;
use ebbtide::sources::evm::EvmSource;
use ebbtide::sources::file::FileSource;
use ebbtide::sources::gno::GnoSource;
use ebbtide::sources::starknet::StarknetSource;
use ebbtide::store::{Store, StoreFault, Wake};
use ebbtide::sync;
use ebbtide::watch::{ProcessWatch, SyncWatch, Voices};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{migrated, migrated_store, open, stop_signal};

/// More open files than all connections of all parts can be; some systems allow a billion, and programs that we start count
/// them one by one.
const MOST_FILES: u64 = 8_192;
/// Longest wait for parts to end after a stop signal; a private Postgres may need the rest of the 10 s (DESIGN 9).
const STOP_WITHIN: Duration = Duration::from_secs(3);

pub(super) async fn everything(settings: Settings, url_by_flag: bool) -> Result<ExitCode> {
    let stop = stop_signal()?;
    let first_look = settings.first_look;
    if first_look && url_by_flag {
        return Err(anyhow!(ConfigError::Unfit(
            "--database-url names a database, but no source is named; add --source devnet to write a devnet there"
                .to_owned()
        )));
    }
    let mut private = None;
    let url = match &settings.database_url {
        Some(url) if !first_look => url.clone(),
        named => {
            if named.is_some() {
                tracing::warn!(
                    "DATABASE_URL is ignored and left untouched: no source is named, so this is a first look"
                );
            }
            // After a crash it may take minutes. Given up half way, it is stopped.
            let started = tokio::select! {
                started = PrivatePostgres::start(&settings.private_dir, Options::default()) => started,
                () = stop.cancelled() => return Ok(ExitCode::SUCCESS),
            };
            let started = started.context("the private Postgres did not start")?;
            let url = started.url();
            tracing::info!("A private Postgres runs in {}; look with `ebbtide psql`", settings.private_dir.display());
            private = Some(started);
            url
        }
    };
    let Some(mut private) = private else { return with_database(&settings, &url, stop).await };
    let result = tokio::select! {
        result = with_database(&settings, &url, stop) => result,
        // Nobody else starts it again: say so rather than wait for it forever.
        _ = private.ended() => {
            return Err(anyhow!("the private Postgres ended by itself; its log: {}", private.log().display()));
        }
    };
    private.stop().await.context("the private Postgres did not stop")?;
    result
}

async fn with_database(settings: &Settings, url: &str, stop: CancellationToken) -> Result<ExitCode> {
    let store = Store::open(url, settings.store("ebbtide"))?;
    reachable(&store, &stop).await?;
    let store = store.look_for_pooler().await.context("the database cannot be reached")?;
    store.check_sessions().context("the database cannot be used")?;
    let mut parts = Parts::new(stop.clone());
    if settings.process.once {
        if !parts.migrate(&store).await? {
            return parts.end().await;
        }
        let syncing = Parts::sync_all(&mut parts, settings, &store)?;
        parts.heart(&store, "run");
        parts.wait_for(syncing).await?;
        return parts.process_once(settings, store).await;
    }
    // Addresses first: a port that is taken should be known before anything is written.
    let api = bind(settings.listen, "--listen").await?;
    parts.operator(bind(settings.operator_listen, "--operator-listen").await?);
    if !parts.migrate(&store).await? {
        return parts.end().await;
    }
    parts.api(api, settings, store.clone());
    Parts::sync_all(&mut parts, settings, &store)?;
    parts.process(settings, &store);
    parts.heart(&store, "run");
    parts.end().await
}

pub(super) async fn sync(settings: Settings) -> Result<ExitCode> {
    if settings.chains.is_empty() || settings.first_look {
        return Err(anyhow!(ConfigError::Unfit(
            "no source: give --source, or [chains.NAME] in the settings".to_owned()
        )));
    }
    let stop = stop_signal()?;
    let store = writing_store(&settings, "ebbtide sync").await?;
    let mut parts = Parts::new(stop);
    let operator = optional_operator(&settings).await?;
    let syncing = Parts::sync_all(&mut parts, &settings, &store)?;
    parts.heart(&store, "sync");
    if let Some(operator) = operator {
        parts.operator(operator);
    }
    parts.wait_for(syncing).await?;
    parts.done().await
}

pub(super) async fn process(settings: Settings) -> Result<ExitCode> {
    let stop = stop_signal()?;
    let store = writing_store(&settings, "ebbtide process").await?;
    let mut parts = Parts::new(stop);
    if settings.process.once {
        return parts.process_once(&settings, store).await;
    }
    let operator = optional_operator(&settings).await?;
    parts.process(&settings, &store);
    parts.heart(&store, "process");
    if let Some(operator) = operator {
        parts.operator(operator);
    }
    parts.end().await
}

pub(super) async fn serve(settings: Settings) -> Result<ExitCode> {
    let stop = stop_signal()?;
    let store = migrated_store(&settings, "ebbtide serve").await?;
    if store.check_sessions().is_err() {
        tracing::info!(
            "A pooler gives each transaction another session: each read brings its own settings, and leaves none behind"
        );
    }
    let mut parts = Parts::new(stop);
    let api = bind(settings.listen, "--listen").await?;
    if let Some(operator) = optional_operator(&settings).await? {
        parts.operator(operator);
    }
    parts.api(api, &settings, store.clone());
    parts.heart(&store, "serve");
    parts.end().await
}

/// For what holds locks and listens.
async fn writing_store(settings: &Settings, name: &str) -> Result<Store> {
    let store = open(settings, name).await?;
    store.check_sessions().context("the database cannot be used")?;
    migrated(store).await
}

async fn bind(address: std::net::SocketAddr, flag: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}; choose another {flag}"))
}

/// `sync`, `process` and `serve` often run beside one another: the operator port is served where it was asked for.
async fn optional_operator(settings: &Settings) -> Result<Option<TcpListener>> {
    if !settings.operator_asked {
        return Ok(None);
    }
    Ok(Some(bind(settings.operator_listen, "--operator-listen").await?))
}

/// A database that is just starting (compose) is waited for, for a while.
async fn reachable(store: &Store, stop: &CancellationToken) -> Result<()> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        match store.ping().await {
            Ok(()) => return Ok(()),
            Err(error) if error.fault() != StoreFault::Unavailable || tokio::time::Instant::now() > deadline => {
                return Err(error).context("the database cannot be reached");
            }
            Err(error) => {
                tracing::debug!(%error, "Waiting for the database");
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_millis(300)) => {}
                    () = stop.cancelled() => return Err(anyhow!("stopped before the database could be reached")),
                }
            }
        }
    }
}

/// The parts of this process.
struct Parts {
    stop: CancellationToken,
    voices: Voices,
    health: Health,
    metrics: Metrics,
    tasks: JoinSet<Result<()>>,
    /// There is nothing left to do: the heart tells so, and ends.
    done: CancellationToken,
}

impl Parts {
    fn new(stop: CancellationToken) -> Parts {
        raise_file_limit();
        Parts {
            stop,
            voices: Voices::default(),
            health: Health::new(),
            metrics: Metrics::new(),
            tasks: JoinSet::new(),
            done: CancellationToken::new(),
        }
    }

    fn operator(&mut self, listener: TcpListener) {
        let (health, metrics, stop) = (self.health.clone(), self.metrics.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            api::serve_operator(listener, health, metrics, stop.cancelled_owned()).await;
            Ok(())
        });
    }

    /// Brings the schema to this version, and shows what is waited for meanwhile. False: the stop signal came first.
    async fn migrate(&self, store: &Store) -> Result<bool> {
        let waits = |what: &str| {
            self.health.publish_for_long(HealthReport::of_one("database", State::Waiting.as_str(), what));
        };
        tokio::select! {
            migrated = store.migrate_telling(waits) => migrated.context("the schema could not be brought up to date")?,
            // Another may hold the migration lock for hours. A migration is one transaction: it is whole, or not there.
            () = self.stop.cancelled() => return Ok(false),
        };
        Ok(true)
    }

    /// Tells that the parts live, and how everything is. It ends the process when the schema under it is changed.
    fn heart(&mut self, store: &Store, program: &str) {
        let heart = Heart::new(store, program, &self.voices, &self.health, &self.metrics);
        let (stop, done) = (self.stop.clone(), self.done.clone());
        self.tasks.spawn(async move {
            let ended = async {
                tokio::select! {
                    biased;
                    () = done.cancelled() => Ended::Done,
                    () = stop.cancelled() => Ended::Stopped,
                }
            };
            heart.beat(ended).await.context("the schema was changed while this ran")
        });
    }

    /// Applies what is left to apply; then all has been done.
    async fn process_once(mut self, settings: &Settings, store: Store) -> Result<ExitCode> {
        if self.stop.is_cancelled() {
            return self.end().await;
        }
        let (wake, watcher) = (Wake::start(&store, settings.wake), self.process_watch(settings));
        if self.tasks.is_empty() {
            self.heart(&store, "process");
        }
        match process::run(store, settings.process.clone(), wake, watcher, self.stop.clone()).await {
            Ok(()) => self.done().await,
            Err(error) => {
                self.stop.cancel();
                self.end().await?;
                Err(error.into())
            }
        }
    }

    /// All that was to be done is done, unless a signal came first.
    async fn done(self) -> Result<ExitCode> {
        if !self.stop.is_cancelled() {
            self.done.cancel();
        }
        self.stop.cancel();
        self.end().await
    }

    fn api(&mut self, listener: TcpListener, settings: &Settings, store: Store) {
        let stop = self.stop.clone();
        let shows_negative = settings.process.token_balances.negative_balances == NegativeBalances::Show;
        let settings = ApiSettings { shows_negative, ..ApiSettings::default() };
        if let Ok(address) = listener.local_addr() {
            tracing::info!("The API answers on http://{address}/tokens/balances");
        }
        self.tasks.spawn(async move {
            api::serve(listener, store, settings, stop.cancelled_owned()).await;
            Ok(())
        });
    }

    /// Starts a syncer for each chain; each is handed back to be waited for.
    fn sync_all(parts: &mut Parts, settings: &Settings, store: &Store) -> Result<Vec<tokio::task::AbortHandle>> {
        let mut handles = Vec::new();
        for (name, chain) in &settings.chains {
            let source = open_source(&chain.source)?;
            let ChainConfig { sync: sync_settings, .. } = chain.clone();
            let watcher = SyncWatch::new(name, sync_settings.poll_interval, &parts.voices, &parts.metrics);
            let (store, stop, name, voices) = (store.clone(), parts.stop.clone(), name.clone(), parts.voices.clone());
            handles.push(parts.tasks.spawn(async move {
                let watcher = Arc::new(watcher);
                let synced = sync::run(store, source, sync_settings, watcher, stop.clone()).await;
                synced.with_context(|| format!("chain {name}"))?;
                if !stop.is_cancelled() {
                    voices.source_is_done(&name);
                }
                Ok(())
            }));
        }
        Ok(handles)
    }

    fn process_watch(&self, settings: &Settings) -> Arc<ProcessWatch> {
        Arc::new(ProcessWatch::new(settings.process.poll_interval, &self.voices, &self.metrics))
    }

    fn process(&mut self, settings: &Settings, store: &Store) {
        let wake = Wake::start(store, settings.wake);
        let watcher = self.process_watch(settings);
        let (store, settings, stop) = (store.clone(), settings.process.clone(), self.stop.clone());
        self.tasks.spawn(async move { Ok(process::run(store, settings, wake, watcher, stop).await?) });
    }

    /// Waits until these tasks have ended; the first error ends all.
    async fn wait_for(&mut self, handles: Vec<tokio::task::AbortHandle>) -> Result<()> {
        while handles.iter().any(|h| !h.is_finished()) {
            let Some(ended) = self.tasks.join_next().await else { break };
            ended.map_err(|panic| anyhow!("a task panicked: {panic}"))??;
        }
        while let Some(ended) = self.tasks.try_join_next() {
            ended.map_err(|panic| anyhow!("a task panicked: {panic}"))??;
        }
        Ok(())
    }

    /// Waits for the stop signal, or for the first part that fails; then for all to end.
    async fn end(mut self) -> Result<ExitCode> {
        let mut result = Ok(ExitCode::SUCCESS);
        loop {
            let ended = tokio::select! {
                () = self.stop.cancelled() => break,
                ended = self.tasks.join_next() => ended,
            };
            match ended {
                // A source that ends (a file) leaves the rest running.
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err(error))) => {
                    result = Err(error);
                    break;
                }
                Some(Err(panic)) => {
                    result = Err(anyhow!("a task panicked: {panic}"));
                    break;
                }
                None => return result,
            }
        }
        self.stop.cancel();
        let all = async {
            while let Some(ended) = self.tasks.join_next().await {
                if let (Ok(Err(error)), Ok(_)) = (ended, &result) {
                    result = Err(error);
                }
            }
        };
        if tokio::time::timeout(STOP_WITHIN, all).await.is_err() {
            tracing::warn!("Some parts did not end in time and are cut off; nothing is half done");
        }
        result
    }
}

/// Shells start programs with 1,024 files and let them have more: each client of a port is one.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(MOST_FILES, |maximum| maximum.min(MOST_FILES));
    if limit.current.is_some_and(|current| current < wanted)
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), ..limit })
    {
        tracing::warn!(%error, wanted, "The limit of open files could not be raised");
    }
}

fn open_source(source: &SourceConfig) -> Result<Arc<dyn Source>> {
    Ok(match source {
        SourceConfig::Evm(settings) => Arc::new(EvmSource::new((**settings).clone())?),
        SourceConfig::Gno(settings) => Arc::new(GnoSource::new((**settings).clone())?),
        SourceConfig::Starknet(settings) => Arc::new(StarknetSource::new((**settings).clone())?),
        SourceConfig::File(settings) => Arc::new(FileSource::new(settings.clone())?),
        SourceConfig::Devnet(settings) => Arc::new(Devnet::new(settings)),
    })
}
