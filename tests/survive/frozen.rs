//! Processes that stand still (SIGSTOP) with locks in hand: others go on soon, and the one that wakes does no harm.

use std::time::{Duration, Instant};

use ebbtide::chain::{Amount, Block, ChainId, Hash, Height, Link, TokenEvent};
use ebbtide::store::{NewBlocks, Store, StoreSettings, SyncLock, WakeMode};
use serde_json::Value;

use crate::support::check::{World, settled};
use crate::support::fake_node::{FakeBlock, FakeNode, chain, transfer};
use crate::support::{Ebbtide, Fault, FaultProxy, Pg, wait_until, wait_within};

/// A syncer's lock is another's within this.
const LOCK_FREE_WITHIN: Duration = Duration::from_secs(15);
/// Rows that a processor holds are free within this.
const ROWS_FREE_WITHIN: Duration = Duration::from_secs(12);

const TOKEN: &str = "0x00000000000000000000000000000000000070c0";

fn logs(number: u64, amount: u128) -> Vec<Value> {
    let zero = format!("0x{}", "00".repeat(20));
    vec![transfer(TOKEN, &zero, &format!("0x{:040x}", 0xa0 + number % 7), amount + u128::from(number), 0)]
}

fn on(parent: &[FakeBlock], keep: usize, len: u64, salt: &str) -> Vec<FakeBlock> {
    let stem = &parent[..keep];
    let from = stem.last().map_or(0, |block| block.number + 1);
    [stem, &chain(from, len, stem.last(), salt, |number| logs(number, 100))].concat()
}

fn sync(node: &FakeNode, pg: &Pg) -> Ebbtide {
    let url = node.url();
    let args = ["sync", "--source", "evm", "--url", &url, "--database-url", &pg.url, "--start-height", "0"];
    Ebbtide::spawn(&[&args[..], &["--source-poll-ms", "50", "--finality-depth", "10"]].concat(), &[])
}

async fn stored(db: &tokio_postgres::Client, head: &FakeBlock, within: Duration) {
    let (height, what) = (head.number as i64, format!("block {} is stored", head.number));
    wait_within(within, &what, async || {
        let sql = "select from blocks where height = $1 and hash = $2";
        db.query_opt(sql, &[&height, &head.hash]).await.unwrap().map(|_| ())
    })
    .await;
}

#[tokio::test]
async fn a_stopped_syncer_s_chain_goes_on_by_another_one_and_it_stands_by_when_it_wakes() {
    let first_blocks = on(&[], 0, 30, "a");
    let node = FakeNode::start(31337, first_blocks.clone()).await;
    let pg = Pg::new().await;
    let db = pg.client().await;
    let mut first = sync(&node, &pg);
    stored(&db, &first_blocks[29], LOCK_FREE_WITHIN).await;
    let holder = "select l.pid, a.application_name from pg_locks l join pg_stat_activity a using (pid)
        where l.locktype = 'advisory' and l.granted
          and l.database = (select oid from pg_database where datname = current_database())";
    let holder = db.query_one(holder, &[]).await.unwrap();
    let mut second = sync(&node, &pg);
    let line = second.wait_for_line("standing by").await;
    let named = format!("pid {}, {}", holder.get::<_, i32>(0), holder.get::<_, String>(1));
    assert!(line.contains(&named), "{line} does not name {named}");
    first.freeze();
    let begun = Instant::now();
    // A branch that the first one has not seen: blocks of its own would not stand on it.
    let other_blocks = on(&first_blocks, 25, 15, "b");
    node.set_chain(other_blocks.clone());
    stored(&db, &other_blocks[39], LOCK_FREE_WITHIN).await;
    println!("another syncer went on after {:.1?}", begun.elapsed());
    first.thaw();
    first.wait_for_line("standing by").await;
    let archived = "select count(*) from orphaned_blocks";
    assert_eq!(db.query_one(archived, &[]).await.unwrap().get::<_, i64>(0), 5, "each replaced block once");
    // And when the second one is gone, it is the syncer again.
    second.kill();
    let last_blocks = on(&other_blocks, 40, 5, "b");
    node.set_chain(last_blocks.clone());
    stored(&db, &last_blocks[44], LOCK_FREE_WITHIN).await;
    first.kill();
    Ebbtide::succeed(&["process", "--once", "--database-url", &pg.url], &[]);
    settled(&db, "main", Duration::from_secs(1)).await;
    Ebbtide::succeed(&["verify", "--database-url", &pg.url], &[]);
}

#[tokio::test]
async fn a_lock_is_kept_while_its_holder_waits_for_something_else() {
    let world = World::new(8).await;
    let store = Store::open(&world.url, StoreSettings::default()).unwrap();
    let id = ChainId(world.one("select chain_id from chains").await.unwrap().parse().unwrap());
    let lock = SyncLock::acquire(&store, id).await.unwrap().unwrap();
    // Longer than the server lets a silent one keep it.
    let waited = lock.hold_during(tokio::time::sleep(Duration::from_secs(11)));
    let asked = async { SyncLock::acquire(&store, id).await.unwrap().err() };
    assert!(asked.await.is_some_and(|holder| holder.pid.is_some()), "the lock is held");
    waited.await;
    lock.stored().await.unwrap();
    assert!(SyncLock::acquire(&store, id).await.unwrap().is_err(), "the lock is still held");
}

