//! How the processor learns that there is something to do, and what it does while Postgres is away.

use std::time::Duration;

use ebbtide::store::{Store, StoreSettings, WakeMode};

use crate::support::check::World;
use crate::support::{Ebbtide, OwnPg, Pg, wait_until};

const NEVER: Duration = Duration::from_secs(3600);
const OFTEN: Duration = Duration::from_millis(50);

async fn applied_to(world: &World, height: i64) {
    wait_until(&format!("block {height} is applied"), async || {
        let at = world.one("select max(through_height) from checkpoints").await;
        (at == Some(height.to_string())).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_bell_alone_wakes_for_all_there_is_to_hear() {
    let world = World::new(64).await;
    let args = ["process", "--database-url", &world.url];
    let _process = Ebbtide::spawn(&args, &[("EBBTIDE_POLL_INTERVAL_MS", "3600000")]);
    world.branch("a", 1, 5, "a0").await;
    applied_to(&world, 5).await;
    world.branch("b", 4, 7, "a3").await;
    applied_to(&world, 7).await;
    world.sql("select drop_blocks('main', 7)").await;
    applied_to(&world, 6).await;
    // An edit of events rings through the revision it raises.
    world.sql("update token_events set amount = amount + 1 where height = 2").await;
    world.check_soon().await;
    // A pause holds it, and its end is heard.
    world.sql("select pause('main', null, 8)").await;
    world.branch("b", 7, 11, "b6").await;
    applied_to(&world, 8).await;
    world.sql("select pause('main', null, 10)").await;
    applied_to(&world, 10).await;
    world.sql("select resume('main', null)").await;
    applied_to(&world, 11).await;
    // Replay.
    let seq = world.one("select seq from checkpoints").await;
    world.sql("select replay('main', 3)").await;
    wait_until("the replay is done", async || {
        let done = world.one("select seq from checkpoints where redo_from is null").await;
        (done.is_some() && done != seq).then_some(())
    })
    .await;
    // A projection that was halted and fixed.
    world.sql("update checkpoints set halted_reason = 'by the test'").await;
    world.branch("b", 12, 12, "b11").await;
    world.sql("select resume('main', 'token_balances')").await;
    applied_to(&world, 12).await;
    // Gaps that are declared empty, another start, opening balances.
    world.sql("update chains set complete_to = 20").await;
    applied_to(&world, 20).await;
    world.sql("update chains set start_height = 6, complete_to = null").await;
    world.check_soon().await;
    world.sql("insert into opening_balances select chain_id, 'gold', 'old', 5 from chains").await;
    world.check_soon().await;
    // A chain that was not there.
    world.sql("insert into chains (name, kind) values ('second', 'other')").await;
    world.sql("select put_block('second', 100, 'x', 'y')").await;
    applied_to(&world, 100).await;
    world.check_soon().await;
}

#[tokio::test]
async fn a_listener_that_was_cut_off_hears_again_and_misses_nothing() {
    let world = World::new(64).await;
    let running = world.start(WakeMode::Listen, NEVER);
    let mut height = 1;
    world.branch("a", 1, 1, "a0").await;
    applied_to(&world, 1).await;
    for round in 0..5 {
        let cut = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                   where datname = current_database() and application_name like 'ebbtide%' and query ilike '%listen%'";
        let cut_off = world.one(cut).await.unwrap();
        println!("round {round}: {cut_off} listeners cut off");
        // Said while nobody listens, and once more when someone may.
        height += 1;
        world.branch("a", height, height, &format!("a{}", height - 1)).await;
        applied_to(&world, height).await;
        wait_until("someone listens again", async || {
            let listening = "select count(*) from pg_stat_activity where datname = current_database()
                             and application_name like 'ebbtide%' and query ilike '%listen%' and state = 'idle'";
            (world.one(listening).await.unwrap() == "1").then_some(())
        })
        .await;
        height += 1;
        world.branch("a", height, height, &format!("a{}", height - 1)).await;
        applied_to(&world, height).await;
    }
    // Every connection at once.
    world
        .sql(
            "select pg_terminate_backend(pid) from pg_stat_activity
             where datname = current_database() and application_name like 'ebbtide%'",
        )
        .await;
    world.branch("b", 3, 20, "a2").await;
    world.check_soon().await;
    running.stop().await;
}

#[tokio::test]
async fn polling_alone_catches_up_where_nothing_rings() {
    for mode in [WakeMode::Poll, WakeMode::Listen] {
        let world = World::new(64).await;
        world.sql("alter table blocks disable trigger written; alter table blocks disable trigger rewritten").await;
        let running = world.start(mode, OFTEN);
        world.branch("a", 1, 20, "a0").await;
        applied_to(&world, 20).await;
        world.branch("b", 15, 22, "a14").await;
        world.check_soon().await;
        running.stop().await;
    }
}

/// A server of the test's own with a chain in it.
async fn own() -> (OwnPg, World) {
    let server = OwnPg::start().await;
    Store::open(&server.url(), StoreSettings::default()).unwrap().migrate().await.unwrap();
    let world = World::at(None, server.url(), 64).await;
    (server, world)
}

/// The same chain over a new connection: the old one went with the server.
async fn again(world: World) -> World {
    let db = world.client().await;
    World { db, ..world }
}

#[tokio::test]
async fn a_postgres_that_stops_or_is_killed_and_comes_back_is_waited_for() {
    let (mut server, mut world) = own().await;
    let running = world.start(WakeMode::Listen, Duration::from_millis(200));
    let mut tip = 0;
    for round in 0..4 {
        world.branch("a", tip + 1, tip + 40, &format!("{}{tip}", "a")).await;
        tip += 40;
        wait_until("it is at work", async || {
            let at = world.one("select through_height from checkpoints").await?.parse::<i64>().ok()?;
            (at > tip - 40).then_some(())
        })
        .await;
        if round % 2 == 0 {
            server.stop().await;
        } else {
            server.kill();
        }
        server.start_again().await;
        world = again(world).await;
        world.check_soon().await;
        // A reorg right after it came back, its undo having been lost or kept as a whole.
        world.branch("a", tip - 10, tip, &format!("a{}", tip - 11)).await;
        world.check_soon().await;
    }
    running.stop().await;
}

#[tokio::test]
async fn a_postgres_frozen_for_twenty_seconds_is_waited_for() {
    let (server, world) = own().await;
    let running = world.start(WakeMode::Listen, Duration::from_millis(200));
    world.branch("a", 1, 60, "a0").await;
    server.freeze();
    // Longer than every keepalive and connection timeout of ours.
    tokio::time::sleep(Duration::from_secs(20)).await;
    server.thaw();
    world.branch("b", 50, 70, "a49").await;
    world.check_soon().await;
    running.stop().await;
}

#[tokio::test]
async fn two_syncers_on_one_chain_write_it_once() {
    let pg = Pg::new().await;
    let sync = || {
        let args = [
            "sync",
            "--database-url",
            &pg.url,
            "--source",
            "devnet",
            "--last-height",
            "60",
            "--block-interval-ms",
            "30",
            "--finality-depth",
            "20",
        ];
        Ebbtide::spawn(&args, &[])
    };
    let _process = Ebbtide::spawn(&["process", "--database-url", &pg.url], &[]);
    let mut first = sync();
    let _second = sync();
    let db = pg.client().await;
    let tip =
        async || -> i64 { db.query_one("select coalesce(max(height), 0) from blocks", &[]).await.unwrap().get(0) };
    wait_until("a third of it is there", async || (tip().await >= 20).then_some(())).await;
    // The one that had the chain is gone: the other one goes on.
    first.kill();
    let _third = sync();
    wait_until("all of it is there", async || (tip().await >= 60).then_some(())).await;
    crate::support::check::settled(&db, "main", crate::support::PATIENCE).await;
    let reorgs: i64 = db.query_one("select count(*) from reorgs", &[]).await.unwrap().get(0);
    println!("{reorgs} reorgs on the way");
}
