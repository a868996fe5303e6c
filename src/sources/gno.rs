//! gno.land over tx-indexer's GraphQL: blocks and events in, chain values out.
//!
//! The indexer can lose blocks and transactions for good, names a head that is no promise, and pushes what is not yet
//! there. So every page is counted and its links are followed (specs/gno-token-balances 3.6); what is not whole is
//! waited for. What cannot be seen is an indexer that lies consistently. Faults are reported, not retried: whoever
//! calls paces.

pub mod decode;
mod endpoint;
mod fetch;
mod gaps;
pub mod page;
mod servers;
mod wake;
pub mod wire;

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use reqwest::Url;
use serde_json::Value;

use self::decode::{DecodeSettings, Decoder};
use self::endpoint::{AFTER_TOO_MANY, Endpoint};
use self::fetch::Fetch;
use self::gaps::Gaps;
use self::page::{Page, Place};
use self::servers::Servers;
use self::wake::PUSHES;
use super::net::bell::Bell;
use super::net::http::parse_url;
use super::net::pool::{Pool, Reach};
use super::{Head, Identity, Recall, Source, SourceError, TokenMetadata};
use crate::chain::{Block, BlockRef, Event, Height, Kind, Link, Text};

/// Bounds of [`GnoSettings::page_blocks`]: a page of headers must stay below the server's 10,000 of anything.
pub const PAGE_BLOCKS: RangeInclusive<u64> = 1..=9_000;
/// Default of [`GnoSettings::page_blocks`].
pub const DEFAULT_PAGE_BLOCKS: u64 = 5_000;
/// Pages that went well before a larger one is tried.
const CLEAN_BEFORE_GROWTH: u64 = 10;

/// Settings of [`GnoSource`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GnoSettings {
    /// Query URLs of indexers of one chain, as `https://indexer.example/graphql/query`; at least one. The first is
    /// asked until it fails; then the next, if it has our blocks.
    pub urls: Vec<String>,
    /// `ws` or `wss`: wakes us at new blocks. Defaults to the first of `urls` with that scheme.
    pub ws_url: Option<String>,
    /// What every block must name as its chain; by default the first that is seen.
    pub network_id: Option<String>,
    /// Which events are kept, and how they are read.
    pub decode: DecodeSettings,
    /// Most blocks in one question, 1 to 9,000. Defaults to 5,000.
    pub page_blocks: u64,
    /// How many of the newest blocks are left for later, since the newest may show before its transactions do. Defaults
    /// to 1.
    pub confirm_blocks: u64,
    /// A block that is missing or lacks transactions is waited for; after this it makes us unready. Defaults to 10
    /// minutes.
    pub incomplete_after: Duration,
    /// Whether what is still lacking after `incomplete_after` is done without: the block is stored as far as it is
    /// there, with a reject `incomplete_block`. Defaults to false.
    pub skip_incomplete: bool,
    /// For one HTTP request, its answer included. Defaults to 30 s; at least 10 ms.
    pub request_timeout: Duration,
    /// Largest answer that is read, uncompressed, in bytes. Defaults to 64 MiB; at least 64 KiB.
    pub body_limit: usize,
}

impl Default for GnoSettings {
    fn default() -> GnoSettings {
        GnoSettings {
            urls: Vec::new(),
            ws_url: None,
            network_id: None,
            decode: DecodeSettings::default(),
            page_blocks: DEFAULT_PAGE_BLOCKS,
            confirm_blocks: 1,
            incomplete_after: Duration::from_secs(600),
            skip_incomplete: false,
            request_timeout: Duration::from_secs(30),
            body_limit: 64 << 20,
        }
    }
}

/// Reads a gno chain.
#[derive(Debug)]
pub struct GnoSource {
    servers: Servers,
    decoder: Arc<Decoder>,
    page_blocks: u64,
    confirm_blocks: u64,
    skip_incomplete: bool,
    gaps: Gaps,
    /// Most blocks asked for at the moment, and how many pages went well since that last changed.
    width: AtomicU64,
    clean: AtomicU64,
    /// Tokens by id, as first announced.
    announced: Mutex<HashMap<Text, (Place, TokenMetadata)>>,
    bell: Bell,
}

