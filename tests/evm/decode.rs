//! Decoding of real logs, against answers that others extracted or that the contracts themselves gave.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ebbtide::chain::delta::{self, Delta};
use ebbtide::chain::{Amount, TokenEvent};
use ebbtide::sources::evm::decode::{DecodeSettings, Decoded, Decoder, RawLog};
use ruint::Uint;
use serde_json::{Value, json};

use crate::support::fake_node::{data_lines, data_text, follow};

const WETH: &str = "0xc02aaa39b223fe8d0a0e5c4f27ead9083c756cc2";

fn all() -> Decoder {
    Decoder::new(&DecodeSettings::default(), Some(1)).unwrap()
}

fn with(tokens: &[&str], events: &[&str]) -> Decoder {
    let texts = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect();
    let settings = DecodeSettings { tokens: texts(tokens), events: texts(events), wrapped_native: Vec::new() };
    Decoder::new(&settings, Some(1)).unwrap()
}

fn logs(block: &Value) -> Vec<RawLog> {
    serde_json::from_value(block["logs"].clone()).unwrap()
}

fn signed(text: &str) -> Delta {
    let digits = text.strip_prefix('-');
    Delta::from_parts(digits.is_some(), digits.unwrap_or(text).parse::<Uint<384, 6>>().unwrap()).unwrap()
}

/// Rows of a CSV file without quotes, by column name.
fn rows(text: &str) -> Vec<HashMap<&str, &str>> {
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next().unwrap().split(',').collect();
    lines.map(|line| names.iter().copied().zip(line.split(',')).collect()).collect()
}

fn is_ascending(decoded: &Decoded) -> bool {
    decoded.token_events.is_sorted_by(|a, b| (a.tx_index, a.event_index) < (b.tx_index, b.event_index))
        && decoded.events.is_sorted_by(|a, b| (a.tx_index, a.event_index) < (b.tx_index, b.event_index))
        && decoded.transactions.is_sorted_by(|a, b| a.tx_index < b.tx_index)
}

#[test]
fn every_log_of_twenty_blocks_is_read_or_let_go() {
    let Some(blocks) = data_lines("ethereum/blocks.ndjson.gz") else { return };
    let (mut count, mut movements, mut mints, mut burns, mut nfts) = (0, 0, 0, 0, 0);
    for block in &blocks {
        let logs = logs(block);
        count += logs.len();
        let transfer = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef";
        let is_transfer = |log: &&RawLog| log.topics.first().is_some_and(|t| t == transfer);
        nfts += logs.iter().filter(is_transfer).filter(|log| log.topics.len() == 4).count();
        let simple =
            logs.iter().filter(is_transfer).filter(|log| log.topics.len() == 3 && log.data.len() == 66).count();
        let weth = |log: &&RawLog| log.address == WETH && log.topics.len() == 2;
        let wrapped = logs.iter().filter(weth).count();
        let decoded = all().decode(logs);
        assert!(is_ascending(&decoded));
        assert!(decoded.rejects.is_empty() && decoded.events.is_empty());
        assert_eq!(decoded.token_events.len(), simple + wrapped, "block {}", block["number"]);
        movements += decoded.token_events.len();
        mints += decoded.token_events.iter().filter(|e| e.from.is_none()).count();
        burns += decoded.token_events.iter().filter(|e| e.to.is_none()).count();
    }
    println!(
        "{} blocks, {count} logs: {movements} movements, {mints} mints, {burns} burns, {nfts} ERC-721",
        blocks.len()
    );
    assert_eq!((blocks.len(), count), (20, 16_662));
}

