//! What is followed and how far: `/chains`, `/status`, `/reorgs`.

use serde::Serialize;
use warp::{Filter, Rejection};

use super::cursor::Cursor;
use super::reply::{self, Answer, Failure};
use super::request::Query;
use super::{Context, exactly, query, reading};
use crate::chain::verdict::{ChainFacts, ChainVerdict, Rebuilding, State, Verdict, judge};
use crate::store::reads::{ChainStatus, NamedBlock, ReorgRow};

/// `/chains`, `/status`, `/reorgs`.
pub(super) fn routes(context: Context) -> impl Filter<Extract = (Answer,), Error = Rejection> + Clone {
    let context = warp::any().map(move || context.clone());
    // GET /chains[?chain=]: the chains and their settings.
    let chains = exactly("/chains")
        .and(reading())
        .and(context.clone())
        .and(query())
        .then(|context: Context, query: String| async move { answer(chains(&context, &query).await) });
    // GET /status[?chain=]: how far each projection is on each chain.
    let status = exactly("/status")
        .and(reading())
        .and(context.clone())
        .and(query())
        .then(|context: Context, query: String| async move { answer(status(&context, &query).await) });
    // GET /reorgs[?chain=]: reorganisations, newest first.
    let reorgs = exactly("/reorgs")
        .and(reading())
        .and(context)
        .and(query())
        .then(|context: Context, query: String| async move { answer(reorgs(&context, &query).await) });
    chains.or(status).unify().or(reorgs).unify()
}

fn answer(result: Result<Answer, Failure>) -> Answer {
    result.unwrap_or_else(Failure::into_answer)
}

/// A block by height and hash.
#[derive(Serialize)]
pub(super) struct BlockItem<'a> {
    height: i64,
    hash: &'a str,
}

impl<'a> BlockItem<'a> {
    pub(super) fn of(block: &'a NamedBlock) -> BlockItem<'a> {
        BlockItem { height: block.height, hash: &block.hash }
    }
}

/// The body of `/chains`.
#[derive(Serialize)]
struct Chains<'a> {
    chains: Vec<ChainItem<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ChainItem<'a> {
    name: &'a str,
    kind: &'a str,
    network_id: Option<&'a str>,
    start_height: Option<i64>,
    finality_depth: i64,
    head: Option<i64>,
    tip: Option<BlockItem<'a>>,
    #[serde(rename = "final")]
    final_height: Option<i64>,
    complete_to: Option<i64>,
}

impl<'a> ChainItem<'a> {
    fn of(chain: &'a ChainStatus) -> ChainItem<'a> {
        ChainItem {
            name: &chain.name,
            kind: &chain.kind,
            network_id: chain.network_id.as_deref(),
            start_height: chain.start_height,
            finality_depth: chain.finality_depth,
            head: chain.head_height,
            tip: chain.tip.as_ref().map(BlockItem::of),
            final_height: chain.final_height,
            complete_to: chain.complete_to,
        }
    }
}

/// The body of `/status`.
#[derive(Serialize)]
struct Statuses<'a> {
    chains: Vec<StatusItem<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StatusItem<'a> {
    chain: &'a str,
    kind: &'a str,
    network_id: Option<&'a str>,
    head: Option<i64>,
    tip: Option<BlockItem<'a>>,
    #[serde(rename = "final")]
    final_height: Option<i64>,
    #[serde(flatten)]
    verdict: VerdictItem<'a>,
    source: Option<VerdictItem<'a>>,
    projections: Vec<ProjectionItem<'a>>,
}

/// How something is, since when, why, and what to do.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VerdictItem<'a> {
    state: State,
    for_seconds: u64,
    reason: Option<&'a str>,
    remedy: Option<&'a str>,
}

