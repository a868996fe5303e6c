//! Single blocks and transfers of mainnet and other chains, held against answers that others worked out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use alloy_primitives::{U256, U512};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::live::{Amounts, assert_nothing_rejected, assert_same, opening, reach, standing, without_zeros};
use crate::support::{Ebbtide, Pg, data_dir, read_ndjson_gz};

const ZERO: &str = "0x0000000000000000000000000000000000000000";
const WETH: &str = "0xc02aaa39b223fe8d0a0e5c4f27ead9083c756cc2";
const TRANSFER: &str = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef";
const DEPOSIT: &str = "0xe1fffcc4923d04b559f4d29a8bfc6cda04eb5b0d3c460751c2402c5c5cc9109c";
const WITHDRAWAL: &str = "0x7fcf532c15f0a6db0bd6d0e038bea71d30d808c7d98cb3bf7268a95bf5081b65";

/// Signed sums without an end, as what came in and what went out.
#[derive(Default, Clone)]
struct Books(BTreeMap<(String, String), (U512, U512)>);

impl Books {
    fn add(&mut self, token: &str, holder: &str, amount: U512) {
        self.0.entry((token.to_owned(), holder.to_owned())).or_default().0 += amount;
    }

    fn take(&mut self, token: &str, holder: &str, amount: U512) {
        self.0.entry((token.to_owned(), holder.to_owned())).or_default().1 += amount;
    }

    fn movement(&mut self, token: &str, from: &str, to: &str, amount: U512) {
        if from != ZERO {
            self.take(token, from, amount);
        }
        if to != ZERO {
            self.add(token, to, amount);
        }
    }

    /// Those that are not 0, in decimal.
    fn amounts(&self) -> Amounts {
        let signed = |(came, went): &(U512, U512)| {
            if came >= went { (came - went).to_string() } else { format!("-{}", went - came) }
        };
        without_zeros(self.0.iter().map(|(key, sums)| (key.clone(), signed(sums))).collect())
    }
}

