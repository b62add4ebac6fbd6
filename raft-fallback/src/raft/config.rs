//! How openraft is set up: the times of elections, and what of it we rely on.

use std::time::Duration;

use openraft::{Config, StepDownPolicy};
use serde::de::{Deserialize, Deserializer, Error};

const HOUR: Duration = Duration::from_secs(3600);
/// How long a part of a snapshot may take, the last one with installing it.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(20);

/// The times that elections and the leader's lease go by, the same on all nodes of a cluster. Durations are
/// texts like `"100ms"`; each field has its default.
///
/// ```
/// use ringwal_raft_fallback::raft::config::RaftTimes;
/// use std::time::Duration;
///
/// let times: RaftTimes = toml::from_str("election_max = \"600ms\"")?;
/// times.check()?;
/// assert_eq!(times.heartbeat, Duration::from_millis(100));
/// assert_eq!(times.voter_lease(), Duration::from_millis(600));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A follower that hears nothing campaigns after [`RaftTimes::voter_lease`] and then a random time between
/// `election_min` and `election_max`: with the defaults 850 ms to 1 s after the last heartbeat.
#[derive(Clone, Eq, PartialEq, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RaftTimes {
    /// How often a leader says that it leads; an Append may take so long, and what its bytes take.
    /// Default 100 ms, 1 ms to 1 minute.
    #[serde(deserialize_with = "duration")]
    pub heartbeat: Duration,
    /// Shortest election timeout. Default 350 ms, at least two heartbeats.
    #[serde(deserialize_with = "duration")]
    pub election_min: Duration,
    /// Longest election timeout, which is also for how long a voter refuses others after it has heard of its
    /// leader. Default 500 ms, more than `election_min`, at most 1 hour.
    #[serde(deserialize_with = "duration")]
    pub election_max: Duration,
    /// By how much the clocks of two nodes may differ after `election_max`: so much shorter is the
    /// leader's lease. Default 50 ms, at least 1 ms; two heartbeats have to fit the rest.
    #[serde(deserialize_with = "duration")]
    pub clock_drift: Duration,
}

/// `"100ms"`, `"2s"`.
fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    humantime::parse_duration(&text).map_err(|error| {
        D::Error::custom(format!("{text:?} is no duration ({error}); write it like \"100ms\""))
    })
}

impl Default for RaftTimes {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(350),
            election_max: Duration::from_millis(500),
            clock_drift: Duration::from_millis(50),
        }
    }
}

/// Why times are not accepted.
#[derive(Clone, Eq, PartialEq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TimesError {
    /// A time is outside its bounds.
    #[error("{name} is {value:?}; it has to be {least:?} to {most:?}")]
    OutOfBounds {
        /// Which one.
        name: &'static str,
        /// What it is.
        value: Duration,
        /// Its least value, beside the others.
        least: Duration,
        /// Its greatest value, beside the others.
        most: Duration,
    },
    /// A time is not a whole number of milliseconds.
    #[error("{name} is {value:?}; whole milliseconds are needed")]
    NotWhole {
        /// Which one.
        name: &'static str,
        /// What it is.
        value: Duration,
    },
    /// openraft refuses what is made of them.
    #[error("openraft: {0}")]
    Refused(String),
}

impl RaftTimes {
    /// For how long a voter refuses others after it has taken an Append, and after its start.
    pub fn voter_lease(&self) -> Duration {
        self.election_max
    }

    /// Whether they are within their bounds.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self) -> Result<(), TimesError> {
        let millisecond = Duration::from_millis(1);
        let Self { heartbeat, election_min, election_max, clock_drift } = *self;
        let heartbeats = heartbeat.saturating_mul(2);
        let bounds = [
            ("heartbeat", heartbeat, millisecond, HOUR / 60),
            ("election_max", election_max, millisecond * 4, HOUR),
            ("election_min", election_min, heartbeats, election_max.saturating_sub(millisecond)),
            ("clock_drift", clock_drift, millisecond, election_max.saturating_sub(heartbeats)),
        ];
        for (name, value, least, most) in bounds {
            if value < least || value > most {
                return Err(TimesError::OutOfBounds { name, value, least, most });
            }
            if value.subsec_nanos() % 1_000_000 != 0 {
                return Err(TimesError::NotWhole { name, value });
            }
        }
        Ok(())
    }
}

