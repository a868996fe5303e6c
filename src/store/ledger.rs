//! What the processor reads and writes. One connection reads ahead, another applies.

mod block;
mod read;
mod tracked;
mod tx;
mod values;

use futures::{StreamExt, TryStreamExt, try_join};
use serde_json::Value;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, GenericClient, Row, Statement};

use super::column::Column;
use super::greeting::Greeting;
use super::numeric::Numeric;
use super::{Store, StoreError};
use crate::chain::decide::{Base, Checkpoint, Tells};
use crate::chain::delta::{Delta, Key};
use crate::chain::{BlockRef, ChainId, Height};

pub use block::{BlockError, BlockEvents, BlockTransaction, RangeTransaction};
pub use read::{LedgerRead, Movement};
pub use tracked::ProjectionRow;
pub use tx::Tx;
pub use values::{DroppedEvidence, ReorgNote};

/// Blocks that must be there, unchanged and unlocked, for a transaction to take effect.
#[derive(Debug, Clone, Default)]
pub struct Fence {
    heights: Vec<i64>,
    hashes: Vec<String>,
    revisions: Vec<Option<i64>>,
    complete_to: Option<i64>,
}

impl Fence {
    /// Adds a block above those added before. No revision: any will do (it was final when we looked).
    pub fn hold(&mut self, block: &BlockRef, revision: Option<i64>) {
        self.heights.push(block.height.to_sql());
        self.hashes.push(block.hash.as_str().to_owned());
        self.revisions.push(revision);
    }

    /// The chain must be complete to this height: missing ones below it were taken as empty.
    pub fn needs_complete_to(&mut self, height: Height) {
        self.complete_to = self.complete_to.max(Some(height.to_sql()));
    }
}

/// Consecutive blocks that one transaction applies.
#[derive(Debug, Clone, Default)]
pub struct Run {
    /// The checkpoint that it is sent on.
    pub base: Base,
    /// Blocks to hold: the one before, and its own.
    pub fence: Fence,
    /// The blocks, ascending, with their revisions. At least one.
    pub blocks: Vec<(BlockRef, i64)>,
    /// The height the state began at.
    pub start: Height,
    /// Whether its blocks are noted in the journal of applied blocks: all of them, or, where they are final, none.
    pub journals: bool,
    /// What the state is made by. None means it is not compared.
    pub digest: Option<String>,
    /// It follows another projection, which is further on: balances come from a replica at this block.
    pub on_replica: bool,
    /// What is told of its blocks; the checkpoint must ask for just that. None means nothing is, whatever it asks for.
    pub tells: Option<Tells>,
}

impl Run {
    /// Its last block.
    pub fn last(&self) -> &BlockRef {
        &self.blocks.last().expect("a run has blocks").0
    }

    /// What it is about, for messages.
    pub fn what(&self) -> String {
        match &self.blocks[..] {
            [(only, _)] => format!("block {only}"),
            several => format!("{} blocks up to {}", several.len(), self.last()),
        }
    }
}

/// What a run of blocks changes in `balances` and its history. Columns, as the statement takes them.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// Balances that stand: their numbers.
    pub ids: Column,
    /// What they must be.
    pub before: Column,
    /// What they will be.
    pub after: Column,
    /// Heights of their last changes.
    pub heights: Column,
    /// New balances: their numbers.
    pub new_ids: Column,
    /// Whose they are.
    pub new_keys: Keys,
    /// What they will be.
    pub new_amounts: Column,
    /// Heights of their last changes.
    pub new_heights: Column,
    /// Each change of each block: the balance's number.
    pub change_ids: Column,
    /// The block.
    pub change_heights: Column,
    /// By how much.
    pub deltas: Column,
    /// What it is afterwards.
    pub afters: Column,
    /// Height of the balance's change before; null where it did not exist.
    pub prev_heights: Column,
    /// Tokens whose totals change,
    pub total_tokens: Column,
    /// and by how much.
    pub total_changes: Column,
    /// Whether the changes are kept in `balance_history`.
    pub keeps_history: bool,
    /// Events left out.
    pub refused: Vec<Refused>,
    /// Balances that will be negative.
    pub negative: u64,
    /// What is told of the blocks.
    pub told: Told,
}

