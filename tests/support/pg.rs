//! A database per test.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio_postgres::{Client, Config, NoTls};

/// A database of the test's own, dropped with it. `EBBTIDE_KEEP_DATABASES=1` keeps it, for a look with psql.
pub struct Pg {
    /// Its URL, with every right.
    pub url: String,
    admin_url: String,
    name: String,
}

impl Pg {
    /// A migrated database without any chain.
    pub async fn new() -> Pg {
        let admin_url = admin_url();
        let template = ensure_template(&admin_url).await;
        create(admin_url, Some(&template)).await
    }

    /// A database without even the schema.
    pub async fn empty() -> Pg {
        create(admin_url(), None).await
    }

    /// A connection of its own, with `ebbtide` on the search path.
    pub async fn client(&self) -> Client {
        let client = connect(&self.url).await;
        client.batch_execute("set search_path = ebbtide, public").await.unwrap();
        client
    }

    /// How to reach it, for tests that put something in between.
    pub fn config(&self) -> Config {
        self.url.parse().unwrap()
    }
}

impl Drop for Pg {
    fn drop(&mut self) {
        if std::env::var_os("EBBTIDE_KEEP_DATABASES").is_some() {
            println!("kept: {}", self.name);
            return;
        }
        let (admin_url, name) = (self.admin_url.clone(), self.name.clone());
        let drop_it = move || {
            let dropped = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
                let drop_it = async {
                    let (admin, connection) = tokio_postgres::connect(&admin_url, NoTls).await?;
                    tokio::spawn(connection);
                    admin.batch_execute(&format!("drop database if exists {name} with (force)")).await
                };
                tokio::time::timeout(Duration::from_secs(20), drop_it).await
            });
            // The server goes away with the run, so a database left behind is not worth a second panic.
            if !matches!(dropped, Ok(Ok(()))) {
                println!("left behind: database {name}");
            }
        };
        // Beside what else the test tries at the same time: it waits for a checkpoint of the server. The test's runtime ends once
        // it is done.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(drop_it)),
            Err(_) => drop_it(),
        }
    }
}

/// Connects and drives the connection in the background.
pub async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap_or_else(|e| panic!("{e:?}"));
    tokio::spawn(connection);
    client
}

fn admin_url() -> String {
    std::env::var("TEST_DATABASE_URL").ok().filter(|url| !url.is_empty()).unwrap_or_else(|| {
        panic!("TEST_DATABASE_URL is not set: use `make test`, or scripts/with-postgres cargo nextest run")
    })
}

async fn create(admin_url: String, template: Option<&str>) -> Pg {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let name =
        format!("t_{}_{}_{:08x}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed), rand::random::<u32>());
    let template = template.unwrap_or("template0");
    let admin = connect(&admin_url).await;
    // Files copied whole, which is what servers before 15 do anyway: half the time of writing them to the log.
    let version = "select current_setting('server_version_num')::int";
    let strategy = match admin.query_one(version, &[]).await.unwrap().get::<_, i32>(0) {
        150_000.. => "strategy file_copy",
        _ => "",
    };
    admin.batch_execute(&format!("create database {name} template {template} {strategy}")).await.unwrap();
    Pg { url: with_database(&admin_url, &name), admin_url, name }
}

/// Migrates a template with the built program: once for each set of migrations, however many tests start together.
async fn ensure_template(admin_url: &str) -> String {
    let name = format!("ebbtide_template_{}", schema_hash());
    let admin = connect(admin_url).await;
    let exists =
        async || admin.query_opt("select from pg_database where datname = $1", &[&name]).await.unwrap().is_some();
    if exists().await {
        return name;
    }
    admin.batch_execute("select pg_advisory_lock(7265010)").await.unwrap();
    if !exists().await {
        // Renamed when done, so that a template that exists is a whole one.
        let half = format!("{name}_half");
        admin.batch_execute(&format!("drop database if exists {half} with (force)")).await.unwrap();
        admin.batch_execute(&format!("create database {half} template template0")).await.unwrap();
        let output = super::Ebbtide::output(&["migrate", "--database-url", &with_database(admin_url, &half)], &[]);
        assert!(
            output.status.success(),
            "`ebbtide migrate` failed on an empty database ({}):\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        let half_client = connect(&with_database(admin_url, &half)).await;
        let migrated: bool =
            half_client.query_one("select to_regclass('ebbtide.blocks') is not null", &[]).await.unwrap().get(0);
        drop(half_client);
        assert!(migrated, "`ebbtide migrate` ended well but made no table ebbtide.blocks");
        let renamed = super::wait_until("the template is left by its last connection", async || {
            admin.batch_execute(&format!("alter database {half} rename to {name}")).await.ok()
        });
        renamed.await;
    }
    admin.batch_execute("select pg_advisory_unlock(7265010)").await.unwrap();
    name
}

/// Another name for every change of the files that make the schema.
fn schema_hash() -> String {
    let mut files = Vec::new();
    for dir in ["migrations", "sql/triggers"] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir);
        files.extend(std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()));
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        hash.update(file.file_name().unwrap().as_encoded_bytes());
        hash.update(std::fs::read(&file).unwrap());
    }
    hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The same server, another database.
pub fn with_database(url: &str, name: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        // key=value form: of two values the last one counts.
        return format!("{url} dbname={name}");
    };
    let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
    let server = rest.split('/').next().unwrap_or_default();
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    format!("{scheme}://{server}/{name}{query}")
}

/// The same database, another host and port.
pub fn through(url: &str, addr: std::net::SocketAddr) -> String {
    let config: Config = url.parse().unwrap();
    let password = config.get_password().map(|p| format!(":{}", String::from_utf8_lossy(p))).unwrap_or_default();
    let user = config.get_user().unwrap_or("postgres");
    format!("postgres://{user}{password}@{addr}/{}", config.get_dbname().unwrap_or(user))
}
