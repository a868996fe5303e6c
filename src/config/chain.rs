//! `[chains.NAME]`: what every chain has, and which source it has beside that.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::given::Given;
use super::names::fields_of;
use super::sources::{A_DAY_MS, DevnetFile, EvmFile, GnoFile, ScriptFile, StarknetFile};
use super::{ChainConfig, ConfigError, Faults, SourceConfig, bounded};
use crate::chain::{Height, Kind};
use crate::sources::evm::EvmSource;
use crate::sources::file::FileSource;
use crate::sources::gno::GnoSource;
use crate::sources::starknet::StarknetSource;
use crate::store::ChainSettings;
use crate::sync::SyncSettings;

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
    const ALL: [SourceKind; 5] =
        [SourceKind::Evm, SourceKind::Gno, SourceKind::Starknet, SourceKind::File, SourceKind::Devnet];

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

    fn settings(self) -> &'static [&'static str] {
        match self {
            SourceKind::Evm => fields_of::<EvmFile>(),
            SourceKind::Gno => fields_of::<GnoFile>(),
            SourceKind::Starknet => fields_of::<StarknetFile>(),
            SourceKind::File => fields_of::<ScriptFile>(),
            SourceKind::Devnet => fields_of::<DevnetFile>(),
        }
    }
}

/// `[chains.NAME]`.
#[derive(Debug, Clone, Serialize)]
pub struct ChainFile {
    /// What every chain has.
    #[serde(flatten)]
    pub common: CommonFile,
    /// Where its blocks come from.
    #[serde(flatten)]
    pub source: SourceFile,
}

/// The settings of a chain's source.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "source", rename_all = "lowercase")]
pub enum SourceFile {
    /// An EVM node.
    Evm(EvmFile),
    /// A gno.land chain.
    Gno(GnoFile),
    /// A Starknet node.
    Starknet(StarknetFile),
    /// A file of JSON lines.
    File(ScriptFile),
    /// The built-in chain.
    Devnet(DevnetFile),
}

/// What every chain has.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct CommonFile {
    /// First height that counts.
    pub start_height: Option<u64>,
    /// Blocks below the head taken as final, 0 to 10,000,000. Defaults to 64.
    pub finality_depth: Option<u64>,
    /// Whether final blocks may be replaced, and the start moved under stored blocks.
    pub allow_reset: bool,
    /// Longest sleep between two questions for the head, in ms. Defaults to 1,000 (gno: 2,000, since its blocks take seconds).
    pub poll_interval_ms: Option<u64>,
    /// Requests for history under way at once, 1 to 64. Defaults to 4.
    pub concurrency: u64,
    /// Most blocks asked for at once, 1 to 100,000. Defaults to 2,000; gno: `page_blocks`; starknet: 500, and 50 with
    /// every token.
    pub range_blocks: Option<u64>,
}

impl Default for CommonFile {
    fn default() -> CommonFile {
        CommonFile {
            start_height: None,
            finality_depth: None,
            allow_reset: false,
            poll_interval_ms: None,
            concurrency: 4,
            range_blocks: None,
        }
    }
}

/// Every name that may stand in a chain's table.
pub(super) fn settings() -> Vec<&'static str> {
    let mut names = vec!["source"];
    names.extend(fields_of::<CommonFile>());
    names.extend(SourceKind::ALL.iter().flat_map(|kind| kind.settings()));
    names.sort_unstable();
    names.dedup();
    names
}

impl ChainFile {
    /// Reads a chain's table, which holds nothing but settings of chains.
    pub(super) fn read(name: &str, table: &Table, given: &Given, faults: &mut Faults) -> Option<ChainFile> {
        let at = ["chains", name];
        let named = |setting: &str| given.name(&[at[0], at[1], setting]);
        let word = table.get("source").and_then(Value::as_str);
        let Some(kind) = SourceKind::ALL.into_iter().find(|kind| Some(kind.word()) == word) else {
            let words = "evm, gno, starknet, file or devnet";
            faults.push(ConfigError::Unfit(match table.get("source") {
                Some(_) => format!("{} must be {words}", named("source")),
                None => format!("[chains.{name}]: source is missing: {words}"),
            }));
            return None;
        };
        let (mut common, mut own) = (Table::new(), Table::new());
        for (key, value) in table.iter().filter(|(key, _)| *key != "source") {
            if kind.settings().contains(&key.as_str()) {
                own.insert(key.clone(), value.clone());
            } else if fields_of::<CommonFile>().contains(&key.as_str()) {
                common.insert(key.clone(), value.clone());
            } else {
                let theirs = SourceKind::ALL.iter().filter(|other| other.settings().contains(&key.as_str()));
                let words: Vec<String> = theirs.map(|other| format!("\"{}\"", other.word())).collect();
                let said = match given.origin(&[at[0], at[1], key]) {
                    Some(origin) => format!("{origin}: {key}"),
                    None => named(key),
                };
                faults.push(ConfigError::Unfit(format!(
                    "{said} is for source = {}, and chain {name} has source = \"{}\"",
                    words.join(" or "),
                    kind.word()
                )));
            }
        }
        let source = match kind {
            SourceKind::Evm => SourceFile::Evm(given.read_as(&at, &own, faults)?),
            SourceKind::Gno => SourceFile::Gno(given.read_as(&at, &own, faults)?),
            SourceKind::Starknet => SourceFile::Starknet(given.read_as(&at, &own, faults)?),
            SourceKind::File => SourceFile::File(given.read_as(&at, &own, faults)?),
            SourceKind::Devnet => SourceFile::Devnet(given.read_as(&at, &own, faults)?),
        };
        let mut common: CommonFile = given.read_as(&at, &common, faults)?;
        let (poll_interval_ms, range_blocks) = match &source {
            SourceFile::Gno(gno) => (2_000, gno.page_blocks),
            // Whole blocks with their receipts weigh megabytes.
            SourceFile::Starknet(starknet) if starknet.tokens.is_empty() => (1_000, 50),
            SourceFile::Starknet(_) => (1_000, 500),
            _ => (1_000, 2_000),
        };
        common.poll_interval_ms.get_or_insert(poll_interval_ms);
        common.range_blocks.get_or_insert(range_blocks);
        Some(ChainFile { common, source })
    }

