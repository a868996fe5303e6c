//! `option_vaults`: vaults, rounds, providers and bids of an options protocol on Starknet, from their events. Pure:
//! events and rows in, rows out.
//!
//! Providers' balances are not on the chain as events: the contract computes them when it is asked. So each event that
//! moves a whole vault is applied to every provider of it, by the contract's own exact floors.
//!
//! # A block is applied
//! ```text
//! addresses(events)        → which of them are vaults and rounds: VaultStatements::followed, into a Directory
//! read(directory, events)  → the block's steps, typed and in order
//! wanted(steps)            → their rows: VaultStatements::load, into a Working set
//! apply(rows, at, steps)   → events that were refused
//! rows.changes()           → what to write: VaultStatements::put
//! ```
//! Nothing here takes an event back. Undo restores the rows as they were before their block.

pub mod clearing;
pub mod decode;
pub mod event;
pub mod felts;
pub mod state;
pub mod steps;
pub mod transition;

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::Projection;
use super::token_balances::OnBadEvent;
use crate::chain::{Event, Height, Kind, Text};
use crate::store::{BlockError, BlockTransaction, Refused};

pub use state::{Table, Working, wanted};
pub use steps::{Class, Directory, Step, addresses, read};

/// The projection's name in `projections` and `checkpoints`.
pub const NAME: &str = "option_vaults";

/// Raised when the same events and settings give other rows than before.
const REVISION: u32 = 2;

/// The projection's settings.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// Deployers whose `ContractDeployed` is believed, in canonical text. None by default: vaults are registered.
    pub deployers: BTreeSet<Text>,
    /// Classes whose deployments are followed without being registered, by class hash in canonical text.
    pub classes: BTreeMap<Text, Class>,
    /// What to do with an event that cannot be read or does not fit.
    pub on_bad_event: OnBadEvent,
}

impl Settings {
    /// What the rows follow from beside the events. `on_bad_event` is not part of it: it decides whether a block is applied,
    /// not what follows from it.
    fn digest(&self) -> String {
        let mut decisive = format!("{NAME} {REVISION}");
        for deployer in &self.deployers {
            decisive += &format!("\ndeployer {deployer}");
        }
        for (hash, class) in &self.classes {
            let by = class.deployer.as_deref().unwrap_or("anybody");
            decisive += &format!("\nclass {hash} layout {} by {by}", class.layout.as_str());
        }
        format!("{:x}", Sha256::digest(decisive))
    }
}

/// The projection: the vaults of `vault_registry`, and those of known classes, on every Starknet chain.
#[derive(Debug, Clone, Default)]
pub struct OptionVaults {
    settings: Settings,
}

impl OptionVaults {
    /// With these settings.
    pub fn new(settings: Settings) -> OptionVaults {
        OptionVaults { settings }
    }
}

#[async_trait]
impl Projection for OptionVaults {
    fn name(&self) -> &str {
        NAME
    }

    fn tables(&self) -> Vec<String> {
        const TABLES: [&str; 8] = [
            "vaults",
            "vault_history",
            "liquidity_providers",
            "liquidity_provider_history",
            "option_rounds",
            "queued_liquidity",
            "option_buyers",
            "option_bids",
        ];
        TABLES.map(|table| format!("ebbtide.{table}")).to_vec()
    }

    fn kind(&self) -> Option<Kind> {
        Some(Kind::Starknet)
    }

    fn version(&self) -> String {
        self.settings.digest()
    }

    async fn apply(&self, block: &BlockTransaction<'_>) -> Result<(), BlockError> {
        let events = block.events().await?;
        if events.is_empty() {
            return Ok(());
        }
        let (chain, at) = (block.chain(), block.block());
        let statements = block.vaults().await?;
        let mut directory = Directory {
            deployers: self.settings.deployers.clone(),
            classes: self.settings.classes.clone(),
            ..Directory::default()
        };
        for found in statements.followed(block.client(), chain, at.height, &addresses(&events)).await? {
            directory.add(found);
        }
        let steps = read(&mut directory, &events);
        if steps.is_empty() {
            return Ok(());
        }
        let mut rows = Working::default();
        for row in statements.load(block.client(), chain, &wanted(&steps)).await? {
            rows.load(row);
        }
        let at_time = At { height: at.height, time: block.time().await? };
        for refused in apply(&mut rows, at_time, &steps) {
            if self.settings.on_bad_event == OnBadEvent::Halt {
                let reason = format!(
                    "event {} of transaction {} cannot be applied: {}: {}",
                    refused.event_index, refused.tx_index, refused.reason, refused.raw["fault"]
                );
                return Err(BlockError::Refused { reason });
            }
            let (tx_index, event_index) = (refused.tx_index.unsigned_abs(), refused.event_index.unsigned_abs());
            block.reject(tx_index, event_index, refused.raw, refused.reason).await?;
        }
        statements.put(block.client(), chain, at, &rows.changes()).await?;
        Ok(())
    }
}

/// The block whose events are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At {
    /// Its height.
    pub height: Height,
    /// Its time in seconds since 1970, if it has one.
    pub time: Option<i64>,
}

/// Applies a block's events in order. An event that cannot be read or does not fit the rows changes nothing and is
/// given back; whether the others stand nevertheless is the caller's to decide.
pub fn apply(rows: &mut Working, at: At, steps: &[Step<'_>]) -> Vec<Refused> {
    let mut refused = Vec::new();
    for step in steps {
        let left = match &step.event {
            Ok(event) => transition::transition(rows, at.time, &step.vault, event)
                .map_err(|fault| (fault.reason(), fault.to_string())),
            Err(fault) => Err((fault.reason(), fault.to_string())),
        };
        match left {
            Ok(left) => left.into_iter().for_each(|row| rows.put(row)),
            Err((reason, fault)) => refused.push(refusal(at.height, step.source, reason, &fault)),
        }
    }
    refused
}

fn refusal(height: Height, event: &Event, reason: &'static str, fault: &str) -> Refused {
    Refused {
        height,
        tx_index: event.tx_index as i64,
        event_index: event.event_index as i64,
        raw: json!({
            "emitter": event.emitter, "name": event.name, "keys": event.keys, "data": event.data, "fault": fault,
        }),
        reason,
    }
}
