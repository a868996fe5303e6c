//! What keeps the chain tables whole is not switched off by a session that may write them and no more.

use super::support::check::World;

#[tokio::test]
async fn a_session_that_may_only_write_switches_nothing_off() {
    let world = World::new(64).await;
    world.branch("a", 1, 3, "root").await;
    world.settle().await;
    let role = format!("writer_{}", std::process::id());
    world
        .sql(&format!(
            "create role {role};
             grant usage on schema ebbtide to {role};
             grant select on all tables in schema ebbtide to {role};
             grant insert, update, delete on chains, blocks, transactions, token_events, events to {role}"
        ))
        .await;
    let writer = world.client().await;
    writer
        .batch_execute(&format!(
            "set session authorization {role};
             set ebbtide.bulk = on; set ebbtide.catching_up = on; set ebbtide.dropping_chain = on;
             set ebbtide.not_concerned = '{{token_balances}}'"
        ))
        .await
        .unwrap();
    let writes = async |sql: &str| writer.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    let late = "insert into token_events (chain_id, height, tx_index, event_index, token, to_address, amount)
                select chain_id, 2, 90, 0, 'gold', 'late', 5 from chains";

    // An event in a block that is applied already.
    writes(late).await;
    world.settle().await;
    assert_eq!(world.balance("gold", "late").await.as_deref(), Some("5"));

    // Another account by another spelling.
    let misspelt = late.replace("'late'", "'0xAB'").replace("90", "91");
    let error = writer.batch_execute(&misspelt).await.unwrap_err();
    assert_eq!(error.as_db_error().unwrap().constraint(), Some("token_events_hex_is_in_lower_case"));

    // Below the final height, where nobody looks unless told: an event, and a block's own row.
    world.sql("update chains set final_height = 3").await;
    writes("update token_events set amount = 6 where to_address = 'late'").await;
    world.settle().await;
    assert_eq!(world.balance("gold", "late").await.as_deref(), Some("6"));
    writes("update blocks set hash = 'b3' where height = 3").await;
    world.settle().await;
    assert_eq!(
        world.one("select hash from checkpoints where projection = 'token_balances'").await.as_deref(),
        Some("b3")
    );

    // What goes is kept as evidence.
    writes("delete from blocks where height = 3").await;
    let kept = "select count(*) from orphaned_blocks where height = 3 and hash = 'b3' and token_events <> '[]'";
    assert_eq!(world.one(kept).await.as_deref(), Some("1"));
    world.settle().await;
    drop(writer);
    world.sql(&format!("drop owned by {role}; drop role {role}")).await;
}
