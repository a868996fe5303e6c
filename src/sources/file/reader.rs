//! Bytes to lines: a plain file, gzip (told by its first bytes) or stdin, read on a thread of its own that is never
//! more than a few lines ahead.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::line::{BadLine, Line, LineReader};

/// A longer line is refused: it would not fit the memory that a reader may take.
pub(super) const LONGEST_LINE: usize = 256 << 20;

/// Lines that may wait between the reader's thread and the source.
const LINES_AHEAD: usize = 32;

/// Where lines come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// A file, which can be read again.
    Path(PathBuf),
    /// Standard input, which cannot.
    Stdin,
}

impl Origin {
    /// `-` is standard input.
    pub(super) fn new(path: &Path) -> Origin {
        if path.as_os_str() == "-" { Origin::Stdin } else { Origin::Path(path.to_owned()) }
    }

    /// How messages call it.
    pub(super) fn name(&self) -> String {
        match self {
            Origin::Path(path) => path.display().to_string(),
            Origin::Stdin => "standard input".into(),
        }
    }
}

/// Splits a stream into lines and counts them.
pub(super) struct Lines {
    reader: Box<dyn BufRead + Send>,
    number: u64,
}

impl Lines {
    /// Opens a file or standard input; nothing of it is read but its first two bytes.
    pub(super) fn open(origin: &Origin) -> io::Result<Lines> {
        match origin {
            Origin::Path(path) => Lines::new(File::open(path)?),
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
        Ok(Lines { reader, number: 0 })
    }

    /// The next line without its end, and its number from 1; none at the end of the stream.
    pub(super) fn next(&mut self) -> Result<Option<(u64, Vec<u8>)>, BadLine> {
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
}

/// What comes from the reader's thread.
pub(super) enum Next {
    /// One more line.
    Line(Box<Entry>),
    /// This line cannot be read; nothing follows.
    Bad(u64, BadLine),
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
/// A plain thread: one that waits for standard input would keep the runtime's own from ending.
pub(super) fn spawn(origin: Origin, start: Start, reader: LineReader) -> io::Result<mpsc::Receiver<Next>> {
    let lines = Lines::open(&origin)?;
    let (sender, receiver) = mpsc::channel(LINES_AHEAD);
    std::thread::Builder::new().name("ebbtide-file".into()).spawn(move || {
        // An error here only means that nobody listens any more.
        let _ = run(lines, &start, reader, &sender);
    })?;
    Ok(receiver)
}

struct Gone;

fn run(mut lines: Lines, start: &Start, mut reader: LineReader, to: &mpsc::Sender<Next>) -> Result<(), Gone> {
    let send = |read| to.blocking_send(read).map_err(|_| Gone);
    loop {
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
            Ok(line) => send(Next::Line(Box::new(Entry { number, raw, line })))?,
            Err(bad) => return send(Next::Bad(number, bad)),
        }
    }
}
