//! Receipts' events as chain values. Pure: the same events always give the same answer, whatever brought them here.
//!
//! What counts as a token movement: an event whose first key is the selector of `Transfer`, in one of two layouts:
//! - `keys` = selector; `data` = from, to, low, high (tokens of the first years);
//! - `keys` = selector, from, to; `data` = low, high.
//!
//! Address 0 is the missing side (a mint or a burn). An ERC-721 has the same selector. In the newer layout it has its token
//! id among the keys and moves no amount: nothing. In the older one it cannot be told from an ERC-20, so with every
//! token followed its ids count as amounts; with tokens listed, those on the list are trusted to be ERC-20s.
//!
//! Every other event of a contract that is followed becomes an [`Event`]. Contracts are followed because they are in the
//! settings, because an `OptionRoundDeployed` of such a contract names them, or because the universal deployer made them of
//! the vaults' class.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, HashSet};

use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::follow::Found;
use crate::chain::felt::{Felt, NoFelt};
use crate::chain::{Event, Height, Reject, Text, TokenEvent, Transaction};
use crate::sources::SourceError;
pub use crate::sources::decoded::Decoded;
use crate::sources::words::listed;

/// Names by which events of option vaults, of the deployer and of tokens are known (specs/option-vaults.md, section 1).
pub const EVENT_NAMES: [&str; 19] = [
    DEPLOYED,
    "Deposit",
    "Withdrawal",
    "WithdrawalQueued",
    "StashWithdrawn",
    ROUND_DEPLOYED,
    "FossilCallbackSuccess",
    "L1RequestFulfilled",
    "PricingDataSet",
    "AuctionStarted",
    "AuctionEnded",
    "OptionRoundSettled",
    "BidPlaced",
    "BidUpdated",
    "OptionsMinted",
    "UnusedBidsRefunded",
    "OptionsExercised",
    "Transfer",
    "Approval",
];

/// The universal deployer's event.
pub(super) const DEPLOYED: &str = "ContractDeployed";
/// A vault's event that names a new contract of its own.
pub(super) const ROUND_DEPLOYED: &str = "OptionRoundDeployed";
/// What an event without keys is called: it has no selector.
const ANONYMOUS: &str = "anonymous";

/// The universal deployers of the public networks: the first one, and the one that replaced it.
const UNIVERSAL_DEPLOYERS: [&str; 2] = [
    "0x41a78e741e5af2fec34b695679bc6891742439f7afb8484ecd7766661ad02bf",
    "0x2ceed65a4bd731034c01113685c831b01c15d7d432f71afb1cf1634b53a2125",
];

/// What to look for in receipts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DecodeSettings {
    /// Tokens whose Transfers count, as 0x hex; None means those of every contract. `none` alone: of no contract.
    pub tokens: Vec<String>,
    /// Contracts all of whose events are kept, and those of the rounds that they deploy.
    pub contracts: Vec<String>,
    /// Contracts that the universal deployer makes of this class are followed too.
    pub vault_class_hash: Option<String>,
    /// Only those that this account had deployed.
    pub deployer: Option<String>,
    /// Universal deployers to believe; None means those of the public networks.
    pub udc_addresses: Vec<String>,
}

/// A number in an event: a felt, or what stood in a felt's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawFelt(Result<Felt, String>);

/// A text that is only read, and copied where it has to be.
#[derive(Deserialize)]
struct Written<'r>(#[serde(borrow)] Cow<'r, str>);

impl<'de> Deserialize<'de> for RawFelt {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<RawFelt, D::Error> {
        let Written(text) = Written::deserialize(from)?;
        Ok(RawFelt(Felt::parse(&text).map_err(|_| text.into_owned())))
    }
}

impl RawFelt {
    /// What it says; what is no felt, as it came. NUL is shown, since jsonb cannot hold it.
    fn shown(&self) -> Value {
        match &self.0 {
            Ok(felt) => Value::String(felt.to_string()),
            Err(text) => Value::String(text.replace('\0', "\\0")),
        }
    }