/// openraft's settings with these times, of which the caller may change what is not listed here:
///
/// - no restored leadership (`enable_leader_restore`): an epoch belongs to one run of one process;
/// - pre-votes (`enable_pre_vote`): who comes back does not disturb a leader;
/// - **no elections** (`enable_elect`), until `raft.runtime_config().elect(true)`: a node that has started would
///   campaign at once, though as a voter it has to keep quiet for one lease; see [`serve`](super::serve);
/// - a leader that is taken out of the membership goes on leading (`removed_leader_step_down`): openraft would hand
///   over by itself 150 ms later, and nobody would have ended the lease and resolved what is in flight before.
///   Who changes the membership hands over first;
/// - heartbeats are never left out (`heartbeat_min_interval`), because the lease is counted from them.
///
/// # Errors
/// When the times are not within their bounds.
pub fn raft_config(cluster: &str, times: &RaftTimes) -> Result<Config, TimesError> {
    times.check()?;
    // Bounded above.
    let ms = |time: Duration| time.as_millis() as u64;
    let config = Config {
        cluster_name: cluster.to_owned(),
        heartbeat_interval: ms(times.heartbeat),
        heartbeat_min_interval: Some(0),
        election_timeout_min: ms(times.election_min),
        election_timeout_max: ms(times.election_max),
        install_snapshot_timeout: ms(SNAPSHOT_TIMEOUT),
        enable_leader_restore: Some(false),
        enable_pre_vote: Some(true),
        enable_elect: false,
        removed_leader_step_down: StepDownPolicy::Never,
        ..Config::default()
    };
    config.validate().map_err(|error| TimesError::Refused(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_accepted_and_are_what_openraft_gets() {
        let times: RaftTimes = toml::from_str("").unwrap();
        assert_eq!(times, RaftTimes::default());
        let config = raft_config("c", &times).unwrap();
        assert_eq!(config.heartbeat_interval, 100);
        assert_eq!((config.election_timeout_min, config.election_timeout_max), (350, 500));
        assert_eq!(
            (config.enable_leader_restore, config.enable_pre_vote),
            (Some(false), Some(true))
        );
        assert!(!config.enable_elect, "not before one lease after the start");
        assert_eq!(config.removed_leader_step_down, StepDownPolicy::Never);
    }

    #[test]
    fn times_that_do_not_fit_each_other_are_refused_by_name() {
        for (text, expected) in [
            ("heartbeat = \"0ms\"", "heartbeat is 0ns"),
            ("heartbeat = \"200ms\"", "election_min is 350ms; it has to be 400ms to 499ms"),
            ("election_min = \"500ms\"", "election_min is 500ms"),
            ("election_max = \"2h\"", "election_max is 7200s"),
            ("clock_drift = \"400ms\"", "clock_drift is 400ms; it has to be 1ms to 300ms"),
            ("clock_drift = \"0ms\"", "clock_drift is 0ns"),
            ("election_max = \"500500us\"", "election_max is 500.5ms; whole milliseconds"),
        ] {
            let times: RaftTimes = toml::from_str(text).unwrap();
            let error = times.check().unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
            assert!(raft_config("c", &times).is_err());
        }
        let text = toml::from_str::<RaftTimes>("heartbeat = 100").unwrap_err().to_string();
        assert!(text.contains("string"), "{text}");
        let text = toml::from_str::<RaftTimes>("heartbeat = \"x\"").unwrap_err().to_string();
        assert!(text.contains("write it like \"100ms\""), "{text}");
        assert!(toml::from_str::<RaftTimes>("tick = \"1ms\"").is_err());
    }
}
