//! What was told is taken back when it stops being true: just that, and nothing else.

use super::consumer::Consumer;
use super::support::check::World;

#[tokio::test]
async fn there_and_back_again() {
    let world = World::new(64).await;
    let mut all = Consumer::of(&world, "all", ", start => 'beginning'").await;
    world.branch("a", 1, 6, "root").await;
    world.settle().await;
    all.catch_up(&world, 4).await;
    // A to B to A: the second time, its blocks are told under other ids.
    for (tag, from, to) in [("b", 4, 7), ("a", 4, 6), ("b", 4, 8)] {
        world.branch(tag, from, to, "a3").await;
        world.settle().await;
        all.catch_up(&world, 4).await;
        all.check(&world, 0, to).await;
        all.check_balances(&world).await;
    }
    assert_eq!(all.counts["ebbtide.block.retracted"], 3 + 4 + 3);
    // To before everything.
    world.branch("c", 1, 2, "root").await;
    world.settle().await;
    all.catch_up(&world, 1000).await;
    all.check(&world, 0, 2).await;
    all.check_balances(&world).await;
    world.sql("select drop_blocks('main', 0)").await;
    world.settle().await;
    all.catch_up(&world, 1000).await;
    all.check(&world, 0, 0).await;
    all.check_balances(&world).await;
    assert!(all.balances.is_empty());
}

#[tokio::test]
async fn what_was_said_is_taken_back_whatever_was_edited_since() {
    let world = World::new(64).await;
    let mut all = Consumer::of(&world, "all", ", start => 'beginning'").await;
    world.put(1, "a1", "root", &["gold - alice 5"]).await;
    world.settle().await;
    all.catch_up(&world, 100).await;
    world.sql("update token_events set amount = 7; update blocks set time = '2001-01-01'").await;
    world.settle().await;
    // `hear` compares what is taken back with what was said.
    all.catch_up(&world, 100).await;
    all.check(&world, 0, 1).await;
    all.check_balances(&world).await;
    assert_eq!(all.counts["ebbtide.transfer.retracted"], 1);
}

#[tokio::test]
async fn a_sink_that_began_later_hears_of_balances_alone() {
    let world = World::new(64).await;
    world.branch("a", 1, 5, "root").await;
    world.settle().await;
    let mut late = Consumer::of(&world, "late", "").await;
    world.branch("a", 6, 7, "a5").await;
    world.settle().await;
    late.catch_up(&world, 100).await;
    world.branch("b", 4, 6, "a3").await;
    world.settle().await;
    late.catch_up(&world, 100).await;
    assert_eq!(late.counts["ebbtide.block.retracted"], 2, "blocks 4 and 5 it was never told of");
    late.check(&world, 4, 6).await;
    // Whatever it holds is as Postgres has it.
    for ((token, address), amount) in &late.balances {
        assert_eq!(world.balance(token, address).await.as_ref(), Some(amount), "{token} of {address}");
    }
}

#[tokio::test]
async fn with_confirmations_only_what_stood_long_enough_is_told() {
    let world = World::new(64).await;
    let mut sure = Consumer::of(&world, "sure", ", start => 'beginning', confirmations => 2").await;
    world.branch("a", 1, 6, "root").await;
    world.settle().await;
    sure.catch_up(&world, 3).await;
    sure.check(&world, 0, 4).await;
    // Two blocks that it was not told of are replaced: it hears nothing of that.
    let heard = sure.position;
    world.branch("b", 5, 6, "a4").await;
    world.settle().await;
    assert_eq!(sure.catch_up(&world, 3).await, 0);
    world.branch("b", 7, 8, "b6").await;
    world.settle().await;
    sure.catch_up(&world, 3).await;
    assert!(sure.position > heard);
    sure.check(&world, 0, 6).await;
    assert!(!sure.counts.contains_key("ebbtide.block.retracted"));
    // The chain gets shorter: what was told stays told.
    world.sql("select drop_blocks('main', 7)").await;
    world.settle().await;
    sure.catch_up(&world, 3).await;
    sure.check(&world, 0, 6).await;
    assert!(!sure.counts.contains_key("ebbtide.block.retracted"));
    // What it was told is replaced after all.
    world.branch("c", 4, 7, "a3").await;
    world.settle().await;
    sure.catch_up(&world, 3).await;
    sure.check(&world, 0, 5).await;
    assert_eq!(sure.counts["ebbtide.block.retracted"], 3);
}

#[tokio::test]
async fn what_was_taken_back_unsent_is_skipped_where_the_sink_wants_it() {
    let world = World::new(64).await;
    let mut calm = Consumer::of(&world, "calm", ", start => 'beginning', skip_retracted => true").await;
    let mut all = Consumer::of(&world, "all", ", start => 'beginning'").await;
    world.branch("a", 1, 4, "root").await;
    world.settle().await;
    // In the middle of block 3: it is told whole, and taken back.
    let mut in_hand = Vec::new();
    while calm.blocks.last().is_none_or(|(height, _)| *height < 3) {
        in_hand = calm.next(&world, 1).await;
        calm.hear(&in_hand[0]);
        calm.ack(&world).await;
    }
    assert!(in_hand[0].1.contains("ebbtide.block.applied"));
    world.branch("b", 2, 5, "a1").await;
    world.settle().await;
    calm.catch_up(&world, 2).await;
    all.catch_up(&world, 100).await;
    for consumer in [&calm, &all] {
        consumer.check(&world, 0, 5).await;
        consumer.check_balances(&world).await;
    }
    assert_eq!(calm.counts["ebbtide.block.retracted"], 2, "of blocks 2 and 3; block 4 was never told");
    assert_eq!(all.counts["ebbtide.block.retracted"], 3);
    assert_eq!(
        world.one("select count(*) from sink_skips").await.as_deref(),
        Some("0"),
        "it is not remembered for ever"
    );
}

/// Final blocks that change after all, and opening balances: of balances, what differs is told.
#[tokio::test]
async fn a_rebuild_is_told_once_with_the_balances_that_differ() {
    let world = World::new(2).await;
    world.sql("insert into opening_balances select chain_id, 'gold', 'early', 7 from chains").await;
    let mut all = Consumer::of(&world, "all", ", start => 'beginning'").await;
    world.branch("a", 1, 12, "root").await;
    world.sql("update chains set head_height = 12, final_height = 8").await;
    world.settle().await;
    all.catch_up(&world, 100).await;
    all.check(&world, 0, 12).await;
    all.check_balances(&world).await;
    let told = all.counts["ebbtide.balance.changed"];
    world.sql("update token_events set amount = amount + 1 where height = 3 and event_index = 0").await;
    world.settle().await;
    all.catch_up(&world, 100).await;
    all.check_balances(&world).await;
    assert_eq!(all.counts["ebbtide.projection.rebuilt"], 1);
    assert!(told + 20 > all.counts["ebbtide.balance.changed"], "{:?}", all.counts);
    // A replay from below the final height, and one that changes nothing.
    for from in [2, 11] {
        world.sql(&format!("select replay('main', {from})")).await;
        world.settle().await;
        all.catch_up(&world, 100).await;
        all.check_balances(&world).await;
    }
    assert_eq!(all.counts["ebbtide.projection.rebuilt"], 2);
    world.branch("b", 11, 13, "a10").await;
    world.settle().await;
    all.catch_up(&world, 100).await;
    all.check_balances(&world).await;
    world.sql("delete from opening_balances").await;
    world.settle().await;
    all.catch_up(&world, 100).await;
    all.check_balances(&world).await;
}
