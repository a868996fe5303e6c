//! The built program on a fake indexer and a real Postgres: whatever the indexer does, the balances in the end are
//! those of its chain, and never those of anything else.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::support::fake_indexer::chain::{FakeTx, genesis_hash, typed};
use crate::support::fake_indexer::{FakeBlock, FakeIndexer, Fault, blocks_from, hash_of, new_token, transfer};
use crate::support::{Ebbtide, Pg, data_dir, free_addr, http, wait_until};

const ALICE: &str = "g1jg8mtutu9khhfwc4nxmuhcpftf0pajdhfvsqf5";
const BOB: &str = "g1ffzxha57dh0qgv9ma5v393ur0zexfvp6lsjpae";
const WUGNOT: &str = "gno.land/r/gnoland/wugnot.wugnot.0000000";
const GNS: &str = "gno.land/r/gnoswap/gns.GNS";

type Amounts = BTreeMap<(String, String), i128>;

/// Some movements in every block; the amounts depend on the branch.
fn moves(height: u64, factor: u64) -> Vec<Vec<Value>> {
    let amount = (height + 1) * factor;
    let mint = vec![json!({}), transfer(WUGNOT, "", ALICE, 3 * amount)];
    let on = vec![transfer(WUGNOT, ALICE, BOB, amount), transfer(GNS, "", BOB, amount)];
    if height.is_multiple_of(2) { vec![mint, on] } else { vec![mint] }
}

fn chain(len: u64) -> Vec<FakeBlock> {
    blocks_from(0, len, None, "a", |height| moves(height, 1))
}

/// What the balances must be, worked out by nothing of ours.
fn folded(blocks: &[FakeBlock]) -> Amounts {
    let mut sums = Amounts::new();
    for event in blocks.iter().flat_map(|b| &b.txs).flat_map(|tx| &tx.events).filter(|e| e["type"] == "Transfer") {
        let attrs = event["attrs"].as_array().unwrap();
        let attr = |key: &str| attrs.iter().find(|a| a["key"] == key).unwrap()["value"].as_str().unwrap();
        for (side, sign) in [("from", -1), ("to", 1)] {
            if !attr(side).is_empty() {
                let key = (attr("token").to_owned(), attr(side).to_owned());
                *sums.entry(key).or_default() += sign * attr("value").parse::<i128>().unwrap();
            }
        }
    }
    sums.retain(|_, amount| *amount != 0);
    sums
}

fn name(block: &FakeBlock) -> String {
    if block.height == 0 { genesis_hash(block) } else { block.hash.clone() }
}

struct Run {
    pg: Pg,
    db: Client,
    ebbtide: Ebbtide,
    operator: SocketAddr,
}

fn spawn(indexer: &FakeIndexer, pg: &Pg, operator: SocketAddr, args: &[&str], env: &[(&str, &str)]) -> Ebbtide {
    let (url, operator) = (indexer.url(), operator.to_string());
    let mut all = vec!["run", "--source", "gno", "--url", &url, "--database-url", &pg.url, "--listen", "127.0.0.1:0"];
    all.extend(["--operator-listen", &operator]);
    if !args.contains(&"--source-poll-ms") {
        all.extend(["--source-poll-ms", "50"]);
    }
    all.extend(args);
    let mut env = env.to_vec();
    env.push(("EBBTIDE_CHAINS__MAIN__REQUEST_TIMEOUT_MS", "2000"));
    if !env.iter().any(|(name, _)| name.ends_with("CONFIRM_BLOCKS")) {
        env.push(("EBBTIDE_CHAINS__MAIN__CONFIRM_BLOCKS", "0"));
    }
    Ebbtide::spawn(&all, &env)
}

impl Run {
    async fn start(indexer: &FakeIndexer, args: &[&str], env: &[(&str, &str)]) -> Run {
        let pg = Pg::new().await;
        let db = pg.client().await;
        let operator = free_addr();
        let ebbtide = spawn(indexer, &pg, operator, args, env);
        Run { pg, db, ebbtide, operator }
    }

