//! Keeps what is about to be cut: the suffix of a stream goes, frame by frame, into a file of its own
//! in the engine's directory, durably, before anything is cut (I-12). What reads these files is
//! [`ringwal_engine::offline::orphans()`]; nothing here removes one that is finished.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use ringwal_engine::format::{
    FrameHeader, FrameKind, ORPHANS_FOLDER, OrphanFacts, OrphanFrames, OrphanHeader, OrphanName,
    OrphanTrailer, RECORD_PREFIX_BYTES, VerifiedFrame,
};
use ringwal_engine::offline::{self, OrphanState};
use ringwal_engine::{Engine, FormatError, FrameSlice, OpenError, ReadError, StreamId};
use zerocopy::IntoBytes;

use crate::node_id::{NodeId, RunId};
use crate::promise::Promise;

/// Bytes of frames that are read at once: what this holds in memory, but for a multiple of it.
const STEP_BYTES: usize = 1 << 20;
/// The records of one service, readable by its group, as the segments are.
const FILE_MODE: u32 = 0o640;
const FOLDER_MODE: u32 = 0o750;

/// One at a time, so that no call takes the unfinished file of another for one that a crash has left.
/// Another process is kept out by the engine's lock.
static KEEPING: Mutex<()> = Mutex::new(());

/// Why records are cut: who leads in the history that goes on without them.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Reason {
    /// Epoch in which it leads.
    pub epoch: u64,
    /// Which node.
    pub leader: NodeId,
    /// In which run of its process.
    pub run: RunId,
}

impl From<Promise> for Reason {
    fn from(promise: Promise) -> Self {
        let Promise { epoch, leader, run } = promise;
        Self { epoch, leader, run }
    }
}

/// Why a suffix was not kept. It must not be cut then; no unfinished file is left behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OrphanError {
    /// The range is none.
    #[error("stream {stream} cannot be kept from {from} to {end}: that is backwards")]
    Backwards {
        /// Which stream.
        stream: StreamId,
        /// First offset that was asked for.
        from: u64,
        /// Offset after the last.
        end: u64,
    },
    /// A record of it cannot be read.
    #[error("{from}..{end} of stream {stream} cannot be kept, so it must not be cut: {source}")]
    Unreadable {
        /// Which stream.
        stream: StreamId,
        /// First offset that was to be kept.
        from: u64,
        /// Offset after the last.
        end: u64,
        /// Which record, in which file and at which byte.
        source: ReadError,
    },
    /// Not all of it is durable.
    #[error(
        "stream {stream} is durable up to {durable}, and was to be kept up to {end}; wait for it"
    )]
    NotDurable {
        /// Which stream.
        stream: StreamId,
        /// Offset after the last durable record.
        durable: u64,
        /// Offset after the last that was to be kept.
        end: u64,
    },
    /// What the engine gave is not what it says it is.
    #[error("stream {stream}, offset {offset}: the engine gave a damaged frame ({source})")]
    Frame {
        /// Which stream.
        stream: StreamId,
        /// Offset that it was for.
        offset: u64,
        /// What is wrong with it.
        source: FormatError,
    },
    /// The file system is full.
    #[error(
        "no space to keep {from}..{end} of stream {stream} in {}: {free_bytes} bytes are free, and \
         that is too little ({source}); free space, it must not be cut before",
        folder.display()
    )]
    NoSpace {
        /// Which stream.
        stream: StreamId,
        /// First offset that was to be kept.
        from: u64,
        /// Offset after the last.
        end: u64,
        /// Folder of the orphan files.
        folder: PathBuf,
        /// What is free when nothing of the attempt is left.
        free_bytes: u64,
        /// What the file system said.
        source: io::Error,
    },
    /// Anything else that the file system said.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which path.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// Nothing in the engine's directory tells its identity.
    #[error(transparent)]
    Directory(#[from] OpenError),
}

