//! The worked example through the program: applied block by block, taken back by every number of blocks, replaced.

use ebbtide::chain::Event;
use ebbtide::projections::option_vaults::Layout;
use serde_json::{Value, json};

use crate::bells::{Ear, lines};
use crate::stored::Registered;
use crate::story::{R1, V, must, said, told};
use crate::support::{Ebbtide, wait_until};
use crate::tables::{TABLES, UDC};

impl Registered {
    /// Puts a block of the story, or an empty one; its hash.
    pub async fn put(&self, height: u32, time: i64, parent: &str, tag: &str, events: &[Event]) -> String {
        let hash = format!("0x{height:x}{tag}");
        let events: Vec<Value> = events
            .iter()
            .map(|e| {
                json!({"tx_index": e.tx_index, "event_index": e.event_index, "emitter": e.emitter, "name": e.name,
                       "keys": e.keys, "data": e.data})
            })
            .collect();
        self.db
            .execute(
                "select put_block('main', $1, $2, $3, to_timestamp($4::bigint), '[]', '[]', $5)",
                &[&i64::from(height), &hash, &parent, &time, &Value::Array(events)],
            )
            .await
            .unwrap();
        hash
    }

    /// Applies what is there, which goes well.
    pub fn succeed(&self) {
        let (well, told) = self.process("");
        assert!(well, "{told}");
    }

    /// Applies what is there, with these settings; whether that went well, and what was told.
    pub fn process(&self, settings: &str) -> (bool, String) {
        let config = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(config.path(), settings).unwrap();
        let args = ["process", "--once", "--config", config.path().to_str().unwrap(), "--database-url", &self.pg.url];
        let output = Ebbtide::output(&args, &[]);
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    async fn settle(&self, hash: &str) {
        let mut last = String::new();
        wait_until(&format!("option_vaults stands on {hash}"), async || {
            let sql = "select to_jsonb(k)::text, hash from checkpoints k where projection = 'option_vaults'";
            let row = self.db.query_opt(sql, &[]).await.unwrap()?;
            let text: String = row.get(0);
            if text != last {
                println!("{text}");
                last = text;
            }
            (row.get::<_, Option<&str>>(1) == Some(hash)).then_some(())
        })
        .await;
    }

    /// All rows of all its tables, without what differs between two blocks of one content.
    async fn dump(&self) -> String {
        self.dump_without("latest_block_hash,block_hash").await
    }

    /// All rows of all its tables, and what was refused.
    pub async fn whole_dump(&self) -> String {
        let sql = "select coalesce(string_agg(concat_ws('/', height, tx_index, event_index, block_hash, reason), E'\\n'
                       order by height, tx_index, event_index), '') from rejected_events";
        let refused: String = self.db.query_one(sql, &[]).await.unwrap().get(0);
        self.dump_without("").await + &refused
    }

    async fn dump_without(&self, columns: &str) -> String {
        let mut all = String::new();
        for table in TABLES {
            let sql = format!(
                "select coalesce(string_agg((to_jsonb(t) - '{{{columns}}}'::text[])::text, E'\\n'
                    order by to_jsonb(t)::text collate \"C\"), '') from {table} t"
            );
            let rows: String = self.db.query_one(&sql, &[]).await.unwrap().get(0);
            all.push_str(&format!("{table}\n{rows}\n"));
        }
        all
    }
}

/// The newest block's height.
pub async fn head(world: &Registered) -> Option<u32> {
    let sql = "select max(height) from blocks";
    world.db.query_one(sql, &[]).await.unwrap().get::<_, Option<i64>>(0).map(|height| height as u32)
}

/// `ebbtide verify option_vaults` finds nothing.
pub fn verified(world: &Registered) {
    Ebbtide::succeed(&["verify", "option_vaults", "--database-url", &world.pg.url], &[]);
}

