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
    leader_with(LIMITS)
}

fn leader_with(limits: Limits) -> Leader {
    let epochs = EpochTable::from_entries(vec![EpochStart { epoch: 1, start: 0 }]).unwrap();
    let held = Held { trimmed: 0, end: 5, epochs };
    let mut leader = Leader::new(3, 1, limits, [(STREAM, 0, held)]);
    leader.handle_connected(0, true, 0);
    assert_eq!(told(&mut leader).len(), 2, "a history, and the end of them");
    want(&mut leader, 5);
    leader
}

/// A message in the present session.
fn tell(leader: &mut Leader, message: Message) -> Result<(), Violation> {
    let session = leader.session(0).unwrap().number;
    leader.handle_message(0, session, message, 0)
}

fn handle_sent(leader: &mut Leader) {
    let session = leader.session(0).unwrap().number;
    leader.handle_sent(0, session);
}

/// Messages that are sent next, up to the first hand-over without one.
fn told(leader: &mut Leader) -> Vec<Message> {
    let mut told = Vec::new();
    loop {
        let slices = leader.poll_send(0, 4, 0);
        if slices.is_empty() {
            return told;
        }
        told.extend(slices.iter().filter_map(|slice| Message::decode(slice).ok()));
        handle_sent(leader);
    }
}

fn want(leader: &mut Leader, from: u64) {
    tell(leader, Message::Want(vec![(STREAM, from)])).unwrap();
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
        handle_sent(leader);
    }
}

/// A read of one stream, as the segments would do it, up to `end`.
fn read(leader: &mut Leader, end: u64, at_end: bool) -> u64 {
    let request = leader.poll_read().expect("a read is needed");
    let [(stream, from)] = request.wanted[..] else { panic!("{request:?}") };
    let frames = (from..end).map(|base| FrameSlice { stream, ..frame(base, 1) }).collect();
    let ended = if at_end { vec![stream] } else { Vec::new() };
    leader.handle_read(&request, ReadOutcome { frames, ended, ..ReadOutcome::default() });
    from
}

fn trimmed(trimmed: u64) -> ReadOutcome {
    ReadOutcome { trimmed: vec![(STREAM, trimmed)], ..ReadOutcome::default() }
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
    assert_eq!(leader.poll_read().unwrap().wanted, [(STREAM, 3), (other, 0)]);
}

#[test]
fn reports_beyond_what_was_sent_are_refused() {
    let mut leader = leader();
    let durable = |end| Message::Durable { took_ns: 1, ends: vec![(STREAM, end)] };
    leader.handle_sealed(0, &[frame(5, 2)]);
    assert_eq!(leader.poll_enough(), Some((STREAM, 0)), "records of older epochs do not count");
    tell(&mut leader, durable(7)).unwrap();
    assert_eq!(leader.poll_enough(), Some((STREAM, 7)));
    want(&mut leader, 6);
    tell(&mut leader, durable(7)).unwrap();
    assert!(tell(&mut leader, durable(8)).is_err());
    assert!(tell(&mut leader, Message::HistoriesEnd).is_err());
    let unknown = Message::Want(vec![(StreamId::new(99), 1)]);
    assert!(tell(&mut leader, unknown).is_err());
}

#[test]
fn what_is_trimmed_is_told() {
    let mut leader = leader();
    sent(&mut leader);
    want(&mut leader, 2);
    let request = leader.poll_read().unwrap();
    leader.handle_read(&request, trimmed(4));
    let slices = leader.poll_send(0, 4, 0);
    let Ok(Message::Histories(told)) = Message::decode(&slices[0]) else { panic!() };
    assert_eq!(told[0].trimmed, 4);
}

fn other(base: u64, count: u32) -> FrameSlice {
    FrameSlice { stream: StreamId::new(8), ..frame(base, count) }
}

#[test]
fn a_stream_all_of_whose_frames_were_missed_is_found_by_its_end() {
    let mut leader = leader();
    leader.handle_durable_end(StreamId::new(8), 0, 3);
    let [Message::Histories(named)] = &told(&mut leader)[..] else { panic!() };
    assert_eq!((named[0].stream, named[0].trimmed), (StreamId::new(8), 0));
    let request = leader.poll_read().expect("what was missed is read");
    assert_eq!(request.wanted, [(StreamId::new(8), 0)]);
    leader.handle_durable_end(StreamId::new(9), 0, 0);
    assert_eq!(told(&mut leader), [], "there is nothing of it");
}

