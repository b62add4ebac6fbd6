//! `ringwal repair --from`: what is damaged is fetched again from another node.

use std::path::Path;

use anyhow::{Context as _, Result};
use ringwal_replication::config::Config;
use ringwal_replication::repair::{
    FetchError, Lacks, MarkerError, RepairFrom, RepairFromError, RepairedFrom, repair_from,
};

use super::repair::{backup_folder, failure};
use super::{RepairArgs, count, size, verify};
use crate::exit::{self, Exit, Failure};

/// Most of what another node lacks that is named.
const LACKS_MAX: usize = 8;

/// Runs the subcommand.
pub(super) fn run(args: &RepairArgs, from: &str, config: &Path) -> Result<Exit> {
    let reading = || format!("reading {}", config.display());
    let text = std::fs::read_to_string(config).with_context(reading)?;
    let parsed = Config::from_toml(&text);
    let config = parsed.map_err(|error| bad_config(config, &error.to_string()))?;
    let options = RepairFrom {
        config,
        from: from.to_owned(),
        dry_run: args.dry_run,
        accept_loss_from: args.accept_data_loss_from.clone(),
        backup: args.backup.clone().unwrap_or_else(|| backup_folder(&args.directory)),
        stop_after_frames: None,
    };
    let repaired = repair_from(&args.directory, &options).map_err(refused)?;
    exit::print_last(&describe(&repaired, args.dry_run))?;
    let now = repaired.after.as_ref().unwrap_or(&repaired.repair.before);
    Ok(if now.is_damaged() { Exit::Corrupt } else { Exit::Success })
}

fn describe(repaired: &RepairedFrom, dry_run: bool) -> String {
    let repair = &repaired.repair;
    let mut text = verify::findings(&repair.before);
    let Some(peer) = repaired.peer else {
        let done = if repair.backup.is_some() { "repaired" } else { "would repair" };
        for step in &repair.steps {
            text += &format!("{done}: {step}\n");
        }
        let now = repaired.after.as_ref().unwrap_or(&repair.before);
        let nothing = if repair.steps.is_empty() { "nothing to fetch\n" } else { "" };
        return text + nothing + &verify::verdict(now);
    };
    for (cut, loss) in &repair.cuts {
        let records = count(loss.records(), "record", "records");
        let (cuts, from) =
            if dry_run { ("would cut", "from there on") } else { ("cut", "from there") };
        text += &format!("{cuts} at {cut}: {records} {from}, to be fetched\n");
    }
    let fetched = if dry_run { "would fetch" } else { "fetched" };
    for brought in &repaired.brought {
        let offsets = &brought.offsets;
        let records = count(offsets.end - offsets.start, "record", "records");
        let bytes = match brought.bytes {
            0 => String::new(),
            bytes => format!(", {}", size(bytes)),
        };
        text += &format!(
            "{fetched} from node {peer}: stream {}, offsets {}..{}: {records}{bytes}\n",
            brought.stream, offsets.start, offsets.end
        );
    }
    for (stream, why) in &repaired.left {
        text += &format!("left to a leader: stream {stream}: {why}\n");
    }
    if let Some(promise) = &repaired.promise {
        text += &format!(
            "promised: no leader of an epoch below {}, the greatest that any member has seen, since \
             what was promised may be lost\n",
            promise.epoch
        );
    }
    if let Some(lacking) = &repaired.lacking {
        text += &format!("must follow a leader before it may lead: {lacking}\n");
    }
    if let Some(backup) = &repair.backup {
        text += &format!("copies of every changed file: {}\n", backup.display());
    }
    match &repaired.after {
        None => text + "nothing was changed\n",
        Some(after) => text + &verify::findings(after) + &verify::verdict(after),
    }
}

fn bad_config(file: &Path, problem: &str) -> Failure {
    Failure::usage(format!("{} is no configuration of a node", file.display())).cause(problem)
}

pub(super) fn refused(error: RepairFromError) -> anyhow::Error {
    let failure = match error {
        RepairFromError::Repair(error) => return failure(*error),
        RepairFromError::Open(error) => Failure::open(&error),
        RepairFromError::PeerLacks { node, lacks } => peer_lacks(node.get(), &lacks),
        RepairFromError::Config(error) => {
            Failure::usage("the configuration cannot be used").cause(error.to_string())
        }
        error => {
            let exit = match &error {
                RepairFromError::RepairFirst { .. }
                | RepairFromError::NoCut { .. }
                | RepairFromError::OwnStream { .. }
                | RepairFromError::Promises { .. }
                | RepairFromError::Marker(MarkerError::Damaged { .. }) => Exit::Corrupt,
                RepairFromError::Fetch(error) if matches!(**error, FetchError::Refused { .. }) => {
                    Exit::Usage
                }
                RepairFromError::Stranger { .. } => Exit::Usage,
                _ => Exit::Failure,
            };
            // Its last part is what to do.
            let text = error.to_string();
            let mut parts: Vec<_> = text.split("; ").collect();
            let fix = if parts.len() > 1 { parts.pop() } else { None };
            let mut failure = Failure::new(exit, parts.remove(0));
            for cause in parts {
                failure = failure.cause(cause);
            }
            match fix {
                Some(fix) => failure.fix(fix),
                None => failure,
            }
        }
    };
    failure.into()
}

fn peer_lacks(node: u64, lacks: &[Lacks]) -> Failure {
    let what = format!("node {node} does not have what this directory held; nothing was changed");
    let mut failure = Failure::new(Exit::Corrupt, what);
    for lack in lacks.iter().take(LACKS_MAX) {
        failure = failure.cause(format!("stream {}: {}", lack.stream, lack.why));
    }
    if let Some(more) = lacks.len().checked_sub(LACKS_MAX).filter(|more| *more > 0) {
        failure =
            failure.cause(format!("and {}", count(more as u64, "more stream", "more streams")));
    }
    failure.fix("--from another node").or("give it up with --accept-data-loss-from")
}
