//! A projection with tracked tables, applied again from its start inside one transaction that is rolled back: rows and undo
//! must be those that stand in its tables.

use std::collections::BTreeSet;

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Row};

use super::{Findings, Report};
use crate::store::{Store, StoreError};

/// How far the verification of one projection on one chain has come.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// The chain's name.
    pub chain: &'a str,
    /// The projection's name.
    pub projection: &'a str,
    /// Blocks applied again.
    pub done: u64,
    /// Of so many.
    pub blocks: u64,
}

/// A projection on a chain, as `verify` finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verifiable {
    /// The chain's name.
    pub chain: String,
    /// The projection's name.
    pub projection: String,
    /// Whether an SQL function applies it; otherwise the program's code does.
    pub is_function: bool,
    pub(super) chain_id: i64,
    follows: bool,
}

/// Tries to hold the checkpoint: a processor at work moves it between our look and our hold.
const TRIES: u32 = 100;

/// How a copy of the tables is called: as they stand, and as they come out.
const OURS: &str = "ours";
const FRESH: &str = "fresh";

/// A block to apply again.
pub(super) struct Counted {
    pub(super) height: i64,
    pub(super) hash: String,
}

/// The checkpoint that is held while its projection is verified.
pub(super) struct Held {
    pub(super) height: i64,
    hash: Option<String>,
    start: i64,
    redo_from: Option<i64>,
    is_made_otherwise: bool,
    chain_start: Option<i64>,
    complete_to: Option<i64>,
}

impl Store {
    /// Projections with tracked tables, on every chain where they have begun. With names: that chain, that projection.
    ///
    /// # Errors
    /// An unknown chain or projection, or whatever Postgres says.
    pub async fn verifiable(
        &self,
        chain: Option<&str>,
        projection: Option<&str>,
    ) -> Result<Vec<Verifiable>, StoreError> {
        let client = self.reader().await?;
        if let Some(chain) = chain {
            client.query_one("select chain_named($1)", &[&chain]).await?;
        }
        if let Some(name) = projection
            && client.query_opt("select from projections where name = $1", &[&name]).await?.is_none()
        {
            return Err(StoreError::Refused { reason: format!("there is no projection named {name}") });
        }
        let sql = include_str!("../../sql/queries/verify_projections.sql");
        let rows = client.query(sql, &[&chain, &projection]).await?;
        rows.iter()
            .map(|row| {
                Ok(Verifiable {
                    chain: row.try_get("chain")?,
                    projection: row.try_get("projection")?,
                    is_function: row.try_get("is_function")?,
                    chain_id: row.try_get("chain_id")?,
                    follows: row.try_get("follows")?,
                })
            })
            .collect()
    }

