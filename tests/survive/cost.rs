//! What looking and applying cost: statements, counted on the wire, and connections, whatever the number of chains.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ebbtide::process::{Of, ProcessSettings, Watcher, run};
use ebbtide::store::{Store, StoreSettings, Wake, WakeMode};
use tokio_util::sync::CancellationToken;

use crate::support::check::{World, movement};
use crate::support::{FaultProxy, wait_until};

const CHAINS: u64 = 50;
/// What README says of the connections: a listener, one to look through, four pairs for balances, four for functions and four
/// for functions that follow the balances on their own way.
const MOST_CONNECTIONS: i64 = 26;

#[derive(Default)]
struct Looks(AtomicU64);

impl Watcher for Looks {
    fn looked(&self, _of: Of<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Statements among the messages from one count to another.
fn statements(proxy: &FaultProxy, from: u64, to: u64) -> Vec<String> {
    let sent = proxy.messages().into_iter().take(usize::try_from(to).unwrap()).skip(usize::try_from(from).unwrap());
    sent.filter(|message| ["Query", "Execute"].iter().any(|word| message.starts_with(word))).collect()
}

/// Until nothing was sent between two looks at the count.
async fn quiet(proxy: &FaultProxy) -> u64 {
    let mut before = proxy.count();
    let mut same = 0;
    wait_until("nothing more is sent", async || {
        let now = proxy.count();
        same = if now == before { same + 1 } else { 0 };
        before = now;
        (same >= 10).then_some(now)
    })
    .await
}

async fn connections(world: &World) -> i64 {
    let sql =
        "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'ebbtide'";
    world.db.query_one(sql, &[]).await.unwrap().get(0)
}

async fn put(world: &World, chain: &str, height: i64) {
    let movements: Vec<_> = (0..20)
        .map(|n| movement(&format!("gold - user{} 5", (height + n) % 30), usize::try_from(n).unwrap()))
        .collect();
    let sql = "select put_block($1, $2, $3, $4, now(), '[]', $5)";
    let (hash, parent) = (format!("a{height}"), format!("a{}", height - 1));
    world.db.query_one(sql, &[&chain, &height, &hash, &parent, &serde_json::Value::from(movements)]).await.unwrap();
}

async fn applied(world: &World, chain: &str, height: i64) {
    let sql =
        "select exists (select from checkpoints k join chains c using (chain_id) where c.name = $1 and k.height = $2)";
    wait_until(&format!("block {height} of {chain} is applied"), async || {
        world.db.query_one(sql, &[&chain, &height]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_chains_share_few_connections_and_a_block_wakes_its_chain_alone() {
    let world = World::new(64).await;
    world
        .sql(&format!("insert into chains (name, kind) select 'c' || n, 'other' from generate_series(2, {CHAINS}) n"))
        .await;
    for n in 2..=CHAINS {
        put(&world, &format!("c{n}"), 1).await;
    }
    for height in 1..=20 {
        put(&world, "main", height).await;
    }
    let proxy = FaultProxy::in_front_of(&world.url).await;
    let store = Store::open(&proxy.url(&world.url), StoreSettings::default()).unwrap();
    let (wake, stop, looks) =
        (Wake::start(&store, WakeMode::Listen), CancellationToken::new(), Arc::new(Looks::default()));
    let settings = ProcessSettings { poll_interval: Duration::from_hours(1), ..ProcessSettings::default() };
    let running = tokio::spawn(run(store, settings, wake, looks.clone(), stop.clone()));
    applied(&world, "main", 20).await;
    for n in 2..=CHAINS {
        applied(&world, &format!("c{n}"), 1).await;
    }
    let connections = connections(&world).await;
    println!("{CHAINS} chains: {connections} connections");
    assert!(connections <= MOST_CONNECTIONS, "{connections} connections");
    let mut most = 0;
    for height in 21..=25 {
        let from = quiet(&proxy).await;
        let looked = looks.0.load(Ordering::Relaxed);
        put(&world, "main", height).await;
        applied(&world, "main", height).await;
        let sent = statements(&proxy, from, quiet(&proxy).await);
        most = most.max(sent.len());
        // The look, the movements, the balances that are not known, and the block itself.
        assert!(sent.len() <= 4, "block {height}: {sent:?}");
        assert!(looks.0.load(Ordering::Relaxed) <= looked + 2, "other chains looked, too");
    }
    println!("a live block among {CHAINS} chains: at most {most} statements");
    stop.cancel();
    running.await.unwrap().unwrap();
    world.check().await;
}

/// Each chain's follower needs a replica of the balances on a session of its own: they take turns.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_of_fifty_chains_that_catch_up_take_turns_on_few_connections() {
    let world = World::new(64).await;
    world
        .sql(&format!("insert into chains (name, kind) select 'c' || n, 'other' from generate_series(2, {CHAINS}) n"))
        .await;
    let chains: Vec<String> = (1..=CHAINS).map(|n| if n == 1 { "main".to_owned() } else { format!("c{n}") }).collect();
    for chain in &chains {
        for height in 1..=5 {
            put(&world, chain, height).await;
        }
    }
    let running = world.start(WakeMode::Listen, Duration::from_hours(1));
    for chain in &chains {
        applied(&world, chain, 5).await;
    }
    world
        .sql(
            "create table public.held (chain_id bigint, height bigint, holders bigint not null, total numeric not null,
                primary key (chain_id, height));
             create function public.hold(bigint, bigint) returns void language sql as $$
                insert into held select $1, $2, count(*), sum(amount) from balances where chain_id = $1 and amount > 0 $$;
             select create_projection('held', 'public.hold(bigint,bigint)', '{public.held}', after => 'token_balances')",
        )
        .await;
    let mut most = 0;
    wait_until("every follower is in step", async || {
        most = most.max(connections(&world).await);
        let sql = "select count(*) from checkpoints where projection = 'held' and height = 5 and failed_reason is null";
        (world.one(sql).await.as_deref() == Some(&*CHAINS.to_string())).then_some(())
    })
    .await;
    println!("{CHAINS} followers on their own way: at most {most} connections");
    assert!(most <= MOST_CONNECTIONS, "{most} connections");
    // 20 users with 5 coins, and each block begins one user further on.
    let wrong =
        world.one("select count(*) from public.held where holders <> 19 + height or total <> 100 * height").await;
    assert_eq!(wrong.as_deref(), Some("0"));
    let replicas = "select count(*) from pg_class where relname = 'ebbtide_replica'";
    wait_until("who is in step keeps no replica", async || {
        (world.one(replicas).await.as_deref() == Some("0")).then_some(())
    })
    .await;
    running.stop().await;
}

#[tokio::test]
async fn an_idle_look_is_one_statement() {
    let world = World::new(64).await;
    world.branch("a", 1, 20, "a0").await;
    world.settle().await;
    let proxy = FaultProxy::in_front_of(&world.url).await;
    let store = Store::open(&proxy.url(&world.url), StoreSettings::default()).unwrap();
    let (wake, stop, looks) =
        (Wake::start(&store, WakeMode::Poll), CancellationToken::new(), Arc::new(Looks::default()));
    let settings = ProcessSettings { poll_interval: Duration::from_millis(10), ..ProcessSettings::default() };
    let running = tokio::spawn(run(store, settings, wake, looks.clone(), stop.clone()));
    wait_until("it is at rest", async || (looks.0.load(Ordering::Relaxed) >= 20).then_some(())).await;
    let (from, looked) = (proxy.count(), looks.0.load(Ordering::Relaxed));
    wait_until("a hundred looks", async || (looks.0.load(Ordering::Relaxed) >= looked + 100).then_some(())).await;
    let (to, looked) = (proxy.count(), looks.0.load(Ordering::Relaxed) - looked);
    let sent = statements(&proxy, from, to).len() as u64;
    println!("{looked} idle looks: {sent} statements, with those that ask which chains and projections there are");
    // The processor itself asks three things each time it looks for new chains and projections.
    assert!(sent <= 4 * (looked + 10), "{sent} statements for {looked} looks");
    stop.cancel();
    running.await.unwrap().unwrap();
}
