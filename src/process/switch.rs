//! From one branch to the other in one transaction: undo to the ancestor, apply what is there instead. The same
//! transaction begins a chain (nothing to undo, opening balances first) and makes its state anew (beside, and then the
//! difference).

use std::time::Instant;

use super::extend::{bad_event, batch, read_chunk};
use super::look::{Difference, Failed, Fault, Outcome, Task};
use super::rebuild::Rebuild;
use super::{Done, Of, Session};
use crate::chain::{BlockRef, Height};
use crate::projections::token_balances::{History, NAME, OnBadEvent};
use crate::store::{LedgerRead, Look, ReorgNote, StoreError, Switch, Undone};

/// Blocks of the new branch merged into one statement.
const CHUNK_BLOCKS: u64 = 100;

/// What stands after the part of the transaction that applies.
#[derive(Default)]
struct Branch {
    tip: Option<BlockRef>,
    blocks: u64,
    events: u64,
    negative: u64,
    refused: u64,
}

/// How far applying goes in one such transaction, and how.
struct Bounds {
    start: Height,
    to: Height,
    /// A chain begins with its first block alone, so that nothing large is held up by what may still be missing.
    first_only: bool,
    most_blocks: u64,
    /// Followers come along block by block.
    followed: bool,
}

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
        let reason = difference.reason(look);
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
        let chain = self.chain;
        // The history does not reach back, or all of it would be undone: cheaper made anew.
        let anew = deep
            && (ancestor.is_none()
                || self.settings.token_balances.history == History::Window
                || beyond_history(look, ancestor.as_ref()));
        if anew {
            ancestor = None;
        }
        let followed = look.followed && !self.without_followers && !anew;
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
        if deep && old_tip.is_some() {
            tracing::info!(chain = %look.chain_name, projection = NAME, reason, "Rebuilding");
        }
        if look.followed && !followed {
            tx.leave_followers_behind(ancestor.as_ref()).await.map_err(&failed)?;
        }
        let undone = if anew {
            tx.build_beside().await.map_err(&failed)?
        } else if let Some(old_tip) = &old_tip {
            if deep {
                tx.unlimited().await?;
            }
            let through = ancestor.as_ref().map(|a| a.height);
            let undone = tx.undo_to(ancestor.as_ref(), through, redo_after).await.map_err(&failed)?;
            if followed {
                tx.undo_followers(old_tip, ancestor.as_ref()).await.map_err(&failed)?;
            }
            undone
        } else {
            Undone { seq, keys: 0, restored: 0, changes: 0, blocks: 0 }
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
        let branch = match start.filter(|_| !only_undo) {
            Some(start) => {
                let bounds = Bounds {
                    start,
                    // Up to the height readers saw before, so that it falls only where the new chain is shorter.
                    to: look.checkpoint.through.map_or(cap, |t| t.min(cap)),
                    first_only: old_tip.is_none(),
                    // Made anew in part, it would show a height long gone.
                    most_blocks: if anew { u64::MAX } else { self.most_blocks },
                    followed,
                };
                let mut rebuild = deep.then(|| Rebuild::new(reason, start, bounds.to));
                match self.apply_branch(read, &mut tx, look, ancestor.as_ref(), &bounds, rebuild.as_mut()).await {
                    Ok(Stretch::Applied(branch)) => branch,
                    Ok(Stretch::Contended) => return Ok(Outcome::Contended),
                    Ok(Stretch::Bad(reason)) => {
                        drop(tx);
                        write.halt(chain, NAME, seq, &reason).await?;
                        return Ok(Outcome::Moved);
                    }
                    Err(Trouble::Read(fault)) => return Err(fault),
                    Err(Trouble::Write(error)) => return Err(failed(error)),
                }
            }
            None => Branch { tip: ancestor.clone(), ..Branch::default() },
        };
        let replaced = tx.replace_by_built().await.map_err(&failed)?;
        if deep && old_tip.is_some() {
            tx.note_rebuilt(branch.tip.as_ref(), reason).await.map_err(&failed)?;
        }
        let took = started.elapsed();
        let of = Of { chain: &look.chain_name, projection: NAME };
        if let Some(old_tip) = &old_tip {
            let depth = depth_of(look, old_tip, ancestor.as_ref());
            let note = ReorgNote {
                ancestor: ancestor.as_ref().map(|a| a.height),
                depth,
                old_tip: old_tip.clone(),
                new_tip: branch.tip,
                blocks_undone: if deep { depth } else { undone.blocks },
                blocks_applied: branch.blocks,
                rows_touched: if anew { replaced } else { undone.restored },
                duration_ms: took.as_secs_f64() * 1000.0,
            };
            // A replay leaves no branch.
            if same_branch || depth == 0 {
                tx.commit().await.map_err(&failed)?;
                tracing::info!(
                    chain = %look.chain_name, blocks = branch.blocks,
                    "Applied {} blocks of {} again", branch.blocks, look.chain_name
                );
            } else {
                tx.note_reorg(&note).await.map_err(&failed)?;
                tx.commit().await.map_err(&failed)?;
                log_reorg(of, ancestor.as_ref(), depth, branch.blocks, took);
                self.watcher.switched(of, depth, took);
            }
        } else {
            tx.commit().await.map_err(&failed)?;
        }
        let Branch { blocks, events, negative, refused, .. } = branch;
        self.watcher.applied(of, Done { blocks, events, negative, refused, took });
        self.grow();
        Ok(Outcome::Moved)
    }

    /// Applies what counts above the ancestor (none: from the start, opening balances first).
    async fn apply_branch(
        &self,
        read: &LedgerRead,
        tx: &mut Switch<'_>,
        look: &Look,
        ancestor: Option<&BlockRef>,
        bounds: &Bounds,
        mut rebuild: Option<&mut Rebuild>,
    ) -> Result<Stretch, Trouble> {
        let &Bounds { start, to, first_only, most_blocks, followed } = bounds;
        let settings = self.settings.token_balances;
        let mut branch = Branch { tip: ancestor.cloned(), ..Branch::default() };
        let mut opened = ancestor.is_some();
        let mut before = ancestor.map(|a| (a.clone(), None));
        while !first_only || branch.blocks == 0 {
            let budget = most_blocks.saturating_sub(branch.blocks);
            let limit = if first_only || followed { 1 } else { CHUNK_BLOCKS.min(budget) };
            if budget == 0 || (self.shutdown.is_cancelled() && first_only) {
                break;
            }
            // What a rebuild has done so far would be lost work, but whoever asks to end does not wait for all of it.
            if self.shutdown.is_cancelled() && rebuild.is_some() {
                return Ok(Stretch::Contended);
            }
            let last = before.as_ref().map(|(b, _)| b);
            let chunk = read_chunk(read, self.chain, look, last, start, to, limit).await?;
            if chunk.is_empty() {
                break;
            }
            if settings.on_bad_event == OnBadEvent::Halt
                && let Some(bad) = chunk.iter().find(|p| !p.netted.refused.is_empty())
            {
                return Ok(Stretch::Bad(bad_event(bad)));
            }
            // With the first block and not before it: while nothing counts, nothing stands, not even what was there
            // at the start; opened twice it would be refused.
            if !std::mem::replace(&mut opened, true) {
                tx.open_balances(start).await.map_err(Trouble::Write)?;
            }
            let last = chunk.last().map(|p| (p.block.clone(), Some(p.revision)));
            let below = before.as_ref().map(|(b, _)| b.clone());
            branch.blocks += chunk.len() as u64;
            let mut batch = batch(look, &settings, before.as_ref(), start, ancestor.is_some(), chunk);
            // They read what the block changed, whether or not it is kept.
            batch.apply.history |= followed;
            branch.events += batch.events;
            branch.refused += batch.refused;
            match tx.apply(&batch.apply).await.map_err(Trouble::Write)? {
                Some(applied) => branch.negative += applied.negative,
                None => return Ok(Stretch::Contended),
            }
            if let Some((block, Some(revision))) = &last {
                if followed {
                    let record = batch.apply.final_height.is_none_or(|f| block.height > f);
                    tx.follow_block(below.as_ref(), block, *revision, start, record).await.map_err(Trouble::Write)?;
                }
                if let Some(rebuild) = rebuild.as_deref_mut() {
                    self.rebuild_is_at(read, look, rebuild, block.height).await?;
                }
            }
            branch.tip = last.as_ref().map(|(b, _)| b.clone());
            before = last;
        }
        Ok(Stretch::Applied(branch))
    }
}

/// How applying the new branch ended.
enum Stretch {
    Applied(Branch),
    /// Someone else was in the way.
    Contended,
    /// A block holds an event that halts the projection; why.
    Bad(String),
}

/// What went wrong, by the connection it went wrong on.
enum Trouble {
    Read(Fault),
    Write(StoreError),
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Trouble {
        Trouble::Read(error.into())
    }
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Trouble {
        Trouble::Read(fault)
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
