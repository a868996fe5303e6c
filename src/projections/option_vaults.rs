//! `option_vaults`: vaults, rounds, providers and bids of an options protocol on Starknet, from their events. Pure:
//! events and rows in, rows out.
//!
//! Providers' balances are not on the chain as events: the contract computes them when it is asked. So each event that
//! moves a whole vault is applied to every provider of it, by the contract's own exact floors.
//!
//! # A block is applied
//! ```text
//! addresses(events)        → which of them are vaults and rounds: VaultStatements::followed, into a Directory
//! read(directory, events)  → the block's steps, typed and in order
//! wanted(steps)            → their rows: VaultStatements::load, into a Working set
//! apply(rows, at, steps)   → events that were refused
//! rows.changes()           → what to write: VaultStatements::put
//! ```
//! Nothing here takes an event back. Undo restores the rows as they were before their block.

pub mod clearing;
pub mod decode;
pub mod event;
pub mod felts;
pub mod state;
pub mod steps;
pub mod transition;

use serde_json::json;

use crate::chain::{Event, Height};
use crate::store::Refused;

pub use state::{Table, Working, wanted};
pub use steps::{Class, Directory, Step, addresses, read};

/// The projection's name in `projections` and `checkpoints`.
pub const NAME: &str = "option_vaults";

/// The block whose events are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At {
    /// Its height.
    pub height: Height,
    /// Its time in seconds since 1970, if it has one.
    pub time: Option<i64>,
}

/// Applies a block's events in order. An event that cannot be read or does not fit the rows changes nothing and is
/// given back; whether the others stand nevertheless is the caller's to decide.
pub fn apply(rows: &mut Working, at: At, steps: &[Step<'_>]) -> Vec<Refused> {
    let mut refused = Vec::new();
    for step in steps {
        let left = match &step.event {
            Ok(event) => transition::transition(rows, at.time, &step.vault, event)
                .map_err(|fault| (fault.reason(), fault.to_string())),
            Err(fault) => Err((fault.reason(), fault.to_string())),
        };
        match left {
            Ok(left) => left.into_iter().for_each(|row| rows.put(row)),
            Err((reason, fault)) => refused.push(refusal(at.height, step.source, reason, &fault)),
        }
    }
    refused
}

fn refusal(height: Height, event: &Event, reason: &'static str, fault: &str) -> Refused {
    Refused {
        height,
        tx_index: event.tx_index as i64,
        event_index: event.event_index as i64,
        raw: json!({
            "emitter": event.emitter, "name": event.name, "keys": event.keys, "data": event.data, "fault": fault,
        }),
        reason,
    }
}
