//! Going on from the checkpoint: one task reads and nets ahead, this one applies, several transactions in flight.

use std::pin::pin;
use std::time::Instant;

use futures::stream::{FuturesOrdered, StreamExt};
use tokio::sync::mpsc;

use super::look::{Failed, Fault, Outcome, Task};
use super::{Done, Of, Session};
use crate::chain::plan::{StoredBlock, counting};
use crate::chain::{BlockRef, ChainId, Height, Kind};
use crate::projections::token_balances::{self, History, NAME, NegativeBalances, Netted, OnBadEvent};
use crate::store::{Applied, ApplyBlock, Fence, LedgerRead, Look, StoreError};

/// Transactions sent before the first of them was answered.
const IN_FLIGHT: usize = 16;
/// And no more once those in flight hold so many events: large transactions need no long queue, and each keeps its changes
/// in memory until it was answered.
const IN_FLIGHT_EVENTS: u64 = 20_000;
/// A chunk read ahead holds about so many events; two of them are in memory at once.
const CHUNK_EVENTS: u64 = 10_000;
/// After so many blocks that are not final, extending ends for a look, so that the journal is pruned.
const UNSETTLED_BLOCKS: u64 = 2_000;
/// Bounds of a chunk in blocks.
const CHUNK_BLOCKS: std::ops::RangeInclusive<u64> = 1..=2_000;

/// A block read, checked and netted.
pub(super) struct Prepared {
    pub(super) block: BlockRef,
    pub(super) revision: i64,
    pub(super) netted: Netted,
    /// Heights between the block before and this one were taken as empty.
    pub(super) gap: bool,
}

/// Reads the next blocks that count, with their movements netted. Fewer than stored: the chain has a break there.
pub(super) async fn read_chunk(
    read: &LedgerRead,
    chain: ChainId,
    look: &Look,
    before: Option<&BlockRef>,
    start: Height,
    to: Height,
    limit: u64,
) -> Result<Vec<Prepared>, StoreError> {
    // Revisions first, events after: an edit in between shows as another revision when the block is held.
    let counted = read_refs(read, chain, look, before, start, to, limit).await?;
    net_blocks(read, chain, look.kind, before, start, &counted).await
}

/// The next blocks that count, without their events.
pub(super) async fn read_refs(
    read: &LedgerRead,
    chain: ChainId,
    look: &Look,
    before: Option<&BlockRef>,
    start: Height,
    to: Height,
    limit: u64,
) -> Result<Vec<StoredBlock>, StoreError> {
    let from = before.map_or(start, |b| b.height.next());
    let mut stored = read.stored_blocks(chain, from, to, limit as i64).await?;
    let counted = counting(before, start, look.complete_to, &stored);
    stored.truncate(counted);
    Ok(stored)
}

async fn net_blocks(
    read: &LedgerRead,
    chain: ChainId,
    kind: Kind,
    before: Option<&BlockRef>,
    start: Height,
    stored: &[StoredBlock],
) -> Result<Vec<Prepared>, StoreError> {
    let (Some(first), Some(last)) = (stored.first(), stored.last()) else { return Ok(Vec::new()) };
    let mut expected = before.map_or(start, |b| b.height.next());
    let mut prepared: Vec<Prepared> = stored
        .iter()
        .map(|b| {
            let gap = b.height != expected;
            expected = b.height.next();
            let block = BlockRef { height: b.height, hash: b.hash.clone() };
            Prepared { block, revision: b.revision, netted: Netted::default(), gap }
        })
        .collect();
    let mut at = 0;
    read.movements(chain, first.height, last.height, |height, event| {
        while at < prepared.len() && prepared[at].block.height < height {
            at += 1;
        }
        // Events of a height without a block row do not count.
        if let Some(block) = prepared.get_mut(at).filter(|p| p.block.height == height) {
            block.netted.take(kind, height, event);
        }
    })
    .await?;
    Ok(prepared)
}

/// Blocks that go into one transaction.
pub(super) struct Batch {
    pub(super) apply: ApplyBlock,
    pub(super) events: u64,
    pub(super) refused: u64,
}

/// Puts blocks (ascending, following `before`) into one transaction. `journalled`: blocks below are in the journal of
/// applied blocks, so these must be too, final or not: it has no holes, or they would look like blocks never applied.
pub(super) fn batch(
    look: &Look,
    settings: &token_balances::Settings,
    before: Option<&(BlockRef, Option<i64>)>,
    start: Height,
    journalled: bool,
    blocks: Vec<Prepared>,
) -> Batch {
    let mut fence = Fence::default();
    if let Some((block, revision)) = before {
        fence.hold(block, *revision);
    }
    let mut events = 0;
    let mut refused = Vec::new();
    let mut noted = Vec::with_capacity(blocks.len());
    let mut nets = Vec::with_capacity(blocks.len());
    let mut through = start;
    for prepared in blocks {
        fence.hold(&prepared.block, Some(prepared.revision));
        if prepared.gap {
            fence.needs_complete_to(prepared.block.height.minus(1));
        }
        events += prepared.netted.events;
        refused.extend(prepared.netted.refused);
        through = prepared.block.height;
        nets.push((prepared.block.height, prepared.netted.net));
        noted.push((prepared.block, prepared.revision));
    }
    let is_final = look.final_height.is_some_and(|f| through <= f);
    let apply = ApplyBlock {
        fence,
        blocks: noted,
        through,
        start,
        final_height: look.final_height.filter(|_| !journalled),
        changes: token_balances::changes(nets),
        // What is in the journal can be taken back.
        history: settings.history == History::Full || !is_final || journalled,
        refuse_negative: settings.negative_balances == NegativeBalances::Halt,
        refused,
    };
    let refused = apply.refused.len() as u64;
    Batch { apply, events, refused }
}

