//! Blocks of Starknet with their receipts, and what a search of history reads: pages of events, and blocks with hashes.

use std::collections::BTreeMap;

use ebbtide::chain::Height;
use ebbtide::chain::felt::Felt;
use ebbtide::sources::starknet::decode::{DecodeSettings, Decoder};
use ebbtide::sources::starknet::follow::Found;
use ebbtide::sources::starknet::wire;
use serde_json::{Value, json};

use crate::{Bodies, Case, Dice, Size, Tally, U256, batch, hash_of, results};

/// Blocks of one answer with receipts.
const WHOLE: u64 = 20;
/// Blocks of one answer with hashes.
const HEADERS: u64 = 100;
const TRANSACTIONS: u64 = 30;
const ACCOUNTS: u64 = 50_000;
const TOKENS: u64 = 8;

pub(crate) fn cases(size: &Size) -> Vec<Case> {
    vec![receipts(size), search(size)]
}

/// A felt that looks like a hash.
pub(crate) fn felt(kind: &str, n: u64) -> Felt {
    Felt::new(U256::from_be_bytes(hash_of(kind, n)) >> 6).unwrap()
}

fn amount(dice: &mut Dice, holds: &mut Tally) -> [Felt; 2] {
    let amount = dice.amount();
    holds.token_events += 1;
    holds.sum += amount;
    [Felt::new(amount).unwrap(), Felt::ZERO]
}

pub(crate) fn event(from: Felt, keys: &[Felt], data: &[Felt]) -> Value {
    let texts = |felts: &[Felt]| felts.iter().map(Felt::to_string).collect::<Vec<_>>();
    json!({"from_address": from.to_string(), "keys": texts(keys), "data": texts(data)})
}

fn transfer(new_layout: bool, dice: &mut Dice, holds: &mut Tally) -> Value {
    let token = felt("token", dice.below(TOKENS));
    let [from, to] = [(); 2].map(|()| felt("account", dice.below(ACCOUNTS)));
    let ([low, high], selector) = (amount(dice, holds), Felt::selector("Transfer"));
    if new_layout {
        event(token, &[selector, from, to], &[low, high])
    } else {
        event(token, &[selector], &[from, to, low, high])
    }
}

/// A block as nodes give it with receipts. Each transaction holds what we do not read, too: calldata and signatures.
pub(crate) fn block(height: u64, transactions: Vec<Vec<Value>>) -> Value {
    let texts = |kind: &str, count: u64| (0..count).map(|n| felt(kind, n).to_string()).collect::<Vec<_>>();
    let fee = json!({"amount": "0x1bf2d3c4a5b6", "unit": "FRI"});
    let bounds = json!({"max_amount": "0x186a0", "max_price_per_unit": "0x5af3107a4000"});
    let of_all: usize = transactions.iter().map(Vec::len).sum();
    let transaction = |(n, events): (u64, Vec<Value>)| {
        json!({
            "transaction": {
                "type": "INVOKE", "version": "0x3", "sender_address": felt("account", n).to_string(), "nonce": "0x2a",
                "calldata": texts("calldata", 16), "signature": texts("signature", 2), "tip": "0x0",
                "resource_bounds": {"l1_gas": bounds, "l2_gas": bounds}, "paymaster_data": [],
                "account_deployment_data": [], "nonce_data_availability_mode": "L1", "fee_data_availability_mode": "L1",
            },
            "receipt": {
                "type": "INVOKE", "transaction_hash": felt("tx", height << 16 | n).to_string(), "actual_fee": fee,
                "execution_status": "SUCCEEDED", "finality_status": "ACCEPTED_ON_L2", "messages_sent": [],
                "events": events, "execution_resources": {"l1_gas": 0, "l1_data_gas": 128, "l2_gas": 1_200_000},
            },
        })
    };
    let count = transactions.len();
    let mut block = header(height, (0..).zip(transactions).map(transaction).collect());
    block["transaction_count"] = json!(count);
    block["event_count"] = json!(of_all);
    block
}

fn header(height: u64, transactions: Vec<Value>) -> Value {
    let price = json!({"price_in_fri": "0x5af3107a4000", "price_in_wei": "0x3b9aca00"});
    json!({
        "status": "ACCEPTED_ON_L2", "block_hash": felt("block", height).to_string(),
        "parent_hash": felt("block", height - 1).to_string(), "block_number": height,
        "timestamp": 1_700_000_000 + 6 * height, "new_root": felt("root", height).to_string(),
        "sequencer_address": felt("account", 0).to_string(), "starknet_version": "0.14.0", "l1_da_mode": "BLOB",
        "l1_gas_price": price, "l1_data_gas_price": price, "l2_gas_price": price, "transactions": transactions,
    })
}

