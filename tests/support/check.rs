//! A chain that a test writes as a person in psql would, and an oracle that shares nothing with the processor: one
//! statement over the chain tables says what every derived row must be.

use std::sync::Arc;
use std::time::Duration;

use ebbtide::process::{ProcessError, ProcessSettings, Unwatched, run};
use ebbtide::store::{Store, StoreSettings, Wake, WakeMode};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::Pg;

/// A database with one chain named `main`.
pub struct World {
    pub pg: Option<Pg>,
    pub url: String,
    pub db: Client,
    pub settings: ProcessSettings,
    pub store: StoreSettings,
}

/// A processor inside the test.
pub struct Running {
    stop: CancellationToken,
    task: JoinHandle<Result<(), ProcessError>>,
}

impl Running {
    /// Asks it to stop and waits until it has.
    pub async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(20), self.task).await.expect("it stops").unwrap().unwrap();
    }
}

/// A movement: token, sender, receiver (`-`: none), amount, with blanks between.
pub fn movement(text: &str, index: usize) -> Value {
    let words: Vec<&str> = text.split_whitespace().collect();
    let [token, from, to, amount] = words[..] else { panic!("not a movement: {text}") };
    let side = |name: &str| if name == "-" { Value::Null } else { json!(name) };
    json!({"tx_index": index, "event_index": index * 3, "token": token, "from_address": side(from),
           "to_address": side(to), "amount": amount})
}

impl World {
    /// A database of its own in the shared server.
    pub async fn new(finality_depth: i64) -> World {
        let pg = Pg::new().await;
        let url = pg.url.clone();
        World::at(Some(pg), url, finality_depth).await
    }

    /// In a database that is migrated already.
    pub async fn at(pg: Option<Pg>, url: String, finality_depth: i64) -> World {
        let db = super::pg::connect(&url).await;
        // Some tests damage what the processor wrote.
        db.batch_execute("set search_path = ebbtide, public; set ebbtide.write_tracked_tables = on").await.unwrap();
        let sql = "insert into chains (name, kind, finality_depth) values ('main', 'other', $1)";
        db.execute(sql, &[&finality_depth]).await.unwrap();
        let settings = ProcessSettings { once: true, ..ProcessSettings::default() };
        World { pg, url, db, settings, store: StoreSettings::default() }
    }

    /// Another connection.
    pub async fn client(&self) -> Client {
        let client = super::pg::connect(&self.url).await;
        client.batch_execute("set search_path = ebbtide, public").await.unwrap();
        client
    }

    pub async fn sql(&self, sql: &str) {
        self.db.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    /// The one value of a query, as text; none: null or no row.
    pub async fn one(&self, sql: &str) -> Option<String> {
        let rows =
            self.db.query(&format!("select ({sql})::text"), &[]).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
        rows.first().and_then(|row| row.get(0))
    }

    pub async fn put(&self, height: i64, hash: &str, parent: &str, movements: &[&str]) -> String {
        put(&self.db, height, hash, parent, movements).await
    }

    /// Puts blocks `from..=to` named `{tag}{height}`, the first of them on `parent`, with movements that differ by
    /// branch and height.
    pub async fn branch(&self, tag: &str, from: i64, to: i64, parent: &str) {
        branch(&self.db, tag, from, to, parent).await;
    }

    pub async fn balance(&self, token: &str, address: &str) -> Option<String> {
        self.one(&format!("select amount from balances where token = '{token}' and address = '{address}'")).await
    }

    fn open(&self) -> Store {
        Store::open(&self.url, self.store.clone()).unwrap()
    }

    /// Processes until nothing is left to do; says how that ended.
    pub async fn try_process(&self) -> Result<(), ProcessError> {
        let store = self.open();
        let wake = Wake::start(&store, WakeMode::Poll);
        run(store, self.settings.clone(), wake, Arc::new(Unwatched), CancellationToken::new()).await
    }

    /// Processes until nothing is left to do, then checks everything.
    pub async fn settle(&self) {
        self.try_process().await.unwrap();
        self.check().await;
    }

    /// A processor that runs until it is stopped.
    pub fn start(&self, mode: WakeMode, poll_interval: Duration) -> Running {
        let store = self.open();
        let wake = Wake::start(&store, mode);
        let settings = ProcessSettings { once: false, poll_interval, ..self.settings.clone() };
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(store, settings, wake, Arc::new(Unwatched), stop.clone()));
        Running { stop, task }
    }