/// What `outbox` takes of a run.
#[derive(Debug, Clone, Default)]
pub struct Told {
    /// Tokens and addresses, each once, in the order of their places, which begin at 1.
    pub names: Column,
    /// What is said of each block, in JSON, with places for names.
    pub said: String,
}

/// Whose balances, in columns.
#[derive(Debug, Clone, Default)]
pub struct Keys {
    tokens: Column,
    addresses: Column,
}

impl Keys {
    /// Adds one.
    pub fn push(&mut self, (token, address): &Key) {
        self.tokens.push_text(token);
        self.addresses.push_text(address);
    }
}

/// A balance as it stands, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Balance {
    /// Its number.
    pub id: i64,
    /// Its amount.
    pub amount: Delta,
    /// Height of its last change, -1 or more. None means it does not exist; the number is reserved for it.
    pub height: Option<i64>,
}

/// An event the projection would not take.
#[derive(Debug, Clone)]
pub struct Refused {
    /// Its block's height.
    pub height: Height,
    /// Its transaction.
    pub tx_index: i64,
    /// Its place.
    pub event_index: i64,
    /// As it stands in `token_events`.
    pub raw: Value,
    /// A fixed word.
    pub reason: &'static str,
}

/// An undo that took effect, if `keys == restored`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Undone {
    /// Balances the journal names.
    pub keys: u64,
    /// Balances found as the journal left them, and taken back.
    pub restored: u64,
    /// Journal rows consumed.
    pub changes: u64,
    /// Blocks taken out of `applied_blocks`.
    pub blocks: u64,
}

fn height(row: &Row, column: &str) -> Result<Option<Height>, StoreError> {
    row.try_get::<_, Option<i64>>(column)?
        .map(|h| Height::try_from(h).map_err(|e| StoreError::Nonsense { what: format!("{column}: {e}") }))
        .transpose()
}

fn needed_height(row: &Row, column: &str) -> Result<Height, StoreError> {
    height(row, column)?.ok_or_else(|| StoreError::Nonsense { what: format!("{column} is null") })
}

fn count(row: &Row, column: &str) -> Result<u64, StoreError> {
    Ok(row.try_get::<_, i64>(column)?.unsigned_abs())
}

/// How a processor's connections plan: rows are looked up by their keys whatever the statistics say, since a plan is kept for
/// as long as its connection, and may have been made while the tables were empty. Materialized, all rows of a chain would be
/// compared with each key that is asked for.
pub const BY_THEIR_KEYS: &[(&str, &str)] = &[
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("enable_material", "off"),
];
/// What a session that applies blocks is: nobody else writes what follows from the chain (`refuse_stray`). Checkpoint and
/// effects are lost or kept together, so a commit need not wait for the disk.
const OF_THE_LEDGER: &[(&str, &str)] = &[("ebbtide.ledger", "on"), ("synchronous_commit", "off")];

/// The writing side of a processor.
#[derive(Debug)]
pub struct LedgerWrite {
    client: Client,
    statements: Statements,
    /// To reach the server once more, where a statement must be cancelled.
    store: Store,
}

/// What makes a session again what it was before code of people ran on it.
#[derive(Debug)]
struct Reset {
    names: Vec<String>,
    settings: Vec<String>,
    alone: Statement,
}

#[derive(Debug)]
struct Statements {
    apply: ApplyStatements,
    pass_empty: Statement,
    halt: Statement,
    hold_checkpoint: Statement,
    hold_block: Statement,
    undo: Statement,
    begin_again: Statement,
    note_reorg: Statement,
    tracked: tracked::TrackedStatements,
    reset: Reset,
}

/// What writes `balances` and `balance_history`, under whatever tables these names mean when it is prepared.
#[derive(Debug)]
struct ApplyStatements {
    apply: Statement,
    balances_of_keys: Statement,
    open_balances: Statement,
}