impl GnoSource {
    /// Checks the settings; asks nobody yet.
    ///
    /// # Errors
    /// Permanent, naming the setting that is wrong.
    pub fn new(settings: GnoSettings) -> Result<GnoSource, SourceError> {
        let bound = |setting: &str, ok: bool, bounds: &str| {
            if ok { Ok(()) } else { Err(SourceError::permanent(format!("{setting} must be {bounds}"))) }
        };
        bound("page_blocks", PAGE_BLOCKS.contains(&settings.page_blocks), "1 to 9000")?;
        bound("network_id", settings.network_id.as_deref() != Some(""), "the chain's own name")?;
        let decoder = Arc::new(Decoder::new(settings.decode)?);
        let reach = Reach {
            urls: &settings.urls,
            request_timeout: settings.request_timeout,
            body_limit: settings.body_limit,
            after_too_many: Some(AFTER_TOO_MANY),
        };
        let pool = Pool::new(reach, Endpoint::new)?;
        let ws_url = match &settings.ws_url {
            Some(text) => Some(parse_url("ws_url", text, &["ws", "wss"])?),
            None => settings.urls.first().and_then(|text| Url::parse(text.trim()).ok()).and_then(pushes_of),
        };
        Ok(GnoSource {
            servers: Servers::new(pool, Arc::clone(&decoder), settings.network_id),
            decoder,
            page_blocks: settings.page_blocks,
            confirm_blocks: settings.confirm_blocks,
            skip_incomplete: settings.skip_incomplete,
            gaps: Gaps::new(settings.incomplete_after),
            width: AtomicU64::new(settings.page_blocks),
            clean: AtomicU64::new(0),
            announced: Mutex::default(),
            bell: Bell::new(ws_url, &PUSHES),
        })
    }

    async fn head_of(&self, endpoint: &Endpoint, chain_id: Option<&str>) -> Result<Head, SourceError> {
        let fetch = Fetch { endpoint, decoder: &self.decoder, chain_id };
        let head = fetch.head_height().await?.saturating_sub(self.confirm_blocks);
        let block = fetch.highest_at(head).await?.block_ref();
        // Consensus makes each block final; the indexer does not, so the syncer's depth decides.
        Ok(Head { block, finalized: None, position: None, last: false, truth: false })
    }

    async fn page_of(
        &self,
        endpoint: &Endpoint,
        chain_id: Option<&str>,
        from: u64,
        to: u64,
    ) -> Result<Page, SourceError> {
        let fetch = Fetch { endpoint, decoder: &self.decoder, chain_id };
        let page = fetch.page(from, to, self.skip_incomplete.then_some(&self.gaps)).await?;
        self.gaps.note(from, to, &page.gaps);
        match page.gaps.first() {
            // Another indexer may have it.
            Some(gap) if page.blocks.is_empty() => Err(self.gaps.error(endpoint, gap)),
            _ => Ok(page),
        }
    }

    async fn links_of(
        &self,
        endpoint: &Endpoint,
        chain_id: Option<&str>,
        from: u64,
        to: u64,
    ) -> Result<Vec<Link>, SourceError> {
        let fetch = Fetch { endpoint, decoder: &self.decoder, chain_id };
        let links = fetch.links(from, to).await?;
        if !self.skip_incomplete || links.len() as u64 == to - from + 1 {
            return Ok(links);
        }
        // A gap that was accepted is ours under a name of its own. Above the head nothing is missing.
        let to = to.min(fetch.head_height().await?);
        if to < from || links.len() as u64 == to - from + 1 {
            return Ok(links);
        }
        fetch.links_without_gaps(from, to).await
    }

    /// Pages shrink when they are too much, and grow again.
    fn learn_width<T>(&self, asked: u64, read: Result<T, SourceError>) -> Result<T, SourceError> {
        match read {
            Err(SourceError::RangeTooLarge { what, .. }) => {
                let width = (asked / 2).max(1);
                self.width.fetch_min(width, Ordering::Relaxed);
                self.clean.store(0, Ordering::Relaxed);
                Err(SourceError::RangeTooLarge { what, at_most: Some(width) })
            }
            read => {
                let width = self.width.load(Ordering::Relaxed);
                if read.is_ok() && width < self.page_blocks {
                    let clean = self.clean.fetch_add(1, Ordering::Relaxed) + 1;
                    if clean >= CLEAN_BEFORE_GROWTH {
                        self.clean.store(0, Ordering::Relaxed);
                        self.width.store((width * 2).min(self.page_blocks), Ordering::Relaxed);
                    }
                }
                read
            }
        }
    }

    /// The first announcement of an id counts, in whatever order pages come.
    fn remember(&self, announced: Vec<(Place, TokenMetadata)>) {
        if announced.is_empty() {
            return;
        }
        let mut known = self.announced.lock().unwrap_or_else(PoisonError::into_inner);
        for (place, metadata) in announced {
            match known.get(&metadata.token) {
                Some((first, _)) if *first == place => continue,
                Some((first, _)) => {
                    tracing::warn!(token = %metadata.token, "Two token ledgers announced the same name");
                    if *first < place {
                        continue;
                    }
                }
                None => {}
            }
            known.insert(metadata.token.clone(), (place, metadata));
        }
    }
}

