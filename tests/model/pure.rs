//! Thousands of random scripts in memory: `plan`, `counting` and the netting of deltas, with nothing but a map to apply
//! them to, must leave what the model says.

use std::collections::BTreeMap;

use ebbtide::chain::delta::{Delta, Key, Net, net};
use ebbtide::chain::plan::{Mark, Step, StoredBlock, Theirs, Window, counting, plan};
use ebbtide::chain::{Amount, BlockRef, Hash, Height, TokenEvent};
use num_bigint::BigInt;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::support::model::{Block, Chain, Movement};

const SCRIPTS: u64 = 2_000;

/// What a projection keeps: balances with the height of their last change, and each block's changes with what was there.
#[derive(Default, Clone, PartialEq, Debug)]
struct Applied {
    balances: BTreeMap<Key, (Delta, u64)>,
    blocks: Vec<(BlockRef, i64, Undo)>,
}

/// A block's net changes, and the height of the change before of each.
type Undo = Vec<(Key, Delta, Option<u64>)>;

impl Applied {
    fn apply(&mut self, block: BlockRef, revision: i64, net: Net) {
        let height = block.height.get();
        let mut undo = Undo::new();
        for (key, delta) in net {
            let before = self.balances.get(&key).copied();
            let amount = before.map_or(Delta::ZERO, |b| b.0).merge(delta);
            undo.push((key.clone(), delta, before.map(|b| b.1)));
            self.balances.insert(key, (amount, height));
        }
        self.blocks.push((block, revision, undo));
    }

    fn undo(&mut self) {
        let (_, _, undo) = self.blocks.pop().unwrap();
        for (key, delta, before) in undo {
            match before {
                None => assert!(self.balances.remove(&key).unwrap().0.merge(delta.inverse()).is_zero()),
                Some(height) => {
                    let entry = self.balances.get_mut(&key).unwrap();
                    *entry = (entry.0.merge(delta.inverse()), height);
                }
            }
        }
    }

    fn tip(&self) -> Option<&BlockRef> {
        self.blocks.last().map(|(block, ..)| block)
    }
}

/// The chain with revisions, as the tables have them.
struct Tables {
    chain: Chain,
    revisions: BTreeMap<i64, i64>,
    last: i64,
}

impl Tables {
    fn raise(&mut self, height: i64) {
        self.last += 1;
        self.revisions.insert(height, self.last);
        self.chain.touch(height);
    }

    fn stored(&self, from: u64, limit: usize) -> Vec<StoredBlock> {
        let stored = self.chain.blocks.range(from as i64..).take(limit);
        stored
            .map(|(height, block)| StoredBlock {
                height: at(*height),
                hash: Hash::new(block.hash.clone()),
                parent_hash: Hash::new(block.parent.clone()),
                revision: self.revisions[height],
                complete: block
                    .event_count
                    .is_none_or(|n| n == self.chain.movements.keys().filter(|p| p.0 == *height).count() as i64),
            })
            .collect()
    }

    fn net(&self, height: Height) -> Net {
        let height = height.get() as i64;
        let events: Vec<TokenEvent> = self
            .chain
            .movements
            .range((height, 0, 0)..(height + 1, 0, 0))
            .map(|(place, m)| TokenEvent {
                tx_index: place.1 as u64,
                event_index: place.2 as u64,
                token: m.token.as_str().into(),
                from: m.from.as_deref().map(Into::into),
                to: m.to.as_deref().map(Into::into),
                amount: Amount::from_str_radix(&m.amount.to_string(), 10).unwrap(),
            })
            .collect();
        net(&events)
    }
}

fn at(height: i64) -> Height {
    Height::new(height as u64).unwrap()
}

/// Compares and moves until nothing is left to do, as the processor does; extends in runs of at most `batch` blocks.
fn settle(tables: &Tables, applied: &mut Applied, batch: usize) -> u64 {
    let mut reorgs = 0;
    for _ in 0..1_000 {
        let stored = tables.stored(0, usize::MAX);
        let start = stored.first().map_or(at(0), |b| tables.chain.start.map_or(b.height, at));
        let from_start: Vec<StoredBlock> = stored.into_iter().filter(|b| b.height >= start).collect();
        let complete_to = tables.chain.complete_to.and_then(|to| Height::try_from(to).ok());
        let counted = &from_start[..counting(None, start, complete_to, &from_start)];
        let mut known = BTreeMap::from([(at(0), (None, None))]);
        for (block, revision, _) in &applied.blocks {
            let mark = Mark { hash: block.hash.clone(), revision: *revision };
            known.entry(block.height).or_insert((None, None)).0 = Some(mark);
        }
        for block in counted {
            let mark = Mark { hash: block.hash.clone(), revision: block.revision };
            known.entry(block.height).or_insert((None, None)).1 = Some(mark);
        }
        let theirs = counted.last().map(|b| BlockRef { height: b.height, hash: b.hash.clone() });
        let window = Window { tip: applied.tip().cloned(), floor: at(0), more_below: false, known };
        match plan(&window, &Theirs::Truth(theirs)).unwrap() {
            Step::Known => return reorgs,
            Step::Reorg { ancestor } => {
                reorgs += 1;
                while applied.tip().map(|b| b.height) > ancestor.as_ref().map(|a| a.height) {
                    applied.undo();
                }
                assert_eq!(applied.tip(), ancestor.as_ref());
            }
            Step::Extend => {
                let before = applied.tip().cloned();
                let from = before.as_ref().map_or(start, |b| b.height.next());
                let stored = tables.stored(from.get(), batch);
                let count = counting(before.as_ref(), start, complete_to, &stored);
                assert!(count > 0, "there is something to extend with");
                for block in &stored[..count] {
                    let name = BlockRef { height: block.height, hash: block.hash.clone() };
                    applied.apply(name, block.revision, tables.net(block.height));
                }
            }
            Step::Need { heights } => panic!("all was brought, but {heights:?} is asked for"),
        }
    }
    panic!("it does not come to an end");
}

