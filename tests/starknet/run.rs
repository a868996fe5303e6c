//! The built program on a Starknet node: whatever the chain does, the balances in the end are those of its chain.

use std::collections::BTreeMap;
use std::time::Duration;

use ebbtide::chain::felt::Felt;
use serde_json::Value;
use tokio_postgres::Client;

use crate::support::fake_node::Fault;
use crate::support::fake_starknet::{
    ALICE, BOB, FakeStarkBlock, FakeStarknet, FakeTx, OTHER, Oddity, TOKEN, chain, named, new_transfer, old_transfer,
    reverted, tx,
};
use crate::support::{Ebbtide, Pg, free_addr, wait_until};

const VAULT: &str = "0x11";

/// Movements in every block, in both layouts; the amounts depend on the branch.
fn moves(number: u64, factor: u128) -> Vec<FakeTx> {
    let amount = (u128::from(number) + 1) * factor;
    vec![
        tx(vec![old_transfer(TOKEN, "0x0", ALICE, 2 * amount), old_transfer(TOKEN, ALICE, BOB, amount)]),
        reverted(vec![new_transfer(OTHER, BOB, ALICE, amount)]),
    ]
}

fn blocks(len: u64) -> Vec<FakeStarkBlock> {
    chain(0, len, None, "a", |number| moves(number, 1))
}

/// The same chain without its last `replaced` blocks, and `added` others on top.
fn forked(old: &[FakeStarkBlock], replaced: usize, added: u64, salt: u128) -> Vec<FakeStarkBlock> {
    let stem = &old[..old.len() - replaced];
    let parent = stem.last().unwrap();
    let new = chain(parent.number + 1, added, Some(parent), &format!("branch {salt}"), |n| moves(n, 1_000 + salt));
    [stem, &new].concat()
}

/// What the balances must be, worked out by nothing of ours.
fn folded(blocks: &[FakeStarkBlock]) -> BTreeMap<String, i128> {
    let mut sums: BTreeMap<String, i128> = BTreeMap::new();
    let unpadded = |value: &Value| format!("0x{}", value.as_str().unwrap()[2..].trim_start_matches('0').to_lowercase());
    let transfer = "0x99cd8bde557814842a3121e8ddfd433a539b8c9f14bf31ebf108d12e6196e9";
    for event in blocks.iter().flat_map(|block| &block.transactions).flat_map(|tx| &tx.events) {
        if event["keys"][0] != transfer {
            continue;
        }
        let words: Vec<&Value> =
            event["keys"].as_array().unwrap().iter().chain(event["data"].as_array().unwrap()).collect();
        let amount = i128::from_str_radix(&words[3].as_str().unwrap()[2..], 16).unwrap();
        for (word, sign) in [(1, -1), (2, 1)] {
            let holder = unpadded(words[word]);
            if holder != "0x" {
                *sums.entry(format!("{} {holder}", unpadded(&event["from_address"]))).or_default() += sign * amount;
            }
        }
    }
    sums.retain(|_, amount| *amount != 0);
    sums
}

struct Run {
    pg: Pg,
    db: Client,
    ebbtide: Ebbtide,
}

fn spawn(node: &FakeStarknet, pg: &Pg, args: &[&str], env: &[(&str, &str)]) -> Ebbtide {
    let (url, operator) = (node.url(), free_addr().to_string());
    let mut all =
        vec!["run", "--source", "starknet", "--url", &url, "--database-url", &pg.url, "--listen", "127.0.0.1:0"];
    all.extend(["--operator-listen", &operator, "--start-height", "0", "--source-poll-ms", "50"]);
    all.extend(args);
    let mut variables = vec![("EBBTIDE_CHAINS__MAIN__REQUEST_TIMEOUT_MS", "2000")];
    variables.extend(env);
    Ebbtide::spawn(&all, &variables)
}

impl Run {
    async fn start(node: &FakeStarknet, args: &[&str], env: &[(&str, &str)]) -> Run {
        let pg = Pg::new().await;
        let db = pg.client().await;
        let ebbtide = spawn(node, &pg, args, env);
        Run { pg, db, ebbtide }
    }

    async fn stop(&mut self) {
        self.ebbtide.terminate();
        let status = self.ebbtide.wait(Duration::from_secs(15)).await;
        assert!(status.success(), "{status}:\n{}", self.ebbtide.stderr().join("\n"));
    }

