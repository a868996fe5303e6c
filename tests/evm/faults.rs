//! The EVM source against a node that misbehaves in every way we know, and against several nodes.

use std::time::{Duration, Instant};

use ebbtide::chain::BlockRef;
use ebbtide::sources::evm::{EvmSettings, EvmSource};
use ebbtide::sources::{FaultKind, Source, SourceError};

use crate::support::fake_node::read::{
    ALICE, BOB, TOKEN, block_ref, expected, following, impatient, lively, range, read_all, settings, some_logs, source,
};
use crate::support::fake_node::{FakeBlock, FakeNode, Fault, chain, transfer};

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
    assert_eq!(source.links(range(95, 98)).await.unwrap().len(), 4);
    assert_eq!(source.links(range(95, 99)).await.unwrap().len(), 5, "the head came with its own name and its parent's");
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
    // Without a head, whose header would be kept. The network and the header are of the old chain, the logs of the new one.
    let source = source(&[&node]);
    node.set_chain_after(2, new.clone());
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
async fn blocks_that_do_not_name_each_other_are_a_change() {
    let (a, b) = (lively(200, "a"), lively(200, "b"));
    for broken in [50, 180] {
        let mixed = a[..broken].iter().chain(&b[broken..]).cloned().collect();
        let node = FakeNode::start(31337, mixed).await;
        let source = following(&[&node], &[]).await;
        let around = broken as u64 - 10..=broken as u64 + 10;
        let changed =
            |error: SourceError| matches!(error, SourceError::Changed { height } if height.get() == broken as u64);
        assert!(changed(source.links(range(*around.start(), *around.end())).await.unwrap_err()));
        assert!(changed(source.blocks(range(*around.start(), *around.end())).await.unwrap_err()));
        source.blocks(range(broken as u64, *around.end())).await.unwrap();
    }
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
async fn logs_that_a_node_leaves_out_are_missed() {
    let blocks = lively(200, "a");
    let node = FakeNode::start(31337, blocks.clone()).await;
    for (network, tokens) in [(31337, &[][..]), (31337, &[TOKEN]), (137, &[TOKEN])] {
        node.set_chain_id(network);
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

/// A node may have a block before its logs. That it has had time for them is shown by a block far above, and not by what it
/// or another node once said to be the head.
#[tokio::test]
async fn a_head_far_above_makes_no_block_old_that_has_none_above_it() {
    let blocks = lively(100, "a");
    for said in [163, 100_099] {
        let node = FakeNode::start(31337, blocks.clone()).await;
        node.lie(1, Fault::HeadAt(said));
        let source = following(&[&node], &[TOKEN]).await;
        node.fault(Fault::LogsLeftOut(99));
        let error = source.blocks(range(90, 99)).await.unwrap_err();
        assert_eq!(error.kind(), FaultKind::Transient, "{error}");
        assert!(error.to_string().contains("make up its bloom"), "{error}");
        node.heal();
        assert_eq!(source.blocks(range(90, 99)).await.unwrap(), expected(&blocks[90..], &[TOKEN]));
    }
    let longer = lively(300, "a");
    let (ahead, behind) = (FakeNode::start(31337, longer).await, FakeNode::start(31337, blocks.clone()).await);
    let source = following(&[&ahead, &behind], &[TOKEN]).await;
    ahead.fault(Fault::DropSocket);
    behind.fault(Fault::LogsLeftOut(99));
    let error = source.blocks(range(90, 99)).await.unwrap_err();
    assert!(error.to_string().contains("make up its bloom"), "{error}");
    behind.heal();
    assert_eq!(source.blocks(range(90, 99)).await.unwrap(), expected(&blocks[90..], &[TOKEN]));
}

/// What is called final above the head says nothing: not both can be true.
#[tokio::test]
async fn what_is_called_final_above_the_head_leaves_what_was_final() {
    let node = FakeNode::start(31337, lively(100, "a")).await;
    node.set_finalized(Some(40));
    let source = following(&[&node], &[]).await;
    let finalized = async || source.head().await.unwrap().finalized.map(|height| height.get());
    for above in [100, 100_099] {
        node.lie(1, Fault::FinalizedAt(above));
        assert_eq!(finalized().await, Some(40), "{above} above a head at 99");
        assert!(node.has_lied());
        assert_eq!(finalized().await, Some(40));
    }
    node.lie(1, Fault::FinalizedAt(100_099));
    assert_eq!(self::source(&[&node]).head().await.unwrap().finalized, None, "nothing was called final before");
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
    // Polygon's bridge writes logs beside the block: there a bloom rules nothing out, but what it promises must come.
    node.set_chain_id(137);
    assert_eq!(read_all(&following(&[&node], &[TOKEN]).await, 0, 99).await, expected(&blocks, &[TOKEN]));
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
    // The clock starts again once it answers again.
    second.heal();
    second.set_chain(old);
    assert!(!source.confirm_undo(&undone, &seen).await.unwrap());
    second.fault(Fault::DropSocket);
    assert!(source.confirm_undo(&undone, &seen).await.is_err());
}
