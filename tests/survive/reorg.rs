//! Every way in which a chain can change its mind. After each: all derived rows are what the chain tables say.

use std::time::Duration;

use crate::support::check::{World, put, settled};
use crate::support::wait_until;
use ebbtide::projections::token_balances::{History, OnDeepChange};
use ebbtide::store::{StoreSettings, WakeMode};

/// A shallow journal makes most changes deep ones.
const DEPTHS: [i64; 2] = [64, 3];

/// A chain of twelve blocks, applied.
async fn twelve(finality_depth: i64) -> World {
    let world = World::new(finality_depth).await;
    world.branch("a", 1, 12, "a0").await;
    world.settle().await;
    // Prunes and raises the final height, as a processor that keeps running does.
    world.settle().await;
    world
}

async fn reorgs(world: &World) -> i64 {
    world.one("select count(*) from reorgs").await.unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_block_replaced_at_its_height_is_undone_and_the_other_applied() {
    for depth in DEPTHS {
        let world = twelve(depth).await;
        assert_eq!(world.put(12, "b12", "a11", &["gold - replaced 7"]).await, "replaced");
        world.settle().await;
        assert_eq!(world.balance("gold", "replaced").await.as_deref(), Some("7"));
        assert_eq!(world.balance("silver", "only_a").await.as_deref(), Some("18"), "3 + 6 + 9, without 12");
        assert_eq!(reorgs(&world).await, 1);
    }
}

#[tokio::test]
async fn a_chain_that_got_shorter_takes_the_state_back() {
    for depth in DEPTHS {
        for from in [12, 9, 5, 2] {
            let world = twelve(depth).await;
            world.sql(&format!("select drop_blocks('main', {from})")).await;
            world.settle().await;
            let at = world.one("select through_height from checkpoints").await.unwrap();
            assert_eq!(at, (from - 1).to_string());
        }
    }
}

#[tokio::test]
async fn from_a_to_b_and_back_to_a_in_one_transaction_ends_where_it_began() {
    for depth in DEPTHS {
        for from in [12, 8] {
            let world = twelve(depth).await;
            let before = world.one("select string_agg(b::text, ';' order by b) from balances b").await;
            world.sql("begin").await;
            world.branch("b", from, 12, &format!("a{}", from - 1)).await;
            world.branch("a", from, 12, &format!("a{}", from - 1)).await;
            world.sql("commit").await;
            world.settle().await;
            assert_eq!(reorgs(&world).await, 1, "the flip is never invisible");
            let after = world
                .one("select string_agg((b.amount, b.token, b.address, b.height)::text, ';') from balances b")
                .await;
            assert!(before.is_some() && after.is_some());
        }
    }
}

#[tokio::test]
async fn from_a_to_b_and_back_to_a_in_three_transactions_ends_where_it_began() {
    for depth in DEPTHS {
        let world = twelve(depth).await;
        for tag in ["b", "a", "c"] {
            world.branch(tag, 7, 13, "a6").await;
            world.settle().await;
        }
        // Nobody looks between the two.
        world.branch("b", 7, 13, "a6").await;
        world.branch("c", 7, 13, "a6").await;
        world.settle().await;
        assert_eq!(reorgs(&world).await, 4);
        assert_eq!(world.balance("silver", "only_b").await, None);
    }
}

#[tokio::test]
async fn a_second_reorg_during_the_first_ends_at_the_second() {
    for depth in DEPTHS {
        let world = twelve(depth).await;
        let running = world.start(WakeMode::Listen, Duration::from_millis(50));
        // The accounts are held: the first reorg begins and cannot end.
        let holder = world.client().await;
        holder.batch_execute("begin; select from balances for update").await.unwrap();
        world.branch("b", 6, 14, "a5").await;
        world.processor_waits().await;
        world.branch("c", 4, 9, "a3").await;
        holder.batch_execute("commit").await.unwrap();
        world.check_soon().await;
        running.stop().await;
        assert_eq!(world.balance("silver", "only_b").await, None);
        assert_eq!(world.one("select hash from checkpoints").await.unwrap(), "c9");
    }
}

#[tokio::test]
async fn reorgs_during_catch_up_leave_nothing_behind() {
    for depth in DEPTHS {
        let world = World::new(depth).await;
        let mut settings = world.settings.clone();
        settings.batch = 10;
        let world = World { settings, ..world };
        world.branch("a", 1, 120, "a0").await;
        let running = world.start(WakeMode::Listen, Duration::from_millis(20));
        wait_until("the catch-up is under way", async || {
            world.one("select height from checkpoints where height is not null").await
        })
        .await;
        // Below, around and above where it is just now.
        for (tag, from, to) in [("b", 100, 110), ("c", 60, 130), ("d", 2, 90), ("e", 80, 125)] {
            world
                .branch(
                    tag,
                    from,
                    to,
                    &world.one(&format!("select hash from blocks where height = {}", from - 1)).await.unwrap(),
                )
                .await;
        }
        world.check_soon().await;
        running.stop().await;
        assert_eq!(world.balance("silver", "only_c").await, None);
    }
}

#[tokio::test]
async fn a_reorg_while_the_processor_was_down_is_found_at_its_start() {
    for depth in DEPTHS {
        let world = twelve(depth).await;
        world.branch("b", 11, 15, "a10").await;
        world.branch("c", 12, 20, "b11").await;
        world.settle().await;
        assert_eq!(world.one("select hash from checkpoints").await.unwrap(), "c20");
    }
}

#[tokio::test]
async fn a_reorg_at_genesis_replaces_everything() {
    for depth in DEPTHS {
        let world = World::new(depth).await;
        world.branch("a", 0, 6, "").await;
        world.settle().await;
        world.branch("b", 0, 3, "").await;
        world.settle().await;
        assert_eq!(world.balance("silver", "only_a").await, None);
        world.sql("select drop_blocks('main', 0)").await;
        world.settle().await;
        assert_eq!(world.one("select count(*) from balances").await.unwrap(), "0");
        assert_eq!(world.one("select height from checkpoints").await, None);
        world.branch("c", 0, 8, "").await;
        world.settle().await;
    }
}

#[tokio::test]
async fn a_reorg_below_the_undo_horizon_rebuilds_in_one_transaction() {
    for (history, from) in [(History::Full, 5), (History::Full, 1), (History::Window, 5), (History::Window, 1)] {
        let mut world = World::new(3).await;
        world.settings.token_balances.history = history;
        world.branch("a", 1, 40, "a0").await;
        world.settle().await;
        world.branch("a", 41, 60, "a40").await;
        world.settle().await;
        let final_height: i64 = world.one("select final_height from chains").await.unwrap().parse().unwrap();
        assert!(final_height > 30, "{final_height}");
        world.branch("b", from, 50, &format!("a{}", from - 1)).await;
        world.settle().await;
        assert_eq!(world.one("select hash from checkpoints").await.unwrap(), "b50");
        assert_eq!(reorgs(&world).await, 1, "one transaction");
        assert_eq!(world.balance("silver", "only_a").await.is_some(), from > 3);
    }
}

#[tokio::test]
async fn a_deep_change_halts_where_that_is_asked_for_and_resume_rebuilds() {
    let mut world = World::new(3).await;
    world.settings.token_balances.on_deep_change = OnDeepChange::Halt;
    world.branch("a", 1, 30, "a0").await;
    world.settle().await;
    world.settle().await;
    let before = world.one("select string_agg(b::text, ';' order by token, address) from balances b").await;
    world.branch("b", 4, 30, "a3").await;
    let halted = world.try_process().await.unwrap_err().to_string();
    assert!(halted.contains("final height"), "{halted}");
    let after = world.one("select string_agg(b::text, ';' order by token, address) from balances b").await;
    assert_eq!(before, after, "a halted projection keeps what it had");
    world.sql("select resume('main', 'token_balances')").await;
    world.settle().await;
    // Above the horizon nothing is deep.
    world.branch("c", 29, 31, "b28").await;
    world.settle().await;
}

#[tokio::test]
async fn a_replacement_without_events_takes_the_old_ones_away() {
    for depth in DEPTHS {
        let world = twelve(depth).await;
        let mut parent = "a5".to_owned();
        for height in 6..=12 {
            let hash = format!("empty{height}");
            world.put(height, &hash, &parent, &[]).await;
            parent = hash;
        }
        world.settle().await;
        assert_eq!(world.balance("silver", "only_a").await.as_deref(), Some("3"));
    }
}

#[tokio::test]
async fn an_account_or_a_token_of_the_orphan_branch_is_gone_and_not_zero() {
    for depth in DEPTHS {
        let world = twelve(depth).await;
        world
            .put(12, "b12", "a11", &["gold - ghost 5", "bronze - user1 5", "gold ghost user2 5", "gold - nothing 0"])
            .await;
        world.settle().await;
        assert_eq!(world.balance("gold", "ghost").await.as_deref(), Some("0"));
        assert_eq!(world.balance("gold", "nothing").await.as_deref(), Some("0"));
        world.put(12, "c12", "a11", &[]).await;
        world.settle().await;
        assert_eq!(world.balance("gold", "ghost").await, None);
        assert_eq!(world.balance("gold", "nothing").await, None);
        assert_eq!(world.one("select count(*) from tokens where token = 'bronze'").await.unwrap(), "0");
    }
}

#[tokio::test]
async fn odd_amounts_and_indexes_are_exact_through_a_reorg() {
    const LARGEST: &str = "115792089237316195423570985008687907853269984665640564039457584007913129639935";
    const NINE_TIMES: &str = "1042128803135845758812138865078191170679429861990765076355118256071218166759415";
    for depth in DEPTHS {
        let world = twelve(depth).await;
        let mint = format!("gold - whale {LARGEST}");
        let mut movements: Vec<&str> = vec![&mint; 9];
        // Several events of one account in one block, to itself, of nothing, and what it never had.
        movements.extend(["gold whale whale 5", "gold user1 user1 0", "gold whale user1 0", "gold poor user1 3"]);
        world.put(12, "b12", "a11", &movements).await;
        world.settle().await;
        assert_eq!(world.balance("gold", "whale").await.as_deref(), Some(NINE_TIMES));
        assert_eq!(world.balance("gold", "poor").await.as_deref(), Some("-3"));
        // An index beyond 32 bits, and one index in two transactions.
        world
            .sql(
                "begin;
                 insert into token_events (chain_id, height, tx_index, event_index, token, to_address, amount)
                 select chain_id, 13, t, i, 'gold', 'far', 1 from chains, (values (0, 4294967266), (1, 4294967266), (4294967299, 0)) v(t, i);
                 insert into blocks (chain_id, height, hash, parent_hash) select chain_id, 13, 'b13', 'b12' from chains;
                 commit",
            )
            .await;
        world.settle().await;
        assert_eq!(world.balance("gold", "far").await.as_deref(), Some("3"));
        world.branch("c", 12, 14, "a11").await;
        world.settle().await;
        assert_eq!(world.balance("gold", "whale").await, None);
    }
}

#[tokio::test]
async fn a_fork_inside_a_batch_leaves_only_the_branch_that_stands() {
    for depth in DEPTHS {
        let mut world = World::new(depth).await;
        world.settings.batch = 100;
        world.branch("a", 1, 90, "a0").await;
        // As a syncer says it: most of it is final, so it is merged.
        world.sql("update chains set head_height = 90, final_height = 80").await;
        world.settle().await;
        world.branch("b", 60, 95, "a59").await;
        world.settle().await;
        world.branch("c", 85, 99, "b84").await;
        world.settle().await;
        let merged = world.one("select seq from checkpoints").await.unwrap().parse::<i64>().unwrap();
        assert!(merged < 60, "{merged} steps for 200 blocks: nothing was merged");
    }
}

#[tokio::test]
async fn a_fork_while_a_batch_is_applied_leaves_only_the_branch_that_stands() {
    let mut world = World::new(5).await;
    world.settings.batch = 100;
    world.branch("a", 1, 9, "a0").await;
    world.settle().await;
    world.branch("a", 10, 150, "a9").await;
    world.sql("update chains set head_height = 150, final_height = 145").await;
    let holder = world.client().await;
    holder.batch_execute("begin; select from balances for update").await.unwrap();
    let running = world.start(WakeMode::Listen, Duration::from_millis(50));
    world.processor_waits().await;
    // The apply in hand holds its blocks: the fork waits for it, or comes before it.
    let forking = world.client().await;
    let fork = tokio::spawn(async move {
        for height in [120, 20] {
            forking.execute("select drop_blocks('main', $1)", &[&(height as i64)]).await.unwrap();
            crate::support::check::branch(&forking, "b", height, height + 30, &format!("a{}", height - 1)).await;
        }
    });
    holder.batch_execute("commit").await.unwrap();
    fork.await.unwrap();
    world.check_soon().await;
    running.stop().await;
    assert_eq!(world.one("select hash from checkpoints").await.unwrap(), "b50");
}

#[tokio::test]
async fn a_block_whose_parent_does_not_match_counts_as_absent_until_it_does() {
    for depth in DEPTHS {
        let world = twelve(depth).await;
        world.put(13, "x13", "not-a12", &["gold - early 1"]).await;
        world.put(14, "x14", "x13", &["gold - early 1"]).await;
        world.settle().await;
        assert_eq!(world.balance("gold", "early").await, None);
        assert_eq!(world.one("select kind from anomalies").await.unwrap(), "break in the chain");
        // The parent arrives: its branch replaces ours, and what was above the break counts now.
        world.sql("update blocks set hash = 'not-a12' where height = 12").await;
        world.settle().await;
        assert_eq!(world.balance("gold", "early").await.as_deref(), Some("2"));
        // And a break in the middle takes back what is above.
        world.sql("update blocks set parent_hash = 'nobody' where height = 11").await;
        world.settle().await;
        assert_eq!(world.one("select height from checkpoints").await.unwrap(), "10");
        world.sql("update blocks set parent_hash = 'a10' where height = 11").await;
        world.settle().await;
        assert_eq!(world.one("select height from checkpoints").await.unwrap(), "14");
    }
}

#[tokio::test]
async fn a_hash_deleted_and_inserted_again_with_other_events_is_another_block() {
    for depth in DEPTHS {
        for height in [12, 6] {
            let world = twelve(depth).await;
            world
                .sql(&format!(
                    "begin;
                     delete from blocks where height = {height};
                     insert into token_events (chain_id, height, tx_index, event_index, token, to_address, amount)
                     select chain_id, {height}, 0, 0, 'gold', 'second', 11 from chains;
                     insert into blocks (chain_id, height, hash, parent_hash)
                     select chain_id, {height}, 'a{height}', 'a{}' from chains;
                     commit",
                    height - 1
                ))
                .await;
            world.settle().await;
            assert_eq!(world.balance("gold", "second").await.as_deref(), Some("11"));
        }
    }
}

#[tokio::test]
async fn opening_balances_that_change_later_change_everything() {
    for depth in DEPTHS {
        let world = World::new(depth).await;
        world.sql("insert into opening_balances select chain_id, 'gold', 'old', 1000 from chains").await;
        world.branch("a", 5, 16, "a4").await;
        world.settle().await;
        world.settle().await;
        assert_eq!(world.balance("gold", "old").await.as_deref(), Some("1000"));
        world.sql("update opening_balances set amount = -7").await;
        world.settle().await;
        world.sql("insert into opening_balances select chain_id, 'gold', 'user1', 1 from chains").await;
        world.settle().await;
        world.sql("delete from opening_balances").await;
        world.settle().await;
        assert_eq!(world.balance("gold", "old").await, None);
    }
}

#[tokio::test]
async fn a_pruned_window_of_history_still_undoes() {
    for batch in [1, 50] {
        let mut world = World::new(3).await;
        world.settings.token_balances.history = History::Window;
        world.settings.batch = batch;
        world.branch("a", 1, 60, "a0").await;
        world.settle().await;
        world.branch("a", 61, 80, "a60").await;
        world.settle().await;
        world.settle().await;
        let (all, kept): (i64, i64) = (
            world.one("select count(*) from token_events").await.unwrap().parse().unwrap(),
            world.one("select count(*) from balance_changes").await.unwrap().parse().unwrap(),
        );
        assert!(kept < all / 3, "{kept} changes are kept of {all} events: nothing was pruned");
        let final_height: i64 = world.one("select final_height from chains").await.unwrap().parse().unwrap();
        let wrong = format!(
            "with e as (select address, sum(d) as amount from (
                 select to_address as address, amount as d from token_events where token = 'gold' and height <= {final_height}
                 union all select from_address, -amount from token_events where token = 'gold' and height <= {final_height}
             ) s where address is not null group by address)
             select count(*) from e full join (select * from final_balances where token = 'gold') f using (address)
             where e.amount is distinct from f.amount"
        );
        assert_eq!(world.one(&wrong).await.unwrap(), "0", "final balances in a pruned history, batch {batch}");
        assert_eq!(
            world.one(&wrong.replace("final_balances", &format!("balances_at('main', {final_height})"))).await.unwrap(),
            "0"
        );
        world.branch("b", 79, 84, "a78").await;
        world.settle().await;
        world.branch("c", 83, 84, "b82").await;
        world.settle().await;
    }
}

