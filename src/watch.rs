//! What the syncers and the processor of this process say of themselves: counted as metrics, and told by the [heart](crate::heart).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::chain::verdict::{PartSays, Says, Trouble};
use crate::ops::{ChainMetrics, Metrics, ProjectionMetrics};
use crate::process::{Done, Of, Watcher};
use crate::sync::SyncWatcher;

/// A round may take so much longer than the pause before it, until its silence is news.
const ROUND: Duration = Duration::from_millis(2_500);

/// What all parts of this process say. Cheap to clone.
#[derive(Clone, Default)]
pub struct Voices {
    parts: Arc<Mutex<Parts>>,
    changed: Arc<Notify>,
}

#[derive(Default)]
struct Parts {
    processor: Option<Part>,
    projections: BTreeMap<String, BTreeMap<String, Part>>,
    sources: BTreeMap<String, Part>,
}

#[derive(Clone)]
struct Part {
    starting: bool,
    trouble: Option<Told>,
    standby: Option<String>,
    heard_at: Instant,
    due: Option<Duration>,
    done: bool,
}

#[derive(Clone)]
struct Told {
    reason: String,
    lasting: bool,
    since: Instant,
}

impl Part {
    /// One that is to be heard this often; None means its silence says nothing.
    fn new(due: Option<Duration>) -> Part {
        let starting = due.is_some();
        Part { starting, trouble: None, standby: None, heard_at: Instant::now(), due, done: false }
    }

    fn heard(&mut self) {
        self.heard_at = Instant::now();
    }

    /// Says whether that is news.
    fn well(&mut self) -> bool {
        self.heard();
        let was_well = !self.starting && self.trouble.is_none() && self.standby.is_none();
        (self.starting, self.trouble, self.standby) = (false, None, None);
        !was_well
    }

    fn troubled(&mut self, reason: &str, lasting: bool) -> bool {
        self.heard();
        let before = self.trouble.take();
        let is_news = before.as_ref().is_none_or(|before| before.reason != reason || before.lasting != lasting);
        let since = before.map_or_else(Instant::now, |before| before.since);
        self.trouble = Some(Told { reason: reason.to_owned(), lasting, since });
        self.standby = None;
        is_news
    }

    fn says(&self) -> PartSays {
        let trouble = self.trouble.as_ref().map(|told| Trouble {
            reason: told.reason.clone(),
            lasting: told.lasting,
            seconds: told.since.elapsed().as_secs_f64(),
        });
        PartSays {
            starting: self.starting,
            trouble,
            standby: self.standby.clone(),
            heard_seconds: self.heard_at.elapsed().as_secs_f64(),
            due_seconds: self.due.map(|due| due.as_secs_f64()),
            done: self.done,
        }
    }
}

impl Voices {
    /// What all of them say now.
    #[must_use]
    pub fn say(&self) -> Says {
        let parts = self.lock();
        let projections = parts
            .projections
            .iter()
            .map(|(chain, all)| (chain.clone(), all.iter().map(|(name, part)| (name.clone(), part.says())).collect()));
        Says {
            processor: parts.processor.as_ref().map(Part::says),
            projections: projections.collect(),
            sources: parts.sources.iter().map(|(chain, part)| (chain.clone(), part.says())).collect(),
            seen: Vec::new(),
        }
    }

    /// Whether nobody here syncs or processes.
    #[must_use]
    pub fn are_none(&self) -> bool {
        let parts = self.lock();
        parts.processor.is_none() && parts.sources.is_empty()
    }

    /// The syncer of this chain has done all there was to do: its source has ended.
    pub fn source_is_done(&self, chain: &str) {
        self.on_source(chain, |part| {
            part.well();
            part.done = true;
            true
        });
    }

    /// Returns when somebody said something new since the last time.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Parts> {
        // Each use is one change of plain values; a panic in another leaves them whole.
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn on_source(&self, chain: &str, act: impl FnOnce(&mut Part) -> bool) {
        let is_news = self.lock().sources.get_mut(chain).is_some_and(act);
        if is_news {
            self.changed.notify_one();
        }
    }

    fn on_processor(&self, act: impl FnOnce(&mut Part) -> bool) {
        let is_news = self.lock().processor.as_mut().is_some_and(act);
        if is_news {
            self.changed.notify_one();
        }
    }

