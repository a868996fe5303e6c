//! Many chains in one process: those that are broken are named, and hold up no other.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::Stage;
use crate::support::fake_node::read::lively;
use crate::support::fake_node::{FakeNode, Fault};
use crate::support::{Ebbtide, wait_until};

const HEALTHY: i64 = 7;
const INTERVAL_MS: i64 = 200;
const BLOCKS: i64 = 25;

#[tokio::test]
async fn of_ten_chains_three_are_broken_and_named_and_seven_keep_their_pace() {
    let stage = Stage::empty().await;
    let node = async || FakeNode::start(1, lively(12, "a")).await;
    let (refuses, dead, other) = (node().await, node().await, node().await);
    refuses.fault(Fault::Http(401, "no such key"));
    dead.fault(Fault::DropSocket);
    // It holds blocks of another network than the node's.
    stage.sql("insert into chains (name, kind, network_id) values ('other', 'evm', '7')").await;
    stage.sql("select put_block('other', 0, '0xaa', '0x00')").await;
    let mut settings = String::new();
    for n in 1..=HEALTHY {
        write!(settings, "[chains.well{n}]\nsource = \"devnet\"\nseed = {n}\nblock_interval_ms = {INTERVAL_MS}\n")
            .unwrap();
    }
    for (name, node) in [("refuses", &refuses), ("dead", &dead), ("other", &other)] {
        write!(settings, "[chains.{name}]\nsource = \"evm\"\nurls = [\"{}\"]\nstart_height = 0\n", node.url()).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ebbtide.toml");
    std::fs::write(&file, settings).unwrap();
    let mut run = Ebbtide::spawn(
        &[
            "run",
            "--config",
            file.to_str().unwrap(),
            "--database-url",
            &stage.pg.url,
            "--listen",
            "127.0.0.1:0",
            "--operator-listen",
            "127.0.0.1:0",
        ],
        &[],
    );
    let broken = [("refuses", "failing", "401"), ("dead", "waiting", "request"), ("other", "failing", "network")];
    wait_until("the three are named, and no other", async || {
        let (code, text) = stage.status(&["--json"]).await;
        let all: Value = serde_json::from_str(&text).ok()?;
        let named: Vec<(&str, &str, &str)> = all
            .as_array()?
            .iter()
            .filter(|row| row["source"]["state"] != "ok")
            .filter_map(|row| {
                Some((row["chain"].as_str()?, row["source"]["state"].as_str()?, row["source"]["reason"].as_str()?))
            })
            .collect();
        let are_named = |(chain, state, why): &(&str, &str, &str)| {
            named.iter().any(|(c, s, reason)| c == chain && s == state && reason.contains(why))
        };
        (code == 1 && named.len() == broken.len() && broken.iter().all(are_named)).then_some(())
    })
    .await;
    // Each of the seven has applied so many blocks more in little more than the time in which they are made.
    let applied = "select string_agg(k.through_height::text, ' ' order by c.name) from checkpoints k
                   join chains c using (chain_id) where c.name like 'well%' and k.projection = 'token_balances'";
    let heights =
        async || -> Vec<i64> { stage.one(applied).await.split_whitespace().map(|h| h.parse().unwrap()).collect() };
    // What has not begun has no height.
    let begun = async || Some(heights().await).filter(|all| all.len() as i64 == HEALTHY);
    let (before, begun) = (wait_until("all seven have begun", begun).await, Instant::now());
    wait_until("all seven go on", async || {
        heights().await.iter().zip(&before).all(|(now, before)| now - before >= BLOCKS).then_some(())
    })
    .await;
    let (took, made_in) = (begun.elapsed(), Duration::from_millis((BLOCKS * INTERVAL_MS).unsigned_abs()));
    println!("{BLOCKS} blocks of each of the seven in {took:.1?}; they are made in {made_in:?}");
    assert!(took < made_in * 3 / 2, "{took:?}");
    assert_eq!(
        stage.one("select count(*) from blocks b join chains c using (chain_id) where c.name = 'other'").await,
        "1"
    );
    assert!(run.is_running());
}
