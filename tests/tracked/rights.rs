//! Code of other roles never runs with the rights of the one that Ebbtide runs as.

use tokio_postgres::Client;

use crate::harness::Mine;
use crate::support::{Pg, wait_until};

const WORD: &str = "projections_run_trusted_code";

/// A role of this test alone that may log in, and tries to become a superuser.
async fn stranger(client: &Client) -> String {
    let name = format!("stranger_{}_{:08x}", std::process::id(), rand::random::<u32>());
    client.batch_execute(&format!("create role {name} login")).await.unwrap();
    name
}

/// Whether it did; it goes, with all it has.
async fn rose(client: &Client, name: &str) -> bool {
    let rose = client.query_one("select rolsuper from pg_roles where rolname = $1", &[&name]).await.unwrap().get(0);
    client.batch_execute(&format!("drop owned by {name} cascade; drop role {name}")).await.unwrap();
    rose
}

/// What they would have us run.
fn trap(name: &str) -> String {
    format!("returns void language plpgsql as $$ begin alter role {name} superuser; end $$")
}

async fn refusal(client: &Client, sql: &str) -> String {
    let error = client.batch_execute(sql).await.expect_err(sql);
    let db = error.as_db_error().unwrap_or_else(|| panic!("{error:?}"));
    assert_eq!(db.constraint(), Some(WORD), "{}", db.message());
    format!("{}; {}", db.message(), db.hint().unwrap_or_default())
}

#[tokio::test]
async fn what_is_not_ours_is_refused_when_a_projection_is_made() {
    let pg = Pg::new().await;
    let client = pg.client().await;
    let alice = stranger(&client).await;
    client
        .batch_execute(&format!(
            "insert into chains (name, kind) values ('main', 'other');
             create table public.t (chain_id bigint, k int, primary key (chain_id, k));
             create schema hers authorization {alice};
             create function public.theirs(bigint, bigint) {trap}; alter function public.theirs(bigint, bigint) owner to {alice};
             create function hers.ours(bigint, bigint) returns void language sql as '';
             create function public.ours(bigint, bigint) returns void language sql as '';
             create table hers.t (chain_id bigint, k int, primary key (chain_id, k))",
            trap = trap(&alice)
        ))
        .await
        .unwrap();
    let create = |function: &str, table: &str| {
        format!("select create_projection('mine', '{function}(bigint,bigint)', '{{{table}}}')")
    };
    let text = refusal(&client, &create("public.theirs", "public.t")).await;
    assert!(text.contains(&format!("its owner is {alice}")) && text.contains("alter function public.theirs"), "{text}");
    let text = refusal(&client, &create("hers.ours", "public.t")).await;
    assert!(
        text.contains(&format!("its schema belongs to {alice}")) && text.contains("alter schema hers owner to"),
        "{text}"
    );
    let text = refusal(&client, &create("public.ours", "hers.t")).await;
    assert!(text.contains(&format!("in the schema hers, where the role {alice} may create")), "{text}");
    client.batch_execute(&format!("grant create on schema public to {alice}")).await.unwrap();
    let text = refusal(&client, &create("public.ours", "public.t")).await;
    assert!(text.contains(&format!("revoke create on schema public from {alice}")), "{text}");
    client
        .batch_execute(&format!("revoke create on schema public from {alice}; grant create on schema public to public"))
        .await
        .unwrap();
    let text = refusal(&client, &create("public.ours", "public.t")).await;
    assert!(text.contains("where every role may create"), "{text}");
    client.batch_execute("revoke create on schema public from public").await.unwrap();
    // A table of theirs, and theirs on a table of ours.
    for theirs in [
        format!("alter table public.t owner to {alice}"),
        format!(
            "alter table public.t owner to postgres;
             create function public.lurk() returns trigger language plpgsql as $$ begin return new; end $$;
             create trigger lurk before insert on public.t for each row execute function public.lurk();
             alter function public.lurk() owner to {alice}"
        ),
        format!(
            "drop function public.lurk() cascade; create function public.lurk() returns int language sql as 'select 1';
             alter table public.t add column d int default public.lurk(); alter function public.lurk() owner to {alice}"
        ),
        format!(
            "drop function public.lurk() cascade; create domain public.lurking as int;
             alter table public.t drop column d, add column d public.lurking; alter domain public.lurking owner to {alice}"
        ),
    ] {
        client.batch_execute(&theirs).await.unwrap_or_else(|e| panic!("{theirs}: {e:?}"));
        let error = client.batch_execute(&create("public.ours", "public.t")).await.expect_err(&theirs);
        let db = error.as_db_error().unwrap();
        assert_eq!(db.constraint(), Some("table_cannot_be_tracked"), "{theirs}: {}", db.message());
        assert!(db.message().contains(&alice), "{theirs}: {}", db.message());
    }
    client
        .batch_execute(&format!("alter domain public.lurking owner to postgres; {}", create("public.ours", "public.t")))
        .await
        .unwrap();
    assert!(!rose(&client, &alice).await);
}

