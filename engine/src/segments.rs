//! The life of segment files: created, zeroed and synced ahead of need, given a header, used, freed
//! and used again. A core without I/O: it names one operation at a time, so that preparing never
//! crowds out appends (I-4).

use std::collections::VecDeque;
use std::io;

use crate::disk::{BLOCK_BYTES, Buffer, BufferMut, FileId, Operation};
use crate::format::{COUNTER_MAX, DATA_START, EngineId, JournalEnd, SegmentHeader, SegmentSeed};
use crate::mutants::{self, Mutant};

/// Bytes zeroed by one write: short enough not to hold up an append for long.
const ZERO_BYTES: usize = 256 << 10;
/// How long to wait after a failed preparation before the next try.
const RETRY_NS: u64 = 1_000_000_000;

/// Name of a segment file.
pub(crate) fn segment_name(number: u64) -> String {
    format!("segment-{number:08}")
}

/// Number in a segment file's name.
pub(crate) fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("segment-")?;
    (digits.len() >= 8 && digits.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| digits.parse().ok())
        .flatten()
        .filter(|number| *number <= COUNTER_MAX)
}

/// What all segments of a shard share.
#[derive(Clone, Debug)]
pub(crate) struct SegmentsConfig {
    pub(crate) engine_id: EngineId,
    pub(crate) shard: u16,
    pub(crate) incarnation: u64,
    pub(crate) segment_bytes: u64,
    pub(crate) ahead: usize,
    pub(crate) reserved: usize,
    pub(crate) free_max: usize,
}

/// A segment with a durable header and no batch.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Prepared {
    pub(crate) number: u64,
    pub(crate) generation: u64,
    pub(crate) file: FileId,
    pub(crate) seed: SegmentSeed,
}

#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Step {
    Open,
    Allocate,
    /// What a header of an earlier life says must not be read over zeroes.
    EraseHeader,
    Zero(u64),
    SyncAll,
    SyncDirectory,
    /// One copy after the other, so that a torn write leaves the header that was there before.
    Header(u64),
    HeaderCopy(u64),
    Remove,
}

#[derive(Copy, Clone, Debug)]
struct Task {
    number: u64,
    file: Option<FileId>,
    /// It may have the header of an earlier life.
    is_old: bool,
    step: Step,
}

/// The files of a shard that hold nothing yet, or nothing any more.
#[derive(Debug)]
pub(crate) struct Segments {
    config: SegmentsConfig,
    next_number: u64,
    next_generation: u64,
    /// Goes into the header of the next segment: the first of its incarnation.
    first: Option<JournalEnd>,
    prepared: VecDeque<Prepared>,
    /// Written once over their whole length; need only a header.
    clean: Vec<(u64, FileId)>,
    /// Exist, but were never finished.
    unfinished: Vec<(u64, FileId)>,
    task: Option<Task>,
    in_flight: bool,
    /// Why the last preparation failed, and when to try again.
    failure: Option<(String, u64)>,
    failures: u64,
    zeroes: Buffer,
}

impl Segments {
    /// Starts with the files that recovery found unused. The first segment that is prepared names
    /// `predecessor` as the end of all before it.
    pub(crate) fn new(
        config: SegmentsConfig,
        next_number: u64,
        next_generation: u64,
        predecessor: JournalEnd,
        clean: Vec<(u64, FileId)>,
        unfinished: Vec<(u64, FileId)>,
    ) -> Self {
        Self {
            config,
            next_number,
            next_generation,
            first: Some(predecessor),
            prepared: VecDeque::new(),
            clean,
            unfinished,
            task: None,
            in_flight: false,
            failure: None,
            failures: 0,
            zeroes: BufferMut::allocate(ZERO_BYTES).freeze(),
        }
    }

    /// A segment to write to. The reserve is for the engine's own records only.
    pub(crate) fn take(&mut self, own: bool) -> Option<Prepared> {
        let kept = if own { 0 } else { self.config.reserved };
        (self.prepared.len() > kept).then(|| self.prepared.pop_front()).flatten()
    }

