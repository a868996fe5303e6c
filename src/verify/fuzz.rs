//! A projection of SQL functions against random reorganisations, on a chain that exists only inside a transaction.
//!
//! Two transactions, both rolled back. The first grows a chain, replaces its end again and again and, after each time, holds
//! the tables against an empty start with the surviving blocks. The second applies just those blocks, in another session and at
//! another time, from rows that lie in another order, by other plans: what hangs on any of these differs.

use serde_json::Value;
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use super::blocks::{FuzzBlock, Words, block};
use super::tables::verdict;
use super::{Findings, Report};
use crate::chain::dice::Dice;
use crate::store::{Store, StoreError, StoreFault};

/// What a fuzz run does.
#[derive(Debug, Clone)]
pub struct FuzzSettings<'a> {
    /// The projection.
    pub projection: &'a str,
    /// The chain whose tokens, addresses and events are used; None means the projection's own, or the first one.
    pub chain: Option<&'a str>,
    /// What the run follows from.
    pub seed: u64,
    /// How often the chain grows and is reorganised.
    pub rounds: u32,
    /// Most differences printed of each table.
    pub most: i64,
}

/// The scratch chain's name: in no database for longer than a transaction.
const CHAIN: &str = "ebbtide_fuzz";

/// Most blocks a reorganisation replaces.
const DEPTH: u64 = 8;

/// Up to so many rows of events the second run reads in the order in which they lie.
const SMALL: f32 = 200_000.0;

/// A run in hand.
struct Fuzz<'a> {
    client: Client,
    projection: &'a str,
    follows: bool,
    /// The one chain the projection's tables can hold, whose rows give way.
    own_chain: Option<i64>,
    chain: i64,
    base: i64,
    kind: String,
    branch: Vec<FuzzBlock>,
    reorgs: u64,
    refused: u64,
    applied: u64,
    deepest: usize,
}

/// A table's rows, as text.
type Dump = Vec<(String, Vec<String>)>;

impl Store {
    /// Runs a projection through random reorganisations and compares with fresh replays; nothing of it stays. A table that
    /// can hold one chain alone is emptied meanwhile, inside the transaction; its projection stands still.
    ///
    /// # Errors
    /// A projection that no SQL function applies, or whatever Postgres says.
    pub async fn fuzz(
        &self,
        settings: &FuzzSettings<'_>,
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<Findings, StoreError> {
        let FuzzSettings { projection, seed, .. } = *settings;
        let client = super::tables::begin(self).await?;
        let sql = include_str!("../../sql/queries/fuzz_projection.sql");
        let row = client.query_opt(sql, &[&projection, &settings.chain]).await?.ok_or_else(|| StoreError::Refused {
            reason: format!(
                "there is no projection named {projection} that an SQL function applies: others cannot be fuzzed"
            ),
        })?;
        let like: Option<i64> = row.try_get("like_chain")?;
        let mut dice = Dice(seed);
        let words = words(&client, like).await?.chosen(&mut dice);
        let mut run = Fuzz {
            client,
            projection,
            follows: row.try_get("follows")?,
            own_chain: row.try_get("chain_id")?,
            chain: 0,
            base: row.try_get("base")?,
            kind: row.try_get("kind")?,
            branch: Vec::new(),
            reorgs: 0,
            refused: 0,
            applied: 0,
            deepest: 0,
        };
        let mut report = Report { findings: Findings::default(), most: settings.most };
        let place = format!("{projection}: seed {seed}");
        run.begin(None).await?;
        run.histories(settings.rounds, &mut dice, &words, &mut report, &place, progress).await?;
        let rows = if report.findings.differences == 0 {
            let first = run.dump().await?;
            run.client.batch_execute("rollback").await?;
            // Plans and settings that a session keeps must not come along.
            run.client = super::tables::begin(self).await?;
            run.once_more(&mut dice, &first, &mut report, &place).await?;
            first.iter().map(|(_, rows)| rows.len()).sum()
        } else {
            0
        };
        run.client.batch_execute("rollback").await?;
        let mut findings = report.findings;
        if findings.differences == 0 && rows == 0 {
            findings.lines.push(format!(
                "{place}: note: it wrote no row that stayed, so this says little: give --chain a chain with its events"
            ));
        }
        let verdict = verdict(findings.differences);
        findings.summary = format!(
            "Fuzzed {projection} (seed {seed}): {} blocks applied, {} refused by the function, {} reorganisations of up to {} \
             blocks, {rows} rows in the end: {verdict}.",
            run.applied, run.refused, run.reorgs, run.deepest
        );
        Ok(findings)
    }
}

/// Of the newest events of a chain.
async fn words(client: &Client, chain: Option<i64>) -> Result<Words, StoreError> {
    let mut words = Words::default();
    let moved = client.query(include_str!("../../sql/queries/fuzz_movements.sql"), &[&chain]).await?;
    for row in &moved {
        words.tokens.push(row.try_get("token")?);
        for column in ["from_address", "to_address"] {
            words.addresses.extend(row.try_get::<_, Option<String>>(column)?);
        }
        words.amounts.push(row.try_get("amount")?);
    }
    for list in [&mut words.tokens, &mut words.addresses] {
        list.sort_unstable();
        list.dedup();
    }
    let events = client.query(include_str!("../../sql/queries/fuzz_events.sql"), &[&chain]).await?;
    for row in &events {
        words.events.push(row.try_get("event")?);
    }
    Ok(words)
}

impl Fuzz<'_> {
    /// Begins a transaction with the scratch chain in it: a new one, or the same again.
    async fn begin(&mut self, chain: Option<i64>) -> Result<(), StoreError> {
        self.client.batch_execute("begin").await?;
        if let Some(own) = self.own_chain {
            let sql = "select from checkpoints where chain_id = $1 and projection = $2 for update";
            self.client.query_opt(sql, &[&own, &self.projection]).await?;
            self.client.execute("select empty_tables($1, $2)", &[&self.projection, &own]).await?;
        }
        let sql = include_str!("../../sql/queries/fuzz_chain.sql");
        let row = self.client.query_one(sql, &[&chain, &CHAIN, &self.kind, &self.base]).await?;
        self.chain = row.try_get(0)?;
        Ok(())
    }

