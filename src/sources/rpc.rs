//! JSON-RPC as nodes of several kinds of chains speak it: endpoints, fail-over between them, second opinions, and
//! subscriptions as bells. What a chain's own methods and errors mean, its [`Dialect`] says.

pub(in crate::sources) mod endpoint;
pub(in crate::sources) mod fault;
pub(in crate::sources) mod heads;
pub(in crate::sources) mod pool;

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use tokio::time::Instant;

use self::fault::Verdict;
use super::SourceError;
use crate::chain::{BlockRef, Height, Link};

/// How often in a row the chain may change under a read before that is a fault of the node: "look again at once" must
/// not become a storm of requests.
const CHANGES_IN_A_ROW: u32 = 3;

/// Longest name of a token that is kept, in characters.
pub(in crate::sources) const LONGEST_NAME: usize = 256;

/// What differs between kinds of chains.
#[derive(Debug)]
pub(in crate::sources) struct Dialect {
    /// The method that gives the network's id.
    pub(in crate::sources) network: &'static str,
    /// The id in that method's answer, as people write it.
    pub(in crate::sources) read_network: fn(&str) -> Option<String>,
    /// What an error of a method means, by its code and words.
    pub(in crate::sources) judge: fn(&str, i64, &str) -> Verdict,
    /// Most calls in one request.
    pub(in crate::sources) most_calls: usize,
}

/// Looks again at once where the chain changed under a read, but not for ever.
#[derive(Debug, Default)]
pub(in crate::sources) struct Changes(AtomicU32);

impl Changes {
    pub(in crate::sources) fn settled<T>(&self, read: Result<T, SourceError>) -> Result<T, SourceError> {
        match read {
            Err(SourceError::Changed { height }) => {
                if self.0.fetch_add(1, Ordering::Relaxed) + 1 < CHANGES_IN_A_ROW {
                    return Err(SourceError::Changed { height });
                }
                self.0.store(0, Ordering::Relaxed);
                Err(SourceError::transient(format!(
                    "the chain changed {CHANGES_IN_A_ROW} times in a row while block {height} was read"
                )))
            }
            read => {
                if read.is_ok() {
                    self.0.store(0, Ordering::Relaxed);
                }
                read
            }
        }
    }
}

/// The height last seen of something that moves: the head, the newest final block.
#[derive(Debug, Default)]
pub(in crate::sources) struct Seen {
    /// Plus one; 0: none yet.
    height: AtomicU64,
}

impl Seen {
    pub(in crate::sources) fn set(&self, height: Height) {
        self.height.store(height.get() + 1, Ordering::Relaxed);
    }

    pub(in crate::sources) fn get(&self) -> Option<Height> {
        self.height.load(Ordering::Relaxed).checked_sub(1).and_then(Height::new)
    }

    /// The height `n` below it, if there is one.
    pub(in crate::sources) fn below(&self, n: u64) -> Option<Height> {
        self.get()?.get().checked_sub(n).and_then(Height::new)
    }
}

/// Since when something has lasted.
#[derive(Debug, Default)]
pub(in crate::sources) struct Since(Mutex<Option<Instant>>);

impl Since {
    fn lasts(&self) -> std::time::Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(Instant::now).elapsed()
    }

    fn end(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// What a node thinks of an undo, by the blocks that it has at the heights of the lowest undone one (`ours`) and of the
/// new one (`theirs`): `Some(true)` ours are gone, `Some(false)` they stand, none: it cannot tell.
pub(in crate::sources) fn opinion(
    first_undone: &BlockRef,
    new: &BlockRef,
    ours: Option<Link>,
    theirs: Option<Link>,
) -> Option<bool> {
    let hash =
        |link: Option<Link>, asked: &BlockRef| link.filter(|link| link.height == asked.height).map(|link| link.hash);
    let has_new = hash(theirs, new).is_some_and(|hash| hash == new.hash);
    match hash(ours, first_undone) {
        // height | 7 | 8 | 9        Where the new block replaces ours, having it is enough.
        // ours   | A   B   C
        // new    | A   B'
        _ if has_new && new.height >= first_undone.height => Some(true),
        Some(hash) => Some(hash != first_undone.hash),
        // The chain got shorter: the other one ends below our blocks too.
        None => has_new.then_some(true),
    }
}

/// A token's own name without what Postgres cannot hold or what makes a line read as another one; none where nothing is
/// left of it.
pub(in crate::sources) fn name_to_show(text: &str) -> Option<String> {
    let unfit = |c: &char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    let text: String = text.chars().filter(|c| !unfit(c)).take(LONGEST_NAME).collect();
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}
