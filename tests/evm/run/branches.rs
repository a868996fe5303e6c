//! Branches that come and go, heads that lag, chains that are another one.

use std::time::Duration;

use super::follow::{ALICE, BOB, Run, TOKEN, blocks, folded, forked};

use crate::support::fake_node::{FakeNode, Fault, chain, transfer};
use crate::support::wait_until;

/// Lets the program look a few times.
async fn some_looks(node: &FakeNode) {
    let before = node.request_count();
    wait_until("the program has looked again", async || (node.request_count() >= before + 6).then_some(())).await;
}

#[tokio::test]
async fn a_branch_that_changes_between_any_two_requests_is_followed() {
    let mut served = blocks(100);
    let node = FakeNode::start(31337, served.clone()).await;
    let mut run = Run::start(&node, &["--finality-depth", "90"]).await;
    run.reach(&served, "at the start").await;
    let mut salt = 0;
    for depth in [1, 3, 12, 40] {
        for requests in 0..6 {
            // First one branch, and amid its being read another.
            let first = forked(&served, depth, depth as u64 + 1, salt);
            let second = forked(&served, depth + 2, depth as u64 + 3, salt + 1);
            salt += 2;
            node.set_chain_after(requests, second.clone());
            node.set_chain(first);
            run.reach(&second, &format!("depth {depth}, other branch after {requests} more requests")).await;
            served = second;
        }
    }
    let reorgs = run.number("select count(*) from reorgs").await;
    println!("24 branches replaced amid being read; {reorgs} reorgs");
    assert!(reorgs >= 24);
    run.stop().await;
}

#[tokio::test]
async fn a_branch_that_returns_is_right_again() {
    let a = blocks(60);
    let b = forked(&a, 10, 11, 1);
    let a_longer = [a.clone(), chain(60, 2, a.last(), "a goes on", |n| super::follow::logs(n, 1))].concat();
    let b_longer = forked(&b, 0, 3, 2);
    let node = FakeNode::start(31337, a.clone()).await;
    let mut run = Run::start(&node, &[]).await;
    for (name, served) in [("A", &a), ("B", &b), ("A longer", &a_longer), ("B longer", &b_longer), ("A", &a_longer)] {
        node.set_chain(served.clone());
        run.reach(served, name).await;
    }
    assert_eq!(run.number("select count(*) from reorgs").await, 4);
    run.stop().await;
}

#[tokio::test]
async fn a_node_that_lags_takes_nothing_away() {
    let served = blocks(60);
    let node = FakeNode::start(31337, served.clone()).await;
    let mut run = Run::start(&node, &[]).await;
    run.reach(&served, "at the start").await;
    for behind in [1, 5, 30, 59] {
        let what = format!("{behind} blocks behind");
        node.set_chain(served[..60 - behind].to_vec());
        some_looks(&node).await;
        run.stands_at(&served, &what).await;
        assert_eq!(run.number("select max(height) from blocks").await, 59, "{what}");
        node.fault(Fault::WrongBlock);
        node.set_chain(served.clone());
        some_looks(&node).await;
        run.stands_at(&served, &format!("{what}, then the block below each")).await;
        node.heal();
    }
    assert_eq!(run.number("select count(*) from orphaned_blocks").await, 0);
    assert_eq!(run.number("select count(*) from reorgs").await, 0);
    let longer = forked(&served, 0, 2, 1);
    node.set_chain(longer.clone());
    run.reach(&longer, "when it has caught up").await;
    run.stop().await;
}

#[tokio::test]
async fn a_hundred_blocks_after_a_silence_and_a_quiet_subscription_are_caught_up_with() {
    let served = blocks(120);
    let node = FakeNode::start(31337, served[..20].to_vec()).await;
    let ws = node.ws_url();
    let mut run = Run::start(&node, &["--ws-url", &ws, "--source-poll-ms", "300"]).await;
    run.reach(&served[..20], "at the start").await;
    wait_until("the subscription stands", async || (node.subscribers() > 0).then_some(())).await;
    node.set_chain_quietly(served.clone());
    run.reach(&served, "a hundred blocks, and no ring").await;
    assert_eq!(run.number("select count(*) from reorgs").await, 0, "nothing was replaced");
    node.hang_up();
    let replaced = forked(&served, 7, 9, 1);
    node.set_chain_quietly(replaced.clone());
    run.reach(&replaced, "a reorg after the subscription was closed").await;
    run.stop().await;
}

#[tokio::test]
async fn a_reorg_found_after_a_silence_is_undone_once_though_what_replaced_it_is_final_by_then() {
    let served = blocks(20);
    let node = FakeNode::start(31337, served.clone()).await;
    let mut run = Run::start(&node, &["--finality-depth", "30"]).await;
    run.reach(&served, "at the start").await;
    // The journal of the blocks below the ancestor is still there, and those above it are final at once.
    let far = forked(&served, 5, 105, 1);
    node.set_chain(far.clone());
    run.reach(&far, "five blocks replaced, a hundred more").await;
    assert_eq!(run.number("select count(*) from reorgs").await, 1);
    // The same above a final height, and from there on.
    let farther = forked(&far, 29, 300, 2);
    node.set_chain(farther.clone());
    run.reach(&farther, "and once more").await;
    assert_eq!(run.number("select count(*) from reorgs").await, 2);
    let last = forked(&farther, 3, 4, 3);
    node.set_chain(last.clone());
    run.reach(&last, "a small one").await;
    assert_eq!(run.number("select count(*) from reorgs").await, 3);
    run.stop().await;
}

