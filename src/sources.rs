//! Where blocks come from: the [`Source`] trait and its fault kinds.

mod decoded;
pub mod devnet;
pub mod evm;
pub mod file;
pub mod gno;
pub mod net;
mod rpc;
pub mod starknet;
mod words;

use std::ops::RangeInclusive;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

use crate::chain::{Amount, Block, BlockRef, Event, Height, Kind, Link, OpeningBalance, Text};

/// What a source says about its newest block.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// The newest block.
    pub block: BlockRef,
    /// The newest block that the chain itself calls final, if it says so.
    pub finalized: Option<Height>,
    /// How the source would go on from here after a restart; stored in the transaction that stores the blocks
    /// up to here and given back to [`Source::resume`]. Only sources that cannot be asked twice need one.
    pub position: Option<Value>,
    /// Whether this is all there will ever be (a file's end).
    pub last: bool,
    /// Whether `block` is the whole truth: a lower block means that the chain got shorter (a file says so).
    /// A node's lower head is only a hint, since it may lag.
    pub truth: bool,
}

/// What is behind a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The grammar of its texts.
    pub kind: Kind,
    /// What the network calls itself (`eth_chainId` in decimal, for example); kept with the first blocks in
    /// `chains.network_id`, and another one stops the syncer.
    pub network_id: Option<String>,
}

/// Stored events that a source must see again after a restart: those that name further contracts to follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recall {
    /// Who said them; None means anybody.
    pub emitter: Option<Text>,
    /// The name they are stored under.
    pub name: Text,
}

/// A token as its contract describes itself; unchecked, unbounded nonsense is possible and survived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenMetadata {
    /// The token's address or path.
    pub token: Text,
    /// Its ticker; without NUL, at most 256 characters.
    pub symbol: Option<String>,
    /// Its name; without NUL, at most 256 characters.
    pub name: Option<String>,
    /// How many decimals a person would show, 0 to 255.
    pub decimals: Option<i16>,
}

/// A place where blocks come from. It only reads; it never sees Postgres.
///
/// The syncer calls [`resume`](Source::resume) once, then in a loop [`head`](Source::head),
/// [`links`](Source::links) and [`blocks`](Source::blocks) as its plan asks, then [`wait`](Source::wait). Calls may
/// come concurrently, and each may be dropped half way (cancel safe). What is returned was checked as far as the
/// source can: each block is the one asked for, and its events belong to its hash.
#[async_trait]
pub trait Source: Send + Sync {
    /// What is behind this source, asked for at each call: at the start, and again after a fail-over.
    async fn identify(&self) -> Result<Identity, SourceError>;

    /// Our tip and the position stored with it, before any block is asked for ([`identify`](Source::identify) and
    /// [`first_height`](Source::first_height) may come earlier).
    ///
    /// May be called again, and should be when storing failed: a source that pushes then goes back to what is stored.
    async fn resume(&self, tip: Option<&BlockRef>, position: Option<&Value>) -> Result<(), SourceError>;

    /// Which stored events this source wants to see again ([`recall`](Source::recall)), since they name contracts that
    /// it follows because of them (factories). Stored events go with their block, so the set shrinks with a reorganisation.
    fn recalls(&self) -> Vec<Recall> {
        Vec::new()
    }

    /// All stored events of those kinds, in chain order; before each [`resume`](Source::resume). What the source found
    /// before and is not among them is no longer so.
    async fn recall(&self, _events: &[(Height, Event)]) -> Result<(), SourceError> {
        Ok(())
    }

    /// For a source that brings events of those contracts alone that it is told of: how to tell it. Otherwise what is
    /// stored is all there is, and no contract has to be caught up with.
    fn follows(&self) -> Option<&dyn Follows> {
        None
    }

    /// The height to begin at on an empty database when the settings name none.
    ///
    /// # Errors
    /// A permanent error that names `--start-height` when the source cannot tell.
    async fn first_height(&self) -> Result<Height, SourceError>;

    /// The newest block. A source that pushes (a file) moves on to its next step here.
    async fn head(&self) -> Result<Head, SourceError>;

    /// Names of the blocks at these heights, ascending; heights above the head are left out.
    async fn links(&self, heights: RangeInclusive<Height>) -> Result<Vec<Link>, SourceError>;

    /// The blocks at these heights with their events, ascending, each naming the one before it as its parent.
    /// May return fewer than asked from the front of the range (never a hole).
    async fn blocks(&self, heights: RangeInclusive<Height>) -> Result<Vec<Block>, SourceError>;

    /// Returns when there may be something new, at the latest after `at_most`. Waking too often is harmless.
    async fn wait(&self, at_most: Duration);

