//! What the ledger must survive, one named test each. After every one of them an oracle that shares nothing with the
//! processor compares all derived rows with what the chain tables say.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    unreachable_pub,
    reason = "a test that cannot go on has failed"
)]

mod copies;
mod cost;
mod crash;
mod flat;
mod flood;
mod frozen;
mod journal;
mod lies;
mod pooler;
mod psql;
mod readers;
mod rebuild;
mod reorg;
mod storm;
#[path = "../support/mod.rs"]
mod support;
mod tools;
mod two;
mod wake;
