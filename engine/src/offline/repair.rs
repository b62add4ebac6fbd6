//! Mending a directory: without loss where another copy or the batches tell what was there, and
//! with a loss that somebody has accepted in so many words. Every file that changes is copied
//! first.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::config::{Io, Options};
use crate::directory::{Directory, make_folder, sync_directory};
use crate::error::{CloseError, OpenError};
use crate::format::JournalEnd;
use crate::own_loop::Shard;
use crate::recovery::WalkedContents;

use super::Cut;
use super::loss::{Loss, loss, resolve};
use super::remedy::{Remedy, sync_parent};
use super::shard_check::{Examined, examine};
use super::site::{Hold, Site};
use super::verify::{Severity, Verification, verify_site};

/// What a repair may do.
#[derive(Clone, Debug)]
pub struct RepairOptions {
    /// Only say what would be done.
    pub dry_run: bool,
    /// Give up everything of these shards from these places on; one place for each shard. Only
    /// places that [`super::verify()`] names, or earlier ones, are taken.
    pub accept_loss_from: Vec<Cut>,
    /// Folder for copies of every file that changes. It must not exist yet.
    pub backup: PathBuf,
}

/// What a repair did, or would do.
#[derive(Clone, Debug)]
pub struct Repair {
    /// The directory before.
    pub before: Verification,
    /// What was (or would be) done without loss.
    pub steps: Vec<String>,
    /// What was (or would be) given up.
    pub cuts: Vec<(Cut, Loss)>,
    /// Where the copies are; `None` when nothing was changed.
    pub backup: Option<PathBuf>,
    /// The directory afterwards; `None` when nothing was changed.
    pub after: Option<Verification>,
}

/// Why a repair stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepairError {
    /// The directory cannot be looked into.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The place to cut at cannot be taken. Nothing was changed.
    #[error("the journal cannot be cut at {cut}: {why}; {advice}")]
    Position {
        /// What was asked for.
        cut: Cut,
        /// Why not.
        why: &'static str,
        /// What to do.
        advice: String,
    },
    /// The copies do not fit. Nothing was changed.
    #[error(
        "copying what would change needs {needed} bytes in {}, where {free} are free; name a \
         backup folder on another file system", backup.display()
    )]
    NoSpace {
        /// Folder for the copies.
        backup: PathBuf,
        /// What they need.
        needed: u64,
        /// What there is.
        free: u64,
    },
    /// The file system said no. What was changed until then is in the backup.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which path.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// Ending the journal at the cut failed.
    #[error("cutting the journal of shard {shard}: {source}")]
    Close {
        /// Which shard.
        shard: u16,
        /// What it said.
        source: CloseError,
    },
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RepairError + use<> {
    let path = path.to_owned();
    move |source| RepairError::Io { what, path, source }
}

/// Repairs a directory that no engine has open, as far as `options` allow. What no copy tells and
/// nobody gave up stays damaged: see [`Repair::after`].
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir()?;
/// # let data = directory.path().join("data");
/// use ringwal_engine::{Engine, offline};
/// use std::os::unix::fs::FileExt;
///
/// Engine::options().open(&data)?.close()?;
/// let file = std::fs::OpenOptions::new().write(true).open(data.join("engine"))?;
/// file.write_all_at(b"rot", 100)?; // the checksum does not cover this
/// file.write_all_at(b"rot", 20)?;
/// let backup = data.join("backup");
/// let options =
///     offline::RepairOptions { dry_run: false, accept_loss_from: Vec::new(), backup };
/// let repair = offline::repair(&data, &options)?;
/// assert!(repair.before.is_damaged());
/// assert!(!repair.after.expect("something was changed").is_damaged());
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// See [`RepairError`].
pub fn repair(directory: impl AsRef<Path>, options: &RepairOptions) -> Result<Repair, RepairError> {
    let hold = if options.dry_run { Hold::Shared } else { Hold::Exclusive };
    let site = Site::open(directory.as_ref(), hold)?;
    let before = verify_site(&site)?;
    let is_given_up = |shard| options.accept_loss_from.iter().any(|cut| Some(cut.shard) == shard);
    let mut remedies: Vec<_> = before
        .findings
        .iter()
        .filter(|finding| !finding.is_loss() || is_given_up(finding.shard))
        .filter_map(|finding| finding.remedy.clone())
        .collect();
    remedies.sort_by_key(Remedy::renames);
    let mut repair = Repair {
        steps: remedies.iter().map(Remedy::describe).collect(),
        cuts: Vec::new(),
        backup: None,
        after: None,
        before,
    };
    let mut changes: Vec<_> = remedies.iter().map(|remedy| remedy.file().to_owned()).collect();
    for cut in &options.accept_loss_from {
        if site.shards().contains(&cut.shard) && site.directory.lost_shard(cut.shard).is_some() {
            check_whole(*cut)?;
            changes.push(Site::shard_name(cut.shard).into());
            repair.cuts.push((*cut, Loss { lost_untold: true, ..Loss::default() }));
            continue;
        }
        let planned = plan_cut(&site, *cut, &repair.before)?;
        changes.extend(changed_by_cut(&site, &planned));
        repair.cuts.push((*cut, planned.loss));
    }
    if options.dry_run || changes.is_empty() {
        return Ok(repair);
    }
    changes.sort();
    changes.dedup();
    back_up(&site, &changes, &options.backup)?;
    repair.backup = Some(options.backup.clone());
    for remedy in &remedies {
        let path = site.directory.path.join(remedy.file());
        remedy.apply(&site.directory.path, &options.backup).map_err(failed("repair", &path))?;
    }
    for cut in &options.accept_loss_from {
        let site = site.again()?;
        if site.directory.lost_shard(cut.shard).is_some() {
            make_folder(&site.directory.shard_path(cut.shard))?;
            sync_directory(&site.directory.path)?;
            continue;
        }
        let planned = plan_cut(&site, *cut, &repair.before)?;
        apply_cut(&site, planned)?;
    }
    repair.after = Some(verify_site(&site.again()?)?);
    Ok(repair)
}

