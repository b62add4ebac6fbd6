//! The process that is killed: opens, writes from several threads, and says so. Every line leaves
//! in one write, so that a line that arrived is whole; what is about to be done is said before it
//! is done, and what has a receipt after the receipt came.

use std::fmt::Arguments;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ringwal_engine::{Engine, Io, Options, Stream, StreamId, SyncMode};

use super::model::payload;
use crate::random::{Random, mix};

/// Streams that each writer thread has.
pub const STREAMS_PER_THREAD: u64 = 2;
/// Writer threads.
pub const THREADS: u64 = 3;
/// Time after which a child ends itself, whatever became of its parent.
const DEADLINE: Duration = Duration::from_secs(30);
/// Length of the segments: so short that one is full every few milliseconds.
pub const SEGMENT_BYTES: u64 = 1 << 20;

/// How the child writes.
#[derive(Clone, Debug, clap::Args)]
pub struct ChildArguments {
    /// The engine's directory.
    #[arg(long)]
    pub data: PathBuf,
    /// What the records are made of.
    #[arg(long)]
    pub contents: u64,
    /// What this life's decisions come from.
    #[arg(long)]
    pub life: u64,
    /// Number of shards.
    #[arg(long)]
    pub shards: u16,
    /// uring-dsync, uring-fdatasync or blocking.
    #[arg(long)]
    pub way: String,
    /// Closes by itself after so many milliseconds.
    #[arg(long)]
    pub close_after_ms: Option<u64>,
    /// Says when segments are rolled and prepared.
    #[arg(long)]
    pub watch: bool,
    /// The parent; without it this process ends.
    #[arg(long)]
    pub parent: i32,
}

/// How engines of this test are opened.
pub fn options(way: &str) -> Options {
    let options = Engine::options().pool_bytes(4 << 20).batch_bytes_max(256 << 10);
    let options = options.segment_bytes(SEGMENT_BYTES).lock_wait(Duration::from_secs(10));
    match way {
        "blocking" => options.io(Io::Blocking),
        "uring-fdatasync" => options.io_fallback(true).sync(SyncMode::Fdatasync),
        _ => options.io_fallback(true),
    }
}

/// Streams of all threads.
pub fn streams() -> impl Iterator<Item = u64> {
    10..10 + THREADS * STREAMS_PER_THREAD
}

fn say(line: Arguments<'_>) {
    let line = format!("{line}\n");
    let mut out = std::io::stdout();
    // Nobody listens any more: the parent is gone, and so is the reason to go on.
    if out.write_all(line.as_bytes()).is_err() {
        std::process::exit(3);
    }
}

/// Runs as the child.
pub fn run_child(arguments: &ChildArguments) -> ExitCode {
    let signal = Some(rustix::process::Signal::KILL);
    let _ = rustix::process::set_parent_process_death_signal(signal);
    let parent = rustix::process::getppid().map(|parent| parent.as_raw_nonzero().get());
    if parent != Some(arguments.parent) {
        return ExitCode::from(3);
    }
    std::thread::spawn(|| {
        std::thread::sleep(DEADLINE);
        std::process::exit(4);
    });
    match write_until_killed(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("error {error}"));
            ExitCode::FAILURE
        }
    }
}

fn write_until_killed(arguments: &ChildArguments) -> Result<(), Box<dyn std::error::Error>> {
    let mut random = Random::new(arguments.life);
    // Without files kept for reuse every segment is prepared from nothing; with them, recycled.
    let free_max = if random.one_in(2) { 0 } else { 3 };
    let idle_seal = (!random.one_in(3)).then_some(Duration::from_millis(1));
    let options = options(&arguments.way).segments_free_max(free_max).idle_seal(idle_seal);
    say(format_args!("begin open"));
    let engine = options.shards(arguments.shards).open(&arguments.data)?;
    for id in streams() {
        let stream = engine.stream(StreamId::new(id));
        let epoch = stream.epochs().last().map_or(0, |entry| entry.epoch);
        say(format_args!("opened {id} {} {} {epoch}", stream.trimmed(), stream.end()));
    }
    say(format_args!("end open"));
    let stop = AtomicBool::new(false);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let first = 10 + thread * STREAMS_PER_THREAD;
            let streams: Vec<_> = (first..first + STREAMS_PER_THREAD)
                .map(|id| engine.stream(StreamId::new(id)))
                .collect();
            let random = Random::new(mix(arguments.life ^ (thread + 1)));
            let (stop, contents) = (&stop, arguments.contents);
            scope.spawn(move || {
                let mut writer = Writer { contents, random, stop };
                if let Err(error) = writer.run(&streams) {
                    say(format_args!("error {error}"));
                    std::process::exit(1);
                }
            });
        }
        if arguments.watch {
            scope.spawn(|| watch(&engine, &stop));
        }
        let close_after = arguments.close_after_ms.map(Duration::from_millis);
        while close_after.is_none_or(|after| began.elapsed() < after) {
            std::thread::sleep(Duration::from_millis(1));
        }
        stop.store(true, Ordering::Relaxed);
    });
    say(format_args!("begin close"));
    engine.close()?;
    say(format_args!("end close"));
    Ok(())
}

