//! Ebbtide keeps state derived from a blockchain right, in plain Postgres tables, through every reorganisation.

pub mod api;
pub mod chain;
pub mod config;
pub mod ops;
pub mod process;
pub mod projections;
pub mod sources;
pub mod store;
pub mod sync;
pub mod watch;
