//! EVM chains over JSON-RPC: blocks and logs in, chain values out.
//!
//! What a node says is checked as far as it can be: every log against the header of its block (hash and bloom), every
//! block against the one before it, every answer against its call. What remains is a node that lies consistently;
//! against that there are several URLs. Faults are reported, not retried: whoever calls paces.

mod abi;
mod balances;
pub mod check;
pub mod decode;
mod deployment;
mod factory;
mod fetch;
mod follow;
mod metadata;
mod signature;
mod signatures;
pub mod wire;

use std::ops::RangeInclusive;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use alloy_primitives::{Address, U256, hex};
use async_trait::async_trait;
use serde_json::{Value, json};

use self::check::BloomTrust;
use self::decode::{DecodeSettings, Decoder};
pub use self::factory::FactorySettings;
use self::factory::Following;
use self::fetch::{Fetch, NEAR_HEAD};
use self::follow::{Follow, Ticket};
use super::rpc::endpoint::{Call, Endpoint};
use super::rpc::heads::Bell;
use super::rpc::pool::Pool;
use super::rpc::{Changes, Dialect, Seen, fault, opinion};
use super::{Head, Identity, Recall, Source, SourceError, TokenMetadata};
use crate::chain::{Amount, Block, BlockRef, Event, Height, Kind, Link, Text};

/// Networks whose nodes give logs that are in no header's bloom (Polygon's bridge writes them beside the block).
const LOGS_BESIDE_BLOOMS: [&str; 3] = ["137", "80001", "80002"];
/// Networks that people start on their own machine (anvil, hardhat, geth --dev): there genesis is a fine start.
const DEV_NETWORKS: [&str; 2] = ["31337", "1337"];
/// Tokens described by one call of ours, so that no request grows without bound.
const TOKENS_AT_ONCE: usize = 100;
const SUBSCRIBE: &str = r#"{"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]}"#;
static DIALECT: Dialect = Dialect {
    network: "eth_chainId",
    read_network: |text| Some(U256::from_str_radix(text.strip_prefix("0x")?, 16).ok()?.to_string()),
    judge: fault::judge,
    // erigon and others stop at 100 unless told otherwise.
    most_calls: 100,
};

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
    /// The newest head seen.
    head: Seen,
    /// The newest block that a node called final.
    finalized: Seen,
    changes: Changes,
    bell: Bell,
}

impl EvmSource {
    /// Checks the settings; asks nobody yet.
    ///
    /// # Errors
    /// Permanent, naming the setting that is wrong.
    pub fn new(settings: EvmSettings) -> Result<EvmSource, SourceError> {
        let pool =
            Pool::new(&settings.urls, settings.request_timeout, settings.body_limit, settings.concurrency, &DIALECT)?;
        let bell = Bell::new(settings.ws_url.as_deref(), SUBSCRIBE)?;
        let decode = DecodeSettings {
            tokens: settings.tokens,
            events: settings.events,
            wrapped_native: settings.wrapped_native,
        };
        let early_decoder = Decoder::with_factories(&decode, &settings.factories, None)?;
        Ok(EvmSource {
            pool,
            decode,
            factories: settings.factories,
            early_decoder,
            decoder: OnceLock::new(),
            follow: Follow::default(),
            check_bloom: settings.check_bloom,
            confirm_grace: settings.confirm_grace,
            head: Seen::default(),
            finalized: Seen::default(),
            changes: Changes::default(),
            bell,
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
            self.finalized.set(finalized.link.height);
        }
        let finalized = self.finalized.get().map(|finalized| finalized.min(height));
        self.head.set(height);
        Ok(Head { block: latest.link.block_ref(), finalized, position: None, last: false, truth: false })
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
        let old_to = self.head.below(NEAR_HEAD);
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
        endpoint: Arc<Endpoint>,
        undone: &[BlockRef],
        new: &BlockRef,
    ) -> Result<Option<bool>, SourceError> {
        let Some(first) = undone.first() else { return Ok(Some(true)) };
        let calls = [first, new].map(|block| fetch::header_call(&format!("{:#x}", block.height.get())));
        let mut answers = endpoint.ask(&calls).await?.into_iter();
        let mut link_at = |call: &Call| {
            let header = answers.next().map(|answer| fetch::read_header(&endpoint, call, answer));
            header.transpose().map(|header| header.flatten().map(|header| header.link))
        };
        let (ours, theirs) = (link_at(&calls[0])?, link_at(&calls[1])?);
        Ok(opinion(first, new, ours, theirs))
    }
}

#[async_trait]
impl Source for EvmSource {
    async fn identify(&self) -> Result<Identity, SourceError> {
        self.pool.run(|endpoint| Box::pin(async move { self.pool.name_network_again(&endpoint).await })).await?;
        self.pool.look_at_others().await?;
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
        self.changes.settled(read.await)
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
        self.changes.settled(read)
    }

    /// # Cancel safety
    /// A wake that came while this was dropped is kept for the next call.
    async fn wait(&self, at_most: Duration) {
        self.bell.wait(at_most).await;
    }

    /// With one URL there is nobody else to ask. With more, another one must know the new block, or know that the lowest
    /// of ours is not part of the chain; a node that lags behind has no opinion. See
    /// [`EvmSettings::confirm_grace`] for when none of them answers.
    async fn confirm_undo(&self, undone: &[BlockRef], new: &BlockRef) -> Result<bool, SourceError> {
        self.pool.agrees(new, self.confirm_grace, |endpoint| Box::pin(self.opinion(endpoint, undone, new))).await
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
