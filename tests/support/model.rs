//! The ledger as DESIGN.md sections 4 and 5 define it, in memory: maps and big integers, and no code under test.

use std::collections::BTreeMap;

use num_bigint::BigInt;

/// A block row.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    pub hash: String,
    pub parent: String,
    /// How many events it announced.
    pub event_count: Option<i64>,
}

/// A row of `token_events`.
#[derive(Clone, Debug, PartialEq)]
pub struct Movement {
    pub token: String,
    pub from: Option<String>,
    pub to: Option<String>,
    pub amount: BigInt,
}

/// Height, transaction, place.
pub type Place = (i64, i64, i64);
/// Token, address.
pub type Account = (String, String);

/// The chain tables of one chain.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    pub start: Option<i64>,
    pub complete_to: Option<i64>,
    pub blocks: BTreeMap<i64, Block>,
    pub movements: BTreeMap<Place, Movement>,
    pub opening: BTreeMap<Account, BigInt>,
    /// Accounts that cannot be ones of this chain.
    pub impossible: Vec<String>,
}

/// One change: delta, balance after it, height of the change before.
pub type Change = (BigInt, BigInt, Option<i64>);

/// What must follow from the chain.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ledger {
    /// The last block applied.
    pub block: Option<(i64, String)>,
    /// Applied up to here; above the block where the last heights are empty.
    pub through: Option<i64>,
    /// Amount and height of the last change.
    pub balances: BTreeMap<Account, (BigInt, i64)>,
    pub changes: BTreeMap<(String, String, i64), Change>,
}

impl Chain {
    /// A change at this height: what was declared complete is so no more.
    pub fn touch(&mut self, height: i64) {
        if self.complete_to.is_some_and(|to| height <= to) {
            self.complete_to = Some(height - 1);
        }
    }

    pub fn remove_block(&mut self, height: i64) {
        self.blocks.remove(&height);
        self.movements.retain(|place, _| place.0 != height);
        self.touch(height);
    }

    /// Removes this block and everything above it.
    pub fn drop_from(&mut self, height: i64) {
        let gone: Vec<i64> = self.blocks.range(height..).map(|(h, _)| *h).collect();
        for h in gone {
            self.remove_block(h);
        }
    }

    pub fn first(&self) -> Option<i64> {
        self.start.or_else(|| self.blocks.keys().next().copied())
    }

    pub fn tip(&self) -> Option<i64> {
        self.blocks.keys().next_back().copied()
    }

    /// Heights of the blocks that count.
    pub fn counting(&self) -> Vec<i64> {
        let Some(start) = self.first() else { return Vec::new() };
        let is_complete_to = |height: i64| self.complete_to.is_some_and(|to| height <= to);
        let mut counted: Vec<i64> = Vec::new();
        for (height, block) in self.blocks.range(start..) {
            let linked = match counted.last() {
                None => *height == start || is_complete_to(height - 1),
                Some(before) if before + 1 == *height => self.blocks[before].hash == block.parent,
                Some(_) => is_complete_to(height - 1),
            };
            let stored = self.movements.range((*height, 0, 0)..(height + 1, 0, 0)).count() as i64;
            if !linked || block.event_count.is_some_and(|announced| announced != stored) {
                break;
            }
            counted.push(*height);
        }
        counted
    }

    /// How far heights count as applied once the block at `tip` is the last one applied.
    pub fn through(&self, tip: i64, cap: i64) -> i64 {
        let next_stored = self.blocks.range(tip + 1..).next().map_or(i64::MAX, |(h, _)| *h);
        let empty_to = self.complete_to.unwrap_or(-1).min(cap);
        if empty_to > tip && next_stored > empty_to { empty_to } else { tip }
    }

    /// What must have been applied once nothing is left to do, going no higher than `cap`.
    pub fn ledger(&self, cap: i64) -> Ledger {
        self.ledger_along(cap, |_, _| {})
    }

