//! Vaults, rounds, providers, buyers and bids as JSON: what a contract said is text (an event's numbers have up to 256
//! bits), block heights are numbers as everywhere.

use serde::{Serialize, Serializer};

use crate::chain::Amount;
use crate::projections::option_vaults::reads::Standing;
use crate::projections::option_vaults::rows::{BidRow, BuyerRow, ProviderRow, QueuedRow, RoundRow, VaultRow};

/// A number as decimal digits in quotes.
struct Digits<T>(T);

impl<T: std::fmt::Display> Serialize for Digits<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// A vault.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::api) struct VaultItem<'a> {
    address: &'a str,
    layout: &'a str,
    /// Has no history: left out of answers about the past.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    current: Option<CurrentRound<'a>>,
    unlocked_balance: Digits<Amount>,
    locked_balance: Digits<Amount>,
    stashed_balance: Digits<Amount>,
    latest_block: i64,
    deployment_date: Option<Digits<i64>>,
    fossil_client_address: Option<&'a str>,
    eth_address: Option<&'a str>,
    option_round_class_hash: Option<&'a str>,
    alpha: Option<Digits<Amount>>,
    strike_level: Option<Digits<i128>>,
    auction_run_time: Option<Digits<u64>>,
    option_run_time: Option<Digits<u64>>,
    round_transition_period: Option<Digits<u64>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CurrentRound<'a> {
    current_round_id: Option<Digits<u64>>,
    current_round_address: Option<&'a str>,
}

