//! The status of a store as Prometheus text (exposition format 0.0.4).

use std::fmt::{Display, Write as _};

use super::status::{Mode, StoreStatus};
use super::times::LatencyStats;

/// All modes, in the order in which they are printed.
const MODES: [&str; 5] = ["forwarding", "no_leader", "recovering", "raft", "fast"];

impl StoreStatus {
    /// All of it as text for Prometheus: times in seconds, sizes in bytes, and buckets from 25 µs doubling.
    /// That of replication, beside it, is
    /// [`NodeStats::prometheus`](ringwal_replication::stats::NodeStats::prometheus).
    pub fn prometheus(&self) -> String {
        let mut page = Page(String::new());
        page.leadership(self);
        page.offsets(self);
        page.members(self);
        page.commands(self);
        page.latencies(self);
        page.0
    }
}

/// Lines of text.
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP ringwal_store_{name} {help}");
        let _ = writeln!(self.0, "# TYPE ringwal_store_{name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let _ = write!(self.0, "ringwal_store_{name}");
        for (index, (label, text)) in labels.iter().enumerate() {
            let start = if index == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{start}{label}=\"{}\"", escaped(text));
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{end} {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "gauge", help);
        self.line(name, &[], value);
    }

    fn leadership(&mut self, status: &StoreStatus) {
        self.head("mode", "gauge", "How commands are taken here: 1 for one of these.");
        for name in MODES {
            self.line("mode", &[("mode", name)], u8::from(name == status.mode.name()));
        }
        if let Mode::Raft(why) = status.mode {
            let help = "Why this leader does not take the fast path; only while it does not.";
            self.head("fallback", "gauge", help);
            self.line("fallback", &[("reason", why.name())], 1);
        }
        let leader = status.leader.map_or(0, |leader| leader.get());
        self.gauge("leader", "Node that leads, as far as this one knows; 0 when none.", leader);
        self.gauge("term", "Term of Raft.", status.term);
        let epoch = status.begun.map_or(0, |begun| begun.epoch);
        self.gauge("epoch", "Epoch that has begun here last; 0 when none.", epoch);
        let help = "Whether the fast path is switched on here.";
        self.gauge("fast_path_on", help, u8::from(status.is_fast_path));
        let lease = status.lease_ms.map_or(0.0, |lease_ms| lease_ms as f64 / 1e3);
        self.gauge("lease_seconds", "For how long this leader's lease lasts; 0 when none.", lease);
        let help = "Whether something keeps this node from voting and leading.";
        self.gauge("unfit", help, u8::from(status.unfit.is_some()));
        let help = "Whether something keeps this node from applying records.";
        self.gauge("applying_stopped", help, u8::from(status.trouble.is_some()));
    }

    fn offsets(&mut self, status: &StoreStatus) {
        self.gauge("applied_offset", "Offset below which records are applied.", status.applied.end);
        self.gauge("durable_offset", "Offset below which they are durable here.", status.durable);
        let help = "Offset below which they are known to be committed.";
        self.gauge("committed_offset", help, status.committed);
        self.head("waiters", "gauge", "Those who wait for something to be applied here.");
        self.line("waiters", &[("for", "outcome")], status.waiting);
        self.line("waiters", &[("for", "state")], status.waiting_for_state);
        self.head("records_cut_total", "counter", "Records cut here, kept as orphans.");
        self.line("records_cut_total", &[], status.records_cut);
        if let Some((end, bytes, took_ms)) = status.snapshot {
            self.gauge("snapshot_offset", "Where the last snapshot of this run ends.", end);
            self.gauge("snapshot_bytes", "How long it is.", bytes);
            let help = "How long it took to be made.";
            self.gauge("snapshot_made_seconds", help, took_ms as f64 / 1e3);
        }
    }

    fn members(&mut self, status: &StoreStatus) {
        self.head("member", "gauge", "Nodes of the cluster: 1 for those that vote.");
        for member in &status.members {
            let node = member.node.to_string();
            let labels = [("node", node.as_str()), ("address", member.address.as_str())];
            self.line("member", &labels, u8::from(member.is_voter));
        }
    }

    fn commands(&mut self, status: &StoreStatus) {
        let commands = &status.commands;
        for (name, help, count) in [
            ("fast_total", "Commands given to this node's stream, as it led.", commands.fast),
            ("raft_total", "Commands proposed to Raft by this node, as it led.", commands.raft),
            ("forwarded_total", "Commands sent to the leader.", commands.forwarded),
            ("answered_total", "Commands executed for other nodes.", commands.answered),
            ("retried_total", "Attempts after the first one.", commands.retried),
            ("unknown_total", "Commands that ended without a known outcome.", commands.unknown),
        ] {
            self.head(name, "counter", help);
            self.line(name, &[], count);
        }
        let help = "Attempts that did not take the fast path, by reason.";
        self.head("fallbacks_total", "counter", help);
        for (why, count) in &commands.fallbacks {
            self.line("fallbacks_total", &[("reason", why.name())], count);
        }
    }

    fn latencies(&mut self, status: &StoreStatus) {
        let latencies = &status.latencies;
        let help = "Commands of callers here, from the call to the answer.";
        self.head("command_seconds", "histogram", help);
        for (command, way, stats) in [
            ("create_topic", "fast", &latencies.create_fast),
            ("create_topic", "fallback", &latencies.create_fallback),
            ("other", "fast", &latencies.other_fast),
            ("other", "fallback", &latencies.other_fallback),
        ] {
            self.histogram("command_seconds", &[("command", command), ("way", way)], stats);
        }
        for (name, help, stats) in [
            (
                "stage_durable_seconds",
                "Fast path: from the engine's queue to durable.",
                &latencies.durable,
            ),
            (
                "stage_proposed_seconds",
                "Through Raft: from being proposed to its entry being applied.",
                &latencies.proposed,
            ),
            (
                "stage_outcome_seconds",
                "From having its place to applied and known.",
                &latencies.outcome,
            ),
            (
                "apply_seconds",
                "Batches of records, from read to applied and told.",
                &latencies.apply,
            ),
        ] {
            self.head(name, "histogram", help);
            self.histogram(name, &[], stats);
        }
    }

    fn histogram(&mut self, name: &str, labels: &[(&str, &str)], stats: &LatencyStats) {
        let bucket = format!("{name}_bucket");
        let seconds = |nanoseconds: u64| nanoseconds as f64 / 1e9;
        let with_bound = |bound: String, page: &mut Self, count: u64| {
            let mut labels = labels.to_vec();
            labels.push(("le", &bound));
            page.line(&bucket, &labels, count);
        };
        for (bound_ns, count) in stats.buckets() {
            with_bound(seconds(bound_ns).to_string(), self, count);
        }
        with_bound("+Inf".to_owned(), self, stats.count());
        self.line(&format!("{name}_sum"), labels, seconds(stats.sum_ns));
        self.line(&format!("{name}_count"), labels, stats.count());
    }
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ringwal_replication::node_id::NodeId;

    use super::super::stats::{Counters, Reason};
    use super::super::status::MemberStatus;
    use super::super::times::Latencies;
    use super::*;
    use crate::metadata::Progress;

    fn status() -> StoreStatus {
        let (counters, apply) = (Counters::default(), Latencies::default());
        counters.note_fallback(Reason::NoLease);
        counters.create_fast.add(Duration::from_micros(30));
        apply.add(Duration::from_secs(60));
        let address = "a\"b\\c:1".to_owned();
        let member =
            MemberStatus { node: NodeId::new(2), address, engine: [7; 16], is_voter: true };
        StoreStatus {
            node: NodeId::new(1),
            engine: [1; 16],
            leader: Some(NodeId::new(1)),
            term: 5,
            begun: None,
            mode: Mode::Raft(Reason::NoLease),
            is_fast_path: true,
            lease_ms: Some(250),
            applied: Progress { epoch: 5, end: 9 },
            durable: 10,
            committed: 8,
            members: vec![member],
            commands: counters.stats(),
            latencies: counters.latencies(apply.stats()),
            waiting: 3,
            waiting_for_state: 4,
            records_cut: 6,
            snapshot: Some((7, 1024, 1500)),
            unfit: None,
            trouble: None,
        }
    }

    /// Each line that is no comment, without the prefix of its name, and its value. Every name is declared
    /// before, once.
    fn parse(text: &str) -> Vec<(String, f64)> {
        let (mut declared, mut lines) = (Vec::new(), Vec::new());
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a name and a kind");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
                assert!(!declared.contains(&name), "twice: {line}");
                declared.push(name);
            } else if !line.starts_with("# HELP ") {
                let (series, value) = line.rsplit_once(' ').expect("a value");
                let name = series.split('{').next().expect("a name");
                let suffix = name.strip_prefix(*declared.last().expect("declared before"));
                assert!(["", "_bucket", "_sum", "_count"].contains(&suffix.expect(line)), "{line}");
                let series = series.strip_prefix("ringwal_store_").expect(line);
                lines.push((series.to_owned(), value.parse().expect(line)));
            }
        }
        lines
    }

    #[test]
    fn every_line_is_one_of_the_format() {
        let lines = parse(&status().prometheus());
        for (series, expected) in [
            ("mode{mode=\"raft\"}", 1.0),
            ("mode{mode=\"fast\"}", 0.0),
            ("fallback{reason=\"no_lease\"}", 1.0),
            ("fallbacks_total{reason=\"no_lease\"}", 1.0),
            ("fallbacks_total{reason=\"switched_off\"}", 0.0),
            ("lease_seconds", 0.25),
            ("epoch", 0.0),
            ("waiters{for=\"state\"}", 4.0),
            ("snapshot_made_seconds", 1.5),
            (r#"member{node="2",address="a\"b\\c:1"}"#, 1.0),
            ("command_seconds_count{command=\"create_topic\",way=\"fast\"}", 1.0),
            ("command_seconds_bucket{command=\"create_topic\",way=\"fast\",le=\"0.000025\"}", 0.0),
            ("command_seconds_bucket{command=\"create_topic\",way=\"fast\",le=\"0.00005\"}", 1.0),
            ("apply_seconds_bucket{le=\"+Inf\"}", 1.0),
            ("apply_seconds_sum", 60.0),
        ] {
            let found: Vec<_> = lines.iter().filter(|line| line.0 == series).collect();
            assert!(matches!(found[..], [(_, value)] if *value == expected), "{series}: {found:?}");
        }
    }

    #[test]
    fn every_mode_has_its_line() {
        let all = [Mode::Forwarding, Mode::NoLeader, Mode::Recovering, Mode::Fast];
        for mode in all.into_iter().chain([Mode::Raft(Reason::NoWal)]) {
            let lines = parse(&StoreStatus { mode, ..status() }.prometheus());
            let modes = lines.iter().filter(|line| line.0.starts_with("mode{"));
            assert_eq!(modes.map(|line| line.1).sum::<f64>(), 1.0, "{mode:?}");
        }
    }
}
