//! The source itself: whatever the order and the size of what it is asked for, it follows the same contracts.

use std::ops::RangeInclusive;

use ebbtide::chain::{Block, Event, Height};
use ebbtide::sources::evm::{EvmSettings, EvmSource, FactorySettings};
use ebbtide::sources::{FaultKind, Source, SourceError};
use futures::future::join_all;

use super::made::{Dice, FACTORY, OTHER_FACTORY, busy, child, expected, kept, made, paid, ping, settings};

use crate::support::fake_node::read::{block_ref, range};
use crate::support::fake_node::{FakeBlock, FakeNode, Fault, chain};

async fn follower(node: &FakeNode, factories: Vec<FactorySettings>) -> EvmSource {
    let urls = vec![node.url()];
    let settings = EvmSettings { urls, tokens: vec!["none".into()], factories, ..EvmSettings::default() };
    let source = EvmSource::new(settings).unwrap();
    source.resume(None, None).await.unwrap();
    source.head().await.unwrap();
    source
}

/// Asks for several ranges at once as the syncer does: in order, what follows a short or failed answer asked for again.
async fn read(source: &EvmSource, from: u64, to: u64, size: u64, at_once: u64) -> Vec<Block> {
    let (mut at, mut size, mut blocks) = (from, size, Vec::new());
    'rounds: while at <= to {
        let ranges: Vec<RangeInclusive<Height>> = (0..at_once)
            .map(|n| (at + n * size, (at + (n + 1) * size - 1).min(to)))
            .filter(|(first, _)| *first <= to)
            .map(|(first, last)| range(first, last))
            .collect();
        for (asked, answer) in ranges.iter().zip(join_all(ranges.iter().map(|r| source.blocks(r.clone()))).await) {
            match answer {
                Ok(read) => {
                    at = read.last().unwrap().link.height.get() + 1;
                    blocks.extend(read);
                    if at <= asked.end().get() {
                        continue 'rounds;
                    }
                }
                Err(SourceError::RangeTooLarge { at_most, .. }) => {
                    size = at_most.unwrap_or(size / 2);
                    continue 'rounds;
                }
                Err(error) if error.kind() == FaultKind::Changed => continue 'rounds,
                Err(error) => panic!("{error}"),
            }
        }
    }
    assert!(blocks.iter().map(|b| b.link.height.get()).eq(from..=to), "a hole or a block twice");
    blocks
}

/// What the syncer hands back after a restart: the stored events of the kinds that were asked for.
fn recalled(source: &EvmSource, stored: &[Block]) -> Vec<(Height, Event)> {
    let recalls = source.recalls();
    let wanted = |e: &&Event| {
        recalls.iter().any(|r| r.name == e.name && r.emitter.as_ref().is_none_or(|emitter| *emitter == e.emitter))
    };
    stored.iter().flat_map(|b| b.events.iter().filter(wanted).map(|e| (b.link.height, e.clone()))).collect()
}

#[tokio::test]
async fn ranges_of_any_size_read_at_once_follow_the_same_contracts() {
    let blocks = busy(0, 700, None, 1, 40);
    let node = FakeNode::start(31337, blocks.clone()).await;
    let wanted = expected(&blocks);
    let count = |what: &str| wanted.iter().filter(|(.., name)| name == what).count();
    let (makes, pings, transfers) = (count("Made"), count("Ping"), count("Transfer"));
    let said = blocks.iter().map(|b| b.logs.len()).sum::<usize>();
    println!("{said} logs, of which {makes} make contracts, {pings} are their events and {transfers} their transfers");
    assert!(pings > 300 && transfers > 200 && wanted.len() < said - 100, "some count and some do not");
    for (size, at_once) in [(700, 1), (200, 1), (97, 4), (33, 8), (7, 16)] {
        let source = follower(&node, settings()).await;
        let before = node.request_count();
        assert_eq!(kept(&read(&source, 0, 699, size, at_once).await), wanted, "{at_once} times {size} blocks");
        println!("{at_once} ranges of {size} blocks at once: {} requests", node.request_count() - before);
    }
}

#[tokio::test]
async fn limits_of_the_node_and_logs_left_out_change_nothing() {
    let blocks = busy(0, 400, None, 2, 20);
    let node = FakeNode::start(31337, blocks.clone()).await;
    let creating = blocks.iter().find(|b| b.logs.iter().any(|log| log["address"] == FACTORY)).unwrap().number;
    for fault in [
        Fault::MaxRange(20, "Block range is too large"),
        Fault::MaxLogs(25, "query returned more than 25 results"),
        // The creating event itself is missing from the answer by range: the header's bloom tells.
        Fault::LogsLeftOutOfRanges(creating),
        Fault::DoubledLogs,
        Fault::ReversedAnswers,
    ] {
        let what = format!("{fault:?}");
        node.fault(fault);
        let source = follower(&node, settings()).await;
        assert_eq!(kept(&read(&source, 0, 399, 150, 4).await), expected(&blocks), "{what}");
        node.heal();
    }
}

