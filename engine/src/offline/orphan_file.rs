//! One orphan file, read from its front to its end. Believes no byte before its checksum, and holds
//! one frame at a time, which is never longer than the file.

use std::io::{self, BufReader, Read, Seek};
use std::ops::{ControlFlow, Range};

use crate::format::{
    FRAME_HEADER_BYTES, FormatError, FrameHeader, FrameKind, ORPHAN_HEADER_BYTES,
    ORPHAN_TRAILER_BYTES, OrphanFrames, OrphanHeader, OrphanTrailer, VerifiedFrame,
};
use crate::stream::EpochStart;

/// What an orphan file is worth.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum OrphanState {
    /// As it was written, as far as it was read.
    Whole,
    /// It ends early; all that is there is as it was written.
    Torn,
    /// Bytes of it are not as they were written.
    Damaged,
    /// A newer version wrote it: only that was read.
    Newer,
}

impl OrphanState {
    /// In one word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Torn => "torn",
            Self::Damaged => "damaged",
            Self::Newer => "newer",
        }
    }
}

/// How much of the file is read.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Depth {
    /// The headers: of the file and of its frames.
    Headers,
    /// Everything.
    Payloads,
}

impl Depth {
    /// Bytes that are read at once.
    fn chunk_bytes(self) -> u64 {
        match self {
            // Between the headers of large frames most would be read for nothing.
            Self::Headers => 64 << 10,
            Self::Payloads => 1 << 20,
        }
    }
}

/// What is in the file.
#[derive(Clone, Debug)]
pub(crate) struct Contents {
    pub(crate) state: OrphanState,
    /// Unless it could not be believed.
    pub(crate) header: Option<OrphanHeader>,
    /// Frames with a sound header, each the continuation of the one before.
    pub(crate) frames: OrphanFrames,
    /// Records of those whose payload is damaged.
    pub(crate) unreadable_records: u64,
    /// Epochs of the records, with the first offset of each.
    pub(crate) epochs: Vec<EpochStart>,
    /// The first thing that is wrong: which bytes, and what.
    pub(crate) problem: Option<(Range<u64>, String)>,
}

