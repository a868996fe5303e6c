//! The Starknet source against a node that serves real HTTP and WebSocket.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use ebbtide::chain::{Block, BlockRef, Event, Hash, Height, Kind};
use ebbtide::sources::starknet::decode::DecodeSettings;
use ebbtide::sources::starknet::{StarknetSettings, StarknetSource};
use ebbtide::sources::{FaultKind, Follows, Source, SourceError};
use serde_json::{Value, json};

use crate::support::fake_node::{Fault, data_text};
use crate::support::fake_starknet::{
    ALICE, BOB, FakeStarkBlock, FakeStarknet, FakeTx, OTHER, Oddity, TOKEN, chain, named, new_transfer, old_transfer,
    reverted, tx,
};
use crate::support::wait_until;

const VAULT: &str = "0x11";
const UDC: &str = "0x41a78e741e5af2fec34b695679bc6891742439f7afb8484ecd7766661ad02bf";

fn height(n: u64) -> Height {
    Height::new(n).unwrap()
}

fn range(from: u64, to: u64) -> RangeInclusive<Height> {
    height(from)..=height(to)
}

fn settings(nodes: &[&FakeStarknet], decode: DecodeSettings) -> StarknetSettings {
    StarknetSettings {
        urls: nodes.iter().map(|node| node.url()).collect(),
        decode,
        request_timeout: Duration::from_secs(10),
        ..StarknetSettings::default()
    }
}

fn tokens(tokens: &[&str]) -> DecodeSettings {
    DecodeSettings { tokens: tokens.iter().map(|t| (*t).to_owned()).collect(), ..DecodeSettings::default() }
}

fn vaults() -> DecodeSettings {
    DecodeSettings { contracts: vec![VAULT.to_owned()], ..tokens(&["none"]) }
}

/// A source that knows how high the chain is, so that old blocks may be searched.
async fn following(node: &FakeStarknet, decode: DecodeSettings) -> StarknetSource {
    let source = StarknetSource::new(settings(&[node], decode)).unwrap();
    source.head().await.unwrap();
    source
}

/// Every third block holds transfers of `TOKEN` and `OTHER`, in both layouts, the last one by a transaction that failed.
fn lively(len: u64, salt: &str) -> Vec<FakeStarkBlock> {
    chain(0, len, None, salt, some)
}

fn some(number: u64) -> Vec<FakeTx> {
    let amount = u128::from(number) + 1;
    let empty = tx(Vec::new());
    if !number.is_multiple_of(3) {
        return vec![empty];
    }
    vec![
        tx(vec![named("0x99", "Noise", &[], &[]), old_transfer(TOKEN, ALICE, BOB, amount)]),
        empty,
        tx(vec![new_transfer(OTHER, "0x0", ALICE, amount)]),
        reverted(vec![new_transfer(TOKEN, BOB, ALICE, 2 * amount)]),
    ]
}

type Row = (u64, u64, u64, String, Option<String>, Option<String>, String);

/// All movements: height, place, token, from, to, amount.
fn rows(blocks: &[Block]) -> Vec<Row> {
    let row = |block: &Block| {
        let at = block.link.height.get();
        let rows = block.token_events.iter().map(move |e| {
            let sides = (e.from.as_deref().map(str::to_owned), e.to.as_deref().map(str::to_owned));
            (at, e.tx_index, e.event_index, e.token.to_string(), sides.0, sides.1, e.amount.to_string())
        });
        rows.collect::<Vec<_>>()
    };
    blocks.iter().flat_map(row).collect()
}

/// What [`some`] must give.
fn expected(blocks: &[FakeStarkBlock], listed: &[&str]) -> Vec<Row> {
    let mut rows = Vec::new();
    for number in blocks.iter().map(|b| b.number).filter(|n| n.is_multiple_of(3)) {
        let party = |name: &str| (name != "0x0").then(|| name.to_owned());
        for (tx_index, event_index, token, from, to, factor) in
            [(0, 1, TOKEN, ALICE, BOB, 1), (2, 0, OTHER, "0x0", ALICE, 1), (3, 0, TOKEN, BOB, ALICE, 2)]
        {
            if listed.is_empty() || listed.contains(&token) {
                let amount = ((number + 1) * factor).to_string();
                rows.push((number, tx_index, event_index, token.to_owned(), party(from), party(to), amount));
            }
        }
    }
    rows
}

fn assert_linked(read: &[Block], blocks: &[FakeStarkBlock]) {
    assert_eq!(read.len(), blocks.len());
    for (read, block) in read.iter().zip(blocks) {
        let link = (read.link.height.get(), read.link.hash.as_str(), read.link.parent_hash.as_str());
        assert_eq!(link, (block.number, &*block.hash, &*block.parent_hash));
        assert_eq!(read.time.map(|t| t.as_second()), Some(block.timestamp as i64));
        for tx in &read.transactions {
            let theirs = &block.transactions[tx.tx_index as usize];
            assert_eq!((&*tx.hash, tx.success), (&*theirs.hash, !theirs.reverted));
        }
    }
}