impl ApplyStatements {
    async fn prepare<C: GenericClient>(client: &C) -> Result<ApplyStatements, StoreError> {
        let (apply, balances_of_keys, open_balances) = try_join!(
            client.prepare(include_str!("../../sql/queries/apply.sql")),
            client.prepare(include_str!("../../sql/queries/balances_of_keys.sql")),
            client.prepare(include_str!("../../sql/queries/open_balances.sql")),
        )?;
        Ok(ApplyStatements { apply, balances_of_keys, open_balances })
    }
}

impl LedgerWrite {
    /// A connection of its own.
    pub async fn connect(store: &Store) -> Result<LedgerWrite, StoreError> {
        LedgerWrite::connect_as(store, store.greeting.clone().and(OF_THE_LEDGER).and(BY_THEIR_KEYS)).await
    }

    /// A connection of its own for functions of people: the planner is left as they know it.
    pub async fn connect_for_functions(store: &Store) -> Result<LedgerWrite, StoreError> {
        LedgerWrite::connect_as(store, store.greeting.clone().and(OF_THE_LEDGER)).await
    }

    async fn connect_as(store: &Store, greeting: Greeting) -> Result<LedgerWrite, StoreError> {
        let client = store.connect_as(&greeting).await?;
        let (names, settings) = greeting.columns();
        let alone = client.prepare("select reset_session($1, $2)").await?;
        LedgerWrite::prepare(client, Reset { names, settings, alone }, store.clone()).await
    }

    /// All statements are sent at once: a connection costs few round trips.
    async fn prepare(client: Client, reset: Reset, store: Store) -> Result<LedgerWrite, StoreError> {
        let several = async {
            Ok(try_join!(
                client.prepare(include_str!("../../sql/queries/pass_empty_blocks.sql")),
                client.prepare(include_str!("../../sql/queries/halt.sql")),
                client.prepare(include_str!("../../sql/queries/hold_checkpoint.sql")),
                client.prepare(include_str!("../../sql/queries/hold_block.sql")),
                client.prepare(include_str!("../../sql/queries/undo.sql")),
                client.prepare(include_str!("../../sql/queries/begin_again.sql")),
                client.prepare(include_str!("../../sql/queries/note_reorg.sql")),
            )?)
        };
        let ((pass_empty, halt, hold_checkpoint, hold_block, undo, begin_again, note_reorg), apply, tracked) =
            try_join!(several, ApplyStatements::prepare(&client), tracked::TrackedStatements::prepare(&client),)?;
        let statements = Statements {
            apply,
            pass_empty,
            halt,
            hold_checkpoint,
            hold_block,
            undo,
            begin_again,
            note_reorg,
            tracked,
            reset,
        };
        Ok(LedgerWrite { client, statements, store })
    }

    /// Whether the connection is gone.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Applies a run in a transaction of its own; calls may be sent before earlier ones were answered, and take effect in
    /// the order in which they were first polled. False: the fence did not hold, nothing was written.
    pub async fn apply(
        &self,
        chain: ChainId,
        projection: &str,
        run: &Run,
        changes: &Changes,
    ) -> Result<bool, StoreError> {
        Ok(apply(&self.client, &self.statements.apply, chain, projection, run, changes).await?.is_some())
    }

    /// Passes over empty heights above the checkpoint's block. False: the fence did not hold.
    pub async fn pass_empty_blocks(
        &self,
        chain: ChainId,
        projection: &str,
        base: &Base,
        through: Height,
    ) -> Result<bool, StoreError> {
        let (height, hash) = columns(base);
        let row = self
            .client
            .query_opt(
                &self.statements.pass_empty,
                &[&chain.0, &projection, &base.seq, &height, &hash, &through.to_sql()],
            )
            .await?;
        Ok(row.is_some())
    }

