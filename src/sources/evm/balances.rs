//! What contracts say of balances, at one block.

use alloy_primitives::{U256, hex};
use serde_json::json;

use super::{metadata, parse_address};
use crate::chain::{Amount, BlockRef, Text};
use crate::sources::SourceError;
use crate::sources::rpc::contracts::said;
use crate::sources::rpc::endpoint::{Call, Endpoint};
use crate::sources::rpc::linked::linked;

/// First four bytes of the hash of `balanceOf(address)`.
const BALANCE_OF: &str = "70a08231";
/// Pairs asked for between two looks at the block's name.
const PAIRS_AT_ONCE: usize = 500;

/// Asks each token (first of a pair) what the holder (second) has; none where it gives no number.
///
/// # Errors
/// When the node has another block there, or keeps no state of it; a contract that fails is an answer.
pub(super) async fn read(
    endpoint: &Endpoint,
    at: &BlockRef,
    pairs: &[(Text, Text)],
) -> Result<Vec<Option<Amount>>, SourceError> {
    // By number, since not every node takes a hash here: the block's name is looked at before and after.
    let height = format!("{:#x}", at.height.get());
    same_block(endpoint, at).await?;
    let mut balances = Vec::with_capacity(pairs.len());
    for part in pairs.chunks(PAIRS_AT_ONCE) {
        let calls: Vec<Option<Call>> = part.iter().map(|(token, holder)| balance_of(token, holder, &height)).collect();
        let asked: Vec<Call> = calls.iter().flatten().cloned().collect();
        let mut answers = endpoint.ask(&asked).await?.into_iter();
        for call in calls {
            balances.push(match call.zip(answers.by_ref().next()) {
                Some((call, answer)) => said(endpoint, &call, answer)?.and_then(|raw| number(&metadata::bytes(&raw)?)),
                None => None,
            });
        }
        same_block(endpoint, at).await?;
    }
    Ok(balances)
}

fn balance_of(token: &str, holder: &str, height: &str) -> Option<Call> {
    let (token, holder) = (parse_address(token)?, parse_address(holder)?);
    let data = format!("0x{BALANCE_OF}{:0>64}", hex::encode(holder));
    Some(Call::new("eth_call", json!([{"to": hex::encode_prefixed(token), "data": data}, height])))
}

fn number(answer: &[u8]) -> Option<Amount> {
    answer.first_chunk::<32>().map(|word| U256::from_be_bytes(*word))
}

async fn same_block(endpoint: &Endpoint, at: &BlockRef) -> Result<(), SourceError> {
    let found = linked(endpoint, vec![at.height.get()], &endpoint.dialect.links, None).await?.pop();
    match found {
        Some(found) if found.hash == at.hash => Ok(()),
        Some(found) => {
            let what = format!("has block {} where block {at} was applied: one of the two is behind", found.hash);
            Err(endpoint.transient(what))
        }
        None => Err(endpoint.transient(format!("does not have block {at}"))),
    }
}
