//! The examples that people copy: three in SQL, one in Rust. Random transfers and reorganisations; after each, every table
//! is what a query over the chain tables says.

use std::path::Path;
use std::process::Command;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::support::{Ebbtide, Pg, wait_until};

const WHO: [&str; 6] = ["ann", "ben", "cho", "dee", "eve", "fay"];
const TOKENS: [&str; 3] = ["gold", "tin", "zinc"];

async fn put(client: &Client, hashes: &mut Vec<String>, height: usize, random: &mut StdRng) {
    let events: Vec<Value> = (0..random.random_range(0..5))
        .map(|i| {
            let party = |random: &mut StdRng| WHO[random.random_range(0..WHO.len())];
            let from = random.random_bool(0.7).then(|| party(random));
            json!({"tx_index": 0, "event_index": i, "token": TOKENS[random.random_range(0..3)], "from_address": from,
                   "to_address": party(random), "amount": random.random_range(0..50)})
        })
        .collect();
    let hash = format!("h{height}n{}", random.random::<u32>());
    hashes.truncate(height);
    let parent = hashes[height - 1].clone();
    client
        .execute(
            // Six blocks a day.
            "select put_block('main', $1, $2, $3, timestamptz '2026-01-01' + interval '4 hours' * $1::int8::float8, '[]', $4)",
            &[&(height as i64), &hash, &parent, &Value::Array(events)],
        )
        .await
        .unwrap();
    hashes.push(hash);
}

async fn settle(client: &Client, tip: &str, projections: &[&str]) {
    wait_until(&format!("{projections:?} stand on {tip}"), async || {
        let sql = "select count(*) from checkpoints where hash = $1 and projection = any ($2)";
        let there: i64 = client.query_one(sql, &[&tip, &projections]).await.unwrap().get(0);
        (there == projections.len() as i64).then_some(())
    })
    .await;
}

/// Rows that one of two queries gives and the other does not.
async fn differences(client: &Client, table: &str, truth: &str) -> Vec<String> {
    let sql = format!(
        "select 'stored ' || x::text from (({table}) except all ({truth})) x
         union all select 'true ' || x::text from (({truth}) except all ({table})) x"
    );
    client.query(&sql, &[]).await.unwrap_or_else(|e| panic!("{sql}: {e:?}")).iter().map(|row| row.get(0)).collect()
}

const CHECKS: [(&str, &str, &str); 4] = [
    (
        "holders",
        "select token, holders from public.holders where holders <> 0",
        "select token, count(*) from balances where amount > 0 group by token",
    ),
    (
        "daily_volume",
        "select token, day, transfers, volume from public.daily_volume",
        "select t.token, (b.time at time zone 'UTC')::date, count(*), sum(t.amount) from token_events t
         join blocks b using (chain_id, height) where t.kind = 'transfer' group by 1, 2",
    ),
    (
        "largest_holders",
        "select token, place, address, amount from public.largest_holders",
        "select * from (select token, row_number() over (partition by token order by amount desc, address) as place, address, amount
         from balances where amount > 0) r where place <= 10",
    ),
    (
        "largest_transfer",
        "select token, amount from public.largest_transfer",
        "select token, max(amount) from token_events where from_address is not null group by token",
    ),
];

async fn compare(client: &Client, names: &[&str]) {
    for (_, table, truth) in CHECKS.iter().filter(|(name, ..)| names.contains(name)) {
        let found = differences(client, table, truth).await;
        assert!(found.is_empty(), "{table}: {found:#?}");
    }
}

#[tokio::test]
async fn the_sql_examples_are_right_after_every_reorganisation() {
    let names = ["holders", "daily_volume", "largest_holders"];
    let pg = Pg::new().await;
    let client = pg.client().await;
    client.batch_execute("insert into chains (name, kind) values ('main', 'other')").await.unwrap();
    for name in names {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("examples/sql/{name}.sql"));
        client.batch_execute(&std::fs::read_to_string(path).unwrap()).await.unwrap();
    }
    let _process = Ebbtide::spawn(&["process", "--database-url", &pg.url], &[]);
    let mut random = StdRng::seed_from_u64(7);
    let mut hashes = vec!["root".to_owned()];
    let mut reorgs = 0;
    for _ in 0..60 {
        let height = hashes.len();
        let at = if random.random_bool(0.4) && height > 1 {
            reorgs += 1;
            height - random.random_range(1..height.min(8))
        } else {
            height
        };
        for height in at..=at + random.random_range(0..3) {
            put(&client, &mut hashes, height, &mut random).await;
        }
        settle(&client, hashes.last().unwrap(), &[&["token_balances"], &names[..]].concat()).await;
        compare(&client, &names).await;
    }
    println!("{} blocks stand, {reorgs} reorganisations", hashes.len() - 1);
}

#[tokio::test]
async fn the_rust_example_is_right_after_every_reorganisation() {
    let folder = Path::new(env!("CARGO_BIN_EXE_ebbtide")).parent().unwrap().to_owned();
    let example = folder.join("examples/largest_transfer");
    // Nothing to do after a whole build; one test alone would find the example of an earlier one.
    let built =
        Command::new(env!("CARGO")).args(["build", "--quiet", "--example", "largest_transfer"]).status().unwrap();
    assert!(built.success());
    let pg = Pg::new().await;
    let client = pg.client().await;
    client.batch_execute("insert into chains (name, kind) values ('main', 'other')").await.unwrap();
    let mut random = StdRng::seed_from_u64(11);
    let mut hashes = vec!["root".to_owned()];
    let mut run = Command::new(&example);
    run.arg(&pg.url);
    let _process = Ebbtide::spawn_command(run);
    for round in 0..25 {
        let height = hashes.len();
        let at = if round % 3 == 2 { height - (round % 5 + 1).min(height - 1) } else { height };
        for height in at..=at + 2 {
            put(&client, &mut hashes, height, &mut random).await;
        }
        settle(&client, hashes.last().unwrap(), &["token_balances", "largest_transfer"]).await;
        compare(&client, &["largest_transfer"]).await;
    }
    // A row that another session wrote belongs to nobody: refused, as for an SQL projection.
    let refused = client.batch_execute("update public.largest_transfer set amount = 0").await.unwrap_err();
    assert!(refused.as_db_error().unwrap().message().contains("belongs to the projection largest_transfer"));
}
