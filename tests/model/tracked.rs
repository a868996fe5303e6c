//! Projections of SQL functions in the scripts: what is asked of them, and what must have become of their tables.

use std::collections::BTreeSet;

use rand::RngExt;
use rand::rngs::StdRng;
use tokio_postgres::Client;

use crate::fold::{self, Leaf, Manner, Spot, Tables};
use crate::script::{Failure, Script};
use crate::support::model::{Chain, Ledger, first_difference};

const TABLES: &str = include_str!("tables.sql");
const APPLY: &str = include_str!("apply.sql");
/// What the function of a follower hashes along.
const BALANCES_AT_THE_BLOCK: &str =
    "|| (select '/' || count(*) || '/' || coalesce(sum(b.amount), 0) from balances b where b.chain_id = $1)";
const CHANGES_OF_THE_BLOCK: &str = "union all
            select 9223372036854775807, 0, concat_ws('/', c.token, c.address),
                concat_ws('/', c.token, c.address, c.delta, c.balance_after)
            from balance_changes c where c.chain_id = $1 and c.height = $2";
/// What the functions say when they are told to fail.
pub const TROUBLE: &str = "trouble with block";

/// Where a projection stands, with its tables.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    pub block: Option<(i64, String)>,
    pub through: Option<i64>,
    pub tables: Tables,
}

/// Counts, so that a pass over nothing shows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Compared {
    /// Whole tables held against the model.
    pub standings: u64,
    pub rows: u64,
    /// Of those: while a block failed.
    pub stuck: u64,
    /// Of those: what stands may be one of several things, or is taken as it is.
    pub lenient: u64,
}

impl std::ops::AddAssign for Compared {
    fn add_assign(&mut self, more: Compared) {
        self.standings += more.standings;
        self.rows += more.rows;
        self.stuck += more.stuck;
        self.lenient += more.lenient;
    }
}

impl std::fmt::Display for Compared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Compared { standings, rows, stuck, lenient } = self;
        write!(
            f,
            "compared {standings} times, {rows} rows, {stuck} times with a block that fails, {lenient} times leniently"
        )
    }
}

/// A projection of the script.
#[derive(Clone, Debug)]
pub struct Tracked {
    name: &'static str,
    manner: Manner,
    /// Whether it is one chain's or every chain's.
    one_chain: bool,
    is_there: bool,
    /// Highest block to be applied; none: stays where it is.
    cap: Option<i64>,
    /// Blocks its function will not take.
    trouble: BTreeSet<String>,
    /// What the last comparison found.
    last: Standing,
}

/// What must stand.
struct Must {
    standing: Standing,
    /// The next block is one that fails.
    stuck: bool,
}

impl Tracked {
    /// None, one or two of them: each costs as much time as a ledger, so half of the scripts have none.
    pub async fn choose(db: &Client, rng: &mut StdRng) -> Vec<Tracked> {
        let names: &[&'static str] = match rng.random_range(0..20) {
            0..5 => &["plain"],
            5..9 => &["follow"],
            9 => &["plain", "follow"],
            _ => &[],
        };
        for name in ["plain", "follow"] {
            db.batch_execute(&TABLES.replace("NAME", name)).await.unwrap();
            drop_projection(db, name).await;
            db.batch_execute("delete from public.trouble").await.unwrap();
        }
        let mut all = Vec::new();
        for name in names {
            let follows = *name == "follow";
            let start = (!follows && rng.random_bool(0.2)).then(|| rng.random_range(0..8));
            let tracked = Tracked {
                name,
                manner: Manner { salt: 0, follows, start },
                one_chain: rng.random_bool(0.5),
                is_there: false,
                cap: Some(i64::MAX),
                trouble: BTreeSet::new(),
                last: Standing::default(),
            };
            all.push(tracked);
        }
        all
    }

    async fn replace_function(&self, db: &Client) {
        let (balances, changes) =
            if self.manner.follows { (BALANCES_AT_THE_BLOCK, CHANGES_OF_THE_BLOCK) } else { ("", "") };
        let sql = APPLY
            .replace("BALANCES_AT_THE_BLOCK", balances)
            .replace("CHANGES_OF_THE_BLOCK", changes)
            .replace("SALT", &self.manner.salt.to_string())
            .replace("NAME", self.name);
        db.batch_execute(&sql).await.unwrap();
    }

    async fn create(&mut self, db: &Client, chain: &str) {
        self.replace_function(db).await;
        let name = self.name;
        let after = self.manner.follows.then_some("token_balances");
        let chain = self.one_chain.then_some(chain);
        db.execute(
            "select create_projection($1, $2::text::regprocedure, $3::text::regclass[], $4, $5, $6)",
            &[
                &name,
                &format!("public.{name}_apply(bigint,bigint)"),
                &format!("{{public.{name}_spot,public.{name}_leaf}}"),
                &after,
                &chain,
                &self.manner.start,
            ],
        )
        .await
        .unwrap();
        (self.is_there, self.cap, self.last) = (true, Some(i64::MAX), Standing::default());
    }

