//! `ebbtide serve` behind a real PgBouncer in transaction mode, beside another program that shares its sessions.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;
use tokio::task::JoinSet;

use crate::ledger::{A, B, Ledger, WUGNOT};
use crate::story::{R1, V, said};
use crate::support::http::ready;
use crate::support::{Ebbtide, Neighbour, Pooler, free_addr, wait_until};
use crate::vaults::{hash, played, process, put};

/// Sessions of the server: far fewer than readers.
const SESSIONS: usize = 4;
const CLIENTS: usize = 64;
/// Of each client.
const REQUESTS: usize = 40;
/// Answers between two looks at the sessions.
const EACH: u64 = 250;

/// `ebbtide serve`.
struct Serve {
    ebbtide: Ebbtide,
    api: SocketAddr,
    operator: SocketAddr,
}

impl Serve {
    async fn at(url: &str) -> Serve {
        let (api, operator) = (free_addr(), free_addr());
        let (listen, operator_listen) = (api.to_string(), operator.to_string());
        let args = ["serve", "--database-url", url, "--listen", &listen, "--operator-listen", &operator_listen];
        let serve = Serve { ebbtide: Ebbtide::spawn(&args, &[]), api, operator };
        wait_until("it is ready", async || ready(operator).await.0.then_some(())).await;
        serve
    }

    fn url(&self, path: &str) -> String {
        let port = if ["/health", "/ready"].contains(&path) { self.operator } else { self.api };
        format!("http://{port}{path}")
    }
}

/// An answer without what only time changes.
#[derive(Debug, Clone, PartialEq)]
struct Answered {
    status: u16,
    headers: Vec<Option<String>>,
    body: Value,
}

async fn ask(http: &reqwest::Client, url: &str) -> Answered {
    let answer = http.get(url).send().await.unwrap_or_else(|e| panic!("{url}: {e:?}"));
    let status = answer.status().as_u16();
    let named = ["x-chain-id", "x-block-height", "x-block-hash", "x-through-height", "x-negative-balances"];
    let headers = named.map(|name| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned()));
    let text = answer.text().await.unwrap();
    let mut body = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{url}: {e}: {text}"));
    forget_time(&mut body);
    Answered { status, headers: headers.to_vec(), body }
}

fn forget_time(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                match name.as_str() {
                    "forSeconds" | "for_seconds" | "lagSeconds" | "lag_seconds" => *value = Value::Null,
                    _ => forget_time(value),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(forget_time),
        _ => {}
    }
}

/// The cursors anywhere in a body.
fn cursors(value: &Value) -> Vec<String> {
    match value {
        Value::Object(map) => {
            let here = map.get("nextCursor").and_then(Value::as_str).map(str::to_owned);
            here.into_iter().chain(map.values().flat_map(cursors)).collect()
        }
        Value::Array(list) => list.iter().flat_map(cursors).collect(),
        _ => Vec::new(),
    }
}

fn client() -> reqwest::Client {
    // Another part of the process may have installed it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // A connection for each request, as the server closes those that it has had for two minutes.
    reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap()
}

/// Two chains: option vaults with a reorganisation behind them, and tokens.
async fn two_chains() -> Ledger {
    let ledger = played().await;
    put(&ledger, 106, 1190, "0xf106", &hash(105), &[said(R1, "BidPlaced", &[0xb2], &[0xc4, 3, 0, 20, 0, 5])]).await;
    ledger.chain("gno", "gno").await;
    for height in 1..=30 {
        let (hash, parent, given) = (format!("h{height}"), format!("h{}", height - 1), format!("{height}"));
        let other = format!("gno.land/r/demo/foo{}", height % 3);
        let events = [(WUGNOT, "", A, "100"), (WUGNOT, A, B, given.as_str()), (other.as_str(), "", B, "7")];
        ledger.put("gno", height, &hash, &parent, &events).await;
    }
    process(&ledger);
    ledger
}

