//! The gno source against an indexer that serves real HTTP and WebSocket.

use std::time::{Duration, Instant};

use ebbtide::chain::{Block, BlockRef, Hash, Height, Text};
use ebbtide::sources::gno::decode::DecodeSettings;
use ebbtide::sources::gno::{GnoSettings, GnoSource};
use ebbtide::sources::{FaultKind, Source, SourceError};
use serde_json::{Value, json};

use crate::support::fake_indexer::chain::genesis_hash;
use crate::support::fake_indexer::{Bounds, FakeBlock, FakeIndexer, Fault, blocks_from, hash_of, new_token, transfer};
use crate::support::{self, data_dir, wait_until};

const ALICE: &str = "g1jg8mtutu9khhfwc4nxmuhcpftf0pajdhfvsqf5";
const BOB: &str = "g1ffzxha57dh0qgv9ma5v393ur0zexfvp6lsjpae";
const WUGNOT: &str = "gno.land/r/gnoland/wugnot.wugnot.0000000";
const NO_HASH: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// Two transactions in every third block, with an event at the same place in both.
fn lively(height: u64) -> Vec<Vec<Value>> {
    match height % 3 {
        0 => vec![
            vec![json!({}), transfer(WUGNOT, "", ALICE, height + 10)],
            vec![Value::Null, transfer(WUGNOT, ALICE, BOB, 3)],
        ],
        1 => vec![Vec::new()],
        _ => Vec::new(),
    }
}

fn chain(len: u64) -> Vec<FakeBlock> {
    blocks_from(0, len, None, "a", lively)
}

fn forked(old: &[FakeBlock], stem: usize, len: u64, branch: &str) -> Vec<FakeBlock> {
    let stem = &old[..stem];
    let from = stem.len() as u64;
    [stem.to_vec(), blocks_from(from, len - from, stem.last(), branch, lively)].concat()
}

fn settings(indexers: &[&FakeIndexer]) -> GnoSettings {
    GnoSettings {
        urls: indexers.iter().map(|indexer| indexer.url()).collect(),
        confirm_blocks: 0,
        request_timeout: Duration::from_millis(400),
        ..GnoSettings::default()
    }
}

async fn source(indexer: &FakeIndexer, change: impl FnOnce(&mut GnoSettings)) -> GnoSource {
    let mut settings = settings(&[indexer]);
    change(&mut settings);
    let source = GnoSource::new(settings).unwrap();
    source.identify().await.unwrap();
    source.resume(None, None).await.unwrap();
    source
}

fn height(height: u64) -> Height {
    Height::new(height).unwrap()
}

async fn blocks(source: &GnoSource, from: u64, to: u64) -> Result<Vec<Block>, SourceError> {
    source.blocks(height(from)..=height(to)).await
}

async fn read_all(source: &GnoSource, from: u64, to: u64) -> Vec<Block> {
    let mut read = Vec::new();
    let (mut at, mut width) = (from, to);
    while at <= to {
        match blocks(source, at, to.min(at + width)).await {
            Ok(more) => {
                at = more.last().unwrap().link.height.get() + 1;
                read.extend(more);
            }
            Err(SourceError::RangeTooLarge { .. }) => width /= 2,
            Err(error) => panic!("{error}"),
        }
    }
    read
}

fn block_ref(block: &FakeBlock) -> BlockRef {
    let hash = if block.height == 0 { genesis_hash(block) } else { block.hash.clone() };
    BlockRef { height: height(block.height), hash: Hash::new(hash) }
}

/// The blocks read are these, with all they hold.
fn same(read: &[Block], wanted: &[FakeBlock]) {
    assert_eq!(read.len(), wanted.len());
    for (block, fake) in read.iter().zip(wanted) {
        assert_eq!(block.link.block_ref(), block_ref(fake));
        assert_eq!(block.time, fake.time.parse().ok());
        assert!(block.time.is_some());
        let mut moved = Vec::new();
        for tx in &fake.txs {
            for (place, event) in tx.events.iter().enumerate().filter(|(_, event)| event["type"] == "Transfer") {
                let attr = |key: &str| {
                    let attrs = event["attrs"].as_array().unwrap();
                    attrs.iter().find(|a| a["key"] == key).unwrap()["value"].as_str().unwrap().to_owned()
                };
                moved.push((tx.index, place as u64, attr("token"), attr("from"), attr("to"), attr("value")));
            }
        }
        let side = |address: &Option<Text>| address.as_deref().unwrap_or_default().to_owned();
        let read: Vec<_> = block
            .token_events
            .iter()
            .map(|e| (e.tx_index, e.event_index, e.token.to_string(), side(&e.from), side(&e.to), e.amount.to_string()))
            .collect();
        assert_eq!(read, moved, "block {}", fake.height);
        let mut named: Vec<(u64, &str)> =
            fake.txs.iter().filter(|tx| !tx.events.is_empty()).map(|tx| (tx.index, tx.hash.as_str())).collect();
        named.sort_unstable();
        let hashes: Vec<(u64, &str)> = block.transactions.iter().map(|t| (t.tx_index, &*t.hash)).collect();
        assert_eq!(hashes, named, "block {}", fake.height);
    }
    for pair in read.windows(2) {
        assert_eq!(pair[1].link.parent_hash, pair[0].link.hash, "block {}", pair[1].link.height);
    }
}

