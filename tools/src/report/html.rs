//! `report.html`: one file that needs no script and no network, to be sent to a colleague.

use std::fmt::Write as _;

mod tables;

use super::charts::{self, COLORS};
use super::human;
use super::model::{Probe, Report, Run, Stage};
use super::svg::escape;
use super::{metadata, replication};
use tables::{page_environment, page_tables};

const STYLE: &str = include_str!("style.css");
/// Runs whose charts are shown without being asked for.
const OPEN_RUNS: [&str; 4] = ["idle", "loaded", "open", "window"];

/// The whole page.
pub fn page(report: &Report) -> String {
    let mut page = String::with_capacity(64 * 1024);
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"generator\" content=\"ringwal {}\">\n\
         <title>ringwal bench, {}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n",
        escape(&report.ringwal_version),
        human::date(report.started_unix_ns)
    );
    page_header(&mut page, report);
    page_warnings(&mut page, report);
    page_cards(&mut page, report);
    page_percentiles(&mut page, report);
    page_over_time(&mut page, report);
    page_stages(&mut page, report);
    page_replication(&mut page, report);
    page_metadata(&mut page, report);
    page_tables(&mut page, report);
    page_environment(&mut page, report);
    page_command(&mut page, report);
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

fn page_header(page: &mut String, report: &Report) {
    let environment = &report.environment;
    let mut place = vec![human::date(report.started_unix_ns)];
    let device = join(&[&environment.file_system, &environment.device], " on ");
    place.extend([device, environment.cpu.clone()]);
    if !environment.kernel.is_empty() {
        place.push(format!("Linux {}", environment.kernel));
    }
    place.retain(|part| !part.is_empty());
    let badge = match report.interrupted {
        true => " <span class=\"badge\">interrupted: partial results</span>",
        false => "",
    };
    let _ = write!(
        page,
        "<header>\n<p><span class=\"name\">ringwal bench</span>{badge}</p>\n<h1>{}</h1>\n\
         <p>{}</p>\n</header>\n",
        escape(&human::unbreakable(&report.verdict)),
        escape(&place.join(" · "))
    );
}

fn page_warnings(page: &mut String, report: &Report) {
    if report.warnings.is_empty() {
        return;
    }
    page.push_str("<ul class=\"warnings\">\n");
    for warning in &report.warnings {
        let _ = writeln!(page, "<li>{}</li>", escape(warning));
    }
    page.push_str("</ul>\n");
}

/// One of the big numbers.
struct Card {
    label: String,
    value: String,
    unit: &'static str,
    detail: String,
}

fn page_cards(page: &mut String, report: &Report) {
    let cards = cards(report);
    if cards.is_empty() {
        return;
    }
    page.push_str("<div class=\"cards\">\n");
    for Card { label, value, unit, detail } in cards {
        let _ = writeln!(
            page,
            "<div class=\"card\"><div class=\"label\">{}</div>\
             <div class=\"value\">{} <small>{unit}</small></div>\
             <div class=\"detail\">{}</div></div>",
            escape(&human::unbreakable(&label)),
            escape(&human::unbreakable(&value)),
            escape(&human::unbreakable(&detail))
        );
    }
    page.push_str("</div>\n");
}

fn cards(report: &Report) -> Vec<Card> {
    let measured = |name: &str| report.run(name).filter(|run| run.records > 0);
    let mut cards = Vec::new();
    if let Some(idle) = measured("idle") {
        cards.push(card_idle(idle, &report.probe));
    }
    if let Some(loaded) = measured("loaded") {
        cards.push(card_rate(loaded, format!("Loaded, {} clients", loaded.clients)));
    }
    if let Some(window) = measured("window") {
        cards.push(Card {
            label: format!("Window, {} in flight", window.in_flight),
            value: human::count(window.records_per_second),
            unit: "records/s",
            detail: format!(
                "{} in records of {}",
                human::bytes_per_second(window.bytes_per_second),
                human::bytes(window.record_bytes)
            ),
        });
    }
    if let Some(open) = measured("open") {
        let rate = open.rate.unwrap_or(open.records_per_second);
        cards.push(Card {
            label: format!("Open loop p99 at {}", human::per_second(rate)),
            value: human::duration(open.response.p99_ns),
            unit: "",
            detail: format!("service time {}", human::duration(open.service.p99_ns)),
        });
    }
    let others = report.runs.iter().filter(|run| {
        run.records > 0 && !["idle", "loaded", "window", "open"].contains(&run.name.as_str())
    });
    cards.extend(others.map(|run| card_rate(run, run.name.clone())));
    cards.truncate(4);
    cards
}

