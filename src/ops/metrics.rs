//! Metrics, in the OpenMetrics text form. Handles are taken once and kept: counting is an atomic addition.
//!
//! Every series of a chain or a projection exists from the moment its handles are taken, so that "nothing yet" reads as
//! 0 and not as absence.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// A gauge of seconds.
type Seconds = Gauge<f64, AtomicU64>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ChainLabels {
    chain: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProjectionLabels {
    chain: String,
    projection: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    chain: String,
    reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FaultLabels {
    chain: String,
    kind: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceStateLabels {
    chain: String,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProjectionStateLabels {
    chain: String,
    projection: String,
    state: &'static str,
}

#[derive(Clone)]
struct Families {
    source_state: Family<SourceStateLabels, Gauge>,
    projection_state: Family<ProjectionStateLabels, Gauge>,
    head_height: Family<ChainLabels, Gauge>,
    tip_height: Family<ChainLabels, Gauge>,
    final_height: Family<ChainLabels, Gauge>,
    source_looks: Family<ChainLabels, Counter>,
    source_faults: Family<FaultLabels, Counter>,
    rejected_events: Family<ReasonLabels, Counter>,
    blocks_synced: Family<ChainLabels, Counter>,
    blocks_applied: Family<ProjectionLabels, Counter>,
    events_applied: Family<ProjectionLabels, Counter>,
    reorgs: Family<ProjectionLabels, Counter>,
    reorg_depth: Family<ProjectionLabels, Histogram, fn() -> Histogram>,
    apply_seconds: Family<ProjectionLabels, Histogram, fn() -> Histogram>,
    applied_height: Family<ProjectionLabels, Gauge>,
    lag_blocks: Family<ProjectionLabels, Gauge>,
    lag_seconds: Family<ProjectionLabels, Seconds>,
    negative_balances: Family<ProjectionLabels, Counter>,
}

/// Depths from 1 to 1024 blocks.
fn reorg_depths() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 2.0, 11))
}

/// Times from 0.1 ms to 26 s.
fn apply_times() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 4.0, 10))
}

/// All metrics of the process. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    families: Families,
    /// 1 while `/ready` is 200, else 0; set at each scrape.
    pub ready: Gauge,
    /// 1 while the LISTEN connection stands, else 0.
    pub listener_connected: Gauge,
    /// Times the LISTEN connection was made again.
    pub listener_reconnects: Counter,
    /// Times the database was reached again after it was lost.
    pub db_reconnects: Counter,
    /// How full the queue is that all notifications of the server share, 0 to 1.
    pub notification_queue_usage: Gauge<f64, AtomicU64>,
}

/// What is counted for one chain.
#[derive(Clone)]
pub struct ChainMetrics {
    chain: String,
    families: Families,
    /// The source's newest height.
    pub head_height: Gauge,
    /// Our newest height.
    pub tip_height: Gauge,
    /// Nothing up to here is expected to be replaced.
    pub final_height: Gauge,
    /// Times the newest block of the source was asked for.
    pub source_looks: Counter,
    /// Blocks written by the syncer.
    pub blocks_synced: Counter,
}

