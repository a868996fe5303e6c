//! Ways in which the database itself is not well: then nothing else can be known, and nothing is green.

use std::net::SocketAddr;

use crate::support::{Ebbtide, FaultProxy, free_addr, holds_within, wait_until};
use crate::{HEARD_WITHIN, Said, Stage, Way, expect, states_in, states_of, way};

/// Everybody who is asked is unready and names the cause.
async fn agree(stage: &Stage, why: &str) {
    holds_within(HEARD_WITHIN, why, async || {
        let (ready, health, metrics) = tokio::join!(stage.get("/ready"), stage.get("/health"), stage.get("/metrics"));
        let is_failing = health.1.contains(r#""status":"failing""#);
        let mut said = vec![
            expect("/ready", ready.0 == 503 && ready.1.contains(why), &ready.1),
            expect("/health", is_failing && health.1.contains(why), &health.1),
            nothing_is_green(&metrics.1),
        ];
        if said.iter().all(Result::is_ok) {
            let status = stage.status(&[]).await;
            said.push(expect("status", status.0 == 1 && status.1.contains(why), &status.1));
        }
        said.into_iter().filter_map(Result::err).collect()
    })
    .await;
}

/// Not ready, and no part is in another state than `failing`.
fn nothing_is_green(metrics: &str) -> Said {
    let is_unready = metrics.lines().any(|line| line == "ebbtide_ready 0");
    let all_fail = states_of(metrics).all(|line| line.contains(r#"state="failing""#));
    expect("/metrics", is_unready && all_fail && states_of(metrics).count() > 0, &states_in(metrics))
}

/// Of the balances.
fn lag_seconds(metrics: &str) -> Option<f64> {
    let series = r#"ebbtide_lag_seconds{chain="main",projection="token_balances"} "#;
    metrics.lines().find_map(|line| line.strip_prefix(series)?.parse().ok())
}

/// The schema is changed under a processor: it ends, and all say what was changed until `migrate` brought it back.
fn drift(name: &'static str, damage: &'static str, what: &'static str) -> Way {
    way(name, async move {
        let stage = Stage::written().await;
        stage.branch("a", 1, 2, "a0").await;
        let mut process = stage.process(&[]);
        stage.is_well().await;
        stage.sql(damage).await;
        agree(&stage, what).await;
        assert!(!process.wait(HEARD_WITHIN * 2).await.success());
        assert!(stage.told(&["migrate"]).await.contains(what));
        let _process = stage.process(&[]);
        stage.is_well().await;
    })
}

pub fn ways() -> Vec<Way> {
    vec![
        drift("a trigger is gone", "drop trigger deleted on blocks", "the trigger deleted of blocks is missing"),
        drift("a trigger is disabled", "alter table blocks disable trigger written", "(disabled)"),
        drift("a view is gone", "drop view anomalies", "the view anomalies is missing"),
        way("somebody locks a table", async {
            let stage = Stage::written().await;
            stage.branch("a", 1, 2, "a0").await;
            let _process = stage.process(&[]);
            stage.is_well().await;
            let holder = stage.pg.client().await;
            holder.batch_execute("begin; lock table blocks").await.unwrap();
            let pid: i32 = stage
                .pg
                .client()
                .await
                .query_one(
                    "select pid from pg_locks where relation = 'blocks'::regclass and mode = 'AccessExclusiveLock'",
                    &[],
                )
                .await
                .unwrap()
                .get(0);
            agree(&stage, &format!("select pg_terminate_backend({pid})")).await;
            let lag = async || lag_seconds(&stage.get("/metrics").await.1);
            let before = wait_until("there is a lag", &lag).await;
            wait_until("the lag grows", async || (lag().await? > before).then_some(())).await;
            stage.sql(&format!("select pg_terminate_backend({pid})")).await;
            stage.is_well().await;
        }),
        way("a processor is cut off", async {
            let stage = Stage::written().await;
            stage.branch("a", 1, 2, "a0").await;
            let proxy = FaultProxy::in_front_of(&stage.pg.url).await;
            let (operator, url): (SocketAddr, String) = (free_addr(), proxy.url(&stage.pg.url));
            let listen = operator.to_string();
            let _process = Ebbtide::spawn(&["process", "--database-url", &url, "--operator-listen", &listen], &[]);
            stage.is_well().await;
            proxy.shut();
            let must = crate::Must {
                part: "token_balances",
                state: "silent",
                why: "no sign of life",
                remedy: Some("`ebbtide process`"),
            };
            stage.agree(must).await;
            // What it knows itself.
            let (code, said) = stage.get_from(operator, "/ready").await;
            assert!(code == 503 && said.contains("database: failing"), "{code} {said}");
            nothing_is_green(&stage.get_from(operator, "/metrics").await.1).unwrap();
            proxy.reopen();
            stage.is_well().await;
            let metrics = stage.get_from(operator, "/metrics").await.1;
            assert!(metrics.contains("ebbtide_db_reconnects_total 1"), "{metrics}");
        }),
    ]
}
