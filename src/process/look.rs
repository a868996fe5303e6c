//! One chain's task: look, decide, act, sleep.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Of, Pause, ProcessError, ProcessSettings, Seen, Session, Watcher, Work};
use crate::chain::plan::{Mark, Step, StoredBlock, Theirs, Window, counting, plan};
use crate::chain::{BlockRef, ChainId, Height};
use crate::projections::token_balances::{self, OnDeepChange};
use crate::store::{Look, Store, StoreError, StoreFault, Wake};

/// Statements that ran too long at a single block before it is given up: a slow disk or a frozen server is forgiven.
const TIMEOUTS_FORGIVEN: u32 = 5;

/// Longest pause while someone else holds blocks or the checkpoint.
const MOST_CONTENDED: Duration = Duration::from_millis(250);

pub(super) struct Task {
    pub(super) store: Store,
    pub(super) chain: ChainId,
    /// The projection's name.
    pub(super) name: String,
    pub(super) work: Work,
    pub(super) settings: ProcessSettings,
    pub(super) wake: Wake,
    pub(super) watcher: Arc<dyn Watcher>,
    pub(super) shutdown: CancellationToken,
    /// Most blocks in one transaction; halved by each that ran too long, doubled by each that did not.
    pub(super) most_blocks: u64,
    /// Most final blocks that code is given at once; halved by each range that failed, doubled by each that did not.
    pub(super) most_in_range: usize,
    timeouts: u32,
    /// History is pruned up to here at most once in so many blocks.
    pruned_at: Option<Height>,
    /// History was pruned up to here by this task.
    history_pruned: Option<Height>,
    /// Statistics are made anew once, after the first blocks.
    pub(super) analyzed: bool,
    /// A follower took too long: the next block goes without them, and they after it by themselves.
    pub(super) without_followers: bool,
    /// The connection may have a replica of balances.
    pub(super) has_replica: bool,
    /// The chain's name when it was last seen.
    seen_as: Option<String>,
    /// A block of another branch that could not be applied: the switch goes to below it.
    pub(super) stuck_at: Option<Height>,
}

/// How a look turned out.
pub(super) enum Outcome {
    /// Something was done: look again at once.
    Moved,
    /// Someone else was in the way: look again soon.
    Contended,
    /// Nothing is left to do.
    Idle,
    /// The chain is gone.
    Gone,
}

/// A look that found our state to be another one than the chain's.
pub(super) struct Difference {
    /// The last block both share; none: from before the start.
    pub(super) ancestor: Option<BlockRef>,
    /// Whether it reaches below the journal of applied blocks.
    pub(super) deep: bool,
    /// Our applied blocks above the ancestor, as far as the journal has them, newest first.
    pub(super) down: Vec<BlockRef>,
    /// Whether the same blocks are only applied again (a replay): no reorganisation.
    pub(super) same_branch: bool,
    /// Why everything is applied again, if it is.
    pub(super) rebuild: Option<&'static str>,
}

/// Why a single transaction failed in a way that waiting will not mend.
pub(super) struct Failed {
    pub(super) error: StoreError,
    /// The fence it was sent with, so that only the state that failed is halted.
    pub(super) seq: i64,
    /// What it was about.
    pub(super) what: String,
    /// The block, if it was about one.
    pub(super) at: Option<Height>,
}

pub(super) enum Fault {
    Store(StoreError),
    Failed(Failed),
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Fault {
        Fault::Store(error)
    }
}

impl Task {
    #[allow(clippy::too_many_arguments, reason = "called once")]
    pub(super) fn new(
        store: Store,
        chain: ChainId,
        name: String,
        work: Work,
        settings: ProcessSettings,
        wake: Wake,
        watcher: Arc<dyn Watcher>,
        shutdown: CancellationToken,
    ) -> Task {
        Task {
            store,
            chain,
            name,
            work,
            settings,
            wake,
            watcher,
            shutdown,
            most_blocks: u64::MAX,
            most_in_range: usize::MAX,
            timeouts: 0,
            pruned_at: None,
            history_pruned: None,
            analyzed: false,
            without_followers: false,
            has_replica: false,
            seen_as: None,
            stuck_at: None,
        }
    }

