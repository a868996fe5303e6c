//! Each line of the budgets beside its floor: the same work done by a bare statement, in the same run.
//!
//! `cargo bench --bench postgres`, or with a word to run only the lines whose name holds it. It starts a durable
//! Postgres of its own in a temporary folder (`EBBTIDE_BENCH_DIR`: another place), and removes it. `EBBTIDE_BENCH_SCALE`
//! (default 1) multiplies the amounts of data, `EBBTIDE_BENCH_ROUNDS` (default 3) the repetitions. Product and floor
//! take turns. Absolute figures depend on the machine and its other work; believe the ratios.
#![allow(missing_docs, clippy::unwrap_used)]

mod backfill;
mod bulk;
mod chains;
mod live;
mod memory;
mod node;
mod notices;
mod ponder;
mod report;
mod rest;
mod server;
mod size;
#[path = "../../tests/support/mod.rs"]
mod support;
mod tracked;
mod workload;

use report::Line;
use server::Server;
use size::Size;

fn main() {
    let size = Size::asked_for();
    let folder = match std::env::var_os("EBBTIDE_BENCH_DIR") {
        Some(place) => tempfile::tempdir_in(place),
        None => tempfile::tempdir(),
    }
    .unwrap();
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(run(&size, folder.path()));
}

async fn run(size: &Size, folder: &std::path::Path) {
    let begun = std::time::Instant::now();
    let server = Server::start(folder).await;
    report::print_machine();
    report::print_server(&server.version().await, &server::SETTINGS);
    // A bench that is stopped leaves no server behind.
    let lines = tokio::select! {
        lines = measure(&server, size) => lines,
        _ = tokio::signal::ctrl_c() => Vec::new(),
        () = terminated() => Vec::new(),
    };
    let good = report::print(&lines);
    eprintln!("{} rounds in {:.0} s", size.rounds, begun.elapsed().as_secs_f64());
    if std::env::var_os("EBBTIDE_BENCH_EXPLAIN").is_some() {
        let kept = std::env::temp_dir().join("ebbtide-bench-postgres.log");
        std::fs::copy(server.log(), &kept).unwrap();
        eprintln!("the server's log with the plans: {}", kept.display());
    }
    server.stop().await;
    if !good {
        eprintln!("at least one line misses its must");
    }
}

async fn terminated() {
    tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap().recv().await;
}

async fn measure(server: &Server, size: &Size) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    if size.wants("load") {
        lines.extend(bulk::load(server, size).await);
    }
    if size.wants("catch-up") {
        lines.extend(bulk::catch_up(server, size).await);
    }
    if size.wants("block") {
        lines.extend(bulk::block_by_block(server, size).await);
    }
    if size.wants("latency") {
        lines.extend(live::latency(server, size).await);
    }
    if size.wants("reorg") {
        lines.extend(live::reorgs(server, size).await);
    }
    if size.wants("undo") {
        lines.extend(live::undo(server, size).await);
    }
    if size.wants("tracked") {
        lines.extend(tracked::cost(server, size).await);
    }
    if size.wants("revert") {
        lines.extend(tracked::revert(server, size).await);
    }
    if size.wants("vaults") {
        lines.extend(tracked::vaults(server, size).await);
    }
    if size.wants("backfill") {
        lines.extend(backfill::lines(server, size).await);
    }
    if size.wants("notices") {
        lines.extend(notices::cost(server, size).await);
        lines.extend(notices::latency(server, size).await);
    }
    if size.wants("rest") {
        lines.extend(rest::reads(server, size).await);
    }
    if size.wants("node") {
        lines.extend(node::to_balances(server, size).await);
    }
    // Asked for by name alone: it takes minutes and packages that nothing else needs.
    if size.names("ponder") {
        lines.extend(ponder::beside(server, size).await);
    }
    if size.wants("memory") {
        lines.extend(memory::catch_up(server, size).await);
    }
    if size.wants("bytes") {
        lines.extend(chains::bytes(server, size).await);
    }
    if size.wants("chains") {
        lines.extend(chains::many(server, size).await);
    }
    lines
}
