//! EVM chains over JSON-RPC: blocks and logs in, chain values out.
//!
//! What a node says is checked as far as it can be: every log against the header of its block (hash and bloom), every
//! block against the one before it, every answer against its call. What remains is a node that lies consistently;
//! against that there are several URLs. Faults are reported, not retried: whoever calls paces.

mod abi;
mod balances;
pub mod decode;
mod deployment;
mod endpoint;
mod factory;
mod fault;
mod fetch;
mod follow;
mod heads;
mod metadata;
mod pool;
mod signature;
mod signatures;
mod wire;

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use alloy_primitives::{Address, hex};
use async_trait::async_trait;
use futures::future::join_all;
use reqwest::Url;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use self::decode::{DecodeSettings, Decoder};
use self::endpoint::{Call, Endpoint};
pub use self::factory::FactorySettings;
use self::factory::Following;
use self::fetch::{BloomTrust, Fetch, NEAR_HEAD};
use self::follow::{Follow, Ticket};
use self::heads::Heads;
use self::pool::Pool;
use super::http::{HttpClient, parse_url};
use super::{Head, Identity, Recall, Source, SourceError, TokenMetadata};
use crate::chain::{Amount, Block, BlockRef, Event, Height, Kind, Link, Text};

/// Networks whose nodes give logs that are in no header's bloom (Polygon's bridge writes them beside the block).
const LOGS_BESIDE_BLOOMS: [&str; 3] = ["137", "80001", "80002"];
/// Networks that people start on their own machine (anvil, hardhat, geth --dev): there genesis is a fine start.
const DEV_NETWORKS: [&str; 2] = ["31337", "1337"];
/// How long the other URLs may take to name their network at the start.
const FIRST_LOOK: Duration = Duration::from_secs(5);
/// Tokens described by one call of ours, so that no request grows without bound.
const TOKENS_AT_ONCE: usize = 100;
/// How often in a row the chain may change under a read before that is a fault of the node: "look again at once" must
/// not become a storm of requests.
const CHANGES_IN_A_ROW: u32 = 3;
/// Shortest time between two wakes: a node that rings without end must not be asked without end.
const BETWEEN_WAKES: Duration = Duration::from_millis(20);

/// Settings of [`EvmSource`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvmSettings {
    /// Nodes of one chain, `http` or `https`, at least one. The first is asked until it fails, then the next.
    pub urls: Vec<String>,
    /// `ws` or `wss`: wakes us at new heads. Without it, and while it is down, there is polling.
    pub ws_url: Option<String>,
    /// See [`DecodeSettings::tokens`].
    pub tokens: Vec<String>,
    /// See [`DecodeSettings::events`].
    pub events: Vec<String>,
    /// Contracts whose events name further contracts to follow.
    pub factories: Vec<FactorySettings>,
    /// See [`DecodeSettings::wrapped_native`].
    pub wrapped_native: Vec<String>,
    /// For one HTTP request, its answer included. Default 30 s; at least 10 ms.
    pub request_timeout: Duration,
    /// Largest answer that is read, uncompressed, in bytes. Default 64 MiB; at least 64 KiB.
    pub body_limit: usize,
    /// Requests under way at once over all URLs. Default 8; at least 1.
    pub concurrency: usize,
    /// Whether logs are checked against the blooms in headers. Default true; false for chains without blooms.
    pub check_bloom: bool,
    /// With several URLs, blocks are undone once a second one agrees. When for this long no other one can be asked
    /// at all, the one that is left is believed, rather than standing still. Default 15 s.
    pub confirm_grace: Duration,
}

impl Default for EvmSettings {
    fn default() -> EvmSettings {
        EvmSettings {
            urls: Vec::new(),
            ws_url: None,
            tokens: Vec::new(),
            events: Vec::new(),
            factories: Vec::new(),
            wrapped_native: Vec::new(),
            request_timeout: Duration::from_secs(30),
            body_limit: 64 << 20,
            concurrency: 8,
            check_bloom: true,
            confirm_grace: Duration::from_secs(15),
        }
    }
}

/// Reads an EVM chain.
#[derive(Debug)]
pub struct EvmSource {
    pool: Pool,
    decode: DecodeSettings,
    factories: Vec<FactorySettings>,
    /// Made before the network is known: all but the wrapped native token is as it will be.
    early_decoder: Decoder,
    decoder: OnceLock<Arc<Decoder>>,
    follow: Follow,
    check_bloom: bool,
    confirm_grace: Duration,
    /// Since when no other URL could be asked about an undo.
    alone_since: Mutex<Option<Instant>>,
    /// The newest head seen, plus one; 0: none yet.
    head: AtomicU64,
    /// The newest block that a node called final, plus one; 0: none yet.
    finalized: AtomicU64,
    looked_at_all: AtomicBool,
    changes: AtomicU32,
    last_wake: Mutex<Option<Instant>>,
    ws_url: Option<Url>,
    heads: OnceLock<Heads>,
}

