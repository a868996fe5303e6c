//! What events of option vaults say, the same for both layouts.

use super::rows::{Layout, VaultParameters};
use crate::chain::{Amount, Text};

/// Which round an event is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoundKey {
    /// Its address: who said it (layout A), or what the event says (layout B).
    pub address: Text,
    /// Its number, where the event says it too (layout B).
    pub id: Option<u64>,
}

/// What an event says, the same for both layouts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VaultEvent {
    /// A vault was made.
    VaultDeployed {
        /// Its address.
        address: Text,
        /// How its events will be read.
        layout: Layout,
        /// What it was made with.
        parameters: VaultParameters,
    },
    /// The vault has a new round.
    RoundDeployed {
        /// How the vault's events are read.
        layout: Layout,
        /// Its number.
        id: u64,
        /// Its address.
        address: Text,
        /// Start and end of the auction, settlement: seconds since 1970.
        dates: [u64; 3],
        /// Strike, cap level and reserve price.
        pricing: Pricing,
    },
    /// The round's prices were set.
    PricingSet {
        /// The round.
        round: RoundKey,
        /// What they are now.
        pricing: Pricing,
    },
    /// Liquidity came in.
    Deposited(Moved),
    /// Liquidity went out.
    Withdrawn(Moved),
    /// A withdrawal was put off to the round's settlement.
    WithdrawalQueued {
        /// The provider.
        account: Text,
        /// The round's number.
        round_id: u64,
        /// The part asked for, in basis points.
        bps: Amount,
        /// The provider's queue after it.
        account_queued: Amount,
        /// The vault's queue after it.
        vault_queued: Amount,
    },
    /// What was queued and paid out was fetched.
    StashWithdrawn {
        /// The provider.
        account: Text,
        /// How much.
        amount: Amount,
        /// The vault's stash after it.
        vault_stashed: Amount,
    },
    /// The auction began.
    AuctionStarted {
        /// The round.
        round: RoundKey,
        /// What the vault had unlocked.
        starting_liquidity: Amount,
        /// Options for sale.
        options_available: Amount,
    },
    /// The auction ended.
    AuctionEnded {
        /// The round.
        round: RoundKey,
        /// Options sold.
        options_sold: Amount,
        /// What each cost.
        clearing_price: Amount,
        /// Backing of the options that were not sold.
        unsold_liquidity: Amount,
        /// The last bid at the clearing price that got any.
        clearing_nonce: u64,
    },
    /// The round was settled.
    RoundSettled {
        /// The round.
        round: RoundKey,
        /// The price it was settled at.
        settlement_price: Amount,
        /// What each option pays.
        payout_per_option: Amount,
    },
    /// A bid was made.
    BidPlaced {
        /// The round.
        round: RoundKey,
        /// Who bid.
        account: Text,
        /// The bid.
        bid_id: Text,
        /// Options asked for.
        amount: Amount,
        /// Offered for each.
        price: Amount,
        /// The bid's own nonce.
        nonce: u64,
    },
    /// A bid's price was raised.
    BidUpdated {
        /// The round.
        round: RoundKey,
        /// The bid.
        bid_id: Text,
        /// By how much.
        price_increase: Amount,
        /// The bid's own nonce from now on.
        nonce: u64,
    },
    /// Options were minted.
    OptionsMinted {
        /// The round.
        round: RoundKey,
        /// Whose.
        account: Text,
    },
    /// Unused bids were paid back.
    BidsRefunded {
        /// The round.
        round: RoundKey,
        /// Whose.
        account: Text,
    },
    /// Options were exercised.
    OptionsExercised {
        /// The round.
        round: RoundKey,
        /// Whose.
        account: Text,
    },
}

/// Prices of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pricing {
    /// Strike.
    pub strike: Amount,
    /// Most an option pays, in basis points of the strike.
    pub cap_level: Amount,
    /// Lowest price of a bid.
    pub reserve: Amount,
}

/// What a deposit or a withdrawal left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// The provider.
    pub account: Text,
    /// What the provider has unlocked after it.
    pub account_unlocked: Amount,
    /// What the vault has unlocked after it.
    pub vault_unlocked: Amount,
}
