//! Projections with tracked tables: SQL functions and code of the program. One transaction per block here as well; undo is
//! one statement for all of a projection's tables.

use std::sync::Arc;
use std::time::Instant;

use futures::stream::{FuturesOrdered, StreamExt};

use super::extend::read_refs;
use super::look::{Difference, Failed, Fault, Outcome, Task};
use super::rebuild::Rebuild;
use super::switch::{depth_of, log_reorg};
use super::{Done, Of, Session, Work};
use crate::chain::plan::StoredBlock;
use crate::chain::{BlockRef, Height};
use crate::projections::Projection;
use crate::store::{BlockError, Fence, LedgerRead, Look, ReorgNote, StepBlock, StoreError, Switch, Undone};

/// Blocks sent before the first of them was answered.
const IN_FLIGHT: usize = 16;
/// Blocks read at once.
const CHUNK_BLOCKS: u64 = 500;
/// Most events of a kind in one transaction of several final blocks.
const RANGE_EVENTS: u64 = 10_000;

/// Makes the steps of a run of blocks.
#[derive(Clone)]
struct Steps {
    start: Height,
    digest: Option<String>,
    /// Blocks at or below this height are final; their undo is not recorded, unless blocks below have theirs.
    final_height: Option<Height>,
    journalled: bool,
    on_replica: bool,
    before: Option<(BlockRef, Option<i64>)>,
}

impl Steps {
    /// Whether no undo is recorded of a block at this height, if it comes next.
    fn is_final(&self, height: Height) -> bool {
        !self.journalled && self.final_height.is_some_and(|f| height <= f)
    }

    fn next(&mut self, stored: &StoredBlock) -> StepBlock {
        let block = BlockRef { height: stored.height, hash: stored.hash.clone() };
        let mut fence = Fence::default();
        let expected = match &self.before {
            Some((before, revision)) => {
                fence.hold(before, *revision);
                before.height.next()
            }
            None => self.start,
        };
        fence.hold(&block, Some(stored.revision));
        if block.height != expected {
            fence.needs_complete_to(block.height.minus(1));
        }
        let record = !self.is_final(block.height);
        self.journalled |= record;
        self.before = Some((block.clone(), Some(stored.revision)));
        let (start, digest, on_replica) = (self.start, self.digest.clone(), self.on_replica);
        StepBlock { fence, block, revision: stored.revision, start, record, digest, on_replica }
    }
}

impl Task {
    fn block_fault(&self, error: StoreError, seq: i64, block: &BlockRef) -> Fault {
        Fault::Failed(Failed { error, seq, what: format!("block {block}"), at: Some(block.height) })
    }

    /// Applies what counts above the checkpoint, up to `cap`.
    pub(super) async fn extend_tracked(
        &mut self,
        session: &mut Session,
        look: &Look,
        start: Height,
        cap: Height,
    ) -> Result<Outcome, Fault> {
        let Some(tip) = look.checkpoint.block.clone() else { return Ok(Outcome::Idle) };
        let ours = session.read.applied_blocks(self.chain, &self.name).await?;
        let revision = ours.last().filter(|(b, _)| *b == tip).map(|(_, revision)| *revision);
        let mut steps = Steps {
            start,
            digest: self.digest(look),
            final_height: look.final_height,
            journalled: !ours.is_empty(),
            on_replica: look.after.is_some(),
            before: Some((tip.clone(), revision)),
        };
        let chunk = read_refs(&session.read, self.chain, look, Some(&tip), start, cap, CHUNK_BLOCKS).await?;
        if chunk.is_empty() {
            return self.pass_empty_blocks(session, look, cap).await;
        }
        let started = Instant::now();
        let applied = match self.work.clone() {
            Work::Code(code) => self.extend_by_code(session, look, &mut steps, &chunk, &code).await?,
            Work::Balances | Work::Function => self.extend_by_function(session, look, &mut steps, &chunk).await?,
        };
        let of = Of { chain: &look.chain_name, projection: &self.name };
        self.watcher.applied(of, Done { blocks: applied, took: started.elapsed(), ..Done::default() });
        if applied < chunk.len() as u64 && !self.shutdown.is_cancelled() {
            return Ok(Outcome::Contended);
        }
        if let Some((last, _)) = &steps.before {
            tracing::info!(
                chain = %look.chain_name, projection = %self.name, height = last.height.get(), blocks = applied,
                "Applied {applied} blocks of {} up to {}", look.chain_name, last.height
            );
        }
        self.stuck_at = None;
        Ok(Outcome::Moved)
    }

