//! Events of random types, encoded by alloy and read back by us: the same values, or a refusal.

use std::cell::Cell;
use std::collections::BTreeMap;

use alloy_dyn_abi::{DynSolType, DynSolValue};
use alloy_primitives::{Address, B256, Function, I256, U256, hex, keccak256};
use ebbtide::sources::evm::decode::{DecodeSettings, Decoded, Decoder, RawLog};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::{Map, Value, json};

use crate::support::fake_node::data_lines;

const EMITTER: &str = "0x1111111111111111111111111111111111111111";

/// Choices out of one number, the same each time.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    fn bytes(&mut self, size: usize) -> Vec<u8> {
        // Now and then all alike: zeros and ones are where the edges are.
        match self.throw(6) {
            0 => vec![0; size],
            1 => vec![0xff; size],
            _ => (0..size).map(|_| self.throw(256) as u8).collect(),
        }
    }

    fn word(&mut self) -> U256 {
        U256::from_be_slice(&self.bytes(32))
    }

    fn text(&mut self) -> String {
        let texts = ["", "plain", "h\u{e9}llo \u{1f30a}", "a\0b", "0xff", "{\"hex\":\"0x\"}", "quote \" and \\ back"];
        match self.throw(8) {
            7 => "x".repeat(self.throw(100) as usize),
            n => texts[n as usize].to_owned(),
        }
    }
}

fn simple() -> impl Strategy<Value = DynSolType> {
    prop_oneof![
        Just(DynSolType::Bool),
        Just(DynSolType::Address),
        Just(DynSolType::Function),
        Just(DynSolType::Bytes),
        Just(DynSolType::String),
        (1usize..=32).prop_map(|n| DynSolType::Uint(8 * n)),
        (1usize..=32).prop_map(|n| DynSolType::Int(8 * n)),
        (1usize..=32).prop_map(DynSolType::FixedBytes),
    ]
}

fn any_type() -> impl Strategy<Value = DynSolType> {
    simple().prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            inner.clone().prop_map(|t| DynSolType::Array(Box::new(t))),
            (inner.clone(), 1usize..4).prop_map(|(t, n)| DynSolType::FixedArray(Box::new(t), n)),
            prop::collection::vec(inner, 1..4).prop_map(DynSolType::Tuple),
        ]
    })
}

fn value(ty: &DynSolType, dice: &mut Dice) -> DynSolValue {
    match ty {
        DynSolType::Bool => DynSolValue::Bool(dice.throw(2) == 1),
        DynSolType::Address => DynSolValue::Address(Address::from_slice(&dice.bytes(20))),
        DynSolType::Function => DynSolValue::Function(Function::from_slice(&dice.bytes(24))),
        DynSolType::Bytes => {
            let size = dice.throw(70) as usize;
            DynSolValue::Bytes(dice.bytes(size))
        }
        DynSolType::String => DynSolValue::String(dice.text()),
        DynSolType::Uint(bits) => DynSolValue::Uint(dice.word() >> (256 - bits), *bits),
        DynSolType::Int(bits) => DynSolValue::Int(I256::from_raw(dice.word()).asr(256 - bits), *bits),
        DynSolType::FixedBytes(size) => {
            let mut word = B256::ZERO;
            word[..*size].copy_from_slice(&dice.bytes(*size));
            DynSolValue::FixedBytes(word, *size)
        }
        DynSolType::Array(item) => {
            let count = dice.throw(4);
            DynSolValue::Array((0..count).map(|_| value(item, dice)).collect())
        }
        DynSolType::FixedArray(item, count) => {
            DynSolValue::FixedArray((0..*count).map(|_| value(item, dice)).collect())
        }
        DynSolType::Tuple(parts) => DynSolValue::Tuple(parts.iter().map(|part| value(part, dice)).collect()),
    }
}

/// The type as a person would write it, the parts of tuples called `a`, `b`, …, or not at all.
fn written(ty: &DynSolType, named: bool) -> String {
    match ty {
        DynSolType::Array(item) => format!("{}[]", written(item, named)),
        DynSolType::FixedArray(item, count) => format!("{}[{count}]", written(item, named)),
        DynSolType::Tuple(parts) => {
            let name = |n: usize| if named { format!(" {}", char::from(b'a' + n as u8)) } else { String::new() };
            let parts: Vec<String> =
                parts.iter().enumerate().map(|(n, part)| format!("{}{}", written(part, named), name(n))).collect();
            format!("({})", parts.join(", "))
        }
        simple => simple.to_string(),
    }
}

