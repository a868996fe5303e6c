//! A random script: what it does to the chain tables and asks of the processor, and what must have followed from it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ebbtide::process::{Connections, ProcessSettings, Unwatched, run_on};
use ebbtide::projections::token_balances::{History, Settings};
use ebbtide::store::{Wake, WakeMode};
use num_bigint::BigInt;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio_postgres::{Client, GenericClient};
use tokio_util::sync::CancellationToken;

use crate::support::model::{Block, Chain, Ledger, Movement};
use crate::tracked::{Compared, TROUBLE, Tracked};

/// No account of an EVM chain.
const NOBODY: &str = "nobody";
/// Makes another seed of a seed.
const ASIDE: u64 = 0x7261_636b_6564;

/// A random script, its model and what it did.
pub struct Script {
    pub rng: StdRng,
    /// What concerns projections is drawn from here, so that they leave the rest of a script as it is.
    pub aside: StdRng,
    pub name: String,
    pub id: i64,
    pub chain: Chain,
    is_evm: bool,
    settings: ProcessSettings,
    /// Highest block to be applied; none: stays where it is.
    pub cap: Option<i64>,
    /// What the last step left.
    pub ledger: Ledger,
    pub tracked: Vec<Tracked>,
    /// Something changed while a processor ran, since the last comparison.
    pub raced: bool,
    pub names: u64,
    pub steps: Vec<String>,
    pub blocks: u64,
    pub compared: Compared,
}

pub type Failure = String;

impl Script {
    pub async fn begin(db: &Client, seed: u64) -> Script {
        let mut rng = StdRng::seed_from_u64(seed);
        let is_evm = rng.random_bool(0.25);
        let start = if rng.random_bool(0.4) { Some(rng.random_range(0..6i64)) } else { None };
        let depth = [0i64, 1, 3, 3, 64][rng.random_range(0..5)];
        let batch = [1usize, 2, 7, 1000][rng.random_range(0..4)];
        let history = if rng.random_bool(0.25) { History::Window } else { History::Full };
        let name = format!("s{seed}");
        let kind = if is_evm { "evm" } else { "other" };
        let id = db
            .query_one(
                "insert into chains (name, kind, start_height, finality_depth) values ($1, $2, $3, $4) returning chain_id",
                &[&name, &kind, &start, &depth],
            )
            .await
            .unwrap()
            .get(0);
        let token_balances = Settings { history, ..Settings::default() };
        let settings = ProcessSettings { batch, once: true, token_balances, ..ProcessSettings::default() };
        let chain =
            Chain { start, impossible: if is_evm { vec![NOBODY.to_owned()] } else { Vec::new() }, ..Chain::default() };
        let steps = vec![format!("{kind}, start {start:?}, finality {depth}, batch {batch}, {history:?}")];
        let ledger = Ledger::default();
        let mut aside = StdRng::seed_from_u64(seed ^ ASIDE);
        let tracked = Tracked::choose(db, &mut aside).await;
        let mut script = Script {
            rng,
            aside,
            name,
            id,
            chain,
            is_evm,
            settings,
            cap: Some(i64::MAX),
            ledger,
            tracked,
            raced: false,
            names: 0,
            steps,
            blocks: 0,
            compared: Compared::default(),
        };
        script.begin_tracked(db).await;
        script
    }

    pub fn say(&mut self, step: String) {
        self.steps.push(step);
    }

    fn chance(&mut self, one_in: u32) -> bool {
        self.rng.random_ratio(1, one_in)
    }

    fn new_name(&mut self) -> String {
        self.names += 1;
        format!("h{}", self.names)
    }

    fn address(&mut self) -> String {
        if self.is_evm && self.chance(20) {
            return NOBODY.to_owned();
        }
        // Now and then an account that lives on one branch only.
        let n = if self.chance(6) { 100 + self.rng.random_range(0..400) } else { self.rng.random_range(0..4) };
        if self.is_evm { format!("0x{n:040x}") } else { format!("a{n}") }
    }