#[tokio::test]
async fn the_worked_example_at_every_height_and_after_every_depth_of_reorganisation() {
    for layout in [Layout::A, Layout::B] {
        let world = Registered::new(layout).await;
        let _process = Ebbtide::spawn(&["process", "--database-url", &world.pg.url], &[]);
        let story = told(layout, false);
        let mut hashes = vec!["0xaaa".to_owned()];
        let mut dumps = vec![world.dump().await];
        let mut compared = 0;
        for (height, time, events) in &story {
            let hash = world.put(*height, *time, hashes.last().unwrap(), "c0", events).await;
            world.settle(&hash).await;
            hashes.push(hash);
            let stored = world.lines().await;
            assert_eq!(stored, must(*height), "{layout:?} {height}");
            compared += stored.len();
            dumps.push(world.dump().await);
        }
        for depth in 1..=story.len() {
            let left = story.len() - depth;
            let (height, time, _) = &story[left];
            let empty = world.put(*height, *time, &hashes[left], &format!("e{depth}"), &[]).await;
            world.settle(&empty).await;
            assert_eq!(world.dump().await, dumps[left], "{layout:?}: {depth} blocks taken back");
            let mut parent = hashes[left].clone();
            for (n, (height, time, events)) in story.iter().enumerate().skip(left) {
                parent = world.put(*height, *time, &parent, &format!("d{depth}"), events).await;
                hashes[n + 1].clone_from(&parent);
            }
            world.settle(&parent).await;
            assert_eq!(world.dump().await, dumps[story.len()], "{layout:?}: applied again");
        }
        println!("{layout:?}: {compared} rows, {} depths", story.len());
        // 106 and 107 of another branch, as the first layout tells it.
        if layout == Layout::B {
            continue;
        }
        let bids = vec![
            said(V, "Deposit", &[0xa2], &[250, 0, 250, 0, 750, 0]),
            said(R1, "BidPlaced", &[0xb2], &[0xc4, 3, 0, 20, 0, 5]),
        ];
        let mut parent = hashes[5].clone();
        let ended = vec![said(R1, "AuctionEnded", &[], &[20, 0, 15, 0, 1, 0, 2])];
        for (height, time, mut events) in [(106, 1190, bids), (107, 1200, ended)] {
            for (n, event) in (0..).zip(&mut events) {
                event.event_index = n;
            }
            parent = world.put(height, time, &parent, "ff", &events).await;
        }
        world.settle(&parent).await;
        let row = world
            .db
            .query_one(
                "select (select mintable_options || '/' || refundable_amount from option_buyers where address = '0xb1'),
                    (select mintable_options || '/' || refundable_amount from option_buyers where address = '0xb2')",
                &[],
            )
            .await
            .unwrap();
        assert_eq!((row.get(0), row.get(1)), (Some("12/50"), Some("8/90")));
    }
}

/// Every row of every table, with the transaction that wrote it and its place.
const ROWS: &str = "
    select string_agg(r, chr(10) order by r) from (
        select concat_ws(' ', xmin, ctid, t) as r from vaults t
        union all select concat_ws(' ', xmin, ctid, t) from vault_history t
        union all select concat_ws(' ', xmin, ctid, t) from liquidity_providers t
        union all select concat_ws(' ', xmin, ctid, t) from liquidity_provider_history t
        union all select concat_ws(' ', xmin, ctid, t) from option_rounds t
        union all select concat_ws(' ', xmin, ctid, t) from queued_liquidity t
        union all select concat_ws(' ', xmin, ctid, t) from option_buyers t
        union all select concat_ws(' ', xmin, ctid, t) from option_bids t) t";

