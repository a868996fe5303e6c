//! The private Postgres of `ebbtide run`: starts anywhere, comes up after anything, leaves nothing behind.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ebbtide::private_postgres::{Options, PrivateError, PrivatePostgres, Search, ServerUser, running};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::own_pg::{halt, signal};
use crate::support::{self, Ebbtide, pg, wait_until};

/// fsync off: these tests kill processes, not machines.
fn options() -> Options {
    Options { settings: vec!["fsync=off".to_owned(), "shared_buffers=16MB".to_owned()], ..Options::default() }
}

async fn start(dir: &Path) -> PrivatePostgres {
    PrivatePostgres::start(dir, options()).await.unwrap_or_else(|e| panic!("{e}: {e:?}"))
}

async fn failure(dir: &Path, options: Options) -> String {
    PrivatePostgres::start(dir, options).await.expect_err("does not start").to_string()
}

fn temporary() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    dir
}

/// Processes that work in the data folder, zombies aside.
fn servers_in(dir: &Path) -> Vec<u32> {
    support::process::processes_in(&dir.join("postgres"))
}

async fn nobody_in(dir: &Path) {
    wait_until("no server process is left", async || servers_in(dir).is_empty().then_some(())).await;
}

async fn put(server: &PrivatePostgres, n: i32) {
    let client = pg::connect(&server.url()).await;
    let sql = format!("create table if not exists kept (n int); insert into kept values ({n})");
    client.batch_execute(&sql).await.unwrap();
}

async fn kept(server: &PrivatePostgres) -> Vec<i32> {
    let client = pg::connect(&server.url()).await;
    client.query("select n from public.kept order by n", &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn fresh_folder_gets_a_server_and_stopping_leaves_nothing_running() {
    let dir = temporary();
    let home = dir.path().join("a/b/.ebbtide");
    let server = start(&home).await;
    let client = pg::connect(&server.url()).await;
    let row = client
        .query_one(
            "select current_user::text, current_database()::text, current_setting('listen_addresses'), \
             current_setting('search_path'), current_setting('data_checksums'), current_setting('jit'), \
             current_setting('server_encoding')",
            &[],
        )
        .await
        .unwrap();
    let said: Vec<String> = (0..row.len()).map(|n| row.get(n)).collect();
    assert_eq!(said, ["ebbtide", "ebbtide", "", "ebbtide, public", "on", "off", "UTF8"]);
    let mode = std::fs::metadata(home.join("postgres")).unwrap().mode() & 0o777;
    assert_eq!(mode, 0o700);
    assert!(server.bin_dir().join("psql").is_file());
    let beside = running(&home, &Search::Installed).unwrap();
    assert_eq!(Some(beside.pid), server.pid());
    pg::connect(&beside.url).await.batch_execute("select 1").await.unwrap();
    // A session is open all the while: a fast stop does not wait for it.
    server.stop().await.unwrap();
    assert_eq!(servers_in(&home), [0_u32; 0]);
    assert_eq!(running(&home, &Search::Installed), None);
    assert!(!home.join("postgres/postmaster.pid").exists(), "stopped in order");
}

#[tokio::test]
async fn psql_reads_the_connection_string() {
    let dir = temporary();
    let server = start(&dir.path().join("it's a folder")).await;
    let psql = Command::new(server.bin_dir().join("psql"))
        .args(["-X", "-A", "-t", "-c", "select current_database()", &server.url()])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&psql.stdout).trim(), "ebbtide", "{}", String::from_utf8_lossy(&psql.stderr));
}

