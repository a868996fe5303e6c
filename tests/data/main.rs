//! The built program on recorded data: mainnet blocks with their contracts' storage, Ethereum's own reorg tests, runs
//! of a real node. Everything enters as a feed file or a pipe (`--source file`); nothing is inserted by a test.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod anvil;
mod blocks;
mod live;
mod mainnet_run;
mod reorg_cases;
#[path = "../support/mod.rs"]
mod support;
mod wire;