#[tokio::test]
async fn a_chain_is_read_block_for_block_by_half_open_pages() {
    let chain = chain(300);
    let indexer = FakeIndexer::start(chain.clone()).await;
    let source = source(&indexer, |settings| settings.page_blocks = 100).await;
    assert_eq!(source.identify().await.unwrap().network_id.as_deref(), Some("test-13"));
    assert_eq!(source.first_height().await.unwrap(), height(0));
    let head = source.head().await.unwrap();
    assert_eq!((head.block, head.finalized, head.truth), (block_ref(&chain[299]), None, false));
    same(&read_all(&source, 0, 299).await, &chain);
    let asked: Vec<Bounds> = indexer.pages().iter().map(|page| page.blocks.unwrap()).collect();
    let span = |gt, lt| Bounds { eq: None, gt: Some(gt), lt: Some(lt) };
    let genesis = Bounds { eq: Some(0), ..Bounds::default() };
    assert_eq!(asked, [genesis, span(0, 101), span(100, 201), span(200, 300)], "genesis alone, then by page_blocks");
    println!("300 blocks in {} pages", asked.len());
    let links = source.links(height(0)..=height(310)).await.unwrap();
    assert_eq!(links.len(), 300, "heights above the head are left out");
    assert_eq!(links[1].parent_hash, links[0].hash);
    assert_eq!(links[0].parent_hash.as_str(), NO_HASH);
    assert!(source.links(height(400)..=height(410)).await.unwrap().is_empty());
}

#[tokio::test]
async fn without_genesis_it_begins_at_block_1() {
    let chain = chain(20);
    let indexer = FakeIndexer::start(chain[1..].to_vec()).await;
    let source = source(&indexer, |_| {}).await;
    assert_eq!(source.first_height().await.unwrap(), height(1));
    let read = blocks(&source, 1, 19).await.unwrap();
    assert_eq!(read[0].link.parent_hash.as_str(), NO_HASH);
    assert_eq!(source.links(height(1)..=height(1)).await.unwrap()[0], read[0].link);
    same(&read, &chain[1..]);
    let error = blocks(&source, 0, 19).await.unwrap_err();
    assert!(error.kind() == FaultKind::Transient && error.to_string().contains("block 0 is missing"), "{error}");
}

#[tokio::test]
async fn chains_that_differ_in_genesis_alone_differ_at_height_0() {
    let chain = chain(5);
    let indexer = FakeIndexer::start(chain.clone()).await;
    let source = source(&indexer, |_| {}).await;
    let before = source.links(height(0)..=height(1)).await.unwrap();
    let mut other = chain.clone();
    other[0].time = "2026-07-01T00:00:00.6Z".to_owned();
    indexer.set_chain(other);
    let after = source.links(height(0)..=height(1)).await.unwrap();
    assert_ne!(before[0].hash, after[0].hash);
    assert_eq!(after[1].parent_hash, after[0].hash);
    assert_eq!(before[1].hash, after[1].hash);
}

#[tokio::test]
async fn events_of_transactions_that_failed_are_not_there() {
    let mut chain = chain(7);
    chain[3].txs[0].success = false;
    let indexer = FakeIndexer::start(chain.clone()).await;
    let read = blocks(&source(&indexer, |_| {}).await, 1, 6).await.unwrap();
    let places = |block: &Block| block.token_events.iter().map(|e| (e.tx_index, e.event_index)).collect::<Vec<_>>();
    assert_eq!(places(&read[2]), [(1, 1)]);
    assert_eq!(places(&read[5]), [(0, 1), (1, 1)], "two transactions with an event at the same place");
    assert_eq!(read[2].transactions.len(), 1);
}

#[tokio::test]
async fn a_capped_page_is_void_and_halved_and_grows_again() {
    let chain = chain(400);
    let indexer = FakeIndexer::start(chain.clone()).await;
    let source = source(&indexer, |settings| settings.page_blocks = 64).await;
    indexer.fault(Fault::Cap(40));
    let error = blocks(&source, 1, 64).await.unwrap_err();
    assert!(matches!(error, SourceError::RangeTooLarge { at_most: Some(32), .. }), "{error:?}");
    let pages = indexer.pages().len();
    let error = blocks(&source, 1, 64).await.unwrap_err();
    assert!(matches!(error, SourceError::RangeTooLarge { at_most: Some(32), .. }), "{error:?}");
    assert_eq!(indexer.pages().len(), pages, "it is remembered that so many are too much");
    same(&blocks(&source, 1, 32).await.unwrap(), &chain[1..33]);
    indexer.heal();
    for page in 0..9 {
        blocks(&source, 1 + 32 * page, 32 + 32 * page).await.unwrap();
    }
    assert_eq!(blocks(&source, 1, 64).await.unwrap().len(), 64, "after ten clean pages");
}

