//! One screen of results for a terminal, or for a pipe: no more than 30 lines.

use std::fmt::Write as _;

use super::human;
use super::model::{Probe, Report, Run};
use super::{metadata, replication};

/// Narrowest screen that is laid out for.
const WIDTH_MIN: usize = 60;
/// Warnings beyond these are only counted; the report has them all.
const WARNINGS_MAX: usize = 3;
/// Runs beyond these are only counted.
const RUNS_MAX: usize = 12;
/// With more runs than these there is no room for the stages of one.
const RUNS_WITH_STAGES_MAX: usize = 6;

/// What replication costs takes so many lines at most; the report has them all.
const REPLICATION_LINES_MAX: usize = 4;

/// Where the facts about device and probe begin.
const SETTING_INDENT: usize = 9;

const BOLD: &str = "1";
const DIM: &str = "2";
const YELLOW: &str = "33";

/// The results in one screen of `width` columns. The caller decides about `color` (a
/// terminal, and no NO_COLOR).
pub fn screen(report: &Report, color: bool, width: usize) -> String {
    let mut screen = Screen { text: String::new(), color, width: width.max(WIDTH_MIN) };
    screen.line("", "");
    screen.paragraph(BOLD, &report.verdict, 0);
    screen.line("", "");
    for line in setting(report) {
        screen.paragraph("", &line, SETTING_INDENT);
    }
    screen.line("", "");
    screen_runs(&mut screen, report);
    let few = report.runs.len() <= RUNS_WITH_STAGES_MAX;
    if let Some(run) = report.primary().filter(|run| few && !run.stages.is_empty()) {
        screen.line("", "");
        screen_stages(&mut screen, run);
    }
    let replication = replication::lines(report);
    if !replication.is_empty() {
        screen.line("", "");
        for line in replication.iter().take(REPLICATION_LINES_MAX) {
            screen.paragraph("", line, 2);
        }
    }
    let metadata = metadata::lines(report);
    if !metadata.is_empty() {
        screen.line("", "");
        for line in &metadata {
            screen.paragraph("", line, 2);
        }
    }
    screen_warnings(&mut screen, report);
    screen.text
}

struct Screen {
    text: String,
    color: bool,
    width: usize,
}

impl Screen {
    /// A line, cut to the width.
    fn line(&mut self, style: &str, line: &str) {
        let line = cut(line, self.width);
        let line = line.trim_end();
        let _ = if self.color && !style.is_empty() && !line.is_empty() {
            writeln!(self.text, "\x1b[{style}m{line}\x1b[0m")
        } else {
            writeln!(self.text, "{line}")
        };
    }

    /// Lines broken between words, further ones indented.
    fn paragraph(&mut self, style: &str, text: &str, indent: usize) {
        for line in wrapped(text, self.width, indent) {
            self.line(style, &line);
        }
    }
}

fn setting(report: &Report) -> Vec<String> {
    let environment = &report.environment;
    let device = [
        environment.file_system.clone(),
        match environment.device.as_str() {
            "" => String::new(),
            device => format!("on {device}"),
        },
        match environment.device_model.as_str() {
            "" => String::new(),
            model => format!("({model})"),
        },
    ];
    let device: Vec<String> = device.into_iter().filter(|part| !part.is_empty()).collect();
    let mut facts = vec![device.join(" "), environment.write_cache.clone()];
    facts.push(format!("Linux {}", environment.kernel));
    facts.retain(|fact| !fact.is_empty());
    let mut lines = vec![format!("{:<8} {}", "device", facts.join(", "))];
    if report.probe.p50_ns > 0 {
        lines.push(probe_line(&report.probe));
    }
    lines
}

fn probe_line(probe: &Probe) -> String {
    format!(
        "{:<8} 4 KiB {}: p50 {}, p99 {}, {}, drift {}",
        "probe",
        probe.method,
        human::duration(probe.p50_ns),
        human::duration(probe.p99_ns),
        human::per_second(probe.operations_per_second),
        human::percent(probe.drift)
    )
}

