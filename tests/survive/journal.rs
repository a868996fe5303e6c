//! The journal as undo finds it: a row that is missing is noticed, what an older program wrote is enough.

use crate::support::check::World;
use ebbtide::projections::token_balances::History;

/// Twelve blocks that are not final, applied. `silver` of `only_a` changes in 3, 6, 9 and 12.
async fn twelve() -> World {
    let world = World::new(64).await;
    world.branch("a", 1, 12, "a0").await;
    world.settle().await;
    world
}

const BALANCES: &str = "select string_agg(b::text, ';' order by b) from balances b";

#[tokio::test]
async fn undo_notices_history_that_is_missing_or_altered_and_stops() {
    let changes = "delete from balance_history h using balances b
                   where b.balance_id = h.balance_id and b.address = 'only_a' and h.height";
    let amount = "update balance_history h set delta = delta + 1 from balances b
                  where b.balance_id = h.balance_id and b.address = 'only_a' and h.height = 9";
    let damage = [
        ("the newest change", format!("{changes} = 12")),
        ("one in between", format!("{changes} = 9")),
        ("the oldest of those", format!("{changes} = 6")),
        ("all of those", format!("{changes} > 5")),
        ("all of a block", "delete from balance_history where height = 7".to_owned()),
        ("another amount", amount.to_owned()),
        ("another balance", "update balances set amount = amount + 1 where address = 'only_a'".to_owned()),
    ];
    for (what, harm) in damage {
        for named in [true, false] {
            let world = twelve().await;
            world.sql(&harm).await;
            if !named {
                world.sql("update applied_blocks set ids = null").await;
            }
            let before = world.one(BALANCES).await;
            world.put(6, "b6", "a5", &["gold - user1 1"]).await;
            let halted = world.try_process().await.unwrap_err().to_string();
            assert!(halted.contains("are not what the journal left"), "{what}: {halted}");
            assert_eq!(world.one(BALANCES).await, before, "{what}");
            // Applied again from the start, beside: nothing of it is needed.
            world.sql("select replay('main', 0); select resume('main', 'token_balances')").await;
            world.settle().await;
        }
    }
}

#[tokio::test]
async fn undo_does_without_rows_of_applied_blocks_and_without_what_they_name() {
    let harm = [
        "delete from applied_blocks where height = 9",
        "delete from applied_blocks where height = 12",
        "delete from applied_blocks where height between 6 and 9",
        "update applied_blocks set ids = null where height = 9",
        "update applied_blocks set ids = null, before_height = null",
        "update applied_blocks set before_height = 3 where height = 9",
    ];
    for harm in harm {
        for from in [12, 6] {
            let world = twelve().await;
            world.sql("insert into opening_balances select chain_id, 'silver', 'early', 5 from chains").await;
            world.settle().await;
            world.sql(harm).await;
            world.branch("b", from, 13, &format!("a{}", from - 1)).await;
            world.settle().await;
        }
    }
}

#[tokio::test]
async fn blocks_noted_in_the_journal_name_the_balances_they_changed() {
    let names_them_all = "select count(*) from applied_blocks a where a.projection = 'token_balances' and (
        a.before_height is distinct from nullif(a.height - 1, 0)
        or array(select unnest(a.ids) order by 1) <> array(select h.balance_id from balance_history h where h.height = a.height order by 1))";
    for (history, batch) in [(History::Full, 1), (History::Window, 10)] {
        let mut world = World::new(64).await;
        world.settings.token_balances.history = history;
        world.settings.batch = batch;
        world.branch("a", 1, 12, "a0").await;
        world.sql("select put_block('main', 13, 'a13', 'a12')").await;
        world.settle().await;
        // One by one; then several in one statement, in place of others; then beside what stands.
        let ways = ["select", "select drop_blocks('main', 5)", "select replay('main', 0)"];
        for way in ways {
            world.sql(way).await;
            if way.contains("drop_blocks") {
                world.branch("b", 5, 20, "a4").await;
            }
            world.settle().await;
            assert_ne!(world.one("select count(*) from applied_blocks").await.unwrap(), "0");
            assert_eq!(world.one(names_them_all).await.unwrap(), "0", "{history:?}, after {way}");
        }
    }
}

#[tokio::test]
async fn a_window_of_history_is_pruned_with_the_journal_that_names_it_or_not_at_all() {
    let mut world = World::new(64).await;
    world.settings.token_balances.history = History::Window;
    world.branch("a", 1, 12, "a0").await;
    world.settle().await;
    let rows = "select concat_ws(' ', (select count(*) from balance_history), (select count(*) from applied_blocks))";
    let before = world.one(rows).await;
    // Whatever comes between the two: here the journal cannot be pruned.
    world
        .sql(
            "create function refuse() returns trigger language plpgsql as $$ begin raise 'not now'; end $$;
             create trigger refuse before delete on applied_blocks for each row execute function refuse();
             update chains set final_height = 9",
        )
        .await;
    world.try_process().await.unwrap_err();
    world.sql("drop trigger refuse on applied_blocks").await;
    assert_eq!(world.one(rows).await, before);
    world.branch("b", 8, 13, "a7").await;
    world.settle().await;
    world.settle().await;
    assert_ne!(world.one(rows).await, before, "pruned in the end");
}
