//! Why syncing was interrupted, and what to do about it.

use std::time::Duration;

use crate::chain::{BlockRef, Height, Kind};
use crate::sources::{FaultKind, SourceError};
use crate::store::{StoreError, StoreFault};

/// Why syncing ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SyncError {
    /// Postgres would not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The source would not do it.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The source is another network than the one stored.
    #[error(
        "the source is network {found}, but chain {chain} holds {stored}: use another --chain name, or the right URL"
    )]
    AnotherNetwork {
        /// The chain's name.
        chain: String,
        /// What is stored.
        stored: String,
        /// What the source says.
        found: String,
    },
    /// The source's texts have another grammar than those that are stored.
    #[error(
        "the source's texts are of kind {found}, but chain {chain} holds blocks of kind {stored}: use another --chain \
         name, or remove what is stored first with select drop_chain('{chain}')",
        found = found.as_str(), stored = stored.as_str()
    )]
    AnotherKind {
        /// The chain's name.
        chain: String,
        /// What is stored.
        stored: Kind,
        /// What the source says.
        found: Kind,
    },
    /// The settings name another start than the one that the stored blocks count from.
    #[error(
        "the settings say that chain {chain} starts at {found}, but its blocks count from {stored}, and every balance \
         follows from that: set start_height back to {stored}, use another --chain name, or start with --allow-reset to \
         build everything again from {found}"
    )]
    AnotherStart {
        /// The chain's name.
        chain: String,
        /// Where it starts.
        stored: Height,
        /// Where the settings say that it starts.
        found: Height,
    },
    /// The source replaced blocks that were final.
    #[error(
        "the source has another block {height} ({theirs}) than ours ({ours}), which is final: \
         if the chain really began again, start with --allow-reset"
    )]
    TooDeep {
        /// The lowest height that may be replaced.
        height: Height,
        /// Our hash there.
        ours: String,
        /// Theirs.
        theirs: String,
    },
    /// A block of the source does not fit the one before it.
    #[error("block {block} of the source names the parent {parent}, but the block before it is {before}")]
    NotLinked {
        /// The block.
        block: BlockRef,
        /// What it names.
        parent: String,
        /// What is there.
        before: String,
    },
    /// A block of the source names itself as the one before it.
    #[error("block {block} of the source names itself as its parent")]
    OwnParent {
        /// The block.
        block: BlockRef,
    },
    /// A malformed event, and the settings say to stop.
    #[error("block {block}: event {event_index} of transaction {tx_index} is malformed: {reason}")]
    BadEvent {
        /// Its block.
        block: BlockRef,
        /// Its transaction.
        tx_index: u64,
        /// Its place.
        event_index: u64,
        /// Why.
        reason: String,
    },
}

/// What to do about a [`SyncError`].
pub(super) enum Fault {
    /// Wait, then go on with the same connection.
    Wait(Option<Duration>),
    /// Look again at once.
    Again,
    /// Connect to Postgres again.
    Reconnect,
    /// A person should look; ask again rarely.
    Lasting,
}

impl SyncError {
    /// Whether a person should look, though it is waited for: only the source can fix it.
    pub(super) fn is_for_a_person(&self) -> bool {
        matches!(self, SyncError::Source(error) if error.kind() == FaultKind::Incomplete)
    }

    pub(super) fn fault(&self) -> Fault {
        match self {
            SyncError::Store(error) => match error.fault() {
                StoreFault::Unavailable => Fault::Reconnect,
                StoreFault::Contended | StoreFault::TimedOut => Fault::Wait(None),
                StoreFault::Permanent => Fault::Lasting,
            },
            SyncError::Source(error) => match error {
                SourceError::Transient { retry_after, .. } => Fault::Wait(*retry_after),
                other => match other.kind() {
                    FaultKind::Transient | FaultKind::RangeTooLarge | FaultKind::Incomplete => Fault::Wait(None),
                    FaultKind::Changed => Fault::Again,
                    FaultKind::Permanent => Fault::Lasting,
                },
            },
            SyncError::NotLinked { .. } | SyncError::OwnParent { .. } => Fault::Wait(None),
            SyncError::AnotherNetwork { .. }
            | SyncError::AnotherKind { .. }
            | SyncError::AnotherStart { .. }
            | SyncError::TooDeep { .. }
            | SyncError::BadEvent { .. } => Fault::Lasting,
        }
    }
}