    fn amount(&mut self) -> BigInt {
        let most: BigInt = (BigInt::from(1) << 256) - 1;
        match self.rng.random_range(0..8) {
            0 => BigInt::from(0),
            1 => most,
            2 => BigInt::from(1) << 255,
            3 => BigInt::from(10_000) * BigInt::from(self.rng.random_range(0..100_000u64)),
            _ => BigInt::from(self.rng.random_range(0..1000u64)),
        }
    }

    fn movement(&mut self) -> Movement {
        // What one block makes another takes away: the sum over both is nothing.
        if self.chance(6) {
            let (token, holder) = if self.is_evm {
                (format!("0x{:040x}", 9), format!("0x{:040x}", 1))
            } else {
                ("t9".into(), "a1".into())
            };
            let (from, to) = if self.chance(2) { (None, Some(holder)) } else { (Some(holder), None) };
            return Movement { token, from, to, amount: BigInt::from(100) };
        }
        let token = self.rng.random_range(1..3);
        let token = if self.is_evm { format!("0x{token:040x}") } else { format!("t{token}") };
        let (mut from, mut to) = (Some(self.address()), Some(self.address()));
        match self.rng.random_range(0..5) {
            0 => from = None,
            1 => to = None,
            2 => to = from.clone(),
            _ => {}
        }
        Movement { token, from, to, amount: self.amount() }
    }

    fn some_height(&mut self) -> Option<i64> {
        let n = self.chain.blocks.len();
        if n == 0 {
            return None;
        }
        // Near the tip more often than not.
        let back = if self.chance(4) { self.rng.random_range(0..n) } else { self.rng.random_range(0..n.min(5)) };
        self.chain.blocks.keys().rev().nth(back).copied()
    }

    async fn put<C: GenericClient>(&mut self, db: &C, height: i64) {
        let parent = match self.chain.blocks.range(..height).next_back() {
            Some((below, block)) if below + 1 == height => block.hash.clone(),
            _ => "p".to_owned(),
        };
        let hash = self.new_name();
        let count = self.rng.random_range(0..5);
        let movements: Vec<Movement> = (0..count).map(|_| self.movement()).collect();
        self.put_exactly(db, height, &hash, &parent, &movements).await;
    }

    async fn put_exactly<C: GenericClient>(
        &mut self,
        db: &C,
        height: i64,
        hash: &str,
        parent: &str,
        movements: &[Movement],
    ) {
        let list: Vec<serde_json::Value> = movements
            .iter()
            .enumerate()
            .map(|(n, m)| {
                serde_json::json!({"tx_index": n / 2, "event_index": n, "token": m.token, "from_address": m.from,
                    "to_address": m.to, "amount": m.amount.to_string()})
            })
            .collect();
        self.say(format!("put {height} {hash} on {parent} with {}", serde_json::to_string(&list).unwrap()));
        let list = serde_json::Value::Array(list);
        let done: String = db
            .query_one(
                "select put_block($1, $2, $3, $4, token_events => $5)",
                &[&self.name, &height, &hash, &parent, &list],
            )
            .await
            .unwrap()
            .get(0);
        match self.chain.blocks.get(&height) {
            None => assert_eq!(done, "inserted"),
            Some(block) if block.hash == hash => {
                assert_eq!(done, "unchanged");
                return;
            }
            Some(_) => {
                assert_eq!(done, "replaced");
                self.chain.drop_from(height);
            }
        }
        self.blocks += 1;
        let block = Block { hash: hash.to_owned(), parent: parent.to_owned(), event_count: None };
        self.chain.blocks.insert(height, block);
        for (n, movement) in movements.iter().enumerate() {
            self.chain.movements.insert((height, n as i64 / 2, n as i64), movement.clone());
        }
        self.chain.touch(height);
    }

