//! The built program follows a real node with real tokens while the node replaces its blocks.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::node::{Node, burn, mint, pay};
use crate::support::{Ebbtide, Pg, wait_until};

/// The same choices in every run.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }
}

/// A node with two tokens that people use.
struct Market {
    node: Node,
    tokens: Vec<String>,
    /// Whoever may hold something: the accounts, the tokens themselves, and some who never send.
    holders: Vec<String>,
    dice: Dice,
    deployed_at: u64,
}

impl Market {
    async fn open() -> Option<Market> {
        let node = Node::start().await?;
        // Blocks before the tokens, so that there is something to search.
        for _ in 0..13 {
            node.mine().await;
        }
        let mut tokens = vec![node.deploy("First").await];
        let deployed_at = node.head().await.0;
        tokens.push(node.deploy("Second").await);
        let mut holders = [node.accounts.clone(), tokens.clone()].concat();
        holders.extend((1..=4).map(|n| format!("0x{n:040x}")));
        let mut market = Market { node, tokens, holders, dice: Dice(7), deployed_at };
        for token in &market.tokens {
            let minter = &market.node.accounts[0];
            let mints: Vec<Value> = market.node.accounts.iter().map(|to| mint(minter, token, to, 1_000_000)).collect();
            market.node.send(&mints).await;
        }
        market.node.mine().await;
        market.trade(70).await;
        Some(market)
    }

    /// One to five movements; some fail for lack of money, and leave no event.
    fn movements(&mut self) -> Vec<Value> {
        let number = 1 + self.dice.throw(5);
        (0..number)
            .map(|_| {
                let from = self.node.accounts[self.dice.throw(self.node.accounts.len())].clone();
                let token = self.tokens[self.dice.throw(2)].clone();
                let to = self.holders[self.dice.throw(self.holders.len())].clone();
                match self.dice.throw(10) {
                    0 => mint(&self.node.accounts[0], &token, &to, 1 << 90),
                    1 => burn(&from, &token, 77),
                    2 => pay(&from, &token, &from, 5),
                    3 => pay(&from, &token, &to, 0),
                    4 => pay(&from, &token, &to, u128::MAX),
                    _ => pay(&from, &token, &to, 1 + self.dice.throw(900) as u128),
                }
            })
            .collect()
    }

    /// So many blocks, one in four of them empty.
    async fn trade(&mut self, blocks: u64) {
        for _ in 0..blocks {
            if self.dice.throw(4) > 0 {
                let movements = self.movements();
                self.node.send(&movements).await;
            }
            self.node.mine().await;
        }
    }

    /// Replaces the newest blocks by as many others, about half of them empty.
    async fn replace(&mut self, depth: u64) {
        let mut pairs = Vec::new();
        for place in 0..depth {
            if self.dice.throw(2) == 0 {
                pairs.extend(self.movements().into_iter().map(|movement| json!([movement, place])));
            }
        }
        self.node.ask("anvil_reorg", json!([depth, pairs])).await;
    }
}

/// The program, following a market.
struct Follower {
    pg: Pg,
    db: Client,
    ebbtide: Ebbtide,
    compared: usize,
}

impl Follower {
    async fn start(market: &Market, args: &[&str]) -> Follower {
        let pg = Pg::new().await;
        let db = pg.client().await;
        let url = market.node.url();
        let mut all = vec!["run", "--source", "evm", "--url", &url, "--database-url", &pg.url];
        all.extend(["--listen", "127.0.0.1:0", "--operator-listen", "127.0.0.1:0", "--negative-balances", "halt"]);
        all.extend(args);
        let ebbtide = Ebbtide::spawn(&all, &[]);
        Follower { pg, db, ebbtide, compared: 0 }
    }

