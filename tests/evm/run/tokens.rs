//! Tokens that do not answer: anybody can make one, and nobody waits for it.

use crate::run::follow::{Run, blocks, forked};
use crate::support::fake_node::{FakeNode, Fault};
use crate::support::wait_until;

#[tokio::test]
async fn a_token_that_does_not_say_its_name_holds_up_no_block() {
    let served = blocks(30);
    let node = FakeNode::start(31337, served.clone()).await;
    node.fault(Fault::HangOn("eth_call"));
    let mut run = Run::start(&node, &[]).await;
    run.reach(&served, "at the start").await;
    let mut tip = served;
    for round in 0..8 {
        tip = forked(&tip, 1, 2, round);
        node.set_chain(tip.clone());
        run.reach(&tip, "beside the question").await;
    }
    // All of that took less than the one question may.
    assert_eq!(run.number("select count(*) from token_metadata").await, 0);
    let warned = run.ebbtide.stderr().iter().filter(|line| line.contains("metadata could not be read")).count();
    assert!(warned <= 1, "{warned} questions were given up");
    // Once it answers it is asked again, when it moves.
    node.heal();
    let mut salt = 100;
    wait_until("both tokens are described", async || {
        salt += 1;
        tip = forked(&tip, 0, 1, salt);
        node.set_chain(tip.clone());
        run.reach(&tip, "while it answers").await;
        (run.number("select count(*) from token_metadata").await == 2).then_some(())
    })
    .await;
    run.stop().await;
}
