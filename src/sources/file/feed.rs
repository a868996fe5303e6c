//! The file as a script: its lines gathered into steps, each the longest run of blocks that extend one another.

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::branch::{Branch, Known, Place};
use super::line::{BadLine, Line, LineReader, NewBlock};
use super::locked;
use super::reader::{self, Entry, Next, Origin, Start};
use crate::chain::{Hash, Height, Link, OpeningBalance, Text};
use crate::sources::SourceError;

/// A step ends with this many blocks, so that it fits into memory and into a few transactions.
const STEP_BLOCKS: usize = 1_000;

/// And with this many bytes of lines.
const STEP_BYTES: usize = 16 << 20;

/// A step that replaces blocks goes on up to the old tip's height, lest the chain look shorter for a moment; but not
/// beyond these.
const REORG_BLOCKS: usize = 10_000;
const REORG_BYTES: usize = 64 << 20;

/// A live pipe's step ends when nothing more comes for this long: what is there should not wait for what is not.
const PIPE_PAUSE: Duration = Duration::from_millis(10);

/// Where a run goes on; stored with the blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    /// The file, for people: a moved file is still the same.
    pub(super) path: String,
    /// How many lines were taken.
    pub(super) line: u64,
    /// Hash of the last of them ([`reader::line_hash`]).
    pub(super) hash: String,
}

/// A step in the making.
#[derive(Debug)]
struct Partial {
    keep: Option<Height>,
    blocks: Vec<Known>,
    hashes: HashSet<Hash>,
    bytes: usize,
    /// The tip's height before this step.
    old_tip: Option<Height>,
    /// Nothing can follow in this step: it names a head.
    closed: bool,
}

impl Partial {
    fn new(keep: Option<Height>, again: Vec<Known>, branch: &Branch) -> Partial {
        let hashes = again.iter().map(|known| known.link.hash.clone()).collect();
        let bytes = again.iter().map(|known| known.bytes).sum();
        let old_tip = branch.tip().map(|tip| tip.link.height);
        Partial { keep, blocks: again, hashes, bytes, old_tip, closed: false }
    }

    fn push(&mut self, known: Known) {
        self.bytes += known.bytes;
        self.hashes.insert(known.link.hash.clone());
        self.blocks.push(known);
    }

    fn is_complete(&self) -> bool {
        let reached = self.blocks.last().map(|last| last.link.height);
        let (blocks, bytes) =
            if reached < self.old_tip { (REORG_BLOCKS, REORG_BYTES) } else { (STEP_BLOCKS, STEP_BYTES) };
        self.closed || self.blocks.len() >= blocks || self.bytes >= bytes
    }

    fn names(&self, link: &Link) -> bool {
        self.blocks.iter().any(|known| known.link == *link)
    }

    /// Whether a block extends this step; a replaced block may come back, one that stands may not.
    fn is_extended_by(&self, block: &NewBlock, branch: &Branch) -> bool {
        let Some(last) = self.blocks.last() else { return false };
        let link = &block.link;
        link.parent_hash == last.link.hash
            && link.height == last.link.height.next()
            && branch.known(&link.hash).is_none_or(|known| known.link == *link && !branch.holds(&link.hash))
    }
}

/// What a line means for the step in the making.
enum Meaning {
    /// Nothing new.
    Nothing,
    /// An opening balance.
    Opening,
    /// One more block of the step.
    Extends,
    /// A step begins with it: what stays, and what comes back before it.
    Begins(Option<Height>, Vec<Known>),
    /// It belongs to the next step.
    EndsStep,
    /// It fits nowhere.
    Misfit(String),
}

