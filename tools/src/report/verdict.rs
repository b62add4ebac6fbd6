//! The one sentence that a report opens with.

use super::human;
use super::model::{Report, Run};

/// Says in one sentence how it went: a lone record beside the bare device, then what many
/// clients and one pipelined caller reach.
pub fn sentence(report: &Report) -> String {
    let measured = |name: &str| report.run(name).filter(|run| run.records > 0);
    let mut parts = Vec::new();
    if let Some(idle) = measured("idle") {
        parts.push(format!(
            "a lone record is durable in {}{}",
            human::duration(idle.response.p50_ns),
            beside_probe(idle)
        ));
    }
    if let Some(loaded) = measured("loaded") {
        parts.push(format!(
            "{} clients make {} records durable per second",
            loaded.clients,
            human::count(loaded.records_per_second)
        ));
    }
    if let Some(window) = measured("window") {
        parts.push(format!(
            "one pipelined caller {}{}",
            if parts.len() > 1 { "" } else { "makes " },
            per_second_and_bytes(window)
        ));
    }
    if let Some(quorum) = measured("replicated-quorum-idle") {
        let subject = if parts.is_empty() { "a lone record is durable" } else { "a lone one is" };
        parts.push(format!(
            "{subject} on a majority of {} nodes in {}",
            quorum.followers + 1,
            human::duration(quorum.response.p50_ns)
        ));
    }
    if parts.is_empty() {
        parts.extend(report.runs.iter().filter(|run| run.records > 0).take(2).map(of_any_run));
    }
    let sentence = match parts.as_slice() {
        [] => "nothing was measured".to_owned(),
        [only] => only.clone(),
        [first, second] => format!("{first}; {second}"),
        [first, middle @ .., last] => format!("{first}; {}, {last}", middle.join(", ")),
    };
    let sentence = if report.interrupted {
        let after = human::duration(report.duration_ns);
        format!("interrupted after {after}; until then {sentence}")
    } else {
        sentence
    };
    capitalized(&sentence) + "."
}

fn beside_probe(run: &Run) -> String {
    match run.ratio_to_probe_p50 {
        Some(ratio) => format!(", {} the bare device", human::ratio(ratio)),
        None => String::new(),
    }
}

fn per_second_and_bytes(run: &Run) -> String {
    format!(
        "{} ({})",
        human::count(run.records_per_second),
        human::bytes_per_second(run.bytes_per_second)
    )
}

fn of_any_run(run: &Run) -> String {
    format!(
        "{}: {} records/s, p50 {}{}",
        run.name,
        human::count(run.records_per_second),
        human::duration(run.response.p50_ns),
        beside_probe(run)
    )
}

fn capitalized(sentence: &str) -> String {
    let mut characters = sentence.chars();
    match characters.next() {
        Some(first) => first.to_uppercase().chain(characters).collect(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn a_full_report_says_all_three_things() {
        let (report, _) = sample::report();
        let verdict = sentence(&report);
        assert!(verdict.starts_with("A lone record is durable in "), "{verdict}");
        assert!(verdict.contains("× the bare device; 64 clients make "), "{verdict}");
        assert!(verdict.contains(", one pipelined caller "), "{verdict}");
        assert!(verdict.ends_with("/s)."), "{verdict}");
    }

    #[test]
    fn partial_reports_have_a_sentence_too() {
        let (mut report, _) = sample::report();
        report.runs.retain(|run| run.name == "open");
        report.interrupted = true;
        report.duration_ns = 7_000_000_000;
        let verdict = sentence(&report);
        assert!(verdict.starts_with("Interrupted after 7 s; until then open: "), "{verdict}");
        report.runs.clear();
        assert!(sentence(&report).ends_with("nothing was measured."));
    }
}
