//! `token_balances`: exact balances from token movements. Pure: events in, changes out.

mod cache;
mod told;

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::json;

pub use self::cache::Cache;
pub use self::told::Transfer;
use crate::chain::decide::Tells;
use crate::chain::delta::{Delta, Key};
use crate::chain::{Height, Kind, Text};
use crate::store::{Balance, Changes, Movement, Refused};

/// The projection's name in `projections` and `checkpoints`.
pub const NAME: &str = "token_balances";

/// What a negative balance means to the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum NegativeBalances {
    /// Kept exact; REST shows 0 and counts them. The default.
    #[default]
    Zero,
    /// Kept exact and shown.
    Show,
    /// The projection stops before the block.
    Halt,
}

/// What to do with an event that cannot be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum OnBadEvent {
    /// It goes to `rejected_events`, the rest of its block is applied. The default.
    #[default]
    Quarantine,
    /// The projection stops before the block.
    Halt,
}

/// What to do when the chain changed at or below its final height.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum OnDeepChange {
    /// Undone and applied again in one transaction. The default.
    #[default]
    Rebuild,
    /// The projection stops; `resume` lets it rebuild.
    Halt,
}

/// How much of `balance_history` (read as `balance_changes`) is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum History {
    /// All of it. The default.
    #[default]
    Full,
    /// What lies above the final height, and the last change before it.
    Window,
}

/// The projection's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settings {
    /// What a negative balance means.
    pub negative_balances: NegativeBalances,
    /// What to do with an event that cannot be applied.
    pub on_bad_event: OnBadEvent,
    /// What to do when final blocks changed.
    pub on_deep_change: OnDeepChange,
    /// How much history is kept.
    pub history: History,
}

/// One block's movements, netted.
#[derive(Debug, Clone, Default)]
pub struct Netted {
    /// Net change by account, as [`Accounts`] numbers them; in order, each once, when the block is closed.
    ///
    /// An account whose changes cancel stays, with a zero delta: it exists from this block on.
    pub net: Vec<(u32, Delta)>,
    /// Movements that no account of this chain can have made.
    pub refused: Vec<Refused>,
    /// Movements netted.
    pub events: u64,
    /// Those that count, where they are told.
    pub transfers: Vec<Transfer>,
}

impl Netted {
    /// All movements were taken: sums them by account.
    pub fn close(&mut self) {
        self.net.sort_by_key(|(account, _)| *account);
        self.net.dedup_by(|(later, more), (earlier, delta)| {
            let is_same = later == earlier;
            if is_same {
                *delta = delta.merge(*more);
            }
            is_same
        });
        self.net.shrink_to_fit();
    }
}

/// The accounts that a stretch of blocks touches, numbered as they come. Each text is held once.
#[derive(Debug)]
pub struct Accounts {
    kind: Kind,
    texts: HashMap<Text, Named>,
    numbers: HashMap<(u32, u32), u32>,
    keys: Vec<Key>,
    tells: Tells,
}

/// A text, and whether it follows the grammar of the chain's kind.
#[derive(Debug, Clone, Copy)]
struct Named {
    number: u32,
    is_token: bool,
    is_address: bool,
}

impl Accounts {
    /// None yet, on a chain of this kind, whose blocks so much is told of.
    pub fn new(kind: Kind, tells: Tells) -> Accounts {
        Accounts { kind, texts: HashMap::new(), numbers: HashMap::new(), keys: Vec::new(), tells }
    }

