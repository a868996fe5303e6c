//! A projection of the program computed again: tables of this session's own, to which whoever computes the rows again writes
//! them, and which are compared with those that stand.

use tokio_postgres::Client;

use super::tables::{Verifiable, agreed, begin, count, counted, hold, verdict};
use super::{Findings, Report};
use crate::chain::{BlockRef, Hash, Height};
use crate::store::{BlockEvents, Prepared, Refused, Session, Store, StoreError};

/// The projection on one chain, of one moment. Nothing of what is written here stays.
pub struct Recomputation {
    client: Client,
    prepared: Prepared,
    of: Verifiable,
    report: Report,
    /// Blocks with events, those to come last, descending.
    blocks: Vec<BlockRef>,
    all: usize,
}

impl std::fmt::Debug for Recomputation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recomputation").field("of", &self.of).field("blocks", &self.all).finish_non_exhaustive()
    }
}

/// What an audit begins with.
#[derive(Debug)]
pub enum Audit {
    /// To be computed again.
    Begun(Box<Recomputation>),
    /// There is nothing to compare with; why.
    Idle(Findings),
}

impl Store {
    /// Makes ready to compare the rows of a projection with rows computed again.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn recompute(&self, of: &Verifiable, most: i64) -> Result<Audit, StoreError> {
        let client = begin(self).await?;
        let mut report = Report { findings: Findings::default(), most };
        let Some(held) = hold(&client, of).await? else {
            report.findings.summary = format!("Verified {} on {}: nothing is applied yet.", of.projection, of.chain);
            return Ok(Audit::Idle(report.findings));
        };
        // One snapshot is enough: no row of the projection is touched.
        client.batch_execute("rollback to holding").await?;
        count(&client, of, &held).await?;
        let (to, note) = agreed(&client, of, &held).await?;
        if to != Some(held.height) {
            // Undo could take the tables back, but that is the processor's to do first.
            let place = format!("{}: {}", of.chain, of.projection);
            report.note(&place, note.as_deref().unwrap_or("the chain changed"));
            report.findings.summary =
                format!("Verified {} on {}: not compared, the chain has changed.", of.projection, of.chain);
            return Ok(Audit::Idle(report.findings));
        }
        // Found first by their names from here on, by the statements that write them as well.
        client.query_one("select make_temporary($1)", &[&of.projection]).await?;
        let sql = "select height from events where chain_id = $1 and height <= $2 group by height";
        let rows = client.query(sql, &[&of.chain_id, &held.height]).await?;
        let with_events =
            rows.iter().map(|row| row.try_get(0)).collect::<Result<std::collections::BTreeSet<i64>, _>>()?;
        let counted = counted(&client, &held, held.height).await?;
        let mut blocks = Vec::new();
        for block in counted.iter().filter(|block| with_events.contains(&block.height)).rev() {
            let height = Height::try_from(block.height);
            let height = height.map_err(|e| StoreError::Nonsense { what: format!("blocks.height: {e}") })?;
            blocks.push(BlockRef { height, hash: Hash::new(block.hash.as_str()) });
        }
        let (prepared, all) = (Prepared::default(), blocks.len());
        Ok(Audit::Begun(Box::new(Recomputation { client, prepared, of: of.clone(), report, blocks, all })))
    }
}

impl Recomputation {
    /// The chain's number.
    pub fn chain_id(&self) -> i64 {
        self.of.chain_id
    }

    /// Statements in which the projection's tables, without their schema, are empty ones of this session.
    pub fn session(&self) -> Session<'_> {
        Session::new(&self.client, &self.prepared)
    }

    /// Runs a comparison of the tables as they stand (`ebbtide.…`): each of its rows is a difference. Its parameters are the
    /// chain's number and how many rows are shown.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn check(&mut self, sql: &str) -> Result<(), StoreError> {
        let place = format!("{}: {}", self.of.chain, self.of.projection);
        let limit = self.report.limit();
        self.report.compare(&self.client, &place, sql, &[&self.of.chain_id, &limit]).await
    }

    /// Blocks still to come.
    pub fn left(&self) -> usize {
        self.blocks.len()
    }

    /// The next block with events.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn next(&mut self) -> Result<Option<BlockEvents>, StoreError> {
        let Some(block) = self.blocks.pop() else { return Ok(None) };
        let at = block.height.to_sql();
        let sql = include_str!("../../sql/queries/events_of_blocks.sql");
        let rows = self.session().query(sql, &[&self.of.chain_id, &at, &at]).await?;
        let events = rows.iter().map(|row| crate::store::stored_event(row).map(|(_, event)| event));
        let time = rows.first().map(|row| row.try_get("block_time")).transpose()?.flatten();
        Ok(Some(BlockEvents { block, time, events: events.collect::<Result<_, _>>()? }))
    }

    /// Keeps what was refused.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn reject(&self, refused: &[Refused]) -> Result<(), StoreError> {
        let heights: Vec<i64> = refused.iter().map(|r| r.height.to_sql()).collect();
        let transactions: Vec<i64> = refused.iter().map(|r| r.tx_index).collect();
        let events: Vec<i64> = refused.iter().map(|r| r.event_index).collect();
        let reasons: Vec<&str> = refused.iter().map(|r| r.reason).collect();
        let sql =
            "insert into verify_refused select * from unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::text[])";
        self.session().execute(sql, &[&heights, &transactions, &events, &reasons]).await?;
        Ok(())
    }

    /// Blocks up to this one whose rows could not be computed or kept: a finding, and the end.
    pub fn failed(mut self, block: &BlockRef, reason: &str) -> Findings {
        let place = format!("{}: {}", self.of.chain, self.of.projection);
        self.report.finding(&format!("{place}: block {block}: {reason}"));
        self.ended("not all blocks computed again")
    }

    /// Compares all tables.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn compare(mut self) -> Result<Findings, StoreError> {
        let place = format!("{}: {}", self.of.chain, self.of.projection);
        let sql = include_str!("../../sql/queries/verify_refused.sql");
        let limit = self.report.limit();
        let (chain, projection) = (self.of.chain_id, self.of.projection.clone());
        self.report.compare(&self.client, &place, sql, &[&chain, &limit, &projection]).await?;
        let rows = self
            .client
            .query("select * from compare_with_temporary($1, $2, $3)", &[&projection, &chain, &limit])
            .await?;
        self.report.rows(&place, &rows)?;
        let rows: i64 = self.client.query_one("select count_temporary($1)", &[&projection]).await?.try_get(0)?;
        let blocks = self.all;
        Ok(self.ended(&format!("{blocks} blocks with events computed again, {rows} rows")))
    }

    fn ended(self, what: &str) -> Findings {
        let mut findings = self.report.findings;
        let verdict = verdict(findings.differences);
        findings.summary = format!("Verified {} on {}: {what}: {verdict}.", self.of.projection, self.of.chain);
        findings
    }
}
