//! Two processors on one database, each with its own batches, and so with other cuts of the same blocks: the balances are
//! those of the canonical blocks, whoever applied which.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ebbtide::chain::decide::{Base, Checkpoint};
use ebbtide::chain::{BlockRef, ChainId, Hash, Height};
use ebbtide::process::{ProcessError, ProcessSettings, Unwatched, run};
use ebbtide::store::{Changes, Fence, LedgerRead, LedgerWrite, Run, Store, StoreSettings, Wake, WakeMode};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio_util::sync::CancellationToken;

use crate::support::check::World;

const BATCHES: [usize; 6] = [1, 3, 10, 37, 100, 250];
const BLOCKS: i64 = 400;

/// Blocks `{tag}{height}` with 1 to 40 movements each, among few accounts, so that a skipped or repeated block shows.
async fn fill(world: &World, tag: &str, from: i64, to: i64, parent: &str, seed: i64) {
    world
        .sql(&format!(
            "begin;
             insert into token_events (chain_id, height, tx_index, event_index, token, from_address, to_address, amount)
             select c.chain_id, h, 0, n, 'gold', case when n % 3 = 0 then null else 'user' || (h * 7 + n * 5 + {seed}) % 61 end,
                 'user' || (h * 11 + n * 3) % 61, 1 + (h * 31 + n * 17 + {seed}) % 1000
             from chains c, generate_series({from}, {to}) h, generate_series(1, 1 + (h * 13 + {seed}) % 40) n;
             insert into blocks (chain_id, height, hash, parent_hash)
             select c.chain_id, h, '{tag}' || h, case when h = {from} then '{parent}' else '{tag}' || h - 1 end
             from chains c, generate_series({from}, {to}) h;
             commit"
        ))
        .await;
}

/// What happens beside the two.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Beside {
    Nothing,
    Replay,
    Pause,
    Reorg,
    Edits,
}

const BESIDE: [Beside; 5] = [Beside::Nothing, Beside::Replay, Beside::Pause, Beside::Reorg, Beside::Edits];

struct Round {
    seed: u64,
    batches: (usize, usize),
    is_final: bool,
    beside: Beside,
}

async fn process(world: &World, batch: usize, once: bool, stop: CancellationToken) -> Result<(), ProcessError> {
    let store = Store::open(&world.url, StoreSettings::default()).unwrap();
    let wake = Wake::start(&store, WakeMode::Listen);
    let settings = ProcessSettings { once, batch, poll_interval: Duration::from_millis(50), ..world.settings.clone() };
    run(store, settings, wake, Arc::new(Unwatched), stop).await
}

async fn disturb(world: &World, rng: &mut StdRng, beside: Beside) {
    let db = world.client().await;
    for n in 0..8 {
        // Somewhere in the course of the two; where exactly is the machine's doing.
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..40))).await;
        let at = rng.random_range(1..BLOCKS);
        let sql = match beside {
            Beside::Nothing => return,
            Beside::Replay => format!("select replay('main', {at}, 'token_balances')"),
            Beside::Pause if n % 2 == 0 => format!("select pause('main', 'token_balances', {at})"),
            Beside::Pause => "select resume('main', 'token_balances')".to_owned(),
            Beside::Reorg => {
                let at = rng.random_range(BLOCKS - 60..BLOCKS);
                format!(
                    "select put_block('main', {at}, 'r{n}_{at}',
                         (select hash from blocks where height = {at} - 1), now(), '[]',
                         '[{{\"tx_index\": 0, \"event_index\": 0, \"token\": \"gold\", \"to_address\": \"user{n}\", \"amount\": \"7\"}}]')"
                )
            }
            Beside::Edits => {
                format!("update token_events set amount = amount + 1 where height = {at} and event_index = 1")
            }
        };
        // The block below may be gone by now, or the projection not paused: the next one goes on.
        let _ = db.batch_execute(&sql).await;
    }
    db.batch_execute("select resume('main', 'token_balances')").await.unwrap();
}

