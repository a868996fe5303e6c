//! One token id announced twice is the name of two ledgers: shown, for as long as both announcements stand.

use crate::support::check::World;

const GNS: &str = "gno.land/r/gnoswap/gns.GNS";
const WUGNOT: &str = "gno.land/r/gnoland/wugnot.wugnot.0000000";
const ALICE: &str = "g1jg8mtutu9khhfwc4nxmuhcpftf0pajdhfvsqf5";
const LIBRARY: &str = "gno.land/p/demo/tokens/grc20";

/// A block with a mint of both tokens, and announcements: (emitter, token).
async fn put(world: &World, height: i64, hash: &str, parent: &str, announced: &[(&str, &str)]) {
    let events: Vec<_> = (10..)
        .zip(announced)
        .map(|(i, (emitter, token))| {
            serde_json::json!({"tx_index": 0, "event_index": i, "emitter": emitter, "name": "NewToken",
                "attributes": {"token": token, "symbol": "S"}})
        })
        .collect();
    let mint = |i: i64, token: &str| serde_json::json!({"tx_index": 0, "event_index": i, "token": token, "to_address": ALICE, "amount": 1});
    let moves = serde_json::Value::from(vec![mint(0, GNS), mint(1, WUGNOT)]);
    let sql = "select put_block('main', $1, $2, $3, now(), '[]', $4, $5)";
    world.db.query_one(sql, &[&height, &hash, &parent, &moves, &serde_json::Value::from(events)]).await.unwrap();
}

async fn ambiguous(world: &World) -> (String, String) {
    let tokens = "select string_agg(token || ' ' || ambiguous, ', ' order by token) from tokens";
    let anomalies = "select coalesce(string_agg(concat_ws(' ', height, kind, detail), ', '), '') from anomalies";
    (world.one(tokens).await.unwrap(), world.one(anomalies).await.unwrap())
}

#[tokio::test]
async fn a_token_announced_twice_is_ambiguous_until_a_reorg_takes_one_announcement_away() {
    let world = World::new(64).await;
    world.sql("update chains set kind = 'gno'").await;
    put(&world, 1, "a1", "a0", &[(LIBRARY, GNS), (LIBRARY, WUGNOT)]).await;
    put(&world, 2, "a2", "a1", &[("gno.land/p/mallory/grc20", GNS), ("gno.land/r/gnoswap/gns", GNS)]).await;
    world.settle().await;
    let (clear, twice) = (format!("{WUGNOT} false, {GNS} false"), format!("{WUGNOT} false, {GNS} true"));
    assert_eq!(ambiguous(&world).await, (clear.clone(), String::new()), "only the library is believed");
    // The older path of the library announces as well.
    put(&world, 3, "a3", "a2", &[("gno.land/p/demo/grc/grc20", GNS)]).await;
    world.settle().await;
    let (tokens, anomalies) = ambiguous(&world).await;
    assert_eq!(tokens, twice);
    assert_eq!(
        anomalies,
        format!("3 ambiguous token {GNS} was announced 2 times: its movements are those of as many tokens")
    );
    assert_eq!(world.balance(GNS, ALICE).await.as_deref(), Some("3"), "it is applied nevertheless");
    // Another block in its place, then the first branch again, then both announcements in one block.
    put(&world, 3, "b3", "a2", &[]).await;
    assert_eq!(ambiguous(&world).await.0, clear);
    world.settle().await;
    put(&world, 3, "a3", "a2", &[("gno.land/p/demo/grc/grc20", GNS)]).await;
    world.settle().await;
    assert_eq!(ambiguous(&world).await.0, twice);
    put(&world, 1, "c1", "c0", &[(LIBRARY, GNS), (LIBRARY, GNS)]).await;
    world.settle().await;
    assert_eq!(ambiguous(&world).await.0, twice);
    // By hand.
    world.sql("delete from events where event_index = 11").await;
    world.settle().await;
    assert_eq!(ambiguous(&world).await, (clear, String::new()));
}

#[tokio::test]
async fn who_announces_is_a_setting_and_other_chains_have_none() {
    let world = World::new(64).await;
    put(
        &world,
        1,
        "a1",
        "a0",
        &[("gno.land/p/x/y", GNS), ("gno.land/p/x/y", GNS), (LIBRARY, WUGNOT), (LIBRARY, WUGNOT)],
    )
    .await;
    world.settle().await;
    let none = format!("{WUGNOT} false, {GNS} false");
    assert_eq!(ambiguous(&world).await.0, none, "a chain of kind other announces nothing");
    world.sql("update chains set kind = 'gno', announcers = '{gno.land/p/x/y}'").await;
    world.settle().await;
    assert_eq!(ambiguous(&world).await.0, format!("{WUGNOT} false, {GNS} true"));
}

#[tokio::test]
async fn announcements_are_found_by_their_index_whatever_events_hold() {
    let world = World::new(64).await;
    world.sql("update chains set kind = 'gno'").await;
    // More than an index row can hold, of bytes that cannot be packed.
    let huge: String =
        (0..200_000_u32).map(|n| char::from(b'a' + (n.wrapping_mul(2_654_435_761) >> 13) as u8 % 26)).collect();
    put(&world, 1, "a1", "a0", &[(LIBRARY, &huge), (LIBRARY, &huge), (LIBRARY, GNS), (LIBRARY, GNS)]).await;
    world
        .sql(
            "insert into events (chain_id, height, tx_index, event_index, emitter, name)
             select chain_id, 1, 1, n, 'gno.land/r/x', 'Other' from chains, generate_series(1, 50000) n;",
        )
        .await;
    // Many tokens are announced; those of one are found among them.
    world
        .sql(&format!(
            "insert into events (chain_id, height, tx_index, event_index, emitter, name, attributes)
             select chain_id, 1, 2, n, '{LIBRARY}', 'NewToken', jsonb_build_object('token', 'gno.land/r/many.T' || n)
             from chains, generate_series(1, 5000) n;
             analyze events"
        ))
        .await;
    world.settle().await;
    assert_eq!(ambiguous(&world).await.0, format!("{WUGNOT} false, {GNS} true"));
    let of_one = format!("select ambiguous from tokens where chain_id = 1 and token = '{GNS}'");
    // All of them are few beside all events: by which index they are found does not matter.
    for (sql, index) in [(&*of_one, "events_announcements"), ("select * from anomalies", "events_")] {
        let plan = world.db.query(&format!("explain {sql}"), &[]).await.unwrap();
        let plan: Vec<String> = plan.iter().map(|row| row.get(0)).collect();
        let plan = plan.join("\n");
        assert!(plan.contains(index), "{plan}");
        assert!(!plan.contains("Seq Scan on events"), "{plan}");
    }
}
