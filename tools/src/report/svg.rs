//! Just enough SVG for charts: scales, ticks, and elements whose colours come from the
//! page's style sheet, so that one drawing suits light and dark.

use std::fmt::Write as _;

/// `text` with everything escaped that HTML or an attribute could mistake for markup.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// A drawing in user units of one CSS pixel when shown at its own width.
#[derive(Debug)]
pub struct Svg {
    text: String,
}

/// Which point of a text its coordinates name.
#[derive(Debug, Clone, Copy)]
pub enum Anchor {
    /// Its middle.
    Middle,
    /// Its right end.
    End,
}

impl Svg {
    /// An empty drawing; `label` is what a screen reader says.
    pub fn new(width: f64, height: f64, class: &str, label: &str) -> Svg {
        let text = format!(
            "<svg class=\"{}\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\">",
            escape(class),
            escape(label)
        );
        Svg { text }
    }

    /// A straight line.
    pub fn line(&mut self, from: (f64, f64), to: (f64, f64), class: &str) {
        let _ = write!(
            self.text,
            "<line class=\"{class}\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>",
            from.0, from.1, to.0, to.1
        );
    }

    /// Lines through points, with a tooltip.
    pub fn curve(&mut self, points: &[(f64, f64)], class: &str, title: &str) {
        if points.is_empty() {
            return;
        }
        let _ = write!(self.text, "<path class=\"{class}\" d=\"{}\">", path_of(points));
        let _ = write!(self.text, "<title>{}</title></path>", escape(title));
    }

    /// The area between points and a base line.
    pub fn area(&mut self, points: &[(f64, f64)], base: f64, class: &str) {
        let ([first, ..], [.., last]) = (points, points) else { return };
        let _ = write!(
            self.text,
            "<path class=\"{class}\" d=\"{}L{:.1},{base:.1}L{:.1},{base:.1}Z\"/>",
            path_of(points),
            last.0,
            first.0
        );
    }

    /// A text.
    pub fn text(&mut self, at: (f64, f64), anchor: Anchor, class: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let _ = write!(
            self.text,
            "<text class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
            at.0,
            at.1,
            escape(text)
        );
    }

    /// A PNG stretched over a rectangle, pixels kept sharp.
    pub fn image(&mut self, at: (f64, f64), size: (f64, f64), png: &[u8]) {
        use base64::Engine as _;
        let _ = write!(
            self.text,
            "<image x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" \
             preserveAspectRatio=\"none\" style=\"image-rendering:pixelated\" \
             href=\"data:image/png;base64,{}\"/>",
            at.0,
            at.1,
            size.0,
            size.1,
            base64::engine::general_purpose::STANDARD.encode(png)
        );
    }

    /// The finished element.
    pub fn finish(mut self) -> String {
        self.text.push_str("</svg>\n");
        self.text
    }
}

fn path_of(points: &[(f64, f64)]) -> String {
    let mut path = String::new();
    for (index, (x, y)) in points.iter().enumerate() {
        let _ = write!(path, "{}{x:.1},{y:.1}", if index == 0 { 'M' } else { 'L' });
    }
    path
}

/// From values to places on an axis.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    logarithmic: bool,
}

impl Scale {
    /// `low..high` evenly onto `from..to`.
    pub fn linear(low: f64, high: f64, from: f64, to: f64) -> Scale {
        let high = if high > low { high } else { low + 1.0 };
        Scale { low, high, from, to, logarithmic: false }
    }

    /// `low..high` by their logarithms onto `from..to`; `low` is above zero.
    pub fn logarithmic(low: f64, high: f64, from: f64, to: f64) -> Scale {
        let low = low.max(1e-9);
        let high = if high > low { high } else { low * 2.0 };
        Scale { low, high, from, to, logarithmic: true }
    }

