//! Projections that run after the balances: holders of each token, counted from the balances at just this block.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ebbtide::chain::verdict::{PartSays, Says, State};
use ebbtide::process::{ProcessError, ProcessSettings, Unwatched, run};
use ebbtide::projections::token_balances::History;
use ebbtide::store::{Store, StoreSettings, Wake, WakeMode};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::support::{Ebbtide, Pg, wait_until};

const HOLDERS: &str = "
    create table public.holders (chain_id bigint, token text, holders bigint not null, primary key (chain_id, token));
    create function public.count_holders(bigint, bigint) returns void language plpgsql as $$
    begin
        insert into holders as h (chain_id, token, holders)
        select $1, b.token, count(*) from balances b
        where b.chain_id = $1 and b.amount > 0
          and b.token in (select c.token from balance_changes c where c.chain_id = $1 and c.height = $2)
        group by b.token
        on conflict (chain_id, token) do update set holders = excluded.holders;
    end $$;";
const FOLLOW: &str = "select create_projection('holders', 'public.count_holders(bigint,bigint)', '{public.holders}', after => 'token_balances')";

struct Gold {
    pg: Pg,
    client: Client,
    hashes: Vec<String>,
    made: u32,
}

impl Gold {
    async fn new() -> Gold {
        let pg = Pg::new().await;
        let client = pg.client().await;
        client.batch_execute("insert into chains (name, kind) values ('main', 'other')").await.unwrap();
        Gold { pg, client, hashes: vec!["root".to_owned()], made: 0 }
    }

    /// A block with transfers of gold: (from, to, amount).
    async fn put(&mut self, height: usize, transfers: &[(Option<&str>, &str, u64)]) {
        self.made += 1;
        let hash = format!("h{height}n{}", self.made);
        self.hashes.truncate(height);
        let events: Vec<Value> = (0..)
            .zip(transfers)
            .map(|(i, (from, to, amount))| {
                json!({"tx_index": 0, "event_index": i, "token": "gold", "from_address": from, "to_address": to, "amount": amount})
            })
            .collect();
        let parent = self.hashes[height - 1].clone();
        self.client
            .execute(
                "select put_block('main', $1, $2, $3, now(), '[]', $4)",
                &[&(height as i64), &hash, &parent, &Value::Array(events)],
            )
            .await
            .unwrap();
        self.hashes.push(hash);
    }

    /// A block of a fixed name with one coin for somebody.
    async fn put_at(&self, height: i64, to: &str) {
        let event = json!([{"tx_index": 0, "event_index": 0, "token": "gold", "from_address": null, "to_address": to, "amount": 1}]);
        let sql = "select put_block('main', $1::bigint, 'h' || $1::bigint, 'h' || $1::bigint - 1, now(), '[]', $2)";
        self.client.execute(sql, &[&height, &event]).await.unwrap();
    }

    async fn settle(&self) {
        let tip = self.hashes.last().unwrap();
        let mut last = Vec::new();
        wait_until(&format!("both stand on {tip}"), async || {
            let sql = "select projection, hash, failed_reason, halted_reason from checkpoints order by 1";
            let rows = self.client.query(sql, &[]).await.unwrap();
            let seen: Vec<_> = rows
                .iter()
                .map(|r| {
                    (
                        r.get::<_, String>(0),
                        r.get::<_, Option<String>>(1),
                        r.get::<_, Option<String>>(2),
                        r.get::<_, Option<String>>(3),
                    )
                })
                .collect();
            if seen != last {
                println!("{seen:?}");
                last.clone_from(&seen);
            }
            (seen.len() == 2 && seen.iter().all(|s| s.1.as_ref() == Some(tip))).then_some(())
        })
        .await;
    }

    async fn holders(&self) -> Option<i64> {
        let row = self.client.query_opt("select holders from public.holders where token = 'gold'", &[]).await.unwrap();
        row.map(|r| r.get(0))
    }

    /// In one snapshot, whenever asked, the holders are those of the balances.
    async fn agree(&self) -> (Option<i64>, i64) {
        let row = self
            .client
            .query_one(
                "select (select holders from public.holders), (select count(*) from balances where amount > 0),
                    (select hash from checkpoints where projection = 'holders'),
                    (select hash from checkpoints where projection = 'token_balances')",
                &[],
            )
            .await
            .unwrap();
        let (a, b): (Option<String>, Option<String>) = (row.get(2), row.get(3));
        if a == b && a.is_some() {
            assert_eq!(row.get::<_, Option<i64>>(0), Some(row.get::<_, i64>(1)), "at {a:?}");
        }
        (row.get(0), row.get(1))
    }

