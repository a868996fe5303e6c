//! The same in Postgres: the worked example through the statements, and what the tables refuse.

use ebbtide::chain::{BlockRef, ChainId, Event, Hash, Height};
use ebbtide::projections::option_vaults::rows::{Changes, Layout, Wanted, Written};
use ebbtide::projections::option_vaults::{Directory, Working, addresses, apply, statements, wanted};
use ebbtide::store::{BlockEvents, Prepared, Refused, Session};
use tokio_postgres::Client;

use crate::story::{R1, R2, V, must, said, told};
use crate::support::Pg;
use crate::tables::{TABLES, Tables, UDC, block, in_order, text};

/// A database with a Starknet chain, in which the vault of the example is registered.
pub struct Registered {
    pub pg: Pg,
    pub db: Client,
    pub chain: ChainId,
    prepared: Prepared,
}

impl Registered {
    pub async fn new(layout: Layout) -> Registered {
        let pg = Pg::new().await;
        let db = pg.client().await;
        let sql = "insert into chains (name, kind) values ('main', 'starknet') returning chain_id";
        let chain = ChainId(db.query_one(sql, &[]).await.unwrap().get(0));
        db.execute(
            "insert into vault_registry (chain_id, address, layout) values ($1, $2, $3)",
            &[&chain.0, &V, &layout.as_str()],
        )
        .await
        .unwrap();
        Registered { pg, db, chain, prepared: Prepared::default() }
    }

    fn session(&self) -> Session<'_> {
        Session::new(&self.db, &self.prepared)
    }

    /// Applies a block as a processor would: what it needs is read and what it leaves is written in one transaction.
    pub async fn apply(&mut self, height: u32, time: i64, events: &[Event]) {
        let refused = self.apply_range(&[block(height, time, events)]).await;
        assert!(refused.is_empty(), "{height}: {refused:?}");
    }

    /// The same with several blocks.
    pub async fn apply_range(&mut self, blocks: &[BlockEvents]) -> Vec<Refused> {
        let tx = self.db.transaction().await.unwrap();
        let session = Session::new(tx.client(), &self.prepared);
        let names = addresses(blocks);
        let named = statements::named(session, self.chain, &names).await.unwrap();
        let directory =
            Directory { deployers: [text(UDC)].into(), registered: named.registered, ..Directory::default() };
        let mut rows = Working::default();
        named.rows.into_iter().for_each(|row| rows.load(row));
        let wanted = wanted(&directory, &rows, &names, blocks);
        let loaded = statements::load(session, self.chain, &wanted).await.unwrap();
        loaded.into_iter().for_each(|row| rows.load(row));
        let refused = blocks.iter().flat_map(|block| apply(&directory, &mut rows, block)).collect();
        statements::put(session, self.chain, &rows.take_changes()).await.unwrap();
        tx.commit().await.unwrap();
        refused
    }

    /// The stored rows as the story's lines.
    pub async fn lines(&self) -> Vec<String> {
        self.all().await.lines()
    }

    /// The vaults that the view of anomalies names.
    async fn shortfall(&self) -> Option<String> {
        let sql = "select string_agg(concat_ws(' ', height, detail), ', ') from anomalies
                   where kind = 'vault short of its providers'";
        self.db.query_one(sql, &[]).await.unwrap().get(0)
    }

    async fn all(&self) -> Tables {
        let addresses = [text(V), text(R1), text(R2)].into();
        let all = Wanted {
            vaults_with_providers: [text(V)].into(),
            rounds_with_bids: [text(R1), text(R2)].into(),
            rounds_with_queue: [text(R1), text(R2)].into(),
            ..Wanted::default()
        };
        let mut tables = Tables::default();
        let named = statements::named(self.session(), self.chain, &addresses).await.unwrap();
        let loaded = statements::load(self.session(), self.chain, &all).await.unwrap();
        named.rows.into_iter().chain(loaded).for_each(|row| tables.put(row));
        tables
    }
}

