//! Checks of the machine: clock, scheduler stalls, load, and the build of this program.

use std::time::Duration;

use super::{Check, Severity};
use crate::bench::stalls;
use crate::environment::Surroundings;

/// How long a thread spins to see whether it is left alone.
const SPIN: Duration = Duration::from_millis(250);
/// A gap that shows in percentiles.
const GAP_NOTED_NS: u64 = 2_000_000;
/// A gap that shows everywhere.
const GAP_WARNED_NS: u64 = 10_000_000;
/// Clock sources that are read without a system call.
const FAST_CLOCKS: [&str; 4] =
    ["tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter"];

/// All of them.
pub fn checks(found: &Surroundings) -> Vec<Check> {
    vec![clock(found), load(found), scheduler_stalls()]
}

fn clock(found: &Surroundings) -> Check {
    let name = &found.host.clock_source;
    let shown = if name.is_empty() { "unknown" } else { name };
    let check = Check::new("clock source", "tsc, kvm-clock or the like", shown);
    if FAST_CLOCKS.contains(&shown) {
        check
    } else if name.is_empty() {
        check.severity(Severity::Note)
    } else {
        check.severity(Severity::Warning).fix(
            "reading this clock is a system call, which distorts short latencies; see \
             /sys/devices/system/clocksource/clocksource0/available_clocksource",
        )
    }
}

fn load(found: &Surroundings) -> Check {
    let [one, five, fifteen] = found.host.load;
    let text = format!("{one:.2} {five:.2} {fifteen:.2} on {} processors", found.host.cpus);
    let check = Check::new("load", "below half of the processors", text);
    if one > f64::from(found.host.cpus) / 2.0 {
        check.severity(Severity::Note).fix("measure when nothing else runs")
    } else {
        check
    }
}

fn scheduler_stalls() -> Check {
    let stalls = stalls::spin(SPIN);
    let longest = stalls.max_ns as f64 / 1e6;
    let text = format!(
        "longest gap {longest:.2} ms, {} above 1 ms, in {} ms of spinning",
        stalls.count,
        SPIN.as_millis()
    );
    let check = Check::new("scheduler stalls", "no gap above 2 ms", text);
    match stalls.max_ns {
        gap if gap > GAP_WARNED_NS => check.severity(Severity::Warning).fix(
            "something takes the processor away (a busy host, a CPU quota): tail latencies are \
             its doing",
        ),
        gap if gap > GAP_NOTED_NS => {
            check.severity(Severity::Note).fix("measure when nothing else runs")
        }
        _ => check,
    }
}
