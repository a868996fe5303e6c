//! Decoding: selectors, golden vectors, nonces, and whatever else may come.

use std::collections::BTreeMap;

use alloy_primitives::keccak256;
use ebbtide::chain::{Event, Text};
use ebbtide::projections::option_vaults::Layout;
use ebbtide::projections::option_vaults::decode::{BadEvent, Deployment, Emitter, SELECTORS, decode};
use ebbtide::projections::option_vaults::event::VaultEvent;
use ebbtide::projections::option_vaults::felts::FeltFault;
use proptest::prelude::*;

use crate::story::{V, blocks};
use crate::tables::{Tables, UDC, as_layout_b, event, in_order, text};

#[test]
fn selectors_are_the_hashes_of_the_names() {
    let selector = |name: &str| {
        let mut hash = keccak256(name).0;
        hash[0] &= 3;
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("0x{}", hex.trim_start_matches('0'))
    };
    // Found in contracts of others.
    assert_eq!(selector("__execute__"), "0x15d40a3d6ca2ac30f4031e42be28da9b056fef9bb7357ac5e85627ee876e5ad");
    assert_eq!(selector("__validate__"), "0x162da33a4585851fe8d3af3c2a9c60b557814e221e0d4f30ff0b2189d9c7775");
    for (name, known) in SELECTORS {
        assert_eq!(selector(name), known, "{name}");
    }
}

/// Felts of an event after its selector: accounts as keys, each data felt another number.
fn sample(name: &str, layout: Layout) -> Option<(Emitter, Event)> {
    let (of_vault, keys, data) = match name {
        "OptionRoundDeployed" => (true, 0, 10),
        "Deposit" | "Withdrawal" => (true, 1, 6),
        "WithdrawalQueued" => (true, 1, 8),
        "StashWithdrawn" => (true, 1, 4),
        "PricingDataSet" => (false, 0, 5),
        "AuctionStarted" | "OptionRoundSettled" => (false, 0, 4),
        "AuctionEnded" => (false, 0, 7),
        "BidPlaced" | "OptionsExercised" => (false, 1, 6),
        "BidUpdated" => (false, 1, 5),
        "OptionsMinted" | "UnusedBidsRefunded" => (false, 1, 2),
        _ => return None,
    };
    let more = usize::from(!of_vault && layout == Layout::B);
    let emitter = if of_vault || layout == Layout::B { Emitter::Vault } else { Emitter::Round(text("0x21")) };
    let felts = |from: usize, count: usize| (from..from + count).map(|n| format!("{n:#x}")).collect::<Vec<_>>();
    Some((emitter, event("0x11", name, &felts(0xa0, keys + more), &felts(1, data + more))))
}

fn every_sample() -> impl Iterator<Item = (Layout, Emitter, Event)> {
    [Layout::A, Layout::B].into_iter().flat_map(|layout| {
        SELECTORS.iter().filter_map(move |(name, _)| {
            let (emitter, event) = sample(name, layout)?;
            Some((layout, emitter, event))
        })
    })
}

