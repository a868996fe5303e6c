//! Whole files, read as the syncer reads them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::Write;
use std::path::Path;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::chain::Hash;
use crate::sources::FaultKind;

/// A block line: `b("5b", "4a")` is block 5 of branch b on block 4 of branch a.
fn b(own: &str, parent: &str) -> String {
    let height: u64 = own.trim_end_matches(char::is_alphabetic).parse().unwrap();
    let event = json!({"tx_index": 0, "event_index": 0, "token": "gold", "to_address": own, "amount": height});
    json!({"event": "block", "height": height, "hash": own, "parent_hash": parent, "token_events": [event]}).to_string()
}

fn head_line(own: &str) -> String {
    let height: u64 = own.trim_end_matches(char::is_alphabetic).parse().unwrap();
    json!({"event": "head", "number": height, "hash": own}).to_string()
}

fn source(path: &Path) -> FileSource {
    let decode = DecodeSettings::default();
    FileSource::new(FileSettings { path: path.to_owned(), kind: None, network_id: None, decode }).unwrap()
}

struct Written {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

fn write(lines: &[String]) -> Written {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("feed.ndjson");
    std::fs::write(&path, lines.join("\n")).unwrap();
    Written { _folder: folder, path }
}

async fn chain(source: &FileSource) -> String {
    let (lowest, _) = locked(&source.branch).lowest().unwrap();
    let links = source.links(lowest..=Height::MAX).await.unwrap();
    let mut blocks = Vec::new();
    while blocks.len() < links.len() {
        blocks.extend(source.blocks(links[blocks.len()].height..=Height::MAX).await.unwrap());
    }
    assert!(blocks.iter().map(|block| &block.link).eq(&links));
    for block in &blocks {
        // Each block pays its own name, so content that is mixed up shows.
        assert_eq!(block.token_events[0].to.as_deref(), Some(block.link.hash.as_str()));
    }
    links.iter().map(|link| link.hash.as_str()).collect::<Vec<_>>().join(" ")
}

/// The chain after every step, until the end or an error.
async fn steps(source: &FileSource) -> (Vec<String>, Option<SourceError>) {
    let mut seen = Vec::new();
    loop {
        match source.head().await {
            Ok(head) => {
                assert!(head.truth);
                seen.push(chain(source).await);
                assert!(seen[seen.len() - 1].ends_with(head.block.hash.as_str()));
                if head.last {
                    return (seen, None);
                }
            }
            Err(error) => return (seen, Some(error)),
        }
    }
}

#[tokio::test]
async fn a_flip_to_a_known_branch_brings_its_earlier_blocks_back() {
    // height | 1  | 2  | 3  | 4
    //        | 1a   2a   3a
    //        |      2b   3b   4b
    // then back: 4a on 3a, and once more 4b's own child 5b; each time the whole branch is there again.
    let file = write(&[
        b("1a", "0a"),
        b("2a", "1a"),
        b("3a", "2a"),
        b("2b", "1a"),
        b("3b", "2b"),
        b("4b", "3b"),
        b("4a", "3a"),
        b("5b", "4b"),
        head_line("4a"),
        head_line("2b"),
        b("2a", "1a"),
        b("3a", "2a"),
    ]);
    let (seen, error) = steps(&source(&file.path)).await;
    assert!(error.is_none());
    assert_eq!(seen, ["1a 2a 3a", "1a 2b 3b 4b", "1a 2a 3a 4a", "1a 2b 3b 4b 5b", "1a 2a 3a 4a", "1a 2b", "1a 2a 3a",]);
}

#[tokio::test]
async fn repeated_blocks_and_heads_are_no_news() {
    let file = write(&[
        b("1a", "0a"),
        b("1a", "0a"),
        b("2a", "1a"),
        b("2a", "1a"),
        head_line("2a"),
        b("1a", "0a"),
        b("3a", "2a"),
        String::new(),
        head_line("3a"),
    ]);
    let (seen, error) = steps(&source(&file.path)).await;
    assert!(error.is_none());
    assert_eq!(seen, ["1a 2a 3a"]);
}

#[tokio::test]
async fn all_blocks_of_the_file_may_be_replaced() {
    let file = write(&[b("5a", "4x"), b("6a", "5a"), b("5b", "4x"), b("6b", "5b"), b("7a", "6a")]);
    let (seen, error) = steps(&source(&file.path)).await;
    assert!(error.is_none());
    assert_eq!(seen, ["5a 6a", "5b 6b", "5a 6a 7a"]);
}

#[tokio::test]
async fn a_bad_line_costs_no_line_before_it_and_can_be_fixed() {
    let good = [b("1a", "0a"), b("2a", "1a"), b("3a", "2a"), b("2b", "1a"), b("3b", "2b")];
    let unknown = b("4c", "3c").replace("3c", "3C");
    for (bad, why) in [
        (r#"{"event":"block","height":4"#.to_owned(), "line 4, column 27: is not as it should be: EOF"),
        ("{}".to_owned(), "line 4: has neither \"event\" nor \"hash\""),
        (r#"{"event":"blok","height":4}"#.to_owned(), "line 4: has the event \"blok\""),
        (r#"{"hash":"x","parent_hash":"3a"}"#.to_owned(), "line 4: has neither \"height\" nor \"number\""),
        (r#"{"hash":"x","height":-1,"parent_hash":"3a"}"#.to_owned(), "line 4, column 23"),
        (r#"{"hash":"x","height":9223372036854775808,"parent_hash":"3a"}"#.to_owned(), "line 4: has the height"),
        (r#"{"hash":"x","height":4,"number":5,"parent_hash":"3a"}"#.to_owned(), "line 4: has both the height 4"),
        (r#"{"hash":"x","height":4}"#.to_owned(), "line 4: has no \"parent_hash\""),
        (r#"{"hash":"x","hash":"y","height":4,"parent_hash":"3a"}"#.to_owned(), "duplicate field `hash`"),
        (r#"{"hash":"","height":4,"parent_hash":"3a"}"#.to_owned(), "line 4: has a bad \"hash\": empty_text"),
        (r#"{"hash":"x","height":4,"parent_hash":"3a","time":"noon"}"#.to_owned(), "neither RFC 3339 nor Unix"),
        (r#"{"hash":"x","height":4,"parent_hash":"3a","token_events":7}"#.to_owned(), "invalid type"),
        (
            r#"{"hash":"x","height":4,"parent_hash":"3a","tokenEvents":[]}"#.to_owned(),
            "line 4: has events under another key than \"token_events\"",
        ),
        (b("5x", "3a"), "line 4: block 5 (5x) names the parent 3a, which is block 3: heights must rise by one"),
        (b("3a", "2x"), "line 4: block 3 (3a) came before with the parent 2a"),
        (b("9a", "9a"), "line 4: has a block that is its own parent"),
        (unknown, "line 4: block 4 (4c) names the parent 3C, which is no block of this file"),
        (head_line("2z"), "line 4: the head 2 (2z) is no block of this file"),
        (
            r#"{"event":"opening_balance","token":"gold","address":"a","amount":1}"#.to_owned(),
            "line 4: is an opening balance after the first block",
        ),
    ] {
        let mut lines = good.to_vec();
        lines.insert(3, bad);
        let file = write(&lines);
        let source = source(&file.path);
        let (seen, error) = steps(&source).await;
        assert_eq!(seen, ["1a 2a 3a"], "{why}");
        let error = error.unwrap();
        assert_eq!(error.kind(), FaultKind::Permanent);
        assert!(error.to_string().contains(why), "{error} should say {why}");
        // It is said again as long as nobody does anything about it.
        assert_eq!(source.head().await.unwrap_err().to_string(), error.to_string());
        // Both the run that waits and a new one go on after the last good line.
        let position = json!({"path": "elsewhere", "line": 3, "hash": reader::line_hash(good[2].as_bytes())});
        std::fs::write(&file.path, good.join("\n")).unwrap();
        assert_eq!(steps(&source).await.0, ["1a 2b 3b"]);
        let again = super::tests::source(&file.path);
        let tip = BlockRef { height: Height::from(3), hash: Hash::new("3a") };
        again.resume(Some(&tip), Some(&position)).await.unwrap();
        assert_eq!(steps(&again).await.0, ["1a 2b 3b"]);
    }
}

#[tokio::test]
async fn bytes_that_are_no_text_and_files_cut_short_are_bad_lines() {
    let file = write(&[b("1a", "0a")]);
    let mut bytes = std::fs::read(&file.path).unwrap();
    bytes.extend(b"\n{\"hash\":\"\xff\"}\n");
    std::fs::write(&file.path, &bytes).unwrap();
    let (seen, error) = steps(&source(&file.path)).await;
    assert_eq!(seen, ["1a"]);
    assert!(error.unwrap().to_string().contains("line 2, column 10: is not UTF-8 text"));

    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    gzip.write_all((b("1a", "0a") + "\n" + &b("2a", "1a") + "\n").as_bytes()).unwrap();
    let whole = gzip.finish().unwrap();
    std::fs::write(&file.path, &whole).unwrap();
    assert_eq!(steps(&source(&file.path)).await.0, ["1a 2a"]);
    std::fs::write(&file.path, &whole[..whole.len() - 40]).unwrap();
    let (seen, error) = steps(&source(&file.path)).await;
    assert_eq!(seen, ["1a"]);
    assert!(error.unwrap().to_string().contains("line 2: cannot be read"));
}

#[tokio::test]
async fn another_file_is_not_taken_for_the_one_before() {
    let file = write(&[b("1a", "0a"), b("2a", "1a"), b("3a", "2a")]);
    let tip = BlockRef { height: Height::from(2), hash: Hash::new("2a") };
    let at =
        |line, text: &str| json!({"path": "feed.ndjson", "line": line, "hash": reader::line_hash(text.as_bytes())});
    for (position, why) in [
        (at(2, "something else"), "has another line 2 than when it was last read: it is another file"),
        (at(9, &b("2a", "1a")), "ends after line 3, but 9 lines of it were taken before"),
        (json!({"seed": 1, "slot": 5}), "was read from another source"),
    ] {
        let source = source(&file.path);
        let error = source.resume(Some(&tip), Some(&position)).await.unwrap_err();
        assert_eq!(error.kind(), FaultKind::Permanent);
        assert!(error.to_string().contains(why), "{error} should say {why}");
        // Nothing is given until it is resumed rightly.
        assert_eq!(source.head().await.unwrap_err().to_string(), error.to_string());
        source.resume(Some(&tip), Some(&at(2, &b("2a", "1a")))).await.unwrap();
        assert_eq!(steps(&source).await.0, ["1a 2a 3a"]);
    }
    // One that goes on where the last one ended is no mistake.
    let file = write(&[b("3a", "2a"), b("4a", "3a")]);
    let source_ = source(&file.path);
    source_.resume(Some(&tip), Some(&at(2, &b("2a", "1a")))).await.unwrap();
    assert_eq!(steps(&source_).await.0, ["3a 4a"]);
    let below = source_.links(Height::from(1)..=Height::from(3)).await.unwrap();
    assert_eq!(below.iter().map(Link::block_ref).collect::<Vec<_>>()[0], tip);
    let missing = source(Path::new("/nowhere/feed.ndjson"));
    assert!(missing.head().await.unwrap_err().to_string().contains("cannot open /nowhere/feed.ndjson"));
}

#[tokio::test]
async fn a_file_that_grows_goes_on_after_what_was_taken() {
    let lines = [b("1a", "0a"), b("2a", "1a"), b("2b", "1a"), b("3a", "2a")];
    let file = write(&lines[..2]);
    let first = source(&file.path);
    let head = first.head().await.unwrap();
    assert!(head.last);
    std::fs::write(&file.path, lines.join("\n")).unwrap();
    let again = source(&file.path);
    again.resume(Some(&head.block), head.position.as_ref()).await.unwrap();
    assert_eq!(steps(&again).await.0, ["1a 2b", "1a 2a 3a"]);
}

#[tokio::test]
async fn opening_balances_come_before_the_first_block() {
    let opening = |address: &str, amount: &str| {
        format!(r#"{{"event":"opening_balance","token":"0xAB","address":"{address}","amount":{amount}}}"#)
    };
    let huge = "1".repeat(78);
    let good = [opening("alice", "\"-5\""), opening("bob", &huge), b("1a", "0a")];
    let file = write(&good);
    let source_ = source(&file.path);
    source_.resume(None, None).await.unwrap();
    let balances = source_.opening_balances().await.unwrap();
    let said: Vec<_> = balances.iter().map(|b| (&*b.token, &*b.address, b.amount.to_string())).collect();
    assert_eq!(said, [("0xab", "alice", "-5".into()), ("0xab", "bob", huge)]);
    assert_eq!(steps(&source_).await.0, ["1a"]);
    for bad in ["1.5", "\"1e3\"", "\"\"", "null", "\"--1\"", &"9".repeat(78)] {
        let file = write(&[opening("alice", bad), b("1a", "0a")]);
        assert!(source(&file.path).opening_balances().await.is_err(), "{bad}");
    }
    let file = write(&[opening("alice", "1"), opening("alice", "2"), b("1a", "0a")]);
    let error = source(&file.path).opening_balances().await.unwrap_err();
    assert!(error.to_string().contains("line 2: is a second opening balance of alice in 0xab"), "{error}");
}

#[tokio::test]
async fn steps_are_bounded_but_a_reorg_reaches_the_old_height_in_one() {
    let mut lines = vec![b("0a", "")];
    lines.extend((1..=2_500u32).map(|n| b(&format!("{n}a"), &format!("{}a", n - 1))));
    lines.push(b("501b", "500a"));
    lines.extend((502..=2_600u32).map(|n| b(&format!("{n}b"), &format!("{}b", n - 1))));
    let file = write(&lines);
    let source = source(&file.path);
    let mut heights = Vec::new();
    loop {
        let head = source.head().await.unwrap();
        heights.push(head.block.height.get());
        if head.last {
            break;
        }
    }
    assert_eq!(heights, [999, 1999, 2500, 2500, 2600]);
}

#[tokio::test]
async fn a_chain_known_from_elsewhere_is_not_cut_by_a_file_that_begins_below() {
    let lines: Vec<String> = (1..=1_500u32).map(|n| b(&format!("{n}a"), &format!("{}a", n - 1))).collect();
    let file = write(&lines);
    let source = source(&file.path);
    // Ours goes further than the first step, on a block that the file does not have.
    let tip = BlockRef { height: Height::from(1_200), hash: Hash::new("1200x") };
    source.resume(Some(&tip), None).await.unwrap();
    let truths: Vec<_> = [source.head().await.unwrap(), source.head().await.unwrap()].map(|h| (h.truth, h.last)).into();
    assert_eq!(truths, [(false, false), (true, true)]);
}

#[tokio::test]
async fn a_pipe_gives_what_is_there_without_waiting_for_more() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    let source = source(&path);
    let open = {
        let path = path.clone();
        tokio::task::spawn_blocking(move || std::fs::OpenOptions::new().write(true).open(path).unwrap())
    };
    source.resume(None, None).await.unwrap();
    let (head, mut pipe) = tokio::join!(source.head(), async {
        let mut pipe = open.await.unwrap();
        pipe.write_all((b("1a", "0a") + "\n").as_bytes()).unwrap();
        pipe
    });
    let head = head.unwrap();
    assert!(!head.last && head.truth && head.position.is_none());
    assert_eq!(chain(&source).await, "1a");
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    for (line, expected) in [(b("2a", "1a"), "1a 2a"), (b("2b", "1a"), "1a 2b"), (b("3a", "2a"), "1a 2a 3a")] {
        pipe.write_all((line + "\n").as_bytes()).unwrap();
        // Other than a file, it may have nothing new when it is asked.
        source.wait(Duration::from_secs(10)).await;
        source.head().await.unwrap();
        assert_eq!(chain(&source).await, expected);
        assert!(std::time::Instant::now() < deadline);
    }
    drop(pipe);
    assert!(source.head().await.unwrap().last);
}

#[tokio::test]
async fn what_is_no_longer_in_memory_is_read_again() {
    let padded =
        |own: &str, parent: &str| b(own, parent).replacen('{', &format!("{{\"pad\":\"{}\",", "x".repeat(1 << 20)), 1);
    let mut lines: Vec<String> = (1..=40u32).map(|n| padded(&format!("{n}a"), &format!("{}a", n - 1))).collect();
    lines.push(b("3b", "2a"));
    lines.push(b("41a", "40a"));
    let file = write(&lines);
    let source = source(&file.path);
    let (mut seen, error) = steps(&source).await;
    assert!(error.is_none());
    // A full step does not know yet that it is the last one.
    seen.dedup();
    let all: Vec<String> = (1..=41u32).map(|n| format!("{n}a")).collect();
    // Steps of 16 MB at most; then a reorg that drops most of them, and back.
    assert_eq!(seen, [&all[..16].join(" "), &all[..32].join(" "), &all[..40].join(" "), "1a 2a 3b", &all.join(" ")]);
    let held = locked(&source.branch).at(Height::from(1)).unwrap().block.is_some();
    assert!(!held, "the first block's content should have been let go");
    std::fs::write(&file.path, lines[1..].join("\n")).unwrap();
    let error = source.blocks(Height::from(1)..=Height::from(5)).await.unwrap_err();
    assert!(error.to_string().contains("another line 1 than before"), "{error}");
}

#[tokio::test]
async fn a_reorg_deeper_than_what_is_remembered_is_an_error() {
    let count = REMEMBERED_HEIGHTS as u32 + 50;
    let mut lines: Vec<String> = (1..=count).map(|n| b(&format!("{n}a"), &format!("{}a", n - 1))).collect();
    lines.push(b("31b", "30a"));
    let file = write(&lines);
    let source = source(&file.path);
    let error = loop {
        match source.head().await {
            Ok(head) => assert!(!head.last),
            Err(error) => break error.to_string(),
        }
    };
    assert!(error.contains("line 10051: block 31 (31b) names the parent 30a, which is no block"), "{error}");
    let links = source.links(Height::from(1)..=Height::from(60)).await.unwrap();
    assert_eq!(links.first().map(|link| link.height), Some(Height::from(50)));
    let error = source.links(Height::from(1)..=Height::from(49)).await.unwrap_err().to_string();
    assert!(error.contains("remembers 10000 blocks down to 51"), "{error}");
}

/// What a follower of one chain may be told: a tree of blocks, and a walk over its tips.
fn script() -> impl Strategy<Value = Vec<(u8, u8)>> {
    proptest::collection::vec((any::<u8>(), 0..12u8), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// The chain after every line is the way from that line's block to the first one, whatever came before; steps,
    /// restarts and repeats change nothing about it.
    #[test]
    fn any_script_gives_the_chain_of_its_last_line(script in script(), stop in 0..60usize) {
        let mut names: Vec<(String, usize)> = vec![("1r".into(), 0)];
        let mut lines = vec![b("1r", "0r")];
        let mut at = 0;
        let mut chains = vec![vec![0]];
        let height = |mut n: usize, names: &[(String, usize)]| {
            let mut height = 1;
            while n != 0 {
                (n, height) = (names[n].1, height + 1);
            }
            height
        };
        for (pick, what) in script {
            match what {
                // Again: a repeat if it is on the branch, else a flip.
                0 => {
                    let again = usize::from(pick) % names.len();
                    let (own, parent) = &names[again];
                    let parent = if again == 0 { "0r" } else { &names[*parent].0 };
                    lines.push(b(own, parent));
                    if !chains[chains.len() - 1].contains(&again) {
                        at = again;
                    }
                }
                1 => {
                    at = usize::from(pick) % names.len();
                    lines.push(head_line(&names[at].0));
                }
                _ => {
                    // Mostly on the tip, now and then on any block ever told of.
                    let parent = if what > 4 { at } else { usize::from(pick) % names.len() };
                    let letters = ["a", "b", "c", "d", "e", "f", "g"];
                    let number = names.len();
                    let suffix = letters[number % 7].repeat(number / 7 + 1);
                    names.push((format!("{}{suffix}", height(parent, &names) + 1), parent));
                    lines.push(b(&names[number].0, &names[parent].0));
                    at = number;
                }
            }
            let mut way = vec![at];
            while way[way.len() - 1] != 0 {
                way.push(names[way[way.len() - 1]].1);
            }
            chains.push(way);
        }
        let name = |way: &Vec<usize>| way.iter().rev().map(|n| &*names[*n].0).collect::<Vec<_>>().join(" ");
        let chains: Vec<String> = chains.iter().map(name).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let file = write(&lines);
            let mut reader = source(&file.path);
            reader.resume(None, None).await.unwrap();
            for step in 0.. {
                let head = reader.head().await.unwrap();
                let line = head.position.as_ref().unwrap()["line"].as_u64().unwrap() as usize;
                assert_eq!(chain(&reader).await, chains[line - 1], "after line {line} of {lines:?}");
                if head.last {
                    assert_eq!(line, lines.len());
                    break;
                }
                if step == stop {
                    reader = source(&file.path);
                    reader.resume(Some(&head.block), head.position.as_ref()).await.unwrap();
                }
            }
        });
    }
}
