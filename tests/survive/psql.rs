//! What a person (or another program) may do to the chain tables with plain SQL, at any moment and in any order.

use std::time::Duration;

use crate::support::check::{World, contents};
use crate::support::wait_until;
use ebbtide::projections::token_balances::{NegativeBalances, OnBadEvent};
use ebbtide::store::WakeMode;
use futures::SinkExt;
use tokio_postgres::Client;

const DEPTHS: [i64; 2] = [64, 3];

async fn twelve(finality_depth: i64) -> World {
    let world = World::new(finality_depth).await;
    world.branch("a", 1, 12, "a0").await;
    world.settle().await;
    world.settle().await;
    world
}

const ADD_EVENT: &str = "insert into token_events (chain_id, height, tx_index, event_index, token, to_address, amount)
     select chain_id, $1, 77, 0, 'gold', 'late', 5 from chains";

async fn add_event(client: &Client, height: i64) {
    client.execute(ADD_EVENT, &[&height]).await.unwrap();
}

async fn add_block(client: &Client, height: i64, parent: &str) {
    let sql = "insert into blocks (chain_id, height, hash, parent_hash) select chain_id, $1, 'a' || $1::bigint, $2 from chains";
    client.execute(sql, &[&height, &parent]).await.unwrap();
}

#[tokio::test]
async fn every_kind_of_edit_of_an_applied_block_is_followed() {
    for depth in DEPTHS {
        let world = twelve(depth).await;
        for height in [12, 11, 5, 1] {
            add_event(&world.db, height).await;
            world.settle().await;
            world.sql(&format!("update token_events set amount = amount + 3 where height = {height}")).await;
            world.settle().await;
            world
                .sql(&format!(
                    "update token_events set height = 12, tx_index = {height} where height = {height} and tx_index = 77"
                ))
                .await;
            world.settle().await;
            world.sql(&format!("delete from token_events where height = {height} and tx_index = 0")).await;
            world.settle().await;
            world.sql(&format!("update blocks set time = now() where height = {height}")).await;
            world.settle().await;
        }
        assert_eq!(world.balance("gold", "late").await.as_deref(), Some("32"), "four times 5 + 3");
    }
}

#[tokio::test]
async fn an_edit_left_open_while_the_block_is_applied_is_followed_whoever_commits_first() {
    for depth in DEPTHS {
        for isolation in ["read committed", "repeatable read"] {
            // The edit is open before the block is applied, and commits after everything else was.
            let world = twelve(depth).await;
            let editor = world.client().await;
            world.branch("a", 13, 15, "a12").await;
            editor.batch_execute(&format!("begin isolation level {isolation}")).await.unwrap();
            add_event(&editor, 14).await;
            let running = world.start(WakeMode::Listen, Duration::from_millis(20));
            wait_until("what comes before the edited block is applied", async || {
                (world.one("select height from checkpoints").await.unwrap() == "13").then_some(())
            })
            .await;
            editor.batch_execute("commit").await.unwrap();
            world.check_soon().await;
            running.stop().await;
            // The apply is open when the edit comes, and commits first.
            let holder = world.client().await;
            holder.batch_execute("begin; select from balances for update").await.unwrap();
            world.branch("a", 16, 16, "a15").await;
            let running = world.start(WakeMode::Listen, Duration::from_millis(20));
            world.processor_waits().await;
            let edit = tokio::spawn(async move {
                editor.batch_execute(&format!("begin isolation level {isolation}")).await.unwrap();
                let added = editor.execute(ADD_EVENT, &[&16_i64]).await;
                editor.batch_execute(if added.is_ok() { "commit" } else { "rollback" }).await.unwrap();
            });
            world.someone_waits("query like '%insert into token_events%'").await;
            holder.batch_execute("commit").await.unwrap();
            edit.await.unwrap();
            world.check_soon().await;
            running.stop().await;
        }
    }
}