#[tokio::test]
async fn a_function_whose_owner_changed_is_not_run_again() {
    let mut mine = Mine::new("create table t (k int primary key)", &["t"]).await;
    mine.add(&["insert into t values (1)"]).await;
    let alice = stranger(&mine.client).await;
    let body: String =
        mine.client.query_one("select pg_get_functiondef('public.do_as_told'::regproc)", &[]).await.unwrap().get(0);
    mine.client
        .batch_execute(&format!(
            "alter function public.do_as_told(bigint, bigint) owner to {alice};
             grant create on schema public to {alice}; set role {alice};
             create or replace function public.do_as_told(bigint, bigint) {}; reset role;
             revoke create on schema public from {alice}",
            trap(&alice)
        ))
        .await
        .unwrap();
    mine.put(2, &["insert into t values (2)"]).await;
    let why = mine.failure().await;
    assert!(
        why.contains(&format!("its owner is {alice}")) && why.contains("alter function public.do_as_told"),
        "{why}"
    );
    mine.client
        .batch_execute(&format!("alter function public.do_as_told(bigint, bigint) owner to postgres; {body}"))
        .await
        .unwrap();
    mine.settle().await;
    assert!(!rose(&mine.client, &alice).await);
}

#[tokio::test]
async fn a_function_that_the_owner_of_its_schema_put_there_is_not_run() {
    let mut mine = Mine::new("create table t (k int primary key)", &["t"]).await;
    let alice = stranger(&mine.client).await;
    mine.client
        .batch_execute(
            "select drop_projection('mine'); create schema hers;
             create function hers.f(bigint, bigint) returns void language sql as 'insert into public.t values ($2)';
             select create_projection('mine', 'hers.f(bigint,bigint)', '{public.t}')",
        )
        .await
        .unwrap();
    mine.add(&[]).await;
    // She needs no right on the function to drop it, once the schema is hers.
    mine.client
        .batch_execute(&format!(
            "alter schema hers owner to {alice}; set role {alice}; drop function hers.f(bigint, bigint);
             create function hers.f(bigint, bigint) {}; reset role",
            trap(&alice)
        ))
        .await
        .unwrap();
    mine.put(2, &[]).await;
    let why = mine.failure().await;
    assert!(why.contains(&format!("its owner is {alice}")), "{why}");
    // One of ours in a schema of hers could be swapped at any moment.
    mine.client
        .batch_execute(
            "drop function hers.f(bigint, bigint);
             create function hers.f(bigint, bigint) returns void language sql as 'insert into public.t values ($2)'",
        )
        .await
        .unwrap();
    let why = wait_until("the schema is named", async || {
        let sql = "select failed_reason from checkpoints where failed_reason like '%its schema belongs to%'";
        mine.client.query_opt(sql, &[]).await.unwrap().map(|row| row.get::<_, String>(0))
    })
    .await;
    assert!(why.contains("alter schema hers owner to postgres"), "{why}");
    mine.client.batch_execute("alter schema hers owner to postgres").await.unwrap();
    mine.settle().await;
    assert!(!rose(&mine.client, &alice).await);
}

