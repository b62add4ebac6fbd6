//! The chunk that comes next, read while the records of the one before are taken apart.

use std::ops::Range;

use super::Chunk;
use crate::disk::{BufferMut, ReadAhead};
use crate::index::Location;
use crate::shared::Shared;

/// Of a reader that goes on for long. What it gives counts as little as what was read before: the frames in it
/// are verified, and looked up, all the same. It costs such a reader a ring and a megabyte.
#[derive(Default)]
pub(super) struct Ahead {
    reads: Option<Box<dyn ReadAhead>>,
    /// The disk has none, or not now.
    is_refused: bool,
    under_way: Option<Place>,
}

#[derive(Copy, Clone)]
struct Place {
    generation: u64,
    from: u64,
    length: usize,
}

impl Ahead {
    pub(super) fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// Begins to read the chunk at `from` into `buffer`, when the disk can.
    pub(super) fn begin(
        &mut self,
        shared: &Shared,
        location: &Location,
        from: u64,
        buffer: BufferMut,
        length: usize,
    ) {
        if self.reads.is_none() && !self.is_refused {
            self.reads = shared.reader.ahead();
            self.is_refused = self.reads.is_none();
        }
        let Some(reads) = &mut self.reads else { return };
        shared.note_read();
        reads.begin(location.file, from, buffer, length);
        self.under_way = Some(Place { generation: location.generation, from, length });
    }

    /// Waits for the chunk that is under way, if that holds these bytes of this segment.
    pub(super) fn take(
        &mut self,
        shared: &Shared,
        generation: u64,
        bytes: Range<u64>,
    ) -> Option<Chunk> {
        let Place { from, length, .. } = self.under_way.take_if(|place| {
            place.generation == generation
                && place.from <= bytes.start
                && bytes.end <= place.from + place.length as u64
        })?;
        let read = self.reads.as_mut()?.end();
        shared.note_read();
        let buffer = read?.freeze();
        Some(Chunk { generation, from, bytes: buffer.to_bytes().slice(..length), buffer })
    }

    /// What is under way is not wanted any more.
    pub(super) fn forget(&mut self) {
        self.under_way = None;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Reader;
    use crate::clock::Clock;
    use crate::config::Options;
    use crate::disk::sim::{Kind, SimDisk, SimHandle};
    use crate::own_loop::Shard;
    use crate::stream::StreamId;

    const STREAM: StreamId = StreamId::new(7);
    const SEGMENT_BYTES: u64 = 8 << 20;

    fn open(sim: &SimHandle) -> Shard {
        let clock = Clock::Manual(sim.clock());
        let options = Options::new().idle_seal(None);
        options.open_on(Box::new(SimDisk::new(sim.clone())), [4; 16], SEGMENT_BYTES, clock).unwrap()
    }

    /// Appends records of this length one after another, each with its number, and waits for each.
    fn append(shard: &mut Shard, numbers: std::ops::Range<u64>, bytes: usize) {
        for number in numbers {
            let mut record = vec![number as u8; bytes];
            record[..8].copy_from_slice(&number.to_le_bytes());
            let token = shard.append(STREAM, record).unwrap();
            while token.try_receipt().is_none() {
                shard.run_once(Some(Duration::from_millis(1))).unwrap();
            }
            assert_eq!(token.wait().unwrap().offset(), number);
        }
    }

    /// Reads the record with this number.
    fn read(reader: &mut Reader, number: u64) {
        let record = reader.read_next().unwrap().expect("it is durable");
        assert_eq!(record.offset(), number);
        assert_eq!(record.payload()[..8], number.to_le_bytes());
        assert!(record.payload()[8..].iter().all(|byte| *byte == number as u8));
    }

    #[test]
    fn whoever_reads_for_long_reads_ahead_and_meets_every_record() {
        let sim = SimHandle::new(1);
        let mut shard = open(&sim);
        // Two segments and a half.
        append(&mut shard, 0..400, 50_000);
        let mut reader = Reader::new(shard.shared.clone(), STREAM, 0);
        let ahead = (0..400).filter(|number| {
            read(&mut reader, *number);
            reader.ahead.is_under_way()
        });
        let ahead = ahead.count();
        assert!((300..400).contains(&ahead), "{ahead} of 400 were taken apart beside a read");
        assert!(reader.read_next().unwrap().is_none());
        assert!(reader.ahead.reads.is_none(), "at the end it needs no means");
    }

    #[test]
    fn what_was_read_ahead_before_it_was_written_is_read_again() {
        let sim = SimHandle::new(1);
        let mut shard = open(&sim);
        append(&mut shard, 0..60, 60_000);
        append(&mut shard, 60..61, 10);
        let mut reader = Reader::new(shard.shared.clone(), STREAM, 0);
        let mut read_until = 0;
        // Until the chunk with the last record is under way, and what is behind that with it.
        let last = |reader: &Reader| reader.entries.back().map(|entry| entry.position);
        let has_last = |reader: &Reader| {
            let place = reader.ahead.under_way;
            place.zip(last(reader)).is_some_and(|(place, last)| {
                place.from + place.length as u64 > u64::from(last) + 8192
            })
        };
        while !has_last(&reader) {
            read(&mut reader, read_until);
            read_until += 1;
        }
        assert!(read_until < 60);
        append(&mut shard, 61..90, 10);
        (read_until..90).for_each(|number| read(&mut reader, number));
    }

    #[test]
    fn a_read_that_fails_ahead_is_tried_again_when_it_is_needed() {
        let sim = SimHandle::new(1);
        let mut shard = open(&sim);
        append(&mut shard, 0..100, 60_000);
        let mut reader = Reader::new(shard.shared.clone(), STREAM, 0);
        let mut read_until = 0;
        while !reader.ahead.is_under_way() {
            read(&mut reader, read_until);
            read_until += 1;
        }
        // The next one that is begun, when this one is taken.
        sim.fail_next(Kind::Read, 5);
        (read_until..100).for_each(|number| read(&mut reader, number));
    }
}
