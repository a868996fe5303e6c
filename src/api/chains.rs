//! What is followed and how far: `/chains`, `/status`, `/reorgs`.

use serde::Serialize;
use warp::{Filter, Rejection};

use super::cursor::Cursor;
use super::reply::{self, Answer, Failure};
use super::request::Query;
use super::{Context, exactly, query, reading};
use crate::store::reads::{ChainStatus, NamedBlock, ProjectionStatus, ReorgRow};

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
    projections: Vec<ProjectionItem<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ProjectionItem<'a> {
    projection: &'a str,
    block: Option<BlockItem<'a>>,
    through_height: Option<i64>,
    /// Blocks between here and the newest block known; none before the first one is applied.
    lag: Option<i64>,
    history_from: Option<i64>,
    redo_from: Option<i64>,
    paused: bool,
    pause_at: Option<i64>,
    halted: Option<&'a str>,
    updated_at: jiff::Timestamp,
}

impl<'a> StatusItem<'a> {
    fn of(chain: &'a ChainStatus, projections: impl Iterator<Item = &'a ProjectionStatus>) -> StatusItem<'a> {
        let newest = chain.head_height.max(chain.tip.as_ref().map(|tip| tip.height)).max(chain.complete_to);
        let projections = projections.map(|row| ProjectionItem {
            projection: &row.projection,
            block: row.block.as_ref().map(BlockItem::of),
            through_height: row.through_height,
            lag: newest.zip(row.through_height).map(|(newest, through)| newest.saturating_sub(through).max(0)),
            history_from: row.history_from,
            redo_from: row.redo_from,
            paused: row.paused,
            pause_at: row.pause_at,
            halted: row.halted_reason.as_deref(),
            updated_at: row.updated_at,
        });
        StatusItem {
            chain: &chain.name,
            kind: &chain.kind,
            network_id: chain.network_id.as_deref(),
            head: chain.head_height,
            tip: chain.tip.as_ref().map(BlockItem::of),
            final_height: chain.final_height,
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
    let query = Query::parse(query)?;
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
    let query = Query::parse(query)?;
    let name = query.one("chain")?;
    let mut reader = context.store.read().await?;
    let snapshot = reader.snapshot(context.settings.read_timeout).await?;
    let chains = snapshot.chains(name).await?;
    known(name, &chains)?;
    let projections = snapshot.projections(name).await?;

    let chains = chains.iter().map(|chain| {
        let here = projections.iter().filter(|row| row.chain == chain.name);
        StatusItem::of(chain, here)
    });
    Ok(reply::json(&Statuses { chains: chains.collect() }))
}

/// GET /reorgs.
async fn reorgs(context: &Context, query: &str) -> Result<Answer, Failure> {
    let query = Query::parse(query)?;
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
