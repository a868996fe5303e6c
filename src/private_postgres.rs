//! A private Postgres from installed programs, for `ebbtide run` and for tests.
//!
//! ```text
//! .ebbtide/             who may reach it: as any folder made by this user
//!   lock                held while an ebbtide owns the server; holds its process id
//!   postgres/           the data folder, 0700; also holds the socket
//!   postgres.new.…/     while it is being made: what is called postgres is whole
//!   postgres.log        the server's log since the last start; postgres.log.1 the one before
//! ```
//!
//! The server listens on no network. Whoever may enter the socket's folder (this user, and root) is trusted.

mod binaries;
mod error;
mod folder;
mod servers;

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use error::file_error;
use folder::{Way, tail_of};
use rustix::process::Signal;
use servers::{FAST_STOP, IMMEDIATE_STOP, LOOK_INTERVAL, PidFile};
use tokio_postgres::NoTls;
use tracing::{info, warn};

pub use binaries::{Found, Installation, OLDEST_MAJOR, Search, ServerUser};
pub use error::PrivateError;

/// Name of the database and of its owner.
pub const DATABASE: &str = "ebbtide";

/// How a private server is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to look for the programs. Defaults to [`Search::Installed`].
    pub search: Search,
    /// Server settings that win over ours, as `name=value`. Defaults to none.
    pub settings: Vec<String>,
    /// How long a start may take. Defaults to 5 minutes: after a crash the server repeats up to `max_wal_size` of
    /// log first.
    pub start_within: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options { search: Search::Installed, settings: Vec::new(), start_within: Duration::from_secs(300) }
    }
}

/// How to reach a private server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Connection string (`key=value` form) that drivers and psql read.
    pub url: String,
    /// The folder of the server's programs, psql among them.
    pub bin_dir: PathBuf,
    /// The server's process.
    pub pid: u32,
}

/// The server that runs on `data_dir`, if one does: for `ebbtide psql` beside a running `ebbtide run`.
pub fn running(data_dir: &Path, search: &Search) -> Option<Address> {
    let folder = data_dir.join("postgres").canonicalize().ok()?;
    let file = PidFile::read(&folder).filter(|file| file.ready)?;
    if !servers::running_in(&folder).contains(&file.pid) {
        return None;
    }
    let version = std::fs::read_to_string(folder.join("PG_VERSION")).ok()?;
    let installation =
        search.find().installations.into_iter().find(|found| found.major.to_string() == version.trim())?;
    Some(Address { url: url(&file.socket_dir, DATABASE), bin_dir: installation.bin_dir, pid: file.pid })
}

fn url(socket_dir: &Path, database: &str) -> String {
    let host = socket_dir.display().to_string().replace('\\', "\\\\").replace('\'', "\\'");
    format!("host='{host}' port=5432 user={DATABASE} dbname={database}")
}

/// A server of our own. Stop it with [`stop`](PrivatePostgres::stop); dropping it stops it too, but blocks.
#[derive(Debug)]
pub struct PrivatePostgres {
    child: Option<Child>,
    installation: Installation,
    user: Option<ServerUser>,
    folder: PathBuf,
    /// Where the socket is; the data folder itself unless its path is too long.
    socket_dir: PathBuf,
    log: PathBuf,
    /// Held as long as this lives; the kernel lets go of it when the process dies, however it dies.
    _lock: File,
}

