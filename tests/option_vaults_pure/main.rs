//! Option vaults without a database: the worked example, random books and histories against models, malformed events.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod clearing;
mod example;
mod histories;
mod shapes;
mod tables;
