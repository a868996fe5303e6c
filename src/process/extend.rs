//! Going on from the checkpoint: one future reads and nets ahead, the other applies, several transactions in flight.

use std::pin::pin;
use std::time::Instant;

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, StreamExt};
use tokio::sync::mpsc;

use super::engine::{Engine, Runs, Work};
use super::read::{CHUNK_EVENTS, Chunk, Prepared, Reader};
use super::task::{Failed, Fault, Outcome, Task};
use super::workers::Session;
use super::{Done, Of};
use crate::chain::decide::Look;
use crate::chain::{BlockRef, Height};
use crate::projections::token_balances::Accounts;
use crate::store::{Balance, LedgerRead, LedgerWrite, Run, StoreError};

/// Transactions sent before the first of them was answered.
const IN_FLIGHT: usize = 16;
/// And no more than hold so many events, or one: what waits in the connection is held several times over. Two large ones, so
/// that the next is encoded while the one before it is at work.
const IN_FLIGHT_EVENTS: u64 = 2 * CHUNK_EVENTS;
/// Blocks of a function sent ahead before no more are. A server works off what a killed processor sent, and others wait for
/// it meanwhile.
const FUNCTION_BLOCKS_AHEAD: u64 = 32;
/// After so many blocks that are not final, extending ends for a look, so that the journal is pruned.
const UNSETTLED_BLOCKS: u64 = 2_000;
/// After so long it ends for a look, so that other chains get their turn.
const TURN: std::time::Duration = std::time::Duration::from_secs(5);

/// How a transaction that was sent ended.
struct Answer {
    /// False: the fence did not hold.
    result: Result<bool, Failed>,
    done: Done,
}

/// How runs reach the database.
enum Path<'a> {
    /// One statement each, sent before the ones before it were answered.
    Ahead { write: &'a LedgerWrite, sent: FuturesOrdered<BoxFuture<'a, Answer>>, ahead: Done },
    /// Several statements each, one transaction after the other; `followed`: with those that follow.
    Apart { write: &'a mut LedgerWrite, followed: bool },
}

impl Task {
    /// Applies what counts above the checkpoint, up to `to`.
    pub(super) async fn extend(&mut self, session: &mut Session, look: &Look, to: Height) -> Result<Outcome, Fault> {
        let (Some(tip), Some(start)) = (look.checkpoint.block.clone(), look.start()) else {
            return Ok(Outcome::Settled);
        };
        // No further than what needs no journal, while any of it is to be applied: by then more blocks may be final.
        let next = look.ahead.first().map(|block| block.height);
        let end =
            look.unjournalled_to().filter(|end| next.is_some_and(|next| next <= *end)).map_or(to, |end| end.min(to));
        let Session { read, write } = session;
        let (to_apply, mut chunks) = mpsc::channel::<Result<Chunk, StoreError>>(1);
        let reading = self.engine.reading();
        let reader = Reader::new(read, self.engine.chain, look, (start, end), Some(tip), reading).with_those_ahead();
        let mut has_ended = false;
        let outcome = {
            let reading = read_ahead(reader, to_apply, &mut has_ended);
            let applying = self.apply_chunks(read, write, look, start, &mut chunks);
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
            // All that was there at the look is applied; what came since rings the bell.
            Outcome::Settled if has_ended && end == to && look.complete_to.is_none() && !self.settings.once => {
                Ok(Outcome::Settled)
            }
            Outcome::Settled => Ok(Outcome::Moved),
            outcome => Ok(outcome),
        }
    }

