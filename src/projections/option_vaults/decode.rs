//! Events of option vaults: from keys and data to typed values. Exact lengths, nothing guessed.
//!
//! The layout is the vault's and never read off an event: lengths alone would take one build's event for another's.

use super::rows::{Layout, VaultParameters};
use crate::chain::{Amount, Event, Text};

use super::event::{Moved, Pricing, RoundKey, VaultEvent};
use super::felts::{self, FeltFault};

/// Names and selectors: keccak256 of the name, its low 250 bits.
pub const SELECTORS: [(&str, &str); 19] = [
    ("ContractDeployed", "0x26b160f10156dea0639bec90696772c640b9706a47f5b8c52ea1abe5858b34d"),
    ("Deposit", "0x9149d2123147c5f43d258257fef0b7b969db78269369ebcf5ebb9eef8592f2"),
    ("Withdrawal", "0x2eed7e29b3502a726faf503ac4316b7101f3da813654e8df02c13449e03da8"),
    ("WithdrawalQueued", "0x36a0768f9b1cc8742e7726e951a13aec0f1ee9461c6be53a80378c49299c5fb"),
    ("StashWithdrawn", "0x14430163c5d26a17d82f2c2eda269f26b054e14a1641bb700a114b2a63bc605"),
    ("OptionRoundDeployed", "0xd659a517d721168cbed4f7cb1abb424037bf0f34a8a22948c502429045b312"),
    ("FossilCallbackSuccess", "0x28daf8c351269d325d0652973bd8ae38ea95c476dcc11eaf0e2495c440689cb"),
    ("L1RequestFulfilled", "0x30c9e399edc9c4ce8745d38ea8fd2361f1aa0cf198b964d60bc49e87e193c17"),
    ("PricingDataSet", "0x3f68cb197d4ac6576b566cd954873b6530b9eac0309487c09f9a35271533737"),
    ("AuctionStarted", "0x26a7d477600536be46a48d46dcdebf5d8c5703c5e16f6bfad368996adea83f3"),
    ("AuctionEnded", "0x369d2b1c46f2b24795aafc23c97301b1f924966a1b4fdaad2473cf4d9df23ca"),
    ("OptionRoundSettled", "0x9fadeca7092d377c750978a256f85278e6f70781e5c879baa766ca6a4db079"),
    ("BidPlaced", "0x284319dd93fe6054ee43527bfdc6c222e6b0cafdcbd3ef60c9190c70bb1d638"),
    ("BidUpdated", "0x35446d7dda93a65e80ece35b20810ab34e64178c54b8693ef635afb5c2f7ee3"),
    ("OptionsMinted", "0x1f66c9480f0238b7c61817f7e724aa3f313dac819d40d5b48a968ef27847f54"),
    ("UnusedBidsRefunded", "0x1678c5f70bd63f9239387cb96dd9fa4d6a9817a3089a0b97513f63120f92792"),
    ("OptionsExercised", "0x2d02464cd0ec035fbc5f7d9e201312f112ca0ed123ca3ae5ebd91b2364ce580"),
    ("Transfer", "0x99cd8bde557814842a3121e8ddfd433a539b8c9f14bf31ebf108d12e6196e9"),
    ("Approval", "0x134692b230b9e1ffa39098904722134159652b09c5bc41d88d6698779d228ff"),
];

/// Keys (after the selector) or data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// `keys`; the selector is `keys[0]`.
    Keys,
    /// `data`.
    Data,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Part::Keys => "keys",
            Part::Data => "data",
        })
    }
}

/// Why an event cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadEvent {
    /// Too few or too many felts.
    #[error("{event} has {found} felts in {part} (the selector not counted), not {expected}")]
    Count {
        /// The event's name.
        event: &'static str,
        /// Where.
        part: Part,
        /// How many there must be.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// A felt that cannot stand where it stands.
    #[error("{event}: {part}[{index}] is {fault}")]
    Felt {
        /// The event's name.
        event: &'static str,
        /// Where.
        part: Part,
        /// Its place, the selector being `keys[0]`.
        index: usize,
        /// What is wrong with it.
        fault: FeltFault,
    },
    /// Its name is that of another event than its selector.
    #[error("it is called {name}, but keys[0] is {}", selector_text(.selector))]
    Misnamed {
        /// What it is called.
        name: Text,
        /// `keys[0]`; None means that there are no keys.
        selector: Option<Text>,
    },
    /// A vault or a round said what its contract does not declare.
    #[error("keys[0] is {}, and no event of the contracts has this selector", selector_text(.selector))]
    Unknown {
        /// `keys[0]`; None means that there are no keys.
        selector: Option<Text>,
    },
    /// A round said what only its vault says in this layout, or the other way round: the vault's layout may be wrong.
    #[error("{event} is not said by a {by} in layout {}", layout.as_str())]
    WrongEmitter {
        /// The event's name.
        event: &'static str,
        /// `vault` or `round`.
        by: &'static str,
        /// The vault's layout.
        layout: Layout,
    },
}