fn number(line: &Value) -> u64 {
    line["number"].as_u64().unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn decimal(text: &str) -> U512 {
    U512::from_str_radix(text, 10).unwrap()
}

fn topics(log: &Value) -> Vec<&str> {
    log["topics"].as_array().unwrap().iter().map(text).collect()
}

fn holder(topic: &str) -> String {
    format!("0x{}", &topic[26..])
}

/// The rule in plain words: three topics and one word make a Transfer; Deposit and Withdrawal count for WETH alone.
fn movements(log: &Value) -> Option<(String, String, U512)> {
    let topics = topics(log);
    let amount = || U512::from(text(&log["data"]).parse::<U256>().unwrap());
    match topics.first().copied() {
        Some(TRANSFER) if topics.len() == 3 && text(&log["data"]).len() == 66 => {
            Some((holder(topics[1]), holder(topics[2]), amount()))
        }
        Some(DEPOSIT) if log["address"] == WETH => Some((ZERO.to_owned(), holder(topics[1]), amount())),
        Some(WITHDRAWAL) if log["address"] == WETH => Some((holder(topics[1]), ZERO.to_owned(), amount())),
        _ => None,
    }
}

/// A script for a chain of its own.
struct Script {
    name: String,
    lines: Vec<Value>,
}

impl Script {
    fn last(&self) -> (u64, &str) {
        let last = self.lines.last().unwrap();
        (number(last), text(&last["hash"]))
    }
}

/// Reads these files, each into a chain of its own, and ends; returns where the answers are.
async fn take_in(kind: &str, scripts: &[Script]) -> (Pg, Client) {
    let pg = Pg::new().await;
    let db = pg.client().await;
    let dir = tempfile::tempdir().unwrap();
    let mut settings = String::new();
    for script in scripts {
        let path = dir.path().join(format!("{}.ndjson", script.name));
        let lines: String = script.lines.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(&path, lines).unwrap();
        let path = path.to_str().unwrap();
        settings
            .push_str(&format!("[chains.{}]\nsource = \"file\"\nkind = \"{kind}\"\npath = {path:?}\n", script.name));
    }
    let config = dir.path().join("ebbtide.toml");
    std::fs::write(&config, settings).unwrap();
    let args = ["run", "--once", "--config", config.to_str().unwrap(), "--database-url", &pg.url];
    let mut ebbtide = Ebbtide::spawn(&args, &[]);
    let status = ebbtide.wait(Duration::from_secs(120)).await;
    assert!(status.success(), "{status}:\n{}", ebbtide.stderr().join("\n"));
    for script in scripts {
        let (height, hash) = script.last();
        reach(&db, &script.name, height, hash).await;
    }
    assert_nothing_rejected(&db).await;
    (pg, db)
}

/// The blocks of a file as runs in which each names its predecessor.
fn linked_runs(name: &str, mut blocks: Vec<Value>) -> Vec<Script> {
    blocks.sort_by_key(number);
    let mut runs: Vec<Script> = Vec::new();
    for block in blocks {
        match runs.last_mut() {
            Some(run) if run.last() == (number(&block).wrapping_sub(1), text(&block["parent_hash"])) => {
                run.lines.push(block);
            }
            _ => runs.push(Script { name: format!("{name}-{}", number(&block)), lines: vec![block] }),
        }
    }
    runs
}

#[tokio::test]
async fn every_real_block_of_five_chains_moves_what_its_logs_say() {
    let Some(dir) = data_dir() else { return };
    let files =
        ["ethereum/blocks", "ethereum/usdc-10000001-10000005", "arbitrum/blocks", "polygon/blocks", "cronos/blocks"];
    let mut scripts = Vec::new();
    for file in files {
        let name = file.replace("/blocks", "").replace("ethereum/", "");
        scripts.extend(linked_runs(&name, read_ndjson_gz(&dir.join(format!("{file}.ndjson.gz")))));
    }
    let (mut blocks, mut logs, mut moved, mut balances) = (0, 0, 0, 0);
    let (_pg, db) = take_in("evm", &scripts).await;
    for script in &scripts {
        let mut books = Books::default();
        let mut places = BTreeSet::new();
        for block in &script.lines {
            blocks += 1;
            for log in block["logs"].as_array().unwrap() {
                logs += 1;
                if let Some((from, to, amount)) = movements(log) {
                    books.movement(text(&log["address"]), &from, &to, amount);
                    if from != ZERO || to != ZERO {
                        places.insert((number(block).cast_signed(), log["log_index"].as_i64().unwrap()));
                    }
                }
            }
        }
        let (_, ours) = standing(&db, &script.name).await;
        let theirs = books.amounts();
        assert_same(&without_zeros(ours), &theirs, &script.name);
        let sql = "select e.height, e.event_index from token_events e join chains c using (chain_id) where c.name = $1";
        let rows = db.query(sql, &[&script.name]).await.unwrap();
        let ours: BTreeSet<(i64, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        assert_eq!(ours, places, "{}: where the movements are", script.name);
        moved += places.len();
        balances += theirs.len();
    }
    println!("{} runs, {blocks} blocks, {logs} logs: {moved} movements, {balances} balances", scripts.len());
    assert!(blocks >= 32 && moved > 3_000);
}

fn ethereum_block(dir: &Path, wanted: u64) -> Value {
    let blocks = read_ndjson_gz(&dir.join("ethereum/blocks.ndjson.gz"));
    blocks.into_iter().find(|block| number(block) == wanted).unwrap()
}

/// Rows of a CSV file without quotes, by column.
fn table(path: &Path) -> Vec<BTreeMap<String, String>> {
    let file = std::fs::read(path).unwrap();
    let mut text = String::new();
    if path.extension().is_some_and(|extension| extension == "gz") {
        std::io::Read::read_to_string(&mut flate2::read::MultiGzDecoder::new(&file[..]), &mut text).unwrap();
    } else {
        text = String::from_utf8(file).unwrap();
    }
    let mut lines = text.lines().map(|line| line.split(',').map(str::to_owned));
    let names: Vec<String> = lines.next().unwrap().collect();
    lines.map(|row| names.iter().cloned().zip(row).collect()).collect()
}

#[tokio::test]
async fn block_12505500_leaves_what_contract_storage_holds_after_it() {
    let Some(dir) = data_dir() else { return };
    let rows = table(&dir.join("ethereum/12505500.balances.csv"));
    let equal: Vec<_> = rows.iter().filter(|row| row["equal"] == "1").collect();
    assert_eq!(equal.len(), 228);
    let mut lines: Vec<Value> =
        equal.iter().map(|row| opening(&row["token"], &row["holder"], &row["balance_before"])).collect();
    lines.push(ethereum_block(&dir, 12_505_500));
    let (_pg, db) = take_in("evm", &[Script { name: "main".into(), lines }]).await;
    let (_, ours) = standing(&db, "main").await;
    for row in &equal {
        let key = (row["token"].clone(), row["holder"].clone());
        assert_eq!(ours.get(&key), Some(&row["balance_after"]), "{key:?}");
    }
    println!("228 balances of block 12505500 are as in contract storage");
}

#[tokio::test]
async fn blocks_17173049_and_17173050_hold_the_transfers_another_extractor_found() {
    let Some(dir) = data_dir() else { return };
    let blocks: Vec<Value> = [17_173_049, 17_173_050].map(|height| ethereum_block(&dir, height)).into();
    let theirs = read_ndjson_gz(&dir.join("ethereum/17173049-17173050.token_transfers.ndjson.gz"));
    assert_eq!(theirs.len(), 291);
    // It lists movements of single ERC-721 tokens too, with the token's number as the amount; those have four topics.
    let words: BTreeMap<(u64, u64), usize> = blocks
        .iter()
        .flat_map(|block| block["logs"].as_array().unwrap().iter().map(move |log| (number(block), log)))
        .map(|(height, log)| ((height, log["log_index"].as_u64().unwrap()), topics(log).len()))
        .collect();
    let place = |t: &Value| (t["block_number"].as_u64().unwrap(), t["log_index"].as_u64().unwrap());
    let side = |address: &Value| Some(text(address).to_owned()).filter(|address| address != ZERO);
    let expected: BTreeSet<_> = theirs
        .iter()
        .filter(|t| words[&place(t)] == 3)
        .map(|t| {
            let (height, index) = place(t);
            let amount = t["value"].to_string().trim_matches('"').to_owned();
            let token = text(&t["token_address"]).to_owned();
            (height, index, token, side(&t["from_address"]), side(&t["to_address"]), amount)
        })
        .collect();
    let singles = theirs.len() - expected.len();
    let (_pg, db) = take_in("evm", &linked_runs("main", blocks)).await;
    // Deposits and withdrawals of WETH are movements of ours that are no Transfer.
    let sql = "select height, event_index, token, from_address, to_address, amount::text from token_events
               where token <> $1 or from_address is not null and to_address is not null";
    let rows = db.query(sql, &[&WETH]).await.unwrap();
    let ours: BTreeSet<_> = rows
        .iter()
        .map(|row| {
            let place = |column| row.get::<_, i64>(column).cast_unsigned();
            (place(0), place(1), row.get(2), row.get(3), row.get(4), row.get(5))
        })
        .collect();
    assert_eq!(ours, expected);
    println!("{} transfers as another extractor has them ({singles} of single tokens left aside)", ours.len());
    assert!(ours.len() > 250);
}

/// Blocks with real hashes (or none at all), put into a row: the data names no parents.
fn block_in_a_row(lines: &[Value], hash: &str, tx_hash: &str, token_events: Vec<Value>) -> Value {
    let last = lines.iter().rev().find(|line| line["event"] == "block");
    let parent = last.map_or(Value::String(format!("0x{}", "00".repeat(32))), |last| last["hash"].clone());
    json!({
        "event": "block", "number": last.map_or(1, |last| number(last) + 1), "hash": hash, "parent_hash": parent,
        "transactions": [{"tx_index": 0, "hash": tx_hash}], "token_events": token_events,
    })
}

fn event(index: usize, token: &str, from: &str, to: &str, amount: &str) -> Value {
    let side = |address: &str| if address == ZERO { Value::Null } else { address.into() };
    json!({"tx_index": 0, "event_index": index, "token": token, "from_address": side(from), "to_address": side(to),
           "amount": amount})
}

#[tokio::test]
async fn statements_of_accounts_come_out_as_an_archive_node_answered() {
    let Some(dir) = data_dir() else { return };
    let rows = table(&dir.join("ethereum/statements.csv"));
    assert_eq!(rows.len(), 67);
    // Rows of one account that follow on one another share a chain.
    let mut scripts: Vec<Script> = Vec::new();
    let mut answers: Vec<Vec<(String, String, String)>> = Vec::new();
    let mut before: Option<(&String, &String, &String)> = None;
    for (at, row) in rows.iter().enumerate() {
        let (account, token) = (&row["account"], &row["token"]);
        if before != Some((account, token, &row["balance_before"])) {
            let lines = vec![opening(token, account, &row["balance_before"])];
            scripts.push(Script { name: format!("statement{at}"), lines });
            answers.push(Vec::new());
        }
        before = Some((account, token, &row["balance_after"]));
        let mut events = Vec::new();
        // The zero address is short there.
        let nobody = |address: &String| *address == *account || address == "0x0";
        let other = |role: &str| if nobody(&row[role]) { ZERO.to_owned() } else { row[role].clone() };
        if row["in"] != "0" {
            events.push(event(0, token, &other("sender"), account, &row["in"]));
        }
        if row["out"] != "0" {
            events.push(event(1, token, account, &other("recipient"), &row["out"]));
        }
        let script = scripts.last_mut().unwrap();
        let hash = format!("0x{:064x}", at + 1);
        let block = block_in_a_row(&script.lines, &hash, &row["tx_hash"], events);
        script.lines.push(block);
        answers.last_mut().unwrap().push((account.clone(), token.clone(), row["balance_after"].clone()));
    }
    let (_pg, db) = take_in("evm", &scripts).await;
    let mut compared = 0;
    for (script, answers) in scripts.iter().zip(&answers) {
        for (place, (account, token, after)) in answers.iter().enumerate() {
            let sql = "select amount::text from balances_at($1, $2) where token = $3 and address = $4";
            let height = place as i64 + 1;
            let row = db.query_one(sql, &[&script.name, &height, token, account]).await.unwrap();
            assert_eq!(row.get::<_, String>(0), *after, "{}, block {height}", script.name);
            compared += 1;
        }
    }
    println!("{compared} balances of {} statements are what the node answered", scripts.len());
    assert_eq!(compared, 67);
}

#[tokio::test]
async fn reth_transfers_add_up_with_their_mints_and_burns() {
    let Some(dir) = data_dir() else { return };
    let mut rows = table(&dir.join("ethereum/reth-18600181-18606893.csv.gz"));
    // Some blocks are told in two parts.
    rows.sort_by_key(|row| row["block_number"].parse::<u64>().unwrap());
    assert_eq!(rows.len(), 520);
    let mut lines: Vec<Value> = Vec::new();
    let (mut books, mut minted, mut burnt) = (Books::default(), U512::ZERO, U512::ZERO);
    for block in rows.chunk_by(|a, b| a["block_hash"] == b["block_hash"]) {
        let mut events = Vec::new();
        for (index, row) in block.iter().enumerate() {
            let (token, from, to) = (&row["contract_address"], &row["from"], &row["to"]);
            events.push(event(index, token, from, to, &row["value"]));
            let amount = decimal(&row["value"]);
            books.movement(token, from, to, amount);
            minted += if from == ZERO { amount } else { U512::ZERO };
            burnt += if to == ZERO { amount } else { U512::ZERO };
        }
        let line = block_in_a_row(&lines, &block[0]["block_hash"], &block[0]["tx_hash"], events);
        lines.push(line);
    }
    assert_eq!(lines.len(), 243);
    let (_pg, db) = take_in("evm", &[Script { name: "main".into(), lines }]).await;
    let (_, ours) = standing(&db, "main").await;
    let ours = without_zeros(ours);
    assert_same(&ours, &books.amounts(), "rETH");
    let supply: String = db.query_one("select total_supply::text from tokens", &[]).await.unwrap().get(0);
    let expected = if minted >= burnt { (minted - burnt).to_string() } else { format!("-{}", burnt - minted) };
    assert_eq!(supply, expected);
    let negative = ours.values().filter(|amount| amount.starts_with('-')).count();
    println!(
        "520 rETH transfers in 243 blocks: {} balances, {negative} of them negative for want of history",
        ours.len()
    );
    assert!(negative > 0, "the ledger stays signed");
}
