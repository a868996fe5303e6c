//! Blocks of consecutive heights from one endpoint, each compared with the one before it.

use std::ops::RangeInclusive;

use serde_json::value::RawValue;

use super::endpoint::{Answer, Call, Endpoint};
use super::fault::Verdict;
use crate::chain::{BlockRef, Height, Link};
use crate::sources::SourceError;

/// What names itself and the block below it.
pub(crate) trait Linked {
    fn link(&self) -> &Link;
}

impl Linked for Link {
    fn link(&self) -> &Link {
        self
    }
}

/// How blocks are asked for, and how far they are read.
#[derive(Debug)]
pub(crate) struct Form<T> {
    /// The call for the block at a height.
    pub(crate) call: fn(u64) -> Call,
    /// Reads one block; none for what is not (or not yet) a block of the chain.
    pub(crate) read: fn(&RawValue) -> Result<Option<T>, String>,
    /// Requests under way at once for one call of ours.
    pub(crate) requests: usize,
}

impl<T> Form<T> {
    /// One block out of an answer; none for null, which is also what a node's "unknown block" means.
    pub(crate) fn block(&self, endpoint: &Endpoint, call: &Call, answer: Answer) -> Result<Option<T>, SourceError> {
        match answer {
            Ok(raw) => (self.read)(&raw).map_err(|what| endpoint.transient(what)),
            Err(error) if endpoint.verdict(call.method, &error) == Verdict::UnknownBlock => Ok(None),
            Err(error) => Err(endpoint.refused(call, &error)),
        }
    }
}

/// Every height of a range.
pub(crate) fn numbers(heights: &RangeInclusive<Height>) -> Vec<u64> {
    (heights.start().get()..=heights.end().get()).collect()
}

/// Blocks at these heights (ascending), each the one asked for and, where they follow one another, linked; it ends at the
/// first one that the node does not have. `known`: what this node gave a moment ago, which is not asked for again.
///
/// # Errors
/// `Changed` when one does not name the one before it as its parent.
pub(crate) async fn linked<T: Linked>(
    endpoint: &Endpoint,
    heights: Vec<u64>,
    form: &Form<T>,
    mut known: Option<T>,
) -> Result<Vec<T>, SourceError> {
    let known_at = known.as_ref().map(|known| known.link().height.get());
    let mut blocks: Vec<T> = Vec::with_capacity(heights.len());
    let mut missing = None;
    for part in heights.chunks(endpoint.dialect.most_calls.saturating_mul(form.requests)) {
        let asked = part.iter().filter(|height| known_at != Some(**height));
        let calls: Vec<Call> = asked.map(|height| (form.call)(*height)).collect();
        let mut answers = calls.iter().zip(endpoint.ask(&calls).await?);
        for height in part {
            let block = if known_at == Some(*height) {
                known.take()
            } else {
                let (call, answer) = answers.next().ok_or_else(|| endpoint.transient("too few answers"))?;
                form.block(endpoint, call, answer)?
            };
            let Some(block) = block else {
                missing.get_or_insert(*height);
                continue;
            };
            let found = block.link().height;
            if found.get() != *height {
                return Err(endpoint.transient(format!("asked for block {height}, it gave block {found}")));
            }
            if let Some(missing) = missing {
                return Err(endpoint.transient(format!("it has block {found} but not block {missing}")));
            }
            let unlinked = |before: &T| {
                let (before, link) = (before.link(), block.link());
                before.height.next() == found && before.hash != link.parent_hash
            };
            if blocks.last().is_some_and(unlinked) {
                return Err(SourceError::Changed { height: found });
            }
            blocks.push(block);
        }
        if missing.is_some() {
            break;
        }
    }
    Ok(blocks)
}

/// Whether a node has the block that lies so far above: what is old may be read in a cheaper way, and that the head is far
/// above is no more than a claim, perhaps another node's.
pub(crate) async fn is_old<T: Linked>(
    endpoint: &Endpoint,
    height: Height,
    depth: u64,
    form: &Form<T>,
) -> Result<bool, SourceError> {
    Ok(!linked(endpoint, vec![height.plus(depth).get()], form, None).await?.is_empty())
}

/// What was read from this height on, of which there must be something.
pub(crate) fn some<T>(endpoint: &Endpoint, first: Height, read: Vec<T>) -> Result<Vec<T>, SourceError> {
    if read.is_empty() {
        return Err(endpoint.lies(first, "it is not there, though the head is not below it"));
    }
    Ok(read)
}

/// What a node thinks of an undo, by the blocks that it has at the heights of the lowest undone one and of the new one:
/// `Some(true)` ours are gone, `Some(false)` they stand, none: it cannot tell.
pub(crate) async fn opinion(
    endpoint: &Endpoint,
    undone: &[BlockRef],
    new: &BlockRef,
) -> Result<Option<bool>, SourceError> {
    let Some(first) = undone.first() else { return Ok(Some(true)) };
    let form = &endpoint.dialect.links;
    let calls = [first, new].map(|block| (form.call)(block.height.get()));
    let mut answers = calls.iter().zip(endpoint.ask(&calls).await?);
    let mut hash_at = |asked: &BlockRef| {
        let link = answers.next().map(|(call, answer)| form.block(endpoint, call, answer)).transpose()?.flatten();
        Ok::<_, SourceError>(link.filter(|link| link.height == asked.height).map(|link| link.hash))
    };
    let (ours, theirs) = (hash_at(first)?, hash_at(new)?);
    let has_new = theirs.is_some_and(|hash| hash == new.hash);
    Ok(match ours {
        // height | 7 | 8 | 9        Where the new block replaces ours, having it is enough.
        // ours   | A   B   C
        // new    | A   B'
        _ if has_new && new.height >= first.height => Some(true),
        Some(hash) => Some(hash != first.hash),
        // The chain got shorter: the other one ends below our blocks too.
        None => has_new.then_some(true),
    })
}
