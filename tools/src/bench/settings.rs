//! What was asked for, checked once: from flags to a plan.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ringwal_engine::{Engine, Options, SyncMode};

use crate::cli::{self, AckName, BenchArgs, Io, RunName, Sync};
use crate::exit::Failure;
use crate::report::slo::Objective;

/// Length of one slice of the probe, both methods together.
pub const PROBE_SLICE: Duration = Duration::from_millis(200);
/// How long the sequential writer writes each time.
pub const SEQUENTIAL_TIME: Duration = Duration::from_millis(250);
/// The runs without `--only`.
const DEFAULT_RUNS: [RunName; 4] = [RunName::Idle, RunName::Loaded, RunName::Open, RunName::Window];
/// The runs with followers, without `--only`.
const REPLICATED_RUNS: [RunName; 2] = [RunName::Idle, RunName::Loaded];
/// Runs about replication that start nodes of their own.
const WITH_OWN_NODES: [RunName; 6] = [
    RunName::Sender,
    RunName::ReplicatedHalf,
    RunName::ReplicatedLagging,
    RunName::CatchUp,
    RunName::Replicated,
    RunName::Raft,
];
/// Of every part but the first: clients have to start again.
const RAMP: Duration = Duration::from_millis(60);

/// The measurement that was asked for.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Time measured in each run.
    pub duration: Duration,
    /// Time before it that does not count.
    pub warmup: Duration,
    /// Clients of the loaded run.
    pub clients: usize,
    /// Rate of the open loop.
    pub rate: Option<f64>,
    /// What a follower lacks that is behind.
    pub behind_bytes: u64,
    /// Nodes of the metadata store.
    pub nodes: u64,
    /// Walk the rates.
    pub sweep: bool,
    /// Appends in flight in the window runs.
    pub window: usize,
    /// Payload of a record.
    pub record_bytes: usize,
    /// Shards of the engine.
    pub shards: u16,
    /// The engine's I/O; the first one gives the runs their plain names.
    pub io: Vec<Io>,
    /// How batches are made durable.
    pub sync: Option<Sync>,
    /// Batches in flight.
    pub flush_slots: Option<u16>,
    /// How long a batch waits for more.
    pub linger: Option<Duration>,
    /// What to run, in the order of running.
    pub runs: Vec<RunName>,
    /// Seed of the records' bytes.
    pub seed: u64,
    /// The directory to measure in, which is kept.
    pub directory: Option<PathBuf>,
    /// Keep the data directory in any case.
    pub keep: bool,
    /// File for receipts.
    pub receipts: Option<PathBuf>,
    /// Folder of the report.
    pub out: Option<PathBuf>,
    /// A further copy of report.json; "-" is standard output.
    pub json: Option<PathBuf>,
    /// Service level objectives.
    pub objectives: Vec<Objective>,
    /// The followers, where there are any.
    pub replication: Option<Replication>,
    /// Records are dropped as the measurement goes on.
    pub trims: bool,
}

/// The replication that was asked for.
#[derive(Debug, Clone)]
pub struct Replication {
    /// Who follows.
    pub followers: Followers,
    /// What appends wait for, in this order.
    pub acks: Vec<AckName>,
    /// The epoch to lead in; without one, from the clock.
    pub epoch: Option<u64>,
}

/// Who follows.
#[derive(Debug, Clone)]
pub enum Followers {
    /// So many nodes in this process.
    InProcess(usize),
    /// The other members of this configuration, as processes of their own.
    Members(PathBuf),
}

