//! `plan(ours, theirs)`: what to undo and from where to go on. Pure; used by the syncer (ours: our `blocks`; theirs:
//! the source) and by each projection (ours: what it has applied; theirs: what counts in `blocks`).

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::{BlockRef, Hash, Height};

/// What one side has at a height: equal marks mean the same block with the same content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The block's hash.
    pub hash: Hash,
    /// The block's revision; 0 where revisions are not known (a source).
    pub revision: i64,
}

/// What is known of both sides so far. A height that was brought but where a side has no block holds none.
#[derive(Debug, Clone, Default)]
pub struct Window {
    /// Our last block; None means we have nothing.
    pub tip: Option<BlockRef>,
    /// The lowest height that may still be undone.
    pub floor: Height,
    /// Whether blocks below the floor are ours too, so that parting there is too deep.
    pub more_below: bool,
    /// Both sides at the heights brought so far: (ours, theirs).
    pub known: BTreeMap<Height, (Option<Mark>, Option<Mark>)>,
}

/// The other side's newest block, and how much it is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Theirs {
    /// From a node that may lag: a lower head is [`Step::Known`] until a hash says otherwise.
    Hint(BlockRef),
    /// The whole truth (our own chain tables, a file): a lower tip is a [`Step::Reorg`]. None means nothing is there.
    Truth(Option<BlockRef>),
}

/// What the other side asks of us. A reorg is a value, not an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing to do.
    Known,
    /// Our last block is theirs too (or we have none): go on from it.
    Extend,
    /// Undo what is above the ancestor, then go on from there.
    Reorg {
        /// The newest block both sides share. None means that they share none: from before the start.
        ancestor: Option<BlockRef>,
    },
    /// Undecidable yet: bring these heights of both sides (inclusive) and ask again.
    Need {
        /// Which heights.
        heights: RangeInclusive<Height>,
    },
}

/// The branches part below the window.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the branches part below height {floor}, the lowest that may be replaced")]
pub struct TooDeep {
    /// The window's floor.
    pub floor: Height,
}

/// Decides the next step. Terminates: each `Need` is bounded (`MOST_AT_ONCE` heights of a hint) and reaches further down, to
/// the window's floor.
///
/// For a hint, one equal hash means that everything below is equal (a hash names its parents), so the search walks
/// down from the top in growing steps. For the truth nothing of the kind holds (a revision may change below equal
/// hashes), so the whole window is compared and the lowest difference decides.
///
/// # Errors
/// [`TooDeep`] when the branches part below the window; DESIGN.md 5 says what each caller does then.
pub fn plan(window: &Window, theirs: &Theirs) -> Result<Step, TooDeep> {
    let Some(tip) = &window.tip else {
        return Ok(match theirs {
            Theirs::Truth(None) => Step::Known,
            Theirs::Hint(_) | Theirs::Truth(Some(_)) => Step::Extend,
        });
    };
    match theirs {
        Theirs::Hint(head) => from_the_top(window, tip, head),
        Theirs::Truth(_) => from_the_floor(window, tip, theirs),
    }
}

fn from_the_top(window: &Window, tip: &BlockRef, head: &BlockRef) -> Result<Step, TooDeep> {
    let top = tip.height.min(head.height);
    if top < window.floor {
        // A node this far behind says nothing about the blocks that may still change.
        return Ok(Step::Known);
    }
    let mut lowest = top;
    let mut known = window.known.range(window.floor..=top).rev();
    loop {
        match known.next().filter(|(height, _)| **height == lowest).map(|(_, marks)| marks) {
            None => return Ok(Step::Need { heights: next_range(window, top, lowest)..=lowest }),
            Some((Some(ours), Some(theirs))) if ours.hash == theirs.hash => break,
            Some(_) if lowest == window.floor && window.more_below => return Err(TooDeep { floor: window.floor }),
            Some(_) if lowest == window.floor => return Ok(reorg_to(window, None)),
            Some(_) => lowest = lowest.minus(1),
        }
    }
    if lowest == tip.height {
        return Ok(if head.height == tip.height { Step::Known } else { Step::Extend });
    }
    if lowest == head.height {
        // Their head is one of our blocks: they lag.
        return Ok(Step::Known);
    }
    Ok(reorg_to(window, Some(lowest)))
}

/// Most heights brought at once: each is a name on both sides, and the other side is asked for all of them in one call.
const MOST_AT_ONCE: u64 = 10_000;

/// The low end of the next range to bring: as many heights as were brought already, at least one.
fn next_range(window: &Window, top: Height, highest_missing: Height) -> Height {
    let brought = top.get() - highest_missing.get();
    highest_missing.minus(brought.clamp(1, MOST_AT_ONCE) - 1).max(window.floor)
}

