//! What an address means, and so what an event of it says.
//!
//! An address has one meaning, the first that it got: a deployer's, by the settings; a vault's, by the registry or its
//! deployment; a round's, by its vault. All of it follows from the settings, the registry and the rows, never from where a
//! block ends: whoever names an address that has another meaning already is refused.

use std::collections::{BTreeMap, BTreeSet};

use crate::chain::{Event, Height, Text};
use crate::store::BlockEvents;

use super::decode::{self, BadEvent, Deployment, Emitter};
use super::event::VaultEvent;
use super::felts;
use super::rows::{Layout, Wanted};
use super::state::Working;
use super::transition::Fault;

/// Vaults found by what they are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Class {
    /// How events of its vaults are read.
    pub layout: Layout,
    /// Whose deployments count; None means anybody's.
    pub deployer: Option<Text>,
}

/// A vault that people registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// How its events are read.
    pub layout: Layout,
    /// The first height whose events count; None means all.
    pub from_height: Option<Height>,
}

/// What decides which events are about vaults, beside the rows. All addresses and hashes in canonical text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Directory {
    /// Deployers whose `ContractDeployed` is believed.
    pub deployers: BTreeSet<Text>,
    /// Classes whose deployments are followed without being registered.
    pub classes: BTreeMap<Text, Class>,
    /// Vaults that people registered, by address: at least those among the addresses that the events name.
    pub registered: BTreeMap<Text, Registered>,
}

/// What an address means.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Meaning {
    Deployer,
    Vault(Layout),
    Round { vault: Text, layout: Layout },
}

/// What an event says of a vault.
#[derive(Debug, Clone)]
pub(super) struct Said {
    /// The vault.
    pub(super) vault: Text,
    /// What it says, or why it cannot be read.
    pub(super) event: Result<VaultEvent, BadEvent>,
}

impl Directory {
    /// The layout of a vault at a height; None means that it is no vault. What people registered wins over what an earlier
    /// reading left.
    fn layout(&self, rows: &Working, vault: &Text, height: Height) -> Option<Layout> {
        let registered = self.registered.get(vault).filter(|found| found.from_height.is_none_or(|from| from <= height));
        registered.map(|found| found.layout).or_else(|| rows.vaults.get(vault).map(|row| row.layout))
    }

    fn meaning(&self, rows: &Working, address: &Text, height: Height) -> Option<Meaning> {
        if self.deployers.contains(address) {
            return Some(Meaning::Deployer);
        }
        if let Some(round) = rows.rounds.get(address) {
            let (vault, layout) = (round.vault_address.clone(), self.layout(rows, &round.vault_address, height)?);
            return Some(Meaning::Round { vault, layout });
        }
        self.layout(rows, address, height).map(Meaning::Vault)
    }

    /// What an event says of a vault; None means that it is about none, or says nothing of its state.
    pub(super) fn read(&self, rows: &Working, height: Height, event: &Event) -> Option<Said> {
        let emitter = felts::canonical(&event.emitter).ok()?;
        let meaning = self.meaning(rows, &emitter, height)?;
        self.said(rows, height, event, emitter, meaning)
    }

    fn said(&self, rows: &Working, height: Height, event: &Event, emitter: Text, meaning: Meaning) -> Option<Said> {
        let (vault, layout, by) = match meaning {
            Meaning::Deployer => return self.deployed(rows, height, event, emitter),
            Meaning::Vault(layout) => (emitter, layout, Emitter::Vault),
            Meaning::Round { vault, layout } => (vault, layout, Emitter::Round(emitter)),
        };
        let event = decode::decode(event, layout, &by).transpose()?;
        Some(Said { vault, event })
    }

    fn deployed(&self, rows: &Working, height: Height, event: &Event, emitter: Text) -> Option<Said> {
        let deployed = match decode::kind_of(event) {
            Ok(Some("ContractDeployed")) => Deployment::read(event),
            Ok(_) => return None,
            Err(fault) => Err(fault),
        };
        let deployed = match deployed {
            Ok(deployed) => deployed,
            // It does not say whose it is. Refused rather than passed over: it may have been a vault's.
            Err(fault) => return Some(Said { vault: emitter, event: Err(fault) }),
        };
        let by_class = || {
            let class = self.classes.get(&deployed.class_hash)?;
            class.deployer.as_ref().is_none_or(|deployer| *deployer == deployed.deployer).then_some(class.layout)
        };
        let layout = self.layout(rows, &deployed.address, height).or_else(by_class)?;
        let event = deployed.vault(layout);
        Some(Said { vault: deployed.address, event })
    }