    /// Takes one movement into its block, or refuses it: token and accounts must follow the grammar of the chain's kind.
    pub fn take(&mut self, block: &mut Netted, height: Height, movement: &Movement<'_>) {
        block.events += 1;
        let (token, from, to) = (self.named(movement.token), movement.from, movement.to);
        let sides = [(from, movement.amount.inverse()), (to, movement.amount)];
        let addresses = sides.map(|(side, delta)| side.map(|address| (self.named(address), address, delta)));
        let reason = match (token.is_token, addresses.iter().flatten().all(|(named, ..)| named.is_address)) {
            (false, _) => "bad_token",
            (true, false) => "bad_address",
            (true, true) => {
                for (named, address, delta) in addresses.into_iter().flatten() {
                    let account = self.account((token.number, named.number), movement.token, address);
                    block.net.push((account, delta));
                }
                if self.tells.transfers() {
                    block.transfers.push(Transfer {
                        tx_index: movement.tx_index,
                        event_index: movement.event_index,
                        token: self.held(movement.token),
                        from: from.map(|address| self.held(address)),
                        to: to.map(|address| self.held(address)),
                        amount: movement.amount,
                    });
                }
                return;
            }
        };
        block.refused.push(Refused {
            height,
            tx_index: movement.tx_index,
            event_index: movement.event_index,
            raw: json!({
                "token": movement.token, "from_address": from, "to_address": to,
                "amount": movement.amount.to_string(),
            }),
            reason,
        });
    }

    fn named(&mut self, text: &str) -> Named {
        if let Some(named) = self.texts.get(text) {
            return *named;
        }
        let number = self.texts.len() as u32;
        let named = Named { number, is_token: self.kind.is_token(text), is_address: self.kind.is_address(text) };
        self.texts.insert(text.into(), named);
        named
    }

    fn account(&mut self, names: (u32, u32), token: &str, address: &str) -> u32 {
        if let Some(account) = self.numbers.get(&names) {
            return *account;
        }
        self.keys.push((self.held(token), self.held(address)));
        let account = self.numbers.len() as u32;
        self.numbers.insert(names, account);
        account
    }

    /// A text that was named, as it is held.
    fn held(&self, text: &str) -> Text {
        self.texts.get_key_value(text).map_or_else(|| text.into(), |(text, _)| text.clone())
    }

    /// Whose they are, by number.
    pub fn keys(&self) -> &[Key] {
        &self.keys
    }
}

/// Bytes of a `numeric` below 10^32, as most amounts are that count in 10^-18 of a token.
const USUAL_NUMERIC: usize = 24;

