//! A node that lies once about its head, what is final or its network, and a real reorganisation after each lie: what it
//! said is kept nowhere, as many blocks are undone as were replaced, and the balances are those of the blocks that stand.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use tokio_postgres::Client;

use crate::support::fake_indexer::FakeIndexer;
use crate::support::fake_node::FakeNode;
use crate::support::fake_starknet::FakeStarknet;
use crate::support::{Ebbtide, Pg, fake_indexer, fake_node, fake_starknet, free_addr, http, rpc_node, wait_within};

const DEPTH: u64 = 20;
/// Above the pause after what a person should look at, which another network is.
const BACK_WITHIN: Duration = Duration::from_secs(60);

const ZERO: &str = "0x0000000000000000000000000000000000000000";
const TOKEN: &str = "0x00000000000000000000000000000000000070c0";
const A: &str = "0x00000000000000000000000000000000000000a0";
const B: &str = "0x00000000000000000000000000000000000000b0";
const GNO_TOKEN: &str = "gno.land/r/gnoland/wugnot.wugnot.0000000";
const GNO_A: &str = "g1jg8mtutu9khhfwc4nxmuhcpftf0pajdhfvsqf5";
const GNO_B: &str = "g1ffzxha57dh0qgv9ma5v393ur0zexfvp6lsjpae";

/// What moves in a block of a branch: A is given three times as much, and gives B this.
fn amount(height: u64, branch: u64) -> u64 {
    (height + 1) * (1 + 1_000 * branch)
}

/// What a node may say that is not so.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Lie {
    /// The head is so far above what there is.
    HeadAbove(u64),
    /// The head is another block, so far below what there is.
    OtherBlock(u64),
    /// All up to so far above what there is is final.
    Final(u64),
    /// The network is another one.
    Network,
}

const LIES: [Lie; 6] = [
    Lie::HeadAbove(100_000),
    Lie::HeadAbove(1),
    Lie::OtherBlock(0),
    Lie::OtherBlock(7),
    Lie::Final(100_000),
    Lie::Network,
];

/// A node of each kind, serving the same movements.
enum Node {
    Evm(FakeNode),
    Starknet(FakeStarknet),
    Gno(FakeIndexer),
}

/// Blocks one by one, each on the one before it: of which branch each is.
fn made<T>(chain: &[u64], next: impl Fn(u64, u64, Option<&T>) -> Vec<T>) -> Vec<T> {
    let mut blocks: Vec<T> = Vec::new();
    for (height, branch) in (0..).zip(chain) {
        let block = next(height, *branch, blocks.last());
        blocks.extend(block);
    }
    blocks
}

fn evm(chain: &[u64]) -> Vec<fake_node::FakeBlock> {
    made(chain, |height, branch, below| {
        let amount = u128::from(amount(height, branch));
        let logs =
            vec![fake_node::transfer(TOKEN, ZERO, A, 3 * amount, 0), fake_node::transfer(TOKEN, A, B, amount, 1)];
        fake_node::chain(height, 1, below, &branch.to_string(), |_| logs.clone())
    })
}

fn starknet(chain: &[u64]) -> Vec<fake_starknet::FakeStarkBlock> {
    use fake_starknet::{ALICE, BOB, TOKEN, old_transfer, tx};
    made(chain, |height, branch, below| {
        let amount = u128::from(amount(height, branch));
        let said = vec![old_transfer(TOKEN, "0x0", ALICE, 3 * amount), old_transfer(TOKEN, ALICE, BOB, amount)];
        fake_starknet::chain(height, 1, below, &branch.to_string(), |_| vec![tx(said.clone())])
    })
}

fn gno(chain: &[u64]) -> Vec<fake_indexer::FakeBlock> {
    use fake_indexer::{blocks_from, transfer};
    made(chain, |height, branch, below| {
        let amount = amount(height, branch);
        let said = vec![transfer(GNO_TOKEN, "", GNO_A, 3 * amount), transfer(GNO_TOKEN, GNO_A, GNO_B, amount)];
        blocks_from(height, 1, below, &branch.to_string(), |_| vec![said.clone()])
    })
}

impl Node {
    async fn start(kind: &str, chain: &[u64]) -> Node {
        match kind {
            "evm" => Node::Evm(FakeNode::start(31337, evm(chain)).await),
            "starknet" => Node::Starknet(FakeStarknet::start(starknet(chain)).await),
            _ => Node::Gno(FakeIndexer::start(gno(chain)).await),
        }
    }

