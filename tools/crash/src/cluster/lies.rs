//! What a dishonest peer says: bytes that no leader or follower sends, mostly with checksums that
//! are right. Each is something that can be told from the truth, or that must not matter; what a
//! member could make up so that nobody notices is not in here.

use ringwal_engine::format::{FrameHeader, FrameKind, VerifiedFrame};
use ringwal_engine::{EpochStart, EpochTable, StreamId};
use ringwal_replication::wire::{History, Message, OFFSET_MAX};

use crate::random::Random;

/// A stream that nobody has.
const NOBODYS: StreamId = StreamId::new(99_999);

/// Said by a leader of `epoch` beside this item, which is a true one.
pub fn of_leader(random: &mut Random, epoch: u64, item: &[u8]) -> Vec<u8> {
    if random.chance(300) {
        return flip(random, item);
    }
    if let Ok(frame) = VerifiedFrame::verify(item) {
        return of_frame(random, &frame);
    }
    let own = StreamId::new(random.within(1..=3));
    let history = |stream, trimmed, entries: &[(u64, u64)]| {
        let entries =
            entries.iter().map(|(epoch, start)| EpochStart { epoch: *epoch, start: *start });
        let epochs = EpochTable::from_entries(entries.collect()).expect("in order");
        Message::Histories(vec![History { stream, trimmed, epochs }])
    };
    let far = random.pick(&[1, 1000, OFFSET_MAX, u64::MAX]);
    match random.below(9) {
        0 => Message::Want(vec![(NOBODYS, far)]),
        1 => Message::Durable { took_ns: far, ends: vec![(NOBODYS, far)] },
        2 => history(own, 0, &[(epoch, 0)]),
        3 => history(NOBODYS, 0, &[(epoch + 1, 0)]),
        4 => history(NOBODYS, 5, &[(epoch, 6)]),
        5 => history(NOBODYS, 0, &[(u64::MAX, 0)]),
        6 => Message::Committed(vec![(NOBODYS, far), (own, far)]),
        7 => Message::Trimmed(vec![(NOBODYS, far), (own, far)]),
        _ => Message::HeartbeatAnswer { time_ns: far },
    }
    .encode()
}

fn of_frame(random: &mut Random, frame: &VerifiedFrame<'_>) -> Vec<u8> {
    let header = frame.header;
    let (mut stream, mut epoch) = (header.stream.get(), header.epoch.get());
    let (mut base, mut count) = (header.base_offset.get(), header.count.get());
    match random.below(5) {
        0 => stream = random.within(1..=3),
        1 => stream = NOBODYS.get(),
        2 => epoch = random.pick(&[epoch + 1, u64::MAX, 1 << 60]),
        3 => base = random.pick(&[OFFSET_MAX, OFFSET_MAX - 1, u64::MAX, u64::MAX - 1]),
        _ => count = random.pick(&[0, count + 1, u32::MAX]),
    }
    let time_ns = header.timestamp_ns.get();
    let data = FrameKind::Data;
    let header = FrameHeader::new(data, stream, epoch, base, count, time_ns, frame.payload);
    [zerocopy::IntoBytes::as_bytes(&header), frame.payload].concat()
}

/// Said by a follower beside this message, which is a true one.
pub fn of_follower(random: &mut Random, message: &[u8], stream: StreamId) -> Vec<u8> {
    let own = StreamId::new(random.within(1..=3));
    let far = random.pick(&[100_000, OFFSET_MAX, OFFSET_MAX + 1, u64::MAX]);
    let durable = |stream, end| Message::Durable { took_ns: 1, ends: vec![(stream, end)] };
    match random.below(10) {
        0 | 1 => return flip(random, message),
        2 => Message::Want(vec![(stream, far)]),
        3 => Message::Want(vec![(NOBODYS, random.within(1..=9))]),
        4 => Message::Want(vec![(own, 0)]),
        5 => durable(stream, far),
        6 => durable(random.pick(&[own, NOBODYS]), random.below(9)),
        7 => Message::Committed(vec![(stream, far)]),
        8 => Message::HistoriesEnd,
        _ => Message::Want(vec![(NOBODYS, 0)]),
    }
    .encode()
}

fn flip(random: &mut Random, bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let bit = random.below(8 * bytes.len() as u64) as usize;
    bytes[bit / 8] ^= 1 << (bit % 8);
    bytes
}
