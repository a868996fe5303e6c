//! A chain whose state the test writes, and the questions put to the filters.

use std::convert::Infallible;

use ebbtide::api::{ApiSettings, routes};
use ebbtide::store::{Store, StoreSettings};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio_postgres::Client;
use warp::Filter;
use warp::http::{HeaderMap, Response};

use crate::support::Pg;

pub(crate) const A: &str = "g1jg8mtutu9khhfwc4nxmuhcpftf0pajdhfvsqf5";
pub(crate) const B: &str = "g1ffzxha57dh0qgv9ma5v393ur0zexfvp6lsjpae";
pub(crate) const C: &str = "g17290cwvmrapvp869xfnhhawa8sm9edpufzat7d";
pub(crate) const WUGNOT: &str = "gno.land/r/demo/wugnot";
/// 2^256 - 1.
pub(crate) const LARGEST: &str = "115792089237316195423570985008687907853269984665640564039457584007913129639935";

/// A chain whose state the test writes as the processor would.
pub(crate) struct Ledger {
    pub(crate) pg: Pg,
    pub(crate) db: Client,
}

impl Ledger {
    pub(crate) async fn new() -> Ledger {
        let pg = Pg::new().await;
        let db = pg.client().await;
        db.batch_execute("set ebbtide.write_tracked_tables = on").await.unwrap();
        Ledger { pg, db }
    }

    pub(crate) async fn with_chain(name: &str, kind: &str) -> Ledger {
        let ledger = Ledger::new().await;
        ledger.chain(name, kind).await;
        ledger
    }

    pub(crate) async fn chain(&self, name: &str, kind: &str) {
        self.db.execute("insert into chains (name, kind) values ($1, $2)", &[&name, &kind]).await.unwrap();
    }

    pub(crate) async fn sql(&self, sql: &str) {
        self.db.batch_execute(sql).await.unwrap();
    }

    pub(crate) fn store(&self) -> Store {
        Store::open(&self.pg.url, StoreSettings::default()).unwrap()
    }

    /// Puts a block with these events (token, from, to, amount) and does not apply it.
    pub(crate) async fn put(
        &self,
        chain: &str,
        height: i64,
        hash: &str,
        parent: &str,
        events: &[(&str, &str, &str, &str)],
    ) {
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
    pub(crate) async fn apply(&self, chain: &str, height: i64) {
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
            insert into balance_history (balance_id, chain_id, height, delta, balance_after, prev_height)
            select up.balance_id, up.chain_id, $2, d.delta, up.amount, up.prev_height
            from up join d on d.token = up.token and d.address = up.address";
        self.db.execute(apply, &[&chain, &height]).await.unwrap();
        let totals = "
            insert into token_totals as t (chain_id, token, total)
            select b.chain_id, b.token, sum(b.amount) from balances b join chains c using (chain_id) where c.name = $1
            group by b.chain_id, b.token
            on conflict (chain_id, token) do update set total = excluded.total";
        self.db.execute(totals, &[&chain]).await.unwrap();
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

    pub(crate) async fn block(&self, chain: &str, height: i64, events: &[(&str, &str, &str, &str)]) {
        let (hash, parent) = (format!("h{height}"), format!("h{}", height - 1));
        self.put(chain, height, &hash, &parent, events).await;
        self.apply(chain, height).await;
    }

    /// Makes everything up to this height final: its undo is pruned.
    pub(crate) async fn finalise(&self, height: i64) {
        self.sql(&format!(
            "update chains set final_height = {height}; delete from applied_blocks where height <= {height}"
        ))
        .await;
    }

    /// Has the program itself apply what is there.
    pub(crate) async fn process(&self) {
        let done = tokio::process::Command::new(env!("CARGO_BIN_EXE_ebbtide"))
            .args(["process", "--once", "--database-url", &self.pg.url])
            .output()
            .await
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    pub(crate) async fn api(&self) -> impl Filter<Extract = (Response<String>,), Error = Infallible> + Clone + use<> {
        self.api_with(ApiSettings::default()).await
    }

    pub(crate) async fn api_with(
        &self,
        settings: ApiSettings,
    ) -> impl Filter<Extract = (Response<String>,), Error = Infallible> + Clone + use<> {
        routes(self.store(), settings)
    }
}

pub(crate) struct Reply {
    pub(crate) status: u16,
    headers: HeaderMap,
    pub(crate) text: String,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(crate) fn code(&self) -> (u16, String) {
        let body = self.json();
        assert_eq!(body.as_object().unwrap().len(), 2, "{body}");
        assert!(!body["error"].as_str().unwrap().is_empty());
        (self.status, body["code"].as_str().unwrap().to_owned())
    }
}

pub(crate) async fn ask<F>(api: &F, method: &str, path: &str) -> Reply
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

pub(crate) async fn get<F>(api: &F, path: &str) -> Reply
where
    F: Filter<Extract = (Response<String>,), Error = Infallible> + Clone + Send + Sync + 'static,
    F::Future: Send,
{
    ask(api, "GET", path).await
}

/// Follows the cursors to the end; returns the rows of each page.
pub(crate) async fn pages<F>(api: &F, path: &str, list: &str) -> Vec<Vec<Value>>
where
    F: Filter<Extract = (Response<String>,), Error = Infallible> + Clone + Send + Sync + 'static,
    F::Future: Send,
{
    let mut pages = Vec::new();
    let mut next = path.to_owned();
    loop {
        let reply = get(api, &next).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        let body = reply.json();
        pages.push(body[list].as_array().unwrap().clone());
        match body.get("nextCursor") {
            Some(cursor) => next = format!("{path}&cursor={}", cursor.as_str().unwrap()),
            None => return pages,
        }
        assert!(pages.len() < 1000, "the cursors never end");
    }
}

pub(crate) fn data_file(name: &str) -> Option<String> {
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
pub(crate) fn compact(json: &str) -> String {
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

pub(crate) async fn scenario() -> Option<(Ledger, Vec<(String, u16, String)>)> {
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
