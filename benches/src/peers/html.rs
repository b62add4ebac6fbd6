//! The page: for each workload a bar for each engine and the latency curves, in one file without scripts.

use std::fmt::Write as _;

use crate::cell::CURVE;
use crate::engine::Kind;
use crate::human;
use crate::machine::Machine;
use crate::summary::{Outcome, Summary, Table};
use crate::svg::{Anchor, Scale, Svg, escape, log_bounds};
use crate::table::{COLUMNS, cells, open_cell, remark, verdict};

const STYLE: &str = concat!(
    include_str!("../../../tools/src/report/style.css"),
    "svg .bar { fill: var(--probe); } svg .own { fill: var(--accent); }\n\
     svg .unranked { opacity: .45; } svg .name { fill: var(--ink); }\n\
     svg .line.other { stroke: var(--probe); stroke-width: 1.3; opacity: .7; }\n\
     svg .line.mine { stroke: var(--accent); stroke-width: 2.2; }\n"
);
/// Width of a drawing.
const WIDTH: f64 = 1040.0;
/// Where bars begin.
const BARS_FROM: f64 = 150.0;
/// Where curves begin and end; their names are behind.
const CURVES_FROM: f64 = 70.0;
const CURVES_TO: f64 = WIDTH - 130.0;
/// Height of a bar and the gap below it.
const BAR: f64 = 22.0;

/// The whole page.
pub fn page(summary: &Summary, machine: &Machine) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>ringwal and its peers</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <header>\n<p><span class=\"name\">ringwal and its peers</span></p>\n\
         <h1>Durable writes per second, side by side</h1>\n<p>{}</p>\n\
         <p>Medians of {} runs, engines taking turns. Every engine is set to be durable before it returns; \
         the device's own flushes are counted, and who acknowledges more than they cover is marked.</p>\n\
         </header>\n",
        escape(&machine.line()),
        summary.repeat
    );
    for table in &summary.tables {
        let _ = write!(
            page,
            "<section>\n<h2>{}: {}</h2>\n",
            table.workload.name,
            escape(table.workload.title)
        );
        for line in verdict(table) {
            let _ = writeln!(page, "<p class=\"lead\">{}</p>", escape(&line));
        }
        if table.is_open() {
            page_open(&mut page, table);
        } else {
            page.push_str(&bars(table));
            page.push_str(&curves(table));
            page_table(&mut page, table);
        }
        page.push_str("</section>\n");
    }
    page.push_str(
        "<section>\n<h2>How each makes an append durable</h2>\n<div class=\"scroll\"><table>\n",
    );
    for (name, how, _) in &summary.contenders {
        let _ = writeln!(page, "<tr><td>{name}</td><td class=\"text\">{}</td></tr>", escape(how));
    }
    let _ = write!(
        page,
        "</table></div>\n</section>\n<section>\n<h2>Command</h2>\n<pre>{}</pre>\n</section>\n\
         </main>\n</body>\n</html>\n",
        escape(&machine.command)
    );
    page
}

/// A bar for each engine that is durable: beside one that is not, all others would look alike.
fn bars(table: &Table) -> String {
    let shown: Vec<_> = table.outcomes.iter().filter(|outcome| outcome.durable).collect();
    let most = shown.iter().map(|outcome| outcome.median.operations_per_second).fold(1.0, f64::max);
    let height = shown.len() as f64 * BAR + 6.0;
    let label = format!("records per second in {}", table.workload.name);
    let mut svg = Svg::new(WIDTH, height, "chart", &label);
    let scale = Scale::linear(0.0, most, BARS_FROM, WIDTH - 90.0);
    for (index, outcome) in shown.into_iter().enumerate() {
        let top = index as f64 * BAR + 3.0;
        let speed = outcome.median.operations_per_second;
        let own = if outcome.kind.is_own() { " own" } else { "" };
        let unranked = if outcome.is_ranked() { "" } else { " unranked" };
        let corners = [(BARS_FROM, top), (scale.at(speed), top)];
        svg.text((BARS_FROM - 8.0, top + 12.0), Anchor::End, "name", outcome.engine);
        svg.area(&corners, top + BAR - 7.0, &format!("bar{own}{unranked}"));
        let middle = (scale.at(speed) + 42.0, top + 12.0);
        svg.text(middle, Anchor::Middle, "tick", &human::per_second(speed));
    }
    svg.finish()
}

