//! What each event changes: rows as they are and an event in, rows as they become out.
//!
//! Shares are floors of one exact product each, as the contract computes them; a floor split over a sum is off by one.
//! An event either changes all its rows or, where something does not hold, none.

use ruint::Uint;

use super::rows::{BidRow, BuyerRow, Layout, ProviderRow, QueuedRow, RoundRow, RoundState, Row, VaultRow};
use crate::chain::{Amount, Text};

use super::clearing::{self, Outcome};
use super::event::{Moved, Pricing, RoundKey, VaultEvent};
use super::state::Working;

/// Holds the product of any two amounts.
type Wide = Uint<512, 8>;

/// Why an event cannot be applied to the rows as they are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// An event of a vault whose deployment was never applied.
    #[error("the vault has no row: its deployment was not seen")]
    UnknownVault,
    /// A second deployment.
    #[error("the vault has a row already")]
    VaultExists,
    /// An event of a round that was never deployed.
    #[error("the round has no row: its deployment was not seen")]
    UnknownRound,
    /// A deployment at an address that means something else: the first meaning stays.
    #[error("the address is that of a {of} already")]
    AddressTaken {
        /// `deployer`, `vault` or `round`.
        of: &'static str,
    },
    /// A round with an address or number that is taken.
    #[error("the vault has a round of this number or address already")]
    RoundExists,
    /// The event's number and address name different rounds.
    #[error("the round at this address has another number or vault")]
    RoundMismatch,
    /// The event does not follow on the round's state.
    #[error("the round is {}, not {}", found.as_str(), expected.as_str())]
    RoundStateMismatch {
        /// Where the round stands.
        found: RoundState,
        /// Where the event finds it on the chain.
        expected: RoundState,
    },
    /// The auction starts with another liquidity than the vault has.
    #[error("the auction starts with {said}, but the vault has {unlocked} unlocked")]
    LiquidityMismatch {
        /// What the event says.
        said: Amount,
        /// What the vault's row says.
        unlocked: Amount,
    },
    /// Not as many options are for sale as the liquidity backs.
    #[error("{said} options are for sale, but the liquidity backs {backed}")]
    OptionsMismatch {
        /// What the event says.
        said: Amount,
        /// What follows from liquidity, strike and cap.
        backed: Amount,
    },
    /// More or less was fetched than was stashed.
    #[error("{said} was fetched, but {stashed} is stashed")]
    StashMismatch {
        /// What the event says.
        said: Amount,
        /// What the provider's row says.
        stashed: Amount,
    },
    /// More options were sold than the round's bids ask for at that price.
    #[error("{unmatched} of the options sold belong to no bid")]
    ClearingMismatch {
        /// Options without a bid.
        unmatched: Amount,
    },
    /// A second bid of that id.
    #[error("the round has a bid of this id already")]
    BidExists,
    /// A raise of a bid that was never placed.
    #[error("the round has no bid of this id")]
    UnknownBid,
    /// A withdrawal leaves something to a provider who never deposited.
    #[error("the provider has no row: the deposit was not seen")]
    UnknownProvider,
    /// A sum or product above 256 bits.
    #[error("a sum or a product exceeds 256 bits")]
    Overflow,
    /// More goes out than is there.
    #[error("a balance would fall below zero")]
    NegativeBalance,
}

impl Fault {
    /// A fixed word that counts can be kept by.
    pub const fn reason(&self) -> &'static str {
        match self {
            Fault::UnknownVault => "unknown_vault",
            Fault::VaultExists => "vault_exists",
            Fault::UnknownRound => "unknown_round",
            Fault::AddressTaken { .. } => "address_taken",
            Fault::RoundExists => "round_exists",
            Fault::RoundMismatch => "round_mismatch",
            Fault::RoundStateMismatch { .. } => "round_state_mismatch",
            Fault::LiquidityMismatch { .. } => "liquidity_mismatch",
            Fault::OptionsMismatch { .. } => "options_mismatch",
            Fault::StashMismatch { .. } => "stash_mismatch",
            Fault::ClearingMismatch { .. } => "clearing_mismatch",
            Fault::BidExists => "bid_exists",
            Fault::UnknownBid => "unknown_bid",
            Fault::UnknownProvider => "unknown_provider",
            Fault::Overflow => "overflow",
            Fault::NegativeBalance => "negative_balance",
        }
    }
}

