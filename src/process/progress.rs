//! How far a rebuild has come: it is one transaction, of which others see only what it tells them beside.

use std::time::{Duration, Instant};

use crate::chain::{ChainId, Height};
use crate::store::{LedgerRead, StoreError};

/// It is told so often.
const EVERY: Duration = Duration::from_secs(1);

/// A rebuild under way.
pub(super) struct Progress {
    reason: &'static str,
    from: Height,
    to: Height,
    told_at: Instant,
}

impl Progress {
    pub(super) fn new(reason: &'static str, from: Height, to: Height) -> Progress {
        Progress { reason, from, to, told_at: Instant::now() }
    }

    /// It has come to this height; told now and then.
    pub(super) async fn tell(
        &mut self,
        read: &LedgerRead,
        (chain, projection): (ChainId, &str),
        at: Height,
    ) -> Result<(), StoreError> {
        if self.told_at.elapsed() < EVERY {
            return Ok(());
        }
        self.told_at = Instant::now();
        read.rebuild_is_at(chain, projection, self.reason, (self.from, at, self.to)).await
    }
}
