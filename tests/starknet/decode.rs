//! Starknet events as chain values: recorded blocks against recorded balances, and what no recording holds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use ebbtide::chain::Height;
use ebbtide::chain::felt::Felt;
use ebbtide::sources::FaultKind;
use ebbtide::sources::starknet::decode::{DecodeSettings, Decoded, Decoder, EVENT_NAMES, RawEvent, RawTransaction};
use ebbtide::sources::starknet::follow::Found;
use num_bigint::BigInt;
use serde_json::{Value, json};

use crate::support::fake_node::data_text;
use crate::support::{data_dir, read_ndjson_gz};

const TOKEN: &str = "0x70c0";
const VAULT: &str = "0x11";
const ROUND: &str = "0x21";
const CLASS: &str = "0xc1a55";
const UDC: &str = "0x41a78e741e5af2fec34b695679bc6891742439f7afb8484ecd7766661ad02bf";
/// The first number that is no felt.
const P: &str = "0x800000000000011000000000000000000000000000000000000000000000001";

fn event(emitter: &str, keys: &[&str], data: &[&str]) -> Value {
    json!({ "from_address": emitter, "keys": keys, "data": data })
}

fn named(emitter: &str, name: &str, keys: &[&str], data: &[&str]) -> Value {
    let selector = Felt::selector(name).to_string();
    let keys: Vec<&str> = std::iter::once(selector.as_str()).chain(keys.iter().copied()).collect();
    event(emitter, &keys, data)
}

/// Transactions of a block, each with the events given.
fn transactions(events: &[Vec<Value>]) -> Vec<RawTransaction> {
    let transaction = |(tx_index, events): (u64, &Vec<Value>)| RawTransaction {
        tx_index,
        hash: Felt::from(1_000 + tx_index),
        success: true,
        events: (0..).zip(events.iter().map(|e| serde_json::from_value::<RawEvent>(e.clone()).unwrap())).collect(),
    };
    (0..).zip(events).map(transaction).collect()
}

fn height(n: u64) -> Height {
    Height::new(n).unwrap()
}

fn listed(token: &str) -> DecodeSettings {
    DecodeSettings { tokens: vec![token.to_owned()], ..DecodeSettings::default() }
}

fn decode_with(settings: &DecodeSettings, events: &[Vec<Value>]) -> Decoded {
    Decoder::new(settings).unwrap().decode(height(7), &transactions(events), &mut Found::default())
}

/// One event alone: (movements, kept events, reasons of rejection).
fn outcome(settings: &DecodeSettings, event: Value) -> (usize, usize, Vec<String>) {
    let decoded = decode_with(settings, &[vec![event]]);
    let reasons: Vec<String> = decoded.rejects.iter().map(|r| r.reason.clone()).collect();
    let something = decoded.token_events.len() + decoded.events.len() + reasons.len();
    assert_eq!(decoded.transactions.len(), usize::from(something > 0));
    (decoded.token_events.len(), decoded.events.len(), reasons)
}

/// A recorded block's transactions; its events are counted over the whole block.
fn recorded(block: &Value) -> Vec<RawTransaction> {
    let mut by_tx: BTreeMap<u64, RawTransaction> = BTreeMap::new();
    for event in block["events"].as_array().unwrap() {
        let tx_index = event["tx_index"].as_u64().unwrap();
        let hash = Felt::parse(event["tx_hash"].as_str().unwrap()).unwrap();
        let tx = by_tx.entry(tx_index).or_insert(RawTransaction { tx_index, hash, success: true, events: vec![] });
        tx.events.push((event["event_index"].as_u64().unwrap(), serde_json::from_value(event.clone()).unwrap()));
    }
    by_tx.into_values().collect()
}

fn number(hex: &str) -> BigInt {
    BigInt::parse_bytes(&hex.as_bytes()[2..], 16).unwrap()
}

