//! The schema is what `ebbtide migrate` made: whatever was lost, disabled or changed since is named, and brought back.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    unreachable_pub,
    dead_code,
    reason = "a test that cannot go on has failed"
)]

mod support;

use std::time::Duration;

use support::pg::connect;
use support::{Ebbtide, Pg};
use tokio_postgres::Client;

const REMEDY: &str = "run `ebbtide migrate`";

/// How a command ended, and all it said.
fn said(pg: &Pg, args: &[&str]) -> (bool, String) {
    let args: Vec<&str> = args.iter().copied().chain(["--database-url", &pg.url]).collect();
    let output = Ebbtide::output(&args, &[]);
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
    (output.status.success(), text)
}

/// `status`, `verify` and the start of a processor name it; `migrate` says that it is repaired.
fn is_found_and_repaired(pg: &Pg, what: &str) {
    for command in [&["status"][..], &["verify"], &["process", "--once"]] {
        let (well, text) = said(pg, command);
        assert!(!well && text.contains(what) && text.contains(REMEDY), "{command:?} does not say {what:?}: {text}");
    }
    let (well, text) = said(pg, &["migrate"]);
    assert!(well && text.contains("Repaired") && text.contains(what), "migrate does not say {what:?}: {text}");
    let (well, text) = said(pg, &["status"]);
    assert!(well, "after migrate: {text}");
}

#[tokio::test]
async fn functions_views_and_triggers_are_named_and_repaired() {
    let pg = Pg::new().await;
    let client = pg.client().await;
    for (damage, what) in [
        ("drop trigger deleted on blocks", "the trigger deleted of blocks is missing"),
        ("alter table blocks disable trigger written", "(disabled)"),
        ("alter table token_events disable trigger user", "the trigger inserted of token_events is"),
        (
            "create or replace function blocks_touched(chain bigint, lowest_height bigint, not_concerned text[] default '{}') returns void
             language plpgsql as $$ begin end $$",
            "the function blocks_touched(chain bigint, lowest_height bigint, not_concerned text[]) was changed",
        ),
        (
            "drop function pause(text, text, bigint)",
            "the function pause(chain text, projection text, at_height bigint) is missing",
        ),
        ("alter function put_block security invoker", "the function put_block"),
        ("drop view anomalies", "the view anomalies is missing"),
        (
            "create or replace view final_balances as select chain_id, token, address, amount from balances",
            "the view final_balances was changed",
        ),
        ("drop view tokens; create view tokens as select 1 as one, 2 as two", "the view tokens was changed"),
    ] {
        client.batch_execute(damage).await.unwrap_or_else(|e| panic!("{damage}: {e:?}"));
        is_found_and_repaired(&pg, what);
    }
    // And does what it did.
    client
        .batch_execute(
            "insert into chains (name, kind) values ('main', 'other');
             select put_block('main', 1, 'a', 'root', now(), '[]',
                 '[{\"tx_index\": 0, \"event_index\": 0, \"token\": \"t\", \"to_address\": \"x\", \"amount\": 5}]');
             select put_block('main', 1, 'b', 'root')",
        )
        .await
        .unwrap();
    let left: i64 = client.query_one("select count(*) from token_events", &[]).await.unwrap().get(0);
    assert_eq!(left, 0, "the replaced block took its events along");
}

#[tokio::test]
async fn tables_are_named_and_left_to_people() {
    let pg = Pg::new().await;
    let client = pg.client().await;
    for (damage, what, repair) in [
        (
            "alter table blocks drop constraint blocks_height_is_not_negative",
            "the constraint blocks_height_is_not_negative of blocks is missing: `CHECK ((height >= 0))`",
            "alter table blocks add constraint blocks_height_is_not_negative check (height >= 0)",
        ),
        (
            "drop index blocks_hash",
            "the index blocks_hash of blocks is missing",
            "create index blocks_hash on blocks (chain_id, hash)",
        ),
        (
            "alter table chains alter column name drop not null",
            "the column name of chains is `text",
            "alter table chains alter column name set not null",
        ),
        (
            "alter table blocks enable row level security",
            "the table blocks is `persistence p, row security t",
            "alter table blocks disable row level security",
        ),
        (
            "alter table opening_balances disable trigger all",
            "the constraint opening_balances_chain_is_known of opening_balances is",
            "alter table opening_balances enable trigger all",
        ),
    ] {
        client.batch_execute(damage).await.unwrap_or_else(|e| panic!("{damage}: {e:?}"));
        let (well, text) = said(&pg, &["status"]);
        assert!(!well && text.contains(what) && text.contains(REMEDY), "{damage}: {text}");
        // What is there does not become what should be there, also not when all is built again.
        for mark in ["", "comment on table refinery_schema_history is 'triggers of another version'"] {
            client.batch_execute(mark).await.unwrap();
            let (well, text) = said(&pg, &["migrate"]);
            assert!(!well && text.contains(what) && text.contains("by hand"), "{damage}: {text}");
        }
        client.batch_execute(repair).await.unwrap();
        let (well, text) = said(&pg, &["migrate"]);
        assert!(well, "{repair}: {text}");
    }
}

