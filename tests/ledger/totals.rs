//! The sum of a token goes with its balances, also where blocks that were applied together leave no sum and are undone apart.

use super::support::check::World;

const MINT: &str = "tin - smith 100";
const BURN: &str = "tin smith - 100";

impl World {
    async fn total(&self) -> Option<String> {
        self.one("select total from token_totals where token = 'tin'").await
    }
}

/// b2 mints what b3 burns, then c3 burns none of it.
async fn mint_and_burn(world: &World, height: i64, parent: &str) {
    world.sql("begin").await;
    world.put(height, "b2", parent, &[MINT]).await;
    world.put(height + 1, "b3", "b2", &[BURN]).await;
    world.sql("commit").await;
}

#[tokio::test]
async fn blocks_that_come_in_place_of_others_at_once() {
    let world = World::new(64).await;
    world.branch("a", 1, 3, "root").await;
    world.settle().await;
    mint_and_burn(&world, 2, "a1").await;
    world.settle().await;
    world.put(3, "c3", "b2", &[]).await;
    world.settle().await;
    assert_eq!(world.total().await.as_deref(), Some("100"));
    world.put(4, "c4", "c3", &["tin smith - 40"]).await;
    world.settle().await;
    assert_eq!(world.total().await.as_deref(), Some("60"));
}

#[tokio::test]
async fn final_blocks_that_were_applied_at_once() {
    let world = World::new(0).await;
    world.put(1, "b1", "root", &[]).await;
    mint_and_burn(&world, 2, "b1").await;
    world.sql("update chains set head_height = 3, final_height = 3").await;
    world.settle().await;
    world.sql("select pause('main', 'token_balances', 2); select replay('main', 3)").await;
    world.try_process().await.unwrap();
    assert_eq!(world.balance("tin", "smith").await.as_deref(), Some("100"));
    assert_eq!(world.total().await.as_deref(), Some("100"));
    world.sql("select resume('main', 'token_balances')").await;
    world.settle().await;
}

/// What `migrate` makes of a database that knew no totals yet: rows for those alone that are not 0.
#[tokio::test]
async fn tokens_whose_total_was_nothing_when_totals_came() {
    let world = World::new(64).await;
    world.put(1, "b1", "root", &[]).await;
    world.settle().await;
    world.put(2, "b2", "b1", &[MINT]).await;
    world.settle().await;
    world.put(3, "b3", "b2", &[BURN]).await;
    world.settle().await;
    world.sql("delete from token_totals where total = 0").await;
    world.put(3, "c3", "b2", &[]).await;
    world.settle().await;
    assert_eq!(world.total().await.as_deref(), Some("100"));
}
