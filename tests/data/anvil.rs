//! The recorded runs of a real node: after every change of its head, what its contracts answered.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use tokio_postgres::Client;

use crate::live::{Amounts, Live, assert_same, assert_untroubled, standing, standing_at, without_zeros};
use crate::support::{data_dir, read_ndjson_gz};

pub fn number(line: &Value) -> u64 {
    line["number"].as_u64().unwrap()
}

pub fn hash(line: &Value) -> &str {
    line["hash"].as_str().unwrap()
}

/// The contracts' answers at a truth point: non-zero balances, and supplies.
pub fn answers(point: &Value) -> (Amounts, BTreeMap<String, String>) {
    let (mut balances, mut supplies) = (Amounts::new(), BTreeMap::new());
    for (token, held) in point["tokens"].as_object().unwrap() {
        supplies.insert(token.clone(), held["total_supply"].as_str().unwrap().to_owned());
        for (address, amount) in held["balances"].as_object().unwrap() {
            balances.insert((token.clone(), address.clone()), amount.as_str().unwrap().to_owned());
        }
    }
    (balances, supplies)
}

/// Supplies that are not 0, as the view of tokens has them.
pub async fn supplies(db: &Client) -> BTreeMap<String, String> {
    let rows = db.query("select token, total_supply::text from tokens where total_supply <> 0", &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// How far below a head seen before the deepest reorg begins: with a smaller finality depth it would be refused.
pub fn finality_depth_needed(feed: &[Value]) -> u64 {
    let (mut length, mut highest, mut needed) = (0, 0, 0);
    for line in feed {
        let keep = if line["event"] == "head" { number(line) + 1 } else { number(line) };
        if keep < length {
            needed = needed.max(highest - (keep - 1));
        }
        length = number(line) + 1;
        highest = highest.max(number(line));
    }
    needed
}

async fn recorded_run(name: &str, expected_answers: usize) {
    let Some(dir) = data_dir() else { return };
    let part = |part: &str| read_ndjson_gz(&dir.join(format!("anvil/{name}.{part}.ndjson.gz")));
    let (feed, truth, replaced) = (part("feed"), part("truth"), part("reorgs"));
    let depth = finality_depth_needed(&feed).to_string();
    let mut live = Live::start(&["--kind", "evm", "--finality-depth", &depth, "--negative-balances", "halt"]).await;
    let (mut told, mut compared) = (0, 0);
    let mut last_at: BTreeMap<u64, &Value> = BTreeMap::new();
    for point in &truth {
        let seq = point["seq"].as_u64().unwrap();
        let upto = feed.partition_point(|line| line["seq"].as_u64().unwrap() <= seq);
        live.tell(&feed[told..upto]);
        told = upto;
        live.reach(number(point), hash(point)).await;
        let what = format!("{name}, after seq {seq}");
        let (balances, supply) = answers(point);
        let (at, ours) = standing(&live.db, "main").await;
        assert_eq!(at, hash(point), "{what}");
        let ours = without_zeros(ours);
        assert_same(&ours, &balances, &what);
        let supply: BTreeMap<_, _> = supply.into_iter().filter(|(_, amount)| amount != "0").collect();
        assert_eq!(supplies(&live.db).await, supply, "{what}");
        compared += balances.len() + point["tokens"].as_object().unwrap().len();
        last_at.insert(number(point), point);
    }
    assert_eq!(told, feed.len(), "the truth ends with the feed");
    assert_eq!(compared, expected_answers, "answers of the contracts that were compared");
    assert_untroubled(&live.db).await;

    // The height each block was last seen at, if it is still there: the past, from the journal.
    let mut past = 0;
    for (height, point) in last_at {
        let sql = "select from blocks where height = $1 and hash = $2";
        if live.db.query_opt(sql, &[&height.cast_signed(), &hash(point)]).await.unwrap().is_some() {
            let ours = without_zeros(standing_at(&live.db, "main", height).await);
            assert_same(&ours, &answers(point).0, &format!("{name}, balances_at {height}"));
            past += 1;
        }
    }

    // What was recorded as replaced is what was undone, one by one; and no block that was told is lost.
    let sql = "select ancestor, depth from reorgs order by id";
    let ours: Vec<(i64, i64)> =
        live.db.query(sql, &[]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect();
    let theirs: Vec<(i64, i64)> =
        replaced.iter().map(|r| (r["fork_number"].as_i64().unwrap(), r["depth"].as_i64().unwrap())).collect();
    assert_eq!(ours, theirs, "{name}: reorgs and rollbacks");
    let sql = "select hash from blocks union select hash from orphaned_blocks";
    let kept: BTreeSet<String> = live.db.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    let all: BTreeSet<String> = feed.iter().map(|line| hash(line).to_owned()).collect();
    assert_eq!(kept, all, "{name}: blocks kept as evidence");
    println!(
        "{name}: {} lines, {} truth points, {compared} answers of the contracts, {past} heights of the past, {} reorgs \
         and rollbacks, {} blocks kept; finality depth {depth}",
        feed.len(),
        truth.len(),
        ours.len(),
        kept.len()
    );
    live.end().await;
}

#[tokio::test]
async fn every_answer_of_the_contracts_is_ours_through_reorgs_of_depth_1_to_10() {
    recorded_run("erc20-depth-1-10", 22_748).await;
}

#[tokio::test]
async fn every_answer_of_the_contracts_is_ours_through_reorgs_of_depth_64() {
    recorded_run("erc20-depth-64", 7_382).await;
}
