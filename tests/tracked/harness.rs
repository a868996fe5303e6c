//! A chain whose blocks say in SQL what becomes of the tables, so that a test is a list of statements.

use std::collections::HashMap;

use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::support::{Ebbtide, Pg, wait_until};

/// A database with the projection `mine` on some tables, and a processor at work.
pub struct Mine {
    pub pg: Pg,
    pub client: Client,
    _process: Ebbtide,
    tables: Vec<String>,
    /// Hashes by height, from 1.
    pub hashes: Vec<String>,
    made: u32,
}

/// What a block does: its statements, in order.
pub type Block<'a> = &'a [&'a str];

impl Mine {
    /// `ddl` makes the tables, which lie in `public`.
    pub async fn new(ddl: &str, tables: &[&str]) -> Mine {
        let pg = Pg::new().await;
        let client = pg.client().await;
        client.batch_execute("insert into chains (name, kind) values ('main', 'other')").await.unwrap();
        client.batch_execute("set search_path = public").await.unwrap();
        client.batch_execute(ddl).await.unwrap();
        client
            .batch_execute(
                "create function do_as_told(bigint, bigint) returns void language plpgsql as $$
                 declare e record;
                 begin
                    for e in select attributes ->> 'sql' as sql from events
                             where chain_id = $1 and height = $2 order by tx_index, event_index loop
                        execute e.sql;
                    end loop;
                 end $$",
            )
            .await
            .unwrap();
        let list: Vec<String> = tables.iter().map(|t| format!("public.{t}")).collect();
        client
            .batch_execute(&format!(
                "select ebbtide.create_projection('mine', 'do_as_told(bigint,bigint)', '{{{}}}')",
                list.join(",")
            ))
            .await
            .unwrap_or_else(|e| panic!("{e:?}"));
        client.batch_execute("set search_path = ebbtide, public").await.unwrap();
        let process = Ebbtide::spawn(&["process", "--database-url", &pg.url], &[]);
        let tables = tables.iter().map(|t| (*t).to_owned()).collect();
        Mine { pg, client, _process: process, tables, hashes: vec!["root".to_owned()], made: 0 }
    }

    pub fn height(&self) -> usize {
        self.hashes.len() - 1
    }

    /// Puts a block on top of the one at `height - 1`, in place of all that is there.
    pub async fn put(&mut self, height: usize, block: Block<'_>) {
        self.made += 1;
        let hash = format!("h{height}n{}", self.made);
        let events: Vec<Value> = (0..)
            .zip(block)
            .map(|(i, sql)| {
                json!({"tx_index": 0, "event_index": i, "emitter": "test", "name": "do", "attributes": {"sql": sql}})
            })
            .collect();
        self.hashes.truncate(height);
        let parent = self.hashes[height - 1].clone();
        self.client
            .execute(
                "select put_block('main', $1, $2, $3, now(), '[]', '[]', $4)",
                &[&(height as i64), &hash, &parent, &Value::Array(events)],
            )
            .await
            .unwrap();
        self.hashes.push(hash);
    }

    /// Puts it on top and waits until it was applied.
    pub async fn add(&mut self, block: Block<'_>) {
        self.put(self.height() + 1, block).await;
        self.settle().await;
    }

    /// Waits until the projection stands on our newest block.
    pub async fn settle(&self) {
        let tip = self.hashes.last().unwrap();
        let mut last = None;
        let why = format!("the projection stands on {tip}");
        wait_until(&why, async || {
            let row = self
                .client
                .query_opt("select hash, failed_reason, halted_reason from checkpoints where projection = 'mine'", &[])
                .await
                .unwrap();
            let seen = row
                .map(|r| (r.get::<_, Option<String>>(0), r.get::<_, Option<String>>(1), r.get::<_, Option<String>>(2)));
            if seen != last {
                println!("{seen:?}");
                last.clone_from(&seen);
            }
            seen.filter(|(hash, ..)| hash.as_ref() == Some(tip))
        })
        .await;
    }

    /// Waits until a block that we put fails, and none that stood there before; why.
    pub async fn failure(&self) -> String {
        wait_until("a block fails", async || {
            let row = self
                .client
                .query_one("select failed_reason from checkpoints where projection = 'mine'", &[])
                .await
                .ok()?;
            row.get::<_, Option<String>>(0)
                .filter(|why| self.hashes.iter().any(|hash| why.contains(&format!("({hash})"))))
        })
        .await
    }

    /// All rows of all tables.
    pub async fn dump(&self) -> Value {
        dump(&self.client, &self.tables).await
    }

    /// Rows of undo left over all tables.
    pub async fn undo_rows(&self) -> i64 {
        let ids = self.client.query("select id from tracked_tables order by id", &[]).await.unwrap();
        let mut rows = 0;
        for row in ids {
            let sql = format!("select count(*) from undo_{}", row.get::<_, i64>(0));
            rows += self.client.query_one(&sql, &[]).await.unwrap().get::<_, i64>(0);
        }
        rows
    }

    /// Applies the blocks; then takes back every possible number of them, by an empty block in their place, and puts
    /// others like them in their stead. After each step all tables must be what they were at that point.
    pub async fn there_and_back(&mut self, blocks: &[Block<'_>]) {
        let mut at = vec![self.dump().await];
        for block in blocks {
            self.add(block).await;
            at.push(self.dump().await);
        }
        let changes = at.windows(2).filter(|w| w[0] != w[1]).count();
        assert!(changes * 2 > blocks.len(), "the blocks change hardly anything: {at:#?}");
        for depth in 1..=blocks.len() {
            let left = blocks.len() - depth;
            self.put(left + 1, &[]).await;
            self.settle().await;
            assert_eq!(self.dump().await, at[left], "after taking back {depth} blocks");
            for (height, block) in (left + 1..).zip(&blocks[left..]) {
                self.put(height, block).await;
            }
            self.settle().await;
            assert_eq!(without_ids(self.dump().await), without_ids(at[blocks.len()].clone()), "applied again");
        }
        println!("{} blocks, taken back and applied again {} times", blocks.len(), blocks.len());
    }
}

/// Sequences go on: what they gave is another number the second time.
fn without_ids(mut dump: Value) -> Value {
    for rows in dump.as_object_mut().unwrap().values_mut() {
        let rows = rows.as_array_mut().unwrap();
        for row in rows.iter_mut() {
            row.as_object_mut().unwrap().remove("serial");
        }
        rows.sort_by_key(ToString::to_string);
    }
    dump
}

/// All rows of these tables, sorted.
pub async fn dump(client: &Client, tables: &[String]) -> Value {
    let mut all = HashMap::new();
    for table in tables {
        let sql = format!(
            "select coalesce(jsonb_agg(to_jsonb(t) order by to_jsonb(t)::text collate \"C\"), '[]') from public.{table} t"
        );
        let rows: Value = client.query_one(&sql, &[]).await.unwrap().get(0);
        all.insert(table.clone(), rows);
    }
    serde_json::to_value(all).unwrap()
}
