//! Plain chain values: heights, hashes, blocks and what they hold. No I/O, no clock, no SQL.

pub mod decide;
pub mod delta;
pub mod dice;
pub mod felt;
pub mod fence;
pub mod opening;
pub mod plan;
pub mod verdict;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use ruint::aliases::U256;
use serde_json::Value;

use felt::Felt;

/// Event amount: an exact integer, at least 0 and below 2^256 (DESIGN 3).
pub type Amount = U256;

/// Text in the chain's canonical form: an address, a token, a hash. Shared, since one block names the same few often.
pub type Text = Arc<str>;

/// Local number of a chain (`chains.chain_id`), not the id the network gives itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChainId(pub i64);

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Block height: 0 is genesis. Bounded by `bigint` at rest, so at most 2^63 - 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, serde::Deserialize)]
#[serde(try_from = "i64")]
pub struct Height(u64);

impl Height {
    /// The highest height that can be stored (`bigint`).
    pub const MAX: Height = Height(i64::MAX as u64);

    /// A height, if it can be stored.
    pub const fn new(height: u64) -> Option<Height> {
        if height <= i64::MAX as u64 { Some(Height(height)) } else { None }
    }

    /// The height as a plain number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The height as Postgres stores it.
    pub const fn to_sql(self) -> i64 {
        self.0 as i64
    }

    /// The height after this one; `MAX` has itself.
    #[must_use]
    pub const fn next(self) -> Height {
        if self.0 < i64::MAX as u64 { Height(self.0 + 1) } else { self }
    }

    /// The height before this one, if this is not genesis.
    #[must_use]
    pub const fn prev(self) -> Option<Height> {
        if self.0 > 0 { Some(Height(self.0 - 1)) } else { None }
    }

    /// `n` heights lower, at least 0.
    #[must_use]
    pub const fn minus(self, n: u64) -> Height {
        Height(self.0.saturating_sub(n))
    }

    /// `n` heights higher, at most `MAX`.
    #[must_use]
    pub const fn plus(self, n: u64) -> Height {
        let sum = self.0.saturating_add(n);
        if sum > i64::MAX as u64 { Height::MAX } else { Height(sum) }
    }
}

impl fmt::Display for Height {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<u32> for Height {
    fn from(height: u32) -> Height {
        Height(u64::from(height))
    }
}

impl TryFrom<i64> for Height {
    type Error = NegativeHeight;

    fn try_from(height: i64) -> Result<Height, NegativeHeight> {
        u64::try_from(height).map(Height).map_err(|_| NegativeHeight(height))
    }
}

/// A number from outside that should have been a height.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a height: heights start at 0")]
pub struct NegativeHeight(pub i64);

/// Block hash in the chain's canonical text form.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hash(Text);

impl Hash {
    /// Takes the text as it is: whoever reads it from outside brings it into canonical form first.
    pub fn new(text: impl Into<Text>) -> Hash {
        Hash(text.into())
    }

    /// The hash as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names one block.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BlockRef {
    /// Its height.
    pub height: Height,
    /// Its hash.
    pub hash: Hash,
}

impl fmt::Display for BlockRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.height, self.hash)
    }
}

/// Names one block and its parent: what a chain is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its height.
    pub height: Height,
    /// Its hash.
    pub hash: Hash,
    /// The hash of the block before it.
    pub parent_hash: Hash,
}

impl Link {
    /// The block this link names.
    pub fn block_ref(&self) -> BlockRef {
        BlockRef { height: self.height, hash: self.hash.clone() }
    }
}

/// A block with all that it holds, as a source read it.
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    /// Its place in the chain.
    pub link: Link,
    /// When the chain says it was made; unrelated to our clock.
    pub time: Option<jiff::Timestamp>,
    /// In ascending `tx_index`; a source may leave out transactions without events.
    pub transactions: Vec<Transaction>,
    /// In ascending (tx_index, event_index).
    pub token_events: Vec<TokenEvent>,
    /// In ascending (tx_index, event_index); no position is in both lists.
    pub events: Vec<Event>,
    /// What could not be read as an event; kept as evidence in `rejected_events`.
    pub rejects: Vec<Reject>,
}

/// One transaction of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// Its place in the block, from 0.
    pub tx_index: u64,
    /// Its hash.
    pub hash: Text,
    /// Whether it took effect.
    pub success: bool,
}

/// A token movement. No `from`: mint. No `to`: burn. Never neither.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenEvent {
    /// Place of its transaction in the block.
    pub tx_index: u64,
    /// Its own place; up to 2^63 - 1 (EVM log indexes go to 2^32 - 1).
    pub event_index: u64,
    /// The token's address or path.
    pub token: Text,
    /// Who gave; none for a mint.
    pub from: Option<Text>,
    /// Who received; none for a burn.
    pub to: Option<Text>,
    /// Base units.
    pub amount: Amount,
}

