//! What a function sets in its session lasts for its block: neither the next one, nor another projection, nor the record of a
//! failure finds any of it.

use crate::harness::Mine;
use crate::support::check::World;
use crate::support::{Ebbtide, wait_until};

/// Every way to leave something behind; the last two take away the right to look into our schema.
const LEFT_BEHIND: [&str; 24] = [
    "select set_config('search_path', 'pg_catalog', false)",
    "select set_config('statement_timeout', '1', false)",
    "select set_config('lock_timeout', '1', false)",
    "select set_config('idle_in_transaction_session_timeout', '1', false)",
    "select set_config('idle_session_timeout', '1', false)",
    "select set_config('timezone', 'Asia/Tokyo', false)",
    "select set_config('datestyle', 'German', false)",
    "select set_config('intervalstyle', 'iso_8601', false)",
    "select set_config('extra_float_digits', '-10', false)",
    "select set_config('bytea_output', 'escape', false)",
    "select set_config('xmloption', 'document', false)",
    "select set_config('standard_conforming_strings', 'off', false)",
    "select set_config('quote_all_identifiers', 'on', false)",
    "select set_config('client_encoding', 'LATIN1', false)",
    "select set_config('default_transaction_read_only', 'on', false)",
    "select set_config('default_transaction_isolation', 'serializable', false)",
    "select set_config('default_transaction_deferrable', 'on', false)",
    "select set_config('session_replication_role', 'replica', false)",
    "select set_config('synchronous_commit', 'remote_apply', false)",
    "select set_config('work_mem', '64kB', false)",
    "select set_config('enable_indexscan', 'off', false)",
    "select set_config('mine.own', 'kept', false)",
    "set role anybody",
    "set session authorization anybody",
];

/// All settings as a block's code finds them, with who runs it.
const SEEN: &str =
    "select current_user || ' ' || session_user || ' ' || string_agg(name || '=' || setting, ' ' order by name)
    from pg_catalog.pg_settings where name not like 'ebbtide.%'";

async fn with_another() -> Mine {
    let mine = Mine::new(
        "create table t (k bigint primary key, seen text); create table o (k bigint primary key, seen text)",
        &["t"],
    )
    .await;
    mine.client
        .batch_execute(&format!(
            "do $$ begin if not exists (select from pg_roles where rolname = 'anybody') then create role anybody; end if;
             exception when duplicate_object or unique_violation then null; end $$;
             create function public.look_around(bigint, bigint) returns void language plpgsql as $f$
             begin insert into public.o values ($2, ({SEEN})); end $f$;
             select create_projection('other', 'public.look_around(bigint,bigint)', '{{public.o}}', chain => 'main')"
        ))
        .await
        .unwrap();
    mine
}

async fn other_is_through(mine: &Mine, height: usize) {
    wait_until("the other projection is at the tip", async || {
        let sql = "select failed_reason from checkpoints where projection = 'other' and height = $1";
        mine.client.query_opt(sql, &[&(height as i64)]).await.unwrap()
    })
    .await;
}