#[test]
fn what_is_a_nodes_own_is_never_sent() {
    for own in [1, 2, 3].map(StreamId::new) {
        let held = Held { trimmed: 0, end: 5, epochs: EpochTable::default() };
        let mut leader = Leader::new(3, 1, LIMITS, [(own, 0, held)]);
        leader.handle_connected(0, true, 0);
        leader.handle_sealed(0, &[FrameSlice { stream: own, ..frame(5, 1) }]);
        leader.handle_durable_end(own, 0, 9);
        leader.handle_trimmed(own, 2);
        leader.tell_committed(&[(own, 2)]);
        assert_eq!(told(&mut leader), [Message::HistoriesEnd]);
        assert_eq!(leader.poll_read(), None);
        assert!(tell(&mut leader, Message::Want(vec![(own, 0)])).is_err());
    }
}

#[test]
fn what_is_wanted_beyond_the_end_is_refused() {
    let mut leader = leader();
    leader.handle_sealed(0, &[frame(5, 2)]);
    want(&mut leader, 7);
    assert!(tell(&mut leader, Message::Want(vec![(STREAM, 8)])).is_err());
    assert!(tell(&mut leader, Message::Want(vec![(STREAM, u64::MAX)])).is_err());
}

#[test]
fn what_was_read_may_be_wanted_before_it_is_handed_over() {
    let mut leader = leader();
    want(&mut leader, 2);
    assert_eq!(read(&mut leader, 9, true), 2);
    leader.handle_connected(0, true, 0);
    want(&mut leader, 9);
    leader.handle_sealed(0, &[frame(5, 4)]);
    leader.handle_sealed(0, &[frame(9, 1)]);
    assert_eq!(sent(&mut leader), [9]);
}

#[test]
fn a_read_that_came_too_late_loses_nothing() {
    let mut leader = leader();
    leader.handle_sealed(0, &[frame(5, 2)]);
    want(&mut leader, 2);
    let request = leader.poll_read().unwrap();
    want(&mut leader, 6);
    leader.handle_read(&request, trimmed(4));
    assert_eq!(read(&mut leader, 7, true), 6, "it wants what is there");
    assert_eq!(sent(&mut leader), [5, 6], "the first was under way");
}

#[test]
fn a_read_that_failed_is_tried_again_after_a_while() {
    let mut leader = leader();
    want(&mut leader, 2);
    let request = leader.poll_read().unwrap();
    leader.handle_time(100);
    let failed = vec![STREAM];
    leader.handle_read(&request, ReadOutcome { failed, ..ReadOutcome::default() });
    assert_eq!(leader.poll_read(), None);
    leader.handle_time(109);
    assert_eq!(leader.poll_read(), None, "not at once");
    leader.handle_time(110);
    assert_eq!(read(&mut leader, 5, true), 2);
    assert_eq!(leader.session(0).unwrap().counts.reads_failed, 1);
}

#[test]
fn what_waits_when_something_is_lost_is_not_sent() {
    let mut leader = leader();
    leader.handle_sealed(0, &[frame(5, 4)]);
    want(&mut leader, 2);
    let request = leader.poll_read().unwrap();
    leader.handle_read(&request, trimmed(7));
    assert_eq!(sent(&mut leader), [], "it straddles where the follower begins anew");
    want(&mut leader, 7);
    assert_eq!(read(&mut leader, 9, true), 7);
}

#[test]
fn a_follower_that_does_not_read_makes_nothing_grow() {
    let mut leader = leader();
    let slices = leader.poll_send(0, 4, 0);
    assert_eq!(slices.len(), 0);
    leader.handle_sealed(0, &[frame(5, 1)]);
    assert_eq!(leader.poll_send(0, 4, 0).len(), 1);
    // It is being written, for a very long time.
    for round in 0..10_000u64 {
        leader.handle_trimmed(STREAM, round.min(4));
        leader.tell_committed(&[(STREAM, round)]);
        leader.handle_time(round * 100);
        tell(&mut leader, Message::Heartbeat { time_ns: round }).unwrap();
        want(&mut leader, 2);
        if let Some(request) = leader.poll_read() {
            leader.handle_read(&request, trimmed(4));
        }
    }
    handle_sent(&mut leader);
    let told = told(&mut leader);
    assert!(told.len() <= 4, "{} messages", told.len());
    assert!(told.contains(&Message::Committed(vec![(STREAM, 9999)])));
    assert!(told.contains(&Message::HeartbeatAnswer { time_ns: 9999 }));
}

