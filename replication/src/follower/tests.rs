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
    follower.handle_message(history(0, &[(1, 0), (3, 12), (EPOCH, 20)]));
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
        follower.handle_message(history(0, &[(1, 0), (3, 12), (EPOCH, 20)]));
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
    follower.handle_message(history(0, &[(1, 0), (3, 18), (EPOCH, 20)]));
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
    parting.handle_message(history(0, &[(1, 0), (EPOCH, 20)]));
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
    follower.handle_message(history(15, &[(1, 0), (EPOCH, 20)]));
    let anew = Act::BeginAnew { stream: STREAM, trimmed: 15, held: 0..10 };
    assert_eq!(acts(&mut follower), [anew]);
    follower.handle_begun_anew(STREAM, 17);
    assert_eq!(acts(&mut follower), [wants(17)]);
    follower.handle_message(Message::Trimmed(vec![(STREAM, 30)]));
    assert_eq!(acts(&mut follower), [], "nothing beyond what it holds is trimmed");
    assert_eq!(follower.epoch_at(STREAM, 17), Some(1));
}
