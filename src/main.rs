//! Arguments in, exit code out; the only place that prints an error.

mod commands;

use std::process::ExitCode;

use clap::Parser;
use ebbtide::config::{Cli, Command, ConfigError};
use ebbtide::ops::plain_lines;
use tokio::runtime::Builder;

fn main() -> ExitCode {
    // 2: wrong usage; clap says what and ends.
    let cli = Cli::parse();
    let mut threads = Builder::new_multi_thread();
    // `process` mostly waits for its server: a second thread adds no speed, and what the allocator keeps for each thread was a
    // sixth of the memory it took.
    if matches!(cli.command, Command::Process { .. }) {
        threads.worker_threads(1);
    }
    match threads.enable_all().build() {
        Ok(runtime) => runtime.block_on(answer(cli)),
        Err(error) => {
            eprintln!(
                "ebbtide: Starting the program's threads failed: {error}. Allow it more threads, or more memory."
            );
            ExitCode::FAILURE
        }
    }
}

async fn answer(cli: Cli) -> ExitCode {
    match commands::run(cli).await {
        Ok(code) => code,
        Err(error) => {
            let usage = error.downcast_ref::<ConfigError>().is_some();
            // One line a cause; a source that fails says the same at two levels, which helps nobody.
            let mut said = String::new();
            for cause in error.chain() {
                let text = cause.to_string();
                if !said.contains(&text) {
                    said.push_str(if said.is_empty() { "" } else { ": " });
                    said.push_str(&text);
                }
            }
            eprintln!("ebbtide: {}", plain_lines(&said));
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}
