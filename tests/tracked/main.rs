//! Tables of people, kept right through every reorganisation: undo by triggers, SQL projections, projections in Rust.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    unreachable_pub,
    reason = "a test that cannot go on has failed"
)]

mod altered;
mod examples;
mod fence;
mod follow;
mod harness;
mod order;
mod panics;
mod random;
mod refused;
mod rights;
mod run;
mod sessions;
#[path = "../support/mod.rs"]
mod support;
mod survive;
mod undo;