    /// The place of a value; what lies outside is put at the edge.
    pub fn at(&self, value: f64) -> f64 {
        let value = value.clamp(self.low, self.high);
        let share = if self.logarithmic {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        self.from + share * (self.to - self.from)
    }

    /// Ticks of a linear scale: about `count` round values from the low end.
    pub fn ticks(&self, count: u32) -> Vec<f64> {
        let step = round_step((self.high - self.low) / f64::from(count.max(1)));
        let first = (self.low / step).ceil() as i64;
        let last = (self.high / step * (1.0 + 1e-9)).floor() as i64;
        (first..=last).map(|tick| tick as f64 * step).collect()
    }

    /// Ticks of a logarithmic scale, 1, 2 and 5 of each decade, with whether they deserve a
    /// label: all do if that makes no more than `labels_max`, else only the powers of ten.
    pub fn log_ticks(&self, labels_max: usize) -> Vec<(f64, bool)> {
        let first = self.low.log10().floor() as i32;
        let last = self.high.log10().ceil() as i32;
        let mut ticks = Vec::new();
        for exponent in first..=last {
            for factor in [1.0, 2.0, 5.0] {
                let tick = factor * 10_f64.powi(exponent);
                let inside = tick >= self.low * (1.0 - 1e-9) && tick <= self.high * (1.0 + 1e-9);
                if inside {
                    ticks.push((tick, factor == 1.0));
                }
            }
        }
        if ticks.len() <= labels_max {
            ticks.iter_mut().for_each(|(_, labelled)| *labelled = true);
        }
        ticks
    }
}

/// The nearest 1, 2 or 5 times a power of ten that is not below `step`.
pub fn round_step(step: f64) -> f64 {
    let power = 10_f64.powf(step.max(1e-12).log10().floor());
    let factor = step / power;
    let round = [1.0, 2.0, 5.0].into_iter().find(|round| factor <= round * (1.0 + 1e-9));
    round.unwrap_or(10.0) * power
}

/// `low..high` widened to 1, 2 or 5 times powers of ten.
pub fn log_bounds(low: f64, high: f64) -> (f64, f64) {
    let low = low.max(1.0);
    let high = round_step(high.max(low * 1.01));
    let power = 10_f64.powf((low * (1.0 + 1e-9)).log10().floor());
    let factor = [5.0, 2.0, 1.0].into_iter().find(|factor| factor * power <= low * (1.0 + 1e-9));
    (factor.unwrap_or(1.0) * power, high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_in_text_is_escaped() {
        let mut svg = Svg::new(10.0, 10.0, "chart", "a\"b");
        svg.text((0.0, 0.0), Anchor::End, "tick", "<script>&'");
        let svg = svg.finish();
        assert!(svg.contains("a&quot;b") && svg.contains("&lt;script&gt;&amp;&#39;"), "{svg}");
        assert!(!svg.contains("<script"));
    }

    #[test]
    fn scales_map_ends_to_ends_and_clamp() {
        let scale = Scale::logarithmic(10.0, 1000.0, 100.0, 0.0);
        assert_eq!(scale.at(10.0), 100.0);
        assert!((scale.at(100.0) - 50.0).abs() < 1e-9);
        assert_eq!(scale.at(1e9), 0.0);
        assert_eq!(Scale::linear(0.0, 0.0, 0.0, 50.0).at(0.0), 0.0);
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(Scale::linear(0.0, 97.0, 0.0, 1.0).ticks(5), [0.0, 20.0, 40.0, 60.0, 80.0]);
        let labelled: Vec<f64> = Scale::logarithmic(100.0, 5000.0, 0.0, 1.0)
            .log_ticks(6)
            .into_iter()
            .filter_map(|(tick, label)| label.then_some(tick))
            .collect();
        assert_eq!(labelled.len(), 6, "{labelled:?}");
        assert_eq!(log_bounds(123.0, 4100.0), (100.0, 5000.0));
        assert_eq!(log_bounds(200.0, 200.0), (200.0, 500.0));
    }
}
