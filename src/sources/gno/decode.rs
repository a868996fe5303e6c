//! From an event as the chain gives it to a token movement, or to the reason why it is none. Pure.
//!
//! Rules, in order: specs/gno-token-balances 4.1 and 4.2. A package path is set by the chain and cannot be forged;
//! attributes can. So a token's id is believed where a trusted library said it, and from a realm only about itself.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::chain::{Amount, Event, Kind, Reject, Text, TokenEvent};
use crate::sources::words::{listed, name_to_show};
use crate::sources::{SourceError, TokenMetadata};

/// The two paths the GRC20 library has had; the move was on 2025-09-04.
const LIBRARIES: [&str; 2] = ["gno.land/p/demo/grc/grc20", "gno.land/p/demo/tokens/grc20"];
/// What the library says when a token is made (since 2026-08-07).
pub(super) const NEW_TOKEN: &str = "NewToken";
const TRANSFER: &str = "Transfer";
/// Longest package path that `events.emitter` holds.
const LONGEST_EMITTER: usize = 512;

/// One attribute of an event.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Attribute {
    /// Its name; may come twice.
    pub key: String,
    /// Its value.
    pub value: String,
}

/// One item of `response.events`; kinds that were not selected come with nothing, or with their type's name alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct WireEvent {
    /// Which kind of event; `GnoEvent` for what packages emit.
    #[serde(rename = "__typename", default, skip_serializing_if = "Option::is_none")]
    pub typename: Option<String>,
    /// The event's own type, as its package named it.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub event_type: Option<String>,
    /// The package whose code emitted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pkg_path: Option<String>,
    /// The function that emitted it; only before tx-indexer v0.7.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub func: Option<String>,
    /// `null` where there are none.
    #[serde(default)]
    pub attrs: Option<Vec<Attribute>>,
}

/// Settings of [`Decoder`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodeSettings {
    /// Libraries that are believed about any realm's token. Defaults to both paths of the GRC20 library.
    pub trusted_grc20_packages: Vec<String>,
    /// Token ids, `realm.SYMBOL` or realm paths to keep. Empty: every token. The one word `none`: no token at all.
    pub tokens: Vec<String>,
    /// Types of other events to keep, such as `Approval`; none of them by default.
    pub events: Vec<String>,
    /// Whether `func` must be Mint, Burn or Transfer and fit the movement; for servers before v0.7.0 alone, since later
    /// ones refuse to be asked for it. Defaults to false: the direction decides.
    pub require_func: bool,
}

impl Default for DecodeSettings {
    fn default() -> DecodeSettings {
        DecodeSettings {
            trusted_grc20_packages: LIBRARIES.map(str::to_owned).to_vec(),
            tokens: Vec::new(),
            events: Vec::new(),
            require_func: false,
        }
    }
}

/// What an event is to the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Not a token movement.
    Ignore,
    /// It looks like one but cannot be taken in, for this reason (a fixed word).
    Reject(&'static str),
    /// A token movement.
    Accept(Movement),
}

/// A token movement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Movement {
    /// The token, as its id.
    pub token_path: String,
    /// The realm it belongs to.
    pub realm_path: String,
    /// Its ticker, where the id holds one.
    pub symbol: Option<String>,
    /// Who gave; None means a mint.
    pub from: Option<String>,
    /// Who received; None means a burn.
    pub to: Option<String>,
    /// Base units.
    pub amount: Amount,
}

impl Movement {
    /// `mint`, `burn` or `transfer`.
    pub fn kind(&self) -> &'static str {
        match (&self.from, &self.to) {
            (None, _) => "mint",
            (_, None) => "burn",
            _ => "transfer",
        }
    }
}

/// What the events of some transactions come to.
#[derive(Debug, Default, PartialEq)]
pub struct Decoded {
    /// Token movements.
    pub token_events: Vec<TokenEvent>,
    /// Other events that are kept.
    pub events: Vec<Event>,
    /// What could not be taken in.
    pub rejects: Vec<Reject>,
    /// Tokens announced, with the places of their announcements.
    pub announced: Vec<((u64, u64), TokenMetadata)>,
}

/// Decides about events.
#[derive(Debug)]
pub struct Decoder {
    trusted: HashSet<String>,
    /// None: every token.
    tokens: Option<HashSet<String>>,
    events: HashSet<String>,
    pub(super) require_func: bool,
}

