//! Settings and command line: names, units, defaults, bounds; all checked before anything is connected.
//!
//! A setting comes from `ebbtide.toml`, is overridden by `EBBTIDE_…` (two underscores go one level down:
//! `EBBTIDE_CHAINS__MAIN__URLS`), then by a flag.

mod chain;
mod cli;
mod file;
mod given;
mod names;
mod sources;
mod variables;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use chain::{ChainFile, CommonFile, SourceFile, SourceKind};
pub use cli::{
    AllArgs, Cli, Command, LogFormat, OpeningArgs, OperatorArgs, PauseArgs, ProcessArgs, RejectedCommand,
    RejectedListArgs, RejectedRetryArgs, ReplayArgs, ResumeArgs, ServeArgs, ShownArgs, SourceArgs, StatusArgs,
    VerifyArgs,
};
pub use file::{ApiFile, ClassFile, Effective, File, ProjectionFile, WakeWord};
pub use sources::{DevnetFile, EvmFile, GnoFile, ScriptFile, StarknetFile};

use self::given::Given;
use crate::process::{ProcessSettings, Projections};
use crate::projections::option_vaults::{self, OptionVaults};
use crate::projections::token_balances;
use crate::sources::SourceError;
use crate::sources::devnet::DevnetSettings;
use crate::sources::evm::EvmSettings;
use crate::sources::file::FileSettings;
use crate::sources::gno::GnoSettings;
use crate::sources::starknet::StarknetSettings;
use crate::store::{Address, StoreSettings, WakeMode};
use crate::sync::SyncSettings;

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path} cannot be read: {reason}")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The file, or a variable, says something that is no setting.
    #[error("{origin}: {reason}")]
    Malformed {
        /// The file or the variables.
        origin: String,
        /// What is wrong, and where.
        reason: String,
    },
    /// A value outside its bounds.
    #[error("{setting} is {value}: it must be {bounds}")]
    OutOfBounds {
        /// The setting.
        setting: String,
        /// Its value.
        value: String,
        /// What it must be.
        bounds: String,
    },
    /// Something that is needed is missing, or two things do not fit.
    #[error("{0}")]
    Unfit(String),
    /// A source refused its settings.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// All that is wrong.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Several(Vec<ConfigError>),
}

/// A chain to follow.
#[derive(Debug, Clone)]
pub struct ChainConfig {
    /// Where its blocks come from.
    pub source: SourceConfig,
    /// How they are taken.
    pub sync: SyncSettings,
}

/// Where blocks come from.
#[derive(Debug, Clone)]
pub enum SourceConfig {
    /// JSON-RPC of an EVM node.
    Evm(Box<EvmSettings>),
    /// GraphQL of a gno.land indexer.
    Gno(Box<GnoSettings>),
    /// JSON-RPC of a Starknet node.
    Starknet(Box<StarknetSettings>),
    /// A file of JSON lines.
    File(FileSettings),
    /// The built-in chain.
    Devnet(DevnetSettings),
}

/// Everything that was set.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The chains to follow, by name.
    pub chains: BTreeMap<String, ChainConfig>,
    /// How blocks are applied.
    pub process: ProcessSettings,
    /// What the option vaults are found by.
    pub vaults: option_vaults::Settings,
    /// How to wake.
    pub wake: WakeMode,
    /// Where the REST API listens.
    pub listen: SocketAddr,
    /// Where health, readiness and metrics are served.
    pub operator_listen: SocketAddr,
    /// Whether neither the file nor a flag names a source: a devnet on a private Postgres.
    pub first_look: bool,
    /// Whether an address of the operator port was named.
    pub operator_asked: bool,
    /// The database, if one was named.
    pub database_url: Option<String>,
    /// Where a private Postgres keeps its data.
    pub private_dir: PathBuf,
    /// Whether logs are JSON.
    pub log_json: bool,
    /// The settings file that was read.
    pub file: Option<PathBuf>,
    /// Variables that are named like settings and are none: a sentence each.
    pub unknown_variables: Vec<String>,
    effective: Effective,
}

/// Default address of the REST API.
pub const LISTEN: &str = "127.0.0.1:8080";
/// Default address of the operator port.
pub const OPERATOR_LISTEN: &str = "127.0.0.1:6060";

impl Settings {
    /// Settings from the file, the environment and the flags of a command.
    ///
    /// # Errors
    /// Every setting that is unknown, outside its bounds, or does not fit.
    pub fn load(cli: &Cli) -> Result<Settings, ConfigError> {
        Settings::of(cli, Given::read(cli.config.as_deref())?)
    }

