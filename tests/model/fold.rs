//! What the tracked tables of the test must hold, in memory: every block's work done again by code that shares nothing
//! with the function in `apply.sql`.

use std::collections::BTreeMap;

use num_bigint::BigInt;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::model::{Chain, Ledger};

/// A row of the parent table, without its key.
#[derive(Clone, Debug, PartialEq)]
pub struct Spot {
    pub v: i64,
    pub note: Option<String>,
    pub seat: Option<i64>,
    pub tags: Vec<String>,
    pub extra: Option<Value>,
}

/// A row of the child table, without its key.
#[derive(Clone, Debug, PartialEq)]
pub struct Leaf {
    /// The key of its parent.
    pub spot: Option<(i64, String)>,
    pub w: i64,
    pub mark: Option<i64>,
}

/// Both tables of a projection.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tables {
    pub spots: BTreeMap<(i64, String), Spot>,
    pub leaves: BTreeMap<i64, Leaf>,
}

/// How a projection goes about its blocks.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    pub salt: u32,
    /// Whether the balances have a say.
    pub follows: bool,
    /// It begins no lower.
    pub start: Option<i64>,
}

/// The chain as a projection sees it that begins at a height of its own.
pub fn seen_by(chain: &Chain, manner: Manner) -> Chain {
    let start = match manner.start {
        Some(start) => chain.first().map(|first| first.max(start)),
        None => chain.start,
    };
    Chain { start, ..chain.clone() }
}

/// The tables once these blocks were applied, one after the other, from nothing.
pub fn tables(chain: &Chain, heights: &[i64], manner: Manner) -> Tables {
    let mut tables = Tables::default();
    if !manner.follows {
        for height in heights {
            tables.apply(chain, *height, manner.salt, None);
        }
    } else if let Some(tip) = heights.last() {
        chain.ledger_along(*tip, |height, ledger| tables.apply(chain, height, manner.salt, Some(ledger)));
    }
    tables
}

impl Tables {
    pub fn rows(&self) -> usize {
        self.spots.len() + self.leaves.len()
    }

    fn apply(&mut self, chain: &Chain, height: i64, salt: u32, ledger: Option<&Ledger>) {
        let mut words = vec![chain.blocks[&height].hash.clone()];
        if let Some(ledger) = ledger {
            let sum: BigInt = ledger.balances.values().map(|(amount, _)| amount).sum();
            words[0] = format!("{}/{}/{sum}", words[0], ledger.balances.len());
        }
        for ((_, tx, event), m) in chain.movements.range((height, 0, 0)..(height + 1, 0, 0)) {
            let name = |address: &Option<String>| address.clone().unwrap_or_else(|| "-".to_owned());
            words.push(format!("{tx}/{event}/{}/{}/{}/{}", m.token, name(&m.from), name(&m.to), m.amount));
        }
        for ((token, address, at), (delta, after, _)) in ledger.iter().flat_map(|ledger| &ledger.changes) {
            if *at == height {
                words.push(format!("{token}/{address}/{delta}/{after}"));
            }
        }
        for word in words {
            let bytes = Sha256::digest(format!("{salt}/{height}/{word}"));
            (0..3).for_each(|turn| self.act(&bytes[turn * 6..]));
        }
    }

