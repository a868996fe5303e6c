//! A small chain of its own, made from a seed: for a first look, and for tests. It reorganizes now and then.
//!
//! The chain moves in slots. In each, a block is added, or the last few are replaced by others (by as many, or by one
//! more). The chain as it stands after a slot follows from the settings alone (`script`), so another run goes on with
//! the same chain. Slots come by the clock, from the slot that the database holds.

mod script;

use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;

use self::script::{Chain, Script};
use super::{Head, Identity, Source, SourceError, TokenMetadata};
use crate::chain::{Block, BlockRef, Height, Kind, Link, Text};

/// Most blocks that one answer holds.
const ANSWER_BLOCKS: u64 = 1_000;

/// Most movements that one answer holds, unless a single block has more.
const ANSWER_EVENTS: u64 = 50_000;

/// What the devnet calls itself.
const NETWORK_ID: &str = "808080";

/// What kind of chain to make. All but the pace and the end decide what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevnetSettings {
    /// Another seed is another chain. Defaults to 1.
    pub seed: u64,
    /// Time between two slots. Defaults to 1 s; 0 is taken as 1 ms.
    pub block_interval: Duration,
    /// About one slot in so many replaces blocks; 0: none does. Defaults to 8.
    pub reorg_every: u64,
    /// Most blocks that are replaced at once, 1 to 1,000. Defaults to 3.
    pub max_reorg_depth: u64,
    /// Accounts that move tokens, 2 to 1,000. Defaults to 20.
    pub accounts: u64,
    /// Tokens, 1 to 100. Defaults to 3.
    pub tokens: u64,
    /// Movements in a block that is not empty, at most 100,000. Defaults to 10.
    pub events_per_block: u64,
    /// Blocks above genesis that are there at once, at most 10,000,000. Defaults to 100.
    pub blocks_at_start: u64,
    /// The chain ends at this height (none: never). Defaults to none.
    pub last_height: Option<u64>,
}

impl Default for DevnetSettings {
    fn default() -> DevnetSettings {
        DevnetSettings {
            seed: 1,
            block_interval: Duration::from_secs(1),
            reorg_every: 8,
            max_reorg_depth: 3,
            accounts: 20,
            tokens: 3,
            events_per_block: 10,
            blocks_at_start: 100,
            last_height: None,
        }
    }
}

/// The [devnet](self).
pub struct Devnet {
    script: Script,
    interval: Duration,
    state: Mutex<State>,
}

struct State {
    /// As it stood when the head was last asked for.
    chain: Chain,
    /// The slot that `since` belongs to.
    from_slot: u64,
    since: Instant,
}

/// Where a run goes on.
#[derive(Debug, Serialize, Deserialize)]
struct Position {
    seed: u64,
    /// Stands for all settings that decide what is in the chain, the seed included.
    settings: String,
    slot: u64,
}

impl Devnet {
    /// A devnet that begins now. Settings outside their bounds are taken as the nearest bound.
    pub fn new(settings: &DevnetSettings) -> Devnet {
        let script = Script::new(settings);
        let state = State { chain: script.start(), from_slot: 0, since: Instant::now() };
        let interval = settings.block_interval.max(Duration::from_millis(1));
        Devnet { script, interval, state: Mutex::new(state) }
    }

    /// Whole at any time: each change is one call.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn other(&self, what: &str) -> SourceError {
        SourceError::permanent(format!(
            "the database holds {what}; this one has the seed {}. Give the seed and the settings it was made with, \
             or use another chain name",
            self.script.seed()
        ))
    }

    fn slot_of(&self, tip: &BlockRef, position: Option<&Value>) -> Result<Chain, SourceError> {
        if let Some(value) = position {
            let position: Position = serde_json::from_value(value.clone())
                .map_err(|_| self.other(&format!("a chain of another source ({value}), not a devnet")))?;
            if position.settings != self.script.fingerprint() {
                return Err(if position.seed == self.script.seed() {
                    self.other("a devnet of the same seed made with other settings")
                } else {
                    self.other(&format!("a devnet of the seed {}", position.seed))
                });
            }
            return Ok(self.script.after(position.slot));
        }
        // The height never falls, and no slot reaches further down than the deepest reorg.
        let mut chain = self.script.start();
        let highest = tip.height.get().saturating_add(self.script.deepest_reorg() + 1).max(chain.height());
        while chain.height() <= highest {
            if self.script.hash(&chain, tip.height).is_some_and(|hash| hash == tip.hash) {
                return Ok(chain);
            }
            if !self.script.advance(&mut chain) {
                break;
            }
        }
        Err(self.other(&format!("block {tip}, which is not of this devnet")))
    }
}

