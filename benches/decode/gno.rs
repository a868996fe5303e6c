//! Pages of a tx-indexer, of both eras: the library says which token, or the function and its realm do.

use bech32::{Bech32, Hrp};
use ebbtide::sources::gno::decode::{DecodeSettings, Decoder};
use ebbtide::sources::gno::page::{Asked, Given};
use ebbtide::sources::gno::wire::{Answer, PageData};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::{Bodies, Case, Dice, Size, Tally, U256, hash_of};

/// Blocks of one page.
const BLOCKS: u64 = 100;
const TRANSACTIONS: u64 = 10;
const ACCOUNTS: u64 = 5_000;
const CHAIN: &str = "gnoland1";

pub(crate) fn cases(size: &Size) -> Vec<Case> {
    let eras = [
        (false, "decode rate, gno: pages of 100 blocks, the token named by the library"),
        (true, "decode rate, gno: the same, the function and its realm named (before tx-indexer 0.7)"),
    ];
    eras.map(|(by_func, what)| case(size, by_func, what)).into()
}

fn case(size: &Size, by_func: bool, what: &'static str) -> Case {
    let settings =
        DecodeSettings { events: vec!["Approval".to_owned()], require_func: by_func, ..DecodeSettings::default() };
    let decoder = Decoder::new(settings).unwrap();
    let (mut dice, mut holds) = (Dice::new(), Tally::default());
    let answers = (0..size.of(20, 2)).map(|n| page(1 + n * BLOCKS, by_func, &mut dice, &mut holds)).collect();
    Case { what, answers, holds, read: Box::new(move |n, bodies| read(&decoder, 1 + n * BLOCKS, bodies)) }
}

fn read(decoder: &Decoder, from: u64, bodies: &[Vec<u8>]) -> Tally {
    let [body] = bodies else { panic!("one page") };
    let answer: Answer<&RawValue> = serde_json::from_slice(body).unwrap();
    let data: PageData = serde_json::from_str(answer.data.unwrap().get()).unwrap();
    let asked = Asked { from, to: from + BLOCKS - 1, chain_id: Some(CHAIN) };
    let page = Given::new(data, asked).unwrap().page(decoder, |_| false).unwrap();
    assert!(page.gaps.is_empty());
    let mut tally = Tally::default();
    for block in page.blocks {
        assert!(block.rejects.is_empty() && block.time.is_some());
        tally.blocks += 1;
        tally.token_events += block.token_events.len() as u64;
        tally.events += block.events.len() as u64;
        tally.sum += block.token_events.iter().map(|event| event.amount).sum::<U256>();
        let approved = |value: &Value| value["value"].as_str().unwrap().parse::<U256>().unwrap();
        tally.sum += block.events.iter().map(|event| approved(&event.attributes)).sum::<U256>();
    }
    tally
}

/// 32 bytes in base64.
fn base64(bytes: [u8; 32]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text: Vec<u8> = Vec::with_capacity(44);
    for group in bytes.chunks(3) {
        let bits = (0..3).fold(0u32, |bits, n| bits << 8 | u32::from(group.get(n).copied().unwrap_or_default()));
        text.extend((0..=group.len()).map(|place| DIGITS[(bits >> (18 - 6 * place)) as usize & 63]));
    }
    text.push(b'=');
    String::from_utf8(text).unwrap()
}

fn account(n: u64) -> String {
    bech32::encode::<Bech32>(Hrp::parse("g").unwrap(), &hash_of("account", n)[..20]).unwrap()
}

fn event(kind: &str, by_func: bool, dice: &mut Dice, holds: &mut Tally) -> Value {
    let (from, to) = (account(dice.below(ACCOUNTS)), account(dice.below(ACCOUNTS)));
    let (realm, symbol) =
        [("gno.land/r/demo/wugnot", "WUGNOT"), ("gno.land/r/gnoswap/gns", "GNS")][dice.below(2) as usize];
    let amount = dice.below(1 << 31) + 1;
    if kind == "Transfer" {
        holds.token_events += 1;
    } else {
        holds.events += 1;
    }
    holds.sum += U256::from(amount);
    let (from_key, to_key) = if kind == "Transfer" { ("from", "to") } else { ("owner", "spender") };
    let mut attrs = vec![(from_key, from), (to_key, to), ("value", amount.to_string())];
    if !by_func {
        attrs.insert(0, ("token", format!("{realm}.{symbol}")));
    }
    let attrs: Vec<Value> = attrs.into_iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
    let package = if by_func { realm } else { "gno.land/p/demo/tokens/grc20" };
    let mut event = json!({"__typename": "GnoEvent", "type": kind, "pkg_path": package, "attrs": attrs});
    if by_func {
        event["func"] = json!(if kind == "Transfer" { "Transfer" } else { "Approve" });
    }
    event
}

/// An event that nobody asked for.
fn other(by_func: bool) -> Value {
    let attrs =
        [json!({"key": "prevAddr", "value": account(1)}), json!({"key": "poolPath", "value": "gno.land/r/a:b:3000"})];
    let mut event =
        json!({"__typename": "GnoEvent", "type": "Swap", "pkg_path": "gno.land/r/gnoswap/pool", "attrs": attrs});
    if by_func {
        event["func"] = json!("Swap");
    }
    event
}

fn page(first: u64, by_func: bool, dice: &mut Dice, holds: &mut Tally) -> Bodies {
    let (mut blocks, mut transactions) = (Vec::new(), Vec::new());
    for height in first..first + BLOCKS {
        holds.blocks += 1;
        blocks.push(json!({
            "height": height, "hash": base64(hash_of("block", height)),
            "last_block_hash": base64(hash_of("block", height - 1)), "chain_id": CHAIN,
            "time": jiff::Timestamp::from_second(1_700_000_000 + 2 * height as i64).unwrap().to_string(),
            "num_txs": TRANSACTIONS,
        }));
        for index in 0..TRANSACTIONS {
            let mut events: Vec<Value> = (0..3).map(|_| event("Transfer", by_func, dice, holds)).collect();
            events.push(event("Approval", by_func, dice, holds));
            // What nobody asked for, and a kind that was not selected.
            events.extend([other(by_func), json!({})]);
            transactions.push(json!({
                "block_height": height, "index": index, "hash": base64(hash_of("tx", height << 16 | index)),
                "success": true, "response": {"events": events},
            }));
        }
    }
    vec![serde_json::to_vec(&json!({"data": {"getBlocks": blocks, "getTransactions": transactions}})).unwrap()]
}