fn movement(rng: &mut StdRng) -> Movement {
    let mut account = || Some(format!("a{}", rng.random_range(0..6)));
    let (mut from, mut to) = (account(), account());
    match rng.random_range(0..5) {
        0 => from = None,
        1 => to = None,
        _ => {}
    }
    let amount = match rng.random_range(0..4) {
        0 => (BigInt::from(1) << 256) - 1,
        1 => BigInt::from(0),
        _ => BigInt::from(rng.random_range(0..1_000u32)),
    };
    Movement { token: format!("t{}", rng.random_range(0..2)), from, to, amount }
}

fn change(tables: &mut Tables, rng: &mut StdRng, names: &mut u64) {
    let heights: Vec<i64> = tables.chain.blocks.keys().copied().collect();
    let tip = tables.chain.tip().unwrap_or(tables.chain.start.unwrap_or(5) - 1);
    let height = if heights.is_empty() { tip + 1 } else { heights[rng.random_range(0..heights.len())] };
    let mut put = |tables: &mut Tables, rng: &mut StdRng, height: i64| {
        *names += 1;
        let parent = tables.chain.blocks.get(&(height - 1)).map_or_else(|| "p".to_owned(), |b| b.hash.clone());
        let block = Block { hash: format!("h{names}"), parent, event_count: None };
        if tables.chain.blocks.contains_key(&height) {
            tables.chain.drop_from(height);
        }
        tables.chain.blocks.insert(height, block);
        for n in 0..rng.random_range(0..4) {
            tables.chain.movements.insert((height, 0, n), movement(rng));
        }
        tables.raise(height);
    };
    match rng.random_range(0..12) {
        0..5 => put(tables, rng, tip + 1),
        5 | 6 => put(tables, rng, height),
        7 if !heights.is_empty() => {
            tables.chain.movements.insert((height, 1, rng.random_range(0..1_000)), movement(rng));
            tables.raise(height);
        }
        8 => tables.chain.remove_block(height),
        9 => tables.chain.drop_from(height),
        10 => {
            put(tables, rng, tip + 3);
            tables.chain.complete_to = Some(tip + rng.random_range(0..4i64));
        }
        11 if !heights.is_empty() => {
            let stored = tables.chain.movements.keys().filter(|p| p.0 == height).count() as i64;
            let block = tables.chain.blocks.get_mut(&height).unwrap();
            block.event_count =
                if block.event_count == Some(stored) { None } else { Some(stored + rng.random_range(0..2i64)) };
            tables.raise(height);
        }
        _ => put(tables, rng, tip + 1),
    }
}

#[test]
fn any_batching_and_any_mix_of_forks_leave_what_a_replay_of_the_canonical_branch_leaves() {
    let (mut steps, mut reorgs, mut applied_blocks) = (0u64, 0u64, 0usize);
    for seed in 1..=SCRIPTS {
        let mut rng = StdRng::seed_from_u64(seed);
        let start = rng.random_bool(0.5).then(|| rng.random_range(0..6i64));
        let mut tables = Tables { chain: Chain { start, ..Chain::default() }, revisions: BTreeMap::new(), last: 0 };
        let mut batched: Vec<(usize, Applied)> = [1, 2, 7, 1_000].map(|batch| (batch, Applied::default())).into();
        let mut names = 0;
        for _ in 0..rng.random_range(5..30) {
            for _ in 0..rng.random_range(1..4) {
                change(&mut tables, &mut rng, &mut names);
            }
            steps += 1;
            let must = tables.chain.ledger(i64::MAX);
            for (batch, applied) in &mut batched {
                // One of them looks seldom: for it, many changes are one.
                if *batch == 7 && rng.random_bool(0.7) {
                    continue;
                }
                reorgs += settle(&tables, applied, *batch);
                let seen: BTreeMap<_, _> = applied
                    .balances
                    .iter()
                    .map(|((t, a), (d, h))| {
                        ((t.to_string(), a.to_string()), (d.to_string().parse::<BigInt>().unwrap(), *h as i64))
                    })
                    .collect();
                assert_eq!(seen, must.balances, "seed {seed}, batches of {batch}, chain {:#?}", tables.chain);
                let tip = applied.tip().map(|b| (b.height.get() as i64, b.hash.to_string()));
                assert_eq!(tip, must.block, "seed {seed}, batches of {batch}");
            }
            // Undone to the start, nothing is left.
            if rng.random_ratio(1, 10) {
                let mut undone = batched[0].1.clone();
                applied_blocks += undone.blocks.len();
                while undone.tip().is_some() {
                    undone.undo();
                }
                assert_eq!(undone, Applied::default(), "seed {seed}");
            }
        }
    }
    println!("{SCRIPTS} scripts, {steps} steps, {reorgs} reorgs, {applied_blocks} blocks undone to the start");
    assert!(reorgs > SCRIPTS);
}