#[tokio::test]
async fn the_worked_example_holds_at_every_height_in_the_tables() {
    for layout in [Layout::A, Layout::B] {
        let mut world = Registered::new(layout).await;
        let mut memory = Tables::with_vault(V, layout);
        let mut compared = 0;
        for (height, time, events) in told(layout, false) {
            world.apply(height, time, &events).await;
            memory.apply(height, time, &events);
            let stored = world.all().await;
            assert_eq!(stored.lines(), must(height), "{height}");
            // Field by field, parameters included.
            assert_eq!(Tables { directory: memory.directory.clone(), ..stored.clone() }, memory, "{height}");
            compared += stored.lines().len();
        }
        println!("{layout:?}: {compared} rows compared");
        let history = world
            .db
            .query(
                "select height, unlocked_balance::text || '/' || locked_balance || '/' || stashed_balance, block_hash
                 from vault_history where chain_id = $1 and address = $2 order by height",
                &[&world.chain.0, &V],
            )
            .await
            .unwrap();
        let seen: Vec<(i64, String)> = history.iter().map(|row| (row.get(0), row.get(1))).collect();
        let must = [
            (101, "0/0/0"),
            (102, "11001/0/0"),
            (103, "0/10001/0"),
            (105, "500/10001/0"),
            (106, "801/10000/0"),
            (108, "5602/0/0"),
        ];
        assert_eq!(seen, must.map(|(height, row)| (height, row.to_owned())));
        assert_eq!(history[5].get::<_, String>(2), "0xb108");
        let sql = "select count(*), sum(unlocked_balance)::text from liquidity_provider_history where chain_id = $1";
        let row = world.db.query_one(sql, &[&world.chain.0]).await.unwrap();
        // Both at 102, 103, 106 and 108; the first also at 105.
        assert_eq!((row.get::<_, i64>(0), row.get::<_, String>(1).as_str()), (9, "17901"));
        let sql = "select latest_block, latest_block_hash from option_rounds where chain_id = $1 and address = $2";
        let row = world.db.query_one(sql, &[&world.chain.0, &R2]).await.unwrap();
        assert_eq!((row.get::<_, i64>(0), row.get::<_, &str>(1)), (108, "0xb108"));
    }
}

#[tokio::test]
async fn a_vault_short_of_what_its_providers_have_is_an_anomaly() {
    let mut world = Registered::new(Layout::A).await;
    for (height, time, events) in told(Layout::A, false) {
        world.apply(height, time, &events).await;
    }
    // Two providers have 5,600, the vault 5,602; one of them had queued, so no floor was taken twice.
    for (unlocked, anomalies) in
        [(5602, None), (5600, None), (5599, Some("108 0x11 has 1 less than its 2 providers together"))]
    {
        world.db.execute(&format!("update vaults set unlocked_balance = {unlocked}"), &[]).await.unwrap();
        let found = world.shortfall().await;
        assert_eq!(found.as_deref(), anomalies, "{unlocked}");
    }
}

