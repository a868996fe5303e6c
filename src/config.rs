//! Settings and command line: names, units, defaults, bounds; all checked before anything is connected.
//!
//! A setting comes from `ebbtide.toml`, is overridden by `EBBTIDE_…` (two underscores go one level down:
//! `EBBTIDE_CHAINS__MAIN__URLS`), then by a flag.

mod cli;
mod file;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use cli::{
    Cli, Command, LogFormat, OpeningArgs, PauseArgs, ProcessArgs, RejectedCommand, RejectedListArgs, RejectedRetryArgs,
    ReplayArgs, ResumeArgs, ServeArgs, SourceArgs, StatusArgs, VerifyArgs,
};
pub use file::{ApiFile, ChainFile, File, ProjectionFile, SourceKind};

use crate::chain::{Height, Kind};
use crate::process::{ProcessSettings, Projections};
use crate::projections::option_vaults::{self, OptionVaults};
use crate::projections::token_balances;
use crate::sources::SourceError;
use crate::sources::devnet::DevnetSettings;
use crate::sources::evm::EvmSettings;
use crate::sources::evm::decode::DecodeSettings;
use crate::sources::file::FileSettings;
use crate::sources::gno::{self, GnoSettings, GnoSource};
use crate::sources::starknet::StarknetSettings;
use crate::sources::starknet::decode::DecodeSettings as StarknetDecodeSettings;
use crate::store::{ChainSettings, StoreSettings, WakeMode};
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
}

/// Default address of the REST API.
pub const LISTEN: &str = "127.0.0.1:8080";
/// Default address of the operator port.
pub const OPERATOR_LISTEN: &str = "127.0.0.1:6060";

impl Settings {
    /// Settings from the file, the environment and the flags of a command.
    ///
    /// # Errors
    /// The first setting that is unknown, outside its bounds, or does not fit.
    pub fn load(cli: &Cli) -> Result<Settings, ConfigError> {
        let file = File::load(cli.config.as_deref())?;
        let (source, process, serve) = match &cli.command {
            Command::Run { source, process, serve, .. } => (Some(source), Some(process), Some(serve)),
            Command::Sync { source, serve } => (Some(source), None, Some(serve)),
            Command::Process { process, serve } => (None, Some(process), Some(serve)),
            Command::Serve { process, serve } => (None, Some(process), Some(serve)),
            _ => (None, None, None),
        };
        let mut chains = BTreeMap::new();
        let mut described = file.chains.clone();
        let first_look = described.is_empty() && source.is_some_and(|args| !args.names_a_source());
        if let Some(args) = source {
            args.add_to(&mut described)?;
        }
        for (name, chain) in described {
            chains.insert(name.clone(), chain.check(&name)?);
        }
        let ledger = file.projections.get(token_balances::NAME).cloned().unwrap_or_default();
        let mut on_deep_change = HashMap::new();
        for (name, of_theirs) in file.projections.iter().filter(|(name, _)| *name != token_balances::NAME) {
            let settings = of_theirs.settings();
            if let Some(foreign) = of_theirs.not_of(name) {
                return Err(ConfigError::Unfit(format!(
                    "[projections.{name}]: {foreign} is not a setting of this projection"
                )));
            }
            on_deep_change.insert(name.clone(), settings.on_deep_change);
        }
        if let Some(foreign) = ledger.not_of(token_balances::NAME) {
            return Err(ConfigError::Unfit(format!(
                "[projections.{}]: {foreign} is not a setting of this projection",
                token_balances::NAME
            )));
        }
        let vaults = file.projections.get(option_vaults::NAME).cloned().unwrap_or_default().option_vaults()?;
        let poll_interval = bounded("poll_interval_ms", file.poll_interval_ms.unwrap_or(1_000), 10..=86_400_000)?;
        let ledger = match process {
            Some(args) => args.over(ledger),
            None => ledger,
        };
        for chain in chains.values_mut() {
            chain.sync.halt_on_bad_event = ledger.on_bad_event == Some(token_balances::OnBadEvent::Halt);
        }
        let batch = process.and_then(|p| p.batch).or(file.batch).map(|batch| bounded("batch", batch, 1..=1_000_000));
        let workers = process.and_then(|p| p.workers).or(file.workers).unwrap_or(4);
        let process = ProcessSettings {
            poll_interval: Duration::from_millis(poll_interval),
            batch: batch.transpose()?.map_or(usize::MAX, |batch| batch as usize),
            workers: bounded("workers", workers, 1..=100)? as usize,
            once: process.is_some_and(|p| p.once),
            token_balances: ledger.settings(),
            on_deep_change,
            projections: Projections::default().with(OptionVaults::new(vaults.clone())),
        };
        let address = |flag: Option<&String>, of_file: Option<&String>, default: &str, name: &str| {
            let text = flag.or(of_file).map_or(default, String::as_str);
            text.parse::<SocketAddr>().map_err(|_| ConfigError::OutOfBounds {
                setting: name.to_owned(),
                value: text.to_owned(),
                bounds: "an address with a port, such as 127.0.0.1:8080".to_owned(),
            })
        };
        let api = file.api.clone().unwrap_or_default();
        Ok(Settings {
            chains,
            process,
            vaults,
            wake: match file.wake {
                Some(file::WakeWord::Poll) => WakeMode::Poll,
                _ => WakeMode::Listen,
            },
            listen: address(serve.and_then(|s| s.listen.as_ref()), api.listen.as_ref(), LISTEN, "listen")?,
            operator_listen: address(
                serve.and_then(|s| s.operator_listen.as_ref()),
                api.operator_listen.as_ref(),
                OPERATOR_LISTEN,
                "operator_listen",
            )?,
            first_look,
            operator_asked: serve.is_some_and(|s| s.operator_listen.is_some()) || api.operator_listen.is_some(),
            database_url: cli
                .database_url
                .clone()
                .or_else(|| {
                    ["EBBTIDE_DATABASE_URL", "DATABASE_URL", "DB_URL"].iter().find_map(|v| std::env::var(v).ok())
                })
                .filter(|url| !url.is_empty())
                .or(file.database_url),
            private_dir: cli.data_dir.clone(),
            log_json: cli.log_format == cli::LogFormat::Json,
        })
    }

