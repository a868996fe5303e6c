//! From events of gno.land to token movements, against recorded and derived data. No network.

use std::collections::BTreeMap;

use ebbtide::chain::TokenEvent;
use ebbtide::sources::FaultKind;
use ebbtide::sources::gno::decode::{DecodeSettings, Decoded, Decoder, Verdict, WireEvent};
use serde_json::{Value, json};

use crate::support::data_dir;
use crate::support::fake_indexer::chain::{event, typed};
use crate::support::fake_indexer::{new_token, transfer};

const ALICE: &str = "g1jg8mtutu9khhfwc4nxmuhcpftf0pajdhfvsqf5";
const BOB: &str = "g1ffzxha57dh0qgv9ma5v393ur0zexfvp6lsjpae";
const LIBRARY: &str = "gno.land/p/demo/tokens/grc20";
const WUGNOT: &str = "gno.land/r/gnoland/wugnot.wugnot.0000000";

fn data(name: &str) -> Option<Value> {
    let text = std::fs::read_to_string(data_dir()?.join("gno").join(name)).unwrap();
    Some(serde_json::from_str(&text).unwrap())
}

fn decoder() -> Decoder {
    Decoder::new(DecodeSettings::default()).unwrap()
}

fn with(change: impl FnOnce(&mut DecodeSettings)) -> Decoder {
    let mut settings = DecodeSettings::default();
    change(&mut settings);
    Decoder::new(settings).unwrap()
}

fn wire(event: Value) -> Option<WireEvent> {
    serde_json::from_value(event).unwrap()
}

fn decoded(decoder: &Decoder, events: &[Value]) -> Decoded {
    let events: Vec<Option<WireEvent>> = events.iter().cloned().map(wire).collect();
    let mut decoded = Decoded::default();
    decoder.take(0, &events, &mut decoded);
    decoded
}

/// As the expected files have it.
fn shown(event: &TokenEvent) -> Value {
    let kind = match (&event.from, &event.to) {
        (None, _) => "mint",
        (_, None) => "burn",
        _ => "transfer",
    };
    let side = |address: &Option<ebbtide::chain::Text>| address.as_deref().unwrap_or_default().to_owned();
    json!({"event_index": event.event_index, "kind": kind, "token_path": &*event.token, "from": side(&event.from),
           "to": side(&event.to), "amount": event.amount.to_string()})
}

fn deltas(events: &[TokenEvent]) -> BTreeMap<(String, String), i128> {
    let mut sums = BTreeMap::new();
    for event in events {
        let amount = event.amount.to::<i128>();
        for (address, sign) in [(&event.from, -1), (&event.to, 1)] {
            if let Some(address) = address {
                *sums.entry((event.token.to_string(), address.to_string())).or_default() += sign * amount;
            }
        }
    }
    sums
}

fn same_as_expected(events: &[TokenEvent], expected: &Value) -> usize {
    let wanted: Vec<Value> = expected["token_events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| {
            let mut e = e.clone();
            for key in ["block_height", "tx_index", "tx_hash"] {
                e.as_object_mut().unwrap().remove(key).unwrap();
            }
            e
        })
        .collect();
    assert_eq!(events.iter().map(shown).collect::<Vec<_>>(), wanted);
    let wanted: BTreeMap<(String, String), i128> = expected["balance_deltas"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| {
            let text = |key: &str| d[key].as_str().unwrap().to_owned();
            ((text("token_path"), text("address")), text("delta").parse().unwrap())
        })
        .collect();
    let deltas = deltas(events);
    assert_eq!(deltas, wanted);
    let mut supplies: BTreeMap<String, i128> = BTreeMap::new();
    for ((token, _), delta) in &deltas {
        *supplies.entry(token.clone()).or_default() += delta;
    }
    for (token, supply) in expected["supply_deltas"].as_object().unwrap() {
        assert_eq!(supplies[token], supply.as_str().unwrap().parse::<i128>().unwrap(), "{token}");
    }
    events.len() + deltas.len()
}