    /// Settled: all that was read is applied.
    async fn apply_chunks(
        &mut self,
        read: &LedgerRead,
        write: &mut LedgerWrite,
        look: &Look,
        start: Height,
        chunks: &mut mpsc::Receiver<Result<Chunk, StoreError>>,
    ) -> Result<Outcome, Fault> {
        let begun = Instant::now();
        let followed = look.followed && self.engine.is_balances() && !self.caution.without_followers;
        let mut path = match self.engine.work {
            Work::Balances if !followed => Path::ahead(write),
            Work::Function => Path::ahead(write),
            Work::Balances | Work::Code(_) => Path::Apart { write, followed },
        };
        let mut base = look.checkpoint.base();
        self.engine.know_on(&base);
        let revision = look.journal.last().filter(|(block, _)| Some(block) == base.block.as_ref()).map(|(_, r)| *r);
        let before = base.block.clone().map(|tip| (tip, revision));
        let journal_above = self.engine.journal_above(look, look.unjournalled_to());
        let mut runs = Runs::new(look, start, self.engine.digest(look), journal_above, before);
        let mut is_whole = true;
        let mut told = Told { task: look.chain_name.clone(), since: begun, blocks: 0 };
        // How many answers the look-up of the next chunk's balances need not wait for.
        let mut known = 0;
        while let Some(chunk) = chunks.recv().await {
            let Chunk { blocks, accounts } = chunk?;
            // Looked up where it is read, while the chunk before is being applied: what was sent before that one has taken
            // effect, and what that one touches is known here.
            if !self.take_answers(&mut path, &mut told, Wanted::Most(known)).await? {
                return Ok(Outcome::Contended);
            }
            let lookup = self.engine.lookup(&accounts);
            let found = read.balances_of(self.engine.chain, &lookup.keys).await?;
            let mut balances = lookup.filled(found)?;
            let mut runs_sent = 0;
            let mut rest = &blocks[..];
            while !rest.is_empty() {
                if self.shutdown.is_cancelled() {
                    return self.drain(&mut path, &mut told).await;
                }
                if let Some(reason) = self.engine.bad_event(&rest[0]) {
                    self.drain(&mut path, &mut told).await?;
                    path.write().halt(self.engine.chain, &self.engine.name, &base, &reason).await?;
                    return Ok(Outcome::Moved);
                }
                let most = if followed { 1 } else { self.most_in_run() };
                let (now, later) = rest.split_at(self.engine.run_length(&runs, rest, most));
                rest = later;
                let below = runs.before().cloned();
                let run = runs.next(base.clone(), now);
                let done = Done {
                    blocks: now.len() as u64,
                    events: now.iter().map(|b| b.netted.events).sum(),
                    refused: now.iter().map(|b| b.netted.refused.len() as u64).sum(),
                    ..Done::default()
                };
                base = match &mut path {
                    Path::Ahead { write, .. } => {
                        let next = base.after(run.last().clone());
                        let answer = match prepare(&self.engine, write, run, &accounts, &mut balances, now, done) {
                            Ok(answer) => answer,
                            Err(failed) => {
                                self.drain(&mut path, &mut told).await?;
                                return Err(Fault::Failed(*failed));
                            }
                        };
                        if !self.take_answers(&mut path, &mut told, Wanted::Room(done)).await? {
                            return Ok(Outcome::Contended);
                        }
                        path.send(answer, done);
                        next
                    }
                    Path::Apart { write, followed } => {
                        let failed = |error| Failed::of(&run, error);
                        let mut tx = write.transaction(self.engine.chain, &self.engine.name, base.clone()).await?;
                        // Those that follow read what the block changed, whether or not it is kept.
                        let applied = self.engine.apply(&mut tx, &run, &accounts, &mut balances, now, *followed).await;
                        let Some(negative) = applied.map_err(failed)? else { return Ok(Outcome::Contended) };
                        if *followed {
                            tx.follow_block(below.as_ref(), &run).await.map_err(failed)?;
                        }
                        let next = tx.commit().await.map_err(failed)?;
                        self.tell(&mut told, Done { negative, ..done });
                        next
                    }
                };
                runs_sent += 1;
                if !self.take_answers(&mut path, &mut told, Wanted::Most(IN_FLIGHT)).await? {
                    return Ok(Outcome::Contended);
                }
            }
            known = if self.engine.keep(&accounts, &balances, &base) { runs_sent } else { 0 };
            // Early, while it costs nothing, and beside what was sent; later the server does it on its own.
            if self.engine.is_balances() && !self.caution.analyzed && told.blocks > 50 {
                self.caution.analyzed = true;
                read.analyze().await?;
            }
            if begun.elapsed() > TURN {
                is_whole = false;
                break;
            }
        }
        let outcome = self.drain(&mut path, &mut told).await?;
        if outcome != Outcome::Moved {
            return Ok(outcome);
        }
        self.applied_to(look, base.block.as_ref(), told.blocks);
        Ok(if is_whole { Outcome::Settled } else { Outcome::Moved })
    }

    /// Hears of the transactions that were sent. False: one of them did not take effect, so none after it did.
    async fn take_answers(&mut self, path: &mut Path<'_>, told: &mut Told, wanted: Wanted) -> Result<bool, Fault> {
        let Path::Ahead { sent, ahead, .. } = path else { return Ok(true) };
        loop {
            let is_enough = match wanted {
                Wanted::Most(most) => sent.len() <= most,
                Wanted::Room(next) => {
                    let has_room = sent.len() < IN_FLIGHT && ahead.events + next.events <= IN_FLIGHT_EVENTS;
                    let is_balances = self.engine.is_balances();
                    sent.is_empty() || has_room && (is_balances || ahead.blocks < FUNCTION_BLOCKS_AHEAD)
                }
            };
            // Polled once even so, which sends what was not sent yet.
            let answer = if is_enough { sent.next().now_or_never().flatten() } else { sent.next().await };
            let Some(Answer { result, done }) = answer else { return Ok(true) };
            ahead.events -= done.events;
            ahead.blocks -= done.blocks;
            if !result.map_err(Fault::Failed)? {
                return Ok(false);
            }
            self.tell(told, done);
        }
    }

