//! Pages of the lists about option vaults: one cursor for each list of an answer.

use serde::Serialize;

use super::cursor::{Cursor, VaultList};
use super::reply::Failure;

/// A page of a list.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct List<T> {
    pub(super) items: Vec<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next_cursor: Option<String>,
}

/// Where the lists of one answer begin. A cursor belongs to one list, and the answer to it holds that list alone.
pub(super) struct Paging<'a> {
    lists: &'a [VaultList],
    chain_id: i64,
    of: &'a str,
    cursor: Option<&'a Cursor>,
    limit: usize,
}

impl<'a> Paging<'a> {
    /// For an answer with these lists `of` a vault, a round or an account (empty: of the whole chain).
    ///
    /// # Errors
    /// `invalid_cursor` for a cursor of another list.
    pub(super) fn new(
        lists: &'a [VaultList],
        chain_id: i64,
        of: &'a str,
        cursor: Option<&'a Cursor>,
        limit: usize,
    ) -> Result<Paging<'a>, Failure> {
        match cursor {
            None => {}
            Some(Cursor::Vaults(list, id, whose, ..)) if lists.contains(list) && *id == chain_id && whose == of => {}
            Some(_) => return Err(Failure::invalid_cursor()),
        }
        Ok(Paging { lists, chain_id, of, cursor, limit })
    }

    /// Whether the answer holds this list.
    pub(super) fn wants(&self, list: VaultList) -> bool {
        match self.cursor {
            Some(Cursor::Vaults(continued, ..)) => *continued == list,
            _ => self.lists.contains(&list),
        }
    }

    /// The key of the row the page comes after, empty at the beginning.
    pub(super) fn after(&self) -> (&'a str, &'a str) {
        match self.cursor {
            Some(Cursor::Vaults(_, _, _, first, second)) => (first, second),
            _ => ("", ""),
        }
    }

    /// Rows to ask for: one more than the page holds tells whether there are more.
    pub(super) fn wanted(&self) -> i64 {
        self.limit as i64 + 1
    }

    /// The rows as a page; `key` is a row's key in its list.
    pub(super) fn page<R, T>(
        &self,
        list: VaultList,
        rows: &'a [R],
        item: fn(&'a R) -> T,
        key: fn(&R) -> (String, String),
    ) -> List<T> {
        let shown = rows.get(..self.limit).unwrap_or(rows);
        let next = shown.last().filter(|_| rows.len() > self.limit).map(|last| {
            let (first, second) = key(last);
            Cursor::Vaults(list, self.chain_id, self.of.to_owned(), first, second).encode()
        });
        List { items: shown.iter().map(item).collect(), next_cursor: next }
    }
}