    pub(super) fn felt(&self) -> Result<Felt, &'static str> {
        self.0.as_ref().copied().map_err(|_| "bad_felt")
    }
}

/// Reads a felt where nothing else can be meant.
pub(super) fn strict<'de, D: Deserializer<'de>>(from: D) -> Result<Felt, D::Error> {
    let Written(text) = Written::deserialize(from)?;
    Felt::parse(&text).map_err(|why| serde::de::Error::custom(format!("{text:.80?} is {why}")))
}

/// An event of a receipt.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RawEvent {
    /// Who said it.
    #[serde(deserialize_with = "strict")]
    pub from_address: Felt,
    /// The selector of its name, then what is indexed.
    pub keys: Vec<RawFelt>,
    /// The rest.
    pub data: Vec<RawFelt>,
}

/// A transaction and what it said. Its events' places are counted from 0 in each transaction, as
/// `starknet_getEvents` counts them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawTransaction {
    /// Its place in the block.
    pub tx_index: u64,
    /// Its hash.
    pub hash: Felt,
    /// False where it was reverted; its fee was paid all the same.
    pub success: bool,
    /// Its events in order, each with its place.
    pub events: Vec<(u64, RawEvent)>,
}

/// Turns events into chain values, by settings that were checked once.
#[derive(Debug, Clone)]
pub struct Decoder {
    /// None: every token.
    tokens: Option<HashSet<Felt>>,
    contracts: HashSet<Felt>,
    vaults: Option<Vaults>,
    names: HashMap<Felt, Text>,
    transfer: Felt,
    deployed: Felt,
    round_deployed: Felt,
}

#[derive(Debug, Clone)]
struct Vaults {
    class_hash: Felt,
    deployer: Option<Felt>,
    deployers: BTreeSet<Felt>,
}

enum Meaning {
    Nothing,
    Movement { from: Felt, to: Felt, amount: crate::chain::Amount },
    Event,
    Refused(&'static str),
}

/// Which events of which contract hold all that is wanted from it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Wanted {
    pub(super) address: Felt,
    /// None: all of them.
    pub(super) selector: Option<Felt>,
}

impl Decoder {
    /// A decoder for these settings.
    ///
    /// # Errors
    /// Permanent, naming the setting and the text in it that is wrong.
    pub fn new(settings: &DecodeSettings) -> Result<Decoder, SourceError> {
        let tokens = listed(&settings.tokens).map(|listed| felts("token", listed)).transpose()?;
        let tokens = tokens.map(|tokens| tokens.into_iter().collect());
        let vaults = match &settings.vault_class_hash {
            Some(class_hash) => {
                let public = UNIVERSAL_DEPLOYERS.map(str::to_owned);
                let given = settings.udc_addresses.as_slice();
                Some(Vaults {
                    class_hash: felt("vault_class_hash", class_hash)?,
                    deployer: settings.deployer.as_ref().map(|text| felt("deployer", text)).transpose()?,
                    deployers: felts("udc_address", if given.is_empty() { &public } else { given })?
                        .into_iter()
                        .collect(),
                })
            }
            None if settings.deployer.is_some() || !settings.udc_addresses.is_empty() => {
                return Err(SourceError::permanent(
                    "deployer and udc_address say whose contracts are followed: vault_class_hash, which says what \
                     they are, is missing",
                ));
            }
            None => None,
        };
        Ok(Decoder {
            tokens,
            contracts: felts("contract", &settings.contracts)?.into_iter().collect(),
            vaults,
            names: EVENT_NAMES.iter().map(|name| (Felt::selector(name), Text::from(*name))).collect(),
            transfer: Felt::selector("Transfer"),
            deployed: Felt::selector(DEPLOYED),
            round_deployed: Felt::selector(ROUND_DEPLOYED),
        })
    }

