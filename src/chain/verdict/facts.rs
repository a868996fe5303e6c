//! What the verdict is made from: the tables, and what living processes say.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{SILENT_AFTER_SECONDS, STANDS_AFTER_SECONDS, State, Verdict, duration};
use crate::chain::BlockRef;

/// All that is known, of one moment.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// By name.
    pub chains: Vec<ChainFacts>,
    /// Every process that told of itself, the one heard last first.
    pub beats: Vec<Beat>,
    /// Who holds what our sessions wait for.
    pub holds: Vec<Hold>,
    /// Next blocks that announced more rows than are there.
    pub incomplete: Vec<Incomplete>,
    /// How full the queue is that all notifications of the server share, 0 to 1. 0 as well while there is no chain.
    pub queue_usage: f64,
    /// They were read from a standby, whose copy may be old. False as well while there is no chain.
    pub is_standby: bool,
}

/// One chain.
#[derive(Debug, Clone, Default)]
pub struct ChainFacts {
    /// Its name.
    pub name: String,
    /// First height that counts. None means the lowest present.
    pub start_height: Option<i64>,
    /// The source's newest height. None means no source follows it.
    pub head_height: Option<i64>,
    /// Final up to here.
    pub final_height: Option<i64>,
    /// Up to here a missing height is an empty block.
    pub complete_to: Option<i64>,
    /// Our lowest height.
    pub lowest: Option<i64>,
    /// Our newest block.
    pub tip: Option<BlockRef>,
    /// Its projections.
    pub projections: Vec<ProjectionFacts>,
}

impl ChainFacts {
    /// Our newest height, empty blocks included.
    pub(super) fn stored_to(&self) -> Option<i64> {
        self.tip.as_ref().map(|tip| tip.height.to_sql()).max(self.complete_to.filter(|to| *to >= 0))
    }

    /// The newest height known.
    pub(super) fn newest(&self) -> Option<i64> {
        self.head_height.max(self.stored_to())
    }

    /// Blocks of the source that are not stored.
    #[must_use]
    pub fn missing(&self) -> i64 {
        let Some(head) = self.head_height else { return 0 };
        match self.stored_to() {
            Some(stored) => head.saturating_sub(stored).max(0),
            None => head.saturating_sub(self.start_height.unwrap_or(0)).saturating_add(1).max(0),
        }
    }

    /// What names our newest block, in [`Seen::mark`].
    #[must_use]
    pub fn mark(&self) -> String {
        self.tip.as_ref().map_or_else(String::new, |tip| tip.hash.to_string())
    }
}

/// One projection on one chain.
#[derive(Debug, Clone, Default)]
pub struct ProjectionFacts {
    /// Its name.
    pub name: String,
    /// The projection it follows.
    pub after: Option<String>,
    /// Blocks below this height do not concern it.
    pub start_height: Option<i64>,
    /// The last block applied.
    pub block: Option<(i64, String)>,
    /// Applied up to here: above the block where the last heights are empty.
    pub through: Option<i64>,
    /// One more for every apply and every undo.
    pub seq: i64,
    /// The lowest height at which what was applied is not what is stored, by hash and revision. None means there is none.
    pub differs_from: Option<i64>,
    /// Applied again from here.
    pub redo_from: Option<i64>,
    /// Its history before this height was pruned. None means it was not.
    pub history_from: Option<i64>,
    /// When it last moved, by the database's clock. None means no processor has looked at it.
    pub updated_at: Option<jiff::Timestamp>,
    /// Seconds since the last applied block's own time, or, where it has none, since the projection moved.
    pub age_seconds: f64,
    /// An operator holds it.
    pub paused: bool,
    /// Where it is held.
    pub pause_at: Option<i64>,
    /// Why it stopped.
    pub halted_reason: Option<String>,
    /// The block that fails.
    pub failed_height: Option<i64>,
    /// Why its next block fails.
    pub failed_reason: Option<String>,
    /// How often in a row.
    pub failures: i64,
    /// The next stored block above it.
    pub next: Option<NextBlock>,
    /// It is applied again from its start.
    pub rebuilding: Option<Rebuilding>,
}

impl ProjectionFacts {
    /// What names where it stands, in [`Seen::mark`].
    #[must_use]
    pub fn mark(&self) -> String {
        self.seq.to_string()
    }
}

