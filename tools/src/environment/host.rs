//! The machine: kernel, processors, memory, limits, load.

use rustix::process::Resource;

use super::read_line;

/// The machine and this process's standing on it.
#[derive(Debug, Clone)]
pub struct Host {
    /// `uname -r`.
    pub kernel: String,
    /// Major and minor version of that.
    pub kernel_version: (u32, u32),
    /// Processor model.
    pub cpu: String,
    /// Processors this process may use.
    pub cpus: u32,
    /// Memory of the machine.
    pub memory_bytes: u64,
    /// Kind of virtual machine or container, or "none".
    pub virtualization: String,
    /// RLIMIT_MEMLOCK.
    pub memlock: Memlock,
    /// Load averages.
    pub load: [f64; 3],
    /// The kernel's clock source.
    pub clock_source: String,
    /// System-call filter of this process.
    pub seccomp: Seccomp,
}

/// The limit of locked memory.
#[derive(Debug, Clone, Copy)]
pub struct Memlock {
    /// `None` is unlimited.
    pub bytes: Option<u64>,
    /// The process has CAP_IPC_LOCK: the limit does not apply to it.
    pub exempt: bool,
}

/// `Seccomp:` of /proc/self/status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seccomp {
    /// 0, or a kernel without it.
    Off,
    /// 1.
    Strict,
    /// 2: what containers do.
    Filter,
}

/// Looks around.
pub fn look() -> Host {
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    Host {
        kernel_version: parse_version(&kernel),
        cpu: cpu_model(&cpuinfo),
        cpus: std::thread::available_parallelism().map_or(1, |count| count.get() as u32),
        memory_bytes: memory_bytes(),
        virtualization: virtualization(&cpuinfo),
        memlock: Memlock {
            bytes: rustix::process::getrlimit(Resource::Memlock).current,
            exempt: has_ipc_lock(&status),
        },
        load: load(),
        clock_source: read_line("/sys/devices/system/clocksource/clocksource0/current_clocksource")
            .unwrap_or_default(),
        seccomp: match field(&status, "Seccomp:") {
            Some("1") => Seccomp::Strict,
            Some("2") => Seccomp::Filter,
            _ => Seccomp::Off,
        },
        kernel,
    }
}

fn parse_version(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|digits| digits.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

fn cpu_model(cpuinfo: &str) -> String {
    ["model name", "Model", "cpu model", "Hardware"]
        .iter()
        .find_map(|name| field(cpuinfo, name))
        .map(|value| value.trim_start_matches(':').trim().to_owned())
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

fn memory_bytes() -> u64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    field(&meminfo, "MemTotal:")
        .and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kibibytes| kibibytes * 1024)
}

fn virtualization(cpuinfo: &str) -> String {
    let mut kinds = Vec::new();
    let hypervisor =
        field(cpuinfo, "flags").is_some_and(|flags| flags.split(' ').any(|f| f == "hypervisor"));
    if hypervisor {
        let product = read_line("/sys/class/dmi/id/product_name");
        let vendor = read_line("/sys/class/dmi/id/sys_vendor");
        let name = product.or(vendor).filter(|name| name != "0");
        kinds.push(name.unwrap_or_else(|| "virtual machine".to_owned()));
    }
    let exists = |path: &str| std::path::Path::new(path).exists();
    if exists("/.dockerenv") || exists("/run/.containerenv") {
        kinds.push("container".to_owned());
    }
    if kinds.is_empty() { "none".to_owned() } else { kinds.join(", ") }
}

fn has_ipc_lock(status: &str) -> bool {
    const CAP_IPC_LOCK: u32 = 14;
    field(status, "CapEff:")
        .and_then(|value| u64::from_str_radix(value, 16).ok())
        .is_some_and(|capabilities| capabilities >> CAP_IPC_LOCK & 1 == 1)
}

fn load() -> [f64; 3] {
    let line = read_line("/proc/loadavg").unwrap_or_default();
    let mut numbers = line.split(' ').map(|value| value.parse().unwrap_or(0.0));
    std::array::from_fn(|_| numbers.next().unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_are_two_numbers() {
        assert_eq!(parse_version("6.18.44-fc-v595"), (6, 18));
        assert_eq!(parse_version("5.10.0-28-amd64"), (5, 10));
        assert_eq!(parse_version("weird"), (0, 0));
    }

    #[test]
    fn capabilities_are_read_from_their_mask() {
        assert!(has_ipc_lock("CapEff:\t000001ffffffffff\n"));
        assert!(!has_ipc_lock("CapEff:\t00000000a80425fb\n"));
        assert!(!has_ipc_lock(""));
    }
}
