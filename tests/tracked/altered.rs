//! Tables that people alter between two blocks, or during one: what fits is fitted, the rest is refused before anything
//! is lost.

use crate::harness::Mine;
use crate::support::wait_until;

#[tokio::test]
async fn a_table_that_was_put_in_place_of_a_tracked_one() {
    for swap in [
        "drop table public.t; create table public.t (k int primary key, v int)",
        "alter table public.t rename to before; create table public.t (like public.before including all)",
    ] {
        let mut mine = Mine::new("create table t (k int primary key, v int)", &["t"]).await;
        mine.add(&["insert into t values (1, 1)"]).await;
        mine.add(&["insert into t values (2, 2)", "update t set v = 5 where k = 1"]).await;
        let whole = mine.dump().await;
        mine.client.batch_execute(swap).await.unwrap();
        // The next block must not be written beside rows that are missing.
        mine.put(3, &["insert into t values (3, 3)"]).await;
        let why = mine.failure().await;
        assert!(why.contains("table public.t of the projection mine is not the one that its blocks wrote"), "{why}");
        assert!(why.contains("forget_undo('mine')"), "{why}");
        assert_eq!(mine.dump().await.to_string(), r#"{"t":[]}"#);
        mine.put(3, &[]).await;
        mine.client.batch_execute("select forget_undo('mine')").await.unwrap();
        mine.settle().await;
        assert_eq!(mine.dump().await, whole, "built again from the start");
        mine.put(2, &[]).await;
        mine.settle().await;
        assert_eq!(mine.dump().await.to_string(), r#"{"t":[{"k":1,"v":1}]}"#);
    }
}

#[tokio::test]
async fn what_could_not_be_tracked_from_the_start_is_refused_when_it_comes_later() {
    for (alter, mend, text) in [
        ("alter table public.t set unlogged", "alter table public.t set logged", "it is temporary or unlogged"),
        (
            "alter table public.t enable row level security, force row level security",
            "alter table public.t no force row level security",
            "row security is forced",
        ),
        ("create table public.heir () inherits (public.t)", "drop table public.heir", "it is no plain table"),
        (
            "create rule quiet as on delete to public.t do instead nothing",
            "drop rule quiet on public.t",
            "it has rules",
        ),
    ] {
        let mut mine = Mine::new("create table t (k int primary key, v int)", &["t"]).await;
        mine.add(&["insert into t values (1, 1)"]).await;
        mine.client.batch_execute(alter).await.unwrap();
        mine.put(2, &["update t set v = 2"]).await;
        let why = mine.failure().await;
        assert!(why.contains(text), "{alter}: {why}");
        mine.client.batch_execute(mend).await.unwrap();
        mine.settle().await;
        mine.put(2, &[]).await;
        mine.settle().await;
        assert_eq!(mine.dump().await.to_string(), r#"{"t":[{"k":1,"v":1}]}"#, "{alter}");
    }
}

#[tokio::test]
async fn a_unique_index_beside_cascades() {
    // Not a constraint, and in the way of rows that are restored in their place all the same.
    let ddl = "create table parent (id int primary key, name text);
               create table child (id int primary key, parent int references parent on delete cascade)";
    let mut mine = Mine::new(ddl, &["parent", "child"]).await;
    mine.add(&["insert into parent values (1, 'a'), (2, 'b')"]).await;
    mine.client.batch_execute("create unique index seat on public.parent (lower(name))").await.unwrap();
    mine.put(2, &["update parent set name = name || '!'"]).await;
    let why = mine.failure().await;
    assert!(why.contains("the unique index seat would stand in the way"), "{why}");
    mine.client.batch_execute("drop index public.seat").await.unwrap();
    mine.settle().await;
}

#[tokio::test]
async fn columns_that_come_with_and_without_a_default() {
    for (column, restored) in [
        // The default went again at once: rows that come back have what the others got.
        ("z int not null default 5; alter table public.t alter z drop default", r#""z":5"#),
        ("z public.filled", r#""z":4"#),
        ("serial int generated always as identity", ""),
    ] {
        let ddl = "create domain filled as int default 4 not null; create table t (k int primary key, v int)";
        let mut mine = Mine::new(ddl, &["t"]).await;
        mine.add(&["insert into t values (1, 1), (9, 9)"]).await;
        mine.add(&["update t set v = 5 where k = 1", "delete from t where k = 9"]).await;
        mine.client.batch_execute(&format!("alter table public.t add column {column}")).await.unwrap();
        mine.put(2, &[]).await;
        mine.settle().await;
        let rows = mine.dump().await;
        let rows = rows["t"].as_array().unwrap();
        assert_eq!(rows.len(), 2, "{rows:?}");
        for row in rows {
            assert_eq!(row["k"], row["v"], "{row}");
            assert!(row.to_string().contains(restored), "{row}");
        }
    }
}

#[tokio::test]
async fn a_domain_over_a_domain_that_refuses_null() {
    let ddl = "create domain present as int not null; create domain few as present check (value < 100);
               create table t (k few primary key, v few)";
    let mut mine = Mine::new(ddl, &["t"]).await;
    mine.there_and_back(&[
        &["insert into t values (1, 1)"],
        &["insert into t values (2, 2)", "update t set v = 5 where k = 1"],
    ])
    .await;
}

#[tokio::test]
async fn a_column_that_comes_while_a_block_is_being_applied() {
    // The block looks at its table, waits for us, and then fills the column that came meanwhile.
    let ddl = "create table t (k int primary key, v int);
               create function fill() returns void language plpgsql as $$
               begin
                   perform pg_advisory_lock_shared(4711);
                   perform pg_advisory_unlock_shared(4711);
                   update t set v = v + 1;
                   execute 'update t set z = 7';
               exception when undefined_column then update t set v = 99;
               end $$";
    let mut mine = Mine::new(ddl, &["t"]).await;
    mine.add(&["insert into t values (1, 1)"]).await;
    let holder = mine.pg.client().await;
    holder.batch_execute("select pg_advisory_lock(4711)").await.unwrap();
    mine.put(2, &["select fill()"]).await;
    let waits = "select 1 from pg_locks where locktype = 'advisory' and objid = 4711 and not granted";
    wait_until("the block is in hand", async || mine.client.query_opt(waits, &[]).await.unwrap()).await;
    let alters = mine.pg.client().await;
    let altering = tokio::spawn(async move {
        alters.batch_execute("alter table public.t add column z int default 1").await.unwrap();
    });
    let done_or_waits = "select 1 from pg_locks where relation = 'public.t'::regclass and mode = 'AccessExclusiveLock'
                         and not granted
                         union all select 1 from pg_attribute where attrelid = 'public.t'::regclass and attname = 'z'";
    wait_until("the column comes, or waits", async || mine.client.query_opt(done_or_waits, &[]).await.unwrap()).await;
    holder.batch_execute("select pg_advisory_unlock(4711)").await.unwrap();
    mine.settle().await;
    altering.await.unwrap();
    mine.put(2, &[]).await;
    mine.settle().await;
    assert_eq!(mine.dump().await.to_string(), r#"{"t":[{"k":1,"v":1,"z":1}]}"#);
}
