//! Behind a real PgBouncer, where one is installed: what each command does there. `serve` has tests of its own
//! (tests/api/pooler.rs).

use std::process::Output;
use std::time::Duration;

use crate::support::check::World;
use crate::support::{Ebbtide, Neighbour, Pg, Pooler, wait_until};

const SESSIONS: usize = 4;

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test]
async fn behind_a_pooler_in_session_mode_the_processor_works() {
    let world = World::new(8).await;
    world.branch("a", 1, 3, "a0").await;
    // Each of its connections keeps one.
    let Some(pooler) = Pooler::start(&world.url, "session", 20).await else { return };
    let url = pooler.before(&world.url);
    Ebbtide::succeed(&["process", "--once", "--database-url", &url], &[]);
    world.check().await;
}

/// A pooler lets everybody in, also those for whom it has no session.
#[tokio::test]
async fn behind_a_pooler_in_session_mode_that_has_too_few_it_says_so() {
    let world = World::new(8).await;
    let Some(pooler) = Pooler::start(&world.url, "session", 2).await else { return };
    let url = pooler.before(&world.url);
    let mut process = Ebbtide::spawn(&["process", "--database-url", &url], &[]);
    wait_until("it says what it lacks", async || {
        let said = process.stderr().join("\n");
        said.contains("needs a session for each of our connections").then_some(())
    })
    .await;
    process.terminate();
    process.wait(Duration::from_secs(10)).await;
}

#[tokio::test]
async fn behind_a_pooler_in_transaction_mode_a_command_works_or_says_what_to_do_and_leaves_all_as_it_was() {
    let world = World::new(8).await;
    world.branch("a", 1, 3, "a0").await;
    world.settle().await;
    world.branch("a", 4, 5, "a3").await;
    let Some(pooler) = Pooler::start(&world.url, "transaction", SESSIONS).await else { return };
    let url = pooler.before(&world.url);
    let neighbour = Neighbour::new(&pooler, &world.url, SESSIONS).await;
    // All rows, each with the transaction that wrote it.
    let stands = async || {
        let tables = "select string_agg(relname, ' ' order by relname) from pg_class
            where relnamespace = 'ebbtide'::regnamespace and relkind = 'r'";
        let mut all = Vec::new();
        for table in world.one(tables).await.unwrap().split(' ') {
            let sql =
                format!("select string_agg(xmin || ' ' || t::text, '/' order by xmin::text, t::text) from {table} t");
            all.push((table.to_owned(), world.one(&sql).await));
        }
        all
    };
    let opening = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(opening.path(), "token,address,amount\ngold,early,5\n").unwrap();
    let opening = opening.path().to_str().unwrap();
    let before = stands().await;
    for command in [
        &["run", "--source", "devnet"][..],
        &["sync", "--source", "devnet"],
        &["process"],
        &["process", "--once"],
        &["migrate"],
        &["verify"],
        &["verify", "token_balances"],
        &["verify", "token_balances", "--fuzz", "7"],
        &["pause"],
        &["resume"],
        &["replay", "--from", "1"],
        &["opening-balances", opening],
        &["rejected", "list"],
        &["rejected", "retry", "--all"],
        &["psql", "-c", "select 1"],
    ] {
        let output = Ebbtide::output(&[&["--database-url", &url], command].concat(), &[]);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{command:?}: {said}");
        assert!(said.contains("or of a pooler in session mode"), "{command:?}: {said}");
        let left = neighbour.leftovers().await;
        assert!(left.is_empty(), "{command:?}: {left:#?}");
        assert_eq!(stands().await, before, "{command:?}");
    }
    for command in [&["status"][..], &["status", "--json"]] {
        let directly = Ebbtide::output(&[&["--database-url", &world.url], command].concat(), &[]);
        let pooled = Ebbtide::output(&[&["--database-url", &url], command].concat(), &[]);
        assert_eq!(pooled.status.code(), directly.status.code(), "{}", said(&pooled));
        assert!(said(&pooled).contains("token_balances"), "{}", said(&pooled));
        let left = neighbour.leftovers().await;
        assert!(left.is_empty(), "{command:?}: {left:#?}");
    }
    // The two blocks are still to be applied.
    assert_eq!(world.one("select count(*) from applied_blocks").await.as_deref(), Some("3"));
    world.settle().await;
}

#[tokio::test]
async fn an_empty_database_behind_a_pooler_in_transaction_mode_stays_empty() {
    let pg = Pg::empty().await;
    let Some(pooler) = Pooler::start(&pg.url, "transaction", SESSIONS).await else { return };
    let url = pooler.before(&pg.url);
    for (command, words) in [
        (&["migrate"][..], "or of a pooler in session mode"),
        (&["run", "--source", "devnet"], "or of a pooler in session mode"),
        (&["process", "--once"], "or of a pooler in session mode"),
        (&["serve"], "run `ebbtide migrate`"),
        (&["status"], "run `ebbtide migrate`"),
    ] {
        let output = Ebbtide::output(&[&["--database-url", &url], command].concat(), &[]);
        assert!(output.status.code() == Some(1) && said(&output).contains(words), "{command:?}: {}", said(&output));
    }
    let client = crate::support::pg::connect(&pg.url).await;
    let sql = "select count(*) from pg_namespace where nspname like 'ebbtide%'";
    assert_eq!(client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 0);
}
