//! However events are cut into blocks, and blocks into ranges: the same rows, history and refusals.

use ebbtide::chain::Event;
use ebbtide::projections::option_vaults::{Class, Layout, Registered};
use ebbtide::store::BlockEvents;
use proptest::prelude::*;

use crate::histories::told_at_random;
use crate::run::{head, verified};
use crate::stored::Registered as World;
use crate::story::{V, deployed, said};
use crate::tables::{Tables, block, text};

/// Vaults that are registered (the last of them from a height on), one that is deployed by its class, and their rounds.
const VAULTS: [u64; 4] = [0x11, 0x12, 0x13, 0x14];
const ADDRESSES: [u64; 8] = [0x11, 0x12, 0x13, 0x14, 0x21, 0x22, 0x23, 0xdec];
const DEPLOYER: &str = "0xdec";

fn tables() -> Tables {
    let mut tables = Tables::with_vault("0x11", Layout::A);
    let registered = |layout, from_height: Option<u32>| Registered { layout, from_height: from_height.map(Into::into) };
    tables.directory.registered.insert(text("0x12"), registered(Layout::B, None));
    tables.directory.deployers = [text(DEPLOYER)].into();
    tables.directory.classes = [(text("0xc1a55"), Class { layout: Layout::A, deployer: None })].into();
    tables
}

/// What contracts of ours say, and what hostile ones could: anybody names any address.
fn any_said() -> impl Strategy<Value = Event> {
    let address = || prop::sample::select(&ADDRESSES[..]);
    let round = (address(), 1..3u64, address()).prop_map(|(by, id, round)| {
        said(&format!("{by:#x}"), "OptionRoundDeployed", &[], &[id, round, 1, 2, 3, 2, 0, 10_000, 0, 0])
    });
    let vault = address().prop_map(|address| {
        let mut event = deployed();
        event.emitter = text(DEPLOYER);
        event.data[0] = format!("{address:#x}").into();
        event
    });
    let moved = (address(), 0xa0..0xa3u64, 0..9u64)
        .prop_map(|(by, account, left)| said(&format!("{by:#x}"), "Deposit", &[account], &[left, 0, left, 0, left, 0]));
    // Of the round itself, and as a vault says it of the round.
    let of_round = (address(), address(), any::<bool>(), 0..4usize, 1..4u64).prop_map(|(by, round, in_b, what, n)| {
        let (name, mut keys, mut data) = match what {
            0 => ("AuctionStarted", vec![], vec![2 * n, 0, n, 0]),
            1 => ("BidPlaced", vec![0xb0 + n], vec![0xc0 + n, n, 0, n, 0, n]),
            2 => ("AuctionEnded", vec![], vec![0, 0, 0, 0, 2 * n, 0, 0]),
            _ => ("OptionRoundSettled", vec![], vec![3, 0, 1, 0]),
        };
        if in_b {
            keys.push(1);
            data.push(round);
        }
        said(&format!("{by:#x}"), name, &keys, &data)
    });
    let queued = (address(), 0xa0..0xa3u64, 1..3u64).prop_map(|(by, account, id)| {
        said(&format!("{by:#x}"), "WithdrawalQueued", &[account], &[10, id, 0, 0, 1, 0, 1, 0])
    });
    prop_oneof![3 => round, 1 => vault, 3 => moved, 5 => of_round, 1 => queued]
}

/// Cuts, as lengths that are used over and over.
fn any_cut() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1..6usize, 1..4)
}

fn cut<'a, T>(all: &'a [T], lengths: &'a [usize]) -> impl Iterator<Item = &'a [T]> {
    let mut lengths = lengths.iter().cycle();
    let mut left = all;
    std::iter::from_fn(move || {
        let (first, rest) = left.split_at((*lengths.next()?).min(left.len()));
        left = rest;
        (!first.is_empty()).then_some(first)
    })
}

