//! Which of several images of one row is the oldest, and which rows are the same.

use crate::harness::Mine;

#[tokio::test]
async fn a_row_that_two_triggers_of_one_statement_change_at_different_depths() {
    let ddl = "create table a (k int primary key);
               create table b (k int primary key, v int);
               create table c (k int primary key, v int);
               create function by_a() returns trigger language plpgsql as $$
               begin
                   if new.k % 2 = 1 then update b set v = v + 1; else update c set v = v + 10; end if;
                   return null;
               end $$;
               create trigger by_a after insert on a for each row execute function by_a();
               create function by_b() returns trigger language plpgsql as $$
               begin update c set v = v + 1; return null; end $$;
               create trigger by_b after update on b for each row execute function by_b();";
    let mut mine = Mine::new(ddl, &["a", "b", "c"]).await;
    mine.there_and_back(&[
        &["insert into b values (1, 0)", "insert into c values (1, 0)"],
        // By way of b first, two triggers deep; then directly, one deep.
        &["insert into a values (1), (2)"],
        // The other way round.
        &["insert into a values (4), (3)"],
        &["insert into a values (5), (6), (7), (8)", "insert into a values (9)"],
    ])
    .await;
}

#[tokio::test]
async fn cascades_of_one_statement_that_update_a_row_and_then_delete_it() {
    // The foreign key that cascades fires first, for each parent; the row is changed by one and deleted by the other.
    let ddl = "create table parent (id int primary key);
               create table child (id int primary key, a int, b int, v int,
                   foreign key (b) references parent on delete cascade,
                   foreign key (a) references parent on delete set null)";
    let mut mine = Mine::new(ddl, &["parent", "child"]).await;
    mine.there_and_back(&[
        &["insert into parent values (1), (2)", "insert into child values (10, 1, 2, 7), (11, 2, 1, 8)"],
        &["update child set v = v + 1"],
        &["delete from parent"],
    ])
    .await;
}

#[tokio::test]
async fn cascades_that_move_a_row_and_then_delete_it() {
    let ddl = "create table parent (id int primary key);
               create table child (id int primary key references parent on update cascade, b int references parent on delete cascade)";
    let mut mine = Mine::new(ddl, &["parent", "child"]).await;
    mine.there_and_back(&[
        &["insert into parent values (1), (2)", "insert into child values (1, 2)"],
        &["merge into parent using (values (1, 'move'), (2, 'delete')) s (k, op) on parent.id = s.k
           when matched and op = 'delete' then delete when matched then update set id = 9"],
    ])
    .await;
}

#[tokio::test]
async fn by_way_of_views() {
    let ddl = "create table t (k int primary key, v int);
               create view told as select * from t;
               create function instead() returns trigger language plpgsql as $$
               begin
                   update t set v = v + 100 where k = new.k;
                   insert into t values (new.k + 100, 0) on conflict (k) do update set v = t.v + 1;
                   return new;
               end $$;
               create trigger instead instead of insert on told for each row execute function instead();
               create view simple as select k, v from t where v < 1000";
    let mut mine = Mine::new(ddl, &["t"]).await;
    mine.there_and_back(&[
        &["insert into t values (1, 1), (2, 2)"],
        &["insert into told values (1, 0), (2, 0), (1, 0)"],
        &["update simple set v = v + 1", "insert into told values (2, 0)", "delete from simple where k = 1"],
        &["insert into simple values (1, 5)", "delete from t"],
    ])
    .await;
}

#[tokio::test]
async fn what_a_savepoint_took_back() {
    let mut mine = Mine::new("create table t (k int primary key, v int)", &["t"]).await;
    mine.there_and_back(&[
        &["insert into t values (1, 1), (2, 2)"],
        &["do $$ begin
               begin
                   update t set v = 9; insert into t values (3, 3); perform 1 / 0;
               exception when division_by_zero then update t set v = 7 where k = 1; delete from t where k = 2; end;
               insert into t values (2, 8); update t set v = v + 1;
           end $$"],
    ])
    .await;
}

#[tokio::test]
async fn keys_of_a_type_with_an_equality_of_its_own() {
    // Like citext: its operators are not those of Postgres, and not in a schema that the undo has in sight.
    let ddl = "create type word as (w text);
               create function word_cmp(word, word) returns int language sql immutable as $$
                   select bttextcmp(lower(($1).w), lower(($2).w)) $$;
               create function word_lt(word, word) returns bool language sql immutable as $$ select public.word_cmp($1, $2) < 0 $$;
               create function word_le(word, word) returns bool language sql immutable as $$ select public.word_cmp($1, $2) <= 0 $$;
               create function word_eq(word, word) returns bool language sql immutable as $$ select public.word_cmp($1, $2) = 0 $$;
               create function word_ge(word, word) returns bool language sql immutable as $$ select public.word_cmp($1, $2) >= 0 $$;
               create function word_gt(word, word) returns bool language sql immutable as $$ select public.word_cmp($1, $2) > 0 $$;
               create operator < (leftarg = word, rightarg = word, function = word_lt);
               create operator <= (leftarg = word, rightarg = word, function = word_le);
               create operator = (leftarg = word, rightarg = word, function = word_eq);
               create operator >= (leftarg = word, rightarg = word, function = word_ge);
               create operator > (leftarg = word, rightarg = word, function = word_gt);
               create operator class word_ops default for type word using btree as
                   operator 1 <, operator 2 <=, operator 3 =, operator 4 >=, operator 5 >, function 1 word_cmp(word, word);
               create table t (k word primary key, v int)";
    let mut mine = Mine::new(ddl, &["t"]).await;
    mine.there_and_back(&[
        &["insert into t values (row('x'), 1)"],
        // Inserted and then written otherwise: the row must go with its block, under whatever name.
        &["insert into t values (row('A'), 1)", "update t set k = row('a')::word where v = 1 and (k).w = 'A'"],
        &["update t set k = row('X')::word where (k).w = 'x'"],
        &["delete from t", "insert into t values (row('X'), 5), (row('b'), 6)"],
    ])
    .await;
}

#[tokio::test]
async fn a_primary_key_that_includes_another_column() {
    let ddl = "create table t (k int, v int, primary key (k) include (v));
               create table child (id int primary key, k int references t on delete cascade)";
    let mut mine = Mine::new(ddl, &["t", "child"]).await;
    mine.there_and_back(&[
        &["insert into t values (1, 1), (2, 2)", "insert into child values (5, 1)"],
        &["update t set v = v + 1"],
        &["delete from t where k = 1"],
    ])
    .await;
}

#[tokio::test]
async fn a_function_that_sets_its_triggers_aside() {
    let ddl = "create table t (k int primary key, v int);
               create function aside() returns void language plpgsql set session_replication_role = replica as $$
               begin update t set v = v + 1; insert into t values (2, 2); delete from t where k = 2; end $$";
    let mut mine = Mine::new(ddl, &["t"]).await;
    mine.there_and_back(&[&["insert into t values (1, 1)"], &["select aside()"], &["select aside()"]]).await;
}