/// What is counted for one projection on one chain.
#[derive(Clone)]
pub struct ProjectionMetrics {
    /// Blocks applied, again after a reorganisation included.
    pub blocks_applied: Counter,
    /// Events applied, again after a reorganisation included.
    pub events_applied: Counter,
    /// Reorganisations.
    pub reorgs: Counter,
    /// Blocks undone by each of them.
    pub reorg_depth: Histogram,
    /// Seconds from the start of a transaction that applies blocks to its commit.
    pub apply_seconds: Histogram,
    /// Applied up to here.
    pub applied_height: Gauge,
    /// Blocks between here and the newest block known.
    pub lag_blocks: Gauge,
    /// Seconds since the newest applied block's own time, 0 when nothing is waiting; while the database cannot be read, that of the
    /// last look and the time since.
    pub lag_seconds: Seconds,
    /// Balances that a transaction left below zero, counted each time: history is missing.
    pub negative_balances: Counter,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

impl Metrics {
    /// A registry of its own, so that two of them in one process (as in tests) share nothing.
    pub fn new() -> Metrics {
        let families = Families {
            source_state: Family::default(),
            projection_state: Family::default(),
            head_height: Family::default(),
            tip_height: Family::default(),
            final_height: Family::default(),
            source_looks: Family::default(),
            source_faults: Family::default(),
            rejected_events: Family::default(),
            blocks_synced: Family::default(),
            blocks_applied: Family::default(),
            events_applied: Family::default(),
            reorgs: Family::default(),
            reorg_depth: Family::new_with_constructor(reorg_depths),
            apply_seconds: Family::new_with_constructor(apply_times),
            applied_height: Family::default(),
            lag_blocks: Family::default(),
            lag_seconds: Family::default(),
            negative_balances: Family::default(),
        };
        let ready = Gauge::default();
        let (listener_connected, listener_reconnects, db_reconnects) =
            (Gauge::default(), Counter::default(), Counter::default());
        let notification_queue_usage = Gauge::default();
        let mut registry = Registry::with_prefix("ebbtide");
        let r = &mut registry;
        let f = &families;
        r.register("ready", "1 while all is known to be well and /ready is 200, else 0", ready.clone());
        r.register("source_state", "1 for the state that the chain's source is in, else 0", f.source_state.clone());
        r.register("projection_state", "1 for the state that the projection is in, else 0", f.projection_state.clone());
        r.register("head_height", "Newest height of the source", f.head_height.clone());
        r.register("tip_height", "Newest height stored", f.tip_height.clone());
        r.register("final_height", "Height up to which no block is expected to be replaced", f.final_height.clone());
        r.register("source_looks", "Times the newest block of the source was asked for", f.source_looks.clone());
        r.register("source_faults", "Requests to the source that failed, by kind of fault", f.source_faults.clone());
        r.register(
            "rejected_events",
            "Events that could not be taken in or applied, by reason",
            f.rejected_events.clone(),
        );
        r.register("blocks_synced", "Blocks written by the syncer", f.blocks_synced.clone());
        r.register("blocks_applied", "Blocks applied by the projection", f.blocks_applied.clone());
        r.register("events_applied", "Events applied by the projection", f.events_applied.clone());
        r.register("reorgs", "Reorganisations followed by the projection", f.reorgs.clone());
        r.register("reorg_depth", "Blocks undone by a reorganisation", f.reorg_depth.clone());
        r.register("apply_seconds", "Time from the start of a transaction to its commit", f.apply_seconds.clone());
        r.register("applied_height", "Height up to which the projection is applied", f.applied_height.clone());
        r.register("lag_blocks", "Blocks between the projection and the newest block", f.lag_blocks.clone());
        r.register("lag_seconds", "Age of the newest applied block while others wait", f.lag_seconds.clone());
        r.register(
            "negative_balances",
            "Balances that a transaction left below zero: history is missing",
            f.negative_balances.clone(),
        );
        r.register("listener_connected", "1 while the LISTEN connection stands", listener_connected.clone());
        r.register("listener_reconnects", "Times the LISTEN connection was made again", listener_reconnects.clone());
        r.register("db_reconnects", "Times the database was reached again after it was lost", db_reconnects.clone());
        r.register(
            "notification_queue_usage",
            "How full the server's notification queue is, 0 to 1; above 0.5 no notification is sent",
            notification_queue_usage.clone(),
        );
        Metrics {
            registry: Arc::new(registry),
            families,
            ready,
            listener_connected,
            listener_reconnects,
            db_reconnects,
            notification_queue_usage,
        }
    }

    /// The handles of one chain.
    pub fn chain(&self, chain: &str) -> ChainMetrics {
        let labels = ChainLabels { chain: chain.to_owned() };
        let f = &self.families;
        ChainMetrics {
            chain: chain.to_owned(),
            families: f.clone(),
            head_height: f.head_height.get_or_create_owned(&labels),
            tip_height: f.tip_height.get_or_create_owned(&labels),
            final_height: f.final_height.get_or_create_owned(&labels),
            source_looks: f.source_looks.get_or_create_owned(&labels),
            blocks_synced: f.blocks_synced.get_or_create_owned(&labels),
        }
    }

    /// The handles of one projection on one chain.
    pub fn projection(&self, chain: &str, projection: &str) -> ProjectionMetrics {
        let labels = ProjectionLabels { chain: chain.to_owned(), projection: projection.to_owned() };
        let f = &self.families;
        ProjectionMetrics {
            blocks_applied: f.blocks_applied.get_or_create_owned(&labels),
            events_applied: f.events_applied.get_or_create_owned(&labels),
            reorgs: f.reorgs.get_or_create_owned(&labels),
            reorg_depth: f.reorg_depth.get_or_create_owned(&labels),
            apply_seconds: f.apply_seconds.get_or_create_owned(&labels),
            applied_height: f.applied_height.get_or_create_owned(&labels),
            lag_blocks: f.lag_blocks.get_or_create_owned(&labels),
            lag_seconds: f.lag_seconds.get_or_create_owned(&labels),
            negative_balances: f.negative_balances.get_or_create_owned(&labels),
        }
    }

