//! Commands that look or steer, and end.

use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use ebbtide::chain::Kind;
use ebbtide::chain::delta::Delta;
use ebbtide::config::{PauseArgs, ReplayArgs, ResumeArgs, Settings, StatusArgs, VerifyArgs};
use ebbtide::sources::Source;
use ebbtide::sources::evm::{EvmSettings, EvmSource};
use ebbtide::store::Store;
use ebbtide::store::private::{self, Search};

use super::{database_url, migrated_store, open, refused, say};

pub(super) async fn migrate(settings: &Settings) -> Result<ExitCode> {
    let store = open(settings, "ebbtide migrate")?;
    let done = store.migrate().await.context("the schema could not be brought up to date")?;
    say(match done.applied {
        0 => format!("The schema is at version {}, as it should be.", done.version),
        n => format!("Applied {n} migrations; the schema is at version {}.", done.version),
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn status(settings: &Settings, args: &StatusArgs) -> Result<ExitCode> {
    let store = migrated_store(settings, "ebbtide status").await?;
    loop {
        let standing = store.standing().await?;
        let healthy = !standing.iter().any(ebbtide::store::Standing::needs_a_person);
        if args.json {
            say(serde_json::to_string_pretty(&standing)?)?;
        } else {
            say(ebbtide::store::Standing::table(&standing))?;
        }
        if !args.watch {
            return Ok(ExitCode::from(u8::from(!healthy)));
        }
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
}

pub(super) async fn verify(settings: &Settings, args: &VerifyArgs) -> Result<ExitCode> {
    let store = migrated_store(settings, "ebbtide verify").await?;
    let findings = store.verify(args.chain.as_deref(), args.most).await.map_err(refused)?;
    for line in &findings.lines {
        say(line)?;
    }
    say(&findings.summary)?;
    let mut differences = findings.differences;
    if let Some(url) = &args.node {
        differences += ask_node(&store, args.chain.as_deref().unwrap_or("main"), url, args.sample).await?;
    }
    Ok(ExitCode::from(u8::from(differences > 0)))
}

/// Holds some balances against what the contracts themselves say; returns how many differ.
async fn ask_node(store: &Store, chain: &str, url: &str, most: u32) -> Result<u64> {
    let sample = store.sample_balances(chain, most).await.map_err(refused)?;
    if sample.kind != Kind::Evm {
        return Err(anyhow!("--node: chain {chain} is of kind {}; only evm nodes tell balances", sample.kind.as_str()));
    }
    let Some(at) = sample.at else {
        say(format!("{chain}: note: nothing is applied yet, so the node was not asked"))?;
        return Ok(0);
    };
    let settings = EvmSettings { urls: vec![url.to_owned()], ..EvmSettings::default() };
    let source = EvmSource::new(settings).context("--node")?;
    let network = source.identify().await.context("--node")?.network_id;
    if let (Some(stored), Some(found)) = (&sample.network_id, &network)
        && stored != found
    {
        return Err(anyhow!("--node: it is network {found}, but chain {chain} follows network {stored}"));
    }
    let pairs: Vec<_> = sample.balances.iter().map(|(token, holder, _)| (token.clone(), holder.clone())).collect();
    let answers = source.balances_of(&at, &pairs).await.context("--node")?;
    let answers = answers.ok_or_else(|| anyhow!("--node: it cannot tell balances"))?;
    let (mut differences, mut silent) = (0, 0);
    for ((token, holder, ours), answer) in sample.balances.iter().zip(answers) {
        match answer {
            Some(theirs) if Delta::plus(theirs) == *ours => {}
            Some(theirs) => {
                differences += 1;
                say(format!("{chain}: balance {holder} in {token} at {}: ours {ours}; the node {theirs}", at.height))?;
            }
            None => silent += 1,
        }
    }
    let verdict = match differences {
        0 => "no difference".to_owned(),
        1 => "1 difference".to_owned(),
        n => format!("{n} differences"),
    };
    let silent = if silent == 0 { String::new() } else { format!(" ({silent} of them gave no number)") };
    say(format!("Asked the node for {} balances at block {at}{silent}: {verdict}.", pairs.len()))?;
    if differences > 0 {
        say(
            "A token that rebases, or takes fees without a Transfer, differs by nature: its events do not tell its balances.",
        )?;
    }
    Ok(differences)
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
        None => format!("Chain {} stays where it is.", args.chain),
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn resume(settings: &Settings, args: &ResumeArgs) -> Result<ExitCode> {
    let store = migrated_store(settings, "ebbtide resume").await?;
    store.resume(&args.chain, args.projection.as_deref()).await.map_err(refused)?;
    say(format!("Chain {} goes on.", args.chain))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn psql(settings: &Settings, args: &[String]) -> Result<ExitCode> {
    let url = database_url(settings)?;
    let private = settings.database_url.is_none().then(|| private::running(&settings.private_dir, &Search::Installed));
    let program = match private.flatten() {
        Some(running) => running.bin_dir.join("psql"),
        None => "psql".into(),
    };
    let path = "-c search_path=ebbtide,public";
    let options = match std::env::var("PGOPTIONS") {
        Ok(theirs) => [&theirs, " ", path].concat(),
        Err(_) => path.to_owned(),
    };
    let error = std::process::Command::new(&program).env("PGOPTIONS", options).arg(url).args(args).exec();
    Err(anyhow!("{} cannot be started: {error}; install PostgreSQL's client programs", program.display()))
}