    /// One piece of work, named by the bytes.
    fn act(&mut self, bytes: &[u8]) {
        let byte = |n: usize| i64::from(bytes[n]);
        let (x, k, z) = (byte(1) % 5, byte(2) % 10, byte(4) * 256 + byte(5));
        let b = ["p", "q"][usize::from(bytes[3] % 2)].to_owned();
        let key = (x, b.clone());
        match byte(0) % 24 {
            0 | 1 | 20 | 21 => {
                let new = Spot {
                    v: z,
                    note: None,
                    seat: None,
                    tags: vec![format!("t{}", z % 10)],
                    extra: Some(json!({ "z": z })),
                };
                self.spots
                    .entry(key)
                    .and_modify(|spot| {
                        spot.v += z;
                        spot.note = Some("again".to_owned());
                        if let Some(extra) = &mut spot.extra {
                            extra["z"] = json!(z);
                        }
                    })
                    .or_insert(new);
            }
            2 | 3 | 22 | 23 => {
                let spot = self.spots.keys().find(|key| key.0 >= x).cloned();
                let leaf = self.leaves.entry(k).or_insert(Leaf { spot: None, w: z - 1, mark: None });
                leaf.w += 1;
                leaf.spot = spot;
            }
            4 => {
                for (_, spot) in self.spots.iter_mut().filter(|(key, _)| key.0 <= x) {
                    spot.v += z;
                    spot.tags.push(format!("t{}", z % 10));
                    spot.tags.drain(..spot.tags.len().saturating_sub(3));
                }
            }
            5 => {
                let to = (x + 10, b);
                if self.spots.contains_key(&key) && !self.spots.contains_key(&to) {
                    self.rename(&key, to.clone());
                    self.spots.entry(to).and_modify(|spot| spot.v = z);
                }
            }
            6 => {
                let high: Vec<_> = self.spots.keys().filter(|key| key.0 >= 10).cloned().collect();
                for from in high {
                    let to = (from.0 - 10, from.1.clone());
                    if !self.spots.contains_key(&to) {
                        self.rename(&from, to);
                    }
                }
            }
            7 => {
                let here: Vec<_> = self.spots.keys().filter(|key| key.0 == x).cloned().collect();
                if let [only] = &here[..] {
                    let other = if only.1 == "p" { "q" } else { "p" };
                    self.rename(only, (x, other.to_owned()));
                }
            }
            8 => self.remove(&key),
            9 => {
                let gone: Vec<_> =
                    self.spots.iter().filter(|(_, spot)| spot.v % 5 == x).map(|(key, _)| key.clone()).collect();
                gone.iter().for_each(|key| self.remove(key));
            }
            10 => {
                let here: Vec<_> = self.spots.keys().filter(|key| key.0 == x).cloned().collect();
                for key in here {
                    let spot = self.spots[&key].clone();
                    self.remove(&key);
                    self.spots.insert(key, Spot { v: -spot.v, note: None, ..spot });
                }
            }
            11 => {
                if let Some(leaf) = self.leaves.get_mut(&k) {
                    (leaf.w, leaf.spot) = (-leaf.w, None);
                }
            }
            12 => (1..).zip(self.spots.values_mut()).for_each(|(seat, spot)| spot.seat = Some(seat)),
            13 => {
                let mut held: Vec<_> = self.spots.values().map(|spot| (spot.v, spot.seat)).collect();
                if !held.is_empty() {
                    held.rotate_left(1);
                }
                self.spots.values_mut().zip(held).for_each(|(spot, next)| (spot.v, spot.seat) = next);
            }
            14 => {
                let mut lowest = self.leaves.values_mut();
                if let (Some(one), Some(other)) = (lowest.next(), lowest.next()) {
                    std::mem::swap(&mut one.mark, &mut other.mark);
                    (one.w, other.w) = (one.w + 1, other.w + 1);
                }
            }
            15 => {
                let mark = Some(z % 6);
                if self.leaves.values().all(|leaf| leaf.mark != mark)
                    && let Some((_, leaf)) = self.leaves.range_mut(k..).next()
                {
                    leaf.mark = mark;
                }
            }
            16 => {
                if !self.leaves.contains_key(&(k + 20))
                    && let Some(leaf) = self.leaves.remove(&k)
                {
                    self.leaves.insert(k + 20, leaf);
                }
            }
            17 => {
                let high: Vec<i64> = self.leaves.range(20..).map(|(k, _)| *k).collect();
                for from in high {
                    if !self.leaves.contains_key(&(from - 20))
                        && let Some(leaf) = self.leaves.remove(&from)
                    {
                        self.leaves.insert(from - 20, leaf);
                    }
                }
            }
            18 => {
                for (_, spot) in self.spots.iter_mut().filter(|(key, _)| key.1 == b) {
                    spot.extra = if spot.extra.is_none() { Some(json!({"n": [z, null]})) } else { None };
                    spot.note = if spot.note.is_none() { Some(format!("n{z}")) } else { None };
                }
            }
            _ => self.leaves.retain(|_, leaf| leaf.w % 3 != 0),
        }
    }

    /// Another key for a parent: its children go along.
    fn rename(&mut self, from: &(i64, String), to: (i64, String)) {
        if let Some(spot) = self.spots.remove(from) {
            for leaf in self.leaves.values_mut().filter(|leaf| leaf.spot.as_ref() == Some(from)) {
                leaf.spot = Some(to.clone());
            }
            self.spots.insert(to, spot);
        }
    }

    /// A parent goes, and its children with it.
    fn remove(&mut self, key: &(i64, String)) {
        self.spots.remove(key);
        self.leaves.retain(|_, leaf| leaf.spot.as_ref() != Some(key));
    }
}