#[tokio::test]
async fn an_edit_of_a_final_block_by_an_old_snapshot_is_refused_or_followed() {
    // Blocks known as final at once, as in a backfill: nothing but the trigger would tell of a change.
    let world = World::new(0).await;
    world.branch("a", 1, 10, "a0").await;
    world.sql("update chains set head_height = 100, final_height = 100").await;
    world.settle().await;
    world.settle().await;
    for (what, edit) in [
        ("insert", ADD_EVENT.replace("$1", "11")),
        ("update", "update token_events set amount = amount + 1 where height = 11".to_owned()),
        ("delete", "delete from blocks where height = 11".to_owned()),
    ] {
        let editor = world.client().await;
        world.branch("a", 11, 12, "a10").await;
        editor.batch_execute("begin isolation level repeatable read; select count(*) from chains").await.unwrap();
        world.settle().await;
        world.settle().await;
        let done = editor.batch_execute(&edit).await;
        println!("{what}: {done:?}");
        editor.batch_execute(if done.is_ok() { "commit" } else { "rollback" }).await.unwrap();
        world.settle().await;
        world.sql("select drop_blocks('main', 11)").await;
        world.settle().await;
    }
}

#[tokio::test]
async fn an_edit_by_a_snapshot_older_than_the_checkpoint_itself_is_refused() {
    for edit in ["update token_events set amount = amount + 1 where height = 2", "delete from blocks where height = 10"]
    {
        let world = World::new(0).await;
        world.branch("a", 1, 10, "a0").await;
        world.sql("update chains set head_height = 100, final_height = 100").await;
        let editor = world.client().await;
        editor.batch_execute("begin isolation level repeatable read; select count(*) from chains").await.unwrap();
        world.settle().await;
        world.settle().await;
        let refused = editor.batch_execute(edit).await.expect_err(edit);
        assert_eq!(refused.code().unwrap().code(), "40001", "{edit}: {refused:?}");
        editor.batch_execute("rollback").await.unwrap();
        world.settle().await;
    }
}

#[tokio::test]
async fn hex_with_capitals_is_refused_and_named() {
    let world = twelve(64).await;
    let refused = async |sql: &str| {
        let error = world.db.batch_execute(sql).await.expect_err(sql);
        let error = error.as_db_error().unwrap().clone();
        assert_eq!(error.code().code(), "23514", "{sql}: {error:?}");
        (error.constraint().unwrap().to_owned(), error.message().to_owned())
    };
    let insert = |token: &str, from: &str, to: &str| {
        format!("insert into token_events select chain_id, 12, 9, 9, {token}, {from}, {to}, 1 from chains")
    };
    for (sql, column) in [
        (insert("'0xAa'", "'a'", "null"), "the token 0xAa"),
        (insert("'gold'", "'0XAA'", "'a'"), "the from_address 0XAA"),
        (insert("'gold'", "null", "'0xab12Cd'"), "the to_address 0xab12Cd"),
        ("update token_events set to_address = '0xF' where height = 3".to_owned(), "the to_address 0xF"),
    ] {
        let (constraint, message) = refused(&sql).await;
        assert_eq!(constraint, "token_events_hex_is_in_lower_case");
        assert!(message.contains(column), "{message}");
    }
    for sql in [
        "update blocks set hash = '0xA' where height = 12",
        "insert into opening_balances select chain_id, '0xB', 'a', 1 from chains",
    ] {
        let (constraint, _) = refused(sql).await;
        assert!(constraint.ends_with("hex_in_lower_case"), "{constraint}");
    }
    // Other text may have capitals, and put_block brings hex to lower case.
    world.sql(&insert("'Gold'", "'Alice'", "'0y0X'")).await;
    world
        .sql("select put_block('main', 13, '0xAB', 'a12', token_events => '[{\"tx_index\":0,\"event_index\":0,\"token\":\"0xC0\",\"to_address\":\"0xDE\",\"amount\":1}]')")
        .await;
    world.settle().await;
    assert_eq!(world.balance("0xc0", "0xde").await.as_deref(), Some("1"));
}

