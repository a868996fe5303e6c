//! Balances and transfer history: the three routes of the balance interface.

mod now;

use serde::Serialize;
use warp::{Filter, Rejection};

use super::cursor::Cursor;
use super::moment::{self, State};
use super::reply::{self, AmountForm, AmountJson, Answer, Failure};
use super::request::{self, Query};
use super::{Context, exactly, query, reading};
use crate::chain::Kind;
use crate::projections::token_balances;
use crate::store::reads::{
    At, Balance, ChainNow, ChainState, HistoryPage, HistoryRequest, NamedBlock, Position, Snapshot, TokenRange,
    Transfer,
};

/// Rows fetched at once when negative balances left a page short.
const REFILL_ROWS: usize = 1000;
/// Statements for one page: as many rows as eight of the largest pages. One that is still short then ends where it is, with a cursor
/// to go on from, so that no request costs more because of what it does not show.
const MOST_TURNS: usize = 8;

/// `/tokens/balances`, `/tokens/transfer-history`, `/tokens/{tokenPath}/balances`.
pub(super) fn routes(context: Context) -> impl Filter<Extract = (Answer,), Error = Rejection> + Clone {
    let context = warp::any().map(move || context.clone());
    // GET /tokens/balances[?address=]: totals per token, or one account's balances.
    let balances = exactly("/tokens/balances")
        .and(reading())
        .and(context.clone())
        .and(query())
        .then(|context: Context, query: String| async move { answer(balances(&context, &query).await) });
    // GET /tokens/transfer-history[?address=]: events, newest first.
    let history = exactly("/tokens/transfer-history")
        .and(reading())
        .and(context.clone())
        .and(query())
        .then(|context: Context, query: String| async move { answer(history(&context, &query).await) });
    // GET /tokens/{tokenPath}/balances[?address=]: the accounts of one token.
    let holders = token_path().and(reading()).and(context).and(query()).then(
        |path: String, context: Context, query: String| async move { answer(holders(&context, &path, &query).await) },
    );
    balances.or(history).unify().or(holders).unify()
}

fn token_path() -> impl Filter<Extract = (String,), Error = Rejection> + Clone {
    warp::path::full().and_then(|path: warp::path::FullPath| async move {
        request::token_path(path.as_str()).map(str::to_owned).ok_or_else(warp::reject::not_found)
    })
}

fn answer(result: Result<Answer, Failure>) -> Answer {
    result.unwrap_or_else(Failure::into_answer)
}

/// The body of `/tokens/balances`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Balances<'a> {
    balances: Vec<TokenAmount<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TokenAmount<'a> {
    token_path: &'a str,
    amount: AmountJson<'a>,
}

impl<'a> TokenAmount<'a> {
    pub(super) fn of(row: &'a Balance, form: AmountForm) -> TokenAmount<'a> {
        TokenAmount { token_path: &row.token, amount: AmountJson(&row.amount, form) }
    }
}

/// The body of `/tokens/{tokenPath}/balances`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AccountBalances<'a> {
    account_balances: Vec<AccountAmount<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AccountAmount<'a> {
    address: &'a str,
    token_path: &'a str,
    amount: AmountJson<'a>,
}

