//! `faults`: a disk that fails in every way of the table in the order below, under the real engine
//! with each of its ways to the disk. Each case says which error the engine must show, which
//! receipts may come, and what must be there when the disk is sound again: once as the cache has
//! it, once as a loss of power leaves it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::device::{Device, Faults, Server};
use super::directory::{Files, Step, Trouble};
use super::history::{Asked, History};
use super::image::Image;
use super::obey::{Order, STREAM, Sight};
use super::replay::fresh_image;
use super::role::{BACKENDS, Kind, Role, Setup};
use super::states::{DIRECTORY, State, StateDisk, check_directory};
use super::system::{Private, leave_namespace};
use super::watchdog::Watchdog;
use crate::cli::Request;
use crate::random::Random;
use crate::report::Report;

/// Cases at a time; some of them mostly wait.
const WORKERS: usize = 4;
const ALWAYS: u32 = u32::MAX;
const STALL: Duration = Duration::from_secs(10);
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
const CASE_LIMIT: Duration = Duration::from_secs(180);
const WAIT_MS: u64 = 20_000;

/// What goes wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fault {
    WriteError { always: bool },
    FlushError { always: bool, drop_cache: bool },
    Delay,
    Stall,
    DeviceGone,
    ReadOnly,
    ShortWrite { twice: bool, always: bool },
    NoSpace(Step),
}

const FAULTS: [Fault; 20] = [
    Fault::Stall,
    Fault::WriteError { always: false },
    Fault::WriteError { always: true },
    Fault::FlushError { always: false, drop_cache: false },
    Fault::FlushError { always: false, drop_cache: true },
    Fault::FlushError { always: true, drop_cache: false },
    Fault::FlushError { always: true, drop_cache: true },
    Fault::Delay,
    Fault::DeviceGone,
    Fault::ReadOnly,
    Fault::ShortWrite { twice: false, always: false },
    Fault::ShortWrite { twice: true, always: false },
    Fault::ShortWrite { twice: true, always: true },
    Fault::NoSpace(Step::Create),
    Fault::NoSpace(Step::Allocate),
    Fault::NoSpace(Step::Zero),
    Fault::NoSpace(Step::Sync),
    Fault::NoSpace(Step::SyncDirectory),
    Fault::NoSpace(Step::Header),
    Fault::NoSpace(Step::HeaderCopy),
];

impl Fault {
    fn name(self) -> String {
        let times = |always| if always { "always" } else { "once" };
        match self {
            Fault::WriteError { always } => format!("EIO on write, {}", times(always)),
            Fault::FlushError { always, drop_cache } => {
                let cache = if drop_cache { ", cache dropped" } else { "" };
                format!("EIO on flush, {}{cache}", times(always))
            }
            Fault::Delay => "every write delayed".into(),
            Fault::Stall => format!("stall of {STALL:?}"),
            Fault::DeviceGone => "device gone".into(),
            Fault::ReadOnly => "file system becomes read-only".into(),
            Fault::ShortWrite { always: true, .. } => "short write, always".into(),
            Fault::ShortWrite { twice: true, .. } => "short write, and short again".into(),
            Fault::ShortWrite { .. } => "short write, once".into(),
            Fault::NoSpace(step) => format!("ENOSPC at step {step:?}"),
        }
    }

    /// What the engine sees itself, not only its device.
    fn needs_directory(self) -> bool {
        matches!(self, Fault::ShortWrite { .. } | Fault::NoSpace(_))
    }
}

fn name(fault: Fault, backend: usize) -> String {
    format!("{} ({})", fault.name(), BACKENDS[backend].0)
}

/// The options of `faults`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct FaultsArguments {
    /// Only the cases whose name contains this.
    #[arg(long, value_name = "TEXT")]
    case: Option<String>,
}

enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