    /// The same, and these contracts too.
    pub(super) fn following(&self, more: impl Iterator<Item = Felt>) -> Decoder {
        let mut decoder = self.clone();
        decoder.contracts.extend(more);
        decoder
    }

    /// Whether the settings follow nobody at all.
    pub(super) fn follows_nobody(&self) -> bool {
        self.tokens.as_ref().is_some_and(HashSet::is_empty) && !self.discovers()
    }

    /// The round that a stored event of a followed contract names.
    pub(super) fn named_by(&self, event: &Event) -> Option<Felt> {
        self.round(&raw(event)?)
    }

    /// What following these contracts too would have added to a block: all that they said beside token movements.
    pub(super) fn decode_more(
        &self,
        contracts: &BTreeSet<Felt>,
        height: Height,
        transactions: &[RawTransaction],
    ) -> Decoded {
        let following = |contracts| Decoder { contracts, vaults: None, ..self.clone() };
        let without = following(HashSet::new()).decode(height, transactions, &mut Found::default());
        let mut more =
            following(contracts.iter().copied().collect()).decode(height, transactions, &mut Found::default());
        // Those were there before; and what contracts say that these name is not asked for.
        more.token_events.clear();
        more.events.retain(|event| Felt::parse(&event.emitter).is_ok_and(|emitter| contracts.contains(&emitter)));
        more.rejects.retain(|reject| !without.rejects.contains(reject));
        let said: BTreeSet<u64> =
            more.events.iter().map(|e| e.tx_index).chain(more.rejects.iter().map(|r| r.tx_index)).collect();
        more.transactions.retain(|tx| said.contains(&tx.tx_index));
        more
    }

    /// Whether events can name further contracts to follow.
    pub(super) fn discovers(&self) -> bool {
        !self.contracts.is_empty() || self.vaults.is_some()
    }

    /// The universal deployers that are listened to.
    pub(super) fn deployers(&self) -> impl Iterator<Item = Felt> {
        self.vaults.iter().flat_map(|vaults| vaults.deployers.iter().copied())
    }

    /// The contracts that are named in the settings, sorted.
    pub(super) fn named(&self) -> BTreeSet<Felt> {
        self.tokens.iter().flatten().chain(&self.contracts).copied().collect()
    }

    /// What to ask for so that nothing is missed; none where only whole blocks will do.
    pub(super) fn wanted(&self, found: &Found) -> Option<BTreeSet<Wanted>> {
        let tokens = self.tokens.as_ref()?;
        let followed = |address: &Felt| self.contracts.contains(address) || found.has(address);
        let all = self.contracts.iter().chain(found.contracts()).map(|a| Wanted { address: *a, selector: None });
        let transfers = tokens.iter().filter(|token| !followed(token));
        let transfers = transfers.map(|a| Wanted { address: *a, selector: Some(self.transfer) });
        let deployed = self.deployers().filter(|deployer| !followed(deployer));
        let deployed = deployed.map(|address| Wanted { address, selector: Some(self.deployed) });
        Some(all.chain(transfers).chain(deployed).collect())
    }