impl<'a> AccountAmount<'a> {
    fn of(row: &'a Balance, form: AmountForm) -> AccountAmount<'a> {
        AccountAmount { address: &row.address, token_path: &row.token, amount: AmountJson(&row.amount, form) }
    }
}

/// The body of `/tokens/transfer-history`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Transfers<'a> {
    transfers: Vec<TransferItem<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TransferItem<'a> {
    from_address: &'a str,
    to_address: &'a str,
    token_path: &'a str,
    amount: AmountJson<'a>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    detail: Option<TransferDetail<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TransferDetail<'a> {
    id: String,
    kind: &'a str,
    block_height: i64,
    tx_hash: Option<&'a str>,
    tx_index: i64,
    event_index: i64,
    time: Option<jiff::Timestamp>,
}

impl<'a> TransferItem<'a> {
    fn of(transfer: &'a Transfer, chain: &ChainState, detail: bool, form: AmountForm) -> TransferItem<'a> {
        let Position { height, tx_index, event_index } = transfer.position;
        let described = || TransferDetail {
            id: format!("{}:{height}:{tx_index}:{event_index}", chain.name),
            kind: &transfer.kind,
            block_height: height,
            tx_hash: transfer.tx_hash.as_deref(),
            tx_index,
            event_index,
            time: transfer.time,
        };
        TransferItem {
            from_address: transfer.from.as_deref().unwrap_or_default(),
            to_address: transfer.to.as_deref().unwrap_or_default(),
            token_path: &transfer.token,
            amount: AmountJson(&transfer.amount, form),
            detail: detail.then(described),
        }
    }
}

/// The parameters of lists of balances.
const OF_BALANCES: &[&str] = &["chain", "at", "address", "limit", "cursor", "amounts", "zero"];
/// The parameters of the history.
const OF_HISTORY: &[&str] = &["chain", "at", "address", "limit", "cursor", "amounts", "kind", "detail"];

/// What the balance routes have in common, read before the database is asked.
struct Common<'a> {
    chain: Option<&'a str>,
    at: At,
    address: Option<&'a str>,
    limit: usize,
    cursor: Option<Cursor>,
    amounts: Option<AmountForm>,
}

impl<'a> Common<'a> {
    fn read(query: &'a Query) -> Result<Common<'a>, Failure> {
        Ok(Common {
            chain: query.one("chain")?,
            at: query.at()?,
            address: query.perhaps_empty("address")?,
            limit: query.limit()?,
            cursor: query.cursor()?,
            amounts: query.amounts()?,
        })
    }

    /// Numbers to the letter of the contract on gno; text elsewhere, where amounts pass 2^53 every day.
    fn form(&self, kind: Kind) -> AmountForm {
        self.amounts.unwrap_or(if kind == Kind::Gno { AmountForm::Number } else { AmountForm::Text })
    }

    async fn open(&self, snapshot: &Snapshot<'_>) -> Result<(ChainState, State), Failure> {
        let chain = moment::chain(snapshot, self.chain, token_balances::NAME).await?;
        let state = State::of(snapshot, &chain, &self.at).await?;
        Ok((chain, state))
    }
}

/// A page of balances being filled: zero balances and, by setting, negative ones stay out of it.
#[derive(Clone)]
pub(super) struct Page {
    limit: usize,
    zero: bool,
    shows_negative: bool,
    pub(super) rows: Vec<Balance>,
    negatives: usize,
    /// Negative ones after the last row shown: they belong to the next page, if there is one.
    trailing_negatives: usize,
    /// Statements whose rows were taken.
    turns: usize,
    more: bool,
    /// The last row taken, where it ends although it is short.
    stopped_at: Option<Balance>,
}

impl Page {
    pub(super) fn new(limit: usize, zero: bool, shows_negative: bool) -> Page {
        Page {
            limit,
            zero,
            shows_negative,
            rows: Vec::new(),
            negatives: 0,
            trailing_negatives: 0,
            turns: 0,
            more: false,
            stopped_at: None,
        }
    }

    /// Rows to ask for: one more than the page holds tells whether there are more.
    fn wanted(&self) -> usize {
        if self.turns == 0 { self.limit + 1 } else { self.limit.max(REFILL_ROWS) + 1 }
    }

    /// Takes the rows that it wanted, in order; returns whether there are more and it wants them.
    fn take(&mut self, rows: Vec<Balance>) -> bool {
        let are_the_last = rows.len() < self.wanted();
        let last = rows.last().cloned();
        self.turns += 1;
        for mut row in rows {
            let negative = row.amount.starts_with('-');
            if negative && !self.shows_negative {
                row.amount = "0".to_owned();
            }
            let shown = self.zero || row.amount != "0";
            if shown && self.rows.len() == self.limit {
                self.more = true;
                return false;
            }
            self.trailing_negatives += usize::from(negative);
            if shown {
                self.negatives += std::mem::take(&mut self.trailing_negatives);
                self.rows.push(row);
            }
        }
        if !are_the_last && self.turns == MOST_TURNS {
            self.negatives += std::mem::take(&mut self.trailing_negatives);
            (self.more, self.stopped_at) = (true, last);
        }
        !are_the_last && !self.more
    }

    /// The row after which the next page begins. None means that there is none.
    pub(super) fn ends_after(&self) -> Option<&Balance> {
        self.stopped_at.as_ref().or(self.rows.last()).filter(|_| self.more)
    }