/// Both end well, and the balances are the sum of what stands.
async fn run_round(round: &Round) {
    let world = World::new(64).await;
    let mut rng = StdRng::seed_from_u64(round.seed);
    fill(&world, "a", 0, BLOCKS, "", i64::try_from(round.seed % 1000).unwrap()).await;
    let final_height = if round.is_final { BLOCKS - 64 } else { 5 };
    world.sql(&format!("update chains set head_height = {BLOCKS}, final_height = {final_height}")).await;
    let stop = CancellationToken::new();
    let (one, other, ()) = tokio::join!(
        process(&world, round.batches.0, true, stop.clone()),
        process(&world, round.batches.1, true, stop.clone()),
        disturb(&world, &mut rng, round.beside),
    );
    let what =
        format!("seed {}, batches {:?}, final {}, {:?}", round.seed, round.batches, round.is_final, round.beside);
    one.unwrap_or_else(|e| panic!("{what}: the first ended with {e}"));
    other.unwrap_or_else(|e| panic!("{what}: the second ended with {e}"));
    // What came after both had ended is applied by a third.
    world.try_process().await.unwrap_or_else(|e| panic!("{what}: the third ended with {e}"));
    let found = crate::support::check::differences(&world.db, "main").await;
    assert!(found.is_empty(), "{what}: differences:\n{}", found.join("\n"));
    let store = Store::open(&world.url, StoreSettings::default()).unwrap();
    let findings = store.verify(Some("main"), 5).await.unwrap();
    assert_eq!(findings.differences, 0, "{what}: verify: {}", findings.lines.join("\n  "));
}

