//! Projections whose tables triggers keep undo for: SQL functions, and code that writes through a [`RangeTransaction`].

use std::pin::pin;

use futures::try_join;
use serde_json::Value;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, Statement};

use super::{LedgerWrite, RangeTransaction, Reset, Run, Tx, Undone, count, height};
use crate::chain::decide::Base;
use crate::chain::{BlockRef, ChainId, Hash, Height, Kind};
use crate::store::{Prepared, Store, StoreError};

/// A projection as `projections` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectionRow {
    /// Its name.
    pub name: String,
    /// Whether an SQL function applies it; otherwise the program does.
    pub is_function: bool,
    /// The projection it follows in one transaction.
    pub after: Option<String>,
    /// The one chain it concerns; None means every chain.
    pub chain: Option<ChainId>,
    /// The kind of chain it concerns; None means every kind.
    pub kind: Option<Kind>,
}

/// Statements of [`LedgerWrite`] for tracked tables.
#[derive(Debug)]
pub(super) struct TrackedStatements {
    apply_sql_blocks: Statement,
    /// The same as a whole transaction, after which the session is what it was.
    apply_and_reset: Statement,
    follow_block: Statement,
    undo_followers: Statement,
    leave_followers_behind: Statement,
    enter_blocks: Statement,
    leave_block: Statement,
    /// Statements of projections' own code.
    prepared: Prepared,
    undo_blocks: Statement,
    empty_projection: Statement,
}

impl TrackedStatements {
    pub(super) async fn prepare(client: &Client) -> Result<TrackedStatements, StoreError> {
        let (apply_sql_blocks, apply_and_reset, follow_block, leave_followers_behind, undo_followers) = try_join!(
            client.prepare("select apply_sql_blocks($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"),
            client.prepare(
                "select apply_sql_blocks($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13), reset_session($14, $15)"
            ),
            client.prepare("select follow_block($1, $2, $3, $4, $5, $6, $7, $8, $9)"),
            client.prepare("select leave_followers_behind($1, $2, $3)"),
            client.prepare("select undo_followers($1, $2, $3, $4, $5, $6)"),
        )?;
        let (enter_blocks, leave_block, undo_blocks, empty_projection) = try_join!(
            client.prepare(include_str!("../../../sql/queries/enter_blocks.sql")),
            // Sent under the path of the block, which finds whatever else has these names.
            client.prepare("select ebbtide.leave_block($1), pg_catalog.set_config('search_path', 'ebbtide', true)"),
            client.prepare("select * from undo_blocks($1, $2, $3, $4, $5, $6, $7, $8)"),
            client.prepare("select * from empty_projection($1, $2, $3, $4, $5, $6)"),
        )?;
        Ok(TrackedStatements {
            apply_sql_blocks,
            apply_and_reset,
            follow_block,
            undo_followers,
            leave_followers_behind,
            enter_blocks,
            leave_block,
            prepared: Prepared::default(),
            undo_blocks,
            empty_projection,
        })
    }
}

/// Moves a checkpoint over a run, with what more the statement takes.
async fn move_over<C: tokio_postgres::GenericClient>(
    client: &C,
    statement: &Statement,
    (chain, projection): (ChainId, &str),
    run: &Run,
    more: &[&(dyn ToSql + Sync)],
) -> Result<Option<i64>, StoreError> {
    let Run { base, fence, .. } = run;
    let (base_height, base_hash) = super::columns(base);
    let (start, records) = (run.start.to_sql(), run.journals);
    let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![
        &chain.0,
        &projection,
        &base.seq,
        &base_height,
        &base_hash,
        &fence.heights,
        &fence.hashes,
        &fence.revisions,
        &fence.complete_to,
        &start,
        &records,
        &run.digest,
    ];
    parameters.extend(more);
    Ok(client.query_one(statement, &parameters).await?.try_get(0)?)
}

impl LedgerWrite {
    /// Applies a run of an SQL projection, block by block, in a transaction of its own; may be sent before earlier ones were
    /// answered. False: the fence did not hold, nothing was written.
    pub async fn apply_function(&self, chain: ChainId, projection: &str, run: &Run) -> Result<bool, StoreError> {
        let Reset { names, settings, .. } = &self.statements.reset;
        let statement = &self.statements.tracked.apply_and_reset;
        let more: [&(dyn ToSql + Sync); 3] = [&run.on_replica, names, settings];
        let seq = move_over(&self.client, statement, (chain, projection), run, &more).await?;
        Ok(seq.is_some())
    }

