//! Health and readiness: what was last found of every part, and how old that is.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Map, Value};

/// What was found longer ago than this says nothing any more: it is looked each second, and a look ends within three.
const KNOWN_FOR: Duration = Duration::from_secs(5);

/// The last report on all parts. Cheap to clone.
#[derive(Clone)]
pub struct Health {
    published: Arc<Mutex<Published>>,
}

struct Published {
    at: Instant,
    /// For how long the report says something.
    known_for: Duration,
    report: HealthReport,
}

/// All there is to say, for people and programs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HealthReport {
    /// The worst of the components', as a word; `ok` where all is well.
    pub status: &'static str,
    /// By name.
    pub components: BTreeMap<String, ComponentReport>,
}

/// One component in a report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ComponentReport {
    /// How it is, as a word.
    pub status: &'static str,
    /// Whether one may rely on it.
    pub ready: bool,
    /// Why, unless all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// Seconds it has been so.
    pub for_seconds: u64,
    /// Facts about it.
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

impl Default for Health {
    fn default() -> Health {
        Health::new()
    }
}

impl Health {
    /// Nothing is known yet: not ready.
    #[must_use]
    pub fn new() -> Health {
        let report = HealthReport::of_one("database", "starting", "it has not been asked yet");
        Health { published: Arc::new(Mutex::new(Published { at: Instant::now(), known_for: KNOWN_FOR, report })) }
    }

    /// From now on this is how everything is, for a few seconds.
    pub fn publish(&self, report: HealthReport) {
        *self.lock() = Published { at: Instant::now(), known_for: KNOWN_FOR, report };
    }

    /// From now on everything is so until something else is published: of what takes as long as it takes.
    pub fn publish_for_long(&self, report: HealthReport) {
        *self.lock() = Published { at: Instant::now(), known_for: Duration::MAX, report };
    }

    /// How everything is now.
    #[must_use]
    pub fn report(&self) -> HealthReport {
        self.report_at(Instant::now())
    }

    /// Whether all of it is ready now.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        self.report().readiness()
    }

    fn report_at(&self, now: Instant) -> HealthReport {
        let published = self.lock();
        let age = now.saturating_duration_since(published.at);
        if age <= published.known_for {
            let mut report = published.report.clone();
            for component in report.components.values_mut() {
                component.for_seconds += age.as_secs();
            }
            return report;
        }
        let reason = format!("nothing has been heard of it for {} s", age.as_secs());
        let mut report = HealthReport::of_one("database", "silent", &reason);
        report
            .components
            .extend(published.report.components.clone().into_iter().filter(|(name, _)| name != "database"));
        report
    }

    /// A panic while the lock was held leaves plain values behind: nothing is half done.
    fn lock(&self) -> MutexGuard<'_, Published> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HealthReport {
    /// On one component, which is not ready.
    #[must_use]
    pub fn of_one(name: &str, status: &'static str, reason: &str) -> HealthReport {
        let component = ComponentReport {
            status,
            ready: false,
            reason: Some(reason.to_owned()),
            remedy: None,
            for_seconds: 0,
            details: Map::new(),
        };
        HealthReport { status, components: BTreeMap::from([(name.to_owned(), component)]) }
    }

    /// Whether all components are ready, and why not.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        let not_ready = self.components.iter().filter(|(_, component)| !component.ready);
        let reasons: Vec<String> = not_ready
            .map(|(name, component)| {
                let words = [Some(component.status.replace('_', " ")), component.reason.clone()];
                let words: Vec<String> = words.into_iter().flatten().collect();
                format!("{name}: {}", words.join(": "))
            })
            .collect();
        Readiness { ready: reasons.is_empty(), reasons }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn component(status: &'static str, ready: bool, reason: Option<&str>) -> ComponentReport {
        let reason = reason.map(str::to_owned);
        ComponentReport { status, ready, reason, remedy: None, for_seconds: 0, details: Map::new() }
    }

    #[test]
    fn nothing_is_ready_before_it_was_looked_at() {
        let health = Health::new();
        assert_eq!(health.readiness().reasons, ["database: starting: it has not been asked yet"]);
        let components = BTreeMap::from([("process:main".to_owned(), component("ok", true, None))]);
        health.publish(HealthReport { status: "ok", components });
        assert!(health.readiness().ready);
        let components = BTreeMap::from([
            ("process:main".to_owned(), component("ok", true, None)),
            ("sync:main".to_owned(), component("catching_up", false, Some("7 blocks"))),
        ]);
        health.publish(HealthReport { status: "catching_up", components });
        assert_eq!(health.readiness().reasons, ["sync:main: catching up: 7 blocks"]);
    }

    #[test]
    fn what_takes_long_is_known_until_it_ends() {
        let health = Health::new();
        health.publish_for_long(HealthReport::of_one("database", "waiting", "for a lock"));
        let late = health.report_at(Instant::now() + Duration::from_secs(3600));
        assert_eq!((late.status, late.components["database"].for_seconds / 60), ("waiting", 60));
        assert_eq!(late.readiness().reasons, ["database: waiting: for a lock"]);
    }

    #[test]
    fn what_was_found_long_ago_says_nothing() {
        let health = Health::new();
        let components = BTreeMap::from([("process:main".to_owned(), component("ok", true, None))]);
        health.publish(HealthReport { status: "ok", components });
        let now = Instant::now();
        assert!(health.report_at(now + Duration::from_secs(4)).readiness().ready);
        let late = health.report_at(now + Duration::from_secs(7));
        assert_eq!(late.status, "silent");
        assert_eq!(late.components["process:main"].status, "ok", "the last that was known is shown");
        assert_eq!(late.readiness().reasons, ["database: silent: nothing has been heard of it for 7 s"]);
    }
}
