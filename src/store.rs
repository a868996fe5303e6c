//! Everything that speaks to Postgres.

pub mod private;
