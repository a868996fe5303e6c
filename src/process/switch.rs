//! From one branch to the other in one transaction: undo to the ancestor, apply what is there instead. The same
//! transaction begins a chain (nothing to undo, opening balances first) and rebuilds one (everything to undo).

use std::time::Instant;

use super::extend::{bad_event, batch, read_chunk};
use super::look::{Difference, Failed, Fault, Outcome, Task};
use super::{Done, Of, Session};
use crate::chain::{BlockRef, Height};
use crate::projections::token_balances::{History, NAME, OnBadEvent};
use crate::store::{Look, ReorgNote, StoreError, Undone};

/// Blocks of the new branch merged into one statement.
const CHUNK_BLOCKS: u64 = 100;

impl Task {
    pub(super) async fn switch(
        &mut self,
        session: &mut Session,
        look: &Look,
        start: Option<Height>,
        cap: Height,
        difference: Difference,
    ) -> Result<Outcome, Fault> {
        let started = Instant::now();
        let Difference { mut ancestor, deep, down, same_branch, .. } = difference;
        let seq = look.checkpoint.seq;
        let old_tip = look.checkpoint.block.clone();
        let what = match (&old_tip, &ancestor) {
            (Some(tip), Some(ancestor)) => format!("the reorganisation from {tip} to after {ancestor}"),
            (Some(tip), None) => format!("the reorganisation from {tip} to before the start"),
            (None, _) => "the start".to_owned(),
        };
        let failed = |error: StoreError| Fault::Failed(Failed { error, seq, what: what.clone(), at: None });
        // A transaction of this size ran too long: take a part of the old branch back first, without leaving it.
        let mut redo_after = None;
        let mut only_undo = false;
        if !deep
            && (down.len() as u64) > self.most_blocks
            && let Some(part) = down.get(self.most_blocks as usize)
        {
            ancestor = Some(part.clone());
            redo_after = look.checkpoint.redo_from;
            only_undo = true;
        }
        let (chain, most_blocks) = (self.chain, self.most_blocks);
        let settings = self.settings.token_balances;
        let followed = look.followed && !self.without_followers;
        let Session { read, write } = session;
        // While a chain begins, a change of its opening balances finds no state yet that it could have redone.
        let turn = look.checkpoint.through.is_none() || look.complete_to.is_some();
        let Some(mut tx) = write.begin_switch(chain, NAME, seq, turn).await? else { return Ok(Outcome::Contended) };
        if tx.redo_from != look.checkpoint.redo_from {
            return Ok(Outcome::Contended);
        }
        if let Some(ancestor) = &ancestor
            && !only_undo
            && !tx.hold(ancestor).await?
        {
            return Ok(Outcome::Contended);
        }
        let undone = if old_tip.is_none() && look.checkpoint.redo_from.is_none() {
            Undone { seq, keys: 0, restored: 0, changes: 0, blocks: 0 }
        } else if settings.history == History::Window && deep || beyond_history(look, ancestor.as_ref()) {
            ancestor = None;
            let undone = tx.empty().await.map_err(&failed)?;
            if let (true, Some(old_tip)) = (followed, &old_tip) {
                tx.undo_followers(old_tip, None).await.map_err(&failed)?;
            }
            undone
        } else {
            if deep {
                tx.unlimited().await?;
            }
            let through = ancestor.as_ref().map(|a| a.height);
            let undone = tx.undo_to(ancestor.as_ref(), through, redo_after).await.map_err(&failed)?;
            if let (true, Some(old_tip)) = (followed, &old_tip) {
                tx.undo_followers(old_tip, ancestor.as_ref()).await.map_err(&failed)?;
            }
            undone
        };
        if undone.keys != undone.restored {
            let wrong = undone.keys - undone.restored.min(undone.keys);
            drop(tx);
            let reason = format!(
                "{what}: {wrong} of {} balances are not what the journal left; `ebbtide verify` shows which",
                undone.keys
            );
            tracing::error!(chain = %look.chain_name, reason, "Halting {NAME}");
            write.halt(chain, NAME, seq, &reason).await?;
            return Ok(Outcome::Moved);
        }
        let mut new_tip = ancestor.clone();
        let mut applied_blocks = 0u64;
        let mut applied_events = 0u64;
        let mut negative = 0u64;
        let mut refused = 0u64;
        if let Some(start) = start.filter(|_| !only_undo) {
            let mut opened = ancestor.is_some();
            // Up to the height readers saw before, so that it falls only where the new chain is shorter.
            let first_only = old_tip.is_none();
            let to = look.checkpoint.through.map_or(cap, |t| t.min(cap));
            let mut before = ancestor.clone().map(|a| (a, None));
            while !first_only || applied_blocks == 0 {
                let budget = most_blocks.saturating_sub(applied_blocks);
                // Those that follow go block by block.
                let limit = if first_only || followed { 1 } else { CHUNK_BLOCKS.min(budget) };
                if limit == 0 || (self.shutdown.is_cancelled() && old_tip.is_none()) {
                    break;
                }
                let last = before.as_ref().map(|(b, _)| b);
                let chunk = read_chunk(read, chain, look, last, start, to, limit).await?;
                if chunk.is_empty() {
                    break;
                }
                if settings.on_bad_event == OnBadEvent::Halt
                    && let Some(bad) = chunk.iter().find(|p| !p.netted.refused.is_empty())
                {
                    let reason = bad_event(bad);
                    drop(tx);
                    write.halt(chain, NAME, seq, &reason).await?;
                    return Ok(Outcome::Moved);
                }
                // With the first block and not before it: while nothing counts, nothing stands, not even what was there
                // at the start; opened twice it would be refused.
                if !std::mem::replace(&mut opened, true) {
                    tx.open_balances(start).await.map_err(&failed)?;
                }
                let last = chunk.last().map(|p| (p.block.clone(), Some(p.revision)));
                let below = before.as_ref().map(|(b, _)| b.clone());
                applied_blocks += chunk.len() as u64;
                let mut batch = batch(look, &settings, before.as_ref(), start, ancestor.is_some(), chunk);
                batch.apply.history |= followed;
                applied_events += batch.events;
                refused += batch.refused;
                match tx.apply(&batch.apply).await.map_err(&failed)? {
                    Some(applied) => negative += applied.negative,
                    None => return Ok(Outcome::Contended),
                }
                if let (true, Some((block, Some(revision)))) = (followed, &last) {
                    let record = batch.apply.final_height.is_none_or(|f| block.height > f);
                    tx.follow_block(below.as_ref(), block, *revision, start, record).await.map_err(&failed)?;
                }
                new_tip = last.as_ref().map(|(b, _)| b.clone());
                before = last;
            }
        }
        if deep && old_tip.is_some() && !only_undo {
            let reason = if same_branch { "a replay" } else { "the chain changed below its final height" };
            tx.note_rebuilt(new_tip.as_ref(), reason).await.map_err(&failed)?;
        }
        let took = started.elapsed();
        if let Some(old_tip) = &old_tip {
            let depth = depth_of(look, old_tip, ancestor.as_ref());
            let note = ReorgNote {
                ancestor: ancestor.as_ref().map(|a| a.height),
                depth,
                old_tip: old_tip.clone(),
                new_tip: new_tip.clone(),
                blocks_undone: if deep { depth } else { undone.blocks },
                blocks_applied: applied_blocks,
                rows_touched: undone.restored,
                duration_ms: took.as_secs_f64() * 1000.0,
            };
            // A replay leaves no branch.
            if same_branch || depth == 0 {
                tx.commit().await.map_err(&failed)?;
                tracing::info!(
                    chain = %look.chain_name, blocks = applied_blocks,
                    "Applied {applied_blocks} blocks of {} again", look.chain_name
                );
            } else {
                tx.note_reorg(&note).await.map_err(&failed)?;
                tx.commit().await.map_err(&failed)?;
                let of = Of { chain: &look.chain_name, projection: NAME };
                log_reorg(of, ancestor.as_ref(), depth, applied_blocks, took);
                self.watcher.switched(of, depth, took);
            }
        } else {
            tx.commit().await.map_err(&failed)?;
        }
        let done = Done { blocks: applied_blocks, events: applied_events, negative, refused, took };
        self.watcher.applied(Of { chain: &look.chain_name, projection: NAME }, done);
        self.grow();
        Ok(Outcome::Moved)
    }
}

