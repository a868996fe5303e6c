//! Tables in memory that hand out what is wanted and nothing else, as a database would.

use std::collections::{BTreeMap, BTreeSet};

use ebbtide::chain::{BlockRef, Event, Hash, Height, Text};
use ebbtide::projections::option_vaults::decode::SELECTORS;
use ebbtide::projections::option_vaults::rows::{
    BidRow, BuyerRow, Changes, Layout, ProviderRow, QueuedRow, RoundRow, Row, VaultRow, Wanted,
};
use ebbtide::projections::option_vaults::{Directory, Registered, Working, addresses, apply, wanted};
use ebbtide::store::{BlockEvents, Refused};

/// The tables of the projection, those that others point at first.
pub const TABLES: [&str; 8] = [
    "vaults",
    "vault_history",
    "liquidity_providers",
    "liquidity_provider_history",
    "option_rounds",
    "queued_liquidity",
    "option_buyers",
    "option_bids",
];

pub const UDC: &str = "0x41a78e741e5af2fec34b695679bc6891742439f7afb8484ecd7766661ad02bf";

pub fn text(value: &str) -> Text {
    value.into()
}

/// An event as a Starknet source writes it: the selector is the first key.
pub fn event(emitter: &str, name: &str, keys: &[String], data: &[String]) -> Event {
    let selector = SELECTORS.iter().find(|(known, _)| *known == name).unwrap().1;
    Event {
        tx_index: 0,
        event_index: 0,
        emitter: text(emitter),
        name: text(name),
        keys: std::iter::once(selector).chain(keys.iter().map(String::as_str)).map(text).collect(),
        data: data.iter().map(|felt| text(felt)).collect(),
        attributes: serde_json::Value::Null,
    }
}

/// Gives events their places, all in one transaction.
pub fn in_order(mut events: Vec<Event>) -> Vec<Event> {
    for (n, event) in events.iter_mut().enumerate() {
        event.event_index = n as u64;
    }
    events
}

/// What layout A says, as layout B says it. `rounds`: number by address.
pub fn as_layout_b(events: &[Event], vault: &str, rounds: &BTreeMap<String, u64>) -> Vec<Event> {
    let mut said = Vec::new();
    for event in events {
        let mut event = event.clone();
        match &*event.name {
            "FossilCallbackSuccess" => continue,
            "ContractDeployed" => {
                // One argument more (the minimum cap level), two fewer (program and proving delay).
                let arguments = event.data[4].clone();
                assert_eq!(&*arguments, "0xa", "layout A of today");
                event.data[4] = text("0x9");
                event.data.drain(13..15);
                event.data.insert(10, text("0x7d0"));
            }
            "BidUpdated" => {
                let now = u64::from_str_radix(&event.data[4][2..], 16).unwrap();
                event.data[4] = format!("{:#x}", now - 1).into();
            }
            _ => {}
        }
        if let Some(id) = rounds.get(&*event.emitter) {
            event.keys.push(format!("{id:#x}").into());
            let round = std::mem::replace(&mut event.emitter, text(vault));
            event.data.push(round);
        }
        said.push(event);
    }
    in_order(said)
}

/// A block of these events.
pub fn block(height: u32, time: i64, events: &[Event]) -> BlockEvents {
    let block = BlockRef { height: Height::from(height), hash: Hash::new(format!("0xb{height}")) };
    BlockEvents { block, time: Some(time), events: events.to_vec() }
}

/// All rows of all tables.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tables {
    pub directory: Directory,
    pub vaults: BTreeMap<Text, VaultRow>,
    pub providers: BTreeMap<(Text, Text), ProviderRow>,
    pub rounds: BTreeMap<Text, RoundRow>,
    pub queued: BTreeMap<(Text, Text), QueuedRow>,
    pub buyers: BTreeMap<(Text, Text), BuyerRow>,
    pub bids: BTreeMap<(Text, Text), BidRow>,
}

impl Tables {
    pub fn with_vault(address: &str, layout: Layout) -> Tables {
        let registered = [(text(address), Registered { layout, from_height: None })].into();
        let directory = Directory { deployers: [text(UDC)].into(), registered, ..Directory::default() };
        Tables { directory, ..Tables::default() }
    }

    /// The vaults and rounds at these addresses, and the rounds' vaults.
    fn named(&self, addresses: &BTreeSet<Text>) -> Working {
        let mut rows = Working::default();
        let rounds: Vec<&RoundRow> = addresses.iter().filter_map(|address| self.rounds.get(address)).collect();
        let vaults = addresses.iter().chain(rounds.iter().map(|round| &round.vault_address));
        vaults.filter_map(|address| self.vaults.get(address)).for_each(|row| rows.load(Row::Vault(row.clone())));
        rounds.into_iter().for_each(|row| rows.load(Row::Round(row.clone())));
        rows
    }