fn from_the_floor(window: &Window, tip: &BlockRef, theirs: &Theirs) -> Result<Step, TooDeep> {
    let whole = window.floor..=tip.height.max(window.floor);
    if !window.known.contains_key(&window.floor) {
        return Ok(Step::Need { heights: whole });
    }
    let first_difference =
        window.known.range(whole).find(|(_, (ours, theirs))| ours != theirs).map(|(height, _)| *height);
    let Some(at) = first_difference else {
        return Ok(match theirs {
            Theirs::Truth(Some(t)) if t.height > tip.height => Step::Extend,
            _ => Step::Known,
        });
    };
    let shared = window.known.range(..at).rev().find_map(|(h, (ours, _))| ours.as_ref().map(|_| *h));
    if shared.is_none() && window.more_below {
        return Err(TooDeep { floor: window.floor });
    }
    Ok(reorg_to(window, shared))
}

fn reorg_to(window: &Window, shared: Option<Height>) -> Step {
    let ours = |height: Height| window.known.get(&height).and_then(|(ours, _)| ours.as_ref());
    Step::Reorg { ancestor: shared.and_then(|height| Some(BlockRef { height, hash: ours(height)?.hash.clone() })) }
}

/// A stored block, as far as it matters for what counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredBlock {
    /// Its height.
    pub height: Height,
    /// Its hash.
    pub hash: Hash,
    /// The hash of the block before it.
    pub parent_hash: Hash,
    /// Its revision.
    pub revision: i64,
    /// Whether all the events it announced are there.
    pub complete: bool,
}