fn fault_of<T: std::fmt::Debug>(result: Result<T, SourceError>) -> (FaultKind, String) {
    let error = result.unwrap_err();
    assert!(!error.to_string().contains("TOPSECRET"), "{error}");
    (error.kind(), error.to_string())
}

#[tokio::test]
async fn a_chain_is_read_block_for_block() {
    let blocks = lively(200, "a");
    let node = FakeStarknet::start(blocks.clone()).await;
    node.set_on_l1(Some(120));
    let source = following(&node, DecodeSettings::default()).await;
    let identity = source.identify().await.unwrap();
    assert_eq!((identity.kind, identity.network_id.as_deref()), (Kind::Starknet, Some("SN_SEPOLIA")));
    let head = source.head().await.unwrap();
    let newest = BlockRef { height: height(199), hash: Hash::new(blocks[199].hash.as_str()) };
    assert_eq!((head.block, head.finalized, head.truth), (newest, Some(height(120)), false));
    let read = source.blocks(range(0, 199)).await.unwrap();
    assert_linked(&read, &blocks);
    assert_eq!(rows(&read), expected(&blocks, &[]));
    assert_eq!(node.call_count("starknet_getEvents"), 0, "every token is wanted: nothing to search for");
    println!("{} movements of {} blocks in {} requests", rows(&read).len(), read.len(), node.request_count());
    let links = source.links(range(190, 210)).await.unwrap();
    assert_eq!(links.len(), 10, "heights above the head are left out");
    assert_eq!(links[9].hash.as_str(), blocks[199].hash);
    assert!(source.links(range(400, 410)).await.unwrap().is_empty());
}

#[tokio::test]
async fn listed_tokens_are_searched_for_deep_in_history_and_read_whole_near_the_head() {
    let blocks = lively(300, "a");
    for spec in ["0.8.1", "0.10.0"] {
        let node = FakeStarknet::start(blocks.clone()).await;
        node.set_spec(spec);
        // Pages end amid blocks.
        node.odd(Oddity::LargestPage(7));
        let source = following(&node, tokens(&[TOKEN])).await;
        let old = source.blocks(range(0, 199)).await.unwrap();
        let read_whole = node.call_count("starknet_getBlockWithReceipts");
        assert_eq!(read_whole, 67, "those with transfers alone");
        assert!(node.call_count("starknet_getEvents") > 15);
        let searches = node.call_count("starknet_getEvents");
        let new = source.blocks(range(200, 299)).await.unwrap();
        assert_eq!(node.call_count("starknet_getEvents"), searches);
        let read = [old, new].concat();
        assert_linked(&read, &blocks);
        assert_eq!(rows(&read), expected(&blocks, &[TOKEN]));
        println!("{spec}: {} movements, {} requests", rows(&read).len(), node.request_count());
    }
}

#[tokio::test]
async fn a_recorded_answer_is_read_byte_for_byte() {
    let Some(text) = data_text("starknet/rpc/sepolia-3100000.block-with-receipts.json.gz") else { return };
    let recorded: Value = serde_json::from_str(&text).unwrap();
    let node = FakeStarknet::start(chain(3_100_000, 1, None, "head", |_| Vec::new())).await;
    node.replay(3_100_000, recorded["result"].clone());
    let source = following(&node, DecodeSettings::default()).await;
    let read = source.blocks(range(3_100_000, 3_100_000)).await.unwrap().remove(0);
    assert_eq!(read.link.hash.as_str(), "0x1640b846e71502526539c32c8420cd7cb0f28d83ece2e6e71aeaf7c97960bb2");
    assert_eq!(read.link.parent_hash.as_str(), "0x689d583286182cd8e58e850ec0804e05f395dccae8edf627de787ff3f211aaa");
    assert_eq!(read.time.unwrap().as_second(), 1_763_887_048);
    assert_eq!(read.transactions.len(), 3);
    assert_eq!((read.token_events.len(), read.rejects.len()), (3, 0));
    let fee = &read.token_events[0];
    assert_eq!(fee.amount.to_string(), 0x8bafaa5f8e180u64.to_string());
    assert_eq!(fee.from.as_deref(), Some("0x4f4e29add19afa12c868ba1f4439099f225403ff9a71fe667eebb50e13518d3"));
    // One event lost on its way, and the header tells.
    let mut cut = recorded["result"].clone();
    cut["transactions"][1]["receipt"]["events"] = json!([]);
    node.replay(3_100_000, cut);
    let (kind, words) = fault_of(source.blocks(range(3_100_000, 3_100_000)).await);
    assert!(kind == FaultKind::Transient && words.contains("events"), "{words}");
    println!("1 recorded block, 3 movements");
}

