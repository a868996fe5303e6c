//! Who gets what when an auction ends.

use std::collections::BTreeMap;

use super::rows::BidRow;
use crate::chain::{Amount, Text};

use super::transition::Fault;

/// What one buyer is entitled to after an auction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Entitlement {
    /// Options won.
    pub mintable: Amount,
    /// Paid in beyond what they cost.
    pub refundable: Amount,
}

/// How an auction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Options sold.
    pub sold: Amount,
    /// What each costs.
    pub price: Amount,
    /// Own nonce of the last bid at that price that got any.
    pub nonce: u64,
}

/// What each buyer of a round is entitled to: higher prices first, then lower nonces, until nothing is left.
///
/// # Errors
/// [`Fault::ClearingMismatch`] when these bids cannot have sold so many options; [`Fault::Overflow`] when a buyer's sum
/// exceeds 256 bits.
pub fn clear<'a>(
    bids: impl IntoIterator<Item = &'a BidRow>,
    outcome: Outcome,
) -> Result<BTreeMap<Text, Entitlement>, Fault> {
    let mut ordered: Vec<&BidRow> = bids.into_iter().collect();
    ordered.sort_by(|a, b| b.price.cmp(&a.price).then(a.tree_nonce.cmp(&b.tree_nonce)));
    let mut left = outcome.sold;
    let mut entitled: BTreeMap<Text, Entitlement> = BTreeMap::new();
    for bid in ordered {
        let wins = bid.price > outcome.price || (bid.price == outcome.price && bid.tree_nonce <= outcome.nonce);
        let take = if wins { bid.amount.min(left) } else { Amount::ZERO };
        left -= take;
        let owed = || -> Option<Amount> {
            // Nothing is taken at a price below the clearing price.
            let overpaid = take.checked_mul(bid.price.saturating_sub(outcome.price))?;
            overpaid.checked_add((bid.amount - take).checked_mul(bid.price)?)
        };
        let owed = owed().ok_or(Fault::Overflow)?;
        let buyer = entitled.entry(bid.buyer_address.clone()).or_default();
        buyer.mintable = buyer.mintable.checked_add(take).ok_or(Fault::Overflow)?;
        buyer.refundable = buyer.refundable.checked_add(owed).ok_or(Fault::Overflow)?;
    }
    if left.is_zero() { Ok(entitled) } else { Err(Fault::ClearingMismatch { unmatched: left }) }
}
