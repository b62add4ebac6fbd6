//! How long opening takes: a child process writes a million records and is killed, or closes
//! cleanly; then the directory is opened and its last record read.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use ringwal_engine::StreamId;

use super::Bench;
use super::settings::engine_options;
use super::writer::{FIRST_STREAM, Writer};
use crate::cli::{self, Io, RecoveryWriterArgs};
use crate::exit::{self, Exit, Failure};
use crate::interrupt::Interrupt;
use crate::payload::Records;
use crate::probe::{histogram, median, record};
use crate::report::{Run, RunBuilder};

/// Records that are there to be recovered.
const RECORDS: u64 = 1_000_000;
/// Streams that they are spread over.
const STREAMS: usize = 16;
/// Records of one stream that follow each other.
const GROUP: u64 = 256;
/// Appends that the writer keeps in flight.
const IN_FLIGHT: usize = 16_384;
/// Times that each way of ending is tried.
const REPETITIONS: usize = 3;
/// What the writer says when it has every receipt.
const READY: &str = "every record is durable";
/// A writer that takes longer has a problem of its own.
const PATIENCE: Duration = Duration::from_secs(300);

/// Measures it.
pub fn run(bench: &mut Bench) -> Result<()> {
    for io in bench.settings.io.clone() {
        run_with(bench, io)?;
    }
    Ok(())
}

fn run_with(bench: &mut Bench, io: Io) -> Result<()> {
    let name = format!("recovery{}", bench.settings.suffix(io));
    let start_ns = bench.elapsed_ns();
    let mut after_kill = Vec::new();
    let mut after_close = Vec::new();
    let mut scanned_bytes = 0.0_f64;
    let directory = bench.data.side(&name);
    for index in 0..REPETITIONS * 2 {
        if bench.interrupt.is_asked() {
            break;
        }
        bench.progress.show(&name);
        let close = index % 2 == 1;
        directory.clear()?;
        if !write(bench, io, directory.path(), close)? {
            break;
        }
        let (elapsed, scanned) = open(bench, io, directory.path())?;
        if close {
            after_close.push(elapsed.as_nanos() as f64);
        } else {
            after_kill.push(elapsed.as_nanos() as f64);
            scanned_bytes = scanned_bytes.max(scanned as f64);
        }
        bench.probe_slice()?;
    }
    directory.clear()?;

    let mut response = histogram();
    for &elapsed_ns in &after_kill {
        record(&mut response, Duration::from_nanos(elapsed_ns as u64));
    }
    let mut run = Run {
        name,
        description: format!("{RECORDS} records: from opening to reading the last, after a kill"),
        clients: 1,
        // Nothing is appended while it is opened.
        in_flight: 0,
        record_bytes: bench.settings.record_bytes as u64,
        records: RECORDS,
        start_ns,
        duration_ns: after_kill.iter().sum::<f64>() as u64 / after_kill.len().max(1) as u64,
        interrupted: bench.interrupt.is_asked(),
        ..Run::default()
    };
    run.extra.insert("open_after_kill_ns".to_owned(), median(&after_kill));
    run.extra.insert("open_after_close_ns".to_owned(), median(&after_close));
    run.extra.insert("scanned_after_kill_bytes".to_owned(), scanned_bytes);
    if !after_kill.is_empty() {
        let (run, histograms) = RunBuilder::new(run, response).finish();
        bench.results.push((run, histograms));
    }
    Ok(())
}

/// Opens the directory and reads the last record of every stream; returns how long that took and
/// how much opening has read.
fn open(bench: &Bench, io: Io, directory: &Path) -> Result<(Duration, u64)> {
    let start = Instant::now();
    let engine =
        bench.settings.options(io).open(directory).map_err(|error| Failure::open(&error))?;
    let (seed, record_bytes) = (bench.settings.seed, bench.settings.record_bytes);
    let mut found = 0;
    for index in 0..STREAMS as u64 {
        let stream = engine.stream(StreamId::new(FIRST_STREAM + index));
        let end = stream.end();
        found += end;
        let Some(last) = end.checked_sub(1) else { continue };
        let record = stream
            .read(last..)
            .and_then(|mut records| records.next().transpose())
            .with_context(|| format!("reading stream {} after recovery", stream.id()))?
            .with_context(|| format!("stream {} has no record {last}", stream.id()))?;
        let mut expected = Records::new(seed, stream.id().get(), record_bytes, 1);
        if record.payload() != expected.make(last) {
            bail!("stream {}, record {last}: other bytes than were written", stream.id());
        }
    }
    let elapsed = start.elapsed();
    if found != RECORDS {
        return Err(Failure::new(
            Exit::Corrupt,
            format!("{RECORDS} records were durable, {found} are there after recovery"),
        )
        .into());
    }
    let scanned = engine.recovery().iter().map(|report| report.scanned_bytes).sum();
    engine.close().context("closing the recovered engine")?;
    Ok((elapsed, scanned))
}