#[tokio::test]
async fn what_is_not_confirmed_is_never_taken() {
    let blocks = lively(20, "a");
    let node = FakeStarknet::start(blocks.clone()).await;
    let source = following(&node, DecodeSettings::default()).await;
    for oddity in [Oddity::PreConfirmed(19), Oddity::Pending(19), Oddity::Rejected(19)] {
        node.odd(oddity.clone());
        assert_linked(&source.blocks(range(10, 19)).await.unwrap(), &blocks[10..19]);
        assert_eq!(source.links(range(10, 19)).await.unwrap().len(), 9, "{oddity:?}");
        let (kind, _) = fault_of(source.blocks(range(19, 19)).await);
        assert_eq!(kind, FaultKind::Transient, "{oddity:?}");
        node.heal();
    }
    node.odd(Oddity::PreConfirmed(15));
    let (kind, words) = fault_of(source.blocks(range(10, 19)).await);
    assert!(kind == FaultKind::Transient && words.contains("not block 15"), "{words}");
}

#[tokio::test]
async fn answers_that_cannot_be_are_not_believed() {
    let blocks = lively(200, "a");
    let node = FakeStarknet::start(blocks.clone()).await;
    let whole = following(&node, DecodeSettings::default()).await;
    for (oddity, word) in [
        (Oddity::StrangeReceipts(99), "another block"),
        (Oddity::DoubledTransaction(99), "twice"),
        (Oddity::LostEvent(99), "events"),
    ] {
        node.odd(oddity.clone());
        let (kind, words) = fault_of(whole.blocks(range(90, 110)).await);
        assert!(kind == FaultKind::Transient && words.contains(word), "{oddity:?}: {words}");
        node.heal();
    }
    let searched = following(&node, tokens(&[TOKEN])).await;
    for (oddity, word) in [
        (Oddity::LostReceipt(99), "fewer events"),
        (Oddity::ReversedReceipts(99), "not those of its transactions"),
        (Oddity::RepeatedToken, "continuation token twice"),
        (Oddity::StrayEvent, "not asked for"),
        (Oddity::PendingEvent, "not confirmed"),
        (Oddity::InventedEvent(99), "fewer events"),
    ] {
        node.odd(oddity.clone());
        let (kind, words) = fault_of(searched.blocks(range(90, 110)).await);
        assert!(kind == FaultKind::Transient && words.contains(word), "{oddity:?}: {words}");
        node.heal();
    }
    node.odd(Oddity::OtherHash(99));
    assert_eq!(fault_of(searched.blocks(range(90, 110)).await).0, FaultKind::Changed);
    node.heal();
    for source in [&whole, &searched] {
        for fault in [
            Fault::Refused(-32603, "internal error"),
            Fault::Http(429, "slow down"),
            Fault::RetryAfter(7),
            Fault::Http(503, ""),
            Fault::NullAnswers,
            Fault::CutBody,
            Fault::DropSocket,
            Fault::WrongBlock,
            Fault::ContradictedAnswers,
            Fault::MissingAnswer,
            Fault::Body("ok"),
            Fault::MissingBlock(90),
        ] {
            node.fault(fault.clone());
            let error = source.blocks(range(90, 110)).await.unwrap_err();
            assert_eq!(error.kind(), FaultKind::Transient, "{fault:?}: {error}");
            if let (Fault::RetryAfter(_), SourceError::Transient { retry_after, .. }) = (&fault, &error) {
                assert_eq!(*retry_after, Some(Duration::from_secs(7)));
            }
            node.heal();
        }
        for fault in [Fault::Refused(-32601, "Method not found"), Fault::Http(401, ""), Fault::Body("<html>")] {
            node.fault(fault.clone());
            assert_eq!(fault_of(source.blocks(range(90, 110)).await).0, FaultKind::Permanent, "{fault:?}");
            node.heal();
        }
        for fault in [Fault::DoubledAnswers, Fault::ReversedAnswers, Fault::LargestBatch(1)] {
            node.fault(fault.clone());
            assert_linked(&source.blocks(range(90, 110)).await.unwrap(), &blocks[90..=110]);
            node.heal();
        }
    }
}

#[tokio::test]
async fn a_node_that_is_too_slow_for_a_batch_is_asked_for_less() {
    let blocks = lively(50, "a");
    let node = FakeStarknet::start(blocks.clone()).await;
    let impatient = StarknetSettings {
        request_timeout: Duration::from_millis(400),
        ..settings(&[&node], DecodeSettings::default())
    };
    let source = StarknetSource::new(impatient).unwrap();
    source.head().await.unwrap();
    node.fault(Fault::HangAbove(2));
    let mut times = 0;
    let read = loop {
        match source.blocks(range(0, 49)).await {
            Ok(read) => break read,
            Err(error) => assert_eq!(error.kind(), FaultKind::Transient, "{error}"),
        }
        times += 1;
        assert!(times < 4, "the same is asked for again and again");
    };
    assert_linked(&read, &blocks);
    assert!(times > 0);
}

#[tokio::test]
async fn a_range_that_is_too_large_for_a_search_is_said_to_be() {
    let node = FakeStarknet::start(lively(300, "a")).await;
    let source = following(&node, tokens(&[TOKEN])).await;
    node.fault(Fault::MaxRange(20, "block range too large, at most 20 blocks"));
    let error = source.blocks(range(0, 199)).await.unwrap_err();
    assert!(matches!(error, SourceError::RangeTooLarge { at_most: Some(20), .. }), "{error:?}");
    assert_eq!(source.blocks(range(0, 19)).await.unwrap().len(), 20);
}

