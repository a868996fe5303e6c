//! Signed changes of balances: exact, netted in memory, with an inverse.
//!
//! Laws (tested below): `inverse(inverse(d)) == d`; a change and its inverse net to nothing; netting does not
//! depend on the order or the grouping of the events.

use std::collections::BTreeMap;
use std::fmt;

use ruint::Uint;

use super::{Amount, Text, TokenEvent};

/// Exact signed change of one balance: 384 bits in two's complement.
///
/// # Invariants
/// One event moves less than 2^256, and a chain holds fewer than 2^63 blocks of fewer than 2^63 events, so a sum of
/// any run of them stays below 2^382: it cannot wrap.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Delta(Uint<384, 6>);

impl Delta {
    /// No change.
    pub const ZERO: Delta = Delta(Uint::ZERO);

    /// A gain.
    pub fn plus(amount: Amount) -> Delta {
        Delta(Uint::from(amount))
    }

    /// A loss.
    pub fn minus(amount: Amount) -> Delta {
        Delta::plus(amount).inverse()
    }

    /// The change that undoes this one.
    #[must_use]
    pub fn inverse(self) -> Delta {
        Delta(self.0.wrapping_neg())
    }

    /// Both changes, one after the other.
    #[must_use]
    pub fn merge(self, other: Delta) -> Delta {
        Delta(self.0.wrapping_add(other.0))
    }

    /// Whether nothing changes.
    pub fn is_zero(self) -> bool {
        self.0.is_zero()
    }

    /// Whether it is a loss.
    pub fn is_negative(self) -> bool {
        self.0.bit(383)
    }

    /// The size of the change, without its sign, as little-endian limbs.
    pub fn magnitude(self) -> Uint<384, 6> {
        if self.is_negative() { self.0.wrapping_neg() } else { self.0 }
    }

    /// A whole number in decimal, with `-` before it for a loss; none for any other text, and from 2^383 on.
    pub fn parse(text: &str) -> Option<Delta> {
        let (negative, size) = match text.strip_prefix('-') {
            Some(size) => (true, size),
            None => (false, text),
        };
        // 2^383 has 116 digits; longer text would only be read to be refused.
        if size.is_empty() || size.len() > 116 || !size.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        Delta::from_parts(negative, Uint::from_str_radix(size, 10).ok()?)
    }

    /// The change with this sign and size; none when the size does not fit.
    pub fn from_parts(negative: bool, magnitude: Uint<384, 6>) -> Option<Delta> {
        if magnitude.bit(383) {
            return None;
        }
        Some(if negative { Delta(magnitude.wrapping_neg()) } else { Delta(magnitude) })
    }
}

impl fmt::Display for Delta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.is_negative() { "-" } else { "" }, self.magnitude())
    }
}

impl fmt::Debug for Delta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whose balance: (token, address).
pub type Key = (Text, Text);

/// The net changes of one block, by key, in key order (all writers lock rows in this order).
///
/// A key whose changes cancel stays, with a zero delta: the account exists from this block on (a zero transfer or a
/// transfer to oneself is an event of that account).
pub type Net = BTreeMap<Key, Delta>;

/// Nets the movements of one block.
pub fn net<'a>(events: impl IntoIterator<Item = &'a TokenEvent>) -> Net {
    let mut net = Net::new();
    for event in events {
        add(&mut net, event);
    }
    net
}

/// Adds one movement to a net.
pub fn add(net: &mut Net, event: &TokenEvent) {
    let sides = [(&event.from, Delta::minus(event.amount)), (&event.to, Delta::plus(event.amount))];
    for (address, delta) in sides {
        if let Some(address) = address {
            let slot = net.entry((event.token.clone(), address.clone())).or_default();
            *slot = slot.merge(delta);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event(token: &str, from: Option<&str>, to: Option<&str>, amount: Amount) -> TokenEvent {
        TokenEvent {
            tx_index: 0,
            event_index: 0,
            token: token.into(),
            from: from.map(Into::into),
            to: to.map(Into::into),
            amount,
        }
    }

    #[test]
    fn the_largest_amount_nine_times_is_exact() {
        let events: Vec<_> = (0..9).map(|_| event("gold", None, Some("alice"), Amount::MAX)).collect();
        let net = net(&events);
        let sum = net.values().next().expect("one key");
        assert_eq!(sum.magnitude(), Uint::<384, 6>::from(Amount::MAX) * Uint::from(9));
        assert!(!sum.is_negative());
    }

    #[test]
    fn a_self_transfer_nets_to_zero_but_names_the_account() {
        let net = net(&[event("gold", Some("a"), Some("a"), Amount::from(5))]);
        assert_eq!(net.values().copied().collect::<Vec<_>>(), [Delta::ZERO]);
    }

    proptest! {
        #[test]
        fn a_change_and_its_inverse_are_nothing(limbs: [u64; 4], negative: bool) {
            let size = Amount::from_limbs(limbs);
            let delta = if negative { Delta::minus(size) } else { Delta::plus(size) };
            prop_assert_eq!(delta.inverse().inverse(), delta);
            prop_assert!(delta.merge(delta.inverse()).is_zero());
            prop_assert_eq!(Delta::from_parts(delta.is_negative(), delta.magnitude()), Some(delta));
        }

        #[test]
        fn netting_does_not_depend_on_grouping(amounts: Vec<(u8, u8, u64)>, cut in 0usize..32) {
            let name = |n: u8| if n.is_multiple_of(4) { None } else { Some(["a", "b", "c"][n as usize % 4 - 1]) };
            let events: Vec<_> = amounts.iter().map(|(f, t, a)| event("x", name(*f), name(*t), Amount::from(*a))).collect();
            let cut = cut.min(events.len());
            let mut parts = net(&events[..cut]);
            for (key, delta) in net(&events[cut..]) {
                let slot = parts.entry(key).or_default();
                *slot = slot.merge(delta);
            }
            prop_assert_eq!(parts, net(&events));
        }
    }
}
