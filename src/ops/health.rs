//! Health and readiness: components say how they are, and one that falls silent is not ready.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Map, Value};

/// What all components say. Cheap to clone.
#[derive(Clone, Default)]
pub struct Health {
    components: Arc<Mutex<BTreeMap<String, Component>>>,
}

/// One component's voice. Clones speak for the same component.
///
/// A thread that panics while it holds a reporter makes the component failing.
#[derive(Clone)]
pub struct Reporter {
    health: Health,
    name: Arc<str>,
}

/// How a component is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ComponentStatus {
    /// All is well.
    Ok,
    /// Something is not as it should be; it works all the same. Ready.
    Degraded,
    /// It has not said anything yet. Not ready.
    Starting,
    /// It was to give a sign of life and did not. Not ready.
    Stale,
    /// It does not work. Not ready.
    Failing,
}

impl ComponentStatus {
    fn is_ready(self) -> bool {
        matches!(self, ComponentStatus::Ok | ComponentStatus::Degraded)
    }
}

struct Component {
    status: ComponentStatus,
    reason: Option<String>,
    details: Map<String, Value>,
    /// The longest silence that is still a sign of life; None means that silence says nothing.
    expected_within: Option<Duration>,
    heard_at: Instant,
    since: Instant,
}

/// All there is to say, for people and programs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HealthReport {
    /// The worst of the components'.
    pub status: ComponentStatus,
    /// By name.
    pub components: BTreeMap<String, ComponentReport>,
}

/// One component in a report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ComponentReport {
    /// How it is.
    pub status: ComponentStatus,
    /// Why, unless all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Seconds it has been so.
    pub for_seconds: u64,
    /// What it tells about itself.
    #[serde(flatten)]
    pub details: Map<String, Value>,
}

/// Whether work should be sent here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// All components are ready.
    pub ready: bool,
    /// Why not: one line for each component that is not.
    pub reasons: Vec<String>,
}

impl Health {
    /// Nothing registered: ready.
    pub fn new() -> Health {
        Health::default()
    }

    /// Registers a component, which holds readiness back until it first reports; an earlier one of that name is replaced.
    pub fn component(&self, name: impl Into<String>) -> Reporter {
        let name = name.into();
        let now = Instant::now();
        let component = Component {
            status: ComponentStatus::Starting,
            reason: Some("it has not reported yet".to_owned()),
            details: Map::new(),
            expected_within: None,
            heard_at: now,
            since: now,
        };
        self.lock().insert(name.clone(), component);
        Reporter { health: self.clone(), name: name.into() }
    }

    /// What all components say now.
    pub fn report(&self) -> HealthReport {
        self.report_at(Instant::now())
    }

    /// Whether all components are ready now.
    pub fn readiness(&self) -> Readiness {
        self.readiness_at(Instant::now())
    }

    fn report_at(&self, now: Instant) -> HealthReport {
        let components: BTreeMap<String, ComponentReport> =
            self.lock().iter().map(|(name, component)| (name.clone(), component.report_at(now))).collect();
        let status = components.values().map(|component| component.status).max().unwrap_or(ComponentStatus::Ok);
        HealthReport { status, components }
    }

    fn readiness_at(&self, now: Instant) -> Readiness {
        let report = self.report_at(now);
        let not_ready = report.components.iter().filter(|(_, component)| !component.status.is_ready());
        let reasons: Vec<String> = not_ready
            .map(|(name, component)| format!("{name}: {}", component.reason.as_deref().unwrap_or("not ready")))
            .collect();
        Readiness { ready: reasons.is_empty(), reasons }
    }

    /// A panic while the lock was held leaves plain values behind: nothing is half done.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Component>> {
        self.components.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Component {
    fn report_at(&self, now: Instant) -> ComponentReport {
        let silence = now.saturating_duration_since(self.heard_at);
        let overdue = self.expected_within.filter(|within| silence > *within);
        // A component that said it fails keeps its reason: that says more than its silence.
        let (status, reason) = match overdue {
            Some(within) if self.status != ComponentStatus::Failing => {
                let reason = format!(
                    "no sign of life for {} s; one is due every {}",
                    silence.as_secs(),
                    if within.subsec_nanos() == 0 {
                        format!("{} s", within.as_secs())
                    } else {
                        format!("{} ms", within.as_millis())
                    }
                );
                (ComponentStatus::Stale, Some(reason))
            }
            _ => (self.status, self.reason.clone()),
        };
        let since = if status == ComponentStatus::Stale { self.heard_at } else { self.since };
        ComponentReport {
            status,
            reason,
            for_seconds: now.saturating_duration_since(since).as_secs(),
            details: self.details.clone(),
        }
    }
}

impl Reporter {
    /// All is well.
    pub fn ok(&self) {
        self.set(ComponentStatus::Ok, None);
    }