/// What a reader should find, from the value alone.
fn shown(value: &DynSolValue, named: bool) -> Value {
    let hexed = |bytes: &[u8]| json!(hex::encode_prefixed(bytes));
    match value {
        DynSolValue::Bool(b) => json!(b),
        DynSolValue::Address(a) => hexed(a.as_slice()),
        DynSolValue::Function(f) => hexed(f.as_slice()),
        DynSolValue::Bytes(b) => hexed(b),
        DynSolValue::String(s) if s.contains('\0') => json!({ "hex": hexed(s.as_bytes()) }),
        DynSolValue::String(s) => json!(s),
        DynSolValue::Uint(n, _) => json!(n.to_string()),
        DynSolValue::Int(n, _) => json!(n.to_string()),
        DynSolValue::FixedBytes(word, size) => hexed(&word[..*size]),
        DynSolValue::Array(items) | DynSolValue::FixedArray(items) => items.iter().map(|i| shown(i, named)).collect(),
        DynSolValue::Tuple(parts) => {
            let name = |n: usize| if named { char::from(b'a' + n as u8).to_string() } else { format!("arg{n}") };
            Value::Object(parts.iter().enumerate().map(|(n, part)| (name(n), shown(part, named))).collect())
        }
    }
}

/// A log of one random event, its signature, and what must be read.
struct Case {
    signature: String,
    log: RawLog,
    attributes: Value,
    keys: Vec<String>,
}

fn case(types: &[DynSolType], seed: u64) -> Case {
    let mut dice = Dice(seed);
    let (named, anonymous) = (dice.throw(3) > 0, dice.throw(5) == 0);
    let most = if anonymous { 4 } else { 3 };
    let (mut inputs, mut canonical, mut keys, mut plain) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut attributes = Map::new();
    for (n, ty) in types.iter().enumerate() {
        let value = value(ty, &mut dice);
        let indexed = keys.len() < most && dice.throw(3) == 0;
        let name = if named { format!("p{n}") } else { format!("arg{n}") };
        let shown = if !indexed {
            plain.push(value.clone());
            shown(&value, named)
        } else if matches!(
            value,
            DynSolValue::Bytes(_)
                | DynSolValue::String(_)
                | DynSolValue::Array(_)
                | DynSolValue::FixedArray(_)
                | DynSolValue::Tuple(_)
        ) {
            let hash = B256::from(dice.word()).to_string();
            keys.push(hash.clone());
            json!(hash)
        } else {
            keys.push(hex::encode_prefixed(value.abi_encode()));
            shown(&value, named)
        };
        attributes.insert(name.clone(), shown);
        let words = [Some(written(ty, named)), indexed.then(|| "indexed".into()), named.then_some(name)];
        inputs.push(words.into_iter().flatten().collect::<Vec<String>>().join(" "));
        canonical.push(written(ty, false).replace(' ', ""));
    }
    let mut signature = format!("Thing({})", inputs.join(", "));
    if anonymous {
        signature = format!("{signature} anonymous @ {EMITTER}");
    } else {
        keys.insert(0, keccak256(format!("Thing({})", canonical.join(","))).to_string());
    }
    let log = RawLog {
        address: EMITTER.into(),
        topics: keys.clone(),
        data: hex::encode_prefixed(DynSolValue::Tuple(plain).abi_encode_params()),
        tx_hash: B256::ZERO.to_string(),
        tx_index: 0,
        log_index: 7,
    };
    Case { signature, log, attributes: Value::Object(attributes), keys }
}

fn decode(signature: &str, log: RawLog) -> Decoded {
    let settings =
        DecodeSettings { tokens: vec!["none".into()], events: vec![signature.into()], ..DecodeSettings::default() };
    Decoder::new(&settings, None).unwrap_or_else(|e| panic!("{e}")).decode(vec![log])
}

