//! What `status` says of a projection that fails, and of one that is built again.

use futures::StreamExt;
use serde_json::Value;
use tokio_postgres::{AsyncMessage, NoTls};

use crate::support::check::World;
use crate::support::{Ebbtide, wait_until};
use crate::{ebbtide, said, told};

/// A projection by a function that first does what `body` says with (chain, at).
async fn projection(world: &World, body: &str) {
    world
        .sql(
            "create table public.seen (chain_id bigint, height bigint, primary key (chain_id, height));
             create table public.switch (fails boolean); insert into public.switch values (true)",
        )
        .await;
    function(world, body).await;
    world.sql("select create_projection('mine', 'public.note(bigint,bigint)', '{public.seen}')").await;
}

async fn function(world: &World, body: &str) {
    world
        .sql(&format!(
            "create or replace function public.note(chain bigint, at bigint) returns void language plpgsql as $$
             begin {body} insert into public.seen values (chain, at); end $$"
        ))
        .await;
}

fn mine(world: &World) -> Value {
    let output = ebbtide(world, &["status", "--json"]);
    let all: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", said(&output)));
    all.as_array().unwrap().iter().find(|s| s["projection"] == "mine").unwrap().clone()
}

/// The table of `status`, without its head and what is said below it.
fn rows(text: &str) -> impl Iterator<Item = &str> {
    text.lines().skip(1).take_while(|line| !line.is_empty())
}

#[tokio::test]
async fn a_block_that_fails_is_told_until_it_does_not() {
    let world = World::new(64).await;
    projection(&world, "if at = 2 then perform 1 / (not fails)::int from public.switch; end if;").await;
    world.branch("a", 1, 3, "a0").await;
    let _process = Ebbtide::spawn(&["process", "--database-url", &world.url], &[]);
    wait_until("the block has failed twice", async || (mine(&world)["failures"].as_i64() >= Some(2)).then_some(()))
        .await;
    let seen = mine(&world);
    assert_eq!(seen["failed_height"], 2);
    assert_eq!(seen["failed_reason"], "block 2 (a2): division by zero");
    assert_eq!(seen["applied_height"], 1);
    assert_eq!(seen["rebuilding"], Value::Null);
    let output = ebbtide(&world, &["status"]);
    assert_eq!(output.status.code(), Some(1), "it needs a person");
    assert!(said(&output).contains("failing: block 2 (a2): division by zero ("), "{}", said(&output));
    let anomaly = "select concat_ws(' ', kind, height, detail) from anomalies";
    assert_eq!(world.one(anomaly).await.unwrap(), "failing projection 2 mine: block 2 (a2): division by zero");
    // Nothing hides it: it goes when the block is applied.
    told(&world, &["resume", "--projection", "mine"]);
    assert_eq!(mine(&world)["failed_height"], 2);
    world.sql("update public.switch set fails = false").await;
    wait_until("the block is applied", async || (mine(&world)["applied_height"] == 3).then_some(())).await;
    let text = told(&world, &["status"]);
    assert!(rows(&text).all(|line| line.ends_with("  ok")), "{text}");
    assert_eq!(world.one("select count(*) from anomalies").await.unwrap(), "0");
}

#[tokio::test]
async fn resume_rings_even_where_nothing_was_paused() {
    let world = World::new(64).await;
    let (client, mut connection) = tokio_postgres::connect(&world.url, NoTls).await.unwrap();
    let (heard_by, mut heard) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut messages = futures::stream::poll_fn(move |cx| connection.poll_message(cx));
        while let Some(Ok(message)) = messages.next().await {
            if let AsyncMessage::Notification(bell) = message {
                heard_by.send(bell.payload().to_owned()).unwrap();
            }
        }
    });
    told(&world, &["resume"]);
    client.batch_execute("listen ebbtide_blocks").await.unwrap();
    told(&world, &["resume"]);
    let chain = world.one("select chain_id from chains").await.unwrap();
    let rung = tokio::time::timeout(crate::support::PATIENCE, heard.recv()).await.expect("the bell rings");
    assert_eq!(rung, Some(chain));
}

#[tokio::test]
async fn a_rebuild_is_told_with_how_far_it_has_come() {
    let world = World::new(64).await;
    projection(&world, "").await;
    world.branch("a", 1, 8, "a0").await;
    let _process = Ebbtide::spawn(&["process", "--database-url", &world.url], &[]);
    wait_until("it is applied", async || (mine(&world)["applied_height"] == 8).then_some(())).await;
    // Another function: built again. Block 5 takes longer than the time between two words on it; 6 waits for the test.
    let holder = world.client().await;
    holder.batch_execute("select pg_advisory_lock(77)").await.unwrap();
    function(
        &world,
        "if at = 5 then perform pg_sleep(1.1); end if; if at = 6 then perform pg_advisory_xact_lock(77); end if;",
    )
    .await;
    world.sql("select pg_notify('ebbtide_blocks', '')").await;
    let seen = wait_until("it says how far it has come", async || {
        Some(mine(&world)).filter(|seen| !seen["rebuilding"].is_null())
    })
    .await;
    let how_far = &seen["rebuilding"];
    assert_eq!(
        (&how_far["from_height"], &how_far["at_height"], &how_far["to_height"], &how_far["reason"]),
        (&1.into(), &5.into(), &8.into(), &"its function changed".into())
    );
    assert_eq!(seen["applied_height"], 8, "readers keep the old state");
    let text = said(&ebbtide(&world, &["status"]));
    assert!(text.contains("catching up: rebuilding: at 5 of 8, its function changed"), "{text}");
    holder.batch_execute("select pg_advisory_unlock(77)").await.unwrap();
    wait_until("it is done", async || mine(&world)["rebuilding"].is_null().then_some(())).await;
    assert_eq!(world.one("select count(*) from public.seen").await.unwrap(), "8");
    assert!(rows(&told(&world, &["status"])).all(|line| line.ends_with("  ok")));
}
