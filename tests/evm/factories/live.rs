//! The built program on a real node: a contract makes tokens, and reorgs unmake them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use alloy_primitives::{hex, keccak256};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::node::{self, Node, hex_number, pay};
use crate::support::anvil::contract;
use crate::support::{Ebbtide, Pg, wait_until};

const ROLE: &str = "RoleGranted(bytes32 indexed role, address indexed account, address indexed sender)";
const APPROVAL: &str = "Approval(address indexed owner, address indexed spender, uint256 value)";

/// A contract that makes another one of the code it is given, says `Made(address indexed)`, and then calls it with the
/// rest. Its input: the size of the code, the code, the call.
fn factory_code() -> String {
    let topic = keccak256("Made(address)");
    let parts = [
        "60203603",         // what follows the first word: its size
        "6020600037",       // ... copied to memory
        "60003560006000f0", // create: the new contract's address
        "807f",
        &hex::encode(topic),
        "60006000a2",       // Made(address)
        "60006000",         // call: no answer is kept
        "6000356020360303", // size of the rest
        "600035",           // where it begins
        "6000855af1",       // no money, the new contract, all gas
        "00",
    ];
    let code = parts.concat();
    // Its constructor returns it.
    format!("0x60{:02x}80600b6000396000f3{code}", code.len() / 2)
}

struct Works {
    node: Node,
    factory: String,
    /// A token that no factory made.
    control: String,
    token_code: String,
    /// Contracts made so far on this branch.
    made: u8,
}

impl Works {
    async fn open() -> Option<Works> {
        let (_, token_code) = contract("ERC20PresetMinterPauser")?;
        let node = Node::start().await?;
        let control = node.deploy("Control").await;
        let transaction = json!([{"from": node.accounts[0], "data": factory_code(), "gas": "0x7a1200"}]);
        let hash = node.ask("eth_sendTransaction", transaction).await;
        node.mine().await;
        let receipt = node.ask("eth_getTransactionReceipt", json!([hash])).await;
        assert_eq!(receipt["status"], "0x1", "{receipt}");
        let factory = receipt["contractAddress"].as_str().unwrap().to_lowercase();
        Some(Works { node, factory, control, token_code, made: 0 })
    }

    fn account(&self, n: usize) -> &str {
        &self.node.accounts[n]
    }

    /// Where the factory's next contract will be: its address and how many it made decide.
    fn next_made(&mut self) -> String {
        self.made += 1;
        let text = [&[0xd6, 0x94], hex::decode(&self.factory).unwrap().as_slice(), &[self.made]].concat();
        hex::encode_prefixed(&keccak256(text)[12..])
    }

    /// Makes a token, and mints of it to an account in the same transaction.
    fn make(&self, to: usize, amount: u128) -> Value {
        let word = |n: usize| format!("{n:064x}");
        let text = |text: &str| format!("{}{:0<64}", word(text.len()), hex::encode(text));
        let code = [&self.token_code[2..], &word(64), &word(128), &text("Made"), &text("MADE")].concat();
        let mint = node::mint("", "", self.account(to), amount)["data"].as_str().unwrap()[2..].to_owned();
        let data = format!("0x{}{code}{mint}", word(code.len() / 2));
        json!({"from": self.account(0), "to": self.factory, "data": data, "gas": "0x7a1200"})
    }

    fn approve(&self, token: &str, owner: usize, spender: usize, amount: u128) -> Value {
        let spender = format!("{:0>64}", &self.account(spender)[2..]);
        let data = format!("{}{spender}{amount:064x}", &keccak256("approve(address,uint256)").to_string()[..10]);
        json!({"from": self.account(owner), "to": token, "data": data, "gas": "0x30d40"})
    }

    async fn block(&self, transactions: &[Value]) {
        self.node.send(transactions).await;
        self.node.mine().await;
    }

    /// What must be kept of the chain as the node has it now, and the tokens that were made.
    async fn expected(&self) -> (BTreeSet<(i64, i64, String, String)>, Vec<String>) {
        let topic = |signature: &str| keccak256(signature).to_string();
        let names = BTreeMap::from([
            (topic("Transfer(address,address,uint256)"), "Transfer"),
            (topic("Approval(address,address,uint256)"), "Approval"),
            (topic("RoleGranted(bytes32,address,address)"), "RoleGranted"),
        ]);
        let logs = self.node.ask("eth_getLogs", json!([{"fromBlock": "0x0", "toBlock": "latest"}])).await;
        let (mut kept, mut made) = (BTreeSet::new(), Vec::new());
        for log in logs.as_array().unwrap() {
            let address = log["address"].as_str().unwrap().to_owned();
            let first = log["topics"][0].as_str().unwrap();
            let name = if first == topic("Made(address)") && address == self.factory {
                made.push(format!("0x{}", &log["topics"][1].as_str().unwrap()[26..]));
                "Made"
            } else if let (true, Some(name)) = (made.contains(&address), names.get(first)) {
                name
            } else {
                continue;
            };
            let place = (hex_number(&log["blockNumber"]).cast_signed(), hex_number(&log["logIndex"]).cast_signed());
            kept.insert((place.0, place.1, address, name.to_owned()));
        }
        (kept, made)
    }
}