    /// Reads one block's transactions, in order. `found` must hold what was found below this block and nothing from here
    /// on; what this block names is added to it.
    pub fn decode(&self, height: Height, transactions: &[RawTransaction], found: &mut Found) -> Decoded {
        let mut decoded = Decoded::default();
        let mut texts = Texts::default();
        for tx in transactions {
            // A vault speaks in its constructor, before the deployer says that it is there.
            for address in tx.events.iter().filter_map(|(_, event)| self.deployment(event)) {
                found.add(address, height);
            }
            let before = decoded.len();
            for (event_index, event) in &tx.events {
                let (tx_index, event_index) = (tx.tx_index, *event_index);
                match self.meaning(event, found) {
                    Meaning::Nothing => {}
                    Meaning::Movement { from, to, amount } => {
                        let mut side = |address: Felt| (!address.is_zero()).then(|| texts.of(address));
                        let (from, to) = (side(from), side(to));
                        let token = texts.of(event.from_address);
                        decoded.token_events.push(TokenEvent { tx_index, event_index, token, from, to, amount });
                    }
                    Meaning::Event => match self.event(tx_index, event_index, event, &mut texts) {
                        Ok(kept) => {
                            if let Some(round) = self.round(event) {
                                found.add(round, height);
                            }
                            decoded.events.push(kept);
                        }
                        Err(reason) => decoded.rejects.push(reject(tx, event_index, event, reason)),
                    },
                    Meaning::Refused(reason) => decoded.rejects.push(reject(tx, event_index, event, reason)),
                }
            }
            if decoded.len() > before {
                let (tx_index, success) = (tx.tx_index, tx.success);
                decoded.transactions.push(Transaction { tx_index, hash: tx.hash.text(), success });
            }
        }
        decoded
    }

    /// Adds what stored events say of contracts to follow; `events` in chain order.
    pub(super) fn recall(&self, events: &[(Height, Event)], found: &mut Found) {
        let raws: Vec<(Height, RawEvent)> = events.iter().filter_map(|(height, e)| Some((*height, raw(e)?))).collect();
        // The vaults first: the deployer names each after its first round.
        for (height, event) in &raws {
            if let Some(address) = self.deployment(event) {
                found.add(address, *height);
            }
        }
        for (height, event) in &raws {
            if self.follows(&event.from_address, found)
                && let Some(round) = self.round(event)
            {
                found.add(round, *height);
            }
        }
    }

    fn follows(&self, address: &Felt, found: &Found) -> bool {
        self.contracts.contains(address) || found.has(address)
    }

    /// The new vault, if that is what the deployer says.
    fn deployment(&self, event: &RawEvent) -> Option<Felt> {
        let vaults = self.vaults.as_ref()?;
        let selector = event.keys.first()?.felt().ok()?;
        if selector != self.deployed || !vaults.deployers.contains(&event.from_address) {
            return None;
        }
        let [address, deployer, _unique, class_hash, ..] = event.data.as_slice() else { return None };
        let (address, deployer, class_hash) = (address.felt().ok()?, deployer.felt().ok()?, class_hash.felt().ok()?);
        let wanted = class_hash == vaults.class_hash && vaults.deployer.is_none_or(|wanted| wanted == deployer);
        wanted.then_some(address)
    }

    /// The new round, if that is what a followed contract says.
    fn round(&self, event: &RawEvent) -> Option<Felt> {
        if event.keys.first()?.felt().ok()? != self.round_deployed {
            return None;
        }
        event.data.get(1)?.felt().ok()
    }

    fn meaning(&self, event: &RawEvent, found: &Found) -> Meaning {
        let kept = self.follows(&event.from_address, found) || self.deployment(event).is_some();
        let otherwise = if kept { Meaning::Event } else { Meaning::Nothing };
        let listed = self.tokens.as_ref().is_some_and(|tokens| tokens.contains(&event.from_address));
        let is_transfer = event.keys.first().is_some_and(|key| key.0 == Ok(self.transfer));
        if !is_transfer || !(listed || self.tokens.is_none()) {
            return otherwise;
        }
        let [from, to, low, high] = match (event.keys.as_slice(), event.data.as_slice()) {
            ([_], [from, to, low, high]) | ([_, from, to], [low, high]) => [from, to, low, high],
            // An ERC-721's.
            ([_, _, _, _, _], []) => return otherwise,
            // A listed token was asked for by name, so its odd transfers are worth a word; the same from any of a
            // million contracts is noise.
            _ if listed && !kept => return Meaning::Refused("bad_transfer"),
            _ => return otherwise,
        };
        let felts = || -> Result<[Felt; 4], &'static str> { Ok([from.felt()?, to.felt()?, low.felt()?, high.felt()?]) };
        let [from, to, low, high] = match felts() {
            Ok(felts) => felts,
            Err(reason) => return Meaning::Refused(reason),
        };
        match Felt::u256(low, high) {
            None => Meaning::Refused("bad_amount"),
            Some(amount) if from.is_zero() && to.is_zero() => {
                if listed && !amount.is_zero() {
                    Meaning::Refused("no_party")
                } else {
                    otherwise
                }
            }
            Some(amount) => Meaning::Movement { from, to, amount },
        }
    }

