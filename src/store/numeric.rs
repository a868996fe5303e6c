//! Exact wide integers as Postgres `numeric`, in its binary form: base-10000 digits, most significant first.

use bytes::{BufMut, BytesMut};
use postgres_types::{FromSql, IsNull, ToSql, Type, accepts, to_sql_checked};
use ruint::Uint;

use crate::chain::Amount;
use crate::chain::delta::Delta;

/// A [`Delta`] on its way to or from a `numeric` column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numeric(pub Delta);

impl From<Amount> for Numeric {
    fn from(amount: Amount) -> Numeric {
        Numeric(Delta::plus(amount))
    }
}

/// Base-10000 digits of 384 bits: 116 decimal digits.
const MOST_DIGITS: usize = 32;
const NEGATIVE: u16 = 0x4000;

impl Numeric {
    /// Writes its binary form.
    pub(super) fn encode(self, out: &mut BytesMut) {
        let mut limbs = self.0.magnitude().into_limbs();
        // Digits, least significant first.
        let mut digits = [0u16; MOST_DIGITS];
        let mut count = 0;
        let mut top = limbs.len();
        while top > 0 && limbs[top - 1] == 0 {
            top -= 1;
        }
        while top > 0 {
            let mut chunk = divide(&mut limbs[..top], 10_000_000_000_000_000);
            for _ in 0..4 {
                digits[count] = (chunk % 10_000) as u16;
                chunk /= 10_000;
                count += 1;
            }
            while top > 0 && limbs[top - 1] == 0 {
                top -= 1;
            }
        }
        while count > 0 && digits[count - 1] == 0 {
            count -= 1;
        }
        // Trailing zero digits are left out; the weight says how many there are.
        let skip = digits[..count].iter().take_while(|d| **d == 0).count();
        out.put_u16((count - skip) as u16);
        out.put_i16(if count == 0 { 0 } else { count as i16 - 1 });
        out.put_u16(if self.0.is_negative() { NEGATIVE } else { 0 });
        out.put_u16(0);
        for digit in digits[skip..count].iter().rev() {
            out.put_u16(*digit);
        }
    }
}

impl ToSql for Numeric {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        self.encode(out);
        Ok(IsNull::No)
    }

    accepts!(NUMERIC);
    to_sql_checked!();
}

impl<'a> FromSql<'a> for Numeric {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Numeric, Box<dyn std::error::Error + Sync + Send>> {
        let word = |n: usize| -> Result<u16, NotAnInteger> {
            let bytes = raw.get(n * 2..n * 2 + 2).ok_or(NotAnInteger)?;
            Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
        };
        let (count, weight, sign) = (usize::from(word(0)?), word(1)? as i16, word(2)?);
        if sign != 0 && sign != NEGATIVE {
            return Err(Box::new(NotAnInteger));
        }
        let mut limbs = [0u64; 6];
        for n in 0..count.max(usize::try_from(i32::from(weight) + 1).unwrap_or(0)) {
            let digit = if n < count { word(4 + n)? } else { 0 };
            if n as i32 > i32::from(weight) {
                // A fraction, unless it is zeros.
                if digit != 0 {
                    return Err(Box::new(NotAnInteger));
                }
                continue;
            }
            if multiply_add(&mut limbs, 10_000, u64::from(digit)) != 0 {
                return Err(Box::new(NotAnInteger));
            }
        }
        let delta = Delta::from_parts(sign == NEGATIVE, Uint::from_limbs(limbs)).ok_or(NotAnInteger)?;
        Ok(Numeric(delta))
    }

    accepts!(NUMERIC);
}

/// A `numeric` that is no integer of at most 383 bits.
#[derive(Debug, thiserror::Error)]
#[error("the number is not an integer of at most 383 bits")]
struct NotAnInteger;

/// Divides in place; returns the remainder. Limbs are little-endian.
fn divide(limbs: &mut [u64], by: u64) -> u64 {
    let mut remainder = 0u128;
    for limb in limbs.iter_mut().rev() {
        let part = (remainder << 64) | u128::from(*limb);
        *limb = (part / u128::from(by)) as u64;
        remainder = part % u128::from(by);
    }
    remainder as u64
}

/// `limbs = limbs * by + add`; returns what did not fit.
fn multiply_add(limbs: &mut [u64; 6], by: u64, add: u64) -> u64 {
    let mut carry = u128::from(add);
    for limb in limbs {
        let part = u128::from(*limb) * u128::from(by) + carry;
        *limb = part as u64;
        carry = part >> 64;
    }
    carry as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip(delta: Delta) -> Delta {
        let mut out = BytesMut::new();
        let _ = Numeric(delta).to_sql(&Type::NUMERIC, &mut out).expect("to_sql");
        Numeric::from_sql(&Type::NUMERIC, &out).expect("from_sql").0
    }

    #[test]
    fn powers_of_ten_thousand_come_back() {
        let mut size = Amount::from(1);
        for _ in 0..19 {
            for delta in [Delta::plus(size), Delta::minus(size), Delta::plus(size - Amount::from(1))] {
                assert_eq!(round_trip(delta), delta);
            }
            size *= Amount::from(10_000);
        }
        for delta in [Delta::ZERO, Delta::plus(Amount::MAX), Delta::minus(Amount::MAX)] {
            assert_eq!(round_trip(delta), delta);
        }
    }

    #[test]
    fn fractions_and_not_a_number_are_refused() {
        let half = [0u16, 0xffff, 0, 1, 5000].iter().enumerate().map(|(n, w)| if n == 0 { 1 } else { *w });
        let raw: Vec<u8> = half.flat_map(u16::to_be_bytes).collect();
        assert!(Numeric::from_sql(&Type::NUMERIC, &raw).is_err());
        let nan: Vec<u8> = [0u16, 0, 0xC000, 0].iter().flat_map(|w| w.to_be_bytes()).collect();
        assert!(Numeric::from_sql(&Type::NUMERIC, &nan).is_err());
        assert!(Numeric::from_sql(&Type::NUMERIC, &[0, 1]).is_err());
    }

    proptest! {
        #[test]
        fn any_delta_comes_back(limbs: [u64; 5], negative: bool, shift in 0usize..320) {
            let size = Uint::<384, 6>::from_limbs([limbs[0], limbs[1], limbs[2], limbs[3], limbs[4], 0]) >> shift;
            let delta = Delta::from_parts(negative, size).expect("fits");
            prop_assert_eq!(round_trip(delta), delta);
        }
    }
}
