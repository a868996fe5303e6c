//! The rows of the option vault tables, as they stand in Postgres (migrations/V3__option_vaults.sql, V5__option_vaults.sql).
//!
//! Addresses, hashes and ids are felts in canonical text. Dates and counters are u64, as the contracts have them.

use std::collections::BTreeSet;

use crate::chain::{Amount, BlockRef, Text};

/// Which contract emits what: two incompatible builds exist, and a vault is told which one it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Each round emits the events of its auction.
    A,
    /// The vault emits everything and names the round.
    B,
}

impl Layout {
    /// The word in `vault_registry.layout` and `vaults.layout`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Layout::A => "a",
            Layout::B => "b",
        }
    }

    /// The layout a word names.
    pub fn parse(word: &str) -> Option<Layout> {
        [Layout::A, Layout::B].into_iter().find(|layout| layout.as_str() == word)
    }
}

/// Where a round stands. It only moves forward; backward is undo's matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RoundState {
    /// Deployed; deposits for it are taken.
    Open,
    /// Bids are taken.
    Auctioning,
    /// Options are sold.
    Running,
    /// Paid out.
    Settled,
}

impl RoundState {
    /// The word in `option_rounds.state`.
    pub const fn as_str(self) -> &'static str {
        match self {
            RoundState::Open => "Open",
            RoundState::Auctioning => "Auctioning",
            RoundState::Running => "Running",
            RoundState::Settled => "Settled",
        }
    }

    /// The state a word names.
    pub fn parse(word: &str) -> Option<RoundState> {
        use RoundState::{Auctioning, Open, Running, Settled};
        [Open, Auctioning, Running, Settled].into_iter().find(|state| state.as_str() == word)
    }
}

/// A row of `vaults`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultRow {
    /// The vault's address.
    pub address: Text,
    /// The layout its events were read by.
    pub layout: Layout,
    /// What depositors can take out now.
    pub unlocked_balance: Amount,
    /// What backs the options of the running round.
    pub locked_balance: Amount,
    /// What was queued for withdrawal and is paid out.
    pub stashed_balance: Amount,
    /// The newest round; None means that none is deployed yet.
    pub current_round: Option<u64>,
    /// The newest round's address.
    pub current_round_address: Option<Text>,
    /// What the deployment said; None means that the deployment was not seen.
    pub parameters: Option<VaultParameters>,
    /// Time of the deployment's block in seconds since 1970; None means that the block has no time.
    pub deployment_date: Option<i64>,
}

/// What a vault was deployed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultParameters {
    /// Who may settle rounds (fossil client, verifier or data processor, by the build).
    pub fossil_client_address: Text,
    /// The token everything is paid in.
    pub eth_address: Text,
    /// The class of its rounds.
    pub option_round_class_hash: Text,
    /// Risk parameter, in basis points.
    pub alpha: Amount,
    /// How far the strike lies from the price, in basis points; signed.
    pub strike_level: i128,
    /// Seconds between two rounds.
    pub round_transition_period: u64,
    /// Seconds an auction runs.
    pub auction_duration: u64,
    /// Seconds a round runs.
    pub round_duration: u64,
}

/// A row of `liquidity_providers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderRow {
    /// The vault.
    pub vault_address: Text,
    /// Who provides.
    pub address: Text,
    /// What can be taken out now.
    pub unlocked_balance: Amount,
    /// What backs the options of the running round.
    pub locked_balance: Amount,
    /// What was queued for withdrawal and is paid out.
    pub stashed_balance: Amount,
    /// What was unlocked at the instant the running auction started: shares are exact floors of it, and of nothing
    /// that was rounded before. 0 between rounds.
    pub start_liquidity: Amount,
}

/// A row of `option_rounds`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoundRow {
    /// The round's address.
    pub address: Text,
    /// Its vault.
    pub vault_address: Text,
    /// Its number in the vault, from 1.
    pub round_id: u64,
    /// Where it stands.
    pub state: RoundState,
    /// The auction's start, seconds since 1970.
    pub start_date: u64,
    /// The auction's end, seconds since 1970.
    pub end_date: u64,
    /// The settlement, seconds since 1970.
    pub settlement_date: u64,
    /// Time of the deployment's block in seconds since 1970; None means that the block has no time.
    pub deployment_date: Option<i64>,
    /// Strike.
    pub strike_price: Amount,
    /// Most an option pays, in basis points of the strike.
    pub cap_level: Amount,
    /// Lowest price of a bid.
    pub reserve_price: Amount,
    /// Options for sale.
    pub available_options: Amount,
    /// What was unlocked in the vault when the auction started.
    pub starting_liquidity: Amount,
    /// Queued for withdrawal at settlement.
    pub queued_liquidity: Amount,
    /// Options sold.
    pub sold_options: Amount,
    /// What each sold option cost.
    pub clearing_price: Amount,
    /// Sold times price.
    pub premiums: Amount,
    /// Backing of options that were not sold.
    pub unsold_liquidity: Amount,
    /// The price it was settled at.
    pub settlement_price: Amount,
    /// What each option pays.
    pub payout_per_option: Amount,
    /// What remains for providers after settlement.
    pub remaining_liquidity: Amount,
}

