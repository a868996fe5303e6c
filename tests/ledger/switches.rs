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

    // From a trigger of its own, where one of ours says the same of what it does itself.
    writes(
        "create temp table mine (n int);
         create function pg_temp.rename() returns trigger language plpgsql as $$
         begin update ebbtide.blocks set hash = 'c2' where height = 2; return null; end $$;
         create trigger mine after insert on mine for each row execute function pg_temp.rename();
         insert into mine values (1)",
    )
    .await;
    assert_eq!(
        world.one("select redo_from from checkpoints where projection = 'token_balances'").await.as_deref(),
        Some("2")
    );
    writes("update blocks set parent_hash = 'c2' where height = 3").await;
    world.settle().await;

    // What goes is kept as evidence.
    writes("delete from blocks where height = 3").await;
    let kept = "select count(*) from orphaned_blocks where height = 3 and hash = 'b3' and token_events <> '[]'";
    assert_eq!(world.one(kept).await.as_deref(), Some("1"));
    world.settle().await;
    drop(writer);
    world.sql(&format!("drop owned by {role}; drop role {role}")).await;
}

#[tokio::test]
async fn a_writer_that_drops_a_chain_copies_none_of_it_as_evidence() {
    let world = World::new(64).await;
    world.branch("a", 1, 3, "root").await;
    world.settle().await;
    let role = format!("dropper_{}", std::process::id());
    world
        .sql(&format!(
            "create role {role}; grant usage on schema ebbtide to {role}; grant execute on function drop_chain to {role}"
        ))
        .await;
    let copied = "select coalesce(pg_sequence_last_value(pg_get_serial_sequence('ebbtide.orphaned_blocks', 'id')), 0)";
    let before = world.one(copied).await;
    let writer = world.client().await;
    let drops = format!("set session authorization {role}; set search_path = ebbtide; select drop_chain('main')");
    writer.batch_execute(&drops).await.unwrap();
    assert_eq!(world.one(copied).await, before);
    let left =
        "select (select count(*) from blocks) + (select count(*) from chains) + (select count(*) from dropped_chains)";
    assert_eq!(world.one(left).await.as_deref(), Some("0"));
    drop(writer);
    world.sql(&format!("drop owned by {role}; drop role {role}")).await;
}
