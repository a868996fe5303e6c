//! Notices: what sinks are told of blocks, and of their taking back, against consumers that fold what they hear.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod consumer;
mod fence;
mod pull;
mod retractions;
mod rows;
mod schemas;
mod snapshots;
mod storm;
#[path = "../support/mod.rs"]
mod support;