    /// [`Chain::ledger`], shown after each of its blocks.
    pub fn ledger_along(&self, cap: i64, mut show: impl FnMut(i64, &Ledger)) -> Ledger {
        let counted: Vec<i64> = self.counting().into_iter().filter(|h| *h <= cap).collect();
        let (Some(tip), Some(start)) = (counted.last().copied(), self.first()) else { return Ledger::default() };
        let mut ledger = Ledger::default();
        for ((token, address), amount) in &self.opening {
            ledger.change(token, address, start - 1, amount.clone());
        }
        for height in &counted {
            let mut net: BTreeMap<Account, BigInt> = BTreeMap::new();
            for movement in self.movements.range((*height, 0, 0)..(height + 1, 0, 0)).map(|(_, m)| m) {
                let named = [&movement.from, &movement.to];
                if named.into_iter().flatten().any(|address| self.impossible.contains(address)) {
                    continue;
                }
                if let Some(from) = &movement.from {
                    *net.entry((movement.token.clone(), from.clone())).or_default() -= &movement.amount;
                }
                if let Some(to) = &movement.to {
                    *net.entry((movement.token.clone(), to.clone())).or_default() += &movement.amount;
                }
            }
            for ((token, address), delta) in net {
                ledger.change(&token, &address, *height, delta);
            }
            show(*height, &ledger);
        }
        ledger.block = Some((tip, self.blocks[&tip].hash.clone()));
        ledger.through = Some(self.through(tip, cap));
        ledger
    }
}

impl Ledger {
    fn change(&mut self, token: &str, address: &str, height: i64, delta: BigInt) {
        let account = (token.to_owned(), address.to_owned());
        let (amount, before) = match self.balances.get(&account) {
            Some((amount, height)) => (amount + &delta, Some(*height)),
            None => (delta.clone(), None),
        };
        self.changes.insert((account.0.clone(), account.1.clone(), height), (delta, amount.clone(), before));
        self.balances.insert(account, (amount, height));
    }

    /// The sums of its tokens, without those that are nothing.
    pub fn totals(&self) -> BTreeMap<String, BigInt> {
        let mut totals = BTreeMap::<String, BigInt>::new();
        for ((token, _), (amount, _)) in &self.balances {
            *totals.entry(token.clone()).or_default() += amount;
        }
        totals.retain(|_, total| *total != BigInt::ZERO);
        totals
    }

    /// The first thing in which `seen` is not as it must be. Changes up to `pruned_to` may be missing.
    pub fn difference(&self, seen: &Ledger, pruned_to: Option<i64>) -> Option<String> {
        if (&self.block, self.through) != (&seen.block, seen.through) {
            return Some(format!(
                "checkpoint: {:?} through {:?}, must be {:?} through {:?}",
                seen.block, seen.through, self.block, self.through
            ));
        }
        if let Some(difference) = first_difference("balance", &self.balances, &seen.balances, |_| false) {
            return Some(difference);
        }
        let may_miss = |key: &(String, String, i64)| pruned_to.is_some_and(|to| key.2 <= to);
        first_difference("change", &self.changes, &seen.changes, may_miss)
    }
}

/// The first row in which `seen` is not as it must be.
pub fn first_difference<K: Ord + std::fmt::Debug, V: PartialEq + std::fmt::Debug>(
    what: &str,
    must: &BTreeMap<K, V>,
    seen: &BTreeMap<K, V>,
    may_miss: impl Fn(&K) -> bool,
) -> Option<String> {
    let wrong = must.iter().find(|(key, value)| match seen.get(key) {
        Some(there) => there != *value,
        None => !may_miss(key),
    });
    let extra = seen.iter().find(|(key, _)| !must.contains_key(key));
    wrong
        .map(|(key, value)| format!("{what} {key:?}: {:?}, must be {value:?}", seen.get(key)))
        .or_else(|| extra.map(|(key, value)| format!("{what} {key:?}: {value:?}, must not be")))
}
