//! Starknet's numbers: integers below the prime P = 2^251 + 17 * 2^192 + 1, and what is written with them.

use std::fmt;

use alloy_primitives::{hex, keccak256};
use ruint::aliases::U256;

use super::{Amount, Text};

/// P, the first number that is no felt.
const P: U256 = U256::from_limbs([1, 0, 0, 0x0800_0000_0000_0011]);
/// Selectors are this many bits of a hash.
const SELECTOR_BITS: usize = 250;

/// A field element: an integer below P. Its text is canonical: `0x`, lower case, no leading zeros, zero is `0x0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Felt(U256);

/// A text that is no felt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoFelt {
    /// Not `0x` and at least one hex digit.
    #[error("not 0x and hex digits")]
    NoHex,
    /// P or more.
    #[error("not below 2^251 + 17 * 2^192 + 1")]
    TooLarge,
}

impl Felt {
    /// Nobody's address, among other things.
    pub const ZERO: Felt = Felt(U256::ZERO);

    /// The number, if it is a felt.
    pub fn new(number: U256) -> Option<Felt> {
        (number < P).then_some(Felt(number))
    }

    /// Reads `0x` hex in any case, with any number of leading zeros.
    ///
    /// # Errors
    /// The text is no hex, or the number is P or more.
    pub fn parse(text: &str) -> Result<Felt, NoFelt> {
        let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).ok_or(NoFelt::NoHex)?;
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(NoFelt::NoHex);
        }
        let digits = digits.trim_start_matches('0').as_bytes();
        // All 64 digits at once: a block holds felts by the thousand, and arithmetic digit by digit took most of its time.
        let (mut padded, mut bytes) = ([b'0'; 64], [0u8; 32]);
        let zeros = padded.len().checked_sub(digits.len()).ok_or(NoFelt::TooLarge)?;
        padded[zeros..].copy_from_slice(digits);
        hex::decode_to_slice(padded, &mut bytes).map_err(|_| NoFelt::NoHex)?;
        Felt::new(U256::from_be_bytes(bytes)).ok_or(NoFelt::TooLarge)
    }

    /// Whether this is how a felt is written, whatever its size: `0x`, lower-case hex digits, no leading zeros.
    pub fn is_canonical(text: &str) -> bool {
        super::is_lower_hex(text) && (text == "0x0" || !text.starts_with("0x0"))
    }

    /// `sn_keccak` of a name: the low 250 bits of its Keccak-256. What entry points and events are called by.
    pub fn selector(name: &str) -> Felt {
        let hash = U256::from_be_bytes(keccak256(name).0);
        Felt(hash & ((U256::from(1) << SELECTOR_BITS) - U256::from(1)))
    }

    /// Whether it is 0.
    pub fn is_zero(self) -> bool {
        self.0.is_zero()
    }

    /// The number.
    pub const fn number(self) -> U256 {
        self.0
    }

    /// The number, if it is below 2^64.
    pub fn to_u64(self) -> Option<u64> {
        u64::try_from(self.0).ok()
    }

    /// The number, if it is below 2^128.
    pub fn to_u128(self) -> Option<u128> {
        u128::try_from(self.0).ok()
    }

    /// The signed number that Cairo's `i128` writes so: P - n stands for -n.
    pub fn to_i128(self) -> Option<i128> {
        if let Some(positive) = self.to_u128() {
            return i128::try_from(positive).ok();
        }
        let size = u128::try_from(P - self.0).ok()?;
        0i128.checked_sub_unsigned(size)
    }

    /// Cairo's `u256`: two felts below 2^128, the low half first.
    pub fn u256(low: Felt, high: Felt) -> Option<Amount> {
        let (low, high) = (low.to_u128()?, high.to_u128()?);
        Some((U256::from(high) << 128) | U256::from(low))
    }

    /// Up to 31 characters of ASCII in a felt, as Cairo's short strings are; none where it holds anything else.
    pub fn short_string(self) -> Option<String> {
        let bytes = self.0.to_be_bytes::<32>();
        let start = bytes.iter().position(|b| *b != 0).unwrap_or(bytes.len());
        let text = std::str::from_utf8(&bytes[start..]).ok()?;
        text.bytes().all(|b| b.is_ascii_graphic() || b == b' ').then(|| text.to_owned())
    }

    /// The canonical text.
    pub fn text(self) -> Text {
        self.to_string().into()
    }
}

impl fmt::Display for Felt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = hex::Buffer::<32>::new();
        let digits = digits.format(&self.0.to_be_bytes::<32>()).trim_start_matches('0');
        write!(f, "0x{}", if digits.is_empty() { "0" } else { digits })
    }
}