    /// Waits for the node's newest block, then holds every balance and supply against the contracts.
    async fn compare(&mut self, market: &Market, what: &str) {
        let (height, hash) = market.node.head().await;
        let sql = "select k.height, k.hash, coalesce(jsonb_object_agg(b.token || ' ' || b.address, b.amount::text)
                       filter (where b.amount <> 0), '{}'), max(k.halted_reason)
                   from checkpoints k left join balances b using (chain_id) group by k.height, k.hash";
        let db = &self.db;
        let ours: Value = wait_until(&format!("{what}: block {height} ({hash}) is applied"), async || {
            let row = db.query_opt(sql, &[]).await.unwrap()?;
            assert_eq!(row.get::<_, Option<String>>(3), None, "{what}");
            let there = row.get::<_, Option<i64>>(0) == Some(height.cast_signed())
                && row.get::<_, Option<String>>(1).as_ref() == Some(&hash);
            there.then(|| row.get(2))
        })
        .await;
        let ours: BTreeMap<(String, String), String> = ours
            .as_object()
            .unwrap()
            .iter()
            .map(|(key, amount)| {
                let (token, address) = key.split_once(' ').unwrap();
                ((token.to_owned(), address.to_owned()), amount.as_str().unwrap().to_owned())
            })
            .collect();
        let (balances, supplies) = market.node.answers(&market.tokens, &market.holders).await;
        assert_eq!(ours, balances, "{what}");
        let rows = db.query("select token, total_supply::text from tokens where total_supply <> 0", &[]).await.unwrap();
        let ours: BTreeMap<String, String> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        assert_eq!(ours, supplies, "{what}");
        self.compared += market.tokens.len() * (market.holders.len() + 1);
    }

    async fn numbers(&self, sql: &str) -> Vec<i64> {
        self.db.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
    }

    async fn end(mut self) {
        let troubles = self.db.query("select kind || ': ' || detail from anomalies", &[]).await.unwrap();
        let troubles: Vec<String> = troubles.iter().map(|row| row.get(0)).collect();
        assert_eq!(troubles, [] as [String; 0]);
        self.ebbtide.terminate();
        let status = self.ebbtide.wait(Duration::from_secs(15)).await;
        assert!(status.success(), "{status}:\n{}", self.ebbtide.stderr().join("\n"));
        drop(self.pg);
    }
}

/// Reorgs of every depth, each compared before and after; ends with the lowest height that is stored.
async fn through_reorgs(market: &mut Market, follower: &mut Follower, name: &str) -> i64 {
    follower.compare(market, "at the start").await;
    for depth in [1, 2, 5, 10, 64] {
        market.trade(3).await;
        let (before, _) = market.node.head().await;
        follower.compare(market, &format!("before the reorg of {depth}")).await;
        let earlier = follower.numbers("select count(*) from reorgs").await[0];
        market.replace(depth).await;
        follower.compare(market, &format!("after the reorg of {depth}")).await;
        let ancestors = follower.numbers(&format!("select ancestor from reorgs order by id offset {earlier}")).await;
        let expected = (before - depth).cast_signed();
        assert!(ancestors.contains(&expected), "{depth} blocks replaced above {expected}, undone to {ancestors:?}");
        if depth == 64 {
            let sql = format!("select count(distinct height) from token_events where height > {expected}");
            assert!(follower.numbers(&sql).await[0] > 10, "the new blocks hold events of their own");
        }
    }
    market.trade(2).await;
    follower.compare(market, "at the end").await;
    let (reorgs, orphans) = (
        follower.numbers("select count(*) from reorgs").await[0],
        follower.numbers("select count(distinct hash) from orphaned_blocks").await[0],
    );
    println!(
        "{name}: {} answers of the contracts, {reorgs} reorgs, {orphans} replaced blocks kept as evidence",
        follower.compared
    );
    assert!(orphans >= 82, "1, 2, 5, 10 and 64 blocks were replaced");
    follower.numbers("select min(height) from blocks").await[0]
}

#[tokio::test]
async fn listed_tokens_of_a_live_node_are_right_through_reorgs_of_1_to_64_blocks() {
    let Some(mut market) = Market::open().await else { return };
    let tokens = market.tokens.clone();
    let args = ["--start-height", "0", "--token", &tokens[0], "--token", &tokens[1], "--source-poll-ms", "50"];
    let mut follower = Follower::start(&market, &args).await;
    let lowest = through_reorgs(&mut market, &mut follower, "listed tokens, polling").await;
    assert_eq!(lowest, 0);
    follower.end().await;
}

#[tokio::test]
async fn a_live_node_is_followed_by_its_subscription_from_the_deployment_that_was_searched() {
    let Some(mut market) = Market::open().await else { return };
    let (tokens, ws) = (market.tokens.clone(), market.node.ws_url());
    // Polling alone would never come in time.
    let args = ["--ws-url", &ws, "--token", &tokens[0], "--token", &tokens[1], "--source-poll-ms", "3600000"];
    let mut follower = Follower::start(&market, &args).await;
    let lowest = through_reorgs(&mut market, &mut follower, "listed tokens, subscription").await;
    assert_eq!(lowest, market.deployed_at.cast_signed(), "the block of the first token's deployment");
    follower.end().await;
}

#[tokio::test]
async fn every_token_of_a_live_node_is_right_without_naming_any() {
    let Some(mut market) = Market::open().await else { return };
    let mut follower = Follower::start(&market, &["--source-poll-ms", "50"]).await;
    let lowest = through_reorgs(&mut market, &mut follower, "every token").await;
    assert_eq!(lowest, 0, "the node of someone's own machine is read from its genesis");
    let symbols = follower.db.query("select symbol, name, decimals from tokens order by name", &[]).await.unwrap();
    let described: Vec<(String, String, i16)> =
        symbols.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    assert_eq!(described, [("TKN".into(), "First".into(), 18), ("TKN".into(), "Second".into(), 18)]);
    follower.end().await;
}