impl Task {
    /// Applies what counts above the checkpoint, up to `cap`.
    pub(super) async fn extend(
        &mut self,
        session: &Session,
        look: &Look,
        start: Height,
        cap: Height,
    ) -> Result<Outcome, Fault> {
        let Some(tip) = look.checkpoint.block.clone() else { return Ok(Outcome::Idle) };
        let ours = session.read.applied_blocks(self.chain, NAME).await?;
        let revision = ours.last().filter(|(b, _)| *b == tip).map(|(_, revision)| *revision);
        let (to_apply, mut chunks) = mpsc::channel::<Result<Vec<Prepared>, StoreError>>(1);
        let outcome = {
            let reading = read_ahead(&session.read, self.chain, look, tip.clone(), start, cap, to_apply);
            let applying = self.apply_chunks(session, look, start, !ours.is_empty(), (tip, revision), &mut chunks);
            let (mut reading, mut applying) = (pin!(reading), pin!(applying));
            let mut read_to_the_end = false;
            loop {
                tokio::select! {
                    () = &mut reading, if !read_to_the_end => read_to_the_end = true,
                    outcome = &mut applying => break outcome?,
                }
            }
        };
        match outcome {
            Outcome::Idle => self.pass_empty_blocks(session, look, cap).await,
            moved => Ok(moved),
        }
    }

    async fn apply_chunks(
        &mut self,
        session: &Session,
        look: &Look,
        start: Height,
        journalled: bool,
        from: (BlockRef, Option<i64>),
        chunks: &mut mpsc::Receiver<Result<Vec<Prepared>, StoreError>>,
    ) -> Result<Outcome, Fault> {
        let mut before = Some(from);
        let mut seq = look.checkpoint.seq;
        let mut moved = false;
        let mut in_flight = FuturesOrdered::new();
        let settings = self.settings.token_balances;
        let (chain, write) = (self.chain, &session.write);
        let of = Of { chain: &look.chain_name, projection: NAME };
        let mut watch = AppliedWatch { of, watcher: &*self.watcher, since: Instant::now() };
        let mut last_height = None;
        let mut blocks_total = 0u64;
        let mut events_in_flight = 0u64;
        'chunks: while let Some(chunk) = chunks.recv().await {
            let chunk = chunk?;
            let mut chunk = chunk.into_iter().peekable();
            while let Some(first) = chunk.next() {
                if self.shutdown.is_cancelled() {
                    break 'chunks;
                }
                if settings.on_bad_event == OnBadEvent::Halt && !first.netted.refused.is_empty() {
                    drain(&mut in_flight, &mut watch).await?;
                    let reason = bad_event(&first);
                    write.halt(chain, NAME, seq, &reason).await?;
                    return Ok(Outcome::Moved);
                }
                let mut blocks = vec![first];
                let most = (self.settings.batch as u64).min(self.most_blocks);
                let is_final = |p: &Prepared| look.final_height.is_some_and(|f| p.block.height <= f);
                while (blocks.len() as u64) < most
                    && is_final(&blocks[blocks.len() - 1])
                    && let Some(next) = chunk.next_if(|p| {
                        is_final(p) && (p.netted.refused.is_empty() || settings.on_bad_event != OnBadEvent::Halt)
                    })
                {
                    blocks.push(next);
                }
                let last = blocks.last().map(|p| (p.block.clone(), Some(p.revision)));
                blocks_total += blocks.len() as u64;
                let count = blocks.len() as u64;
                let batch = batch(look, &settings, before.as_ref(), start, journalled, blocks);
                last_height = Some(batch.apply.through);
                let this_seq = seq;
                events_in_flight += batch.events;
                in_flight.push_back(async move {
                    let result = write.apply(chain, NAME, this_seq, &batch.apply).await;
                    let what = match &batch.apply.blocks[..] {
                        [(only, _)] => format!("block {only}"),
                        several => format!("{} blocks up to {}", several.len(), batch.apply.through),
                    };
                    let at = Some(batch.apply.through);
                    let failed = |error| Failed { error, seq: this_seq, what, at };
                    (result.map_err(failed), count, batch.events, batch.refused)
                });
                before = last;
                seq += 1;
                moved = true;
                while in_flight.len() >= IN_FLIGHT || events_in_flight > IN_FLIGHT_EVENTS && in_flight.len() > 1 {
                    let Some(answer) = in_flight.next().await else { break };
                    events_in_flight -= answer.2;
                    if !watch.take(answer)? {
                        return Ok(Outcome::Contended);
                    }
                }
            }
            // Early, while it costs nothing; later the server does it by itself.
            if !self.analyzed && blocks_total > 50 {
                self.analyzed = true;
                write.analyze().await?;
            }
        }
        if !drain(&mut in_flight, &mut watch).await? {
            return Ok(Outcome::Contended);
        }
        drop(in_flight);
        if let Some(height) = last_height {
            tracing::info!(
                chain = %look.chain_name, height = height.get(), blocks = blocks_total,
                "Applied {blocks_total} blocks of {} up to {height}", look.chain_name
            );
            self.grow();
            self.without_followers = false;
        }
        Ok(if moved { Outcome::Moved } else { Outcome::Idle })
    }

    /// Where no block is stored above the last one applied up to `complete_to`, the heights between are empty, and count as
    /// applied. Where one came that does not count yet, or `complete_to` fell, they count no longer.
    pub(super) async fn pass_empty_blocks(
        &self,
        session: &Session,
        look: &Look,
        cap: Height,
    ) -> Result<Outcome, Fault> {
        let (Some(through), Some(tip)) = (look.checkpoint.through, &look.checkpoint.block) else {
            return Ok(Outcome::Idle);
        };
        let empty_to = look.complete_to.map_or(tip.height, |c| c.min(cap)).max(tip.height);
        let to = if empty_to == tip.height
            || session.read.stored_blocks(self.chain, tip.height.next(), empty_to, 1).await?.is_empty()
        {
            empty_to
        } else {
            tip.height
        };
        if to == through {
            return Ok(Outcome::Idle);
        }
        let passed = session.write.pass_empty_blocks(self.chain, &self.name, look.checkpoint.seq, to).await?;
        Ok(if passed.is_some() { Outcome::Moved } else { Outcome::Contended })
    }
}

