//! How a projection is.

use super::facts::{Beat, ChainFacts, Ended, Facts, Hold, Keeps, PartSays, ProjectionFacts};
use super::{
    MOST_IN_HAND, PASSES_WITHIN_SECONDS, ProjectionVerdict, STANDS_AFTER_SECONDS, State, Verdict, blocks, duration,
};

/// How far it is behind, in blocks: of what is stored, and of all that is known.
struct Lag {
    stored: i64,
    known: i64,
}

pub(super) fn judge(
    facts: &Facts,
    chain: &ChainFacts,
    projection: &ProjectionFacts,
    followed: Option<&ProjectionVerdict>,
) -> ProjectionVerdict {
    let lag = lag(chain, projection);
    let verdict = Case { facts, chain, projection, followed, lag: &lag }.verdict();
    let lag_seconds = if lag.known == 0 { 0.0 } else { projection.age_seconds.max(0.0) };
    ProjectionVerdict {
        projection: projection.name.clone(),
        verdict,
        waiting_blocks: lag.stored,
        lag_blocks: lag.known,
        lag_seconds,
    }
}

fn lag(chain: &ChainFacts, projection: &ProjectionFacts) -> Lag {
    let behind = |newest: Option<i64>| {
        let Some(newest) = newest else { return 0 };
        let Some(through) = projection.through else {
            return first_height(chain, projection)
                .map_or(0, |first| newest.saturating_sub(first).saturating_add(1).max(0));
        };
        // What stands on a replaced block, or is applied again, is behind from there on; if the chain got shorter, by what
        // is to be taken back.
        let redone = projection.redo_from.map(|from| from.max(first_height(chain, projection).unwrap_or(0)));
        let differs = projection.differs_from.into_iter().chain(redone).min();
        let common = differs.map_or(through, |from| from.saturating_sub(1).min(through));
        let newest = if differs.is_some() { newest.max(through) } else { newest };
        newest.saturating_sub(common).max(0)
    };
    Lag { stored: behind(chain.stored_to()), known: behind(chain.newest()) }
}

/// The first height that counts.
fn first_height(chain: &ChainFacts, projection: &ProjectionFacts) -> Option<i64> {
    chain.start_height.or(chain.lowest).or(chain.head_height).max(projection.start_height)
}

fn let_go(hold: &Hold) -> String {
    format!("end that transaction, or select pg_terminate_backend({})", hold.pid)
}

struct Case<'a> {
    facts: &'a Facts,
    chain: &'a ChainFacts,
    projection: &'a ProjectionFacts,
    followed: Option<&'a ProjectionVerdict>,
    lag: &'a Lag,
}

