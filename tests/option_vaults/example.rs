//! The worked example: every height, both layouts, back and forth, and with another branch.

use std::collections::BTreeMap;

use ebbtide::chain::Event;
use ebbtide::projections::option_vaults::{Class, Directory, Layout};

use crate::story::{R1, V, blocks, deployed, must, said, told};
use crate::tables::{Tables, UDC, as_layout_b, in_order, text};

#[test]
fn the_worked_example_holds_at_every_height_in_both_layouts() {
    let mut compared = 0;
    for layout in [Layout::A, Layout::B] {
        for by_selector in [false, true] {
            let mut tables = Tables::with_vault(V, layout);
            for (height, time, events) in told(layout, by_selector) {
                let refused = tables.apply(height, time, &events);
                assert!(refused.is_empty(), "{height} {layout:?}: {refused:?}");
                assert_eq!(tables.lines(), must(height), "{height} {layout:?}");
                compared += tables.lines().len();
            }
            let vault = &tables.vaults[V];
            let parameters = vault.parameters.as_ref().unwrap();
            assert_eq!((vault.layout, vault.deployment_date), (layout, Some(1000)));
            assert_eq!(
                (&*parameters.fossil_client_address, &*parameters.eth_address, &*parameters.option_round_class_hash),
                ("0xf0", "0xe7", "0xc1a56")
            );
            assert_eq!(parameters.alpha.to_string(), "10000");
            assert_eq!(
                (parameters.round_transition_period, parameters.auction_duration, parameters.round_duration),
                (100, 100, 200)
            );
        }
    }
    println!("{compared} rows of the worked example compared");
}

#[test]
fn a_vault_that_nobody_registered_is_found_by_its_class() {
    for (deployer, found) in [(None, true), (Some("0xde"), true), (Some("0xbad"), false)] {
        let class = Class { layout: Layout::A, deployer: deployer.map(text) };
        let directory = Directory {
            deployers: [text(UDC)].into(),
            classes: [(text("0xc1a55"), class)].into(),
            ..Directory::default()
        };
        let mut tables = Tables { directory, ..Tables::default() };
        for (height, time, events) in told(Layout::A, false) {
            assert!(tables.apply(height, time, &events).is_empty());
            assert_eq!(tables.lines(), if found { must(height) } else { Vec::new() }, "{deployer:?} {height}");
        }
    }
}

#[test]
fn an_address_has_one_meaning_and_the_first_one_stays() {
    // What each address means, and who names it next.
    let round = |vault: &str, id: u64, address: u64| {
        said(vault, "OptionRoundDeployed", &[], &[id, address, 1, 2, 3, 0, 0, 0, 0, 0])
    };
    let deposit = |vault: &str, amount: u64| said(vault, "Deposit", &[0xa1], &[amount, 0, amount, 0, amount, 0]);
    let vault_at = |address: u64| {
        let mut event = deployed();
        event.data[0] = format!("{address:#x}").into();
        event
    };
    let udc = u64::from_str_radix(&UDC[UDC.len() - 15..], 16).unwrap();
    let cases: [(&str, Vec<Event>, &[&str]); 6] = [
        (
            "another vault's",
            vec![round("0x11", 1, 0x21), round("0x12", 1, 0x11), deposit("0x11", 5)],
            &["address_taken"],
        ),
        (
            "a vault's that has no row yet",
            vec![round("0x11", 1, 0x12), round("0x12", 1, 0x22), deposit("0x12", 5)],
            &["address_taken"],
        ),
        ("its own", vec![round("0x11", 1, 0x11), round("0x11", 1, 0x21), deposit("0x11", 5)], &["address_taken"]),
        (
            "another vault's round's",
            vec![round("0x11", 1, 0x21), round("0x12", 1, 0x21), round("0x12", 1, 0x22)],
            &["round_exists"],
        ),
        ("a deployer's", vec![round("0x11", 1, udc), vault_at(0x11), deposit("0x11", 5)], &["address_taken"]),
        // By its class, at the address of a round.
        (
            "a round's",
            vec![round("0x11", 1, 0x13), vault_at(0x13), said("0x13", "AuctionStarted", &[], &[0, 0, 0, 0])],
            &["address_taken"],
        ),
    ];
    for (named, mut events, reasons) in cases {
        for (n, event) in (0..).zip(&mut events) {
            event.tx_index = n;
            // The deployer that stands in for the real one has fewer digits.
            if &*event.emitter == UDC {
                event.emitter = format!("{udc:#x}").into();
            }
        }
        let mut all = Vec::new();
        for cut in [vec![3], vec![1, 2], vec![2, 1], vec![1, 1, 1]] {
            let mut tables = Tables::with_vault("0x11", Layout::A);
            let registered = tables.directory.registered[V].clone();
            tables.directory.registered.insert(text("0x12"), registered);
            tables.directory.deployers = [format!("{udc:#x}").into()].into();
            tables.directory.classes = [(text("0xc1a55"), Class { layout: Layout::A, deployer: None })].into();
            let (mut from, mut refused) = (0, Vec::new());
            for (height, count) in (1..).zip(cut) {
                refused.extend(tables.apply(height, 0, &events[from..from + count]).iter().map(|r| r.reason));
                from += count;
            }
            assert_eq!(refused, reasons, "{named}");
            all.push(tables);
        }
        assert!(all.windows(2).all(|two| two[0] == two[1]), "{named}: {all:?}");
    }
}

