//! No block goes untold that a sink was promised, whoever applies it.

use std::time::Duration;

use ebbtide::store::WakeMode;

use super::consumer::Consumer;
use super::support::check::World;

/// Sinks come and go while blocks are applied, sent ahead on what the checkpoint asked for before.
#[tokio::test]
async fn sinks_that_come_and_go_under_a_running_processor() {
    let world = World::new(64).await;
    let running = world.start(WakeMode::Listen, Duration::from_millis(20));
    let mut parent = "root".to_owned();
    let mut height = 0;
    for round in 0..12 {
        let begun = height;
        let mut sink = Consumer::of(&world, &format!("s{round}"), "").await;
        let mut after = 0;
        // While it comes, and for some blocks after it has begun.
        while after < 3 {
            world.branch("a", height + 1, height + 5, &parent).await;
            height += 5;
            parent = format!("a{height}");
            after += i32::from(world.one("select tells from checkpoints").await.is_some_and(|tells| tells != "0"));
        }
        world.check_soon().await;
        sink.catch_up(&world, 50).await;
        let first = sink.blocks.first().map(|(height, _)| *height).expect("it was told of some");
        assert!(first > begun);
        sink.check(&world, first, height).await;
        world.sql(&format!("select drop_sink('s{round}')")).await;
    }
    running.stop().await;
}

/// What is final and was promised goes; nothing before that.
#[tokio::test]
async fn the_outbox_keeps_what_is_not_final_or_not_promised() {
    let world = World::new(2).await;
    let mut all = Consumer::of(&world, "all", ", start => 'beginning'").await;
    world.branch("a", 1, 200, "root").await;
    world.settle().await;
    let kept = world.one("select count(*) from outbox").await.unwrap();
    assert_eq!(kept, "200", "nobody has had them");
    all.catch_up(&world, 1000).await;
    world.branch("a", 201, 400, "a200").await;
    world.settle().await;
    world.settle().await;
    let lowest: i64 = world.one("select min(height) from outbox").await.unwrap().parse().unwrap();
    assert_eq!(lowest, 201);
    all.catch_up(&world, 1000).await;
    all.check(&world, 0, 400).await;
    all.check_balances(&world).await;
}
