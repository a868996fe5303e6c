//! From a node to balances: a local anvil with many transfers, read by the built program.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};

use crate::Size;
use crate::report::{Budget, Line};
use crate::server::{Database, Server};

/// Transfers in a block.
pub(crate) const TRANSFERS: u64 = 30;
/// Blocks in one question of the floor's client.
const AT_ONCE: u64 = 100;
/// Its questions at a time.
const QUESTIONS: usize = 4;

/// A contract that emits `Transfer(from, to, amount)` [`TRANSFERS`] times a call, between accounts 1 to 100,000 and of
/// amounts below 2^56, all from keccak256(the call's first word, n).
fn code() -> String {
    let transfer = "ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef";
    let below_100_000 = "620186a09006600101";
    let begin = "600035600052" /* mem[0] = the word */.to_owned() + "6000" /* n */;
    let body = [
        "5b",             // the loop
        "80602052",       // mem[32] = n
        "60406000",       // keccak256(mem[0..64])
        "20",             // n, hash
        "8060c81c604052", // mem[64] = hash >> 200
        "8060801c",       // n, hash, hash >> 128
        below_100_000,    // n, hash, to
        "90",             // n, to, hash
        below_100_000,    // n, to, from
        &format!("7f{transfer}"),
        "60206040a3",                      // log3 of mem[64..96]
        "600101",                          // n + 1
        &format!("8060{TRANSFERS:02x}11"), // more to do?
    ]
    .concat();
    let runtime = format!("{begin}{body}60{:02x}5700", begin.len() / 2);
    let length = runtime.len() / 2;
    format!("0x60{length:02x}80600b6000396000f3{runtime}")
}