/// The lines that were read, and what was made of them.
pub(super) struct Feed {
    origin: Origin,
    reader: LineReader,
    lines: Option<mpsc::Receiver<Next>>,
    /// Received and not taken yet. Kept here, so that a dropped future loses nothing.
    held: Option<Next>,
    partial: Option<Partial>,
    /// Number and text of the last line taken, or its hash where the text is not at hand.
    taken_line: u64,
    taken_raw: Result<Vec<u8>, String>,
    opening: Vec<OpeningBalance>,
    opening_keys: HashSet<(Text, Text)>,
    first: Option<(Link, bool)>,
    /// The last answer was an error: read again from the last good line, since someone may have fixed the file.
    failed: bool,
    ended: bool,
}

impl Feed {
    pub(super) fn new(origin: Origin, reader: LineReader) -> Feed {
        Feed {
            origin,
            reader,
            lines: None,
            held: None,
            partial: None,
            taken_line: 0,
            taken_raw: Err(String::new()),
            opening: Vec::new(),
            opening_keys: HashSet::new(),
            first: None,
            failed: false,
            ended: false,
        }
    }

    /// The first block that was read, and whether it came with raw logs.
    pub(super) fn first(&self) -> Option<&(Link, bool)> {
        self.first.as_ref()
    }

    /// Opening balances read so far; complete once a block was read.
    pub(super) fn opening(&self) -> &[OpeningBalance] {
        &self.opening
    }

    /// Whether all lines were taken, or the next one cannot be.
    pub(super) fn is_at_rest(&self) -> bool {
        self.ended || self.failed
    }

    /// Whether lines were asked for at all.
    pub(super) fn is_started(&self) -> bool {
        self.lines.is_some()
    }

    /// Where to go on after a restart; none for standard input.
    pub(super) fn position(&self) -> Option<Position> {
        match &self.origin {
            Origin::File(path) => {
                Some(Position { path: path.display().to_string(), line: self.taken_line, hash: self.taken_hash() })
            }
            Origin::Pipe(_) | Origin::Stdin => None,
        }
    }

    fn taken_hash(&self) -> String {
        match &self.taken_raw {
            Ok(raw) => reader::line_hash(raw),
            Err(hash) => hash.clone(),
        }
    }

    fn begin(&mut self, start: Start) -> Result<(), SourceError> {
        let (after_line, hash) = (start.after_line, start.hash.clone());
        self.lines = None;
        let lines = reader::spawn(self.origin.clone(), start, self.reader.clone())
            .map_err(|e| SourceError::permanent(format!("cannot start reading {}: {e}", self.origin.name())))?;
        (self.taken_line, self.taken_raw) = (after_line, Err(hash));
        self.lines = Some(lines);
        self.held = None;
        self.partial = None;
        self.failed = false;
        self.ended = false;
        Ok(())
    }

    /// Begins after a line that was taken earlier; `branch` learns what the lines up to there say.
    pub(super) async fn learn(&mut self, start: Start, branch: &Mutex<Branch>) -> Result<(), SourceError> {
        *locked(branch) = Branch::default();
        self.opening.clear();
        self.opening_keys.clear();
        let until = start.after_line;
        self.begin(Start { show_links: true, ..start })?;
        loop {
            self.receive().await;
            match &self.held {
                Some(Next::Line(entry)) if entry.number <= until => {
                    let mut branch = locked(branch);
                    if let Err(why) = pass(&mut branch, entry) {
                        return Err(self.fault(entry.number, &BadLine::new(why)));
                    }
                    self.held = None;
                }
                Some(Next::Bad(number, bad)) if *number <= until => return Err(self.fault(*number, bad)),
                Some(Next::Another(why)) => return Err(self.another(why)),
                Some(Next::Closed(error)) => return Err(self.closed(error)),
                // What comes after the lines passed is for the next step.
                _ => return Ok(()),
            }
        }
    }

    /// Gathers lines until the next step stands (true: nothing follows it). Nothing is lost when this is dropped.
    ///
    /// A pipe that brings nothing is not waited for, once there is a block to speak of.
    pub(super) async fn fill(&mut self, branch: &Mutex<Branch>) -> Result<bool, SourceError> {
        let pause = (self.origin.is_pipe() && locked(branch).tip().is_some()).then_some(PIPE_PAUSE);
        self.gather_from_start(branch, pause).await
    }

