//! `eth_getLogs` by range beside the headers of its blocks: ERC-20 Transfers, swaps, and orders whose data holds tuples.

use alloy_primitives::{Address, B256, Bloom, BloomInput, I256, U256, hex, keccak256};
use ebbtide::sources::evm::check::{BloomTrust, Check, Logs, take_range};
use ebbtide::sources::evm::decode::{DecodeSettings, Decoder, LogFilter};
use ebbtide::sources::evm::wire;
use serde_json::{Value, json};

use crate::{Bodies, Case, Dice, Size, Tally, batch, hash_of, results};

/// Blocks of one answer.
const BLOCKS: u64 = 100;
const TRANSFERS: u64 = 40;
const SWAPS: u64 = 6;
const ORDERS: u64 = 4;
const ACCOUNTS: u64 = 50_000;
const TOKENS: u64 = 20;

const TRANSFER: &str = "Transfer(address,address,uint256)";
const SWAP: &str = "Swap(address,address,int256,int256,uint160,uint128,int24)";
const ORDER: &str = "OrderFilled(bytes32,address,(address,uint256)[],(uint256,address))";
const EVENTS: [&str; 2] = [
    "Swap(address indexed sender, address indexed recipient, int256 amount0, int256 amount1, uint160 price, uint128 liquidity, int24 tick)",
    "OrderFilled(bytes32 indexed order, address indexed maker, (address token, uint256 amount)[] offer, (uint256 fee, address to) cost)",
];

struct Reader {
    decoder: Decoder,
    filters: Vec<LogFilter>,
    blooms: BloomTrust,
}

pub(crate) fn cases(size: &Size) -> Vec<Case> {
    let whats = [
        (BloomTrust::Exact, "decode rate, evm: logs of 100 blocks at once, a fifth of them no Transfers"),
        (BloomTrust::None, "decode rate, evm: the same with `check_bloom = false`"),
    ];
    whats.map(|(blooms, what)| case(size, blooms, what)).into()
}

fn case(size: &Size, blooms: BloomTrust, what: &'static str) -> Case {
    let events = EVENTS.map(str::to_owned).to_vec();
    let decoder = Decoder::new(&DecodeSettings { events, ..DecodeSettings::default() }, Some(1)).unwrap();
    let reader = Reader { filters: decoder.filters(), decoder, blooms };
    // One for the logs, one for the wrapped native token's deposits and withdrawals.
    assert_eq!(reader.filters.len(), 2);
    let (mut dice, mut holds) = (Dice::new(), Tally::default());
    let answers = (0..size.of(20, 2)).map(|n| answer(1 + n * BLOCKS, &mut dice, &mut holds)).collect();
    Case { what, answers, holds, read: Box::new(move |_, bodies| reader.read(bodies)) }
}

impl Reader {
    fn read(&self, bodies: &[Vec<u8>]) -> Tally {
        let [headers, logs] = bodies else { panic!("headers and logs") };
        let headers: Vec<wire::Header> =
            results(headers).iter().map(|raw| wire::header(raw).unwrap().unwrap()).collect();
        let range = headers[0].link.height..=headers[headers.len() - 1].link.height;
        let mut by_block = Logs::new();
        for raw in results(logs) {
            take_range(wire::logs(&raw).unwrap(), &range, &mut by_block).unwrap();
        }
        let check = Check { filters: &self.filters, blooms: self.blooms };
        check.blocks(&headers, &mut by_block).unwrap();
        let mut tally = Tally::default();
        for header in headers {
            let decoded = self.decoder.decode(by_block.remove(&header.link.hash).unwrap_or_default());
            assert!(decoded.rejects.is_empty());
            tally.blocks += 1;
            tally.token_events += decoded.token_events.len() as u64;
            tally.events += decoded.events.len() as u64;
            let amounts = decoded.token_events.iter().map(|event| event.amount);
            let inside = decoded.events.iter().map(|event| match &*event.name {
                "Swap" => number(&event.attributes["liquidity"]),
                _ => number(&event.attributes["cost"]["fee"]) + number(&event.attributes["offer"][1]["amount"]),
            });
            tally.sum += amounts.chain(inside).sum::<U256>();
        }
        tally
    }
}

fn number(value: &Value) -> U256 {
    value.as_str().unwrap().parse().unwrap()
}

fn account(n: u64) -> Address {
    Address::from_slice(&hash_of("account", n)[12..])
}

fn text(bytes: impl AsRef<[u8]>) -> String {
    hex::encode_prefixed(bytes)
}

/// Address, topics and data of one log.
type Said = (Address, Vec<B256>, Vec<B256>);

fn word(number: U256) -> B256 {
    number.into()
}

