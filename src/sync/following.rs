//! Registered vaults: the source follows those whose history is stored up to the tip; the others are caught up in pieces, one
//! vault after the other, for a moment after each round, so that nothing else waits for them.
//!
//! ```text
//! stored   | 1 … 500 | 501 … 900 | 901 … 1000 | 1001 …
//! vault    |  there  |  a piece  |    …       | followed, once it was caught up to 1000
//! ```
//! Rows stay true whoever is killed when: a piece and `indexed_through` are one transaction, blocks that are removed lower
//! it, and blocks that come with the vault's events raise it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{FIRST_PAUSE, LONGEST_PAUSE, SyncError, Syncer, jitter};
use crate::chain::{Block, BlockRef, Height, Text};
use crate::sources::{Follows, SourceError};
use crate::store::{CaughtUp, Missed, RegisteredVault, StoreError, StoreFault, StoredChain, SyncLock};

/// Blocks that hold anything, in one transaction: a projection that reads events is sent back by each.
const PIECE_BLOCKS: usize = 256;
/// For so long the head may wait for vaults after each round, and for the answer under way then: about what it falls behind by when a
/// node is slow. With less, the same blocks would come in more pieces, each a transaction and a step back for projections.
const CATCHING_UP: Duration = Duration::from_secs(2);

/// Whom the source follows because people registered them, and whom it does not yet.
#[derive(Debug, Default)]
pub(super) struct Following {
    /// Whom the source was told to follow. None means nobody was named to it yet.
    followed: Option<Vec<Text>>,
    /// Those to be caught up.
    behind: Vec<RegisteredVault>,
    /// Whose turn was last.
    served: Option<Text>,
    tries: HashMap<Text, Attempt>,
}

/// How catching up a vault goes.
#[derive(Debug, Default)]
struct Attempt {
    /// Contracts that it named up to `indexed_through`, once they were read.
    named: Option<(Option<Height>, BTreeSet<Text>)>,
    /// Most heights asked for at once. None means as many as there are.
    span: Option<u64>,
    pause: Option<Duration>,
    not_before: Option<Instant>,
}

impl Following {
    /// Whom the source follows because of the registry.
    pub(super) fn followed(&self) -> &[Text] {
        self.followed.as_deref().unwrap_or_default()
    }
}

/// A part of a vault's history.
struct Piece {
    blocks: Vec<Block>,
    through: BlockRef,
    named: BTreeSet<Text>,
}

impl Syncer {
    /// Tells the source whom to follow, if that changed.
    pub(super) async fn tell_whom_to_follow(
        &mut self,
        lock: &SyncLock,
        stored: &StoredChain,
        tip: Option<&BlockRef>,
    ) -> Result<bool, SyncError> {
        let source = Arc::clone(&self.source);
        let (Some(source), Some(vaults)) = (source.follows(), stored.vaults.clone()) else { return Ok(false) };
        let is_there = |vault: &RegisteredVault| {
            tip.is_none_or(|tip| vault.caught_up && vault.indexed_through.is_some_and(|through| through >= tip.height))
        };
        let (followed, behind): (Vec<_>, Vec<_>) = vaults.into_iter().partition(is_there);
        let mut followed: Vec<Text> = followed.into_iter().map(|vault| vault.address).collect();
        followed.sort();
        self.following.tries.retain(|address, _| behind.iter().any(|vault| vault.address == *address));
        self.following.behind = behind;
        if self.following.followed.as_ref() == Some(&followed) {
            return Ok(false);
        }
        lock.hold_during(source.follow(&followed)).await?;
        self.following.followed = Some(followed);
        Ok(true)
    }

    /// A piece of each vault that is behind, as far as there is time; the others come first the next time. Whether anything was
    /// stored.
    pub(super) async fn catch_up(&mut self, lock: &mut SyncLock) -> Result<bool, SyncError> {
        let source = Arc::clone(&self.source);
        let Some(source) = source.follows() else { return Ok(false) };
        let until = Instant::now() + CATCHING_UP;
        let mut behind = std::mem::take(&mut self.following.behind);
        behind.sort_by(|a, b| a.address.cmp(&b.address));
        let served = behind.partition_point(|vault| Some(&vault.address) <= self.following.served.as_ref());
        behind.rotate_left(served);
        let mut moved = false;
        for vault in behind {
            if Instant::now() >= until {
                break;
            }
            moved |= self.catch_up_vault(lock, source, &vault, until).await?;
            self.following.served = Some(vault.address);
        }
        Ok(moved)
    }