    /// Prunes undo up to the horizon, if the state still is the one compared at `seq`.
    pub async fn prune_undo(
        &self,
        chain: ChainId,
        projection: &str,
        horizon: Height,
        seq: i64,
    ) -> Result<(), StoreError> {
        self.client
            .execute("select prune_undo($1, $2, $3, $4)", &[&chain.0, &projection, &horizon.to_sql(), &seq])
            .await?;
        Ok(())
    }

    /// Whether this session has a replica of the balances at a height, after the block of this hash (none: before the first one).
    pub async fn replica_stands(
        &self,
        chain: ChainId,
        (height, hash): (i64, Option<&Hash>),
    ) -> Result<bool, StoreError> {
        let parameters: [&(dyn ToSql + Sync); 3] = [&chain.0, &height, &hash.map(Hash::as_str)];
        Ok(self.client.query_one("select replica_stands($1, $2, $3)", &parameters).await?.try_get(0)?)
    }

    /// Makes it so, in a transaction of its own: that takes as long as there are accounts, which no limit for a statement knows.
    /// False: it was not filled, because `stop` came first.
    pub async fn fill_replica(
        &mut self,
        chain: ChainId,
        (height, hash): (i64, Option<&Hash>),
        stop: impl Future<Output = ()>,
    ) -> Result<bool, StoreError> {
        let parameters: [&(dyn ToSql + Sync); 3] = [&chain.0, &height, &hash.map(Hash::as_str)];
        let tx = self.client.transaction().await?;
        tx.batch_execute("set local statement_timeout = 0").await?;
        let filled = {
            let mut filling = pin!(tx.execute("select fill_replica($1, $2, $3)", &parameters));
            tokio::select! {
                filled = &mut filling => filled.map(drop),
                // Dropped alone, the server would go on with it.
                () = stop => {
                    tx.cancel_token().cancel_query(self.store.tls.clone()).await?;
                    let _ = filling.await;
                    return Ok(false);
                }
            }
        };
        filled?;
        tx.commit().await?;
        Ok(true)
    }

    /// Drops this session's replica of the balances, if it has one.
    pub async fn drop_replica(&self) -> Result<(), StoreError> {
        Ok(self.client.batch_execute("select drop_replica()").await?)
    }

    /// Takes the note of a failure away, if the state still is the one that was looked at: nothing is left that fails.
    pub async fn forget_failure(&self, chain: ChainId, projection: &str, seq: i64) -> Result<(), StoreError> {
        self.client
            .execute(
                "update checkpoints set failed_height = null, failed_reason = null, failures = 0, updated_at = now() \
                 where chain_id = $1 and projection = $2 and seq = $3 and failed_reason is not null",
                &[&chain.0, &projection, &seq],
            )
            .await?;
        Ok(())
    }
}

