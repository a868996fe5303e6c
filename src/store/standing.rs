//! Where things stand and who is alive: the facts that the verdict is made from, and the heartbeat.

use std::collections::BTreeMap;

use serde::Serialize;
use tokio_postgres::types::{Json, Type};
use tokio_postgres::{GenericClient, Row};

use super::sessions::Guest;
use super::{Store, StoreError, StoreFault, migrate};
use crate::chain::verdict::{
    Beat, ChainFacts, ChainVerdict, Ended, Facts, Hold, Incomplete, Keeps, NextBlock, ProjectionFacts,
    ProjectionVerdict, Rebuilding, Says, Verdict, judge, judge_database,
};
use crate::chain::{BlockRef, Hash};

/// How a heart speaks to Postgres. A database that needs longer for a look does not answer, as far as one can see; and a lost
/// sign of life is followed by another one within a second, so the disk need not be waited for.
const IMPATIENT: [(&str, &str); 3] =
    [("statement_timeout", "2000"), ("lock_timeout", "1000"), ("synchronous_commit", "off")];

/// A connection of its own for signs of life, and to see how everything is.
#[derive(Debug)]
pub struct Pulse {
    guest: Guest,
}

impl Store {
    /// Opens a connection for signs of life.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn pulse(&self) -> Result<Pulse, StoreError> {
        let mut config = self.config.clone();
        // Told from the connections that work: its statements come by the clock.
        config.application_name("ebbtide heart");
        Ok(Pulse { guest: self.guest(&config, &self.greeting.clone().and(&IMPATIENT)).await? })
    }
}

impl Pulse {
    /// Tells that this process is alive, or how it ended, and what it has to say.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn beat(
        &mut self,
        instance: &str,
        program: &str,
        ended: Option<Ended>,
        says: &Says,
    ) -> Result<(), StoreError> {
        let ended = ended.map(|ended| match ended {
            Ended::Done => "done",
            Ended::Stopped => "stopped",
        });
        let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 4] =
            [(&instance, Type::TEXT), (&program, Type::TEXT), (&ended, Type::TEXT), (&Json(says), Type::JSONB)];
        let tx = self.guest.begin_writing().await?;
        tx.query_typed(include_str!("../../sql/queries/beat.sql"), &parameters).await?;
        Ok(tx.commit().await?)
    }

    /// All that the verdict is made from.
    ///
    /// # Errors
    /// Whatever Postgres says; where somebody holds a lock on what is read, who that is.
    pub async fn facts(&mut self) -> Result<Facts, StoreError> {
        let found = async { facts(&self.guest.begin().await?, None).await }.await;
        self.with_holder(found).await
    }

    /// As [`Store::check_schema`], on this connection.
    ///
    /// # Errors
    /// As [`Store::check_schema`]; where somebody holds a lock on what is read, who that is.
    pub async fn check_schema(&mut self) -> Result<(), StoreError> {
        let checked = async { migrate::check(&self.guest.begin().await?).await }.await;
        self.with_holder(checked).await
    }

    /// Names the one that a statement waited for in vain.
    async fn with_holder<T>(&mut self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        match result {
            Err(error) if error.fault() == StoreFault::Contended => {
                let held = held(&self.guest.begin().await?).await?;
                // What is read waits for nobody who holds no more than rows.
                match held.iter().find(|held| held.hold.keeps == Keeps::All).or(held.first()) {
                    Some(Held { hold, .. }) => Err(StoreError::Held { what: hold.words(), pid: hold.pid }),
                    None => Err(error),
                }
            }
            other => other,
        }
    }

    /// Where every projection of every chain stands, how it is, and what evidence is kept.
    ///
    /// # Errors
    /// As [`Pulse::facts`].
    pub async fn standing(&mut self) -> Result<Vec<Standing>, StoreError> {
        let facts = self.facts().await?;
        let rows = self.guest.begin().await?.query_typed(include_str!("../../sql/queries/evidence.sql"), &[]).await?;
        let mut evidence = BTreeMap::new();
        for row in &rows {
            let of: (String, String) = (row.try_get("chain")?, row.try_get("projection")?);
            evidence.insert(of, (row.try_get("reorgs")?, row.try_get("rejected_events")?, row.try_get("bytes")?));
        }
        let database = judge_database(&facts);
        let mut standings = Vec::new();
        for (n, judged) in judge(&facts).iter().enumerate() {
            let chain = facts.chains.get(n).cloned().unwrap_or_default();
            if chain.projections.is_empty() {
                standings.push(Standing::of_source(&chain, judged, &database));
            }
            for (projection, verdict) in chain.projections.iter().zip(&judged.projections) {
                let of = (judged.chain.clone(), projection.name.clone());
                let counted = evidence.get(&of).copied().unwrap_or_default();
                let of_source = Standing::of_source(&chain, judged, &database);
                standings.push(Standing::of_projection(of_source, projection, verdict, counted));
            }
        }
        Ok(standings)
    }
}