    /// A processor in this test, whose statements may run for half a second.
    fn impatient(&self, history: History) -> (CancellationToken, JoinHandle<Result<(), ProcessError>>) {
        let limits = StoreSettings { statement_timeout: Duration::from_millis(500), ..StoreSettings::default() };
        let store = Store::open(&self.pg.url, limits).unwrap();
        let (wake, stop) = (Wake::start(&store, WakeMode::Listen), CancellationToken::new());
        let mut settings = ProcessSettings::default();
        settings.token_balances.history = history;
        (stop.clone(), tokio::spawn(run(store, settings, wake, Arc::new(Unwatched), stop)))
    }

    /// From now on a copy of the balances takes so many seconds longer.
    async fn slow_copies(&self, seconds: u32) {
        let sql = format!(
            "alter function ebbtide.fill_replica(bigint, bigint, text) rename to fill_at_once;
             create function ebbtide.fill_replica(bigint, bigint, text) returns void language plpgsql
             set search_path = ebbtide, pg_temp as $$
             begin perform pg_sleep({seconds}); perform fill_at_once($1, $2, $3); end $$"
        );
        self.client.batch_execute(&sql).await.unwrap();
    }

    fn process(&self) -> Ebbtide {
        Ebbtide::spawn(&["process", "--database-url", &self.pg.url], &[])
    }
}