#[tokio::test]
async fn durable_unless_told_otherwise() {
    let dir = temporary();
    let server = PrivatePostgres::start(dir.path(), Options::default()).await.unwrap();
    let client = pg::connect(&server.url()).await;
    let sql = "select current_setting('fsync') || current_setting('full_page_writes') \
               || current_setting('synchronous_commit') || ' ' || current_setting('wal_compression') || ' ' \
               || current_setting('shared_buffers') || ' ' || current_setting('max_wal_size')";
    let settings: String = client.query_one(sql, &[]).await.unwrap().get(0);
    assert!(settings == "ononon lz4 256MB 4GB" || settings == "ononon on 256MB 4GB", "{settings}");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn restart_keeps_the_data_and_the_log_before() {
    let dir = temporary();
    for n in 1..=3 {
        let server = start(dir.path()).await;
        put(&server, n).await;
        assert_eq!(kept(&server).await, (1..=n).collect::<Vec<_>>());
        server.stop().await.unwrap();
    }
    let log = std::fs::read_to_string(dir.path().join("postgres.log")).unwrap();
    assert_eq!(log.matches("ready to accept connections").count(), 1, "one start a log:\n{log}");
    assert!(dir.path().join("postgres.log.1").exists());
}

#[tokio::test]
async fn dropping_it_stops_the_server() {
    let dir = temporary();
    let server = start(dir.path()).await;
    drop(server);
    assert_eq!(servers_in(dir.path()), [0_u32; 0]);
}

#[tokio::test]
async fn giving_up_in_the_middle_of_a_start_leaves_nothing_running() {
    let dir = temporary();
    start(dir.path()).await.stop().await.unwrap();
    let mut given_up = 0;
    for millis in [1, 10, 20, 30, 40, 60, 80] {
        let late = tokio::time::timeout(Duration::from_millis(millis), start(dir.path())).await;
        given_up += u32::from(late.is_err());
        drop(late);
        assert_eq!(servers_in(dir.path()), [0_u32; 0], "after {millis} ms");
    }
    println!("{given_up} starts given up");
    assert!(given_up > 0);
}

#[tokio::test]
async fn comes_up_after_its_postmaster_was_killed() {
    let dir = temporary();
    let mut server = start(dir.path()).await;
    put(&server, 1).await;
    // A statement in hand: its process outlives the postmaster for a while.
    let client = pg::connect(&server.url()).await;
    let _busy = tokio::spawn(async move { client.batch_execute("select pg_sleep(20)").await });
    signal(server.pid().unwrap(), Signal::KILL);
    let status = tokio::time::timeout(support::PATIENCE, server.ended()).await.unwrap().unwrap();
    assert!(!status.success());
    server.stop().await.unwrap();
    let server = start(dir.path()).await;
    assert_eq!(kept(&server).await, [1]);
    server.stop().await.unwrap();
    nobody_in(dir.path()).await;
}

/// Not a test by itself: the process that the next ones kill.
#[tokio::test]
async fn process_to_be_killed() {
    let Some(dir) = std::env::var_os("EBBTIDE_TEST_PRIVATE_DIR").map(PathBuf::from) else { return };
    let server = start(&dir).await;
    put(&server, 1).await;
    eprintln!("serving {}", server.pid().unwrap());
    std::future::pending::<()>().await;
}

/// Starts [`process_to_be_killed`] and returns it with the process of its server.
async fn other_process(dir: &Path) -> (Ebbtide, u32) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "private_postgres::process_to_be_killed", "--nocapture"])
        .env("EBBTIDE_TEST_PRIVATE_DIR", dir);
    command.stdin(Stdio::null());
    let mut other = Ebbtide::spawn_command(command);
    let line = other.wait_for_line("serving ").await;
    let pid = line.rsplit(' ').next().unwrap().parse().unwrap();
    (other, pid)
}

#[tokio::test]
async fn ends_the_server_that_a_killed_process_left_behind() {
    for frozen in [false, true] {
        let dir = temporary();
        let (mut other, orphan) = other_process(dir.path()).await;
        other.kill();
        assert!(servers_in(dir.path()).contains(&orphan), "the server outlives a kill");
        assert_eq!(running(dir.path(), &Search::Installed).map(|found| found.pid), Some(orphan));
        if frozen {
            halt(orphan);
        }
        let server = start(dir.path()).await;
        let now = servers_in(dir.path());
        assert!(!now.contains(&orphan) && now.contains(&server.pid().unwrap()), "one server, ours: {now:?}");
        assert_eq!(kept(&server).await, [1]);
        server.stop().await.unwrap();
        nobody_in(dir.path()).await;
    }
}

