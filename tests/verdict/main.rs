//! Every way of not being well is said by `status`, its exit code, `/ready`, `/health`, REST and the metrics: all of them, all
//! the same, within five seconds; and what they tell to do brings it back.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod chains;
mod database;
mod measured;
mod processor;
mod source;
#[path = "../support/mod.rs"]
mod support;

use std::future::Future;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::time::{Duration, Instant};

use futures::{FutureExt, StreamExt};
use serde_json::Value;
use support::{Ebbtide, PATIENCE, Pg, free_addr, holds_within};
use tokio_postgres::Client;

/// In which an operator is to hear of it.
const HEARD_WITHIN: Duration = Duration::from_secs(5);
/// So many ways are tried at once: they wait more than they work.
const AT_ONCE: usize = 5;

/// A way of not being well, tried to its end.
type Way = (&'static str, Pin<Box<dyn Future<Output = ()>>>);

fn way(name: &'static str, tried: impl Future<Output = ()> + 'static) -> Way {
    (name, Box::pin(tried))
}

/// All of them are tried, whatever one comes to; how many there were, and which failed.
async fn try_all(ways: Vec<Way>) -> (usize, Vec<&'static str>) {
    let count = ways.len();
    let tried = futures::stream::iter(ways).map(|(name, tried)| async move {
        let begun = Instant::now();
        let outcome = AssertUnwindSafe(tried).catch_unwind().await;
        println!("{name}: {:.1} s{}", begun.elapsed().as_secs_f64(), if outcome.is_ok() { "" } else { ", FAILED" });
        outcome.err().map(|_| name)
    });
    let failed = tried.buffer_unordered(AT_ONCE).filter_map(|failed| async move { failed }).collect().await;
    (count, failed)
}

#[tokio::test]
async fn every_way_of_not_being_well_is_told_by_all_who_are_asked() {
    let ways = [processor::ways(), source::ways(), database::ways()].into_iter().flatten().collect();
    let (count, failed) = try_all(ways).await;
    println!("{count} ways");
    assert!(count >= 30, "{count}");
    assert!(failed.is_empty(), "failed: {failed:?}");
}

/// What all of them must say.
#[derive(Clone, Copy)]
pub struct Must<'a> {
    /// A projection, or `source`.
    pub part: &'a str,
    pub state: &'a str,
    pub why: &'a str,
    /// None means there is nothing to do but wait.
    pub remedy: Option<&'a str>,
}

/// A database with a process that only reads, asked as an operator would.
pub struct Stage {
    pub pg: Pg,
    pub db: Client,
    rest: SocketAddr,
    operator: SocketAddr,
    http: reqwest::Client,
    _serve: Ebbtide,
}

/// How everything is, as one of those asked says it: the word and the reason.
type Said = Result<(), String>;

impl Stage {
    pub async fn empty() -> Stage {
        let pg = Pg::new().await;
        let db = pg.client().await;
        let (rest, operator) = (free_addr(), free_addr());
        let (listen, operator_listen) = (rest.to_string(), operator.to_string());
        let args = ["serve", "--database-url", &pg.url, "--listen", &listen, "--operator-listen", &operator_listen];
        let serve = Ebbtide::spawn(&args, &[]);
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build().unwrap();
        Stage { pg, db, rest, operator, http, _serve: serve }
    }

    /// With a chain named `main` that people write.
    pub async fn written() -> Stage {
        let stage = Stage::empty().await;
        stage.sql("insert into chains (name, kind, finality_depth) values ('main', 'other', 64)").await;
        stage
    }