#[tokio::test]
async fn history_kept_as_a_window_and_then_in_full_is_never_trusted_where_it_is_missing() {
    let mut world = World::new(3).await;
    world.settings.token_balances.history = History::Window;
    world.settings.batch = 10;
    world.branch("a", 1, 40, "a0").await;
    world.sql("update chains set head_height = 40, final_height = 37").await;
    // Stopped before the journal was pruned for the last time.
    world.sql("select pause('main', null, 30)").await;
    world.try_process().await.unwrap();
    world.sql("select resume('main', null)").await;
    world.settings.token_balances.history = History::Full;
    world.settle().await;
    world.branch("b", 20, 45, "a19").await;
    world.settle().await;
}

#[tokio::test]
async fn a_statement_timeout_in_a_long_reorg_takes_smaller_steps_and_ends() {
    let mut world = World::new(100_000).await;
    world.store = StoreSettings { statement_timeout: Duration::from_millis(150), ..StoreSettings::default() };
    bulk(&world, "a", 1, 3000, 40).await;
    world.store.statement_timeout = Duration::from_secs(60);
    world.settle().await;
    world.store.statement_timeout = Duration::from_millis(150);
    world.sql("begin").await;
    world.sql("select drop_blocks('main', 2)").await;
    bulk(&world, "b", 2, 100, 3).await;
    world.sql("commit").await;
    world.settle().await;
    let steps = reorgs(&world).await;
    println!("the reorg of 2,999 blocks took {steps} steps under a statement timeout of 150 ms");
}

