//! `ebbtide verify option_vaults`: what must hold between rows, and all rows computed again from the events, in memory and
//! without loading any.

use crate::chain::ChainId;
use crate::store::{Store, StoreError};
use crate::verify::{Audit, Findings, Recomputation, Verifiable};

use super::{Settings, Working, apply, statements};

/// Blocks whose rows are written at once.
const BLOCKS: usize = 500;

/// Compares the option vaults of one chain with what their events say. `progress` is told how many blocks are done, and of how
/// many.
///
/// # Errors
/// Whatever Postgres says. A block that cannot be computed again is no error but a finding.
pub async fn audit(
    store: &Store,
    settings: &Settings,
    of: &Verifiable,
    most: i64,
    progress: &(dyn Fn(u64, u64) + Send + Sync),
) -> Result<Findings, StoreError> {
    let mut audit = match store.recompute(of, most).await? {
        Audit::Idle(findings) => return Ok(findings),
        Audit::Begun(audit) => audit,
    };
    let chain = ChainId(audit.chain_id());
    audit.check(include_str!("../../../sql/queries/verify_vaults.sql")).await?;
    let mut directory = settings.directory();
    directory.registered = statements::all_registered(audit.session(), chain).await?;
    let (all, mut done) = (audit.left(), 0);
    let mut rows = Working::default();
    let mut refused = Vec::new();
    while let Some(block) = audit.next().await? {
        refused.extend(apply(&directory, &mut rows, &block));
        done += 1;
        progress(done as u64, all as u64);
        if done % BLOCKS == 0 || done == all {
            let put = match statements::put(audit.session(), chain, &rows.take_changes()).await {
                Ok(()) => audit.reject(&std::mem::take(&mut refused)).await,
                failed => failed,
            };
            if let Err(error) = put {
                return Ok(Recomputation::failed(*audit, &block.block, &error.message()));
            }
        }
    }
    audit.compare().await
}
