//! What the processor reads and writes. One connection reads ahead, another applies.

mod block;
mod read;
mod switch;
mod tracked;
mod values;

use serde_json::Value;
use tokio_postgres::{Client, GenericClient, Row, Statement};

use super::numeric::Numeric;
use super::{Store, StoreError};
use crate::chain::delta::Delta;
use crate::chain::{BlockRef, ChainId, Height, Text};

pub use block::{BlockError, BlockEvents, BlockTransaction, RangeTransaction};
pub use read::LedgerRead;
pub use switch::Switch;
pub use tracked::{ProjectionRow, StepBlock};
pub use values::{After, Checkpoint, Look, ReorgNote};

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

    /// Adds another fence above this one: what both hold is held once.
    pub(super) fn extend(&mut self, above: &Fence) {
        for (n, height) in above.heights.iter().enumerate() {
            if self.heights.last().is_none_or(|last| last < height) {
                self.heights.push(*height);
                self.hashes.push(above.hashes[n].clone());
                self.revisions.push(above.revisions[n]);
            }
        }
        self.complete_to = self.complete_to.max(above.complete_to);
    }

    /// The chain must be complete to this height: missing ones below it were taken as empty.
    pub fn needs_complete_to(&mut self, height: Height) {
        self.complete_to = self.complete_to.max(Some(height.to_sql()));
    }
}

/// One change of one balance in one block.
#[derive(Debug, Clone)]
pub struct BlockChange {
    /// The token.
    pub token: Text,
    /// The account.
    pub address: Text,
    /// The block's height.
    pub height: Height,
    /// By how much.
    pub delta: Delta,
    /// What later blocks of the same transaction change it by.
    pub later: Delta,
    /// Height of the change before, if it is in the same transaction.
    pub prev_height: Option<Height>,
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

/// What one apply statement does.
#[derive(Debug, Clone, Default)]
pub struct ApplyBlock {
    /// Blocks to hold.
    pub fence: Fence,
    /// The blocks, ascending, with their revisions.
    pub blocks: Vec<(BlockRef, i64)>,
    /// Applied up to here afterwards.
    pub through: Height,
    /// The height the state began at.
    pub start: Height,
    /// Heights above this are noted in `applied_blocks`; none: all.
    pub final_height: Option<Height>,
    /// Changes, in (token, address) order; for several blocks also by height within a key.
    pub changes: Vec<BlockChange>,
    /// Whether `balance_history` is written.
    pub history: bool,
    /// Whether a negative balance fails the statement.
    pub refuse_negative: bool,
    /// Events left out.
    pub refused: Vec<Refused>,
}

/// An apply that took effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// The checkpoint's new seq.
    pub seq: i64,
    /// Touched balances that are negative now.
    pub negative: u64,
}

/// An undo that took effect, if `keys == restored`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Undone {
    /// The checkpoint's new seq.
    pub seq: i64,
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

/// The writing side of a processor.
#[derive(Debug)]
pub struct LedgerWrite {
    client: Client,
    statements: Statements,
}

#[derive(Debug)]
struct Statements {
    apply: ApplyStatements,
    pass_empty: Statement,
    hold_checkpoint: Statement,
    hold_block: Statement,
    undo: Statement,
    begin_again: Statement,
    note_reorg: Statement,
    tracked: tracked::TrackedStatements,
}

/// What writes `balances` and `balance_history`, under whatever tables these names mean when it is prepared.
#[derive(Debug)]
struct ApplyStatements {
    apply_block: Statement,
    apply_blocks: Statement,
    open_balances: Statement,
}

impl ApplyStatements {
    async fn prepare<C: GenericClient>(client: &C) -> Result<ApplyStatements, StoreError> {
        Ok(ApplyStatements {
            apply_block: client.prepare(include_str!("../../sql/queries/apply_block.sql")).await?,
            apply_blocks: client.prepare(include_str!("../../sql/queries/apply_blocks.sql")).await?,
            open_balances: client.prepare(include_str!("../../sql/queries/open_balances.sql")).await?,
        })
    }
}

impl LedgerWrite {
    /// A connection of its own.
    pub async fn connect(store: &Store) -> Result<LedgerWrite, StoreError> {
        let client = store.connect().await?;
        // Checkpoint and effects are lost or kept together, so a commit need not wait for the disk. Joins of arrays
        // with what was just written are hashed: a plan made while the tables were empty would nest loops.
        client
            .batch_execute(
                "set synchronous_commit = off; set plan_cache_mode = force_generic_plan; \
                 set enable_nestloop = off; set enable_seqscan = off; set enable_mergejoin = off",
            )
            .await?;
        LedgerWrite::prepare(client).await
    }

    /// A connection of its own for functions of people: the planner is left as they know it.
    pub async fn connect_for_functions(store: &Store) -> Result<LedgerWrite, StoreError> {
        let client = store.connect().await?;
        client.batch_execute("set synchronous_commit = off").await?;
        LedgerWrite::prepare(client).await
    }