impl Decoder {
    /// Checks the settings.
    ///
    /// # Errors
    /// Permanent, naming the setting.
    pub fn new(settings: DecodeSettings) -> Result<Decoder, SourceError> {
        let refuse = |setting: &str, text: &str, wanted: &str| {
            Err(SourceError::permanent(format!("{setting} {text:?} is not usable: {wanted}")))
        };
        for package in &settings.trusted_grc20_packages {
            if !Kind::Gno.is_token(package) || split_id(package).1.is_some() {
                return refuse("trusted_grc20_packages", package, "a package path is wanted, as gno.land/p/demo/x");
            }
        }
        let tokens = listed(&settings.tokens).map(|listed| listed.iter().cloned().collect::<HashSet<_>>());
        for token in tokens.iter().flatten() {
            if !Kind::Gno.is_token(token) {
                return refuse("tokens", token, "a token id or a realm path is wanted, as gno.land/r/demo/wugnot");
            }
        }
        for event in &settings.events {
            if event.is_empty() || event.contains('\0') {
                return refuse("events", event, "the type of an event is wanted, as Approval");
            }
            if event == TRANSFER {
                return refuse("events", event, "Transfer is always read, as a token movement");
            }
        }
        Ok(Decoder {
            trusted: settings.trusted_grc20_packages.into_iter().collect(),
            tokens,
            events: settings.events.into_iter().collect(),
            require_func: settings.require_func,
        })
    }

    /// The libraries that are believed.
    pub(super) fn trusted(&self) -> impl Iterator<Item = &str> {
        self.trusted.iter().map(String::as_str)
    }

    /// Whether this event moves a token.
    pub fn verdict(&self, event: &WireEvent) -> Verdict {
        if event.typename.as_deref() != Some("GnoEvent") || event.event_type.as_deref() != Some(TRANSFER) {
            return Verdict::Ignore;
        }
        let func = event.func.as_deref().unwrap_or_default();
        if self.require_func && !matches!(func, "Mint" | "Burn" | TRANSFER) {
            return Verdict::Ignore;
        }
        match self.movement(event) {
            Ok(movement) if self.require_func && !func.eq_ignore_ascii_case(movement.kind()) => Verdict::Ignore,
            Ok(movement) => Verdict::Accept(movement),
            Err(reason) => Verdict::Reject(reason),
        }
    }

    fn movement(&self, event: &WireEvent) -> Result<Movement, &'static str> {
        let attrs = event.attrs.as_deref().unwrap_or_default();
        let [from, to, value, token] = ["from", "to", "value", "token"].map(|key| the_one(attrs, key));
        let (from, to, value, token) = (from?, to?, value?, token?);
        // An NFT's Transfer has no value.
        let (Some(from), Some(to), Some(value)) = (from, to, value) else { return Err("missing_attr") };
        let token_path = self.token_of(event.pkg_path.as_deref().unwrap_or_default(), token.unwrap_or_default())?;
        let amount = read_amount(value)?;
        if from.is_empty() && to.is_empty() {
            return Err("no_party");
        }
        let side = |address: &str| match address {
            "" => Ok(None),
            address if Kind::Gno.is_address(address) => Ok(Some(address.to_owned())),
            _ => Err("bad_address"),
        };
        let (from, to) = (side(from)?, side(to)?);
        let (realm, symbol) = split_id(&token_path);
        let (realm_path, symbol) = (realm.to_owned(), symbol.map(str::to_owned));
        Ok(Movement { token_path, realm_path, symbol, from, to, amount })
    }

    /// Which token is meant, as a well-formed id. A realm without a token's name is a token of its own (the func era).
    fn token_of(&self, package: &str, token: &str) -> Result<String, &'static str> {
        if self.trusted.contains(package) {
            return match token {
                "" => Err("no_token"),
                token if is_token_id(token) => Ok(token.to_owned()),
                _ => Err("bad_token"),
            };
        }
        if matches!(second_segment(package), None | Some("p")) {
            return Err("untrusted_emitter");
        }
        let path = match token {
            "" => package.to_owned(),
            token if token == package => package.to_owned(),
            token if token.strip_prefix(package).is_some_and(|rest| rest.starts_with('.')) => token.to_owned(),
            token if !token.contains(['/', '.']) => format!("{package}.{token}"),
            _ => return Err("token_mismatch"),
        };
        if Kind::Gno.is_token(&path) { Ok(path) } else { Err("bad_token") }
    }

    fn wants(&self, movement: &Movement) -> bool {
        let Some(tokens) = &self.tokens else { return true };
        let without_sequence = || {
            let symbol = movement.symbol.as_ref()?;
            Some(tokens.contains(&format!("{}.{symbol}", movement.realm_path)))
        };
        tokens.contains(&movement.token_path)
            || tokens.contains(&movement.realm_path)
            || without_sequence().unwrap_or_default()
    }

    /// Takes in the events of one transaction that took effect. An event's place is its place in the whole list, with
    /// items that hold nothing counted: that is the same in every version of the indexer.
    pub fn take(&self, tx_index: u64, events: &[Option<WireEvent>], into: &mut Decoded) {
        for (event_index, event) in (0..).zip(events) {
            let Some(event) = event else { continue };
            match self.verdict(event) {
                Verdict::Ignore => self.keep_other(tx_index, event_index, event, into),
                Verdict::Reject(reason) => {
                    into.rejects.push(Reject { tx_index, event_index, raw: evidence(event), reason: reason.to_owned() })
                }
                Verdict::Accept(movement) if self.wants(&movement) => into.token_events.push(TokenEvent {
                    tx_index,
                    event_index,
                    token: movement.token_path.into(),
                    from: movement.from.map(Text::from),
                    to: movement.to.map(Text::from),
                    amount: movement.amount,
                }),
                Verdict::Accept(_) => {}
            }
        }
    }

    /// Announcements of tokens are always kept: that one id was announced twice must be known after a restart, too.
    fn keep_other(&self, tx_index: u64, event_index: u64, event: &WireEvent, into: &mut Decoded) {
        let (Some("GnoEvent"), Some(name)) = (event.typename.as_deref(), event.event_type.as_deref()) else { return };
        let package = event.pkg_path.as_deref().unwrap_or_default();
        let announces = name == NEW_TOKEN && self.trusted.contains(package);
        // A Transfer that `require_func` has sorted out is nobody's.
        if !announces && !self.events.contains(name) {
            return;
        }
        if package.is_empty() || package.len() > LONGEST_EMITTER || package.contains('\0') {
            into.rejects.push(Reject { tx_index, event_index, raw: evidence(event), reason: "bad_emitter".to_owned() });
            return;
        }
        let kept = Event {
            tx_index,
            event_index,
            emitter: package.into(),
            name: name.into(),
            keys: Vec::new(),
            data: Vec::new(),
            attributes: attributes(event.attrs.as_deref().unwrap_or_default()),
        };
        if announces && let Some(metadata) = announcement(&kept) {
            into.announced.push(((tx_index, event_index), metadata));
        }
        into.events.push(kept);
    }
}