fn selector_text(selector: &Option<Text>) -> &str {
    selector.as_deref().unwrap_or("missing")
}

impl BadEvent {
    /// A fixed word that counts can be kept by.
    pub const fn reason(&self) -> &'static str {
        match self {
            BadEvent::Count { .. } => "bad_length",
            BadEvent::Felt { fault, .. } => fault.reason(),
            BadEvent::WrongEmitter { .. } => "wrong_emitter",
            BadEvent::Misnamed { .. } => "name_mismatch",
            BadEvent::Unknown { .. } => "unknown_event",
        }
    }
}

/// Who said an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Emitter {
    /// A vault.
    Vault,
    /// A round of the vault, with its address.
    Round(Text),
}

/// Which event of ours it is, by its selector (`keys[0]`); None means that it is none. Its name may be the event's, or the
/// selector once more, as a source writes it that does not know the event.
///
/// # Errors
/// A name that is not the selector's: one of the two is wrong, and nobody can tell which.
pub fn kind_of(event: &Event) -> Result<Option<&'static str>, BadEvent> {
    let by_selector = |text: &Text| {
        let selector = felts::canonical(text).ok()?;
        SELECTORS.iter().find(|(_, known)| *known == &*selector).map(|(name, _)| *name)
    };
    let selected = event.keys.first().and_then(by_selector);
    let named = SELECTORS.iter().find(|(name, _)| *name == &*event.name).map(|(name, _)| *name);
    // None of ours by either: not in doubt.
    if selected == named.or_else(|| by_selector(&event.name)) {
        return Ok(selected);
    }
    Err(BadEvent::Misnamed { name: event.name.clone(), selector: event.keys.first().cloned() })
}

/// Reads an event of a vault or of one of its rounds; None means that it says nothing about the vault's state.
///
/// Events that change nothing (`FossilCallbackSuccess`, `L1RequestFulfilled`, `Transfer`, `Approval`) are not looked into:
/// nothing follows from them, whatever they hold.
///
/// # Errors
/// An event that the contracts do not have, of another shape than its layout has, or with a value out of range.
pub fn decode(event: &Event, layout: Layout, emitter: &Emitter) -> Result<Option<VaultEvent>, BadEvent> {
    let Some(name) = kind_of(event)? else {
        return Err(BadEvent::Unknown { selector: event.keys.first().cloned() });
    };
    let of_vault = match name {
        "OptionRoundDeployed" | "Deposit" | "Withdrawal" | "WithdrawalQueued" | "StashWithdrawn" => true,
        "PricingDataSet" | "AuctionStarted" | "AuctionEnded" | "OptionRoundSettled" | "BidPlaced" | "BidUpdated"
        | "OptionsMinted" | "UnusedBidsRefunded" | "OptionsExercised" => false,
        _ => return Ok(None),
    };
    match (emitter, layout) {
        (Emitter::Vault, Layout::A) if !of_vault => {
            return Err(BadEvent::WrongEmitter { event: name, by: "vault", layout });
        }
        (Emitter::Round(_), Layout::A) if of_vault => {
            return Err(BadEvent::WrongEmitter { event: name, by: "round", layout });
        }
        (Emitter::Round(_), Layout::B) => return Err(BadEvent::WrongEmitter { event: name, by: "round", layout }),
        _ => {}
    }
    let felts = Felts::of(event, name);
    let decoded = if of_vault { vault_event(&felts, layout)? } else { round_event(&felts, emitter)? };
    Ok(Some(decoded))
}

/// What a vault says in both layouts.
fn vault_event(felts: &Felts<'_>, layout: Layout) -> Result<VaultEvent, BadEvent> {
    let moved = || -> Result<Moved, BadEvent> {
        felts.count(1, 6)?;
        // How much moved follows from what is left, and is not kept; but it must be an amount.
        felts.amount(0)?;
        Ok(Moved { account: felts.key(0)?, account_unlocked: felts.amount(2)?, vault_unlocked: felts.amount(4)? })
    };
    Ok(match felts.event {
        "OptionRoundDeployed" => {
            felts.count(0, 10)?;
            VaultEvent::RoundDeployed {
                layout,
                id: felts.number(0)?,
                address: felts.text(1)?,
                dates: [felts.number(2)?, felts.number(3)?, felts.number(4)?],
                pricing: felts.pricing(5)?,
            }
        }
        "Deposit" => VaultEvent::Deposited(moved()?),
        "Withdrawal" => VaultEvent::Withdrawn(moved()?),
        "WithdrawalQueued" => {
            felts.count(1, 8)?;
            felts.amount(2)?;
            VaultEvent::WithdrawalQueued {
                account: felts.key(0)?,
                bps: felts.u128(0)?,
                round_id: felts.number(1)?,
                account_queued: felts.amount(4)?,
                vault_queued: felts.amount(6)?,
            }
        }
        // "StashWithdrawn": `decode` lets no other name through.
        _ => {
            felts.count(1, 4)?;
            VaultEvent::StashWithdrawn {
                account: felts.key(0)?,
                amount: felts.amount(0)?,
                vault_stashed: felts.amount(2)?,
            }
        }
    })
}