/// All that the verdict is made from, of all chains or of the one of this name.
pub(super) async fn facts<C: GenericClient>(client: &C, chain: Option<&str>) -> Result<Facts, StoreError> {
    let rows = client.query_typed(include_str!("../../sql/queries/standing.sql"), &[(&chain, Type::TEXT)]).await?;
    let mut facts = Facts { beats: beats(client).await?, ..Facts::default() };
    if let Some(row) = rows.first() {
        facts.queue_usage = row.try_get("queue_usage")?;
        facts.is_standby = row.try_get("is_standby")?;
    }
    for row in &rows {
        let name: String = row.try_get("chain")?;
        if facts.chains.last().is_none_or(|last| last.name != name) {
            facts.chains.push(chain_facts(row, name)?);
        }
        if let Some(projection) = projection_facts(row)? {
            facts.chains.last_mut().expect("pushed above").projections.push(projection);
        }
    }
    // Only for what does not move: whose locks and whose rows it waits for.
    let (chains, heights): (Vec<String>, Vec<i64>) = facts.standing_before().unzip();
    if !chains.is_empty() {
        facts.holds = holds(client).await?;
        let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
            [(&chains, Type::TEXT_ARRAY), (&heights, Type::INT8_ARRAY)];
        let rows = client.query_typed(include_str!("../../sql/queries/incomplete.sql"), &parameters).await?;
        for row in &rows {
            facts.incomplete.push(Incomplete {
                chain: row.try_get("chain")?,
                height: row.try_get("height")?,
                announced: row.try_get("announced")?,
                present: row.try_get("present")?,
            });
        }
    }
    Ok(facts)
}

async fn beats<C: GenericClient>(client: &C) -> Result<Vec<Beat>, StoreError> {
    let rows = client.query_typed(include_str!("../../sql/queries/beats.sql"), &[]).await?;
    rows.iter()
        .map(|row| {
            let ended = match row.try_get::<_, Option<&str>>("ended")? {
                Some("done") => Some(Ended::Done),
                Some(_) => Some(Ended::Stopped),
                None => None,
            };
            // What another version wrote may read otherwise: then it is alive, and says nothing.
            let says: serde_json::Value = row.try_get("says")?;
            Ok(Beat {
                instance: row.try_get("instance")?,
                age_seconds: row.try_get("age_seconds")?,
                ended,
                says: serde_json::from_value(says).unwrap_or_default(),
            })
        })
        .collect()
}

/// Somebody who holds a lock, and the table, or the place of a row in it, that is waited for, as far as those are known.
struct Held {
    hold: Hold,
    relation: Option<String>,
    place: Option<String>,
}

/// Who holds what, by the catalog alone: whose rows are waited for is not known.
async fn held<C: GenericClient>(client: &C) -> Result<Vec<Held>, StoreError> {
    let rows = client.query_typed(include_str!("../../sql/queries/holds.sql"), &[]).await?;
    rows.iter()
        .map(|row| {
            let (relation, place): (Option<String>, Option<String>) = (row.try_get("relation")?, row.try_get("place")?);
            let is_ours = relation.as_ref().is_some_and(|relation| relation.starts_with("ebbtide."));
            let hold = Hold {
                pid: row.try_get("pid")?,
                who: row.try_get("who")?,
                does: row.try_get("does")?,
                open_seconds: row.try_get("open_seconds")?,
                what: row.try_get("what")?,
                keeps: if is_ours && place.is_none() { Keeps::All } else { Keeps::Unknown },
            };
            Ok(Held { hold, relation, place })
        })
        .collect()
}

/// Who holds what, and whose work that keeps.
async fn holds<C: GenericClient>(client: &C) -> Result<Vec<Hold>, StoreError> {
    let held = held(client).await?;
    if held.is_empty() {
        return Ok(Vec::new());
    }
    let relations: Vec<Option<&str>> = held.iter().map(|held| held.relation.as_deref()).collect();
    let places: Vec<Option<&str>> = held.iter().map(|held| held.place.as_deref()).collect();
    let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
        [(&relations, Type::TEXT_ARRAY), (&places, Type::TEXT_ARRAY)];
    let rows = client.query_typed(include_str!("../../sql/queries/kept_by_holds.sql"), &parameters).await?;
    held.into_iter()
        .zip(&rows)
        .map(|(Held { hold, .. }, row)| {
            let (chain, projection): (Option<String>, Option<String>) =
                (row.try_get("chain")?, row.try_get("projection")?);
            let keeps = match (&chain, &projection) {
                (None, None) => hold.keeps.clone(),
                _ => Keeps::Only { chain, projection },
            };
            Ok(Hold { keeps, ..hold })
        })
        .collect()
}

