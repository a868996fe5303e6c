//! The EVM source against a node that serves real HTTP and misbehaves in every way we know.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs, reason = "a test fails by panicking")]

mod support;

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use ebbtide::chain::{Block, BlockRef, Hash, Height};
use ebbtide::sources::evm::decode::{DecodeSettings, Decoder};
use ebbtide::sources::evm::{EvmSettings, EvmSource};
use ebbtide::sources::{FaultKind, Source, SourceError};
use serde_json::json;
use support::fake_node::{FakeBlock, FakeNode, Fault, chain, data_lines, data_text, follow, transfer};

const TOKEN: &str = "0x1111111111111111111111111111111111111111";
const OTHER: &str = "0x2222222222222222222222222222222222222222";
const ALICE: &str = "0xaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const BOB: &str = "0xbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

fn settings(nodes: &[&FakeNode]) -> EvmSettings {
    EvmSettings {
        urls: nodes.iter().map(|node| node.url()).collect(),
        request_timeout: Duration::from_secs(10),
        ..EvmSettings::default()
    }
}

/// For nodes that hang.
fn impatient(nodes: &[&FakeNode]) -> EvmSettings {
    EvmSettings { request_timeout: Duration::from_millis(500), ..settings(nodes) }
}

fn source(nodes: &[&FakeNode]) -> EvmSource {
    EvmSource::new(settings(nodes)).unwrap()
}

/// A source that already knows how high the chain is, so that old blocks are read by range.
async fn following(nodes: &[&FakeNode], tokens: &[&str]) -> EvmSource {
    let tokens = tokens.iter().map(|t| (*t).to_owned()).collect();
    let source = EvmSource::new(EvmSettings { tokens, ..settings(nodes) }).unwrap();
    source.head().await.unwrap();
    source
}

fn height(n: u64) -> Height {
    Height::new(n).unwrap()
}

fn range(from: u64, to: u64) -> RangeInclusive<Height> {
    height(from)..=height(to)
}

fn block_ref(block: &FakeBlock) -> BlockRef {
    BlockRef { height: height(block.number), hash: Hash::new(block.hash.as_str()) }
}

/// Every third block holds two transfers of `TOKEN` and one of `OTHER`.
fn lively(len: u64, salt: &str) -> Vec<FakeBlock> {
    chain(0, len, None, salt, some_logs)
}

fn some_logs(number: u64) -> Vec<serde_json::Value> {
    if !number.is_multiple_of(3) {
        return Vec::new();
    }
    let amount = u128::from(number) + 1;
    vec![
        transfer(TOKEN, ALICE, BOB, amount, 0),
        transfer(OTHER, BOB, ALICE, amount, 1),
        transfer(TOKEN, BOB, ALICE, 2 * amount, 2),
    ]
}

/// What the blocks hold, decoded without any node between.
fn expected(blocks: &[FakeBlock], tokens: &[&str]) -> Vec<Block> {
    let tokens = tokens.iter().map(|t| (*t).to_owned()).collect();
    let decoder = Decoder::new(&DecodeSettings { tokens, ..DecodeSettings::default() }, Some(31337)).unwrap();
    let decoded = blocks.iter().map(|block| {
        let decoded = decoder.decode(serde_json::from_value(json!(block.logs)).unwrap());
        Block {
            link: ebbtide::chain::Link {
                height: height(block.number),
                hash: Hash::new(block.hash.as_str()),
                parent_hash: Hash::new(block.parent_hash.as_str()),
            },
            time: jiff::Timestamp::from_second(block.timestamp as i64).ok(),
            transactions: decoded.transactions,
            token_events: decoded.token_events,
            events: decoded.events,
            rejects: decoded.rejects,
        }
    });
    decoded.collect()
}