fn transfer(dice: &mut Dice, holds: &mut Tally) -> Said {
    let (from, to, amount) = (account(dice.below(ACCOUNTS)), account(dice.below(ACCOUNTS)), dice.amount());
    holds.token_events += 1;
    holds.sum += amount;
    let token = Address::from_slice(&hash_of("token", dice.below(TOKENS))[12..]);
    (token, vec![keccak256(TRANSFER), from.into_word(), to.into_word()], vec![word(amount)])
}

fn swap(dice: &mut Dice, holds: &mut Tally) -> Said {
    let (amount, liquidity) = (dice.amount(), dice.amount());
    let minus = |number: U256| word((-I256::from_raw(number)).into_raw());
    holds.events += 1;
    holds.sum += liquidity;
    let topics =
        vec![keccak256(SWAP), account(dice.below(ACCOUNTS)).into_word(), account(dice.below(ACCOUNTS)).into_word()];
    let data =
        vec![word(amount), minus(amount >> 3), word(U256::from(1) << 100), word(liquidity), minus(U256::from(7))];
    (Address::from_slice(&hash_of("pool", dice.below(TOKENS))[12..]), topics, data)
}

fn order(dice: &mut Dice, holds: &mut Tally) -> Said {
    let (amount, fee) = (dice.amount(), dice.amount());
    holds.events += 1;
    holds.sum += amount + fee;
    let topics =
        vec![keccak256(ORDER), hash_of("order", dice.below(1 << 30)).into(), account(dice.below(ACCOUNTS)).into_word()];
    let token = |n: u64| Address::from_slice(&hash_of("token", n)[12..]).into_word();
    // Where the list begins, the pair without an offset of its own, then the list.
    let head = [word(U256::from(3 * 32)), word(fee), account(3).into_word()];
    let list = [word(U256::from(2)), token(1), word(fee), token(2), word(amount)];
    (Address::from_slice(&hash_of("exchange", 1)[12..]), topics, [&head[..], &list].concat())
}

fn answer(first: u64, dice: &mut Dice, holds: &mut Tally) -> Bodies {
    let (mut headers, mut logs) = (Vec::new(), Vec::new());
    for height in first..first + BLOCKS {
        let hash = text(hash_of("block", height));
        let mut bloom = Bloom::default();
        holds.blocks += 1;
        for log_index in 0..TRANSFERS + SWAPS + ORDERS {
            let (address, topics, data) = match log_index % 25 {
                0..20 => transfer(dice, holds),
                20..23 => swap(dice, holds),
                _ => order(dice, holds),
            };
            bloom.accrue(BloomInput::Raw(address.as_slice()));
            topics.iter().for_each(|topic| bloom.accrue(BloomInput::Raw(topic.as_slice())));
            // Two logs a transaction.
            let tx_index = log_index / 2;
            logs.push(json!({
                "address": text(address),
                "topics": topics.iter().map(text).collect::<Vec<_>>(),
                "data": text(data.concat()),
                "blockNumber": format!("{height:#x}"),
                "transactionHash": text(hash_of("tx", height << 16 | tx_index)),
                "transactionIndex": format!("{tx_index:#x}"),
                "blockHash": hash,
                "blockTimestamp": format!("{:#x}", 1_700_000_000 + 12 * height),
                "logIndex": format!("{log_index:#x}"),
                "removed": false,
            }));
        }
        headers.push(header(height, &hash, &bloom));
    }
    vec![batch(headers), batch(vec![Value::Array(logs), json!([])])]
}

fn header(height: u64, hash: &str, bloom: &Bloom) -> Value {
    let transactions = (0..TRANSFERS).map(|n| text(hash_of("tx", height << 16 | n))).collect::<Vec<_>>();
    let other = |kind: &str| text(hash_of(kind, height));
    json!({
        "number": format!("{height:#x}"), "hash": hash, "parentHash": text(hash_of("block", height - 1)),
        "timestamp": format!("{:#x}", 1_700_000_000 + 12 * height), "logsBloom": text(bloom),
        "baseFeePerGas": "0x3b9aca00", "blobGasUsed": "0x60000", "difficulty": "0x0", "excessBlobGas": "0x0",
        "extraData": "0x6275696c64657230", "gasLimit": "0x2255100", "gasUsed": "0xe4e1c0", "miner": text(account(1)),
        "mixHash": other("mix"), "nonce": "0x0000000000000000", "parentBeaconBlockRoot": other("beacon"),
        "receiptsRoot": other("receipts"), "requestsHash": other("requests"), "sha3Uncles": other("uncles"),
        "size": "0x1f2a4", "stateRoot": other("state"), "transactions": transactions,
        "transactionsRoot": other("transactions"), "uncles": [], "withdrawals": [], "withdrawalsRoot": other("withdrawals"),
    })
}
