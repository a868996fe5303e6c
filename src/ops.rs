//! What operators see: logs, metrics, health and readiness. It hands out handles and imports nothing of ours.

mod health;
mod metrics;
mod plain;

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::debug_fn;

pub use health::{ComponentReport, Health, HealthReport, Readiness};
pub use metrics::{ChainMetrics, Metrics, ProjectionMetrics};
pub use plain::{plain, plain_lines};

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TracingError {
    /// The filter does not parse.
    #[error("{variable}={given:?} is not a log filter (such as `info,ebbtide=debug`)")]
    Filter {
        /// Where it was given.
        variable: &'static str,
        /// What was given.
        given: String,
        /// Why it is none.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// Somebody else set it up before.
    #[error("logging is set up already")]
    Twice,
}

/// Sends logs to stderr, as text or as one JSON object a line. `EBBTIDE_LOG`, else `RUST_LOG`, else `default_level` says
/// which; colours only on a terminal, and not where `NO_COLOR` is set.
///
/// # Errors
/// When the filter does not parse, or logging was set up before.
pub fn init_tracing(json: bool, default_level: tracing::Level) -> Result<(), TracingError> {
    let given = ["EBBTIDE_LOG", "RUST_LOG"].into_iter().find_map(|variable| {
        std::env::var(variable).ok().filter(|value| !value.trim().is_empty()).map(|value| (variable, value))
    });
    let filter = match given {
        Some((variable, given)) => {
            EnvFilter::try_new(&given).map_err(|source| TracingError::Filter { variable, given, source })?
        }
        None => EnvFilter::new(LevelFilter::from_level(default_level).to_string()),
    };
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let set_up = if json {
        logs.json().flatten_event(true).with_ansi(false).try_init()
    } else {
        // Errors quote nodes, files and databases. (JSON has escapes of its own.)
        let fields = debug_fn(|to, field, value| match field.name() {
            "message" => write!(to, "{}", plain(&format!("{value:?}"))),
            name => write!(to, "{name}={}", plain(&format!("{value:?}"))),
        });
        logs.fmt_fields(fields.delimited(" ")).with_ansi(colours).try_init()
    };
    set_up.map_err(|_| TracingError::Twice)
}