#[tokio::test]
async fn premiums_above_the_liquidity_are_no_anomaly() {
    let mut world = Registered::new(Layout::A).await;
    let story = [
        vec![said(V, "OptionRoundDeployed", &[], &[1, 0x21, 1, 2, 3, 2, 0, 10_000, 0, 0])],
        vec![
            said(V, "Deposit", &[0xa1], &[4, 0, 4, 0, 4, 0]),
            said(V, "Deposit", &[0xa2], &[4, 0, 4, 0, 8, 0]),
            said(R1, "AuctionStarted", &[], &[8, 0, 4, 0]),
            said(R1, "BidPlaced", &[0xb1], &[0xc1, 4, 0, 1, 0, 1]),
        ],
        vec![
            said(R1, "AuctionEnded", &[], &[4, 0, 1, 0, 0, 0, 0]),
            said(V, "Withdrawal", &[0xa1], &[2, 0, 0, 0, 2, 0]),
            said(V, "Withdrawal", &[0xa2], &[2, 0, 0, 0, 0, 0]),
            said(V, "WithdrawalQueued", &[0xa1], &[2500, 1, 0, 0, 1, 0, 1, 0]),
            said(V, "WithdrawalQueued", &[0xa2], &[7500, 1, 0, 0, 3, 0, 4, 0]),
        ],
        // Half is paid out. Of 2 the vault stashes, the providers stash 0 and 1: they have 3 unlocked, the vault 2.
        vec![
            said(R1, "OptionRoundSettled", &[], &[3, 0, 1, 0]),
            said(V, "OptionRoundDeployed", &[], &[2, 0x22, 1, 2, 3, 1, 0, 10_000, 0, 0]),
            said(R2, "AuctionStarted", &[], &[2, 0, 2, 0]),
            said(R2, "BidPlaced", &[0xb1], &[0xc1, 2, 0, 1000, 0, 1]),
        ],
        vec![said(R2, "AuctionEnded", &[], &[2, 0, 1000, 0, 0, 0, 0])],
    ];
    for (height, events) in (101..).zip(story) {
        world.apply(height, 0, &in_order(events)).await;
        assert_eq!(world.shortfall().await, None, "{height}");
    }
    let sql = "select (select sum(unlocked_balance + locked_balance + stashed_balance)::text from liquidity_providers),
                   (select (unlocked_balance + locked_balance + stashed_balance)::text from vaults)";
    let row = world.db.query_one(sql, &[]).await.unwrap();
    assert_eq!((row.get(0), row.get(1)), (Some("3004"), Some("2004")), "1000 short, and all rows right");
    world.db.execute("update vaults set unlocked_balance = unlocked_balance - 2", &[]).await.unwrap();
    let told = "105 0x11 has 1002 less than its 2 providers together";
    assert_eq!(world.shortfall().await.as_deref(), Some(told));
}

#[tokio::test]
async fn the_largest_and_the_lowest_numbers_come_back() {
    let world = Registered::new(Layout::A).await;
    let mut memory = Tables::with_vault(V, Layout::A);
    memory.apply(101, 1000, &told(Layout::A, false)[0].2);
    let mut vault = memory.vaults[V].clone();
    for strike_level in [i128::MIN, -1, i128::MAX] {
        vault.unlocked_balance = ebbtide::chain::Amount::MAX;
        let parameters = vault.parameters.as_mut().unwrap();
        parameters.strike_level = strike_level;
        parameters.alpha = ebbtide::chain::Amount::from(u128::MAX);
        parameters.round_duration = u64::MAX;
        vault.current_round = Some(u64::MAX);
        let height = Height::from(u32::MAX).minus(strike_level.rem_euclid(7) as u64);
        let block = BlockRef { height, hash: Hash::new("0xb") };
        let written = vec![Written { row: vault.clone(), block }];
        let changes = Changes { vaults: written.clone(), vault_history: written, ..Default::default() };
        statements::put(world.session(), world.chain, &changes).await.unwrap();
        assert_eq!(world.all().await.vaults[V], vault);
    }
}

/// The constraint that refuses a statement, at the latest at its commit.
async fn refused_by(db: &Client, sql: &str) -> Option<String> {
    let failed = db.batch_execute(&format!("begin; {sql}; commit")).await.err();
    db.batch_execute("rollback").await.unwrap();
    failed.map(|error| {
        let error = error.as_db_error().unwrap_or_else(|| panic!("{error:?}")).clone();
        error.constraint().unwrap_or(error.message()).to_owned()
    })
}

