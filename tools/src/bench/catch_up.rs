//! How fast a follower that lacks records gets them from its leader's segments: from the beginning of
//! the session until all are durable there. Beside it, in turn: reading the leader's segments and
//! writing over the follower's, both at once, sequentially and in large blocks.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::fs::OFlags;

use super::Bench;
use super::lagging::{LACKED_RECORD_BYTES, LACKED_STREAM};
use super::led::Led;
use super::peer::{self, Peer};
use super::writer::FIRST_STREAM;
use crate::probe::{AlignedBuffer, histogram, median, record, write_at};
use crate::report::{Run, RunBuilder};

/// The runs.
pub const NAMES: [&str; 2] = ["catch-up", "catch-up-streams"];
/// Times that each is tried.
const REPETITIONS: usize = 3;
/// Of both engines.
const SEGMENT_BYTES: u64 = 32 << 20;
/// Streams that are interleaved, and their records.
const STREAMS: u64 = 64;
const STREAM_RECORD_BYTES: usize = 100;
/// Of those there is one for so many bytes that a follower is to lack.
const BYTES_PER_STREAM_RECORD: u64 = 4096;
/// What is read and written at once beside it.
const BLOCK_BYTES: usize = 1 << 20;
/// A follower that takes longer has a problem of its own.
const PATIENCE: Duration = Duration::from_secs(600);

/// What a follower lacks.
struct Lacked {
    name: &'static str,
    description: String,
    first: u64,
    streams: u64,
    record_bytes: usize,
    records: u64,
    /// Appends in flight when they are written.
    together: Option<u64>,
}

/// Measures it.
pub fn run(bench: &mut Bench) -> Result<()> {
    let bytes = bench.settings.behind_bytes;
    let records = bytes / LACKED_RECORD_BYTES as u64;
    run_with(
        bench,
        &Lacked {
            name: NAMES[0],
            description: format!(
                "a blank follower gets {} MiB in records of {LACKED_RECORD_BYTES} bytes",
                bytes >> 20
            ),
            first: LACKED_STREAM,
            streams: 1,
            record_bytes: LACKED_RECORD_BYTES,
            records,
            together: None,
        },
    )?;
    let records = bytes / BYTES_PER_STREAM_RECORD;
    run_with(
        bench,
        &Lacked {
            name: NAMES[1],
            description: format!(
                "a blank follower gets {records} records of {STREAM_RECORD_BYTES} bytes in \
                 {STREAMS} streams, written in turn"
            ),
            first: FIRST_STREAM,
            streams: STREAMS,
            record_bytes: STREAM_RECORD_BYTES,
            records,
            together: Some(STREAMS),
        },
    )
}

fn run_with(bench: &mut Bench, lacked: &Lacked) -> Result<()> {
    if bench.interrupt.is_asked() {
        return Ok(());
    }
    let start_ns = bench.elapsed_ns();
    bench.progress.show("starting nodes");
    let listen = peer::free_address()?;
    let led = Led::start(bench, "leader", SEGMENT_BYTES, std::slice::from_ref(&listen))?;
    let outcome = repeat(bench, lacked, &led, &listen);
    let closed = led.close();
    let (took, both) = outcome?;
    closed?;
    if took.is_empty() {
        return Ok(());
    }
    let mut response = histogram();
    took.iter().for_each(|took| record(&mut response, *took));
    let nanoseconds: Vec<f64> = took.iter().map(|took| took.as_nanos() as f64).collect();
    let mut run = Run {
        name: lacked.name.to_owned(),
        description: lacked.description.clone(),
        clients: 1,
        // Nothing is appended meanwhile.
        in_flight: 0,
        followers: 1,
        record_bytes: lacked.record_bytes as u64,
        records: lacked.records,
        start_ns,
        duration_ns: median(&nanoseconds) as u64,
        interrupted: bench.interrupt.is_asked(),
        ..Run::default()
    };
    if !both.is_empty() {
        let bytes = (lacked.records * lacked.record_bytes as u64) as f64;
        let rate = bytes * 1e9 / median(&nanoseconds).max(1.0);
        let both = median(&both);
        run.extra.insert("read_and_write_bytes_per_second".to_owned(), both);
        run.extra.insert("ratio_to_read_and_write".to_owned(), rate / both.max(1.0));
    }
    let (run, histograms) = RunBuilder::new(run, response).finish();
    bench.results.push((run, histograms));
    Ok(())
}

