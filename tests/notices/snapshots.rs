//! A sink that begins with all that is there, as of one block, and goes on from the next one: no gap, no overlap.

use super::consumer::Consumer;
use super::support::check::World;

#[tokio::test]
async fn all_that_is_there_and_then_the_changes() {
    let world = World::new(64).await;
    world.sql("insert into opening_balances select chain_id, 'gold', 'early', 7 from chains").await;
    // More than one part holds.
    let many: Vec<String> = (0..1500).map(|n| format!("tin - holder{n} {}", n + 1)).collect();
    world.put(1, "a1", "root", &many.iter().map(String::as_str).collect::<Vec<_>>()).await;
    world.branch("a", 2, 10, "a1").await;
    world.settle().await;
    let mut sink = Consumer::of(&world, "late", ", start => 'snapshot'").await;
    // Told between the making of the sink and its first notice: in the snapshot, and so not told again.
    world.branch("a", 11, 12, "a10").await;
    world.settle().await;
    for notice in sink.next(&world, 700).await {
        assert!(notice.1.contains(r#""cause": "snapshot""#) && notice.1.contains(r#""hash": "a12""#), "{}", notice.1);
        sink.hear(&notice);
    }
    sink.ack(&world).await;
    // In the middle of it, the block that it is of is replaced.
    world.branch("b", 9, 13, "a8").await;
    world.settle().await;
    sink.catch_up(&world, 333).await;
    sink.check(&world, 9, 13).await;
    sink.check_balances(&world).await;
    assert!(!sink.counts.contains_key("ebbtide.block.retracted"), "it never heard of those");
    assert_eq!(world.one("select count(*) from sink_snapshots").await.as_deref(), Some("0"));
    // It lost its data: the same again, whatever it was not given yet.
    world.branch("c", 12, 15, "b11").await;
    world.settle().await;
    sink.balances.clear();
    world.sql("select snapshot_sink('late')").await;
    sink.catch_up(&world, 1000).await;
    sink.check_balances(&world).await;
}

#[tokio::test]
async fn what_a_sink_wants_of_a_snapshot() {
    let world = World::new(64).await;
    world.put(1, "a1", "root", &["gold - alice 5", "gold - bob 6", "tin - alice 7"]).await;
    world.settle().await;
    let sink = Consumer::of(&world, "few", ", start => 'snapshot', tokens => '{gold}', addresses => '{alice}'").await;
    let notices = sink.next(&world, 10).await;
    assert_eq!(notices.len(), 1, "{notices:?}");
    assert!(notices[0].1.contains(r#""amount": "5""#));
    let none = Consumer::of(&world, "none", ", start => 'snapshot', types => '{ebbtide.block.applied}'").await;
    assert!(none.next(&world, 10).await.is_empty());
    // The first block's notices were not kept.
    let error = world.db.batch_execute("select create_sink('x', start => 'beginning')").await.unwrap_err();
    assert_eq!(error.as_db_error().unwrap().constraint(), Some("sinks_begin_before_the_first_block"));
}
