//! The configurations that are checked, and the known mistakes that must be refuted.

use crate::properties::Reach;
use crate::state::Budget;

/// A mistake that the model can be told to make.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Variant {
    NoLease,
    PromiseNotPersisted,
    ExtendWithoutRecords,
    ApplyNotReverted,
    PromiseWithBatchesInFlight,
    PromiseBeforeApplied,
    WatermarkFromUnapplied,
    EpochStartOfAnotherTerm,
    ExtendOfOldEpoch,
    ExtendOfAnotherTerm,
    ExtendCuts,
    SwitchOnEarly,
    LeadershipRestored,
    BlankVotes,
    ReportOutlivesDisk,
    ReadmitBelowStart,
    SnapshotWithoutCut,
    SnapshotWithoutRecords,
    IndexBeforeEffect,
    WatermarkAboveOwnEnd,
}

impl Variant {
    pub const ALL: [Self; 20] = [
        Self::NoLease,
        Self::PromiseNotPersisted,
        Self::ExtendWithoutRecords,
        Self::ApplyNotReverted,
        Self::PromiseWithBatchesInFlight,
        Self::PromiseBeforeApplied,
        Self::WatermarkFromUnapplied,
        Self::EpochStartOfAnotherTerm,
        Self::ExtendOfOldEpoch,
        Self::ExtendOfAnotherTerm,
        Self::ExtendCuts,
        Self::SwitchOnEarly,
        Self::LeadershipRestored,
        Self::BlankVotes,
        Self::ReportOutlivesDisk,
        Self::ReadmitBelowStart,
        Self::SnapshotWithoutCut,
        Self::SnapshotWithoutRecords,
        Self::IndexBeforeEffect,
        Self::WatermarkAboveOwnEnd,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::NoLease => "no-lease",
            Self::PromiseNotPersisted => "promise-not-persisted",
            Self::ExtendWithoutRecords => "extend-without-records",
            Self::ApplyNotReverted => "apply-not-reverted",
            Self::PromiseWithBatchesInFlight => "promise-with-batches-in-flight",
            Self::PromiseBeforeApplied => "promise-before-applied",
            Self::WatermarkFromUnapplied => "watermark-from-unapplied",
            Self::EpochStartOfAnotherTerm => "epoch-start-of-another-term",
            Self::ExtendOfOldEpoch => "extend-of-old-epoch",
            Self::ExtendOfAnotherTerm => "extend-of-another-term",
            Self::ExtendCuts => "extend-cuts",
            Self::SwitchOnEarly => "switch-on-early",
            Self::LeadershipRestored => "leadership-restored",
            Self::BlankVotes => "blank-votes",
            Self::ReportOutlivesDisk => "report-outlives-disk",
            Self::ReadmitBelowStart => "readmit-below-start",
            Self::SnapshotWithoutCut => "snapshot-without-cut",
            Self::SnapshotWithoutRecords => "snapshot-without-records",
            Self::IndexBeforeEffect => "index-before-effect",
            Self::WatermarkAboveOwnEnd => "watermark-above-own-end",
        }
    }

    pub fn what(self) -> &'static str {
        match self {
            Self::NoLease => "the fast path answers without looking at the lease",
            Self::PromiseNotPersisted => "a crash takes a promise back",
            Self::ExtendWithoutRecords => {
                "an Extend carries the new commands only, not what a majority may lack"
            }
            Self::ApplyNotReverted => "the state machine keeps what was applied and then cut",
            Self::PromiseWithBatchesInFlight => {
                "a promise is given while batches are in flight, which are reported when they land"
            }
            Self::PromiseBeforeApplied => {
                "a promise is answered before Raft's log is applied as far as by the asker"
            }
            Self::WatermarkFromUnapplied => {
                "the watermark counts nodes that have not applied the EpochStart"
            }
            Self::EpochStartOfAnotherTerm => "an EpochStart counts in any term",
            Self::ExtendOfOldEpoch => "an Extend of an epoch that is over is applied",
            Self::ExtendOfAnotherTerm => "an Extend of the current epoch counts in any term",
            Self::ExtendCuts => "an Extend that is applied late makes its own end the stream's end",
            Self::SwitchOnEarly => {
                "the fast path is switched on while an Extend is not applied yet"
            }
            Self::LeadershipRestored => "a leader goes on leading in its term after a restart",
            Self::BlankVotes => "a node with a blank disk votes and promises",
            Self::ReportOutlivesDisk => "what a node reported before it lost its disk still counts",
            Self::ReadmitBelowStart => {
                "a node is admitted as soon as it has all below the watermark that the leader knows"
            }
            Self::SnapshotWithoutCut => "a Raft snapshot is installed without the cuts of I-17",
            Self::SnapshotWithoutRecords => {
                "a Raft snapshot is installed before the records below its watermark are here"
            }
            Self::IndexBeforeEffect => {
                "a follower makes the applied index durable before the effect of the entry"
            }
            Self::WatermarkAboveOwnEnd => {
                "the leader holds the watermark to be above its own durable end"
            }
        }
    }

    /// The small configuration in which it is refuted.
    pub fn configuration(self) -> Configuration {
        let base = Configuration::named(self.name()).with_variant(self);
        match self {
            Self::NoLease => base.terms(2).records(1).lease(),
            Self::PromiseNotPersisted => base.terms(2).records(1).crashes(1),
            Self::ExtendWithoutRecords => base.terms(2).records(1).extends(1),
            Self::ApplyNotReverted => base.terms(2).records(2).machine(),
            Self::PromiseWithBatchesInFlight => base.terms(2).records(1).in_flight(),
            Self::PromiseBeforeApplied => base.terms(3).records(1),
            Self::WatermarkFromUnapplied => base.terms(3).records(2),
            Self::EpochStartOfAnotherTerm => base.terms(3).records(1),
            Self::ExtendOfOldEpoch => base.terms(3).records(1).extends(1),
            Self::ExtendOfAnotherTerm => base.terms(2).records(0).extends(1),
            Self::ExtendCuts => base.terms(1).records(1).extends(1),
            Self::SwitchOnEarly => base.terms(1).records(1).extends(1),
            Self::LeadershipRestored => base.terms(1).records(2).crashes(1),
            Self::BlankVotes => base.terms(2).records(1).disks(1),
            Self::ReportOutlivesDisk => base.terms(2).records(1).disks(1),
            Self::ReadmitBelowStart => base.terms(3).records(1).disks(1),
            Self::SnapshotWithoutCut => base.terms(2).records(2).snapshots(1),
            Self::SnapshotWithoutRecords => base.terms(2).records(0).extends(1).snapshots(2),
            Self::IndexBeforeEffect => base.terms(2).records(0).extends(1).crashes(2),
            Self::WatermarkAboveOwnEnd => base.terms(1).records(1).crashes(1),
        }
    }
}