/// Reads a range as a syncer would: what is too large is halved, what was left out is asked for again.
async fn read_all(source: &EvmSource, from: u64, to: u64) -> Vec<Block> {
    let (mut at, mut size, mut blocks) = (from, to - from + 1, Vec::new());
    while at <= to {
        match source.blocks(range(at, (at + size - 1).min(to))).await {
            Ok(more) => {
                at = more.last().unwrap().link.height.get() + 1;
                blocks.extend(more);
            }
            Err(SourceError::RangeTooLarge { at_most, .. }) => {
                let smaller = at_most.unwrap_or(size / 2);
                assert!(smaller >= 1 && smaller < size, "{smaller} is no way down from {size}");
                size = smaller;
            }
            Err(error) => panic!("{error}"),
        }
    }
    blocks
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_chain_is_read_block_for_block() {
    let blocks = lively(300, "a");
    let node = FakeNode::start(31337, blocks.clone()).await;
    node.set_finalized(Some(200));
    let source = following(&[&node], &[]).await;
    let identity = source.identify().await.unwrap();
    assert_eq!(identity.network_id.as_deref(), Some("31337"));
    let head = source.head().await.unwrap();
    assert_eq!((head.block, head.finalized, head.truth), (block_ref(&blocks[299]), Some(height(200)), false));
    let before = node.request_count();
    assert_eq!(read_all(&source, 0, 299).await, expected(&blocks, &[]));
    println!("300 blocks in {} requests", node.request_count() - before);
    assert!(node.request_count() - before < 12);
    let links = source.links(range(290, 310)).await.unwrap();
    assert_eq!(links.len(), 10, "heights above the head are left out");
    assert_eq!(links[9].block_ref(), block_ref(&blocks[299]));
    assert!(source.links(range(400, 410)).await.unwrap().is_empty());
}

#[tokio::test]
async fn listed_tokens_alone_are_asked_for() {
    let blocks = lively(150, "a");
    let node = FakeNode::start(31337, blocks.clone()).await;
    let source = following(&[&node], &[OTHER]).await;
    let read = read_all(&source, 0, 149).await;
    assert_eq!(read, expected(&blocks, &[OTHER]));
    assert_eq!(read.iter().map(|b| b.token_events.len()).sum::<usize>(), 50);
}

#[tokio::test]
async fn recorded_runs_come_through_the_wire_unchanged() {
    for (file, chain_id) in
        [("ethereum/run-17686110-17686132/blocks.ndjson.gz", 1), ("anvil/erc20-depth-64.feed.ndjson.gz", 31337)]
    {
        let Some(lines) = data_lines(file) else { return };
        let mut blocks = Vec::new();
        lines.iter().for_each(|line| follow(&mut blocks, line));
        let node = FakeNode::start(chain_id, blocks.clone()).await;
        let source = following(&[&node], &[]).await;
        let (first, last) = (blocks[0].number, blocks.last().unwrap().number);
        let read = read_all(&source, first, last).await;
        let decoder = Decoder::new(&DecodeSettings::default(), Some(chain_id)).unwrap();
        let mut movements = 0;
        for (read, block) in read.iter().zip(&blocks) {
            let decoded = decoder.decode(serde_json::from_value(json!(block.logs)).unwrap());
            assert_eq!(read.token_events, decoded.token_events, "block {}", block.number);
            assert_eq!(read.transactions, decoded.transactions);
            movements += read.token_events.len();
        }
        println!("{file}: {} blocks, {movements} movements", read.len());
        assert_eq!(read.len(), blocks.len());
    }
}

#[tokio::test]
async fn a_recorded_feed_with_every_reorg_is_followed() {
    let Some(feed) = data_lines("anvil/erc20-depth-1-10.feed.ndjson.gz") else { return };
    let info: serde_json::Value = serde_json::from_str(&data_text("anvil/erc20-depth-1-10.run.json").unwrap()).unwrap();
    let tokens: Vec<&str> = info["tokens"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    let node = FakeNode::start(31337, vec![FakeBlock::from_json(&feed[0])]).await;
    let source = following(&[&node], &tokens).await;
    let (mut theirs, mut ours) = (Vec::new(), Vec::<Block>::new());
    let (mut reorgs, mut steps) = (0, 0);
    for line in &feed {
        follow(&mut theirs, line);
        node.set_chain(theirs.clone());
        let head = source.head().await.unwrap();
        // The smallest syncer: walk down to what both share, drop the rest, read up again.
        let mut shared = ours.len().min(head.block.height.get() as usize + 1);
        let links = source.links(range(shared.saturating_sub(80) as u64, head.block.height.get())).await.unwrap();
        let same =
            |ours: &Block| links.contains(&ours.link) || links.first().is_some_and(|l| ours.link.height < l.height);
        while shared > 0 && !same(&ours[shared - 1]) {
            shared -= 1;
        }
        reorgs += usize::from(shared < ours.len());
        ours.truncate(shared);
        if head.block.height.get() >= shared as u64 {
            ours.extend(source.blocks(range(shared as u64, head.block.height.get())).await.unwrap());
        }
        assert_eq!(ours.last().unwrap().link.block_ref(), head.block);
        steps += 1;
    }
    assert_eq!(ours, expected(&theirs, &tokens));
    println!("{steps} steps, {reorgs} reorgs, {} requests", node.request_count());
    assert_eq!(reorgs, 132 + 23);
}

#[tokio::test]
async fn faults_that_may_pass_are_transient_and_nothing_is_believed() {
    let blocks = lively(120, "a");
    let node = FakeNode::start(31337, blocks.clone()).await;
    let source = EvmSource::new(impatient(&[&node])).unwrap();
    source.head().await.unwrap();
    for fault in [
        Fault::NullAnswers,
        Fault::ContradictedAnswers,
        Fault::MissingAnswer,
        Fault::WrongIds,
        Fault::Refused(-32005, "limit exceeded"),
        Fault::Refused(-32603, "internal error"),
        Fault::BatchRefused(-32005, "too many requests"),
        Fault::Http(429, "Too Many Requests"),
        Fault::Http(502, "<html>Bad Gateway</html>"),
        Fault::Http(503, ""),
        Fault::Http(504, "<html>Timeout</html>"),
        Fault::Body(""),
        Fault::Body("{\"jsonrpc\":\"2.0\",\"id\":1"),
        Fault::Body("[]"),
        Fault::Body("[null]"),
        Fault::Body("[1,2,3]"),
        Fault::Body("null"),
        Fault::Body("{\"message\":\"no\"}"),
        Fault::Body("ok"),
        Fault::Hang,
        Fault::CutBody,
        Fault::DropSocket,
        Fault::WrongBlock,
    ] {
        node.fault(fault.clone());
        let before = node.request_count();
        for error in [
            source.blocks(range(0, 119)).await.unwrap_err(),
            source.blocks(range(118, 119)).await.unwrap_err(),
            source.links(range(100, 119)).await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), FaultKind::Transient, "{fault:?}: {error}");
            assert!(error.to_string().starts_with("http://127.0.0.1:"), "{error}");
            assert!(!error.to_string().contains("SECRET"), "{error}");
        }
        // Whoever calls paces; a call in trouble must not make more requests than one in health.
        let requests = node.request_count() - before;
        assert!(requests <= 12, "{fault:?}: {requests} requests for three calls");
        if !matches!(fault, Fault::WrongBlock) {
            assert_eq!(source.head().await.unwrap_err().kind(), FaultKind::Transient, "{fault:?}");
        }
        node.heal();
        assert_eq!(source.head().await.unwrap().block, block_ref(&blocks[119]), "{fault:?}");
        assert_eq!(read_all(&source, 0, 119).await, expected(&blocks, &[]), "{fault:?}");
    }
}

