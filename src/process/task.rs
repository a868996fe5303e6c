//! The loop of one projection on one chain: look, decide, carry out, wait.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::engine::Engine;
use super::switch::Undo;
use super::workers::{Lent, Lookout, Session, Workers};
use super::{Of, Pause, ProcessError, ProcessSettings, Watcher};
use crate::chain::Height;
use crate::chain::decide::{Base, Look, Move, Wait, decide};
use crate::store::{LedgerWrite, Run, StoreError, StoreFault, Wake};

/// Statements that ran too long at a single block before it is given up: a slow disk or a frozen server is forgiven.
const TIMEOUTS_FORGIVEN: u32 = 5;
/// Longest pause while someone else holds blocks or the checkpoint.
const MOST_CONTENDED: Duration = Duration::from_millis(250);
/// A copy of the balances that takes longer is shown.
const TOLD_AFTER: Duration = Duration::from_secs(1);
/// The journal is pruned after so many blocks: a delete for every block would double its statements.
const PRUNE_EVERY: u64 = 16;

pub(super) struct Task {
    pub(super) engine: Engine,
    pub(super) lookout: Arc<Lookout>,
    pub(super) workers: Arc<Workers>,
    /// Whose sessions a follower works on while it goes its own way.
    pub(super) for_followers: Arc<Workers>,
    pub(super) settings: ProcessSettings,
    pub(super) wake: Wake,
    pub(super) watcher: Arc<dyn Watcher>,
    pub(super) shutdown: CancellationToken,
    pub(super) caution: Caution,
}

/// What a task has learned from what failed, and what it need not do again.
#[derive(Debug)]
pub(super) struct Caution {
    /// Most blocks in one transaction; halved by each that ran too long, doubled by each that did not.
    pub(super) most_blocks: u64,
    timeouts: u32,
    /// A follower took too long: the next block goes without them, and they after it on their own.
    pub(super) without_followers: bool,
    /// A block of another branch that could not be applied: the switch goes to below it.
    stuck_at: Option<Height>,
    /// Undo was pruned when it stood here.
    pruned_at: Option<Height>,
    /// The last try found no connection.
    is_out: bool,
    /// First statistics are made, after the first blocks.
    pub(super) analyzed: bool,
    /// A follower's session, with a replica of the balances on it.
    replica: Option<Lent>,
    /// Until then it keeps that from others who wait: it has worked with it for as long as it took to fill.
    replica_pays_until: Option<Instant>,
    /// The chain's name and why it does not go on, as last seen.
    seen: Option<(String, Option<String>)>,
}

impl Default for Caution {
    fn default() -> Caution {
        Caution {
            most_blocks: u64::MAX,
            timeouts: 0,
            without_followers: false,
            stuck_at: None,
            pruned_at: None,
            is_out: false,
            analyzed: false,
            replica: None,
            replica_pays_until: None,
            seen: None,
        }
    }
}

/// How a move turned out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Something was done: look again at once.
    Moved,
    /// Someone else was in the way: look again soon.
    Contended,
    /// Nothing is left to do.
    Settled,
}

/// Why a single transaction failed in a way that waiting does not fix.
#[derive(Debug)]
pub(super) struct Failed {
    error: StoreError,
    /// What it was sent on, so that only the state that failed is halted.
    base: Base,
    /// What it was about.
    what: String,
    /// The block, if it was about one.
    at: Option<Height>,
    /// Whether it was about several blocks.
    about_several: bool,
}

impl Failed {
    /// A run could not be applied.
    pub(super) fn of(run: &Run, error: StoreError) -> Failed {
        let about_several = run.blocks.len() > 1;
        Failed { error, base: run.base.clone(), what: run.what(), at: Some(run.last().height), about_several }
    }

    /// A transaction of several steps could not be carried out.
    pub(super) fn in_switch(base: Base, what: String, error: StoreError) -> Failed {
        Failed { error, base, what, at: None, about_several: true }
    }

