//! Events that were refused: what they are, and how they are tried again.

use serde::Serialize;
use serde_json::Value;

use super::{Store, StoreError};

/// An event that could not be taken in, or not be applied.
#[derive(Debug, Clone, Serialize)]
pub struct RejectedEvent {
    /// The chain's name.
    pub chain: String,
    /// The projection that refused it; `source`: it never got into the chain tables.
    pub projection: String,
    /// Its block's height.
    pub height: i64,
    /// Its block.
    pub block_hash: String,
    /// Its transaction.
    pub tx_index: i64,
    /// Its place.
    pub event_index: i64,
    /// Why: a fixed word.
    pub reason: String,
    /// The event as it came.
    pub raw: Value,
    /// When it was refused.
    pub at: jiff::Timestamp,
}

/// Which refused events; None means any.
#[derive(Debug, Clone, Copy, Default)]
pub struct RejectedFilter<'a> {
    /// Of this chain.
    pub chain: Option<&'a str>,
    /// Refused by this projection, or by `source`.
    pub projection: Option<&'a str>,
    /// For this reason.
    pub reason: Option<&'a str>,
}

/// What a retry set in motion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retried {
    /// Refused events that are tried again.
    pub events: u64,
    /// Their blocks, which are applied again.
    pub blocks: u64,
    /// Those of them that were final already.
    pub final_blocks: u64,
    /// The lowest of them.
    pub lowest: Option<i64>,
    /// Final up to here.
    pub final_height: Option<i64>,
    /// Events among those asked for that the source refused, and their lowest height: those are left alone.
    pub of_source: Option<(u64, i64)>,
}

impl Store {
    /// Refused events in chain order, at most so many, and how many there are.
    ///
    /// # Errors
    /// An unknown chain or projection, or whatever Postgres says.
    pub async fn rejected(&self, of: RejectedFilter<'_>, limit: u32) -> Result<(Vec<RejectedEvent>, u64), StoreError> {
        let client = self.reader().await?;
        check_projection(&client, of.projection).await?;
        let chain = match of.chain {
            Some(chain) => Some(client.query_one("select chain_named($1)", &[&chain]).await?.get::<_, i64>(0)),
            None => None,
        };
        let sql = include_str!("../../sql/queries/rejected_events.sql");
        let rows = client.query(sql, &[&chain, &of.projection, &of.reason, &i64::from(limit)]).await?;
        let matching = rows.first().map_or(0, |row| row.get::<_, i64>("matching").unsigned_abs());
        let events = rows.iter().map(|row| {
            Ok(RejectedEvent {
                chain: row.try_get("chain")?,
                projection: row.try_get("projection")?,
                height: row.try_get("height")?,
                block_hash: row.try_get("block_hash")?,
                tx_index: row.try_get("tx_index")?,
                event_index: row.try_get("event_index")?,
                reason: row.try_get("reason")?,
                raw: row.try_get("raw")?,
                at: row.try_get("at")?,
            })
        });
        Ok((events.collect::<Result<_, StoreError>>()?, matching))
    }

    /// Has the blocks of refused events applied again: of one projection or of all, at one height or at any.
    ///
    /// # Errors
    /// An unknown chain or projection, or whatever Postgres says.
    pub async fn retry_rejected(
        &self,
        chain: &str,
        projection: Option<&str>,
        height: Option<u64>,
    ) -> Result<Retried, StoreError> {
        let mut client = self.connect().await?;
        check_projection(&client, projection).await?;
        let height = height.map(|h| i64::try_from(h).unwrap_or(i64::MAX));
        let tx = client.transaction().await?;
        // The writer's turn (sql/triggers/10_chain.sql), before the blocks are looked at.
        let id: i64 = tx.query_one("select chain_named($1)", &[&chain]).await?.get(0);
        tx.execute("update chains set writes = writes + 1 where chain_id = $1", &[&id]).await?;
        let sql = include_str!("../../sql/queries/retry_rejected.sql");
        let raised = tx.query_one(sql, &[&id, &projection, &height]).await?;
        let sql = "select count(*), min(height) from rejected_events where chain_id = $1 and projection = 'source' \
                   and coalesce($2::text, 'source') = 'source' and ($3::bigint is null or height = $3)";
        let left = tx.query_one(sql, &[&id, &projection, &height]).await?;
        tx.commit().await?;
        let number = |column: &str| -> Result<u64, StoreError> { Ok(raised.try_get::<_, i64>(column)?.unsigned_abs()) };
        let lowest_left: Option<i64> = left.try_get(1)?;
        Ok(Retried {
            events: number("events")?,
            blocks: number("blocks")?,
            final_blocks: number("final_blocks")?,
            lowest: raised.try_get("lowest")?,
            final_height: raised.try_get("final_height")?,
            of_source: lowest_left.map(|lowest| (left.get::<_, i64>(0).unsigned_abs(), lowest)),
        })
    }
}

/// A word that names no projection would match nothing, which looks like good news.
async fn check_projection(client: &tokio_postgres::Client, projection: Option<&str>) -> Result<(), StoreError> {
    let Some(name) = projection.filter(|name| *name != "source") else { return Ok(()) };
    match client.query_opt("select from projections where name = $1", &[&name]).await? {
        Some(_) => Ok(()),
        None => {
            Err(StoreError::Refused { reason: format!("there is no projection named {name} (`source`: the source)") })
        }
    }
}