#[tokio::test]
async fn a_follower_from_the_start_goes_with_every_block_and_every_reorganisation() {
    let mut gold = Gold::new().await;
    gold.client.batch_execute(HOLDERS).await.unwrap();
    gold.client.batch_execute(FOLLOW).await.unwrap();
    let _process = gold.process();
    let mut counts = Vec::new();
    for height in 1..=6 {
        gold.put(height, &[(None, &format!("a{height}"), 5)]).await;
        gold.settle().await;
        counts.push(gold.holders().await);
    }
    assert_eq!(counts, (1..=6).map(Some).collect::<Vec<_>>());
    for depth in 1..=6 {
        let left = 6 - depth;
        gold.put(left + 1, &[(None, "other", 1)]).await;
        gold.settle().await;
        assert_eq!(gold.holders().await, Some(left as i64 + 1));
        for height in left + 1..=6 {
            gold.put(height, &[(None, &format!("a{height}"), 5)]).await;
            gold.agree().await;
        }
        gold.settle().await;
        assert_eq!(gold.holders().await, Some(6));
    }
    // They went together: a follower on its own way would have made a replica.
    let alone: i64 = gold
        .client
        .query_one("select count(*) from pg_class where relname = 'ebbtide_replica'", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(alone, 0);
}

#[tokio::test]
async fn a_follower_added_later_catches_up_by_itself_and_then_goes_along() {
    let mut gold = Gold::new().await;
    let _process = gold.process();
    gold.client.batch_execute("insert into opening_balances values (1, 'gold', 'opened', 7)").await.unwrap();
    for height in 1..=40 {
        // Everybody hands on to the next: never more than two hold any, and one that was there before.
        let from = (height > 1).then(|| format!("a{}", height - 1));
        gold.put(height, &[(from.as_deref(), &format!("a{height}"), 5)]).await;
    }
    wait_until("the balances are there", async || {
        gold.client.query_opt("select from checkpoints where height = 40", &[]).await.unwrap()
    })
    .await;
    // The most it ever counted: at the wrong height it would be another number.
    gold.client
        .batch_execute(
            "create table public.holders (chain_id bigint, token text, holders bigint not null, seen text not null, primary key (chain_id, token));
             create function public.count_holders(bigint, bigint) returns void language plpgsql as $$
             begin
                insert into holders as h (chain_id, token, holders, seen)
                select $1, 'gold', count(*), string_agg(address, ',' order by address) from balances where chain_id = $1 and amount > 0
                on conflict (chain_id, token) do update set holders = excluded.holders, seen = h.seen || ' ' || excluded.seen;
             end $$",
        )
        .await
        .unwrap();
    gold.client.batch_execute(FOLLOW).await.unwrap();
    gold.settle().await;
    gold.put(41, &[(Some("a40"), "a41", 5)]).await;
    gold.settle().await;
    // Over the place where it caught up.
    gold.put(39, &[(Some("a38"), "b", 5)]).await;
    gold.put(40, &[(Some("b"), "c", 5)]).await;
    gold.settle().await;
    let seen: String = gold.client.query_one("select seen from public.holders", &[]).await.unwrap().get(0);
    let expected: Vec<String> =
        (1..=38).map(|h| format!("a{h},opened")).chain(["b,opened".to_owned(), "c,opened".to_owned()]).collect();
    assert_eq!(seen, expected.join(" "));
}

#[tokio::test]
async fn a_follower_that_fails_is_left_behind_and_comes_back() {
    let mut gold = Gold::new().await;
    gold.client.batch_execute(HOLDERS).await.unwrap();
    gold.client
        .batch_execute(
            "create table public.trouble (at bigint);
             create function public.count_or_fail(bigint, bigint) returns void language plpgsql as $$
             begin
                 if exists (select from trouble where at = $2) then raise exception 'no more at %', $2; end if;
                 perform count_holders($1, $2);
             end $$;
             insert into public.trouble values (3);
             select create_projection('holders', 'public.count_or_fail(bigint,bigint)', '{public.holders}', after => 'token_balances')",
        )
        .await
        .unwrap();
    let _process = gold.process();
    for height in 1..=6 {
        gold.put(height, &[(None, &format!("a{height}"), 5)]).await;
    }
    wait_until("the balances go on", async || {
        gold.client
            .query_opt("select from checkpoints where projection = 'token_balances' and height = 6", &[])
            .await
            .unwrap()
    })
    .await;
    let why = wait_until("the follower says why", async || {
        let sql = "select failed_reason from checkpoints where projection = 'holders' and height = 2 and failures > 1";
        gold.client.query_opt(sql, &[]).await.unwrap().and_then(|r| r.get::<_, Option<String>>(0))
    })
    .await;
    assert!(why.contains("block 3") && why.contains("no more at 3"), "{why}");
    assert_eq!(gold.holders().await, Some(2));
    gold.client.batch_execute("delete from public.trouble").await.unwrap();
    gold.settle().await;
    assert_eq!(gold.holders().await, Some(6));
    gold.put(7, &[(Some("a1"), "a2", 5)]).await;
    gold.settle().await;
    assert_eq!(gold.holders().await, Some(5));
}

/// One whose checkpoint came into being when the other was further on already: its first block is the first one.
#[tokio::test]
async fn a_follower_does_not_begin_in_the_middle() {
    let mut gold = Gold::new().await;
    gold.client.batch_execute(HOLDERS).await.unwrap();
    gold.client.batch_execute(FOLLOW).await.unwrap();
    for height in 1..=4 {
        gold.put(height, &[(None, &format!("a{height}"), 5)]).await;
    }
    gold.client
        .batch_execute("set ebbtide.ledger = on; insert into checkpoints (chain_id, projection) values (1, 'holders')")
        .await
        .unwrap();
    let follow = async |height: i64| -> i64 {
        let sql = "select follow_block(1, 'token_balances', $1::bigint - 1, $2, $1, $3, 1, 1, true)";
        let (before, hash) = (&gold.hashes[height as usize - 1], &gold.hashes[height as usize]);
        gold.client.query_one(sql, &[&height, before, hash]).await.unwrap().get(0)
    };
    assert_eq!(follow(4).await, 0);
    assert_eq!(follow(1).await, 1);
    assert_eq!(follow(3).await, 0);
    assert_eq!(follow(2).await, 1);
}

#[tokio::test]
async fn a_follower_that_would_read_balances_of_another_block_is_refused() {
    let gold = Gold::new().await;
    gold.client.batch_execute(HOLDERS).await.unwrap();
    for body in [
        "language plpgsql as $$ begin perform from ebbtide.balances; end $$",
        "language plpgsql as $$ begin perform from ebbtide.token_totals; end $$",
        "language plpgsql set search_path = ebbtide as $$ begin perform from balances; end $$",
        "language sql begin atomic select from ebbtide.balances; end",
    ] {
        gold.client
            .batch_execute(&format!(
                "drop function public.count_holders(bigint, bigint);
                 create function public.count_holders(bigint, bigint) returns void {body}"
            ))
            .await
            .unwrap();
        let error = gold.client.batch_execute(FOLLOW).await.expect_err(body);
        assert_eq!(error.as_db_error().unwrap().constraint(), Some("followers_read_balances_by_its_short_name"));
    }
}

#[tokio::test]
async fn reading_the_live_balances_through_a_view_is_found_while_catching_up() {
    let mut gold = Gold::new().await;
    let _process = gold.process();
    gold.put(1, &[(None, "a", 5)]).await;
    wait_until("the balances are there", async || {
        gold.client.query_opt("select from checkpoints where height = 1", &[]).await.unwrap()
    })
    .await;
    gold.client.batch_execute(HOLDERS).await.unwrap();
    gold.client
        .batch_execute(
            "create view public.rich as select * from ebbtide.balances;
             create or replace function public.count_holders(bigint, bigint) returns void language plpgsql as $$
             begin insert into holders select $1, 'gold', count(*) from rich; end $$",
        )
        .await
        .unwrap();
    gold.client.batch_execute(FOLLOW).await.unwrap();
    wait_until("it is refused", async || {
        let sql = "select failed_reason from checkpoints where projection = 'holders'";
        let why = gold.client.query_opt(sql, &[]).await.unwrap().and_then(|r| r.get::<_, Option<String>>(0));
        why.filter(|w| w.contains("through a view"))
    })
    .await;
}

#[tokio::test]
async fn a_follower_counts_what_the_ledger_counts() {
    let mut gold = Gold::new().await;
    let process = gold.process();
    for height in 1..=4 {
        gold.put(height, &[(None, &format!("a{height}"), 5)]).await;
    }
    // Blocks below the start are stored and do not count; neither does an event at a height without a block.
    gold.client
        .batch_execute(
            "update chains set start_height = 3, complete_to = 6;
             insert into token_events (chain_id, height, tx_index, event_index, token, to_address, amount)
             select chain_id, 5, 0, 0, 'gold', 'stray', 7 from chains",
        )
        .await
        .unwrap();
    gold.hashes.push("none at 5".to_owned());
    gold.put(6, &[(None, "a6", 5)]).await;
    gold.client.batch_execute("update chains set complete_to = 6").await.unwrap();
    wait_until("the ledger begins at its start, and passes the empty height", async || {
        let sql = "select 1 from checkpoints where start_height = 3 and height = 6 and redo_from is null";
        gold.client.query_opt(sql, &[]).await.unwrap()
    })
    .await;
    gold.client.batch_execute(HOLDERS).await.unwrap();
    gold.client.batch_execute(FOLLOW).await.unwrap();
    gold.settle().await;
    assert_eq!(gold.agree().await, (Some(3), 3));
    drop(process);
}

/// The model test found it: without undo that reaches below it, the ledger begins again and comes back to the same last block,
/// and the follower stood there still.
#[tokio::test]
async fn a_follower_is_not_left_on_a_block_that_was_edited_under_its_name() {
    let gold = Gold::new().await;
    gold.client.batch_execute("update chains set finality_depth = 3").await.unwrap();
    let once = || Ebbtide::succeed(&["process", "--once", "--history", "window", "--database-url", &gold.pg.url], &[]);
    for (height, to) in [(3, "a"), (4, "b"), (5, "c")] {
        gold.put_at(height, to).await;
    }
    once();
    gold.client.batch_execute(HOLDERS).await.unwrap();
    gold.client.batch_execute(FOLLOW).await.unwrap();
    gold.client.batch_execute("update chains set complete_to = 9 where true").await.unwrap();
    once();
    assert_eq!(gold.holders().await, Some(3));
    gold.client.batch_execute("delete from blocks where height = 3").await.unwrap();
    gold.put_at(3, "b").await;
    once();
    assert_eq!(gold.holders().await, Some(2), "of b and c; a is gone with the edit");
}

/// The replica of the balances is made from them and their history: no event is read, however many there are.
#[tokio::test]
async fn a_replica_is_filled_without_a_look_at_the_events() {
    let mut gold = Gold::new().await;
    gold.client
        .batch_execute(
            "set ebbtide.write_tracked_tables = on;
             insert into opening_balances select chain_id, 'gold', 'old', 7 from chains",
        )
        .await
        .unwrap();
    for (height, block) in [
        (1, vec![(None, "a", 10), (None, "b", 5)]),
        (2, vec![(Some("a"), "c", 10)]),
        (3, vec![(Some("b"), "a", 1), (Some("old"), "d", 7)]),
        (4, vec![(Some("c"), "e", 2)]),
    ] {
        gold.put(height, &block).await;
    }
    Ebbtide::succeed(&["process", "--once", "--database-url", &gold.pg.url], &[]);
    let chain: i64 = gold.client.query_one("select chain_id from chains", &[]).await.unwrap().get(0);
    let rows =
        "select string_agg(token || ' ' || address || ' ' || amount, ', ' order by address) from pg_temp.balances";
    let reads = "select pg_stat_get_xact_numscans('ebbtide.token_events'::regclass)
        + pg_stat_get_xact_numscans('ebbtide.token_events_pkey'::regclass)";
    let fill = async |height: i64| -> (Option<String>, i64) {
        gold.client.batch_execute("begin").await.unwrap();
        let hash = gold.hashes[usize::try_from(height).unwrap()].clone();
        // Those of the transactions before are counted until the server takes them over.
        let before: i64 = gold.client.query_one(reads, &[]).await.unwrap().get(0);
        gold.client.execute("select fill_replica($1, $2, $3)", &[&chain, &height, &hash]).await.unwrap();
        let filled = gold.client.query_one(rows, &[]).await.unwrap().get(0);
        let read: i64 = gold.client.query_one(reads, &[]).await.unwrap().get(0);
        gold.client.batch_execute("rollback").await.unwrap();
        (filled, read - before)
    };
    let expected = [
        (1, "gold a 10, gold b 5, gold old 7"),
        (2, "gold a 0, gold b 5, gold c 10, gold old 7"),
        (3, "gold a 1, gold b 4, gold c 10, gold d 7, gold old 0"),
        (4, "gold a 1, gold b 4, gold c 8, gold d 7, gold e 2, gold old 0"),
    ];
    for (height, balances) in expected {
        assert_eq!(fill(height).await, (Some(balances.to_owned()), 0), "at {height}");
    }
    // Where the balances do not follow from what stands, or their history ends above, the events say the same.
    for (otherwise, back) in [
        ("update checkpoints set history_from = 4", "update checkpoints set history_from = null"),
        ("update checkpoints set redo_from = 9", "update checkpoints set redo_from = null"),
        (
            "update applied_blocks set revision = -revision where height = 2",
            "update applied_blocks set revision = abs(revision)",
        ),
    ] {
        gold.client.batch_execute(otherwise).await.unwrap();
        let (filled, read) = fill(3).await;
        assert_eq!(filled.as_deref(), Some(expected[2].1), "{otherwise}");
        assert!(read > 0, "{otherwise}");
        gold.client.batch_execute(back).await.unwrap();
    }
}

/// A copy takes as long as there are accounts: the limit of a statement is not for it.
#[tokio::test]
async fn a_replica_that_takes_longer_than_a_statement_may_is_filled() {
    for (history, args) in [(History::Full, "full"), (History::Window, "window")] {
        let mut gold = Gold::new().await;
        gold.client.batch_execute("update chains set finality_depth = 3").await.unwrap();
        for height in 1..=8 {
            gold.put(height, &[(None, &format!("a{height}"), 5)]).await;
        }
        // What is applied becomes final, and then its history goes.
        for _ in 0..3 {
            let args = ["process", "--once", "--history", args, "--database-url", &gold.pg.url];
            Ebbtide::succeed(&args, &[]);
        }
        let is_pruned = "select history_from > 0 from checkpoints where projection = 'token_balances'";
        let is_pruned: Option<bool> = gold.client.query_one(is_pruned, &[]).await.unwrap().get(0);
        assert_eq!(is_pruned.unwrap_or_default(), history == History::Window);
        gold.slow_copies(1).await;
        gold.client.batch_execute(HOLDERS).await.unwrap();
        gold.client.batch_execute(FOLLOW).await.unwrap();
        let (stop, running) = gold.impatient(history);
        wait_until("the follower reaches the tip", async || {
            let sql = "select height, failed_reason from checkpoints where projection = 'holders'";
            let row = gold.client.query_opt(sql, &[]).await.unwrap()?;
            assert_eq!(row.get::<_, Option<String>>(1), None);
            (row.get::<_, Option<i64>>(0) == Some(8)).then_some(())
        })
        .await;
        assert_eq!(gold.holders().await, Some(8));
        stop.cancel();
        running.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_long_copy_of_the_balances_is_shown_and_ends_when_it_is_told_to_stop() {
    let mut gold = Gold::new().await;
    for height in 1..=3 {
        gold.put(height, &[(None, &format!("a{height}"), 5)]).await;
    }
    Ebbtide::succeed(&["process", "--once", "--database-url", &gold.pg.url], &[]);
    gold.slow_copies(600).await;
    gold.client.batch_execute(HOLDERS).await.unwrap();
    gold.client.batch_execute(FOLLOW).await.unwrap();
    let (stop, running) = gold.impatient(History::Full);
    let store = Store::open(&gold.pg.url, StoreSettings::default()).unwrap();
    let mut pulse = store.pulse().await.unwrap();
    let says = Says { processor: Some(PartSays::default()), ..Says::default() };
    wait_until("the copy is what it waits for", async || {
        pulse.beat("of the test", "process", None, &says).await.unwrap();
        let standing = pulse.standing().await.unwrap();
        let holders = standing.iter().find(|s| s.projection.as_deref() == Some("holders"))?;
        (holders.verdict.state == State::CatchingUp && holders.verdict.reason.as_ref()?.contains("are being copied"))
            .then_some(())
    })
    .await;
    let begun = Instant::now();
    stop.cancel();
    running.await.unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(3), "it took {:?} to stop", begun.elapsed());
    wait_until("the server does not go on with it", async || {
        let sql = "select count(*) from pg_stat_activity where datname = current_database() and state = 'active'
                   and pid <> pg_backend_pid()";
        (gold.client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 0).then_some(())
    })
    .await;
    let shown: i64 = gold.client.query_one("select count(*) from rebuilds", &[]).await.unwrap().get(0);
    assert_eq!(shown, 0);
}

#[tokio::test]
async fn a_follower_that_comes_late_reads_the_totals_of_each_block() {
    let mut gold = Gold::new().await;
    gold.client.batch_execute("insert into opening_balances values (1, 'gold', 'opened', 7)").await.unwrap();
    let _process = gold.process();
    for height in 1..=6 {
        // In block 4 nothing is added.
        let from = (height == 4).then_some("a3");
        gold.put(height, &[(from, &format!("a{height}"), 5)]).await;
    }
    wait_until("the balances are there", async || {
        gold.client.query_opt("select from checkpoints where height = 6", &[]).await.unwrap()
    })
    .await;
    gold.client
        .batch_execute(
            "create table public.sums (chain_id bigint, height bigint, total numeric not null, primary key (chain_id, height));
             create function public.sum_up(bigint, bigint) returns void language sql as $$
                insert into sums select $1, $2, total from token_totals where chain_id = $1 and token = 'gold' $$;
             select create_projection('sums', 'public.sum_up(bigint,bigint)', '{public.sums}', after => 'token_balances');
             -- That of a processor that was killed.
             insert into rebuilds (chain_id, projection, reason, from_height, at_height, to_height) values (1, 'sums', 'x', 0, 0, 0)",
        )
        .await
        .unwrap();
    gold.settle().await;
    gold.put(7, &[(None, "a7", 5)]).await;
    gold.settle().await;
    let sums: String = gold
        .client
        .query_one("select string_agg(total::text, ' ' order by height) from public.sums", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(sums, "12 17 22 22 27 32 37");
    let shown: i64 = gold.client.query_one("select count(*) from rebuilds", &[]).await.unwrap().get(0);
    assert_eq!(shown, 0);
}

/// Whoever has not begun is not told of opening balances that change: a copy of before the start must find it out.
#[tokio::test]
async fn a_replica_of_before_the_start_does_not_outlive_its_opening_balances() {
    let gold = Gold::new().await;
    let stands = async |hash: Option<&str>| -> bool {
        gold.client.query_one("select replica_stands(1, 0, $1)", &[&hash]).await.unwrap().get(0)
    };
    for (hash, outlives) in [(None, false), (Some("h0"), true)] {
        assert!(!stands(hash).await);
        gold.client.execute("select fill_replica(1, 0, $1)", &[&hash]).await.unwrap();
        assert!(stands(hash).await);
        gold.client
            .execute("insert into opening_balances values (1, 'gold', $1, 7)", &[&format!("{hash:?}")])
            .await
            .unwrap();
        assert_eq!(stands(hash).await, outlives);
        gold.client.execute("select drop_replica()", &[]).await.unwrap();
    }
}
