//! From one branch to the other in one transaction: undo to the ancestor, apply what is there instead. The same
//! transaction begins a chain (nothing to undo, opening balances first) and rebuilds (beside what stands, where it can).

use std::time::{Duration, Instant};

use super::engine::Runs;
use super::progress::Progress;
use super::read::{Chunk, Reader};
use super::task::{Failed, Fault, Outcome, Task};
use super::workers::Session;
use super::{Done, Of};
use crate::chain::decide::{Look, Rebuild, Switch};
use crate::chain::{BlockRef, Height};
use crate::store::{LedgerRead, ReorgNote, StoreError, Tx, Undone};

/// What becomes of the state before blocks are applied.
pub(super) enum Undo {
    /// There is none: the chain begins.
    Nothing,
    /// Back to an ancestor.
    To(Switch),
    /// All of it is made again.
    All(Rebuild),
}

impl Undo {
    fn ancestor(&self) -> Option<&BlockRef> {
        match self {
            Undo::To(switch) => switch.ancestor.as_ref(),
            Undo::Nothing | Undo::All(_) => None,
        }
    }

    /// Apply as far as this height. None means undo alone.
    fn to(&self) -> Option<Height> {
        match self {
            Undo::Nothing => Some(Height::MAX),
            Undo::To(switch) => switch.to,
            Undo::All(rebuild) => rebuild.to,
        }
    }

    /// Why blocks are applied again that are no longer in the journal.
    fn reason(&self) -> Option<&'static str> {
        match self {
            Undo::Nothing => None,
            Undo::To(switch) => switch.below_journal,
            Undo::All(rebuild) => Some(rebuild.reason),
        }
    }

    /// How many heights are taken back, where that is a reorganisation.
    fn depth(&self) -> Option<u64> {
        match self {
            Undo::Nothing => None,
            Undo::To(switch) => Some(switch.depth).filter(|_| !switch.is_replay),
            Undo::All(rebuild) => Some(rebuild.depth).filter(|_| !rebuild.is_replay),
        }
        .filter(|depth| *depth > 0)
    }

    fn what(&self, look: &Look) -> String {
        match (&look.checkpoint.block, self.ancestor()) {
            (Some(tip), Some(ancestor)) => format!("the reorganisation from {tip} to after {ancestor}"),
            (Some(tip), None) => format!("the reorganisation from {tip} to before the start"),
            (None, _) => "the start".to_owned(),
        }
    }
}

/// What stands after the part of the transaction that applies.
struct Branch {
    tip: Option<BlockRef>,
    done: Done,
}

impl Task {
    /// Carries out the whole of it, or nothing.
    pub(super) async fn switch(&mut self, session: &mut Session, look: &Look, undo: &Undo) -> Result<Outcome, Fault> {
        // What is known stands on the branch that is left; a rebuild's balances have numbers of their own.
        self.engine.forget();
        let outcome = self.switch_over(session, look, undo).await;
        self.engine.forget();
        if let Undo::All(_) = undo {
            session.read.rebuild_ended(self.engine.chain, &self.engine.name).await?;
        }
        outcome
    }

