//! A bound on a whole test: what waits for ever ends the process with a message instead.

use std::io::Write;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// Aborts the process when it is not dropped in time. Aborting runs no destructor: what must go
/// in any case has to be bound to the process itself.
#[must_use]
pub struct Watchdog {
    _alive: Sender<()>,
}

impl Watchdog {
    pub fn new(test: &'static str, limit: Duration) -> Self {
        let (alive, dropped) = channel::<()>();
        std::thread::spawn(move || {
            if dropped.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                // Not `eprintln!`, whose output the test harness would keep for itself.
                let _ = writeln!(std::io::stderr(), "{test} hangs: not done after {limit:?}");
                std::process::abort();
            }
        });
        Self { _alive: alive }
    }
}
