//! A bound on every step of this process: what waits for ever ends it with a message instead.

use std::io::Write as _;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// Aborts the process when it hears nothing for too long. Mounts and loop devices go with the
/// process.
#[derive(Debug)]
pub struct Watchdog {
    alive: Sender<String>,
}

impl Watchdog {
    /// Starts; the first step is `step`.
    pub fn new(step: &str, limit: Duration) -> Watchdog {
        let (alive, heard) = channel::<String>();
        let mut step = step.to_owned();
        std::thread::spawn(move || {
            loop {
                match heard.recv_timeout(limit) {
                    Ok(next) => step = next,
                    Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => {
                        let _ = writeln!(std::io::stderr(), "{step}: not done after {limit:?}");
                        std::process::abort();
                    }
                }
            }
        });
        Watchdog { alive }
    }

    /// The next step begins.
    pub fn step(&self, step: String) {
        let _ = self.alive.send(step);
    }
}