#[tokio::test]
async fn made_anew_only_what_differs_is_written_and_told() {
    let world = Registered::new(Layout::B).await;
    let db = &world.db;
    let _process = Ebbtide::spawn(&["process", "--database-url", &world.pg.url], &[]);
    let mut tip = "0xaaa".to_owned();
    for (height, time, events) in &told(Layout::B, false) {
        tip = world.put(*height, *time, &tip, "c0", events).await;
        world.settle(&tip).await;
    }
    db.batch_execute("update chains set final_height = (select max(height) from blocks); notify ebbtide_blocks")
        .await
        .unwrap();
    wait_until("all of it is final", async || {
        let sql = "select count(*) from applied_blocks where projection = 'option_vaults'";
        (db.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 0).then_some(())
    })
    .await;
    let rows = async || db.query_one(ROWS, &[]).await.unwrap().get::<_, String>(0);
    let again = async || {
        let sql = "select seq from checkpoints where projection = 'option_vaults'";
        let seq: i64 = db.query_one(sql, &[]).await.unwrap().get(0);
        db.batch_execute("select replay('main', 0, 'option_vaults')").await.unwrap();
        wait_until("it is built again", async || {
            let sql = "select from checkpoints where projection = 'option_vaults' and seq > $1 and redo_from is null and hash = $2";
            db.query_opt(sql, &[&seq, &tip]).await.unwrap().map(|_| ())
        })
        .await;
    };
    let before = rows().await;
    let dump = world.dump().await;
    let mut ear = Ear::on(&world.pg.url).await;
    again().await;
    assert_eq!(rows().await, before, "nothing was wrong, so nothing is written");
    assert!(ear.hear(db).await.is_empty());
    // Damage of each kind, as nobody could do it by chance.
    db.batch_execute(
        "set ebbtide.write_tracked_tables = on;
         update liquidity_providers set unlocked_balance = unlocked_balance + 1 where address = '0xa1';
         delete from option_bids where bid_id = '0xc2';
         update option_rounds set state = 'Open', round_id = 77 where address = '0x21';
         insert into vaults (chain_id, address, layout, latest_block, latest_block_hash)
         select chain_id, '0x99', 'a', 3, '0x3' from chains;
         reset ebbtide.write_tracked_tables",
    )
    .await
    .unwrap();
    ear.hear(db).await;
    again().await;
    assert_eq!(world.dump().await, dump);
    let told = lines(&ear.hear(db).await);
    let (whose, what): (Vec<&str>, Vec<&str>) =
        told.iter().map(|line| (line.split(' ').next().unwrap(), line.split(' ').nth(1).unwrap())).unzip();
    assert_eq!(whose, ["bids_update", "lp_row_update", "or_update", "state_transition", "vault_update"], "{told:?}");
    assert_eq!(what, ["insert", "update", "update", "update", "delete"], "{told:?}");
    // A vault that is registered later says nothing about the others.
    db.batch_execute("insert into vault_registry (chain_id, address, layout) select chain_id, '0x77', 'a' from chains")
        .await
        .unwrap();
    again().await;
    assert_eq!(ear.hear(db).await, []);
}

#[tokio::test]
async fn an_event_that_cannot_be_read_is_set_aside_or_halts_before_its_block() {
    for halts in [false, true] {
        let world = Registered::new(Layout::A).await;
        let deployed = world.put(101, 1000, "0xaaa", "c0", &told(Layout::A, false)[0].2).await;
        let mut short = said(V, "Deposit", &[0xa1], &[7, 0, 7, 0, 7]);
        short.event_index = 1;
        world.put(102, 1050, &deployed, "c0", &[said(V, "Deposit", &[0xa2], &[5, 0, 5, 0, 5, 0]), short]).await;
        let on_bad_event = if halts { "halt" } else { "quarantine" };
        let (well, told) = world.process(&format!("[projections.option_vaults]\non_bad_event = \"{on_bad_event}\"\n"));
        assert_eq!(well, !halts, "{told}");
        let sql = "select coalesce(k.through_height, -1), coalesce(k.halted_reason, k.failed_reason, ''),
                (select coalesce(string_agg(concat_ws('/', height, tx_index, event_index, reason), ', '), '')
                 from rejected_events),
                (select coalesce(string_agg(address || ' ' || unlocked_balance, ', '), '') from liquidity_providers)
            from checkpoints k where k.projection = 'option_vaults'";
        let row = world.db.query_one(sql, &[]).await.unwrap();
        let (through, reason, rejected, providers): (i64, &str, &str, &str) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        if halts {
            assert_eq!((through, rejected, providers), (101, "", ""));
            assert!(reason.contains("event 1 of transaction 0 cannot be applied: bad_length"), "{reason}");
        } else {
            assert_eq!((through, reason, rejected), (102, "", "102/0/1/bad_length"));
            assert_eq!(providers, "0xa2 5", "the rest of the block is applied");
        }
    }
}