/// Every route with its parameters, and each page of each list, with the answers of the one that reads directly.
async fn answers(http: &reqwest::Client, serve: &Serve) -> BTreeMap<String, Answered> {
    let holders = format!("/tokens/{WUGNOT}/balances?chain=gno");
    let paths = [
        "/health",
        "/ready",
        "/chains",
        "/chains?chain=gno",
        "/status",
        "/status?chain=main",
        "/reorgs",
        "/reorgs?chain=main&limit=1",
        "/tokens/balances?chain=gno",
        "/tokens/balances?chain=gno&limit=1&zero=true",
        "/tokens/balances?chain=gno&at=12",
        &format!("/tokens/balances?chain=gno&address={B}"),
        &format!("/tokens/balances?chain=gno&address={B}&limit=1"),
        &format!("/tokens/balances?chain=gno&address={B}&at=h12&limit=1"),
        &holders,
        &format!("{holders}&limit=1"),
        &format!("{holders}&address={A}"),
        &format!("{holders}&address={A}&at=7"),
        &format!("{holders}&limit=1&at=7"),
        "/tokens/gno.land/r/demo/balances?chain=gno",
        "/tokens/transfer-history?chain=gno&limit=40",
        "/tokens/transfer-history?chain=gno&kind=mint&detail=true&at=25",
        &format!("/tokens/transfer-history?chain=gno&address={A}&limit=20&detail=true"),
        &format!("/accounts/{B}?chain=gno&limit=1"),
        &format!("/accounts/{B}?chain=gno&at=3"),
        "/accounts/0xb1?chain=main&limit=1",
        "/accounts/0xa1?chain=main&at=103",
        "/vaults?chain=main",
        "/vaults?chain=main&at=103",
        &format!("/vaults/{V}?chain=main&limit=1"),
        &format!("/vaults/{V}/liquidity-providers?chain=main&limit=1"),
        &format!("/vaults/{V}/liquidity-providers?chain=main&at=105"),
        &format!("/vaults/{V}/liquidity-providers/0xa1?chain=main"),
        &format!("/vaults/{V}/liquidity-providers/0xa1?chain=main&at=104"),
        &format!("/rounds/{R1}?chain=main&limit=1"),
    ];
    let mut found = BTreeMap::new();
    let mut open: Vec<String> = paths.map(str::to_owned).to_vec();
    while let Some(path) = open.pop() {
        if found.contains_key(&path) {
            continue;
        }
        let answer = ask(http, &serve.url(&path)).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        let first = path.split("&cursor=").next().unwrap();
        open.extend(cursors(&answer.body).iter().map(|cursor| format!("{first}&cursor={cursor}")));
        found.insert(path, answer);
    }
    found
}