    fn of(cli: &Cli, mut given: Given) -> Result<Settings, ConfigError> {
        let mut faults = Faults::default();
        if matches!(cli.command, Command::Config { check: true, .. }) {
            given.unknown_variables.drain(..).for_each(|what| faults.push(ConfigError::Unfit(what)));
        }
        given.take_unknown(&mut faults);
        let mut first_look = false;
        match &cli.command {
            Command::Run(all) | Command::Config { all, .. } => {
                first_look = all.source.lay_over(&mut given, &mut faults);
                all.process.lay_over(&mut given);
                all.serve.lay_over(&mut given);
            }
            Command::Sync { source, operator } => {
                first_look = source.lay_over(&mut given, &mut faults);
                operator.lay_over(&mut given);
            }
            Command::Process { process, operator } => {
                process.lay_over(&mut given);
                operator.lay_over(&mut given);
            }
            Command::Serve { shown, serve } => {
                shown.lay_over(&mut given);
                serve.lay_over(&mut given);
            }
            _ => {}
        }
        let once = match &cli.command {
            Command::Run(AllArgs { process, .. }) | Command::Process { process, .. } => process.once,
            _ => false,
        };
        Settings::read(cli, &given, Known { first_look, once }, faults)
    }

    fn read(cli: &Cli, given: &Given, known: Known, mut faults: Faults) -> Result<Settings, ConfigError> {
        let file: File = given.read_as(&[], given.table(), &mut faults).unwrap_or_default();
        let (mut chains, mut described) = (BTreeMap::new(), BTreeMap::new());
        for (name, table) in &file.chains {
            let Some(chain) = ChainFile::read(name, table, given, &mut faults) else { continue };
            if let Some(config) = chain.check(name, &mut faults) {
                chains.insert(name.clone(), config);
            }
            described.insert(name.clone(), chain);
        }
        let spelled = |name: &String| name.to_lowercase();
        for (one, other) in file.chains.keys().flat_map(|one| file.chains.keys().map(move |other| (one, other))) {
            if one < other && spelled(one) == spelled(other) {
                faults.push(ConfigError::Unfit(format!(
                    "chains {one} and {other} have one name in another case: call one of them otherwise, or remove it"
                )));
            }
        }
        let mut projections = BTreeMap::new();
        for (name, table) in &file.projections {
            let at = ["projections", name];
            let Some(read) = given.read_as::<ProjectionFile>(&at, table, &mut faults) else { continue };
            if let Some(foreign) = read.not_of(name) {
                let named = given.name(&[at[0], at[1], foreign]);
                faults.push(ConfigError::Unfit(format!("{named} is not a setting of this projection")));
            }
            projections.insert(name.clone(), read);
        }
        let vaults = projections.get(option_vaults::NAME).cloned().unwrap_or_default();
        let vaults = faults.keep(vaults.option_vaults()).unwrap_or_default();
        let ledger = projections.entry(token_balances::NAME.to_owned()).or_default();
        let token_balances = ledger.settings();
        *ledger = ProjectionFile {
            negative_balances: Some(token_balances.negative_balances),
            on_bad_event: Some(token_balances.on_bad_event),
            on_deep_change: Some(token_balances.on_deep_change),
            history: Some(token_balances.history),
            ..ProjectionFile::default()
        };
        let is_alone = file.chains.len() == 1;
        for chain in chains.values_mut() {
            chain.sync.halt_on_bad_event = token_balances.on_bad_event == token_balances::OnBadEvent::Halt;
            // What is to end by itself cannot wait for a person. Else one chain's node ends neither the API nor other chains.
            let is_to_end = known.once || chain.sync.ends && matches!(cli.command, Command::Sync { .. });
            chain.sync.fails_fast = is_alone || is_to_end;
        }
        let others = projections.iter().filter(|(name, _)| *name != token_balances::NAME);
        let on_deep_change = others.map(|(name, read)| (name.clone(), read.settings().on_deep_change)).collect();
        let mut within = |setting: &str, value, bounds| faults.keep(bounded(setting, value, bounds)).unwrap_or(value);
        let process = ProcessSettings {
            poll_interval: Duration::from_millis(within("poll_interval_ms", file.poll_interval_ms, 10..=86_400_000)),
            batch: file.batch.map_or(usize::MAX, |batch| within("batch", batch, 1..=1_000_000) as usize),
            workers: within("workers", file.workers, 1..=100) as usize,
            once: known.once,
            keep_evidence_days: file
                .keep_evidence_days
                .map(|days| within("keep_evidence_days", days, 1..=36_500) as u32),
            token_balances,
            on_deep_change,
            projections: Projections::default().with(OptionVaults::new(vaults.clone())),
        };
        let api: ApiFile = given.read_as(&["api"], &file.api, &mut faults).unwrap_or_default();
        let database_url = database_url(cli, given, &file);
        if let Some((origin, url)) = &database_url
            // A first look leaves a database of the environment alone; `config` speaks of every command.
            && (!known.first_look || cli.database_url.is_some() || matches!(cli.command, Command::Config { .. }))
            && let Err(error) = Address::parse(url)
        {
            faults.push(ConfigError::Malformed { origin: origin.clone(), reason: error.to_string() });
        }
        let database_url = database_url.map(|(_, url)| url);
        let mut address = |setting: &str, text: &str| {
            faults.keep(text.parse::<SocketAddr>().map_err(|_| ConfigError::OutOfBounds {
                setting: setting.to_owned(),
                value: text.to_owned(),
                bounds: "an address with a port, such as 127.0.0.1:8080".to_owned(),
            }))
        };
        let listen = address("listen", &api.listen);
        let operator_listen = address("operator_listen", &api.operator_listen);
        let wake = match file.wake {
            WakeWord::Poll => WakeMode::Poll,
            WakeWord::Listen => WakeMode::Listen,
        };
        let (Some(listen), Some(operator_listen), true) = (listen, operator_listen, faults.count() == 0) else {
            return Err(faults.into());
        };
        Ok(Settings {
            chains,
            process,
            vaults,
            wake,
            listen,
            operator_listen,
            first_look: known.first_look,
            operator_asked: given.at(&["api", "operator_listen"]).is_some(),
            private_dir: cli.data_dir.clone(),
            log_json: cli.log_format == cli::LogFormat::Json,
            file: given.file.clone(),
            unknown_variables: given.unknown_variables.clone(),
            effective: Effective {
                database_url: database_url.clone(),
                wake: file.wake,
                poll_interval_ms: file.poll_interval_ms,
                batch: file.batch,
                workers: file.workers,
                keep_evidence_days: file.keep_evidence_days,
                chains: described,
                projections,
                api,
            },
            database_url,
        })
    }