    /// One piece of one vault. What fails for a vault is tried again later, and keeps nobody else waiting.
    async fn catch_up_vault(
        &mut self,
        lock: &mut SyncLock,
        source: &dyn Follows,
        vault: &RegisteredVault,
        until: Instant,
    ) -> Result<bool, SyncError> {
        let attempt = self.following.tries.entry(vault.address.clone()).or_default();
        if attempt.not_before.is_some_and(|at| at > Instant::now()) {
            return Ok(false);
        }
        let mut attempt = std::mem::take(attempt);
        let result = self.piece(lock, source, vault, &mut attempt, until).await;
        let moved = match result {
            Ok(moved) => {
                (attempt.pause, attempt.not_before) = (None, None);
                Ok(moved)
            }
            Err(SyncError::Store(error)) if error.fault() == StoreFault::Unavailable => Err(error.into()),
            Err(SyncError::Source(SourceError::Changed { .. })) => {
                attempt.named = None;
                Ok(false)
            }
            Err(error) => {
                let pause = attempt.pause.map_or(FIRST_PAUSE, |pause| (pause * 2).min(LONGEST_PAUSE));
                tracing::warn!(
                    chain = %self.settings.chain.name, vault = %vault.address, %error,
                    "A vault could not be caught up; trying again"
                );
                attempt.not_before = Some(Instant::now() + jitter(pause));
                (attempt.pause, attempt.named) = (Some(pause), None);
                Ok(false)
            }
        };
        self.following.tries.insert(vault.address.clone(), attempt);
        moved
    }

    /// Whether something was stored, or should be asked for in another way at once.
    async fn piece(
        &self,
        lock: &mut SyncLock,
        source: &dyn Follows,
        vault: &RegisteredVault,
        attempt: &mut Attempt,
        until: Instant,
    ) -> Result<bool, SyncError> {
        let StoredChain { tip: Some(tip), lowest: Some(lowest), .. } = lock.stored().await? else { return Ok(false) };
        let begin =
            vault.indexed_through.map_or(lowest, Height::next).max(lowest).max(vault.from_height.unwrap_or(lowest));
        let named = match attempt.named.take() {
            Some((through, named)) if through == vault.indexed_through => named,
            _ => named_before(lock, source, vault).await?,
        };
        let width = (tip.height.get() + 1).saturating_sub(begin.get()).min(attempt.span.unwrap_or(u64::MAX));
        let read = if begin > tip.height {
            Ok(Piece { blocks: Vec::new(), through: tip, named })
        } else {
            let asked = Asked { heights: begin..=tip.height, span: attempt.span, until };
            lock.hold_during(self.history(source, vault, named, asked)).await
        };
        let piece = match read {
            Err(SourceError::RangeTooLarge { what, at_most }) => {
                if width <= 1 {
                    return Err(SourceError::permanent(format!("block {begin} alone is too large: {what}")).into());
                }
                attempt.span = Some(at_most.unwrap_or(width / 2).clamp(1, width / 2));
                return Ok(true);
            }
            read => read?,
        };
        self.count_rejects(piece.blocks.iter().flat_map(|block| &block.rejects));
        let through = piece.through.height;
        let missed = Missed { vault, blocks: &piece.blocks, through: &piece.through };
        let (chain, address) = (&self.settings.chain.name, &vault.address);
        match lock.put_missed(&missed).await? {
            CaughtUp::Stale => {
                // The round before the next try brings our blocks to the source's, or the row as it is now.
                tracing::debug!(%chain, vault = %address, %through, "The blocks or the vault's row changed; looking again");
                Ok(false)
            }
            CaughtUp::Stored { events, counts } => {
                tracing::info!(
                    %chain, vault = %address, %through, events, "Caught up vault {address} to {through}{}",
                    if counts && !vault.caught_up { ": it counts from now on" } else { "" }
                );
                attempt.named = Some((Some(through), piece.named));
                Ok(true)
            }
        }
    }

