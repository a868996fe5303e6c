//! How much a bench does: what its environment and its arguments say.

/// How much is done.
pub(crate) struct Size {
    scale: f64,
    pub(crate) rounds: usize,
    only: Option<String>,
}

impl Size {
    /// As the environment and the first argument say.
    pub(crate) fn asked_for() -> Size {
        Size {
            scale: number_from("EBBTIDE_BENCH_SCALE", 1.0),
            rounds: number_from("EBBTIDE_BENCH_ROUNDS", 3.0) as usize,
            only: std::env::args().skip(1).find(|a| !a.starts_with('-')),
        }
    }

    /// So many, scaled, at least `least`.
    pub(crate) fn of(&self, count: u64, least: u64) -> u64 {
        ((count as f64 * self.scale) as u64).max(least)
    }

    pub(crate) fn wants(&self, part: &str) -> bool {
        self.only.as_ref().is_none_or(|word| part.contains(word.as_str()))
    }

    /// Whether it was asked for by this very name.
    pub(crate) fn names(&self, part: &str) -> bool {
        self.only.as_deref() == Some(part)
    }
}

fn number_from(variable: &str, default: f64) -> f64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).filter(|n| *n > 0.0).unwrap_or(default)
}
