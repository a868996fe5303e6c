//! Each setting of `[projections.token_balances]`, each of its values, by flag, variable and file, in the built program.

use std::process::Output;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::check::World;
use crate::support::{Ebbtide, free_addr, wait_until};
use crate::{refused, said, told};

/// The three ways to say one setting.
fn ways(setting: &str, value: &str) -> Vec<Said> {
    let flag = format!("--{}", setting.replace('_', "-"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ebbtide.toml");
    std::fs::write(&file, format!("[projections.token_balances]\n{setting} = \"{value}\"\n")).unwrap();
    let variable = format!("EBBTIDE_PROJECTIONS__TOKEN_BALANCES__{}", setting.to_uppercase());
    vec![
        Said { args: vec![flag, value.to_owned()], variable: None, folder: None },
        Said { args: Vec::new(), variable: Some((variable, value.to_owned())), folder: None },
        Said {
            args: vec!["--config".to_owned(), file.to_str().unwrap().to_owned()],
            variable: None,
            folder: Some(folder),
        },
    ]
}

#[derive(Default)]
struct Said {
    args: Vec<String>,
    variable: Option<(String, String)>,
    folder: Option<TempDir>,
}

impl Said {
    fn command<'a>(&'a self, world: &'a World, command: &[&'a str]) -> (Vec<&'a str>, Vec<(&'a str, &'a str)>) {
        let mut args = command.to_vec();
        args.extend(["--database-url", &world.url]);
        args.extend(self.args.iter().map(String::as_str));
        let env = self.variable.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert!(self.folder.as_ref().is_none_or(|folder| folder.path().exists()));
        (args, env)
    }

    fn process(&self, world: &World) -> Output {
        let (args, env) = self.command(world, &["process", "--once"]);
        Ebbtide::output(&args, &env)
    }

    fn goes_on(&self, world: &World) {
        let output = self.process(world);
        assert!(output.status.success(), "{:?} {:?}: {}", self.args, self.variable, said(&output));
    }

    /// It must halt, and `status` must say why; that message.
    fn halts(&self, world: &World) -> String {
        let output = self.process(world);
        assert_eq!(output.status.code(), Some(1), "{:?} {:?}: {}", self.args, self.variable, said(&output));
        refused_status(world)
    }

    /// What REST says, and how many negative balances it counted.
    async fn rest(&self, world: &World, path: &str) -> (u16, Value, Option<String>) {
        let listen = free_addr().to_string();
        let (mut args, env) = self.command(world, &["serve", "--listen", &listen]);
        // It only reads, and takes no flag that says how blocks are applied.
        if let Some(at) = args.iter().position(|arg| *arg == "--history") {
            args.drain(at..at + 2);
        }
        let _serve = Ebbtide::spawn(&args, &env);
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url = format!("http://{listen}{path}");
        let answer = wait_until("the interface answers", async || reqwest::get(&url).await.ok()).await;
        let counted = answer.headers().get("x-negative-balances").map(|v| v.to_str().unwrap().to_owned());
        (answer.status().as_u16(), serde_json::from_str(&answer.text().await.unwrap()).unwrap(), counted)
    }
}

