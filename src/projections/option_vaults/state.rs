//! The rows a block needs, and what became of them.

use std::collections::BTreeMap;

use crate::chain::Text;
use crate::store::vaults::{BidRow, BuyerRow, Changes, ProviderRow, QueuedRow, RoundRow, Row, VaultRow, Wanted};

use super::event::VaultEvent;
use super::steps::Step;

/// What these events need.
pub fn wanted(steps: &[Step<'_>]) -> Wanted {
    let mut wanted = Wanted::default();
    for step in steps {
        if let Ok(event) = &step.event {
            add(&mut wanted, &step.vault, event);
        }
    }
    wanted
}

fn add(wanted: &mut Wanted, vault: &Text, event: &VaultEvent) {
    wanted.vaults.insert(vault.clone());
    match event {
        VaultEvent::VaultDeployed { .. } => {}
        VaultEvent::RoundDeployed { id, address, .. } => {
            wanted.rounds.insert(address.clone());
            wanted.numbered_rounds.insert((vault.clone(), *id));
        }
        VaultEvent::PricingSet { round, .. } => _ = wanted.rounds.insert(round.address.clone()),
        VaultEvent::Deposited(moved) | VaultEvent::Withdrawn(moved) => {
            wanted.providers.insert((vault.clone(), moved.account.clone()));
        }
        VaultEvent::StashWithdrawn { account, .. } => {
            wanted.providers.insert((vault.clone(), account.clone()));
        }
        VaultEvent::WithdrawalQueued { account, round_id, .. } => {
            wanted.numbered_rounds.insert((vault.clone(), *round_id));
            wanted.queued.insert((vault.clone(), *round_id, account.clone()));
        }
        VaultEvent::AuctionStarted { round, .. } => {
            wanted.rounds.insert(round.address.clone());
            wanted.vaults_with_providers.insert(vault.clone());
        }
        VaultEvent::AuctionEnded { round, .. } => {
            wanted.rounds.insert(round.address.clone());
            wanted.vaults_with_providers.insert(vault.clone());
            wanted.rounds_with_bids.insert(round.address.clone());
        }
        VaultEvent::RoundSettled { round, .. } => {
            wanted.rounds.insert(round.address.clone());
            wanted.vaults_with_providers.insert(vault.clone());
            wanted.rounds_with_queue.insert(round.address.clone());
        }
        VaultEvent::BidPlaced { round, account, bid_id, .. } => {
            wanted.rounds.insert(round.address.clone());
            wanted.buyers.insert((round.address.clone(), account.clone()));
            wanted.bids.insert((round.address.clone(), bid_id.clone()));
        }
        VaultEvent::BidUpdated { round, bid_id, .. } => {
            wanted.rounds.insert(round.address.clone());
            wanted.bids.insert((round.address.clone(), bid_id.clone()));
        }
        VaultEvent::OptionsMinted { round, account }
        | VaultEvent::BidsRefunded { round, account }
        | VaultEvent::OptionsExercised { round, account } => {
            wanted.rounds.insert(round.address.clone());
            wanted.buyers.insert((round.address.clone(), account.clone()));
        }
    }
}

/// Rows of one table, each with what it was when it was loaded.
#[derive(Debug, Clone)]
pub struct Table<K, V>(BTreeMap<K, Held<V>>);

#[derive(Debug, Clone)]
struct Held<V> {
    loaded: Option<V>,
    now: V,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Table<K, V> {
        Table(BTreeMap::new())
    }
}

impl<K: Ord, V: Clone + PartialEq> Table<K, V> {
    fn load(&mut self, key: K, row: V) {
        self.0.insert(key, Held { loaded: Some(row.clone()), now: row });
    }

    fn put(&mut self, key: K, row: V) {
        match self.0.get_mut(&key) {
            Some(held) => held.now = row,
            None => _ = self.0.insert(key, Held { loaded: None, now: row }),
        }
    }

    /// The row as it is now.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.0.get(key).map(|held| &held.now)
    }

    /// All rows as they are now, in the order of their keys.
    pub fn rows(&self) -> impl Iterator<Item = &V> {
        self.0.values().map(|held| &held.now)
    }

    fn settle(&mut self) {
        self.0.values_mut().for_each(|held| held.loaded = Some(held.now.clone()));
    }

    fn changed(&self) -> Vec<V> {
        self.0.values().filter(|held| held.loaded.as_ref() != Some(&held.now)).map(|held| held.now.clone()).collect()
    }
}