#[tokio::test]
async fn pages_without_events_come_to_an_end() {
    let blocks = lively(300, "a");
    let node = FakeStarknet::start(blocks.clone()).await;
    let source = following(&node, tokens(&[TOKEN])).await;
    // A node that looks at one block for each page is slow, but moves on.
    node.odd(Oddity::EmptyPages(20));
    assert_eq!(rows(&source.blocks(range(90, 109)).await.unwrap()), expected(&blocks[90..110], &[TOKEN]));
    node.heal();
    node.odd(Oddity::EndlessTokens);
    let read = tokio::time::timeout(Duration::from_secs(20), source.blocks(range(90, 109)));
    let error = read.await.expect("an answer at all").unwrap_err();
    assert!(matches!(error, SourceError::RangeTooLarge { .. }), "a smaller range may be answered: {error:?}");
    assert!(error.to_string().contains("pages without events"), "{error}");
    let error = source.blocks(range(90, 90)).await.unwrap_err();
    assert_eq!(error.kind(), FaultKind::Transient, "{error}");
    let error = source.events_of(&["0x70c0".into()], range(0, 299)).await.unwrap_err();
    assert!(matches!(error, SourceError::RangeTooLarge { .. }), "{error:?}");
    node.heal();
    assert_eq!(rows(&source.blocks(range(90, 109)).await.unwrap()), expected(&blocks[90..110], &[TOKEN]));
}

#[tokio::test]
async fn another_network_behind_the_url_and_an_old_specification_stop_it() {
    let node = FakeStarknet::start(lively(5, "a")).await;
    let source = following(&node, DecodeSettings::default()).await;
    node.set_chain_id("0x534e5f4d41494e");
    let (kind, words) = fault_of(source.head().await);
    assert_eq!(kind, FaultKind::Permanent);
    assert!(words.contains("SN_MAIN") && words.contains("SN_SEPOLIA"), "{words}");
    node.set_chain_id("0x00534e5f5345504f4c4941");
    source.head().await.unwrap();
    for (spec, good) in [("0.7.1", false), ("0.8.0", true), ("0.8", true), ("0.10.0-rc.2", true), ("1.0.0", true)] {
        node.set_spec(spec);
        let named = source.identify().await;
        assert_eq!(named.is_ok(), good, "{spec}");
        if let Err(error) = named {
            assert_eq!(error.kind(), FaultKind::Permanent);
            assert!(error.to_string().contains("0.7.1") && error.to_string().contains("0.8"), "{error}");
        }
    }
    // A chain without letters in its name keeps its number.
    let node = FakeStarknet::start(lively(5, "a")).await;
    node.set_chain_id("0x01");
    let source = following(&node, DecodeSettings::default()).await;
    assert_eq!(source.identify().await.unwrap().network_id.as_deref(), Some("0x1"));
}

#[tokio::test]
async fn nodes_that_do_not_tell_what_is_on_l1_name_no_final_block() {
    let blocks = lively(10, "a");
    let node = FakeStarknet::start(blocks.clone()).await;
    node.odd(Oddity::NoL1);
    let source = following(&node, DecodeSettings::default()).await;
    assert_eq!(source.head().await.unwrap().finalized, None);
    node.heal();
    // None is yet.
    assert_eq!(following(&node, DecodeSettings::default()).await.head().await.unwrap().finalized, None);
    node.set_on_l1(Some(4));
    let source = following(&node, DecodeSettings::default()).await;
    assert_eq!(source.head().await.unwrap().finalized, Some(height(4)));
    // Not more is final than there is.
    node.set_chain(blocks[..3].to_vec());
    assert_eq!(source.head().await.unwrap().finalized, Some(height(2)));
    // Nothing at all is there.
    node.set_chain(Vec::new());
    assert_eq!(fault_of(source.head().await).0, FaultKind::Transient);
}

/// A node may have a block before it finds the events in it: a search is for blocks that have others far above them, whatever
/// was once said to be the head.
#[tokio::test]
async fn a_head_far_above_makes_no_block_old_that_has_none_above_it() {
    let blocks = lively(100, "a");
    for said in [163, 100_099] {
        let node = FakeStarknet::start(blocks.clone()).await;
        node.lie(1, Fault::HeadAt(said));
        let source = following(&node, tokens(&[TOKEN])).await;
        assert!(node.has_lied());
        node.fault(Fault::LogsLeftOut(99));
        let read = source.blocks(range(90, 99)).await.unwrap();
        assert_eq!(rows(&read), expected(&blocks[90..], &[TOKEN]), "the head was said to be {said}");
    }
}

