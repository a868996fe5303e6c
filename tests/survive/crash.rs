//! Ended by force at every moment that matters: the state is that of one block, before and after the restart.

use std::sync::Arc;
use std::time::Duration;

use ebbtide::store::WakeMode;
use rand::RngExt;

use crate::readers::{Readers, Storm};
use crate::support::check::{Model, World, branch, snapshot};
use crate::support::{Ebbtide, Fault, FaultProxy, PATIENCE, wait_until};

fn process(url: &str) -> Ebbtide {
    Ebbtide::spawn(&["process", "--database-url", url], &[("EBBTIDE_POLL_INTERVAL_MS", "50")])
}

async fn is_what_it_says(world: &World, storm: &Storm) {
    if let Some((_, hash, held)) = snapshot(&world.db).await {
        storm.check_state(&hash, &held, None);
    }
}

async fn is_one_blocks_state(world: &World, model: &Model) {
    if let Some((_, hash, held)) = snapshot(&world.db).await {
        assert_eq!(&held, model.at(&hash), "the balances are not those after {hash}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_fifty_moments_of_a_storm_of_reorgs_it_stands_on_one_block() {
    const MOMENTS: usize = 50;
    let world = World::new(8).await;
    let storm = Arc::new(Storm::default());
    let (mut tag, mut tip) = ("a".to_owned(), 20);
    storm.branch("a", 1, tip, "a0");
    storm.tip(tip);
    world.branch("a", 1, tip, "a0").await;
    world.settle().await;
    let readers = Readers::start(&world, &storm).await;
    // The names of the blocks that stand, by height.
    let mut hashes: Vec<String> = (0..=tip).map(|h| format!("a{h}")).collect();
    let (mut inside, mut in_reorg) = (0, 0);
    for moment in 0..MOMENTS {
        let hold = moment % 5 != 4;
        if moment % 3 == 0 {
            // Everything is applied, so that the next step is the one that is hit.
            let mut calm = process(&world.url);
            world.check_soon().await;
            calm.kill();
        }
        let holder = world.client().await;
        if hold {
            holder.batch_execute("begin; select from balances for update").await.unwrap();
        }
        let depth = if moment % 4 == 3 { 0 } else { rand::rng().random_range(1..12) };
        let from = (tip + 1 - depth).max(2);
        tip = from + rand::rng().random_range(1..10);
        if depth > 0 {
            tag = format!("s{moment}_");
        }
        let parent = hashes[usize::try_from(from - 1).unwrap()].clone();
        storm.branch(&tag, from, tip, &parent);
        storm.tip(tip);
        hashes.truncate(usize::try_from(from).unwrap());
        hashes.extend((from..=tip).map(|h| format!("{tag}{h}")));
        let mut victim = process(&world.url);
        let writer = world.client().await;
        writer.batch_execute("begin").await.unwrap();
        branch(&writer, &tag, from, tip, &parent).await;
        writer.batch_execute("commit").await.unwrap();
        if hold {
            world.processor_waits().await;
            let seen = world
                .db
                .query_one(
                    "select count(*) filter (where xact_start is not null),
                            count(*) filter (where query like '-- Takes balances back%')
                     from pg_stat_activity where datname = current_database()
                     and application_name like 'ebbtide%' and wait_event_type = 'Lock'",
                    &[],
                )
                .await
                .unwrap();
            inside += usize::from(seen.get::<_, i64>(0) > 0);
            in_reorg += usize::from(seen.get::<_, i64>(1) > 0);
        } else {
            // Some moment, wherever it may be by then.
            tokio::time::sleep(Duration::from_millis(rand::rng().random_range(0..400))).await;
        }
        victim.kill();
        is_what_it_says(&world, &storm).await;
        if hold {
            holder.batch_execute("commit").await.unwrap();
        }
        is_what_it_says(&world, &storm).await;
    }
    let mut last = process(&world.url);
    world.check_soon().await;
    last.kill();
    is_what_it_says(&world, &storm).await;
    let (answers, falls) = readers.stop().await;
    println!(
        "killed {MOMENTS} times, {inside} of them inside an open transaction, {in_reorg} in the middle of an undo; \
         {answers} answers meanwhile, each of one block; the height fell {falls} times"
    );
    assert!(answers > 100, "{answers} answers");
    assert!(inside >= 25 && in_reorg >= 5, "{inside} inside, {in_reorg} in an undo");
}

/// First blocks, more blocks, a reorganisation; each written once the one before is applied.
const STEPS: [(&str, i64, i64, &str); 3] = [("a", 1, 2, "a0"), ("a", 3, 4, "a2"), ("b", 3, 5, "a2")];

/// A message of the program that carries out a step.
struct Moment {
    step: usize,
    /// 1 is its first message.
    nth: u64,
}

/// An empty chain in a database that may have held another one.
async fn anew(world: &World) {
    world
        .sql("select drop_chain('main'); insert into chains (name, kind, finality_depth) values ('main', 'other', 2)")
        .await;
}

/// The steps before this one are applied, its blocks are written.
async fn before_step(world: &World, step: usize) {
    anew(world).await;
    for (tag, from, to, parent) in &STEPS[..step] {
        world.branch(tag, *from, *to, parent).await;
        world.try_process().await.unwrap();
    }
    let (tag, from, to, parent) = STEPS[step];
    world.branch(tag, from, to, parent).await;
}

fn process_once(url: &str) -> Ebbtide {
    Ebbtide::spawn(&["process", "--once", "--database-url", url], &[])
}

/// The messages that do something, of each step. Preparing a statement changes nothing: its messages are passed over.
async fn moments(world: &World, proxy: &FaultProxy) -> Vec<Moment> {
    let mut moments = Vec::new();
    for step in 0..STEPS.len() {
        before_step(world, step).await;
        let passed = proxy.messages().len();
        assert!(process_once(&proxy.url(&world.url)).wait(PATIENCE).await.success());
        let messages = &proxy.messages()[passed..];
        let does_something = |n: &usize| {
            let (message, before) = (messages[*n].as_str(), n.checked_sub(1).map(|b| messages[b].as_str()));
            let prepares = message.starts_with("Parse")
                || message == "Bind"
                || message == "Sync" && before.is_some_and(|b| b.starts_with("Parse"));
            !prepares
        };
        moments.extend((0..messages.len()).filter(does_something).map(|n| Moment { step, nth: n as u64 + 1 }));
    }
    world.check().await;
    moments
}

/// Carries out the step through the proxy, which stops it at that moment; or the program comes to its end.
async fn until_the_moment(world: &World, proxy: &FaultProxy, moment: &Moment) -> (Ebbtide, bool) {
    before_step(world, moment.step).await;
    let fired_before = proxy.fired();
    proxy.arm_for("ebbtide", moment.nth, Fault::FreezeBefore);
    let mut once = process_once(&proxy.url(&world.url));
    wait_until("it is stopped, or ends", async || (proxy.fired() > fired_before || !once.is_running()).then_some(()))
        .await;
    (once, proxy.fired() > fired_before)
}

#[tokio::test]
async fn killed_before_every_single_message_to_postgres_it_stands_on_one_block() {
    let world = World::new(2).await;
    let mut model = Model::default();
    STEPS.iter().for_each(|(tag, from, to, parent)| model.branch(tag, *from, *to, parent));
    let proxy = FaultProxy::in_front_of(&world.url).await;
    let moments = moments(&world, &proxy).await;
    let mut killed = 0;
    for moment in &moments {
        let (mut once, stopped) = until_the_moment(&world, &proxy, moment).await;
        killed += usize::from(stopped);
        once.kill();
        proxy.disarm();
        proxy.cut_all();
        is_one_blocks_state(&world, &model).await;
        world.settle().await;
        is_one_blocks_state(&world, &model).await;
    }
    println!("killed before {killed} of {} messages that do something", moments.len());
    assert!(killed * 10 >= moments.len() * 9, "only {killed} of {} were reached", moments.len());
}

/// A processor that stands still before a message, as one that was stopped (SIGSTOP) does, while another one goes on, and
/// that then sends it: what it holds by then is the past.
#[tokio::test]
async fn stopped_before_every_single_message_while_another_goes_on_it_does_no_harm() {
    let world = World::new(2).await;
    let proxy = FaultProxy::in_front_of(&world.url).await;
    let moments = moments(&world, &proxy).await;
    let (mut stopped, mut overtaken) = (0, 0);
    for moment in &moments {
        let (mut one, is_stopped) = until_the_moment(&world, &proxy, moment).await;
        let mut other = process_once(&world.url);
        // What the stopped one holds, the other waits for.
        let waiting =
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
        wait_until("the other ends, or waits", async || {
            (!other.is_running() || world.one(waiting).await.unwrap() != "0").then_some(())
        })
        .await;
        stopped += usize::from(is_stopped);
        overtaken += usize::from(is_stopped && !other.is_running());
        proxy.disarm();
        proxy.release();
        for program in [&mut one, &mut other] {
            let ended = program.wait(PATIENCE).await;
            assert!(ended.success(), "step {}, message {}: {:?}", moment.step, moment.nth, program.stderr());
        }
        world.check().await;
    }
    println!(
        "stopped before {stopped} of {} messages; {overtaken} times the other came to its end meanwhile",
        moments.len()
    );
    assert!(stopped * 10 >= moments.len() * 9, "only {stopped} of {} were reached", moments.len());
    assert!(overtaken * 2 > stopped, "overtaken {overtaken} times");
}

#[tokio::test]
async fn a_connection_cut_before_or_after_any_answer_is_made_anew() {
    for fault in [Fault::CutBefore, Fault::CutAfterAnswer] {
        let mut world = World::new(2).await;
        let (proxy, straight) = (FaultProxy::in_front_of(&world.url).await, world.url.clone());
        let mut fired = 0;
        for nth in (1..).step_by(3).take(20) {
            anew(&world).await;
            world.branch("a", 1, 3, "a0").await;
            world.url = proxy.url(&straight);
            let running = world.start(WakeMode::Listen, Duration::from_millis(30));
            world.url.clone_from(&straight);
            world.check_soon().await;
            // From here on the messages are those of the work itself.
            proxy.arm_for("ebbtide", nth, fault);
            world.branch("a", 4, 5, "a3").await;
            world.branch("b", 3, 6, "a2").await;
            wait_until("the fault fires", async || (proxy.fired() > fired).then_some(())).await;
            fired = proxy.fired();
            world.check_soon().await;
            running.stop().await;
        }
        println!("{fault:?}: {fired} connections cut");
    }
}
