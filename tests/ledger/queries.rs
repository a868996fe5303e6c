//! Every statement of sql/queries is one that Postgres takes on the schema as it is, with parameters it can type.

use std::path::Path;

use ebbtide::store::BY_THEIR_KEYS;
use serde_json::Value;
use tokio_postgres::Client;

use crate::support::Pg;

#[tokio::test]
async fn every_statement_can_be_prepared_on_a_migrated_database() {
    let pg = Pg::new().await;
    let client = pg.client().await;
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("sql/queries");
    let mut files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut refused = Vec::new();
    // Not statements but preparations: they make tables that other statements read, or set how these are planned.
    let preparations = ["opening_given.sql", "verify_scratch.sql", "fuzz_plans.sql"];
    client.batch_execute("begin").await.unwrap();
    for name in preparations {
        let text = std::fs::read_to_string(dir.join(name)).unwrap();
        client.batch_execute(&text).await.unwrap_or_else(|e| panic!("{name}: {e:?}"));
    }
    // The tables stay for the session; the settings go.
    client.batch_execute("commit").await.unwrap();
    for file in files.iter().filter(|file| !preparations.iter().any(|name| file.ends_with(name))) {
        let mut text = std::fs::read_to_string(file).unwrap();
        if text.contains("Goes on from chain_now.sql as `chain`") {
            text = format!("with chain as ({}){text}", include_str!("../../sql/queries/chain_now.sql"));
        }
        if let Err(e) = client.prepare(&text).await {
            let why = e.as_db_error().map_or_else(|| e.to_string(), |e| e.message().to_owned());
            refused.push(format!("{}: {why}", file.file_name().unwrap().display()));
        }
    }
    println!("{} statements", files.len());
    assert!(files.len() > 10, "read too few to mean anything");
    assert!(refused.is_empty(), "\n{}", refused.join("\n"));
}

#[tokio::test]
async fn a_statement_with_a_parameter_of_no_type_is_refused() {
    let client = Pg::new().await;
    let client = client.client().await;
    assert!(client.prepare("select $1::int where $3::int = 1").await.is_err());
    assert!(client.prepare("select no_such_column from blocks").await.is_err());
}

#[tokio::test]
async fn the_events_that_a_syncer_begins_with_are_found_by_their_names() {
    let pg = Pg::new().await;
    let client = pg.client().await;
    client
        .batch_execute(
            "insert into chains (name, kind) values ('main', 'evm');
             insert into blocks (chain_id, height, hash, parent_hash) select chain_id, 1, '0x01', '0x00' from chains;
             insert into events (chain_id, height, tx_index, event_index, emitter, name)
             select chain_id, 1, 0, n, '0xe' || n % 7, case when n % 10000 = 0 then 'PairCreated' else 'Swap' || n % 50 end
             from chains, generate_series(1, 50000) n;
             analyze events",
        )
        .await
        .unwrap();
    let sql = include_str!("../../sql/queries/events_named.sql");
    let chain: i64 = client.query_one("select chain_id from chains", &[]).await.unwrap().get(0);
    let kinds = |emitters: &[Option<&'static str>]| (emitters.to_vec(), vec!["PairCreated"; emitters.len()]);
    // Named twice, it is found once; an emitter narrows it.
    for (emitters, found) in [(&[None, None][..], 5), (&[Some("0xe4")], 1), (&[Some("0xdead")], 0)] {
        let (emitters, names) = kinds(emitters);
        let rows = client.query(sql, &[&chain, &emitters, &names]).await.unwrap();
        assert_eq!(rows.len(), found, "{emitters:?}");
    }
    let text = sql.replace("$1", &chain.to_string()).replace("$2", "'{NULL}'").replace("$3", "'{PairCreated}'");
    let plan: Value = client.query_one(&format!("explain (analyze, format json) {text}"), &[]).await.unwrap().get(0);
    assert!(plan.to_string().contains("events_named"), "{plan:#}");
}

/// Statements of a processor that are prepared when it connects.
const KEPT: [&str; 12] = [
    "apply",
    "balances_of_keys",
    "hold_block",
    "hold_checkpoint",
    "look",
    "movements",
    "open_balances",
    "pass_empty_blocks",
    "prune_applied",
    "prune_history",
    "stored_blocks",
    "undo",
];

/// Tables that grow with the chain.
const GROWING: [&str; 7] =
    ["applied_blocks", "balance_history", "balances", "blocks", "events", "token_events", "transactions"];

/// What reads a growing table by less than a key for each row of something else.
fn rescans(node: &Value, is_inner: bool, found: &mut Vec<String>) {
    let text = |name: &str| node[name].as_str().unwrap_or_default();
    let (kind, table, condition) = (text("Node Type"), text("Relation Name"), text("Index Cond"));
    if kind == "Materialize" {
        found.push("Materialize".to_owned());
    }
    let by_chain_alone = condition.starts_with("(chain_id = ") && !condition.contains(" AND ");
    // A bitmap's index is its child.
    let is_read = GROWING.contains(&table) && kind != "Bitmap Heap Scan" || kind == "Bitmap Index Scan";
    if is_inner && is_read && (condition.is_empty() || by_chain_alone) {
        found.push(format!("{kind} of {table}{} by {condition:?}", text("Index Name")));
    }
    for child in node["Plans"].as_array().into_iter().flatten() {
        let below = match child["Parent Relationship"].as_str() {
            Some("Inner") => true,
            Some("InitPlan") => false,
            _ => is_inner,
        };
        rescans(child, below, found);
    }
}

async fn plan(client: &Client, text: &str) -> Value {
    let parameters = client.prepare(text).await.unwrap().params().len();
    let nulls = vec!["null"; parameters].join(", ");
    client.batch_execute(&format!("deallocate all; prepare kept as {text}")).await.unwrap();
    let explain = format!("explain (format json) execute kept({nulls})");
    let row = client.query_one(&explain, &[]).await.unwrap();
    row.get::<_, Value>(0)[0]["Plan"].clone()
}

#[tokio::test]
async fn plans_made_while_the_tables_are_empty_look_rows_up_by_their_keys() {
    let pg = Pg::new().await;
    let client = pg.client().await;
    for (name, setting) in BY_THEIR_KEYS {
        client.batch_execute(&format!("set {name} = {setting}")).await.unwrap();
    }
    let read = |name: &str| {
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("sql/queries/{name}.sql"))).unwrap()
    };
    for name in KEPT {
        let mut found = Vec::new();
        rescans(&plan(&client, &read(name)).await, false, &mut found);
        assert!(found.is_empty(), "{name}: {found:?}");
    }
    // The planner left alone would do what this looks for.
    client.batch_execute("set enable_material = on").await.unwrap();
    let mut found = Vec::new();
    rescans(&plan(&client, &read("balances_of_keys")).await, false, &mut found);
    assert_eq!(found.len(), 2, "{found:?}");
}
