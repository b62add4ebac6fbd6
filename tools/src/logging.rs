//! What the library logs, on standard error: only when something is wrong, unless asked for more.

use tracing_subscriber::filter::LevelFilter;

/// Levels, as `--log` and `RUST_LOG` name them.
pub fn level(text: &str) -> Result<LevelFilter, String> {
    text.parse().map_err(|_| "one of off, error, warn, info, debug and trace".to_owned())
}

/// Logs from here on, up to `level`; without one, as `RUST_LOG` says where that is a level.
pub fn start(level: Option<LevelFilter>) {
    let from_environment = || std::env::var("RUST_LOG").ok().and_then(|text| text.parse().ok());
    let level = level.or_else(from_environment).unwrap_or(LevelFilter::WARN);
    // A second start in one process would be refused, and change nothing.
    let _ = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .try_init();
}