#[tokio::test]
async fn a_trigger_that_another_role_put_on_a_table_is_not_fired() {
    let mut mine = Mine::new("create table t (k int primary key)", &["t"]).await;
    mine.add(&["insert into t values (1)"]).await;
    let alice = stranger(&mine.client).await;
    mine.client
        .batch_execute(&format!(
            "grant trigger on public.t to {alice}; create schema hers authorization {alice}; set role {alice};
             create function hers.lurk() returns trigger language plpgsql as
                 $$ begin alter role {alice} superuser; return new; end $$;
             create trigger lurk before insert on public.t for each row execute function hers.lurk(); reset role"
        ))
        .await
        .unwrap();
    mine.put(2, &["insert into t values (2)"]).await;
    let why = mine.failure().await;
    assert!(why.contains("the function hers.lurk()") && why.contains(&alice), "{why}");
    mine.client.batch_execute("drop trigger lurk on public.t").await.unwrap();
    mine.settle().await;
    assert!(!rose(&mine.client, &alice).await);
}

/// Functions and operators of Postgres' own names, for all types that they have there and some that they take there as any
/// type: found before the real ones by whoever looks into `public` first.
const HOSTILE: &str = r#"
create sequence public.planted;
create function public.plant(what text) returns integer language plpgsql as $$
begin
    execute what;
    perform nextval('public.planted');
    return 1;
exception when others then return 0;
end $$;
select count(public.plant(format('create function public.%I(%s) returns %s language plpgsql as
        $b$begin raise exception using message = %L; end$b$', p.proname, pg_get_function_identity_arguments(p.oid),
        pg_get_function_result(p.oid), 'hostile function ' || p.oid::regprocedure)))
from pg_proc p
where p.pronamespace = 'pg_catalog'::regnamespace and p.prokind = 'f' and not p.proretset
  and p.proname in ('set_config', 'current_setting', 'cardinality', 'array_fill', 'format', 'format_type', 'jsonb_each_text', 'to_regclass',
      'to_regprocedure', 'to_regnamespace', 'pg_trigger_depth', 'clock_timestamp', 'now', 'quote_ident', 'length', 'left', 'abs', 'int8', 'int4',
      'text', 'greatest', 'hashtext', 'pg_has_role', 'has_database_privilege', 'pg_get_functiondef', 'md5', 'nextval', 'lower',
      'regexp_replace', 'jsonb_build_array', 'jsonb_build_object', 'position', 'pg_get_expr', 'octet_length', 'pg_notify',
      'pg_try_advisory_xact_lock_shared', 'pg_stat_get_xact_tuples_inserted', 'pg_stat_get_xact_tuples_updated',
      'pg_stat_get_xact_tuples_deleted', 'pg_stat_get_xact_numscans', 'array_to_string', 'oidvectortypes', 'generate_series');
select count(public.plant(format('create function public.hostile_%s(%s, %s) returns %s language plpgsql as
        $b$begin raise exception using message = %L; end$b$', o.oid, format_type(o.oprleft, null), format_type(o.oprright, null),
        format_type(o.oprresult, null), 'hostile operator ' || o.oid::regoperator)) = 1
     and public.plant(format('create operator public.%s (leftarg = %s, rightarg = %s, function = public.hostile_%s)', o.oprname,
        format_type(o.oprleft, null), format_type(o.oprright, null), o.oid)) = 1)
from (select o.oid, o.oprname, o.oprleft, o.oprright, o.oprresult from pg_operator o
      where o.oprnamespace = 'pg_catalog'::regnamespace and o.oprkind = 'b') o
