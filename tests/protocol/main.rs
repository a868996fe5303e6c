//! The protocol by which processors keep a projection right, as a model that is searched exhaustively: whatever the order in
//! which syncers, editors, operators, processors and the database take their steps, no promise is broken; and with one condition
//! left out, the search finds how.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod model;
mod search;
mod tables;

use std::time::Instant;

use model::{Fault, Model, State};
use search::{Found, search};

const MODEL: Model = Model {
    faults: &[],
    batches: [1, 2],
    keeps_history: true,
    has_gaps: false,
    blocks: &[0, 1, 2],
    complete_to: None,
    final_height: (Some(1), 2),
    disturbances: 1,
    compares_state: false,
};
const GAPS: Model =
    Model { has_gaps: true, blocks: &[0, 1, 3], complete_to: Some(2), final_height: (Some(1), 3), ..MODEL };

fn run(what: &str, model: &Model) -> Found {
    let begun = Instant::now();
    let found = search(model, State::new(model));
    println!("{}", found.report(what, begun));
    found
}

#[test]
fn no_promise_is_broken_with_the_whole_history() {
    let found = run("whole history", &Model { disturbances: 2, ..MODEL });
    assert_eq!(found.broken, None);
    assert!(found.states > 100_000, "a search of so little shows nothing");
}

#[test]
fn no_promise_is_broken_where_undo_is_kept_until_blocks_are_final() {
    let found = run("undo until final", &Model { disturbances: 2, keeps_history: false, ..MODEL });
    assert_eq!(found.broken, None);
    assert!(found.states > 100_000, "a search of so little shows nothing");
}

#[test]
fn no_promise_is_broken_where_heights_have_no_block() {
    let found = run("heights without a block", &GAPS);
    assert_eq!(found.broken, None);
    assert!(found.states > 10_000, "a search of so little shows nothing");
}

/// With a condition left out, the search finds how a promise is broken.
#[track_caller]
fn finds(fault: &'static [Fault], how: &str, model: Model) {
    let found = run(&format!("{fault:?}"), &Model { faults: fault, ..model });
    let (broken, trace) = found.broken.expect("the search must find what this leaves out");
    assert!(broken.to_string().contains(how), "{broken}");
    assert!(trace.len() <= 16, "{trace:?}");
}

/// The hole of a92cd75: two processors cut the same blocks differently, and a number that one predicted is taken by the other
/// for other blocks. Nothing else has to happen.
#[test]
fn compared_by_seq_alone_a_run_lands_on_a_competitor_s_number() {
    let cut = Model { disturbances: 0, blocks: &[0, 1, 2, 3], final_height: (Some(2), 2), ..MODEL };
    finds(&[Fault::SeqAlone], "applied twice", cut);
    finds(&[Fault::SeqAlone], "one between is skipped", MODEL);
}

#[test]
fn compared_by_block_alone_final_blocks_are_undone_without_leave() {
    finds(&[Fault::BlockAlone], "which is final, is undone without need", MODEL);
}

#[test]
fn held_whatever_its_revision_a_block_is_applied_as_it_was() {
    finds(&[Fault::AnyRevision], "as it was, and not as it stands", MODEL);
}

#[test]
fn pruned_without_a_comparison_a_difference_is_never_seen_again() {
    finds(&[Fault::PruneUncompared], "it waits, but what counts is", MODEL);
    finds(&[Fault::PruneUncompared], "is undone without need", Model { keeps_history: false, ..MODEL });
}

#[test]
fn pruned_to_what_is_final_by_then_a_difference_is_never_seen_again() {
    let rising = Model { blocks: &[0, 1], final_height: (None, 1), ..MODEL };
    finds(&[Fault::PruneToLatestFinal], "it waits, but what counts is", rising);
}

#[test]
fn clearing_what_it_does_not_know_of_a_transaction_loses_a_change_below_the_final_height() {
    finds(&[Fault::SwitchIgnoresRedo], "it waits, but what counts is", Model { disturbances: 2, ..MODEL });
}

#[test]
fn decided_before_a_pruning_an_undo_takes_back_less_than_was_done() {
    finds(&[Fault::SwitchIgnoresPruning], "its undo was pruned", Model { keeps_history: false, ..MODEL });
}

#[test]
fn built_from_a_start_that_moved_a_state_shows_nothing() {
    finds(&[Fault::SwitchIgnoresStart], "the height fell", Model { disturbances: 2, ..MODEL });
}

#[test]
fn taken_as_empty_while_a_block_came_a_height_is_skipped() {
    finds(&[Fault::SkipStoredBlocks], "one between is skipped", Model { disturbances: 2, ..GAPS });
}

/// Seq and block name a state by its last block. Where a competitor's transaction of the same number ends with that block but
/// has another one below it, edited meanwhile, the run behind it is let through: right for deltas, and what it read of balances
/// is not what stands. So a run compares each balance that it changes, and one that finds another looks again.
#[test]
fn a_run_sent_ahead_may_find_other_balances_under_the_seq_and_block_it_was_sent_on() {
    let cut =
        Model { batches: [2, 2], blocks: &[0, 1, 2, 3], final_height: (Some(2), 2), compares_state: true, ..MODEL };
    finds(&[], "on another state than it was sent on", cut.clone());
    let found = run("the same, by deltas", &Model { compares_state: false, ..cut });
    assert_eq!(found.broken, None);
}

/// They save work, and the promises do not hang on them: what is changed at or below a final height is flagged, and what was
/// final when a state was compared stays final.
#[test]
fn two_comparisons_carry_no_promise() {
    for keeps_history in [true, false] {
        for fault in [&[Fault::PruneAnySeq], &[Fault::RunIgnoresRedo]] {
            let found = run(&format!("{fault:?}"), &Model { faults: fault, keeps_history, ..MODEL });
            assert_eq!(found.broken, None);
        }
    }
}