fn card_idle(idle: &Run, probe: &Probe) -> Card {
    match idle.ratio_to_probe_p50 {
        Some(ratio) => Card {
            label: "Idle p50, times the bare device".to_owned(),
            value: human::ratio(ratio),
            unit: "",
            detail: format!(
                "{} beside {}",
                human::duration(idle.response.p50_ns),
                human::duration(probe.p50_ns)
            ),
        },
        None => Card {
            label: "Idle p50".to_owned(),
            value: human::duration(idle.response.p50_ns),
            unit: "",
            detail: "without a probe to set it beside".to_owned(),
        },
    }
}

fn card_rate(run: &Run, label: String) -> Card {
    Card {
        label,
        value: human::count(run.records_per_second),
        unit: "records/s",
        detail: format!(
            "p50 {}, p99 {}",
            human::duration(run.response.p50_ns),
            human::duration(run.response.p99_ns)
        ),
    }
}

fn page_percentiles(page: &mut String, report: &Report) {
    let chart = charts::percentiles(report, 1030.0, 360.0, "wide");
    if chart.is_empty() {
        return;
    }
    page.push_str(
        "<section>\n<h2>Latency by percentile</h2>\n\
         <p class=\"lead\">From the intended start of a record to its receipt. Each step to the \
         right is one nine more; the grey line is the bare device.</p>\n",
    );
    page.push_str("<ul class=\"legend\">\n");
    if !report.probe.percentiles.is_empty() {
        page.push_str("<li><i></i>bare device</li>\n");
    }
    for (index, run) in report.runs.iter().enumerate() {
        if !run.percentiles.is_empty() {
            let class = index % COLORS;
            let _ = writeln!(page, "<li><i class=\"s{class}\"></i>{}</li>", escape(&run.name));
        }
    }
    page.push_str("</ul>\n");
    page.push_str(&chart);
    page.push_str(&charts::percentiles(report, 720.0, 340.0, "medium"));
    page.push_str(&charts::percentiles(report, 350.0, 300.0, "narrow"));
    page.push_str("</section>\n");
}

fn page_over_time(page: &mut String, report: &Report) {
    if report.runs.iter().all(|run| run.intervals.is_empty()) {
        return;
    }
    page.push_str(
        "<section>\n<h2>Over time</h2>\n<p class=\"lead\">Throughput; median (bold), 99th \
         percentile and maximum (dotted) of the response; and where the records lie, stronger \
         for more of them.</p>\n",
    );
    for (index, run) in report.runs.iter().enumerate() {
        if run.intervals.is_empty() {
            continue;
        }
        let open = if OPEN_RUNS.contains(&run.name.as_str()) { " open" } else { "" };
        let _ = write!(
            page,
            "<details class=\"run\"{open}><summary><h3>{}</h3>\
             <span class=\"about\">{}</span></summary>\n<div class=\"panels\">\n",
            escape(&run.name),
            escape(&run.description)
        );
        for (title, chart) in [
            ("Records per second", charts::throughput(run, index)),
            ("Latency", charts::latency_over_time(run, index)),
            ("Heat map", charts::heat_map(run)),
        ] {
            if !chart.is_empty() {
                let _ = writeln!(page, "<div><h4>{title}</h4>{chart}</div>");
            }
        }
        page.push_str("</div>\n</details>\n");
    }
    page.push_str("</section>\n");
}

fn page_stages(page: &mut String, report: &Report) {
    if report.runs.iter().all(|run| run.stages.is_empty()) {
        return;
    }
    page.push_str(
        "<section>\n<h2>Where the time goes</h2>\n<p class=\"lead\">Each stage of a record's \
         way: median solid, 99th percentile pale; one scale for each run.</p>\n\
         <div class=\"stages\">\n",
    );
    for (index, run) in report.runs.iter().enumerate() {
        if run.stages.is_empty() {
            continue;
        }
        let longest = run.stages.iter().map(|stage| stage.p99_ns).max().unwrap_or(0).max(1);
        let class = index % COLORS;
        let _ = writeln!(page, "<div class=\"s{class}\"><h3>{}</h3>", escape(&run.name));
        for stage in &run.stages {
            page_stage(page, stage, longest);
        }
        page.push_str("</div>\n");
    }
    page.push_str("</div>\n</section>\n");
}

