//! What sinks are told of a run of blocks, packed as `outbox` takes it: `told_of` in sql/triggers/45_notices.sql takes it apart.

use std::collections::HashMap;
use std::fmt::Write;

use super::Netted;
use crate::chain::delta::{Delta, Key};
use crate::chain::{Height, Text};
use crate::store::Told;

/// A movement that counts, as it is told.
#[derive(Debug, Clone)]
pub struct Transfer {
    /// Its transaction.
    pub tx_index: i64,
    /// Its place.
    pub event_index: i64,
    /// The token.
    pub token: Text,
    /// Who loses. None means a mint.
    pub from: Option<Text>,
    /// Who gains. None means a burn.
    pub to: Option<Text>,
    /// How much.
    pub amount: Delta,
}

/// What is told of these blocks: the transfers that each holds, and the balances it changes (by account, as `keys` has them), as
/// they are after it.
pub(super) fn told(keys: &[Key], blocks: &[(Height, &Netted)], balances: &[Vec<(u32, Delta)>]) -> Told {
    let mut packed = Packed { places: HashMap::new(), told: Told::default() };
    packed.told.said.push_str(r#"{"blocks":["#);
    for (at, ((_, netted), changed)) in blocks.iter().zip(balances).enumerate() {
        packed.open(at, "[[");
        for (at, transfer) in netted.transfers.iter().enumerate() {
            packed.open(at, "[");
            packed.number(transfer.tx_index);
            packed.number(transfer.event_index);
            packed.name(Some(&transfer.token));
            packed.name(transfer.from.as_deref());
            packed.name(transfer.to.as_deref());
            packed.amount(transfer.amount);
        }
        packed.told.said.push_str("],[");
        for (at, (account, amount)) in changed.iter().enumerate() {
            let (token, address) = &keys[*account as usize];
            packed.open(at, "[");
            packed.name(Some(token));
            packed.name(Some(address));
            packed.amount(*amount);
        }
        packed.told.said.push_str("]]");
    }
    packed.told.said.push_str("]}");
    packed.told
}

struct Packed<'a> {
    places: HashMap<&'a str, usize>,
    told: Told,
}

impl<'a> Packed<'a> {
    fn open(&mut self, at: usize, bracket: &str) {
        if at > 0 {
            self.told.said.push(',');
        }
        self.told.said.push_str(bracket);
    }

    fn number(&mut self, number: impl std::fmt::Display) {
        // Writing to a text does not fail.
        let _ = write!(self.told.said, "{number},");
    }

    /// A name's place.
    fn name(&mut self, name: Option<&'a str>) {
        let Some(name) = name else { return self.told.said.push_str("null,") };
        let next = self.places.len() + 1;
        let place = *self.places.entry(name).or_insert(next);
        if place == next {
            self.told.names.push_text(name);
        }
        self.number(place);
    }

    /// Text, since JSON's readers make a float of a number, and the last of its list.
    fn amount(&mut self, amount: Delta) {
        let _ = write!(self.told.said, r#""{amount}"]"#);
    }
}
