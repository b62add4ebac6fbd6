use ringwal_engine::format::{FrameHeader, FrameKind};
use ringwal_engine::{EpochStart, EpochTable, StreamId};

use super::*;

const STREAM: StreamId = StreamId::new(7);
const EPOCH: u64 = 5;

fn table(entries: &[(u64, u64)]) -> EpochTable {
    let entry = |(epoch, start): &(u64, u64)| EpochStart { epoch: *epoch, start: *start };
    EpochTable::from_entries(entries.iter().map(entry).collect()).expect("in order")
}

fn history(trimmed: u64, epochs: &[(u64, u64)]) -> Message {
    Message::Histories(vec![History { stream: STREAM, trimmed, epochs: table(epochs) }])
}

/// Holds `0..end` of a stream in these epochs, and knows what is committed of it.
fn follower(end: u64, epochs: &[(u64, u64)], committed: u64) -> Follower {
    let held = Held { trimmed: 0, end, epochs: table(epochs) };
    let (held, committed) = ([(STREAM, held)].into(), [(STREAM, committed)].into());
    Follower::new(EPOCH, true, held, committed)
}

fn frame(epoch: u64, base: u64, count: u32) -> FrameHeader {
    FrameHeader::new(FrameKind::Data, STREAM.get(), epoch, base, count, 0, &[])
}

/// Is told this, and that it is all.
fn tell(follower: &mut Follower, told: Message) {
    follower.handle_message(told);
    follower.handle_message(Message::HistoriesEnd);
}

fn acts(follower: &mut Follower) -> Vec<Act> {
    std::iter::from_fn(|| follower.poll_act()).collect()
}

fn wants(from: u64) -> Act {
    Act::Send(Message::Want(vec![(STREAM, from)]))
}

fn left(follower: &mut Follower) -> bool {
    matches!(acts(follower).last(), Some(Act::Leave(Why::Violation(_))))
}

#[test]
fn only_the_exact_continuation_is_taken() {
    let mut follower = follower(10, &[(1, 0)], 0);
    tell(&mut follower, history(0, &[(1, 0), (3, 12), (EPOCH, 20)]));
    assert_eq!(acts(&mut follower), [wants(10)]);
    assert_eq!(follower.handle_frame(&frame(1, 8, 2)), Worth::Ignore, "held already");
    assert_eq!(follower.handle_frame(&frame(1, 10, 2)), Worth::Append);
    assert_eq!(follower.handle_frame(&frame(3, 15, 2)), Worth::Ignore, "a gap");
    assert_eq!(follower.handle_frame(&frame(3, 17, 1)), Worth::Ignore);
    assert_eq!(acts(&mut follower), [wants(12)], "asked for once");
    assert_eq!(follower.handle_frame(&frame(3, 12, 8)), Worth::Append);
    assert_eq!(follower.handle_frame(&frame(EPOCH, 20, 1)), Worth::Append);
    assert_eq!(acts(&mut follower), []);
    follower.handle_durable(STREAM, 21, 4);
    let report = Message::Durable { took_ns: 4, ends: vec![(STREAM, 21)] };
    assert_eq!(acts(&mut follower), [Act::Send(report)]);
}

#[test]
fn what_no_leader_sends_ends_the_session() {
    let told = || {
        let mut follower = follower(10, &[(1, 0)], 0);
        tell(&mut follower, history(0, &[(1, 0), (3, 12), (EPOCH, 20)]));
        acts(&mut follower);
        follower
    };
    for bad in [frame(3, 10, 2), frame(1, 10, 4), frame(1, 9, 2), frame(4, 20, 1), frame(1, 5, 0)] {
        let mut follower = told();
        assert_eq!(follower.handle_frame(&bad), Worth::Ignore);
        assert!(left(&mut follower), "{bad:?}");
    }
    for bad in [history(0, &[(1, 0), (4, 12)]), Message::Want(vec![])] {
        let mut follower = told();
        follower.handle_message(bad);
        assert!(left(&mut follower));
    }
    let mut follower = told();
    let unknown = FrameHeader::new(FrameKind::Data, 99, EPOCH, 0, 1, 0, &[]);
    follower.handle_frame(&unknown);
    assert!(left(&mut follower));
}

