//! Random reorganisations, and consumers of every kind that must hold what Postgres holds at every quiet point.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::consumer::Consumer;
use super::support::check::World;

const SEEDS: u64 = 6;
const STEPS: usize = 25;

#[tokio::test]
async fn consumers_fold_what_postgres_holds() {
    let mut counts = std::collections::BTreeMap::<String, usize>::new();
    for seed in 0..SEEDS {
        let world = World::new(64).await;
        let mut rng = StdRng::seed_from_u64(seed);
        let mut consumers = Vec::new();
        for (sink, settings) in [
            ("all", ""),
            ("calm", ", skip_retracted => true"),
            ("sure", ", confirmations => 3"),
            ("final", ", final_only => true"),
        ] {
            let settings = format!(", start => 'beginning'{settings}");
            consumers.push(Consumer::of(&world, sink, &settings).await);
        }
        let mut chain: Vec<String> = vec!["root".to_owned()];
        for step in 0..STEPS {
            for round in 0..rng.random_range(1..4) {
                // Back to somewhere, never below what is final, and on from there.
                let finality: usize =
                    world.one("select coalesce(final_height, 0) from chains").await.unwrap().parse().unwrap();
                let back = rng.random_range(0..4).min(chain.len() - 1 - finality.min(chain.len() - 1));
                chain.truncate(chain.len() - back);
                let from = chain.len() as i64;
                let to = from + rng.random_range(0..4);
                let tag = ["a", "b"][rng.random_range(0..2)].to_owned() + &"x".repeat(rng.random_range(0..2));
                if back > 0 && rng.random_range(0..4) == 0 {
                    world.sql(&format!("select drop_blocks('main', {from})")).await;
                } else {
                    world.branch(&tag, from, to, &chain[chain.len() - 1]).await;
                    chain.extend((from..=to).map(|height| format!("{tag}{height}")));
                }
                if round == 1 {
                    world.settle().await;
                }
            }
            world.settle().await;
            for consumer in &mut consumers {
                match rng.random_range(0..4) {
                    // It sleeps, or takes some and forgets them.
                    0 => {}
                    1 => {
                        consumer.next(&world, 5).await;
                        world
                            .sql("update sinks set leased_until = clock_timestamp() where leased_until is not null")
                            .await;
                    }
                    _ => {
                        consumer.catch_up(&world, rng.random_range(1..40)).await;
                    }
                }
            }
            if step % 8 == 7 {
                let tip = chain.len() as i64 - 1;
                world
                    .sql(&format!("update chains set final_height = greatest(final_height, {tip} - 4) where {tip} > 4"))
                    .await;
            }
        }
        world.settle().await;
        let tip = chain.len() as i64 - 1;
        let finality: i64 = world.one("select coalesce(final_height, -1) from chains").await.unwrap().parse().unwrap();
        for consumer in &mut consumers {
            consumer.catch_up(&world, 17).await;
            match consumer.sink.as_str() {
                "final" => consumer.check(&world, 0, finality).await,
                "sure" => {
                    // What was told stays told where the chain only got shorter.
                    let told = consumer.blocks.last().map_or(0, |(height, _)| *height);
                    assert!(told >= tip - 3 && told <= tip, "{told} of {tip}");
                    consumer.check(&world, 0, told).await;
                }
                _ => {
                    consumer.check(&world, 0, tip).await;
                    consumer.check_balances(&world).await;
                }
            }
            for (kind, count) in &consumer.counts {
                *counts.entry(format!("{} {kind}", consumer.sink)).or_default() += count;
            }
        }
        assert!(!consumers[3].counts.contains_key("ebbtide.block.retracted"), "what is final is not taken back");
        let store = ebbtide::store::Store::open(&world.url, world.store.clone()).unwrap();
        let findings = store.verify(None, 5).await.unwrap();
        assert_eq!(findings.differences, 0, "{findings:?}");
    }
    println!("told in {SEEDS} storms of {STEPS} steps: {counts:#?}");
    assert!(counts["all ebbtide.block.retracted"] > counts["calm ebbtide.block.retracted"]);
    assert!(counts["calm ebbtide.block.retracted"] > 0 && counts["all ebbtide.transfer.retracted"] > 100);
}