    pub(super) async fn run(mut self) -> Result<(), ProcessError> {
        let mut session: Option<Session> = None;
        let mut pause = Pause::default();
        while !self.shutdown.is_cancelled() {
            let current = match &mut session {
                Some(current) => current,
                None => match Session::connect(&self.store, &self.work).await {
                    Ok(fresh) => session.insert(fresh),
                    Err(error) => {
                        if self.settings.once {
                            return Err(error.into());
                        }
                        self.wait_out(&error, &mut pause).await;
                        continue;
                    }
                },
            };
            self.wake.mark_seen();
            match self.step(current).await {
                Ok(Outcome::Moved) => {
                    pause = Pause::default();
                    self.timeouts = 0;
                }
                Ok(Outcome::Contended) => {
                    // Whoever was in the way rings when done; one that gives up does not.
                    let at_most = pause.next().min(MOST_CONTENDED);
                    tokio::select! { () = self.wake.wait(at_most) => {}, () = self.shutdown.cancelled() => {} }
                }
                Ok(Outcome::Idle) => {
                    pause = Pause::default();
                    if self.settings.once {
                        return self.check_halted(current).await;
                    }
                    let poll = self.settings.poll_interval;
                    tokio::select! { () = self.wake.wait(poll) => {}, () = self.shutdown.cancelled() => {} }
                }
                Ok(Outcome::Gone) => {
                    if let Some(chain) = &self.seen_as {
                        self.watcher.ended(Of { chain, projection: &self.name });
                    }
                    return Ok(());
                }
                Err(Fault::Store(error)) => {
                    if error.fault() == StoreFault::Unavailable {
                        session = None;
                    }
                    if error.fault() == StoreFault::Permanent && self.settings.once {
                        return Err(error.into());
                    }
                    self.wait_out(&error, &mut pause).await;
                }
                Err(Fault::Failed(failed)) => self.failed(&mut session, failed, &mut pause).await?,
            }
        }
        Ok(())
    }

    /// A transaction failed: do less at once, and when it was a single block that nothing will mend, halt.
    async fn failed(
        &mut self,
        session: &mut Option<Session>,
        failed: Failed,
        pause: &mut Pause,
    ) -> Result<(), StoreError> {
        let Failed { error, seq, what, at } = failed;
        let fault = error.fault();
        if !matches!(self.work, Work::Balances) && fault != StoreFault::Unavailable && fault != StoreFault::Contended {
            return self.block_failed(session, &error, seq, &what, at, pause).await;
        }
        let about_one = self.most_blocks <= 1 || self.settings.batch <= 1 && what.starts_with("block");
        if fault == StoreFault::TimedOut {
            self.most_blocks = (self.most_blocks.min(2048) / 2).max(1);
            self.timeouts += u32::from(about_one);
            self.without_followers = true;
        }
        // Data that Postgres or our own functions refuse: the same again will be refused again.
        let refused = matches!(&error, StoreError::Postgres(e)
            if e.code().is_some_and(|c| ["22", "23", "P0"].iter().any(|class| c.code().starts_with(class))));
        let halt = refused || matches!(error, StoreError::Nonsense { .. }) || self.timeouts > TIMEOUTS_FORGIVEN;
        if halt && let Some(session) = session {
            let reason = format!("{what}: {}", error.message());
            let name = &self.name;
            tracing::error!(chain = self.chain.0, reason, "Halting {name}; mend the cause, then `ebbtide resume`");
            self.timeouts = 0;
            session.write.halt(self.chain, name, seq, &reason).await?;
            return Ok(());
        }
        if fault == StoreFault::Unavailable {
            *session = None;
        }
        self.wait_out(&error, pause).await;
        Ok(())
    }

    /// A block of somebody's function or code failed: rolled back, shown, tried again. Nobody else waits for it.
    async fn block_failed(
        &mut self,
        session: &mut Option<Session>,
        error: &StoreError,
        seq: i64,
        what: &str,
        at: Option<Height>,
        pause: &mut Pause,
    ) -> Result<(), StoreError> {
        let reason = format!("{what}: {}", error.message());
        tracing::warn!(chain = self.chain.0, projection = %self.name, reason, "A block could not be applied; trying again");
        // The first time, a switch to below the block may be what is left to do.
        let again = at.is_none() || self.stuck_at == at;
        self.stuck_at = at;
        if let Some(session) = session {
            let noted = session.write.note_failure(self.chain, &self.name, seq, at, &reason).await;
            if let Err(error) = noted {
                self.wait_out(&error, pause).await;
                return Ok(());
            }
        }
        if self.settings.once {
            return if again { Err(StoreError::Refused { reason }) } else { Ok(()) };
        }
        tokio::select! { () = pause.sleep() => {}, () = self.shutdown.cancelled() => {} }
        Ok(())
    }