impl Settings {
    /// Checks what the flags say together.
    pub fn new(args: BenchArgs) -> Result<Settings, Failure> {
        let replication = replication(&args)?;
        let mut runs = match (args.only.is_empty(), &replication) {
            (true, None) => DEFAULT_RUNS.to_vec(),
            (true, Some(_)) => REPLICATED_RUNS.to_vec(),
            (false, _) => args.only,
        };
        runs.sort_unstable();
        runs.dedup();
        if args.receipts.is_some() {
            refuse_receipts_of(&runs)?;
        }
        let rated = [RunName::Open, RunName::ReplicatedHalf, RunName::ReplicatedLagging];
        let has_rate = runs.iter().any(|run| rated.contains(run));
        let has_open = runs.contains(&RunName::Open);
        if args.sweep && !has_open || args.rate.is_some() && !has_rate {
            let flag = if args.sweep { "--sweep" } else { "--rate" };
            return Err(Failure::usage(format!(
                "{flag} is about the open loop, which is left out"
            ))
            .fix("add open to --only"));
        }
        let mut io = Vec::new();
        for one in args.io {
            if !io.contains(&one) {
                io.push(one);
            }
        }
        if io.len() > 1 && args.receipts.is_some() {
            return Err(Failure::usage(
                "--receipts needs one --io: both would write their own data",
            )
            .fix("name one of uring and blocking"));
        }
        if replication.is_some() {
            refuse_what_is_not_replicated(&runs, &io)?;
        }
        if io.len() > 1
            && let Some(run) = runs.iter().find(|run| WITH_OWN_NODES.contains(run))
        {
            return Err(Failure::usage(format!("{} has one kind of I/O", cli::name_of(run)))
                .fix("name one of uring and blocking"));
        }
        let has_receipts = args.receipts.is_some();
        let objectives = args.slo.map(|objectives| objectives.0).unwrap_or_default();
        let names = match &replication {
            Some(replication) => replication.run_names(&runs),
            None => names_of(&runs, &io),
        };
        refuse_objectives_of_others(&objectives, &runs, &names)?;
        // A node's directory is its own: what it holds stays when it is to be kept.
        let is_member =
            |replication: &Replication| matches!(replication.followers, Followers::Members(_));
        let keeps = args.keep && replication.as_ref().is_some_and(is_member);
        Ok(Settings {
            duration: args.duration,
            warmup: args.warmup,
            clients: args.clients as usize,
            rate: args.rate,
            behind_bytes: args.behind.as_u64(),
            nodes: u64::from(args.nodes),
            sweep: args.sweep,
            window: args.window as usize,
            record_bytes: args.record_size.as_u64() as usize,
            shards: args.shards,
            io,
            sync: args.sync,
            flush_slots: args.flush_slots,
            linger: args.linger,
            runs,
            seed: args.seed.unwrap_or_else(seed_from_clock),
            keep: args.keep || has_receipts,
            directory: args.dir,
            receipts: args.receipts.clone(),
            out: args.out,
            json: args.json,
            objectives,
            replication,
            trims: !keeps && !has_receipts,
        })
    }

    /// The engine's options for one kind of I/O.
    pub fn options(&self, io: Io) -> Options {
        let options = engine_options(io, self.sync).shards(self.shards);
        let options = match self.flush_slots {
            Some(slots) => options.flush_slots(usize::from(slots)),
            None => options,
        };
        match self.linger {
            Some(linger) => options.linger(linger),
            None => options,
        }
    }

    /// Parts that each run is measured in, with a slice of the probe after each.
    pub fn parts(&self) -> u32 {
        let seconds = self.duration.as_secs_f64();
        if seconds <= 5.0 {
            (seconds.round() as u32).max(1)
        } else {
            5 + ((seconds - 5.0) / 10.0) as u32
        }
    }

    /// Time before part `index` of a run that does not count.
    pub fn warmup_of_part(&self, index: u32) -> Duration {
        if index == 0 { self.warmup } else { self.warmup.min(RAMP) }
    }

    /// How long all of it should take.
    pub fn planned(&self) -> Duration {
        let parts = self.parts();
        let ramps = self.warmup.min(RAMP) * parts.saturating_sub(1);
        let run = self.duration + self.warmup + ramps + PROBE_SLICE * parts;
        let recovery = Duration::from_secs(6);
        let each = |name: &RunName| match name {
            RunName::Sender => run * 2,
            RunName::ReplicatedHalf => run * 3 + recovery,
            RunName::ReplicatedLagging => run * 3 + recovery * 3,
            RunName::CatchUp => recovery * 3,
            RunName::Replicated => run * 5 + recovery * 4,
            RunName::Raft => run * 2,
            RunName::Recovery => recovery,
            RunName::Rotation => run * 2 + recovery,
            RunName::Open if self.sweep => run * 2,
            _ => run,
        };
        let runs: Duration = self.runs.iter().map(each).sum();
        if let Some(replication) = &self.replication {
            let variants = replication.run_names(&[RunName::Idle]).len() as u32;
            return runs * variants + PROBE_SLICE * 2 + Duration::from_secs(2);
        }
        runs * self.io.len() as u32 + PROBE_SLICE * 2 + Duration::from_secs(1)
    }

    /// Suffix of the names of runs on this I/O: the first one has none.
    pub fn suffix(&self, io: Io) -> String {
        suffix(&self.io, io)
    }

    /// "dsync" or "fdatasync".
    pub fn sync_name(&self) -> String {
        cli::name_of(&self.sync.unwrap_or(Sync::Dsync))
    }

