//! What a block's events come to, whatever kind of node gave them.

use crate::chain::{Block, Event, Link, Reject, TokenEvent, Transaction};

/// A block's events, decoded. Each list ascends by position, and no position is in two of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Decoded {
    /// The transactions of everything below.
    pub transactions: Vec<Transaction>,
    /// Movements of tokens.
    pub token_events: Vec<TokenEvent>,
    /// Other events that are kept.
    pub events: Vec<Event>,
    /// What could not be taken in, each with a fixed word. EVM: `bad_log` (not even a log), `bad_transfer`, `bad_event`,
    /// `no_party` (an amount from nobody to nobody), `position_taken` (different logs that claim one place: none of them is
    /// believed), `transaction_differs` (two hashes for one transaction's place). Starknet: `bad_felt` (no number below P),
    /// `bad_amount` (a half of 2^128 or more), `bad_transfer` (another shape, of a listed token), `no_party` (of a listed
    /// token).
    pub rejects: Vec<Reject>,
}

impl Decoded {
    /// The block that holds all this.
    pub(crate) fn block(self, link: Link, time: Option<jiff::Timestamp>) -> Block {
        let Decoded { transactions, token_events, events, rejects } = self;
        Block { link, time, transactions, token_events, events, rejects }
    }
}