#[tokio::test]
async fn a_new_time_is_no_new_content() {
    let world = World::new(0).await;
    world.branch("a", 1, 10, "a0").await;
    world.sql("update chains set head_height = 8, final_height = 8").await;
    world.settle().await;
    world.settle().await;
    let stand = "select seq || ' ' || coalesce(redo_from::text, 'as it is') from checkpoints";
    let before = world.one(stand).await.unwrap();
    world.sql("update blocks set time = now()").await;
    world.settle().await;
    assert_eq!(world.one(stand).await.unwrap(), before);
    assert!(before.ends_with("as it is"), "{before}");
}

#[tokio::test]
async fn events_for_a_block_that_an_open_transaction_inserts_are_applied_whoever_commits_first() {
    for depth in DEPTHS {
        for block_commits_first in [true, false] {
            let world = twelve(depth).await;
            let running = world.start(WakeMode::Listen, Duration::from_millis(20));
            let (of_block, of_event) = (world.client().await, world.client().await);
            if block_commits_first {
                of_block.batch_execute("begin").await.unwrap();
                add_block(&of_block, 13, "a12").await;
                let adding = tokio::spawn(async move { add_event(&of_event, 13).await });
                world.someone_waits("query like '%insert into token_events%'").await;
                of_block.batch_execute("commit").await.unwrap();
                adding.await.unwrap();
            } else {
                of_event.batch_execute("begin").await.unwrap();
                add_event(&of_event, 13).await;
                let adding = tokio::spawn(async move { add_block(&of_block, 13, "a12").await });
                world.someone_waits("query like '%insert into blocks%'").await;
                of_event.batch_execute("commit").await.unwrap();
                adding.await.unwrap();
            }
            wait_until("the event is applied", async || world.balance("gold", "late").await).await;
            world.check_soon().await;
            running.stop().await;
        }
    }
}

#[tokio::test]
async fn a_middle_block_deleted_takes_back_what_is_above_until_it_returns() {
    for depth in DEPTHS {
        for height in [10, 4] {
            let world = twelve(depth).await;
            world.sql(&format!("delete from blocks where height = {height}")).await;
            world.settle().await;
            assert_eq!(world.one("select height from checkpoints").await.unwrap(), (height - 1).to_string());
            let movements = contents("a", height);
            let movements: Vec<&str> = movements.iter().map(String::as_str).collect();
            world.put(height, &format!("a{height}"), &format!("a{}", height - 1), &movements).await;
            world.settle().await;
            assert_eq!(world.one("select height from checkpoints").await.unwrap(), "12");
        }
    }
}

#[tokio::test]
async fn a_lower_block_that_arrives_late_is_the_new_start() {
    for depth in DEPTHS {
        let world = World::new(depth).await;
        world.branch("a", 8, 20, "a7").await;
        world.settle().await;
        world.settle().await;
        world.branch("a", 5, 5, "a4").await;
        world.settle().await;
        // 6 and 7 are missing: only 5 counts.
        assert_eq!(world.one("select height from checkpoints").await.unwrap(), "5");
        world.branch("a", 7, 7, "a6").await;
        world.settle().await;
        world.branch("a", 6, 6, "a5").await;
        world.settle().await;
        assert_eq!(world.one("select height from checkpoints").await.unwrap(), "20");
        // A start that is given: what lies below does not count.
        world.sql("update chains set start_height = 9").await;
        world.settle().await;
        world.branch("a", 4, 4, "a3").await;
        world.settle().await;
    }
}

