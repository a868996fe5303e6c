//! Which events of a block are about vaults, in the order they are applied.

use std::collections::{BTreeMap, BTreeSet};

use crate::chain::{Event, Text};
use crate::store::vaults::{Followed, Layout};

use super::decode::{self, BadEvent, Deployment, Emitter};
use super::event::VaultEvent;
use super::felts;

/// Vaults found by what they are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Class {
    /// How events of its vaults are read.
    pub layout: Layout,
    /// Whose deployments count; none: anybody's.
    pub deployer: Option<Text>,
}

/// What decides which events are about vaults. All addresses and hashes in canonical text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Directory {
    /// Deployers whose `ContractDeployed` is believed.
    pub deployers: BTreeSet<Text>,
    /// Classes whose deployments are followed without being registered.
    pub classes: BTreeMap<Text, Class>,
    /// Vaults followed: registered ones, and those that have a row.
    pub vaults: BTreeMap<Text, Layout>,
    /// Rounds, with their vault.
    pub rounds: BTreeMap<Text, Text>,
}

impl Directory {
    /// Takes in what was found of the block's addresses.
    pub fn add(&mut self, followed: Followed) {
        if followed.address != followed.vault {
            self.rounds.insert(followed.address, followed.vault.clone());
        }
        self.vaults.insert(followed.vault, followed.layout);
    }
}

/// One event that is about a vault.
#[derive(Debug, Clone)]
pub struct Step<'a> {
    /// As it stands in `events`.
    pub source: &'a Event,
    /// The vault.
    pub vault: Text,
    /// What it says, or why it cannot be read.
    pub event: Result<VaultEvent, BadEvent>,
}

/// The addresses that the directory must know about before these events are read: who speaks, and who was deployed.
pub fn addresses(events: &[Event]) -> BTreeSet<Text> {
    let mut found = BTreeSet::new();
    for event in events {
        found.extend(felts::canonical(&event.emitter));
        if is_deployment(event) {
            found.extend(event.data.first().and_then(|address| felts::canonical(address).ok()));
        }
    }
    found
}

/// The events of one block that are about vaults, in the order they are applied: as on the chain, but that a
/// transaction's deployments come first. A vault's constructor speaks before the deployer does.
///
/// Vaults and rounds that are deployed on the way join the directory, for the events after them.
pub fn read<'a>(directory: &mut Directory, events: &'a [Event]) -> Vec<Step<'a>> {
    let mut ordered: Vec<(bool, &Event)> = events.iter().map(|event| (!is_deployment(event), event)).collect();
    ordered.sort_by_key(|(is_later, event)| (event.tx_index, *is_later, event.event_index));
    ordered.into_iter().filter_map(|(_, event)| step(directory, event)).collect()
}

fn step<'a>(directory: &mut Directory, source: &'a Event) -> Option<Step<'a>> {
    let emitter = felts::canonical(&source.emitter).ok()?;
    if let Some(&layout) = directory.vaults.get(&emitter) {
        let event = decode::decode(source, layout, &Emitter::Vault).transpose()?;
        if let Ok(VaultEvent::RoundDeployed { address, .. }) = &event
            && !directory.vaults.contains_key(address)
        {
            directory.rounds.entry(address.clone()).or_insert_with(|| emitter.clone());
        }
        return Some(Step { source, vault: emitter, event });
    }
    if let Some(vault) = directory.rounds.get(&emitter) {
        let layout = *directory.vaults.get(vault)?;
        let event = decode::decode(source, layout, &Emitter::Round(emitter)).transpose()?;
        return Some(Step { source, vault: vault.clone(), event });
    }
    if directory.deployers.contains(&emitter) {
        return match decode::kind_of(source) {
            Ok(Some("ContractDeployed")) => deployment(directory, source, emitter),
            Ok(_) => None,
            Err(fault) => Some(Step { source, vault: emitter, event: Err(fault) }),
        };
    }
    None
}

fn is_deployment(event: &Event) -> bool {
    decode::kind_of(event) == Ok(Some("ContractDeployed"))
}

fn deployment<'a>(directory: &mut Directory, source: &'a Event, emitter: Text) -> Option<Step<'a>> {
    let deployed = match Deployment::read(source) {
        Ok(deployed) => deployed,
        // It does not say whose it is. Refused rather than passed over: it may have been a vault's.
        Err(fault) => return Some(Step { source, vault: emitter, event: Err(fault) }),
    };
    let registered = directory.vaults.get(&deployed.address).copied();
    let by_class = || {
        let class = directory.classes.get(&deployed.class_hash)?;
        class.deployer.as_ref().is_none_or(|deployer| *deployer == deployed.deployer).then_some(class.layout)
    };
    let layout = registered.or_else(by_class)?;
    let event = deployed.vault(layout);
    if event.is_ok() {
        directory.vaults.insert(deployed.address.clone(), layout);
    }
    Some(Step { source, vault: deployed.address, event })
}
