//! Settings that a syncer comes with: none takes effect before the source, the lock and the stored blocks allow it.

use std::time::Duration;

use super::follow::{Run, blocks, folded, spawn};
use crate::support::fake_node::{FakeNode, chain};
use crate::support::{Ebbtide, free_addr, wait_until};

/// All that a syncer may write without bringing a block.
const SETTINGS: &str = "select jsonb_build_object(
        'chains', (select jsonb_agg(to_jsonb(c) - '{writes,head_height,final_height}'::text[] order by name) from chains c),
        'opening', (select count(*) from opening_balances),
        'rejected', (select count(*) from rejected_events),
        'rebuilds', (select count(*) from reorgs))::text";

async fn settings(run: &Run) -> String {
    run.db.query_one(SETTINGS, &[]).await.unwrap().get(0)
}

/// A followed chain of 30 blocks from block 5 on, at rest.
async fn at_rest() -> (FakeNode, Vec<crate::support::fake_node::FakeBlock>, Run) {
    let served = blocks(30);
    let node = FakeNode::start(31337, served.clone()).await;
    let mut run = Run::start(&node, &["--start-height", "5", "--finality-depth", "20"]).await;
    run.reach(&served[5..], "at the start").await;
    run.stop().await;
    (node, served, run)
}

/// Runs `ebbtide sync` against this database; it must refuse, and say so in these words.
async fn refused(run: &Run, args: &[&str], words: &[&str]) {
    let mut all = vec!["sync", "--database-url", &run.pg.url];
    all.extend(args);
    let mut sync = Ebbtide::spawn(&all, &[]);
    let status = sync.wait(Duration::from_secs(30)).await;
    let said = sync.stderr().join("\n");
    assert_eq!(status.code(), Some(1), "{args:?}: {said}");
    assert!(words.iter().all(|word| said.contains(word)), "{args:?}, {words:?}: {said}");
}

#[tokio::test]
async fn a_syncer_that_is_refused_has_changed_nothing() {
    let (node, served, mut run) = at_rest().await;
    let before = settings(&run).await;
    let foreign = FakeNode::start(5, chain(0, 30, None, "foreign", |number| super::follow::logs(number, 9))).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("blocks.ndjson");
    std::fs::write(
        &file,
        "{\"event\":\"opening_balance\",\"token\":\"gold\",\"address\":\"alice\",\"amount\":\"7\"}\n\
         {\"event\":\"block\",\"height\":3,\"hash\":\"f3\",\"parent_hash\":\"f2\",\"events\":[]}\n",
    )
    .unwrap();
    let (url, foreign_url, file) = (node.url(), foreign.url(), file.to_str().unwrap());
    let evm = |url| ["--source", "evm", "--url", url];
    let all = ["--finality-depth", "3", "--start-height", "3"];
    let other = ["--source", "file", "--file", file, "--kind", "other"];
    for allow in [&[][..], &["--allow-reset"]] {
        refused(&run, &[&evm(&foreign_url)[..], &all, allow].concat(), &["network 5", "31337"]).await;
        let words = ["kind other", "kind evm", "drop_chain('main')"];
        refused(&run, &[&other[..], &all, allow].concat(), &words).await;
    }
    for start in ["0", "4", "6", "1000"] {
        let args = [&evm(&url)[..], &["--finality-depth", "3", "--start-height", start]].concat();
        refused(&run, &args, &[&format!("starts at {start}"), "count from 5", "--allow-reset"]).await;
    }
    assert_eq!(settings(&run).await, before);
    // Nor has it anything left to do for the one that is right.
    run.ebbtide = spawn(&node, &run.pg, run.operator, &["--start-height", "5"]);
    run.until_ready("with its own settings").await;
    run.stands_at(&served[5..], "after all that was refused").await;
    assert_eq!(settings(&run).await, before);
    run.stop().await;
}

#[tokio::test]
async fn a_start_that_is_moved_with_leave_is_announced_and_built_again() {
    let (node, served, mut run) = at_rest().await;
    // Higher: what lies below is kept but does not count.
    run.ebbtide = spawn(&node, &run.pg, run.operator, &["--start-height", "9", "--allow-reset"]);
    run.ebbtide.wait_for_line("main starts at 9 from now on, not at 5").await;
    let balances = folded(&served[9..]);
    wait_until("the balances count from 9", async || (run.standing().await.1 == balances).then_some(())).await;
    assert_eq!(run.number("select min(height) from blocks").await, 5);
    // Lower, but not below what is stored; then below it: all of it is read again.
    for (start, archived) in [("6", 0), ("2", 25)] {
        run.again(&node, &["--start-height", start, "--allow-reset"]).await;
        run.ebbtide.wait_for_line(&format!("main starts at {start} from now on")).await;
        let from = start.parse::<usize>().unwrap();
        let balances = folded(&served[from..]);
        wait_until(&format!("the balances count from {start}"), async || {
            (run.standing().await == (Some(served[29].hash.clone()), balances.clone())).then_some(())
        })
        .await;
        run.until_ready("moved").await;
        assert_eq!(run.number("select count(*) from orphaned_blocks").await, archived, "{start}");
    }
    assert_eq!(run.number("select min(height) from blocks").await, 2);
    // Without the word it goes on as it is now.
    run.again(&node, &["--start-height", "2"]).await;
    run.until_ready("as it is now").await;
    run.stands_at(&served[2..], "as it is now").await;
    run.stop().await;
}

#[tokio::test]
async fn a_syncer_that_stands_by_writes_its_settings_when_it_takes_over() {
    let served = blocks(30);
    let node = FakeNode::start(31337, served.clone()).await;
    let mut run = Run::start(&node, &["--finality-depth", "20"]).await;
    run.reach(&served, "at the start").await;
    let before = settings(&run).await;
    let mut second = spawn(&node, &run.pg, free_addr(), &["--finality-depth", "7"]);
    second.wait_for_line("standing by").await;
    run.until_ready("beside one that stands by").await;
    assert_eq!(settings(&run).await, before, "the lock is another's");
    run.ebbtide.kill();
    wait_until("the second one's settings count", async || {
        (run.number("select finality_depth from chains").await == 7).then_some(())
    })
    .await;
    run.ebbtide = second;
    run.stop().await;
}
