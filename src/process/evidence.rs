//! Evidence that is older than it is to be kept goes, a little at a time, beside the work.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::workers::Workers;
use crate::store::{DroppedEvidence, StoreError};

/// Most rows that one statement drops of each table. A replaced block may hold megabytes.
const AT_ONCE: u32 = 100;
/// Between two statements while there is more to drop: what piled up over years must not take the disk from the blocks.
const BETWEEN: Duration = Duration::from_secs(1);
/// Between two looks for what has become old since.
const AGAIN_AFTER: Duration = Duration::from_secs(3_600);

/// Drops what is older than `keep_days` until `shutdown`, or with `once` until nothing old is left. A fault costs nothing but
/// disk space, so it is logged, and tried again later.
pub(super) async fn drop_old(workers: Arc<Workers>, keep_days: u32, once: bool, shutdown: CancellationToken) {
    loop {
        // To its end, also when told to stop: the session goes back with no statement on it.
        let is_more_left = match drop_oldest(&workers, keep_days).await {
            Ok(dropped) => dropped != DroppedEvidence::default(),
            Err(error) => {
                tracing::warn!(%error, "Replaced blocks and reorganisations of more than {keep_days} days ago could not be dropped");
                false
            }
        };
        let pause = match (once, is_more_left) {
            (true, true) => Duration::ZERO,
            (true, false) => return,
            (false, true) => BETWEEN,
            (false, false) => AGAIN_AFTER,
        };
        if shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}

async fn drop_oldest(workers: &Arc<Workers>, keep_days: u32) -> Result<DroppedEvidence, StoreError> {
    let mut lent = workers.lend().await?;
    let dropped = lent.session().write.drop_old_evidence(keep_days, AT_ONCE).await;
    if lent.session().is_closed() {
        lent.end();
    }
    if let Ok(DroppedEvidence { blocks, reorgs }) = dropped
        && blocks + reorgs > 0
    {
        tracing::info!(
            blocks,
            reorgs,
            "Dropped {blocks} replaced blocks and {reorgs} reorganisations of more than {keep_days} days ago"
        );
    }
    dropped
}