/// How many of `blocks` (ascending) count after `before`: the run in which each names its predecessor's hash.
///
/// `before` is the last block that counts below them; None means they begin at `start`. Up to `complete_to` a missing
/// height is an empty block, and the parent named after a gap is the source's word (DESIGN 4).
pub fn counting(
    before: Option<&BlockRef>,
    start: Height,
    complete_to: Option<Height>,
    blocks: &[StoredBlock],
) -> usize {
    let mut expected = before.map_or(start, |b| b.height.next());
    let mut parent = before.map(|b| &b.hash);
    for (n, block) in blocks.iter().enumerate() {
        let gap_is_empty = || complete_to.is_some_and(|to| block.height.minus(1) <= to);
        let linked = if block.height == expected {
            parent.is_none_or(|p| *p == block.parent_hash)
        } else {
            block.height > expected && gap_is_empty()
        };
        if !linked || !block.complete {
            return n;
        }
        expected = block.height.next();
        parent = Some(&block.hash);
    }
    blocks.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    // One letter a block; '.' is a height without a block. Index = height.
    fn marks(text: &str) -> Vec<Option<Mark>> {
        text.chars().map(|c| (c != '.').then(|| Mark { hash: Hash::new(c.to_string()), revision: 0 })).collect()
    }

    fn block(height: usize, name: char) -> BlockRef {
        BlockRef { height: Height::from(height as u32), hash: Hash::new(name.to_string()) }
    }

    fn last(text: &str) -> Option<BlockRef> {
        text.chars().enumerate().filter(|(_, c)| *c != '.').last().map(|(h, c)| block(h, c))
    }

    /// Answers every `Need` and returns the decision with the number of heights brought.
    fn decide(ours: &str, theirs: &str, floor: u32, more_below: bool, truth: bool) -> (Result<Step, TooDeep>, usize) {
        let mut window = Window { tip: last(ours), floor: Height::from(floor), more_below, known: BTreeMap::new() };
        let newest = last(theirs);
        let theirs_said = if truth { Theirs::Truth(newest) } else { Theirs::Hint(newest.expect("a head")) };
        let (o, t) = (marks(ours), marks(theirs));
        for _ in 0..100 {
            match plan(&window, &theirs_said) {
                Ok(Step::Need { heights }) => {
                    for h in heights.start().get()..=heights.end().get() {
                        let at = |side: &[Option<Mark>]| side.get(h as usize).cloned().flatten();
                        window.known.insert(Height::new(h).expect("small"), (at(&o), at(&t)));
                    }
                }
                done => return (done, window.known.len()),
            }
        }
        panic!("plan does not come to an end");
    }

    fn reorg(ancestor: Option<BlockRef>) -> Step {
        Step::Reorg { ancestor }
    }

    #[test]
    fn a_hint_is_judged_by_hashes() {
        let hint = |ours, theirs| decide(ours, theirs, 0, false, false).0;
        assert_eq!(hint("abc", "abc"), Ok(Step::Known));
        assert_eq!(hint("abc", "abcd"), Ok(Step::Extend));
        // The node lags, on our branch: nothing is dropped.
        assert_eq!(hint("abcde", "abc"), Ok(Step::Known));
        // The node is lower, on another branch.
        assert_eq!(hint("abcde", "abX"), Ok(reorg(Some(block(1, 'b')))));
        assert_eq!(hint("abc", "abXY"), Ok(reorg(Some(block(1, 'b')))));
        assert_eq!(hint("abc", "XYZ"), Ok(reorg(None)));
    }

    #[test]
    fn the_truth_is_followed_down() {
        let truth = |ours, theirs| decide(ours, theirs, 0, false, true).0;
        assert_eq!(truth("abcde", "abc"), Ok(reorg(Some(block(2, 'c')))));
        assert_eq!(truth("abc", "abc"), Ok(Step::Known));
        assert_eq!(truth("abc", "abcd"), Ok(Step::Extend));
        assert_eq!(truth("abc", "."), Ok(reorg(None)));
        // A block appeared where there was none.
        assert_eq!(truth("a.c", "abc"), Ok(reorg(Some(block(0, 'a')))));
    }

    #[test]
    fn an_edit_below_equal_hashes_is_seen() {
        let mut window =
            Window { tip: Some(block(2, 'c')), floor: Height::from(0), more_below: false, ..Window::default() };
        for (h, name) in "abc".chars().enumerate() {
            let mark = |revision| Some(Mark { hash: Hash::new(name.to_string()), revision });
            window.known.insert(Height::from(h as u32), (mark(1), mark(if h == 1 { 9 } else { 1 })));
        }
        let theirs = Theirs::Truth(Some(block(2, 'c')));
        assert_eq!(plan(&window, &theirs), Ok(reorg(Some(block(0, 'a')))));
    }

    #[test]
    fn parting_below_the_floor_is_too_deep() {
        let (step, _) = decide("abcdef", "aXYZUVW", 3, true, false);
        assert_eq!(step, Err(TooDeep { floor: Height::from(3) }));
        let (step, _) = decide("abcdef", "aXYZUVW", 3, true, true);
        assert_eq!(step, Err(TooDeep { floor: Height::from(3) }));
    }

    #[test]
    fn a_deep_reorg_is_found_in_few_questions() {
        let ours: String = (0..600u32).map(|n| char::from_u32(0x4e00 + n).expect("a letter")).collect();
        let theirs: String = (0..601u32)
            .map(|n| char::from_u32(0x4e00 + if n < 300 { n } else { n + 9000 }).expect("a letter"))
            .collect();
        let (step, brought) = decide(&ours, &theirs, 0, false, false);
        let Ok(Step::Reorg { ancestor }) = step else { panic!("{step:?}") };
        assert_eq!(ancestor.expect("shared").height, Height::from(299));
        assert!(brought <= 600, "{brought} heights were brought");
    }

    #[test]
    fn no_question_is_for_more_heights_than_one_call_may_hold() {
        let mark = |name: &str| Some(Mark { hash: Hash::new(name), revision: 0 });
        let (shared, ours, theirs) = (mark("shared"), mark("ours"), mark("theirs"));
        let tip = Height::from(1_000_000);
        let named = |name: &str| BlockRef { height: tip, hash: Hash::new(name) };
        let mut window = Window { tip: Some(named("ours")), ..Window::default() };
        let ancestor = loop {
            match plan(&window, &Theirs::Hint(named("theirs"))) {
                Ok(Step::Need { heights }) => {
                    let (low, high) = (heights.start().get(), heights.end().get());
                    assert!(high - low < 10_000, "{low} to {high}");
                    for height in low..=high {
                        let both = if height <= 5 { (&shared, &shared) } else { (&ours, &theirs) };
                        let height = Height::new(height).expect("small");
                        window.known.insert(height, (both.0.clone(), both.1.clone()));
                    }
                }
                Ok(Step::Reorg { ancestor }) => break ancestor,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(ancestor.map(|a| a.height), Some(Height::from(5)));
    }

    fn stored(height: u32, hash: &str, parent: &str) -> StoredBlock {
        StoredBlock {
            height: Height::from(height),
            hash: Hash::new(hash),
            parent_hash: Hash::new(parent),
            revision: 1,
            complete: true,
        }
    }

    #[test]
    fn what_counts_is_the_linked_run_from_the_start() {
        let start = Height::from(5);
        let blocks = [stored(5, "a", "?"), stored(6, "b", "a"), stored(7, "c", "X")];
        assert_eq!(counting(None, start, None, &blocks), 2);
        assert_eq!(counting(None, Height::from(4), None, &blocks), 0);
        let before = BlockRef { height: Height::from(4), hash: Hash::new("?") };
        assert_eq!(counting(Some(&before), start, None, &blocks), 2);
        let other = BlockRef { height: Height::from(4), hash: Hash::new("!") };
        assert_eq!(counting(Some(&other), start, None, &blocks), 0);
        let mut missing = blocks.to_vec();
        missing[1].complete = false;
        assert_eq!(counting(None, start, None, &missing), 1);
    }

    #[test]
    fn gaps_count_as_empty_blocks_up_to_complete_to() {
        let start = Height::from(5);
        let blocks = [stored(6, "b", "?"), stored(9, "e", "?"), stored(11, "g", "?")];
        assert_eq!(counting(None, start, None, &blocks), 0);
        assert_eq!(counting(None, start, Some(Height::from(8)), &blocks), 2);
        assert_eq!(counting(None, start, Some(Height::from(10)), &blocks), 3);
    }
}
