//! A node that replaces its last blocks several times a second, while syncers and processors are stopped, cut off and thrown
//! out, and wake after others have gone on: once it is over, everything is as if nothing had been.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::support::check::settled;
use crate::support::fake_node::{FakeBlock, FakeNode, chain, transfer};
use crate::support::{Ebbtide, FaultProxy, PATIENCE, Pg, wait_until, wait_within};

const SEED: u64 = 20_261_130;
const BLOCKS: u64 = 150;
/// Between two reorganisations.
const EVERY: Duration = Duration::from_millis(150);
const DEEPEST: usize = 12;
/// Another syncer goes on within this, and rows that a processor held are free.
const GOES_ON_WITHIN: Duration = Duration::from_secs(20);

const ZERO: &str = "0x0000000000000000000000000000000000000000";
const TOKEN: &str = "0x00000000000000000000000000000000000070c0";

fn on(stem: &[FakeBlock], len: u64, branch: u64) -> Vec<FakeBlock> {
    let from = stem.last().map_or(0, |block| block.number + 1);
    let logs = |number: u64| {
        let who = |n: u64| format!("0x{:040x}", 0xa0 + (number + branch * n) % 7);
        let amount = u128::from(number + 1_000 * branch);
        vec![transfer(TOKEN, ZERO, &who(1), 2 * amount, 0), transfer(TOKEN, &who(1), &who(3), amount, 1)]
    };
    [stem, &chain(from, len, stem.last(), &branch.to_string(), logs)].concat()
}

/// What everybody must hold, worked out from the blocks alone.
fn held(blocks: &[FakeBlock]) -> BTreeMap<String, i128> {
    let mut held = BTreeMap::new();
    for log in blocks.iter().flat_map(|block| &block.logs) {
        let amount = i128::from_str_radix(&log["data"].as_str().unwrap()[2..], 16).unwrap();
        for (topic, sign) in [(1, -1), (2, 1)] {
            let holder = format!("0x{}", &log["topics"][topic].as_str().unwrap()[26..]);
            if holder != ZERO {
                *held.entry(holder).or_default() += sign * amount;
            }
        }
    }
    held.retain(|_, amount| *amount != 0);
    held
}

/// Replaces the last blocks of a node until it is told to stop; the chain that it leaves.
async fn blow(node: Arc<FakeNode>, mut served: Vec<FakeBlock>, stop: CancellationToken) -> (Vec<FakeBlock>, u64) {
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut pace = tokio::time::interval(EVERY);
    let mut branch = 0;
    loop {
        tokio::select! { _ = pace.tick() => {}, () = stop.cancelled() => return (served, branch) }
        branch += 1;
        let depth = rng.random_range(1..=DEEPEST);
        let added = depth as u64 + rng.random_range(0..2);
        served = on(&served[..served.len() - depth], added, branch);
        node.set_chain(served.clone());
    }
}

/// A process that reaches Postgres through a network of its own.
struct Member {
    program: Ebbtide,
    network: FaultProxy,
}

impl Member {
    async fn sync(node: &FakeNode, pg: &Pg) -> Member {
        let network = FaultProxy::in_front_of(&pg.url).await;
        let (url, database) = (node.url(), network.url(&pg.url));
        let args = ["sync", "--source", "evm", "--url", &url, "--database-url", &database, "--start-height", "0"];
        Member { program: Ebbtide::spawn(&[&args[..], &["--source-poll-ms", "50"]].concat(), &[]), network }
    }

    async fn process(pg: &Pg) -> Member {
        let network = FaultProxy::in_front_of(&pg.url).await;
        let program = Ebbtide::spawn(&["process", "--database-url", &network.url(&pg.url)], &[]);
        Member { program, network }
    }

    /// How often it has found that another one has the lock.
    fn stood_by(&self) -> usize {
        self.program.stderr().iter().filter(|line| line.contains("standing by")).count()
    }
}

