//! Starknet over JSON-RPC, version 0.8 of its specification and later: blocks and receipts in, chain values out.
//!
//! What a node says is checked as far as it can be: every block against the one before it, every receipt against its
//! block, every answer against its call. What remains is a node that lies consistently; against that there are several
//! URLs. Blocks that are pending or pre-confirmed have no hash yet and are never taken. Faults are reported, not
//! retried: whoever calls paces.

pub mod decode;
mod deployment;
mod fetch;
pub mod follow;
mod metadata;
mod search;
pub mod wire;

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::time::Instant;

use self::decode::{DEPLOYED, DecodeSettings, Decoder, ROUND_DEPLOYED, felt};
use self::fetch::{Fetch, NEAR_HEAD};
use self::follow::{Found, Turns};
use super::net::bell::Manner;
use super::net::pool::Reach;
use super::rpc::endpoint::{Call, Endpoint};
use super::rpc::fault::{self, Verdict};
use super::rpc::linked::Form;
use super::rpc::reader::{Reader, ReaderSettings};
use super::rpc::{Dialect, heads};
use super::{Follows, Head, Identity, Recall, Source, SourceError, TokenMetadata};
use crate::chain::felt::Felt;
use crate::chain::{Block, BlockRef, Event, Height, Kind, Link, Text};

/// The newest block on the settlement layer is asked for this often: it moves every few hours.
const LOOK_AT_L1: Duration = Duration::from_secs(30);
/// The oldest version of the specification that has all that is asked for.
const OLDEST_SPEC: (u64, u64) = (0, 8);

static HEADS: Manner = heads(r#"{"jsonrpc":"2.0","id":1,"method":"starknet_subscribeNewHeads","params":{}}"#);
static DIALECT: Dialect = Dialect {
    network: "starknet_chainId",
    // `SN_MAIN` is what people call it; what is no text stays a number.
    read_network: |text| {
        let id = Felt::parse(text).ok()?;
        Some(id.short_string().filter(|name| !name.is_empty()).unwrap_or_else(|| id.to_string()))
    },
    judge,
    // A block with its receipts may be several MB.
    most_calls: 10,
    links: Form {
        call: fetch::header_at,
        read: |raw| Ok(wire::with_hashes(raw)?.map(|block| block.link)),
        requests: 4,
    },
};

/// The specification's codes say what they mean; the words of what stands around a node do so everywhere.
fn judge(method: &str, code: i64, text: &str) -> Verdict {
    match code {
        // BLOCK_NOT_FOUND.
        24 => Verdict::UnknownBlock,
        // CONTRACT_NOT_FOUND, ENTRYPOINT_NOT_FOUND, CONTRACT_ERROR, TRANSACTION_EXECUTION_ERROR: the words are a contract's.
        20 | 21 | 40 | 41 => Verdict::Other,
        _ if method == search::GET_EVENTS => fault::judge_search(code, text),
        _ => fault::judge(code, text),
    }
}

/// Settings of [`StarknetSource`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StarknetSettings {
    /// Nodes of one chain, `http` or `https`, at least one. The first is asked until it fails, then the next.
    pub urls: Vec<String>,
    /// `ws` or `wss`: wakes us at new heads and reorganisations. Without it, and while it is down, there is polling.
    pub ws_url: Option<String>,
    /// What to keep.
    pub decode: DecodeSettings,
    /// For one HTTP request, its answer included. Default 30 s; at least 10 ms.
    pub request_timeout: Duration,
    /// Largest answer that is read, uncompressed, in bytes. Default 64 MiB; at least 64 KiB.
    pub body_limit: usize,
    /// Requests under way at once over all URLs. Default 8; at least 1.
    pub concurrency: usize,
    /// With several URLs, blocks are undone once a second one agrees. When for this long no other one can be asked
    /// at all, the one that is left is believed, rather than standing still. Default 15 s.
    pub confirm_grace: Duration,
}

impl Default for StarknetSettings {
    fn default() -> StarknetSettings {
        StarknetSettings {
            urls: Vec::new(),
            ws_url: None,
            decode: DecodeSettings::default(),
            request_timeout: Duration::from_secs(30),
            body_limit: 64 << 20,
            concurrency: 8,
            confirm_grace: Duration::from_secs(15),
        }
    }
}