/// The rows an event leaves, of those that it touches. `time`: of the block, in seconds since 1970.
///
/// # Errors
/// What does not hold; then nothing is to be changed.
pub fn transition(
    rows: &Working,
    time: Option<i64>,
    vault_address: &Text,
    event: &VaultEvent,
) -> Result<Vec<Row>, Fault> {
    let vault = || rows.vaults.get(vault_address).cloned().ok_or(Fault::UnknownVault);
    match event {
        VaultEvent::VaultDeployed { address, layout, parameters } => {
            if rows.vaults.get(address).is_some() {
                return Err(Fault::VaultExists);
            }
            let parameters = Some(parameters.clone());
            Ok(vec![Row::Vault(VaultRow { parameters, ..new_vault(address, *layout, time) })])
        }
        VaultEvent::RoundDeployed { layout, id, address, dates, pricing } => {
            // A registered vault may have been made by a deployer that nobody reads. Its constructor makes round 1, so
            // nothing can have happened before; what it was made with stays unknown.
            let unseen = || (*id == 1).then(|| new_vault(vault_address, *layout, time)).ok_or(Fault::UnknownVault);
            let mut vault = vault().or_else(|_| unseen())?;
            if rows.rounds.get(address).is_some() || rows.numbered_round(vault_address, *id).is_some() {
                return Err(Fault::RoundExists);
            }
            vault.current_round = Some(*id);
            vault.current_round_address = Some(address.clone());
            let round = new_round(vault_address, *id, address, *dates, *pricing, time);
            Ok(vec![Row::Vault(vault), Row::Round(round)])
        }
        VaultEvent::PricingSet { round, pricing } => {
            let mut round = round_in(rows, vault_address, round, Some(RoundState::Open))?;
            (round.strike_price, round.cap_level, round.reserve_price) =
                (pricing.strike, pricing.cap_level, pricing.reserve);
            Ok(vec![Row::Round(round)])
        }
        VaultEvent::Deposited(moved) => {
            let provider = provider_of(rows, vault_address, &moved.account);
            Ok(moved_rows(
                vault()?,
                Some(provider.unwrap_or_else(|| new_provider(vault_address, &moved.account))),
                moved,
            ))
        }
        VaultEvent::Withdrawn(moved) => {
            let vault = vault()?;
            let provider = provider_of(rows, vault_address, &moved.account);
            // A stranger may withdraw nothing; a stranger with something left would be a deposit we missed.
            if provider.is_none() && !moved.account_unlocked.is_zero() {
                return Err(Fault::UnknownProvider);
            }
            Ok(moved_rows(vault, provider, moved))
        }
        VaultEvent::WithdrawalQueued { account, round_id, bps, account_queued, vault_queued } => {
            vault()?;
            let mut round = rows.numbered_round(vault_address, *round_id).cloned().ok_or(Fault::UnknownRound)?;
            round.queued_liquidity = *vault_queued;
            let queued = QueuedRow {
                vault_address: vault_address.clone(),
                round_address: round.address.clone(),
                address: account.clone(),
                bps: *bps,
                queued_liquidity: *account_queued,
            };
            Ok(vec![Row::Round(round), Row::Queued(queued)])
        }
        VaultEvent::StashWithdrawn { account, amount, vault_stashed } => {
            let mut vault = vault()?;
            let provider = provider_of(rows, vault_address, account);
            let stashed = provider.as_ref().map_or(Amount::ZERO, |provider| provider.stashed_balance);
            if stashed != *amount {
                return Err(Fault::StashMismatch { said: *amount, stashed });
            }
            vault.stashed_balance = *vault_stashed;
            let provider = provider.map(|provider| ProviderRow { stashed_balance: Amount::ZERO, ..provider });
            Ok(std::iter::once(Row::Vault(vault)).chain(provider.map(Row::Provider)).collect())
        }
        VaultEvent::AuctionStarted { round, starting_liquidity, options_available } => {
            let round = round_in(rows, vault_address, round, Some(RoundState::Open))?;
            auction_started(rows, vault()?, round, *starting_liquidity, *options_available)
        }
        VaultEvent::AuctionEnded { round, options_sold, clearing_price, unsold_liquidity, clearing_nonce } => {
            let round = round_in(rows, vault_address, round, Some(RoundState::Auctioning))?;
            let outcome = Outcome { sold: *options_sold, price: *clearing_price, nonce: *clearing_nonce };
            auction_ended(rows, vault()?, round, outcome, *unsold_liquidity)
        }
        VaultEvent::RoundSettled { round, settlement_price, payout_per_option } => {
            let round = round_in(rows, vault_address, round, Some(RoundState::Running))?;
            round_settled(rows, vault()?, round, *settlement_price, *payout_per_option)
        }
        VaultEvent::BidPlaced { round, account, bid_id, amount, price, nonce } => {
            let round = round_in(rows, vault_address, round, Some(RoundState::Auctioning))?;
            if rows.bids.get(&(round.address.clone(), bid_id.clone())).is_some() {
                return Err(Fault::BidExists);
            }
            let bid = BidRow {
                vault_address: vault_address.clone(),
                round_address: round.address.clone(),
                bid_id: bid_id.clone(),
                buyer_address: account.clone(),
                tree_nonce: *nonce,
                amount: *amount,
                price: *price,
            };
            let buyer = buyer_of(rows, &round, account).unwrap_or_else(|| new_buyer(&round, account));
            Ok(vec![Row::Buyer(buyer), Row::Bid(bid)])
        }
        VaultEvent::BidUpdated { round, bid_id, price_increase, nonce } => {
            let round = round_in(rows, vault_address, round, Some(RoundState::Auctioning))?;
            let mut bid = rows.bids.get(&(round.address, bid_id.clone())).cloned().ok_or(Fault::UnknownBid)?;
            bid.price = sum(bid.price, *price_increase)?;
            bid.tree_nonce = *nonce;
            Ok(vec![Row::Bid(bid)])
        }
        // Whoever holds options may exercise them, and anybody may ask for another's refund: an account without a row
        // is no fault, and gets none. Minting and exercising need no more than the flag.
        VaultEvent::OptionsMinted { round, account } | VaultEvent::OptionsExercised { round, account } => {
            let round = round_in(rows, vault_address, round, None)?;
            let buyer = buyer_of(rows, &round, account);
            Ok(buyer.map(|buyer| Row::Buyer(BuyerRow { has_minted: true, ..buyer })).into_iter().collect())
        }
        VaultEvent::BidsRefunded { round, account } => {
            let round = round_in(rows, vault_address, round, None)?;
            let buyer = buyer_of(rows, &round, account);
            Ok(buyer.map(|buyer| Row::Buyer(BuyerRow { has_refunded: true, ..buyer })).into_iter().collect())
        }
    }
}