impl EvmSource {
    /// Checks the settings; asks nobody yet.
    ///
    /// # Errors
    /// Permanent, naming the setting that is wrong.
    pub fn new(settings: EvmSettings) -> Result<EvmSource, SourceError> {
        let least = |setting: &str, ok: bool, bound: &str| {
            if ok { Ok(()) } else { Err(SourceError::permanent(format!("{setting} must be at least {bound}"))) }
        };
        least("url: their number", !settings.urls.is_empty(), "1")?;
        least("request_timeout", settings.request_timeout >= Duration::from_millis(10), "10 ms")?;
        least("body_limit", settings.body_limit >= 64 << 10, "64 KiB")?;
        least("concurrency", settings.concurrency >= 1, "1")?;
        let decode = DecodeSettings {
            tokens: settings.tokens,
            events: settings.events,
            wrapped_native: settings.wrapped_native,
        };
        let early_decoder = Decoder::with_factories(&decode, &settings.factories, None)?;
        let client = HttpClient::new(settings.request_timeout, settings.body_limit)?;
        let gate = Arc::new(Semaphore::new(settings.concurrency.min(Semaphore::MAX_PERMITS)));
        let mut endpoints = Vec::with_capacity(settings.urls.len());
        for text in &settings.urls {
            let url = parse_url("url", text, &["http", "https"])?;
            endpoints.push(Endpoint::new(url, client.clone(), Arc::clone(&gate)));
        }
        let ws_url = settings.ws_url.map(|text| parse_url("ws_url", &text, &["ws", "wss"])).transpose()?;
        Ok(EvmSource {
            pool: Pool::new(endpoints),
            decode,
            factories: settings.factories,
            early_decoder,
            decoder: OnceLock::new(),
            follow: Follow::default(),
            check_bloom: settings.check_bloom,
            confirm_grace: settings.confirm_grace,
            alone_since: Mutex::new(None),
            head: AtomicU64::new(0),
            finalized: AtomicU64::new(0),
            looked_at_all: AtomicBool::new(false),
            changes: AtomicU32::new(0),
            last_wake: Mutex::new(None),
            ws_url,
            heads: OnceLock::new(),
        })
    }

    /// The decoder for the network behind the URLs; the endpoint at hand was verified, so its id is known.
    fn decoder(&self) -> Result<Arc<Decoder>, SourceError> {
        if let Some(decoder) = self.decoder.get() {
            return Ok(Arc::clone(decoder));
        }
        // An id beyond 64 bits is not one of those with a known wrapped native token.
        let network = self.pool.network_id().map(|id| id.parse().unwrap_or(u64::MAX));
        let decoder = Arc::new(Decoder::with_factories(&self.decode, &self.factories, network)?);
        Ok(Arc::clone(self.decoder.get_or_init(|| decoder)))
    }

    fn blooms(&self) -> BloomTrust {
        match self.pool.network_id() {
            _ if !self.check_bloom => BloomTrust::None,
            Some(id) if LOGS_BESIDE_BLOOMS.contains(&id.as_str()) => BloomTrust::Promise,
            _ => BloomTrust::Exact,
        }
    }

    async fn head_of(&self, endpoint: Arc<Endpoint>) -> Result<Head, SourceError> {
        // The network id comes along each time: another chain may move in behind a URL at any moment.
        let calls =
            [Call::new("eth_chainId", json!([])), fetch::header_call("latest"), fetch::header_call("finalized")];
        let [network, latest, finalized]: [_; 3] = endpoint
            .ask(&calls)
            .await?
            .try_into()
            .map_err(|_| endpoint.transient("not three answers to three calls"))?;
        let network = network.map_err(|error| endpoint.refused(&calls[0], &error, None))?;
        self.pool.check_network(&endpoint, &network)?;
        let latest = fetch::read_header(&endpoint, &calls[1], latest)?
            .ok_or_else(|| endpoint.transient("it has no latest block"))?;
        let height = latest.link.height;
        // Not every node knows the word, and none knows a block before the first is final. Once one was named, a node
        // that names none (a busy one, or another one after a fail-over) must not make it look as if all were final.
        if let Some(finalized) = fetch::read_header(&endpoint, &calls[2], finalized).ok().flatten() {
            self.finalized.store(finalized.link.height.get() + 1, Ordering::Relaxed);
        }
        let finalized = self.finalized.load(Ordering::Relaxed).checked_sub(1).and_then(Height::new);
        let finalized = finalized.map(|finalized| finalized.min(height));
        self.head.store(height.get() + 1, Ordering::Relaxed);
        Ok(Head { block: latest.link.block_ref(), finalized, position: None, last: false, truth: false })
    }

