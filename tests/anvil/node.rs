//! A real EVM node of the test's own, and a token on it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use alloy_primitives::{U256, keccak256};
use serde_json::{Value, json};

use crate::support::skip;

fn node_modules() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("node_modules")
}

/// The node's program and the token's creation code; none, after a word, where npm did not install them.
fn installed() -> Option<(PathBuf, String)> {
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let os = if cfg!(target_os = "macos") { "darwin" } else { "linux" };
    let program = node_modules().join(format!("@foundry-rs/anvil-{os}-{arch}/bin/anvil"));
    let contract = node_modules().join("@openzeppelin/contracts/build/contracts/ERC20PresetMinterPauser.json");
    for needed in [&program, &contract] {
        if !needed.exists() {
            skip(&format!("{} is missing: make install-deps", needed.display()));
            return None;
        }
    }
    let contract: Value = serde_json::from_slice(&std::fs::read(contract).unwrap()).unwrap();
    Some((program, contract["bytecode"].as_str().unwrap().to_owned()))
}

/// A running node that makes a block only when it is told to; killed with the test.
pub struct Node {
    child: Child,
    pub port: u16,
    http: reqwest::Client,
    calls: AtomicU64,
    bytecode: String,
    /// Accounts with money, whose transactions need no signature.
    pub accounts: Vec<String>,
}

impl Node {
    /// None where it is not installed.
    pub async fn start() -> Option<Node> {
        let (program, bytecode) = installed()?;
        // Installed already where another test of this process was first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut child = Command::new(program)
            .args(["--port", "0", "--no-mining", "--accounts", "8", "--timestamp", "1700000000"])
            .env_remove("FOUNDRY_PROFILE")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("Listening on 127.0.0.1:")?.trim().parse().ok())
            .expect("the node says where it listens");
        // Read on, lest the node wait for a reader.
        std::thread::spawn(move || lines.for_each(drop));
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let mut node = Node { child, port, http, calls: AtomicU64::new(0), bytecode, accounts: Vec::new() };
        let accounts = node.ask("eth_accounts", json!([])).await;
        node.accounts = accounts.as_array().unwrap().iter().map(|a| a.as_str().unwrap().to_lowercase()).collect();
        Some(node)
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn ws_url(&self) -> String {
        format!("ws://127.0.0.1:{}", self.port)
    }

    pub async fn ask(&self, method: &str, params: Value) -> Value {
        let id = self.calls.fetch_add(1, Ordering::Relaxed);
        let body = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).to_string();
        let request = self.http.post(self.url()).header("content-type", "application/json").body(body);
        let answer = request.send().await.unwrap().text().await.unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert!(answer.get("error").is_none(), "{method} {params}: {answer}");
        answer["result"].clone()
    }

    /// Makes one block of what is waiting.
    pub async fn mine(&self) {
        self.ask("evm_mine", json!([])).await;
    }

    /// Height and hash of the newest block.
    pub async fn head(&self) -> (u64, String) {
        let block = self.ask("eth_getBlockByNumber", json!(["latest", false])).await;
        (hex_number(&block["number"]), block["hash"].as_str().unwrap().to_owned())
    }

    /// Makes a token in a block of its own; the first account may mint.
    pub async fn deploy(&self, name: &str) -> String {
        let word = |n: usize| format!("{n:064x}");
        let text = |text: &str| format!("{}{:0<64}", word(text.len()), hex_text(text));
        let arguments = [word(64), word(128), text(name), text("TKN")].concat();
        let data = format!("{}{arguments}", self.bytecode);
        let transaction = json!([{"from": self.accounts[0], "data": data, "gas": "0x7a1200"}]);
        let hash = self.ask("eth_sendTransaction", transaction).await;
        self.mine().await;
        let receipt = self.ask("eth_getTransactionReceipt", json!([hash])).await;
        assert_eq!(receipt["status"], "0x1", "{receipt}");
        receipt["contractAddress"].as_str().unwrap().to_lowercase()
    }

    /// Hands in transactions for the next block.
    pub async fn send(&self, transactions: &[Value]) {
        for transaction in transactions {
            self.ask("eth_sendTransaction", json!([transaction])).await;
        }
    }

    async fn number_of(&self, token: &str, call: &str) -> U256 {
        let answer = self.ask("eth_call", json!([{"to": token, "data": call}, "latest"])).await;
        answer.as_str().unwrap().parse().unwrap()
    }

    /// What the contracts say of these holders: non-zero balances, and the supplies.
    pub async fn answers(
        &self,
        tokens: &[String],
        holders: &[String],
    ) -> (BTreeMap<(String, String), String>, BTreeMap<String, String>) {
        let (mut balances, mut supplies) = (BTreeMap::new(), BTreeMap::new());
        for token in tokens {
            for holder in holders {
                let balance = self.number_of(token, &call("balanceOf(address)", &[address_word(holder)])).await;
                if !balance.is_zero() {
                    balances.insert((token.clone(), holder.clone()), balance.to_string());
                }
            }
            let supply = self.number_of(token, &call("totalSupply()", &[])).await;
            if !supply.is_zero() {
                supplies.insert(token.clone(), supply.to_string());
            }
        }
        (balances, supplies)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn hex_number(value: &Value) -> u64 {
    u64::from_str_radix(&value.as_str().unwrap()[2..], 16).unwrap()
}

fn hex_text(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn address_word(address: &str) -> String {
    format!("{}{}", "0".repeat(24), &address[2..])
}

fn amount_word(amount: u128) -> String {
    format!("{amount:064x}")
}

fn call(signature: &str, words: &[String]) -> String {
    format!("{}{}", &keccak256(signature).to_string()[..10], words.concat())
}

fn transaction(from: &str, token: &str, data: String) -> Value {
    // A limit of gas, so that the node does not try transactions before their block: some are meant to fail in it.
    json!({"from": from, "to": token, "data": data, "gas": "0x30d40"})
}

pub fn mint(minter: &str, token: &str, to: &str, amount: u128) -> Value {
    transaction(minter, token, call("mint(address,uint256)", &[address_word(to), amount_word(amount)]))
}

pub fn pay(from: &str, token: &str, to: &str, amount: u128) -> Value {
    transaction(from, token, call("transfer(address,uint256)", &[address_word(to), amount_word(amount)]))
}

pub fn burn(from: &str, token: &str, amount: u128) -> Value {
    transaction(from, token, call("burn(uint256)", &[amount_word(amount)]))
}
