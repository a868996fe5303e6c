//! Whose sessions connections get. Behind a pooler by transaction a session is lent for one transaction, and other programs use
//! it before and after: what a transaction needs is said in it, ends with it, and leaves no name behind.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::{Client, Config, IsolationLevel, SimpleQueryMessage, Transaction, TransactionBuilder};

use super::greeting::Greeting;
use super::{Store, StoreError};

/// Longest wait for a session that a pooler lends. A reader that is told to come again has the answer sooner than one that waits.
const LENT_WITHIN: Duration = Duration::from_secs(2);
/// How often two connections are asked for their sessions. A busy pooler that has only two gives the ones expected by chance once
/// in four times; all five times once in a thousand. With four sessions it is once in 200 million.
const ROUNDS: usize = 5;
/// Longest wait for all of those answers.
const ASKED_WITHIN: Duration = Duration::from_secs(10);

/// Whose sessions connections get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sessions {
    /// Each connection has its own: it is greeted once, and keeps its prepared statements.
    Own,
    /// Each transaction is lent one.
    Lent,
}

/// What each transaction in a session that is lent begins with.
#[derive(Debug, Clone)]
pub(super) struct Loan(Arc<str>);

impl Loan {
    pub(super) fn greeting(&self) -> &str {
        &self.0
    }
}

/// Waits for a transaction in a session that is lent to begin.
///
/// # Errors
/// [`StoreError::Busy`] when none is lent in time.
pub(super) async fn lent<T>(begun: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, StoreError> {
    let busy =
        |_| StoreError::Busy { what: "the database, or a pooler before it, has not begun a transaction within 2 s" };
    Ok(timeout(LENT_WITHIN, begun).await.map_err(busy)??)
}

/// A connection for short transactions, which are right in a session of its own and in one that is lent.
#[derive(Debug)]
pub(super) struct Guest {
    client: Client,
    loan: Option<Loan>,
}

impl Guest {
    /// Begins a transaction that only reads, as a standby allows. It is rolled back when dropped.
    ///
    /// # Errors
    /// Whatever Postgres says, and as [`lent`].
    pub(super) async fn begin(&mut self) -> Result<Transaction<'_>, StoreError> {
        begun(self.client.build_transaction().read_only(true), self.loan.as_ref()).await
    }

    /// Begins a transaction that may write, whatever is the default of the role or the database.
    ///
    /// # Errors
    /// As [`begin`](Guest::begin).
    pub(super) async fn begin_writing(&mut self) -> Result<Transaction<'_>, StoreError> {
        begun(self.client.build_transaction().read_only(false), self.loan.as_ref()).await
    }
}

async fn begun<'a>(begin: TransactionBuilder<'a>, loan: Option<&Loan>) -> Result<Transaction<'a>, StoreError> {
    let begin = begin.isolation_level(IsolationLevel::ReadCommitted);
    let Some(loan) = loan else { return Ok(begin.start().await?) };
    let begun = async {
        let tx = begin.start().await?;
        tx.batch_execute(loan.greeting()).await?;
        Ok(tx)
    };
    lent(begun).await
}

impl Store {
    /// The same database, once it is known whether its sessions are lent. Until then they are taken to be the connections' own.
    ///
    /// # Errors
    /// When the database cannot be reached, or does not answer in time.
    pub async fn look_for_pooler(self) -> Result<Store, StoreError> {
        let (one, other) = (self.connect_silently(&self.config).await?, self.connect_silently(&self.config).await?);
        let busy =
            |_| StoreError::Busy { what: "the database, or a pooler before it, does not say which sessions it gives" };
        let keep = timeout(ASKED_WITHIN, keep_their_sessions(&one, &other)).await.map_err(busy)??;
        Ok(Store { sessions: if keep { Sessions::Own } else { Sessions::Lent }, ..self })
    }

    /// The same database with its sessions taken to be lent, for a command that is as right in its own: nothing is asked first.
    #[must_use]
    pub fn as_guest(self) -> Store {
        Store { sessions: Sessions::Lent, ..self }
    }

    /// Whether each connection has a session of its own, as locks, LISTEN and prepared statements need it; see
    /// [`look_for_pooler`](Store::look_for_pooler).
    ///
    /// # Errors
    /// [`StoreError::Pooled`] where a pooler gives each transaction another one.
    pub fn check_sessions(&self) -> Result<(), StoreError> {
        match self.sessions {
            Sessions::Own => Ok(()),
            Sessions::Lent => Err(StoreError::Pooled),
        }
    }

    /// What transactions begin with that are to have these settings. None means their connections were greeted.
    pub(super) fn loan(&self, greeting: &Greeting) -> Option<Loan> {
        match self.sessions {
            Sessions::Own => None,
            Sessions::Lent => Some(Loan(greeting.of_one_transaction().into())),
        }
    }

    /// A connection of its own for short transactions with these settings.
    pub(super) async fn guest(&self, config: &Config, greeting: &Greeting) -> Result<Guest, StoreError> {
        let client = self.connect_silently(config).await?;
        let loan = self.loan(greeting);
        if loan.is_none() {
            self.greet(&client, greeting).await?;
        }
        Ok(Guest { client, loan })
    }
}

/// Whether two connections keep the sessions that they have. Nothing is set or prepared in them.
async fn keep_their_sessions(one: &Client, other: &Client) -> Result<bool, StoreError> {
    let (first, second) = (backend(one, "").await?, backend(other, "").await?);
    for _ in 0..ROUNDS {
        if first == second || backend(one, "").await? != first {
            return Ok(false);
        }
        // Held in a transaction, what the first one was just given is given to nobody else.
        let held = backend(other, "begin; ").await?;
        let kept = held == second && backend(one, "").await? == first;
        other.batch_execute("rollback").await?;
        if !kept {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The server process that answers, by the simple protocol: nothing is prepared, which a pooler might lose.
async fn backend(client: &Client, before: &str) -> Result<Option<String>, StoreError> {
    let messages = client.simple_query(&[before, "select pg_catalog.pg_backend_pid()"].concat()).await?;
    Ok(messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    }))
}