    /// Several transactions in flight: each is one statement. Returns how many blocks were applied.
    async fn extend_by_function(
        &self,
        session: &Session,
        look: &Look,
        steps: &mut Steps,
        chunk: &[StoredBlock],
    ) -> Result<u64, Fault> {
        let (chain, name, write) = (self.chain, self.name.as_str(), &session.write);
        let mut in_flight = FuturesOrdered::new();
        let mut seq = look.checkpoint.seq;
        let mut blocks = chunk.iter();
        let mut applied = 0;
        loop {
            while in_flight.len() < IN_FLIGHT
                && !self.shutdown.is_cancelled()
                && let Some(stored) = blocks.next()
            {
                let step = steps.next(stored);
                let this_seq = seq;
                seq += 1;
                in_flight.push_back(async move {
                    let result = write.apply_function(chain, name, this_seq, &step).await;
                    (result, this_seq, step.block)
                });
            }
            match in_flight.next().await {
                None => return Ok(applied),
                Some((Ok(Some(_)), ..)) => applied += 1,
                Some((Ok(None), ..)) => return Ok(applied),
                Some((Err(error), seq, block)) => return Err(self.block_fault(error, seq, &block)),
            }
        }
    }

    async fn extend_by_code(
        &mut self,
        session: &mut Session,
        look: &Look,
        steps: &mut Steps,
        chunk: &[StoredBlock],
        code: &Arc<dyn Projection>,
    ) -> Result<u64, Fault> {
        let mut seq = look.checkpoint.seq;
        let mut applied = 0;
        while applied < chunk.len() && !self.shutdown.is_cancelled() {
            let before = steps.clone();
            let range = self.next_range(&session.read, steps, &chunk[applied..]).await?;
            let mut tx = session.write.block_transaction(self.chain, &self.name, seq).await?;
            let committed = match apply_by_code(&mut tx, &range, code).await {
                Ok(true) => tx.commit().await,
                Ok(false) => break,
                Err(error) => Err(error),
            };
            match committed {
                Ok(new_seq) => {
                    (seq, applied) = (new_seq, applied + range.len());
                    self.most_in_range = self.most_in_range.saturating_mul(2);
                }
                Err(error) if !self.halve(&error, &range) => return Err(self.block_fault(error, seq, &range[0].block)),
                Err(_) => *steps = before,
            }
        }
        Ok(applied as u64)
    }

    /// The next block, or as many final ones as go into one transaction.
    async fn next_range(
        &self,
        read: &LedgerRead,
        steps: &mut Steps,
        left: &[StoredBlock],
    ) -> Result<Vec<StepBlock>, StoreError> {
        let is_code = matches!(self.work, Work::Code(_));
        let mut count = left.iter().take_while(|block| is_code && steps.is_final(block.height)).count();
        count = count.min(self.most_in_range).max(1);
        let heights = (left[0].height, left[count - 1].height);
        if count > 1
            && let Some(full) = read.range_end(self.chain, heights.0, heights.1, RANGE_EVENTS).await?
        {
            count = left.partition_point(|block| block.height < full).max(1);
        }
        Ok(left[..count].iter().map(|block| steps.next(block)).collect())
    }

    /// After a range failed: whether it is tried again in parts. A single block has none.
    fn halve(&mut self, error: &StoreError, range: &[StepBlock]) -> bool {
        if let [first, .., last] = range {
            let (first, last) = (first.block.height, last.block.height);
            tracing::debug!(%error, "Blocks {first} to {last} could not be applied at once; trying half of them");
            self.most_in_range = range.len() / 2;
        }
        range.len() > 1
    }

    async fn apply_range(&self, tx: &mut Switch<'_>, range: &[StepBlock]) -> Result<bool, StoreError> {
        match &self.work {
            Work::Code(code) => apply_by_code(tx, range, code).await,
            Work::Balances | Work::Function => tx.apply_function(&range[0]).await,
        }
    }

    fn builds_beside(&self) -> bool {
        matches!(&self.work, Work::Code(code) if code.builds_beside())
    }

