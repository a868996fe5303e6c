//! Logs as chain values. Pure: the same logs always give the same events, whatever brought them here.
//!
//! What counts as a token movement:
//! - `Transfer(address,address,uint256)` with both addresses indexed and 32 bytes of data; the zero address is the
//!   missing side (a mint or a burn). With four topics it is an ERC-721 transfer, which moves no amount: nothing.
//! - `Deposit(address,uint256)` and `Withdrawal(address,uint256)` of the wrapped native token: it mints and burns
//!   without a Transfer, and its balances would be wrong without them.
//!
//! Everything else is an [`Event`] if one of the given signatures fits it, and nothing otherwise. Signatures are told
//! apart by the first topic, the number of topics and the contract; an anonymous one is tried where none of the others
//! fits, and a log that does not decode as it is taken for another event.
//!
//! `attributes` hold numbers as decimal text, bytes and addresses as 0x hex, tuples as objects, and of an indexed text,
//! array or tuple the hash that the chain keeps in its place. A text that Postgres cannot hold (no UTF-8, or a NUL in it)
//! is an object of its bytes, `{"hex": "0x…"}`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use alloy_primitives::{Address, B256, U256, b256, hex};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::factory::{Factory, FactorySettings, Following, Made};
use super::parse_address;
use super::signature::Signature;
use super::signatures::Signatures;
use crate::chain::{Event, Height, Reject, Text, TokenEvent, Transaction};
use crate::sources::SourceError;
pub use crate::sources::decoded::Decoded;
use crate::sources::words::listed;

/// `Transfer(address,address,uint256)`.
pub(super) const TRANSFER: B256 = b256!("ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef");
/// `Deposit(address,uint256)`.
pub(super) const DEPOSIT: B256 = b256!("e1fffcc4923d04b559f4d29a8bfc6cda04eb5b0d3c460751c2402c5c5cc9109c");
/// `Withdrawal(address,uint256)`.
pub(super) const WITHDRAWAL: B256 = b256!("7fcf532c15f0a6db0bd6d0e038bea71d30d808c7d98cb3bf7268a95bf5081b65");

/// The canonical wrapped native token of well-known networks; a network that is not known counts as Ethereum.
const WRAPPED_NATIVE: [(u64, &str); 6] = [
    (1, "0xc02aaa39b223fe8d0a0e5c4f27ead9083c756cc2"),
    (10, "0x4200000000000000000000000000000000000006"),
    (56, "0xbb4cdb9cbd36b01bd1cbaebf2de08d9173bc095c"),
    (137, "0x0d500b1d8e8ef31e21c99d1db9a6444d3adf1270"),
    (8453, "0x4200000000000000000000000000000000000006"),
    (43114, "0xb31f66aa3c1e785363f0875a1b74e27b85fd66c7"),
];

/// Nodes refuse filters with more addresses than some bound (geth: 1,000).
pub(super) const ADDRESSES_PER_FILTER: usize = 500;

/// A log as nodes and recorded feeds have it; nothing in it is trusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawLog {
    /// The contract that wrote it: 0x hex, any case.
    pub address: String,
    /// At most four words, 0x hex; the first is the hash of the event's signature.
    pub topics: Vec<String>,
    /// Any bytes, 0x hex.
    pub data: String,
    /// Hash of its transaction, 0x hex.
    pub tx_hash: String,
    /// Place of its transaction in the block.
    pub tx_index: u64,
    /// Its place in the block, over all transactions (up to 2^32 - 1 on some chains).
    pub log_index: u64,
}

/// What to look for in logs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct DecodeSettings {
    /// Token contracts whose movements are taken. Empty: every token. The one word `none`: no token at all.
    pub tokens: Vec<String>,
    /// Events to take besides, as `Name(type indexed name, …)`, optionally with ` @ ADDRESS[, ADDRESS…]` for the
    /// contracts to take them from (default: any contract, listed as a token or not; ` anonymous` ones need them).
    pub events: Vec<String>,
    /// Contracts, besides the network's own, that mint by `Deposit` and burn by `Withdrawal` without a Transfer.
    pub wrapped_native: Vec<String>,
}

/// Which contracts' logs with which first topics are of interest, as nodes understand it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFilter {
    /// Sorted. Empty: any contract.
    pub addresses: Vec<Address>,
    /// Empty: any, or none at all.
    pub topics0: Vec<B256>,
}

