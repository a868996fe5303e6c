//! A database of an older version goes on where it stands, with data of every kind in it.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod support;

use std::io::Read;

use support::check::differences;
use support::{Ebbtide, Pg};
use tokio_postgres::Client;

/// What tests/fixtures/old-database made: schema V3, as the program of commit a92cd75 left it.
const OLD: &[u8] = include_bytes!("fixtures/old-database.sql.gz");

const CHAINS: [&str; 4] = ["main", "eth", "strk", "stuck"];

/// The old database, and this version's program at work on it.
struct Old {
    pg: Pg,
    db: Client,
}

impl Old {
    async fn restored() -> Old {
        let mut text = String::new();
        flate2::read::GzDecoder::new(OLD).read_to_string(&mut text).unwrap();
        let pg = Pg::empty().await;
        // The dump empties the search path of its session.
        support::pg::connect(&pg.url).await.batch_execute(&text).await.unwrap();
        let db = pg.client().await;
        Old { pg, db }
    }

    fn run(&self, args: &[&str]) -> (bool, String) {
        let args: Vec<&str> = args.iter().copied().chain(["--database-url", &self.pg.url]).collect();
        let output = Ebbtide::output(&args, &[]);
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.success(), text)
    }

    async fn sql(&self, sql: &str) {
        self.db.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    async fn one(&self, sql: &str) -> String {
        let row = self.db.query_one(&format!("select coalesce(({sql})::text, 'null')"), &[]).await;
        row.unwrap_or_else(|e| panic!("{sql}: {e:?}")).get(0)
    }

    /// Processes, and compares all that follows from the chains with what they say, by three ways of our own.
    async fn settle(&self, what: &str) {
        let (well, text) = self.run(&["process", "--once"]);
        assert!(well, "{what}: {text}");
        for chain in CHAINS {
            let found = differences(&self.db, chain).await;
            assert!(found.is_empty(), "{what}, {chain}:\n{}", found.join("\n"));
        }
        assert_eq!(self.one(SUMS_THAT_DIFFER).await, "0", "{what}");
        assert_eq!(self.one(RICHEST_THAT_DIFFER).await, "0", "{what}");
        assert_eq!(self.one(NAMES_THAT_DIFFER).await, "0", "{what}");
        for projection in ["token_balances", "volume", "richest", "option_vaults"] {
            let (clean, text) = self.run(&["verify", projection]);
            assert!(clean, "{what}, {projection}: {text}");
        }
    }

    /// Blocks of `main` in place of those from `from` on.
    async fn branch(&self, tag: &str, from: i64, to: i64, parent: &str) {
        for height in from..=to {
            let parent = if height == from { parent.to_owned() } else { format!("{tag}{}", height - 1) };
            self.sql(&format!(
                r#"select put_block('main', {height}, '{tag}{height}', '{parent}', token_events => '[
                    {{"tx_index":0,"event_index":0,"token":"gold","to_address":"user{}","amount":{height}}},
                    {{"tx_index":0,"event_index":1,"token":"silver","to_address":"only_{tag}","amount":1}}]')"#,
                height % 4
            ))
            .await;
        }
    }
}

const SUMS_THAT_DIFFER: &str = "select count(*) from (
    select token, moved from public.volume
    except select token, sum(amount) from token_events join chains using (chain_id) where name = 'main' group by token) d";
const RICHEST_THAT_DIFFER: &str = "select count(*) from (
    select token, address from public.richest
    except (select distinct on (token) token, address from balances b join chains using (chain_id) where name = 'main'
            order by token, amount desc, address)) d";
const NAMES_THAT_DIFFER: &str = "select count(*) from applied_blocks a where a.projection = 'token_balances'
    and array(select unnest(a.ids) order by 1)
        is distinct from array(select h.balance_id from balance_history h where h.chain_id = a.chain_id and h.height = a.height order by 1)";
