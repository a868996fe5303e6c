//! What nodes send, checked on entry: nothing behind this file has to doubt a hash or a number.

use std::collections::HashSet;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::decode::{RawEvent, RawTransaction, strict};
use crate::chain::felt::Felt;
use crate::chain::{BlockRef, Hash, Height, Link};

/// A block's header, with its transactions as far as they were asked for.
#[derive(Debug, Clone)]
pub struct Confirmed<T> {
    /// Its names.
    pub link: Link,
    /// None when the chain's clock is beyond what a timestamp can hold.
    pub time: Option<jiff::Timestamp>,
    /// The settlement layer has it: it will not be replaced.
    pub on_l1: bool,
    /// In the block's order.
    pub transactions: Vec<T>,
}

/// The hash of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub(super) struct TxHash(#[serde(deserialize_with = "strict")] pub(super) Felt);

/// An event as `starknet_getEvents` gives it, as far as it tells where to look.
#[derive(Debug, Clone, Deserialize)]
pub struct PlacedEvent {
    /// Who said it.
    #[serde(deserialize_with = "strict")]
    pub from_address: Felt,
    /// None: of a block that is not confirmed.
    #[serde(default)]
    pub block_number: Option<u64>,
    /// As with its number.
    #[serde(default, deserialize_with = "maybe")]
    pub block_hash: Option<Felt>,
}

/// One page of `starknet_getEvents`.
#[derive(Debug, Deserialize)]
pub struct Page {
    /// In chain order.
    pub events: Vec<PlacedEvent>,
    /// What to ask for the next page with; none, or empty: this was the last one.
    #[serde(default)]
    pub continuation_token: Option<String>,
}

#[derive(Deserialize)]
struct WireBlock<T> {
    #[serde(default)]
    status: Option<String>,
    #[serde(default, deserialize_with = "maybe")]
    block_hash: Option<Felt>,
    #[serde(default, deserialize_with = "maybe")]
    parent_hash: Option<Felt>,
    #[serde(default)]
    block_number: Option<u64>,
    timestamp: u64,
    #[serde(default)]
    transaction_count: Option<u64>,
    #[serde(default)]
    event_count: Option<u64>,
    transactions: Vec<T>,
}

/// A block, and how many events it says it holds.
struct Counted<T> {
    block: Confirmed<T>,
    event_count: Option<u64>,
}

#[derive(Deserialize)]
struct WireReceipted {
    receipt: WireReceipt,
}

#[derive(Deserialize)]
struct WireReceipt {
    #[serde(deserialize_with = "strict")]
    transaction_hash: Felt,
    execution_status: String,
    events: Vec<RawEvent>,
    /// Receipts that travel alone name their block; those inside one may.
    #[serde(default, deserialize_with = "maybe")]
    block_hash: Option<Felt>,
    #[serde(default)]
    block_number: Option<u64>,
}

#[derive(Deserialize)]
struct WireNumbered {
    #[serde(deserialize_with = "strict")]
    block_hash: Felt,
    block_number: u64,
}

