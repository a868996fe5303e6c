//! Balances built again: beside what stands, and then only what differs is written.

use serde_json::Value;

use crate::support::check::World;
use crate::support::{Ebbtide, wait_until};
use ebbtide::projections::token_balances::History;

/// Every row of both tables, with the transaction that wrote it and its place.
const ROWS: &str = "
select string_agg(r, chr(10) order by r) from (
    select concat_ws(' ', 'b', xmin, ctid, b) as r from balances b
    union all select concat_ws(' ', 'h', xmin, ctid, h) from balance_history h) t";

async fn final_chain(history: History) -> World {
    let mut world = World::new(3).await;
    world.settings.token_balances.history = history;
    world.branch("a", 1, 40, "a0").await;
    world.settle().await;
    world.settle().await;
    world
}

async fn applied_again(world: &World) {
    world.sql("select replay('main', 0, 'token_balances')").await;
    world.settle().await;
    assert_eq!(world.one("select concat_ws(' ', hash, redo_from) from checkpoints").await.unwrap(), "a40");
}

#[tokio::test]
async fn a_rebuild_of_what_is_right_writes_no_balance_and_no_history() {
    for history in [History::Full, History::Window] {
        let world = final_chain(history).await;
        // A window keeps the last change below it when it is pruned; one that is built has no need of it.
        let pruned = "delete from balance_history h using checkpoints k where h.height <= k.history_from";
        let past = "select string_agg(b::text, ' ' order by token, address) from balances_at('main', 37) b";
        let at_37 = world.one(past).await;
        assert!(at_37.is_some());
        if history == History::Window {
            assert_eq!(world.one("select history_from from checkpoints").await.unwrap(), "37");
            world.sql(pruned).await;
            assert_eq!(world.one(past).await, at_37, "what was pruned is not needed");
        }
        let before = world.one(ROWS).await.unwrap();
        applied_again(&world).await;
        let after = world.one(ROWS).await.unwrap();
        // What is not final is undone by its history and applied again.
        assert_eq!(before, after, "{history:?}");
        assert_eq!(world.one(past).await, at_37, "{history:?}");
    }
}

#[tokio::test]
async fn a_rebuild_mends_what_was_damaged_and_writes_nothing_else() {
    let damage = [
        "update balances set amount = amount + 1 where token = 'gold' and address = 'user3'",
        "delete from balances where token = 'gold' and address = 'user4'",
        "insert into balances (chain_id, token, address, amount, height) select chain_id, 'gold', 'stray', 5, 7 from chains",
        "update balance_history set balance_after = 3, delta = 9 where height = 12",
        "delete from balance_history where height = 13",
        "insert into balance_history (balance_id, chain_id, height, delta, balance_after)
         select min(balance_id), chain_id, 41, 1, 1 from balances group by chain_id",
        "insert into balance_history (balance_id, chain_id, height, delta, balance_after)
         select -7, chain_id, 4, 1, 1 from chains",
    ];
    for damage in damage {
        let world = final_chain(History::Full).await;
        let rows = world.one(ROWS).await.unwrap();
        world.sql(damage).await;
        applied_again(&world).await;
        let mended = world.one(ROWS).await.unwrap();
        let kept = mended.lines().filter(|row| rows.lines().any(|before| before == *row)).count();
        assert!(mended.lines().count() - kept <= 12, "{damage}: {kept} of {}", mended.lines().count());
    }
}

#[tokio::test]
async fn a_start_that_moved_opening_balances_and_a_second_chain_are_kept_apart() {
    let world = final_chain(History::Full).await;
    world
        .sql(
            "insert into chains (name, kind) values ('other', 'other');
             select put_block('other', 1, 'o1', 'o0', token_events =>
                 '[{\"tx_index\":0,\"event_index\":0,\"token\":\"gold\",\"to_address\":\"user1\",\"amount\":\"5\"}]')",
        )
        .await;
    world.settle().await;
    let others = "select string_agg(concat_ws(' ', b.xmin, b), ';') from balances b join chains c on c.chain_id = b.chain_id and c.name = 'other'";
    let other = world.one(others).await.unwrap();
    world
        .sql("insert into opening_balances select chain_id, 'gold', 'user1', 100 from chains where name = 'main'")
        .await;
    world.settle().await;
    world.sql("update chains set start_height = 20 where name = 'main'").await;
    world.settle().await;
    assert_eq!(world.one("select start_height from checkpoints order by chain_id limit 1").await.unwrap(), "20");
    assert_eq!(world.one(others).await.unwrap(), other);
}