pub(super) fn bad_event(block: &Prepared) -> String {
    let refused = &block.netted.refused;
    match refused.first() {
        Some(r) => format!(
            "block {}: event {} of transaction {} cannot be applied: {}",
            block.block, r.event_index, r.tx_index, r.reason
        ),
        None => format!("block {} cannot be applied", block.block),
    }
}

type Answer = (Result<Option<Applied>, Failed>, u64, u64, u64);

struct AppliedWatch<'a> {
    of: Of<'a>,
    watcher: &'a dyn super::Watcher,
    since: Instant,
}

impl AppliedWatch<'_> {
    /// False: the fence did not hold.
    fn take(&mut self, (result, blocks, events, refused): Answer) -> Result<bool, Fault> {
        let now = Instant::now();
        match result {
            Ok(Some(applied)) => {
                let negative = applied.negative;
                self.watcher.applied(self.of, Done { blocks, events, negative, refused, took: now - self.since });
                if applied.negative > 0 {
                    tracing::debug!(
                        chain = self.of.chain,
                        negative = applied.negative,
                        "Balances are negative: history before the start is missing"
                    );
                }
                self.since = now;
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(failed) => Err(Fault::Failed(failed)),
        }
    }
}

async fn drain<F: Future<Output = Answer>>(
    in_flight: &mut FuturesOrdered<F>,
    watch: &mut AppliedWatch<'_>,
) -> Result<bool, Fault> {
    while let Some(answer) = in_flight.next().await {
        if !watch.take(answer)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Reads chunk after chunk until the end of what counts, or until nobody takes them any more.
async fn read_ahead(
    read: &LedgerRead,
    chain: ChainId,
    look: &Look,
    tip: BlockRef,
    start: Height,
    cap: Height,
    to_apply: mpsc::Sender<Result<Vec<Prepared>, StoreError>>,
) {
    let mut before = tip;
    let mut limit = 16;
    let mut unsettled = 0;
    loop {
        let chunk = read_chunk(read, chain, look, Some(&before), start, cap, limit).await;
        let mut ended = chunk.as_ref().map_or(true, |chunk| (chunk.len() as u64) < limit);
        if let Ok(chunk) = &chunk {
            if let Some(last) = chunk.last() {
                before = last.block.clone();
            }
            let events: u64 = chunk.iter().map(|p| p.netted.events).sum();
            // As many blocks as hold a chunk's events, but never more than four times as many as now.
            let fitting = limit * CHUNK_EVENTS / events.max(1);
            limit = fitting.clamp(*CHUNK_BLOCKS.start(), (limit * 4).min(*CHUNK_BLOCKS.end()));
            if chunk.is_empty() {
                return;
            }
            unsettled += chunk.iter().filter(|p| look.final_height.is_none_or(|f| p.block.height > f)).count() as u64;
            ended |= unsettled >= UNSETTLED_BLOCKS;
        }
        if to_apply.send(chunk).await.is_err() || ended {
            return;
        }
    }
}