#[test]
fn every_derived_case_has_its_verdict() {
    let Some(cases) = data("derived/event-cases.json") else { return };
    let decoder = decoder();
    let cases = cases["cases"].as_array().unwrap();
    let mut verdicts: BTreeMap<&str, usize> = BTreeMap::new();
    for case in cases {
        let verdict = wire(case["event"].clone()).map_or(Verdict::Ignore, |event| decoder.verdict(&event));
        let name = &case["name"];
        let (found, word) = match verdict {
            Verdict::Ignore => (json!({"ignore": true}), "ignore"),
            Verdict::Reject(reason) => (json!({"reject": reason}), "reject"),
            Verdict::Accept(m) => {
                let side = |address: &Option<String>| address.clone().unwrap_or_default();
                let accepted = json!({"kind": m.kind(), "token_path": m.token_path, "realm_path": m.realm_path,
                    "symbol": m.symbol, "from": side(&m.from), "to": side(&m.to), "amount": m.amount.to_string()});
                (json!({"accept": accepted}), "accept")
            }
        };
        assert_eq!(found, case["expect"], "{name}");
        *verdicts.entry(word).or_default() += 1;
    }
    println!("{} derived cases: {verdicts:?}", cases.len());
    assert!(verdicts.len() == 3 && cases.len() >= 53);
}

#[test]
fn the_captured_transaction_of_the_func_era_moves_what_it_moved() {
    let (Some(tx), Some(expected)) =
        (data("captured/devindexer-tx-757-func-era.json"), data("derived/devindexer-757-expected.json"))
    else {
        return;
    };
    let events: Vec<Value> = tx["response"]["events"].as_array().unwrap().iter().cloned().map(typed).collect();
    assert_eq!(events.len() as u64, expected["event_count_total"].as_u64().unwrap());
    for decoder in [decoder(), with(|settings| settings.require_func = true)] {
        let decoded = decoded(&decoder, &events);
        assert_eq!(decoded.rejects, []);
        let compared = same_as_expected(&decoded.token_events, &expected);
        println!("{} events of a captured transaction: {compared} movements and deltas compared", events.len());
    }
}

#[test]
fn the_captured_block_985592_moves_what_it_moved() {
    let (Some(block), Some(expected)) =
        (data("derived/topaz-985592-graphql.json"), data("derived/topaz-985592-expected.json"))
    else {
        return;
    };
    let events = block["data"]["getTransactions"][0]["response"]["events"].as_array().unwrap().clone();
    assert_eq!(events.len() as u64, expected["event_count_total"].as_u64().unwrap());
    let decoded = decoded(&decoder(), &events);
    assert_eq!(decoded.rejects, []);
    let compared = same_as_expected(&decoded.token_events, &expected);
    println!("{} events of block 985592: {compared} movements and deltas compared", events.len());
}

#[test]
fn the_captured_deployment_mints() {
    let Some(deploy) = data("captured/devindexer-events-baz-deploy-2025-08.json") else { return };
    let events: Vec<Value> = deploy["events"].as_array().unwrap().iter().cloned().map(typed).collect();
    let decoded = decoded(&decoder(), &events);
    assert_eq!(decoded.rejects, []);
    let wanted = json!({"event_index": 0, "kind": "mint", "token_path": "gno.land/r/gnoswap/v1/test_token/baz.BAZ",
        "from": "", "to": "g17290cwvmrapvp869xfnhhawa8sm9edpufzat7d", "amount": "100000000000000"});
    assert_eq!(decoded.token_events.iter().map(shown).collect::<Vec<_>>(), [wanted]);
}