    /// What a vault, and the contracts that it named, said at these heights or at the first of them.
    async fn history(
        &self,
        source: &dyn Follows,
        vault: &RegisteredVault,
        mut named: BTreeSet<Text>,
        Asked { heights, span, until }: Asked,
    ) -> Result<Piece, SourceError> {
        let mut said = EventsByBlock::default();
        let mut next = *heights.start();
        loop {
            let end = span.map_or(*heights.end(), |span| next.plus(span - 1).min(*heights.end()));
            let mut asked: Vec<Text> = named.iter().cloned().chain([vault.address.clone()]).collect();
            let (blocks, mut through) = source.events_of(&asked, next..=end).await?;
            said.add(blocks, &BTreeMap::new())?;
            // Once for each generation of contracts that are named on the way.
            loop {
                asked.sort();
                let by_event = said.named_from(source, next);
                let new: BTreeMap<Text, Place> =
                    by_event.into_iter().filter(|(contract, _)| asked.binary_search(contract).is_err()).collect();
                if new.is_empty() {
                    break;
                }
                let contracts: Vec<Text> = new.keys().cloned().collect();
                let mut from = next;
                while from <= through {
                    let (blocks, to) = source.events_of(&contracts, from..=through).await?;
                    said.add(blocks, &new)?;
                    from = to.next();
                    if to < through && Instant::now() >= until {
                        through = to;
                        said.0.split_off(&from);
                    }
                }
                // Those that were named above where it ends now are named again.
                named.extend(
                    new.into_iter().filter(|(_, (height, ..))| *height <= through).map(|(contract, _)| contract),
                );
                asked.extend(contracts);
            }
            next = through.next();
            if said.0.len() >= PIECE_BLOCKS || next > *heights.end() || Instant::now() >= until {
                let found = self.source.links(through..=through).await?;
                // Compared with the stored block: that nothing was said is true of one branch alone.
                let link = found.into_iter().next().ok_or(SourceError::Changed { height: through })?;
                return Ok(Piece { blocks: said.0.into_values().collect(), through: link.block_ref(), named });
            }
        }
    }
}

/// What a piece is read of.
struct Asked {
    heights: RangeInclusive<Height>,
    /// Most heights asked for at once. None means as many as there are.
    span: Option<u64>,
    /// No further question after this.
    until: Instant,
}

/// What the stored events of a vault name: those of the pieces that an earlier run brought.
async fn named_before(
    lock: &SyncLock,
    source: &dyn Follows,
    vault: &RegisteredVault,
) -> Result<BTreeSet<Text>, StoreError> {
    let Some(through) = vault.indexed_through else { return Ok(BTreeSet::new()) };
    let recalls = source.recalls_of(&vault.address);
    let kinds: Vec<_> = recalls.iter().map(|r| (r.emitter.as_deref(), &*r.name)).collect();
    let said = lock.events_named(&kinds).await?;
    let before = said.iter().filter(|(height, _)| *height <= through);
    Ok(before.filter_map(|(_, event)| source.named_by(event)).collect())
}

/// Height, transaction, place in it.
type Place = (Height, u64, u64);

/// Blocks by height, put together from several answers.
#[derive(Debug, Default)]
struct EventsByBlock(BTreeMap<Height, Block>);

impl EventsByBlock {
    /// The contracts that were named from a height on, each with the event that named it first.
    fn named_from(&self, source: &dyn Follows, from: Height) -> BTreeMap<Text, Place> {
        let mut named = BTreeMap::new();
        for (height, block) in self.0.range(from..) {
            for event in &block.events {
                if let Some(contract) = source.named_by(event) {
                    named.entry(contract).or_insert((*height, event.tx_index, event.event_index));
                }
            }
        }
        named
    }

    /// Takes in an answer. A contract is followed from behind the event that named it (`since`), as it would have been.
    fn add(&mut self, blocks: Vec<Block>, since: &BTreeMap<Text, Place>) -> Result<(), SourceError> {
        for mut block in blocks {
            let height = block.link.height;
            block.events.retain(|event| {
                since.get(&event.emitter).is_none_or(|since| (height, event.tx_index, event.event_index) > *since)
            });
            let said: BTreeSet<u64> = block.events.iter().map(|event| event.tx_index).collect();
            block.transactions.retain(|tx| {
                said.contains(&tx.tx_index) || block.rejects.iter().any(|reject| reject.tx_index == tx.tx_index)
            });
            let Some(before) = self.0.get_mut(&height) else {
                self.0.insert(height, block);
                continue;
            };
            if before.link != block.link {
                return Err(SourceError::Changed { height });
            }
            before.events.extend(block.events);
            before.events.sort_by_key(|event| (event.tx_index, event.event_index));
            before.transactions.extend(block.transactions);
            before.transactions.sort_by_key(|tx| tx.tx_index);
            before.transactions.dedup_by_key(|tx| tx.tx_index);
            before.rejects.extend(block.rejects);
        }
        Ok(())
    }
}