#[tokio::test]
async fn a_late_block_where_an_empty_one_was_taken_for_granted_is_applied() {
    for depth in DEPTHS {
        // Heights 4, 7, 8 and 11 hold no block; the parents are the source's word.
        for late in [4, 7, 8, 11] {
            for (linked, final_height) in
                [(true, None), (false, None), (true, Some(6)), (true, Some(7)), (true, Some(8))]
            {
                let world = World::new(depth).await;
                world.sql("begin; update chains set start_height = 0").await;
                for height in [3, 5, 6, 9, 10, 12] {
                    world.put(height, &format!("h{height}"), &format!("h{}", height - 1), &["gold - someone 1"]).await;
                }
                world.sql("update chains set complete_to = 14; commit").await;
                if let Some(height) = final_height {
                    world.sql(&format!("update chains set head_height = 14, final_height = {height}")).await;
                }
                world.settle().await;
                world.settle().await;
                assert_eq!(world.one("select through_height from checkpoints").await.unwrap(), "14");
                let hash = if linked { format!("h{late}") } else { "stranger".to_owned() };
                let case = format!("late {late}, linked {linked}, final {final_height:?}, depth {depth}");
                println!("{case}");
                world.put(late, &hash, &format!("h{}", late - 1), &["gold - late 1"]).await;
                world.settle().await;
                // The source says again that it is complete.
                world.sql("update chains set complete_to = 14").await;
                world.settle().await;
                if linked {
                    assert_eq!(world.balance("gold", "late").await.as_deref(), Some("1"), "{case}");
                }
            }
        }
    }
}

#[tokio::test]
async fn heights_taken_as_empty_are_given_back_when_a_block_comes_among_them() {
    let world = World::new(64).await;
    let through = async || world.one("select through_height from checkpoints").await.unwrap();
    world.branch("a", 1, 5, "a0").await;
    world.sql("update chains set complete_to = 10").await;
    world.settle().await;
    assert_eq!(through().await, "10");
    // It announces an event that is not there yet: it does not count, and nothing from it on is known.
    world.sql("insert into blocks select chain_id, 8, 'a8', 'a7', null, 1 from chains").await;
    world.settle().await;
    assert_eq!(through().await, "7");
    world.sql("insert into token_events select chain_id, 8, 0, 0, 'gold', null, 'late', 1 from chains").await;
    world.settle().await;
    assert_eq!((through().await.as_str(), world.balance("gold", "late").await.as_deref()), ("8", Some("1")));
    world.sql("update chains set complete_to = 10").await;
    world.settle().await;
    assert_eq!(through().await, "10");
    // A pause and a source that takes its word back do the same.
    world.sql("select pause('main', null, 9)").await;
    world.settle().await;
    assert_eq!(through().await, "9");
    world.sql("update chains set complete_to = 7; select resume('main', null)").await;
    world.settle().await;
    assert_eq!(through().await, "8");
    world.sql("update chains set complete_to = null").await;
    world.settle().await;
    assert_eq!((through().await.as_str(), world.balance("gold", "late").await), ("5", None));
}

#[tokio::test]
async fn a_block_counts_once_its_predecessor_and_all_its_events_are_there() {
    for depth in DEPTHS {
        let world = twelve(depth).await;
        // Before its predecessor.
        world.branch("a", 14, 14, "a13").await;
        world.settle().await;
        assert_eq!(world.one("select height from checkpoints").await.unwrap(), "12");
        add_block(&world.db, 13, "a12").await;
        world.settle().await;
        assert_eq!(world.one("select height from checkpoints").await.unwrap(), "14", "a block without events is one");
        // Its events come later, one by one.
        world.sql("update blocks set event_count = 2 where height = 13").await;
        world.settle().await;
        assert_eq!(world.one("select height from checkpoints").await.unwrap(), "12");
        add_event(&world.db, 13).await;
        world.settle().await;
        assert_eq!(world.one("select height from checkpoints").await.unwrap(), "12");
        world.sql("insert into events (chain_id, height, tx_index, event_index, emitter, name) select chain_id, 13, 0, 0, 'vault', 'Opened' from chains").await;
        world.settle().await;
        assert_eq!(world.one("select height from checkpoints").await.unwrap(), "14");
        // One too many.
        world.sql("insert into events (chain_id, height, tx_index, event_index, emitter, name) select chain_id, 13, 0, 1, 'vault', 'Opened' from chains").await;
        world.settle().await;
        assert_eq!(world.one("select height from checkpoints").await.unwrap(), "12");
        world.sql("update blocks set event_count = null where height = 13").await;
        world.settle().await;
        assert_eq!(world.one("select height from checkpoints").await.unwrap(), "14");
    }
}

