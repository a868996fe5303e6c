//! Tables of one's own, and what functions say: told with their block, and taken back with it.

use std::collections::BTreeMap;

use serde_json::Value;

use super::consumer::{Consumer, check_schema};
use super::support::check::World;

/// A table kept by what is told of another one, in both directions.
#[derive(Default)]
struct Copy {
    rows: BTreeMap<String, Value>,
    /// What functions said and did not take back.
    said: BTreeMap<String, Value>,
    counts: BTreeMap<String, usize>,
}

impl Copy {
    fn hear(&mut self, body: &str) {
        let notice: Value = serde_json::from_str(body).unwrap();
        check_schema(&notice);
        let (kind, data) = (notice["type"].as_str().unwrap(), &notice["data"]);
        *self.counts.entry(kind.to_owned()).or_default() += 1;
        let (from, to) = match kind {
            "ebbtide.row.changed" => (&data["old"], &data["new"]),
            "ebbtide.row.retracted" => (&data["new"], &data["old"]),
            "app.large" => {
                self.said.insert(notice["id"].as_str().unwrap().to_owned(), data.clone());
                return;
            }
            "app.large.retracted" => {
                let said = self.said.remove(notice["retracts"].as_str().unwrap());
                assert_eq!(said.as_ref(), Some(data));
                return;
            }
            other => panic!("{other} was not asked for"),
        };
        let key = data["key"].to_string();
        assert_eq!(notice["partitionkey"], format!("public.volume:{}", data["key"]["token"].as_str().unwrap()));
        let before = match to {
            Value::Null => self.rows.remove(&key),
            row => self.rows.insert(key, row.clone()),
        };
        // As it is again, for a sink that was not told of all that was taken back.
        if data["cause"] != "reorg" {
            assert_eq!(before.unwrap_or(Value::Null), *from, "{notice}");
        }
    }

    async fn catch_up(&mut self, world: &World, consumer: &mut Consumer) {
        loop {
            let notices = consumer.next(world, 7).await;
            let Some((last, _)) = notices.last() else { return };
            consumer.position = *last;
            notices.iter().for_each(|(_, body)| self.hear(body));
            consumer.ack(world).await;
        }
    }

    async fn check(&self, world: &World) {
        let sql = "select jsonb_build_object('token', token, 'transfers', transfers, 'moved', moved::text) from public.volume order by token";
        let rows = world.db.query(sql, &[]).await.unwrap();
        let there: Vec<Value> = rows.iter().map(|row| row.get(0)).collect();
        let mut held: Vec<Value> = self.rows.values().cloned().collect();
        held.sort_by_key(|row| row["token"].to_string());
        assert_eq!(held, there);
        let large = world.one("select count(*) from token_events where amount >= 1000").await.unwrap();
        assert_eq!(self.said.len().to_string(), large);
    }
}

async fn projection(world: &World, after: &str) {
    world
        .sql(&format!(
            "create table public.volume (token text primary key, transfers int not null, moved numeric not null);
             create function public.add_volume(bigint, bigint) returns void language sql as $$
                 delete from volume v where v.token = 'silver' and $2 % 5 = 0;
                 insert into volume as v select token, count(*), sum(amount) from ebbtide.token_events
                 where chain_id = $1 and height = $2 group by token
                 on conflict (token) do update set transfers = v.transfers + excluded.transfers, moved = v.moved + excluded.moved;
                 select emit('app.large', e.token, jsonb_build_object('amount', e.amount::text)) from ebbtide.token_events e
                 where e.chain_id = $1 and e.height = $2 and e.amount >= 1000 $$;
             select create_projection('volume', 'public.add_volume(bigint,bigint)', '{{public.volume}}', chain => 'main'{after})"
        ))
        .await;
}

const WANTED: &str = ", start => 'beginning', types => '{ebbtide.row.changed,app.large}'";