impl Tx<'_> {
    /// Fences a block of a projection with tracked tables, or several final ones, and lets its tables be written. False: the
    /// fence did not hold; roll back and look again.
    pub async fn begin_blocks(&mut self, run: &Run) -> Result<bool, StoreError> {
        let tracking = match (&self.tables_beside, run.journals) {
            (None, true) if run.blocks.len() == 1 => "on",
            (None, false) => "final",
            (Some(_), false) => "beside",
            _ => return Err(StoreError::Nonsense { what: "undo of several blocks, or of tables beside".to_owned() }),
        };
        let height = run.last().height.to_sql();
        self.move_over(&self.statements.tracked.enter_blocks, run, &[&height, &tracking]).await
    }

    async fn move_over(
        &mut self,
        statement: &Statement,
        run: &Run,
        more: &[&(dyn ToSql + Sync)],
    ) -> Result<bool, StoreError> {
        let seq = move_over(&self.tx, statement, (self.chain, &self.projection), run, more).await?;
        if let Some(seq) = seq {
            self.base = Base { seq, block: Some(run.last().clone()) };
        }
        Ok(seq.is_some())
    }

    /// The blocks begun by [`begin_blocks`](Self::begin_blocks), to write them.
    pub fn range<'a>(&'a self, blocks: &'a [BlockRef]) -> RangeTransaction<'a> {
        let prepared = self.tables_beside.as_ref().unwrap_or(&self.statements.tracked.prepared);
        RangeTransaction { tx: &self.tx, prepared, chain: self.chain, projection: &self.projection, blocks }
    }

    /// Ends the blocks: nothing else may have been written.
    pub async fn leave_block(&self) -> Result<(), StoreError> {
        self.tx.execute(&self.statements.tracked.leave_block, &[&self.projection]).await?;
        Ok(())
    }

    /// Applies a run of an SQL projection on top. False: the fence did not hold.
    pub async fn apply_function(&mut self, run: &Run) -> Result<bool, StoreError> {
        self.move_over(&self.statements.tracked.apply_sql_blocks, run, &[&run.on_replica]).await
    }

    /// After a block of this projection: the same block for all that follow it and stand where it stood before.
    pub async fn follow_block(&self, before: Option<&BlockRef>, run: &Run) -> Result<(), StoreError> {
        let Some((block, revision)) = run.blocks.last() else { return Ok(()) };
        self.tx
            .execute(
                &self.statements.tracked.follow_block,
                &[
                    &self.chain.0,
                    &self.projection,
                    &before.map(|b| b.height.to_sql()),
                    &before.map(|b| b.hash.as_str()),
                    &block.height.to_sql(),
                    &block.hash.as_str(),
                    revision,
                    &run.start.to_sql(),
                    &run.journals,
                ],
            )
            .await?;
        Ok(())
    }

    /// After an undo of this projection: the same for all that follow it and stood where it stood.
    pub async fn undo_followers(&self, from: &BlockRef, ancestor: Option<&BlockRef>) -> Result<(), StoreError> {
        self.tx
            .execute(
                &self.statements.tracked.undo_followers,
                &[
                    &self.chain.0,
                    &self.projection,
                    &from.height.to_sql(),
                    &from.hash.as_str(),
                    &ancestor.map(|b| b.height.to_sql()),
                    &ancestor.map(|b| b.hash.as_str()),
                ],
            )
            .await?;
        Ok(())
    }

    /// Before an undo that takes nobody along: whoever follows and stands above the ancestor goes back by itself.
    pub async fn leave_followers_behind(&self, ancestor: Option<&BlockRef>) -> Result<(), StoreError> {
        let to = ancestor.map(|b| b.height.to_sql());
        let statement = &self.statements.tracked.leave_followers_behind;
        self.tx.execute(statement, &[&self.chain.0, &self.projection, &to]).await?;
        Ok(())
    }

    /// Restores the tracked tables to what they were after `ancestor` (none: before everything).
    pub async fn undo_tables(
        &mut self,
        ancestor: Option<&BlockRef>,
        redo_from: Option<Height>,
    ) -> Result<Undone, StoreError> {
        let (from_height, from_hash) = super::columns(&self.base);
        let height = ancestor.map(|a| a.height.to_sql());
        let hash = ancestor.map(|a| a.hash.as_str());
        let row = self
            .tx
            .query_one(
                &self.statements.tracked.undo_blocks,
                &[
                    &self.chain.0,
                    &self.projection,
                    &self.base.seq,
                    &from_height,
                    &from_hash,
                    &height,
                    &hash,
                    &redo_from.map(Height::to_sql),
                ],
            )
            .await?;
        self.tables_undone(&row, ancestor)
    }

    /// Empties the tracked tables of this chain. `beside`: they stand as they are; final blocks are applied, from nothing,
    /// in tables of this transaction's own, until [`Tx::replace_tables_by_built`].
    pub async fn empty_tables(&mut self, beside: bool) -> Result<Undone, StoreError> {
        self.unlimited().await?;
        let statement = &self.statements.tracked.empty_projection;
        let (height, hash) = super::columns(&self.base);
        let row = self
            .tx
            .query_one(statement, &[&self.chain.0, &self.projection, &self.base.seq, &height, &hash, &beside])
            .await?;
        self.tables_beside = beside.then(Prepared::default);
        self.tables_undone(&row, None)
    }

    /// Makes the live tables what was built beside them. Returns how many rows differed; 0 if nothing was.
    pub async fn replace_tables_by_built(&mut self) -> Result<u64, StoreError> {
        if self.tables_beside.take().is_none() {
            return Ok(0);
        }
        let sql = "select replace_tables_by_built($1, $2)";
        let row = self.tx.query_one(sql, &[&self.projection, &self.chain.0]).await?;
        Ok(row.get::<_, i64>(0).unsigned_abs())
    }

    fn tables_undone(&mut self, row: &Row, ancestor: Option<&BlockRef>) -> Result<Undone, StoreError> {
        let Some(seq) = row.try_get::<_, Option<i64>>("seq")? else {
            let what = format!("the checkpoint of {}, which was held, stands on another block", self.projection);
            return Err(StoreError::Nonsense { what });
        };
        let restored = count(row, "restored")?;
        self.base = Base { seq, block: ancestor.cloned() };
        Ok(Undone { keys: restored, restored, changes: restored, blocks: count(row, "blocks")? })
    }

    /// Tells whoever listens that a projection was built again.
    pub async fn note_rebuilt(&self, tip: Option<&BlockRef>, reason: &str) -> Result<(), StoreError> {
        self.tx
            .execute(
                "select note_rebuilt($1, $2, $3, $4, $5)",
                &[
                    &self.chain.0,
                    &self.projection,
                    &tip.map(|t| t.height.to_sql()),
                    &tip.map(|t| t.hash.as_str()),
                    &reason,
                ],
            )
            .await?;
        Ok(())
    }
}

