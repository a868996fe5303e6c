//! A source whose newest block is older than what is stored: it lags, or began again on the same chain.

use std::time::{Duration, Instant};

use crate::chain::Height;
use crate::sources::Head;

/// That is a moment's lag at first; from here on, and below the final height at once, a person should know. Nothing is
/// taken back for it.
const LAG_AFTER: Duration = Duration::from_secs(60);

/// How long it has been so.
#[derive(Debug, Default)]
pub(super) struct Lag {
    since: Option<Instant>,
    said: bool,
}

impl Lag {
    /// What to say of it, once it is worth a word, and whether that is the first word.
    pub(super) fn look(
        &mut self,
        stored: Option<Height>,
        final_height: Option<Height>,
        head: &Head,
        now: Instant,
    ) -> Option<(String, bool)> {
        let newest = head.block.height;
        let Some(stored) = stored.filter(|stored| newest < *stored && !head.truth) else {
            *self = Lag::default();
            return None;
        };
        let long = now.duration_since(*self.since.get_or_insert(now));
        if let Some(is_final) = final_height.filter(|is_final| newest < *is_final) {
            let reason = format!(
                "the source's newest block is {newest}, below {is_final}, which is final: it lags far behind, or began again"
            );
            return Some((reason, !std::mem::replace(&mut self.said, true)));
        }
        (long >= LAG_AFTER).then(|| {
            let reason = format!(
                "the source's newest block is {newest}, below {stored}, which is stored, for {} s: it lags, or began again",
                long.as_secs()
            );
            (reason, !std::mem::replace(&mut self.said, true))
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::chain::{BlockRef, Hash};

    fn head(height: u32, truth: bool) -> Head {
        let block = BlockRef { height: Height::from(height), hash: Hash::new(format!("0x{height}")) };
        Head { block, finalized: None, truth, last: false, position: None }
    }

    #[test]
    fn below_the_final_height_it_is_told_at_once() {
        let (mut lag, begun) = (Lag::default(), Instant::now());
        let (stored, is_final) = (Some(Height::from(9u32)), Some(Height::from(5u32)));
        assert_eq!(lag.look(stored, is_final, &head(5, false), begun), None);
        let (reason, is_first) = lag.look(stored, is_final, &head(4, false), begun).unwrap();
        assert!(is_first && reason.contains("block is 4, below 5, which is final"), "{reason}");
        assert!(!lag.look(stored, is_final, &head(4, false), begun).unwrap().1);
        assert_eq!(lag.look(stored, is_final, &head(4, true), begun), None, "a file's end is the truth");
    }

    #[test]
    fn it_is_told_after_a_minute_until_the_source_has_come_up() {
        let (mut lag, begun) = (Lag::default(), Instant::now());
        let after = |seconds| begun + Duration::from_secs(seconds);
        let stored = Some(Height::from(9u32));
        assert_eq!(lag.look(stored, None, &head(8, false), begun), None);
        assert_eq!(lag.look(stored, None, &head(8, false), after(59)), None);
        let (reason, is_first) = lag.look(stored, None, &head(8, false), after(60)).unwrap();
        assert!(is_first);
        assert!(reason.contains("block is 8, below 9, which is stored, for 60 s"), "{reason}");
        assert!(!lag.look(stored, None, &head(8, false), after(70)).unwrap().1);
        // As far as what is stored: the next time counts again.
        assert_eq!(lag.look(stored, None, &head(9, false), after(80)), None);
        assert_eq!(lag.look(stored, None, &head(8, false), after(90)), None);
        assert!(lag.look(stored, None, &head(8, false), after(150)).unwrap().1);
        // A file's end is the truth, and with nothing stored there is nothing below.
        assert_eq!(lag.look(stored, None, &head(8, true), after(300)), None);
        assert_eq!(lag.look(None, None, &head(8, false), after(400)), None);
    }
}
