//! What the sources of these tests read: recorded feeds, published cases, and files written from them.

use std::io::Read;
use std::path::{Path, PathBuf};

use ebbtide::chain::Block;
use flate2::read::MultiGzDecoder;
use serde_json::{Value, json};

/// The folder of recorded data, or none with a word that the test was skipped (an error in CI).
pub fn data(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("EBBTIDE_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"), PathBuf::from);
    let path = folder.join(name);
    if path.exists() {
        return Some(path);
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{} is missing", path.display());
    eprintln!("skipped: {} is missing", path.display());
    None
}

/// The JSON lines of a gzip file.
pub fn lines(path: &Path) -> Vec<Value> {
    let mut text = String::new();
    MultiGzDecoder::new(std::fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A block as a line of a file.
pub fn line(block: &Block) -> String {
    let token_events: Vec<Value> = block
        .token_events
        .iter()
        .map(|e| {
            json!({
                "tx_index": e.tx_index, "event_index": e.event_index, "token": &*e.token,
                "from_address": e.from.as_deref(), "to_address": e.to.as_deref(), "amount": e.amount.to_string(),
            })
        })
        .collect();
    let transactions: Vec<Value> = block
        .transactions
        .iter()
        .map(|t| json!({"tx_index": t.tx_index, "hash": &*t.hash, "success": t.success}))
        .collect();
    json!({
        "event": "block", "height": block.link.height.get(), "hash": block.link.hash.as_str(),
        "parent_hash": block.link.parent_hash.as_str(), "time": block.time.map(|t| t.to_string()),
        "transactions": transactions, "token_events": token_events, "events": [],
    })
    .to_string()
}

/// One of the published cases as a file's lines, and the heads that a follower must have seen, in order.
pub fn case_as_feed(case: &Value) -> (String, Vec<String>) {
    let zero = "0x0000000000000000000000000000000000000000";
    let genesis = &case["genesis"];
    let mut lines = vec![
        json!({"event": "block", "number": genesis["number"], "hash": genesis["hash"], "parent_hash": "none"})
            .to_string(),
    ];
    for (address, amount) in case["pre"].as_object().unwrap() {
        let opening = json!({"event": "opening_balance", "token": "wei", "address": address, "amount": amount});
        lines.insert(0, opening.to_string());
    }
    let blocks = case["blocks"].as_array().unwrap();
    let by_hash = |hash: &Value| blocks.iter().find(|block| block["hash"] == *hash);
    let mut told = vec![genesis["hash"].clone()];
    let mut head = genesis["hash"].clone();
    let mut heads = Vec::new();
    for block in blocks {
        if block["head_after"] == head {
            continue;
        }
        head = block["head_after"].clone();
        heads.push(head.as_str().unwrap().to_owned());
        // A follower is told the blocks it does not know yet; those it knows it need not be told again.
        let mut new = Vec::new();
        let mut at = head.clone();
        while !told.contains(&at) {
            let block = by_hash(&at).unwrap();
            told.push(at.clone());
            new.push(block);
            at = block["parent_hash"].clone();
        }
        if new.is_empty() {
            lines.push(json!({"event": "head", "number": by_hash(&head).unwrap()["number"], "hash": head}).to_string());
        }
        for block in new.into_iter().rev() {
            let side = |address: &Value| if address == zero { Value::Null } else { address.clone() };
            let moves = block["moves"].as_array().unwrap().iter().enumerate();
            let token_events: Vec<Value> = moves
                .map(|(place, m)| {
                    json!({
                        "tx_index": 0, "event_index": place, "token": "wei", "from_address": side(&m[0]),
                        "to_address": side(&m[1]), "amount": m[2],
                    })
                })
                .collect();
            let line = json!({
                "number": block["number"], "hash": block["hash"], "parent_hash": block["parent_hash"],
                "timestamp": block["timestamp"], "branch": block["branch"], "token_events": token_events,
            });
            lines.push(line.to_string());
        }
    }
    (lines.join("\n"), heads)
}
