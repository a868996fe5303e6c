//! Blocks from a file of JSON lines, plain or gzip, or from standard input: replays, tests, other chains.
//!
//! A file is a script of what a follower of a chain saw, in order. One line is one of
//!
//! ```json
//! {"event":"opening_balance","token":"gold","address":"alice","amount":"5"}
//! {"event":"block","height":7,"hash":"0xb7","parent_hash":"0xb6","time":"2024-01-01T00:00:00Z",
//!  "transactions":[{"tx_index":0,"hash":"0xt0","success":true}],
//!  "token_events":[{"tx_index":0,"event_index":0,"token":"gold","from_address":null,"to_address":"alice","amount":5}],
//!  "events":[{"tx_index":0,"event_index":1,"emitter":"vault","name":"Opened","keys":[],"data":[],"attributes":{}}]}
//! {"event":"head","height":6,"hash":"0xb6"}
//! ```
//!
//! (each on one line of its own). `number` stands for `height` too, `timestamp` (Unix seconds) for `time`; a line with
//! a hash and without `event` is a block; `logs` (raw EVM logs) may stand in place of `token_events` and `events`. A
//! block whose parent is not the last block is a reorg; it may go back to any block told of before, replaced ones
//! included (A to B to A). `head` says that the chain got shorter. A block that is on the branch already is no news.
//!
//! [`head`](Source::head) moves on by a *step*: the longest run of blocks that extend one another, at most 1,000
//! blocks or 16 MB of lines (more only to reach the height of the blocks that a reorg replaces). A bad line is an error
//! once all lines before it were given; a bad event in a good line becomes a reject of its block.

mod branch;
mod events;
mod evidence;
mod feed;
mod line;
mod reader;
#[cfg(test)]
mod tests;
mod text;

use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

use self::branch::{Branch, REMEMBERED_HEIGHTS};
use self::events::Grammar;
use self::feed::{Feed, Position};
use self::line::{Line, LineReader};
use self::reader::{Lines, Origin, Start};
use super::evm::decode::{DecodeSettings, Decoder};
use super::words::listed;
use super::{Head, Identity, Source, SourceError};
use crate::chain::{Block, BlockRef, Hash, Height, Kind, Link, OpeningBalance};

/// Most blocks that one answer holds.
const ANSWER_BLOCKS: usize = 1_000;

/// Most bytes of lines that are read again for one answer.
const ANSWER_BYTES: usize = 16 << 20;

/// Which file, and how to read it.
#[derive(Debug, Clone)]
pub struct FileSettings {
    /// The file; `-` is standard input. That and named pipes can be read once only: a run that was stopped does not
    /// go on there, but compares what is piped in next with what it holds.
    pub path: PathBuf,
    /// The grammar of its texts. None means `evm` if its first block carries `logs`, else `other`.
    pub kind: Option<Kind>,
    /// What the network calls itself, if it should be kept and checked.
    pub network_id: Option<String>,
    /// What to make of raw `logs`. Its `tokens` hold for `token_events` too: others are left out.
    pub decode: DecodeSettings,
}

/// Reads a [file](self) of blocks.
pub struct FileSource {
    settings: FileSettings,
    origin: Origin,
    reader: LineReader,
    feed: tokio::sync::Mutex<Feed>,
    /// What was published by the last step. Locked for moments only; taken after `feed` where both are.
    branch: Mutex<Branch>,
    /// Our tip at the start, while the script has not come that far: till then a lower head is no truth.
    ahead: Mutex<Option<BlockRef>>,
    /// Why the run could not begin where it should: no step is given until it can.
    refused: Mutex<Option<String>>,
}

/// What a mutex guards is whole even after a panic elsewhere: every change of it is one call.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn grammar(settings: &FileSettings) -> Result<Grammar, SourceError> {
    let kind = settings.kind.unwrap_or(Kind::Other);
    let network = settings.network_id.as_deref().and_then(|id| id.parse().ok());
    let mut decode = settings.decode.clone();
    let tokens = listed(&decode.tokens).map(|listed| listed.iter().map(|token| canonical(kind, token)).collect());
    // Tokens of other kinds of chains are no contracts, and such chains have no logs to find them in.
    if !(kind == Kind::Evm
        || settings.kind.is_none() && decode.tokens.iter().all(|token| Kind::Evm.is_token(&canonical(kind, token))))
    {
        decode.tokens.clear();
    }
    Ok(Grammar { kind, tokens, decoder: Decoder::new(&decode, network)? })
}