/// Movements by another reading of the same rule: token, from, to, amount.
fn movements(block: &Value) -> Vec<(String, String, String, BigInt)> {
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let transfer = "0x99cd8bde557814842a3121e8ddfd433a539b8c9f14bf31ebf108d12e6196e9";
    let mut found = Vec::new();
    for event in block["events"].as_array().unwrap() {
        let (keys, data) = (event["keys"].as_array().unwrap(), event["data"].as_array().unwrap());
        let fits = matches!((keys.len(), data.len()), (1, 4) | (3, 2));
        if fits && keys[0] == transfer {
            let words: Vec<String> = keys.iter().chain(data).map(text).collect();
            let amount = number(&words[3]) + (number(&words[4]) << 128);
            found.push((text(&event["from_address"]), words[1].clone(), words[2].clone(), amount));
        }
    }
    found
}

#[test]
fn real_blocks_give_the_balances_that_their_state_diffs_say() {
    let Some(dir) = data_dir() else { return };
    let blocks = read_ndjson_gz(&dir.join("starknet/blocks.ndjson.gz"));
    let decoder = Decoder::new(&DecodeSettings::default()).unwrap();
    let (mut events, mut moved) = (0, 0);
    // Net gain by (chain, block, token, holder).
    let mut net: BTreeMap<(String, u64, String, String), BigInt> = BTreeMap::new();
    for block in &blocks {
        let (chain, at) = (block["chain"].as_str().unwrap(), block["number"].as_u64().unwrap());
        let decoded = decoder.decode(height(at), &recorded(block), &mut Found::default());
        events += block["events"].as_array().unwrap().len();
        moved += decoded.token_events.len();
        assert!(decoded.rejects.is_empty() && decoded.events.is_empty(), "block {at}");
        let ours = decoded.token_events.iter().map(|e| {
            let side = |side: &Option<_>| side.as_deref().unwrap_or("0x0").to_owned();
            (
                e.token.to_string(),
                side(&e.from),
                side(&e.to),
                BigInt::parse_bytes(e.amount.to_string().as_bytes(), 10).unwrap(),
            )
        });
        let expected: Vec<_> = movements(block).into_iter().filter(|m| m.1 != "0x0" || m.2 != "0x0").collect();
        assert_eq!(ours.collect::<Vec<_>>(), expected, "block {at}");
        for e in &decoded.token_events {
            let amount = BigInt::parse_bytes(e.amount.to_string().as_bytes(), 10).unwrap();
            for (side, gain) in [(&e.from, -amount.clone()), (&e.to, amount)] {
                if let Some(holder) = side {
                    let key = (chain.to_owned(), at, e.token.to_string(), holder.to_string());
                    *net.entry(key).or_default() += gain;
                }
            }
        }
    }
    let answer = std::fs::read_to_string(dir.join("starknet/balances-after.csv")).unwrap();
    let mut pairs: BTreeSet<(String, u64, String)> = BTreeSet::new();
    let mut changed = BTreeSet::new();
    for line in answer.lines().skip(1) {
        let cells: Vec<&str> = line.split(',').collect();
        let [chain, block, token, holder, low, _, gain] = cells[..] else { panic!("{line}") };
        let key = (chain.to_owned(), block.parse::<u64>().unwrap(), token.to_owned(), holder.to_owned());
        let ours = net.get(&key).cloned().unwrap_or_default();
        let (low, gain): (BigInt, BigInt) = (low.parse().unwrap(), gain.parse().unwrap());
        assert_eq!(ours, gain, "{line}");
        assert!(ours <= low, "nobody holds less than he gained: {line}");
        pairs.insert((key.0.clone(), key.1, key.2.clone()));
        assert!(changed.insert(key), "{line}");
    }
    // The holders whose balance changed are exactly those whose movements do not cancel out.
    let zero = BigInt::default();
    let ours = net.iter().filter(|((chain, block, token, _), gain)| {
        **gain != zero && pairs.contains(&(chain.clone(), *block, token.clone()))
    });
    assert_eq!(ours.map(|(key, _)| key.clone()).collect::<BTreeSet<_>>(), changed);
    println!(
        "{} blocks, {events} events, {moved} movements; {} balances in {} pairs",
        blocks.len(),
        changed.len(),
        pairs.len()
    );
    assert_eq!((blocks.len(), events, changed.len(), pairs.len()), (16, 8_350, 1_079, 55));
}