    /// The same, of a transaction that began on `base`.
    pub(super) fn on(self, base: Base) -> Failed {
        Failed { base, ..self }
    }
}

#[derive(Debug)]
pub(super) enum Fault {
    Store(StoreError),
    Failed(Failed),
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Fault {
        Fault::Store(error)
    }
}

impl From<Failed> for Fault {
    fn from(failed: Failed) -> Fault {
        Fault::Failed(failed)
    }
}

impl Task {
    pub(super) async fn run(mut self) -> Result<(), ProcessError> {
        let mut pause = Pause::default();
        while !self.shutdown.is_cancelled() {
            self.wake.mark_seen();
            let outcome = match self.look().await {
                Ok(Some(look)) => {
                    let rules = self.engine.rules(&look, self.caution.most_blocks, self.caution.stuck_at);
                    self.carry_out(&look, decide(&look, &rules)).await
                }
                Ok(None) => {
                    self.give_up_replica().await;
                    self.tell_gone();
                    return Ok(());
                }
                Err(error) => Err(error.into()),
            };
            if matches!(outcome, Ok(Outcome::Moved | Outcome::Settled)) {
                self.watcher.well(self.of());
            } else {
                self.engine.forget();
            }
            match outcome {
                Ok(Outcome::Moved) => {
                    pause = Pause::default();
                    (self.caution.timeouts, self.caution.is_out) = (0, false);
                }
                // The other transaction rings when it commits, but not when it gives up: look again soon anyway.
                Ok(Outcome::Contended) => self.sleep(pause.next().min(MOST_CONTENDED)).await,
                Ok(Outcome::Settled) if self.settings.once => return self.check_halted(),
                Ok(Outcome::Settled) => {
                    pause = Pause::default();
                    self.sleep(self.settings.poll_interval).await;
                }
                Err(fault) => self.failed(fault, &mut pause).await?,
            }
        }
        Ok(())
    }

    async fn look(&mut self) -> Result<Option<Look>, StoreError> {
        let look = self.lookout.read().await?.look(self.engine.chain, &self.engine.name).await?;
        if let Some(look) = &look {
            let checkpoint = &look.checkpoint;
            let failed = checkpoint.failed.as_ref().map(|(_, reason)| reason.clone());
            self.caution.seen = Some((look.chain_name.clone(), checkpoint.halted_reason.clone().or(failed)));
            self.watcher.looked(Of { chain: &look.chain_name, projection: &self.engine.name });
        }
        Ok(look)
    }

    async fn carry_out(&mut self, look: &Look, decided: Move) -> Result<Outcome, Fault> {
        if let Move::Wait(wait) = decided {
            return self.settle(look, wait).await;
        }
        let mut lent = self.session(look).await?;
        let outcome = match self.fill_replica(lent.session(), look, &decided).await {
            Ok(true) => self.carry_out_on(lent.session(), look, decided).await,
            Ok(false) => Ok(Outcome::Contended),
            Err(error) => Err(error.into()),
        };
        let is_broken = match &outcome {
            Ok(_) => false,
            Err(Fault::Store(error) | Fault::Failed(Failed { error, .. })) => error.fault() == StoreFault::Unavailable,
        };
        let pays = self.caution.replica_pays_until.is_some_and(|until| Instant::now() < until);
        if is_broken || lent.session().is_closed() {
            lent.end();
        } else if look.after.is_some() && (pays || !lent.is_wanted()) {
            self.caution.replica = Some(lent);
            // From here on it is taken along.
            if matches!(outcome, Ok(Outcome::Settled)) {
                self.give_up_replica().await;
            }
        }
        outcome
    }