/// What may happen in a model, and how often. All of it is explored: there is no limit on depth.
#[derive(Clone, Debug)]
pub struct Configuration {
    pub name: &'static str,
    pub what: &'static str,
    pub terms: u8,
    pub budget: Budget,
    /// The lease comes and goes by steps of its own. Otherwise whoever was elected last has it.
    pub lease: bool,
    /// A follower's records are in flight for a while. Otherwise they are durable at once.
    pub in_flight: bool,
    /// Records are applied to a state machine before they are committed.
    pub machine: bool,
    /// After a crash the last entry of Raft may be applied once more.
    pub replays: bool,
    pub variant: Option<Variant>,
    pub reaches: Vec<Reach>,
}

impl Configuration {
    fn named(name: &'static str) -> Self {
        Self {
            name,
            what: "",
            terms: 1,
            budget: Budget::default(),
            lease: false,
            in_flight: false,
            machine: false,
            replays: false,
            variant: None,
            reaches: Vec::new(),
        }
    }

    fn with_variant(mut self, variant: Variant) -> Self {
        self.variant = Some(variant);
        self.what = variant.what();
        self
    }

    fn what(mut self, what: &'static str) -> Self {
        self.what = what;
        self
    }

    fn terms(mut self, terms: u8) -> Self {
        self.terms = terms;
        self
    }

    fn records(mut self, records: u8) -> Self {
        self.budget.records = records;
        self
    }