fn maybe<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Felt>, D::Error> {
    #[derive(Deserialize)]
    struct Strict(#[serde(deserialize_with = "strict")] Felt);
    Ok(Option::<Strict>::deserialize(from)?.map(|felt| felt.0))
}

/// A block with the hashes of its transactions; none for what is not a confirmed block.
///
/// # Errors
/// What is wrong with it, in words.
pub fn with_hashes(raw: &RawValue) -> Result<Option<Confirmed<Felt>>, String> {
    let Some(Counted { block, .. }) = block::<TxHash>(raw)? else { return Ok(None) };
    let Confirmed { link, time, on_l1, transactions } = block;
    let transactions: Vec<Felt> = transactions.into_iter().map(|hash| hash.0).collect();
    distinct(transactions.iter().copied())?;
    Ok(Some(Confirmed { link, time, on_l1, transactions }))
}

/// A block with its receipts; none for what is not a confirmed block.
///
/// # Errors
/// What is wrong with it, in words.
pub fn with_receipts(raw: &RawValue) -> Result<Option<Confirmed<RawTransaction>>, String> {
    let Some(Counted { block, event_count }) = block::<WireReceipted>(raw)? else { return Ok(None) };
    let Confirmed { link, time, on_l1, transactions: receipted } = block;
    let mut transactions = Vec::with_capacity(receipted.len());
    let mut events = 0;
    for (tx_index, WireReceipted { receipt }) in (0u64..).zip(receipted) {
        let elsewhere = receipt.block_hash.is_some_and(|hash| hash.to_string() != link.hash.as_str())
            || receipt.block_number.is_some_and(|number| number != link.height.get());
        if elsewhere {
            return Err(format!("block {} holds a receipt of another block", link.block_ref()));
        }
        let success = match receipt.execution_status.as_str() {
            "SUCCEEDED" => true,
            "REVERTED" => false,
            other => return Err(format!("a receipt with the execution status {other:.40?}")),
        };
        events += receipt.events.len() as u64;
        let places = (0u64..).zip(receipt.events).collect();
        transactions.push(RawTransaction { tx_index, hash: receipt.transaction_hash, success, events: places });
    }
    if let Some(said) = event_count.filter(|said| *said != events) {
        return Err(format!("block {} holds {events} events, and says {said}", link.height));
    }
    distinct(transactions.iter().map(|tx| tx.hash))?;
    Ok(Some(Confirmed { link, time, on_l1, transactions }))
}

/// The answer to `starknet_blockHashAndNumber`.
///
/// # Errors
/// What is wrong with it, in words.
pub(super) fn numbered(raw: &RawValue) -> Result<BlockRef, String> {
    let wire: WireNumbered = serde_json::from_str(raw.get()).map_err(|e| format!("not a block's name: {e}"))?;
    let height = Height::new(wire.block_number).ok_or("a block whose number is no height")?;
    Ok(BlockRef { height, hash: Hash::new(wire.block_hash.text()) })
}

/// The answer to `starknet_getEvents`.
///
/// # Errors
/// What is wrong with it, in words.
pub fn page(raw: &RawValue) -> Result<Page, String> {
    serde_json::from_str(raw.get()).map_err(|e| format!("not a page of events: {e}"))
}

fn block<'r, T: Deserialize<'r>>(raw: &'r RawValue) -> Result<Option<Counted<T>>, String> {
    let wire: Option<WireBlock<T>> = serde_json::from_str(raw.get()).map_err(|e| format!("not a block: {e}"))?;
    let Some(wire) = wire else { return Ok(None) };
    let on_l1 = match wire.status.as_deref() {
        Some("ACCEPTED_ON_L1") => true,
        Some("ACCEPTED_ON_L2") => false,
        // Pending, pre-confirmed, or rejected.
        _ => return Ok(None),
    };
    // What is not confirmed has no hash or no number, whatever it calls itself.
    let (Some(hash), Some(parent_hash), Some(number)) = (wire.block_hash, wire.parent_hash, wire.block_number) else {
        return Ok(None);
    };
    let height = Height::new(number).ok_or("a block whose number is no height")?;
    let count = wire.transactions.len() as u64;
    if let Some(said) = wire.transaction_count.filter(|said| *said != count) {
        return Err(format!("block {height} holds {count} transactions, and says {said}"));
    }
    let time = i64::try_from(wire.timestamp).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    let link = Link { height, hash: Hash::new(hash.text()), parent_hash: Hash::new(parent_hash.text()) };
    let block = Confirmed { link, time, on_l1, transactions: wire.transactions };
    Ok(Some(Counted { block, event_count: wire.event_count }))
}

fn distinct(hashes: impl Iterator<Item = Felt>) -> Result<(), String> {
    let mut seen = HashSet::new();
    for hash in hashes {
        if !seen.insert(hash) {
            return Err(format!("a block that holds transaction {hash} twice"));
        }
    }
    Ok(())
}
