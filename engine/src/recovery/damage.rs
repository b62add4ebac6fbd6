//! What is said of a directory in which something acknowledged is not as it was written.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use crate::stream::StreamId;

/// Something acknowledged that is not there as it was written.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Damage {
    /// Segment file.
    pub file: String,
    /// Byte range in it; empty when the whole file is meant.
    pub bytes: Range<u64>,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.bytes.is_empty() {
            write!(f, "{}: {}", self.file, self.what)
        } else {
            write!(
                f,
                "{} at byte {} (to {}): {}",
                self.file, self.bytes.start, self.bytes.end, self.what
            )
        }
    }
}

/// A directory with damage. Nothing in it was changed.
#[derive(Clone, Debug)]
pub struct Corruption {
    /// Which shard's folder.
    pub directory: PathBuf,
    /// What was found.
    pub damages: Vec<Damage>,
    /// Records that are not there though they should be.
    pub missing: Vec<(StreamId, Range<u64>)>,
}

impl fmt::Display for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} holds damaged data: ", self.directory.display())?;
        for (index, damage) in self.damages.iter().enumerate() {
            write!(f, "{}{damage}", if index == 0 { "" } else { "; " })?;
        }
        for (stream, range) in self.missing.iter().take(8) {
            write!(f, "; stream {stream} lacks offsets {}..{}", range.start, range.end)?;
        }
        write!(
            f,
            ". Nothing was changed. The rest can be read (read_only), `ringwal verify` shows all \
             of it, and `ringwal repair` says what can be done"
        )
    }
}
