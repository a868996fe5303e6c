//! Over a socket, as clients see it.

use std::collections::BTreeMap;

use ebbtide::api::{ApiSettings, serve, serve_operator};
use ebbtide::ops::{ComponentReport, Health, HealthReport, Metrics};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::ledger::{A, Ledger, WUGNOT};
use crate::support;

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
    let store = ledger.store();
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
    let (head, body) = raw(address, "GET", &format!("/tokens/balances?at={}", "x".repeat(9000))).await;
    assert!(head.starts_with("http/1.1 414") && body.contains("uri_too_long"), "{head}");
    let (head, body) = raw(address, "POST", "/tokens/balances").await;
    assert!(head.starts_with("http/1.1 405") && head.contains("allow: get, head") && body.contains("code"), "{head}");
    stop.send(()).unwrap();
    server.await.unwrap();
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn a_client_that_stays_does_not_hold_the_server() {
    let ledger = Ledger::with_chain("gno", "gno").await;
    // Holds the read until the server has to give up on it.
    ledger.sql("begin; lock table chains in access exclusive mode").await;
    let store = ledger.store();
    let (listener, address) = listener().await;
    let (stop, stopped) = oneshot::channel::<()>();
    let settings = ApiSettings { drain: Duration::from_millis(300), ..ApiSettings::default() };
    let server = tokio::spawn(serve(listener, store, settings, async {
        let _ = stopped.await;
    }));
    let mut idle = TcpStream::connect(address).await.unwrap();
    idle.write_all(b"GET /tokens/balances HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    // The request is in hand once its read waits for the lock.
    let watcher = ledger.pg.client().await;
    support::wait_until("the request's read waits for the lock", async || {
        let sql = "select 1 from pg_locks where not granted and database = (select oid from pg_database
            where datname = current_database())";
        watcher.query_opt(sql, &[]).await.unwrap()
    })
    .await;
    stop.send(()).unwrap();
    let began = Instant::now();
    tokio::time::timeout(Duration::from_secs(4), server).await.expect("the server ends").unwrap();
    assert!(began.elapsed() >= Duration::from_millis(250), "it gave the request its time");
}

/// Asks over a connection of its own; the status, and whether it says when to come again.
async fn status(address: SocketAddr, path: String) -> (u16, bool) {
    let (head, _) = raw(address, "GET", &path).await;
    (head.split(' ').nth(1).unwrap().parse().unwrap(), head.contains("retry-after: 1"))
}

#[tokio::test]
async fn reads_of_whole_lists_leave_places_for_cheap_reads_and_health() {
    let ledger = Ledger::with_chain("mine", "other").await;
    ledger.block("mine", 1, &[("gold", "", "alice", "1")]).await;
    let store = ledger.store();
    let (listener, address) = listener().await;
    tokio::spawn(serve(listener, store.clone(), ApiSettings::default(), std::future::pending()));
    // Every read of balances takes as long as this stands.
    ledger.sql("begin; lock table balances in access exclusive mode").await;
    let watcher = ledger.pg.client().await;
    let sql = "select count(*) from pg_locks where not granted and database = (select oid from pg_database
        where datname = current_database())";
    let waiting = async |count: i64| {
        support::wait_until("so many reads wait for the lock", async || {
            (watcher.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == count).then_some(())
        })
        .await;
    };
    let walks = ["/tokens/balances?address=alice", "/tokens/balances", "/tokens/gold/balances", "/accounts/alice"];
    let mut flood = tokio::task::JoinSet::new();
    for n in 0..400 {
        flood.spawn(status(address, walks[n % walks.len()].to_owned()));
    }
    waiting(8).await;
    let cheap = async |path: &str| {
        let begun = Instant::now();
        assert_eq!(status(address, path.to_owned()).await, (200, false), "{path}");
        assert!(begun.elapsed() < Duration::from_secs(2), "{path} took {:?}", begun.elapsed());
    };
    for path in ["/chains", "/status", "/reorgs"] {
        cheap(path).await;
    }
    // All but those in hand are told to come again.
    for _ in 0..392 {
        assert_eq!(flood.join_next().await.unwrap().unwrap(), (503, true));
    }
    // Their clients leave: the connections are not given to others before the reads have ended.
    flood.shutdown().await;
    for _ in 0..40 {
        cheap("/chains").await;
    }
    waiting(8).await;
    // Cheap reads that wait take the rest; health has connections of its own.
    let mut single = tokio::task::JoinSet::new();
    for _ in 0..8 {
        single.spawn(status(address, "/tokens/gold/balances?address=alice".to_owned()));
    }
    waiting(16).await;
    let begun = Instant::now();
    assert_eq!(status(address, "/chains".to_owned()).await, (503, true));
    assert!((Duration::from_millis(900)..Duration::from_secs(3)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    let begun = Instant::now();
    store.ping().await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1), "health waited {:?}", begun.elapsed());
    ledger.sql("rollback").await;
    while let Some(answered) = single.join_next().await {
        assert_eq!(answered.unwrap(), (200, false));
    }
    cheap("/tokens/balances").await;
}

