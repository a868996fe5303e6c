//! The command line.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::ConfigError;
use super::file::{ChainFile, ProjectionFile, SourceKind};
use crate::projections::token_balances::{History, NegativeBalances, OnBadEvent, OnDeepChange};

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
    Run {
        /// Where blocks come from.
        #[command(flatten)]
        source: SourceArgs,
        /// How they are applied.
        #[command(flatten)]
        process: ProcessArgs,
        /// Where answers are given.
        #[command(flatten)]
        serve: ServeArgs,
    },
    /// Write blocks and events of a source into Postgres.
    Sync {
        /// Where blocks come from.
        #[command(flatten)]
        source: SourceArgs,
        /// Where health is shown.
        #[command(flatten)]
        serve: ServeArgs,
    },
    /// Apply blocks, of every chain in the database.
    Process {
        /// How they are applied.
        #[command(flatten)]
        process: ProcessArgs,
        /// Where health is shown.
        #[command(flatten)]
        serve: ServeArgs,
    },
    /// Answer the REST API. It only reads.
    Serve {
        /// What readers are shown.
        #[command(flatten)]
        process: ProcessArgs,
        /// Where answers are given.
        #[command(flatten)]
        serve: ServeArgs,
    },
    /// Apply schema migrations.
    Migrate,
    /// Show where every chain and projection stands. Exit code 1 if one needs a person.
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
    #[arg(long, value_name = "HEIGHT")]
    pub start_height: Option<u64>,
    /// Blocks below the head taken as final [default: 64].
    #[arg(long, value_name = "BLOCKS")]
    pub finality_depth: Option<u64>,
    /// The chain's name in the database.
    #[arg(long, value_name = "NAME", default_value = "main")]
    pub chain: String,
    /// Follow the source even where it replaces final blocks, and move the start of a chain that holds blocks.
    #[arg(long)]
    pub allow_reset: bool,
    /// Head polling interval in ms [default: 1000, gno 2000].
    #[arg(long, value_name = "MS")]
    pub source_poll_ms: Option<u64>,
    /// devnet: another seed is another chain [default: 1].
    #[arg(long)]
    pub seed: Option<u64>,
    /// devnet: ms between two blocks [default: 1000].
    #[arg(long, value_name = "MS")]
    pub block_interval_ms: Option<u64>,
    /// devnet: the chain ends at this height [default: never].
    #[arg(long, value_name = "HEIGHT")]
    pub last_height: Option<u64>,
}

impl SourceArgs {
    /// Whether any flag names a source.
    pub(super) fn names_a_source(&self) -> bool {
        self.source.is_some() || !self.urls.is_empty() || self.path.is_some()
    }

    /// Lays the flags over the file's chains. Flags without a source need a chain of that name in the file.
    pub(super) fn add_to(&self, chains: &mut BTreeMap<String, ChainFile>) -> Result<(), ConfigError> {
        let known = chains.contains_key(&self.chain);
        if !self.names_a_source() && !known {
            let stray = !self.tokens.is_empty() || !self.events.is_empty() || self.ws_url.is_some();
            if stray {
                return Err(ConfigError::Unfit(
                    "--token, --event and --ws-url need a source: --source evm --url http://…".to_owned(),
                ));
            }
            if chains.is_empty() {
                return self.add_devnet(chains);
            }
            return Ok(());
        }
        let chain = chains.entry(self.chain.clone()).or_default();
        self.lay_over(chain);
        if chain.source.is_none() {
            chain.source = if chain.path.is_some() { Some(SourceKind::File) } else { Some(SourceKind::Evm) };
        }
        Ok(())
    }

    fn add_devnet(&self, chains: &mut BTreeMap<String, ChainFile>) -> Result<(), ConfigError> {
        let mut chain = ChainFile { source: Some(SourceKind::Devnet), ..ChainFile::default() };
        self.lay_over(&mut chain);
        chains.insert(self.chain.clone(), chain);
        Ok(())
    }

    fn lay_over(&self, chain: &mut ChainFile) {
        fn over<T: Clone>(flag: &Option<T>, setting: &mut Option<T>) {
            if flag.is_some() {
                setting.clone_from(flag);
            }
        }
        fn over_list(flag: &[String], setting: &mut Vec<String>) {
            if !flag.is_empty() {
                *setting = flag.to_vec();
            }
        }
        over(&self.source, &mut chain.source);
        over_list(&self.urls, &mut chain.urls);
        over(&self.ws_url, &mut chain.ws_url);
        over(&self.path, &mut chain.path);
        over(&self.kind, &mut chain.kind);
        over_list(&self.tokens, &mut chain.tokens);
        over_list(&self.events, &mut chain.events);
        over_list(&self.wrapped_native, &mut chain.wrapped_native);
        over(&self.start_height, &mut chain.start_height);
        over(&self.finality_depth, &mut chain.finality_depth);
        chain.allow_reset |= self.allow_reset;
        over(&self.source_poll_ms, &mut chain.poll_interval_ms);
        over(&self.seed, &mut chain.seed);
        over(&self.block_interval_ms, &mut chain.block_interval_ms);
        over(&self.last_height, &mut chain.last_height);
    }
}

/// How blocks are applied.
#[derive(Debug, Clone, Default, Args)]
pub struct ProcessArgs {
    /// End when there is nothing left to do. A node that is followed always has more: for a file, or the database alone.
    #[arg(long)]
    pub once: bool,
    /// Most final blocks merged into one commit [default: as many as hold 10,000 events].
    #[arg(long, value_name = "N")]
    pub batch: Option<u64>,
    /// Pairs of connections to work with, for balances and again for functions and code [default: 4].
    #[arg(long, value_name = "N")]
    pub workers: Option<u64>,
    /// What a negative balance means [default: zero].
    #[arg(long, value_enum)]
    pub negative_balances: Option<NegativeBalances>,
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
    pub(super) fn over(&self, file: ProjectionFile) -> ProjectionFile {
        ProjectionFile {
            negative_balances: self.negative_balances.or(file.negative_balances),
            on_bad_event: self.on_bad_event.or(file.on_bad_event),
            on_deep_change: self.on_deep_change.or(file.on_deep_change),
            history: self.history.or(file.history),
            ..file
        }
    }
}

/// Where answers are given.
#[derive(Debug, Clone, Default, Args)]
pub struct ServeArgs {
    /// Address of the REST API [default: 127.0.0.1:8080].
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<String>,
    /// Address of /health, /ready and /metrics [default: 127.0.0.1:6060].
    #[arg(long, value_name = "ADDR")]
    pub operator_listen: Option<String>,
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