    /// From one branch to the other in one transaction; begins and rebuilds as well.
    pub(super) async fn switch_tracked(
        &mut self,
        session: &mut Session,
        look: &Look,
        start: Option<Height>,
        cap: Height,
        difference: Difference,
    ) -> Result<Outcome, Fault> {
        let started = Instant::now();
        let reason = difference.reason(look);
        let Difference { ancestor, deep, same_branch, .. } = difference;
        let seq = look.checkpoint.seq;
        let old_tip = look.checkpoint.block.clone();
        let empties = deep;
        let ancestor = ancestor.filter(|_| !empties);
        // A block of the new branch that fails must not keep the state on the old one; a rebuild keeps it, for readers.
        let stuck = self.stuck_at.filter(|_| !empties && old_tip.is_some());
        // At height 0 there is nothing below it to apply.
        let start = start.filter(|_| stuck.is_none_or(|stuck| stuck.prev().is_some()));
        let cap = stuck.and_then(Height::prev).map_or(cap, |below| cap.min(below));
        let what = match &old_tip {
            Some(tip) => format!("going over from {tip}"),
            None => "the start".to_owned(),
        };
        let failed = |error: StoreError| Fault::Failed(Failed { error, seq, what: what.clone(), at: None });
        let Session { read, write } = session;
        let turn = look.checkpoint.through.is_none() || look.complete_to.is_some();
        let Some(mut tx) = write.begin_switch(self.chain, &self.name, seq, turn).await? else {
            return Ok(Outcome::Contended);
        };
        if tx.redo_from != look.checkpoint.redo_from {
            return Ok(Outcome::Contended);
        }
        if let Some(ancestor) = &ancestor
            && !tx.hold(ancestor).await?
        {
            return Ok(Outcome::Contended);
        }
        let undone = if empties {
            tracing::info!(chain = %look.chain_name, projection = %self.name, reason, "Rebuilding");
            tx.empty_tables(self.builds_beside() && old_tip.is_some()).await.map_err(&failed)?
        } else if old_tip.is_some() {
            tx.undo_tables(ancestor.as_ref(), None).await.map_err(&failed)?
        } else {
            Undone { seq, keys: 0, restored: 0, changes: 0, blocks: 0 }
        };
        let mut steps = Steps {
            start: start.unwrap_or_default(),
            digest: self.digest(look),
            final_height: look.final_height,
            // The journal of applied blocks has no holes: above blocks that are in it, all are.
            on_replica: look.after.is_some(),
            journalled: ancestor.as_ref().is_some_and(|a| look.checkpoint.journal_from.is_none_or(|f| a.height >= f)),
            before: ancestor.clone().map(|a| (a, None)),
        };
        let mut applied = 0u64;
        let mut rows_replaced = 0u64;
        if let Some(start) = start {
            let first_only = old_tip.is_none();
            let to = look.checkpoint.through.map_or(cap, |t| t.min(cap));
            let mut rebuild = empties.then(|| Rebuild::new(reason, start, to));
            loop {
                let last = steps.before.as_ref().map(|(b, _)| b.clone());
                let limit = if first_only { 1 } else { CHUNK_BLOCKS };
                let chunk = read_refs(read, self.chain, look, last.as_ref(), start, to, limit).await?;
                if chunk.is_empty() {
                    break;
                }
                let mut left = chunk.as_slice();
                while !left.is_empty() {
                    if self.shutdown.is_cancelled() && empties {
                        return Ok(Outcome::Contended);
                    }
                    let before = steps.clone();
                    let range = self.next_range(read, &mut steps, left).await?;
                    // Undo is recorded in the live tables alone.
                    if range[0].record {
                        rows_replaced += tx.replace_tables_by_built().await.map_err(&failed)?;
                    }
                    let place = if range.len() > 1 { Some(tx.mark().await.map_err(&failed)?) } else { None };
                    match (self.apply_range(&mut tx, &range).await, place) {
                        (Ok(true), _) => {}
                        (Ok(false), _) => return Ok(Outcome::Contended),
                        (Err(error), Some(place)) if self.halve(&error, &range) => {
                            tx.back_to(place).await.map_err(&failed)?;
                            steps = before;
                            continue;
                        }
                        (Err(error), _) => {
                            drop(tx);
                            return Err(self.block_fault(error, seq, &range[0].block));
                        }
                    }
                    applied += range.len() as u64;
                    left = &left[range.len()..];
                    self.most_in_range = self.most_in_range.saturating_mul(2);
                    if let (Some(rebuild), Some(last)) = (&mut rebuild, range.last()) {
                        self.rebuild_is_at(read, look, rebuild, last.block.height).await?;
                    }
                }
                if first_only {
                    break;
                }
            }
        }
        rows_replaced += tx.replace_tables_by_built().await.map_err(&failed)?;
        let new_tip = steps.before.as_ref().map(|(b, _)| b.clone());
        if empties {
            tx.note_rebuilt(new_tip.as_ref(), reason).await.map_err(&failed)?;
        }
        let took = started.elapsed();
        let reorg = old_tip.filter(|_| !same_branch).map(|old_tip| {
            let depth = depth_of(look, &old_tip, ancestor.as_ref());
            let note = ReorgNote {
                ancestor: ancestor.as_ref().map(|a| a.height),
                depth,
                old_tip,
                new_tip,
                blocks_undone: if empties { depth } else { undone.blocks },
                blocks_applied: applied,
                rows_touched: undone.restored + rows_replaced,
                duration_ms: took.as_secs_f64() * 1000.0,
            };
            (depth, note)
        });
        if let Some((_, note)) = reorg.as_ref().filter(|(depth, _)| *depth > 0) {
            tx.note_reorg(note).await.map_err(&failed)?;
        }
        tx.commit().await.map_err(&failed)?;
        let of = Of { chain: &look.chain_name, projection: &self.name };
        if let Some((depth, _)) = reorg.filter(|(depth, _)| *depth > 0) {
            log_reorg(of, ancestor.as_ref(), depth, applied, took);
            self.watcher.switched(of, depth, took);
        }
        self.watcher.applied(of, Done { blocks: applied, took, ..Done::default() });
        Ok(Outcome::Moved)
    }
}

/// A block, or several final ones. False: the fence did not hold.
async fn apply_by_code(
    tx: &mut Switch<'_>,
    range: &[StepBlock],
    code: &Arc<dyn Projection>,
) -> Result<bool, StoreError> {
    if !tx.begin_blocks(range).await? {
        return Ok(false);
    }
    let blocks: Vec<BlockRef> = range.iter().map(|step| step.block.clone()).collect();
    code.apply_range(&tx.range(&blocks)).await.map_err(BlockError::into_store)?;
    tx.leave_block().await?;
    Ok(true)
}