    /// A segment of the reserve, unless it is the last: changes must find one.
    pub(crate) fn take_but_last(&mut self) -> Option<Prepared> {
        (self.prepared.len() > 1).then(|| self.prepared.pop_front()).flatten()
    }

    /// Whether the reserve stays whole when records fill the open segment too, or what it lacks
    /// has its space already.
    pub(crate) fn reserve_is_safe(&self) -> bool {
        let in_work = self
            .task
            .is_some_and(|task| !matches!(task.step, Step::Open | Step::Allocate | Step::Remove));
        self.prepared.len() + self.clean.len() + usize::from(in_work) >= self.config.reserved
    }

    /// Takes a file back in which nothing counts, as a durable record says.
    pub(crate) fn give_back(&mut self, number: u64, file: FileId) {
        self.clean.push((number, file));
    }

    /// Why no segment can be prepared now.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.as_ref().map(|(cause, _)| cause.as_str())
    }

    /// When a failed preparation is tried again.
    pub(crate) fn retry_at(&self) -> Option<u64> {
        let waits = self.task.is_none() && self.needs_more();
        self.failure.as_ref().filter(|_| waits).map(|(_, at)| *at)
    }

    /// Segments prepared, kept for reuse, and failures so far.
    pub(crate) fn counts(&self) -> (usize, usize, u64) {
        (self.prepared.len(), self.clean.len() + self.unfinished.len(), self.failures)
    }

    fn needs_more(&self) -> bool {
        self.prepared.len() < self.config.ahead + self.config.reserved
    }

    /// Whether the next operation is about writing a whole file once, for which there is time.
    pub(crate) fn is_filling(&self) -> bool {
        match self.task {
            Some(task) => {
                !matches!(task.step, Step::Header(_) | Step::HeaderCopy(_) | Step::Remove)
            }
            None => self.needs_more() && self.clean.is_empty(),
        }
    }

    /// The next operation; nothing more until its completion came.
    pub(crate) fn poll_operation(&mut self, now_ns: u64) -> Option<Operation> {
        if self.in_flight {
            return None;
        }
        if self.task.is_none() {
            self.task = self.next_task(now_ns);
        }
        let task = self.task?;
        let operation = self.operation(task);
        self.in_flight = true;
        Some(operation)
    }

    fn next_task(&mut self, now_ns: u64) -> Option<Task> {
        if !self.needs_more() {
            let surplus = self.clean.len() > self.config.free_max;
            let (number, file) = surplus.then(|| self.clean.pop()).flatten()?;
            return Some(Task { number, file: Some(file), is_old: true, step: Step::Remove });
        }
        if let Some((number, file)) = self.clean.pop() {
            return Some(self.header_task(number, file));
        }
        if self.failure.as_ref().is_some_and(|(_, at)| now_ns < *at) {
            return None;
        }
        if let Some((number, file)) = self.unfinished.pop() {
            return Some(Task { number, file: Some(file), is_old: true, step: Step::Allocate });
        }
        let number = self.next_number;
        self.next_number += 1;
        Some(Task { number, file: None, is_old: false, step: Step::Open })
    }

    fn header_task(&mut self, number: u64, file: FileId) -> Task {
        let generation = self.next_generation;
        self.next_generation += 1;
        Task { number, file: Some(file), is_old: true, step: Step::Header(generation) }
    }

    fn operation(&mut self, task: Task) -> Operation {
        let file = task.file.unwrap_or(FileId(u32::MAX));
        match task.step {
            Step::Open => Operation::Open { name: segment_name(task.number), create: true },
            Step::Allocate => Operation::Allocate { file, length: self.config.segment_bytes },
            Step::EraseHeader => {
                let (buffer, length) = (self.zeroes.clone(), DATA_START as usize);
                Operation::Write { file, offset: 0, buffer, from: 0, length, durable: true }
            }
            Step::Zero(offset) => {
                let left = (self.config.segment_bytes - offset) as usize;
                let (buffer, length) = (self.zeroes.clone(), left.min(ZERO_BYTES));
                Operation::Write { file, offset, buffer, from: 0, length, durable: false }
            }
            Step::SyncAll => Operation::SyncAll { file },
            Step::SyncDirectory => Operation::SyncDirectory,
            Step::Header(generation) | Step::HeaderCopy(generation) => {
                let buffer = self.header(task.number, generation);
                let is_copy = matches!(task.step, Step::HeaderCopy(_));
                let (offset, length) = (u64::from(is_copy) * BLOCK_BYTES as u64, BLOCK_BYTES);
                Operation::Write { file, offset, buffer, from: 0, length, durable: true }
            }
            Step::Remove => Operation::Remove { name: segment_name(task.number) },
        }
    }

    /// One copy of a header.
    fn header(&self, number: u64, generation: u64) -> Buffer {
        let config = &self.config;
        let header = SegmentHeader::new(
            config.engine_id,
            u32::from(config.shard),
            number,
            generation,
            config.incarnation,
            config.segment_bytes,
            self.first,
        );
        let mut block = BufferMut::allocate(BLOCK_BYTES);
        header.write(&mut block);
        block.freeze()
    }

    /// The end of the operation that was polled last.
    pub(crate) fn handle_completion(&mut self, result: io::Result<u64>, now_ns: u64) {
        self.in_flight = false;
        let mut task = self.task.take().expect("an operation was in flight");
        match (result, task.step) {
            (Err(_), Step::Remove) => {}
            (Err(error), _) => self.fail(task, &error.to_string(), now_ns),
            (Ok(value), step) => {
                let expected = self.expected(step);
                if expected.is_some_and(|expected| value != expected) {
                    let cause = format!("a write ended after {value} bytes");
                    return self.fail(task, &cause, now_ns);
                }
                if step == Step::Open {
                    task.file = Some(FileId(value as u32));
                }
                self.task = self.after(task);
            }
        }
    }

    fn expected(&self, step: Step) -> Option<u64> {
        match step {
            Step::Zero(offset) => Some((self.config.segment_bytes - offset).min(ZERO_BYTES as u64)),
            Step::EraseHeader => Some(DATA_START),
            Step::Header(_) | Step::HeaderCopy(_) => Some(BLOCK_BYTES as u64),
            _ => None,
        }
    }

    fn after(&mut self, mut task: Task) -> Option<Task> {
        if task.step == Step::Remove {
            return None;
        }
        let file = task.file?;
        task.step = match task.step {
            Step::Open => Step::Allocate,
            Step::Allocate if task.is_old => Step::EraseHeader,
            Step::Allocate | Step::EraseHeader => Step::Zero(0),
            Step::Zero(offset) => {
                let next = offset + ZERO_BYTES as u64;
                if next < self.config.segment_bytes { Step::Zero(next) } else { Step::SyncAll }
            }
            Step::SyncAll if !mutants::is(Mutant::NoDirectorySync) => Step::SyncDirectory,
            Step::SyncAll | Step::SyncDirectory => {
                return Some(self.header_task(task.number, file));
            }
            Step::Header(generation) => Step::HeaderCopy(generation),
            Step::HeaderCopy(generation) => {
                let number = task.number;
                let seed = SegmentSeed::new(&self.config.engine_id, number, generation);
                self.prepared.push_back(Prepared { number, generation, file, seed });
                self.first = None;
                self.failure = None;
                return None;
            }
            Step::Remove => return None,
        };
        Some(task)
    }

    /// An unfinished file goes back to the file system; a used one is kept for another try.
    fn fail(&mut self, task: Task, cause: &str, now_ns: u64) {
        self.failures += 1;
        let name = segment_name(task.number);
        self.failure = Some((format!("{name}: {cause}"), now_ns + RETRY_NS));
        match (task.step, task.file) {
            (Step::Header(_) | Step::HeaderCopy(_), Some(file)) => {
                self.unfinished.push((task.number, file))
            }
            // A file that could not be opened may have been created.
            (_, file) => {
                self.task = Some(Task { file, step: Step::Remove, ..task });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(clean: Vec<(u64, FileId)>) -> Segments {
        let config = SegmentsConfig {
            engine_id: [1; 16],
            shard: 0,
            incarnation: 1,
            segment_bytes: 512 << 10,
            ahead: 1,
            reserved: 1,
            free_max: 1,
        };
        Segments::new(config, 0, 1, JournalEnd::default(), clean, Vec::new())
    }

    fn succeed(segments: &mut Segments) -> Option<String> {
        let operation = segments.poll_operation(0)?;
        assert!(segments.poll_operation(0).is_none(), "one operation at a time");
        let value = match &operation {
            Operation::Write { length, .. } => *length as u64,
            Operation::Open { .. } => 5,
            _ => 0,
        };
        segments.handle_completion(Ok(value), 0);
        Some(format!("{operation:?}").split([' ', '{']).next().unwrap_or_default().into())
    }

    #[test]
    fn a_file_is_zeroed_and_synced_before_its_header() {
        let mut segments = segments(vec![]);
        let steps: Vec<_> = (0..8).filter_map(|_| succeed(&mut segments)).collect();
        assert_eq!(
            steps,
            ["Open", "Allocate", "Write", "Write", "SyncAll", "SyncDirectory", "Write", "Write"]
        );
        assert!(segments.take(false).is_none(), "the reserve is not for records");
        assert_eq!(segments.take(true).map(|prepared| prepared.generation), Some(1));
    }

    #[test]
    fn a_full_disk_gives_the_file_back_and_tries_again_later() {
        let mut segments = segments(vec![]);
        succeed(&mut segments);
        assert!(matches!(segments.poll_operation(0), Some(Operation::Allocate { .. })));
        segments.handle_completion(Err(io::Error::from_raw_os_error(28)), 0);
        assert!(segments.failure().is_some());
        assert!(matches!(segments.poll_operation(0), Some(Operation::Remove { .. })));
        segments.handle_completion(Ok(0), 0);
        assert!(segments.poll_operation(1).is_none());
        assert!(matches!(segments.poll_operation(RETRY_NS), Some(Operation::Open { .. })));
    }

    #[test]
    fn freed_files_are_used_again_and_a_surplus_is_removed() {
        let mut segments = segments((0..4).map(|n| (n, FileId(n as u32))).collect());
        let steps: Vec<_> = (0..6).filter_map(|_| succeed(&mut segments)).collect();
        assert_eq!(steps, ["Write", "Write", "Write", "Write", "Remove"]);
    }

    /// Over zeroes, an old header and footer would tell of records that are not there.
    #[test]
    fn the_header_of_a_used_file_is_durably_gone_before_the_rest_of_it() {
        let mut segments = segments(vec![(3, FileId(3))]);
        assert!(matches!(segments.poll_operation(0), Some(Operation::Write { .. })));
        segments.handle_completion(Err(io::Error::from_raw_os_error(5)), 0);
        assert!(segments.poll_operation(1).is_none(), "it is tried again later");
        assert!(matches!(segments.poll_operation(RETRY_NS), Some(Operation::Allocate { .. })));
        segments.handle_completion(Ok(0), RETRY_NS);
        let erased = segments.poll_operation(RETRY_NS);
        let Some(Operation::Write { offset: 0, buffer, length: 8192, durable: true, .. }) = erased
        else {
            panic!("{erased:?}");
        };
        assert!(buffer[..8192].iter().all(|byte| *byte == 0));
        segments.handle_completion(Ok(8192), RETRY_NS);
        let zeroed = segments.poll_operation(RETRY_NS);
        assert!(matches!(zeroed, Some(Operation::Write { offset: 0, durable: false, .. })));
    }

    #[test]
    fn names_and_numbers() {
        assert_eq!(segment_number(&segment_name(12)), Some(12));
        assert_eq!(segment_number("segment-1"), None);
        assert_eq!(segment_number("anchor"), None);
    }
}
