//! The REST interface against a real Postgres, line by line of specs/gno-token-balances section 7.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test that cannot go on has failed")]

mod api_support;

use std::convert::Infallible;

use api_support::Pg;
use ebbtide::api::{ApiSettings, NegativeBalances, routes};
use ebbtide::store::Store;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio_postgres::Client;
use warp::Filter;
use warp::http::{HeaderMap, Response};

const A: &str = "g1jg8mtutu9khhfwc4nxmuhcpftf0pajdhfvsqf5";
const B: &str = "g1ffzxha57dh0qgv9ma5v393ur0zexfvp6lsjpae";
const C: &str = "g17290cwvmrapvp869xfnhhawa8sm9edpufzat7d";
const WUGNOT: &str = "gno.land/r/demo/wugnot";
/// 2^256 - 1.
const LARGEST: &str = "115792089237316195423570985008687907853269984665640564039457584007913129639935";

/// A chain whose state the test writes as the processor would.
struct Ledger {
    pg: Pg,
    db: Client,
}

impl Ledger {
    async fn new() -> Ledger {
        let pg = Pg::new().await;
        let db = pg.client().await;
        Ledger { pg, db }
    }

    async fn with_chain(name: &str, kind: &str) -> Ledger {
        let ledger = Ledger::new().await;
        ledger.chain(name, kind).await;
        ledger
    }

    async fn chain(&self, name: &str, kind: &str) {
        self.db.execute("insert into chains (name, kind) values ($1, $2)", &[&name, &kind]).await.unwrap();
    }

    async fn sql(&self, sql: &str) {
        self.db.batch_execute(sql).await.unwrap();
    }

    /// Puts a block with these events (token, from, to, amount) and does not apply it.
    async fn put(&self, chain: &str, height: i64, hash: &str, parent: &str, events: &[(&str, &str, &str, &str)]) {
        let rows: Vec<Value> = events
            .iter()
            .enumerate()
            .map(|(i, (token, from, to, amount))| {
                let address = |a: &str| if a.is_empty() { Value::Null } else { json!(a) };
                json!({"tx_index": i, "event_index": 0, "token": token, "from_address": address(from),
                       "to_address": address(to), "amount": amount})
            })
            .collect();
        let transactions: Vec<Value> =
            (0..events.len()).map(|i| json!({"tx_index": i, "hash": format!("tx-{height}-{i}")})).collect();
        let sql = "select put_block($1, $2, $3, $4, '2026-07-01T10:00:00Z', $5, $6)";
        let parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)] =
            &[&chain, &height, &hash, &parent, &json!(transactions), &json!(rows)];
        self.db.execute(sql, parameters).await.unwrap();
    }

    /// Applies the block that stands at this height.
    async fn apply(&self, chain: &str, height: i64) {
        let apply = "
            with c as (select chain_id from chains where name = $1),
            d as (select token, address, sum(delta) as delta from (
                    select token, from_address as address, -amount as delta from token_events, c
                    where token_events.chain_id = c.chain_id and height = $2 and from_address is not null
                    union all
                    select token, to_address, amount from token_events, c
                    where token_events.chain_id = c.chain_id and height = $2 and to_address is not null) s
                group by token, address),
            up as (insert into balances as b (chain_id, token, address, amount, height)
                select c.chain_id, token, address, delta, $2 from d, c
                on conflict (chain_id, token, address) do update
                set amount = b.amount + excluded.amount, prev_height = b.height, height = excluded.height
                returning *)
            insert into balance_changes (chain_id, token, address, height, delta, balance_after, prev_height)
            select up.chain_id, up.token, up.address, $2, d.delta, up.amount, up.prev_height
            from up join d on d.token = up.token and d.address = up.address";
        self.db.execute(apply, &[&chain, &height]).await.unwrap();
        let journal = "
            insert into applied_blocks (chain_id, projection, height, hash, revision)
            select b.chain_id, 'token_balances', height, hash, revision
            from blocks b join chains c on c.chain_id = b.chain_id where c.name = $1 and height = $2";
        self.db.execute(journal, &[&chain, &height]).await.unwrap();
        let checkpoint = "
            insert into checkpoints as k (chain_id, projection, height, hash, through_height, start_height, seq)
            select b.chain_id, 'token_balances', height, hash, height, height, 1
            from blocks b join chains c on c.chain_id = b.chain_id where c.name = $1 and height = $2
            on conflict (chain_id, projection) do update
            set height = excluded.height, hash = excluded.hash, through_height = excluded.through_height, seq = k.seq + 1";
        self.db.execute(checkpoint, &[&chain, &height]).await.unwrap();
    }

    async fn block(&self, chain: &str, height: i64, events: &[(&str, &str, &str, &str)]) {
        let (hash, parent) = (format!("h{height}"), format!("h{}", height - 1));
        self.put(chain, height, &hash, &parent, events).await;
        self.apply(chain, height).await;
    }

    /// Makes everything up to this height final: its undo is pruned.
    async fn finalise(&self, height: i64) {
        self.sql(&format!(
            "update chains set final_height = {height}; delete from applied_blocks where height <= {height}"
        ))
        .await;
    }

    async fn api(&self) -> impl Filter<Extract = (Response<String>,), Error = Infallible> + Clone + use<> {
        self.api_with(ApiSettings::default()).await
    }

    async fn api_with(
        &self,
        settings: ApiSettings,
    ) -> impl Filter<Extract = (Response<String>,), Error = Infallible> + Clone + use<> {
        routes(Store::connect(&self.pg.url()).await.unwrap(), settings)
    }
}

