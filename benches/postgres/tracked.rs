//! Tracked tables: what keeping their undo costs, how fast a projection goes, how fast blocks of it are taken back; and
//! the option vaults, which are a projection like any other.

use std::sync::Arc;
use std::time::Instant;

use ebbtide::process::{self, ProcessSettings, Projections, Unwatched};
use ebbtide::projections::option_vaults::OptionVaults;
use ebbtide::store::{Wake, WakeMode};
use tokio_util::sync::CancellationToken;

use crate::Size;
use crate::report::{Budget, Line};
use crate::server::{Database, Final, Server, write_all};
use crate::workload::{EVENTS, Workload};

/// Volume of each account in each token: as many rows as the balances touch, in one statement a block.
const VOLUME: &str = "
    create table public.volume (chain_id bigint, token text, address text, moved numeric not null, moves bigint not null,
        primary key (chain_id, token, address)) with (fillfactor = 70);
    create function public.add_volume(chain bigint, at_height bigint) returns void language plpgsql as $$
    begin
        insert into public.volume as v (chain_id, token, address, moved, moves)
        select chain, t.token, t.to_address, sum(t.amount), count(*) from ebbtide.token_events t
        where t.chain_id = chain and t.height = at_height and t.to_address is not null
        group by t.token, t.to_address
        on conflict (chain_id, token, address) do update set moved = v.moved + excluded.moved, moves = v.moves + 1;
    end $$;";
const TRACK: &str = "select create_projection('volume', 'public.add_volume(bigint,bigint)', '{public.volume}')";

async fn loaded(server: &Server, blocks: u64, is_final: Final) -> Database {
    let database = server.database().await;
    let mut lock = database.sync_lock().await;
    let all = Workload::new().blocks(None, blocks, EVENTS);
    write_all(&mut lock, &all, 200, is_final).await;
    database.client.batch_execute(VOLUME).await.unwrap();
    database.client.batch_execute("set synchronous_commit = off; analyze").await.unwrap();
    // The ledger is not what is measured.
    database.client.batch_execute("select pause('bench', 'token_balances')").await.unwrap();
    database.settle().await;
    database
}

async fn run_once(database: &Database, projections: Projections) {
    let settings = ProcessSettings { once: true, projections, ..ProcessSettings::default() };
    let wake = Wake::start(&database.store, WakeMode::Poll);
    process::run(database.store.clone(), settings, wake, Arc::new(Unwatched), CancellationToken::new()).await.unwrap();
}

pub(crate) async fn cost(server: &Server, size: &Size) -> Vec<Line> {
    let blocks = size.of(2_000, 200);
    let mut tracked = Line::new(
        "tracked table: the same statements (100 upserts a block) beside untracked",
        "blocks/s",
        Budget::Ratio(0.4, 0.5),
    );
    let mut whole =
        Line::new("SQL projection catching up: fence, undo and checkpoint as well", "blocks/s", Budget::None);
    let mut settled = Line::new("SQL projection catching up on final blocks", "blocks/s", Budget::Ratio(0.75, 0.85));
    for _ in 0..size.rounds {
        let bare = loaded(server, blocks, Final::Nothing).await;
        let begun = Instant::now();
        let apply = bare.client.prepare("select public.add_volume($1, $2)").await.unwrap();
        for height in 1..=blocks as i64 {
            bare.client.query(&apply, &[&bare.chain.0, &height]).await.unwrap();
        }
        let floor = blocks as f64 / begun.elapsed().as_secs_f64();
        let rows = bare.count("select count(*) from public.volume").await;
        assert!(rows > 1_000, "{rows}");
        server.drop(bare).await;

        let database = loaded(server, blocks, Final::Nothing).await;
        database.client.batch_execute(TRACK).await.unwrap();
        let begun = Instant::now();
        let enter = "select run_apply($1, 'volume', null, null, array[$2::bigint], '{x}', true, false)";
        let enter = database.client.prepare(enter).await.unwrap();
        for height in 1..=blocks as i64 {
            database.client.query(&enter, &[&database.chain.0, &height]).await.unwrap();
        }
        tracked.product.push(blocks as f64 / begun.elapsed().as_secs_f64());
        tracked.floor.push(floor);
        server.drop(database).await;

        let database = loaded(server, blocks, Final::Nothing).await;
        database.client.batch_execute(TRACK).await.unwrap();
        let begun = Instant::now();
        run_once(&database, Projections::default()).await;
        whole.product.push(blocks as f64 / begun.elapsed().as_secs_f64());
        whole.floor.push(floor);
        assert_eq!(
            database.count("select count(*) from applied_blocks where projection = 'volume'").await as u64,
            blocks
        );
        server.drop(database).await;

        let database = loaded(server, blocks, Final::All).await;
        database.client.batch_execute(TRACK).await.unwrap();
        let begun = Instant::now();
        run_once(&database, Projections::default()).await;
        settled.product.push(blocks as f64 / begun.elapsed().as_secs_f64());
        settled.floor.push(floor);
        assert_eq!(database.count("select count(*) from public.volume").await, rows, "the same as without");
        server.drop(database).await;
    }
    vec![tracked, whole, settled]
}