#[test]
fn another_history_is_cut_where_it_parts() {
    let mut follower = follower(30, &[(1, 0), (2, 14)], 14);
    tell(&mut follower, history(0, &[(1, 0), (3, 18), (EPOCH, 20)]));
    let cut = Act::Cut { stream: STREAM, from: 14, end: 30, epoch: 1 };
    assert_eq!(acts(&mut follower), [cut]);
    assert_eq!(follower.handle_frame(&frame(1, 14, 4)), Worth::Ignore, "not before it is cut");
    follower.handle_cut(STREAM, 14);
    assert_eq!(acts(&mut follower), [wants(14)]);
    assert_eq!(follower.handle_frame(&frame(1, 14, 4)), Worth::Append);
}

#[test]
fn nothing_committed_is_cut() {
    let mut parting = follower(30, &[(1, 0), (2, 14)], 15);
    tell(&mut parting, history(0, &[(1, 0), (EPOCH, 20)]));
    assert!(matches!(acts(&mut parting)[..], [Act::Leave(Why::BelowCommitted { at: 14, .. })]));
    let mut unnamed = follower(30, &[(1, 0)], 1);
    unnamed.handle_message(Message::HistoriesEnd);
    assert!(matches!(acts(&mut unnamed)[..], [Act::Leave(Why::BelowCommitted { at: 0, .. })]));
}

#[test]
fn a_stream_that_the_leader_does_not_have_starts_at_0() {
    let mut follower = follower(30, &[(1, 0)], 0);
    follower.handle_message(Message::HistoriesEnd);
    let cut = Act::Cut { stream: STREAM, from: 0, end: 30, epoch: EPOCH };
    assert_eq!(acts(&mut follower), [cut]);
    follower.handle_cut(STREAM, 0);
    acts(&mut follower);
    assert_eq!(follower.handle_frame(&frame(EPOCH, 0, 1)), Worth::Append);
}

#[test]
fn behind_what_is_trimmed_it_begins_anew() {
    let mut follower = follower(10, &[(1, 0)], 0);
    tell(&mut follower, history(15, &[(1, 0), (EPOCH, 20)]));
    let epochs = table(&[(1, 0), (EPOCH, 20)]);
    let anew = Act::BeginAnew { stream: STREAM, trimmed: 15, held: 0..10, epochs };
    assert_eq!(acts(&mut follower), [anew]);
    follower.handle_begun_anew(STREAM, 17);
    assert_eq!(acts(&mut follower), [wants(17)]);
    follower.handle_message(Message::Trimmed(vec![(STREAM, 30)]));
    assert_eq!(acts(&mut follower), [], "nothing beyond what it holds is trimmed");
    assert_eq!(follower.epoch_at(STREAM, 17), Some(1));
}

const OTHER: StreamId = StreamId::new(8);

fn history_of(stream: StreamId, trimmed: u64, epochs: &[(u64, u64)]) -> Message {
    Message::Histories(vec![History { stream, trimmed, epochs: table(epochs) }])
}

/// Follows from the end of `0..10` on, with nothing known to be committed.
fn following() -> Follower {
    let mut follower = follower(10, &[(1, 0)], 0);
    tell(&mut follower, history(0, &[(1, 0), (EPOCH, 20)]));
    assert_eq!(acts(&mut follower), [wants(10)]);
    follower
}

