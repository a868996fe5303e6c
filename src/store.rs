//! Postgres: connections, migrations, and one function per query. `verify` alone reads it by statements of its own.

mod address;
mod chains;
mod column;
mod greeting;
mod ledger;
mod manifest;
mod migrate;
pub mod numeric;
mod opening;
mod operate;
pub mod reads;
mod rejected;
mod sample;
mod session;
mod sessions;
mod standing;
mod tls;
mod wake;

use std::io;
use std::time::Duration;

use deadpool_postgres::{Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime};
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, Config, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

use self::greeting::Greeting;
use self::sessions::Sessions;
use crate::ops::plain;

pub use address::Address;
pub(crate) use chains::stored_event;
pub use chains::{
    CaughtUp, ChainRow, ChainSettings, Claim, LockHolder, Missed, NewBlocks, RegisteredVault, StoredChain, SyncLock,
    Tip, TokenDescription, Written,
};
pub use column::Column;
pub use ledger::{
    BY_THEIR_KEYS, Balance, BlockError, BlockEvents, BlockTransaction, Changes, DroppedEvidence, Fence, Keys,
    LedgerRead, LedgerWrite, Movement, ProjectionRow, RangeTransaction, Refused, ReorgNote, Run, Told, Tx, Undone,
};
pub use migrate::{Migrated, SCHEMA_VERSION};
pub use opening::{Imported, LineFault};
pub use rejected::{RejectedEvent, RejectedFilter, Retried};
pub use sample::Sample;
pub use session::{Prepared, Session};
pub use standing::{Pulse, Standing};
pub use tokio_postgres::Row;
pub use tokio_postgres::types::ToSql;
pub use wake::{Wake, WakeMode};

/// How connections behave. One value for a process.
#[derive(Debug, Clone)]
pub struct StoreSettings {
    /// Shown in `pg_stat_activity`.
    pub application_name: String,
    /// Longest a statement of the processor or the syncer may run; 0: no limit. Defaults to 60 s.
    pub statement_timeout: Duration,
    /// Longest a statement may wait for a lock. Defaults to 10 s.
    pub lock_timeout: Duration,
    /// Most connections in the pool. Defaults to 8.
    pub pool_size: usize,
}

impl Default for StoreSettings {
    fn default() -> StoreSettings {
        StoreSettings {
            application_name: "ebbtide".to_owned(),
            statement_timeout: Duration::from_secs(60),
            lock_timeout: Duration::from_secs(10),
            pool_size: 8,
        }
    }
}

/// Why Postgres could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The address of the database cannot be read.
    #[error("the database address cannot be read: {reason}")]
    Address {
        /// Why, without the address, which may hold a password.
        reason: String,
    },
    /// TLS could not be set up.
    #[error("TLS cannot be set up")]
    Tls {
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// A statement failed, or the connection did.
    #[error("{}", describe(.0))]
    Postgres(tokio_postgres::Error),
    /// The server could not be reached, or did not let us in.
    #[error("there is no connection to Postgres at {place}: {}", why_not(.error))]
    Connect {
        /// Its host and port.
        place: String,
        /// Why. No source: its words are in ours already.
        error: tokio_postgres::Error,
    },
    /// No connection could be had in time.
    #[error("there is no connection to Postgres: {reason}")]
    NoConnection {
        /// Why.
        reason: String,
    },
    /// Others hold all that there is of something, and have for as long as may be waited.
    #[error("{what}; try again in a moment")]
    Busy {
        /// Of what.
        what: &'static str,
    },
    /// A migration failed.
    #[error("migrating the schema failed: {reason}")]
    Migration {
        /// Why.
        reason: String,
    },
    /// The database was migrated by a newer version.
    #[error("the database is at schema version {found}, this program knows {known}: use a newer ebbtide")]
    TooNew {
        /// The database's version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// The database was never migrated, or by an older version.
    #[error("the database is at schema version {found}, this program needs {known}: run `ebbtide migrate`")]
    TooOld {
        /// The database's version; 0: none.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// The database was brought up to date by a build with other functions, views or triggers.
    #[error("the functions, views and triggers in the database are not those of this program: run `ebbtide migrate`")]
    OtherText,
    /// Something of the schema is missing, disabled or changed.
    #[error("the schema is not what `ebbtide migrate` made: {what}; run `ebbtide migrate`")]
    Drifted {
        /// What.
        what: String,
    },
    /// Somebody holds a lock on what is to be read.
    #[error("it waits for {what}; end that transaction, or select pg_terminate_backend({pid})")]
    Held {
        /// What, and who holds it.
        what: String,
        /// The server process that holds it.
        pid: i32,
    },
    /// Another role could change what the program runs.
    #[error(
        "the schema `ebbtide` cannot be used: {what} is in the hands of {role}, whose code would run with the rights of this \
         role; take it over (`alter … owner to`), revoke it, or use another database"
    )]
    SchemaOfOthers {
        /// What is theirs.
        what: String,
        /// Whose.
        role: String,
    },
    /// Connections share their sessions.
    #[error(
        "the database is reached through a pooler that gives each transaction another session, in which only `serve` and `status` \
         work; give the address of the server itself, or of a pooler in session mode"
    )]
    Pooled,
    /// A projection's own code would not take a block.
    #[error("{reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// A value in the database that we never write.
    #[error("unexpected value in the database: {what}")]
    Nonsense {
        /// Which.
        what: String,
    },
}