#[tokio::test]
async fn unusual_but_right_answers_are_taken() {
    let blocks = lively(120, "a");
    let node = FakeNode::start(31337, blocks.clone()).await;
    for fault in [Fault::DoubledAnswers, Fault::ReversedAnswers, Fault::DoubledLogs, Fault::NoFinalized] {
        node.fault(fault.clone());
        let source = following(&[&node], &[]).await;
        assert_eq!(read_all(&source, 0, 119).await, expected(&blocks, &[]), "{fault:?}");
        let finalized = source.head().await.unwrap().finalized;
        assert_eq!(finalized.is_none(), matches!(fault, Fault::NoFinalized), "{fault:?}");
        node.heal();
    }
    // A node that stops naming the final block does not make more blocks final than it had named.
    let source = following(&[&node], &[]).await;
    node.set_finalized(Some(40));
    assert_eq!(source.head().await.unwrap().finalized, Some(height(40)));
    node.fault(Fault::NoFinalized);
    assert_eq!(source.head().await.unwrap().finalized, Some(height(40)));
    node.heal();
    node.set_finalized(None);
    // Some nodes call their head final: that is passed on, and capped at the head.
    let head = following(&[&node], &[]).await.head().await.unwrap();
    assert_eq!(head.finalized, Some(head.block.height));
}

#[tokio::test]
async fn nodes_that_refuse_batches_are_asked_one_by_one() {
    let blocks = lively(120, "a");
    for fault in [
        Fault::LargestBatch(1),
        Fault::LargestBatch(3),
        Fault::BatchRefused(-32600, "invalid request"),
        Fault::BatchRefused(-32603, "internal error"),
        Fault::BatchRefused(-32600, "batch requests are not supported"),
        Fault::BatchRefused(-32000, "Batch of more than 3 requests are not allowed on free tier"),
    ] {
        let node = FakeNode::start(31337, blocks.clone()).await;
        node.fault(fault.clone());
        let source = source(&[&node]);
        let mut tries = 0;
        while source.head().await.is_err() {
            tries += 1;
            assert!(tries < 3, "{fault:?}");
        }
        let wanted = expected(&blocks, &[]);
        let read = read_all(&source, 0, 119).await;
        assert_eq!(read, wanted, "{fault:?}");
    }
}

#[tokio::test]
async fn retry_after_is_passed_on() {
    let node = FakeNode::start(31337, lively(3, "a")).await;
    let source = following(&[&node], &[]).await;
    for (seconds, patience) in [(7, 7), (1_000_000, 300)] {
        node.fault(Fault::RetryAfter(seconds));
        let Err(SourceError::Transient { retry_after, .. }) = source.head().await else { panic!("not transient") };
        assert_eq!(retry_after, Some(Duration::from_secs(patience)));
        node.heal();
    }
}

