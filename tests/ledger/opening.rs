//! Opening balances: all lines or none, and the state follows.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use ebbtide::store::WakeMode;
use tempfile::NamedTempFile;

use crate::support::check::World;
use crate::support::process::ebbtide_command;
use crate::support::wait_until;
use crate::{refused, told};

fn csv(lines: &[&str]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    writeln!(file, "token,address,amount").unwrap();
    for line in lines {
        writeln!(file, "{line}").unwrap();
    }
    file
}

fn path(file: &NamedTempFile) -> &str {
    file.path().to_str().unwrap()
}

async fn stored(world: &World) -> String {
    let all = "select coalesce(string_agg(concat_ws(' ', token, address, amount), ', ' order by token, address), '')
               from opening_balances";
    world.one(all).await.unwrap()
}

#[tokio::test]
async fn an_import_changes_what_was_applied_and_what_is_applied_later() {
    // Finality 3: most of the chain is final when the import comes.
    for depth in [64, 3] {
        let world = World::new(depth).await;
        let file = csv(&["gold,old,1000", "silver,user1,-7"]);
        let text = told(&world, &["opening-balances", path(&file)]);
        assert_eq!(text, "Imported 2 opening balances of chain main.\n");
        world.branch("a", 1, 20, "a0").await;
        world.settle().await;
        world.settle().await;
        assert_eq!(world.balance("gold", "old").await.as_deref(), Some("1000"));
        assert_eq!(world.balance("silver", "user1").await.as_deref(), Some("-7"));

        let user: i128 = world.balance("gold", "user2").await.unwrap().parse().unwrap();
        let text = told(&world, &["opening-balances", path(&csv(&["gold,user2,5"])), "--chain", "main"]);
        assert_eq!(text, "Imported 1 opening balance of chain main. Its blocks are applied again on top of them.\n");
        assert_eq!(world.balance("gold", "user2").await, Some(user.to_string()), "nobody has applied it yet");
        world.settle().await;
        assert_eq!(world.balance("gold", "user2").await, Some((user + 5).to_string()));
        assert_eq!(world.balance("gold", "old").await.as_deref(), Some("1000"));

        let text = told(&world, &["opening-balances", path(&csv(&["gold,old,1"])), "--replace"]);
        assert!(text.starts_with("Imported 1 opening balance of chain main, in place of 3."), "{text}");
        world.settle().await;
        assert_eq!(world.balance("gold", "user2").await, Some(user.to_string()));
        assert_eq!(world.balance("gold", "old").await.as_deref(), Some("1"));
        assert_eq!(
            world.balance("silver", "user1").await,
            None,
            "no account was made by an opening balance that is gone"
        );
    }
}

#[tokio::test]
async fn a_running_processor_sees_an_import_at_once() {
    let world = World::new(64).await;
    world.branch("a", 1, 8, "a0").await;
    // The bell alone can wake it.
    let running = world.start(WakeMode::Listen, Duration::from_secs(3600));
    wait_until("the chain is applied", async || world.balance("gold", "user1").await).await;
    told(&world, &["opening-balances", path(&csv(&["gold,early,12"]))]);
    let early = wait_until("the import is applied", async || world.balance("gold", "early").await).await;
    assert_eq!(early, "12");
    world.check_soon().await;
    running.stop().await;
}