impl From<tokio_postgres::Error> for StoreError {
    fn from(error: tokio_postgres::Error) -> StoreError {
        StoreError::Postgres(error)
    }
}

/// Why a connection was not made, and what to do where that is known.
fn why_not(error: &tokio_postgres::Error) -> String {
    let text = describe(error);
    let text = text.strip_prefix("error connecting to server: ").unwrap_or(&text);
    let hint = match text {
        text if text.contains("UnknownIssuer") => {
            "; name the authority that signed its certificate by sslrootcert=FILE"
        }
        _ => "",
    };
    format!("{text}{hint}")
}

/// Postgres' own words, with its detail and hint: tokio-postgres shows only "db error". On one line, since anybody's function
/// may have worded it.
fn describe(error: &tokio_postgres::Error) -> String {
    let text = match error.as_db_error() {
        Some(db) => {
            let more = [db.detail(), db.hint()].into_iter().flatten();
            std::iter::once(db.message()).chain(more).collect::<Vec<_>>().join("; ")
        }
        None => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(error);
            while let Some(cause) = source {
                text.push_str(": ");
                text.push_str(&cause.to_string());
                source = cause.source();
            }
            text
        }
    };
    plain(&text).into_owned()
}

/// Whether there is no connection, or none any more. What cannot be sent at all (text with a NUL) is an invalid input.
fn is_broken(error: &tokio_postgres::Error) -> bool {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    let mut broken = causes.filter_map(|cause| cause.downcast_ref::<io::Error>());
    error.is_closed() || broken.any(|cause| cause.kind() != io::ErrorKind::InvalidInput)
}

/// What to do about a [`StoreError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreFault {
    /// The connection or the server is gone: connect again, with a growing pause.
    Unavailable,
    /// Someone else was in the way (lock timeout, deadlock, serialization): look again.
    Contended,
    /// The statement ran longer than it may: do less at once.
    TimedOut,
    /// Nothing that another try would fix.
    Permanent,
}

impl StoreError {
    /// What to do about it.
    pub fn fault(&self) -> StoreFault {
        match self {
            StoreError::NoConnection { .. } | StoreError::Busy { .. } => StoreFault::Unavailable,
            StoreError::Held { .. } => StoreFault::Contended,
            StoreError::Postgres(error) | StoreError::Connect { error, .. } => {
                let Some(code) = error.code() else {
                    // What is not the connection's fault is ours: a value that cannot be written or read.
                    return if is_broken(error) { StoreFault::Unavailable } else { StoreFault::Permanent };
                };
                let class = code.code().get(..2).unwrap_or_default();
                match *code {
                    SqlState::QUERY_CANCELED => StoreFault::TimedOut,
                    SqlState::LOCK_NOT_AVAILABLE => StoreFault::Contended,
                    SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT => StoreFault::Unavailable,
                    _ if class == "40" => StoreFault::Contended,
                    // Connection exceptions, too many connections or out of memory or disk, shutdown.
                    _ if matches!(class, "08" | "53" | "57" | "58") => StoreFault::Unavailable,
                    // A server in recovery or a standby: this connection cannot write, another one may.
                    SqlState::READ_ONLY_SQL_TRANSACTION => StoreFault::Unavailable,
                    _ => StoreFault::Permanent,
                }
            }
            _ => StoreFault::Permanent,
        }
    }

    /// Whether asking again later may help a reader.
    pub fn is_unavailable(&self) -> bool {
        matches!(self.fault(), StoreFault::Unavailable | StoreFault::TimedOut | StoreFault::Contended)
    }

    /// Whether the schema is not the one that this program needs.
    pub fn is_about_the_schema(&self) -> bool {
        matches!(
            self,
            StoreError::TooNew { .. } | StoreError::TooOld { .. } | StoreError::OtherText | StoreError::Drifted { .. }
        )
    }

    /// The constraint (or fixed word of our functions) that was violated.
    pub fn constraint(&self) -> Option<&str> {
        match self {
            StoreError::Postgres(error) => error.as_db_error()?.constraint(),
            _ => None,
        }
    }