    async fn extend<C: GenericClient>(&mut self, db: &C) {
        for _ in 0..self.rng.random_range(1..5) {
            let from = self.chain.first().unwrap_or(3);
            let next = self.chain.tip().map_or(from, |tip| (tip + 1).max(from));
            self.put(db, next).await;
        }
    }

    async fn insert_movement<C: GenericClient>(&mut self, db: &C, height: i64) {
        let place = (height, 9, self.rng.random_range(100..100_000));
        let m = self.movement();
        self.say(format!("insert event {place:?} {m:?}"));
        db.execute(
            "insert into token_events (chain_id, height, tx_index, event_index, token, from_address, to_address, amount)
             values ($1, $2, $3, $4, $5, $6, $7, $8::text::numeric)",
            &[&self.id, &place.0, &place.1, &place.2, &m.token, &m.from, &m.to, &m.amount.to_string()],
        )
        .await
        .unwrap();
        self.chain.movements.insert(place, m);
        if self.chain.blocks.contains_key(&height) {
            self.chain.touch(height);
        }
    }

    async fn update_block<C: GenericClient>(&mut self, db: &C, height: i64, new: Block) {
        self.say(format!("update block {height} to {new:?}"));
        db.execute(
            "update blocks set hash = $3, parent_hash = $4, event_count = $5 where chain_id = $1 and height = $2",
            &[&self.id, &height, &new.hash, &new.parent, &new.event_count],
        )
        .await
        .unwrap();
        self.chain.blocks.insert(height, new);
        self.chain.touch(height);
    }

    async fn delete_block<C: GenericClient>(&mut self, db: &C, height: i64) {
        self.say(format!("delete block {height}"));
        db.execute("delete from blocks where chain_id = $1 and height = $2", &[&self.id, &height]).await.unwrap();
        self.chain.remove_block(height);
    }

