//! The worked example: every height, both layouts, back and forth, and with another branch.

use std::collections::BTreeMap;

use ebbtide::chain::Event;
use ebbtide::projections::option_vaults::decode::SELECTORS;
use ebbtide::store::vaults::Layout;

use crate::tables::{Tables, UDC, as_layout_b, event, in_order, text};

pub const V: &str = "0x11";
const R1: &str = "0x21";
const R2: &str = "0x22";

/// `0x11 Deposit(0xa1) 0x7 0 …` with numbers in any base: emitter, name, keys, data.
fn said(emitter: &str, name: &str, keys: &[u64], data: &[u64]) -> Event {
    let felts = |felts: &[u64]| felts.iter().map(|n| format!("{n:#x}")).collect::<Vec<_>>();
    event(emitter, name, &felts(keys), &felts(data))
}

fn deployed() -> Event {
    // Arguments: verifier, payment token, class, alpha, strike level, three durations, program, proving delay.
    let data = [0x11, 0xde, 0, 0xc1a55, 10, 0xf0, 0xe7, 0xc1a56, 10_000, 0, 100, 100, 200, 0x9, 60, 0x5a17];
    said(UDC, "ContractDeployed", &[], &data)
}

/// The blocks 101 to 108 (height, time, events).
pub fn blocks() -> Vec<(u32, i64, Vec<Event>)> {
    vec![
        (101, 1000, vec![said(V, "OptionRoundDeployed", &[], &[1, 0x21, 1100, 1200, 1400, 0, 0, 0, 0, 0]), deployed()]),
        (
            102,
            1050,
            vec![
                said(R1, "PricingDataSet", &[], &[1000, 0, 5000, 10, 0]),
                said(V, "FossilCallbackSuccess", &[], &[1000, 0, 5000, 10, 0, 1000]),
                said(V, "Deposit", &[0xa1], &[7001, 0, 7001, 0, 7001, 0]),
                said(V, "Deposit", &[0xa2], &[4000, 0, 4000, 0, 11001, 0]),
            ],
        ),
        (
            103,
            1100,
            vec![
                said(V, "Withdrawal", &[0xa1], &[1000, 0, 6001, 0, 10001, 0]),
                said(R1, "AuctionStarted", &[], &[10001, 0, 20, 0]),
            ],
        ),
        (
            104,
            1120,
            vec![
                said(R1, "BidPlaced", &[0xb1], &[0xc1, 12, 0, 15, 0, 1]),
                said(R1, "BidPlaced", &[0xb2], &[0xc2, 10, 0, 12, 0, 2]),
            ],
        ),
        (
            105,
            1150,
            vec![
                said(R1, "BidUpdated", &[0xb2], &[0xc2, 3, 0, 1, 3]),
                said(R1, "BidPlaced", &[0xb1], &[0xc3, 5, 0, 10, 0, 4]),
                said(V, "Deposit", &[0xa1], &[500, 0, 500, 0, 500, 0]),
            ],
        ),
        (106, 1200, vec![said(R1, "AuctionEnded", &[], &[20, 0, 15, 0, 1, 0, 2])]),
        (
            107,
            1300,
            vec![
                said(V, "WithdrawalQueued", &[0xa2], &[5000, 1, 0, 0, 2000, 0, 2000, 0]),
                said(R1, "OptionsMinted", &[0xb1], &[12, 0]),
                said(R1, "UnusedBidsRefunded", &[0xb2], &[30, 0]),
            ],
        ),
        (
            108,
            1400,
            vec![
                said(R1, "OptionRoundSettled", &[], &[1200, 0, 200, 0]),
                said(V, "OptionRoundDeployed", &[], &[2, 0x22, 1500, 1600, 1800, 1200, 0, 4000, 11, 0]),
                said(V, "FossilCallbackSuccess", &[], &[1200, 0, 4000, 11, 0, 1400]),
                said(V, "StashWithdrawn", &[0xa2], &[1199, 0, 0, 0]),
                said(R1, "OptionsExercised", &[0xb2], &[8, 0, 8, 0, 1600, 0]),
            ],
        ),
    ]
}

