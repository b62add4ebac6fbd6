//! The order of runs: engines take turns, each run is a process of its own in an empty directory.

use std::io::{IsTerminal as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rustix::process::{Pid, Signal, getpid, kill_process, set_parent_process_death_signal};

use crate::cell::Cell;
use crate::engine::Contender;
use crate::engines::walrus;
use crate::settings::{Plan, Run};
use crate::work::{closed_loop, open_loop, replay};
use crate::workload::{Shape, Workload};
use crate::{engines, workload};

/// How long a run may take beside its own length: opening, preparing, a million records.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often its own length: an open loop has several rates, each with a time to catch up.
const LENGTHS_MAX: u32 = 25;

/// All runs of one engine in one workload.
pub struct Row {
    /// Position of the engine in the plan.
    pub contender: usize,
    /// Which workload.
    pub workload: Workload,
    /// Those that went well.
    pub cells: Vec<Cell>,
    /// What went wrong.
    pub errors: Vec<String>,
}

/// Runs everything; nothing when it is interrupted.
///
/// # Errors
/// When the data directory cannot be used. An engine that fails is a row with its error.
pub fn run(plan: &Plan, dir: &Path, interrupted: &AtomicBool) -> Result<Option<Vec<Row>>> {
    let mut rows: Vec<Row> = Vec::new();
    for &workload in &plan.workloads {
        for contender in 0..plan.contenders.len() {
            if takes_part(&plan.contenders[contender], &workload) {
                rows.push(Row { contender, workload, cells: Vec::new(), errors: Vec::new() });
            }
        }
    }
    let total = rows.len() * plan.repeat;
    for turn in 0..plan.repeat {
        for row in 0..rows.len() {
            if interrupted.load(Ordering::Relaxed) {
                progress("");
                return Ok(None);
            }
            let done = turn * rows.len() + row;
            progress(&format!(
                "{} of {total}: {} {}",
                done + 1,
                rows[row].workload.name,
                plan.contenders[rows[row].contender].name
            ));
            let half = half_speed(&rows, rows[row].contender);
            let outcome = one(plan, &rows[row], dir, half);
            match outcome {
                Ok(cell) => rows[row].cells.push(cell),
                Err(error) => rows[row].errors.push(format!("{error:#}")),
            }
        }
    }
    progress("");
    Ok(Some(rows))
}

/// Open loops need threads, replays a way to read everything again.
fn takes_part(contender: &Contender, workload: &Workload) -> bool {
    match workload.shape {
        Shape::Closed => true,
        Shape::Replay => contender.replay.is_some(),
        Shape::Open | Shape::Drift => !contender.is_looped,
    }
}

/// Half of the rate that an engine reached in W2.
fn half_speed(rows: &[Row], contender: usize) -> Option<u64> {
    let row = rows.iter().find(|row| row.contender == contender && row.workload.name == "W2")?;
    let point = row.cells.last()?.points.first()?;
    Some((point.operations_per_second / 2.0) as u64)
}

fn one(plan: &Plan, row: &Row, dir: &Path, half: Option<u64>) -> Result<Cell> {
    let directory = Scratch::create(dir)?;
    let name = plan.contenders[row.contender].name;
    let length = match row.workload.shape {
        Shape::Open => plan.step,
        Shape::Drift => plan.drift,
        _ => plan.length,
    };
    let number = match row.workload.shape {
        Shape::Replay => plan.records,
        Shape::Drift => half.context("W7 runs at half the speed of W2: --workload W2,W7")?,
        _ => 0,
    };
    let run =
        |part: &str| child(part, name, &row.workload, &directory.0, plan.warm_up, length, number);
    if row.workload.shape != Shape::Replay {
        return run("run");
    }
    let written = run("write")?;
    drop_page_cache(&directory.0)?;
    let mut read = run("run")?;
    for (point, written) in read.points.iter_mut().zip(written.points) {
        point.log_bytes_per_payload_byte = written.log_bytes_per_payload_byte;
        point.disk_bytes_per_payload_byte = written.disk_bytes_per_payload_byte;
    }
    Ok(read)
}

/// A directory that is gone afterwards, and with it what it still had to write.
struct Scratch(PathBuf);

impl Scratch {
    fn create(dir: &Path) -> Result<Scratch> {
        let path = std::path::absolute(dir)?.join(format!("ringwal-peers.{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let parent = self.0.parent().map(std::fs::File::open);
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("peers: {} stays: {error}", self.0.display());
        }
        // The next engine must not pay for what this one has left in memory.
        if let Some(Ok(parent)) = parent {
            let _ = rustix::fs::syncfs(&parent);
        }
    }
}

/// Starts this program for one run.
fn child(
    part: &str,
    name: &str,
    workload: &Workload,
    directory: &Path,
    warm_up: Duration,
    length: Duration,
    number: u64,
) -> Result<Cell> {
    let started = Command::new(std::env::current_exe()?)
        .args([part, name, workload.name])
        .arg(directory)
        .args([warm_up.as_nanos(), length.as_nanos(), u128::from(number)].map(|n| n.to_string()))
        .env(walrus::DIRECTORY_VARIABLE, directory)
        .env(walrus::QUIET_VARIABLE, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting a run")?;
    let output = output_within(started, PATIENCE + (warm_up + length) * LENGTHS_MAX)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let killed = output.status.signal() == Some(libc::SIGKILL);
    if killed != (part == "write") || (!killed && !output.status.success()) {
        let errors = String::from_utf8_lossy(&output.stderr);
        let last = errors.trim().lines().last().unwrap_or("no message").to_owned();
        bail!("{}: {last}", output.status);
    }
    let line = text.lines().last().context("a run ended without figures")?;
    serde_json::from_str(line).with_context(|| format!("figures of a run: {line}"))
}

/// What a process says until it ends; it is killed when that takes too long.
fn output_within(child: Child, patience: Duration) -> Result<Output> {
    let pid = Pid::from_child(&child);
    let (ended, end) = std::sync::mpsc::channel();
    let waiting = std::thread::spawn(move || {
        let output = child.wait_with_output();
        let _ = ended.send(());
        output
    });
    let late = end.recv_timeout(patience).is_err();
    if late {
        // It has not been waited for yet, so the number is still its own.
        let _ = kill_process(pid, Signal::KILL);
    }
    let output = waiting.join().map_err(|_| anyhow!("waiting for a run"))?;
    ensure!(!late, "it did not end within {} s, and was killed", patience.as_secs());
    output.context("waiting for a run")
}

/// Does one run in this process.
///
/// # Errors
/// The engine's.
pub fn run_here(run: &Run, writes: bool) -> Result<()> {
    // Nobody would remove its files.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let contender = engines::by_name(&run.engine)?;
    let workload = workload::by_name(&run.workload)?;
    let directory = run.directory.as_path();
    ensure!(directory.is_dir(), "{} is no directory", directory.display());
    let warm_up = Duration::from_nanos(run.warm_up_ns);
    let length = Duration::from_nanos(run.length_ns);
    let cell = match workload.shape {
        Shape::Closed => closed_loop::run(&contender, &workload, directory, warm_up, length)?,
        Shape::Open => open_loop::run(&contender, &workload, directory, warm_up, length)?,
        Shape::Drift => open_loop::drift(&contender, &workload, directory, run.number, length)?,
        Shape::Replay if writes => replay::write(&contender, &workload, directory, run.number)?,
        Shape::Replay => replay::read(&contender, &workload, directory, run.number)?,
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(&cell)?)?;
    out.flush()?;
    if writes {
        kill_process(getpid(), Signal::KILL)?;
    }
    Ok(())
}

/// So that a replay reads the device: for the whole machine where that is allowed, else file by file.
fn drop_page_cache(directory: &Path) -> Result<()> {
    rustix::fs::syncfs(std::fs::File::open(directory)?)?;
    if std::fs::write("/proc/sys/vm/drop_caches", "1").is_ok() {
        return Ok(());
    }
    drop_page_cache_of(directory)
}

fn drop_page_cache_of(directory: &Path) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            drop_page_cache_of(&path)?;
        } else {
            let file = std::fs::File::open(&path)?;
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        }
    }
    Ok(())
}

/// One line that is written over, on a terminal only.
fn progress(text: &str) {
    let mut err = std::io::stderr();
    if err.is_terminal() {
        let _ = write!(err, "\r\x1b[K{text}");
        let _ = err.flush();
    }
}