    /// One change of the chain tables, or of what is asked of the processor.
    pub async fn change<C: GenericClient>(&mut self, db: &C) {
        let Some(height) = self.some_height() else { return self.extend(db).await };
        match self.rng.random_range(0..26) {
            0..6 => self.extend(db).await,
            // A fork, then some blocks on it.
            6..9 => {
                self.put(db, height).await;
                self.extend(db).await;
            }
            9 => {
                let block = self.chain.blocks[&height].clone();
                let at: Vec<Movement> =
                    self.chain.movements.range((height, 0, 0)..(height + 1, 0, 0)).map(|(_, m)| m.clone()).collect();
                let plain = (0..at.len() as i64).all(|n| self.chain.movements.contains_key(&(height, n / 2, n)));
                if plain {
                    self.put_exactly(db, height, &block.hash, &block.parent, &at).await;
                }
            }
            10 | 11 => self.insert_movement(db, height).await,
            12 => {
                let at: Vec<_> = self.chain.movements.keys().copied().filter(|p| p.0 == height).collect();
                if let Some(place) = at.first() {
                    let amount = self.amount();
                    self.say(format!("update event {place:?} to {amount}"));
                    db.execute(
                        "update token_events set amount = $5::text::numeric
                         where chain_id = $1 and height = $2 and tx_index = $3 and event_index = $4",
                        &[&self.id, &place.0, &place.1, &place.2, &amount.to_string()],
                    )
                    .await
                    .unwrap();
                    self.chain.movements.get_mut(place).unwrap().amount = amount;
                    self.chain.touch(height);
                }
            }
            13 => {
                let at: Vec<_> = self.chain.movements.keys().copied().filter(|p| p.0 == height).collect();
                if let Some(place) = at.last() {
                    self.say(format!("delete event {place:?}"));
                    db.execute(
                        "delete from token_events where chain_id = $1 and height = $2 and tx_index = $3 and event_index = $4",
                        &[&self.id, &place.0, &place.1, &place.2],
                    )
                    .await
                    .unwrap();
                    self.chain.movements.remove(place);
                    self.chain.touch(height);
                }
            }
            // Another name; now and then with the child along; now and then back at once.
            14 | 15 => {
                let old = self.chain.blocks[&height].clone();
                let new = Block { hash: self.new_name(), ..old.clone() };
                self.update_block(db, height, new.clone()).await;
                let child = self.chain.blocks.get(&(height + 1)).cloned();
                if self.chance(3) {
                    self.update_block(db, height, old).await;
                } else if let Some(child) = child
                    && self.chance(2)
                {
                    self.update_block(db, height + 1, Block { parent: new.hash, ..child }).await;
                }
            }
            // The link is broken, or fixed.
            16 => {
                let old = self.chain.blocks[&height].clone();
                let parent = match self.chain.blocks.get(&(height - 1)) {
                    Some(below) if below.hash != old.parent => below.hash.clone(),
                    _ => "x".to_owned(),
                };
                self.update_block(db, height, Block { parent, ..old }).await;
            }
            17 => {
                let old = self.chain.blocks[&height].clone();
                let stored = self.chain.movements.keys().filter(|p| p.0 == height).count() as i64;
                let event_count = match old.event_count {
                    Some(n) if n == stored => None,
                    Some(_) => Some(stored),
                    None => Some(stored + self.rng.random_range(0..2i64)),
                };
                self.update_block(db, height, Block { event_count, ..old }).await;
            }
            // Deleted; now and then it comes back with other events under the same hash.
            18 | 19 => {
                let old = self.chain.blocks[&height].clone();
                self.delete_block(db, height).await;
                if self.chance(2) {
                    let count = self.rng.random_range(0..3);
                    let movements: Vec<Movement> = (0..count).map(|_| self.movement()).collect();
                    self.put_exactly(db, height, &old.hash, &old.parent, &movements).await;
                }
            }
            20 => {
                self.say(format!("drop from {height}"));
                db.execute("select drop_blocks($1, $2)", &[&self.name, &height]).await.unwrap();
                self.chain.drop_from(height);
            }
            // A lower block, late; it may move the start.
            21 => {
                let below = *self.chain.blocks.keys().next().unwrap() - 1;
                if below >= 0 {
                    self.put(db, below).await;
                }
            }
            // A gap of empty blocks, and what lies after it.
            22 | 23 => {
                let tip = self.chain.tip().unwrap();
                let next = tip + self.rng.random_range(1..4i64);
                if self.chance(2) {
                    self.put(db, next).await;
                }
                let to = next + self.rng.random_range(-1..3i64);
                self.say(format!("complete to {to}"));
                db.execute("update chains set complete_to = $2 where chain_id = $1", &[&self.id, &to]).await.unwrap();
                self.chain.complete_to = Some(to);
            }
            // A source says where its head is.
            24 => {
                let head = self.chain.tip().unwrap() + self.rng.random_range(0..3i64);
                self.say(format!("head {head}"));
                db.execute(
                    "update chains set head_height = $2, final_height = greatest(final_height, $2 - finality_depth)
                     where chain_id = $1 and $2 >= finality_depth",
                    &[&self.id, &head],
                )
                .await
                .unwrap();
            }
            _ => {
                if self.chance(2) {
                    let start = if self.chance(2) { None } else { Some(height) };
                    self.say(format!("start at {start:?}"));
                    db.execute("update chains set start_height = $2 where chain_id = $1", &[&self.id, &start])
                        .await
                        .unwrap();
                    self.chain.start = start;
                } else {
                    let m = self.movement();
                    let address = m.to.or(m.from).unwrap();
                    self.say(format!("opening {address} in {}: {}", m.token, m.amount));
                    db.execute(
                        "insert into opening_balances values ($1, $2, $3, $4::text::numeric)
                         on conflict (chain_id, token, address) do update set amount = excluded.amount",
                        &[&self.id, &m.token, &address, &m.amount.to_string()],
                    )
                    .await
                    .unwrap();
                    self.chain.opening.insert((m.token, address), m.amount);
                }
            }
        }
    }