    /// Asks for the network's id even where it was given before.
    async fn name_network_again(&self, endpoint: Arc<Endpoint>) -> Result<(), SourceError> {
        let id = endpoint.ask_one(Call::new("eth_chainId", json!([]))).await?;
        self.pool.check_network(&endpoint, &id)
    }

    async fn blocks_of(
        &self,
        endpoint: Arc<Endpoint>,
        heights: RangeInclusive<Height>,
        ticket: &Ticket<'_>,
    ) -> Result<Vec<Block>, SourceError> {
        let decoder = self.decoder()?;
        let fetch = self.fetch(&endpoint, &decoder);
        if decoder.factories().is_empty() {
            let reading = fetch.read(heights, &decoder.filters()).await?;
            return Ok(fetch.blocks(reading, &mut Following::nobody()));
        }
        self.follow.blocks(&fetch, heights, ticket).await
    }

    fn fetch<'f>(&self, endpoint: &'f Endpoint, decoder: &'f Decoder) -> Fetch<'f> {
        let old_to = self.head.load(Ordering::Relaxed).checked_sub(1 + NEAR_HEAD).and_then(Height::new);
        Fetch { endpoint, decoder, blooms: self.blooms(), old_to }
    }

    async fn events_of_made(
        &self,
        endpoint: Arc<Endpoint>,
        contracts: Vec<Address>,
        heights: RangeInclusive<Height>,
    ) -> Result<(Vec<Block>, Height), SourceError> {
        let decoder = self.decoder()?;
        let alone = decoder.for_made_alone();
        let (filters, mut following) = self.follow.only(&decoder, &contracts);
        let fetch = self.fetch(&endpoint, &alone);
        let reading = fetch.read(heights.clone(), &filters).await?;
        let last = reading.next().prev().unwrap_or_default();
        let mut blocks = fetch.blocks(reading, &mut following);
        blocks.retain(|b| !(b.token_events.is_empty() && b.events.is_empty() && b.rejects.is_empty()));
        Ok((blocks, last))
    }

    async fn first_height_of(&self, endpoint: Arc<Endpoint>, contracts: Vec<String>) -> Result<Height, SourceError> {
        let head = endpoint.ask_one(Call::new("eth_blockNumber", json!([]))).await?;
        let head = fetch::read_quantity(&head)
            .and_then(Height::new)
            .ok_or_else(|| endpoint.transient("eth_blockNumber gives no height"))?;
        deployment::first_height(&endpoint, &contracts, head).await
    }

    async fn describe(&self, endpoint: Arc<Endpoint>, tokens: Vec<Text>) -> Result<Vec<TokenMetadata>, SourceError> {
        let mut described = Vec::with_capacity(tokens.len());
        for part in tokens.chunks(TOKENS_AT_ONCE) {
            described.extend(metadata::read(&endpoint, part).await?);
        }
        Ok(described)
    }

    /// What another URL thinks: `Some(true)` our blocks are gone, `Some(false)` they stand, none: it cannot tell.
    async fn opinion(
        &self,
        endpoint: &Endpoint,
        undone: &[BlockRef],
        new: &BlockRef,
    ) -> Result<Option<bool>, SourceError> {
        self.pool.verify(endpoint).await?;
        let Some(first) = undone.first() else { return Ok(Some(true)) };
        let calls = [first, new].map(|block| fetch::header_call(&format!("{:#x}", block.height.get())));
        let mut answers = endpoint.ask(&calls).await?.into_iter();
        let mut hash_at = |call: &Call| {
            let header = answers.next().map(|answer| fetch::read_header(endpoint, call, answer));
            header.transpose().map(|header| header.flatten().map(|header| header.link))
        };
        let (ours, theirs) = (hash_at(&calls[0])?, hash_at(&calls[1])?);
        let hash = |link: Option<Link>, asked: &BlockRef| {
            link.filter(|link| link.height == asked.height).map(|link| link.hash)
        };
        let has_new = hash(theirs, new).is_some_and(|hash| hash == new.hash);
        Ok(match hash(ours, first) {
            // height | 7 | 8 | 9        Where the new block replaces ours, having it is enough.
            // ours   | A   B   C
            // new    | A   B'
            _ if has_new && new.height >= first.height => Some(true),
            Some(hash) => Some(hash != first.hash),
            // The chain got shorter: the other one ends below our blocks too.
            None => has_new.then_some(true),
        })
    }