    /// The chain's source is in the first of these states, and in none of the others.
    pub fn source_is(&self, chain: &str, state: &'static str, all: &[&'static str]) {
        for one in all {
            let labels = SourceStateLabels { chain: chain.to_owned(), state: one };
            self.families.source_state.get_or_create(&labels).set(i64::from(*one == state));
        }
    }

    /// The projection is in the first of these states, and in none of the others.
    pub fn projection_is(&self, chain: &str, projection: &str, state: &'static str, all: &[&'static str]) {
        for one in all {
            let labels =
                ProjectionStateLabels { chain: chain.to_owned(), projection: projection.to_owned(), state: one };
            self.families.projection_state.get_or_create(&labels).set(i64::from(*one == state));
        }
    }

    /// No source follows the chain any more: its states end.
    pub fn forget_source(&self, chain: &str, all: &[&'static str]) {
        for state in all {
            self.families.source_state.remove(&SourceStateLabels { chain: chain.to_owned(), state });
        }
    }

    /// The chain is gone: its series end.
    pub fn forget_chain(&self, chain: &str) {
        let (f, labels) = (&self.families, ChainLabels { chain: chain.to_owned() });
        for gauges in [&f.head_height, &f.tip_height, &f.final_height] {
            gauges.remove(&labels);
        }
        for counters in [&f.source_looks, &f.blocks_synced] {
            counters.remove(&labels);
        }
    }

    /// The projection is gone, or its chain: its series end.
    pub fn forget_projection(&self, chain: &str, projection: &str, all: &[&'static str]) {
        let f = &self.families;
        for state in all {
            f.projection_state.remove(&ProjectionStateLabels {
                chain: chain.to_owned(),
                projection: projection.to_owned(),
                state,
            });
        }
        let labels = ProjectionLabels { chain: chain.to_owned(), projection: projection.to_owned() };
        for counters in [&f.blocks_applied, &f.events_applied, &f.reorgs, &f.negative_balances] {
            counters.remove(&labels);
        }
        for gauges in [&f.applied_height, &f.lag_blocks] {
            gauges.remove(&labels);
        }
        for histograms in [&f.reorg_depth, &f.apply_seconds] {
            histograms.remove(&labels);
        }
        f.lag_seconds.remove(&labels);
    }

    /// All of them as OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing into a String cannot fail; a metric that refuses to be written is left out with what follows it.
        if let Err(error) = encode(&mut text, &self.registry) {
            tracing::error!(%error, "Metrics could not be written");
        }
        text
    }
}

impl ChainMetrics {
    /// Counts a request to the source that failed; `kind` is a fixed word such as `transient`.
    pub fn source_fault(&self, kind: &str) {
        let labels = FaultLabels { chain: self.chain.clone(), kind: kind.to_owned() };
        self.families.source_faults.get_or_create(&labels).inc();
    }

    /// Counts events that could not be taken in; `reason` is a fixed word such as `bad_amount`.
    pub fn rejected_events(&self, reason: &str, count: u64) {
        let labels = ReasonLabels { chain: self.chain.clone(), reason: reason.to_owned() };
        self.families.rejected_events.get_or_create(&labels).inc_by(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_says_0_before_anything_happened() {
        let metrics = Metrics::new();
        let main = metrics.projection("main", "token_balances");
        let _ = metrics.chain("main");
        let text = metrics.encode();
        for line in [
            r#"ebbtide_blocks_applied_total{chain="main",projection="token_balances"} 0"#,
            r#"ebbtide_lag_seconds{chain="main",projection="token_balances"} 0.0"#,
            r#"ebbtide_head_height{chain="main"} 0"#,
            "ebbtide_listener_connected 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        main.blocks_applied.inc();
        main.reorg_depth.observe(3.0);
        let text = metrics.encode();
        assert!(text.contains(r#"ebbtide_blocks_applied_total{chain="main",projection="token_balances"} 1"#), "{text}");
        assert!(text.contains("ebbtide_reorg_depth_bucket{le=\"4.0\""), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn counts_by_reason_appear_when_there_are_some() {
        let metrics = Metrics::new();
        let chain = metrics.chain("main");
        chain.rejected_events("bad_amount", 2);
        chain.source_fault("transient");
        let text = metrics.encode();
        assert!(text.contains(r#"ebbtide_rejected_events_total{chain="main",reason="bad_amount"} 2"#), "{text}");
        assert!(text.contains(r#"ebbtide_source_faults_total{chain="main",kind="transient"} 1"#), "{text}");
    }
}
