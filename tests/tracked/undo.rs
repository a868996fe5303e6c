//! One named test for each way in which a row could come back wrong.

use crate::harness::Mine;
use crate::support::wait_until;

#[tokio::test]
async fn rows_come_go_and_change() {
    let mut mine = Mine::new("create table t (k text primary key, v int)", &["t"]).await;
    mine.there_and_back(&[
        &["insert into t values ('a', 1), ('b', 2)"],
        &["update t set v = v + 10", "insert into t values ('c', 3)"],
        &["delete from t where k = 'a'"],
        &["insert into t values ('a', 7) on conflict (k) do update set v = 8", "update t set v = v * 2 where k = 'a'"],
        &["delete from t"],
    ])
    .await;
}

#[tokio::test]
async fn two_rows_swap_a_unique_value() {
    let ddl = "create table t (k int primary key, seat text unique deferrable initially immediate, mark text unique)";
    let mut mine = Mine::new(ddl, &["t"]).await;
    mine.there_and_back(&[
        &["insert into t values (1, 'x', 'm1'), (2, 'y', 'm2')"],
        &["update t set seat = case seat when 'x' then 'y' else 'x' end"],
        // Not deferrable: by way of a third value.
        &[
            "update t set mark = 'm0' where k = 1",
            "update t set mark = 'm1' where k = 2",
            "update t set mark = 'm2' where k = 1",
        ],
    ])
    .await;
}

#[tokio::test]
async fn keys_are_composite_and_change() {
    let ddl = "create table t (a int, b text collate \"C\", v int, primary key (b, a))";
    let mut mine = Mine::new(ddl, &["t"]).await;
    mine.there_and_back(&[
        &["insert into t values (1, 'x', 1), (2, 'x', 2), (3, 'y', 3)"],
        &["update t set a = a + 1 where b = 'y'", "update t set b = 'z' where a = 1"],
        // One key moves to where another was.
        &["delete from t where a = 2 and b = 'x'", "update t set a = 2, b = 'x' where b = 'z'"],
        &["update t set a = a + 100, v = 0"],
    ])
    .await;
}

#[tokio::test]
async fn keys_of_two_rows_are_swapped_in_one_statement() {
    let mut mine = Mine::new("create table t (k int primary key deferrable, v text)", &["t"]).await;
    mine.there_and_back(&[
        &["insert into t values (1, 'one'), (2, 'two'), (3, 'three')"],
        &["update t set k = 3 - k where k < 3"],
        &["update t set k = k + 1"],
    ])
    .await;
}

#[tokio::test]
async fn foreign_keys_that_are_not_deferrable() {
    let ddl = "create table parent (id int primary key, name text unique);
               create table child (id int primary key, parent int not null references parent)";
    for order in [["parent", "child"], ["child", "parent"]] {
        let mut mine = Mine::new(ddl, &order).await;
        mine.there_and_back(&[
            &["insert into parent values (1, 'a')", "insert into child values (10, 1), (11, 1)"],
            // The child goes over to a parent that this block brings.
            &["insert into parent values (2, 'b')", "update child set parent = 2 where id = 10"],
            &["update child set parent = 2", "delete from parent where id = 1"],
            &["delete from child", "delete from parent"],
        ])
        .await;
    }
}

#[tokio::test]
async fn foreign_keys_that_cascade_between_the_projections_tables() {
    let ddl = "create table parent (id int primary key, name text);
               create table child (id int primary key, parent int references parent on delete cascade on update cascade, v int);
               create table note (id int primary key, child int references child on delete set null);
               create table mark (id int primary key, parent int not null references parent on delete restrict)";
    let mut mine = Mine::new(ddl, &["parent", "child", "note", "mark"]).await;
    mine.there_and_back(&[
        &[
            "insert into parent values (1, 'a'), (2, 'b'), (3, 'c')",
            "insert into child values (10, 1, 0), (11, 2, 0)",
            "insert into note values (100, 10)",
            "insert into mark values (5, 3)",
        ],
        &["update parent set name = 'renamed'"],
        &["update parent set id = 4 where id = 2"],
        &[
            "insert into parent values (7, 'new')",
            "update child set parent = 7 where id = 10",
            "update mark set parent = 7",
        ],
        &["delete from parent where id in (1, 4)"],
        &["delete from mark", "delete from parent"],
    ])
    .await;
}