/// What a round says (layout A), or the vault about a round (layout B).
fn round_event(felts: &Felts<'_>, emitter: &Emitter) -> Result<VaultEvent, BadEvent> {
    // Keys and data without what layout B adds to each: the round's number as last key, its address as last felt.
    let round = |keys: usize, data: usize| -> Result<RoundKey, BadEvent> {
        match emitter {
            Emitter::Round(address) => {
                felts.count(keys, data)?;
                Ok(RoundKey { address: address.clone(), id: None })
            }
            Emitter::Vault => {
                felts.count(keys + 1, data + 1)?;
                Ok(RoundKey { address: felts.text(data)?, id: Some(felts.key_number(keys)?) })
            }
        }
    };
    Ok(match felts.event {
        "PricingDataSet" => VaultEvent::PricingSet { round: round(0, 5)?, pricing: felts.pricing(0)? },
        "AuctionStarted" => VaultEvent::AuctionStarted {
            round: round(0, 4)?,
            starting_liquidity: felts.amount(0)?,
            options_available: felts.amount(2)?,
        },
        "AuctionEnded" => VaultEvent::AuctionEnded {
            round: round(0, 7)?,
            options_sold: felts.amount(0)?,
            clearing_price: felts.amount(2)?,
            unsold_liquidity: felts.amount(4)?,
            clearing_nonce: felts.number(6)?,
        },
        "OptionRoundSettled" => VaultEvent::RoundSettled {
            round: round(0, 4)?,
            settlement_price: felts.amount(0)?,
            payout_per_option: felts.amount(2)?,
        },
        "BidPlaced" => VaultEvent::BidPlaced {
            round: round(1, 6)?,
            account: felts.key(0)?,
            bid_id: felts.text(0)?,
            amount: felts.amount(1)?,
            price: felts.amount(3)?,
            nonce: felts.nonce_below(5)?,
        },
        "BidUpdated" => {
            let round = round(1, 5)?;
            felts.key(0)?;
            felts.number(3)?;
            // The round counts bids after it inserted one; only layout B says the bid's own nonce here.
            let nonce = if round.id.is_some() { felts.number(4)? } else { felts.nonce_below(4)? };
            VaultEvent::BidUpdated { round, bid_id: felts.text(0)?, price_increase: felts.amount(1)?, nonce }
        }
        "OptionsMinted" => {
            let round = round(1, 2)?;
            felts.amount(0)?;
            VaultEvent::OptionsMinted { round, account: felts.key(0)? }
        }
        "UnusedBidsRefunded" => {
            let round = round(1, 2)?;
            felts.amount(0)?;
            VaultEvent::BidsRefunded { round, account: felts.key(0)? }
        }
        // "OptionsExercised": `decode` lets no other name through.
        _ => {
            let round = round(1, 6)?;
            for at in [0, 2, 4] {
                felts.amount(at)?;
            }
            VaultEvent::OptionsExercised { round, account: felts.key(0)? }
        }
    })
}

/// A deployment as the universal deployer tells it, before it is known to be a vault's.
pub struct Deployment<'a> {
    felts: Felts<'a>,
    /// The new contract.
    pub address: Text,
    /// Who asked for it.
    pub deployer: Text,
    /// Its class.
    pub class_hash: Text,
}

