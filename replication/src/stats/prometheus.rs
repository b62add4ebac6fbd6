//! The counts of a node as Prometheus text (exposition format 0.0.4).

use std::fmt::{Display, Write as _};

use hdrhistogram::Histogram;

use super::{FollowerStats, NodeStats, Role};

/// Upper bound of the first bucket, in nanoseconds; each further one is twice as large.
const BUCKET_NS_MIN: u64 = 25_000;
/// Buckets of a histogram: the last one ends at 13 seconds.
const BUCKETS: u32 = 20;

impl NodeStats {
    /// All of it as text for Prometheus: times in seconds, sizes in bytes, and buckets from 25 µs
    /// doubling. Latencies are those of samples, one frame at a time.
    pub fn prometheus(&self) -> String {
        let mut page = Page(String::new());
        page.node(self);
        page.streams(self);
        page.followers(&self.followers);
        page.reasons(&self.followers);
        if let Some(times) = &self.times {
            for (name, help, histogram) in [
                ("send", "From sealed to written to the connection of a follower.", &times.send_ns),
                (
                    "network",
                    "From written to reported, without the time that the follower took.",
                    &times.network_ns,
                ),
                (
                    "follower_durable",
                    "From arrival at a follower to durable there, by its own clock.",
                    &times.follower_ns,
                ),
                ("reported", "From sealed to reported as durable.", &times.reported_ns),
                ("committed", "From sealed to durable on enough followers.", &times.committed_ns),
            ] {
                page.histogram(&format!("stage_{name}_seconds"), help, histogram);
            }
        }
        page.0
    }
}