    /// So many Extends, and as many switches of the fast path.
    fn extends(mut self, extends: u8) -> Self {
        self.budget.extends = extends;
        self.budget.switches = 1;
        self
    }

    fn repeats(mut self, repeats: u8) -> Self {
        self.budget.repeats = repeats;
        self
    }

    fn crashes(mut self, crashes: u8) -> Self {
        self.budget.crashes = crashes;
        self
    }

    fn disks(mut self, disks: u8) -> Self {
        self.budget.disks = disks;
        self
    }

    fn snapshots(mut self, snapshots: u8) -> Self {
        self.budget.snapshots = snapshots;
        self
    }

    fn lease(mut self) -> Self {
        self.lease = true;
        self
    }

    fn in_flight(mut self) -> Self {
        self.in_flight = true;
        self
    }

    fn machine(mut self) -> Self {
        self.machine = true;
        self
    }

    fn replays(mut self) -> Self {
        self.replays = true;
        self
    }

    fn reaches(mut self, reaches: &[Reach]) -> Self {
        self.reaches = reaches.to_vec();
        self
    }

    /// The protocol as it is meant, from several sides; quick enough for every change.
    pub fn checked() -> Vec<Self> {
        use Reach::*;
        vec![
            Self::named("reports")
                .what("one change of the leader; followers' batches in flight, a crash")
                .terms(2)
                .records(2)
                .in_flight()
                .crashes(1)
                .reaches(&[CommittedByReports, CommittedInEpoch2, Orphans]),
            Self::named("crash")
                .what("two changes of the leader; followers' batches in flight, a crash")
                .terms(3)
                .records(1)
                .in_flight()
                .crashes(1)
                .reaches(&[CommittedByReports, CommittedInEpoch2, CommittedInEpoch3]),
            Self::named("mixed")
                .what("an Extend, batches in flight, a crash and a snapshot in one run")
                .terms(2)
                .records(1)
                .extends(1)
                .in_flight()
                .crashes(1)
                .snapshots(1)
                .reaches(&[CommittedByReports, CommittedByExtend, CommittedInEpoch2]),
            Self::named("lease")
                .what("a lease that comes and goes, two elections")
                .terms(3)
                .records(1)
                .lease()
                .reaches(&[CommittedByReports, CommittedInEpoch2, CommittedInEpoch3]),
            Self::named("three-terms")
                .what("two changes of the leader, entries a term too late")
                .terms(3)
                .records(2)
                .reaches(&[CommittedByReports, CommittedInEpoch2, Orphans, LateEntry]),
            Self::named("switch")
                .what("fast, Raft, fast again; Extends repeated and late; a crash with a replay")
                .terms(1)
                .records(2)
                .extends(2)
                .repeats(1)
                .crashes(1)
                .replays()
                .reaches(&[CommittedByReports, CommittedByExtend, CommittedFastRaftFast]),
            Self::named("extend")
                .what("an Extend across a change of the leader, with a crash and a replay")
                .terms(2)
                .records(1)
                .extends(1)
                .crashes(1)
                .replays()
                .reaches(&[CommittedByReports, CommittedByExtend, CommittedInEpoch2]),
            Self::named("old-extend")
                .what("an Extend proposed two terms too late")
                .terms(3)
                .records(1)
                .extends(1)
                .reaches(&[CommittedByReports, CommittedByExtend, LateEntry]),
            Self::named("machine")
                .what("a state machine that is ahead of what is committed")
                .terms(2)
                .records(2)
                .machine()
                .reaches(&[CommittedByReports, CommittedInEpoch2, Orphans]),
            Self::named("disk")
                .what("a lost disk and its node admitted again, two changes of the leader")
                .terms(3)
                .records(1)
                .disks(1)
                .reaches(&[CommittedByReports, Readmitted, CommittedInEpoch2]),
            Self::named("snapshot")
                .what("Raft snapshots over a change of the epoch, and an Extend")
                .terms(2)
                .records(1)
                .extends(1)
                .snapshots(2)
                .reaches(&[CommittedByReports, CommittedByExtend, CommittedInEpoch2, Orphans]),
        ]
    }
}