async fn copy(client: &Client, table: &str, lines: &[String]) {
    let sink = client.copy_in::<_, &[u8]>(&format!("copy {table} from stdin")).await.unwrap();
    let mut sink = std::pin::pin!(sink);
    for line in lines {
        sink.send(format!("{line}\n").leak().as_bytes()).await.unwrap();
    }
    sink.as_mut().finish().await.unwrap();
}

#[tokio::test]
async fn copies_of_events_and_blocks_are_applied_in_either_order() {
    for depth in DEPTHS {
        for events_first in [true, false] {
            let world = twelve(depth).await;
            let running = world.start(WakeMode::Listen, Duration::from_millis(20));
            let chain = world.one("select chain_id from chains").await.unwrap();
            let blocks: Vec<String> = (13..200).map(|h| format!("{chain}\t{h}\ta{h}\ta{}", h - 1)).collect();
            let events: Vec<String> = (13..200)
                .flat_map(|h| (0..5).map(move |i| (h, i)))
                .map(|(h, i)| format!("{chain}\t{h}\t{i}\t0\tgold\t\\N\tcopied{}\t{i}", h % 7))
                .collect();
            let events_table =
                "token_events (chain_id, height, tx_index, event_index, token, from_address, to_address, amount)";
            let blocks_table = "blocks (chain_id, height, hash, parent_hash)";
            if events_first {
                copy(&world.db, events_table, &events).await;
                copy(&world.db, blocks_table, &blocks).await;
            } else {
                copy(&world.db, blocks_table, &blocks).await;
                copy(&world.db, events_table, &events).await;
            }
            world.check_soon().await;
            running.stop().await;
            let copied = world.one("select sum(amount) from balances where address like 'copied%'").await;
            assert_eq!(copied.unwrap(), (187 * 10).to_string());
        }
    }
}

#[tokio::test]
async fn after_a_million_rows_were_deleted_ten_blocks_do_not_scan_the_table() {
    let world = World::new(64).await;
    world
        .sql(
            "set ebbtide.bulk = 'on';
             insert into token_events (chain_id, height, tx_index, event_index, token, to_address, amount)
             select chain_id, h, i, 0, 'gold', 'acc' || (h + i) % 50, 1 from chains, generate_series(1, 1000) h, generate_series(1, 1000) i;
             insert into blocks (chain_id, height, hash, parent_hash)
             select chain_id, h, 'a' || h, 'a' || (h - 1) from chains, generate_series(1, 1000) h;
             reset ebbtide.bulk; analyze",
        )
        .await;
    // Another connection, so that the counters are those of these statements alone.
    let deleting = world.client().await;
    deleting.batch_execute("delete from blocks where height > 1").await.unwrap();
    let left: i64 = deleting.query_one("select count(*) from token_events", &[]).await.unwrap().get(0);
    assert_eq!(left, 1000);
    let read_by = async |client: &Client| -> i64 {
        let sql = "select coalesce(sum(seq_tup_read), 0)::bigint from pg_stat_xact_user_tables
                   where relname in ('token_events', 'events', 'transactions', 'blocks')";
        client.query_one(sql, &[]).await.unwrap().get(0)
    };
    // The counters hold what this connection has not reported yet, the count above included.
    let before = read_by(&deleting).await;
    deleting.batch_execute("begin").await.unwrap();
    crate::support::check::branch(&deleting, "b", 2, 11, "a1").await;
    deleting.batch_execute("select drop_blocks('main', 9)").await.unwrap();
    let read = read_by(&deleting).await - before;
    deleting.batch_execute("commit").await.unwrap();
    println!("rows read by scans after a million were deleted: {read}");
    assert!(read < 200, "{read} rows were read by scans");
    world.settle().await;
}