/// The round an event names, if it is of this vault and stands where it must.
fn round_in(rows: &Working, vault: &Text, key: &RoundKey, state: Option<RoundState>) -> Result<RoundRow, Fault> {
    let round = rows.rounds.get(&key.address).ok_or(Fault::UnknownRound)?;
    if round.vault_address != *vault || key.id.is_some_and(|id| id != round.round_id) {
        return Err(Fault::RoundMismatch);
    }
    match state {
        Some(expected) if expected != round.state => Err(Fault::RoundStateMismatch { found: round.state, expected }),
        _ => Ok(round.clone()),
    }
}

fn provider_of(rows: &Working, vault: &Text, account: &Text) -> Option<ProviderRow> {
    rows.providers.get(&(vault.clone(), account.clone())).cloned()
}

fn buyer_of(rows: &Working, round: &RoundRow, account: &Text) -> Option<BuyerRow> {
    rows.buyers.get(&(round.address.clone(), account.clone())).cloned()
}

fn moved_rows(vault: VaultRow, provider: Option<ProviderRow>, moved: &Moved) -> Vec<Row> {
    let vault = VaultRow { unlocked_balance: moved.vault_unlocked, ..vault };
    let provider = provider.map(|row| ProviderRow { unlocked_balance: moved.account_unlocked, ..row });
    std::iter::once(Row::Vault(vault)).chain(provider.map(Row::Provider)).collect()
}

