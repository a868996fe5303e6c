//! The built program as a stranger meets it: the first look, the README, the compose file, the private server.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod clients;
mod compose;
mod databases;
mod first_look;
mod output;
mod private_postgres;
mod readme;
mod settings;
mod signals;
#[path = "../support/mod.rs"]
mod support;

use support::story;
