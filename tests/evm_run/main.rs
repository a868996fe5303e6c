//! The built program on a node that misbehaves: whatever it does, the balances in the end are those of its chain,
//! and never those of anything else.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod branches;
mod cost;
mod faults;
mod finality;
mod follow;
mod settings;
#[path = "../support/mod.rs"]
mod support;