    fn url(&self) -> String {
        match self {
            Node::Evm(node) => node.url(),
            Node::Starknet(node) => node.url(),
            Node::Gno(node) => node.url(),
        }
    }

    fn network(&self) -> &'static str {
        match self {
            Node::Evm(_) => "31337",
            Node::Starknet(_) => "SN_SEPOLIA",
            Node::Gno(_) => "test-13",
        }
    }

    fn serve(&self, chain: &[u64]) {
        match self {
            Node::Evm(node) => node.set_chain(evm(chain)),
            Node::Starknet(node) => node.set_chain(starknet(chain)),
            Node::Gno(node) => node.set_chain(gno(chain)),
        }
    }

    /// The last block's name, and who A and B are.
    fn names(&self, chain: &[u64]) -> (String, [&'static str; 2]) {
        match self {
            Node::Evm(_) => (evm(chain).pop().unwrap().hash, [A, B]),
            Node::Starknet(_) => (starknet(chain).pop().unwrap().hash, [fake_starknet::ALICE, fake_starknet::BOB]),
            Node::Gno(_) => (gno(chain).pop().unwrap().hash, [GNO_A, GNO_B]),
        }
    }

    /// Tells this once, or so often. False: nodes of this kind say nothing of the sort.
    fn lie(&self, lie: Lie, times: u64, tip: u64) -> bool {
        let of_rpc = |network| match lie {
            Lie::HeadAbove(by) => rpc_node::Fault::HeadAt(tip + by),
            Lie::OtherBlock(below) => rpc_node::Fault::HeadAt(tip - below),
            Lie::Final(above) => rpc_node::Fault::FinalizedAt(tip + above),
            Lie::Network => rpc_node::Fault::NetworkIs(network),
        };
        match self {
            // What is on the settlement layer is asked for twice a minute.
            Node::Starknet(_) if matches!(lie, Lie::Final(_)) => return false,
            Node::Evm(node) => node.lie(times, of_rpc("0x5")),
            Node::Starknet(node) => node.lie(times, of_rpc("0x534e5f4d41494e")),
            Node::Gno(node) => node.lie(
                times,
                match lie {
                    Lie::HeadAbove(by) => fake_indexer::Fault::HeadAhead(by),
                    Lie::Network => fake_indexer::Fault::ChainId("portal-loop"),
                    Lie::OtherBlock(_) | Lie::Final(_) => return false,
                },
            ),
        }
        true
    }

    fn has_lied(&self) -> bool {
        match self {
            Node::Evm(node) => node.has_lied(),
            Node::Starknet(node) => node.has_lied(),
            Node::Gno(node) => node.has_lied(),
        }
    }

    async fn until_it_has_lied(&self, what: &str) {
        wait_within(BACK_WITHIN, &format!("{what}: it was told"), async || self.has_lied().then_some(())).await;
    }
}

/// The program on a node, and what must be true of it.
struct Story {
    kind: &'static str,
    node: Node,
    pg: Pg,
    db: Client,
    ebbtide: Ebbtide,
    operator: SocketAddr,
    chain: Vec<u64>,
    /// Reorganisations, and blocks that they replaced, so far.
    replaced: Vec<i64>,
}

fn spawn(kind: &str, node: &Node, pg: &Pg, operator: SocketAddr) -> Ebbtide {
    let (url, operator, depth) = (node.url(), operator.to_string(), DEPTH.to_string());
    let args = ["run", "--source", kind, "--url", &url, "--database-url", &pg.url, "--listen", "127.0.0.1:0"];
    let more = ["--operator-listen", &operator, "--start-height", "0", "--source-poll-ms", "50", "--finality-depth"];
    let env = [("EBBTIDE_CHAINS__MAIN__REQUEST_TIMEOUT_MS", "2000"), ("EBBTIDE_CHAINS__MAIN__CONFIRM_BLOCKS", "0")];
    let env = if kind == "gno" { &env[..] } else { &env[..1] };
    Ebbtide::spawn(&[&args[..], &more, &[depth.as_str()]].concat(), env)
}

impl Story {
    async fn start(kind: &'static str) -> Story {
        let chain = vec![0; 100];
        let (node, pg, operator) = (Node::start(kind, &chain).await, Pg::new().await, free_addr());
        let (db, ebbtide) = (pg.client().await, spawn(kind, &node, &pg, operator));
        let story = Story { kind, node, pg, db, ebbtide, operator, chain, replaced: Vec::new() };
        story.reach("at the start").await;
        story
    }

    /// The newest block's height.
    fn tip(&self) -> u64 {
        self.chain.len() as u64 - 1
    }