/// Anything a contract said that is not a token movement.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Place of its transaction in the block.
    pub tx_index: u64,
    /// Its own place.
    pub event_index: u64,
    /// Who said it.
    pub emitter: Text,
    /// Its name, as its signature gives it.
    pub name: Text,
    /// Indexed parts as the chain has them.
    pub keys: Vec<Text>,
    /// The other parts as the chain has them.
    pub data: Vec<Text>,
    /// Named, decoded values.
    pub attributes: Value,
}

/// An event that could not be taken in.
#[derive(Debug, Clone, PartialEq)]
pub struct Reject {
    /// Place of its transaction in the block.
    pub tx_index: u64,
    /// Its own place.
    pub event_index: u64,
    /// The event as it came.
    pub raw: Value,
    /// A fixed word that counts can be kept by, such as `bad_amount`.
    pub reason: String,
}

/// What an account held before the first block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpeningBalance {
    /// The token's address or path.
    pub token: Text,
    /// Whose balance.
    pub address: Text,
    /// Base units; signed, since history that is missing may have left a debt.
    pub amount: delta::Delta,
}

/// Which grammar a chain's texts follow (`chains.kind`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Kind {
    /// Ethereum and its like: 0x hex, lower case.
    Evm,
    /// gno.land: bech32 addresses, token paths.
    Gno,
    /// Starknet: felts as 0x hex.
    Starknet,
    /// Any text.
    #[default]
    Other,
}

impl Kind {
    /// Each of them.
    pub const ALL: [Kind; 4] = [Kind::Evm, Kind::Gno, Kind::Starknet, Kind::Other];

    /// The word in `chains.kind`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Evm => "evm",
            Kind::Gno => "gno",
            Kind::Starknet => "starknet",
            Kind::Other => "other",
        }
    }

    /// The kind a word names.
    pub fn parse(word: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|k| k.as_str() == word)
    }

    /// Whether `text` can be an account of a chain of this kind, in canonical form.
    ///
    /// EVM: `0x` and 40 lower-case hex digits. Starknet: `0x` and 1 to 63 of them without leading zeros, since a felt with
    /// two texts would be two accounts. Gno: specs section 4.1 rule 7. Other: any text that is not empty and holds no NUL.
    pub fn is_address(self, text: &str) -> bool {
        match self {
            Kind::Evm => text.len() == 42 && is_lower_hex(text),
            Kind::Starknet => text.len() <= 65 && Felt::is_canonical(text),
            Kind::Gno => is_gno_address(text),
            Kind::Other => !text.is_empty() && !text.contains('\0'),
        }
    }

    /// The canonical form of a text on a chain of this kind: as [`canonical`] has it, and on Starknet without leading zeros.
    ///
    /// # Errors
    /// As for [`canonical`].
    pub fn canonical(self, given: &str) -> Result<Cow<'_, str>, &'static str> {
        let text = canonical(given)?;
        if self != Kind::Starknet || Felt::is_canonical(&text) || !is_lower_hex(&text) {
            return Ok(text);
        }
        let digits = text[2..].trim_start_matches('0');
        Ok(Cow::Owned(format!("0x{}", if digits.is_empty() { "0" } else { digits })))
    }

    /// Whether `text` can be a token of a chain of this kind.
    pub fn is_token(self, text: &str) -> bool {
        match self {
            Kind::Evm | Kind::Starknet => self.is_address(text),
            Kind::Gno => is_gno_token(text),
            Kind::Other => !text.is_empty() && !text.contains('\0'),
        }
    }
}

/// The canonical form of a text: 0x hex in lower case, any other text as it is.
///
/// # Errors
/// A fixed word for what Postgres would refuse: empty, a NUL inside, or `0x` text with capitals that is not hex (to lower
/// it would make one account of two).
pub fn canonical(given: &str) -> Result<Cow<'_, str>, &'static str> {
    let bytes = given.as_bytes();
    if bytes.is_empty() {
        return Err("empty_text");
    }
    if bytes.contains(&0) {
        return Err("nul_in_text");
    }
    if bytes.len() >= 2 && bytes[0] == b'0' && (bytes[1] | 0x20) == b'x' && bytes.iter().any(u8::is_ascii_uppercase) {
        if !bytes[2..].iter().all(u8::is_ascii_hexdigit) {
            return Err("not_canonical");
        }
        return Ok(Cow::Owned(given.to_ascii_lowercase()));
    }
    Ok(Cow::Borrowed(given))
}