    async fn carry_out_on(&mut self, session: &mut Session, look: &Look, decided: Move) -> Result<Outcome, Fault> {
        let (chain, name) = (self.engine.chain, self.engine.name.clone());
        match decided {
            Move::Wait(_) => Ok(Outcome::Settled),
            Move::Halt { reason } => self.halt(&session.write, look, reason).await,
            Move::PassEmpty { to } => {
                self.prune(&session.write, look).await?;
                let passed = session.write.pass_empty_blocks(chain, &name, &look.checkpoint.base(), to).await?;
                Ok(if passed { Outcome::Moved } else { Outcome::Contended })
            }
            Move::Extend { to } => {
                // Only after a look that found no difference: what is final and unchanged needs no journal. Once all of it is
                // gone, the final blocks to come need none either: so looks the next one.
                if self.prune(&session.write, look).await? {
                    return Ok(Outcome::Moved);
                }
                self.extend(session, look, to).await
            }
            Move::Begin { .. } => self.switch(session, look, &Undo::Nothing).await,
            Move::Switch(switch) => self.switch(session, look, &Undo::To(switch)).await,
            Move::Rebuild(rebuild) => self.switch(session, look, &Undo::All(rebuild)).await,
        }
    }

    /// Nothing is to be done for now; what is left over from before goes.
    async fn settle(&mut self, look: &Look, wait: Wait) -> Result<Outcome, Fault> {
        if matches!(wait, Wait::InStep | Wait::Operator) {
            self.give_up_replica().await;
            self.caution.stuck_at = None;
        }
        let is_compared = matches!(wait, Wait::NextBlock | Wait::MissingBlock | Wait::InStep);
        let follows_nothing =
            look.after.as_ref().is_some_and(|a| a.block.is_none()) && look.checkpoint.stops_at().is_some();
        // The block that failed is gone, and no other came that would take the note of it away.
        let forgets = look.checkpoint.failed.is_some()
            && (is_compared || wait == Wait::FirstBlock || wait == Wait::Followed && follows_nothing);
        let begins = look.awaited && is_compared;
        if forgets || begins || is_compared && self.horizon(look).is_some() {
            let mut lent = self.workers.lend().await?;
            let write = &lent.session().write;
            if forgets {
                write.forget_failure(self.engine.chain, &self.engine.name, look.checkpoint.seq).await?;
                self.caution.stuck_at = None;
                if let Some((_, stopped)) = &mut self.caution.seen {
                    *stopped = None;
                }
            }
            if is_compared {
                self.prune(write, look).await?;
            }
            if begins {
                write.begin_streams(self.engine.chain, &self.engine.name).await?;
            }
        }
        Ok(Outcome::Settled)
    }

    /// A session to work with. One that follows another keeps its replica of the balances on it.
    async fn session(&mut self, look: &Look) -> Result<Lent, StoreError> {
        match (look.after.is_some(), self.caution.replica.take()) {
            (true, Some(kept)) => Ok(kept),
            (true, None) => self.for_followers.lend().await,
            (false, _) => self.workers.lend().await,
        }
    }

    /// What a follower on its own way reads stands where its next block begins. False: it was told to stop.
    async fn fill_replica(&mut self, session: &mut Session, look: &Look, decided: &Move) -> Result<bool, StoreError> {
        let Some((height, hash)) = look.after.as_ref().and_then(|_| decided.applies_after(look)) else {
            return Ok(true);
        };
        let (chain, name, at) = (self.engine.chain, &self.engine.name, (height, hash.as_ref()));
        let Session { read, write } = session;
        if write.replica_stands(chain, at).await? {
            return Ok(true);
        }
        let begun = Instant::now();
        let filled = {
            let told = async {
                tokio::time::sleep(TOLD_AFTER).await;
                tracing::info!(chain = %look.chain_name, projection = %name, height, "Copying the balances of {height} for {name}");
                read.copies_balances(chain, name, height).await
            };
            let (mut told, mut filling) = (pin!(told), pin!(write.fill_replica(chain, at, self.shutdown.cancelled())));
            tokio::select! {
                filled = &mut filling => filled,
                told = &mut told => {
                    let filled = filling.await;
                    told.and(filled)
                }
            }
        };
        // That of a processor that was killed meanwhile, too.
        read.rebuild_ended(chain, name).await?;
        let now = Instant::now();
        self.caution.replica_pays_until = Some(now + (now - begun));
        filled
    }