#[tokio::test]
async fn a_web_page_and_a_closed_door_are_permanent() {
    let node = FakeNode::start(31337, lively(3, "a")).await;
    for fault in [
        Fault::Body("<!DOCTYPE html><html>hello</html>"),
        Fault::Http(404, "not here"),
        Fault::Http(401, "who are you"),
        Fault::Http(403, "{\"error\":\"forbidden\"}"),
        Fault::Refused(-32601, "the method eth_chainId does not exist/is not available"),
        Fault::BatchRefused(-32000, "invalid api key"),
        Fault::Refused(-32000, "Unauthorized"),
    ] {
        let source = following(&[&node], &[]).await;
        node.fault(fault.clone());
        let error = source.head().await.unwrap_err();
        assert_eq!(error.kind(), FaultKind::Permanent, "{fault:?}: {error}");
        assert!(error.to_string().contains("http://127.0.0.1:") && !error.to_string().contains("SECRET"), "{error}");
        node.heal();
        source.head().await.unwrap();
    }
    let nobody = EvmSettings { urls: vec!["http://127.0.0.1:1/".into()], ..EvmSettings::default() };
    let error = EvmSource::new(nobody).unwrap().head().await.unwrap_err();
    assert_eq!(error.kind(), FaultKind::Transient);
    assert!(error.to_string().to_lowercase().contains("refused"), "{error}");
}

#[tokio::test]
async fn ranges_that_are_too_large_are_said_to_be() {
    let blocks = lively(1_200, "a");
    let node = FakeNode::start(31337, blocks.clone()).await;
    let source = following(&[&node], &[]).await;
    for (fault, wanted) in [
        (Fault::MaxRange(1000, "query exceeds max block range 1000"), Some(1000)),
        (Fault::MaxRange(10, "eth_getLogs is limited to a 10 blocks range"), Some(10)),
        (Fault::MaxRange(10, "Block range is too large"), None),
        (Fault::MaxLogs(100, "query returned more than 100 results"), None),
        (Fault::MaxLogs(100, "Log response size exceeded. This block range should work: [0x0, 0x31]"), Some(50)),
        (Fault::MaxLogs(100, "query timeout exceeded"), None),
    ] {
        node.fault(fault.clone());
        match source.blocks(range(0, 1_099)).await {
            Err(SourceError::RangeTooLarge { at_most, .. }) => assert_eq!(at_most, wanted, "{fault:?}"),
            other => panic!("{fault:?}: {other:?}"),
        }
        assert_eq!(read_all(&source, 0, 1_199).await, expected(&blocks, &[]), "{fault:?}");
        node.heal();
    }
}

#[tokio::test]
async fn a_bare_limit_is_first_taken_for_a_limit_of_requests() {
    let node = FakeNode::start(31337, lively(300, "a")).await;
    let source = following(&[&node], &[]).await;
    node.fault(Fault::MaxRange(50, "limit exceeded"));
    assert_eq!(source.blocks(range(0, 99)).await.unwrap_err().kind(), FaultKind::Transient);
    assert_eq!(source.blocks(range(0, 99)).await.unwrap_err().kind(), FaultKind::RangeTooLarge);
    assert_eq!(source.blocks(range(0, 49)).await.unwrap().len(), 50);
}

#[tokio::test]
async fn an_answer_beyond_the_body_limit_is_a_range_too_large() {
    let many = |number: u64| (0..20).map(|i| transfer(TOKEN, ALICE, BOB, u128::from(number), i)).collect();
    let blocks = chain(0, 200, None, "a", many);
    let node = FakeNode::start(31337, blocks.clone()).await;
    let source = EvmSource::new(EvmSettings { body_limit: 64 << 10, ..settings(&[&node]) }).unwrap();
    source.head().await.unwrap();
    assert_eq!(source.blocks(range(0, 99)).await.unwrap_err().kind(), FaultKind::RangeTooLarge);
    assert_eq!(read_all(&source, 0, 199).await, expected(&blocks, &[]));
}

#[tokio::test]
async fn a_block_that_the_head_names_may_still_be_missing() {
    let blocks = lively(100, "a");
    let node = FakeNode::start(31337, blocks.clone()).await;
    let source = following(&[&node], &[]).await;
    node.fault(Fault::MissingBlock(99));
    assert_eq!(source.head().await.unwrap().block, block_ref(&blocks[99]));
    assert_eq!(source.blocks(range(99, 99)).await.unwrap_err().kind(), FaultKind::Transient);
    assert_eq!(source.blocks(range(95, 99)).await.unwrap(), expected(&blocks[95..99], &[]), "the part that is there");
    assert_eq!(source.links(range(95, 99)).await.unwrap().len(), 4);
    node.heal();
    node.fault(Fault::MissingBlock(97));
    assert_eq!(source.links(range(95, 99)).await.unwrap_err().kind(), FaultKind::Transient, "a hole");
    node.heal();
    assert_eq!(source.blocks(range(99, 99)).await.unwrap(), expected(&blocks[99..], &[]));
}

