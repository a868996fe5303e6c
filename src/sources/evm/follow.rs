//! Following what factories make while several ranges of blocks are read at once.
//!
//! A range may hold logs of a contract that a lower range, still under way, is about to find. So each range first reads
//! what it can ask for already, its factories' events among it; waits until every range below it has told what was made
//! there; tells the same of itself; and then asks for the logs of contracts that it did not know of when it began.

use std::collections::{BTreeMap, HashSet};
use std::ops::RangeInclusive;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use alloy_primitives::Address;
use tokio::sync::watch;

use super::decode::{ADDRESSES_PER_FILTER, Decoder, LogFilter};
use super::factory::{Following, Found, Made};
use super::fetch::Fetch;
use crate::chain::{Block, Event, Height};
use crate::sources::SourceError;

/// Blocks whose creating events are looked up at once, where nobody reads them whole.
const GAP_AT_ONCE: u64 = 1_000;

/// What is known of made contracts, and who is about to find out more.
#[derive(Debug)]
pub(super) struct Follow {
    state: RwLock<State>,
    /// Rings at each change of the state.
    changes: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    found: Found,
    /// What was made below this height is known; None means nothing was asked for yet, and following begins there.
    told_to: Option<Height>,
    /// The ranges under way: where each begins.
    readers: BTreeMap<u64, Height>,
    next_reader: u64,
    /// One more whenever ranges under way lost what they stand on.
    generation: u64,
}

/// A range under way; it ends with this.
pub(super) struct Ticket<'f> {
    follow: &'f Follow,
    reader: u64,
    first: Height,
    generation: u64,
}

/// How it stands below a range.
enum Below {
    Told,
    /// Another range under way will tell.
    UnderWay,
    /// Nobody reads from this height on: someone else wrote blocks into the database.
    Gap(Height),
}

impl Default for Follow {
    fn default() -> Follow {
        Follow { state: RwLock::default(), changes: watch::Sender::new(()) }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.follow.change(|state| state.readers.remove(&self.reader));
    }
}

impl Follow {
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state: RwLockWriteGuard<'_, State> = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut state);
        drop(state);
        self.changes.send_replace(());
        changed
    }

    /// Blocks from this height on are asked for: what was made there before is forgotten.
    pub(super) fn register(&self, first: Height) -> Ticket<'_> {
        let (reader, generation) = self.change(|state| {
            let told_to = *state.told_to.get_or_insert(first);
            if told_to > first {
                state.found.forget(first, Height::MAX);
                state.told_to = Some(first);
            }
            if state.readers.values().any(|other| *other >= first) {
                state.generation += 1;
            }
            state.next_reader += 1;
            state.readers.insert(state.next_reader, first);
            (state.next_reader, state.generation)
        });
        Ticket { follow: self, reader, first, generation }
    }

    /// What is stored ends here; None means nothing is.
    pub(super) fn resume(&self, tip: Option<Height>) {
        self.change(|state| {
            state.told_to = tip.map(Height::next);
            state.found.forget(state.told_to.unwrap_or_default(), Height::MAX);
            state.generation += 1;
        });
    }

    /// These events are stored, and no others of their kinds.
    pub(super) fn recall(&self, decoder: &Decoder, events: &[(Height, Event)]) {
        self.change(|state| {
            state.found.clear();
            for (height, event) in events {
                for (factory, contract) in decoder.made(event) {
                    state.found.add(Made { height: *height, factory, contract });
                }
            }
        });
    }

    /// The blocks at these heights, or at the first of them.
    pub(super) async fn blocks(
        &self,
        fetch: &Fetch<'_>,
        heights: RangeInclusive<Height>,
        ticket: &Ticket<'_>,
    ) -> Result<Vec<Block>, SourceError> {
        let first = ticket.first;
        let mut asked = Asked::default();
        let mut filters = fetch.decoder.filters();
        filters.extend(asked.more(fetch.decoder, &self.read().found, first).map(|(filter, _)| filter));
        let mut reading = fetch.read(heights, &filters).await?;
        let made = fetch.made_in(&reading);
        self.until_told(fetch, ticket).await?;
        let next = reading.next();
        self.tell(ticket, first, next, &made)?;
        let (more, from): (Vec<LogFilter>, Vec<Height>) =
            asked.more(fetch.decoder, &self.read().found, next).map(|(filter, from)| (filter, from.max(first))).unzip();
        if let Some(from) = from.into_iter().min() {
            fetch.read_more(&mut reading, from, &more).await?;
        }
        let state = self.read();
        Ok(fetch.blocks(reading, &mut Following::below(&state.found, first)))
    }

    /// Waits until all that was made below this range is known.
    async fn until_told(&self, fetch: &Fetch<'_>, ticket: &Ticket<'_>) -> Result<(), SourceError> {
        let mut changes = self.changes.subscribe();
        loop {
            changes.borrow_and_update();
            let below = self.read().below(ticket)?;
            match below {
                Below::Told => return Ok(()),
                Below::Gap(from) => self.fill(fetch, ticket, from).await?,
                // The bell hangs in `self`: it cannot be gone.
                Below::UnderWay => drop(changes.changed().await),
            }
        }
    }

    /// Looks up what was made from this height up to the range.
    async fn fill(&self, fetch: &Fetch<'_>, ticket: &Ticket<'_>, from: Height) -> Result<(), SourceError> {
        let filters = fetch.decoder.factory_filters();
        let mut size = GAP_AT_ONCE;
        loop {
            let last = from.plus(size - 1).min(ticket.first.minus(1));
            match fetch.read(from..=last, &filters).await {
                Ok(reading) => return self.tell(ticket, from, reading.next(), &fetch.made_in(&reading)),
                Err(SourceError::RangeTooLarge { .. }) if size > 1 => size /= 2,
                // Of the gap, not of the range that was asked for.
                Err(SourceError::RangeTooLarge { what, .. }) => return Err(SourceError::transient(what)),
                Err(error) => return Err(error),
            }
        }
    }

    /// These contracts were made from `from` on, the height `next` not included.
    fn tell(&self, ticket: &Ticket<'_>, from: Height, next: Height, made: &[Made]) -> Result<(), SourceError> {
        self.change(|state| {
            state.stands(ticket)?;
            // Another node may have told something else a moment ago.
            state.found.forget(from, next);
            made.iter().for_each(|made| state.found.add(*made));
            state.told_to = state.told_to.max(Some(next));
            Ok(())
        })
    }
}

