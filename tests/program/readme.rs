//! The README says what is so: its psql session is run as printed, and its settings are all there are.

use std::collections::BTreeSet;
use std::process::Command;

use ebbtide::chain::Event;
use ebbtide::private_postgres::Search;
use ebbtide::projections::option_vaults::Layout;
use serde_json::{Value, json};

use crate::story;
use crate::support::fake_indexer::{FakeIndexer, blocks_from, transfer};
use crate::support::fake_starknet::{FakeStarknet, chain, tx};
use crate::support::{Ebbtide, Pg, free_addr, wait_until};

const README: &str = include_str!("../../README.md");

/// A statement with its continuation lines, and what psql prints.
struct Exchange {
    statement: String,
    printed: String,
}

/// psql's prompts: a new statement; one that goes on; inside a parenthesis, a quoted string, a dollar-quoted one.
const PROMPTS: [&str; 5] = ["ebbtide=# ", "ebbtide-# ", "ebbtide(# ", "ebbtide'# ", "ebbtide$# "];

/// The program's command line in a session, if it has one, and what is typed into psql.
type Session = (Option<String>, Vec<Exchange>);

/// The sessions of the README, those without a command of their own joined to one.
fn sessions() -> Vec<Session> {
    let blocks = README.split("```").skip(1).step_by(2).filter(|block| block.contains(PROMPTS[0]));
    let mut sessions: Vec<Session> = Vec::new();
    for block in blocks {
        let command = block.lines().find_map(|line| line.strip_prefix("$ ")).map(str::to_owned);
        let exchanges = exchanges(block);
        match sessions.iter_mut().find(|(known, _)| *known == command) {
            Some((_, all)) => all.extend(exchanges),
            None => sessions.push((command, exchanges)),
        }
    }
    sessions
}

fn exchanges(block: &str) -> Vec<Exchange> {
    let mut all: Vec<Exchange> = Vec::new();
    for line in block.lines().skip(1).filter(|line| !line.starts_with("$ ")) {
        if let Some(first) = line.strip_prefix(PROMPTS[0]) {
            all.push(Exchange { statement: first.to_owned(), printed: String::new() });
            continue;
        }
        let last = all.last_mut().expect("a session begins with a prompt");
        match PROMPTS.iter().find_map(|prompt| line.strip_prefix(prompt)) {
            Some(more) => last.statement = format!("{}\n{more}", last.statement),
            None => last.printed = format!("{}{line}\n", last.printed),
        }
    }
    all
}

/// Spaces at the ends of lines, which a README does not keep, and blank lines at the end.
fn trimmed(text: &str) -> String {
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n").trim_end().to_owned()
}

/// Runs a session's statements in psql, one after the other, each once the program has done what follows from the last.
async fn converse(pg: &Pg, exchanges: &[Exchange], blocks: i64) {
    let client = pg.client().await;
    let psql = Search::Installed.find().installations.first().expect("a server is installed").bin_dir.join("psql");
    // A person who types is slower than the program, which applies each block once it is committed.
    let settled = "select coalesce((select max(height) from blocks), 0) >= $1 and not exists (
        select from projections p join chains c on coalesce(p.kind, c.kind) = c.kind and coalesce(p.chain_id, c.chain_id) = c.chain_id
        left join checkpoints k on k.projection = p.name and k.chain_id = c.chain_id
        where exists (select from blocks b where b.chain_id = c.chain_id)
          and (k.redo_from is not null or k.hash is distinct from
               (select b.hash from blocks b where b.chain_id = c.chain_id order by b.height desc limit 1)))
        and not exists (select from vault_registry r join chains c using (chain_id) where c.listed_only and not r.caught_up)
        and not exists (select from applied_blocks a join blocks b using (chain_id, height) where a.revision <> b.revision)";
    for Exchange { statement, printed } in exchanges {
        wait_until("everything is applied", async || {
            client.query_one(settled, &[&blocks]).await.unwrap().get::<_, bool>(0).then_some(())
        })
        .await;
        let output = Command::new(&psql)
            .args(["-X", "-c", statement, &pg.url])
            .env("PGOPTIONS", "-c search_path=ebbtide,public")
            .output()
            .unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(trimmed(&format!("{out}{err}")), trimmed(printed), "{statement}");
    }
    println!("{} statements", exchanges.len());
}

#[tokio::test]
async fn the_psql_sessions_print_what_the_readme_says() {
    let (_, exchanges) = sessions().into_iter().find(|(command, _)| command.is_none()).unwrap();
    assert!(exchanges.len() >= 12, "the README holds a session: {}", exchanges.len());
    let pg = Pg::new().await;
    // As `make run`: beside the reader's chain there is the built-in one, which never rests.
    let operator = free_addr().to_string();
    let words = ["run", "--source", "devnet", "--database-url", &pg.url, "--listen", "127.0.0.1:0"];
    let _run = Ebbtide::spawn(&[&words[..], &["--operator-listen", &operator]].concat(), &[]);
    converse(&pg, &exchanges, 2).await;
}