#[test]
fn recorded_answers_of_other_kinds_hold_the_same_events() {
    let Some(dir) = data_dir() else { return };
    let read =
        |name: &str| -> Value { serde_json::from_str(&data_text(&format!("starknet/{name}")).unwrap()).unwrap() };
    let decoder = Decoder::new(&DecodeSettings::default()).unwrap();
    let decode = |at: u64, transactions: &[RawTransaction]| {
        let decoded = decoder.decode(height(at), transactions, &mut Found::default());
        let movements = decoded.token_events.into_iter();
        movements.map(|e| (e.tx_index, e.token, e.from, e.to, e.amount)).collect::<Vec<_>>()
    };
    let mut compared = 0;
    let blocks = read_ndjson_gz(&dir.join("starknet/blocks.ndjson.gz"));
    for (file, chain, at) in [
        ("feeder/mainnet_6500.json.gz", "starknet-mainnet", 6_500),
        ("feeder/sepolia_integration_9703.json.gz", "starknet-sepolia-integration", 9_703),
    ] {
        let block = blocks.iter().find(|b| b["chain"] == chain && b["number"] == at).unwrap();
        let feeder = read(file);
        let receipts: Vec<Vec<Value>> = feeder["block"]["transaction_receipts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|receipt| receipt["events"].as_array().unwrap().clone())
            .collect();
        let (ours, theirs) = (decode(at, &recorded(block)), decode(at, &transactions(&receipts)));
        assert_eq!(ours, theirs);
        compared += ours.len();
    }
    // Ten transfers of one token, in both layouts.
    let page = read("rpc/sepolia-strk.events.json.gz");
    let page = page["result"]["events"].as_array().unwrap();
    let layouts: BTreeSet<usize> = page.iter().map(|e| e["keys"].as_array().unwrap().len()).collect();
    let read = decode(1, &transactions(std::slice::from_ref(page)));
    assert_eq!((read.len(), layouts), (10, BTreeSet::from([1, 3])));
    println!("{} movements of recorded answers", compared + read.len());
    assert!(compared > 100);
    let five = read_ndjson_gz(Path::new(&dir.join("starknet/usdc-800001-800005.ndjson.gz")));
    let usdc: usize = five.iter().map(|b| decode(b["number"].as_u64().unwrap(), &recorded(b)).len()).sum();
    println!("{usdc} movements of USDC in {} blocks", five.len());
    assert_eq!(usdc, five.iter().map(|b| movements(b).len()).sum::<usize>());
    assert!(usdc > 0);
}

#[test]
fn known_names_have_the_selectors_of_the_specification() {
    let table = "
        ContractDeployed 26b160f10156dea0639bec90696772c640b9706a47f5b8c52ea1abe5858b34d
        Deposit 9149d2123147c5f43d258257fef0b7b969db78269369ebcf5ebb9eef8592f2
        Withdrawal 2eed7e29b3502a726faf503ac4316b7101f3da813654e8df02c13449e03da8
        WithdrawalQueued 36a0768f9b1cc8742e7726e951a13aec0f1ee9461c6be53a80378c49299c5fb
        StashWithdrawn 14430163c5d26a17d82f2c2eda269f26b054e14a1641bb700a114b2a63bc605
        OptionRoundDeployed d659a517d721168cbed4f7cb1abb424037bf0f34a8a22948c502429045b312
        FossilCallbackSuccess 28daf8c351269d325d0652973bd8ae38ea95c476dcc11eaf0e2495c440689cb
        L1RequestFulfilled 30c9e399edc9c4ce8745d38ea8fd2361f1aa0cf198b964d60bc49e87e193c17
        PricingDataSet 3f68cb197d4ac6576b566cd954873b6530b9eac0309487c09f9a35271533737
        AuctionStarted 26a7d477600536be46a48d46dcdebf5d8c5703c5e16f6bfad368996adea83f3
        AuctionEnded 369d2b1c46f2b24795aafc23c97301b1f924966a1b4fdaad2473cf4d9df23ca
        OptionRoundSettled 9fadeca7092d377c750978a256f85278e6f70781e5c879baa766ca6a4db079
        BidPlaced 284319dd93fe6054ee43527bfdc6c222e6b0cafdcbd3ef60c9190c70bb1d638
        BidUpdated 35446d7dda93a65e80ece35b20810ab34e64178c54b8693ef635afb5c2f7ee3
        OptionsMinted 1f66c9480f0238b7c61817f7e724aa3f313dac819d40d5b48a968ef27847f54
        UnusedBidsRefunded 1678c5f70bd63f9239387cb96dd9fa4d6a9817a3089a0b97513f63120f92792
        OptionsExercised 2d02464cd0ec035fbc5f7d9e201312f112ca0ed123ca3ae5ebd91b2364ce580
        Transfer 99cd8bde557814842a3121e8ddfd433a539b8c9f14bf31ebf108d12e6196e9
        Approval 134692b230b9e1ffa39098904722134159652b09c5bc41d88d6698779d228ff";
    let rows: Vec<(&str, &str)> = table.trim().lines().map(|row| row.trim().split_once(' ').unwrap()).collect();
    assert_eq!(rows.iter().map(|(name, _)| *name).collect::<Vec<_>>(), EVENT_NAMES);
    for (name, selector) in rows {
        assert_eq!(Felt::selector(name).to_string(), format!("0x{selector}"), "{name}");
        let settings = DecodeSettings { contracts: vec![VAULT.into()], ..listed("none") };
        let kept = decode_with(&settings, &[vec![named(VAULT, name, &["0xA1"], &["0x01"])]]).events.remove(0);
        assert_eq!((&*kept.name, &*kept.emitter, &*kept.data[0]), (name, VAULT, "0x1"));
        assert_eq!(*kept.keys, [format!("0x{selector}").into(), "0xa1".into()]);
    }
}

#[test]
fn what_is_no_erc20_transfer_is_left_out_or_refused_with_its_reason() {
    let all = DecodeSettings::default();
    let one = listed(TOKEN);
    let transfer = |keys: &[&str], data: &[&str]| named(TOKEN, "Transfer", keys, data);
    let none: Vec<String> = Vec::new();
    let refused = |reason: &str| vec![reason.to_owned()];
    // Keys after the selector, data; then what comes of it with every token, and with this one listed.
    let cases = [
        (transfer(&[], &["0x1", "0x2", "0x3", "0x0"]), (1, none.clone()), (1, none.clone())),
        (transfer(&["0x1", "0x2"], &["0x3", "0x0"]), (1, none.clone()), (1, none.clone())),
        // An ERC-721's, and other contracts' of that name.
        (transfer(&["0x1", "0x2", "0x3", "0x0"], &[]), (0, none.clone()), (0, none.clone())),
        (transfer(&["0x1", "0x2"], &["0x3"]), (0, none.clone()), (0, refused("bad_transfer"))),
        (transfer(&[], &["0x1", "0x2", "0x3"]), (0, none.clone()), (0, refused("bad_transfer"))),
        (transfer(&[], &[]), (0, none.clone()), (0, refused("bad_transfer"))),
        (transfer(&["0x1"], &["0x2", "0x3", "0x0"]), (0, none.clone()), (0, refused("bad_transfer"))),
        // Numbers that cannot be.
        (
            transfer(&[], &["0x1", "0x2", "0x100000000000000000000000000000000", "0x0"]),
            (0, refused("bad_amount")),
            (0, refused("bad_amount")),
        ),
        (
            transfer(&["0x1", "0x2"], &["0x0", "0x100000000000000000000000000000000"]),
            (0, refused("bad_amount")),
            (0, refused("bad_amount")),
        ),
        (transfer(&[P, "0x2"], &["0x0", "0x0"]), (0, refused("bad_felt")), (0, refused("bad_felt"))),
        (transfer(&[], &["0x1", "no hex\0", "0x1", "0x0"]), (0, refused("bad_felt")), (0, refused("bad_felt"))),
        // From nobody to nobody.
        (transfer(&["0x0", "0x0"], &["0x0", "0x0"]), (0, none.clone()), (0, none.clone())),
        (transfer(&["0x0", "0x0"], &["0x1", "0x0"]), (0, none.clone()), (0, refused("no_party"))),
        (named(TOKEN, "Approval", &["0x1", "0x2"], &["0x1", "0x0"]), (0, none.clone()), (0, none.clone())),
        (event(TOKEN, &[], &["0x1", "0x2", "0x3", "0x0"]), (0, none.clone()), (0, none.clone())),
        (event(TOKEN, &[P], &["0x1", "0x2", "0x3", "0x0"]), (0, none.clone()), (0, none.clone())),
    ];
    for (event, with_all, with_one) in cases {
        let (movements, events, reasons) = outcome(&all, event.clone());
        assert_eq!(((movements, reasons), events), (with_all, 0), "{event}");
        let (movements, events, reasons) = outcome(&one, event.clone());
        assert_eq!(((movements, reasons), events), (with_one, 0), "{event}");
        assert_eq!(outcome(&listed("none"), event), (0, 0, none.clone()));
    }
    let refused = decode_with(&all, &[vec![transfer(&[], &["0x1", "no hex\0", "0x1", "0x0"])]]).rejects.remove(0);
    assert_eq!(refused.raw["data"], json!(["0x1", "no hex\\0", "0x1", "0x0"]), "jsonb holds no NUL");
}

#[test]
fn mints_burns_and_the_largest_amounts_are_taken() {
    let most = "0xffffffffffffffffffffffffffffffff";
    let events = vec![
        named("0x0070C0", "Transfer", &["0x0", "0x00B"], &[most, most]),
        named(TOKEN, "Transfer", &[], &["0xb", "0x000", "0x1", "0x1"]),
    ];
    let decoded = decode_with(&listed("0x00000070c0"), &[vec![], events]);
    let read: Vec<_> = decoded
        .token_events
        .iter()
        .map(|e| (e.tx_index, e.event_index, &*e.token, e.from.as_deref(), e.to.as_deref(), e.amount.to_string()))
        .collect();
    let largest: BigInt = (BigInt::from(1) << 256) - 1;
    assert_eq!(
        read,
        [
            (1, 0, TOKEN, None, Some("0xb"), largest.to_string()),
            (1, 1, TOKEN, Some("0xb"), None, "340282366920938463463374607431768211457".to_owned()),
        ]
    );
    assert_eq!(decoded.transactions.len(), 1, "transactions without anything are left out");
    assert_eq!(&*decoded.transactions[0].hash, "0x3e9");
}

/// Names of the kept events, with their emitters.
fn kept(decoded: &Decoded) -> Vec<(String, String)> {
    decoded.events.iter().map(|e| (e.emitter.to_string(), e.name.to_string())).collect()
}

fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
    of.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
}

