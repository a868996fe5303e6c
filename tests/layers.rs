//! Reads src/ and fails on an import that points the wrong way. A rule nobody checks is a wish.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What each part of the crate may name of the others. Neighbours of one line do not name each other.
const LAYERS: &[(&str, &[&str])] = &[
    // Plain values: nothing of ours. The metrics and the tracing setup: nothing either.
    ("chain", &[]),
    ("ops", &[]),
    ("sources", &["chain", "ops"]),
    ("store", &["chain", "ops"]),
    // What recomputes a projection of the program is beside its code, in the frame that verify gives.
    ("projections", &["chain", "store", "verify"]),
    ("sync", ABOVE),
    ("process", ABOVE),
    ("api", ABOVE),
    // Recomputes by code of its own: a fault of a projection must not hide itself.
    ("verify", &["chain", "ops", "sources", "store"]),
    // Runs the server's programs, and knows nothing of what is kept in it.
    ("private_postgres", &[]),
];
const ABOVE: &[&str] = &["chain", "ops", "projections", "sources", "store"];
/// These put the parts together and may name all of them.
const TOP: &[&str] = &["main", "lib", "config", "commands", "watch", "heart"];

/// Crates that only some parts may name, with the reason.
const CRATES: &[(&[&str], &[&str], &str)] = &[
    (
        &["deadpool_postgres", "postgres_types", "refinery", "tokio_postgres_rustls"],
        &["store"],
        "only store knows how Postgres is connected to and migrated",
    ),
    (
        &["tokio_postgres"],
        &["store", "verify", "private_postgres"],
        "only store speaks to Postgres; verify does by statements of its own, so that it shares none with what it \
         checks, and private_postgres makes the database before there is one to connect to",
    ),
    (&["reqwest", "tokio_tungstenite"], &["sources"], "only sources go out"),
    (&["warp", "hyper", "hyper_util"], &["api", "ops"], "only the API and the operator port serve HTTP"),
];

/// What makes the same input give another output, or waits.
const IMPURE: &[&str] = &[
    "tokio",
    "tokio_util",
    "futures",
    "async_trait",
    "tracing",
    "rand",
    "std::net",
    "std::fs",
    "std::env",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
];

const MOST_LINES: usize = 600;

/// One path of the source, such as `crate::chain::Block`.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Clone)]
struct Named {
    path: String,
    reexported: bool,
}

#[derive(Debug, PartialEq, Eq, Clone)]
enum Token {
    Word(String),
    PathSep,
    Sign(char),
}

/// The words and signs of a source text, without comments, literals and test modules.
fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = Vec::new();
    let mut i = 0;
    while i < chars.len() {
        let c = at(i);
        if c == '/' && at(i + 1) == '/' {
            while i < chars.len() && at(i) != '\n' {
                i += 1;
            }
        } else if c == '/' && at(i + 1) == '*' {
            let mut depth = 0;
            loop {
                match (at(i), at(i + 1)) {
                    ('/', '*') => (depth, i) = (depth + 1, i + 2),
                    ('*', '/') => (depth, i) = (depth - 1, i + 2),
                    _ => i += 1,
                }
                if depth == 0 || i >= chars.len() {
                    break;
                }
            }
        } else if c == '"' {
            i += 1;
            while i < chars.len() && at(i) != '"' {
                i += if at(i) == '\\' { 2 } else { 1 };
            }
            i += 1;
        } else if c == '\'' {
            // A lifetime has no closing quote: 'a, but 'a'.
            if at(i + 1) == '\\' {
                i += 3;
                while i < chars.len() && at(i) != '\'' {
                    i += 1;
                }
                i += 1;
            } else {
                i += if at(i + 2) == '\'' { 3 } else { 1 };
            }
        } else if is_word(c) {
            let begin = i;
            while is_word(at(i)) {
                i += 1;
            }
            let word: String = chars[begin..i].iter().collect();
            let hashes = (0..).take_while(|n| at(i + n) == '#').count();
            if matches!(word.as_str(), "r" | "br" | "cr") && at(i + hashes) == '"' {
                // A raw literal ends at a quote with as many hashes.
                i += hashes + 1;
                while i < chars.len() && !(at(i) == '"' && (1..=hashes).all(|n| at(i + n) == '#')) {
                    i += 1;
                }
                i += hashes + 1;
            } else {
                found.push(Token::Word(word));
            }
        } else if c == ':' && at(i + 1) == ':' {
            found.push(Token::PathSep);
            i += 2;
        } else {
            if !c.is_whitespace() {
                found.push(Token::Sign(c));
            }
            i += 1;
        }
    }
    without_tests(&found)
}

