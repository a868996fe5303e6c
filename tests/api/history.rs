//! Transfer history: what is applied, page by page.

use ebbtide::store::{Store, StoreError, StoreFault, StoreSettings};
use serde_json::{Value, json};

use crate::ledger::{A, B, C, Ledger, WUGNOT, get};

#[tokio::test]
async fn history_in_detail_names_its_block_and_transaction() {
    let ledger = Ledger::with_chain("gno", "gno").await;
    ledger.block("gno", 1, &[(WUGNOT, "", A, "5"), (WUGNOT, A, B, "2"), (WUGNOT, B, "", "1")]).await;
    let api = ledger.api().await;
    let reply = get(&api, "/tokens/transfer-history?detail=true").await;
    let newest = format!(
        r#"{{"transfers":[{{"fromAddress":"{B}","toAddress":"","tokenPath":"{WUGNOT}","amount":1,"id":"gno:1:2:0","kind":"burn","blockHeight":1,"txHash":"tx-1-2","txIndex":2,"eventIndex":0,"time":"2026-07-01T10:00:00Z"}},"#
    );
    assert!(reply.text.starts_with(&newest), "{}", reply.text);
    let kinds = async |query: &str| -> Vec<String> {
        let body = get(&api, &format!("/tokens/transfer-history?detail=true{query}")).await.json();
        let items = body["transfers"].as_array().unwrap().clone();
        items.iter().map(|item| item["kind"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(kinds("").await, ["burn", "transfer", "mint"]);
    assert_eq!(kinds("&kind=mint").await, ["mint"]);
    assert_eq!(kinds("&kind=mint&kind=burn").await, ["burn", "mint"]);
    assert_eq!(kinds("&kind=mint&kind=burn&kind=transfer&kind=mint").await.len(), 3);
    assert_eq!(kinds(&format!("&address={A}&kind=transfer")).await, ["transfer"]);
    assert_eq!(kinds(&format!("&address={C}")).await.len(), 0);
    ledger.sql("delete from transactions; update blocks set time = null; update applied_blocks a set revision = b.revision from blocks b where b.height = a.height").await;
    let bare = get(&api, "/tokens/transfer-history?detail=true&limit=1").await.json();
    assert_eq!((&bare["transfers"][0]["txHash"], &bare["transfers"][0]["time"]), (&Value::Null, &Value::Null));
}

#[tokio::test]
async fn the_last_time_that_is_taken_can_be_shown_and_one_that_cannot_be_read_is_our_fault() {
    let ledger = Ledger::with_chain("gno", "gno").await;
    ledger.block("gno", 1, &[(WUGNOT, "", A, "5")]).await;
    ledger.sql("update blocks set time = '9999-12-30 22:00:00.999999+00'").await;
    ledger.sql("update applied_blocks a set revision = b.revision from blocks b where b.height = a.height").await;
    let api = ledger.api().await;
    let paths = ["", &format!("&address={A}")].map(|of| format!("/tokens/transfer-history?detail=true{of}"));
    for path in &paths {
        let reply = get(&api, path).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.text);
        assert_eq!(reply.json()["transfers"][0]["time"], "9999-12-30T22:00:00.999999Z");
    }
    // One microsecond more.
    ledger
        .sql(
            "alter table blocks drop constraint blocks_time_is_from_year_1_to_9999_12_30;
             update blocks set time = '9999-12-30 22:00:01+00';
             update applied_blocks a set revision = b.revision from blocks b where b.height = a.height",
        )
        .await;
    for path in &paths {
        assert_eq!(get(&api, path).await.code(), (500, "internal".into()), "{path}");
    }
    let row = ledger.db.query_one("select time from blocks", &[]).await.unwrap();
    let unread = row.try_get::<_, Option<jiff::Timestamp>>(0).unwrap_err();
    assert_eq!(StoreError::from(unread).fault(), StoreFault::Permanent);
}

#[tokio::test]
async fn only_a_broken_connection_is_one_to_make_again() {
    let ledger = Ledger::new().await;
    let unsent = ledger.db.batch_execute("select '\0'").await.unwrap_err();
    assert_eq!(StoreError::from(unsent).fault(), StoreFault::Permanent);
    let closed = ledger.db;
    let other = ledger.pg.client().await;
    let pid: i32 = closed.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
    other.query_one("select pg_terminate_backend($1, 5000)", &[&pid]).await.unwrap();
    for said in ["ended by the server", "closed"] {
        let error = closed.query_one("select 1", &[]).await.unwrap_err();
        assert_eq!(StoreError::from(error).fault(), StoreFault::Unavailable, "{said}");
    }
    let nobody = Store::open("postgres://nobody@127.0.0.1:1/none", StoreSettings::default()).unwrap();
    assert_eq!(nobody.ping().await.unwrap_err().fault(), StoreFault::Unavailable, "refused");
}

#[tokio::test]
async fn pruned_history_is_gone_and_never_silently_short() {
    let ledger = Ledger::with_chain("mine", "other").await;
    for height in 1..=6 {
        ledger.block("mine", height, &[("gold", "", "alice", "1")]).await;
    }
    ledger.block("mine", 7, &[("gold", "", "newcomer", "1")]).await;
    ledger.finalise(4).await;
    ledger.sql("delete from balance_history where height < 4; update checkpoints set history_from = 4").await;
    let api = ledger.api().await;
    for route in ["/tokens/balances", "/tokens/gold/balances", "/tokens/transfer-history?address=alice"] {
        let join = if route.contains('?') { '&' } else { '?' };
        assert_eq!(get(&api, &format!("{route}{join}at=3")).await.code(), (410, "history_pruned".into()), "{route}");
        assert_eq!(get(&api, &format!("{route}{join}at=4")).await.status, 200, "{route}");
    }
    assert_eq!(get(&api, "/tokens/transfer-history?at=3").await.json()["transfers"].as_array().unwrap().len(), 3);
    let page = get(&api, "/tokens/transfer-history?address=alice").await.json();
    assert_eq!(page["transfers"].as_array().unwrap().len(), 3, "blocks 6, 5, 4");
    let next = page["nextCursor"].as_str().expect("there is more, and it cannot be shown");
    let beyond = get(&api, &format!("/tokens/transfer-history?address=alice&cursor={next}")).await;
    assert_eq!(beyond.code(), (410, "history_pruned".into()));
    let page = get(&api, "/tokens/transfer-history?address=newcomer").await.json();
    assert_eq!(
        (page["transfers"].as_array().unwrap().len(), page.get("nextCursor")),
        (1, None),
        "came after the pruning"
    );
}

#[tokio::test]
async fn history_hides_blocks_until_they_are_applied_as_they_stand() {
    let ledger = Ledger::with_chain("mine", "other").await;
    for height in 1..=5 {
        ledger.block("mine", height, &[("gold", "", "alice", "1"), ("gold", "", "bob", "1")]).await;
    }
    ledger.finalise(2).await;
    let api = ledger.api().await;
    let heights = async || -> Vec<i64> {
        let mut all = Vec::new();
        for path in ["/tokens/transfer-history?detail=true", "/tokens/transfer-history?detail=true&address=alice"] {
            let body = get(&api, path).await.json();
            let mut heights: Vec<i64> =
                body["transfers"].as_array().unwrap().iter().map(|i| i["blockHeight"].as_i64().unwrap()).collect();
            heights.dedup();
            all.push(heights);
        }
        assert_eq!(all[0], all[1], "with and without an account");
        all.remove(0)
    };
    assert_eq!(heights().await, [5, 4, 3, 2, 1]);
    // Stored and not applied.
    ledger.put("mine", 6, "h6", "h5", &[("gold", "", "alice", "1")]).await;
    assert_eq!(heights().await, [5, 4, 3, 2, 1]);
    // Edited inside the window: hidden until it is applied again.
    ledger.sql("update token_events set amount = 2 where height = 4 and tx_index = 1").await;
    assert_eq!(heights().await, [5, 3, 2, 1]);
    ledger
        .sql("update applied_blocks a set revision = b.revision from blocks b where b.height = 4 and a.height = 4")
        .await;
    assert_eq!(heights().await, [5, 4, 3, 2, 1]);
    // Replaced from 5 on.
    ledger.put("mine", 5, "x5", "h4", &[("gold", "", "alice", "9")]).await;
    assert_eq!(heights().await, [4, 3, 2, 1]);
    // Changed below the window: nothing from there to the window is known to be applied.
    ledger.sql("update token_events set amount = 2 where height = 2 and tx_index = 1").await;
    assert_eq!(heights().await, [4, 3, 1]);
    ledger.sql("update checkpoints set redo_from = null").await;
    assert_eq!(heights().await, [4, 3, 2, 1]);
    // Events that no block stands for do not count.
    ledger.sql("update checkpoints set through_height = 9; delete from applied_blocks").await;
    ledger
        .sql(
            "insert into token_events (chain_id, height, tx_index, event_index, token, to_address, amount)
        select chain_id, 8, 0, 0, 'gold', 'alice', 1 from chains",
        )
        .await;
    let body = get(&api, "/tokens/transfer-history?detail=true").await.json();
    assert!(body["transfers"].as_array().unwrap().iter().all(|item| item["blockHeight"] != json!(8)));
}

#[tokio::test]
async fn a_history_cursor_whose_block_was_undone_is_stale() {
    let ledger = Ledger::with_chain("mine", "other").await;
    for height in 1..=3 {
        ledger.block("mine", height, &[("gold", "", "alice", "1"), ("gold", "", "alice", "1")]).await;
    }
    let api = ledger.api().await;
    for path in ["/tokens/transfer-history?limit=3", "/tokens/transfer-history?limit=3&address=alice"] {
        let cursor = get(&api, path).await.json()["nextCursor"].as_str().unwrap().to_owned();
        let next = format!("{path}&cursor={cursor}");
        assert_eq!(get(&api, &next).await.json()["transfers"].as_array().unwrap().len(), 3);
        // A block above the cursor's may go: what lies before the cursor is what it was.
        ledger.put("mine", 3, "x3", "h2", &[]).await;
        assert_eq!(get(&api, &next).await.status, 200);
        ledger.put("mine", 2, "x2", "h1", &[]).await;
        assert_eq!(get(&api, &next).await.code(), (409, "cursor_stale".into()));
        for (height, parent) in [(2, "h1"), (3, "h2")] {
            let events = [("gold", "", "alice", "1"), ("gold", "", "alice", "1")];
            ledger.put("mine", height, &format!("h{height}"), parent, &events).await;
        }
        ledger.sql("update applied_blocks a set revision = b.revision from blocks b where b.height = a.height").await;
    }
}

#[tokio::test]
async fn blocks_that_were_final_when_applied_count_without_a_journal() {
    let ledger = Ledger::with_chain("mine", "other").await;
    for height in 1..=6 {
        ledger.block("mine", height, &[("gold", "", "alice", "1")]).await;
    }
    // 1 is still journaled, 2 to 4 never were (final when they came), 5 and 6 are above the final height.
    ledger.sql("update chains set final_height = 4; delete from applied_blocks where height between 2 and 4").await;
    let api = ledger.api().await;
    for address in ["", "&address=alice"] {
        let body = get(&api, &format!("/tokens/transfer-history?detail=true{address}")).await.json();
        let heights: Vec<&Value> =
            body["transfers"].as_array().unwrap().iter().map(|item| &item["blockHeight"]).collect();
        assert_eq!(heights, [6, 5, 4, 3, 2, 1]);
    }
    for at in ["3", "h3"] {
        let reply = get(&api, &format!("/tokens/balances?at={at}")).await;
        assert_eq!((reply.header("x-block-hash"), &reply.json()["balances"][0]["amount"]), (Some("h3"), &json!("3")));
    }
    // The journal still knows better where it holds something: another block stands at 1, not applied yet.
    ledger.sql("update applied_blocks set hash = 'y1' where height = 1").await;
    assert_eq!(get(&api, "/tokens/balances?at=h1").await.code(), (404, "unknown_block".into()));
    assert_eq!(get(&api, "/tokens/balances?at=1").await.header("x-block-hash"), Some("y1"));
    let body = get(&api, "/tokens/transfer-history").await.json();
    assert_eq!(body["transfers"].as_array().unwrap().len(), 5);
}

#[tokio::test]
async fn events_the_projection_refused_are_not_history() {
    let ledger = Ledger::with_chain("eth", "evm").await;
    let (token, alice) = ("0x00000000000000000000000000000000000000aa", "0x00000000000000000000000000000000000000bb");
    let events = [(token, "", alice, "7"), (token, "", "alice", "8"), ("gold", "", alice, "9")];
    ledger.put("eth", 1, "0x01", "0x00", &events).await;
    ledger.process().await;
    let api = ledger.api().await;
    let body = get(&api, "/tokens/transfer-history?limit=1").await.json();
    let seven = json!([{"fromAddress": "", "toAddress": alice, "tokenPath": token, "amount": "7"}]);
    assert_eq!((&body["transfers"], body.get("nextCursor")), (&seven, None));
}