    /// Empties the tables of an SQL projection, applies all its blocks again and compares rows and undo; then rolls all of
    /// it back. Whoever reads sees nothing of it; the projection does not advance while this runs.
    ///
    /// # Errors
    /// Whatever Postgres says. A block that fails is no error but a finding.
    pub async fn verify_tables(
        &self,
        of: &Verifiable,
        most: i64,
        progress: &mut (dyn FnMut(Progress<'_>) + Send),
    ) -> Result<Findings, StoreError> {
        let client = begin(self).await?;
        let mut report = Report { findings: Findings::default(), most };
        let summary = match hold(&client, of).await? {
            None => "nothing is applied yet".to_owned(),
            Some(held) => {
                count(&client, of, &held).await?;
                verify(&client, of, &held, &mut report, progress).await?
            }
        };
        client.batch_execute("rollback").await?;
        let mut findings = report.findings;
        let verdict = verdict(findings.differences);
        findings.summary = format!("Verified {} on {}: {summary}: {verdict}.", of.projection, of.chain);
        Ok(findings)
    }
}

/// "no difference", "1 difference", "2 differences".
pub(super) fn verdict(differences: u64) -> String {
    match differences {
        0 => "no difference".to_owned(),
        1 => "1 difference".to_owned(),
        n => format!("{n} differences"),
    }
}

/// A connection of its own, which ends with its scratch tables. No limit: a long history takes long.
pub(super) async fn begin(store: &Store) -> Result<Client, StoreError> {
    let client = store.connect().await?;
    client.batch_execute("set statement_timeout = 0; set idle_in_transaction_session_timeout = 0").await?;
    client.batch_execute(include_str!("../../sql/queries/verify_scratch.sql")).await?;
    Ok(client)
}

/// Begins a transaction whose snapshot is that of the checkpoint, which nobody moves until it ends, or until it goes back to
/// the savepoint `holding`: the snapshot stays then. None means nothing was applied.
pub(super) async fn hold(client: &Client, of: &Verifiable) -> Result<Option<Held>, StoreError> {
    let sql = include_str!("../../sql/queries/verify_hold.sql");
    let mut tried = 0;
    let row = loop {
        client.batch_execute("begin isolation level repeatable read; savepoint holding").await?;
        // From now on a projection that is followed does not wait for this one: see may_follow in 80_followers.sql.
        let lock = "select pg_advisory_xact_lock(hashtext('ebbtide verify ' || $1), ($2::bigint % 2147483647)::int)";
        client.query_one(lock, &[&of.projection, &of.chain_id]).await?;
        match client.query_opt(sql, &[&of.chain_id, &of.projection]).await {
            Ok(row) => break row,
            Err(error) if error.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE) && tried < TRIES => {
                tried += 1;
                client.batch_execute("rollback").await?;
            }
            Err(error) => return Err(error.into()),
        }
    };
    let Some(row) = row else { return Ok(None) };
    let held = Held {
        height: row.try_get("height")?,
        hash: row.try_get("hash")?,
        start: row.try_get::<_, Option<i64>>("start_height")?.unwrap_or_default(),
        redo_from: row.try_get("redo_from")?,
        is_made_otherwise: row.try_get("is_made_otherwise")?,
        chain_start: row.try_get("chain_start")?,
        complete_to: row.try_get("complete_to")?,
    };
    Ok(Some(held))
}

/// Finds out again which blocks count.
pub(super) async fn count(client: &Client, of: &Verifiable, held: &Held) -> Result<(), StoreError> {
    client.batch_execute("delete from verify_counted").await?;
    let sql = include_str!("../../sql/queries/verify_count.sql");
    client.execute(sql, &[&of.chain_id, &held.chain_start, &held.complete_to]).await?;
    client.batch_execute("analyze verify_counted").await?;
    Ok(())
}

/// Up to where the chain still is what was applied, if it is so far back as undo reaches; and why that is not the tip.
pub(super) async fn agreed(
    client: &Client,
    of: &Verifiable,
    held: &Held,
) -> Result<(Option<i64>, Option<String>), StoreError> {
    if held.is_made_otherwise {
        return Ok((None, Some("its function changed, and it will be built again".to_owned())));
    }
    let sql = include_str!("../../sql/queries/verify_agreed.sql");
    let row = client.query_one(sql, &[&of.chain_id, &of.projection, &held.height, &held.hash, &held.redo_from]).await?;
    let (differs_at, agreed): (Option<i64>, Option<i64>) = (row.try_get("differs_at")?, row.try_get("agreed")?);
    let Some(at) = differs_at else { return Ok((Some(held.height), None)) };
    Ok(match agreed {
        Some(to) => {
            (Some(to), Some(format!("from {at} on it is to be applied again, and is compared as it was at {to}")))
        }
        None => (None, Some(format!("from {at} on, below its undo, it is to be applied again: ask again then"))),
    })
}

/// Blocks that count, from the projection's start to a height.
pub(super) async fn counted(client: &Client, held: &Held, to: i64) -> Result<Vec<Counted>, StoreError> {
    let sql = "select height, hash from verify_counted where height between $1 and $2 order by height";
    let rows = client.query(sql, &[&held.start, &to]).await?;
    rows.iter().map(|row| Ok(Counted { height: row.try_get(0)?, hash: row.try_get(1)? })).collect()
}

async fn verify(
    client: &Client,
    of: &Verifiable,
    held: &Held,
    report: &mut Report,
    progress: &mut (dyn FnMut(Progress<'_>) + Send),
) -> Result<String, StoreError> {
    let place = format!("{}: {}", of.chain, of.projection);
    let (to, note) = agreed(client, of, held).await?;
    if let Some(note) = note {
        report.note(&place, &note);
    }
    let Some(to) = to else { return Ok("not compared".to_owned()) };
    if to < held.height {
        restore(client, of, to + 1).await?;
    }
    let blocks = counted(client, held, to).await?;
    let rows = copy(client, of, OURS).await?;
    let undo: i64 =
        client.query_one("select copy_undo($1, $2, 'undo_ours')", &[&of.projection, &of.chain_id]).await?.get(0);
    let recorded = recorded(client, of, to).await?;
    let backs = take_back(client, of, &recorded, report, &place).await?;
    client.execute("select empty_tables($1, $2)", &[&of.projection, &of.chain_id]).await?;

    // What undo gave is told only where the rows themselves are right: a wrong row stands in every copy.
    let mut undone = Report { findings: Findings::default(), most: report.most };
    let mut before: Option<&Counted> = None;
    for (done, block) in (1..).zip(&blocks) {
        if backs.contains(&block.height) {
            copy(client, of, FRESH).await?;
            let place = format!("{place}: taken back to before block {}", block.height);
            compare(client, of, &mut undone, &place, (&back(block.height), FRESH)).await?;
        }
        if let Err(error) = try_block(client, of, block, before, recorded.contains(&block.height)).await {
            if error.fault() == crate::store::StoreFault::Unavailable {
                return Err(error);
            }
            report.finding(&format!("{place}: block {} ({}): {}", block.height, block.hash, error.message()));
            return Ok(format!("{done} of {} blocks applied again", blocks.len()));
        }
        before = Some(block);
        progress(Progress { chain: &of.chain, projection: &of.projection, done, blocks: blocks.len() as u64 });
    }
    copy(client, of, FRESH).await?;
    let rows_differ = compare(client, of, report, &place, (OURS, FRESH)).await? > 0;
    client.execute("select copy_undo($1, $2, 'undo_fresh')", &[&of.projection, &of.chain_id]).await?;
    compare(client, of, report, &format!("{place}: undo"), ("undo_ours", "undo_fresh")).await?;
    if !rows_differ {
        report.findings.lines.append(&mut undone.findings.lines);
        report.findings.differences += undone.findings.differences;
    }
    Ok(format!(
        "{} blocks up to {to} applied again, {rows} rows, {undo} rows of undo, taken back to {} heights",
        blocks.len(),
        backs.len()
    ))
}

/// Heights that can be taken back.
async fn recorded(client: &Client, of: &Verifiable, to: i64) -> Result<BTreeSet<i64>, StoreError> {
    let sql = "select height from applied_blocks where chain_id = $1 and projection = $2 and height <= $3";
    let rows = client.query(sql, &[&of.chain_id, &of.projection, &to]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Takes the last block back, the one before it, and all that can be, and keeps what stands then: by the height that was
/// taken back last.
async fn take_back(
    client: &Client,
    of: &Verifiable,
    recorded: &BTreeSet<i64>,
    report: &mut Report,
    place: &str,
) -> Result<BTreeSet<i64>, StoreError> {
    let mut wanted: Vec<i64> = recorded.iter().rev().take(2).copied().collect();
    wanted.extend(recorded.first().filter(|first| !wanted.contains(first)));
    let mut backs = BTreeSet::new();
    for height in wanted {
        client.batch_execute("savepoint taking_back").await?;
        match restore(client, of, height).await {
            Ok(()) => {
                copy(client, of, &back(height)).await?;
                backs.insert(height);
            }
            Err(error) if error.fault() == crate::store::StoreFault::Unavailable => return Err(error),
            Err(error) => {
                client.batch_execute("rollback to taking_back").await?;
                report.finding(&format!("{place}: block {height} cannot be taken back: {}", error.message()));
                break;
            }
        }
    }
    Ok(backs)
}

fn back(height: i64) -> String {
    format!("back{height}")
}

/// Restores the tables to what they were before a height.
async fn restore(client: &Client, of: &Verifiable, height: i64) -> Result<(), StoreError> {
    let above = height - 1;
    client.execute("select restore_tables($1, $2, $3)", &[&of.projection, &of.chain_id, &above]).await?;
    Ok(())
}

async fn copy(client: &Client, of: &Verifiable, tag: &str) -> Result<i64, StoreError> {
    let sql = "select copy_tables($1, $2, $3, false)";
    Ok(client.query_one(sql, &[&of.projection, &of.chain_id, &tag]).await?.try_get(0)?)
}

async fn try_block(
    client: &Client,
    of: &Verifiable,
    block: &Counted,
    before: Option<&Counted>,
    record: bool,
) -> Result<(), StoreError> {
    client
        .execute(
            "select check_shapes($2), run_apply($1, $2, $5, $6, array[$3::bigint], array[$4::text], $8, $7)",
            &[
                &of.chain_id,
                &of.projection,
                &block.height,
                &block.hash,
                &before.map(|b| b.height),
                &before.map(|b| &b.hash),
                &of.follows,
                &record,
            ],
        )
        .await?;
    Ok(())
}

/// Every row that only one of two copies holds; how many.
async fn compare(
    client: &Client,
    of: &Verifiable,
    report: &mut Report,
    place: &str,
    (ours, fresh): (&str, &str),
) -> Result<u64, StoreError> {
    let sql = "select * from compare_copies($1, $2, $3, $4)";
    let rows = client.query(sql, &[&of.projection, &ours, &fresh, &report.limit()]).await?;
    report.rows(place, &rows)
}

impl Report {
    /// One line for what went wrong.
    pub(super) fn finding(&mut self, line: &str) {
        self.findings.differences += 1;
        self.findings.lines.push(line.to_owned());
    }

    /// The answer of `compare_copies`, a line a row; how many rows differ.
    pub(super) fn rows(&mut self, place: &str, rows: &[Row]) -> Result<u64, StoreError> {
        let before = self.findings.differences;
        let mut last: Option<(String, bool)> = None;
        let mut shown = 0;
        for row in rows {
            let (table, ours): (String, bool) = (row.try_get("relation")?, row.try_get("in_one")?);
            let side = if ours { "only in the table" } else { "only recomputed" };
            let this = Some((table, ours));
            let total: i64 = row.try_get("total")?;
            if last != this {
                self.findings.differences += total.unsigned_abs();
                shown = 0;
                last = this;
            }
            shown += 1;
            let Some((table, _)) = &last else { continue };
            if shown <= self.most {
                let differing: &str = row.try_get("differing")?;
                self.findings.lines.push(format!("{place}: {table}: {side} {differing}"));
            }
            if shown == self.limit() && total > self.most {
                let left = total - self.most.max(0);
                self.findings.lines.push(format!("{place}: {table}: {side}: … and {left} more"));
            }
        }
        Ok(self.findings.differences - before)
    }
}