#[test]
fn transfers_are_those_that_another_extractor_found() {
    let Some(blocks) = data_lines("ethereum/blocks.ndjson.gz") else { return };
    let Some(wanted) = data_lines("ethereum/17173049-17173050.token_transfers.ndjson.gz") else { return };
    let zero = format!("0x{}", "00".repeat(20));
    let mut nfts = 0;
    let mut told = BTreeSet::new();
    for line in &wanted {
        // It counts ERC-721 transfers too, with a value of 0 or none of its own; the logs tell them apart.
        let block = blocks.iter().find(|b| b["number"] == line["block_number"]).unwrap();
        let log = block["logs"].as_array().unwrap().iter().find(|l| l["log_index"] == line["log_index"]).unwrap();
        if log["topics"].as_array().unwrap().len() == 4 {
            nfts += 1;
            continue;
        }
        let text = |key: &str| line[key].as_str().unwrap().to_owned();
        let number = line["block_number"].as_u64().unwrap();
        let (from, to, value) = (text("from_address"), text("to_address"), line["value"].to_string());
        told.insert((number, line["log_index"].as_u64().unwrap(), text("token_address"), from, to, value));
    }
    let mut found = BTreeSet::new();
    for block in blocks.iter().filter(|b| [17_173_049, 17_173_050].map(Value::from).contains(&b["number"])) {
        let number = block["number"].as_u64().unwrap();
        let logs: Vec<RawLog> = logs(block).into_iter().filter(|l| l.topics.len() == 3).collect();
        for e in all().decode(logs).token_events {
            let side = |side: &Option<ebbtide::chain::Text>| side.as_deref().unwrap_or(&zero).to_owned();
            found.insert((
                number,
                e.event_index,
                e.token.to_string(),
                side(&e.from),
                side(&e.to),
                e.amount.to_string(),
            ));
        }
    }
    println!("{} transfers told, {nfts} of them ERC-721, {} found", wanted.len(), found.len());
    assert_eq!(wanted.len(), 291);
    assert_eq!(found, told);
}

#[test]
fn nets_of_block_12505500_are_what_the_logs_say() {
    let Some(blocks) = data_lines("ethereum/blocks.ndjson.gz") else { return };
    let Some(text) = data_text("ethereum/12505500.balances.csv") else { return };
    let block = blocks.iter().find(|b| b["number"] == 12_505_500).unwrap();
    let net = delta::net(&all().decode(logs(block)).token_events);
    let rows = rows(&text);
    let mut equal = 0;
    for row in &rows {
        let ours = net.get(&(row["token"].into(), row["holder"].into())).copied().unwrap_or_default();
        assert_eq!(ours, signed(row["net_of_logs"]), "{row:?}");
        let moved = signed(row["balance_after"]).merge(signed(row["balance_before"]).inverse());
        equal += usize::from(ours == moved);
    }
    println!("{equal} of {} balances in storage moved as the events say", rows.len());
    assert_eq!((rows.len(), equal), (246, 228));
}

#[test]
fn balances_of_a_run_of_blocks_equal_contract_storage_at_every_height() {
    let Some(blocks) = data_lines("ethereum/run-17686110-17686132/blocks.ndjson.gz") else { return };
    let Some(text) = data_text("ethereum/run-17686110-17686132/balances.csv.gz") else { return };
    let mut told: BTreeMap<u64, HashMap<(&str, &str), Delta>> = BTreeMap::new();
    let mut tokens = BTreeSet::new();
    let rows = rows(&text);
    for row in &rows {
        tokens.insert(row["token"]);
        let moved = signed(row["balance_after"]).merge(signed(row["balance_before"]).inverse());
        told.entry(row["block"].parse().unwrap()).or_default().insert((row["token"], row["holder"]), moved);
    }
    let decoder = with(&tokens.iter().copied().collect::<Vec<_>>(), &[]);
    let (mut logs_seen, mut changes) = (0, 0);
    for block in &blocks {
        let logs = logs(block);
        logs_seen += logs.len();
        let decoded = decoder.decode(logs);
        assert!(decoded.rejects.is_empty(), "{:?}", decoded.rejects);
        let net = delta::net(&decoded.token_events);
        let ours: HashMap<(&str, &str), Delta> =
            net.iter().filter(|(_, d)| !d.is_zero()).map(|((t, a), d)| ((&**t, &**a), *d)).collect();
        let theirs = told.remove(&block["number"].as_u64().unwrap()).unwrap_or_default();
        changes += theirs.len();
        for (key, delta) in &ours {
            assert_eq!(theirs.get(key), Some(delta), "block {}: {key:?}", block["number"]);
        }
        // Storage that was written with what it held is a change to its reader, and none to us.
        for (key, delta) in theirs.iter().filter(|(_, delta)| !delta.is_zero()) {
            assert_eq!(ours.get(key), Some(delta), "block {}: {key:?}", block["number"]);
        }
    }
    println!("{} blocks, {logs_seen} logs, {} tokens: {changes} of {} changes", blocks.len(), tokens.len(), rows.len());
    assert_eq!((blocks.len(), tokens.len(), changes), (23, 389, 5_784));
}

