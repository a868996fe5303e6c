//! Breadth first through every state that the actors can reach, so that the first broken promise comes with a shortest trace.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::time::Instant;

use crate::model::{Broken, Model, State, Step};

/// What a search found.
#[derive(Debug)]
pub struct Found {
    pub states: usize,
    pub steps: usize,
    /// Different contents of the tables, from each of which one processor alone came to an end.
    pub tables: usize,
    pub depth: usize,
    /// The first promise that was broken, and how.
    pub broken: Option<(Broken, Vec<Step>)>,
}

impl Found {
    pub fn report(&self, what: &str, begun: Instant) -> String {
        let Found { states, steps, tables, depth, broken } = self;
        let mut text = format!(
            "{what}: {states} states, {steps} steps, {tables} contents of the tables, depth {depth}, {:.1} s",
            begun.elapsed().as_secs_f64()
        );
        if let Some((broken, trace)) = broken {
            let _ = write!(text, "\n  {broken}, in {} steps:", trace.len());
            for (n, step) in trace.iter().enumerate() {
                let _ = write!(text, "\n  {:>3} {step:?}", n + 1);
            }
        }
        text
    }
}

/// Two lanes of multiply and fold: 128 bits, so that two states sharing one are not to be expected in any number we search.
#[derive(Clone, Copy)]
pub struct Fingerprints(u64, u64);

impl Default for Fingerprints {
    fn default() -> Fingerprints {
        Fingerprints(0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f)
    }
}

impl Fingerprints {
    pub fn of(value: &impl Hash) -> u128 {
        let mut lanes = Fingerprints::default();
        value.hash(&mut lanes);
        (u128::from(lanes.finish()) << 64) | u128::from(lanes.0)
    }

    fn take(&mut self, value: u64) {
        let fold = |lane: u64, by: u64| {
            let wide = u128::from(lane ^ value) * u128::from(by);
            (wide as u64 ^ (wide >> 64) as u64).rotate_left(23)
        };
        self.0 = fold(self.0, 0xff51_afd7_ed55_8ccd).wrapping_add(value);
        self.1 = fold(self.1, 0xa076_1d64_78bd_642f) ^ self.0;
    }
}

impl Hasher for Fingerprints {
    fn finish(&self) -> u64 {
        self.1
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.take(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.take(u64::from(value));
    }

    fn write_usize(&mut self, value: usize) {
        self.take(value as u64);
    }

    fn write_isize(&mut self, value: isize) {
        self.take(value as u64);
    }

    fn write_u128(&mut self, value: u128) {
        (self.0, self.1) = (value as u64, (value >> 64) as u64);
    }
}

type Hashed = BuildHasherDefault<Fingerprints>;

/// Searches from `first` until nothing new is reached or a promise is broken.
pub fn search(model: &Model, first: State) -> Found {
    let mut known: HashMap<u128, u32, Hashed> = HashMap::default();
    let mut settled: HashSet<u128, Hashed> = HashSet::default();
    let mut parents: Vec<(u32, Option<Step>)> = vec![(0, None)];
    known.insert(Fingerprints::of(&first), 0);
    let mut level: Vec<(u32, State)> = vec![(0, first)];
    let mut found = Found { states: 1, steps: 0, tables: 0, depth: 0, broken: None };
    let mut possible = Vec::new();
    while !level.is_empty() {
        let mut next_level = Vec::new();
        for (number, state) in &level {
            possible.clear();
            model.steps(state, &mut possible);
            for step in &possible {
                found.steps += 1;
                let taken = model.take(state, *step).and_then(|next| {
                    if settled.insert(Fingerprints::of(&next.db)) {
                        // What it passes on its way settles as well.
                        settled.extend(model.settle(&next.db)?.iter().map(Fingerprints::of));
                    }
                    Ok(next)
                });
                match taken {
                    Ok(next) => {
                        let number_of_next = u32::try_from(parents.len()).expect("fewer states");
                        if let std::collections::hash_map::Entry::Vacant(place) = known.entry(Fingerprints::of(&next)) {
                            place.insert(number_of_next);
                            parents.push((*number, Some(*step)));
                            next_level.push((number_of_next, next));
                        }
                    }
                    Err(broken) => {
                        let mut trace = vec![*step];
                        let mut at = *number;
                        while let (before, Some(step)) = parents[at as usize] {
                            trace.push(step);
                            at = before;
                        }
                        trace.reverse();
                        found.states = parents.len();
                        found.tables = settled.len();
                        found.broken = Some((broken, trace));
                        return found;
                    }
                }
            }
        }
        found.depth += usize::from(!next_level.is_empty());
        level = next_level;
    }
    found.states = parents.len();
    found.tables = settled.len();
    found
}