#[tokio::test]
async fn is_refused_while_another_lives_and_names_it() {
    let dir = temporary();
    let (mut other, server) = other_process(dir.path()).await;
    let message = failure(dir.path(), options()).await;
    assert!(message.contains(&format!("process {}", other.pid())), "{message}");
    assert!(message.contains(&*dir.path().to_string_lossy()), "{message}");
    assert!(servers_in(dir.path()).contains(&server), "the other is left alone");
    other.kill();
    start(dir.path()).await.stop().await.unwrap();
    // And within one process.
    let first = start(dir.path()).await;
    assert!(matches!(PrivatePostgres::start(dir.path(), options()).await, Err(PrivateError::InUse { .. })));
    first.stop().await.unwrap();
    start(dir.path()).await.stop().await.unwrap();
}

#[tokio::test]
async fn a_process_number_given_to_another_program_does_not_keep_it_from_starting() {
    let dir = temporary();
    let mut server = start(dir.path()).await;
    put(&server, 1).await;
    let data = dir.path().join("postgres");
    let was = server.pid().unwrap().to_string();
    signal(server.pid().unwrap(), Signal::KILL);
    server.ended().await.unwrap();
    server.stop().await.unwrap();
    nobody_in(dir.path()).await;
    // Of the same user as the server, or the server would see through it by itself.
    let owner = std::fs::metadata(&data).unwrap();
    let mut sleep = Command::new("sleep").arg("60").uid(owner.uid()).gid(owner.gid()).spawn().unwrap();
    for file in ["postmaster.pid", ".s.PGSQL.5432.lock"] {
        let text = std::fs::read_to_string(data.join(file)).unwrap();
        assert!(text.starts_with(&was), "{file}: {text}");
        std::fs::write(data.join(file), text.replacen(&was, &sleep.id().to_string(), 1)).unwrap();
    }
    let server = start(dir.path()).await;
    assert_eq!(kept(&server).await, [1]);
    assert!(sleep.try_wait().unwrap().is_none(), "the other program is left alone");
    sleep.kill().unwrap();
    sleep.wait().unwrap();
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_folder_left_half_made_is_made_again() {
    let dir = temporary();
    let half = dir.path().join("postgres.new.0badcafe");
    std::fs::create_dir_all(half.join("base")).unwrap();
    std::fs::write(half.join("PG_VERSION"), "15\n").unwrap();
    start(dir.path()).await.stop().await.unwrap();
    assert!(!half.exists());
}

#[tokio::test]
async fn works_where_the_path_is_too_long_for_a_socket_or_full_of_signs() {
    let long = "a-folder-name-of-forty-characters-or-so/".repeat(4);
    for name in [long.as_str(), "one, two 'three' \\ four=five %20 ünï"] {
        let dir = temporary();
        let home = dir.path().join(name);
        let server = start(&home).await;
        put(&server, 1).await;
        let url = server.url();
        if name == long {
            let refused = tokio::net::UnixStream::connect(home.join("postgres/.s.PGSQL.5432")).await;
            assert!(refused.is_err(), "not long enough to matter");
            let socket_dir = url.split('\'').nth(1).unwrap();
            assert_eq!(std::fs::metadata(socket_dir).unwrap().mode() & 0o777, 0o700);
        }
        assert_eq!(running(&home, &Search::Installed).map(|found| found.url), Some(url.clone()));
        server.stop().await.unwrap();
        let (mut other, _) = other_process(&home).await;
        other.kill();
        let server = start(&home).await;
        assert_eq!(kept(&server).await, [1, 1]);
        server.stop().await.unwrap();
        let socket_dir = PathBuf::from(url.split('\'').nth(1).unwrap());
        assert!(name != long || !socket_dir.exists(), "{socket_dir:?} is cleaned up");
    }
}

#[tokio::test]
async fn root_has_it_run_by_another_user_even_where_that_user_cannot_go() {
    if !rustix::process::geteuid().is_root() {
        println!("not root: nothing to check");
        return;
    }
    let dir = temporary();
    let closed = dir.path().join("root");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, Permissions::from_mode(0o700)).unwrap();
    let home = closed.join("project/.ebbtide");
    let user = ServerUser::find().unwrap();
    for n in 1..=2 {
        let mut server = start(&home).await;
        assert!(!user.can_enter(&home), "not closed enough to matter");
        let process = std::fs::metadata(format!("/proc/{}", server.pid().unwrap())).unwrap();
        assert_eq!(process.uid(), user.uid);
        put(&server, n).await;
        // A crash within, and work by processes born later.
        signal(server.pid().unwrap(), Signal::KILL);
        server.ended().await.unwrap();
        drop(server);
        let server = start(&home).await;
        let client = pg::connect(&server.url()).await;
        for sql in ["checkpoint", "select pg_reload_conf()", "create database x", "drop database x"] {
            client.batch_execute(sql).await.unwrap();
        }
        assert_eq!(kept(&server).await, (1..=n).collect::<Vec<_>>());
        server.stop().await.unwrap();
    }
    nobody_in(&home).await;
}

