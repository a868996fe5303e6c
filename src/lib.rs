//! Ebbtide keeps state derived from a blockchain right, in plain Postgres tables, through every reorganisation.

pub mod chain;
pub mod sources;
pub mod store;