    async fn steer(&mut self, db: &Client) {
        let height = self.some_height().unwrap_or(0);
        match self.rng.random_range(0..4) {
            0 | 1 => {
                self.say(format!("replay from {height}"));
                db.execute("select replay($1, $2)", &[&self.name, &height]).await.unwrap();
            }
            2 => {
                let at = (!self.chance(3)).then_some(height);
                self.say(format!("pause at {at:?}"));
                db.execute("select pause($1, 'token_balances', $2)", &[&self.name, &at]).await.unwrap();
                self.cap = at;
            }
            _ => self.resume(db).await,
        }
    }

    pub async fn resume(&mut self, db: &Client) {
        self.say("resume".to_owned());
        db.execute("select resume($1, 'token_balances')", &[&self.name]).await.unwrap();
        self.cap = Some(i64::MAX);
    }

    pub async fn step(&mut self, processor: &Connections, db: &mut Client) -> Result<(), Failure> {
        self.steer_tracked(db).await;
        if self.chance(7) {
            self.steer(db).await;
        } else if self.chance(4) {
            let before = (self.chain.clone(), self.blocks);
            let tx = db.transaction().await.unwrap();
            self.say("begin".to_owned());
            for _ in 0..self.rng.random_range(2..4) {
                self.change(&tx).await;
            }
            if self.chance(5) {
                self.say("roll back".to_owned());
                tx.rollback().await.unwrap();
                (self.chain, self.blocks) = before;
            } else {
                self.say("commit".to_owned());
                tx.commit().await.unwrap();
            }
        } else if self.chance(6) {
            self.say("meanwhile a processor runs".to_owned());
            let running = tokio::spawn(process(processor.clone(), self.settings.clone()));
            self.change(db).await;
            running.await.map_err(|e| e.to_string())??;
            self.raced = true;
        } else {
            for _ in 0..self.rng.random_range(1..3) {
                self.change(db).await;
            }
        }
        // Now and then several steps come together.
        if self.chance(4) {
            return Ok(());
        }
        self.settle(processor, db).await
    }

    /// Lets the processor do what is to be done, and compares.
    pub async fn settle(&mut self, processor: &Connections, db: &Client) -> Result<(), Failure> {
        let refused;
        if self.chance(5) {
            self.say("two processors".to_owned());
            let other = tokio::spawn(process(processor.clone(), self.settings.clone()));
            let one = process(processor.clone(), self.settings.clone()).await?;
            refused = other.await.map_err(|e| e.to_string())?? || one;
        } else {
            self.say("process".to_owned());
            refused = process(processor.clone(), self.settings.clone()).await?;
        }
        self.compare(db).await?;
        self.compare_tracked(db, refused).await
    }

    async fn compare(&mut self, db: &Client) -> Result<(), Failure> {
        let seen = read_ledger(db, self.id).await;
        match self.cap {
            Some(cap) => self.ledger = self.chain.ledger(cap),
            // It was stopped wherever it was: whatever it shows now is what it must go on showing.
            None => self.ledger = seen.0.clone(),
        }
        let pruned_to = seen.1;
        if self.settings.token_balances.history == History::Full && pruned_to.is_some() {
            return Err("history was pruned though all of it was asked for".to_owned());
        }
        if let Some(difference) = self.ledger.difference(&seen.0, pruned_to) {
            return Err(difference);
        }
        let sql = "select token, total::text from token_totals where chain_id = $1 and total <> 0";
        let totals = db.query(sql, &[&self.id]).await.unwrap();
        let totals: BTreeMap<String, BigInt> =
            totals.iter().map(|row| (row.get(0), row.get::<_, &str>(1).parse().unwrap())).collect();
        if totals != self.ledger.totals() {
            return Err(format!("totals: {totals:?}, must be {:?}", self.ledger.totals()));
        }
        self.compare_past(db, pruned_to).await
    }