#[tokio::test]
async fn what_replaced_blocks_made_is_no_longer_followed() {
    let old = busy(0, 300, None, 3, 15);
    let node = FakeNode::start(31337, old.clone()).await;
    let source = follower(&node, settings()).await;
    let mut stored = read(&source, 0, 299, 64, 4).await;
    let mut dice = Dice(5);
    let mut blocks = old;
    for round in 0..25 {
        let depth = 1 + dice.throw(90) as usize;
        let stem = blocks[..blocks.len() - depth].to_vec();
        let new = busy(stem.len() as u64, depth as u64 + 1, stem.last(), 100 + round, 15);
        blocks = [stem, new].concat();
        node.set_chain(blocks.clone());
        source.head().await.unwrap();
        let from = blocks.len() - depth - 1;
        stored.truncate(from);
        stored.extend(read(&source, from as u64, blocks.len() as u64 - 1, 1 + dice.throw(40), 4).await);
        assert_eq!(kept(&stored), expected(&blocks), "round {round}: {depth} blocks replaced");
        if round % 5 == 0 {
            // Another process goes on where this one is; what it must not know any more is not handed to it.
            let next = follower(&node, settings()).await;
            next.recall(&recalled(&next, &stored)).await.unwrap();
            next.resume(blocks.last().map(block_ref).as_ref(), None).await.unwrap();
            let more = busy(blocks.len() as u64, 10, blocks.last(), 900 + round, 15);
            let longer = [blocks.clone(), more].concat();
            node.set_chain(longer.clone());
            let mut all = stored.clone();
            all.extend(read(&next, blocks.len() as u64, longer.len() as u64 - 1, 3, 4).await);
            assert_eq!(kept(&all), expected(&longer), "round {round}: after a restart");
            node.set_chain(blocks.clone());
        }
    }
    println!("25 reorgs and 5 restarts: {} events and movements in the end", kept(&stored).len());
}

#[tokio::test]
async fn a_restart_without_the_stored_events_would_lose_them() {
    // The test above would pass over nothing if contracts were found some other way.
    let blocks = chain(0, 1, None, "a", |_| vec![made(FACTORY, &child(1), 0)]);
    let more = chain(1, 3, blocks.last(), "a", |number| vec![ping(&child(1), number, 0)]);
    let node = FakeNode::start(31337, [blocks.clone(), more].concat()).await;
    let source = follower(&node, settings()).await;
    source.recall(&[]).await.unwrap();
    source.resume(Some(&block_ref(&blocks[0])), None).await.unwrap();
    assert_eq!(kept(&read(&source, 1, 3, 3, 1).await).len(), 0);
    let first = follower(&node, settings()).await;
    let stored = read(&first, 0, 0, 1, 1).await;
    source.recall(&recalled(&source, &stored)).await.unwrap();
    source.resume(Some(&block_ref(&blocks[0])), None).await.unwrap();
    assert_eq!(kept(&read(&source, 1, 3, 3, 1).await).len(), 3);
}

#[tokio::test]
async fn of_thousands_of_contracts_nobody_is_named() {
    let makes =
        |number: u64| -> Vec<_> { (0..20).map(|n| made(FACTORY, &child(number * 20 + n), n as usize)).collect() };
    let first = chain(0, 100, None, "a", makes);
    let then = chain(100, 100, first.last(), "a", |number| {
        vec![ping(&child(number), number, 0), paid(&child(number), 1, 1), ping(&child(9_999_999), 1, 2)]
    });
    let blocks: Vec<FakeBlock> = [first, then].concat();
    let node = FakeNode::start(31337, blocks.clone()).await;
    for (size, at_once) in [(200, 1), (50, 4), (9, 2)] {
        let source = follower(&node, settings()).await;
        let read = read(&source, 0, 199, size, at_once).await;
        assert_eq!(kept(&read), expected(&blocks), "{size}");
        assert_eq!(kept(&read).len(), 2_000 + 200);
    }
    println!("2,000 contracts followed");
}

#[tokio::test]
async fn blocks_that_someone_else_stored_are_looked_through_for_what_they_made() {
    let blocks = busy(0, 500, None, 7, 15);
    let node = FakeNode::start(31337, blocks.clone()).await;
    node.fault(Fault::MaxRange(60, "Block range is too large"));
    let source = follower(&node, settings()).await;
    read(&source, 0, 49, 50, 1).await;
    // Nobody asks for 50 to 349: a person wrote those blocks.
    let read = read(&source, 350, 499, 50, 3).await;
    let wanted = expected(&blocks).into_iter().filter(|(height, ..)| *height >= 350).collect();
    assert_eq!(kept(&read), wanted);
}