impl PrivatePostgres {
    /// Starts the server on `data_dir`, making that folder and the database where they are missing.
    ///
    /// A server that a killed ebbtide left behind is stopped first. The durable settings of Postgres are kept.
    ///
    /// # Errors
    /// [`PrivateError`]; nothing is left running then.
    ///
    /// # Cancel safety
    /// Dropped half way, it stops the server.
    pub async fn start(data_dir: &Path, options: Options) -> Result<PrivatePostgres, PrivateError> {
        std::fs::create_dir_all(data_dir).map_err(file_error("make", data_dir))?;
        let data_dir = data_dir.canonicalize().map_err(file_error("find", data_dir))?;
        let lock = folder::take_lock(&data_dir)?;
        let data = data_dir.join("postgres");
        let made = data.try_exists().map_err(file_error("look at", &data))?;
        let found = options.search.find();
        let (user, installation) = if made {
            (folder::owner_of(&data)?, folder::matching(&data, found)?)
        } else {
            let newest = found.installations.into_iter().next();
            (folder::server_user()?, newest.ok_or(PrivateError::NotInstalled { looked_at: found.looked_at })?)
        };
        if !made {
            folder::make_folder(&data_dir, &data, &installation, user)?;
        }
        // It may be a link to another disk.
        let data = data.canonicalize().map_err(file_error("find", &data))?;
        let left = servers::running_in(&data);
        if !left.is_empty() {
            warn!(pids = ?left, "Ending the private PostgreSQL that a killed ebbtide left behind");
        }
        let old_socket_dir = PidFile::read(&data).map(|file| file.socket_dir);
        servers::end_all(&data).await.map_err(|pids| PrivateError::Leftover { folder: data.clone(), pids })?;
        servers::clear_locks(&data).map_err(file_error("clear", &data))?;
        old_socket_dir.iter().for_each(|dir| folder::remove_socket_dir(dir));
        let socket_dir = folder::socket_dir(&data, user)?;
        let log = data_dir.join("postgres.log");
        let mut server =
            PrivatePostgres { child: None, installation, user, folder: data, socket_dir, log, _lock: lock };
        let begun = Instant::now();
        server.launch(&options).await?;
        server.prepare_database().await?;
        let (elapsed_ms, version) = (begun.elapsed().as_millis(), &server.installation);
        info!(%version, elapsed_ms, "Started a private PostgreSQL {version} on {}", data_dir.display());
        Ok(server)
    }

    /// Connection string of the database `ebbtide`, owned by the user of that name.
    pub fn url(&self) -> String {
        url(&self.socket_dir, DATABASE)
    }

    /// The folder of the server's programs, psql among them.
    pub fn bin_dir(&self) -> &Path {
        &self.installation.bin_dir
    }

    /// The server's major version.
    pub fn major(&self) -> u32 {
        self.installation.major
    }

