//! The rows that blocks work on, and what became of them.

use std::collections::BTreeMap;

use crate::chain::{BlockRef, Text};

use super::event::VaultEvent;
use super::rows::{BidRow, BuyerRow, Changes, ProviderRow, QueuedRow, RoundRow, Row, VaultRow, Wanted, Written};

impl Wanted {
    /// Adds what an event of a vault needs.
    pub(super) fn add(&mut self, vault: &Text, event: &VaultEvent) {
        match event {
            VaultEvent::VaultDeployed { .. } => {}
            VaultEvent::RoundDeployed { id, address, .. } => {
                self.rounds.insert(address.clone());
                self.numbered_rounds.insert((vault.clone(), *id));
            }
            VaultEvent::PricingSet { round, .. } => _ = self.rounds.insert(round.address.clone()),
            VaultEvent::Deposited(moved) | VaultEvent::Withdrawn(moved) => {
                self.providers.insert((vault.clone(), moved.account.clone()));
            }
            VaultEvent::StashWithdrawn { account, .. } => {
                self.providers.insert((vault.clone(), account.clone()));
            }
            VaultEvent::WithdrawalQueued { account, round_id, .. } => {
                self.numbered_rounds.insert((vault.clone(), *round_id));
                self.queued.insert((vault.clone(), *round_id, account.clone()));
            }
            VaultEvent::AuctionStarted { round, .. } => {
                self.rounds.insert(round.address.clone());
                self.vaults_with_providers.insert(vault.clone());
            }
            VaultEvent::AuctionEnded { round, .. } => {
                self.rounds.insert(round.address.clone());
                self.vaults_with_providers.insert(vault.clone());
                self.rounds_with_bids.insert(round.address.clone());
            }
            VaultEvent::RoundSettled { round, .. } => {
                self.rounds.insert(round.address.clone());
                self.vaults_with_providers.insert(vault.clone());
                self.rounds_with_queue.insert(round.address.clone());
            }
            VaultEvent::BidPlaced { round, account, bid_id, .. } => {
                self.rounds.insert(round.address.clone());
                self.buyers.insert((round.address.clone(), account.clone()));
                self.bids.insert((round.address.clone(), bid_id.clone()));
            }
            VaultEvent::BidUpdated { round, bid_id, .. } => {
                self.rounds.insert(round.address.clone());
                self.bids.insert((round.address.clone(), bid_id.clone()));
            }
            VaultEvent::OptionsMinted { round, account }
            | VaultEvent::BidsRefunded { round, account }
            | VaultEvent::OptionsExercised { round, account } => {
                self.rounds.insert(round.address.clone());
                self.buyers.insert((round.address.clone(), account.clone()));
            }
        }
    }
}

/// Rows of one table, with those that the block being applied touched and those that blocks before it changed.
#[derive(Debug, Clone)]
pub struct Table<K, V> {
    rows: BTreeMap<K, V>,
    /// As it was before the block; None means that it did not exist.
    touched: BTreeMap<K, Option<V>>,
    /// By which block last.
    changed: BTreeMap<K, BlockRef>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Table<K, V> {
        Table { rows: BTreeMap::new(), touched: BTreeMap::new(), changed: BTreeMap::new() }
    }
}

impl<K: Ord + Clone, V: Clone + PartialEq> Table<K, V> {
    fn load(&mut self, key: K, row: V) {
        self.rows.insert(key, row);
    }

    fn put(&mut self, key: K, row: V) {
        let before = self.rows.insert(key.clone(), row);
        self.touched.entry(key).or_insert(before);
    }

    /// The row as it is now.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.rows.get(key)
    }

    /// Ends a block; the rows that it changed. A row that was changed and changed back is not among them.
    fn settle(&mut self, block: &BlockRef) -> Vec<Written<V>> {
        let mut written = Vec::new();
        for (key, before) in std::mem::take(&mut self.touched) {
            let now = &self.rows[&key];
            if before.as_ref() != Some(now) {
                written.push(Written { row: now.clone(), block: block.clone() });
                self.changed.insert(key, block.clone());
            }
        }
        written
    }

    fn take_changed(&mut self) -> Vec<Written<V>> {
        let changed = std::mem::take(&mut self.changed).into_iter();
        changed.map(|(key, block)| Written { row: self.rows[&key].clone(), block }).collect()
    }
}

impl<V: Clone + PartialEq> Table<(Text, Text), V> {
    /// The rows whose key begins with `first`.
    pub fn of<'a>(&'a self, first: &'a Text) -> impl Iterator<Item = &'a V> {
        let begin = (first.clone(), Text::from(""));
        self.rows.range(begin..).take_while(move |((key, _), _)| key == first).map(|(_, row)| row)
    }
}

/// The rows that blocks work on: loaded, changed by their events, and asked what to write.
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
    vault_history: Vec<Written<VaultRow>>,
    provider_history: Vec<Written<ProviderRow>>,
}

impl Working {
    /// Takes a row as it stands in its table, before any block is applied. The same row may come twice.
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

    /// Ends a block: what it changed is kept, with its history.
    pub(super) fn settle(&mut self, block: &BlockRef) {
        self.vault_history.extend(self.vaults.settle(block));
        self.provider_history.extend(self.providers.settle(block));
        self.rounds.settle(block);
        self.queued.settle(block);
        self.buyers.settle(block);
        self.bids.settle(block);
    }

    /// What the blocks changed since this was asked last.
    pub fn take_changes(&mut self) -> Changes {
        Changes {
            vaults: self.vaults.take_changed(),
            vault_history: std::mem::take(&mut self.vault_history),
            providers: self.providers.take_changed(),
            provider_history: std::mem::take(&mut self.provider_history),
            rounds: self.rounds.take_changed(),
            queued: self.queued.take_changed(),
            buyers: self.buyers.take_changed(),
            bids: self.bids.take_changed(),
        }
    }
}