    async fn switch_over(&mut self, session: &mut Session, look: &Look, undo: &Undo) -> Result<Outcome, Fault> {
        let begun = Instant::now();
        let Session { read, write } = session;
        let checkpoint = &look.checkpoint;
        let (chain, name) = (self.engine.chain, self.engine.name.clone());
        let of = Of { chain: &look.chain_name, projection: &name };
        let what = undo.what(look);
        let failed = |error: StoreError| Fault::Failed(Failed::in_switch(checkpoint.base(), what.clone(), error));
        // While a chain begins, a change of its opening balances finds no state yet that it could have redone.
        let turn = checkpoint.through.is_none() || look.complete_to.is_some();
        let Some(mut tx) = write.begin(chain, &name, checkpoint, turn).await? else {
            return Ok(Outcome::Contended);
        };
        if let Undo::To(switch) = undo
            && let Some(ancestor) = switch.ancestor.as_ref().filter(|_| !switch.is_part)
            && !tx.hold(ancestor).await?
        {
            return Ok(Outcome::Contended);
        }
        let has_followers = look.followed && self.engine.is_balances();
        let takes_along = has_followers && !self.caution.without_followers && !matches!(undo, Undo::All(_));
        if has_followers && !takes_along {
            tx.leave_followers_behind(undo.ancestor()).await.map_err(&failed)?;
        }
        if let Some(reason) = undo.reason().filter(|_| checkpoint.block.is_some()) {
            tracing::info!(chain = %look.chain_name, projection = %name, reason, "Rebuilding");
        }
        let undone = match undo {
            Undo::Nothing => Undone::default(),
            Undo::All(_) => self.engine.clear(&mut tx, checkpoint.block.is_some()).await.map_err(&failed)?,
            Undo::To(switch) => {
                let undone = self.engine.undo(&mut tx, switch).await.map_err(&failed)?;
                if let Some(from) = checkpoint.block.as_ref().filter(|_| takes_along) {
                    tx.undo_followers(from, switch.ancestor.as_ref()).await.map_err(&failed)?;
                }
                undone
            }
        };
        if undone.keys != undone.restored {
            drop(tx);
            let wrong = undone.keys - undone.restored.min(undone.keys);
            let reason = format!(
                "{what}: {wrong} of {} balances are not what the journal left; `ebbtide verify` shows which",
                undone.keys
            );
            return self.halt(write, look, &reason).await;
        }
        let branch = match self.apply_branch(read, &mut tx, look, undo, takes_along).await {
            Ok(Applied::Branch(branch)) => branch,
            Ok(Applied::Contended) => return Ok(Outcome::Contended),
            Ok(Applied::Bad(reason)) => {
                drop(tx);
                return self.halt(write, look, &reason).await;
            }
            Err(fault) => return Err(fault),
        };
        let replaced = self.engine.finish(&mut tx).await.map_err(&failed)?;
        if let Some(reason) = undo.reason().filter(|_| checkpoint.block.is_some() || !self.engine.is_balances()) {
            tx.note_rebuilt(branch.tip.as_ref(), reason).await.map_err(&failed)?;
        }
        let took = begun.elapsed();
        let reorg = undo.depth().zip(checkpoint.block.clone());
        if let Some((depth, old_tip)) = reorg.clone() {
            let note = ReorgNote {
                ancestor: undo.ancestor().map(|a| a.height),
                depth,
                old_tip,
                new_tip: branch.tip.clone(),
                blocks_undone: if undo.reason().is_some() { depth } else { undone.blocks },
                blocks_applied: branch.done.blocks,
                rows_touched: undone.restored + replaced,
                duration_ms: took.as_secs_f64() * 1000.0,
            };
            tx.note_reorg(&note).await.map_err(&failed)?;
        }
        tx.commit().await.map_err(&failed)?;
        let blocks = branch.done.blocks;
        match reorg {
            Some((depth, _)) => {
                log_reorg(of, undo.ancestor(), depth, blocks, took);
                self.watcher.switched(of, depth, took);
            }
            None if checkpoint.block.is_some() => tracing::info!(
                chain = %look.chain_name, projection = %name, blocks,
                "Applied {blocks} blocks of {} again", look.chain_name
            ),
            None => {}
        }
        self.watcher.applied(of, Done { took, ..branch.done });
        self.went_through();
        Ok(Outcome::Moved)
    }