#[test]
fn streams_of_its_own_are_nobodys_business() {
    for own in [1, 2, 3].map(StreamId::new) {
        let held = Held { trimmed: 0, end: 5, epochs: table(&[(0, 0)]) };
        let mut alone = Follower::new(EPOCH, true, [(own, held)].into(), BTreeMap::new());
        alone.handle_message(Message::HistoriesEnd);
        assert_eq!(acts(&mut alone), [], "it is not cut");
        let told =
            |follower: &mut Follower| follower.handle_message(history_of(own, 0, &[(EPOCH, 0)]));
        told(&mut alone);
        assert!(left(&mut alone), "not in a session");
        let mut early = follower(10, &[(1, 0)], 0);
        told(&mut early);
        assert!(left(&mut early), "nor at its beginning");
        let mut follower = following();
        follower.handle_frame(&FrameHeader::new(FrameKind::Data, own.get(), EPOCH, 0, 1, 0, &[]));
        assert!(left(&mut follower));
    }
}

#[test]
fn a_refusal_has_changed_nothing() {
    let held = |end| Held { trimmed: 0, end, epochs: table(&[(1, 0)]) };
    let all =
        || BTreeMap::from([(STREAM, held(30)), (OTHER, held(30)), (StreamId::new(9), held(30))]);
    let committed = BTreeMap::from([(StreamId::new(9), 30)]);
    let mut follower = Follower::new(EPOCH, true, all(), committed);
    follower.handle_message(history_of(STREAM, 0, &[(1, 0), (EPOCH, 20)]));
    follower.handle_message(history_of(OTHER, 40, &[(1, 0), (EPOCH, 50)]));
    assert_eq!(acts(&mut follower), [], "nothing before all were compared");
    // Stream 9, which is committed, is not named.
    follower.handle_message(Message::HistoriesEnd);
    assert!(matches!(acts(&mut follower)[..], [Act::Leave(Why::BelowCommitted { at: 0, .. })]));
    let mut follower = Follower::new(EPOCH, true, all(), BTreeMap::new());
    follower.handle_message(history_of(STREAM, 0, &[(1, 0), (EPOCH, 20)]));
    follower.handle_frame(&frame(EPOCH, 20, 1));
    assert!(left(&mut follower), "frames come after all histories");
}

#[test]
fn nothing_committed_is_dropped_to_begin_anew() {
    let leader = || history(25, &[(1, 0), (3, 20), (EPOCH, 40)]);
    let outcome = |end, epochs: &[(u64, u64)], committed| {
        let mut follower = follower(end, epochs, committed);
        tell(&mut follower, leader());
        acts(&mut follower)
    };
    let is_refused = |acts: &[Act], parts_at| matches!(acts, [Act::Leave(Why::BelowCommitted { at, .. })] if *at == parts_at);
    assert!(is_refused(&outcome(30, &[(1, 0), (2, 15)], 16), 15));
    assert!(is_refused(&outcome(30, &[(1, 0), (2, 15)], 30), 15), "also at what is not trimmed");
    for (end, epochs, committed) in
        [(30, &[(1, 0), (2, 15)][..], 15), (20, &[(1, 0)], 20), (22, &[(1, 0), (3, 20)], 22)]
    {
        let acts = outcome(end, epochs, committed);
        assert!(matches!(acts[..], [Act::BeginAnew { trimmed: 25, .. }]), "{acts:?}");
    }
}

#[test]
fn to_begin_anew_it_says_which_epoch_is_where() {
    let mut follower = follower(10, &[(1, 0)], 0);
    tell(&mut follower, history(15, &[(1, 0), (4, 18), (EPOCH, 20)]));
    let Some(Act::BeginAnew { epochs, .. }) = acts(&mut follower).pop() else { panic!() };
    assert_eq!([15, 17, 18, 25].map(|at| epochs.epoch_at(at)), [1, 1, 4, EPOCH]);
    follower.handle_begun_anew(STREAM, 19);
    assert_eq!(acts(&mut follower), [wants(19)]);
    assert_eq!(follower.handle_frame(&frame(4, 19, 1)), Worth::Append);
}

