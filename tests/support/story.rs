//! The worked example of the specification: its events, and the rows they must leave.

use std::collections::BTreeMap;

use ebbtide::chain::Event;
use ebbtide::projections::option_vaults::Layout;
use ebbtide::projections::option_vaults::decode::SELECTORS;

use super::vault_tables::{UDC, as_layout_b, event, in_order};

pub const V: &str = "0x11";
pub const R1: &str = "0x21";
pub const R2: &str = "0x22";

/// `0x11 Deposit(0xa1) 0x7 0 …` with numbers in any base: emitter, name, keys, data.
pub fn said(emitter: &str, name: &str, keys: &[u64], data: &[u64]) -> Event {
    let felts = |felts: &[u64]| felts.iter().map(|n| format!("{n:#x}")).collect::<Vec<_>>();
    event(emitter, name, &felts(keys), &felts(data))
}

pub fn deployed() -> Event {
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

/// The example as it is told: the layout, and how names and selectors are written.
pub fn told(layout: Layout, by_selector: bool) -> Vec<(u32, i64, Vec<Event>)> {
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
                event.keys[0] = event.name.clone();
            }
        }
    }
    blocks
}