/// The README's command, with the URL of the test's server, on the test's database.
async fn follow(source: &str, url: &str, blocks: i64) {
    let (command, exchanges) =
        sessions().into_iter().find(|(c, _)| c.as_ref().is_some_and(|c| c.contains(source))).expect(source);
    let command = command.unwrap();
    let mut words: Vec<&str> = command.split_whitespace().skip(1).collect();
    let at = words.iter().position(|word| *word == "--url").unwrap();
    words[at + 1] = url;
    let pg = Pg::new().await;
    let operator = free_addr().to_string();
    words.extend(["--database-url", &pg.url, "--listen", "127.0.0.1:0", "--operator-listen", &operator]);
    let _run = Ebbtide::spawn(&words, &[]);
    converse(&pg, &exchanges, blocks).await;
}

#[tokio::test]
async fn the_gno_session_prints_what_the_readme_says() {
    const ALICE: &str = "g1jg8mtutu9khhfwc4nxmuhcpftf0pajdhfvsqf5";
    const BOB: &str = "g1ffzxha57dh0qgv9ma5v393ur0zexfvp6lsjpae";
    let (wugnot, gns) = ("gno.land/r/gnoland/wugnot.wugnot", "gno.land/r/gnoswap/gns.GNS");
    // The newest block is left for later.
    let blocks = blocks_from(0, 5, None, "a", |height| match height {
        1 => vec![vec![transfer(wugnot, "", ALICE, 500)]],
        2 => vec![vec![transfer(gns, "", BOB, 1_000)], vec![transfer(wugnot, ALICE, BOB, 120)]],
        3 => vec![vec![transfer(gns, BOB, ALICE, 40), transfer(gns, BOB, "", 10)]],
        _ => Vec::new(),
    });
    let indexer = FakeIndexer::start(blocks).await;
    follow("gno", &indexer.url(), 3).await;
}

#[tokio::test]
async fn the_starknet_session_prints_what_the_readme_says() {
    let told = story::told(Layout::A, false);
    // The story's block 101 is block 1.
    let node = FakeStarknet::start(chain(0, 9, None, "a", |number| {
        let events =
            told.iter().filter(|(height, ..)| u64::from(*height) == number + 100).flat_map(|(_, _, events)| events);
        let fake = |e: &Event| -> Value { json!({"from_address": e.emitter, "keys": e.keys, "data": e.data}) };
        vec![tx(events.map(fake).collect())]
    }))
    .await;
    follow("starknet", &node.url(), 8).await;
}

/// Words of the program's help, or of the README's tables, that name a flag.
fn flags(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
        .filter(|word| word.strip_prefix("--").is_some_and(|name| name.starts_with(|c: char| c.is_ascii_lowercase())))
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_readme_names_every_flag_and_no_other() {
    let mut known = BTreeSet::new();
    let commands = [
        "run",
        "sync",
        "process",
        "serve",
        "config",
        "migrate",
        "status",
        "verify",
        "replay",
        "pause",
        "resume",
        "opening-balances",
        "rejected",
        "psql",
    ];
    let listed = Ebbtide::succeed(&["--help"], &[]);
    let listed: Vec<&str> = listed
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter(|line| !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|word| *word != "help")
        .collect();
    assert_eq!(
        listed.iter().copied().collect::<BTreeSet<_>>(),
        commands.into_iter().collect(),
        "the commands are these"
    );
    let below = ["rejected list", "rejected retry"];
    for command in commands.into_iter().chain(below) {
        let words: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let help = Ebbtide::succeed(&words, &[]);
        // A flag begins its line; others are only spoken of.
        let defined = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
        known.extend(defined.flat_map(|line| flags(line.split("  ").next().unwrap_or(line))));
        assert!(README.contains(command), "the README does not name the command {command}");
    }
    for ubiquitous in ["--help", "--version"] {
        known.remove(ubiquitous);
    }
    let named = flags(README);
    let missing: Vec<_> = known.difference(&named).collect();
    assert!(missing.is_empty(), "the README does not name {missing:?}");
    // Compose's own, which is no flag of ours.
    let unknown: Vec<_> = named.difference(&known).filter(|flag| *flag != "--volumes").collect();
    assert!(unknown.is_empty(), "the README names {unknown:?}, which no command takes");
    println!("{} flags", known.len());
}

#[test]
fn the_readme_names_every_setting_of_the_file() {
    let sources = [
        include_str!("../../src/config/file.rs"),
        include_str!("../../src/config/chain.rs"),
        include_str!("../../src/config/sources.rs"),
    ];
    // Parts of the structs, which are no settings themselves.
    let tables = ["chains", "projections", "api", "common"];
    let settings: Vec<&str> = sources
        .iter()
        .flat_map(|source| source.lines())
        .filter_map(|line| line.strip_prefix("    pub "))
        .filter_map(|line| line.split_once(':'))
        .map(|(name, _)| name)
        .filter(|name| !name.contains(' ') && !tables.contains(name))
        .collect();
    assert!(settings.len() > 50, "{settings:?}");
    for setting in &settings {
        let named = README.lines().filter(|line| line.starts_with('|')).any(|line| {
            let column = line.split('|').nth(2).unwrap_or_default();
            column.trim().trim_matches('`').trim_start_matches("[api] ") == *setting
        });
        assert!(named, "the README's tables do not name the setting {setting}");
    }
    println!("{} settings", settings.len());
}