#[test]
fn a_history_that_is_told_again_is_answered() {
    let mut follower = following();
    follower.handle_message(history(5, &[(1, 0), (EPOCH, 20)]));
    let trim = Act::Trim { stream: STREAM, before: 5 };
    assert_eq!(acts(&mut follower), [wants(10)], "it needs nothing, and says so");
    follower.handle_frame(&frame(1, 10, 2));
    follower.handle_durable(STREAM, 12, 1);
    assert_eq!(acts(&mut follower)[0], trim);
    follower.handle_message(history(15, &[(1, 0), (EPOCH, 20)]));
    assert!(matches!(acts(&mut follower)[..], [Act::BeginAnew { trimmed: 15, .. }]));
    follower.handle_message(history(17, &[(1, 0), (EPOCH, 20)]));
    assert_eq!(acts(&mut follower), [], "it is beginning anew");
    follower.handle_begun_anew(STREAM, 15);
    assert!(matches!(acts(&mut follower)[..], [Act::BeginAnew { trimmed: 17, .. }]));
    for other in [&[(1, 0), (EPOCH, 21)][..], &[(1, 0), (2, 18), (EPOCH, 20)]] {
        let mut follower = following();
        follower.handle_message(history(17, other));
        assert!(left(&mut follower), "{other:?}");
    }
    // Nor is it another where it is trimmed by now, and was followed before.
    let mut follower = following();
    follower.handle_message(history(25, &[(EPOCH, 0)]));
    assert!(left(&mut follower));
}

#[test]
fn what_does_not_come_is_asked_for_again() {
    let mut follower = following();
    follower.handle_time(1);
    assert_eq!(follower.handle_frame(&frame(1, 12, 2)), Worth::Ignore);
    assert_eq!(acts(&mut follower), [wants(10)]);
    follower.handle_time(ASK_AGAIN_NS);
    assert_eq!(acts(&mut follower), [], "not yet");
    follower.handle_time(1 + ASK_AGAIN_NS);
    assert_eq!(acts(&mut follower), [wants(10)]);
    follower.handle_time(1 + 2 * ASK_AGAIN_NS);
    assert_eq!(acts(&mut follower), [], "longer each time");
    follower.handle_time(1 + 3 * ASK_AGAIN_NS);
    assert_eq!(acts(&mut follower), [wants(10)]);
    assert_eq!(follower.handle_frame(&frame(1, 10, 2)), Worth::Append);
    follower.handle_time(u64::MAX);
    assert_eq!(acts(&mut follower), [], "it came");
}

#[test]
fn what_the_engine_refuses_does_not_spin() {
    for (why, patience) in [(Refused::NoSpace, 1), (Refused::TooManyStreams, 8)] {
        let mut follower = following();
        assert_eq!(follower.handle_frame(&frame(1, 10, 1)), Worth::Append);
        assert_eq!(follower.handle_frame(&frame(1, 11, 1)), Worth::Append);
        follower.handle_refused(STREAM, 10, why);
        follower.handle_refused(STREAM, 10, Refused::Discontinuous);
        assert_eq!(follower.refused(), &BTreeMap::from([(STREAM, why)]));
        assert_eq!(acts(&mut follower), [], "it is not asked for at once");
        follower.handle_time(patience * ASK_AGAIN_NS - 1);
        assert_eq!(acts(&mut follower), []);
        follower.handle_time(patience * ASK_AGAIN_NS);
        assert_eq!(acts(&mut follower), [wants(10)]);
        assert_eq!(follower.handle_frame(&frame(1, 10, 1)), Worth::Append);
        follower.handle_refused(STREAM, 10, why);
        follower.handle_time(3 * patience * ASK_AGAIN_NS);
        assert_eq!(acts(&mut follower), [], "it is waited for longer");
        follower.handle_time(5 * patience * ASK_AGAIN_NS);
        assert_eq!(acts(&mut follower), [wants(10)]);
        follower.handle_frame(&frame(1, 10, 1));
        follower.handle_durable(STREAM, 11, 1);
        assert!(follower.refused().is_empty());
    }
}

