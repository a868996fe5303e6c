//! `judge(facts)`: how each chain, source and projection is, since when, why, and what to do. Pure, and the only place that
//! says so: `status`, `/ready`, `/health`, REST and the metrics show it.

mod facts;
mod projection;
mod source;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use facts::{
    Beat, ChainFacts, Ended, Facts, Hold, Incomplete, Keeps, NextBlock, PartSays, ProjectionFacts, Rebuilding, Says,
    Seen, Trouble,
};

/// A process that has not written its heartbeat for so long is taken for dead or frozen. Three beats.
pub const SILENT_AFTER_SECONDS: f64 = 3.0;
/// What stands although there is work for so long has a reason that a person should know. Beyond a slow commit, and within
/// the five seconds in which an operator is to hear of it.
pub const STANDS_AFTER_SECONDS: f64 = 2.0;
/// A fault that goes away by itself sooner than this is no news.
pub const PASSES_WITHIN_SECONDS: f64 = 1.0;
/// Behind by more than what is in hand at any moment: it is still catching up.
pub const MOST_IN_HAND: i64 = 16;

/// Where more of the server's notification queue is taken, no notification is sent: the default of `tell` in
/// `sql/triggers/10_chain.sql`.
pub const MOST_QUEUED: f64 = 0.5;

/// How something is, from well to worst. All but the first are not ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// All that is known is stored and applied, or about to be.
    Ok,
    /// Behind, and moving.
    CatchingUp,
    /// An operator holds it.
    Paused,
    /// Something outside has to come or to let go: the node, a lock, the rest of a block, another projection.
    Waiting,
    /// It stands although nothing is known to hold it.
    Behind,
    /// Nobody is alive who would move it.
    Silent,
    /// The stored chain has a break above what is applied.
    Broken,
    /// What it tries fails, again and again.
    Failing,
    /// It goes on only when an operator resumes it.
    Halted,
}

impl State {
    /// All of them.
    pub const ALL: [State; 9] = [
        State::Ok,
        State::CatchingUp,
        State::Paused,
        State::Waiting,
        State::Behind,
        State::Silent,
        State::Broken,
        State::Failing,
        State::Halted,
    ];

    /// Whether readers may rely on it: `/ready` is 200, and `ebbtide status` ends with 0.
    #[must_use]
    pub fn is_ready(self) -> bool {
        self == State::Ok
    }

    /// The word for programs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::CatchingUp => "catching_up",
            State::Paused => "paused",
            State::Waiting => "waiting",
            State::Behind => "behind",
            State::Silent => "silent",
            State::Broken => "broken",
            State::Failing => "failing",
            State::Halted => "halted",
        }
    }
}

/// How one thing is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// In a word.
    pub state: State,
    /// Seconds it has been so, as far as a living process saw it.
    pub for_seconds: f64,
    /// Why. None means all is well; with `ok` it says what is worse than it should be although readers may rely on it.
    pub reason: Option<String>,
    /// What a person can do about it. None means nothing needs to be done.
    pub remedy: Option<String>,
}

impl Verdict {
    /// All is well.
    #[must_use]
    pub fn ok() -> Verdict {
        Verdict { state: State::Ok, for_seconds: 0.0, reason: None, remedy: None }
    }

    fn new(state: State, reason: impl Into<String>, remedy: impl Into<String>) -> Verdict {
        let remedy = Some(remedy.into()).filter(|remedy| !remedy.is_empty());
        Verdict { state, for_seconds: 0.0, reason: Some(reason.into()), remedy }
    }

    /// State and reason as people read them: `failing: block 7 (0xab…): division by zero`.
    #[must_use]
    pub fn words(&self) -> String {
        let state = self.state.as_str().replace('_', " ");
        match &self.reason {
            Some(reason) => format!("{state}: {reason}"),
            None => state,
        }
    }
}

/// A projection on a chain.
#[derive(Debug, Clone, PartialEq)]
pub struct ProjectionVerdict {
    /// The projection.
    pub projection: String,
    /// How it is.
    pub verdict: Verdict,
    /// Stored blocks that it has to apply, or to leave.
    pub waiting_blocks: i64,
    /// Blocks between what is applied and still stands, by height and hash, and the newest block known.
    pub lag_blocks: i64,
    /// Age of the newest block that is applied, by its own time, while others wait; 0 when none does.
    pub lag_seconds: f64,
}

/// A chain with its parts.
#[derive(Debug, Clone, PartialEq)]
pub struct ChainVerdict {
    /// The chain's name.
    pub chain: String,
    /// The worst of its parts'.
    pub verdict: Verdict,
    /// How its source and its syncer are. None means no source follows it: people write its blocks.
    pub source: Option<Verdict>,
    /// Its projections, in the order of the facts.
    pub projections: Vec<ProjectionVerdict>,
}

/// How everything is: one verdict a chain, in the order of the facts, then those of chains that are still to come.
#[must_use]
pub fn judge(facts: &Facts) -> Vec<ChainVerdict> {
    let to_come = facts.to_come().map(|name| ChainFacts { name: name.to_owned(), ..ChainFacts::default() });
    let known = facts.chains.iter().map(|chain| judge_chain(facts, chain));
    known.chain(to_come.map(|chain| judge_chain(facts, &chain))).collect()
}

/// How the database is that the facts were read from. Notifications that are left out cost moments and no data, since everybody polls as
/// well: it stays ready.
#[must_use]
pub fn judge_database(facts: &Facts) -> Verdict {
    if facts.queue_usage <= MOST_QUEUED {
        return Verdict::ok();
    }
    let reason = format!(
        "the server's notification queue is {:.0} % full: no notification is sent, and blocks are found by polling alone",
        facts.queue_usage * 100.0
    );
    let remedy = "end the session that listens and takes nothing in, such as one that is idle in a transaction; the server's \
                  log names it";
    Verdict::new(State::Ok, reason, remedy)
}

fn judge_chain(facts: &Facts, chain: &ChainFacts) -> ChainVerdict {
    let source = source::judge(facts, chain).map(|verdict| facts.dated(verdict, &chain.name, None));
    let of = |projection: &ProjectionFacts, followed: Option<&ProjectionVerdict>| {
        let judged = projection::judge(facts, chain, projection, followed);
        let verdict = facts.dated(judged.verdict, &chain.name, Some(&projection.name));
        ProjectionVerdict { verdict, ..judged }
    };
    let projections: Vec<ProjectionVerdict> = chain
        .projections
        .iter()
        .map(|projection| {
            let named = |name: &String| chain.projections.iter().find(|p| p.name == *name && p.after.is_none());
            let followed = projection.after.as_ref().and_then(named).map(|followed| of(followed, None));
            of(projection, followed.as_ref())
        })
        .collect();
    let worst = source.iter().chain(projections.iter().map(|p| &p.verdict)).max_by_key(|verdict| verdict.state);
    let verdict = worst.cloned().unwrap_or_else(Verdict::ok);
    ChainVerdict { chain: chain.name.clone(), verdict, source, projections }
}

/// `3 s`, `12 min`, `5 h`, `2 d`.
#[must_use]
pub fn duration(seconds: f64) -> String {
    let seconds = seconds.max(0.0);
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7_200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3_600.0),
        s => format!("{:.0} d", s / 86_400.0),
    }
}

/// `1 block`, `2 blocks`.
fn blocks(count: i64) -> String {
    if count == 1 { "1 block".to_owned() } else { format!("{count} blocks") }
}
