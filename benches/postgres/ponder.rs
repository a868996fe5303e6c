//! The same transfers through Ponder, an indexer in TypeScript: `make bench-ponder` installs it in benches/ponder.
//!
//! Two runs of it: one from the node, and one that finds all it needs in its own cache, and only indexes.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Size;
use crate::node::{self, APPLIED_TO, TRANSFERS};
use crate::report::{Budget, Line};
use crate::server::{Database, Server};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/ponder")
}

/// The database as Ponder wants it named: its driver reads URLs alone.
fn as_url(database: &Database) -> String {
    let after = |word: &str, end: char| database.url.split(word).nth(1).unwrap().split(end).next().unwrap().to_owned();
    format!("postgres://{}@/{}?host={}&port=5432", after("user=", ' '), after("dbname=", ' '), after("host='", '\''))
}

/// From its start until it says that it is ready. The blocks it does not take as final come after that, and are waited for
/// beyond the time measured: it must end with as many accounts as we have.
async fn until_ready(node_url: &str, contract: &str, database: &Database, schema: &str, accounts: i64) -> Duration {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let begun = Instant::now();
    let mut child = Command::new(folder().join("node_modules/.bin/ponder"))
        .args(["start", "--hostname", "127.0.0.1", "--port", &port, "--schema", schema, "--log-level", "error"])
        .current_dir(folder())
        .env("DATABASE_URL", as_url(database))
        .env("NODE_URL", node_url)
        .env("TOKEN", contract)
        .env("PONDER_TELEMETRY_DISABLED", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let ready = format!("http://127.0.0.1:{port}/ready");
    loop {
        if client.get(&ready).send().await.is_ok_and(|answer| answer.status() == 200) {
            break;
        }
        assert!(child.try_wait().unwrap().is_none(), "Ponder ended by itself");
        assert!(begun.elapsed() < Duration::from_secs(600), "Ponder is not ready after 600 s");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let took = begun.elapsed();
    let theirs = format!("select count(*) from {schema}.account");
    while database.count(&theirs).await != accounts {
        assert!(begun.elapsed() < took + Duration::from_secs(60), "Ponder does not come to know all accounts");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    child.kill().unwrap();
    child.wait().unwrap();
    took
}

pub(crate) async fn beside(server: &Server, size: &Size) -> Vec<Line> {
    if !folder().join("node_modules/.bin/ponder").exists() {
        eprintln!("left out: beside Ponder (make bench-ponder installs it)");
        return Vec::new();
    }
    let blocks = size.of(5_000, 200);
    let events = blocks * TRANSFERS;
    let speed = |took: Duration| events as f64 / took.as_secs_f64();
    let what = "node → balances, transfers on a local anvil, beside Ponder 0.16 (its request limiter bounds it)";
    let mut cold = Line::new(what, "events/s", Budget::Ratio(35.0, 50.0));
    let what = "events stored → balances (`process --once`), beside Ponder from its own cache";
    let mut warm = Line::new(what, "events/s", Budget::Ratio(4.0, 8.0));
    let what = "the same with `history = \"window\"`: Ponder keeps no history";
    let mut like = Line::new(what, "events/s", Budget::Ratio(6.0, 10.0));
    let Some((node, contract)) = node::filled(blocks).await else { return Vec::new() };

    let (database, follow) = node.follower(server, "run", &contract).await;
    cold.product.push(speed(node::run_until(follow, &database, APPLIED_TO, blocks + 1).await));
    node::check_balances(&database, events).await;
    let balances = database.count("select count(*) from balances").await;
    server.drop(database).await;

    for (line, history) in [(&mut warm, "full"), (&mut like, "window")] {
        let (database, sync) = node.follower(server, "sync", &contract).await;
        let stored = "select coalesce(max(height), 0) from blocks";
        node::run_until(sync, &database, stored, blocks + 1).await;
        database.settle().await;
        let mut process = node::ebbtide(&["process", "--once", "--history", history], &database);
        let begun = Instant::now();
        assert!(process.status().unwrap().success());
        line.product.push(speed(begun.elapsed()));
        node::check_balances(&database, events).await;
        server.drop(database).await;
    }

    let database = server.database().await;
    cold.floor.push(speed(until_ready(&node.url, &contract, &database, "cold", balances).await));
    let theirs = speed(until_ready(&node.url, &contract, &database, "warm", balances).await);
    warm.floor.push(theirs);
    like.floor.push(theirs);
    server.drop(database).await;
    vec![cold, warm, like]
}
