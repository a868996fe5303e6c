//! The REST interface against a real Postgres, line by line of specs/gno-token-balances section 7.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs, reason = "a test that cannot go on has failed")]

mod balances;
mod contract;
mod cost;
mod history;
mod ledger;
mod served;
#[path = "../option_vaults/story.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with the tests of the projection")]
mod story;
#[path = "../support/mod.rs"]
mod support;
#[path = "../option_vaults/tables.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with the tests of the projection")]
mod tables;
mod vaults;