#[test]
fn committed_is_what_is_followed_and_durable_here() {
    let committed = |follower: &Follower| follower.committed().get(&STREAM).copied();
    let mut follower = following();
    follower.handle_message(Message::Committed(vec![(STREAM, 15), (OTHER, 9)]));
    assert_eq!((committed(&follower), follower.said_committed(STREAM)), (Some(10), Some(15)));
    assert_eq!(follower.lag_records(), 5);
    assert_eq!(follower.committed().get(&OTHER), None, "nobody follows that");
    follower.handle_frame(&frame(1, 10, 8));
    assert_eq!(committed(&follower), Some(10), "it is not durable");
    follower.handle_durable(STREAM, 13, 1);
    assert_eq!(committed(&follower), Some(13));
    assert_eq!(follower.lag_records(), 2);
    follower.handle_durable(STREAM, 18, 1);
    assert_eq!(committed(&follower), Some(15));
    assert_eq!(follower.lag_records(), 0, "what is more than committed is no lag");
    // What parts from the leader's history is not committed, whatever is said of that offset.
    let mut parting = super::tests::follower(30, &[(1, 0), (2, 14)], 0);
    tell(&mut parting, history(0, &[(1, 0), (EPOCH, 20)]));
    parting.handle_message(Message::Committed(vec![(STREAM, 25)]));
    assert_eq!(committed(&parting), Some(0));
    parting.handle_cut(STREAM, 14);
    assert_eq!(committed(&parting), Some(14));
}

#[test]
fn trims_are_followed_as_the_stream_grows() {
    let mut follower = following();
    follower.handle_message(Message::Trimmed(vec![(STREAM, 14)]));
    let trim = |before| Act::Trim { stream: STREAM, before };
    assert_eq!(acts(&mut follower), [trim(10)]);
    follower.handle_frame(&frame(1, 10, 8));
    assert_eq!(acts(&mut follower), [], "it is not durable");
    follower.handle_durable(STREAM, 12, 1);
    assert_eq!(acts(&mut follower)[0], trim(12));
    follower.handle_durable(STREAM, 18, 1);
    assert_eq!(acts(&mut follower)[0], trim(14));
    follower.handle_durable(STREAM, 19, 1);
    assert_eq!(acts(&mut follower).len(), 1, "a report only");
}

#[test]
fn nothing_is_done_for_a_leader_that_was_left() {
    let mut follower = following();
    follower.handle_frame(&frame(1, 10, 2));
    follower.handle_message(Message::Trimmed(vec![(STREAM, 5)]));
    follower.handle_frame(&frame(4, 12, 2));
    assert_eq!(follower.handle_frame(&frame(1, 12, 2)), Worth::Ignore);
    follower.handle_durable(STREAM, 12, 1);
    follower.handle_message(history_of(OTHER, 5, &[(EPOCH, 5)]));
    follower.handle_time(u64::MAX);
    assert!(matches!(acts(&mut follower)[..], [Act::Leave(Why::Violation(_))]));
}

#[test]
fn histories_are_bounded_and_told_once() {
    let end = || Message::HistoriesEnd;
    for bad in [
        vec![history(0, &[(EPOCH, 0)]), history(0, &[(EPOCH, 0)])],
        vec![end(), end()],
        vec![history(0, &[(1, 4), (EPOCH, 20)])],
        vec![history(0, &[(1, 0), (EPOCH + 1, 20)])],
    ] {
        let mut follower = follower(10, &[(1, 0)], 0);
        bad.into_iter().for_each(|message| follower.handle_message(message));
        assert!(left(&mut follower));
    }
    // A table that takes several messages.
    let long: Vec<(u64, u64)> = (0..40_000).map(|n| (n, n)).chain([(50_000, 40_000)]).collect();
    let told =
        || Message::Histories(vec![History { stream: STREAM, trimmed: 0, epochs: table(&long) }]);
    let held = Held { trimmed: 0, end: 30_000, epochs: table(&long[..30_000]) };
    let mut follower =
        Follower::new(50_000, true, [(STREAM, held.clone())].into(), BTreeMap::new());
    assert!(told().pieces().len() > 2);
    told().pieces().into_iter().for_each(|piece| follower.handle_message(piece));
    follower.handle_message(end());
    assert_eq!(acts(&mut follower), [wants(30_000)]);
    // It breaks off.
    let mut follower = Follower::new(50_000, true, [(STREAM, held)].into(), BTreeMap::new());
    follower.handle_message(told().pieces().swap_remove(0));
    follower.handle_message(end());
    assert!(left(&mut follower));
}