#[tokio::test]
async fn the_tables_refuse_what_cannot_be() {
    let mut world = Registered::new(Layout::A).await;
    for (height, time, events) in told(Layout::A, false) {
        world.apply(height, time, &events).await;
    }
    let two_to_the_256 = "115792089237316195423570985008687907853269984665640564039457584007913129639936";
    for (sql, constraint) in [
        ("update vaults set locked_balance = -1", "vaults_amounts_are_0_to_below_2_to_the_256"),
        (
            &format!("update option_rounds set premiums = {two_to_the_256}"),
            "option_rounds_amounts_are_0_to_below_2_to_the_256",
        ),
        ("update option_bids set price = 'NaN'", "option_bids_amounts_are_0_to_below_2_to_the_256"),
        ("update option_bids set tree_nonce = -1", "option_bids_tree_nonce_is_u64"),
        ("update option_bids set tree_nonce = 18446744073709551616", "option_bids_tree_nonce_is_u64"),
        ("update option_rounds set end_date = 18446744073709551616", "option_rounds_counters_are_u64"),
        ("update option_rounds set state = 'open'", "option_rounds_state_is_known"),
        ("update option_buyers set address = '0xB1'", "option_buyers_felts_are_in_canonical_text"),
        ("update vaults set eth_address = '0x01'", "vaults_felts_are_in_canonical_text"),
        ("update vaults set current_round = null", "vaults_round_has_number_and_address"),
        ("update option_rounds set round_id = 7", "option_rounds_vault_has_one_of_each_number"),
        ("delete from vaults", "option_rounds_vault_is_known"),
        ("delete from option_rounds where round_id = 1", "queued_liquidity_round_is_known"),
        (
            "insert into vault_registry (chain_id, address, layout) values (1, 'V', 'a')",
            "vault_registry_address_is_a_felt_in_canonical_text",
        ),
        (
            "insert into vault_registry (chain_id, address, layout) values (1, '0x12', 'c')",
            "vault_registry_layout_is_known",
        ),
        ("truncate vault_registry", "chain_tables_are_not_truncated"),
    ] {
        assert_eq!(refused_by(&world.db, sql).await.as_deref(), Some(constraint), "{sql}");
    }
    // What undo may do: numbers change places in one statement, and tables are restored in any order.
    for sql in [
        "update option_rounds set round_id = 3 - round_id",
        "delete from vaults; delete from option_rounds; delete from queued_liquidity; delete from option_bids; \
         delete from option_buyers",
    ] {
        assert_eq!(refused_by(&world.db, sql).await, None, "{sql}");
    }
}

#[tokio::test]
async fn a_registered_vault_sends_its_projection_back_to_where_it_may_begin() {
    let world = Registered::new(Layout::A).await;
    let db = &world.db;
    let sql = "insert into projections (name) values ('option_vaults') on conflict do nothing";
    db.execute(sql, &[]).await.unwrap();
    let redo = async || -> Option<i64> {
        let sql = "select redo_from from checkpoints where projection = 'option_vaults'";
        db.query_opt(sql, &[]).await.unwrap().and_then(|row| row.get(0))
    };
    let reset = async || {
        db.execute("update checkpoints set redo_from = null", &[]).await.unwrap();
    };
    // As people type it.
    let sql = "insert into vault_registry (chain_id, address, layout, from_height) values ($1, ' 0x00ABc ', 'B', 900)";
    db.execute(sql, &[&world.chain.0]).await.unwrap();
    assert_eq!(redo().await, Some(900));
    let row = db.query_one("select layout from vault_registry where address = '0xabc'", &[]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0), "b");
    // What the source writes sends nobody back.
    reset().await;
    db.execute("update vault_registry set indexed_through = 1000", &[]).await.unwrap();
    assert_eq!(redo().await, None);
    // Another start, another layout: both are read again, and the source begins again too.
    db.execute("update vault_registry set from_height = 800 where address = '0xabc'", &[]).await.unwrap();
    assert_eq!(redo().await, Some(800));
    let sql = "select count(*) from vault_registry where indexed_through is null";
    assert_eq!(db.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 1);
    reset().await;
    db.execute("update vault_registry set layout = 'a' where address = '0xabc'", &[]).await.unwrap();
    assert_eq!(redo().await, Some(800));
    reset().await;
    db.execute("delete from vault_registry where address = '0xabc'", &[]).await.unwrap();
    assert_eq!(redo().await, Some(800));
}