    /// [`fill`](Feed::fill), but waits for the next line however long it takes.
    pub(super) async fn wait_and_fill(&mut self, branch: &Mutex<Branch>) -> Result<bool, SourceError> {
        self.gather_from_start(branch, None).await
    }

    async fn gather_from_start(
        &mut self,
        branch: &Mutex<Branch>,
        pause: Option<Duration>,
    ) -> Result<bool, SourceError> {
        if self.lines.is_none() {
            self.begin(Start::default())?;
        } else if self.failed && !self.origin.is_pipe() {
            let start = Start { after_line: self.taken_line, hash: self.taken_hash(), show_links: false };
            self.begin(start)?;
        }
        let outcome = self.gather(branch, pause).await;
        self.failed = outcome.is_err();
        outcome
    }

    async fn gather(&mut self, branch: &Mutex<Branch>, pause: Option<Duration>) -> Result<bool, SourceError> {
        loop {
            if self.partial.as_ref().is_some_and(Partial::is_complete) {
                return Ok(false);
            }
            let pause = pause.or((self.origin.is_pipe() && self.partial.is_some()).then_some(PIPE_PAUSE));
            match pause {
                Some(pause) if tokio::time::timeout(pause, self.receive()).await.is_err() => return Ok(false),
                Some(_) => {}
                None => self.receive().await,
            }
            // From here on nothing waits, so what is taken out of `held` cannot be lost.
            match self.held.take() {
                Some(Next::Line(entry)) => {
                    let mut branch = locked(branch);
                    let meaning = self.meaning(&entry.line, &branch);
                    if let Meaning::EndsStep | Meaning::Misfit(_) = meaning {
                        let number = entry.number;
                        self.held = Some(Next::Line(entry));
                        return match meaning {
                            Meaning::Misfit(why) if self.partial.is_none() => {
                                Err(self.fault(number, &BadLine::new(why)))
                            }
                            _ => Ok(false),
                        };
                    }
                    self.take(*entry, meaning, &mut branch);
                }
                Some(Next::End) => {
                    self.held = Some(Next::End);
                    self.ended = true;
                    return Ok(true);
                }
                other if self.partial.is_some() => {
                    self.held = other;
                    return Ok(false);
                }
                other => {
                    let error = match &other {
                        Some(Next::Bad(number, bad)) => self.fault(*number, bad),
                        Some(Next::Another(why)) => self.another(why),
                        Some(Next::Closed(error)) => self.closed(error),
                        _ => SourceError::permanent(format!("the reader of {} stopped", self.origin.name())),
                    };
                    self.held = other;
                    return Err(error);
                }
            }
        }
    }

    /// Waits until a line is held, or none will come. Safe to drop.
    async fn receive(&mut self) {
        if self.held.is_none()
            && let Some(lines) = &mut self.lines
        {
            self.held = lines.recv().await;
        }
    }

    fn meaning(&self, line: &Line, branch: &Branch) -> Meaning {
        let place = match (line, &self.partial) {
            (Line::Opening(opening), _) => return self.opening_meaning(opening, branch),
            (Line::Block(block), Some(partial)) => {
                return if partial.hashes.contains(&block.link.hash) && partial.names(&block.link) {
                    Meaning::Nothing
                } else if partial.is_extended_by(block, branch) {
                    Meaning::Extends
                } else {
                    Meaning::EndsStep
                };
            }
            (Line::Head(height, hash), Some(partial)) => {
                let last = partial.blocks.last().map(|last| &last.link);
                return match last {
                    Some(last) if last.height == *height && last.hash == *hash => Meaning::Nothing,
                    _ => Meaning::EndsStep,
                };
            }
            (Line::Block(block), None) => branch.place(&block.link),
            (Line::Head(height, hash), None) => branch.place_head(*height, hash),
        };
        match place {
            Err(misfit) => Meaning::Misfit(misfit.to_string()),
            Ok(Place::Repeat) => Meaning::Nothing,
            Ok(Place::Follows { keep, again }) => match again.iter().find(|known| known.block.is_none()) {
                Some(lost) if self.origin.is_pipe() => Meaning::Misfit(format!(
                    "goes back to block {}, which is no longer in memory, and {} cannot be read again: give a regular \
                     file instead",
                    lost.link.block_ref(),
                    self.origin.name()
                )),
                _ => Meaning::Begins(keep, again),
            },
        }
    }