    /// Grows the chain and replaces its end, until something differs or it was done often enough.
    async fn histories(
        &mut self,
        rounds: u32,
        dice: &mut Dice,
        words: &Words,
        report: &mut Report,
        place: &str,
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<(), StoreError> {
        let reads = self.live_reads().await?;
        for round in 1..=rounds {
            let more = 1 + dice.below(4);
            self.grow(more, false, dice, words).await?;
            let depth = usize::try_from(1 + dice.below(DEPTH)).unwrap_or(1).min(self.branch.len());
            let new = (depth as u64 + dice.below(3)).saturating_sub(dice.below(3));
            if let Err(error) = self.back(depth).await {
                self.mind(error, report, &format!("{place}, round {round}: {depth} blocks cannot be taken back"))?;
                return Ok(());
            }
            let at_once = dice.below(2) == 0;
            self.grow(new, at_once, dice, words).await?;
            let tip = self.branch.last().map_or_else(|| "nothing".to_owned(), |b| format!("{} ({})", b.height, b.hash));
            let place =
                format!("{place}, round {round}: {depth} blocks taken back and {new} put in their place, up to {tip}");
            self.compare_with_replay(report, &place).await?;
            progress(u64::from(round));
            if report.findings.differences > 0 {
                return Ok(());
            }
        }
        if !self.follows && self.live_reads().await? > reads {
            report.finding(&format!(
                "{place}: it reads balances, which without after => 'token_balances' may be at any block"
            ));
        }
        Ok(())
    }

    /// Puts blocks on top and applies them: each at once, or all once all of them are there, as after a reorganisation
    /// that was noticed late. A block that the function refuses goes again.
    async fn grow(&mut self, blocks: u64, all_first: bool, dice: &mut Dice, words: &Words) -> Result<(), StoreError> {
        let mut waiting = Vec::new();
        let mut parent =
            self.branch.last().map_or_else(|| (self.base - 1, "0x00".to_owned()), |b| (b.height, b.hash.clone()));
        for _ in 0..blocks {
            let next = block(dice, words, parent.0 + 1, &parent.1);
            self.put(&next).await?;
            if all_first {
                parent = (next.height, next.hash.clone());
                waiting.push(next);
            } else if self.try_or_drop(&next).await? {
                parent = (next.height, next.hash.clone());
                self.branch.push(next);
            }
        }
        for next in waiting {
            if !self.try_or_drop(&next).await? {
                break;
            }
            self.branch.push(next);
        }
        Ok(())
    }

    /// Applies a block, or takes it and all above it from the chain again.
    async fn try_or_drop(&mut self, block: &FuzzBlock) -> Result<bool, StoreError> {
        self.client.batch_execute("savepoint fuzz_block").await?;
        let before = self.branch.last().map(|b| (b.height, b.hash.clone()));
        match self.apply(block, before.as_ref()).await {
            Ok(()) => {
                self.client.batch_execute("release fuzz_block").await?;
                self.applied += 1;
                Ok(true)
            }
            Err(error) if error.fault() == StoreFault::Permanent => {
                self.client.batch_execute("rollback to fuzz_block; release fuzz_block").await?;
                self.client.execute("select drop_blocks($1, $2)", &[&CHAIN, &block.height]).await?;
                self.refused += 1;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    async fn apply(&self, block: &FuzzBlock, before: Option<&(i64, String)>) -> Result<(), StoreError> {
        let (height, hash) = (before.map(|b| b.0), before.map(|b| &b.1));
        self.client
            .execute(
                "select check_shapes($2), run_apply($1, $2, $5, $6, array[$3::bigint], array[$4::text], true, $7)",
                &[&self.chain, &self.projection, &block.height, &block.hash, &height, &hash, &self.follows],
            )
            .await?;
        Ok(())
    }

    async fn put(&self, block: &FuzzBlock) -> Result<(), StoreError> {
        let [transactions, token_events, events] =
            [&block.transactions, &block.token_events, &block.events].map(|list| Value::Array(list.clone()));
        self.client
            .execute(
                "select put_block($1, $2, $3, $4, to_timestamp($5::bigint), $6, $7, $8)",
                &[
                    &CHAIN,
                    &block.height,
                    &block.hash,
                    &block.parent,
                    &block.time,
                    &transactions,
                    &token_events,
                    &events,
                ],
            )
            .await?;
        Ok(())
    }

    /// Takes the last blocks from the chain, and then what they did.
    async fn back(&mut self, depth: usize) -> Result<(), StoreError> {
        let left = self.branch.len() - depth;
        let Some(first) = self.branch.get(left) else { return Ok(()) };
        let above = first.height - 1;
        self.client.execute("select drop_blocks($1, $2)", &[&CHAIN, &first.height]).await?;
        self.branch.truncate(left);
        self.client.execute("select restore_tables($1, $2, $3)", &[&self.projection, &self.chain, &above]).await?;
        self.reorgs += 1;
        self.deepest = self.deepest.max(depth);
        Ok(())
    }

    /// The tables, as reorganisations left them, against an empty start with the same blocks.
    async fn compare_with_replay(&self, report: &mut Report, place: &str) -> Result<(), StoreError> {
        let copy = "select copy_tables($1, $2, $3, true)";
        self.client.execute(copy, &[&self.projection, &self.chain, &"ours"]).await?;
        self.client.batch_execute("savepoint fuzz_replay").await?;
        self.client.execute("select empty_tables($1, $2)", &[&self.projection, &self.chain]).await?;
        if self.replay(report, place).await? {
            self.client.execute(copy, &[&self.projection, &self.chain, &"fresh"]).await?;
            let sql = "select * from compare_copies($1, 'ours', 'fresh', $2)";
            let rows = self.client.query(sql, &[&self.projection, &report.limit()]).await?;
            report.rows(place, &rows)?;
        }
        self.client.batch_execute("rollback to fuzz_replay; release fuzz_replay").await?;
        Ok(())
    }

    /// Applies all blocks of the branch. False: one was refused that had been taken before, a finding.
    async fn replay(&self, report: &mut Report, place: &str) -> Result<bool, StoreError> {
        let mut before: Option<(i64, String)> = None;
        for block in &self.branch {
            if let Err(error) = self.apply(block, before.as_ref()).await {
                let place = format!("{place}: block {} ({}), applied before, is refused", block.height, block.hash);
                self.mind(error, report, &place)?;
                return Ok(false);
            }
            before = Some((block.height, block.hash.clone()));
        }
        Ok(true)
    }

    /// A failure of the function is a finding; any other is not.
    fn mind(&self, error: StoreError, report: &mut Report, place: &str) -> Result<(), StoreError> {
        if error.fault() != StoreFault::Permanent {
            return Err(error);
        }
        report.finding(&format!("{place}: {}", error.message()));
        Ok(())
    }

    /// The surviving blocks alone, in another transaction: another time, another order of rows, other plans.
    async fn once_more(
        &mut self,
        dice: &mut Dice,
        first: &Dump,
        report: &mut Report,
        place: &str,
    ) -> Result<(), StoreError> {
        let place = format!(
            "{place}: {} blocks applied once more, in another transaction and from rows in another order",
            self.branch.len()
        );
        self.begin(Some(self.chain)).await?;
        let sql = "select sum(greatest(reltuples, 0))::real from pg_class \
                   where oid in ('token_events'::regclass, 'events'::regclass)";
        if self.client.query_one(sql, &[]).await?.try_get::<_, f32>(0)? < SMALL {
            self.client.batch_execute(include_str!("../../sql/queries/fuzz_plans.sql")).await?;
        }
        let mut lists: [Vec<Value>; 3] = Default::default();
        for block in &self.branch {
            for (list, of) in lists.iter_mut().zip([&block.transactions, &block.token_events, &block.events]) {
                list.extend(of.iter().cloned().map(|mut item| {
                    item["height"] = block.height.into();
                    item
                }));
            }
        }
        for list in &mut lists {
            dice.shuffle(list);
        }
        let [transactions, token_events, events] = lists.map(Value::Array);
        let parameters: [&(dyn ToSql + Sync); 4] = [&self.chain, &transactions, &token_events, &events];
        self.client.execute(include_str!("../../sql/queries/fuzz_rows.sql"), &parameters).await?;
        for block in &self.branch {
            self.client
                .execute(
                    "insert into blocks (chain_id, height, hash, parent_hash, time) \
                     values ($1, $2, $3, $4, to_timestamp($5::bigint))",
                    &[&self.chain, &block.height, &block.hash, &block.parent, &block.time],
                )
                .await?;
        }
        if !self.replay(report, &place).await? {
            return Ok(());
        }
        let second = self.dump().await?;
        for ((table, ours), (_, theirs)) in first.iter().zip(&second) {
            for (side, one, other) in [("only before", ours, theirs), ("only now", theirs, ours)] {
                let differing = without(one, other);
                report.findings.differences += differing.len() as u64;
                let most = usize::try_from(report.most).unwrap_or(0);
                let lines = differing.iter().take(most).map(|row| format!("{place}: {table}: {side} {row}"));
                report.findings.lines.extend(lines);
                if let Some(left) = differing.len().checked_sub(most).filter(|left| *left > 0) {
                    report.findings.lines.push(format!("{place}: {table}: {side}: … and {left} more"));
                }
            }
        }
        Ok(())
    }

    async fn dump(&self) -> Result<Dump, StoreError> {
        let copy = "select copy_tables($1, $2, 'dump', true)";
        self.client.execute(copy, &[&self.projection, &self.chain]).await?;
        let rows = self.client.query("select relation, rows from dump_copies($1, 'dump')", &[&self.projection]).await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
    }

    async fn live_reads(&self) -> Result<i64, StoreError> {
        let row = self.client.query_one("select coalesce(live_reads(), 0)", &[]).await?;
        Ok(row.try_get(0)?)
    }
}

/// The rows of one sorted list that the other does not have, as multisets.
fn without<'a>(one: &'a [String], other: &[String]) -> Vec<&'a String> {
    let mut other = other.iter().peekable();
    let mut only = Vec::new();
    for row in one {
        while other.next_if(|o| *o < row).is_some() {}
        if other.next_if(|o| *o == row).is_none() {
            only.push(row);
        }
    }
    only
}

#[cfg(test)]
mod tests {
    use super::without;

    #[test]
    fn rows_are_compared_as_multisets() {
        let list = |text: &str| text.chars().map(String::from).collect::<Vec<_>>();
        for (one, other, only) in
            [("", "", ""), ("a", "", "a"), ("", "a", ""), ("aab", "ab", "a"), ("abd", "bcc", "ad"), ("b", "aab", "")]
        {
            let (one, other) = (list(one), list(other));
            assert_eq!(without(&one, &other).into_iter().cloned().collect::<Vec<_>>(), list(only));
        }
    }
}