/// Turns logs into events, by settings that were checked once.
#[derive(Debug, Clone)]
pub struct Decoder {
    tokens: Tokens,
    wrapped: HashSet<Address>,
    events: Signatures,
    factories: Vec<Factory>,
}

#[derive(Debug, Clone)]
enum Tokens {
    All,
    Listed(HashSet<Address>),
}

impl Tokens {
    fn include(&self, token: &Address) -> bool {
        match self {
            Tokens::All => true,
            Tokens::Listed(tokens) => tokens.contains(token),
        }
    }

    fn list(&self, token: &Address) -> bool {
        matches!(self, Tokens::Listed(tokens) if tokens.contains(token))
    }
}

/// What one log came to.
enum Meaning {
    Nothing,
    Movement(TokenEvent),
    Event(Event),
    Refused(&'static str),
}

/// A log whose texts were read.
struct Log {
    address: Address,
    topics: Vec<B256>,
    data: Vec<u8>,
}

impl Decoder {
    /// A decoder for these settings. `network_id`: what the network calls itself, if that is known.
    ///
    /// # Errors
    /// Permanent, naming the setting and the text in it that is wrong.
    pub fn new(settings: &DecodeSettings, network_id: Option<u64>) -> Result<Decoder, SourceError> {
        Decoder::with_factories(settings, &[], network_id)
    }

    /// A decoder that also knows factories. What they made is the caller's to keep.
    pub(super) fn with_factories(
        settings: &DecodeSettings,
        factories: &[FactorySettings],
        network_id: Option<u64>,
    ) -> Result<Decoder, SourceError> {
        let tokens = match listed(&settings.tokens) {
            None => Tokens::All,
            Some(listed) => Tokens::Listed(addresses("token", listed)?),
        };
        let mut wrapped = addresses("wrapped_native", &settings.wrapped_native)?;
        let network = network_id.unwrap_or(1);
        let known = WRAPPED_NATIVE.iter().filter(|(id, _)| *id == network).filter_map(|(_, a)| parse_address(a));
        wrapped.extend(known);
        let mut events = Signatures::default();
        for text in &settings.events {
            events.add(text, Signature::parse(text)?)?;
        }
        let factories =
            factories.iter().enumerate().map(|(n, f)| Factory::read(n, f)).collect::<Result<Vec<_>, _>>()?;
        for factory in &factories {
            events.add(&factory.event, factory.creates.clone())?;
        }
        Ok(Decoder { tokens, wrapped, events, factories })
    }

    /// In the order of the settings.
    pub(super) fn factories(&self) -> &[Factory] {
        &self.factories
    }

    /// The events in which factories name what they made.
    pub(super) fn factory_filters(&self) -> Vec<LogFilter> {
        let filter = |factory: &Factory| {
            let mut addresses = factory.creates.emitters.clone();
            addresses.sort();
            addresses.dedup();
            LogFilter { addresses, topics0: factory.creates.topic0.into_iter().collect() }
        };
        self.factories.iter().map(filter).collect()
    }

    /// The logs of contracts that this factory made; of more than some number, those of any contract are asked for.
    pub(super) fn made_filters(&self, factory: usize, mut made: Vec<Address>) -> Option<LogFilter> {
        let Factory { tokens, events, .. } = self.factories.get(factory)?;
        let any_token = matches!(self.tokens, Tokens::All);
        let transfers = (*tokens && !any_token).then_some(TRANSFER);
        let mut topics0: Vec<B256> = events.iter().filter_map(|s| s.topic0).chain(transfers).collect();
        if topics0.is_empty() || made.is_empty() {
            return None;
        }
        topics0.sort();
        topics0.dedup();
        if made.len() > ADDRESSES_PER_FILTER {
            made.clear();
        }
        made.sort();
        made.dedup();
        Some(LogFilter { addresses: made, topics0 })
    }

