//! The settings of each source, one struct per source, and what the source takes for them.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::chain::Kind;
use crate::sources::devnet::DevnetSettings;
use crate::sources::evm::decode::DecodeSettings;
use crate::sources::evm::{EvmSettings, FactorySettings};
use crate::sources::file::FileSettings;
use crate::sources::gno::decode::DecodeSettings as GnoDecodeSettings;
use crate::sources::gno::{self, GnoSettings};
use crate::sources::starknet::StarknetSettings;
use crate::sources::starknet::decode::DecodeSettings as StarknetDecodeSettings;

/// Bounds of pauses and timeouts, in ms: a day at most.
pub(super) const A_DAY_MS: RangeInclusive<u64> = 1..=86_400_000;

/// `source = "evm"`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct EvmFile {
    /// Addresses of nodes (JSON-RPC), the first one first.
    pub urls: Vec<String>,
    /// WebSocket address for wake-ups.
    pub ws_url: Option<String>,
    /// Token addresses; none means every token.
    pub tokens: Vec<String>,
    /// Events to keep, by signature.
    pub events: Vec<String>,
    /// Contracts that mint by Deposit and burn by Withdrawal.
    pub wrapped_native: Vec<String>,
    /// Contracts whose events name further contracts to follow.
    pub factories: Vec<FactorySettings>,
    /// Whether logs are checked against the blooms of headers. Defaults to true.
    pub check_bloom: bool,
    /// With several URLs: ms after which the only node that answers is believed about a replaced block. Defaults to 15,000.
    pub confirm_grace_ms: u64,
    /// Ms for one request, its answer included. Defaults to 30,000.
    pub request_timeout_ms: u64,
}

impl Default for EvmFile {
    fn default() -> EvmFile {
        EvmFile {
            urls: Vec::new(),
            ws_url: None,
            tokens: Vec::new(),
            events: Vec::new(),
            wrapped_native: Vec::new(),
            factories: Vec::new(),
            check_bloom: true,
            confirm_grace_ms: 15_000,
            request_timeout_ms: 30_000,
        }
    }
}

/// `source = "gno"`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct GnoFile {
    /// Addresses of tx-indexers (GraphQL), the first one first.
    pub urls: Vec<String>,
    /// WebSocket address for wake-ups; none means the URL's own.
    pub ws_url: Option<String>,
    /// What the network must call itself.
    pub network_id: Option<String>,
    /// Token paths; none means every token.
    pub tokens: Vec<String>,
    /// Events to keep, by type.
    pub events: Vec<String>,
    /// Libraries that are believed about any realm's token. Defaults to both paths of the GRC20 library.
    pub trusted_grc20_packages: Vec<String>,
    /// Whether `func` decides what an event is; for tx-indexer before v0.7.0.
    pub require_func: bool,
    /// Most blocks in one question, 1 to 9,000. Defaults to 5,000.
    pub page_blocks: u64,
    /// How many of the newest blocks are left for later, 0 to 1,000. Defaults to 1.
    pub confirm_blocks: u64,
    /// Ms after which a block that is missing, or lacks transactions, makes us unready. Defaults to 600,000.
    pub incomplete_after_ms: u64,
    /// Whether such a block is then stored as far as it is there.
    pub skip_incomplete: bool,
    /// Largest answer that is read, in bytes, 65,536 to 1,073,741,824. Defaults to 67,108,864.
    pub body_limit_bytes: u64,
    /// Ms for one request, its answer included. Defaults to 30,000.
    pub request_timeout_ms: u64,
}

impl Default for GnoFile {
    fn default() -> GnoFile {
        GnoFile {
            urls: Vec::new(),
            ws_url: None,
            network_id: None,
            tokens: Vec::new(),
            events: Vec::new(),
            trusted_grc20_packages: GnoDecodeSettings::default().trusted_grc20_packages,
            require_func: false,
            page_blocks: gno::DEFAULT_PAGE_BLOCKS,
            confirm_blocks: 1,
            incomplete_after_ms: 600_000,
            skip_incomplete: false,
            body_limit_bytes: 64 << 20,
            request_timeout_ms: 30_000,
        }
    }
}

/// `source = "starknet"`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct StarknetFile {
    /// Addresses of nodes (JSON-RPC), the first one first.
    pub urls: Vec<String>,
    /// WebSocket address for wake-ups.
    pub ws_url: Option<String>,
    /// Token addresses; none means every token.
    pub tokens: Vec<String>,
    /// Contracts all of whose events are kept, and those of the option rounds that they deploy.
    pub contracts: Vec<String>,
    /// Contracts that the universal deployer makes of this class are followed too.
    pub vault_class_hash: Option<String>,
    /// Only those of them that this account had deployed.
    pub deployer: Option<String>,
    /// Universal deployers to believe. Defaults to those of the public networks.
    pub udc_address: Vec<String>,
    /// With several URLs: ms after which the only node that answers is believed about a replaced block. Defaults to 15,000.
    pub confirm_grace_ms: u64,
    /// Ms for one request, its answer included. Defaults to 30,000.
    pub request_timeout_ms: u64,
}

impl Default for StarknetFile {
    fn default() -> StarknetFile {
        StarknetFile {
            urls: Vec::new(),
            ws_url: None,
            tokens: Vec::new(),
            contracts: Vec::new(),
            vault_class_hash: None,
            deployer: None,
            udc_address: Vec::new(),
            confirm_grace_ms: 15_000,
            request_timeout_ms: 30_000,
        }
    }
}