/// Reads a Starknet chain.
#[derive(Debug)]
pub struct StarknetSource {
    reader: Reader,
    /// What the settings say.
    by_settings: Decoder,
    /// With the contracts that were registered.
    decoder: RwLock<Arc<Decoder>>,
    turns: Turns,
    looked_at_l1: Mutex<Option<Instant>>,
}

impl StarknetSource {
    /// Checks the settings; asks nobody yet.
    ///
    /// # Errors
    /// Permanent, naming the setting that is wrong.
    pub fn new(settings: StarknetSettings) -> Result<StarknetSource, SourceError> {
        let reach = Reach {
            urls: &settings.urls,
            request_timeout: settings.request_timeout,
            body_limit: settings.body_limit,
            after_too_many: None,
        };
        let ws_url = settings.ws_url.as_deref();
        let (concurrency, confirm_grace) = (settings.concurrency, settings.confirm_grace);
        let reader = Reader::new(ReaderSettings { reach, ws_url, concurrency, confirm_grace }, &DIALECT, &HEADS)?;
        let decoder = Decoder::new(&settings.decode)?;
        Ok(StarknetSource {
            reader,
            decoder: RwLock::new(Arc::new(decoder.clone())),
            by_settings: decoder,
            turns: Turns::default(),
            looked_at_l1: Mutex::new(None),
        })
    }

    /// Network and version: an older specification names things otherwise.
    async fn name_itself(&self, endpoint: Arc<Endpoint>) -> Result<(), SourceError> {
        self.reader.name_network(&endpoint).await?;
        let raw = endpoint.ask_one(Call::new("starknet_specVersion", json!([]))).await?;
        let version: String =
            serde_json::from_str(raw.get()).map_err(|_| endpoint.transient("starknet_specVersion gives no text"))?;
        let mut parts = version.split(['.', '-']).map(|part| part.parse::<u64>().ok());
        let (Some(Some(major)), Some(Some(minor))) = (parts.next(), parts.next()) else {
            return Err(endpoint.transient(format!("starknet_specVersion is {version:.40?}")));
        };
        if (major, minor) < OLDEST_SPEC {
            return Err(endpoint.permanent(format!(
                "speaks version {version:.40?} of the specification, but 0.8 is needed: many nodes speak it at /rpc/v0_8"
            )));
        }
        Ok(())
    }