pub(crate) async fn revert(server: &Server, size: &Size) -> Vec<Line> {
    let depths = [(1u64, "revert of tracked tables: 1 block"), (64, "64 blocks"), (1_000, "1,000 blocks")];
    let mut lines: Vec<Line> = depths.map(|(_, what)| Line::new(what, "ms per block", Budget::None)).into();
    let blocks = size.of(1_500, 1_200);
    for _ in 0..size.rounds {
        let database = loaded(server, blocks, Final::Nothing).await;
        database.client.batch_execute(TRACK).await.unwrap();
        run_once(&database, Projections::default()).await;
        for (line, (depth, _)) in lines.iter_mut().zip(depths) {
            // Rolled back: the next depth finds the same state.
            database.client.batch_execute("begin").await.unwrap();
            let begun = Instant::now();
            let above = (blocks - 1 - depth) as i64;
            let sql = "select restore_tables('volume', $1, $2)";
            let rows: i64 = database.client.query_one(sql, &[&database.chain.0, &above]).await.unwrap().get(0);
            line.product.push(begun.elapsed().as_secs_f64() * 1e3 / depth as f64);
            assert!(rows > 0);
            database.client.batch_execute("rollback").await.unwrap();
        }
        server.drop(database).await;
    }
    lines
}

/// Selectors.
const ROUND_DEPLOYED: &str = "0xd659a517d721168cbed4f7cb1abb424037bf0f34a8a22948c502429045b312";
const DEPOSIT: &str = "0x9149d2123147c5f43d258257fef0b7b969db78269369ebcf5ebb9eef8592f2";

/// Felts of a low and a high half.
fn u256(value: u64) -> String {
    format!("'{value:#x}', '0x0'")
}

/// Blocks of 20 deposits of 200 providers: one by one as at the head, and final.
pub(crate) async fn vaults(server: &Server, size: &Size) -> Vec<Line> {
    let mut lines = vec![
        Line::new("option vaults: deposits of 200 providers, 20 a block, at the head", "events/s", Budget::None),
        Line::new("option vaults: the same, final blocks", "events/s", Budget::None),
    ];
    let blocks = size.of(2_000, 500);
    for n in 0..size.rounds * lines.len() {
        let (line, is_final) = if n % 2 == 0 { (0, false) } else { (1, true) };
        let line = &mut lines[line];
        let database = server.database().await;
        let client = &database.client;
        client
            .batch_execute(
                "insert into chains (name, kind, finality_depth) values ('stark', 'starknet', 1000000);
                 insert into vault_registry (chain_id, address, layout) select chain_id, '0x11', 'a' from chains where name = 'stark'",
            )
            .await
            .unwrap();
        let mut sql = String::from("begin;");
        let mut held = vec![0u64; 200];
        let mut unlocked = 0u64;
        let mut events = 0u64;
        for height in 1..=blocks {
            let mut values = Vec::new();
            if height == 1 {
                values.push(format!(
                    "((select chain_id from chains where name = 'stark'), 1, 0, 0, '0x11', 'OptionRoundDeployed', array['{ROUND_DEPLOYED}'],
                      array['0x1', '0x21', '0x1', '0x2', '0x3', {}, '0x0', {}])",
                    u256(0),
                    u256(0)
                ));
            }
            for event in 1..=20u64 {
                let provider = (height * 7 + event * 13) % 200;
                let amount = 5 + (height + event) % 90;
                held[provider as usize] += amount;
                unlocked += amount;
                values.push(format!(
                    "((select chain_id from chains where name = 'stark'), {height}, 0, {event}, '0x11', 'Deposit', array['{DEPOSIT}', '{:#x}'],
                      array[{}, {}, {}])",
                    provider + 0xa000,
                    u256(amount),
                    u256(held[provider as usize]),
                    u256(unlocked)
                ));
            }
            events += values.len() as u64;
            sql.push_str(&format!(
                "insert into events (chain_id, height, tx_index, event_index, emitter, name, keys, data) values {};
                 insert into blocks (chain_id, height, hash, parent_hash, time)
                 select chain_id, {height}, '{:#x}', '{:#x}', to_timestamp({height}) from chains where name = 'stark';",
                values.join(", "),
                height + 0xb000,
                height + 0xafff
            ));
        }
        sql.push_str("commit; analyze");
        client.batch_execute(&sql).await.unwrap();
        client.batch_execute("select pause('stark', 'token_balances')").await.unwrap();
        if is_final {
            client.batch_execute("update chains set final_height = (select max(height) from blocks)").await.unwrap();
        }
        database.settle().await;
        let begun = Instant::now();
        run_once(&database, Projections::default().with(OptionVaults::default())).await;
        line.product.push(events as f64 / begun.elapsed().as_secs_f64());
        let refused = database.count("select count(*) from rejected_events").await;
        let providers = database.count("select count(*) from liquidity_providers where unlocked_balance > 0").await;
        assert_eq!((refused, providers), (0, 200), "all of them are right");
        let history = database.count("select count(*) from liquidity_provider_history").await;
        assert_eq!(history as u64, blocks * 20, "with the history of each block");
        server.drop(database).await;
    }
    lines
}