fn refused_status(world: &World) -> String {
    let output = crate::ebbtide(world, &["status"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let text = said(&output);
    assert!(text.contains("halted: "), "{text}");
    text
}

async fn with_debt() -> World {
    let world = World::new(64).await;
    world.put(1, "a1", "a0", &["gold - alice 5"]).await;
    world.put(2, "a2", "a1", &["gold alice bob 9"]).await;
    world
}

#[tokio::test]
async fn negative_balances_are_shown_as_zero_or_as_they_are() {
    let mut cases = vec![(Said::default(), "0")];
    cases.extend(ways("negative_balances", "zero").into_iter().map(|way| (way, "0")));
    cases.extend(ways("negative_balances", "show").into_iter().map(|way| (way, "-4")));
    for (way, shown) in &cases {
        let world = with_debt().await;
        way.goes_on(&world);
        world.check().await;
        assert_eq!(world.balance("gold", "alice").await.as_deref(), Some("-4"), "the ledger is exact in any case");
        let (status, answer, counted) = way.rest(&world, "/tokens/gold/balances?address=alice&zero=true").await;
        assert_eq!((status, counted.as_deref()), (200, Some("1")), "{answer}");
        assert!(answer.to_string().contains(&format!(r#""amount":"{shown}""#)), "{shown}: {answer}");
    }
    println!("{} ways", cases.len());
}

#[tokio::test]
async fn negative_balances_halt_before_the_block() {
    for way in ways("negative_balances", "halt") {
        let world = with_debt().await;
        let text = way.halts(&world);
        assert!(text.contains("block 2 would bring the balance of alice in gold to -4"), "{text}");
        assert_eq!(world.one("select height from checkpoints where projection = 'token_balances'").await.unwrap(), "1");
        world.sql("insert into opening_balances select chain_id, 'gold', 'alice', 4 from chains").await;
        told(&world, &["resume"]);
        way.goes_on(&world);
        world.check().await;
        assert_eq!(world.balance("gold", "alice").await.as_deref(), Some("0"));
    }
}

const GOLD: &str = "0x00000000000000000000000000000000000000aa";
const ALICE: &str = "0x00000000000000000000000000000000000000a1";

async fn with_a_bad_event() -> World {
    let world = World::new(64).await;
    world.sql("update chains set kind = 'evm'").await;
    world.put(1, "0x01", "0x00", &[&format!("{GOLD} - {ALICE} 5")]).await;
    world.put(2, "0x02", "0x01", &[&format!("{GOLD} - {ALICE} 1"), &format!("{GOLD} {ALICE} bob 1")]).await;
    world
}

#[tokio::test]
async fn a_bad_event_is_set_aside_or_halts_before_its_block() {
    let mut quarantine = ways("on_bad_event", "quarantine");
    quarantine.push(Said::default());
    for way in quarantine {
        let world = with_a_bad_event().await;
        way.goes_on(&world);
        world.check().await;
        assert_eq!(world.balance(GOLD, ALICE).await.as_deref(), Some("6"), "the rest of the block is applied");
        assert_eq!(world.one("select reason from rejected_events").await.unwrap(), "bad_address");
    }
    for way in ways("on_bad_event", "halt") {
        let world = with_a_bad_event().await;
        let text = way.halts(&world);
        assert!(text.contains("block 2 (0x02): event 3 of transaction 1 cannot be applied: bad_address"), "{text}");
        assert_eq!(world.balance(GOLD, ALICE).await.as_deref(), Some("5"));
        assert_eq!(world.one("select count(*) from rejected_events").await.unwrap(), "0");
        // Not fixed: it halts again. Then it is.
        told(&world, &["resume"]);
        way.halts(&world);
        world.sql(&format!("update token_events set to_address = '{ALICE}' where to_address = 'bob'")).await;
        told(&world, &["resume"]);
        way.goes_on(&world);
        world.check().await;
        assert_eq!(world.balance(GOLD, ALICE).await.as_deref(), Some("6"));
    }
}

/// Everything is final, and a final block is replaced with all above it.
async fn deeply_changed() -> World {
    let world = World::new(3).await;
    world.branch("a", 1, 20, "a0").await;
    Said::default().goes_on(&world);
    Said::default().goes_on(&world);
    assert_eq!(world.one("select final_height from chains").await.unwrap(), "17");
    world.branch("b", 5, 20, "a4").await;
    world
}

#[tokio::test]
async fn a_deep_change_rebuilds_or_halts() {
    let mut rebuild = ways("on_deep_change", "rebuild");
    rebuild.push(Said::default());
    for way in rebuild {
        let world = deeply_changed().await;
        way.goes_on(&world);
        world.check().await;
        assert!(world.balance("silver", "only_b").await.is_some());
    }
    for way in ways("on_deep_change", "halt") {
        let world = deeply_changed().await;
        let text = way.halts(&world);
        assert!(text.contains("the chain changed at or below its final height; `ebbtide resume` rebuilds"), "{text}");
        assert!(world.balance("silver", "only_b").await.is_none(), "it keeps what it had");
        told(&world, &["resume"]);
        way.goes_on(&world);
        world.check().await;
        assert!(world.balance("silver", "only_b").await.is_some());
    }
}

#[tokio::test]
async fn a_deep_change_halts_another_projection_where_its_own_section_says_so() {
    let world = World::new(3).await;
    world
        .sql(
            "create table public.seen (chain_id bigint, height bigint, hash text, primary key (chain_id, height));
             create function public.note(bigint, bigint) returns void language sql as $$
                insert into public.seen select chain_id, height, hash from blocks where chain_id = $1 and height = $2 $$;
             select create_projection('mine', 'public.note(bigint,bigint)', '{public.seen}')",
        )
        .await;
    world.branch("a", 1, 20, "a0").await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ebbtide.toml");
    std::fs::write(&file, "[projections.mine]\non_deep_change = \"halt\"\n").unwrap();
    let args = vec!["--config".to_owned(), file.to_str().unwrap().to_owned()];
    let way = Said { args, variable: None, folder: Some(folder) };
    way.goes_on(&world);
    way.goes_on(&world);
    world.branch("b", 5, 20, "a4").await;
    let text = way.halts(&world);
    assert!(text.lines().any(|l| l.contains(" mine ") && l.contains("halted: the chain changed")), "{text}");
    let seen = "select string_agg(left(hash, 1), '' order by height) from public.seen";
    assert_eq!(world.one(seen).await.unwrap(), "a".repeat(20));
    // The ledger, which is not told to halt, has gone on.
    let ledger = "select hash from checkpoints where projection = 'token_balances'";
    assert_eq!(world.one(ledger).await.unwrap(), "b20");
    told(&world, &["resume", "--projection", "mine"]);
    way.goes_on(&world);
    assert_eq!(world.one(seen).await.unwrap(), format!("{}{}", "a".repeat(4), "b".repeat(16)));
    world.check().await;
}

#[tokio::test]
async fn history_is_kept_in_full_or_as_a_window() {
    let mut cases: Vec<_> = ways("history", "full").into_iter().map(|way| (way, true)).collect();
    cases.push((Said::default(), true));
    cases.extend(ways("history", "window").into_iter().map(|way| (way, false)));
    for (way, full) in cases {
        let world = World::new(3).await;
        world.branch("a", 1, 60, "a0").await;
        way.goes_on(&world);
        world.branch("a", 61, 70, "a60").await;
        way.goes_on(&world);
        way.goes_on(&world);
        world.check().await;
        let number = async |sql: &str| world.one(sql).await.unwrap().parse::<i64>().unwrap();
        let moved = number("select count(distinct (height, token)) from token_events").await;
        let kept = number("select count(*) from balance_changes").await;
        assert_eq!(kept >= moved, full, "{kept} changes of {moved} (height, token) are kept");
        let (status, answer, _) = way.rest(&world, "/tokens/gold/balances?at=10").await;
        assert_eq!(status, if full { 200 } else { 410 }, "{answer}");
        // Either can be undone as far as it is not final.
        world.branch("b", 69, 72, "a68").await;
        way.goes_on(&world);
        world.check().await;
    }
}

#[tokio::test]
async fn a_value_that_is_none_is_refused_with_those_that_are() {
    let world = World::new(64).await;
    for (setting, known) in [
        ("negative_balances", ["zero", "show", "halt"].as_slice()),
        ("on_bad_event", &["quarantine", "halt"]),
        ("on_deep_change", &["rebuild", "halt"]),
        ("history", &["full", "window"]),
    ] {
        for way in ways(setting, "maybe") {
            let output = way.process(&world);
            let text = said(&output);
            assert_eq!(output.status.code(), Some(2), "{text}");
            assert!(text.contains("maybe") && known.iter().all(|word| text.contains(word)), "{text}");
        }
    }
    let text = refused(&world, &["pause", "--projection", "nobody"]);
    assert!(text.contains("there is no projection named nobody"), "{text}");
}
