//! Fetching a run of heights: several ranges under way, handed on in order, their size found by trying.

use std::ops::RangeInclusive;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, StreamExt};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::chain::{Block, Height};
use crate::sources::{Source, SourceError};

/// Ranges that went well before a larger one is tried.
const CLEAN_BEFORE_GROWTH: u32 = 10;

type Answer = (RangeInclusive<Height>, Result<Vec<Block>, SourceError>);

/// Hands out the blocks of a run of heights, ascending, without holes.
///
/// # Invariants
/// Requests under way hold permits of the source's concurrency limit and progress only while they are polled: whoever polls them
/// makes no other call to the source between two ranges, which could wait forever for such a permit.
pub(super) struct Fetcher {
    source: Arc<dyn Source>,
    /// The next height to hand out.
    next: Height,
    /// The next height to ask for; above `next` by what is under way.
    ask: Height,
    to: Height,
    concurrency: usize,
    range_blocks: u64,
    most_range_blocks: u64,
    clean: u32,
    under_way: FuturesOrdered<BoxFuture<'static, Answer>>,
}

impl Fetcher {
    pub(super) fn new(
        source: Arc<dyn Source>,
        from: Height,
        to: Height,
        concurrency: usize,
        range_blocks: u64,
    ) -> Fetcher {
        Fetcher {
            source,
            next: from,
            ask: from,
            to,
            concurrency: concurrency.max(1),
            // Carefully at first: what a node allows shows only by trying.
            range_blocks: range_blocks.clamp(1, 500),
            most_range_blocks: range_blocks.max(1),
            clean: 0,
            under_way: FuturesOrdered::new(),
        }
    }

    /// The next blocks; None means all were handed out.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Block>>, SourceError> {
        loop {
            if self.next > self.to {
                return Ok(None);
            }
            while self.under_way.len() < self.concurrency && self.ask <= self.to {
                let last = self.ask.plus(self.range_blocks - 1).min(self.to);
                let heights = self.ask..=last;
                let source = self.source.clone();
                self.under_way.push_back(Box::pin(async move {
                    let answer = source.blocks(heights.clone()).await;
                    (heights, answer)
                }));
                self.ask = last.next();
            }
            let Some((heights, answer)) = self.under_way.next().await else { return Ok(None) };
            if *heights.start() != self.next {
                // Left over from before a range was split.
                continue;
            }
            match answer {
                Ok(blocks) => {
                    let Some(last) = blocks.last() else {
                        let what = format!("the source gave no block {}", heights.start());
                        return Err(SourceError::transient(what));
                    };
                    let last = last.link.height;
                    if blocks.first().is_none_or(|b| b.link.height != self.next) || last > *heights.end() {
                        let what =
                            format!("the source gave other blocks than {} to {}", heights.start(), heights.end());
                        return Err(SourceError::transient(what));
                    }
                    self.next = last.next();
                    if last < *heights.end() {
                        // Fewer than asked for: the rest is asked for again.
                        self.ask_again();
                    } else {
                        self.grow();
                    }
                    return Ok(Some(blocks));
                }
                Err(SourceError::RangeTooLarge { what, at_most }) => {
                    let width = heights.end().get() - heights.start().get() + 1;
                    if width == 1 {
                        return Err(SourceError::permanent(format!(
                            "block {} alone is too large: {what}",
                            heights.start()
                        )));
                    }
                    self.range_blocks = at_most.unwrap_or(width / 2).clamp(1, width / 2);
                    self.clean = 0;
                    tracing::debug!(
                        blocks = self.range_blocks,
                        what,
                        "The range was too large; asking for fewer blocks"
                    );
                    self.ask_again();
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Forgets what is under way: it is not what is needed any more.
    fn ask_again(&mut self) {
        self.under_way = FuturesOrdered::new();
        self.ask = self.next;
    }

    fn grow(&mut self) {
        self.clean += 1;
        if self.clean >= CLEAN_BEFORE_GROWTH && self.range_blocks < self.most_range_blocks {
            self.clean = 0;
            self.range_blocks = (self.range_blocks * 2).min(self.most_range_blocks);
        }
    }
}

/// Runs shorter than this need no progress bar.
const WORTH_SHOWING: u64 = 200;

/// How far a long run has come.
pub(super) struct Progress(Option<ProgressBar>, Height);

impl Progress {
    pub(super) fn new(wanted: bool, chain: &str, from: Height, to: Height) -> Progress {
        let blocks = to.get() - from.get() + 1;
        if !wanted || blocks < WORTH_SHOWING {
            return Progress(None, from);
        }
        let bar = ProgressBar::with_draw_target(Some(blocks), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} blocks, {per_sec}, {eta} left")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style);
        bar.set_prefix(chain.to_owned());
        Progress(Some(bar), from)
    }

    pub(super) fn at(&self, height: Height) {
        if let Some(bar) = &self.0 {
            bar.set_position(height.get() + 1 - self.1.get());
        }
    }

    pub(super) fn done(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