/// A chain of 300 final blocks; building it again takes a while at block 50 and waits for the lock 77 at block 250.
async fn slow(world: &World) {
    world.sql("update chains set kind = 'evm'").await;
    let account = "0x00000000000000000000000000000000000000a1";
    let good = format!("0x00000000000000000000000000000000000000aa - {account} 5");
    let bad = format!("gold - {account} 7");
    for height in 1..=300 {
        let (hash, parent) = (format!("0x{height:02x}"), format!("0x{:02x}", height - 1));
        let movements: &[&str] = if height == 50 || height == 250 { &[&good, &bad] } else { &[&good] };
        world.put(height, &hash, &parent, movements).await;
    }
    world.settle().await;
    world.settle().await;
    world
        .sql(
            "create function linger() returns trigger language plpgsql as $$
             begin
                 if new.height = 50 then perform pg_sleep(1.1); else perform pg_advisory_xact_lock(77); end if;
                 return new;
             end $$;
             create trigger linger before insert on rejected_events for each row execute function linger()",
        )
        .await;
}

fn balances_of(world: &World) -> Value {
    let all = Ebbtide::output(&["status", "--json", "--database-url", &world.url], &[]);
    let all: Value = serde_json::from_slice(&all.stdout).unwrap();
    all.as_array().unwrap().iter().find(|s| s["projection"] == "token_balances").unwrap().clone()
}

#[tokio::test]
async fn a_rebuild_of_balances_tells_how_far_it_has_come_and_leaves_nothing_when_killed() {
    let world = World::new(3).await;
    slow(&world).await;
    let holder = world.client().await;
    holder.batch_execute("select pg_advisory_lock(77)").await.unwrap();
    let rows = world.one(ROWS).await.unwrap();
    world.sql("select replay('main', 0)").await;
    let rebuilding = async || Some(balances_of(&world)).filter(|seen| !seen["rebuilding"].is_null());
    let mut first = Ebbtide::spawn(&["process", "--database-url", &world.url], &[]);
    let seen = wait_until("it says how far it has come", rebuilding).await;
    let how_far = &seen["rebuilding"];
    assert_eq!((&how_far["from_height"], &how_far["to_height"]), (&1.into(), &300.into()), "{how_far}");
    assert_eq!(how_far["reason"], "a replay from below the undo horizon");
    let at = how_far["at_height"].as_i64().unwrap();
    assert!((50..250).contains(&at), "{at}");
    assert_eq!(seen["applied_height"], 300, "readers keep the old state");
    first.kill();
    wait_until("its connections are gone", async || {
        let left =
            "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'ebbtide'";
        (world.one(left).await.unwrap() == "0").then_some(())
    })
    .await;
    assert_eq!(world.one(ROWS).await.unwrap(), rows);
    let _second = Ebbtide::spawn(&["process", "--database-url", &world.url], &[]);
    wait_until("the second waits at block 250", async || {
        let waits = "select count(*) from pg_locks where locktype = 'advisory' and objid = 77 and not granted";
        (world.one(waits).await.unwrap() == "1").then_some(())
    })
    .await;
    holder.batch_execute("select pg_advisory_unlock(77)").await.unwrap();
    wait_until("it is done", async || {
        (balances_of(&world)["rebuilding"].is_null() && world.one("select redo_from from checkpoints").await.is_none())
            .then_some(())
    })
    .await;
    world.check().await;
    assert_eq!(world.one(ROWS).await.unwrap(), rows, "nothing was wrong, so nothing was written");
    assert_eq!(world.one("select count(*) from rejected_events").await.unwrap(), "2");
}