    /// The session goes back for others to use, without the replica, which is as large as the balances.
    async fn give_up_replica(&mut self) {
        let Some(mut lent) = self.caution.replica.take() else { return };
        if let Err(error) = lent.session().write.drop_replica().await {
            tracing::debug!(chain = self.engine.chain.0, %error, "The replica of the balances could not be dropped");
            lent.end();
        }
    }

    /// A transaction went through: dare more blocks at once again.
    pub(super) fn went_through(&mut self) {
        self.caution.most_blocks = self.caution.most_blocks.saturating_mul(2);
        self.caution.without_followers = false;
        self.caution.stuck_at = None;
    }

    /// Most final blocks in one transaction.
    pub(super) fn most_in_run(&self) -> usize {
        self.settings.batch.min(usize::try_from(self.caution.most_blocks).unwrap_or(usize::MAX))
    }

    /// Up to where undo can be pruned now, if it is due.
    fn horizon(&self, look: &Look) -> Option<Height> {
        let through = look.checkpoint.through?;
        // When all of it is final, at once: final blocks that follow then need not be journalled.
        let all_final = look.is_final(through) && self.caution.pruned_at != Some(through);
        let due = all_final
            || self.caution.pruned_at.is_none_or(|at| through.get() >= at.get() + PRUNE_EVERY || through < at);
        due.then_some(look.final_height.map_or(through, |f| f.min(through)))
    }

    /// Drops undo that is not needed any more. Whether that was all there was of it.
    async fn prune(&mut self, write: &LedgerWrite, look: &Look) -> Result<bool, Fault> {
        let (Some(horizon), Some(through)) = (self.horizon(look), look.checkpoint.through) else { return Ok(false) };
        if look.final_height.is_some() {
            self.engine.prune(write, look, horizon).await?;
        }
        // On a chain that no source follows, what is applied deep enough is final.
        if look.head_height.is_none() && through.get() >= look.finality_depth {
            write.raise_final(self.engine.chain, through.minus(look.finality_depth)).await?;
        }
        self.caution.pruned_at = Some(through);
        Ok(!look.journal.is_empty() && look.is_final(through))
    }

    pub(super) async fn halt(&mut self, write: &LedgerWrite, look: &Look, reason: &str) -> Result<Outcome, Fault> {
        tracing::error!(chain = %look.chain_name, reason, "Halting {}: fix the cause, then run `ebbtide resume`", self.engine.name);
        write.halt(self.engine.chain, &self.engine.name, &look.checkpoint.base(), reason).await?;
        Ok(Outcome::Moved)
    }