/// A stored block above what is applied.
#[derive(Debug, Clone)]
pub struct NextBlock {
    /// Its height.
    pub height: i64,
    /// Its hash.
    pub hash: String,
    /// The parent it names.
    pub parent_hash: String,
}

/// How far a rebuild has come.
#[derive(Debug, Clone, Serialize)]
pub struct Rebuilding {
    /// Why.
    pub reason: String,
    /// First height of the state.
    pub from_height: i64,
    /// Applied up to here, for nobody to see yet.
    pub at_height: i64,
    /// Where it ends.
    pub to_height: i64,
    /// When it was first told of.
    pub started_at: jiff::Timestamp,
}

/// Somebody who holds what others wait for.
#[derive(Debug, Clone)]
pub struct Hold {
    /// Its server process.
    pub pid: i32,
    /// Its role and program, as far as they are known.
    pub who: String,
    /// What it does, as far as this role may see it.
    pub does: Option<String>,
    /// For how many seconds its transaction has been open, as far as this role may see it.
    pub open_seconds: Option<f64>,
    /// What is held, where that is known: a table, or a row of one.
    pub what: Option<String>,
    /// Whose work it keeps from going on.
    pub keeps: Keeps,
}

/// Whose work somebody keeps from going on who holds a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keeps {
    /// Everybody's: he holds a table that all of them need.
    All,
    /// That of one chain, of one projection; None means whichever it is.
    Only {
        /// The chain's name.
        chain: Option<String>,
        /// The projection.
        projection: Option<String>,
    },
    /// That of one of our sessions; the lock does not tell what for.
    Unknown,
}

impl Keeps {
    /// Whether this projection on this chain is sure to be among them.
    pub(super) fn includes(&self, of_chain: &str, of_projection: &str) -> bool {
        match self {
            Keeps::All => true,
            Keeps::Only { chain, projection } => {
                chain.as_ref().is_none_or(|chain| chain == of_chain)
                    && projection.as_ref().is_none_or(|projection| projection == of_projection)
            }
            Keeps::Unknown => false,
        }
    }
}

impl Hold {
    /// `a lock on blocks that server process 123 (alice, psql) holds, idle in transaction, in a transaction of 70 s`.
    #[must_use]
    pub fn words(&self) -> String {
        let mut words = match &self.what {
            Some(what) => format!("a lock on {what} that server process {} ({}) holds", self.pid, self.who),
            None => format!("a lock that server process {} ({}) holds", self.pid, self.who),
        };
        if let Some(does) = &self.does {
            words.push_str(", ");
            words.push_str(does);
        }
        if let Some(seconds) = self.open_seconds {
            words.push_str(", in a transaction of ");
            words.push_str(&duration(seconds));
        }
        words
    }
}

/// A block whose rows are not all there.
#[derive(Debug, Clone)]
pub struct Incomplete {
    /// The chain's name.
    pub chain: String,
    /// The block.
    pub height: i64,
    /// Rows it announced.
    pub announced: i64,
    /// Rows that are there.
    pub present: i64,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// There was nothing left to do.
    Done,
    /// A signal stopped it.
    Stopped,
}

/// One process and what it said last.
#[derive(Debug, Clone)]
pub struct Beat {
    /// Which.
    pub instance: String,
    /// Seconds since it was last heard.
    pub age_seconds: f64,
    /// How it ended. None means it runs, or was killed.
    pub ended: Option<Ended>,
    /// What it said.
    pub says: Says,
}

impl Beat {
    /// Whether it is alive, as far as one can know.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.ended.is_none() && self.age_seconds < SILENT_AFTER_SECONDS
    }
}

/// What a process says of itself.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Says {
    /// Of its processor. None means it has none.
    #[serde(default)]
    pub processor: Option<PartSays>,
    /// Of the projections that its processor runs: by chain, then by name.
    #[serde(default)]
    pub projections: BTreeMap<String, BTreeMap<String, PartSays>>,
    /// Of its syncers, by chain.
    #[serde(default)]
    pub sources: BTreeMap<String, PartSays>,
    /// How it sees things, and since when.
    #[serde(default)]
    pub seen: Vec<Seen>,
}