/// Leaves out what `#[cfg(test)]` stands before, up to its closing brace or semicolon.
fn without_tests(tokens: &[Token]) -> Vec<Token> {
    let word = |w: &str| Token::Word(w.to_owned());
    let cfg_test = [
        Token::Sign('#'),
        Token::Sign('['),
        word("cfg"),
        Token::Sign('('),
        word("test"),
        Token::Sign(')'),
        Token::Sign(']'),
    ];
    let mut kept = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        if !tokens[i..].starts_with(&cfg_test) {
            kept.push(tokens[i].clone());
            i += 1;
            continue;
        }
        i += cfg_test.len();
        let mut depth = 0;
        while i < tokens.len() {
            match &tokens[i] {
                Token::Sign('{') => depth += 1,
                Token::Sign('}') => depth -= 1,
                _ => {}
            }
            i += 1;
            if depth == 0 && matches!(tokens[i - 1], Token::Sign('}' | ';')) {
                break;
            }
        }
    }
    kept
}

/// Every path in the tokens, trees of `use` opened out.
fn paths(tokens: &[Token]) -> BTreeSet<Named> {
    let mut found = BTreeSet::new();
    let mut i = 0;
    while i < tokens.len() {
        match &tokens[i] {
            Token::Word(word) if word == "use" => {
                let reexported = i > 0
                    && (tokens[i - 1] == Token::Word("pub".to_owned())
                        || (tokens[i - 1] == Token::Sign(')')
                            && tokens[..i].iter().rev().take(8).any(|t| *t == Token::Word("pub".to_owned()))));
                let mut leaves = Vec::new();
                i = use_tree(tokens, i + 1, String::new(), &mut leaves);
                found.extend(leaves.into_iter().map(|path| Named { path, reexported }));
            }
            Token::Word(first) => {
                let mut path = first.clone();
                i += 1;
                while let (Some(Token::PathSep), Some(Token::Word(next))) = (tokens.get(i), tokens.get(i + 1)) {
                    path = format!("{path}::{next}");
                    i += 2;
                }
                if path.contains("::") {
                    found.insert(Named { path, reexported: false });
                }
            }
            _ => i += 1,
        }
    }
    found
}

/// Reads one branch of a `use` tree from `i`; returns where it ends.
fn use_tree(tokens: &[Token], mut i: usize, prefix: String, leaves: &mut Vec<String>) -> usize {
    let mut path = prefix;
    loop {
        match tokens.get(i) {
            Some(Token::Word(word)) if word == "as" => i += 2,
            Some(Token::Word(word)) => {
                path = if path.is_empty() { word.clone() } else { format!("{path}::{word}") };
                i += 1;
            }
            Some(Token::Sign('*')) => {
                path.push_str("::*");
                i += 1;
            }
            Some(Token::PathSep) => i += 1,
            Some(Token::Sign('{')) => {
                i += 1;
                while i < tokens.len() && tokens[i] != Token::Sign('}') {
                    i = use_tree(tokens, i, path.clone(), leaves);
                    if tokens.get(i) == Some(&Token::Sign(',')) {
                        i += 1;
                    }
                }
                return i + 1;
            }
            _ => {
                leaves.push(path);
                return i;
            }
        }
    }
}

/// The modules a file below src/ stands for: `store/undo.rs` is `[store, undo]`.
fn module_of(file: &Path) -> Vec<String> {
    file.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect()
}

