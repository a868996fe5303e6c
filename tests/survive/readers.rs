//! Who reads during a storm sees the state of one block, and is told which.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ebbtide::store::WakeMode;
use rand::RngExt;
use serde_json::Value;

use crate::support::check::{Holdings, Model, World, branch, snapshot};
use crate::support::{Ebbtide, free_addr, wait_until};

/// What the storm has done so far.
#[derive(Default)]
pub(super) struct Storm {
    model: Mutex<Model>,
    /// The chain's height after every step.
    tips: Mutex<Vec<i64>>,
    over: AtomicBool,
    answers: AtomicU64,
    falls: AtomicU64,
}

impl Storm {
    /// Before it is written: a reader may see it at once.
    pub(super) fn branch(&self, tag: &str, from: i64, to: i64, parent: &str) {
        self.model.lock().unwrap().branch(tag, from, to, parent);
    }

    /// The chain's height from now on.
    pub(super) fn tip(&self, height: i64) {
        self.tips.lock().unwrap().push(height);
    }

    fn steps(&self) -> usize {
        self.tips.lock().unwrap().len()
    }

    /// A reader saw `height` after `before` (with the steps done by the time it asked): it may only fall to where the
    /// chain was shorter at some time since.
    fn check_fall(&self, before: Option<(i64, usize)>, height: i64) {
        if let Some((seen, at_step)) = before
            && height < seen
        {
            let tips = self.tips.lock().unwrap();
            // The state seen may be older than the step that was the last one then: readers are behind.
            let shortest = tips[at_step.saturating_sub(6)..].iter().min().copied().unwrap();
            assert!(shortest <= height, "fell from {seen} to {height}, but the chain never was below {shortest}");
            self.falls.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn check_state(&self, hash: &str, held: &Holdings, token: Option<&str>) {
        let model = self.model.lock().unwrap();
        let expected: Holdings = model
            .at(hash)
            .iter()
            .filter(|((t, _), amount)| token.is_none_or(|token| t == token && **amount != 0))
            .map(|(key, amount)| (key.clone(), *amount))
            .collect();
        assert_eq!(held, &expected, "an answer that names {hash}");
        self.answers.fetch_add(1, Ordering::Relaxed);
    }
}

async fn read_by_sql(storm: Arc<Storm>, url: String) {
    let db = crate::support::pg::connect(&url).await;
    db.batch_execute("set search_path = ebbtide").await.unwrap();
    let mut before = None;
    while !storm.over.load(Ordering::Relaxed) {
        let step = storm.steps();
        let Some((height, hash, held)) = snapshot(&db).await else { continue };
        storm.check_state(&hash, &held, None);
        storm.check_fall(before, height);
        before = Some((height, step));
    }
}

async fn read_by_rest(storm: Arc<Storm>, base: String) {
    let client = reqwest::Client::new();
    let mut before = None;
    while !storm.over.load(Ordering::Relaxed) {
        let step = storm.steps();
        let answer = client.get(format!("{base}/tokens/gold/balances?limit=100")).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let header = |name: &str| answer.headers().get(name).map(|v| v.to_str().unwrap().to_owned());
        let Some((height, hash)) = header("x-block-height").zip(header("x-block-hash")) else { continue };
        let body: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        assert!(body["nextCursor"].is_null(), "the page holds all of it: {body}");
        let held = body["accountBalances"].as_array().unwrap().iter().map(|row| {
            let amount = &row["amount"];
            let amount = amount.as_str().map_or_else(|| amount.to_string(), str::to_owned);
            let address = row["address"].as_str().unwrap().to_owned();
            (("gold".to_owned(), address), amount.parse().unwrap())
        });
        let held: Holdings = held.collect();
        storm.check_state(&hash, &held, Some("gold"));
        let height = height.parse().unwrap();
        storm.check_fall(before, height);
        before = Some((height, step));
    }
}

/// Eight readers, half of them by SQL and half by REST, for as long as a storm goes on.
pub(super) struct Readers {
    storm: Arc<Storm>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    _serve: Ebbtide,
}

impl Readers {
    pub(super) async fn start(world: &World, storm: &Arc<Storm>) -> Readers {
        let listen = free_addr().to_string();
        let serve = Ebbtide::spawn(
            &["serve", "--database-url", &world.url, "--listen", &listen, "--negative-balances", "show"],
            &[],
        );
        let base = format!("http://{listen}");
        let _ = rustls::crypto::ring::default_provider().install_default();
        wait_until("the interface answers", async || reqwest::get(format!("{base}/tokens/gold/balances")).await.ok())
            .await;
        let tasks = (0..8)
            .map(|n| {
                let storm = storm.clone();
                if n % 2 == 0 {
                    tokio::spawn(read_by_sql(storm, world.url.clone()))
                } else {
                    tokio::spawn(read_by_rest(storm, base.clone()))
                }
            })
            .collect();
        Readers { storm: storm.clone(), tasks, _serve: serve }
    }

    /// How many answers there were and how often the height fell; fails if one of the readers saw what it must not.
    pub(super) async fn stop(self) -> (u64, u64) {
        self.storm.over.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        (self.storm.answers.load(Ordering::Relaxed), self.storm.falls.load(Ordering::Relaxed))
    }
}

/// Waits until all is applied and the readers have had their look at it.
async fn all_have_looked(world: &World, storm: &Storm) {
    world.check_soon().await;
    let enough = storm.answers.load(Ordering::Relaxed) + 40;
    wait_until("the readers have looked", async || (storm.answers.load(Ordering::Relaxed) >= enough).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_readers_of_a_storm_see_one_block_each_time() {
    let world = World::new(12).await;
    let storm = Arc::new(Storm::default());
    storm.branch("a", 1, 10, "a0");
    storm.tip(10);
    world.branch("a", 1, 10, "a0").await;
    world.settle().await;
    let readers = Readers::start(&world, &storm).await;
    let running = world.start(WakeMode::Listen, Duration::from_millis(30));
    let mut hashes: Vec<String> = (0..=10).map(|h| format!("a{h}")).collect();
    for step in 0..60 {
        let tip = i64::try_from(hashes.len()).unwrap() - 1;
        let depth = if step % 3 == 0 { 0 } else { rand::rng().random_range(1..10.min(tip - 1)) };
        let from = tip + 1 - depth;
        // Shorter only now and then: otherwise a fall would prove nothing.
        let shorter = step % 12 == 8;
        if shorter {
            all_have_looked(&world, &storm).await;
        }
        let to = if shorter { from } else { tip + rand::rng().random_range(1..4) };
        let tag = format!("s{step}_");
        let parent = hashes[usize::try_from(from - 1).unwrap()].clone();
        storm.branch(&tag, from, to, &parent);
        world.db.batch_execute("begin").await.unwrap();
        branch(&world.db, &tag, from, to, &parent).await;
        storm.tip(to);
        world.db.batch_execute("commit").await.unwrap();
        hashes.truncate(usize::try_from(from).unwrap());
        hashes.extend((from..=to).map(|h| format!("{tag}{h}")));
        if shorter {
            all_have_looked(&world, &storm).await;
        }
    }
    world.check_soon().await;
    let (answers, falls) = readers.stop().await;
    running.stop().await;
    println!("{answers} answers, each of one block; the height fell {falls} times");
    assert!(answers > 100 && falls > 0, "{answers} answers, {falls} falls");
}
