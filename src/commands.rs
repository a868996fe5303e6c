//! One function a command: puts the parts together and takes them apart again.

mod ledger;
mod operate;
mod psql;
mod run;
mod verify;

use std::borrow::Cow;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use ebbtide::config::{Cli, Command, ConfigError, RejectedCommand, Settings};
use ebbtide::ops::{plain, plain_lines};
use ebbtide::private_postgres::{self, Search};
use ebbtide::store::{Store, StoreError};
use tokio_util::sync::CancellationToken;

pub(crate) async fn run(cli: Cli) -> Result<ExitCode> {
    // rustls asks for one provider per process; a second install is refused, which is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    ebbtide::ops::init_tracing(cli.log_format == ebbtide::config::LogFormat::Json, level(&cli.command))?;
    let settings = Settings::load(&cli)?;
    if let Some(file) = &settings.file {
        tracing::info!("Settings are read from {}", file.display());
    }
    for what in &settings.unknown_variables {
        tracing::warn!("Settings: {what}");
    }
    match cli.command {
        Command::Run { .. } => run::everything(settings, cli.database_url.is_some()).await,
        Command::Sync { .. } => run::sync(settings).await,
        Command::Process { .. } => run::process(settings).await,
        Command::Serve { .. } => run::serve(settings).await,
        Command::Config { check, .. } => {
            say(if check { "The settings are good.".to_owned() } else { settings.shown().trim_end().to_owned() })?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Migrate => operate::migrate(&settings).await,
        Command::Status(args) => operate::status(&settings, &args).await,
        Command::Verify(args) => verify::verify(&settings, &args).await,
        Command::Replay(args) => operate::replay(&settings, &args).await,
        Command::Pause(args) => operate::pause(&settings, &args).await,
        Command::Resume(args) => operate::resume(&settings, &args).await,
        Command::OpeningBalances(args) => ledger::opening_balances(&settings, args).await,
        Command::Rejected(RejectedCommand::List(args)) => ledger::rejected_list(&settings, &args).await,
        Command::Rejected(RejectedCommand::Retry(args)) => ledger::rejected_retry(&settings, &args).await,
        Command::Psql { args } => psql::psql(&settings, &args).await,
    }
}

/// The services say what they do; the others answer on stdout.
fn level(command: &Command) -> tracing::Level {
    match command {
        Command::Run { .. } | Command::Sync { .. } | Command::Process { .. } | Command::Serve { .. } => {
            tracing::Level::INFO
        }
        _ => tracing::Level::WARN,
    }
}

/// The database named, or the private one that is running here.
fn database_url(settings: &Settings) -> Result<String> {
    if let Some(url) = &settings.database_url {
        return Ok(url.clone());
    }
    if let Some(running) = private_postgres::running(&settings.private_dir, &Search::Installed) {
        return Ok(running.url);
    }
    Err(anyhow!(ConfigError::Unfit(format!(
        "no database: set DATABASE_URL or --database-url (and no private Postgres runs in {})",
        settings.private_dir.display()
    ))))
}

/// The database, reachable and at this version's schema.
async fn migrated_store(settings: &Settings, name: &str) -> Result<Store> {
    migrated(open(settings, name).await?).await
}

async fn migrated(store: Store) -> Result<Store> {
    store.check_schema().await.context("the database cannot be used")?;
    Ok(store)
}

async fn open(settings: &Settings, name: &str) -> Result<Store> {
    unknown_sessions(settings, name)?.look_for_pooler().await.context("the database cannot be reached")
}

/// The database, of which nobody has asked yet whether a pooler lends its sessions.
fn unknown_sessions(settings: &Settings, name: &str) -> Result<Store> {
    Ok(Store::open(&database_url(settings)?, settings.store(name))?)
}

/// Ends with the first SIGINT, SIGTERM or SIGHUP (the terminal is gone); a second one ends the process at once.
fn stop_signal() -> Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let stop = CancellationToken::new();
    let token = stop.clone();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    // `nohup` has it ignored: a terminal that is closed is not to stop us then.
    let mut hangup = if is_hangup_ignored() { None } else { Some(signal(SignalKind::hangup())?) };
    let mut next = async move || {
        let hung_up = async {
            match &mut hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {}, _ = hung_up => {} }
    };
    tokio::spawn(async move {
        next().await;
        tracing::info!("Stopping: finishing the block in hand");
        token.cancel();
        next().await;
        std::process::exit(130);
    });
    Ok(stop)
}

/// Whether this process was started with SIGHUP ignored; where the system does not tell (it is not Linux), it was not.
fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    // Signal 1 is the lowest bit.
    ignored.is_some_and(|mask| mask & 1 == 1)
}

/// Writes an answer to stdout, fit for a terminal. A reader that went away (`| head`) is no error.
fn say(text: impl AsRef<str>) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(plain_lines(text.as_ref()).as_bytes()).and_then(|()| out.write_all(b"\n")) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// Rows as columns for people, each on one line whatever a cell holds.
fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let rows: Vec<[Cow<'_, str>; N]> = rows.iter().map(|row| row.each_ref().map(|cell| plain(cell))).collect();
    let width = |n: usize| rows.iter().map(|row| row[n].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let lines = rows.iter().map(|row| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// A fixed word of our SQL functions as an answer for people.
fn refused(error: StoreError) -> anyhow::Error {
    anyhow!(error.message())
}
