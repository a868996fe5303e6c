//! What tokens say about themselves, as Cairo writes it.

use serde_json::json;
use serde_json::value::RawValue;

use super::decode::RawFelt;
use crate::chain::felt::Felt;
use crate::sources::rpc::contracts::Questions;
use crate::sources::rpc::endpoint::Call;
use crate::sources::words::name_to_show;

/// Bytes in each full word of Cairo's `ByteArray`.
const WORD: usize = 31;

/// Symbol, name and decimals.
pub(super) const QUESTIONS: Questions<Vec<Felt>> = Questions {
    calls: |token| {
        ["symbol", "name", "decimals"].map(|name| {
            let selector = Felt::selector(name).to_string();
            let request = json!({ "contract_address": token, "entry_point_selector": selector, "calldata": [] });
            Call::new("starknet_call", json!({ "request": request, "block_id": "latest" }))
        })
    },
    read: felts,
    text: |answer| text(answer),
    small: |answer| small(answer),
};

fn felts(raw: &RawValue) -> Option<Vec<Felt>> {
    let felts: Vec<RawFelt> = serde_json::from_str(raw.get()).ok()?;
    felts.iter().map(|felt| felt.felt().ok()).collect()
}

/// A `ByteArray`, or the short string of tokens older than that.
fn text(answer: &[Felt]) -> Option<String> {
    let bytes = match answer {
        [short] => bytes(*short, length(*short))?,
        _ => byte_array(answer)?,
    };
    name_to_show(std::str::from_utf8(&bytes).ok()?)
}

/// How many words, the words, the rest, how long it is.
fn byte_array(answer: &[Felt]) -> Option<Vec<u8>> {
    let (count, rest) = answer.split_first()?;
    let (words, [last, size]) = rest.split_at_checked(usize::try_from(count.to_u64()?).ok()?)? else { return None };
    let size = usize::try_from(size.to_u64()?).ok().filter(|size| *size < WORD)?;
    let mut text = Vec::with_capacity(answer.len() * WORD);
    for word in words {
        text.extend(bytes(*word, WORD)?);
    }
    text.extend(bytes(*last, size)?);
    Some(text)
}

fn length(felt: Felt) -> usize {
    felt.number().byte_len()
}

/// The lowest so many bytes; none if it has more.
fn bytes(felt: Felt, size: usize) -> Option<Vec<u8>> {
    let all = felt.number().to_be_bytes::<32>();
    (length(felt) <= size).then(|| all[all.len() - size..].to_vec())
}

fn small(answer: &[Felt]) -> Option<i16> {
    let [number] = answer else { return None };
    u8::try_from(number.to_u64()?).ok().map(i16::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn felts(words: &[&str]) -> Vec<Felt> {
        words.iter().map(|word| Felt::parse(word).expect("a felt")).collect()
    }

    fn of_text(text: &str) -> String {
        let digits: String = text.bytes().map(|b| format!("{b:02x}")).collect();
        format!("0x{digits}")
    }

    #[test]
    fn both_kinds_of_names_are_read() {
        assert_eq!(text(&felts(&["0x4554480000"])).as_deref(), Some("ETH"), "NUL is no part of a name");
        assert_eq!(text(&felts(&["0x455448"])).as_deref(), Some("ETH"));
        assert_eq!(text(&felts(&["0x0", "0x5354524b", "0x4"])).as_deref(), Some("STRK"));
        let long = "A name of more than thirty-one bytes";
        let (word, rest) = long.split_at(WORD);
        assert_eq!(text(&felts(&["0x1", &of_text(word), &of_text(rest), "0x5"])).as_deref(), Some(long));
    }

    #[test]
    fn hostile_answers_become_none() {
        for nothing in [
            felts(&[]),
            felts(&["0x0"]),
            felts(&["0x0", "0x0", "0x0"]),
            felts(&["0xffffffffffffffff", "0x1", "0x1"]),
            felts(&["0x1", "0x0", "0x1"]),
            felts(&["0x0", "0x5354524b", "0x3"]),
            felts(&["0x0", "0x41", "0x1f"]),
            felts(&["0x0", "0x41", "0x1", "0x1"]),
            felts(&["0xc328"]),
        ] {
            assert_eq!(text(&nothing), None, "{nothing:?}");
        }
        assert_eq!(small(&felts(&["0x12"])), Some(18));
        assert_eq!(small(&felts(&["0x100"])), None);
        assert_eq!(small(&felts(&["0x1", "0x1"])), None);
    }
}
