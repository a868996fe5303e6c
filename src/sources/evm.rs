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
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use alloy_primitives::{Address, U256, hex};
use async_trait::async_trait;
use futures::future::BoxFuture;
use serde_json::{Value, json};

use self::check::BloomTrust;
use self::decode::{DecodeSettings, Decoder};
pub use self::factory::FactorySettings;
use self::factory::Following;
use self::fetch::{Fetch, NEAR_HEAD};
use self::follow::{Follow, Ticket};
use self::wire::Header;
use super::net::bell::Manner;
use super::net::pool::Reach;
use super::rpc::endpoint::{Call, Endpoint};
use super::rpc::linked::Form;
use super::rpc::reader::{Reader, ReaderSettings};
use super::rpc::{Dialect, contracts, fault, heads};
use super::{Head, Identity, Recall, Source, SourceError, TokenMetadata};
use crate::chain::{Amount, Block, BlockRef, Event, Height, Kind, Link, Text};

/// Networks whose nodes give logs that are in no header's bloom (Polygon's bridge writes them beside the block).
const LOGS_BESIDE_BLOOMS: [&str; 3] = ["137", "80001", "80002"];
/// Networks that people start on their own machine (anvil, hardhat, geth --dev): there genesis is a fine start.
const DEV_NETWORKS: [&str; 2] = ["31337", "1337"];
static HEADS: Manner = heads(r#"{"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]}"#);
static DIALECT: Dialect = Dialect {
    network: "eth_chainId",
    read_network: |text| Some(U256::from_str_radix(text.strip_prefix("0x")?, 16).ok()?.to_string()),
    judge: |method, code, text| match method {
        fetch::GET_LOGS => fault::judge_search(code, text),
        _ => fault::judge(code, text),
    },
    // erigon and others stop at 100 unless told otherwise.
    most_calls: 100,
    links: Form {
        call: fetch::header_at,
        read: |raw| Ok(wire::header(raw)?.map(|header| header.link)),
        requests: usize::MAX,
    },
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
    reader: Reader,
    decode: DecodeSettings,
    factories: Vec<FactorySettings>,
    /// Made before the network is known: all but the wrapped native token is as it will be.
    early_decoder: Decoder,
    /// With the network that it is for.
    decoder: Mutex<Option<(Option<String>, Arc<Decoder>)>>,
    follow: Follow,
    check_bloom: bool,
    /// The header that a node gave as its head the last time, which it need not be asked for again.
    newest: Mutex<Option<(Arc<Endpoint>, Header)>>,
}

impl EvmSource {
    /// Checks the settings; asks nobody yet.
    ///
    /// # Errors
    /// Permanent, naming the setting that is wrong.
    pub fn new(settings: EvmSettings) -> Result<EvmSource, SourceError> {
        let reach = Reach {
            urls: &settings.urls,
            request_timeout: settings.request_timeout,
            body_limit: settings.body_limit,
            after_too_many: None,
        };
        let ws_url = settings.ws_url.as_deref();
        let (concurrency, confirm_grace) = (settings.concurrency, settings.confirm_grace);
        let reader = Reader::new(ReaderSettings { reach, ws_url, concurrency, confirm_grace }, &DIALECT, &HEADS)?;
        let decode = DecodeSettings {
            tokens: settings.tokens,
            events: settings.events,
            wrapped_native: settings.wrapped_native,
        };
        let early_decoder = Decoder::with_factories(&decode, &settings.factories, None)?;
        Ok(EvmSource {
            reader,
            decode,
            factories: settings.factories,
            early_decoder,
            decoder: Mutex::new(None),
            follow: Follow::default(),
            check_bloom: settings.check_bloom,
            newest: Mutex::new(None),
        })
    }

    /// The decoder for the network behind the URLs; the endpoint at hand was verified, so its id is known.
    fn decoder(&self) -> Result<Arc<Decoder>, SourceError> {
        let network = self.reader.network_id();
        let mut made = self.decoder.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, decoder)) = made.as_ref().filter(|(of, _)| *of == network) {
            return Ok(Arc::clone(decoder));
        }
        // An id beyond 64 bits is not one of those with a known wrapped native token.
        let number = network.as_ref().map(|id| id.parse().unwrap_or(u64::MAX));
        let decoder = Arc::new(Decoder::with_factories(&self.decode, &self.factories, number)?);
        *made = Some((network, Arc::clone(&decoder)));
        Ok(decoder)
    }

    fn blooms(&self) -> BloomTrust {
        match self.reader.network_id() {
            _ if !self.check_bloom => BloomTrust::None,
            Some(id) if LOGS_BESIDE_BLOOMS.contains(&id.as_str()) => BloomTrust::Promise,
            _ => BloomTrust::Exact,
        }
    }

    async fn head_of(&self, endpoint: Arc<Endpoint>) -> Result<Head, SourceError> {
        let calls = ["latest", "finalized"].map(fetch::header_call).to_vec();
        let mut headers = self.reader.ask_of_our_chain(&endpoint, calls).await?;
        let mut next =
            || headers.next().and_then(|(call, answer)| fetch::HEADERS.block(&endpoint, &call, answer).transpose());
        let latest = next().transpose()?.ok_or_else(|| endpoint.transient("it has no latest block"))?;
        // Not every node knows the word, and none knows a block before the first is final.
        let finalized = next().and_then(Result::ok).map(|header| header.link.height);
        let head = self.reader.head(latest.link.block_ref(), finalized);
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = Some((Arc::clone(&endpoint), latest));
        Ok(head)
    }

    /// The header of the newest block, if it is of these heights and this node gave it.
    fn newest_of(&self, endpoint: &Endpoint, heights: &RangeInclusive<Height>) -> Option<Header> {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let (of, header) = newest.as_ref()?;
        (std::ptr::eq(&**of, endpoint) && heights.contains(&header.link.height)).then(|| header.clone())
    }

    async fn blocks_of(
        &self,
        endpoint: Arc<Endpoint>,
        heights: RangeInclusive<Height>,
        ticket: &Ticket<'_>,
    ) -> Result<Vec<Block>, SourceError> {
        let decoder = self.decoder()?;
        let fetch = self.fetch(&endpoint, &decoder, &heights);
        if decoder.factories().is_empty() {
            let reading = fetch.read(heights, &decoder.filters()).await?;
            return Ok(fetch.blocks(reading, &mut Following::nobody()));
        }
        self.follow.blocks(&fetch, heights, ticket).await
    }

    fn fetch<'f>(&self, endpoint: &'f Endpoint, decoder: &'f Decoder, heights: &RangeInclusive<Height>) -> Fetch<'f> {
        let old_to = self.reader.below_head(NEAR_HEAD);
        Fetch { endpoint, decoder, blooms: self.blooms(), old_to, newest: self.newest_of(endpoint, heights) }
    }

    async fn first_height_of(&self, endpoint: Arc<Endpoint>, contracts: Vec<String>) -> Result<Height, SourceError> {
        let head = endpoint.ask_one(Call::new("eth_blockNumber", json!([]))).await?;
        let head = fetch::read_quantity(&head)
            .and_then(Height::new)
            .ok_or_else(|| endpoint.transient("eth_blockNumber gives no height"))?;
        let there = deployment::CODE.at(&endpoint, &contracts, head).await?;
        match contracts.iter().zip(there).find(|(_, there)| !there) {
            Some((contract, _)) => Err(contracts::not_there(contract, head)),
            None => deployment::CODE.first_height(&endpoint, &contracts, head).await,
        }
    }
}