    /// Waits until this block is applied; hash and balances are of one snapshot.
    async fn reach(&self, blocks: &[FakeStarkBlock], what: &str) {
        let head = blocks.last().unwrap();
        let sql =
            "select k.hash, k.halted_reason, coalesce(jsonb_object_agg(b.token || ' ' || b.address, b.amount::text)
                       filter (where b.amount <> 0), '{}')
                   from checkpoints k left join balances b using (chain_id)
                   where k.projection = 'token_balances' group by k.hash, k.halted_reason";
        let balances: Value = wait_until(&format!("{what}: block {} is applied", head.number), async || {
            let row = self.db.query_opt(sql, &[]).await.unwrap()?;
            assert_eq!(row.get::<_, Option<String>>(1), None, "halted");
            (row.get::<_, Option<String>>(0).as_ref() == Some(&head.hash)).then(|| row.get(2))
        })
        .await;
        let balances = balances.as_object().unwrap().iter();
        let balances: BTreeMap<String, i128> =
            balances.map(|(key, amount)| (key.clone(), amount.as_str().unwrap().parse().unwrap())).collect();
        assert_eq!(balances, folded(blocks), "{what}");
        assert_eq!(self.number("select count(*) from rejected_events").await, 0, "{what}");
    }

    async fn number(&self, sql: &str) -> i64 {
        self.db.query_one(sql, &[]).await.unwrap().get(0)
    }

    async fn heights(&self, emitter: &str, name: &str) -> Vec<i64> {
        let sql = "select height from events where emitter = $1 and name = $2 order by height, tx_index, event_index";
        self.db.query(sql, &[&emitter, &name]).await.unwrap().iter().map(|row| row.get(0)).collect()
    }
}

#[tokio::test]
async fn balances_are_right_through_reorganisations_faults_and_a_restart() {
    let mut served = blocks(130);
    let node = FakeStarknet::start(served.clone()).await;
    let ws = node.ws_url();
    let mut run = Run::start(&node, &["--ws-url", &ws, "--finality-depth", "90"], &[]).await;
    run.reach(&served, "at the start").await;
    assert_eq!(run.number("select count(*) from transactions where not success").await, 130);
    let kind: String = run.db.query_one("select kind || ' ' || network_id from chains", &[]).await.unwrap().get(0);
    assert_eq!(kind, "starknet SN_SEPOLIA");
    for (depth, salt) in [(1, 1), (3, 2), (25, 3)] {
        served = forked(&served, depth, depth as u64 + 1, salt);
        node.set_chain(served.clone());
        run.reach(&served, &format!("{depth} blocks replaced")).await;
    }
    assert_eq!(run.number("select count(*) from reorgs").await, 3);
    // A node that lags, or shows a block that is not confirmed, takes nothing away and adds nothing.
    node.odd(Oddity::PreConfirmed(served.last().unwrap().number + 1));
    node.set_chain(served[..served.len() - 5].to_vec());
    let before = node.request_count();
    wait_until("it has looked again", async || (node.request_count() >= before + 5).then_some(())).await;
    run.reach(&served, "a node behind").await;
    node.heal();
    for (salt, fault) in [
        (10, Fault::Http(429, "slow down")),
        (11, Fault::CutBody),
        (12, Fault::Refused(24, "Block not found")),
        (13, Fault::NullAnswers),
    ] {
        node.fault(fault.clone());
        served = forked(&served, 2, 4, salt);
        node.set_chain(served.clone());
        let before = node.request_count();
        wait_until("it has met the fault", async || (node.request_count() >= before + 2).then_some(())).await;
        node.heal();
        run.reach(&served, &format!("{fault:?}")).await;
    }
    node.hang_up();
    run.stop().await;
    served = forked(&served, 4, 6, 20);
    node.set_chain(served.clone());
    run.ebbtide = spawn(&node, &run.pg, &["--ws-url", &ws, "--finality-depth", "90"], &[]);
    run.reach(&served, "after a restart").await;
    println!("{} blocks, {} reorgs", served.len(), run.number("select count(*) from reorgs").await);
    run.stop().await;
}