#[tokio::test]
async fn a_target_that_is_no_path_is_refused_on_both_ports() {
    let ledger = Ledger::with_chain("gno", "gno").await;
    let ((rest, rest_address), (operator, operator_address)) = (listener().await, listener().await);
    let never = std::future::pending::<()>;
    let rest = tokio::spawn(serve(rest, ledger.store(), ApiSettings::default(), never()));
    let operator = tokio::spawn(serve_operator(operator, Health::new(), Metrics::new(), never()));
    for (address, path) in [(rest_address, "/chains"), (operator_address, "/health")] {
        for (method, target) in
            [("CONNECT", "x:1"), ("GET", "evil:80"), ("GET", "evil"), ("OPTIONS", "*"), ("GET", "*")]
        {
            let (head, body) = raw(address, method, target).await;
            assert!(head.starts_with("http/1.1 400"), "{method} {target}: {head}");
            assert!(body.contains(r#""code":"invalid_target""#), "{method} {target}: {body}");
        }
        // Every server takes the form that is meant for proxies.
        let (head, _) = raw(address, "GET", &format!("http://evil:80{path}")).await;
        assert!(head.starts_with("http/1.1 200"), "{head}");
    }
    assert!(!rest.is_finished() && !operator.is_finished());
}

#[tokio::test]
async fn a_head_without_an_end_is_cut_off() {
    let ledger = Ledger::with_chain("gno", "gno").await;
    let (listener, address) = listener().await;
    tokio::spawn(serve(listener, ledger.store(), ApiSettings::default(), std::future::pending()));
    let mut stream = TcpStream::connect(address).await.unwrap();
    let (mut read, mut write) = stream.split();
    let sending = async {
        write.write_all(b"GET /chains HTTP/1.1\r\nhost: x\r\n").await?;
        for n in 0..10_000 {
            write.write_all(format!("x-{n}: {}\r\n", "y".repeat(1000)).as_bytes()).await?;
        }
        Ok::<_, std::io::Error>(())
    };
    let mut answer = Vec::new();
    let (sent, _) = tokio::join!(sending, read.read_to_end(&mut answer));
    assert!(sent.is_err(), "ten megabytes were taken");
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn operators_are_told_who_is_not_ready() {
    let (listener, address) = listener().await;
    let (health, metrics) = (Health::new(), Metrics::new());
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(serve_operator(listener, health.clone(), metrics.clone(), async {
        let _ = stopped.await;
    }));
    let (head, body) = raw(address, "GET", "/ready").await;
    assert!(head.starts_with("http/1.1 503"), "nothing is known yet: {head}");
    assert_eq!(body, r#"{"ready":false,"reasons":["database: starting: it has not been asked yet"]}"#);
    let component = |status, ready, reason: Option<&str>| ComponentReport {
        status,
        ready,
        reason: reason.map(str::to_owned),
        remedy: reason.map(|_| "wait".to_owned()),
        for_seconds: 3,
        details: json!({"tip": 5, "lag_blocks": 4}).as_object().unwrap().clone(),
    };
    let publish = |status, ready, reason| {
        let components = BTreeMap::from([("process:main".to_owned(), component(status, ready, reason))]);
        health.publish(HealthReport { status, components });
    };
    publish("catching_up", false, Some("4 blocks behind"));
    for path in ["/health", "/healthz"] {
        let (head, body) = raw(address, "GET", path).await;
        assert!(head.starts_with("http/1.1 200"), "{head}");
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["status"], "catching_up");
        let must = json!({"status": "catching_up", "ready": false, "reason": "4 blocks behind", "remedy": "wait",
                          "for_seconds": 3, "tip": 5, "lag_blocks": 4});
        assert_eq!(body["components"]["process:main"], must);
    }
    for path in ["/ready", "/readyz"] {
        let (head, body) = raw(address, "GET", path).await;
        assert!(head.starts_with("http/1.1 503"), "{head}");
        assert_eq!(body, r#"{"ready":false,"reasons":["process:main: catching up: 4 blocks behind"]}"#);
    }
    publish("ok", true, None);
    assert!(raw(address, "GET", "/ready").await.0.starts_with("http/1.1 200"));
    metrics.projection("main", "token_balances").blocks_applied.inc_by(3);
    let (head, body) = raw(address, "GET", "/metrics").await;
    assert!(head.contains("content-type: application/openmetrics-text"), "{head}");
    assert!(body.contains(r#"ebbtide_blocks_applied_total{chain="main",projection="token_balances"} 3"#), "{body}");
    assert!(raw(address, "GET", "/tokens/balances").await.0.starts_with("http/1.1 404"));
    assert!(raw(address, "POST", "/ready").await.0.starts_with("http/1.1 405"));
    stop.send(()).unwrap();
    server.await.unwrap();
}
