//! What it costs must not grow with the chain.

use std::time::Duration;

use crate::support::check::World;
use crate::support::wait_within;
use ebbtide::projections::token_balances::History;

/// Blocks `from..=to` named `{tag}{height}` with `events` movements each among `accounts`, by two statements.
async fn bulk(world: &World, tag: &str, (from, to): (i64, i64), parent: &str, events: i64, accounts: i64) {
    world
        .sql(&format!(
            "begin; set local ebbtide.bulk = 'on';
             insert into token_events (chain_id, height, tx_index, event_index, token, from_address, to_address, amount)
             select chain_id, h, i, 0, 'gold', 'acc' || (h * 31 + i * 17) % {accounts}, 'acc' || (h * 13 + i * 7) % {accounts}, h + i
             from chains, generate_series({from}::bigint, {to}) h, generate_series(1, {events}) i;
             insert into blocks (chain_id, height, hash, parent_hash)
             select chain_id, h, '{tag}' || h, case when h = {from} then '{parent}' else '{tag}' || (h - 1) end
             from chains, generate_series({from}::bigint, {to}) h;
             commit"
        ))
        .await;
}

/// Runs the processor once and returns how many tuples all its statements read.
async fn tuples_read(world: &World) -> i64 {
    let total = "select sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0))::bigint
                 from pg_stat_user_tables where schemaname = 'ebbtide'";
    let before: i64 = settled_total(world, total).await;
    world.try_process().await.unwrap();
    settled_total(world, total).await - before
}

/// The statistics of a backend are whole once it has ended.
async fn settled_total(world: &World, total: &str) -> i64 {
    wait_within(Duration::from_secs(60), "the processor's backends have ended", async || {
        let running = "select count(*) from pg_stat_activity where datname = current_database() and application_name like 'ebbtide%'";
        (world.one(running).await.unwrap() == "0").then_some(())
    })
    .await;
    world.sql("select pg_stat_force_next_flush()").await;
    world.sql("select 1").await;
    world.one(total).await.unwrap().parse().unwrap()
}

async fn apply_and_undo(events: i64) -> (i64, i64) {
    let mut world = World::new(20).await;
    world.sql("set enable_seqscan = off; alter table balances set (autovacuum_enabled = off)").await;
    world.settings.batch = 500;
    let blocks = (events / 100).max(1);
    bulk(&world, "a", (1, blocks), "a0", 100, 5000).await;
    world.sql(&format!("analyze; update chains set head_height = {blocks}, final_height = {blocks} - 5")).await;
    world.try_process().await.unwrap();
    world.sql("analyze").await;
    // The counters of the steady state: nothing is left to do.
    let idle = tuples_read(&world).await;
    bulk(&world, "a", (blocks + 1, blocks + 1), &format!("a{blocks}"), 100, 5000).await;
    let apply = tuples_read(&world).await;
    world.sql(&format!("select drop_blocks('main', {})", blocks + 1)).await;
    let undo = tuples_read(&world).await;
    world.check().await;
    println!("{events} events stored: a look reads {idle} tuples, one apply {apply}, one undo {undo}");
    (apply, undo)
}

/// What pruning a window of history reads, after 16 more blocks on a chain with so many accounts.
async fn prune(accounts: i64) -> i64 {
    let mut world = World::new(20).await;
    world.sql("set enable_seqscan = off").await;
    world.settings.batch = 500;
    bulk(&world, "a", (1, accounts / 100), "a0", 100, accounts).await;
    world.sql(&format!("analyze; update chains set head_height = {0}, final_height = {0}", accounts / 100)).await;
    world.try_process().await.unwrap();
    world.settings.token_balances.history = History::Window;
    // The first time it goes through all of the history that was kept.
    world.try_process().await.unwrap();
    let (from, to) = (accounts / 100 + 1, accounts / 100 + 16);
    bulk(&world, "a", (from, to), &format!("a{}", from - 1), 10, 7).await;
    world.try_process().await.unwrap();
    world.sql(&format!("update chains set head_height = {to}, final_height = {to}")).await;
    let read = tuples_read(&world).await;
    world.check().await;
    assert_eq!(
        world
            .one("select max(n) from (select count(*) as n from balance_history group by balance_id) t")
            .await
            .unwrap(),
        "1"
    );
    assert_eq!(world.one("select history_from from checkpoints").await.unwrap(), to.to_string());
    println!("{accounts} accounts: pruning the history of 16 blocks reads {read} tuples");
    read
}

