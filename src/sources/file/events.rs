//! What a block line holds, into chain values. An event that is not as it should be becomes a reject with a fixed
//! word for the reason; the rest of the block stays.

use std::borrow::Cow;
use std::collections::HashSet;

use jiff::Timestamp;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::evidence::{evidence, storable};
use super::line::BadLine;
use super::text::{self, Interner};
use crate::chain::{Block, Event, Kind, Link, Reject, Text, TokenEvent, Transaction, canonical};
use crate::sources::evm::decode::{Decoded, Decoder, RawLog};

/// Longest token, address, emitter, event name or transaction hash, in bytes.
const LONGEST_TEXT: usize = 512;

/// What texts must look like, what is wanted of them, and what raw logs mean.
#[derive(Debug, Clone)]
pub(super) struct Grammar {
    /// The kind of chain.
    pub(super) kind: Kind,
    /// Tokens that are wanted, in canonical form; None means all.
    pub(super) tokens: Option<HashSet<String>>,
    /// For raw logs.
    pub(super) decoder: Decoder,
}

/// The parts of a block line, still as text.
pub(super) struct Given<'a> {
    pub(super) transactions: Vec<&'a RawValue>,
    pub(super) token_events: Vec<&'a RawValue>,
    pub(super) events: Vec<&'a RawValue>,
    pub(super) logs: Vec<&'a RawValue>,
}

/// The block that a line gives.
///
/// # Errors
/// A bad line when it gives its events twice: as logs and decoded.
pub(super) fn block(
    link: Link,
    time: Option<Timestamp>,
    given: Given<'_>,
    grammar: &Grammar,
    texts: &mut Interner,
) -> Result<Block, BadLine> {
    let decoded = given.token_events.len() + given.events.len();
    if decoded > 0 && !given.logs.is_empty() {
        return Err(BadLine::new("gives its events twice: as \"logs\" and as \"token_events\" or \"events\""));
    }
    let mut taken = Places::default();
    let mut rejects = Rejects::default();
    let mut transactions = transactions(&given.transactions, &mut rejects);
    let mut token_events = Vec::with_capacity(given.token_events.len());
    for raw in given.token_events {
        match Fields::read(raw).and_then(|fields| fields.token_event(grammar, texts)) {
            Ok(event) if !grammar.wants(&event.token) => {}
            Ok(event) if taken.add((event.tx_index, event.event_index)) => token_events.push(event),
            Ok(event) => rejects.add(Some((event.tx_index, event.event_index)), raw, "position_taken"),
            Err(fault) => rejects.add(fault.place, raw, fault.reason),
        }
    }
    let mut events = Vec::with_capacity(given.events.len());
    for raw in given.events {
        match Fields::read(raw).and_then(|fields| fields.event(grammar, texts)) {
            Ok(event) if taken.add((event.tx_index, event.event_index)) => events.push(event),
            Ok(event) => rejects.add(Some((event.tx_index, event.event_index)), raw, "position_taken"),
            Err(fault) => rejects.add(fault.place, raw, fault.reason),
        }
    }
    if !given.logs.is_empty() {
        let decoded = logs(&given.logs, grammar, &mut rejects);
        // What the line says of a transaction goes before what its logs let us know.
        let listed: HashSet<u64> = transactions.iter().map(|transaction| transaction.tx_index).collect();
        transactions.extend(decoded.transactions.into_iter().filter(|known| !listed.contains(&known.tx_index)));
        (token_events, events) = (decoded.token_events, decoded.events);
    }
    // Mostly they come in order already, and then this costs one look at each.
    transactions.sort_by_key(|transaction| transaction.tx_index);
    token_events.sort_by_key(|event| (event.tx_index, event.event_index));
    events.sort_by_key(|event| (event.tx_index, event.event_index));
    Ok(Block { link, time, transactions, token_events, events, rejects: rejects.list })
}

impl Grammar {
    fn wants(&self, token: &str) -> bool {
        self.tokens.as_ref().is_none_or(|tokens| tokens.contains(token))
    }
}

/// The places (tx_index, event_index) that events of a block have taken.
#[derive(Default)]
struct Places {
    highest: Option<(u64, u64)>,
    all: HashSet<(u64, u64)>,
    in_order: Vec<(u64, u64)>,
}

