//! The whole engine against a plain reference, on a simulated disk, through crashes.
//!
//! Each seed makes one device and lets one shard after another live and die on it; see
//! `model/driver.rs` for what can happen and `model/reference.rs` for what must hold.
//!
//! - `RINGWAL_MODEL_SEED=17` runs that seed alone, as it was printed by a failure.
//! - `RINGWAL_MODEL_SEEDS=5000` runs that many seeds instead of the default.
//! - `RINGWAL_MODEL_FIRST=100000` starts at that seed.
//! - `RINGWAL_MODEL_TRACE=1` says what is done, for one seed.

mod model {
    pub mod corruption;
    pub mod driver;
    pub mod journal;
    pub mod random;
    pub mod reference;
    pub mod scenarios;
    pub mod setup;
    pub mod threads;
}

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use model::corruption::{Verdicts, astray, rot};
use model::driver::{Counts, World};
use model::scenarios;
use model::threads::{append_from_threads, reopen_and_compare};

const SEEDS: u64 = 2000;
const LIVES: u64 = 24;
const SEEDS_DAMAGED: u64 = 1500;
const SEEDS_TWICE: u64 = 20;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// What runs add up to.
trait Total: Default + Send + std::fmt::Debug {
    fn add(&mut self, other: &Self);
}

impl Total for Counts {
    fn add(&mut self, other: &Self) {
        self.add(other);
    }
}

impl Total for Verdicts {
    fn add(&mut self, other: &Self) {
        self.add(other);
    }
}

/// Runs seeds on all cores; a failing one is named.
fn run_seeds<T: Total>(what: &str, seeds: u64, run: impl Fn(u64) -> T + Sync) -> T {
    let only = number("RINGWAL_MODEL_SEED");
    let first = number("RINGWAL_MODEL_FIRST").unwrap_or(0);
    let seeds = number("RINGWAL_MODEL_SEEDS").unwrap_or(seeds);
    let range = only.map_or(first..first + seeds, |seed| seed..seed + 1);
    let (next, begun) = (AtomicU64::new(range.start), Instant::now());
    let threads = std::thread::available_parallelism().map_or(2, usize::from).min(8);
    let work = || {
        let mut total = T::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= range.end {
                return total;
            }
            match catch_unwind(AssertUnwindSafe(|| run(seed))) {
                Ok(one) => total.add(&one),
                Err(panic) => {
                    eprintln!("{what}: seed {seed} failed; repeat with RINGWAL_MODEL_SEED={seed}");
                    next.store(range.end, Ordering::Relaxed);
                    resume_unwind(panic);
                }
            }
        }
    };
    let total = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut total = T::default();
        for thread in threads {
            match thread.join() {
                Ok(one) => total.add(&one),
                Err(panic) => resume_unwind(panic),
            }
        }
        total
    });
    let seconds = begun.elapsed().as_secs_f64();
    println!("{what}: seeds {range:?} in {seconds:.1} s: {total:?}");
    total
}

#[test]
fn nothing_acknowledged_is_lost_and_nothing_lost_comes_back() {
    let counts = run_seeds("model", SEEDS, |seed| {
        let mut world = World::new(seed);
        world.run(LIVES);
        world.counts
    });
    if number("RINGWAL_MODEL_SEED").is_none() && number("RINGWAL_MODEL_SEEDS").is_none() {
        assert!(counts.crash_points >= 20_000, "too few crash points: {counts:?}");
        let happened = [counts.torn, counts.moved, counts.poisoned, counts.full, counts.closes];
        assert!(happened.iter().all(|count| *count > 100), "too little happened: {counts:?}");
    }
}

#[test]
fn a_seed_is_a_run_bit_for_bit() {
    run_seeds("twice", SEEDS_TWICE, |seed| {
        let run = || {
            let mut world = World::new(seed);
            world.run(LIVES);
            (world.sim.trace_hash(), world.counts)
        };
        let (first, second) = (run(), run());
        assert_eq!(first, second, "seed {seed} gave two runs");
        first.1
    });
}

#[test]
fn two_journals_know_nothing_of_each_other() {
    run_seeds("two shards", SEEDS_TWICE, |seed| {
        let (mut left, mut right) = (World::new(2 * seed), World::new(2 * seed + 1));
        for _ in 0..8 {
            left.lives(1);
            right.lives(1);
        }
        left.run(1);
        right.run(1);
        left.counts.add(&right.counts);
        left.counts
    });
}

#[test]
fn threads_on_two_shards_find_their_records_again() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let written = append_from_threads(directory.path(), &[4, 5, 6, 7, 8]);
    reopen_and_compare(directory.path(), &written);
}

#[test]
fn rot_is_named_or_does_no_harm() {
    run_seeds("rot", SEEDS_DAMAGED, rot);
}

#[test]
fn writes_that_went_astray_are_named_or_do_no_harm() {
    run_seeds("astray", SEEDS_DAMAGED, astray);
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