fn canonical(kind: Kind, token: &str) -> String {
    kind.canonical(token).map_or_else(|_| token.to_owned(), Cow::into_owned)
}

impl FileSource {
    /// A source that reads this file; nothing is opened yet.
    ///
    /// # Errors
    /// Permanent, when a setting is not as it should be; it names the setting.
    pub fn new(settings: FileSettings) -> Result<FileSource, SourceError> {
        let grammar = grammar(&settings)?;
        let origin = Origin::new(&settings.path);
        let reader = LineReader::new(grammar);
        let feed = tokio::sync::Mutex::new(Feed::new(origin.clone(), reader.clone()));
        Ok(FileSource {
            settings,
            origin,
            reader,
            feed,
            branch: Mutex::default(),
            ahead: Mutex::default(),
            refused: Mutex::default(),
        })
    }

    /// The first block and whether it carries logs; none if there is no block.
    async fn first(&self) -> Result<Option<(Link, bool)>, SourceError> {
        if self.origin.is_pipe() {
            let mut feed = self.feed.lock().await;
            if feed.first().is_none() {
                feed.fill(&self.branch).await?;
            }
            return Ok(feed.first().cloned());
        }
        let mut reader = self.reader.clone();
        self.scan(move |lines| {
            while let Some((_, raw)) = lines.next()? {
                if !raw.trim_ascii().is_empty()
                    && let Line::Block(block) = reader.read(&raw)?
                {
                    return Ok(Some((block.link, block.has_logs)));
                }
            }
            Ok(None)
        })
        .await
    }

    /// The first line after which a block is the script's tip.
    async fn line_of(&self, tip: &BlockRef) -> Result<Option<Start>, SourceError> {
        let mut reader = self.reader.clone();
        let tip = tip.clone();
        self.scan(move |lines| {
            // A bad line ends the search: what comes after it cannot have been taken.
            while let Ok(Some((number, raw))) = lines.next() {
                if raw.trim_ascii().is_empty() {
                    continue;
                }
                match reader.links(&raw) {
                    Ok(Line::Block(block)) if block.link.hash == tip.hash && block.link.height == tip.height => {
                        let hash = reader::line_hash(&raw);
                        return Ok(Some(Start { after_line: number, hash, show_links: true }));
                    }
                    Ok(_) => {}
                    Err(_) => break,
                }
            }
            Ok(None)
        })
        .await
    }

    /// Blocks that are no longer in memory, from their lines (ascending heights).
    async fn read_again(&self, wanted: Vec<(Link, u64)>) -> Result<Vec<Block>, SourceError> {
        if self.origin.is_pipe() {
            let height = wanted.first().map_or(Height::default(), |(link, _)| link.height);
            return Err(SourceError::permanent(format!(
                "block {height} was given before and is no longer in memory, and {} cannot be read again: give a \
                 regular file instead",
                self.origin.name()
            )));
        }
        let mut reader = self.reader.clone();
        let name = self.origin.name();
        self.scan(move |lines| {
            let mut by_line: Vec<(u64, usize)> = wanted.iter().enumerate().map(|(at, (_, line))| (*line, at)).collect();
            by_line.sort_unstable();
            let mut found: Vec<Option<Block>> = vec![None; wanted.len()];
            for (line, at) in by_line {
                let raw = loop {
                    match lines.next()? {
                        Some((number, raw)) if number == line => break raw,
                        Some(_) => {}
                        None => return Ok(Err(SourceError::permanent(format!("{name} became shorter")))),
                    }
                };
                match reader.read(&raw)? {
                    Line::Block(block) if block.link == wanted[at].0 => {
                        found[at] = block.block.map(Arc::unwrap_or_clone)
                    }
                    _ => return Ok(Err(SourceError::permanent(format!("{name} has another line {line} than before")))),
                }
            }
            Ok(Ok(found.into_iter().flatten().collect()))
        })
        .await?
    }