/// Rows of vault and providers, round 1, bids, buyers and queue after each block.
pub fn must(height: u32) -> Vec<String> {
    let vault = match height {
        101 => "0/0/0 round 1 @0x21",
        102 => "11001/0/0 round 1 @0x21",
        103 | 104 => "0/10001/0 round 1 @0x21",
        105 => "500/10001/0 round 1 @0x21",
        106 | 107 => "801/10000/0 round 1 @0x21",
        _ => "5602/0/0 round 2 @0x22",
    };
    let (first, second) = match height {
        101 => ("", ""),
        102 => ("7001/0/0 (0)", "4000/0/0 (0)"),
        103 | 104 => ("0/6001/0 (6001)", "0/4000/0 (4000)"),
        105 => ("500/6001/0 (6001)", "0/4000/0 (4000)"),
        106 | 107 => ("680/6000/0 (6001)", "120/3999/0 (4000)"),
        _ => ("4280/0/0 (0)", "1320/0/0 (0)"),
    };
    let (state, prices) = match height {
        101 => ("Open", "strike 0 cap 0 reserve 0"),
        102 => ("Open", "strike 1000 cap 5000 reserve 10"),
        103..=105 => ("Auctioning", "strike 1000 cap 5000 reserve 10"),
        106 | 107 => ("Running", "strike 1000 cap 5000 reserve 10"),
        _ => ("Settled", "strike 1000 cap 5000 reserve 10"),
    };
    let begun = if height < 103 { "S 0 available 0" } else { "S 10001 available 20" };
    let sold = if height < 106 {
        "sold 0 clearing 0 premiums 0 unsold 0"
    } else {
        "sold 20 clearing 15 premiums 300 unsold 1"
    };
    let queued = if height < 107 { 0 } else { 2000 };
    let settled = if height < 108 { "settlement 0 k 0 R 0" } else { "settlement 1200 k 200 R 6000" };
    let mut lines = vec![format!("vault {V}: {vault}")];
    for (address, row) in [("0xa1", first), ("0xa2", second)] {
        lines.extend((!row.is_empty()).then(|| format!("provider {address}: {row}")));
    }
    lines.push(format!(
        "round {R1} 1 of {V} {state} [1100 1200 1400 at 1000]: {prices}, {begun}, {sold}, queued {queued}, {settled}"
    ));
    if height >= 108 {
        lines.push(format!(
            "round {R2} 2 of {V} Open [1500 1600 1800 at 1400]: strike 1200 cap 4000 reserve 11, S 0 available 0, \
             sold 0 clearing 0 premiums 0 unsold 0, queued 0, settlement 0 k 0 R 0"
        ));
    }
    if height >= 107 {
        lines.push(format!("queue {R1} 0xa2: bps 5000, 2000"));
    }
    let buyers = match height {
        ..104 => vec![],
        104 | 105 => vec!["0xb1: 0,0,f,f", "0xb2: 0,0,f,f"],
        106 => vec!["0xb1: 12,50,f,f", "0xb2: 8,30,f,f"],
        107 => vec!["0xb1: 12,50,t,f", "0xb2: 8,30,f,t"],
        _ => vec!["0xb1: 12,50,t,f", "0xb2: 8,30,t,t"],
    };
    lines.extend(buyers.iter().map(|row| format!("buyer {R1} {row}")));
    let bids = match height {
        ..104 => vec![],
        104 => vec!["0xc1: 0xb1,12,15,0", "0xc2: 0xb2,10,12,1"],
        _ => vec!["0xc1: 0xb1,12,15,0", "0xc2: 0xb2,10,15,2", "0xc3: 0xb1,5,10,3"],
    };
    lines.extend(bids.iter().map(|row| format!("bid {R1} {row}")));
    lines
}

/// The example as it is told: the layout, and how names and keys are written.
fn told(layout: Layout, by_selector: bool) -> Vec<(u32, i64, Vec<Event>)> {
    let rounds: BTreeMap<String, u64> = [(R1.to_owned(), 1), (R2.to_owned(), 2)].into();
    let mut blocks = blocks();
    for (_, _, events) in &mut blocks {
        *events = match layout {
            Layout::A => in_order(std::mem::take(events)),
            Layout::B => as_layout_b(events, V, &rounds),
        };
        for event in events.iter_mut() {
            if by_selector {
                // With the leading zero that the chain's own tools write.
                let selector = SELECTORS.iter().find(|(name, _)| *name == &*event.name).unwrap().1;
                event.name = format!("0x{:0>64}", selector[2..].to_uppercase()).into();
                event.keys.remove(0);
            }
        }
    }
    blocks
}

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
    use ebbtide::projections::option_vaults::{At, Class, Directory, Wanted, Working, apply, read};
    let block = in_order(blocks().swap_remove(0).2);
    for (deployer, found) in [(None, true), (Some("0xde"), true), (Some("0xbad"), false)] {
        let class = Class { layout: Layout::A, deployer: deployer.map(text) };
        let mut directory = Directory {
            deployers: [text(UDC)].into(),
            classes: [(text("0xc1a55"), class)].into(),
            ..Directory::default()
        };
        let steps = read(&mut directory, &block);
        assert_eq!(Wanted::by(&steps).vaults.contains(V), found);
        let mut rows = Working::default();
        let at = At { height: 101.into(), time: Some(1000) };
        assert!(apply(&mut rows, at, &steps).is_empty());
        assert_eq!(rows.changes().rounds.len(), usize::from(found), "{deployer:?}");
        assert_eq!(directory.rounds.contains_key(R1), found);
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