#[tokio::test]
async fn negative_balances_are_kept_exact_or_halt_before_the_block() {
    for setting in [NegativeBalances::Zero, NegativeBalances::Show, NegativeBalances::Halt] {
        for depth in DEPTHS {
            let mut world = twelve(depth).await;
            world.settings.token_balances.negative_balances = setting;
            world.put(13, "b13", "a12", &["gold - fine 1", "gold pauper user1 40"]).await;
            if setting != NegativeBalances::Halt {
                world.settle().await;
                assert_eq!(world.balance("gold", "pauper").await.as_deref(), Some("-40"));
                assert_eq!(world.one("select kind from anomalies").await.unwrap(), "negative balance");
                continue;
            }
            let halted = world.try_process().await.unwrap_err().to_string();
            assert!(halted.contains("pauper") && halted.contains("b13"), "{halted}");
            assert_eq!(world.one("select height from checkpoints").await.unwrap(), "12");
            assert_eq!(world.balance("gold", "fine").await, None, "no part of the block is applied");
            // Nothing was fixed: it halts again. Then it is.
            world.sql("select resume('main', null)").await;
            world.try_process().await.unwrap_err();
            world.put(13, "c13", "a12", &["gold - pauper 40", "gold pauper user1 40"]).await;
            world.sql("select resume('main', null)").await;
            world.settle().await;
            // In a reorg as well.
            world.put(12, "d12", "a11", &["gold nobody user1 1"]).await;
            world.try_process().await.unwrap_err();
            assert_eq!(world.one("select hash from checkpoints").await.unwrap(), "c13", "readers keep the old state");
            world.put(12, "e12", "a11", &[]).await;
            world.sql("select resume('main', null)").await;
            world.settle().await;
        }
    }
}

#[tokio::test]
async fn bad_events_are_set_aside_or_halt_before_the_block() {
    let alice = "0x00000000000000000000000000000000000000a1";
    let gold = "0x00000000000000000000000000000000000000aa";
    for depth in DEPTHS {
        let mut world = World::new(depth).await;
        world.sql("update chains set kind = 'evm'").await;
        let good = format!("{gold} - {alice} 5");
        let (bad_account, bad_token) = (format!("{gold} - alice 7"), format!("gold - {alice} 7"));
        world.put(1, "0x01", "0x00", &[&good]).await;
        world.put(2, "0x02", "0x01", &[&bad_account, &good, &bad_token]).await;
        world.put(3, "0x03", "0x02", &[&good]).await;
        world.settle().await;
        assert_eq!(world.balance(gold, alice).await.as_deref(), Some("15"));
        let reasons = "select string_agg(reason, ' ' order by tx_index) from rejected_events";
        assert_eq!(world.one(reasons).await.unwrap(), "bad_address bad_token");
        // Mended in psql: applied in its own place.
        world.sql(&format!("update token_events set to_address = '{alice}' where to_address = 'alice'")).await;
        world.settle().await;
        assert_eq!(world.balance(gold, alice).await.as_deref(), Some("22"));
        assert_eq!(world.one(reasons).await.unwrap(), "bad_token");
        // A block that is gone takes its refusals along.
        world.sql("select drop_blocks('main', 2)").await;
        world.settle().await;
        assert_eq!(world.one("select count(*) from rejected_events").await.unwrap(), "0");

        world.settings.token_balances.on_bad_event = OnBadEvent::Halt;
        world.put(2, "0x04", "0x01", &[&good, &bad_account]).await;
        let halted = world.try_process().await.unwrap_err().to_string();
        assert!(halted.contains("0x04") && halted.contains("bad_address"), "{halted}");
        assert_eq!(world.balance(gold, alice).await.as_deref(), Some("5"));
        world.sql("delete from token_events where to_address = 'alice'; select resume('main', null)").await;
        world.settle().await;
    }
}
