//! A small volume of everything, for `cargo test`.

use super::events::Event;
use super::threads::{append_from_threads, reopen_and_compare};
use super::{check_events, describe, scenarios, seeds};
use crate::report::Report;

const SEED: u64 = 0;
const CRASH_POINTS: u64 = 21_000;

#[test]
fn nothing_acknowledged_is_lost_and_nothing_lost_comes_back() {
    let series = seeds::run_until(SEED, CRASH_POINTS);
    let failures: Vec<_> = series.failures.iter().map(describe).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let mut report = Report::new("sim", SEED);
    check_events(&series.counts, &mut report);
    assert_eq!(report.failed(), 0);
    assert!(series.counts.get(Event::CrashPoints) >= CRASH_POINTS);
}

#[test]
fn a_seed_is_a_run_bit_for_bit() {
    for seed in SEED..SEED + 20 {
        assert_eq!(seeds::run(seed), seeds::run(seed), "seed {seed} gave two runs");
    }
}

#[test]
fn threads_on_two_shards_find_their_records_again() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let written = append_from_threads(directory.path(), &[4, 5, 6, 7, 8]);
    reopen_and_compare(directory.path(), &written);
}

#[test]
fn unused_segments_of_older_incarnations() {
    scenarios::unused_segments_of_older_incarnations();
}

#[test]
fn a_footer_in_the_page_cache_is_synced() {
    scenarios::a_footer_in_the_page_cache_is_synced();
}

#[test]
fn the_anchor_is_older_than_the_newest_header() {
    scenarios::the_anchor_is_older_than_the_newest_header();
}

#[test]
fn a_failed_header_write_leaves_the_old_header() {
    scenarios::a_failed_header_write_leaves_the_old_header();
}

#[test]
fn waiting_for_a_segment_is_not_work() {
    scenarios::waiting_for_a_segment_is_not_work();
}

#[test]
fn closing_while_records_move() {
    scenarios::closing_while_records_move();
}

#[test]
fn another_valid_frame_in_the_same_place() {
    scenarios::another_valid_frame_in_the_same_place();
}

#[test]
fn a_sealed_segment_of_a_clone() {
    scenarios::a_sealed_segment_of_a_clone();
}

#[test]
fn the_newest_segment_of_a_clone() {
    scenarios::the_newest_segment_of_a_clone();
}

#[test]
fn a_clone_before_the_last_batch() {
    scenarios::a_clone_before_the_last_batch();
}

#[test]
fn the_anchor_never_needs_space_again() {
    scenarios::the_anchor_never_needs_space_again();
}

#[test]
fn damage_behind_a_roll_is_named_where_it_is() {
    scenarios::damage_behind_a_roll_is_named_where_it_is();
}

#[test]
fn a_name_that_was_not_durable_is_made_so() {
    scenarios::a_name_that_was_not_durable_is_made_so();
}

#[test]
fn what_was_given_up_stays_away() {
    scenarios::what_was_given_up_stays_away();
}

#[test]
fn a_scan_ends_where_the_file_ends() {
    scenarios::a_scan_ends_where_the_file_ends();
}

#[test]
fn a_short_read_hides_nothing() {
    scenarios::a_short_read_hides_nothing();
}

#[test]
fn an_end_that_is_not_there_is_refused() {
    scenarios::an_end_that_is_not_there_is_refused();
}

#[test]
fn a_checkpoint_ends_where_the_file_ends() {
    scenarios::a_checkpoint_ends_where_the_file_ends();
}
