//! The charts of the report page, each one SVG.

use super::human;
use super::model::{HeatMap, Interval, PercentilePoint, Report, Run};
use super::png;
use super::svg::{Anchor, Scale, Svg, log_bounds, round_step};

/// Colours of the style sheet before they repeat.
pub const COLORS: usize = 6;

/// Width of the charts over time; the page shows them at about this width.
const PANEL_WIDTH: f64 = 340.0;
const PANEL_HEIGHT: f64 = 190.0;
/// Colour of the heat map, readable on light and on dark.
const HEAT_COLOR: [u8; 3] = [0xe0, 0x6c, 0x1f];
/// The faintest cell that is not empty.
const HEAT_ALPHA_MIN: f64 = 36.0;
/// About how wide a character of a tick's label is.
const CHARACTER_WIDTH: f64 = 6.6;
/// Labels on a latency axis need so much height each.
const LABEL_HEIGHT: f64 = 17.0;
/// No curve is drawn beyond 99.9999 %.
const NINES_MAX: f64 = 6.0;

/// One number of an interval.
type IntervalValue = fn(&Interval) -> u64;

/// Where in a drawing the data goes; the rest is labels.
struct Plot {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl Plot {
    fn panel() -> Plot {
        Plot { left: 54.0, right: PANEL_WIDTH - 14.0, top: 10.0, bottom: PANEL_HEIGHT - 26.0 }
    }
}

/// Class of the line of the n-th run.
pub fn series_class(index: usize) -> String {
    format!("line s{}", index % COLORS)
}

/// Percentile curves of all runs, with the probe in grey, over an axis of nines; drawn for a
/// width, since text does not scale.
pub fn percentiles(report: &Report, width: f64, height: f64, class: &str) -> String {
    let curves: Vec<(&[PercentilePoint], String, String)> =
        std::iter::once((
            report.probe.percentiles.as_slice(),
            "line probe".to_owned(),
            "bare device".to_owned(),
        ))
        .chain(report.runs.iter().enumerate().map(|(index, run)| {
            (run.percentiles.as_slice(), series_class(index), run.name.clone())
        }))
        .collect();
    let points = || curves.iter().flat_map(|(points, ..)| points.iter());
    let Some(lowest) = points().map(|point| point.value_ns).min() else { return String::new() };
    let highest = points().map(|point| point.value_ns).max().unwrap_or(lowest);
    let nines_end = curves.iter().map(|(points, ..)| last_nines(points)).fold(2.0, f64::max);

    let plot = Plot { left: 58.0, right: width - 20.0, top: 12.0, bottom: height - 46.0 };
    let (low, high) = log_bounds(lowest as f64, highest as f64);
    let x = Scale::linear(0.0, nines_end, plot.left, plot.right);
    let y = Scale::logarithmic(low, high, plot.bottom, plot.top);

    let mut svg = Svg::new(width, height, class, "Latency by percentile");
    latency_axis(&mut svg, &plot, &y);
    // Labels that would run into the one before are left out.
    let mut labelled_to = 0.0;
    for (nines, label) in [
        (0.0, "0"),
        (2_f64.log10(), "50 %"),
        (1.0, "90 %"),
        (2.0, "99 %"),
        (3.0, "99.9 %"),
        (4.0, "99.99 %"),
        (5.0, "99.999 %"),
        (6.0, "99.9999 %"),
    ] {
        if nines > nines_end + 0.01 {
            break;
        }
        svg.line((x.at(nines), plot.top), (x.at(nines), plot.bottom), "grid");
        // The axis says what they are; on a phone every sign counts.
        let label = if width < 500.0 { label.trim_end_matches(" %") } else { label };
        let half = label.chars().count() as f64 * CHARACTER_WIDTH / 2.0;
        let place = x.at(nines).min(width - 2.0 - half);
        if place - half > labelled_to + 6.0 {
            svg.text((place, plot.bottom + 17.0), Anchor::Middle, "tick", label);
            labelled_to = place + half;
        }
    }
    let middle = (plot.left + plot.right) / 2.0;
    svg.text((middle, height - 8.0), Anchor::Middle, "axis", "percentile of records");
    for (points, class, title) in &curves {
        let end = last_nines(points).min(nines_end);
        let places: Vec<(f64, f64)> = points
            .iter()
            .map(|point| (x.at(nines(point.percentile).min(end)), y.at(point.value_ns as f64)))
            .collect();
        svg.curve(&places, class, title);
    }
    svg.finish()
}

/// 90 % is one nine, 99 % two.
fn nines(percentile: f64) -> f64 {
    -(1.0 - percentile / 100.0).max(1e-12).log10()
}

/// Where a curve ends: the last percentile that its count can tell from the maximum.
fn last_nines(points: &[PercentilePoint]) -> f64 {
    let below_all = points.iter().rev().find(|point| point.percentile < 100.0);
    below_all.map_or(0.0, |point| nines(point.percentile)).min(NINES_MAX)
}

/// Records per second over time.
pub fn throughput(run: &Run, index: usize) -> String {
    let rates: Vec<(f64, f64)> = run
        .intervals
        .iter()
        .filter(|interval| interval.duration_ns > 0)
        .map(|interval| {
            let seconds = interval.duration_ns as f64 / 1e9;
            let middle = (interval.start_ns as f64 + interval.duration_ns as f64 / 2.0) / 1e9;
            (middle, interval.records as f64 / seconds)
        })
        .collect();
    let highest = rates.iter().map(|(_, rate)| *rate).fold(run.rate.unwrap_or(0.0), f64::max);
    let step = round_step(highest.max(1.0) / 4.0);
    let high = (highest * 1.05 / step).ceil() * step;
    let plot = Plot::panel();
    let y = Scale::linear(0.0, high, plot.bottom, plot.top);
    let x = time_scale(run, &plot);

    let label = format!("Records per second over time, {}", run.name);
    let mut svg = Svg::new(PANEL_WIDTH, PANEL_HEIGHT, "chart", &label);
    for tick in y.ticks((high / step).round() as u32) {
        svg.line((plot.left, y.at(tick)), (plot.right, y.at(tick)), "grid");
        svg.text((plot.left - 7.0, y.at(tick) + 4.0), Anchor::End, "tick", &human::count(tick));
    }
    time_axis(&mut svg, &plot, &x);
    if let Some(rate) = run.rate {
        svg.line((plot.left, y.at(rate)), (plot.right, y.at(rate)), "intended");
    }
    let places: Vec<(f64, f64)> =
        rates.iter().map(|(time, rate)| (x.at(*time), y.at(*rate))).collect();
    svg.area(&places, plot.bottom, &format!("area s{}", index % COLORS));
    svg.curve(&places, &series_class(index), &label);
    svg.finish()
}

/// Median, 99th percentile and maximum over time.
pub fn latency_over_time(run: &Run, index: usize) -> String {
    let plot = Plot::panel();
    let Some(y) = latency_scale(run, &plot) else { return String::new() };
    let x = time_scale(run, &plot);
    let label = format!("Response latency over time, {}", run.name);
    let mut svg = Svg::new(PANEL_WIDTH, PANEL_HEIGHT, "chart", &label);
    latency_axis(&mut svg, &plot, &y);
    time_axis(&mut svg, &plot, &x);
    let series: [(&str, &str, IntervalValue); 3] = [
        ("maximum", "max", |interval| interval.max_ns),
        ("99th percentile", "p99", |interval| interval.p99_ns),
        ("median", "p50", |interval| interval.p50_ns),
    ];
    for (title, class, value) in series {
        let places: Vec<(f64, f64)> = run
            .intervals
            .iter()
            .filter(|interval| interval.records > 0)
            .map(|interval| {
                let middle = interval.start_ns as f64 + interval.duration_ns as f64 / 2.0;
                (x.at(middle / 1e9), y.at(value(interval) as f64))
            })
            .collect();
        svg.curve(&places, &format!("{} {class}", series_class(index)), title);
    }
    svg.finish()
}

/// Time × latency, darker where more records are.
pub fn heat_map(run: &Run) -> String {
    let plot = Plot::panel();
    let (Some(y), Some(heat)) = (latency_scale(run, &plot), &run.heat_map) else {
        return String::new();
    };
    if heat.columns.is_empty() || heat.rows == 0 {
        return String::new();
    }
    let x = time_scale(run, &plot);
    let label = format!("Heat map of response latency over time, {}", run.name);
    let mut svg = Svg::new(PANEL_WIDTH, PANEL_HEIGHT, "chart", &label);
    latency_axis(&mut svg, &plot, &y);
    time_axis(&mut svg, &plot, &x);
    let (top, bottom) = (y.at(heat_top(heat)), y.at(heat.low_ns));
    let right = x.at(heat.columns.len() as f64 * heat.column_ns as f64 / 1e9);
    svg.image((plot.left, top), (right - plot.left, bottom - top), &heat_picture(heat));
    svg.finish()
}

fn heat_picture(heat: &HeatMap) -> Vec<u8> {
    let most = heat.columns.iter().flatten().copied().max().unwrap_or(0).max(1);
    let strongest = ((most + 1) as f64).ln();
    let alpha_of = |count: u64| match count {
        0 => 0,
        count => {
            let share = ((count + 1) as f64).ln() / strongest;
            (HEAT_ALPHA_MIN + share * (255.0 - HEAT_ALPHA_MIN)) as u8
        }
    };
    let mut alpha = Vec::with_capacity(heat.columns.len() * heat.rows as usize);
    for row in (0..heat.rows as usize).rev() {
        let counts = heat.columns.iter().map(|column| column.get(row).copied().unwrap_or(0));
        alpha.extend(counts.map(alpha_of));
    }
    png::encode(heat.columns.len() as u32, heat.rows, HEAT_COLOR, &alpha)
}

fn heat_top(heat: &HeatMap) -> f64 {
    heat.low_ns * (f64::from(heat.rows) / f64::from(heat.rows_per_octave.max(1))).exp2()
}

/// One scale for the lines and the heat map of a run, so that they can be read across.
fn latency_scale(run: &Run, plot: &Plot) -> Option<Scale> {
    let intervals = || run.intervals.iter().filter(|interval| interval.records > 0);
    let mut low = intervals().map(|interval| interval.p50_ns).min()? as f64;
    let mut high = intervals().map(|interval| interval.max_ns).max()? as f64;
    if let Some(heat) = &run.heat_map {
        low = low.min(heat.low_ns);
        high = high.max(heat_top(heat));
    }
    let (low, high) = log_bounds(low, high);
    Some(Scale::logarithmic(low, high, plot.bottom, plot.top))
}

fn latency_axis(svg: &mut Svg, plot: &Plot, y: &Scale) {
    let labels_max = ((plot.bottom - plot.top) / LABEL_HEIGHT) as usize;
    for (tick, labelled) in y.log_ticks(labels_max) {
        let at = y.at(tick);
        let class = if labelled { "grid" } else { "grid minor" };
        svg.line((plot.left, at), (plot.right, at), class);
        if labelled {
            let label = human::duration(tick as u64);
            svg.text((plot.left - 7.0, at + 4.0), Anchor::End, "tick", &label);
        }
    }
}

fn time_scale(run: &Run, plot: &Plot) -> Scale {
    let ends = run.intervals.iter().map(|interval| interval.start_ns + interval.duration_ns);
    let end = ends.max().unwrap_or(0).max(run.duration_ns);
    let columns =
        run.heat_map.as_ref().map_or(0, |heat| heat.columns.len() as u64 * heat.column_ns);
    Scale::linear(0.0, end.max(columns) as f64 / 1e9, plot.left, plot.right)
}

fn time_axis(svg: &mut Svg, plot: &Plot, x: &Scale) {
    for tick in x.ticks(5) {
        let label = if tick == 0.0 { "0".to_owned() } else { human::duration((tick * 1e9) as u64) };
        svg.line((x.at(tick), plot.bottom), (x.at(tick), plot.bottom + 4.0), "grid");
        svg.text((x.at(tick), plot.bottom + 18.0), Anchor::Middle, "tick", &label);
    }
    svg.line((plot.left, plot.bottom), (plot.right, plot.bottom), "base");
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn no_place_is_outside_or_not_a_number() {
        let (report, _) = sample::report();
        for (index, run) in report.runs.iter().enumerate() {
            for svg in [throughput(run, index), latency_over_time(run, index), heat_map(run)] {
                assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
                assert!(!svg.contains("NaN") && !svg.contains("inf\""), "{svg}");
                assert!(!svg.contains("=\"-"), "{svg}");
            }
        }
        assert_eq!(heat_map(&report.runs[0]).matches("data:image/png;base64,iVBOR").count(), 1);
        let curve = percentiles(&report, 360.0, 300.0, "chart");
        assert_eq!(curve.matches("<path").count(), 5, "four runs and the probe");
    }

    #[test]
    fn runs_without_data_draw_nothing_or_an_empty_frame() {
        let run = Run::default();
        assert_eq!(latency_over_time(&run, 0), "");
        assert_eq!(heat_map(&run), "");
        assert!(!throughput(&run, 0).contains("NaN"));
        assert_eq!(percentiles(&Report::default(), 1000.0, 300.0, "chart"), "");
    }

    #[test]
    fn nines_count_nines() {
        assert_eq!(nines(0.0), 0.0);
        assert!((nines(99.9) - 3.0).abs() < 1e-9);
        assert_eq!(last_nines(&[]), 0.0);
    }
}
