//! What goes into the ledger by hand: opening balances, and events that were refused and are tried again.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use ebbtide::chain::Kind;
use ebbtide::chain::opening::{self, BadOpening, HEADER, OpeningLine};
use ebbtide::config::{OpeningArgs, RejectedListArgs, RejectedRetryArgs, Settings};
use ebbtide::store::{Imported, LineFault, RejectedEvent, RejectedFilter, Retried};
use tokio::sync::mpsc;

use super::{aligned, migrated_store, refused, say};

/// Lines at fault that are named; the others are counted.
const MOST_FAULTS: usize = 20;
/// A longer line is no opening balance: two texts of 512 bytes, escaped, and an amount are shorter.
const LONGEST_LINE: u64 = 8 << 10;
/// Lines handed over at once.
const LINES_AT_ONCE: usize = 1_000;

pub(super) async fn opening_balances(settings: &Settings, args: OpeningArgs) -> Result<ExitCode> {
    let store = migrated_store(settings, "ebbtide opening-balances").await?;
    let kind = store.kind_of(&args.chain).await.map_err(refused)?;
    let name = match args.file.as_os_str() == "-" {
        true => "standard input".to_owned(),
        false => args.file.display().to_string(),
    };
    let (to_import, mut lines) = mpsc::channel(2);
    // A plain thread: one that waits for a pipe would keep the runtime's own from ending.
    let file = args.file;
    std::thread::spawn(move || {
        if let Err(error) = read_lines(&file, kind, &to_import) {
            // Nobody listens any more: whoever did has said why.
            let _ = to_import.blocking_send(Err(error));
        }
    });
    let imported =
        store.import_opening_balances(&args.chain, args.replace, MOST_FAULTS, &mut lines).await.map_err(refused)?;
    let chain = &args.chain;
    match imported.with_context(|| format!("{name} cannot be read; nothing was imported"))? {
        Imported::Stored { lines, removed, applied } => {
            let replaced = if removed > 0 { format!(", in place of {removed}") } else { String::new() };
            let then = if applied { " Its blocks are applied again on top of them." } else { "" };
            say(format!("Imported {} of chain {chain}{replaced}.{then}", counted(lines, "opening balance")))?;
            Ok(ExitCode::SUCCESS)
        }
        Imported::Refused { lines, count } => {
            let mut said = format!("{name}: nothing was imported, since {} at fault:", are(count, "line"));
            for (line, why) in &lines {
                said.push_str(&format!("\n  line {line}: {}", reason(why)));
            }
            match count.saturating_sub(lines.len() as u64) {
                0 => {}
                more => said.push_str(&format!("\n  and {more} more")),
            }
            if lines.iter().any(|(_, why)| matches!(why, LineFault::Stored { .. })) {
                said.push_str("\n--replace drops the chain's opening balances first");
            }
            Err(anyhow!(said))
        }
    }
}

/// Why a line cannot be imported, in words.
fn reason(why: &LineFault) -> String {
    match why {
        LineFault::Bad(bad) => bad.to_string(),
        LineFault::Second { token, address, first_line } => {
            format!("it is a second opening balance of {address} in {token}; line {first_line} is the first")
        }
        LineFault::Stored { token, address, amount } => {
            format!("{address} in {token} has an opening balance already: {amount}")
        }
    }
}

/// Why reading a table ended early.
#[derive(Debug, thiserror::Error)]
enum BadTable {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the header line must be {HEADER}")]
    Header,
    #[error("line {line} is longer than {LONGEST_LINE} bytes")]
    TooLong { line: u64 },
}

type Lines = Result<Vec<OpeningLine>, BadTable>;

