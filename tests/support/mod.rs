//! What tests share.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used, reason = "each test file uses a part of it")]

pub mod fake_node;