    /// Postgres' own message, if it is one.
    pub fn message(&self) -> String {
        match self {
            StoreError::Postgres(error) => describe(error),
            other => other.to_string(),
        }
    }
}

/// Longest wait for the first answers on a connection.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);

type Connection = tokio_postgres::Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>;

/// The database. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    pool: Pool,
    config: Config,
    place: String,
    tls: MakeRustlsConnect,
    settings: StoreSettings,
    greeting: Greeting,
    sessions: Sessions,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Store {
    /// A database by its address, as [`Address`] reads it. Nothing is connected yet.
    ///
    /// # Errors
    /// An address, or a certificate that it names, that cannot be read.
    pub fn open(address: &str, settings: StoreSettings) -> Result<Store, StoreError> {
        let read = Address::parse(address)?;
        let (place, tls) = (read.place(), tls::connector(&read.tls)?);
        let mut config = read.config;
        config
            .application_name(&settings.application_name)
            .connect_timeout(Duration::from_secs(10))
            // A half-open connection is found out within a quarter of a minute.
            .keepalives_idle(Duration::from_secs(15))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3)
            .tcp_user_timeout(Duration::from_secs(15));
        let greeting = Greeting::new(&settings);
        let pool = pool(&config, &tls, settings.pool_size, Some(greeting.clone()));
        Ok(Store { pool, config, place, tls, settings, greeting, sessions: Sessions::Own })
    }

    /// One of our connections for short statements.
    pub(crate) async fn reader(&self) -> Result<Object, StoreError> {
        self.check_sessions()?;
        connection(&self.pool, &self.place).await
    }

    /// A connection of its own, outside the pool, with its driver running in the background.
    pub(crate) async fn connect(&self) -> Result<Client, StoreError> {
        self.connect_as(&self.greeting).await
    }

    /// The same with other settings.
    async fn connect_as(&self, greeting: &Greeting) -> Result<Client, StoreError> {
        self.check_sessions()?;
        let client = self.connect_silently(&self.config).await?;
        self.greet(&client, greeting).await?;
        Ok(client)
    }

    /// Makes our settings on a new connection.
    async fn greet(&self, client: &Client, greeting: &Greeting) -> Result<(), StoreError> {
        self.answered(greeting.say(client)).await
    }

    /// The first answers on a connection. A server that is frozen takes connections and says nothing, and a pooler lets everybody
    /// in, also those for whom it has no session.
    async fn answered<T>(
        &self,
        answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, StoreError> {
        let unanswered = |_| StoreError::NoConnection {
            reason: format!(
                "{} has not answered within {ANSWERED_WITHIN:?}; a pooler in session mode before it needs a session for each of our \
                 connections",
                self.place
            ),
        };
        timeout(ANSWERED_WITHIN, answer).await.map_err(unanswered)?.map_err(StoreError::from)
    }

    /// A connection, and what has to be polled for it to work.
    async fn reached(&self, config: &Config) -> Result<(Client, Connection), StoreError> {
        self.answered(config.connect(self.tls.clone())).await.map_err(|error| match error {
            StoreError::Postgres(error) => StoreError::Connect { place: self.place.clone(), error },
            unanswered => unanswered,
        })
    }

    /// [`connect`](Store::connect) without any settings of ours.
    async fn connect_silently(&self, config: &Config) -> Result<Client, StoreError> {
        let (client, connection) = self.reached(config).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "A connection to Postgres ended");
            }
        });
        Ok(client)
    }
}

/// Connections that are opened when they are needed, up to `size`, and say the greeting first, where there is one.
fn pool(config: &Config, tls: &MakeRustlsConnect, size: usize, greeting: Option<Greeting>) -> Pool {
    let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    Pool::builder(Manager::from_config(config.clone(), tls.clone(), recycling))
        .max_size(size)
        .wait_timeout(Some(Duration::from_secs(10)))
        .create_timeout(Some(Duration::from_secs(10)))
        .recycle_timeout(Some(Duration::from_secs(10)))
        .runtime(Runtime::Tokio1)
        .post_create(Hook::async_fn(move |client, _| {
            let greeting = greeting.clone();
            Box::pin(async move {
                let Some(greeting) = greeting else { return Ok(()) };
                greeting.say(client).await.map_err(HookError::Backend)
            })
        }))
        .build()
        .expect("a pool with timeouts has a runtime")
}

/// One of the pool's connections, which lead to this place.
async fn connection(pool: &Pool, place: &str) -> Result<Object, StoreError> {
    pool.get().await.map_err(|error| match error {
        PoolError::Backend(error) => StoreError::Connect { place: place.to_owned(), error },
        other => StoreError::NoConnection { reason: format!("{place}: {other}") },
    })
}
