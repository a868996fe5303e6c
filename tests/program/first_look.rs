//! `ebbtide run` as a person types it the first time: no database, no source, no file.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use ebbtide::private_postgres::{Search, running};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{self, Ebbtide, Pg, free_addr, pg, wait_until};

fn folder() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// The program at its first look, blocks coming faster than for people.
struct Look {
    ebbtide: Ebbtide,
    api: SocketAddr,
    http: reqwest::Client,
}

impl Look {
    fn start(dir: &Path, env: &[(&str, &str)]) -> Look {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (api, operator) = (free_addr(), free_addr().to_string());
        let (api_text, data) = (api.to_string(), dir.join("data"));
        let args = ["run", "--data-dir", data.to_str().unwrap(), "--listen", &api_text, "--operator-listen", &operator];
        let mut command = support::process::ebbtide_command(&[&args[..], &["--block-interval-ms", "40"]].concat(), env);
        // Away from any ebbtide.toml.
        command.current_dir(dir);
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Look { ebbtide: Ebbtide::spawn_command(command), api, http }
    }

    /// An answer of the API with the height it is true at; none while there is no answer.
    async fn get(&self, path: &str) -> Option<(u64, Value)> {
        let answer = self.http.get(format!("http://{}{path}", self.api)).send().await.ok()?;
        if !answer.status().is_success() {
            return None;
        }
        let height = answer.headers().get("x-block-height").and_then(|h| h.to_str().ok()?.parse().ok());
        let body = serde_json::from_str(&answer.text().await.ok()?).ok()?;
        Some((height.unwrap_or_default(), body))
    }

    async fn wait_for(&self, what: &str, path: &str, enough: impl Fn(u64, &Value) -> bool) -> (u64, Value) {
        wait_until(what, async || self.get(path).await.filter(|(height, body)| enough(*height, body))).await
    }

    async fn interrupt(mut self, dir: &Path) {
        self.ebbtide.interrupt();
        let status = self.ebbtide.wait(Duration::from_secs(15)).await;
        assert_eq!(status.code(), Some(0), "{}", self.ebbtide.stderr().join("\n"));
        wait_until("no process of its Postgres is left", async || processes_in(dir).is_empty().then_some(())).await;
    }
}

/// Processes that work in the private server's data folder.
fn processes_in(dir: &Path) -> Vec<u32> {
    support::process::processes_in(&dir.join("data/postgres"))
}

/// What the private database holds, by its own connection.
async fn stored(dir: &Path) -> (i64, i64, String) {
    let url = running(&dir.join("data"), &Search::Installed).expect("it runs").url;
    let client = pg::connect(&url).await;
    let sql = "select height, seq, (select hash from ebbtide.blocks where height = 3) from ebbtide.checkpoints";
    let row = client.query_one(sql, &[]).await.unwrap();
    (row.get(0), row.get(1), row.get(2))
}

#[tokio::test]
async fn the_first_run_shows_balances_moving_and_a_reorg_stops_cleanly_and_goes_on_later() {
    let dir = folder();
    let look = Look::start(dir.path(), &[]);
    let (height, first) = look.wait_for("there are balances", "/tokens/balances", |height, _| height > 0).await;
    let (later, second) =
        look.wait_for("they move", "/tokens/balances", |later, body| later > height && *body != first).await;
    assert_ne!(first, second);
    let (_, reorgs) =
        look.wait_for("there is a reorg", "/reorgs", |_, body| body.to_string().contains("ancestor")).await;
    assert!(!processes_in(dir.path()).is_empty(), "its Postgres runs");
    let (stood, seq, hash) = stored(dir.path()).await;
    look.interrupt(dir.path()).await;

    let look = Look::start(dir.path(), &[]);
    look.wait_for("there are balances again", "/tokens/balances", |height, _| height > 0).await;
    let (stands, seq_now, hash_now) = stored(dir.path()).await;
    assert_eq!(hash_now, hash, "the same chain");
    // A few blocks may have been replaced meanwhile; the count of what was done never falls.
    assert!(stands + 5 >= stood && seq_now >= seq, "block {stood} after {seq} moves, then {stands} after {seq_now}");
    let goes_on = |height: u64, _: &Value| height > stands.cast_unsigned() + 3;
    look.wait_for("it goes on", "/tokens/balances", goes_on).await;
    look.interrupt(dir.path()).await;
    println!(
        "balances at {height} and {later}; reorgs: {}; stopped at {stood}, went on from {stands}",
        reorgs.to_string().chars().take(200).collect::<String>()
    );
}

#[tokio::test]
async fn a_database_in_the_environment_is_not_touched_by_a_first_look() {
    for variable in ["DATABASE_URL", "DB_URL", "EBBTIDE_DATABASE_URL"] {
        let database = Pg::empty().await;
        let dir = folder();
        let mut look = Look::start(dir.path(), &[(variable, &database.url)]);
        look.wait_for("there are balances", "/tokens/balances", |height, _| height > 0).await;
        look.ebbtide.wait_for_line("ignored and left untouched").await;
        let client = pg::connect(&database.url).await;
        let count = async |sql: &str| client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0);
        assert_eq!(count("select count(*) from pg_namespace where nspname = 'ebbtide'").await, 0, "{variable}");
        assert_eq!(count("select count(*) from pg_tables where schemaname = 'public'").await, 0, "{variable}");
        let others = "select count(*) from pg_stat_activity
                      where datname = current_database() and pid <> pg_backend_pid()";
        assert_eq!(count(others).await, 0, "{variable}: nobody is connected");
        assert!(!processes_in(dir.path()).is_empty(), "a private Postgres is used");
        look.interrupt(dir.path()).await;
    }
}

#[tokio::test]
async fn a_database_flag_without_a_source_is_refused() {
    let database = Pg::empty().await;
    let dir = folder();
    let mut command = support::process::ebbtide_command(&["run", "--database-url", &database.url], &[]);
    let output = command.current_dir(dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("--source devnet") && said.contains("--database-url"), "{said}");
    assert!(!dir.path().join(".ebbtide").exists(), "nothing was begun");
    let client = pg::connect(&database.url).await;
    let schemas = client.query("select from pg_namespace where nspname = 'ebbtide'", &[]).await.unwrap();
    assert!(schemas.is_empty());
}