    /// `balances_at` a height whose history is kept, and `final_balances`.
    async fn compare_past(&mut self, db: &Client, pruned_to: Option<i64>) -> Result<(), Failure> {
        let counted = self.chain.counting();
        let (Some(cap), Some((tip, _)), Some(first)) = (self.cap, &self.ledger.block, counted.first()) else {
            return Ok(());
        };
        let height = self.rng.random_range((*first).max(pruned_to.unwrap_or(0)).min(*tip)..=*tip);
        let rows = db
            .query("select token, address, amount::text from balances_at($1, $2)", &[&self.name, &height])
            .await
            .map_err(|e| format!("balances_at {height}: {e:?}"))?;
        self.expect_past(&format!("balances_at {height}"), height.min(cap), &rows)?;
        let sql = "select final_height from chains where chain_id = $1";
        let final_height: Option<i64> = db.query_one(sql, &[&self.id]).await.unwrap().get(0);
        if let Some(height) = final_height.filter(|height| height >= first) {
            let sql = "select token, address, amount::text from final_balances where chain_id = $1";
            let rows = db.query(sql, &[&self.id]).await.unwrap();
            self.expect_past(&format!("final_balances at {height}"), height.min(cap), &rows)?;
        }
        Ok(())
    }

    fn expect_past(&self, what: &str, height: i64, rows: &[tokio_postgres::Row]) -> Result<(), Failure> {
        let seen: BTreeMap<(String, String), BigInt> =
            rows.iter().map(|r| ((r.get(0), r.get(1)), r.get::<_, &str>(2).parse().unwrap())).collect();
        let must: BTreeMap<(String, String), BigInt> =
            self.chain.ledger(height).balances.into_iter().map(|(account, (amount, _))| (account, amount)).collect();
        if seen == must { Ok(()) } else { Err(format!("{what}: {seen:?}, must be {must:?}")) }
    }
}

/// Runs a processor until nothing is left to do. Whether it ended because a projection's function failed.
async fn process(processor: Connections, settings: ProcessSettings) -> Result<bool, Failure> {
    let wake = Wake::start(processor.store(), WakeMode::Poll);
    let end = run_on(&processor, settings, wake, Arc::new(Unwatched), CancellationToken::new());
    match tokio::time::timeout(Duration::from_secs(30), end).await {
        Ok(Ok(())) => Ok(false),
        Ok(Err(error)) if error.to_string().contains(TROUBLE) => Ok(true),
        Ok(Err(error)) => Err(format!("the processor gave up: {error}")),
        Err(_) => Err("the processor does not come to an end".to_owned()),
    }
}

/// The ledger as it stands, and up to where its history was pruned.
async fn read_ledger(db: &Client, chain: i64) -> (Ledger, Option<i64>) {
    let big = |text: &str| text.parse::<BigInt>().unwrap();
    let sql = "select height, hash, through_height, history_from from checkpoints
               where chain_id = $1 and projection = 'token_balances'";
    let (block, through, pruned_to) = match db.query_opt(sql, &[&chain]).await.unwrap() {
        Some(row) => {
            let block = row.get::<_, Option<i64>>(0).map(|height| (height, row.get(1)));
            (block, row.get(2), row.get(3))
        }
        None => (None, None, None),
    };
    let sql = "select token, address, amount::text, height from balances where chain_id = $1";
    let balances: BTreeMap<_, _> = db
        .query(sql, &[&chain])
        .await
        .unwrap()
        .iter()
        .map(|row| ((row.get(0), row.get(1)), (big(row.get(2)), row.get(3))))
        .collect();
    let sql = "select token, address, height, delta::text, balance_after::text, prev_height
               from balance_changes where chain_id = $1";
    let changes = db
        .query(sql, &[&chain])
        .await
        .unwrap()
        .iter()
        .map(|row| ((row.get(0), row.get(1), row.get(2)), (big(row.get(3)), big(row.get(4)), row.get(5))))
        .collect();
    (Ledger { block, through, balances, changes }, pruned_to)
}