#[tokio::test]
async fn a_range_that_is_given_up_holds_up_nobody() {
    let blocks = busy(0, 300, None, 8, 15);
    let node = FakeNode::start(31337, blocks.clone()).await;
    let source = follower(&node, settings()).await;
    // As the syncer drops what is under way: the first range is asked for, and let go before it is answered.
    {
        let mut dropped = Box::pin(source.blocks(range(0, 99)));
        assert!(futures::poll!(&mut dropped).is_pending());
    }
    let late = tokio::time::timeout(std::time::Duration::from_secs(20), source.blocks(range(100, 199)));
    let late = late.await.unwrap().unwrap();
    let wanted: super::made::Kept =
        expected(&blocks).into_iter().filter(|(height, ..)| (100..200).contains(height)).collect();
    assert_eq!(kept(&late), wanted, "what 0 to 99 made was looked up");
    assert_eq!(kept(&read(&source, 0, 299, 100, 3).await), expected(&blocks));
}

#[tokio::test]
async fn bad_creating_events_make_nothing() {
    let spoil = |log: &mut serde_json::Value, key: &str, value: &str| log[key] = serde_json::json!(value);
    let mut short = made(FACTORY, &child(1), 0);
    spoil(&mut short, "data", "0x12");
    let mut dirty = made(FACTORY, &child(1), 1);
    dirty["topics"][1] = serde_json::json!(format!("0x{}", "11".repeat(32)));
    let nobody = made(FACTORY, "0x0000000000000000000000000000000000000000", 2);
    let logs =
        vec![short, dirty, nobody, ping(&child(1), 1, 3), ping("0x0000000000000000000000000000000000000000", 1, 4)];
    let node = FakeNode::start(31337, chain(0, 2, None, "a", |_| logs.clone())).await;
    let source = follower(&node, settings()).await;
    for block in source.blocks(range(0, 1)).await.unwrap() {
        let reasons: Vec<&str> = block.rejects.iter().map(|r| r.reason.as_str()).collect();
        assert_eq!(reasons, ["bad_event", "bad_event"]);
        assert_eq!(block.events.len(), 1, "the one that names nobody is kept, and followed by nothing");
    }
}

#[tokio::test]
async fn any_contract_may_be_the_factory_if_none_is_named() {
    let logs = |_| vec![made(OTHER_FACTORY, &child(1), 0), paid(&child(1), 5, 1), paid(&child(2), 5, 2)];
    let node = FakeNode::start(31337, chain(0, 90, None, "a", logs)).await;
    let anybody = FactorySettings { address: Vec::new(), ..settings().remove(0) };
    let source = follower(&node, vec![anybody]).await;
    assert_eq!(source.recalls().len(), 1);
    assert!(source.recalls()[0].emitter.is_none());
    let read = read(&source, 0, 89, 90, 1).await;
    assert_eq!(read.iter().map(|b| b.token_events.len()).sum::<usize>(), 90);
    assert!(read.iter().flat_map(|b| &b.token_events).all(|e| *e.token == *child(1)));
}

#[test]
fn settings_that_cannot_be_meant_are_refused_by_name() {
    let with = |change: fn(&mut FactorySettings)| {
        let mut factories = settings();
        change(&mut factories[1]);
        let urls = vec!["http://127.0.0.1:8545".into()];
        EvmSource::new(EvmSettings { urls, factories, ..EvmSettings::default() }).map(drop)
    };
    assert!(with(|_| ()).is_ok());
    for (change, words) in [
        (
            (|f| f.event = "Made(adress contract)".into()) as fn(&mut FactorySettings),
            ["event", "Made(adress contract)", "\"adress\""],
        ),
        (|f| f.event = String::new(), ["event", "\"\"", "no name"]),
        (|f| f.parameter = "pool".into(), ["parameter", "\"pool\"", "contract, n"]),
        (|f| f.parameter = String::new(), ["parameter", "\"\"", "contract, n"]),
        (|f| f.parameter = "n".into(), ["parameter", "\"n\"", "uint256"]),
        (|f| f.address = vec!["0x12".into()], ["address", "\"0x12\"", "40 hex digits"]),
        (|f| f.events = vec!["Ping(uint n".into()], ["event", "\"Ping(uint n\"", "missing"]),
        (|f| f.events = vec![format!("Ping(uint n) @ {FACTORY}")], ["event", "Ping(uint n) @", "names a contract"]),
        (
            |f| f.events = vec!["Ping(uint n)".into(), "Ping(uint m)".into()],
            ["event", "Ping(uint m)", "cannot be told"],
        ),
        (|f| f.events.clear(), ["nothing is kept", "events", "tokens = true"]),
        (|f| f.event = format!("Made(address contract) anonymous @ {FACTORY}"), ["event", "anonymous", "first topic"]),
        (|f| f.event = format!("{} @ {FACTORY}", f.event), ["event", FACTORY, "address"]),
    ] {
        let error = with(change).unwrap_err();
        assert_eq!(error.kind(), FaultKind::Permanent);
        let error = error.to_string();
        assert!(error.starts_with("factories, entry 2: "), "{error}");
        assert!(!error.contains('\n') && words.iter().all(|word| error.contains(word)), "{words:?}: {error}");
    }
}