#[tokio::test]
async fn a_reorg_between_two_calls_is_noticed() {
    let old = lively(200, "old");
    let fork = chain(100, 100, Some(&old[99]), "new", some_logs);
    let new: Vec<FakeBlock> = old[..100].iter().cloned().chain(fork).collect();
    for requests in 1..4 {
        for heights in [range(60, 199), range(90, 135), range(150, 180), range(198, 199)] {
            let node = FakeNode::start(31337, old.clone()).await;
            let source = following(&[&node], &[]).await;
            node.set_chain_after(requests - 1, new.clone());
            match source.blocks(heights.clone()).await {
                // Read before or after, but never half of each.
                Ok(read) => {
                    let first = heights.start().get() as usize;
                    let (old, new) = (&old[first..first + read.len()], &new[first..first + read.len()]);
                    assert!(read == expected(old, &[]) || read == expected(new, &[]), "{heights:?} after {requests}");
                }
                Err(error) => {
                    assert!(matches!(error.kind(), FaultKind::Changed | FaultKind::Transient), "{error}");
                }
            }
            let last = source.head().await.unwrap().block.height;
            assert_eq!(read_all(&source, 0, last.get()).await, expected(&new, &[]));
        }
    }
}

#[tokio::test]
async fn logs_asked_for_by_an_orphaned_hash_are_a_change_and_not_an_empty_block() {
    let old = lively(10, "old");
    let new: Vec<FakeBlock> =
        old[..9].iter().cloned().chain(chain(9, 1, Some(&old[8]), "new", |_| Vec::new())).collect();
    let node = FakeNode::start(31337, old).await;
    let source = following(&[&node], &[]).await;
    node.set_chain_after(1, new.clone());
    assert_eq!(source.blocks(range(9, 9)).await.unwrap_err().kind(), FaultKind::Changed);
    assert_eq!(source.blocks(range(9, 9)).await.unwrap(), expected(&new[9..], &[]));
}

#[tokio::test]
async fn answers_that_contradict_themselves_are_not_believed() {
    let blocks = lively(200, "a");
    let node = FakeNode::start(31337, blocks.clone()).await;
    let source = following(&[&node], &[TOKEN]).await;
    for (fault, old, near) in [
        (Fault::TwoHashes, Some(FaultKind::Changed), None),
        (Fault::ContradictedLogs, Some(FaultKind::Transient), Some(FaultKind::Transient)),
        (Fault::StrayLog, Some(FaultKind::Transient), Some(FaultKind::Transient)),
    ] {
        node.fault(fault.clone());
        for (heights, wanted) in [(range(0, 100), old), (range(150, 199), near)] {
            let kind = source.blocks(heights.clone()).await.err().map(|e| e.kind());
            assert_eq!(kind, wanted, "{fault:?} {heights:?}");
        }
        node.heal();
    }
    assert_eq!(read_all(&source, 0, 199).await, expected(&blocks, &[TOKEN]));
}

#[tokio::test]
async fn a_chain_that_changes_without_end_is_a_fault() {
    let node = FakeNode::start(31337, lively(200, "a")).await;
    let source = following(&[&node], &[]).await;
    node.fault(Fault::TwoHashes);
    let mut kinds = Vec::new();
    for _ in 0..6 {
        kinds.push(source.blocks(range(0, 100)).await.unwrap_err().kind());
    }
    let (again, later) = (FaultKind::Changed, FaultKind::Transient);
    assert_eq!(kinds, [again, again, later, again, again, later]);
}

#[tokio::test]
async fn a_key_that_a_node_repeats_stays_secret() {
    let node = FakeNode::start(31337, lively(3, "a")).await;
    let source = following(&[&node], &[]).await;
    for fault in [
        Fault::Refused(-32000, "project TOPSECRET is unauthorized"),
        Fault::BatchRefused(-32005, "rate limit of /key/TOPSECRET reached"),
        Fault::Refused(-1, "TOPSECRET?"),
    ] {
        node.fault(fault);
        let error = source.head().await.unwrap_err().to_string();
        assert!(error.contains("***") && !error.contains("SECRET"), "{error}");
        node.heal();
    }
}

#[tokio::test]
async fn a_node_that_rings_without_end_does_not_wake_without_end() {
    let node = FakeNode::start(31337, lively(3, "a")).await;
    let source = EvmSource::new(EvmSettings { ws_url: Some(node.ws_url()), ..settings(&[&node]) }).unwrap();
    let start = Instant::now();
    let mut wakes = 0;
    while start.elapsed() < Duration::from_millis(600) {
        (0..20).for_each(|_| node.ring());
        source.wait(Duration::from_millis(100)).await;
        wakes += 1;
    }
    println!("{wakes} wakes in 600 ms");
    assert!((2..=32).contains(&wakes), "{wakes}");
}

