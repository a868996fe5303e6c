//! A felt has one text, however it was written: an account that is spelt in two ways is one account.

use std::io::Write;

use ebbtide::chain::{Amount, Block, ChainId, Hash, Height, Kind, Link, TokenEvent};
use ebbtide::sources::Source;
use ebbtide::sources::evm::decode::DecodeSettings;
use ebbtide::sources::file::{FileSettings, FileSource};
use ebbtide::store::{NewBlocks, Store, StoreSettings, SyncLock};
use serde_json::json;
use tempfile::NamedTempFile;

use crate::support::check::World;
use crate::told;

/// All 64 digits, as explorers and some nodes write them.
fn padded(digits: &str) -> String {
    format!("0x{digits:0>64}")
}

#[tokio::test]
async fn one_account_of_starknet_is_one_in_every_spelling() {
    let world = World::new(64).await;
    world.sql("update chains set kind = 'starknet'").await;
    let mut opening = NamedTempFile::new().unwrap();
    write!(opening, "token,address,amount\n{},{},100\n", padded("70C0"), padded("D")).unwrap();
    told(&world, &["opening-balances", opening.path().to_str().unwrap()]);
    world.put(1, "0x01", "0x00", &[&format!("{} - {} 5", padded("70C0"), padded("d"))]).await;
    world.put(2, "0x02", "0x01", &[&format!("0x70c0 {} 0x000E 30", padded("D"))]).await;
    world.settle().await;
    let all = "select string_agg(concat_ws(' ', token, address, amount), ', ' order by token, address) from balances";
    assert_eq!(world.one(all).await.as_deref(), Some("0x70c0 0xd 75, 0x70c0 0xe 30"));
    assert_eq!(world.put(2, "0x02", "0x01", &["0x70c0 0xd 0xe 30"]).await, "unchanged");
    told(&world, &["verify"]);
    // Rows that nobody brings into form are refused where everybody sees it, and make no second account.
    world
        .sql(
            "insert into token_events (chain_id, height, tx_index, event_index, token, to_address, amount)
             select chain_id, 2, 7, 0, '0x70c0', '0x00d', 1 from chains
             union all select chain_id, 2, 7, 1, '0x070c0', '0xd', 1 from chains",
        )
        .await;
    world.settle().await;
    assert_eq!(world.one(all).await.as_deref(), Some("0x70c0 0xd 75, 0x70c0 0xe 30"));
    let reasons = "select string_agg(reason, ', ' order by event_index) from rejected_events";
    assert_eq!(world.one(reasons).await.as_deref(), Some("bad_address, bad_token"));
    told(&world, &["verify"]);
}

#[tokio::test]
async fn a_file_of_starknet_spells_accounts_as_a_node_does() {
    let mut file = NamedTempFile::new().unwrap();
    let opening = json!({"event": "opening_balance", "token": padded("70c0"), "address": padded("D"), "amount": 9});
    let moved = json!({"tx_index": 0, "event_index": 0, "token": padded("70C0"), "from_address": padded("d"),
        "to_address": "0x0E", "amount": 5});
    let said = json!({"tx_index": 0, "event_index": 1, "emitter": padded("11"), "name": "Deposit"});
    let block = json!({"event": "block", "height": 1, "hash": "0x01", "parent_hash": "0x00", "token_events": [moved],
        "events": [said]});
    write!(file, "{opening}\n{block}\n").unwrap();
    let decode = DecodeSettings { tokens: vec![padded("70c0")], ..DecodeSettings::default() };
    let path = file.path().to_owned();
    let source = FileSource::new(FileSettings { path, kind: Some(Kind::Starknet), network_id: None, decode }).unwrap();
    source.resume(None, None).await.unwrap();
    source.head().await.unwrap();
    let opening = source.opening_balances().await.unwrap();
    assert_eq!((&*opening[0].token, &*opening[0].address), ("0x70c0", "0xd"));
    let blocks = source.blocks(Height::from(1)..=Height::from(1)).await.unwrap();
    let [event] = &blocks[0].token_events[..] else { panic!("{:?}", blocks[0]) };
    let sides = (&*event.token, event.from.as_deref(), event.to.as_deref());
    assert_eq!(sides, ("0x70c0", Some("0xd"), Some("0xe")));
    assert_eq!(&*blocks[0].events[0].emitter, "0x11");
    assert_eq!(blocks[0].link.hash.as_str(), "0x01", "a block's name is its own");
}

