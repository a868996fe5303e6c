//! How a chain's source and its syncer are.

use super::facts::{Beat, ChainFacts, Ended, Facts, PartSays};
use super::{MOST_IN_HAND, PASSES_WITHIN_SECONDS, STANDS_AFTER_SECONDS, State, Verdict, blocks, duration};

/// None means no source follows the chain.
pub(super) fn judge(facts: &Facts, chain: &ChainFacts) -> Option<Verdict> {
    let syncers: Vec<(&Beat, &PartSays)> =
        facts.beats.iter().filter_map(|beat| Some((beat, beat.says.sources.get(&chain.name)?))).collect();
    if syncers.is_empty() && chain.head_height.is_none() {
        return None;
    }
    // One of several is enough: the others stand by.
    let living = syncers.iter().filter(|(beat, _)| beat.is_alive());
    let best = living.map(|(beat, says)| of_living(facts, chain, beat, says)).min_by_key(|verdict| verdict.state);
    Some(best.unwrap_or_else(|| nobody(facts, chain, syncers.first().copied())))
}

fn nobody(facts: &Facts, chain: &ChainFacts, last: Option<(&Beat, &PartSays)>) -> Verdict {
    let start = facts.start("`ebbtide sync` or `ebbtide run` with its source");
    let Some((beat, says)) = last else {
        let name = &chain.name;
        let remedy = format!(
            "{start}; if no source follows it any more: update ebbtide.chains set head_height = null where name = '{name}'"
        );
        return Verdict::new(State::Silent, "no syncer has told that it is alive", remedy);
    };
    if says.done || beat.ended == Some(Ended::Done) {
        return Verdict::ok();
    }
    let ago = duration(beat.age_seconds);
    let reason = match beat.ended {
        Some(_) => format!("its syncer was stopped {ago} ago"),
        None => format!("its syncer has given no sign of life for {ago}"),
    };
    Verdict { for_seconds: beat.age_seconds, ..Verdict::new(State::Silent, reason, start) }
}

fn of_living(facts: &Facts, chain: &ChainFacts, beat: &Beat, says: &PartSays) -> Verdict {
    if says.done {
        return Verdict::ok();
    }
    if let Some(holder) = &says.standby {
        let remedy = "if that one is frozen or cut off, the server ends its session by itself within 15 s";
        return Verdict::new(State::Waiting, format!("its syncer stands by: {holder}"), remedy);
    }
    if let Some(trouble) = &says.trouble {
        let seconds = trouble.seconds + beat.age_seconds;
        let verdict = match trouble.lasting {
            true => Some((State::Failing, "fix the cause; it is asked again by itself")),
            false if seconds >= PASSES_WITHIN_SECONDS => {
                Some((State::Waiting, "it is asked again by itself; see to the node"))
            }
            false => None,
        };
        if let Some((state, remedy)) = verdict {
            return Verdict { for_seconds: seconds, ..Verdict::new(state, &trouble.reason, remedy) };
        }
    }
    let heard = says.heard_seconds + beat.age_seconds;
    if says.starting && says.due_seconds.is_none_or(|due| heard <= due) {
        return Verdict::new(State::Waiting, "its syncer has not seen the source yet", "");
    }
    if says.due_seconds.is_some_and(|due| heard > due) {
        let reason = format!("the source has not answered for {}", duration(heard));
        return Verdict { for_seconds: heard, ..Verdict::new(State::Waiting, reason, "see to the node") };
    }
    let missing = chain.missing();
    if missing == 0 {
        return Verdict::ok();
    }
    let stood = facts.stood(&chain.name, None, &chain.mark());
    let reason = format!("{} of the source are not stored yet", blocks(missing));
    if stood >= STANDS_AFTER_SECONDS {
        let reason = format!("{reason}, and none came for {}", duration(stood));
        return Verdict {
            for_seconds: stood,
            ..Verdict::new(State::Behind, reason, "see to the node, and to the log")
        };
    }
    if missing > MOST_IN_HAND { Verdict::new(State::CatchingUp, reason, "") } else { Verdict::ok() }
}