#[test]
fn a_round_is_followed_from_the_event_that_names_it() {
    let settings = DecodeSettings { contracts: vec![VAULT.into()], ..listed("none") };
    let deployed = named(VAULT, "OptionRoundDeployed", &[], &["0x1", "0x0021", "0x0", "0x0", "0x0"]);
    let priced = || named(ROUND, "PricingDataSet", &[], &["0x1", "0x0", "0x2", "0x3", "0x0"]);
    let other = named("0x99", "OptionRoundDeployed", &[], &["0x1", "0x98"]);
    let decoder = Decoder::new(&settings).unwrap();
    let mut found = Found::default();
    let block = transactions(&[vec![priced(), other, deployed, priced()], vec![priced()]]);
    let decoded = decoder.decode(height(7), &block, &mut found);
    let expected = pairs(&[(VAULT, "OptionRoundDeployed"), (ROUND, "PricingDataSet"), (ROUND, "PricingDataSet")]);
    assert_eq!(kept(&decoded), expected, "none before it");
    let places: Vec<_> = decoded.events.iter().map(|e| (e.tx_index, e.event_index)).collect();
    assert_eq!(places, [(0, 2), (0, 3), (1, 0)]);
    assert!(!found.has(&Felt::parse("0x98").unwrap()), "strangers name nothing");
    // Events of unknown names and of no name are kept too; a number beyond P is not.
    let odd = vec![event(ROUND, &["0xabc"], &[]), event(ROUND, &[], &["0x1"]), event(ROUND, &["0x1"], &[P])];
    let decoded = decoder.decode(height(8), &transactions(&[odd]), &mut found);
    assert_eq!(kept(&decoded), pairs(&[(ROUND, "0xabc"), (ROUND, "anonymous")]));
    assert_eq!(decoded.rejects[0].reason, "bad_felt");
    // A token's movement is a movement, whoever's events are kept besides.
    let moved = named(ROUND, "Transfer", &["0x1", "0x2"], &["0x3", "0x0"]);
    let every = DecodeSettings { contracts: vec![ROUND.into()], ..DecodeSettings::default() };
    let none = DecodeSettings { contracts: vec![ROUND.into()], ..listed("none") };
    assert_eq!(outcome(&every, moved.clone()), (1, 0, vec![]));
    assert_eq!(outcome(&none, moved), (0, 1, vec![]));
}

