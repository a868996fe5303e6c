//! Events of a line: what is taken, what is rejected, and why.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use super::*;
use crate::chain::Amount;
use crate::sources::evm::decode::DecodeSettings;
use crate::sources::file::line::{Line, LineReader};
use serde_json::json;

fn read(kind: Kind, tokens: Option<&[&str]>, line: &Value) -> Block {
    let decoder = Decoder::new(&DecodeSettings::default(), None).unwrap();
    let tokens = tokens.map(|tokens| tokens.iter().map(ToString::to_string).collect());
    let read = LineReader::new(Grammar { kind, tokens, decoder }).read(line.to_string().as_bytes());
    match read {
        Ok(Line::Block(block)) => (*block.block.unwrap()).clone(),
        other => panic!("{other:?}"),
    }
}

fn line(parts: Value) -> Value {
    let mut line = json!({"height": 7, "hash": "0xB7", "parent_hash": "0XB6", "timestamp": 1});
    line.as_object_mut().unwrap().extend(parts.as_object().unwrap().clone());
    line
}

fn reasons(block: &Block) -> Vec<(u64, &str)> {
    block.rejects.iter().map(|reject| (reject.event_index, &*reject.reason)).collect()
}

#[test]
fn a_bad_movement_is_set_aside_and_the_rest_stays() {
    let good = json!({"tx_index": 3, "event_index": 1, "token": "0xAB", "from_address": null, "to_address": "Bob",
        "amount": "115792089237316195423570985008687907853269984665640564039457584007913129639935"});
    let bad = [
        (json!({"amount": -1}), "bad_amount"),
        (json!({"amount": 1.5}), "bad_amount"),
        (json!({"amount": true}), "bad_amount"),
        (json!({"amount": null}), "missing_field"),
        (json!({"token": null}), "missing_field"),
        (json!({"token": 7}), "bad_type"),
        (json!({"token": ""}), "empty_text"),
        (json!({"token": "g\0ld"}), "nul_in_text"),
        (json!({"token": "0xGOLD"}), "not_canonical"),
        (json!({"to_address": "x".repeat(513)}), "text_too_long"),
        (json!({"to_address": null}), "no_party"),
        (json!({"to_address": ["a"]}), "bad_type"),
        (json!({"from": "alice"}), "unknown_field"),
        (json!({"name": "Transfer"}), "unknown_field"),
    ];
    let mut events = vec![good.clone()];
    for (index, (change, _)) in bad.iter().enumerate() {
        let mut event = good.clone();
        event["event_index"] = json!(index + 10);
        event.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        events.push(event);
    }
    let block = read(Kind::Other, None, &line(json!({"token_events": events})));
    let expected: Vec<_> = bad.iter().enumerate().map(|(index, (_, reason))| (index as u64 + 10, *reason)).collect();
    assert_eq!(reasons(&block), expected);
    assert!(block.rejects.iter().all(|reject| reject.tx_index == 3));
    assert_eq!(block.rejects[0].raw, events[1]);
    // What jsonb cannot hold is kept as text.
    assert!(block.rejects[7].raw.as_str().unwrap().contains("g\\u0000ld"));
    let [event] = &block.token_events[..] else { panic!("{:?}", block.token_events) };
    assert_eq!((&*event.token, event.from.as_deref(), event.to.as_deref()), ("0xab", None, Some("Bob")));
    assert_eq!(event.amount, Amount::MAX);
    assert_eq!((block.link.hash.as_str(), block.link.parent_hash.as_str()), ("0xb7", "0xb6"));
}

#[test]
fn events_without_a_place_of_their_own_are_rejected_at_places_of_their_own() {
    let at = |tx: Value, index: Value| json!({"tx_index": tx, "event_index": index, "token": "t", "to_address": "a", "amount": 1});
    let other = |tx, index| json!({"tx_index": tx, "event_index": index, "emitter": "e", "name": "N"});
    let block = read(
        Kind::Other,
        None,
        &line(json!({
            "token_events": [
                at(json!(2), json!(0)), at(json!(1), json!(5)), at(json!(2), json!(0)), at(json!(2), json!(0)),
                at(json!(-1), json!(0)), at(json!(0), json!("0")), at(json!(0), json!(1u64 << 63)), json!(5),
            ],
            "events": [other(1, 5), other(1, 4), other(0, 9)],
        })),
    );
    let places: Vec<_> = block.token_events.iter().map(|event| (event.tx_index, event.event_index)).collect();
    assert_eq!(places, [(1, 5), (2, 0)]);
    let places: Vec<_> = block.events.iter().map(|event| (event.tx_index, event.event_index)).collect();
    assert_eq!(places, [(0, 9), (1, 4)]);
    let words: Vec<_> = block.rejects.iter().map(|reject| &*reject.reason).collect();
    let taken = "position_taken";
    assert_eq!(words, [taken, taken, "bad_position", "bad_position", "bad_position", "bad_type", taken]);
    let places: HashSet<_> = block.rejects.iter().map(|reject| (reject.tx_index, reject.event_index)).collect();
    assert_eq!(places.len(), block.rejects.len());
    assert!(places.iter().all(|(tx, index)| *tx <= i64::MAX as u64 && *index <= i64::MAX as u64));
}