/// Latency over percentiles, as far apart as they are rare.
fn curves(table: &Table) -> String {
    const HEIGHT: f64 = 260.0;
    let shown = || {
        let rows = table.outcomes.iter();
        rows.filter(|outcome| outcome.is_ranked() || outcome.kind == Kind::Device)
            .filter_map(|outcome| Some((outcome, outcome.median.latency.as_ref()?)))
    };
    let values = shown().flat_map(|(_, latency)| latency.curve_ns.iter().map(|&ns| ns as f64));
    let (low, high) = values.fold((f64::MAX, 0.0_f64), |(l, h), v| (l.min(v), h.max(v)));
    if high == 0.0 {
        return String::new();
    }
    let (low, high) = log_bounds(low, high);
    let label = format!("latency by percentile in {}", table.workload.name);
    let mut svg = Svg::new(WIDTH, HEIGHT, "chart", &label);
    let across = Scale::linear(0.0, (CURVE.len() - 1) as f64, CURVES_FROM, CURVES_TO);
    let up = Scale::logarithmic(low, high, HEIGHT - 24.0, 10.0);
    grid(&mut svg, &up);
    for (position, percentile) in CURVE.iter().enumerate() {
        let at = (across.at(position as f64), HEIGHT - 6.0);
        svg.text(at, Anchor::Middle, "tick", &format!("{percentile} %"));
    }
    let mut labels: Vec<(f64, &str)> = Vec::new();
    for (outcome, latency) in shown() {
        let points: Vec<_> = latency
            .curve_ns
            .iter()
            .enumerate()
            .map(|(position, &ns)| (across.at(position as f64), up.at(ns as f64)))
            .collect();
        let class = match outcome.kind {
            Kind::Own => "line mine",
            Kind::Device => "line probe",
            _ => "line other",
        };
        svg.curve(&points, class, outcome.engine);
        labels.push((points.last().map_or(0.0, |point| point.1), outcome.engine));
    }
    labels.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut free = 0.0;
    for (y, name) in labels {
        let y = (y + 4.0).max(free);
        free = y + 12.0;
        svg.text((WIDTH - 4.0, y), Anchor::End, "tick", name);
    }
    svg.finish()
}

/// Lines and labels of a logarithmic axis of time.
fn grid(svg: &mut Svg, up: &Scale) {
    for (tick, labelled) in up.log_ticks(6) {
        let y = up.at(tick);
        let class = if labelled { "grid" } else { "grid minor" };
        svg.line((CURVES_FROM, y), (CURVES_TO, y), class);
        if labelled {
            let at = (CURVES_FROM - 8.0, y + 4.0);
            svg.text(at, Anchor::End, "tick", &human::duration(tick as u64));
        }
    }
}

fn page_table(page: &mut String, table: &Table) {
    page.push_str("<div class=\"scroll\"><table>\n<tr><th>engine</th>");
    for column in COLUMNS {
        let _ = write!(page, "<th>{column}</th>");
    }
    page.push_str("<th></th></tr>\n");
    for outcome in &table.outcomes {
        let _ = write!(page, "<tr><td>{}</td>", outcome.engine);
        for cell in cells(outcome) {
            let _ = write!(page, "<td>{}</td>", escape(&human::unbreakable(&cell)));
        }
        let _ = writeln!(page, "<td class=\"text\">{}</td></tr>", escape(&remark(outcome)));
    }
    page.push_str("</table></div>\n");
}

fn page_open(page: &mut String, table: &Table) {
    page.push_str(&open_curves(table));
    page.push_str("<div class=\"scroll\"><table>\n<tr><th>p99.9 at</th>");
    let rates = table.rates();
    for rate in &rates {
        let _ = write!(page, "<th>{}</th>", human::per_second(*rate as f64));
    }
    page.push_str("<th></th></tr>\n");
    for (outcome, _) in table.knees() {
        let _ = write!(page, "<tr><td>{}</td>", outcome.engine);
        for &rate in &rates {
            let cell = open_cell(table, outcome.engine, rate);
            let _ = write!(page, "<td>{}</td>", human::unbreakable(&cell));
        }
        let _ = writeln!(page, "<td class=\"text\">{}</td></tr>", escape(&remark(outcome)));
    }
    page.push_str("</table></div>\n");
}

/// p99.9 over the rate, up to the knee.
fn open_curves(table: &Table) -> String {
    const HEIGHT: f64 = 300.0;
    let kept = |outcome: &&Outcome| {
        outcome.durable && outcome.keeps_rate() && outcome.median.latency.is_some()
    };
    let p999 = |outcome: &Outcome| outcome.median.latency.as_ref().map_or(0, |l| l.p999_ns) as f64;
    let values = table.outcomes.iter().filter(kept).map(p999);
    let (low, high) = values.fold((f64::MAX, 0.0_f64), |(l, h), v| (l.min(v), h.max(v)));
    let rates = table.rates();
    let (Some(&first), Some(&last)) = (rates.first(), rates.last()) else { return String::new() };
    if high == 0.0 {
        return String::new();
    }
    let (low, high) = log_bounds(low, high);
    let mut svg = Svg::new(WIDTH, HEIGHT, "chart", "99.9th percentile by rate");
    let across = Scale::logarithmic(first as f64, last as f64, CURVES_FROM, CURVES_TO);
    let up = Scale::logarithmic(low, high, HEIGHT - 24.0, 10.0);
    grid(&mut svg, &up);
    for &rate in &rates {
        let at = (across.at(rate as f64), HEIGHT - 6.0);
        svg.text(at, Anchor::Middle, "tick", &human::per_second(rate as f64));
    }
    for (Outcome { engine, kind, .. }, _) in table.knees() {
        let at_rates = rates.iter().filter_map(|&rate| table.at_rate(engine, rate));
        let points: Vec<_> = at_rates
            .filter(kept)
            .map(|o| (across.at(o.median.rate.unwrap_or(1) as f64), up.at(p999(o))))
            .collect();
        let class = match kind {
            Kind::Own | Kind::OwnTuned => "line mine",
            Kind::Device => "line probe",
            _ => "line other",
        };
        svg.curve(&points, class, engine);
        if let Some(&(x, y)) = points.last() {
            svg.text((x + 4.0, y - 4.0), Anchor::Middle, "tick", engine);
        }
    }
    svg.finish()
}
