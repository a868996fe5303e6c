//! What tests share.

pub mod fake_node;
