//! What a database costs beside time: bytes on disk for an event, connections and statements for many chains.

use std::io::{Read, Seek, SeekFrom};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ebbtide::process::{self, ProcessSettings, Unwatched};
use ebbtide::projections::token_balances::History;
use ebbtide::store::{Store, StoreSettings, Wake, WakeMode};
use tokio_util::sync::CancellationToken;

use crate::Size;
use crate::bulk::process_once;
use crate::report::{Budget, Line};
use crate::server::{Database, Final, Server, write_all};
use crate::workload::{EVENTS, Workload};

/// Heap, TOAST and indexes of each table after a catch-up that keeps the whole history, by event.
pub(crate) async fn bytes(server: &Server, size: &Size) -> Vec<Line> {
    let tables = [
        ("token_events", "bytes on disk an event: token_events"),
        ("balances", "bytes on disk an event: balances"),
        ("balance_history", "bytes on disk an event: balance_history"),
    ];
    let mut together =
        Line::new("bytes on disk an event: events, balances, whole history", "bytes", Budget::AtMost(650.0, 500.0));
    let mut lines: Vec<Line> = tables.map(|(_, what)| Line::new(what, "bytes", Budget::None)).into();
    let blocks = size.of(3_000, 200);
    let database = server.database().await;
    let mut lock = database.sync_lock().await;
    write_all(&mut lock, &Workload::new().blocks(None, blocks, EVENTS), 200, Final::All).await;
    process_once(&database, 100, History::Full).await;
    let events = database.count("select count(*) from token_events").await as f64;
    let mut all = 0.0;
    for (line, (table, _)) in lines.iter_mut().zip(tables) {
        let bytes = database.count(&format!("select pg_total_relation_size('{table}')")).await as f64 / events;
        line.product.push(bytes);
        all += bytes;
    }
    together.product.push(all);
    lines.push(together);
    server.drop(database).await;
    lines
}

/// Chains in one database, each with a block a moment.
const CHAINS: i64 = 50;

/// A processor on fifty chains: its connections, and the statements that reach the server for a block of one of them. Each
/// statement is one line in the server's log (`log_statement`, for this database alone; what a function runs within is not
/// logged). For blocks, polling is off: only the bell causes any.
pub(crate) async fn many(server: &Server, size: &Size) -> Vec<Line> {
    let mut connections =
        Line::new("50 chains: connections of the processor", "connections", Budget::AtMost(20.0, 12.0));
    let mut statements = Line::new("50 chains: statements a live block", "statements", Budget::AtMost(20.0, 12.0));
    let mut idle = Line::new("50 chains: statements a second while nothing comes", "statements/s", Budget::None);
    let database = server.database().await;
    let name: String = database.client.query_one("select current_database()", &[]).await.unwrap().get(0);
    database
        .client
        .batch_execute(&format!(
            "insert into chains (name, kind) select 'chain' || n, 'other' from generate_series(2, {CHAINS}) n;
             select put_block(name, 1, 'a1', 'a0') from chains;
             alter database {name} set log_statement = 'all'"
        ))
        .await
        .unwrap();
    for (poll_interval, line) in [(Duration::from_secs(1), &mut idle), (Duration::from_secs(3600), &mut statements)] {
        let store = Store::open(&database.url, StoreSettings::default()).unwrap();
        let settings = ProcessSettings { poll_interval, ..ProcessSettings::default() };
        let wake = Wake::start(&store, WakeMode::Listen);
        let stop = CancellationToken::new();
        let task = tokio::spawn(process::run(store, settings, wake, Arc::new(Unwatched), stop.clone()));
        applied(&database, 1).await;
        let mut log = Log::at_end(server);
        if poll_interval < Duration::from_secs(60) {
            let begun = Instant::now();
            tokio::time::sleep(Duration::from_secs(10)).await;
            line.product.push(log.statements() as f64 / begun.elapsed().as_secs_f64());
        } else {
            let open = "select count(*) from pg_stat_activity
                        where datname = current_database() and application_name like 'ebbtide%'";
            let blocks = size.of(40, 10) as i64;
            // What looks are still under way belongs to no block.
            log.quiet().await;
            log.counted = 0;
            for n in 0..blocks {
                let height = 2 + n / CHAINS;
                database
                    .client
                    .execute(
                        "select put_block(name, $1::bigint, 'a' || $1::bigint, 'a' || ($1::bigint - 1)) from chains \
                         order by chain_id offset $2::bigint limit 1",
                        &[&height, &(n % CHAINS)],
                    )
                    .await
                    .unwrap();
                log.quiet().await;
            }
            line.product.push(log.counted as f64 / blocks as f64);
            // The store of the bench itself holds one.
            connections.product.push(database.count(open).await as f64 - 1.0);
            let behind = "select count(*) from blocks b where not exists (select from checkpoints k
                          where k.chain_id = b.chain_id and k.projection = 'token_balances' and k.height >= b.height)";
            assert_eq!(database.count(behind).await, 0, "all of it is applied");
        }
        stop.cancel();
        task.await.unwrap().unwrap();
    }
    server.drop(database).await;
    vec![connections, statements, idle]
}

/// Waits until each chain is applied up to this height.
async fn applied(database: &Database, height: i64) {
    let behind = format!(
        "select count(*) from chains c where exists (select from blocks b where b.chain_id = c.chain_id) and not exists
            (select from checkpoints k where k.chain_id = c.chain_id and k.projection = 'token_balances' and k.height >= {height})"
    );
    let begun = Instant::now();
    while database.count(&behind).await > 0 {
        assert!(begun.elapsed() < Duration::from_secs(120), "the chains are not applied");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The server's log from here on.
struct Log {
    file: std::fs::File,
    /// Statements seen so far.
    counted: usize,
}

impl Log {
    fn at_end(server: &Server) -> Log {
        let mut file = std::fs::File::open(server.log()).unwrap();
        file.seek(SeekFrom::End(0)).unwrap();
        Log { file, counted: 0 }
    }

    /// How many came since it was last asked.
    fn statements(&mut self) -> usize {
        let mut text = Vec::new();
        self.file.read_to_end(&mut text).unwrap();
        let text = String::from_utf8_lossy(&text);
        let new = text.lines().filter(|l| l.contains("LOG:  execute ") || l.contains("LOG:  statement: ")).count();
        self.counted += new;
        new
    }

    /// Waits until none came for a while.
    async fn quiet(&mut self) {
        let mut silent_since = Instant::now();
        while silent_since.elapsed() < Duration::from_millis(300) {
            tokio::time::sleep(Duration::from_millis(30)).await;
            if self.statements() > 0 {
                silent_since = Instant::now();
            }
        }
    }
}