    fn grow(&mut self) {
        self.chain.push(*self.chain.last().unwrap());
        self.node.serve(&self.chain);
    }

    /// Its last blocks are replaced by one more of another branch.
    fn fork(&mut self, depth: usize) {
        self.chain = self.forked(depth);
        self.replaced.push(depth as i64);
        self.node.serve(&self.chain);
    }

    fn forked(&self, depth: usize) -> Vec<u64> {
        let branch = 1 + self.replaced.len() as u64;
        let stem = self.chain[..self.chain.len() - depth].iter().copied();
        stem.chain(std::iter::repeat_n(branch, depth + 1)).collect()
    }

    /// Whether the balances are those of the chain that is served. At no time is anything final above the stored tip.
    async fn stands(&self, what: &str) -> bool {
        let (hash, holders) = self.node.names(&self.chain);
        let sql = "select k.hash, k.halted_reason, c.final_height, (select max(height) from blocks),
                (select coalesce(array_agg(address || ' ' || amount order by amount desc), '{}') from balances)
            from chains c left join checkpoints k on k.chain_id = c.chain_id and k.projection = 'token_balances'";
        let Some(row) = self.db.query_opt(sql, &[]).await.unwrap() else { return false };
        let (applied, halted): (Option<String>, Option<String>) = (row.get(0), row.get(1));
        assert_eq!(halted, None, "{what}: halted");
        let (is_final, tip): (Option<i64>, Option<i64>) = (row.get(2), row.get(3));
        assert!(is_final <= tip, "{what}: final up to {is_final:?}, stored up to {tip:?}");
        if applied.as_ref() != Some(&hash) {
            return false;
        }
        let sum: u64 = (0..).zip(&self.chain).map(|(height, branch)| amount(height, *branch)).sum();
        let expected = [(holders[0], 2 * sum), (holders[1], sum)].map(|(holder, sum)| format!("{holder} {sum}"));
        assert_eq!(row.get::<_, Vec<String>>(4), expected, "{what}");
        true
    }

    async fn number(&self, sql: &str) -> i64 {
        self.db.query_one(sql, &[]).await.unwrap().get(0)
    }

    /// Waits until the chain that is served is applied; then no more was undone than was replaced, and final is what lies
    /// deep enough.
    async fn reach(&self, what: &str) {
        let what = format!("{}, {what}", self.kind);
        let looked = format!("{what}: block {} is applied", self.tip());
        wait_within(BACK_WITHIN, &looked, async || self.stands(&what).await.then_some(())).await;
        let depths = self
            .db
            .query("select depth from reorgs where projection = 'token_balances' order by id", &[])
            .await
            .unwrap();
        let depths: Vec<i64> = depths.iter().map(|row| row.get(0)).collect();
        assert_eq!(depths, self.replaced, "{what}: blocks undone");
        let archived = self.number("select count(*) from orphaned_blocks").await;
        assert_eq!(archived, self.replaced.iter().sum::<i64>(), "{what}: blocks replaced");
        let is_final = self.number("select final_height from chains").await;
        assert_eq!(is_final as u64, self.tip() - DEPTH, "{what}: final");
    }

    async fn until_ready(&self, what: &str) {
        let what = format!("{}, {what}: ready", self.kind);
        wait_within(BACK_WITHIN, &what, async || http::ready(self.operator).await.0.then_some(())).await;
    }

    async fn stop(&mut self) {
        self.ebbtide.terminate();
        let status = self.ebbtide.wait(Duration::from_secs(15)).await;
        assert!(status.success(), "{status}:\n{}", self.ebbtide.stderr().join("\n"));
    }
}