    /// Reads the file from its start, on a thread of its own that ends with the last line that is waited for.
    ///
    /// # Cancel safety
    /// Dropped half way, it stops reading.
    async fn scan<T: Send + 'static>(
        &self,
        look: impl FnOnce(&mut Lines) -> Result<T, line::BadLine> + Send + 'static,
    ) -> Result<T, SourceError> {
        let (origin, name) = (self.origin.clone(), self.origin.name());
        let waiting = Arc::new(());
        let wanted = Arc::downgrade(&waiting);
        let (done, scanned) = tokio::sync::oneshot::channel();
        let read = move || {
            let lines = Lines::open(&origin).map_err(|e| SourceError::permanent(format!("cannot open {name}: {e}")))?;
            let mut lines = lines.while_wanted(wanted);
            look(&mut lines)
                .map_err(|bad| SourceError::permanent(format!("{name}, line {}: {}", lines.number(), bad.reason)))
        };
        let failed =
            |e: &dyn std::fmt::Display| SourceError::permanent(format!("reading {} failed: {e}", self.origin.name()));
        // Nobody waits any more, if the answer cannot be sent.
        let thread = std::thread::Builder::new().name("ebbtide-file".into()).spawn(move || drop(done.send(read())));
        thread.map_err(|e| failed(&e))?;
        let answer = scanned.await.map_err(|e| failed(&e))?;
        drop(waiting);
        answer
    }

    async fn begin(&self, feed: &mut Feed, tip: &BlockRef, position: Option<&Value>) -> Result<(), SourceError> {
        let position: Option<Position> = match position {
            Some(value) => Some(serde_json::from_value(value.clone()).map_err(|_| {
                SourceError::permanent(format!(
                    "this chain was read from another source ({value}), not from a file: use another chain name"
                ))
            })?),
            None => None,
        };
        if let Some(Position { line, hash, .. }) = position {
            if let Err(error) = feed.learn(Start { after_line: line, hash, show_links: true }, &self.branch).await {
                // Another file, then; but one that goes on where the last one ended is welcome.
                let goes_on = |first: &Link| first.parent_hash == tip.hash && first.height == tip.height.next();
                if !self.first().await?.is_some_and(|(first, _)| goes_on(&first)) {
                    return Err(error);
                }
                return feed.learn(Start::default(), &self.branch).await;
            }
            if locked(&self.branch).tip().is_some_and(|known| known.link.block_ref() == *tip) {
                return Ok(());
            }
        }
        // Our blocks were changed by other hands, or written by them: go on where the script was at our tip.
        match self.line_of(tip).await? {
            Some(start) => feed.learn(start, &self.branch).await,
            None => {
                *locked(&self.ahead) = Some(tip.clone());
                if feed.is_started() { Ok(()) } else { feed.learn(Start::default(), &self.branch).await }
            }
        }
    }

    fn permanent(&self, what: &str) -> SourceError {
        SourceError::permanent(format!("{} {what}", self.origin.name()))
    }
}

#[async_trait]
impl Source for FileSource {
    async fn identify(&self) -> Result<Identity, SourceError> {
        let kind = match self.settings.kind {
            Some(kind) => kind,
            None if self.first().await?.is_some_and(|(_, has_logs)| has_logs) => Kind::Evm,
            None => Kind::Other,
        };
        Ok(Identity { kind, network_id: self.settings.network_id.clone() })
    }

    async fn resume(&self, tip: Option<&BlockRef>, position: Option<&Value>) -> Result<(), SourceError> {
        let mut feed = self.feed.lock().await;
        if self.origin.is_pipe() {
            // It cannot be turned back; what is piped in again is compared with our blocks as it comes.
            if !feed.is_started() {
                *locked(&self.ahead) = tip.cloned();
            }
            return Ok(());
        }
        *locked(&self.ahead) = None;
        *locked(&self.refused) = Some("was not resumed".into());
        let begun = match tip {
            Some(tip) => self.begin(&mut feed, tip, position).await,
            // Without blocks a position means nothing.
            None => feed.learn(Start::default(), &self.branch).await,
        };
        *locked(&self.refused) = begun.as_ref().err().map(ToString::to_string);
        begun
    }

