//! Paths, parameters, methods, errors, the golden scenario.

use ebbtide::api::{ApiSettings, routes};
use ebbtide::store::{Store, StoreSettings};
use serde_json::json;

use crate::ledger::{A, B, C, LARGEST, Ledger, WUGNOT, ask, get, pages, scenario};

#[tokio::test]
async fn the_scenario_is_answered_to_the_byte() {
    let Some((ledger, requests)) = scenario().await else { return };
    let api = ledger.api().await;
    assert!(requests.len() >= 10);
    for round in ["in the window", "below the window"] {
        for (path, status, body) in &requests {
            let reply = get(&api, path).await;
            assert_eq!((reply.status, &reply.text), (*status, body), "{path} {round}");
            assert_eq!(reply.header("x-block-height"), Some("1006"));
            assert_eq!(reply.header("x-block-hash"), Some("h1006"));
            assert_eq!(reply.header("x-chain-id"), Some("gno"));
            assert_eq!(reply.header("content-type"), Some("application/json; charset=utf-8"));
        }
        ledger.finalise(1006).await;
    }
}

#[tokio::test]
async fn head_gets_the_headers_of_get_and_no_body() {
    let Some((ledger, requests)) = scenario().await else { return };
    let api = ledger.api().await;
    for (path, _, _) in requests {
        let (got, head) = (get(&api, &path).await, ask(&api, "HEAD", &path).await);
        assert_eq!((head.status, head.text.as_str()), (200, ""));
        assert_eq!(head.header("content-length"), Some(got.text.len().to_string().as_str()));
        assert_eq!(head.header("x-block-hash"), got.header("x-block-hash"));
    }
}

#[tokio::test]
async fn other_methods_are_told_which_are_allowed() {
    let ledger = Ledger::with_chain("gno", "gno").await;
    let api = ledger.api().await;
    for path in ["/tokens/balances", "/tokens/transfer-history", "/tokens/gno.land/r/demo/wugnot/balances", "/status"] {
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            let reply = ask(&api, method, path).await;
            assert_eq!(reply.code(), (405, "method_not_allowed".into()), "{method} {path}");
            assert_eq!(reply.header("allow"), Some("GET, HEAD"));
        }
    }
    assert_eq!(ask(&api, "POST", "/nowhere").await.code(), (404, "not_found".into()));
}