#[test]
fn what_is_told_and_what_is_sent_both_get_their_turn() {
    for slices_max in [1, 2, 8] {
        let limits = Limits { window_bytes: 100_000, window_buffers: 1000, ..LIMITS };
        let mut leader = leader_with(limits);
        let (mut frames, mut messages) = (0, 0);
        for round in 0..100 {
            // More of both than can go.
            leader.handle_sealed(0, &[frame(5 + round, 1)]);
            leader.tell_committed(&[(STREAM, 5 + round)]);
            tell(&mut leader, Message::Heartbeat { time_ns: round }).unwrap();
            for slice in leader.poll_send(0, slices_max, 0) {
                let is_message = Message::decode(&slice).is_ok();
                messages += u32::from(is_message);
                frames += u32::from(!is_message);
            }
            handle_sent(&mut leader);
        }
        assert!(frames >= 30 && messages >= 30, "{slices_max}: {frames}, {messages}");
    }
}

#[test]
fn what_came_in_an_older_session_is_forgotten() {
    let mut leader = leader();
    let old = leader.session(0).unwrap().number;
    leader.handle_sealed(0, &[frame(5, 2)]);
    let new = leader.handle_connected(0, true, 0);
    assert_ne!(old, new);
    let durable = || Message::Durable { took_ns: 1, ends: vec![(STREAM, 7)] };
    leader.handle_message(0, old, durable(), 0).unwrap();
    assert_eq!(leader.progress().end(0, STREAM), 0, "the disk may be another");
    assert_eq!(leader.handle_disconnected(0, old), SessionCounts::default());
    leader.poll_send(0, 4, 0);
    leader.handle_sent(0, old);
    assert!(leader.handle_message(0, new, durable(), 0).is_err(), "it has not asked");
    leader.handle_disconnected(0, new);
    assert_eq!(leader.session(0), None);
}

#[test]
fn a_new_session_is_told_what_was_committed_before() {
    let mut leader = leader();
    leader.tell_committed(&[(STREAM, 4)]);
    leader.handle_connected(0, true, 0);
    let told = told(&mut leader);
    assert_eq!(told.last(), Some(&Message::Committed(vec![(STREAM, 4)])));
}

#[test]
fn lag_is_known() {
    let mut leader = leader();
    let state = leader.session(0).unwrap();
    assert_eq!((state.behind, state.behind_since_ns), (0, None));
    assert_eq!((state.lag_records, state.lag_bytes), (0, Some(0)));
    leader.handle_sealed(0, &[frame(5, 2)]);
    let state = leader.session(0).unwrap();
    assert_eq!((state.lag_records, state.lag_bytes), (2, Some(100)), "sealed, and not reported");
    leader.handle_durable_end(StreamId::new(8), 0, 3);
    let state = leader.session(0).unwrap();
    assert_eq!((state.lag_records, state.lag_bytes), (5, None), "nothing of it was seen");
    assert_eq!((state.behind, state.behind_since_ns), (1, Some(0)));
    leader.handle_time(7);
    assert_eq!(leader.session(0).unwrap().behind_since_ns, Some(0));
    let request = leader.poll_read().unwrap();
    let (frames, ended) = (vec![other(0, 3)], vec![StreamId::new(8)]);
    leader.handle_read(&request, ReadOutcome { frames, ended, ..ReadOutcome::default() });
    let state = leader.session(0).unwrap();
    assert_eq!((state.behind_since_ns, state.lag_bytes), (None, Some(200)));
    assert_eq!((state.counts.frames_read, state.counts.bytes_read), (1, 100));
    want(&mut leader, 6);
    assert_eq!(leader.session(0).unwrap().behind_since_ns, Some(0), "by the clock of messages");
    sent(&mut leader);
    let durable = Message::Durable { took_ns: 9, ends: vec![(STREAM, 7)] };
    tell(&mut leader, durable).unwrap();
    let state = leader.session(0).unwrap();
    assert_eq!((state.lag_records, state.follower_took_ns), (3, Some(9)));
}