    /// What must stand once nothing is left to do. `above`: where the ledger stands, for one that follows it.
    fn must(&self, chain: &Chain, ledger: &Ledger, cap: i64) -> Must {
        let cap = match (&ledger.block, self.manner.follows) {
            (Some((height, _)), true) => cap.min(*height),
            (None, true) => -1,
            _ => cap,
        };
        let chain = fold::seen_by(chain, self.manner);
        let mut heights: Vec<i64> = chain.counting().into_iter().filter(|height| *height <= cap).collect();
        let fails = heights.iter().position(|height| self.trouble.contains(&chain.blocks[height].hash));
        if let Some(at) = fails {
            heights.truncate(at);
        }
        let tip = heights.last().copied();
        let standing = Standing {
            block: tip.map(|tip| (tip, chain.blocks[&tip].hash.clone())),
            // Empty heights are passed by each for itself.
            through: tip.map(|tip| chain.through(tip, self.cap.unwrap_or(i64::MAX))),
            tables: fold::tables(&chain, &heights, self.manner),
        };
        Must { standing, stuck: fails.is_some() }
    }
}

/// Ends it if it is there, and empties its tables.
async fn drop_projection(db: &Client, name: &str) {
    let sql = "select drop_projection(name) from projections where name = $1";
    db.execute(sql, &[&name]).await.unwrap();
    db.batch_execute(&format!("truncate public.{name}_spot, public.{name}_leaf")).await.unwrap();
}

impl Script {
    /// Makes those that are to be there from the start.
    pub async fn begin_tracked(&mut self, db: &Client) {
        for n in 0..self.tracked.len() {
            if self.aside.random_bool(0.6) {
                self.create_tracked(db, n).await;
            }
        }
    }

    async fn create_tracked(&mut self, db: &Client, n: usize) {
        let Tracked { name, manner, one_chain, .. } = self.tracked[n];
        self.say(format!("create {name}, {manner:?}, of this chain alone: {one_chain}"));
        let chain = self.name.clone();
        self.tracked[n].create(db, &chain).await;
    }

    /// Now and then something is asked of a projection, or done to it.
    pub async fn steer_tracked(&mut self, db: &Client) {
        if self.tracked.is_empty() || !self.aside.random_ratio(2, 5) {
            return;
        }
        let n = self.aside.random_range(0..self.tracked.len());
        if !self.tracked[n].is_there {
            return self.create_tracked(db, n).await;
        }
        let name = self.tracked[n].name;
        match self.aside.random_range(0..14) {
            0 | 1 => {
                let from = self.height_aside();
                self.say(format!("replay {name} from {from}"));
                db.execute("select replay($1, $2, $3)", &[&self.name, &from, &name]).await.unwrap();
            }
            2 | 3 => {
                let at = self.aside.random_bool(0.7).then(|| self.height_aside());
                self.say(format!("pause {name} at {at:?}"));
                db.execute("select pause($1, $3, $2)", &[&self.name, &at, &name]).await.unwrap();
                self.tracked[n].cap = at;
            }
            4..7 => self.resume_tracked(db, n).await,
            7 | 8 => {
                self.tracked[n].manner.salt += 1;
                self.say(format!("the function of {name} is another one"));
                self.tracked[n].replace_function(db).await;
            }
            // Of blocks that are yet to come: names are given in order.
            9..11 => {
                let hash = format!("h{}", self.names + self.aside.random_range(1..4));
                self.say(format!("{name} fails at {hash}"));
                let sql = "insert into public.trouble values ($1, $2) on conflict do nothing";
                db.execute(sql, &[&name, &hash]).await.unwrap();
                self.tracked[n].trouble.insert(hash);
            }
            11 | 12 => self.end_trouble(db, n).await,
            _ => {
                self.say(format!("drop {name}"));
                drop_projection(db, name).await;
                self.tracked[n].is_there = false;
            }
        }
    }

    /// As at the end of a script: everything is there and goes on.
    pub async fn resume_all_tracked(&mut self, db: &Client) {
        for n in 0..self.tracked.len() {
            if self.tracked[n].is_there {
                self.resume_tracked(db, n).await;
            } else {
                self.create_tracked(db, n).await;
            }
            self.end_trouble(db, n).await;
        }
    }

    async fn resume_tracked(&mut self, db: &Client, n: usize) {
        let name = self.tracked[n].name;
        self.say(format!("resume {name}"));
        db.execute("select resume($1, $2)", &[&self.name, &name]).await.unwrap();
        self.tracked[n].cap = Some(i64::MAX);
    }

    async fn end_trouble(&mut self, db: &Client, n: usize) {
        let name = self.tracked[n].name;
        self.say(format!("{name} fails no more"));
        db.execute("delete from public.trouble where projection = $1", &[&name]).await.unwrap();
        self.tracked[n].trouble.clear();
    }

