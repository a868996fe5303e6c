//! Applying everything again: why, and how far it has come.

use std::time::{Duration, Instant};

use super::look::{Difference, Fault, Task};
use super::{Of, Session};
use crate::chain::Height;
use crate::store::{LedgerRead, Look};

/// A rebuild tells how far it has come so often.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// A rebuild under way, in one transaction: what others see of it is what it tells them beside.
pub(super) struct Rebuild {
    reason: &'static str,
    from: Height,
    to: Height,
    said_at: Instant,
}

impl Rebuild {
    pub(super) fn new(reason: &'static str, from: Height, to: Height) -> Rebuild {
        Rebuild { reason, from, to, said_at: Instant::now() }
    }
}

impl Difference {
    /// Why blocks are applied again that are no longer in the journal.
    pub(super) fn reason(&self, look: &Look) -> &'static str {
        self.rebuild.unwrap_or(match (look.checkpoint.deep_change, self.same_branch) {
            (true, _) => "the chain changed below its final height",
            (false, true) => "a replay from below the undo horizon",
            (false, false) => "a reorganisation to below the undo horizon",
        })
    }
}

impl Task {
    /// Shows how far it has come, now and then.
    pub(super) async fn rebuild_is_at(
        &self,
        read: &LedgerRead,
        look: &Look,
        rebuild: &mut Rebuild,
        at: Height,
    ) -> Result<(), Fault> {
        if rebuild.said_at.elapsed() < PROGRESS_EVERY {
            return Ok(());
        }
        rebuild.said_at = Instant::now();
        let of = Of { chain: &look.chain_name, projection: &self.name };
        self.watcher.rebuilding(of, Some((at.get(), rebuild.to.get())));
        read.rebuild_is_at(self.chain, &self.name, rebuild.reason, (rebuild.from, at, rebuild.to)).await?;
        Ok(())
    }

    /// It is over, one way or the other.
    pub(super) async fn rebuild_is_over(&self, session: &Session, look: &Look) -> Result<(), Fault> {
        session.read.rebuild_ended(self.chain, &self.name).await?;
        self.watcher.rebuilding(Of { chain: &look.chain_name, projection: &self.name }, None);
        Ok(())
    }
}