/// What a run of blocks (ascending) changes, and what is told of it. `balances` are the accounts' as they stand before it, by
/// number, and stand as they do after it when this returns.
///
/// # Errors
/// With `negative_balances = "halt"`, the first change that would leave a balance negative.
pub fn changes(
    keys: &[Key],
    balances: &mut [Balance],
    blocks: &[(Height, &Netted)],
    settings: &Settings,
    keeps_history: bool,
    tells: Tells,
) -> Result<Changes, String> {
    let mut changes = Changes { keeps_history, ..Changes::default() };
    changes.refused.extend(blocks.iter().flat_map(|(_, netted)| netted.refused.iter().cloned()));
    // By number, then by block: rows that came together lie together.
    let mut order: Vec<(i64, u32, u32)> = Vec::with_capacity(blocks.iter().map(|(_, netted)| netted.net.len()).sum());
    for (block, (_, netted)) in blocks.iter().enumerate() {
        let of_block = netted.net.iter().enumerate();
        order
            .extend(of_block.map(|(place, (account, _))| (balances[*account as usize].id, block as u32, place as u32)));
    }
    order.sort_unstable();
    if keeps_history {
        for column in [&mut changes.change_ids, &mut changes.change_heights, &mut changes.prev_heights] {
            column.reserve(order.len(), 8);
        }
        for column in [&mut changes.deltas, &mut changes.afters] {
            column.reserve(order.len(), USUAL_NUMERIC);
        }
    }
    let mut first_negative = None;
    let mut to_tell = vec![Vec::new(); blocks.len()];
    let mut totals: HashMap<&str, Delta> = HashMap::new();
    for of_account in order.chunk_by(|(one, ..), (other, ..)| one == other) {
        let change = |(_, block, place): (i64, u32, u32)| {
            let (height, netted) = blocks[block as usize];
            (height.to_sql(), netted.net[place as usize])
        };
        let (_, (account, _)) = change(of_account[0]);
        let before = balances[account as usize];
        let mut balance = before;
        for at in of_account {
            let (height, (_, delta)) = change(*at);
            let prev_height = balance.height.replace(height);
            balance.amount = balance.amount.merge(delta);
            if balance.amount.is_negative() {
                let found = (at.1, account, balance.amount);
                first_negative =
                    Some(first_negative.map_or(found, |first| std::cmp::min_by_key(first, found, |f| (f.0, f.1))));
            }
            if tells.balances() && (!delta.is_zero() || prev_height.is_none()) {
                to_tell[at.1 as usize].push((account, balance.amount));
            }
            // Sent only if they are kept.
            if keeps_history {
                changes.change_ids.push(balance.id);
                changes.change_heights.push(height);
                changes.deltas.push_numeric(delta);
                changes.afters.push_numeric(balance.amount);
                changes.prev_heights.push_option(prev_height);
            }
        }
        changes.negative += u64::from(balance.amount.is_negative());
        if before.height.is_some() {
            changes.ids.push(balance.id);
            changes.before.push_numeric(before.amount);
            changes.after.push_numeric(balance.amount);
            changes.heights.push_option(balance.height);
        } else {
            changes.new_ids.push(balance.id);
            changes.new_keys.push(&keys[account as usize]);
            changes.new_amounts.push_numeric(balance.amount);
            changes.new_heights.push_option(balance.height);
        }
        let change = balance.amount.merge(before.amount.inverse());
        if !change.is_zero() {
            let total = totals.entry(&keys[account as usize].0).or_default();
            *total = total.merge(change);
        }
        balances[account as usize] = balance;
    }
    if tells.anything() {
        to_tell.iter_mut().for_each(|of_block| of_block.sort_unstable_by_key(|(account, _)| *account));
        changes.told = told::told(keys, blocks, &to_tell);
    }
    // What went from one account to another changes none.
    for (token, change) in totals.into_iter().filter(|(_, change)| !change.is_zero()) {
        changes.total_tokens.push_text(token);
        changes.total_changes.push_numeric(change);
    }
    match first_negative.filter(|_| settings.negative_balances == NegativeBalances::Halt) {
        Some((block, account, amount)) => {
            let (height, (token, address)) = (blocks[block as usize].0, &keys[account as usize]);
            Err(format!("block {height} would bring the balance of {address} in {token} to {amount}"))
        }
        None => Ok(changes),
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use postgres_types::{FromSql, ToSql, Type};

    use super::*;
    use crate::chain::Amount;
    use crate::store::numeric::Numeric;
    use crate::store::{Column, Keys};

    fn movement<'a>(token: &'a str, from: Option<&'a str>, to: Option<&'a str>, amount: u64) -> Movement<'a> {
        Movement { tx_index: 0, event_index: 0, token, from, to, amount: Delta::plus(Amount::from(amount)) }
    }

    fn read<T: for<'a> FromSql<'a>>(column: &Column, ty: &Type) -> Vec<T> {
        let mut raw = BytesMut::new();
        column.to_sql_checked(ty, &mut raw).expect("the type fits");
        Vec::<T>::from_sql(ty, &raw).expect("it is an array")
    }

    fn numbers(column: &Column) -> Vec<i64> {
        read(column, &Type::INT8_ARRAY)
    }

    fn shown(column: &Column) -> Vec<String> {
        read::<Numeric>(column, &Type::NUMERIC_ARRAY).iter().map(|n| n.0.to_string()).collect()
    }

    #[test]
    fn a_run_of_blocks_writes_each_balance_once_and_each_change() {
        let mut accounts = Accounts::new(Kind::Other, Tells::default());
        let mut blocks = vec![(Height::from(1), Netted::default()), (Height::from(2), Netted::default())];
        accounts.take(&mut blocks[0].1, Height::from(1), &movement("gold", None, Some("alice"), 5));
        accounts.take(&mut blocks[0].1, Height::from(1), &movement("gold", Some("alice"), Some("alice"), 3));
        accounts.take(&mut blocks[1].1, Height::from(2), &movement("gold", Some("alice"), Some("bob"), 7));
        for (_, netted) in &mut blocks {
            netted.close();
        }
        // Alice stands at 10 since block 0; bob does not exist.
        let mut balances = [
            Balance { id: 41, amount: Delta::plus(Amount::from(10)), height: Some(0) },
            Balance { id: 42, amount: Delta::ZERO, height: None },
        ];
        let run: Vec<_> = blocks.iter().map(|(height, netted)| (*height, netted)).collect();
        let changes = changes(accounts.keys(), &mut balances, &run, &Settings::default(), true, Tells::default())
            .expect("it may be negative");
        assert_eq!(numbers(&changes.ids), [41]);
        assert_eq!((shown(&changes.before), shown(&changes.after)), (vec!["10".into()], vec!["8".into()]));
        assert_eq!((numbers(&changes.heights), numbers(&changes.new_ids)), (vec![2], vec![42]));
        assert_eq!((numbers(&changes.new_heights), shown(&changes.new_amounts)), (vec![2], vec!["7".into()]));
        let mut bob = Keys::default();
        bob.push(&("gold".into(), "bob".into()));
        assert_eq!(format!("{:?}", changes.new_keys), format!("{bob:?}"));
        assert_eq!((numbers(&changes.change_ids), numbers(&changes.change_heights)), (vec![41, 41, 42], vec![1, 2, 2]));
        assert_eq!(shown(&changes.deltas), ["5", "-7", "7"]);
        assert_eq!(shown(&changes.afters), ["15", "8", "7"]);
        assert_eq!(read::<Option<i64>>(&changes.prev_heights, &Type::INT8_ARRAY), [Some(0), Some(1), None]);
        let totals = (read::<String>(&changes.total_tokens, &Type::TEXT_ARRAY), shown(&changes.total_changes));
        assert_eq!(totals, (vec!["gold".into()], vec!["5".into()]), "the transfers change no total");
        assert_eq!(balances[1], Balance { id: 42, amount: Delta::plus(Amount::from(7)), height: Some(2) });
    }

    #[test]
    fn a_negative_balance_ends_the_run_where_the_settings_say_so() {
        let mut accounts = Accounts::new(Kind::Other, Tells::default());
        let mut netted = Netted::default();
        accounts.take(&mut netted, Height::from(3), &movement("gold", Some("alice"), None, 7));
        netted.close();
        let stands = [Balance { id: 1, amount: Delta::plus(Amount::from(5)), height: Some(0) }];
        let run = |settings: &Settings| {
            changes(
                accounts.keys(),
                &mut stands.clone(),
                &[(Height::from(3), &netted)],
                settings,
                true,
                Tells::default(),
            )
        };
        assert_eq!(run(&Settings::default()).expect("it may be negative").negative, 1);
        let halts = Settings { negative_balances: NegativeBalances::Halt, ..Settings::default() };
        assert_eq!(
            run(&halts).expect_err("it must not be negative"),
            "block 3 would bring the balance of alice in gold to -2"
        );
    }

    #[test]
    fn an_account_that_is_not_of_the_chain_is_refused() {
        let token = "0x00000000000000000000000000000000000000aa";
        for (kind, refused) in [(Kind::Evm, vec!["bad_address"]), (Kind::Other, vec![])] {
            let mut accounts = Accounts::new(kind, Tells::default());
            let mut netted = Netted::default();
            accounts.take(&mut netted, Height::from(1), &movement(token, None, Some("alice"), 1));
            assert_eq!(netted.refused.iter().map(|r| r.reason).collect::<Vec<_>>(), refused);
            assert_eq!((netted.net.len(), netted.events), (1 - refused.len(), 1));
        }
    }
}
