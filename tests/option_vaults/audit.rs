//! `ebbtide verify option_vaults`: clean after honest work, and every kind of damage found.

use ebbtide::projections::option_vaults::Layout;

use crate::stored::Registered;
use crate::story::told;
use crate::support::{Ebbtide, Pg};

fn verify(pg: &Pg) -> (bool, Vec<String>) {
    let output = Ebbtide::output(&["verify", "option_vaults", "--database-url", &pg.url], &[]);
    let code = output.status.code();
    assert!(matches!(code, Some(0 | 1)), "verify ended with {code:?}: {}", String::from_utf8_lossy(&output.stderr));
    (code == Some(0), String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect())
}

async fn told_and_applied(layout: Layout) -> Registered {
    let world = Registered::new(layout).await;
    let mut parent = "0xaaa".to_owned();
    for (height, time, events) in told(layout, false) {
        // A branch that is taken back again.
        if height == 106 {
            world.put(height, time + 1, &parent, "dd", &[]).await;
            Ebbtide::succeed(&["process", "--database-url", &world.pg.url, "--once"], &[]);
        }
        parent = world.put(height, time, &parent, "c0", &events).await;
    }
    Ebbtide::succeed(&["process", "--database-url", &world.pg.url, "--once"], &[]);
    world
}

#[tokio::test]
async fn the_worked_example_is_computed_again_without_a_difference() {
    for layout in [Layout::A, Layout::B] {
        let world = told_and_applied(layout).await;
        let (clean, lines) = verify(&world.pg);
        println!("{layout:?}: {}", lines.join("\n"));
        let rows: i64 = world
            .db
            .query_one(
                "select (select count(*) from vaults) + (select count(*) from vault_history)
                    + (select count(*) from liquidity_providers) + (select count(*) from liquidity_provider_history)
                    + (select count(*) from option_rounds) + (select count(*) from queued_liquidity)
                    + (select count(*) from option_buyers) + (select count(*) from option_bids)",
                &[],
            )
            .await
            .unwrap()
            .get(0);
        let told =
            format!("Verified option_vaults on main: 8 blocks with events computed again, {rows} rows: no difference.");
        assert!(clean && rows > 20 && lines == [told], "{rows}: {lines:?}");
    }
}

#[tokio::test]
async fn every_kind_of_damage_to_option_vaults_is_found() {
    let world = told_and_applied(Layout::A).await;
    world.db.batch_execute("set ebbtide.write_tracked_tables = on").await.unwrap();
    let cases: &[(&str, &str, &[&str])] = &[
        (
            "update vaults set unlocked_balance = unlocked_balance + 1",
            "update vaults set unlocked_balance = unlocked_balance - 1",
            &[
                "vault history 0x11: ours row at 108: 5603",
                "ebbtide.vaults: only in the table {",
                "ebbtide.vaults: only recomputed {",
            ],
        ),
        (
            "update liquidity_providers set stashed_balance = 9 where address = '0xa1'",
            "update liquidity_providers set stashed_balance = 0 where address = '0xa1'",
            &["provider history 0xa1 in 0x11", "ebbtide.liquidity_providers: only in the table {"],
        ),
        // Both the row and its history: only the computation tells.
        (
            "update liquidity_providers set stashed_balance = 9 where address = '0xa1';
             update liquidity_provider_history set stashed_balance = 9 where address = '0xa1' and height = 108",
            "update liquidity_providers set stashed_balance = 0 where address = '0xa1';
             update liquidity_provider_history set stashed_balance = 0 where address = '0xa1' and height = 108",
            &[
                "ebbtide.liquidity_providers: only in the table {",
                "ebbtide.liquidity_provider_history: only recomputed {",
            ],
        ),
        (
            "update option_rounds set round_id = 3 where address = '0x22'",
            "update option_rounds set round_id = 2 where address = '0x22'",
            &[
                "round numbers 0x11: ours 2 rounds; recomputed numbered 1 to 3",
                "current round 0x11: ours 2 at 0x22; recomputed 3 at 0x22",
            ],
        ),
        (
            "update option_buyers set mintable_options = 13 where address = '0xb1'",
            "update option_buyers set mintable_options = 12 where address = '0xb1'",
            &[
                "sold options 0x21: ours 20; recomputed buyers may mint 21",
                "ebbtide.option_buyers: only in the table {",
            ],
        ),
        (
            "update option_bids set price = price + 1 where bid_id = '0xc1'",
            "update option_bids set price = price - 1 where bid_id = '0xc1'",
            &["paid in 0x21: ours premiums 300 and refunds", "ebbtide.option_bids: only in the table {"],
        ),
        (
            "update queued_liquidity set queued_liquidity = 1999",
            "update queued_liquidity set queued_liquidity = 2000",
            &["queued liquidity 0x21: ours 2000; recomputed providers queued 1999"],
        ),
        (
            "create table public.kept as table option_bids; delete from option_bids where bid_id = '0xc2'",
            "insert into option_bids select * from public.kept where bid_id = '0xc2'",
            &["ebbtide.option_bids: only recomputed {"],
        ),
        (
            "insert into rejected_events select chain_id, 105, 0, 1, 'option_vaults', 'x', '{}', 'bid_exists' from chains",
            "delete from rejected_events",
            &["rejected event 105/0/1: ours bid_exists; recomputed to be taken"],
        ),
    ];
    for (harm, mend, words) in cases {
        world.db.batch_execute(harm).await.unwrap_or_else(|e| panic!("{harm}: {e:?}"));
        let (clean, lines) = verify(&world.pg);
        let text = lines.join("\n");
        assert!(!clean, "not found: {harm}\n{text}");
        for word in *words {
            assert!(text.contains(word), "{word:?} is not named after {harm}:\n{text}");
        }
        world.db.batch_execute(mend).await.unwrap_or_else(|e| panic!("{mend}: {e:?}"));
        let (clean, lines) = verify(&world.pg);
        assert!(clean, "still there after {mend}: {lines:?}");
    }
    println!("{} kinds of damage were found", cases.len());
}