#[test]
fn a_deployment_that_no_one_reads_leaves_a_vault_without_parameters() {
    let mut tables = Tables::with_vault(V, Layout::A);
    for (height, time, mut events) in blocks() {
        events.retain(|event| &*event.name != "ContractDeployed");
        assert!(tables.apply(height, time, &in_order(events)).is_empty());
        assert_eq!(tables.lines(), must(height));
    }
    assert_eq!(tables.vaults[V].parameters, None);
    // With a later start, history is missing: nothing is made up.
    let mut late = Tables::with_vault(V, Layout::A);
    for (height, time, events) in blocks().into_iter().skip(1) {
        let refused = late.apply(height, time, &in_order(events));
        assert!(refused.iter().all(|r| r.reason == "unknown_vault"), "{refused:?}");
    }
    assert_eq!(late.lines(), [""; 0]);
}

#[test]
fn after_a_revert_of_any_depth_the_same_blocks_give_the_same_rows() {
    for layout in [Layout::A, Layout::B] {
        let mut snapshots = vec![Tables::with_vault(V, layout)];
        let blocks = told(layout, false);
        for (height, time, events) in &blocks {
            let mut next = snapshots.last().unwrap().clone();
            assert!(next.apply(*height, *time, events).is_empty());
            snapshots.push(next);
        }
        for depth in 1..=blocks.len() {
            let mut tables = snapshots[blocks.len() - depth].clone();
            for (height, time, events) in &blocks[blocks.len() - depth..] {
                tables.apply(*height, *time, events);
            }
            assert_eq!(&tables, snapshots.last().unwrap(), "depth {depth}");
        }
    }
}

#[test]
fn another_branch_after_105_gives_its_own_rows() {
    for layout in [Layout::A, Layout::B] {
        let mut tables = Tables::with_vault(V, layout);
        for (height, time, events) in told(layout, false).into_iter().take(5) {
            tables.apply(height, time, &events);
        }
        let rounds: BTreeMap<String, u64> = [(R1.to_owned(), 1)].into();
        let in_layout = |events: Vec<Event>| match layout {
            Layout::A => in_order(events),
            Layout::B => as_layout_b(&events, V, &rounds),
        };
        let block = in_layout(vec![
            said(V, "Deposit", &[0xa2], &[250, 0, 250, 0, 750, 0]),
            said(R1, "BidPlaced", &[0xb2], &[0xc4, 3, 0, 20, 0, 5]),
        ]);
        assert!(tables.apply(106, 1190, &block).is_empty());
        let lines = tables.lines();
        for line in
            ["vault 0x11: 750/10001/0 round 1 @0x21", "provider 0xa2: 250/4000/0 (4000)", "bid 0x21 0xc4: 0xb2,3,20,4"]
        {
            assert!(lines.iter().any(|l| l == line), "{line}\n{lines:#?}");
        }
        let block = in_layout(vec![said(R1, "AuctionEnded", &[], &[20, 0, 15, 0, 1, 0, 2])]);
        assert!(tables.apply(107, 1200, &block).is_empty());
        let lines = tables.lines();
        for line in ["buyer 0x21 0xb1: 12,50,f,f", "buyer 0x21 0xb2: 8,90,f,f"] {
            assert!(lines.iter().any(|l| l == line), "{line}\n{lines:#?}");
        }
    }
}