impl<V: Clone + PartialEq> Table<(Text, Text), V> {
    /// The rows whose key begins with `first`.
    pub fn of<'a>(&'a self, first: &'a Text) -> impl Iterator<Item = &'a V> {
        let begin = (first.clone(), Text::from(""));
        self.0.range(begin..).take_while(move |((key, _), _)| key == first).map(|(_, held)| &held.now)
    }
}

/// The rows one block works on: loaded, changed by its events, and asked what to write back.
#[derive(Debug, Clone, Default)]
pub struct Working {
    /// By address.
    pub vaults: Table<Text, VaultRow>,
    /// By (vault, address).
    pub providers: Table<(Text, Text), ProviderRow>,
    /// By address.
    pub rounds: Table<Text, RoundRow>,
    /// By (round, address).
    pub queued: Table<(Text, Text), QueuedRow>,
    /// By (round, address).
    pub buyers: Table<(Text, Text), BuyerRow>,
    /// By (round, bid).
    pub bids: Table<(Text, Text), BidRow>,
    round_addresses: BTreeMap<(Text, u64), Text>,
}

impl Working {
    /// Takes a row as it stands in its table. The same row may come twice.
    pub fn load(&mut self, row: Row) {
        match row {
            Row::Vault(row) => self.vaults.load(row.address.clone(), row),
            Row::Provider(row) => self.providers.load((row.vault_address.clone(), row.address.clone()), row),
            Row::Round(row) => {
                self.number(&row);
                self.rounds.load(row.address.clone(), row);
            }
            Row::Queued(row) => self.queued.load((row.round_address.clone(), row.address.clone()), row),
            Row::Buyer(row) => self.buyers.load((row.round_address.clone(), row.address.clone()), row),
            Row::Bid(row) => self.bids.load((row.round_address.clone(), row.bid_id.clone()), row),
        }
    }

    /// Takes a row as an event left it.
    pub(super) fn put(&mut self, row: Row) {
        match row {
            Row::Vault(row) => self.vaults.put(row.address.clone(), row),
            Row::Provider(row) => self.providers.put((row.vault_address.clone(), row.address.clone()), row),
            Row::Round(row) => {
                self.number(&row);
                self.rounds.put(row.address.clone(), row);
            }
            Row::Queued(row) => self.queued.put((row.round_address.clone(), row.address.clone()), row),
            Row::Buyer(row) => self.buyers.put((row.round_address.clone(), row.address.clone()), row),
            Row::Bid(row) => self.bids.put((row.round_address.clone(), row.bid_id.clone()), row),
        }
    }

    fn number(&mut self, row: &RoundRow) {
        self.round_addresses.insert((row.vault_address.clone(), row.round_id), row.address.clone());
    }

    /// The round with this number in a vault.
    pub fn numbered_round(&self, vault: &Text, id: u64) -> Option<&RoundRow> {
        self.rounds.get(self.round_addresses.get(&(vault.clone(), id))?)
    }

    /// Takes all rows as they are now for loaded: for one set of rows through many blocks.
    pub fn settle(&mut self) {
        self.vaults.settle();
        self.providers.settle();
        self.rounds.settle();
        self.queued.settle();
        self.buyers.settle();
        self.bids.settle();
    }

    /// The rows that differ from what was loaded, by table. A row that was changed and changed back is not among them.
    pub fn changes(&self) -> Changes {
        Changes {
            vaults: self.vaults.changed(),
            providers: self.providers.changed(),
            rounds: self.rounds.changed(),
            queued: self.queued.changed(),
            buyers: self.buyers.changed(),
            bids: self.bids.changed(),
        }
    }
}
