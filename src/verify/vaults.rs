//! The option vaults: what must hold between their rows, in SQL; and tables of this session's own, to which whoever
//! computes the rows again writes them, and which are compared with those that stand.

use tokio_postgres::Client;

use super::tables::{Verifiable, agreed, begin, count, counted, hold, verdict};
use super::{Findings, Report};
use crate::chain::{BlockRef, ChainId, Event, Hash, Height, Text};
use crate::store::vaults::{Changes, Layout, VaultStatements};
use crate::store::{Refused, Store, StoreError};

/// A block with events, to be computed again.
#[derive(Debug, Clone)]
pub struct AuditBlock {
    /// The block.
    pub block: BlockRef,
    /// Its time in seconds since 1970, if it has one.
    pub time: Option<i64>,
    /// Its events, in the order of the chain.
    pub events: Vec<Event>,
}

/// The option vaults of one chain, of one moment. Nothing of what is written here stays.
pub struct VaultAudit {
    client: Client,
    statements: VaultStatements,
    of: Verifiable,
    report: Report,
    /// Heights with events, those to come last, descending.
    heights: Vec<i64>,
    blocks: usize,
}

impl std::fmt::Debug for VaultAudit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VaultAudit").field("of", &self.of).field("blocks", &self.blocks).finish_non_exhaustive()
    }
}

/// What an audit begins with.
#[derive(Debug)]
pub enum Audit {
    /// To be computed again.
    Begun(Box<VaultAudit>),
    /// There is nothing to compare with; why.
    Idle(Findings),
}

impl Store {
    /// Checks what must hold between the rows of the option vaults, and makes ready to compare them with rows computed again.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn audit_vaults(&self, of: &Verifiable, most: i64) -> Result<Audit, StoreError> {
        let client = begin(self).await?;
        let place = format!("{}: {}", of.chain, of.projection);
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
            report.note(&place, note.as_deref().unwrap_or("the chain changed"));
            report.findings.summary =
                format!("Verified {} on {}: not compared, the chain has changed.", of.projection, of.chain);
            return Ok(Audit::Idle(report.findings));
        }
        let sql = include_str!("../../sql/queries/verify_vaults.sql");
        report.compare(&client, &place, sql, &[&of.chain_id, &report.limit()]).await?;
        // Found first by their names from here on, by the statements that write them as well.
        client.batch_execute(include_str!("../../sql/queries/verify_vault_tables.sql")).await?;
        let statements = VaultStatements::prepare(&client).await?;
        let sql = "select height from events where chain_id = $1 and height <= $2 group by height";
        let rows = client.query(sql, &[&of.chain_id, &held.height]).await?;
        let with_events =
            rows.iter().map(|row| row.try_get(0)).collect::<Result<std::collections::BTreeSet<i64>, _>>()?;
        let counted = counted(&client, &held, held.height).await?;
        let mut heights: Vec<i64> = counted.iter().map(|b| b.height).filter(|h| with_events.contains(h)).collect();
        heights.reverse();
        let blocks = heights.len();
        Ok(Audit::Begun(Box::new(VaultAudit { client, statements, of: of.clone(), report, heights, blocks })))
    }
}

impl VaultAudit {
    /// Vaults that people registered, with the first height whose events count.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn registered(&self) -> Result<Vec<(Text, Layout, Option<Height>)>, StoreError> {
        let sql = "select address, layout, from_height from vault_registry where chain_id = $1";
        let rows = self.client.query(sql, &[&self.of.chain_id]).await?;
        rows.iter()
            .map(|row| {
                let word: &str = row.try_get(1)?;
                let layout =
                    Layout::parse(word).ok_or_else(|| StoreError::Nonsense { what: format!("layout is {word}") })?;
                let from = row.try_get::<_, Option<i64>>(2)?.map(height).transpose()?;
                Ok((Text::from(row.try_get::<_, &str>(0)?), layout, from))
            })
            .collect()
    }

    /// Blocks still to come.
    pub fn left(&self) -> usize {
        self.heights.len()
    }

    /// The next block with events.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn next(&mut self) -> Result<Option<AuditBlock>, StoreError> {
        let Some(at) = self.heights.pop() else { return Ok(None) };
        let sql = "select hash, extract(epoch from time)::bigint from blocks where chain_id = $1 and height = $2";
        let row = self.client.query_one(sql, &[&self.of.chain_id, &at]).await?;
        let block = BlockRef { height: height(at)?, hash: Hash::new(row.try_get::<_, &str>(0)?) };
        let sql = include_str!("../../sql/queries/events_of_block.sql");
        let events = self.client.query(sql, &[&self.of.chain_id, &at]).await?;
        let events = events
            .iter()
            .map(|row| crate::store::stored_event(row).map(|(_, event)| event))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Some(AuditBlock { block, time: row.try_get(1)?, events }))
    }

    /// Keeps what a block left.
    ///
    /// # Errors
    /// Rows that contradict each other, or whatever Postgres says.
    pub async fn put(&self, block: &BlockRef, changes: &Changes, refused: &[Refused]) -> Result<(), StoreError> {
        self.statements.put(&self.client, ChainId(self.of.chain_id), block, changes).await?;
        for event in refused {
            self.client
                .execute(
                    "insert into verify_vault_refused values ($1, $2, $3, $4)",
                    &[&event.height.to_sql(), &event.tx_index, &event.event_index, &event.reason],
                )
                .await?;
        }
        Ok(())
    }

    /// A block whose rows could not be computed or kept: a finding, and the end.
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
        let sql = include_str!("../../sql/queries/verify_vault_refused.sql");
        let limit = self.report.limit();
        self.report.compare(&self.client, &place, sql, &[&self.of.chain_id, &limit]).await?;
        let rows = self
            .client
            .query(
                "select * from compare_with_temporary($1, $2, $3)",
                &[&self.of.projection, &self.of.chain_id, &limit],
            )
            .await?;
        self.report.rows(&place, &rows)?;
        let sql = "select count_temporary($1)";
        let rows: i64 = self.client.query_one(sql, &[&self.of.projection]).await?.try_get(0)?;
        let blocks = self.blocks;
        Ok(self.ended(&format!("{blocks} blocks with events computed again, {rows} rows")))
    }

    fn ended(self, what: &str) -> Findings {
        let mut findings = self.report.findings;
        let verdict = verdict(findings.differences);
        findings.summary = format!("Verified {} on {}: {what}: {verdict}.", self.of.projection, self.of.chain);
        findings
    }
}

fn height(at: i64) -> Result<Height, StoreError> {
    Height::try_from(at).map_err(|e| StoreError::Nonsense { what: format!("height: {e}") })
}