/// All that people see of derived state, and of evidence. V5 has the option vaults applied again, so their journal goes.
const SEEN: &str = "select string_agg(line, E'\\n' order by line) from (
    select concat_ws(' ', 'balance', b.chain_id, b.token, b.address, b.amount, b.height) as line from balances b
    union all select concat_ws(' ', 'change', c) from balance_changes c
    union all select concat_ws(' ', 'event', e.chain_id, e.height, e.tx_index, e.event_index, e.token, e.from_address, e.to_address, e.amount) from token_events e
    union all select concat_ws(' ', 'applied', a.chain_id, a.projection, a.height, a.hash, a.revision) from applied_blocks a
        where a.projection <> 'option_vaults'
    union all select concat_ws(' ', 'checkpoint', to_jsonb(k) - '{redo_from,changed_from,changed_seq,tells,number}'::text[]) from checkpoints k
    union all select concat_ws(' ', 'vault', to_jsonb(v)) from vaults v
    union all select concat_ws(' ', 'provider', to_jsonb(p)) from liquidity_providers p
    union all select concat_ws(' ', 'round', to_jsonb(r)) from option_rounds r
    union all select concat_ws(' ', 'bid', to_jsonb(i)) from option_bids i
    union all select concat_ws(' ', 'orphaned', to_jsonb(o)) from orphaned_blocks o
    union all select concat_ws(' ', 'rejected', to_jsonb(r)) from rejected_events r
    union all select concat_ws(' ', 'volume', v) from public.volume v
    union all select concat_ws(' ', 'richest', r) from public.richest r) t";

#[tokio::test]
async fn a_database_of_schema_v3_is_migrated_with_all_it_holds_and_goes_on() {
    let old = Old::restored().await;
    let seen = old.one(SEEN).await;
    for kind in [
        "balance",
        "change",
        "event",
        "applied",
        "checkpoint",
        "vault",
        "provider",
        "round",
        "bid",
        "orphaned",
        "rejected",
        "volume",
        "richest",
    ] {
        assert!(seen.lines().any(|line| line.starts_with(&format!("{kind} "))), "the old database has no {kind}");
    }
    assert_eq!(old.one("select max(version) from refinery_schema_history").await, "3");
    let (well, text) = old.run(&["migrate"]);
    let newest = format!("at version {}", ebbtide::store::SCHEMA_VERSION);
    assert!(well && text.contains(&newest), "{text}");
    assert!(old.run(&["migrate"]).1.contains(&newest));
    assert_eq!(old.one(SEEN).await, seen, "migrating changes nothing that anybody sees");

    // The journal names what it did not name before, and reaches down to the block below it.
    assert_eq!(old.one(NAMES_THAT_DIFFER).await, "0");
    let journal = "select string_agg(concat_ws('<', before_height, height), ' ' order by height) from applied_blocks a
                   join chains c using (chain_id) where c.name = 'main' and projection = 'token_balances'";
    assert_eq!(old.one(journal).await, "9<10 10<11 11<12 12<13 13<14");
    let gone = "select count(*) from pg_class where relnamespace = 'ebbtide'::regnamespace and relname = 'balance_history_height'";
    assert_eq!(old.one(gone).await, "0");
    let kinds = "select string_agg(distinct e.kind, ' ' order by e.kind) from token_events e";
    assert_eq!(old.one(kinds).await, "burn mint transfer");
    let misspelt = "insert into token_events (chain_id, height, tx_index, event_index, token, to_address, amount) select chain_id, 14, 0, 0, '', 'a', 1 from chains";
    let refused = old.db.batch_execute(misspelt).await.unwrap_err();
    assert_eq!(refused.as_db_error().unwrap().constraint(), Some("token_events_token_is_1_to_512_bytes"));

    // Who was halted stays so until told, who was paused likewise.
    let (well, text) = old.run(&["process", "--once"]);
    assert!(!well && text.contains("by hand"), "{text}");
    assert_eq!(old.one("select count(*) from checkpoints where paused").await, "1");
    old.sql("select resume('stuck', 'token_balances'); select resume('eth', 'token_balances')").await;
    old.settle("as it was").await;

    // On from there.
    old.branch("a", 15, 16, "b14").await;
    old.sql(
        r#"select put_block('eth', 2, '0xe2', '0xe1', token_events => '[{"tx_index":0,"event_index":0,
               "token":"0x00000000000000000000000000000000000000aa","from_address":"0x00000000000000000000000000000000000000b0",
               "to_address":"0x00000000000000000000000000000000000000b1","amount":3}]');
           select put_block('strk', 105, '0x69', '0x68', to_timestamp(1150), events => '[{"tx_index":0,"event_index":0,
               "emitter":"0x11","name":"Deposit","keys":["0x9149d2123147c5f43d258257fef0b7b969db78269369ebcf5ebb9eef8592f2","0xa1"],"data":["0x1f4","0x0","0x1f4","0x0","0x1f4","0x0"]}]')"#,
    )
    .await;
    old.settle("extended").await;
    assert_eq!(old.one("select unlocked_balance from liquidity_providers where address = '0xa1'").await, "500");

    // Back to what the old program applied, within its journal and below it.
    old.branch("c", 11, 17, "a10").await;
    old.sql("select drop_blocks('strk', 103)").await;
    old.settle("a reorganisation into the old journal").await;
    assert_eq!(old.one("select count(*) from balances where address = 'only_b'").await, "0");
    assert_eq!(old.one("select count(*) from option_bids").await, "0");
    old.branch("d", 5, 18, "a4").await;
    old.settle("a reorganisation to below the old journal").await;
    old.sql("select replay('main', 0); select replay('eth', 0); select replay('strk', 0)").await;
    old.settle("all of it again").await;
}