fn receipts(size: &Size) -> Case {
    let followed = felt("followed", 0);
    let contracts = vec![followed.to_string()];
    let decoder = Decoder::new(&DecodeSettings { contracts, ..DecodeSettings::default() }).unwrap();
    let (mut dice, mut holds) = (Dice::new(), Tally::default());
    let (dice, added) = (&mut dice, &mut holds);
    let mut answers = Vec::new();
    for n in 0..size.of(30, 3) {
        let mut transaction = |tx: u64| {
            let mut events: Vec<Value> = (0..4).map(|n| transfer(n % 2 == 0, dice, added)).collect();
            // Every other transaction says something that is kept, and all something that is not.
            events.push(event(felt("other", tx), &[Felt::selector("Sync")], &[Felt::from(tx); 6]));
            if tx.is_multiple_of(2) {
                let number = Felt::from(dice.below(1 << 31));
                added.events += 1;
                added.sum += number.number();
                events.push(event(followed, &[Felt::selector("Set"), felt("account", tx)], &[number]));
            }
            events
        };
        let blocks = (0..WHOLE).map(|at| block(1 + n * WHOLE + at, (0..TRANSACTIONS).map(&mut transaction).collect()));
        answers.push(vec![batch(blocks.collect())]);
    }
    holds.blocks = size.of(30, 3) * WHOLE;
    let what = "decode rate, starknet: blocks with receipts, Transfers in both layouts, every token followed";
    Case { what, answers, holds, read: Box::new(move |_, bodies| read(&decoder, bodies)) }
}

fn read(decoder: &Decoder, bodies: &[Vec<u8>]) -> Tally {
    let mut tally = Tally::default();
    for raw in bodies.iter().flat_map(|body| results(body)) {
        let block = wire::with_receipts(&raw).unwrap().unwrap();
        let decoded = decoder.decode(block.link.height, &block.transactions, &mut Found::default());
        assert!(decoded.rejects.is_empty());
        tally.blocks += 1;
        tally.token_events += decoded.token_events.len() as u64;
        tally.events += decoded.events.len() as u64;
        tally.sum += decoded.token_events.iter().map(|event| event.amount).sum::<U256>();
        tally.sum += decoded.events.iter().map(|event| Felt::parse(&event.data[0]).unwrap().number()).sum::<U256>();
    }
    tally
}

/// One contract's events in 100 blocks, and the blocks' hashes: what tells which of them to read with receipts.
fn search(size: &Size) -> Case {
    let (mut dice, mut holds) = (Dice::new(), Tally::default());
    let token = felt("token", 0);
    let answers = (0..size.of(30, 3)).map(|n| searched(1 + n * HEADERS, token, &mut dice, &mut holds)).collect();
    let what = "decode rate, starknet: a search of old blocks, pages of events and blocks with hashes";
    Case { what, answers, holds, read: Box::new(move |_, bodies| find(token, bodies)) }
}

fn searched(first: u64, token: Felt, dice: &mut Dice, holds: &mut Tally) -> Bodies {
    let mut headers = Vec::new();
    let mut events = Vec::new();
    for height in first..first + HEADERS {
        holds.blocks += 1;
        let hash = |n| Value::String(felt("tx", height << 16 | n).to_string());
        headers.push(header(height, (0..TRANSACTIONS).map(hash).collect()));
        for n in 0..10 {
            let mut event = transfer(n % 2 == 0, dice, &mut Tally::default());
            event["from_address"] = json!(token.to_string());
            event["block_number"] = json!(height);
            event["block_hash"] = json!(felt("block", height).to_string());
            event["transaction_hash"] = hash(n);
            events.push(event);
            holds.events += 1;
            holds.sum += U256::from(height);
        }
    }
    let page = json!({"events": events, "continuation_token": format!("{}-0", first + HEADERS)});
    vec![batch(vec![page]), batch(headers)]
}

fn find(token: Felt, bodies: &[Vec<u8>]) -> Tally {
    let [pages, headers] = bodies else { panic!("pages and headers") };
    let mut tally = Tally::default();
    let mut holding: BTreeMap<u64, Felt> = BTreeMap::new();
    for raw in results(pages) {
        for event in wire::page(&raw).unwrap().events {
            let (number, hash) = (event.block_number.unwrap(), event.block_hash.unwrap());
            assert_eq!((event.from_address, *holding.entry(number).or_insert(hash)), (token, hash));
            tally.events += 1;
            tally.sum += U256::from(number);
        }
    }
    for raw in results(headers) {
        let block = wire::with_hashes(&raw).unwrap().unwrap();
        assert_eq!(block.transactions.len() as u64, TRANSACTIONS);
        let height: Height = block.link.height;
        assert_eq!(holding[&height.get()].to_string(), block.link.hash.as_str());
        tally.blocks += 1;
    }
    tally
}
