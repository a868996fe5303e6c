//! Option vaults: the worked example, random books and histories against models, malformed events, and their tables.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod audit;
mod bells;
mod clearing;
mod cuts;
mod example;
mod histories;
mod run;
mod shapes;
mod stored;

use support::{story, vault_tables as tables};
