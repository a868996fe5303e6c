//! Whatever it does, it ends soon after it is told to: by SIGTERM, or by a terminal that is closed.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::own_pg::signal;
use crate::support::process::{ebbtide_command, processes_in};
use crate::support::{Ebbtide, Pg, free_addr, http, wait_until};

/// What a service manager and a container runtime grant.
const SOON: Duration = Duration::from_secs(10);

fn first_look(dir: &Path, program: &[&str]) -> Ebbtide {
    let (api, operator, data) = (free_addr().to_string(), free_addr().to_string(), dir.join("data"));
    let args = ["run", "--data-dir", data.to_str().unwrap(), "--listen", &api, "--operator-listen", &operator];
    let mut command = ebbtide_command(&args, &[]);
    if let Some((name, rest)) = program.split_first() {
        let mut outer = std::process::Command::new(name);
        outer.args(rest).arg(command.get_program()).args(command.get_args());
        // The variables that are not for it, too.
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => outer.env(name, value),
                None => outer.env_remove(name),
            };
        }
        outer.stdin(std::process::Stdio::null());
        command = outer;
    }
    Ebbtide::spawn_command({
        command.current_dir(dir);
        command
    })
}

#[tokio::test]
async fn a_terminal_that_is_closed_stops_it_and_its_private_postgres() {
    let dir = tempfile::tempdir().unwrap();
    let mut ebbtide = first_look(dir.path(), &[]);
    ebbtide.wait_for_line("The API answers").await;
    signal(ebbtide.pid(), Signal::HUP);
    let status = ebbtide.wait(SOON).await;
    assert_eq!(status.code(), Some(0), "{}", ebbtide.stderr().join("\n"));
    assert_eq!(processes_in(&dir.path().join("data/postgres")), [0_u32; 0]);
}

#[tokio::test]
async fn one_that_was_told_to_outlive_its_terminal_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut ebbtide = first_look(dir.path(), &["nohup"]);
    ebbtide.wait_for_line("The API answers").await;
    signal(ebbtide.pid(), Signal::HUP);
    // Signals are taken in order, so it has seen the first when it stops by the second.
    ebbtide.terminate();
    let status = ebbtide.wait(SOON).await;
    assert_eq!(status.code(), Some(0), "{}", ebbtide.stderr().join("\n"));
    let stopping = ebbtide.stderr().iter().filter(|line| line.contains("Stopping")).count();
    assert_eq!(stopping, 1, "{}", ebbtide.stderr().join("\n"));
}

/// Four gigabytes of empty lines in four megabytes of gzip.
fn bomb(path: &Path) {
    let mut member = GzEncoder::new(Vec::new(), Compression::fast());
    let newlines = vec![b'\n'; 1 << 20];
    for _ in 0..64 {
        member.write_all(&newlines).unwrap();
    }
    std::fs::write(path, member.finish().unwrap().repeat(64)).unwrap();
}

#[tokio::test]
async fn it_ends_soon_while_it_reads_gigabytes_of_empty_lines() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bomb.gz");
    bomb(&path);
    let pg = Pg::new().await;
    let file = path.to_str().unwrap();
    for kind in [&[][..], &["--kind", "other"]] {
        let args = ["run", "--once", "--source", "file", "--file", file, "--database-url", &pg.url];
        let mut ebbtide = Ebbtide::spawn(&[&args[..], kind].concat(), &[]);
        let fd = format!("/proc/{}/fd", ebbtide.pid());
        wait_until("it reads the file", async || {
            let mut open = std::fs::read_dir(&fd).ok()?.flatten();
            open.any(|entry| std::fs::read_link(entry.path()).is_ok_and(|to| to == path)).then_some(())
        })
        .await;
        ebbtide.terminate();
        let status = ebbtide.wait(SOON).await;
        assert_eq!(status.code(), Some(0), "{}", ebbtide.stderr().join("\n"));
    }
}

#[tokio::test]
async fn it_says_who_holds_the_migration_lock_and_ends_soon_meanwhile() {
    let pg = Pg::new().await;
    let holder = pg.client().await;
    holder.batch_execute("set application_name = 'somebody else'").await.unwrap();
    // "ebbtide" in ASCII, as a number of eight bytes.
    let lock = "select pg_advisory_lock(x'0065626274696465'::bigint), pg_backend_pid()";
    let pid: i32 = holder.query_one(lock, &[]).await.unwrap().get(1);
    let (api, operator) = (free_addr().to_string(), free_addr().to_string());
    let args =
        ["run", "--source", "devnet", "--database-url", &pg.url, "--listen", &api, "--operator-listen", &operator];
    let mut ebbtide = Ebbtide::spawn(&args, &[]);
    let line = ebbtide.wait_for_line("Waiting for the migration lock").await;
    assert!(line.contains(&format!("process {pid} ")) && line.contains("somebody else"), "{line}");
    // Probes are answered meanwhile, for longer than what was found once counts as known.
    let port: SocketAddr = operator.parse().unwrap();
    wait_until("it has waited for long", async || {
        let health = http::get(port, "/health").await;
        let health: Value = serde_json::from_str(health.split_once("\r\n\r\n").unwrap().1).unwrap();
        let database = &health["components"]["database"];
        let reason = database["reason"].as_str().unwrap();
        assert!(database["status"] == "waiting" && reason.contains(&format!("process {pid} ")), "{health}");
        assert!(http::get(port, "/metrics").await.lines().any(|line| line == "ebbtide_ready 0"));
        let (is_ready, words) = http::ready(port).await;
        assert!(!is_ready && words.contains("somebody else"), "{words}");
        (database["for_seconds"].as_u64() > Some(6)).then_some(())
    })
    .await;
    ebbtide.terminate();
    let status = ebbtide.wait(SOON).await;
    assert_eq!(status.code(), Some(0), "{}", ebbtide.stderr().join("\n"));
    // One that waits goes on by itself once the lock is free.
    let mut ebbtide = Ebbtide::spawn(&args, &[]);
    ebbtide.wait_for_line("Waiting for the migration lock").await;
    drop(holder);
    ebbtide.wait_for_line("The API answers").await;
    ebbtide.terminate();
    ebbtide.wait(SOON).await;
}
