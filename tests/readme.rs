//! The README says what is so: its psql session is run as printed, and its settings are all there are.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod support;

use std::collections::BTreeSet;
use std::process::Command;

use ebbtide::store::private::Search;
use support::{Ebbtide, Pg, wait_until};

const README: &str = include_str!("../README.md");

/// A statement with its continuation lines, and what psql prints.
struct Exchange {
    statement: String,
    printed: String,
}

/// psql's prompts: a new statement; one that goes on; inside a parenthesis; inside a quoted string.
const PROMPTS: [&str; 4] = ["ebbtide=# ", "ebbtide-# ", "ebbtide(# ", "ebbtide'# "];

fn exchanges() -> Vec<Exchange> {
    let mut all: Vec<Exchange> = Vec::new();
    let blocks = README.split("```").skip(1).step_by(2);
    for line in blocks.filter(|block| block.contains(PROMPTS[0])).flat_map(|block| block.lines().skip(1)) {
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

#[tokio::test]
async fn the_session_prints_what_the_readme_says() {
    let exchanges = exchanges();
    assert!(exchanges.len() >= 5, "the README holds a session: {}", exchanges.len());
    let pg = Pg::new().await;
    let client = pg.client().await;
    let _process = Ebbtide::spawn(&["process", "--database-url", &pg.url], &[]);
    let psql = Search::Installed.find().installations.first().expect("a server is installed").bin_dir.join("psql");
    for Exchange { statement, printed } in &exchanges {
        let output = Command::new(&psql)
            .args(["-X", "-c", statement, &pg.url])
            .env("PGOPTIONS", "-c search_path=ebbtide,public")
            .output()
            .unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(trimmed(&out), trimmed(printed), "{statement}\n{err}");
        // A person who types is slower than the processor, which applies each block once it is committed.
        let applied = "select not exists (select from blocks) or exists (
            select from checkpoints k join blocks b on b.chain_id = k.chain_id and b.hash = k.hash
            where k.redo_from is null and b.height = (select max(height) from blocks))";
        wait_until("the newest block is applied", async || {
            client.query_one(applied, &[]).await.unwrap().get::<_, bool>(0).then_some(())
        })
        .await;
    }
    println!("{} statements", exchanges.len());
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
    let source = include_str!("../src/config/file.rs");
    let tables = ["chains", "projections", "api"];
    let settings: Vec<&str> = source
        .lines()
        .filter_map(|line| line.strip_prefix("    pub "))
        .filter_map(|line| line.split_once(':'))
        .map(|(name, _)| name)
        .filter(|name| !name.contains(' ') && !tables.contains(name))
        .collect();
    assert!(settings.len() > 20, "{settings:?}");
    for setting in &settings {
        let named = README.lines().filter(|line| line.starts_with('|')).any(|line| {
            let column = line.split('|').nth(2).unwrap_or_default();
            column.trim().trim_matches('`').trim_start_matches("[api] ") == *setting
        });
        assert!(named, "the README's tables do not name the setting {setting}");
    }
    println!("{} settings", settings.len());
}
