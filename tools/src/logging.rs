//! What the library logs, on standard error: only when something is wrong, unless asked for more.

use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Levels, as `--log` and `RUST_LOG` name them.
pub fn level(text: &str) -> Result<LevelFilter, String> {
    text.parse().map_err(|_| "one of off, error, warn, info, debug and trace".to_owned())
}

/// Logs from here on, up to `level`; without one, as `RUST_LOG` says where that is a level.
pub fn start(level: Option<LevelFilter>) {
    let from_environment = || std::env::var("RUST_LOG").ok().and_then(|text| text.parse().ok());
    let level = level.or_else(from_environment).unwrap_or(LevelFilter::WARN);
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(std::io::stderr);
    // A second start in one process would be refused, and change nothing.
    let _ = tracing_subscriber::registry().with(lines.with_filter(filter(level))).try_init();
}

/// openraft warns at each heartbeat that a node does not answer, which `ringwal_raft_fallback` says once, and calls
/// it an error that a caller asks when it ends, which that caller is told. So below `debug` only what ends Raft
/// here is logged of it.
fn filter(level: LevelFilter) -> Targets {
    let all = Targets::new().with_default(level);
    match level {
        LevelFilter::DEBUG | LevelFilter::TRACE => all,
        level => all
            .with_target("openraft", level.min(LevelFilter::ERROR))
            .with_target("openraft::raft", LevelFilter::OFF),
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn a_node_that_is_away_is_not_logged_at_each_heartbeat() {
        let heartbeat = "openraft::core::heartbeat::worker";
        for level in [LevelFilter::WARN, LevelFilter::INFO] {
            let filter = filter(level);
            assert!(!filter.would_enable(heartbeat, &Level::WARN));
            assert!(!filter.would_enable("openraft::raft", &Level::ERROR));
            assert!(filter.would_enable("openraft::core::raft_core", &Level::ERROR));
            assert!(filter.would_enable("ringwal_raft_fallback::raft::network", &Level::WARN));
        }
        assert!(filter(LevelFilter::DEBUG).would_enable(heartbeat, &Level::WARN));
        assert!(!filter(LevelFilter::OFF).would_enable("openraft::core::raft_core", &Level::ERROR));
    }
}