    async fn head_of(&self, endpoint: Arc<Endpoint>) -> Result<Head, SourceError> {
        let mut calls = vec![Call::new("starknet_blockHashAndNumber", json!([]))];
        let look_at_l1 = self.l1_is_due();
        if look_at_l1 {
            calls.push(fetch::header_call(json!("l1_accepted")));
        }
        let mut answers = self.reader.ask_of_our_chain(&endpoint, calls).await?;
        let (call, latest) = answers.next().ok_or_else(|| endpoint.transient("too few answers"))?;
        let latest = latest.map_err(|error| endpoint.refused(&call, &error))?;
        let block = wire::numbered(&latest).map_err(|what| endpoint.transient(what))?;
        // Nodes of version 0.8 do not know the word.
        let on_l1 =
            answers.next().and_then(|(call, answer)| fetch::HEADERS.block(&endpoint, &call, answer).ok().flatten());
        if look_at_l1 {
            *self.looked_at_l1.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
        Ok(self.reader.head(block, on_l1.filter(|header| header.on_l1).map(|header| header.link.height)))
    }

    fn l1_is_due(&self) -> bool {
        let last = *self.looked_at_l1.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_none_or(|last| last.elapsed() >= LOOK_AT_L1)
    }

    fn decoder(&self) -> Arc<Decoder> {
        Arc::clone(&self.decoder.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn fetch<'f>(&'f self, endpoint: &'f Endpoint) -> Fetch<'f> {
        let old_to = self.reader.below_head(NEAR_HEAD);
        Fetch { endpoint, decoder: self.decoder(), turns: &self.turns, old_to }
    }
}

#[async_trait]
impl Follows for StarknetSource {
    async fn follow(&self, contracts: &[Text]) -> Result<(), SourceError> {
        // What is no address is nobody's, and must not keep the others from being followed.
        let more = contracts.iter().filter_map(|contract| Felt::parse(contract).ok());
        let decoder = Arc::new(self.by_settings.following(more));
        *self.decoder.write().unwrap_or_else(PoisonError::into_inner) = decoder;
        Ok(())
    }

    fn recalls_of(&self, contract: &Text) -> Vec<Recall> {
        vec![Recall { emitter: Some(contract.clone()), name: ROUND_DEPLOYED.into() }]
    }

    fn named_by(&self, event: &Event) -> Option<Text> {
        self.by_settings.named_by(event).map(|round| round.text())
    }

    async fn events_of(
        &self,
        contracts: &[Text],
        heights: RangeInclusive<Height>,
    ) -> Result<(Vec<Block>, Height), SourceError> {
        let contracts: BTreeSet<Felt> = contracts.iter().map(|c| felt("contract", c)).collect::<Result<_, _>>()?;
        if contracts.is_empty() || heights.is_empty() {
            return Ok((Vec::new(), *heights.end()));
        }
        let (contracts, heights) = (&contracts, &heights);
        self.reader
            .read(|endpoint| Box::pin(async move { self.fetch(&endpoint).events_of(contracts, heights.clone()).await }))
            .await
    }
}

#[async_trait]
impl Source for StarknetSource {
    async fn identify(&self) -> Result<Identity, SourceError> {
        self.reader.identify(Kind::Starknet, |endpoint| Box::pin(self.name_itself(endpoint))).await
    }

    async fn resume(&self, tip: Option<&BlockRef>, _position: Option<&Value>) -> Result<(), SourceError> {
        // What was found is what was recalled, just before.
        self.turns.reset(self.turns.found(), tip.map(|tip| tip.height.next()));
        Ok(())
    }

    fn recalls(&self) -> Vec<Recall> {
        let decoder = self.decoder();
        if !decoder.discovers() {
            return Vec::new();
        }
        let deployed = |address: Felt| Recall { emitter: Some(address.text()), name: DEPLOYED.into() };
        let rounds = Recall { emitter: None, name: ROUND_DEPLOYED.into() };
        decoder.deployers().map(deployed).chain([rounds]).collect()
    }

    fn follows(&self) -> Option<&dyn Follows> {
        Some(self)
    }

    async fn recall(&self, events: &[(Height, Event)]) -> Result<(), SourceError> {
        let mut found = Found::default();
        self.decoder().recall(events, &mut found);
        self.turns.reset(found, None);
        Ok(())
    }

    async fn first_height(&self) -> Result<Height, SourceError> {
        let decoder = self.decoder();
        let named = decoder.named();
        if named.is_empty() && decoder.follows_nobody() {
            return Err(SourceError::transient(
                "no token or contract is listed and no vault is registered, so there is nothing to follow yet: insert \
                 the vault into ebbtide.vault_registry, list contracts, or give --start-height",
            ));
        }
        if named.is_empty() {
            return Err(SourceError::permanent(
                "where to begin is not known, since no token or contract is listed whose deployment could be looked \
                 for: give --start-height (0 for the whole chain), or list tokens",
            ));
        }
        let (of_settings, named) = (&self.by_settings.named(), &named);
        self.reader
            .run(|endpoint| Box::pin(async move { deployment::first_height(&endpoint, of_settings, named).await }))
            .await
    }

    async fn head(&self) -> Result<Head, SourceError> {
        self.reader.run(|endpoint| Box::pin(self.head_of(endpoint))).await
    }

    async fn links(&self, heights: RangeInclusive<Height>) -> Result<Vec<Link>, SourceError> {
        self.reader.links(heights, |_| None).await
    }

    async fn blocks(&self, heights: RangeInclusive<Height>) -> Result<Vec<Block>, SourceError> {
        if heights.is_empty() {
            return Ok(Vec::new());
        }
        let heights = &heights;
        self.reader.read(|endpoint| Box::pin(async move { self.fetch(&endpoint).blocks(heights.clone()).await })).await
    }

    /// # Cancel safety
    /// A wake that came while this was dropped is kept for the next call.
    async fn wait(&self, at_most: Duration) {
        self.reader.wait(at_most).await;
    }

    /// As with EVM nodes: see [`StarknetSettings::confirm_grace`].
    async fn confirm_undo(&self, undone: &[BlockRef], new: &BlockRef) -> Result<bool, SourceError> {
        self.reader.confirm_undo(undone, new).await
    }

    async fn token_metadata(&self, tokens: &[Text]) -> Result<Vec<TokenMetadata>, SourceError> {
        if tokens.is_empty() {
            return Ok(Vec::new());
        }
        self.reader.run(|endpoint| Box::pin(async move { metadata::QUESTIONS.ask(&endpoint, tokens).await })).await
    }
}