#[test]
fn a_vault_is_followed_from_its_constructor_though_the_deployer_speaks_last() {
    let settings = |deployer: Option<&str>| DecodeSettings {
        vault_class_hash: Some(CLASS.to_uppercase().replace("0X", "0x0")),
        deployer: deployer.map(str::to_owned),
        ..listed("none")
    };
    let round = named(VAULT, "OptionRoundDeployed", &[], &["0x1", ROUND]);
    let made = |class: &str| named(UDC, "ContractDeployed", &[], &[VAULT, "0xde", "0x0", class, "0x0", "0x5a17"]);
    let priced = named(ROUND, "PricingDataSet", &[], &[]);
    let early = named(VAULT, "Deposit", &["0x1"], &[]);
    let block = |class: &str| [vec![early.clone()], vec![round.clone(), made(class), priced.clone()]];
    let whole = pairs(&[(VAULT, "OptionRoundDeployed"), (UDC, "ContractDeployed"), (ROUND, "PricingDataSet")]);
    for deployer in [None, Some("0x0DE")] {
        assert_eq!(kept(&decode_with(&settings(deployer), &block(CLASS))), whole, "{deployer:?}");
    }
    assert_eq!(kept(&decode_with(&settings(None), &block("0xbad"))), []);
    assert_eq!(kept(&decode_with(&settings(Some("0xad")), &block(CLASS))), []);
    let elsewhere = DecodeSettings { udc_addresses: vec!["0x1".into()], ..settings(None) };
    assert_eq!(kept(&decode_with(&elsewhere, &block(CLASS))), []);
    // Too short to say what was made.
    let short = [vec![round.clone(), named(UDC, "ContractDeployed", &[], &[VAULT, "0xde", "0x0"])]];
    assert_eq!(kept(&decode_with(&settings(None), &short)), []);
}

