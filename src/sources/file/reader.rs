//! Bytes to lines: a plain file, gzip (told by its first bytes) or stdin, read on a thread of its own that is never
//! more than a few lines ahead.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::line::{BadLine, Line, LineReader};

/// A longer line is refused: it would not fit the memory that a reader may take.
pub(super) const LONGEST_LINE: usize = 256 << 20;

/// Lines that may wait between the reader's thread and the source.
const LINES_AHEAD: usize = 64;

/// KiB of lines that may; a longer line waits alone.
const KIB_AHEAD: u32 = 32 << 10;

/// Where lines come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// A regular file, which can be read again.
    File(PathBuf),
    /// A named pipe or the like, which cannot.
    Pipe(PathBuf),
    /// Standard input, which cannot.
    Stdin,
}

impl Origin {
    /// `-` is standard input. What is not there (yet) counts as a file.
    pub(super) fn new(path: &Path) -> Origin {
        if path.as_os_str() == "-" {
            return Origin::Stdin;
        }
        let path = path.to_owned();
        if path.metadata().is_ok_and(|it| !it.is_file()) { Origin::Pipe(path) } else { Origin::File(path) }
    }

    /// Whether it can be read once only, and may bring its lines slowly.
    pub(super) fn is_pipe(&self) -> bool {
        !matches!(self, Origin::File(_))
    }

    /// How messages call it.
    pub(super) fn name(&self) -> String {
        match self {
            Origin::File(path) | Origin::Pipe(path) => path.display().to_string(),
            Origin::Stdin => "standard input".into(),
        }
    }
}

/// Splits a stream into lines and counts them.
pub(super) struct Lines {
    reader: Box<dyn BufRead + Send>,
    number: u64,
    /// Dropped by the caller that waits for the result: after that no further line is given.
    wanted: Option<Weak<()>>,
}

impl Lines {
    /// Opens a file or standard input; nothing of it is read but its first two bytes.
    pub(super) fn open(origin: &Origin) -> io::Result<Lines> {
        match origin {
            Origin::File(path) | Origin::Pipe(path) => Lines::new(File::open(path)?),
            Origin::Stdin => Lines::new(io::stdin()),
        }
    }

    fn new(mut input: impl Read + Send + 'static) -> io::Result<Lines> {
        let mut magic = Vec::with_capacity(2);
        input.by_ref().take(2).read_to_end(&mut magic)?;
        let packed = magic == [0x1f, 0x8b];
        let input = BufReader::with_capacity(256 << 10, Cursor::new(magic).chain(input));
        let reader: Box<dyn BufRead + Send> = if packed {
            Box::new(BufReader::with_capacity(1 << 20, MultiGzDecoder::new(input)))
        } else {
            Box::new(input)
        };
        Ok(Lines { reader, number: 0, wanted: None })
    }

    /// As it is, for as long as someone holds on to the other end of `wanted`: gigabytes of empty lines, which are passed by
    /// without a word, come out of megabytes.
    pub(super) fn while_wanted(self, wanted: Weak<()>) -> Lines {
        Lines { wanted: Some(wanted), ..self }
    }

    /// The next line without its end, and its number from 1; none at the end of the stream.
    pub(super) fn next(&mut self) -> Result<Option<(u64, Vec<u8>)>, BadLine> {
        if self.wanted.as_ref().is_some_and(|wanted| wanted.strong_count() == 0) {
            return Err(BadLine::new("is not waited for any more".to_owned()));
        }
        let mut line = Vec::new();
        let read = self.reader.by_ref().take(LONGEST_LINE as u64 + 1).read_until(b'\n', &mut line);
        if matches!(read, Ok(0)) {
            return Ok(None);
        }
        self.number += 1;
        read.map_err(|e| BadLine::new(format!("cannot be read: {e}")))?;
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        if line.len() > LONGEST_LINE {
            return Err(BadLine::new(format!("is longer than {LONGEST_LINE} bytes")));
        }
        Ok(Some((self.number, line)))
    }