    pub(super) fn negatives(&self) -> usize {
        if self.more { self.negatives } else { self.negatives + self.trailing_negatives }
    }
}

/// GET /tokens/balances.
async fn balances(context: &Context, query: &str) -> Result<Answer, Failure> {
    let query = Query::parse(query, OF_BALANCES)?;
    let common = Common::read(&query)?;
    let page = Page::new(common.limit, query.flag("zero")?, context.settings.shows_negative);
    if common.at == At::Now
        && let Some(answer) = now::by_token(context, &common, page.clone()).await?
    {
        return Ok(answer);
    }
    let mut page = page;
    let mut reader = context.store.walk().await?;
    let snapshot = reader.snapshot(context.settings.read_timeout).await?;
    let (chain, state) = common.open(&snapshot).await?;
    state.has_balances(&chain)?;
    let address = request::given_address(chain.kind, common.address)?;
    let tokens = match &common.cursor {
        None => TokenRange::all(),
        Some(Cursor::Token(id, token)) if *id == chain.chain_id => TokenRange::all().after(token),
        Some(_) => return Err(Failure::invalid_cursor()),
    };
    fill_by_token(&snapshot, &chain, tokens, address.as_deref(), &state, &mut page).await?;

    Ok(balances_body(&page, &chain, &state, common.form(chain.kind)))
}

fn balances_body(page: &Page, chain: &ChainNow, state: &State, form: AmountForm) -> Answer {
    let balances = page.rows.iter().map(|row| TokenAmount::of(row, form)).collect();
    let next_cursor = page.ends_after().map(|row| Cursor::Token(chain.chain_id, row.token.clone()).encode());
    let mut answer = reply::json(&Balances { balances, next_cursor });
    state.name(&mut answer, chain);
    reply::count_negatives(&mut answer, page.negatives());
    answer
}

/// One row per token: what an account holds in each, or the totals.
pub(super) async fn fill_by_token(
    snapshot: &Snapshot<'_>,
    chain: &ChainState,
    mut tokens: TokenRange,
    address: Option<&str>,
    state: &State,
    page: &mut Page,
) -> Result<(), Failure> {
    loop {
        let (height, zero, limit) = (state.height, page.zero, page.wanted() as i64);
        let rows = match address {
            Some(address) => snapshot.balances_of_account(chain, &tokens, address, height, zero, limit).await?,
            None => snapshot.totals(chain, &tokens, height, zero, limit).await?,
        };
        let rows = rows.ok_or_else(|| Failure::history_pruned(chain.history_from))?;
        if let Some(last) = rows.last() {
            tokens = tokens.after(&last.token);
        }
        if !page.take(rows) {
            return Ok(());
        }
    }
}

/// GET /tokens/{tokenPath}/balances.
async fn holders(context: &Context, path: &str, query: &str) -> Result<Answer, Failure> {
    let path = request::percent_decode(path).ok_or_else(invalid_token)?;
    let query = Query::parse(query, OF_BALANCES)?;
    let common = Common::read(&query)?;
    let page = Page::new(common.limit, query.flag("zero")?, context.settings.shows_negative);
    if common.at == At::Now
        && let Some(answer) = now::balances_of_token(context, &path, &common, page.clone()).await?
    {
        return Ok(answer);
    }
    let mut page = page;
    let mut reader = context.store.walk().await?;
    let snapshot = reader.snapshot(context.settings.read_timeout).await?;
    let (chain, state) = common.open(&snapshot).await?;
    state.has_balances(&chain)?;
    let token = request::canonical(chain.kind, &path);
    if !chain.kind.is_token(&token) {
        return Err(invalid_token());
    }
    let address = request::given_address(chain.kind, common.address)?;
    let mut tokens = tokens_named(&snapshot, &chain, &token).await?;
    let mut after = String::new();
    match &common.cursor {
        None => {}
        Some(Cursor::Account(id, token, address)) if *id == chain.chain_id && in_range(&tokens, token) => {
            tokens.low.clone_from(token);
            after.clone_from(address);
        }
        Some(_) => return Err(Failure::invalid_cursor()),
    }
    match address {
        Some(address) => {
            if !after.is_empty() {
                tokens = tokens.clone().after(&tokens.low);
            }
            fill_by_token(&snapshot, &chain, tokens, Some(&address), &state, &mut page).await?;
        }
        None => loop {
            let (height, zero, limit) = (state.height, page.zero, page.wanted() as i64);
            let rows = snapshot.balances_of_token(&chain, &tokens, &after, height, zero, limit).await?;
            let rows = rows.ok_or_else(|| Failure::history_pruned(chain.history_from))?;
            if let Some(last) = rows.last() {
                tokens.low.clone_from(&last.token);
                after.clone_from(&last.address);
            }
            if !page.take(rows) {
                break;
            }
        },
    }

    Ok(account_balances_body(&page, &chain, &state, common.form(chain.kind)))
}

fn account_balances_body(page: &Page, chain: &ChainNow, state: &State, form: AmountForm) -> Answer {
    let account_balances = page.rows.iter().map(|row| AccountAmount::of(row, form)).collect();
    let after_last = |row: &Balance| Cursor::Account(chain.chain_id, row.token.clone(), row.address.clone()).encode();
    let next_cursor = page.ends_after().map(after_last);
    let mut answer = reply::json(&AccountBalances { account_balances, next_cursor });
    state.name(&mut answer, chain);
    reply::count_negatives(&mut answer, page.negatives());
    answer
}

fn invalid_token() -> Failure {
    Failure::bad_request("invalid_token_path", "the path between /tokens/ and /balances is not a token of this chain")
}

/// Which tokens a path names: exactly a known token; else, on gno, all of that realm and symbol, or of that realm.
async fn tokens_named(snapshot: &Snapshot<'_>, chain: &ChainState, path: &str) -> Result<TokenRange, Failure> {
    if !may_name_several(chain.kind, path) || snapshot.token_is_known(chain, path).await? {
        return Ok(TokenRange::exactly(path));
    }
    Ok(TokenRange::beginning_with(&format!("{path}.")))
}

/// Whether a path that is no token may be a realm, or a realm and a symbol, which several tokens share.
fn may_name_several(kind: Kind, path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    kind == Kind::Gno && name.matches('.').count() < 2
}

fn in_range(tokens: &TokenRange, token: &str) -> bool {
    tokens.low.as_str() <= token && tokens.high.as_deref().is_none_or(|high| token < high)
}

/// GET /tokens/transfer-history.
async fn history(context: &Context, query: &str) -> Result<Answer, Failure> {
    let query = Query::parse(query, OF_HISTORY)?;
    let common = Common::read(&query)?;
    let kinds = query.kinds()?;
    let detail = query.flag("detail")?;
    let mut reader = context.store.walk().await?;
    let snapshot = reader.snapshot(context.settings.read_timeout).await?;
    let (chain, state) = common.open(&snapshot).await?;
    let address = request::given_address(chain.kind, common.address)?;
    let before = match &common.cursor {
        None => Position::start_of(i64::MAX),
        Some(Cursor::Event(id, height, tx_index, event_index, hash)) if *id == chain.chain_id => {
            if let Some(hash) = hash {
                let block = NamedBlock { height: *height, hash: hash.clone() };
                if !snapshot.block_is_in_chain(&chain, &block).await? {
                    return Err(Failure::cursor_stale());
                }
            }
            Position { height: *height, tx_index: *tx_index, event_index: *event_index }
        }
        Some(Cursor::Pruned(id, from)) if *id == chain.chain_id => return Err(Failure::history_pruned(*from)),
        Some(_) => return Err(Failure::invalid_cursor()),
    };
    if address.is_some() {
        // The blocks of an account are found by its balance changes: where those were pruned nobody can say.
        state.has_balances(&chain)?;
    }
    let request = HistoryRequest {
        address: address.as_deref(),
        kinds: &kinds,
        with_tx_hash: detail,
        before,
        limit: common.limit,
    };
    let page = snapshot.history(&chain, state.height, &request).await?;
    let mut answer = history_body(&page, &chain, detail, common.form(chain.kind));
    state.name(&mut answer, &chain);
    Ok(answer)
}

fn history_body(page: &HistoryPage, chain: &ChainState, detail: bool, form: AmountForm) -> Answer {
    let transfers = page.transfers.iter().map(|transfer| TransferItem::of(transfer, chain, detail, form)).collect();
    let next = match &page.next {
        Some((position, hash)) => Some(Cursor::event(chain.chain_id, *position, hash.clone())),
        // Going on from here is answered with 410: silence would look like the end of the history.
        None => page.pruned.then_some(Cursor::Pruned(chain.chain_id, chain.history_from)),
    };
    reply::json(&Transfers { transfers, next_cursor: next.map(|cursor| cursor.encode()) })
}