#[test]
fn every_event_has_one_length_and_every_felt_of_it_is_read() {
    let mut tried = 0;
    for (layout, emitter, good) in every_sample() {
        let name = good.name.clone();
        let read = |event: &Event| decode(event, layout, &emitter);
        assert!(matches!(read(&good), Ok(Some(_))), "{name} {layout:?}: {:?}", read(&good));
        for keys in [true, false] {
            let change = |with: &dyn Fn(&mut Vec<Text>)| {
                let mut event = good.clone();
                with(if keys { &mut event.keys } else { &mut event.data });
                event
            };
            let longer = change(&|felts| felts.push(text("0x1")));
            assert!(matches!(read(&longer), Err(BadEvent::Count { .. })), "{name} {layout:?}");
            let (first, count) = if keys { (1, good.keys.len()) } else { (0, good.data.len()) };
            tried += 1;
            for at in first..count {
                let shorter = change(&|felts| _ = felts.remove(at));
                assert!(matches!(read(&shorter), Err(BadEvent::Count { .. })), "{name} {layout:?}");
                for bad in ["", "7", "0x", "0xzz", "0x800000000000011000000000000000000000000000000000000000000000001"]
                {
                    let broken = change(&|felts| felts[at] = text(bad));
                    let place = if keys { "keys" } else { "data" };
                    match read(&broken) {
                        Err(fault @ BadEvent::Felt { .. }) => {
                            let told = fault.to_string();
                            assert!(told.starts_with(&format!("{name}: {place}[{at}] ")), "{told}");
                        }
                        other => panic!("{name} {layout:?} {place}[{at}] = {bad:?}: {other:?}"),
                    }
                    tried += 1;
                }
            }
        }
        // The other layout's events do not pass for this one's.
        let other = if layout == Layout::A { Layout::B } else { Layout::A };
        if let (Emitter::Round(_), _) | (_, Layout::B) = (&emitter, layout)
            && !matches!(
                &*name,
                "OptionRoundDeployed" | "Deposit" | "Withdrawal" | "WithdrawalQueued" | "StashWithdrawn"
            )
        {
            assert!(decode(&good, other, &emitter).is_err(), "{name} {layout:?}");
        }
    }
    println!("{tried} malformed events");
}

#[test]
fn halves_and_counters_beyond_their_bounds_are_refused() {
    let (_, good) = sample("Deposit", Layout::A).unwrap();
    for at in 0..6 {
        let mut event = good.clone();
        event.data[at] = text("0x100000000000000000000000000000000");
        let fault = decode(&event, Layout::A, &Emitter::Vault).unwrap_err();
        assert_eq!(
            fault,
            BadEvent::Felt {
                event: "Deposit",
                part: ebbtide::projections::option_vaults::decode::Part::Data,
                index: at,
                fault: FeltFault::TooLarge
            }
        );
    }
    for (name, at) in [("OptionRoundDeployed", 0), ("OptionRoundDeployed", 4), ("BidPlaced", 5), ("AuctionEnded", 6)] {
        let (emitter, mut event) = sample(name, Layout::A).unwrap();
        event.data[at] = text("0x10000000000000000");
        assert_eq!(decode(&event, Layout::A, &emitter).unwrap_err().reason(), "number_too_large");
    }
    let (emitter, mut event) = sample("BidPlaced", Layout::A).unwrap();
    event.data[5] = text("0x0");
    assert_eq!(decode(&event, Layout::A, &emitter).unwrap_err().reason(), "bad_nonce");
}