    /// The number of the last line given.
    pub(super) fn number(&self) -> u64 {
        self.number
    }
}

/// What stands for a line in a position: the first 16 hex digits of its SHA-256.
pub(super) fn line_hash(line: &[u8]) -> String {
    Sha256::digest(line).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// A line as the reader's thread hands it over.
pub(super) struct Entry {
    /// Its number, from 1.
    pub(super) number: u64,
    /// The line itself, for the position.
    pub(super) raw: Vec<u8>,
    /// What it says; of a line that was only passed by, its links alone.
    pub(super) line: Line,
    /// Its share of what may wait, given back when it is taken.
    _share: OwnedSemaphorePermit,
}

/// What comes from the reader's thread.
pub(super) enum Next {
    /// One more line.
    Line(Box<Entry>),
    /// This line cannot be read; nothing follows.
    Bad(u64, BadLine),
    /// The file cannot be opened; nothing follows.
    Closed(io::Error),
    /// The file is not the one that the position was made from; nothing follows.
    Another(String),
    /// The stream ended as it should; without this word it did not.
    End,
}

/// Where to begin.
#[derive(Debug, Clone, Default)]
pub(super) struct Start {
    /// How many lines were taken before.
    pub(super) after_line: u64,
    /// The hash of the last of them.
    pub(super) hash: String,
    /// Whether the lines before are wanted too (their links alone), to learn the branch again.
    pub(super) show_links: bool,
}

/// Starts the reader's thread. It ends when the stream does, or when the receiver is dropped.
///
/// A plain thread, opening included: one that waits for a pipe would keep the runtime's own from ending.
pub(super) fn spawn(origin: Origin, start: Start, reader: LineReader) -> io::Result<mpsc::Receiver<Next>> {
    let (sender, receiver) = mpsc::channel(LINES_AHEAD);
    let runtime = Handle::current();
    std::thread::Builder::new().name("ebbtide-file".into()).spawn(move || {
        // Nobody listens any more, if a word cannot be sent.
        let _ = match Lines::open(&origin) {
            Ok(lines) => run(lines, &start, reader, &sender, &runtime),
            Err(error) => sender.blocking_send(Next::Closed(error)).map_err(|_| Gone),
        };
    })?;
    Ok(receiver)
}

struct Gone;

fn run(
    mut lines: Lines,
    start: &Start,
    mut reader: LineReader,
    to: &mpsc::Sender<Next>,
    runtime: &Handle,
) -> Result<(), Gone> {
    let shares = Arc::new(Semaphore::new(KIB_AHEAD as usize));
    let send = |read| to.blocking_send(read).map_err(|_| Gone);
    loop {
        // Of empty lines nothing is sent, by which it would be noticed.
        if to.is_closed() {
            return Err(Gone);
        }
        let (number, raw) = match lines.next() {
            Ok(Some(line)) => line,
            Ok(None) if lines.number() < start.after_line => {
                return send(Next::Another(format!(
                    "ends after line {}, but {} lines of it were taken before",
                    lines.number(),
                    start.after_line
                )));
            }
            Ok(None) => return send(Next::End),
            Err(bad) => return send(Next::Bad(lines.number(), bad)),
        };
        let passed_by = number <= start.after_line;
        if number == start.after_line && line_hash(&raw) != start.hash {
            return send(Next::Another(format!("has another line {number} than when it was last read")));
        }
        if (passed_by && !start.show_links) || raw.trim_ascii().is_empty() {
            continue;
        }
        let read = if passed_by { reader.links(&raw) } else { reader.read(&raw) };
        match read {
            Ok(line) => {
                let kib = u32::try_from(raw.len() >> 10).unwrap_or(KIB_AHEAD).min(KIB_AHEAD);
                // When the receiver is gone so are the lines in it, and their shares come back.
                let share = runtime.block_on(shares.clone().acquire_many_owned(kib)).map_err(|_| Gone)?;
                send(Next::Line(Box::new(Entry { number, raw, line, _share: share })))?;
            }
            Err(bad) => return send(Next::Bad(number, bad)),
        }
    }
}