#[test]
fn events_of_random_types_come_back_as_they_went_in() {
    let (right, refused, hashes) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let mut runner = TestRunner::new(ProptestConfig { cases: 3_000, failure_persistence: None, ..Default::default() });
    let script = (prop::collection::vec(any_type(), 0..6), any::<u64>());
    let result = runner.run(&script, |(types, seed)| {
        let Case { signature, log, attributes, keys } = case(&types, seed);
        let decoded = decode(&signature, log.clone());
        prop_assert!(decoded.rejects.is_empty(), "{signature}: {:?}", decoded.rejects);
        prop_assert_eq!(decoded.events.len(), 1, "{}", signature);
        let event = &decoded.events[0];
        prop_assert_eq!(&event.attributes, &attributes, "{}", signature);
        prop_assert_eq!(event.keys.iter().map(|k| k.to_string()).collect::<Vec<_>>(), keys);
        prop_assert!(!event.attributes.to_string().contains("\\u0000"), "what Postgres cannot hold");
        right.set(right.get() + 1);
        hashes.set(hashes.get() + event.keys.len());

        // A word less, and a word more: not this event.
        let anonymous = signature.contains("anonymous");
        let mut spoilt = vec![RawLog { data: format!("{}{}", log.data, "01".repeat(32)), ..log.clone() }];
        if log.data.len() > 2 {
            spoilt.push(RawLog { data: log.data[..log.data.len() - 64].to_owned(), ..log.clone() });
        }
        for log in spoilt {
            let decoded = decode(&signature, log.clone());
            prop_assert!(decoded.events.is_empty(), "{signature}: {} is taken for it", log.data);
            let reasons: Vec<&str> = decoded.rejects.iter().map(|r| r.reason.as_str()).collect();
            prop_assert_eq!(reasons, if anonymous { vec![] } else { vec!["bad_event"] });
            refused.set(refused.get() + 1);
        }
        // A byte flipped somewhere: anything but a panic, and no answer out of proportion.
        let mut bytes = hex::decode(&log.data).unwrap();
        if !bytes.is_empty() {
            let at = seed as usize % bytes.len();
            bytes[at] ^= 1 << (seed % 8);
            let size = bytes.len();
            let decoded = decode(&signature, RawLog { data: hex::encode_prefixed(bytes), ..log });
            let answer: usize = decoded.events.iter().map(|e| e.attributes.to_string().len()).sum();
            prop_assert!(answer < 20 * size + 10_000);
        }
        Ok(())
    });
    println!("{} events read back, {} topics, {} spoilt ones refused", right.get(), hashes.get(), refused.get());
    result.unwrap();
    assert!(right.get() >= 3_000 && refused.get() > 5_000);
}

/// Events of well-known contracts; which parameters are indexed is told to alloy by their places.
const REAL: [(&str, &[usize], &str); 10] = [
    ("Approval", &[0, 1], "address,address,uint256"),
    ("ApprovalForAll", &[0, 1], "address,address,bool"),
    ("Transfer", &[0, 1, 2], "address,address,uint256"),
    ("TransferSingle", &[0, 1, 2], "address,address,address,uint256,uint256"),
    ("TransferBatch", &[0, 1, 2], "address,address,address,uint256[],uint256[]"),
    ("Sync", &[], "uint112,uint112"),
    ("Swap", &[0, 5], "address,uint256,uint256,uint256,uint256,address"),
    ("Swap", &[0, 1], "address,address,int256,int256,uint160,uint128,int24"),
    ("PairCreated", &[0, 1], "address,address,address,uint256"),
    (
        "OrderFulfilled",
        &[1, 2],
        "bytes32,address,address,address,(uint8,address,uint256,uint256)[],(uint8,address,uint256,uint256,address)[]",
    ),
];

#[test]
fn events_of_twenty_real_blocks_are_what_alloy_reads() {
    let Some(blocks) = data_lines("ethereum/blocks.ndjson.gz") else { return };
    let logs: Vec<RawLog> =
        blocks.iter().flat_map(|b| serde_json::from_value::<Vec<RawLog>>(b["logs"].clone()).unwrap()).collect();
    let mut counts = BTreeMap::new();
    for (name, indexed, types) in REAL {
        let DynSolType::Tuple(all) = DynSolType::parse(&format!("({types})")).unwrap() else { panic!("a list") };
        let inputs: Vec<String> = all
            .iter()
            .enumerate()
            .map(|(n, ty)| written(ty, false) + if indexed.contains(&n) { " indexed" } else { "" })
            .collect();
        let topic0 = keccak256(format!("{name}({types})")).to_string();
        let plain = all.iter().enumerate().filter(|(n, _)| !indexed.contains(n)).map(|(_, ty)| ty.clone());
        let plain = DynSolType::Tuple(plain.collect());
        let fits = |log: &&RawLog| log.topics.len() == indexed.len() + 1 && log.topics[0] == topic0;
        for log in logs.iter().filter(fits) {
            let decoded = decode(&format!("{name}({})", inputs.join(",")), log.clone());
            assert!(decoded.rejects.is_empty(), "{name}: {log:?}");
            let DynSolValue::Tuple(values) = plain.abi_decode_params(&hex::decode(&log.data).unwrap()).unwrap() else {
                panic!("a list")
            };
            let (mut values, mut topics) = (values.into_iter(), log.topics.iter().skip(1));
            let attributes = all.iter().enumerate().map(|(n, ty)| {
                let value = if indexed.contains(&n) {
                    ty.abi_decode(&hex::decode(topics.next().unwrap()).unwrap()).unwrap()
                } else {
                    values.next().unwrap()
                };
                (format!("arg{n}"), shown(&value, false))
            });
            assert_eq!(decoded.events[0].attributes, Value::Object(attributes.collect()), "{name}: {log:?}");
            *counts.entry(name).or_insert(0) += 1;
        }
    }
    println!("{} logs: {counts:?} read as alloy reads them", logs.len());
    assert!(counts.len() >= 5 && counts.values().sum::<i32>() > 1_000);
}
