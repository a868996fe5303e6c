//! `ebbtide verify`: the ledger, and the projections.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod ledger;
mod projections;
#[path = "../support/mod.rs"]
mod support;