    fn load(&self, wanted: &Wanted, rows: &mut Working) {
        let mut give = |row: Row| rows.load(row);
        for (key, row) in &self.providers {
            if wanted.providers.contains(key) || wanted.vaults_with_providers.contains(&key.0) {
                give(Row::Provider(row.clone()));
            }
        }
        for (address, row) in &self.rounds {
            let number = (row.vault_address.clone(), row.round_id);
            if wanted.rounds.contains(address) || wanted.numbered_rounds.contains(&number) {
                give(Row::Round(row.clone()));
            }
        }
        for (key, row) in &self.queued {
            let number = (row.vault_address.clone(), self.rounds[&key.0].round_id, key.1.clone());
            if wanted.queued.contains(&number) || wanted.rounds_with_queue.contains(&key.0) {
                give(Row::Queued(row.clone()));
            }
        }
        for (key, row) in &self.buyers {
            if wanted.buyers.contains(key) || wanted.rounds_with_bids.contains(&key.0) {
                give(Row::Buyer(row.clone()));
            }
        }
        for (key, row) in &self.bids {
            if wanted.bids.contains(key) || wanted.rounds_with_bids.contains(&key.0) {
                give(Row::Bid(row.clone()));
            }
        }
    }

    /// Applies a block and writes back; returns what was refused.
    pub fn apply(&mut self, height: u32, time: i64, events: &[Event]) -> Vec<Refused> {
        self.apply_range(&[block(height, time, events)]).0
    }

    /// Applies blocks and writes back; returns what was refused, and what is to be written.
    pub fn apply_range(&mut self, blocks: &[BlockEvents]) -> (Vec<Refused>, Changes) {
        let names = addresses(blocks);
        let mut rows = self.named(&names);
        let wanted = wanted(&self.directory, &rows, &names, blocks);
        self.load(&wanted, &mut rows);
        let refused = blocks.iter().flat_map(|block| apply(&self.directory, &mut rows, block)).collect();
        let changes = rows.take_changes();
        changes.vaults.iter().for_each(|w| self.put(Row::Vault(w.row.clone())));
        changes.providers.iter().for_each(|w| self.put(Row::Provider(w.row.clone())));
        changes.rounds.iter().for_each(|w| self.put(Row::Round(w.row.clone())));
        changes.queued.iter().for_each(|w| self.put(Row::Queued(w.row.clone())));
        changes.buyers.iter().for_each(|w| self.put(Row::Buyer(w.row.clone())));
        changes.bids.iter().for_each(|w| self.put(Row::Bid(w.row.clone())));
        (refused, changes)
    }

    pub fn put(&mut self, row: Row) {
        match row {
            Row::Vault(row) => _ = self.vaults.insert(row.address.clone(), row),
            Row::Provider(row) => {
                self.providers.insert((row.vault_address.clone(), row.address.clone()), row);
            }
            Row::Round(row) => _ = self.rounds.insert(row.address.clone(), row),
            Row::Queued(row) => _ = self.queued.insert((row.round_address.clone(), row.address.clone()), row),
            Row::Buyer(row) => _ = self.buyers.insert((row.round_address.clone(), row.address.clone()), row),
            Row::Bid(row) => _ = self.bids.insert((row.round_address.clone(), row.bid_id.clone()), row),
        }
    }

    /// All but what names the layout, a line a row.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for v in self.vaults.values() {
            let round = match (v.current_round, &v.current_round_address) {
                (Some(id), Some(address)) => format!("{id} @{address}"),
                none => format!("{none:?}"),
            };
            lines.push(format!(
                "vault {}: {}/{}/{} round {round}",
                v.address, v.unlocked_balance, v.locked_balance, v.stashed_balance
            ));
        }
        for p in self.providers.values() {
            lines.push(format!(
                "provider {}: {}/{}/{} ({})",
                p.address, p.unlocked_balance, p.locked_balance, p.stashed_balance, p.start_liquidity
            ));
        }
        for r in self.rounds.values() {
            lines.push(format!(
                "round {} {} of {} {} [{} {} {} at {:?}]: strike {} cap {} reserve {}, S {} available {}, sold {} \
                 clearing {} premiums {} unsold {}, queued {}, settlement {} k {} R {}",
                r.address,
                r.round_id,
                r.vault_address,
                r.state.as_str(),
                r.start_date,
                r.end_date,
                r.settlement_date,
                r.deployment_date.unwrap(),
                r.strike_price,
                r.cap_level,
                r.reserve_price,
                r.starting_liquidity,
                r.available_options,
                r.sold_options,
                r.clearing_price,
                r.premiums,
                r.unsold_liquidity,
                r.queued_liquidity,
                r.settlement_price,
                r.payout_per_option,
                r.remaining_liquidity
            ));
        }
        for q in self.queued.values() {
            lines.push(format!("queue {} {}: bps {}, {}", q.round_address, q.address, q.bps, q.queued_liquidity));
        }
        for b in self.buyers.values() {
            let flag = |set| if set { "t" } else { "f" };
            lines.push(format!(
                "buyer {} {}: {},{},{},{}",
                b.round_address,
                b.address,
                b.mintable_options,
                b.refundable_amount,
                flag(b.has_minted),
                flag(b.has_refunded)
            ));
        }
        for b in self.bids.values() {
            lines.push(format!(
                "bid {} {}: {},{},{},{}",
                b.round_address, b.bid_id, b.buyer_address, b.amount, b.price, b.tree_nonce
            ));
        }
        lines
    }
}