/// Everything unlocked is locked, and each provider's part of it is remembered.
fn auction_started(
    rows: &Working,
    mut vault: VaultRow,
    mut round: RoundRow,
    starting_liquidity: Amount,
    options_available: Amount,
) -> Result<Vec<Row>, Fault> {
    if starting_liquidity != vault.unlocked_balance {
        return Err(Fault::LiquidityMismatch { said: starting_liquidity, unlocked: vault.unlocked_balance });
    }
    let most_payout = wide(round.strike_price, round.cap_level) / Wide::from(10_000);
    let backed =
        if most_payout.is_zero() { Amount::ZERO } else { narrow(Wide::from(starting_liquidity) / most_payout)? };
    if options_available != backed {
        return Err(Fault::OptionsMismatch { said: options_available, backed });
    }
    let mut left = Vec::new();
    for provider in rows.providers.of(&vault.address) {
        let unlocked = provider.unlocked_balance;
        let mut provider = ProviderRow { start_liquidity: unlocked, ..provider.clone() };
        if !unlocked.is_zero() {
            (provider.locked_balance, provider.unlocked_balance) = (unlocked, Amount::ZERO);
        }
        left.push(Row::Provider(provider));
    }
    (vault.locked_balance, vault.unlocked_balance) = (vault.unlocked_balance, Amount::ZERO);
    round.state = RoundState::Auctioning;
    round.starting_liquidity = starting_liquidity;
    round.available_options = options_available;
    left.extend([Row::Vault(vault), Row::Round(round)]);
    Ok(left)
}

/// Premiums and what backs nothing are unlocked, by shares; each buyer learns what was won and what comes back.
fn auction_ended(
    rows: &Working,
    mut vault: VaultRow,
    mut round: RoundRow,
    outcome: Outcome,
    unsold: Amount,
) -> Result<Vec<Row>, Fault> {
    let start = round.starting_liquidity;
    let premiums = product(outcome.sold, outcome.price)?;
    let gained = sum(premiums, unsold)?;
    let backing = difference(start, unsold)?;
    let mut left = Vec::new();
    for provider in rows.providers.of(&vault.address).filter(|row| !row.start_liquidity.is_zero()) {
        let mut provider = provider.clone();
        provider.locked_balance = share(backing, provider.start_liquidity, start)?;
        let gain = share(gained, provider.start_liquidity, start)?;
        provider.unlocked_balance = sum(provider.unlocked_balance, gain)?;
        left.push(Row::Provider(provider));
    }
    for (account, entitled) in clearing::clear(rows.bids.of(&round.address), outcome)? {
        let mut buyer = buyer_of(rows, &round, &account).unwrap_or_else(|| new_buyer(&round, &account));
        buyer.mintable_options = sum(buyer.mintable_options, entitled.mintable)?;
        buyer.refundable_amount = sum(buyer.refundable_amount, entitled.refundable)?;
        left.push(Row::Buyer(buyer));
    }
    vault.unlocked_balance = sum(vault.unlocked_balance, gained)?;
    vault.locked_balance = difference(vault.locked_balance, unsold)?;
    round.state = RoundState::Running;
    round.sold_options = outcome.sold;
    round.clearing_price = outcome.price;
    round.premiums = premiums;
    round.unsold_liquidity = unsold;
    left.extend([Row::Vault(vault), Row::Round(round)]);
    Ok(left)
}