#[test]
fn the_forms_of_every_era_are_read() {
    let mut compared = 0;
    for (name, token, from, to, amount) in [
        (
            "gno-foo20-transfer-via-teller-2025-07.json",
            "gno.land/r/demo/foo20.FOO",
            "g1jg8mtutu9khhfwc4nxmuhcpftf0pajdhfvsqf5",
            "g1c8cf99clyyjr2kh9awxnfyt36cvmr703tsmazp",
            "1000000",
        ),
        (
            "gno-foo20-transfer-via-teller-2026-08.json",
            "gno.land/r/demo/defi/foo20.FOO.0000000",
            "g1jg8mtutu9khhfwc4nxmuhcpftf0pajdhfvsqf5",
            "g1c8cf99clyyjr2kh9awxnfyt36cvmr703tsmazp",
            "1000000",
        ),
        (
            "gno-docs-wugnot-deposit-func-era.json",
            "gno.land/r/gnoland/wugnot",
            "",
            "g125em6arxsnj49vx35f0n0z34putv5ty3376fg5",
            "1000",
        ),
    ] {
        let Some(golden) = data(&format!("golden/{name}")) else { return };
        let events = golden.get("events").unwrap_or(&golden).as_array().unwrap();
        let events: Vec<Value> = events.iter().cloned().map(typed).collect();
        let decoded = decoded(&decoder(), &events);
        assert_eq!(decoded.rejects, [], "{name}");
        let kind = if from.is_empty() { "mint" } else { "transfer" };
        let wanted =
            json!({"event_index": 0, "kind": kind, "token_path": token, "from": from, "to": to, "amount": amount});
        assert_eq!(decoded.token_events.iter().map(shown).collect::<Vec<_>>(), [wanted], "{name}");
        compared += 1;
    }
    println!("{compared} golden movements");
}

#[test]
fn announcements_are_kept_and_two_of_one_id_are_both_there() {
    let Some(golden) = data("golden/gno-grc20-newtoken-duplicate-id-events.json") else { return };
    let events: Vec<Value> = golden.as_array().unwrap().iter().cloned().map(typed).collect();
    let two = decoded(&decoder(), &events);
    let id = "gno.land/r/demo/grc20dupsignal.DUP.0000000";
    let places: Vec<_> = two.announced.iter().map(|(place, metadata)| (*place, &*metadata.token)).collect();
    assert_eq!(places, [((0, 0), id), ((0, 1), id)]);
    assert_eq!(
        two.events.iter().map(|e| (&*e.name, e.event_index)).collect::<Vec<_>>(),
        [("NewToken", 0), ("NewToken", 1)]
    );
    assert_eq!(two.events[0].attributes["token"], id);
    assert_eq!(&*two.events[0].emitter, LIBRARY);
    assert_eq!(two.token_events.iter().map(|e| e.amount.to::<u64>()).sum::<u64>(), 1_000_000);

    let Some(golden) = data("golden/gno-grc20-token-identity-events.json") else { return };
    let events: Vec<Value> = golden.as_array().unwrap().iter().cloned().map(typed).collect();
    let apart = decoded(&decoder(), &events);
    let tokens: Vec<&str> = apart.token_events.iter().map(|e| &*e.token).collect();
    assert_eq!(tokens, ["gno.land/r/demo/grc20identity.DUP.0000001", "gno.land/r/demo/grc20identity.DUP.0000002"]);
    let (_, first) = &apart.announced[0];
    assert_eq!((first.name.as_deref(), first.symbol.as_deref(), first.decimals), (Some("Same"), Some("DUP"), Some(6)));
    println!("{} announcements", two.announced.len() + apart.announced.len());
}

#[test]
fn places_count_what_holds_nothing() {
    let events = [
        json!({}),
        Value::Null,
        transfer(WUGNOT, "", ALICE, 1),
        json!({"__typename": "StorageDepositEvent"}),
        transfer(WUGNOT, "", ALICE, 2),
        transfer(WUGNOT, "", "", 3),
    ];
    let decoded = decoded(&decoder(), &events);
    assert_eq!(decoded.token_events.iter().map(|e| e.event_index).collect::<Vec<_>>(), [2, 4]);
    assert_eq!(decoded.rejects[0].event_index, 5);
    assert_eq!(decoded.rejects[0].reason, "no_party");
    assert_eq!(decoded.rejects[0].raw, events[5], "the event as it came");
}