    /// A change is looked at again at once, but not for ever.
    fn settled<T>(&self, read: Result<T, SourceError>) -> Result<T, SourceError> {
        match read {
            Err(SourceError::Changed { height }) => {
                if self.changes.fetch_add(1, Ordering::Relaxed) + 1 < CHANGES_IN_A_ROW {
                    return Err(SourceError::Changed { height });
                }
                self.changes.store(0, Ordering::Relaxed);
                Err(SourceError::transient(format!(
                    "the chain changed {CHANGES_IN_A_ROW} times in a row while block {height} was read"
                )))
            }
            read => {
                if read.is_ok() {
                    self.changes.store(0, Ordering::Relaxed);
                }
                read
            }
        }
    }

    fn until_next_wake(&self) -> Duration {
        let last = *self.last_wake.lock().unwrap_or_else(PoisonError::into_inner);
        last.map_or(Duration::ZERO, |last| BETWEEN_WAKES.saturating_sub(last.elapsed()))
    }

    fn not_alone(&self) {
        *self.alone_since.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether no other URL could be asked for so long that the one that is left is believed.
    fn alone_for_long(&self) -> bool {
        let mut since = self.alone_since.lock().unwrap_or_else(PoisonError::into_inner);
        since.get_or_insert_with(Instant::now).elapsed() >= self.confirm_grace
    }
}

#[async_trait]
impl Source for EvmSource {
    async fn identify(&self) -> Result<Identity, SourceError> {
        self.pool.run(|endpoint| Box::pin(self.name_network_again(endpoint))).await?;
        // A wrong URL in the settings should be told at the start, not on the night when it is needed.
        if !self.looked_at_all.swap(true, Ordering::Relaxed) {
            let others = self.pool.others();
            let looks = others.iter().map(|other| timeout(FIRST_LOOK, self.pool.verify(other)));
            for (other, look) in others.iter().zip(join_all(looks).await) {
                match look {
                    Ok(Err(error @ SourceError::Permanent { .. })) => {
                        self.looked_at_all.store(false, Ordering::Relaxed);
                        return Err(error);
                    }
                    Ok(Ok(())) => {}
                    _ => tracing::warn!(node = %other.shown, "This node does not answer: it cannot take over for now"),
                }
            }
        }
        Ok(Identity { kind: Kind::Evm, network_id: self.pool.network_id() })
    }

    async fn resume(&self, tip: Option<&BlockRef>, _position: Option<&Value>) -> Result<(), SourceError> {
        self.follow.resume(tip.map(|tip| tip.height));
        Ok(())
    }

    fn recalls(&self) -> Vec<Recall> {
        let creates = self.early_decoder.factories().iter().map(|factory| &factory.creates);
        let recalls = creates.flat_map(|creates| {
            let name: Text = creates.name.as_str().into();
            let emitters: Vec<Option<Text>> = match creates.emitters.as_slice() {
                [] => vec![None],
                some => some.iter().map(|emitter| Some(hex::encode_prefixed(emitter).into())).collect(),
            };
            emitters.into_iter().map(move |emitter| Recall { emitter, name: Text::clone(&name) })
        });
        recalls.collect()
    }

    async fn recall(&self, events: &[(Height, Event)]) -> Result<(), SourceError> {
        self.follow.recall(&self.early_decoder, events);
        Ok(())
    }

    /// Only what factories' settings say of the contracts that they make: whatever is asked of any contract was stored
    /// when its block was.
    async fn events_of(
        &self,
        contracts: &[Text],
        heights: RangeInclusive<Height>,
    ) -> Result<(Vec<Block>, Height), SourceError> {
        if self.early_decoder.factories().is_empty() {
            return Err(SourceError::permanent("no factory is in the settings, so nothing is kept of found contracts"));
        }
        let read = |text: &Text| {
            parse_address(text).ok_or_else(|| SourceError::permanent(format!("contract {text:?} is not an address")))
        };
        let contracts = contracts.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        if contracts.is_empty() || heights.is_empty() {
            return Ok((Vec::new(), *heights.end()));
        }
        let read =
            self.pool.run(|endpoint| Box::pin(self.events_of_made(endpoint, contracts.clone(), heights.clone())));
        self.settled(read.await)
    }

