//! `ebbtide verify`: the ledger computed again from the chain tables, in SQL over the events, and compared row by row.
//!
//! The ledger shares no code with the processor: what counts, the sums, the journal and the refusals are all told again, so that a
//! fault there cannot hide itself here. Reads one snapshot and changes nothing. Projections with tracked tables are
//! recomputed by their own functions (`tables`), those of the program by their own code (`recomputation`).

mod blocks;
mod fuzz;
mod recomputation;
mod tables;

use tokio_postgres::types::ToSql;
use tokio_postgres::{GenericClient, IsolationLevel, Row, Transaction};

use crate::store::{Store, StoreError};

pub use fuzz::FuzzSettings;
pub use recomputation::{Audit, Recomputation};
pub use tables::{Progress, Verifiable};

/// What `verify` found.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    /// Notes, and one line a difference: chain, kind, key, ours, recomputed.
    pub lines: Vec<String>,
    /// What was looked at, in one line.
    pub summary: String,
    /// How many differences there are, printed or not.
    pub differences: u64,
}

/// A chain and the ledger's checkpoint on it.
struct Chain {
    id: i64,
    name: String,
    kind: String,
    /// First height that counts; None means there is no block.
    start: Option<i64>,
    final_height: Option<i64>,
    complete_to: Option<i64>,
    height: Option<i64>,
    hash: Option<String>,
    through: Option<i64>,
    begun_at: Option<i64>,
    history_from: Option<i64>,
    redo_from: Option<i64>,
    paused: bool,
    halted_reason: Option<String>,
}

/// Of one chain, what `verify_totals.sql` counted.
struct Totals {
    blocks: i64,
    changes: i64,
    accounts: i64,
    /// The last block that counts.
    counts_to: Option<i64>,
    /// Hash of the counted block at the checkpoint's height; None means no block counts there.
    hash: Option<String>,
    /// Blocks that count and are not applied yet.
    behind: i64,
    /// The first of them.
    next_height: Option<i64>,
}

impl Store {
    /// Computes balances, journal and supply of one chain (none: of all) again from the events of the blocks that count,
    /// up to the checkpoint, and compares. All is of one moment; what was not applied by then is a note, no difference.
    /// At most `most` differences of a kind get a line each, at least one.
    ///
    /// # Errors
    /// An unknown chain, or whatever Postgres says.
    pub async fn verify(&self, chain: Option<&str>, most: i64) -> Result<Findings, StoreError> {
        // A connection of its own: it ends with its scratch tables. No limit: a long history takes long.
        let mut client = self.connect().await?;
        client
            .batch_execute(
                "set statement_timeout = 0; set idle_in_transaction_session_timeout = 0; set work_mem = '64MB'",
            )
            .await?;
        client.batch_execute(include_str!("../sql/queries/verify_scratch.sql")).await?;
        let tx =
            client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true).start().await?;
        if let Some(chain) = chain {
            tx.query_one("select chain_named($1)", &[&chain]).await?;
        }
        let rows = tx.query(include_str!("../sql/queries/verify_chains.sql"), &[&chain]).await?;
        let chains = rows.iter().map(Chain::read).collect::<Result<Vec<_>, _>>()?;
        let mut report = Report { findings: Findings::default(), most };
        let (mut blocks, mut changes, mut accounts) = (0, 0, 0);
        for chain in &chains {
            let totals = verify_chain(&tx, chain, &mut report).await?;
            blocks += totals.blocks;
            changes += totals.changes;
            accounts += totals.accounts;
        }
        if chain.is_none() {
            let sql = include_str!("../sql/queries/verify_strays.sql");
            report.compare(&tx, "no chain", sql, &[&report.limit()]).await?;
        }
        let Report { mut findings, .. } = report;
        let verdict = tables::verdict(findings.differences);
        findings.summary = format!(
            "Recomputed {} chains ({blocks} blocks, {accounts} balances, {changes} changes): {verdict}.",
            chains.len()
        );
        Ok(findings)
    }
}

impl Chain {
    fn read(row: &Row) -> Result<Chain, StoreError> {
        Ok(Chain {
            id: row.try_get("chain_id")?,
            name: row.try_get("name")?,
            kind: row.try_get("kind")?,
            start: row.try_get("start_height")?,
            final_height: row.try_get("final_height")?,
            complete_to: row.try_get("complete_to")?,
            height: row.try_get("height")?,
            hash: row.try_get("hash")?,
            through: row.try_get("through_height")?,
            begun_at: row.try_get("begun_at")?,
            history_from: row.try_get("history_from")?,
            redo_from: row.try_get("redo_from")?,
            paused: row.try_get("paused")?,
            halted_reason: row.try_get("halted_reason")?,
        })
    }
}