    fn event(
        &self,
        tx_index: u64,
        event_index: u64,
        event: &RawEvent,
        texts: &mut Texts,
    ) -> Result<Event, &'static str> {
        let mut all = |felts: &[RawFelt]| {
            felts.iter().map(|felt| Ok(texts.of(felt.felt()?))).collect::<Result<Vec<Text>, &str>>()
        };
        let (keys, data) = (all(&event.keys)?, all(&event.data)?);
        let name = match event.keys.first() {
            None => ANONYMOUS.into(),
            Some(selector) => {
                let selector = selector.felt()?;
                self.names.get(&selector).cloned().unwrap_or_else(|| selector.text())
            }
        };
        let emitter = texts.of(event.from_address);
        Ok(Event { tx_index, event_index, emitter, name, keys, data, attributes: json!({}) })
    }
}

impl Wanted {
    /// Whether this is such an event.
    pub(super) fn fits(&self, event: &RawEvent) -> bool {
        let selector = || event.keys.first().map(|key| &key.0);
        event.from_address == self.address
            && self.selector.is_none_or(|wanted| selector().is_some_and(|found| *found == Ok(wanted)))
    }
}

impl Decoded {
    fn len(&self) -> usize {
        self.token_events.len() + self.events.len() + self.rejects.len()
    }
}

/// A stored event as it came.
fn raw(event: &Event) -> Option<RawEvent> {
    let raw = |text: &Text| RawFelt(Felt::parse(text).map_err(|_| text.as_ref().to_owned()));
    let raw = |texts: &[Text]| texts.iter().map(raw).collect();
    let from_address = Felt::parse(&event.emitter).ok()?;
    Some(RawEvent { from_address, keys: raw(&event.keys), data: raw(&event.data) })
}

/// The refused event as it came.
fn reject(tx: &RawTransaction, event_index: u64, event: &RawEvent, reason: &str) -> Reject {
    let raw = json!({
        "transaction_hash": tx.hash.to_string(),
        "from_address": event.from_address.to_string(),
        "keys": event.keys.iter().map(RawFelt::shown).collect::<Vec<_>>(),
        "data": event.data.iter().map(RawFelt::shown).collect::<Vec<_>>(),
    });
    Reject { tx_index: tx.tx_index, event_index, raw, reason: reason.to_owned() }
}

/// Reads a felt that a setting gave.
pub(super) fn felt(setting: &str, text: &str) -> Result<Felt, SourceError> {
    Felt::parse(text.trim()).map_err(|why| {
        let wanted = match why {
            NoFelt::NoHex => "0x and 1 to 64 hex digits are wanted",
            NoFelt::TooLarge => "a number below 2^251 + 17 * 2^192 + 1 is wanted",
        };
        SourceError::permanent(format!("{setting} {text:?} is no address or hash of Starknet: {wanted}"))
    })
}

fn felts(setting: &str, texts: &[String]) -> Result<Vec<Felt>, SourceError> {
    texts.iter().map(|text| felt(setting, text)).collect()
}

/// One text for each number of a block: the same few appear again and again.
#[derive(Default)]
struct Texts(HashMap<Felt, Text>);

impl Texts {
    fn of(&mut self, felt: Felt) -> Text {
        self.0.entry(felt).or_insert_with(|| felt.text()).clone()
    }
}