    /// Waits until a connection of the processor waits for a lock that the test holds.
    pub async fn processor_waits(&self) {
        self.someone_waits("application_name like 'ebbtide%'").await;
    }

    /// Waits until a backend of this database waits for a lock.
    pub async fn someone_waits(&self, who: &str) {
        super::wait_until("a statement waits for a lock", async || {
            let sql = format!(
                "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()
                 and wait_event_type = 'Lock' and {who}"
            );
            (self.one(&sql).await.unwrap() != "0").then_some(())
        })
        .await;
    }

    /// Fails, with every difference, where a derived row is not what the chain tables say.
    pub async fn check(&self) {
        let found = differences(&self.db, "main").await;
        assert!(found.is_empty(), "differences:\n{}", found.join("\n"));
    }

    /// [`check`](World::check), once everything is as it must be; for processors that run beside the test.
    pub async fn check_soon(&self) {
        settled(&self.db, "main", super::PATIENCE).await;
    }
}

/// Waits until there are no differences; fails with those that stay.
pub async fn settled(db: &Client, chain: &str, deadline: Duration) {
    let begun = std::time::Instant::now();
    loop {
        let found = differences(db, chain).await;
        if found.is_empty() {
            return;
        }
        assert!(begun.elapsed() < deadline, "after {deadline:?} there still are differences:\n{}", found.join("\n"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub async fn put(db: &Client, height: i64, hash: &str, parent: &str, movements: &[&str]) -> String {
    let list: Vec<Value> = movements.iter().enumerate().map(|(i, text)| movement(text, i)).collect();
    let sql = "select put_block('main', $1, $2, $3, now(), '[]', $4)";
    db.query_one(sql, &[&height, &hash, &parent, &Value::from(list)]).await.unwrap_or_else(|e| panic!("{e:?}")).get(0)
}

/// What the block `{tag}{height}` holds.
pub fn contents(tag: &str, height: i64) -> Vec<String> {
    let who = |n: i64| format!("user{}", (height * 7 + n * 3 + tag.len() as i64) % 9);
    let mut all =
        vec![format!("gold - {} {}", who(0), 1000 + height), format!("gold {} {} {}", who(0), who(1), height)];
    if height % 3 == 0 {
        all.push(format!("silver - only_{tag} {height}"));
    }
    if height % 4 == 1 {
        all.push(format!("gold {} - 1", who(0)));
    }
    all
}

pub async fn branch(db: &Client, tag: &str, from: i64, to: i64, parent: &str) {
    let mut parent = parent.to_owned();
    for height in from..=to {
        let hash = format!("{tag}{height}");
        let movements = contents(tag, height);
        let movements: Vec<&str> = movements.iter().map(String::as_str).collect();
        put(db, height, &hash, &parent, &movements).await;
        parent = hash;
    }
}

/// Height and hash of the last block that counts: the linked run from the start.
pub async fn tip_that_counts(db: &Client, chain: &str) -> (Option<(i64, String)>, Option<i64>) {
    let chain = db
        .query_one("select chain_id, start_height, complete_to from chains where name = $1", &[&chain])
        .await
        .unwrap();
    let (chain_id, start, complete_to): (i64, Option<i64>, Option<i64>) = (chain.get(0), chain.get(1), chain.get(2));
    let complete_to = complete_to.unwrap_or(-1);
    let sql = "select height, hash, parent_hash, event_count is null or event_count =
                   (select count(*) from token_events t where t.chain_id = b.chain_id and t.height = b.height)
                   + (select count(*) from events e where e.chain_id = b.chain_id and e.height = b.height)
               from blocks b where chain_id = $1 and height >= coalesce($2::bigint, 0) order by height";
    let mut tip: Option<(i64, String)> = None;
    for row in db.query(sql, &[&chain_id, &start]).await.unwrap() {
        let (height, hash, parent, whole): (i64, String, String, bool) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        let links = match &tip {
            Some((h, before)) if h + 1 == height => *before == parent,
            None if start.is_none_or(|s| s == height) => true,
            _ => height - 1 <= complete_to,
        };
        if !links || !whole {
            break;
        }
        tip = Some((height, hash));
    }
    let through = tip.as_ref().map(|(h, _)| (*h).max(complete_to));
    (tip, through)
}

/// Every way in which the derived tables differ from what the chain tables say, once all is applied.
pub async fn differences(db: &Client, chain: &str) -> Vec<String> {
    // One snapshot: a processor may be at work.
    db.batch_execute("begin isolation level repeatable read").await.unwrap();
    let mut found = Vec::new();
    let (tip, _) = tip_that_counts(db, chain).await;
    let stands = db
        .query_opt(
            "select k.height, k.hash, k.redo_from, k.halted_reason from checkpoints k join chains c using (chain_id)
             where c.name = $1 and k.projection = 'token_balances'",
            &[&chain],
        )
        .await
        .unwrap();
    let at: Option<(i64, String)> = stands.as_ref().and_then(|row| {
        if let Some(reason) = row.get::<_, Option<String>>(3) {
            found.push(format!("halted: {reason}"));
        }
        if let Some(from) = row.get::<_, Option<i64>>(2) {
            found.push(format!("to be redone from {from}"));
        }
        row.get::<_, Option<i64>>(0).map(|height| (height, row.get(1)))
    });
    if at != tip {
        found.push(format!("applied is {at:?}, the chain's tip is {tip:?}"));
    }
    found.extend(state_differences(db, chain, at.map(|(height, _)| height)).await);
    db.batch_execute("commit").await.unwrap();
    found
}

/// Differences of the state at `height` (none: nothing is applied) from what the chain tables say of it.
async fn state_differences(db: &Client, chain: &str, height: Option<i64>) -> Vec<String> {
    let mut found = Vec::new();
    for row in db.query(COMPARE, &[&chain, &height.unwrap_or(i64::MIN)]).await.unwrap() {
        found.push(row.get::<_, String>(0));
    }
    found.truncate(40);
    found
}

/// `$1` chain's name, `$2` the height applied.
const COMPARE: &str = "
with c as (select * from chains where name = $1),
k as (select k.* from checkpoints k join c using (chain_id) where k.projection = 'token_balances'),
good as (
    select e.* from token_events e
    join c using (chain_id)
    join blocks b on b.chain_id = e.chain_id and b.height = e.height
    where e.height <= $2 and e.height >= (select start_height from k) and not exists (
        select from rejected_events r where r.chain_id = e.chain_id and r.height = e.height
        and r.tx_index = e.tx_index and r.event_index = e.event_index and r.projection = 'token_balances')
),
moves as (
    select token, from_address as address, height, -amount as delta from good where from_address is not null
    union all
    select token, to_address, height, amount from good where to_address is not null
    union all
    select o.token, o.address, k.start_height - 1, o.amount from opening_balances o join c using (chain_id), k
    where k.height is not null
),
per_block as (select token, address, height, sum(delta) as delta from moves group by token, address, height),
expected as materialized (
    select token, address, height, delta, sum(delta) over w as after, lag(height) over w as prev
    from per_block window w as (partition by token, address order by height)
),
stored as materialized (
    select b.token, b.address, b.height, b.delta, b.balance_after as after, b.prev_height as prev
    from balance_changes b join c using (chain_id)
),
last_expected as materialized (
    select distinct on (token, address) token, address, after as amount, height
    from expected order by token, address, height desc
),
balances_stored as materialized (select token, address, amount, b.height from balances b join c using (chain_id)),
totals_stored as (select token, total from token_totals join c using (chain_id) where total <> 0)
select 'missing or wrong in balances: ' || x from (
    select format('%s %s %s at %s', token, address, amount, height) as x
    from (select * from last_expected except select * from balances_stored) d) t
union all select 'must not be in balances: ' || x from (
    select format('%s %s %s at %s', token, address, amount, height) as x
    from (select * from balances_stored except select * from last_expected) d) t
union all select format('the total of %s is %s, the balances add up to %s', token, t.total, e.total)
    from totals_stored t
    full join (select token, sum(amount) as total from last_expected group by token having sum(amount) <> 0) e using (token)
    where t.total is distinct from e.total
union all select 'missing or wrong in balance_changes: ' || x from (
    select format('%s %s at %s by %s to %s, before %s', token, address, height, delta, after, prev) as x
    from (select * from expected except select * from stored) d
    -- Where history is pruned, what is left of it is compared below.
    where (select history_from from k) is null) t
union all select 'must not be in balance_changes: ' || x from (
    select format('%s %s at %s by %s to %s, before %s', token, address, height, delta, after, prev) as x
    from (select * from stored except select * from expected) d) t
union all select format('missing in balance_changes above the horizon: %s %s at %s', token, address, height)
    from (select * from expected except select * from stored) d
    where (select history_from from k) is not null and height > (select history_from from k)
union all select format('block %s %s is not noted as applied with its revision', b.height, b.hash)
    from blocks b join c using (chain_id)
    where b.height <= $2 and b.height >= (select coalesce(journal_from, start_height) from k)
    and not exists (select from applied_blocks a where a.chain_id = b.chain_id and a.projection = 'token_balances'
        and a.height = b.height and a.hash = b.hash and a.revision = b.revision)
union all select format('the journal is whole from %s on, but only what is up to %s is final', journal_from, final_height)
    from k join c using (chain_id) where journal_from > coalesce(final_height, -1) + 1
union all select format('%s %s is noted as applied and is not in the chain', a.height, a.hash)
    from applied_blocks a join c using (chain_id)
    where not exists (select from blocks b where a.chain_id = b.chain_id and a.height = b.height
        and a.hash = b.hash and a.revision = b.revision) or a.height > $2";

/// What every account holds, by token and address.
pub type Holdings = std::collections::BTreeMap<(String, String), i128>;

/// The state after every block ever written, by hash: what a reader must see who is told that hash.
#[derive(Default, Clone)]
pub struct Model {
    states: std::collections::HashMap<String, Holdings>,
}

impl Model {
    /// The blocks that [`branch`] writes.
    pub fn branch(&mut self, tag: &str, from: i64, to: i64, parent: &str) {
        let mut state = self.states.get(parent).cloned().unwrap_or_default();
        for height in from..=to {
            for text in contents(tag, height) {
                let words: Vec<&str> = text.split_whitespace().collect();
                let amount: i128 = words[3].parse().unwrap();
                for (address, delta) in [(words[1], -amount), (words[2], amount)] {
                    if address != "-" {
                        *state.entry((words[0].to_owned(), address.to_owned())).or_default() += delta;
                    }
                }
            }
            self.states.insert(format!("{tag}{height}"), state.clone());
        }
    }

    /// The state after the block of this hash.
    pub fn at(&self, hash: &str) -> &Holdings {
        self.states.get(hash).unwrap_or_else(|| panic!("nobody ever wrote a block {hash}"))
    }
}

/// Height, hash and balances in one snapshot; none: nothing is applied.
pub async fn snapshot(db: &Client) -> Option<(i64, String, Holdings)> {
    db.batch_execute("begin isolation level repeatable read").await.unwrap();
    let at = db.query("select height, hash from checkpoints where height is not null", &[]).await.unwrap();
    let rows = db.query("select token, address, amount::text from balances", &[]).await.unwrap();
    db.batch_execute("commit").await.unwrap();
    let row = at.first()?;
    let held = rows.iter().map(|r| ((r.get(0), r.get(1)), r.get::<_, String>(2).parse().unwrap())).collect();
    Some((row.get(0), row.get(1), held))
}