/// Reads until the end, or until nobody takes the lines any more.
fn read_lines(path: &Path, kind: Kind, to: &mpsc::Sender<Lines>) -> Result<(), BadTable> {
    let input: Box<dyn Read> = match path.as_os_str() == "-" {
        true => Box::new(io::stdin()),
        false => Box::new(File::open(path)?),
    };
    let mut input = BufReader::with_capacity(64 << 10, input);
    let mut bytes = Vec::new();
    let mut batch = Vec::with_capacity(LINES_AT_ONCE);
    for line in 1.. {
        bytes.clear();
        if input.by_ref().take(LONGEST_LINE + 1).read_until(b'\n', &mut bytes)? == 0 {
            if line == 1 {
                return Err(BadTable::Header);
            }
            break;
        }
        if bytes.len() as u64 > LONGEST_LINE {
            return Err(BadTable::TooLong { line });
        }
        let text = std::str::from_utf8(&bytes).map_err(|_| BadOpening::NotText);
        if line == 1 {
            // Spreadsheets put a byte order mark before the first column.
            let header = text.map(|t| t.trim_start_matches('\u{feff}').trim_end()).unwrap_or_default();
            if !opening::is_header(header) {
                return Err(BadTable::Header);
            }
            continue;
        }
        let given = match text {
            Ok(text) if text.trim().is_empty() => continue,
            Ok(text) => opening::read(kind, text.trim_end_matches(['\r', '\n'])),
            Err(fault) => Err(fault),
        };
        batch.push(OpeningLine { line, given });
        if batch.len() >= LINES_AT_ONCE && to.blocking_send(Ok(std::mem::take(&mut batch))).is_err() {
            return Ok(());
        }
    }
    let _ = to.blocking_send(Ok(batch));
    Ok(())
}

pub(super) async fn rejected_list(settings: &Settings, args: &RejectedListArgs) -> Result<ExitCode> {
    let store = migrated_store(settings, "ebbtide rejected").await?;
    let of = RejectedFilter {
        chain: args.chain.as_deref(),
        projection: args.projection.as_deref(),
        reason: args.reason.as_deref(),
    };
    let (events, matching) = store.rejected(of, args.limit).await.map_err(refused)?;
    if args.json {
        say(serde_json::to_string_pretty(&events)?)?;
    } else if events.is_empty() {
        say("No event was refused.")?;
    } else {
        say(table(&events))?;
        match matching - events.len() as u64 {
            0 => {}
            more => say(format!("and {more} more (--limit)"))?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn table(events: &[RejectedEvent]) -> String {
    let mut rows = vec![["CHAIN", "PROJECTION", "BLOCK", "TX", "EVENT", "REASON", "AS IT CAME"].map(str::to_owned)];
    for e in events {
        let raw = e.raw.to_string();
        let mut shown: String = raw.chars().take(160).collect();
        if shown.len() < raw.len() {
            shown.push('…');
        }
        rows.push([
            e.chain.clone(),
            e.projection.clone(),
            format!("{} ({})", e.height, e.block_hash),
            e.tx_index.to_string(),
            e.event_index.to_string(),
            e.reason.clone(),
            shown,
        ]);
    }
    aligned(&rows)
}

pub(super) async fn rejected_retry(settings: &Settings, args: &RejectedRetryArgs) -> Result<ExitCode> {
    let store = migrated_store(settings, "ebbtide rejected").await?;
    let chain = &args.chain;
    let Retried { events, blocks, final_blocks, lowest, final_height, of_source } =
        store.retry_rejected(chain, args.projection.as_deref(), args.height).await.map_err(refused)?;
    if let Some(lowest) = lowest {
        let from = if blocks == 1 { format!("block {lowest}") } else { format!("{blocks} blocks from {lowest} on") };
        say(format!(
            "Chain {chain}: {} tried again; every projection applies {from} again. `ebbtide rejected list` shows what is \
             refused still.",
            are(events, "event")
        ))?;
    }
    if let (1.., Some(final_height)) = (final_blocks, final_height) {
        say(format!(
            "{final_blocks} of these blocks are final (up to {final_height}): that is a deep change, for which projections \
             are rebuilt, or halt where on_deep_change = \"halt\" is set, until `ebbtide resume`."
        ))?;
    }
    if let Some((left, lowest)) = of_source {
        let text = format!(
            "{left} rejected by the source and cannot be retried from the database. Fix the source or its settings, \
             then have it read again: `select drop_blocks('{chain}', {lowest})` in `ebbtide psql` lets the syncer begin \
             again at block {lowest}.",
            left = were(left, "event"),
        );
        // What was asked for was not done.
        if events == 0 {
            return Err(anyhow!(text));
        }
        say(text)?;
    } else if events == 0 {
        say("No such event was refused; nothing to do.")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn counted(n: u64, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

fn are(n: u64, what: &str) -> String {
    if n == 1 { format!("1 {what} is") } else { format!("{n} {what}s are") }
}

fn were(n: u64, what: &str) -> String {
    if n == 1 { format!("1 {what} was") } else { format!("{n} {what}s were") }
}
