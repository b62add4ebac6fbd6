//! The orphan files of a directory: records that were cut because another history of their stream
//! goes on without them, each suffix in a file of its own (I-12). They are no part of the journal:
//! no recovery looks at them, and nothing but an operator removes them.

use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::path::Path;

use crate::error::OpenError;
use crate::format::{
    EngineId, ORPHANS_FOLDER, OrphanFacts, OrphanFrames, OrphanName, VerifiedFrame,
};
use crate::recovery::Damage;
use crate::stream::{EpochStart, StreamId};

use super::VisitedRecord;
use super::orphan_file::{Depth, OrphanState, read_contents};
use super::site::{Hold, Site};

/// An orphan file.
#[derive(Clone, Debug)]
pub struct Orphan {
    /// The file, relative to the directory.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// What it is worth, as far as it was read.
    pub state: OrphanState,
    /// Whose records it holds, and why; `None` when its header is not to be believed.
    pub facts: Option<OrphanFacts>,
    /// The frames that were found.
    pub frames: OrphanFrames,
    /// Records of those frames that cannot be read.
    pub unreadable_records: u64,
    /// Epochs of the records that were found, with the first offset of each.
    pub epochs: Vec<EpochStart>,
    /// The first thing that is wrong with it.
    pub problem: Option<Damage>,
}

impl Orphan {
    /// Records that can be read, as far as was looked.
    pub fn records(&self) -> u64 {
        self.frames.records - self.unreadable_records
    }
}

/// The orphans of a directory, by stream and offset, as their headers and those of their frames
/// tell; the payloads are not looked at. An engine may be running in it.
///
/// # Errors
/// When it holds no engine, or a file cannot be read. Damage is no error.
pub fn orphans(directory: impl AsRef<Path>) -> Result<Vec<Orphan>, OpenError> {
    read_all(directory.as_ref(), Depth::Headers)
}

/// As [`orphans()`], with every byte read and every checksum checked.
///
/// # Errors
/// As [`orphans()`].
pub fn verify_orphans(directory: impl AsRef<Path>) -> Result<Vec<Orphan>, OpenError> {
    read_all(directory.as_ref(), Depth::Payloads)
}

/// Calls `each` for every record of an orphan that is as it was written, in the order of their
/// offsets; `file` is what [`Orphan::file`] says. Returns what is to be said of the file; when
/// `each` has stopped it, only of what was read until then.
///
/// # Errors
/// When it cannot be read. Damage is no error.
pub fn visit_orphan(
    directory: impl AsRef<Path>,
    file: &str,
    mut each: impl FnMut(VisitedRecord<'_>) -> ControlFlow<()>,
) -> Result<Orphan, OpenError> {
    let each = |frame: &VerifiedFrame<'_>| visit_frame(frame, &mut each);
    read(directory.as_ref(), file, Depth::Payloads, each)
}

/// The identity of the engine in a directory; an engine may be running in it.
///
/// # Errors
/// When it holds no engine, or nothing tells the identity any more.
pub fn engine_id(directory: impl AsRef<Path>) -> Result<EngineId, OpenError> {
    Ok(Site::open(directory.as_ref(), Hold::Not)?.header.engine_id)
}

fn read_all(directory: &Path, depth: Depth) -> Result<Vec<Orphan>, OpenError> {
    Site::check(directory)?;
    let mut orphans = Vec::new();
    for name in names(directory)? {
        let file = format!("{ORPHANS_FOLDER}/{}", name.file());
        match read(directory, &file, depth, |_| ControlFlow::Continue(())) {
            // Somebody has removed it meanwhile.
            Err(OpenError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            orphan => orphans.push(orphan?),
        }
    }
    Ok(orphans)
}

/// The finished orphan files, in order.
fn names(directory: &Path) -> Result<Vec<OrphanName>, OpenError> {
    let folder = directory.join(ORPHANS_FOLDER);
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(OpenError::io("list", &folder))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(OpenError::io("list", &folder))?;
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        let name = entry.file_name().to_str().and_then(OrphanName::parse);
        names.extend(name.filter(|_| is_file));
    }
    names.sort_unstable();
    Ok(names)
}

fn read(
    directory: &Path,
    file: &str,
    depth: Depth,
    each: impl FnMut(&VerifiedFrame<'_>) -> ControlFlow<()>,
) -> Result<Orphan, OpenError> {
    let path = directory.join(file);
    let opened = File::open(&path).map_err(OpenError::io("open", &path))?;
    let bytes = opened.metadata().map_err(OpenError::io("stat", &path))?.len();
    let contents =
        read_contents(opened, bytes, depth, each).map_err(OpenError::io("read", &path))?;
    let problem =
        contents.problem.map(|(bytes, what)| Damage { file: file.to_owned(), bytes, what });
    Ok(Orphan {
        file: file.to_owned(),
        bytes,
        state: contents.state,
        facts: contents.header.map(|header| header.facts()),
        frames: contents.frames,
        unreadable_records: contents.unreadable_records,
        epochs: contents.epochs,
        problem,
    })
}

fn visit_frame(
    frame: &VerifiedFrame<'_>,
    each: &mut impl FnMut(VisitedRecord<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let header = &frame.header;
    for (offset, payload) in (header.base_offset.get()..).zip(frame.records()) {
        each(VisitedRecord {
            stream: StreamId::new(header.stream.get()),
            epoch: header.epoch.get(),
            offset,
            payload,
        })?;
    }
    ControlFlow::Continue(())
}
