//! What is read by one statement is what a snapshot of several says.

use serde_json::{Value, json};

use crate::ledger::{A, B, Ledger, WUGNOT, get};

/// The answer, whatever it is, with the headers that name the block.
async fn whole<F>(api: &F, path: &str) -> (u16, Value, Vec<Option<String>>)
where
    F: warp::Filter<Extract = (warp::http::Response<String>,), Error = std::convert::Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    F::Future: Send,
{
    let reply = get(api, path).await;
    let headers = ["x-chain-id", "x-block-height", "x-block-hash", "x-through-height", "x-negative-balances"];
    (reply.status, reply.json(), headers.map(|name| reply.header(name).map(str::to_owned)).to_vec())
}

/// Asks for the state now and for the state at the height it is at.
async fn assert_same<F>(api: &F, path: &str, at: i64) -> Value
where
    F: warp::Filter<Extract = (warp::http::Response<String>,), Error = std::convert::Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    F::Future: Send,
{
    let joint = if path.contains('?') { '&' } else { '?' };
    let (now, then) = (whole(api, path).await, whole(api, &format!("{path}{joint}at={at}")).await);
    assert_eq!(now, then, "{path}");
    now.1
}

#[tokio::test]
async fn the_answer_now_is_the_answer_at_the_newest_block() {
    let ledger = Ledger::with_chain("gno", "gno").await;
    let tokens = ["gno.land/r/a/x.FOO.0000000", "gno.land/r/a/x.FOO.0000001", "gno.land/r/b/y", WUGNOT];
    for (height, token) in (1..).zip(tokens) {
        ledger.block("gno", height, &[(token, "", A, "5"), (token, A, B, "2")]).await;
    }
    // Holds nothing any more; owes something, since its history is missing.
    ledger.block("gno", 5, &[(WUGNOT, B, A, "2"), (tokens[2], B, A, "9")]).await;
    let hides = ledger.api().await;
    let shows = ledger
        .api_with(ebbtide::api::ApiSettings { shows_negative: true, ..ebbtide::api::ApiSettings::default() })
        .await;
    let lists = [
        "gno.land/r/a/x",
        "gno.land/r/a/x.FOO",
        "gno.land/r/a/x.FOO.0000000",
        "gno.land/r/b/y",
        WUGNOT,
        "gno.land/r/c",
    ];
    for account in ["", &format!("address={A}"), &format!("address={B}"), "address=", "address=alice"] {
        for more in [
            "",
            "&zero=true",
            "&limit=1",
            "&limit=2",
            "&limit=1&zero=true",
            "&amounts=string",
            "&chain=gno",
            "&chain=no",
        ] {
            let query = format!("?{account}{more}");
            let paths = lists.iter().map(|list| format!("/tokens/{list}/balances"));
            for path in paths.chain(["/tokens/balances".to_owned(), "/tokens/gno.land/R/balances".to_owned()]) {
                let mut next = format!("{path}{query}");
                for _ in 0..10 {
                    let body = assert_same(&hides, &next, 5).await;
                    assert_same(&shows, &next, 5).await;
                    let Some(cursor) = body["nextCursor"].as_str() else { break };
                    next = format!("{path}{query}&cursor={cursor}");
                }
            }
        }
    }
    let expected = json!([{"address": B, "tokenPath": tokens[0], "amount": 2}]);
    let path = format!("/tokens/{}/balances?address={B}", tokens[0]);
    assert_eq!(assert_same(&hides, &path, 5).await["accountBalances"], expected, "it is not empty either way");
    // Cursors of another list, and of another token.
    let cursor = |body: Value| body["nextCursor"].as_str().unwrap().to_owned();
    let by_token = cursor(get(&hides, &format!("/tokens/balances?address={A}&limit=1")).await.json());
    let by_account = cursor(get(&hides, &format!("/tokens/{WUGNOT}/balances?limit=1&zero=true")).await.json());
    for cursor in [by_token, by_account] {
        for path in [
            format!("/tokens/balances?address={A}"),
            format!("/tokens/{WUGNOT}/balances?zero=true"),
            format!("/tokens/{WUGNOT}/balances?zero=true&address={A}"),
            format!("/tokens/{}/balances?zero=true", tokens[2]),
            "/tokens/gno.land/r/a/x/balances?zero=true".to_owned(),
        ] {
            assert_same(&hides, &format!("{path}&cursor={cursor}"), 5).await;
        }
    }
}

#[tokio::test]
async fn each_kind_of_chain_has_its_spelling_and_each_chain_its_own_balances() {
    let ledger = Ledger::new().await;
    let (token, account) = ("0x00000000000000000000000000000000000000aa", "0x00000000000000000000000000000000000000bb");
    for (chain, kind) in [("eth", "evm"), ("stark", "starknet"), ("mine", "other"), ("yours", "other")] {
        ledger.chain(chain, kind).await;
    }
    ledger.block("eth", 1, &[(token, "", account, "1")]).await;
    ledger.block("stark", 2, &[("0xaa", "", "0xbb", "2")]).await;
    ledger.block("mine", 3, &[("0xaa", "", "0xbb", "3"), ("Gold", "", "0xBB", "4")]).await;
    ledger.block("yours", 4, &[("gold", "", "bob", "5")]).await;
    let api = ledger.api().await;
    let long = token.to_uppercase().replace("0X", "0x");
    for (chain, at, token, address, found) in [
        ("eth", 1, long.as_str(), "0x00000000000000000000000000000000000000BB", Some("1")),
        ("eth", 1, "0xaa", account, None),
        ("stark", 2, "0x00AA", "0x00BB", Some("2")),
        ("stark", 2, long.as_str(), "0xbb", Some("2")),
        ("mine", 3, "0xAA", "0xBB", Some("3")),
        ("mine", 3, "Gold", "0xBB", None),
        ("mine", 3, "gold", "0xBB", None),
        ("yours", 4, "gold", "bob", Some("5")),
        ("yours", 4, "0xaa", "0xbb", None),
    ] {
        for path in [
            format!("/tokens/{token}/balances?chain={chain}&address={address}"),
            format!("/tokens/{token}/balances?chain={chain}"),
            format!("/tokens/balances?chain={chain}&address={address}"),
        ] {
            let body = assert_same(&api, &path, at).await;
            if let Some(amount) = found {
                let list = body["accountBalances"].as_array().or(body["balances"].as_array()).unwrap();
                assert!(list.iter().any(|row| row["amount"] == json!(amount)), "{path}: {body}");
            }
        }
    }
    for path in ["/tokens/gold/balances", "/tokens/gold/balances?address=bob", "/tokens/balances?address=bob"] {
        assert_eq!(get(&api, path).await.code(), (400, "chain_required".into()), "{path}");
    }
}