/// What is wrong with one file, `file` being its path below src/.
fn faults(file: &Path, text: &str) -> Vec<String> {
    let module = module_of(file);
    let part = module[0].as_str();
    let mut faults = Vec::new();
    let mut fault = |what: String| faults.push(format!("src/{}: {what}", file.display()));
    if file.ends_with("mod.rs") {
        fault("is called mod.rs: foo.rs and foo/ instead".to_owned());
    }
    if !text.starts_with("//!") {
        fault("does not begin with a line (//!) that says what it is for".to_owned());
    }
    let lines = text.lines().count();
    if lines > MOST_LINES {
        fault(format!("has {lines} lines, more than {MOST_LINES}: split it by reason to change"));
    }
    let allowed = LAYERS.iter().find(|(name, _)| *name == part).map(|(_, allowed)| *allowed);
    if allowed.is_none() && !TOP.contains(&part) {
        fault(format!("part `{part}` has no place in the layers: give it one in tests/layers.rs"));
    }
    let tokens = tokens(text);
    if part == "chain" && tokens.contains(&Token::Word("async".to_owned())) {
        fault("is async, but chain is plain values".to_owned());
    }
    for named in paths(&tokens) {
        if named.reexported && named.path.ends_with("::*") {
            fault(format!("re-exports {}: name what you mean", named.path));
        }
        let ours = ours(&module, &named.path);
        if let (Some(other), Some(allowed)) = (&ours, allowed) {
            let is_part = LAYERS.iter().any(|(name, _)| name == other) || TOP.contains(&other.as_str());
            if is_part && other != part && !allowed.contains(&other.as_str()) {
                fault(format!("{} names {}", part, named.path));
            }
        }
        if ours.is_some() {
            continue;
        }
        let begins = |crate_: &str| {
            named.path == crate_ || named.path.strip_prefix(crate_).is_some_and(|rest| rest.starts_with("::"))
        };
        for (crates, parts, why) in CRATES {
            if crates.iter().any(|c| begins(c)) && !parts.contains(&part) {
                fault(format!("names {}: {why}", named.path));
            }
        }
        if part == "chain" && IMPURE.iter().any(|impure| begins(impure)) {
            fault(format!("names {}, but chain is plain values", named.path));
        }
    }
    faults
}

/// Which part of the crate a path leads into; none for other crates and for names without `crate` or `super`.
fn ours(module: &[String], path: &str) -> Option<String> {
    let mut words = path.split("::");
    match words.next()? {
        "crate" | "ebbtide" => Some(words.next()?.to_owned()),
        "super" => {
            let mut depth = module.len().checked_sub(1)?;
            for word in words {
                if word != "super" {
                    return Some(if depth == 0 { word.to_owned() } else { module[0].clone() });
                }
                depth = depth.checked_sub(1)?;
            }
            None
        }
        "self" => Some(module[0].clone()),
        _ => None,
    }
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

#[test]
fn no_file_of_src_names_what_its_layer_may_not() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = rust_files(&root);
    let mut named = 0;
    let mut all = Vec::new();
    for path in &files {
        let text = std::fs::read_to_string(path).unwrap();
        named += paths(&tokens(&text)).len();
        all.extend(faults(path.strip_prefix(&root).unwrap(), &text));
    }
    println!("{} files, {named} paths", files.len());
    assert!(files.len() > 5 && named > 50, "read too little to mean anything");
    assert!(all.is_empty(), "\n{}", all.join("\n"));
}

#[test]
fn only_what_tests_share_is_called_mod_rs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    // Cargo takes any other file there for a test of its own.
    let shared = |path: &PathBuf| path.parent().is_some_and(|dir| dir.to_string_lossy().ends_with("support"));
    let found: Vec<PathBuf> = rust_files(&root).into_iter().filter(|path| path.ends_with("mod.rs")).collect();
    assert!(!found.is_empty() && found.iter().all(shared), "{found:?}");
}

/// Faults of a text in a file, its first line given.
fn faults_of(file: &str, text: &str) -> Vec<String> {
    faults(Path::new(file), &format!("//! A test.\n{text}"))
}