    /// "uring", "blocking" or both.
    pub fn io_names(&self) -> String {
        self.io.iter().map(cli::name_of).collect::<Vec<_>>().join(",")
    }
}

fn suffix(all: &[Io], io: Io) -> String {
    if all.first() == Some(&io) { String::new() } else { format!("-{}", cli::name_of(&io)) }
}

fn names_of(runs: &[RunName], io: &[Io]) -> Vec<String> {
    let of = |one: Io, run: &RunName| -> Vec<String> {
        match run {
            RunName::Sender => names(&super::sender::NAMES),
            RunName::ReplicatedHalf => names(&super::half::NAMES),
            RunName::ReplicatedLagging => names(&super::lagging::NAMES),
            RunName::CatchUp => names(&super::catch_up::NAMES),
            RunName::Replicated => names(&super::metadata::NAMES),
            RunName::Raft => names(&super::metadata::NAMES_OF_RAFT),
            run => vec![cli::name_of(run) + &suffix(io, one)],
        }
    };
    io.iter().flat_map(|one| runs.iter().flat_map(|run| of(*one, run))).collect()
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

impl Replication {
    /// Names of the runs; the plain ones are those of an engine without followers.
    fn run_names(&self, runs: &[RunName]) -> Vec<String> {
        let plain = matches!(self.followers, Followers::InProcess(_));
        let of = |run: &RunName| {
            let name = cli::name_of(run);
            let replicated = self.acks.iter().map(|ack| replicated_name(*ack, &name));
            plain.then(|| name.clone()).into_iter().chain(replicated).collect::<Vec<_>>()
        };
        runs.iter().flat_map(of).collect()
    }
}

/// `replicated-quorum-idle`.
pub fn replicated_name(ack: AckName, run: &str) -> String {
    format!("replicated-{}-{run}", cli::name_of(&ack))
}

fn replication(args: &BenchArgs) -> Result<Option<Replication>, Failure> {
    let followers = match (args.followers, &args.config) {
        (Some(count), _) => Followers::InProcess(count as usize),
        (None, Some(config)) => Followers::Members(config.clone()),
        (None, None) if !args.ack.is_empty() || args.epoch.is_some() => {
            let flag = if args.ack.is_empty() { "--epoch" } else { "--ack" };
            return Err(Failure::usage(format!("{flag} is about followers, and there are none"))
                .fix("--followers N")
                .fix("--config FILE"));
        }
        (None, None) => return Ok(None),
    };
    let mut acks = args.ack.clone();
    if acks.is_empty() {
        acks = vec![AckName::Local, AckName::Quorum];
    }
    acks.sort_unstable();
    acks.dedup();
    Ok(Some(Replication { followers, acks, epoch: args.epoch }))
}

fn refuse_what_is_not_replicated(runs: &[RunName], io: &[Io]) -> Result<(), Failure> {
    if let Some(run) = runs.iter().find(|run| !REPLICATED_RUNS.contains(run)) {
        return Err(Failure::usage(format!("{} is not run with followers", cli::name_of(run)))
            .cause("it measures an engine alone: its load does not go through a leader")
            .fix("--only idle,loaded"));
    }
    if io.len() > 1 {
        return Err(Failure::usage("with followers there is one kind of I/O")
            .fix("name one of uring and blocking"));
    }
    Ok(())
}

/// Found out before anything is measured, not after.
fn refuse_objectives_of_others(
    objectives: &[Objective],
    runs: &[RunName],
    names: &[String],
) -> Result<(), Failure> {
    // The steps of a sweep have names of their own.
    let has_steps = runs.contains(&RunName::Open);
    let is_run = |name: &String| names.contains(name) || (has_steps && name.starts_with("open-"));
    let unknown =
        objectives.iter().filter_map(|objective| objective.run.as_ref()).find(|name| !is_run(name));
    match unknown {
        None => Ok(()),
        Some(name) => Err(Failure::usage(format!("--slo is about {name}, which is not run"))
            .cause(format!("these are: {}", names.join(", ")))
            .fix(format!("one of these, or {name} in --only"))),
    }
}

/// The engine's defaults with this I/O and way to durability.
pub fn engine_options(io: Io, sync: Option<Sync>) -> Options {
    let options = Engine::options().io(match io {
        Io::Uring => ringwal_engine::Io::Uring,
        Io::Blocking => ringwal_engine::Io::Blocking,
    });
    match sync {
        Some(Sync::Dsync) => options.sync(SyncMode::Dsync),
        Some(Sync::Fdatasync) => options.sync(SyncMode::Fdatasync),
        None => options,
    }
}

fn refuse_receipts_of(runs: &[RunName]) -> Result<(), Failure> {
    let elsewhere = [RunName::OwnLoop, RunName::Rotation, RunName::Recovery];
    let is_elsewhere = |run: &&RunName| elsewhere.contains(run) || WITH_OWN_NODES.contains(run);
    match runs.iter().find(is_elsewhere) {
        None => Ok(()),
        Some(run) => Err(Failure::usage(format!(
            "--receipts cannot go with {}: that run removes its data",
            cli::name_of(run)
        ))
        .fix("leave it out of --only")),
    }
}

fn seed_from_clock() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    crate::payload::mix(now.as_nanos() as u64 ^ u64::from(std::process::id()))
        // Readers of JSON hold integers up to 2^53 exactly.
        >> 12
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn settings(arguments: &[&str]) -> Result<Settings, Failure> {
        let arguments = std::iter::once("ringwal").chain(arguments.iter().copied());
        Settings::new(cli::Cli::try_parse_from(arguments).unwrap().bench)
    }

    #[test]
    fn the_default_measurement_takes_about_twenty_seconds() {
        let settings = settings(&[]).unwrap();
        assert_eq!(settings.runs, DEFAULT_RUNS);
        let seconds = settings.planned().as_secs_f64();
        assert!((17.0..22.0).contains(&seconds), "{seconds}");
    }

    #[test]
    fn runs_are_made_once_and_the_open_loop_after_the_loaded_one() {
        let settings = settings(&["--only", "open,loaded,open"]).unwrap();
        assert_eq!(settings.runs, [RunName::Loaded, RunName::Open]);
    }

    #[test]
    fn contradictions_are_refused() {
        assert!(settings(&["--receipts", "f", "--only", "recovery"]).is_err());
        assert!(settings(&["--receipts", "f", "--io", "uring,blocking"]).is_err());
        assert!(settings(&["--rate", "5k", "--only", "idle"]).is_err());
        assert!(settings(&["--receipts", "f"]).unwrap().keep);
        assert!(settings(&["--rate", "5k", "--only", "replicated-half"]).is_ok());
        assert!(settings(&["--rate", "5k", "--only", "catch-up"]).is_err());
        assert!(settings(&["--receipts", "f", "--only", "catch-up"]).is_err());
        assert!(settings(&["--only", "sender", "--io", "uring,blocking"]).is_err());
        let slo = ["--only", "replicated-half", "--slo", "replicated-half-control:p99<2ms"];
        assert!(settings(&slo).is_ok());
        assert!(settings(&["--slo", "foo:p99<2ms"]).is_err());
        assert!(settings(&["--slo", "recovery:p99<2ms"]).is_err());
        assert!(settings(&["--slo", "open:p99<2ms,max<1s"]).is_ok());
        assert!(settings(&["--slo", "idle-blocking:p99<2ms", "--io", "uring,blocking"]).is_ok());
    }

    #[test]
    fn followers_have_runs_of_their_own() {
        let one = settings(&["--followers", "2"]).unwrap();
        assert_eq!(one.runs, REPLICATED_RUNS);
        let names = one.replication.unwrap().run_names(&one.runs);
        assert_eq!(names[..3], ["idle", "replicated-local-idle", "replicated-quorum-idle"]);
        assert_eq!(names.len(), 6);
        assert!(settings(&["--followers", "1", "--only", "open"]).is_err());
        assert!(settings(&["--followers", "1", "--io", "uring,blocking"]).is_err());
        assert!(settings(&["--ack", "quorum"]).is_err());
        assert!(settings(&["--epoch", "4"]).is_err());
        let slo = ["--followers", "1", "--slo", "replicated-quorum-idle:p99<2ms"];
        assert!(settings(&slo).is_ok());
        let member = ["--config", "f", "--dir", "d", "--ack", "quorum,local,quorum"];
        let member = settings(&member).unwrap();
        assert_eq!(member.replication.unwrap().acks, [AckName::Local, AckName::Quorum]);
        assert!(member.trims);
        assert!(!settings(&["--config", "f", "--dir", "d", "--keep"]).unwrap().trims);
    }

    #[test]
    fn only_further_kinds_of_io_have_a_suffix() {
        let settings = settings(&["--io", "blocking,uring,blocking"]).unwrap();
        assert_eq!(settings.io, [Io::Blocking, Io::Uring]);
        assert_eq!(settings.suffix(Io::Blocking), "");
        assert_eq!(settings.suffix(Io::Uring), "-uring");
    }
}
