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
        "ok: the server's notification queue is 75 % full: no bell is rung, and blocks are found by polling alone"
    );
    assert!(verdict.remedy.is_some_and(|remedy| remedy.contains("end the session that listens")));
    assert_eq!(judge(&full), judge(&facts(0.0)));
}