join pg_type l on l.oid = o.oprleft and l.typtype = 'b' join pg_type r on r.oid = o.oprright and r.typtype = 'b';
select public.plant(format('create function public.%s returns %s language plpgsql as ''begin raise exception ''''hostile''''; end''', f, t))
from (values ('cardinality(bigint[])', 'int'), ('array_fill(bigint, integer[])', 'bigint[]'), ('array_length(text[], int)', 'int'),
             ('array_position(text[], text)', 'int'), ('unnest_one(bigint[])', 'bigint'), ('format(text, text)', 'text'),
             ('format(text, text, text)', 'text'), ('format(text, bigint)', 'text'), ('format(text, text, bigint)', 'text'),
             ('to_jsonb(text)', 'jsonb'), ('joined(bigint[], bigint)', 'bigint[]'), ('joined(bigint[], bigint[])', 'bigint[]'),
             ('same(bigint[], bigint[])', 'boolean')) v (f, t);
create operator public.|| (leftarg = bigint[], rightarg = bigint, function = public.joined);
create operator public.|| (leftarg = bigint[], rightarg = bigint[], function = public.joined);
create operator public.= (leftarg = bigint[], rightarg = bigint[], function = public.same);
"#;

#[tokio::test]
async fn functions_and_operators_planted_in_public_are_never_called() {
    let mut mine = Mine::new("create table t (k bigint primary key, n bigint)", &["t"]).await;
    // With public before Postgres' own: its body names what it uses in full.
    mine.client
        .batch_execute(
            "create or replace function public.do_as_told(bigint, bigint) returns void language plpgsql
             set search_path = public, pg_catalog, ebbtide as $$
             begin
                 insert into t values ($2, 1);
                 update t set n = $2;
                 delete from t where k operator(pg_catalog.=) any (array[$2 operator(pg_catalog.-) 3]);
             end $$;
             create function public.note() returns trigger language plpgsql as $$ begin return new; end $$;
             create trigger note before insert or update on public.t for each row execute function public.note()",
        )
        .await
        .unwrap();
    mine.client.batch_execute(HOSTILE).await.unwrap_or_else(|e| panic!("{e:?}"));
    let planted: i64 = mine.client.query_one("select last_value from public.planted", &[]).await.unwrap().get(0);
    println!("{planted} functions and operators planted");
    assert!(planted > 500, "{planted}");
    for _ in 0..4 {
        mine.add(&[]).await;
    }
    for height in [4, 3, 1] {
        mine.put(height, &[]).await;
        mine.settle().await;
    }
    crate::support::Ebbtide::succeed(&["verify", "--database-url", &mine.pg.url], &[]);
}

#[tokio::test]
async fn every_function_of_ours_brings_its_own_search_path() {
    let mine = Mine::new("create table t (k bigint primary key, n bigint)", &["t"]).await;
    // Unfolded into the statements that call them, which a path of their own would forbid; they name all in full.
    let without = ["canonical(text)", "canonical(text,text)", "kind(token_events)", "notice_mark(text,bigint,text)"];
    let rows = mine
        .client
        .query(
            "select p.oid::regprocedure::text, coalesce(p.proconfig::text, ''), p.prosrc from pg_proc p
             where p.pronamespace = 'ebbtide'::regnamespace order by 1",
            &[],
        )
        .await
        .unwrap();
    println!("{} functions", rows.len());
    assert!(rows.len() > 80);
    for row in rows {
        let (name, config, body): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        if !without.contains(&name.as_str()) {
            assert!(
                config.contains("search_path=ebbtide, pg_temp"),
                "{name} runs under the path of its caller: {config}"
            );
            continue;
        }
        for bare in [" ~ ", " = ", " || ", " lower(", " regexp_replace(", " left(", "(encode(", "(sha256("] {
            assert!(!body.contains(bare), "{name} calls{bare}without its schema");
        }
    }
}