#[test]
fn raw_answers_of_a_node_give_the_logs_that_others_kept() {
    let Some(blocks) = data_lines("ethereum/blocks.ndjson.gz") else { return };
    let mut compared = 0;
    for height in [4_369_999, 18_500_000] {
        let Some(text) = data_text(&format!("ethereum/rpc/{height}.receipts.json.gz")) else { return };
        let receipts: Vec<Value> = serde_json::from_str(&text).unwrap();
        let number = |text: &Value| u64::from_str_radix(&text.as_str().unwrap()[2..], 16).unwrap();
        let from_receipts: Vec<RawLog> = receipts
            .iter()
            .flat_map(|receipt| receipt["logs"].as_array().unwrap())
            .map(|log| RawLog {
                address: log["address"].as_str().unwrap().to_owned(),
                topics: serde_json::from_value(log["topics"].clone()).unwrap(),
                data: log["data"].as_str().unwrap().to_owned(),
                tx_hash: log["transactionHash"].as_str().unwrap().to_owned(),
                tx_index: number(&log["transactionIndex"]),
                log_index: number(&log["logIndex"]),
            })
            .collect();
        compared += from_receipts.len();
        let ours = all().decode(from_receipts);
        let Some(block) = blocks.iter().find(|b| b["number"] == height) else {
            println!("block {height} is only in rpc/: {} movements", ours.token_events.len());
            continue;
        };
        assert_eq!(ours, all().decode(logs(block)), "block {height}");
    }
    println!("{compared} logs of raw answers");
}