    /// Checks the bounds of every setting, and that the source takes them.
    pub(super) fn check(&self, name: &str, faults: &mut Faults) -> Option<ChainConfig> {
        let before = faults.count();
        if name.is_empty()
            || name.len() > 64
            || !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
        {
            faults.push(ConfigError::OutOfBounds {
                setting: "the chain's name".to_owned(),
                value: name.to_owned(),
                bounds: "1 to 64 letters, digits, dots, dashes and underscores".to_owned(),
            });
        }
        let mut within = |setting: &str, value: u64, bounds| {
            faults.keep(bounded(&format!("[chains.{name}] {setting}"), value, bounds)).unwrap_or(value)
        };
        let common = &self.common;
        let start_height = common.start_height.map(|h| within("start_height", h, 0..=i64::MAX as u64));
        let finality_depth = common.finality_depth.map(|d| within("finality_depth", d, 0..=10_000_000));
        let poll_interval = within("poll_interval_ms", common.poll_interval_ms.unwrap_or_default(), A_DAY_MS);
        let concurrency = within("concurrency", common.concurrency, 1..=64) as usize;
        let range_blocks = within("range_blocks", common.range_blocks.unwrap_or_default(), 1..=100_000);
        let (source, kind) = match &self.source {
            SourceFile::Evm(evm) => (SourceConfig::Evm(Box::new(evm.check(concurrency, within))), Kind::Evm),
            SourceFile::Gno(gno) => (SourceConfig::Gno(Box::new(gno.check(within))), Kind::Gno),
            SourceFile::Starknet(starknet) => {
                (SourceConfig::Starknet(Box::new(starknet.check(concurrency, within))), Kind::Starknet)
            }
            SourceFile::Devnet(devnet) => (SourceConfig::Devnet(devnet.check(within)), Kind::Evm),
            SourceFile::File(script) => {
                let settings = faults.keep(script.check(name))?;
                let kind = settings.kind.unwrap_or(Kind::Other);
                (SourceConfig::File(settings), kind)
            }
        };
        if faults.count() > before {
            return None;
        }
        faults.keep(is_taken(name, &source))?;
        let announcers = match &source {
            SourceConfig::Gno(settings) => Some(settings.decode.trusted_grc20_packages.clone()),
            _ => None,
        };
        let start_height = start_height.and_then(Height::new);
        let sync = SyncSettings {
            chain: ChainSettings { name: name.to_owned(), kind, start_height, finality_depth, announcers },
            poll_interval: Duration::from_millis(poll_interval),
            concurrency,
            range_blocks,
            allow_reset: common.allow_reset,
            halt_on_bad_event: false,
            ends: matches!(source, SourceConfig::File(_)),
            fails_fast: true,
            progress: true,
        };
        Some(ChainConfig { source, sync })
    }
}

/// Whether the source takes its settings. It asks nobody yet: what it refuses should be known before anything is connected.
fn is_taken(name: &str, source: &SourceConfig) -> Result<(), ConfigError> {
    let (urls, form) = match source {
        SourceConfig::Evm(settings) => (Some(&settings.urls), ("evm", "")),
        SourceConfig::Gno(settings) => (Some(&settings.urls), ("gno", ", as https://…/graphql/query")),
        SourceConfig::Starknet(settings) => (Some(&settings.urls), ("starknet", "")),
        SourceConfig::File(_) | SourceConfig::Devnet(_) => (None, ("", "")),
    };
    if urls.is_some_and(Vec::is_empty) {
        let (word, form) = form;
        let what = format!("[chains.{name}]: source = \"{word}\" needs a URL (--url, or urls){form}");
        return Err(ConfigError::Unfit(what));
    }
    match source {
        SourceConfig::Evm(settings) => drop(EvmSource::new((**settings).clone())?),
        SourceConfig::Gno(settings) => drop(GnoSource::new((**settings).clone())?),
        SourceConfig::Starknet(settings) => drop(StarknetSource::new((**settings).clone())?),
        SourceConfig::File(settings) => drop(FileSource::new(settings.clone())?),
        SourceConfig::Devnet(_) => {}
    }
    Ok(())
}
