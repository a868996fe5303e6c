//! Option vaults: `/vaults…` and `/rounds/{address}`.

pub(super) mod items;

use serde::Serialize;
use warp::{Filter, Rejection};

use super::cursor::{Cursor, VaultList};
use super::lists::{List, Paging};
use super::moment::{self, State};
use super::reply::{self, Answer, Failure};
use super::request::{self, Query};
use super::{Context, query, reading};
use crate::chain::Text;
use crate::chain::felt::Felt;
use crate::projections::option_vaults;
use crate::projections::option_vaults::reads::Standing;
use crate::projections::option_vaults::rows::VaultRow;
use crate::store::reads::{At, ChainState, Snapshot};
use items::{BidItem, BuyerItem, ProviderItem, QueuedItem, RoundItem, VaultItem};

/// `/vaults`, `/vaults/{address}`, `/vaults/{address}/liquidity-providers[/{provider}]`, `/rounds/{address}`.
pub(super) fn routes(context: Context) -> impl Filter<Extract = (Answer,), Error = Rejection> + Clone {
    let context = warp::any().map(move || context.clone());
    place().and(reading()).and(context).and(query()).then(|place: Place, context: Context, query: String| async move {
        reply_at(&place, &context, &query).await.unwrap_or_else(Failure::into_answer)
    })
}

/// What a path names, still escaped.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// GET /vaults[?at=]: the vaults of a chain.
    Vaults,
    /// GET /vaults/{address}[?at=]: a vault and its rounds.
    Vault(String),
    /// GET /vaults/{address}/liquidity-providers[?at=]: who provides.
    Providers(String),
    /// GET /vaults/{address}/liquidity-providers/{provider}[?at=]: one of them.
    Provider(String, String),
    /// GET /rounds/{address}: a round with its bids, buyers and queue.
    Round(String),
}

impl Place {
    fn of(path: &str) -> Option<Place> {
        let parts: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
        if parts.iter().any(|part| part.is_empty()) {
            return None;
        }
        Some(match parts[..] {
            ["vaults"] => Place::Vaults,
            ["vaults", vault] => Place::Vault(vault.to_owned()),
            ["vaults", vault, "liquidity-providers"] => Place::Providers(vault.to_owned()),
            ["vaults", vault, "liquidity-providers", provider] => {
                Place::Provider(vault.to_owned(), provider.to_owned())
            }
            ["rounds", round] => Place::Round(round.to_owned()),
            _ => return None,
        })
    }

    /// The parameters of its route. Rounds are kept as they are now.
    fn takes(&self) -> &'static [&'static str] {
        match self {
            Place::Vaults | Place::Vault(_) | Place::Providers(_) => &["chain", "at", "limit", "cursor"],
            Place::Provider(..) => &["chain", "at"],
            Place::Round(_) => &["chain", "limit", "cursor"],
        }
    }
}

fn place() -> impl Filter<Extract = (Place,), Error = Rejection> + Clone {
    warp::path::full().and_then(|path: warp::path::FullPath| async move {
        Place::of(path.as_str()).ok_or_else(warp::reject::not_found)
    })
}

async fn reply_at(place: &Place, context: &Context, query: &str) -> Result<Answer, Failure> {
    let query = Query::parse(query, place.takes())?;
    let asked = Asked::read(&query)?;
    let mut reader = context.store.read().await?;
    let snapshot = reader.snapshot(context.settings.read_timeout).await?;
    let chain = moment::chain(&snapshot, asked.chain, option_vaults::NAME).await?;
    let request = Request { snapshot, chain, asked };
    match place {
        Place::Vaults => request.vaults().await,
        Place::Vault(vault) => request.vault(&felt(vault)?).await,
        Place::Providers(vault) => request.providers(&felt(vault)?).await,
        Place::Provider(vault, provider) => request.provider(&felt(vault)?, &felt(provider)?).await,
        Place::Round(round) => request.round(&felt(round)?).await,
    }
}

/// An address of a path, in any spelling of a felt, as its one text.
fn felt(escaped: &str) -> Result<Text, Failure> {
    let invalid = |why: &str| Failure::bad_request("invalid_address", format!("the address in the path is {why}"));
    let text = request::percent_decode(escaped).ok_or_else(|| invalid("not text"))?;
    Felt::parse(&text).map(Felt::text).map_err(|fault| invalid(&fault.to_string()))
}

/// What the routes have in common, read before the database is asked.
struct Asked<'a> {
    chain: Option<&'a str>,
    at: At,
    limit: usize,
    cursor: Option<Cursor>,
}

impl<'a> Asked<'a> {
    fn read(query: &'a Query) -> Result<Asked<'a>, Failure> {
        Ok(Asked { chain: query.one("chain")?, at: query.at()?, limit: query.limit()?, cursor: query.cursor()? })
    }
}

/// The body of `/vaults`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Vaults<'a> {
    vaults: Vec<VaultItem<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// The body of `/vaults/{address}`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Vault<'a> {
    vault: VaultItem<'a>,
    /// Rounds have no history: left out of answers about the past.
    #[serde(skip_serializing_if = "Option::is_none")]
    rounds: Option<Vec<RoundItem<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// The body of `/vaults/{address}/liquidity-providers`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Providers<'a> {
    liquidity_providers: Vec<ProviderItem<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// The body of `/vaults/{address}/liquidity-providers/{provider}`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Provider<'a> {
    liquidity_provider: ProviderItem<'a>,
}

/// The body of `/rounds/{address}`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Round<'a> {
    round: RoundItem<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bids: Option<List<BidItem<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    buyers: Option<List<BuyerItem<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<List<QueuedItem<'a>>>,
}