#[test]
fn who_ends_exactly_where_the_leader_has_trimmed_follows() {
    let epochs = EpochTable::from_entries(vec![EpochStart { epoch: 1, start: 0 }]).unwrap();
    let held = |trimmed| Held { trimmed, end: 5, epochs: epochs.clone() };
    let mut began_so = Leader::new(3, 1, LIMITS, [(STREAM, 0, held(5))]);
    let mut trimmed_later = Leader::new(3, 1, LIMITS, [(STREAM, 0, held(0))]);
    trimmed_later.handle_trimmed(STREAM, 5);
    for leader in [&mut began_so, &mut trimmed_later] {
        leader.handle_connected(0, true, 0);
        let Some(Message::Histories(told)) = told(leader).into_iter().next() else { panic!() };
        assert_eq!(told[0].trimmed, 5);
        assert_eq!(history::part(&held(0), &told[0]), history::Parting::Nowhere);
    }
}

/// Leads with one follower that is behind in streams 7 to 9, of two shards.
fn leader_behind() -> Leader {
    let epochs = EpochTable::from_entries(vec![EpochStart { epoch: 1, start: 0 }]).unwrap();
    let held = |stream, shard| {
        (StreamId::new(stream), shard, Held { trimmed: 0, end: 5, epochs: epochs.clone() })
    };
    let mut leader = Leader::new(3, 1, LIMITS, [held(7, 0), held(8, 0), held(9, 1)]);
    leader.handle_connected(0, true, 0);
    told(&mut leader);
    let wants = [7, 8, 9].map(|stream| (StreamId::new(stream), 1));
    tell(&mut leader, Message::Want(wants.to_vec())).unwrap();
    leader
}

#[test]
fn one_read_is_for_all_streams_of_a_shard_and_shards_take_turns() {
    let mut leader = leader_behind();
    let (seven, eight, nine) = (STREAM, StreamId::new(8), StreamId::new(9));
    let request = leader.poll_read().unwrap();
    assert_eq!((request.shard, &request.wanted[..]), (1, &[(nine, 1)][..]));
    leader.handle_read(&request, ReadOutcome::default());
    let request = leader.poll_read().unwrap();
    assert_eq!((request.shard, &request.wanted[..]), (0, &[(seven, 1), (eight, 1)][..]));
    assert_eq!(leader.poll_read(), None, "one at a time");
    // One of them has gone elsewhere meanwhile, and the place of the other was not the oldest.
    want(&mut leader, 3);
    let frames = vec![frame(1, 1)];
    leader.handle_read(&request, ReadOutcome { frames, ..ReadOutcome::default() });
    let request = leader.poll_read().unwrap();
    assert_eq!(request.shard, 1);
    leader.handle_read(&request, ReadOutcome { failed: vec![nine], ..ReadOutcome::default() });
    let request = leader.poll_read().unwrap();
    assert_eq!(request.wanted, [(seven, 3), (eight, 1)]);
    assert_eq!(sent(&mut leader), []);
}

#[test]
fn a_stream_that_cannot_be_read_stops_no_other() {
    let mut leader = leader_behind();
    let (seven, eight) = (STREAM, StreamId::new(8));
    let nine = leader.poll_read().unwrap();
    let failed = vec![StreamId::new(9)];
    leader.handle_read(&nine, ReadOutcome { failed, ..ReadOutcome::default() });
    let request = leader.poll_read().unwrap();
    let frames = vec![frame(1, 1), other(1, 1), other(2, 3)];
    // What is damaged lies behind what could be read.
    let outcome = ReadOutcome { frames, failed: vec![seven], ..ReadOutcome::default() };
    leader.handle_read(&request, ReadOutcome { ended: vec![eight], ..outcome });
    assert_eq!(sent(&mut leader), [1, 1, 2]);
    let state = leader.session(0).unwrap();
    assert_eq!((state.behind, state.counts.reads_failed), (2, 2));
    assert_eq!(leader.poll_read(), None);
    leader.handle_sealed(0, &[other(5, 1)]);
    assert_eq!(sent(&mut leader), [5], "it is live");
    leader.handle_time(LIMITS.heartbeat_ns);
    let again = [leader.poll_read().unwrap()];
    assert_eq!(again[0].wanted, [(StreamId::new(9), 1)]);
    leader.handle_read(&again[0], ReadOutcome::default());
    assert_eq!(leader.poll_read().unwrap().wanted, [(seven, 2)]);
}