/// What a part says of itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PartSays {
    /// It has not come round once.
    #[serde(default)]
    pub starting: bool,
    /// What goes wrong.
    #[serde(default)]
    pub trouble: Option<Trouble>,
    /// It waits for another process to let go: a second syncer of a chain.
    #[serde(default)]
    pub standby: Option<String>,
    /// Seconds since it was heard.
    #[serde(default)]
    pub heard_seconds: f64,
    /// Longest silence that means nothing, in seconds. None means silence never does.
    #[serde(default)]
    pub due_seconds: Option<f64>,
    /// It has done all there was to do.
    #[serde(default)]
    pub done: bool,
}

/// What goes wrong with a part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trouble {
    /// In words.
    pub reason: String,
    /// Whether a person has to look.
    pub lasting: bool,
    /// For so many seconds.
    pub seconds: f64,
}

/// How a process sees a source (no projection) or a projection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// The chain's name.
    pub chain: String,
    /// The projection. None means the source.
    #[serde(default)]
    pub projection: Option<String>,
    /// Where it stands: a checkpoint's seq, or the name of our newest block.
    pub mark: String,
    /// For how many seconds it has stood there although there is more to do. None means there is not.
    #[serde(default)]
    pub stands_seconds: Option<f64>,
    /// How it is.
    pub state: State,
    /// For so many seconds.
    pub state_seconds: f64,
}

impl Facts {
    /// Chains that a living syncer is about to make: it has not seen its source yet.
    pub(super) fn to_come(&self) -> impl Iterator<Item = &str> {
        let sources = self.beats.iter().filter(|beat| beat.is_alive()).flat_map(|beat| beat.says.sources.keys());
        let unknown = sources.filter(|name| !self.chains.iter().any(|chain| chain.name == **name));
        unknown.map(String::as_str).collect::<BTreeSet<_>>().into_iter()
    }

    /// What to do where nobody is known to be alive who would do the work of these commands.
    pub(super) fn start(&self, commands: &str) -> String {
        match self.is_standby {
            true => format!("see to the replication of this standby, or start {commands} on its primary"),
            false => format!("start {commands}"),
        }
    }

    /// The next block of each projection that stands although there is work: its chain and height; -1 where what stands in its
    /// way is not above it.
    pub fn standing_before(&self) -> impl Iterator<Item = (String, i64)> {
        self.chains.iter().flat_map(move |chain| {
            let standing = chain.projections.iter().filter(move |projection| {
                self.stood(&chain.name, Some(&projection.name), &projection.mark()) >= STANDS_AFTER_SECONDS
            });
            standing.map(|p| (chain.name.clone(), p.next.as_ref().map_or(-1, |next| next.height)))
        })
    }

    /// How long it has stood at this mark with work before it, as the living saw it.
    pub(super) fn stood(&self, chain: &str, projection: Option<&str>, mark: &str) -> f64 {
        let seen = self.beats.iter().filter(|beat| beat.is_alive()).filter_map(|beat| {
            let seen = beat.seen(chain, projection)?;
            seen.stands_seconds.filter(|_| seen.mark == mark).map(|stands| stands + beat.age_seconds)
        });
        seen.fold(0.0, f64::max)
    }

    /// The verdict with its age: as long as the living have seen it so.
    pub(super) fn dated(&self, verdict: Verdict, chain: &str, projection: Option<&str>) -> Verdict {
        let seen = self.beats.iter().filter(|beat| beat.is_alive()).filter_map(|beat| {
            let seen = beat.seen(chain, projection)?;
            (seen.state == verdict.state).then_some(seen.state_seconds + beat.age_seconds)
        });
        let for_seconds = seen.fold(verdict.for_seconds, f64::max);
        Verdict { for_seconds, ..verdict }
    }
}

impl Beat {
    fn seen(&self, chain: &str, projection: Option<&str>) -> Option<&Seen> {
        self.says.seen.iter().find(|seen| seen.is_of(chain, projection))
    }
}

impl Seen {
    /// Whether it is about this projection, or with None about the chain's source.
    #[must_use]
    pub fn is_of(&self, chain: &str, projection: Option<&str>) -> bool {
        self.chain == chain && self.projection.as_deref() == projection
    }

    /// The same so many seconds later, if nothing changed.
    #[must_use]
    pub fn after(&self, seconds: f64) -> Seen {
        Seen {
            stands_seconds: self.stands_seconds.map(|stands| stands + seconds),
            state_seconds: self.state_seconds + seconds,
            ..self.clone()
        }
    }
}
