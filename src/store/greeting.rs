//! What a connection says first, and how it stays alive while its user waits for something else.

use std::convert::Infallible;
use std::time::Duration;

use tokio_postgres::Client;

use super::StoreSettings;

/// The server ends a session that holds locks and says nothing for so long: a process that stands still (SIGSTOP, a frozen
/// machine) or that was cut off holds up nobody for longer. Three signs of life may be late.
pub(super) const SILENT_AT_MOST: Duration = Duration::from_secs(9);
/// Between two signs of life of a session that waits with locks in hand.
const SIGN_OF_LIFE_EVERY: Duration = Duration::from_secs(3);

/// Settings of a session, by their names: those that the program relies on, whatever the role or the database sets.
#[derive(Debug, Clone)]
pub(super) struct Greeting {
    settings: Vec<(&'static str, String)>,
}

impl Greeting {
    pub(super) fn new(settings: &StoreSettings) -> Greeting {
        let milliseconds = |time: Duration| time.as_millis().to_string();
        let silent = milliseconds(SILENT_AT_MOST);
        let fixed = |(name, value): (&'static str, &str)| (name, value.to_owned());
        let mut all = vec![
            ("statement_timeout", milliseconds(settings.statement_timeout)),
            ("lock_timeout", milliseconds(settings.lock_timeout)),
            ("idle_in_transaction_session_timeout", silent.clone()),
            ("tcp_user_timeout", silent),
        ];
        all.extend(PINNED.map(fixed));
        Greeting { settings: all }
    }

    /// With more settings; the last of one name counts.
    pub(super) fn and(mut self, more: &[(&'static str, &str)]) -> Greeting {
        self.settings.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
        self
    }

    /// The names, and what each is set to.
    pub(super) fn columns(&self) -> (Vec<String>, Vec<String>) {
        self.settings.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).unzip()
    }

    /// Says it. Not as start-up options: poolers refuse those.
    pub(super) async fn say(&self, client: &Client) -> Result<(), tokio_postgres::Error> {
        client.batch_execute(&self.words("set", &[])).await
    }

    /// The same for one transaction, to be said at its beginning, in a session that other programs use before and after it:
    /// neither their role nor a temporary table of theirs, named like ours, is to stand for what is read. The role is the one
    /// that the connection began with (`alter role … set role`).
    pub(super) fn of_one_transaction(&self) -> String {
        let own = "set local session authorization default; set local role to default; ";
        [own, &self.words("set local", &OF_CONNECTIONS), "; set local search_path = ebbtide, pg_temp; "].concat()
    }

    /// Names and values are ours; nothing from outside gets in here.
    fn words(&self, set: &str, without: &[&str]) -> String {
        let settings = self.settings.iter().filter(|(name, _)| !without.contains(name));
        settings.map(|(name, value)| format!("{set} {name} = '{value}'")).collect::<Vec<_>>().join("; ")
    }
}

/// A cut network is found out by the server within [`SILENT_AT_MOST`] (`tcp_…`; nothing on a socket of the machine itself).
/// The others keep the meaning of what we send and of what our functions read.
const PINNED: [(&str, &str); 19] = [
    ("search_path", "ebbtide"),
    ("idle_session_timeout", "0"),
    ("tcp_keepalives_idle", "5"),
    ("tcp_keepalives_interval", "2"),
    ("tcp_keepalives_count", "2"),
    ("client_encoding", "UTF8"),
    ("standard_conforming_strings", "on"),
    ("quote_all_identifiers", "off"),
    ("array_nulls", "on"),
    ("transform_null_equals", "off"),
    ("timezone", "UTC"),
    ("datestyle", "ISO, MDY"),
    ("intervalstyle", "postgres"),
    ("extra_float_digits", "1"),
    ("bytea_output", "hex"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "off"),
    ("default_transaction_deferrable", "off"),
    ("jit", "off"),
];

/// Of those, what is about the connection to the server: not ours where a pooler holds it.
const OF_CONNECTIONS: [&str; 5] = [
    "tcp_user_timeout",
    "tcp_keepalives_idle",
    "tcp_keepalives_interval",
    "tcp_keepalives_count",
    "idle_session_timeout",
];

/// Awaits something that is not said on this connection, with signs of life in between, so that the server keeps what the
/// connection holds. One that the server has ended is found out by the next statement on it.
pub(super) async fn alive_during<T>(client: &Client, other: impl Future<Output = T>) -> T {
    tokio::select! {
        biased;
        result = other => result,
        without_end = signs_of_life(client) => match without_end {},
    }
}

async fn signs_of_life(client: &Client) -> Infallible {
    loop {
        tokio::time::sleep(SIGN_OF_LIFE_EVERY).await;
        if client.check_connection().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
