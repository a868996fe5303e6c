//! Balances: zero, negative, at a height, in pages; and what is followed.

use ebbtide::api::ApiSettings;
use serde_json::{Value, json};

use crate::ledger::{A, B, C, Ledger, WUGNOT, get, pages};

#[tokio::test]
async fn zero_balances_are_left_out_unless_asked_for() {
    let ledger = Ledger::with_chain("gno", "gno").await;
    ledger.block("gno", 1, &[(WUGNOT, "", A, "5"), (WUGNOT, A, B, "5"), ("gno.land/r/demo/foo", "", A, "0")]).await;
    let api = ledger.api().await;
    let body = async |path: &str| get(&api, path).await.json();
    assert_eq!(body(&format!("/tokens/balances?address={A}")).await, json!({"balances": []}));
    assert_eq!(
        body(&format!("/tokens/balances?address={A}&zero=true")).await,
        json!({"balances": [{"tokenPath": "gno.land/r/demo/foo", "amount": 0}, {"tokenPath": WUGNOT, "amount": 0}]})
    );
    assert_eq!(body("/tokens/balances").await, json!({"balances": [{"tokenPath": WUGNOT, "amount": 5}]}));
    assert_eq!(body("/tokens/balances?zero=true").await["balances"].as_array().unwrap().len(), 2);
    assert_eq!(body(&format!("/tokens/{WUGNOT}/balances")).await["accountBalances"].as_array().unwrap().len(), 1);
    assert_eq!(
        body(&format!("/tokens/{WUGNOT}/balances?zero=true")).await["accountBalances"].as_array().unwrap().len(),
        2
    );
    assert_eq!(body("/tokens/transfer-history").await["transfers"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn negative_balances_are_zero_or_shown_and_always_counted() {
    let ledger = Ledger::with_chain("gno", "gno").await;
    let foo = "gno.land/r/demo/foo";
    // A gives what nobody saw it get, in both tokens; B is there to hold something.
    ledger.block("gno", 1, &[(WUGNOT, A, B, "7"), (foo, A, "", "3"), (WUGNOT, "", C, "1")]).await;
    let zero = ledger.api().await;
    let show = ledger.api_with(ApiSettings { shows_negative: true, ..ApiSettings::default() }).await;
    let account = format!("/tokens/balances?address={A}");

    let reply = get(&zero, &account).await;
    assert_eq!((reply.json(), reply.header("x-negative-balances")), (json!({"balances": []}), Some("2")));
    let reply = get(&zero, &format!("{account}&zero=true")).await;
    let zeros = json!({"balances": [{"tokenPath": foo, "amount": 0}, {"tokenPath": WUGNOT, "amount": 0}]});
    assert_eq!((reply.json(), reply.header("x-negative-balances")), (zeros, Some("2")));
    let reply = get(&show, &account).await;
    let shown = json!({"balances": [{"tokenPath": foo, "amount": -3}, {"tokenPath": WUGNOT, "amount": -7}]});
    assert_eq!((reply.json(), reply.header("x-negative-balances")), (shown, Some("2")));

    // Totals add the exact, signed amounts: -7 + 7 + 1.
    let reply = get(&zero, "/tokens/balances").await;
    let totals = json!({"balances": [{"tokenPath": WUGNOT, "amount": 1}]});
    assert_eq!((reply.json(), reply.header("x-negative-balances")), (totals, Some("1")));
    let reply = get(&show, "/tokens/balances").await;
    let totals = json!({"balances": [{"tokenPath": foo, "amount": -3}, {"tokenPath": WUGNOT, "amount": 1}]});
    assert_eq!((reply.json(), reply.header("x-negative-balances")), (totals, Some("1")));

    // Each is counted on one page, whatever the pages.
    for limit in 1..=3 {
        let mut counted = 0;
        let first = format!("/tokens/{WUGNOT}/balances?limit={limit}");
        let mut path = first.clone();
        loop {
            let reply = get(&zero, &path).await;
            counted += reply.header("x-negative-balances").unwrap().parse::<i32>().unwrap();
            match reply.json().get("nextCursor") {
                Some(cursor) => path = format!("{first}&cursor={}", cursor.as_str().unwrap()),
                None => break,
            }
        }
        assert_eq!(counted, 1, "pages of {limit}");
    }
    assert_eq!(
        get(&zero, &format!("/tokens/{WUGNOT}/balances?address={B}")).await.header("x-negative-balances"),
        Some("0")
    );
}

#[tokio::test]
async fn pages_join_without_gap_or_overlap_whatever_their_size() {
    let ledger = Ledger::with_chain("mine", "other").await;
    let accounts: Vec<String> = (0..13).map(|n| format!("account-{n:02}")).collect();
    for height in 1..=5i64 {
        let tokens: Vec<String> = (0..height).map(|n| format!("token-{n}")).collect();
        let events: Vec<(&str, &str, &str, &str)> = accounts
            .iter()
            .enumerate()
            .map(|(n, account)| (tokens[n % tokens.len()].as_str(), "", account.as_str(), "1"))
            .collect();
        ledger.block("mine", height, &events).await;
    }
    let api = ledger.api().await;
    let lists = [
        ("/tokens/balances?", "balances"),
        ("/tokens/balances?address=account-03&", "balances"),
        ("/tokens/token-0/balances?", "accountBalances"),
        ("/tokens/transfer-history?detail=true&", "transfers"),
        ("/tokens/transfer-history?detail=true&address=account-03&", "transfers"),
        ("/tokens/transfer-history?detail=true&kind=mint&address=account-03&", "transfers"),
        ("/tokens/transfer-history?detail=true&at=3&", "transfers"),
    ];
    for final_height in [0, 3, 5] {
        ledger.finalise(final_height).await;
        for (path, list) in &lists {
            let whole = get(&api, path).await.json()[list].as_array().unwrap().clone();
            assert!(!whole.is_empty(), "{path}");
            for limit in [1, 2, 3, 5, 13, 64, 65] {
                let walked = pages(&api, &format!("{path}limit={limit}"), list).await;
                assert_eq!(walked.concat(), whole, "{path} by {limit}, final at {final_height}");
                let full = walked.iter().take(walked.len() - 1).all(|page| page.len() == limit);
                assert!(full && !walked.last().unwrap().is_empty(), "{path} by {limit}");
            }
        }
    }
}

#[tokio::test]
async fn balances_at_a_block_are_those_it_left() {
    let ledger = Ledger::with_chain("mine", "other").await;
    ledger.block("mine", 1, &[("gold", "", "alice", "10")]).await;
    ledger.block("mine", 2, &[("gold", "alice", "bob", "4")]).await;
    ledger.block("mine", 3, &[("gold", "bob", "carol", "4"), ("silver", "", "bob", "1")]).await;
    let api = ledger.api().await;
    for final_height in [0, 2, 3] {
        ledger.finalise(final_height).await;
        let holders = async |at: &str| -> String {
            let reply = get(&api, &format!("/tokens/gold/balances?at={at}")).await;
            assert_eq!(reply.status, 200, "{at}: {}", reply.text);
            let body = reply.json();
            let items = body["accountBalances"].as_array().unwrap();
            let list: Vec<_> = items
                .iter()
                .map(|i| format!("{}={}", i["address"].as_str().unwrap(), i["amount"].as_str().unwrap()))
                .collect();
            format!(
                "{} @{} {}",
                list.join(" "),
                reply.header("x-block-height").unwrap(),
                reply.header("x-block-hash").unwrap()
            )
        };
        assert_eq!(holders("1").await, "alice=10 @1 h1");
        assert_eq!(holders("2").await, "alice=6 bob=4 @2 h2");
        assert_eq!(holders("h2").await, "alice=6 bob=4 @2 h2");
        assert_eq!(holders("3").await, "alice=6 carol=4 @3 h3");
        assert_eq!(holders("h3").await, "alice=6 carol=4 @3 h3");
        let body = get(&api, "/tokens/balances?address=bob&at=2").await.json();
        assert_eq!(body, json!({"balances": [{"tokenPath": "gold", "amount": "4"}]}));
        let body = get(&api, "/tokens/balances?at=2").await.json();
        assert_eq!(body, json!({"balances": [{"tokenPath": "gold", "amount": "10"}]}));
        let body = get(&api, "/tokens/transfer-history?at=2").await.json();
        assert_eq!(body["transfers"].as_array().unwrap().len(), 2);
        let body = get(&api, "/tokens/transfer-history?at=h2&address=bob").await.json();
        assert_eq!(body["transfers"].as_array().unwrap().len(), 1);
        for at in ["4", "h4", "0", "9223372036854775807", "99999999999999999999", "-1"] {
            for route in ["/tokens/balances", "/tokens/gold/balances", "/tokens/transfer-history"] {
                assert_eq!(get(&api, &format!("{route}?at={at}")).await.code(), (404, "unknown_block".into()), "{at}");
            }
        }
    }
}

#[tokio::test]
async fn final_is_the_newest_final_state_that_is_applied() {
    let ledger = Ledger::with_chain("mine", "other").await;
    for height in 1..=4 {
        ledger.block("mine", height, &[("gold", "", "alice", "1")]).await;
    }
    let api = ledger.api().await;
    assert_eq!(get(&api, "/tokens/balances?at=final").await.code(), (404, "unknown_block".into()), "nothing is final");
    let at_final = async || {
        let reply = get(&api, "/tokens/gold/balances?at=final").await;
        (
            reply.json()["accountBalances"][0]["amount"].as_str().unwrap().to_owned(),
            reply.header("x-block-hash").unwrap().to_owned(),
        )
    };
    ledger.sql("update chains set final_height = 2").await;
    assert_eq!(at_final().await, ("2".into(), "h2".into()));
    ledger.sql("delete from applied_blocks where height <= 2").await;
    assert_eq!(at_final().await, ("2".into(), "h2".into()));
    // The source calls more final than is applied.
    ledger.sql("update chains set final_height = 9").await;
    assert_eq!(at_final().await, ("4".into(), "h4".into()));
    // Block 4 was replaced before it was final, and the projection has not followed yet: 3 is what is both.
    ledger.sql("update chains set final_height = 2").await;
    ledger.put("mine", 4, "other-4", "h3", &[("gold", "", "bob", "1")]).await;
    ledger.sql("update chains set final_height = 4").await;
    assert_eq!(at_final().await, ("3".into(), "h3".into()));
}

#[tokio::test]
async fn a_replaced_block_is_gone_and_one_not_applied_is_unknown() {
    let ledger = Ledger::with_chain("mine", "other").await;
    for height in 1..=3 {
        ledger.block("mine", height, &[("gold", "", "alice", "1")]).await;
    }
    let api = ledger.api().await;
    ledger.put("mine", 3, "x3", "h2", &[("gold", "", "bob", "5")]).await;
    let at = async |hash: &str| get(&api, &format!("/tokens/balances?at={hash}")).await;
    assert_eq!(at("h3").await.code(), (410, "block_replaced".into()));
    assert_eq!(at("x3").await.code(), (404, "unknown_block".into()), "stored, and not applied yet");
    assert_eq!(at("h2").await.status, 200);
    // It came back: not gone any more, but only applied blocks are answered.
    ledger.put("mine", 3, "h3", "h2", &[("gold", "", "alice", "1")]).await;
    assert_eq!(at("h3").await.status, 200, "the same block, still in the journal");
    assert_eq!(at("x3").await.code(), (410, "block_replaced".into()));
}

#[tokio::test]
async fn status_chains_and_reorgs_say_what_is_followed() {
    let ledger = Ledger::with_chain("one", "other").await;
    let api = ledger.api().await;
    let bare = get(&api, "/status").await.json()["chains"][0].clone();
    assert_eq!((&bare["state"], &bare["source"]), (&json!("silent"), &json!(null)), "nobody processes: {bare}");
    assert_eq!((&bare["projections"][0]["state"], &bare["projections"][0]["lag"]), (&json!("silent"), &json!(null)));
    for height in 1..=3 {
        ledger.block("one", height, &[("gold", "", "alice", "1")]).await;
    }
    ledger.chain("two", "evm").await;
    ledger.sql("update chains set head_height = 10, network_id = '7' where name = 'one'").await;
    ledger.sql("update checkpoints set halted_reason = 'disk full', redo_from = 2").await;
    let status = get(&api, "/status?chain=one").await.json();
    assert_eq!(status["chains"].as_array().unwrap().len(), 1);
    let chain = &status["chains"][0];
    assert_eq!((&chain["head"], &chain["tip"]["hash"], &chain["networkId"]), (&json!(10), &json!("h3"), &json!("7")));
    let projection = &chain["projections"][0];
    assert_eq!(
        (&projection["lag"], &projection["halted"], &projection["redoFrom"]),
        (&json!(9), &json!("disk full"), &json!(2)),
        "from 2 on it is applied again"
    );
    assert_eq!((&projection["state"], &projection["reason"]), (&json!("halted"), &json!("disk full")));
    assert_eq!(projection["remedy"], "fix the cause, then run `ebbtide resume --chain one`");
    assert_eq!((&chain["state"], &chain["source"]["state"]), (&json!("halted"), &json!("silent")));
    let names: Vec<Value> =
        get(&api, "/chains").await.json()["chains"].as_array().unwrap().iter().map(|c| c["name"].clone()).collect();
    assert_eq!(names, ["one", "two"]);
    for route in ["/status", "/chains", "/reorgs"] {
        assert_eq!(get(&api, &format!("{route}?chain=none")).await.code(), (404, "unknown_chain".into()));
        assert_eq!(get(&api, &format!("{route}?chain=one&chain=two")).await.code(), (400, "invalid_parameter".into()));
    }
    assert_eq!(get(&api, "/reorgs").await.text, r#"{"reorgs":[]}"#);
    ledger
        .sql(
            "insert into reorgs (chain_id, projection, ancestor, depth, old_tip_height, old_tip_hash, new_tip_height,
            new_tip_hash, blocks_undone, blocks_applied, rows_touched, duration_ms)
        select chain_id, 'token_balances', n, 1, n + 1, 'a' || n, n + 1, 'b' || n, 1, 1, 2, 0.5
        from chains, generate_series(1, 5) n where name = 'one'",
        )
        .await;
    let walked = pages(&api, "/reorgs?limit=2&chain=one", "reorgs").await;
    let tips: Vec<&Value> = walked.iter().flatten().map(|r| &r["oldTip"]["hash"]).collect();
    assert_eq!(tips, ["a5", "a4", "a3", "a2", "a1"]);
    assert_eq!(get(&api, "/reorgs?chain=two").await.text, r#"{"reorgs":[]}"#);
}

#[tokio::test]
async fn a_height_is_read_exactly_though_older_changes_are_gone() {
    let ledger = Ledger::with_chain("mine", "other").await;
    for height in 1..=6 {
        ledger.block("mine", height, &[("gold", "", "alice", "1"), ("silver", "", "bob", "2")]).await;
    }
    ledger.finalise(4).await;
    // Nothing at or below 4 is kept: what stood there follows from the first change above.
    ledger.sql("delete from balance_history where height <= 4; update checkpoints set history_from = 4").await;
    let api = ledger.api().await;
    for at in [4, 5, 6] {
        let holders = get(&api, &format!("/tokens/gold/balances?at={at}")).await.json();
        assert_eq!(holders["accountBalances"][0]["amount"], json!(at.to_string()), "{holders}");
        let account = get(&api, &format!("/tokens/balances?address=bob&at={at}")).await.json();
        assert_eq!(account["balances"][0]["amount"], json!((2 * at).to_string()), "{account}");
        let totals = get(&api, &format!("/tokens/balances?at={at}")).await.json();
        assert_eq!(totals["balances"][1]["amount"], json!((2 * at).to_string()), "{totals}");
    }
    // And where that change is not kept either, nobody pretends to know.
    ledger.sql("delete from balance_history where height <= 6").await;
    for path in ["/tokens/gold/balances?", "/tokens/balances?", "/tokens/balances?address=bob&"] {
        assert_eq!(get(&api, &format!("{path}at=5")).await.code(), (410, "history_pruned".into()), "{path}");
        assert_eq!(get(&api, &format!("{path}at=6")).await.status, 200, "{path}");
    }
}
