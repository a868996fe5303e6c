//! What tokens say about themselves. A contract may answer anything; what is not fit to be shown becomes none.

use alloy_primitives::{U256, hex};
use serde_json::json;

use crate::chain::Text;
use crate::sources::rpc::endpoint::{Answer, Call, Endpoint};
use crate::sources::rpc::fault::Verdict;
use crate::sources::rpc::name_to_show;
use crate::sources::{SourceError, TokenMetadata};

/// First four bytes of the hashes of `symbol()`, `name()` and `decimals()`.
const QUESTIONS: [&str; 3] = ["0x95d89b41", "0x06fdde03", "0x313ce567"];

/// Asks each token for its symbol, name and decimals.
///
/// # Errors
/// When the node fails; a contract that fails is an answer.
pub(super) async fn read(endpoint: &Endpoint, tokens: &[Text]) -> Result<Vec<TokenMetadata>, SourceError> {
    let call = |token: &Text, data: &str| Call::new("eth_call", json!([{"to": &**token, "data": data}, "latest"]));
    let calls: Vec<Call> = tokens.iter().flat_map(|token| QUESTIONS.map(|data| call(token, data))).collect();
    let mut answers = calls.iter().zip(endpoint.ask(&calls).await?);
    let mut described = Vec::with_capacity(tokens.len());
    for token in tokens {
        let mut next = || answers.next().map_or(Ok(None), |(call, answer)| bytes(endpoint, call, answer));
        let (symbol, name, decimals) = (next()?, next()?, next()?);
        described.push(TokenMetadata {
            token: token.clone(),
            symbol: symbol.and_then(|bytes| text(&bytes)),
            name: name.and_then(|bytes| text(&bytes)),
            decimals: decimals.and_then(|bytes| small(&bytes)),
        });
    }
    Ok(described)
}

/// The bytes that a contract answers with; none if it fails.
///
/// # Errors
/// When it is the node that fails.
pub(super) fn bytes(endpoint: &Endpoint, call: &Call, answer: Answer) -> Result<Option<Vec<u8>>, SourceError> {
    match answer {
        Ok(raw) => Ok(serde_json::from_str::<String>(raw.get()).ok().and_then(|text| hex::decode(text).ok())),
        Err(error) => match endpoint.verdict(call.method, &error) {
            // The node's fault. Anything else is the contract's: it reverted, ran out of gas, has no such function.
            Verdict::Busy | Verdict::NoAccess | Verdict::NoMethod | Verdict::NoHistory | Verdict::UnknownBlock => {
                Err(endpoint.refused(call, &error, None))
            }
            _ => Ok(None),
        },
    }
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
    use crate::sources::rpc::LONGEST_NAME;

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