fn is_lower_hex(text: &str) -> bool {
    text.strip_prefix("0x").is_some_and(|digits| {
        !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

/// Bech32 (not bech32m), lower case, prefix `g`, 20 bytes: 40 characters in all.
fn is_gno_address(text: &str) -> bool {
    text.len() == 40
        && !text.bytes().any(|b| b.is_ascii_uppercase())
        && bech32::primitives::decode::CheckedHrpstring::new::<bech32::Bech32>(text)
            .is_ok_and(|parsed| parsed.hrp().as_str() == "g" && parsed.byte_iter().count() == 20)
}

/// `realm`, `realm.SYMBOL` or `realm.SYMBOL.sequence`, at most 256 bytes (specs/gno-token-balances 4.2, 7.4).
fn is_gno_token(text: &str) -> bool {
    let Some(last_slash) = text.rfind('/') else { return false };
    let (realm, rest) = match text[last_slash..].find('.') {
        Some(dot) => (&text[..last_slash + dot], Some(&text[last_slash + dot + 1..])),
        None => (text, None),
    };
    let mut segments = realm.split('/');
    let domain = segments.next().unwrap_or_default();
    let labels: Vec<&str> = domain.split('.').collect();
    let top = labels.last().copied().unwrap_or_default();
    let label_ok =
        |l: &&str| !l.is_empty() && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let segment_ok = |s: &str| {
        !s.is_empty() && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
    };
    let symbol_ok = rest.is_none_or(|rest| {
        let mut parts = rest.split('.');
        let symbol = parts.next().unwrap_or_default();
        let sequence = parts.next();
        !symbol.is_empty()
            && !symbol.bytes().any(|b| b.is_ascii_whitespace() || b == 0)
            && sequence.is_none_or(|s| {
                (s.len() == 7 || s.len() == 13) && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
            })
            && parts.next().is_none()
    });
    text.len() <= 256
        && labels.len() >= 2
        && labels.iter().all(label_ok)
        && top.len() >= 2
        && top.bytes().all(|b| b.is_ascii_lowercase())
        && segments.clone().count() >= 1
        && segments.all(segment_ok)
        && symbol_ok
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heights_stay_inside_bigint() {
        assert_eq!(Height::new(i64::MAX as u64 + 1), None);
        assert_eq!(Height::MAX.next(), Height::MAX);
        assert_eq!(Height::from(0).prev(), None);
        assert_eq!(Height::try_from(-1i64), Err(NegativeHeight(-1)));
    }

    #[test]
    fn each_kind_knows_its_addresses() {
        let evm = "0x00000000000000000000000000000000000000ff";
        assert!(Kind::Evm.is_address(evm));
        assert!(!Kind::Evm.is_address(&evm.to_uppercase()));
        assert!(!Kind::Evm.is_address("alice"));
        assert!(Kind::Starknet.is_address("0x1"));
        assert!(Kind::Starknet.is_address("0x0"));
        assert!(Kind::Starknet.is_address(&format!("0x7{}", "f".repeat(62))));
        for text in ["0x", "0x01", "0x00", "0xA"] {
            assert!(!Kind::Starknet.is_address(text), "{text}");
        }
        assert!(!Kind::Starknet.is_address(&format!("0x7{}", "f".repeat(63))));
        assert!(Kind::Other.is_address("alice"));
        assert!(!Kind::Other.is_address(""));
        assert!(Kind::Gno.is_address("g1jg8mtutu9khhfwc4nxmuhcpftf0pajdhfvsqf5"));
        assert!(!Kind::Gno.is_address("g1jg8mtutu9khhfwc4nxmuhcpftf0pajdhfvsqf6"));
    }

    #[test]
    fn hex_is_lowered_and_other_text_is_kept() {
        assert_eq!(canonical("0XAB").as_deref(), Ok("0xab"));
        assert_eq!(canonical("0xab").as_deref(), Ok("0xab"));
        assert_eq!(canonical("Alice").as_deref(), Ok("Alice"));
        assert_eq!(canonical("0xAlice"), Err("not_canonical"));
        assert_eq!(canonical("0xzebra").as_deref(), Ok("0xzebra"));
        assert_eq!(canonical(""), Err("empty_text"));
        assert_eq!(canonical("a\0b"), Err("nul_in_text"));
        for (given, text) in [
            ("0x00Ab", "0xab"),
            ("0X0", "0x0"),
            ("0x000", "0x0"),
            ("0x10", "0x10"),
            ("0x0zebra", "0x0zebra"),
            ("a", "a"),
        ] {
            assert_eq!(Kind::Starknet.canonical(given).as_deref(), Ok(text));
        }
        assert_eq!(Kind::Starknet.canonical("0x0Zebra"), Err("not_canonical"));
        assert_eq!(Kind::Evm.canonical("0x00Ab").as_deref(), Ok("0x00ab"));
        assert_eq!(Kind::Other.canonical("0x00Ab").as_deref(), Ok("0x00ab"));
    }

    #[test]
    fn gno_token_paths_follow_the_grammar() {
        for good in [
            "gno.land/r/demo/wugnot",
            "gno.land/r/gnoswap/v1/test_token/baz.BAZ",
            "gno.land/r/gnoland/wugnot.wugnot.0000000",
        ] {
            assert!(Kind::Gno.is_token(good), "{good}");
        }
        for bad in
            ["gno.land", "gno.land/", "gno.land/r/../x", "Gno.land/r/x", "gno.land/r/X", "gno.land/r/x.", "x/r/y"]
        {
            assert!(!Kind::Gno.is_token(bad), "{bad}");
        }
    }
}
