//! The built program and `vault_registry`: whenever a vault is registered, and whatever happens while it is caught up, in
//! the end the rows are those of a database where it was registered before the first block.

use std::collections::BTreeMap;
use std::time::Duration;

use ebbtide::chain::Event;
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::story::{self, R1, R2, V, said};
use crate::support::fake_starknet::{ALICE, FakeStarkBlock, FakeStarknet, FakeTx, TOKEN, chain, old_transfer, tx};
use crate::support::rpc_node::Fault;
use crate::support::{Ebbtide, Pg, free_addr, wait_until, wait_within};
use crate::tables::{TABLES, as_layout_b, in_order};

/// The second vault tells the same story in the other layout.
const W: &str = "0x1011";
/// Heights of the story's blocks but the last one.
const AT: [u64; 7] = [50, 190, 330, 470, 610, 750, 890];
const HEAD: u64 = 1_100;
const FINALITY: &str = "20";

/// Where the story ends on a branch, and which round is deployed, and used at once, in that block.
#[derive(Clone, Copy)]
struct Ending {
    height: u64,
    round: &'static str,
}

const FIRST: Ending = Ending { height: 1_095, round: R2 };

fn fake(events: &[Event], renamed: &[(&str, &str)]) -> Vec<Value> {
    let name = |text: &str| renamed.iter().find(|(old, _)| *old == text).map_or(text, |(_, new)| *new).to_owned();
    let names = |texts: &[ebbtide::chain::Text]| texts.iter().map(|text| name(text)).collect::<Vec<_>>();
    let fake = |e: &Event| json!({"from_address": name(&e.emitter), "keys": names(&e.keys), "data": names(&e.data)});
    events.iter().map(fake).collect()
}

/// The story's block as both vaults tell it, each in a transaction of its own.
fn told(n: usize, ending: Ending) -> Vec<FakeTx> {
    let (_, _, mut events) = story::blocks().swap_remove(n);
    if n == AT.len() {
        events.push(said(R2, "PricingDataSet", &[], &[1300, 0, 4100, 12, 0]));
    }
    let rounds: BTreeMap<String, u64> = [(R1.to_owned(), 1), (R2.to_owned(), 2)].into();
    let (a, b) = (in_order(events.clone()), as_layout_b(&events, V, &rounds));
    let other = if ending.round == R2 { "0x1022" } else { "0x1023" };
    vec![tx(fake(&a, &[(R2, ending.round)])), tx(fake(&b, &[(V, W), (R1, "0x1021"), (R2, other)]))]
}

fn transactions(number: u64, ending: Ending) -> Vec<FakeTx> {
    let mut all = vec![tx(vec![old_transfer(TOKEN, "0x0", ALICE, u128::from(number) + 1)])];
    let at = AT.iter().position(|at| *at == number).or((number == ending.height).then_some(AT.len()));
    match at {
        Some(n) => all.extend(told(n, ending)),
        // It says something in every block, and nothing follows from it.
        None => all.push(tx(fake(&[said(V, "FossilCallbackSuccess", &[], &[1000, 0, 5000, 10, 0, 1000])], &[]))),
    }
    all
}

fn blocks() -> Vec<FakeStarkBlock> {
    chain(0, HEAD, None, "a", |number| transactions(number, FIRST))
}

/// The last `replaced` blocks are others, and the story ends otherwise.
fn forked(old: &[FakeStarkBlock], replaced: usize, salt: &str, ending: Ending) -> Vec<FakeStarkBlock> {
    let stem = &old[..old.len() - replaced];
    let new = chain(stem.len() as u64, replaced as u64 + 1, stem.last(), salt, |n| transactions(n, ending));
    [stem, &new].concat()
}

struct World {
    pg: Pg,
    db: Client,
    ebbtide: Ebbtide,
    tokens: &'static str,
    args: &'static [&'static str],
}

