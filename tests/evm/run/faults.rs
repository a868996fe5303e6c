//! Faults of a node: nothing is believed while they last, it says so, it asks with moderation, and it recovers.

use std::time::Duration;

use super::follow::{Run, blocks, forked, rate};

use crate::support::fake_node::{FakeNode, Fault};
use crate::support::{Ebbtide, Pg, free_addr, wait_until};

/// Each fault strikes while the chain grows and loses its newest block.
async fn outlives(faults: &[Fault]) {
    let mut served = blocks(40);
    let node = FakeNode::start(31337, served.clone()).await;
    let mut run = Run::start(&node, &["--finality-depth", "20"]).await;
    run.reach(&served, "at the start").await;
    run.until_ready("at the start").await;
    let healthy = rate(&node, Duration::from_secs(1), async || {}).await;
    for (salt, fault) in faults.iter().enumerate() {
        let what = format!("{fault:?}");
        let before = served.clone();
        served = forked(&served, 1, 3, salt as u128);
        let newest = served.last().unwrap().number;
        // Those that are about one block strike the newest.
        let fault = match fault {
            Fault::MissingBlock(_) => Fault::MissingBlock(newest),
            Fault::LogsLeftOut(_) => Fault::LogsLeftOut(newest),
            other => other.clone(),
        };
        let about_one = matches!(fault, Fault::MissingBlock(_) | Fault::LogsLeftOut(_));
        node.fault(fault);
        node.set_chain(served.clone());
        run.until_unready(&what).await;
        let asked = rate(&node, Duration::from_millis(800), async || {
            assert!(!run.ready().await.0, "{what}: ready while the source fails");
            if !about_one {
                run.stands_at(&before, &what).await;
            }
        })
        .await;
        assert!(asked < 20.0 * healthy, "{what}: {asked:.0} requests a second, {healthy:.0} when all is well");
        node.heal();
        run.reach(&served, &what).await;
        run.until_ready(&what).await;
    }
    println!("{} faults outlived; {healthy:.0} requests a second when all is well", faults.len());
    run.stop().await;
}

#[tokio::test]
async fn refusals_and_gateway_errors_are_outlived() {
    outlives(&[
        Fault::Http(429, "Too Many Requests"),
        Fault::RetryAfter(1),
        Fault::Http(502, "<html>Bad Gateway</html>"),
        Fault::Http(503, ""),
        Fault::Refused(-32005, "limit exceeded"),
        Fault::Refused(-32603, "internal error"),
        Fault::Body("ok"),
    ])
    .await;
}

#[tokio::test]
async fn silence_and_broken_connections_are_outlived() {
    outlives(&[Fault::Hang, Fault::CutBody, Fault::DropSocket, Fault::Hang]).await;
}

#[tokio::test]
async fn answers_that_are_null_wrong_or_missing_are_not_believed() {
    outlives(&[
        Fault::NullAnswers,
        Fault::ContradictedAnswers,
        Fault::WrongIds,
        Fault::MissingBlock(0),
        Fault::LogsLeftOut(0),
        Fault::ContradictedLogs,
        Fault::StrayLog,
    ])
    .await;
}

#[tokio::test]
async fn a_web_page_in_the_nodes_place_and_a_closed_door_are_waited_out() {
    outlives(&[Fault::Body("<!DOCTYPE html><html>hello</html>"), Fault::Http(401, "who are you")]).await;
}

#[tokio::test]
async fn unusual_but_right_answers_hold_nobody_up() {
    let mut served = blocks(40);
    let node = FakeNode::start(31337, served.clone()).await;
    let mut run = Run::start(&node, &["--finality-depth", "20"]).await;
    run.reach(&served, "at the start").await;
    let unusual = [
        Fault::DoubledAnswers,
        Fault::ReversedAnswers,
        Fault::DoubledLogs,
        Fault::NoFinalized,
        Fault::LargestBatch(1),
        Fault::BatchRefused(-32600, "batch requests are not supported"),
    ];
    for (salt, fault) in unusual.iter().enumerate() {
        served = forked(&served, 2, 4, salt as u128);
        node.fault(fault.clone());
        node.set_chain(served.clone());
        run.reach(&served, &format!("{fault:?}")).await;
        node.heal();
    }
    println!("{} unusual ways to be right", unusual.len());
    run.stop().await;
}

