//! What option vaults say, in both layouts: from receipts to typed events.

use ebbtide::chain::felt::Felt;
use ebbtide::projections::option_vaults::Layout;
use ebbtide::projections::option_vaults::decode::{Emitter, decode};
use ebbtide::projections::option_vaults::event::VaultEvent;
use ebbtide::sources::starknet::decode::{DecodeSettings, Decoder};
use ebbtide::sources::starknet::follow::Found;
use ebbtide::sources::starknet::wire;
use serde_json::Value;

use crate::starknet::{block, event, felt};
use crate::{Case, Dice, Size, Tally, U256, batch, results};

const BLOCKS: u64 = 20;
/// Each with every kind of event that changes a vault, in both layouts.
const TRANSACTIONS: u64 = 4;
const ACCOUNTS: u64 = 500;

/// Kind, whether the vault itself is meant, accounts among the keys, felts of data.
const KINDS: [(&str, bool, usize, usize); 14] = [
    ("OptionRoundDeployed", true, 0, 10),
    ("Deposit", true, 1, 6),
    ("Withdrawal", true, 1, 6),
    ("WithdrawalQueued", true, 1, 8),
    ("StashWithdrawn", true, 1, 4),
    ("PricingDataSet", false, 0, 5),
    ("AuctionStarted", false, 0, 4),
    ("AuctionEnded", false, 0, 7),
    ("OptionRoundSettled", false, 0, 4),
    ("BidPlaced", false, 1, 6),
    ("BidUpdated", false, 1, 5),
    ("OptionsMinted", false, 1, 2),
    ("UnusedBidsRefunded", false, 1, 2),
    ("OptionsExercised", false, 1, 6),
];

struct Reader {
    decoder: Decoder,
    /// In layout B, where the vault speaks for its rounds.
    vault_b: String,
    /// In layout A.
    round_a: String,
}

pub(crate) fn cases(size: &Size) -> Vec<Case> {
    let [vault_a, round_a, vault_b, round_b] = [0, 1, 2, 3].map(|n| felt("vault", n));
    let (mut dice, mut holds) = (Dice::new(), Tally::default());
    let mut answers = Vec::new();
    for n in 0..size.of(30, 3) {
        let mut transaction = |_| {
            let mut events = Vec::new();
            for (name, of_vault, accounts, data) in KINDS {
                let from_a = if of_vault { vault_a } else { round_a };
                events.push(said(from_a, name, accounts, data, None, &mut dice, &mut holds));
                let round = (!of_vault).then_some(round_b);
                events.push(said(vault_b, name, accounts, data, round, &mut dice, &mut holds));
            }
            events
        };
        let blocks =
            (0..BLOCKS).map(|at| block(1 + n * BLOCKS + at, (0..TRANSACTIONS).map(&mut transaction).collect()));
        answers.push(vec![batch(blocks.collect())]);
    }
    holds.blocks = size.of(30, 3) * BLOCKS;
    let contracts = [vault_a, round_a, vault_b].map(|contract| contract.to_string());
    let settings =
        DecodeSettings { tokens: vec!["none".to_owned()], contracts: contracts.to_vec(), ..DecodeSettings::default() };
    let decoder = Decoder::new(&settings).unwrap();
    let reader = Reader { decoder, vault_b: vault_b.to_string(), round_a: round_a.to_string() };
    let what = "decode rate, option vaults: receipts to typed events, both layouts";
    vec![Case { what, answers, holds, read: Box::new(move |_, bodies| reader.read(bodies)) }]
}

/// An event with `felts` numbers below 2^60; with `round`, as a vault of layout B says it of that round.
fn said(
    from: Felt,
    name: &str,
    accounts: usize,
    felts: usize,
    round: Option<Felt>,
    dice: &mut Dice,
    holds: &mut Tally,
) -> Value {
    let mut keys = vec![Felt::selector(name)];
    keys.extend((0..accounts).map(|_| felt("account", dice.below(ACCOUNTS))));
    // Every second one is the high half of an amount, or a number that is small as well.
    let mut data: Vec<Felt> = (0..felts).map(|_| Felt::from((dice.below(1 << 30) + 1) << 29)).collect();
    if let Some(round) = round {
        keys.push(Felt::from(7));
        data.push(round);
    }
    holds.events += 1;
    holds.sum += match name {
        "Deposit" | "Withdrawal" | "StashWithdrawn" => amount(&data, 2),
        "BidPlaced" => amount(&data, 1) + amount(&data, 3),
        "OptionRoundSettled" => amount(&data, 0),
        _ => U256::ZERO,
    };
    event(from, &keys, &data)
}

fn amount(data: &[Felt], at: usize) -> U256 {
    Felt::u256(data[at], data[at + 1]).unwrap()
}

impl Reader {
    fn read(&self, bodies: &[Vec<u8>]) -> Tally {
        let mut tally = Tally::default();
        for raw in bodies.iter().flat_map(|body| results(body)) {
            let block = wire::with_receipts(&raw).unwrap().unwrap();
            let decoded = self.decoder.decode(block.link.height, &block.transactions, &mut Found::default());
            assert!(decoded.rejects.is_empty() && decoded.token_events.is_empty());
            tally.blocks += 1;
            for event in &decoded.events {
                let (layout, emitter) = match &*event.emitter {
                    from if from == self.vault_b => (Layout::B, Emitter::Vault),
                    from if from == self.round_a => (Layout::A, Emitter::Round(event.emitter.clone())),
                    _ => (Layout::A, Emitter::Vault),
                };
                tally.sum += match decode(event, layout, &emitter).unwrap().unwrap() {
                    VaultEvent::Deposited(moved) | VaultEvent::Withdrawn(moved) => moved.account_unlocked,
                    VaultEvent::StashWithdrawn { vault_stashed, .. } => vault_stashed,
                    VaultEvent::BidPlaced { amount, price, .. } => amount + price,
                    VaultEvent::RoundSettled { settlement_price, .. } => settlement_price,
                    _ => U256::ZERO,
                };
                tally.events += 1;
            }
        }
        tally
    }
}
