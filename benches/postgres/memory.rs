//! What the program needs while it catches up.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Size;
use crate::report::{Budget, Line};
use crate::server::{Final, Server, write, write_all};
use crate::workload::{EVENTS, Workload};

pub(crate) async fn catch_up(server: &Server, size: &Size) -> Vec<Line> {
    let blocks = size.of(10_000, 200);
    let mut memory =
        Line::new("resident memory, 1M-event catch-up (`process --once`)", "MB", Budget::AtMost(80.0, 60.0));
    let mut speed = Line::new("the same program, events stored → balances", "events/s", Budget::None);
    let database = server.database().await;
    let mut lock = database.sync_lock().await;
    let mut work = Workload::new();
    let mut below = None;
    for _ in 0..blocks.div_ceil(1_000) {
        let part = work.blocks(below.as_ref(), blocks.min(1_000), EVENTS);
        match &below {
            None => write_all(&mut lock, &part, 200, Final::All).await,
            Some(tip) => write(&mut lock, Some(tip), &part, Final::All).await,
        }
        below = part.last().map(|b| b.link.block_ref());
    }
    database.client.batch_execute("analyze token_events").await.unwrap();
    database.settle().await;
    let begun = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ebbtide"));
    // The bench's own variables are no settings of the program.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("EBBTIDE_")) {
        command.env_remove(name);
    }
    let mut child = command
        .args(["process", "--once", "--database-url", &database.url])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let status_file = format!("/proc/{}/status", child.id());
    let mut most_kb = 0;
    let status = loop {
        // The peak as the kernel keeps it; gone with the process, so it is read again and again.
        let text = std::fs::read_to_string(&status_file).unwrap_or_default();
        let peak = text.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        let kb = peak.and_then(|p| p.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0);
        most_kb = most_kb.max(kb);
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(status.success(), "{status}");
    let applied = database.count("select through_height from checkpoints").await;
    assert_eq!(applied, below.map_or(0, |b| b.height.to_sql()));
    speed.product.push(applied as f64 * EVENTS as f64 / begun.elapsed().as_secs_f64());
    memory.product.push(f64::from(most_kb as u32) / 1e3 * 1.024);
    server.drop(database).await;
    vec![memory, speed]
}
