//! Texts, numbers and times as lines give them, brought into the form that is stored.

use std::borrow::Cow;
use std::collections::HashSet;

use jiff::Timestamp;

use crate::chain::{Amount, Text};

/// More than this many texts are not worth remembering: then it starts again.
const TEXTS_REMEMBERED: usize = 50_000;

/// Gives equal texts one allocation: a block names the same few tokens and accounts again and again.
#[derive(Debug, Clone, Default)]
pub(super) struct Interner(HashSet<Text>);

impl Interner {
    /// The text, shared with whoever asked for it before.
    pub(super) fn text(&mut self, given: &str) -> Text {
        if let Some(known) = self.0.get(given) {
            return known.clone();
        }
        if self.0.len() >= TEXTS_REMEMBERED {
            self.0.clear();
        }
        let text: Text = given.into();
        self.0.insert(text.clone());
        text
    }
}

/// The text of a JSON string; none for any other value and for escapes that name no character.
pub(super) fn string(raw: &str) -> Option<Cow<'_, str>> {
    let inner = raw.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') {
        serde_json::from_str::<String>(raw).ok().map(Cow::Owned)
    } else {
        Some(Cow::Borrowed(inner))
    }
}

/// The text of a JSON string or the digits of a JSON number.
pub(super) fn digits(raw: &str) -> Option<Cow<'_, str>> {
    if raw.starts_with('"') { string(raw) } else { Some(Cow::Borrowed(raw)) }
}

/// An amount: a JSON integer or text of decimal digits, below 2^256.
pub(super) fn amount(raw: &str) -> Option<Amount> {
    let digits = digits(raw)?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits = match digits.trim_start_matches('0') {
        "" => return Some(Amount::ZERO),
        digits => digits,
    };
    match digits.len() {
        0..=19 => digits.parse::<u64>().ok().map(Amount::from),
        20..=38 => digits.parse::<u128>().ok().map(Amount::from),
        39..=78 => Amount::from_str_radix(digits, 10).ok(),
        _ => None,
    }
}

/// A place in a block: 0 to 2^63 - 1, as a JSON integer.
pub(super) fn index(raw: &str) -> Option<u64> {
    if raw.is_empty() || !raw.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    raw.parse().ok().filter(|&index: &u64| i64::try_from(index).is_ok())
}

/// A block's time: RFC 3339 text, or Unix seconds as a number or as text.
pub(super) fn time(raw: &str) -> Option<Timestamp> {
    let text = digits(raw)?;
    match text.parse::<i64>() {
        Ok(seconds) => Timestamp::from_second(seconds).ok(),
        Err(_) if raw.starts_with('"') => text.parse().ok(),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_exact_integers_below_two_to_the_256() {
        let max = Amount::MAX.to_string();
        assert_eq!(amount(&max), Some(Amount::MAX));
        assert_eq!(amount(&format!("\"{max}\"")), Some(Amount::MAX));
        assert_eq!(amount("0"), Some(Amount::ZERO));
        assert_eq!(amount("\"000\""), Some(Amount::ZERO));
        assert_eq!(amount("18446744073709551616"), Some(Amount::from(1u128 << 64)));
        assert_eq!(amount("\"00000000000000000000000000000000000000007\""), Some(Amount::from(7)));
        let above = "115792089237316195423570985008687907853269984665640564039457584007913129639936";
        for bad in [above, "-1", "1.0", "1e3", "\"1e3\"", "\"\"", "\" 1\"", "\"0x10\"", "null", "true", "[1]", "\"+1\""]
        {
            assert_eq!(amount(bad), None, "{bad}");
        }
    }

    #[test]
    fn times_are_rfc_3339_or_unix_seconds() {
        let at = Timestamp::from_second(1_700_000_000).ok();
        for good in ["1700000000", "\"1700000000\"", "\"2023-11-14T22:13:20Z\"", "\"2023-11-15T00:13:20+02:00\""] {
            assert_eq!(time(good), at, "{good}");
        }
        let beyond = "\"9999-12-31T00:00:00Z\"";
        for bad in ["null", "1.5", "\"yesterday\"", "99999999999999999", beyond, "{}"] {
            assert_eq!(time(bad), None, "{bad}");
        }
    }

    #[test]
    fn texts_are_shared_and_the_memory_for_it_is_bounded() {
        let mut texts = Interner::default();
        let first = texts.text("gold");
        assert!(Text::ptr_eq(&first, &texts.text("gold")));
        for n in 0..2 * TEXTS_REMEMBERED {
            texts.text(&n.to_string());
        }
        assert!(texts.0.len() <= TEXTS_REMEMBERED);
    }
}
