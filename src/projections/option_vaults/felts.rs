//! Felts as vaults' events carry them: what may stand where, and what is wrong with what may not.

use crate::chain::felt::{Felt, NoFelt};
use crate::chain::{Amount, Text};

/// `0x` and as many digits as a felt can have.
const LONGEST: usize = 66;

/// What is wrong with one felt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FeltFault {
    /// Not `0x` and 1 to 64 hex digits.
    #[error("no 0x hex of 1 to 64 digits")]
    NotHex,
    /// The order of the field or more.
    #[error("not below the order of the field")]
    OutOfField,
    /// Too large for what stands here.
    #[error("too large")]
    TooLarge,
    /// A counter that has been raised cannot be 0.
    #[error("0, but it counts what has been inserted")]
    Zero,
    /// A length that is not that of what follows it.
    #[error("not the number of felts that follow")]
    NotTheLength,
}

impl FeltFault {
    /// A fixed word that counts can be kept by.
    pub const fn reason(self) -> &'static str {
        match self {
            FeltFault::NotHex | FeltFault::OutOfField => "bad_felt",
            FeltFault::TooLarge => "number_too_large",
            FeltFault::Zero => "bad_nonce",
            FeltFault::NotTheLength => "bad_length",
        }
    }
}

/// A felt; leading zeros and capitals are taken, but no more digits than a felt can have.
fn felt(text: &str) -> Result<Felt, FeltFault> {
    if text.len() > LONGEST {
        return Err(FeltFault::NotHex);
    }
    Felt::parse(text).map_err(|why| match why {
        NoFelt::NoHex => FeltFault::NotHex,
        NoFelt::TooLarge => FeltFault::OutOfField,
    })
}

/// The canonical text of a felt: lower case, no leading zeros, zero is `0x0`.
///
/// # Errors
/// What is not the text of a felt.
pub fn canonical(text: &Text) -> Result<Text, FeltFault> {
    let felt = felt(text)?;
    Ok(if Felt::is_canonical(text) { text.clone() } else { felt.text() })
}

/// A whole number of at most 128 bits.
///
/// # Errors
/// What is not a felt, or is larger.
pub fn u128(text: &str) -> Result<u128, FeltFault> {
    felt(text)?.to_u128().ok_or(FeltFault::TooLarge)
}

/// A u256 from its two felts, the low half first.
///
/// # Errors
/// The place (0 or 1) of the half that is no felt or exceeds 128 bits.
pub fn u256(low: &str, high: &str) -> Result<Amount, (usize, FeltFault)> {
    let low = u128(low).map_err(|fault| (0, fault))?;
    let high = u128(high).map_err(|fault| (1, fault))?;
    Ok((Amount::from(high) << 128) | Amount::from(low))
}

/// A date, a duration, a counter or a round's number: a whole number of at most 64 bits.
///
/// # Errors
/// What is not a felt, or is larger.
pub fn u64(text: &str) -> Result<u64, FeltFault> {
    felt(text)?.to_u64().ok_or(FeltFault::TooLarge)
}

/// A signed number: the negative ones count down from the order of the field.
///
/// # Errors
/// What is not a felt, or has more than 127 bits beside its sign.
pub fn i128(text: &str) -> Result<i128, FeltFault> {
    felt(text)?.to_i128().ok_or(FeltFault::TooLarge)
}

#[cfg(test)]
mod tests {
    use ruint::aliases::U256;
    use ruint::uint;

    use super::*;

    const P: U256 = uint!(0x0800000000000011000000000000000000000000000000000000000000000001_U256);
    const LOWEST_I128: U256 = uint!(0x80000000000000000000000000000000_U256);
    const HIGHEST: &str = "0x800000000000011000000000000000000000000000000000000000000000000";
    const ORDER: &str = "0x800000000000011000000000000000000000000000000000000000000000001";

    #[test]
    fn a_felt_lies_in_the_field() {
        assert_eq!(felt("0x0"), Ok(Felt::ZERO));
        assert!(felt(HIGHEST).is_ok());
        assert_eq!(felt(ORDER), Err(FeltFault::OutOfField));
        for bad in ["", "0x", "1", "0xg", "0x 1", "0x-1", "0x_1", &format!("0x{}", "0".repeat(65))] {
            assert_eq!(felt(bad), Err(FeltFault::NotHex), "{bad}");
        }
    }

    #[test]
    fn one_felt_has_one_canonical_text() {
        let texts = ["0xA1", "0Xa1", "0x00a1", "0xa1"];
        assert!(texts.iter().all(|text| canonical(&Text::from(*text)).as_deref() == Ok("0xa1")));
        assert_eq!(canonical(&"0x000".into()).as_deref(), Ok("0x0"));
        assert_eq!(canonical(&"0x0".into()).as_deref(), Ok("0x0"));
        assert!(canonical(&ORDER.into()).is_err());
    }

    #[test]
    fn a_u256_is_its_low_half_and_then_its_high_half() {
        assert_eq!(u256("0x1", "0x1").map(|n| n.to_string()), Ok("340282366920938463463374607431768211457".to_owned()));
        let most = "0xffffffffffffffffffffffffffffffff";
        assert_eq!(u256(most, most), Ok(Amount::MAX));
        let more = "0x100000000000000000000000000000000";
        assert_eq!(u256("0x0", more), Err((1, FeltFault::TooLarge)));
        assert_eq!(u256(more, "0x0"), Err((0, FeltFault::TooLarge)));
    }

    #[test]
    fn an_i128_counts_down_from_the_order_of_the_field() {
        assert_eq!(i128("0x800000000000010fffffffffffffffffffffffffffffffffffffffffffffc19"), Ok(-1000));
        assert_eq!(i128(HIGHEST), Ok(-1));
        assert_eq!(i128("0x0"), Ok(0));
        assert_eq!(i128("0x7fffffffffffffffffffffffffffffff"), Ok(i128::MAX));
        assert_eq!(i128("0x80000000000000000000000000000000"), Err(FeltFault::TooLarge));
        assert_eq!(i128(&format!("{:#x}", P - LOWEST_I128)), Ok(i128::MIN));
        assert_eq!(i128(&format!("{:#x}", P - LOWEST_I128 - U256::from(1))), Err(FeltFault::TooLarge));
    }

    #[test]
    fn a_u64_has_all_its_bits() {
        assert_eq!(u64("0x8000000000000000"), Ok(1 << 63));
        assert_eq!(u64("0xffffffffffffffff"), Ok(u64::MAX));
        assert_eq!(u64("0x10000000000000000"), Err(FeltFault::TooLarge));
    }
}
