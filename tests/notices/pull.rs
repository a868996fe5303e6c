//! A sink that is pulled, from psql.

use super::consumer::Consumer;
use super::support::check::World;

#[tokio::test]
async fn a_block_is_told_once_in_order_and_acknowledged() {
    let world = World::new(64).await;
    let mut all = Consumer::of(&world, "all", ", start => 'beginning'").await;
    world.put(1, "a1", "root", &["gold - alice 5", "gold alice bob 2"]).await;
    world.settle().await;
    let notices = all.next(&world, 100).await;
    let kinds: Vec<String> = notices
        .iter()
        .map(|(_, body)| serde_json::from_str::<serde_json::Value>(body).unwrap()["type"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        kinds,
        [
            "ebbtide.block.applied",
            "ebbtide.transfer.applied",
            "ebbtide.transfer.applied",
            "ebbtide.balance.changed",
            "ebbtide.balance.changed"
        ]
    );
    assert!(all.next(&world, 100).await.is_empty(), "what is leased is given to nobody else");
    // The lease ends: the same again, byte for byte, from what was acknowledged.
    world.sql("select ack_notices('all', 2); update sinks set leased_until = clock_timestamp()").await;
    let again = all.next(&world, 100).await;
    assert_eq!(again, notices[2..]);
    for notice in &notices {
        all.hear(notice);
    }
    all.ack(&world).await;
    assert_eq!(all.catch_up(&world, 10).await, 0);
    all.check(&world, 0, 1).await;
    all.check_balances(&world).await;
    assert_eq!(world.one("select count(*) from sink_batches").await.as_deref(), Some("0"), "nothing is kept for it");
}

#[tokio::test]
async fn without_a_sink_nothing_is_written() {
    let world = World::new(64).await;
    world.branch("a", 1, 5, "root").await;
    world.settle().await;
    assert_eq!(world.one("select count(*) from outbox").await.as_deref(), Some("0"));
    let mut sink = Consumer::of(&world, "late", "").await;
    world.branch("a", 6, 7, "a5").await;
    world.settle().await;
    sink.catch_up(&world, 3).await;
    sink.check(&world, 6, 7).await;
    world.sql("select drop_sink('late')").await;
    world.branch("a", 8, 9, "a7").await;
    world.settle().await;
    assert_eq!(world.one("select max(height) from outbox").await.as_deref(), Some("7"), "nobody wants block 8");
    assert_eq!(world.one("select tells from checkpoints").await.as_deref(), Some("0"));
}

#[tokio::test]
async fn a_live_sink_begins_once_the_chain_is_caught_up_with() {
    let world = World::new(2).await;
    let mut live = Consumer::of(&world, "live", "").await;
    // The source is far ahead: this is the first catching up.
    world.branch("a", 1, 20, "root").await;
    world.sql("update chains set head_height = 1000").await;
    world.settle().await;
    assert_eq!(live.catch_up(&world, 100).await, 0);
    world.sql("update chains set head_height = 20").await;
    world.settle().await;
    world.branch("a", 21, 23, "a20").await;
    world.settle().await;
    live.catch_up(&world, 100).await;
    live.check(&world, 21, 23).await;
    // From then on it is told everything, however far behind.
    world.branch("a", 24, 60, "a23").await;
    world.sql("update chains set head_height = 1000, final_height = 58").await;
    world.settle().await;
    live.catch_up(&world, 7).await;
    live.check(&world, 21, 60).await;
}

#[tokio::test]
async fn a_sink_is_told_what_it_wants() {
    let world = World::new(64).await;
    let wanted = ", start => 'beginning', types => '{ebbtide.transfer.applied}', tokens => '{gold}', addresses => '{bob}', key => 'token'";
    let mut few = Consumer::of(&world, "few", wanted).await;
    let movements = ["gold - alice 5", "gold alice bob 2", "tin - bob 9", "gold bob alice 1"];
    world.put(1, "a1", "root", &movements).await;
    world.settle().await;
    let notices = few.next(&world, 100).await;
    assert_eq!(notices.len(), 2, "{notices:?}");
    for notice in &notices {
        assert!(notice.1.contains(r#""partitionkey": "gold""#) && notice.1.contains("bob"), "{}", notice.1);
        few.hear(notice);
    }
    few.ack(&world).await;
    // And what takes them back comes along.
    world.put(1, "b1", "root", &[]).await;
    world.settle().await;
    few.catch_up(&world, 1).await;
    assert_eq!(few.counts["ebbtide.transfer.retracted"], 2);
    assert!(few.transfers.is_empty());
}

#[tokio::test]
async fn what_is_wrong_is_refused_by_name() {
    let world = World::new(64).await;
    world.sql("select create_sink('all')").await;
    for (sql, constraint) in [
        ("select create_sink('all')", "sinks_pkey"),
        ("select create_sink('a b')", "sinks_name_is_1_to_48_letters_digits_dash_underscore"),
        ("select create_sink('x', types => '{ebbtide.block}')", "sinks_want_types_that_there_are"),
        ("select create_sink('x', chains => '{nowhere}')", "unknown_chain"),
        ("select create_sink('x', key => 'colour')", "sinks_key_is_account_token_or_chain"),
        ("select create_sink('x', confirmations => -1)", "sinks_confirmations_are_0_to_1000000"),
        ("select create_sink('x', start => 'tomorrow')", "sinks_start_is_known"),
        ("select create_sink('x', tokens => '{}')", "sinks_want_something"),
        ("select create_sink('x', types => '{}')", "sinks_want_something"),
        ("select pause_sink('nobody')", "unknown_sink"),
        ("select * from next_notices('nobody')", "unknown_sink"),
        ("select * from next_notices('all', 0)", "next_notices_gives_1_to_10000"),
        ("select * from next_notices('all', lease => '-1 s')", "leases_last_1_second_to_1_day"),
        ("select ack_notices('all', 7)", "sinks_acknowledge_what_they_were_given"),
        ("select ack_notices('nobody', 0)", "unknown_sink"),
        ("select drop_sink('nobody')", "unknown_sink"),
    ] {
        let error = world.db.batch_execute(sql).await.expect_err(sql);
        assert_eq!(error.as_db_error().unwrap().constraint(), Some(constraint), "{sql}: {error:?}");
    }
}

/// A consumer that crashed and asks again has its notices once the lease ends, however often it asks meanwhile.
#[tokio::test]
async fn asking_again_does_not_prolong_a_lease() {
    let world = World::new(64).await;
    let all = Consumer::of(&world, "all", ", start => 'beginning'").await;
    world.put(1, "a1", "root", &["gold - alice 5"]).await;
    world.settle().await;
    let first = all.next(&world, 100).await;
    let ends = "select leased_until from sinks";
    let until = world.one(ends).await;
    assert!(all.next(&world, 100).await.is_empty());
    assert_eq!(world.one(ends).await, until);
    world.sql("update sinks set leased_until = clock_timestamp()").await;
    assert_eq!(all.next(&world, 100).await, first);
}

#[tokio::test]
async fn a_chain_that_is_made_again_has_other_ids_and_a_paused_sink_misses_nothing() {
    let world = World::new(64).await;
    let mut all = Consumer::of(&world, "all", ", start => 'beginning'").await;
    world.put(1, "a1", "root", &["gold - alice 5"]).await;
    world.settle().await;
    all.catch_up(&world, 100).await;
    world
        .sql("select drop_chain('main'); insert into chains (name, kind, finality_depth) values ('main', 'other', 64)")
        .await;
    world.sql("select pause_sink('all')").await;
    world.put(1, "a1", "root", &["gold - alice 7"]).await;
    world.settle().await;
    assert!(all.next(&world, 100).await.is_empty());
    world.sql("select resume_sink('all')").await;
    // Nothing was taken back, and `hear` knows every id.
    all.blocks.clear();
    all.transfers.clear();
    all.catch_up(&world, 100).await;
    all.check(&world, 0, 1).await;
    all.check_balances(&world).await;
}

/// A sink and a chain that are made at once see each other.
#[tokio::test]
async fn a_sink_that_is_made_beside_a_chain_hears_of_it() {
    let world = World::new(64).await;
    world.try_process().await.unwrap();
    let other = world.client().await;
    other.batch_execute("begin; select create_sink('all', start => 'beginning')").await.unwrap();
    let making = "insert into chains (name, kind) values ('late', 'other');
        insert into checkpoints (chain_id, projection) select chain_id, 'token_balances' from chains where name = 'late'";
    let made = async {
        world.sql(making).await;
    };
    let committed = async {
        let waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and wait_event = 'advisory'
            and datname = current_database()";
        let watch = world.client().await;
        super::support::wait_until("the chain's checkpoint waits", async || {
            (watch.query_one(waits, &[]).await.unwrap().get::<_, i64>(0) > 0).then_some(())
        })
        .await;
        other.batch_execute("commit").await.unwrap();
    };
    tokio::join!(made, committed);
    assert_eq!(world.one("select count(*) from sink_streams where chain_id = 2").await.as_deref(), Some("1"));
}

/// The same bytes, whatever the settings of the session that asks.
#[tokio::test]
async fn a_notice_does_not_depend_on_the_session() {
    let world = World::new(64).await;
    let here = Consumer::of(&world, "here", ", start => 'beginning'").await;
    let there = Consumer::of(&world, "there", ", start => 'beginning'").await;
    world.put(1, "a1", "root", &["gold - alice 5"]).await;
    world.settle().await;
    let one = here.next(&world, 100).await;
    world.sql("set timezone = 'Asia/Tokyo'; set datestyle = 'German, DMY'; set quote_all_identifiers = on").await;
    assert_eq!(there.next(&world, 100).await, one);
}
