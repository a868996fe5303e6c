//! 23 mainnet blocks in a row, held against the storage of 389 contracts at every height, forward and back.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::live::{Amounts, Live, assert_nothing_rejected, assert_same, opening, standing, standing_at, without_zeros};
use crate::support::{Ebbtide, data_dir, read_ndjson_gz};

const ZERO: &str = "0x0000000000000000000000000000000000000000";

/// What the contracts' storage said.
struct Storage {
    tokens: BTreeSet<String>,
    /// Before the first block.
    opening: Amounts,
    /// Balances before and after, by height, token and holder.
    changes: BTreeMap<(u64, String, String), (String, String)>,
}

impl Storage {
    fn read(path: &Path) -> Storage {
        use std::io::Read;
        let mut text = String::new();
        flate2::read::MultiGzDecoder::new(std::fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
        let mut storage = Storage { tokens: BTreeSet::new(), opening: Amounts::new(), changes: BTreeMap::new() };
        for line in text.lines().skip(1) {
            let [block, token, holder, before, after] = line.split(',').collect::<Vec<_>>()[..] else {
                panic!("not a row: {line}")
            };
            assert_ne!(holder, ZERO);
            storage.tokens.insert(token.to_owned());
            storage.opening.entry((token.to_owned(), holder.to_owned())).or_insert_with(|| before.to_owned());
            let key = (block.parse().unwrap(), token.to_owned(), holder.to_owned());
            let twice = storage.changes.insert(key, (before.to_owned(), after.to_owned()));
            assert_eq!(twice, None, "{line}");
        }
        storage
    }

    /// Balances that are not 0 after the block at this height.
    fn at(&self, height: u64) -> Amounts {
        let mut amounts = self.opening.clone();
        for ((_, token, holder), (_, after)) in self.changes.range(..(height + 1, String::new(), String::new())) {
            amounts.insert((token.clone(), holder.clone()), after.clone());
        }
        without_zeros(amounts)
    }

    /// Ours, without the tokens that storage says nothing of.
    fn comparable(&self, ours: Amounts) -> Amounts {
        without_zeros(ours.into_iter().filter(|((token, _), _)| self.tokens.contains(token)).collect())
    }

    async fn compare_now(&self, live: &Live, height: u64, hash: &str, what: &str) {
        live.reach(height, hash).await;
        let (at, ours) = standing(&live.db, "main").await;
        assert_eq!(at, hash);
        assert_same(&self.comparable(ours), &self.at(height), &format!("{what}: balances at {height}"));
    }

    async fn compare_past(&self, live: &Live, height: u64, what: &str) {
        let ours = standing_at(&live.db, "main", height).await;
        assert_same(&self.comparable(ours), &self.at(height), &format!("{what}: balances_at({height})"));
    }

    /// The journal holds just these changes, up to this height.
    async fn compare_journal(&self, db: &Client, upto: u64, what: &str) -> usize {
        let sql = "select height, token, address, (balance_after - delta)::text, balance_after::text
                   from balance_changes where delta <> 0 and height > $1";
        let first = self.changes.keys().next().unwrap().0;
        let rows = db.query(sql, &[&(first.cast_signed() - 1)]).await.unwrap();
        let ours: BTreeMap<(u64, String, String), (String, String)> = rows
            .iter()
            .filter(|row| self.tokens.contains(row.get::<_, &str>(1)))
            .map(|row| {
                let height = row.get::<_, i64>(0).cast_unsigned();
                ((height, row.get(1), row.get(2)), (row.get(3), row.get(4)))
            })
            .collect();
        let theirs: BTreeMap<_, _> = self
            .changes
            .iter()
            .filter(|((height, ..), (before, after))| *height <= upto && before != after)
            .map(|(key, change)| (key.clone(), change.clone()))
            .collect();
        let different = ours.iter().find(|(key, change)| theirs.get(*key) != Some(*change));
        assert_eq!(different, None, "{what}: in the journal, but not so in storage");
        let missing = theirs.keys().find(|key| !ours.contains_key(*key));
        assert_eq!(missing, None, "{what}: in storage, but not in the journal");
        theirs.len()
    }
}

#[tokio::test]
async fn balances_equal_contract_storage_at_every_height_forward_and_back_by_1_to_23_blocks() {
    let Some(dir) = data_dir() else { return };
    let dir = dir.join("ethereum/run-17686110-17686132");
    let blocks = read_ndjson_gz(&dir.join("blocks.ndjson.gz"));
    let storage = Storage::read(&dir.join("balances.csv.gz"));
    let logs: usize = blocks.iter().map(|block| block["logs"].as_array().unwrap().len()).sum();
    assert_eq!((blocks.len(), logs, storage.changes.len()), (23, 9_807, 5_784));
    // The block below the first one is known by name: something to go back to.
    let first = blocks[0]["number"].as_u64().unwrap();
    let below = json!({
        "event": "block", "number": first - 1, "hash": blocks[0]["parent_hash"],
        "parent_hash": format!("0x{}", "00".repeat(32)), "logs": [],
    });
    let mut script: Vec<Value> = vec![below];
    script.extend(blocks);
    let named = |height: u64| {
        let block = &script[usize::try_from(height - (first - 1)).unwrap()];
        (block["number"].as_u64().unwrap(), block["hash"].as_str().unwrap())
    };
    let last = first + 22;

    let mut live = Live::start(&["--kind", "evm"]).await;
    let openings: Vec<Value> =
        storage.opening.iter().map(|((token, holder), amount)| opening(token, holder, amount)).collect();
    assert_eq!(openings.len(), 3_864);
    live.tell(&openings);
    for block in &script {
        live.tell([block]);
        let (height, hash) = named(block["number"].as_u64().unwrap());
        storage.compare_now(&live, height, hash, "forward").await;
        storage.compare_past(&live, height, "forward").await;
    }
    for height in first - 1..=last {
        storage.compare_past(&live, height, "at the end").await;
    }
    let real = storage.compare_journal(&live.db, last, "forward").await;
    println!(
        "23 blocks, {logs} logs: {} changes of storage ({real} of them to another amount) right at every height",
        storage.changes.len()
    );

    // Back and forward again, as a source tells of it.
    for depth in 1..=23 {
        let (height, hash) = named(last - depth);
        live.tell(&[json!({"event": "head", "number": height, "hash": hash})]);
        let what = format!("back by {depth} blocks");
        storage.compare_now(&live, height, hash, &what).await;
        storage.compare_journal(&live.db, height, &what).await;
        if depth % 7 == 2 {
            for earlier in first - 1..=height {
                storage.compare_past(&live, earlier, &what).await;
            }
        }
        live.tell(&script[script.len() - usize::try_from(depth).unwrap()..]);
        let (height, hash) = named(last);
        storage.compare_now(&live, height, hash, &format!("forward again by {depth} blocks")).await;
    }
    let by_source = reorgs(&live.db).await;
    assert_eq!(by_source, (1..=23).collect::<Vec<i64>>(), "each way back was one reorg of just that depth");

    // And as an operator does it.
    for depth in 1..=23 {
        let (height, hash) = named(last - depth);
        Ebbtide::succeed(&["pause", "--at", &height.to_string(), "--database-url", &live.pg.url], &[]);
        let what = format!("paused {depth} blocks below");
        storage.compare_now(&live, height, hash, &what).await;
        storage.compare_journal(&live.db, height, &what).await;
        Ebbtide::succeed(&["resume", "--database-url", &live.pg.url], &[]);
        let (height, hash) = named(last);
        storage.compare_now(&live, height, hash, &format!("resumed {depth} blocks below")).await;
    }
    for height in first - 1..=last {
        storage.compare_past(&live, height, "in the end").await;
    }
    storage.compare_journal(&live.db, last, "in the end").await;
    assert_nothing_rejected(&live.db).await;
    println!("back by 1 to 23 blocks and forward again, 23 times by the source and 23 times by pause and resume");
    live.end().await;
}

async fn reorgs(db: &Client) -> Vec<i64> {
    let rows = db.query("select depth from reorgs order by id", &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}
