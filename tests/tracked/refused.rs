//! What could not be undone is refused at once, with the remedy, and leaves nothing half done.

use serde_json::json;

use crate::harness::Mine;
use crate::support::{Pg, wait_until};

/// The error's fixed word, its text and its hint.
async fn refusal(client: &tokio_postgres::Client, sql: &str) -> (String, String, String) {
    let error = client.batch_execute(sql).await.expect_err(sql);
    let db = error.as_db_error().unwrap_or_else(|| panic!("{error:?}"));
    (db.constraint().unwrap_or_default().to_owned(), db.message().to_owned(), db.hint().unwrap_or_default().to_owned())
}

async fn database() -> (Pg, tokio_postgres::Client) {
    let pg = Pg::new().await;
    let client = pg.client().await;
    client
        .batch_execute(
            "insert into chains (name, kind) values ('main', 'other');
             set search_path = public, ebbtide;
             create function apply(bigint, bigint) returns void language plpgsql as $$ begin end $$;
             create function apply(int, int) returns void language plpgsql as $$ begin end $$;
             create function other(text) returns void language plpgsql as $$ begin end $$;
             create table fine (chain_id bigint, k int, primary key (chain_id, k))",
        )
        .await
        .unwrap();
    (pg, client)
}

#[tokio::test]
async fn tables_that_cannot_be_restored_exactly() {
    let (_pg, client) = database().await;
    for (ddl, table, text) in [
        ("create table no_key (k int)", "no_key", "it has no primary key"),
        ("create view seen as select 1 as k", "seen", "it is no plain table"),
        ("create table parts (k int primary key) partition by range (k)", "parts", "it is no plain table"),
        ("create unlogged table fast (k int primary key)", "fast", "unlogged"),
        ("create temp table short (k int primary key)", "short", "temporary"),
        (
            "create table ruled (k int primary key); create rule r as on delete to ruled do instead nothing",
            "ruled",
            "it has rules",
        ),
        (
            "create table up (k int primary key); create table pointed (k int primary key); create table pointing (k int primary key references pointed)",
            "pointed",
            "the foreign key pointing_k_fkey of public.pointing points at it",
        ),
        (
            "create table cascading (k int primary key references up on delete cascade)",
            "cascading",
            "would cascade into it",
        ),
        (
            "create table forced (k int primary key); alter table forced force row level security",
            "forced",
            "row security",
        ),
        ("select 1", "blocks", "one of Ebbtide's"),
        ("select 1", "balances", "one of Ebbtide's"),
    ] {
        client.batch_execute(ddl).await.unwrap();
        let sql = format!("select create_projection('mine', 'apply(bigint,bigint)', '{{{table}}}', chain => 'main')");
        let (word, message, hint) = refusal(&client, &sql).await;
        assert_eq!(word, "table_cannot_be_tracked", "{message}");
        assert!(message.contains(text) && !hint.is_empty(), "{table}: {message} / {hint}");
    }
    let left: i64 = client
        .query_one(
            "select (select count(*) from projections where name = 'mine') + (select count(*) from tracked_tables)
                  + (select count(*) from pg_class where relname like 'undo\\_%')",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(left, 0, "nothing is half created");
}

#[tokio::test]
async fn names_functions_and_chains_that_do_not_fit() {
    let (_pg, client) = database().await;
    let create = |args: &str| format!("select create_projection({args})");
    for (args, word) in [
        ("'mine', 'other(text)', '{fine}'", "apply_takes_chain_id_and_height"),
        ("'mine', 'apply(int,int)', '{fine}'", "apply_takes_chain_id_and_height"),
        ("'Mine!', 'apply(bigint,bigint)', '{fine}'", "projections_name_is_1_to_48_letters_digits_underscores"),
        ("'token_balances', 'apply(bigint,bigint)', '{fine}'", "projection_name_is_taken"),
        ("'mine', 'apply(bigint,bigint)', '{}'", "a_projection_has_tables"),
        ("'mine', 'apply(bigint,bigint)', '{fine}', chain => 'nowhere'", "unknown_chain"),
        ("'mine', 'apply(bigint,bigint)', '{fine}', after => 'nothing'", "after_names_token_balances"),
        ("'mine', 'apply(bigint,bigint)', '{fine}', start_height => -1", "projections_start_height_is_not_negative"),
    ] {
        let (found, message, _) = refusal(&client, &create(args)).await;
        assert_eq!(found, word, "{args}: {message}");
    }
    client.batch_execute(&create("'mine', 'apply(bigint,bigint)', '{fine}'")).await.unwrap();
    // A table belongs to one projection.
    let (word, message, hint) = refusal(&client, &create("'again', 'apply(bigint,bigint)', '{fine}'")).await;
    assert_eq!(word, "a_table_belongs_to_one_projection", "{message} / {hint}");
    // Without chain_id in its key, it is one chain's.
    client
        .batch_execute(
            "create table single (k int primary key); insert into chains (name, kind) values ('second', 'other')",
        )
        .await
        .unwrap();
    let (word, ..) = refusal(&client, &create("'one', 'apply(bigint,bigint)', '{single}'")).await;
    assert_eq!(word, "a_table_without_chain_id_is_one_chain_s");
    client.batch_execute(&create("'one', 'apply(bigint,bigint)', '{single}', chain => 'second'")).await.unwrap();
    client.batch_execute("create table filled (k int primary key); insert into filled values (1)").await.unwrap();
    let (word, ..) = refusal(&client, &create("'two', 'apply(bigint,bigint)', '{filled}', chain => 'main'")).await;
    assert_eq!(word, "projections_begin_with_empty_tables");
    let (word, ..) = refusal(&client, "select drop_projection('nothing')").await;
    assert_eq!(word, "unknown_projection");
    let (word, ..) = refusal(&client, "select drop_projection('token_balances')").await;
    assert_eq!(word, "built_in_projections_stay");
    client.batch_execute("select drop_projection('mine'); insert into fine values (1, 1)").await.unwrap();
}

#[tokio::test]
async fn writes_outside_a_block_unless_the_session_means_it() {
    let mut mine = Mine::new("create table t (k int primary key, v int)", &["t"]).await;
    mine.add(&["insert into t values (1, 1)"]).await;
    for sql in ["insert into t values (2, 2)", "update t set v = 9", "delete from t", "delete from t where k = 77"] {
        let (word, _, hint) = refusal(&mine.client, sql).await;
        assert_eq!(word, "tracked_tables_are_written_by_their_projection");
        assert!(hint.contains("ebbtide.write_tracked_tables"), "{hint}");
    }
    let (word, ..) = refusal(&mine.client, "truncate t").await;
    assert_eq!(word, "tracked_tables_are_not_truncated");
    mine.client.batch_execute("set ebbtide.write_tracked_tables = on; update t set v = 9").await.unwrap();
    assert_eq!(mine.dump().await.to_string(), r#"{"t":[{"k":1,"v":9}]}"#);
}

#[tokio::test]
async fn a_function_that_writes_another_table() {
    let ddl = "create table t (k int primary key); create table elsewhere (k int)";
    let mut mine = Mine::new(ddl, &["t"]).await;
    mine.add(&["insert into t values (1)"]).await;
    mine.put(2, &["insert into t values (2)", "insert into elsewhere values (1)"]).await;
    let why = mine.failure().await;
    assert!(why.contains("wrote public.elsewhere, which is not one of its tables"), "{why}");
    assert!(why.starts_with("block 2 (h2n2)"), "{why}");
    assert_eq!(mine.dump().await.to_string(), r#"{"t":[{"k":1}]}"#, "the block is rolled back whole");
    let rows: i64 = mine.client.query_one("select count(*) from public.elsewhere", &[]).await.unwrap().get(0);
    assert_eq!(rows, 0);
    // A chain table is none of its tables either.
    mine.put(2, &["update blocks set time = null"]).await;
    let why = mine.failure().await;
    assert!(why.contains("wrote ebbtide.blocks") || why.contains("ebbtide.chains"), "{why}");
    mine.put(2, &["insert into t values (2)"]).await;
    mine.settle().await;
}

#[tokio::test]
async fn a_row_of_another_chain() {
    let ddl = "create table t (chain_id bigint, k int, primary key (chain_id, k))";
    let mut mine = Mine::new(ddl, &["t"]).await;
    mine.put(1, &["insert into t values (77, 1)"]).await;
    let why = mine.failure().await;
    assert!(why.contains("chain_id of a row of public.t is not"), "{why}");
    mine.put(1, &["insert into t select chain_id, 1 from chains"]).await;
    mine.settle().await;
}

#[tokio::test]
async fn rows_of_a_transaction_that_is_not_over() {
    let (pg, client) = database().await;
    let mut writer = pg.client().await;
    let open = writer.transaction().await.unwrap();
    open.batch_execute("insert into public.fine values (1, 1)").await.unwrap();
    let creating = tokio::spawn(async move {
        let sql = "select create_projection('mine', 'apply(bigint,bigint)', '{fine}')";
        (refusal(&client, sql).await, client)
    });
    let observer = pg.client().await;
    let waits = "select 1 from pg_locks where relation = 'public.fine'::regclass and not granted";
    wait_until("create_projection waits for it", async || observer.query_opt(waits, &[]).await.unwrap()).await;
    open.commit().await.unwrap();
    let ((word, message, _), _client) = creating.await.unwrap();
    assert_eq!(word, "projections_begin_with_empty_tables", "{message}");
}

#[tokio::test]
async fn a_projection_made_again_under_its_name_for_another_chain() {
    let mut mine = Mine::new("create table t (k int primary key)", &["t"]).await;
    mine.client.batch_execute("insert into chains (name, kind) values ('second', 'other')").await.unwrap();
    mine.add(&["insert into t values (1)"]).await;
    mine.client
        .batch_execute(
            "begin; select drop_projection('mine'); delete from public.t;
             select create_projection('mine', 'public.do_as_told(bigint,bigint)', '{public.t}', chain => 'second'); commit",
        )
        .await
        .unwrap();
    // The first chain goes on, and the ledger with it; nothing of it may come into the table.
    mine.put(2, &["insert into t values (2)"]).await;
    mine.client
        .execute(
            "select put_block('second', 1, 's1', 'root', now(), '[]', '[]', $1)",
            &[&json!([{"tx_index": 0, "event_index": 0, "emitter": "test", "name": "do",
                       "attributes": {"sql": "insert into t values (77)"}}])],
        )
        .await
        .unwrap();
    wait_until("the second chain's block is applied", async || {
        mine.client.query_opt("select 1 from public.t where k = 77", &[]).await.unwrap()
    })
    .await;
    // Looks of the first chain's old task come after the ledger's block here.
    wait_until("the first chain's block is in the ledger", async || {
        let sql = "select 1 from checkpoints where projection = 'token_balances' and height = 2";
        mine.client.query_opt(sql, &[]).await.unwrap()
    })
    .await;
    assert_eq!(mine.dump().await.to_string(), r#"{"t":[{"k":77}]}"#);
    let chains: i64 =
        mine.client.query_one("select count(*) from checkpoints where projection = 'mine'", &[]).await.unwrap().get(0);
    assert_eq!(chains, 1, "it concerns the second chain alone");
    for sql in ["pause('main', 'mine')", "resume('main', 'mine')", "replay('main', 0, 'mine')"] {
        let (word, ..) = refusal(&mine.client, &format!("select {sql}")).await;
        assert_eq!(word, "projection_concerns_another_chain");
    }
    mine.client.batch_execute("select replay('main', 0), replay('second', 0, 'mine')").await.unwrap();
}
