//! A private Postgres from installed programs, for `ebbtide run` and for tests.

mod binaries;

pub use binaries::{Found, Installation, OLDEST_MAJOR, Search, ServerUser};
