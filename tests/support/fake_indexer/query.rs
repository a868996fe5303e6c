//! The questions of the source, read as GraphQL, and their answers.

use serde_json::{Map, Value, json};

use super::Fault;
use super::chain::{FakeBlock, FakeTx};

/// A filter on one number, as the server has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bounds {
    pub eq: Option<i64>,
    pub gt: Option<i64>,
    pub lt: Option<i64>,
}

impl Bounds {
    /// The real server's traps: `gt: -1` wraps to a huge start, and `lt: 0` is as good as none.
    fn holds(&self, number: u64) -> bool {
        let number = i64::try_from(number).unwrap();
        self.eq.is_none_or(|eq| number == eq)
            && self.gt.is_none_or(|gt| gt >= 0 && number > gt)
            && self.lt.is_none_or(|lt| lt == 0 || number < lt)
    }
}

/// What was asked.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    pub head: bool,
    /// Heights of blocks.
    pub blocks: Option<Bounds>,
    /// Heights and indexes of transactions.
    pub transactions: Option<(Bounds, Bounds)>,
    pub func: bool,
}

impl Asked {
    /// Reads a query with its variables; fails on what the schema does not have.
    pub fn read(text: &str, variables: &Value) -> Asked {
        let mut asked = Asked { head: text.contains("latestBlockHeight"), ..Asked::default() };
        let bounds = |filter: &Value, key: &str| {
            let Some(of) = filter.get(key) else { return Bounds::default() };
            for name in of.as_object().unwrap().keys() {
                assert!(["eq", "gt", "lt"].contains(&name.as_str()), "no comparison {name} in the schema");
            }
            let number = |name: &str| of.get(name).map(|value| value.as_i64().unwrap());
            Bounds { eq: number("eq"), gt: number("gt"), lt: number("lt") }
        };
        if let Some(filter) = where_of(text, "getBlocks", variables) {
            asked.blocks = Some(bounds(&filter, "height"));
        }
        if let Some(filter) = where_of(text, "getTransactions", variables) {
            asked.transactions = Some((bounds(&filter, "block_height"), bounds(&filter, "index")));
        }
        asked.func = text.split_whitespace().any(|word| word == "func");
        assert!(asked.head || asked.blocks.is_some() || asked.transactions.is_some(), "nothing known in {text}");
        asked
    }

    /// How many blocks a page spans.
    pub fn width(&self) -> Option<u64> {
        let bounds = self.blocks.filter(|_| self.transactions.is_some())?;
        Some(match (bounds.eq, bounds.gt, bounds.lt) {
            (Some(_), ..) => 1,
            (None, Some(gt), Some(lt)) => u64::try_from(lt - gt - 1).unwrap(),
            _ => panic!("a page without both ends: {bounds:?}"),
        })
    }
}

/// The `where` of a field, with its variables filled in.
fn where_of(text: &str, field: &str, variables: &Value) -> Option<Value> {
    let at = text.find(&format!("{field}(where: "))? + field.len() + "(where: ".len();
    let mut chars = text[at..].chars().peekable();
    Some(object(&mut chars, variables))
}

fn object(chars: &mut std::iter::Peekable<std::str::Chars<'_>>, variables: &Value) -> Value {
    assert_eq!(chars.next(), Some('{'));
    let mut map = Map::new();
    loop {
        while chars.next_if(|c| c.is_whitespace() || *c == ',').is_some() {}
        if chars.next_if_eq(&'}').is_some() {
            return Value::Object(map);
        }
        let key = word(chars);
        assert_eq!(chars.next(), Some(':'), "after {key}");
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let value = match chars.peek().unwrap() {
            '{' => object(chars, variables),
            '$' => {
                chars.next();
                let name = word(chars);
                variables.get(&name).unwrap_or_else(|| panic!("no variable {name} in {variables}")).clone()
            }
            _ => json!(word(chars).parse::<i64>().unwrap()),
        };
        map.insert(key, value);
    }
}