/// Runs the matrix, as often as the count says (default once).
///
/// # Errors
/// When the harness itself fails.
pub fn run(request: Request, arguments: &FaultsArguments, report: &mut Report) -> Result<()> {
    let ready = Private::enter().and_then(|private| {
        let fresh = fresh_image(&private, "ext4")?;
        drop(StateDisk::new(&private, "ext4", "try", fresh.len())?);
        drop(Files::new().serve(&private.directory("try-fuse")?)?);
        Ok((private, fresh))
    });
    let (private, fresh) = match ready {
        Ok(ready) => ready,
        Err(error) => {
            report.skip("faults", &format!("{error:#}"));
            return Ok(());
        }
    };
    let rounds = request.count.unwrap_or(1);
    let cases: Vec<(u64, Fault, usize)> = (0..rounds)
        .flat_map(|round| {
            let faults = FAULTS.into_iter();
            faults.flat_map(move |fault| (0..BACKENDS.len()).map(move |at| (round, fault, at)))
        })
        .filter(|(_, fault, backend)| {
            arguments.case.as_ref().is_none_or(|text| name(*fault, *backend).contains(text))
        })
        .collect();
    let next = AtomicUsize::new(0);
    let outcomes: Vec<Result<Vec<(usize, Outcome)>>> = std::thread::scope(|scope| {
        let work = |number: usize| {
            let (private, fresh, cases, next) = (&private, &fresh, &cases, &next);
            move || {
                leave_namespace()?;
                let disk =
                    StateDisk::new(private, "ext4", &format!("state-{number}"), fresh.len())?;
                let watchdog = Watchdog::new("faults", CASE_LIMIT);
                let bench = Bench { private, fresh, disk, watchdog, number };
                let mut outcomes = Vec::new();
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some((round, fault, backend)) = cases.get(at) else {
                        return Ok(outcomes);
                    };
                    let seed = request.seed.wrapping_add(*round);
                    outcomes.push((at, bench.judge(*fault, *backend, seed)));
                }
            }
        };
        let workers: Vec<_> = (0..WORKERS).map(|number| scope.spawn(work(number))).collect();
        let joined = workers.into_iter().map(|worker| worker.join());
        joined.map(|outcome| outcome.unwrap_or_else(|_| bail!("a worker panicked"))).collect()
    });
    let mut sorted = Vec::new();
    for outcome in outcomes {
        sorted.extend(outcome?);
    }
    sorted.sort_by_key(|(at, _)| *at);
    for (at, outcome) in sorted {
        let (round, fault, backend) = cases[at];
        let name = name(fault, backend);
        match outcome {
            Outcome::Passed => {
                println!("passed: {name}");
                report.pass(1);
                report.cover(&fault.name(), 1);
            }
            Outcome::Failed(what) => {
                let seed = request.seed.wrapping_add(round);
                report.fail(format!("{name}, seed {seed}: {what}"));
            }
            Outcome::Skipped(why) => report.skip(&name, &why),
        }
    }
    Ok(())
}

/// What one worker has.
struct Bench<'a> {
    private: &'a Private,
    fresh: &'a Image,
    disk: StateDisk,
    watchdog: Watchdog,
    number: usize,
}

/// What the engine of a case runs on.
enum Ground {
    Block { device: Arc<Device>, server: Option<Server> },
    Directory { files: Arc<Files>, _server: Server },
}

/// A case under way.
struct Case {
    fault: Fault,
    backend: usize,
    ground: Ground,
    role: Role,
    /// The most that was ever acknowledged and submitted.
    acknowledged: u64,
    submitted: u64,
    trimmed: u64,
}