#[tokio::test]
async fn logs_that_a_node_leaves_out_are_missed() {
    let blocks = lively(200, "a");
    let node = FakeNode::start(31337, blocks.clone()).await;
    for tokens in [&[][..], &[TOKEN]] {
        let source = following(&[&node], tokens).await;
        // Near the head: the block is there before its logs are.
        node.fault(Fault::LogsLeftOut(198));
        let error = source.blocks(range(198, 198)).await.unwrap_err();
        assert_eq!(error.kind(), FaultKind::Transient);
        assert!(error.to_string().contains("bloom"), "{error}");
        node.heal();
        // In history: an index by range with a hole; by hash the logs are there.
        node.fault(Fault::LogsLeftOutOfRanges(60));
        assert_eq!(source.blocks(range(30, 90)).await.unwrap(), expected(&blocks[30..91], tokens));
        node.heal();
    }
}

#[tokio::test]
async fn a_bloom_that_rules_a_log_out_is_a_contradiction_unless_blooms_do_not_count() {
    let no_bloom = format!("0x{}", "00".repeat(256));
    let blocks: Vec<FakeBlock> = lively(100, "a").into_iter().map(|b| b.with_bloom(&no_bloom)).collect();
    let node = FakeNode::start(31337, blocks.clone()).await;
    let error = following(&[&node], &[]).await.blocks(range(0, 10)).await.unwrap_err();
    assert_eq!(error.kind(), FaultKind::Transient);
    assert!(error.to_string().contains("check_bloom"), "{error}");
    let source = EvmSource::new(EvmSettings { check_bloom: false, ..settings(&[&node]) }).unwrap();
    source.head().await.unwrap();
    assert_eq!(read_all(&source, 0, 99).await, expected(&blocks, &[]));
    // Polygon's bridge writes logs beside the block; its blooms never count.
    node.set_chain_id(137);
    assert_eq!(read_all(&following(&[&node], &[TOKEN]).await, 0, 99).await, expected(&blocks, &[TOKEN]));
}

#[tokio::test]
async fn strange_but_possible_blocks_are_read() {
    let mut blocks = chain(0, 3, None, "a", |_| Vec::new());
    let mut log = transfer(TOKEN, ALICE, BOB, 5, 0);
    log["log_index"] = json!(4_294_967_295u64);
    let parent = blocks[2].clone();
    blocks.extend(chain(3, 1, Some(&parent), "a", |_| vec![log.clone()]));
    blocks[1].timestamp = u64::MAX;
    blocks[2].timestamp = 0;
    let node = FakeNode::start(31337, blocks.clone()).await;
    let source = following(&[&node], &[]).await;
    let read = source.blocks(range(0, 3)).await.unwrap();
    assert_eq!(read[1].time, None);
    assert_eq!(read[2].time, Some(jiff::Timestamp::UNIX_EPOCH));
    assert_eq!(read[3].token_events[0].event_index, 4_294_967_295);
}

#[tokio::test]
async fn another_node_takes_over_and_must_be_of_the_same_chain() {
    let blocks = lively(100, "a");
    let first = FakeNode::start(31337, blocks.clone()).await;
    let second = FakeNode::start(31337, blocks.clone()).await;
    let source = EvmSource::new(impatient(&[&first, &second])).unwrap();
    source.identify().await.unwrap();
    for fault in [Fault::DropSocket, Fault::Body("<html>"), Fault::Http(502, ""), Fault::Hang] {
        first.fault(fault.clone());
        assert_eq!(source.head().await.unwrap().block, block_ref(&blocks[99]), "{fault:?}");
        let before = first.request_count();
        assert_eq!(read_all(&source, 0, 99).await, expected(&blocks, &[]), "{fault:?}");
        assert_eq!(first.request_count(), before, "the one that works is kept");
        first.heal();
        second.fault(fault.clone());
        assert_eq!(source.head().await.unwrap().block, block_ref(&blocks[99]), "{fault:?}");
        second.heal();
    }
    first.fault(Fault::DropSocket);
    second.set_chain_id(5);
    let error = source.head().await.unwrap_err().to_string();
    assert!(error.contains("is chain 5, expected 31337") && error.contains(';'), "{error}");
    second.set_chain_id(31337);
    source.head().await.unwrap();
}

#[tokio::test]
async fn another_chain_behind_a_url_is_told_at_once() {
    let first = FakeNode::start(1, lively(5, "a")).await;
    let second = FakeNode::start(5, lively(5, "b")).await;
    let error = source(&[&first, &second]).identify().await.unwrap_err();
    assert_eq!(error.kind(), FaultKind::Permanent);
    assert!(error.to_string().contains("is chain 5, expected 1"), "{error}");
    // And when another chain moves in behind a URL that we know.
    let source = source(&[&first]);
    assert_eq!(source.identify().await.unwrap().network_id.as_deref(), Some("1"));
    first.set_chain_id(10);
    let error = source.head().await.unwrap_err();
    assert_eq!(error.kind(), FaultKind::Permanent);
    assert!(error.to_string().contains("is chain 10, expected 1"), "{error}");
}