#[tokio::test]
async fn a_copy_of_a_table_is_right_through_reorganisations() {
    for after in ["", ", after => 'token_balances'"] {
        let world = World::new(64).await;
        projection(&world, after).await;
        let mut consumer = Consumer::of(&world, "rows", WANTED).await;
        let mut copy = Copy::default();
        world.branch("a", 1, 12, "root").await;
        world.settle().await;
        copy.catch_up(&world, &mut consumer).await;
        copy.check(&world).await;
        for (tag, from, to) in [("b", 7, 13), ("a", 7, 9), ("b", 5, 6), ("c", 1, 11)] {
            let parent = if from == 1 { "root".to_owned() } else { format!("a{}", from - 1) };
            world.branch(tag, from, to, &parent).await;
            world.settle().await;
            copy.catch_up(&world, &mut consumer).await;
            copy.check(&world).await;
        }
        assert!(
            copy.counts["ebbtide.row.retracted"] > 10 && copy.counts["app.large.retracted"] > 10,
            "{:?}",
            copy.counts
        );
        // Final blocks, for which no undo is kept otherwise.
        world.branch("c", 12, 60, "c11").await;
        world.sql("update chains set head_height = 60, final_height = 58").await;
        world.settle().await;
        copy.catch_up(&world, &mut consumer).await;
        copy.check(&world).await;
        // Another one begins with what is there.
        let mut consumer = Consumer::of(&world, "late", &WANTED.replace("beginning", "snapshot")).await;
        let mut late = Copy { said: copy.said, ..Copy::default() };
        late.catch_up(&world, &mut consumer).await;
        late.check(&world).await;
        world.branch("d", 59, 63, "c58").await;
        world.settle().await;
        late.said.retain(|_, said| said["height"].as_i64().unwrap() < 59);
        late.catch_up(&world, &mut consumer).await;
        late.check(&world).await;
    }
}

#[tokio::test]
async fn a_sink_that_comes_while_final_blocks_are_applied_misses_none() {
    let world = World::new(2).await;
    projection(&world, "").await;
    world.branch("a", 1, 300, "root").await;
    world.sql("update chains set head_height = 300, final_height = 298").await;
    // As far as the sink's beginning.
    world.sql("select pause('main', 'volume', 299)").await;
    world.try_process().await.unwrap();
    let mut consumer = Consumer::of(&world, "rows", ", types => '{ebbtide.row.changed}'").await;
    assert_eq!(world.one("select tells from checkpoints where projection = 'volume'").await.as_deref(), Some("17"));
    world.branch("a", 301, 330, "a300").await;
    world.sql("select resume('main', 'volume'); update chains set head_height = 330, final_height = 329").await;
    world.settle().await;
    let mut heights = std::collections::BTreeSet::new();
    loop {
        let notices = consumer.next(&world, 100).await;
        let Some((last, _)) = notices.last() else { break };
        consumer.position = *last;
        for (_, body) in &notices {
            heights.insert(serde_json::from_str::<Value>(body).unwrap()["data"]["height"].as_i64().unwrap());
        }
        consumer.ack(&world).await;
    }
    assert_eq!(heights, (300..=330).collect());
}

#[tokio::test]
async fn what_is_too_large_or_said_elsewhere_is_refused() {
    let world = World::new(64).await;
    let error = world.db.batch_execute("select emit('a', 'b', '{}')").await.unwrap_err();
    assert_eq!(error.as_db_error().unwrap().constraint(), Some("emit_is_called_by_apply_functions"));
    world
        .sql(
            "create table public.big (id bigint primary key, text text);
             create function public.fill(bigint, bigint) returns void language sql as $$
                 insert into big select $2, repeat('x', case when $2 = 2 then 1000001 else 5 end) $$;
             select create_projection('big', 'public.fill(bigint,bigint)', '{public.big}', chain => 'main')",
        )
        .await;
    let _sink = Consumer::of(&world, "rows", WANTED).await;
    world.branch("a", 1, 2, "root").await;
    let _ = world.try_process().await;
    let failed = world.one("select failed_reason from checkpoints where projection = 'big'").await.unwrap_or_default();
    assert!(failed.contains("a notice has 1000000 bytes at most"), "{failed}");
    world.sql("select drop_sink('rows')").await;
    world.settle().await;
    assert_eq!(world.one("select count(*) from public.big").await.as_deref(), Some("2"));
}
