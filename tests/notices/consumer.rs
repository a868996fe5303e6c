//! A consumer that believes what it is told: it keeps blocks, transfers and balances of its own, right through reorganisations.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use boon::{Compiler, SchemaIndex, Schemas};
use ebbtide::api::SCHEMAS;
use serde_json::Value;

use super::support::check::World;

/// What one consumer holds after what it heard.
#[derive(Default)]
pub struct Consumer {
    pub sink: String,
    /// The last position it acknowledged.
    pub position: i64,
    /// Heights of the blocks that it was told of and that were not taken back, with their hashes, in the order they came.
    pub blocks: Vec<(i64, String)>,
    /// What is true now, by the id of the notice that said it.
    pub transfers: HashMap<String, Value>,
    pub balances: BTreeMap<(String, String), String>,
    /// Every id it heard, with the body.
    heard: HashMap<String, String>,
    /// How many notices of each type.
    pub counts: BTreeMap<String, usize>,
}

impl Consumer {
    /// A new sink, and its consumer.
    pub async fn of(world: &World, sink: &str, settings: &str) -> Consumer {
        world.sql(&format!("select create_sink('{sink}'{settings})")).await;
        Consumer { sink: sink.to_owned(), ..Consumer::default() }
    }

    /// Takes what there is, at most so many at a time, until there is nothing more. Returns how many.
    pub async fn catch_up(&mut self, world: &World, most: i64) -> usize {
        let mut taken = 0;
        loop {
            let notices = self.next(world, most).await;
            if notices.is_empty() {
                return taken;
            }
            taken += notices.len();
            for notice in &notices {
                self.hear(notice);
            }
            self.ack(world).await;
        }
    }

    pub async fn ack(&self, world: &World) {
        let sql = format!("select ack_notices('{}', {})", self.sink, self.position);
        world.sql(&sql).await;
    }

    /// The next ones, as any driver gets them.
    pub async fn next(&self, world: &World, most: i64) -> Vec<(i64, String)> {
        let sql = "select position, id, type, key, notice::text from next_notices($1, $2)";
        let rows = world.db.query(sql, &[&self.sink, &(most as i32)]).await.unwrap_or_else(|e| panic!("{e:?}"));
        rows.iter()
            .map(|row| {
                let body: String = row.get(4);
                let notice: Value = serde_json::from_str(&body).unwrap();
                for (column, field) in [(1, "id"), (2, "type"), (3, "partitionkey")] {
                    assert_eq!(row.get::<_, String>(column), notice[field].as_str().unwrap());
                }
                (row.get(0), body)
            })
            .collect()
    }

