//! Where it was measured.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};

use crate::device::Device;
use crate::human;

/// A machine at one time.
pub struct Machine {
    /// "2026-02-03 14:15 UTC".
    pub date: String,
    /// Processors that may be used, and their model.
    pub processors: String,
    /// "Linux 6.18.1".
    pub kernel: String,
    /// The disk.
    pub device: Device,
    /// Load before the start.
    pub load: f64,
    /// The command, word for word.
    pub command: String,
}

impl Machine {
    /// This one.
    ///
    /// # Errors
    /// When the directory does not exist.
    pub fn look(directory: &Path) -> Result<Machine> {
        std::fs::metadata(directory).with_context(|| format!("{}", directory.display()))?;
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map_or("unknown processor", |(_, model)| model);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Machine {
            date: human::date(since.as_nanos() as u64),
            processors: format!("{count} × {model}"),
            kernel: format!("Linux {}", read("/proc/sys/kernel/osrelease").trim()),
            device: Device::of(directory),
            load: read("/proc/loadavg")
                .split(' ')
                .next()
                .and_then(|l| l.parse().ok())
                .unwrap_or(0.0),
            command: command(),
        })
    }

    /// In one line.
    pub fn line(&self) -> String {
        let disk = match self.device.disk.as_str() {
            "" => "no disk to be seen".to_owned(),
            disk => format!("disk {disk} ({})", self.device.write_cache),
        };
        format!("{}, {}, {}, {disk}", self.date, self.processors, self.kernel)
    }

    /// Why the figures may mean little.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if cfg!(debug_assertions) {
            warnings.push("this is a debug build: use --release".to_owned());
        }
        if self.load > 0.5 {
            warnings.push(format!("the machine is busy: load {}", self.load));
        }
        if self.device.flushes().is_none() {
            warnings.push(
                "the device does not count flushes: durability is judged by the calls alone"
                    .to_owned(),
            );
        }
        warnings
    }
}

/// Without the path of the program.
fn command() -> String {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    format!("peers {}", arguments.join(" ")).trim_end().to_owned()
}
