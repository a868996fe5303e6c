//! `ebbtide.toml`: what stands in it beside its chains.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use toml::Table;

use super::chain::ChainFile;
use super::{ConfigError, LISTEN, OPERATOR_LISTEN};
use crate::projections::option_vaults::{self, Notifications};
use crate::projections::token_balances::{self, History, NegativeBalances, OnBadEvent, OnDeepChange};

/// The file's outermost level; its tables are read one by one, so that each fault is named.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct File {
    /// The database; `DATABASE_URL` and the flag win over it.
    pub database_url: Option<String>,
    /// `listen` (default) or `poll`.
    pub wake: WakeWord,
    /// Longest sleep of the processor, in ms; 10 to 86,400,000. Defaults to 1,000.
    pub poll_interval_ms: u64,
    /// Most final blocks merged into one commit, 1 to 1,000,000. Defaults to as many as hold 10,000 events.
    pub batch: Option<u64>,
    /// Pairs of connections to work with, for balances and again for functions and code, 1 to 100. Defaults to 4.
    pub workers: u64,
    /// Days after which replaced blocks and reorganisations are dropped, 1 to 36,500. Defaults to keeping them for ever.
    pub keep_evidence_days: Option<u64>,
    /// The chains to follow: [`ChainFile`].
    pub chains: BTreeMap<String, Table>,
    /// Settings of projections: [`ProjectionFile`].
    pub projections: BTreeMap<String, Table>,
    /// Addresses: [`ApiFile`].
    pub api: Table,
}

impl Default for File {
    fn default() -> File {
        File {
            database_url: None,
            wake: WakeWord::Listen,
            poll_interval_ms: 1_000,
            batch: None,
            workers: 4,
            keep_evidence_days: None,
            chains: BTreeMap::new(),
            projections: BTreeMap::new(),
            api: Table::new(),
        }
    }
}

/// All settings as they count, defaults included, in the form of the file.
#[derive(Debug, Clone, Serialize)]
pub struct Effective {
    pub(super) database_url: Option<String>,
    pub(super) wake: WakeWord,
    pub(super) poll_interval_ms: u64,
    pub(super) batch: Option<u64>,
    pub(super) workers: u64,
    pub(super) keep_evidence_days: Option<u64>,
    pub(super) chains: BTreeMap<String, ChainFile>,
    pub(super) projections: BTreeMap<String, ProjectionFile>,
    pub(super) api: ApiFile,
}

/// How a process wakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WakeWord {
    /// LISTEN, and polling as a safety net.
    Listen,
    /// Polling alone.
    Poll,
}

/// `[api]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct ApiFile {
    /// Address of the REST API. Defaults to 127.0.0.1:8080.
    pub listen: String,
    /// Address of health, readiness and metrics. Defaults to 127.0.0.1:6060.
    pub operator_listen: String,
}

impl Default for ApiFile {
    fn default() -> ApiFile {
        ApiFile { listen: LISTEN.to_owned(), operator_listen: OPERATOR_LISTEN.to_owned() }
    }
}

/// `[projections.NAME]`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ProjectionFile {
    /// Defaults to zero.
    pub negative_balances: Option<NegativeBalances>,
    /// Defaults to quarantine.
    pub on_bad_event: Option<OnBadEvent>,
    /// Defaults to rebuild.
    pub on_deep_change: Option<OnDeepChange>,
    /// Defaults to full.
    pub history: Option<History>,
    /// option_vaults: `rows` (default) or `keys`.
    pub notifications: Option<Notifications>,
    /// option_vaults: deployers whose ContractDeployed is believed. None means vaults are registered by hand.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deployers: Vec<String>,
    /// option_vaults: classes whose deployments are followed without being registered, by class hash.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub classes: BTreeMap<String, ClassFile>,
}

/// `[projections.option_vaults.classes."0x…"]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClassFile {
    /// Which contract speaks: `a`, each round for itself; `b`, the vault for all.
    pub layout: String,
    /// Whose deployments count; None means anybody's.
    pub deployer: Option<String>,
}

impl ProjectionFile {
    /// The first setting given that the projection of this name does not have.
    pub(super) fn not_of(&self, name: &str) -> Option<&'static str> {
        let (ledger, vaults) = (name == token_balances::NAME, name == option_vaults::NAME);
        [
            ("negative_balances", self.negative_balances.is_some() && !ledger),
            ("history", self.history.is_some() && !ledger),
            ("on_bad_event", self.on_bad_event.is_some() && !(ledger || vaults)),
            ("notifications", self.notifications.is_some() && !vaults),
            ("deployers", !self.deployers.is_empty() && !vaults),
            ("classes", !self.classes.is_empty() && !vaults),
        ]
        .into_iter()
        .find_map(|(setting, foreign)| foreign.then_some(setting))
    }

    /// The option vaults' settings.
    ///
    /// # Errors
    /// The setting that is no felt or no layout.
    pub(super) fn option_vaults(&self) -> Result<option_vaults::Settings, ConfigError> {
        let felt = |setting: &str, given: &str| {
            option_vaults::felts::canonical(&given.into()).map_err(|fault| ConfigError::OutOfBounds {
                setting: format!("projections.option_vaults.{setting}"),
                value: given.to_owned(),
                bounds: format!("a felt as 0x hex ({fault})"),
            })
        };
        let mut classes = BTreeMap::new();
        for (hash, class) in &self.classes {
            let layout = option_vaults::Layout::parse(&class.layout).ok_or_else(|| ConfigError::OutOfBounds {
                setting: format!("projections.option_vaults.classes.{hash}.layout"),
                value: class.layout.clone(),
                bounds: "a (each round speaks for itself) or b (the vault speaks for all)".to_owned(),
            })?;
            let deployer = class.deployer.as_deref().map(|d| felt("classes.deployer", d)).transpose()?;
            classes.insert(felt("classes", hash)?, option_vaults::Class { layout, deployer });
        }
        // A class is told by the deployer's event alone.
        if self.deployers.is_empty() && !classes.is_empty() {
            return Err(ConfigError::Unfit(
                "[projections.option_vaults]: classes are found through deployers, which are missing".to_owned(),
            ));
        }
        Ok(option_vaults::Settings {
            deployers: self.deployers.iter().map(|d| felt("deployers", d)).collect::<Result<_, _>>()?,
            classes,
            on_bad_event: self.settings().on_bad_event,
            notifications: self.notifications.unwrap_or_default(),
        })
    }

    pub(super) fn settings(&self) -> token_balances::Settings {
        token_balances::Settings {
            negative_balances: self.negative_balances.unwrap_or_default(),
            on_bad_event: self.on_bad_event.unwrap_or_default(),
            on_deep_change: self.on_deep_change.unwrap_or_default(),
            history: self.history.unwrap_or_default(),
        }
    }
}
