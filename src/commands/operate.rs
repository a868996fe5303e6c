//! Commands that look or steer, and end.

use std::process::ExitCode;

use anyhow::{Context, Result};
use ebbtide::chain::verdict::{State, Verdict, duration};
use ebbtide::config::{PauseArgs, ReplayArgs, ResumeArgs, Settings, StatusArgs};
use ebbtide::store::Standing;

use super::{aligned, migrated_store, open, refused, say, unknown_sessions};

pub(super) async fn migrate(settings: &Settings) -> Result<ExitCode> {
    let store = open(settings, "ebbtide migrate").await?;
    let done = store.migrate().await.context("the schema could not be brought up to date")?;
    if !done.repaired.is_empty() {
        say(format!("Repaired: {}.", done.repaired.join("; ")))?;
    }
    say(match done.applied {
        0 => format!("The schema is at version {}, as it should be.", done.version),
        n => format!("Applied {n} migrations; the schema is at version {}.", done.version),
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn status(settings: &Settings, args: &StatusArgs) -> Result<ExitCode> {
    let store = unknown_sessions(settings, "ebbtide status")?.as_guest();
    let mut pulse = store.pulse().await.context("the database cannot be reached")?;
    loop {
        pulse.check_schema().await.context("the database cannot be used")?;
        let standing = pulse.standing().await.context("where things stand cannot be read")?;
        if args.json {
            say(serde_json::to_string_pretty(&standing)?)?;
        } else {
            say(table(&standing))?;
        }
        if !args.watch {
            return Ok(ExitCode::from(u8::from(!standing.iter().all(Standing::is_ready))));
        }
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
}

/// All of them as a table for people, and below it what to do.
fn table(all: &[Standing]) -> String {
    if all.is_empty() {
        return "There is no chain yet.".to_owned();
    }
    let number = |n: Option<i64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let since = |verdict: &Verdict| match verdict.state {
        State::Ok => "-".to_owned(),
        _ => duration(verdict.for_seconds),
    };
    let mut rows = vec![
        ["CHAIN", "PROJECTION", "HEAD", "TIP", "APPLIED", "FINAL", "LAG", "REORGS", "REJECTED", "FOR", "STATE"]
            .map(str::to_owned),
    ];
    let mut remedies = Vec::new();
    if let Some(Verdict { reason: Some(reason), remedy: Some(remedy), .. }) = all.first().map(|s| &s.database) {
        remedies.push(format!("The database, where {reason}: {remedy}."));
    }
    let mut chain = None;
    for s in all {
        if let Some(source) = s.source.as_ref().filter(|_| chain != Some(&s.chain)) {
            let missing = s.head_height.zip(s.tip_height).map(|(head, tip)| head.saturating_sub(tip).max(0));
            let [dash, source_of] = ["-", "(source)"].map(str::to_owned);
            rows.push([
                s.chain.clone(),
                source_of,
                number(s.head_height),
                number(s.tip_height),
                dash.clone(),
                number(s.final_height),
                number(missing),
                dash.clone(),
                dash,
                since(source),
                source.words(),
            ]);
            remedies.extend(source.remedy.as_ref().map(|remedy| format!("{}, its source: {remedy}.", s.chain)));
        }
        chain = Some(&s.chain);
        let Some(projection) = &s.projection else { continue };
        rows.push([
            s.chain.clone(),
            projection.clone(),
            number(s.head_height),
            number(s.tip_height),
            number(s.applied_height),
            number(s.final_height),
            s.lag_blocks.to_string(),
            s.reorgs.to_string(),
            s.rejected_events.to_string(),
            since(&s.verdict),
            s.verdict.words(),
        ]);
        remedies.extend(s.verdict.remedy.as_ref().map(|remedy| format!("{}, {projection}: {remedy}.", s.chain)));
    }
    remedies.dedup();
    let mut text = aligned(&rows);
    if !remedies.is_empty() {
        text.push_str("\n\nWhat to do:\n  ");
        text.push_str(&remedies.join("\n  "));
    }
    let evidence = all.iter().map(|s| s.evidence_bytes).max().unwrap_or_default();
    text + &format!(
        "\n\nEvidence of all chains (replaced blocks, reorganisations, refused events): {}.",
        size(evidence)
    )
}

/// `48.0 kB`, `1.5 GB`: in powers of 1024, as Postgres writes sizes.
fn size(bytes: i64) -> String {
    let (mut size, mut unit) = (bytes as f64 / 1024.0, "kB");
    for larger in ["MB", "GB", "TB"] {
        if size >= 1024.0 {
            (size, unit) = (size / 1024.0, larger);
        }
    }
    format!("{size:.1} {unit}")
}

pub(super) async fn replay(settings: &Settings, args: &ReplayArgs) -> Result<ExitCode> {
    let store = migrated_store(settings, "ebbtide replay").await?;
    store.replay(&args.chain, args.from, args.projection.as_deref()).await.map_err(refused)?;
    say(format!("Chain {} is applied again from height {}.", args.chain, args.from))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn pause(settings: &Settings, args: &PauseArgs) -> Result<ExitCode> {
    let store = migrated_store(settings, "ebbtide pause").await?;
    store.pause(&args.chain, args.projection.as_deref(), args.at).await.map_err(refused)?;
    say(match args.at {
        Some(at) => format!("Chain {} goes to height {at} and stays there.", args.chain),
        None => format!("Chain {} is paused.", args.chain),
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn resume(settings: &Settings, args: &ResumeArgs) -> Result<ExitCode> {
    let store = migrated_store(settings, "ebbtide resume").await?;
    store.resume(&args.chain, args.projection.as_deref()).await.map_err(refused)?;
    say(format!("Chain {} resumed.", args.chain))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_are_told_in_the_unit_that_people_read() {
        let told = [0, 49_152, 1_048_575, 1_048_576, 1_610_612_736, 5_497_558_138_880].map(super::size);
        assert_eq!(told, ["0.0 kB", "48.0 kB", "1024.0 kB", "1.0 MB", "1.5 GB", "5.0 TB"]);
    }
}
