//! What tokens say about themselves, as the ABI writes it.

use alloy_primitives::{U256, hex};
use serde_json::json;
use serde_json::value::RawValue;

use crate::sources::rpc::contracts::Questions;
use crate::sources::rpc::endpoint::Call;
use crate::sources::words::name_to_show;

/// Symbol, name and decimals, by the first four bytes of the hashes of `symbol()`, `name()` and `decimals()`.
pub(super) const QUESTIONS: Questions<Vec<u8>> = Questions {
    calls: |token| {
        ["0x95d89b41", "0x06fdde03", "0x313ce567"]
            .map(|data| Call::new("eth_call", json!([{"to": token, "data": data}, "latest"])))
    },
    read: bytes,
    text: |answer| text(answer),
    small: |answer| small(answer),
};

/// The bytes that a contract answers with.
pub(super) fn bytes(raw: &RawValue) -> Option<Vec<u8>> {
    hex::decode(serde_json::from_str::<String>(raw.get()).ok()?).ok()
}

/// A `string`, or the `bytes32` of tokens older than that custom.
fn text(answer: &[u8]) -> Option<String> {
    let bytes = if answer.len() == 32 { answer } else { string(answer)? };
    let end = bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
    name_to_show(std::str::from_utf8(&bytes[..end]).ok()?)
}

fn string(answer: &[u8]) -> Option<&[u8]> {
    let number = |at: usize| {
        let word: &[u8; 32] = answer.get(at..)?.first_chunk()?;
        u32::try_from(U256::from_be_bytes(*word)).ok().map(|n| n as usize)
    };
    let start = number(0)?;
    let size = number(start)?;
    answer.get(start + 32..)?.get(..size)
}

fn small(answer: &[u8]) -> Option<i16> {
    let word: &[u8; 32] = answer.first_chunk()?;
    u8::try_from(U256::from_be_bytes(*word)).ok().map(i16::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::words::LONGEST_NAME;

    fn word(n: u64) -> Vec<u8> {
        U256::from(n).to_be_bytes_vec()
    }

    fn string_answer(size: u64, bytes: &[u8]) -> Vec<u8> {
        [word(32), word(size), bytes.to_vec()].concat()
    }

    #[test]
    fn both_kinds_of_symbols_are_read() {
        assert_eq!(text(&string_answer(4, b"USDC")), Some("USDC".into()));
        let mut mkr = [0; 32];
        mkr[..3].copy_from_slice(b"MKR");
        assert_eq!(text(&mkr), Some("MKR".into()));
    }

    #[test]
    fn hostile_answers_become_none_or_clean() {
        for nothing in [
            vec![],
            vec![0; 31],
            vec![0; 32],
            vec![0xff; 32],
            vec![0xff; 96],
            word(u64::MAX),
            string_answer(0, b""),
            string_answer(5, b"abc"),
            string_answer(2, &[0xc3, 0x28]),
            string_answer(3, b"\0\0\0"),
            [word(u64::from(u32::MAX)), word(1)].concat(),
        ] {
            assert_eq!(text(&nothing), None, "{nothing:?}");
        }
        assert_eq!(text(&string_answer(5, b"A\0B\nC")), Some("ABC".into()));
        assert_eq!(text(&string_answer(100_000, &vec![b'x'; 100_000])).map(|t| t.len()), Some(LONGEST_NAME));
    }

    #[test]
    fn decimals_are_0_to_255_or_none() {
        assert_eq!(small(&word(18)), Some(18));
        assert_eq!(small(&word(255)), Some(255));
        assert_eq!(small(&word(256)), None);
        assert_eq!(small(&[]), None);
        assert_eq!(small(&[0xff; 32]), None);
    }
}
