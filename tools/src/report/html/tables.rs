//! The tables of the page: the runs with the probe, and the environment.

use std::fmt::Write as _;

use super::super::human;
use super::super::model::{Environment, Latency, Probe, Report, Run};
use super::super::svg::escape;
use super::join;

/// Latencies and rates of each run, and the work behind them.
pub fn page_tables(page: &mut String, report: &Report) {
    if report.runs.is_empty() && report.probe.operations == 0 {
        return;
    }
    page.push_str("<section>\n<h2>Runs</h2>\n<div class=\"scroll\"><table>\n<thead><tr>");
    page_cells(
        page,
        "th",
        &[
            "run",
            "records/s",
            "bytes/s",
            "p50",
            "p90",
            "p99",
            "p99.9",
            "max",
            "mean",
            "p50 / device",
        ],
    );
    page.push_str("</tr></thead>\n<tbody>\n");
    for run in &report.runs {
        page_response_row(page, run);
    }
    page_probe_row(page, &report.probe);
    page.push_str("</tbody></table></div>\n");
    if !report.runs.is_empty() {
        page_work_table(page, report);
    }
    page.push_str("</section>\n");
}

fn page_response_row(page: &mut String, run: &Run) {
    let partial = if run.interrupted { " <small>(partial)</small>" } else { "" };
    let _ = write!(page, "<tr><td class=\"name\">{}{partial}</td>", escape(&run.name));
    let mut cells = vec![
        human::count(run.records_per_second),
        human::bytes_per_second(run.bytes_per_second).trim_end_matches("/s").to_owned(),
    ];
    cells.extend(latency_cells(&run.response));
    cells.push(run.ratio_to_probe_p50.map_or("–".to_owned(), human::ratio));
    page_cells(page, "td", &cells);
    page.push_str("</tr>\n");
    if run.service != run.response {
        page.push_str("<tr class=\"aside\"><td>service time</td>");
        let mut cells = vec![String::new(), String::new()];
        cells.extend(latency_cells(&run.service));
        cells.push(String::new());
        page_cells(page, "td", &cells);
        page.push_str("</tr>\n");
    }
}

fn latency_cells(latency: &Latency) -> [String; 6] {
    let Latency { p50_ns, p90_ns, p99_ns, p999_ns, max_ns, mean_ns } = *latency;
    [p50_ns, p90_ns, p99_ns, p999_ns, max_ns, mean_ns].map(human::duration)
}

fn page_probe_row(page: &mut String, probe: &Probe) {
    if probe.operations == 0 {
        return;
    }
    let _ = write!(page, "<tr class=\"yardstick\"><td>bare device, {}</td>", escape(&probe.method));
    let sequential = human::bytes_per_second(probe.sequential_bytes_per_second);
    let mut cells = vec![
        human::count(probe.operations_per_second),
        format!("{} seq.", sequential.trim_end_matches("/s")),
    ];
    let times = [probe.p50_ns, probe.p90_ns, probe.p99_ns, probe.p999_ns, probe.max_ns];
    cells.extend(times.map(human::duration));
    cells.extend(["–".to_owned(), format!("drift {}", human::percent(probe.drift))]);
    page_cells(page, "td", &cells);
    page.push_str("</tr>\n");
}

fn page_work_table(page: &mut String, report: &Report) {
    page.push_str("<div class=\"scroll\"><table>\n<thead><tr>");
    page_cells(
        page,
        "th",
        &[
            "run",
            "records",
            "of",
            "batches",
            "records/batch",
            "flushes",
            "at the device",
            "rotations",
            "CPU/record",
            "stalls",
            "errors",
        ],
    );
    page.push_str("</tr></thead>\n<tbody>\n");
    for run in &report.runs {
        let stalls = match run.scheduler_stalls.count {
            0 => "0".to_owned(),
            count => format!("{count}, ≤ {}", human::duration(run.scheduler_stalls.max_ns)),
        };
        let _ = write!(page, "<tr><td class=\"name\">{}</td>", escape(&run.name));
        page_cells(
            page,
            "td",
            &[
                human::count(run.records as f64),
                human::bytes(run.record_bytes),
                human::count(run.batches as f64),
                human::count((run.records_per_batch * 10.0).round() / 10.0),
                human::count(run.flushes as f64),
                run.device_flushes.map_or("–".to_owned(), |count| human::count(count as f64)),
                run.rotations.to_string(),
                human::duration(run.cpu_ns_per_record),
                stalls,
                human::count(run.errors as f64),
            ],
        );
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody></table></div>\n");
}

fn page_cells(page: &mut String, element: &str, cells: &[impl AsRef<str>]) {
    for cell in cells {
        let _ = write!(page, "<{element}>{}</{element}>", escape(cell.as_ref()));
    }
}

/// Where it was measured.
pub fn page_environment(page: &mut String, report: &Report) {
    let facts = environment_facts(&report.environment);
    if facts.is_empty() {
        return;
    }
    page.push_str("<section>\n<h2>Environment</h2>\n<dl>\n");
    for (name, value) in facts {
        let _ = writeln!(
            page,
            "<div><dt>{name}</dt><dd>{}</dd></div>",
            escape(&human::unbreakable(&value))
        );
    }
    page.push_str("</dl>\n</section>\n");
}

fn environment_facts(environment: &Environment) -> Vec<(&'static str, String)> {
    let yes_no = |value: Option<bool>, yes: &str, no: &str| match value {
        Some(true) => yes.to_owned(),
        Some(false) => no.to_owned(),
        None => String::new(),
    };
    let alignment = environment.direct_io_alignment;
    let cpus = match environment.cpus {
        0 => environment.cpu.clone(),
        cpus => format!("{} ({cpus} usable)", environment.cpu),
    };
    let load = environment.load.map(|load| format!("{load:.2}")).join(", ");
    let facts = [
        ("Kernel", environment.kernel.clone()),
        ("Processor", cpus),
        ("Memory", nonzero(environment.memory_bytes, human::bytes)),
        ("Virtualization", environment.virtualization.clone()),
        ("Directory", environment.directory.clone()),
        ("File system", environment.file_system.clone()),
        ("Mount options", environment.mount_options.replace(',', ", ")),
        ("Device", join(&[&environment.device, &environment.device_model], ", ")),
        ("Kind", yes_no(environment.rotational, "rotating", "solid state")),
        ("Write cache", environment.write_cache.clone()),
        ("FUA writes", yes_no(environment.fua, "yes", "no")),
        ("I/O scheduler", environment.scheduler.clone()),
        (
            "Direct I/O",
            match (alignment.memory_bytes, alignment.offset_bytes) {
                (0, 0) => "not available".to_owned(),
                (memory, offset) => format!("aligned to {offset} B, memory to {memory} B"),
            },
        ),
        ("Engine I/O", join(&[&environment.io, &environment.sync], ", ")),
        ("Ring features", environment.ring_features.join(", ")),
        ("Memlock limit", environment.memlock_bytes.map_or("unlimited".to_owned(), human::bytes)),
        ("Load", load),
        ("Clock source", environment.clock_source.clone()),
        ("Build", join(&[&environment.build, &environment.compiler], ", ")),
    ];
    facts.into_iter().filter(|(_, value)| !value.is_empty()).collect()
}

fn nonzero(value: u64, shown: fn(u64) -> String) -> String {
    if value == 0 { String::new() } else { shown(value) }
}