/// Whose session has the chain's lock; all of them.
async fn holders(db: &Client) -> Vec<i32> {
    let sql = "select pid from pg_locks where locktype = 'advisory' and granted
        and database = (select oid from pg_database where datname = current_database())";
    db.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

async fn number(db: &Client, sql: &str) -> i64 {
    db.query_one(sql, &[]).await.unwrap().get(0)
}

/// Another session than this one has the lock, and reorganisations are written and applied by those that are left.
async fn others_go_on(db: &Client, holder: i32, what: &str) {
    wait_within(GOES_ON_WITHIN, &format!("{what}: another one has the lock"), async || {
        holders(db).await.iter().any(|pid| *pid != holder).then_some(())
    })
    .await;
    for table in ["orphaned_blocks", "reorgs"] {
        let sql = format!("select count(*) from {table}");
        let before = number(db, &sql).await;
        wait_within(GOES_ON_WITHIN, &format!("{what}: {table} grow"), async || {
            (number(db, &sql).await >= before + 5).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_cut_off_and_woken_in_a_storm_of_reorganisations_all_comes_right() {
    let served = on(&[], BLOCKS, 0);
    let node = Arc::new(FakeNode::start(31337, served.clone()).await);
    let pg = Pg::new().await;
    let db = pg.client().await;
    let mut first = [Member::sync(&node, &pg).await, Member::process(&pg).await];
    let holder = wait_until("the first syncer has the lock", async || holders(&db).await.first().copied()).await;
    let mut second = [Member::sync(&node, &pg).await, Member::process(&pg).await];
    second[0].program.wait_for_line("standing by").await;
    let stop = CancellationToken::new();
    let storm = tokio::spawn(blow(Arc::clone(&node), served, stop.clone()));
    // Stopped with whatever they hold; woken once the others have gone on.
    first.iter().for_each(|member| member.program.freeze());
    others_go_on(&db, holder, "stopped").await;
    first.iter().for_each(|member| member.program.thaw());
    first[0].program.wait_for_line("standing by").await;
    // The network of those that took over is gone, and comes back.
    let holder = holders(&db).await[0];
    second.iter().for_each(|member| member.network.shut());
    others_go_on(&db, holder, "cut off").await;
    second.iter().for_each(|member| member.network.reopen());
    wait_until("the one that was cut off stands by again", async || (second[0].stood_by() >= 2).then_some(())).await;
    // Every session is thrown out, and the syncer stopped before it can come back.
    let holder = holders(&db).await[0];
    first[0].program.freeze();
    let thrown_out = number(
        &db,
        "select count(pg_terminate_backend(pid)) from pg_stat_activity
         where datname = current_database() and application_name like 'ebbtide%'",
    )
    .await;
    assert!(thrown_out >= 4, "{thrown_out} sessions");
    others_go_on(&db, holder, "thrown out").await;
    first[0].program.thaw();
    wait_until("the one that was thrown out stands by", async || (first[0].stood_by() >= 2).then_some(())).await;
    stop.cancel();
    let (served, reorganisations) = storm.await.unwrap();

    let head = served.last().unwrap();
    wait_until("the node's tip is applied", async || {
        let sql = "select from checkpoints where hash = $1 and projection = 'token_balances'";
        db.query_opt(sql, &[&head.hash]).await.unwrap().map(|_| ())
    })
    .await;
    let balances: BTreeMap<String, i128> = db
        .query("select address, amount::text from balances where amount <> 0", &[])
        .await
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get::<_, String>(1).parse().unwrap()))
        .collect();
    assert_eq!(balances, held(&served));
    settled(&db, "main", PATIENCE).await;
    assert_eq!(holders(&db).await.len(), 1, "one syncer holds the lock");
    let mut members = first.iter_mut().chain(&mut second);
    assert!(members.all(|member| member.program.is_running()), "one of them has ended");
    assert_eq!(number(&db, "select count(*) from blocks").await, served.len() as i64);
    wait_until("status says that all is well", async || {
        let args = ["status", "--database-url", &pg.url];
        tokio::task::block_in_place(|| Ebbtide::output(&args, &[])).status.success().then_some(())
    })
    .await;
    Ebbtide::succeed(&["verify", "--database-url", &pg.url], &[]);
    let (written, applied) =
        (number(&db, "select count(*) from orphaned_blocks").await, number(&db, "select count(*) from reorgs").await);
    println!(
        "{reorganisations} reorganisations of 1 to {DEEPEST} blocks; {written} blocks archived, {applied} undone at once"
    );
}