/// A server waits for the rest of a COPY for ever, whatever its limits are: whoever stands by ends the session.
#[tokio::test]
async fn a_syncer_stopped_in_the_midst_of_a_copy_is_ended_by_the_one_that_stands_by() {
    let world = World::new(8).await;
    let id = ChainId(world.one("select chain_id from chains").await.unwrap().parse().unwrap());
    let proxy = FaultProxy::in_front_of(&world.url).await;
    let stops = Store::open(&proxy.url(&world.url), StoreSettings::default()).unwrap();
    let mut lock = SyncLock::acquire(&stops, id).await.unwrap().unwrap();
    let event = |n: u64| TokenEvent {
        tx_index: 0,
        event_index: n,
        token: "gold".into(),
        from: None,
        to: Some("alice".into()),
        amount: Amount::from(1u128),
    };
    let link = Link { height: Height::from(1), hash: Hash::new("a1"), parent_hash: Hash::new("a0") };
    let (transactions, events, rejects) = (Vec::new(), Vec::new(), Vec::new());
    let token_events = (0..2_000).map(event).collect();
    let block = Block { link, time: None, transactions, token_events, events, rejects };
    let written = async |lock: &mut SyncLock| {
        let new = NewBlocks {
            ancestor: None,
            replace: true,
            blocks: std::slice::from_ref(&block),
            head_height: Height::from(1),
            final_height: None,
            position: None,
            reset: false,
            network_id: None,
            vaults: &[],
        };
        lock.write(&new).await
    };
    // The first time, more is prepared.
    written(&mut lock).await.unwrap();
    let before = proxy.messages().len();
    written(&mut lock).await.unwrap();
    let nth = proxy.messages()[before..].iter().take_while(|message| *message != "CopyDone").count() + 1;
    proxy.arm_for("ebbtide", nth as u64, Fault::FreezeBefore);
    world.sql("update chains set kind = 'evm'").await;
    let served = chain(0, 3, None, "b", |_| Vec::new());
    let node = FakeNode::start(31337, served.clone()).await;
    let taken = async {
        proxy.wait_fired(1).await;
        let begun = Instant::now();
        let url = node.url();
        let args = ["sync", "--source", "evm", "--url", &url, "--database-url", &world.url, "--start-height", "1"];
        let mut other = Ebbtide::spawn(&args, &[]);
        other.wait_for_line("stands still in the midst of a COPY").await;
        stored(&world.db, &served[2], LOCK_FREE_WITHIN).await;
        println!("another syncer went on after {:.1?}", begun.elapsed());
        proxy.release();
    };
    let (written, ()) = tokio::join!(written(&mut lock), taken);
    assert!(written.is_err(), "it has lost its lock");
}

#[tokio::test]
async fn a_stopped_processor_gives_up_its_rows() {
    let world = World::new(8).await;
    world.branch("a", 1, 12, "a0").await;
    world.settle().await;
    let process = || Ebbtide::spawn(&["process", "--database-url", &world.url], &[("EBBTIDE_POLL_INTERVAL_MS", "50")]);
    let holder = world.client().await;
    holder.batch_execute("begin; select from balances for update").await.unwrap();
    let victim = process();
    world.branch("b", 9, 14, "a8").await;
    world.processor_waits().await;
    victim.freeze();
    holder.batch_execute("commit").await.unwrap();
    let holds = "select pid from pg_stat_activity where datname = current_database() and state = 'idle in transaction'
        and application_name like 'ebbtide%'";
    let pid = wait_until("it is inside a transaction", async || world.one(holds).await).await;
    let begun = Instant::now();
    let mut other = process();
    settled(&world.db, "main", ROWS_FREE_WITHIN).await;
    println!("another processor went on after {:.1?}", begun.elapsed());
    assert_eq!(world.one(&format!("select pid from pg_stat_activity where pid = {pid}")).await, None);
    // Awake, it finds out and goes on, also alone.
    world.branch("c", 11, 16, "b10").await;
    victim.thaw();
    world.check_soon().await;
    other.kill();
    world.branch("d", 12, 18, "c11").await;
    world.check_soon().await;
    drop(victim);
    Ebbtide::succeed(&["verify", "--database-url", &world.url], &[]);
}

#[tokio::test]
async fn a_rebuild_that_reads_for_long_keeps_its_transaction() {
    let mut world = World::new(2).await;
    world.store.lock_timeout = Duration::from_secs(60);
    world.branch("a", 1, 12, "a0").await;
    let running = world.start(WakeMode::Listen, Duration::from_millis(20));
    world.check_soon().await;
    // What it reads beside its transaction waits, once that has begun: with a lock that its own statement waits for.
    let (begins, holder) = (world.client().await, world.client().await);
    begins.batch_execute("begin; select from balances for update").await.unwrap();
    world.sql("select replay('main', 1)").await;
    world.processor_waits().await;
    holder.batch_execute("begin; lock token_events in access exclusive mode").await.unwrap();
    begins.batch_execute("commit").await.unwrap();
    let waits = "select pid from pg_stat_activity where datname = current_database() and state = 'idle in transaction'
        and application_name like 'ebbtide%'";
    let pid = wait_until("it reads inside a transaction", async || world.one(waits).await).await;
    let old =
        format!("select count(*) from pg_stat_activity where pid = {pid} and now() - xact_start > interval '12 s'");
    let still = format!("select count(*) from pg_stat_activity where pid = {pid} and xact_start is not null");
    wait_until("it has read for 12 s", async || {
        assert_eq!(world.one(&still).await.as_deref(), Some("1"), "the server has ended the transaction");
        (world.one(&old).await.as_deref() == Some("1")).then_some(())
    })
    .await;
    holder.batch_execute("commit").await.unwrap();
    wait_until("it is through", async || {
        (world.one("select count(*) from checkpoints where redo_from is null").await.as_deref() == Some("1"))
            .then_some(())
    })
    .await;
    world.check().await;
    let same = format!("select count(*) from pg_stat_activity where pid = {pid}");
    assert_eq!(world.one(&same).await.as_deref(), Some("1"), "on the same connection");
    running.stop().await;
}