impl State {
    fn stands(&self, ticket: &Ticket<'_>) -> Result<(), SourceError> {
        if self.generation == ticket.generation { Ok(()) } else { Err(SourceError::Changed { height: ticket.first }) }
    }

    fn below(&self, ticket: &Ticket<'_>) -> Result<Below, SourceError> {
        self.stands(ticket)?;
        let told_to = self.told_to.unwrap_or(ticket.first);
        Ok(if told_to >= ticket.first {
            Below::Told
        } else if self.readers.values().any(|other| *other < ticket.first) {
            Below::UnderWay
        } else {
            Below::Gap(told_to)
        })
    }
}

/// Whose logs a range asked for already, by factory.
#[derive(Default)]
struct Asked(Vec<OfFactory>);

#[derive(Default)]
struct OfFactory {
    /// They are so many that nobody was named.
    any: bool,
    contracts: HashSet<Address>,
}

impl Asked {
    /// What is still to be asked for, with the lowest height where it may be found, to have all that was made below
    /// `height`; it counts as asked for from now on.
    fn more(&mut self, decoder: &Decoder, found: &Found, height: Height) -> impl Iterator<Item = (LogFilter, Height)> {
        let mut more = Vec::new();
        self.0.resize_with(decoder.factories().len(), OfFactory::default);
        for (factory, asked) in self.0.iter_mut().enumerate().filter(|(_, asked)| !asked.any) {
            let new = found.made_below(factory, height).filter(|(_, contract)| !asked.contracts.contains(contract));
            // One more than can be named is enough to know that they are too many.
            let new: Vec<(Height, Address)> = new.take(ADDRESSES_PER_FILTER + 1).collect();
            let Some((from, _)) = new.first().copied() else { continue };
            let filter = decoder.made_filters(factory, new.iter().map(|(_, contract)| *contract).collect());
            asked.any = filter.as_ref().is_some_and(|filter| filter.addresses.is_empty());
            asked.contracts.extend(new.iter().map(|(_, contract)| contract));
            more.extend(filter.map(|filter| (filter, from)));
        }
        more.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_again_is_forgotten_first() {
        let follow = Follow::default();
        let height = Height::from;
        let made = |at: u32| Made { height: height(at), factory: 0, contract: Address::repeat_byte(at as u8) };
        let known = || follow.read().found.made_below(0, Height::MAX).map(|(at, _)| at).collect::<Vec<_>>();
        let ticket = follow.register(height(5));
        follow.tell(&ticket, height(5), height(9), &[made(6), made(7), made(8)]).expect("it stands");
        assert_eq!(known(), [6, 7, 8].map(height));
        // Two ranges of which the lower one is asked for again: neither may tell any more.
        let other = follow.register(height(9));
        drop(follow.register(height(7)));
        assert_eq!(known(), [height(6)]);
        assert!(follow.tell(&other, height(9), height(12), &[made(9)]).is_err());
        drop((ticket, other));
        // Ranges that follow one another stand beside one another.
        let (low, high) = (follow.register(height(7)), follow.register(height(10)));
        assert!(matches!(follow.read().below(&high), Ok(Below::UnderWay)));
        follow.tell(&low, height(7), height(10), &[made(7)]).expect("it stands");
        assert!(matches!(follow.read().below(&high), Ok(Below::Told)));
        drop((low, high));
        let far = follow.register(height(20));
        assert!(matches!(follow.read().below(&far), Ok(Below::Gap(from)) if from == height(10)));
        follow.resume(Some(height(6)));
        assert_eq!(known(), [height(6)]);
        follow.resume(None);
        assert!(known().is_empty());
    }
}
