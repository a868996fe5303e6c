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

/// Half of what it holds at most; so many as were kept last are known. A map of one more takes twice the memory.
pub const MOST_YOUNG: usize = 28_672;

impl Cache {
    /// A balance, if it is known.
    pub fn get(&self, key: &Key) -> Option<Balance> {
        let name = self.name(key);
        self.young.get(&name).or_else(|| self.old.get(&name)).copied()
    }

    /// Keeps a balance as it stands now.
    pub fn keep(&mut self, key: &Key, balance: Balance) {
        if self.young.len() >= MOST_YOUNG {
            self.old = std::mem::take(&mut self.young);
        }
        let name = self.name(key);
        self.young.insert(name, balance);
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
    fn it_keeps_what_is_used_and_holds_no_more_than_it_may() {
        let mut cache = Cache::default();
        let key = |n: usize| -> Key { ("gold".into(), n.to_string().into()) };
        for n in 0..4 * MOST_YOUNG {
            cache.keep(&key(n), balance(n as i64));
            cache.keep(&key(0), balance(n as i64));
            assert!(cache.young.len() <= MOST_YOUNG && cache.old.len() <= MOST_YOUNG);
        }
        let last = 4 * MOST_YOUNG - 1;
        assert_eq!(cache.get(&key(0)), Some(balance(last as i64)));
        for n in last - MOST_YOUNG + 2..=last {
            assert_eq!(cache.get(&key(n)), Some(balance(n as i64)));
        }
        assert_eq!(cache.get(&key(1)), None);
        cache.clear();
        assert_eq!(cache.get(&key(0)), None);
    }
}
