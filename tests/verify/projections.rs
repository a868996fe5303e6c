//! `ebbtide verify` for projections of SQL functions and the option vaults, and `--fuzz`.

use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::support::{self, Ebbtide, Pg};

/// What `verify` says: whether it found nothing, and its lines.
fn verify(pg: &Pg, more: &[&str]) -> (bool, Vec<String>) {
    let args: Vec<&str> = ["verify", "--database-url", &pg.url].into_iter().chain(more.iter().copied()).collect();
    let output = Ebbtide::output(&args, &[]);
    let code = output.status.code();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(matches!(code, Some(0 | 1)) && stderr.is_empty(), "verify ended with {code:?}: {stderr}");
    (code == Some(0), String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect())
}

fn clean(pg: &Pg, more: &[&str]) -> Vec<String> {
    let (clean, lines) = verify(pg, more);
    println!("{}", lines.join("\n"));
    assert!(clean && lines.iter().all(|line| line.ends_with("no difference.")), "{}", lines.join("\n"));
    lines
}

/// Does the damage, asks for a line with each of these words, mends it, and asks again.
async fn damage(pg: &Pg, db: &Client, name: &str, harm: &str, mend: &str, words: &[&str]) {
    db.batch_execute("set ebbtide.write_tracked_tables = on").await.unwrap();
    db.batch_execute(harm).await.unwrap_or_else(|e| panic!("{harm}: {e:?}"));
    let (is_clean, lines) = verify(pg, &[name]);
    let text = lines.join("\n");
    println!("{text}");
    assert!(!is_clean, "not found: {harm}\n{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not named after {harm}:\n{text}");
    }
    db.batch_execute(mend).await.unwrap_or_else(|e| panic!("{mend}: {e:?}"));
    clean(pg, &[name]);
}

/// Volume and last receiver of each token, and a log with a number from a sequence; both tables of one projection.
const VOLUME: &str = "
    create table public.volume (chain_id bigint, token text, volume numeric not null, seen text not null,
        primary key (chain_id, token));
    create table public.moves (chain_id bigint, height bigint, place bigint, serial bigint generated always as identity,
        amount numeric not null, weight double precision, raw json, primary key (chain_id, height, place));
    create function public.add_volume(chain bigint, at bigint) returns void language plpgsql as $$
    begin
        insert into volume as v (chain_id, token, volume, seen)
        select chain, t.token, sum(t.amount), max(coalesce(t.to_address, '-'))
        from token_events t where t.chain_id = chain and t.height = at group by t.token
        on conflict (chain_id, token) do update
        set volume = v.volume + excluded.volume, seen = excluded.seen;
        insert into moves (chain_id, height, place, amount, weight, raw)
        select chain, at, t.tx_index * 1000 + t.event_index, t.amount, t.amount / 3, json_build_object('token', t.token)
        from token_events t where t.chain_id = chain and t.height = at;
    end $$;
    select ebbtide.create_projection('volume', 'public.add_volume(bigint,bigint)', '{public.volume,public.moves}');";

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
    end $$;
    select ebbtide.create_projection('holders', 'public.count_holders(bigint,bigint)', '{public.holders}',
        after => 'token_balances');";

async fn database(ddl: &[&str]) -> (Pg, Client) {
    let pg = Pg::new().await;
    let db = pg.client().await;
    db.batch_execute("insert into chains (name, kind) values ('main', 'other')").await.unwrap();
    for ddl in ddl {
        db.batch_execute(ddl).await.unwrap_or_else(|e| panic!("{e:?}"));
    }
    (pg, db)
}

/// Blocks from a height to another, on the block below, with a few transfers each; then one run of the processor.
async fn blocks(pg: &Pg, db: &Client, from: i64, to: i64, tag: &str) {
    for height in from..=to {
        let parent: Option<String> = db
            .query_opt("select hash from blocks where height = $1", &[&(height - 1)])
            .await
            .unwrap()
            .map(|row| row.get(0));
        let events: Vec<Value> = (0..3)
            .map(|n: i64| {
                json!({"tx_index": 0, "event_index": n, "token": (if (height + n) % 2 == 0 { "gold" } else { "silver" }),
                       "to_address": format!("a{}", (height * 7 + n * n + tag.len() as i64) % 5), "amount": height + n})
            })
            .collect();
        db.execute(
            "select put_block('main', $1, $2, $3, now(), '[]', $4)",
            &[&height, &format!("{tag}{height}"), &parent.unwrap_or_default(), &Value::Array(events)],
        )
        .await
        .unwrap();
    }
    Ebbtide::succeed(&["process", "--database-url", &pg.url, "--once"], &[]);
}

