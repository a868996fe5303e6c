//! Clients that take all a port will give.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::process::ebbtide_command;
use crate::support::{Ebbtide, Pg, free_addr, wait_until};

/// `ebbtide serve` with at most this many open files.
async fn serve(pg: &Pg, files: u64) -> (Ebbtide, SocketAddr, SocketAddr) {
    let (api, operator) = (free_addr(), free_addr());
    let (listen, operator_listen) = (api.to_string(), operator.to_string());
    let args = ["serve", "--database-url", &pg.url, "--listen", &listen, "--operator-listen", &operator_listen];
    let plain = ebbtide_command(&args, &[]);
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -n {files} && exec \"$0\" \"$@\"")]);
    command.arg(plain.get_program()).args(plain.get_args());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let ebbtide = Ebbtide::spawn_command(command);
    for (address, path) in [(api, "/chains"), (operator, "/ready")] {
        wait_until("both ports answer", async || {
            get(address, path).await.ok().filter(|answer| answer.contains(" 200 "))
        })
        .await;
    }
    (ebbtide, api, operator)
}

async fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn a_thousand_idle_clients_leave_health_and_the_database_alone() {
    let mine = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: mine.maximum, ..mine }).unwrap();
    let pg = Pg::new().await;
    let (ebbtide, api, operator) = serve(&pg, 1024).await;
    // Those that find no place in the kernel's queue either keep knocking.
    let mut idle = tokio::task::JoinSet::new();
    for _ in 0..1000 {
        idle.spawn(async move {
            let _stream = TcpStream::connect(api).await;
            std::future::pending::<()>().await;
        });
    }
    // The most connections are half of its files.
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", ebbtide.pid())).unwrap().count();
    wait_until("it has taken as many as it takes", async || (descriptors() >= 512).then_some(())).await;
    for path in ["/health", "/ready", "/metrics"] {
        let answer = tokio::time::timeout(Duration::from_secs(1), get(operator, path)).await.expect("in time").unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    }
    assert!(descriptors() < 700, "{} of 1,024 files are open", descriptors());
    drop(idle);
    assert!(get(api, "/chains").await.unwrap().starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_port_without_files_goes_on_once_there_are_some_and_says_so_once() {
    let pg = Pg::new().await;
    let (mut ebbtide, api, _) = serve(&pg, 1024).await;
    let pid = Pid::from_raw(ebbtide.pid().cast_signed());
    let before = prlimit(pid, Resource::Nofile, Rlimit { current: Some(4), maximum: Some(1024) }).unwrap();
    // The connection stands before anybody has accepted it.
    let waiting = tokio::spawn(async move { get(api, "/tokens/nothing").await });
    ebbtide.wait_for_line("No further connection can be accepted for now").await;
    prlimit(pid, Resource::Nofile, before).unwrap();
    assert!(waiting.await.unwrap().unwrap().starts_with("HTTP/1.1 404"));
    let said = ebbtide.stderr().iter().filter(|line| line.contains("No further connection")).count();
    assert_eq!(said, 1, "{}", ebbtide.stderr().join("\n"));
}
