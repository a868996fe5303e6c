//! What anybody can put on a chain in masses: refused events in one block, and tokens. The blocks after it keep the pace of
//! those before it, and requests are answered meanwhile.

use std::io::Write;
use std::net::SocketAddr;
use std::process::{ChildStdin, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::support::process::ebbtide_command;
use crate::support::{Ebbtide, Pg, free_addr, http, wait_until, wait_within};

const MANY: u64 = 100_000;
/// Ordinary blocks whose time is compared: several times as long as [`REPORTED_WITHIN`], which is how far the counters lag.
const BLOCKS: u64 = 80;
/// A session that works reports what it counted once a second (`PGSTAT_MIN_INTERVAL` of the server).
const REPORTED_WITHIN: Duration = Duration::from_millis(1_100);
/// How much more of the server's buffers ordinary blocks may touch after the flood than before it.
const BUFFERS_AT_MOST: i64 = 3;
/// How much longer anything may take: the machine has other things to do, and not always the same.
const AT_MOST: u32 = 10;
/// What `/health` says is known for so long: an answer that takes longer is none.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);
/// A block of a hundred thousand events, on a machine with other things to do.
const FLOOD_WITHIN: Duration = Duration::from_secs(180);

fn block(height: u64, token_events: &[Value]) -> Value {
    let parent = height.checked_sub(1).map_or_else(|| "none".to_owned(), |below| format!("b{below}"));
    json!({ "event": "block", "height": height, "hash": format!("b{height}"), "parent_hash": parent,
            "token_events": token_events })
}

fn event(index: u64, token: &str, to: Option<&str>) -> Value {
    json!({ "tx_index": index, "event_index": index, "token": token, "from_address": null, "to_address": to, "amount": "7" })
}

fn ordinary(height: u64) -> Value {
    let events: Vec<Value> = (0..20).map(|n| event(n, "gold", Some(&format!("user{}", (height + n) % 50)))).collect();
    block(height, &events)
}

/// The program, its input, and where it answers.
struct Stage {
    pg: Pg,
    db: Client,
    ebbtide: Ebbtide,
    input: Arc<Mutex<ChildStdin>>,
    rest: SocketAddr,
    operator: SocketAddr,
    height: u64,
    /// Where the flood began.
    flood_at: u64,
}

impl Stage {
    async fn start() -> Stage {
        let pg = Pg::new().await;
        let (db, rest, operator) = (pg.client().await, free_addr(), free_addr());
        let (listen, operator_listen) = (rest.to_string(), operator.to_string());
        let args = ["run", "--source", "file", "--file", "-", "--database-url", &pg.url, "--listen", &listen];
        let mut command = ebbtide_command(&[&args[..], &["--operator-listen", &operator_listen]].concat(), &[]);
        command.stdin(Stdio::piped());
        let mut ebbtide = Ebbtide::spawn_command(command);
        let input = Arc::new(Mutex::new(ebbtide.stdin()));
        wait_until("/health answers", async || http::get(operator, "/health").await.starts_with("HTTP").then_some(()))
            .await;
        // The counters are the whole database's, and autovacuum reads what the flood wrote whenever it comes by.
        for table in ["blocks", "token_events", "rejected_events", "balances", "balance_history", "token_totals"] {
            db.batch_execute(&format!("alter table {table} set (autovacuum_enabled = off)")).await.unwrap();
        }
        Stage { pg, db, ebbtide, input, rest, operator, height: 0, flood_at: 0 }
    }

    /// Tells it a block and waits until that is applied, while `/health` is asked.
    async fn tell(&mut self, line: Value) {
        let (text, input, operator) = (format!("{line}\n"), Arc::clone(&self.input), self.operator);
        let written = async {
            // It may be longer than the pipe, so that writing waits for reading.
            let write = move || input.lock().unwrap().write_all(text.as_bytes());
            tokio::task::spawn_blocking(write).await.unwrap().unwrap();
            let hash = format!("b{}", self.height);
            let sql = "select halted_reason from checkpoints where hash = $1 and projection = 'token_balances'";
            let halted = wait_within(FLOOD_WITHIN, &format!("block {hash} is applied"), async || {
                self.db.query_opt(sql, &[&hash]).await.unwrap().map(|row| row.get::<_, Option<String>>(0))
            })
            .await;
            assert_eq!(halted, None);
        };
        let asked = async {
            loop {
                let begun = Instant::now();
                let answer = http::get(operator, "/health").await;
                let took = begun.elapsed();
                assert!(took < ANSWERED_WITHIN, "/health answered after {took:?}");
                assert!(answer.starts_with("HTTP/1.1 ") && !answer.contains(r#""silent""#), "{answer}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! { () = written => {}, () = asked => {} }
        self.height += 1;
    }

    /// Ordinary blocks until all that came before them is counted.
    async fn settle(&mut self) {
        let begun = Instant::now();
        while begun.elapsed() < REPORTED_WITHIN {
            self.tell(ordinary(self.height)).await;
        }
    }

    /// How long some ordinary blocks take, and how many buffers the server touches meanwhile.
    async fn pace(&mut self) -> (Duration, i64) {
        let sql = "select blks_hit + blks_read from pg_stat_database where datname = current_database()";
        let buffers = self.db.query_one(sql, &[]).await.unwrap().get::<_, i64>(0);
        let begun = Instant::now();
        for _ in 0..BLOCKS {
            self.tell(ordinary(self.height)).await;
        }
        (begun.elapsed(), self.db.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) - buffers)
    }

    /// How long a person waits for `status`, and for a page of tokens.
    async fn answers(&self) -> [Duration; 2] {
        let begun = Instant::now();
        let args = ["status", "--database-url", &self.pg.url];
        let output = tokio::task::block_in_place(|| Ebbtide::output(&args, &[]));
        let status = begun.elapsed();
        assert!(String::from_utf8_lossy(&output.stdout).contains("main"), "{output:?}");
        let begun = Instant::now();
        let page = http::get(self.rest, "/tokens/balances?chain=main&limit=100").await;
        assert!(page.starts_with("HTTP/1.1 200"), "{page}");
        [status, begun.elapsed()]
    }

    /// Lines of its log that name a height.
    fn lines_of(&self, height: u64) -> Vec<String> {
        let (tag, block) = (format!("height={height} "), format!("block {height} "));
        self.ebbtide.stderr().into_iter().filter(|line| line.contains(&tag) || line.contains(&block)).collect()
    }
}

/// An ordinary story with these blocks in its midst, beside the same without them: the first half of it.
async fn keeps_its_pace(what: &str, flood: impl IntoIterator<Item = Vec<Value>>) -> Stage {
    let mut stage = Stage::start().await;
    // The first blocks make connections and statements.
    stage.settle().await;
    let (pace, answers) = (stage.pace().await, stage.answers().await);
    stage.flood_at = stage.height;
    let begun = Instant::now();
    for events in flood {
        let line = block(stage.height, &events);
        stage.tell(line).await;
    }
    let (flood, blocks) = (begun.elapsed(), stage.height - stage.flood_at);
    // What the flood left to be done beside (statistics) is no ordinary block's.
    stage.settle().await;
    let (pace_after, answers_after) = (stage.pace().await, stage.answers().await);
    println!(
        "{what}: {blocks} blocks of it in {flood:.1?}; {BLOCKS} ordinary blocks and their buffers: {pace:.1?} before, {pace_after:.1?} \
         after; status and a page of tokens: {answers:.1?} before, {answers_after:.1?} after"
    );
    assert!(
        pace_after.1 < pace.1 * BUFFERS_AT_MOST,
        "{what}: ordinary blocks, {pace:?} before and {pace_after:?} after"
    );
    assert!(pace_after.0 < pace.0 * AT_MOST, "{what}: ordinary blocks, {pace:?} before and {pace_after:?} after");
    for (before, after) in answers.iter().zip(&answers_after) {
        assert!(*after < *before * AT_MOST, "{what}: answers, {answers:?} before and {answers_after:?} after");
    }
    stage
}

async fn end(mut stage: Stage) {
    stage.ebbtide.terminate();
    assert!(stage.ebbtide.wait(Duration::from_secs(15)).await.success());
    Ebbtide::succeed(&["verify", "--database-url", &stage.pg.url], &[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_refused_events_in_a_block_slow_down_no_other() {
    let refused: Vec<Value> = (0..MANY).map(|n| event(n, "gold", None)).collect();
    let stage = keeps_its_pace("100,000 refused events in a block", [refused]).await;
    let sql = "select count(*) from rejected_events where reason = 'no_party'";
    assert_eq!(stage.db.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), MANY as i64);
    let said: Vec<String> =
        stage.lines_of(stage.flood_at).into_iter().filter(|line| line.contains("Rejected")).collect();
    assert!(matches!(&said[..], [line] if line.contains("Rejected 100000 events")), "{said:?}");
    end(stage).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_tokens_slow_down_no_block() {
    let of_block = |n: u64| (0..5_000).map(|k| event(k, &format!("token{}", 5_000 * n + k), Some("alice"))).collect();
    let stage = keeps_its_pace("100,000 tokens", (0..MANY / 5_000).map(of_block)).await;
    let sql = "select count(distinct token) from balances";
    assert_eq!(stage.db.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), MANY as i64 + 1);
    end(stage).await;
}