    /// Refuses a deployment at an address that means something else already.
    ///
    /// # Errors
    /// [`Fault::AddressTaken`].
    pub(super) fn check_free(&self, rows: &Working, height: Height, event: &VaultEvent) -> Result<(), Fault> {
        let (address, or_of) = match event {
            VaultEvent::VaultDeployed { address, .. } => (address, rows.rounds.get(address).map(|_| "round")),
            // Of a round that exists, the transition speaks.
            VaultEvent::RoundDeployed { address, .. } if rows.rounds.get(address).is_some() => return Ok(()),
            VaultEvent::RoundDeployed { address, .. } => (address, self.layout(rows, address, height).map(|_| "vault")),
            _ => return Ok(()),
        };
        let of = if self.deployers.contains(address) { Some("deployer") } else { or_of };
        of.map_or(Ok(()), |of| Err(Fault::AddressTaken { of }))
    }
}

/// The addresses whose vaults, rounds and registrations must be known before these events are read: who speaks, and what
/// is deployed.
pub fn addresses(blocks: &[BlockEvents]) -> BTreeSet<Text> {
    let mut found = BTreeSet::new();
    for event in blocks.iter().flat_map(|block| &block.events) {
        found.extend(felts::canonical(&event.emitter));
        let deployed = match decode::kind_of(event) {
            Ok(Some("ContractDeployed")) => event.data.first(),
            Ok(Some("OptionRoundDeployed")) => event.data.get(1),
            _ => None,
        };
        found.extend(deployed.and_then(|address| felts::canonical(address).ok()));
    }
    found
}

/// The events of a block in the order they are applied: as on the chain, but that a transaction's deployments come first. A
/// vault's constructor speaks before the deployer does.
pub(super) fn in_order(events: &[Event]) -> Vec<&Event> {
    let is_later = |event: &Event| decode::kind_of(event) != Ok(Some("ContractDeployed"));
    let mut ordered: Vec<(bool, &Event)> = events.iter().map(|event| (is_later(event), event)).collect();
    ordered.sort_by_key(|(is_later, event)| (event.tx_index, *is_later, event.event_index));
    ordered.into_iter().map(|(_, event)| event).collect()
}

/// The rows that these events may need, beside the vaults and rounds at the addresses that they name (`named`), which are
/// loaded. What an address means that is deployed on the way is not known yet: whatever it may come to mean is taken into
/// account.
pub fn wanted(directory: &Directory, rows: &Working, named: &BTreeSet<Text>, blocks: &[BlockEvents]) -> Wanted {
    let mut wanted = Wanted::default();
    // Deployed on the way: None is a vault, Some a round of that vault.
    let mut deployed: BTreeMap<Text, BTreeSet<Option<Text>>> = BTreeMap::new();
    for block in blocks {
        let height = block.block.height;
        for event in in_order(&block.events) {
            let Ok(emitter) = felts::canonical(&event.emitter) else { continue };
            let mut meanings: Vec<Meaning> = directory.meaning(rows, &emitter, height).into_iter().collect();
            for of in deployed.get(&emitter).into_iter().flatten() {
                meanings.extend([Layout::A, Layout::B].map(|layout| match of {
                    None => Meaning::Vault(layout),
                    Some(vault) => Meaning::Round { vault: vault.clone(), layout },
                }));
            }
            for meaning in meanings {
                let said = directory.said(rows, height, event, emitter.clone(), meaning);
                let Some(Said { vault, event: Ok(event) }) = said else { continue };
                match &event {
                    VaultEvent::VaultDeployed { address, .. } => {
                        deployed.entry(address.clone()).or_default().insert(None);
                    }
                    VaultEvent::RoundDeployed { address, .. } => {
                        deployed.entry(address.clone()).or_default().insert(Some(vault.clone()));
                    }
                    _ => {}
                }
                wanted.add(&vault, &event);
            }
        }
    }
    wanted.rounds.retain(|address| !named.contains(address));
    wanted.numbered_rounds.retain(|(vault, id)| rows.numbered_round(vault, *id).is_none());
    wanted
}
