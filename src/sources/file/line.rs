//! One line of a file: what it says, checked. Bad events become rejects; anything else that is wrong is a bad line.

use std::borrow::Cow;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::events::{self, Grammar};
use super::text::{self, Interner};
use crate::chain::opening;
use crate::chain::{Block, Hash, Height, Kind, Link, OpeningBalance, canonical};

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BadLine {
    /// Where in the line, from 1, if known.
    pub(super) column: Option<usize>,
    /// Why, as the rest of a sentence.
    pub(super) reason: String,
}

impl BadLine {
    /// Something wrong with the line as a whole.
    pub(super) fn new(reason: impl Into<String>) -> BadLine {
        BadLine { column: None, reason: reason.into() }
    }

    fn json(error: &serde_json::Error) -> BadLine {
        let whole = error.to_string();
        let reason = whole.split(" at line ").next().unwrap_or(&whole);
        BadLine { column: Some(error.column()), reason: format!("is not as it should be: {reason}") }
    }
}

/// What a line says.
#[derive(Debug)]
pub(super) enum Line {
    /// A block.
    Block(NewBlock),
    /// The chain got shorter: this known block is its tip now.
    Head(Height, Hash),
    /// What an account held before the first block.
    Opening(OpeningBalance),
}

/// A block line.
#[derive(Debug)]
pub(super) struct NewBlock {
    /// Its place in the chain.
    pub(super) link: Link,
    /// What it holds, unless the line was only passed by.
    pub(super) block: Option<Arc<Block>>,
    /// Whether its events are raw EVM logs.
    pub(super) has_logs: bool,
}

/// A line's keys. Others are ignored, since real feeds carry more than is needed here; but not those that someone
/// would write for one of these: the block would be taken as empty.
#[derive(Deserialize)]
struct Wire<'a> {
    event: Option<Cow<'a, str>>,
    height: Option<u64>,
    number: Option<u64>,
    #[serde(borrow)]
    hash: Option<Cow<'a, str>>,
    #[serde(borrow)]
    parent_hash: Option<Cow<'a, str>>,
    #[serde(borrow)]
    time: Option<&'a RawValue>,
    #[serde(borrow)]
    timestamp: Option<&'a RawValue>,
    #[serde(borrow)]
    transactions: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    token_events: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    events: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    logs: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    token: Option<Cow<'a, str>>,
    #[serde(borrow)]
    address: Option<Cow<'a, str>>,
    #[serde(borrow)]
    amount: Option<&'a RawValue>,
    #[serde(
        rename = "token_event",
        alias = "tokenEvents",
        alias = "tokenevents",
        alias = "token-events",
        alias = "token_transfers",
        alias = "tokenTransfers",
        alias = "transfers",
        alias = "transfer"
    )]
    token_events_misspelt: Option<IgnoredAny>,
    #[serde(rename = "log", alias = "Logs", alias = "raw_logs", alias = "rawLogs", alias = "receipts")]
    logs_misspelt: Option<IgnoredAny>,
}

/// The keys that make a branch; the rest of a line is passed over.
#[derive(Deserialize)]
struct WireLinks<'a> {
    event: Option<Cow<'a, str>>,
    height: Option<u64>,
    number: Option<u64>,
    #[serde(borrow)]
    hash: Option<Cow<'a, str>>,
    #[serde(borrow)]
    parent_hash: Option<Cow<'a, str>>,
}

/// Reads lines, with the settings that say how.
#[derive(Clone)]
pub(super) struct LineReader {
    grammar: Grammar,
    texts: Interner,
}

impl LineReader {
    /// A reader for chains of this kind.
    pub(super) fn new(grammar: Grammar) -> LineReader {
        LineReader { grammar, texts: Interner::default() }
    }

    /// What a line says.
    pub(super) fn read(&mut self, raw: &[u8]) -> Result<Line, BadLine> {
        let wire: Wire<'_> = serde_json::from_str(utf8(raw)?).map_err(|e| BadLine::json(&e))?;
        match word(wire.event.as_deref(), wire.hash.is_some())? {
            Word::Head => head(wire.height, wire.number, wire.hash),
            Word::Opening => self.opening(&wire),
            Word::Block => {
                let link = link(wire.height, wire.number, wire.hash, wire.parent_hash)?;
                let time = match (wire.time, wire.timestamp) {
                    (Some(raw), _) | (None, Some(raw)) => Some(text::time(raw.get()).ok_or_else(|| {
                        BadLine::new(format!(
                            "has the time {}: neither RFC 3339 nor Unix seconds, up to 9999-12-30T22:00:00Z",
                            short(raw.get())
                        ))
                    })?),
                    (None, None) => None,
                };
                let misspelt = [("token_events", &wire.token_events_misspelt), ("logs", &wire.logs_misspelt)];
                if let Some((meant, _)) = misspelt.into_iter().find(|(_, given)| given.is_some()) {
                    return Err(BadLine::new(format!("has events under another key than {meant:?}")));
                }
                let has_logs = wire.logs.is_some();
                let held = events::Given {
                    transactions: wire.transactions.unwrap_or_default(),
                    token_events: wire.token_events.unwrap_or_default(),
                    events: wire.events.unwrap_or_default(),
                    logs: wire.logs.unwrap_or_default(),
                };
                let block = events::block(link.clone(), time, held, &self.grammar, &mut self.texts)?;
                Ok(Line::Block(NewBlock { link, block: Some(Arc::new(block)), has_logs }))
            }
        }
    }