fn page_replication(page: &mut String, report: &Report) {
    let lines = replication::lines(report);
    if lines.is_empty() {
        return;
    }
    page.push_str(
        "<section>\n<h2>What replication costs</h2>\n<p class=\"lead\">Runs of this measurement \
         beside each other. The way to a majority is made of durations that one clock has measured: \
         the follower says how long it took from arrival to durable, and what is left between sent \
         and reported is the network and the queues. Medians, of samples; wake-up is what is left of \
         the median response.</p>\n<ul>\n",
    );
    for line in lines {
        let _ = writeln!(page, "<li>{}</li>", escape(&human::unbreakable(&line)));
    }
    page.push_str("</ul>\n</section>\n");
}

fn page_metadata(page: &mut String, report: &Report) {
    let lines = metadata::lines(report);
    if lines.is_empty() {
        return;
    }
    page.push_str(
        "<section>\n<h2>A metadata store</h2>\n<p class=\"lead\">What was aimed at, or claimed before, \
         with what was measured beside it. Its nodes are processes of their own on one disk.</p>\n<ul>\n",
    );
    for line in lines {
        let _ = writeln!(page, "<li>{}</li>", escape(&human::unbreakable(&line)));
    }
    page.push_str("</ul>\n</section>\n");
}

fn page_stage(page: &mut String, stage: &Stage, longest_ns: u64) {
    let share = |ns: u64| 100.0 * ns as f64 / longest_ns as f64;
    let _ = writeln!(
        page,
        "<div class=\"stage\"><div>{}</div><div class=\"track\">\
         <i style=\"width:{:.1}%\"></i><b style=\"width:{:.1}%\"></b></div>\
         <div class=\"times\">{} <span>· {}</span></div></div>",
        escape(&stage.name),
        share(stage.p99_ns),
        share(stage.p50_ns),
        human::duration(stage.p50_ns),
        human::duration(stage.p99_ns)
    );
}

fn page_command(page: &mut String, report: &Report) {
    let _ = write!(
        page,
        "<section>\n<h2>Command</h2>\n<pre>{}</pre>\n</section>\n\
         <footer>ringwal {}, seed {}, {} in all. Exact numbers: report.json; whole histograms: \
         latency.hlog and latency.hgrm.</footer>\n",
        escape(&report.command),
        escape(&report.ringwal_version),
        report.seed,
        human::duration(report.duration_ns)
    );
}

fn join(parts: &[&str], separator: &str) -> String {
    let parts: Vec<&str> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
    parts.join(separator)
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn the_page_needs_nothing_else() {
        let (report, _) = sample::report();
        let page = page(&report);
        for forbidden in ["<script", "http://", "https://", "<link", "@import", "NaN"] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
        for required in ["prefers-color-scheme: dark", "viewport", "data:image/png;base64,"] {
            assert!(page.contains(required), "{required}");
        }
        assert!(page.len() < 400_000, "{}", page.len());
    }

    #[test]
    fn text_from_outside_is_escaped() {
        let (mut report, _) = sample::report();
        let evil = "<script>alert('x')</script>";
        report.command = evil.to_owned();
        report.verdict = evil.to_owned();
        report.warnings.push(evil.to_owned());
        report.environment.device_model = evil.to_owned();
        report.runs[0].name = evil.to_owned();
        report.runs[0].description = evil.to_owned();
        report.runs[0].stages[0].name = evil.to_owned();
        report.probe.method = evil.to_owned();
        assert!(!page(&report).contains("<script"));
    }

    #[test]
    fn partial_reports_have_a_page_with_a_badge() {
        let mut report = Report { interrupted: true, ..Report::default() };
        assert!(page(&report).contains("interrupted: partial results"));
        let (whole, _) = sample::report();
        report.runs = whole.runs[3..].to_vec();
        let page = page(&report);
        assert!(!page.contains("NaN") && page.contains("Window"));
    }
}
