//! A felt has one text, however it was written: an account that is spelt in two ways is one account.

use std::io::Write;

use ebbtide::chain::{Height, Kind};
use ebbtide::sources::Source;
use ebbtide::sources::evm::decode::DecodeSettings;
use ebbtide::sources::file::{FileSettings, FileSource};
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
