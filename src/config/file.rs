//! `ebbtide.toml`, and the variables that override it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::ConfigError;
use crate::projections::option_vaults;
use crate::projections::token_balances::{self, History, NegativeBalances, OnBadEvent, OnDeepChange};
use crate::sources::evm::FactorySettings;

/// The file's whole content.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// The database; `DATABASE_URL` and the flag win over it.
    pub database_url: Option<String>,
    /// `listen` (default) or `poll`.
    pub wake: Option<WakeWord>,
    /// Longest sleep of the processor, in ms; 10 to 86,400,000. Defaults to 1,000.
    pub poll_interval_ms: Option<u64>,
    /// Most final blocks merged into one commit, 1 to 1,000,000. Defaults to as many as hold 10,000 events.
    pub batch: Option<u64>,
    /// Pairs of connections to work with, for balances and again for functions and code, 1 to 100. Defaults to 4.
    pub workers: Option<u64>,
    /// The chains to follow.
    #[serde(default)]
    pub chains: BTreeMap<String, ChainFile>,
    /// Settings of projections.
    #[serde(default)]
    pub projections: BTreeMap<String, ProjectionFile>,
    /// Addresses.
    pub api: Option<ApiFile>,
}

/// How a process wakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WakeWord {
    /// LISTEN, and polling as a safety net.
    Listen,
    /// Polling alone.
    Poll,
}

/// A source's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    /// An EVM node.
    Evm,
    /// A gno.land chain, by its tx-indexer.
    Gno,
    /// A Starknet node.
    Starknet,
    /// A file of JSON lines.
    File,
    /// The built-in chain.
    Devnet,
}

impl SourceKind {
    /// The word that names it.
    pub(super) fn word(self) -> &'static str {
        match self {
            SourceKind::Evm => "evm",
            SourceKind::Gno => "gno",
            SourceKind::Starknet => "starknet",
            SourceKind::File => "file",
            SourceKind::Devnet => "devnet",
        }
    }
}

/// `[chains.NAME]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChainFile {
    /// Where its blocks come from.
    pub source: Option<SourceKind>,
    /// Addresses of nodes (evm: JSON-RPC; gno: GraphQL), the first one first.
    #[serde(default)]
    pub urls: Vec<String>,
    /// WebSocket address for wake-ups.
    pub ws_url: Option<String>,
    /// A file of blocks; `-`: standard input.
    pub path: Option<PathBuf>,
    /// The grammar of a file's texts.
    pub kind: Option<String>,
    /// What a file's network calls itself, or a gno chain's must.
    pub network_id: Option<String>,
    /// First height that counts.
    pub start_height: Option<u64>,
    /// Blocks below the head taken as final, 0 to 10,000,000. Defaults to 64.
    pub finality_depth: Option<u64>,
    /// Token addresses or paths; None means every token.
    #[serde(default)]
    pub tokens: Vec<String>,
    /// Events to keep, by signature (gno: by type).
    #[serde(default)]
    pub events: Vec<String>,
    /// evm: contracts whose events name further contracts to follow.
    #[serde(default)]
    pub factories: Vec<FactorySettings>,
    /// Contracts that mint by Deposit and burn by Withdrawal.
    #[serde(default)]
    pub wrapped_native: Vec<String>,
    /// starknet: contracts all of whose events are kept, and those of the option rounds that they deploy.
    #[serde(default)]
    pub contracts: Vec<String>,
    /// starknet: contracts that the universal deployer makes of this class are followed too.
    pub vault_class_hash: Option<String>,
    /// starknet: only those of them that this account had deployed.
    pub deployer: Option<String>,
    /// starknet: universal deployers to believe. Defaults to those of the public networks.
    #[serde(default)]
    pub udc_address: Vec<String>,
    /// evm: whether logs are checked against the blooms of headers. Defaults to true.
    pub check_bloom: Option<bool>,
    /// evm and starknet, several URLs: ms after which the only node that answers is believed about a replaced block. Defaults to
    /// 15,000.
    pub confirm_grace_ms: Option<u64>,
    /// gno: most blocks in one question, 1 to 9,000. Defaults to 5,000.
    pub page_blocks: Option<u64>,
    /// gno: how many of the newest blocks are left for later, 0 to 1,000. Defaults to 1.
    pub confirm_blocks: Option<u64>,
    /// gno: ms after which a block that is missing, or lacks transactions, makes us unready. Defaults to 600,000.
    pub incomplete_after_ms: Option<u64>,
    /// gno: whether such a block is then stored as far as it is there.
    #[serde(default)]
    pub skip_incomplete: bool,
    /// gno: libraries that are believed about any realm's token. Defaults to both paths of the GRC20 library.
    pub trusted_grc20_packages: Option<Vec<String>>,
    /// gno: whether `func` decides what an event is; for tx-indexer before v0.7.0.
    #[serde(default)]
    pub require_func: bool,
    /// gno: largest answer that is read, in bytes, 65,536 to 1,073,741,824. Defaults to 67,108,864.
    pub body_limit_bytes: Option<u64>,
    /// evm, gno, starknet: ms for one request, its answer included. Defaults to 30,000.
    pub request_timeout_ms: Option<u64>,
    /// Whether final blocks may be replaced, and the start moved under stored blocks.
    #[serde(default)]
    pub allow_reset: bool,
    /// Longest sleep between two questions for the head, in ms. Defaults to 1,000 (gno: 2,000).
    pub poll_interval_ms: Option<u64>,
    /// Requests for history under way at once, 1 to 64. Defaults to 4.
    pub concurrency: Option<u64>,
    /// Most blocks asked for at once, 1 to 100,000. Defaults to 2,000; gno: `page_blocks`; starknet: 500, and 50 with
    /// every token.
    pub range_blocks: Option<u64>,
    /// devnet: another seed is another chain. Defaults to 1.
    pub seed: Option<u64>,
    /// devnet: ms between two blocks. Defaults to 1,000.
    pub block_interval_ms: Option<u64>,
    /// devnet: about one block in so many replaces others; 0: none.
    pub reorg_every: Option<u64>,
    /// devnet: most blocks replaced at once.
    pub max_reorg_depth: Option<u64>,
    /// devnet: blocks that are there at once.
    pub blocks_at_start: Option<u64>,
    /// devnet: movements in a block.
    pub events_per_block: Option<u64>,
    /// devnet: the chain ends here.
    pub last_height: Option<u64>,
}