struct Writer<'a> {
    contents: u64,
    random: Random,
    stop: &'a AtomicBool,
}

impl Writer<'_> {
    fn run(&mut self, streams: &[Stream]) -> Result<(), Box<dyn std::error::Error>> {
        let mut state: Vec<_> = streams
            .iter()
            .map(|stream| (stream.end(), stream.epochs().last().map_or(0, |entry| entry.epoch)))
            .collect();
        while !self.stop.load(Ordering::Relaxed) {
            let at = self.random.below(streams.len() as u64) as usize;
            let (stream, (next, epoch)) = (&streams[at], &mut state[at]);
            match self.random.below(40) {
                0..3 => self.trim(stream, *next)?,
                3 => self.cut(stream, next, epoch)?,
                4..8 => self.append_together(stream, next, *epoch)?,
                _ => self.append(stream, next, *epoch)?,
            }
        }
        Ok(())
    }

    /// Several records, each with its own receipt.
    fn append(
        &mut self,
        stream: &Stream,
        next: &mut u64,
        epoch: u64,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let (id, count) = (stream.id().get(), 1 + self.random.below(16));
        say(format_args!("submit {id} {next} {}", *next + count));
        let tokens: Vec<_> = (*next..*next + count)
            .map(|offset| stream.append(payload(self.contents, id, offset, epoch)))
            .collect::<Result<_, _>>()?;
        for token in tokens {
            let receipt = token.wait()?;
            say(format_args!("receipt {id} {} {}", receipt.offset(), receipt.offset() + 1));
            *next += 1;
        }
        Ok(())
    }

    /// Several records that a crash keeps all or none of.
    fn append_together(
        &mut self,
        stream: &Stream,
        next: &mut u64,
        epoch: u64,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let (id, count) = (stream.id().get(), 2 + self.random.below(6));
        let records =
            (*next..*next + count).map(|offset| payload(self.contents, id, offset, epoch));
        say(format_args!("together {id} {next} {}", *next + count));
        let receipts = stream.append_batch(records)?.wait()?;
        let offsets = receipts.offsets();
        say(format_args!("receipt {id} {} {}", offsets.start, offsets.end));
        *next += count;
        Ok(())
    }

    /// Leaves a few records only; streams with an odd number keep more, which have to be moved.
    fn trim(&mut self, stream: &Stream, next: u64) -> Result<(), Box<dyn std::error::Error>> {
        let id = stream.id().get();
        let keep = if id.is_multiple_of(2) { 20 } else { 200 };
        let before = next.saturating_sub(self.random.below(keep));
        say(format_args!("begin trim {id} {before}"));
        stream.trim(before)?;
        say(format_args!("end trim {id} {before}"));
        Ok(())
    }

    /// A new epoch, which cuts the newest records.
    fn cut(
        &mut self,
        stream: &Stream,
        next: &mut u64,
        epoch: &mut u64,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let id = stream.id().get();
        let start = next.saturating_sub(self.random.below(4)).max(stream.trimmed());
        *epoch += 1 + self.random.below(2);
        say(format_args!("begin cut {id} {start} {epoch}"));
        stream.truncate(start, *epoch)?.wait()?;
        say(format_args!("end cut {id} {start} {epoch}"));
        *next = start;
        Ok(())
    }
}

/// Says when a segment is nearly full, and when one is missing from those that are prepared.
fn watch(engine: &Engine, stop: &AtomicBool) {
    let shards = engine.stats().shards.len();
    let mut begun_at = vec![0; shards];
    let mut rotations = vec![0; shards];
    let (mut rolling, mut preparing) = (vec![false; shards], vec![false; shards]);
    while !stop.load(Ordering::Relaxed) {
        for (at, shard) in engine.stats().shards.iter().enumerate() {
            if shard.rotations != rotations[at] {
                rotations[at] = shard.rotations;
                begun_at[at] = shard.written_bytes;
            }
            let nearly_full = shard.written_bytes - begun_at[at] > SEGMENT_BYTES * 8 / 10;
            announce("roll", &mut rolling[at], nearly_full);
            // One ahead of need, two in reserve.
            announce("prepare", &mut preparing[at], shard.segments.prepared < 3);
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn announce(phase: &str, is: &mut bool, now: bool) {
    if *is != now {
        *is = now;
        say(format_args!("{} {phase}", if now { "begin" } else { "end" }));
    }
}
