//! Frames that are made here: of records of an entry, and of the rest of a frame whose beginning is
//! held already. By I-17 the same records in the same epoch, whatever frame they come in.

use bytes::Bytes;
use ringwal_engine::StreamId;
use ringwal_engine::format::{
    FRAME_HEADER_BYTES, FrameHeader, FrameKind, RECORD_PREFIX_BYTES, VerifiedFrame,
};
use zerocopy::IntoBytes;

/// One frame of records from `base` on: as many as fit, at least one.
pub fn frame_of<R: AsRef<[u8]>>(
    stream: StreamId,
    epoch: u64,
    base: u64,
    records: &[R],
    frame_bytes_max: usize,
) -> Bytes {
    let (mut payload, mut count) = (Vec::new(), 0u32);
    for record in records.iter().map(AsRef::as_ref) {
        let length = FRAME_HEADER_BYTES + payload.len() + RECORD_PREFIX_BYTES + record.len();
        if count > 0 && length > frame_bytes_max {
            break;
        }
        payload.extend_from_slice(&(record.len() as u32).to_le_bytes());
        payload.extend_from_slice(record);
        count += 1;
    }
    // The time is for information only, and nobody here knows when they were made.
    let header = FrameHeader::new(FrameKind::Data, stream.get(), epoch, base, count, 0, &payload);
    Bytes::from([header.as_bytes(), &payload].concat())
}

/// What a sound frame holds from `from` on, which is inside of it.
pub fn rest_of(frame: &VerifiedFrame<'_>, from: u64) -> Bytes {
    let header = &frame.header;
    let skipped = usize::try_from(from - header.base_offset.get()).expect("inside of it");
    let records: Vec<&[u8]> = frame.records().skip(skipped).collect();
    let (stream, epoch) = (StreamId::new(header.stream.get()), header.epoch.get());
    frame_of(stream, epoch, from, &records, usize::MAX)
}

/// Bytes of the records in a frame of this length, each with what says how long it is.
pub(crate) fn record_bytes(frame_bytes: usize) -> u64 {
    frame_bytes.saturating_sub(FRAME_HEADER_BYTES) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: StreamId = StreamId::new(9);

    fn records(frame: &Bytes) -> (u64, u64, Vec<Vec<u8>>) {
        let frame = VerifiedFrame::verify(frame).expect("sound");
        let records = frame.records().map(<[u8]>::to_vec).collect();
        (frame.header.epoch.get(), frame.header.base_offset.get(), records)
    }

    #[test]
    fn records_go_into_frames_that_fit() {
        let all: Vec<Vec<u8>> = (0..5u8).map(|n| vec![n; 100]).collect();
        let max = FRAME_HEADER_BYTES + 2 * 104;
        let first = frame_of(STREAM, 5, 40, &all, max);
        assert_eq!(first.len(), max);
        assert_eq!(records(&first), (5, 40, all[..2].to_vec()));
        assert_eq!(record_bytes(first.len()), 208);
        assert_eq!(records(&frame_of(STREAM, 5, 42, &all[2..], max - 1)).2, all[2..3]);
        assert_eq!(records(&frame_of(STREAM, 5, 42, &all[2..], 1)).2, all[2..3], "at least one");
    }

    #[test]
    fn what_is_left_of_a_frame_is_a_frame() {
        let all: Vec<Vec<u8>> = (0..5u8).map(|n| vec![n; usize::from(n)]).collect();
        let whole = frame_of(STREAM, 5, 40, &all, usize::MAX);
        let rest = rest_of(&VerifiedFrame::verify(&whole).expect("sound"), 43);
        assert_eq!(records(&rest), (5, 43, all[3..].to_vec()));
    }
}