#[tokio::test]
async fn a_block_beyond_the_cap_is_read_by_ranges_of_its_transactions() {
    let crowd = |height: u64| {
        let count = if height == 3 { 2_345 } else { 1 };
        (0..count).map(|n| vec![transfer(WUGNOT, "", ALICE, n + 1)]).collect()
    };
    for cap in [2_000, 300, 2] {
        let chain = blocks_from(0, 5, None, "a", crowd);
        let indexer = FakeIndexer::start(chain.clone()).await;
        let source = source(&indexer, |_| {}).await;
        indexer.fault(Fault::Cap(cap));
        if cap == 2 {
            indexer.set_chain(blocks_from(0, 5, None, "a", |n| crowd(n).into_iter().take(9).collect()));
        }
        let read = blocks(&source, 3, 3).await.unwrap();
        if cap > 2 {
            same(&read, &chain[3..4]);
        } else {
            assert_eq!(read[0].token_events.len(), 9);
        }
        println!("cap {cap}: {} questions", indexer.asked().len());
    }
    let chain = blocks_from(0, 5, None, "a", crowd);
    let indexer = FakeIndexer::start(chain).await;
    let source = source(&indexer, |_| {}).await;
    indexer.fault(Fault::Cap(300));
    indexer.fault(Fault::MissingTx(3, 2_000));
    let error = blocks(&source, 3, 3).await.unwrap_err();
    assert!(error.to_string().contains("lacks 1 of its 2345"), "{error}");
}

#[tokio::test]
async fn a_range_without_a_transaction_is_not_the_end_of_a_block_beyond_the_cap() {
    // Read one at a time: where one was never stored there is nothing, and more behind it.
    let nine = |_| (0..9).map(|n| vec![transfer(WUGNOT, "", ALICE, n + 1)]).collect();
    for (lost, place) in
        [(&[4u64][..], "in the middle"), (&[0], "at the front"), (&[8], "at the end"), (&[3, 4, 7], "several")]
    {
        let indexer = FakeIndexer::start(blocks_from(0, 5, None, "a", nine)).await;
        let source = source(&indexer, |settings| {
            settings.incomplete_after = Duration::from_millis(20);
            settings.skip_incomplete = true;
        })
        .await;
        indexer.fault(Fault::Cap(2));
        lost.iter().for_each(|index| indexer.fault(Fault::MissingTx(3, *index)));
        let error = blocks(&source, 3, 3).await.unwrap_err();
        assert!(error.to_string().contains(&format!("lacks {} of its 9", lost.len())), "{place}: {error}");
        // What is done without is what was lost, and not what comes after it.
        let read = wait_until("the loss is accepted", async || blocks(&source, 3, 3).await.ok()).await;
        let there: Vec<u64> = read[0].token_events.iter().map(|event| event.tx_index).collect();
        assert_eq!(there, (0..9).filter(|index| !lost.contains(index)).collect::<Vec<_>>(), "{place}");
        assert_eq!(read[0].rejects[0].raw["missing"], json!(lost), "{place}");
    }
}

#[tokio::test]
async fn nothing_is_null_and_that_is_no_fault() {
    let quiet = blocks_from(0, 10, None, "a", |_| Vec::new());
    let indexer = FakeIndexer::start(quiet.clone()).await;
    let source = source(&indexer, |_| {}).await;
    same(&blocks(&source, 1, 9).await.unwrap(), &quiet[1..]);
    indexer.fault(Fault::Null);
    let error = blocks(&source, 1, 9).await.unwrap_err();
    assert!(error.kind() == FaultKind::Transient && error.to_string().contains("block 1 is missing"), "{error}");
    assert!(source.links(height(1)..=height(9)).await.unwrap().is_empty());
}

#[tokio::test]
async fn what_is_not_whole_is_waited_for_and_then_complained_of() {
    let chain = chain(30);
    for (fault, what) in
        [(Fault::MissingBlock(12), "block 12 is missing"), (Fault::MissingTx(12, 1), "block 12 lacks 1 of its 2")]
    {
        let indexer = FakeIndexer::start(chain.clone()).await;
        let source = source(&indexer, |settings| settings.incomplete_after = Duration::from_millis(500)).await;
        indexer.fault(fault.clone());
        same(&blocks(&source, 1, 29).await.unwrap(), &chain[1..12]);
        let error = blocks(&source, 12, 29).await.unwrap_err();
        assert_eq!(error.kind(), FaultKind::Transient, "{error}");
        assert!(error.to_string().contains(what), "{error}");
        let error = wait_until("it is complained of", async || {
            let error = blocks(&source, 12, 29).await.unwrap_err();
            (error.kind() != FaultKind::Transient).then_some(error)
        })
        .await;
        assert_eq!(error.kind(), FaultKind::Incomplete);
        assert!(error.to_string().contains("block 12 is incomplete") && error.to_string().contains(what), "{error}");
        indexer.heal();
        same(&blocks(&source, 12, 29).await.unwrap(), &chain[12..]);
        indexer.fault(fault);
        let error = blocks(&source, 12, 29).await.unwrap_err();
        assert_eq!(error.kind(), FaultKind::Transient, "another time begins again: {error}");
    }
}