fn spawn(node: &FakeStarknet, pg: &Pg, tokens: &str, args: &[&str]) -> Ebbtide {
    let (url, operator) = (node.url(), free_addr().to_string());
    let mut all =
        vec!["run", "--source", "starknet", "--url", &url, "--database-url", &pg.url, "--listen", "127.0.0.1:0"];
    all.extend(["--operator-listen", &operator, "--source-poll-ms", "50", "--finality-depth", FINALITY]);
    all.extend(["--token", tokens]);
    all.extend(args);
    Ebbtide::spawn(&all, &[("EBBTIDE_CHAINS__MAIN__REQUEST_TIMEOUT_MS", "5000")])
}

const FROM_0: &[&str] = &["--start-height", "0"];

impl World {
    /// With both vaults registered before the first block, or without any.
    async fn start(
        node: &FakeStarknet,
        registered: bool,
        tokens: &'static str,
        args: &'static [&'static str],
    ) -> World {
        let pg = Pg::new().await;
        let db = pg.client().await;
        if registered {
            db.execute("insert into chains (name, kind) values ('main', 'starknet')", &[]).await.unwrap();
            register(&db).await;
        }
        let ebbtide = spawn(node, &pg, tokens, args);
        World { pg, db, ebbtide, tokens, args }
    }

    fn spawn_again(&mut self, node: &FakeStarknet) {
        self.ebbtide = spawn(node, &self.pg, self.tokens, self.args);
    }

    async fn stop(&mut self) {
        self.ebbtide.terminate();
        let status = self.ebbtide.wait(Duration::from_secs(15)).await;
        assert!(status.success(), "{status}:\n{}", self.ebbtide.stderr().join("\n"));
    }

    /// Waits until all projections stand on this head, and every vault that is registered counts. On the way no vault is
    /// seen with half of its history.
    async fn settle(&self, served: &[FakeStarkBlock], what: &str) {
        let head = served.last().unwrap();
        let sql = "select
            (select count(*) from checkpoints where hash = $1 and redo_from is null),
            (select count(*) from checkpoints where halted_reason is not null or failed_reason is not null),
            (select count(*) from vault_registry where not caught_up or indexed_through is distinct from $2),
            (select count(*) from vault_registry where not caught_up),
            (select count(*) from vaults v join vault_registry g using (chain_id, address) where not g.caught_up)";
        wait_within(Duration::from_secs(120), &format!("{what}: all is applied up to {}", head.number), async || {
            let row = self.db.query_one(sql, &[&head.hash, &head.number.cast_signed()]).await.unwrap();
            let [standing, failed, behind, uncounted, half] = [0, 1, 2, 3, 4].map(|n| row.get::<_, i64>(n));
            assert_eq!(failed, 0, "{what}: halted");
            assert!(half == 0, "{what}: {half} of {uncounted} vaults have rows before they count");
            (standing == 2 && behind == 0).then_some(())
        })
        .await;
        let rejected: i64 = self.db.query_one("select count(*) from rejected_events", &[]).await.unwrap().get(0);
        assert_eq!(rejected, 0, "{what}");
    }

    async fn dump(&self) -> Vec<(String, String)> {
        let mut all = Vec::new();
        // Each vault's history is a row for each of the story's 8 blocks that changes its balances.
        for table in TABLES.iter().chain(&["events", "transactions"]) {
            let sql = format!("select to_jsonb(t)::text from {table} t order by to_jsonb(t)::text collate \"C\"");
            for row in self.db.query(&sql, &[]).await.unwrap() {
                all.push(((*table).to_owned(), row.get(0)));
            }
        }
        all
    }

    /// Compares every row with those of a database where the vaults were registered before the first block.
    async fn compare(&self, node: &FakeStarknet, served: &[FakeStarkBlock], what: &str) {
        self.settle(served, what).await;
        let mut other = World::start(node, true, self.tokens, self.args).await;
        other.settle(served, "from the start").await;
        let (ours, theirs) = (self.dump().await, other.dump().await);
        other.stop().await;
        let count = |table: &str| theirs.iter().filter(|(of, _)| of == table).count();
        assert_eq!([count("vaults"), count("option_rounds"), count("option_bids")], [2, 4, 6], "{what}");
        assert!(count("events") > 900, "{what}: {} events", count("events"));
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert_eq!(ours, theirs, "{what}");
        }
        assert_eq!(ours.len(), theirs.len(), "{what}");
        println!("{what}: {} rows compared", ours.len());
    }

    /// From now on a catch-up waits, in the transaction that brings a vault beyond this height, for who holds the lock.
    async fn hold_catching_up_at(&self, height: u64) -> Client {
        let holder = self.pg.client().await;
        holder.batch_execute("select pg_advisory_lock(77)").await.unwrap();
        let sql = format!(
            "create function hold() returns trigger language plpgsql as $$
             begin perform pg_advisory_xact_lock_shared(77); return new; end $$;
             create trigger hold before update on vault_registry for each row
             when (new.indexed_through > {height} and new.address = '{V}' and not old.caught_up) execute function hold()"
        );
        self.db.batch_execute(&sql).await.unwrap();
        holder
    }

    async fn wait_until_held(&self) {
        // A projection that is built again because the other vault is there already comes first.
        wait_within(Duration::from_secs(120), "a piece is under way", async || {
            let sql = "select from pg_locks where locktype = 'advisory' and objid = 77 and not granted";
            self.db.query_opt(sql, &[]).await.unwrap().map(drop)
        })
        .await;
        let sql = "select count(*) from vault_registry where indexed_through between 1 and $1 and not caught_up";
        let begun: i64 = self.db.query_one(sql, &[&(HEAD.cast_signed() - 2)]).await.unwrap().get(0);
        assert!(begun >= 1, "a piece was stored before");
    }
}

