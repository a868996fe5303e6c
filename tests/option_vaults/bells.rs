//! What the tables tell: one notification a row, with the row; summaries; nothing where nothing changed.

use std::collections::BTreeMap;

use ebbtide::projections::option_vaults::Layout;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio_postgres::{AsyncMessage, Client, NoTls};

use crate::stored::Registered;
use crate::story::{V, told};
use crate::support::PATIENCE;

const CHANNELS: [&str; 6] =
    ["lp_row_update", "vault_update", "state_transition", "ob_update", "or_update", "bids_update"];

pub struct Ear {
    /// Keeps the connection open.
    _client: Client,
    heard: UnboundedReceiver<(String, String)>,
    rounds: u32,
}

impl Ear {
    pub async fn on(url: &str) -> Ear {
        let (client, mut connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
        let (tell, heard) = unbounded_channel();
        tokio::spawn(async move {
            while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
                if let AsyncMessage::Notification(n) = message {
                    // The test may have ended.
                    let _ = tell.send((n.channel().to_owned(), n.payload().to_owned()));
                }
            }
        });
        for channel in CHANNELS.iter().chain(&["heard"]) {
            client.batch_execute(&format!("listen {channel}")).await.unwrap();
        }
        Ear { _client: client, heard, rounds: 0 }
    }

    /// All that was told up to now, in order. A bell of our own, rung after the others, says when that is all.
    pub async fn hear(&mut self, db: &Client) -> Vec<(String, Value)> {
        self.rounds += 1;
        let last = self.rounds.to_string();
        db.execute("select pg_notify('heard', $1)", &[&last]).await.unwrap();
        let mut told = Vec::new();
        loop {
            let next = tokio::time::timeout(PATIENCE, self.heard.recv()).await;
            let (channel, payload) = next.expect("a bell").expect("an open connection");
            if channel == "heard" {
                if payload == last {
                    return told;
                }
                continue;
            }
            assert!(payload.len() < 7900, "{} bytes", payload.len());
            told.push((channel, serde_json::from_str(&payload).unwrap()));
        }
    }
}

/// `channel op table key height`, sorted: rows of one statement have no order.
pub fn lines(told: &[(String, Value)]) -> Vec<String> {
    let mut lines: Vec<String> = told
        .iter()
        .map(|(channel, p)| {
            let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            if channel == "state_transition" {
                let parts = ["op", "vault", "round_id", "round", "from", "to", "height"].map(|part| word(&p[part]));
                return format!("{channel} {}", parts.join(" "));
            }
            let key: BTreeMap<String, Value> = serde_json::from_value(p["key"].clone()).unwrap();
            let key = key.values().map(word).collect::<Vec<_>>().join(",");
            let rows = p.get("rows").map_or_else(String::new, |n| format!(" rows {n}"));
            format!("{channel} {} {} {key} {}{rows}", word(&p["op"]), word(&p["table"]), p["height"])
        })
        .collect();
    lines.sort();
    lines
}