    async fn stop(&mut self) {
        self.ebbtide.terminate();
        let status = self.ebbtide.wait(Duration::from_secs(15)).await;
        assert!(status.success(), "{status}:\n{}", self.ebbtide.stderr().join("\n"));
    }

    async fn again(&mut self, indexer: &FakeIndexer, args: &[&str]) {
        self.stop().await;
        self.ebbtide = spawn(indexer, &self.pg, self.operator, args, &[]);
    }

    /// Hash and balances in one snapshot.
    async fn standing(&self) -> (Option<String>, Amounts) {
        let sql = "select k.hash, b.token, b.address, b.amount::text, k.halted_reason
                   from checkpoints k left join balances b on b.chain_id = k.chain_id and b.amount <> 0";
        let rows = self.db.query(sql, &[]).await.unwrap();
        let mut amounts = Amounts::new();
        for row in &rows {
            assert_eq!(row.get::<_, Option<String>>(4), None, "halted");
            if let (Some(token), Some(address)) = (row.get(1), row.get(2)) {
                amounts.insert((token, address), row.get::<_, String>(3).parse().unwrap());
            }
        }
        (rows.first().and_then(|row| row.get(0)), amounts)
    }

    /// Waits until the balances are those of this chain.
    async fn reach(&self, blocks: &[FakeBlock], what: &str) -> Amounts {
        let head = blocks.last().unwrap();
        let amounts = wait_until(&format!("{what}: block {} is applied", head.height), async || {
            let (hash, amounts) = self.standing().await;
            (hash == Some(name(head))).then_some(amounts)
        })
        .await;
        assert_eq!(amounts, folded(blocks), "{what}");
        amounts
    }

    /// The balances are (still) those of this chain.
    async fn stands_at(&self, blocks: &[FakeBlock], what: &str) {
        let (hash, amounts) = self.standing().await;
        assert_eq!(hash, blocks.last().map(name), "{what}");
        assert_eq!(amounts, folded(blocks), "{what}");
    }

    async fn number(&self, sql: &str) -> i64 {
        self.db.query_one(sql, &[]).await.unwrap().get(0)
    }

    /// What `/ready` says: whether it is, and its words.
    async fn ready(&self) -> (bool, String) {
        http::ready(self.operator).await
    }

    async fn until_ready(&self, what: &str) {
        wait_until(&format!("{what}: ready"), async || self.ready().await.0.then_some(())).await;
    }

    async fn until_it_says(&self, text: &str, what: &str) {
        wait_until(&format!("{what}: not ready, saying {text:?}"), async || {
            let (ready, words) = self.ready().await;
            (!ready && words.contains(text)).then_some(())
        })
        .await;
    }
}

fn data(path: &str) -> Option<Value> {
    let text = std::fs::read_to_string(data_dir()?.join("gno").join(path)).unwrap();
    Some(serde_json::from_str(&text).unwrap())
}