    /// How connections behave, under this name.
    pub fn store(&self, application_name: &str) -> StoreSettings {
        StoreSettings { application_name: application_name.to_owned(), ..StoreSettings::default() }
    }
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

impl ChainFile {
    /// The first setting given that chains of this source do not have, and the sources whose chains do.
    fn foreign(&self, source: SourceKind) -> Option<(&'static str, &'static [SourceKind])> {
        use SourceKind::{Devnet, Evm, File, Gno, Starknet};
        let settings: [(&str, bool, &'static [SourceKind]); 30] = [
            ("urls", !self.urls.is_empty(), &[Evm, Gno, Starknet]),
            ("ws_url", self.ws_url.is_some(), &[Evm, Gno, Starknet]),
            ("request_timeout_ms", self.request_timeout_ms.is_some(), &[Evm, Gno, Starknet]),
            ("confirm_grace_ms", self.confirm_grace_ms.is_some(), &[Evm, Starknet]),
            ("path", self.path.is_some(), &[File]),
            ("kind", self.kind.is_some(), &[File]),
            ("network_id", self.network_id.is_some(), &[Gno, File]),
            ("tokens", !self.tokens.is_empty(), &[Evm, Gno, Starknet, File]),
            ("events", !self.events.is_empty(), &[Evm, Gno, File]),
            ("wrapped_native", !self.wrapped_native.is_empty(), &[Evm, File]),
            ("factories", !self.factories.is_empty(), &[Evm]),
            ("check_bloom", self.check_bloom.is_some(), &[Evm]),
            ("contracts", !self.contracts.is_empty(), &[Starknet]),
            ("vault_class_hash", self.vault_class_hash.is_some(), &[Starknet]),
            ("deployer", self.deployer.is_some(), &[Starknet]),
            ("udc_address", !self.udc_address.is_empty(), &[Starknet]),
            ("page_blocks", self.page_blocks.is_some(), &[Gno]),
            ("confirm_blocks", self.confirm_blocks.is_some(), &[Gno]),
            ("incomplete_after_ms", self.incomplete_after_ms.is_some(), &[Gno]),
            ("skip_incomplete", self.skip_incomplete, &[Gno]),
            ("trusted_grc20_packages", self.trusted_grc20_packages.is_some(), &[Gno]),
            ("require_func", self.require_func, &[Gno]),
            ("body_limit_bytes", self.body_limit_bytes.is_some(), &[Gno]),
            ("seed", self.seed.is_some(), &[Devnet]),
            ("block_interval_ms", self.block_interval_ms.is_some(), &[Devnet]),
            ("reorg_every", self.reorg_every.is_some(), &[Devnet]),
            ("max_reorg_depth", self.max_reorg_depth.is_some(), &[Devnet]),
            ("blocks_at_start", self.blocks_at_start.is_some(), &[Devnet]),
            ("events_per_block", self.events_per_block.is_some(), &[Devnet]),
            ("last_height", self.last_height.is_some(), &[Devnet]),
        ];
        let foreign = settings.into_iter().find(|(_, given, sources)| *given && !sources.contains(&source));
        foreign.map(|(setting, _, sources)| (setting, sources))
    }

    fn check(self, name: &str) -> Result<ChainConfig, ConfigError> {
        let at = |setting: &str| format!("[chains.{name}] {setting}");
        if name.is_empty()
            || name.len() > 64
            || !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
        {
            return Err(ConfigError::OutOfBounds {
                setting: "the chain's name".to_owned(),
                value: name.to_owned(),
                bounds: "1 to 64 letters, digits, dots, dashes and underscores".to_owned(),
            });
        }
        let unfit = |what: &str| ConfigError::Unfit(format!("[chains.{name}]: {what}"));
        let Some(source) = self.source else {
            return Err(unfit("source is missing: evm, gno, starknet, file or devnet"));
        };
        let start_height = self
            .start_height
            .map(|h| bounded(&at("start_height"), h, 0..=i64::MAX as u64))
            .transpose()?
            .and_then(Height::new);
        let finality_depth =
            self.finality_depth.map(|d| bounded(&at("finality_depth"), d, 0..=10_000_000)).transpose()?;
        let milliseconds = |value: Option<u64>, setting: &str, default: u64| {
            bounded(&at(setting), value.unwrap_or(default), 1..=86_400_000).map(Duration::from_millis)
        };
        // A gno block takes seconds, and its indexer looks for one every second.
        let poll_default = if source == SourceKind::Gno { 2_000 } else { 1_000 };
        let poll_interval = milliseconds(self.poll_interval_ms, "poll_interval_ms", poll_default)?;
        let concurrency = bounded(&at("concurrency"), self.concurrency.unwrap_or(4), 1..=64)? as usize;
        let page_blocks = self.page_blocks.unwrap_or(gno::DEFAULT_PAGE_BLOCKS);
        let page_blocks = bounded(&at("page_blocks"), page_blocks, gno::PAGE_BLOCKS)?;
        let range_default = match source {
            SourceKind::Gno => page_blocks,
            // Whole blocks with their receipts weigh megabytes.
            SourceKind::Starknet if self.tokens.is_empty() => 50,
            SourceKind::Starknet => 500,
            _ => 2_000,
        };
        let range_blocks = bounded(&at("range_blocks"), self.range_blocks.unwrap_or(range_default), 1..=100_000)?;
        if let Some((setting, sources)) = self.foreign(source) {
            let words: Vec<String> = sources.iter().map(|source| format!("\"{}\"", source.word())).collect();
            return Err(unfit(&format!("{setting} is for source = {}", words.join(" or "))));
        }
        if matches!(source, SourceKind::Evm | SourceKind::Gno | SourceKind::Starknet) && self.urls.is_empty() {
            let form = if source == SourceKind::Gno { ", as https://…/graphql/query" } else { "" };
            return Err(unfit(&format!("source = \"{}\" needs a URL (--url, or urls){form}", source.word())));
        }
        let (source, kind) = match source {
            SourceKind::Evm => {
                let settings = EvmSettings {
                    urls: self.urls,
                    ws_url: self.ws_url,
                    tokens: self.tokens,
                    events: self.events,
                    factories: self.factories,
                    wrapped_native: self.wrapped_native,
                    check_bloom: self.check_bloom.unwrap_or(true),
                    confirm_grace: milliseconds(self.confirm_grace_ms, "confirm_grace_ms", 15_000)?,
                    request_timeout: milliseconds(self.request_timeout_ms, "request_timeout_ms", 30_000)?,
                    concurrency: concurrency * 2,
                    ..EvmSettings::default()
                };
                (SourceConfig::Evm(Box::new(settings)), Kind::Evm)
            }
            SourceKind::Gno => {
                let default = gno::decode::DecodeSettings::default();
                let body_limit = self.body_limit_bytes.unwrap_or(64 << 20);
                let settings = GnoSettings {
                    urls: self.urls,
                    ws_url: self.ws_url,
                    network_id: self.network_id,
                    decode: gno::decode::DecodeSettings {
                        trusted_grc20_packages: self.trusted_grc20_packages.unwrap_or(default.trusted_grc20_packages),
                        tokens: self.tokens,
                        events: self.events,
                        require_func: self.require_func,
                    },
                    page_blocks,
                    confirm_blocks: bounded(&at("confirm_blocks"), self.confirm_blocks.unwrap_or(1), 0..=1_000)?,
                    incomplete_after: milliseconds(self.incomplete_after_ms, "incomplete_after_ms", 600_000)?,
                    skip_incomplete: self.skip_incomplete,
                    request_timeout: milliseconds(self.request_timeout_ms, "request_timeout_ms", 30_000)?,
                    body_limit: bounded(&at("body_limit_bytes"), body_limit, 64 << 10..=1 << 30)? as usize,
                };
                // It asks nobody yet: what it refuses should be known before anything is connected.
                GnoSource::new(settings.clone())?;
                (SourceConfig::Gno(Box::new(settings)), Kind::Gno)
            }
            SourceKind::Starknet => {
                let settings = StarknetSettings {
                    urls: self.urls,
                    ws_url: self.ws_url,
                    decode: StarknetDecodeSettings {
                        tokens: self.tokens,
                        contracts: self.contracts,
                        vault_class_hash: self.vault_class_hash,
                        deployer: self.deployer,
                        udc_addresses: self.udc_address,
                    },
                    confirm_grace: milliseconds(self.confirm_grace_ms, "confirm_grace_ms", 15_000)?,
                    request_timeout: milliseconds(self.request_timeout_ms, "request_timeout_ms", 30_000)?,
                    concurrency: concurrency * 2,
                    ..StarknetSettings::default()
                };
                (SourceConfig::Starknet(Box::new(settings)), Kind::Starknet)
            }
            SourceKind::File => {
                let Some(path) = self.path else {
                    return Err(unfit("source = \"file\" needs a path (--file)"));
                };
                let kind = self.kind.as_deref().map(|word| {
                    Kind::parse(word).ok_or_else(|| ConfigError::OutOfBounds {
                        setting: at("kind"),
                        value: word.to_owned(),
                        bounds: "evm, gno, starknet or other".to_owned(),
                    })
                });
                let kind = kind.transpose()?;
                let decode =
                    DecodeSettings { tokens: self.tokens, events: self.events, wrapped_native: self.wrapped_native };
                let settings = FileSettings { path, kind, network_id: self.network_id, decode };
                (SourceConfig::File(settings), kind.unwrap_or(Kind::Other))
            }
            SourceKind::Devnet => {
                let default = DevnetSettings::default();
                let settings = DevnetSettings {
                    seed: self.seed.unwrap_or(default.seed),
                    block_interval: match self.block_interval_ms {
                        Some(ms) => Duration::from_millis(bounded(&at("block_interval_ms"), ms, 1..=3_600_000)?),
                        None => default.block_interval,
                    },
                    reorg_every: self.reorg_every.unwrap_or(default.reorg_every),
                    last_height: self.last_height,
                    blocks_at_start: self.blocks_at_start.unwrap_or(default.blocks_at_start),
                    events_per_block: self.events_per_block.unwrap_or(default.events_per_block),
                    max_reorg_depth: self.max_reorg_depth.unwrap_or(default.max_reorg_depth),
                    ..default
                };
                (SourceConfig::Devnet(settings), Kind::Evm)
            }
        };
        let announcers = match &source {
            SourceConfig::Gno(settings) => Some(settings.decode.trusted_grc20_packages.clone()),
            _ => None,
        };
        let sync = SyncSettings {
            chain: ChainSettings { name: name.to_owned(), kind, start_height, finality_depth, announcers },
            poll_interval,
            concurrency,
            range_blocks,
            allow_reset: self.allow_reset,
            halt_on_bad_event: false,
            ends: matches!(source, SourceConfig::File(_)),
            progress: true,
        };
        Ok(ChainConfig { source, sync })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_of_another_source_is_refused() {
        let foreign = [
            ("evm", "path = 'blocks.ndjson'"),
            ("evm", "network_id = 'main'"),
            ("evm", "seed = 1"),
            ("gno", "wrapped_native = ['0x1']"),
            ("gno", "confirm_grace_ms = 1"),
            ("starknet", "events = ['A()']"),
            ("starknet", "check_bloom = false"),
            ("file", "urls = ['http://127.0.0.1']"),
            ("file", "require_func = true"),
            ("devnet", "tokens = ['0x1']"),
            ("devnet", "udc_address = ['0x1']"),
        ];
        for (source, line) in foreign {
            let chain: ChainFile = toml::from_str(&format!("source = '{source}'\n{line}")).expect("known settings");
            let error = chain.check("main").expect_err(line).to_string();
            let (setting, _) = line.split_once(' ').expect("a setting");
            assert!(error.starts_with(&format!("[chains.main]: {setting} is for source = ")), "{error}");
            assert!(!error.contains(&format!("\"{source}\"")), "{error}");
        }
    }
}
