//! `ringwal verify`: whether every byte is what was written.

use anyhow::Result;
use ringwal_engine::offline::{self, Finding, Orphan, Severity, Verification};
use serde_json::{Value, json};

use super::{VerifyArgs, count, orphans, print_json, range_json, size};
use crate::exit::{self, Exit, Failure};

/// Runs the subcommand.
pub fn run(args: &VerifyArgs) -> Result<Exit> {
    let verification = offline::verify(&args.directory).map_err(|error| Failure::open(&error))?;
    let kept = offline::verify_orphans(&args.directory).map_err(|error| Failure::open(&error))?;
    let is_damaged = verification.is_damaged() || orphans::any_damaged(&kept);
    if args.json {
        let mut value = json(&verification);
        value["damaged"] = is_damaged.into();
        value["orphans"] = kept.iter().map(orphans::json).collect();
        print_json(&value)?;
    } else {
        exit::print_last(&text(&verification, &kept))?;
    }
    Ok(if is_damaged { Exit::Corrupt } else { Exit::Success })
}

fn text(verification: &Verification, kept: &[Orphan]) -> String {
    let mut text = findings(verification) + &orphans::findings(kept);
    text += &totals(verification);
    text += &orphans::totals(&verification.directory, kept);
    if orphans::any_damaged(kept) {
        // Two verdicts, which may differ.
        text += "the journal is ";
    }
    text += &verdict(verification);
    for fix in fixes(verification) {
        text += &format!("fix: {fix}\n");
    }
    if orphans::any_damaged(kept) {
        text += "damaged: orphans, which are no part of the journal: it opens as ever\n";
        let directory = verification.directory.display();
        text +=
            &format!("fix: ringwal dump {directory} --orphans prints what can be read of them\n");
    }
    text
}

/// The findings, a few lines each.
pub fn findings(verification: &Verification) -> String {
    let mut text = String::new();
    for finding in &verification.findings {
        text += &format!("{finding}\n");
        for lost in &finding.lost {
            text += &format!("  unreadable: {lost}\n");
        }
        if let Some(remedy) = finding.remedy() {
            text += &format!("  repair without loss: {remedy}\n");
        }
    }
    text
}

fn totals(verification: &Verification) -> String {
    let totals = &verification.totals;
    format!(
        "{}: {}, {}, {}, {}, {} read and checked\n",
        verification.directory.display(),
        count(u64::from(verification.shards), "shard", "shards"),
        count(totals.segments, "segment", "segments"),
        count(totals.batches, "batch", "batches"),
        count(totals.records, "record", "records"),
        size(totals.bytes),
    )
}

/// One sentence.
pub fn verdict(verification: &Verification) -> String {
    let number = |severity| {
        verification.findings.iter().filter(|finding| finding.severity == severity).count() as u64
    };
    let (torn, repairable, corrupt) =
        (number(Severity::Torn), number(Severity::Repairable), number(Severity::Corrupt));
    match (torn, repairable, corrupt) {
        (0, 0, 0) => "fine: every byte is as it was written\n".to_owned(),
        (torn, 0, 0) => format!(
            "fine: {} of a crash, and nothing acknowledged is missing\n",
            count(torn, "torn tail", "torn tails")
        ),
        (_, repairable, 0) => format!(
            "damaged: {}, nothing is lost\n",
            count(repairable, "repairable place", "repairable places")
        ),
        (_, _, corrupt) => format!(
            "damaged: {} in acknowledged data\n",
            count(corrupt, "corrupt place", "corrupt places")
        ),
    }
}

/// What can be done.
pub fn fixes(verification: &Verification) -> Vec<String> {
    let directory = verification.directory.display();
    if !verification.is_damaged() {
        return Vec::new();
    }
    if !verification.is_corrupt() {
        return vec![format!("ringwal repair {directory}")];
    }
    let mut fixes = vec![
        format!("ringwal repair {directory} --from HOST:PORT --config FILE  (a running replica)"),
        "restore the directory from a replica or a backup".to_owned(),
    ];
    if !verification.cuts.is_empty() {
        let cuts: Vec<_> =
            verification.cuts.iter().map(|cut| format!("--accept-data-loss-from {cut}")).collect();
        let cuts = cuts.join(" ");
        fixes.push(format!("ringwal repair {directory} --dry-run {cuts}  (says what is lost)"));
    }
    fixes
}

/// Everything, for programs.
pub fn json(verification: &Verification) -> Value {
    let totals = &verification.totals;
    json!({
        "schema": "ringwal.verify/1",
        "directory": verification.directory,
        "damaged": verification.is_damaged(),
        "corrupt": verification.is_corrupt(),
        "totals": {
            "shards": verification.shards,
            "segments": totals.segments,
            "batches": totals.batches,
            "records": totals.records,
            "payload_bytes": totals.payload_bytes,
            "bytes": totals.bytes,
        },
        "findings": verification.findings.iter().map(finding_json).collect::<Vec<_>>(),
        "cuts": verification.cuts.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

fn finding_json(finding: &Finding) -> Value {
    json!({
        "severity": finding.severity.word(),
        "shard": finding.shard,
        "file": finding.file,
        "from": finding.bytes.start,
        "until": finding.bytes.end,
        "what": finding.what,
        "unreadable": finding.lost.iter().map(range_json).collect::<Vec<_>>(),
        "more_lost": finding.lost_untold,
        "remedy": finding.remedy(),
    })
}