/// Each lie is told in one answer: before a reorganisation, and in its midst.
async fn outlives(kind: &'static str) {
    let mut story = Story::start(kind).await;
    let mut told = 0;
    for lie in LIES {
        let what = format!("{lie:?}");
        if !story.node.lie(lie, 1, story.tip()) {
            continue;
        }
        story.grow();
        story.node.until_it_has_lied(&what).await;
        story.reach(&what).await;
        story.fork(3);
        story.reach(&format!("{what}, then three blocks replaced")).await;
        story.node.lie(lie, 1, story.tip());
        story.fork(12);
        story.node.until_it_has_lied(&what).await;
        story.reach(&format!("{what} while twelve blocks are replaced")).await;
        story.until_ready(&what).await;
        told += 2;
    }
    // Its connection is lost, and it is told so both in its last look and as it begins again.
    story.ebbtide.freeze();
    story.node.lie(Lie::Network, 2, story.tip());
    let lost = "select count(pg_terminate_backend(pid)) from pg_locks where locktype = 'advisory' and granted
        and database = (select oid from pg_database where datname = current_database())";
    assert_eq!(story.number(lost).await, 1, "one syncer holds the chain's lock");
    story.grow();
    story.ebbtide.thaw();
    story.node.until_it_has_lied("another network after a new connection").await;
    story.reach("another network after a new connection").await;
    // At a start there is nothing to keep up: it ends, and the next start goes on.
    story.stop().await;
    story.node.lie(Lie::Network, 1, story.tip());
    story.fork(2);
    story.ebbtide = spawn(kind, &story.node, &story.pg, story.operator);
    let status = story.ebbtide.wait(Duration::from_secs(20)).await;
    let said = story.ebbtide.stderr().join("\n");
    assert!(status.code() == Some(1) && said.contains(story.node.network()), "{kind}: {status}: {said}");
    story.ebbtide = spawn(kind, &story.node, &story.pg, story.operator);
    story.reach("the start after one on another network").await;
    // What is final stays, also after a head that was never there.
    story.node.lie(Lie::HeadAbove(100_000), 1, story.tip());
    story.node.serve(&story.forked(30));
    wait_within(BACK_WITHIN, "the deep branch is refused", async || {
        let (ready, said) = http::ready(story.operator).await;
        (!ready && said.contains("--allow-reset")).then_some(())
    })
    .await;
    assert!(story.stands("refused").await, "{kind}: what was final was replaced");
    story.node.serve(&story.chain);
    story.until_ready("its own branch again").await;
    story.grow();
    story.reach("its own branch again").await;
    story.stop().await;
    Ebbtide::succeed(&["verify", "--database-url", &story.pg.url], &[]);
    let (reorgs, blocks) = (story.replaced.len(), story.replaced.iter().sum::<i64>());
    println!("{kind}: {} lies, {reorgs} reorganisations, {blocks} blocks reverted, as many as were replaced", told + 4);
}

#[tokio::test]
async fn an_evm_node_that_lies_once_costs_no_block_more_than_was_replaced() {
    outlives("evm").await;
}

#[tokio::test]
async fn a_starknet_node_that_lies_once_costs_no_block_more_than_was_replaced() {
    outlives("starknet").await;
}

#[tokio::test]
async fn an_indexer_that_lies_once_costs_no_block_more_than_was_replaced() {
    outlives("gno").await;
}

/// The first answer of all, and the first two, where nothing is stored yet that could speak against it.
#[tokio::test]
async fn a_network_that_was_wrong_once_binds_nobody_before_a_block_bears_it_out() {
    let (pg, chain) = (Pg::new().await, vec![0; 30]);
    let db = pg.client().await;
    let mut nodes = Vec::new();
    let mut settings = String::new();
    for kind in ["evm", "starknet", "gno"] {
        for times in 1..=2 {
            let node = Node::start(kind, &chain).await;
            node.lie(Lie::Network, times, 29);
            let (name, url) = (format!("{kind}{times}"), node.url());
            let more = if kind == "gno" { "confirm_blocks = 0\n" } else { "" };
            write!(settings, "[chains.{name}]\nsource = '{kind}'\nurls = ['{url}']\nstart_height = 0\n{more}").unwrap();
            nodes.push((name, node));
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ebbtide.toml");
    std::fs::write(&file, settings).unwrap();
    let args = ["run", "--config", file.to_str().unwrap(), "--database-url", &pg.url, "--listen", "127.0.0.1:0"];
    let mut run = Ebbtide::spawn(&[&args[..], &["--operator-listen", "127.0.0.1:0"]].concat(), &[]);
    let sql = "select k.hash, c.network_id from chains c join checkpoints k using (chain_id)
        where c.name = $1 and k.projection = 'token_balances'";
    for (name, node) in &nodes {
        let head = Some(node.names(&chain).0);
        let network: Option<String> = wait_within(BACK_WITHIN, &format!("{name} is followed"), async || {
            let row = db.query_opt(sql, &[name]).await.unwrap()?;
            (row.get::<_, Option<String>>(0) == head).then(|| row.get(1))
        })
        .await;
        assert_eq!(network.as_deref(), Some(node.network()), "{name}");
        assert!(node.has_lied(), "{name}");
    }
    run.terminate();
    assert!(run.wait(Duration::from_secs(15)).await.success());
    Ebbtide::succeed(&["verify", "--database-url", &pg.url], &[]);
}