    async fn wait_out(&self, error: &StoreError, pause: &mut Pause) {
        tracing::warn!(chain = self.chain.0, %error, "Postgres would not; trying again");
        self.watcher.troubled(None, &error.to_string());
        tokio::select! { () = pause.sleep() => {}, () = self.shutdown.cancelled() => {} }
    }

    async fn check_halted(&self, session: &Session) -> Result<(), ProcessError> {
        let look = session.read.look(self.chain, &self.name).await?;
        let stopped = look.and_then(|l| {
            let failed = l.checkpoint.failed.map(|(_, reason)| reason);
            l.checkpoint.halted_reason.or(failed).map(|reason| (l.chain_name, reason))
        });
        match stopped {
            Some((chain, reason)) => Err(ProcessError::Halted { chain, projection: self.name.clone(), reason }),
            None => Ok(()),
        }
    }

    async fn step(&mut self, session: &mut Session) -> Result<Outcome, Fault> {
        let Some(look) = session.read.look(self.chain, &self.name).await? else {
            return Ok(Outcome::Gone);
        };
        if let Some(after) = &look.after
            && let Some(outcome) = self.follow(session, &look, after).await?
        {
            return Ok(outcome);
        }
        if self.seen_as.as_ref() != Some(&look.chain_name) {
            self.seen_as = Some(look.chain_name.clone());
        }
        let checkpoint = &look.checkpoint;
        let name = self.name.clone();
        let seen = |broken: bool, idle: bool| seen(&look, &name, broken, idle);
        let Some(cap) = checkpoint.stops_at() else {
            self.watcher.looked(&seen(false, true));
            return Ok(Outcome::Idle);
        };
        // A follower goes as far as the projection that it follows, and no further.
        let cap = match &look.after {
            Some(after) => after.block.as_ref().map_or(cap, |b| cap.min(b.height)),
            None => cap,
        };
        let start = look.start();
        if let Some(difference) = self.difference(session, &look, start, cap).await? {
            if checkpoint.deep_change && self.on_deep_change() == OnDeepChange::Halt {
                let reason = "the chain changed at or below its final height; `ebbtide resume` rebuilds";
                session.write.halt(self.chain, &self.name, checkpoint.seq, reason).await?;
                return Ok(Outcome::Moved);
            }
            self.watcher.looked(&seen(false, false));
            return self.go_over(session, &look, start, cap, difference).await;
        }
        // Only now, after a look that found no difference: what is final and unchanged needs no journal.
        self.prune(session, &look).await?;
        let Some(start) = start else {
            self.forget_failure(session, &look).await?;
            self.watcher.looked(&seen(false, true));
            return Ok(Outcome::Idle);
        };
        if checkpoint.through.is_none() {
            let nothing =
                Difference { ancestor: None, deep: false, down: Vec::new(), same_branch: true, rebuild: None };
            let has_first = self.next_counts(session, &look, start, cap).await?;
            if has_first {
                return self.go_over(session, &look, Some(start), cap, nothing).await;
            }
            self.forget_failure(session, &look).await?;
            self.watcher.looked(&seen(look.highest.is_some_and(|h| h >= start), true));
            return Ok(Outcome::Idle);
        }
        let extended = match self.work {
            Work::Balances if look.followed && !self.without_followers => {
                self.extend_followed(session, &look, start, cap).await?
            }
            Work::Balances => self.extend(session, &look, start, cap).await?,
            Work::Function | Work::Code(_) => self.extend_tracked(session, &look, start, cap).await?,
        };
        match extended {
            Outcome::Idle => {
                self.forget_failure(session, &look).await?;
                let above = |h: Height| checkpoint.through.is_none_or(|t| h > t) && h <= cap;
                self.watcher.looked(&seen(look.highest.is_some_and(above), true));
                Ok(Outcome::Idle)
            }
            outcome => {
                self.watcher.looked(&seen(false, false));
                Ok(outcome)
            }
        }
    }

    /// Nothing is left to do: the block that failed is gone, and no other came that would take the note of it away.
    pub(super) async fn forget_failure(&mut self, session: &Session, look: &Look) -> Result<(), Fault> {
        if look.checkpoint.failed.is_some() {
            session.write.forget_failure(self.chain, &self.name, look.checkpoint.seq).await?;
            self.stuck_at = None;
        }
        Ok(())
    }

    pub(super) fn show_idle(&self, look: &Look) {
        self.watcher.looked(&seen(look, &self.name, false, true));
    }

