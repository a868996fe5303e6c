//! The checkpoint moves from the block that a statement was sent for, and from no other.

use tokio_postgres::Client;

use crate::support::Pg;

/// Three blocks, and a table that says which of them were applied.
const TABLE: &str = "
    create table public.seen (height bigint primary key);
    create function public.see(bigint, bigint) returns void language plpgsql as $$
    begin insert into seen values ($2); end $$;
    insert into chains (name, kind) values ('main', 'other');
    insert into blocks (chain_id, height, hash, parent_hash)
    select 1, h, 'h' || h, 'h' || h - 1 from generate_series(1, 4) h;
    select create_projection('seen', 'public.see(bigint,bigint)', '{public.seen}', chain => 'main');
    insert into checkpoints (chain_id, projection) values (1, 'seen');";

/// One block, sent for this seq and for the block below it.
fn step(function: &str, seq: i64, height: i64) -> String {
    let revision = format!("(select revision from blocks where height = {height})");
    let (on, held) = match height {
        1 => ("null, null".to_owned(), format!("'{{1}}', '{{h1}}', array[{revision}]")),
        _ => (
            format!("{0}, 'h{0}'", height - 1),
            format!("'{{{0},{height}}}', '{{h{0},h{height}}}', array[null, {revision}]", height - 1),
        ),
    };
    let more = match function {
        "begin_block" => "",
        "on a replica" => ", true",
        _ => ", false",
    };
    let function = if more.is_empty() { function } else { "apply_sql_blocks" };
    format!("select {function}(1, 'seen', {seq}, {on}, {held}, null, 1, true, null{more})")
}

async fn moved(client: &Client, sql: &str) -> Option<i64> {
    client.query_one(sql, &[]).await.unwrap_or_else(|e| panic!("{sql}: {e:?}")).get(0)
}

/// All that a stale statement could have changed.
async fn state(client: &Client) -> String {
    let sql = "select (select array_agg(height order by height) from public.seen)::text || ' '
                   || (select row(seq, height, hash, through_height) from checkpoints where projection = 'seen')::text || ' '
                   || (select count(*) from applied_blocks where projection = 'seen')";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// Two processors: one sends blocks 1 to 4 ahead on the numbers it expects; the other makes a transaction of one of these
/// numbers hold something else.
#[tokio::test]
async fn a_block_sent_ahead_does_not_land_on_what_another_processor_applied() {
    let pg = Pg::new().await;
    let (ours, theirs) = (pg.client().await, pg.client().await);
    for processor in [&ours, &theirs] {
        processor.batch_execute("set ebbtide.ledger = on").await.unwrap();
    }
    ours.batch_execute(TABLE).await.unwrap();
    assert_eq!(moved(&ours, &step("live", 0, 1)).await, Some(1));
    assert_eq!(moved(&ours, &step("live", 1, 2)).await, Some(2));
    for function in ["begin_block", "live", "on a replica"] {
        // The other one's transaction of the number before: block 4 was sent for block 3, and meets block 1.
        let seq: i64 =
            theirs.query_one("select seq from checkpoints where projection = 'seen'", &[]).await.unwrap().get(0);
        theirs
            .batch_execute(
                "select undo_blocks(1, 'seen', seq, height, hash, 1, 'h1', null)
                 from checkpoints where projection = 'seen'",
            )
            .await
            .unwrap();
        let before = state(&theirs).await;
        assert_eq!(moved(&ours, &step(function, seq + 1, 4)).await, None, "{function}: {before}");
        assert_eq!(state(&theirs).await, before, "{function}");
        assert_eq!(before, format!("{{1}} ({},1,h1,1) 1", seq + 1));
        // On the block that it stands on, the same function goes on.
        if function == "live" {
            assert_eq!(moved(&ours, &step(function, seq + 1, 2)).await, Some(seq + 2));
        }
    }
    // Another block of the same height is another block.
    let seq: i64 = ours.query_one("select seq from checkpoints where projection = 'seen'", &[]).await.unwrap().get(0);
    ours.batch_execute("update checkpoints set hash = 'other' where projection = 'seen'").await.unwrap();
    assert_eq!(moved(&ours, &step("live", seq, 2)).await, None);
    // Nor is nothing a block.
    ours.batch_execute(
        "select undo_blocks(1, 'seen', seq, height, hash, null, null, null)
             from checkpoints where projection = 'seen'",
    )
    .await
    .unwrap();
    assert_eq!(moved(&ours, &step("live", seq + 1, 2)).await, None);
    assert_eq!(moved(&ours, &step("live", seq + 1, 1)).await, Some(seq + 2));
}
