//! Random blocks by a seed: the same seed and words give the same blocks.

use serde_json::{Value, json};

use crate::chain::dice::Dice;

/// What blocks are made of.
#[derive(Debug, Clone, Default)]
pub(super) struct Words {
    pub(super) tokens: Vec<String>,
    pub(super) addresses: Vec<String>,
    pub(super) amounts: Vec<String>,
    /// Whole events, as `put_block` takes them, without their place.
    pub(super) events: Vec<Value>,
}

/// Few enough that the same ones meet again and again.
const TOKENS: usize = 3;
const ADDRESSES: usize = 8;

impl Words {
    /// Some of the words, with invented ones where there are none.
    pub(super) fn chosen(mut self, dice: &mut Dice) -> Words {
        let hex = |of: u64, n: u64| format!("0x{of:02x}{n:038x}");
        for (list, most, of) in [(&mut self.tokens, TOKENS, 0xee), (&mut self.addresses, ADDRESSES, 0xaa)] {
            dice.shuffle(list);
            list.truncate(most);
            let missing = if list.is_empty() { most } else { 2usize.saturating_sub(list.len()) };
            list.extend((0..missing as u64).map(|n| hex(of, n)));
        }
        if self.events.is_empty() {
            self.events = (0..4)
                .map(|n| json!({"emitter": hex(0xcc, n % 2), "name": format!("Event{n}"), "attributes": {"n": n}}))
                .collect();
        }
        self
    }
}

/// A block of the scratch chain.
#[derive(Debug, Clone)]
pub(super) struct FuzzBlock {
    pub(super) height: i64,
    pub(super) hash: String,
    pub(super) parent: String,
    /// Seconds since 1970.
    pub(super) time: i64,
    pub(super) transactions: Vec<Value>,
    pub(super) token_events: Vec<Value>,
    pub(super) events: Vec<Value>,
}

/// A random block on top of another.
pub(super) fn block(dice: &mut Dice, words: &Words, height: i64, parent: &str) -> FuzzBlock {
    let hash = format!("0x{:016x}{:016x}{height:032x}", dice.roll(), dice.roll());
    let mut transactions = Vec::new();
    let mut token_events = Vec::new();
    let mut events = Vec::new();
    for tx_index in 0..dice.below(4) {
        let tx_hash = format!("0x{:032x}{:016x}{:016x}", 0, dice.roll(), dice.roll());
        transactions.push(json!({"tx_index": tx_index, "hash": tx_hash, "success": dice.below(10) > 0}));
        for event_index in 0..dice.below(4) {
            if dice.below(3) == 0
                && let Some(Value::Object(event)) = dice.pick(&words.events)
            {
                let mut event = event.clone();
                event.insert("tx_index".to_owned(), tx_index.into());
                event.insert("event_index".to_owned(), event_index.into());
                events.push(Value::Object(event));
                continue;
            }
            let mut moved =
                json!({"tx_index": tx_index, "event_index": event_index, "token": dice.pick(&words.tokens)});
            let kind = dice.below(10);
            if kind > 1 {
                moved["from_address"] = json!(dice.pick(&words.addresses));
            }
            if kind != 9 {
                moved["to_address"] = json!(dice.pick(&words.addresses));
            }
            let small = dice.below(100);
            moved["amount"] = match dice.pick(&words.amounts) {
                Some(amount) if dice.below(2) == 0 => json!(amount),
                _ => json!(small.to_string()),
            };
            token_events.push(moved);
        }
    }
    let (parent, time) = (parent.to_owned(), 1_600_000_000 + 12 * height);
    FuzzBlock { height, hash, parent, time, transactions, token_events, events }
}
