//! What operators ask for: where things stand, and the steering functions.

use serde::Serialize;

use super::{Store, StoreError};

/// Where one projection stands on one chain.
#[derive(Debug, Clone, Serialize)]
pub struct Standing {
    /// The chain's name.
    pub chain: String,
    /// The projection.
    pub projection: String,
    /// The source's head; None means no source follows the chain.
    pub head_height: Option<i64>,
    /// Our newest block.
    pub tip_height: Option<i64>,
    /// Applied up to here.
    pub applied_height: Option<i64>,
    /// The block applied last.
    pub applied_hash: Option<String>,
    /// Final up to here.
    pub final_height: Option<i64>,
    /// Blocks stored or announced and not applied.
    pub lag_blocks: i64,
    /// Applied again from here.
    pub redo_from: Option<i64>,
    /// Paused by an operator.
    pub paused: bool,
    /// Why it does not go on.
    pub halted_reason: Option<String>,
    /// The block that cannot be applied; it is tried again.
    pub failed_height: Option<i64>,
    /// Why not, its name included.
    pub failed_reason: Option<String>,
    /// How often in a row.
    pub failures: i64,
    /// Being applied again from the start; readers keep the old state until that is done.
    pub rebuilding: Option<Rebuilding>,
    /// Reorganisations so far.
    pub reorgs: i64,
    /// Events that were refused.
    pub rejected_events: i64,
}

/// How far a rebuild has come.
#[derive(Debug, Clone, Serialize)]
pub struct Rebuilding {
    /// Why.
    pub reason: String,
    /// First height of the state.
    pub from_height: i64,
    /// Applied up to here, for nobody to see yet.
    pub at_height: i64,
    /// Where it ends.
    pub to_height: i64,
    /// When it was first told of.
    pub started_at: jiff::Timestamp,
}

impl Standing {
    /// Whether it goes on only after a person did something.
    pub fn needs_a_person(&self) -> bool {
        self.halted_reason.is_some() || self.failed_reason.is_some()
    }
}

impl Store {
    /// Whether the database answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.reader().await?.batch_execute("select 1").await?;
        Ok(())
    }

    /// Where every projection of every chain stands.
    pub async fn standing(&self) -> Result<Vec<Standing>, StoreError> {
        let rows = self.reader().await?.query(include_str!("../../sql/queries/standing.sql"), &[]).await?;
        rows.iter()
            .map(|row| {
                Ok(Standing {
                    chain: row.try_get("chain")?,
                    projection: row.try_get("projection")?,
                    head_height: row.try_get("head_height")?,
                    tip_height: row.try_get("tip_height")?,
                    applied_height: row.try_get("applied_height")?,
                    applied_hash: row.try_get("applied_hash")?,
                    final_height: row.try_get("final_height")?,
                    lag_blocks: row.try_get("lag_blocks")?,
                    redo_from: row.try_get("redo_from")?,
                    paused: row.try_get("paused")?,
                    halted_reason: row.try_get("halted_reason")?,
                    failed_height: row.try_get("failed_height")?,
                    failed_reason: row.try_get("failed_reason")?,
                    failures: row.try_get("failures")?,
                    rebuilding: match row.try_get("rebuild_reason")? {
                        Some(reason) => Some(Rebuilding {
                            reason,
                            from_height: row.try_get("from_height")?,
                            at_height: row.try_get("at_height")?,
                            to_height: row.try_get("to_height")?,
                            started_at: row.try_get("started_at")?,
                        }),
                        None => None,
                    },
                    reorgs: row.try_get("reorgs")?,
                    rejected_events: row.try_get("rejected_events")?,
                })
            })
            .collect()
    }

    /// Has blocks applied again from a height on.
    pub async fn replay(&self, chain: &str, from: u64, projection: Option<&str>) -> Result<(), StoreError> {
        let from = i64::try_from(from).unwrap_or(i64::MAX);
        self.reader().await?.execute("select replay($1, $2, $3)", &[&chain, &from, &projection]).await?;
        Ok(())
    }

    /// Stops projections where they are, or takes them to a height.
    pub async fn pause(&self, chain: &str, projection: Option<&str>, at: Option<u64>) -> Result<(), StoreError> {
        let at = at.map(|at| i64::try_from(at).unwrap_or(i64::MAX));
        self.reader().await?.execute("select pause($1, $2, $3)", &[&chain, &projection, &at]).await?;
        Ok(())
    }

    /// Lets paused and halted projections go on.
    pub async fn resume(&self, chain: &str, projection: Option<&str>) -> Result<(), StoreError> {
        self.reader().await?.execute("select resume($1, $2)", &[&chain, &projection]).await?;
        Ok(())
    }
}