#[tokio::test]
async fn what_people_add_is_theirs() {
    let pg = Pg::new().await;
    pg.client()
        .await
        .batch_execute(
            "create index mine on blocks (time); create view mine_too as select * from blocks; create table notes (k int);
             create function note() returns trigger language plpgsql as 'begin return null; end';
             create trigger note after insert on blocks for each statement execute function note()",
        )
        .await
        .unwrap();
    let (well, text) = said(&pg, &["status"]);
    assert!(well, "{text}");
}

#[tokio::test]
async fn a_program_with_other_functions_is_refused_until_it_migrates() {
    let pg = Pg::new().await;
    let client = pg.client().await;
    for damage in
        ["comment on table refinery_schema_history is 'triggers of another version'", "drop table schema_manifest"]
    {
        client.batch_execute(damage).await.unwrap();
        for command in [&["status"][..], &["process", "--once"]] {
            let (well, text) = said(&pg, command);
            assert!(!well && text.contains(REMEDY), "{damage}, {command:?}: {text}");
        }
        assert!(said(&pg, &["migrate"]).0);
        assert!(said(&pg, &["status"]).0);
    }
}

#[tokio::test]
async fn a_processor_at_work_ends_when_a_trigger_is_dropped() {
    let pg = Pg::new().await;
    let client = pg.client().await;
    client.batch_execute("insert into chains (name, kind) values ('main', 'other')").await.unwrap();
    let mut running = Ebbtide::spawn(&["process", "--database-url", &pg.url], &[]);
    support::wait_until("it has looked", async || client.query_opt("select from checkpoints", &[]).await.unwrap())
        .await;
    client.batch_execute("drop trigger deleted on blocks").await.unwrap();
    let ended = running.wait(Duration::from_secs(60)).await;
    let log = running.stderr().join("\n");
    assert!(
        !ended.success() && log.contains("the trigger deleted of blocks is missing") && log.contains(REMEDY),
        "{log}"
    );
}

/// What a trigger that is gone did not see, nobody did: what can be told is refused, and what cannot is computed again.
#[tokio::test]
async fn what_was_written_while_a_trigger_was_gone_is_in_no_balance() {
    let pg = Pg::new().await;
    let client = pg.client().await;
    let put = |height: i64, hash: &str, parent: &str, amount: i64| {
        format!(
            r#"select put_block('main', {height}, '{hash}', '{parent}', now(), '[]', '[{{"tx_index": 0, "event_index": {amount},
               "token": "t", "to_address": "x", "amount": {amount}}}]')"#
        )
    };
    let held = async || -> String {
        assert!(said(&pg, &["process", "--once"]).0);
        assert!(said(&pg, &["verify"]).0);
        client.query_one("select amount::text from balances where address = 'x'", &[]).await.unwrap().get(0)
    };
    client.batch_execute("insert into chains (name, kind) values ('main', 'other')").await.unwrap();
    client.batch_execute(&put(1, "a1", "root", 500)).await.unwrap();
    client.batch_execute(&put(2, "a2", "a1", 40)).await.unwrap();
    assert_eq!(held().await, "540");

    // The events of a block that is replaced stay, and would count for the next one: by a person, and by a source.
    client.batch_execute("drop trigger deleted on blocks").await.unwrap();
    let word = "blocks_take_their_events_along";
    assert_eq!(refusal(&client, &put(2, "b2", "a1", 1)).await, word);
    client.batch_execute("delete from blocks where height = 2").await.unwrap();
    assert_eq!(refusal(&client, &put(2, "b2", "a1", 1)).await, word);
    assert!(said(&pg, &["migrate"]).1.contains("every projection is built again"));
    assert_eq!(refusal(&client, &put(2, "b2", "a1", 1)).await, word);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("chain.ndjson");
    let line = |height: i64, hash: &str, parent: &str, amount: i64| {
        let event = format!(
            r#"{{"tx_index": 0, "event_index": {amount}, "token": "t", "to_address": "x", "amount": "{amount}"}}"#
        );
        format!(
            r#"{{"event": "block", "height": {height}, "hash": "{hash}", "parent_hash": "{parent}", "token_events": [{event}]}}"#
        )
    };
    std::fs::write(&file, format!("{}\n{}\n", line(1, "a1", "root", 500), line(2, "b2", "a1", 1))).unwrap();
    let file = file.to_str().unwrap();
    let run = ["run", "--once", "--source", "file", "--file", file];
    let run = [&run[..], &["--listen", "127.0.0.1:0", "--operator-listen", "127.0.0.1:0"]].concat();
    let (well, text) = said(&pg, &run);
    assert!(!well && text.contains("holds rows at height 2 already") && text.contains("delete these rows"), "{text}");
    client.batch_execute("delete from token_events where height = 2").await.unwrap();
    let (well, text) = said(&pg, &run);
    assert!(well, "{text}");
    assert_eq!(held().await, "501");

    // An edit far below the head.
    client
        .batch_execute("update chains set final_height = 2; alter table token_events disable trigger user")
        .await
        .unwrap();
    client.batch_execute("update token_events set amount = 600 where height = 1").await.unwrap();
    assert!(said(&pg, &["migrate"]).1.contains("every projection is built again"));
    assert_eq!(held().await, "601");

    // An upgrade brings the triggers back too.
    client
        .batch_execute(
            "alter table token_events disable trigger user; update token_events set amount = 700 where height = 1;
             comment on table refinery_schema_history is 'triggers of another version'",
        )
        .await
        .unwrap();
    assert!(said(&pg, &["migrate"]).1.contains("every projection is built again"));
    assert_eq!(held().await, "701");
}