struct Follower {
    pg: Pg,
    db: Client,
    ebbtide: Ebbtide,
    config: tempfile::TempDir,
    compared: usize,
}

fn spawn(pg: &Pg, config: &tempfile::TempDir) -> Ebbtide {
    let path = config.path().join("ebbtide.toml");
    let addresses = ["--listen", "127.0.0.1:0", "--operator-listen", "127.0.0.1:0", "--negative-balances", "halt"];
    let args = ["run", "--database-url", &pg.url, "--config", path.to_str().unwrap()];
    Ebbtide::spawn(&[&args[..], &addresses].concat(), &[])
}

impl Follower {
    async fn start(works: &Works) -> Follower {
        let pg = Pg::new().await;
        let db = pg.client().await;
        let config = tempfile::tempdir().unwrap();
        let text = format!(
            "[chains.main]\nsource = \"evm\"\nurls = [{:?}]\ntokens = [\"none\"]\npoll_interval_ms = 50\n\
             [[chains.main.factories]]\naddress = {:?}\nevent = \"Made(address indexed token)\"\nparameter = \"token\"\n\
             events = [{ROLE:?}, {APPROVAL:?}]\ntokens = true\n",
            works.node.url(),
            works.factory
        );
        std::fs::write(config.path().join("ebbtide.toml"), text).unwrap();
        let ebbtide = spawn(&pg, &config);
        Follower { pg, db, ebbtide, config, compared: 0 }
    }

    /// Waits for the node's newest block, then holds events, movements and balances against the node.
    async fn compare(&mut self, works: &Works, what: &str) {
        let (height, hash) = works.node.head().await;
        wait_until(&format!("{what}: block {height} ({hash}) is applied"), async || {
            let row = self.db.query_opt("select hash, halted_reason from checkpoints", &[]).await.unwrap()?;
            assert_eq!(row.get::<_, Option<String>>(1), None, "{what}");
            (row.get::<_, Option<String>>(0).as_ref() == Some(&hash)).then_some(())
        })
        .await;
        let sql = "select height, event_index, emitter, name from events
                   union all select height, event_index, token, 'Transfer' from token_events";
        let rows = self.db.query(sql, &[]).await.unwrap();
        let ours: BTreeSet<_> = rows.iter().map(|r| (r.get(0), r.get(1), r.get(2), r.get(3))).collect();
        let (wanted, made) = works.expected().await;
        assert_eq!(ours, wanted, "{what}");
        let rows = self.db.query("select token, address, amount::text from balances where amount <> 0", &[]).await;
        let balances: BTreeMap<_, _> =
            rows.unwrap().iter().map(|r| ((r.get(0), r.get(1)), r.get::<_, String>(2))).collect();
        let (answers, _) = works.node.answers(&made, &works.node.accounts).await;
        assert_eq!(balances, answers, "{what}");
        assert_eq!(self.number("select count(*) from rejected_events").await, 0, "{what}");
        self.compared += wanted.len() + answers.len();
    }

    async fn number(&self, sql: &str) -> i64 {
        self.db.query_one(sql, &[]).await.unwrap().get(0)
    }

    async fn stop(&mut self) {
        self.ebbtide.terminate();
        let status = self.ebbtide.wait(Duration::from_secs(15)).await;
        assert!(status.success(), "{status}:\n{}", self.ebbtide.stderr().join("\n"));
    }

    /// What `verify --node` says: its exit code, and its words on both outputs.
    fn verify(&self, node: &str, more: &[&str]) -> (Option<i32>, String) {
        let args = ["verify", "--database-url", &self.pg.url, "--node", node];
        let output = Ebbtide::output(&[&args[..], more].concat(), &[]);
        let words = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        (output.status.code(), words.concat())
    }
}

