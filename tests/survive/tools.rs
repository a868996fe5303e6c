//! The tests' own tools do what they say.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::SinkExt as _;
use serde_json::json;
use tokio_postgres::NoTls;

use crate::support::{self, Anvil, Ebbtide, Fault, FaultProxy, OwnPg, Pg, pg, wait_until};

/// Makes a table, then connects through the proxy.
async fn through_proxy(pg: &Pg) -> (FaultProxy, tokio_postgres::Client) {
    pg::connect(&pg.url).await.batch_execute("create table t (n int primary key)").await.unwrap();
    let proxy = FaultProxy::in_front_of(&pg.url).await;
    let client = pg::connect(&proxy.url(&pg.url)).await;
    (proxy, client)
}

async fn rows(pg: &Pg) -> i64 {
    pg::connect(&pg.url).await.query_one("select count(*) from public.t", &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn proxy_counts_messages_by_kind_and_carries_answers() {
    let pg = Pg::empty().await;
    let (proxy, client) = through_proxy(&pg).await;
    assert_eq!(proxy.count(), 0);
    client.batch_execute("begin").await.unwrap();
    client.execute("insert into t values ($1)", &[&7]).await.unwrap();
    client.batch_execute("commit").await.unwrap();
    assert_eq!(
        proxy.messages(),
        ["Query begin", "Parse insert into t values ($1)", "Sync", "Bind", "Execute", "Sync", "Sync", "Query commit"],
        "the third Sync closes the statement"
    );
    assert_eq!(rows(&pg).await, 1);
}

#[tokio::test]
async fn proxy_cuts_before_each_message_and_nothing_is_committed() {
    let pg = Pg::empty().await;
    let (proxy, _client) = through_proxy(&pg).await;
    let mut cuts = 0;
    for nth in 1.. {
        let client = pg::connect(&proxy.url(&pg.url)).await;
        proxy.arm(nth, Fault::CutBefore);
        let whole = async {
            client.batch_execute("begin").await?;
            client.execute("insert into t values ($1)", &[&1]).await?;
            client.batch_execute("commit").await
        };
        if whole.await.is_ok() {
            proxy.disarm();
            break;
        }
        cuts += 1;
        assert_eq!(proxy.fired(), cuts);
        assert_eq!(rows(&pg).await, 0, "cut before message {nth}");
    }
    assert_eq!(cuts, 8, "begin; parse, sync, bind, execute, sync; close, sync; commit");
    assert_eq!(rows(&pg).await, 1);
}

#[tokio::test]
async fn proxy_swallows_the_answer_of_a_commit_that_took_effect() {
    let pg = Pg::empty().await;
    let (proxy, client) = through_proxy(&pg).await;
    client.batch_execute("begin; insert into t values (1)").await.unwrap();
    proxy.arm(1, Fault::CutAfterAnswer);
    let answer = client.batch_execute("commit").await;
    assert!(answer.is_err_and(|e| e.is_closed() || e.code().is_none()), "the client hears nothing");
    assert_eq!(rows(&pg).await, 1);
    // And for a pipelined statement: the fault is armed at its Bind, the answer comes at its Sync.
    let client = pg::connect(&proxy.url(&pg.url)).await;
    let insert = client.prepare("insert into t values ($1)").await.unwrap();
    proxy.arm(1, Fault::CutAfterAnswer);
    assert!(client.execute(&insert, &[&2]).await.is_err());
    assert_eq!((rows(&pg).await, proxy.fired()), (2, 2));
}

#[tokio::test]
async fn proxy_swallows_the_answer_of_a_copy() {
    let pg = Pg::empty().await;
    let (proxy, client) = through_proxy(&pg).await;
    for (fault, expected) in [(None, 1), (Some(Fault::CutAfterAnswer), 2), (Some(Fault::CutBefore), 2)] {
        let client = if fault.is_none() { &client } else { &pg::connect(&proxy.url(&pg.url)).await };
        let sink = client.copy_in::<_, bytes::Bytes>("copy t from stdin").await.unwrap();
        let mut sink = std::pin::pin!(sink);
        // Copied, not yet done.
        sink.send(bytes::Bytes::from(format!("{}\n", rows(&pg).await + 10))).await.unwrap();
        if let Some(fault) = fault {
            proxy.arm(1, fault);
        }
        assert_eq!(sink.finish().await.is_ok(), fault.is_none(), "{fault:?}");
        assert_eq!(rows(&pg).await, expected, "{fault:?}");
    }
    assert_eq!(proxy.messages().iter().filter(|m| *m == "CopyDone").count(), 3);
}

#[tokio::test]
async fn proxy_freezes_until_released_or_until_the_client_is_gone() {
    let pg = Pg::empty().await;
    let (proxy, client) = through_proxy(&pg).await;
    proxy.arm(1, Fault::FreezeBefore);
    let insert = tokio::spawn(async move { client.batch_execute("insert into t values (1)").await });
    proxy.wait_fired(1).await;
    assert_eq!(rows(&pg).await, 0);
    proxy.release();
    insert.await.unwrap().unwrap();
    assert_eq!(rows(&pg).await, 1);

    let (client, connection) = tokio_postgres::connect(&proxy.url(&pg.url), NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    proxy.arm(1, Fault::FreezeBefore);
    let insert = tokio::spawn(async move { client.batch_execute("insert into t values (2)").await });
    proxy.wait_fired(2).await;
    connection.abort();
    assert!(insert.await.unwrap().is_err());
    let watcher = pg::connect(&pg.url).await;
    wait_until("the server has lost the frozen connection", async || {
        let sql = "select count(*) from pg_stat_activity where datname = current_database()";
        (watcher.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 1).then_some(())
    })
    .await;
    proxy.release();
    assert_eq!(rows(&pg).await, 1);
}

#[tokio::test]
async fn proxy_counts_only_the_application_it_is_armed_for() {
    let pg = Pg::empty().await;
    let (proxy, client) = through_proxy(&pg).await;
    let named = pg::connect(&format!("{}?application_name=ebbtide%20process", proxy.url(&pg.url))).await;
    proxy.arm_for("process", 1, Fault::CutBefore);
    client.batch_execute("select 1").await.unwrap();
    assert_eq!(proxy.fired(), 0);
    assert!(named.batch_execute("select 1").await.is_err());
    assert_eq!(proxy.fired(), 1);
    proxy.shut();
    assert!(client.batch_execute("select 1").await.is_err());
    assert!(tokio_postgres::connect(&proxy.url(&pg.url), NoTls).await.is_err());
    proxy.reopen();
    pg::connect(&proxy.url(&pg.url)).await.batch_execute("select 1").await.unwrap();
}

#[tokio::test]
async fn each_test_gets_a_database_of_its_own_and_it_goes_away() {
    let (a, b) = (Pg::empty().await, Pg::empty().await);
    pg::connect(&a.url).await.batch_execute("create table only_in_a ()").await.unwrap();
    let b_client = b.client().await;
    let found: bool =
        b_client.query_one("select to_regclass('public.only_in_a') is not null", &[]).await.unwrap().get(0);
    assert!(!found);
    let names = async || -> BTreeSet<String> {
        let rows = b_client.query("select datname::text from pg_database", &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    };
    let a_name = a.config().get_dbname().unwrap().to_owned();
    assert!(names().await.contains(&a_name));
    drop(a);
    wait_until("its database is gone", async || (!names().await.contains(&a_name)).then_some(())).await;
}

#[tokio::test]
async fn a_database_cloned_from_the_template_is_migrated() {
    let (one, two) = tokio::join!(Pg::new(), Pg::new());
    for pg in [one, two] {
        let client = pg.client().await;
        client.batch_execute("insert into chains (name, kind) values ('mine', 'other')").await.unwrap();
        let chains: i64 = client.query_one("select count(*) from chains", &[]).await.unwrap().get(0);
        assert_eq!(chains, 1);
    }
}

#[tokio::test]
async fn own_server_is_stopped_killed_frozen_and_started_again() {
    let mut own = OwnPg::start().await;
    own.client().await.batch_execute("create table kept as select 42 as n").await.unwrap();
    let kept = async |own: &OwnPg| -> i32 {
        pg::connect(&own.url()).await.query_one("select n from kept", &[]).await.unwrap().get(0)
    };
    own.stop().await;
    assert!(tokio_postgres::connect(&own.url(), NoTls).await.is_err());
    own.start_again().await;
    assert_eq!(kept(&own).await, 42);
    own.kill();
    assert!(tokio_postgres::connect(&own.url(), NoTls).await.is_err());
    own.start_again().await;
    assert_eq!(kept(&own).await, 42);

    let client = own.client().await;
    own.freeze();
    let mut question = std::pin::pin!(client.query_one("select 1", &[]));
    let early = tokio::time::timeout(Duration::from_millis(300), question.as_mut()).await;
    assert!(early.is_err(), "a frozen server answers nothing");
    own.thaw();
    question.await.unwrap();
}

#[tokio::test]
async fn a_process_is_watched_and_signalled() {
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "echo begun >&2; trap 'echo ended >&2; exit 3' TERM; while :; do sleep 0.05; done"]);
    let mut process = Ebbtide::spawn_command(command);
    process.wait_for_line("begun").await;
    assert!(process.is_running());
    process.terminate();
    process.wait_for_line("ended").await;
    assert_eq!(process.wait(support::PATIENCE).await.code(), Some(3));
}

#[tokio::test]
async fn a_node_deploys_the_token_contract() {
    let Some(node) = Anvil::start(&["--chain-id", "4242"]).await else { return };
    let Some((abi, bytecode)) = support::anvil::contract("ERC20PresetMinterPauser") else { return };
    assert!(abi.as_array().unwrap().iter().any(|entry| entry["name"] == "Transfer"));
    assert_eq!(node.rpc("eth_chainId", json!([])).await, "0x1092");
    // Its constructor takes two texts: where each begins, then length and bytes.
    let word = |n: u8| format!("{n:064x}");
    let text = |t: &str| format!("{}{:0<64}", word(1), t.bytes().map(|b| format!("{b:02x}")).collect::<String>());
    let data = format!("{bytecode}{}{}{}{}", word(0x40), word(0x80), text("T"), text("T"));
    let accounts = node.rpc("eth_accounts", json!([])).await;
    let from = &accounts[0];
    let sent = node.rpc("eth_sendTransaction", json!([{ "from": from, "data": data, "gas": "0x4c4b40" }])).await;
    let receipt = wait_until("the deployment is mined", async || {
        Some(node.rpc("eth_getTransactionReceipt", json!([sent])).await).filter(|receipt| !receipt.is_null())
    })
    .await;
    assert_eq!(receipt["status"], "0x1", "{receipt}");
    let code = node.rpc("eth_getCode", json!([receipt["contractAddress"], "latest"])).await;
    assert!(code.as_str().unwrap().len() > 1_000);
}
