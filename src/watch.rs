//! What the syncer and the processor say of themselves, as metrics and readiness.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;

use crate::ops::{ChainMetrics, Health, Metrics, ProjectionMetrics, Reporter};
use crate::process::{Seen, Watcher};
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
    chains: Mutex<HashMap<String, Watched>>,
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
        ProcessWatch { health: health.clone(), metrics: metrics.clone(), itself, chains: Mutex::default() }
    }

    fn with(&self, chain: &str, act: impl FnOnce(&Watched)) {
        // Each use is one call; a panic in another leaves the map whole.
        let mut chains = self.chains.lock().unwrap_or_else(PoisonError::into_inner);
        if !chains.contains_key(chain) {
            let reporter = self.health.component(format!("process:{chain}"));
            reporter.expect_within(LONGEST_SILENCE);
            let metrics = self.metrics.projection(chain, NAME);
            chains.insert(chain.to_owned(), Watched { reporter, metrics });
        }
        if let Some(watched) = chains.get(chain) {
            act(watched);
        }
    }
}

impl Watcher for ProcessWatch {
    fn looked(&self, seen: &Seen<'_>) {
        self.with(seen.chain, |watched| {
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

    fn applied(&self, chain: &str, blocks: u64, events: u64, negative: u64, refused: u64, took: Duration) {
        self.with(chain, |watched| {
            watched.metrics.blocks_applied.inc_by(blocks);
            watched.metrics.events_applied.inc_by(events);
            watched.metrics.apply_seconds.observe(took.as_secs_f64());
            watched.metrics.negative_balances.set(gauge(negative));
            watched.reporter.alive();
        });
        if refused > 0 {
            self.metrics.chain(chain).rejected_events("refused", refused);
        }
    }

    fn switched(&self, chain: &str, depth: u64, _took: Duration) {
        self.with(chain, |watched| {
            watched.metrics.reorgs.inc();
            watched.metrics.reorg_depth.observe(depth as f64);
        });
    }

    fn troubled(&self, chain: Option<&str>, reason: &str) {
        match chain {
            Some(chain) => self.with(chain, |watched| watched.reporter.not_ready(reason)),
            None => self.itself.not_ready(reason),
        }
    }

    fn ended(&self, chain: &str) {
        let mut chains = self.chains.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(watched) = chains.remove(chain) {
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
