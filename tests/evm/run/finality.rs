//! Final is what enough stored blocks stand on, whatever a node says of itself; and final blocks stay.

use std::time::Duration;

use super::branches::stays_unready;
use super::follow::{Run, TOKEN, blocks, folded, forked, spawn, spawn_with};
use crate::support::fake_node::{FakeBlock, FakeNode, Fault};
use crate::support::wait_until;

/// Refused: it is unready, shows both blocks at the lowest height that it compares, and keeps what it has.
async fn refuses(run: &Run, ours: &[FakeBlock], theirs: &[FakeBlock], what: &str) {
    let words = run.until_it_says("--allow-reset", what).await;
    let at = run.number("select least(final_height, (select max(height) from blocks)) from chains").await;
    let at = usize::try_from(at).unwrap();
    for hash in [&ours[at].hash, &theirs[at].hash] {
        assert!(words.contains(hash.as_str()), "{what}: {hash} of block {at} is not named: {words}");
    }
    stays_unready(run).await;
    run.stands_at(ours, what).await;
    assert_eq!(run.number("select count(*) from orphaned_blocks").await, 0, "{what}");
}

#[tokio::test]
async fn a_branch_that_parts_deep_is_refused_in_the_midst_of_a_catch_up() {
    let served = blocks(1_203);
    let node = FakeNode::start(31337, served[..203].to_vec()).await;
    node.fault(Fault::NoFinalized);
    let mut run = Run::start(&node, &[]).await;
    run.reach(&served[..203], "at the start").await;
    assert_eq!(run.number("select final_height from chains").await, 138);
    run.stop().await;
    // The node grows by 1,000 blocks, is read in small ranges, and does not get beyond a block in the midst of them.
    node.set_chain(served.clone());
    node.fault(Fault::MissingBlock(604));
    let small = [("EBBTIDE_CHAINS__MAIN__RANGE_BLOCKS", "30")];
    run.ebbtide = spawn_with(&node, &run.pg, run.operator, &[], &small);
    run.ebbtide.wait_for_line("but not block 604").await;
    let tip = wait_until("it stands before the block that is missing", async || {
        let at = run.number("select coalesce(max(through_height), 0) from checkpoints").await;
        (at > 550 && at == run.number("select max(height) from blocks").await).then_some(at)
    })
    .await;
    let stored = &served[..=usize::try_from(tip).unwrap()];
    run.stands_at(stored, "before the block that is missing").await;
    let final_height = run.number("select final_height from chains").await;
    assert_eq!(final_height, tip - 64, "as much as the stored blocks bear out");
    // Then it is another chain's, from block 6 on.
    let other = forked(&served, 1_203 - 6, 1_200, 1);
    node.heal();
    node.fault(Fault::NoFinalized);
    node.set_chain(other.clone());
    refuses(&run, stored, &other, "amid a catch-up").await;
    run.again(&node, &["--allow-reset"]).await;
    run.reach(&other, "with leave").await;
    run.until_ready("with leave").await;
    run.stop().await;
}

#[tokio::test]
async fn the_first_block_is_final_too_and_blocks_dropped_below_the_final_height_change_nothing() {
    let served = blocks(66);
    let node = FakeNode::start(31337, served.clone()).await;
    let mut run = Run::start(&node, &["--finality-depth", "65"]).await;
    run.reach(&served, "at the start").await;
    assert_eq!(run.number("select final_height from chains").await, 0);
    let other = crate::support::fake_node::chain(0, 70, None, "other", |number| super::follow::logs(number, 5));
    node.set_chain(other.clone());
    refuses(&run, &served, &other, "another first block").await;
    node.set_chain(served.clone());
    run.until_ready("its own chain again").await;
    run.stop().await;
    // A person drops blocks that were final: what is left of them is compared, and read again.
    run.ebbtide = spawn(&node, &run.pg, run.operator, &["--finality-depth", "10"]);
    run.until_ready("more of it is final").await;
    wait_until("more of it is final", async || {
        (run.number("select final_height from chains").await == 55).then_some(())
    })
    .await;
    run.stop().await;
    run.db.query("select drop_blocks('main', 31)", &[]).await.unwrap();
    let archived = run.number("select count(*) from orphaned_blocks").await;
    let parted = forked(&served, 50, 60, 1);
    node.set_chain(parted.clone());
    let mut refused = spawn(&node, &run.pg, run.operator, &["--finality-depth", "10"]);
    assert_eq!(refused.wait(Duration::from_secs(30)).await.code(), Some(1), "at its start there is nothing to keep up");
    let words = refused.stderr().join("\n");
    assert!(words.contains("--allow-reset"), "{words}");
    assert!(words.contains(&served[30].hash) && words.contains(&parted[30].hash), "{words}");
    assert_eq!(run.number("select count(*) from orphaned_blocks").await, archived, "nothing more is replaced");
    node.set_chain(served.clone());
    run.ebbtide = spawn(&node, &run.pg, run.operator, &["--finality-depth", "10"]);
    run.until_ready("its own chain again").await;
    run.reach(&served, "its own chain again").await;
    assert_eq!(run.number("select final_height from chains").await, 55);
    run.stop().await;
}

