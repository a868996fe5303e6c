//! One contract, asked of every source that needs no network, and the recorded feeds through the file source.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod follower;
mod material;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ebbtide::chain::delta::{self, Delta};
use ebbtide::chain::{Block, BlockRef, Height, Kind};
use ebbtide::sources::Source;
use ebbtide::sources::devnet::{Devnet, DevnetSettings};
use ebbtide::sources::evm::decode::DecodeSettings;
use ebbtide::sources::file::{FileSettings, FileSource};
use serde_json::Value;

use crate::follower::{Follower, Manner};

const FEEDS: [&str; 2] = ["anvil/erc20-depth-1-10", "anvil/erc20-depth-64"];

fn file(path: &Path) -> FileSource {
    let settings = FileSettings {
        path: path.to_owned(),
        kind: None,
        network_id: Some("31337".into()),
        decode: DecodeSettings::default(),
    };
    FileSource::new(settings).unwrap()
}

fn devnet_settings() -> DevnetSettings {
    DevnetSettings {
        block_interval: Duration::from_millis(1),
        blocks_at_start: 30,
        reorg_every: 3,
        last_height: Some(90),
        ..DevnetSettings::default()
    }
}

/// All that the devnet ever says, as a file: every block that a follower sees, in order.
async fn devnet_as_file(folder: &Path) -> PathBuf {
    let source = Devnet::new(&devnet_settings());
    let mut follower = Follower::default();
    let mut lines = Vec::new();
    loop {
        let before = follower.blocks.clone();
        let (head, _) = follower.step(&source).await.unwrap();
        lines.extend(follower.blocks.iter().filter(|block| !before.contains(block)).map(material::line));
        if head.last {
            break;
        }
        source.wait(Duration::from_secs(1)).await;
    }
    let path = folder.join("devnet.ndjson");
    std::fs::write(&path, lines.join("\n")).unwrap();
    path
}

struct Subject {
    name: String,
    make: Box<dyn Fn() -> Arc<dyn Source>>,
}

/// Every source that the contract is asked of, each built again as often as wanted.
async fn subjects(folder: &Path) -> Vec<Subject> {
    let plain = devnet_as_file(folder).await;
    let packed = folder.join("devnet-by-another-name");
    // Two gzip members, as `cat a.gz b.gz` makes them.
    let text = std::fs::read(&plain).unwrap();
    let mut both = Vec::new();
    for part in [&text[..text.len() / 3], &text[text.len() / 3..]] {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(part).unwrap();
        both.extend(gzip.finish().unwrap());
    }
    std::fs::write(&packed, both).unwrap();
    let mut subjects =
        vec![Subject { name: "devnet".into(), make: Box::new(|| Arc::new(Devnet::new(&devnet_settings()))) }];
    let feeds = FEEDS.iter().filter_map(|feed| material::data(&format!("{feed}.feed.ndjson.gz")));
    for path in [plain, packed].into_iter().chain(feeds) {
        let name = format!("file {}", path.file_name().unwrap().to_string_lossy());
        subjects.push(Subject { name, make: Box::new(move || Arc::new(file(&path))) });
    }
    subjects
}

async fn followed(source: &dyn Source, manner: Manner) -> Follower {
    let mut follower = Follower { manner, ..Follower::default() };
    source.resume(None, None).await.unwrap();
    follower.run(source).await.unwrap();
    follower
}

fn heights(from: u64, to: u64) -> std::ops::RangeInclusive<Height> {
    Height::new(from).unwrap()..=Height::new(to).unwrap()
}

#[tokio::test]
async fn every_source_answers_the_same_question_the_same_way() {
    let folder = tempfile::tempdir().unwrap();
    for subject in subjects(folder.path()).await {
        let source = (subject.make)();
        let follower = followed(&*source, Manner::default()).await;
        let (first, tip) = (source.first_height().await.unwrap().get(), follower.tip().unwrap().height.get());
        assert_eq!(first, 0, "{}", subject.name);
        let links = source.links(heights(first, tip)).await.unwrap();
        assert_eq!(links.len() as u64, tip - first + 1, "{}", subject.name);
        assert!(links.windows(2).all(|w| w[0].height.next() == w[1].height && w[0].hash == w[1].parent_hash));
        assert_eq!(source.links(heights(first, tip)).await.unwrap(), links);
        // Beyond the head: cut, never made up.
        assert_eq!(source.links(heights(tip, tip + 50)).await.unwrap(), links[links.len() - 1..]);
        assert_eq!(source.links(heights(tip + 1, tip + 50)).await.unwrap(), []);
        assert_eq!(source.blocks(heights(tip + 1, tip + 50)).await.unwrap(), []);
        let blocks = source.blocks(heights(tip - 20, tip + 50)).await.unwrap();
        assert!(!blocks.is_empty());
        assert_eq!(blocks, source.blocks(heights(tip - 20, tip + 50)).await.unwrap());
        for (block, link) in blocks.iter().zip(&links[links.len() - 21..]) {
            assert_eq!(block.link, *link, "{}", subject.name);
        }
        for block in &follower.blocks {
            let places: Vec<_> = block.token_events.iter().map(|e| (e.tx_index, e.event_index)).collect();
            assert!(places.is_sorted_by(|a, b| a < b), "{}: block {}", subject.name, block.link.height);
            assert!(block.transactions.is_sorted_by(|a, b| a.tx_index < b.tx_index));
        }
        // The ends agree, and every later head is the same and the last.
        let head = source.head().await.unwrap();
        assert!(head.last && head.truth);
        assert_eq!(Some(head.block), follower.tip());
        eprintln!(
            "{}: {} steps, {} blocks at the end, {} seen, {} reorgs",
            subject.name,
            follower.steps,
            follower.blocks.len(),
            follower.tips.len(),
            follower.reorgs
        );
        assert!(follower.reorgs > 0, "{}: without a reorg this says little", subject.name);
    }
}