impl<'a> VerdictItem<'a> {
    fn of(verdict: &'a Verdict) -> VerdictItem<'a> {
        VerdictItem {
            state: verdict.state,
            for_seconds: verdict.for_seconds as u64,
            reason: verdict.reason.as_deref(),
            remedy: verdict.remedy.as_deref(),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ProjectionItem<'a> {
    projection: &'a str,
    #[serde(flatten)]
    verdict: VerdictItem<'a>,
    block: Option<BlockItem<'a>>,
    through_height: Option<i64>,
    /// Blocks between what is applied and still stands, and the newest block known; none before the first one is applied.
    lag: Option<i64>,
    /// Age of the newest applied block, by its own time, while others wait.
    lag_seconds: f64,
    history_from: Option<i64>,
    redo_from: Option<i64>,
    paused: bool,
    pause_at: Option<i64>,
    halted: Option<&'a str>,
    failed: Option<&'a str>,
    rebuilding: Option<RebuildingItem<'a>>,
    updated_at: Option<jiff::Timestamp>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RebuildingItem<'a> {
    reason: &'a str,
    from_height: i64,
    at_height: i64,
    to_height: i64,
    started_at: jiff::Timestamp,
}

impl<'a> RebuildingItem<'a> {
    fn of(rebuilding: &'a Rebuilding) -> RebuildingItem<'a> {
        RebuildingItem {
            reason: &rebuilding.reason,
            from_height: rebuilding.from_height,
            at_height: rebuilding.at_height,
            to_height: rebuilding.to_height,
            started_at: rebuilding.started_at,
        }
    }
}

impl<'a> StatusItem<'a> {
    fn of(chain: &'a ChainStatus, facts: &'a ChainFacts, judged: &'a ChainVerdict) -> StatusItem<'a> {
        let projections = facts.projections.iter().zip(&judged.projections).map(|(facts, verdict)| {
            let block = facts.block.as_ref().map(|(height, hash)| BlockItem { height: *height, hash });
            ProjectionItem {
                projection: &facts.name,
                verdict: VerdictItem::of(&verdict.verdict),
                block,
                through_height: facts.through,
                lag: facts.through.map(|_| verdict.lag_blocks),
                lag_seconds: verdict.lag_seconds,
                history_from: facts.history_from,
                redo_from: facts.redo_from,
                paused: facts.paused,
                pause_at: facts.pause_at,
                halted: facts.halted_reason.as_deref(),
                failed: facts.failed_reason.as_deref(),
                rebuilding: facts.rebuilding.as_ref().map(RebuildingItem::of),
                updated_at: facts.updated_at,
            }
        });
        StatusItem {
            chain: &chain.name,
            kind: &chain.kind,
            network_id: chain.network_id.as_deref(),
            head: chain.head_height,
            tip: chain.tip.as_ref().map(BlockItem::of),
            final_height: chain.final_height,
            verdict: VerdictItem::of(&judged.verdict),
            source: judged.source.as_ref().map(VerdictItem::of),
            projections: projections.collect(),
        }
    }
}

/// The body of `/reorgs`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Reorgs<'a> {
    reorgs: Vec<ReorgItem<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ReorgItem<'a> {
    id: i64,
    chain: &'a str,
    projection: &'a str,
    ancestor: Option<i64>,
    depth: i64,
    old_tip: BlockItem<'a>,
    new_tip: Option<BlockItem<'a>>,
    blocks_undone: i64,
    blocks_applied: i64,
    rows_touched: i64,
    duration_ms: f64,
    at: jiff::Timestamp,
}

impl<'a> ReorgItem<'a> {
    fn of(row: &'a ReorgRow) -> ReorgItem<'a> {
        ReorgItem {
            id: row.id,
            chain: &row.chain,
            projection: &row.projection,
            ancestor: row.ancestor,
            depth: row.depth,
            old_tip: BlockItem::of(&row.old_tip),
            new_tip: row.new_tip.as_ref().map(BlockItem::of),
            blocks_undone: row.blocks_undone,
            blocks_applied: row.blocks_applied,
            rows_touched: row.rows_touched,
            duration_ms: row.duration_ms,
            at: row.at,
        }
    }
}

/// GET /chains.
async fn chains(context: &Context, query: &str) -> Result<Answer, Failure> {
    let query = Query::parse(query, &["chain"])?;
    let name = query.one("chain")?;
    let mut reader = context.store.read().await?;
    let snapshot = reader.snapshot(context.settings.read_timeout).await?;
    let chains = snapshot.chains(name).await?;
    known(name, &chains)?;

    Ok(reply::json(&Chains { chains: chains.iter().map(ChainItem::of).collect() }))
}

fn known(name: Option<&str>, chains: &[ChainStatus]) -> Result<(), Failure> {
    if chains.is_empty() && name.is_some() { Err(Failure::unknown_chain(name)) } else { Ok(()) }
}

/// GET /status.
async fn status(context: &Context, query: &str) -> Result<Answer, Failure> {
    let query = Query::parse(query, &["chain"])?;
    let name = query.one("chain")?;
    let mut reader = context.store.read().await?;
    let snapshot = reader.snapshot(context.settings.read_timeout).await?;
    let chains = snapshot.chains(name).await?;
    known(name, &chains)?;
    let facts = snapshot.facts(name).await?;

    let judged = judge(&facts);
    let all = chains.iter().filter_map(|chain| {
        let (facts, judged) = facts.chains.iter().zip(&judged).find(|(facts, _)| facts.name == chain.name)?;
        Some(StatusItem::of(chain, facts, judged))
    });
    Ok(reply::json(&Statuses { chains: all.collect() }))
}

/// GET /reorgs.
async fn reorgs(context: &Context, query: &str) -> Result<Answer, Failure> {
    let query = Query::parse(query, &["chain", "limit", "cursor"])?;
    let name = query.one("chain")?;
    let limit = query.limit()?;
    let before = match query.cursor()? {
        None => i64::MAX,
        Some(Cursor::Reorg(id)) => id,
        Some(_) => return Err(Failure::invalid_cursor()),
    };
    let mut reader = context.store.read().await?;
    let snapshot = reader.snapshot(context.settings.read_timeout).await?;
    if name.is_some() {
        known(name, &snapshot.chains(name).await?)?;
    }
    let mut rows = snapshot.reorgs(name, before, limit as i64 + 1).await?;
    let more = rows.len() > limit;
    rows.truncate(limit);

    let next_cursor = rows.last().filter(|_| more).map(|row| Cursor::Reorg(row.id).encode());
    Ok(reply::json(&Reorgs { reorgs: rows.iter().map(ReorgItem::of).collect(), next_cursor }))
}