#[test]
fn reasons_come_in_the_order_of_the_rules() {
    let at = |attrs: &[(&str, &str)], package: &str| {
        let event = wire(event(package, "Transfer", attrs)).unwrap();
        match decoder().verdict(&event) {
            Verdict::Reject(reason) => reason,
            other => panic!("{other:?}"),
        }
    };
    let twice = [("from", ALICE), ("from", BOB), ("token", "x")];
    assert_eq!(at(&twice, LIBRARY), "duplicate_attr", "before missing_attr");
    assert_eq!(at(&[("token", "x"), ("token", "y")], LIBRARY), "duplicate_attr");
    assert_eq!(at(&[("from", ALICE), ("to", BOB), ("token", "bad id")], LIBRARY), "missing_attr", "before the token");
    let bad = |token| [("from", ""), ("to", ""), ("value", "x"), ("token", token)];
    assert_eq!(at(&bad("bad id"), LIBRARY), "bad_token", "before the amount");
    assert_eq!(at(&bad(WUGNOT), LIBRARY), "bad_amount", "before no_party");
    assert_eq!(at(&[("from", ""), ("to", ""), ("value", "1"), ("token", WUGNOT)], LIBRARY), "no_party");
    let far = [("from", "x"), ("to", ""), ("value", "99999999999999999999999"), ("token", WUGNOT)];
    assert_eq!(at(&far, LIBRARY), "amount_out_of_range", "before the address");
    assert_eq!(at(&bad("two words"), "gno.land/r/x/y"), "bad_token", "no token that could not be asked for");
    assert_eq!(at(&bad(""), "gno.land"), "untrusted_emitter");
    assert_eq!(at(&bad(""), ""), "untrusted_emitter");
}

#[test]
fn the_same_value_twice_is_one_and_leading_zeros_are_a_number() {
    let attrs =
        [("from", ""), ("to", ALICE), ("to", ALICE), ("value", "000000000000000000000000000017"), ("token", WUGNOT)];
    let Verdict::Accept(movement) = decoder().verdict(&wire(event(LIBRARY, "Transfer", &attrs)).unwrap()) else {
        panic!("refused")
    };
    assert_eq!((movement.amount.to::<u64>(), movement.kind()), (17, "mint"));
}

#[test]
fn func_must_fit_where_it_is_required() {
    let strict = with(|settings| settings.require_func = true);
    let say = |func: Option<&str>, from: &str, to: &str| {
        let attrs = [("from", from), ("to", to), ("value", "1")];
        let mut event = event("gno.land/r/demo/wugnot", "Transfer", &attrs);
        if let Some(func) = func {
            event["func"] = json!(func);
        }
        strict.verdict(&wire(event).unwrap())
    };
    for (func, from, to) in [("Mint", "", ALICE), ("Burn", ALICE, ""), ("Transfer", ALICE, BOB)] {
        assert!(matches!(say(Some(func), from, to), Verdict::Accept(_)), "{func}");
    }
    for (func, from, to) in [
        (Some("Mint"), ALICE, BOB),
        (Some("Burn"), "", BOB),
        (Some("Transfer"), "", BOB),
        (Some("mint"), "", BOB),
        (Some("Deposit"), "", BOB),
        (Some(""), "", BOB),
        (None, "", BOB),
    ] {
        assert_eq!(say(func, from, to), Verdict::Ignore, "{func:?}");
    }
}