    /// The server's process.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Where the server logs.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Returns once the server has ended without being asked to.
    ///
    /// # Cancel safety
    /// It only looks.
    pub async fn ended(&mut self) -> io::Result<ExitStatus> {
        loop {
            match &mut self.child {
                None => std::future::pending().await,
                Some(child) => {
                    if let Some(status) = child.try_wait()? {
                        return Ok(status);
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Stops the server: sessions are ended, everything is written, within about 6 seconds; a server that takes
    /// longer is ended as by a crash, and repeats its log at the next start.
    ///
    /// # Errors
    /// [`PrivateError::Leftover`] if a process of it survives even that.
    pub async fn stop(mut self) -> Result<(), PrivateError> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        for (signal, patience) in STOP_STEPS {
            let begun = Instant::now();
            let mut told = false;
            while begun.elapsed() < patience {
                // Looked at first: the number of a process that was waited for may be another's by now.
                if matches!(child.try_wait(), Ok(Some(_))) {
                    folder::remove_socket_dir(&self.socket_dir);
                    return Ok(());
                }
                if !std::mem::replace(&mut told, true) {
                    servers::signal(child.id(), signal);
                }
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        }
        Err(PrivateError::Leftover { folder: self.folder.clone(), pids: vec![child.id()] })
    }

    /// Starts the program and waits until it takes connections.
    async fn launch(&mut self, options: &Options) -> Result<(), PrivateError> {
        let begun = Instant::now();
        let mut log = folder::fresh_log(&self.log)?;
        loop {
            let begins_at = log.seek(SeekFrom::End(0)).map_err(file_error("write", &self.log))?;
            let status = self.launch_once(options, &log, begun + options.start_within).await?;
            let Some(how) = status else { return Ok(()) };
            let tail = tail_of(&self.log, begins_at);
            // Processes of a killed server finish their statement before they notice.
            let waits = tail.contains("pre-existing shared memory block") && begun.elapsed() < FAST_STOP;
            if !waits {
                return Err(PrivateError::NotStarted { how, log: self.log.clone(), tail });
            }
            tokio::time::sleep(LOOK_INTERVAL * 10).await;
        }
    }

    /// None: it is ready. Otherwise how it ended, or that it was late.
    async fn launch_once(
        &mut self,
        options: &Options,
        log: &File,
        deadline: Instant,
    ) -> Result<Option<String>, PrivateError> {
        let way = Way::to(&self.folder, self.user)?;
        let clone = || log.try_clone().map_err(file_error("write", &self.log));
        let mut command = self.server_command(&way, options);
        // A process group of its own: Ctrl-C at the terminal is for us, and we stop the server last.
        command.process_group(0).stdin(Stdio::null()).stdout(clone()?).stderr(clone()?);
        let program = self.installation.bin_dir.join("postgres");
        let mut child = command.spawn().map_err(file_error("run", &program))?;
        let pid = child.id();
        loop {
            if let Some(status) = child.try_wait().map_err(file_error("wait for", &program))? {
                return Ok(Some(status.to_string()));
            }
            // Held by us from here, so that it is stopped if this future is dropped.
            self.child = Some(child);
            if PidFile::read(&self.folder).is_some_and(|file| file.pid == pid && file.ready) {
                return Ok(None);
            }
            if Instant::now() > deadline {
                return Ok(Some(format!("not ready after {} seconds", options.start_within.as_secs())));
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
            let Some(held) = self.child.take() else { return Ok(Some("stopped".to_owned())) };
            child = held;
        }
    }

    fn server_command(&self, way: &Way, options: &Options) -> Command {
        let mut command = self.installation.command("postgres", self.user);
        command.arg("-D").arg(&way.path);
        // Relative to the data folder, and so free of the limit on our side of the path.
        let beside_data = self.socket_dir == self.folder;
        let sockets = if beside_data { Path::new(".") } else { &self.socket_dir };
        let fixed = [
            "listen_addresses=",
            "port=5432",
            "unix_socket_permissions=0700",
            "logging_collector=off",
            "log_destination=stderr",
            // Reasons: FIELD_NOTES 3f and 1b-7. Everything that durability rests on keeps its default.
            "shared_buffers=256MB",
            "max_wal_size=4GB",
            "checkpoint_timeout=15min",
            "random_page_cost=1.1",
            "jit=off",
        ];
        for setting in fixed {
            command.args(["-c", setting]);
        }
        command.arg("-c").arg(format!("unix_socket_directories={}", sockets.display()));
        command.arg("-c").arg(format!("wal_compression={}", self.wal_compression(way)));
        for setting in &options.settings {
            command.args(["-c", setting]);
        }
        command
    }

    /// `lz4` where this server was built with it (from version 15), else its own.
    fn wal_compression(&self, way: &Way) -> &'static str {
        let mut ask = self.installation.command("postgres", self.user);
        ask.arg("-D").arg(&way.path).args(["-c", "wal_compression=lz4", "-C", "wal_compression"]);
        let knows = ask.stdin(Stdio::null()).output().is_ok_and(|output| output.status.success());
        if knows { "lz4" } else { "on" }
    }

    /// Makes the database and puts the schema on its search path; both once.
    async fn prepare_database(&self) -> Result<(), PrivateError> {
        let (client, connection) = tokio_postgres::connect(&url(&self.socket_dir, "postgres"), NoTls).await?;
        let connection = tokio::spawn(connection);
        let found = "select exists (select from pg_db_role_setting s where s.setdatabase = d.oid) \
                     from pg_database d where d.datname = 'ebbtide'";
        let has_settings: Option<bool> = client.query_opt(found, &[]).await?.map(|row| row.get(0));
        if has_settings.is_none() {
            client.batch_execute("create database ebbtide").await?;
        }
        if has_settings != Some(true) {
            client.batch_execute("alter database ebbtide set search_path = ebbtide, public").await?;
        }
        drop(client);
        // Until it has said goodbye, a stop would find an open session.
        let _ = connection.await;
        Ok(())
    }
}

/// Fast shutdown; immediate shutdown; the end.
const STOP_STEPS: [(Signal, Duration); 3] =
    [(Signal::INT, FAST_STOP), (Signal::QUIT, IMMEDIATE_STOP), (Signal::KILL, IMMEDIATE_STOP)];

impl Drop for PrivatePostgres {
    /// The last resort, for panics and dropped futures: blocks until the server has ended.
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        for (signal, patience) in STOP_STEPS {
            let begun = Instant::now();
            let mut told = false;
            while begun.elapsed() < patience {
                if matches!(child.try_wait(), Ok(Some(_))) {
                    folder::remove_socket_dir(&self.socket_dir);
                    return;
                }
                if !std::mem::replace(&mut told, true) {
                    servers::signal(child.id(), signal);
                }
                std::thread::sleep(LOOK_INTERVAL);
            }
        }
    }
}
