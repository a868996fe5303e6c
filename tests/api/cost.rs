//! What a page costs.

use ebbtide::api::{ApiSettings, routes};
use ebbtide::store::reads::ALONG_INDEXES;
use ebbtide::store::{Store, StoreSettings};
use serde_json::Value;

use crate::ledger::{Ledger, get};
use crate::support::FaultProxy;

/// What a connection of the interface tells the planner.
fn along_indexes() -> String {
    ALONG_INDEXES.iter().map(|(name, value)| format!("set local {name} = {value};")).collect()
}

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
                truncate balances, balance_history, token_totals;
                insert into balances (chain_id, token, address, amount, height)
                select chain_id, token, to_address, count(*), max(height) from token_events group by 1, 2, 3;
                insert into token_totals select chain_id, token, sum(amount) from balances group by 1, 2;
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
        ledger.sql(&format!("begin; {}", along_indexes())).await;
        let mut here = Vec::new();
        for (name, sql, parameters) in statements {
            here.push((name, pages(&ledger, sql, parameters).await));
        }
        for (name, sql, arguments) in NOW {
            here.push((name, pages_of_a_kept_plan(&ledger, sql, arguments).await));
        }
        ledger.sql("rollback").await;
        costs.push(here);
    }
    println!("pages read, by 5,000 and by 100,000 events: {costs:?}");
    for ((name, short), (_, long)) in costs[0].iter().zip(&costs[1]) {
        assert!(*long <= 2 * short + 40, "{name}: {short} pages of 8 KiB on the short chain, {long} on the long one");
    }
}