    async fn prepare(client: Client) -> Result<LedgerWrite, StoreError> {
        let statements = Statements {
            apply: ApplyStatements::prepare(&client).await?,
            pass_empty: client.prepare(include_str!("../../sql/queries/pass_empty_blocks.sql")).await?,
            hold_checkpoint: client.prepare(include_str!("../../sql/queries/hold_checkpoint.sql")).await?,
            hold_block: client.prepare(include_str!("../../sql/queries/hold_block.sql")).await?,
            undo: client.prepare(include_str!("../../sql/queries/undo.sql")).await?,
            begin_again: client.prepare(include_str!("../../sql/queries/begin_again.sql")).await?,
            note_reorg: client.prepare(include_str!("../../sql/queries/note_reorg.sql")).await?,
            tracked: tracked::TrackedStatements::prepare(&client).await?,
        };
        Ok(LedgerWrite { client, statements })
    }

    /// Applies in a transaction of its own; calls may be sent before earlier ones were answered, and take effect in
    /// the order in which they were first polled. None: the fence did not hold, nothing was written.
    pub async fn apply(
        &self,
        chain: ChainId,
        projection: &str,
        seq: i64,
        block: &ApplyBlock,
    ) -> Result<Option<Applied>, StoreError> {
        apply(&self.client, &self.statements.apply, chain, projection, seq, block).await
    }

    /// Passes over empty heights at the end. None: the fence did not hold.
    pub async fn pass_empty_blocks(
        &self,
        chain: ChainId,
        projection: &str,
        seq: i64,
        through: Height,
    ) -> Result<Option<i64>, StoreError> {
        let row = self
            .client
            .query_opt(&self.statements.pass_empty, &[&chain.0, &projection, &seq, &through.to_sql()])
            .await?;
        Ok(row.map(|row| row.get(0)))
    }

    /// Begins a reorg transaction. None: the checkpoint has moved.
    ///
    /// `turn`: keeps writers of the chain out until it ends, for what no lock on a block protects (opening balances,
    /// heights without a block). Taken first, as writers do: chain, checkpoint, blocks, so that nobody waits in a circle.
    pub async fn begin_switch(
        &mut self,
        chain: ChainId,
        projection: &str,
        seq: i64,
        turn: bool,
    ) -> Result<Option<Switch<'_>>, StoreError> {
        let statements = &self.statements;
        let tx = self.client.transaction().await?;
        if turn {
            tx.query_opt("select from chains where chain_id = $1 for share", &[&chain.0]).await?;
        }
        let held = tx.query_opt(&statements.hold_checkpoint, &[&chain.0, &projection, &seq]).await?;
        let Some(row) = held else { return Ok(None) };
        let redo_from = height(&row, "redo_from")?;
        Ok(Some(Switch::new(tx, statements, chain, projection, seq, redo_from)))
    }

    /// Stops a projection with a reason, if it still stands where it failed.
    pub async fn halt(&self, chain: ChainId, projection: &str, seq: i64, reason: &str) -> Result<(), StoreError> {
        self.client
            .execute(include_str!("../../sql/queries/halt.sql"), &[&chain.0, &projection, &seq, &reason])
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

    /// Prunes `balance_history` that lie below the horizon and were followed by others up to it.
    pub async fn prune_history(
        &self,
        chain: ChainId,
        projection: &str,
        pruned_to: Option<Height>,
        horizon: Height,
        seq: i64,
    ) -> Result<u64, StoreError> {
        let above = pruned_to.map_or(-1, Height::to_sql);
        let row = self
            .client
            .query_one(
                include_str!("../../sql/queries/prune_history.sql"),
                &[&chain.0, &projection, &above, &horizon.to_sql(), &seq],
            )
            .await?;
        Ok(row.get::<_, i64>(0).unsigned_abs())
    }

    /// First statistics after the first blocks: plans made on empty tables are bad ones. Later ones are the server's affair.
    pub async fn analyze(&self) -> Result<(), StoreError> {
        self.client
            .batch_execute(
                "do $$ begin
                    if exists (select from pg_class
                               where oid in ('balances'::regclass, 'balance_history'::regclass) and reltuples <= 0) then
                        analyze balances;
                        analyze balance_history;
                    end if;
                end $$",
            )
            .await?;
        Ok(())
    }
}