struct PlannedCut {
    shard: u16,
    end: JournalEnd,
    loss: Loss,
    examined: Examined,
}

/// Of a shard that is not there, only all can be given up.
fn check_whole(cut: Cut) -> Result<(), RepairError> {
    let whole = Cut::whole(cut.shard);
    let (why, advice) = ("nothing of this shard is there", format!("take {whole}"));
    if cut == whole { Ok(()) } else { Err(RepairError::Position { cut, why, advice }) }
}

/// Checks that a cut is needed and that what it leaves is whole.
fn plan_cut(site: &Site, cut: Cut, found: &Verification) -> Result<PlannedCut, RepairError> {
    let refuse = |why, advice: String| RepairError::Position { cut, why, advice };
    let named = found.cuts.iter().find(|named| named.shard == cut.shard);
    let is_corrupt = found
        .findings
        .iter()
        .any(|finding| finding.severity == Severity::Corrupt && finding.shard == Some(cut.shard));
    if !site.shards().contains(&cut.shard) {
        return Err(refuse("there is no such shard", "take the place that verify prints".into()));
    }
    let examined = examine(site, cut.shard)?;
    if !is_corrupt {
        let advice = "leave the option out".into();
        return Err(refuse("no acknowledged data of this shard is damaged", advice));
    }
    let Some(named) = named else {
        let advice = "restore the directory from a replica or a backup".into();
        return Err(refuse("no cut would leave this shard whole", advice));
    };
    let advice = || format!("take {named}, or an earlier place");
    let end = resolve(site, &examined, cut)?
        .ok_or_else(|| refuse("no segment of this number holds batches that count", advice()))?;
    let last = resolve(site, &examined, *named)?.unwrap_or_default();
    if (end.generation, end.offset) > (last.generation, last.offset) {
        return Err(refuse("the damage begins before it", advice()));
    }
    let mut loss = loss(site, cut.shard, &examined, end)?
        .ok_or_else(|| refuse("what lies before it is not whole", advice()))?;
    loss.lost_untold = found
        .findings
        .iter()
        .any(|finding| finding.lost_untold && finding.shard == Some(cut.shard));
    Ok(PlannedCut { shard: cut.shard, end, loss, examined })
}

/// Files that opening at a cut may write to: all but sealed segments before it.
fn changed_by_cut(site: &Site, cut: &PlannedCut) -> Vec<PathBuf> {
    let untouched: Vec<_> = cut
        .examined
        .survey
        .recovered
        .live
        .iter()
        .filter(|segment| matches!(segment.contents, WalkedContents::Sealed(..)))
        .filter(|segment| segment.found.generation() < cut.end.generation)
        .map(|segment| segment.found.name.clone())
        .collect();
    let folder = site.directory.shard_path(cut.shard);
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !untouched.contains(name))
        .map(|name| PathBuf::from(Site::shard_name(cut.shard)).join(name))
        .collect()
}

/// Copies files, durably.
fn back_up(site: &Site, files: &[PathBuf], backup: &Path) -> Result<(), RepairError> {
    let directory = &site.directory.path;
    let length = |file: &PathBuf| fs::metadata(directory.join(file)).map_or(0, |file| file.len());
    let needed: u64 = files.iter().map(length).sum();
    fs::create_dir(backup).map_err(failed("create", backup))?;
    let free = crate::environment::free_bytes(backup).map_err(failed("statfs", backup))?;
    if needed > free {
        let _ = fs::remove_dir(backup);
        return Err(RepairError::NoSpace { backup: backup.to_owned(), needed, free });
    }
    for file in files {
        let (from, to) = (directory.join(file), backup.join(file));
        if !from.is_file() {
            continue;
        }
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder).map_err(failed("create", folder))?;
        }
        fs::copy(&from, &to)
            .and_then(|_| File::open(&to)?.sync_all())
            .and_then(|()| sync_parent(&to))
            .map_err(failed("copy", &from))?;
    }
    let synced = File::open(backup).and_then(|folder| folder.sync_all());
    synced.and_then(|()| sync_parent(backup)).map_err(failed("sync", backup))
}

/// Opens the shard at the cut and closes it, which makes that its end.
fn apply_cut(site: &Site, cut: PlannedCut) -> Result<(), RepairError> {
    let PlannedCut { shard, end, loss, .. } = cut;
    let options = Options::new().io(Io::Blocking).accept_loss_from(shard, end);
    let held = &site.directory;
    let directory = Directory::held(&held.path, held.lock(), &site.header);
    let mut opened = Shard::open_in(directory, shard, &options)?;
    let trims: Vec<_> =
        loss.trims.iter().map(|(stream, before)| opened.trim(*stream, *before)).collect();
    opened.close().map_err(|source| RepairError::Close { shard, source })?;
    for trim in trims {
        let refused = |cause: String| failed("trim", &site.directory.path)(io::Error::other(cause));
        let change = trim.map_err(|error| refused(error.to_string()))?;
        change.wait().map_err(|error| refused(error.to_string()))?;
    }
    Ok(())
}
