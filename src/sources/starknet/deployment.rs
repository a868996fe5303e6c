//! Where a contract's history begins: the first block in which it has a class.

use std::collections::BTreeSet;

use serde_json::json;

use super::wire;
use crate::chain::Height;
use crate::chain::felt::Felt;
use crate::sources::SourceError;
use crate::sources::rpc::endpoint::{Call, Endpoint};
use crate::sources::rpc::fault::Verdict;

/// The specification's error for an address without a contract.
const CONTRACT_NOT_FOUND: i64 = 20;

/// The lowest height at which one of these contracts is there, by bisection. Those that were registered may come later:
/// an address is known before its contract is.
///
/// # Errors
/// Permanent, naming `--start-height`, when a contract of the settings is not there at the head or the node keeps no old
/// state. Transient, when no contract is there.
pub(super) async fn first_height(
    endpoint: &Endpoint,
    of_settings: &BTreeSet<Felt>,
    registered: &BTreeSet<Felt>,
) -> Result<Height, SourceError> {
    let contracts: BTreeSet<Felt> = of_settings.union(registered).copied().collect();
    let head = endpoint.ask_one(Call::new("starknet_blockHashAndNumber", json!([]))).await?;
    let head = wire::numbered(&head).map_err(|what| endpoint.transient(what))?.height;
    let there = are_there(endpoint, &contracts, head).await?;
    let (there, missing): (Vec<_>, Vec<_>) = contracts.into_iter().zip(there).partition(|(_, there)| *there);
    if let Some((contract, _)) = missing.iter().find(|(contract, _)| of_settings.contains(contract)) {
        return Err(SourceError::permanent(format!(
            "{contract} is no contract at block {head}, so where to begin is not known: is the address right? \
             Otherwise give --start-height"
        )));
    }
    let contracts: BTreeSet<Felt> = there.into_iter().map(|(contract, _)| contract).collect();
    if let (true, Some((vault, _))) = (contracts.is_empty(), missing.first()) {
        return Err(SourceError::transient(format!(
            "vault {vault} is registered, but no contract is there at block {head}: it is waited for. Is the address \
             right? Otherwise correct vault_registry"
        )));
    }
    // Some contract is there at `high`; none is below `low`.
    let (mut low, mut high) = (0, head.get());
    while low < high {
        let middle = low + (high - low) / 2;
        let height = Height::new(middle).unwrap_or(Height::MAX);
        if are_there(endpoint, &contracts, height).await?.contains(&true) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Ok(Height::new(high).unwrap_or(Height::MAX))
}

async fn are_there(endpoint: &Endpoint, contracts: &BTreeSet<Felt>, at: Height) -> Result<Vec<bool>, SourceError> {
    let call = |contract: &Felt| {
        let params = json!({ "block_id": { "block_number": at.get() }, "contract_address": contract.to_string() });
        Call::new("starknet_getClassHashAt", params)
    };
    let calls: Vec<Call> = contracts.iter().map(call).collect();
    let mut there = Vec::with_capacity(calls.len());
    for (call, answer) in calls.iter().zip(endpoint.ask(&calls).await?) {
        there.push(match answer {
            Ok(_) => true,
            Err(error) if error.code.as_i64() == Some(CONTRACT_NOT_FOUND) => false,
            Err(error) => match endpoint.verdict(call.method, &error) {
                Verdict::Busy | Verdict::NoAccess | Verdict::BatchRefused { .. } => {
                    return Err(endpoint.refused(call, &error, None));
                }
                _ => {
                    return Err(endpoint.permanent(format!(
                        "cannot tell where to begin, since it keeps no state of block {at} ({:?}): give --start-height",
                        error.text()
                    )));
                }
            },
        });
    }
    Ok(there)
}