/// Ten blocks, and reorganisations of depth one and four.
async fn reorganised(pg: &Pg, db: &Client) {
    blocks(pg, db, 1, 10, "a").await;
    blocks(pg, db, 10, 11, "bb").await;
    blocks(pg, db, 8, 12, "ccc").await;
}

#[tokio::test]
async fn honest_projections_are_clean_after_reorganisations_and_nothing_is_changed() {
    let (pg, db) = database(&[VOLUME, HOLDERS]).await;
    reorganised(&pg, &db).await;
    let state = "select jsonb_build_object('volume', (select jsonb_agg(v) from public.volume v),
                    'moves', (select jsonb_agg(m) from public.moves m), 'holders', (select jsonb_agg(h) from public.holders h),
                    'at', (select jsonb_agg(k) from checkpoints k), 'blocks', (select jsonb_agg(a) from applied_blocks a))::text";
    let before: String = db.query_one(state, &[]).await.unwrap().get(0);
    let lines = clean(&pg, &[]);
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[0].starts_with("Recomputed 1 chains (12 blocks"), "{lines:?}");
    assert_eq!(
        lines[1],
        "Verified holders on main: 12 blocks up to 12 applied again, 2 rows, 24 rows of undo, taken back to 3 heights: no difference."
    );
    assert_eq!(
        lines[2],
        "Verified volume on main: 12 blocks up to 12 applied again, 38 rows, 60 rows of undo, taken back to 3 heights: no difference."
    );
    assert_eq!(clean(&pg, &["holders"]).len(), 1, "a follower alone");
    assert_eq!(clean(&pg, &["token_balances"]).len(), 1);
    let after: String = db.query_one(state, &[]).await.unwrap().get(0);
    assert_eq!(before, after);
    // The processor goes on from there.
    blocks(&pg, &db, 11, 14, "d").await;
    clean(&pg, &[]);
}

#[tokio::test]
async fn damage_to_rows_and_to_undo_is_found_and_named() {
    let (pg, db) = database(&[VOLUME, HOLDERS]).await;
    reorganised(&pg, &db).await;
    let undo: i64 =
        db.query_one("select id from tracked_tables where relation = 'public.volume'", &[]).await.unwrap().get(0);
    let keep = format!(
        "create table public.kept as table public.moves;
         create table public.kept_undo as table undo_{undo};"
    );
    db.batch_execute(&keep).await.unwrap();
    let cases = [
        (
            "volume",
            "update public.volume set volume = volume + 1 where token = 'gold'".to_owned(),
            "update public.volume set volume = volume - 1 where token = 'gold'".to_owned(),
            vec!["main: volume: public.volume: only in the table {", "public.volume: only recomputed {", "2 differences."],
        ),
        (
            "volume",
            "delete from public.moves where height = 5 and place = 1".to_owned(),
            "insert into public.moves overriding system value select * from public.kept where height = 5 and place = 1"
                .to_owned(),
            vec!["public.moves: only recomputed {", "\"height\": 5", "1 difference."],
        ),
        (
            "volume",
            "insert into public.volume values (1, 'lead', 1, 'x')".to_owned(),
            "delete from public.volume where token = 'lead'".to_owned(),
            vec!["public.volume: only in the table {", "lead"],
        ),
        // The last block's undo has another image; the tables are right.
        (
            "volume",
            format!("update undo_{undo} set c3 = c3 + 1 where height = 12"),
            format!("update undo_{undo} set c3 = c3 - 1 where height = 12"),
            vec![
                "volume: undo: public.volume: only in the table {",
                "\"undo of height\": 12",
                "volume: taken back to before block 12: public.volume: only in the table {",
            ],
        ),
        // One that is missing, deep in the window.
        (
            "volume",
            format!("delete from undo_{undo} where height = 4"),
            format!("insert into undo_{undo} select * from public.kept_undo where height = 4"),
            vec!["volume: undo: public.volume: only recomputed {", "\"undo of height\": 4"],
        ),
        // One that cannot be restored.
        (
            "volume",
            format!("insert into undo_{undo} select chain_id, 12, true, 1, c1, 'lead', null, null from undo_{undo} limit 1"),
            format!("delete from undo_{undo} where c2 = 'lead'"),
            vec!["volume: block 12 cannot be taken back: ", "null value"],
        ),
        (
            "holders",
            "update public.holders set holders = 7".to_owned(),
            "update public.holders h set holders = (select count(*) from balances b where b.token = h.token and amount > 0)"
                .to_owned(),
            vec!["main: holders: public.holders: only in the table {", "\"holders\": 7", "4 differences."],
        ),
    ];
    for (name, harm, mend, words) in &cases {
        damage(&pg, &db, name, harm, mend, words).await;
    }
    println!("{} kinds of damage were found", cases.len());
    // Only as many lines as asked for, and how many more there are.
    db.batch_execute("set ebbtide.write_tracked_tables = on; update public.moves set amount = -1").await.unwrap();
    let (is_clean, lines) = verify(&pg, &["volume", "--limit", "2"]);
    assert!(!is_clean);
    assert_eq!(lines.iter().filter(|l| l.contains("only in the table {")).count(), 2, "{lines:?}");
    assert!(lines.contains(&"main: volume: public.moves: only in the table: … and 34 more".to_owned()), "{lines:?}");
    assert!(lines.last().unwrap().ends_with("72 differences."), "{lines:?}");
}