impl Case<'_> {
    /// What an operator decided comes first, then whether anybody is alive, then what is known to be wrong.
    fn verdict(&self) -> Verdict {
        self.held()
            .or_else(|| self.nobody())
            .or_else(|| self.failing())
            .or_else(|| self.rebuilding())
            .or_else(|| self.standing())
            .unwrap_or_else(|| self.moving())
    }

    /// `--chain eth --projection volume`, as far as they are not what a command takes by default.
    fn named(&self) -> String {
        let chain = Some(&self.chain.name).filter(|name| *name != "main");
        let projection = Some(&self.projection.name).filter(|name| *name != "token_balances");
        let chain = chain.map(|name| format!(" --chain {name}")).unwrap_or_default();
        chain + &projection.map(|name| format!(" --projection {name}")).unwrap_or_default()
    }

    fn failure(&self) -> Option<String> {
        let reason = self.projection.failed_reason.as_ref()?;
        Some(match self.projection.failures {
            0 | 1 => reason.clone(),
            n => format!("{reason} ({n} times)"),
        })
    }

    fn held(&self) -> Option<Verdict> {
        let resume = format!("`ebbtide resume{}`", self.named());
        if let Some(reason) = &self.projection.halted_reason {
            return Some(Verdict::new(State::Halted, reason, format!("fix the cause, then run {resume}")));
        }
        if !self.projection.paused {
            return None;
        }
        let mut reason = match self.projection.pause_at {
            Some(at) => format!("by an operator, at height {at}"),
            None => "by an operator".to_owned(),
        };
        if let Some(failure) = self.failure() {
            reason = format!("{reason}; before that it failed: {failure}");
        }
        Some(Verdict::new(State::Paused, reason, format!("{resume} lets it go on")))
    }

    /// Every process with a processor, the one heard last first.
    fn processors(&self) -> impl Iterator<Item = (&Beat, &PartSays)> {
        self.facts.beats.iter().filter_map(|beat| Some((beat, beat.says.processor.as_ref()?)))
    }

    fn nobody(&self) -> Option<Verdict> {
        if self.processors().any(|(beat, _)| beat.is_alive()) {
            return None;
        }
        let mut waiting = match self.lag.stored {
            0 => String::new(),
            1 => "; 1 block waits".to_owned(),
            lag => format!("; {lag} blocks wait"),
        };
        if let Some(failure) = self.failure() {
            waiting = format!("{waiting}; before that it failed: {failure}");
        }
        let start = self.facts.start("`ebbtide process` or `ebbtide run`");
        let Some((last, says)) = self.processors().next() else {
            let reason = format!("no processor has told that it is alive{waiting}");
            return Some(Verdict::new(State::Silent, reason, start));
        };
        let is_done = says.done || last.ended == Some(Ended::Done);
        if is_done && self.lag.stored == 0 && self.projection.failed_reason.is_none() {
            return None;
        }
        let ago = duration(last.age_seconds);
        let reason = match last.ended {
            Some(Ended::Done) => format!("no processor runs; the last one was done {ago} ago{waiting}"),
            Some(Ended::Stopped) => format!("the processor was stopped {ago} ago{waiting}"),
            None => format!("the processor has given no sign of life for {ago}{waiting}"),
        };
        Some(Verdict { for_seconds: last.age_seconds, ..Verdict::new(State::Silent, reason, start) })
    }

    fn failing(&self) -> Option<Verdict> {
        let failure = self.failure()?;
        let remedy =
            format!("fix the cause: it is tried again by itself, at once after `ebbtide resume{}`", self.named());
        Some(Verdict::new(State::Failing, failure, remedy))
    }

    fn rebuilding(&self) -> Option<Verdict> {
        let rebuilding = self.projection.rebuilding.as_ref()?;
        let reason =
            format!("rebuilding: at {} of {}, {}", rebuilding.at_height, rebuilding.to_height, rebuilding.reason);
        Some(Verdict::new(State::CatchingUp, reason, ""))
    }

    /// It does not move although it should.
    fn standing(&self) -> Option<Verdict> {
        let stood = self.facts.stood(&self.chain.name, Some(&self.projection.name), &self.projection.mark());
        let stands = self.lag.stored > 0 && stood >= STANDS_AFTER_SECONDS;
        let verdict =
            if stands { self.break_above().or_else(|| self.incomplete()).or_else(|| self.locked()) } else { None };
        let verdict =
            verdict.or_else(|| self.troubled()).or_else(|| if stands { self.why_not(stood) } else { None })?;
        Some(Verdict { for_seconds: verdict.for_seconds.max(stood), ..verdict })
    }

    fn break_above(&self) -> Option<Verdict> {
        let next = self.projection.next.as_ref()?;
        if self.projection.differs_from.is_some() || self.projection.redo_from.is_some() {
            return None;
        }
        let expected = match self.projection.through {
            Some(through) => through.saturating_add(1),
            None => first_height(self.chain, self.projection)?,
        };
        let name = &self.chain.name;
        if next.height > expected && next.height - 1 > self.chain.complete_to.unwrap_or(-1) {
            let missing = match next.height - expected {
                1 => format!("block {expected} is missing below block {}", next.height),
                _ => format!("blocks {expected} to {} are missing below block {}", next.height - 1, next.height),
            };
            let remedy = format!(
                "write what is missing with put_block, or remove what is above with select drop_blocks('{name}', {})",
                next.height
            );
            return Some(Verdict::new(State::Broken, missing, remedy));
        }
        let (height, hash) = self.projection.block.as_ref()?;
        if next.height == height + 1 && *hash != next.parent_hash {
            let reason = format!(
                "block {} ({}) names the parent {:?}, but block {height} is {hash}",
                next.height, next.hash, next.parent_hash
            );
            let remedy =
                format!("write the right block with put_block, or select drop_blocks('{name}', {})", next.height);
            return Some(Verdict::new(State::Broken, reason, remedy));
        }
        None
    }

    fn incomplete(&self) -> Option<Verdict> {
        let next = self.projection.next.as_ref()?;
        let block = self.facts.incomplete.iter().find(|b| b.chain == self.chain.name && b.height == next.height)?;
        let reason =
            format!("block {} announced {} events, and {} are there", block.height, block.announced, block.present);
        let remedy = "write the others, or set its event_count right";
        Some(Verdict::new(State::Waiting, reason, remedy))
    }

    fn locked(&self) -> Option<Verdict> {
        let (chain, projection) = (&self.chain.name, &self.projection.name);
        let hold = self.facts.holds.iter().find(|hold| hold.keeps.includes(chain, projection))?;
        Some(Verdict::new(State::Waiting, format!("for {}", hold.words()), let_go(hold)))
    }

    /// Somebody is waited for, and nothing says that it is this one who waits.
    fn perhaps_locked(&self) -> Option<Verdict> {
        let hold = self.facts.holds.iter().find(|hold| hold.keeps == Keeps::Unknown)?;
        Some(Verdict::new(State::Waiting, format!("one of our sessions waits for {}", hold.words()), let_go(hold)))
    }

    /// What all living processors say of it, or of themselves: one that is well is enough.
    fn troubled(&self) -> Option<Verdict> {
        let mut least: Option<Verdict> = None;
        for (beat, itself) in self.processors().filter(|(beat, _)| beat.is_alive()) {
            let task = beat.says.projections.get(&self.chain.name).and_then(|all| all.get(&self.projection.name));
            let troubles = task.into_iter().chain([itself]).filter_map(|says| says.trouble.as_ref());
            let trouble = troubles.max_by(|a, b| a.seconds.total_cmp(&b.seconds));
            let heard = itself.heard_seconds + beat.age_seconds;
            let verdict = match trouble {
                Some(trouble) if trouble.seconds + beat.age_seconds >= PASSES_WITHIN_SECONDS => {
                    let verdict =
                        Verdict::new(State::Failing, &trouble.reason, "fix the cause; it is tried again by itself");
                    Verdict { for_seconds: trouble.seconds + beat.age_seconds, ..verdict }
                }
                _ if itself.due_seconds.is_some_and(|due| heard > due) => {
                    let reason = format!("its loop has not come round for {}", duration(heard));
                    Verdict { for_seconds: heard, ..Verdict::new(State::Behind, reason, "see the log; start it again") }
                }
                _ if itself.starting => Verdict::new(State::Waiting, "the processor has not looked yet", ""),
                _ => return None,
            };
            if least.as_ref().is_none_or(|least| verdict.state < least.state) {
                least = Some(verdict);
            }
        }
        least
    }

    fn why_not(&self, stood: f64) -> Option<Verdict> {
        if let Some(followed) = self.followed.filter(|followed| !followed.verdict.state.is_ready()) {
            let reason =
                format!("for {}, which is {}", followed.projection, followed.verdict.state.as_str().replace('_', " "));
            return Some(Verdict::new(State::Waiting, reason, "see to that one"));
        }
        let lag = blocks(self.lag.stored);
        let runs_it = self.facts.beats.iter().filter(|beat| beat.is_alive()).any(|beat| {
            beat.says.projections.get(&self.chain.name).is_some_and(|all| all.contains_key(&self.projection.name))
        });
        if !runs_it {
            let reason = format!("no running program applies it, and it is {lag} behind");
            let remedy = format!(
                "start the program that does, or remove it with select drop_projection('{}')",
                self.projection.name
            );
            return Some(Verdict::new(State::Silent, reason, remedy));
        }
        if let Some(verdict) = self.perhaps_locked() {
            return Some(verdict);
        }
        let what = match self.projection.differs_from {
            Some(from) => format!("it stands on blocks that were replaced, from {from} on"),
            None => format!("{lag} behind"),
        };
        let reason = format!("{what}, without a move for {}", duration(stood));
        Some(Verdict::new(State::Behind, reason, "see the processor's log"))
    }

    fn moving(&self) -> Verdict {
        if self.lag.known <= MOST_IN_HAND {
            return Verdict::ok();
        }
        let reason = match self.lag.known - self.lag.stored {
            0 => format!("{} behind", blocks(self.lag.known)),
            missing => format!("{} behind, of which {missing} are not stored yet", blocks(self.lag.known)),
        };
        Verdict::new(State::CatchingUp, reason, "")
    }
}
