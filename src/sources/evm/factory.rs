//! Factories: contracts that name, in an event, another contract that is then followed because of it.

use std::collections::{BTreeSet, HashMap};

use alloy_dyn_abi::DynSolType;
use alloy_primitives::{Address, hex};
use serde::{Deserialize, Deserializer, Serialize};

use super::parse_address;
use super::signature::Signature;
use super::signatures::Signatures;
use crate::chain::{Event, Height};
use crate::sources::SourceError;

/// One factory: whose events name contracts, and what of those is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FactorySettings {
    /// The factory, or a list of them. Empty: anybody who says this event, strangers included.
    #[serde(deserialize_with = "one_or_many")]
    pub address: Vec<String>,
    /// The event that names a new contract, as `Name(type indexed name, …)`. It is kept in `events` itself: after a
    /// restart, what was made is read from there.
    pub event: String,
    /// Which of its parameters is the new contract; an `address`.
    pub parameter: String,
    /// Events of the new contracts to keep, from the creating event on.
    pub events: Vec<String>,
    /// Whether the new contracts are tokens: their Transfers become movements. Default false.
    pub tokens: bool,
}

/// A list may be written as its only item.
fn one_or_many<'de, D: Deserializer<'de>>(value: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "an address or a list of addresses")]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    Ok(match OneOrMany::deserialize(value)? {
        OneOrMany::One(one) => vec![one],
        OneOrMany::Many(many) => many,
    })
}

/// [`FactorySettings`], checked.
#[derive(Debug, Clone)]
pub(super) struct Factory {
    /// The creating event as it was written.
    pub(super) event: String,
    /// The same, read; its emitters are the factories.
    pub(super) creates: Signature,
    parameter: String,
    /// What to keep of the contracts that were made.
    pub(super) events: Signatures,
    /// Whether those are tokens.
    pub(super) tokens: bool,
}

impl Factory {
    /// Reads the settings of the factory at this place of the list.
    ///
    /// # Errors
    /// Permanent, naming the place, the setting and the text in it that is wrong.
    pub(super) fn read(place: usize, settings: &FactorySettings) -> Result<Factory, SourceError> {
        let bad = |what: String| SourceError::permanent(format!("factories, entry {}: {what}", place + 1));
        let FactorySettings { address, event, parameter, events, tokens } = settings;
        let mut creates = Signature::parse(event).map_err(|error| bad(error.to_string()))?;
        if creates.topic0.is_none() {
            return Err(bad(format!(
                "event {event:?} is anonymous: a creating event must be known by its first topic"
            )));
        }
        if !address.is_empty() && !creates.emitters.is_empty() {
            return Err(bad(format!("event {event:?} names its contract, and so does address: give one of them")));
        }
        for text in address {
            let address = parse_address(text.trim())
                .ok_or_else(|| bad(format!("address {text:?} is not an address: 0x and 40 hex digits are wanted")))?;
            creates.emitters.push(address);
        }
        match creates.parameter(parameter) {
            Some(DynSolType::Address) => {}
            Some(other) => {
                return Err(bad(format!("parameter {parameter:?} of event {event:?} is no address, but {other}")));
            }
            None => {
                let known: Vec<&str> = creates.parameters().collect();
                let known = known.join(", ");
                return Err(bad(format!("parameter {parameter:?} is none of event {event:?}, which has: {known}")));
            }
        }
        if events.is_empty() && !tokens {
            return Err(bad("nothing is kept of the new contracts: give events, or tokens = true".into()));
        }
        let mut kept = Signatures::default();
        for text in events {
            let signature = Signature::parse(text).map_err(|error| bad(error.to_string()))?;
            if !signature.emitters.is_empty() {
                return Err(bad(format!("event {text:?} names a contract, but is for those that the factory makes")));
            }
            kept.add(text, signature).map_err(|error| bad(error.to_string()))?;
        }
        let (event, parameter) = (event.clone(), parameter.clone());
        Ok(Factory { event, creates, parameter, events: kept, tokens: *tokens })
    }