/// `[api]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiFile {
    /// Address of the REST API. Defaults to 127.0.0.1:8080.
    pub listen: Option<String>,
    /// Address of health, readiness and metrics. Defaults to 127.0.0.1:6060.
    pub operator_listen: Option<String>,
}

/// `[projections.NAME]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProjectionFile {
    /// Defaults to zero.
    pub negative_balances: Option<NegativeBalances>,
    /// Defaults to quarantine.
    pub on_bad_event: Option<OnBadEvent>,
    /// Defaults to rebuild.
    pub on_deep_change: Option<OnDeepChange>,
    /// Defaults to full.
    pub history: Option<History>,
    /// option_vaults: deployers whose ContractDeployed is believed. None means vaults are registered by hand.
    #[serde(default)]
    pub deployers: Vec<String>,
    /// option_vaults: classes whose deployments are followed without being registered, by class hash.
    #[serde(default)]
    pub classes: BTreeMap<String, ClassFile>,
}

/// `[projections.option_vaults.classes."0x…"]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
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

/// Variables that are no settings of the file.
const OTHER_VARIABLES: [&str; 8] = [
    "EBBTIDE_CONFIG",
    "EBBTIDE_DATA",
    "EBBTIDE_DATA_DIR",
    "EBBTIDE_DATABASE_URL",
    "EBBTIDE_KEEP_DATABASES",
    "EBBTIDE_LOG",
    "EBBTIDE_LOG_FORMAT",
    "EBBTIDE_PG_BIN",
];

/// Settings that are lists: a variable holds them as a TOML array, or separated by commas (events: by semicolons).
/// Factories are tables, so only as an array.
const LISTS: [(&str, char); 8] = [
    ("urls", ','),
    ("tokens", ','),
    ("wrapped_native", ','),
    ("trusted_grc20_packages", ','),
    ("events", ';'),
    ("factories", ';'),
    ("contracts", ','),
    ("udc_address", ','),
];

impl File {
    /// The file named, or `ebbtide.toml` if there is one here, with the variables laid over it.
    pub(super) fn load(named: Option<&Path>) -> Result<File, ConfigError> {
        let path = named.unwrap_or(Path::new("ebbtide.toml"));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && named.is_none() => String::new(),
            Err(error) => {
                return Err(ConfigError::Unreadable { path: path.to_owned(), reason: error.to_string() });
            }
        };
        File::parse(&text, &path.display().to_string(), std::env::vars())
    }

    fn parse(text: &str, origin: &str, variables: impl Iterator<Item = (String, String)>) -> Result<File, ConfigError> {
        let malformed = |origin: &str, error: toml::de::Error| ConfigError::Malformed {
            origin: origin.to_owned(),
            reason: error.to_string().trim_end().to_owned(),
        };
        // Checked alone first, so that a mistake in the file is not blamed on a variable.
        toml::from_str::<File>(text).map_err(|error| malformed(origin, error))?;
        let mut table: toml::Table = toml::from_str(text).map_err(|error| malformed(origin, error))?;
        let mut laid_over = Vec::new();
        let mut variables: Vec<(String, String)> = variables
            .filter(|(name, value)| {
                name.starts_with("EBBTIDE_") && !OTHER_VARIABLES.contains(&name.as_str()) && !value.is_empty()
            })
            .collect();
        variables.sort();
        for (name, value) in variables {
            lay_over(&mut table, &name, &value);
            laid_over.push(name);
        }
        File::deserialize(toml::Value::Table(table)).map_err(|error| malformed(&laid_over.join(", "), error))
    }
}

