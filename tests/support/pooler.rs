//! A real PgBouncer before a test's database, and another program that shares its sessions.

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use super::{free_port, pg, skip, wait_until};

const PROGRAM: &str = "/usr/sbin/pgbouncer";

/// A running PgBouncer, ended with the test.
pub struct Pooler {
    dir: TempDir,
    server: Config,
    port: u16,
    child: Option<Child>,
}

impl Pooler {
    /// In this mode (`transaction`, `session`) before the server of this URL, with at most so many sessions of it for each of
    /// its databases. None means that it is not installed, which is said.
    pub async fn start(server: &str, mode: &str, sessions: usize) -> Option<Pooler> {
        if !std::path::Path::new(PROGRAM).exists() {
            skip("pgbouncer is not installed");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        std::fs::write(dir.path().join("users"), "\"postgres\" \"\"\n").unwrap();
        let server: Config = server.parse().unwrap();
        let password = String::from_utf8_lossy(server.get_password().unwrap_or_default()).into_owned();
        let port = free_port();
        let settings = format!(
            "[databases]\n* = host=127.0.0.1 port={} user=postgres password={password}\n[pgbouncer]\n\
             listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\nauth_file = {}\n\
             pool_mode = {mode}\ndefault_pool_size = {sessions}\n",
            server.get_ports()[0],
            dir.path().join("users").display()
        );
        std::fs::write(dir.path().join("settings.ini"), settings).unwrap();
        let mut pooler = Pooler { dir, server, port, child: None };
        pooler.start_again().await;
        Some(pooler)
    }

    /// Starts it after [`kill`](Pooler::kill), at the same port.
    pub async fn start_again(&mut self) {
        assert!(self.child.is_none(), "it still runs");
        // It refuses to run as root.
        let mut command = Command::new("setpriv");
        if rustix::process::geteuid().is_root() {
            command.args(["--reuid=65534", "--clear-groups"]);
        }
        let log = File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        command.arg(PROGRAM).arg(self.dir.path().join("settings.ini")).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().unwrap());
        let url = self.before(&format!("postgres://postgres@h/{}", self.server.get_dbname().unwrap()));
        wait_until("the pooler answers", async || tokio_postgres::connect(&url, NoTls).await.is_ok().then_some(()))
            .await;
    }

    /// Ends it at once: its connections to clients and to the server break.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// The URL of this database through it.
    pub fn before(&self, url: &str) -> String {
        pg::through(url, ([127, 0, 0, 1], self.port).into())
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            println!("--- log of pgbouncer ---\n{log}\n---");
        }
    }
}

/// Another program on the same pooler, with a connection for each session that there is.
pub struct Neighbour {
    pub clients: Vec<Client>,
    /// Every setting as a session has it that nobody has touched.
    untouched: BTreeMap<String, String>,
}

impl Neighbour {
    /// Beside other programs that use the pooler for the database of this URL, which is that of the server.
    pub async fn new(pooler: &Pooler, url: &str, sessions: usize) -> Neighbour {
        let mut clients = Vec::new();
        for _ in 0..sessions {
            clients.push(pg::connect(&pooler.before(url)).await);
        }
        let direct = pg::connect(url).await;
        direct.batch_execute("begin").await.unwrap();
        Neighbour { clients, untouched: settings(&direct).await }
    }

    /// Begins a transaction on each connection and so holds every session.
    pub async fn hold_all(&self) {
        let mut held = std::collections::BTreeSet::new();
        for client in &self.clients {
            client.batch_execute("begin").await.unwrap();
            held.extend(rows(client, "select pg_backend_pid()::text, ''").await.into_keys());
        }
        assert_eq!(held.len(), self.clients.len(), "a session for each");
    }

    /// Gives them back as they are.
    pub async fn release(&self) {
        for client in &self.clients {
            client.batch_execute("commit").await.unwrap();
        }
    }

    /// Has this run in every session.
    pub async fn everywhere(&self, sql: &str) {
        self.hold_all().await;
        for client in &self.clients {
            client.batch_execute(sql).await.unwrap();
        }
        self.release().await;
    }

    /// What others left in the sessions: settings, prepared statements, locks, channels, temporary tables.
    pub async fn leftovers(&self) -> Vec<String> {
        self.hold_all().await;
        let mut found = Vec::new();
        for client in &self.clients {
            let now = settings(client).await;
            let changed = self.untouched.iter().filter(|(name, value)| now.get(*name) != Some(*value));
            found.extend(changed.map(|(name, value)| format!("{name} is {:?}, not {value:?}", now.get(name))));
            found.extend(rows(client, OBJECTS).await.into_iter().map(|(what, name)| format!("{what} {name}")));
        }
        self.release().await;
        found
    }
}

const OBJECTS: &str = "select 'prepared statement ' || name, statement from pg_prepared_statements
    union all select 'advisory lock ' || objid, mode from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()
    union all select 'channel ' || channel, '' from pg_listening_channels() channel
    union all select 'temporary table ' || relname, '' from pg_class where relnamespace = pg_my_temp_schema()";

/// All settings but the name of the program, which is each program's own.
async fn settings(client: &Client) -> BTreeMap<String, String> {
    rows(client, "select name, setting from pg_settings where name <> 'application_name'").await
}

/// Two columns of text. Nothing is prepared for it.
async fn rows(client: &Client, sql: &str) -> BTreeMap<String, String> {
    let messages = client.simple_query(sql).await.unwrap();
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some((row.get(0)?.to_owned(), row.get(1)?.to_owned())),
        _ => None,
    });
    rows.collect()
}