    async fn first_height(&self) -> Result<Height, SourceError> {
        self.identify().await?;
        let contracts = self.decoder()?.contracts();
        if contracts.is_empty() {
            if self.pool.network_id().is_some_and(|id| DEV_NETWORKS.contains(&id.as_str())) {
                return Ok(Height::default());
            }
            return Err(SourceError::permanent(
                "where to begin is not known, since no token is listed whose deployment could be looked for: give \
                 --start-height (0 for the whole chain), or list tokens",
            ));
        }
        let contracts: Vec<String> = contracts.iter().map(hex::encode_prefixed).collect();
        self.pool.run(|endpoint| Box::pin(self.first_height_of(endpoint, contracts.clone()))).await
    }

    async fn head(&self) -> Result<Head, SourceError> {
        self.pool.run(|endpoint| Box::pin(self.head_of(endpoint))).await
    }

    async fn links(&self, heights: RangeInclusive<Height>) -> Result<Vec<Link>, SourceError> {
        if heights.is_empty() {
            return Ok(Vec::new());
        }
        self.pool
            .run(|endpoint| {
                let heights = heights.clone();
                Box::pin(async move { fetch::links(&endpoint, heights).await })
            })
            .await
    }

    async fn blocks(&self, heights: RangeInclusive<Height>) -> Result<Vec<Block>, SourceError> {
        if heights.is_empty() {
            return Ok(Vec::new());
        }
        // Before anything is waited for, so that ranges under way at once are known in the order they were asked for.
        let ticket = self.follow.register(*heights.start());
        let read = self.pool.run(|endpoint| Box::pin(self.blocks_of(endpoint, heights.clone(), &ticket))).await;
        self.settled(read)
    }

    /// # Cancel safety
    /// A wake that came while this was dropped is kept for the next call.
    async fn wait(&self, at_most: Duration) {
        match &self.ws_url {
            Some(url) => {
                let heads = self.heads.get_or_init(|| Heads::listen(url.clone()));
                let pause = self.until_next_wake().min(at_most);
                tokio::time::sleep(pause).await;
                // Both ends are the same to the caller: look again.
                let _ = timeout(at_most - pause, heads.rung()).await;
                *self.last_wake.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            }
            None => tokio::time::sleep(at_most).await,
        }
    }

    /// With one URL there is nobody else to ask. With more, another one must know the new block, or know that the lowest
    /// of ours is not part of the chain; a node that lags behind has no opinion. See
    /// [`EvmSettings::confirm_grace`] for when none of them answers.
    async fn confirm_undo(&self, undone: &[BlockRef], new: &BlockRef) -> Result<bool, SourceError> {
        let others = self.pool.others();
        if others.is_empty() {
            // What it said since the head may be another network's: a URL can be pointed elsewhere at any moment.
            self.pool.run(|endpoint| Box::pin(self.name_network_again(endpoint))).await?;
            return Ok(true);
        }
        let opinions = join_all(others.iter().map(|other| self.opinion(other, undone, new))).await;
        let mut faults = Vec::new();
        let mut answered = false;
        for (other, opinion) in others.iter().zip(opinions) {
            match opinion {
                Ok(Some(true)) => {
                    self.not_alone();
                    return Ok(true);
                }
                Ok(_) => answered = true,
                Err(error) => {
                    other.verified.store(false, Ordering::Relaxed);
                    faults.push(error.to_string());
                }
            }
        }
        if answered {
            self.not_alone();
            return Ok(false);
        }
        if self.alone_for_long() {
            tracing::warn!(height = %new.height, "No second node can be asked: believing the one that answers");
            return Ok(true);
        }
        Err(SourceError::transient(format!("no second node to confirm block {new}: {}", faults.join("; "))))
    }

    async fn token_metadata(&self, tokens: &[Text]) -> Result<Vec<TokenMetadata>, SourceError> {
        if tokens.is_empty() {
            return Ok(Vec::new());
        }
        self.pool.run(|endpoint| Box::pin(self.describe(endpoint, tokens.to_vec()))).await
    }

    async fn balances_of(
        &self,
        at: &BlockRef,
        pairs: &[(Text, Text)],
    ) -> Result<Option<Vec<Option<Amount>>>, SourceError> {
        let read = self.pool.run(|endpoint| {
            let (at, pairs) = (at.clone(), pairs.to_vec());
            Box::pin(async move { balances::read(&endpoint, &at, &pairs).await })
        });
        read.await.map(Some)
    }
}

/// An address in any case, as the 20 bytes it stands for.
fn parse_address(text: &str) -> Option<Address> {
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"))?;
    let mut bytes = [0u8; 20];
    hex::decode_to_slice(digits, &mut bytes).ok()?;
    // `decode_to_slice` would take a second prefix.
    (digits.len() == 40).then_some(Address::from(bytes))
}
