//! Sessions and databases that are copies of others, and a queue of notifications that somebody fills.

use crate::support::check::World;
use crate::support::wait_until;
use futures::StreamExt;
use tokio_postgres::{AsyncMessage, NoTls};

#[tokio::test]
async fn a_session_that_plays_a_replica_is_followed_as_any_other() {
    for depth in [64, 3] {
        let world = World::new(depth).await;
        world.branch("a", 1, 12, "a0").await;
        world.settle().await;
        let replica = world.client().await;
        replica.batch_execute("set session_replication_role = replica").await.unwrap();
        for edit in [
            "insert into token_events (chain_id, height, tx_index, event_index, token, to_address, amount)
             select chain_id, 11, 77, 0, 'gold', 'late', 5 from chains",
            "update token_events set amount = amount + 3 where tx_index = 77",
            "update token_events set height = 4 where tx_index = 77",
            "delete from token_events where tx_index = 77",
            "insert into opening_balances select chain_id, 'gold', 'old', 5 from chains",
            "delete from opening_balances",
            "insert into blocks (chain_id, height, hash, parent_hash) select chain_id, 13, 'a13', 'a12' from chains",
            "delete from blocks where height >= 10",
        ] {
            replica.batch_execute(edit).await.unwrap_or_else(|e| panic!("{edit}: {e:?}"));
            world.settle().await;
        }
        assert_eq!(world.one("select count(*) from orphaned_blocks").await.as_deref(), Some("4"));
        let refused = replica.batch_execute("truncate token_events").await.unwrap_err();
        assert_eq!(refused.as_db_error().unwrap().constraint(), Some("chain_tables_are_not_truncated"));
    }
}

/// A copy of the tables whose sequence did not come along, or came from an older copy.
#[tokio::test]
async fn a_revision_does_not_return_where_the_sequence_was_set_back() {
    let world = World::new(64).await;
    world.branch("a", 1, 12, "a0").await;
    world.settle().await;
    let sequence = "pg_get_serial_sequence('ebbtide.blocks', 'revision')";
    for height in [1, 7, 12] {
        // The next revision is just the one that this block was applied with.
        let applied = format!("select revision from applied_blocks where height = {height}");
        let next = world.one(&applied).await.unwrap();
        world.sql(&format!("select setval({sequence}, {next}, false)")).await;
        let running = world.start(ebbtide::store::WakeMode::Listen, std::time::Duration::from_millis(20));
        let above = format!("select nextval({sequence}) > (select max(revision) from blocks)");
        wait_until("a processor has begun", async || {
            (world.one(&above).await.as_deref() == Some("true")).then_some(())
        })
        .await;
        running.stop().await;
        world.sql(&format!("update token_events set amount = amount + 1 where height = {height}")).await;
        world.settle().await;
    }
}

#[tokio::test]
async fn a_bell_is_left_out_where_the_queue_is_full() {
    let world = World::new(8).await;
    let (listener, mut connection) = tokio_postgres::connect(&world.url, NoTls).await.unwrap();
    let (heard, mut hears) = futures::channel::mpsc::unbounded();
    tokio::spawn(async move {
        let mut messages = futures::stream::poll_fn(move |cx| connection.poll_message(cx));
        while let Some(Ok(message)) = messages.next().await {
            if let AsyncMessage::Notification(n) = message {
                heard.unbounded_send(n.payload().to_owned()).unwrap_or_default();
            }
        }
    });
    listener.batch_execute("listen bell").await.unwrap();
    // Somebody listens and takes nothing in: 16 MB of what may be 8 GB.
    let somebody = world.client().await;
    // One batch would be one transaction, and LISTEN takes effect at its end.
    somebody.batch_execute("listen noise").await.unwrap();
    somebody.batch_execute("begin; select 1").await.unwrap();
    world
        .sql("do $$ begin for n in 1..2000 loop perform pg_notify('noise', n || repeat('x', 7900)); end loop; end $$")
        .await;
    let usage: f64 = world.one("select pg_notification_queue_usage()").await.unwrap().parse().unwrap();
    assert!(usage > 0.001, "{usage}");
    world.sql(&format!("select tell('bell', 'too full', {})", usage / 2.0)).await;
    world.sql("select tell('bell', 'room')").await;
    assert_eq!(hears.next().await.as_deref(), Some("room"));
    // Every bell of ours goes that way.
    let others = "select string_agg(p.proname, ' ') from pg_proc p
        where p.pronamespace = 'ebbtide'::regnamespace and p.prosrc ~ 'pg_notify' and p.proname <> 'tell'";
    assert_eq!(world.one(others).await, None);
}
