//! Source → plan → blocks and events in Postgres, heights committed in order; replaced blocks are archived.
//!
//! One syncer per chain (advisory lock). History is fetched by several requests at once and written by COPY; near
//! the head the same code fetches a block at a time.

mod compare;
mod describe;
mod error;
mod fetch;
mod following;
mod lag;
mod settle;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use self::compare::{Move, final_height};
use self::describe::Descriptions;
use self::error::Fault;
pub use self::error::SyncError;
use self::fetch::Fetcher;
use self::following::Following;
use self::lag::Lag;
use crate::chain::{Block, BlockRef, ChainId, Height, Reject};
use crate::sources::{Head, Identity, Source, SourceError};
use crate::store::{ChainRow, ChainSettings, LockHolder, NewBlocks, Store, StoredChain, SyncLock, Written};

/// How the syncer goes about it.
#[derive(Debug, Clone)]
pub struct SyncSettings {
    /// The chain it writes.
    pub chain: ChainSettings,
    /// Longest sleep between two questions for the head. Defaults to 1 s.
    pub poll_interval: Duration,
    /// Requests for history under way at once. Defaults to 4.
    pub concurrency: usize,
    /// Most blocks asked for at once. Defaults to 2,000.
    pub range_blocks: u64,
    /// Whether blocks that were final may be replaced, and the start moved under stored blocks.
    pub allow_reset: bool,
    /// Whether a rejected event stops the syncer before its block.
    pub halt_on_bad_event: bool,
    /// Whether the source ends by itself (a file).
    pub ends: bool,
    /// Whether a fault that a person must fix ends the run, if it shows before the first block was taken or the source ends
    /// by itself; otherwise it is shown, and asked about again. Defaults to true: beside other chains it is false.
    pub fails_fast: bool,
    /// Whether to draw a progress bar.
    pub progress: bool,
}

/// What the syncer tells whoever watches it. Called often; must be quick.
pub trait SyncWatcher: Send + Sync {
    /// The source named its newest block.
    fn looked(&self, _chain: &str) {}
    /// Blocks were written.
    fn written(&self, _chain: &str, _blocks: u64, _events: u64, _removed: u64) {}
    /// So many events were rejected for this reason.
    fn rejected(&self, _chain: &str, _reason: &str, _count: u64) {}
    /// The source or Postgres fails; `lasting`: a person should look.
    fn troubled(&self, _chain: &str, _reason: &str, _lasting: bool) {}
    /// Another syncer has the chain's lock; this one waits for it.
    fn stands_by(&self, _chain: &str, _holder: &str) {}
    /// A round went well.
    fn well(&self, _chain: &str) {}
}

/// Watches nothing.
#[derive(Debug, Clone, Copy)]
pub struct Unwatched;

impl SyncWatcher for Unwatched {}