#[async_trait]
impl Source for Devnet {
    async fn identify(&self) -> Result<Identity, SourceError> {
        Ok(Identity { kind: Kind::Evm, network_id: Some(NETWORK_ID.into()) })
    }

    async fn resume(&self, tip: Option<&BlockRef>, position: Option<&Value>) -> Result<(), SourceError> {
        let chain = match tip {
            Some(tip) => self.slot_of(tip, position)?,
            None => self.script.start(),
        };
        let mut state = self.state();
        *state = State { from_slot: chain.slot(), chain, since: Instant::now() };
        Ok(())
    }

    async fn first_height(&self) -> Result<Height, SourceError> {
        Ok(Height::default())
    }

    async fn head(&self) -> Result<Head, SourceError> {
        let mut state = self.state();
        let slots = state.since.elapsed().as_nanos() / self.interval.as_nanos();
        let due = state.from_slot.saturating_add(u64::try_from(slots).unwrap_or(u64::MAX));
        while state.chain.slot() < due && !self.script.is_over(&state.chain) && self.script.advance(&mut state.chain) {}
        let position = Position {
            seed: self.script.seed(),
            settings: self.script.fingerprint().to_owned(),
            slot: state.chain.slot(),
        };
        let block = self.script.tip(&state.chain);
        let last = self.script.is_over(&state.chain);
        Ok(Head { block, finalized: None, position: serde_json::to_value(position).ok(), last, truth: true })
    }

    async fn links(&self, heights: RangeInclusive<Height>) -> Result<Vec<Link>, SourceError> {
        let state = self.state();
        let heights = heights.start().get()..=heights.end().get().min(state.chain.height());
        Ok(heights.filter_map(|height| self.script.link(&state.chain, Height::new(height)?)).collect())
    }

    async fn blocks(&self, heights: RangeInclusive<Height>) -> Result<Vec<Block>, SourceError> {
        let state = self.state();
        let heights = heights.start().get()..=heights.end().get().min(state.chain.height());
        let blocks = (ANSWER_EVENTS / self.script.events_per_block().max(1)).clamp(1, ANSWER_BLOCKS);
        let heights = heights.take(usize::try_from(blocks).unwrap_or(1));
        Ok(heights.filter_map(|height| self.script.block(&state.chain, Height::new(height)?)).collect())
    }

    async fn wait(&self, at_most: Duration) {
        let until = {
            let state = self.state();
            let slots = u32::try_from(state.chain.slot() + 1 - state.from_slot).unwrap_or(u32::MAX);
            let next = self.interval.checked_mul(slots).and_then(|after| state.since.checked_add(after));
            let latest = Instant::now() + at_most;
            if self.script.is_over(&state.chain) { latest } else { next.map_or(latest, |next| next.min(latest)) }
        };
        tokio::time::sleep_until(until).await;
    }

