//! What is loaded and applied: transfers between Zipf-distributed accounts, the same on every run.

use std::fmt::Write as _;

use bytes::{BufMut, BytesMut};
use ebbtide::chain::delta::{self, Delta};
use ebbtide::chain::{Amount, Block, BlockRef, Hash, Height, Link, Text, TokenEvent};
use postgres_types::{IsNull, ToSql, Type, accepts, to_sql_checked};

/// Movements in a block, unless said otherwise.
pub(crate) const EVENTS: u64 = 100;
const ACCOUNTS: usize = 100_000;
const TOKENS: usize = 20;

/// The same numbers on every machine (splitmix64).
pub(crate) struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Names drawn with a probability of 1/rank.
struct Zipf {
    names: Vec<Text>,
    reached: Vec<f64>,
}

impl Zipf {
    fn new(count: usize, dice: &mut Dice) -> Zipf {
        let mut sum = 0.0;
        let reached = (1..=count)
            .map(|rank| {
                sum += 1.0 / rank as f64;
                sum
            })
            .collect();
        let names = (0..count).map(|_| hex(dice, 40).into()).collect();
        Zipf { names, reached }
    }

    fn draw(&self, dice: &mut Dice) -> Text {
        let at = dice.share() * self.reached[self.reached.len() - 1];
        self.names[self.reached.partition_point(|r| *r < at).min(self.names.len() - 1)].clone()
    }
}

fn hex(dice: &mut Dice, digits: usize) -> String {
    let mut text = String::from("0x");
    while text.len() < digits + 2 {
        write!(text, "{:016x}", dice.next()).unwrap();
    }
    text.truncate(digits + 2);
    text
}

/// Makes blocks, one on top of the other.
pub(crate) struct Workload {
    dice: Dice,
    tokens: Zipf,
    accounts: Zipf,
}

impl Workload {
    pub(crate) fn new() -> Workload {
        let mut dice = Dice(42);
        Workload { tokens: Zipf::new(TOKENS, &mut dice), accounts: Zipf::new(ACCOUNTS, &mut dice), dice }
    }

    /// `count` blocks of `events` movements each on top of `below`; none: from height 1.
    pub(crate) fn blocks(&mut self, below: Option<&BlockRef>, count: u64, events: u64) -> Vec<Block> {
        let mut parent = below.map_or_else(|| Hash::new("0x00"), |b| b.hash.clone());
        let first = below.map_or(Height::from(1), |b| b.height.next());
        (0..count)
            .map(|n| {
                let hash = Hash::new(hex(&mut self.dice, 64));
                let link = Link { height: first.plus(n), hash: hash.clone(), parent_hash: parent.clone() };
                parent = hash;
                Block {
                    link,
                    time: jiff::Timestamp::from_second(1_700_000_000 + 12 * n as i64).ok(),
                    transactions: Vec::new(),
                    token_events: (0..events).map(|place| self.movement(place)).collect(),
                    events: Vec::new(),
                    rejects: Vec::new(),
                }
            })
            .collect()
    }

    fn movement(&mut self, place: u64) -> TokenEvent {
        let size = (u128::from(self.dice.next()) << 64 | u128::from(self.dice.next())) % 10u128.pow(24);
        TokenEvent {
            tx_index: place,
            event_index: place,
            token: self.tokens.draw(&mut self.dice),
            from: Some(self.accounts.draw(&mut self.dice)),
            to: Some(self.accounts.draw(&mut self.dice)),
            amount: Amount::from(size),
        }
    }
}

pub(crate) fn last(blocks: &[Block]) -> BlockRef {
    blocks.last().unwrap().link.block_ref()
}

/// A number below 10^38 with its sign, ready for the wire.
#[derive(Debug)]
pub(crate) struct WireNumeric(Vec<u8>);

impl WireNumeric {
    pub(crate) fn new(number: &str) -> WireNumeric {
        let negative = number.starts_with('-');
        let digits = number.trim_start_matches('-').trim_start_matches('0');
        let groups: Vec<u16> =
            digits.as_bytes().rchunks(4).rev().map(|g| g.iter().fold(0, |n, d| n * 10 + u16::from(d - b'0'))).collect();
        let kept = groups.len() - groups.iter().rev().take_while(|g| **g == 0).count();
        let mut out = Vec::with_capacity(8 + 2 * kept);
        out.put_u16(kept as u16);
        out.put_i16(groups.len() as i16 - i16::from(!groups.is_empty()));
        out.put_u16(if negative { 0x4000 } else { 0 });
        out.put_u16(0);
        groups[..kept].iter().for_each(|g| out.put_u16(*g));
        WireNumeric(out)
    }
}

impl From<Delta> for WireNumeric {
    fn from(delta: Delta) -> WireNumeric {
        WireNumeric::new(&delta.to_string())
    }
}

impl ToSql for WireNumeric {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.put_slice(&self.0);
        Ok(IsNull::No)
    }

    accepts!(NUMERIC);
    to_sql_checked!();
}

/// The movements of some blocks as one binary COPY, encoded beforehand: a floor's client does nothing but send.
pub(crate) fn copy_payload(blocks: &[Block]) -> bytes::Bytes {
    let mut out = BytesMut::new();
    out.put_slice(b"PGCOPY\n\xff\r\n\0");
    out.put_u64(0);
    for block in blocks {
        for e in &block.token_events {
            out.put_i16(8);
            let place = [1, block.link.height.to_sql(), e.tx_index as i64, e.event_index as i64];
            for number in place {
                out.put_i32(8);
                out.put_i64(number);
            }
            for text in [Some(&e.token), e.from.as_ref(), e.to.as_ref()] {
                match text {
                    Some(text) => {
                        out.put_i32(text.len() as i32);
                        out.put_slice(text.as_bytes());
                    }
                    None => out.put_i32(-1),
                }
            }
            let amount = WireNumeric::new(&e.amount.to_string());
            out.put_i32(amount.0.len() as i32);
            out.put_slice(&amount.0);
        }
    }
    out.put_i16(-1);
    out.freeze()
}

/// One block's net changes as arrays, ready to be sent.
pub(crate) struct Arrays {
    pub(crate) height: i64,
    pub(crate) tokens: Vec<Text>,
    pub(crate) addresses: Vec<Text>,
    pub(crate) deltas: Vec<WireNumeric>,
}

pub(crate) fn arrays(block: &Block) -> Arrays {
    let net = delta::net(&block.token_events);
    let (mut tokens, mut addresses, mut deltas) = (Vec::new(), Vec::new(), Vec::new());
    for ((token, address), delta) in net {
        tokens.push(token);
        addresses.push(address);
        deltas.push(delta.into());
    }
    Arrays { height: block.link.height.to_sql(), tokens, addresses, deltas }
}
