//! Arguments in, exit code out; the only place that prints an error.

mod commands;

use std::process::ExitCode;

use clap::Parser;
use ebbtide::config::{Cli, ConfigError};

#[tokio::main]
async fn main() -> ExitCode {
    // 2: wrong usage; clap says what and ends.
    let cli = Cli::parse();
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
            eprintln!("ebbtide: {said}");
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}