/// As people type it.
async fn register(db: &Client) {
    let sql = "insert into vault_registry (chain_id, address, layout)
               select chain_id, '0x0011', 'A' from chains union all select chain_id, '0x1011', 'b' from chains";
    db.execute(sql, &[]).await.unwrap();
}

#[tokio::test]
async fn vaults_of_two_layouts_registered_late_are_as_if_registered_from_the_start() {
    let mut served = blocks();
    let node = FakeStarknet::start(served.clone()).await;
    let mut late = World::start(&node, false, TOKEN, FROM_0).await;
    late.settle(&served, "without vaults").await;
    // Of projections that do not follow from these events nothing deep is built again, nor of the vaults' piece by piece.
    late.db
        .batch_execute(
            "create table deep (projection text);
             create function note_deep() returns trigger language plpgsql as
             $$ begin insert into deep values (new.projection); return new; end $$;
             create trigger note_deep after update on checkpoints for each row when (new.deep_change)
             execute function note_deep()",
        )
        .await
        .unwrap();
    register(&late.db).await;
    late.compare(&node, &served, "registered at the head").await;
    let deep: i64 = late.db.query_one("select count(*) from deep", &[]).await.unwrap().get(0);
    assert_eq!(deep, 0);
    // A round that was deployed and used in one block, and that block is replaced: the vaults are followed as any others.
    for (salt, ending) in [("b", Ending { height: 1_097, round: "0x23" }), ("c", Ending { height: 1_096, round: R2 })] {
        served = forked(&served, 8, salt, ending);
        node.set_chain(served.clone());
        late.compare(&node, &served, &format!("branch {salt}")).await;
    }
    // Taken out and registered again: nothing is there twice.
    late.db.execute("delete from vault_registry", &[]).await.unwrap();
    wait_until("no vault is left", async || {
        let left: i64 = late.db.query_one("select count(*) from vaults", &[]).await.unwrap().get(0);
        (left == 0).then_some(())
    })
    .await;
    register(&late.db).await;
    late.compare(&node, &served, "registered again").await;
    late.stop().await;
}

#[tokio::test]
async fn vaults_registered_while_the_syncer_is_down_survive_a_kill_in_the_middle_of_their_catch_up() {
    let served = blocks();
    let node = FakeStarknet::start(served.clone()).await;
    let mut late = World::start(&node, false, "none", FROM_0).await;
    late.settle(&served, "without vaults").await;
    late.stop().await;
    register(&late.db).await;
    let holder = late.hold_catching_up_at(600).await;
    late.spawn_again(&node);
    late.wait_until_held().await;
    late.ebbtide.kill();
    holder.batch_execute("select pg_advisory_unlock(77)").await.unwrap();
    late.spawn_again(&node);
    late.compare(&node, &served, "killed").await;
    late.stop().await;
}

