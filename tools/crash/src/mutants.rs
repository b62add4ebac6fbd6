//! Shows that the tests would notice: a build of the engine with known bugs in it, one switched on
//! at a time, until something catches it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use ringwal_engine::mutants::Mutant;
use serde_json::Value;

use crate::cli::Request;
use crate::report::Report;

/// Crash points after which a mutant has survived.
const CRASH_POINTS: u64 = 200_000;
/// Crash points that the same build must pass without a bug.
const CRASH_POINTS_WITHOUT: u64 = 20_000;
/// Seeds of a cluster after which a mutant has survived.
const SEEDS: u64 = 2000;
/// Seeds of a cluster with Raft after which a mutant has survived.
const SEEDS_RAFT: u64 = 1000;
/// Characters of the message that caught it.
const MESSAGE_CHARACTERS: usize = 150;

/// Builds the mutants and runs `sim` with each until it is caught.
///
/// # Errors
/// When there is no cargo or no source to build from, or the build fails.
pub fn run(request: Request, report: &mut Report) -> Result<()> {
    let program = build()?;
    let directory = tempfile::tempdir().context("making a temporary directory")?;
    let json = directory.path().join("report.json");
    let control = run_command(&program, "sim", None, request.seed, CRASH_POINTS_WITHOUT, &json)?;
    match &control.caught_by {
        None => report.pass(1),
        Some(message) => report.fail(format!("without a mutant, too: {message}")),
    }
    println!("mutant | caught by | after");
    println!("--- | --- | ---");
    println!("none | nothing | {}", control.seen());
    let budget = request.count.unwrap_or(CRASH_POINTS);
    for mutant in Mutant::ALL {
        let name = mutant.name();
        let outcome = match (mutant.is_of_raft(), mutant.is_of_replication()) {
            (true, _) => {
                run_command(&program, "raft", Some(name), request.seed, SEEDS_RAFT, &json)?
            }
            (_, true) => run_command(&program, "cluster", Some(name), request.seed, SEEDS, &json)?,
            _ => run_command(&program, "sim", Some(name), request.seed, budget, &json)?,
        };
        let seen = outcome.seen();
        report.cover(&format!("{name}: seeds until it was caught"), outcome.seeds);
        match outcome.caught_by {
            Some(message) => {
                println!("{name} | {message} | {seen}");
                report.pass(1);
            }
            None => {
                println!("{name} | NOTHING | {seen}");
                report.fail(format!("{name} survived {seen}"));
            }
        }
    }
    Ok(())
}

/// How a mutant fared.
struct Outcome {
    caught_by: Option<String>,
    /// Power cuts and kills.
    crash_points: u64,
    seeds: u64,
}

impl Outcome {
    /// After how much.
    fn seen(&self) -> String {
        format!("{} crash points, {} seeds", self.crash_points, self.seeds)
    }
}

/// Builds this program once more, with the mutants, beside the build that runs; unless that has them.
fn build() -> Result<PathBuf> {
    if cfg!(ringwal_mutants) {
        return env::current_exe().context("looking for this program");
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    if !workspace.join("Cargo.toml").exists() {
        bail!("{} is gone: mutants are built from the source", workspace.display());
    }
    let target = target_directory()?.join("mutants");
    println!("building the mutants in {}", target.display());
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--release", "--locked", "--quiet", "-p", "ringwal-crash"])
        .current_dir(&workspace)
        .env("RUSTFLAGS", "--cfg ringwal_mutants")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("CARGO_TARGET_DIR", &target)
        .status()
        .context("starting cargo")?;
    if !status.success() {
        bail!("the mutants were not built: cargo ended with {status}");
    }
    Ok(target.join("release").join("ringwal-crash"))
}

/// Where this program was built.
fn target_directory() -> Result<PathBuf> {
    if let Some(target) = env::var_os("CARGO_TARGET_DIR") {
        return Ok(target.into());
    }
    let program = env::current_exe().context("looking for this program")?;
    // target/release/ringwal-crash
    let target = program.ancestors().nth(2).context("this program is not in a target directory")?;
    Ok(target.to_owned())
}

fn run_command(
    program: &Path,
    what: &str,
    mutant: Option<&str>,
    seed: u64,
    count: u64,
    json: &Path,
) -> Result<Outcome> {
    let mut command = Command::new(program);
    command.args([what, "--seed", &seed.to_string(), "--count", &count.to_string(), "--json"]);
    command.arg(json).stdout(Stdio::null()).stderr(Stdio::null());
    if let Some(mutant) = mutant {
        command.args(["--mutant", mutant]);
    }
    let _ = fs::remove_file(json);
    let status = command.status().with_context(|| format!("starting {}", program.display()))?;
    let text = fs::read_to_string(json).with_context(|| {
        format!("{what} with {} ended with {status} and no report", mutant.unwrap_or("no mutant"))
    })?;
    let report: Value =
        serde_json::from_str(&text).with_context(|| format!("reading the report of {what}"))?;
    let covered = |what: &str| report["covered"][what].as_u64().unwrap_or(0);
    let failure = report["failures"][0].as_str();
    Ok(Outcome {
        caught_by: failure.map(|text| {
            let line = text.lines().next().unwrap_or_default();
            line.chars().take(MESSAGE_CHARACTERS).collect::<String>().replace('|', "/")
        }),
        crash_points: covered("crash points") + covered("power cuts") + covered("kills"),
        seeds: covered("seeds"),
    })
}