#[test]
fn heartbeats_are_answered_once() {
    let mut follower = following();
    (0..9).for_each(|time_ns| follower.handle_message(Message::Heartbeat { time_ns }));
    let answer = Message::HeartbeatAnswer { time_ns: 8 };
    assert_eq!(acts(&mut follower), [Act::Send(answer)]);
}

fn driven(end: u64, epochs: &[(u64, u64)]) -> Follower {
    follower(end, epochs, 0).driven()
}

fn reports(end: u64, took_ns: u64) -> Act {
    Act::Send(Message::Durable { took_ns, ends: vec![(STREAM, end)] })
}

#[test]
fn what_has_come_another_way_is_reported_when_the_leader_sends_it() {
    let mut follower = driven(10, &[(1, 0)]);
    assert_eq!(follower.extendable(STREAM), None, "nothing is told yet");
    tell(&mut follower, history(0, &[(1, 0), (EPOCH, 10)]));
    assert_eq!(follower.extendable(STREAM), Some((10, 10)));
    assert_eq!(acts(&mut follower), [wants(10)]);
    assert_eq!(follower.handle_frame(&frame(EPOCH, 10, 3)), Worth::Append);
    assert_eq!(follower.extendable(STREAM), Some((13, 10)));
    assert_eq!(follower.handle_frame(&frame(EPOCH, 10, 3)), Worth::Ignore, "the leader's");
    assert_eq!(acts(&mut follower), [], "it is not durable");
    follower.handle_durable(STREAM, 13, 4);
    assert_eq!(acts(&mut follower), [reports(13, 4)]);
    assert_eq!(follower.handle_frame(&frame(EPOCH, 10, 3)), Worth::Ignore, "the leader's");
    assert_eq!(acts(&mut follower), [reports(13, 0)], "it may not have been counted before");
    follower.handle_brought(STREAM, 15, 1);
    assert_eq!(follower.next_offset(STREAM), Some(13), "of another epoch than the leader's");
    follower.handle_brought(STREAM, 15, EPOCH);
    assert_eq!(follower.extendable(STREAM), Some((15, 15)));
    follower.handle_committed(STREAM, 14);
    follower.handle_committed(STREAM, 12);
    assert_eq!(follower.committed().get(&STREAM), Some(&14));
}

#[test]
fn a_stream_of_which_the_leader_has_nothing_yet_may_be_extended_and_parts_nowhere() {
    let mut follower = Follower::new(EPOCH, true, BTreeMap::new(), BTreeMap::new()).driven();
    follower.handle_message(Message::HistoriesEnd);
    assert_eq!(follower.extendable(StreamId::new(3)), None, "a node's own");
    assert_eq!(follower.extendable(STREAM), Some((0, 0)));
    assert_eq!(follower.handle_frame(&frame(EPOCH, 0, 2)), Worth::Append);
    follower.handle_durable(STREAM, 2, 0);
    follower.handle_message(history(0, &[(EPOCH, 0)]));
    assert_eq!(follower.handle_frame(&frame(EPOCH, 0, 2)), Worth::Ignore);
    assert_eq!(follower.handle_frame(&frame(EPOCH, 2, 1)), Worth::Append);
    assert!(!left(&mut follower));
}