    /// Before `undone` (our blocks, ascending) are replaced: an independent second opinion, if there is one.
    /// `Ok(false)`: the others do not agree yet, look again later.
    async fn confirm_undo(&self, _undone: &[BlockRef], _new: &BlockRef) -> Result<bool, SourceError> {
        Ok(true)
    }

    /// What stood before the first block, if the source says so; asked once, before the first block of an empty
    /// chain is stored, and stored with it.
    async fn opening_balances(&self) -> Result<Vec<OpeningBalance>, SourceError> {
        Ok(Vec::new())
    }

    /// Describes tokens seen for the first time; what cannot be read is left out or none.
    async fn token_metadata(&self, _tokens: &[Text]) -> Result<Vec<TokenMetadata>, SourceError> {
        Ok(Vec::new())
    }

    /// What these holders (the second of each pair) have of these tokens (the first) at a block, asked of the chain's own
    /// state and not of its events; in order, none where a token gives no number. None at all: this source cannot tell.
    ///
    /// # Errors
    /// Also when the source has another block at that height.
    async fn balances_of(
        &self,
        _at: &BlockRef,
        _pairs: &[(Text, Text)],
    ) -> Result<Option<Vec<Option<Amount>>>, SourceError> {
        Ok(None)
    }
}

/// A source that is told which contracts to follow, and can look up what they said before.
#[async_trait]
pub trait Follows: Send + Sync {
    /// From the next block on, follow these contracts beside those of the settings, and no others. Before the first
    /// block is asked for, and whenever they change; [`recall`](Source::recall) and [`resume`](Source::resume) come
    /// after it. No block is being read meanwhile.
    async fn follow(&self, contracts: &[Text]) -> Result<(), SourceError>;

    /// Which stored events of a contract name others that are followed because of it.
    fn recalls_of(&self, contract: &Text) -> Vec<Recall>;

    /// The contract that this event of a followed one names, to be followed from here on.
    fn named_by(&self, event: &Event) -> Option<Text>;

    /// What these contracts said at these heights, which were read before they were followed: the blocks that hold
    /// any such event, ascending, with those events alone. May cover fewer heights than asked for, from the front:
    /// the last height covered comes with them.
    async fn events_of(
        &self,
        contracts: &[Text],
        heights: RangeInclusive<Height>,
    ) -> Result<(Vec<Block>, Height), SourceError>;
}

/// Why a source could not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// May go away by itself: a dropped connection, a busy node, an answer cut short.
    #[error("{what}")]
    Transient {
        /// What failed, on what.
        what: String,
        /// The server asked for this much patience (`Retry-After`).
        retry_after: Option<Duration>,
    },
    /// Will not go away by itself: wrong URL, another chain, a setting that does not fit.
    #[error("{what}")]
    Permanent {
        /// What is wrong, on what, and what to do.
        what: String,
    },
    /// The range holds more than the source gives at once: ask for fewer heights.
    #[error("{what}")]
    RangeTooLarge {
        /// What the source said.
        what: String,
        /// The most heights it said it gives, if it said so.
        at_most: Option<u64>,
    },
    /// The source lacks part of its chain and has for long; it may still be repaired.
    #[error("block {height} is incomplete at the source, and not for a moment only: {what}")]
    Incomplete {
        /// The first block that is not whole.
        height: Height,
        /// What is lacking, on what.
        what: String,
    },
    /// The source's chain changed while it was read: look again.
    #[error("the chain changed while block {height} was read")]
    Changed {
        /// Where.
        height: Height,
    },
}

/// What to do about a [`SourceError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// Try again later, with a growing pause.
    Transient,
    /// Say so, go unready, keep serving reads; try again rarely.
    Permanent,
    /// Say so, go unready, keep serving reads and asking: only the source can fix it.
    Incomplete,
    /// Ask for less.
    RangeTooLarge,
    /// Look again at once.
    Changed,
}

impl SourceError {
    /// A fault that may go away.
    pub fn transient(what: impl Into<String>) -> SourceError {
        SourceError::Transient { what: what.into(), retry_after: None }
    }

    /// A fault that stays.
    pub fn permanent(what: impl Into<String>) -> SourceError {
        SourceError::Permanent { what: what.into() }
    }

    /// What to do about it.
    pub fn kind(&self) -> FaultKind {
        match self {
            SourceError::Transient { .. } => FaultKind::Transient,
            SourceError::Permanent { .. } => FaultKind::Permanent,
            SourceError::Incomplete { .. } => FaultKind::Incomplete,
            SourceError::RangeTooLarge { .. } => FaultKind::RangeTooLarge,
            SourceError::Changed { .. } => FaultKind::Changed,
        }
    }
}
