//! Loading history from gno.land and Starknet: local servers with no latency, made of the tests' fakes. The floor is the
//! same source asked for the same blocks, which are thrown away: reading and decoding without Postgres.

use std::sync::Arc;
use std::time::Instant;

use ebbtide::chain::{Height, Kind};
use ebbtide::sources::Source;
use ebbtide::sources::gno::{GnoSettings, GnoSource};
use ebbtide::sources::starknet::{StarknetSettings, StarknetSource};
use ebbtide::store::ChainSettings;
use ebbtide::sync::{self, SyncSettings, SyncWatcher};
use futures::{StreamExt, TryStreamExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::Size;
use crate::report::{Budget, Line};
use crate::server::Server;
use crate::support::fake_indexer::{FakeIndexer, blocks_from, transfer};
use crate::support::fake_starknet::{ALICE, BOB, FakeStarknet, TOKEN, chain, new_transfer, tx};

/// Movements in a block.
const MOVES: u64 = 20;
/// Blocks in one question, and questions at a time.
const AT_ONCE: u64 = 50;
const QUESTIONS: usize = 4;

struct Counting(watch::Sender<u64>);

impl SyncWatcher for Counting {
    fn written(&self, _chain: &str, blocks: u64, _events: u64, _removed: u64) {
        self.0.send_modify(|sum| *sum += blocks);
    }
}

fn gno(url: &str) -> Arc<dyn Source> {
    let settings = GnoSettings { urls: vec![url.to_owned()], confirm_blocks: 0, ..GnoSettings::default() };
    Arc::new(GnoSource::new(settings).unwrap())
}

fn starknet(url: &str) -> Arc<dyn Source> {
    Arc::new(
        StarknetSource::new(StarknetSettings { urls: vec![url.to_owned()], ..StarknetSettings::default() }).unwrap(),
    )
}

/// Events a second: read and thrown away, and into Postgres.
async fn measure(server: &Server, kind: Kind, source: impl Fn() -> Arc<dyn Source>, blocks: u64) -> (f64, f64) {
    let events = (blocks * MOVES) as f64;
    let bare = source();
    bare.identify().await.unwrap();
    bare.resume(None, None).await.unwrap();
    let ranges: Vec<_> = (0..blocks).step_by(AT_ONCE as usize).collect();
    let begun = Instant::now();
    let read: usize = futures::stream::iter(ranges)
        .map(|from| {
            let bare = Arc::clone(&bare);
            async move {
                let height = |n: u64| Height::new(n).unwrap();
                let (mut next, end, mut events) = (from, (from + AT_ONCE).min(blocks), 0);
                // A source may give fewer than it was asked for: genesis comes alone.
                while next < end {
                    let read = bare.blocks(height(next)..=height(end - 1)).await?;
                    events += read.iter().map(|b| b.token_events.len()).sum::<usize>();
                    next = read.last().expect("a block").link.height.get() + 1;
                }
                Ok::<_, ebbtide::sources::SourceError>(events)
            }
        })
        .buffered(QUESTIONS)
        .try_fold(0, |sum, n| async move { Ok(sum + n) })
        .await
        .unwrap();
    let floor = events / begun.elapsed().as_secs_f64();
    assert_eq!(read as u64, blocks * MOVES);

    let database = server.database().await;
    let (written, mut seen) = watch::channel(0);
    let settings = SyncSettings {
        chain: ChainSettings {
            name: "main".to_owned(),
            kind,
            start_height: Height::new(0),
            finality_depth: None,
            announcers: None,
        },
        poll_interval: std::time::Duration::from_secs(1),
        concurrency: QUESTIONS,
        range_blocks: AT_ONCE,
        allow_reset: false,
        halt_on_bad_event: false,
        ends: false,
        fails_fast: true,
        progress: false,
    };
    let stop = CancellationToken::new();
    let begun = Instant::now();
    let syncing =
        tokio::spawn(sync::run(database.store.clone(), source(), settings, Arc::new(Counting(written)), stop.clone()));
    seen.wait_for(|sum| *sum >= blocks).await.unwrap();
    let product = events / begun.elapsed().as_secs_f64();
    stop.cancel();
    syncing.await.unwrap().unwrap();
    assert_eq!(database.count("select count(*) from token_events").await as u64, blocks * MOVES);
    server.drop(database).await;
    (product, floor)
}

pub(crate) async fn lines(server: &Server, size: &Size) -> Vec<Line> {
    const ANN: &str = "g1jg8mtutu9khhfwc4nxmuhcpftf0pajdhfvsqf5";
    const BEN: &str = "g1ffzxha57dh0qgv9ma5v393ur0zexfvp6lsjpae";
    let blocks = size.of(2_000, 200);
    let mut of_gno = Line::new(
        "backfill from gno.land: local indexer; floor: its blocks read and thrown away",
        "events/s",
        Budget::None,
    );
    let mut of_starknet = Line::new(
        "backfill from Starknet: local node; floor: its blocks read and thrown away",
        "events/s",
        Budget::None,
    );
    let indexer = FakeIndexer::start(blocks_from(0, blocks, None, "a", |height| {
        vec![(0..MOVES).map(|n| transfer("gno.land/r/gnoland/wugnot.wugnot", ANN, BEN, height + n)).collect()]
    }))
    .await;
    let node = FakeStarknet::start(chain(0, blocks, None, "a", |height| {
        vec![tx((0..MOVES).map(|n| new_transfer(TOKEN, ALICE, BOB, u128::from(height + n))).collect())]
    }))
    .await;
    for _ in 0..size.rounds {
        let (product, floor) = measure(server, Kind::Gno, || gno(&indexer.url()), blocks).await;
        of_gno.product.push(product);
        of_gno.floor.push(floor);
        let (product, floor) = measure(server, Kind::Starknet, || starknet(&node.url()), blocks).await;
        of_starknet.product.push(product);
        of_starknet.floor.push(floor);
    }
    vec![of_gno, of_starknet]
}
