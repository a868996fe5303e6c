//! The REST interface against a real Postgres, line by line of specs/gno-token-balances section 7.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs, reason = "a test that cannot go on has failed")]

mod balances;
mod contract;
mod cost;
mod history;
mod ledger;
mod now;
mod pooler;
mod served;
#[path = "../support/mod.rs"]
mod support;
mod vaults;

use support::{story, vault_tables as tables};
