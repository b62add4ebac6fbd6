//! The progress line on a terminal, on standard error; silence when piped.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Redrawn at most so often.
const REDRAW_INTERVAL: Duration = Duration::from_millis(100);
/// Width of the bar in characters.
const BAR_WIDTH: usize = 24;

/// Whether `stream` takes colours: a terminal that understands them, and no NO_COLOR.
pub fn colour_allowed(is_terminal: bool) -> bool {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    is_terminal && set("NO_COLOR").is_none() && set("TERM").is_none_or(|term| term != "dumb")
}

/// One line that says what is being measured and how far it is.
#[derive(Debug)]
pub struct Progress {
    terminal: bool,
    colour: bool,
    planned: Duration,
    line: Mutex<Line>,
}

#[derive(Debug, Default)]
struct Line {
    drawn: Option<Instant>,
    visible: bool,
    started: Option<Instant>,
}

impl Progress {
    /// A line for a job that should take `planned`.
    pub fn new(planned: Duration) -> Progress {
        let terminal = io::stderr().is_terminal();
        let colour = colour_allowed(terminal);
        Progress { terminal, colour, planned, line: Mutex::default() }
    }

    /// Says what is going on now; cheap enough to be called often.
    pub fn show(&self, what: &str) {
        if !self.terminal {
            return;
        }
        let mut line = self.line.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let now = Instant::now();
        if line.drawn.is_some_and(|drawn| now - drawn < REDRAW_INTERVAL) {
            return;
        }
        let elapsed = now - *line.started.get_or_insert(now);
        line.drawn = Some(now);
        line.visible = true;
        let text = draw(what, elapsed, self.planned, self.colour);
        let _ = write!(io::stderr().lock(), "\r{text}\x1b[K");
    }

    /// Takes the line away.
    pub fn clear(&self) {
        let mut line = self.line.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if std::mem::take(&mut line.visible) {
            line.drawn = None;
            let _ = write!(io::stderr().lock(), "\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn draw(what: &str, elapsed: Duration, planned: Duration, colour: bool) -> String {
    let fraction = (elapsed.as_secs_f64() / planned.as_secs_f64().max(0.001)).min(1.0);
    let filled = (fraction * BAR_WIDTH as f64) as usize;
    let bar: String = (0..BAR_WIDTH).map(|i| if i < filled { '━' } else { '─' }).collect();
    let (start, end) = if colour { ("\x1b[36m", "\x1b[0m") } else { ("", "") };
    let left = planned.saturating_sub(elapsed).as_secs();
    format!("{start}{bar}{end} {what}, {left} s left")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_fills_and_never_overflows() {
        let second = Duration::from_secs(1);
        let half = draw("idle", second, 2 * second, false);
        assert_eq!(half.matches('━').count(), BAR_WIDTH / 2);
        let over = draw("idle", 3 * second, 2 * second, true);
        assert_eq!(over.matches('━').count(), BAR_WIDTH);
        assert!(over.contains("\x1b[36m") && over.ends_with("idle, 0 s left"), "{over}");
        assert!(!half.contains('\x1b'));
    }
}
