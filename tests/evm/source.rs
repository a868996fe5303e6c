//! The EVM source against a node that serves real HTTP and WebSocket.

use std::time::{Duration, Instant};

use ebbtide::chain::Block;
use ebbtide::sources::evm::decode::{DecodeSettings, Decoder};
use ebbtide::sources::evm::{EvmSettings, EvmSource};
use ebbtide::sources::{FaultKind, Source};
use serde_json::json;

use crate::support::fake_node::read::{
    ALICE, BOB, OTHER, TOKEN, block_ref, expected, following, height, lively, range, read_all, settings, some_logs,
    until,
};
use crate::support::fake_node::{FakeBlock, FakeNode, Fault, chain, data_lines, data_text, follow, transfer};

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
async fn anonymous_events_are_asked_for_by_their_contract_alone() {
    let bare = |address: &str, topics: serde_json::Value, index: u64| {
        json!({
            "tx_hash": format!("0x{index:064x}"), "tx_index": index, "log_index": index, "address": address,
            "topics": topics, "data": format!("0x{index:064x}"),
        })
    };
    let sig = format!("0xdeadbeef{}", "00".repeat(28));
    let logs = vec![
        bare(TOKEN, json!([]), 0),
        bare(TOKEN, json!([sig]), 1),
        bare(OTHER, json!([]), 2),
        transfer(OTHER, ALICE, BOB, 1, 3),
    ];
    let node = FakeNode::start(31337, chain(0, 150, None, "a", |_| logs.clone())).await;
    let events = vec![
        format!("Bare(uint256 n) anonymous @ {TOKEN}"),
        format!("Note(bytes4 indexed sig, uint256 n) anonymous @ {TOKEN}"),
    ];
    let source = EvmSource::new(EvmSettings { events, ..settings(&[&node]) }).unwrap();
    source.head().await.unwrap();
    // Old blocks are read by range, those near the head by hash.
    for block in read_all(&source, 0, 149).await {
        let names: Vec<_> = block.events.iter().map(|e| (&*e.name, &e.attributes["n"])).collect();
        assert_eq!(names, [("Bare", &json!("0")), ("Note", &json!("1"))]);
        assert_eq!((block.token_events.len(), block.rejects.len()), (1, 0));
    }
}

#[tokio::test]
async fn events_are_asked_for_beside_tokens() {
    let Some(feed) = data_lines("anvil/erc20-depth-1-10.feed.ndjson.gz") else { return };
    let info: serde_json::Value = serde_json::from_str(&data_text("anvil/erc20-depth-1-10.run.json").unwrap()).unwrap();
    let token = |n: usize| info["tokens"][n].as_str().unwrap().to_owned();
    let mut blocks = Vec::new();
    feed.iter().for_each(|line| follow(&mut blocks, line));
    let node = FakeNode::start(31337, blocks.clone()).await;
    let approval = "Approval(address indexed owner, address indexed spender, uint256 value)";
    let role = "RoleGranted(bytes32 indexed role, address indexed account, address indexed sender)";
    for events in [
        vec![approval.to_owned(), role.to_owned()],
        vec![format!("{approval} @ {}", token(1)), format!("{role} @ {}, {}", token(0), token(1))],
    ] {
        let tokens = vec![token(0)];
        let decode = DecodeSettings { tokens: tokens.clone(), events: events.clone(), ..DecodeSettings::default() };
        let decoder = Decoder::new(&decode, Some(31337)).unwrap();
        let source = EvmSource::new(EvmSettings { tokens, events, ..settings(&[&node]) }).unwrap();
        source.head().await.unwrap();
        let read = read_all(&source, 0, blocks.last().unwrap().number).await;
        let (mut movements, mut names) = (0, std::collections::BTreeMap::new());
        for (read, block) in read.iter().zip(&blocks) {
            let decoded = decoder.decode(serde_json::from_value(json!(block.logs)).unwrap());
            assert_eq!((&read.token_events, &read.events), (&decoded.token_events, &decoded.events));
            assert_eq!(read.transactions, decoded.transactions);
            assert!(read.token_events.iter().all(|e| *e.token == *token(0)));
            movements += read.token_events.len();
            read.events.iter().for_each(|e| *names.entry(e.name.to_string()).or_insert(0) += 1);
        }
        println!("{movements} movements, events {names:?}");
        assert!(movements > 0 && names["RoleGranted"] == 6);
    }
}

