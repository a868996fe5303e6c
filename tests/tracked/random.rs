//! Random statements on tracked tables, random reorganisations: whenever the same blocks stand, the tables are the same.

use std::collections::HashMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

use crate::harness::Mine;

const DDL: &str = "
    create table owner (id int primary key, name text, rank numeric);
    create table item (a int, b text, owner int references owner on delete cascade on update cascade, v int,
        seat int unique deferrable, primary key (a, b));
    create table log (k int primary key, entry jsonb)";

/// One statement that succeeds whatever the rows are.
fn statement(random: &mut StdRng) -> String {
    let k = |random: &mut StdRng| random.random_range(0..8);
    let (x, y, z) = (k(random), k(random), random.random_range(0..1_000));
    let b = ["p", "q"][random.random_range(0..2)];
    match random.random_range(0..16) {
        0 | 1 => format!(
            "insert into owner values ({x}, 'n{z}', {z}.50) on conflict (id) do update set name = excluded.name"
        ),
        2 | 3 => format!(
            "insert into item select {x}, '{b}', (select min(id) from owner where id >= {y}), {z}, null
             on conflict (a, b) do update set v = item.v + 1, owner = excluded.owner"
        ),
        4 => format!("update item set v = v + {z} where a <= {x}"),
        // Keys change, alone and in a row.
        5 => format!(
            "update item set a = a + 10, v = {z} where a = {x} and not exists (select from item i where i.a = {x} + 10)"
        ),
        6 => format!(
            "update item set b = case b when 'p' then 'q' else 'p' end where a = {x}
                      and (select count(*) from item i where i.a = {x}) = 1"
        ),
        7 => "update item set a = a - 10 where a >= 10 and not exists (select from item i where i.a = item.a - 10)"
            .to_owned(),
        8 => format!(
            "update owner set id = id + 20 where id = {x} and not exists (select from owner o where o.id = {x} + 20)"
        ),
        9 => format!("delete from owner where id = {x}"),
        10 => format!("delete from item where v % 3 = {}", x % 3),
        11 => format!(
            "with gone as (delete from log where k = {x} returning k) insert into log select k, '[{z}]' from gone"
        ),
        12 => format!("insert into log values ({x}, '{{\"z\": {z}}}') on conflict do nothing"),
        13 => format!(
            "merge into log using (select {x} as k union select {y}) s on log.k = s.k
             when matched and log.k % 2 = 0 then delete when matched then update set entry = '\"m{z}\"'
             when not matched then insert values (s.k, 'null')"
        ),
        // The parent's key goes on to children that the statement changes as well.
        14 => format!(
            "with moved as (update item set v = -{z} where owner = {x} returning 1)
             update owner set id = id + 40 where id = {x} and not exists (select from owner o where o.id = {x} + 40)"
        ),
        _ => format!(
            "update item set seat = (select count(*) from item i where (i.a, i.b) <= (item.a, item.b)) where true or a = {y}"
        ),
    }
}

async fn run(seed: u64, steps: usize) -> (usize, usize) {
    let mut mine = Mine::new(DDL, &["owner", "item", "log"]).await;
    let mut random = StdRng::seed_from_u64(seed);
    // What each block holds, by height from 1; and the tables after each run of blocks that ever stood.
    let mut blocks: Vec<Vec<String>> = Vec::new();
    let mut seen: HashMap<Vec<Vec<String>>, Value> = HashMap::new();
    let mut again = 0;
    for step in 0..steps {
        let keep = if random.random_bool(0.45) && !blocks.is_empty() {
            blocks.len() - random.random_range(1..=blocks.len().min(7))
        } else {
            blocks.len()
        };
        let replaced: Vec<Vec<String>> = blocks.drain(keep..).collect();
        // Now and then the same content as before, in other blocks: the same tables.
        let fresh: Vec<Vec<String>> = if random.random_bool(0.3) && !replaced.is_empty() {
            replaced
        } else {
            (0..random.random_range(1..4))
                .map(|_| (0..random.random_range(0..5)).map(|_| statement(&mut random)).collect())
                .collect()
        };
        for block in fresh {
            let sql: Vec<&str> = block.iter().map(String::as_str).collect();
            mine.put(blocks.len() + 1, &sql).await;
            blocks.push(block);
        }
        mine.settle().await;
        let dump = mine.dump().await;
        if let Some(before) = seen.get(&blocks) {
            again += 1;
            assert_eq!(*before, dump, "seed {seed}, step {step}: the same blocks, other tables\n{blocks:#?}");
        }
        seen.insert(blocks.clone(), dump);
    }
    // And from nothing, in one go.
    mine.client.batch_execute("select replay('main', 0, 'mine')").await.unwrap();
    crate::support::wait_until("it was applied again", async || {
        let sql = "select from checkpoints where projection = 'mine' and redo_from is null";
        mine.client.query_opt(sql, &[]).await.unwrap()
    })
    .await;
    mine.settle().await;
    assert_eq!(seen.get(&blocks), Some(&mine.dump().await), "seed {seed}: a replay gives other tables\n{blocks:#?}");
    (steps, again)
}

#[tokio::test]
async fn random_statements_and_reorganisations() {
    let mut totals = (0, 0);
    for seed in 0..6 {
        let (steps, again) = run(seed, 40).await;
        totals = (totals.0 + steps, totals.1 + again);
    }
    assert!(totals.1 > 20, "too few branches came back: {totals:?}");
    println!("{} steps, {} times the blocks that had stood before", totals.0, totals.1);
}