#[tokio::test]
async fn a_loss_that_is_accepted_is_recorded() {
    let chain = chain(30);
    let indexer = FakeIndexer::start(chain.clone()).await;
    let patience = Duration::from_millis(300);
    let source = source(&indexer, |settings| {
        settings.incomplete_after = patience;
        settings.skip_incomplete = true;
    })
    .await;
    indexer.fault(Fault::MissingTx(9, 0));
    for height in [14, 15, 16] {
        indexer.fault(Fault::MissingBlock(height));
    }
    let (mut read, mut next) = (Vec::new(), 1);
    let begun = Instant::now();
    while next <= 29 {
        if let Ok(more) = blocks(&source, next, 29).await {
            read.extend(more);
            next = read.last().unwrap().link.height.get() + 1;
        } else {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let took = begun.elapsed();
    assert!(took >= patience && took < 4 * patience, "waited for once, not once a block: {took:?}");
    let lost: Vec<_> = read
        .iter()
        .flat_map(|b| b.rejects.iter().map(move |r| (b.link.height.get(), r.tx_index, &*r.reason, &r.raw)))
        .collect();
    let gone = |height: u64| json!({"height": height, "missing": "block"});
    assert_eq!(
        lost,
        [
            (9, 0, "incomplete_block", &json!({"height": 9, "num_txs": 2, "missing": [0]})),
            (14, 0, "incomplete_block", &gone(14)),
            (15, 0, "incomplete_block", &gone(15)),
            (16, 0, "incomplete_block", &gone(16)),
        ]
    );
    assert_eq!(read[8].token_events.len(), 1, "what is there of block 9 is taken");
    for pair in read.windows(2) {
        assert_eq!(pair[1].link.parent_hash, pair[0].link.hash, "block {}", pair[1].link.height);
    }
    assert_eq!(read[15].link.hash.as_str(), chain[16].hash, "named by the block above it");
    for range in [(1, 29), (14, 14), (15, 16), (15, 20), (10, 15), (16, 16), (17, 29)] {
        let links = source.links(height(range.0)..=height(range.1)).await.unwrap();
        let stored: Vec<_> = read.iter().map(|block| block.link.clone()).collect();
        assert_eq!(links, stored[range.0 as usize - 1..range.1 as usize], "{range:?}");
    }
    assert_eq!(source.links(height(28)..=height(33)).await.unwrap().len(), 2, "above the head nothing is missing");
}

#[tokio::test]
async fn what_contradicts_itself_is_not_taken() {
    let chain = chain(30);
    for (fault, what) in [
        (Fault::TxTwice(12, 1), "transaction 1 of block 12 came twice"),
        (Fault::BlockTwice(12), "block 12 came twice"),
        (Fault::StrayTx, "a transaction of block 30 came, but 1 to 28 were asked for"),
        (Fault::StrayBlock, "block 0 came, but 1 to 28 were asked for"),
        (Fault::TxTooMany(11), "block 11 has 0 transactions, but one is number 0"),
        (Fault::BadLink(12), "block 12 names the parent"),
        (Fault::BadHash(12), "block 12 names itself \"0xab\""),
    ] {
        let indexer = FakeIndexer::start(chain.clone()).await;
        let source = source(&indexer, |_| {}).await;
        indexer.fault(fault.clone());
        let error = blocks(&source, 1, 28).await.expect_err(what);
        assert_eq!(error.kind(), FaultKind::Transient, "{fault:?}: {error}");
        assert!(error.to_string().contains(what), "{fault:?}: {error}");
        indexer.heal();
        same(&blocks(&source, 1, 28).await.unwrap(), &chain[1..29]);
    }
}

#[tokio::test]
async fn another_chain_behind_the_url_is_refused() {
    let indexer = FakeIndexer::start(chain(30)).await;
    let source = source(&indexer, |_| {}).await;
    indexer.fault(Fault::ChainId("test-14"));
    for error in [
        blocks(&source, 1, 28).await.unwrap_err(),
        source.links(height(1)..=height(3)).await.unwrap_err(),
        source.head().await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), FaultKind::Permanent, "{error}");
        assert!(error.to_string().contains("test-14, expected test-13"), "{error}");
    }
    // Asked again, it says what it hears: what is stored decides, and what was set.
    assert_eq!(source.identify().await.unwrap().network_id.as_deref(), Some("test-14"));
    let pinned = GnoSource::new(GnoSettings { network_id: Some("topaz-1".into()), ..settings(&[&indexer]) }).unwrap();
    let error = pinned.identify().await.unwrap_err();
    assert_eq!(error.kind(), FaultKind::Permanent, "{error}");
}