/// One round a ten blocks; the newest one speaks in every block.
fn rounds(salt: u64) -> impl Fn(u64) -> Vec<FakeTx> {
    let round = move |n: u64| format!("{:#x}", 0x1000 + 100 * salt + n);
    move |number| {
        let mut events = Vec::new();
        if number.is_multiple_of(10) {
            events.push(named(VAULT, "OptionRoundDeployed", &[], &["0x1", &round(number / 10)]));
        }
        events.push(named(&round(number / 10), "BidPlaced", &["0x1"], &["0x2"]));
        vec![tx(events)]
    }
}

#[tokio::test]
async fn rounds_of_a_vault_are_followed_through_restarts_and_forgotten_with_their_branch() {
    let a = chain(0, 95, None, "a", rounds(0));
    let node = FakeStarknet::start(a.clone()).await;
    let vault = [("EBBTIDE_CHAINS__MAIN__CONTRACTS", "0x0011"), ("EBBTIDE_CHAINS__MAIN__TOKENS", "none")];
    let mut run = Run::start(&node, &[], &vault).await;
    run.reach(&a, "at the start").await;
    assert_eq!(run.heights(VAULT, "OptionRoundDeployed").await, (0..10).map(|n| 10 * n).collect::<Vec<i64>>());
    assert_eq!(run.heights("0x1009", "BidPlaced").await, (90..95).collect::<Vec<i64>>());
    run.stop().await;
    // Round 9 was made before the restart, and speaks after it.
    let longer = [a.clone(), chain(95, 3, a.last(), "a", rounds(0))].concat();
    node.set_chain(longer.clone());
    run.ebbtide = spawn(&node, &run.pg, &[], &vault);
    run.reach(&longer, "after a restart").await;
    assert_eq!(run.heights("0x1009", "BidPlaced").await, (90..98).collect::<Vec<i64>>());
    // On another branch there was never a round 9, and one with another address instead. Whoever speaks in its name is
    // not listened to.
    let b = |number: u64| match number {
        90 => rounds(1)(number),
        _ => [rounds(1)(number), rounds(0)(number)].concat(),
    };
    let replaced = [&a[..88], &chain(88, 20, Some(&a[87]), "b", b)].concat();
    node.set_chain(replaced.clone());
    run.reach(&replaced, "another branch").await;
    assert_eq!(run.heights("0x1009", "BidPlaced").await, Vec::<i64>::new());
    assert_eq!(run.heights("0x106d", "BidPlaced").await, (90..100).collect::<Vec<i64>>());
    assert_eq!(Felt::parse("0x106d").unwrap(), Felt::from(0x1000 + 109));
    println!("{} events of rounds", run.number("select count(*) from events").await);
    run.stop().await;
}

#[tokio::test]
async fn another_network_and_settings_that_cannot_be_meant_are_told_in_one_message() {
    let node = FakeStarknet::start(blocks(5)).await;
    let mut run = Run::start(&node, &[], &[]).await;
    run.reach(&blocks(5), "at the start").await;
    run.stop().await;
    node.set_chain_id("0x534e5f4d41494e");
    let mut again = spawn(&node, &run.pg, &[], &[]);
    assert_eq!(again.wait(Duration::from_secs(20)).await.code(), Some(1));
    let said = again.stderr().join("\n");
    assert!(said.contains("SN_MAIN") && said.contains("SN_SEPOLIA"), "{said}");
    node.set_chain_id("0x534e5f5345504f4c4941");
    let beyond = "0x800000000000011000000000000000000000000000000000000000000000001";
    for (variable, value, word) in [
        ("EBBTIDE_CHAINS__MAIN__CONTRACTS", beyond, "contract"),
        ("EBBTIDE_CHAINS__MAIN__TOKENS", "STRK", "token"),
        ("EBBTIDE_CHAINS__MAIN__VAULT_CLASS_HASH", "0xvault", "vault_class_hash"),
        ("EBBTIDE_CHAINS__MAIN__UDC_ADDRESS", "0x1", "vault_class_hash"),
        ("EBBTIDE_CHAINS__MAIN__EVENTS", "Transfer()", "events"),
        ("EBBTIDE_CHAINS__MAIN__WS_URL", "http://127.0.0.1/TOPSECRET", "ws_url"),
    ] {
        let mut refused = spawn(&node, &run.pg, &[], &[(variable, value)]);
        let status = refused.wait(Duration::from_secs(20)).await;
        let said = refused.stderr().join("\n");
        assert!(
            !status.success() && said.contains(word) && !said.contains("TOPSECRET"),
            "{variable}: {status}\n{said}"
        );
    }
}
