//! The Gno source: decoding, an indexer that misbehaves, and the built program on it.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod decode;
mod run;
mod source;
#[path = "../support/mod.rs"]
mod support;