#[test]
fn a_counter_may_use_all_64_bits() {
    let highest = format!("{:#x}", u64::MAX);
    let read = |name: &str, at: usize| {
        let (emitter, mut event) = sample(name, Layout::A).unwrap();
        event.data[at] = text(&highest);
        decode(&event, Layout::A, &emitter).unwrap().unwrap()
    };
    for at in [0, 2, 3, 4] {
        match read("OptionRoundDeployed", at) {
            VaultEvent::RoundDeployed { id, dates, .. } => {
                assert_eq!([id, 0, dates[0], dates[1], dates[2]][at], u64::MAX);
            }
            other => panic!("{other:?}"),
        }
    }
    match (read("BidPlaced", 5), read("AuctionEnded", 6), read("WithdrawalQueued", 1)) {
        (
            VaultEvent::BidPlaced { nonce, .. },
            VaultEvent::AuctionEnded { clearing_nonce, .. },
            VaultEvent::WithdrawalQueued { round_id, .. },
        ) => assert_eq!((nonce, clearing_nonce, round_id), (u64::MAX - 1, u64::MAX, u64::MAX)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_selector_decides_what_an_event_is() {
    let selector = |name: &str| SELECTORS.iter().find(|(known, _)| *known == name).unwrap().1;
    let strange = "0x5e1ec7";
    for (name, key, told) in [
        ("Deposit", Some(selector("Deposit")), None),
        // As a source writes it that does not know the event, or writes leading zeros.
        (selector("Deposit"), Some(selector("Deposit")), None),
        ("0x009149D2123147C5F43D258257FEF0B7B969DB78269369EBCF5EBB9EEF8592F2", Some(selector("Deposit")), None),
        ("Withdrawal", Some(selector("Deposit")), Some("name_mismatch")),
        (selector("Withdrawal"), Some(selector("Deposit")), Some("name_mismatch")),
        ("deposit", Some(selector("Deposit")), Some("name_mismatch")),
        ("", Some(selector("Deposit")), Some("name_mismatch")),
        ("Approval", Some(selector("Transfer")), Some("name_mismatch")),
        ("Deposit", Some(strange), Some("name_mismatch")),
        ("Deposit", Some("0xzz"), Some("name_mismatch")),
        ("Deposit", None, Some("name_mismatch")),
        ("Upgraded", Some(strange), Some("unknown_event")),
        (strange, Some(strange), Some("unknown_event")),
        ("Upgraded", None, Some("unknown_event")),
    ] {
        let mut told_so = sample("Deposit", Layout::A).unwrap().1;
        told_so.name = text(name);
        match key {
            Some(key) => told_so.keys[0] = text(key),
            None => told_so.keys.clear(),
        }
        let read = decode(&told_so, Layout::A, &Emitter::Vault);
        assert_eq!(read.as_ref().err().map(BadEvent::reason), told, "{name} {key:?}: {read:?}");
        // Nothing of a followed vault or round is left out without a word.
        let mut tables = Tables::with_vault(V, Layout::A);
        tables.apply(101, 0, &told_by_story());
        let refused = tables.apply(102, 0, std::slice::from_ref(&told_so));
        assert_eq!(refused.first().map(|refused| refused.reason), told, "{name} {key:?}");
    }
}

fn told_by_story() -> Vec<Event> {
    in_order(blocks().swap_remove(0).2)
}

#[test]
fn nonces_are_the_bids_own_in_both_layouts() {
    let nonce = |name: &str, layout: Layout| {
        let (emitter, event) = sample(name, layout).unwrap();
        match decode(&event, layout, &emitter).unwrap().unwrap() {
            VaultEvent::BidPlaced { nonce, .. } | VaultEvent::BidUpdated { nonce, .. } => nonce,
            other => panic!("{other:?}"),
        }
    };
    // data[5] is 6, data[4] is 5.
    assert_eq!(nonce("BidPlaced", Layout::A), 5);
    assert_eq!(nonce("BidPlaced", Layout::B), 5);
    assert_eq!(nonce("BidUpdated", Layout::A), 4);
    assert_eq!(nonce("BidUpdated", Layout::B), 5);
}

#[test]
fn a_u256_of_one_and_one_is_read_low_half_first() {
    let one = "0x1".to_owned();
    let data: Vec<String> = std::iter::repeat_n(one.clone(), 6).collect();
    let deposit = event(V, "Deposit", &[one], &data);
    match decode(&deposit, Layout::A, &Emitter::Vault).unwrap().unwrap() {
        VaultEvent::Deposited(moved) => {
            assert_eq!(moved.account_unlocked.to_string(), "340282366920938463463374607431768211457");
        }
        other => panic!("{other:?}"),
    }
}

/// A deployment with these arguments, numbered from 0x100 on where nothing is said.
fn deployment(arguments: usize, strike_level: &str) -> Event {
    let mut data = vec!["0x11".to_owned(), "0xde".into(), "0x0".into(), "0xc1".into(), format!("{arguments:#x}")];
    data.extend((0..arguments).map(|n| format!("{:#x}", 0x100 + n)));
    if let Some(felt) = data.get_mut(9) {
        *felt = strike_level.to_owned();
    }
    data.push("0x5a17".into());
    event(UDC, "ContractDeployed", &[], &data)
}

#[test]
fn each_build_of_a_vault_tells_its_parameters_in_its_own_order() {
    let minus_thousand = "0x800000000000010fffffffffffffffffffffffffffffffffffffffffffffc19";
    for (layout, arguments, durations) in [
        (Layout::A, 8, (0x105, 0x106, 0x107)),
        (Layout::A, 10, (0x105, 0x106, 0x107)),
        (Layout::B, 9, (0x106, 0x107, 0x108)),
    ] {
        let event = deployment(arguments, minus_thousand);
        match Deployment::read(&event).unwrap().vault(layout).unwrap() {
            VaultEvent::VaultDeployed { address, parameters: p, .. } => {
                assert_eq!((&*address, p.strike_level), ("0x11", -1000));
                assert_eq!(
                    (&*p.fossil_client_address, &*p.eth_address, &*p.option_round_class_hash),
                    ("0x100", "0x101", "0x102")
                );
                assert_eq!(p.alpha.to_string(), 0x103.to_string());
                assert_eq!((p.round_transition_period, p.auction_duration, p.round_duration), durations);
            }
            other => panic!("{other:?}"),
        }
    }
    for (layout, arguments) in [(Layout::A, 9), (Layout::B, 8), (Layout::B, 10), (Layout::A, 7), (Layout::A, 11)] {
        let event = deployment(arguments, "0x0");
        let read = Deployment::read(&event).unwrap().vault(layout);
        assert!(matches!(read, Err(BadEvent::Count { .. })), "{layout:?} {arguments}: {read:?}");
    }
    let mut lying = deployment(10, "0x0");
    lying.data[4] = text("0x8");
    assert!(Deployment::read(&lying).unwrap().vault(Layout::A).is_err());
    lying.data[4] = text("0xb");
    assert_eq!(Deployment::read(&lying).unwrap().vault(Layout::A).unwrap_err().reason(), "bad_length");
    for at in 0..16 {
        let mut broken = deployment(10, "0x0");
        broken.data[at] = text("0xzz");
        let read = Deployment::read(&broken).and_then(|deployed| deployed.vault(Layout::A));
        assert_eq!(read.unwrap_err().reason(), "bad_felt", "data[{at}]");
    }
}

fn any_felt() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => (0u64..32).prop_map(|n| format!("{n:#x}")),
        2 => any::<u128>().prop_map(|n| format!("{n:#x}")),
        1 => any::<[u64; 4]>().prop_map(|n| format!("0x{:x}{:016x}{:016x}{:016x}", n[0] >> 5, n[1], n[2], n[3])),
        1 => any::<String>(),
    ]
}

fn any_event() -> impl Strategy<Value = Event> {
    let emitter = prop_oneof![Just(V), Just("0x21"), Just("0x22"), Just(UDC), Just("0x99"), Just("x")];
    let felts = || proptest::collection::vec(any_felt(), 0..18);
    (emitter, 0..SELECTORS.len() + 1, felts(), felts(), any::<bool>(), any::<bool>()).prop_map(
        |(emitter, name, keys, data, by_selector, exact)| {
            let Some((name, selector)) = SELECTORS.get(name) else {
                return event(emitter, "Transfer", &keys, &data);
            };
            let mut made = event(emitter, name, &keys, &data);
            // Of the right length in half of the cases, or nothing would ever get past the count.
            if let (true, Some((_, shape))) = (exact, sample(name, Layout::A)) {
                made.keys.truncate(shape.keys.len());
                made.data.truncate(shape.data.len());
                made.data.resize(shape.data.len(), text("0x1"));
                made.keys.resize(shape.keys.len(), text("0xa1"));
            }
            if by_selector {
                made.name = text(selector);
            }
            // A key made up would be the selector of nothing.
            if exact && let Some(first) = made.keys.first_mut() {
                *first = text(selector);
            }
            made
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn whatever_is_said_nothing_panics_and_a_refused_event_changes_nothing(
        told in proptest::collection::vec(any_event(), 1..12), from in 0usize..9, in_b in any::<bool>()
    ) {
        let layout = if in_b { Layout::B } else { Layout::A };
        let rounds: BTreeMap<String, u64> = [("0x21".to_owned(), 1), ("0x22".to_owned(), 2)].into();
        let mut tables = Tables::with_vault(V, layout);
        for (height, time, events) in blocks().into_iter().take(from) {
            let events = if in_b { as_layout_b(&events, V, &rounds) } else { in_order(events) };
            tables.apply(height, time, &events);
        }
        for event in in_order(told) {
            let before = tables.clone();
            let refused = tables.apply(109, 0, std::slice::from_ref(&event));
            prop_assert!(refused.is_empty() || tables == before);
        }
    }
}
