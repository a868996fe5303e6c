//! Random books against the contract's own rule, written from it with integers of another library.

use std::collections::BTreeMap;

use ebbtide::chain::{Amount, Text};
use ebbtide::projections::option_vaults::clearing::{Outcome, clear};
use ebbtide::projections::option_vaults::rows::BidRow;
use num_bigint::BigInt;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

const BOOKS: u64 = 20_000;

/// A bid of the model.
#[derive(Debug, Clone)]
pub struct Bid {
    pub id: String,
    pub buyer: String,
    pub amount: BigInt,
    pub price: BigInt,
    pub nonce: u64,
}

/// How the model's auction ended.
#[derive(Debug, Clone)]
pub struct Ended {
    pub sold: BigInt,
    pub price: BigInt,
    pub nonce: u64,
    /// Mintable and refundable by buyer.
    pub entitled: BTreeMap<String, (BigInt, BigInt)>,
}

/// The contract's rule. The book is walked from its best bid until the options are gone; the bid they end with is the
/// clearing bid. Bids before it win in full, it gets the rest, bids after it lose. Where the options do not run out there
/// is no clearing bid: everybody wins, at the lowest price.
pub fn end_auction(bids: &[Bid], available: &BigInt) -> Ended {
    let zero = BigInt::from(0);
    let mut book: Vec<&Bid> = bids.iter().collect();
    book.sort_by(|a, b| (&b.price, a.nonce).cmp(&(&a.price, b.nonce)));
    let before = |at: usize| -> BigInt { book[..at].iter().map(|bid| &bid.amount).sum() };
    let clearing = (0..book.len()).find(|at| &before(at + 1) >= available);
    let (sold, price, nonce) = match (clearing, book.last()) {
        (Some(at), _) => (available.clone(), book[at].price.clone(), book[at].nonce),
        (None, Some(lowest)) => (before(book.len()), lowest.price.clone(), lowest.nonce),
        (None, None) => (zero.clone(), zero.clone(), 0),
    };
    let mut entitled: BTreeMap<String, (BigInt, BigInt)> = BTreeMap::new();
    for (place, bid) in book.iter().enumerate() {
        let (won, back) = match clearing {
            Some(at) if place > at => (zero.clone(), &bid.amount * &bid.price),
            Some(at) if place == at => {
                let won = available - before(at);
                (won.clone(), (&bid.amount - won) * &bid.price)
            }
            _ => (bid.amount.clone(), &bid.amount * (&bid.price - &price)),
        };
        let of = entitled.entry(bid.buyer.clone()).or_default();
        *of = (&of.0 + won, &of.1 + back);
    }
    Ended { sold, price, nonce, entitled }
}

pub fn amount(n: &BigInt) -> Amount {
    n.to_string().parse().unwrap()
}

fn random_book(rng: &mut StdRng) -> (Vec<Bid>, BigInt) {
    let size = |rng: &mut StdRng, huge: bool| -> BigInt {
        if huge {
            BigInt::from(rng.random_range(1..u128::MAX)) >> rng.random_range(8..64usize)
        } else {
            BigInt::from(rng.random_range(1..8u32))
        }
    };
    let huge = rng.random_ratio(1, 5);
    let bids: Vec<Bid> = (0..rng.random_range(0..9u64))
        .map(|nonce| Bid {
            id: format!("{:#x}", 0xc0 + nonce),
            buyer: format!("{:#x}", 0xb0 + rng.random_range(0..3)),
            amount: size(rng, huge),
            price: size(rng, huge),
            nonce: nonce + 3,
        })
        .collect();
    let asked: BigInt = bids.iter().map(|bid| &bid.amount).sum();
    let available = match rng.random_range(0..4) {
        // Nobody could ever get everything: under-subscribed.
        0 => asked + rng.random_range(1..5),
        1 => asked,
        _ => size(rng, huge) * rng.random_range(1..4u32),
    };
    (bids, available)
}

#[test]
fn random_books_clear_as_the_contract_clears_them() {
    let (mut bought, mut short, mut empty) = (0u64, 0u64, 0u64);
    for seed in 0..BOOKS {
        let mut rng = StdRng::seed_from_u64(seed);
        let (bids, available) = random_book(&mut rng);
        let must = end_auction(&bids, &available);
        empty += u64::from(bids.is_empty());
        short += u64::from(must.sold < available);
        let mut rows: Vec<BidRow> = bids
            .iter()
            .map(|bid| BidRow {
                vault_address: Text::from("0x11"),
                round_address: Text::from("0x21"),
                bid_id: bid.id.as_str().into(),
                buyer_address: bid.buyer.as_str().into(),
                tree_nonce: bid.nonce,
                amount: amount(&bid.amount),
                price: amount(&bid.price),
            })
            .collect();
        rows.shuffle(&mut rng);
        let outcome = Outcome { sold: amount(&must.sold), price: amount(&must.price), nonce: must.nonce };
        let seen: BTreeMap<String, (BigInt, BigInt)> = clear(&rows, outcome)
            .unwrap_or_else(|fault| panic!("seed {seed}: {fault}"))
            .into_iter()
            .map(|(buyer, e)| {
                let number = |n: Amount| n.to_string().parse::<BigInt>().unwrap();
                (buyer.to_string(), (number(e.mintable), number(e.refundable)))
            })
            .collect();
        assert_eq!(seen, must.entitled, "seed {seed}: {bids:?} of {available}");
        let paid_in: BigInt = bids.iter().map(|bid| &bid.amount * &bid.price).sum();
        let won: BigInt = seen.values().map(|(won, _)| won).sum();
        let back: BigInt = seen.values().map(|(_, back)| back).sum();
        assert_eq!(won, must.sold, "seed {seed}");
        assert_eq!(paid_in, &must.sold * &must.price + back, "seed {seed}");
        bought += u64::from(must.sold > BigInt::from(0));
        // One option more than the book holds at this price is refused.
        let too_many = Outcome { sold: outcome.sold + Amount::from(1), ..outcome };
        let at_the_edge = bids
            .iter()
            .any(|bid| (&bid.price, must.nonce) == (&must.price, bid.nonce) && seen[&bid.buyer].0 < bid.amount)
            || clear(&rows, too_many).is_err();
        assert!(at_the_edge || must.sold == available, "seed {seed}");
    }
    println!("{BOOKS} books: {bought} sold options, {short} were under-subscribed, {empty} empty");
    assert!(short > BOOKS / 10 && empty > 100 && bought > BOOKS / 2);
}