fn rounds(from: u64) -> impl Iterator<Item = Round> {
    let pairs: Vec<(usize, usize)> =
        BATCHES.iter().flat_map(|a| BATCHES.iter().map(move |b| (*a, *b))).filter(|(a, b)| a < b).collect();
    (from..).map(move |seed| {
        let n = usize::try_from(seed).unwrap();
        Round { seed, batches: pairs[n % pairs.len()], is_final: n % 3 != 2, beside: BESIDE[n % BESIDE.len()] }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processors_with_different_batches_end_with_the_canonical_balances() {
    // Every pair of batches, every disturbance, final blocks and others.
    for round in rounds(0).take(20) {
        run_round(&round).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn soak_two_processors_with_different_batches_end_with_the_canonical_balances() {
    let Some(seconds) = std::env::var("EBBTIDE_SOAK_SECONDS").ok().and_then(|s| s.parse().ok()) else {
        println!("skipped: EBBTIDE_SOAK_SECONDS is not set (make soak)");
        return;
    };
    let begun = Instant::now();
    let mut done = 0;
    for round in rounds(20).take_while(|round| round.seed < 220 || begun.elapsed() < Duration::from_secs(seconds)) {
        run_round(&round).await;
        done += 1;
    }
    println!("{done} rounds of two processors");
}

/// The hole itself: a statement sent ahead on a predicted seq, which a competitor's transaction took for other blocks.
#[tokio::test]
async fn a_statement_sent_on_a_predicted_state_writes_nothing_on_a_competitor_s() {
    let world = World::new(64).await;
    world.branch("a", 0, 5, "").await;
    let store = Store::open(&world.url, StoreSettings::default()).unwrap();
    let chain = ChainId(world.one("select chain_id from chains").await.unwrap().parse().unwrap());
    world.settle().await;
    let seq: i64 = world.one("select seq from checkpoints").await.unwrap().parse().unwrap();
    // The checkpoint stands on a5; these were sent for blocks on a3, with the seq that it has by chance.
    let block = |height: u32| BlockRef { height: Height::from(height), hash: Hash::new(format!("a{height}")) };
    let revision = async |height: u32| -> i64 {
        world.one(&format!("select revision from blocks where height = {height}")).await.unwrap().parse().unwrap()
    };
    let mut write = LedgerWrite::connect(&store).await.unwrap();
    let state = "select row(k.seq, k.height, k.hash, k.through_height, k.halted_reason, k.failed_reason)::text || ' '
        || (select string_agg(b::text, ',' order by token, address) from balances b) from checkpoints k";
    let before = world.one(state).await;
    let base = Base { seq, block: Some(block(3)) };
    for last in [4, 5] {
        let mut run = Run { base: base.clone(), ..Run::default() };
        let mut fence = Fence::default();
        fence.hold(&block(3), Some(revision(3).await));
        for height in 4..=last {
            fence.hold(&block(height), Some(revision(height).await));
            run.blocks.push((block(height), revision(height).await));
        }
        run.fence = fence;
        let applied = write.apply(chain, "token_balances", &run, &Changes::default()).await.unwrap();
        assert!(!applied, "{} was applied on another block than the one it was sent for", run.what());
        run.base.block = Some(block(5));
        run.base.seq += 1;
        assert!(!write.apply(chain, "token_balances", &run, &Changes::default()).await.unwrap(), "on another seq");
    }
    assert!(!write.pass_empty_blocks(chain, "token_balances", &base, Height::from(3)).await.unwrap());
    let looked =
        LedgerRead::connect(&store).await.unwrap().look(chain, "token_balances").await.unwrap().unwrap().checkpoint;
    let elsewhere = Some(Height::from(2));
    for other in [
        Checkpoint { seq: looked.seq + 1, ..looked.clone() },
        Checkpoint { block: base.block.clone(), ..looked.clone() },
        Checkpoint { redo_from: elsewhere, ..looked.clone() },
        Checkpoint { history_from: elsewhere, ..looked.clone() },
        Checkpoint { journal_from: elsewhere, ..looked.clone() },
    ] {
        let begun = write.begin(chain, "token_balances", &other, false).await.unwrap();
        assert!(begun.is_none(), "the checkpoint was another one: {other:?}");
    }
    assert!(write.begin(chain, "token_balances", &looked, false).await.unwrap().is_some(), "it was this one");
    write.halt(chain, "token_balances", &base, "it failed").await.unwrap();
    let read = LedgerRead::connect(&store).await.unwrap();
    read.note_failure(chain, "token_balances", &base, None, "it failed").await.unwrap();
    assert_eq!(world.one(state).await, before);
    world.check().await;
}

/// `complete_to` says that what is missing is empty, not that it still is: a block that came into such a height while a
/// statement was under way, and over which the chain was declared complete again, is not skipped.
#[tokio::test]
async fn a_height_taken_as_empty_is_not_skipped_once_a_block_is_there() {
    let world = World::new(64).await;
    world.branch("a", 0, 3, "").await;
    world.branch("a", 6, 6, "a3").await;
    world.sql("update chains set complete_to = 3").await;
    world.settle().await;
    world.sql("update chains set complete_to = 6").await;
    let store = Store::open(&world.url, StoreSettings::default()).unwrap();
    let chain = ChainId(world.one("select chain_id from chains").await.unwrap().parse().unwrap());
    let seq: i64 = world.one("select seq from checkpoints").await.unwrap().parse().unwrap();
    let block = |height: u32| BlockRef { height: Height::from(height), hash: Hash::new(format!("a{height}")) };
    let base = Base { seq, block: Some(block(3)) };
    let revision =
        async || -> i64 { world.one("select revision from blocks where height = 6").await.unwrap().parse().unwrap() };
    let run_on = |seq: i64, revision: i64| {
        let base = Base { seq, block: Some(block(3)) };
        let mut run = Run { base, blocks: vec![(block(6), revision)], ..Run::default() };
        run.fence.hold(&block(3), None);
        run.fence.hold(&block(6), Some(revision));
        run.fence.needs_complete_to(Height::from(5));
        run
    };
    let run = run_on(seq, revision().await);
    let (changes, other) = (Changes::default(), world.client().await);
    let passing = LedgerWrite::connect(&store).await.unwrap();
    let mut applying = LedgerWrite::connect(&store).await.unwrap();
    let begins_block = format!(
        "select begin_block(chain_id, 'token_balances', {seq}, 3, 'a3', '{{3,6}}', '{{a3,a6}}', '{{null,null}}', 5, 0, true, null)
         from chains"
    );
    let comes = "begin; select put_block('main', 5, 'a5', 'a3', now(), '[]', '[]'); update chains set complete_to = 6";

    // It comes after the statements were sent and before they take effect: they wait for its writer.
    other.batch_execute(comes).await.unwrap();
    let applied = applying.apply(chain, "token_balances", &run, &changes);
    let passed = passing.pass_empty_blocks(chain, "token_balances", &base, Height::from(5));
    let begun = world.one(&begins_block);
    let committed = async {
        let waiting =
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
        crate::support::wait_until("all three wait", async || {
            let row = other.query_one(waiting, &[]).await.unwrap();
            (row.get::<_, i64>(0) == 3).then_some(())
        })
        .await;
        other.batch_execute("commit").await.unwrap();
    };
    let (applied, passed, begun, ()) = tokio::join!(applied, passed, begun, committed);
    assert!(!applied.unwrap(), "block 6 was applied on 3, and 5 skipped");
    assert!(!passed.unwrap(), "5 was passed over");
    assert_eq!(begun, None, "6 was begun on 3, and 5 skipped");

    // And it was there before they were sent.
    assert!(!applying.apply(chain, "token_balances", &run, &changes).await.unwrap());
    assert!(!passing.pass_empty_blocks(chain, "token_balances", &base, Height::from(5)).await.unwrap());
    assert_eq!(world.one(&begins_block).await, None);
    let mut tx = applying.transaction(chain, "token_balances", base.clone()).await.unwrap();
    assert!(!tx.apply(&run, &changes).await.unwrap());
    drop(tx);

    // Without it, the same statements go through: nothing else was in their way.
    world.sql("select drop_blocks('main', 5); select put_block('main', 6, 'a6', 'a3', now(), '[]', '[]'); update chains set complete_to = 6").await;
    assert!(passing.pass_empty_blocks(chain, "token_balances", &base, Height::from(5)).await.unwrap());
    let run = run_on(seq + 1, revision().await);
    assert!(applying.apply(chain, "token_balances", &run, &changes).await.unwrap());
}