/// Follows a source until `shutdown`, or until a source that ends has ended.
///
/// # Errors
/// Faults that a person must fix, where [`fails_fast`](SyncSettings::fails_fast) says so.
pub async fn run(
    store: Store,
    source: Arc<dyn Source>,
    settings: SyncSettings,
    watcher: Arc<dyn SyncWatcher>,
    shutdown: CancellationToken,
) -> Result<(), SyncError> {
    let mut syncer = Syncer {
        store,
        source,
        settings,
        watcher,
        shutdown: shutdown.clone(),
        network_id: None,
        descriptions: None,
        following: Following::default(),
        started_well: false,
        lag: Lag::default(),
        trouble: None,
    };
    let mut pause = FIRST_PAUSE;
    while !shutdown.is_cancelled() {
        let session = tokio::select! {
            session = syncer.session(&mut pause) => session,
            // Between two transactions, or rolled back inside one: nothing is half done.
            () = shutdown.cancelled() => return Ok(()),
        };
        let Err(error) = session else { return Ok(()) };
        let name = &syncer.settings.chain.name;
        let lasting = matches!(error.fault(), Fault::Lasting);
        if lasting && syncer.settings.fails_fast && (!syncer.started_well || syncer.settings.ends) {
            return Err(error);
        }
        let wait = if lasting { LASTING_PAUSE } else { pause };
        tracing::warn!(chain = %name, %error, "Syncing was interrupted; trying again");
        syncer.watcher.troubled(name, &error.to_string(), lasting);
        tokio::select! { () = tokio::time::sleep(jitter(wait)) => {}, () = shutdown.cancelled() => {} }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    Ok(())
}

const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// With its jitter less than 9 s: once the source is back, blocks go on within 10 s, however long it was gone. A source that asks
/// for more (`Retry-After`) gets it.
const LONGEST_PAUSE: Duration = Duration::from_secs(7);
const LASTING_PAUSE: Duration = Duration::from_secs(7);
/// A COPY that has taken in nothing for so long is that of a process that stands still.
const STALLED_AFTER: Duration = Duration::from_secs(9);

fn jitter(pause: Duration) -> Duration {
    pause.mul_f64(0.75 + rand::random::<f64>() / 2.0)
}

struct Syncer {
    store: Store,
    source: Arc<dyn Source>,
    settings: SyncSettings,
    watcher: Arc<dyn SyncWatcher>,
    shutdown: CancellationToken,
    /// What the source called itself when the session began.
    network_id: Option<String>,
    /// None outside of a session.
    descriptions: Option<Descriptions>,
    following: Following,
    /// Whether a round went well in this run: from then on faults are waited out.
    started_well: bool,
    lag: Lag,
    /// What is wrong although every round goes well.
    trouble: Option<String>,
}

/// How a round ended.
enum Round {
    /// Something was written: look again at once.
    Moved,
    /// Nothing new.
    Idle,
    /// The source has ended and all of it is stored.
    Ended,
}

impl Syncer {
    /// One connection's life.
    async fn session(&mut self, pause: &mut Duration) -> Result<(), SyncError> {
        let mut identity = self.source.identify().await?;
        let id = self.store.ensure_chain(&self.settings.chain.name, identity.kind).await?;
        let Some((mut lock, waited)) = self.lock(id).await? else { return Ok(()) };
        if waited {
            identity = lock.hold_during(self.source.identify()).await?;
        }
        let stored = self.settle(&mut lock, &identity).await?;
        let chain = &stored.chain;
        self.network_id = identity.network_id;
        let tip = stored.tip.clone().filter(|_| !self.begins_below(&stored));
        self.descriptions = Some(Descriptions::start(self.store.clone(), self.source.clone(), id));
        // Whom the source followed in an earlier session may be another's by now.
        self.following = Following::default();
        self.tell_whom_to_follow(&lock, &stored, tip.as_ref()).await?;
        self.resume(&lock, chain, tip.as_ref()).await?;
        if tip.is_none() {
            let opening = lock.hold_during(self.source.opening_balances()).await?;
            if !opening.is_empty() {
                let rows: Vec<_> = opening.into_iter().map(|o| (o.token, o.address, o.amount)).collect();
                lock.put_opening_balances(&rows).await?;
            }
        }
        loop {
            match self.round(&mut lock).await {
                Ok(Round::Moved) => self.went_well(pause),
                Ok(Round::Idle) => {
                    self.went_well(pause);
                    lock.hold_during(self.source.wait(self.settings.poll_interval)).await;
                }
                Ok(Round::Ended) => {
                    if let Some(descriptions) = self.descriptions.take() {
                        descriptions.finish().await;
                    }
                    return Ok(());
                }
                Err(error) => match error.fault() {
                    Fault::Wait(at_least) => {
                        let wait = jitter(*pause).max(at_least.unwrap_or_default());
                        tracing::warn!(chain = %chain.name, %error, "The source failed; trying again");
                        self.watcher.troubled(&chain.name, &error.to_string(), error.is_for_a_person());
                        lock.hold_during(tokio::time::sleep(wait)).await;
                        *pause = (*pause * 2).min(LONGEST_PAUSE);
                    }
                    Fault::Again => {
                        tracing::debug!(chain = %chain.name, %error, "Looking again");
                        tokio::time::sleep(jitter(Duration::from_millis(50))).await;
                    }
                    Fault::Reconnect | Fault::Lasting => return Err(error),
                },
            }
        }
    }

    fn went_well(&mut self, pause: &mut Duration) {
        self.started_well = true;
        *pause = FIRST_PAUSE;
        let name = &self.settings.chain.name;
        match &self.trouble {
            Some(reason) => self.watcher.troubled(name, reason, false),
            None => self.watcher.well(name),
        }
    }

    /// The chain's lock, and whether it was waited for while another syncer had it. None means it was told to stop meanwhile.
    async fn lock(&self, chain: ChainId) -> Result<Option<(SyncLock, bool)>, SyncError> {
        let (mut waited, mut stalled) = (false, None::<(LockHolder, Instant)>);
        loop {
            let holder = match SyncLock::acquire(&self.store, chain).await? {
                Ok(lock) => return Ok(Some((lock, waited))),
                Err(holder) => holder,
            };
            let name = &self.settings.chain.name;
            if !std::mem::replace(&mut waited, true) {
                tracing::info!(chain = %name, "Another syncer ({holder}) follows {name}; standing by");
            }
            self.watcher.stands_by(name, &format!("another one has the chain's lock ({holder})"));
            stalled = match stalled.filter(|(before, _)| *before == holder) {
                Some((_, since)) if since.elapsed() > STALLED_AFTER => {
                    tracing::warn!(chain = %name, "The syncer of {name} ({holder}) stands still in the midst of a COPY; ending its session");
                    SyncLock::end_stalled(&self.store, chain, &holder).await?;
                    None
                }
                None if holder.copied.is_some() => Some((holder, Instant::now())),
                same => same,
            };
            tokio::select! {
                () = tokio::time::sleep(self.settings.poll_interval) => {}
                () = self.shutdown.cancelled() => return Ok(None),
            }
        }
    }

    /// Makes the settings those of the chain: by the holder of its lock, once nothing speaks against it.
    async fn settle(&self, lock: &mut SyncLock, identity: &Identity) -> Result<StoredChain, SyncError> {
        let claim = lock.claim().await?;
        let settings = &self.settings.chain;
        let moved = settle::check(claim.stored(), settings, identity, self.settings.allow_reset)?;
        let listed_only = self.source.follows().is_some();
        let stored = claim.settle(settings, identity.kind, listed_only).await?;
        if let Some(settle::MovedStart { from, to }) = moved {
            let chain = &stored.chain.name;
            let what = if self.begins_below(&stored) {
                "all stored blocks are archived and read again"
            } else {
                "what lies below is kept, but does not count"
            };
            tracing::warn!(%chain, "{chain} starts at {to} from now on, not at {from}: {what}, and everything is built again");
        }
        Ok(stored)
    }

    /// Whether the start was lowered, as far as that is allowed: what is stored does not count without the blocks below.
    fn begins_below(&self, stored: &StoredChain) -> bool {
        self.settings.allow_reset
            && stored.chain.start_height.is_some_and(|start| stored.lowest.is_some_and(|l| start < l))
    }

    /// What is stored, for the source to go on from.
    async fn resume(&self, lock: &SyncLock, chain: &ChainRow, tip: Option<&BlockRef>) -> Result<(), SyncError> {
        let recalls = self.source.recalls();
        if !recalls.is_empty() {
            let kinds: Vec<_> = recalls.iter().map(|r| (r.emitter.as_deref(), &*r.name)).collect();
            let said = lock.events_named(&kinds).await?;
            lock.hold_during(self.source.recall(&said)).await?;
        }
        Ok(lock.hold_during(self.source.resume(tip, chain.source_position.as_ref())).await?)
    }

    /// What is new at the head, then a piece of what contracts said before they were followed.
    async fn round(&mut self, lock: &mut SyncLock) -> Result<Round, SyncError> {
        let round = self.follow_head(lock).await?;
        let caught_up = self.catch_up(lock).await?;
        Ok(if caught_up && matches!(round, Round::Idle) { Round::Moved } else { round })
    }

    async fn follow_head(&mut self, lock: &mut SyncLock) -> Result<Round, SyncError> {
        let head = lock.hold_during(self.source.head()).await?;
        let stored = lock.stored().await?;
        let StoredChain { chain, tip, .. } = &stored;
        let tip = tip.clone();
        if self.tell_whom_to_follow(lock, &stored, tip.as_ref()).await? {
            self.resume(lock, chain, tip.as_ref()).await?;
        }
        let tip_height = tip.as_ref().map(|tip| tip.height);
        let final_height = final_height(&head, tip_height, chain.finality_depth);
        self.watcher.looked(&chain.name);
        let lag = self.lag.look(tip_height, chain.final_height, &head, Instant::now());
        self.trouble = lag.map(|(reason, is_first)| {
            if is_first {
                tracing::warn!(chain = %chain.name, "{reason}");
            }
            reason
        });
        let (ancestor, down) = match self.compare(lock, &stored, &head).await? {
            Move::Stay => {
                let known_tip = tip.as_ref() == Some(&head.block);
                let position = head.position.as_ref().filter(|_| known_tip);
                lock.note_head(&stored, head.block.height, final_height, position).await?;
                // A file that has more to say does not wait when it is asked to.
                return Ok(if head.last && known_tip { Round::Ended } else { Round::Idle });
            }
            Move::Extend => (tip.clone(), None),
            Move::Replace { ancestor, down } => (ancestor, Some(down)),
            Move::Restart => (None, Some(Vec::new())),
        };
        let replace = down.is_some();
        let undone = down.as_ref().and_then(|down| down.first()).cloned();
        let reset = replace && ancestor.as_ref().map(|a| a.height) < chain.final_height;
        if let Some(down) = down.filter(|down| !down.is_empty())
            && !lock.hold_during(self.source.confirm_undo(&down, &head.block)).await?
        {
            tracing::warn!(
                chain = %chain.name,
                "Another branch was seen, but no second source agrees yet; {} blocks are kept", down.len()
            );
            return Ok(Round::Idle);
        }
        let from = match &ancestor {
            Some(ancestor) => ancestor.height.next(),
            None => self.first_height(lock, &stored).await?,
        };
        let write = Write { chain, head: &head, undone: undone.as_ref(), reset };
        self.store_range(lock, write, ancestor, replace, from).await
    }

    async fn first_height(&self, lock: &SyncLock, stored: &StoredChain) -> Result<Height, SyncError> {
        match stored.chain.start_height.or(stored.lowest) {
            Some(start) => Ok(start),
            None => Ok(lock.hold_during(self.source.first_height()).await?),
        }
    }

    /// Fetches from `from` to the head and writes, ranges in order. The old branch goes with the first range of the
    /// new one, in one transaction.
    async fn store_range(
        &mut self,
        lock: &mut SyncLock,
        write: Write<'_>,
        ancestor: Option<BlockRef>,
        mut replace: bool,
        from: Height,
    ) -> Result<Round, SyncError> {
        let head_height = write.head.block.height;
        if from > head_height {
            if !replace {
                return Ok(Round::Idle);
            }
            // The chain got shorter, and nothing is there instead.
            let stored = self.store_blocks(lock, &write, ancestor.as_ref(), true, &[], true).await?;
            return Ok(if stored { Round::Moved } else { Round::Idle });
        }
        let mut before = ancestor;
        let (concurrency, range_blocks) = (self.settings.concurrency, self.settings.range_blocks);
        let mut fetcher = Fetcher::new(self.source.clone(), from, head_height, concurrency, range_blocks);
        let progress = fetch::Progress::new(self.settings.progress, &write.chain.name, from, head_height);
        let mut pending: Vec<Block> = Vec::new();
        // A replacement up to this size goes in at once, so that nobody sees a shorter chain in between.
        let at_once = if replace { REPLACEMENT_BLOCKS } else { 0 };
        while let Some(blocks) = lock.hold_during(fetcher.next()).await? {
            check_links(before_of(&pending, before.as_ref()), &blocks)?;
            if replace {
                check_differs(write.undone, &blocks)?;
            }
            pending.extend(blocks);
            let ended = pending.last().is_some_and(|b| b.link.height >= head_height);
            if !ended && pending.len() < at_once {
                continue;
            }
            if !self.store_blocks(lock, &write, before.as_ref(), replace, &pending, ended).await? {
                return Ok(Round::Moved);
            }
            if let Some(descriptions) = &mut self.descriptions {
                descriptions.ask_for(&pending);
            }
            replace = false;
            before = pending.last().map(|b| b.link.block_ref()).or(before);
            progress.at(before.as_ref().map_or(from, |b| b.height));
            pending.clear();
            self.started_well = true;
            if self.shutdown.is_cancelled() {
                return Ok(Round::Idle);
            }
        }
        progress.done();
        Ok(Round::Moved)
    }

    /// False: someone else changed the chain; look again.
    async fn store_blocks(
        &mut self,
        lock: &mut SyncLock,
        write: &Write<'_>,
        ancestor: Option<&BlockRef>,
        replace: bool,
        blocks: &[Block],
        ended: bool,
    ) -> Result<bool, SyncError> {
        let chain = &write.chain.name;
        for block in blocks {
            self.show_rejects(block)?;
        }
        let last = blocks.last().map(|block| block.link.height).or(ancestor.map(|ancestor| ancestor.height));
        let new = NewBlocks {
            ancestor,
            replace,
            blocks,
            head_height: write.head.block.height,
            final_height: final_height(write.head, last, write.chain.finality_depth),
            position: write.head.position.as_ref().filter(|_| ended),
            reset: write.reset && replace,
            network_id: self.network_id.as_deref(),
            vaults: self.following.followed(),
        };
        match lock.write(&new).await? {
            Written::Stale => {
                tracing::info!(%chain, "Someone else changed the chain; looking again");
                Ok(false)
            }
            Written::Stored { removed } => {
                let events: usize = blocks.iter().map(|b| b.token_events.len() + b.events.len()).sum();
                let height = blocks.last().map(|b| b.link.height.get());
                if removed > 0 {
                    tracing::info!(%chain, height, removed, "Replaced {removed} blocks of {chain}");
                } else {
                    tracing::debug!(%chain, height, blocks = blocks.len(), events, "Stored blocks");
                }
                self.watcher.written(chain, blocks.len() as u64, events as u64, removed);
                Ok(true)
            }
        }
    }

    /// One line a block, however many there are: anybody can make them.
    fn show_rejects(&self, block: &Block) -> Result<(), SyncError> {
        let Some(first) = block.rejects.first() else { return Ok(()) };
        if self.settings.halt_on_bad_event {
            return Err(SyncError::BadEvent {
                block: block.link.block_ref(),
                tx_index: first.tx_index,
                event_index: first.event_index,
                reason: first.reason.clone(),
            });
        }
        let (chain, count) = (&self.settings.chain.name, block.rejects.len());
        tracing::warn!(
            %chain, height = block.link.height.get(), count, tx_index = first.tx_index,
            event_index = first.event_index, reason = %first.reason,
            "Rejected {count} events of block {}; the first one: {}", block.link.block_ref(), first.reason
        );
        self.count_rejects(&block.rejects);
        Ok(())
    }

    fn count_rejects<'r>(&self, rejects: impl IntoIterator<Item = &'r Reject>) {
        let mut by_reason: BTreeMap<&str, u64> = BTreeMap::new();
        for reject in rejects {
            *by_reason.entry(&reject.reason).or_default() += 1;
        }
        for (reason, count) in by_reason {
            self.watcher.rejected(&self.settings.chain.name, reason, count);
        }
    }
}