    /// What to ask nodes for: together these match every log that [`decode`](Decoder::decode) makes something of.
    pub fn filters(&self) -> Vec<LogFilter> {
        let mut by_addresses: BTreeMap<Vec<Address>, Vec<B256>> = BTreeMap::new();
        let mut want = |mut addresses: Vec<Address>, topic: B256| {
            addresses.sort();
            addresses.dedup();
            if addresses.len() <= ADDRESSES_PER_FILTER {
                by_addresses.entry(addresses).or_default().push(topic);
            } else {
                for part in addresses.chunks(ADDRESSES_PER_FILTER) {
                    by_addresses.entry(part.to_vec()).or_default().push(topic);
                }
            }
        };
        let wrapped: Vec<Address> = self.wrapped.iter().filter(|a| self.tokens.include(a)).copied().collect();
        match &self.tokens {
            Tokens::All => want(Vec::new(), TRANSFER),
            Tokens::Listed(tokens) if !tokens.is_empty() => want(tokens.iter().copied().collect(), TRANSFER),
            Tokens::Listed(_) => {}
        }
        if !wrapped.is_empty() {
            want(wrapped.clone(), DEPOSIT);
            want(wrapped, WITHDRAWAL);
        }
        let mut anonymous = BTreeSet::new();
        for signature in self.events.iter() {
            match signature.topic0 {
                Some(topic0) => want(signature.emitters.clone(), topic0),
                None => anonymous.extend(&signature.emitters),
            }
        }
        let mut filters: Vec<LogFilter> = by_addresses
            .into_iter()
            .map(|(addresses, mut topics0)| {
                topics0.sort();
                topics0.dedup();
                LogFilter { addresses, topics0 }
            })
            .collect();
        let anonymous: Vec<Address> = anonymous.into_iter().copied().collect();
        let parts = anonymous.chunks(ADDRESSES_PER_FILTER);
        filters.extend(parts.map(|part| LogFilter { addresses: part.to_vec(), topics0: Vec::new() }));
        filters
    }

    /// The contracts that are named in the settings, sorted: listed tokens, emitters of events, factories.
    pub(super) fn contracts(&self) -> Vec<Address> {
        let tokens = match &self.tokens {
            Tokens::All => None,
            Tokens::Listed(tokens) => Some(tokens),
        };
        let emitters = self.events.iter().flat_map(|signature| &signature.emitters);
        let contracts: BTreeSet<Address> = tokens.into_iter().flatten().chain(emitters).copied().collect();
        contracts.into_iter().collect()
    }

    /// Reads one block's logs, in any order. An exact copy of a log counts once.
    pub fn decode(&self, logs: Vec<RawLog>) -> Decoded {
        self.decode_following(logs, &mut Following::nobody())
    }

    /// As [`decode`](Decoder::decode); contracts that factories made count from the log on that names them.
    pub(super) fn decode_following(&self, logs: Vec<RawLog>, following: &mut Following<'_>) -> Decoded {
        let mut by_place: BTreeMap<(u64, u64), Vec<RawLog>> = BTreeMap::new();
        for log in logs {
            let there = by_place.entry((log.tx_index, log.log_index)).or_default();
            if !there.iter().any(|other| same_log(other, &log)) {
                there.push(log);
            }
        }
        let mut decoded = Decoded::default();
        let mut names = Names::default();
        for ((tx_index, event_index), logs) in by_place {
            let mut meanings: Vec<Meaning> = logs.iter().map(|log| self.meaning(log, following, &mut names)).collect();
            let meaning = match meanings.pop() {
                Some(only) if meanings.is_empty() => only,
                Some(Meaning::Nothing) if meanings.iter().all(|m| matches!(m, Meaning::Nothing)) => continue,
                // Which of them is true is not for us to guess: a wrong balance is worse than one that is missing.
                Some(_) => Meaning::Refused("position_taken"),
                None => continue,
            };
            if matches!(meaning, Meaning::Nothing) {
                continue;
            }
            let known_tx = decoded.transactions.last().filter(|tx| tx.tx_index == tx_index);
            let hash = logs.first().map_or("", |log| log.tx_hash.as_str());
            let meaning = match known_tx {
                _ if matches!(meaning, Meaning::Refused("bad_log")) => meaning,
                Some(tx) if !tx.hash.eq_ignore_ascii_case(hash) => Meaning::Refused("transaction_differs"),
                Some(_) => meaning,
                None => {
                    let hash = hash.to_ascii_lowercase().into();
                    decoded.transactions.push(Transaction { tx_index, hash, success: true });
                    meaning
                }
            };
            match meaning {
                Meaning::Nothing => {}
                Meaning::Movement(event) => decoded.token_events.push(event),
                Meaning::Event(event) => {
                    self.made(&event).for_each(|(factory, contract)| following.add(factory, contract));
                    decoded.events.push(event);
                }
                Meaning::Refused(reason) => decoded.rejects.push(Reject {
                    // Out of bounds only in a log that is refused; the raw text keeps the truth.
                    tx_index: tx_index.min(Height::MAX.get()),
                    event_index: event_index.min(Height::MAX.get()),
                    raw: evidence(&logs),
                    reason: reason.to_owned(),
                }),
            }
        }
        decoded
    }

