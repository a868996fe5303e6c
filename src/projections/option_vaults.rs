//! `option_vaults`: vaults, rounds, providers and bids of an options protocol on Starknet, from their events. Pure but for
//! `statements`, `reads` and `audit`: events and rows in, rows out.
//!
//! Providers' balances are not on the chain as events: the contract computes them when it is asked. So each event that
//! moves a whole vault is applied to every provider of it, by the contract's own exact floors.
//!
//! # Blocks are applied
//! ```text
//! addresses(blocks)               → what is named: statements::named, into a Directory and Working rows
//! wanted(directory, rows, blocks) → the other rows that the events may need: statements::load
//! apply(directory, rows, block)   → for each block: events that were refused
//! rows.take_changes()             → what to write, once for all blocks, with each block's history: statements::put
//! ```
//! Nothing here takes an event back. Undo restores the rows as they were before their block.

pub mod audit;
pub mod clearing;
pub mod decode;
pub mod directory;
pub mod event;
pub mod felts;
pub mod reads;
pub mod rows;
pub mod state;
pub mod statements;
pub mod transition;

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Projection;
use super::token_balances::OnBadEvent;
use crate::chain::{Event, Height, Kind, Text};
use crate::store::{BlockError, BlockEvents, BlockTransaction, RangeTransaction, Refused};

pub use directory::{Class, Directory, Registered, addresses, wanted};
pub use rows::Layout;
pub use state::{Table, Working};

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
    /// What is told of a row that changed.
    pub notifications: Notifications,
}

/// What a notification on the channels of the vaults' rows carries. LISTEN needs no right: every role that may connect to the
/// database hears it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Notifications {
    /// The row's key, and the row while there is room. The default.
    #[default]
    Rows,
    /// The key alone: what the row holds is for those who may read the table.
    Keys,
}

impl Settings {
    /// What the rows follow from beside the events. `on_bad_event` is not part of it: it decides whether a block is applied,
    /// not what follows from it; nor is what is told of the rows.
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

    /// What decides which events are about vaults, without those that people registered.
    pub fn directory(&self) -> Directory {
        let (deployers, classes) = (self.deployers.clone(), self.classes.clone());
        Directory { deployers, classes, ..Directory::default() }
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

    fn builds_beside(&self) -> bool {
        true
    }

    fn settings(&self) -> Option<Value> {
        Some(json!({ "notifications": self.settings.notifications }))
    }

    /// A vault does not count while it is being caught up; when it does, all of it is applied at once.
    fn ignores_catching_up(&self) -> bool {
        true
    }

    async fn apply(&self, block: &BlockTransaction<'_>) -> Result<(), BlockError> {
        self.apply_range(&block.alone()).await
    }

    async fn apply_range(&self, range: &RangeTransaction<'_>) -> Result<(), BlockError> {
        let blocks = range.events().await?;
        let names = addresses(&blocks);
        if names.is_empty() {
            return Ok(());
        }
        let (session, chain) = (range.session(), range.chain());
        let named = statements::named(session, chain, &names).await?;
        let directory = Directory { registered: named.registered, ..self.settings.directory() };
        let mut rows = Working::default();
        named.rows.into_iter().for_each(|row| rows.load(row));
        let wanted = wanted(&directory, &rows, &names, &blocks);
        for row in statements::load(session, chain, &wanted).await? {
            rows.load(row);
        }
        let mut refused = Vec::new();
        for block in &blocks {
            let of_block = apply(&directory, &mut rows, block);
            if let (OnBadEvent::Halt, Some(refused)) = (self.settings.on_bad_event, of_block.first()) {
                let reason = format!(
                    "event {} of transaction {} cannot be applied: {}: {}",
                    refused.event_index, refused.tx_index, refused.reason, refused.raw["fault"]
                );
                return Err(BlockError::Refused { reason }.at(&block.block));
            }
            refused.extend(of_block);
        }
        range.reject(&refused).await?;
        statements::put(session, chain, &rows.take_changes()).await?;
        Ok(())
    }
}

/// Applies a block's events in order. An event that cannot be read or does not fit the rows changes nothing and is given
/// back; whether the others stand nevertheless is the caller's to decide.
pub fn apply(directory: &Directory, rows: &mut Working, block: &BlockEvents) -> Vec<Refused> {
    let height = block.block.height;
    let mut refused = Vec::new();
    for source in directory::in_order(&block.events) {
        let Some(said) = directory.read(rows, height, source) else { continue };
        let left = match &said.event {
            Ok(event) => directory
                .check_free(rows, height, event)
                .and_then(|()| transition::transition(rows, block.time, &said.vault, event))
                .map_err(|fault| (fault.reason(), fault.to_string())),
            Err(fault) => Err((fault.reason(), fault.to_string())),
        };
        match left {
            Ok(left) => left.into_iter().for_each(|row| rows.put(row)),
            Err((reason, fault)) => refused.push(refusal(height, source, reason, &fault)),
        }
    }
    rows.settle(&block.block);
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