#[tokio::test]
async fn every_change_of_a_row_is_told_on_its_channel_in_both_directions() {
    let mut world = Registered::new(Layout::A).await;
    let mut ear = Ear::on(&world.pg.url).await;
    let mut heard = BTreeMap::new();
    let mut count = 0;
    for (height, time, events) in told(Layout::A, false) {
        world.apply(height, time, &events).await;
        let told = ear.hear(&world.db).await;
        count += told.len();
        heard.insert(height, told);
    }
    println!("{count} notifications for the worked example");
    assert_eq!(
        lines(&heard[&101]),
        [
            "or_update insert option_rounds 0x21,1,0x11 101",
            "state_transition insert 0x11 1 0x21 null Open 101",
            "vault_update insert vaults 0x11 101",
        ]
    );
    assert_eq!(
        lines(&heard[&104]),
        [
            "bids_update insert option_bids 0xc1,0x21,0x11 104",
            "bids_update insert option_bids 0xc2,0x21,0x11 104",
            "ob_update insert option_buyers 0xb1,0x21,0x11 104",
            "ob_update insert option_buyers 0xb2,0x21,0x11 104",
        ]
    );
    assert_eq!(
        lines(&heard[&105]),
        [
            "bids_update insert option_bids 0xc3,0x21,0x11 105",
            "bids_update update option_bids 0xc2,0x21,0x11 105",
            "lp_row_update update liquidity_providers 0xa1,0x11 105",
            "vault_update update vaults 0x11 105",
        ]
    );
    assert_eq!(
        lines(&heard[&107]),
        [
            "lp_row_update insert queued_liquidity 0xa2,0x21,0x11 107",
            "ob_update update option_buyers 0xb1,0x21,0x11 107",
            "ob_update update option_buyers 0xb2,0x21,0x11 107",
            "or_update update option_rounds 0x21,1,0x11 107",
        ]
    );
    assert_eq!(
        lines(&heard[&108]),
        [
            "lp_row_update update liquidity_providers 0xa1,0x11 108",
            "lp_row_update update liquidity_providers 0xa2,0x11 108",
            "ob_update update option_buyers 0xb2,0x21,0x11 108",
            "or_update insert option_rounds 0x22,2,0x11 108",
            "or_update update option_rounds 0x21,1,0x11 108",
            "state_transition insert 0x11 2 0x22 null Open 108",
            "state_transition update 0x11 1 0x21 Running Settled 108",
            "vault_update update vaults 0x11 108",
        ]
    );
    let vault = heard[&106].iter().find(|(channel, _)| channel == "vault_update").unwrap().1.clone();
    assert_eq!(vault["chain_id"], json!(world.chain.0));
    // What the contract said as text, heights as numbers.
    assert_eq!((&vault["row"]["unlocked_balance"], &vault["row"]["current_round"]), (&json!("801"), &json!("1")));
    assert_eq!(vault["row"]["latest_block"], json!(106));
    let round = heard[&107].iter().find(|(channel, _)| channel == "or_update").unwrap().1.clone();
    assert_eq!(round["key"]["round_id"], json!("1"));
    assert_eq!(vault["row"]["latest_block_hash"], json!("0xb106"));

    // As undo leaves it: rows deleted, rows as they were.
    world
        .db
        .batch_execute(
            "begin; delete from option_rounds where address = '0x22';
             update option_rounds set state = 'Running', settlement_price = 0, latest_block = 107 where round_id = 1;
             delete from queued_liquidity; delete from option_bids where bid_id = '0xc3';
             delete from option_buyers where address = '0xb2'; delete from liquidity_providers where address = '0xa1';
             commit",
        )
        .await
        .unwrap();
    assert_eq!(
        lines(&ear.hear(&world.db).await),
        [
            "bids_update delete option_bids 0xc3,0x21,0x11 105",
            "lp_row_update delete liquidity_providers 0xa1,0x11 108",
            "lp_row_update delete queued_liquidity 0xa2,0x21,0x11 107",
            "ob_update delete option_buyers 0xb2,0x21,0x11 108",
            "or_update delete option_rounds 0x22,2,0x11 108",
            "or_update update option_rounds 0x21,1,0x11 107",
            "state_transition delete 0x11 2 0x22 Open null 108",
            "state_transition update 0x11 1 0x21 Settled Running 107",
        ]
    );
    // Nothing changed, or it was taken back: silence.
    world
        .db
        .batch_execute(
            "update option_rounds set premiums = premiums; update vaults set locked_balance = 1 where address = 'none';
             begin; update vaults set locked_balance = 7; rollback",
        )
        .await
        .unwrap();
    assert_eq!(lines(&ear.hear(&world.db).await), [""; 0]);
    world
        .db
        .batch_execute(
            "delete from option_bids; delete from option_buyers; delete from option_rounds; delete from vaults",
        )
        .await
        .unwrap();
    let gone = lines(&ear.hear(&world.db).await);
    assert!(gone.contains(&format!("vault_update delete vaults {V} 108")), "{gone:?}");
}

#[tokio::test]
async fn a_statement_of_many_rows_is_told_once_a_vault() {
    let world = Registered::new(Layout::A).await;
    let mut ear = Ear::on(&world.pg.url).await;
    let insert = async |vault: &str, count: i32, height: i64| {
        let sql = "insert into liquidity_providers (chain_id, vault_address, address, latest_block, latest_block_hash)
                   select $1, $2, '0x' || to_hex(n), $4, '0xb' from generate_series(1, $3) n";
        world.db.execute(sql, &[&world.chain.0, &vault, &count, &height]).await.unwrap();
    };
    insert("0x11", 200, 5).await;
    let told = ear.hear(&world.db).await;
    assert_eq!(told.len(), 200);
    assert!(told.iter().all(|(_, payload)| payload["row"].is_object()));
    insert("0x12", 201, 6).await;
    assert_eq!(lines(&ear.hear(&world.db).await), ["lp_row_update insert liquidity_providers 0x12 6 rows 201"]);
    world.db.execute("update liquidity_providers set unlocked_balance = 1, latest_block = 7", &[]).await.unwrap();
    let both = ear.hear(&world.db).await;
    assert_eq!(
        lines(&both),
        [
            "lp_row_update update liquidity_providers 0x11 7 rows 200",
            "lp_row_update update liquidity_providers 0x12 7 rows 201",
        ]
    );
    assert_eq!(both[0].1["key"].as_object().unwrap().keys().collect::<Vec<_>>(), ["vault_address"]);
    world.db.execute("delete from liquidity_providers", &[]).await.unwrap();
    assert_eq!(ear.hear(&world.db).await.len(), 2);
    let sql = "insert into option_rounds (chain_id, address, vault_address, round_id, state, start_date, end_date,
                   settlement_date, latest_block, latest_block_hash)
               select $1, '0x' || to_hex(n), '0x11', n, 'Open', 0, 0, 0, 8, '0xb' from generate_series(1, 201) n";
    // The rounds' vault is asked for at the commit alone.
    world
        .db
        .batch_execute(
            "begin; insert into vaults (chain_id, address, layout, latest_block, latest_block_hash)
        select chain_id, '0x11', 'a', 1, '0xb' from chains",
        )
        .await
        .unwrap();
    world.db.execute(sql, &[&world.chain.0]).await.unwrap();
    world.db.batch_execute("commit").await.unwrap();
    let told = ear.hear(&world.db).await;
    let channels: Vec<&str> = told.iter().map(|(channel, _)| channel.as_str()).collect();
    assert_eq!(channels, ["vault_update", "or_update", "state_transition"]);
    assert_eq!(
        (&told[2].1["rows"], &told[2].1["vault"], &told[2].1["height"]),
        (&json!(201), &json!("0x11"), &json!(8))
    );
}

