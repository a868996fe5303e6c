//! What the syncer and the processor say of themselves, as metrics and readiness.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;

use crate::ops::{ChainMetrics, Health, Metrics, ProjectionMetrics, Reporter};
use crate::process::{Done, Of, Seen, Watcher};
use crate::projections::token_balances::NAME;
use crate::sync::SyncWatcher;

/// A part that says nothing for this long is stuck, whatever it said before.
const LONGEST_SILENCE: Duration = Duration::from_secs(60);

/// Watches one syncer.
pub struct SyncWatch {
    reporter: Reporter,
    chain: ChainMetrics,
}

impl SyncWatch {
    /// For the chain of this name.
    pub fn new(chain: &str, health: &Health, metrics: &Metrics) -> SyncWatch {
        let reporter = health.component(format!("sync:{chain}"));
        reporter.expect_within(LONGEST_SILENCE);
        reporter.not_ready("has not seen the source yet");
        SyncWatch { reporter, chain: metrics.chain(chain) }
    }
}

fn gauge(height: u64) -> i64 {
    i64::try_from(height).unwrap_or(i64::MAX)
}

impl SyncWatcher for SyncWatch {
    fn head(&self, _chain: &str, head: u64, tip: Option<u64>, final_height: Option<u64>) {
        self.chain.head_height.set(gauge(head));
        self.chain.tip_height.set(tip.map_or(0, gauge));
        self.chain.final_height.set(final_height.map_or(0, gauge));
        self.chain.source_requests.inc();
        self.reporter.alive();
        self.reporter.detail(json!({ "head": head, "tip": tip, "final": final_height }));
    }

    fn written(&self, _chain: &str, blocks: u64, _events: u64, _removed: u64) {
        self.chain.blocks_synced.inc_by(blocks);
        self.reporter.alive();
    }

    fn rejected(&self, _chain: &str, reason: &str) {
        self.chain.rejected_events(reason, 1);
    }

    fn troubled(&self, _chain: &str, reason: &str, lasting: bool) {
        self.chain.source_fault(if lasting { "permanent" } else { "transient" });
        self.reporter.not_ready(reason);
    }

    fn well(&self, _chain: &str) {
        self.reporter.ok();
    }
}

/// Watches the processor's tasks.
pub struct ProcessWatch {
    health: Health,
    metrics: Metrics,
    itself: Reporter,
    tasks: Mutex<HashMap<(String, String), Watched>>,
}

struct Watched {
    reporter: Reporter,
    metrics: ProjectionMetrics,
}

impl ProcessWatch {
    /// For all chains.
    pub fn new(health: &Health, metrics: &Metrics) -> ProcessWatch {
        let itself = health.component("process");
        itself.expect_within(LONGEST_SILENCE);
        itself.not_ready("has not reached the database yet");
        ProcessWatch { health: health.clone(), metrics: metrics.clone(), itself, tasks: Mutex::default() }
    }

    fn with(&self, of: Of<'_>, act: impl FnOnce(&Watched)) {
        // Each use is one call; a panic in another leaves the map whole.
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        let watched = tasks.entry((of.chain.to_owned(), of.projection.to_owned())).or_insert_with(|| {
            let reporter = self.health.component(component(of));
            reporter.expect_within(LONGEST_SILENCE);
            Watched { reporter, metrics: self.metrics.projection(of.chain, of.projection) }
        });
        act(watched);
    }
}

fn component(of: Of<'_>) -> String {
    match of.projection {
        NAME => format!("process:{}", of.chain),
        other => format!("process:{}:{other}", of.chain),
    }
}

impl Watcher for ProcessWatch {
    fn looked(&self, seen: &Seen<'_>) {
        self.with(seen.of, |watched| {
            let newest = seen.head.max(seen.tip);
            let lag = match (newest, seen.applied) {
                (Some(newest), Some(applied)) => newest.saturating_sub(applied),
                _ => 0,
            };
            watched.metrics.applied_height.set(seen.applied.map_or(0, gauge));
            watched.metrics.lag_blocks.set(gauge(lag));
            watched.reporter.detail(json!({
                "applied": seen.applied, "tip": seen.tip, "head": seen.head, "final": seen.final_height,
                "lag_blocks": lag, "paused": seen.paused,
            }));
            let trouble = match (seen.halted, seen.paused, seen.broken) {
                (Some(reason), ..) => Some(format!("halted: {reason}")),
                _ if seen.failed.is_some() => seen.failed.map(|reason| format!("its next block fails: {reason}")),
                (None, true, _) => Some("paused by an operator".to_owned()),
                (None, false, true) => Some("the stored chain has a break: see the view anomalies".to_owned()),
                // Behind by more than what is in hand at any moment: still catching up.
                _ if !seen.idle && lag > 16 => Some(format!("catching up: {lag} blocks behind")),
                _ => None,
            };
            match trouble {
                Some(reason) => watched.reporter.not_ready(reason),
                None => watched.reporter.ok(),
            }
        });
    }

    fn applied(&self, of: Of<'_>, done: Done) {
        self.with(of, |watched| {
            watched.metrics.blocks_applied.inc_by(done.blocks);
            watched.metrics.events_applied.inc_by(done.events);
            watched.metrics.apply_seconds.observe(done.took.as_secs_f64());
            watched.metrics.negative_balances.inc_by(done.negative);
            watched.reporter.alive();
        });
        if done.refused > 0 {
            self.metrics.chain(of.chain).rejected_events("refused", done.refused);
        }
    }

    fn switched(&self, of: Of<'_>, depth: u64, _took: Duration) {
        self.with(of, |watched| {
            watched.metrics.reorgs.inc();
            watched.metrics.reorg_depth.observe(depth as f64);
        });
    }

    fn rebuilding(&self, of: Of<'_>, at: Option<(u64, u64)>) {
        self.with(of, |watched| {
            watched.reporter.detail(json!({ "rebuilding": at.map(|(at, to)| json!({ "at": at, "to": to })) }));
            match at {
                Some((at, to)) => watched.reporter.not_ready(format!("rebuilding: at block {at} of {to}")),
                None => watched.reporter.alive(),
            }
        });
    }

    fn troubled(&self, of: Option<Of<'_>>, reason: &str) {
        match of {
            Some(of) => self.with(of, |watched| watched.reporter.not_ready(reason)),
            None => self.itself.not_ready(reason),
        }
    }

    fn ended(&self, of: Of<'_>) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(watched) = tasks.remove(&(of.chain.to_owned(), of.projection.to_owned())) {
            watched.reporter.retire();
        }
    }

    fn bell(&self, connected: bool, reconnects: u64) {
        self.metrics.listener_connected.set(i64::from(connected));
        let seen = self.metrics.listener_reconnects.get();
        self.metrics.listener_reconnects.inc_by(reconnects.saturating_sub(seen));
        self.itself.ok();
    }
}