    /// Believes one notice.
    pub fn hear(&mut self, (position, body): &(i64, String)) {
        assert_eq!(*position, self.position + 1, "{}: positions have no holes", self.sink);
        self.position = *position;
        let notice: Value = serde_json::from_str(body).unwrap();
        let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("no text in {notice}")).to_owned();
        let (id, kind, data) = (text(&notice["id"]), text(&notice["type"]), &notice["data"]);
        assert_eq!(notice["specversion"], "1.0");
        check_schema(&notice);
        assert_eq!(text(&notice["sequence"]), format!("{position:020}"));
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-:".contains(c);
        assert!(id.len() <= 128 && id.chars().all(is_plain), "{id}");
        assert!(self.heard.insert(id.clone(), body.clone()).is_none(), "{}: {id} was told twice", self.sink);
        *self.counts.entry(kind.clone()).or_default() += 1;
        let block = || (data["height"].as_i64().unwrap(), text(&data["hash"]));
        // What it takes back was said, in the same words, and has not been taken back.
        let taken_back = |consumer: &Consumer| {
            let retracts = text(&notice["retracts"]);
            let said: Value = serde_json::from_str(&consumer.heard[&retracts]).unwrap();
            assert_eq!(said["data"], *data, "{retracts}");
            assert_eq!(said["partitionkey"], notice["partitionkey"]);
            retracts
        };
        match kind.as_str() {
            "ebbtide.block.applied" => {
                if let Some((height, _)) = self.blocks.last() {
                    assert!(*height < block().0, "{}: block {:?} after {height}", self.sink, block());
                }
                self.blocks.push(block());
            }
            "ebbtide.block.retracted" => {
                taken_back(self);
                assert_eq!(self.blocks.pop(), Some(block()), "{}: the newest block is taken back first", self.sink);
            }
            "ebbtide.transfer.applied" => {
                self.transfers.insert(id, data.clone());
            }
            "ebbtide.transfer.retracted" => {
                let retracts = taken_back(self);
                assert!(self.transfers.remove(&retracts).is_some(), "{}: {retracts} does not stand", self.sink);
            }
            "ebbtide.balance.changed" => {
                let account = (text(&data["token"]), text(&data["address"]));
                match &data["amount"] {
                    Value::Null => self.balances.remove(&account),
                    amount => self.balances.insert(account, text(amount)),
                };
            }
            // What is final may have changed: of balances it is told what differs, blocks it would read again.
            "ebbtide.projection.rebuilt" => {}
            other => panic!("{other} is no type that there is"),
        }
    }

    /// It holds what Postgres holds: blocks up to `to` (and from `from`), their transfers, and every balance.
    pub async fn check(&self, world: &World, from: i64, to: i64) {
        let rows = world
            .db
            .query("select height, hash from blocks where height between $1 and $2 order by height", &[&from, &to])
            .await
            .unwrap();
        let blocks: Vec<(i64, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        assert_eq!(self.blocks, blocks, "{}: blocks", self.sink);
        let sql = "select jsonb_build_object('height', e.height, 'hash', b.hash, 'tx_index', e.tx_index, 'event_index', e.event_index,
                'token', e.token, 'from_address', e.from_address, 'to_address', e.to_address, 'amount', e.amount::text, 'kind', e.kind)
            from token_events e join blocks b using (chain_id, height)
            where height between $1 and $2";
        let rows = world.db.query(sql, &[&from, &to]).await.unwrap();
        let mut transfers: Vec<String> = rows.iter().map(|row| row.get::<_, Value>(0).to_string()).collect();
        let mut held: Vec<String> = self.transfers.values().map(Value::to_string).collect();
        transfers.sort();
        held.sort();
        assert_eq!(held, transfers, "{}: transfers", self.sink);
    }

    /// It holds every balance that Postgres holds, and no other.
    pub async fn check_balances(&self, world: &World) {
        let rows = world.db.query("select token, address, amount::text from balances", &[]).await.unwrap();
        let balances: BTreeMap<(String, String), String> =
            rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect();
        assert_eq!(self.balances, balances, "{}: balances", self.sink);
    }
}

/// The schemas, compiled, each by its name.
static COMPILED: LazyLock<(Schemas, HashMap<String, SchemaIndex>)> = LazyLock::new(|| {
    let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
    compiler.enable_format_assertions();
    let mut named = HashMap::new();
    for (_, text) in SCHEMAS {
        let schema: Value = serde_json::from_str(text).unwrap();
        let name = schema["$id"].as_str().unwrap().to_owned();
        compiler.add_resource(&name, schema).unwrap();
        let index = compiler.compile(&name, &mut schemas).unwrap();
        named.insert(name, index);
    }
    (schemas, named)
});

/// What a notice holds is what the schema says that it names; of what functions say there is none.
pub fn check_schema(notice: &Value) {
    match notice["dataschema"].as_str() {
        Some(name) => {
            let (schemas, named) = &*COMPILED;
            let checked = schemas.validate(&notice["data"], named[name]);
            assert!(checked.is_ok(), "{name}: {:?} in {notice}", checked.unwrap_err().to_string());
        }
        None => assert!(!notice["type"].as_str().unwrap().starts_with("ebbtide."), "{notice}"),
    }
}