impl Bench<'_> {
    fn judge(&self, fault: Fault, backend: usize, seed: u64) -> Outcome {
        self.watchdog.step(name(fault, backend));
        let judged = self.start(fault, backend, seed).and_then(|mut case| {
            if fault == Fault::ReadOnly && !can_break_file_system() {
                return Ok(Some("this kernel has no trigger_fs_error in /sys/fs/ext4".into()));
            }
            case.run()?;
            self.check(case, seed)?;
            Ok(None)
        });
        match judged {
            Ok(None) => Outcome::Passed,
            Ok(Some(why)) => Outcome::Skipped(why),
            Err(error) => Outcome::Failed(format!("{error:#}")),
        }
    }

    fn start(&self, fault: Fault, backend: usize, seed: u64) -> Result<Case> {
        let served =
            self.private.directory(&format!("faulty-{}-{}", std::process::id(), self.number))?;
        let mut setup = Setup {
            role: Kind::Obey,
            file: None,
            file_system: "ext4".into(),
            place: served.clone(),
            seed,
            life: 1,
            shards: 1,
            backend,
            early: false,
            tells_extents: !fault.needs_directory() && fault != Fault::Stall,
        };
        let ground = if fault.needs_directory() {
            let files = Files::new();
            Ground::Directory { _server: files.serve(&served)?, files }
        } else {
            let device = Device::new(self.fresh.clone(), false);
            let server = Server::start(device.clone(), &served)?;
            setup.file = Some(server.file());
            setup.place = self.private.directory(&format!("mounted-{}", self.number))?;
            Ground::Block { device, server: Some(server) }
        };
        let role = Role::start(&setup, |_| {})?;
        let case = Case { fault, backend, ground, role, acknowledged: 0, submitted: 0, trimmed: 0 };
        Ok(case)
    }

    /// What is there when the disk is sound again.
    fn check(&self, case: Case, seed: u64) -> Result<()> {
        let Case { ground, mut role, acknowledged, submitted, trimmed, .. } = case;
        role.end(ANSWER_LIMIT)?;
        let (mut history, mut asked) = (History::default(), Asked::default());
        history.begin(STREAM, 1, 0, 0);
        history.acknowledge(STREAM, acknowledged);
        asked.note(&format!("S {STREAM} {submitted}"))?;
        history.note(&format!("T {STREAM} {trimmed}"), &asked)?;
        let state = State { seed, history: &history, asked: &asked, shards: 1, backend: 0 };
        let mut random = Random::with_purpose(seed, 0xFA01);
        match ground {
            Ground::Block { device, server } => {
                if let Some(server) = server {
                    server.wait_detached()?;
                }
                let (cached, durable) = device.contents();
                let checked = self.disk.check(&durable, &state, &mut random);
                checked.context("healed, after a loss of power")?;
                self.disk.check(&cached, &state, &mut random).context("healed")
            }
            Ground::Directory { files, .. } => {
                for only_durable in [true, false] {
                    let copy = self.private.directory(&format!("copy-{}", self.number))?;
                    files.copy_to(&copy, only_durable)?;
                    let checked = check_directory(&copy.join(DIRECTORY), &state, &mut random);
                    std::fs::remove_dir_all(&copy)?;
                    checked
                        .with_context(|| format!("healed, only what was synced: {only_durable}"))?;
                }
                Ok(())
            }
        }
    }
}

fn can_break_file_system() -> bool {
    std::fs::read_dir("/sys/fs/ext4")
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| entry.path().join("trigger_fs_error").exists())
}

impl Case {
    fn run(&mut self) -> Result<()> {
        let opened = self.hear()?;
        ensure!(opened.open_error.is_none(), "opening: {:?}", opened.open_error);
        self.order(Order::Settle)?;
        self.order(Order::Append(30))?;
        let sight = self.order(Order::Wait(WAIT_MS))?;
        ensure!(sight.acknowledged == 30, "before the fault: {sight:?}");
        self.order(Order::Settle)?;
        self.order(Order::Settle)?;
        match self.fault {
            Fault::WriteError { always } => self.write_errors(always),
            Fault::FlushError { always, drop_cache } => self.flush_errors(always, drop_cache),
            Fault::Delay => self.delayed(),
            Fault::Stall => self.stalled(),
            Fault::DeviceGone => self.device_gone(),
            Fault::ReadOnly => self.read_only(),
            Fault::ShortWrite { twice, always } => self.short_write(twice, always),
            Fault::NoSpace(step) => self.no_space(step),
        }
    }

    fn hear(&mut self) -> Result<Sight> {
        loop {
            let line = self.role.hear(ANSWER_LIMIT)?.context("the role has ended")?;
            if let Some(extent) = line.strip_prefix("E ") {
                let (start, length) = extent.split_once(' ').context("an extent")?;
                let (start, length): (u64, u64) = (start.parse()?, length.parse()?);
                if let Ground::Block { device, .. } = &self.ground {
                    device.add_data(start..start + length);
                }
            }
            let Some(answer) = line.strip_prefix("= ") else { continue };
            let sight: Sight = serde_json::from_str(answer)?;
            ensure!(sight.receipts_out_of_order == 0, "receipts behind a gap: {sight:?}");
            self.acknowledged = self.acknowledged.max(sight.acknowledged);
            self.submitted = self.submitted.max(sight.submitted);
            ensure!(sight.acknowledged == self.acknowledged, "a receipt went: {sight:?}");
            return Ok(sight);
        }
    }

    fn order(&mut self, order: Order) -> Result<Sight> {
        self.role.tell(&serde_json::to_string(&order)?)?;
        self.hear().with_context(|| format!("{order:?}"))
    }

    /// An order that must go well.
    fn order_well(&mut self, order: Order) -> Result<Sight> {
        let sight = self.order(order)?;
        ensure!(sight.error.is_none(), "{order:?}: {sight:?}");
        Ok(sight)
    }