async fn kinds_seen(mine: &Mine, table: &str) -> Vec<String> {
    let sql = format!("select distinct seen from public.{table} where seen <> 'left'");
    mine.client.query(&sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn what_a_function_sets_in_its_session_ends_with_its_block() {
    let mut mine = with_another().await;
    for left in LEFT_BEHIND {
        let mark = format!("insert into public.t values ({}, 'left')", mine.height() + 1);
        mine.add(&[&mark, left]).await;
        let look = format!("insert into t values ({}, ({SEEN}))", mine.height() + 1);
        mine.add(&[&look]).await;
        // And it fails: that is written down, whatever was set before it.
        mine.put(mine.height() + 1, &[left, "select 1 / 0"]).await;
        let why = mine.failure().await;
        assert!(why.contains("division by zero"), "{left}: {why}");
        let look = format!("insert into t values ({}, ({SEEN}))", mine.height());
        mine.put(mine.height(), &[&look]).await;
        mine.settle().await;
    }
    other_is_through(&mine, mine.height()).await;
    for table in ["t", "o"] {
        let seen = kinds_seen(&mine, table).await;
        assert_eq!(seen.len(), 1, "{table}: {seen:#?}");
    }
}

/// Blocks that are final go several in one transaction, and so does a rebuild.
#[tokio::test]
async fn blocks_of_one_transaction_do_not_find_what_another_set() {
    let mut mine = with_another().await;
    mine.client.batch_execute("select pause('main', 'mine')").await.unwrap();
    // Planner and memory change no result, and what is a function's own by name is its own affair until it commits.
    let left_behind =
        LEFT_BEHIND.iter().filter(|left| !["work_mem", "enable_", "mine."].iter().any(|w| left.contains(w)));
    for left in left_behind {
        for block in [
            vec![format!("insert into public.t values ({}, 'left')", mine.height() + 1), (*left).to_owned()],
            vec![format!("insert into t values ({}, ({SEEN}))", mine.height() + 2)],
        ] {
            let block: Vec<&str> = block.iter().map(String::as_str).collect();
            mine.put(mine.height() + 1, &block).await;
        }
    }
    mine.client.batch_execute("update chains set head_height = 1000, final_height = 40").await.unwrap();
    let rebuilt = "select resume('main', 'mine')";
    for sql in [rebuilt, "select replay('main', 1, 'mine')"] {
        mine.client.batch_execute(sql).await.unwrap();
        mine.settle().await;
        wait_until("all is applied again", async || {
            let sql = "select 1 from checkpoints where projection = 'mine' and redo_from is null";
            mine.client.query_opt(sql, &[]).await.unwrap()
        })
        .await;
        let seen = kinds_seen(&mine, "t").await;
        // A rebuild has no time limit.
        let most = if sql == rebuilt { 1 } else { 2 };
        assert!(seen.len() <= most, "{seen:#?}");
        assert!(!seen.iter().any(|seen| seen.contains("Tokyo") || seen.contains("anybody")), "{seen:#?}");
    }
}

/// What the role or the database sets for everybody, all of it at once.
#[tokio::test]
async fn what_a_role_or_a_database_sets_changes_nothing() {
    let world = World::new(4).await;
    let name = world.one("select current_database()").await.unwrap();
    for (setting, value) in [
        ("standard_conforming_strings", "off"),
        ("quote_all_identifiers", "on"),
        ("client_encoding", "'LATIN1'"),
        ("lock_timeout", "'1ms'"),
        ("statement_timeout", "'10s'"),
        ("idle_session_timeout", "'1s'"),
        ("default_transaction_read_only", "on"),
        ("default_transaction_isolation", "'serializable'"),
        ("datestyle", "'German'"),
        ("intervalstyle", "'iso_8601'"),
        ("extra_float_digits", "'-10'"),
        ("bytea_output", "'escape'"),
        ("xmloption", "'document'"),
        ("search_path", "pg_catalog"),
    ] {
        world.sql(&format!("alter database {name} set {setting} = {value}")).await;
    }
    // What people call from psql, under it. That a session may not write, or ends soon, is theirs to change.
    let theirs = world.client().await;
    theirs.batch_execute("set default_transaction_read_only = off; set idle_session_timeout = 0").await.unwrap();
    let says = async |sql: &str| theirs.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    says(
        "set search_path = public;
         create table public.sums (chain_id bigint, k int, n numeric, primary key (chain_id, k));
         create function public.add_up(bigint, bigint) returns void language plpgsql as $$
         begin
            insert into sums as s select $1, 1, coalesce(sum(amount), 0) from ebbtide.token_events where chain_id = $1 and height = $2
            on conflict (chain_id, k) do update set n = s.n + excluded.n;
         end $$;
         select ebbtide.create_projection('sums', 'public.add_up(bigint,bigint)', '{public.sums}')",
    )
    .await;
    let process = || Ebbtide::succeed(&["process", "--once", "--database-url", &world.url], &[]);
    for (height, hash, parent) in [(1, "a1", "a0"), (2, "a2", "a1"), (3, "a3", "a2"), (3, "b3", "a2"), (4, "b4", "b3")]
    {
        says(&format!(
            "select ebbtide.put_block('main', {height}, '{hash}', '{parent}', '2026-01-02 03:04:05+00', '[]',
             '[{{\"tx_index\": 0, \"event_index\": 0, \"token\": \"gold\", \"to_address\": \"a\", \"amount\": \"{height}\"}}]')"
        ))
        .await;
        if hash == "a3" {
            process();
        }
    }
    process();
    says("select ebbtide.replay('main', 2)").await;
    process();
    assert_eq!(world.balance("gold", "a").await.as_deref(), Some("10"));
    assert_eq!(world.one("select n from public.sums").await.as_deref(), Some("10"));
    for command in ["verify", "migrate"] {
        Ebbtide::succeed(&[command, "--database-url", &world.url], &[]);
    }
    says("select ebbtide.pause('main', 'sums'); select ebbtide.resume('main', 'sums'); select ebbtide.drop_blocks('main', 4)").await;
    process();
    assert_eq!(world.one("select n from public.sums").await.as_deref(), Some("6"));
    says("select ebbtide.drop_projection('sums'); select ebbtide.drop_chain('main')").await;
}