/// `source = "file"`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ScriptFile {
    /// A file of blocks; `-`: standard input.
    pub path: Option<PathBuf>,
    /// The grammar of its texts: evm, gno, starknet or other.
    pub kind: Option<String>,
    /// What its network calls itself.
    pub network_id: Option<String>,
    /// Token addresses; none means every token.
    pub tokens: Vec<String>,
    /// Events to keep of raw logs, by signature.
    pub events: Vec<String>,
    /// Contracts that mint by Deposit and burn by Withdrawal.
    pub wrapped_native: Vec<String>,
}

/// `source = "devnet"`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct DevnetFile {
    /// Another seed is another chain. Defaults to 1.
    pub seed: u64,
    /// Ms between two blocks, 1 to 3,600,000. Defaults to 1,000.
    pub block_interval_ms: u64,
    /// About one block in so many replaces others; 0: none.
    pub reorg_every: u64,
    /// Most blocks replaced at once.
    pub max_reorg_depth: u64,
    /// Blocks that are there at once.
    pub blocks_at_start: u64,
    /// Movements in a block.
    pub events_per_block: u64,
    /// The chain ends here; none means never.
    pub last_height: Option<u64>,
}

impl Default for DevnetFile {
    fn default() -> DevnetFile {
        let default = DevnetSettings::default();
        DevnetFile {
            seed: default.seed,
            block_interval_ms: 1_000,
            reorg_every: default.reorg_every,
            max_reorg_depth: default.max_reorg_depth,
            blocks_at_start: default.blocks_at_start,
            events_per_block: default.events_per_block,
            last_height: default.last_height,
        }
    }
}

impl EvmFile {
    pub(super) fn check(&self, concurrency: usize, mut within: impl Within) -> EvmSettings {
        EvmSettings {
            urls: self.urls.clone(),
            ws_url: self.ws_url.clone(),
            tokens: self.tokens.clone(),
            events: self.events.clone(),
            factories: self.factories.clone(),
            wrapped_native: self.wrapped_native.clone(),
            check_bloom: self.check_bloom,
            confirm_grace: Duration::from_millis(within("confirm_grace_ms", self.confirm_grace_ms, A_DAY_MS)),
            request_timeout: Duration::from_millis(within("request_timeout_ms", self.request_timeout_ms, A_DAY_MS)),
            concurrency: concurrency * 2,
            ..EvmSettings::default()
        }
    }
}

impl GnoFile {
    pub(super) fn check(&self, mut within: impl Within) -> GnoSettings {
        GnoSettings {
            urls: self.urls.clone(),
            ws_url: self.ws_url.clone(),
            network_id: self.network_id.clone(),
            decode: GnoDecodeSettings {
                trusted_grc20_packages: self.trusted_grc20_packages.clone(),
                tokens: self.tokens.clone(),
                events: self.events.clone(),
                require_func: self.require_func,
            },
            page_blocks: within("page_blocks", self.page_blocks, gno::PAGE_BLOCKS),
            confirm_blocks: within("confirm_blocks", self.confirm_blocks, 0..=1_000),
            incomplete_after: Duration::from_millis(within("incomplete_after_ms", self.incomplete_after_ms, A_DAY_MS)),
            skip_incomplete: self.skip_incomplete,
            request_timeout: Duration::from_millis(within("request_timeout_ms", self.request_timeout_ms, A_DAY_MS)),
            body_limit: within("body_limit_bytes", self.body_limit_bytes, 64 << 10..=1 << 30) as usize,
        }
    }
}

impl StarknetFile {
    pub(super) fn check(&self, concurrency: usize, mut within: impl Within) -> StarknetSettings {
        StarknetSettings {
            urls: self.urls.clone(),
            ws_url: self.ws_url.clone(),
            decode: StarknetDecodeSettings {
                tokens: self.tokens.clone(),
                contracts: self.contracts.clone(),
                vault_class_hash: self.vault_class_hash.clone(),
                deployer: self.deployer.clone(),
                udc_addresses: self.udc_address.clone(),
            },
            confirm_grace: Duration::from_millis(within("confirm_grace_ms", self.confirm_grace_ms, A_DAY_MS)),
            request_timeout: Duration::from_millis(within("request_timeout_ms", self.request_timeout_ms, A_DAY_MS)),
            concurrency: concurrency * 2,
            ..StarknetSettings::default()
        }
    }
}

impl ScriptFile {
    pub(super) fn check(&self, name: &str) -> Result<FileSettings, ConfigError> {
        let path = self
            .path
            .clone()
            .ok_or_else(|| ConfigError::Unfit(format!("[chains.{name}]: source = \"file\" needs a path (--file)")))?;
        let kind = self.kind.as_deref().map(|word| {
            Kind::parse(word).ok_or_else(|| ConfigError::OutOfBounds {
                setting: format!("[chains.{name}] kind"),
                value: word.to_owned(),
                bounds: "evm, gno, starknet or other".to_owned(),
            })
        });
        let decode = DecodeSettings {
            tokens: self.tokens.clone(),
            events: self.events.clone(),
            wrapped_native: self.wrapped_native.clone(),
        };
        Ok(FileSettings { path, kind: kind.transpose()?, network_id: self.network_id.clone(), decode })
    }
}

impl DevnetFile {
    pub(super) fn check(&self, mut within: impl Within) -> DevnetSettings {
        DevnetSettings {
            seed: self.seed,
            block_interval: Duration::from_millis(within("block_interval_ms", self.block_interval_ms, 1..=3_600_000)),
            reorg_every: self.reorg_every,
            last_height: self.last_height,
            blocks_at_start: self.blocks_at_start,
            events_per_block: self.events_per_block,
            max_reorg_depth: self.max_reorg_depth,
            ..DevnetSettings::default()
        }
    }
}

/// Notes a value of a setting that is outside its bounds, and gives it back.
pub(super) trait Within: FnMut(&str, u64, RangeInclusive<u64>) -> u64 {}
impl<F: FnMut(&str, u64, RangeInclusive<u64>) -> u64> Within for F {}