    fn device(&self) -> Result<Arc<Device>> {
        match &self.ground {
            Ground::Block { device, .. } => Ok(device.clone()),
            Ground::Directory { .. } => bail!("a case without a device"),
        }
    }

    fn files(&self) -> Result<Arc<Files>> {
        match &self.ground {
            Ground::Directory { files, .. } => Ok(files.clone()),
            Ground::Block { .. } => bail!("a case without a directory"),
        }
    }

    fn write_errors(&mut self, always: bool) -> Result<()> {
        let device = self.device()?;
        let write_errors = if always { ALWAYS } else { 1 };
        device.set_faults(Faults { write_errors, only_data: !always, ..Faults::default() });
        self.poisoned("write", Some(libc::EIO), true)?;
        ensure!(device.failed() > 0, "nothing failed");
        self.end_poisoned()
    }

    fn flush_errors(&mut self, always: bool, drop_cache: bool) -> Result<()> {
        let device = self.device()?;
        let flush_errors = if always { ALWAYS } else { 1 };
        device.set_faults(Faults { flush_errors, drop_cache, ..Faults::default() });
        let stage =
            if BACKENDS[self.backend].0.contains("fdatasync") { "fdatasync" } else { "write" };
        self.poisoned(stage, Some(libc::EIO), true)?;
        ensure!(device.failed() > 0, "nothing failed");
        self.end_poisoned()
    }

    /// Appends until the engine is poisoned: what failed has no receipt, its outcome is unknown,
    /// what comes later is refused, nothing is written again, and what was durable can be read.
    fn poisoned(&mut self, stage: &str, errno: Option<i32>, readable: bool) -> Result<()> {
        self.order(Order::Append(40))?;
        let sight = self.order(Order::Wait(WAIT_MS))?;
        ensure!(sight.pending == 0, "no outcome: {sight:?}");
        ensure!(sight.acknowledged < sight.submitted, "everything acknowledged: {sight:?}");
        ensure!(sight.unknown > 0, "no outcome is unknown: {sight:?}");
        let lost = sight.submitted - sight.acknowledged;
        ensure!(lost == sight.unknown + sight.not_written, "outcomes: {sight:?}");
        ensure!(
            sight.poison == Some((stage.to_owned(), errno)),
            "poisoned by {:?}, not by {stage} with {errno:?}",
            sight.poison
        );
        // What was with the kernel already at the failure still gets to the disk.
        std::thread::sleep(Duration::from_millis(200));
        let written = self.data_writes();
        let sight = self.order(Order::Append(5))?;
        ensure!(sight.refusal.as_deref() == Some("Poisoned"), "taken when poisoned: {sight:?}");
        if readable {
            self.order_well(Order::Read)?;
        }
        ensure!(self.data_writes() == written, "written again after the failure");
        Ok(())
    }

    fn data_writes(&self) -> u64 {
        match &self.ground {
            Ground::Block { device, .. } => device.data_writes(),
            Ground::Directory { files, .. } => files.writes(),
        }
    }

    /// Closing says why, and writes nothing.
    fn end_poisoned(&mut self) -> Result<()> {
        let written = self.data_writes();
        let sight = self.order(Order::Close)?;
        ensure!(sight.error.is_some(), "closed without an error: {sight:?}");
        ensure!(self.data_writes() == written, "written again while closing");
        if let Ground::Block { device, .. } = &self.ground {
            ensure!(device.rewrites() == 0, "{} writes were tried again", device.rewrites());
        }
        self.heal();
        self.role.tell(&serde_json::to_string(&Order::Exit)?)
    }

    fn heal(&mut self) {
        match &self.ground {
            Ground::Block { device, .. } => device.set_faults(Faults::default()),
            Ground::Directory { files, .. } => files.set_trouble(None),
        }
    }

    /// Everything is acknowledged, now and after more appends; then it is closed.
    fn end_well(&mut self) -> Result<()> {
        for count in [0, 25] {
            let sight = self.order(Order::Append(count))?;
            ensure!(sight.refusal.is_none(), "refused: {sight:?}");
            let sight = self.order(Order::Wait(WAIT_MS))?;
            ensure!(sight.acknowledged == sight.submitted, "no receipts: {sight:?}");
            ensure!(sight.poison.is_none(), "poisoned: {sight:?}");
        }
        self.order_well(Order::Read)?;
        let sight = self.order_well(Order::Trim(5))?;
        self.trimmed = sight.bounds.0;
        self.order_well(Order::Close)?;
        self.role.tell(&serde_json::to_string(&Order::Exit)?)
    }

