//! `ringwal repair`: mends what another copy or the batches tell, and gives up only what it was
//! told to.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Result;
use ringwal_engine::offline::{self, Repair, RepairError, RepairOptions};
use ringwal_replication::repair::mark_given_up;

use super::{RepairArgs, repair_from, verify};
use crate::exit::{self, Exit, Failure};

/// Runs the subcommand.
pub fn run(args: &RepairArgs) -> Result<Exit> {
    if let (Some(from), Some(config)) = (&args.from, &args.config) {
        return repair_from::run(args, from, config);
    }
    let options = RepairOptions {
        dry_run: args.dry_run,
        accept_loss_from: args.accept_data_loss_from.clone(),
        backup: args.backup.clone().unwrap_or_else(|| backup_folder(&args.directory)),
    };
    let is_marked = mark(&args.directory, &options)?;
    let repair = offline::repair(&args.directory, &options).map_err(failure)?;
    let mut text = describe(&repair, args.dry_run);
    if is_marked {
        text += "marked: as a node of a cluster it must follow a leader before it may lead\n";
    }
    exit::print_last(&text)?;
    let now = repair.after.as_ref().unwrap_or(&repair.before);
    Ok(if now.is_damaged() { Exit::Corrupt } else { Exit::Success })
}

/// A node that is about to lose records must not lead before it has followed: said durably, before
/// anything is given up.
fn mark(directory: &Path, options: &RepairOptions) -> Result<bool> {
    if options.dry_run || options.accept_loss_from.is_empty() {
        return Ok(false);
    }
    let dry = RepairOptions { dry_run: true, ..options.clone() };
    let would = offline::repair(directory, &dry).map_err(failure)?;
    mark_given_up(directory, &would).map_err(repair_from::refused)
}

fn describe(repair: &Repair, dry_run: bool) -> String {
    let mut text = verify::findings(&repair.before);
    if !repair.before.is_damaged() {
        return text + "nothing to repair\n";
    }
    let (would, will) = if dry_run { ("would repair", "would lose") } else { ("repaired", "lost") };
    for step in &repair.steps {
        text += &format!("{would}: {step}\n");
    }
    for (cut, loss) in &repair.cuts {
        let records = super::count(loss.records(), "record", "records");
        let more = if loss.lost_untold { ", and what nothing tells of any more" } else { "" };
        text += &format!("cut at {cut}: {will} {records}{more}\n");
        for lost in &loss.lost {
            text += &format!("  {will}: {lost}\n");
        }
        for returned in &loss.returned {
            text += &format!("  comes back, since the epoch that cut it is lost: {returned}\n");
        }
    }
    if let Some(backup) = &repair.backup {
        text += &format!("copies of every changed file: {}\n", backup.display());
    }
    let now = match &repair.after {
        Some(after) => after,
        None => {
            let remains = repair.before.is_corrupt() && repair.cuts.is_empty();
            if !remains {
                return text + "nothing was changed\n";
            }
            &repair.before
        }
    };
    if repair.after.is_some() {
        text += &verify::findings(now);
    }
    text += &verify::verdict(now);
    for fix in verify::fixes(now) {
        text += &format!("fix: {fix}\n");
    }
    text
}

/// DIR/backup-TIME, with characters that every shell takes.
pub(super) fn backup_folder(directory: &Path) -> PathBuf {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let folder = directory.join(format!("backup-{}", now.replace(':', "-")));
    let mut free = folder.clone();
    for number in 2.. {
        if !free.exists() {
            break;
        }
        free = PathBuf::from(format!("{}-{number}", folder.display()));
    }
    free
}

pub(super) fn failure(error: RepairError) -> anyhow::Error {
    let failure = match &error {
        RepairError::Open(error) => Failure::open(error),
        RepairError::Position { cut, why, advice } => {
            Failure::usage(format!("the journal cannot be cut at {cut}"))
                .cause(*why)
                .fix(advice.as_str())
        }
        RepairError::NoSpace { backup, needed, free } => {
            Failure::new(Exit::Failure, "the copies of what would change do not fit")
                .cause(format!("{needed} bytes in {}, where {free} are free", backup.display()))
                .fix("--backup FOLDER on another file system")
        }
        other => return anyhow::Error::new(error_text(other)),
    };
    failure.into()
}

/// An error of the file system, in the words of the engine.
fn error_text(error: &RepairError) -> std::io::Error {
    std::io::Error::other(error.to_string())
}