/// Recorded transactions of three eras in one chain: the balances are the sums of the derived changes.
#[tokio::test]
async fn recorded_transactions_come_to_the_derived_balances() {
    let (Some(of_757), Some(of_985592), Some(twice)) = (
        data("captured/devindexer-tx-757-func-era.json"),
        data("derived/topaz-985592-graphql.json"),
        data("golden/gno-grc20-newtoken-duplicate-id-events.json"),
    ) else {
        return;
    };
    let mut chain = blocks_from(0, 30, None, "a", |_| Vec::new());
    chain[7].txs = vec![FakeTx::recorded(&of_757)];
    chain[12].txs = vec![FakeTx::recorded(&of_985592["data"]["getTransactions"][0])];
    let captured = data("captured/topaz-indexer-block-transactions.json").unwrap();
    for (at, call) in captured.as_object().unwrap().values().enumerate() {
        chain[20 + at].txs = vec![FakeTx::recorded(&call["response"]["data"]["getTransactions"][0])];
    }
    let events: Vec<Value> = twice.as_array().unwrap().iter().cloned().map(typed).collect();
    chain[25].txs = vec![FakeTx { index: 0, hash: hash_of("twice"), success: true, events }];
    let mut wanted = Amounts::new();
    let mut changes = 0;
    for expected in ["derived/devindexer-757-expected.json", "derived/topaz-985592-expected.json"] {
        for delta in data(expected).unwrap()["balance_deltas"].as_array().unwrap() {
            let text = |key: &str| delta[key].as_str().unwrap().to_owned();
            *wanted.entry((text("token_path"), text("address"))).or_default() += text("delta").parse::<i128>().unwrap();
            changes += 1;
        }
    }
    let duplicate = "gno.land/r/demo/grc20dupsignal.DUP.0000000";
    wanted.insert((duplicate.into(), "g1k29lxz0d8gx7m94n032ulum875p7gg0kduus5m".into()), 1_000_000);
    wanted.retain(|_, amount| *amount != 0);

    let indexer = FakeIndexer::start(chain.clone()).await;
    let mut run = Run::start(&indexer, &[], &[]).await;
    let head = name(chain.last().unwrap());
    let amounts = wait_until("all is applied", async || {
        let (hash, amounts) = run.standing().await;
        (hash.as_ref() == Some(&head)).then_some(amounts)
    })
    .await;
    assert_eq!(amounts, wanted);
    run.until_ready("at the end").await;
    assert_eq!(run.number("select count(*) from rejected_events").await, 0);
    let hash: String = run
        .db
        .query_one("select t.hash from transactions t where height = 12 and tx_index = 0", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(hash, "IC/6BTUhy/p6TwNwlL1PwX7BDMS1AKP4fFfbCfzoLQY=");
    // What tells an ambiguous token is there for whoever asks.
    let announced = "select count(*) from events where name = 'NewToken'
        and attributes ->> 'token' = 'gno.land/r/demo/grc20dupsignal.DUP.0000000'";
    assert_eq!(run.number(announced).await, 2);
    println!("{changes} derived changes came to {} balances", amounts.len());
    run.stop().await;
}

#[tokio::test]
async fn holes_and_lost_transactions_are_waited_for_and_lag_is_no_loss() {
    let chain = chain(60);
    let indexer = FakeIndexer::start(chain[..40].to_vec()).await;
    let patience = ("EBBTIDE_CHAINS__MAIN__INCOMPLETE_AFTER_MS", "600");
    let mut run = Run::start(&indexer, &[], &[patience]).await;
    run.reach(&chain[..40], "at the start").await;
    run.until_ready("at the start").await;

    indexer.fault(Fault::MissingBlock(45));
    indexer.set_chain(chain[..50].to_vec());
    run.reach(&chain[..45], "before the hole").await;
    run.until_it_says("block 45 is incomplete", "a hole").await;
    run.stands_at(&chain[..45], "a hole").await;
    assert!(run.ebbtide.is_running());
    indexer.heal();
    run.reach(&chain[..50], "the hole was repaired").await;
    run.until_ready("the hole was repaired").await;

    indexer.fault(Fault::MissingTx(54, 1));
    indexer.set_chain(chain.clone());
    run.reach(&chain[..54], "before the lost transaction").await;
    run.until_it_says("block 54 lacks 1 of its 2 transactions", "a lost transaction").await;
    run.stands_at(&chain[..54], "a lost transaction").await;
    indexer.heal();
    run.reach(&chain, "the transaction is back").await;
    run.until_ready("the transaction is back").await;

    indexer.fault(Fault::HeadAt(30));
    let asked = indexer.asked().len();
    wait_until("the lower head was looked at", async || (indexer.asked().len() > asked + 20).then_some(())).await;
    run.stands_at(&chain, "an indexer that fell behind").await;
    assert!(run.ready().await.0, "its head is one of our blocks");
    indexer.heal();
    run.stop().await;

    // Started on a hole, it waits for its repair all the same.
    let longer = blocks_from(60, 20, chain.last(), "a", |height| moves(height, 1));
    let longer = [chain, longer].concat();
    indexer.set_chain(longer.clone());
    indexer.fault(Fault::MissingBlock(60));
    run.ebbtide = spawn(&indexer, &run.pg, run.operator, &[], &[patience]);
    run.until_it_says("block 60 is incomplete", "started on a hole").await;
    assert!(run.ebbtide.is_running());
    indexer.heal();
    run.reach(&longer, "the hole was repaired").await;
    run.stop().await;
}

#[tokio::test]
async fn a_chain_that_began_anew_is_followed_when_that_is_allowed() {
    let old = chain(300);
    let indexer = FakeIndexer::start(old.clone()).await;
    let mut run = Run::start(&indexer, &[], &[]).await;
    run.reach(&old, "at the start").await;
    // Lower than all that is final, higher, lower again.
    for len in [90, 200, 70] {
        // Of the same name, but another from its genesis on.
        let mut new = blocks_from(0, len, None, &format!("new {len}"), |height| moves(height, 1_000 + len));
        new[0].time = format!("2026-08-01T00:00:{:02}Z", len % 60);
        indexer.set_chain(new.clone());
        let what = format!("another chain of {len} blocks");
        run.until_it_says("start with --allow-reset", &what).await;
        let (_, words) = run.ready().await;
        let shared = run.number("select final_height from chains").await.min(i64::try_from(len).unwrap() - 1);
        let theirs = name(&new[usize::try_from(shared).unwrap()]);
        let ours = run.db.query_one("select hash from blocks where height = $1", &[&shared]).await.unwrap();
        assert!(words.contains(&theirs) && words.contains(&ours.get::<_, String>(0)), "both hashes: {words}");
        let stands: i64 = run.number("select count(*) from balances where amount <> 0").await;
        assert!(stands > 0, "what stood is kept meanwhile");
        run.again(&indexer, &["--allow-reset"]).await;
        run.reach(&new, &what).await;
        run.until_ready(&what).await;
        assert_eq!(run.number("select count(*) from blocks").await, i64::try_from(len).unwrap());
        run.again(&indexer, &[]).await;
        run.until_ready(&what).await;
    }
    let count = run.number("select count(*) from orphaned_blocks").await;
    assert_eq!(count, 300 + 90 + 200, "what was replaced is kept as evidence");
    println!("three resets, {count} blocks replaced");
    run.stop().await;
}

#[tokio::test]
async fn a_swap_near_the_head_is_a_reorganisation() {
    let old = chain(80);
    let indexer = FakeIndexer::start(old.clone()).await;
    let mut run = Run::start(&indexer, &[], &[]).await;
    run.reach(&old, "at the start").await;
    let stem = &old[..60];
    let tail = blocks_from(60, 25, stem.last(), "b", |height| moves(height, 77));
    let new = [stem.to_vec(), tail].concat();
    indexer.set_chain(new.clone());
    run.reach(&new, "swapped at 60").await;
    assert_eq!(run.number("select depth from reorgs").await, 20);
    run.until_ready("swapped at 60").await;
    run.stop().await;
}

#[tokio::test]
async fn a_push_is_followed_without_polling_but_never_believed() {
    let chain = chain(20);
    let indexer = FakeIndexer::start(chain[..10].to_vec()).await;
    let mut run = Run::start(&indexer, &["--source-poll-ms", "3600000"], &[]).await;
    run.reach(&chain[..10], "at the start").await;
    wait_until("it has subscribed", async || (indexer.subscribers() == 1).then_some(())).await;
    // Pushed before it can be asked for, as the real one does. One look may be that of the new connection.
    for _ in 0..3 {
        let asked = indexer.asked().len();
        indexer.push(&chain[10]);
        wait_until("it has looked", async || (indexer.asked().len() > asked).then_some(())).await;
    }
    run.stands_at(&chain[..10], "a push without its block").await;
    indexer.set_chain(chain.clone());
    indexer.push(&chain[19]);
    run.reach(&chain, "pushed").await;
    run.stop().await;
}

#[tokio::test]
async fn an_accepted_loss_is_recorded_and_the_rest_applied() {
    let chain = chain(40);
    let indexer = FakeIndexer::start(chain.clone()).await;
    indexer.fault(Fault::MissingBlock(10));
    indexer.fault(Fault::MissingTx(20, 1));
    let env = [("EBBTIDE_CHAINS__MAIN__INCOMPLETE_AFTER_MS", "200"), ("EBBTIDE_CHAINS__MAIN__SKIP_INCOMPLETE", "true")];
    let mut run = Run::start(&indexer, &[], &env).await;
    let mut left = chain.clone();
    left[10].txs.clear();
    left[20].txs.truncate(1);
    run.reach(&left, "without what is lost").await;
    run.until_ready("without what is lost").await;
    let sql = "select jsonb_agg(jsonb_build_array(height, reason, raw) order by height) from rejected_events
               where projection = 'source'";
    let recorded: Value = run.db.query_one(sql, &[]).await.unwrap().get(0);
    let lost = json!([
        [10, "incomplete_block", {"height": 10, "missing": "block"}],
        [20, "incomplete_block", {"height": 20, "num_txs": 2, "missing": [1]}],
    ]);
    assert_eq!(recorded, lost);
    run.stop().await;
}

#[tokio::test]
async fn names_announced_before_a_restart_are_known_after_it() {
    let announce = |height: u64| match height {
        3 => vec![vec![new_token(GNS, "Gnoswap", "GNS", "6")]],
        30.. => moves(height, 1),
        _ => Vec::new(),
    };
    let chain = blocks_from(0, 40, None, "a", announce);
    let indexer = FakeIndexer::start(chain[..20].to_vec()).await;
    let mut run = Run::start(&indexer, &[], &[]).await;
    run.reach(&chain[..20], "announced").await;
    run.again(&indexer, &[]).await;
    run.until_ready("again").await;
    indexer.set_chain(chain.clone());
    run.reach(&chain, "moved").await;
    let sql = "select name || '/' || symbol || '/' || decimals from token_metadata where token = $1";
    let named = wait_until("it has its name", async || {
        run.db.query_opt(sql, &[&GNS]).await.unwrap().map(|row| row.get::<_, String>(0))
    })
    .await;
    assert_eq!(named, "Gnoswap/GNS/6");
    run.stop().await;
}

#[tokio::test]
async fn bad_events_are_set_aside_and_the_rest_of_their_block_applied() {
    let odd = |height: u64| {
        let mut moves = moves(height, 1);
        if height == 5 {
            moves.push(vec![transfer(WUGNOT, "", "g1nobody", 5), transfer("no token", "", ALICE, 5)]);
        }
        moves
    };
    let chain = blocks_from(0, 12, None, "a", odd);
    let indexer = FakeIndexer::start(chain.clone()).await;
    let mut run = Run::start(&indexer, &["--event", "Approval"], &[]).await;
    let mut good = chain.clone();
    good[5].txs.pop();
    let amounts = wait_until("all is applied", async || {
        let (hash, amounts) = run.standing().await;
        (hash == chain.last().map(name)).then_some(amounts)
    })
    .await;
    assert_eq!(amounts, folded(&good));
    let sql = "select string_agg(reason, ' ' order by tx_index, event_index) from rejected_events where height = 5";
    let reasons: String = run.db.query_one(sql, &[]).await.unwrap().get(0);
    assert_eq!(reasons, "bad_address bad_token");
    run.stop().await;
}

#[tokio::test]
async fn faults_are_outlived() {
    let chain = chain(30);
    let indexer = FakeIndexer::start(chain[..20].to_vec()).await;
    let mut run = Run::start(&indexer, &[], &[]).await;
    run.reach(&chain[..20], "at the start").await;
    run.until_ready("at the start").await;
    let faults = [
        Fault::Http(502, "<html>Bad Gateway</html>"),
        Fault::DropSocket,
        Fault::CutBody,
        Fault::Refused("internal system error"),
        Fault::NothingYet,
    ];
    for (n, fault) in faults.iter().enumerate() {
        let what = format!("{fault:?}");
        indexer.fault(fault.clone());
        indexer.set_chain(chain[..21 + n].to_vec());
        run.until_it_says("127.0.0.1", &what).await;
        run.stands_at(&chain[..20 + n], &what).await;
        indexer.heal();
        run.reach(&chain[..21 + n], &what).await;
        run.until_ready(&what).await;
    }
    // As many blocks as a capped answer holds, and fewer than there are.
    indexer.fault(Fault::Cap(3));
    indexer.set_chain(chain.clone());
    run.reach(&chain, "capped").await;
    println!("{} faults outlived", faults.len() + 1);
    run.stop().await;
}

#[tokio::test]
async fn a_wrong_url_ends_the_start_in_one_message() {
    let indexer = FakeIndexer::start(chain(3)).await;
    let pg = Pg::new().await;
    let url = indexer.playground();
    let mut ebbtide = Ebbtide::spawn(
        &["run", "--source", "gno", "--url", &url, "--database-url", &pg.url, "--listen", "127.0.0.1:0"],
        &[("EBBTIDE_API__OPERATOR_LISTEN", "127.0.0.1:0")],
    );
    let status = ebbtide.wait(Duration::from_secs(20)).await;
    let stderr = ebbtide.stderr().join("\n");
    assert_eq!(status.code(), Some(1), "{stderr}");
    let last = ebbtide.stderr().pop().unwrap();
    assert!(last.contains("web page") && last.contains("/graphql/query"), "{stderr}");
}

#[test]
fn settings_that_cannot_be_used_are_named() {
    let url = "http://127.0.0.1:1/graphql/query";
    let gno = ["run", "--source", "gno", "--database-url", "postgres://nobody@127.0.0.1:1/none"];
    /// Flags, variables, and what the message says.
    type Case<'c> = (&'c [&'c str], &'c [(&'c str, &'c str)], &'c str);
    let cases: [Case<'_>; 10] = [
        (&[], &[], "needs a URL"),
        (&["--url", "127.0.0.1:8546"], &[], "url"),
        (&["--url", url, "--ws-url", "http://x"], &[], "ws_url"),
        (&["--url", url, "--token", "wugnot"], &[], "tokens"),
        (&["--url", url, "--event", "Transfer"], &[], "events"),
        (&["--url", url, "--wrapped-native", "x"], &[], "wrapped_native"),
        (
            &["--url", url],
            &[("EBBTIDE_CHAINS__MAIN__PAGE_BLOCKS", "9001")],
            "page_blocks is 9001: it must be 1 to 9000",
        ),
        (&["--url", url], &[("EBBTIDE_CHAINS__MAIN__CONFIRM_BLOCKS", "1001")], "confirm_blocks is 1001"),
        (&["--url", url], &[("EBBTIDE_CHAINS__MAIN__INCOMPLETE_AFTER_MS", "0")], "incomplete_after_ms is 0"),
        (&["--url", url], &[("EBBTIDE_CHAINS__MAIN__TRUSTED_GRC20_PACKAGES", "x, y")], "trusted_grc20_packages"),
    ];
    let check = |args: &[&str], env: &[(&str, &str)], wanted: &str| {
        let output = Ebbtide::output(args, env);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(wanted), "{wanted:?} is not in: {stderr}");
        assert_eq!(stderr.trim().lines().count(), 1, "one message: {stderr}");
    };
    for (args, env, wanted) in cases {
        check(&[&gno[..], args].concat(), env, wanted);
    }
    let evm = ["run", "--source", "evm", "--url", "http://127.0.0.1:1", "--database-url", "postgres://x@127.0.0.1:1/x"];
    check(&evm, &[("EBBTIDE_CHAINS__MAIN__SKIP_INCOMPLETE", "true")], "skip_incomplete is for source = \"gno\"");
}
