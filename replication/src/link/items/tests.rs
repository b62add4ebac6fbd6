use ringwal_engine::format::{FrameHeader, FrameKind};
use zerocopy::IntoBytes;

use super::*;

const FRAME_BYTES_MAX: usize = 4 << 20;

fn frame(payload_bytes: usize) -> Vec<u8> {
    let payload: Vec<u8> = (0..payload_bytes).map(|index| index as u8).collect();
    let header = FrameHeader::new(FrameKind::Data, 7, 1, 0, 1, 0, &payload);
    [header.as_bytes(), &payload].concat()
}

/// One read of as much as there is room for; returns what it took.
fn read(buffer: &mut ItemBuffer, from: &[u8]) -> usize {
    let mut bytes = buffer.take_for_read();
    let count = from.len().min(bytes.capacity() - bytes.len());
    bytes.extend_from_slice(&from[..count]);
    buffer.put_back(bytes, count);
    count
}

fn next_frame(buffer: &mut ItemBuffer) -> Option<Bytes> {
    match buffer.next_item(FRAME_BYTES_MAX).expect("an item") {
        Some(Received::Frame(frame)) => Some(frame),
        Some(other) => panic!("{other:?}"),
        None => None,
    }
}

fn capacity(buffer: &ItemBuffer) -> usize {
    buffer.bytes.capacity()
}

#[test]
fn items_come_out_as_they_went_in_however_they_are_cut() {
    let message = Message::Heartbeat { time_ns: 9 };
    let frames = [frame(4), frame(70_000), frame(300_000), frame(10)];
    let stream = [&frames[0], &message.encode(), &frames[1], &frames[2], &frames[3]];
    let stream: Vec<u8> = stream.into_iter().flatten().copied().collect();
    for step in [1, 7, 16, 63, 1000, 65_536, 1 << 20] {
        let mut buffer = ItemBuffer::new();
        let mut received = Vec::new();
        let mut rest = &stream[..];
        while !rest.is_empty() {
            let taken = read(&mut buffer, &rest[..step.min(rest.len())]);
            rest = &rest[taken..];
            assert!(buffer.is_to_be_looked_at());
            while let Some(item) = buffer.next_item(FRAME_BYTES_MAX).expect("items") {
                received.push(item);
            }
            assert!(!buffer.is_to_be_looked_at());
        }
        let frame = |index: usize| Received::Frame(Bytes::from(frames[index].clone()));
        let message = Received::Message(message.clone());
        assert_eq!(received, [frame(0), message, frame(1), frame(2), frame(3)], "step {step}");
        assert_eq!(buffer.len(), 0);
    }
}

#[test]
fn a_frame_is_a_part_of_the_buffer() {
    let mut buffer = ItemBuffer::new();
    let two = [frame(100), frame(200)].concat();
    read(&mut buffer, &two);
    let start = buffer.bytes.as_ptr();
    let first = next_frame(&mut buffer).expect("whole");
    let second = next_frame(&mut buffer).expect("whole");
    assert_eq!(first.as_ptr(), start);
    assert_eq!(second.as_ptr(), first.as_ptr().wrapping_add(first.len()));
}

#[test]
fn a_length_is_compared_with_its_limit_before_anything_is_allocated() {
    let mut bytes = frame(FRAME_BYTES_MAX);
    bytes.truncate(100);
    let mut buffer = ItemBuffer::new();
    read(&mut buffer, &bytes);
    let error = buffer.next_item(FRAME_BYTES_MAX).expect_err("too long");
    assert!(matches!(error, WireError::TooLong { .. }), "{error}");
    assert_eq!(buffer.next_item(FRAME_BYTES_MAX), Err(error));
    assert_eq!(capacity(&buffer), CHUNK_BYTES);
}

#[test]
fn a_long_frame_has_a_buffer_of_its_own_and_leaves_none() {
    let long = frame(1 << 20);
    let mut buffer = ItemBuffer::new();
    let mut rest = &long[..];
    rest = &rest[read(&mut buffer, &rest[..1000])..];
    assert_eq!(next_frame(&mut buffer), None);
    assert!(read(&mut buffer, &rest[..10]) == 10 && capacity(&buffer) == long.len());
    rest = &rest[10..];
    assert_eq!(next_frame(&mut buffer), None);
    // Not one byte of what follows comes into it.
    let more = [rest, &frame(10)].concat();
    assert_eq!(read(&mut buffer, &more), rest.len());
    let frame = next_frame(&mut buffer).expect("whole");
    assert!(frame == long && capacity(&buffer) == 0);
    let pinned = frame.try_into_mut().expect("nobody else holds it");
    assert_eq!(pinned.capacity(), long.len());
    read(&mut buffer, &[1]);
    assert_eq!(capacity(&buffer), CHUNK_BYTES);
}

#[test]
fn a_buffer_is_used_again_when_its_frames_are_dropped_and_left_alone_when_not() {
    let frame = frame(60_000);
    let mut buffer = ItemBuffer::new();
    let mut starts = std::collections::HashSet::new();
    let mut round = |buffer: &mut ItemBuffer| {
        assert_eq!(read(buffer, &frame), frame.len());
        let received = next_frame(buffer).expect("whole");
        starts.insert(received.as_ptr());
        assert_eq!(received, frame);
        (received, starts.len())
    };
    for _ in 0..100 {
        // Four places in one buffer: a fifth frame would not leave room for a read.
        assert!(round(&mut buffer).1 <= 4);
    }
    let mut kept = Vec::new();
    for _ in 0..100 {
        kept.push(round(&mut buffer).0);
    }
    assert!(kept.iter().all(|kept| kept == &frame));
}

#[test]
fn a_message_must_be_whole_and_sound() {
    let mut bytes = Message::Heartbeat { time_ns: 9 }.encode();
    *bytes.last_mut().expect("bytes") ^= 1;
    let mut buffer = ItemBuffer::new();
    read(&mut buffer, &bytes);
    assert_eq!(buffer.next_item(0), Err(WireError::Checksum("message")));
}
