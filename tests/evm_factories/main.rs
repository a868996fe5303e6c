//! Contracts that are followed because others named them: on a node of the test's own making, and on a real one.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod live;
mod made;
#[path = "../anvil/node.rs"]
#[allow(dead_code, reason = "a part of it is used here")]
mod node;
mod run;
mod source;
#[path = "../support/mod.rs"]
mod support;