    async fn go_over(
        &mut self,
        session: &mut Session,
        look: &Look,
        start: Option<Height>,
        cap: Height,
        difference: Difference,
    ) -> Result<Outcome, Fault> {
        let rebuilds = difference.deep;
        let outcome = match self.work {
            Work::Balances => self.switch(session, look, start, cap, difference).await,
            Work::Function | Work::Code(_) => self.switch_tracked(session, look, start, cap, difference).await,
        };
        if rebuilds {
            let over = self.rebuild_is_over(session, look).await;
            return outcome.and_then(|outcome| over.map(|()| outcome));
        }
        outcome
    }

    fn on_deep_change(&self) -> OnDeepChange {
        match self.work {
            Work::Balances => self.settings.token_balances.on_deep_change,
            Work::Function | Work::Code(_) => self.settings.on_deep_change.get(&self.name).copied().unwrap_or_default(),
        }
    }

    /// What the projection's state is made by, as it is now.
    pub(super) fn digest(&self, look: &Look) -> Option<String> {
        match &self.work {
            Work::Balances => None,
            Work::Function => look.digest.clone(),
            Work::Code(code) => Some(code.version()),
        }
    }

    /// Whether a first block is there that counts.
    async fn next_counts(&self, session: &Session, look: &Look, start: Height, cap: Height) -> Result<bool, Fault> {
        let first = session.read.stored_blocks(self.chain, start, cap, 1).await?;
        Ok(counting(None, start, look.complete_to, &first) > 0)
    }

    /// Compares what was applied with what counts, over the window above the final height; changes below it come
    /// as `redo_from`.
    async fn difference(
        &self,
        session: &Session,
        look: &Look,
        start: Option<Height>,
        cap: Height,
    ) -> Result<Option<Difference>, Fault> {
        let checkpoint = &look.checkpoint;
        let (Some(tip), Some(through)) = (&checkpoint.block, checkpoint.through) else {
            let redo = checkpoint.redo_from.is_some();
            return Ok(redo.then(|| Difference {
                ancestor: None,
                deep: true,
                down: Vec::new(),
                same_branch: true,
                rebuild: None,
            }));
        };
        if let Some(digest) = self.digest(look)
            && checkpoint.digest.as_ref().is_some_and(|made_by| *made_by != digest)
        {
            let rebuild = Some("its function changed");
            return Ok(Some(Difference { ancestor: None, deep: true, down: Vec::new(), same_branch: true, rebuild }));
        }
        let mut ours = session.read.applied_blocks(self.chain, &self.name).await?;
        ours.retain(|(block, _)| checkpoint.journal_from.is_none_or(|from| block.height >= from));
        let begun_elsewhere = checkpoint.begun_at != start;
        // The window: from where the journal is whole, and not from the first block in it: below that one, a block may
        // have come where none was. What lies below the window was final, and a change there comes as redo_from.
        let journalled = ours.first().map_or(tip.height, |(block, _)| block.height);
        let first = checkpoint.journal_from.or(start).map_or(journalled, |from| from.min(journalled));
        // Paused below the window: go there in one step.
        let first = first.min(cap.next());
        let below = session.read.block_below(self.chain, first).await?.filter(|b| start.is_some_and(|s| b.height >= s));
        let stored = session.read.stored_blocks(self.chain, first, through.min(cap), i64::MAX).await?;
        let counted = match start {
            Some(start) => counting(below.as_ref(), start, look.complete_to, &stored),
            None => 0,
        };
        let window = window(tip, &ours, below.as_ref(), first, &stored[..counted]);
        let newest = stored[..counted].last().map(|b| BlockRef { height: b.height, hash: b.hash.clone() });
        let step = plan(&window, &Theirs::Truth(newest.or_else(|| below.clone())));
        let mut difference = match step {
            Ok(Step::Reorg { ancestor, down }) => {
                let deep = match &ancestor {
                    Some(ancestor) => ancestor.height.next() < journalled,
                    None => checkpoint.begun_at.is_none_or(|begun| begun < journalled),
                };
                let deep = deep || ours.is_empty();
                Some(Difference { ancestor, deep, down, same_branch: false, rebuild: None })
            }
            _ => None,
        };
        if begun_elsewhere {
            let rebuild = Some("its start moved");
            difference = Some(Difference { ancestor: None, deep: true, down: Vec::new(), same_branch: false, rebuild });
        }
        if let Some(from) = checkpoint.redo_from {
            let from = from.min(through.next());
            let same_branch = difference.is_none() && !checkpoint.deep_change;
            let shared_below = difference.as_ref().map_or(Some(through), |d| d.ancestor.as_ref().map(|a| a.height));
            if difference.is_none() || shared_below.is_some_and(|shared| shared >= from) {
                // From above what is applied there is nothing to undo: the tip is the ancestor.
                let ancestor = session
                    .read
                    .block_below(self.chain, from.min(tip.height.next()))
                    .await?
                    .filter(|b| start.is_some_and(|s| b.height >= s) && b.height <= tip.height);
                let newest_first = ours.iter().rev().map(|(b, _)| b.clone());
                let down = newest_first.take_while(|b| ancestor.as_ref().is_none_or(|a| b.height > a.height)).collect();
                let deep = from < journalled || ours.is_empty();
                difference = Some(Difference { ancestor, deep, down, same_branch, rebuild: None });
            }
        }
        Ok(difference)
    }