#[tokio::test]
async fn routes_match_the_raw_path_alone() {
    let ledger = Ledger::with_chain("gno", "gno").await;
    let api = ledger.api().await;
    for path in [
        "/",
        "/tokens",
        "/tokens/",
        "/tokens/balances/",
        "/tokens/transfer-history/",
        "/tokens%2Fbalances",
        "/Tokens/balances",
        "/tokens/gno.land/r/demo/wugnot",
        "/tokens/gno.land/r/demo/wugnot/balances/",
        "/health",
        "//tokens/balances",
        "/tokens/gno.land/r/demo/wugnot%2Fbalances",
    ] {
        assert_eq!(get(&api, path).await.code(), (404, "not_found".into()), "{path}");
    }
    for path in ["/tokens/balances?", "/tokens/balances?&&"] {
        assert_eq!(get(&api, path).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn token_paths_hold_slashes_dots_and_escapes() {
    let ledger = Ledger::with_chain("gno", "gno").await;
    let odd = "gno.land/r/demo/balances";
    let history = "gno.land/r/demo/transfer-history.X-Y_z";
    ledger.block("gno", 1, &[(odd, "", A, "1"), (history, "", A, "2")]).await;
    let api = ledger.api().await;
    for path in [
        "/tokens/gno.land/r/demo/balances/balances",
        "/tokens/gno.land%2Fr%2Fdemo%2Fbalances/balances",
        "/tokens/gno.land%2fr/d%65mo/balances/balances",
    ] {
        let reply = get(&api, path).await;
        let expected = json!({"accountBalances": [{"address": A, "tokenPath": odd, "amount": 1}]});
        assert_eq!(reply.json(), expected, "{path}");
    }
    let reply = get(&api, &format!("/tokens/{history}/balances")).await;
    assert_eq!(reply.json()["accountBalances"][0]["tokenPath"], json!(history));
    let long = format!("/tokens/gno.land/r/{}/balances", "a".repeat(246));
    for path in [
        "/tokens//balances",
        "/tokens/gno.land/balances",
        "/tokens/gno.land/r//wugnot/balances",
        "/tokens/gno.land/../x/balances",
        "/tokens/gno.land/r/Demo/wugnot/balances",
        "/tokens/gno.land/r/demo/wugnot%/balances",
        "/tokens/a%zz/balances",
        "/tokens/gno.land/r/%ff/balances",
        "/tokens/gno.land%252Fr%252Fx/balances",
        "/tokens/gno.land/r/x%00/balances",
        "/tokens/gno.land/r/x.A.short/balances",
        &long,
    ] {
        assert_eq!(get(&api, path).await.code(), (400, "invalid_token_path".into()), "{path}");
    }
    let unknown = get(&api, "/tokens/gno.land/r/never/seen/balances").await;
    assert_eq!((unknown.status, unknown.text.as_str()), (200, r#"{"accountBalances":[]}"#));
}

#[tokio::test]
async fn a_path_finds_the_token_then_its_symbol_then_its_realm() {
    let ledger = Ledger::with_chain("gno", "gno").await;
    let all = [
        "gno.land/r/a/x.FOO",
        "gno.land/r/a/x.FOO.0000000",
        "gno.land/r/a/x.FOO.0000001",
        "gno.land/r/a/x.FOOBAR.0000000",
        "gno.land/r/a/xy.FOO",
        "gno.land/r/b/y",
        "gno.land/r/b/y.BAR",
        "gno.land/r/c/z.ONE.0000000",
        "gno.land/r/c/z.TWO.0000000",
        "gno.land/r/c/z/sub.TWO.0000000",
    ];
    let events: Vec<_> = all.iter().map(|token| (*token, "", A, "5")).collect();
    ledger.block("gno", 1, &events).await;
    let api = ledger.api().await;
    let found = async |path: &str, query: &str| -> Vec<String> {
        let body = get(&api, &format!("/tokens/{path}/balances{query}")).await.json();
        let items = body["accountBalances"].as_array().unwrap().clone();
        items.iter().map(|item| item["tokenPath"].as_str().unwrap().to_owned()).collect()
    };
    for query in ["", &format!("?address={A}")] {
        assert_eq!(found("gno.land/r/a/x.FOO", query).await, ["gno.land/r/a/x.FOO"], "exactly a known token");
        assert_eq!(found("gno.land/r/a/x.FOOBAR", query).await, ["gno.land/r/a/x.FOOBAR.0000000"], "its symbol");
        assert_eq!(found("gno.land/r/a/x", query).await, all[..4], "its realm");
        assert_eq!(found("gno.land/r/b/y", query).await, ["gno.land/r/b/y"], "a realm that is a token itself");
        assert_eq!(found("gno.land/r/c/z", query).await, all[7..9], "not the realm below it");
        assert_eq!(found("gno.land/r/c/z.ONE.0000000", query).await, ["gno.land/r/c/z.ONE.0000000"]);
        assert!(found("gno.land/r/c/z.ONE.0000009", query).await.is_empty());
        assert!(found("gno.land/r/c", query).await.is_empty());
    }
    let walked = pages(&api, "/tokens/gno.land/r/a/x/balances?limit=1", "accountBalances").await;
    assert_eq!(walked.len(), 4);
    let walked = pages(&api, &format!("/tokens/gno.land/r/a/x/balances?limit=3&address={A}"), "accountBalances").await;
    assert_eq!(walked.iter().map(Vec::len).collect::<Vec<_>>(), [3, 1]);
}

#[tokio::test]
async fn bad_parameters_are_refused_by_name() {
    let ledger = Ledger::with_chain("gno", "gno").await;
    ledger.block("gno", 1, &[(WUGNOT, "", A, "1")]).await;
    let api = ledger.api().await;
    let upper = A.to_uppercase();
    let broken = A.replace("g1j", "g1q");
    let cases = [
        ("invalid_address", format!("address={upper}")),
        ("invalid_address", format!("address={broken}")),
        ("invalid_address", "address=alice".into()),
        ("invalid_limit", "limit=0".into()),
        ("invalid_limit", "limit=1001".into()),
        ("invalid_limit", "limit=-1".into()),
        ("invalid_limit", "limit=ten".into()),
        ("invalid_limit", "limit=".into()),
        ("invalid_limit", "limit=99999999999999999999999".into()),
        ("invalid_cursor", "cursor=nonsense".into()),
        ("invalid_cursor", "cursor=%20".into()),
        ("invalid_parameter", "limit=5&limit=5".into()),
        ("invalid_parameter", format!("address={A}&address={A}")),
        ("invalid_parameter", "amounts=float".into()),
        ("invalid_parameter", "address=%zz".into()),
        ("invalid_parameter", "address=%00".into()),
        ("invalid_parameter", "at=1&at=2".into()),
        ("invalid_parameter", "chain=gno&chain=gno".into()),
    ];
    for route in ["/tokens/balances", "/tokens/transfer-history", "/tokens/gno.land/r/demo/wugnot/balances"] {
        for (code, query) in &cases {
            assert_eq!(get(&api, &format!("{route}?{query}")).await.code(), (400, (*code).into()), "{route}?{query}");
        }
        let absent = get(&api, &format!("{route}?limit=1000&address=")).await;
        assert_eq!(absent.text, get(&api, route).await.text, "empty is absent, to the letter of the interface on gno");
    }
    for (route, query) in [
        ("/tokens/balances", "zero=1"),
        ("/tokens/balances", "zero=true&zero=true"),
        ("/tokens/transfer-history", "kind=steal"),
        ("/tokens/transfer-history", "detail=yes"),
    ] {
        assert_eq!(
            get(&api, &format!("{route}?{query}")).await.code(),
            (400, "invalid_parameter".into()),
            "{route}?{query}"
        );
    }
    // A cursor belongs to the list that gave it out.
    ledger.block("gno", 2, &[(WUGNOT, "", B, "1"), ("gno.land/r/demo/foo", "", B, "1")]).await;
    let cursor_of = async |path: &str| get(&api, path).await.json()["nextCursor"].as_str().unwrap().to_owned();
    let by_token = cursor_of("/tokens/balances?limit=1").await;
    let by_account = cursor_of("/tokens/gno.land/r/demo/wugnot/balances?limit=1").await;
    let by_event = cursor_of("/tokens/transfer-history?limit=1").await;
    for (route, own) in [
        ("/tokens/balances", &by_token),
        ("/tokens/gno.land/r/demo/wugnot/balances", &by_account),
        ("/tokens/transfer-history", &by_event),
    ] {
        for cursor in [&by_token, &by_account, &by_event] {
            let status = get(&api, &format!("{route}?cursor={cursor}")).await.status;
            assert_eq!(status, if cursor == own { 200 } else { 400 }, "{route}");
        }
    }
    let other_token = format!("/tokens/gno.land/r/demo/foo/balances?cursor={by_account}");
    assert_eq!(get(&api, &other_token).await.code(), (400, "invalid_cursor".into()));
}

#[tokio::test]
async fn a_parameter_that_the_route_does_not_take_or_that_is_empty_is_refused_by_name() {
    let ledger = Ledger::with_chain("mine", "other").await;
    ledger.block("mine", 1, &[("gold", "", "alice", "1")]).await;
    let api = ledger.api().await;
    const LIST: &[&str] = &["chain", "at", "limit", "cursor"];
    let balances = [LIST, &["address", "amounts", "zero"]].concat();
    let routes: [(&str, Vec<&str>); 12] = [
        ("/tokens/balances", balances.clone()),
        ("/tokens/gold/balances", balances),
        ("/tokens/transfer-history", [LIST, &["address", "amounts", "kind", "detail"]].concat()),
        ("/accounts/alice", [LIST, &["zero"]].concat()),
        ("/vaults", LIST.to_vec()),
        ("/vaults/0x1", LIST.to_vec()),
        ("/vaults/0x1/liquidity-providers", LIST.to_vec()),
        ("/vaults/0x1/liquidity-providers/0x2", vec!["chain", "at"]),
        ("/rounds/0x1", vec!["chain", "limit", "cursor"]),
        ("/chains", vec!["chain"]),
        ("/status", vec!["chain"]),
        ("/reorgs", vec!["chain", "limit", "cursor"]),
    ];
    let all = ["chain", "at", "limit", "cursor", "address", "amounts", "zero", "kind", "detail"];
    for (route, takes) in &routes {
        let unknown = ["adress", "Address", "ADDRESS", "height", "At", "offset", "%61ddress%20", ""];
        let others = all.iter().filter(|name| !takes.contains(name));
        for name in unknown.iter().chain(others) {
            let reply = get(&api, &format!("{route}?{name}=1")).await;
            assert_eq!(reply.code(), (400, "invalid_parameter".into()), "{route}?{name}=1");
            let error = reply.json()["error"].as_str().unwrap().to_owned();
            for known in takes {
                assert!(error.split([' ', ',']).any(|word| word == *known), "{route} takes {known}: {error}");
            }
        }
        for name in takes {
            for query in [format!("{name}="), (*name).to_owned()] {
                let reply = get(&api, &format!("{route}?{query}")).await;
                assert_eq!(reply.status, 400, "{route}?{query}: {}", reply.text);
                assert!(reply.json()["error"].as_str().unwrap().contains(*name), "{route}?{query}: {}", reply.text);
            }
        }
        // The names are written as they are given out: an escaped one is the same name.
        assert_ne!(get(&api, &format!("{route}?ch%61in=mine")).await.status, 400, "{route}");
    }
}

#[tokio::test]
async fn a_uri_over_8_kib_is_too_long() {
    let ledger = Ledger::with_chain("gno", "gno").await;
    let api = ledger.api().await;
    let filler = |length: usize| format!("/tokens/balances?at={}", "x".repeat(length - "/tokens/balances?at=".len()));
    assert_eq!(get(&api, &filler(8192)).await.code(), (404, "unknown_block".into()), "it is read");
    assert_eq!(get(&api, &filler(8194)).await.code(), (414, "uri_too_long".into()));
    let path = format!("/tokens/{}/balances", "a/".repeat(5000));
    assert_eq!(get(&api, &path).await.code(), (414, "uri_too_long".into()));
}

#[tokio::test]
async fn amounts_of_any_size_are_exact_in_both_forms() {
    let ledger = Ledger::with_chain("gno", "gno").await;
    ledger
        .block("gno", 1, &[(WUGNOT, "", A, LARGEST), (WUGNOT, "", B, LARGEST), (WUGNOT, "", C, "9007199254740993")])
        .await;
    let api = ledger.api().await;
    // 2 * (2^256 - 1) + 2^53 + 1.
    let sum = "231584178474632390847141970017375815706539969331281128078915177023025514020863";
    let reply = get(&api, "/tokens/balances").await;
    assert_eq!(reply.text, format!(r#"{{"balances":[{{"tokenPath":"{WUGNOT}","amount":{sum}}}]}}"#));
    let reply = get(&api, "/tokens/balances?amounts=string").await;
    assert_eq!(reply.text, format!(r#"{{"balances":[{{"tokenPath":"{WUGNOT}","amount":"{sum}"}}]}}"#));
    let reply = get(&api, &format!("/tokens/balances?address={A}")).await;
    assert!(reply.text.contains(&format!(r#""amount":{LARGEST}}}"#)), "{}", reply.text);
    let reply = get(&api, &format!("/tokens/{WUGNOT}/balances?address={C}&amounts=number")).await;
    assert!(reply.text.contains(r#""amount":9007199254740993}"#), "{}", reply.text);
    let reply = get(&api, &format!("/tokens/transfer-history?address={B}")).await;
    assert!(reply.text.contains(&format!(r#""amount":{LARGEST}}}"#)), "{}", reply.text);
    let reply = get(&api, &format!("/tokens/transfer-history?address={B}&amounts=string")).await;
    assert!(reply.text.contains(&format!(r#""amount":"{LARGEST}"}}"#)), "{}", reply.text);
}

#[tokio::test]
async fn amounts_are_text_on_other_chains_and_addresses_are_lowered() {
    let ledger = Ledger::with_chain("eth", "evm").await;
    let (token, alice) = ("0x00000000000000000000000000000000000000aa", "0x00000000000000000000000000000000000000bb");
    ledger.block("eth", 1, &[(token, "", alice, "7")]).await;
    let api = ledger.api().await;
    let upper = |text: &str| text.to_uppercase().replace("0X", "0x");
    let expected = json!({"accountBalances": [{"address": alice, "tokenPath": token, "amount": "7"}]});
    for (token, alice) in [
        (token.to_owned(), alice.to_owned()),
        (upper(token), upper(alice)),
        (token.to_uppercase(), alice.to_uppercase()),
    ] {
        assert_eq!(get(&api, &format!("/tokens/{token}/balances?address={alice}")).await.json(), expected);
    }
    let reply = get(&api, &format!("/tokens/{token}/balances?amounts=number")).await;
    assert_eq!(reply.json()["accountBalances"][0]["amount"], json!(7));
    assert_eq!(get(&api, "/tokens/0x12/balances").await.code(), (400, "invalid_token_path".into()));
    assert_eq!(get(&api, &format!("/tokens/balances?address={A}")).await.code(), (400, "invalid_address".into()));
    assert_eq!(get(&api, &format!("/tokens/{WUGNOT}/balances")).await.code(), (400, "invalid_token_path".into()));

    let ledger = Ledger::with_chain("stark", "starknet").await;
    ledger.block("stark", 1, &[("0xabc", "", "0xd", "7")]).await;
    let api = ledger.api().await;
    let padded = get(&api, "/tokens/0x0000000ABC/balances?address=0x000000000000000000D").await;
    assert_eq!(padded.json()["accountBalances"][0]["address"], json!("0xd"));

    let ledger = Ledger::with_chain("mine", "other").await;
    ledger.block("mine", 1, &[("gold & silver/1", "", "Älice +1", "7")]).await;
    let api = ledger.api().await;
    let reply = get(&api, "/tokens/gold%20&%20silver/1/balances?address=%C3%84lice+%2B1").await;
    assert_eq!(reply.json()["accountBalances"][0]["tokenPath"], json!("gold & silver/1"), "{}", reply.text);
}

#[tokio::test]
async fn the_chain_must_be_named_where_there_are_several() {
    let ledger = Ledger::new().await;
    let api = ledger.api().await;
    assert_eq!(get(&api, "/tokens/balances").await.code(), (404, "unknown_chain".into()));
    ledger.chain("one", "other").await;
    let empty = get(&api, "/tokens/balances").await;
    assert_eq!((empty.status, empty.text.as_str()), (200, r#"{"balances":[]}"#));
    assert_eq!((empty.header("x-chain-id"), empty.header("x-block-height")), (Some("one"), None));
    ledger.block("one", 1, &[("gold", "", "alice", "1")]).await;
    ledger.chain("two", "other").await;
    ledger.sql("update chains set network_id = '42' where name = 'two'").await;
    ledger.block("two", 7, &[("gold", "", "alice", "2")]).await;
    for route in ["/tokens/balances", "/tokens/gold/balances", "/tokens/transfer-history"] {
        assert_eq!(get(&api, route).await.code(), (400, "chain_required".into()));
        assert_eq!(get(&api, &format!("{route}?chain=three")).await.code(), (404, "unknown_chain".into()));
    }
    let two = get(&api, "/tokens/balances?chain=two").await;
    assert_eq!(two.json()["balances"][0]["amount"], json!("2"));
    assert_eq!((two.header("x-chain-id"), two.header("x-block-height")), (Some("42"), Some("7")));
    let one = get(&api, "/tokens/gold/balances?chain=one").await;
    assert_eq!(
        (one.json()["accountBalances"][0]["amount"].clone(), one.header("x-chain-id")),
        (json!("1"), Some("one"))
    );
    // A cursor belongs to its chain, too.
    ledger.block("one", 2, &[("silver", "", "alice", "1")]).await;
    ledger.block("two", 8, &[("silver", "", "alice", "1")]).await;
    let cursor =
        get(&api, "/tokens/balances?chain=one&limit=1").await.json()["nextCursor"].as_str().unwrap().to_owned();
    let misused = get(&api, &format!("/tokens/balances?chain=two&cursor={cursor}")).await;
    assert_eq!(misused.code(), (400, "invalid_cursor".into()));
}

#[tokio::test]
async fn a_store_that_is_away_is_503_and_a_fault_of_ours_is_500_without_detail() {
    let away = Store::open("postgres://nobody@127.0.0.1:1/none", StoreSettings::default()).unwrap();
    let api = routes(away, ApiSettings::default());
    for path in [
        "/tokens/balances",
        "/tokens/gno.land/r/x/balances",
        "/tokens/transfer-history",
        "/status",
        "/reorgs",
        "/chains",
    ] {
        let reply = get(&api, path).await;
        assert_eq!(reply.code(), (503, "unavailable".into()), "{path}");
        assert_eq!(reply.header("retry-after"), Some("1"));
    }
    assert_eq!(get(&api, "/tokens/balances?limit=0").await.status, 400, "what needs no store is answered without it");

    let ledger = Ledger::with_chain("mine", "other").await;
    ledger.block("mine", 1, &[("gold", "", "alice", "1")]).await;
    let hurried = ApiSettings { read_timeout: std::time::Duration::from_millis(200), ..ApiSettings::default() };
    let api = ledger.api_with(hurried).await;
    ledger.sql("alter table token_events rename to elsewhere").await;
    let reply = get(&api, "/tokens/transfer-history").await;
    assert_eq!(reply.code(), (500, "internal".into()));
    assert!(!reply.text.contains("token_events"), "{}", reply.text);
    assert_eq!(get(&api, "/tokens/balances").await.status, 200);
    ledger.sql("create view token_events as select chain_id, height, tx_index, event_index, token, from_address, to_address,
        amount + case when pg_sleep(30) is null then 0 else 0 end as amount from elsewhere;
        create function kind(event token_events) returns text language sql return 'transfer'").await;
    let slow = get(&api, "/tokens/transfer-history").await;
    assert_eq!(slow.code(), (503, "unavailable".into()), "a statement that takes too long");
}

#[tokio::test]
async fn the_scenario_is_answered_to_the_byte_after_the_real_processor() {
    let Some((ledger, requests)) = scenario().await else { return };
    ledger.sql("truncate balances, balance_history, token_totals, applied_blocks, checkpoints").await;
    ledger.process().await;
    let api = ledger.api().await;
    for (path, status, body) in &requests {
        let reply = get(&api, path).await;
        assert_eq!((reply.status, &reply.text), (*status, body), "{path}");
        assert_eq!(reply.header("x-block-hash"), Some("h1006"));
    }
}