#[test]
fn each_rule_catches_what_breaks_it() {
    for (file, text, word) in [
        ("chain.rs", "use crate::store::Tx;", "crate::store"),
        ("chain/plan.rs", "use super::super::store::Tx;", "super::super::store"),
        ("chain/plan.rs", "use std::{fmt, time::{Duration, Instant}};", "std::time::Instant"),
        ("chain.rs", "fn f() { std::time::SystemTime::now(); }", "SystemTime"),
        ("chain.rs", "use rand::Rng;", "rand"),
        ("chain.rs", "use tokio;", "tokio"),
        ("chain.rs", "fn f() { tracing::info!(\"x\"); }", "tracing::info"),
        ("chain.rs", "pub async fn f() {}", "async"),
        ("sources/evm.rs", "use crate::{chain::Block, store::Tx};", "crate::store"),
        ("sources/evm.rs", "fn f(c: tokio_postgres::Client) {}", "only store"),
        ("store.rs", "use crate::sources::Source;", "crate::sources"),
        ("store/undo.rs", "use crate::projections as p;", "crate::projections"),
        ("projections.rs", "use crate::sync;", "crate::sync"),
        ("sync.rs", "use crate::process::run;", "crate::process"),
        ("api/routes.rs", "type T = crate::sync::Settings;", "crate::sync"),
        ("process.rs", "use reqwest::Client;", "go out"),
        ("process.rs", "use crate::config::Settings;", "crate::config"),
        ("config.rs", "use deadpool_postgres::Pool;", "only store"),
        ("ops.rs", "use crate::chain::Height;", "crate::chain"),
        ("verify.rs", "use crate::process::apply;", "crate::process"),
        ("store.rs", "pub use private::*;", "re-exports"),
        ("store.rs", "pub(crate) use private::{a, b::*};", "re-exports"),
        ("store/mod.rs", "", "mod.rs"),
        ("utils.rs", "", "no place"),
    ] {
        let found = faults_of(file, text);
        assert!(found.iter().any(|fault| fault.contains(word)), "{file}: {text}\nfound: {found:?}");
    }
    assert!(!faults(Path::new("store.rs"), "use std::fmt;").is_empty(), "no first line");
    assert!(!faults_of("store.rs", &"// a line\n".repeat(MOST_LINES)).is_empty(), "too long");
}

#[test]
fn what_is_allowed_is_not_caught() {
    for (file, text) in [
        ("chain/plan.rs", "use super::{BlockRef, Height};\nuse std::time::Duration;"),
        ("chain/plan.rs", "use crate::chain::delta::Delta;"),
        ("sources/evm.rs", "use super::{Source, rpc};\nuse crate::chain::*;\nuse reqwest::Client;"),
        ("store/undo.rs", "use tokio_postgres::Row;\nuse crate::chain::Block;"),
        ("process.rs", "use crate::{chain::plan, ops, projections::Projection, store::Tx};"),
        ("main.rs", "use ebbtide::{config, process, sync};"),
        // In comments, literals and tests it says nothing about the layers.
        ("chain.rs", "// use crate::store::Tx;\n/* tokio::spawn /* nested */ rand::random */"),
        ("chain.rs", "const A: &str = \"use crate::store::Tx; \\\" tokio::x\"; const B: char = '\"';"),
        ("chain.rs", "const A: &str = r#\"tokio::x \" tokio::y\"#; fn f<'a>(x: &'a str) {}"),
        (
            "chain.rs",
            "/// [`crate::store::Tx`]\nfn f() {}\n#[cfg(test)]\nmod tests { use rand::Rng; mod x { use tokio::x; } }",
        ),
        ("sync.rs", "fn process() { let api = 1; } struct Worker { delivery: u8 }"),
    ] {
        assert_eq!(faults_of(file, text), [""; 0], "{file}: {text}");
    }
    let after_tests = "#[cfg(test)]\nmod tests { use rand::Rng; }\nuse tokio::spawn;";
    assert_eq!(faults_of("chain.rs", after_tests).len(), 1, "what follows the tests counts again");
}
