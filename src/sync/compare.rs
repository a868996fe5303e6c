//! What the source's head asks of the stored blocks, and how far down they may be called final.

use std::collections::BTreeMap;

use super::{SyncError, Syncer};
use crate::chain::plan::{Mark, Step, Theirs, TooDeep, Window, plan};
use crate::chain::{BlockRef, Height};
use crate::sources::{Head, SourceError};
use crate::store::{StoredChain, SyncLock};

/// What the source's head asks of the stored blocks.
pub(super) enum Move {
    /// Nothing.
    Stay,
    /// Go on from the newest one.
    Extend,
    /// Archive those above the ancestor, and go on from it.
    Replace { ancestor: Option<BlockRef>, down: Vec<BlockRef> },
    /// Archive all of them, and begin at the start, which lies below.
    Restart,
}

impl Syncer {
    /// Finds where the source's branch and ours part.
    pub(super) async fn compare(&self, lock: &SyncLock, stored: &StoredChain, head: &Head) -> Result<Move, SyncError> {
        let StoredChain { chain, tip: Some(tip), lowest, .. } = stored else { return Ok(Move::Extend) };
        if self.begins_below(stored) {
            return Ok(Move::Restart);
        }
        let lowest = lowest.unwrap_or(tip.height);
        let reset = self.settings.allow_reset;
        // Final blocks stay, also where the stored ones end below the final height.
        let final_height = chain.final_height.filter(|f| *f >= lowest && !reset);
        let floor = final_height.map_or(lowest, |f| f.min(tip.height));
        let theirs = Theirs::Hint(head.block.clone());
        let more_below = final_height.is_some();
        let mut window = Window { tip: Some(tip.clone()), floor, more_below, known: BTreeMap::new() };
        if head.block.height < floor && !head.truth {
            // Far behind, or another chain from its start: the name of the block tells.
            let ours = lock.block_refs(head.block.height, head.block.height).await?;
            return match ours.into_iter().next() {
                Some(ours) if ours.hash != head.block.hash => Err(SyncError::TooDeep {
                    height: head.block.height,
                    ours: ours.hash.to_string(),
                    theirs: head.block.hash.to_string(),
                }),
                _ => Ok(Move::Stay),
            };
        }
        loop {
            match plan(&window, &theirs) {
                // A file's lower head is the truth: the chain got shorter.
                Ok(Step::Known) if head.truth && head.block.height < tip.height => {
                    if head.block.height < floor {
                        return Err(self.too_deep(&window, floor));
                    }
                    let down = lock.block_refs(head.block.height.next(), tip.height).await?;
                    return Ok(Move::Replace { ancestor: Some(head.block.clone()), down });
                }
                Ok(Step::Known) => return Ok(Move::Stay),
                Ok(Step::Extend) => return Ok(Move::Extend),
                Ok(Step::Reorg { ancestor }) => {
                    let from = ancestor.as_ref().map_or(lowest, |a| a.height.next());
                    let down = lock.block_refs(from, tip.height).await?;
                    return Ok(Move::Replace { ancestor, down });
                }
                Ok(Step::Need { heights }) => {
                    let ours = if *heights.start() == tip.height {
                        vec![tip.clone()]
                    } else {
                        lock.block_refs(*heights.start(), *heights.end()).await?
                    };
                    let links = lock.hold_during(self.source.links(heights.clone())).await?;
                    // A node behind the one that named the head has no blocks there: that proves nothing.
                    let asked = heights.end().get() - heights.start().get() + 1;
                    if !head.truth && (links.len() as u64) < asked {
                        let what = format!("the source names a head at {}, but not all blocks below it", head.block);
                        return Err(SourceError::transient(what).into());
                    }
                    let mut at = *heights.start();
                    loop {
                        window.known.entry(at).or_default();
                        if at >= *heights.end() {
                            break;
                        }
                        at = at.next();
                    }
                    for block in ours {
                        window.known.entry(block.height).or_default().0 = Some(Mark { hash: block.hash, revision: 0 });
                    }
                    for link in links {
                        window.known.entry(link.height).or_default().1 = Some(Mark { hash: link.hash, revision: 0 });
                    }
                }
                Err(TooDeep { floor }) => return Err(self.too_deep(&window, floor)),
            }
        }
    }

    fn too_deep(&self, window: &Window, floor: Height) -> SyncError {
        let name = |mark: Option<&Mark>| mark.map_or_else(|| "none".to_owned(), |m| m.hash.to_string());
        let at = window.known.get(&floor);
        SyncError::TooDeep {
            height: floor,
            ours: name(at.and_then(|(ours, _)| ours.as_ref())),
            theirs: name(at.and_then(|(_, theirs)| theirs.as_ref())),
        }
    }
}

/// What may be called final when the stored blocks reach this far: the depth is counted from what is stored and linked, since
/// a head is only a claim. Some nodes call their head final, so the depth counts beside that too.
pub(super) fn final_height(head: &Head, stored: Option<Height>, finality_depth: u64) -> Option<Height> {
    let by_depth = stored?.min(head.block.height).get().checked_sub(finality_depth).and_then(Height::new)?;
    Some(head.finalized.map_or(by_depth, |finalized| finalized.min(by_depth)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::Hash;

    #[test]
    fn final_is_what_stored_blocks_bear_out() {
        let height = |n: Option<u64>| n.and_then(Height::new);
        for (name, latest, finalized, stored, depth, expected) in [
            ("nothing is stored", 100, None, None, 10, None),
            ("at the head", 100, None, Some(100), 10, Some(90)),
            ("in the midst of history", 100_000, None, Some(100), 10, Some(90)),
            ("fewer blocks than the depth", 100_000, Some(99_000), Some(9), 10, None),
            ("the node calls less final", 100, Some(70), Some(100), 10, Some(70)),
            ("the node calls its head final", 100, Some(100), Some(100), 10, Some(90)),
            ("both lie", 100_000, Some(100_000), Some(100), 10, Some(90)),
            ("the node lags behind what is stored", 50, None, Some(100), 10, Some(40)),
            ("every block is final at once", 100, None, Some(100), 0, Some(100)),
        ] {
            let block = BlockRef { height: height(Some(latest)).unwrap_or_default(), hash: Hash::new("0x1") };
            let head = Head { block, finalized: height(finalized), position: None, last: false, truth: false };
            assert_eq!(final_height(&head, height(stored), depth), height(expected), "{name}");
        }
    }
}
