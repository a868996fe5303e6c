//! At the head: how long a block takes to become balances, and how long a reorganisation does.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ebbtide::chain::{Block, BlockRef};
use ebbtide::process::{self, Done, Of, ProcessSettings, Watcher};
use ebbtide::projections::token_balances::History;
use ebbtide::store::{SyncLock, Wake, WakeMode};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::Size;
use crate::bulk::process_once;
use crate::report::{Budget, Line, percentile};
use crate::server::{Database, Final, Server, replace, write, write_all};
use crate::workload::{EVENTS, Workload, last};

/// What the processor said, and when: it says so once the commit was answered.
enum Said {
    Applied(u64, Instant),
    Switched(Duration, Instant),
}

struct Ears(Mutex<mpsc::UnboundedSender<Said>>);

impl Watcher for Ears {
    fn applied(&self, _: Of<'_>, done: Done) {
        let _ = self.0.lock().unwrap().send(Said::Applied(done.blocks, Instant::now()));
    }

    fn switched(&self, _: Of<'_>, _: u64, took: Duration) {
        let _ = self.0.lock().unwrap().send(Said::Switched(took, Instant::now()));
    }
}

/// A processor that listens, in the background.
pub(crate) struct Processor {
    said: mpsc::UnboundedReceiver<Said>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Processor {
    pub(crate) async fn start(database: &Database) -> Processor {
        let (ears, said) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        // The bell alone: the poll interval is longer than the bench.
        let settings = ProcessSettings { poll_interval: Duration::from_secs(3600), ..ProcessSettings::default() };
        let wake = Wake::start(&database.store, WakeMode::Listen);
        let (store, ending) = (database.store.clone(), stop.clone());
        let task = tokio::spawn(async move {
            process::run(store, settings, wake, Arc::new(Ears(Mutex::new(ears))), ending).await.unwrap();
        });
        tokio::time::sleep(Duration::from_millis(500)).await;
        Processor { said, stop, task }
    }

    async fn hear(&mut self) -> Said {
        tokio::time::timeout(Duration::from_secs(60), self.said.recv()).await.expect("it is heard").unwrap()
    }

    /// Waits until so many blocks were applied.
    async fn hear_applied(&mut self, count: u64) {
        let mut applied = 0;
        while applied < count {
            if let Said::Applied(blocks, _) = self.hear().await {
                applied += blocks;
            }
        }
    }

    pub(crate) async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

pub(crate) async fn latency(server: &Server, size: &Size) -> Vec<Line> {
    let mut half = Line::new("block committed → balances committed, p50", "ms", Budget::AtMost(10.0, 5.0));
    let mut most = Line::new("the same, p99", "ms", Budget::AtMost(40.0, 20.0));
    for _ in 0..size.rounds {
        let database = server.database().await;
        let mut work = Workload::new();
        let mut lock = database.sync_lock().await;
        let below = work.blocks(None, size.of(1_000, 100), EVENTS);
        write_all(&mut lock, &below, 200, Final::Nothing).await;
        process_once(&database, 1, History::Full).await;
        let mut processor = Processor::start(&database).await;
        let mut tip = last(&below);
        let mut figures = Vec::new();
        for _ in 0..size.of(280, 50) {
            let block = work.blocks(Some(&tip), 1, EVENTS);
            let next = tokio::time::Instant::now() + Duration::from_millis(30);
            write(&mut lock, Some(&tip), &block, Final::Deep).await;
            let committed = Instant::now();
            tip = last(&block);
            let Said::Applied(blocks, at) = processor.hear().await else { panic!("a reorg out of nothing") };
            assert_eq!(blocks, 1);
            figures.push(ms(at.saturating_duration_since(committed)));
            tokio::time::sleep_until(next).await;
        }
        half.product.push(percentile(&figures, 0.5));
        most.product.push(percentile(&figures, 0.99));
        processor.end().await;
        server.drop(database).await;
    }
    vec![half, most]
}

/// A processor beside a chain that is applied already.
async fn at_the_head(server: &Server, below: &[Block]) -> (Database, SyncLock, Processor) {
    let database = server.database().await;
    let mut lock = database.sync_lock().await;
    write_all(&mut lock, below, 200, Final::Nothing).await;
    process_once(&database, 1, History::Full).await;
    let processor = Processor::start(&database).await;
    (database, lock, processor)
}

/// Short branches of 20 events a block, each replacing the one before.
pub(crate) async fn reorgs(server: &Server, size: &Size) -> Vec<Line> {
    let mut seen_right =
        Line::new("reorg of depth 10 (200 events), replacement committed → right", "ms", Budget::AtMost(100.0, 30.0));
    let mut switch = Line::new("the same, the switch alone", "ms", Budget::AtMost(100.0, 30.0));
    for _ in 0..size.rounds {
        let mut work = Workload::new();
        let below = work.blocks(None, 1_000, EVENTS);
        let ancestor = last(&below);
        let (database, mut lock, mut processor) = at_the_head(server, &below).await;
        let before = fingerprint(&database).await;
        let first = work.blocks(Some(&ancestor), 10, 20);
        write(&mut lock, Some(&ancestor), &first, Final::Deep).await;
        processor.hear_applied(10).await;
        for _ in 0..size.of(10, 5) {
            let branch = work.blocks(Some(&ancestor), 10, 20);
            replace(&mut lock, &ancestor, &branch).await;
            let committed = Instant::now();
            let (took, at) = switched(&mut processor).await;
            seen_right.product.push(ms(at.saturating_duration_since(committed)));
            switch.product.push(ms(took));
        }
        cut(&mut lock, &mut processor, &ancestor).await;
        assert_eq!(fingerprint(&database).await, before, "undo restores what was there");
        processor.end().await;
        server.drop(database).await;
    }
    vec![seen_right, switch]
}

/// The chain gets shorter and is stored again; nothing is final, so that any depth is undone by the journal.
pub(crate) async fn undo(server: &Server, size: &Size) -> Vec<Line> {
    let mut undo_64 = Line::new("undo per block at depth 64, 100 events a block", "ms", Budget::AtMost(4.0, 2.0));
    let mut undo_1000 = Line::new("undo per block at depth 1,000", "ms", Budget::AtMost(3.0, 1.0));
    for _ in 0..size.rounds {
        let below = Workload::new().blocks(None, 1_500, EVENTS);
        let (database, mut lock, mut processor) = at_the_head(server, &below).await;
        let before = fingerprint(&database).await;
        for (line, depth, times) in [(&mut undo_64, 64usize, 3), (&mut undo_1000, 1_000, 1)] {
            for _ in 0..times {
                let (kept, gone) = below.split_at(below.len() - depth);
                let took = cut(&mut lock, &mut processor, &last(kept)).await;
                line.product.push(ms(took) / depth as f64);
                let mut tip = last(kept);
                for part in gone.chunks(200) {
                    write(&mut lock, Some(&tip), part, Final::Nothing).await;
                    tip = last(part);
                }
                processor.hear_applied(depth as u64).await;
            }
        }
        assert_eq!(fingerprint(&database).await, before, "applied again it is the same");
        processor.end().await;
        server.drop(database).await;
    }
    vec![undo_64, undo_1000]
}

async fn switched(processor: &mut Processor) -> (Duration, Instant) {
    loop {
        if let Said::Switched(took, at) = processor.hear().await {
            return (took, at);
        }
    }
}

/// Takes the chain back to this block; how long the processor's part took.
async fn cut(lock: &mut SyncLock, processor: &mut Processor, to: &BlockRef) -> Duration {
    replace(lock, to, &[]).await;
    switched(processor).await.0
}

async fn fingerprint(database: &Database) -> String {
    let all = "select md5(string_agg(concat_ws(' ', token, address, amount, height), ',' order by token, address)) \
               from balances";
    database.client.query_one(all, &[]).await.unwrap().get(0)
}