#[test]
fn other_events_are_kept_where_their_type_is_listed() {
    let approval = event(LIBRARY, "Approval", &[("owner", ALICE), ("spender", BOB), ("note", "a\0b"), ("note", "c")]);
    let events = [approval, transfer(WUGNOT, "", ALICE, 5), new_token(WUGNOT, "wrapped", "wugnot", "6")];
    let quiet = decoded(&decoder(), &events);
    assert_eq!(quiet.events.iter().map(|e| &*e.name).collect::<Vec<_>>(), ["NewToken"]);
    let listed = decoded(&with(|settings| settings.events = vec!["Approval".into()]), &events);
    let kept = &listed.events[0];
    assert_eq!((&*kept.name, &*kept.emitter, kept.event_index), ("Approval", LIBRARY, 0));
    assert_eq!(kept.attributes, json!({"owner": ALICE, "spender": BOB, "note": ["a\\0b", "c"]}));
    assert_eq!(listed.events.len(), 2);
    assert_eq!(listed.token_events.len(), 1);

    let foreign = event("gno.land/r/x/y", "NewToken", &[("token", WUGNOT), ("name", "mine")]);
    let unheard = decoded(&decoder(), &[foreign]);
    assert!(unheard.events.is_empty() && unheard.announced.is_empty(), "the library alone announces");
    let odd = decoded(&decoder(), &[new_token("not an id", "x", "X", "6"), new_token(WUGNOT, "x\0", "X", "256")]);
    assert_eq!(odd.events.len(), 2);
    let (_, metadata) = &odd.announced[0];
    assert_eq!((&*metadata.token, metadata.name.as_deref(), metadata.decimals), (WUGNOT, Some("x\\0"), None));
    assert_eq!(odd.announced.len(), 1);
    let long = event(&format!("gno.land/r/{}", "x".repeat(600)), "Approval", &[]);
    let refused = decoded(&with(|settings| settings.events = vec!["Approval".into()]), &[long]);
    assert_eq!((refused.events.len(), &*refused.rejects[0].reason), (0, "bad_emitter"));
}

#[test]
fn listed_tokens_alone_are_kept() {
    let other = "gno.land/r/gnoswap/gns.GNS";
    let events = [transfer(WUGNOT, "", ALICE, 5), transfer(other, "", ALICE, 6), transfer(other, "", "", 7)];
    for (listed, kept) in [
        (WUGNOT, vec![WUGNOT]),
        ("gno.land/r/gnoland/wugnot.wugnot", vec![WUGNOT]),
        ("gno.land/r/gnoland/wugnot", vec![WUGNOT]),
        ("gno.land/r/gnoland/wugno", vec![]),
        ("gno.land/r/gnoswap/gns", vec![other]),
        ("none", vec![]),
    ] {
        let found = decoded(&with(|settings| settings.tokens = vec![listed.into()]), &events);
        assert_eq!(found.token_events.iter().map(|e| &*e.token).collect::<Vec<_>>(), kept, "{listed}");
        assert_eq!(found.rejects.len(), 1, "what cannot be read is shown, whatever its token");
    }
}

#[test]
fn evidence_can_be_stored() {
    let nul = event(LIBRARY, "Transfer", &[("from", "\0"), ("to", ALICE), ("value", "1"), ("token", WUGNOT)]);
    let decoded = decoded(&decoder(), &[nul]);
    assert_eq!(decoded.rejects[0].reason, "bad_address");
    assert!(!decoded.rejects[0].raw.to_string().contains("\\u0000"), "{}", decoded.rejects[0].raw);
}

#[test]
fn settings_that_cannot_be_used_are_named() {
    type Change = fn(&mut DecodeSettings);
    let cases: [(&str, Change); 7] = [
        ("tokens", |s| s.tokens = vec![WUGNOT.into(), "none".into()]),
        ("trusted_grc20_packages", |s| s.trusted_grc20_packages = vec!["grc20".into()]),
        ("trusted_grc20_packages", |s| s.trusted_grc20_packages = vec!["gno.land/p/x.Y".into()]),
        ("tokens", |s| s.tokens = vec!["wugnot".into()]),
        ("events", |s| s.events = vec![String::new()]),
        ("events", |s| s.events = vec!["Transfer".into()]),
        ("events", |s| s.events = vec!["a\0".into()]),
    ];
    for (setting, change) in cases {
        let mut settings = DecodeSettings::default();
        change(&mut settings);
        let error = Decoder::new(settings).expect_err(setting);
        assert_eq!(error.kind(), FaultKind::Permanent);
        assert!(error.to_string().starts_with(setting), "{error}");
    }
}