#[tokio::test]
async fn tokens_that_a_live_factory_makes_are_followed_through_reorgs_and_restarts() {
    let Some(mut works) = Works::open().await else { return };
    let first = works.next_made();
    works.block(&[works.make(1, 1_000)]).await;
    works.block(&[pay(works.account(1), &first, works.account(2), 300), works.approve(&first, 1, 3, 7)]).await;
    let mut follower = Follower::start(&works).await;
    follower.compare(&works, "what was there before").await;
    // The constructor's words come before the creating event, and a token that nobody named is none of ours.
    let roles = format!("select count(*) from events where emitter = '{first}' and name = 'RoleGranted'");
    assert_eq!(follower.number(&roles).await, 0);
    let minter = works.node.accounts[0].clone();
    works.block(&[node::mint(&minter, &works.control, works.account(4), 5)]).await;

    // Made, minted and moved in one block.
    let second = works.next_made();
    works.block(&[works.make(2, 500), pay(works.account(2), &second, works.account(5), 50)]).await;
    follower.compare(&works, "all in one block").await;
    let moved = format!("select count(*) from token_events where token = '{second}'");
    assert_eq!(follower.number(&moved).await, 2);

    // Blocks with the second token and a third one in them, all replaced.
    let third = works.next_made();
    works.block(&[works.make(6, 70)]).await;
    for n in 0..16u128 {
        let all = [
            pay(works.account(2), &second, works.account(5), 1 + n),
            pay(works.account(6), &third, works.account(7), 2),
            works.approve(&third, 6, 1, n),
            pay(works.account(1), &first, works.account(2), 3),
        ];
        works.block(&all).await;
    }
    follower.compare(&works, "before the reorg").await;
    assert!(follower.number(&format!("select count(*) from events where emitter = '{third}'")).await >= 16);
    works.node.ask("anvil_reorg", json!([19, [[pay(works.account(1), &first, works.account(7), 9), 3]]])).await;
    works.made = 1;
    follower.compare(&works, "after the reorg").await;
    for gone in [&second, &third] {
        for (table, column) in [("events", "emitter"), ("token_events", "token"), ("balances", "token")] {
            let left = follower.number(&format!("select count(*) from {table} where {column} = '{gone}'")).await;
            assert_eq!(left, 0, "{gone} in {table}");
        }
    }
    assert_eq!(follower.number("select count(*) from events where name = 'Made'").await, 1);

    // The same address again, made on the new branch, and followed from there on; the program starts again in between.
    follower.stop().await;
    let again = works.next_made();
    assert_eq!(again, second);
    works.block(&[works.make(3, 44)]).await;
    follower.ebbtide = spawn(&follower.pg, &follower.config);
    follower.compare(&works, "made while nobody looked").await;
    follower.stop().await;
    works.block(&[pay(works.account(3), &again, works.account(4), 4), works.approve(&first, 1, 2, 1)]).await;
    works.block(&[pay(works.account(1), &first, works.account(3), 1)]).await;
    follower.ebbtide = spawn(&follower.pg, &follower.config);
    follower.compare(&works, "found again in what is stored").await;
    works.node.ask("anvil_reorg", json!([2, []])).await;
    follower.compare(&works, "a reorg after the restart").await;
    let third = works.next_made();
    let shares: Vec<Value> = (0..7).map(|n| pay(works.account(5), &third, works.account(n), 10)).collect();
    works.block(&[works.make(5, 900)]).await;
    works.block(&shares).await;
    follower.compare(&works, "a third one at last").await;
    println!("{} events, movements and balances held against a live node", follower.compared);

    balances_are_asked_of_the_node(&works, &mut follower).await;
}