/// So many clients at once ask for everything, over and over, and every answer must be the one expected. `asked` counts them.
async fn hammer(http: &reqwest::Client, serve: &Serve, expected: &BTreeMap<String, Answered>, asked: &AtomicU64) {
    let all: Vec<(&String, String, &Answered)> =
        expected.iter().map(|(path, answer)| (path, serve.url(path), answer)).collect();
    let client = async |n: usize| {
        for turn in 0..REQUESTS {
            let (path, url, expected) = &all[(n * 17 + turn) % all.len()];
            let answer = loop {
                let answer = ask(http, url).await;
                // All places are taken: it is to come again. Any other reason is in the log, which must not hold one.
                if answer.status != 503 {
                    break answer;
                }
            };
            assert_eq!(answer, **expected, "{path}");
            asked.fetch_add(1, Ordering::Relaxed);
        }
    };
    futures::future::join_all((0..CLIENTS).map(client)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serve_behind_a_pooler_answers_as_directly_and_leaves_nothing_in_its_sessions() {
    let ledger = two_chains().await;
    let url = &ledger.pg.url;
    let Some(pooler) = Pooler::start(url, "transaction", SESSIONS).await else { return };
    let http = client();
    let direct = Serve::at(url).await;
    let expected = answers(&http, &direct).await;
    drop(direct);
    let neighbour = Neighbour::new(&pooler, url, SESSIONS).await;
    let serve = Serve::at(&pooler.before(url)).await;

    // Looked at while the answers are read, and once they all are.
    let asked = AtomicU64::new(0);
    let looks = async {
        let mut looks = 0;
        while asked.load(Ordering::Relaxed) < (CLIENTS * REQUESTS) as u64 {
            let left = neighbour.leftovers().await;
            assert!(left.is_empty(), "{left:#?}");
            looks += 1;
            let next = (looks * EACH).min((CLIENTS * REQUESTS) as u64);
            wait_until("more is answered", async || (asked.load(Ordering::Relaxed) >= next).then_some(())).await;
        }
        looks
    };
    let ((), looks) = tokio::join!(hammer(&http, &serve, &expected, &asked), looks);
    println!("{} paths, {asked:?} answers, {looks} looks at {SESSIONS} sessions", expected.len());
    let left = neighbour.leftovers().await;
    assert!(left.is_empty(), "{left:#?}");

    // What the other program does with its sessions is its own affair.
    neighbour.everywhere(ITS_OWN_AFFAIR).await;
    for client in &neighbour.clients {
        client.batch_execute("set timezone = 'Asia/Tokyo'; set datestyle = 'German, DMY'").await.unwrap();
    }
    let asked = AtomicU64::new(0);
    hammer(&http, &serve, &expected, &asked).await;
    println!("{asked:?} answers beside its settings, tables and statements");
    neighbour.hold_all().await;
    for client in &neighbour.clients {
        let sql = "select current_setting('search_path') || '|' || current_setting('statement_timeout') || '|'
            || current_setting('timezone') || '|' || current_user || '|' || (select count(*) from pg_prepared_statements)
            || '|' || (select count(*) from pg_temp.chains)";
        let messages = client.simple_query(sql).await.unwrap();
        let tokio_postgres::SimpleQueryMessage::Row(row) = &messages[1] else { panic!("{messages:?}") };
        assert_eq!(row.get(0), Some("public|50s|Asia/Tokyo|pg_monitor|40|1"));
    }
    neighbour.release().await;
    let said = serve.ebbtide.stderr();
    let amiss: Vec<&String> = said.iter().filter(|line| line.contains("WARN") || line.contains("ERROR")).collect();
    assert!(amiss.is_empty(), "{amiss:#?}");
    assert!(said.iter().any(|line| line.contains("A pooler gives each transaction another session")), "{said:#?}");
}

/// Settings that would change answers, tables named like ours with other rows, statements named as a driver names them.
const ITS_OWN_AFFAIR: &str = "
    create temp table chains as select 7::bigint as chain_id, 'gno'::text as name;
    create temp table balances as select 1;
    set search_path = public;
    set statement_timeout = '50s';
    set plan_cache_mode = force_generic_plan;
    set transform_null_equals = on;
    set extra_float_digits = -15;
    set bytea_output = 'escape';
    set default_transaction_isolation = 'serializable';
    set enable_indexscan = off;
    do $$ begin for n in 0..39 loop execute format('prepare s%s as select 0', n); end loop; end $$;
    grant select on chains, balances to pg_monitor;
    set role pg_monitor";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serve_behind_a_pooler_comes_back_when_a_session_is_ended_or_the_pooler_is() {
    let ledger = two_chains().await;
    let url = &ledger.pg.url;
    let Some(mut pooler) = Pooler::start(url, "transaction", SESSIONS).await else { return };
    let http = client();
    let serve = Serve::at(&pooler.before(url)).await;
    let expected = answers(&http, &serve).await;
    let all_is_well = async || {
        wait_until("every answer is as it was", async || {
            for (path, expected) in &expected {
                let answer = ask(&http, &serve.url(path)).await;
                if answer != *expected {
                    assert!(answer.status == 503 || path == "/health", "{path}: {answer:?}");
                    return None;
                }
            }
            Some(())
        })
        .await;
    };
    // Whatever is read just then, by whichever of its connections.
    for _ in 0..5 {
        let reading = hammer_through_failures(&http, &serve, &expected);
        let ending = async {
            let sql = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'";
            ledger.db.query_one(sql, &[]).await.unwrap().get::<_, i64>(0)
        };
        let ((good, bad), ended) = tokio::join!(reading, ending);
        println!("{ended} sessions ended: {good} answers, {bad} refusals");
        all_is_well().await;
    }
    pooler.kill();
    wait_until("it says that the database is gone", async || {
        let (is_ready, words) = ready(serve.operator).await;
        (!is_ready && words.contains("there is no connection to Postgres")).then_some(())
    })
    .await;
    assert_eq!(ask(&http, &serve.url("/chains")).await.status, 503);
    pooler.start_again().await;
    all_is_well().await;

    // With every session in use, nobody waits for long.
    let neighbour = Neighbour::new(&pooler, url, SESSIONS).await;
    neighbour.hold_all().await;
    for path in ["/chains", &format!("/tokens/{WUGNOT}/balances?chain=gno&address={A}")] {
        let begun = std::time::Instant::now();
        assert_eq!(ask(&http, &serve.url(path)).await.status, 503, "{path}");
        assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{path}: {:?}", begun.elapsed());
    }
    wait_until("it says so", async || {
        ready(serve.operator).await.1.contains("or a pooler before it, has not begun").then_some(())
    })
    .await;
    neighbour.release().await;
    all_is_well().await;
    let left = neighbour.leftovers().await;
    assert!(left.is_empty(), "{left:#?}");
}

/// As [`hammer`] for a while, but a refusal (503) is an answer too; how many were right, and how many refused.
async fn hammer_through_failures(
    http: &reqwest::Client,
    serve: &Serve,
    expected: &BTreeMap<String, Answered>,
) -> (usize, usize) {
    let mut clients = JoinSet::new();
    for n in 0..16 {
        let all: Vec<_> = expected.iter().map(|(path, answer)| (serve.url(path), answer.clone())).collect();
        let http = http.clone();
        clients.spawn(async move {
            let (mut good, mut bad) = (0, 0);
            for turn in 0..20 {
                let (url, expected) = &all[(n * 7 + turn) % all.len()];
                let answer = ask(&http, url).await;
                match answer == *expected {
                    true => good += 1,
                    false => {
                        let told = url.ends_with("/ready") || url.ends_with("/health");
                        assert!(answer.status == 503 || told, "{url}: {answer:?}");
                        bad += 1;
                    }
                }
            }
            (good, bad)
        });
    }
    let all = clients.join_all().await;
    (all.iter().map(|(good, _)| good).sum(), all.iter().map(|(_, bad)| bad).sum())
}