    /// The settings that count, defaults included, in the form of the file; of a URL with a password or a key, only the host.
    pub fn shown(&self) -> String {
        let mut table = toml::Table::try_from(&self.effective).unwrap_or_default();
        given::without_secrets(&mut table);
        toml::to_string(&table).unwrap_or_default()
    }

    /// How connections behave, under this name.
    pub fn store(&self, application_name: &str) -> StoreSettings {
        StoreSettings { application_name: application_name.to_owned(), ..StoreSettings::default() }
    }
}

/// The database that is named, and who names it.
fn database_url(cli: &Cli, given: &Given, file: &File) -> Option<(String, String)> {
    let flag = cli.database_url.clone().map(|url| ("--database-url".to_owned(), url));
    let variables = ["EBBTIDE_DATABASE_URL", "DATABASE_URL", "DB_URL"];
    let variable = || variables.iter().find_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)));
    let named = flag.or_else(variable).filter(|(_, url)| !url.trim().is_empty());
    named.or_else(|| Some((given.name(&["database_url"]), file.database_url.clone()?)))
}

fn bounded(setting: &str, value: u64, bounds: std::ops::RangeInclusive<u64>) -> Result<u64, ConfigError> {
    if bounds.contains(&value) {
        return Ok(value);
    }
    Err(ConfigError::OutOfBounds {
        setting: setting.to_owned(),
        value: value.to_string(),
        bounds: format!("{} to {}", bounds.start(), bounds.end()),
    })
}

/// What a command says that is no setting.
struct Known {
    first_look: bool,
    once: bool,
}

/// Faults found so far: all of them are named, not the first alone.
#[derive(Debug, Default)]
struct Faults(Vec<ConfigError>);

impl Faults {
    fn push(&mut self, fault: ConfigError) {
        self.0.push(fault);
    }

    fn keep<T>(&mut self, checked: Result<T, impl Into<ConfigError>>) -> Option<T> {
        checked.map_err(|fault| self.push(fault.into())).ok()
    }

    fn count(&self) -> usize {
        self.0.len()
    }
}

impl From<Faults> for ConfigError {
    fn from(faults: Faults) -> ConfigError {
        ConfigError::Several(faults.0)
    }
}

#[cfg(test)]
mod tests;