#[tokio::test]
async fn what_is_not_applied_yet_is_a_note_and_the_rest_is_compared() {
    let (pg, db) = database(&[VOLUME]).await;
    reorganised(&pg, &db).await;
    // A branch that the processor has not seen.
    db.batch_execute("select put_block('main', 11, 'x11', 'ccc10'); select put_block('main', 12, 'x12', 'x11')")
        .await
        .unwrap();
    let (is_clean, lines) = verify(&pg, &["volume"]);
    assert!(is_clean, "{lines:?}");
    assert_eq!(
        lines,
        [
            "main: volume: note: from 11 on it is to be applied again, and is compared as it was at 10",
            "Verified volume on main: 10 blocks up to 10 applied again, 32 rows, 50 rows of undo, taken back to 3 heights: no difference."
        ]
    );
    // A function that is another by now, and a block that it cannot take.
    Ebbtide::succeed(&["process", "--database-url", &pg.url, "--once"], &[]);
    clean(&pg, &["volume"]);
    db.batch_execute("alter table public.volume add constraint small check (volume < 20) not valid").await.unwrap();
    let (is_clean, lines) = verify(&pg, &["volume"]);
    assert!(!is_clean && lines[0].contains("volume: block ") && lines[0].contains("\"small\""), "{lines:?}");
    db.batch_execute(
        "create or replace function public.add_volume(chain bigint, at bigint) returns void language sql as ''",
    )
    .await
    .unwrap();
    let (is_clean, lines) = verify(&pg, &["volume"]);
    assert!(is_clean && lines[0].contains("its function changed"), "{lines:?}");
}

#[tokio::test]
async fn a_projection_is_verified_while_the_processor_works() {
    let (pg, db) = database(&[VOLUME, HOLDERS]).await;
    blocks(&pg, &db, 1, 5, "a").await;
    let process = Ebbtide::spawn(&["process", "--database-url", &pg.url], &[]);
    for round in 0..5 {
        for height in 6..=16 {
            let (hash, parent) = (format!("r{round}n{height}"), format!("r{round}n{}", height - 1));
            let parent = if height == 6 { "a5".to_owned() } else { parent };
            db.execute(
                "select put_block('main', $1, $2, $3, now(), '[]', $4)",
                &[
                    &i64::from(height),
                    &hash,
                    &parent,
                    &json!([{"tx_index": 0, "event_index": 0, "token": "gold", "to_address": format!("b{round}"), "amount": height}]),
                ],
            )
            .await
            .unwrap();
        }
        let (is_clean, lines) = verify(&pg, &["volume"]);
        println!("{}", lines.join("\n"));
        assert!(is_clean, "{lines:?}");
        let (is_clean, lines) = verify(&pg, &["holders"]);
        println!("{}", lines.join("\n"));
        assert!(is_clean, "{lines:?}");
    }
    support::wait_until("all stand on the newest block", async || {
        let sql = "select count(*) from checkpoints where hash = 'r4n16'";
        (db.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 3).then_some(())
    })
    .await;
    drop(process);
    clean(&pg, &[]);
}