    /// What the factories say in these logs of a block, in order.
    pub(super) fn made_in(&self, height: Height, logs: &[RawLog]) -> Vec<Made> {
        let creates = |log: &&RawLog| {
            let topic0 = log.topics.first().and_then(|topic| read_word(topic));
            topic0.is_some() && self.factories.iter().any(|factory| factory.creates.topic0 == topic0)
        };
        let mut logs: Vec<&RawLog> = logs.iter().filter(creates).collect();
        logs.sort_by_key(|log| (log.tx_index, log.log_index));
        let mut names = Names::default();
        let mut made = Vec::new();
        for log in logs {
            if let Meaning::Event(event) = self.meaning(log, &Following::nobody(), &mut names) {
                let more = self.made(&event);
                made.extend(more.map(|(factory, contract)| Made { height, factory, contract }));
            }
        }
        made
    }

    /// Which contracts this event says were made, and by which factory.
    pub(super) fn made(&self, event: &Event) -> impl Iterator<Item = (usize, Address)> {
        let factories = self.factories.iter().enumerate();
        factories.filter_map(|(n, factory)| factory.made(event).map(|contract| (n, contract)))
    }

    fn meaning(&self, raw: &RawLog, following: &Following<'_>, names: &mut Names) -> Meaning {
        let Some(log) = Log::read(raw) else { return Meaning::Refused("bad_log") };
        let makers = || following.makers(&log.address).filter_map(|factory| self.factories.get(factory));
        // A listed token was asked for by name, so its odd transfers are worth a word; the same from any of a
        // million contracts is noise.
        let token_named = self.tokens.list(&log.address) || makers().any(|factory| factory.tokens);
        let token_wanted = token_named || self.tokens.include(&log.address);
        let is = |topic: B256| log.topics.first() == Some(&topic);
        if is(TRANSFER) && token_wanted {
            if let Some(parts) = transfer(&log) {
                return self.movement(raw, &log, names, parts, token_named);
            }
        } else if (is(DEPOSIT) || is(WITHDRAWAL)) && token_wanted && self.wrapped.contains(&log.address) {
            return match wrapping(&log) {
                Some((holder, amount)) if is(DEPOSIT) => {
                    self.movement(raw, &log, names, (Address::ZERO, holder, amount), token_named)
                }
                Some((holder, amount)) => self.movement(raw, &log, names, (holder, Address::ZERO, amount), token_named),
                None => Meaning::Refused("bad_transfer"),
            };
        }
        let of_made = || makers().find_map(|factory| factory.events.named(&log.topics, &log.address));
        if let Some(signature) = self.events.named(&log.topics, &log.address).or_else(of_made) {
            return match signature.attributes(&log.topics, &log.data) {
                Ok(attributes) => Meaning::Event(event(raw, &log, names, signature, attributes)),
                Err(_) => Meaning::Refused("bad_event"),
            };
        }
        if is(TRANSFER) && token_named && log.topics.len() != 4 {
            return Meaning::Refused("bad_transfer");
        }
        if let Some(signature) = self.events.anonymous(&log.topics, &log.address)
            && let Ok(attributes) = signature.attributes(&log.topics, &log.data)
        {
            return Meaning::Event(event(raw, &log, names, signature, attributes));
        }
        Meaning::Nothing
    }