/// What the payout leaves is unlocked by shares; what was queued of it is stashed.
fn round_settled(
    rows: &Working,
    mut vault: VaultRow,
    mut round: RoundRow,
    settlement_price: Amount,
    payout_per_option: Amount,
) -> Result<Vec<Row>, Fault> {
    let start = round.starting_liquidity;
    let payout = product(round.sold_options, payout_per_option)?;
    let remaining = difference(difference(start, round.unsold_liquidity)?, payout)?;
    let mut left = Vec::new();
    for provider in rows.providers.of(&vault.address).filter(|row| !row.start_liquidity.is_zero()) {
        let mut provider = provider.clone();
        let key = (round.address.clone(), provider.address.clone());
        let queued = rows.queued.get(&key).map_or(Amount::ZERO, |row| row.queued_liquidity);
        let stash = share(remaining, queued, start)?;
        let part = difference(share(remaining, provider.start_liquidity, start)?, stash)?;
        provider.unlocked_balance = sum(provider.unlocked_balance, part)?;
        provider.stashed_balance = sum(provider.stashed_balance, stash)?;
        (provider.locked_balance, provider.start_liquidity) = (Amount::ZERO, Amount::ZERO);
        left.push(Row::Provider(provider));
    }
    // Of the vault's own queue, not the sum of the providers' floors: the contract does the same, and keeps the rest.
    let stash = share(remaining, round.queued_liquidity, start)?;
    vault.unlocked_balance = sum(vault.unlocked_balance, difference(remaining, stash)?)?;
    vault.stashed_balance = sum(vault.stashed_balance, stash)?;
    vault.locked_balance = Amount::ZERO;
    round.state = RoundState::Settled;
    round.settlement_price = settlement_price;
    round.payout_per_option = payout_per_option;
    round.remaining_liquidity = remaining;
    left.extend([Row::Vault(vault), Row::Round(round)]);
    Ok(left)
}

fn new_vault(address: &Text, layout: Layout, deployment_date: Option<i64>) -> VaultRow {
    VaultRow {
        address: address.clone(),
        layout,
        unlocked_balance: Amount::ZERO,
        locked_balance: Amount::ZERO,
        stashed_balance: Amount::ZERO,
        current_round: None,
        current_round_address: None,
        parameters: None,
        deployment_date,
    }
}

fn new_provider(vault: &Text, account: &Text) -> ProviderRow {
    ProviderRow {
        vault_address: vault.clone(),
        address: account.clone(),
        unlocked_balance: Amount::ZERO,
        locked_balance: Amount::ZERO,
        stashed_balance: Amount::ZERO,
        start_liquidity: Amount::ZERO,
    }
}

fn new_buyer(round: &RoundRow, account: &Text) -> BuyerRow {
    BuyerRow {
        vault_address: round.vault_address.clone(),
        round_address: round.address.clone(),
        address: account.clone(),
        has_minted: false,
        has_refunded: false,
        mintable_options: Amount::ZERO,
        refundable_amount: Amount::ZERO,
    }
}

fn new_round(
    vault: &Text,
    round_id: u64,
    address: &Text,
    [start_date, end_date, settlement_date]: [u64; 3],
    pricing: Pricing,
    deployment_date: Option<i64>,
) -> RoundRow {
    RoundRow {
        address: address.clone(),
        vault_address: vault.clone(),
        round_id,
        state: RoundState::Open,
        start_date,
        end_date,
        settlement_date,
        deployment_date,
        strike_price: pricing.strike,
        cap_level: pricing.cap_level,
        reserve_price: pricing.reserve,
        available_options: Amount::ZERO,
        starting_liquidity: Amount::ZERO,
        queued_liquidity: Amount::ZERO,
        sold_options: Amount::ZERO,
        clearing_price: Amount::ZERO,
        premiums: Amount::ZERO,
        unsold_liquidity: Amount::ZERO,
        settlement_price: Amount::ZERO,
        payout_per_option: Amount::ZERO,
        remaining_liquidity: Amount::ZERO,
    }
}

/// floor(total * part / whole): one product, one floor. Of nothing, nobody has a share.
fn share(total: Amount, part: Amount, whole: Amount) -> Result<Amount, Fault> {
    if whole.is_zero() {
        return Ok(Amount::ZERO);
    }
    narrow(wide(total, part) / Wide::from(whole))
}

fn wide(a: Amount, b: Amount) -> Wide {
    // Both below 2^256, so the product cannot wrap.
    Wide::from(a).wrapping_mul(Wide::from(b))
}

fn narrow(wide: Wide) -> Result<Amount, Fault> {
    Amount::checked_from_limbs_slice(wide.as_limbs()).ok_or(Fault::Overflow)
}

fn product(a: Amount, b: Amount) -> Result<Amount, Fault> {
    a.checked_mul(b).ok_or(Fault::Overflow)
}

fn sum(a: Amount, b: Amount) -> Result<Amount, Fault> {
    a.checked_add(b).ok_or(Fault::Overflow)
}

fn difference(a: Amount, b: Amount) -> Result<Amount, Fault> {
    a.checked_sub(b).ok_or(Fault::NegativeBalance)
}
