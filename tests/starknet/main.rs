//! The Starknet source: decoding, nodes that misbehave, the registry of vaults, and the built program on all of them.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod decode;
mod devnet;
mod registry;
mod run;
mod source;
#[path = "../support/mod.rs"]
mod support;

use support::{story, vault_tables as tables};