fn screen_runs(screen: &mut Screen, report: &Report) {
    if report.runs.is_empty() {
        return;
    }
    let name_width = report.runs.iter().map(|run| run.name.chars().count()).max().unwrap_or(0);
    let name_width = name_width.clamp(8, 24);
    screen.line(
        DIM,
        &format!(
            "{:<name_width$} {:>9} {:>9} {:>8} {:>8} {:>8} {:>8}  {:>7}",
            "run", "records/s", "bytes/s", "p50", "p99", "p99.9", "max", "p50/dev"
        ),
    );
    for run in report.runs.iter().take(RUNS_MAX) {
        let line = format!(
            "{:<name_width$} {:>9} {:>9} {:>8} {:>8} {:>8} {:>8}  {:>7}",
            cut(&run.name, name_width),
            human::count(run.records_per_second),
            human::bytes_per_second(run.bytes_per_second).trim_end_matches("/s"),
            human::duration(run.response.p50_ns),
            human::duration(run.response.p99_ns),
            human::duration(run.response.p999_ns),
            human::duration(run.response.max_ns),
            run.ratio_to_probe_p50.map_or("–".to_owned(), human::ratio)
        );
        screen.line("", &line);
    }
    if report.runs.len() > RUNS_MAX {
        screen.line(DIM, &format!("… and {} more", report.runs.len() - RUNS_MAX));
    }
}

fn screen_stages(screen: &mut Screen, run: &Run) {
    let stages: Vec<String> = run
        .stages
        .iter()
        .filter(|stage| !replication::is_stage(&stage.name))
        .map(|stage| format!("{} {}", stage.name, human::duration(stage.p50_ns)))
        .collect();
    screen.paragraph("", &format!("{}, p50: {}", run.name, stages.join(" → ")), 2);
    let device_flushes = match run.device_flushes {
        Some(count) => format!(" (device {})", human::count(count as f64)),
        None => String::new(),
    };
    let rotations = match run.rotations {
        0 => "no rotation".to_owned(),
        1 => "1 rotation".to_owned(),
        count => format!("{count} rotations"),
    };
    screen.paragraph(
        "",
        &format!(
            "batches {} × {}, flushes {}{device_flushes}, {rotations}, CPU {}/record",
            human::count(run.batches as f64),
            human::count((run.records_per_batch * 10.0).round() / 10.0),
            human::count(run.flushes as f64),
            cpu_of(run),
        ),
        2,
    );
}

/// CPU time of a record, where it was measured.
fn cpu_of(run: &Run) -> String {
    match run.cpu_ns_per_record {
        0 => "–".to_owned(),
        time => human::duration(time),
    }
}

fn screen_warnings(screen: &mut Screen, report: &Report) {
    if report.warnings.is_empty() {
        return;
    }
    screen.line("", "");
    for warning in report.warnings.iter().take(WARNINGS_MAX) {
        for line in wrapped(&format!("warning: {warning}"), screen.width, 2).iter().take(2) {
            screen.line(YELLOW, line);
        }
    }
    if report.warnings.len() > WARNINGS_MAX {
        let more = report.warnings.len() - WARNINGS_MAX;
        screen.line(YELLOW, &format!("… and {more} more warnings in the report"));
    }
}

fn wrapped(text: &str, width: usize, indent: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in human::unbreakable(text).split(' ') {
        let line = lines.last_mut().expect("never empty");
        if !line.trim().is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(format!("{:indent$}{word}", ""));
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines.iter().map(|line| line.replace(human::NO_BREAK_SPACE, " ")).collect()
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(width.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn it_fits_one_screen() {
        let (mut report, _) = sample::report();
        report.warnings = vec!["Long ".repeat(60); 9];
        let many = report.runs[1].clone();
        report.runs.extend(std::iter::repeat_n(many, 12));
        let text = screen(&report, false, 80);
        assert!(text.lines().count() <= 30, "{text}");
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        assert!(!text.contains('\x1b'));
    }

    #[test]
    fn the_usual_report_takes_less_than_24_lines_and_says_the_ratio() {
        let (report, _) = sample::report();
        let text = screen(&report, false, 80);
        assert!(text.lines().count() < 24, "{text}");
        assert!(text.contains("p50/dev") && text.contains('×'), "{text}");
        assert!(screen(&report, true, 80).contains("\x1b[1mA lone record"));
    }

    #[test]
    fn an_empty_report_is_only_a_sentence() {
        let report = Report { verdict: "Nothing.".to_owned(), ..Report::default() };
        assert!(screen(&report, false, 10).contains("Nothing."));
    }
}
