//! `token_balances`: exact balances from token movements. Pure: events in, changes out.

use std::collections::BTreeMap;

use serde_json::json;

use crate::chain::delta::{self, Delta, Key, Net};
use crate::chain::{Height, Kind, TokenEvent};
use crate::store::{BlockChange, Refused};

/// The projection's name in `projections` and `checkpoints`.
pub const NAME: &str = "token_balances";

/// What a negative balance means to the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NegativeBalances {
    /// Kept exact; REST shows 0 and counts them. The default.
    #[default]
    Zero,
    /// Kept exact and shown.
    Show,
    /// The projection stops before the block.
    Halt,
}

/// What to do with an event that cannot be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnBadEvent {
    /// It goes to `rejected_events`, the rest of its block is applied. The default.
    #[default]
    Quarantine,
    /// The projection stops before the block.
    Halt,
}

/// What to do when the chain changed at or below its final height.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnDeepChange {
    /// Undone and applied again in one transaction. The default.
    #[default]
    Rebuild,
    /// The projection stops; `resume` lets it rebuild.
    Halt,
}

/// How much of `balance_history` (read as `balance_changes`) is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum History {
    /// All of it. The default.
    #[default]
    Full,
    /// What lies above the final height, and the last change before it.
    Window,
}

/// The projection's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settings {
    /// What a negative balance means.
    pub negative_balances: NegativeBalances,
    /// What to do with an event that cannot be applied.
    pub on_bad_event: OnBadEvent,
    /// What to do when final blocks changed.
    pub on_deep_change: OnDeepChange,
    /// How much history is kept.
    pub history: History,
}

/// One block's movements, netted.
#[derive(Debug, Clone, Default)]
pub struct Netted {
    /// Net change by (token, address).
    pub net: Net,
    /// Movements that no account of this chain can have made.
    pub refused: Vec<Refused>,
    /// Movements netted.
    pub events: u64,
}

impl Netted {
    /// Takes one movement in, or refuses it: token and accounts must follow the grammar of the chain's kind.
    pub fn take(&mut self, kind: Kind, height: Height, event: TokenEvent) {
        self.events += 1;
        let reason = if !kind.is_token(&event.token) {
            Some("bad_token")
        } else if [&event.from, &event.to].into_iter().flatten().any(|address| !kind.is_address(address)) {
            Some("bad_address")
        } else {
            None
        };
        let Some(reason) = reason else { return delta::add(&mut self.net, &event) };
        self.refused.push(Refused {
            height,
            tx_index: event.tx_index as i64,
            event_index: event.event_index as i64,
            raw: json!({
                "token": event.token, "from_address": event.from, "to_address": event.to,
                "amount": event.amount.to_string(),
            }),
            reason,
        });
    }
}

/// The changes of a run of blocks (ascending), in (token, address, height) order, each knowing what the same key's
/// later changes sum to and where the one before it is.
pub fn changes(blocks: Vec<(Height, Net)>) -> Vec<BlockChange> {
    if let [(height, _)] = blocks[..] {
        let only = blocks.into_iter().flat_map(|(_, net)| net);
        return only.map(|((token, address), delta)| change(token, address, height, delta)).collect();
    }
    let mut by_key: BTreeMap<Key, Vec<(Height, Delta)>> = BTreeMap::new();
    for (height, net) in blocks {
        for (key, delta) in net {
            by_key.entry(key).or_default().push((height, delta));
        }
    }
    let mut all = Vec::new();
    for ((token, address), of_key) in by_key {
        let first = all.len();
        let mut prev_height = None;
        for (height, delta) in of_key {
            all.push(BlockChange { prev_height, ..change(token.clone(), address.clone(), height, delta) });
            prev_height = Some(height);
        }
        let mut later = Delta::ZERO;
        for change in all[first..].iter_mut().rev() {
            change.later = later;
            later = later.merge(change.delta);
        }
    }
    all
}

fn change(token: crate::chain::Text, address: crate::chain::Text, height: Height, delta: Delta) -> BlockChange {
    BlockChange { token, address, height, delta, later: Delta::ZERO, prev_height: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::Amount;

    #[test]
    fn merged_changes_know_what_comes_later_and_what_came_before() {
        let net = |amount: u64| -> Net {
            [(("gold".into(), "alice".into()), Delta::plus(Amount::from(amount)))].into_iter().collect()
        };
        let merged = changes(vec![(Height::from(1), net(5)), (Height::from(2), net(7)), (Height::from(4), net(1))]);
        let seen: Vec<_> = merged
            .iter()
            .map(|c| (c.height.get(), c.delta.to_string(), c.later.to_string(), c.prev_height.map(Height::get)))
            .collect();
        assert_eq!(
            seen,
            [
                (1, "5".to_owned(), "8".to_owned(), None),
                (2, "7".to_owned(), "1".to_owned(), Some(1)),
                (4, "1".to_owned(), "0".to_owned(), Some(2)),
            ]
        );
    }

    #[test]
    fn an_account_that_is_none_of_the_chain_is_refused() {
        let mut netted = Netted::default();
        let event = TokenEvent {
            tx_index: 0,
            event_index: 0,
            token: "0x00000000000000000000000000000000000000aa".into(),
            from: None,
            to: Some("alice".into()),
            amount: Amount::from(1),
        };
        netted.take(Kind::Evm, Height::from(1), event.clone());
        assert!(netted.net.is_empty());
        assert_eq!(netted.refused[0].reason, "bad_address");
        netted.take(Kind::Other, Height::from(1), event);
        assert_eq!(netted.net.len(), 1);
    }
}