/// Lets a child process write the records, and die or close. `false` when interrupted.
fn write(bench: &Bench, io: Io, directory: &Path, close: bool) -> Result<bool> {
    let settings = &bench.settings;
    let program = std::env::current_exe().context("the path of this program")?;
    let mut command = Command::new(program);
    command
        .arg("recovery-writer")
        .arg("--dir")
        .arg(directory)
        .args(["--records", &RECORDS.to_string()])
        .args(["--record-bytes", &settings.record_bytes.to_string()])
        .args(["--seed", &settings.seed.to_string()])
        .args(["--shards", &settings.shards.to_string()])
        .args(["--io", &cli::name_of(&io)])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    if let Some(sync) = &settings.sync {
        command.args(["--sync", &cli::name_of(sync)]);
    }
    if close {
        command.arg("--close");
    }
    let mut child = command.spawn().context("starting the writer of the recovery run")?;
    let ready = wait_for_ready(&mut child, bench);
    if close && matches!(ready, Ok(true)) {
        let status = child.wait().context("waiting for the writer")?;
        if !status.success() {
            bail!("the writer of the recovery run ended with {status}");
        }
        return Ok(true);
    }
    let _ = child.kill();
    child.wait().context("waiting for the writer")?;
    ready
}

fn wait_for_ready(child: &mut Child, bench: &Bench) -> Result<bool> {
    let lines = lines_of(child)?;
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if bench.interrupt.is_asked() {
            return Ok(false);
        }
        bench.progress.show("recovery: writing");
        match lines.recv_timeout(Duration::from_millis(50)) {
            Ok(line) if line == READY => return Ok(true),
            Ok(line) => bail!("the writer of the recovery run said {line:?}"),
            Err(RecvTimeoutError::Timeout) => {}
            // A signal to the whole group has ended it.
            Err(RecvTimeoutError::Disconnected) if was_interrupted(&bench.interrupt) => {
                return Ok(false);
            }
            Err(RecvTimeoutError::Disconnected) => {
                bail!("the writer of the recovery run ended before it was done");
            }
        }
    }
    Err(anyhow!("the writer of the recovery run was not done after {PATIENCE:?}"))
}

/// The child may see the signal a moment before this process does.
fn was_interrupted(interrupt: &Interrupt) -> bool {
    std::thread::sleep(Duration::from_millis(50));
    interrupt.is_asked()
}

fn lines_of(child: &mut Child) -> Result<Receiver<String>> {
    let stdout = child.stdout.take().context("the writer's output")?;
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    Ok(receiver)
}

/// The child: writes, says so, and closes or waits to be killed.
pub fn writer(args: &RecoveryWriterArgs) -> Result<Exit> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .context("asking to die with the parent")?;
    let engine = engine_options(args.io, args.sync)
        .shards(args.shards)
        .open(&args.dir)
        .map_err(|error| Failure::open(&error))?;
    let mut writers: Vec<Writer> = (0..STREAMS)
        .map(|stream| Writer::new(&engine, stream, args.seed, args.record_bytes as usize, None))
        .collect();
    let mut waiting = std::collections::VecDeque::with_capacity(IN_FLIGHT);
    for index in 0..args.records {
        if waiting.len() == IN_FLIGHT {
            receive(&mut writers, waiting.pop_front())?;
        }
        let stream = (index / GROUP) as usize % STREAMS;
        writers[stream].make();
        waiting.push_back((stream, writers[stream].append()?));
    }
    while !waiting.is_empty() {
        receive(&mut writers, waiting.pop_front())?;
    }
    if args.close {
        drop(writers);
        engine.close().context("closing the engine")?;
        exit::print(&format!("{READY}\n"))?;
        return Ok(Exit::Success);
    }
    exit::print(&format!("{READY}\n"))?;
    loop {
        std::thread::park();
    }
}

fn receive(writers: &mut [Writer], oldest: Option<(usize, ringwal_engine::Append)>) -> Result<()> {
    let Some((stream, append)) = oldest else { return Ok(()) };
    let receipt = append.wait().context("waiting for a receipt")?;
    writers[stream].received(receipt, None)
}
