//! What the devnet's chain is after each slot: a pure function of the settings. No clock, no stored state but one
//! number a height.
//!
//! Accounts never overdraw without any ledger being kept: genesis mints 10^30 base units of every token to every
//! account, and no movement takes more than 10^18, so it would take 10^12 of them to empty one. What a block pays to an
//! account made up for it (one block in three does) exists on that block's branch only.

use sha2::{Digest, Sha256};

use super::DevnetSettings;
use crate::chain::dice::Dice;
use crate::chain::{Amount, Block, BlockRef, Hash, Height, Link, Text, TokenEvent, Transaction};
use crate::sources::TokenMetadata;

/// Names by which the first tokens go.
const METALS: [&str; 8] = ["Gold", "Silver", "Copper", "Tin", "Iron", "Lead", "Zinc", "Nickel"];

/// Unix seconds of genesis: 2024-01-01. Real time would make two runs' blocks differ.
const GENESIS_TIME: i64 = 1_704_067_200;

/// Seconds between two heights, as the blocks tell it.
const SECONDS_A_BLOCK: i64 = 12;

/// Settings within their bounds, and what follows from them.
pub(super) struct Script {
    settings: DevnetSettings,
    /// Hash of all settings that decide what is in the chain: every other hash is made from it.
    root: [u8; 32],
    fingerprint: String,
    tokens: Vec<Text>,
    accounts: Vec<Text>,
}

/// The chain after a slot: for each height the slot in which its block was made. A block is named by both, since a
/// slot makes at most one block a height; all the blocks that it makes stand on one another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    slot: u64,
    made_in: Vec<u32>,
}

impl Chain {
    pub(super) fn slot(&self) -> u64 {
        self.slot
    }

