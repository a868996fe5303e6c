//! Which contracts events have named so far, and that each range of heights is decoded after those below it.

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::chain::Height;
use crate::chain::felt::Felt;

/// Contracts that events named, each with the height that named it first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found(HashMap<Felt, Height>);

impl Found {
    /// Whether it was found.
    pub fn has(&self, address: &Felt) -> bool {
        self.0.contains_key(address)
    }

    /// Follows a contract from here on.
    pub(super) fn add(&mut self, address: Felt, height: Height) {
        self.0.entry(address).or_insert(height);
    }

    /// All of them, in no order.
    pub(super) fn contracts(&self) -> impl Iterator<Item = &Felt> {
        self.0.keys()
    }

    fn forget_from(&mut self, height: Height) {
        self.0.retain(|_, found_at| *found_at < height);
    }
}

/// Ranges of heights are read in any order, but decoded one after the other: what is found below decides what is
/// followed above.
#[derive(Debug, Default)]
pub(super) struct Turns {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    found: Found,
    /// The height that is decoded next; None means whichever is asked for first.
    next: Option<Height>,
    under_way: BTreeMap<u64, RangeInclusive<Height>>,
    tickets: u64,
}

/// A range that is being read; dropped with the call that reads it.
#[derive(Debug)]
pub(super) struct Turn<'t> {
    turns: &'t Turns,
    ticket: u64,
    heights: RangeInclusive<Height>,
}

/// Whose turn it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// This range's.
    Mine,
    /// That of these heights, which nobody is reading.
    Nobodys(RangeInclusive<Height>),
}

impl Turns {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins again: this was found up to a height, and `next` comes after it.
    pub(super) fn reset(&self, found: Found, next: Option<Height>) {
        let mut state = self.state();
        state.found = found;
        state.next = next;
        self.changed.notify_waiters();
    }

    /// What was found so far.
    pub(super) fn found(&self) -> Found {
        self.state().found.clone()
    }

    /// A range is about to be read. Where it was decoded before, what it named then is forgotten.
    pub(super) fn begin(&self, heights: &RangeInclusive<Height>) -> Turn<'_> {
        let mut state = self.state();
        state.rewind(*heights.start());
        state.tickets += 1;
        let ticket = state.tickets;
        state.under_way.insert(ticket, heights.clone());
        drop(state);
        self.changed.notify_waiters();
        Turn { turns: self, ticket, heights: heights.clone() }
    }

    /// Decodes heights if it is their turn: `decode` is handed what was found below and returns, with its answer, the last
    /// height that it covered (none: it covered nothing). None means it is not their turn.
    pub(super) fn decode<T>(&self, first: Height, decode: impl FnOnce(&mut Found) -> (T, Option<Height>)) -> Option<T> {
        let mut state = self.state();
        if state.next != Some(first) {
            return None;
        }
        let (answer, last) = decode(&mut state.found);
        if let Some(last) = last {
            state.next = Some(last.next());
        }
        drop(state);
        self.changed.notify_waiters();
        Some(answer)
    }
}

impl State {
    /// Goes back to this height if decoding has gone beyond it.
    fn rewind(&mut self, to: Height) {
        if self.next.is_none_or(|next| next > to) {
            self.found.forget_from(to);
            self.next = Some(to);
        }
    }
}

impl Turn<'_> {
    /// Waits until it is this range's turn, or until nobody else will bring what lies below it. Cancel safe.
    pub(super) async fn come(&self) -> Next {
        loop {
            // Registered before the look, so that a change in between is not missed.
            let mut changed = std::pin::pin!(self.turns.changed.notified());
            changed.as_mut().enable();
            if let Some(next) = self.look() {
                return next;
            }
            changed.await;
        }
    }

    fn look(&self) -> Option<Next> {
        let mut state = self.turns.state();
        let start = *self.heights.start();
        // Another call may have gone beyond this range meanwhile.
        state.rewind(start);
        let next = state.next.filter(|next| *next < start);
        let Some(next) = next else { return Some(Next::Mine) };
        let others =
            || state.under_way.iter().filter(|(ticket, _)| **ticket != self.ticket).map(|(_, heights)| heights);
        if others().any(|heights| heights.contains(&next)) {
            return None;
        }
        let end = others().map(|heights| *heights.start()).filter(|s| *s > next).min().map_or(start, |s| s.min(start));
        Some(Next::Nobodys(next..=end.prev().unwrap_or(next)))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.state().under_way.remove(&self.ticket);
        self.turns.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn height(n: u64) -> Height {
        Height::new(n).expect("a height")
    }

    fn range(from: u64, to: u64) -> RangeInclusive<Height> {
        height(from)..=height(to)
    }

    fn decode(turns: &Turns, from: u64, to: u64) {
        let done = turns.decode(height(from), |found| {
            found.add(Felt::from(to), height(to));
            ((), Some(height(to)))
        });
        assert_eq!(done, Some(()), "{from} to {to}");
    }

    #[test]
    fn ranges_wait_for_those_below_them() {
        let turns = Turns::default();
        turns.reset(Found::default(), Some(height(10)));
        let (low, high) = (turns.begin(&range(10, 19)), turns.begin(&range(20, 29)));
        assert_eq!(low.come().now_or_never(), Some(Next::Mine));
        assert_eq!(high.come().now_or_never(), None);
        assert_eq!(turns.decode(height(20), |_| ((), None)), None);
        let waits = &mut Box::pin(high.come());
        assert_eq!(waits.now_or_never(), None);
        decode(&turns, 10, 19);
        assert_eq!(waits.now_or_never(), Some(Next::Mine));
        decode(&turns, 20, 29);
        assert!(turns.found().has(&Felt::from(19)) && turns.found().has(&Felt::from(29)));
    }

    #[test]
    fn what_was_found_above_a_height_that_is_asked_for_again_is_forgotten() {
        let turns = Turns::default();
        turns.begin(&range(0, 9));
        decode(&turns, 0, 9);
        decode(&turns, 10, 19);
        let again = turns.begin(&range(10, 11));
        assert!(turns.found().has(&Felt::from(9)) && !turns.found().has(&Felt::from(19)));
        assert_eq!(again.come().now_or_never(), Some(Next::Mine));
    }

    #[test]
    fn a_range_that_nobody_reads_is_brought_by_who_needs_it() {
        let turns = Turns::default();
        turns.reset(Found::default(), Some(height(10)));
        let (dropped, between, high) =
            (turns.begin(&range(10, 19)), turns.begin(&range(15, 24)), turns.begin(&range(25, 34)));
        assert_eq!(high.come().now_or_never(), None);
        drop(dropped);
        assert_eq!(high.come().now_or_never(), Some(Next::Nobodys(range(10, 14))));
        drop(between);
        assert_eq!(high.come().now_or_never(), Some(Next::Nobodys(range(10, 24))));
        decode(&turns, 10, 24);
        assert_eq!(high.come().now_or_never(), Some(Next::Mine));
    }

    #[test]
    fn the_first_range_begins_whatever_was_asked_first() {
        let turns = Turns::default();
        let (high, low) = (turns.begin(&range(5, 9)), turns.begin(&range(0, 4)));
        assert_eq!(high.come().now_or_never(), None);
        assert_eq!(low.come().now_or_never(), Some(Next::Mine));
    }
}
