//! The vaults that people registered: which are followed, and the blocks that were stored without their events.

use serde_json::{Value, json};
use tokio_postgres::Transaction;

use super::write::{event_rows, index, put_rejects};
use super::{SyncLock, TAKE_TURN};
use crate::chain::{Block, BlockRef, ChainId, Height, Text};
use crate::store::StoreError;

/// A row of `vault_registry`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
pub struct RegisteredVault {
    /// Its address, in canonical text.
    pub address: Text,
    /// First height whose events count; None means all that is stored.
    pub from_height: Option<Height>,
    /// Its events are stored up to here; None means that no block's are.
    pub indexed_through: Option<Height>,
    /// Whether it has once been up to the tip, and counts.
    pub caught_up: bool,
}

/// What a vault and its rounds said in blocks that are stored.
#[derive(Debug)]
pub struct Missed<'a> {
    /// The vault, as it was when this was asked for.
    pub vault: &'a RegisteredVault,
    /// The blocks that hold anything, with that alone; ascending.
    pub blocks: &'a [Block],
    /// There is nothing more up to this block.
    pub through: &'a BlockRef,
}

/// How catching up a vault turned out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaughtUp {
    /// It stands.
    Stored {
        /// Events that were not there before.
        events: u64,
        /// Whether the vault counts now.
        counts: bool,
    },
    /// The stored blocks are others, or somebody changed the vault's row: look again.
    Stale,
}

impl SyncLock {
    /// Adds to stored blocks what is not there yet, in one transaction with the vault's row. A row that is there stays
    /// as it is, and is not told of again.
    pub async fn put_missed(&mut self, missed: &Missed<'_>) -> Result<CaughtUp, StoreError> {
        let chain = self.chain;
        let tx = self.client.transaction().await?;
        // A vault that does not count yet is nothing to the projection of vaults (sql/triggers/10_chain.sql).
        let catching_up = if missed.vault.caught_up { "off" } else { "on" };
        tx.execute("select set_config('ebbtide.catching_up', $1, true)", &[&catching_up]).await?;
        // A projection that is rebuilt holds its blocks for long: what is new at the head does not wait for that.
        tx.batch_execute("set local enable_seqscan = off; set local lock_timeout = '1s'").await?;
        // The writer's turn: the blocks stay what they are until this ends.
        tx.execute(TAKE_TURN, &[&chain.0]).await?;
        if !stand(&tx, chain, missed).await? {
            return Ok(CaughtUp::Stale);
        }
        let transactions = transactions(missed.blocks)?;
        if !transactions.is_empty() {
            let sql = include_str!("../../../sql/queries/put_missed_transactions.sql");
            tx.execute(sql, &[&chain.0, &Value::Array(transactions)]).await?;
        }
        let mut added = 0i64;
        let events = event_rows(missed.blocks)?;
        if !events.is_empty() {
            let sql = include_str!("../../../sql/queries/put_missed_events.sql");
            added = tx.query_one(sql, &[&chain.0, &Value::Array(events)]).await?.try_get(0)?;
        }
        put_rejects(&tx, &self.statements.write.put_rejects, chain, missed.blocks).await?;
        let vault = missed.vault;
        let counts = tx
            .query_opt(
                include_str!("../../../sql/queries/note_caught_up.sql"),
                &[
                    &chain.0,
                    &&*vault.address,
                    &missed.through.height.to_sql(),
                    &vault.from_height.map(Height::to_sql),
                    &vault.indexed_through.map(Height::to_sql),
                ],
            )
            .await?;
        let Some(counts) = counts else { return Ok(CaughtUp::Stale) };
        let counts = counts.try_get(0)?;
        tx.commit().await?;
        Ok(CaughtUp::Stored { events: added.unsigned_abs(), counts })
    }
}

pub(super) fn registered(rows: Value) -> Result<Vec<RegisteredVault>, StoreError> {
    serde_json::from_value(rows).map_err(|error| StoreError::Nonsense { what: format!("vault_registry: {error}") })
}

/// Whether what was read is of the blocks that are stored.
async fn stand(tx: &Transaction<'_>, chain: ChainId, missed: &Missed<'_>) -> Result<bool, StoreError> {
    let read = missed.blocks.iter().map(|block| block.link.block_ref()).chain([missed.through.clone()]);
    let (heights, hashes): (Vec<i64>, Vec<String>) =
        read.map(|block| (block.height.to_sql(), block.hash.as_str().to_owned())).unzip();
    let sql = include_str!("../../../sql/queries/blocks_that_stand.sql");
    let stand: i64 = tx.query_one(sql, &[&chain.0, &heights, &hashes]).await?.try_get(0)?;
    Ok(stand.unsigned_abs() == heights.len() as u64)
}

fn transactions(blocks: &[Block]) -> Result<Vec<Value>, StoreError> {
    let mut rows = Vec::new();
    for block in blocks {
        for tx in &block.transactions {
            rows.push(json!({
                "height": block.link.height.to_sql(), "tx_index": index(tx.tx_index)?, "hash": &*tx.hash,
                "success": tx.success,
            }));
        }
    }
    Ok(rows)
}