/// What an announcement says of its token, if it names one. The library alone makes them, so they are believed.
pub(super) fn announcement(event: &Event) -> Option<TokenMetadata> {
    let text = |key: &str| event.attributes.get(key).and_then(Value::as_str);
    let name = |key: &str| text(key).and_then(name_to_show);
    let token = text("token").filter(|token| is_token_id(token))?;
    Some(TokenMetadata {
        token: token.into(),
        symbol: name("symbol"),
        name: name("name"),
        decimals: text("decimals").and_then(|d| d.parse::<u8>().ok()).map(i16::from),
    })
}

/// The attribute of this name; None means absent.
fn the_one<'e>(attrs: &'e [Attribute], key: &str) -> Result<Option<&'e str>, &'static str> {
    let mut values = attrs.iter().filter(|attr| attr.key == key).map(|attr| attr.value.as_str());
    let first = values.next();
    if values.any(|other| Some(other) != first) { Err("duplicate_attr") } else { Ok(first) }
}

/// Segments hold no dot, so the realm ends at the first dot after the last slash. (realm, symbol)
fn split_id(id: &str) -> (&str, Option<&str>) {
    let slash = id.rfind('/').unwrap_or_default();
    match id[slash..].find('.') {
        Some(dot) => {
            let rest = &id[slash + dot + 1..];
            (&id[..slash + dot], Some(rest.split('.').next().unwrap_or(rest)))
        }
        None => (id, None),
    }
}

fn second_segment(path: &str) -> Option<&str> {
    path.split('/').nth(1).filter(|segment| !segment.is_empty())
}

/// `realm.SYMBOL` or `realm.SYMBOL.sequence`; a library is never a token's realm.
fn is_token_id(text: &str) -> bool {
    Kind::Gno.is_token(text) && split_id(text).1.is_some() && second_segment(text) != Some("p")
}

fn read_amount(value: &str) -> Result<Amount, &'static str> {
    if value.is_empty() || !value.bytes().all(|b| b.is_ascii_digit()) {
        return Err("bad_amount");
    }
    let digits = value.trim_start_matches('0');
    if digits.is_empty() {
        return Ok(Amount::ZERO);
    }
    digits.parse::<u64>().map(Amount::from).map_err(|_| "amount_out_of_range")
}

/// `jsonb` holds no NUL; it is shown as two characters.
fn shown(text: &str) -> String {
    text.replace('\0', "\\0")
}

/// The event as it came.
fn evidence(event: &WireEvent) -> Value {
    let show = |text: &Option<String>| text.as_deref().map(shown);
    let attrs = event
        .attrs
        .as_ref()
        .map(|attrs| attrs.iter().map(|attr| Attribute { key: shown(&attr.key), value: shown(&attr.value) }).collect());
    let event = WireEvent {
        typename: show(&event.typename),
        event_type: show(&event.event_type),
        pkg_path: show(&event.pkg_path),
        func: show(&event.func),
        attrs,
    };
    // Texts alone: nothing in it can fail to be written.
    serde_json::to_value(&event).unwrap_or_default()
}

/// Attributes by name; a name that comes more than once has the list of its values.
fn attributes(attrs: &[Attribute]) -> Value {
    let mut map = Map::new();
    for attr in attrs {
        let value = Value::String(shown(&attr.value));
        match map.get_mut(&shown(&attr.key)) {
            None => {
                map.insert(shown(&attr.key), value);
            }
            Some(Value::Array(list)) => list.push(value),
            Some(one) => *one = Value::Array(vec![one.take(), value]),
        }
    }
    Value::Object(map)
}