/// The vault makes a round in each tenth block; each round speaks in its own block and in the next three.
fn with_rounds(number: u64) -> Vec<FakeTx> {
    let round = |n: u64| format!("{:#x}", 0x1000 + n);
    let priced = |n: u64| named(&round(n), "PricingDataSet", &[], &["0x1"]);
    let mut txs = vec![tx(vec![priced(number / 10 + 1)])];
    if number.is_multiple_of(10) {
        let made = named(VAULT, "OptionRoundDeployed", &[], &[&format!("{:#x}", number / 10), &round(number / 10)]);
        txs.push(tx(vec![priced(number / 10), made, priced(number / 10)]));
    } else if number % 10 < 4 {
        txs.push(tx(vec![named("0x99", "Noise", &[], &[]), priced(number / 10)]));
    }
    txs
}

/// What must be kept of heights: each with the names of its events.
fn round_events(from: u64, to: u64) -> BTreeMap<u64, Vec<String>> {
    let priced = || "PricingDataSet".to_owned();
    let at = |n: u64| match n % 10 {
        0 => vec!["OptionRoundDeployed".to_owned(), priced()],
        1..=3 => vec![priced()],
        _ => Vec::new(),
    };
    (from..=to).map(|n| (n, at(n))).collect()
}

fn kept(blocks: &[Block]) -> BTreeMap<u64, Vec<String>> {
    let names = |block: &Block| block.events.iter().map(|e| e.name.to_string()).collect();
    blocks.iter().map(|block| (block.link.height.get(), names(block))).collect()
}

/// The stored events that the source wants back.
fn recalled(source: &StarknetSource, blocks: &[Block]) -> Vec<(Height, Event)> {
    let recalls = source.recalls();
    let wanted = |event: &Event| {
        recalls.iter().any(|r| r.name == event.name && r.emitter.as_ref().is_none_or(|e| *e == event.emitter))
    };
    let all = blocks.iter().flat_map(|b| b.events.iter().map(|e| (b.link.height, e.clone())));
    all.filter(|(_, event)| wanted(event)).collect()
}

#[tokio::test]
async fn rounds_are_found_in_whatever_order_ranges_are_read() {
    let blocks = chain(0, 300, None, "a", with_rounds);
    let node = FakeStarknet::start(blocks.clone()).await;
    // Searched, whole near the head, and across the border; several at once, as the syncer asks.
    let source = following(&node, vaults()).await;
    source.recall(&[]).await.unwrap();
    source.resume(None, None).await.unwrap();
    let ranges: Vec<_> = (0..300).step_by(25).map(|from| range(from, from + 24)).collect();
    let read = futures::future::try_join_all(ranges.iter().rev().map(|r| source.blocks(r.clone()))).await.unwrap();
    let read: Vec<Block> = read.into_iter().rev().flatten().collect();
    assert_linked(&read, &blocks);
    assert_eq!(kept(&read), round_events(0, 299));
    assert!(node.call_count("starknet_getEvents") > 0);
    println!("{} events of 30 rounds", read.iter().map(|b| b.events.len()).sum::<usize>());
    // Every token besides: nothing is searched, all the same.
    let every = following(&node, DecodeSettings { tokens: Vec::new(), ..vaults() }).await;
    let read = futures::future::try_join_all(ranges.iter().map(|r| every.blocks(r.clone()))).await.unwrap();
    assert_eq!(kept(&read.concat()), round_events(0, 299));
}

#[tokio::test]
async fn what_was_found_is_found_again_after_a_restart_and_forgotten_with_its_block() {
    let blocks = chain(0, 100, None, "a", with_rounds);
    let node = FakeStarknet::start(blocks.clone()).await;
    let first = following(&node, vaults()).await;
    let stored = first.blocks(range(0, 51)).await.unwrap();
    let tip = stored.last().unwrap().link.block_ref();
    // Another process: round 5, made at 50, speaks at 52 and 53.
    let second = following(&node, vaults()).await;
    let events = recalled(&second, &stored);
    assert_eq!(events.len(), 6, "one for each round");
    second.recall(&events).await.unwrap();
    second.resume(Some(&tip), None).await.unwrap();
    assert_eq!(kept(&second.blocks(range(52, 55)).await.unwrap()), round_events(52, 55));
    // Without what is stored it would not know of it.
    let forgetful = following(&node, vaults()).await;
    forgetful.recall(&[]).await.unwrap();
    forgetful.resume(Some(&tip), None).await.unwrap();
    assert_eq!(kept(&forgetful.blocks(range(52, 53)).await.unwrap())[&52], Vec::<String>::new());
    // The chain is replaced from 50 on, without that round: what it says is nobody's business any more.
    let replaced = |n: u64| if n == 50 { Vec::new() } else { with_rounds(n) };
    let branch = chain(50, 10, Some(&blocks[49]), "b", replaced);
    node.set_chain([&blocks[..50], &branch].concat());
    second.head().await.unwrap();
    let read = second.blocks(range(50, 59)).await.unwrap();
    assert_linked(&read, &branch);
    assert!(kept(&read).values().all(Vec::is_empty), "{:?}", kept(&read));
    // And round 4, made below, is still followed: it speaks at 43 when that is asked for again.
    assert_eq!(kept(&second.blocks(range(43, 43)).await.unwrap()), round_events(43, 43));
}