impl Places {
    /// Takes a place; false if another event has it. A set is only built once places come out of order.
    fn add(&mut self, place: (u64, u64)) -> bool {
        if self.all.is_empty() && self.highest.is_none_or(|highest| highest < place) {
            self.highest = Some(place);
            self.in_order.push(place);
            return true;
        }
        if self.all.is_empty() {
            self.all.extend(self.in_order.drain(..));
        }
        self.all.insert(place)
    }
}

/// The rejects of a block, each at a place of its own.
#[derive(Default)]
struct Rejects {
    list: Vec<Reject>,
    places: HashSet<(u64, u64)>,
}

/// Transaction index of rejects whose own is not known or is another reject's already.
const NOWHERE: u64 = i64::MAX as u64;

impl Rejects {
    /// The place given, if it is free, else one of its own.
    fn place(&mut self, given: Option<(u64, u64)>) -> (u64, u64) {
        given.filter(|place| self.places.insert(*place)).unwrap_or_else(|| {
            // There are at most as many as rejects came before, so the next free one is not far.
            let mut index = self.list.len() as u64;
            while !self.places.insert((NOWHERE, index)) {
                index += 1;
            }
            (NOWHERE, index)
        })
    }

    fn add(&mut self, place: Option<(u64, u64)>, raw: &RawValue, reason: &'static str) {
        let (tx_index, event_index) = self.place(place);
        self.list.push(Reject { tx_index, event_index, raw: evidence(raw.get()), reason: reason.into() });
    }
}

fn logs(given: &[&RawValue], grammar: &Grammar, rejects: &mut Rejects) -> Decoded {
    let mut logs = Vec::with_capacity(given.len());
    for raw in given {
        match serde_json::from_str::<RawLog>(raw.get()) {
            Ok(log) => logs.push(log),
            Err(_) => rejects.add(None, raw, "bad_log"),
        }
    }
    let mut decoded = grammar.decoder.decode(logs);
    decoded.token_events.retain(|event| grammar.wants(&event.token));
    for reject in decoded.rejects.drain(..) {
        let (tx_index, event_index) = rejects.place(Some((reject.tx_index, reject.event_index)));
        rejects.list.push(Reject { tx_index, event_index, raw: storable(reject.raw), ..reject });
    }
    decoded
}

fn transactions(given: &[&RawValue], rejects: &mut Rejects) -> Vec<Transaction> {
    /// Other keys are ignored: none could change what a transaction means here.
    #[derive(Deserialize)]
    struct Wire<'a> {
        #[serde(borrow)]
        tx_index: &'a RawValue,
        #[serde(borrow)]
        hash: Cow<'a, str>,
        success: Option<bool>,
    }
    let mut seen = HashSet::with_capacity(given.len());
    let mut list = Vec::with_capacity(given.len());
    for raw in given {
        let read = serde_json::from_str::<Wire<'_>>(raw.get()).ok().and_then(|wire| {
            let tx_index = text::index(wire.tx_index.get())?;
            let hash = canonical(&wire.hash).ok().filter(|hash| hash.len() <= 256)?;
            Some(Transaction { tx_index, hash: (*hash).into(), success: wire.success.unwrap_or(true) })
        });
        match read {
            Some(transaction) if seen.insert(transaction.tx_index) => list.push(transaction),
            Some(_) => rejects.add(None, raw, "position_taken"),
            None => rejects.add(None, raw, "bad_transaction"),
        }
    }
    list
}

/// Why an event was refused, and its place if that could be read.
struct Fault {
    place: Option<(u64, u64)>,
    reason: &'static str,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Key {
    TxIndex,
    EventIndex,
    Token,
    FromAddress,
    ToAddress,
    Amount,
    Emitter,
    Name,
    Keys,
    Data,
    Attributes,
    #[serde(other)]
    Unknown,
}