impl<'a> VaultItem<'a> {
    /// As it is now.
    pub(in crate::api) fn now(vault: &'a Standing<VaultRow>) -> VaultItem<'a> {
        let current = CurrentRound {
            current_round_id: vault.row.current_round.map(Digits),
            current_round_address: vault.row.current_round_address.as_deref(),
        };
        VaultItem { current: Some(current), ..VaultItem::then(vault) }
    }

    /// As it was at some height.
    pub(in crate::api) fn then(vault: &'a Standing<VaultRow>) -> VaultItem<'a> {
        let Standing { row, latest_block } = vault;
        let said = row.parameters.as_ref();
        VaultItem {
            address: &row.address,
            layout: row.layout.as_str(),
            current: None,
            unlocked_balance: Digits(row.unlocked_balance),
            locked_balance: Digits(row.locked_balance),
            stashed_balance: Digits(row.stashed_balance),
            latest_block: *latest_block,
            deployment_date: row.deployment_date.map(Digits),
            fossil_client_address: said.map(|said| &*said.fossil_client_address),
            eth_address: said.map(|said| &*said.eth_address),
            option_round_class_hash: said.map(|said| &*said.option_round_class_hash),
            alpha: said.map(|said| Digits(said.alpha)),
            strike_level: said.map(|said| Digits(said.strike_level)),
            auction_run_time: said.map(|said| Digits(said.auction_duration)),
            option_run_time: said.map(|said| Digits(said.round_duration)),
            round_transition_period: said.map(|said| Digits(said.round_transition_period)),
        }
    }
}

/// What a provider has in a vault.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::api) struct ProviderItem<'a> {
    vault_address: &'a str,
    address: &'a str,
    unlocked_balance: Digits<Amount>,
    locked_balance: Digits<Amount>,
    stashed_balance: Digits<Amount>,
    latest_block: i64,
}

impl<'a> ProviderItem<'a> {
    pub(in crate::api) fn of(provider: &'a Standing<ProviderRow>) -> ProviderItem<'a> {
        let Standing { row, latest_block } = provider;
        ProviderItem {
            vault_address: &row.vault_address,
            address: &row.address,
            unlocked_balance: Digits(row.unlocked_balance),
            locked_balance: Digits(row.locked_balance),
            stashed_balance: Digits(row.stashed_balance),
            latest_block: *latest_block,
        }
    }
}

/// A round.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::api) struct RoundItem<'a> {
    vault_address: &'a str,
    address: &'a str,
    round_id: Digits<u64>,
    round_state: &'a str,
    cap_level: Digits<Amount>,
    auction_start_date: Digits<u64>,
    auction_end_date: Digits<u64>,
    option_settle_date: Digits<u64>,
    starting_liquidity: Digits<Amount>,
    queued_liquidity: Digits<Amount>,
    remaining_liquidity: Digits<Amount>,
    available_options: Digits<Amount>,
    clearing_price: Digits<Amount>,
    settlement_price: Digits<Amount>,
    reserve_price: Digits<Amount>,
    strike_price: Digits<Amount>,
    options_sold: Digits<Amount>,
    unsold_liquidity: Digits<Amount>,
    premiums: Digits<Amount>,
    payout_per_option: Digits<Amount>,
    deployment_date: Option<Digits<i64>>,
    latest_block: i64,
}

impl<'a> RoundItem<'a> {
    pub(in crate::api) fn of(round: &'a Standing<RoundRow>) -> RoundItem<'a> {
        let Standing { row, latest_block } = round;
        RoundItem {
            vault_address: &row.vault_address,
            address: &row.address,
            round_id: Digits(row.round_id),
            round_state: row.state.as_str(),
            cap_level: Digits(row.cap_level),
            auction_start_date: Digits(row.start_date),
            auction_end_date: Digits(row.end_date),
            option_settle_date: Digits(row.settlement_date),
            starting_liquidity: Digits(row.starting_liquidity),
            queued_liquidity: Digits(row.queued_liquidity),
            remaining_liquidity: Digits(row.remaining_liquidity),
            available_options: Digits(row.available_options),
            clearing_price: Digits(row.clearing_price),
            settlement_price: Digits(row.settlement_price),
            reserve_price: Digits(row.reserve_price),
            strike_price: Digits(row.strike_price),
            options_sold: Digits(row.sold_options),
            unsold_liquidity: Digits(row.unsold_liquidity),
            premiums: Digits(row.premiums),
            payout_per_option: Digits(row.payout_per_option),
            deployment_date: row.deployment_date.map(Digits),
            latest_block: *latest_block,
        }
    }
}

/// What a buyer is entitled to in a round.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::api) struct BuyerItem<'a> {
    vault_address: &'a str,
    round_address: &'a str,
    address: &'a str,
    mintable_options: Digits<Amount>,
    has_minted: bool,
    has_refunded: bool,
    /// An amount of the payment token; the name is that of the clients written for the contract.
    refundable_options: Digits<Amount>,
}

impl<'a> BuyerItem<'a> {
    pub(in crate::api) fn of(row: &'a BuyerRow) -> BuyerItem<'a> {
        BuyerItem {
            vault_address: &row.vault_address,
            round_address: &row.round_address,
            address: &row.address,
            mintable_options: Digits(row.mintable_options),
            has_minted: row.has_minted,
            has_refunded: row.has_refunded,
            refundable_options: Digits(row.refundable_amount),
        }
    }
}

/// A bid; `address` is who made it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::api) struct BidItem<'a> {
    vault_address: &'a str,
    round_address: &'a str,
    address: &'a str,
    bid_id: &'a str,
    tree_nonce: Digits<u64>,
    amount: Digits<Amount>,
    price: Digits<Amount>,
}

impl<'a> BidItem<'a> {
    pub(in crate::api) fn of(row: &'a BidRow) -> BidItem<'a> {
        BidItem {
            vault_address: &row.vault_address,
            round_address: &row.round_address,
            address: &row.buyer_address,
            bid_id: &row.bid_id,
            tree_nonce: Digits(row.tree_nonce),
            amount: Digits(row.amount),
            price: Digits(row.price),
        }
    }
}

/// What a provider asked to take out at a round's settlement.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::api) struct QueuedItem<'a> {
    vault_address: &'a str,
    round_address: &'a str,
    address: &'a str,
    bps: Digits<Amount>,
    queued_liquidity: Digits<Amount>,
}

impl<'a> QueuedItem<'a> {
    pub(in crate::api) fn of(row: &'a QueuedRow) -> QueuedItem<'a> {
        QueuedItem {
            vault_address: &row.vault_address,
            round_address: &row.round_address,
            address: &row.address,
            bps: Digits(row.bps),
            queued_liquidity: Digits(row.queued_liquidity),
        }
    }
}