#[async_trait]
impl Source for EvmSource {
    async fn identify(&self) -> Result<Identity, SourceError> {
        let name = |endpoint: Arc<Endpoint>| -> BoxFuture<'_, _> {
            Box::pin(async move { self.reader.name_network(&endpoint).await })
        };
        self.reader.identify(Kind::Evm, name).await
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

    async fn first_height(&self) -> Result<Height, SourceError> {
        self.reader.know_network().await?;
        let contracts = self.decoder()?.contracts();
        if contracts.is_empty() {
            if self.reader.network_id().is_some_and(|id| DEV_NETWORKS.contains(&id.as_str())) {
                return Ok(Height::default());
            }
            return Err(SourceError::permanent(
                "where to begin is not known, since no token is listed whose deployment could be looked for: give \
                 --start-height (0 for the whole chain), or list tokens",
            ));
        }
        let contracts: Vec<String> = contracts.iter().map(hex::encode_prefixed).collect();
        self.reader.run(|endpoint| Box::pin(self.first_height_of(endpoint, contracts.clone()))).await
    }

    async fn head(&self) -> Result<Head, SourceError> {
        self.reader.run(|endpoint| Box::pin(self.head_of(endpoint))).await
    }

    async fn links(&self, heights: RangeInclusive<Height>) -> Result<Vec<Link>, SourceError> {
        let newest = |endpoint: &Endpoint| self.newest_of(endpoint, &heights).map(|header| header.link);
        self.reader.links(heights.clone(), newest).await
    }

    async fn blocks(&self, heights: RangeInclusive<Height>) -> Result<Vec<Block>, SourceError> {
        if heights.is_empty() {
            return Ok(Vec::new());
        }
        // Before anything is waited for, so that ranges under way at once are known in the order they were asked for.
        let ticket = self.follow.register(*heights.start());
        self.reader.read(|endpoint| Box::pin(self.blocks_of(endpoint, heights.clone(), &ticket))).await
    }

    /// # Cancel safety
    /// A wake that came while this was dropped is kept for the next call.
    async fn wait(&self, at_most: Duration) {
        self.reader.wait(at_most).await;
    }

    /// See [`EvmSettings::confirm_grace`] for when no other node answers.
    async fn confirm_undo(&self, undone: &[BlockRef], new: &BlockRef) -> Result<bool, SourceError> {
        self.reader.confirm_undo(undone, new).await
    }

    async fn token_metadata(&self, tokens: &[Text]) -> Result<Vec<TokenMetadata>, SourceError> {
        if tokens.is_empty() {
            return Ok(Vec::new());
        }
        self.reader.run(|endpoint| Box::pin(async move { metadata::QUESTIONS.ask(&endpoint, tokens).await })).await
    }

    async fn balances_of(
        &self,
        at: &BlockRef,
        pairs: &[(Text, Text)],
    ) -> Result<Option<Vec<Option<Amount>>>, SourceError> {
        let read = self.reader.run(|endpoint| {
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