#[tokio::test]
async fn every_chunk_size_and_dropped_calls_give_the_same_chain() {
    let folder = tempfile::tempdir().unwrap();
    for subject in subjects(folder.path()).await {
        let expected = followed(&*(subject.make)(), Manner::default()).await.blocks;
        for chunk in [1, 2, 3, 7, 50, 1_000] {
            for impatient in [false, true] {
                let follower = followed(&*(subject.make)(), Manner { chunk, impatient }).await;
                assert!(follower.blocks == expected, "{} by {chunk}, dropped: {impatient}", subject.name);
            }
        }
    }
}

#[tokio::test]
async fn a_restart_after_any_step_goes_on_just_there() {
    let folder = tempfile::tempdir().unwrap();
    let mut restarts = 0;
    for subject in subjects(folder.path()).await {
        let source = (subject.make)();
        source.resume(None, None).await.unwrap();
        let mut follower = Follower::default();
        let mut stored = Vec::new();
        loop {
            let (head, new) = follower.step(&*source).await.unwrap();
            if new {
                stored.push(follower.restarted(Manner { chunk: 5, impatient: false }));
            }
            if head.last {
                break;
            }
            source.wait(Duration::from_millis(5)).await;
        }
        let step = stored.len().div_ceil(40);
        let last_tip_of = |follower: &Follower| follower.tip().unwrap();
        for mut again in stored.into_iter().step_by(step) {
            let source = (subject.make)();
            let from = last_tip_of(&again);
            source.resume(Some(&from), again.position.as_ref()).await.unwrap();
            again.run(&*source).await.unwrap();
            assert!(again.blocks == follower.blocks, "{} from {from}", subject.name);
            restarts += 1;
        }
    }
    eprintln!("{restarts} restarts");
}

#[tokio::test]
async fn blocks_that_were_lost_after_their_step_are_given_again() {
    let folder = tempfile::tempdir().unwrap();
    for subject in subjects(folder.path()).await {
        let source = (subject.make)();
        let mut follower = followed(&*source, Manner::default()).await;
        let expected = follower.blocks.clone();
        // Someone drops blocks from the database, or a transaction fails: the source is still at its end.
        for keep in [expected.len() - 1, expected.len() / 2, 1] {
            follower.blocks.truncate(keep);
            follower.run(&*source).await.unwrap();
            assert!(follower.blocks == expected, "{} from block {keep}", subject.name);
            follower.blocks.truncate(keep);
            let source = (subject.make)();
            source.resume(follower.tip().as_ref(), follower.position.as_ref()).await.unwrap();
            follower.run(&*source).await.unwrap();
            assert!(follower.blocks == expected, "{} resumed from block {keep}", subject.name);
            follower.blocks.truncate(keep);
            let source = (subject.make)();
            source.resume(follower.tip().as_ref(), None).await.unwrap();
            follower.run(&*source).await.unwrap();
            assert!(follower.blocks == expected, "{} resumed without a position from block {keep}", subject.name);
        }
    }
}

/// Non-zero balances by token and address, and supplies by token.
fn balances(blocks: &[Block]) -> BTreeMap<(String, String), Delta> {
    let net = delta::net(blocks.iter().flat_map(|block| &block.token_events));
    let named = net.into_iter().map(|((token, address), amount)| ((token.to_string(), address.to_string()), amount));
    named.filter(|(_, amount)| !amount.is_zero()).collect()
}

