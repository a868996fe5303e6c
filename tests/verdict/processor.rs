//! Ways in which a projection is not well.

use std::time::Duration;

use crate::support::{Ebbtide, wait_until};
use crate::{Must, Stage, Way, way};

/// A table of one's own by a function that first does what `body` says with (chain, at).
async fn projection(stage: &Stage, name: &str, body: &str, more: &str) {
    stage
        .sql(&format!(
            "create table if not exists public.{name} (chain_id bigint, height bigint, primary key (chain_id, height));
             create table if not exists public.switch (fails boolean);
             insert into public.switch select true where not exists (select from public.switch);
             create or replace function public.{name}(chain bigint, at bigint) returns void language plpgsql as $$
             begin {body} insert into public.{name} values (chain, at); end $$;
             select create_projection('{name}', 'public.{name}(bigint,bigint)', '{{public.{name}}}' {more})"
        ))
        .await;
}

const FAILS_AT_2: &str = "if at = 2 then perform 1 / (not fails)::int from public.switch; end if;";

const BALANCES: Must<'static> = Must { part: "token_balances", state: "", why: "", remedy: None };
const MINE: Must<'static> = Must { part: "mine", state: "", why: "", remedy: None };

/// With three blocks that are applied, and a processor.
async fn applied() -> (Stage, Ebbtide) {
    let stage = Stage::written().await;
    stage.branch("a", 1, 3, "a0").await;
    let process = stage.process(&[]);
    stage.is_well().await;
    (stage, process)
}

/// Each names the one that holds it, and not the one that holds the other.
fn two_are_held_by_two(name: &'static str, holds_the_balances: &'static str) -> Way {
    way(name, async move {
        let stage = Stage::written().await;
        projection(&stage, "mine", "", "").await;
        stage.branch("a", 1, 3, "a0").await;
        let _process = stage.process(&[]);
        stage.is_well().await;
        let held =
            [("token_balances", holds_the_balances), ("mine", "select from public.mine where height = 3 for update")];
        let mut holders = Vec::new();
        for (part, sql) in held {
            let holder = stage.pg.client().await;
            holder.batch_execute(&format!("begin; {sql}")).await.unwrap();
            let pid: i32 = holder.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
            holders.push((part, pid, holder));
        }
        stage.branch("b", 3, 3, "a2").await;
        for (part, pid, _) in &holders {
            let (why, remedy) = (format!("server process {pid} "), format!("select pg_terminate_backend({pid})"));
            stage.agree(Must { part, state: "waiting", why: &why, remedy: Some(&remedy) }).await;
        }
        for (.., holder) in holders {
            holder.batch_execute("rollback").await.unwrap();
        }
        stage.is_well().await;
    })
}