pub(crate) struct Node {
    child: Child,
    http: reqwest::Client,
    pub(crate) url: String,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The native program that `make install-deps` brings by npm.
fn program() -> Option<PathBuf> {
    let os = if cfg!(target_os = "macos") { "darwin" } else { "linux" };
    let cpu = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("node_modules");
    let program = modules.join(format!("@foundry-rs/anvil-{os}-{cpu}/bin/anvil"));
    program.is_file().then_some(program)
}

impl Node {
    async fn start() -> Option<Node> {
        let program = program()?;
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new(program)
            .args(["--host", "127.0.0.1", "--port", &port.to_string(), "--quiet", "--no-mining"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let node = Node { child, http, url: format!("http://127.0.0.1:{port}") };
        let begun = Instant::now();
        while node.try_ask(&question("eth_chainId", json!([]))).await.is_err() {
            assert!(begun.elapsed() < Duration::from_secs(30), "anvil does not answer");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Some(node)
    }

    async fn try_ask(&self, body: &Value) -> reqwest::Result<bytes::Bytes> {
        let answer = self.http.post(&self.url).header("content-type", "application/json").body(body.to_string());
        answer.send().await?.bytes().await
    }

    async fn ask(&self, method: &str, params: Value) -> Value {
        let answer = self.try_ask(&question(method, params)).await.unwrap();
        let mut answer: Value = serde_json::from_slice(&answer).unwrap();
        assert!(answer["error"].is_null(), "{method}: {answer}");
        answer["result"].take()
    }

    /// Makes the contract and so many blocks of transfers; its address.
    async fn fill(&self, blocks: u64) -> String {
        let accounts = self.ask("eth_accounts", json!([])).await;
        let from = accounts[0].clone();
        let made = self.ask("eth_sendTransaction", json!([{"from": from, "data": code(), "gas": "0x7a120"}])).await;
        self.ask("evm_mine", json!([])).await;
        let receipt = self.ask("eth_getTransactionReceipt", json!([made])).await;
        assert_eq!(receipt["status"], "0x1", "{receipt}");
        let contract = receipt["contractAddress"].as_str().unwrap().to_lowercase();
        for block in 0..blocks {
            let call = json!([{"from": from, "to": contract, "data": format!("0x{block:064x}"), "gas": "0x7a120"}]);
            self.ask("eth_sendTransaction", call).await;
            self.ask("evm_mine", json!([])).await;
        }
        contract
    }

    /// The floor: everything asked for by a client that throws it away.
    async fn ask_for_all(&self, contract: &str, to: u64) -> Duration {
        let begun = Instant::now();
        let bodies = (1..=to).step_by(AT_ONCE as usize).map(|from| {
            let last = to.min(from + AT_ONCE - 1);
            let range = json!([{"fromBlock": hex(from), "toBlock": hex(last), "address": contract}]);
            let mut all = vec![question("eth_getLogs", range)];
            all.extend((from..=last).map(|h| question("eth_getBlockByNumber", json!([hex(h), false]))));
            Value::Array(all)
        });
        let answers = futures::stream::iter(bodies).map(async |body| self.try_ask(&body).await);
        let sizes: Vec<usize> = answers.buffered(QUESTIONS).map_ok(|answer| answer.len()).try_collect().await.unwrap();
        assert!(sizes.iter().sum::<usize>() as u64 > to * 1_000, "the node answered little");
        begun.elapsed()
    }
}

fn question(method: &str, params: Value) -> Value {
    json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
}

fn hex(number: u64) -> String {
    format!("{number:#x}")
}

/// The built program; the bench's own variables are no settings of it.
pub(crate) fn ebbtide(arguments: &[&str], database: &Database) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ebbtide"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("EBBTIDE_")) {
        command.env_remove(name);
    }
    command.args(arguments).args(["--database-url", &database.url]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Runs it until the query answers at least `target`; how long that took.
pub(crate) async fn run_until(mut command: Command, database: &Database, query: &str, target: u64) -> Duration {
    let begun = Instant::now();
    let mut child = command.spawn().unwrap();
    while (database.count(query).await as u64) < target {
        assert!(child.try_wait().unwrap().is_none(), "the program ended by itself");
        assert!(begun.elapsed() < Duration::from_secs(60), "not done after 60 s");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let took = begun.elapsed();
    child.kill().unwrap();
    child.wait().unwrap();
    took
}

/// Every transfer is applied, and what one account lost another got.
pub(crate) async fn check_balances(database: &Database, events: u64) {
    let applied = "select count(*) from token_events where height <= (select height from checkpoints)";
    assert_eq!(database.count(applied).await as u64, events, "every transfer must be applied");
    assert_eq!(database.count("select sum(amount)::bigint from balances").await, 0);
}

impl Node {
    /// A database and the program that follows the node into it.
    pub(crate) async fn follower(&self, server: &Server, command: &str, contract: &str) -> (Database, Command) {
        let database = server.database().await;
        database.client.batch_execute("select drop_chain('bench')").await.unwrap();
        database.settle().await;
        let mut arguments = vec![command, "--source", "evm", "--url", &self.url, "--token", contract];
        arguments.extend(["--start-height", "1"]);
        if command == "run" {
            arguments.extend(["--listen", "127.0.0.1:0", "--operator-listen", "127.0.0.1:0"]);
        }
        let follow = ebbtide(&arguments, &database);
        (database, follow)
    }
}

/// A node with so many blocks of transfers, and their contract; none where it is not installed.
pub(crate) async fn filled(blocks: u64) -> Option<(Node, String)> {
    let Some(node) = Node::start().await else {
        eprintln!("left out: node → balances (no anvil in node_modules; make install-deps, with npm)");
        return None;
    };
    let contract = node.fill(blocks).await;
    Some((node, contract))
}

pub(crate) const APPLIED_TO: &str = "select coalesce(max(height), 0) from checkpoints";

pub(crate) async fn to_balances(server: &Server, size: &Size) -> Vec<Line> {
    let blocks = size.of(5_000, 200);
    let what = "node → balances: anvil, 30 transfers a block; floor: its answers fetched and thrown away";
    let mut line = Line::new(what, "events/s", Budget::None);
    let Some((node, contract)) = filled(blocks).await else { return Vec::new() };
    let events = blocks * TRANSFERS;
    for _ in 0..size.rounds {
        let took = node.ask_for_all(&contract, blocks + 1).await;
        line.floor.push(events as f64 / took.as_secs_f64());
        let (database, follow) = node.follower(server, "run", &contract).await;
        let took = run_until(follow, &database, APPLIED_TO, blocks + 1).await;
        line.product.push(events as f64 / took.as_secs_f64());
        check_balances(&database, events).await;
        server.drop(database).await;
    }
    vec![line]
}
