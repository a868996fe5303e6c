//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use toml::Value;

use super::chain::SourceKind;
use super::given::Given;
use super::{ConfigError, Faults};
use crate::projections::token_balances::{self, History, NegativeBalances, OnBadEvent, OnDeepChange};

/// Keeps tables derived from a blockchain correct in your own Postgres, through every reorg.
#[derive(Debug, Clone, Parser)]
#[command(version, propagate_version = true)]
pub struct Cli {
    /// Settings; default: ebbtide.toml if it is there.
    #[arg(long, global = true, env = "EBBTIDE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The database, postgres://… or key=value; also DATABASE_URL or DB_URL.
    #[arg(long, global = true, value_name = "URL", hide_env_values = true)]
    pub database_url: Option<String>,
    /// Where a private Postgres keeps its data.
    #[arg(long, global = true, env = "EBBTIDE_DATA_DIR", value_name = "DIR", default_value = ".ebbtide")]
    pub data_dir: PathBuf,
    /// Form of the log lines on stderr; what is logged: EBBTIDE_LOG (info, debug, ebbtide::sync=debug …).
    #[arg(long, global = true, env = "EBBTIDE_LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// The commands.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Everything in one process: migrate, sync, process, serve. Without a source: a devnet on a private Postgres.
    Run(AllArgs),
    /// Write blocks and events of a source into Postgres.
    Sync {
        /// Where blocks come from.
        #[command(flatten)]
        source: SourceArgs,
        /// Where health is shown.
        #[command(flatten)]
        operator: OperatorArgs,
    },
    /// Apply blocks, of every chain in the database.
    Process {
        /// How they are applied.
        #[command(flatten)]
        process: ProcessArgs,
        /// Where health is shown.
        #[command(flatten)]
        operator: OperatorArgs,
    },
    /// Answer the REST API. It only reads.
    Serve {
        /// What readers are shown.
        #[command(flatten)]
        shown: ShownArgs,
        /// Where answers are given.
        #[command(flatten)]
        serve: ServeArgs,
    },
    /// Print the settings that count, from file, variables and flags, without passwords and keys; connects to nothing.
    Config {
        /// Print nothing, but name every fault; unknown variables are faults, too. Exit code 2 if there is one.
        #[arg(long)]
        check: bool,
        /// As for `run`.
        #[command(flatten)]
        all: AllArgs,
    },
    /// Apply schema migrations.
    Migrate,
    /// Show how every source and projection is, since when, why, and what to do. Exit code 1 unless all of them are ok.
    Status(StatusArgs),
    /// Compute everything again from the chain tables and print every difference. Exit code 1 if there is one.
    ///
    /// token_balances is computed by other code than the processor's, option_vaults from all its events in memory, with
    /// checks between its rows. A projection of yours is applied again from its start by its own function, with its undo,
    /// in one transaction that is rolled back: readers see nothing of it, but the projection does not advance while this runs.
    Verify(VerifyArgs),
    /// Apply blocks again from a height on.
    Replay(ReplayArgs),
    /// Stop a projection where it is, or take it to a height and keep it there.
    Pause(PauseArgs),
    /// Resume a paused or halted projection.
    Resume(ResumeArgs),
    /// Import balances as of before the first block (all or nothing).
    OpeningBalances(OpeningArgs),
    /// Look at events that were refused, and have them tried again.
    #[command(subcommand)]
    Rejected(RejectedCommand),
    /// psql on the database, with `ebbtide` on its search path.
    Psql {
        /// Passed on to psql.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

/// Where blocks come from.
#[derive(Debug, Clone, Default, Args)]
pub struct SourceArgs {
    /// Where blocks come from.
    #[arg(long, value_enum)]
    pub source: Option<SourceKind>,
    /// A node's address (evm: JSON-RPC, gno: …/graphql/query); repeatable: the others are for fail-over and second
    /// opinions.
    #[arg(long = "url", value_name = "URL")]
    pub urls: Vec<String>,
    /// WebSocket address; new blocks there wake the syncer [gno default: the URL's own].
    #[arg(long, value_name = "URL")]
    pub ws_url: Option<String>,
    /// A file of blocks for --source file (NDJSON, also gzip); `-`: standard input.
    #[arg(long = "file", value_name = "PATH")]
    pub path: Option<PathBuf>,
    /// Chain kind of the file's addresses: evm, gno, starknet or other.
    #[arg(long, value_name = "KIND")]
    pub kind: Option<String>,
    /// Token to follow (repeatable). Default: all tokens.
    #[arg(long = "token", value_name = "ADDRESS")]
    pub tokens: Vec<String>,
    /// Another event to keep, as "Name(type indexed name, …)", for gno by its type; repeatable.
    #[arg(long = "event", value_name = "SIGNATURE")]
    pub events: Vec<String>,
    /// A contract that mints by Deposit and burns by Withdrawal, as WETH does; repeatable.
    #[arg(long = "wrapped-native", value_name = "ADDRESS")]
    pub wrapped_native: Vec<String>,
    /// First height that counts; default: the token's deployment.
    #[arg(long, value_name = "HEIGHT", value_parser = number())]
    pub start_height: Option<i64>,
    /// Blocks below the head taken as final [default: 64].
    #[arg(long, value_name = "BLOCKS", value_parser = number())]
    pub finality_depth: Option<i64>,
    /// The chain's name in the database [default: main].
    #[arg(long, value_name = "NAME")]
    pub chain: Option<String>,
    /// Follow the source even where it replaces final blocks, and move the start of a chain that holds blocks.
    #[arg(long)]
    pub allow_reset: bool,
    /// Head polling interval in ms [default: 1000, gno 2000].
    #[arg(long, value_name = "MS", value_parser = number())]
    pub source_poll_ms: Option<i64>,
    /// devnet: another seed is another chain [default: 1].
    #[arg(long, value_parser = number())]
    pub seed: Option<i64>,
    /// devnet: ms between two blocks [default: 1000].
    #[arg(long, value_name = "MS", value_parser = number())]
    pub block_interval_ms: Option<i64>,
    /// devnet: the chain ends at this height [default: never].
    #[arg(long, value_name = "HEIGHT", value_parser = number())]
    pub last_height: Option<i64>,
}

impl SourceArgs {
    /// What the flags say, by the setting of a chain that each stands for.
    fn settings(&self) -> Vec<(&'static str, &'static str, Value)> {
        let texts = |list: &[String]| (!list.is_empty()).then(|| Value::from(list.to_vec()));
        let number = |n: Option<i64>| n.map(Value::Integer);
        let all = [
            ("--source", "source", self.source.map(|source| Value::from(source.word()))),
            ("--url", "urls", texts(&self.urls)),
            ("--ws-url", "ws_url", self.ws_url.clone().map(Value::from)),
            ("--file", "path", self.path.as_ref().map(|path| Value::from(path.to_string_lossy().into_owned()))),
            ("--kind", "kind", self.kind.clone().map(Value::from)),
            ("--token", "tokens", texts(&self.tokens)),
            ("--event", "events", texts(&self.events)),
            ("--wrapped-native", "wrapped_native", texts(&self.wrapped_native)),
            ("--start-height", "start_height", number(self.start_height)),
            ("--finality-depth", "finality_depth", number(self.finality_depth)),
            ("--allow-reset", "allow_reset", self.allow_reset.then_some(Value::Boolean(true))),
            ("--source-poll-ms", "poll_interval_ms", number(self.source_poll_ms)),
            ("--seed", "seed", number(self.seed)),
            ("--block-interval-ms", "block_interval_ms", number(self.block_interval_ms)),
            ("--last-height", "last_height", number(self.last_height)),
        ];
        all.into_iter().filter_map(|(flag, setting, value)| Some((flag, setting, value?))).collect()
    }

    /// Lays the flags over the chain that they name. Where nobody names a source, that chain is a devnet, which is a first
    /// look: whether this is one.
    pub(super) fn lay_over(&self, given: &mut Given, faults: &mut Faults) -> bool {
        let name = self.chain.as_deref().unwrap_or("main");
        let chain = |setting| ["chains", name, setting];
        let flags = self.settings();
        let names_a_source = flags.iter().any(|(_, setting, _)| NAMING.contains(setting));
        let others: Vec<String> = match given.at(&["chains"]) {
            Some(Value::Table(chains)) => chains.keys().cloned().collect(),
            _ => Vec::new(),
        };
        let is_known = others.iter().any(|other| other == name);
        if !names_a_source && !is_known && !others.is_empty() {
            if let Some(flag) = flags.first().map(|(flag, ..)| *flag).or(self.chain.as_ref().map(|_| "--chain")) {
                faults.push(ConfigError::Unfit(format!(
                    "{flag} is for chain {name}, which the settings do not name: say which one by --chain ({}), or name a \
                     source for it",
                    others.join(", ")
                )));
            }
            return false;
        }
        for (flag, setting, value) in flags {
            if NAMING.contains(&setting) && given.is_of_the_file(&chain(setting)) {
                faults.push(ConfigError::Unfit(format!(
                    "chain {name} is named twice: {flag} stands beside {}; leave out one of them, or follow another chain by \
                     --chain",
                    given.name(&chain(setting))
                )));
            }
            given.lay_over(flag, &chain(setting), value);
        }
        let source = match (given.at(&chain("source")), given.at(&chain("path"))) {
            (Some(_), _) => return false,
            _ if !names_a_source && !is_known => SourceKind::Devnet,
            (None, Some(_)) => SourceKind::File,
            (None, None) if names_a_source => SourceKind::Evm,
            (None, None) => return false,
        };
        given.lay_over("the source taken for granted", &chain("source"), Value::from(source.word()));
        !names_a_source && !is_known
    }
}

/// Settings that say where a chain's blocks come from.
const NAMING: [&str; 3] = ["source", "urls", "path"];

/// How blocks are applied.
#[derive(Debug, Clone, Default, Args)]
pub struct ProcessArgs {
    /// End when there is nothing left to do. A node that is followed always has more: for a file, or the database alone.
    #[arg(long)]
    pub once: bool,
    /// Most final blocks merged into one commit [default: as many as hold 10,000 events].
    #[arg(long, value_name = "N", value_parser = number())]
    pub batch: Option<i64>,
    /// Pairs of connections to work with, for balances and again for functions and code [default: 4].
    #[arg(long, value_name = "N", value_parser = number())]
    pub workers: Option<i64>,
    /// Drop replaced blocks and reorganisations after so many days [default: never]. Refused events stay as long as their block.
    #[arg(long, value_name = "DAYS", value_parser = number())]
    pub keep_evidence_days: Option<i64>,
    /// What a negative balance means.
    #[command(flatten)]
    pub shown: ShownArgs,
    /// What to do with an event that cannot be taken in [default: quarantine].
    #[arg(long, value_enum)]
    pub on_bad_event: Option<OnBadEvent>,
    /// What to do when final blocks changed in the chain tables [default: rebuild].
    #[arg(long, value_enum)]
    pub on_deep_change: Option<OnDeepChange>,
    /// How much of balance_changes is kept [default: full].
    #[arg(long, value_enum)]
    pub history: Option<History>,
}

impl ProcessArgs {
    pub(super) fn lay_over(&self, given: &mut Given) {
        let numbers = [
            ("--batch", "batch", self.batch),
            ("--workers", "workers", self.workers),
            ("--keep-evidence-days", "keep_evidence_days", self.keep_evidence_days),
        ];
        for (flag, setting, number) in numbers {
            if let Some(number) = number {
                given.lay_over(flag, &[setting], Value::Integer(number));
            }
        }
        lay_word(given, "--on-bad-event", "on_bad_event", self.on_bad_event);
        lay_word(given, "--on-deep-change", "on_deep_change", self.on_deep_change);
        lay_word(given, "--history", "history", self.history);
        self.shown.lay_over(given);
    }
}

/// What readers are shown.
#[derive(Debug, Clone, Default, Args)]
pub struct ShownArgs {
    /// What a negative balance means [default: zero].
    #[arg(long, value_enum)]
    pub negative_balances: Option<NegativeBalances>,
}

impl ShownArgs {
    pub(super) fn lay_over(&self, given: &mut Given) {
        lay_word(given, "--negative-balances", "negative_balances", self.negative_balances);
    }
}

fn lay_word(given: &mut Given, flag: &str, setting: &str, word: Option<impl ValueEnum>) {
    if let Some(word) = word.and_then(|word| Some(word.to_possible_value()?.get_name().to_owned())) {
        given.lay_over(flag, &["projections", token_balances::NAME, setting], Value::from(word));
    }
}

/// Where answers are given.
#[derive(Debug, Clone, Default, Args)]
pub struct ServeArgs {
    /// Address of the REST API [default: 127.0.0.1:8080].
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<String>,
    /// Where health is shown.
    #[command(flatten)]
    pub operator: OperatorArgs,
}

impl ServeArgs {
    pub(super) fn lay_over(&self, given: &mut Given) {
        if let Some(listen) = &self.listen {
            given.lay_over("--listen", &["api", "listen"], Value::from(listen.as_str()));
        }
        self.operator.lay_over(given);
    }
}

/// Where health is shown.
#[derive(Debug, Clone, Default, Args)]
pub struct OperatorArgs {
    /// Address of /health, /ready and /metrics [default: 127.0.0.1:6060].
    #[arg(long, value_name = "ADDR")]
    pub operator_listen: Option<String>,
}

impl OperatorArgs {
    pub(super) fn lay_over(&self, given: &mut Given) {
        if let Some(listen) = &self.operator_listen {
            given.lay_over("--operator-listen", &["api", "operator_listen"], Value::from(listen.as_str()));
        }
    }
}

/// A number as a settings file can hold it, not below 0.
fn number() -> impl clap::builder::TypedValueParser<Value = i64> {
    clap::value_parser!(i64).range(0..)
}

/// Everything that a settings file can say, by flags.
#[derive(Debug, Clone, Default, Args)]
pub struct AllArgs {
    /// Where blocks come from.
    #[command(flatten)]
    pub source: SourceArgs,
    /// How they are applied.
    #[command(flatten)]
    pub process: ProcessArgs,
    /// Where answers are given.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// `status`.
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// Show it again and again.
    #[arg(long)]
    pub watch: bool,
    /// As JSON.
    #[arg(long)]
    pub json: bool,
}

/// `verify`.
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// One projection; default: all.
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// One chain; default: all.
    #[arg(long, value_name = "NAME")]
    pub chain: Option<String>,
    /// Maximum differences printed per kind.
    #[arg(long, default_value_t = 20)]
    pub limit: i64,
    /// Instead, run NAME, an SQL projection, through random reorganisations that follow from this number, on a chain that
    /// exists only in a transaction, and compare with fresh replays: finds what is not deterministic.
    #[arg(long, value_name = "SEED", requires = "name")]
    pub fuzz: Option<u64>,
    /// How many reorganisations.
    #[arg(long, value_name = "N", default_value_t = 30, requires = "fuzz",
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rounds: u32,
    /// A node (JSON-RPC) to ask for some balances of --chain (default: main) as well, at the block applied last.
    #[arg(long, value_name = "URL")]
    pub node: Option<String>,
    /// How many balances the node is asked for.
    #[arg(long, value_name = "N", default_value_t = 100, requires = "node",
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub sample: u32,
}

/// `replay`.
#[derive(Debug, Clone, Args)]
pub struct ReplayArgs {
    /// The chain's name.
    #[arg(long, value_name = "NAME", default_value = "main")]
    pub chain: String,
    /// First height to apply again.
    #[arg(long, value_name = "HEIGHT")]
    pub from: u64,
    /// One projection; default: all.
    #[arg(long, value_name = "NAME")]
    pub projection: Option<String>,
}

/// `pause`.
#[derive(Debug, Clone, Args)]
pub struct PauseArgs {
    /// The chain's name.
    #[arg(long, value_name = "NAME", default_value = "main")]
    pub chain: String,
    /// Go to this height and stay there; default: stay where it is.
    #[arg(long, value_name = "HEIGHT")]
    pub at: Option<u64>,
    /// One projection; default: all.
    #[arg(long, value_name = "NAME")]
    pub projection: Option<String>,
}

/// `resume`.
#[derive(Debug, Clone, Args)]
pub struct ResumeArgs {
    /// The chain's name.
    #[arg(long, value_name = "NAME", default_value = "main")]
    pub chain: String,
    /// One projection; default: all.
    #[arg(long, value_name = "NAME")]
    pub projection: Option<String>,
}

/// `opening-balances`.
#[derive(Debug, Clone, Args)]
pub struct OpeningArgs {
    /// Comma-separated values with the columns token,address,amount, named by the first line; `-`: standard input.
    #[arg(value_name = "FILE.csv")]
    pub file: PathBuf,
    /// The chain's name.
    #[arg(long, value_name = "NAME", default_value = "main")]
    pub chain: String,
    /// Drop the chain's opening balances first; without it, an account that has one already is an error.
    #[arg(long)]
    pub replace: bool,
}

/// `rejected`.
#[derive(Debug, Clone, Subcommand)]
pub enum RejectedCommand {
    /// Show them, in chain order.
    List(RejectedListArgs),
    /// Have their blocks applied again, once the cause is fixed.
    Retry(RejectedRetryArgs),
}

/// `rejected list`.
#[derive(Debug, Clone, Args)]
pub struct RejectedListArgs {
    /// One chain; default: all.
    #[arg(long, value_name = "NAME")]
    pub chain: Option<String>,
    /// Refused by this projection, or by `source`; default: any.
    #[arg(long, value_name = "NAME")]
    pub projection: Option<String>,
    /// Refused for this reason, such as bad_address; default: any.
    #[arg(long, value_name = "WORD")]
    pub reason: Option<String>,
    /// Most events shown.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub limit: u32,
    /// As JSON, each with the event as it came.
    #[arg(long)]
    pub json: bool,
}

/// `rejected retry`.
#[derive(Debug, Clone, Args)]
pub struct RejectedRetryArgs {
    /// The chain's name.
    #[arg(long, value_name = "NAME", default_value = "main")]
    pub chain: String,
    /// Refused by this projection; default: by any.
    #[arg(long, value_name = "NAME")]
    pub projection: Option<String>,
    /// Those of one block.
    #[arg(long, value_name = "HEIGHT", required_unless_present = "all", conflicts_with = "all")]
    pub height: Option<u64>,
    /// Those of every block.
    #[arg(long)]
    pub all: bool,
}