#[tokio::test]
async fn an_undo_needs_a_second_opinion() {
    let old = lively(20, "old");
    let new: Vec<FakeBlock> = old[..17].iter().cloned().chain(chain(17, 4, Some(&old[16]), "new", some_logs)).collect();
    let undone: Vec<BlockRef> = old[17..].iter().map(block_ref).collect();
    let seen = block_ref(&new[20]);
    let first = FakeNode::start(31337, new.clone()).await;
    let alone = source(&[&first]);
    assert!(alone.confirm_undo(&undone, &seen).await.unwrap(), "nobody else to ask");
    let second = FakeNode::start(31337, old.clone()).await;
    let settings = EvmSettings { confirm_grace: Duration::from_millis(300), ..settings(&[&first, &second]) };
    let source = EvmSource::new(settings).unwrap();
    source.head().await.unwrap();
    assert!(!source.confirm_undo(&undone, &seen).await.unwrap(), "the other one still has our blocks");
    second.set_chain(old[..15].to_vec());
    assert!(!source.confirm_undo(&undone, &seen).await.unwrap(), "it lags: no opinion");
    second.set_chain(new[..19].to_vec());
    assert!(source.confirm_undo(&undone, &seen).await.unwrap(), "it has another block where ours was");
    second.set_chain(new.clone());
    assert!(source.confirm_undo(&undone, &seen).await.unwrap(), "it has the new block");
    // A chain that got shorter: that the other one has the new head says nothing, if it has our blocks too.
    let shorter = block_ref(&old[16]);
    second.set_chain(old.clone());
    assert!(!source.confirm_undo(&undone, &shorter).await.unwrap(), "it still has what is to go");
    second.set_chain(old[..17].to_vec());
    assert!(source.confirm_undo(&undone, &shorter).await.unwrap(), "it ends there too");
    second.set_chain(old[..10].to_vec());
    assert!(!source.confirm_undo(&undone, &shorter).await.unwrap(), "it ends even earlier: no opinion");
    // Nobody to ask: not at once, and not never.
    second.fault(Fault::DropSocket);
    let error = source.confirm_undo(&undone, &seen).await.unwrap_err();
    assert_eq!(error.kind(), FaultKind::Transient);
    let deadline = Instant::now() + Duration::from_secs(10);
    while !source.confirm_undo(&undone, &seen).await.unwrap_or(false) {
        assert!(Instant::now() < deadline, "stands still for ever");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The clock starts anew once it answers again.
    second.heal();
    second.set_chain(old);
    assert!(!source.confirm_undo(&undone, &seen).await.unwrap());
    second.fault(Fault::DropSocket);
    assert!(source.confirm_undo(&undone, &seen).await.is_err());
}

#[tokio::test]
async fn the_start_is_the_first_deployment_of_the_listed_tokens() {
    let node = FakeNode::start(31337, lively(1_000, "a")).await;
    for deployed in [0, 1, 2, 499, 700, 998, 999] {
        node.set_code(TOKEN, deployed);
        node.set_code(OTHER, 700);
        let source = following(&[&node], &[TOKEN, OTHER]).await;
        let before = node.request_count();
        assert_eq!(source.first_height().await.unwrap(), height(deployed.min(700)));
        assert!(node.request_count() - before <= 15, "bisection, not a scan");
    }
}

#[tokio::test]
async fn a_start_that_cannot_be_found_names_the_flag() {
    let node = FakeNode::start(1, lively(1_000, "a")).await;
    let refuse = async |source: EvmSource| {
        let error = source.first_height().await.unwrap_err();
        assert_eq!(error.kind(), FaultKind::Permanent, "{error}");
        assert!(error.to_string().contains("--start-height"), "{error}");
    };
    refuse(following(&[&node], &[]).await).await;
    refuse(following(&[&node], &[TOKEN]).await).await;
    node.set_code(TOKEN, 10);
    node.fault(Fault::NoState);
    refuse(following(&[&node], &[TOKEN]).await).await;
    node.heal();
    // What may pass is not a refusal.
    let source = following(&[&node], &[TOKEN]).await;
    node.fault(Fault::Http(503, ""));
    assert_eq!(source.first_height().await.unwrap_err().kind(), FaultKind::Transient);
    node.heal();
    assert_eq!(source.first_height().await.unwrap(), height(10));
    // On a chain of one's own machine genesis is a fine start.
    let node = FakeNode::start(31337, lively(10, "a")).await;
    assert_eq!(source_of(&node).first_height().await.unwrap(), height(0));
}

fn source_of(node: &FakeNode) -> EvmSource {
    source(&[node])
}

#[tokio::test]
async fn tokens_describe_themselves_and_survive_nonsense() {
    let node = FakeNode::start(31337, lively(3, "a")).await;
    let (symbol, name, decimals) = ("0x95d89b41", "0x06fdde03", "0x313ce567");
    let text =
        |s: &str| format!("0x{:064x}{:064x}{}", 32, s.len(), alloy_primitives::hex::encode(format!("{s:\0<64}")));
    node.set_answer(TOKEN, symbol, &text("USDC"));
    node.set_answer(TOKEN, name, &text("USD\0 Coin"));
    node.set_answer(TOKEN, decimals, &format!("0x{:064x}", 6));
    let odd = "0x3333333333333333333333333333333333333333";
    node.set_answer(odd, symbol, "0x");
    node.set_answer(odd, name, &format!("0x4d616b6572{}", "00".repeat(27)));
    node.set_answer(odd, decimals, &format!("0x{}", "ff".repeat(32)));
    let source = following(&[&node], &[]).await;
    let told = source.token_metadata(&[TOKEN.into(), odd.into(), OTHER.into()]).await.unwrap();
    let told: Vec<_> = told.iter().map(|t| (&*t.token, t.symbol.as_deref(), t.name.as_deref(), t.decimals)).collect();
    assert_eq!(
        told,
        [(TOKEN, Some("USDC"), Some("USD Coin"), Some(6)), (odd, None, Some("Maker"), None), (OTHER, None, None, None)]
    );
    node.fault(Fault::Refused(-32005, "rate limit exceeded"));
    assert_eq!(source.token_metadata(&[TOKEN.into()]).await.unwrap_err().kind(), FaultKind::Transient);
}

#[tokio::test]
async fn new_heads_wake_and_silence_does_not_hold_up() {
    let blocks = lively(10, "a");
    let node = FakeNode::start(31337, blocks[..5].to_vec()).await;
    let source = EvmSource::new(EvmSettings { ws_url: Some(node.ws_url()), ..settings(&[&node]) }).unwrap();
    let long = Duration::from_secs(3_600);
    // The subscription itself wakes: heads may have gone by before it stood.
    tokio::time::timeout(Duration::from_secs(10), source.wait(long)).await.unwrap();
    let silent = Instant::now();
    source.wait(Duration::from_millis(50)).await;
    assert!(silent.elapsed() >= Duration::from_millis(45), "no wake without a cause");
    node.set_chain(blocks.clone());
    tokio::time::timeout(Duration::from_secs(10), source.wait(long)).await.unwrap();
    // A ring while nobody waits is not lost, nor is one while a wait is dropped half way.
    node.ring();
    if tokio::time::timeout(Duration::ZERO, source.wait(long)).await.is_err() {
        tokio::time::timeout(Duration::from_secs(10), source.wait(long)).await.unwrap();
    }
    // A new connection wakes.
    node.hang_up();
    until("the old connection is gone", || node.subscribers() == 0).await;
    tokio::time::timeout(Duration::from_secs(10), source.wait(long)).await.unwrap();
    until("a new connection stands", || node.subscribers() == 1).await;
    drop(source);
    until("nobody listens any more", || node.subscribers() == 0).await;
}

#[tokio::test]
async fn a_dead_subscription_is_no_fault_of_the_source() {
    let node = FakeNode::start(31337, lively(10, "a")).await;
    let source =
        EvmSource::new(EvmSettings { ws_url: Some("ws://127.0.0.1:1/".into()), ..settings(&[&node]) }).unwrap();
    source.wait(Duration::from_millis(20)).await;
    source.head().await.unwrap();
}

#[tokio::test]
async fn settings_that_cannot_be_meant_are_refused_by_name() {
    let good = EvmSettings { urls: vec!["http://127.0.0.1:8545".into()], ..EvmSettings::default() };
    let with = |change: fn(&mut EvmSettings)| {
        let mut settings = good.clone();
        change(&mut settings);
        EvmSource::new(settings)
    };
    with(|_| ()).unwrap();
    for (word, result) in [
        ("url", with(|s| s.urls.clear())),
        ("url", with(|s| s.urls[0] = "ftp://127.0.0.1/SECRET".into())),
        ("url", with(|s| s.urls[0] = "127.0.0.1:8545/SECRET".into())),
        ("ws_url", with(|s| s.ws_url = Some("http://127.0.0.1/SECRET".into()))),
        ("token", with(|s| s.tokens = vec!["USDC".into()])),
        ("wrapped_native", with(|s| s.wrapped_native = vec!["0x1".into()])),
        ("event", with(|s| s.events = vec!["Foo(".into()])),
        ("concurrency", with(|s| s.concurrency = 0)),
        ("request_timeout", with(|s| s.request_timeout = Duration::ZERO)),
        ("body_limit", with(|s| s.body_limit = 0)),
    ] {
        let error = result.err().unwrap();
        assert_eq!(error.kind(), FaultKind::Permanent);
        assert!(error.to_string().contains(word) && !error.to_string().contains("SECRET"), "{error}");
    }
}