#[tokio::test]
async fn pruning_the_history_reads_as_much_with_fifty_thousand_accounts_as_with_a_thousand() {
    let (small, large) = (prune(1_000).await, prune(50_000).await);
    assert!(large < 2 * small, "{small} and {large}");
}

#[tokio::test]
async fn an_apply_and_an_undo_read_as_much_after_a_million_events_as_after_a_thousand() {
    let (small_apply, small_undo) = apply_and_undo(1_000).await;
    let (large_apply, large_undo) = apply_and_undo(1_000_000).await;
    assert!(large_apply < 2 * small_apply, "apply: {small_apply} and {large_apply}");
    assert!(large_undo < 2 * small_undo, "undo: {small_undo} and {large_undo}");
}

#[tokio::test]
async fn the_journal_of_applied_blocks_stays_short_over_a_hundred_thousand_blocks() {
    for depth in [3, 64] {
        let mut world = World::new(depth).await;
        world.settings.batch = 1000;
        let mut most = 0;
        let (mut tip, mut transactions) = (0, 0);
        while tip < 100_000 {
            let to = tip + 10_000;
            bulk(&world, "a", (tip + 1, to), &format!("a{tip}"), 1, 50).await;
            world.sql(&format!("update chains set head_height = {to}, final_height = {to} - {depth}")).await;
            tip = to;
            world.try_process().await.unwrap();
            most = most.max(world.one("select count(*) from applied_blocks").await.unwrap().parse::<i64>().unwrap());
            // Whatever was in the journal before, final blocks are merged: one transaction for each thousand, and one for
            // each block that is not final.
            let seq: i64 = world.one("select seq from checkpoints").await.unwrap().parse().unwrap();
            assert!(seq - transactions <= 10 + depth + 5, "{} transactions for 10,000 blocks", seq - transactions);
            transactions = seq;
        }
        println!("finality depth {depth}: at most {most} rows in applied_blocks over {tip} blocks");
        assert!(most <= depth + 32, "{most}");
        world.check().await;
    }
}

#[tokio::test]
async fn blocks_that_become_final_while_it_catches_up_are_merged_too() {
    let world = World::new(64).await;
    bulk(&world, "a", (1, 3_000), "a0", 1, 50).await;
    world.sql("update chains set head_height = 3000, final_height = 1000").await;
    // The syncer goes on meanwhile: what it says is there as soon as the first block is applied.
    world
        .sql(
            "create function public.go_on() returns trigger language plpgsql as $$
             begin update ebbtide.chains set final_height = 2936; return null; end $$;
             create trigger go_on after update of height on checkpoints for each row
             when (new.height between 1 and 999) execute function public.go_on()",
        )
        .await;
    world.try_process().await.unwrap();
    let seq: i64 = world.one("select seq from checkpoints").await.unwrap().parse().unwrap();
    println!("{seq} transactions for 3,000 blocks, 64 of them not final");
    assert!((65..100).contains(&seq), "{seq}");
    world.check().await;
}

#[tokio::test]
async fn the_journal_stays_short_on_a_chain_that_no_source_follows() {
    let world = World::new(3).await;
    bulk(&world, "a", (1, 9_000), "a0", 1, 50).await;
    let watching = world.client().await;
    let watch = tokio::spawn(async move {
        let (mut most, mut at) = (0_i64, 0_i64);
        while at < 9_000 {
            let row = watching
                .query_one("select (select count(*) from applied_blocks), (select max(height) from checkpoints)", &[])
                .await
                .unwrap();
            (most, at) = (most.max(row.get(0)), row.get::<_, Option<i64>>(1).unwrap_or(0));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        most
    });
    world.try_process().await.unwrap();
    let most = watch.await.unwrap();
    println!("no source, finality depth 3: at most {most} rows in applied_blocks over 9,000 blocks");
    assert!((100..8_500).contains(&most), "{most}");
    world.check().await;
}
