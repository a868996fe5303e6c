//! A durable private server for the run, and a fresh database for each part of it.

use std::path::Path;

use ebbtide::chain::{Block, BlockRef, ChainId, Kind};
use ebbtide::private_postgres::{Options, PrivatePostgres};
use ebbtide::store::{NewBlocks, Store, StoreSettings, SyncLock, Written};
use tokio_postgres::{Client, NoTls};

/// Beside what every private server of ours has; fsync and full_page_writes stay on.
pub(crate) const SETTINGS: [&str; 6] = [
    "shared_buffers=1GB",
    "work_mem=64MB",
    "max_wal_size=8GB",
    "checkpoint_timeout=30min",
    "wal_compression=off",
    "max_connections=300",
];

pub(crate) struct Server {
    postgres: PrivatePostgres,
    made: std::cell::Cell<u32>,
}

/// A migrated database with one chain, `bench`.
pub(crate) struct Database {
    pub(crate) url: String,
    pub(crate) store: Store,
    pub(crate) chain: ChainId,
    /// For what is measured beside the product.
    pub(crate) client: Client,
}

pub(crate) async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

impl Server {
    pub(crate) async fn start(folder: &Path) -> Server {
        let mut settings: Vec<String> = SETTINGS.map(str::to_owned).to_vec();
        // For a look at plans: EBBTIDE_BENCH_EXPLAIN=100 logs each statement of 100 ms and more, nested ones too.
        if let Ok(ms) = std::env::var("EBBTIDE_BENCH_EXPLAIN") {
            settings.extend(
                [
                    "session_preload_libraries=auto_explain",
                    "auto_explain.log_analyze=on",
                    "auto_explain.log_buffers=on",
                    "auto_explain.log_triggers=on",
                    "auto_explain.log_nested_statements=on",
                ]
                .map(str::to_owned),
            );
            settings.push(format!("auto_explain.log_min_duration={ms}"));
        }
        let options = Options { settings, ..Options::default() };
        let postgres = PrivatePostgres::start(folder, options).await.unwrap();
        let store = Store::open(&postgres.url(), StoreSettings::default()).unwrap();
        store.migrate().await.unwrap();
        Server { postgres, made: std::cell::Cell::new(0) }
    }

    fn url(&self, database: &str) -> String {
        self.postgres.url().replace("dbname=ebbtide", &format!("dbname={database}"))
    }

    pub(crate) fn log(&self) -> &Path {
        self.postgres.log()
    }

    pub(crate) async fn version(&self) -> String {
        let client = connect(&self.url("postgres")).await;
        let row = client.query_one("select split_part(version(), ' on ', 1)", &[]).await.unwrap();
        row.get(0)
    }

    /// A database of its own, with its chain; finality far away, so that nothing is final but what is said to be.
    pub(crate) async fn database(&self) -> Database {
        self.made.set(self.made.get() + 1);
        let name = format!("bench_{}", self.made.get());
        let admin = connect(&self.url("postgres")).await;
        // The migrating connections may be on their way out still.
        let create = format!("create database {name} template ebbtide");
        let mut tries = 0;
        while let Err(error) = admin.batch_execute(&create).await {
            tries += 1;
            assert!(tries < 100, "{error:?}");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        let url = self.url(&name);
        let store = Store::open(&url, StoreSettings::default()).unwrap();
        let chain = store.ensure_chain("bench", Kind::Evm).await.unwrap();
        let client = connect(&url).await;
        client.batch_execute("set search_path = ebbtide; set jit = off").await.unwrap();
        client.batch_execute("update chains set finality_depth = 1000000").await.unwrap();
        Database { url, store, chain, client }
    }

    /// Drops a database, and lets the server write out what is left to write.
    pub(crate) async fn drop(&self, database: Database) {
        let row = database.client.query_one("select current_database()", &[]).await.unwrap();
        let name: String = row.get(0);
        drop(database);
        let admin = connect(&self.url("postgres")).await;
        admin.batch_execute(&format!("drop database {name} with (force)")).await.unwrap();
    }

    pub(crate) async fn stop(self) {
        self.postgres.stop().await.unwrap();
    }
}

impl Database {
    pub(crate) async fn sync_lock(&self) -> SyncLock {
        SyncLock::acquire(&self.store, self.chain).await.unwrap().expect("nobody else syncs it")
    }

    /// So that no measurement pays for the pages of the one before it.
    pub(crate) async fn settle(&self) {
        self.client.batch_execute("checkpoint").await.unwrap();
    }

    pub(crate) async fn count(&self, query: &str) -> i64 {
        self.client.query_one(query, &[]).await.unwrap().get(0)
    }
}

/// What is final after a write.
#[derive(Clone, Copy)]
pub(crate) enum Final {
    /// Nothing.
    Nothing,
    /// All that is written.
    All,
    /// What lies the default finality depth below.
    Deep,
}

/// The syncer's path: these blocks in one transaction.
pub(crate) async fn write(lock: &mut SyncLock, ancestor: Option<&BlockRef>, blocks: &[Block], is_final: Final) {
    write_over(lock, ancestor, blocks, is_final, false).await;
}

/// [`write`], with what stands above the ancestor archived first.
pub(crate) async fn replace(lock: &mut SyncLock, ancestor: &BlockRef, blocks: &[Block]) {
    write_over(lock, Some(ancestor), blocks, Final::Nothing, true).await;
}

async fn write_over(
    lock: &mut SyncLock,
    ancestor: Option<&BlockRef>,
    blocks: &[Block],
    is_final: Final,
    replace: bool,
) {
    let head = blocks.last().map(|b| b.link.height).or(ancestor.map(|a| a.height)).unwrap();
    let new = NewBlocks {
        ancestor,
        replace,
        blocks,
        head_height: head,
        final_height: match is_final {
            Final::Nothing => None,
            Final::All => Some(head),
            Final::Deep => Some(head.minus(64)),
        },
        position: None,
        reset: false,
        network_id: None,
        vaults: &[],
    };
    assert!(matches!(lock.write(&new).await.unwrap(), Written::Stored { .. }));
}

/// Everything, in transactions of `at_once` blocks.
pub(crate) async fn write_all(lock: &mut SyncLock, blocks: &[Block], at_once: usize, is_final: Final) {
    let mut ancestor = None;
    for part in blocks.chunks(at_once) {
        write(lock, ancestor.as_ref(), part, is_final).await;
        ancestor = part.last().map(|b| b.link.block_ref());
    }
}
