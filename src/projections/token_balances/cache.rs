//! Balances that the processor knows, so that it need not look them up before it writes them.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use crate::chain::delta::Key;
use crate::store::Balance;

/// Balances of one chain as they stood when this process last wrote or read them, at most about 57,000 (6 MB).
///
/// # Invariants
/// It is a guess: each statement compares what it writes with what stands. A guess that was wrong, and any transaction that
/// did not take effect, empties it.
#[derive(Debug, Default)]
pub struct Cache {
    /// Two keys of this process make 128 bits of each account, which stand for it.
    hashers: [RandomState; 2],
    young: HashMap<u128, Balance>,
    /// Dropped when the young ones are as many as may be; what is used again becomes young.
    old: HashMap<u128, Balance>,
}

/// Half of what it holds at most. A chunk of the usual size fits, each of its movements between accounts of their own; a map
/// of one more takes twice the memory.
const MOST_YOUNG: usize = 28_672;

impl Cache {
    /// A balance, if it is known.
    pub fn get(&self, key: &Key) -> Option<Balance> {
        let name = self.name(key);
        self.young.get(&name).or_else(|| self.old.get(&name)).copied()
    }

    /// Keeps the balances of a chunk as they stand now. False: they are too many, and none is known.
    pub fn keep<'a>(&mut self, balances: impl ExactSizeIterator<Item = (&'a Key, Balance)>) -> bool {
        if balances.len() > MOST_YOUNG {
            self.clear();
            return false;
        }
        if self.young.len() + balances.len() > MOST_YOUNG {
            self.old = std::mem::take(&mut self.young);
        }
        for (key, balance) in balances {
            let name = self.name(key);
            self.young.insert(name, balance);
        }
        true
    }

    /// Knows nothing from here on.
    pub fn clear(&mut self) {
        self.young = HashMap::new();
        self.old = HashMap::new();
    }

    fn name(&self, key: &Key) -> u128 {
        let [high, low] = [&self.hashers[0], &self.hashers[1]].map(|hasher| u128::from(hasher.hash_one(key)));
        high << 64 | low
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::delta::Delta;

    fn balance(id: i64) -> Balance {
        Balance { id, amount: Delta::ZERO, height: Some(id) }
    }

    #[test]
    fn it_keeps_the_last_chunk_whole_and_holds_no_more_than_it_may() {
        let mut cache = Cache::default();
        let key = |n: usize| -> Key { ("gold".into(), n.to_string().into()) };
        let mut first = 1;
        for (round, many) in [MOST_YOUNG / 2, MOST_YOUNG, 1, MOST_YOUNG - 1, 3, 20_000, 20_000].into_iter().enumerate()
        {
            // One account is in every chunk.
            let keys: Vec<Key> = std::iter::once(0).chain(first..first + many - 1).map(key).collect();
            let stands = |place: usize| balance((round << 32 | place) as i64);
            assert!(cache.keep(keys.iter().enumerate().map(|(place, key)| (key, stands(place)))));
            for (place, key) in keys.iter().enumerate() {
                assert_eq!(cache.get(key), Some(stands(place)));
            }
            assert!(cache.young.len() <= MOST_YOUNG && cache.old.len() <= MOST_YOUNG);
            first += many;
        }
        assert_eq!(cache.get(&key(1)), None);

        let keys: Vec<Key> = (0..=MOST_YOUNG).map(key).collect();
        assert!(!cache.keep(keys.iter().map(|key| (key, balance(1)))));
        assert_eq!(cache.get(&key(0)), None, "what stood before the chunk must not be believed");
    }
}
