//! Where a contract's history begins: the first block in which it has a class.

use std::collections::BTreeSet;

use serde_json::json;

use super::wire;
use crate::chain::Height;
use crate::chain::felt::Felt;
use crate::sources::SourceError;
use crate::sources::rpc::contracts::{Presence, not_there};
use crate::sources::rpc::endpoint::{Call, Endpoint};

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
    let contracts: Vec<String> = of_settings.union(registered).map(Felt::to_string).collect();
    let head = endpoint.ask_one(Call::new("starknet_blockHashAndNumber", json!([]))).await?;
    let head = wire::numbered(&head).map_err(|what| endpoint.transient(what))?.height;
    let there = CLASS.at(endpoint, &contracts, head).await?;
    let (there, missing): (Vec<_>, Vec<_>) = contracts.into_iter().zip(there).partition(|(_, there)| *there);
    let is_named = |contract: &str| of_settings.iter().any(|named| named.to_string() == contract);
    if let Some((contract, _)) = missing.iter().find(|(contract, _)| is_named(contract)) {
        return Err(not_there(contract, head));
    }
    if let (true, Some((vault, _))) = (there.is_empty(), missing.first()) {
        return Err(SourceError::transient(format!(
            "vault {vault} is registered, but no contract is there at block {head}: it is waited for. Is the address \
             right? Otherwise correct vault_registry"
        )));
    }
    let contracts: Vec<String> = there.into_iter().map(|(contract, _)| contract).collect();
    CLASS.first_height(endpoint, &contracts, head).await
}

/// Whether a contract has a class.
const CLASS: Presence = Presence {
    call: |contract, height| {
        let params = json!({ "block_id": { "block_number": height.get() }, "contract_address": contract });
        Call::new("starknet_getClassHashAt", params)
    },
    read: |answer| match answer {
        Ok(_) => Some(true),
        Err(error) if error.code.as_i64() == Some(CONTRACT_NOT_FOUND) => Some(false),
        Err(_) => None,
    },
};