#[tokio::test]
async fn a_range_that_another_call_gave_up_is_brought_by_the_next() {
    let blocks = chain(0, 100, None, "a", with_rounds);
    let node = FakeStarknet::start(blocks.clone()).await;
    let source = following(&node, vaults()).await;
    source.resume(Some(&BlockRef { height: height(9), hash: Hash::new(blocks[9].hash.as_str()) }), None).await.unwrap();
    // Dropped half way, as the syncer drops what it has under way.
    let mut given_up = Box::pin(source.blocks(range(10, 29)));
    assert!(futures::poll!(given_up.as_mut()).is_pending());
    let mut waits = Box::pin(source.blocks(range(30, 39)));
    assert!(futures::poll!(waits.as_mut()).is_pending());
    drop(given_up);
    assert_eq!(kept(&waits.await.unwrap()), round_events(30, 39));
    // Again, and lower: the higher one is decoded again afterwards.
    let both = futures::future::try_join(source.blocks(range(20, 29)), source.blocks(range(30, 39))).await.unwrap();
    assert_eq!((kept(&both.0), kept(&both.1)), (round_events(20, 29), round_events(30, 39)));
}

#[tokio::test]
async fn vaults_that_the_deployer_makes_are_followed_from_their_constructor() {
    let made = |number: u64| match number {
        30 => vec![tx(vec![
            named(VAULT, "OptionRoundDeployed", &[], &["0x1", "0x21"]),
            named(UDC, "ContractDeployed", &[], &[VAULT, "0xde", "0x0", "0xc1a55", "0x0", "0x1"]),
        ])],
        10 => vec![tx(vec![named(UDC, "ContractDeployed", &[], &["0x12", "0xde", "0x0", "0xbad", "0x0", "0x1"])])],
        _ => vec![tx(vec![named(VAULT, "Deposit", &["0x1"], &[]), named("0x21", "BidPlaced", &["0x1"], &[])])],
    };
    let node = FakeStarknet::start(chain(0, 120, None, "a", made)).await;
    let decode = DecodeSettings { vault_class_hash: Some("0x0c1a55".into()), ..tokens(&["none"]) };
    for limit in [119, 40] {
        // Searched up to 55, and whole above; the second time all of it is near the head.
        node.set_chain(chain(0, limit + 1, None, "a", made));
        let source = following(&node, decode.clone()).await;
        let read = kept(
            &futures::future::try_join(source.blocks(range(0, 20)), source.blocks(range(21, 40)))
                .await
                .map(|(a, b)| [a, b].concat())
                .unwrap(),
        );
        assert!(read.range(..30).all(|(_, names)| names.is_empty()));
        assert_eq!(read[&30], ["OptionRoundDeployed", "ContractDeployed"]);
        assert!(read.range(31..).all(|(_, names)| *names == ["Deposit", "BidPlaced"]), "{read:?}");
        // A restart knows of both from what is stored.
        let stored = source.blocks(range(0, 35)).await.unwrap();
        let again = following(&node, decode.clone()).await;
        let events = recalled(&again, &stored);
        assert_eq!(events.len(), 2);
        again.recall(&events).await.unwrap();
        again.resume(stored.last().map(|b| b.link.block_ref()).as_ref(), None).await.unwrap();
        assert_eq!(kept(&again.blocks(range(36, 36)).await.unwrap())[&36], ["Deposit", "BidPlaced"]);
    }
}

#[tokio::test]
async fn what_contracts_said_before_they_were_followed_can_be_asked_for() {
    let said = |number: u64| {
        let mut txs = vec![tx(vec![new_transfer(VAULT, ALICE, BOB, 1), named(OTHER, "Approval", &["0x1"], &[])])];
        if number.is_multiple_of(2) {
            txs.push(tx(vec![named("0x99", "Noise", &[], &[]), named(VAULT, "Deposit", &["0x1"], &[])]));
        }
        txs
    };
    let blocks = chain(0, 400, None, "a", said);
    let node = FakeStarknet::start(blocks.clone()).await;
    node.odd(Oddity::LargestPage(30));
    // Its movements are stored already where every token is followed, and events where none is.
    for (decode, with_transfers) in [(DecodeSettings::default(), false), (tokens(&["none"]), true)] {
        let source = following(&node, decode).await;
        let (mut from, mut found) = (0, Vec::new());
        let mut calls = 0;
        while from <= 300 {
            let (blocks, through) = source.events_of(&["0x0011".into()], range(from, 300)).await.unwrap();
            assert!(through.get() >= from && blocks.iter().all(|b| b.link.height <= through));
            found.extend(blocks);
            from = through.get() + 1;
            calls += 1;
        }
        assert!(calls > 1, "not all at once");
        let places: Vec<_> = found
            .iter()
            .flat_map(|b| b.events.iter().map(|e| (b.link.height.get(), e.tx_index, e.event_index, e.name.to_string())))
            .collect();
        let wanted: Vec<_> = (0..=300u64)
            .flat_map(|n| {
                let transfer = with_transfers.then(|| (n, 0, 0, "Transfer".to_owned()));
                transfer.into_iter().chain(n.is_multiple_of(2).then(|| (n, 1, 1, "Deposit".to_owned())))
            })
            .collect();
        assert_eq!(places, wanted);
        assert!(found.iter().all(|b| b.token_events.is_empty() && b.rejects.is_empty()));
        assert!(
            found.iter().all(|b| b.transactions.iter().all(|tx| b.events.iter().any(|e| e.tx_index == tx.tx_index)))
        );
        println!("{} events in {calls} calls", places.len());
    }
    let source = following(&node, DecodeSettings::default()).await;
    assert_eq!(source.events_of(&["0x77".into()], range(5, 399)).await.unwrap(), (Vec::new(), height(399)));
    assert_eq!(fault_of(source.events_of(&["vault".into()], range(5, 6)).await).0, FaultKind::Permanent);
}

