//! Named pieces of derived state.
//!
//! `token_balances` has statements of its own, for speed. Everything else writes ordinary tables that triggers keep
//! undo for: SQL functions (`create_projection` in the database), and implementations of [`Projection`].

pub mod option_vaults;
pub mod token_balances;

use async_trait::async_trait;
use serde_json::Value;

use crate::chain::Kind;
use crate::store::{BlockError, BlockTransaction, RangeTransaction, Store, StoreError};

/// A piece of derived state that code of yours keeps: for each block it writes what follows from it, and nothing else.
///
/// There is no inverse to write. The tables it names are *tracked*: triggers keep each row as it was before a block first
/// touched it, and a reorganisation puts those rows back, in one transaction, before the blocks that take their place are
/// applied. There is no checkpoint to keep either: it moves in the transaction that [`apply`](Projection::apply) writes.
///
/// # What apply may do
/// - Read whatever it likes through [`BlockTransaction::query`]; for the same result each time, nothing above the block.
/// - Insert, update, delete and merge rows of its own tables. Writing any other table fails the block; `truncate` is refused.
/// - Fail: the block is rolled back whole, shown with its reason in `ebbtide status` and `/ready`, and tried again, more
///   and more rarely. No other projection waits for it.
///
/// It must be deterministic: the same block on the same tables gives the same tables. No clock, no random numbers. What it
/// keeps in memory must survive being told of a block twice, or of another block at a height it has seen: best, nothing.
///
/// # Tables
/// Each needs a primary key with a column `chain_id bigint`, whose rows are those of the chain being applied. What could not
/// be restored exactly is refused when the projection is registered, with the remedy: foreign keys that cascade from tables
/// that are not tracked, partitions, unlogged tables. Columns, indexes and views may be added while it runs.
///
/// # Example
/// `examples/largest_transfer.rs` keeps the largest transfer of each token, and runs.
#[async_trait]
pub trait Projection: Send + Sync {
    /// Its name in `projections` and `checkpoints`: 1 to 48 of `a` to `z`, digits and `_`.
    fn name(&self) -> &str;

    /// The tables it owns, with their schema (`public.largest`); in the order in which [`prepare`](Projection::prepare)
    /// made them.
    fn tables(&self) -> Vec<String>;

    /// The kind of chain it is about; None, the default, means every chain. Known to the database from the first start on
    /// that has such a chain.
    fn kind(&self) -> Option<Kind> {
        None
    }

    /// What its state is made by. Another text than before has the projection emptied and applied again from its start.
    fn version(&self) -> String {
        "1".to_owned()
    }

    /// What triggers on its tables go by; kept in `projections.settings`, written at every start if it is something else by
    /// then. None, the default, leaves alone what is there.
    fn settings(&self) -> Option<Value> {
        None
    }

    /// Makes its tables where they are missing; called at every start, before they are tracked.
    async fn prepare(&self, _store: &Store) -> Result<(), StoreError> {
        Ok(())
    }

    /// Whether a rebuild goes beside the live tables, which readers keep until only what differs is written: its statements
    /// name its tables without their schema. False by default: the tables are emptied and filled again, in one transaction
    /// as well.
    fn builds_beside(&self) -> bool {
        false
    }

    /// Whether events say nothing to it that are stored while their contract is being caught up; it must then be told by
    /// other means (`replay`) when they do. False by default.
    fn ignores_catching_up(&self) -> bool {
        false
    }

    /// Writes what follows from one block. Called once for each block of every chain, in order.
    async fn apply(&self, block: &BlockTransaction<'_>) -> Result<(), BlockError>;

    /// Writes what follows from one block, or from several final ones, in one transaction. By default each of them is
    /// [applied](Projection::apply) by itself. Worth writing where rows can be read and written once for all blocks: what
    /// stands in the tables in the end must be the same for every cut of the same blocks into ranges.
    ///
    /// # Errors
    /// Should name the block ([`BlockError::at`]). A range that fails is rolled back and tried in halves, down to the block.
    async fn apply_range(&self, range: &RangeTransaction<'_>) -> Result<(), BlockError> {
        for block in range.each() {
            self.apply(&block).await.map_err(|error| error.at(block.block()))?;
        }
        Ok(())
    }
}