#[test]
fn an_event_that_does_not_fit_is_refused_with_its_reason_and_changes_nothing() {
    let at = |height: u32| {
        let mut tables = Tables::with_vault(V, Layout::A);
        for (h, time, events) in told(Layout::A, false) {
            if h <= height {
                tables.apply(h, time, &events);
            }
        }
        tables
    };
    for (height, reason, event) in [
        (101, "vault_exists", deployed()),
        (101, "round_exists", said(V, "OptionRoundDeployed", &[], &[1, 0x29, 1, 2, 3, 0, 0, 0, 0, 0])),
        (101, "round_exists", said(V, "OptionRoundDeployed", &[], &[2, 0x21, 1, 2, 3, 0, 0, 0, 0, 0])),
        (101, "unknown_round", said(V, "WithdrawalQueued", &[0xa2], &[1, 7, 0, 0, 2, 0, 2, 0])),
        (101, "unknown_provider", said(V, "Withdrawal", &[0xa9], &[1, 0, 1, 0, 0, 0])),
        (102, "liquidity_mismatch", said(R1, "AuctionStarted", &[], &[11000, 0, 22, 0])),
        (102, "options_mismatch", said(R1, "AuctionStarted", &[], &[11001, 0, 21, 0])),
        (102, "round_state_mismatch", said(R1, "AuctionEnded", &[], &[0, 0, 0, 0, 0, 0, 0])),
        (102, "round_state_mismatch", said(R1, "BidPlaced", &[0xb1], &[0xc1, 1, 0, 1, 0, 1])),
        (103, "round_state_mismatch", said(R1, "PricingDataSet", &[], &[1, 0, 1, 1, 0])),
        (104, "bid_exists", said(R1, "BidPlaced", &[0xb1], &[0xc1, 1, 0, 1, 0, 3])),
        (104, "unknown_bid", said(R1, "BidUpdated", &[0xb1], &[0xc9, 1, 0, 1, 3])),
        (105, "clearing_mismatch", said(R1, "AuctionEnded", &[], &[28, 0, 10, 0, 1, 0, 9])),
        (105, "clearing_mismatch", said(R1, "AuctionEnded", &[], &[20, 0, 15, 0, 1, 0, 0])),
        (105, "negative_balance", said(R1, "AuctionEnded", &[], &[20, 0, 15, 0, 10002, 0, 2])),
        (105, "overflow", said(R1, "AuctionEnded", &[], &[0, 1 << 60, 0, 1 << 60, 1, 0, 2])),
        (106, "negative_balance", said(R1, "OptionRoundSettled", &[], &[1200, 0, 501, 0])),
        (106, "wrong_emitter", said(V, "AuctionEnded", &[], &[20, 0, 15, 0, 1, 0, 2])),
        (106, "wrong_emitter", said(R1, "Deposit", &[0xa1], &[1, 0, 1, 0, 1, 0])),
        (107, "stash_mismatch", said(V, "StashWithdrawn", &[0xa2], &[1, 0, 0, 0])),
        (107, "bad_length", said(R1, "OptionsMinted", &[0xb1], &[1])),
    ] {
        let mut tables = at(height);
        let before = tables.clone();
        let refused = tables.apply(height + 1, 0, &in_order(vec![event.clone()]));
        assert_eq!(refused.iter().map(|r| r.reason).collect::<Vec<_>>(), [reason], "{event:?}");
        assert_eq!(refused[0].raw["name"], *event.name);
        assert_eq!(tables, before, "{event:?}");
    }
}

#[test]
fn strangers_get_no_rows() {
    let mut tables = Tables::with_vault(V, Layout::A);
    for (height, time, events) in told(Layout::A, false).into_iter().take(7) {
        tables.apply(height, time, &events);
    }
    let before = tables.clone();
    let block = in_order(vec![
        said(R1, "OptionsExercised", &[0xbad], &[1, 0, 0, 0, 200, 0]),
        said(R1, "UnusedBidsRefunded", &[0xbad], &[0, 0]),
        said(V, "Withdrawal", &[0xbad], &[0, 0, 0, 0, 801, 0]),
        said(V, "StashWithdrawn", &[0xbad], &[0, 0, 0, 0]),
        said("0xdead", "Deposit", &[0xa1], &[1, 0, 1, 0, 1, 0]),
        said(R1, "Transfer", &[], &[]),
        said(V, "L1RequestFulfilled", &[1, 2], &[]),
    ]);
    assert!(tables.apply(108, 0, &block).is_empty());
    assert_eq!(tables, before);
}
