//! Since when which blocks are not whole: they are waited for, but not in silence for ever.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::endpoint::Endpoint;
use super::page::Gap;
use crate::chain::Height;
use crate::sources::SourceError;

/// Gaps that were seen and not yet filled.
#[derive(Debug)]
pub(super) struct Gaps {
    patience: Duration,
    since: Mutex<BTreeMap<u64, Instant>>,
}

impl Gaps {
    pub(super) fn new(patience: Duration) -> Gaps {
        Gaps { patience, since: Mutex::default() }
    }

    /// These are the gaps at these heights (inclusive) now; others there are filled. A page has at most 9,000.
    pub(super) fn note(&self, from: u64, to: u64, gaps: &[Gap]) {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let before: BTreeMap<u64, Instant> = since.range(from..=to).map(|(height, at)| (*height, *at)).collect();
        since.retain(|height, _| !(from..=to).contains(height));
        since.extend(gaps.iter().map(|gap| (gap.height, before.get(&gap.height).copied().unwrap_or(now))));
    }

    /// Whether this gap has been waited for long enough.
    pub(super) fn is_old(&self, height: u64) -> bool {
        let since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        since.get(&height).is_some_and(|at| at.elapsed() >= self.patience)
    }

    /// What to say of a gap that stands in the way.
    pub(super) fn error(&self, endpoint: &Endpoint, gap: &Gap) -> SourceError {
        match Height::new(gap.height) {
            Some(height) if self.is_old(gap.height) => {
                SourceError::Incomplete { height, what: endpoint.say(&gap.what) }
            }
            _ => endpoint.transient(&gap.what),
        }
    }
}