impl Store {
    /// Makes a projection of the program known and its tables reorg-safe; nothing changes where that was done before.
    ///
    /// # Errors
    /// Tables that cannot be tracked, or others than those it had, with the remedy.
    pub async fn register_projection(
        &self,
        name: &str,
        tables: &[String],
        kind: Option<Kind>,
        ignores_catching_up: bool,
    ) -> Result<(), StoreError> {
        let kind = kind.map(Kind::as_str);
        let sql = "select register_projection($1, $2, $3, $4)";
        self.reader().await?.execute(sql, &[&name, &tables, &kind, &ignores_catching_up]).await?;
        Ok(())
    }

    /// Writes what a projection's triggers go by, if it is something else than before.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn keep_settings(&self, projection: &str, settings: &Value) -> Result<(), StoreError> {
        let sql = "update projections set settings = $2 where name = $1 and settings <> $2";
        self.reader().await?.execute(sql, &[&projection, settings]).await?;
        Ok(())
    }

    /// A connection of its own for a projection's preparations, such as making its tables.
    pub async fn preparing(&self) -> Result<Client, StoreError> {
        self.connect().await
    }
}

impl super::LedgerRead {
    /// All projections, by name.
    pub async fn projections(&self) -> Result<Vec<ProjectionRow>, StoreError> {
        let sql = "select name, apply is not null, after, chain_id, kind from projections order by name";
        let rows = self.client.query(sql, &[]).await?;
        rows.iter()
            .map(|row| {
                Ok(ProjectionRow {
                    name: row.try_get(0)?,
                    is_function: row.try_get(1)?,
                    after: row.try_get(2)?,
                    chain: row.try_get::<_, Option<i64>>(3)?.map(ChainId),
                    kind: row.try_get::<_, Option<&str>>(4)?.and_then(Kind::parse),
                })
            })
            .collect()
    }

    /// Shows how far a rebuild has come; it works in one transaction, which nobody else can look into.
    pub async fn rebuild_is_at(
        &self,
        chain: ChainId,
        projection: &str,
        reason: &str,
        heights: (Height, Height, Height),
    ) -> Result<(), StoreError> {
        let (from, at, to) = heights;
        self.client
            .execute(
                "insert into rebuilds (chain_id, projection, reason, from_height, at_height, to_height) \
                 values ($1, $2, $3, $4, $5, $6) on conflict (chain_id, projection) do update \
                 set reason = excluded.reason, at_height = excluded.at_height, to_height = excluded.to_height",
                &[&chain.0, &projection, &reason, &from.to_sql(), &at.to_sql(), &to.to_sql()],
            )
            .await?;
        Ok(())
    }

    /// Shows that a follower on its own way waits for a copy of the balances as they stood at a height.
    pub async fn copies_balances(&self, chain: ChainId, projection: &str, at: i64) -> Result<(), StoreError> {
        self.client
            .execute(
                "insert into rebuilds (chain_id, projection, reason, from_height, at_height, to_height) \
                 values ($1, $2, 'the balances of that height are being copied', $3, $3, $3) \
                 on conflict (chain_id, projection) do update \
                 set reason = excluded.reason, at_height = excluded.at_height, to_height = excluded.to_height",
                &[&chain.0, &projection, &at],
            )
            .await?;
        Ok(())
    }

    /// The rebuild is over, one way or the other.
    pub async fn rebuild_ended(&self, chain: ChainId, projection: &str) -> Result<(), StoreError> {
        let sql = "delete from rebuilds where chain_id = $1 and projection = $2";
        self.client.execute(sql, &[&chain.0, &projection]).await?;
        Ok(())
    }
}

/// The checkpoint's columns that only tracked projections use.
pub(super) fn failed(row: &Row) -> Result<Option<(Option<Height>, String)>, StoreError> {
    let reason: Option<String> = row.try_get("failed_reason")?;
    reason.map(|reason| Ok((height(row, "failed_height")?, reason))).transpose()
}