impl From<u64> for Felt {
    fn from(number: u64) -> Felt {
        Felt(U256::from(number))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn felt(text: &str) -> Felt {
        Felt::parse(text).expect("a felt")
    }

    #[test]
    fn any_way_to_write_a_felt_gives_its_one_text() {
        for (text, canonical) in [
            ("0x0", "0x0"),
            ("0x000", "0x0"),
            ("0X00aBc", "0xabc"),
            (
                "0x049d36570d4e46f48e99674bd3fcc84644ddd6b96f7c741b1562b82f9e004dc7",
                "0x49d36570d4e46f48e99674bd3fcc84644ddd6b96f7c741b1562b82f9e004dc7",
            ),
            ("0x0000000000000000000000000000000000000000000000000000000000000000000000000001", "0x1"),
            // P - 1.
            (
                "0x800000000000011000000000000000000000000000000000000000000000000",
                "0x800000000000011000000000000000000000000000000000000000000000000",
            ),
        ] {
            assert_eq!(felt(text).to_string(), canonical);
        }
        for no_hex in ["", "0x", "x1", "12", "0xg", "0x 1", "0x-1", "0x_1", "0x0x1", "é"] {
            assert_eq!(Felt::parse(no_hex), Err(NoFelt::NoHex), "{no_hex}");
        }
        let p = "0x800000000000011000000000000000000000000000000000000000000000001";
        for large in
            [p, &format!("0x{}", "f".repeat(64)), &format!("0x1{}", "0".repeat(64)), &format!("0x{}", "f".repeat(999))]
        {
            assert_eq!(Felt::parse(large), Err(NoFelt::TooLarge), "{large}");
        }
        assert_eq!(P, (U256::from(1) << 251) + (U256::from(17) << 192) + U256::from(1));
    }

    #[test]
    fn integers_are_written_as_cairo_writes_them() {
        let amount = Felt::u256(Felt::from(1), Felt::from(1)).expect("a u256");
        assert_eq!(amount.to_string(), "340282366920938463463374607431768211457");
        let two_to_the_128 = felt("0x100000000000000000000000000000000");
        assert_eq!(Felt::u256(two_to_the_128, Felt::ZERO), None);
        assert_eq!(Felt::u256(Felt::ZERO, two_to_the_128), None);
        let most = felt("0xffffffffffffffffffffffffffffffff");
        assert_eq!(Felt::u256(most, most), Some(U256::MAX));
        assert_eq!(felt("0x800000000000010fffffffffffffffffffffffffffffffffffffffffffffc19").to_i128(), Some(-1000));
        let least = P - (U256::from(1) << 127);
        for (number, signed) in [
            (U256::ZERO, Some(0)),
            (U256::from(i128::MAX as u128), Some(i128::MAX)),
            (U256::from(1) << 127, None),
            (P - U256::from(1), Some(-1)),
            (least, Some(i128::MIN)),
            (least - U256::from(1), None),
            (P >> 1, None),
        ] {
            assert_eq!(Felt::new(number).expect("a felt").to_i128(), signed, "{number}");
        }
        assert_eq!(Felt::from(u64::MAX).to_u64(), Some(u64::MAX));
        assert_eq!(two_to_the_128.to_u64(), None);
    }

    #[test]
    fn selectors_and_short_strings_are_everybodys() {
        // The entry points of every account contract.
        for (name, selector) in [
            ("__execute__", "0x15d40a3d6ca2ac30f4031e42be28da9b056fef9bb7357ac5e85627ee876e5ad"),
            ("__validate__", "0x162da33a4585851fe8d3af3c2a9c60b557814e221e0d4f30ff0b2189d9c7775"),
            ("Transfer", "0x99cd8bde557814842a3121e8ddfd433a539b8c9f14bf31ebf108d12e6196e9"),
        ] {
            assert_eq!(Felt::selector(name).to_string(), selector);
        }
        assert_eq!(felt("0x534e5f4d41494e").short_string().as_deref(), Some("SN_MAIN"));
        assert_eq!(Felt::ZERO.short_string().as_deref(), Some(""));
        assert_eq!(felt("0x534e00").short_string(), None);
        assert_eq!(felt("0xff").short_string(), None);
    }

    proptest! {
        #[test]
        fn texts_and_numbers_go_both_ways(limbs in any::<[u64; 4]>(), zeros in 0usize..80, upper in any::<bool>()) {
            let number = U256::from_limbs(limbs) % P;
            let mut digits = format!("{number:x}");
            if upper {
                digits = digits.to_uppercase();
            }
            let felt = Felt::parse(&format!("0x{}{digits}", "0".repeat(zeros))).expect("a felt");
            prop_assert_eq!(felt.number(), number);
            prop_assert_eq!(Felt::parse(&felt.to_string()), Ok(felt));
        }

        #[test]
        fn signed_numbers_go_both_ways(signed in any::<i128>()) {
            let size = U256::from(signed.unsigned_abs());
            let number = if signed < 0 { P - size } else { size };
            prop_assert_eq!(Felt::new(number).and_then(Felt::to_i128), Some(signed));
        }
    }
}
