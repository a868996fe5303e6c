//! Loading, catching up, and one transaction per block.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ebbtide::chain::Block;
use ebbtide::process::{self, ProcessSettings, Unwatched};
use ebbtide::projections::token_balances::{History, Settings};
use ebbtide::store::{Wake, WakeMode};
use futures::SinkExt;
use tokio_util::sync::CancellationToken;

use crate::Size;
use crate::report::{Budget, Line};
use crate::server::{Database, Final, Server, write_all};
use crate::workload::{Arrays, EVENTS, Workload, arrays, copy_payload};

/// Blocks in one transaction of the syncer.
const AT_ONCE: usize = 200;

fn per_second(count: u64, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

pub(crate) async fn load(server: &Server, size: &Size) -> Vec<Line> {
    let blocks = Workload::new().blocks(None, size.of(3_000, 200), EVENTS);
    let events = blocks.len() as u64 * EVENTS;
    let payloads: Vec<Bytes> = blocks.chunks(AT_ONCE).map(copy_payload).collect();
    let what = "load, 200 blocks of 100 events per transaction";
    let mut loading = Line::new(what, "events/s", Budget::Ratio(0.8, 0.85));
    let mut bells = Line::new("the same beside itself without NOTIFY", "events/s", Budget::Ratio(0.9, 0.97));
    let mut triggers = Line::new("the same beside itself without any trigger", "events/s", Budget::None);
    for _ in 0..size.rounds {
        loading.floor.push(per_second(events, copy_bare(server, &payloads).await));
        let product = per_second(events, load_once(server, &blocks, "").await);
        loading.product.push(product);
        bells.product.push(product);
        bells.floor.push(per_second(events, load_once(server, &blocks, NO_BELLS).await));
        triggers.product.push(product);
        triggers.floor.push(per_second(events, load_once(server, &blocks, NO_TRIGGERS).await));
    }
    vec![loading, bells, triggers]
}

/// The triggers of a load that ring.
const NO_BELLS: &str = "alter table blocks disable trigger written; alter table chains disable trigger user";
/// With those that raise revisions when somebody else writes events.
const NO_TRIGGERS: &str = "alter table blocks disable trigger user; alter table chains disable trigger user; \
    alter table token_events disable trigger user";

async fn load_once(server: &Server, blocks: &[Block], prepare: &str) -> Duration {
    let database = server.database().await;
    database.client.batch_execute(prepare).await.unwrap();
    let mut lock = database.sync_lock().await;
    database.settle().await;
    let begun = Instant::now();
    write_all(&mut lock, blocks, AT_ONCE, Final::All).await;
    let took = begun.elapsed();
    server.drop(database).await;
    took
}

/// The floor: binary COPY, encoded beforehand, into a bare table with the same primary key.
async fn copy_bare(server: &Server, payloads: &[Bytes]) -> Duration {
    let mut database = server.database().await;
    let table = "create table bare (chain_id bigint not null, height bigint not null, tx_index bigint not null, \
         event_index bigint not null, token text collate \"C\" not null, from_address text collate \"C\", \
         to_address text collate \"C\", amount numeric(78, 0) not null, \
         primary key (chain_id, height, tx_index, event_index))";
    database.client.batch_execute(table).await.unwrap();
    database.settle().await;
    let begun = Instant::now();
    for payload in payloads {
        let tx = database.client.transaction().await.unwrap();
        let sink = tx.copy_in("copy bare from stdin binary").await.unwrap();
        let mut sink = std::pin::pin!(sink);
        // In pieces, as a driver sends them.
        for at in (0..payload.len()).step_by(64 << 10) {
            sink.send(payload.slice(at..payload.len().min(at + (64 << 10)))).await.unwrap();
        }
        sink.finish().await.unwrap();
        tx.commit().await.unwrap();
    }
    let took = begun.elapsed();
    server.drop(database).await;
    took
}

/// `process --once`, from connecting to the last commit.
pub(crate) async fn process_once(database: &Database, batch: usize, history: History) -> Duration {
    let settings = ProcessSettings {
        batch,
        once: true,
        token_balances: Settings { history, ..Settings::default() },
        ..ProcessSettings::default()
    };
    let begun = Instant::now();
    let wake = Wake::start(&database.store, WakeMode::Poll);
    let stop = CancellationToken::new();
    process::run(database.store.clone(), settings, wake, Arc::new(Unwatched), stop).await.unwrap();
    begun.elapsed()
}

/// How many balances differ from the floor's.
const DIFFERENCES: &str = "select count(*) from (select token, address, amount from balances) b \
    full join bare f on f.token = b.token and f.address = b.address where f.amount is distinct from b.amount";

const BARE_BALANCES: &str = "create table bare (chain_id bigint not null, token text collate \"C\" not null, \
    address text collate \"C\" not null, amount numeric not null, height bigint not null, \
    primary key (chain_id, token, address)) with (fillfactor = 70)";

pub(crate) async fn catch_up(server: &Server, size: &Size) -> Vec<Line> {
    let blocks = Workload::new().blocks(None, size.of(3_000, 200), EVENTS);
    let events = blocks.len() as u64 * EVENTS;
    let line = |what| Line::new(what, "events/s", Budget::Ratio(0.6, 0.9));
    let mut window = line("catch-up, `history = \"window\"`");
    let mut full = line("catch-up, whole history kept (default)");
    let what = "catch-up, one commit per final block, whole history";
    let mut single = Line::new(what, "events/s", Budget::None);
    for _ in 0..size.rounds {
        for (line, batch, history) in [
            (&mut full, usize::MAX, History::Full),
            (&mut window, usize::MAX, History::Window),
            (&mut single, 1, History::Full),
        ] {
            let database = server.database().await;
            let mut lock = database.sync_lock().await;
            write_all(&mut lock, &blocks, AT_ONCE, Final::All).await;
            database.client.batch_execute(BARE_BALANCES).await.unwrap();
            database.client.batch_execute("analyze token_events").await.unwrap();
            database.settle().await;
            line.floor.push(per_second(events, sum_up(&database).await));
            database.settle().await;
            line.product.push(per_second(events, process_once(&database, batch, history).await));
            assert_eq!(database.count(DIFFERENCES).await, 0, "balances must be the floor's");
            server.drop(database).await;
        }
    }
    vec![full, window, single]
}

/// The floor: all balances by one statement.
async fn sum_up(database: &Database) -> Duration {
    let begun = Instant::now();
    let sum = "insert into bare as b (chain_id, token, address, amount, height) \
        select chain_id, token, address, sum(delta), max(height) from ( \
            select chain_id, token, from_address as address, -amount as delta, height \
            from token_events where from_address is not null \
            union all \
            select chain_id, token, to_address, amount, height from token_events where to_address is not null \
        ) e group by chain_id, token, address \
        on conflict (chain_id, token, address) do update \
        set amount = b.amount + excluded.amount, height = excluded.height";
    database.client.batch_execute(sum).await.unwrap();
    begun.elapsed()
}

pub(crate) async fn block_by_block(server: &Server, size: &Size) -> Vec<Line> {
    let blocks = Workload::new().blocks(None, size.of(1_000, 100), EVENTS);
    let sent: Vec<Arrays> = blocks.iter().map(arrays).collect();
    let count = blocks.len() as u64;
    let line = |what| Line::new(what, "blocks/s", Budget::Ratio(0.67, 0.9));
    let mut durable = line("one durable transaction per block, with journal");
    let mut shipped = line("the same as shipped (processor's commits need not wait for the disk)");
    for _ in 0..size.rounds {
        for (line, sync) in [(&mut durable, true), (&mut shipped, false)] {
            let database = server.database().await;
            let mut lock = database.sync_lock().await;
            write_all(&mut lock, &blocks, AT_ONCE, Final::Nothing).await;
            database.client.batch_execute(BARE_BALANCES).await.unwrap();
            if sync {
                database.client.batch_execute(DURABLE_CHECKPOINTS).await.unwrap();
            }
            database.settle().await;
            line.floor.push(per_second(count, send_arrays(&database, &sent, sync).await));
            database.settle().await;
            line.product.push(per_second(count, process_once(&database, 1, History::Full).await));
            assert_eq!(database.count(DIFFERENCES).await, 0, "balances must be the floor's");
            server.drop(database).await;
        }
    }
    vec![durable, shipped]
}

/// The processor turns `synchronous_commit` off for itself; this turns it on again in each of its transactions.
const DURABLE_CHECKPOINTS: &str = "create function durable() returns trigger language plpgsql as \
    $$ begin perform set_config('synchronous_commit', 'on', true); return null; end $$; \
    create trigger durable before update on checkpoints for each statement execute function durable()";

/// The floor: each block's net changes as arrays, one bare statement and one commit a block, no journal, no fence.
async fn send_arrays(database: &Database, sent: &[Arrays], sync: bool) -> Duration {
    let client = &database.client;
    let on = if sync { "on" } else { "off" };
    let greeting = format!("set synchronous_commit = {on}; set plan_cache_mode = force_generic_plan");
    client.batch_execute(&greeting).await.unwrap();
    let upsert = "insert into bare as b (chain_id, token, address, amount, height) \
        select 1, d.token, d.address, d.delta, $4 \
        from unnest($1::text[], $2::text[], $3::numeric[]) as d (token, address, delta) \
        on conflict (chain_id, token, address) do update \
        set amount = b.amount + excluded.amount, height = excluded.height";
    let upsert = client.prepare(upsert).await.unwrap();
    let begun = Instant::now();
    for block in sent {
        let tokens: Vec<&str> = block.tokens.iter().map(|t| &**t).collect();
        let addresses: Vec<&str> = block.addresses.iter().map(|a| &**a).collect();
        client.execute(&upsert, &[&tokens, &addresses, &block.deltas, &block.height]).await.unwrap();
    }
    begun.elapsed()
}
