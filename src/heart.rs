//! The heart of a process: each second it tells Postgres that its parts live and how they are, reads how everything is, and
//! shows the [verdict](crate::chain::verdict) as health, readiness and metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::chain::verdict::{ChainVerdict, Ended, Facts, Says, Seen, State, Verdict, judge, judge_database};
use crate::ops::{ComponentReport, Health, HealthReport, Metrics};
use crate::projections::token_balances;
use crate::store::{Pulse, Store, StoreError};
use crate::watch::Voices;

/// Between two beats.
const BEAT: Duration = Duration::from_secs(1);
/// News is told at once, but not more often than this.
const SHORTEST: Duration = Duration::from_millis(100);
/// Between two looks at the schema: one is a query of the catalog, of tens of milliseconds.
const SCHEMA_LOOKED_AT: Duration = Duration::from_secs(3);
/// Longest wait for the last beat.
const LAST_BEAT: Duration = Duration::from_secs(1);

/// What a heart tells of, and where it shows what it finds.
pub struct Heart {
    store: Store,
    program: String,
    instance: String,
    voices: Voices,
    health: Health,
    metrics: Metrics,
    pulse: Option<Pulse>,
    /// The database could not be reached at the last try.
    is_lost: bool,
    /// How things stand could not be read at the last try, which was said.
    knows_nothing: bool,
    /// It was told that the database is worse than it should be.
    is_degraded: bool,
    seen: Vec<Seen>,
    /// What is shown as metrics.
    shown: BTreeSet<Series>,
    beaten_at: Instant,
    schema_looked_at: Instant,
}

impl Heart {
    /// Of a process that calls itself `program` and has these voices.
    #[must_use]
    pub fn new(store: &Store, program: &str, voices: &Voices, health: &Health, metrics: &Metrics) -> Heart {
        let machine = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let instance = format!("{machine}-{}-{:08x}", std::process::id(), rand::random::<u32>());
        Heart {
            store: store.clone(),
            program: program.to_owned(),
            instance,
            voices: voices.clone(),
            health: health.clone(),
            metrics: metrics.clone(),
            pulse: None,
            is_lost: false,
            knows_nothing: false,
            is_degraded: false,
            seen: Vec::new(),
            shown: BTreeSet::new(),
            beaten_at: Instant::now(),
            // The program has compared it before it starts a heart.
            schema_looked_at: Instant::now(),
        }
    }

    /// Beats until `stop` ends, which says how the process did; then once more, to tell that.
    ///
    /// # Errors
    /// When the schema under the process is changed: a trigger that was dropped would tell nobody of a block that is
    /// replaced, and what follows would be wrong. A process that only reads is unready meanwhile, and goes on.
    pub async fn beat(mut self, stop: impl Future<Output = Ended>) -> Result<(), StoreError> {
        let mut stop = std::pin::pin!(stop);
        let ended = loop {
            tokio::select! {
                ended = &mut stop => break ended,
                beaten = self.beat_once() => beaten?,
            }
            tokio::select! {
                ended = &mut stop => break ended,
                () = self.pause() => {}
            }
        };
        self.last_beat(ended).await;
        Ok(())
    }

    async fn pause(&self) {
        tokio::time::sleep(SHORTEST).await;
        tokio::select! { () = tokio::time::sleep(BEAT - SHORTEST) => {}, () = self.voices.changed() => {} }
    }

    async fn beat_once(&mut self) -> Result<(), StoreError> {
        match self.look().await {
            Ok(facts) => {
                if std::mem::take(&mut self.is_lost) {
                    self.metrics.db_reconnects.inc();
                }
                if std::mem::take(&mut self.knows_nothing) {
                    tracing::info!("How things stand is known again");
                }
                self.show(&facts);
                Ok(())
            }
            Err(error) if error.is_about_the_schema() && !self.voices.are_none() => Err(error),
            Err(error) => {
                self.is_lost |= self.pulse.is_none();
                if !std::mem::replace(&mut self.knows_nothing, true) {
                    tracing::warn!(%error, "How things stand cannot be read; trying again");
                }
                self.show_that_nothing_is_known();
                self.health.publish(HealthReport::of_one("database", State::Failing.as_str(), &error.to_string()));
                Ok(())
            }
        }
    }

    /// On the connection that is kept, or on another one. A lock that somebody holds leaves it as it was; after any other error
    /// it is not used again.
    async fn look(&mut self) -> Result<Facts, StoreError> {
        let mut pulse = match self.pulse.take() {
            Some(pulse) => pulse,
            None => self.store.pulse().await?,
        };
        let looked = self.look_by(&mut pulse).await;
        if matches!(looked, Ok(_) | Err(StoreError::Held { .. })) {
            self.pulse = Some(pulse);
        }
        looked
    }