/// Whether the journal does not reach back to the ancestor any more.
fn beyond_history(look: &Look, ancestor: Option<&BlockRef>) -> bool {
    look.checkpoint.history_from.is_some_and(|from| ancestor.is_none_or(|a| a.height < from))
}

/// Heights taken back: down to the ancestor, or with none, to where the state began.
pub(super) fn depth_of(look: &Look, old_tip: &BlockRef, ancestor: Option<&BlockRef>) -> u64 {
    match ancestor {
        Some(ancestor) => old_tip.height.get() - ancestor.height.get(),
        None => old_tip.height.get() - look.checkpoint.begun_at.map_or(0, Height::get) + 1,
    }
}

pub(super) fn log_reorg(of: Of<'_>, ancestor: Option<&BlockRef>, depth: u64, applied: u64, took: std::time::Duration) {
    let Of { chain, projection } = of;
    let elapsed_ms = took.as_millis() as u64;
    match ancestor {
        Some(a) => tracing::info!(
            chain,
            projection,
            height = a.height.get(),
            depth,
            applied,
            elapsed_ms,
            "Reverted {depth} blocks of {chain} to {}, applied {applied} in their place",
            a.height
        ),
        None => tracing::info!(
            chain,
            projection,
            depth,
            applied,
            elapsed_ms,
            "Reverted all {depth} blocks of {chain}, applied {applied} in their place"
        ),
    }
}