#[tokio::test]
async fn a_page_of_vaults_costs_the_same_among_many_as_among_few() {
    let ledger = Ledger::with_chain("main", "starknet").await;
    let mut costs: Vec<Vec<(&str, i64)>> = Vec::new();
    for (from, to) in [(1i64, 20i64), (21, 400)] {
        // Each vault has 40 providers, 10 changes of each, 4 rounds, 10 bids in each; account 0xa1 is in the first ten.
        ledger
            .sql(&format!(
                "create or replace function pg_temp.felt(text, bigint) returns text
                language sql as $f$ select '0x' || $1 || to_hex($2) $f$;
                insert into vaults (chain_id, address, layout, unlocked_balance, latest_block, latest_block_hash)
                select 1, pg_temp.felt('f', v), 'a', 100, 100, '0xb' from generate_series({from}, {to}) v;
                insert into vault_history (chain_id, address, height, block_hash, unlocked_balance)
                select 1, pg_temp.felt('f', v), h * 10, '0xb', h * 10
                from generate_series({from}, {to}) v, generate_series(1, 10) h;
                insert into liquidity_providers (chain_id, vault_address, address, unlocked_balance, latest_block,
                    latest_block_hash)
                select 1, pg_temp.felt('f', v), pg_temp.felt('c', v * 100 + n), 100, 100, '0xb'
                from generate_series({from}, {to}) v, generate_series(1, 39) n
                union all
                select 1, pg_temp.felt('f', v), '0xa1', 100, 100, '0xb' from generate_series({from}, {to}) v where v <= 10;
                insert into liquidity_provider_history (chain_id, vault_address, address, height, block_hash,
                    unlocked_balance)
                select 1, p.vault_address, p.address, h * 10, '0xb', h * 10
                from liquidity_providers p, generate_series(1, 10) h
                on conflict do nothing;
                insert into option_rounds (chain_id, address, vault_address, round_id, state, start_date, end_date,
                    settlement_date, latest_block, latest_block_hash)
                select 1, pg_temp.felt('e', v * 10 + n), pg_temp.felt('f', v), n, 'Open', 1, 2, 3, 100, '0xb'
                from generate_series({from}, {to}) v, generate_series(1, 4) n;
                insert into option_bids (chain_id, vault_address, round_address, bid_id, buyer_address, tree_nonce,
                    latest_block, latest_block_hash)
                select 1, r.vault_address, r.address, pg_temp.felt('d', n),
                    case when n = 1 and length(r.address) <= 5 then '0xb1' else pg_temp.felt('b', n * 7919) end, n, 100, '0xb'
                from option_rounds r, generate_series(1, 10) n
                on conflict do nothing;
                insert into option_buyers (chain_id, vault_address, round_address, address, latest_block,
                    latest_block_hash)
                select 1, vault_address, round_address, buyer_address, 100, '0xb' from option_bids on conflict do nothing;
                insert into queued_liquidity (chain_id, vault_address, round_address, address, latest_block,
                    latest_block_hash)
                select 1, vault_address, round_address, buyer_address, 100, '0xb' from option_bids on conflict do nothing"
            ))
            .await;
        ledger.sql("vacuum analyze").await;
        let (vault, round, none, nothing) = ("0xf3", "0xe1f", None::<&str>, "");
        let (now, then, ten) = (i64::MAX, 55i64, 10i64);
        let first = None::<ebbtide::store::numeric::Numeric>;
        let statements: [(&str, &str, &[&(dyn tokio_postgres::types::ToSql + Sync)]); 12] = [
            ("vaults", include_str!("../../sql/queries/vaults_at.sql"), &[&1i64, &then, &"0xf2", &none, &ten]),
            ("vault", include_str!("../../sql/queries/vaults_at.sql"), &[&1i64, &then, &nothing, &Some(vault), &1i64]),
            (
                "providers",
                include_str!("../../sql/queries/providers_of_vault.sql"),
                &[&1i64, &then, &vault, &"0xc13", &none, &ten],
            ),
            (
                "vaults of an account",
                include_str!("../../sql/queries/providers_of_account.sql"),
                &[&1i64, &then, &"0xa1", &"0xf2", &ten],
            ),
            (
                "the same now",
                include_str!("../../sql/queries/providers_of_account.sql"),
                &[&1i64, &now, &"0xa1", &nothing, &ten],
            ),
            ("rounds", include_str!("../../sql/queries/rounds_of_vault.sql"), &[&1i64, &vault, &first, &ten]),
            ("round", include_str!("../../sql/queries/round_at.sql"), &[&1i64, &round]),
            ("bids", include_str!("../../sql/queries/bids_of_round.sql"), &[&1i64, &round, &"0xd2", &ten]),
            ("buyers", include_str!("../../sql/queries/buyers_of_round.sql"), &[&1i64, &round, &nothing, &ten]),
            ("queue", include_str!("../../sql/queries/queue_of_round.sql"), &[&1i64, &round, &nothing, &ten]),
            (
                "bids of an account",
                include_str!("../../sql/queries/bids_of_account.sql"),
                &[&1i64, &"0xb1", &"0xe2", &"0xd1", &ten],
            ),
            (
                "options of an account",
                include_str!("../../sql/queries/options_of_account.sql"),
                &[&1i64, &"0xb1", &"0xe2", &ten],
            ),
        ];
        ledger.sql(&format!("begin; {}", along_indexes())).await;
        let mut here = Vec::new();
        for (name, sql, parameters) in statements {
            here.push((name, pages(&ledger, sql, parameters).await));
        }
        ledger.sql("rollback").await;
        costs.push(here);
    }
    println!("pages read, among 20 and among 400 vaults: {costs:?}");
    for ((name, few), (_, many)) in costs[0].iter().zip(&costs[1]) {
        assert!(*many <= 2 * few + 20, "{name}: {few} pages of 8 KiB among few vaults, {many} among many");
    }
}

