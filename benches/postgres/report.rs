//! The table: product beside floor, ratio, budget; and the machine it was measured on.

use std::process::Command;

/// What a line promises (DESIGN 11).
#[derive(Clone, Copy)]
pub(crate) enum Budget {
    /// Product divided by floor: at least this much, and better this much.
    Ratio(f64, f64),
    /// The figure itself, in its unit: at most this much, and better this much.
    AtMost(f64, f64),
    /// For the reader alone.
    None,
}

/// One line: a figure a round, beside its floor's of the same round.
pub(crate) struct Line {
    pub(crate) what: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) product: Vec<f64>,
    pub(crate) floor: Vec<f64>,
    pub(crate) budget: Budget,
}

impl Line {
    pub(crate) fn new(what: &'static str, unit: &'static str, budget: Budget) -> Line {
        Line { what, unit, product: Vec::new(), floor: Vec::new(), budget }
    }
}

fn sorted(figures: &[f64]) -> Vec<f64> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The figure below which this share of them lies.
pub(crate) fn percentile(figures: &[f64], share: f64) -> f64 {
    let sorted = sorted(figures);
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}

pub(crate) fn median(figures: &[f64]) -> f64 {
    percentile(figures, 0.5)
}

fn number(n: f64) -> String {
    match n.abs() {
        n if n >= 1000.0 => {
            let digits = format!("{n:.0}");
            let head = digits.len() % 3;
            let mut parts: Vec<&str> = if head > 0 { vec![&digits[..head]] } else { Vec::new() };
            parts.extend((head..digits.len()).step_by(3).map(|at| &digits[at..at + 3]));
            parts.join(",")
        }
        n if n >= 100.0 => format!("{n:.0}"),
        n if n >= 10.0 => format!("{n:.1}"),
        _ => format!("{n:.2}"),
    }
}

fn spread(figures: &[f64]) -> String {
    let sorted = sorted(figures);
    match &sorted[..] {
        [] => "–".to_owned(),
        [only] => format!("**{}**", number(*only)),
        [first, .., last] => format!("{} / **{}** / {}", number(*first), number(median(figures)), number(*last)),
    }
}

fn verdict(value: f64, must: f64, aim: f64, smaller_is_better: bool) -> &'static str {
    let reaches = |bound: f64| if smaller_is_better { value <= bound } else { value >= bound };
    match (reaches(must), reaches(aim)) {
        (_, true) => "aim reached",
        (true, false) => "within must",
        (false, false) => "**MISSED**",
    }
}

/// Prints the table; true when no line misses its must.
#[expect(clippy::print_stdout, reason = "the table is what a bench is for")]
pub(crate) fn print(lines: &[Line]) -> bool {
    println!(
        "| what | unit | ebbtide: min / **median** / max | floor: min / **median** / max | ratio | must / aim | |"
    );
    println!("|---|---|---:|---:|---:|---:|---|");
    let mut good = true;
    for line in lines {
        let ratios: Vec<f64> = line.product.iter().zip(&line.floor).map(|(p, f)| p / f).collect();
        let (bounds, verdict) = match line.budget {
            Budget::Ratio(must, aim) => (format!("{must} / {aim}"), verdict(median(&ratios), must, aim, false)),
            Budget::AtMost(must, aim) => (format!("{must} / {aim}"), verdict(median(&line.product), must, aim, true)),
            Budget::None => (String::new(), ""),
        };
        good &= !verdict.contains("MISSED");
        println!(
            "| {} | {} | {} | {} | {} | {bounds} | {verdict} |",
            line.what,
            line.unit,
            spread(&line.product),
            spread(&line.floor),
            spread(&ratios),
        );
    }
    good
}

fn first_line(command: &str, arguments: &[&str]) -> String {
    let output = Command::new(command).args(arguments).output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").to_owned()
}

fn field(file: &str, name: &str) -> String {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let value = text.lines().find(|l| l.starts_with(name)).and_then(|l| l.split_once(':'));
    value.map_or("unknown", |(_, v)| v.trim()).to_owned()
}

/// Processor, memory and commit, in two lines.
#[expect(clippy::print_stdout, reason = "as above")]
pub(crate) fn print_machine() {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!(
        "{cores} × {}, {} memory, load {} before the start",
        field("/proc/cpuinfo", "model name"),
        field("/proc/meminfo", "MemTotal"),
        load.split(' ').next().unwrap_or("unknown"),
    );
    println!("commit {}\n", first_line("git", &["describe", "--always", "--dirty", "--abbrev=10"]));
}

/// The server and what it was started with, in a line.
#[expect(clippy::print_stdout, reason = "as above")]
pub(crate) fn print_server(version: &str, settings: &[&str]) {
    println!("{version}; {}\n", settings.join(", "));
}