#[tokio::test]
async fn a_payload_always_fits() {
    let world = Registered::new(Layout::A).await;
    let mut ear = Ear::on(&world.pg.url).await;
    // The widest row there can be.
    let felt = format!("0x7{}", "f".repeat(62));
    let most = "115792089237316195423570985008687907853269984665640564039457584007913129639935";
    let amounts = [
        "strike_price",
        "cap_level",
        "reserve_price",
        "available_options",
        "starting_liquidity",
        "queued_liquidity",
        "sold_options",
        "clearing_price",
        "premiums",
        "unsold_liquidity",
        "settlement_price",
        "payout_per_option",
        "remaining_liquidity",
    ];
    let sql = format!(
        "begin;
         insert into vaults (chain_id, address, layout, latest_block, latest_block_hash)
         values ({chain}, '{felt}', 'a', 1, '0xb');
         insert into option_rounds (chain_id, address, vault_address, round_id, state, start_date, end_date,
             settlement_date, deployment_date, latest_block, latest_block_hash, {names})
         values ({chain}, '{felt}', '{felt}', {number}, 'Auctioning', {number}, {number}, {number}, {number}, {number},
             '{hash}', {values});
         commit",
        chain = world.chain.0,
        names = amounts.join(", "),
        number = i64::MAX,
        hash = "x".repeat(256),
        values = amounts.map(|_| most).join(", "),
    );
    world.db.batch_execute(&sql).await.unwrap();
    let told = ear.hear(&world.db).await;
    let round = &told.iter().find(|(channel, _)| channel == "or_update").unwrap().1;
    assert_eq!(round["row"]["premiums"], json!(most));
    println!("the widest payload: {} bytes", round.to_string().len());
    // No row of these tables is too long; should one become so, its name is told without it.
    let sql = "select vault_payload('{\"op\": \"insert\"}', jsonb_build_object('a', repeat('x', $1)))";
    let payload = async |length: i32| -> Value {
        let text: String = world.db.query_one(sql, &[&length]).await.unwrap().get(0);
        assert!(text.len() < 7900);
        serde_json::from_str(&text).unwrap()
    };
    assert!(payload(7000).await["row"].is_object());
    assert_eq!(payload(7900).await, json!({"op": "insert"}));
    assert_eq!(payload(100_000).await, json!({"op": "insert"}));
}

#[tokio::test]
async fn with_keys_alone_nobody_who_only_listens_reads_a_row() {
    let world = Registered::new(Layout::A).await;
    let mut ear = Ear::on(&world.pg.url).await;
    let mut tip = "0xaaa".to_owned();
    let mut counts = [0, 0];
    for ((height, time, events), keys_alone) in told(Layout::A, false).iter().zip([true, false].into_iter().cycle()) {
        tip = world.put(*height, *time, &tip, "c0", events).await;
        let setting = if keys_alone { "notifications = 'keys'" } else { "" };
        let (well, said) = world.process(&format!("[projections.option_vaults]\n{setting}\n"));
        assert!(well, "{said}");
        for (channel, payload) in ear.hear(&world.db).await {
            assert_eq!(payload["height"], json!(height), "{payload}");
            if channel != "state_transition" {
                assert!(payload["key"].is_object(), "{payload}");
                assert_eq!(payload.get("row").is_none(), keys_alone, "{payload}");
                counts[usize::from(keys_alone)] += 1;
            }
        }
    }
    println!("{counts:?} notifications with and without rows");
    assert!(counts.iter().all(|count| *count >= 5), "{counts:?}");
    let (well, said) = world.process("[projections.option_vaults]\nnotifications = 'none'\n");
    assert!(!well && said.contains("rows") && said.contains("keys"), "{said}");
}