pub fn ways() -> Vec<Way> {
    vec![
        way("nobody ever processed", async {
            let stage = Stage::written().await;
            stage.branch("a", 1, 2, "a0").await;
            let why = "no processor has told that it is alive; 2 blocks wait";
            stage.agree(Must { state: "silent", why, remedy: Some("`ebbtide process`"), ..BALANCES }).await;
            let _process = stage.process(&[]);
            stage.is_well().await;
        }),
        way("killed", async {
            let (stage, mut process) = applied().await;
            process.kill();
            let why = "given no sign of life";
            stage.agree(Must { state: "silent", why, remedy: Some("`ebbtide process`"), ..BALANCES }).await;
            let _process = stage.process(&[]);
            stage.is_well().await;
        }),
        way("frozen", async {
            let (stage, process) = applied().await;
            process.freeze();
            let why = "given no sign of life";
            stage.agree(Must { state: "silent", why, remedy: Some("`ebbtide process`"), ..BALANCES }).await;
            process.thaw();
            stage.is_well().await;
        }),
        way("stopped by a signal", async {
            let (stage, mut process) = applied().await;
            process.terminate();
            assert!(process.wait(Duration::from_secs(10)).await.success());
            stage
                .agree(Must { state: "silent", why: "was stopped", remedy: Some("`ebbtide process`"), ..BALANCES })
                .await;
            let _process = stage.process(&[]);
            stage.is_well().await;
        }),
        way("done, and then another block", async {
            let stage = Stage::written().await;
            stage.branch("a", 1, 2, "a0").await;
            stage.told(&["process", "--once"]).await;
            stage.is_well().await;
            stage.branch("a", 3, 3, "a2").await;
            let why = "no processor runs; the last one was done";
            stage.agree(Must { state: "silent", why, remedy: Some("`ebbtide process`"), ..BALANCES }).await;
            stage.told(&["process", "--once"]).await;
            stage.is_well().await;
        }),
        way("paused", async {
            let (stage, _process) = applied().await;
            stage.told(&["pause"]).await;
            stage
                .agree(Must { state: "paused", why: "by an operator", remedy: Some("`ebbtide resume`"), ..BALANCES })
                .await;
            stage.told(&["resume"]).await;
            stage.is_well().await;
        }),
        way("paused at a height", async {
            let (stage, _process) = applied().await;
            stage.told(&["pause", "--at", "2"]).await;
            let why = "by an operator, at height 2";
            stage.agree(Must { state: "paused", why, remedy: Some("`ebbtide resume`"), ..BALANCES }).await;
            stage.told(&["resume"]).await;
            stage.is_well().await;
        }),
        way("halted", async {
            let stage = Stage::written().await;
            let _process = stage.process(&["--negative-balances", "halt"]);
            stage.branch("a", 1, 1, "a0").await;
            stage.is_well().await;
            stage
                .sql(
                    r#"select put_block('main', 2, 'a2', 'a1', token_events =>
                       '[{"tx_index":0,"event_index":0,"token":"gold","from_address":"poor","to_address":"rich","amount":9}]')"#,
                )
                .await;
            stage.agree(Must { state: "halted", why: "", remedy: Some("`ebbtide resume`"), ..BALANCES }).await;
            stage.sql("select drop_blocks('main', 2)").await;
            stage.told(&["resume"]).await;
            stage.is_well().await;
        }),
        way("a function that fails", async {
            let stage = Stage::written().await;
            projection(&stage, "mine", FAILS_AT_2, "").await;
            let _process = stage.process(&[]);
            stage.branch("a", 1, 3, "a0").await;
            let why = "block 2 (a2): division by zero";
            stage
                .agree(Must { state: "failing", why, remedy: Some("`ebbtide resume --projection mine`"), ..MINE })
                .await;
            stage.sql("update public.switch set fails = false").await;
            stage.told(&["resume", "--projection", "mine"]).await;
            stage.is_well().await;
        }),
        way("a function that fails at its first block", async {
            let stage = Stage::written().await;
            projection(&stage, "mine", "perform 1 / (not fails)::int from public.switch;", "").await;
            let _process = stage.process(&[]);
            stage.branch("a", 1, 2, "a0").await;
            stage
                .agree(Must { state: "failing", why: "block 1 (a1): division by zero", remedy: Some("fix"), ..MINE })
                .await;
            stage.sql("update public.switch set fails = false").await;
            stage.is_well().await;
        }),
        way("paused, and failing before that", async {
            let stage = Stage::written().await;
            projection(&stage, "mine", FAILS_AT_2, "").await;
            let _process = stage.process(&[]);
            stage.branch("a", 1, 3, "a0").await;
            stage.agree(Must { state: "failing", why: "division by zero", remedy: None, ..MINE }).await;
            stage.told(&["pause", "--projection", "mine"]).await;
            let why = "before that it failed: block 2 (a2): division by zero";
            stage
                .agree(Must { state: "paused", why, remedy: Some("`ebbtide resume --projection mine`"), ..MINE })
                .await;
            stage.sql("update public.switch set fails = false").await;
            stage.told(&["resume", "--projection", "mine"]).await;
            stage.is_well().await;
        }),
        way("a block is missing", async {
            let (stage, _process) = applied().await;
            stage.branch("a", 5, 5, "a4").await;
            let must = Must {
                state: "broken",
                why: "block 4 is missing below block 5",
                remedy: Some("put_block"),
                ..BALANCES
            };
            stage.agree(must).await;
            stage.branch("a", 4, 4, "a3").await;
            stage.is_well().await;
        }),
        way("blocks are missing below the first", async {
            let stage = Stage::written().await;
            stage.sql("update chains set start_height = 1").await;
            let _process = stage.process(&[]);
            stage.branch("a", 4, 5, "a3").await;
            let why = "blocks 1 to 3 are missing below block 4";
            stage.agree(Must { state: "broken", why, remedy: Some("drop_blocks('main', 4)"), ..BALANCES }).await;
            stage.branch("a", 1, 3, "a0").await;
            stage.is_well().await;
        }),
        way("a block on another parent", async {
            let (stage, _process) = applied().await;
            stage.sql("insert into blocks (chain_id, height, hash, parent_hash) select chain_id, 4, 'a4', 'b3' from chains").await;
            let why = "block 4 (a4) names the parent \"b3\", but block 3 is a3";
            stage.agree(Must { state: "broken", why, remedy: Some("select drop_blocks('main', 4)"), ..BALANCES }).await;
            stage.sql("select drop_blocks('main', 4)").await;
            stage.is_well().await;
        }),
        way("a block whose events are not all there", async {
            let (stage, _process) = applied().await;
            stage
                .sql(
                    "insert into blocks (chain_id, height, hash, parent_hash, event_count)
                     select chain_id, 4, 'a4', 'a3', 1 from chains",
                )
                .await;
            let why = "block 4 announced 1 events, and 0 are there";
            stage.agree(Must { state: "waiting", why, remedy: Some("write the others"), ..BALANCES }).await;
            stage
                .sql(
                    "insert into token_events (chain_id, height, tx_index, event_index, token, to_address, amount)
                     select chain_id, 4, 0, 0, 'gold', 'alice', 1 from chains",
                )
                .await;
            stage.is_well().await;
        }),
        way("somebody holds the checkpoint", async {
            let (stage, _process) = applied().await;
            let holder = stage.pg.client().await;
            holder.batch_execute("begin; select from checkpoints for update").await.unwrap();
            stage.branch("a", 4, 4, "a3").await;
            let pid = stage.one("select pid from pg_stat_activity where query like '%from checkpoints for update' and state like 'idle in%'").await;
            let remedy = format!("select pg_terminate_backend({pid})");
            stage.agree(Must { state: "waiting", why: "idle in transaction", remedy: Some(&remedy), ..BALANCES }).await;
            stage.sql(&remedy).await;
            stage.is_well().await;
        }),
        two_are_held_by_two(
            "two are held by two",
            "select from checkpoints where projection = 'token_balances' for update",
        ),
        two_are_held_by_two("somebody locks a table of the balances", "lock table token_totals in exclusive mode"),
        way("held by a lock that tells nothing", async {
            let stage = Stage::written().await;
            projection(&stage, "mine", "perform pg_advisory_xact_lock(77);", "").await;
            let holder = stage.pg.client().await;
            holder.batch_execute("select pg_advisory_lock(77)").await.unwrap();
            let pid: i32 = holder.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
            stage.branch("a", 1, 3, "a0").await;
            let _process = stage.process(&[]);
            let why = format!("one of our sessions waits for a lock that server process {pid} ");
            let remedy = format!("select pg_terminate_backend({pid})");
            stage.agree(Must { state: "waiting", why: &why, remedy: Some(&remedy), ..MINE }).await;
            stage.sql(&remedy).await;
            stage.is_well().await;
        }),
        way("it stands on a block that was replaced", async {
            let stage = Stage::written().await;
            projection(&stage, "mine", "", "").await;
            stage.branch("a", 1, 3, "a0").await;
            let _process = stage.process(&[]);
            stage.is_well().await;
            let holder = stage.pg.client().await;
            holder.batch_execute("begin; select from public.mine where height = 3 for update").await.unwrap();
            stage.branch("b", 3, 3, "a2").await;
            stage
                .agree(Must { state: "waiting", why: "for a lock", remedy: Some("pg_terminate_backend"), ..MINE })
                .await;
            let row = crate::of_status(&stage.status(&["--json"]).await.1, "mine");
            assert_eq!((&row["lag_blocks"], &row["applied_hash"]), (&1.into(), &"a3".into()), "{row}");
            let seconds = async || crate::of_status(&stage.status(&["--json"]).await.1, "mine")["lag_seconds"].as_f64();
            let before = seconds().await.unwrap();
            wait_until("the lag grows", async || (seconds().await? > before).then_some(())).await;
            holder.batch_execute("rollback").await.unwrap();
            stage.is_well().await;
        }),
        way("Postgres refuses to leave a branch", async {
            let (stage, _process) = applied().await;
            stage
                .sql(
                    "create function public.full() returns trigger language plpgsql as $$
                     begin raise exception 'no space left on device' using errcode = '53100'; end $$;
                     create trigger full_disk before insert on reorgs for each row execute function public.full()",
                )
                .await;
            stage.branch("b", 3, 4, "a2").await;
            stage
                .agree(Must { state: "failing", why: "no space left on device", remedy: Some("fix"), ..BALANCES })
                .await;
            stage.sql("drop trigger full_disk on reorgs").await;
            stage.is_well().await;
        }),
        way("catching up", async {
            let stage = Stage::written().await;
            projection(&stage, "mine", "perform pg_sleep(0.4);", "").await;
            stage.branch("a", 1, 30, "a0").await;
            let _process = stage.process(&[]);
            stage.agree(Must { state: "catching_up", why: "blocks behind", remedy: None, ..MINE }).await;
            stage.sql("select drop_projection('mine')").await;
            stage.is_well().await;
        }),
        way("nobody applies it", async {
            let (stage, _process) = applied().await;
            stage.sql("insert into projections (name) values ('code')").await;
            let must = Must {
                part: "code",
                state: "silent",
                why: "no running program applies it",
                remedy: Some("drop_projection('code')"),
            };
            stage.agree(must).await;
            stage.sql("select drop_projection('code')").await;
            stage.is_well().await;
        }),
        way("one that follows a paused one", async {
            let stage = Stage::written().await;
            projection(&stage, "mine", "", ", after => 'token_balances'").await;
            stage.branch("a", 1, 2, "a0").await;
            let _process = stage.process(&[]);
            stage.is_well().await;
            stage.told(&["pause", "--projection", "token_balances"]).await;
            stage.branch("a", 3, 3, "a2").await;
            let why = "for token_balances, which is paused";
            stage.agree(Must { state: "waiting", why, remedy: Some("see to that one"), ..MINE }).await;
            stage.told(&["resume", "--projection", "token_balances"]).await;
            stage.is_well().await;
        }),
        way("a transaction that takes long", async {
            let stage = Stage::written().await;
            projection(&stage, "mine", "perform pg_sleep(0.5) from public.switch where not fails;", "").await;
            stage.branch("a", 1, 12, "a0").await;
            let _process = stage.process(&[]);
            stage.is_well().await;
            stage.sql("update chains set final_height = 12; update public.switch set fails = false").await;
            stage.sql("select replay('main', 1, 'mine')").await;
            stage
                .agree(Must {
                    state: "behind",
                    why: "12 blocks behind, without a move for",
                    remedy: Some("log"),
                    ..MINE
                })
                .await;
            stage.is_well().await;
        }),
    ]
}
