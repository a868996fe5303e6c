//! The judge on facts made by hand: what no real server can be brought to in a test, and what needs many cases.

use super::*;

#[test]
fn a_full_notification_queue_is_told_and_nothing_is_worse_for_it() {
    let facts = |queue_usage| Facts { queue_usage, chains: vec![ChainFacts::default()], ..Facts::default() };
    for usage in [0.0, MOST_QUEUED] {
        assert_eq!(judge_database(&facts(usage)), Verdict::ok());
    }
    let full = facts(0.75);
    let verdict = judge_database(&full);
    assert!(verdict.state.is_ready(), "readers may rely on it");
    assert_eq!(
        verdict.words(),
        "ok: the server's notification queue is 75 % full: no notification is sent, and blocks are found by polling alone"
    );
    assert!(verdict.remedy.is_some_and(|remedy| remedy.contains("end the session that listens")));
    assert_eq!(judge(&full), judge(&facts(0.0)));
}

/// Two projections on each of two chains that stand for four seconds with a block before them, and a processor that says
/// nothing of it; with these holds.
fn standing(holds: Vec<Hold>) -> Facts {
    let (chains, projections) = (["east", "west"], ["token_balances", "mine"]);
    let part = || PartSays { due_seconds: Some(3.0), ..PartSays::default() };
    let seen = |chain: &str, projection: &str| Seen {
        chain: chain.to_owned(),
        projection: Some(projection.to_owned()),
        mark: "7".to_owned(),
        stands_seconds: Some(4.0),
        state: State::Behind,
        state_seconds: 4.0,
    };
    let says = Says {
        processor: Some(part()),
        projections: chains
            .map(|chain| (chain.to_owned(), projections.map(|name| (name.to_owned(), part())).into()))
            .into(),
        seen: chains.iter().flat_map(|chain| projections.map(|projection| seen(chain, projection))).collect(),
        ..Says::default()
    };
    let block = |height: u64| crate::chain::BlockRef {
        height: crate::chain::Height::new(height).expect("a height"),
        hash: crate::chain::Hash::new(format!("a{height}")),
    };
    let projection = |name: &str| ProjectionFacts {
        name: name.to_owned(),
        block: Some((3, "a3".to_owned())),
        through: Some(3),
        seq: 7,
        next: Some(NextBlock { height: 4, hash: "a4".to_owned(), parent_hash: "a3".to_owned() }),
        ..ProjectionFacts::default()
    };
    let chain = |name: &str| ChainFacts {
        name: name.to_owned(),
        lowest: Some(1),
        tip: Some(block(4)),
        projections: projections.map(projection).into(),
        ..ChainFacts::default()
    };
    let beat = Beat { instance: "one".to_owned(), age_seconds: 0.0, ended: None, says };
    Facts { chains: chains.map(chain).into(), beats: vec![beat], holds, ..Facts::default() }
}

fn hold(pid: i32, what: Option<&str>, keeps: Keeps) -> Hold {
    let (does, what) = (Some("idle in transaction".to_owned()), what.map(str::to_owned));
    Hold { pid, who: "alice, psql".to_owned(), does, open_seconds: Some(70.0), what, keeps }
}

fn only(chain: Option<&str>, projection: Option<&str>) -> Keeps {
    Keeps::Only { chain: chain.map(str::to_owned), projection: projection.map(str::to_owned) }
}

/// Of each projection, the process that it is said to wait for: `!` where that is said to be sure, `?` where it is not.
fn blamed(facts: &Facts) -> String {
    let mut all = Vec::new();
    for projection in judge(facts).iter().flat_map(|chain| &chain.projections) {
        let Verdict { state, reason, remedy, .. } = &projection.verdict;
        let reason = reason.as_deref().unwrap_or_default();
        let pid = remedy.as_deref().and_then(|remedy| remedy.split_once("pg_terminate_backend(")?.1.strip_suffix(')'));
        assert_eq!(pid.is_some(), *state == State::Waiting, "{state:?} {reason}");
        all.push(match pid {
            Some(pid) if reason.starts_with("for a lock ") => format!("{pid}!"),
            Some(pid) if reason.starts_with("one of our sessions waits for a lock ") => format!("{pid}?"),
            _ => "-".to_owned(),
        });
    }
    all.join(" ")
}

#[test]
fn a_lock_is_held_against_those_alone_whom_it_keeps() {
    let cases = [
        (vec![], "- - - -"),
        (vec![hold(1, Some("blocks"), Keeps::All)], "1! 1! 1! 1!"),
        (vec![hold(1, Some("a row of checkpoints"), only(Some("west"), Some("mine")))], "- - - 1!"),
        (vec![hold(1, Some("a row of blocks"), only(Some("east"), None))], "1! 1! - -"),
        (vec![hold(1, Some("a row of public.mine"), only(None, Some("mine")))], "- 1! - 1!"),
        // Each projection has its own, in whatever order the locks are listed.
        (
            vec![
                hold(1, Some("a row of public.mine"), only(None, Some("mine"))),
                hold(2, Some("a row of blocks"), only(Some("west"), None)),
            ],
            "- 1! 2! 1!",
        ),
        // Who is not known to be kept by anybody may be the one that waits for him of whom no more is known.
        (vec![hold(1, None, Keeps::Unknown)], "1? 1? 1? 1?"),
        (
            vec![hold(1, None, Keeps::Unknown), hold(2, Some("a row of blocks"), only(Some("east"), None))],
            "2! 2! 1? 1?",
        ),
    ];
    for (holds, expected) in cases {
        let facts = standing(holds);
        assert_eq!(blamed(&facts), expected, "{:?}", facts.holds);
    }
}

#[test]
fn a_lock_of_which_nothing_is_known_hides_no_cause_that_is() {
    let mut facts = standing(vec![hold(1, None, Keeps::Unknown)]);
    let trouble = Trouble { reason: "no space left on device".to_owned(), lasting: false, seconds: 4.0 };
    let mine = facts.beats[0].says.projections.get_mut("west").and_then(|all| all.get_mut("mine"));
    mine.expect("it is run").trouble = Some(trouble);
    facts.chains[0].projections[1].after = Some("token_balances".to_owned());
    let judged = judge(&facts);
    let words = |chain: usize, projection: usize| judged[chain].projections[projection].verdict.words();
    assert_eq!(words(1, 1), "failing: no space left on device");
    assert_eq!(words(0, 1), "waiting: for token_balances, which is waiting");
    assert_eq!(
        words(0, 0),
        "waiting: one of our sessions waits for a lock that server process 1 (alice, psql) holds, idle in transaction, in a \
         transaction of 70 s"
    );
}
