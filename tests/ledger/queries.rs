//! Every statement of sql/queries is one that Postgres takes on the schema as it is, with parameters it can type.

use std::path::Path;

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
    let preparations = ["opening_given.sql", "verify_scratch.sql", "fuzz_plans.sql", "walk_indexes.sql"];
    client.batch_execute("begin").await.unwrap();
    for name in preparations {
        let text = std::fs::read_to_string(dir.join(name)).unwrap();
        client.batch_execute(&text).await.unwrap_or_else(|e| panic!("{name}: {e:?}"));
    }
    // The tables stay for the session; the settings go.
    client.batch_execute("commit").await.unwrap();
    for file in files.iter().filter(|file| !preparations.iter().any(|name| file.ends_with(name))) {
        let text = std::fs::read_to_string(file).unwrap();
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
