//! Cursors: where the next page begins, as text that clients hand back unread.
//!
//! The sort key of the last row shown, with a letter for the kind of list and the chain, so that a cursor of one list is
//! refused by another; base64url of compact JSON.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::reply::Failure;
use crate::store::reads::Position;

/// After which row a page begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Cursor {
    /// A list by token: chain, token.
    #[serde(rename = "t")]
    Token(i64, String),
    /// A list by token and account: chain, token, address.
    #[serde(rename = "a")]
    Account(i64, String, String),
    /// History: chain, height, transaction, event, and the hash of the block, where the page ended at an event.
    #[serde(rename = "h")]
    Event(i64, i64, i64, i64, Option<String>),
    /// History that is not kept: chain, and the height it begins at, where that is known.
    #[serde(rename = "p")]
    Pruned(i64, Option<i64>),
    /// Reorganisations: id.
    #[serde(rename = "r")]
    Reorg(i64),
    /// A list about option vaults: which one, chain, whose (empty: everybody's), and the key of the row, in up to two
    /// parts.
    #[serde(rename = "o")]
    Vaults(VaultList, i64, String, String, String),
}

/// The lists about option vaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum VaultList {
    /// All vaults of a chain, by address.
    #[serde(rename = "v")]
    Vaults,
    /// The rounds of a vault, by number.
    #[serde(rename = "r")]
    Rounds,
    /// The providers of a vault, by address.
    #[serde(rename = "p")]
    Providers,
    /// The bids of a round, by id.
    #[serde(rename = "b")]
    Bids,
    /// The buyers of a round, by address.
    #[serde(rename = "u")]
    Buyers,
    /// The withdrawals queued in a round, by provider.
    #[serde(rename = "q")]
    Queue,
    /// What an account has in vaults, by vault.
    #[serde(rename = "V")]
    AccountVaults,
    /// What an account is entitled to, by round.
    #[serde(rename = "O")]
    AccountOptions,
    /// The bids of an account, by round and id.
    #[serde(rename = "B")]
    AccountBids,
}

impl Cursor {
    /// The cursor after this place in the history.
    pub(crate) fn event(chain_id: i64, position: Position, block_hash: Option<String>) -> Cursor {
        Cursor::Event(chain_id, position.height, position.tx_index, position.event_index, block_hash)
    }

    /// As text.
    pub(crate) fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    /// From text a client sent.
    pub(crate) fn decode(text: &str) -> Result<Cursor, Failure> {
        // Spare bits and padding are refused, so that each cursor has one spelling.
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| Failure::invalid_cursor())?;
        let cursor = serde_json::from_slice(&bytes).map_err(|_| Failure::invalid_cursor())?;
        // Postgres takes no NUL in text.
        let texts_hold_nul = match &cursor {
            Cursor::Token(_, token) => token.contains('\0'),
            Cursor::Account(_, token, address) => token.contains('\0') || address.contains('\0'),
            Cursor::Event(_, _, _, _, hash) => hash.as_ref().is_some_and(|hash| hash.contains('\0')),
            Cursor::Pruned(..) | Cursor::Reorg(_) => false,
            Cursor::Vaults(_, _, of, first, second) => [of, first, second].iter().any(|text| text.contains('\0')),
        };
        if texts_hold_nul { Err(Failure::invalid_cursor()) } else { Ok(cursor) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_survive_the_way_to_the_client_and_back() {
        let cursors = [
            Cursor::Token(1, "gno.land/r/demo/wugnot.wugnot".into()),
            Cursor::Account(7, "gold \u{1F600}".into(), "alice".into()),
            Cursor::event(1, Position { height: 9, tx_index: 0, event_index: 4 }, Some("q+/=".into())),
            Cursor::event(1, Position::start_of(3), None),
            Cursor::Pruned(1, Some(4)),
            Cursor::Reorg(1),
            Cursor::Vaults(VaultList::AccountBids, 1, "0xb1".into(), "0x21".into(), "0xc1".into()),
        ];
        for cursor in cursors {
            let text = cursor.encode();
            assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'), "{text}");
            assert_eq!(Cursor::decode(&text), Ok(cursor));
        }
    }

    #[test]
    fn what_is_no_cursor_is_refused() {
        for text in ["", "A", "!!!!", "e30", "bnVsbA", "====", "eyJ0IjpbMSwiXHUwMDAwIl19"] {
            assert_eq!(Cursor::decode(text), Err(Failure::invalid_cursor()), "{text}");
        }
    }

    #[test]
    fn each_cursor_has_one_spelling() {
        let text = Cursor::Reorg(1).encode();
        let (most, last) = text.split_at(text.len() - 1);
        for other in [format!("{text}="), format!("{text}=="), format!("{most}{}", if last == "0" { "1" } else { "0" })]
        {
            assert_ne!(Cursor::decode(&other), Ok(Cursor::Reorg(1)), "{other}");
        }
    }
}