struct Reply {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    fn code(&self) -> (u16, String) {
        let body = self.json();
        assert_eq!(body.as_object().unwrap().len(), 2, "{body}");
        assert!(!body["error"].as_str().unwrap().is_empty());
        (self.status, body["code"].as_str().unwrap().to_owned())
    }
}

async fn ask<F>(api: &F, method: &str, path: &str) -> Reply
where
    F: Filter<Extract = (Response<String>,), Error = Infallible> + Clone + Send + Sync + 'static,
    F::Future: Send,
{
    let reply = warp::test::request().method(method).path(path).reply(api).await;
    Reply {
        status: reply.status().as_u16(),
        headers: reply.headers().clone(),
        text: String::from_utf8(reply.body().to_vec()).unwrap(),
    }
}

async fn get<F>(api: &F, path: &str) -> Reply
where
    F: Filter<Extract = (Response<String>,), Error = Infallible> + Clone + Send + Sync + 'static,
    F::Future: Send,
{
    ask(api, "GET", path).await
}

/// Follows the cursors to the end; returns the rows of each page.
async fn pages<F>(api: &F, path: &str, list: &str) -> Vec<Vec<Value>>
where
    F: Filter<Extract = (Response<String>,), Error = Infallible> + Clone + Send + Sync + 'static,
    F::Future: Send,
{
    let mut pages = Vec::new();
    let mut cursor = String::new();
    loop {
        let reply = get(api, &format!("{path}&cursor={cursor}")).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        let body = reply.json();
        pages.push(body[list].as_array().unwrap().clone());
        match body.get("nextCursor") {
            Some(next) => cursor = next.as_str().unwrap().to_owned(),
            None => return pages,
        }
        assert!(pages.len() < 1000, "the cursors never end");
    }
}

fn data_file(name: &str) -> Option<String> {
    let folder = std::env::var("EBBTIDE_DATA")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data").to_owned());
    let path = format!("{folder}/gno/{name}");
    match std::fs::read_to_string(&path) {
        Ok(text) => Some(text),
        Err(error) => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{path}: {error}");
            eprintln!("skipped: {path}: {error}");
            None
        }
    }
}

/// JSON without the spaces between its parts; the order of keys and the digits of numbers stay.
fn compact(json: &str) -> String {
    let mut text = String::new();
    let (mut in_text, mut escaped) = (false, false);
    for c in json.chars() {
        if in_text || !c.is_whitespace() {
            text.push(c);
        }
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = in_text;
        } else if c == '"' {
            in_text = !in_text;
        }
    }
    text
}