/// `verify --node`: right balances pass, a tampered one is found and named, and what cannot be compared is said.
async fn balances_are_asked_of_the_node(works: &Works, follower: &mut Follower) {
    follower.stop().await;
    let url = works.node.url();
    let count = follower.number("select count(*) from balances").await;
    let (code, words) = follower.verify(&url, &[]);
    assert_eq!(code, Some(0), "{words}");
    assert!(words.contains(&format!("Asked the node for {count} balances at block ")), "{words}");
    assert!(words.trim_end().ends_with(": no difference."), "{words}");
    print!("{words}");
    let (code, words) = follower.verify(&url, &["--sample", "2", "--chain", "main"]);
    assert!(code == Some(0) && words.contains("Asked the node for 2 balances"), "{words}");

    // One unit too many: the recomputation and the node both see it, and the node's number is the right one.
    let sql = "update balances set amount = amount + 1 where (token, address) =
                   (select token, address from balances where amount > 1 order by token, address limit 1)
               returning token, address, amount::text";
    follower.db.batch_execute("set ebbtide.write_tracked_tables = on").await.unwrap();
    let row = follower.db.query_one(sql, &[]).await.unwrap();
    let (token, address, ours): (String, String, String) = (row.get(0), row.get(1), row.get(2));
    let (code, words) = follower.verify(&url, &[]);
    assert_eq!(code, Some(1), "{words}");
    let truth: u128 = ours.parse::<u128>().unwrap() - 1;
    let (height, _) = works.node.head().await;
    let line = format!("main: balance {address} in {token} at {height}: ours {ours}; the node {truth}\n");
    assert!(words.contains(&line), "{line}{words}");
    assert!(words.contains(": 1 difference.") && words.contains("rebases"), "{words}");
    let restore = "update balances set amount = amount - 1 where token = $1 and address = $2";
    follower.db.execute(restore, &[&token, &address]).await.unwrap();
    assert_eq!(follower.verify(&url, &[]).0, Some(0));

    // An event that never was: recomputing from the events finds nothing, the node does.
    let minted = "update token_events set amount = amount + 1 where token = $1 and from_address is null";
    assert_eq!(follower.db.execute(minted, &[&token]).await.unwrap(), 1);
    let process = ["process", "--once", "--database-url", &follower.pg.url];
    Ebbtide::succeed(&process, &[]);
    let (code, words) = follower.verify(&url, &[]);
    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains("changes): no difference.") && words.contains("; the node "), "{words}");

    // A contract that is none gives no number; that is no difference.
    let sql = "update token_events set token = '0x00000000000000000000000000000000000000ff' where token = $1";
    follower.db.execute(sql, &[&token]).await.unwrap();
    Ebbtide::succeed(&process, &[]);
    let (code, words) = follower.verify(&url, &[]);
    assert!(code == Some(0) && words.contains("gave no number"), "{code:?} {words}");

    for (node, more, part) in [
        ("http://127.0.0.1:1", &[][..], "--node"),
        ("ftp://here", &[], "--node"),
        (&url, &["--chain", "other"], "there is no chain named other"),
    ] {
        let (code, words) = follower.verify(node, more);
        assert!(code == Some(1) && words.contains(part), "{node}: {code:?} {words}");
    }
    assert_eq!(follower.verify(&url, &["--sample", "0"]).0, Some(2), "none is no sample");
    // The node's chain moved on without us: its state there is of another block.
    works.node.ask("anvil_reorg", json!([2, []])).await;
    let (code, words) = follower.verify(&url, &[]);
    assert!(code == Some(1) && words.contains("has block 0x"), "{words}");
    follower.db.execute("update chains set network_id = '7'", &[]).await.unwrap();
    let (code, words) = follower.verify(&url, &[]);
    assert!(code == Some(1) && words.contains("it is network 31337, but chain main follows network 7"), "{words}");
}

#[tokio::test]
async fn a_bad_factory_is_one_clear_message() {
    let pg = Pg::new().await;
    let start = |factory: &str| {
        let config = tempfile::tempdir().unwrap();
        let path = config.path().join("ebbtide.toml");
        let text =
            format!("[chains.a]\nsource = \"evm\"\nurls = [\"http://127.0.0.1:1\"]\n[[chains.a.factories]]\n{factory}");
        std::fs::write(&path, text).unwrap();
        let output = Ebbtide::output(&["sync", "--database-url", &pg.url, "--config", path.to_str().unwrap()], &[]);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let good = "event = \"Made(address a)\"\nparameter = \"a\"\n";
    for (factory, words) in [
        ("event = \"Made(adress a)\"\nparameter = \"a\"\ntokens = true\n".to_owned(), ["event", "Made(adress a)"]),
        ("event = \"Made(address a)\"\nparameter = \"b\"\ntokens = true\n".to_owned(), ["parameter", "\"b\""]),
        ("event = \"Made(uint8 a)\"\nparameter = \"a\"\ntokens = true\n".to_owned(), ["\"a\"", "uint8"]),
        (good.to_owned(), ["nothing is kept", "tokens = true"]),
        (format!("{good}token = true\n"), ["token", "unknown field"]),
    ] {
        let (code, stderr) = start(&factory);
        assert!(matches!(code, Some(1 | 2)), "{code:?} {stderr}");
        assert!(stderr.contains("factories") || stderr.contains("unknown field"), "{stderr}");
        assert!(words.iter().all(|word| stderr.contains(word)), "{words:?}: {stderr}");
    }
}