#[test]
fn what_is_sealed_and_not_durable_is_not_asked_for_at_once_again() {
    let mut leader = leader();
    leader.handle_sealed(0, &[frame(5, 1)]);
    want(&mut leader, 5);
    let request = leader.poll_read().unwrap();
    assert_eq!(request.sealed, Some((STREAM, 5)));
    let ended = vec![STREAM];
    leader.handle_read(&request, ReadOutcome { ended, ..ReadOutcome::default() });
    assert_eq!(leader.poll_read(), None);
    leader.handle_time(LIMITS.heartbeat_ns);
    assert_eq!(read(&mut leader, 6, true), 5);
}

#[test]
fn what_is_read_is_bounded() {
    let limits = Limits { window_bytes: 4000, read_bytes: 1000, ..LIMITS };
    let mut leader = leader_with(limits);
    leader.handle_durable_end(STREAM, 0, 1000);
    want(&mut leader, 0);
    let mut next = 0;
    while let Some(request) = leader.poll_read() {
        let frames = (next..next + 10).map(|base| frame(base, 1)).collect();
        leader.handle_read(&request, ReadOutcome { frames, ..ReadOutcome::default() });
        next += 10;
    }
    assert_eq!(leader.session(0).unwrap().queued_bytes, 2 * limits.read_bytes);
    leader.poll_send(0, 10, 0);
    assert_eq!(leader.poll_read(), None, "it is being written");
    handle_sent(&mut leader);
    assert!(leader.poll_read().is_some());
}

#[test]
fn a_driven_leader_counts_no_more_than_it_has_sent_and_from_the_start_of_its_epoch_on() {
    let epochs = EpochTable::from_entries(vec![EpochStart { epoch: 1, start: 0 }]).unwrap();
    let held = Held { trimmed: 0, end: 5, epochs };
    let mut leader = Leader::new(3, 1, LIMITS, [(STREAM, 0, held)]).driven();
    leader.handle_connected(0, true, 0);
    told(&mut leader);
    // It is ahead: records have come another way.
    want(&mut leader, 8);
    assert_eq!(leader.poll_enough(), Some((STREAM, 5)), "what it found, and no record of its own");
    let durable = |end| Message::Durable { took_ns: 0, ends: vec![(STREAM, end)] };
    tell(&mut leader, durable(8)).unwrap();
    assert_eq!(leader.poll_enough(), None);
    leader.handle_sealed(0, &[frame(5, 2)]);
    assert_eq!(sent(&mut leader), [5]);
    tell(&mut leader, durable(8)).unwrap();
    assert_eq!(leader.poll_enough(), Some((STREAM, 7)));
    let other = Message::Durable { took_ns: 0, ends: vec![(StreamId::new(40), 3)] };
    tell(&mut leader, other).unwrap();
}

#[test]
fn followers_of_a_leader_come_and_go() {
    let mut leader = leader().driven();
    leader.set_voters(vec![Voters::new(3, true, vec![0])]);
    leader.handle_sealed(0, &[frame(5, 1)]);
    let durable = |end| Message::Durable { took_ns: 0, ends: vec![(STREAM, end)] };
    let _ = sent(&mut leader);
    let second = leader.add_follower();
    leader.set_voters(vec![Voters::new(3, true, vec![0, second])]);
    while leader.poll_enough().is_some() {}
    let session = leader.handle_connected(second, true, 0);
    leader.handle_message(second, session, Message::Want(vec![(STREAM, 6)]), 0).unwrap();
    assert_eq!(leader.poll_enough(), Some((STREAM, 6)), "one of two others");
    leader.remove_follower(second);
    assert_eq!(leader.poll_enough(), Some((STREAM, 5)));
    leader.handle_message(second, session, durable(6), 0).unwrap();
    assert_eq!(leader.poll_enough(), None, "it is none any more");
    assert_eq!((leader.followers(), leader.add_follower()), (2, 2), "a number is used once");
}