#[tokio::test]
async fn thousands_of_tokens_are_asked_for_in_parts() {
    let blocks = lively(100, "a");
    let node = FakeNode::start(31337, blocks.clone()).await;
    let many: Vec<String> = (0..1_199).map(|n| format!("0x{n:040x}")).chain([OTHER.to_owned()]).collect();
    let tokens: Vec<&str> = many.iter().map(String::as_str).collect();
    let source = following(&[&node], &tokens).await;
    assert_eq!(source.blocks(range(0, 35)).await.unwrap(), expected(&blocks[..36], &[OTHER]));
    assert_eq!(node.call_count("eth_getLogs"), 3);
    assert_eq!(read_all(&source, 36, 99).await, expected(&blocks[36..], &[OTHER]));
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
    assert_eq!(following(&[&node], &[]).await.first_height().await.unwrap(), height(0));
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
async fn the_header_of_the_head_is_read_once() {
    let blocks = lively(10, "a");
    let node = FakeNode::start(31337, blocks.clone()).await;
    let headers = |node: &FakeNode| node.call_count("eth_getBlockByNumber");
    let source = EvmSource::new(settings(&[&node])).unwrap();
    source.head().await.unwrap();
    let asked = headers(&node);
    assert_eq!(source.links(range(9, 9)).await.unwrap()[0].hash.as_str(), blocks[9].hash);
    assert_eq!(source.blocks(range(9, 9)).await.unwrap(), expected(&blocks[9..], &[]));
    assert_eq!(headers(&node), asked, "it was given with the head");
    assert_eq!(source.links(range(8, 9)).await.unwrap().len(), 2);
    assert_eq!(headers(&node), asked + 1, "the one below it was not");
    // The chain changes behind it: what was kept is not taken for what is there.
    let forked = [&blocks[..9], &chain(9, 1, Some(&blocks[8]), "b", some_logs)].concat();
    node.set_chain_quietly(forked.clone());
    assert_eq!(source.blocks(range(9, 9)).await.unwrap(), expected(&forked[9..], &[]));
    // Another node is asked for its own.
    let other = FakeNode::start(31337, blocks.clone()).await;
    let both = EvmSource::new(settings(&[&node, &other])).unwrap();
    both.head().await.unwrap();
    node.fault(Fault::DropSocket);
    assert_eq!(both.blocks(range(9, 9)).await.unwrap(), expected(&blocks[9..], &[]));
    assert_eq!(headers(&other), 1);
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

#[tokio::test]
async fn a_node_that_rings_without_end_is_asked_a_few_times_a_second() {
    let node = FakeNode::start(31337, lively(20, "a")).await;
    let source = EvmSource::new(EvmSettings { ws_url: Some(node.ws_url()), ..settings(&[&node]) }).unwrap();
    source.head().await.unwrap();
    source.wait(Duration::from_millis(1)).await;
    until("it has subscribed", || node.subscribers() > 0).await;
    let (before, begun) = (node.request_count(), Instant::now());
    let asked = async {
        while begun.elapsed() < Duration::from_secs(2) {
            source.wait(Duration::from_secs(10)).await;
            source.head().await.unwrap();
        }
        node.request_count() - before
    };
    let ringing = async {
        loop {
            node.ring();
            tokio::task::yield_now().await;
        }
    };
    let asked = tokio::select! { asked = asked => asked, () = ringing => 0 };
    let most = (begun.elapsed().as_secs_f64() * 5.0) as u64 + 2;
    assert!((2..=most).contains(&asked), "{asked} requests in {:?}", begun.elapsed());
}