impl<'a> Deployment<'a> {
    /// Reads as much of a `ContractDeployed` as says whose deployment it is: most are of contracts that are none of ours.
    ///
    /// # Errors
    /// No room for address, deployer and class, or one of them is no felt.
    pub fn read(event: &'a Event) -> Result<Deployment<'a>, BadEvent> {
        let felts = Felts::of(event, "ContractDeployed");
        if felts.data.len() < 6 {
            return Err(felts.bad_count(Part::Data, 6));
        }
        Ok(Deployment { address: felts.text(0)?, deployer: felts.text(1)?, class_hash: felts.text(3)?, felts })
    }

    /// The vault it made. The build follows from the layout and the length of the constructor's arguments: layout A
    /// has 8 (older builds) or 10 of them, layout B has 9.
    ///
    /// # Errors
    /// Arguments of another build, or values out of range.
    pub fn vault(&self, layout: Layout) -> Result<VaultEvent, BadEvent> {
        let felts = &self.felts;
        let arguments = felts.number(4)?;
        let expected = match (layout, arguments) {
            (Layout::A, 8) => 8,
            (Layout::A, _) => 10,
            (Layout::B, _) => 9,
        };
        // Address, deployer, unique, class and length before them, the salt after them.
        felts.count(0, 6 + expected)?;
        if arguments != expected as u64 {
            return Err(felts.bad_at(Part::Data, 4, FeltFault::NotTheLength));
        }
        let unread = match layout {
            Layout::A if expected == 10 => 13..15,
            Layout::A => 0..0,
            Layout::B => 10..11,
        };
        for at in unread.chain([2, 5 + expected]) {
            felts.text(at)?;
        }
        let durations = if layout == Layout::A { 10 } else { 11 };
        Ok(VaultEvent::VaultDeployed {
            address: self.address.clone(),
            layout,
            parameters: VaultParameters {
                fossil_client_address: felts.text(5)?,
                eth_address: felts.text(6)?,
                option_round_class_hash: felts.text(7)?,
                alpha: felts.u128(8)?,
                strike_level: felts::i128(felts.at(Part::Data, 9)?)
                    .map_err(|fault| felts.bad_at(Part::Data, 9, fault))?,
                round_transition_period: felts.number(durations)?,
                auction_duration: felts.number(durations + 1)?,
                round_duration: felts.number(durations + 2)?,
            },
        })
    }
}

/// Keys after the selector, and data, with places that errors can name.
struct Felts<'a> {
    event: &'static str,
    keys: &'a [Text],
    data: &'a [Text],
}

impl<'a> Felts<'a> {
    /// Of an event whose selector is that of `name`.
    fn of(event: &'a Event, name: &'static str) -> Felts<'a> {
        Felts { event: name, keys: event.keys.get(1..).unwrap_or_default(), data: &event.data }
    }

    fn count(&self, keys: usize, data: usize) -> Result<(), BadEvent> {
        if self.keys.len() != keys {
            return Err(self.bad_count(Part::Keys, keys));
        }
        if self.data.len() != data {
            return Err(self.bad_count(Part::Data, data));
        }
        Ok(())
    }

    fn bad_count(&self, part: Part, expected: usize) -> BadEvent {
        let found = self.part(part).len();
        BadEvent::Count { event: self.event, part, expected, found }
    }

    fn bad_at(&self, part: Part, at: usize, fault: FeltFault) -> BadEvent {
        let index = if part == Part::Keys { at + 1 } else { at };
        BadEvent::Felt { event: self.event, part, index, fault }
    }

    fn part(&self, part: Part) -> &'a [Text] {
        match part {
            Part::Keys => self.keys,
            Part::Data => self.data,
        }
    }

    fn at(&self, part: Part, at: usize) -> Result<&'a Text, BadEvent> {
        self.part(part).get(at).ok_or_else(|| self.bad_count(part, at + 1))
    }

    fn read<T>(&self, part: Part, at: usize, read: impl Fn(&Text) -> Result<T, FeltFault>) -> Result<T, BadEvent> {
        read(self.at(part, at)?).map_err(|fault| self.bad_at(part, at, fault))
    }

    fn key(&self, at: usize) -> Result<Text, BadEvent> {
        self.read(Part::Keys, at, felts::canonical)
    }

    fn key_number(&self, at: usize) -> Result<u64, BadEvent> {
        self.read(Part::Keys, at, |text| felts::u64(text))
    }

    fn text(&self, at: usize) -> Result<Text, BadEvent> {
        self.read(Part::Data, at, felts::canonical)
    }

    fn number(&self, at: usize) -> Result<u64, BadEvent> {
        self.read(Part::Data, at, |text| felts::u64(text))
    }

    fn u128(&self, at: usize) -> Result<Amount, BadEvent> {
        self.read(Part::Data, at, |text| felts::u128(text).map(Amount::from))
    }

    fn amount(&self, at: usize) -> Result<Amount, BadEvent> {
        let (low, high) = (self.at(Part::Data, at)?, self.at(Part::Data, at + 1)?);
        felts::u256(low, high).map_err(|(half, fault)| self.bad_at(Part::Data, at + half, fault))
    }

    /// Strike, cap level and reserve from the felt `at` on.
    fn pricing(&self, at: usize) -> Result<Pricing, BadEvent> {
        Ok(Pricing { strike: self.amount(at)?, cap_level: self.u128(at + 2)?, reserve: self.amount(at + 3)? })
    }

    /// The nonce of the bid just inserted, from the count after it.
    fn nonce_below(&self, at: usize) -> Result<u64, BadEvent> {
        self.read(Part::Data, at, |text| felts::u64(text)?.checked_sub(1).ok_or(FeltFault::Zero))
    }
}