    /// It works, but something should be looked at. Stays ready.
    pub fn degraded(&self, reason: impl Into<String>) {
        self.set(ComponentStatus::Degraded, Some(reason.into()));
    }

    /// It does not work, for this reason.
    pub fn not_ready(&self, reason: impl Into<String>) {
        self.set(ComponentStatus::Failing, Some(reason.into()));
    }

    /// A sign of life: nothing changed.
    pub fn alive(&self) {
        self.update(|component| component.heard_at = Instant::now());
    }

    /// From now on a sign of life (any report, or [`Reporter::alive`]) is due at least this often; without one the
    /// component is not ready, whatever it said last. A stuck indexer must not look healthy.
    pub fn expect_within(&self, longest_silence: Duration) {
        self.update(|component| {
            component.expected_within = Some(longest_silence);
            component.heard_at = Instant::now();
        });
    }

    /// Facts about the component, merged into those it gave before; `null` takes one away. Anything but an object is kept
    /// under `detail`. Not a sign of life.
    pub fn detail(&self, details: Value) {
        let details = match details {
            Value::Object(details) => details,
            other => Map::from_iter([("detail".to_owned(), other)]),
        };
        self.update(|component| {
            for (key, value) in details {
                match value {
                    Value::Null => component.details.remove(&key),
                    value => component.details.insert(key, value),
                };
            }
        });
    }

    /// The component is gone on purpose: it is neither shown nor waited for any more.
    pub fn retire(self) {
        self.health.lock().remove(&*self.name);
    }

    fn set(&self, status: ComponentStatus, reason: Option<String>) {
        let now = Instant::now();
        self.update(|component| {
            if component.status != status {
                component.since = now;
            }
            component.status = status;
            component.reason = reason;
            component.heard_at = now;
        });
    }

    fn update(&self, change: impl FnOnce(&mut Component)) {
        if let Some(component) = self.health.lock().get_mut(&*self.name) {
            change(component);
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.set(ComponentStatus::Failing, Some("it panicked".to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_component_holds_readiness_back_until_it_reports() {
        let health = Health::new();
        assert!(health.readiness().ready);
        let reporter = health.component("process:main");
        assert_eq!(health.readiness().reasons, ["process:main: it has not reported yet"]);
        reporter.ok();
        assert!(health.readiness().ready);
        reporter.not_ready("postgres is away");
        assert_eq!(health.readiness().reasons, ["process:main: postgres is away"]);
        reporter.degraded("the source is slow");
        assert!(health.readiness().ready);
        assert_eq!(health.report().status, ComponentStatus::Degraded);
    }

    #[test]
    fn a_stuck_component_is_not_ready_whatever_it_said_last() {
        let health = Health::new();
        let reporter = health.component("process:main");
        reporter.ok();
        reporter.expect_within(Duration::from_secs(10));
        let now = Instant::now();
        assert!(health.readiness_at(now + Duration::from_secs(9)).ready);
        let later = now + Duration::from_secs(12);
        assert!(!health.readiness_at(later).ready);
        assert_eq!(health.report_at(later).status, ComponentStatus::Stale);
        let reason = health.readiness_at(later).reasons.concat();
        assert!(reason.ends_with("one is due every 10 s"), "{reason}");
        reporter.alive();
        assert!(health.readiness().ready);
    }

    #[test]
    fn a_failure_keeps_its_reason_through_silence() {
        let health = Health::new();
        let reporter = health.component("sync:main");
        reporter.expect_within(Duration::from_secs(1));
        reporter.not_ready("another network answers");
        let later = Instant::now() + Duration::from_secs(60);
        assert_eq!(health.readiness_at(later).reasons, ["sync:main: another network answers"]);
    }

    #[test]
    fn details_are_merged_and_null_takes_one_away() {
        let health = Health::new();
        let reporter = health.component("process:main");
        reporter.detail(json!({"tip": 5, "head": 9}));
        reporter.detail(json!({"tip": 6, "head": null}));
        let report = serde_json::to_value(health.report()).unwrap_or_default();
        assert_eq!(report["components"]["process:main"]["tip"], json!(6));
        assert!(report["components"]["process:main"].get("head").is_none());
        reporter.retire();
        assert!(health.report().components.is_empty());
    }

    #[test]
    fn a_component_whose_thread_panics_is_failing() {
        let health = Health::new();
        let reporter = health.component("relay");
        reporter.ok();
        let outcome = std::thread::spawn(move || {
            let _held = reporter;
            std::panic::resume_unwind(Box::new("no message, so that the test's output stays clean"));
        })
        .join();
        assert!(outcome.is_err());
        assert_eq!(health.readiness().reasons, ["relay: it panicked"]);
    }
}
