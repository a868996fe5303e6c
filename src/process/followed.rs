//! Projections that run after another one: both halves of it. The followed one takes its followers along in its own
//! transactions; a follower that is elsewhere goes its own way until it is there.

use std::time::Instant;

use super::extend::{bad_event, batch, read_chunk};
use super::look::{Difference, Failed, Fault, Outcome, Task};
use super::{Done, Of, Session};
use crate::chain::{BlockRef, Height};
use crate::projections::token_balances::{NAME, OnBadEvent};
use crate::store::{After, Look};

/// Blocks read at once.
const CHUNK_BLOCKS: u64 = 100;

impl Task {
    /// Goes on from the checkpoint with all followers: one transaction per block for all of them.
    pub(super) async fn extend_followed(
        &mut self,
        session: &mut Session,
        look: &Look,
        start: Height,
        cap: Height,
    ) -> Result<Outcome, Fault> {
        let Some(tip) = look.checkpoint.block.clone() else { return Ok(Outcome::Idle) };
        let ours = session.read.applied_blocks(self.chain, NAME).await?;
        let revision = ours.last().filter(|(b, _)| *b == tip).map(|(_, revision)| *revision);
        let settings = self.settings.token_balances;
        let of = Of { chain: &look.chain_name, projection: NAME };
        let chunk = read_chunk(&session.read, self.chain, look, Some(&tip), start, cap, CHUNK_BLOCKS).await?;
        if chunk.is_empty() {
            return self.pass_empty_blocks(session, look, cap).await;
        }
        let mut before = (tip, revision);
        let mut seq = look.checkpoint.seq;
        let mut journalled = !ours.is_empty();
        let mut applied_blocks = 0u64;
        for prepared in chunk {
            if self.shutdown.is_cancelled() {
                break;
            }
            let since = Instant::now();
            if settings.on_bad_event == OnBadEvent::Halt && !prepared.netted.refused.is_empty() {
                session.write.halt(self.chain, NAME, seq, &bad_event(&prepared)).await?;
                return Ok(Outcome::Moved);
            }
            let (block, revision) = (prepared.block.clone(), prepared.revision);
            let below = before.0.clone();
            let mut batch = batch(look, &settings, Some(&(before.0, before.1)), start, journalled, vec![prepared]);
            // They read what the block changed, whether or not it is kept.
            batch.apply.history = true;
            let record = batch.apply.final_height.is_none_or(|f| block.height > f);
            journalled |= record;
            let failed = |error| {
                let what = format!("block {block}");
                Fault::Failed(Failed { error, seq, what, at: Some(block.height) })
            };
            let mut tx = session.write.block_transaction(self.chain, NAME, seq).await?;
            let Some(applied) = tx.apply(&batch.apply).await.map_err(failed)? else {
                return Ok(Outcome::Contended);
            };
            tx.follow_block(Some(&below), &block, revision, start, record).await.map_err(failed)?;
            seq = tx.commit().await.map_err(failed)?;
            applied_blocks += 1;
            let (negative, refused, took) = (applied.negative, batch.refused, since.elapsed());
            self.watcher.applied(of, Done { blocks: 1, events: batch.events, negative, refused, took });
            before = (block, Some(revision));
        }
        tracing::info!(
            chain = %look.chain_name, height = before.0.height.get(), blocks = applied_blocks,
            "Applied {applied_blocks} blocks of {} up to {}", look.chain_name, before.0.height
        );
        self.grow();
        Ok(Outcome::Moved)
    }

    /// What a follower does, if it need not go its own way.
    pub(super) async fn follow(
        &mut self,
        session: &mut Session,
        look: &Look,
        after: &After,
    ) -> Result<Option<Outcome>, Fault> {
        let checkpoint = &look.checkpoint;
        let stops_at = checkpoint.stops_at();
        let in_step = |block: &BlockRef| {
            checkpoint.block.as_ref() == Some(block)
                && checkpoint.redo_from.is_none()
                // Another start may lead to the same block.
                && checkpoint.begun_at == look.start()
                && self.digest(look) == checkpoint.digest
                && stops_at.is_none_or(|at| block.height <= at)
        };
        match &after.block {
            Some(block) if in_step(block) => {
                if std::mem::take(&mut self.has_replica) {
                    session.write.drop_replica().await?;
                }
                self.stuck_at = None;
                self.forget_failure(session, look).await?;
                self.prune(session, look).await?;
                self.show_idle(look);
                // Heights without a block are passed by each for itself, and passed back where they are empty no longer.
                let passed = match stops_at {
                    Some(at) if look.complete_to.is_some() || checkpoint.through != Some(block.height) => {
                        self.pass_empty_blocks(session, look, at).await?
                    }
                    _ => Outcome::Idle,
                };
                Ok(Some(passed))
            }
            // It is about to go over to another branch, and takes along whoever stands where it stands.
            Some(_) if after.stands => {
                self.has_replica = true;
                Ok(None)
            }
            // It left its last block without this one: nothing stands any more.
            None if checkpoint.block.is_some() && stops_at.is_some() => {
                let rebuild = Some("the projection that it follows has no block");
                let all = Difference { ancestor: None, deep: true, down: Vec::new(), same_branch: false, rebuild };
                self.switch_tracked(session, look, None, Height::MAX, all).await.map(Some)
            }
            _ => {
                if after.block.is_none() && stops_at.is_some() {
                    self.forget_failure(session, look).await?;
                }
                self.show_idle(look);
                Ok(Some(Outcome::Idle))
            }
        }
    }
}