fn chain_facts(row: &Row, name: String) -> Result<ChainFacts, StoreError> {
    let tip = match (super::chains::height(row, "tip_height")?, row.try_get::<_, Option<&str>>("tip_hash")?) {
        (Some(height), Some(hash)) => Some(BlockRef { height, hash: Hash::new(hash) }),
        _ => None,
    };
    Ok(ChainFacts {
        name,
        start_height: row.try_get("start_height")?,
        head_height: row.try_get("head_height")?,
        final_height: row.try_get("final_height")?,
        complete_to: row.try_get("complete_to")?,
        lowest: row.try_get("lowest")?,
        tip,
        projections: Vec::new(),
    })
}

fn projection_facts(row: &Row) -> Result<Option<ProjectionFacts>, StoreError> {
    let Some(name) = row.try_get("projection")? else { return Ok(None) };
    let pair = |height: Option<i64>, hash: Option<String>| height.zip(hash);
    let next = pair(row.try_get("next_height")?, row.try_get("next_hash")?);
    let rebuilding = match row.try_get("rebuild_reason")? {
        Some(reason) => Some(Rebuilding {
            reason,
            from_height: row.try_get("from_height")?,
            at_height: row.try_get("at_height")?,
            to_height: row.try_get("to_height")?,
            started_at: row.try_get("started_at")?,
        }),
        None => None,
    };
    Ok(Some(ProjectionFacts {
        name,
        after: row.try_get("after")?,
        start_height: row.try_get("projection_start")?,
        block: pair(row.try_get("height")?, row.try_get("hash")?),
        through: row.try_get("through_height")?,
        seq: row.try_get("seq")?,
        differs_from: row.try_get("differs_from")?,
        redo_from: row.try_get("redo_from")?,
        history_from: row.try_get("history_from")?,
        updated_at: row.try_get("updated_at")?,
        age_seconds: row.try_get("age_seconds")?,
        paused: row.try_get("paused")?,
        pause_at: row.try_get("pause_at")?,
        halted_reason: row.try_get("halted_reason")?,
        failed_height: row.try_get("failed_height")?,
        failed_reason: row.try_get("failed_reason")?,
        failures: row.try_get("failures")?,
        next: match next {
            Some((height, hash)) => Some(NextBlock { height, hash, parent_hash: row.try_get("next_parent")? }),
            None => None,
        },
        rebuilding,
    }))
}

/// Where one projection stands on one chain.
#[derive(Debug, Clone, Serialize)]
pub struct Standing {
    /// The chain's name.
    pub chain: String,
    /// The projection. None means the chain has none yet, and only its source is known.
    pub projection: Option<String>,
    /// How it is.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// How the chain's source and its syncer are. None means no source follows the chain.
    pub source: Option<Verdict>,
    /// How the database is, for all chains.
    pub database: Verdict,
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
    /// Blocks between what is applied and still stands, by height and hash, and the newest block known.
    pub lag_blocks: i64,
    /// Age of the newest applied block, by its own time, while others wait; 0 when none does.
    pub lag_seconds: f64,
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
    /// Reorganisations that are kept; not counted further than 100,000.
    pub reorgs: i64,
    /// Events of the chain that were refused; not counted further than 100,000.
    pub rejected_events: i64,
    /// What replaced blocks, reorganisations and rejected events of all chains take on disk, in bytes.
    pub evidence_bytes: i64,
}

impl Standing {
    /// Whether readers may rely on it.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.verdict.state.is_ready() && self.source.as_ref().is_none_or(|source| source.state.is_ready())
    }

    fn of_source(chain: &ChainFacts, judged: &ChainVerdict, database: &Verdict) -> Standing {
        Standing {
            chain: judged.chain.clone(),
            projection: None,
            verdict: judged.verdict.clone(),
            source: judged.source.clone(),
            database: database.clone(),
            head_height: chain.head_height,
            tip_height: chain.tip.as_ref().map(|tip| tip.height.to_sql()),
            applied_height: None,
            applied_hash: None,
            final_height: chain.final_height,
            lag_blocks: 0,
            lag_seconds: 0.0,
            redo_from: None,
            paused: false,
            halted_reason: None,
            failed_height: None,
            failed_reason: None,
            failures: 0,
            rebuilding: None,
            reorgs: 0,
            rejected_events: 0,
            evidence_bytes: 0,
        }
    }

    fn of_projection(
        of_source: Standing,
        facts: &ProjectionFacts,
        verdict: &ProjectionVerdict,
        (reorgs, rejected_events, evidence_bytes): (i64, i64, i64),
    ) -> Standing {
        Standing {
            projection: Some(facts.name.clone()),
            verdict: verdict.verdict.clone(),
            applied_height: facts.through,
            applied_hash: facts.block.as_ref().map(|(_, hash)| hash.clone()),
            lag_blocks: verdict.lag_blocks,
            lag_seconds: verdict.lag_seconds,
            redo_from: facts.redo_from,
            paused: facts.paused,
            halted_reason: facts.halted_reason.clone(),
            failed_height: facts.failed_height,
            failed_reason: facts.failed_reason.clone(),
            failures: facts.failures,
            rebuilding: facts.rebuilding.clone(),
            reorgs,
            rejected_events,
            evidence_bytes,
            ..of_source
        }
    }
}