/// A request with the snapshot it is answered from.
struct Request<'a> {
    snapshot: Snapshot<'a>,
    chain: ChainState,
    asked: Asked<'a>,
}

impl Request<'_> {
    fn is_now(&self) -> bool {
        self.asked.at == At::Now
    }

    async fn state(&self) -> Result<State, Failure> {
        State::of(&self.snapshot, &self.chain, &self.asked.at).await
    }

    fn paging<'b>(&'b self, lists: &'b [VaultList], of: &'b str) -> Result<Paging<'b>, Failure> {
        Paging::new(lists, self.chain.chain_id, of, self.asked.cursor.as_ref(), self.asked.limit)
    }

    fn answer(&self, body: &impl Serialize, state: &State) -> Answer {
        let mut answer = reply::json(body);
        state.name(&mut answer, &self.chain);
        answer
    }

    async fn vaults(&self) -> Result<Answer, Failure> {
        let paging = self.paging(&[VaultList::Vaults], "")?;
        let state = self.state().await?;
        let rows = self.snapshot.vaults(&self.chain, state.height, paging.after().0, paging.wanted()).await?;
        let item = if self.is_now() { VaultItem::now } else { VaultItem::then };
        let page = paging.page(VaultList::Vaults, &rows, item, |vault| key(&vault.row.address));
        Ok(self.answer(&Vaults { vaults: page.items, next_cursor: page.next_cursor }, &state))
    }

    /// The vault, and the state it is read from. A chain without the projection knows no vault, whatever the block.
    async fn known(&self, vault: &str) -> Result<(Standing<VaultRow>, State), Failure> {
        let unknown = || {
            let error = "no vault of this address at this block; vault_registry says which are followed";
            Failure::unknown("unknown_vault", error)
        };
        if self.chain.through_height.is_none() {
            return Err(unknown());
        }
        let state = self.state().await?;
        let found = self.snapshot.vault(&self.chain, state.height, vault).await?;
        Ok((found.ok_or_else(unknown)?, state))
    }

    async fn vault(&self, address: &str) -> Result<Answer, Failure> {
        let lists: &[VaultList] = if self.is_now() { &[VaultList::Rounds] } else { &[] };
        let paging = self.paging(lists, address)?;
        let after = match paging.after().0 {
            "" => None,
            number => Some(number.parse().map_err(|_| Failure::invalid_cursor())?),
        };
        let (vault, state) = self.known(address).await?;
        if !self.is_now() {
            let body = Vault { vault: VaultItem::then(&vault), rounds: None, next_cursor: None };
            return Ok(self.answer(&body, &state));
        }
        let rows = self.snapshot.rounds(&self.chain, address, after, paging.wanted()).await?;
        let page = paging.page(VaultList::Rounds, &rows, RoundItem::of, |round| key(&round.row.round_id.to_string()));
        let body = Vault { vault: VaultItem::now(&vault), rounds: Some(page.items), next_cursor: page.next_cursor };
        Ok(self.answer(&body, &state))
    }

    async fn providers(&self, vault: &str) -> Result<Answer, Failure> {
        let paging = self.paging(&[VaultList::Providers], vault)?;
        let (_, state) = self.known(vault).await?;
        let after = paging.after().0;
        let rows = self.snapshot.providers(&self.chain, state.height, vault, after, paging.wanted()).await?;
        let page = paging.page(VaultList::Providers, &rows, ProviderItem::of, |row| key(&row.row.address));
        let body = Providers { liquidity_providers: page.items, next_cursor: page.next_cursor };
        Ok(self.answer(&body, &state))
    }

    async fn provider(&self, vault: &str, address: &str) -> Result<Answer, Failure> {
        let (_, state) = self.known(vault).await?;
        let found = self.snapshot.provider(&self.chain, state.height, vault, address).await?;
        let error = "this account has provided nothing to the vault up to this block";
        let row = found.ok_or_else(|| Failure::unknown("unknown_liquidity_provider", error))?;
        Ok(self.answer(&Provider { liquidity_provider: ProviderItem::of(&row) }, &state))
    }

    async fn round(&self, address: &str) -> Result<Answer, Failure> {
        use VaultList::{Bids, Buyers, Queue};
        let paging = self.paging(&[Bids, Buyers, Queue], address)?;
        let Request { snapshot, chain, .. } = self;
        let state = self.state().await?;
        let round = snapshot.round(chain, address).await?;
        let round = round.ok_or_else(|| Failure::unknown("unknown_round", "no round of this address"))?;
        let (after, wanted) = (paging.after().0, paging.wanted());
        let (mut bids, mut buyers, mut queue) = (None, None, None);
        if paging.wants(Bids) {
            bids = Some(snapshot.bids(chain, address, after, wanted).await?);
        }
        if paging.wants(Buyers) {
            buyers = Some(snapshot.buyers(chain, address, after, wanted).await?);
        }
        if paging.wants(Queue) {
            queue = Some(snapshot.queue(chain, address, after, wanted).await?);
        }
        let body = Round {
            round: RoundItem::of(&round),
            bids: bids.as_ref().map(|rows| paging.page(Bids, rows, BidItem::of, |row| key(&row.bid_id))),
            buyers: buyers.as_ref().map(|rows| paging.page(Buyers, rows, BuyerItem::of, |row| key(&row.address))),
            queue: queue.as_ref().map(|rows| paging.page(Queue, rows, QueuedItem::of, |row| key(&row.address))),
        };
        Ok(self.answer(&body, &state))
    }
}

/// A key of one part.
pub(super) fn key(part: &str) -> (String, String) {
    (part.to_owned(), String::new())
}