/// The statements that read balances as they are now, with arguments.
const NOW: [(&str, &str, &str); 5] = [
    (
        "balance_now",
        concat!(
            "with chain as (",
            include_str!("../../sql/queries/chain_now.sql"),
            ")",
            include_str!("../../sql/queries/balance_now.sql")
        ),
        "null, 'token_balances', array['evm', 'other'], array['no', 'token-3'], array['no', 'account-3']",
    ),
    (
        "balances_of_account_now",
        concat!(
            "with chain as (",
            include_str!("../../sql/queries/chain_now.sql"),
            ")",
            include_str!("../../sql/queries/balances_of_account_now.sql")
        ),
        "null, 'token_balances', array['evm', 'other'], array['no', 'account-3'], '', false, 10",
    ),
    (
        "balances_of_token_now",
        concat!(
            "with chain as (",
            include_str!("../../sql/queries/chain_now.sql"),
            ")",
            include_str!("../../sql/queries/balances_of_token_now.sql")
        ),
        "null, 'token_balances', array['evm', 'other'], array['no', 'token-3'], 'account-3', false, 10",
    ),
    ("totals_now", TOTALS_NOW, "null, 'token_balances', '', false, 10"),
    ("totals_now with zeros", TOTALS_NOW, "null, 'token_balances', '', true, 10"),
];

const TOTALS_NOW: &str = concat!(
    "with chain as (",
    include_str!("../../sql/queries/chain_now.sql"),
    ")",
    include_str!("../../sql/queries/totals_now.sql")
);

/// Pages of 8 KiB a statement reads by the plan that is made without knowing its arguments, and kept.
async fn pages_of_a_kept_plan(ledger: &Ledger, sql: &str, arguments: &str) -> i64 {
    ledger.sql(&format!("prepare kept as {sql}")).await;
    let explain = format!("explain (analyze, buffers, format json) execute kept({arguments})");
    let plan: Value = ledger.db.query_one(&explain, &[]).await.unwrap().get(0);
    ledger.sql("deallocate kept").await;
    let text = plan.to_string();
    assert!(text.contains("$1"), "a plan for these arguments alone: {text}");
    let root = &plan[0]["Plan"];
    assert_eq!(root["Actual Rows"].as_f64(), Some(1.0), "{text}");
    root["Shared Hit Blocks"].as_i64().unwrap() + root["Shared Read Blocks"].as_i64().unwrap()
}

/// Pages of 8 KiB a statement reads; it must find something.
async fn pages(ledger: &Ledger, sql: &str, parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)]) -> i64 {
    let explain = format!("explain (analyze, buffers, format json) {sql}");
    let plan: Value = ledger.db.query_one(&explain, parameters).await.unwrap().get(0);
    let root = &plan[0]["Plan"];
    assert!(root["Actual Rows"].as_f64().unwrap() > 0.0, "found nothing: {sql}");
    root["Shared Hit Blocks"].as_i64().unwrap() + root["Shared Read Blocks"].as_i64().unwrap()
}

#[tokio::test]
async fn an_account_costs_its_tokens_and_totals_cost_their_page_whatever_the_chain_holds() {
    let ledger = Ledger::with_chain("mine", "other").await;
    let mut costs: Vec<Vec<(&str, i64)>> = Vec::new();
    for (from, to) in [(0i64, 20i64), (20, 10_000)] {
        // Tokens by an account of their own; the one that is asked about has three of them.
        ledger
            .sql(&format!(
                "insert into balances (chain_id, token, address, amount, height)
                select 1, 'token-' || lpad(n::text, 6, '0'), 'owner-' || n, 1, 1 from generate_series({from}, {to} - 1) n
                union all
                select 1, 'token-' || lpad(n::text, 6, '0'), 'account', 1, 1 from generate_series({from}, {to} - 1) n
                where n in (0, 7, 19);
                insert into token_totals select chain_id, token, sum(amount) from balances group by 1, 2
                on conflict (chain_id, token) do update set total = excluded.total;
                insert into checkpoints (chain_id, projection, height, hash, through_height)
                values (1, 'token_balances', 1, 'h1', 1) on conflict do nothing"
            ))
            .await;
        ledger.sql("vacuum analyze").await;
        ledger.sql(&format!("begin; {}", along_indexes())).await;
        let mut here = Vec::new();
        let account = "null, 'token_balances', array['evm', 'other'], array['no', 'account'], '', false, 10";
        let (name, sql, _) = NOW[1];
        here.push((name, pages_of_a_kept_plan(&ledger, sql, account).await));
        for (name, sql, arguments) in &NOW[3..] {
            here.push((name, pages_of_a_kept_plan(&ledger, sql, arguments).await));
        }
        let (now, none, no, ten) = (i64::MAX, None::<&str>, false, 10i64);
        let sql = include_str!("../../sql/queries/balances_of_account.sql");
        here.push((
            "balances_of_account",
            pages(&ledger, sql, &[&1i64, &"", &none, &"account", &now, &no, &ten]).await,
        ));
        let sql = include_str!("../../sql/queries/tokens_of_account.sql");
        here.push(("tokens_of_account", pages(&ledger, sql, &[&1i64, &"account"]).await));
        ledger.sql("rollback").await;
        costs.push(here);
    }
    println!("pages read, by 20 and by 10,000 tokens: {costs:?}");
    for ((name, few), (_, many)) in costs[0].iter().zip(&costs[1]) {
        assert!(*many <= 2 * few + 40, "{name}: {few} pages of 8 KiB by 20 tokens, {many} by 10,000");
    }
}

