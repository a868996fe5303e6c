//! The program on a fake node, and what must be true of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio_postgres::Client;

use crate::support::fake_node::{FakeBlock, FakeNode, chain, transfer};
use crate::support::{Ebbtide, Pg, free_addr, http, wait_until};

pub const TOKEN: &str = "0x1111111111111111111111111111111111111111";
pub const OTHER: &str = "0x2222222222222222222222222222222222222222";
pub const ALICE: &str = "0xaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
pub const BOB: &str = "0xbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
const ZERO: &str = "0x0000000000000000000000000000000000000000";

/// Three movements in every block; the amounts depend on the branch.
pub fn logs(number: u64, factor: u128) -> Vec<Value> {
    let amount = (u128::from(number) + 1) * factor;
    vec![
        transfer(TOKEN, ZERO, ALICE, 2 * amount, 0),
        transfer(TOKEN, ALICE, BOB, amount, 1),
        transfer(OTHER, BOB, ALICE, amount, 2),
    ]
}

/// Blocks from genesis on.
pub fn blocks(len: u64) -> Vec<FakeBlock> {
    chain(0, len, None, "a", |number| logs(number, 1))
}

/// The same chain without its last `replaced` blocks, and `added` others on top; each `salt` makes another branch.
pub fn forked(old: &[FakeBlock], replaced: usize, added: u64, salt: u128) -> Vec<FakeBlock> {
    let stem = &old[..old.len() - replaced];
    let parent = stem.last().unwrap();
    let new = chain(parent.number + 1, added, Some(parent), &format!("branch {salt}"), |n| logs(n, 1_000 + salt));
    [stem, &new].concat()
}

/// What the balances must be: worked out from the blocks, by nothing of ours.
pub fn folded(blocks: &[FakeBlock]) -> BTreeMap<String, i128> {
    let mut sums: BTreeMap<String, i128> = BTreeMap::new();
    for log in blocks.iter().flat_map(|block| &block.logs) {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let amount = i128::from_str_radix(&text(&log["data"])[2..], 16).unwrap();
        for (topic, sign) in [(1, -1), (2, 1)] {
            let holder = format!("0x{}", &text(&log["topics"][topic])[26..]);
            if holder != ZERO {
                *sums.entry(format!("{} {holder}", text(&log["address"]))).or_default() += sign * amount;
            }
        }
    }
    sums.retain(|_, amount| *amount != 0);
    sums
}

pub struct Run {
    pub pg: Pg,
    pub db: Client,
    pub ebbtide: Ebbtide,
    pub operator: SocketAddr,
}

/// Starts the program on this node and database.
pub fn spawn(node: &FakeNode, pg: &Pg, operator: SocketAddr, args: &[&str]) -> Ebbtide {
    spawn_with(node, pg, operator, args, &[])
}

/// [`spawn`] with further variables.
pub fn spawn_with(node: &FakeNode, pg: &Pg, operator: SocketAddr, args: &[&str], env: &[(&str, &str)]) -> Ebbtide {
    let (url, operator) = (node.url(), operator.to_string());
    let mut all = vec!["run", "--source", "evm", "--url", &url, "--database-url", &pg.url, "--listen", "127.0.0.1:0"];
    all.extend(["--operator-listen", &operator]);
    if !args.contains(&"--start-height") {
        all.extend(["--start-height", "0"]);
    }
    if !args.contains(&"--source-poll-ms") {
        all.extend(["--source-poll-ms", "50"]);
    }
    all.extend(args);
    Ebbtide::spawn(&all, &[&[("EBBTIDE_CHAINS__MAIN__REQUEST_TIMEOUT_MS", "2000")], env].concat())
}

impl Run {
    pub async fn start(node: &FakeNode, args: &[&str]) -> Run {
        let pg = Pg::new().await;
        let db = pg.client().await;
        let operator = free_addr();
        let ebbtide = spawn(node, &pg, operator, args);
        Run { pg, db, ebbtide, operator }
    }

    /// Ends this process and starts another one with these arguments.
    pub async fn again(&mut self, node: &FakeNode, args: &[&str]) {
        self.stop().await;
        self.ebbtide = spawn(node, &self.pg, self.operator, args);
    }

    pub async fn stop(&mut self) {
        self.ebbtide.terminate();
        let status = self.ebbtide.wait(Duration::from_secs(15)).await;
        assert!(status.success(), "{status}:\n{}", self.ebbtide.stderr().join("\n"));
    }

    /// Hash and balances in one snapshot.
    pub async fn standing(&self) -> (Option<String>, BTreeMap<String, i128>) {
        let sql = "select k.hash, coalesce(jsonb_object_agg(b.token || ' ' || b.address, b.amount::text)
                       filter (where b.amount <> 0), '{}'), k.halted_reason
                   from checkpoints k left join balances b using (chain_id) group by k.hash, k.halted_reason";
        let Some(row) = self.db.query_opt(sql, &[]).await.unwrap() else { return (None, BTreeMap::new()) };
        assert_eq!(row.get::<_, Option<String>>(2), None, "halted");
        let amounts: Value = row.get(1);
        let amounts = amounts.as_object().unwrap().iter();
        (row.get(0), amounts.map(|(key, amount)| (key.clone(), amount.as_str().unwrap().parse().unwrap())).collect())
    }

    /// Waits until the balances are those of this chain, none refused.
    pub async fn reach(&self, blocks: &[FakeBlock], what: &str) {
        let head = blocks.last().unwrap();
        let wanted = Some(head.hash.clone());
        let balances = wait_until(&format!("{what}: block {} is applied", head.number), async || {
            let (hash, balances) = self.standing().await;
            (hash == wanted).then_some(balances)
        })
        .await;
        assert_eq!(balances, folded(blocks), "{what}");
        self.untroubled(what).await;
    }

    /// The balances are (still) those of this chain.
    pub async fn stands_at(&self, blocks: &[FakeBlock], what: &str) {
        let (hash, balances) = self.standing().await;
        assert_eq!(hash.as_ref(), blocks.last().map(|head| &head.hash), "{what}");
        assert_eq!(balances, folded(blocks), "{what}");
    }

    async fn untroubled(&self, what: &str) {
        let sql = "select count(*) from rejected_events";
        assert_eq!(self.number(sql).await, 0, "{what}: rejected events");
    }

    pub async fn number(&self, sql: &str) -> i64 {
        self.db.query_one(sql, &[]).await.unwrap().get(0)
    }

    /// What `/ready` says: whether it is, and its words.
    pub async fn ready(&self) -> (bool, String) {
        http::ready(self.operator).await
    }

    pub async fn until_ready(&self, what: &str) {
        wait_until(&format!("{what}: ready"), async || self.ready().await.0.then_some(())).await;
    }

    /// Waits until it says that it is not ready; returns its words.
    pub async fn until_unready(&self, what: &str) -> String {
        self.until_it_says("", what).await
    }

    /// Waits until it says that it is not ready, in these words among others.
    pub async fn until_it_says(&self, text: &str, what: &str) -> String {
        wait_until(&format!("{what}: not ready, saying {text:?}"), async || {
            let (ready, words) = self.ready().await;
            (!ready && words.contains(text)).then_some(words)
        })
        .await
    }
}

/// Requests a second over some time; `meanwhile` is asked now and then.
pub async fn rate(node: &FakeNode, over: Duration, mut meanwhile: impl AsyncFnMut()) -> f64 {
    let (begun, before) = (Instant::now(), node.request_count());
    while begun.elapsed() < over {
        meanwhile().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    (node.request_count() - before) as f64 / begun.elapsed().as_secs_f64()
}