    async fn drain(&mut self, path: &mut Path<'_>, told: &mut Told) -> Result<Outcome, Fault> {
        let all = self.take_answers(path, told, Wanted::Most(0)).await?;
        Ok(if all { Outcome::Moved } else { Outcome::Contended })
    }

    fn tell(&self, told: &mut Told, done: Done) {
        let now = Instant::now();
        let of = Of { chain: &told.task, projection: &self.engine.name };
        self.watcher.applied(of, Done { took: now - told.since, ..done });
        (told.since, told.blocks) = (now, told.blocks + done.blocks);
        if done.negative > 0 {
            tracing::debug!(
                chain = %told.task,
                negative = done.negative,
                "Balances are negative: history before the start is missing"
            );
        }
    }

    fn applied_to(&mut self, look: &Look, last: Option<&BlockRef>, blocks: u64) {
        let Some(last) = last.filter(|_| blocks > 0) else { return };
        tracing::info!(
            chain = %look.chain_name, projection = %self.engine.name, height = last.height.get(), blocks,
            "Applied {blocks} blocks of {} up to {last}", look.chain_name
        );
        self.went_through();
    }
}

/// What has been told of an extension.
struct Told {
    /// The chain's name.
    task: String,
    since: Instant,
    blocks: u64,
}

/// Which answers are waited for.
#[derive(Clone, Copy)]
enum Wanted {
    /// As many as make room for a transaction that does this.
    Room(Done),
    /// As many as leave at most so many open; at [`IN_FLIGHT`] none, but those that came are heard.
    Most(usize),
}

impl<'a> Path<'a> {
    fn ahead(write: &'a LedgerWrite) -> Path<'a> {
        Path::Ahead { write, sent: FuturesOrdered::new(), ahead: Done::default() }
    }

    fn write(&self) -> &LedgerWrite {
        match self {
            Path::Ahead { write, .. } => write,
            Path::Apart { write, .. } => write,
        }
    }

    /// Queues a statement, which is sent when it is first polled.
    fn send(&mut self, answer: BoxFuture<'a, Answer>, done: Done) {
        let Path::Ahead { sent, ahead, .. } = self else { return };
        sent.push_back(answer);
        ahead.events += done.events;
        ahead.blocks += done.blocks;
    }
}

/// The statement that applies a run, to be sent.
fn prepare<'a>(
    engine: &Engine,
    write: &'a LedgerWrite,
    run: Run,
    accounts: &Accounts,
    balances: &mut [Balance],
    blocks: &[Prepared],
    done: Done,
) -> Result<BoxFuture<'a, Answer>, Box<Failed>> {
    let (chain, name) = (engine.chain, engine.name.clone());
    if !engine.is_balances() {
        return Ok(Box::pin(async move {
            let result = write.apply_function(chain, &name, &run).await;
            Answer { result: result.map_err(|error| Failed::of(&run, error)), done }
        }));
    }
    let changes = engine
        .changes(accounts, balances, blocks, &run, engine.keeps_history(&run))
        .map_err(|error| Box::new(Failed::of(&run, error)))?;
    let done = Done { negative: changes.negative, ..done };
    Ok(Box::pin(async move {
        let result = write.apply(chain, &name, &run, &changes).await;
        Answer { result: result.map_err(|error| Failed::of(&run, error)), done }
    }))
}

/// Reads chunk after chunk until the end of what counts, or until nobody takes them any more.
async fn read_ahead(mut reader: Reader<'_>, to_apply: mpsc::Sender<Result<Chunk, StoreError>>, has_ended: &mut bool) {
    let mut unsettled = 0;
    while unsettled < UNSETTLED_BLOCKS {
        // Read once there is room for it: a chunk takes megabytes.
        let Ok(room) = to_apply.reserve().await else { return };
        let chunk = match reader.next(u64::MAX).await {
            Ok(Some(chunk)) => Ok(chunk),
            Ok(None) => {
                *has_ended = true;
                break;
            }
            Err(error) => Err(error),
        };
        if let Ok(chunk) = &chunk {
            unsettled += chunk.blocks.iter().filter(|b| !reader.look.is_final(b.block.height)).count() as u64;
        }
        *has_ended = reader.has_ended();
        let failed = chunk.is_err();
        room.send(chunk);
        if failed {
            return;
        }
    }
}