#[tokio::test]
async fn roles_that_came_after_the_first_migration_get_their_rights() {
    let pg = Pg::new().await;
    let client = pg.client().await;
    client
        .batch_execute(
            "do $$ begin
                 perform pg_advisory_xact_lock(hashtext('ebbtide_reader'));
                 if not exists (select from pg_roles where rolname = 'ebbtide_reader') then create role ebbtide_reader; end if;
             end $$;
             revoke all on schema ebbtide from ebbtide_reader;
             revoke all on all tables in schema ebbtide from ebbtide_reader",
        )
        .await
        .unwrap();
    let may = async |client: &Client| -> bool {
        let sql = "select has_schema_privilege('ebbtide_reader', 'ebbtide', 'usage')
                       and has_table_privilege('ebbtide_reader', 'ebbtide.balances', 'select')";
        client.query_one(sql, &[]).await.unwrap().get(0)
    };
    assert!(!may(&client).await);
    assert!(said(&pg, &["migrate"]).0);
    assert!(may(&client).await);
}

#[tokio::test]
async fn a_schema_that_others_can_change_is_refused() {
    let mallory = format!("mallory_{}", std::process::id());
    let pg = Pg::empty().await;
    let client = connect(&pg.url).await;
    client
        .batch_execute(&format!("create role {mallory}; create schema ebbtide authorization {mallory}"))
        .await
        .unwrap();
    let refused = |what: &str| {
        let (well, text) = said(&pg, &["migrate"]);
        assert!(!well && text.contains(what) && text.contains(&mallory), "{what}: {text}");
    };
    refused("the schema is in the hands of");
    client
        .batch_execute(&format!(
            "set role {mallory}; create function ebbtide.cardinality(bigint[]) returns int language sql as 'select 1'; reset role;
             alter schema ebbtide owner to postgres"
        ))
        .await
        .unwrap();
    refused("the function cardinality is in the hands of");
    client
        .batch_execute(&format!(
            "drop function ebbtide.cardinality(bigint[]); grant create on schema ebbtide to {mallory}"
        ))
        .await
        .unwrap();
    refused("the right to create in the schema is in the hands of");
    client.batch_execute(&format!("drop owned by {mallory}; drop role {mallory}")).await.unwrap();
    let (well, text) = said(&pg, &["migrate"]);
    assert!(well, "{text}");
}

/// The name of the constraint, or the fixed word, by which a statement is refused.
async fn refusal(client: &Client, sql: &str) -> String {
    let error = client.batch_execute(sql).await.err().unwrap_or_else(|| panic!("it was taken: {sql}"));
    let error = error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error:?}"));
    error.constraint().unwrap_or_else(|| panic!("{sql}: {error:?}")).to_owned()
}