/// Keeps the durable records `from..end` of a stream in a file, and returns its path when it and its
/// name are durable; `None` when the range is empty. Only then may they be cut.
///
/// Where a whole file holds these very frames already (a crash came between keeping and cutting), that
/// one is returned, with the reason that it has, and no second one is written. Where it is damaged, or
/// the frames differ, a second file with another number is: the first stays as it is.
///
/// It blocks for as long as reading and writing take, holds a few megabytes however long the suffix
/// is, and first removes what calls that a crash ended have left unfinished. Nothing else may append
/// to, trim or cut the stream meanwhile.
///
/// # Errors
/// See [`OrphanError`].
pub fn keep(
    engine: &Engine,
    stream: StreamId,
    from: u64,
    end: u64,
    reason: Reason,
) -> Result<Option<PathBuf>, OrphanError> {
    if from == end {
        return Ok(None);
    }
    if from > end {
        return Err(OrphanError::Backwards { stream, from, end });
    }
    let _one_at_a_time = KEEPING.lock().unwrap_or_else(PoisonError::into_inner);
    let facts = OrphanFacts {
        engine_id: offline::engine_id(engine.directory())?,
        stream: stream.get(),
        base_offset: from,
        end_offset: end,
        time_ns: unix_ns(),
        leader: reason.leader.get(),
        epoch: reason.epoch,
        run: reason.run.bytes(),
    };
    let suffix = Suffix { engine, stream, offsets: from..end };
    suffix.keep(&facts).map(Some).map_err(|error| suffix.name_lack_of_space(error))
}

fn unix_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// What is to be kept.
struct Suffix<'a> {
    engine: &'a Engine,
    stream: StreamId,
    offsets: Range<u64>,
}

impl Suffix<'_> {
    fn folder(&self) -> PathBuf {
        self.engine.directory().join(ORPHANS_FOLDER)
    }

    fn keep(&self, facts: &OrphanFacts) -> Result<PathBuf, OrphanError> {
        let folder = self.folder();
        make_folder(&folder)?;
        let taken = self.look_around(&folder)?;
        let path = match self.find_kept(facts, &taken)? {
            Some(name) => {
                let path = folder.join(name.file());
                // It was synced before it got its name, unless somebody has copied it here.
                File::open(&path)
                    .and_then(|file| file.sync_all())
                    .map_err(io_error("sync", &path))?;
                path
            }
            None => {
                let number = taken.iter().map(|name| name.number + 1).max().unwrap_or(0);
                let (stream, offset) = (facts.stream, facts.base_offset);
                self.write_aside(facts, OrphanName { stream, offset, number })?
            }
        };
        sync_folder(&folder)?;
        // Always: whoever made the folder may have died before its name was durable.
        sync_folder(self.engine.directory())?;
        Ok(path)
    }

    /// Removes what was not finished, and names the files of this stream and offset.
    fn look_around(&self, folder: &Path) -> Result<Vec<OrphanName>, OrphanError> {
        let mut taken = Vec::new();
        for entry in fs::read_dir(folder).map_err(io_error("list", folder))? {
            let entry = entry.map_err(io_error("list", folder))?;
            let Ok(file) = entry.file_name().into_string() else { continue };
            if OrphanName::parse_unfinished(&file).is_some() {
                let path = entry.path();
                fs::remove_file(&path).map_err(io_error("remove", &path))?;
            }
            let is_beside = |name: &OrphanName| {
                (name.stream, name.offset) == (self.stream.get(), self.offsets.start)
            };
            taken.extend(OrphanName::parse(&file).filter(is_beside));
        }
        Ok(taken)
    }

    /// The file that holds the same frames already.
    fn find_kept(
        &self,
        facts: &OrphanFacts,
        taken: &[OrphanName],
    ) -> Result<Option<OrphanName>, OrphanError> {
        let mut wanted = None;
        for name in taken {
            let file = format!("{ORPHANS_FOLDER}/{}", name.file());
            let go_on = |_: offline::VisitedRecord<'_>| ControlFlow::Continue(());
            // One that cannot be read is no reason not to write another.
            let kept = offline::visit_orphan(self.engine.directory(), &file, go_on);
            let Ok(kept) = kept else { continue };
            let is_it = |kept: OrphanFacts| {
                let OrphanFacts { engine_id, stream, base_offset, end_offset, .. } = kept;
                (engine_id, stream) == (facts.engine_id, facts.stream)
                    && (base_offset, end_offset) == (facts.base_offset, facts.end_offset)
            };
            if kept.state != OrphanState::Whole || !kept.facts.is_some_and(is_it) {
                continue;
            }
            let frames = match wanted {
                Some(frames) => frames,
                None => *wanted.insert(self.copy_frames(&mut io::sink(), Path::new(""))?),
            };
            if kept.frames == frames {
                return Ok(Some(*name));
            }
        }
        Ok(None)
    }

    /// Writes a file under a name that nobody takes for a finished one, syncs it, and renames it.
    fn write_aside(&self, facts: &OrphanFacts, name: OrphanName) -> Result<PathBuf, OrphanError> {
        let folder = self.folder();
        let (aside, path) = (folder.join(name.unfinished()), folder.join(name.file()));
        let written = self
            .write(facts, &aside)
            .and_then(|()| fs::rename(&aside, &path).map_err(io_error("rename", &aside)));
        if written.is_err() {
            // When even this fails the next call does it.
            let _ = fs::remove_file(&aside);
        }
        written.map(|()| path)
    }

    fn write(&self, facts: &OrphanFacts, path: &Path) -> Result<(), OrphanError> {
        let failed = || io_error("write", path);
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(FILE_MODE).open(path);
        let mut file =
            BufWriter::with_capacity(STEP_BYTES, file.map_err(io_error("create", path))?);
        let header = OrphanHeader::new(facts);
        file.write_all(header.as_bytes()).map_err(failed())?;
        let frames = self.copy_frames(&mut file, path)?;
        let trailer = OrphanTrailer::new(&header, &frames);
        file.write_all(trailer.as_bytes()).map_err(failed())?;
        file.flush().map_err(failed())?;
        file.get_ref().sync_all().map_err(io_error("sync", path))
    }

    /// Copies the frames of all records, and counts them.
    fn copy_frames(&self, into: &mut impl Write, path: &Path) -> Result<OrphanFrames, OrphanError> {
        let (stream, Range { start: from, end }) = (self.stream, self.offsets.clone());
        let mut source = self.engine.stream(stream).frames(from);
        let (mut copied, mut next) = (OrphanFrames::default(), from);
        while next < end {
            let frames = source
                .next_batch(STEP_BYTES)
                .map_err(|source| OrphanError::Unreadable { stream, from, end, source })?;
            if frames.is_empty() {
                return Err(OrphanError::NotDurable { stream, durable: next, end });
            }
            for frame in frames {
                if next >= end {
                    break;
                }
                let damaged = |source| OrphanError::Frame { stream, offset: next, source };
                let bytes = bytes_until(frame, end).map_err(damaged)?;
                let (header, _) = FrameHeader::verify(&bytes).map_err(damaged)?;
                if (header.stream.get(), header.base_offset.get()) != (stream.get(), next) {
                    return Err(damaged(FormatError::Length));
                }
                into.write_all(&bytes).map_err(io_error("write", path))?;
                copied.add(&header);
                next = header.end_offset();
            }
        }
        Ok(copied)
    }

    /// A full file system is an error of its own, whichever call was told so.
    fn name_lack_of_space(&self, error: OrphanError) -> OrphanError {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        match error {
            OrphanError::Io { source, .. }
                if matches!(source.kind(), StorageFull | QuotaExceeded) =>
            {
                let directory = self.engine.directory();
                let free = ringwal_engine::environment::free_bytes(directory);
                let Range { start: from, end } = self.offsets;
                let (stream, folder) = (self.stream, self.folder());
                let free_bytes = free.unwrap_or(0);
                OrphanError::NoSpace { stream, from, end, folder, free_bytes, source }
            }
            other => other,
        }
    }
}