    pub(super) async fn prune(&mut self, session: &Session, look: &Look) -> Result<(), Fault> {
        let Some(through) = look.checkpoint.through else { return Ok(()) };
        // Sparing: a delete for every block would double its statements.
        // But when all of it is final, at once: final blocks that follow then need not be journalled.
        let all_final = look.final_height.is_some_and(|f| f >= through) && self.pruned_at != Some(through);
        let due = all_final || self.pruned_at.is_none_or(|at| through.get() >= at.get() + 16 || through < at);
        if !due {
            return Ok(());
        }
        if let Some(horizon) = look.final_height.map(|f| f.min(through)) {
            if !matches!(self.work, Work::Balances) {
                session.write.prune_undo(self.chain, &self.name, horizon, look.checkpoint.seq).await?;
                return self.raise_final(session, look, through).await;
            }
            session.write.prune_applied(self.chain, &self.name, horizon, look.checkpoint.seq).await?;
            // Not above the last block: empty heights passed after it would make the present itself look pruned.
            let horizon = look.checkpoint.block.as_ref().map_or(horizon, |block| horizon.min(block.height));
            let pruned = self.history_pruned.or(look.checkpoint.history_from);
            if self.settings.token_balances.history == token_balances::History::Window
                && pruned.is_none_or(|to| horizon > to)
            {
                session.write.prune_history(self.chain, &self.name, pruned, horizon, look.checkpoint.seq).await?;
                self.history_pruned = Some(horizon);
            }
        }
        self.raise_final(session, look, through).await
    }

    /// On a chain that no source follows, what is applied deep enough is final.
    async fn raise_final(&mut self, session: &Session, look: &Look, through: Height) -> Result<(), Fault> {
        if look.head_height.is_none() && through.get() >= look.finality_depth {
            session.write.raise_final(self.chain, through.minus(look.finality_depth)).await?;
        }
        self.pruned_at = Some(through);
        Ok(())
    }

    /// A transaction went through: dare more blocks at once again.
    pub(super) fn grow(&mut self) {
        self.most_blocks = self.most_blocks.saturating_mul(2);
    }
}

fn seen<'a>(look: &'a Look, projection: &'a str, broken: bool, idle: bool) -> Seen<'a> {
    let checkpoint = &look.checkpoint;
    Seen {
        of: Of { chain: &look.chain_name, projection },
        applied: checkpoint.through.map(Height::get),
        tip: look.highest.map(Height::get),
        head: look.head_height.map(Height::get),
        final_height: look.final_height.map(Height::get),
        paused: checkpoint.paused,
        halted: checkpoint.halted_reason.as_deref(),
        failed: checkpoint.failed.as_ref().map(|(_, reason)| reason.as_str()),
        broken,
        idle,
    }
}

fn window(
    tip: &BlockRef,
    ours: &[(BlockRef, i64)],
    below: Option<&BlockRef>,
    first: Height,
    counted: &[StoredBlock],
) -> Window {
    let mut known: BTreeMap<Height, (Option<Mark>, Option<Mark>)> = BTreeMap::new();
    let floor = below.map_or(first, |b| b.height);
    known.entry(floor).or_default();
    if let Some(below) = below {
        let mark = Mark { hash: below.hash.clone(), revision: 0 };
        known.insert(below.height, (Some(mark.clone()), Some(mark)));
    }
    for (block, revision) in ours {
        known.entry(block.height).or_default().0 = Some(Mark { hash: block.hash.clone(), revision: *revision });
    }
    let journalled = !ours.is_empty();
    for block in counted {
        // Without a journal row the block was final when it was applied: its hash alone is compared.
        let revision = if journalled { block.revision } else { 0 };
        known.entry(block.height).or_default().1 = Some(Mark { hash: block.hash.clone(), revision });
    }
    if !journalled {
        known.entry(tip.height).or_default().0 = Some(Mark { hash: tip.hash.clone(), revision: 0 });
    }
    Window { tip: Some(tip.clone()), floor, more_below: false, known }
}