/// What a statement of anybody is refused for, and what the syncer's own path is.
#[tokio::test]
async fn the_trigger_and_the_bulk_path_refuse_the_same_texts() {
    let world = World::new(64).await;
    let store = Store::open(&world.url, StoreSettings::default()).unwrap();
    let chain = world.db.query_one("select chain_id from chains", &[]).await.unwrap().get::<_, i64>(0);
    let mut lock = SyncLock::acquire(&store, ChainId(chain)).await.unwrap().unwrap();
    let (longest, wide) = ("x".repeat(512), "é".repeat(256));
    let (too_long, too_wide) = ("x".repeat(513), "é".repeat(257));
    // Token, sender, receiver, and what each way must say.
    type Case<'a> = (&'a str, Option<&'a str>, Option<&'a str>, Option<&'a str>);
    let cases: [Case<'_>; 15] = [
        ("gold", Some("alice"), None, None),
        ("Gold", Some("0xab"), Some("0y0X"), None),
        (&longest, Some(&wide), Some("0x"), None),
        ("g0X", None, Some("é0XA"), None),
        ("", None, Some("a"), Some("token_is_1_to_512_bytes")),
        ("gold", Some(""), None, Some("from_is_1_to_512_bytes")),
        ("gold", None, Some(""), Some("to_is_1_to_512_bytes")),
        (&too_long, None, Some("a"), Some("token_is_1_to_512_bytes")),
        ("gold", Some(&too_wide), None, Some("from_is_1_to_512_bytes")),
        ("gold", Some("a"), Some(&too_long), Some("to_is_1_to_512_bytes")),
        ("0xAb", None, Some("a"), Some("hex_is_in_lower_case")),
        ("0Xab", None, Some("a"), Some("hex_is_in_lower_case")),
        ("gold", Some("0xA"), None, Some("hex_is_in_lower_case")),
        ("gold", Some("a"), Some("0xéA"), Some("hex_is_in_lower_case")),
        ("gold", None, None, Some("name_a_sender_or_a_receiver")),
    ];
    for (token, from, to, wanted) in cases {
        let sql = "insert into token_events (chain_id, height, tx_index, event_index, token, from_address, to_address, amount)
                   values ($1, 9, 0, 0, $2, $3, $4, 1)";
        let by_hand = world.db.execute(sql, &[&chain, &token, &from, &to]).await;
        let by_hand = by_hand.err().map(|e| e.as_db_error().unwrap().constraint().unwrap().to_owned());
        assert_eq!(by_hand, wanted.map(|name| format!("token_events_{name}")), "{token} {from:?} {to:?}");
        world.sql("delete from token_events").await;
        let event = TokenEvent {
            tx_index: 0,
            event_index: 0,
            token: token.into(),
            from: from.map(Into::into),
            to: to.map(Into::into),
            amount: Amount::from(1u128),
        };
        let link = Link { height: Height::from(1), hash: Hash::new("a1"), parent_hash: Hash::new("a0") };
        let block = Block {
            link,
            time: None,
            transactions: Vec::new(),
            token_events: vec![event],
            events: Vec::new(),
            rejects: Vec::new(),
        };
        let new = NewBlocks {
            ancestor: None,
            replace: true,
            blocks: &[block],
            head_height: Height::from(1),
            final_height: None,
            position: None,
            reset: false,
            network_id: None,
            vaults: &[],
        };
        let in_bulk = lock.write(&new).await.err().map(|e| e.constraint().map_or(e.to_string(), str::to_owned));
        let same = match (&in_bulk, wanted) {
            (None, None) => true,
            (Some(said), Some(wanted)) => said.ends_with(&format!("token_events_{wanted}")),
            _ => false,
        };
        assert!(same, "{token} {from:?} {to:?}: {in_bulk:?} and not {wanted:?}");
    }
    // What no event of a source can have.
    for (height, tx_index, event_index) in [(-1i64, 0i64, 0i64), (1, -1, 0), (1, 0, -1)] {
        let sql = "insert into token_events (chain_id, height, tx_index, event_index, token, to_address, amount)
                   values ($1, $2, $3, $4, 'gold', 'a', 1)";
        let refused = world.db.execute(sql, &[&chain, &height, &tx_index, &event_index]).await.unwrap_err();
        assert_eq!(refused.as_db_error().unwrap().constraint(), Some("token_events_position_is_not_negative"));
    }
    // An update is looked at like an insert.
    world.put(2, "a2", "a1", &["gold - alice 5"]).await;
    for (set, wanted) in [("to_address = ''", "to_is_1_to_512_bytes"), ("tx_index = -1", "position_is_not_negative")] {
        let refused = world.db.execute(&format!("update token_events set {set}"), &[]).await.unwrap_err();
        assert_eq!(refused.as_db_error().unwrap().constraint(), Some(&*format!("token_events_{wanted}")));
    }
    // Its kind is told by its row.
    let kinds = "select string_agg(e.kind, ' ') from token_events e where height = 2";
    assert_eq!(world.one(kinds).await.as_deref(), Some("mint"));
}
