//! One stream of a directory in which an engine may be running: goes around what the engine frees
//! and remembers what cannot be read.

use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::Result;
use ringwal_engine::offline::Snapshot;
use ringwal_engine::{ReadError, Record, StreamId, StreamSummary};

use crate::exit::{self, Exit, Failure};

/// See the module.
pub struct StreamReader {
    directory: PathBuf,
    stream: StreamId,
    snapshot: Snapshot,
    next: u64,
    unreadable: Vec<(Range<u64>, String)>,
}

impl StreamReader {
    /// A reader of `stream` that starts at offset `from`, as the stream's state tells it.
    pub fn open(
        directory: &Path,
        stream: u64,
        from: impl FnOnce(Option<StreamSummary>) -> u64,
    ) -> Result<StreamReader> {
        let snapshot = open(directory)?;
        let stream = StreamId::new(stream);
        let summary = summary_of(&snapshot, stream);
        let next = from(summary);
        let (directory, unreadable) = (directory.to_owned(), Vec::new());
        Ok(StreamReader { directory, stream, snapshot, next, unreadable })
    }

    /// Fails when the directory does not know the stream.
    pub fn check_exists(&self) -> Result<()> {
        let Some(summary) = summary_of(&self.snapshot, self.stream) else {
            let known = self.snapshot.streams();
            let ids: Vec<_> =
                known.iter().take(12).map(|summary| summary.stream.to_string()).collect();
            let more = if known.len() > ids.len() { ", …" } else { "" };
            let what = format!("{} has no stream {}", self.directory.display(), self.stream.get());
            let cause = format!("its streams are: {}{more}", ids.join(", "));
            return Err(Failure::new(Exit::Failure, what)
                .cause(cause)
                .fix("ringwal dump --stats shows all of them")
                .into());
        };
        if self.next < summary.trimmed {
            let what = format!("offset {} of stream {} is gone", self.next, self.stream);
            let cause = format!("the stream was trimmed up to {}", summary.trimmed);
            let fix = format!("--from {}", summary.trimmed);
            return Err(Failure::new(Exit::Failure, what).cause(cause).fix(fix).into());
        }
        Ok(())
    }

    /// Takes in what has been written since; whether there is anything.
    pub fn refresh(&mut self) -> Result<bool> {
        let grew = self.snapshot.refresh().map_err(|error| Failure::open(&error))?;
        if let Some(summary) = summary_of(&self.snapshot, self.stream)
            && summary.end < self.next
        {
            let (end, epoch) = (summary.end, summary.epoch);
            exit::log(&format!("stream {} was cut at {end}, epoch {epoch}", self.stream));
            self.next = end;
        }
        Ok(grew)
    }

    /// Hands on the records up to the end of now; `each` says whether to go on.
    pub fn read(&mut self, mut each: impl FnMut(&Record) -> Result<bool>) -> Result<()> {
        loop {
            let Some(error) = self.read_on(&mut each)? else { return Ok(()) };
            let fresh = open(&self.directory)?;
            let trimmed = summary_of(&fresh, self.stream).map_or(0, |summary| summary.trimmed);
            self.snapshot = fresh;
            if trimmed > self.next {
                let range = format!("{}..{trimmed}", self.next);
                exit::log(&format!("stream {}: {range} were trimmed meanwhile", self.stream));
                self.next = trimmed;
                continue;
            }
            let next = match error {
                ReadError::Missing { next, .. } => next,
                _ => self.next + 1,
            };
            self.note_unreadable(self.next..next, error.to_string());
            self.next = next;
        }
    }

    fn read_on(
        &mut self,
        each: &mut impl FnMut(&Record) -> Result<bool>,
    ) -> Result<Option<ReadError>> {
        let records = match self.snapshot.read(self.stream, self.next..) {
            Ok(Some(records)) => records,
            Ok(None) => return Ok(None),
            Err(error) => return Ok(Some(error)),
        };
        for record in records {
            match record {
                Ok(record) => {
                    self.next = record.offset() + 1;
                    if !each(&record)? {
                        return Ok(None);
                    }
                }
                Err(
                    error @ (ReadError::Missing { .. }
                    | ReadError::Corrupt { .. }
                    | ReadError::Trimmed { .. }),
                ) => return Ok(Some(error)),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    fn note_unreadable(&mut self, range: Range<u64>, cause: String) {
        match self.unreadable.last_mut() {
            Some((last, _)) if last.end == range.start => last.end = range.end,
            _ => self.unreadable.push((range, cause)),
        }
    }

    /// Fails when something could not be read.
    pub fn finish(self) -> Result<()> {
        if self.unreadable.is_empty() {
            return Ok(());
        }
        let what = format!("stream {} cannot be read whole", self.stream);
        let mut failure = Failure::new(Exit::Corrupt, what);
        for (range, cause) in self.unreadable {
            failure = failure.cause(format!("offsets {}..{}: {cause}", range.start, range.end));
        }
        Err(failure.fix(format!("ringwal verify {}", self.directory.display())).into())
    }
}

/// A directory as it is now.
pub fn open(directory: &Path) -> Result<Snapshot> {
    Snapshot::open(directory).map_err(|error| Failure::open(&error).into())
}

fn summary_of(snapshot: &Snapshot, stream: StreamId) -> Option<StreamSummary> {
    snapshot.streams().into_iter().find(|summary| summary.stream == stream)
}