/// Reads a file of `length` bytes and hands on its sound frames, until `each` says stop. What was
/// not read then is taken to be whole.
///
/// # Errors
/// What reading said; that the file is shorter by now is none.
pub(crate) fn read_contents<R: Read + Seek>(
    source: R,
    length: u64,
    depth: Depth,
    mut each: impl FnMut(&VerifiedFrame<'_>) -> ControlFlow<()>,
) -> io::Result<Contents> {
    let buffered = BufReader::with_capacity(length.min(depth.chunk_bytes()) as usize, source);
    let mut walk = Walk {
        source: Source { buffered, at: 0, length },
        contents: Contents {
            state: OrphanState::Whole,
            header: None,
            frames: OrphanFrames::default(),
            unreadable_records: 0,
            epochs: Vec::new(),
            problem: None,
        },
        frame: Vec::new(),
    };
    if let Some(header) = walk.read_header()? {
        walk.contents.header = Some(header);
        if walk.read_frames(&header, depth, &mut each)?.is_continue() {
            walk.read_trailer(&header)?;
        }
    }
    Ok(walk.contents)
}

struct Source<R> {
    buffered: BufReader<R>,
    at: u64,
    length: u64,
}

impl<R: Read + Seek> Source<R> {
    fn left(&self) -> u64 {
        self.length - self.at
    }

    /// Fills `into`; false when the file ends before.
    fn read(&mut self, into: &mut [u8]) -> io::Result<bool> {
        if self.left() < into.len() as u64 {
            return Ok(false);
        }
        match self.buffered.read_exact(into) {
            Ok(()) => {
                self.at += into.len() as u64;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Goes over bytes; false when the file ends before.
    fn skip(&mut self, bytes: u64) -> io::Result<bool> {
        if self.left() < bytes {
            return Ok(false);
        }
        self.buffered.seek_relative(bytes as i64)?;
        self.at += bytes;
        Ok(true)
    }
}

struct Walk<R> {
    source: Source<R>,
    contents: Contents,
    /// Header and payload of the present frame.
    frame: Vec<u8>,
}

impl<R: Read + Seek> Walk<R> {
    fn read_header(&mut self) -> io::Result<Option<OrphanHeader>> {
        let mut bytes = [0; ORPHAN_HEADER_BYTES];
        if !self.source.read(&mut bytes)? {
            self.torn(0, "it ends inside its header".into());
            return Ok(None);
        }
        let all = 0..ORPHAN_HEADER_BYTES as u64;
        match OrphanHeader::verify(&bytes) {
            Ok(header) => return Ok(Some(header)),
            Err(error @ FormatError::Newer(..)) => {
                self.note(OrphanState::Newer, all, format!("a newer version wrote it ({error})"));
            }
            Err(error) => self.damaged(all, format!("its header is damaged ({error})")),
        }
        Ok(None)
    }

    /// Breaks off when what follows cannot be found, or `each` says so.
    fn read_frames(
        &mut self,
        file: &OrphanHeader,
        depth: Depth,
        each: &mut impl FnMut(&VerifiedFrame<'_>) -> ControlFlow<()>,
    ) -> io::Result<ControlFlow<()>> {
        let (mut next, end) = (file.base_offset.get(), file.end_offset.get());
        while next < end {
            let at = self.source.at;
            let Some(header) = self.read_frame(file, next, depth)? else {
                return Ok(ControlFlow::Break(()));
            };
            self.count(&header);
            next = header.end_offset();
            if depth == Depth::Headers {
                continue;
            }
            match VerifiedFrame::verify(&self.frame) {
                Ok(frame) if each(&frame).is_break() => return Ok(ControlFlow::Break(())),
                Ok(_) => {}
                Err(error) => {
                    self.contents.unreadable_records += u64::from(header.count.get());
                    let bytes = at..at + header.frame_length() as u64;
                    let offsets = header.base_offset.get()..next;
                    let what = format!(
                        "the frame of offsets {}..{} is damaged ({error})",
                        offsets.start, offsets.end
                    );
                    self.damaged(bytes, what);
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The frame of offset `next`; `None` when the file ends before, or it cannot be told where it
    /// ends.
    fn read_frame(
        &mut self,
        file: &OrphanHeader,
        next: u64,
        depth: Depth,
    ) -> io::Result<Option<FrameHeader>> {
        let at = self.source.at;
        let torn = format!("it ends before offset {next}");
        let mut bytes = [0; FRAME_HEADER_BYTES];
        if !self.source.read(&mut bytes)? {
            self.torn(at, torn);
            return Ok(None);
        }
        let header = match self.check_frame(file, next, &bytes) {
            Ok(header) => header,
            Err(why) => {
                let what = format!("the frame of offset {next} is damaged ({why})");
                self.damaged(at..at + bytes.len() as u64, what);
                return Ok(None);
            }
        };
        let payload_bytes = u64::from(header.payload_length.get());
        if self.source.left() < payload_bytes {
            self.torn(at, torn);
            return Ok(None);
        }
        let is_there = match depth {
            Depth::Headers => self.source.skip(payload_bytes)?,
            Depth::Payloads => {
                self.frame.clear();
                self.frame.extend_from_slice(&bytes);
                self.frame.resize(header.frame_length(), 0);
                self.source.read(&mut self.frame[FRAME_HEADER_BYTES..])?
            }
        };
        if !is_there {
            self.torn(at, torn);
        }
        Ok(is_there.then_some(header))
    }

    fn check_frame(
        &self,
        file: &OrphanHeader,
        next: u64,
        bytes: &[u8],
    ) -> Result<FrameHeader, String> {
        let (header, kind) = FrameHeader::verify(bytes).map_err(|error| error.to_string())?;
        let last_epoch = self.contents.epochs.last().map_or(0, |entry| entry.epoch);
        let continues = kind == FrameKind::Data
            && header.stream == file.stream
            && header.base_offset.get() == next
            && (next + 1..=file.end_offset.get()).contains(&header.end_offset())
            && header.epoch.get() >= last_epoch;
        if continues { Ok(header) } else { Err("it does not continue what is before it".into()) }
    }

    fn count(&mut self, header: &FrameHeader) {
        let contents = &mut self.contents;
        contents.frames.add(header);
        let (epoch, start) = (header.epoch.get(), header.base_offset.get());
        if contents.epochs.last().is_none_or(|last| last.epoch != epoch) {
            contents.epochs.push(EpochStart { epoch, start });
        }
    }

    fn read_trailer(&mut self, header: &OrphanHeader) -> io::Result<()> {
        let at = self.source.at;
        let mut bytes = [0; ORPHAN_TRAILER_BYTES];
        if !self.source.read(&mut bytes)? {
            self.torn(at, "every record is there, and not all of the trailer".into());
            return Ok(());
        }
        let behind = self.source.at;
        if let Err(error) = OrphanTrailer::verify(&bytes, header, &self.contents.frames) {
            self.damaged(at..behind, format!("its trailer is damaged ({error})"));
        } else if behind < self.source.length {
            self.damaged(behind..self.source.length, "it goes on behind its trailer".into());
        }
        Ok(())
    }

    fn torn(&mut self, at: u64, what: String) {
        self.note(OrphanState::Torn, at..self.source.length, what);
    }

    fn damaged(&mut self, bytes: Range<u64>, what: String) {
        self.note(OrphanState::Damaged, bytes, what);
    }

    /// The first one tells.
    fn note(&mut self, state: OrphanState, bytes: Range<u64>, what: String) {
        if self.contents.problem.is_none() {
            self.contents.state = state;
            self.contents.problem = Some((bytes, what));
        }
    }
}
