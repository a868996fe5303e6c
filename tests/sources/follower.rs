//! A chain in memory that follows a source as the syncer does: compare, walk down to the ancestor, then move.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use ebbtide::chain::{Block, BlockRef, Hash, Height};
use ebbtide::sources::{Head, Source, SourceError};
use futures::poll;
use serde_json::Value;

/// How the follower asks.
#[derive(Clone, Copy)]
pub struct Manner {
    /// Most heights asked for at once.
    pub chunk: u64,
    /// Whether each call is dropped half way a few times before it is let through.
    pub impatient: bool,
}

impl Default for Manner {
    fn default() -> Manner {
        Manner { chunk: 1_000, impatient: false }
    }
}

#[derive(Default)]
pub struct Follower {
    pub manner: Manner,
    /// Ascending without holes.
    pub blocks: Vec<Block>,
    /// Stored with the blocks.
    pub position: Option<Value>,
    /// Every tip there ever was, block by block.
    pub tips: Vec<BlockRef>,
    /// How many heads replaced blocks.
    pub reorgs: usize,
    pub steps: usize,
}

impl Follower {
    pub fn tip(&self) -> Option<BlockRef> {
        self.blocks.last().map(|block| block.link.block_ref())
    }

    fn at(&self, height: Height) -> Option<&Block> {
        let first = self.blocks.first()?.link.height.get();
        self.blocks.get(usize::try_from(height.get().checked_sub(first)?).ok()?)
    }

    async fn ask<T, F: Future<Output = T>>(&self, call: impl Fn() -> F) -> T {
        if self.manner.impatient {
            for _ in 0..3 {
                let mut future = pin!(call());
                if let std::task::Poll::Ready(answer) = poll!(&mut future) {
                    return answer;
                }
                tokio::task::yield_now().await;
            }
        }
        call().await
    }

    /// Whether the block at `height` with this hash is ours.
    fn is_ours(&self, height: Height, hash: &Hash) -> bool {
        self.at(height).is_some_and(|block| block.link.hash == *hash)
    }

    /// The newest height that both share; none: nothing of ours stays.
    async fn ancestor(&self, source: &dyn Source, head: Height) -> Result<Option<Height>, SourceError> {
        let Some(tip) = self.tip() else { return Ok(None) };
        let lowest = self.blocks[0].link.height;
        let mut top = tip.height.min(head);
        // The block above the tip names it: mostly that is all there is to ask.
        if head > tip.height {
            let above = self.ask(|| source.links(tip.height.next()..=tip.height.next())).await?;
            if above.first().is_some_and(|link| link.parent_hash == tip.hash) {
                return Ok(Some(tip.height));
            }
        }
        loop {
            let bottom = top.minus(self.manner.chunk.min(64) - 1).max(lowest);
            let links = self.ask(|| source.links(bottom..=top)).await?;
            assert!(links.windows(2).all(|w| w[0].height.next() == w[1].height && w[0].hash == w[1].parent_hash));
            if let Some(same) = links.iter().rev().find(|link| self.is_ours(link.height, &link.hash)) {
                return Ok(Some(same.height));
            }
            let first = links.first();
            if let Some(below) = first.and_then(|link| Some((link.height.prev()?, link.parent_hash.clone())))
                && self.is_ours(below.0, &below.1)
            {
                return Ok(Some(below.0));
            }
            match bottom.prev() {
                Some(next) if bottom > lowest && first.is_some() => top = next,
                _ => return Ok(None),
            }
        }
    }

    /// Follows one head; false if it brought nothing.
    pub async fn step(&mut self, source: &dyn Source) -> Result<(Head, bool), SourceError> {
        let head = self.ask(|| source.head()).await?;
        if self.tip().as_ref() == Some(&head.block) {
            return Ok((head, false));
        }
        let ancestor = self.ancestor(source, head.block.height).await?;
        let tip = self.tip().map(|tip| tip.height);
        if ancestor == Some(head.block.height) && !head.truth {
            return Ok((head, false));
        }
        let mut next = match ancestor {
            Some(ancestor) => ancestor.next(),
            None => match (source.first_height().await?, self.blocks.first()) {
                (first, Some(ours)) => first.min(ours.link.height),
                (first, None) => first,
            },
        };
        if tip.is_some() && tip != ancestor {
            self.reorgs += 1;
            self.blocks.retain(|block| Some(block.link.height) <= ancestor);
            if ancestor == Some(head.block.height) {
                self.tips.push(head.block.clone());
            }
        }
        while next <= head.block.height {
            let until = next.plus(self.manner.chunk - 1);
            let blocks = self.ask(|| source.blocks(next..=until)).await?;
            assert!(!blocks.is_empty(), "block {next} of head {} is missing", head.block);
            for block in blocks {
                assert_eq!(block.link.height, next);
                if let Some(tip) = self.tip() {
                    assert_eq!(block.link.parent_hash, tip.hash, "block {next} stands on another");
                }
                self.tips.push(block.link.block_ref());
                self.blocks.push(block);
                next = next.next();
            }
        }
        assert_eq!(self.tip(), Some(head.block.clone()));
        self.position.clone_from(&head.position);
        self.steps += 1;
        Ok((head, true))
    }

    /// Follows until the source says that this is all.
    pub async fn run(&mut self, source: &dyn Source) -> Result<(), SourceError> {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            assert!(tokio::time::Instant::now() < deadline, "still not at the end: {:?}", self.tip());
            let (head, new) = self.step(source).await?;
            if head.last && self.tip().as_ref() == Some(&head.block) {
                return Ok(());
            }
            if !new {
                source.wait(Duration::from_millis(20)).await;
            }
        }
    }

    /// What a database would hold of this, and nothing else.
    pub fn restarted(&self, manner: Manner) -> Follower {
        Follower { manner, blocks: self.blocks.clone(), position: self.position.clone(), ..Follower::default() }
    }
}
