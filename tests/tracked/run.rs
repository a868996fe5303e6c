//! Projections as they run: each at its own pace, none in the way of another.

use serde_json::json;

use crate::harness::Mine;
use crate::support::wait_until;

#[tokio::test]
async fn a_block_that_fails_is_shown_and_tried_again_and_others_go_on() {
    let mut mine = Mine::new("create table t (k int primary key); create table switch (fails bool)", &["t"]).await;
    mine.client.batch_execute("insert into switch values (true)").await.unwrap();
    mine.add(&["insert into t values (1)"]).await;
    mine.put(2, &["insert into t values (2)", "select 1 / (not fails)::int from switch"]).await;
    mine.put(3, &["insert into t values (3)"]).await;
    let why = mine.failure().await;
    assert_eq!(why, "block 2 (h2n2): division by zero");
    // The ledger has gone on.
    wait_until("token_balances is at 3", async || {
        let sql = "select height from checkpoints where projection = 'token_balances' and height = 3";
        mine.client.query_opt(sql, &[]).await.unwrap()
    })
    .await;
    assert_eq!(mine.dump().await.to_string(), r#"{"t":[{"k":1}]}"#);
    mine.client.batch_execute("update switch set fails = false").await.unwrap();
    mine.settle().await;
    assert_eq!(mine.dump().await.to_string(), r#"{"t":[{"k":1},{"k":2},{"k":3}]}"#);
}

#[tokio::test]
async fn a_block_that_failed_and_went_is_not_shown_any_more() {
    let mut mine = Mine::new("create table t (k int primary key)", &["t"]).await;
    mine.put(1, &["select 1 / 0"]).await;
    mine.failure().await;
    // Nothing comes in its place that could be applied and so take the note of it away; at first not even a chain.
    for height in [1i64, 2] {
        mine.client.execute("select drop_blocks('main', $1)", &[&height]).await.unwrap();
        wait_until("nothing fails any more", async || {
            let sql = "select 1 from checkpoints where projection = 'mine' and failed_reason is null and failures = 0";
            mine.client.query_opt(sql, &[]).await.unwrap()
        })
        .await;
        mine.put(1, &["insert into t values (1)"]).await;
        mine.settle().await;
        mine.put(2, &["insert into t values (1)"]).await;
        mine.failure().await;
    }
    assert_eq!(mine.dump().await.to_string(), r#"{"t":[{"k":1}]}"#);
}

#[tokio::test]
async fn a_reorganisation_into_a_block_that_fails_leaves_the_old_branch() {
    let mut mine = Mine::new("create table t (k int primary key)", &["t"]).await;
    mine.add(&["insert into t values (1)"]).await;
    mine.add(&["insert into t values (2)"]).await;
    mine.add(&["insert into t values (3)"]).await;
    mine.put(2, &["insert into t values (20)"]).await;
    mine.put(3, &["select 1 / 0"]).await;
    let why = mine.failure().await;
    assert!(why.contains("division by zero"), "{why}");
    wait_until("it stands below the block that fails", async || {
        let dump = mine.dump().await.to_string();
        (dump == r#"{"t":[{"k":1},{"k":20}]}"#).then_some(())
    })
    .await;
    mine.put(3, &["insert into t values (30)"]).await;
    mine.settle().await;
    assert_eq!(mine.dump().await.to_string(), r#"{"t":[{"k":1},{"k":20},{"k":30}]}"#);
}

#[tokio::test]
async fn a_reorganisation_at_height_0_into_a_block_that_fails_leaves_nothing() {
    let mine = Mine::new("create table t (k int primary key)", &["t"]).await;
    let put = async |hash: &str, sql: &str| {
        let event =
            json!([{"tx_index": 0, "event_index": 0, "emitter": "test", "name": "do", "attributes": {"sql": sql}}]);
        let put = "select put_block('main', 0, $1, 'root', now(), '[]', '[]', $2)";
        mine.client.execute(put, &[&hash, &event]).await.unwrap();
    };
    let stands = async |wanted: Option<&str>| {
        wait_until("it stands there", async || {
            let sql = "select hash, failed_reason from checkpoints where projection = 'mine'";
            let row = mine.client.query_opt(sql, &[]).await.unwrap()?;
            let fails = row.get::<_, Option<&str>>(1).is_some();
            (row.get::<_, Option<&str>>(0) == wanted && fails == wanted.is_none()).then_some(())
        })
        .await;
    };
    put("a0", "insert into t values (1)").await;
    stands(Some("a0")).await;
    put("b0", "insert into t values (1 / 0)").await;
    stands(None).await;
    assert_eq!(mine.dump().await.to_string(), r#"{"t":[]}"#, "of the old branch nothing is left");
    put("c0", "insert into t values (3)").await;
    stands(Some("c0")).await;
    assert_eq!(mine.dump().await.to_string(), r#"{"t":[{"k":3}]}"#);
}

#[tokio::test]
async fn a_changed_function_has_its_tables_made_anew() {
    let mut mine = Mine::new("create table t (k int primary key, v int)", &["t"]).await;
    mine.client.batch_execute("create view public.seen as select sum(v) as v from public.t").await.unwrap();
    for k in 1..=5 {
        mine.add(&[&format!("insert into t values ({k}, {k})")]).await;
    }
    let listener = crate::support::pg::connect(&mine.pg.url).await;
    listener.batch_execute("listen ebbtide_notices").await.unwrap();
    mine.client
        .batch_execute(
            "create or replace function public.do_as_told(bigint, bigint) returns void language plpgsql as $$
             begin insert into t values ($2, $2 * 100); end $$",
        )
        .await
        .unwrap();
    mine.add(&[]).await;
    wait_until("the view shows the new state", async || {
        let sum: Option<i64> = mine.client.query_one("select v from public.seen", &[]).await.unwrap().get(0);
        (sum == Some(2100)).then_some(())
    })
    .await;
    // And undo works on what was built again.
    mine.put(4, &[]).await;
    mine.settle().await;
    let sum: Option<i64> = mine.client.query_one("select v from public.seen", &[]).await.unwrap().get(0);
    assert_eq!(sum, Some(1000));
}

#[tokio::test]
async fn undo_is_pruned_at_finality() {
    let mut mine = Mine::new("create table t (k int primary key, v int)", &["t"]).await;
    mine.client.batch_execute("update chains set finality_depth = 5").await.unwrap();
    mine.add(&["insert into t values (0, 0)"]).await;
    for height in 2..=60 {
        mine.put(height, &["update t set v = v + 1"]).await;
    }
    mine.settle().await;
    // Sparingly, once in 16 blocks: some more have to come.
    for height in 61..=100 {
        mine.add(&["update t set v = v + 1"]).await;
        assert_eq!(mine.height(), height);
    }
    let left = mine.undo_rows().await;
    assert!(left <= 5 + 2 * 16, "{left} of 100 blocks");
    let final_height: i64 = mine.client.query_one("select final_height from chains", &[]).await.unwrap().get(0);
    assert!(final_height > 30, "{final_height}");
    // Below the horizon: everything is built again.
    mine.put(10, &["update t set v = v + 100"]).await;
    mine.settle().await;
    assert_eq!(mine.dump().await.to_string(), r#"{"t":[{"k":0,"v":108}]}"#);
}

#[tokio::test]
async fn once_ends_and_says_what_fails() {
    let pg = crate::support::Pg::new().await;
    let client = pg.client().await;
    client
        .batch_execute(
            "insert into chains (name, kind) values ('main', 'other');
             create table public.counted (k int primary key, n bigint not null);
             create function public.count_them(bigint, bigint) returns void language plpgsql as $$
             begin
                 insert into counted as c select 1, count(*) from balances on conflict (k) do update set n = excluded.n;
                 if $2 = 4 then raise exception 'four is too many'; end if;
             end $$;
             select create_projection('counted', 'public.count_them(bigint,bigint)', '{public.counted}', chain => 'main',
                 after => 'token_balances');",
        )
        .await
        .unwrap();
    let put = async |height: i64| {
        let sql = "select put_block('main', $1::int8, 'h' || $1::int8, 'h' || $1::int8 - 1, now(), '[]', jsonb_build_array(jsonb_build_object(
            'tx_index', 0, 'event_index', 0, 'token', 'gold', 'to_address', 'a' || $1::int8, 'amount', 1)))";
        client.execute(sql, &[&height]).await.unwrap();
    };
    let counted = async || -> i64 { client.query_one("select n from public.counted", &[]).await.unwrap().get(0) };
    for height in 1..=3 {
        put(height).await;
    }
    crate::support::Ebbtide::succeed(&["process", "--once", "--database-url", &pg.url], &[]);
    assert_eq!(counted().await, 3);
    for height in 4..=5 {
        put(height).await;
    }
    let output = crate::support::Ebbtide::output(&["process", "--once", "--database-url", &pg.url], &[]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("block 4 (h4): four is too many"), "{stderr}");
    assert_eq!(counted().await, 3);
    let sql = "select height from checkpoints where projection = 'token_balances'";
    assert_eq!(client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 5, "the ledger went on");
}
