//! Says what a run does, when somebody repeats one to see it.

use std::sync::atomic::{AtomicBool, Ordering};

static TELLS: AtomicBool = AtomicBool::new(false);

/// From now on, runs say what they do.
pub fn switch_on() {
    TELLS.store(true, Ordering::Relaxed);
}

/// Says it, when somebody wants to know.
pub fn tell(what: impl FnOnce() -> String) {
    if TELLS.load(Ordering::Relaxed) {
        println!("{}", what());
    }
}