#[test]
fn settings_that_cannot_be_meant_are_refused_by_name() {
    let with = |change: fn(&mut DecodeSettings)| {
        let mut settings = DecodeSettings { vault_class_hash: Some(CLASS.into()), ..DecodeSettings::default() };
        change(&mut settings);
        Decoder::new(&settings)
    };
    with(|_| ()).unwrap();
    for (word, result) in [
        ("token \"USDC\"", with(|s| s.tokens = vec!["USDC".into()])),
        ("token \"none\"", with(|s| s.tokens = vec!["none".into(), "0x1".into()])),
        ("contract \"0x\"", with(|s| s.contracts = vec!["0x1".into(), "0x".into()])),
        ("2^251", with(|s| s.contracts = vec![P.into()])),
        ("vault_class_hash", with(|s| s.vault_class_hash = Some("vault".into()))),
        ("deployer", with(|s| s.deployer = Some(String::new()))),
        ("udc_address", with(|s| s.udc_addresses = vec!["12".into()])),
        ("vault_class_hash", with(|s| (s.vault_class_hash, s.deployer) = (None, Some("0x1".into())))),
        ("vault_class_hash", with(|s| (s.vault_class_hash, s.udc_addresses) = (None, vec!["0x1".into()]))),
    ] {
        let error = result.err().unwrap();
        assert_eq!(error.kind(), FaultKind::Permanent);
        assert!(error.to_string().contains(word), "{word}: {error}");
    }
}