/// The frame; when it goes beyond `end`, a new one of its records before that.
fn bytes_until(frame: FrameSlice, end: u64) -> Result<Bytes, FormatError> {
    let base = frame.base_offset;
    let until = base.saturating_add(u64::from(frame.count));
    if until <= end {
        return Ok(frame.bytes);
    }
    let verified = VerifiedFrame::verify(&frame.bytes)?;
    let count = (end - base) as usize;
    let lengths = verified.records().take(count).map(|record| RECORD_PREFIX_BYTES + record.len());
    let payload = &verified.payload[..lengths.sum()];
    let header = FrameHeader::new(
        FrameKind::Data,
        frame.stream.get(),
        frame.epoch,
        base,
        count as u32,
        verified.header.timestamp_ns.get(),
        payload,
    );
    Ok([header.as_bytes(), payload].concat().into())
}

fn make_folder(folder: &Path) -> Result<(), OrphanError> {
    match DirBuilder::new().mode(FOLDER_MODE).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(io_error("create", folder)(error))
        }
        _ => Ok(()),
    }
}

fn sync_folder(folder: &Path) -> Result<(), OrphanError> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io_error("sync", folder))
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OrphanError + use<> {
    let path = path.to_owned();
    move |source| OrphanError::Io { what, path, source }
}