    /// Begins a transaction that holds the checkpoint until its end. None means it is not the one that was looked at.
    ///
    /// `turn`: keeps writers of the chain out until it ends, for what no lock on a block protects (opening balances,
    /// heights without a block). Taken first, as writers do: chain, checkpoint, blocks, so that there is no deadlock.
    pub async fn begin(
        &mut self,
        chain: ChainId,
        projection: &str,
        looked: &Checkpoint,
        turn: bool,
    ) -> Result<Option<Tx<'_>>, StoreError> {
        let statements = &self.statements;
        let tx = self.client.transaction().await?;
        if turn {
            tx.query_opt("select from chains where chain_id = $1 for share", &[&chain.0]).await?;
        }
        let base = looked.base();
        let (at, hash) = columns(&base);
        let [redo_from, history_from, journal_from] =
            [looked.redo_from, looked.history_from, looked.journal_from].map(|height| height.map(Height::to_sql));
        let held = tx
            .query_opt(
                &statements.hold_checkpoint,
                &[&chain.0, &projection, &base.seq, &at, &hash, &redo_from, &history_from, &journal_from],
            )
            .await?;
        Ok(held.map(|_| Tx::new(tx, statements, chain, projection, base)))
    }

    /// A transaction for one run, which its first statement fences.
    pub async fn transaction(&mut self, chain: ChainId, projection: &str, base: Base) -> Result<Tx<'_>, StoreError> {
        let tx = self.client.transaction().await?;
        Ok(Tx::new(tx, &self.statements, chain, projection, base))
    }

    /// Stops a projection with a reason, if it still stands where it failed.
    pub async fn halt(&self, chain: ChainId, projection: &str, base: &Base, reason: &str) -> Result<(), StoreError> {
        let (height, hash) = columns(base);
        self.client
            .execute(&self.statements.halt, &[&chain.0, &projection, &base.seq, &height, &hash, &reason])
            .await?;
        Ok(())
    }

    /// Takes a height as final on a chain that no source follows.
    pub async fn raise_final(&self, chain: ChainId, height: Height) -> Result<(), StoreError> {
        self.client.execute(include_str!("../../sql/queries/raise_final.sql"), &[&chain.0, &height.to_sql()]).await?;
        Ok(())
    }

    /// Prunes the journal of applied blocks up to the horizon, if the state still is the one compared at `seq`.
    pub async fn prune_applied(
        &self,
        chain: ChainId,
        projection: &str,
        horizon: Height,
        seq: i64,
    ) -> Result<(), StoreError> {
        let sql = include_str!("../../sql/queries/prune_applied.sql");
        self.client.execute(sql, &[&chain.0, &projection, &horizon.to_sql(), &seq]).await?;
        Ok(())
    }

    /// [`LedgerWrite::prune_applied`], and with the journal what `balance_history` holds below the horizon that was followed
    /// by another change up to it.
    pub async fn prune_history(
        &self,
        chain: ChainId,
        projection: &str,
        horizon: Height,
        seq: i64,
    ) -> Result<(), StoreError> {
        let sql = include_str!("../../sql/queries/prune_history.sql");
        self.client.execute(sql, &[&chain.0, &projection, &horizon.to_sql(), &seq]).await?;
        Ok(())
    }

    /// Drops notices up to the horizon that every sink was promised.
    pub async fn prune_outbox(&self, chain: ChainId, projection: &str, horizon: Height) -> Result<(), StoreError> {
        self.client.execute("select prune_outbox($1, $2, $3)", &[&chain.0, &projection, &horizon.to_sql()]).await?;
        Ok(())
    }

    /// Begins what sinks are told of this checkpoint, where they waited for it to have caught up with its chain, and it has.
    pub async fn begin_streams(&self, chain: ChainId, projection: &str) -> Result<(), StoreError> {
        self.client.execute("select begin_streams($1, $2)", &[&chain.0, &projection]).await?;
        Ok(())
    }

    /// Drops the oldest replaced blocks and reorganisations of all chains, at most so many of each, that were noted more than
    /// so many days ago.
    pub async fn drop_old_evidence(&self, keep_days: u32, at_most: u32) -> Result<DroppedEvidence, StoreError> {
        let days = i32::try_from(keep_days).unwrap_or(i32::MAX);
        let sql = include_str!("../../sql/queries/prune_evidence.sql");
        let row = self.client.query_one(sql, &[&days, &i64::from(at_most)]).await?;
        Ok(DroppedEvidence { blocks: count(&row, "blocks")?, reorgs: count(&row, "reorgs")? })
    }
}