#[tokio::test]
async fn a_chain_that_changes_while_it_is_read_is_looked_at_again() {
    let a = lively(200, "a");
    let b = [&a[..90], &chain(90, 115, Some(&a[89]), "b", some)].concat();
    let node = FakeStarknet::start(a).await;
    for decode in [DecodeSettings::default(), tokens(&[TOKEN])] {
        let source = following(&node, decode).await;
        let mut seen = Vec::new();
        for requests in 0..5 {
            node.set_chain(lively(200, "a"));
            // A read that goes well: after three changes in a row it would be called a fault of the node.
            source.blocks(range(80, 110)).await.unwrap();
            node.set_chain_after(requests, b.clone());
            match source.blocks(range(80, 110)).await {
                Ok(read) => {
                    // Whichever branch it is, it is one.
                    assert!(read.windows(2).all(|two| two[1].link.parent_hash == two[0].link.hash));
                    seen.push("whole");
                }
                Err(error) => {
                    assert_eq!(error.kind(), FaultKind::Changed, "{error}");
                    seen.push("changed");
                }
            }
        }
        println!("{seen:?}");
        assert!(seen.contains(&"changed"), "{seen:?}");
    }
}

#[tokio::test]
async fn two_nodes_must_agree_before_blocks_are_undone_and_one_takes_over() {
    let a = lively(50, "a");
    let b = [&a[..45], &chain(45, 6, Some(&a[44]), "b", some)].concat();
    let (one, two) = (FakeStarknet::start(b.clone()).await, FakeStarknet::start(a.clone()).await);
    let source = StarknetSource::new(settings(&[&one, &two], DecodeSettings::default())).unwrap();
    let new = source.head().await.unwrap().block;
    let undone: Vec<BlockRef> = a[45..]
        .iter()
        .map(|block| BlockRef { height: height(block.number), hash: Hash::new(block.hash.as_str()) })
        .collect();
    assert!(!source.confirm_undo(&undone, &new).await.unwrap());
    two.set_chain(b.clone());
    assert!(source.confirm_undo(&undone, &new).await.unwrap());
    one.fault(Fault::Http(503, ""));
    assert_eq!(source.head().await.unwrap().block, new);
    // Another network in its place does not count.
    one.heal();
    one.set_chain_id("0x1");
    let other = StarknetSource::new(settings(&[&two, &one], DecodeSettings::default())).unwrap();
    assert_eq!(fault_of(other.identify().await).0, FaultKind::Permanent);
}

#[tokio::test]
async fn heads_and_reorganisations_wake_and_silence_does_not_hold_up() {
    let blocks = lively(10, "a");
    let node = FakeStarknet::start(blocks.clone()).await;
    let with_ws = StarknetSettings { ws_url: Some(node.ws_url()), ..settings(&[&node], DecodeSettings::default()) };
    let source = StarknetSource::new(with_ws).unwrap();
    let long = Duration::from_secs(3_600);
    let wakes = async || tokio::time::timeout(Duration::from_secs(10), source.wait(long)).await.unwrap();
    wakes().await;
    let silent = Instant::now();
    source.wait(Duration::from_millis(50)).await;
    assert!(silent.elapsed() >= Duration::from_millis(45), "no wake without a cause");
    node.ring();
    wakes().await;
    node.tell("starknet_subscriptionReorg", json!({"starting_block_number": 5, "ending_block_number": 9}));
    wakes().await;
    node.hang_up();
    wait_until("the old connection is gone", async || (node.subscribers() == 0).then_some(())).await;
    wakes().await;
    wait_until("a new connection stands", async || (node.subscribers() == 1).then_some(())).await;
    drop(source);
    wait_until("nobody listens any more", async || (node.subscribers() == 0).then_some(())).await;
}