/// What `final_balances` says of one token in all.
async fn final_sum(run: &Run) -> String {
    let sql = "select coalesce(sum(amount), 0)::text from final_balances where token = $1";
    run.db.query_one(sql, &[&TOKEN]).await.unwrap().get(0)
}

/// What the final height must be for these blocks, and all that follows from it: `final_balances` shows that block, and a
/// reorganisation of one block is an ordinary one.
async fn bears_out(run: &mut Run, node: &FakeNode, served: &[FakeBlock], what: &str) {
    let final_height = served.len() - 1 - 64;
    assert_eq!(run.number("select final_height from chains").await, i64::try_from(final_height).unwrap(), "{what}");
    let balances = folded(&served[..=final_height]);
    let sum: i128 = balances.iter().filter(|(key, _)| key.starts_with(TOKEN)).map(|(_, v)| v).sum();
    assert_eq!(final_sum(run).await, sum.to_string(), "{what}");
    node.heal();
    node.set_chain(served.to_vec());
    run.until_ready(what).await;
    let replaced = forked(served, 1, 2, 7);
    node.set_chain(replaced.clone());
    run.reach(&replaced, what).await;
    run.until_ready(what).await;
    assert_eq!(run.number("select max(depth) from reorgs").await, 1, "{what}");
    let log = run.ebbtide.stderr().join("\n");
    assert!(!log.contains("Rebuilding"), "{what}: {log}");
    run.stop().await;
}

/// Waits until these blocks are applied, though the node claims that there are more.
async fn applied(run: &Run, served: &[FakeBlock], what: &str) {
    let wanted = Some(served.last().unwrap().hash.clone());
    wait_until(what, async || (run.standing().await.0 == wanted).then_some(())).await;
}

#[tokio::test]
async fn one_wrong_head_makes_nothing_final() {
    let served = blocks(206);
    // While it runs: one block is new, and the head is said to be 100,000 above it.
    let node = FakeNode::start(31337, served[..205].to_vec()).await;
    node.fault(Fault::NoFinalized);
    let mut run = Run::start(&node, &[]).await;
    run.reach(&served[..205], "at the start").await;
    run.until_ready("at the start").await;
    node.fault(Fault::HeadAt(100_205));
    node.set_chain(served.clone());
    applied(&run, &served, "the block below the wrong head").await;
    bears_out(&mut run, &node, &served, "a wrong head while it runs").await;
    // On an empty database, and with a tag that says the same.
    for faults in [
        &[Fault::HeadAt(100_205), Fault::NoFinalized][..],
        &[Fault::HeadAt(100_205), Fault::FinalizedAt(100_205)],
        &[Fault::FinalizedAt(100_205)],
    ] {
        let node = FakeNode::start(31337, served.clone()).await;
        faults.iter().for_each(|fault| node.fault(fault.clone()));
        let mut run = Run::start(&node, &[]).await;
        let what = format!("{faults:?} at the start");
        applied(&run, &served, &what).await;
        bears_out(&mut run, &node, &served, &what).await;
    }
}

#[tokio::test]
async fn a_node_below_the_final_height_is_not_ready_at_once() {
    let served = blocks(120);
    let node = FakeNode::start(31337, served.clone()).await;
    let mut run = Run::start(&node, &[]).await;
    run.reach(&served, "at the start").await;
    run.until_ready("at the start").await;
    assert_eq!(run.number("select final_height from chains").await, 55);
    node.set_chain(served[..50].to_vec());
    let words = run.until_it_says("newest block is 49, below 55, which is final", "a node far behind").await;
    assert!(!words.contains("--allow-reset"), "its blocks are ours: {words}");
    tokio::time::timeout(Duration::from_secs(5), stays_unready(&run)).await.unwrap();
    run.stands_at(&served, "a node far behind").await;
    node.set_chain(served.clone());
    run.until_ready("it has caught up").await;
    assert_eq!(run.number("select count(*) from orphaned_blocks").await, 0);
    run.stop().await;
}
