//! What needs no database: deciding, netting, and the numbers on the wire.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;

use bytes::BytesMut;
use divan::counter::ItemsCount;
use ebbtide::chain::decide::Tells;
use ebbtide::chain::delta::{Delta, net};
use ebbtide::chain::plan::{Mark, Theirs, Window, plan};
use ebbtide::chain::{Amount, BlockRef, Hash, Height, Kind, TokenEvent};
use ebbtide::projections::token_balances::{Accounts, Netted, Settings, changes};
use ebbtide::store::numeric::Numeric;
use ebbtide::store::{Balance, Movement};
use postgres_types::{FromSql, ToSql, Type};

fn main() {
    divan::main();
}

fn hash(salt: u64, height: u64) -> Hash {
    Hash::new(format!("0x{salt:032x}{height:032x}"))
}

/// Both sides over `len` heights; they part `depth` below the top.
fn window(len: u64, depth: u64) -> (Window, Theirs) {
    let block = |salt, height| BlockRef { height: Height::new(height).unwrap(), hash: hash(salt, height) };
    let mut known = BTreeMap::new();
    for height in 0..len {
        let mark = |salt| Some(Mark { hash: hash(salt, height), revision: height as i64 });
        known.insert(Height::new(height).unwrap(), (mark(0), mark(u64::from(height + depth >= len))));
    }
    let window = Window { tip: Some(block(0, len - 1)), floor: Height::from(0), more_below: false, known };
    (window, Theirs::Truth(Some(block(u64::from(depth > 0), len - 1))))
}

#[divan::bench(args = [(64, 0), (64, 10), (1000, 10), (1000, 999)])]
fn plan_over_a_window(bencher: divan::Bencher<'_, '_>, (len, depth): (u64, u64)) {
    let (window, theirs) = window(len, depth);
    bencher.bench(|| plan(divan::black_box(&window), divan::black_box(&theirs)));
}

fn events(count: u64, salt: u64) -> Vec<TokenEvent> {
    let mut state = salt.wrapping_add(1);
    let mut dice = |n: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    (0..count)
        .map(|place| TokenEvent {
            tx_index: place,
            event_index: place,
            token: format!("0x{:040x}", dice(20)).into(),
            from: Some(format!("0x{:040x}", dice(50_000)).into()),
            to: Some(format!("0x{:040x}", dice(50_000)).into()),
            amount: Amount::from(dice(1 << 31)) << 40,
        })
        .collect()
}

#[divan::bench(args = [20, 100, 1000])]
fn net_a_block(bencher: divan::Bencher<'_, '_>, count: u64) {
    let events = events(count, 1);
    bencher.counter(ItemsCount::new(count)).bench(|| net(divan::black_box(&events)));
}

/// Blocks of 100 movements, netted, and what they change in balances that all stand.
#[divan::bench(args = [1, 10, 100])]
fn change_balances_by_blocks_of_100(bencher: divan::Bencher<'_, '_>, blocks: u64) {
    let mut accounts = Accounts::new(Kind::Other, Tells::default());
    let netted: Vec<_> = (0..blocks)
        .map(|n| {
            let (height, mut block) = (Height::new(n).unwrap(), Netted::default());
            for event in events(100, n) {
                let (from, to) = (event.from.as_deref(), event.to.as_deref());
                let amount = Delta::plus(event.amount);
                let movement = Movement { tx_index: 0, event_index: 0, token: &event.token, from, to, amount };
                accounts.take(&mut block, height, &movement);
            }
            block.close();
            (height, block)
        })
        .collect();
    let stands = |place| Balance { id: place, amount: Delta::ZERO, height: Some(0) };
    let balances: Vec<Balance> = (0..accounts.keys().len() as i64).map(stands).collect();
    bencher.counter(ItemsCount::new(blocks * 100)).with_inputs(|| balances.clone()).bench_values(|mut balances| {
        let run: Vec<_> = netted.iter().map(|(height, block)| (*height, block)).collect();
        changes(accounts.keys(), &mut balances, &run, &Settings::default(), true, Tells::default()).unwrap()
    });
}

#[divan::bench(args = [60, 80, 256])]
fn numeric_to_the_wire(bencher: divan::Bencher<'_, '_>, bits: usize) {
    let number = Numeric(Delta::minus(Amount::MAX >> (256 - bits)));
    let mut out = BytesMut::with_capacity(256);
    bencher.bench_local(|| {
        out.clear();
        divan::black_box(number).to_sql(&Type::NUMERIC, &mut out).is_ok()
    });
}

#[divan::bench(args = [60, 80, 256])]
fn numeric_from_the_wire(bencher: divan::Bencher<'_, '_>, bits: usize) {
    let mut out = BytesMut::new();
    assert!(Numeric(Delta::minus(Amount::MAX >> (256 - bits))).to_sql(&Type::NUMERIC, &mut out).is_ok());
    bencher.bench_local(|| Numeric::from_sql(&Type::NUMERIC, divan::black_box(&out)).unwrap());
}
