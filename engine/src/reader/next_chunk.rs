//! The chunk that comes next, read while the records of the one before are taken apart.

use std::ops::Range;

use super::chunk::{Chunk, buffer_for};
use crate::disk::{BufferMut, OngoingRead};
use crate::index::Location;
use crate::shared::Shared;

/// Reads the next chunk of a reader that goes on for long. What it gives counts as little as what was read before:
/// the frames in it are verified, and looked up, all the same. It costs such a reader a ring and a megabyte.
#[derive(Default)]
pub(super) struct NextChunk {
    read: Option<Box<dyn OngoingRead>>,
    /// The disk has no means, or had none when it was asked.
    is_refused: bool,
    under_way: Option<Place>,
}

#[derive(Copy, Clone)]
struct Place {
    generation: u64,
    from: u64,
    length: usize,
}

impl NextChunk {
    pub(super) fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// Begins to read the chunk at `from`, when the disk can.
    pub(super) fn begin(
        &mut self,
        shared: &Shared,
        location: &Location,
        from: u64,
        length: usize,
        spare: Option<BufferMut>,
    ) {
        if self.read.is_none() && !self.is_refused {
            self.read = shared.reader.ongoing_read();
            self.is_refused = self.read.is_none();
        }
        let Some(read) = &mut self.read else { return };
        shared.note_read();
        let is_begun = read.begin(location.file, from, buffer_for(length, spare), length);
        let place = Place { generation: location.generation, from, length };
        self.under_way = is_begun.then_some(place);
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
        let buffer = self.read.as_mut()?.end();
        shared.note_read();
        Some(Chunk::new(generation, from, buffer?, length))
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
    use crate::disk::BLOCK_BYTES;
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
        let mut reader = Reader::new(shard.shared(), STREAM, 0);
        let ahead = (0..400).filter(|number| {
            read(&mut reader, *number);
            reader.next_chunk.is_under_way()
        });
        let ahead = ahead.count();
        assert!((300..400).contains(&ahead), "{ahead} of 400 were taken apart beside a read");
        assert!(reader.read_next().unwrap().is_none());
        assert!(reader.next_chunk.read.is_none(), "at the end it needs no means");
    }

    /// Whether the chunk that is under way has room behind the last frame that the reader knows of for others.
    fn reaches_behind_the_last(reader: &Reader) -> bool {
        let (place, last) = (reader.next_chunk.under_way, reader.entries.back());
        place.zip(last).is_some_and(|(place, last)| {
            let last_and_next = 2 * BLOCK_BYTES as u64;
            place.from + place.length as u64 > u64::from(last.position) + last_and_next
        })
    }

    #[test]
    fn what_was_read_ahead_before_it_was_written_is_read_again() {
        let sim = SimHandle::new(1);
        let mut shard = open(&sim);
        append(&mut shard, 0..60, 60_000);
        append(&mut shard, 60..61, 10);
        let mut reader = Reader::new(shard.shared(), STREAM, 0);
        let mut read_until = 0;
        while !reaches_behind_the_last(&reader) {
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
        let mut reader = Reader::new(shard.shared(), STREAM, 0);
        let begun = |reader: &Reader| reader.next_chunk.under_way.map(|place| place.from);
        let mut read_until = 0;
        let mut read_while = |reader: &mut Reader, place: Option<u64>| {
            while begun(reader) == place {
                read(reader, read_until);
                read_until += 1;
            }
        };
        read_while(&mut reader, None);
        let first = begun(&reader);
        sim.fail_next(Kind::Read, 5);
        // Now the one that fails is under way; what it should have read is read without it.
        read_while(&mut reader, first);
        let second = begun(&reader);
        assert!(second.is_some());
        read_while(&mut reader, second);
        (read_until..100).for_each(|number| read(&mut reader, number));
    }
}
