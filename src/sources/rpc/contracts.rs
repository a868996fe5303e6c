//! What contracts are asked, whatever kind of chain they are on: whether they are there, and how they describe themselves.

use serde_json::value::RawValue;

use super::endpoint::{Answer, Call, Endpoint};
use super::fault::Verdict;
use crate::chain::{Height, Text};
use crate::sources::{SourceError, TokenMetadata};

/// Tokens described by one call of ours, so that no request grows without bound.
const TOKENS_AT_ONCE: usize = 100;

/// How a node is asked whether a contract is there at a height.
pub(crate) struct Presence {
    pub(crate) call: fn(&str, Height) -> Call,
    /// None means that the answer does not tell.
    pub(crate) read: fn(&Answer) -> Option<bool>,
}

impl Presence {
    /// Whether these contracts are there at a height.
    ///
    /// # Errors
    /// Permanent, naming `--start-height`, when the node keeps no state of that height.
    pub(crate) async fn at(
        &self,
        endpoint: &Endpoint,
        contracts: &[String],
        height: Height,
    ) -> Result<Vec<bool>, SourceError> {
        let calls: Vec<Call> = contracts.iter().map(|contract| (self.call)(contract, height)).collect();
        let answers = calls.iter().zip(endpoint.ask(&calls).await?);
        answers
            .map(|(call, answer)| match ((self.read)(&answer), answer) {
                (Some(there), _) => Ok(there),
                (None, Ok(_)) => Err(endpoint.lies(height, format!("{} gives nonsense", call.method))),
                (None, Err(error)) => Err(match endpoint.verdict(call.method, &error) {
                    Verdict::Busy | Verdict::NoAccess | Verdict::BatchRefused { .. } => endpoint.refused(call, &error),
                    _ => endpoint.permanent(format!(
                        "cannot tell where to begin, since it keeps no state of block {height} ({:?}): give --start-height",
                        endpoint.quote(&error.words())
                    )),
                }),
            })
            .collect()
    }

    /// The lowest height at which one of these contracts is there, by bisection; some are at the head.
    ///
    /// # Errors
    /// As [`at`](Presence::at).
    pub(crate) async fn first_height(
        &self,
        endpoint: &Endpoint,
        contracts: &[String],
        head: Height,
    ) -> Result<Height, SourceError> {
        // Some contract is there at `high`; none is below `low`.
        let (mut low, mut high) = (0, head.get());
        while low < high {
            let middle = low + (high - low) / 2;
            let height = Height::new(middle).unwrap_or(Height::MAX);
            if self.at(endpoint, contracts, height).await?.contains(&true) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        Ok(Height::new(high).unwrap_or(Height::MAX))
    }
}

/// What to say of a contract that the settings name and that is not there.
pub(crate) fn not_there(contract: &str, head: Height) -> SourceError {
    SourceError::permanent(format!(
        "{contract} is no contract at block {head}, so where to begin is not known: is the address right? Otherwise give \
         --start-height"
    ))
}

/// How tokens are asked for their symbol, name and decimals, and what their answers say.
pub(crate) struct Questions<A> {
    pub(crate) calls: fn(&str) -> [Call; 3],
    pub(crate) read: fn(&RawValue) -> Option<A>,
    pub(crate) text: fn(&A) -> Option<String>,
    pub(crate) small: fn(&A) -> Option<i16>,
}

impl<A> Questions<A> {
    /// Asks each token for its symbol, name and decimals. A contract may answer anything; what is not fit to be shown becomes
    /// none.
    ///
    /// # Errors
    /// When the node fails; a contract that fails is an answer.
    pub(crate) async fn ask(&self, endpoint: &Endpoint, tokens: &[Text]) -> Result<Vec<TokenMetadata>, SourceError> {
        let mut described = Vec::with_capacity(tokens.len());
        for part in tokens.chunks(TOKENS_AT_ONCE) {
            let calls: Vec<Call> = part.iter().flat_map(|token| (self.calls)(token)).collect();
            let mut answers = calls.iter().zip(endpoint.ask_aside(&calls).await?);
            for token in part {
                let mut next = || match answers.next() {
                    Some((call, answer)) => Ok(said(endpoint, call, answer)?.and_then(|raw| (self.read)(&raw))),
                    None => Ok::<_, SourceError>(None),
                };
                let (symbol, name, decimals) = (next()?, next()?, next()?);
                described.push(TokenMetadata {
                    token: token.clone(),
                    symbol: symbol.and_then(|answer| (self.text)(&answer)),
                    name: name.and_then(|answer| (self.text)(&answer)),
                    decimals: decimals.and_then(|answer| (self.small)(&answer)),
                });
            }
        }
        Ok(described)
    }
}

/// What a contract answers; none if it fails.
///
/// # Errors
/// When it is the node that fails.
pub(crate) fn said(endpoint: &Endpoint, call: &Call, answer: Answer) -> Result<Option<Box<RawValue>>, SourceError> {
    match answer {
        Ok(raw) => Ok(Some(raw)),
        Err(error) => match endpoint.verdict(call.method, &error) {
            // The node's fault. Anything else is the contract's: it reverted, ran out of gas, has no such function.
            Verdict::Busy | Verdict::NoAccess | Verdict::NoMethod | Verdict::NoHistory | Verdict::UnknownBlock => {
                Err(endpoint.refused(call, &error))
            }
            _ => Ok(None),
        },
    }
}