/// Puts one variable where the path in its name says; names of the file are matched in any case.
fn lay_over(table: &mut toml::Table, name: &str, value: &str) {
    let path: Vec<String> = name["EBBTIDE_".len()..].split("__").map(str::to_lowercase).collect();
    let Some((last, parents)) = path.split_last() else { return };
    let mut at = table;
    for part in parents {
        let key = at.keys().find(|k| k.to_lowercase() == *part).cloned().unwrap_or_else(|| part.clone());
        let entry = at.entry(key).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        match entry {
            toml::Value::Table(inner) => at = inner,
            // A variable that goes deeper than the file's value: left to the check, which names it.
            other => {
                *other = toml::Value::Table(toml::Table::new());
                let toml::Value::Table(inner) = other else { return };
                at = inner;
            }
        }
    }
    at.insert(last.clone(), typed(last, value));
}

fn typed(key: &str, value: &str) -> toml::Value {
    let parsed = toml::from_str::<toml::Table>(&["x = ", value].concat()).ok().and_then(|mut t| t.remove("x"));
    if let Some((_, separator)) = LISTS.iter().find(|(list, _)| *list == key) {
        return match parsed {
            Some(list @ toml::Value::Array(_)) => list,
            _ => {
                toml::Value::Array(value.split(*separator).map(|p| toml::Value::String(p.trim().to_owned())).collect())
            }
        };
    }
    match parsed {
        Some(number @ (toml::Value::Integer(_) | toml::Value::Boolean(_))) if key != "network_id" => number,
        _ => toml::Value::String(value.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, variables: &[(&str, &str)]) -> Result<File, String> {
        let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        File::parse(text, "ebbtide.toml", variables).map_err(|e| e.to_string())
    }

    #[test]
    fn variables_win_over_the_file() {
        let file = parse(
            "[chains.Main]\nsource = \"evm\"\nurls = [\"http://a\"]\nfinality_depth = 3\n",
            &[("EBBTIDE_CHAINS__MAIN__URLS", "http://b, http://c"), ("EBBTIDE_CHAINS__MAIN__START_HEIGHT", "7")],
        )
        .expect("good settings");
        let chain = &file.chains["Main"];
        assert_eq!(chain.urls, ["http://b", "http://c"]);
        assert_eq!((chain.start_height, chain.finality_depth), (Some(7), Some(3)));
    }

    #[test]
    fn events_may_hold_commas() {
        let file = parse("", &[("EBBTIDE_CHAINS__A__EVENTS", "A(uint256 a, uint256 b); B()")]).expect("good settings");
        assert_eq!(file.chains["a"].events, ["A(uint256 a, uint256 b)", "B()"]);
    }

    #[test]
    fn factories_are_tables_with_one_address_or_many() {
        let one = "event = 'Made(address a)', parameter = 'a', tokens = true";
        let text = "[[chains.a.factories]]\naddress = '0x1'\nevent = 'E(address x)'\nparameter = 'x'\nevents = ['F()']\n\
                    [[chains.a.factories]]\naddress = ['0x1', '0x2']\n";
        let file = parse(text, &[]).expect("good settings");
        let [first, second] = file.chains["a"].factories.as_slice() else { panic!("two factories") };
        assert_eq!((first.address.as_slice(), first.tokens), (["0x1".to_owned()].as_slice(), false));
        assert_eq!(second.address, ["0x1", "0x2"]);
        let variable = ["[{", one, "}]"].concat();
        let file = parse(text, &[("EBBTIDE_CHAINS__A__FACTORIES", &variable)]).expect("good settings");
        assert!(file.chains["a"].factories.len() == 1 && file.chains["a"].factories[0].tokens);
        let error = parse("[[chains.a.factories]]\nadress = '0x1'\n", &[]).expect_err("a slip");
        assert!(error.contains("adress"), "{error}");
        let error = parse("[[chains.a.factories]]\naddress = 7\n", &[]).expect_err("a slip");
        assert!(error.contains("an address or a list of addresses"), "{error}");
    }

    #[test]
    fn what_is_no_setting_is_named() {
        let error = parse("[chains.a]\nsurce = \"evm\"\n", &[]).expect_err("a slip");
        assert!(error.contains("ebbtide.toml") && error.contains("surce"), "{error}");
        let error = parse("", &[("EBBTIDE_CHIANS__A__SOURCE", "evm")]).expect_err("a slip");
        assert!(error.contains("EBBTIDE_CHIANS__A__SOURCE") && error.contains("chians"), "{error}");
        let error = parse("[chains.a]\nfinality_depth = -3\n", &[]).expect_err("below 0");
        assert!(error.contains("finality_depth"), "{error}");
    }
}