/// The old program is at work while its database is migrated: it may be waiting for just this table.
#[tokio::test]
async fn a_program_that_knows_no_totals_writes_no_balance_once_there_are_some() {
    let pg = Pg::empty().await;
    let (mut migrating, old) = (pg.client().await, pg.client().await);
    migrating.batch_execute("create schema ebbtide; set ebbtide.ledger = on").await.unwrap();
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let text = |version: u32| {
        let is_it = |path: &std::path::PathBuf| {
            path.file_name().unwrap().to_str().unwrap().starts_with(&format!("V{version}__"))
        };
        let path = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).find(is_it).unwrap();
        std::fs::read_to_string(path).unwrap()
    };
    for version in 1..=6 {
        migrating.batch_execute(&text(version)).await.unwrap();
    }
    migrating.batch_execute("insert into chains (name, kind) values ('main', 'other')").await.unwrap();
    let put =
        "insert into balances (chain_id, token, address, amount, height) select chain_id, 'gold', $1, 5, 1 from chains";
    assert_eq!(old.execute(put, &[&"before"]).await.unwrap(), 1);

    let tx = migrating.transaction().await.unwrap();
    tx.batch_execute(&text(7)).await.unwrap();
    let reader = pg.client().await;
    reader.batch_execute("set lock_timeout = '5s'; table blocks; table balances; table checkpoints").await.unwrap();
    let waits = tokio::spawn(async move { old.execute(put, &[&"meanwhile"]).await });
    support::wait_until("it waits for the table", async || {
        let sql = "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
        reader.query_opt(sql, &[]).await.unwrap()
    })
    .await;
    tx.commit().await.unwrap();
    let refused = waits.await.unwrap().unwrap_err();
    let word = "only_the_processor_writes_what_follows_from_the_chain";
    assert_eq!(refused.as_db_error().unwrap().constraint(), Some(word), "{refused:?}");
    let total: String = reader.query_one("select total::text from token_totals", &[]).await.unwrap().get(0);
    assert_eq!(total, "5");
}

/// What the old version let in and this one bounds is named, or brought within.
#[tokio::test]
async fn what_is_out_of_bounds_is_named_or_brought_within() {
    let old = Old::restored().await;
    old.sql("insert into opening_balances select chain_id, 'gold', 'whale', 2::numeric ^ 300 from chains where name = 'main'").await;
    old.sql(
        r#"insert into chains (name, kind) values ('own', 'other');
           select put_block('own', 0, 'g', 'g', 'infinity', token_events => '[{"tx_index":0,"event_index":0,"token":"gold","to_address":"x","amount":3}]');
           select put_block('own', 1, 'h', 'g')"#,
    )
    .await;
    let (well, text) = old.run(&["migrate"]);
    assert!(
        !well
            && text.contains("the opening balance of whale in gold on chain main is 2037")
            && text.contains("Correct or delete it"),
        "{text}"
    );
    old.sql("delete from opening_balances where address = 'whale'").await;
    let (well, text) = old.run(&["migrate"]);
    assert!(well, "{text}");
    let first = "select concat_ws('/', hash, parent_hash, time) from blocks where height = 0 and hash = 'g'";
    assert_eq!(old.one(first).await, "g/");
    // An edit of what is there is still an edit.
    old.sql("update token_events set amount = 4 where height = 0 and to_address = 'x'").await;
    old.run(&["process", "--once"]);
    assert_eq!(old.one("select amount from balances where address = 'x'").await, "4");
    assert!(old.run(&["verify", "token_balances", "--chain", "own"]).0);
}
