//! The built program on a real starknet-devnet: movements of its fee tokens, and blocks that it aborts.
//! `make test-starknet-devnet` installs the node and runs this.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ebbtide::chain::felt::Felt;
use serde_json::{Value, json};

use crate::support::http::Rpc;
use crate::support::{Ebbtide, Pg, free_addr, free_port, wait_until};

const ETH: &str = "0x49d36570d4e46f48e99674bd3fcc84644ddd6b96f7c741b1562b82f9e004dc7";
const STRK: &str = "0x4718f5a0fc34cc1af16a1cdee98ffb20c31f5cd61d6ab07201858f4287c938d";

/// A running node; ended with the test.
struct Devnet {
    child: Child,
    rpc: Rpc,
    url: String,
    ws_url: String,
}

impl Devnet {
    async fn start() -> Devnet {
        let program = std::env::var("EBBTIDE_STARKNET_DEVNET").expect("EBBTIDE_STARKNET_DEVNET names the program");
        let port = free_port();
        let child = Command::new(program)
            .args([
                "--host",
                "127.0.0.1",
                "--port",
                &port.to_string(),
                "--seed",
                "7",
                "--state-archive-capacity",
                "full",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (url, ws_url) = (format!("http://127.0.0.1:{port}/rpc"), format!("ws://127.0.0.1:{port}/ws"));
        let node = Devnet { child, rpc: Rpc::new(&url), url, ws_url };
        wait_until("the node answers", async || node.rpc.try_call("starknet_chainId", json!({})).await.ok()).await;
        node
    }

    async fn rpc(&self, method: &str, params: Value) -> Value {
        self.rpc.call(method, params).await
    }

    async fn mint(&self, to: &str, amount: u64, unit: &str) {
        self.rpc("devnet_mint", json!({ "address": to, "amount": amount, "unit": unit })).await;
    }

    async fn head(&self) -> (u64, String) {
        let head = self.rpc("starknet_blockHashAndNumber", json!({})).await;
        let hash = Felt::parse(head["block_hash"].as_str().unwrap()).unwrap().to_string();
        (head["block_number"].as_u64().unwrap(), hash)
    }

    /// What the contract itself says.
    async fn balance_of(&self, token: &str, holder: &str) -> String {
        let request = json!({
            "contract_address": token, "calldata": [holder],
            "entry_point_selector": Felt::selector("balanceOf").to_string(),
        });
        let answer = self.rpc("starknet_call", json!({ "request": request, "block_id": "latest" })).await;
        let felt = |n: usize| Felt::parse(answer[n].as_str().unwrap()).unwrap();
        Felt::u256(felt(0), felt(1)).unwrap().to_string()
    }
}

impl Drop for Devnet {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Run {
    db: tokio_postgres::Client,
    compared: usize,
}

impl Run {
    /// Waits until the node's head is applied; then every holder has what the contract says.
    async fn agrees(&mut self, node: &Devnet, holders: &[String], what: &str) {
        let (number, hash) = node.head().await;
        wait_until(&format!("{what}: block {number} is applied"), async || {
            let row = self
                .db
                .query_opt("select hash, halted_reason from checkpoints where projection = 'token_balances'", &[])
                .await
                .unwrap()?;
            assert_eq!(row.get::<_, Option<String>>(1), None, "halted");
            (row.get::<_, Option<String>>(0).as_deref() == Some(hash.as_str())).then_some(())
        })
        .await;
        for holder in holders {
            for token in [ETH, STRK] {
                let sql = "select coalesce(sum(amount), 0)::text from balances where token = $1 and address = $2";
                let ours: String = self.db.query_one(sql, &[&token, holder]).await.unwrap().get(0);
                assert_eq!(ours, node.balance_of(token, holder).await, "{what}: {holder} of {token}");
                self.compared += 1;
            }
        }
    }
}

#[tokio::test]
#[ignore = "needs starknet-devnet, which takes long to build: make test-starknet-devnet"]
async fn a_real_node_that_aborts_blocks_is_followed() {
    let node = Devnet::start().await;
    let pg = Pg::new().await;
    let mut run = Run { db: pg.client().await, compared: 0 };
    let (listen, operator) = (free_addr().to_string(), free_addr().to_string());
    let mut ebbtide = Ebbtide::spawn(
        &[
            "run",
            "--source",
            "starknet",
            "--url",
            &node.url,
            "--ws-url",
            &node.ws_url,
            "--start-height",
            "0",
            "--database-url",
            &pg.url,
            "--listen",
            &listen,
            "--operator-listen",
            &operator,
        ],
        &[],
    );
    // Fresh accounts: those that the node sets up have a balance without an event.
    let holders: Vec<String> = (0..5u64).map(|n| format!("{:#x}", 0xab1e_0000 + n)).collect();
    let mint = async |round: u64| {
        for (n, holder) in (1..).zip(&holders) {
            let unit = if (n + round).is_multiple_of(2) { "WEI" } else { "FRI" };
            node.mint(holder, 1_000 * round + n, unit).await;
        }
    };
    mint(1).await;
    run.agrees(&node, &holders, "at the start").await;
    let moved: i64 = run.db.query_one("select count(*) from token_events", &[]).await.unwrap().get(0);
    assert!(moved >= 5, "{moved} movements");
    let mut aborted = 0;
    for (depth, round) in [(1u64, 2u64), (3, 3), (5, 4)] {
        let (head, _) = node.head().await;
        let start = head + 1 - depth;
        // This node's hashes follow from the number of transactions and of the block, not from what is in it: a block would
        // come back under its hash with other contents, which no chain does. So an empty one takes the place of the
        // lowest, or a full one an empty one's, and those above come once that was seen.
        let lowest = node.rpc("starknet_getBlockWithTxHashes", json!({ "block_id": { "block_number": start } })).await;
        let abort = json!({ "starting_block_id": { "block_number": start } });
        aborted += node.rpc("devnet_abortBlocks", abort).await["aborted"].as_array().unwrap().len();
        if lowest["transactions"].as_array().unwrap().is_empty() {
            node.mint(&holders[0], 7, "WEI").await;
        } else {
            node.rpc("devnet_createBlock", json!({})).await;
        }
        run.agrees(&node, &holders, &format!("{depth} blocks aborted, one in their place")).await;
        mint(round).await;
        run.agrees(&node, &holders, &format!("{depth} blocks aborted")).await;
    }
    let reorgs: i64 = run.db.query_one("select count(*) from reorgs", &[]).await.unwrap().get(0);
    let (head, _) = node.head().await;
    println!("{head} blocks, {aborted} aborted in {reorgs} reorgs, {} balances compared", run.compared);
    assert!(reorgs >= 3 && aborted >= 9, "{aborted} blocks, {reorgs} reorgs");
    ebbtide.terminate();
    assert!(ebbtide.wait(Duration::from_secs(15)).await.success());
}
