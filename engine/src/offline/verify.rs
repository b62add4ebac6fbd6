//! Whether every byte of a directory is what was written.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::directory::ENGINE_FILE;
use crate::disk::BLOCK_BYTES;
use crate::error::OpenError;

use super::remedy::Remedy;
use super::shard_check::check_shard;
use super::site::{Hold, Site};
use super::{Cut, StreamRange};

/// How bad a finding is.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Debug)]
pub enum Severity {
    /// What a crash leaves: nothing acknowledged can have been there. No damage.
    Torn,
    /// Damaged, but nothing is lost: another copy, or the batches, tell the same, or nothing that
    /// counts is in it. The last has no remedy: it is gone when its segment is used again.
    Repairable,
    /// Acknowledged data is not as it was written.
    Corrupt,
}

impl Severity {
    /// In one word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Torn => "torn",
            Self::Repairable => "repairable",
            Self::Corrupt => "corrupt",
        }
    }
}

/// Something that is not as a clean close leaves it.
#[derive(Clone, Debug)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The shard; `None` for the file that names the engine.
    pub shard: Option<u16>,
    /// File, relative to the directory.
    pub file: PathBuf,
    /// Byte range in it; empty when the whole file is meant.
    pub bytes: Range<u64>,
    /// What is wrong.
    pub what: String,
    /// Records that cannot be read because of it, as far as they can be told.
    pub lost: Vec<StreamRange>,
    /// More records may be lost than `lost` says: nothing tells of them.
    pub lost_untold: bool,
    pub(super) remedy: Option<Remedy>,
}

impl Finding {
    /// What [`super::repair()`] would do about it without losing anything.
    pub fn remedy(&self) -> Option<String> {
        self.remedy.as_ref().filter(|_| !self.is_loss()).map(Remedy::describe)
    }

    /// Whether its remedy only makes room again for what is lost.
    pub(super) fn is_loss(&self) -> bool {
        self.severity == Severity::Corrupt
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.severity.word(), self.file.display())?;
        if !self.bytes.is_empty() {
            write!(f, ", bytes {}..{}", self.bytes.start, self.bytes.end)?;
        }
        write!(f, ": {}", self.what)
    }
}

/// What was read and found right or wrong.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub struct Totals {
    /// Segments that hold batches that count.
    pub segments: u64,
    /// Batches in them that are as they were written.
    pub batches: u64,
    /// Records in those, also trimmed and moved ones.
    pub records: u64,
    /// Payload bytes of those records.
    pub payload_bytes: u64,
    /// Bytes of those batches on disk.
    pub bytes: u64,
}

/// What [`verify()`] found.
#[derive(Clone, Debug)]
pub struct Verification {
    /// Which directory.
    pub directory: PathBuf,
    /// Shards that it has.
    pub shards: u16,
    /// Everything that is not as a clean close leaves it.
    pub findings: Vec<Finding>,
    /// What was read.
    pub totals: Totals,
    /// For each shard with acknowledged data damaged: where its journal could be cut, so that
    /// everything before stays.
    pub cuts: Vec<Cut>,
}

impl Verification {
    /// Whether anything is damaged; torn tails are not.
    pub fn is_damaged(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity > Severity::Torn)
    }

    /// Whether anything acknowledged is damaged.
    pub fn is_corrupt(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity == Severity::Corrupt)
    }
}

/// Reads every live segment in full and checks every checksum, the chain of batches, footers and
/// indexes against the batches, and that no stream has a hole. Waits up to two seconds for an
/// engine that was just killed to let go of the directory.
///
/// # Errors
/// When the directory is in use, holds no engine, was written by a newer version, or cannot be
/// read. Damage is no error: it is among the findings.
pub fn verify(directory: impl AsRef<Path>) -> Result<Verification, OpenError> {
    verify_site(&Site::open(directory.as_ref(), Hold::Shared)?)
}

/// As [`verify()`], of a directory that is held already.
pub(super) fn verify_site(site: &Site) -> Result<Verification, OpenError> {
    let mut verification = Verification {
        directory: site.directory.path.clone(),
        shards: site.directory.shards,
        findings: check_engine_file(site),
        totals: Totals::default(),
        cuts: Vec::new(),
    };
    for shard in site.shards() {
        check_shard(site, shard, &mut verification)?;
    }
    Ok(verification)
}

fn check_engine_file(site: &Site) -> Vec<Finding> {
    let mut block = vec![0; BLOCK_BYTES];
    site.header.write(&mut block);
    let finding = |copy: usize, problem: &crate::format::FormatError| {
        let offset = (copy * BLOCK_BYTES) as u64;
        let other_is_valid = site.copies[1 - copy].is_none();
        let told = if other_is_valid { "the other copy tells it" } else { "the segments tell it" };
        Finding {
            severity: Severity::Repairable,
            shard: None,
            file: ENGINE_FILE.into(),
            bytes: offset..offset + BLOCK_BYTES as u64,
            what: format!(
                "copy {} of the engine's identity is damaged ({problem}); {told}",
                copy + 1
            ),
            lost: Vec::new(),
            lost_untold: false,
            remedy: Some(Remedy::Write {
                file: ENGINE_FILE.into(),
                writes: vec![(offset, block.clone())],
                what: "write the damaged copy of the engine's identity again",
            }),
        }
    };
    let problems = site.copies.iter().enumerate();
    problems.filter_map(|(copy, problem)| Some(finding(copy, problem.as_ref()?))).collect()
}