    pub(super) fn height(&self) -> u64 {
        self.made_in.len() as u64 - 1
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::from("0x"), |mut text, byte| {
        // Writing into a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl Script {
    pub(super) fn new(given: &DevnetSettings) -> Script {
        let settings = DevnetSettings {
            max_reorg_depth: given.max_reorg_depth.clamp(1, 1_000),
            accounts: given.accounts.clamp(2, 1_000),
            tokens: given.tokens.clamp(1, 100),
            events_per_block: given.events_per_block.min(100_000),
            blocks_at_start: given.blocks_at_start.min(10_000_000),
            ..given.clone()
        };
        let mut root = Sha256::new_with_prefix("ebbtide devnet 1");
        for number in [
            settings.seed,
            settings.reorg_every,
            settings.max_reorg_depth,
            settings.accounts,
            settings.tokens,
            settings.events_per_block,
            settings.blocks_at_start,
        ] {
            root.update(number.to_be_bytes());
        }
        let mut script = Script {
            settings,
            root: root.finalize().into(),
            fingerprint: String::new(),
            tokens: Vec::new(),
            accounts: Vec::new(),
        };
        script.fingerprint = hex(&script.root[..8]);
        script.tokens = (0..script.settings.tokens).map(|n| script.address("token", &[n])).collect();
        script.accounts = (0..script.settings.accounts).map(|n| script.address("account", &[n])).collect();
        script
    }

    pub(super) fn seed(&self) -> u64 {
        self.settings.seed
    }

    pub(super) fn deepest_reorg(&self) -> u64 {
        self.settings.max_reorg_depth
    }

    pub(super) fn events_per_block(&self) -> u64 {
        self.settings.events_per_block
    }

    pub(super) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Slot 0: genesis and the blocks that are there at once.
    pub(super) fn start(&self) -> Chain {
        let height = self.settings.blocks_at_start.min(self.settings.last_height.unwrap_or(u64::MAX));
        Chain { slot: 0, made_in: vec![0; height as usize + 1] }
    }

    /// The chain after a slot.
    pub(super) fn after(&self, slot: u64) -> Chain {
        let mut chain = self.start();
        while chain.slot < slot && self.advance(&mut chain) {}
        chain
    }

    /// Moves on by one slot, by one height at most; false when there are no more slots. Where the chain should end is
    /// for the caller to ask ([`Script::is_over`]).
    pub(super) fn advance(&self, chain: &mut Chain) -> bool {
        let Ok(slot) = u32::try_from(chain.slot + 1) else { return false };
        let mut dice = self.dice("slot", &[u64::from(slot)]);
        let reorg = self.settings.reorg_every > 0 && dice.below(self.settings.reorg_every) == 0;
        // Genesis stays.
        let depth = (1 + dice.below(self.settings.max_reorg_depth)).min(chain.height());
        let longer = dice.below(2) as usize;
        let (gone, new) = if reorg && depth > 0 { (depth as usize, depth as usize + longer) } else { (0, 1) };
        chain.made_in.truncate(chain.made_in.len() - gone);
        chain.made_in.extend(std::iter::repeat_n(slot, new));
        chain.slot = u64::from(slot);
        true
    }

    /// Whether the chain has come to its last height.
    pub(super) fn is_over(&self, chain: &Chain) -> bool {
        self.settings.last_height.is_some_and(|last| chain.height() >= last)
    }

    /// The newest block.
    pub(super) fn tip(&self, chain: &Chain) -> BlockRef {
        let height = Height::default().plus(chain.height());
        BlockRef { height, hash: self.hash_of(chain.height(), chain.made_in.last().copied().unwrap_or(0)) }
    }

    /// The hash at a height, if the chain goes that far.
    pub(super) fn hash(&self, chain: &Chain, height: Height) -> Option<Hash> {
        let made_in = *chain.made_in.get(usize::try_from(height.get()).ok()?)?;
        Some(self.hash_of(height.get(), made_in))
    }

    /// The block at a height and its parent, if the chain goes that far.
    pub(super) fn link(&self, chain: &Chain, height: Height) -> Option<Link> {
        let parent_hash = match height.prev() {
            Some(below) => self.hash(chain, below)?,
            None => Hash::new(format!("0x{}", "0".repeat(64))),
        };
        Some(Link { height, hash: self.hash(chain, height)?, parent_hash })
    }

    /// The block at a height with what it holds, if the chain goes that far.
    pub(super) fn block(&self, chain: &Chain, height: Height) -> Option<Block> {
        let link = self.link(chain, height)?;
        let made_in = *chain.made_in.get(usize::try_from(height.get()).ok()?)?;
        let token_events = if height.get() == 0 { self.genesis() } else { self.events(height.get(), made_in) };
        let transactions = token_events.iter().map(|event| Transaction {
            tx_index: event.tx_index,
            hash: hex(&self.digest("transaction", &[height.get(), u64::from(made_in), event.tx_index])).into(),
            success: true,
        });
        let seconds = i64::try_from(height.get()).ok()?.checked_mul(SECONDS_A_BLOCK)?.checked_add(GENESIS_TIME)?;
        Some(Block {
            link,
            time: jiff::Timestamp::from_second(seconds).ok(),
            transactions: transactions.collect(),
            token_events,
            events: Vec::new(),
            rejects: Vec::new(),
        })
    }

    /// What a token of this devnet calls itself.
    pub(super) fn metadata(&self, token: &str) -> Option<TokenMetadata> {
        let place = self.tokens.iter().position(|known| **known == *token)?;
        let name = METALS.get(place).map_or_else(|| format!("Metal {place}"), |name| (*name).to_owned());
        let symbol = name.to_uppercase().replace(' ', "");
        Some(TokenMetadata { token: token.into(), symbol: Some(symbol), name: Some(name), decimals: Some(18) })
    }

    fn genesis(&self) -> Vec<TokenEvent> {
        let amount = Amount::from(10u128.pow(30));
        let pairs = self.tokens.iter().flat_map(|token| self.accounts.iter().map(move |account| (token, account)));
        let events = pairs.zip(0..).map(|((token, account), place)| TokenEvent {
            tx_index: place,
            event_index: place,
            token: token.clone(),
            from: None,
            to: Some(account.clone()),
            amount,
        });
        events.collect()
    }

    fn events(&self, height: u64, made_in: u32) -> Vec<TokenEvent> {
        let mut dice = self.dice("events", &[height, u64::from(made_in)]);
        // Some blocks are empty, so that a reorg may take movements away without others in their place.
        if dice.below(6) == 0 {
            return Vec::new();
        }
        let newcomer = self.address("newcomer", &[height, u64::from(made_in)]);
        let newcomer_at = dice.below(3 * self.settings.events_per_block.max(1));
        let events = (0..self.settings.events_per_block).map(|place| {
            let token = self.tokens[dice.below(self.settings.tokens) as usize].clone();
            let mut account = || self.accounts[dice.below(self.settings.accounts) as usize].clone();
            let (from, to) = (account(), account());
            let amount = match dice.below(20) {
                0 => 0,
                1..=9 => dice.below(1_000_000),
                _ => dice.below(10u64.pow(18)),
            };
            let (from, to) = match dice.below(25) {
                0 => (None, Some(to)),
                1 => (Some(from), None),
                2 => (Some(from.clone()), Some(from)),
                _ if place == newcomer_at => (Some(from), Some(newcomer.clone())),
                _ => (Some(from), Some(to)),
            };
            TokenEvent { tx_index: place, event_index: place, token, from, to, amount: Amount::from(amount) }
        });
        events.collect()
    }

    fn digest(&self, what: &str, numbers: &[u64]) -> [u8; 32] {
        let mut digest = Sha256::new_with_prefix(self.root);
        digest.update(what);
        for number in numbers {
            digest.update(number.to_be_bytes());
        }
        digest.finalize().into()
    }

    fn hash_of(&self, height: u64, made_in: u32) -> Hash {
        Hash::new(hex(&self.digest("block", &[height, u64::from(made_in)])))
    }

    fn address(&self, what: &str, numbers: &[u64]) -> Text {
        hex(&self.digest(what, numbers)[..20]).into()
    }

    fn dice(&self, what: &str, numbers: &[u64]) -> Dice {
        let [a, b, c, d, e, f, g, h, ..] = self.digest(what, numbers);
        Dice(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::delta::{Key, Net, add};
    use std::collections::HashSet;

    fn settings() -> DevnetSettings {
        DevnetSettings { reorg_every: 3, max_reorg_depth: 4, blocks_at_start: 12, ..DevnetSettings::default() }
    }

    fn blocks(script: &Script, chain: &Chain) -> Vec<Block> {
        (0..=chain.height()).filter_map(|height| script.block(chain, Height::new(height)?)).collect()
    }

    #[test]
    fn the_chain_follows_from_the_settings_alone() {
        let script = Script::new(&settings());
        let pace =
            DevnetSettings { block_interval: std::time::Duration::from_millis(3), last_height: Some(9), ..settings() };
        let again = Script::new(&pace);
        for slot in [0, 1, 17, 200] {
            let start = Script::new(&settings()).after(slot);
            assert_eq!(blocks(&script, &script.after(slot)), blocks(&again, &start));
        }
        // Any other seed or setting makes other blocks, from genesis on.
        let hash = |settings: &DevnetSettings| Script::new(settings).tip(&Chain { slot: 0, made_in: vec![0] }).hash;
        let others = [
            DevnetSettings { seed: 2, ..settings() },
            DevnetSettings { accounts: 21, ..settings() },
            DevnetSettings { reorg_every: 0, ..settings() },
            DevnetSettings { events_per_block: 11, ..settings() },
        ];
        assert!(others.iter().all(|other| hash(other) != hash(&settings())));
    }

    #[test]
    fn every_slot_keeps_the_chain_whole_and_no_balance_falls_below_zero() {
        let script = Script::new(&settings());
        let mut chain = script.start();
        let (mut tips, mut depths, mut emptied) = (HashSet::new(), HashSet::new(), 0);
        let (mut everyone, mut everyone_on_the_branch): (HashSet<Key>, HashSet<Key>) = Default::default();
        for slot in 0..400 {
            assert_eq!(chain.slot(), slot);
            assert!(tips.insert(script.tip(&chain).hash), "each slot has a tip of its own");
            let blocks = blocks(&script, &chain);
            assert!(blocks.windows(2).all(|w| w[1].link.parent_hash == w[0].link.hash));
            assert_eq!(blocks.last().map(|block| block.link.block_ref()), Some(script.tip(&chain)));
            let mut balances = Net::new();
            for event in blocks.iter().flat_map(|block| &block.token_events) {
                assert!(event.from.is_some() || event.to.is_some());
                add(&mut balances, event);
            }
            assert!(balances.values().all(|amount| !amount.is_negative()));
            everyone_on_the_branch = balances.keys().cloned().collect();
            everyone.extend(balances.into_keys());
            let before = chain.clone();
            assert!(script.advance(&mut chain));
            assert!(chain.height() == before.height() || chain.height() == before.height() + 1);
            let same = before.made_in.iter().zip(&chain.made_in).take_while(|(a, b)| a == b).count();
            depths.insert(before.made_in.len() - same);
            let had = |chain: &Chain, height| script.block(chain, height).is_some_and(|b| !b.token_events.is_empty());
            let replaced = (same as u64..before.made_in.len() as u64).filter_map(Height::new);
            emptied += replaced.filter(|height| had(&before, *height) && !had(&chain, *height)).count();
        }
        assert_eq!(depths, (0..=4).collect(), "depths of reorgs");
        assert!(emptied > 5, "movements that a reorg only takes away: {emptied}");
        assert!(everyone.len() > everyone_on_the_branch.len() + 10, "accounts of replaced blocks only");
    }

    #[test]
    fn without_reorgs_there_are_none() {
        let script = Script::new(&DevnetSettings { reorg_every: 0, blocks_at_start: 0, ..settings() });
        assert_eq!(script.after(50).made_in, (0..=50).collect::<Vec<u32>>());
    }
}