/// Where an event stands, and why it was refused.
fn reasons(refused: &[ebbtide::store::Refused]) -> Vec<(i64, &'static str)> {
    refused.iter().map(|refused| (refused.tx_index, refused.reason)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn in_one_block_or_in_many_the_same_events_leave_the_same_rows(
        mut told in prop::collection::vec(any_said(), 1..40), lengths in any_cut()
    ) {
        for (n, event) in (0..).zip(&mut told) {
            event.tx_index = n;
        }
        let mut at_once = tables();
        let refused = reasons(&at_once.apply(1, 0, &told));
        let mut in_many = tables();
        let mut refused_in_many = Vec::new();
        for (height, events) in (1..).zip(cut(&told, &lengths)) {
            refused_in_many.extend(reasons(&in_many.apply(height, 0, events)));
        }
        prop_assert_eq!(refused, refused_in_many);
        prop_assert_eq!(at_once, in_many);
    }

    #[test]
    fn in_one_range_or_in_many_the_same_blocks_leave_the_same_rows_and_history(
        told in prop::collection::vec(prop::collection::vec(any_said(), 1..4), 1..20), lengths in any_cut(), from in 0..15u32
    ) {
        let mut tables = tables();
        let late = Registered { layout: Layout::A, from_height: Some(from.into()) };
        tables.directory.registered.insert(text("0x14"), late);
        let blocks: Vec<BlockEvents> = (1..).zip(told).map(|(height, mut events)| {
            (0..).zip(&mut events).for_each(|(n, event)| event.tx_index = n);
            block(height, i64::from(height), &events)
        }).collect();
        let mut one_by_one = tables.clone();
        let mut ranges = tables;
        let run = |tables: &mut Tables, lengths: &[usize]| {
            let (mut refused, mut vaults, mut providers) = (Vec::new(), Vec::new(), Vec::new());
            for blocks in cut(&blocks, lengths) {
                let (more, changes) = tables.apply_range(blocks);
                refused.extend(more.into_iter().map(|r| (r.height, r.tx_index, r.reason)));
                vaults.extend(changes.vault_history);
                providers.extend(changes.provider_history);
                // The newest of the history is the row.
                for row in &changes.vaults {
                    assert_eq!(vaults.iter().rfind(|old| old.row.address == row.row.address), Some(row));
                }
            }
            (refused, vaults, providers)
        };
        prop_assert_eq!(run(&mut one_by_one, &[1]), run(&mut ranges, &lengths));
        prop_assert_eq!(one_by_one, ranges);
    }
}

/// As the program applies it: block by block at the head, in ranges of final blocks, and by a rebuild.
#[tokio::test]
async fn at_the_head_in_ranges_and_rebuilt_the_tables_are_the_same_to_the_last_byte() {
    assert_eq!(VAULTS[0], 0x11, "{V}");
    for (seed, layout) in [(1u64, Layout::A), (6, Layout::B)] {
        let told = told_at_random(seed, layout, 120);
        let mut dumps = Vec::new();
        // Blocks put before each run of the processor; whether they are final by then.
        for (lengths, is_final) in [(vec![200], false), (vec![200], true), (vec![1, 7, 2, 30], true)] {
            let world = World::new(layout).await;
            let mut parent = "0xaaa".to_owned();
            for blocks in cut(&told, &lengths) {
                for events in blocks {
                    let height = 101 + head(&world).await.map_or(0, |height| height - 100);
                    parent = world.put(height, i64::from(height), &parent, "c0", events).await;
                }
                if is_final {
                    world
                        .db
                        .batch_execute("update chains set final_height = (select max(height) from blocks)")
                        .await
                        .unwrap();
                }
                world.succeed();
            }
            let dump = world.whole_dump().await;
            dumps.push(dump.clone());
            verified(&world);
            world.db.batch_execute("select replay('main', 0, 'option_vaults')").await.unwrap();
            world.succeed();
            assert_eq!(world.whole_dump().await, dump, "{layout:?}: rebuilt");
            verified(&world);
        }
        assert!(dumps[0].lines().count() > 100, "{}", dumps[0]);
        assert_eq!(dumps[1], dumps[0], "{layout:?}: in one range");
        assert_eq!(dumps[2], dumps[0], "{layout:?}: in several");
    }
}

/// A block that cannot be applied is found in its range, and those before it stand.
#[tokio::test]
async fn a_range_that_fails_is_applied_up_to_the_block_at_fault() {
    let world = World::new(Layout::A).await;
    let told = told_at_random(1, Layout::A, 40);
    let mut parent = "0xaaa".to_owned();
    for (height, events) in (101..).zip(&told[..12]) {
        parent = world.put(height, 0, &parent, "c0", events).await;
    }
    parent = world.put(113, 0, &parent, "c0", &[said(V, "Deposit", &[0xa1], &[7, 0])]).await;
    for (height, events) in (114..).zip(&told[12..20]) {
        parent = world.put(height, 0, &parent, "c0", events).await;
    }
    world.db.batch_execute("update chains set final_height = (select max(height) from blocks)").await.unwrap();
    let (well, told) = world.process("[projections.option_vaults]\non_bad_event = \"halt\"\n");
    assert!(!well, "{told}");
    let sql = "select height, failed_height, failed_reason from checkpoints where projection = 'option_vaults'";
    let row = world.db.query_one(sql, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (112, 113));
    let reason: String = row.get(2);
    assert!(
        reason.starts_with("block 113 (0x71c0): event 0 of transaction 0 cannot be applied: bad_length"),
        "{reason}"
    );
}
