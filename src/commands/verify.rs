//! `ebbtide verify`: everything computed again, and compared.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use ebbtide::chain::Kind;
use ebbtide::chain::delta::Delta;
use ebbtide::config::{Settings, VerifyArgs};
use ebbtide::ops::plain;
use ebbtide::projections::{option_vaults, token_balances};
use ebbtide::sources::Source;
use ebbtide::sources::evm::{EvmSettings, EvmSource};
use ebbtide::store::Store;
use ebbtide::verify::{Findings, FuzzSettings};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{migrated_store, refused, say};

pub(super) async fn verify(settings: &Settings, args: &VerifyArgs) -> Result<ExitCode> {
    let store = migrated_store(settings, "ebbtide verify").await?;
    let (chain, name) = (args.chain.as_deref(), args.name.as_deref());
    if let (Some(name), Some(seed)) = (name, args.fuzz) {
        return fuzz(&store, args, name, seed).await;
    }
    // An unknown name is said before anything else.
    let others = store.verifiable(chain, name).await.map_err(refused)?;
    let mut differences = 0;
    if name.is_none_or(|name| name == token_balances::NAME) {
        differences += tell(&store.verify(chain, args.limit).await.map_err(refused)?)?;
    }
    for of in &others {
        let bar = progress(&format!("{} on {}", of.projection, of.chain));
        let findings = match of.projection.as_str() {
            option_vaults::NAME => {
                let show = |done, of| {
                    bar.set_length(of);
                    bar.set_position(done);
                };
                let audit = option_vaults::audit::audit(&store, &settings.vaults, of, args.limit, &show);
                audit.await.map_err(refused)?
            }
            _ if of.is_function => {
                let mut show = |at: ebbtide::verify::Progress<'_>| {
                    bar.set_length(at.blocks);
                    bar.set_position(at.done);
                };
                store.verify_tables(of, args.limit, &mut show).await.map_err(refused)?
            }
            _ => Findings {
                summary: format!(
                    "Not verified: {} on {}, which code outside this program applies.",
                    of.projection, of.chain
                ),
                ..Findings::default()
            },
        };
        bar.finish_and_clear();
        differences += tell(&findings)?;
    }
    if let (Some(name), true) = (name, others.is_empty())
        && name != token_balances::NAME
    {
        say(format!("Verified {name}: it has not begun on any chain."))?;
    }
    if let Some(url) = &args.node {
        differences += ask_node(&store, chain.unwrap_or("main"), url, args.sample).await?;
    }
    Ok(ExitCode::from(u8::from(differences > 0)))
}

/// Prints findings; how many differences there are.
fn tell(findings: &Findings) -> Result<u64> {
    for line in &findings.lines {
        // One line a finding, whatever a token is called.
        say(plain(line))?;
    }
    say(&findings.summary)?;
    Ok(findings.differences)
}

/// On stderr, where a person looks; nothing elsewhere.
fn progress(what: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len}, {per_sec}, {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style);
    bar.set_prefix(what.to_owned());
    bar.enable_steady_tick(Duration::from_secs(1));
    bar
}

async fn fuzz(store: &Store, args: &VerifyArgs, name: &str, seed: u64) -> Result<ExitCode> {
    let bar = progress(name);
    bar.set_length(u64::from(args.rounds));
    let settings =
        FuzzSettings { projection: name, chain: args.chain.as_deref(), seed, rounds: args.rounds, most: args.limit };
    let findings = store.fuzz(&settings, &mut |round| bar.set_position(round)).await.map_err(refused)?;
    bar.finish_and_clear();
    Ok(ExitCode::from(u8::from(tell(&findings)? > 0)))
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
