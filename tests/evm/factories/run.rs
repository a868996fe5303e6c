//! The built program on a node of the test's own making: ranges cut short, a kill in the middle, a deep reorg.

use std::collections::BTreeSet;

use tokio_postgres::Client;

use super::made::{FACTORY, Kept, OTHER_FACTORY, busy, expected};

use crate::support::fake_node::{FakeBlock, FakeNode, Fault};
use crate::support::{Ebbtide, Pg, wait_until};

fn config(node: &FakeNode) -> String {
    let factory = |address: &str, tokens: bool| {
        format!(
            "[[chains.main.factories]]\naddress = [{address:?}]\nparameter = \"contract\"\ntokens = {tokens}\n\
             event = \"Made(address indexed contract, uint256 n)\"\nevents = [\"Ping(uint256 n)\"]\n"
        )
    };
    format!(
        "[chains.main]\nsource = \"evm\"\nurls = [{:?}]\ntokens = [\"none\"]\npoll_interval_ms = 50\nstart_height = 0\n\
         range_blocks = 60\n{}{}",
        node.url(),
        factory(FACTORY, true),
        factory(OTHER_FACTORY, false)
    )
}

async fn stored(db: &Client) -> Kept {
    let sql = "select height, event_index, emitter, name from events
               union all select height, event_index, token, 'Transfer' from token_events";
    let rows = db.query(sql, &[]).await.unwrap();
    let number = |n: i64| n.cast_unsigned();
    rows.iter().map(|r| (number(r.get(0)), number(r.get(1)), r.get(2), r.get(3))).collect::<BTreeSet<_>>()
}

async fn reach(db: &Client, blocks: &[FakeBlock], what: &str) {
    let head = blocks.last().unwrap();
    wait_until(&format!("{what}: block {} is stored", head.number), async || {
        let row = db.query_opt("select hash from blocks order by height desc limit 1", &[]).await.unwrap()?;
        (row.get::<_, String>(0) == head.hash).then_some(())
    })
    .await;
    assert_eq!(stored(db).await, expected(blocks), "{what}");
}

#[tokio::test]
async fn what_the_program_stores_is_the_same_however_it_comes_to_it() {
    let blocks = busy(0, 2_500, None, 11, 60);
    let node = FakeNode::start(31337, blocks.clone()).await;
    node.fault(Fault::MaxRange(25, "Block range is too large"));
    let pg = Pg::new().await;
    let db = pg.client().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ebbtide.toml");
    std::fs::write(&path, config(&node)).unwrap();
    let spawn = || Ebbtide::spawn(&["sync", "--database-url", &pg.url, "--config", path.to_str().unwrap()], &[]);
    let mut kills = 0;
    let mut ebbtide = spawn();
    for share in [300i64, 900, 1_600] {
        wait_until(&format!("{share} blocks are stored"), async || {
            let count: i64 = db.query_one("select count(*) from blocks", &[]).await.ok()?.get(0);
            (count >= share).then_some(())
        })
        .await;
        ebbtide.kill();
        kills += usize::from(stored(&db).await.len() < expected(&blocks).len());
        ebbtide = spawn();
    }
    reach(&db, &blocks, "after the kills").await;
    node.heal();
    let stem = &blocks[..blocks.len() - 60];
    let new = busy(stem.len() as u64, 90, stem.last(), 12, 60);
    let blocks = [stem, &new].concat();
    node.set_chain(blocks.clone());
    reach(&db, &blocks, "after a reorg of 60").await;
    println!("{} events and movements of {} blocks, {kills} kills on the way", expected(&blocks).len(), blocks.len());
    assert!(kills > 0, "it was never in the middle of it");
}