#[tokio::test]
async fn a_table_that_points_at_itself() {
    let ddl = "create table t (id int primary key, up int references t on update cascade on delete cascade, v int)";
    let mut mine = Mine::new(ddl, &["t"]).await;
    mine.there_and_back(&[
        &["insert into t values (1, null, 0), (2, 1, 0), (3, 2, 0)"],
        // The cascade's update of row 2 ends before the statement that set it off, which changed the row as well.
        &["update t set id = id + 10, v = 5 where id = 1 or id = 3"],
        &["with changed as (update t set v = 9 where id = 2 returning 1) update t set id = 20 where id = 11"],
        &["delete from t where id = 20"],
    ])
    .await;
}

#[tokio::test]
async fn the_users_own_triggers() {
    let ddl = "create table t (k int primary key, v int, touched int not null default 0);
               create table total (one int primary key, sum int not null, writes int not null);
               create function touch() returns trigger language plpgsql as $$
               begin new.touched := coalesce(old.touched, 0) + 1; return new; end $$;
               create trigger touch before insert or update on t for each row execute function touch();
               create function add_up() returns trigger language plpgsql as $$
               begin
                   insert into total values (1, coalesce(new.v, 0) - coalesce(old.v, 0), 1) on conflict (one)
                   do update set sum = total.sum + excluded.sum, writes = total.writes + 1;
                   -- Changes the very row again, in a statement of its own.
                   if tg_op <> 'DELETE' and new.v < 0 then update t set v = 0 where k = new.k; end if;
                   return null;
               end $$;
               create trigger add_up after insert or update or delete on t for each row execute function add_up();";
    let mut mine = Mine::new(ddl, &["t", "total"]).await;
    mine.there_and_back(&[
        &["insert into t (k, v) values (1, 5), (2, 6)"],
        &["update t set v = v + 1"],
        &["update t set v = -1 where k = 2", "insert into t (k, v) values (3, -5)"],
        &["update t set v = -7"],
        &["delete from t where k = 1", "insert into t (k, v) values (1, 3)"],
        &["delete from t"],
    ])
    .await;
    // They rest while rows are restored, and fire again afterwards, in the way they did before.
    let enabled: String = mine
        .client
        .query_one(
            "select string_agg(tgenabled::text, '' order by tgname) from pg_trigger
             where tgrelid = 'public.t'::regclass and tgname in ('touch', 'add_up')",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(enabled, "OO");
}

#[tokio::test]
async fn a_trigger_that_was_disabled_stays_disabled() {
    let ddl = "create table t (k int primary key, v int);
               create function no() returns trigger language plpgsql as $$ begin raise exception 'fired'; end $$;
               create trigger off before insert or update or delete on t for each row execute function no();
               create trigger replica before insert or update or delete on t for each row execute function no();
               alter table t disable trigger off, enable replica trigger replica";
    let mut mine = Mine::new(ddl, &["t"]).await;
    mine.there_and_back(&[&["insert into t values (1, 1)"], &["update t set v = 2"], &["delete from t"]]).await;
    let enabled: String = mine
        .client
        .query_one(
            "select string_agg(tgenabled::text, '' order by tgname) from pg_trigger
             where tgrelid = 'public.t'::regclass and tgname in ('off', 'replica')",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(enabled, "DR");
}

#[tokio::test]
async fn identity_and_generated_columns() {
    let ddl = "create table t (k text primary key, serial bigint generated always as identity unique,
                   twice int generated always as (v * 2) stored, v int);
               create table u (serial int generated by default as identity primary key, v int)";
    let mut mine = Mine::new(ddl, &["t", "u"]).await;
    mine.there_and_back(&[
        &["insert into t (k, v) values ('a', 1), ('b', 2)", "insert into u (v) values (1)"],
        &["update t set v = 5 where k = 'a'", "delete from t where k = 'b'", "update u set v = 2"],
        // The same key with another number of its own.
        &["insert into t (k, v) values ('b', 2)", "update t set serial = default where k = 'a'"],
    ])
    .await;
}

#[tokio::test]
async fn values_of_every_kind() {
    let ddl = "create domain positive as int not null check (value > 0);
               create type colour as enum ('red', 'green');
               create type pair as (a int, b text);
               create table t (k text primary key, j jsonb, a text[], n numeric, b bytea, d positive, c colour, p pair,
                   w timestamptz, r int4range, f float8, x text)";
    let mut mine = Mine::new(ddl, &["t"]).await;
    mine.there_and_back(&[
        &[
            r#"insert into t values ('a', '{"a":[1,null,"é"]}', '{x,NULL,"y z"}', 1.2300, '', 1, 'red', '(1,)', '2026-01-01', '[1,5)', 'NaN', null)"#,
            r"insert into t values ('b', 'null', '{}', 'NaN', '\x00ff', 2, null, null, 'infinity', 'empty', '-infinity', '')",
        ],
        &["update t set j = null, a = null, n = null, b = null, c = null, p = null, w = null, r = null, f = null, x = 'x'"],
        &[r#"update t set j = '[]', a = '{{1,2},{3,4}}', n = 1.23, b = '\x00', d = 9, c = 'green', p = '(,"q,""")'"#],
        &["delete from t where k = 'a'", "update t set n = 1.230 where k = 'b'"],
    ])
    .await;
}

#[tokio::test]
async fn a_key_that_is_equal_but_written_otherwise() {
    let mut mine = Mine::new("create table t (k numeric primary key, v int)", &["t"]).await;
    mine.there_and_back(&[
        &["insert into t values (1.0, 1), (2, 2)"],
        &["update t set k = 1.000 where k = 1"],
        &["delete from t where k = 2", "insert into t values (2.00, 5)"],
    ])
    .await;
}

#[tokio::test]
async fn deleted_and_put_back_in_one_block() {
    let mut mine = Mine::new("create table t (k int primary key, v text)", &["t"]).await;
    mine.there_and_back(&[
        &["insert into t values (1, 'a'), (2, 'b')"],
        &["delete from t where k = 1", "insert into t values (1, 'again')"],
        &["insert into t values (3, 'c')", "delete from t where k = 3", "update t set v = 'x' where k = 2"],
        // In one statement, either way round.
        &["with gone as (delete from t where k = 1 returning k) insert into t select k, 'moved' from gone"],
        &["with gone as (delete from t returning k, v), kept as (select * from gone) insert into t select k, v || '!' from kept"],
    ])
    .await;
}

#[tokio::test]
async fn merge() {
    let ddl = "create table t (k int primary key, v int)";
    let mut mine = Mine::new(ddl, &["t"]).await;
    mine.there_and_back(&[
        &["insert into t values (1, 1), (2, 2), (3, 3)"],
        &["merge into t using (values (1, 10), (2, 0), (9, 9)) s (k, v) on t.k = s.k
           when matched and s.v = 0 then delete when matched then update set v = s.v
           when not matched then insert values (s.k, s.v)"],
        // Deletes a key and inserts it: insertions are told of first.
        &["merge into t using (values (1, 1, 'del'), (100, 1, 'ins')) s (k, as_k, op) on t.k = s.k
           when matched and op = 'del' then delete when not matched then insert values (s.as_k, 77)"],
    ])
    .await;
}

#[tokio::test]
async fn deferred_constraints_are_settled_in_their_block() {
    let ddl = "create table parent (id int primary key);
               create table child (id int primary key,
                   parent int references parent deferrable initially deferred)";
    let mut mine = Mine::new(ddl, &["parent", "child"]).await;
    mine.there_and_back(&[
        &["insert into child values (1, 5)", "insert into parent values (5)"],
        &["delete from parent", "delete from child"],
    ])
    .await;
}

#[tokio::test]
async fn index_column_and_view_of_the_users_own() {
    let mut mine = Mine::new("create table t (k int primary key, v int)", &["t"]).await;
    mine.add(&["insert into t values (1, 1), (2, 2)"]).await;
    let first = mine.dump().await;
    mine.add(&["update t set v = 10 where k = 1", "delete from t where k = 2"]).await;
    let second = mine.dump().await;
    mine.client
        .batch_execute(
            "create unique index on public.t (v); create view public.seen as select * from public.t;
             alter table public.t rename column v to value; alter table public.t add column extra text default 'new'",
        )
        .await
        .unwrap();
    mine.add(&["update t set extra = 'changed' where k = 1", "insert into t values (3, 3)"]).await;
    // Over a block that was applied before the column came: rows that come back have its default.
    mine.put(2, &[]).await;
    mine.settle().await;
    let text = mine.dump().await.to_string();
    assert_eq!(text, first.to_string().replace("\"v\":", "\"value\":").replace("{\"k\"", "{\"extra\":\"new\",\"k\""));
    assert_ne!(first, second);
    let seen: i64 = mine.client.query_one("select count(*) from public.seen", &[]).await.unwrap().get(0);
    assert_eq!(seen, 2);
}

#[tokio::test]
async fn a_column_that_is_dropped_and_one_that_changes_its_type() {
    let mut mine = Mine::new("create table t (k int primary key, v int, gone text)", &["t"]).await;
    mine.add(&["insert into t (k, v) values (1, 1)"]).await;
    mine.add(&["update t set v = 2"]).await;
    mine.client.batch_execute("alter table public.t drop column gone").await.unwrap();
    mine.add(&["update t set v = 3"]).await;
    mine.put(2, &[]).await;
    mine.settle().await;
    assert_eq!(mine.dump().await.to_string(), r#"{"t":[{"k":1,"v":1}]}"#);
    // Undo of the old type could come back wrong: the next block refuses, before anything is lost.
    mine.client.batch_execute("alter table public.t alter column v type bigint using v * 100").await.unwrap();
    mine.put(3, &["update t set v = 5"]).await;
    let why = mine.failure().await;
    assert!(why.contains("column v of public.t was integer"), "{why}");
    assert_eq!(mine.dump().await.to_string(), r#"{"t":[{"k":1,"v":100}]}"#);
    mine.client.batch_execute("select forget_undo('mine')").await.unwrap();
    mine.settle().await;
    assert_eq!(mine.dump().await.to_string(), r#"{"t":[{"k":1,"v":5}]}"#);
    mine.put(3, &[]).await;
    mine.settle().await;
    assert_eq!(mine.dump().await.to_string(), r#"{"t":[{"k":1,"v":1}]}"#);
}

/// A row of the journal that is gone leaves rows behind that no block stands for: it is said, and nothing is taken back.
#[tokio::test]
async fn a_journal_with_a_hole_is_not_undone() {
    for hole in [6, 4] {
        let mut mine = Mine::new("create table t (k text primary key, v int)", &["t"]).await;
        for v in 1..=6 {
            let put = format!("insert into t values ('a', {v}) on conflict (k) do update set v = {v}");
            let new = format!("insert into t values ('only {v}', {v})");
            mine.add(&[&put, &new]).await;
        }
        let before = mine.dump().await;
        let damage = format!(
            "set ebbtide.write_tracked_tables = on; delete from applied_blocks where projection = 'mine' and height = {hole}"
        );
        mine.client.batch_execute(&damage).await.unwrap();
        mine.put(3, &["update t set v = 30 where k = 'a'"]).await;
        let sql = "select failed_reason from checkpoints where projection = 'mine'";
        let why = wait_until("it is said", async || {
            mine.client.query_one(sql, &[]).await.unwrap().get::<_, Option<String>>(0)
        });
        let why = why.await;
        assert!(why.contains(&format!("lacks block {hole}")), "{why}");
        assert_eq!(mine.dump().await, before, "nothing was taken back");
        mine.client.batch_execute("select forget_undo('mine')").await.unwrap();
        mine.settle().await;
        let rows = mine.client.query("select k, v from t order by k", &[]).await.unwrap();
        let rows: Vec<(String, i32)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        assert_eq!(rows, [("a".into(), 30), ("only 1".into(), 1), ("only 2".into(), 2)], "without block {hole}");
    }
}