#[tokio::test]
async fn without_programs_it_says_where_it_looked_and_what_to_do() {
    let dir = temporary();
    let nowhere = dir.path().join("nowhere");
    let only = Options { search: Search::Only(vec![nowhere.clone()]), ..options() };
    let message = failure(&dir.path().join("new"), only.clone()).await;
    for word in [&*nowhere.to_string_lossy(), "install", "postgresql", "EBBTIDE_PG_BIN", "--database-url"] {
        assert!(message.contains(word), "{word} in: {message}");
    }
    start(&dir.path().join("old")).await.stop().await.unwrap();
    let message = failure(&dir.path().join("old"), only).await;
    assert!(message.contains(&*nowhere.to_string_lossy()), "{message}");
}

#[tokio::test]
async fn data_of_another_version_is_refused_by_name() {
    let dir = temporary();
    start(dir.path()).await.stop().await.unwrap();
    std::fs::write(dir.path().join("postgres/PG_VERSION"), "13\n").unwrap();
    let message = failure(dir.path(), options()).await;
    let installed = Search::Installed.find().installations[0].to_string();
    for word in ["PostgreSQL 13", installed.as_str(), "postgresql", "move the folder away"] {
        assert!(message.contains(word), "{word} in: {message}");
    }
}

#[tokio::test]
async fn a_server_that_does_not_start_shows_its_log() {
    let dir = temporary();
    let wrong = Options { settings: vec!["shared_buffers=plenty".to_owned()], ..options() };
    let begun = Instant::now();
    let message = failure(dir.path(), wrong).await;
    assert!(message.contains("plenty") && message.contains("postgres.log"), "{message}");
    assert!(begun.elapsed() < Duration::from_secs(20));
    start(dir.path()).await.stop().await.unwrap();
}

#[test]
fn of_several_installations_the_newest_comes_first_and_old_ones_do_not_count() {
    let dir = temporary();
    let place = |name: &str, version: &str| {
        let bin = dir.path().join(name);
        std::fs::create_dir(&bin).unwrap();
        for program in ["postgres", "initdb"] {
            let script = bin.join(program);
            std::fs::write(&script, format!("#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n")).unwrap();
            std::fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
        }
        bin
    };
    let places = vec![
        place("a", "14.1"),
        place("b", "13.9"),
        place("c", "18beta2 (Debian 18~beta2-1)"),
        place("d", "17.2"),
        dir.path().join("linked"),
    ];
    // A link to one program stands for the folder it points into.
    std::fs::create_dir(dir.path().join("linked")).unwrap();
    std::os::unix::fs::symlink(places[3].join("postgres"), dir.path().join("linked/postgres")).unwrap();
    let found = Search::Only(places.clone()).find();
    let majors: Vec<u32> = found.installations.iter().map(|found| found.major).collect();
    assert_eq!(majors, [18, 17, 14]);
    assert_eq!(found.installations[0].bin_dir, places[2].canonicalize().unwrap());
}