async fn scenario() -> Option<(Ledger, Vec<(String, u16, String)>)> {
    #[derive(serde::Deserialize)]
    struct Scenario {
        events: Vec<Value>,
        requests: Vec<Request>,
    }
    #[derive(serde::Deserialize)]
    struct Request {
        path: String,
        status: u16,
        body: Box<RawValue>,
    }
    let scenario: Scenario = serde_json::from_str(&data_file("derived/rest-scenario.json")?).unwrap();
    let ledger = Ledger::with_chain("gno", "gno").await;
    let mut heights: Vec<i64> = scenario.events.iter().map(|e| e["block_height"].as_i64().unwrap()).collect();
    heights.dedup();
    for height in heights {
        let here = scenario.events.iter().filter(|e| e["block_height"] == json!(height));
        let events: Vec<(&str, &str, &str, &str)> = here
            .map(|e| {
                let text = |key: &str| e[key].as_str().unwrap();
                (text("token_path"), text("from"), text("to"), text("amount"))
            })
            .collect();
        ledger.block("gno", height, &events).await;
    }
    let requests = scenario.requests.into_iter().map(|r| (r.path, r.status, compact(r.body.get()))).collect();
    Some((ledger, requests))
}

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
    for path in ["/tokens/balances?", "/tokens/balances?&&", "/tokens/balances?unknown=1&unknown=2&detail=1&detail=2"] {
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
        assert_eq!(get(&api, &format!("{route}?limit=1000&address=&cursor=&at=&chain=")).await.status, 200);
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
async fn a_uri_over_8_kib_is_too_long() {
    let ledger = Ledger::with_chain("gno", "gno").await;
    let api = ledger.api().await;
    let filler = |length: usize| format!("/tokens/balances?x={}", "x".repeat(length - "/tokens/balances?x=".len()));
    assert_eq!(get(&api, &filler(8192)).await.status, 200);
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
    let show =
        ledger.api_with(ApiSettings { negative_balances: NegativeBalances::Show, ..ApiSettings::default() }).await;
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
        let mut cursor = String::new();
        loop {
            let reply = get(&zero, &format!("/tokens/{WUGNOT}/balances?limit={limit}&cursor={cursor}")).await;
            counted += reply.header("x-negative-balances").unwrap().parse::<i32>().unwrap();
            match reply.json().get("nextCursor") {
                Some(next) => cursor = next.as_str().unwrap().to_owned(),
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
async fn pruned_history_is_gone_and_never_silently_short() {
    let ledger = Ledger::with_chain("mine", "other").await;
    for height in 1..=6 {
        ledger.block("mine", height, &[("gold", "", "alice", "1")]).await;
    }
    ledger.block("mine", 7, &[("gold", "", "newcomer", "1")]).await;
    ledger.finalise(4).await;
    ledger.sql("delete from balance_changes where height < 4; update checkpoints set history_from = 4").await;
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
async fn status_chains_and_reorgs_say_what_is_followed() {
    let ledger = Ledger::with_chain("one", "other").await;
    let api = ledger.api().await;
    let bare = get(&api, "/status").await.json();
    assert_eq!(bare["chains"][0]["projections"], json!([]));
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
        (&json!(7), &json!("disk full"), &json!(2))
    );
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
async fn a_store_that_is_away_is_503_and_a_fault_of_ours_is_500_without_detail() {
    let away = Store::connect("postgres:///?host=127.0.0.1&port=1&user=nobody&dbname=none").await.unwrap();
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
    let api = ledger.api().await;
    ledger.sql("alter table token_events rename to elsewhere").await;
    let reply = get(&api, "/tokens/transfer-history").await;
    assert_eq!(reply.code(), (500, "internal".into()));
    assert!(!reply.text.contains("token_events"), "{}", reply.text);
    assert_eq!(get(&api, "/tokens/balances").await.status, 200);
    ledger.sql("create view token_events as select chain_id, height, tx_index, event_index, token, from_address, to_address,
        amount + case when pg_sleep(30) is null then 0 else 0 end as amount, kind from elsewhere").await;
    let slow = get(&api, "/tokens/transfer-history").await;
    assert_eq!(slow.code(), (503, "unavailable".into()), "a statement that takes too long");
}

mod served {
    //! Over a socket, as clients see it.

    use super::*;
    use ebbtide::api::{serve, serve_operator};
    use ebbtide::ops::{Health, Metrics};
    use std::net::SocketAddr;
    use std::time::{Duration, Instant};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::oneshot;

    async fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    /// The whole answer, headers in lower case.
    async fn raw(address: SocketAddr, method: &str, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.to_lowercase(), body.to_owned())
    }

    #[tokio::test]
    async fn a_client_gets_what_the_filters_say() {
        let ledger = Ledger::with_chain("gno", "gno").await;
        ledger.block("gno", 1, &[(WUGNOT, "", A, "5")]).await;
        let store = Store::connect(&ledger.pg.url()).await.unwrap();
        let (listener, address) = listener().await;
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(serve(listener, store, ApiSettings::default(), async {
            let _ = stopped.await;
        }));
        let (head, body) = raw(address, "GET", "/tokens/gno.land%2Fr/demo/wugnot/balances").await;
        assert!(head.starts_with("http/1.1 200"), "{head}");
        assert!(head.contains("x-block-height: 1"), "{head}");
        assert_eq!(body, format!(r#"{{"accountBalances":[{{"address":"{A}","tokenPath":"{WUGNOT}","amount":5}}]}}"#));
        let (head_of_head, nothing) = raw(address, "HEAD", "/tokens/gno.land%2Fr/demo/wugnot/balances").await;
        assert_eq!(nothing, "");
        assert!(head_of_head.contains(&format!("content-length: {}", body.len())), "{head_of_head}");
        let (head, body) = raw(address, "GET", &format!("/tokens/balances?x={}", "x".repeat(9000))).await;
        assert!(head.starts_with("http/1.1 414") && body.contains("uri_too_long"), "{head}");
        let (head, body) = raw(address, "POST", "/tokens/balances").await;
        assert!(
            head.starts_with("http/1.1 405") && head.contains("allow: get, head") && body.contains("code"),
            "{head}"
        );
        stop.send(()).unwrap();
        server.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
    }

    #[tokio::test]
    async fn a_client_that_stays_does_not_hold_the_server() {
        let ledger = Ledger::with_chain("gno", "gno").await;
        // Holds the read until the server has to give up on it.
        ledger.sql("begin; lock table chains in access exclusive mode").await;
        let store = Store::connect(&ledger.pg.url()).await.unwrap();
        let (listener, address) = listener().await;
        let (stop, stopped) = oneshot::channel::<()>();
        let settings = ApiSettings { drain: Duration::from_millis(300), ..ApiSettings::default() };
        let server = tokio::spawn(serve(listener, store, settings, async {
            let _ = stopped.await;
        }));
        let mut idle = TcpStream::connect(address).await.unwrap();
        idle.write_all(b"GET /tokens/balances HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        // The request is in hand once its read waits for the lock.
        let deadline = Instant::now() + Duration::from_secs(10);
        let watcher = ledger.pg.client().await;
        while watcher.query_one("select count(*) from pg_locks where not granted", &[]).await.unwrap().get::<_, i64>(0)
            == 0
        {
            assert!(Instant::now() < deadline, "the request never came");
        }
        stop.send(()).unwrap();
        let began = Instant::now();
        tokio::time::timeout(Duration::from_secs(4), server).await.expect("the server ends").unwrap();
        assert!(began.elapsed() >= Duration::from_millis(250), "it gave the request its time");
    }

    #[tokio::test]
    async fn operators_are_told_who_is_not_ready() {
        let (listener, address) = listener().await;
        let (health, metrics) = (Health::new(), Metrics::new());
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(serve_operator(listener, health.clone(), metrics.clone(), async {
            let _ = stopped.await;
        }));
        let process = health.component("process:main");
        process.detail(json!({"tip": 5, "head": 9, "lag": 4}));
        for path in ["/health", "/healthz"] {
            let (head, body) = raw(address, "GET", path).await;
            assert!(head.starts_with("http/1.1 200"), "{head}");
            let body: Value = serde_json::from_str(&body).unwrap();
            assert_eq!((&body["status"], &body["components"]["process:main"]["lag"]), (&json!("starting"), &json!(4)));
        }
        for path in ["/ready", "/readyz"] {
            let (head, body) = raw(address, "GET", path).await;
            assert!(head.starts_with("http/1.1 503"), "{head}");
            assert_eq!(body, r#"{"ready":false,"reasons":["process:main: it has not reported yet"]}"#);
        }
        process.ok();
        assert!(raw(address, "GET", "/ready").await.0.starts_with("http/1.1 200"));
        process.expect_within(Duration::ZERO);
        let (head, body) = raw(address, "GET", "/ready").await;
        assert!(head.starts_with("http/1.1 503") && body.contains("no sign of life"), "{body}");
        metrics.projection("main", "token_balances").blocks_applied.inc_by(3);
        let (head, body) = raw(address, "GET", "/metrics").await;
        assert!(head.contains("content-type: application/openmetrics-text"), "{head}");
        assert!(body.contains(r#"ebbtide_blocks_applied_total{chain="main",projection="token_balances"} 3"#), "{body}");
        assert!(raw(address, "GET", "/tokens/balances").await.0.starts_with("http/1.1 404"));
        assert!(raw(address, "POST", "/ready").await.0.starts_with("http/1.1 405"));
        stop.send(()).unwrap();
        server.await.unwrap();
    }
}
