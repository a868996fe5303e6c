//! What following the head costs: statements and round trips to Postgres, counted on the wire.

use std::sync::Arc;
use std::time::Duration;

use ebbtide::chain::{Height, Kind};
use ebbtide::sources::evm::{EvmSettings, EvmSource};
use ebbtide::store::{ChainSettings, Store, StoreSettings};
use ebbtide::sync::{self, SyncSettings, Unwatched};
use tokio_util::sync::CancellationToken;

use super::follow::{Run, TOKEN, blocks, forked};
use crate::support::fake_node::{FakeBlock, FakeNode, chain, transfer};
use crate::support::proxy::FaultProxy;
use crate::support::{Pg, wait_until};

/// Statements and the writes that they came in, from here on.
struct Cost {
    statements: Vec<String>,
    round_trips: usize,
}

/// What was sent between two counts of messages. One runtime drives all of it, so that what is sent together comes together.
fn cost(proxy: &FaultProxy, from: u64, to: u64) -> Cost {
    let (from, to) = (usize::try_from(from).unwrap(), usize::try_from(to).unwrap());
    let sent: Vec<(String, u64)> = proxy.messages().into_iter().zip(proxy.writes()).take(to).skip(from).collect();
    let is_statement = |message: &str| ["Query", "Execute"].iter().any(|word| message.starts_with(word));
    assert!(sent.iter().all(|(message, _)| !message.starts_with("Parse")), "prepared once: {sent:?}");
    let mut writes: Vec<u64> = sent.iter().map(|(_, write)| *write).collect();
    writes.dedup();
    let statements = sent.into_iter().map(|(message, _)| message).filter(|message| is_statement(message)).collect();
    Cost { statements, round_trips: writes.len() }
}

/// A block on top of another that holds 300 movements from nobody to nobody.
fn refused(parent: &FakeBlock) -> FakeBlock {
    let logs = |_| (0..300).map(|n| transfer(TOKEN, ZERO, ZERO, 1 + u128::from(n), n)).collect();
    chain(parent.number + 1, 1, Some(parent), "refused", logs).remove(0)
}

const ZERO: &str = "0x0000000000000000000000000000000000000000";

async fn stored(db: &tokio_postgres::Client, block: &FakeBlock) {
    let sql = "select exists (select from blocks where height = $1 and hash = $2)";
    let height = i64::try_from(block.number).unwrap();
    wait_until(&format!("block {height} is stored"), async || {
        db.query_one(sql, &[&height, &block.hash]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_live_block_and_an_idle_round_are_few_statements_in_few_round_trips() {
    let served = blocks(130);
    let node = FakeNode::start(31337, served[..100].to_vec()).await;
    let pg = Pg::new().await;
    let db = pg.client().await;
    let proxy = FaultProxy::in_front_of(&pg.url).await;
    let store = Store::open(&proxy.url(&pg.url), StoreSettings::default()).unwrap();
    let source = EvmSource::new(EvmSettings {
        urls: vec![node.url()],
        tokens: vec![TOKEN.to_owned()],
        ..EvmSettings::default()
    })
    .unwrap();
    let settings = SyncSettings {
        chain: ChainSettings {
            name: "main".to_owned(),
            kind: Kind::Evm,
            start_height: Some(Height::default()),
            finality_depth: None,
            announcers: None,
        },
        poll_interval: Duration::from_millis(20),
        concurrency: 4,
        range_blocks: 100,
        allow_reset: false,
        halt_on_bad_event: false,
        ends: false,
        fails_fast: true,
        progress: false,
    };
    let stop = CancellationToken::new();
    let syncing = tokio::spawn(sync::run(store, Arc::new(source), settings, Arc::new(Unwatched), stop.clone()));
    stored(&db, &served[99]).await;
    // Tokens are described once, after the first blocks.
    let settled = async || {
        let (heads, messages) = (node.call_count("eth_chainId"), proxy.count());
        wait_until("ten looks", async || (node.call_count("eth_chainId") >= heads + 10).then_some(())).await;
        (proxy.count() - messages) as f64 / (node.call_count("eth_chainId") - heads) as f64
    };
    wait_until("it is at rest", async || (settled().await < 4.0).then_some(())).await;
    // Idle: what is stored, in one statement (its Bind, Execute and Sync), and nothing else.
    let (heads, from) = (node.call_count("eth_chainId"), proxy.count());
    wait_until("fifty looks", async || (node.call_count("eth_chainId") >= heads + 50).then_some(())).await;
    let idle = cost(&proxy, from, proxy.count());
    let looks = usize::try_from(node.call_count("eth_chainId") - heads).unwrap();
    println!("{looks} idle rounds: {} statements in {} round trips", idle.statements.len(), idle.round_trips);
    assert!(idle.statements.len() <= looks + 1, "{looks} looks: {:?}", idle.statements);
    assert!(idle.round_trips <= looks + 1, "{looks} looks: {}", idle.round_trips);
    // A live block, one whose writes are too long for one packet, and one that replaces another: from the look that finds it
    // to the commit.
    let mut now = served[..100].to_vec();
    let kinds = [("a live block", 7, 3), ("300 refused events", 8, 5), ("one block replaced", 11, 6)];
    for (what, statements, round_trips) in kinds {
        for time in 0..5 {
            now = match statements {
                7 => served[..=now.len()].to_vec(),
                8 => [now.clone(), vec![refused(now.last().unwrap())]].concat(),
                _ => forked(&now, 1, 1, 100 + time),
            };
            let from = proxy.count();
            node.set_chain_quietly(now.clone());
            stored(&db, now.last().unwrap()).await;
            let messages = proxy.messages();
            let commit =
                messages.iter().skip(usize::try_from(from).unwrap()).position(|m| m == "Query commit").unwrap();
            let commit = from + commit as u64 + 1;
            let begin = messages[..usize::try_from(commit).unwrap()].iter().rposition(|m| m.starts_with("Query begin"));
            let begin = begin.unwrap() as u64;
            // The look is the statement before it; a replaced block is looked for first, in two more.
            let looks = if statements == 11 { 3 } else { 1 };
            let cost = cost(&proxy, begin - 3 * looks, commit);
            println!("{what}: {} statements in {} round trips", cost.statements.len(), cost.round_trips);
            assert!(cost.statements.len() <= statements, "{what}: {:?}", cost.statements);
            assert!(cost.round_trips <= round_trips, "{what}: {} round trips", cost.round_trips);
        }
    }
    assert_eq!(db.query_one("select count(*) from orphaned_blocks", &[]).await.unwrap().get::<_, i64>(0), 5);
    stop.cancel();
    syncing.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_block_of_refused_events_is_one_statement_more_and_one_line() {
    let served = blocks(20);
    let node = FakeNode::start(31337, served.clone()).await;
    let mut run = Run::start(&node, &["--token", TOKEN]).await;
    wait_until("at the start", async || (run.standing().await.0 == Some(served[19].hash.clone())).then_some(())).await;
    node.set_chain([served.clone(), vec![refused(served.last().unwrap())]].concat());
    wait_until("the refused events are kept", async || {
        (run.number("select count(*) from rejected_events where reason = 'no_party'").await == 300).then_some(())
    })
    .await;
    let said: Vec<String> = run.ebbtide.stderr().into_iter().filter(|line| line.contains("Rejected")).collect();
    assert!(matches!(&said[..], [line] if line.contains("Rejected 300 events of block 20")), "{said:?}");
    run.stop().await;
}
