//! A transaction of the processor: it begins a chain, undoes, applies, or builds the state again.

use tokio_postgres::{Row, Transaction};

use super::{
    ApplyStatements, Balance, Changes, Keys, ReorgNote, Reset, Run, Statements, StoreError, Undone, apply, balances_of,
    count,
};
use crate::chain::decide::Base;
use crate::chain::{BlockRef, ChainId, Height};
use crate::store::Prepared;
use crate::store::greeting::alive_during;

/// Undo, then apply, all or nothing. Dropped without a commit it is rolled back.
#[allow(missing_debug_implementations)]
pub struct Tx<'a> {
    pub(super) tx: Transaction<'a>,
    pub(super) statements: &'a Statements,
    /// Once the state is built beside the live tables: what writes to those that it is built in.
    beside: Option<ApplyStatements>,
    /// The same for tracked tables: statements prepared under their names mean those.
    pub(super) tables_beside: Option<Prepared>,
    pub(super) chain: ChainId,
    pub(super) projection: String,
    /// The checkpoint as this transaction leaves it so far.
    pub base: Base,
}

impl<'a> Tx<'a> {
    pub(super) fn new(
        tx: Transaction<'a>,
        statements: &'a Statements,
        chain: ChainId,
        projection: &str,
        base: Base,
    ) -> Tx<'a> {
        let projection = projection.to_owned();
        Tx { tx, statements, beside: None, tables_beside: None, chain, projection, base }
    }

    /// Holds the ancestor until the end. False: someone is changing it, or has.
    pub async fn hold(&self, block: &BlockRef) -> Result<bool, StoreError> {
        let row = self
            .tx
            .query_opt(&self.statements.hold_block, &[&self.chain.0, &block.height.to_sql(), &block.hash.as_str()])
            .await?;
        Ok(row.is_some())
    }

    /// Takes the state back to `ancestor`; None means to before the opening balances.
    pub async fn undo_to(
        &mut self,
        ancestor: Option<&BlockRef>,
        redo_from: Option<Height>,
    ) -> Result<Undone, StoreError> {
        // Below -1, where opening balances may stand.
        let above = ancestor.map_or(-2, |a| a.height.to_sql());
        let height = ancestor.map(|a| a.height.to_sql());
        let hash = ancestor.map(|a| a.hash.as_str());
        let row = self
            .tx
            .query_one(
                &self.statements.undo,
                &[
                    &self.chain.0,
                    &self.projection,
                    &self.base.seq,
                    &above,
                    &height,
                    &hash,
                    &height,
                    &redo_from.map(Height::to_sql),
                ],
            )
            .await?;
        self.undone(&row, ancestor)
    }

    /// Takes the time limit off this transaction's statements: a rebuild takes as long as it takes.
    pub async fn unlimited(&self) -> Result<(), StoreError> {
        Ok(self.tx.batch_execute("set local statement_timeout = 0").await?)
    }

    /// From here on blocks are applied from nothing, in tables of this transaction's own; `balances` and its history stand
    /// as they are until [`Tx::replace_by_built`].
    pub async fn build_beside(&mut self) -> Result<Undone, StoreError> {
        self.unlimited().await?;
        let row =
            self.tx.query_one(&self.statements.begin_again, &[&self.chain.0, &self.projection, &self.base.seq]).await?;
        self.base = Base { seq: row.try_get("seq")?, block: None };
        self.tx.batch_execute("select build_beside()").await?;
        self.beside = Some(ApplyStatements::prepare(&self.tx).await?);
        Ok(Undone { keys: 0, restored: 0, changes: 0, blocks: count(&row, "blocks")? })
    }

    /// Makes the live tables what was built beside them. Returns how many balances differed; 0 if nothing was.
    pub async fn replace_by_built(&mut self) -> Result<u64, StoreError> {
        if self.beside.take().is_none() {
            return Ok(0);
        }
        let row = self.tx.query_one("select replace_by_built($1)", &[&self.chain.0]).await?;
        Ok(row.get::<_, i64>(0).unsigned_abs())
    }

    fn undone(&mut self, row: &Row, ancestor: Option<&BlockRef>) -> Result<Undone, StoreError> {
        self.base = Base { seq: row.try_get("seq")?, block: ancestor.cloned() };
        Ok(Undone {
            keys: count(row, "keys")?,
            restored: count(row, "restored")?,
            changes: count(row, "changes")?,
            blocks: count(row, "blocks")?,
        })
    }

    fn applying(&self) -> &ApplyStatements {
        self.beside.as_ref().unwrap_or(&self.statements.apply)
    }

    /// Writes the opening balances as changes of the height before `start`.
    pub async fn open_balances(&mut self, start: Height) -> Result<u64, StoreError> {
        let at = start.to_sql() - 1;
        let row = self.tx.query_one(&self.applying().open_balances, &[&self.chain.0, &at]).await?;
        let opened = row.get::<_, i64>(0).unsigned_abs();
        // Built beside, they are told if they differ.
        if opened > 0 && self.beside.is_none() {
            let sql = "select tell_opened($1, $2, $3)";
            let told = self.tx.query_one(sql, &[&self.chain.0, &self.projection, &at]).await?;
            self.base.seq = told.try_get::<_, Option<i64>>(0)?.unwrap_or(self.base.seq);
        }
        Ok(opened)
    }

    /// Applies a run on top. False: the fence did not hold; roll back and look again.
    pub async fn apply(&mut self, run: &Run, changes: &Changes) -> Result<bool, StoreError> {
        let seq = apply(&self.tx, self.applying(), self.chain, &self.projection, run, changes).await?;
        if let Some(seq) = seq {
            self.base = Base { seq, block: Some(run.last().clone()) };
        }
        Ok(seq.is_some())
    }

    /// The balances of these keys as they stand in this transaction.
    pub async fn balances_of(&self, keys: &Keys) -> Result<Vec<Balance>, StoreError> {
        balances_of(&self.tx, &self.applying().balances_of_keys, self.chain, keys).await
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

    /// Awaits something that is not said on this connection, with signs of life in between: the server ends a transaction
    /// that says nothing for nine seconds, so that a process that stands still holds up nobody.
    pub async fn hold_during<T>(&self, other: impl Future<Output = T>) -> T {
        alive_during(self.tx.client(), other).await
    }

    /// Makes it so. Returns the checkpoint as it is from then on.
    pub async fn commit(self) -> Result<Base, StoreError> {
        let Reset { names, settings, alone } = &self.statements.reset;
        self.tx.execute(alone, &[names, settings]).await?;
        self.tx.commit().await?;
        Ok(self.base)
    }
}