    /// A movement from nobody to nobody changes nothing: it is left out, or refused if it names an amount.
    fn movement(
        &self,
        raw: &RawLog,
        log: &Log,
        names: &mut Names,
        parts: (Address, Address, U256),
        token_named: bool,
    ) -> Meaning {
        let (from, to, amount) = parts;
        if from.is_zero() && to.is_zero() {
            return if token_named && !amount.is_zero() { Meaning::Refused("no_party") } else { Meaning::Nothing };
        }
        let mut side = |address: Address| (!address.is_zero()).then(|| names.of(&address));
        let (from, to) = (side(from), side(to));
        Meaning::Movement(TokenEvent {
            tx_index: raw.tx_index,
            event_index: raw.log_index,
            token: names.of(&log.address),
            from,
            to,
            amount,
        })
    }
}

impl Log {
    fn read(raw: &RawLog) -> Option<Log> {
        let bounded = raw.tx_index <= Height::MAX.get() && raw.log_index <= Height::MAX.get();
        // Whatever reads as a log is then safe to keep: no NUL, bounded where Postgres wants it bounded.
        read_word(&raw.tx_hash).filter(|_| bounded && raw.topics.len() <= 4)?;
        Some(Log {
            address: parse_address(&raw.address)?,
            topics: raw.topics.iter().map(|t| read_word(t)).collect::<Option<_>>()?,
            data: hex::decode(strip(&raw.data)?).ok()?,
        })
    }
}

fn event(raw: &RawLog, log: &Log, names: &mut Names, signature: &Signature, attributes: Value) -> Event {
    Event {
        tx_index: raw.tx_index,
        event_index: raw.log_index,
        emitter: names.of(&log.address),
        name: signature.name.as_str().into(),
        keys: log.topics.iter().map(|t| hex_text(t.as_slice())).collect(),
        data: words(&log.data),
        attributes,
    }
}

/// From, to and amount, if this is an ERC-20 Transfer to the letter.
fn transfer(log: &Log) -> Option<(Address, Address, U256)> {
    let [_, from, to] = log.topics.as_slice() else { return None };
    Some((clean_address(from)?, clean_address(to)?, amount(&log.data)?))
}

/// Holder and amount of a wrapped native token's Deposit or Withdrawal.
fn wrapping(log: &Log) -> Option<(Address, U256)> {
    let [_, holder] = log.topics.as_slice() else { return None };
    Some((clean_address(holder)?, amount(&log.data)?))
}

fn clean_address(topic: &B256) -> Option<Address> {
    topic[..12].iter().all(|b| *b == 0).then(|| Address::from_word(*topic))
}

fn amount(data: &[u8]) -> Option<U256> {
    <[u8; 32]>::try_from(data).ok().map(U256::from_be_bytes)
}

fn strip(text: &str) -> Option<&str> {
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"))?;
    // `hex::decode` would take a second prefix.
    (!digits.starts_with("0x")).then_some(digits)
}

pub(super) fn read_word(text: &str) -> Option<B256> {
    let digits = strip(text)?;
    let mut bytes = [0u8; 32];
    hex::decode_to_slice(digits, &mut bytes).ok()?;
    Some(B256::from(bytes))
}

fn hex_text(bytes: &[u8]) -> Text {
    hex::encode_prefixed(bytes).into()
}

/// Data in words of 32 bytes; data of another size stays one item.
fn words(data: &[u8]) -> Vec<Text> {
    if data.len().is_multiple_of(32) { data.chunks(32).map(hex_text).collect() } else { vec![hex_text(data)] }
}

fn same_log(a: &RawLog, b: &RawLog) -> bool {
    a.address.eq_ignore_ascii_case(&b.address)
        && a.data.eq_ignore_ascii_case(&b.data)
        && a.tx_hash.eq_ignore_ascii_case(&b.tx_hash)
        && a.topics.len() == b.topics.len()
        && a.topics.iter().zip(&b.topics).all(|(a, b)| a.eq_ignore_ascii_case(b))
}

/// The refused logs as they came: one as itself, several as a list. NUL is shown, since jsonb cannot hold it.
fn evidence(logs: &[RawLog]) -> Value {
    let show = |text: &String| Value::String(text.replace('\0', "\\0"));
    let one = |log: &RawLog| {
        serde_json::json!({
            "address": show(&log.address),
            "topics": log.topics.iter().map(show).collect::<Vec<_>>(),
            "data": show(&log.data),
            "tx_hash": show(&log.tx_hash),
            "tx_index": log.tx_index,
            "log_index": log.log_index,
        })
    };
    match logs {
        [only] => one(only),
        many => Value::Array(many.iter().map(one).collect()),
    }
}

fn addresses(setting: &str, texts: &[String]) -> Result<HashSet<Address>, SourceError> {
    let read = |text: &String| {
        parse_address(text.trim()).ok_or_else(|| {
            SourceError::permanent(format!("{setting} {text:?} is not an address: 0x and 40 hex digits are wanted"))
        })
    };
    texts.iter().map(read).collect()
}

/// One text for each address of a block: the same few appear again and again.
#[derive(Default)]
struct Names(HashMap<Address, Text>);

impl Names {
    fn of(&mut self, address: &Address) -> Text {
        self.0.entry(*address).or_insert_with(|| hex_text(address.as_slice())).clone()
    }
}