    fn opening_meaning(&self, opening: &OpeningBalance, branch: &Branch) -> Meaning {
        if self.partial.is_some() {
            Meaning::EndsStep
        } else if branch.tip().is_some() {
            Meaning::Misfit("is an opening balance after the first block".into())
        } else if self.opening_keys.contains(&(opening.token.clone(), opening.address.clone())) {
            Meaning::Misfit(format!("is a second opening balance of {} in {}", opening.address, opening.token))
        } else {
            Meaning::Opening
        }
    }

    fn take(&mut self, entry: Entry, meaning: Meaning, branch: &mut Branch) {
        let Entry { number, raw, line, .. } = entry;
        let bytes = raw.len();
        (self.taken_line, self.taken_raw) = (number, Ok(raw));
        if let Meaning::Begins(keep, again) = &meaning {
            self.partial = Some(Partial::new(*keep, again.clone(), branch));
        }
        match (line, meaning) {
            (Line::Block(block), Meaning::Begins(..) | Meaning::Extends) => {
                self.first.get_or_insert_with(|| (block.link.clone(), block.has_logs));
                if let Some(partial) = &mut self.partial {
                    partial.push(Known::new(block.link, number, bytes, block.block));
                }
            }
            (Line::Head(..), Meaning::Begins(..)) => {
                if let Some(partial) = &mut self.partial {
                    partial.closed = true;
                }
            }
            (Line::Opening(opening), Meaning::Opening) => {
                self.opening_keys.insert((opening.token.clone(), opening.address.clone()));
                self.opening.push(opening);
            }
            _ => {}
        }
    }

    /// Makes the step in hand the branch's newest part.
    pub(super) fn publish(&mut self, branch: &mut Branch) {
        if let Some(partial) = self.partial.take() {
            branch.switch(partial.keep, partial.blocks);
        }
    }

    fn fault(&self, line: u64, bad: &BadLine) -> SourceError {
        let column = bad.column.map(|column| format!(", column {column}")).unwrap_or_default();
        SourceError::permanent(format!(
            "{}, line {line}{column}: {}. All lines before it were taken; once it is fixed, go on with the same command",
            self.origin.name(),
            bad.reason
        ))
    }

    fn closed(&self, error: &std::io::Error) -> SourceError {
        SourceError::permanent(format!("cannot open {}: {error}", self.origin.name()))
    }

    fn another(&self, why: &str) -> SourceError {
        SourceError::permanent(format!(
            "{} {why}: it is another file. Give the file that was read before, or use another chain name for this one",
            self.origin.name()
        ))
    }
}

/// What a line that was taken earlier did to the branch.
fn pass(branch: &mut Branch, entry: &Entry) -> Result<(), String> {
    let (place, new) = match &entry.line {
        Line::Block(block) => {
            (branch.place(&block.link), Some(Known::new(block.link.clone(), entry.number, entry.raw.len(), None)))
        }
        Line::Head(height, hash) => (branch.place_head(*height, hash), None),
        Line::Opening(_) => return Ok(()),
    };
    if let Place::Follows { keep, mut again } = place.map_err(|misfit| misfit.to_string())? {
        again.extend(new);
        branch.switch(keep, again);
    }
    Ok(())
}
