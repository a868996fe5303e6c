//! A database per test, in the server that TEST_DATABASE_URL names.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio_postgres::{Client, NoTls};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A database that goes away with this value.
pub struct Pg {
    base: String,
    name: String,
}

impl Pg {
    pub async fn new() -> Pg {
        let base =
            std::env::var("TEST_DATABASE_URL").unwrap_or_else(|_| "postgres:///?host=/tmp/pg&user=postgres".into());
        let name = format!("api_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let admin = connect(&with_database(&base, "postgres")).await;
        admin.batch_execute(&format!("create database {name}")).await.unwrap();
        let pg = Pg { base, name };
        let client = connect(&pg.url()).await;
        client.batch_execute("create schema ebbtide").await.unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut files = Vec::new();
        for folder in ["migrations", "sql/triggers"] {
            let mut here: Vec<_> = std::fs::read_dir(root.join(folder)).unwrap().map(|e| e.unwrap().path()).collect();
            here.sort();
            files.extend(here);
        }
        for file in files {
            let sql = std::fs::read_to_string(&file).unwrap();
            client.batch_execute(&format!("set search_path = ebbtide; {sql}")).await.unwrap();
        }
        pg
    }

    pub fn url(&self) -> String {
        with_database(&self.base, &self.name)
    }

    pub async fn client(&self) -> Client {
        let client = connect(&self.url()).await;
        client.batch_execute("set search_path = ebbtide").await.unwrap();
        client
    }
}

impl Drop for Pg {
    fn drop(&mut self) {
        let (url, name) = (with_database(&self.base, "postgres"), self.name.clone());
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let admin = connect(&url).await;
                admin.batch_execute(&format!("drop database if exists {name} with (force)")).await.unwrap();
            });
        });
        let _ = dropped.join();
    }
}

fn with_database(base: &str, name: &str) -> String {
    format!("{base}&dbname={name}")
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}
