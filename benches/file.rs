//! How fast a file of blocks becomes chain values: one reader's thread, `head` and `blocks` as the syncer asks.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use divan::counter::ItemsCount;
use ebbtide::sources::Source;
use ebbtide::sources::evm::decode::DecodeSettings;
use ebbtide::sources::file::{FileSettings, FileSource};

const BLOCKS: u64 = 2_000;
const EVENTS: u64 = 100;
const ACCOUNTS: u64 = 50_000;

fn main() {
    divan::main();
}

fn hash(n: u64) -> String {
    format!("0x{n:064x}")
}

/// Transfers with a fixed pseudo-random choice of accounts.
fn text(logs: bool) -> String {
    let mut state = 1u64;
    let mut dice = |n: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    let mut text = String::new();
    for height in 1..=BLOCKS {
        let (own, parent) = (hash(height), hash(height - 1));
        write!(
            text,
            r#"{{"event":"block","height":{height},"hash":"{own}","parent_hash":"{parent}","timestamp":1700000000,"#
        )
        .unwrap();
        text.push_str(if logs { r#""logs":["# } else { r#""token_events":["# });
        for place in 0..EVENTS {
            let (token, from, to, amount) = (dice(8), dice(ACCOUNTS), dice(ACCOUNTS), dice(1 << 31));
            let comma = if place == 0 { "" } else { "," };
            if logs {
                write!(
                    text,
                    r#"{comma}{{"tx_hash":"{}","tx_index":{place},"log_index":{place},"address":"0x{token:040x}","topics":["0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef","{}","{}"],"data":"{}"}}"#,
                    hash(height << 20 | place),
                    hash(from + 1),
                    hash(to + 1),
                    hash(amount),
                )
            } else {
                write!(
                    text,
                    r#"{comma}{{"tx_index":{place},"event_index":{place},"token":"0x{token:040x}","from_address":"0x{from:040x}","to_address":"0x{to:040x}","amount":"{amount}"}}"#,
                )
            }
            .unwrap();
        }
        text.push_str("]}\n");
    }
    text
}

fn read_all(path: &Path) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let settings =
            FileSettings { path: path.to_owned(), kind: None, network_id: None, decode: DecodeSettings::default() };
        let source = FileSource::new(settings).unwrap();
        source.resume(None, None).await.unwrap();
        let mut next = source.first_height().await.unwrap();
        let mut events = 0;
        loop {
            let head = source.head().await.unwrap();
            while next <= head.block.height {
                for block in source.blocks(next..=head.block.height).await.unwrap() {
                    assert!(block.rejects.is_empty());
                    events += block.token_events.len();
                    next = next.next();
                }
            }
            if head.last {
                assert_eq!(events as u64, BLOCKS * EVENTS);
                return events;
            }
        }
    })
}

fn bench(bencher: divan::Bencher<'_, '_>, logs: bool, gzip: bool) {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("feed");
    let text = text(logs);
    if gzip {
        let mut out =
            flate2::write::GzEncoder::new(std::fs::File::create(&path).unwrap(), flate2::Compression::default());
        out.write_all(text.as_bytes()).unwrap();
        out.finish().unwrap();
    } else {
        std::fs::write(&path, text).unwrap();
    }
    bencher.counter(ItemsCount::new(BLOCKS * EVENTS)).bench(|| read_all(&path));
}

#[divan::bench(sample_count = 5, sample_size = 1)]
fn token_events(bencher: divan::Bencher<'_, '_>) {
    bench(bencher, false, false);
}

#[divan::bench(sample_count = 5, sample_size = 1)]
fn token_events_gzip(bencher: divan::Bencher<'_, '_>) {
    bench(bencher, false, true);
}

#[divan::bench(sample_count = 5, sample_size = 1)]
fn raw_logs(bencher: divan::Bencher<'_, '_>) {
    bench(bencher, true, false);
}