#[tokio::test]
async fn every_bad_line_is_named_and_nothing_is_imported() {
    let world = World::new(64).await;
    world.sql("update chains set kind = 'evm'").await;
    let account = |n: u8| format!("0x{n:040x}");
    let (a, b, gold) = (account(1), account(2), account(0xAA));
    world.sql(&format!("insert into opening_balances select chain_id, '{gold}', '{b}', 9 from chains")).await;
    let upper = a.to_uppercase();
    let lines = [
        format!("{gold},{a},1"),
        format!("{gold},alice,1"),
        format!("{gold},{a},1.5"),
        String::new(),
        // The same account as that of the first line, once both are in lower case.
        format!("{gold},{upper},2"),
        format!("{gold},{b},7"),
        format!("{gold},{a}"),
    ];
    let file = csv(&lines.each_ref().map(String::as_str));
    let text = refused(&world, &["opening-balances", path(&file)]);
    let expected = format!(
        "ebbtide: {}: nothing was imported, since 5 lines are at fault:
  line 3: address \"alice\" is not valid on a chain of kind evm
  line 4: its amount \"1.5\" is not a whole number in decimal below 2^256
  line 6: it is a second opening balance of {a} in {gold}; line 2 is the first
  line 7: {b} in {gold} has an opening balance already: 9
  line 8: it has 2 columns, not 3 (token,address,amount)
--replace drops the chain's opening balances first\n",
        path(&file)
    );
    assert_eq!(text, expected);
    assert_eq!(stored(&world).await, format!("{gold} {b} 9"));
    // Replaced, only what is wrong in itself is at fault.
    let text = refused(&world, &["opening-balances", path(&file), "--replace"]);
    assert!(text.contains("4 lines are at fault") && !text.contains("already"), "{text}");
    assert_eq!(stored(&world).await, format!("{gold} {b} 9"));

    let bad: Vec<String> = (0..47).map(|n| format!("{gold},{a},x{n}")).collect();
    let text = refused(&world, &["opening-balances", path(&csv(&bad.iter().map(String::as_str).collect::<Vec<_>>()))]);
    assert!(text.contains("47 lines are at fault") && text.trim_end().ends_with("and 27 more"), "{text}");
    assert_eq!(text.matches("\n  line ").count(), 20);
    let text = refused(&world, &["opening-balances", path(&csv(&[])), "--chain", "nobody"]);
    assert!(text.contains("there is no chain named nobody"), "{text}");
}

#[tokio::test]
async fn files_that_are_no_table_are_refused_whole() {
    let world = World::new(64).await;
    world.sql("insert into opening_balances select chain_id, 'gold', 'bob', 9 from chains").await;
    let refuses = |content: &[u8], why: &str| {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        let text = refused(&world, &["opening-balances", path(&file), "--replace"]);
        assert!(text.contains(why), "{text}");
    };
    refuses(b"", "the header line must be token,address,amount");
    refuses(b"gold,alice,5\n", "the header line must be");
    refuses(b"token,address,amount\ngold,\xff,5\ngold,alice,1\n", "line 2: it is not UTF-8 text");
    let long = [&b"token,address,amount\ngold,a,1\ngold,"[..], &[b'a'; 10_000], b",5\n"].concat();
    refuses(&long, "line 3 is longer than 8192 bytes");
    let text = refused(&world, &["opening-balances", "/no/such/file.csv"]);
    assert!(text.contains("/no/such/file.csv cannot be read; nothing was imported: No such file"), "{text}");
    assert_eq!(stored(&world).await, "gold bob 9");
}

#[tokio::test]
async fn fifty_thousand_lines_come_through_a_pipe() {
    let world = World::new(64).await;
    let mut command = ebbtide_command(&["opening-balances", "-", "--database-url", &world.url], &[]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    // As a spreadsheet writes it.
    let mut table = "\u{feff}token,address,amount\r\n".to_owned();
    let huge = "9".repeat(77);
    for n in 0..50_000 {
        table.push_str(&format!("\"token {}\",user{n},-{huge}\r\n", n % 7));
    }
    let writer = std::thread::spawn(move || input.write_all(table.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "Imported 50000 opening balances of chain main.\n");
    let sum = format!("select count(*) || ' ' || (sum(amount) = -50000 * {huge}) from opening_balances");
    assert_eq!(world.one(&sum).await.unwrap(), "50000 true");
    world.branch("a", 1, 2, "a0").await;
    world.settle().await;
    println!("50000 lines");
}