#[tokio::test]
async fn a_row_that_names_another_vault_by_now_is_caught_up_anew() {
    let world = Registered::new(Layout::A).await;
    let db = &world.db;
    let other = "insert into chains (name, kind, listed_only) values ('other', 'starknet', true) returning chain_id";
    let other: i64 = db.query_one(other, &[]).await.unwrap().get(0);
    db.batch_execute("update chains set listed_only = true").await.unwrap();
    // What is stored is another vault's, or of another chain: nothing of it counts for this one.
    for change in ["address = '0x0012'", &format!("chain_id = {other}")] {
        let sql = "update vault_registry set indexed_through = 1000, caught_up = true";
        db.execute(sql, &[]).await.unwrap();
        db.execute(&format!("update vault_registry set {change}"), &[]).await.unwrap();
        let sql = "select indexed_through, caught_up, address from vault_registry";
        let row = db.query_one(sql, &[]).await.unwrap();
        assert_eq!((row.get::<_, Option<i64>>(0), row.get(1), row.get(2)), (None, false, "0x12"), "{change}");
        let followed = async |chain: i64| {
            let addresses = [text("0x12")].into();
            statements::named(world.session(), ChainId(chain), &addresses).await.unwrap().registered.len()
        };
        assert_eq!((followed(world.chain.0).await, followed(other).await), (0, 0), "{change}");
    }
    // Another layout reads the same events in another way.
    db.execute("update vault_registry set indexed_through = 1000, caught_up = true", &[]).await.unwrap();
    db.execute("update vault_registry set layout = 'b'", &[]).await.unwrap();
    let sql = "select indexed_through, caught_up from vault_registry";
    let row = db.query_one(sql, &[]).await.unwrap();
    assert_eq!((row.get(0), row.get(1)), (Some(1000i64), true));
}

#[tokio::test]
async fn events_below_the_height_a_vault_is_registered_from_do_not_count() {
    let deployed = told(Layout::A, false).swap_remove(0).2;
    // Whether the range begins below that height or not.
    for (heights, counts) in [(vec![0, 899], false), (vec![899, 900], true), (vec![900], true), (vec![901], true)] {
        let mut world = Registered::new(Layout::A).await;
        world.db.execute("update vault_registry set from_height = 900", &[]).await.unwrap();
        let blocks: Vec<BlockEvents> = heights.iter().map(|height| block(*height, 0, &deployed)).collect();
        let refused = world.apply_range(&blocks).await;
        assert!(refused.is_empty(), "{heights:?}: {refused:?}");
        assert_eq!(world.all().await.vaults.len(), usize::from(counts), "{heights:?}");
    }
}

#[tokio::test]
async fn a_dropped_chain_leaves_no_vault() {
    let mut world = Registered::new(Layout::A).await;
    // As it is once a processor has run: the tables are the projection's, and nobody else writes them.
    world
        .db
        .batch_execute(
            "select register_projection('option_vaults', array(select 'ebbtide.' || t from unnest(array['vaults', 'vault_history',
                 'liquidity_providers', 'liquidity_provider_history', 'option_rounds', 'queued_liquidity', 'option_buyers',
                 'option_bids']) t), 'starknet');
             set ebbtide.write_tracked_tables = on",
        )
        .await
        .unwrap();
    for (height, time, events) in told(Layout::A, false) {
        world.apply(height, time, &events).await;
    }
    world.db.batch_execute("reset ebbtide.write_tracked_tables").await.unwrap();
    world.db.batch_execute("select drop_chain('main')").await.unwrap();
    for table in TABLES.iter().chain(&["vault_registry"]) {
        let left: i64 = world.db.query_one(&format!("select count(*) from {table}"), &[]).await.unwrap().get(0);
        assert_eq!(left, 0, "{table}");
    }
}