/// The hash a projection stands on.
async fn stands_on(db: &Client, projection: &str) -> Option<String> {
    db.query_one("select hash from checkpoints where projection = $1", &[&projection]).await.unwrap().get(0)
}

#[tokio::test]
async fn the_ledger_does_not_wait_for_a_follower_that_is_verified() {
    let (pg, db) = database(&[HOLDERS]).await;
    blocks(&pg, &db, 1, 3, "a").await;
    // As verify holds it.
    let holder = pg.client().await;
    holder
        .batch_execute(
            "begin;
             select pg_advisory_xact_lock(hashtext('ebbtide verify holders'), chain_id::int) from chains;
             select from checkpoints where projection = 'holders' for update",
        )
        .await
        .unwrap();
    let _process = Ebbtide::spawn(&["process", "--database-url", &pg.url], &[]);
    db.batch_execute(
        "select put_block('main', 3, 'b3', 'a2'); select put_block('main', 4, 'b4', 'b3', token_events =>
            '[{\"tx_index\":0,\"event_index\":0,\"token\":\"gold\",\"to_address\":\"new\",\"amount\":7}]')",
    )
    .await
    .unwrap();
    let went = async |projection: &str| {
        support::wait_until(&format!("{projection} stands on b4"), async || {
            (stands_on(&db, projection).await.as_deref() == Some("b4")).then_some(())
        })
        .await;
    };
    went("token_balances").await;
    assert_eq!(stands_on(&db, "holders").await.as_deref(), Some("a3"));
    holder.batch_execute("rollback").await.unwrap();
    went("holders").await;
    clean(&pg, &[]);
}

#[tokio::test]
async fn a_name_that_is_unknown_is_said() {
    let (pg, _db) = database(&[VOLUME]).await;
    for (args, word) in [
        (vec!["nobody"], "there is no projection named nobody"),
        (vec!["nobody", "--fuzz", "1"], "there is no projection named nobody that an SQL function applies"),
        (vec!["token_balances", "--fuzz", "1"], "others cannot be fuzzed"),
        (vec!["volume", "--chain", "nowhere"], "there is no chain named nowhere"),
        (vec!["volume", "--chain", "nowhere", "--fuzz", "1"], "there is no chain named nowhere"),
        (vec!["--fuzz", "1"], "NAME"),
    ] {
        let args: Vec<&str> = ["verify", "--database-url", &pg.url].into_iter().chain(args).collect();
        let output = Ebbtide::output(&args, &[]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && stderr.contains(word), "{args:?}: {stderr}");
    }
    let (is_clean, lines) = verify(&pg, &["volume"]);
    assert!(is_clean);
    assert_eq!(lines, ["Verified volume: it has not begun on any chain."]);
}

/// A projection `mine` with table `mine`, whose function does this.
fn mine(columns: &str, body: &str) -> String {
    format!(
        "create table public.mine ({columns});
         create function public.apply_mine(chain bigint, at bigint) returns void language plpgsql as $$
         begin {body} end $$;
         select ebbtide.create_projection('mine', 'public.apply_mine(bigint,bigint)', '{{public.mine}}');"
    )
}

const ROW: &str = "chain_id bigint, height bigint, value text, primary key (chain_id, height)";