#[tokio::test]
async fn a_vault_of_a_known_class_needs_no_row_in_the_registry() {
    let section = format!("[projections.option_vaults]\ndeployers = [\"0x0{}\"]\n", &UDC[2..]);
    let class = "[projections.option_vaults.classes.\"0x00C1A55\"]\nlayout = \"a\"\n";
    for (deployer, found) in [("", true), ("deployer = \"0x00DE\"\n", true), ("deployer = \"0xdf\"\n", false)] {
        let world = Registered::new(Layout::A).await;
        world.db.batch_execute("delete from vault_registry").await.unwrap();
        let settings = format!("{section}{class}{deployer}");
        let mut parent = "0xaaa".to_owned();
        for (height, time, events) in &told(Layout::A, false) {
            parent = world.put(*height, *time, &parent, "c0", events).await;
            // Half of the story in each of two runs: what was found is known again.
            if *height == 104 || *height == 108 {
                let (well, told) = world.process(&settings);
                assert!(well, "{told}");
                assert_eq!(
                    world.lines().await,
                    if found { must(*height) } else { Vec::new() },
                    "{deployer:?} {height}"
                );
            }
        }
    }
}

#[tokio::test]
async fn changed_settings_are_applied_to_what_is_there() {
    let world = Registered::new(Layout::A).await;
    world.db.batch_execute("delete from vault_registry").await.unwrap();
    let mut parent = "0xaaa".to_owned();
    for (height, time, events) in &told(Layout::A, false) {
        parent = world.put(*height, *time, &parent, "c0", events).await;
    }
    let deployers = format!("[projections.option_vaults]\ndeployers = [\"{UDC}\"]\n");
    let class = |rest: &str| format!("{deployers}[projections.option_vaults.classes.\"0xc1a55\"]\n{rest}");
    let seq = async || {
        let sql = "select seq from checkpoints where projection = 'option_vaults'";
        world.db.query_one(sql, &[]).await.unwrap().get::<_, i64>(0)
    };
    let story = must(108);
    let (all, none): (&[String], &[String]) = (&story, &[]);
    for (settings, rows) in [
        (String::new(), none),
        (class("layout = \"a\"\n"), all),
        // The deployment has another length in this layout.
        (class("layout = \"b\"\n"), none),
        (class("layout = \"a\"\ndeployer = \"0xde\"\n"), all),
        (class("layout = \"a\"\ndeployer = \"0xdf\"\n"), none),
        (class("layout = \"a\"\n"), all),
        (deployers.clone(), none),
    ] {
        let (well, told) = world.process(&settings);
        assert!(well, "{told}");
        assert_eq!(world.lines().await, rows, "{settings}");
        let before = seq().await;
        let (well, told) = world.process(&settings);
        assert!(well, "{told}");
        assert_eq!(seq().await, before, "the same settings leave it where it is: {settings}");
    }
}

#[tokio::test]
async fn settings_of_one_projection_are_refused_for_another() {
    let world = Registered::new(Layout::A).await;
    let class = "[projections.option_vaults.classes.\"0x1\"]\nlayout = \"a\"\n";
    for (settings, word) in [
        ("[projections.option_vaults]\nhistory = \"full\"\n", "history"),
        ("[projections.option_vaults]\nnegative_balances = \"show\"\n", "negative_balances"),
        ("[projections.mine]\non_bad_event = \"halt\"\n", "on_bad_event"),
        ("[projections.token_balances]\ndeployers = [\"0x1\"]\n", "deployers"),
        ("[projections.mine.classes.\"0x1\"]\nlayout = \"a\"\n", "classes"),
        (class, "deployers, which are missing"),
    ] {
        let (well, told) = world.process(settings);
        assert!(!well && told.contains(word), "{settings}{told}");
    }
}

#[tokio::test]
async fn a_projection_that_cannot_begin_holds_up_no_other() {
    let world = Registered::new(Layout::A).await;
    // A row that no block wrote: undo could not account for it.
    let row = "insert into vaults (chain_id, address, layout, latest_block, latest_block_hash) values ($1, '0x99', 'a', 1, '0x1')";
    world.db.execute(row, &[&world.chain.0]).await.unwrap();
    let mut process = Ebbtide::spawn(&["process", "--database-url", &world.pg.url], &[]);
    let hash = world.put(101, 1000, "0xaaa", "c0", &[]).await;
    process.wait_for_line("A projection cannot begin").await;
    wait_until("the balances stand on the block", async || {
        let sql = "select 1 from checkpoints where projection = 'token_balances' and hash = $1";
        world.db.query_opt(sql, &[&hash]).await.unwrap()
    })
    .await;
    world.db.batch_execute("delete from vaults").await.unwrap();
    world.settle(&hash).await;
}
