//! Each metric has the value that what happened gives it.

use std::collections::BTreeMap;

use crate::support::fake_node::read::{lively, some_logs};
use crate::support::fake_node::{FakeBlock, FakeNode, Fault, chain};
use crate::support::{Ebbtide, Pg, free_addr, http, wait_until};

/// Series by name and labels.
async fn series(operator: std::net::SocketAddr) -> BTreeMap<String, f64> {
    let text = http::get(operator, "/metrics").await;
    let lines = text.lines().filter(|line| line.starts_with("ebbtide_"));
    lines
        .filter_map(|line| Some((line.rsplit_once(' ')?.0.to_owned(), line.rsplit_once(' ')?.1.parse().ok()?)))
        .collect()
}

#[tokio::test]
async fn each_metric_has_its_value() {
    let pg = Pg::new().await;
    let db = pg.client().await;
    let node = FakeNode::start(1, lively(12, "a")).await;
    let (operator, url) = (free_addr(), node.url());
    let listen = operator.to_string();
    let all =
        ["run", "--source", "evm", "--url", &url, "--start-height", "0", "--database-url", &pg.url, "--finality-depth"];
    let more = ["5", "--listen", "127.0.0.1:0", "--operator-listen", &listen, "--source-poll-ms", "50"];
    let _run = Ebbtide::spawn(&[&all[..], &more].concat(), &[]);
    let until = async |what: &str, holds: &dyn Fn(&BTreeMap<String, f64>) -> bool| {
        let mut last = BTreeMap::new();
        let found = wait_until(what, async || {
            last = series(operator).await;
            holds(&last).then(|| last.clone())
        });
        found.await
    };
    let of_chain = |name: &str| format!("{name}{{chain=\"main\"}}");
    let balances = |name: &str| format!("{name}{{chain=\"main\",projection=\"token_balances\"}}");
    let at = |all: &BTreeMap<String, f64>, name: &str| all.get(name).copied().unwrap_or(f64::NAN);

    let all = until("it is at the head", &|all| at(all, &balances("ebbtide_applied_height")) == 11.0).await;
    until("it is ready", &|all| at(all, "ebbtide_ready") == 1.0).await;
    assert_eq!(at(&all, &of_chain("ebbtide_head_height")), 11.0);
    assert_eq!(at(&all, &of_chain("ebbtide_tip_height")), 11.0);
    assert_eq!(at(&all, &of_chain("ebbtide_final_height")), 6.0);
    assert_eq!(at(&all, &balances("ebbtide_lag_blocks")), 0.0);
    assert_eq!(at(&all, &balances("ebbtide_lag_seconds")), 0.0);
    assert_eq!(at(&all, &of_chain("ebbtide_blocks_synced_total")), 12.0);
    assert_eq!(at(&all, &balances("ebbtide_blocks_applied_total")), 12.0);
    let events: i64 = db.query_one("select count(*) from token_events", &[]).await.unwrap().get(0);
    assert_eq!(at(&all, &balances("ebbtide_events_applied_total")), events as f64);
    assert_eq!(at(&all, "ebbtide_listener_connected"), 1.0);
    assert_eq!(at(&all, "ebbtide_listener_reconnects_total"), 0.0);
    assert_eq!(at(&all, &balances("ebbtide_reorgs_total")), 0.0);
    assert!(at(&all, &balances("ebbtide_apply_seconds_count")) >= 1.0, "{all:?}");
    let looks = at(&all, &of_chain("ebbtide_source_looks_total"));
    until("the source is asked again", &|all| at(all, &of_chain("ebbtide_source_looks_total")) > looks).await;

    // A reorganisation of three blocks.
    node.set_chain(branched(5));
    let all = until("the reorganisation is followed", &|all| at(all, &balances("ebbtide_reorgs_total")) == 1.0).await;
    assert_eq!(at(&all, &balances("ebbtide_reorg_depth_sum")), 3.0);

    // Behind: held by an operator while blocks come.
    until("the new branch is applied", &|all| at(all, &balances("ebbtide_applied_height")) == 13.0).await;
    db.batch_execute("select pause('main', null, null)").await.unwrap();
    node.set_chain(branched(9));
    let all = until("it lags", &|all| at(all, &balances("ebbtide_lag_blocks")) == 4.0).await;
    // The blocks of the node are years old.
    let before = at(&all, &balances("ebbtide_lag_seconds"));
    assert!(before > 0.0);
    until("the lag grows", &|all| at(all, &balances("ebbtide_lag_seconds")) > before).await;
    assert_eq!(at(&all, r#"ebbtide_projection_state{chain="main",projection="token_balances",state="paused"}"#), 1.0);
    assert_eq!(at(&all, r#"ebbtide_projection_state{chain="main",projection="token_balances",state="ok"}"#), 0.0);
    assert_eq!(at(&all, r#"ebbtide_source_state{chain="main",state="ok"}"#), 1.0);
    db.batch_execute("select resume('main', null)").await.unwrap();
    until("it does not lag", &|all| at(all, &balances("ebbtide_lag_seconds")) == 0.0).await;

    // Faults of the node, transient and lasting.
    node.fault(Fault::Http(503, "busy"));
    until("a fault is counted", &|all| at(all, r#"ebbtide_source_faults_total{chain="main",kind="transient"}"#) >= 1.0)
        .await;
    node.heal();
    node.fault(Fault::Http(401, "no"));
    until("a fault is counted", &|all| at(all, r#"ebbtide_source_faults_total{chain="main",kind="permanent"}"#) >= 1.0)
        .await;
    node.heal();

    // The listening connection is made again, and so is the one of the heart.
    let sql = "select count(pg_terminate_backend(pid)) from pg_stat_activity
               where datname = current_database() and pid <> pg_backend_pid()";
    db.query_one(sql, &[]).await.unwrap();
    until("it is reached again", &|all| at(all, "ebbtide_db_reconnects_total") >= 1.0).await;
    until("it listens again", &|all| {
        at(all, "ebbtide_listener_reconnects_total") >= 1.0 && at(all, "ebbtide_listener_connected") == 1.0
    })
    .await;

    // Rejected events and negative balances.
    db.batch_execute(
        r#"insert into chains (name, kind) values ('hand', 'evm'), ('gone', 'other');
           select put_block('hand', 1, '0x01', '0x00', token_events => '[
               {"tx_index":0,"event_index":0,"token":"gold","to_address":"alice","amount":1},
               {"tx_index":0,"event_index":1,"token":"0x00000000000000000000000000000000000000aa",
                "from_address":"0x00000000000000000000000000000000000000a1","amount":1}]')"#,
    )
    .await
    .unwrap();
    let negative = r#"ebbtide_negative_balances_total{chain="hand",projection="token_balances"}"#;
    until("a negative balance is counted", &|all| at(all, negative) == 1.0).await;
    let rejected = r#"ebbtide_rejected_events_total{chain="hand",reason="refused"}"#;
    until("the rejected event is counted", &|all| at(all, rejected) == 1.0).await;

    // Somebody listens and takes nothing in: 16 MB of what may be 8 GB. All databases of the server share that queue.
    let somebody = pg.client().await;
    somebody.batch_execute("listen noise").await.unwrap();
    somebody.batch_execute("begin; select 1").await.unwrap();
    db.batch_execute(
        "do $$ begin for n in 1..2000 loop perform pg_notify('noise', n || repeat('x', 7900)); end loop; end $$",
    )
    .await
    .unwrap();
    let usage = "ebbtide_notification_queue_usage";
    wait_until("what is queued is measured", async || {
        let queued: f64 = db.query_one("select pg_notification_queue_usage()", &[]).await.unwrap().get(0);
        let measured = at(&series(operator).await, usage);
        (queued > 0.001 && (measured - queued).abs() < 0.0005).then_some(())
    })
    .await;
    somebody.batch_execute("rollback").await.unwrap();
    until("it is taken in", &|all| at(all, usage) < 0.001).await;

    // A chain that is dropped is measured no more.
    let gone = r#"ebbtide_tip_height{chain="gone"}"#;
    until("it is measured", &|all| all.contains_key(gone)).await;
    db.batch_execute("select drop_chain('gone')").await.unwrap();
    until("it is measured no more", &|all| !all.keys().any(|key| key.contains("chain=\"gone\""))).await;

    // None was left out.
    let text = http::get(operator, "/metrics").await;
    let help = text.lines().filter_map(|line| line.strip_prefix("# TYPE ebbtide_")?.split(' ').next());
    let known = "ready source_state projection_state head_height tip_height final_height source_looks source_faults rejected_events blocks_synced
                 blocks_applied events_applied reorgs reorg_depth apply_seconds applied_height lag_blocks lag_seconds
                 negative_balances listener_connected listener_reconnects db_reconnects notification_queue_usage";
    let known: Vec<&str> = known.split_whitespace().collect();
    assert_eq!(help.collect::<Vec<_>>(), known, "every metric is looked at above");
}

/// So many blocks of another branch, in place of those above height 8.
fn branched(len: u64) -> Vec<FakeBlock> {
    let mut blocks = lively(9, "a");
    blocks.extend(chain(9, len, blocks.last(), "b", some_logs));
    blocks
}