    async fn token_metadata(&self, tokens: &[Text]) -> Result<Vec<TokenMetadata>, SourceError> {
        Ok(tokens.iter().filter_map(|token| self.script.metadata(token)).collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use super::*;
    use serde_json::json;

    fn settings() -> DevnetSettings {
        DevnetSettings { block_interval: Duration::from_secs(3600), reorg_every: 2, ..DevnetSettings::default() }
    }

    #[tokio::test]
    async fn a_restart_goes_on_from_the_slot_it_was_stopped_at() {
        let devnet = Devnet::new(&settings());
        for slot in [0, 1, 2, 3, 50, 51, 52] {
            let chain = devnet.script.after(slot);
            let tip = devnet.script.tip(&chain);
            let position = json!({"seed": 1, "settings": devnet.script.fingerprint(), "slot": slot});
            devnet.resume(Some(&tip), Some(&position)).await.unwrap();
            let head = devnet.head().await.unwrap();
            assert_eq!((&head.block, &head.position), (&tip, &Some(position)));
            // Without its position the same slot is found by its tip.
            devnet.resume(Some(&tip), None).await.unwrap();
            assert_eq!(devnet.head().await.unwrap(), head);
            // And one that holds it, if only a part of its blocks was stored.
            for height in 90..tip.height.get() {
                let part = devnet.script.link(&chain, Height::new(height).unwrap()).unwrap().block_ref();
                devnet.resume(Some(&part), None).await.unwrap();
                let links = devnet.links(part.height..=part.height).await.unwrap();
                assert_eq!(links[0].block_ref(), part);
            }
        }
    }

    #[tokio::test]
    async fn a_database_of_another_devnet_is_refused() {
        let other = Devnet::new(&DevnetSettings { seed: 7, ..settings() });
        let head = other.head().await.unwrap();
        let devnet = Devnet::new(&settings());
        let refused = |position: Option<Value>| {
            let (devnet, tip) = (&devnet, head.block.clone());
            async move { devnet.resume(Some(&tip), position.as_ref()).await.unwrap_err().to_string() }
        };
        assert!(refused(head.position.clone()).await.contains("holds a devnet of the seed 7; this one has the seed 1"));
        assert!(refused(None).await.contains("which is not of this devnet"));
        let more = Devnet::new(&DevnetSettings { accounts: 5, ..settings() }).head().await.unwrap();
        assert!(refused(more.position).await.contains("same seed made with other settings"));
        assert!(refused(Some(json!({"path": "x", "line": 1}))).await.contains("a chain of another source"));
    }

    #[tokio::test]
    async fn slots_come_by_the_clock_up_to_the_last_height() {
        let quick = DevnetSettings {
            block_interval: Duration::from_millis(5),
            blocks_at_start: 3,
            last_height: Some(12),
            ..settings()
        };
        let devnet = Devnet::new(&quick);
        let (mut slots, mut head) = (Vec::new(), devnet.head().await.unwrap());
        assert!(!head.last);
        let begun = Instant::now();
        while !head.last {
            assert!(begun.elapsed() < Duration::from_secs(30));
            slots.push(head.position.clone().unwrap()["slot"].as_u64().unwrap());
            devnet.wait(Duration::from_secs(3600)).await;
            head = devnet.head().await.unwrap();
        }
        assert!(slots.windows(2).all(|w| w[0] < w[1]), "each wait ends with a new slot: {slots:?}");
        assert_eq!(head.block.height, Height::from(12));
        let slot = head.position.clone().unwrap()["slot"].as_u64().unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(5) * u32::try_from(slot - slots[0] - 1).unwrap());
        assert_eq!(devnet.head().await.unwrap(), head);
    }

    #[tokio::test]
    async fn tokens_say_what_they_are_called() {
        let devnet = Devnet::new(&settings());
        let genesis = devnet.blocks(Height::default()..=Height::default()).await.unwrap();
        let tokens: Vec<Text> = [0, 20, 40].map(|event| genesis[0].token_events[event].token.clone()).into();
        let metadata = devnet.token_metadata(&[tokens.clone(), vec!["0xff".into()]].concat()).await.unwrap();
        let symbols: Vec<_> = metadata.iter().map(|token| token.symbol.as_deref().unwrap()).collect();
        assert_eq!(symbols, ["GOLD", "SILVER", "COPPER"]);
        let kind = devnet.identify().await.unwrap().kind;
        assert!(tokens.iter().all(|token| kind.is_token(token)));
        assert!(genesis[0].token_events.iter().all(|event| kind.is_address(event.to.as_deref().unwrap())));
    }
}
