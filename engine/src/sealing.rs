//! Writing the index and footer of segments that take no more batches, oldest first, beside the
//! path of records. A core without I/O.

use std::collections::VecDeque;
use std::io;
use std::ops::DerefMut;

use crate::disk::{BLOCK_BYTES, FileId, Operation};
use crate::flush::FlushFailure;
use crate::footer::{FooterBlocks, SealFacts, build};
use crate::format::FooterHeader;
use crate::index::Index;

/// Segments on their way to being sealed.
#[derive(Debug)]
pub(crate) struct Sealing {
    segment_bytes: u64,
    waiting: VecDeque<SealFacts>,
    /// Generation that was pushed last.
    newest: u64,
    writing: Option<Writing>,
}

#[derive(Debug)]
struct Writing {
    generation: u64,
    file: FileId,
    blocks: FooterBlocks,
    body_is_durable: bool,
    in_flight: usize,
}

impl Sealing {
    pub(crate) fn new(segment_bytes: u64) -> Self {
        Self { segment_bytes, waiting: VecDeque::new(), newest: 0, writing: None }
    }

    /// Takes a segment that gets no more batches.
    pub(crate) fn push(&mut self, facts: SealFacts) {
        assert!(facts.end_offset <= self.segment_bytes);
        assert!(facts.generation > self.newest, "a segment is sealed once");
        self.newest = facts.generation;
        self.waiting.push_back(facts);
    }

    /// Whether every segment pushed so far is sealed.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.writing.is_none()
    }

    /// The next write; a segment starts only when all of its batches are durable.
    pub(crate) fn poll_operation<G: DerefMut<Target = Index>>(
        &mut self,
        durable: u64,
        index: impl FnOnce() -> G,
    ) -> Option<Operation> {
        if self.writing.is_none() {
            let due = self.waiting.front().is_some_and(|facts| facts.last_sequence <= durable);
            let facts = due.then(|| self.waiting.pop_front()).flatten()?;
            let index = index();
            let blocks = build(&facts, index.runs(facts.generation));
            let file = index.segments.get(&facts.generation).map(|segment| segment.file)?;
            let generation = facts.generation;
            let body_is_durable = blocks.body_length == 0;
            self.writing =
                Some(Writing { generation, file, blocks, body_is_durable, in_flight: 0 });
        }
        let writing = self.writing.as_mut()?;
        if writing.in_flight > 0 {
            return None;
        }
        let blocks = &writing.blocks;
        let (buffer, offset, length) = if writing.body_is_durable {
            (blocks.last.clone(), blocks.last_offset, BLOCK_BYTES)
        } else {
            (blocks.body.clone(), blocks.body_offset, blocks.body_length)
        };
        writing.in_flight = length;
        Some(Operation::Write {
            file: writing.file,
            offset,
            buffer,
            from: 0,
            length,
            durable: true,
        })
    }

    /// The end of a write. The footer of a segment that is sealed now.
    pub(crate) fn handle_completion(
        &mut self,
        result: &io::Result<u64>,
    ) -> Result<Option<(u64, FooterHeader)>, FlushFailure> {
        let writing = self.writing.as_mut().expect("a write was in flight");
        let expected = std::mem::take(&mut writing.in_flight);
        let failure = |errno, message| FlushFailure {
            stage: "footer write",
            file: writing.file,
            errno,
            message,
        };
        match result {
            Err(error) => return Err(failure(error.raw_os_error(), error.to_string())),
            Ok(written) if *written as usize != expected => {
                return Err(failure(None, format!("{written} of {expected} bytes written")));
            }
            Ok(_) => {}
        }
        if !writing.body_is_durable {
            writing.body_is_durable = true;
            return Ok(None);
        }
        Ok(self.writing.take().map(|writing| (writing.generation, writing.blocks.footer)))
    }
}
