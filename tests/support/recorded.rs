//! Recorded chain data, and what to do where it is missing.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use serde_json::Value;

/// Says that a test has nothing to work on: a line for a person, a failure in CI (`CI=true`).
///
/// Return from the test after it.
pub fn skip(why: &str) {
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "cannot be skipped in CI: {why}");
    println!("skipped: {why}");
}

/// The folder of recorded data: `EBBTIDE_DATA`, by default `../shared/data` beside the project. None where it is
/// missing, after [`skip`].
pub fn data_dir() -> Option<PathBuf> {
    let dir = std::env::var_os("EBBTIDE_DATA")
        .filter(|dir| !dir.is_empty())
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"), PathBuf::from);
    if dir.is_dir() {
        return Some(dir);
    }
    skip(&format!("no recorded data at {} (EBBTIDE_DATA names another folder)", dir.display()));
    None
}

/// The lines of a gzipped (or plain) file of JSON lines, one at a time.
pub fn ndjson_gz(path: &Path) -> impl Iterator<Item = Value> {
    let file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let lines: Box<dyn BufRead> = if path.extension().is_some_and(|extension| extension == "gz") {
        Box::new(BufReader::new(MultiGzDecoder::new(file)))
    } else {
        Box::new(BufReader::new(file))
    };
    let path = path.to_owned();
    lines.lines().enumerate().map(move |(n, line)| {
        line.map_err(|e| e.to_string())
            .and_then(|line| serde_json::from_str(&line).map_err(|e| e.to_string()))
            .unwrap_or_else(|e| panic!("{}:{}: {e}", path.display(), n + 1))
    })
}

/// All of [`ndjson_gz`]; fails on an empty file, so that a test of nothing does not pass.
pub fn read_ndjson_gz(path: &Path) -> Vec<Value> {
    let values: Vec<Value> = ndjson_gz(path).collect();
    assert!(!values.is_empty(), "{} is empty", path.display());
    values
}