#[test]
fn the_same_key_twice_is_not_guessed_about() {
    let raw = r#"{"height":1,"hash":"a","parent_hash":"b","token_events":[
        {"tx_index":0,"event_index":0,"token":"t","to_address":"a","amount":1,"amount":2}]}"#;
    let decoder = Decoder::new(&DecodeSettings::default(), None).unwrap();
    let mut reader = LineReader::new(Grammar { kind: Kind::Other, tokens: None, decoder });
    let Ok(Line::Block(block)) = reader.read(raw.as_bytes()) else { panic!("a block") };
    assert_eq!(reasons(&block.block.unwrap()), [(0, "repeated_field")]);
}

#[test]
fn other_events_keep_their_parts() {
    let block = read(
        Kind::Other,
        None,
        &line(json!({
            "transactions": [{"tx_index": 1, "hash": "0xT"}, {"tx_index": 0, "hash": "0xAA", "success": false, "gas": 1},
                {"tx_index": 0, "hash": "again"}, {"tx_index": 2}],
            "events": [
                {"tx_index": 0, "event_index": 0, "emitter": "0xAB", "name": "Opened", "keys": ["k"], "data": ["d", ""],
                 "attributes": {"round": 1}},
                {"tx_index": 0, "event_index": 1, "emitter": "e", "name": "N", "attributes": [1]},
                {"tx_index": 0, "event_index": 2, "emitter": "e", "name": "N", "attributes": {"a": "\0"}},
                {"tx_index": 0, "event_index": 3, "emitter": "e", "name": "N", "keys": [7]},
                {"tx_index": 0, "event_index": 4, "emitter": "e", "name": "N", "amount": 7},
            ],
        })),
    );
    let [event] = &block.events[..] else { panic!("{:?}", block.events) };
    assert_eq!((&*event.emitter, &*event.name, event.keys.len(), event.data.len()), ("0xab", "Opened", 1, 2));
    assert_eq!(event.attributes, json!({"round": 1}));
    let words: Vec<_> = block.rejects.iter().map(|reject| &*reject.reason).collect();
    assert_eq!(
        words,
        [
            "bad_transaction",
            "position_taken",
            "bad_transaction",
            "bad_attributes",
            "bad_attributes",
            "bad_type",
            "unknown_field"
        ]
    );
    let [transaction] = &block.transactions[..] else { panic!("{:?}", block.transactions) };
    assert_eq!((&*transaction.hash, transaction.success), ("0xaa", false));
}

#[test]
fn the_grammar_of_the_kind_and_the_wanted_tokens_hold() {
    let (one, two) = ("0x".to_owned() + &"1".repeat(40), "0x".to_owned() + &"2".repeat(40));
    let event = |index, token: &str, to: &str| json!({"tx_index": 0, "event_index": index, "token": token, "to_address": to, "amount": 1});
    let events = json!({"token_events": [event(0, &one, &two), event(1, &two, &one), event(2, "gold", &one), event(3, &one, "bob")]});
    let block = read(Kind::Evm, None, &line(events.clone()));
    assert_eq!((block.token_events.len(), reasons(&block)), (2, vec![(2, "bad_token"), (3, "bad_address")]));
    let block = read(Kind::Evm, Some(&[&two]), &line(events));
    assert_eq!(block.token_events.iter().map(|event| &*event.token).collect::<Vec<_>>(), [&*two]);
}

#[test]
fn raw_logs_become_movements_and_bad_ones_rejects() {
    let word = |digit: &str| "0x".to_owned() + &"0".repeat(24) + &digit.repeat(40);
    let transfer = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef";
    let log = |index: u64, amount: &str| {
        json!({"tx_hash": "0x".to_owned() + &"A".repeat(64), "tx_index": 4, "log_index": index,
        "address": "0x".to_owned() + &"C".repeat(40), "topics": [transfer, word("1"), word("2")], "data": amount})
    };
    let five = "0x".to_owned() + &"0".repeat(63) + "5";
    let logs = json!({"logs": [log(9, &five), log(2, &five), log(3, "0xzz"), {"log_index": "?"}]});
    let block = read(Kind::Evm, None, &line(logs.clone()));
    let places: Vec<_> = block.token_events.iter().map(|event| (event.tx_index, event.event_index)).collect();
    assert_eq!(places, [(4, 2), (4, 9)]);
    assert_eq!(block.token_events[0].amount, Amount::from(5));
    assert_eq!(&*block.token_events[0].token, "0x".to_owned() + &"c".repeat(40));
    assert_eq!(&*block.transactions[0].hash, "0x".to_owned() + &"a".repeat(64));
    let words: Vec<_> = block.rejects.iter().map(|reject| &*reject.reason).collect();
    assert_eq!(words, ["bad_log", "bad_log"]);
    let mut both = logs;
    both["token_events"] = json!([{}]);
    let decoder = Decoder::new(&DecodeSettings::default(), None).unwrap();
    let mut reader = LineReader::new(Grammar { kind: Kind::Evm, tokens: None, decoder });
    let error = reader.read(line(both).to_string().as_bytes()).unwrap_err();
    assert!(error.reason.contains("twice"));
}
