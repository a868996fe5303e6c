//! Where a token's history begins: the first block in which its contract has code.

use serde_json::json;

use crate::chain::Height;
use crate::sources::SourceError;
use crate::sources::rpc::endpoint::{Answer, Call, Endpoint};
use crate::sources::rpc::fault::Verdict;

/// The lowest height at which one of these contracts has code, by bisection.
///
/// # Errors
/// Permanent, naming `--start-height`, when a contract has no code at the head or the node keeps no old state.
pub(super) async fn first_height(
    endpoint: &Endpoint,
    contracts: &[String],
    head: Height,
) -> Result<Height, SourceError> {
    let deployed = have_code(endpoint, contracts, head).await?;
    if let Some((contract, _)) = contracts.iter().zip(deployed).find(|(_, deployed)| !deployed) {
        return Err(SourceError::permanent(format!(
            "{contract} has no code at block {head}, so where to begin is not known: is the address right? \
             Otherwise give --start-height"
        )));
    }
    // Some contract has code at `high`; none has below `low`.
    let (mut low, mut high) = (0, head.get());
    while low < high {
        let middle = low + (high - low) / 2;
        let height = Height::new(middle).unwrap_or(Height::MAX);
        if have_code(endpoint, contracts, height).await?.contains(&true) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Ok(Height::new(high).unwrap_or(Height::MAX))
}

async fn have_code(endpoint: &Endpoint, contracts: &[String], height: Height) -> Result<Vec<bool>, SourceError> {
    let at = format!("{:#x}", height.get());
    let calls: Vec<Call> = contracts.iter().map(|c| Call::new("eth_getCode", json!([c, at]))).collect();
    let answers = endpoint.ask(&calls).await?;
    calls.iter().zip(answers).map(|(call, answer)| has_code(endpoint, call, answer, height)).collect()
}

fn has_code(endpoint: &Endpoint, call: &Call, answer: Answer, height: Height) -> Result<bool, SourceError> {
    match answer {
        Ok(raw) => match serde_json::from_str::<String>(raw.get()) {
            Ok(code) if code.starts_with("0x") => Ok(code.len() > 2),
            _ => Err(endpoint.lies(height, "eth_getCode gives no bytes")),
        },
        Err(error) => match endpoint.verdict(call.method, &error) {
            Verdict::Busy | Verdict::NoAccess | Verdict::BatchRefused { .. } => {
                Err(endpoint.refused(call, &error, None))
            }
            _ => Err(endpoint.permanent(format!(
                "cannot tell where to begin, since it keeps no state of block {height} ({:?}): give --start-height",
                error.text()
            ))),
        },
    }
}