    async fn look_by(&mut self, pulse: &mut Pulse) -> Result<Facts, StoreError> {
        if self.schema_looked_at.elapsed() >= SCHEMA_LOOKED_AT {
            pulse.check_schema().await?;
            self.schema_looked_at = Instant::now();
        }
        if !self.voices.are_none() {
            pulse.beat(&self.instance, &self.program, None, &self.says()).await?;
        }
        pulse.facts().await
    }

    fn says(&self) -> Says {
        Says { seen: self.seen_until_now(), ..self.voices.say() }
    }

    async fn last_beat(&mut self, ended: Ended) {
        if self.voices.are_none() {
            return;
        }
        let says = self.says();
        let told = async {
            let mut pulse = match self.pulse.take() {
                Some(pulse) => pulse,
                None => self.store.pulse().await?,
            };
            pulse.beat(&self.instance, &self.program, Some(ended), &says).await
        };
        match tokio::time::timeout(LAST_BEAT, told).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "The last sign of life could not be written"),
            Err(_) => tracing::debug!("The last sign of life could not be written in time"),
        }
    }

    /// What was seen at the last beat, with the time since.
    fn seen_until_now(&self) -> Vec<Seen> {
        let since = self.beaten_at.elapsed().as_secs_f64();
        self.seen.iter().map(|seen| seen.after(since)).collect()
    }

    fn show(&mut self, facts: &Facts) {
        let (judged, database) = (judge(facts), judge_database(facts));
        self.tell_of(&database);
        self.seen = remember(&self.seen_until_now(), facts, &judged);
        self.beaten_at = Instant::now();
        self.measure(facts, &judged);
        self.health.publish(report(facts, &judged, &database));
    }

    /// Nothing says that anything moves: nothing is well, and every projection lags by the time since the last look as well.
    /// Heights stay as they were last known.
    fn show_that_nothing_is_known(&mut self) {
        let since = self.beaten_at.elapsed().as_secs_f64();
        self.seen = self.seen_until_now();
        self.beaten_at = Instant::now();
        for series in &self.shown {
            match series {
                Series::Chain(_) => {}
                Series::Source(chain) => self.metrics.source_is(chain, State::Failing.as_str(), &WORDS),
                Series::Projection(chain, projection) => {
                    self.metrics.projection(chain, projection).lag_seconds.inc_by(since);
                    self.metrics.projection_is(chain, projection, State::Failing.as_str(), &WORDS);
                }
            }
        }
    }

    /// Logs once that the database is worse than it should be, and once that it is not any more.
    fn tell_of(&mut self, database: &Verdict) {
        let Verdict { reason, remedy, .. } = database;
        match (reason, std::mem::replace(&mut self.is_degraded, reason.is_some())) {
            (Some(reason), false) => tracing::warn!(remedy, "The database answers, but {reason}"),
            (None, true) => tracing::info!("The database is as it should be again"),
            _ => {}
        }
    }

    fn measure(&mut self, facts: &Facts, judged: &[ChainVerdict]) {
        self.metrics.notification_queue_usage.set(facts.queue_usage);
        let mut shown = BTreeSet::new();
        for (facts, judged) in facts.chains.iter().zip(judged) {
            let chain = &facts.name;
            let metrics = self.metrics.chain(chain);
            metrics.head_height.set(facts.head_height.unwrap_or(0));
            metrics.tip_height.set(facts.tip.as_ref().map_or(0, |tip| tip.height.to_sql()));
            metrics.final_height.set(facts.final_height.unwrap_or(0));
            shown.insert(Series::Chain(chain.clone()));
            if let Some(source) = &judged.source {
                self.metrics.source_is(chain, source.state.as_str(), &WORDS);
                shown.insert(Series::Source(chain.clone()));
            }
            for (facts, verdict) in facts.projections.iter().zip(&judged.projections) {
                let metrics = self.metrics.projection(chain, &facts.name);
                metrics.applied_height.set(facts.through.unwrap_or(0));
                metrics.lag_blocks.set(verdict.lag_blocks);
                metrics.lag_seconds.set(verdict.lag_seconds);
                self.metrics.projection_is(chain, &facts.name, verdict.verdict.state.as_str(), &WORDS);
                shown.insert(Series::Projection(chain.clone(), facts.name.clone()));
            }
        }
        for gone in self.shown.difference(&shown) {
            match gone {
                Series::Chain(chain) => self.metrics.forget_chain(chain),
                Series::Source(chain) => self.metrics.forget_source(chain, &WORDS),
                Series::Projection(chain, projection) => self.metrics.forget_projection(chain, projection, &WORDS),
            }
        }
        self.shown = shown;
    }
}

/// What has series of its own among the metrics.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Series {
    Chain(String),
    Source(String),
    Projection(String, String),
}

/// The words of all states.
const WORDS: [&str; State::ALL.len()] = {
    let mut words = [""; State::ALL.len()];
    let mut n = 0;
    while n < words.len() {
        words[n] = State::ALL[n].as_str();
        n += 1;
    }
    words
};