    pub async fn sql(&self, sql: &str) {
        self.db.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    pub async fn one(&self, sql: &str) -> String {
        self.db.query_one(&format!("select coalesce(({sql})::text, '')"), &[]).await.unwrap().get(0)
    }

    /// Blocks named `{tag}{height}` that move something.
    pub async fn branch(&self, tag: &str, from: i64, to: i64, parent: &str) {
        support::check::branch(&self.db, tag, from, to, parent).await;
    }

    pub fn process(&self, args: &[&str]) -> Ebbtide {
        Ebbtide::spawn(&[&["process", "--database-url", &self.pg.url], args].concat(), &[])
    }

    /// Runs a command to its end, which must be a good one, while the other ways go on; what it printed.
    pub async fn told(&self, args: &[&str]) -> String {
        let (code, text) = self.command(args).await;
        assert_eq!(code, 0, "{args:?}: {text}");
        text
    }

    /// All of them say so within five seconds from now.
    pub async fn agree(&self, must: Must<'_>) {
        let what = format!("{} is {}", must.part, must.state);
        holds_within(HEARD_WITHIN, &what, async || self.asked(&must).await).await;
    }

    /// What they say otherwise.
    async fn asked(&self, must: &Must<'_>) -> Vec<String> {
        let (ready, health, rest, metrics) =
            tokio::join!(self.get("/ready"), self.get("/health"), self.rest(), self.get("/metrics"));
        let words = match must.why {
            "" => must.state,
            why => why,
        };
        let remedy = must.remedy.unwrap_or_default();
        let health: Value = serde_json::from_str(&health.1).unwrap_or_default();
        let in_health = &health["components"][&component_of(must.part)];
        let series = match must.part {
            "source" => format!(r#"ebbtide_source_state{{chain="main",state="{}"}} 1"#, must.state),
            name => format!(r#"ebbtide_projection_state{{chain="main",projection="{name}",state="{}"}} 1"#, must.state),
        };
        let mut said = vec![
            expect("/ready", ready.0 == 503 && unescaped(&ready.1).contains(words), &ready.1),
            is_as("/health", in_health, must),
            is_as("REST /status", &of_rest(&rest.1, must.part), must),
            expect("/metrics", metrics.1.lines().any(|line| line == series), &states_in(&metrics.1)),
        ];
        // A process for each question: not before the others agree.
        if said.iter().all(Result::is_ok) {
            let (json, text) = tokio::join!(self.status(&["--json"]), self.status(&[]));
            said.push(is_as("status --json", &of_status(&json.1, must.part), must));
            let codes = (json.0, text.0);
            said.push(expect("the exit code of status", codes == (1, 1), &format!("{codes:?}")));
            said.push(expect("status", text.1.contains(words) && text.1.contains(remedy), &text.1));
        }
        said.into_iter().filter_map(Result::err).collect()
    }

    /// All of them say that all is well; within the time that a processor or syncer needs to get there.
    pub async fn is_well(&self) {
        holds_within(PATIENCE, "all is well", async || self.not_well().await).await;
    }

    async fn not_well(&self) -> Vec<String> {
        let (ready, rest, metrics) = tokio::join!(self.get("/ready"), self.rest(), self.get("/metrics"));
        let rest_body: Value = serde_json::from_str(&rest.1).unwrap_or_default();
        let all = rest_body["chains"].as_array().is_some_and(|all| all.iter().all(|chain| chain["state"] == "ok"));
        let other: Vec<_> = states_of(&metrics.1).filter(|line| !line.contains(r#"state="ok""#)).collect();
        let mut said = vec![
            expect("/ready", ready.0 == 200, &ready.1),
            expect("REST /status", all, &rest.1),
            expect("/metrics", other.is_empty(), &other.join("\n")),
        ];
        if said.iter().all(Result::is_ok) {
            let status = self.status(&[]).await;
            said.push(expect("status", status.0 == 0, &status.1));
        }
        said.into_iter().filter_map(Result::err).collect()
    }

    pub async fn status(&self, args: &[&str]) -> (i32, String) {
        self.command(&[&["status"], args].concat()).await
    }

    /// Exit code and all that was said.
    async fn command(&self, args: &[&str]) -> (i32, String) {
        let args: Vec<String> =
            args.iter().chain(&["--database-url", &self.pg.url]).map(|arg| (*arg).to_owned()).collect();
        let output = tokio::task::spawn_blocking(move || {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            Ebbtide::output(&args, &[])
        });
        let output = output.await.unwrap();
        let text = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
        (output.status.code().unwrap_or(-1), text)
    }

    /// Status and body, from the operator port of the process that only reads.
    pub async fn get(&self, path: &str) -> (u16, String) {
        self.get_from(self.operator, path).await
    }

    async fn rest(&self) -> (u16, String) {
        self.get_from(self.rest, "/status").await
    }

    pub async fn get_from(&self, address: SocketAddr, path: &str) -> (u16, String) {
        match self.http.get(format!("http://{address}{path}")).send().await {
            Ok(answer) => (answer.status().as_u16(), answer.text().await.unwrap_or_default()),
            Err(error) => (0, error.to_string()),
        }
    }
}

fn component_of(part: &str) -> String {
    match part {
        "source" => "sync:main".to_owned(),
        "token_balances" => "process:main".to_owned(),
        other => format!("process:main:{other}"),
    }
}

fn expect(who: &str, holds: bool, instead: &str) -> Said {
    if holds { Ok(()) } else { Err(format!("{who}: {instead}")) }
}

fn is_as(who: &str, verdict: &Value, must: &Must<'_>) -> Said {
    let state = verdict.get("state").or_else(|| verdict.get("status")).and_then(Value::as_str).unwrap_or_default();
    let text = |key: &str| verdict[key].as_str().unwrap_or_default().to_owned();
    let remedy = match must.remedy {
        Some(remedy) => text("remedy").contains(remedy),
        None => true,
    };
    expect(who, state == must.state && text("reason").contains(must.why) && remedy, &verdict.to_string())
}

fn of_status(text: &str, part: &str) -> Value {
    let all: Value = serde_json::from_str(text).unwrap_or_default();
    let all = all.as_array().cloned().unwrap_or_default();
    let found = match part {
        "source" => all.first().map(|row| row["source"].clone()),
        projection => all.into_iter().find(|row| row["projection"] == projection),
    };
    found.unwrap_or_default()
}

fn of_rest(text: &str, part: &str) -> Value {
    let all: Value = serde_json::from_str(text).unwrap_or_default();
    let chain = &all["chains"][0];
    match part {
        "source" => chain["source"].clone(),
        projection => {
            let all = chain["projections"].as_array().cloned().unwrap_or_default();
            all.into_iter().find(|row| row["projection"] == projection).unwrap_or_default()
        }
    }
}

/// The words of a JSON text, quotes and all.
fn unescaped(text: &str) -> String {
    let all: Value = serde_json::from_str(text).unwrap_or_default();
    let reasons = all["reasons"].as_array().cloned().unwrap_or_default();
    reasons.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("\n")
}

fn states_in(metrics: &str) -> String {
    states_of(metrics).collect::<Vec<_>>().join("\n")
}

/// The series that say in which state something is.
fn states_of(metrics: &str) -> impl Iterator<Item = &str> {
    metrics.lines().filter(|line| line.contains("_state{") && line.ends_with(" 1"))
}