    /// What it is about. None means it could not look yet.
    fn of(&self) -> Option<Of<'_>> {
        self.caution.seen.as_ref().map(|(chain, _)| Of { chain, projection: &self.engine.name })
    }

    fn tell_gone(&self) {
        if let Some(of) = self.of() {
            self.watcher.ended(of);
        }
    }

    fn check_halted(&self) -> Result<(), ProcessError> {
        match &self.caution.seen {
            Some((chain, Some(reason))) => Err(ProcessError::Halted {
                chain: chain.clone(),
                projection: self.engine.name.clone(),
                reason: reason.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Waits for the bell, at most so long. A task that sleeps keeps no session from others.
    async fn sleep(&mut self, at_most: Duration) {
        let shutdown = self.shutdown.clone();
        let wanted = async {
            match &self.caution.replica {
                Some(replica) => replica.wanted().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.wake.wait(at_most) => {}
            () = shutdown.cancelled() => {}
            () = wanted => self.caution.replica = None,
        }
    }

    /// Something failed: wait, do less at once, or give up a block that nothing will fix.
    async fn failed(&mut self, fault: Fault, pause: &mut Pause) -> Result<(), ProcessError> {
        let failed = match fault {
            Fault::Store(error) => {
                // A connection may break; a second one that cannot be had is an answer.
                let was_out = std::mem::replace(&mut self.caution.is_out, error.fault() == StoreFault::Unavailable);
                if self.settings.once && (error.fault() == StoreFault::Permanent || was_out && self.caution.is_out) {
                    return Err(error.into());
                }
                self.wait_out(&error, pause).await;
                return Ok(());
            }
            Fault::Failed(failed) => failed,
        };
        let fault = failed.error.fault();
        // A balance that was not there when it was looked up is there now.
        let is_stale = failed.error.constraint() == Some("balances_pkey");
        if is_stale || matches!(fault, StoreFault::Unavailable | StoreFault::Contended) {
            self.wait_out(&failed.error, pause).await;
            return Ok(());
        }
        let reason = format!("{}: {}", failed.what, failed.error.message());
        if !self.engine.is_balances() && failed.at.is_some() && failed.about_several {
            // One by one, down to the block that it is about.
            tracing::debug!(chain = self.engine.chain.0, reason, "Blocks could not be applied at once");
            self.caution.most_blocks = 1;
            return Ok(());
        }
        if !self.engine.is_balances() {
            return self.block_failed(failed, &reason, pause).await;
        }
        let about_one = !failed.about_several || self.caution.most_blocks <= 1;
        if fault == StoreFault::TimedOut {
            self.caution.timeouts += u32::from(about_one);
            self.caution.without_followers = true;
        }
        // Data that Postgres or our own functions refuse: the same again will be refused again.
        let is_refused = match &failed.error {
            StoreError::Postgres(e) => {
                e.code().is_some_and(|c| ["22", "23", "P0"].iter().any(|class| c.code().starts_with(class)))
            }
            StoreError::Nonsense { .. } | StoreError::Refused { .. } => true,
            _ => false,
        };
        if about_one && is_refused || self.caution.timeouts > TIMEOUTS_FORGIVEN {
            self.caution.timeouts = 0;
            tracing::error!(
                chain = self.engine.chain.0,
                reason,
                "Halting {}: fix the cause, then run `ebbtide resume`",
                self.engine.name
            );
            let mut lent = self.workers.lend().await?;
            lent.session().write.halt(self.engine.chain, &self.engine.name, &failed.base, &reason).await?;
            return Ok(());
        }
        // Less at once, down to the block that it is about.
        if is_refused {
            self.caution.most_blocks = 1;
            return Ok(());
        }
        self.caution.most_blocks = (self.caution.most_blocks.min(2048) / 2).max(1);
        self.wait_out(&failed.error, pause).await;
        Ok(())
    }

    /// A block of somebody's function or code failed: rolled back, shown, tried again. Nobody else waits for it.
    async fn block_failed(&mut self, failed: Failed, reason: &str, pause: &mut Pause) -> Result<(), ProcessError> {
        let name = self.engine.name.clone();
        tracing::warn!(chain = self.engine.chain.0, projection = %name, reason, "A block could not be applied; trying again");
        // The first time, a switch to below the block may be what is left to do.
        let again = failed.at.is_none() || self.caution.stuck_at == failed.at;
        self.caution.stuck_at = failed.at;
        let noted = async {
            let mut lent = self.workers.lend().await?;
            lent.session().read.note_failure(self.engine.chain, &name, &failed.base, failed.at, reason).await
        };
        if let Err(error) = noted.await {
            self.wait_out(&error, pause).await;
            return Ok(());
        }
        if self.settings.once {
            return if again { Err(StoreError::Refused { reason: reason.to_owned() }.into()) } else { Ok(()) };
        }
        let shutdown = self.shutdown.clone();
        tokio::select! { () = pause.sleep() => {}, () = shutdown.cancelled() => {} }
        Ok(())
    }

    async fn wait_out(&self, error: &StoreError, pause: &mut Pause) {
        tracing::warn!(chain = self.engine.chain.0, %error, "Postgres refused the statement; retrying");
        self.watcher.troubled(self.of(), &error.to_string());
        tokio::select! { () = pause.sleep() => {}, () = self.shutdown.cancelled() => {} }
    }
}
