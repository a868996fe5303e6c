//! The EVM source: decoding, nodes that misbehave, factories, and the built program on such nodes and on a real one.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod anvil;
mod decode;
mod events;
mod factories;
mod faults;
mod node;
mod run;
mod source;
#[path = "../support/mod.rs"]
mod support;
