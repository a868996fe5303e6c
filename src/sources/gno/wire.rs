//! What the indexer's GraphQL schema says, and what of it we ask for.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::decode::WireEvent;
use crate::chain::Hash;

/// The text form of 32 zero bytes: block 1's parent where genesis is not served.
pub(super) const NO_HASH: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
/// What the server says when more would match than it gives.
const CAP: &str = "max elements per query reached";

const BLOCK_FIELDS: &str = "height hash last_block_hash chain_id time num_txs";

/// A query with its variables.
#[derive(Debug, Clone)]
pub(super) struct Query {
    pub(super) text: String,
    pub(super) variables: Value,
    /// Whether an error in words may pass however often it comes.
    pub(super) patient: bool,
}

/// Which transactions of a block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Indexes {
    pub(super) from: u64,
    pub(super) to_exclusive: u64,
}

impl Query {
    /// The newest height; an indexer that has nothing yet answers with an error.
    pub(super) fn head() -> Query {
        Query { text: "query Head { latestBlockHeight }".to_owned(), variables: json!({}), patient: true }
    }

    /// Blocks with or without their transactions, `from` to `to` inclusive. The server has no `gte`, takes a `gt` of -1
    /// for a huge number and a missing `lt` for "to the end": genesis is asked for by its own height, and both ends
    /// are always bound.
    fn of_heights(from: u64, to: u64, func: Option<bool>) -> Query {
        let alone = from == to;
        let (parameters, filter) =
            if alone { ("$h: Int!", "eq: $h") } else { ("$after: Int!, $before: Int!", "gt: $after, lt: $before") };
        let transactions = func.map_or(String::new(), |func| {
            format!(" getTransactions(where: {{block_height: {{{filter}}}}}) {{ {} }}", transaction_fields(func))
        });
        let text = format!(
            "query Page({parameters}) {{ getBlocks(where: {{height: {{{filter}}}}}) {{ {BLOCK_FIELDS} }}{transactions} }}"
        );
        let variables = if alone { json!({"h": from}) } else { json!({"after": from - 1, "before": to + 1}) };
        Query { text, variables, patient: false }
    }

    /// Blocks alone. Several heights must not begin with genesis.
    pub(super) fn headers(from: u64, to: u64) -> Query {
        Query::of_heights(from, to, None)
    }

    /// Blocks and their transactions. Several heights must not begin with genesis.
    pub(super) fn page(from: u64, to: u64, func: bool) -> Query {
        Query::of_heights(from, to, Some(func))
    }

    /// Some transactions of one block. Indexes may be filtered on beside one height alone: over several they would
    /// leave out low indexes of later blocks.
    pub(super) fn transactions(height: u64, indexes: Indexes, func: bool) -> Query {
        let fields = transaction_fields(func);
        let (parameter, above) = if indexes.from == 0 { ("", "") } else { ("$above: Int!, ", "gt: $above, ") };
        let text = format!(
            "query Part($h: Int!, {parameter}$below: Int!) {{ getTransactions(where: {{block_height: {{eq: $h}}, \
             index: {{{above}lt: $below}}}}) {{ {fields} }} }}"
        );
        let mut variables = json!({"h": height, "below": indexes.to_exclusive});
        if indexes.from > 0 {
            variables["above"] = json!(indexes.from - 1);
        }
        Query { text, variables, patient: false }
    }
}

fn transaction_fields(func: bool) -> String {
    let func = if func { "func " } else { "" };
    format!(
        "block_height index hash success response {{ events {{ __typename ... on GnoEvent {{ type pkg_path {func}attrs \
         {{ key value }} }} }} }}"
    )
}

/// A whole answer.
#[derive(Debug, Deserialize)]
pub struct Answer<T> {
    /// What was asked for.
    #[serde(default = "Option::default")]
    pub data: Option<T>,
    /// With any of them the data is void.
    #[serde(default)]
    pub errors: Option<Vec<WireError>>,
}

/// One of an answer's errors.
#[derive(Debug, Deserialize)]
pub struct WireError {
    /// Its words.
    #[serde(default)]
    pub message: Value,
}

impl WireError {
    /// Its words as they came: to be shown by [`Server::quote`](crate::sources::net::server::Server::quote) alone.
    pub(super) fn words(&self) -> String {
        match &self.message {
            Value::String(text) => text.clone(),
            Value::Null => "an error without a message".to_owned(),
            other => other.to_string(),
        }
    }

    pub(super) fn is_cap(&self) -> bool {
        self.words().contains(CAP)
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct HeadData {
    pub(super) latest_block_height: i64,
}

/// Blocks and transactions; `null` where nothing matches.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PageData {
    /// In any order.
    #[serde(default)]
    pub get_blocks: Option<Vec<WireBlock>>,
    /// In any order.
    #[serde(default)]
    pub get_transactions: Option<Vec<WireTransaction>>,
}

/// A block as the indexer gives it; nothing in it is trusted.
#[derive(Debug, Clone, Deserialize)]
pub struct WireBlock {
    pub(super) height: u64,
    pub(super) hash: String,
    pub(super) last_block_hash: String,
    pub(super) chain_id: String,
    pub(super) time: String,
    pub(super) num_txs: u64,
}

/// A transaction as the indexer gives it; nothing in it is trusted.
#[derive(Debug, Deserialize)]
pub struct WireTransaction {
    pub(super) block_height: u64,
    pub(super) index: u64,
    pub(super) hash: String,
    pub(super) success: bool,
    pub(super) response: WireResponse,
}

/// What a transaction came to.
#[derive(Debug, Deserialize)]
pub struct WireResponse {
    /// Its events in order; `null` stands for none.
    #[serde(default)]
    pub events: Option<Vec<Option<WireEvent>>>,
}

/// Whether this is 32 bytes in base64 with padding, as the chain names blocks: one text for each name.
pub(super) fn is_hash(text: &str) -> bool {
    STANDARD.decode(text).is_ok_and(|bytes| bytes.len() == 32)
}

/// A name for a block to which the indexer gives none: the hash of what tells it from others.
pub(super) fn synthetic_hash(told_by: &str) -> Hash {
    Hash::new(STANDARD.encode(Sha256::digest(told_by.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_written_as_the_chain_writes_them() {
        // SHA-256 of "abc" (FIPS 180-2), in base64.
        assert_eq!(synthetic_hash("abc").as_str(), "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=");
        assert!(is_hash(synthetic_hash("abc").as_str()));
        assert!(is_hash(NO_HASH));
        for bad in [
            "",
            "=",
            "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0",
            "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa1=",
            "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD_YfIAFa0=",
            "0xab",
        ] {
            assert!(!is_hash(bad), "{bad}");
        }
    }

    #[test]
    fn both_ends_of_a_page_are_bound_and_no_filter_is_below_zero() {
        let page = Query::page(1, 500, false);
        assert_eq!(page.variables, json!({"after": 0, "before": 501}));
        assert!(!page.text.contains("func"), "{}", page.text);
        let genesis = Query::page(0, 0, true);
        assert_eq!(genesis.variables, json!({"h": 0}));
        assert!(genesis.text.contains("eq: $h") && genesis.text.contains("func"), "{}", genesis.text);
        let first = Query::transactions(7, Indexes { from: 0, to_exclusive: 100 }, false);
        assert_eq!(first.variables, json!({"h": 7, "below": 100}));
        assert!(!first.text.contains("gt"), "{}", first.text);
        let second = Query::transactions(7, Indexes { from: 100, to_exclusive: 200 }, false);
        assert_eq!(second.variables, json!({"h": 7, "above": 99, "below": 200}));
    }
}
