//! The tests that Ethereum clients are held to: every case live in one program, step by step, each on a chain of its
//! own, A to B to A to B and several branches at once among them.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::time::Duration;

use serde_json::{Value, json};

use crate::live::{Amounts, assert_same, assert_untroubled, opening, reach, standing, without_zeros};
use crate::support::{Ebbtide, Pg, data_dir, read_ndjson_gz};

const ZERO: &str = "0x0000000000000000000000000000000000000000";

/// Each chain takes three connections; so many chains are followed at once.
const AT_ONCE: usize = 29;

/// What a follower of one case is told whenever the head changes, and what must hold then.
struct Step {
    lines: Vec<Value>,
    height: u64,
    hash: String,
    balances: Amounts,
}

struct Case {
    name: String,
    steps: Vec<Step>,
    /// Depths of its reorgs, in order.
    depths: Vec<i64>,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// Signed sums; the amounts of the cases are far below 2^127.
type Sums = BTreeMap<String, i128>;

fn book(sums: &mut Sums, block: &Value, sign: i128) {
    for movement in block["moves"].as_array().unwrap() {
        let amount: i128 = movement[2].as_str().unwrap().parse().unwrap();
        *sums.entry(text(&movement[0])).or_default() -= sign * amount;
        *sums.entry(text(&movement[1])).or_default() += sign * amount;
    }
}

fn amounts(sums: &Sums) -> Amounts {
    let held = sums.iter().filter(|(address, amount)| *address != ZERO && **amount != 0);
    held.map(|(address, amount)| (("eth".to_owned(), address.clone()), amount.to_string())).collect()
}

fn line(block: &Value) -> Value {
    let side = |address: &Value| if address == ZERO { Value::Null } else { address.clone() };
    let movements = block["moves"].as_array().unwrap().iter().enumerate();
    let token_events: Vec<Value> = movements
        .map(|(place, m)| {
            json!({"tx_index": 0, "event_index": place, "token": "eth", "from_address": side(&m[0]),
                   "to_address": side(&m[1]), "amount": m[2]})
        })
        .collect();
    json!({"event": "block", "number": block["number"], "hash": block["hash"], "parent_hash": block["parent_hash"],
           "timestamp": block["timestamp"], "token_events": token_events})
}

impl Case {
    /// Blocks that do not become part of the head's branch are not told; when the head flips to a branch that was
    /// told before, its blocks are told again.
    fn read(case: &Value) -> Case {
        let mut sums: Sums = BTreeMap::new();
        let mut lines = Vec::new();
        for (address, amount) in case["pre"].as_object().unwrap() {
            lines.push(opening("eth", address, amount.as_str().unwrap()));
            sums.insert(address.clone(), amount.as_str().unwrap().parse().unwrap());
        }
        let genesis = text(&case["genesis"]["hash"]);
        lines.push(json!({"event": "block", "number": case["genesis"]["number"], "hash": genesis, "parent_hash": ""}));
        let first = Step { lines, height: 0, hash: genesis.clone(), balances: amounts(&sums) };
        let (mut steps, mut depths) = (vec![first], Vec::new());
        let mut known: HashMap<String, &Value> = HashMap::new();
        let mut branch: Vec<&Value> = Vec::new();
        for block in case["blocks"].as_array().unwrap() {
            known.insert(text(&block["hash"]), block);
            let head = text(&block["head_after"]);
            if head == branch.last().map_or(genesis.clone(), |last| text(&last["hash"])) {
                continue;
            }
            let mut new: Vec<&Value> = Vec::new();
            let mut at = head.clone();
            while let Some(block) = known.get(&at).filter(|_| !branch.iter().any(|b| b["hash"] == at.as_str())) {
                new.push(block);
                at = text(&block["parent_hash"]);
            }
            let mut depth = 0;
            while branch.last().is_some_and(|last| last["hash"] != at.as_str()) {
                book(&mut sums, branch.pop().unwrap(), -1);
                depth += 1;
            }
            if depth > 0 {
                depths.push(depth);
            }
            new.reverse();
            for block in &new {
                book(&mut sums, block, 1);
            }
            branch.extend(&new);
            let height = branch.last().unwrap()["number"].as_u64().unwrap();
            steps.push(Step {
                lines: new.into_iter().map(line).collect(),
                height,
                hash: head,
                balances: amounts(&sums),
            });
        }
        let last = steps.last().unwrap();
        // What was folded here is what was published.
        assert_eq!(last.hash, text(&case["head"]));
        let post = case["post"].as_object().unwrap().iter();
        let post = post.map(|(address, amount)| (("eth".to_owned(), address.clone()), text(amount))).collect();
        assert_same(&last.balances, &without_zeros(post), &text(&case["case"]));
        Case { name: text(&case["case"]), steps, depths }
    }
}

/// A named pipe that stays open for writing until it is dropped.
fn pipe(path: &std::path::Path) -> File {
    let made = std::process::Command::new("mkfifo").arg(path).status().unwrap();
    assert!(made.success());
    // Opened for both, or this would wait for the reader.
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

/// Follows these cases in one program and one database; returns how many reorgs were made and states compared.
async fn follow(cases: &[Case]) -> (usize, usize) {
    let pg = Pg::new().await;
    let db = pg.client().await;
    let dir = tempfile::tempdir().unwrap();
    let mut settings = String::new();
    let mut pipes = Vec::new();
    for (number, _) in cases.iter().enumerate() {
        let path = dir.path().join(format!("case{number}.ndjson"));
        pipes.push(pipe(&path));
        settings.push_str(&format!(
            "[chains.case{number}]\nsource = \"file\"\npath = {:?}\nkind = \"other\"\n",
            path.to_str().unwrap()
        ));
    }
    let config = dir.path().join("ebbtide.toml");
    std::fs::write(&config, settings).unwrap();
    let addresses = ["--listen", "127.0.0.1:0", "--operator-listen", "127.0.0.1:0"];
    let args = ["run", "--config", config.to_str().unwrap(), "--database-url", &pg.url, "--negative-balances", "halt"];
    let mut ebbtide = Ebbtide::spawn(&[&args[..], &addresses].concat(), &[]);
    let longest = cases.iter().map(|case| case.steps.len()).max().unwrap();
    let mut compared = 0;
    for at in 0..longest {
        let turn = || cases.iter().enumerate().filter_map(|(number, case)| Some((number, case, case.steps.get(at)?)));
        for (number, _, step) in turn() {
            let lines: String = step.lines.iter().map(|line| format!("{line}\n")).collect();
            pipes[number].write_all(lines.as_bytes()).unwrap();
        }
        for (number, case, step) in turn() {
            let chain = format!("case{number}");
            reach(&db, &chain, step.height, &step.hash).await;
            let (hash, ours) = standing(&db, &chain).await;
            assert_eq!(hash, step.hash);
            let ours = without_zeros(ours);
            assert_same(&ours, &step.balances, &format!("{} ({chain}), head {at}", case.name));
            compared += 1;
        }
    }
    let mut reorgs = 0;
    for (number, case) in cases.iter().enumerate() {
        let sql = "select r.depth from reorgs r join chains c using (chain_id) where c.name = $1 order by r.id";
        let rows = db.query(sql, &[&format!("case{number}")]).await.unwrap();
        let depths: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
        assert_eq!(depths, case.depths, "{} (case{number}): depths of its reorgs", case.name);
        reorgs += depths.len();
    }
    assert_untroubled(&db).await;
    ebbtide.terminate();
    let status = ebbtide.wait(Duration::from_secs(15)).await;
    assert!(status.success(), "{status}:\n{}", ebbtide.stderr().join("\n"));
    (reorgs, compared)
}

#[tokio::test]
async fn all_official_reorg_cases_are_right_after_every_change_of_their_heads() {
    let Some(dir) = data_dir() else { return };
    let cases: Vec<Case> =
        read_ndjson_gz(&dir.join("ethereum-tests/reorg-cases.ndjson.gz")).iter().map(Case::read).collect();
    assert_eq!(cases.len(), 116);
    let (mut reorgs, mut compared) = (0, 0);
    for some in cases.chunks(AT_ONCE) {
        let (more_reorgs, more_compared) = follow(some).await;
        reorgs += more_reorgs;
        compared += more_compared;
    }
    let again = cases.iter().filter(|case| {
        let told = case.steps.iter().flat_map(|step| &step.lines).filter(|line| line["event"] == "block");
        let mut hashes: Vec<&str> = told.map(|line| line["hash"].as_str().unwrap()).collect();
        hashes.sort_unstable();
        hashes.windows(2).any(|pair| pair[0] == pair[1])
    });
    println!(
        "116 cases: {compared} heads with all balances right, {reorgs} reorgs made, {} cases with blocks that came back",
        again.count()
    );
    assert_eq!(reorgs, 126);
}