    fn on_projection(&self, of: Of<'_>, act: impl FnOnce(&mut Part) -> bool) {
        let mut parts = self.lock();
        let all = parts.projections.entry(of.chain.to_owned()).or_default();
        let is_news = act(all.entry(of.projection.to_owned()).or_insert_with(|| Part::new(None)));
        drop(parts);
        if is_news {
            self.changed.notify_one();
        }
    }

    fn forget_projection(&self, of: Of<'_>) {
        if let Some(all) = self.lock().projections.get_mut(of.chain) {
            all.remove(of.projection);
        }
    }
}

/// Watches one syncer.
pub struct SyncWatch {
    voices: Voices,
    metrics: ChainMetrics,
}

impl SyncWatch {
    /// For the chain of this name, whose source is asked at least this often.
    #[must_use]
    pub fn new(chain: &str, poll_interval: Duration, voices: &Voices, metrics: &Metrics) -> SyncWatch {
        voices.lock().sources.insert(chain.to_owned(), Part::new(Some(poll_interval.saturating_add(ROUND))));
        SyncWatch { voices: voices.clone(), metrics: metrics.chain(chain) }
    }
}

impl SyncWatcher for SyncWatch {
    fn looked(&self, chain: &str) {
        self.metrics.source_looks.inc();
        self.voices.on_source(chain, |part| {
            part.heard();
            false
        });
    }

    fn written(&self, chain: &str, blocks: u64, _events: u64, _removed: u64) {
        self.metrics.blocks_synced.inc_by(blocks);
        self.voices.on_source(chain, |part| {
            part.heard();
            false
        });
    }

    fn rejected(&self, _chain: &str, reason: &str, count: u64) {
        self.metrics.rejected_events(reason, count);
    }

    fn troubled(&self, chain: &str, reason: &str, lasting: bool) {
        self.metrics.source_fault(if lasting { "permanent" } else { "transient" });
        self.voices.on_source(chain, |part| part.troubled(reason, lasting));
    }

    fn stands_by(&self, chain: &str, holder: &str) {
        self.voices.on_source(chain, |part| {
            let is_news = part.well() || part.standby.is_none();
            part.standby = Some(holder.to_owned());
            is_news
        });
    }

    fn well(&self, chain: &str) {
        self.voices.on_source(chain, Part::well);
    }
}

/// Watches the processor and its tasks.
pub struct ProcessWatch {
    voices: Voices,
    metrics: Metrics,
}

impl ProcessWatch {
    /// For all chains; it looks at least this often.
    #[must_use]
    pub fn new(poll_interval: Duration, voices: &Voices, metrics: &Metrics) -> ProcessWatch {
        voices.lock().processor = Some(Part::new(Some(poll_interval.saturating_add(ROUND))));
        ProcessWatch { voices: voices.clone(), metrics: metrics.clone() }
    }

    fn metrics(&self, of: Of<'_>) -> ProjectionMetrics {
        self.metrics.projection(of.chain, of.projection)
    }
}

impl Watcher for ProcessWatch {
    fn looked(&self, of: Of<'_>) {
        self.voices.on_projection(of, |part| {
            part.heard();
            false
        });
    }

    fn applied(&self, of: Of<'_>, done: Done) {
        let metrics = self.metrics(of);
        metrics.blocks_applied.inc_by(done.blocks);
        metrics.events_applied.inc_by(done.events);
        metrics.apply_seconds.observe(done.took.as_secs_f64());
        metrics.negative_balances.inc_by(done.negative);
        if done.refused > 0 {
            self.metrics.chain(of.chain).rejected_events("refused", done.refused);
        }
    }

    fn switched(&self, of: Of<'_>, depth: u64, _took: Duration) {
        let metrics = self.metrics(of);
        metrics.reorgs.inc();
        metrics.reorg_depth.observe(depth as f64);
    }

    fn troubled(&self, of: Option<Of<'_>>, reason: &str) {
        match of {
            Some(of) => self.voices.on_projection(of, |part| part.troubled(reason, false)),
            None => self.voices.on_processor(|part| part.troubled(reason, false)),
        }
    }

    fn well(&self, of: Option<Of<'_>>) {
        match of {
            Some(of) => self.voices.on_projection(of, Part::well),
            None => self.voices.on_processor(Part::well),
        }
    }

    fn ended(&self, of: Of<'_>) {
        self.voices.forget_projection(of);
    }

    fn bell(&self, connected: bool, reconnects: u64) {
        self.metrics.listener_connected.set(i64::from(connected));
        let seen = self.metrics.listener_reconnects.get();
        self.metrics.listener_reconnects.inc_by(reconnects.saturating_sub(seen));
    }
}