#[test]
fn anvil_feeds_decode_to_what_the_contracts_answered() {
    for run in ["erc20-depth-1-10", "erc20-depth-64"] {
        let Some(feed) = data_lines(&format!("anvil/{run}.feed.ndjson.gz")) else { return };
        let Some(truth) = data_lines(&format!("anvil/{run}.truth.ndjson.gz")) else { return };
        let info: Value = serde_json::from_str(&data_text(&format!("anvil/{run}.run.json")).unwrap()).unwrap();
        let tokens: Vec<&str> = info["tokens"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
        let decoder = with(&tokens, &[]);
        let mut chain = Vec::new();
        let mut lines = feed.iter().peekable();
        let (mut decoded_logs, mut answers) = (0, 0);
        for point in &truth {
            while let Some(line) = lines.next_if(|line| line["seq"].as_u64() <= point["seq"].as_u64()) {
                follow(&mut chain, line);
            }
            assert_eq!(json!(chain.last().unwrap().hash), point["hash"]);
            let mut events: Vec<TokenEvent> = Vec::new();
            for block in &chain {
                decoded_logs += block.logs.len();
                let decoded = decoder.decode(serde_json::from_value(json!(block.logs)).unwrap());
                assert!(decoded.rejects.is_empty());
                events.extend(decoded.token_events);
            }
            let net = delta::net(&events);
            let mut told = HashMap::new();
            for (token, state) in point["tokens"].as_object().unwrap() {
                for (holder, balance) in state["balances"].as_object().unwrap() {
                    told.insert((token.as_str(), holder.as_str()), signed(balance.as_str().unwrap()));
                }
            }
            answers += told.len();
            let ours: HashMap<(&str, &str), Delta> =
                net.iter().filter(|(_, d)| !d.is_zero()).map(|((t, a), d)| ((&**t, &**a), *d)).collect();
            assert_eq!(ours, told, "{run} at seq {}", point["seq"]);
        }
        println!("{run}: {} truth points, {answers} balances, {decoded_logs} logs decoded", truth.len());
    }
}

#[test]
fn approvals_of_the_feed_become_events_with_names() {
    let Some(feed) = data_lines("anvil/erc20-depth-1-10.feed.ndjson.gz") else { return };
    let signature = "event Approval(address indexed owner, address indexed spender, uint256 value)";
    let decoder = with(
        &["none"],
        &[signature, "RoleGranted(bytes32 indexed role, address indexed account, address indexed sender)"],
    );
    let (mut approvals, mut roles) = (0, 0);
    for line in feed.iter().filter(|line| line["event"] == "block") {
        let decoded = decoder.decode(logs(line));
        assert!(decoded.token_events.is_empty() && decoded.rejects.is_empty() && is_ascending(&decoded));
        for event in decoded.events {
            if &*event.name == "Approval" {
                approvals += 1;
                let value: Amount = event.attributes["value"].as_str().unwrap().parse().unwrap();
                assert_eq!(*event.data[0], *format!("0x{value:064x}"));
                assert_eq!(event.keys.len(), 3);
                assert!(event.keys[1].ends_with(&event.attributes["owner"].as_str().unwrap()[2..]));
            } else {
                roles += 1;
                assert_eq!(event.attributes["role"], json!(&*event.keys[1]));
                assert!(event.data.is_empty());
            }
        }
    }
    println!("{approvals} approvals, {roles} roles granted");
    assert!(approvals > 0 && roles > 0);
}

fn log(topics: &[&str], data: &str) -> RawLog {
    RawLog {
        address: "0x1111111111111111111111111111111111111111".into(),
        topics: topics.iter().map(|t| (*t).to_owned()).collect(),
        data: data.into(),
        tx_hash: format!("0x{}", "77".repeat(32)),
        tx_index: 3,
        log_index: 4_294_967_295,
    }
}

const TRANSFER: &str = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef";
const ZERO: &str = "0x0000000000000000000000000000000000000000000000000000000000000000";
const ALICE: &str = "0x000000000000000000000000aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const DIRTY: &str = "0x010000000000000000000000aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const FIVE: &str = "0x0000000000000000000000000000000000000000000000000000000000000005";
const MOST: &str = "0xffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff";

#[test]
fn odd_transfers_are_refused_for_listed_tokens_and_ignored_for_others() {
    let listed = with(&["0x1111111111111111111111111111111111111111"], &[]);
    let long = format!("{FIVE}{}", "00".repeat(32));
    for (name, log, reason) in [
        ("dirty sender", log(&[TRANSFER, DIRTY, ALICE], FIVE), Some("bad_transfer")),
        ("dirty receiver", log(&[TRANSFER, ALICE, DIRTY], FIVE), Some("bad_transfer")),
        ("no data", log(&[TRANSFER, ALICE, ALICE], "0x"), Some("bad_transfer")),
        ("too much data", log(&[TRANSFER, ALICE, ALICE], &long), Some("bad_transfer")),
        ("nothing indexed", log(&[TRANSFER], &long), Some("bad_transfer")),
        ("one indexed", log(&[TRANSFER, ALICE], FIVE), Some("bad_transfer")),
        ("an amount from nobody to nobody", log(&[TRANSFER, ZERO, ZERO], FIVE), Some("no_party")),
        ("nothing from nobody to nobody", log(&[TRANSFER, ZERO, ZERO], ZERO), None),
        ("an ERC-721", log(&[TRANSFER, ALICE, ALICE, FIVE], "0x"), None),
        ("another event", log(&[ALICE], "0x"), None),
        ("no topics", log(&[], FIVE), None),
    ] {
        let decoded = listed.decode(vec![log.clone()]);
        assert!(decoded.token_events.is_empty(), "{name}");
        let reasons: Vec<&str> = decoded.rejects.iter().map(|r| r.reason.as_str()).collect();
        assert_eq!(reasons, reason.into_iter().collect::<Vec<_>>(), "{name}");
        assert_eq!(decoded.transactions.len(), reasons.len(), "{name}");
        assert_eq!(all().decode(vec![log]), Decoded::default(), "{name}, any token");
    }
}

#[test]
fn zero_addresses_are_missing_sides_and_amounts_keep_every_bit() {
    for (from, to) in [(ZERO, ALICE), (ALICE, ZERO), (ALICE, ALICE)] {
        let decoded = all().decode(vec![log(&[TRANSFER, from, to], MOST)]);
        let [event] = decoded.token_events.as_slice() else { panic!("{decoded:?}") };
        assert_eq!((event.from.is_none(), event.to.is_none()), (from == ZERO, to == ZERO));
        assert_eq!((event.amount, event.event_index), (Amount::MAX, 4_294_967_295));
    }
}

#[test]
fn upper_case_is_lowered_and_copies_count_once() {
    let lower = log(&[TRANSFER, ALICE, ZERO], FIVE);
    let mut upper = lower.clone();
    upper.address = upper.address.to_uppercase().replace("0X", "0x");
    upper.topics[1] = ALICE.to_uppercase().replace("0X", "0x");
    upper.tx_hash = format!("0x{}", "77".repeat(32));
    let decoded = all().decode(vec![upper.clone(), lower.clone(), upper]);
    assert_eq!(decoded, all().decode(vec![lower]));
    assert_eq!(decoded.token_events.len(), 1);
}

#[test]
fn different_logs_at_one_place_are_all_refused() {
    let mut other = log(&[TRANSFER, ALICE, ZERO], MOST);
    let decoded = all().decode(vec![log(&[TRANSFER, ALICE, ZERO], FIVE), other.clone()]);
    assert!(decoded.token_events.is_empty());
    assert_eq!(decoded.rejects.len(), 1);
    assert_eq!(decoded.rejects[0].reason, "position_taken");
    assert_eq!(decoded.rejects[0].raw.as_array().unwrap().len(), 2);
    other.log_index = 1;
    other.tx_hash = format!("0x{}", "88".repeat(32));
    let decoded = all().decode(vec![log(&[TRANSFER, ALICE, ZERO], FIVE), other]);
    assert_eq!((decoded.token_events.len(), decoded.rejects.len()), (1, 1));
    assert_eq!(decoded.rejects[0].reason, "transaction_differs");
}

#[test]
fn what_is_not_even_a_log_is_kept_as_evidence_that_postgres_can_hold() {
    let good = log(&[TRANSFER, ALICE, ZERO], FIVE);
    let spoiled: [fn(&mut RawLog); 7] = [
        |l| l.address = "0x12".into(),
        |l| l.data = "0x123".into(),
        |l| l.data = "hello\0".into(),
        |l| l.topics[1] = "0x00".into(),
        |l| l.topics = vec![ZERO.into(); 5],
        |l| l.tx_hash = "\0".into(),
        |l| l.log_index = u64::MAX,
    ];
    for spoil in spoiled {
        let mut bad = good.clone();
        spoil(&mut bad);
        let decoded = all().decode(vec![bad]);
        assert_eq!(decoded.rejects.len(), 1);
        assert_eq!(decoded.rejects[0].reason, "bad_log");
        assert!(!decoded.rejects[0].raw.to_string().contains("\\u0000"));
        assert!(decoded.rejects[0].event_index <= i64::MAX as u64);
        assert!(decoded.transactions.is_empty() && decoded.token_events.is_empty());
    }
}

#[test]
fn wrapped_native_tokens_mint_and_burn_without_a_transfer() {
    let deposit = "0xe1fffcc4923d04b559f4d29a8bfc6cda04eb5b0d3c460751c2402c5c5cc9109c";
    let withdrawal = "0x7fcf532c15f0a6db0bd6d0e038bea71d30d808c7d98cb3bf7268a95bf5081b65";
    let at = |address: &str, topic: &str| RawLog { address: address.into(), ..log(&[topic, ALICE], FIVE) };
    let sides = |decoder: &Decoder, log: RawLog| {
        decoder.decode(vec![log]).token_events.first().map(|e| (e.from.is_some(), e.to.is_some()))
    };
    let base = "0x4200000000000000000000000000000000000006";
    let on = |network| Decoder::new(&DecodeSettings::default(), network).unwrap();
    assert_eq!(sides(&on(Some(1)), at(WETH, deposit)), Some((false, true)));
    assert_eq!(sides(&on(Some(1)), at(WETH, withdrawal)), Some((true, false)));
    assert_eq!(sides(&on(None), at(WETH, deposit)), Some((false, true)));
    assert_eq!(sides(&on(Some(8453)), at(base, deposit)), Some((false, true)));
    assert_eq!(sides(&on(Some(1)), at(base, deposit)), None);
    assert_eq!(sides(&on(Some(31337)), at(WETH, deposit)), None);
    let settings =
        DecodeSettings { wrapped_native: vec![base.to_uppercase().replace("0X", "0x")], ..Default::default() };
    assert_eq!(sides(&Decoder::new(&settings, Some(31337)).unwrap(), at(base, withdrawal)), Some((true, false)));
    assert_eq!(sides(&with(&[base], &[]), at(WETH, deposit)), None, "only listed tokens count");
}

#[test]
fn an_event_that_does_not_decode_is_refused_and_kept() {
    let decoder =
        with(&["none"], &["Transfer(address indexed from, address indexed to, uint8 value)", "Said(string what)"]);
    let said = alloy_primitives::keccak256("Said(string)").to_string();
    let decoded = decoder.decode(vec![log(&[&said], FIVE)]);
    assert_eq!(decoded.rejects[0].reason, "bad_event");
    assert_eq!(decoded.rejects[0].raw["topics"][0], json!(said));
    // Another number of topics is another event.
    assert_eq!(decoder.decode(vec![log(&[&said, ALICE], FIVE)]), Decoded::default());
}

#[test]
fn a_transfer_asked_for_twice_is_a_movement() {
    let signature = "Transfer(address indexed from, address indexed to, uint256 value)";
    let token = "0x1111111111111111111111111111111111111111";
    let transfer = log(&[TRANSFER, ALICE, ZERO], FIVE);
    let both = with(&[token], &[signature]).decode(vec![transfer.clone()]);
    assert_eq!((both.token_events.len(), both.events.len()), (1, 0));
    // Of a contract that is not a listed token it is an event like any other.
    let event = with(&["0x2222222222222222222222222222222222222222"], &[signature]).decode(vec![transfer.clone()]);
    assert_eq!((event.token_events.len(), event.events.len()), (0, 1));
    // And only from the contracts that are named, if some are.
    let elsewhere = format!("{signature} @ 0x2222222222222222222222222222222222222222");
    assert_eq!(with(&["none"], &[&elsewhere]).decode(vec![transfer]), Decoded::default());
}

#[test]
fn overloaded_names_are_told_apart_by_their_types_and_layouts() {
    let decoder = with(
        &["none"],
        &[
            "Said(uint256 number)",
            "Said(string what)",
            // One first topic, other parameters in the topics.
            "Moved(address indexed who, uint256 far)",
            "Moved(address indexed who, uint256 indexed far)",
            "Moved(address who, uint256 far)",
        ],
    );
    let topic = |signature: &str| alloy_primitives::keccak256(signature).to_string();
    let (said, moved) = (topic("Said(uint256)"), topic("Moved(address,uint256)"));
    let text = format!(
        "0x{}{}{}",
        &FIVE[2..].replace("05", "20"),
        &FIVE[2..].replace("05", "02"),
        "6869".to_owned() + &"00".repeat(30)
    );
    for (log, name, attributes) in [
        (log(&[&said], FIVE), "Said", json!({"number": "5"})),
        (log(&[&topic("Said(string)")], &text), "Said", json!({"what": "hi"})),
        (log(&[&moved, ALICE], FIVE), "Moved", json!({"who": format!("0x{}", &ALICE[26..]), "far": "5"})),
        (log(&[&moved, ALICE, FIVE], "0x"), "Moved", json!({"who": format!("0x{}", &ALICE[26..]), "far": "5"})),
        (
            log(&[&moved], &format!("{ALICE}{}", &FIVE[2..])),
            "Moved",
            json!({"who": format!("0x{}", &ALICE[26..]), "far": "5"}),
        ),
    ] {
        let decoded = decoder.decode(vec![log.clone()]);
        assert!(decoded.rejects.is_empty(), "{log:?}");
        assert_eq!((&*decoded.events[0].name, &decoded.events[0].attributes), (name, &attributes));
        assert_eq!(*decoded.events[0].keys[0], *log.topics[0], "which of them it is");
    }
}

#[test]
fn an_event_given_twice_counts_once() {
    let (here, there) = ("0x1111111111111111111111111111111111111111", "0x2222222222222222222222222222222222222222");
    let said = alloy_primitives::keccak256("Said(uint256)").to_string();
    let of = |address: &str| RawLog { address: address.into(), ..log(&[&said], FIVE) };
    let count = |decoder: &Decoder, address: &str| decoder.decode(vec![of(address)]).events.len();
    let twice = with(&["none"], &["Said(uint256 n)", "event Said(uint n);"]);
    assert_eq!((count(&twice, here), count(&twice, there)), (1, 1));
    let both = [format!("Said(uint n) @ {here}"), format!("Said(uint n) @ {there}")];
    let both = with(&["none"], &[&both[0], &both[1]]);
    assert_eq!((count(&both, here), count(&both, there), count(&both, WETH)), (1, 1, 0));
    let anybody = with(&["none"], &[&format!("Said(uint n) @ {here}"), "Said(uint n)"]);
    assert_eq!((count(&anybody, here), count(&anybody, there)), (1, 1));
    // Other names for the same thing, of contracts of its own: each is read by its own words.
    let apart = [format!("Said(uint n) @ {here}"), format!("Said(uint m) @ {there}")];
    let apart = with(&["none"], &[&apart[0], &apart[1]]);
    assert_eq!(apart.decode(vec![of(there)]).events[0].attributes, json!({"m": "5"}));
}

#[test]
fn anonymous_events_are_tried_where_no_other_fits() {
    let here = "0x1111111111111111111111111111111111111111";
    let note = format!("Note(bytes4 indexed sig, address indexed who, uint256 n) anonymous @ {here}");
    let bare = format!("Bare(uint256 n) anonymous @ {here}");
    let moved = alloy_primitives::keccak256("Moved(address,uint256)").to_string();
    let decoder = with(&["none"], &[&note, &bare, "Moved(address indexed who, uint256 far)"]);
    let sig = format!("0xdeadbeef{}", "00".repeat(28));
    let named = |log: RawLog| {
        let decoded = decoder.decode(vec![log]);
        assert!(decoded.rejects.is_empty());
        decoded.events.into_iter().next().map(|e| (e.name.to_string(), e.attributes))
    };
    let who = format!("0x{}", &ALICE[26..]);
    assert_eq!(
        named(log(&[&sig, ALICE], FIVE)),
        Some(("Note".into(), json!({"sig": "0xdeadbeef", "who": who, "n": "5"})))
    );
    assert_eq!(named(log(&[], FIVE)), Some(("Bare".into(), json!({"n": "5"}))), "a log without any topic");
    assert_eq!(named(log(&[&moved, ALICE], FIVE)).map(|(name, _)| name), Some("Moved".into()));
    // Not these: another event's hash in the place of four bytes, more data, another contract.
    assert_eq!(named(log(&[MOST, ALICE], FIVE)), None);
    assert_eq!(named(log(&[], &format!("{FIVE}{}", &FIVE[2..]))), None);
    assert_eq!(named(RawLog { address: WETH.into(), ..log(&[&sig, ALICE], FIVE) }), None);
}

#[test]
fn settings_that_cannot_be_meant_are_refused_by_name() {
    for (tokens, events, word) in [
        (vec!["0x12"], vec![], "token"),
        (vec!["WETH"], vec![], "token"),
        (vec![], vec!["Foo"], "event"),
        (vec![], vec!["Foo(uint256 a)", "event Foo(uint b)"], "event"),
        (vec![], vec!["Foo(uint256 indexed a, uint256 b)", "Foo(uint256 a, uint256 indexed b)"], "event"),
        (
            vec![],
            vec![
                "A(uint256 a) anonymous @ 0x1111111111111111111111111111111111111111",
                "B(address b) anonymous @ 0x1111111111111111111111111111111111111111",
            ],
            "event",
        ),
    ] {
        let texts = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect();
        let settings = DecodeSettings { tokens: texts(&tokens), events: texts(&events), wrapped_native: Vec::new() };
        let error = Decoder::new(&settings, None).unwrap_err();
        assert_eq!(error.kind(), ebbtide::sources::FaultKind::Permanent);
        assert!(error.to_string().contains(word), "{error}");
    }
}
