//! The recorded runs once more, through JSON-RPC: a node serves the recorded blocks and logs.

use std::time::Duration;

use crate::anvil::{answers, finality_depth_needed, hash, number, supplies};
use crate::live::{assert_same, assert_untroubled, reach, standing, without_zeros};
use crate::support::fake_node::{FakeBlock, FakeNode, follow};
use crate::support::{Ebbtide, Pg, data_dir, read_ndjson_gz};

async fn recorded_run(name: &str) {
    let Some(dir) = data_dir() else { return };
    let part = |part: &str| read_ndjson_gz(&dir.join(format!("anvil/{name}.{part}.ndjson.gz")));
    let (feed, truth) = (part("feed"), part("truth"));
    let depth = finality_depth_needed(&feed).to_string();
    let mut chain: Vec<FakeBlock> = Vec::new();
    follow(&mut chain, &feed[0]);
    let node = FakeNode::start(31337, chain.clone()).await;
    let (url, ws) = (node.url(), node.ws_url());
    let pg = Pg::new().await;
    let db = pg.client().await;
    let addresses = ["--listen", "127.0.0.1:0", "--operator-listen", "127.0.0.1:0"];
    let source = ["run", "--source", "evm", "--url", &url, "--ws-url", &ws, "--source-poll-ms", "200"];
    let settings = ["--database-url", &pg.url, "--finality-depth", &depth, "--negative-balances", "halt"];
    let mut ebbtide = Ebbtide::spawn(&[&source[..], &settings, &addresses].concat(), &[]);
    let (mut told, mut compared, mut points, mut shorter) = (1, 0, 0, 0);
    for point in &truth {
        let seq = point["seq"].as_u64().unwrap();
        let upto = feed.partition_point(|line| line["seq"].as_u64().unwrap() <= seq);
        let before = chain.clone();
        feed[told..upto].iter().for_each(|line| follow(&mut chain, line));
        told = upto;
        node.set_chain(chain.clone());
        if chain.iter().zip(&before).all(|(now, then)| now.hash == then.hash) && chain.len() <= before.len() {
            // Over the wire this looks like a node that lags, and is not believed until a new block says so.
            shorter += 1;
            continue;
        }
        reach(&db, "main", number(point), hash(point)).await;
        let what = format!("{name} over the wire, after seq {seq}");
        let (balances, supply) = answers(point);
        let (at, ours) = standing(&db, "main").await;
        assert_eq!(at, hash(point), "{what}");
        assert_same(&without_zeros(ours), &balances, &what);
        let supply = supply.into_iter().filter(|(_, amount)| amount != "0").collect();
        assert_eq!(supplies(&db).await, supply, "{what}");
        compared += balances.len() + point["tokens"].as_object().unwrap().len();
        points += 1;
    }
    assert_untroubled(&db).await;
    println!("{name} over the wire: {points} truth points, {compared} answers, {shorter} shorter heads passed over");
    assert!(points > 100 && compared > 5_000);
    ebbtide.terminate();
    let status = ebbtide.wait(Duration::from_secs(15)).await;
    assert!(status.success(), "{status}:\n{}", ebbtide.stderr().join("\n"));
}

#[tokio::test]
async fn answers_of_the_contracts_are_ours_over_the_wire_through_reorgs_of_depth_1_to_10() {
    recorded_run("erc20-depth-1-10").await;
}

#[tokio::test]
async fn answers_of_the_contracts_are_ours_over_the_wire_through_reorgs_of_depth_64() {
    recorded_run("erc20-depth-64").await;
}
