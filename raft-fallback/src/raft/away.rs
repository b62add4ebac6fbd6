//! Which nodes do not answer Raft's requests: it is said once when that has lasted, and once when it is over.
//! openraft has a line for each heartbeat.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use openraft::Instant;

/// What is over sooner is not worth a line.
const SAID_AFTER: Duration = Duration::from_secs(1);

/// See the module. One short lock for each request, none per record.
#[derive(Debug)]
pub(super) struct Away<I>(Mutex<BTreeMap<u64, Silence<I>>>);

#[derive(Debug)]
struct Silence<I> {
    since: I,
    is_said: bool,
}

impl<I> Default for Away<I> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<I: Instant> Away<I> {
    /// A request has got no answer. For how long that has been so, when it is to be said.
    pub(super) fn handle_failed(&self, node: u64, now: I) -> Option<Duration> {
        let mut silent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let silence = silent.entry(node).or_insert(Silence { since: now, is_said: false });
        let lasted = now.saturating_duration_since(silence.since);
        let is_due = !silence.is_said && lasted >= SAID_AFTER;
        silence.is_said |= is_due;
        is_due.then_some(lasted)
    }

    /// A node has answered. How long it had not, when that was said.
    pub(super) fn handle_answered(&self, node: u64, now: I) -> Option<Duration> {
        let mut silent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let silence = silent.remove(&node)?;
        silence.is_said.then(|| now.saturating_duration_since(silence.since))
    }
}

#[cfg(test)]
mod tests {
    use openraft::type_config::TypeConfigExt as _;
    use openraft_rt_tokio::TokioRuntime;

    use super::*;

    #[test]
    fn a_node_that_is_away_is_said_once_and_once_when_it_is_back() {
        let start = crate::raft::Types::<TokioRuntime>::now();
        let away = Away::default();
        let at = |ms| start + Duration::from_millis(ms);
        // A heartbeat that is late is no news.
        assert_eq!(away.handle_failed(2, at(0)), None);
        assert_eq!(away.handle_answered(2, at(999)), None);
        let said: Vec<_> =
            (10..40).filter_map(|tenth| away.handle_failed(2, at(tenth * 100))).collect();
        assert_eq!(said, [Duration::from_secs(1)]);
        assert_eq!(away.handle_failed(3, at(4000)), None, "each for itself");
        assert_eq!(away.handle_answered(2, at(6000)), Some(Duration::from_secs(5)));
        assert_eq!(away.handle_answered(2, at(6100)), None);
        assert_eq!(away.handle_failed(2, at(6200)), None, "from the beginning");
    }
}