    fn height_aside(&mut self) -> i64 {
        let heights: Vec<i64> = self.chain.blocks.keys().rev().take(8).copied().collect();
        if heights.is_empty() { 0 } else { heights[self.aside.random_range(0..heights.len())] }
    }

    /// Holds the tables against the model. `refused`: whether a processor ended because a function failed.
    pub async fn compare_tracked(&mut self, db: &Client, refused: bool) -> Result<(), Failure> {
        let raced = std::mem::take(&mut self.raced);
        let (mut is_stuck, mut may_be_stuck) = (false, false);
        for n in 0..self.tracked.len() {
            let tracked = &self.tracked[n];
            let name = tracked.name;
            if !tracked.is_there {
                continue;
            }
            let (seen, rebuilds) = read(db, self.id, name).await;
            let frozen = tracked.cap.is_none() || tracked.manner.follows && self.cap.is_none();
            let must = tracked.must(&self.chain, &self.ledger, tracked.cap.unwrap_or(i64::MAX));
            let stays = tracked.last.clone();
            let mut lenient = false;
            let allowed = if tracked.cap.is_none() {
                // Wherever a race left it; otherwise where it was.
                lenient = raced;
                vec![if raced { seen.clone() } else { stays }]
            } else if frozen {
                // The ledger stays where it is, and what it stands on may be no more.
                lenient = true;
                vec![must.standing, if raced { seen.clone() } else { stays }]
            } else if must.stuck {
                let any_through = Standing { through: seen.through, ..must.standing };
                // What is built again keeps its old state until all of it is there.
                lenient = rebuilds && any_through != seen;
                let old = if raced { seen.clone() } else { stays };
                if rebuilds { vec![any_through, old] } else { vec![any_through] }
            } else {
                vec![must.standing]
            };
            // What failed last is still said while nothing is tried.
            may_be_stuck |= must.stuck || frozen;
            is_stuck |= must.stuck && !frozen;
            if !allowed.contains(&seen) {
                return Err(format!("{name} (stuck: {}): {}", must.stuck, difference(&allowed[0], &seen)));
            }
            self.compared.standings += 1;
            self.compared.rows += seen.tables.rows() as u64;
            self.compared.stuck += u64::from(must.stuck && !frozen);
            self.compared.lenient += u64::from(lenient);
            self.tracked[n].last = seen;
        }
        if is_stuck && !refused {
            return Err("no processor says that a block fails".to_owned());
        }
        if refused && !may_be_stuck {
            return Err("a processor says that a block fails that is not to be applied".to_owned());
        }
        Ok(())
    }
}

fn difference(must: &Standing, seen: &Standing) -> String {
    if (&must.block, must.through) != (&seen.block, seen.through) {
        return format!(
            "stands at {:?} through {:?}, must be {:?} through {:?}",
            seen.block, seen.through, must.block, must.through
        );
    }
    let spots = first_difference("row", &must.tables.spots, &seen.tables.spots, |_| false);
    let leaves = || first_difference("child row", &must.tables.leaves, &seen.tables.leaves, |_| false);
    spots.or_else(leaves).unwrap_or_default()
}

/// Where it stands, and whether its next transaction builds all of it again.
async fn read(db: &Client, chain: i64, name: &str) -> (Standing, bool) {
    let sql = "select k.height, k.hash, k.through_height,
            k.redo_from is not null or k.pause_at is not null or k.apply_digest is distinct from apply_digest(p.apply)
            or k.start_height is distinct from greatest(p.start_height, coalesce(c.start_height,
                (select min(b.height) from blocks b where b.chain_id = c.chain_id)))
        from checkpoints k join projections p on p.name = k.projection join chains c on c.chain_id = k.chain_id
        where k.chain_id = $1 and k.projection = $2";
    let mut standing = Standing::default();
    let mut rebuilds = false;
    if let Some(row) = db.query_opt(sql, &[&chain, &name]).await.unwrap() {
        standing.block = row.get::<_, Option<i64>>(0).map(|height| (height, row.get(1)));
        standing.through = row.get(2);
        rebuilds = row.get(3);
    }
    let sql = format!("select a, b, v, note, seat, tags, extra from public.{name}_spot where chain_id = $1");
    for r in db.query(&sql, &[&chain]).await.unwrap() {
        let spot = Spot { v: r.get(2), note: r.get(3), seat: r.get(4), tags: r.get(5), extra: r.get(6) };
        standing.tables.spots.insert((r.get(0), r.get(1)), spot);
    }
    let sql = format!("select k, a, b, w, mark from public.{name}_leaf where chain_id = $1");
    for r in db.query(&sql, &[&chain]).await.unwrap() {
        let spot = r.get::<_, Option<i64>>(1).map(|a| (a, r.get(2)));
        standing.tables.leaves.insert(r.get(0), Leaf { spot, w: r.get(3), mark: r.get(4) });
    }
    (standing, rebuilds)
}