#[tokio::test]
async fn the_start_is_the_first_deployment_of_what_is_listed() {
    let node = FakeStarknet::start(lively(1_000, "a")).await;
    for deployed in [0, 1, 499, 700, 999] {
        node.set_there(TOKEN, deployed);
        node.set_there(VAULT, 700);
        let decode = DecodeSettings { contracts: vec![VAULT.into()], ..tokens(&[TOKEN]) };
        let source = StarknetSource::new(settings(&[&node], decode)).unwrap();
        assert_eq!(source.first_height().await.unwrap(), height(deployed.min(700)));
    }
    for (decode, no_state) in [(DecodeSettings::default(), false), (tokens(&[OTHER]), false), (tokens(&[TOKEN]), true)]
    {
        if no_state {
            node.fault(Fault::NoState);
        }
        let (kind, words) = fault_of(StarknetSource::new(settings(&[&node], decode)).unwrap().first_height().await);
        assert!(kind == FaultKind::Permanent && words.contains("--start-height"), "{words}");
    }
    node.heal();
    let source = StarknetSource::new(settings(&[&node], tokens(&[TOKEN]))).unwrap();
    source.identify().await.unwrap();
    node.fault(Fault::Http(503, ""));
    assert_eq!(fault_of(source.first_height().await).0, FaultKind::Transient);
}

#[tokio::test]
async fn a_vault_that_is_registered_before_it_is_deployed_is_waited_for() {
    let node = FakeStarknet::start(lively(1_000, "a")).await;
    let source = StarknetSource::new(settings(&[&node], tokens(&["none"]))).unwrap();
    source.follow(&["0x12".into()]).await.unwrap();
    let (kind, words) = fault_of(source.first_height().await);
    assert!(kind == FaultKind::Transient && words.contains("0x12"), "{words}");
    // Another one's history does not wait for it.
    node.set_there(VAULT, 700);
    source.follow(&["0x12".into(), VAULT.into()]).await.unwrap();
    assert_eq!(source.first_height().await.unwrap(), height(700));
    node.set_there("0x12", 999);
    source.follow(&["0x12".into()]).await.unwrap();
    assert_eq!(source.first_height().await.unwrap(), height(999));
    // What the settings name must be there, whoever is registered.
    let source = StarknetSource::new(settings(&[&node], tokens(&[OTHER]))).unwrap();
    source.follow(&[VAULT.into()]).await.unwrap();
    let (kind, words) = fault_of(source.first_height().await);
    assert!(kind == FaultKind::Permanent && words.contains(OTHER) && words.contains("--start-height"), "{words}");
}

#[tokio::test]
async fn tokens_describe_themselves_and_survive_nonsense() {
    let node = FakeStarknet::start(lively(3, "a")).await;
    node.set_answer(TOKEN, "symbol", &["0x455448"]);
    node.set_answer(TOKEN, "name", &["0x4574686572"]);
    node.set_answer(TOKEN, "decimals", &["0x12"]);
    node.set_answer(OTHER, "symbol", &["0x0", "0x5354524b", "0x4"]);
    node.set_answer(OTHER, "name", &["0xffffffffff", "0x1"]);
    node.set_answer(OTHER, "decimals", &["0x1000"]);
    let source = following(&node, DecodeSettings::default()).await;
    let told = source.token_metadata(&[TOKEN.into(), OTHER.into(), VAULT.into()]).await.unwrap();
    let told: Vec<_> = told.iter().map(|t| (&*t.token, t.symbol.as_deref(), t.name.as_deref(), t.decimals)).collect();
    assert_eq!(
        told,
        [(TOKEN, Some("ETH"), Some("Ether"), Some(18)), (OTHER, Some("STRK"), None, None), (VAULT, None, None, None)]
    );
    node.fault(Fault::Refused(-32005, "rate limit exceeded"));
    assert_eq!(fault_of(source.token_metadata(&[TOKEN.into()]).await).0, FaultKind::Transient);
}

#[tokio::test]
async fn settings_that_cannot_be_meant_are_refused_by_name() {
    let good = StarknetSettings { urls: vec!["http://127.0.0.1:5050".into()], ..StarknetSettings::default() };
    let with = |change: fn(&mut StarknetSettings)| {
        let mut settings = good.clone();
        change(&mut settings);
        StarknetSource::new(settings)
    };
    with(|_| ()).unwrap();
    for (word, result) in [
        ("url", with(|s| s.urls.clear())),
        ("url", with(|s| s.urls[0] = "ftp://127.0.0.1/TOPSECRET".into())),
        ("ws_url", with(|s| s.ws_url = Some("http://127.0.0.1/TOPSECRET".into()))),
        ("token", with(|s| s.decode.tokens = vec!["STRK".into()])),
        ("contract", with(|s| s.decode.contracts = vec!["0x".into()])),
        ("concurrency", with(|s| s.concurrency = 0)),
        ("request_timeout", with(|s| s.request_timeout = Duration::ZERO)),
        ("body_limit", with(|s| s.body_limit = 0)),
    ] {
        let (kind, words) = fault_of(result);
        assert!(kind == FaultKind::Permanent && words.contains(word), "{word}: {words}");
    }
}