async fn verify_chain(tx: &Transaction<'_>, chain: &Chain, report: &mut Report) -> Result<Totals, StoreError> {
    let Chain { id, name, .. } = chain;
    tx.batch_execute("delete from verify_counted; delete from verify_changes").await?;
    tx.execute(include_str!("../sql/queries/verify_count.sql"), &[id, &chain.start, &chain.complete_to]).await?;
    tx.batch_execute("analyze verify_counted").await?;
    tx.execute(include_str!("../sql/queries/verify_recompute.sql"), &[id, &chain.height, &chain.start]).await?;
    tx.batch_execute("analyze verify_changes").await?;
    let row = tx.query_one(include_str!("../sql/queries/verify_totals.sql"), &[&chain.height]).await?;
    let totals = Totals {
        blocks: row.try_get("blocks")?,
        changes: row.try_get("changes")?,
        accounts: row.try_get("accounts")?,
        counts_to: row.try_get("counts_to")?,
        hash: row.try_get("hash")?,
        behind: row.try_get("behind")?,
        next_height: row.try_get("next_height")?,
    };
    report.notes(chain, &totals);
    report.checkpoint(chain, &totals);
    let limit = report.limit();
    let checks: [(&str, &[&(dyn ToSql + Sync)]); 6] = [
        (include_str!("../sql/queries/verify_applied.sql"), &[id, &chain.height, &chain.final_height, &limit]),
        (include_str!("../sql/queries/verify_rejected.sql"), &[id, &chain.height, &chain.kind, &limit]),
        (include_str!("../sql/queries/verify_balances.sql"), &[id, &limit]),
        (include_str!("../sql/queries/verify_supply.sql"), &[id, &chain.height, &limit]),
        (include_str!("../sql/queries/verify_sums.sql"), &[id, &limit]),
        (include_str!("../sql/queries/verify_journal.sql"), &[id, &chain.history_from, &limit]),
    ];
    for (sql, parameters) in checks {
        report.compare(tx, name, sql, parameters).await?;
    }
    Ok(totals)
}

struct Report {
    findings: Findings,
    most: i64,
}

impl Report {
    /// At least one row of each kind must come back to tell how many there are.
    fn limit(&self) -> i64 {
        self.most.max(1)
    }

    fn note(&mut self, chain: &str, note: &str) {
        self.findings.lines.push(format!("{chain}: note: {note}"));
    }

    fn difference(&mut self, chain: &str, kind: &str, key: &str, ours: &str, recomputed: &str) {
        let what = format!("{kind} {key}");
        self.findings.lines.push(format!("{chain}: {}: ours {ours}; recomputed {recomputed}", what.trim_end()));
    }

    /// What explains differences, or a lack of them, without being one.
    fn notes(&mut self, chain: &Chain, totals: &Totals) {
        if let Some(reason) = &chain.halted_reason {
            self.note(&chain.name, &format!("halted: {reason}"));
        }
        if chain.paused {
            self.note(&chain.name, "paused");
        }
        if let Some(from) = chain.redo_from {
            self.note(&chain.name, &format!("to be applied again from {from}; differences may be gone after that"));
        }
        if totals.behind > 0 {
            let to = totals.counts_to.unwrap_or_default();
            self.note(&chain.name, &format!("{} blocks up to {to} count and are not applied yet", totals.behind));
        }
    }

    /// The checkpoint must name a block that counts, and pass over nothing but heights known to be empty.
    fn checkpoint(&mut self, chain: &Chain, totals: &Totals) {
        let mut wrong = |ours: &str, recomputed: &str| {
            self.findings.differences += 1;
            self.difference(&chain.name, "checkpoint", "", ours, recomputed);
        };
        let text = |n: Option<i64>| n.map_or_else(|| "none".to_owned(), |n| n.to_string());
        let Some(height) = chain.height else {
            if chain.hash.is_some() || chain.through.is_some() || chain.begun_at.is_some() {
                wrong("a hash or heights without a block", "none");
            }
            return;
        };
        if chain.hash != totals.hash {
            let word = |hash: &Option<String>| hash.clone().unwrap_or_else(|| "no block".to_owned());
            wrong(&format!("{height} is {}", word(&chain.hash)), &format!("{height} is {}", word(&totals.hash)));
        }
        if chain.begun_at != chain.start {
            wrong(&format!("begun at {}", text(chain.begun_at)), &format!("begins at {}", text(chain.start)));
        }
        match chain.through {
            Some(through) if through == height => {}
            Some(through) if through > height => {
                // Passed over as empty: the source said that the chain is complete there, and nothing is stored.
                let empty_to =
                    totals.next_height.map_or(chain.complete_to, |next| chain.complete_to.min(Some(next - 1)));
                if empty_to < Some(through) {
                    wrong(&format!("applied through {through}"), &format!("empty through {}", text(empty_to)));
                }
            }
            other => wrong(&format!("applied through {}", text(other)), &format!("through {height} at least")),
        }
    }

    /// Runs one comparison; each of its rows is a difference.
    async fn compare<C: GenericClient + Sync>(
        &mut self,
        tx: &C,
        chain: &str,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<(), StoreError> {
        let rows = tx.query(sql, parameters).await?;
        let Some(first) = rows.first() else { return Ok(()) };
        let differences: i64 = first.try_get("differences")?;
        let kind: String = first.try_get("kind")?;
        let shown = rows.len().min(usize::try_from(self.most).unwrap_or(0));
        for row in &rows[..shown] {
            let (key, ours, recomputed): (String, String, String) =
                (row.try_get("key")?, row.try_get("ours")?, row.try_get("recomputed")?);
            self.difference(chain, row.try_get("kind")?, &key, &ours, &recomputed);
        }
        let left = differences - shown as i64;
        if left > 0 {
            self.findings.lines.push(format!("{chain}: {kind}: … and {left} more"));
        }
        self.findings.differences += differences.unsigned_abs();
        Ok(())
    }
}