/// How long each time took, and bytes per second of reading and writing at once beside it.
fn repeat(
    bench: &mut Bench,
    lacked: &Lacked,
    led: &Led,
    listen: &str,
) -> Result<(Vec<Duration>, Vec<f64>)> {
    let Lacked { first, streams, record_bytes, records, together, .. } = *lacked;
    led.write(bench, first, streams, record_bytes, records, together)?;
    let directory = bench.data.side("follower");
    let (mut took, mut both) = (Vec::new(), Vec::new());
    for _ in 0..REPETITIONS {
        directory.clear()?;
        bench.progress.show(lacked.name);
        let part = peer::Part::Follower {
            node: 2,
            members: 2,
            listen: listen.to_owned(),
            await_records: Some(records),
        };
        let (settings, interrupt) = (&bench.settings, &bench.interrupt);
        let mut peer = Peer::start(settings, interrupt, directory.path(), SEGMENT_BYTES, &part)?;
        let Some(line) = peer.line(PATIENCE)? else { break };
        let nanoseconds: u64 = line.parse().context("what a follower says")?;
        took.push(Duration::from_nanos(nanoseconds));
        drop(peer);
        // Small records are not about bytes.
        if streams == 1 {
            let bytes = records * record_bytes as u64;
            both.push(read_and_write(led.directory(), directory.path(), bytes)?);
        }
        bench.probe_slice()?;
    }
    directory.clear()?;
    Ok((took, both))
}

/// Reads so many bytes of one engine's segments while as many are written over the segments of
/// another, which does not run; bytes per second of each.
fn read_and_write(from: &Path, to: &Path, bytes: u64) -> Result<f64> {
    let (sources, targets) = (segments(from)?, segments(to)?);
    let start = Instant::now();
    thread::scope(|scope| {
        let writing = scope.spawn(|| write_all(&targets, bytes));
        let reading = read_all(&sources, bytes).context("reading segments beside a catch-up");
        let writing = writing.join().expect("no panic");
        reading.and(writing.context("writing over segments beside a catch-up"))
    })?;
    Ok(bytes as f64 / start.elapsed().as_secs_f64().max(1e-9))
}

fn read_all(files: &[PathBuf], bytes: u64) -> Result<()> {
    let mut buffer = AlignedBuffer::filled(BLOCK_BYTES, 1);
    for_each_block(files, bytes, false, |file, offset| {
        rustix::io::pread(file, buffer.bytes_mut(), offset).map(drop).map_err(Into::into)
    })
}

fn write_all(files: &[PathBuf], bytes: u64) -> Result<()> {
    let buffer = AlignedBuffer::filled(BLOCK_BYTES, 2);
    for_each_block(files, bytes, true, |file, offset| {
        write_at(file, buffer.bytes(), offset, false).map_err(Into::into)
    })
}

/// Whole blocks of the files, one after the other and round again; those that are written are made
/// durable when the next file begins.
fn for_each_block(
    files: &[PathBuf],
    bytes: u64,
    writes: bool,
    mut block: impl FnMut(&File, u64) -> Result<()>,
) -> Result<()> {
    let mut left = bytes.div_ceil(BLOCK_BYTES as u64);
    while left > 0 {
        for path in files {
            let file = open(path, writes)?;
            let blocks = (file.metadata()?.len() / BLOCK_BYTES as u64).min(left);
            for index in 0..blocks {
                block(&file, index * BLOCK_BYTES as u64)?;
            }
            left -= blocks;
            if writes {
                rustix::fs::fdatasync(&file)?;
            }
        }
    }
    Ok(())
}

/// Around the page cache, where the file system does that.
fn open(path: &Path, writes: bool) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(!writes).write(writes);
    let direct = options.clone().custom_flags(OFlags::DIRECT.bits() as i32).open(path);
    direct.or_else(|_| options.open(path)).with_context(|| format!("opening {}", path.display()))
}

/// The segments of an engine, by name: the oldest of a shard first.
fn segments(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).context("looking for segments")? {
            let path = entry?.path();
            let metadata = std::fs::symlink_metadata(&path)?;
            if metadata.is_dir() {
                directories.push(path);
            } else if metadata.len() >= BLOCK_BYTES as u64 {
                files.push(path);
            }
        }
    }
    files.sort();
    anyhow::ensure!(!files.is_empty(), "no segments in {}", directory.display());
    Ok(files)
}
