//! What operators do to the ledger and see of it, through the built program: opening balances, refused events, tokens
//! announced twice, every setting of the projection, and its standing.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    unreachable_pub,
    reason = "a test that cannot go on has failed"
)]

mod ambiguous;
mod evidence;
mod opening;
mod queries;
mod rejected;
mod settings;
mod spelling;
mod standing;
#[path = "../support/mod.rs"]
mod support;
mod switches;
mod totals;

use std::process::Output;

use support::Ebbtide;
use support::check::World;

/// Runs a command on the world's database.
fn ebbtide(world: &World, args: &[&str]) -> Output {
    let mut all = args.to_vec();
    all.extend(["--database-url", &world.url]);
    Ebbtide::output(&all, &[])
}

/// The same, which must end well; what it printed.
fn told(world: &World, args: &[&str]) -> String {
    let output = ebbtide(world, args);
    assert!(output.status.success(), "{args:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// The same, which must fail with exit code 1; its message.
fn refused(world: &World, args: &[&str]) -> String {
    let output = ebbtide(world, args);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {}", said(&output));
    String::from_utf8(output.stderr).unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}