/// Blocks of a new branch that are gathered before the old one goes.
const REPLACEMENT_BLOCKS: usize = 1_000;

struct Write<'a> {
    chain: &'a ChainRow,
    head: &'a Head,
    /// The lowest of our blocks that are to go.
    undone: Option<&'a BlockRef>,
    reset: bool,
}

fn before_of(pending: &[Block], before: Option<&BlockRef>) -> Option<BlockRef> {
    pending.last().map(|b| b.link.block_ref()).or_else(|| before.cloned())
}

/// A head at or below ours is believed once its blocks differ from ours: one that names another block, where the source then
/// gives our own, was wrong, and nothing goes for it.
fn check_differs(undone: Option<&BlockRef>, blocks: &[Block]) -> Result<(), SourceError> {
    match undone.filter(|undone| blocks.iter().any(|block| block.link.block_ref() == **undone)) {
        Some(ours) => Err(SourceError::transient(format!(
            "the source named another block {} than ours, and then gave ours ({ours}): nothing is replaced",
            ours.height
        ))),
        None => Ok(()),
    }
}

fn check_links(before: Option<BlockRef>, blocks: &[Block]) -> Result<(), SyncError> {
    let mut before = before;
    for block in blocks {
        if block.link.parent_hash == block.link.hash {
            return Err(SyncError::OwnParent { block: block.link.block_ref() });
        }
        if let Some(before) = &before
            && (block.link.parent_hash != before.hash || block.link.height != before.height.next())
        {
            return Err(SyncError::NotLinked {
                block: block.link.block_ref(),
                parent: block.link.parent_hash.to_string(),
                before: before.to_string(),
            });
        }
        before = Some(block.link.block_ref());
    }
    Ok(())
}
