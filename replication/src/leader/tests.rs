use bytes::Bytes;
use ringwal_engine::{EpochStart, EpochTable, FrameSlice, StreamId};

use super::*;
use crate::wire::Item;

const STREAM: StreamId = StreamId::new(7);
const LIMITS: Limits =
    Limits { window_bytes: 1000, window_buffers: 3, read_bytes: 600, heartbeat_ns: 10 };

fn frame(base: u64, count: u32) -> FrameSlice {
    let payload = vec![base as u8; 100];
    FrameSlice { stream: STREAM, epoch: 3, base_offset: base, count, bytes: Bytes::from(payload) }
}

/// Leads epoch 3 with one follower, which has the stream's 5 records.
fn leader() -> Leader {
    let epochs = EpochTable::from_entries(vec![EpochStart { epoch: 1, start: 0 }]).unwrap();
    let held = Held { trimmed: 0, end: 5, epochs };
    let mut leader = Leader::new(3, 1, LIMITS, [(STREAM, 0, held)]);
    leader.handle_connected(0, 0);
    want(&mut leader, 5);
    leader
}

fn want(leader: &mut Leader, from: u64) {
    leader.handle_message(0, Message::Want(vec![(STREAM, from)]), 0).unwrap();
}

/// Bases of the frames that are sent next; messages are left out.
fn sent(leader: &mut Leader) -> Vec<u8> {
    let mut bases = Vec::new();
    loop {
        let slices = leader.poll_send(0, 4, 0);
        if slices.is_empty() {
            return bases;
        }
        let is_message =
            |slice: &Bytes| matches!(Item::look(slice, 0), Ok(Some(Item::Message { .. })));
        bases.extend(slices.iter().filter(|slice| !is_message(slice)).map(|slice| slice[0]));
        leader.handle_sent(0);
    }
}

/// Reads as the segments would, up to `end`.
fn read(leader: &mut Leader, end: u64, at_end: bool) -> u64 {
    let request = leader.poll_read().expect("a read is needed");
    let frames = (request.from..end).map(|base| frame(base, 1)).collect();
    leader.handle_read(request, ReadOutcome::Frames { frames, at_end });
    request.from
}

#[test]
fn what_is_sealed_is_sent_as_it_is() {
    let mut leader = leader();
    sent(&mut leader);
    let frame = frame(5, 2);
    leader.handle_sealed(0, std::slice::from_ref(&frame));
    let slices = leader.poll_send(0, 4, 0);
    assert_eq!(slices.len(), 1);
    assert_eq!(slices[0].as_ptr(), frame.bytes.as_ptr(), "no byte is copied");
    assert!(leader.poll_read().is_none());
}

#[test]
fn a_follower_that_is_behind_joins_without_a_gap() {
    let mut leader = leader();
    want(&mut leader, 2);
    leader.handle_sealed(0, &[frame(5, 1)]);
    assert_eq!(read(&mut leader, 5, true), 2);
    assert_eq!(read(&mut leader, 6, true), 5, "what was sealed meanwhile is durable later");
    leader.handle_sealed(0, &[frame(6, 1)]);
    assert_eq!(sent(&mut leader), [2, 3, 4, 5, 6]);
}

#[test]
fn a_gap_in_what_was_handed_over_is_read() {
    let mut leader = leader();
    leader.handle_sealed(0, &[frame(8, 1)]);
    leader.handle_sealed(0, &[frame(9, 1)]);
    assert_eq!(sent(&mut leader), []);
    assert_eq!(read(&mut leader, 7, true), 5);
    assert_eq!(read(&mut leader, 8, true), 7);
    leader.handle_sealed(0, &[frame(10, 1)]);
    assert_eq!(sent(&mut leader), [5, 6, 7, 8, 9, 10]);
}

#[test]
fn beyond_its_window_a_follower_is_behind() {
    for frames_per_batch in [1, 4] {
        let mut leader = leader();
        let mut base = 5;
        while leader.session(0).unwrap().counts.frames_dropped == 0 {
            let frames: Vec<_> = (0..frames_per_batch).map(|n| frame(base + n, 1)).collect();
            base += frames_per_batch;
            leader.handle_sealed(0, &frames);
            let queued = leader.session(0).unwrap().queued_bytes;
            assert!(queued <= LIMITS.window_bytes, "{queued} bytes");
        }
        assert!(base - 5 <= if frames_per_batch == 1 { 4 } else { 12 });
        assert_eq!(read(&mut leader, base, true), 5);
        assert_eq!(sent(&mut leader).len() as u64, base - 5);
    }
}

#[test]
fn what_a_follower_asks_for_again_outlives_what_is_dropped() {
    let mut leader = leader();
    leader.handle_sealed(0, &[frame(5, 1), frame(6, 1)]);
    want(&mut leader, 3);
    let other = StreamId::new(8);
    for base in 0..8 {
        leader.handle_sealed(0, &[FrameSlice { stream: other, ..frame(base, 1) }]);
    }
    assert!(leader.session(0).unwrap().counts.frames_dropped > 0);
    assert_eq!(read(&mut leader, 12, true), 3);
}

#[test]
fn reports_beyond_what_was_sent_are_refused() {
    let mut leader = leader();
    let durable = |end| Message::Durable { took_ns: 1, ends: vec![(STREAM, end)] };
    leader.handle_sealed(0, &[frame(5, 2)]);
    assert_eq!(leader.poll_risen(), None, "records of older epochs alone do not count");
    leader.handle_message(0, durable(7), 0).unwrap();
    assert_eq!(leader.poll_risen(), Some((STREAM, 7)));
    want(&mut leader, 6);
    leader.handle_message(0, durable(7), 0).unwrap();
    assert!(leader.handle_message(0, durable(8), 0).is_err());
    assert!(leader.handle_message(0, Message::HistoriesEnd, 0).is_err());
    let unknown = Message::Want(vec![(StreamId::new(99), 1)]);
    assert!(leader.handle_message(0, unknown, 0).is_err());
}

#[test]
fn what_is_trimmed_is_told() {
    let mut leader = leader();
    sent(&mut leader);
    want(&mut leader, 2);
    let request = leader.poll_read().unwrap();
    leader.handle_read(request, ReadOutcome::Trimmed { trimmed: 4 });
    let slices = leader.poll_send(0, 4, 0);
    let Ok(Message::Histories(told)) = Message::decode(&slices[0]) else { panic!() };
    assert_eq!(told[0].trimmed, 4);
}