/// A row of `queued_liquidity`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueuedRow {
    /// The vault.
    pub vault_address: Text,
    /// The round at whose settlement it is paid out.
    pub round_address: Text,
    /// The provider.
    pub address: Text,
    /// The part that was asked for, in basis points.
    pub bps: Amount,
    /// The amount at the start of the round.
    pub queued_liquidity: Amount,
}

/// A row of `option_buyers`. The amounts are entitlements, fixed when the auction ends; the flags say they were used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuyerRow {
    /// The vault.
    pub vault_address: Text,
    /// The round.
    pub round_address: Text,
    /// Who bid.
    pub address: Text,
    /// Options were minted, or exercised before they were.
    pub has_minted: bool,
    /// Unused bids were paid back.
    pub has_refunded: bool,
    /// Options won.
    pub mintable_options: Amount,
    /// Paid in beyond what the options cost.
    pub refundable_amount: Amount,
}

/// A row of `option_bids`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BidRow {
    /// The vault.
    pub vault_address: Text,
    /// The round.
    pub round_address: Text,
    /// The bid.
    pub bid_id: Text,
    /// Who bid.
    pub buyer_address: Text,
    /// Its place among bids of one price: lower wins.
    pub tree_nonce: u64,
    /// Options asked for.
    pub amount: Amount,
    /// Offered for each.
    pub price: Amount,
}

/// A row of any of the tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Row {
    /// Of `vaults`.
    Vault(VaultRow),
    /// Of `liquidity_providers`.
    Provider(ProviderRow),
    /// Of `option_rounds`.
    Round(RoundRow),
    /// Of `queued_liquidity`.
    Queued(QueuedRow),
    /// Of `option_buyers`.
    Buyer(BuyerRow),
    /// Of `option_bids`.
    Bid(BidRow),
}

/// Rows to load before events are applied to them, beside the vaults and rounds at the addresses that the events name. A
/// row that does not exist is simply not found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// All `liquidity_providers` of these vaults: a round begins, ends its auction or is settled.
    pub vaults_with_providers: BTreeSet<Text>,
    /// `liquidity_providers` by (vault, address).
    pub providers: BTreeSet<(Text, Text)>,
    /// `option_rounds` by address.
    pub rounds: BTreeSet<Text>,
    /// `option_rounds` by (vault, round's number).
    pub numbered_rounds: BTreeSet<(Text, u64)>,
    /// All `option_bids` and `option_buyers` of these rounds: their auctions end.
    pub rounds_with_bids: BTreeSet<Text>,
    /// All `queued_liquidity` of these rounds: they are settled.
    pub rounds_with_queue: BTreeSet<Text>,
    /// `option_buyers` by (round, address).
    pub buyers: BTreeSet<(Text, Text)>,
    /// `option_bids` by (round, bid).
    pub bids: BTreeSet<(Text, Text)>,
    /// `queued_liquidity` by (vault, round's number, address).
    pub queued: BTreeSet<(Text, u64, Text)>,
}

/// A row as a block left it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written<R> {
    /// The row.
    pub row: R,
    /// The block.
    pub block: BlockRef,
}

/// Rows to insert, or to put in the place of those with the same keys, each as the last block left it that changed it; and
/// the history of all of these blocks. Nothing is ever deleted on the way forward.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Of `vaults`.
    pub vaults: Vec<Written<VaultRow>>,
    /// Of `vault_history`.
    pub vault_history: Vec<Written<VaultRow>>,
    /// Of `liquidity_providers`.
    pub providers: Vec<Written<ProviderRow>>,
    /// Of `liquidity_provider_history`.
    pub provider_history: Vec<Written<ProviderRow>>,
    /// Of `option_rounds`.
    pub rounds: Vec<Written<RoundRow>>,
    /// Of `queued_liquidity`.
    pub queued: Vec<Written<QueuedRow>>,
    /// Of `option_buyers`.
    pub buyers: Vec<Written<BuyerRow>>,
    /// Of `option_bids`.
    pub bids: Vec<Written<BidRow>>,
}