/// Blocks with `events` movements each, by one statement.
async fn bulk(world: &World, tag: &str, from: i64, to: i64, events: i64) {
    let first_parent = world.one(&format!("select hash from blocks where height = {from} - 1")).await;
    let first_parent = first_parent.unwrap_or_default();
    world
        .sql(&format!(
            "insert into token_events (chain_id, height, tx_index, event_index, token, from_address, to_address, amount)
             select chain_id, h, i, 0, 'gold', 'acc' || (h * 31 + i * 17) % 5003, 'acc' || (h * 13 + i * 7) % 5003, h + i
             from chains, generate_series({from}, {to}) h, generate_series(1, {events}) i;
             insert into blocks (chain_id, height, hash, parent_hash)
             select chain_id, h, '{tag}' || h, case when h = {from} then '{first_parent}' else '{tag}' || (h - 1) end
             from chains, generate_series({from}, {to}) h"
        ))
        .await;
}

#[tokio::test]
async fn two_processors_on_one_database_do_not_disturb_each_other() {
    for depth in DEPTHS {
        let world = World::new(depth).await;
        let first = world.start(WakeMode::Listen, Duration::from_millis(30));
        let second = world.start(WakeMode::Listen, Duration::from_millis(20));
        world.branch("a", 1, 40, "a0").await;
        for (tag, from, to, parent) in
            [("b", 30, 45, "a29"), ("c", 38, 41, "b37"), ("d", 5, 60, "a4"), ("e", 60, 61, "d59"), ("f", 50, 52, "d49")]
        {
            world.branch(tag, from, to, parent).await;
            put(&world.db, to + 1, &format!("last{to}"), &format!("{tag}{to}"), &["gold - last 1"]).await;
        }
        settled(&world.db, "main", crate::support::PATIENCE).await;
        first.stop().await;
        second.stop().await;
        world.check().await;
    }
}