async fn chains_left(db: &Client) -> i64 {
    db.query_one("select count(*) from chains", &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn deterministic_projections_pass_any_seed() {
    let (pg, db) = database(&[VOLUME, HOLDERS]).await;
    for begun in [false, true] {
        if begun {
            reorganised(&pg, &db).await;
        }
        for name in ["volume", "holders"] {
            for seed in ["1", "2", "77"] {
                let lines = clean(&pg, &[name, "--fuzz", seed, "--rounds", "6"]);
                assert!(lines[0].contains("6 reorganisations of up to "), "{lines:?}");
                assert!(!lines[0].contains(" 0 rows"), "{lines:?}");
            }
        }
    }
    // Nothing stayed, and the real tables are as they were.
    assert_eq!(chains_left(&db).await, 1);
    clean(&pg, &[]);
    let again = || verify(&pg, &["volume", "--fuzz", "5", "--rounds", "4"]).1;
    assert_eq!(again(), again(), "one seed, one run");
}

#[tokio::test]
async fn a_table_of_one_chain_can_be_fuzzed_and_keeps_its_rows() {
    let (pg, db) = database(&[&mine(
        "token text primary key, last bigint",
        "insert into mine select distinct token, at from token_events where chain_id = chain and height = at
         on conflict (token) do update set last = excluded.last;",
    )])
    .await;
    reorganised(&pg, &db).await;
    clean(&pg, &["mine"]);
    clean(&pg, &["mine", "--fuzz", "3", "--rounds", "8"]);
    clean(&pg, &["mine"]);
    let rows: i64 = db.query_one("select count(*) from public.mine", &[]).await.unwrap().get(0);
    assert_eq!(rows, 2);
}

#[tokio::test]
async fn what_is_not_deterministic_is_found_by_any_seed() {
    let cases = [
        ("random", ROW, "insert into mine values (chain, at, random());"),
        ("clock_timestamp", ROW, "insert into mine values (chain, at, clock_timestamp());"),
        // The same all through one transaction.
        ("now", ROW, "insert into mine values (chain, at, now());"),
        ("txid", ROW, "insert into mine values (chain, at, txid_current());"),
        ("above", ROW, "insert into mine select chain, at, count(*) from token_events where chain_id = chain;"),
        (
            "order",
            ROW,
            "insert into mine select chain, at, to_address from token_events where chain_id = chain and height <= at
                 and to_address is not null limit 1;",
        ),
        (
            "aggregate",
            ROW,
            "insert into mine select chain, at, string_agg(token, ',') from token_events where chain_id = chain and height <= at;",
        ),
        (
            "sequence",
            "chain_id bigint, id bigint generated always as identity, value text, primary key (chain_id, id)",
            "insert into mine (chain_id, value) values (chain, at);",
        ),
        // What it reads of itself was not put there by the block.
        (
            "memory",
            ROW,
            "insert into mine values (chain, at, coalesce(current_setting('my.count', true), ''));
             perform set_config('my.count', coalesce(current_setting('my.count', true), '') || 'x', false);",
        ),
        ("balances", ROW, "insert into mine select chain, at, count(*) from ebbtide.balances where chain_id = chain;"),
    ];
    for (what, columns, body) in cases {
        let (pg, db) = database(&[&mine(columns, body)]).await;
        for seed in ["1", "2", "3"] {
            let (is_clean, lines) = verify(&pg, &["mine", "--fuzz", seed, "--rounds", "8"]);
            println!("{what}: {}", lines.join("\n"));
            assert!(!is_clean, "{what} was not found with seed {seed}: {lines:?}");
            assert!(lines[0].starts_with(&format!("mine: seed {seed}")), "{lines:?}");
            assert!(lines.last().unwrap().starts_with(&format!("Fuzzed mine (seed {seed})")), "{lines:?}");
        }
        assert_eq!(chains_left(&db).await, 1);
    }
}

#[tokio::test]
async fn a_function_that_refuses_blocks_is_fuzzed_with_the_others_and_counted() {
    let (pg, _db) = database(&[&mine(
        ROW,
        "if (select count(*) from token_events where chain_id = chain and height = at) > 4 then raise 'too many'; end if;
         insert into mine values (chain, at, 'x');",
    )])
    .await;
    let lines = clean(&pg, &["mine", "--fuzz", "4", "--rounds", "10"]);
    assert!(!lines[0].contains(" 0 refused"), "{lines:?}");
}