fn word(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> String {
    std::iter::from_fn(|| chars.next_if(|c| c.is_alphanumeric() || matches!(c, '_' | '-'))).collect()
}

/// The answer, and the cap it met.
pub(super) fn answer(asked: &Asked, blocks: &[FakeBlock], faults: &[Fault]) -> (Value, Option<usize>) {
    let mut data = Map::new();
    let mut capped = None;
    let visible = |height: u64| faults.iter().all(|fault| !matches!(fault, Fault::HeadAt(head) if height > *head));
    let blocks: Vec<&FakeBlock> = blocks.iter().filter(|block| visible(block.height)).collect();
    let null = faults.iter().any(|fault| matches!(fault, Fault::Null));
    let most = faults.iter().find_map(|fault| if let Fault::Cap(most) = fault { Some(*most) } else { None });
    let mut put = |field: &str, mut found: Vec<Value>| {
        let most = most.unwrap_or(10_000);
        if found.len() >= most {
            found.truncate(most);
            capped = Some(most);
        }
        let value = if null || found.is_empty() { Value::Null } else { Value::Array(found) };
        data.insert(field.to_owned(), value);
    };
    if let Some(heights) = asked.blocks {
        let chosen = blocks.iter().filter(|block| heights.holds(block.height));
        let mut found: Vec<Value> = chosen.flat_map(|block| block_rows(block, faults)).collect();
        if faults.iter().any(|fault| matches!(fault, Fault::StrayBlock)) {
            found.push(blocks[0].header());
            found.push(blocks[blocks.len() - 1].header());
        }
        put("getBlocks", found);
    }
    if let Some((heights, indexes)) = asked.transactions {
        let chosen = blocks.iter().filter(|block| heights.holds(block.height));
        let mut found: Vec<Value> = chosen.flat_map(|block| tx_rows(block, indexes, asked.func, faults)).collect();
        if faults.iter().any(|fault| matches!(fault, Fault::StrayTx)) {
            let stray = FakeTx { index: 0, hash: super::hash_of("stray"), success: true, events: Vec::new() };
            found.push(stray.row(blocks[blocks.len() - 1].height + 1, asked.func));
        }
        put("getTransactions", found);
    }
    if asked.head {
        let ahead: u64 = faults.iter().map(|fault| if let Fault::HeadAhead(by) = fault { *by } else { 0 }).sum();
        let head = blocks.last().map_or(0, |block| block.height) + ahead;
        data.insert("latestBlockHeight".to_owned(), json!(head));
    }
    (Value::Object(data), capped)
}

fn block_rows(block: &FakeBlock, faults: &[Fault]) -> Vec<Value> {
    let mut row = block.header();
    let mut times = 1;
    for fault in faults {
        match fault {
            Fault::MissingBlock(height) if *height == block.height => times = 0,
            Fault::BlockTwice(height) if *height == block.height => times = 2,
            Fault::BadLink(height) if *height == block.height => row["last_block_hash"] = json!(super::hash_of("bad")),
            Fault::BadHash(height) if *height == block.height => row["hash"] = json!("0xab"),
            Fault::ChainId(name) => row["chain_id"] = json!(name),
            _ => {}
        }
    }
    vec![row; times]
}

fn tx_rows(block: &FakeBlock, indexes: Bounds, func: bool, faults: &[Fault]) -> Vec<Value> {
    let mut rows = Vec::new();
    for tx in block.txs.iter().filter(|tx| indexes.holds(tx.index)) {
        let here = |height: u64, index: u64| height == block.height && index == tx.index;
        let missing = faults.iter().any(|f| matches!(f, Fault::MissingTx(height, index) if here(*height, *index)));
        let twice = faults.iter().any(|f| matches!(f, Fault::TxTwice(height, index) if here(*height, *index)));
        let times = if missing { 0 } else { 1 + usize::from(twice) };
        rows.extend(vec![tx.row(block.height, func); times]);
    }
    if faults.iter().any(|f| matches!(f, Fault::TxTooMany(height) if *height == block.height)) {
        let index = block.txs.len() as u64;
        let tx = FakeTx { index, hash: super::hash_of("too many"), success: true, events: Vec::new() };
        rows.push(tx.row(block.height, func));
    }
    rows
}