/// Lines of text.
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP ringwal_replication_{name} {help}");
        let _ = writeln!(self.0, "# TYPE ringwal_replication_{name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let _ = write!(self.0, "ringwal_replication_{name}");
        for (index, (label, text)) in labels.iter().enumerate() {
            let start = if index == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{start}{label}=\"{}\"", escaped(text));
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{end} {value}");
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "counter", help);
        self.line(name, &[], value);
    }

    fn node(&mut self, stats: &NodeStats) {
        let (role, epoch) = match stats.role {
            Role::Idle => ("idle", 0),
            Role::Leading { epoch } => ("leading", epoch),
            Role::Following { epoch, .. } => ("following", epoch),
        };
        self.head("role", "gauge", "What this node does: 1 for one of the three.");
        for name in ["idle", "leading", "following"] {
            self.line("role", &[("role", name)], u8::from(name == role));
        }
        self.head("epoch", "gauge", "Epoch in which it leads or follows; 0 when neither.");
        self.line("epoch", &[], epoch);
        self.head("promised_epoch", "gauge", "Greatest epoch that it has promised; 0 when none.");
        self.line("promised_epoch", &[], stats.promised_epoch);
        for (name, help, value) in [
            ("connections_accepted_total", "Connections that came.", stats.accepted),
            ("connections_too_many_total", "Connections closed as too many.", stats.too_many),
            ("hellos_bad_total", "Connections without a sound hello in time.", stats.bad_hellos),
            ("violations_total", "Sessions ended by what a peer must not do.", stats.violations),
            (
                "differences_total",
                "Entries whose records are others than those held in the same epoch.",
                stats.differences,
            ),
            (
                "lagged_total",
                "Times that the engine handed over less than it sealed.",
                stats.lagged,
            ),
            ("sessions_ended_total", "Sessions that ended.", stats.sessions_ended),
            ("frames_received_total", "Frames from leaders.", stats.frames_received),
            ("bytes_received_total", "Bytes of frames from leaders.", stats.bytes_received),
            ("records_cut_total", "Records cut here, kept as orphans.", stats.records_cut),
            ("streams_begun_anew_total", "Streams that were begun anew.", stats.begun_anew),
            ("damage_found_total", "Places at which a read has met damage.", stats.places_found),
            ("damage_mended_total", "Of those, mended or gone.", stats.places_mended),
            ("mends_failed_total", "Attempts that have not mended a place.", stats.mends_failed),
            ("records_mended_total", "Records fetched from members.", stats.records_mended),
            ("tls_reloads_total", "Times that certificates were loaded anew.", stats.tls_reloads),
            ("tls_reload_errors_total", "Times that they could not be.", stats.tls_reload_errors),
            ("requests_taken_total", "Requests of other nodes that came.", stats.requests_taken),
        ] {
            self.counter(name, help, value);
        }
        if let Some(following) = stats.following {
            self.head("lag_records", "gauge", "Records said to be committed and not durable here.");
            self.line("lag_records", &[], following.lag_records);
            self.head("silence_seconds", "gauge", "For how long the leader has said nothing.");
            self.line("silence_seconds", &[], following.silence.as_secs_f64());
        }
        self.head("damaged_places", "gauge", "Places that cannot be read and are not mended.");
        self.line("damaged_places", &[], stats.places_damaged);
        self.head("hellos_refused_total", "counter", "Hellos that were refused, by reason.");
        for (reason, count) in &stats.refused {
            self.line("hellos_refused_total", &[("reason", reason)], count);
        }
        self.head("sessions_left_total", "counter", "Sessions that this node left, by cause.");
        for (cause, count) in &stats.left {
            self.line("sessions_left_total", &[("cause", cause)], count);
        }
    }

    fn streams(&mut self, stats: &NodeStats) {
        self.head("committed_offset", "gauge", "Offset below which a stream is committed.");
        for (stream, end) in &stats.committed {
            self.line("committed_offset", &[("stream", &stream.to_string())], end);
        }
    }

    fn followers(&mut self, followers: &[FollowerStats]) {
        type Value = fn(&FollowerStats) -> Option<f64>;
        let columns: [(&str, &str, &str, Value); 14] = [
            ("connected", "gauge", "Whether it is connected.", |f| Some(f.is_connected.into())),
            ("connects_total", "counter", "Sessions that began.", |f| Some(f.connects as f64)),
            ("failures_total", "counter", "Attempts without answer.", |f| Some(f.failures as f64)),
            ("frames_total", "counter", "Frames sent.", |f| Some(f.frames as f64)),
            ("bytes_total", "counter", "Bytes of frames sent.", |f| Some(f.bytes as f64)),
            ("send_calls_total", "counter", "System calls that wrote to it.", |f| {
                Some(f.calls as f64)
            }),
            ("bytes_resent_total", "counter", "Bytes sent that were read from segments.", |f| {
                Some(f.bytes_resent as f64)
            }),
            ("frames_dropped_total", "counter", "Frames dropped from memory.", |f| {
                Some(f.frames_dropped as f64)
            }),
            ("queued_bytes", "gauge", "Bytes that wait in memory.", |f| {
                Some(f.queued_bytes as f64)
            }),
            ("streams_behind", "gauge", "Streams that are read from segments.", |f| {
                Some(f.streams_behind as f64)
            }),
            ("lag_records", "gauge", "Records not reported as durable.", |f| {
                Some(f.lag_records as f64)
            }),
            ("lag_bytes", "gauge", "About how many bytes those are, where known.", |f| {
                f.lag_bytes.map(|bytes| bytes as f64)
            }),
            ("lag_seconds", "gauge", "For how long it has been behind; 0 when it is not.", |f| {
                Some(f.lag.unwrap_or_default().as_secs_f64())
            }),
            ("round_trip_seconds", "gauge", "Last round trip of a heartbeat.", |f| {
                f.round_trip.map(|time| time.as_secs_f64())
            }),
        ];
        for (name, kind, help, value) in columns {
            let name = format!("follower_{name}");
            self.head(&name, kind, help);
            for follower in followers {
                let node = follower.node.to_string();
                let labels = [("node", node.as_str()), ("address", follower.address.as_str())];
                if let Some(value) = value(follower) {
                    self.line(&name, &labels, value);
                }
            }
        }
    }

    fn reasons(&mut self, followers: &[FollowerStats]) {
        type Counts = fn(&FollowerStats) -> &[(&'static str, u64)];
        let counts: [(&str, &str, &str, Counts); 2] = [
            ("follower_refused_total", "reason", "Attempts that it refused.", |f| &f.refused_by),
            ("follower_left_total", "cause", "Sessions that it ended.", |f| &f.left_by),
        ];
        for (name, label, help, counts) in counts {
            self.head(name, "counter", help);
            for follower in followers {
                let node = follower.node.to_string();
                for (why, count) in counts(follower) {
                    let address = ("address", follower.address.as_str());
                    self.line(name, &[("node", node.as_str()), address, (label, why)], count);
                }
            }
        }
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram<u64>) {
        self.head(name, "histogram", help);
        let bucket = format!("{name}_bucket");
        for power in 0..BUCKETS {
            let bound_ns = BUCKET_NS_MIN << power;
            let count = histogram.count_between(0, bound_ns);
            self.line(&bucket, &[("le", &(bound_ns as f64 / 1e9).to_string())], count);
        }
        self.line(&bucket, &[("le", "+Inf")], histogram.len());
        let sum_ns = histogram.mean() * histogram.len() as f64;
        self.line(&format!("{name}_sum"), &[], sum_ns / 1e9);
        self.line(&format!("{name}_count"), &[], histogram.len());
    }
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ringwal_engine::StreamId;

    use super::super::{Counters, FollowerCounters, StageTimes};
    use super::*;
    use crate::config::Member;
    use crate::node_id::NodeId;
    use crate::wire::Refusal;

    fn stats() -> NodeStats {
        let counters = Counters::default();
        counters.note_refused(Refusal::Epoch);
        let mut times = StageTimes::default();
        for sample_ns in [10_000, 25_000, 60_000, 1_000_000, 30_000_000_000] {
            times.committed_ns.record(sample_ns).unwrap();
        }
        let member = |node| Member { node: NodeId::new(node), address: format!("a\"b\\{node}:1") };
        let follower = |node| FollowerCounters::new(&member(node)).stats(None, 0, 0);
        NodeStats {
            role: Role::Leading { epoch: 7 },
            committed: BTreeMap::from([(StreamId::new(9), 12)]),
            followers: vec![follower(2), follower(3)],
            times: Some(times),
            ..counters.stats()
        }
    }

    /// Name, labels and value of each line that is no comment; every name was declared before, once.
    fn parse(text: &str) -> Vec<(String, String, f64)> {
        let (mut declared, mut lines) = (Vec::new(), Vec::new());
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a name and a kind");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
                assert!(!declared.contains(&name.to_owned()), "twice: {line}");
                declared.push(name.to_owned());
                continue;
            }
            if let Some(rest) = line.strip_prefix("# HELP ") {
                assert!(rest.split(' ').count() > 2, "{line}");
                continue;
            }
            let (series, value) = line.rsplit_once(' ').expect("a value");
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            assert_eq!(series.contains('{'), series.ends_with('}'), "{line}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{line}");
            let last = declared.last().expect("declared before");
            let suffix = name.strip_prefix(last.as_str());
            let suffix = suffix.unwrap_or_else(|| panic!("{line} after {last}"));
            assert!(["", "_bucket", "_sum", "_count"].contains(&suffix), "{line}");
            let value = value.parse().unwrap_or_else(|_| panic!("a number: {line}"));
            lines.push((name.to_owned(), labels.trim_end_matches('}').to_owned(), value));
        }
        lines
    }

    #[test]
    fn every_line_is_one_of_the_format() {
        let lines = parse(&stats().prometheus());
        let of = |name: &str, label: &str| {
            let name = format!("ringwal_replication_{name}");
            let found: Vec<f64> = lines
                .iter()
                .filter(|line| line.0 == name && line.1.contains(label))
                .map(|line| line.2)
                .collect();
            assert_eq!(found.len(), 1, "{name} {label}: {found:?}");
            found[0]
        };
        assert_eq!(of("epoch", ""), 7.0);
        assert_eq!(of("role", "leading"), 1.0);
        assert_eq!(of("role", "idle"), 0.0);
        assert_eq!(of("hellos_refused_total", Refusal::Epoch.name()), 1.0);
        assert_eq!(of("committed_offset", "stream=\"9\""), 12.0);
        assert_eq!(of("follower_connected", r#"node="2",address="a\"b\\2:1""#), 0.0);
        assert_eq!(of("stage_committed_seconds_bucket", "le=\"0.000025\""), 2.0);
        assert_eq!(of("stage_committed_seconds_bucket", "le=\"0.0001\""), 3.0);
        assert_eq!(of("stage_committed_seconds_bucket", "+Inf"), 5.0);
        assert_eq!(of("stage_committed_seconds_count", ""), 5.0);
        assert!((of("stage_committed_seconds_sum", "") - 30.0011).abs() < 0.1);
        assert_eq!(of("stage_send_seconds_count", ""), 0.0);
        assert_eq!(of("stage_send_seconds_sum", ""), 0.0);
    }

    #[test]
    fn buckets_grow_and_never_fall() {
        let lines = parse(&stats().prometheus());
        let name = "ringwal_replication_stage_committed_seconds_bucket";
        let counts: Vec<f64> = lines.iter().filter(|l| l.0 == name).map(|l| l.2).collect();
        assert_eq!(counts.len(), BUCKETS as usize + 1);
        assert!(counts.is_sorted(), "{counts:?}");
    }

    #[test]
    fn a_node_that_does_not_lead_has_no_stages() {
        let lines = parse(&NodeStats::default().prometheus());
        assert!(lines.iter().all(|line| !line.0.contains("stage")));
    }
}