#[tokio::test]
async fn recorded_feeds_bring_every_head_and_balance_of_the_run() {
    for feed in FEEDS {
        let (Some(path), Some(truth)) =
            (material::data(&format!("{feed}.feed.ndjson.gz")), material::data(&format!("{feed}.truth.ndjson.gz")))
        else {
            return;
        };
        let told = material::lines(&path);
        let truth = material::lines(&truth);
        let source = file(&path);
        assert_eq!(source.identify().await.unwrap().kind, Kind::Evm);
        let mut follower = Follower::default();
        let mut by_tip: BTreeMap<(u64, String), BTreeMap<(String, String), Delta>> = BTreeMap::new();
        source.resume(None, None).await.unwrap();
        loop {
            let before = follower.blocks.len();
            let (head, _) = follower.step(&source).await.unwrap();
            for end in before.min(follower.blocks.len())..=follower.blocks.len() {
                let tip = follower.blocks[..end].last().map(|block| block.link.block_ref());
                if let Some(BlockRef { height, hash }) = tip {
                    let key = (height.get(), hash.to_string());
                    by_tip.entry(key).or_insert_with(|| balances(&follower.blocks[..end]));
                }
            }
            if head.last {
                break;
            }
        }
        // Line by line: what the feed tells is what the follower saw, no more and no less.
        let named = |v: &Value| (v["number"].as_u64().unwrap(), v["hash"].as_str().unwrap().to_owned());
        let seen: Vec<_> = follower.tips.iter().map(|tip| (tip.height.get(), tip.hash.to_string())).collect();
        assert_eq!(seen, told.iter().map(named).collect::<Vec<_>>());
        let (mut heads, mut answers) = (0, 0);
        for point in &truth {
            let at = told.iter().rposition(|line| line["seq"].as_u64() <= point["seq"].as_u64()).unwrap();
            assert_eq!(seen[at], named(point), "after seq {}", point["seq"]);
            heads += 1;
            let Some(ours) = by_tip.get(&named(point)) else { continue };
            for (token, held) in point["tokens"].as_object().unwrap() {
                let theirs: BTreeMap<&str, String> = held["balances"]
                    .as_object()
                    .unwrap()
                    .iter()
                    .map(|(address, amount)| (address.as_str(), amount.as_str().unwrap().to_owned()))
                    .collect();
                let ours: BTreeMap<&str, String> = ours
                    .iter()
                    .filter(|((of, _), _)| of == token)
                    .map(|((_, address), amount)| (address.as_str(), amount.to_string()))
                    .collect();
                assert_eq!(ours, theirs, "{token} after seq {}", point["seq"]);
                answers += theirs.len();
            }
        }
        eprintln!("{feed}: {heads} heads and {answers} balances right, {} lines", told.len());
        assert!(heads > 200 && answers > 1_000);
    }
}

#[tokio::test]
async fn published_reorg_cases_end_with_the_published_head_and_balances() {
    let Some(path) = material::data("ethereum-tests/reorg-cases.ndjson.gz") else { return };
    let folder = tempfile::tempdir().unwrap();
    let (mut cases, mut reorgs, mut flips) = (0, 0, 0);
    for case in material::lines(&path) {
        let name = &case["case"];
        let (feed, heads) = material::case_as_feed(&case);
        flips += feed.matches("\"head\"").count();
        let path = folder.path().join("case.ndjson");
        std::fs::write(&path, feed).unwrap();
        let source = file(&path);
        let follower = followed(&source, Manner { chunk: 3, impatient: false }).await;
        // Every head came, in order; others between them are blocks on the way there.
        let mut seen = follower.tips.iter().map(|tip| tip.hash.as_str());
        for head in &heads {
            assert!(seen.any(|hash| hash == head), "{name}: head {head} was not seen");
        }
        assert_eq!(
            follower.tip().unwrap().hash.as_str(),
            case["head"].as_str().unwrap_or(heads.last().unwrap()),
            "{name}"
        );
        let mut ours = balances(&follower.blocks);
        for opening in source.opening_balances().await.unwrap() {
            let slot = ours.entry((opening.token.to_string(), opening.address.to_string())).or_default();
            *slot = slot.merge(opening.amount);
        }
        let ours: BTreeMap<_, _> = ours
            .into_iter()
            .filter(|(_, amount)| !amount.is_zero())
            .map(|((_, address), amount)| (address, amount.to_string()))
            .collect();
        let post = case["post"].as_object().unwrap().iter();
        let post: BTreeMap<_, _> = post
            .map(|(address, amount)| (address.clone(), amount.as_str().unwrap().to_owned()))
            .filter(|(_, amount)| amount != "0")
            .collect();
        assert_eq!(ours, post, "{name}");
        cases += 1;
        reorgs += follower.reorgs;
    }
    eprintln!("{cases} cases, {reorgs} reorgs, {flips} flips to a known head");
    assert!(cases > 100 && reorgs > 100);
}