    /// Applies what counts above the ancestor (or from the start, opening balances first).
    async fn apply_branch(
        &mut self,
        read: &LedgerRead,
        tx: &mut Tx<'_>,
        look: &Look,
        undo: &Undo,
        takes_along: bool,
    ) -> Result<Applied, Fault> {
        let ancestor = undo.ancestor();
        let mut branch = Branch { tip: ancestor.cloned(), done: Done::default() };
        let (Some(to), Some(start)) = (undo.to(), look.start()) else { return Ok(Applied::Branch(branch)) };
        // A chain begins with its first block alone, so that nothing large is held up by what may still be missing.
        let first_only = look.checkpoint.block.is_none();
        // Rebuilt in part, it would show a height long gone.
        let is_rebuild = matches!(undo, Undo::All(_));
        let most = if is_rebuild {
            u64::MAX
        } else if first_only {
            1
        } else {
            self.caution.most_blocks
        };
        let nets = self.engine.is_balances();
        let mut reader =
            Reader::new(read, self.engine.chain, look, (start, to), ancestor.cloned(), self.engine.reading());
        // Above blocks that are in the journal of applied blocks, all are, final or not: it has no holes.
        let journal_above = look.final_height.filter(|_| ancestor.is_none() || undo.reason().is_some() && !nets);
        let journal_above = if is_rebuild { journal_above } else { self.engine.journal_above(look, journal_above) };
        let mut runs =
            Runs::new(look, start, self.engine.digest(look), journal_above, ancestor.map(|a| (a.clone(), None)));
        if is_rebuild {
            runs = runs.again();
        }
        let mut progress = undo.reason().map(|reason| Progress::new(reason, start, to));
        let mut opened = ancestor.is_some() || !nets;
        while branch.done.blocks < most {
            // What a rebuild has done so far would be lost work, but nobody who asks it to end waits for all of it.
            if self.shutdown.is_cancelled() && (progress.is_some() || first_only) {
                return Ok(Applied::Contended);
            }
            let left = if first_only { 1 } else { most - branch.done.blocks };
            let Some(Chunk { blocks, accounts }) = tx.hold_during(reader.next(left)).await? else { break };
            if let Some(reason) = blocks.iter().find_map(|block| self.engine.bad_event(block)) {
                return Ok(Applied::Bad(reason));
            }
            // With the first block and not before it: while nothing counts, nothing stands, not even what was there at
            // the start; opened twice it would be refused.
            if !std::mem::replace(&mut opened, true) {
                tx.open_balances(start).await?;
            }
            let lookup = self.engine.lookup(&accounts);
            let found = tx.balances_of(&lookup.keys).await?;
            let mut balances = lookup.filled(found)?;
            let mut rest = &blocks[..];
            while !rest.is_empty() {
                // Nobody sees anything in between, so balances of many blocks are merged, final or not; but not both in one,
                // since a window of history is kept for those in the journal alone.
                let length = match (takes_along, nets) {
                    (true, _) => 1,
                    (false, true) => runs.alike(rest),
                    (false, false) => self.engine.run_length(&runs, rest, self.most_in_run()),
                };
                let (now, later) = rest.split_at(length);
                rest = later;
                let below = runs.before().cloned();
                let run = runs.next(tx.base.clone(), now);
                let failed = |error| Failed::of(&run, error).on(look.checkpoint.base());
                // Undo is recorded in the live tables alone.
                if !nets && run.journals {
                    self.engine.finish(tx).await.map_err(failed)?;
                }
                let applied = self.engine.apply(tx, &run, &accounts, &mut balances, now, takes_along).await;
                let Some(negative) = applied.map_err(failed)? else { return Ok(Applied::Contended) };
                if takes_along {
                    tx.follow_block(below.as_ref(), &run).await.map_err(failed)?;
                }
                branch.done.negative += negative;
                branch.done.blocks += now.len() as u64;
                branch.done.events += now.iter().map(|b| b.netted.events).sum::<u64>();
                branch.done.refused += now.iter().map(|b| b.netted.refused.len() as u64).sum::<u64>();
                branch.tip = Some(run.last().clone());
                if let Some(progress) = &mut progress {
                    let told = progress.tell(read, (self.engine.chain, &self.engine.name), run.last().height);
                    tx.hold_during(told).await?;
                }
            }
            self.engine.keep(&accounts, &balances, &tx.base);
        }
        // All is taken out only while the chain still begins there, and not because its first block was just taken away.
        if is_rebuild && branch.tip.is_none() {
            let now = tx.hold_during(read.look(self.engine.chain, &self.engine.name)).await?;
            if now.is_none_or(|now| now.start() != look.start()) {
                return Ok(Applied::Contended);
            }
        }
        Ok(Applied::Branch(branch))
    }
}

/// How applying the new branch ended.
enum Applied {
    Branch(Branch),
    /// Someone else was in the way.
    Contended,
    /// A block holds an event that halts the projection; why.
    Bad(String),
}

fn log_reorg(of: Of<'_>, ancestor: Option<&BlockRef>, depth: u64, applied: u64, took: Duration) {
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