    async fn first_height(&self) -> Result<Height, SourceError> {
        let first = self.first().await?;
        first.map(|(link, _)| link.height).ok_or_else(|| self.permanent("holds no block"))
    }

    async fn head(&self) -> Result<Head, SourceError> {
        let mut feed = self.feed.lock().await;
        if let Some(what) = &*locked(&self.refused) {
            return Err(SourceError::permanent(what.clone()));
        }
        let last = feed.fill(&self.branch).await?;
        let mut branch = locked(&self.branch);
        feed.publish(&mut branch);
        let block = branch.tip().map(|tip| tip.link.block_ref()).ok_or_else(|| self.permanent("holds no block"))?;
        let mut ahead = locked(&self.ahead);
        if ahead.as_ref().is_some_and(|ahead| last || block.height >= ahead.height) {
            *ahead = None;
        }
        let position = feed.position().and_then(|position| serde_json::to_value(position).ok());
        Ok(Head { block, finalized: None, position, last, truth: ahead.is_none() })
    }

    async fn links(&self, heights: RangeInclusive<Height>) -> Result<Vec<Link>, SourceError> {
        let branch = locked(&self.branch);
        let Some((lowest, forgot)) = branch.lowest() else { return Ok(Vec::new()) };
        if forgot && heights.end().next() < lowest {
            return Err(self.permanent(&format!(
                "remembers {REMEMBERED_HEIGHTS} blocks down to {lowest}; blocks {} to {} are asked for. Read it into a \
                 new chain instead",
                heights.start(),
                heights.end()
            )));
        }
        let from = (*heights.start()).max(lowest);
        // What the lowest block stands on is known by name: ours may be just there, from another file or by hand.
        let below = branch.at(lowest).and_then(|first| {
            let height = lowest.prev().filter(|height| heights.contains(height))?;
            Some(Link { height, hash: first.link.parent_hash.clone(), parent_hash: Hash::new("") })
        });
        let links = (from.get()..=heights.end().get()).map_while(|height| branch.at(Height::new(height)?));
        Ok(below.into_iter().chain(links.map(|known| known.link.clone())).collect())
    }

    async fn blocks(&self, heights: RangeInclusive<Height>) -> Result<Vec<Block>, SourceError> {
        let mut gone = Vec::new();
        let mut held = Vec::new();
        {
            let branch = locked(&self.branch);
            let Some((lowest, _)) = branch.lowest() else { return Ok(Vec::new()) };
            if *heights.start() < lowest {
                let from = heights.start();
                return Err(
                    self.permanent(&format!("has no block {from} any more: the lowest it can give is {lowest}"))
                );
            }
            let wanted = (heights.start().get()..=heights.end().get())
                .map_while(|height| branch.at(Height::new(height)?))
                .take(ANSWER_BLOCKS);
            let mut bytes = 0;
            // Either all from memory or all read again: the rest is for the next call.
            for known in wanted {
                match &known.block {
                    Some(block) if gone.is_empty() => held.push(block.clone()),
                    None if held.is_empty() && bytes < ANSWER_BYTES => {
                        bytes += known.bytes;
                        gone.push((known.link.clone(), known.line));
                    }
                    _ => break,
                }
            }
        }
        if gone.is_empty() {
            Ok(held.iter().map(|block| (**block).clone()).collect())
        } else {
            self.read_again(gone).await
        }
    }

    async fn wait(&self, at_most: Duration) {
        let mut feed = self.feed.lock().await;
        if feed.is_at_rest() || (!self.origin.is_pipe() && locked(&self.refused).is_some()) {
            drop(feed);
            tokio::time::sleep(at_most).await;
        } else if self.origin.is_pipe() {
            // What it finds, or why it cannot, stays for the next call of `head`.
            let _ = tokio::time::timeout(at_most, feed.wait_and_fill(&self.branch)).await;
        }
    }

    async fn opening_balances(&self) -> Result<Vec<OpeningBalance>, SourceError> {
        let mut feed = self.feed.lock().await;
        if feed.first().is_none() {
            feed.fill(&self.branch).await?;
        }
        Ok(feed.opening().to_vec())
    }
}
