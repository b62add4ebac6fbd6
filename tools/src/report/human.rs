//! Numbers for people: three digits and a unit. Exact integers stay in `report.json`.

/// `128 µs`, `1.25 ms`.
pub fn duration(ns: u64) -> String {
    with_unit(ns as f64, 1000.0, &["ns", "µs", "ms", "s"])
}

/// `180 k`, `2.03 M`: a plain count.
pub fn count(value: f64) -> String {
    with_unit(value, 1000.0, &["", "k", "M", "G"]).trim_end().to_owned()
}

/// `180 k/s`, `2.03 M/s`.
pub fn per_second(value: f64) -> String {
    format!("{}/s", count(value))
}

/// `1.90 GB/s`, decimal as devices are sold.
pub fn bytes_per_second(value: u64) -> String {
    with_unit(value as f64, 1000.0, &["B/s", "kB/s", "MB/s", "GB/s"])
}

/// `4 KiB`, `128 B`, binary as buffers are sized.
pub fn bytes(value: u64) -> String {
    with_unit(value as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB"])
}

/// `1.02×`.
pub fn ratio(value: f64) -> String {
    format!("{}×", three_digits(value))
}

/// `12 %`, `0.4 %`, from 0.12 and 0.004.
pub fn percent(fraction: f64) -> String {
    let percent = fraction * 100.0;
    if percent.abs() >= 9.95 || percent == 0.0 {
        format!("{percent:.0} %")
    } else {
        format!("{percent:.1} %")
    }
}

/// `text` with the space between a number and its unit made one that does not break.
pub fn unbreakable(text: &str) -> String {
    let mut joined = String::with_capacity(text.len());
    let mut after_digit = false;
    let mut rest = text.chars().peekable();
    while let Some(character) = rest.next() {
        let unit_follows = rest.peek().is_some_and(|next| UNIT_STARTS.contains(*next));
        let joins = character == ' ' && after_digit && unit_follows;
        joined.push(if joins { NO_BREAK_SPACE } else { character });
        after_digit = character.is_ascii_digit();
    }
    joined
}

/// What [`unbreakable`] puts in.
pub const NO_BREAK_SPACE: char = '\u{a0}';

/// First characters of the units above.
const UNIT_STARTS: &str = "nµmskMGTKB%";

/// `2026-02-03 14:15 UTC`.
pub fn date(unix_ns: u64) -> String {
    let minutes = unix_ns / 60_000_000_000;
    let (year, month, day) = civil(minutes / (24 * 60));
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", minutes / 60 % 24, minutes % 60)
}

/// Year, month and day of a number of days since 1970-01-01, by 400-year eras that begin
/// on 1 March.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

fn with_unit(value: f64, step: f64, units: &[&str]) -> String {
    let mut value = value;
    let mut unit = 0;
    // 999.5 and more would print as 1000.
    while unit + 1 < units.len() && value.abs() >= step - 0.5 {
        value /= step;
        unit += 1;
    }
    let whole = value.fract() == 0.0;
    let digits = if whole { format!("{value:.0}") } else { three_digits(value) };
    format!("{digits} {}", units[unit])
}

fn three_digits(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude >= 99.95 {
        format!("{value:.0}")
    } else if magnitude >= 9.995 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_a_unit() {
        assert_eq!(duration(0), "0 ns");
        assert_eq!(duration(128_256), "128 µs");
        assert_eq!(duration(999_700), "1.00 ms");
        assert_eq!(duration(12_340_000), "12.3 ms");
        assert_eq!(duration(90_000_000_000), "90 s");
        assert_eq!(count(7_700.0), "7.70 k");
        assert_eq!(per_second(2_030_000.0), "2.03 M/s");
        assert_eq!(per_second(12.0), "12/s");
        assert_eq!(bytes_per_second(1_900_000_000), "1.90 GB/s");
        assert_eq!(bytes(4096), "4 KiB");
        assert_eq!(bytes(128), "128 B");
        assert_eq!(ratio(1.016), "1.02×");
        assert_eq!(percent(0.12), "12 %");
        assert_eq!(percent(-0.004), "-0.4 %");
    }

    #[test]
    fn a_number_keeps_its_unit() {
        assert_eq!(unbreakable("in 135 µs; 64 clients"), "in 135\u{a0}µs; 64 clients");
    }

    #[test]
    fn dates_are_utc() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_782_400_000_000_000), "2000-02-29 00:00 UTC");
        assert_eq!(date(1_798_761_599_000_000_000), "2026-12-31 23:59 UTC");
    }
}
