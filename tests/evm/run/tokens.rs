//! Tokens that do not answer: anybody can make one, and nobody waits for it.

use std::time::{Duration, Instant};

use crate::run::follow::{ALICE, Run, blocks, forked, spawn_with};
use crate::support::fake_node::{FakeBlock, FakeNode, Fault, chain, transfer};
use crate::support::{Pg, free_addr, wait_until};

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

/// The question for names does not take the only request that blocks may have.
#[tokio::test]
async fn with_one_request_at_once_blocks_do_not_wait_for_tokens() {
    let tokens: Vec<String> = (1..=50).map(|n| format!("0x{n:040x}")).collect();
    let logs = |factor: u128| {
        let logs = (0..).zip(&tokens).map(|(index, token)| transfer(token, ALICE, ALICE, factor, index));
        logs.collect::<Vec<_>>()
    };
    let mut served = chain(0, 10, None, "a", |_| logs(1));
    let node = FakeNode::start(31337, served.clone()).await;
    node.fault(Fault::HangOn("eth_call"));
    let (pg, operator) = (Pg::new().await, free_addr());
    let timeout = Duration::from_secs(30);
    let env = [
        ("EBBTIDE_CHAINS__MAIN__CONCURRENCY", "1"),
        ("EBBTIDE_CHAINS__MAIN__REQUEST_TIMEOUT_MS", &timeout.as_millis().to_string()),
    ];
    let ebbtide = spawn_with(&node, &pg, operator, &[], &env);
    let mut run = Run { db: pg.client().await, pg, ebbtide, operator };
    run.reach(&served, "at the start").await;
    wait_until("the tokens are asked", async || (node.call_count("eth_call") > 0).then_some(())).await;
    let begun = Instant::now();
    for round in 0..8u128 {
        let stem: &[FakeBlock] = &served[..served.len() - 1];
        let new = chain(stem.len() as u64, 2, stem.last(), &format!("branch {round}"), |_| logs(2 + round));
        served = [stem, &new].concat();
        node.set_chain(served.clone());
        run.reach(&served, "beside the question").await;
    }
    assert!(begun.elapsed() < timeout, "8 forks took {:?}, as long as a token may take to answer", begun.elapsed());
    assert_eq!(run.number("select count(*) from token_metadata").await, 0);
    run.stop().await;
}