async fn apply<C: GenericClient>(
    client: &C,
    statements: &ApplyStatements,
    chain: ChainId,
    projection: &str,
    run: &Run,
    changes: &Changes,
) -> Result<Option<i64>, StoreError> {
    let Run { base, fence, start, .. } = run;
    let (base_height, base_hash) = columns(base);
    let (last, through) = (run.last(), run.last().height.to_sql());
    let noted = if run.journals { &run.blocks[..] } else { &[] };
    let (noted_heights, noted_revisions): (Vec<i64>, Vec<i64>) =
        noted.iter().map(|(b, r)| (b.height.to_sql(), *r)).unzip();
    let noted_hashes: Vec<&str> = noted.iter().map(|(b, _)| b.hash.as_str()).collect();
    let before_heights: Vec<Option<i64>> =
        std::iter::once(base_height).chain(noted_heights.iter().copied().map(Some)).take(noted.len()).collect();
    let journal_from = (!run.journals).then(|| last.height.next().to_sql());
    let refused_heights: Vec<i64> = changes.refused.iter().map(|r| r.height.to_sql()).collect();
    let refused_tx: Vec<i64> = changes.refused.iter().map(|r| r.tx_index).collect();
    let refused_event: Vec<i64> = changes.refused.iter().map(|r| r.event_index).collect();
    let refused_raw: Vec<&Value> = changes.refused.iter().map(|r| &r.raw).collect();
    let refused_reason: Vec<&str> = changes.refused.iter().map(|r| r.reason).collect();
    let row = client
        .query_opt(
            &statements.apply,
            &[
                &chain.0,
                &projection,
                &base.seq,
                &base_height,
                &base_hash,
                &fence.heights,
                &fence.hashes,
                &fence.revisions,
                &fence.complete_to,
                &through,
                &last.hash.as_str(),
                &through,
                &start.to_sql(),
                &journal_from,
                &noted_heights,
                &noted_hashes,
                &noted_revisions,
                &before_heights,
                &changes.ids,
                &changes.before,
                &changes.after,
                &changes.heights,
                &changes.new_ids,
                &changes.new_keys.tokens,
                &changes.new_keys.addresses,
                &changes.new_amounts,
                &changes.new_heights,
                &changes.change_ids,
                &changes.change_heights,
                &changes.deltas,
                &changes.afters,
                &changes.prev_heights,
                &changes.keeps_history,
                &refused_heights,
                &refused_tx,
                &refused_event,
                &refused_raw,
                &refused_reason,
                &changes.total_tokens,
                &changes.total_changes,
                &run.tells.map(|tells| tells.0),
                &changes.told.names,
                &changes.told.said,
            ],
        )
        .await?;
    row.map(|row| Ok(row.try_get("seq")?)).transpose()
}

async fn balances_of<C: GenericClient>(
    client: &C,
    statement: &Statement,
    chain: ChainId,
    keys: &Keys,
) -> Result<Vec<Balance>, StoreError> {
    if keys.tokens.is_empty() {
        return Ok(Vec::new());
    }
    let parameters: [&(dyn ToSql + Sync); 3] = [&chain.0, &keys.tokens, &keys.addresses];
    let rows = client.query_raw(statement, parameters).await?;
    rows.map(|row| {
        let row = row?;
        match row.try_get::<_, Option<i64>>(3)? {
            Some(id) => Ok(Balance { id, amount: Delta::ZERO, height: None }),
            None => Ok(Balance {
                id: row.try_get(0)?,
                amount: row.try_get::<_, Numeric>(1)?.0,
                height: Some(row.try_get(2)?),
            }),
        }
    })
    .try_collect()
    .await
}

/// The block that a checkpoint must stand on, as parameters.
fn columns(base: &Base) -> (Option<i64>, Option<&str>) {
    let block = base.block.as_ref();
    (block.map(|b| b.height.to_sql()), block.map(|b| b.hash.as_str()))
}
