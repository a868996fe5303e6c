//! The transaction that goes from one branch to another, begins a chain, or makes its state anew.

use tokio_postgres::{Row, Transaction};

use super::{Applied, ApplyBlock, ApplyStatements, ReorgNote, Statements, StoreError, Undone, apply, count};
use crate::chain::{BlockRef, ChainId, Height};
use crate::store::Prepared;

/// A reorg transaction: undo, then apply, all or nothing. Dropped without a commit it is rolled back.
#[allow(missing_debug_implementations)]
pub struct Switch<'a> {
    pub(super) tx: Transaction<'a>,
    pub(super) statements: &'a Statements,
    /// Once the state is built beside the live tables: what writes to those that it is built in.
    beside: Option<ApplyStatements>,
    /// The same for tracked tables: statements prepared under their names mean those.
    pub(super) tables_beside: Option<Prepared>,
    pub(super) chain: ChainId,
    pub(super) projection: String,
    pub(super) seq: i64,
    /// As it stands now that the checkpoint is held.
    pub redo_from: Option<Height>,
}

impl<'a> Switch<'a> {
    pub(super) fn new(
        tx: Transaction<'a>,
        statements: &'a Statements,
        chain: ChainId,
        projection: &str,
        seq: i64,
        redo_from: Option<Height>,
    ) -> Switch<'a> {
        let projection = projection.to_owned();
        Switch { tx, statements, beside: None, tables_beside: None, chain, projection, seq, redo_from }
    }

    /// Marks this place, which [`back_to`](Switch::back_to) returns to.
    pub async fn mark(&self) -> Result<i64, StoreError> {
        self.tx.batch_execute("savepoint marked").await?;
        Ok(self.seq)
    }

    /// Takes everything back to the place marked last, which is marked still. `seq`: what it was there.
    pub async fn back_to(&mut self, seq: i64) -> Result<(), StoreError> {
        self.tx.batch_execute("rollback to savepoint marked").await?;
        self.seq = seq;
        Ok(())
    }

    /// Holds the ancestor until the end. False: someone is changing it, or has.
    pub async fn hold(&self, block: &BlockRef) -> Result<bool, StoreError> {
        let row = self
            .tx
            .query_opt(&self.statements.hold_block, &[&self.chain.0, &block.height.to_sql(), &block.hash.as_str()])
            .await?;
        Ok(row.is_some())
    }

    /// Takes the state back to `ancestor` (none: to before the opening balances), applied through `through`.
    pub async fn undo_to(
        &mut self,
        ancestor: Option<&BlockRef>,
        through: Option<Height>,
        redo_from: Option<Height>,
    ) -> Result<Undone, StoreError> {
        // Index lookups in both directions; the statistics of a moment ago must not make this a scan.
        self.tx.batch_execute("set local enable_nestloop = on; set local enable_hashjoin = off").await?;
        // Below -1, where opening balances may stand.
        let above = through.map_or(-2, Height::to_sql);
        let height = ancestor.map(|a| a.height.to_sql());
        let hash = ancestor.map(|a| a.hash.as_str());
        let row = self
            .tx
            .query_one(
                &self.statements.undo,
                &[
                    &self.chain.0,
                    &self.projection,
                    &self.seq,
                    &above,
                    &height,
                    &hash,
                    &through.map(Height::to_sql),
                    &redo_from.map(Height::to_sql),
                ],
            )
            .await?;
        self.tx.batch_execute("set local enable_nestloop = off; set local enable_hashjoin = on").await?;
        self.undone(&row)
    }

    /// Takes the time limit off this transaction's statements: a rebuild takes as long as it takes.
    pub async fn unlimited(&self) -> Result<(), StoreError> {
        Ok(self.tx.batch_execute("set local statement_timeout = 0").await?)
    }

    /// From here on blocks are applied from nothing, in tables of this transaction's own; `balances` and its history stand
    /// as they are until [`Switch::replace_by_built`].
    pub async fn build_beside(&mut self) -> Result<Undone, StoreError> {
        self.unlimited().await?;
        let row =
            self.tx.query_one(&self.statements.begin_again, &[&self.chain.0, &self.projection, &self.seq]).await?;
        self.seq = row.try_get("seq")?;
        self.tx.batch_execute("select build_beside()").await?;
        self.beside = Some(ApplyStatements::prepare(&self.tx).await?);
        Ok(Undone { seq: self.seq, keys: 0, restored: 0, changes: 0, blocks: count(&row, "blocks")? })
    }

    /// Makes the live tables what was built beside them. Returns how many balances differed; 0 if nothing was.
    pub async fn replace_by_built(&mut self) -> Result<u64, StoreError> {
        if self.beside.take().is_none() {
            return Ok(0);
        }
        let row = self.tx.query_one("select replace_by_built($1)", &[&self.chain.0]).await?;
        Ok(row.get::<_, i64>(0).unsigned_abs())
    }

    fn undone(&mut self, row: &Row) -> Result<Undone, StoreError> {
        let undone = Undone {
            seq: row.try_get("seq")?,
            keys: count(row, "keys")?,
            restored: count(row, "restored")?,
            changes: count(row, "changes")?,
            blocks: count(row, "blocks")?,
        };
        self.seq = undone.seq;
        Ok(undone)
    }

    fn applying(&self) -> &ApplyStatements {
        self.beside.as_ref().unwrap_or(&self.statements.apply)
    }

    /// Writes the opening balances as changes of the height before `start`.
    pub async fn open_balances(&self, start: Height) -> Result<u64, StoreError> {
        let at = start.to_sql() - 1;
        let row = self.tx.query_one(&self.applying().open_balances, &[&self.chain.0, &at]).await?;
        Ok(row.get::<_, i64>(0).unsigned_abs())
    }

    /// Applies on top. False: the fence did not hold; roll back and look again.
    pub async fn apply(&mut self, block: &ApplyBlock) -> Result<Option<Applied>, StoreError> {
        let applied = apply(&self.tx, self.applying(), self.chain, &self.projection, self.seq, block).await?;
        if let Some(applied) = applied {
            self.seq = applied.seq;
        }
        Ok(applied)
    }

    /// Writes down what this transaction did.
    pub async fn note_reorg(&self, reorg: &ReorgNote) -> Result<(), StoreError> {
        self.tx
            .query_one(
                &self.statements.note_reorg,
                &[
                    &self.chain.0,
                    &self.projection,
                    &reorg.ancestor.map(Height::to_sql),
                    &(reorg.depth as i64),
                    &reorg.old_tip.height.to_sql(),
                    &reorg.old_tip.hash.as_str(),
                    &reorg.new_tip.as_ref().map(|b| b.height.to_sql()),
                    &reorg.new_tip.as_ref().map(|b| b.hash.as_str()),
                    &(reorg.blocks_undone as i64),
                    &(reorg.blocks_applied as i64),
                    &(reorg.rows_touched as i64),
                    &reorg.duration_ms,
                ],
            )
            .await?;
        Ok(())
    }

    /// Makes it so.
    pub async fn commit(self) -> Result<i64, StoreError> {
        let seq = self.seq;
        self.tx.commit().await?;
        Ok(seq)
    }
}