    fn delayed(&mut self) -> Result<()> {
        let delay = Some(Duration::from_millis(30));
        self.device()?.set_faults(Faults { delay, ..Faults::default() });
        self.order(Order::Append(40))?;
        let sight = self.order(Order::Wait(WAIT_MS))?;
        ensure!(sight.acknowledged == 70, "no receipts: {sight:?}");
        self.heal();
        self.end_well()
    }

    fn stalled(&mut self) -> Result<()> {
        self.device()?.set_faults(Faults { stalled: true, ..Faults::default() });
        self.order(Order::Append(20))?;
        let sight = self.order(Order::Wait(STALL.as_millis() as u64))?;
        let none = sight.acknowledged == 30 && sight.pending == 20 && sight.poison.is_none();
        ensure!(none, "an outcome while the disk stood still: {sight:?}");
        let sight = self.order(Order::Append(5_000))?;
        ensure!(sight.refusal.as_deref() == Some("Full"), "the queue has no bound: {sight:?}");
        ensure!(sight.queued_bytes <= 2 << 20, "more waits than the pool holds: {sight:?}");
        ensure!(sight.acknowledged == 30, "a receipt while the disk stood still: {sight:?}");
        self.heal();
        let sight = self.order(Order::Wait(WAIT_MS))?;
        ensure!(sight.acknowledged == sight.submitted, "no receipts after the stall: {sight:?}");
        self.end_well()
    }

    fn device_gone(&mut self) -> Result<()> {
        if let Ground::Block { server, .. } = &mut self.ground {
            *server = None;
        }
        self.poisoned("write", Some(libc::EIO), false)?;
        self.order(Order::Close)?;
        self.role.tell(&serde_json::to_string(&Order::Exit)?)
    }

    fn read_only(&mut self) -> Result<()> {
        self.order_well(Order::BreakFileSystem)?;
        self.poisoned("write", Some(libc::EROFS), true)?;
        self.end_poisoned()
    }

    /// The rest of a short write is written once more; when that is short too, it is an error.
    fn short_write(&mut self, twice: bool, always: bool) -> Result<()> {
        let files = self.files()?;
        let times = match (twice, always) {
            (_, true) => ALWAYS,
            (true, false) => 2,
            (false, false) => 1,
        };
        files.set_trouble(Some((Step::Batch, Trouble::Short(times))));
        if twice {
            self.poisoned("write", None, true)?;
            ensure!(files.troubled() >= 2, "{} short answers", files.troubled());
            return self.end_poisoned();
        }
        self.order(Order::Append(40))?;
        let sight = self.order(Order::Wait(WAIT_MS))?;
        ensure!(sight.acknowledged == 70, "one short write is finished: {sight:?}");
        ensure!(files.troubled() == 1, "{} short answers", files.troubled());
        self.end_well()
    }

    fn no_space(&mut self, step: Step) -> Result<()> {
        let files = self.files()?;
        files.set_trouble(Some((step, Trouble::NoSpace)));
        let sight = self.order(Order::Append(5_000))?;
        ensure!(files.troubled() > 0, "nothing failed: {sight:?}");
        ensure!(sight.refusal.as_deref() == Some("NoSpace"), "not refused by name: {sight:?}");
        let message = sight.refusal_message.unwrap_or_default();
        ensure!(message.contains("segment-"), "no segment is named: {message}");
        ensure!(message.contains("No space"), "no cause is named: {message}");
        let sight = self.order(Order::Wait(1_200))?;
        let sound = sight.poison.is_none() && sight.unknown + sight.not_written == 0;
        ensure!(sound, "a lack of space is no failure: {sight:?}");
        ensure!(sight.acknowledged > 30, "what fits is written: {sight:?}");
        // The engine's own batch may have rolled, and what waited fits behind it.
        let is_said = sight.no_space.is_some() || sight.pending == 0;
        ensure!(is_said, "the counters do not say why records wait: {sight:?}");
        self.order_well(Order::Read)?;
        self.heal();
        self.order(Order::Wait(WAIT_MS))?;
        // Where nothing had waited, the next try to prepare a segment is still to come: a second after the last.
        self.order_well(Order::Settle)?;
        self.end_well()
    }
}
