//! Refused events: seen, fixed, tried again.

use serde_json::Value;

use crate::support::check::World;
use crate::{ebbtide, refused, said, told};

const GOLD: &str = "0x00000000000000000000000000000000000000aa";
const ALICE: &str = "0x00000000000000000000000000000000000000a1";

/// Four blocks of an evm chain; in 2 and 3 are movements that no account of such a chain can have made.
async fn refusing(finality_depth: i64) -> World {
    let world = World::new(finality_depth).await;
    world.sql("update chains set kind = 'evm'").await;
    let good = format!("{GOLD} - {ALICE} 5");
    world.put(1, "0x01", "0x00", &[&good]).await;
    world.put(2, "0x02", "0x01", &[&good, &format!("{GOLD} {ALICE} bob 2")]).await;
    world.put(3, "0x03", "0x02", &[&format!("gold - {ALICE} 7"), &format!("{GOLD} {ALICE} bob 1"), &good]).await;
    world.put(4, "0x04", "0x03", &[&good]).await;
    world.settle().await;
    assert_eq!(world.one("select count(*) from rejected_events").await.unwrap(), "3");
    world
}

#[tokio::test]
async fn refused_events_are_listed_with_their_reasons() {
    let world = refusing(64).await;
    let text = told(&world, &["rejected", "list"]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert!(lines[0].starts_with("CHAIN  PROJECTION      BLOCK     TX  EVENT  REASON"), "{text}");
    assert!(lines[1].starts_with("main   token_balances  2 (0x02)  1   3      bad_address  {"), "{text}");
    assert!(lines[2].contains("bad_token") && lines[2].contains(r#""to_address":"0x0"#), "{text}");
    let text = told(&world, &["rejected", "list", "--reason", "bad_token", "--json"]);
    let list: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 1);
    assert_eq!(list[0]["height"], 3);
    assert_eq!(list[0]["raw"]["amount"], "7");
    assert_eq!(list[0]["block_hash"], "0x03");
    let text = told(&world, &["rejected", "list", "--limit", "1", "--chain", "main"]);
    assert!(text.ends_with("and 2 more (--limit)\n"), "{text}");
    let text = told(&world, &["rejected", "list", "--projection", "source"]);
    assert_eq!(text, "No event was refused.\n");
    for (args, why) in [
        (["--projection", "nobody"], "there is no projection named nobody"),
        (["--chain", "nobody"], "there is no chain named nobody"),
    ] {
        let text = refused(&world, &[&["rejected", "list"][..], &args].concat());
        assert!(text.contains(why), "{text}");
        let text = refused(&world, &[&["rejected", "retry", "--all"][..], &args].concat());
        assert!(text.contains(why), "{text}");
    }
    // Also where there is nothing at all to look through.
    let empty = World::new(64).await;
    empty.sql("select drop_chain('main')").await;
    for args in [&["rejected", "list"][..], &["rejected", "retry", "--all"], &["opening-balances", "/dev/null"]] {
        let text = refused(&empty, &[args, &["--chain", "nobody"]].concat());
        assert!(text.contains("there is no chain named nobody"), "{text}");
    }
    let output = ebbtide(&world, &["rejected", "retry"]);
    assert_eq!(output.status.code(), Some(2), "which events must be said: {}", said(&output));
}

#[tokio::test]
async fn a_retry_applies_in_its_place_what_fits_by_now() {
    // 64: undone and applied again. 0: all is final, so it is a deep change.
    for depth in [64, 0] {
        let world = refusing(depth).await;
        world.settle().await;
        // Nothing was fixed: refused again, and the rest is what it was.
        let text = told(&world, &["rejected", "retry", "--height", "2"]);
        assert!(
            text.starts_with("Chain main: 1 event is tried again; every projection applies block 2 again."),
            "{text}"
        );
        assert_eq!(text.contains("deep change"), depth == 0, "{text}");
        let redo = world.one("select redo_from from checkpoints where projection = 'token_balances'").await;
        assert_eq!(redo.as_deref(), (depth == 0).then_some("2"));
        world.settle().await;
        assert_eq!(world.one("select count(*) from rejected_events").await.unwrap(), "3");
        assert_eq!(world.balance(GOLD, ALICE).await.as_deref(), Some("20"));

        // Another grammar takes them. That alone moves nothing.
        world.sql("update chains set kind = 'other'").await;
        world.settle().await;
        assert_eq!(world.balance(GOLD, "bob").await, None);
        told(&world, &["rejected", "retry", "--height", "2", "--projection", "token_balances"]);
        world.settle().await;
        // Going back to block 2, block 3 was applied again as well.
        assert_eq!(world.balance(GOLD, "bob").await.as_deref(), Some("3"));
        assert_eq!(world.balance(GOLD, ALICE).await.as_deref(), Some("17"));
        assert_eq!(world.balance("gold", ALICE).await.as_deref(), Some("7"));
        assert_eq!(told(&world, &["rejected", "list"]), "No event was refused.\n");
        let text = told(&world, &["rejected", "retry", "--all"]);
        assert_eq!(text, "No such event was refused; nothing to do.\n");
        let changes = format!(
            "select string_agg(height || ':' || delta, ' ' order by height) from balance_changes
                               where address = 'bob' and token = '{GOLD}'"
        );
        assert_eq!(world.one(&changes).await.unwrap(), "2:2 3:1", "each in its own block");
    }
}

#[tokio::test]
async fn a_retry_of_all_goes_back_to_the_lowest() {
    let world = refusing(64).await;
    world.sql("update chains set kind = 'other'").await;
    let text = told(&world, &["rejected", "retry", "--all"]);
    assert!(text.contains("3 events are tried again; every projection applies 2 blocks from 2 on again."), "{text}");
    world.settle().await;
    assert_eq!(world.balance(GOLD, "bob").await.as_deref(), Some("3"));
    assert_eq!(world.one("select count(*) from rejected_events").await.unwrap(), "0");
}

#[tokio::test]
async fn what_a_function_refused_is_tried_again_as_well() {
    let world = World::new(64).await;
    world
        .sql(
            "create table public.known (name text primary key);
             create table public.seen (chain_id bigint, height bigint, name text, primary key (chain_id, height));
             create function public.note(chain bigint, at bigint) returns void language plpgsql as $$
             declare e record;
             begin
                for e in select v.*, b.hash from events v join blocks b using (chain_id, height)
                         where v.chain_id = chain and v.height = at loop
                    if exists (select from public.known k where k.name = e.name) then
                        insert into public.seen values (chain, at, e.name);
                    else
                        perform reject_event(chain, 'notes', at, e.hash, e.tx_index, e.event_index, e.attributes, 'unknown_name');
                    end if;
                end loop;
             end $$;
             select create_projection('notes', 'public.note(bigint,bigint)', '{public.seen}');
             insert into known values ('a');",
        )
        .await;
    for (height, name) in [(1, "a"), (2, "b"), (3, "a")] {
        let sql = format!(
            "select put_block('main', {height}, 'h{height}', 'h{}', events => '[{{\"tx_index\":0,\"event_index\":0,
             \"emitter\":\"x\",\"name\":\"{name}\"}}]')",
            height - 1
        );
        world.sql(&sql).await;
    }
    world.settle().await;
    let seen = "select string_agg(height || name, ' ' order by height) from public.seen";
    assert_eq!(world.one(seen).await.unwrap(), "1a 3a");
    assert!(told(&world, &["rejected", "list", "--projection", "notes"]).contains("unknown_name"));
    // Of another projection: none.
    let text = told(&world, &["rejected", "retry", "--all", "--projection", "token_balances"]);
    assert_eq!(text, "No such event was refused; nothing to do.\n");
    world.sql("insert into public.known values ('b')").await;
    world.settle().await;
    assert_eq!(world.one(seen).await.unwrap(), "1a 3a", "nothing was asked for yet");
    told(&world, &["rejected", "retry", "--all", "--projection", "notes"]);
    world.settle().await;
    assert_eq!(world.one(seen).await.unwrap(), "1a 2b 3a");
    assert_eq!(world.one("select count(*) from rejected_events").await.unwrap(), "0");
}

#[tokio::test]
async fn what_the_source_refused_is_left_alone_and_read_again_from_the_source() {
    let world = World::new(64).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("blocks.ndjson");
    let block = |height: u64, amount: &str| {
        format!(
            r#"{{"event":"block","height":{height},"hash":"f{height}","parent_hash":"f{}","token_events":[
            {{"tx_index":0,"event_index":0,"token":"gold","to_address":"alice","amount":{amount}}}]}}"#,
            height - 1
        )
        .replace('\n', "")
    };
    let write = |amount: &str| {
        std::fs::write(&file, [block(1, "1"), block(2, amount), block(3, "4")].join("\n") + "\n").unwrap();
    };
    let read = || {
        let path = file.to_str().unwrap();
        told(&world, &["sync", "--source", "file", "--file", path, "--chain", "main"]);
    };
    write("\"many\"");
    read();
    world.settle().await;
    assert_eq!(world.balance("gold", "alice").await.as_deref(), Some("5"));
    let revisions = "select string_agg(revision::text, ' ' order by height) from blocks";
    let before = world.one(revisions).await;
    for args in [&["--all"][..], &["--all", "--projection", "source"], &["--height", "2"]] {
        let text = refused(&world, &[&["rejected", "retry"][..], args].concat());
        assert!(text.contains("1 event was rejected by the source and cannot be retried"), "{text}");
        assert!(text.contains("select drop_blocks('main', 2)"), "{text}");
    }
    assert_eq!(world.one(revisions).await, before);
    assert_eq!(world.one("select count(*) from rejected_events").await.unwrap(), "1");
    // What the message says works.
    write("2");
    world.sql("select drop_blocks('main', 2)").await;
    read();
    world.settle().await;
    assert_eq!(world.balance("gold", "alice").await.as_deref(), Some("7"));
    assert_eq!(world.one("select count(*) from rejected_events").await.unwrap(), "0");
}
