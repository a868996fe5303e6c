//! A Postgres of the test's own, to be stopped, killed and frozen at will.

use std::fs::{File, Permissions};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use ebbtide::private_postgres::{Installation, Search, ServerUser};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio_postgres::Client;

use super::{free_port, pg, wait_until};

/// A whole server (fsync off: kills of processes lose nothing, only those of machines would), removed with the test.
pub struct OwnPg {
    installation: Installation,
    user: Option<ServerUser>,
    dir: TempDir,
    settings: Vec<String>,
    port: u16,
    child: Option<Child>,
}

impl OwnPg {
    /// A running server with one empty database `ebbtide`.
    pub async fn start() -> OwnPg {
        OwnPg::start_with(&[]).await
    }

    /// [`start`](OwnPg::start) with settings such as `max_connections=10`.
    pub async fn start_with(settings: &[&str]) -> OwnPg {
        let initdb = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"];
        let server =
            OwnPg::made_by("initdb", &initdb, settings.iter().map(|setting| (*setting).to_owned()).collect()).await;
        let admin = pg::connect(&server.url_of("postgres")).await;
        admin.batch_execute("create database ebbtide").await.unwrap();
        server
    }

    /// A hot standby of this server, which follows it by streaming.
    pub async fn standby(&self) -> OwnPg {
        let of = format!("host=127.0.0.1 port={} user=postgres", self.port);
        let copy = ["--write-recovery-conf", "--checkpoint=fast", "--no-sync", "--dbname", &of];
        OwnPg::made_by("pg_basebackup", &copy, self.settings.clone()).await
    }

    /// A running server whose data this program has put into the folder that it is given.
    async fn made_by(program: &str, args: &[&str], settings: Vec<String>) -> OwnPg {
        let found = Search::Installed.find();
        let installation = found.installations.first().unwrap_or_else(|| panic!("no Postgres in {found:?}")).clone();
        let user = rustix::process::geteuid().is_root().then(|| ServerUser::find().expect("a user postgres"));
        let dir = tempfile::Builder::new().prefix("ebbtide-own-pg.").tempdir().unwrap();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o711)).unwrap();
        let data = dir.path().join("data");
        std::fs::create_dir(&data).unwrap();
        // A server refuses a folder that others may read.
        std::fs::set_permissions(&data, Permissions::from_mode(0o700)).unwrap();
        if let Some(user) = user {
            std::os::unix::fs::chown(&data, Some(user.uid), Some(user.gid)).unwrap();
        }
        let made = installation.command(program, user).arg("-D").arg(&data).args(args).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut server = OwnPg { installation, user, dir, settings, port: 0, child: None };
        for attempt in 1.. {
            // A free port cannot be reserved; a taken one means another try.
            server.port = free_port();
            if server.launch().await {
                return server;
            }
            assert!(attempt < 5, "the server does not start:\n{}", server.log());
        }
        unreachable!("it starts, or the test has failed")
    }

    /// Starts it after [`stop`](OwnPg::stop) or [`kill`](OwnPg::kill), at the same address.
    pub async fn start_again(&mut self) {
        assert!(self.child.is_none(), "it still runs");
        assert!(self.launch().await, "the server does not start again:\n{}", self.log());
    }

    /// Starts the program and waits until it answers; false where it ended instead.
    async fn launch(&mut self) -> bool {
        let log = File::options().create(true).append(true).open(self.log_path()).unwrap();
        let mut command = self.installation.command("postgres", self.user);
        command.arg("-D").arg(self.dir.path().join("data"));
        command.arg("-p").arg(self.port.to_string());
        let sockets = format!("unix_socket_directories={}", self.dir.path().join("data").display());
        let fixed = ["listen_addresses=127.0.0.1", "fsync=off", "shared_buffers=32MB", "jit=off", &sockets];
        for setting in fixed.into_iter().chain(self.settings.iter().map(String::as_str)) {
            command.arg("-c").arg(setting);
        }
        // In the process group of the test, so that whoever ends the test by force ends the server too.
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut child = command.spawn().unwrap();
        let url = self.url_of("postgres");
        let up = wait_until("the test's own server answers", async || {
            if child.try_wait().unwrap().is_some() {
                return Some(false);
            }
            tokio_postgres::connect(&url, tokio_postgres::NoTls).await.is_ok().then_some(true)
        })
        .await;
        self.child = up.then_some(child);
        up
    }

    /// URL of the database `ebbtide`, over TCP.
    pub fn url(&self) -> String {
        self.url_of("ebbtide")
    }

    fn url_of(&self, database: &str) -> String {
        format!("postgres://postgres@{}/{database}", self.addr())
    }

    /// Where it listens, for a [`FaultProxy`](super::FaultProxy).
    pub fn addr(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// A connection to the database `ebbtide`, with that schema on the search path.
    pub async fn client(&self) -> Client {
        let client = pg::connect(&self.url()).await;
        client.batch_execute("set search_path = ebbtide, public").await.unwrap();
        client
    }

    /// Stops it in order (fast: sessions are ended).
    pub async fn stop(&mut self) {
        let mut child = self.child.take().expect("it runs");
        signal(child.id(), Signal::INT);
        wait_until("the test's own server stops", async || child.try_wait().unwrap()).await;
    }

    /// As a power cut, but for what the kernel holds: every process of the server is gone at once.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        let mut processes = children(child.id());
        // Nobody may be born meanwhile.
        halt(child.id());
        processes.extend(children(child.id()));
        for pid in processes {
            signal(pid, Signal::KILL);
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Halts every process of the server: connections stay open and nothing answers.
    pub fn freeze(&self) {
        let postmaster = self.child.as_ref().expect("it runs").id();
        halt(postmaster);
        children(postmaster).into_iter().for_each(halt);
    }

    /// Lets a frozen server go on.
    pub fn thaw(&self) {
        let postmaster = self.child.as_ref().expect("it runs").id();
        children(postmaster).into_iter().for_each(|pid| signal(pid, Signal::CONT));
        signal(postmaster, Signal::CONT);
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }
}

impl Drop for OwnPg {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
    }
}

/// Sends a signal; a process that is gone already needs none.
pub fn signal(pid: u32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal);
}

/// Stops a process in mid-step (SIGSTOP) and waits until it stands, which is later than the signal: a thread that is on
/// another processor goes on until it is interrupted. One that is gone already stands.
pub fn halt(pid: u32) {
    signal(pid, Signal::STOP);
    let stands = |thread: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, fields)| fields.starts_with(['T', 'Z', 'X']))
    };
    let begun = std::time::Instant::now();
    // Where there is no /proc (macOS), the signal is all there is.
    while std::fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|threads| !threads.flatten().all(stands)) {
        assert!(begun.elapsed() < super::PATIENCE, "process {pid} goes on after SIGSTOP");
        std::thread::yield_now();
    }
}

/// The processes whose parent is `pid`.
pub fn children(pid: u32) -> Vec<u32> {
    let parent_of = |child: u32| -> Option<u32> {
        let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).ok()?;
        // The second field is the program's name in brackets and may hold anything.
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    if let Ok(entries) = std::fs::read_dir("/proc") {
        let all = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        return all.filter(|child| parent_of(*child) == Some(pid)).collect();
    }
    // Where there is no /proc (macOS).
    let ps = std::process::Command::new("ps").args(["-A", "-o", "pid=,ppid="]).output().unwrap();
    let lines = String::from_utf8_lossy(&ps.stdout).into_owned();
    let pairs = lines.lines().filter_map(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    });
    pairs.filter(|(_, parent)| *parent == pid).map(|(child, _)| child).collect()
}