/// Anybody can make many balances negative that are not shown, in front of those that are.
#[tokio::test]
async fn balances_that_are_not_shown_cost_a_request_no_more_statements() {
    let ledger = Ledger::with_chain("mine", "other").await;
    ledger
        .sql(
            "insert into balances (chain_id, token, address, amount, height)
             select 1, 'gold', lpad(n::text, 6, '0'), case when n < 50000 then -1 else 7 end, 1 from generate_series(0, 50004) n
             union all
             select 1, 'token-' || lpad(n::text, 6, '0'), 'account', case when n < 50000 then -1 else 7 end, 1
             from generate_series(0, 50004) n;
             insert into blocks (chain_id, height, hash, parent_hash) values (1, 1, 'h1', 'h0');
             insert into checkpoints (chain_id, projection, height, hash, through_height) values (1, 'token_balances', 1, 'h1', 1);
             insert into applied_blocks (chain_id, projection, height, hash, revision)
             select 1, 'token_balances', height, hash, revision from blocks",
        )
        .await;
    ledger.sql("vacuum analyze").await;
    let proxy = FaultProxy::in_front_of(&ledger.pg.url).await;
    let store = Store::open(&proxy.url(&ledger.pg.url), StoreSettings::default()).unwrap();
    let api = routes(store, ApiSettings::default());
    for (path, list, limit) in [
        ("/tokens/gold/balances?limit=3", "accountBalances", 3),
        ("/tokens/gold/balances?limit=1", "accountBalances", 1),
        ("/tokens/balances?address=account&limit=3", "balances", 3),
    ] {
        let (mut cursor, mut shown, mut negative, mut requests) = (String::new(), Vec::new(), 0, 0);
        loop {
            let from = proxy.count();
            let reply = get(&api, &format!("{path}{cursor}")).await;
            assert_eq!(reply.status, 200, "{}", reply.text);
            let sent = proxy.messages().into_iter().skip(usize::try_from(from).unwrap());
            let statements =
                sent.filter(|message| message.starts_with("Query") || message.starts_with("Execute")).count();
            assert!(statements <= 20, "{path}: {statements} statements");
            requests += 1;
            negative += reply.header("x-negative-balances").map_or(0, |count| count.parse::<u64>().unwrap());
            let body = reply.json();
            let page = body[list].as_array().unwrap();
            assert!(page.len() <= limit);
            shown.extend(page.iter().map(|row| row["amount"].clone()));
            let Some(next) = body["nextCursor"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        assert_eq!(shown, vec!["7"; 5], "{path}");
        assert_eq!(negative, 50_000, "{path}");
        println!("{path}: {requests} requests");
    }
}