/// Columns of an event, still as text. `null` is kept: for the two sides it says something.
#[derive(Default)]
struct Fields<'a> {
    columns: [Option<&'a str>; 11],
    unknown: bool,
    repeated: bool,
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Columns;
        impl<'de> Visitor<'de> for Columns {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an event")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Fields::default();
                while let Some(key) = map.next_key::<Key>()? {
                    let value: &'de RawValue = map.next_value()?;
                    match fields.columns.get_mut(key as usize) {
                        Some(column) => fields.repeated |= column.replace(value.get()).is_some(),
                        None => fields.unknown = true,
                    }
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(Columns)
    }
}

impl<'a> Fields<'a> {
    fn read(raw: &'a RawValue) -> Result<Fields<'a>, Fault> {
        serde_json::from_str(raw.get()).map_err(|_| Fault { place: None, reason: "bad_type" })
    }

    fn column(&self, key: Key) -> Option<&'a str> {
        self.columns.get(key as usize).copied().flatten()
    }

    fn needed(&self, key: Key) -> Result<&'a str, &'static str> {
        self.column(key).filter(|raw| *raw != "null").ok_or("missing_field")
    }

    /// Where the event stands, once its keys are found to be known ones. `from` for `from_address` would make a mint
    /// of a transfer, so an unknown key is never passed over.
    fn place(&self, others: &[Key]) -> Result<(u64, u64), Fault> {
        let place = || -> Result<(u64, u64), &'static str> {
            let tx_index = text::index(self.needed(Key::TxIndex)?).ok_or("bad_position")?;
            let event_index = text::index(self.needed(Key::EventIndex)?).ok_or("bad_position")?;
            Ok((tx_index, event_index))
        };
        let place = place().map_err(|reason| Fault { place: None, reason });
        let reason = if self.unknown || others.iter().any(|key| self.column(*key).is_some()) {
            "unknown_field"
        } else if self.repeated {
            "repeated_field"
        } else {
            return place;
        };
        Err(Fault { place: place.ok(), reason })
    }

    fn token_event(&self, grammar: &Grammar, texts: &mut Interner) -> Result<TokenEvent, Fault> {
        let (tx_index, event_index) = self.place(&[Key::Emitter, Key::Name, Key::Keys, Key::Data, Key::Attributes])?;
        let mut read = || -> Result<TokenEvent, &'static str> {
            let token = name(grammar.kind, self.needed(Key::Token)?, texts)?;
            if !grammar.kind.is_token(&token) {
                return Err("bad_token");
            }
            let mut side = |key| match self.column(key) {
                None | Some("null") => Ok(None),
                Some(raw) => match name(grammar.kind, raw, texts)? {
                    address if grammar.kind.is_address(&address) => Ok(Some(address)),
                    _ => Err("bad_address"),
                },
            };
            let (from, to) = (side(Key::FromAddress)?, side(Key::ToAddress)?);
            let amount = text::amount(self.needed(Key::Amount)?).ok_or("bad_amount")?;
            if from.is_none() && to.is_none() {
                return Err("no_party");
            }
            Ok(TokenEvent { tx_index, event_index, token, from, to, amount })
        };
        read().map_err(|reason| Fault { place: Some((tx_index, event_index)), reason })
    }

    fn event(&self, grammar: &Grammar, texts: &mut Interner) -> Result<Event, Fault> {
        let (tx_index, event_index) = self.place(&[Key::Token, Key::FromAddress, Key::ToAddress, Key::Amount])?;
        let mut read = || -> Result<Event, &'static str> {
            let emitter = name(grammar.kind, self.needed(Key::Emitter)?, texts)?;
            // On gno.land a realm speaks, not an account.
            if !(grammar.kind.is_address(&emitter) || grammar.kind == Kind::Gno) {
                return Err("bad_address");
            }
            Ok(Event {
                tx_index,
                event_index,
                emitter,
                name: name(grammar.kind, self.needed(Key::Name)?, texts)?,
                keys: self.list(Key::Keys)?,
                data: self.list(Key::Data)?,
                attributes: match self.column(Key::Attributes) {
                    None | Some("null") => Value::Object(serde_json::Map::new()),
                    // What cannot be stored as it is comes back as one text.
                    Some(raw) => Some(evidence(raw)).filter(Value::is_object).ok_or("bad_attributes")?,
                },
            })
        };
        read().map_err(|reason| Fault { place: Some((tx_index, event_index)), reason })
    }

    fn list(&self, key: Key) -> Result<Vec<Text>, &'static str> {
        let raw = match self.column(key) {
            None | Some("null") => return Ok(Vec::new()),
            Some(raw) => raw,
        };
        let list: Vec<Cow<'_, str>> = serde_json::from_str(raw).map_err(|_| "bad_type")?;
        if list.iter().any(|text| text.contains('\0')) {
            return Err("nul_in_text");
        }
        Ok(list.into_iter().map(Text::from).collect())
    }
}

/// A token, an address or a name: text in canonical form of 1 to 512 bytes.
fn name(kind: Kind, raw: &str, texts: &mut Interner) -> Result<Text, &'static str> {
    let given = text::string(raw).ok_or("bad_type")?;
    if given.len() > LONGEST_TEXT {
        return Err("text_too_long");
    }
    Ok(texts.text(&kind.canonical(&given)?))
}

#[cfg(test)]
mod tests;