/// Every row of the table of faults.
#[tokio::test]
async fn each_fault_has_its_kind() {
    let chain = chain(30);
    let validation = r#"{"errors":[{"message":"Cannot query field \"func\" on type \"GnoEvent\"."}],"data":null}"#;
    let html = "<!DOCTYPE html><html>hello</html>";
    use FaultKind::{Permanent, RangeTooLarge, Transient};
    let cases: [(Fault, FaultKind, &str); 18] = [
        (Fault::DropSocket, Transient, ""),
        (Fault::CutBody, Transient, ""),
        (Fault::Http(500, "oops"), Transient, "HTTP 500"),
        (Fault::Http(502, html), Transient, "HTTP 502"),
        (Fault::Http(503, ""), Transient, "HTTP 503"),
        (Fault::Http(429, "{\"error\": \"too many requests\"}\n"), Transient, "429"),
        (Fault::Http(422, validation), Permanent, "Cannot query field \\\"func\\\""),
        (Fault::Http(400, "no"), Permanent, "is the URL right"),
        (Fault::Http(404, "404 page not found\n"), Permanent, "is the URL right"),
        (Fault::Http(415, ""), Permanent, "is the URL right"),
        (Fault::Http(401, ""), Permanent, "refuses access"),
        (Fault::Body(html), Permanent, "web page"),
        (Fault::Body("ok"), Transient, "not whole GraphQL JSON"),
        (Fault::Body(r#"{"data":{"getBlocks":"#), Transient, "not whole GraphQL JSON"),
        (Fault::Body(r#"{"data":null}"#), Transient, "without data"),
        (Fault::Body(r#"{"data":{"getBlocks":["x"]}}"#), Transient, "another shape"),
        (Fault::Refused("internal system error"), Transient, "internal system error"),
        (Fault::Cap(5), RangeTooLarge, "max elements per query reached"),
    ];
    for (fault, kind, what) in &cases {
        let indexer = FakeIndexer::start(chain.clone()).await;
        let source = source(&indexer, |_| {}).await;
        indexer.fault(fault.clone());
        let error = blocks(&source, 1, 28).await.expect_err(what);
        assert_eq!(error.kind(), *kind, "{fault:?}: {error}");
        assert!(error.to_string().contains(what), "{fault:?}: {error}");
        indexer.heal();
        if *kind != RangeTooLarge {
            same(&blocks(&source, 1, 28).await.unwrap(), &chain[1..29]);
        }
    }
    println!("{} faults", cases.len());
}

/// The shapes that were derived from the server's source.
#[tokio::test]
async fn the_derived_error_shapes_are_understood() {
    let Some(dir) = data_dir() else { return };
    let text = std::fs::read_to_string(dir.join("gno/derived/txindexer-error-shapes.json")).unwrap();
    let shapes: Value = serde_json::from_str(&text).unwrap();
    let shapes = shapes.as_object().unwrap();
    for (name, shape) in shapes {
        let indexer = FakeIndexer::start(chain(30)).await;
        let source = source(&indexer, |_| {}).await;
        let body = match &shape["body"] {
            Value::Null => shape["body_text"].as_str().unwrap().to_owned(),
            body => body.to_string(),
        };
        let status = u16::try_from(shape["http_status"].as_u64().unwrap()).unwrap();
        indexer.fault(Fault::Http(status, body.leak()));
        let error = blocks(&source, 1, 28).await.expect_err(name);
        let wanted = match name.as_str() {
            "capped_result" => FaultKind::RangeTooLarge,
            "nothing_matched" | "rate_limited" => FaultKind::Transient,
            "unknown_field" | "unsupported_content_type" => FaultKind::Permanent,
            other => panic!("a shape this test does not know: {other}"),
        };
        assert_eq!(error.kind(), wanted, "{name}: {error}");
    }
    println!("{} shapes", shapes.len());
}

#[tokio::test]
async fn a_server_that_counts_requests_is_left_alone_for_a_while() {
    let indexer = FakeIndexer::start(chain(30)).await;
    let source = source(&indexer, |_| {}).await;
    for (fault, least) in [(Fault::Http(429, ""), 10), (Fault::RetryAfter(3), 10), (Fault::RetryAfter(40), 40)] {
        indexer.heal();
        indexer.fault(fault);
        let SourceError::Transient { retry_after, .. } = source.head().await.unwrap_err() else { panic!("kind") };
        assert_eq!(retry_after, Some(Duration::from_secs(least)));
    }
}

#[tokio::test]
async fn the_same_error_five_times_is_not_going_away() {
    let indexer = FakeIndexer::start(chain(30)).await;
    let source = source(&indexer, |_| {}).await;
    indexer.fault(Fault::PageRefused("boom"));
    let mut kinds = Vec::new();
    let last = wait_until("it is permanent", async || {
        let error = blocks(&source, 1, 28).await.unwrap_err();
        kinds.push(error.kind());
        (error.kind() == FaultKind::Permanent).then_some(error)
    })
    .await;
    assert!(last.to_string().contains("boom") && kinds.len() >= 5, "{last} after {}", kinds.len());
    assert!(kinds[..kinds.len() - 1].iter().all(|kind| *kind == FaultKind::Transient));
    indexer.heal();
    blocks(&source, 1, 28).await.unwrap();
    indexer.fault(Fault::PageRefused("boom"));
    assert_eq!(blocks(&source, 1, 28).await.unwrap_err().kind(), FaultKind::Transient, "counted again");
}

#[tokio::test]
async fn an_indexer_that_has_nothing_yet_is_waited_for() {
    let indexer = FakeIndexer::start(chain(3)).await;
    indexer.fault(Fault::NothingYet);
    let fresh = GnoSource::new(settings(&[&indexer])).unwrap();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1_200) {
        let error = fresh.identify().await.unwrap_err();
        assert_eq!(error.kind(), FaultKind::Transient, "however often: {error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    indexer.heal();
    fresh.identify().await.unwrap();
    indexer.set_chain(chain(1));
    assert_eq!(fresh.head().await.unwrap().block, block_ref(&chain(1)[0]), "genesis alone");
}

#[tokio::test]
async fn timeouts_and_large_answers_halve_the_page() {
    let chain = chain(60);
    let indexer = FakeIndexer::start(chain.clone()).await;
    let source = source(&indexer, |_| {}).await;
    indexer.fault(Fault::HangBeyond(20));
    let error = blocks(&source, 1, 40).await.unwrap_err();
    assert!(matches!(error, SourceError::RangeTooLarge { at_most: Some(20), .. }), "{error:?}");
    same(&blocks(&source, 1, 20).await.unwrap(), &chain[1..21]);
    indexer.heal();
    indexer.fault(Fault::Hang);
    let mut width = 20;
    let down = loop {
        match blocks(&source, 1, width).await.unwrap_err() {
            SourceError::RangeTooLarge { at_most: Some(less), .. } => width = less,
            error => break error,
        }
    };
    assert_eq!(down.kind(), FaultKind::Transient, "a server that is silent is down: {down}");
    assert!(width > 1, "said before everything was tried: {width}");

    let crowd = |_| (0..400).map(|n| vec![transfer(WUGNOT, "", ALICE, n + 1)]).collect();
    let chain = blocks_from(0, 4, None, "a", crowd);
    let indexer = FakeIndexer::start(chain.clone()).await;
    let source = self::source(&indexer, |settings| settings.body_limit = 64 << 10).await;
    let error = blocks(&source, 1, 2).await.unwrap_err();
    assert!(matches!(error, SourceError::RangeTooLarge { at_most: Some(1), .. }), "{error:?}");
    same(&blocks(&source, 1, 1).await.unwrap(), &chain[1..2]);
}

#[tokio::test]
async fn it_stays_behind_the_head_and_looks_below_a_head_that_is_missing() {
    let chain = chain(200);
    let indexer = FakeIndexer::start(chain.clone()).await;
    let source = source(&indexer, |settings| settings.confirm_blocks = 3).await;
    assert_eq!(source.head().await.unwrap().block, block_ref(&chain[196]));
    indexer.fault(Fault::HeadAhead(3));
    assert_eq!(source.head().await.unwrap().block, block_ref(&chain[199]));
    indexer.fault(Fault::HeadAhead(40));
    assert_eq!(source.head().await.unwrap().block, block_ref(&chain[199]), "named, but not there yet");
    indexer.heal();
    indexer.fault(Fault::MissingBlock(196));
    assert_eq!(source.head().await.unwrap().block, block_ref(&chain[195]));
    indexer.heal();
    indexer.fault(Fault::HeadAt(1));
    assert_eq!(source.head().await.unwrap().block, block_ref(&chain[0]), "never below genesis");
}

#[tokio::test]
async fn func_is_asked_for_only_where_it_is_required() {
    let func = |kind: &str| {
        let mut event = support::fake_indexer::chain::event(
            "gno.land/r/demo/wugnot",
            "Transfer",
            &[("from", ""), ("to", ALICE), ("value", "5")],
        );
        event["func"] = json!(kind);
        event
    };
    let chain = blocks_from(0, 5, None, "a", |_| vec![vec![func("Mint"), func("Deposit")]]);
    let indexer = FakeIndexer::start(chain).await;
    let plain = source(&indexer, |_| {}).await;
    assert_eq!(blocks(&plain, 1, 1).await.unwrap()[0].token_events.len(), 2);
    assert!(indexer.asked().iter().all(|asked| !asked.func));
    let strict = source(&indexer, |settings| {
        settings.decode = DecodeSettings { require_func: true, ..DecodeSettings::default() };
    })
    .await;
    let error = blocks(&strict, 1, 1).await.unwrap_err();
    assert!(error.kind() == FaultKind::Permanent && error.to_string().contains("require_func"), "{error}");
    indexer.know_func();
    assert_eq!(blocks(&strict, 1, 1).await.unwrap()[0].token_events.len(), 1);
}

#[tokio::test]
async fn the_playground_and_a_wrong_path_are_told_apart_from_the_api() {
    let indexer = FakeIndexer::start(chain(3)).await;
    for url in [indexer.playground(), indexer.url().replace("/query", "/x")] {
        let source = GnoSource::new(GnoSettings { urls: vec![url], ..GnoSettings::default() }).unwrap();
        let error = source.identify().await.unwrap_err();
        assert_eq!(error.kind(), FaultKind::Permanent, "{error}");
        assert!(error.to_string().contains("/graphql/query"), "{error}");
    }
}

#[tokio::test]
async fn another_url_takes_over_only_with_our_blocks() {
    let chain = chain(50);
    let first = FakeIndexer::start(chain.clone()).await;
    let behind = FakeIndexer::start(chain[..40].to_vec()).await;
    let source = GnoSource::new(settings(&[&first, &behind])).unwrap();
    source.identify().await.unwrap();
    source.resume(None, None).await.unwrap();
    same(&read_all(&source, 0, 30).await, &chain[..31]);
    first.fault(Fault::Http(502, ""));
    assert_eq!(source.head().await.unwrap().block, block_ref(&chain[39]), "it has block 30, so it is ours");
    let asked = first.asked().len();
    same(&blocks(&source, 31, 39).await.unwrap(), &chain[31..40]);
    assert_eq!(first.asked().len(), asked, "the one that answered is asked");

    let first = FakeIndexer::start(chain.clone()).await;
    let other = FakeIndexer::start(forked(&chain, 20, 60, "b")).await;
    let source = GnoSource::new(settings(&[&first, &other])).unwrap();
    source.identify().await.unwrap();
    source.resume(Some(&block_ref(&chain[30])), None).await.unwrap();
    assert_eq!(source.head().await.unwrap().block, block_ref(&chain[49]));
    first.fault(Fault::Http(502, ""));
    let error = source.head().await.unwrap_err();
    assert!(error.to_string().contains("another chain of this name: its block 30"), "{error}");
    assert_eq!(error.kind(), FaultKind::Transient, "the first may come back");
    first.heal();
    assert_eq!(source.head().await.unwrap().block, block_ref(&chain[49]));

    let far_behind = FakeIndexer::start(chain[..10].to_vec()).await;
    let source = GnoSource::new(settings(&[&first, &far_behind])).unwrap();
    source.identify().await.unwrap();
    source.resume(Some(&block_ref(&chain[30])), None).await.unwrap();
    first.fault(Fault::Http(502, ""));
    let error = source.head().await.unwrap_err();
    assert!(error.to_string().contains("not known to be ours"), "{error}");
}

#[tokio::test]
async fn nobody_takes_over_for_good_before_our_tip_is_known() {
    let chain = chain(50);
    let first = FakeIndexer::start(chain.clone()).await;
    let other = FakeIndexer::start(forked(&chain, 20, 60, "b")).await;
    let source = GnoSource::new(settings(&[&first, &other])).unwrap();
    first.fault(Fault::Http(502, ""));
    source.identify().await.unwrap();
    source.resume(Some(&block_ref(&chain[30])), None).await.unwrap();
    let error = source.head().await.unwrap_err();
    assert!(error.to_string().contains("another chain of this name"), "{error}");
    first.heal();
    assert_eq!(source.head().await.unwrap().block, block_ref(&chain[49]));
}

#[tokio::test]
async fn a_url_of_another_network_is_told_at_the_start() {
    let chain = chain(50);
    let first = FakeIndexer::start(chain.clone()).await;
    let other = FakeIndexer::start(chain).await;
    other.fault(Fault::ChainId("portal-loop"));
    let source = GnoSource::new(settings(&[&first, &other])).unwrap();
    let error = source.identify().await.unwrap_err();
    assert_eq!(error.kind(), FaultKind::Permanent);
    assert!(error.to_string().contains("portal-loop"), "{error}");
}

#[tokio::test]
async fn another_indexer_may_have_what_one_lacks() {
    let chain = chain(50);
    let (first, second) = (FakeIndexer::start(chain.clone()).await, FakeIndexer::start(chain.clone()).await);
    let source = GnoSource::new(settings(&[&first, &second])).unwrap();
    source.identify().await.unwrap();
    source.resume(None, None).await.unwrap();
    first.fault(Fault::MissingTx(12, 0));
    same(&read_all(&source, 0, 49).await, &chain);
}

#[tokio::test]
async fn a_push_wakes_and_so_does_a_new_connection() {
    let chain = chain(5);
    let indexer = FakeIndexer::start(chain.clone()).await;
    let source = std::sync::Arc::new(source(&indexer, |_| {}).await);
    let long = Duration::from_secs(3_600);
    tokio::time::timeout(support::PATIENCE, source.wait(long))
        .await
        .expect("connected: something may have been missed");
    wait_until("it has subscribed", async || (indexer.subscribers() == 1).then_some(())).await;
    let waiting = tokio::spawn({
        let source = std::sync::Arc::clone(&source);
        async move { source.wait(long).await }
    });
    indexer.push(&forked(&chain, 5, 6, "a")[5]);
    tokio::time::timeout(support::PATIENCE, waiting).await.expect("woken by the push").unwrap();
    assert_eq!(source.head().await.unwrap().block, block_ref(&chain[4]), "a push is not a fact");
    let waiting = tokio::spawn({
        let source = std::sync::Arc::clone(&source);
        async move { source.wait(long).await }
    });
    indexer.hang_up();
    tokio::time::timeout(support::PATIENCE, waiting).await.expect("woken by the reconnection").unwrap();
    let begun = Instant::now();
    source.wait(Duration::from_millis(300)).await;
    source.wait(Duration::from_millis(300)).await;
    assert!(begun.elapsed() >= Duration::from_millis(300), "nothing rang, so it polls");
}

#[tokio::test]
async fn names_of_tokens_come_from_their_first_announcement() {
    let announce = |height: u64| match height {
        2 => vec![vec![new_token(WUGNOT, "Wrapped", "wugnot", "6")]],
        7 => vec![vec![new_token(WUGNOT, "Other", "OTHER", "0")]],
        _ => lively(height),
    };
    let chain = blocks_from(0, 20, None, "a", announce);
    let indexer = FakeIndexer::start(chain).await;
    let source = source(&indexer, |_| {}).await;
    let token: Text = WUGNOT.into();
    let described = async |source: &GnoSource| {
        let found = source.token_metadata(std::slice::from_ref(&token)).await.unwrap();
        found.into_iter().map(|m| (m.name.unwrap(), m.symbol.unwrap(), m.decimals)).next()
    };
    assert_eq!(described(&source).await, None);
    blocks(&source, 5, 19).await.unwrap();
    assert_eq!(described(&source).await, Some(("Other".into(), "OTHER".into(), Some(0))));
    let first = blocks(&source, 1, 4).await.unwrap();
    let wanted = Some(("Wrapped".to_owned(), "wugnot".to_owned(), Some(6)));
    assert_eq!(described(&source).await, wanted, "pages may come in any order");
    blocks(&source, 5, 19).await.unwrap();
    assert_eq!(described(&source).await, wanted);

    let again = GnoSource::new(settings(&[&indexer])).unwrap();
    let recalls = again.recalls();
    let kept = &first[1].events[0];
    assert!(recalls.iter().any(|r| r.emitter.as_deref() == Some(&*kept.emitter) && r.name == kept.name), "{recalls:?}");
    again.recall(&[(height(2), kept.clone())]).await.unwrap();
    assert_eq!(described(&again).await, wanted, "after a restart, from what is stored");
    again.recall(&[]).await.unwrap();
    assert_eq!(described(&again).await, None, "stored events go with their block");
}

#[tokio::test]
async fn settings_that_cannot_be_used_are_named() {
    let url = || vec!["http://localhost:8546/graphql/query".to_owned()];
    for (setting, settings) in [
        ("url", GnoSettings::default()),
        ("url", GnoSettings { urls: vec!["localhost:8546".into()], ..GnoSettings::default() }),
        ("url", GnoSettings { urls: vec!["ws://localhost".into()], ..GnoSettings::default() }),
        ("ws_url", GnoSettings { urls: url(), ws_url: Some("http://localhost".into()), ..GnoSettings::default() }),
        ("page_blocks", GnoSettings { urls: url(), page_blocks: 0, ..GnoSettings::default() }),
        ("page_blocks", GnoSettings { urls: url(), page_blocks: 9_001, ..GnoSettings::default() }),
        ("request_timeout", GnoSettings { urls: url(), request_timeout: Duration::ZERO, ..GnoSettings::default() }),
        ("body_limit", GnoSettings { urls: url(), body_limit: 1_000, ..GnoSettings::default() }),
        ("network_id", GnoSettings { urls: url(), network_id: Some(String::new()), ..GnoSettings::default() }),
    ] {
        let error = GnoSource::new(settings).expect_err(setting);
        assert_eq!(error.kind(), FaultKind::Permanent);
        assert!(error.to_string().starts_with(setting), "{setting}: {error}");
    }
}

#[tokio::test]
async fn captured_answers_of_a_real_indexer_are_read() {
    let Some(dir) = data_dir() else { return };
    let text = std::fs::read_to_string(dir.join("gno/captured/topaz-indexer-block-transactions.json")).unwrap();
    let captured: Value = serde_json::from_str(&text).unwrap();
    let mut seen = 0;
    for (name, answer) in captured.as_object().unwrap() {
        let at = answer["height"].as_u64().unwrap();
        let txs: Vec<Value> = answer["response"]["data"]["getTransactions"].as_array().unwrap().clone();
        let mut chain = blocks_from(at - 1, 3, Some(&chain(1)[0]), "a", |_| Vec::new());
        chain[0].parent = hash_of("before");
        chain[1].txs = txs.iter().map(support::fake_indexer::FakeTx::recorded).collect();
        let indexer = FakeIndexer::start(chain).await;
        let read = blocks(&source(&indexer, |_| {}).await, at, at).await.unwrap();
        assert_eq!((read[0].token_events.len(), read[0].events.len(), read[0].rejects.len()), (0, 0, 0), "{name}");
        seen += txs.len();
    }
    println!("{seen} captured transactions");
    assert!(seen >= 4);
}
