//! How fast a node's answers become chain values: no network, no database, one thread.
//!
//! `cargo bench --bench decode`, or with a word to run only the lines whose name holds it. `EBBTIDE_BENCH_SCALE` and
//! `EBBTIDE_BENCH_ROUNDS` multiply blocks and repetitions as in the other bench.
//!
//! The answers are made here, in the shape that nodes give them, and read by the functions that the sources read them
//! with: what is in the envelope, every check that needs nobody to be asked, and the decoder. The floor is serde_json
//! reading the same bytes into a `Value`, which checks and keeps nothing but the text. Product and floor take turns; what
//! was read is compared with what was put in, each time.
#![allow(missing_docs, clippy::unwrap_used)]

mod evm;
mod gno;
#[path = "../postgres/report.rs"]
#[allow(dead_code, reason = "the budgets of the other bench")]
mod report;
#[path = "../postgres/size.rs"]
#[allow(dead_code, reason = "what only the other bench is asked for")]
mod size;
mod starknet;
mod vaults;

use std::hint::black_box;
use std::time::Instant;

use alloy_primitives::{U256, keccak256};
use report::{Budget, Line};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use size::Size;

/// What some answers hold: what was put in, or what was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Tally {
    pub(crate) blocks: u64,
    pub(crate) token_events: u64,
    pub(crate) events: u64,
    /// Of amounts and of numbers inside of events: nothing can be right by its count alone.
    pub(crate) sum: U256,
}

/// Bodies of HTTP answers that are read together.
pub(crate) type Bodies = Vec<Vec<u8>>;

/// Reads the answer of this number.
pub(crate) type Read = Box<dyn Fn(u64, &[Vec<u8>]) -> Tally>;

/// A line to be measured.
pub(crate) struct Case {
    pub(crate) what: &'static str,
    pub(crate) answers: Vec<Bodies>,
    pub(crate) holds: Tally,
    pub(crate) read: Read,
}

impl Tally {
    pub(crate) fn add(&mut self, other: Tally) {
        self.blocks += other.blocks;
        self.token_events += other.token_events;
        self.events += other.events;
        self.sum = self.sum.wrapping_add(other.sum);
    }
}

impl Case {
    fn read_all(&self) -> f64 {
        let begun = Instant::now();
        let mut read = Tally::default();
        (0..).zip(&self.answers).for_each(|(n, bodies)| read.add((self.read)(n, bodies)));
        let seconds = begun.elapsed().as_secs_f64();
        assert_eq!(read, self.holds, "{}", self.what);
        seconds
    }

    fn parse_all(&self) -> f64 {
        let begun = Instant::now();
        for body in self.answers.iter().flatten() {
            drop(black_box(serde_json::from_slice::<Value>(body).unwrap()));
        }
        begun.elapsed().as_secs_f64()
    }

    fn measure(&self, rounds: usize) -> Line {
        let events = self.holds.token_events + self.holds.events;
        assert!(events >= 1_000 && self.holds.sum > U256::ZERO, "{}: too little to mean anything", self.what);
        let mut line = Line::new(self.what, "events/s", Budget::None);
        // Once for the caches and the allocator.
        self.parse_all();
        self.read_all();
        for round in 0..rounds {
            // Who goes first must not matter.
            let (product, floor) = if round % 2 == 0 {
                let floor = self.parse_all();
                (self.read_all(), floor)
            } else {
                (self.read_all(), self.parse_all())
            };
            line.product.push(events as f64 / product);
            line.floor.push(events as f64 / floor);
        }
        line
    }
}

/// One answer of JSON-RPC, as far as it is there.
#[derive(Deserialize)]
struct Response<'b> {
    #[serde(borrow)]
    result: &'b RawValue,
}

/// The results of a batch, each copied out of the body as the sources' client does.
pub(crate) fn results(body: &[u8]) -> Vec<Box<RawValue>> {
    let responses: Vec<Response<'_>> = serde_json::from_slice(body).unwrap();
    responses.into_iter().map(|response| response.result.to_owned()).collect()
}

/// A batch with these results.
pub(crate) fn batch(results: Vec<Value>) -> Vec<u8> {
    let response = |(n, result)| serde_json::json!({"jsonrpc": "2.0", "id": n + 1, "result": result});
    serde_json::to_vec(&results.into_iter().enumerate().map(response).collect::<Vec<_>>()).unwrap()
}

/// A fixed pseudo-random choice.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new() -> Dice {
        Dice(1)
    }

    /// Below `n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    /// Base units of a token with 18 decimals.
    pub(crate) fn amount(&mut self) -> U256 {
        U256::from(self.below(1 << 31) + 1) << 40
    }
}

/// 32 bytes that look like a hash, the same for the same kind and number.
pub(crate) fn hash_of(kind: &str, n: u64) -> [u8; 32] {
    keccak256(format!("{kind} {n}")).0
}

fn main() {
    let size = Size::asked_for();
    type Cases = fn(&Size) -> Vec<Case>;
    let parts: [(&str, Cases); 4] = [
        ("decode evm", evm::cases),
        ("decode gno", gno::cases),
        ("decode starknet", starknet::cases),
        ("decode vaults", vaults::cases),
    ];
    let wanted: Vec<_> = parts.into_iter().filter(|(name, _)| size.wants(name)).collect();
    if wanted.is_empty() {
        return;
    }
    report::print_machine();
    // One part's answers at a time: together they would not fit a small machine.
    let cases = wanted.into_iter().flat_map(|(_, cases)| cases(&size));
    let lines: Vec<Line> = cases.map(|case| case.measure(size.rounds)).collect();
    report::print(&lines);
}