#[tokio::test]
async fn a_node_that_calls_its_head_final_may_still_replace_it() {
    let served = blocks(60);
    let node = FakeNode::start(31337, served.clone()).await;
    node.set_finalized(None);
    let mut run = Run::start(&node, &["--finality-depth", "20"]).await;
    run.reach(&served, "at the start").await;
    assert_eq!(run.number("select final_height from chains").await, 39, "60 blocks, 20 of them not final");
    let replaced = forked(&served, 20, 21, 1);
    node.set_chain(replaced.clone());
    run.reach(&replaced, "20 blocks that it had called final").await;
    run.stop().await;
}

#[tokio::test]
async fn log_indexes_near_2_to_the_32_are_taken() {
    let served = chain(0, 5, None, "a", |number| {
        let mut low = transfer(TOKEN, ALICE, BOB, 5 + u128::from(number), 0);
        low["log_index"] = 3.into();
        let mut high = transfer(TOKEN, BOB, ALICE, 1, 1);
        high["log_index"] = 4_294_967_266_u64.into();
        vec![low, high]
    });
    let node = FakeNode::start(31337, served.clone()).await;
    let mut run = Run::start(&node, &[]).await;
    run.reach(&served, "high indexes").await;
    assert_eq!(run.number("select count(*) from token_events where event_index = 4294967266").await, 5);
    run.stop().await;
}

#[tokio::test]
async fn another_network_behind_the_url_stops_it_loudly() {
    let served = blocks(30);
    let node = FakeNode::start(31337, served.clone()).await;
    let mut run = Run::start(&node, &[]).await;
    run.reach(&served, "at the start").await;
    // While it runs: nothing of the other network is taken, whatever it was about to ask, and it says so.
    let foreign = chain(0, 50, None, "foreign", |number| super::follow::logs(number, 9));
    for time in 0..3 {
        // At another moment between two looks each time.
        tokio::time::sleep(Duration::from_millis(17 * time)).await;
        node.set_chain_id(5);
        node.set_chain(foreign.clone());
        run.until_it_says("chain 5, expected 31337", "another network").await;
        stays_unready(&run).await;
        run.stands_at(&served, "another network").await;
        if time < 2 {
            node.set_chain(served.clone());
            node.set_chain_id(31337);
            run.until_ready("its own network again").await;
        }
    }
    run.stop().await;
    // And at the next start it ends at once.
    let mut again = super::follow::spawn(&node, &run.pg, run.operator, &[]);
    let status = again.wait(Duration::from_secs(20)).await;
    assert_eq!(status.code(), Some(1));
    let said = again.stderr().join("\n");
    assert!(said.contains("31337") && said.contains("network 5"), "{said}");
    run.stands_at(&served, "after the start on another network").await;
    assert_eq!(run.number("select count(*) from orphaned_blocks").await, 0);
}

/// It stays unready for a while.
pub async fn stays_unready(run: &Run) {
    for _ in 0..5 {
        assert!(!run.ready().await.0);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_reorg_below_the_final_height_is_refused_until_it_is_allowed() {
    let served = blocks(60);
    let node = FakeNode::start(31337, served.clone()).await;
    let depth = ["--finality-depth", "5"];
    let mut run = Run::start(&node, &depth).await;
    run.reach(&served, "at the start").await;
    run.until_ready("at the start").await;
    assert_eq!(run.number("select final_height from chains").await, 54);
    let replaced = forked(&served, 20, 22, 1);
    node.set_chain(replaced.clone());
    let words = run.until_it_says("--allow-reset", "a reorg below the final height").await;
    for hash in [&served[54].hash, &replaced[54].hash] {
        assert!(words.contains(hash.as_str()), "{hash} is not named: {words}");
    }
    stays_unready(&run).await;
    run.stands_at(&served, "refused").await;
    // With the word it is followed, and everything is rebuilt upon it.
    run.again(&node, &["--finality-depth", "5", "--allow-reset"]).await;
    run.reach(&replaced, "allowed").await;
    run.until_ready("allowed").await;
    let final_height = run.number("select final_height from chains").await;
    assert_eq!(final_height, 61 - 5, "from the new head");
    assert_eq!(run.number("select count(*) from orphaned_blocks").await, 20, "kept as evidence");
    // And at a height of the past, too.
    let sql = "select coalesce(sum(amount), 0)::text from balances_at('main', 30) where token = $1";
    let sum: String = run.db.query_one(sql, &[&TOKEN]).await.unwrap().get(0);
    let expected: i128 = folded(&replaced[..31]).iter().filter(|(key, _)| key.starts_with(TOKEN)).map(|(_, v)| v).sum();
    assert_eq!(sum, expected.to_string());
    run.stop().await;
}
