//! What a page costs.

use serde_json::Value;

use crate::ledger::Ledger;

#[tokio::test]
async fn a_page_costs_the_same_on_a_long_chain_as_on_a_short_one() {
    let ledger = Ledger::with_chain("mine", "other").await;
    let mut costs: Vec<Vec<(&str, i64)>> = Vec::new();
    for (from, to) in [(1i64, 500i64), (501, 10_000)] {
        // Ten events a block, by 7 tokens and 500 accounts; the accounts stay the same as the chain grows.
        ledger
            .sql(&format!(
                "set ebbtide.bulk = 'on';
                insert into token_events (chain_id, height, tx_index, event_index, token, to_address, amount)
                select 1, h, n, 0, 'token-' || (h + n) % 7, 'account-' || (h * 10 + n) % 500, 1
                from generate_series({from}, {to}) h, generate_series(0, 9) n;
                insert into blocks (chain_id, height, hash, parent_hash)
                select 1, h, 'h' || h, 'h' || (h - 1) from generate_series({from}, {to}) h;
                set ebbtide.bulk = 'off';
                truncate balances, balance_history;
                insert into balances (chain_id, token, address, amount, height)
                select chain_id, token, to_address, count(*), max(height) from token_events group by 1, 2, 3;
                insert into balance_history (balance_id, chain_id, height, delta, balance_after, prev_height)
                select balance_id, chain_id, e.height, count(*), sum(count(*)) over w, lag(e.height) over w
                from token_events e join balances b using (chain_id, token)
                where b.address = e.to_address group by balance_id, chain_id, e.height
                window w as (partition by balance_id order by e.height);
                delete from applied_blocks;
                insert into applied_blocks (chain_id, projection, height, hash, revision)
                select 1, 'token_balances', height, hash, revision from blocks where height > {to} - 64;
                insert into checkpoints (chain_id, projection, height, hash, through_height)
                values (1, 'token_balances', {to}, 'h' || {to}, {to})
                on conflict (chain_id, projection) do update set height = {to}, hash = 'h' || {to}, through_height = {to};
                update chains set final_height = {to} - 64"
            ))
            .await;
        ledger.sql("vacuum analyze").await;
        let (middle, account) = (to / 2, "account-7");
        let heights: Vec<i64> = (1..=to).rev().step_by(50).take(40).collect();
        let tokens: Vec<String> = (0..7).map(|n| format!("token-{n}")).collect();
        let (none, no, balances) = (None::<&str>, false, "token_balances");
        let (zero, ten, low, settled) = (0i64, 10i64, i64::MIN, to - 63);
        let statements: [(&str, &str, &[&(dyn tokio_postgres::types::ToSql + Sync)]); 7] = [
            ("chain_to_read", include_str!("../../sql/queries/chain_to_read.sql"), &[&none, &balances]),
            (
                "history",
                include_str!("../../sql/queries/history.sql"),
                &[&1i64, &middle, &zero, &zero, &low, &settled, &no, &ten],
            ),
            (
                "heights_of_account",
                include_str!("../../sql/queries/heights_of_account.sql"),
                &[&1i64, &tokens, &account, &middle, &ten],
            ),
            (
                "history_of_account",
                include_str!("../../sql/queries/history_of_account.sql"),
                &[&1i64, &heights, &account, &to, &zero, &zero, &settled, &no, &ten],
            ),
            (
                "balances_of_token",
                include_str!("../../sql/queries/balances_of_token.sql"),
                &[&1i64, &"token-3", &"account-3", &"token-4", &middle, &no, &ten],
            ),
            (
                "balances_of_account",
                include_str!("../../sql/queries/balances_of_account.sql"),
                &[&1i64, &"", &none, &account, &middle, &no, &ten],
            ),
            (
                "applied_block_at",
                include_str!("../../sql/queries/applied_block_at.sql"),
                &[&1i64, &middle, &settled, &balances],
            ),
        ];
        ledger.sql(&format!("begin; {}", include_str!("../../sql/queries/walk_indexes.sql"))).await;
        let mut here = Vec::new();
        for (name, sql, parameters) in statements {
            let explain = format!("explain (analyze, buffers, format json) {sql}");
            let plan: Value = ledger.db.query_one(&explain, parameters).await.unwrap().get(0);
            let root = &plan[0]["Plan"];
            assert!(name == "chain_to_read" || root["Actual Rows"].as_i64().unwrap() > 0, "{name} found nothing");
            here.push((
                name,
                root["Shared Hit Blocks"].as_i64().unwrap() + root["Shared Read Blocks"].as_i64().unwrap(),
            ));
        }
        ledger.sql("rollback").await;
        costs.push(here);
    }
    println!("pages read, by 5,000 and by 100,000 events: {costs:?}");
    for ((name, short), (_, long)) in costs[0].iter().zip(&costs[1]) {
        assert!(*long <= 2 * short + 40, "{name}: {short} pages of 8 KiB on the short chain, {long} on the long one");
    }
}
