//! A real EVM node of the test's own, and a token on it.

use std::collections::BTreeMap;

use alloy_primitives::{U256, keccak256};
use serde_json::{Value, json};

use crate::support::Anvil;
use crate::support::anvil::contract;

/// A running node that makes a block only when it is told to.
pub struct Node {
    anvil: Anvil,
    bytecode: String,
    /// Accounts with money, whose transactions need no signature.
    pub accounts: Vec<String>,
}

impl Node {
    /// None where it is not installed.
    pub async fn start() -> Option<Node> {
        let (_, bytecode) = contract("ERC20PresetMinterPauser")?;
        let anvil = Anvil::start(&["--no-mining", "--accounts", "8", "--timestamp", "1700000000"]).await?;
        let accounts = anvil.rpc("eth_accounts", json!([])).await;
        let accounts = accounts.as_array().unwrap().iter().map(|a| a.as_str().unwrap().to_lowercase()).collect();
        Some(Node { anvil, bytecode, accounts })
    }

    pub fn url(&self) -> String {
        self.anvil.url.clone()
    }

    pub fn ws_url(&self) -> String {
        self.anvil.ws_url.clone()
    }

    pub async fn ask(&self, method: &str, params: Value) -> Value {
        self.anvil.rpc(method, params).await
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