    /// What a line says about the branch, without its events.
    pub(super) fn links(&mut self, raw: &[u8]) -> Result<Line, BadLine> {
        let wire: WireLinks<'_> = serde_json::from_str(utf8(raw)?).map_err(|e| BadLine::json(&e))?;
        match word(wire.event.as_deref(), wire.hash.is_some())? {
            Word::Head => head(wire.height, wire.number, wire.hash),
            Word::Opening => self.read(raw),
            Word::Block => {
                let link = link(wire.height, wire.number, wire.hash, wire.parent_hash)?;
                Ok(Line::Block(NewBlock { link, block: None, has_logs: false }))
            }
        }
    }

    fn opening(&mut self, wire: &Wire<'_>) -> Result<Line, BadLine> {
        let missing = |key| BadLine::new(format!("is an opening balance without {key:?}"));
        let mut side = |given: &Option<Cow<'_, str>>, key, fits: fn(Kind, &str) -> bool| {
            let given = given.as_deref().ok_or_else(|| missing(key))?;
            let text = self.grammar.kind.canonical(given);
            let text = text.map_err(|why| BadLine::new(format!("has a {key} that is no {key}: {why}")))?;
            if !fits(self.grammar.kind, &text) {
                let kind = self.grammar.kind.as_str();
                return Err(BadLine::new(format!("has a {key} that no chain of kind {kind} has: {}", short(&text))));
            }
            Ok(self.texts.text(&text))
        };
        let token = side(&wire.token, "token", Kind::is_token)?;
        let address = side(&wire.address, "address", Kind::is_address)?;
        let raw = wire.amount.ok_or_else(|| missing("amount"))?.get();
        let amount = text::digits(raw).and_then(|digits| opening::amount_of(&digits)).ok_or_else(|| {
            BadLine::new(format!("has the amount {}: not a whole number in decimal below 2^256", short(raw)))
        })?;
        Ok(Line::Opening(OpeningBalance { token, address, amount }))
    }
}

enum Word {
    Block,
    Head,
    Opening,
}

fn word(event: Option<&str>, has_hash: bool) -> Result<Word, BadLine> {
    match event {
        Some("block") => Ok(Word::Block),
        Some("head") => Ok(Word::Head),
        Some("opening_balance") => Ok(Word::Opening),
        None if has_hash => Ok(Word::Block),
        None => Err(BadLine::new("has neither \"event\" nor \"hash\"")),
        Some(other) => Err(BadLine::new(format!(
            "has the event {}; known are \"block\", \"head\" and \"opening_balance\"",
            short(other)
        ))),
    }
}

fn head(height: Option<u64>, number: Option<u64>, hash: Option<Cow<'_, str>>) -> Result<Line, BadLine> {
    Ok(Line::Head(self::height(height, number)?, block_hash("hash", hash)?))
}

fn link(
    height: Option<u64>,
    number: Option<u64>,
    hash: Option<Cow<'_, str>>,
    parent_hash: Option<Cow<'_, str>>,
) -> Result<Link, BadLine> {
    let height = self::height(height, number)?;
    let hash = block_hash("hash", hash)?;
    let parent_hash = match parent_hash {
        // Genesis has no parent, so its line may leave it out.
        given if height.get() == 0 && given.as_deref().unwrap_or_default().is_empty() => Hash::new(""),
        given => block_hash("parent_hash", given)?,
    };
    if parent_hash == hash {
        return Err(BadLine::new(format!("has a block that is its own parent: {hash}")));
    }
    Ok(Link { height, hash, parent_hash })
}

fn height(height: Option<u64>, number: Option<u64>) -> Result<Height, BadLine> {
    let given = match (height, number) {
        (Some(height), Some(number)) if height != number => {
            return Err(BadLine::new(format!("has both the height {height} and the number {number}")));
        }
        (given, other) => given.or(other).ok_or_else(|| BadLine::new("has neither \"height\" nor \"number\""))?,
    };
    Height::new(given).ok_or_else(|| BadLine::new(format!("has the height {given}, above {}", Height::MAX)))
}

/// Block hashes may be any text of 1 to 256 bytes; 0x hex is brought to lower case.
fn block_hash(key: &str, given: Option<Cow<'_, str>>) -> Result<Hash, BadLine> {
    let given = given.ok_or_else(|| BadLine::new(format!("has no {key:?}")))?;
    let text = canonical(&given).map_err(|why| BadLine::new(format!("has a bad {key:?}: {why}")))?;
    if text.len() > 256 {
        return Err(BadLine::new(format!("has a {key:?} of more than 256 bytes")));
    }
    Ok(Hash::new(&*text))
}

fn utf8(raw: &[u8]) -> Result<&str, BadLine> {
    std::str::from_utf8(raw)
        .map_err(|e| BadLine { column: Some(e.valid_up_to() + 1), reason: "is not UTF-8 text".into() })
}

/// At most 80 characters of something given, for a message.
pub(super) fn short(given: &str) -> String {
    let mut chars = given.chars();
    let start: String = chars.by_ref().take(80).collect();
    if chars.next().is_some() { format!("{start:?}…") } else { format!("{start:?}") }
}