/// What to remember until the next beat: how things are, and since when they stand with work before them.
fn remember(before: &[Seen], facts: &Facts, judged: &[ChainVerdict]) -> Vec<Seen> {
    let one = |chain: &str, projection: Option<&str>, mark: String, has_work: bool, verdict: &Verdict| {
        let before = before.iter().find(|seen| seen.is_of(chain, projection));
        let stood = before.filter(|before| before.mark == mark).and_then(|before| before.stands_seconds);
        let same = before.filter(|before| before.state == verdict.state).map(|before| before.state_seconds);
        Seen {
            chain: chain.to_owned(),
            projection: projection.map(str::to_owned),
            mark,
            stands_seconds: has_work.then_some(stood.unwrap_or(0.0)),
            state: verdict.state,
            state_seconds: same.unwrap_or(0.0).max(verdict.for_seconds),
        }
    };
    let mut seen = Vec::new();
    for (facts, judged) in facts.chains.iter().zip(judged) {
        if let Some(source) = &judged.source {
            seen.push(one(&facts.name, None, facts.mark(), facts.missing() > 0, source));
        }
        for (projection, verdict) in facts.projections.iter().zip(&judged.projections) {
            let has_work = verdict.waiting_blocks > 0;
            seen.push(one(&facts.name, Some(&projection.name), projection.mark(), has_work, &verdict.verdict));
        }
    }
    seen
}

/// All of it as components: `sync:CHAIN`, `process:CHAIN` for the balances and `process:CHAIN:PROJECTION`.
fn report(facts: &Facts, judged: &[ChainVerdict], database: &Verdict) -> HealthReport {
    let mut components = BTreeMap::from([("database".to_owned(), component(database, Map::new()))]);
    for (n, judged) in judged.iter().enumerate() {
        let (chain, facts) = (&judged.chain, facts.chains.get(n));
        let tip = facts.and_then(|facts| facts.tip.as_ref()).map(|tip| tip.height.to_sql());
        if let Some(source) = &judged.source {
            let (head, is_final) = facts.map(|facts| (facts.head_height, facts.final_height)).unwrap_or_default();
            let details = details(json!({ "head": head, "tip": tip, "final": is_final }));
            components.insert(format!("sync:{chain}"), component(source, details));
        }
        for (facts, verdict) in facts.into_iter().flat_map(|facts| &facts.projections).zip(&judged.projections) {
            let details = details(json!({
                "applied": facts.through, "tip": tip, "lag_blocks": verdict.lag_blocks, "lag_seconds": verdict.lag_seconds,
                "paused": facts.paused, "rebuilding": facts.rebuilding,
            }));
            let name = match facts.name.as_str() {
                token_balances::NAME => format!("process:{chain}"),
                other => format!("process:{chain}:{other}"),
            };
            components.insert(name, component(&verdict.verdict, details));
        }
    }
    let worst = judged.iter().map(|chain| chain.verdict.state).max().unwrap_or(State::Ok);
    HealthReport { status: worst.as_str(), components }
}

fn component(verdict: &Verdict, details: Map<String, Value>) -> ComponentReport {
    ComponentReport {
        status: verdict.state.as_str(),
        ready: verdict.state.is_ready(),
        reason: verdict.reason.clone(),
        remedy: verdict.remedy.clone(),
        for_seconds: verdict.for_seconds as u64,
        details,
    }
}

/// Without what is not known.
fn details(all: Value) -> Map<String, Value> {
    match all {
        Value::Object(all) => all.into_iter().filter(|(_, value)| !value.is_null()).collect(),
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::store::StoreSettings;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("one thread").write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn notifications_that_are_left_out_are_told_once_and_so_is_that_they_are_sent_again() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let store =
            Store::open("postgres://nobody@127.0.0.1:1/none", StoreSettings::default()).expect("not connected yet");
        let (health, metrics) = (Health::new(), Metrics::new());
        let mut heart = Heart::new(&store, "test", &Voices::default(), &health, &metrics);
        let lines = Lines::default();
        let writer = lines.clone();
        let logs = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(logs, || {
            for queue_usage in [0.5, 0.75, 0.8, 0.25, 0.0] {
                heart.show(&Facts { queue_usage, ..Facts::default() });
                let report = health.report();
                let database = &report.components["database"];
                assert!(database.ready && report.status == "ok" && report.readiness().ready, "{queue_usage}");
                assert_eq!(database.reason.is_some(), queue_usage > 0.5, "{queue_usage}");
                assert_eq!(metrics.notification_queue_usage.get(), queue_usage);
            }
        });
        let text = String::from_utf8(lines.0.lock().expect("one thread").clone()).expect("text");
        let told: Vec<&str> = text.lines().collect();
        let [left_out, sent] = told[..] else { panic!("{text}") };
        assert!(left_out.contains(" WARN ") && left_out.contains("75 % full: no notification is sent"), "{text}");
        assert!(sent.contains(" INFO ") && sent.contains("as it should be again"), "{text}");
    }
}