    /// The contract that this event says was made, if it is the creating event.
    pub(super) fn made(&self, event: &Event) -> Option<Address> {
        let topic0 = hex::encode_prefixed(self.creates.topic0?);
        let is_it = *event.name == *self.creates.name
            && event.keys.len() == self.creates.topic_count()
            && event.keys.first().is_some_and(|key| **key == *topic0)
            && parse_address(&event.emitter).is_some_and(|emitter| self.creates.admits(&emitter));
        let contract = event.attributes.get(&self.parameter).filter(|_| is_it)?.as_str()?;
        // A factory that failed may name nobody.
        parse_address(contract).filter(|contract| !contract.is_zero())
    }
}

/// A contract was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Made {
    /// Where its creating event stands.
    pub(super) height: Height,
    /// Place of the factory in the settings.
    pub(super) factory: usize,
    /// The new contract.
    pub(super) contract: Address,
}

/// All contracts that factories made, with the heights where that was said.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// By factory and height.
    by_factory: Vec<BTreeSet<(Height, Address)>>,
    by_contract: HashMap<Address, Vec<(usize, Height)>>,
}

impl Found {
    pub(super) fn add(&mut self, made: Made) {
        let Made { height, factory, contract } = made;
        let makers = self.by_contract.entry(contract).or_default();
        // Whoever undoes the lower one undoes this one too, so it says nothing new.
        if makers.iter().any(|(maker, at)| *maker == factory && *at <= height) {
            return;
        }
        makers.push((factory, height));
        if self.by_factory.len() <= factory {
            self.by_factory.resize_with(factory + 1, BTreeSet::new);
        }
        if let Some(of_factory) = self.by_factory.get_mut(factory) {
            of_factory.insert((height, contract));
        }
    }

    /// Forgets what was made at these heights, the first one included, the last one not.
    pub(super) fn forget(&mut self, from: Height, to: Height) {
        for of_factory in &mut self.by_factory {
            let gone: Vec<_> = of_factory.range((from, Address::ZERO)..(to, Address::ZERO)).copied().collect();
            for (height, contract) in gone {
                of_factory.remove(&(height, contract));
                if let Some(makers) = self.by_contract.get_mut(&contract) {
                    makers.retain(|(_, at)| *at < from || *at >= to);
                    if makers.is_empty() {
                        self.by_contract.remove(&contract);
                    }
                }
            }
        }
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        *self = Found::default();
    }

    /// What this factory made below a height, lowest first.
    pub(super) fn made_below(&self, factory: usize, height: Height) -> impl Iterator<Item = (Height, Address)> {
        let of_factory = self.by_factory.get(factory).into_iter();
        of_factory.flat_map(move |all| all.range(..(height, Address::ZERO))).copied()
    }

    fn makers(&self, contract: &Address, below: Height) -> impl Iterator<Item = usize> {
        let makers = self.by_contract.get(contract).into_iter().flatten();
        makers.filter(move |(_, at)| *at < below).map(|(factory, _)| *factory)
    }
}

/// Which contracts are followed at one place of the chain: those found below some height, and what was made since.
pub(super) struct Following<'f> {
    found: Option<(&'f Found, Height)>,
    since: HashMap<Address, Vec<usize>>,
}

impl<'f> Following<'f> {
    /// What was found below this height.
    pub(super) fn below(found: &'f Found, height: Height) -> Following<'f> {
        Following { found: Some((found, height)), since: HashMap::new() }
    }

    /// Nothing is followed.
    pub(super) fn nobody() -> Following<'static> {
        Following { found: None, since: HashMap::new() }
    }

    /// From here on, this contract of that factory too.
    pub(super) fn add(&mut self, factory: usize, contract: Address) {
        self.since.entry(contract).or_default().push(factory);
    }

    /// The factories that made this contract.
    pub(super) fn makers(&self, contract: &Address) -> impl Iterator<Item = usize> {
        let found = self.found.iter().flat_map(|(found, below)| found.makers(contract, *below));
        found.chain(self.since.get(contract).into_iter().flatten().copied())
    }
}