#[tokio::test]
async fn values_that_could_not_be_read_back_are_refused_where_they_enter() {
    let pg = Pg::new().await;
    let client = pg.client().await;
    client.batch_execute("insert into chains (name, kind) values ('main', 'other')").await.unwrap();
    for time in ["infinity", "-infinity", "9999-12-30 22:00:01+00", "0001-12-31 23:59:59+00 BC"] {
        let put = format!("select put_block('main', 1, 'a', 'root', '{time}')");
        assert_eq!(refusal(&client, &put).await, "blocks_time_is_from_year_1_to_9999_12_30", "{time}");
        let insert = format!(
            "insert into blocks (chain_id, height, hash, parent_hash, time) select chain_id, 1, 'a', 'root', '{time}' from chains"
        );
        assert_eq!(refusal(&client, &insert).await, "blocks_time_is_from_year_1_to_9999_12_30", "{time}");
    }
    assert_eq!(
        refusal(&client, "select put_block('main', 1, 'a', 'a')").await,
        "blocks_are_not_their_own_parents",
        "by any name that is one"
    );
    assert_eq!(
        refusal(&client, "select put_block('main', 1, '0xAB', '0xab')").await,
        "blocks_are_not_their_own_parents"
    );
    let open =
        |amount: &str| format!("insert into opening_balances select chain_id, 'gold', 'alice', {amount} from chains");
    for amount in ["repeat('9', 131072)::numeric", "2::numeric ^ 256", "-(2::numeric ^ 256)"] {
        let by = refusal(&client, &open(amount)).await;
        assert_eq!(by, "opening_balances_amount_is_below_2_to_the_256", "{amount}");
    }
    for amount in ["'NaN'", "'Infinity'", "'-Infinity'", "0.5"] {
        let by = refusal(&client, &open(amount)).await;
        assert!(by.starts_with("opening_balances_amount_is_"), "{amount}: {by}");
    }
    let stored: i64 = client
        .query_one("select (select count(*) from blocks) + (select count(*) from opening_balances)", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(stored, 0);

    // The largest of each are taken, and read back.
    client.batch_execute(&open("trunc(2::numeric ^ 256) - 1")).await.unwrap();
    for (height, time) in [(1, "0001-01-01 00:00:00+00"), (2, "9999-12-30 22:00:00.999999+00")] {
        let put = format!("select put_block('main', {height}, 'b{height}', 'b{}', '{time}')", height - 1);
        client.batch_execute(&put).await.unwrap();
    }
    let (well, text) = said(&pg, &["process", "--once"]);
    assert!(well, "{text}");
    let (well, text) = said(&pg, &["verify"]);
    assert!(well, "{text}");
    let held: String =
        client.query_one("select amount::text from balances where address = 'alice'", &[]).await.unwrap().get(0);
    assert_eq!(held, "115792089237316195423570985008687907853269984665640564039457584007913129639935");
}

#[tokio::test]
async fn what_follows_from_the_chain_is_written_by_the_processor_alone() {
    let pg = Pg::new().await;
    let client = pg.client().await;
    client
        .batch_execute(
            "insert into chains (name, kind) values ('main', 'other');
             select put_block('main', 1, 'a', 'root', now(), '[]',
                 '[{\"tx_index\": 0, \"event_index\": 0, \"token\": \"t\", \"to_address\": \"x\", \"amount\": 5}]')",
        )
        .await
        .unwrap();
    assert!(said(&pg, &["process", "--once"]).0);
    let strays = [
        "update balances set amount = 6",
        "insert into balances (chain_id, token, address, amount, height) select chain_id, 't', 'y', 1, 1 from chains",
        "delete from balances",
        "truncate balances",
        "update balance_history set delta = 6",
        "insert into balance_history select balance_id, 9, 1, chain_id, 1, 1 from balances",
        "delete from balance_history",
        "update token_totals set total = 6",
        "delete from token_totals",
        "update applied_blocks set hash = 'b'",
        "delete from applied_blocks",
        "update checkpoints set height = 0",
        "update checkpoints set hash = 'b'",
        "update checkpoints set through_height = 9",
        "update checkpoints set start_height = 0",
        "update checkpoints set seq = seq + 1",
        "update checkpoints set journal_from = 5",
        "update checkpoints set history_from = 5",
        "update checkpoints set height = null, hash = null, through_height = null",
        "delete from checkpoints",
        "insert into checkpoints (chain_id, projection, height) values (9, 'token_balances', 5)",
    ];
    let word = "only_the_processor_writes_what_follows_from_the_chain";
    for stray in strays {
        assert_eq!(refusal(&client, stray).await, word, "{stray}");
    }
    let (well, text) = said(&pg, &["verify"]);
    assert!(well, "{text}");

    // What people decide about a projection is theirs, and so are a repair by hand and the end of a chain.
    client
        .batch_execute(
            "select pause('main', 'token_balances'); select resume('main', 'token_balances'); select replay('main', 0);
             update checkpoints set paused = true; update checkpoints set paused = false",
        )
        .await
        .unwrap();
    assert!(said(&pg, &["process", "--once"]).0);
    client
        .batch_execute("begin; set local ebbtide.write_tracked_tables = on; update balances set amount = 6; commit")
        .await
        .unwrap();
    let (well, text) = said(&pg, &["verify"]);
    assert!(
        !well && text.contains("balance x in t: ours 6") && text.contains("total t: ours 5; recomputed 6"),
        "{text}"
    );
    client.batch_execute("select drop_chain('main')").await.unwrap();
    let (well, text) = said(&pg, &["verify"]);
    assert!(well, "{text}");
    let left: i64 = client.query_one("select count(*) from token_totals", &[]).await.unwrap().get(0);
    assert_eq!(left, 0, "a chain takes its totals along");
}
