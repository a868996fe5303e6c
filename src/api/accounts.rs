//! `/accounts/{address}`: what one account has on a chain, whichever projection knows.

use futures::try_join;
use serde::Serialize;
use warp::{Filter, Rejection};

use super::chains::BlockItem;
use super::cursor::{Cursor, VaultList};
use super::lists::{List, Paging};
use super::moment::{self, State};
use super::reply::{self, AmountForm, Answer, Failure};
use super::request::{self, Query};
use super::tokens::{Page, TokenAmount, fill_by_token};
use super::vaults::items::{BidItem, BuyerItem, ProviderItem};
use super::vaults::key;
use super::{Context, query, reading};
use crate::projections::{option_vaults, token_balances};
use crate::store::StoreError;
use crate::store::reads::{At, Balance, TokenRange};

/// `/accounts/{address}`.
pub(super) fn routes(context: Context) -> impl Filter<Extract = (Answer,), Error = Rejection> + Clone {
    let context = warp::any().map(move || context.clone());
    // GET /accounts/{address}[?at=]: its token balances, what it has in vaults, its options and bids.
    address().and(reading()).and(context).and(query()).then(
        |address: String, context: Context, query: String| async move {
            account(&context, &address, &query).await.unwrap_or_else(Failure::into_answer)
        },
    )
}

/// The address of the path, still escaped.
fn address() -> impl Filter<Extract = (String,), Error = Rejection> + Clone {
    warp::path::full().and_then(|path: warp::path::FullPath| async move {
        let address = path.as_str().strip_prefix("/accounts/");
        address
            .filter(|address| !address.is_empty() && !address.contains('/'))
            .map(str::to_owned)
            .ok_or_else(warp::reject::not_found)
    })
}

/// The body: lists that have no history are left out of answers about the past, and where a cursor is given all lists
/// but its own.
#[derive(Serialize)]
struct Account<'a> {
    address: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    balances: Option<Section<'a, TokenAmount<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vaults: Option<Section<'a, ProviderItem<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    options: Option<Section<'a, BuyerItem<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bids: Option<Section<'a, BidItem<'a>>>,
}

/// A list with the block it is true at.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Section<'a, T> {
    block: Option<BlockItem<'a>>,
    /// Applied up to here, where that is above the block.
    #[serde(skip_serializing_if = "Option::is_none")]
    through_height: Option<i64>,
    #[serde(flatten)]
    list: List<T>,
}

impl<'a, T> Section<'a, T> {
    fn of(state: &'a State, list: List<T>) -> Section<'a, T> {
        let block = state.block.as_ref();
        let through_height = state.through_height.filter(|through| block.is_none_or(|b| b.height != *through));
        Section { block: block.map(BlockItem::of), through_height, list }
    }
}

/// What is read, if the answer wants it.
async fn asked<T>(wanted: bool, read: impl Future<Output = Result<T, StoreError>>) -> Result<Option<T>, Failure> {
    Ok(if wanted { Some(read.await?) } else { None })
}

/// GET /accounts/{address}.
async fn account(context: &Context, address: &str, query: &str) -> Result<Answer, Failure> {
    use VaultList::{AccountBids, AccountOptions, AccountVaults};
    let invalid_address = || Failure::bad_request("invalid_address", "the address in the path is not text");
    let address = request::percent_decode(address).ok_or_else(invalid_address)?;
    let query = Query::parse(query, &["chain", "at", "limit", "cursor", "zero"])?;
    let (name, at, limit, cursor) = (query.one("chain")?, query.at()?, query.limit()?, query.cursor()?);
    let mut page = Page::new(limit, query.flag("zero")?, context.settings.shows_negative);
    let mut reader = context.store.walk().await?;
    let snapshot = reader.snapshot(context.settings.read_timeout).await?;
    // What does not depend on each other is sent together: one round trip for all.
    let (chain, vaults) = try_join!(
        moment::chain(&snapshot, name, token_balances::NAME),
        moment::chain(&snapshot, name, option_vaults::NAME)
    )?;
    let address = request::address(chain.kind, &address)?;

    // The cursor of balances is the one of /tokens/balances: it is the same list.
    let (tokens, paged) = match &cursor {
        None => (Some(TokenRange::all()), None),
        Some(Cursor::Token(id, token)) if *id == chain.chain_id => (Some(TokenRange::all().after(token)), None),
        Some(other) => (None, Some(other)),
    };
    let lists: &[VaultList] = match (&cursor, &at) {
        (Some(Cursor::Token(..)), _) => &[],
        (_, At::Now) => &[AccountVaults, AccountOptions, AccountBids],
        // Entitlements and bids have no history.
        _ => &[AccountVaults],
    };
    let paging = Paging::new(lists, chain.chain_id, &address, paged, limit)?;

    // A chain without the projection has nothing of it at any block.
    let vaults_at = if vaults.through_height.is_none() || lists.is_empty() { &At::Now } else { &at };
    let balances_at = match tokens {
        Some(_) => Some(State::of(&snapshot, &chain, &at).await?),
        None => None,
    };
    if let Some(state) = &balances_at {
        state.has_balances(&chain)?;
    }
    let state = State::of(&snapshot, &vaults, vaults_at).await?;
    let (after, wanted) = (paging.after(), paging.wanted());
    let balances = async {
        match tokens.zip(balances_at.as_ref()) {
            Some((tokens, at)) => fill_by_token(&snapshot, &chain, tokens, Some(&address), at, &mut page).await,
            None => Ok(()),
        }
    };
    let provided = snapshot.vaults_of_account(&vaults, state.height, &address, after.0, wanted);
    let options = snapshot.options_of_account(&vaults, &address, after.0, wanted);
    let bids = snapshot.bids_of_account(&vaults, &address, after, wanted);
    let ((), provided, options, bids) = try_join!(
        balances,
        asked(paging.wants(AccountVaults), provided),
        asked(paging.wants(AccountOptions), options),
        asked(paging.wants(AccountBids), bids)
    )?;

    let amounts = page.rows.iter().map(|row| TokenAmount::of(row, AmountForm::Text)).collect();
    let after_last = |row: &Balance| Cursor::Token(chain.chain_id, row.token.clone()).encode();
    let tokens = List { items: amounts, next_cursor: page.ends_after().map(after_last) };
    let provided = provided
        .as_ref()
        .map(|rows| paging.page(AccountVaults, rows, ProviderItem::of, |provider| key(&provider.row.vault_address)));
    let options = options
        .as_ref()
        .map(|rows| paging.page(AccountOptions, rows, BuyerItem::of, |buyer| key(&buyer.round_address)));
    let bids = bids.as_ref().map(|rows| {
        paging.page(AccountBids, rows, BidItem::of, |bid| (bid.round_address.to_string(), bid.bid_id.to_string()))
    });
    let body = Account {
        address: &address,
        balances: balances_at.as_ref().map(|state| Section::of(state, tokens)),
        vaults: provided.map(|list| Section::of(&state, list)),
        options: options.map(|list| Section::of(&state, list)),
        bids: bids.map(|list| Section::of(&state, list)),
    };
    let mut answer = reply::json(&body);
    // Each list names its own block: two projections need not stand at one.
    reply::name_block(&mut answer, &chain, None, None);
    reply::count_negatives(&mut answer, page.negatives());
    Ok(answer)
}