#[async_trait]
impl Source for GnoSource {
    async fn identify(&self) -> Result<Identity, SourceError> {
        Ok(Identity { kind: Kind::Gno, network_id: Some(self.servers.identify().await?) })
    }

    async fn resume(&self, tip: Option<&BlockRef>, _position: Option<&Value>) -> Result<(), SourceError> {
        self.servers.resume(tip);
        Ok(())
    }

    /// Announcements of tokens: their names are wanted when the token first moves, which may be much later.
    fn recalls(&self) -> Vec<Recall> {
        let recall = |emitter: &str| Recall { emitter: Some(emitter.into()), name: decode::NEW_TOKEN.into() };
        self.decoder.trusted().map(recall).collect()
    }

    async fn recall(&self, events: &[(Height, Event)]) -> Result<(), SourceError> {
        self.announced.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let place = |height: &Height, event: &Event| (height.get(), event.tx_index, event.event_index);
        let found =
            events.iter().filter_map(|(height, event)| Some((place(height, event), decode::announcement(event)?)));
        self.remember(found.collect());
        Ok(())
    }

    /// Genesis, whose packages mint tokens; block 1 where the indexer has no genesis.
    async fn first_height(&self) -> Result<Height, SourceError> {
        let genesis = self
            .servers
            .run(|endpoint, chain_id| {
                Box::pin(async move {
                    let chain_id = chain_id.as_deref();
                    Fetch { endpoint: &endpoint, decoder: &self.decoder, chain_id }.genesis().await
                })
            })
            .await?;
        if genesis.is_some() {
            return Ok(Height::default());
        }
        tracing::warn!(
            "The indexer has no genesis: tokens minted there will show negative balances; opening_balances is the remedy"
        );
        Ok(Height::from(1))
    }

    async fn head(&self) -> Result<Head, SourceError> {
        self.servers
            .run(|endpoint, chain_id| Box::pin(async move { self.head_of(&endpoint, chain_id.as_deref()).await }))
            .await
    }

    async fn links(&self, heights: RangeInclusive<Height>) -> Result<Vec<Link>, SourceError> {
        if heights.is_empty() {
            return Ok(Vec::new());
        }
        let (from, to) = (heights.start().get(), heights.end().get());
        self.servers
            .run(|endpoint, chain_id| {
                Box::pin(async move { self.links_of(&endpoint, chain_id.as_deref(), from, to).await })
            })
            .await
    }

    /// At most `page_blocks`, and genesis alone.
    ///
    /// # Errors
    /// [`SourceError::Incomplete`] when what is lacking has been waited for long enough.
    async fn blocks(&self, heights: RangeInclusive<Height>) -> Result<Vec<Block>, SourceError> {
        if heights.is_empty() {
            return Ok(Vec::new());
        }
        let from = heights.start().get();
        let to = if from == 0 { 0 } else { heights.end().get().min(from.saturating_add(self.page_blocks - 1)) };
        let (asked, width) = (to - from + 1, self.width.load(Ordering::Relaxed));
        if asked > width {
            let what = format!("{asked} blocks at once were too much lately");
            return Err(SourceError::RangeTooLarge { what, at_most: Some(width) });
        }
        let page = self
            .servers
            .run(|endpoint, chain_id| {
                Box::pin(async move { self.page_of(&endpoint, chain_id.as_deref(), from, to).await })
            })
            .await;
        match self.learn_width(asked, page) {
            Ok(page) => {
                self.servers.handed_out(&page.blocks);
                self.remember(page.announced);
                Ok(page.blocks)
            }
            Err(error) => Err(error),
        }
    }

    /// # Cancel safety
    /// A wake that came while this was dropped is kept for the next call.
    async fn wait(&self, at_most: Duration) {
        self.bell.wait(at_most).await;
    }

    async fn token_metadata(&self, tokens: &[Text]) -> Result<Vec<TokenMetadata>, SourceError> {
        let known = self.announced.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(tokens.iter().filter_map(|token| known.get(token)).map(|(_, metadata)| metadata.clone()).collect())
    }
}

/// Queries and subscriptions share a path.
fn pushes_of(mut url: Url) -> Option<Url> {
    let scheme = if url.scheme() == "https" { "wss" } else { "ws" };
    url.set_scheme(scheme).ok()?;
    Some(url)
}
