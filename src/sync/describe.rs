//! What tokens say of themselves, read beside the path of blocks: anybody can make a token that answers slowly, or not at all.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::SyncError;
use crate::chain::{Block, ChainId, Text};
use crate::sources::{Source, TokenMetadata};
use crate::store::{Store, TokenDescription};

/// Tokens that wait to be asked; more are asked when they move again.
const MOST_WAITING: usize = 1_000;
/// Tokens in one question.
const AT_ONCE: usize = 50;
/// Tokens that are remembered as asked for. Beyond, all are forgotten, and looked for in the database first as any other.
const MOST_REMEMBERED: usize = 100_000;

/// Asks new tokens, in a task of its own that ends with it.
pub(super) struct Descriptions {
    asked: HashSet<Text>,
    to_ask: mpsc::Sender<Text>,
    failed: mpsc::UnboundedReceiver<Vec<Text>>,
    _task: AbortOnDropHandle<()>,
}

impl Descriptions {
    pub(super) fn start(store: Store, source: Arc<dyn Source>, chain: ChainId) -> Descriptions {
        let (to_ask, mut waiting) = mpsc::channel(MOST_WAITING);
        let (fail, failed) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            let mut tokens = Vec::new();
            while waiting.recv_many(&mut tokens, AT_ONCE).await > 0 {
                if let Err(error) = describe(&store, &*source, chain, &tokens).await {
                    tracing::warn!(%error, "Token metadata could not be read; asking again when the token moves");
                    // A send fails only once the syncer is gone, and this task ends with it.
                    let _ = fail.send(std::mem::take(&mut tokens));
                }
                tokens.clear();
            }
        });
        Descriptions { asked: HashSet::new(), to_ask, failed, _task: AbortOnDropHandle::new(task) }
    }

    /// Has the tokens of these blocks asked that were not yet. Waits for nothing.
    pub(super) fn ask_for(&mut self, blocks: &[Block]) {
        while let Ok(tokens) = self.failed.try_recv() {
            tokens.iter().for_each(|token| {
                self.asked.remove(token);
            });
        }
        for event in blocks.iter().flat_map(|b| &b.token_events) {
            if self.asked.contains(&event.token) {
                continue;
            }
            if self.to_ask.try_send(event.token.clone()).is_err() {
                return;
            }
            if self.asked.len() >= MOST_REMEMBERED {
                self.asked.clear();
            }
            self.asked.insert(event.token.clone());
        }
    }

    /// Ends once all that wait were asked.
    pub(super) async fn finish(self) {
        let Descriptions { to_ask, _task: task, .. } = self;
        drop(to_ask);
        if let Err(error) = task.await {
            tracing::warn!(%error, "Token metadata could not be read");
        }
    }
}

async fn describe(store: &Store, source: &dyn Source, chain: ChainId, tokens: &[Text]) -> Result<(), SyncError> {
    let unknown = store.tokens_without_metadata(chain, tokens).await?;
    if unknown.is_empty() {
        return Ok(());
    }
    let found = source.token_metadata(&unknown).await?;
    let described: Vec<_> = found.iter().map(description).collect();
    Ok(store.put_metadata(chain, &described).await?)
}

fn description(found: &TokenMetadata) -> TokenDescription<'_> {
    TokenDescription {
        token: &found.token,
        symbol: found.symbol.as_deref(),
        name: found.name.as_deref(),
        decimals: found.decimals,
    }
}