#[tokio::test]
async fn a_reorganisation_in_the_middle_of_a_catch_up() {
    let served = blocks();
    let node = FakeStarknet::start(served.clone()).await;
    let mut late = World::start(&node, false, "none", FROM_0).await;
    late.settle(&served, "without vaults").await;
    // Before the last piece: what it has read is then of a branch that has gone at the node.
    let holder = late.hold_catching_up_at(1_050).await;
    register(&late.db).await;
    late.wait_until_held().await;
    let other = forked(&served, 12, "b", Ending { height: 1_098, round: "0x23" });
    node.set_chain(other.clone());
    holder.batch_execute("select pg_advisory_unlock(77)").await.unwrap();
    late.compare(&node, &other, "replaced meanwhile").await;
    late.stop().await;
}

#[tokio::test]
async fn a_row_in_the_registry_is_all_it_takes() {
    let served = blocks();
    let node = FakeStarknet::start(served.clone()).await;
    node.set_there(V, 50);
    node.set_there(W, 50);
    let mut world = World::start(&node, false, "none", &[]).await;
    world.ebbtide.wait_for_line("vault_registry").await;
    register(&world.db).await;
    world.compare(&node, &served, "registered when asked to").await;
    let lowest: i64 = world.db.query_one("select min(height) from blocks", &[]).await.unwrap().get(0);
    assert_eq!(lowest, 50);
    world.stop().await;
}

/// A block a second, and a node that takes a second to find events: the head goes on while ten vaults are caught up, and each of
/// them has its turn.
#[tokio::test]
async fn the_head_does_not_wait_for_the_registry() {
    const BEHIND_AT_MOST: u64 = 5;
    let vaults: Vec<String> = (1..=10).map(|n| format!("0x10{n:x}")).collect();
    let transactions = |_: u64| -> Vec<FakeTx> {
        let event = said(V, "FossilCallbackSuccess", &[], &[1000, 0, 5000, 10, 0, 1000]);
        vaults.iter().map(|vault| tx(fake(std::slice::from_ref(&event), &[(V, vault)]))).collect()
    };
    let mut served = chain(0, 600, None, "a", transactions);
    let node = FakeStarknet::start(served.clone()).await;
    let mut world = World::start(&node, false, "none", FROM_0).await;
    let newest = async |world: &World| -> u64 {
        let sql = "select coalesce(max(height), 0) from blocks";
        world.db.query_one(sql, &[]).await.unwrap().get::<_, i64>(0).unsigned_abs()
    };
    wait_until("all blocks are there", async || (newest(&world).await == 599).then_some(())).await;
    node.fault(Fault::SlowOn("starknet_getEvents", Duration::from_secs(1)));
    for vault in &vaults {
        let sql = "insert into vault_registry (chain_id, address, layout) select chain_id, $1, 'a' from chains";
        world.db.execute(sql, &[vault]).await.unwrap();
    }
    let mut clock = tokio::time::interval(Duration::from_secs(1));
    let mut most = 0;
    let mut seconds = 0;
    // Until each has begun.
    loop {
        clock.tick().await;
        let head = served.last().unwrap().number;
        let behind = head - newest(&world).await;
        most = most.max(behind);
        assert!(behind <= BEHIND_AT_MOST, "{behind} blocks behind after {seconds} s");
        let sql = "select count(*) filter (where indexed_through is not null), count(*) filter (where caught_up) from vault_registry";
        let row = world.db.query_one(sql, &[]).await.unwrap();
        let (begun, done): (i64, i64) = (row.get(0), row.get(1));
        if begun == 10 {
            break;
        }
        assert_eq!(done, 0, "one was caught up before {} others had a turn", 10 - begun);
        assert!(seconds < 90, "{begun} vaults have begun");
        let grown = chain(head + 1, 1, served.last(), "a", transactions);
        served.extend(grown);
        node.set_chain(served.clone());
        seconds += 1;
    }
    println!("ten vaults have begun after {seconds} s, and the head was {most} blocks behind at most");
    world.stop().await;
}