async fn apply<C: GenericClient>(
    client: &C,
    statements: &ApplyStatements,
    chain: ChainId,
    projection: &str,
    seq: i64,
    apply: &ApplyBlock,
) -> Result<Option<Applied>, StoreError> {
    let Some((last, last_revision)) = apply.blocks.last() else {
        return Err(StoreError::Nonsense { what: "an apply without a block".to_owned() });
    };
    let fence = &apply.fence;
    let (last_height, last_hash) = (last.height.to_sql(), last.hash.as_str());
    let (through, start) = (apply.through.to_sql(), apply.start.to_sql());
    let noted_at = |height: Height| apply.final_height.is_none_or(|f| height > f);
    let refused_tx: Vec<i64> = apply.refused.iter().map(|r| r.tx_index).collect();
    let refused_event: Vec<i64> = apply.refused.iter().map(|r| r.event_index).collect();
    let refused_raw: Vec<&Value> = apply.refused.iter().map(|r| &r.raw).collect();
    let refused_reason: Vec<&str> = apply.refused.iter().map(|r| r.reason).collect();
    let tokens: Vec<&str>;
    let addresses: Vec<&str>;
    let row = if apply.blocks.len() == 1 {
        tokens = apply.changes.iter().map(|c| &*c.token).collect();
        addresses = apply.changes.iter().map(|c| &*c.address).collect();
        let deltas: Vec<Numeric> = apply.changes.iter().map(|c| Numeric(c.delta)).collect();
        client
            .query_opt(
                &statements.apply_block,
                &[
                    &chain.0,
                    &projection,
                    &seq,
                    &fence.heights,
                    &fence.hashes,
                    &fence.revisions,
                    &fence.complete_to,
                    &last_height,
                    &last_hash,
                    last_revision,
                    &through,
                    &start,
                    &noted_at(last.height),
                    &tokens,
                    &addresses,
                    &deltas,
                    &apply.history,
                    &apply.refuse_negative,
                    &refused_tx,
                    &refused_event,
                    &refused_raw,
                    &refused_reason,
                ],
            )
            .await?
    } else {
        let nets = net_by_key(&apply.changes);
        tokens = nets.iter().map(|n| &**n.token).collect();
        addresses = nets.iter().map(|n| &**n.address).collect();
        let net_deltas: Vec<Numeric> = nets.iter().map(|n| Numeric(n.delta)).collect();
        let net_heights: Vec<i64> = nets.iter().map(|n| n.last.to_sql()).collect();
        // Without history the rows would not be written: do not send them.
        let changes: &[BlockChange] = if apply.history { &apply.changes } else { &[] };
        let change_places: Vec<i32> = (1..)
            .zip(&nets)
            .flat_map(|(place, net)| std::iter::repeat_n(place, net.changes))
            .take(changes.len())
            .collect();
        let change_heights: Vec<i64> = changes.iter().map(|c| c.height.to_sql()).collect();
        let change_deltas: Vec<Numeric> = changes.iter().map(|c| Numeric(c.delta)).collect();
        let change_later: Vec<Option<Numeric>> =
            changes.iter().map(|c| (!c.later.is_zero()).then_some(Numeric(c.later))).collect();
        let change_prev: Vec<Option<i64>> = changes.iter().map(|c| c.prev_height.map(Height::to_sql)).collect();
        let noted: Vec<&(BlockRef, i64)> = apply.blocks.iter().filter(|(b, _)| noted_at(b.height)).collect();
        let noted_heights: Vec<i64> = noted.iter().map(|(b, _)| b.height.to_sql()).collect();
        let noted_hashes: Vec<&str> = noted.iter().map(|(b, _)| b.hash.as_str()).collect();
        let noted_revisions: Vec<i64> = noted.iter().map(|(_, r)| *r).collect();
        let unnoted = apply.blocks.iter().rev().find(|(b, _)| !noted_at(b.height));
        let journal_from = unnoted.map(|(b, _)| b.height.next().to_sql());
        let refused_heights: Vec<i64> = apply.refused.iter().map(|r| r.height.to_sql()).collect();
        client
            .query_opt(
                &statements.apply_blocks,
                &[
                    &chain.0,
                    &projection,
                    &seq,
                    &fence.heights,
                    &fence.hashes,
                    &fence.revisions,
                    &fence.complete_to,
                    &noted_heights,
                    &noted_hashes,
                    &noted_revisions,
                    &through,
                    &start,
                    &tokens,
                    &addresses,
                    &net_deltas,
                    &net_heights,
                    &change_places,
                    &change_heights,
                    &change_deltas,
                    &change_later,
                    &change_prev,
                    &apply.history,
                    &apply.refuse_negative,
                    &refused_heights,
                    &refused_tx,
                    &refused_event,
                    &refused_raw,
                    &refused_reason,
                    &last_height,
                    &last_hash,
                    &journal_from,
                ],
            )
            .await?
    };
    row.map(|row| Ok(Applied { seq: row.try_get("seq")?, negative: count(&row, "negative")? })).transpose()
}

struct KeyNet<'a> {
    token: &'a Text,
    address: &'a Text,
    delta: Delta,
    last: Height,
    /// How many changes were summed.
    changes: usize,
}

/// Sums changes in (token, address, height) order by key.
fn net_by_key(changes: &[BlockChange]) -> Vec<KeyNet<'_>> {
    let mut nets: Vec<KeyNet<'_>> = Vec::with_capacity(changes.len());
    for change in changes {
        match nets.last_mut() {
            Some(net) if *net.token == change.token && *net.address == change.address => {
                net.delta = net.delta.merge(change.delta);
                net.last = change.height;
                net.changes += 1;
            }
            _ => nets.push(KeyNet {
                token: &change.token,
                address: &change.address,
                delta: change.delta,
                last: change.height,
                changes: 1,
            }),
        }
    }
    nets
}