#[tokio::test]
async fn history_that_names_two_hashes_for_one_height_is_not_taken() {
    let served = blocks(400);
    let node = FakeNode::start(31337, served.clone()).await;
    node.fault(Fault::TwoHashes);
    let mut run = Run::start(&node, &[]).await;
    let asked = rate(&node, Duration::from_secs(2), async || {
        assert!(!run.ready().await.0, "ready without history");
    })
    .await;
    assert!(node.call_count("eth_getLogs") > 0, "it has tried");
    assert!(run.number("select count(*) from token_events").await < 1_200, "not all of it can be believed");
    node.heal();
    run.reach(&served, "after two hashes").await;
    run.until_ready("after two hashes").await;
    let healthy = rate(&node, Duration::from_secs(1), async || {}).await;
    assert!(asked < 20.0 * healthy, "{asked:.0} requests a second, {healthy:.0} when all is well");
    println!("{asked:.0} requests a second with two hashes, {healthy:.0} when all is well");
    run.stop().await;
}

#[tokio::test]
async fn limits_of_ranges_are_kept_to_and_outgrown() {
    let served = blocks(4_000);
    for limit in [
        Fault::MaxRange(20, "Block range is too large"),
        Fault::MaxRange(20, "eth_getLogs is limited to a 20 blocks range"),
        Fault::MaxLogs(60, "query returned more than 60 results"),
    ] {
        let node = FakeNode::start(31337, served.clone()).await;
        node.fault(limit.clone());
        let mut run = Run::start(&node, &[]).await;
        let what = format!("{limit:?}");
        crate::support::wait_until(&format!("{what}: 600 blocks are stored"), async || {
            (run.number("select count(*) from blocks").await >= 600).then_some(())
        })
        .await;
        node.heal();
        run.reach(&served, &what).await;
        // With 20 blocks a call, the whole would have taken 200.
        println!("{what}: {} calls for logs", node.call_count("eth_getLogs"));
        run.stop().await;
    }
}

#[tokio::test]
async fn a_chain_whose_node_refuses_ends_neither_the_others_nor_the_interface() {
    let served = blocks(12);
    let (node, foreign) = (FakeNode::start(31337, served.clone()).await, FakeNode::start(5, blocks(3)).await);
    node.fault(Fault::Http(401, "who are you"));
    let pg = Pg::new().await;
    let db = pg.client().await;
    db.batch_execute("insert into chains (name, kind, network_id) values ('another', 'evm', '7')").await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ebbtide.toml");
    let chain = |name: &str, url: String| {
        format!("[chains.{name}]\nsource = 'evm'\nurls = [{url:?}]\nstart_height = 0\npoll_interval_ms = 50\n")
    };
    let devnet = "[chains.good]\nsource = 'devnet'\nblock_interval_ms = 50\n".to_owned();
    std::fs::write(&file, [chain("refused", node.url()), chain("another", foreign.url()), devnet].concat()).unwrap();
    let (listen, operator) = (free_addr(), free_addr());
    let (api, port, config) = (listen.to_string(), operator.to_string(), file.to_str().unwrap());
    let args = ["--config", config, "--database-url", &pg.url, "--operator-listen", &port];
    let mut ebbtide = Ebbtide::spawn(&[&["run", "--listen", &api], &args[..]].concat(), &[]);
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("http://{listen}/tokens/balances?chain=good");
    wait_until("the healthy chain is served", async || {
        http.get(&url).send().await.ok().filter(|answer| answer.status().is_success())
    })
    .await;
    wait_until("both faults are shown", async || {
        let (ready, said) = crate::support::http::ready(operator).await;
        (!ready && said.contains("HTTP 401") && said.contains("network 5")).then_some(())
    })
    .await;
    node.heal();
    wait_until("the chain is followed once its node lets us in", async || {
        let sql = "select count(*) from blocks join chains using (chain_id) where name = 'refused'";
        (db.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 12).then_some(())
    })
    .await;
    assert!(ebbtide.is_running());
    ebbtide.terminate();
    let status = ebbtide.wait(Duration::from_secs(15)).await;
    assert!(status.success(), "{}", ebbtide.stderr().join("\n"));
    // By itself there is nobody to go on for.
    node.fault(Fault::Http(401, "who are you"));
    let url = node.url();
    let alone = ["sync", "--source", "evm", "--url", &url, "--database-url", &pg.url, "--chain", "alone"];
    let mut alone = Ebbtide::spawn(&alone, &[]);
    let status = alone.wait(Duration::from_secs(15)).await;
    let said = alone.stderr().join("\n");
    assert!(status.code() == Some(1) && said.contains("HTTP 401"), "{status}: {said}");
}
