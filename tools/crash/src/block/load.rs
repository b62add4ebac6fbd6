//! The load that is recorded: threads that append, one by one and together, trim, and make
//! segments roll and be used again, until the engine is closed or the process just ends. Each
//! thread has its streams to itself, so it knows every offset before the engine says it.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use ringwal_engine::{Append, AppendBatch, AppendError, Engine, Stream, StreamId};

use super::payload::payload;
use super::role::{Setup, Voice};
use super::system::extents;
use crate::random::Random;

/// The streams of every run.
pub const STREAMS: Range<u64> = 10..16;
/// How many of them one thread has.
const STREAMS_PER_THREAD: usize = 2;
/// What a stream holds at most before it is trimmed.
const STREAM_BYTES_MAX: u64 = 500 << 10;
/// How long one append may wait for space.
const SPACE_LIMIT: Duration = Duration::from_secs(20);

/// Plays it. What it says, a line each:
///
/// - `O life stream trimmed end`: opened, and that is there; waits for an answer after the last
/// - `G life stream start count`: these will be appended together
/// - `A stream end`: acknowledged up to there
/// - `R stream before`: a trim will be asked for; `T stream before`: it is durable
/// - `S stream end`: submitted up to there, in all
/// - `E start length`: bytes of the device that belong to a segment
pub fn run(setup: &Setup, voice: &Voice) -> Result<()> {
    let engine = setup.options().open(setup.directory()).context("opening for a load")?;
    for stream in STREAMS {
        let handle = engine.stream(StreamId::new(stream));
        voice.say(&format!("O {} {stream} {} {}", setup.life, handle.trimmed(), handle.end()));
    }
    voice.say("opened");
    ensure!(voice.hear().is_some(), "the parent is gone");

    let mut random = Random::with_purpose(setup.seed, 0x10AD + u64::from(setup.life));
    let closes = random.chance(600);
    let ended = AtomicBool::new(false);
    let streams: Vec<u64> = STREAMS.collect();
    std::thread::scope(|scope| {
        let mapper = scope.spawn(|| tell_extents(&setup.directory(), voice, &ended));
        let writers: Vec<_> = streams
            .chunks(STREAMS_PER_THREAD)
            .map(|streams| {
                let (engine, seed) = (&engine, random.next());
                scope.spawn(move || write(setup, voice, engine, streams, seed, closes))
            })
            .collect();
        let outcomes: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        ended.store(true, Ordering::Relaxed);
        let _ = mapper.join();
        for outcome in outcomes {
            outcome.ok().context("a writer panicked")??;
        }
        anyhow::Ok(())
    })?;
    if closes {
        engine.close().context("closing after a load")?;
        return Ok(());
    }
    voice.say("killed");
    // As a kill: what is in flight stays so, nothing is closed.
    std::process::exit(0);
}

fn tell_extents(directory: &Path, voice: &Voice, ended: &AtomicBool) {
    let mut told = BTreeSet::new();
    loop {
        let last = ended.load(Ordering::Relaxed);
        for extent in segment_extents(directory) {
            if told.insert((extent.start, extent.end)) {
                voice.say(&format!("E {} {}", extent.start, extent.end - extent.start));
            }
        }
        if last {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Bytes of the device that segments have at this moment. A segment may go while it is looked at.
pub fn segment_extents(directory: &Path) -> Vec<Range<u64>> {
    let mut found = Vec::new();
    for folder in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        for file in std::fs::read_dir(folder.path()).into_iter().flatten().flatten() {
            if file.file_name().to_string_lossy().starts_with("segment-") {
                let extents = File::open(file.path()).and_then(|file| extents(&file));
                found.extend(extents.into_iter().flatten());
            }
        }
    }
    found
}

enum Token {
    One(Append),
    Group(AppendBatch),
}

struct Writer<'a> {
    setup: &'a Setup,
    voice: &'a Voice,
    stream: Stream,
    next: u64,
    /// Bytes from the first record that is not trimmed to each record's end.
    sizes: Vec<(u64, u64)>,
}

fn write(
    setup: &Setup,
    voice: &Voice,
    engine: &Engine,
    streams: &[u64],
    seed: u64,
    waits: bool,
) -> Result<()> {
    let mut random = Random::with_purpose(seed, 1);
    let mut writers: Vec<_> = streams
        .iter()
        .map(|stream| Writer::new(setup, voice, engine.stream(StreamId::new(*stream))))
        .collect();
    let bursts = 4 + random.below(40);
    for burst in 0..bursts {
        let writer = &mut writers[random.below(streams.len() as u64) as usize];
        let tokens = writer.burst(&mut random)?;
        if burst + 1 == bursts && !waits {
            break;
        }
        writer.wait(tokens)?;
        if random.chance(100) {
            std::thread::sleep(Duration::from_millis(random.below(12)));
        }
        writer.trim(&mut random)?;
    }
    for writer in &writers {
        voice.say(&format!("S {} {}", writer.stream.id().get(), writer.next));
    }
    Ok(())
}

impl<'a> Writer<'a> {
    fn new(setup: &'a Setup, voice: &'a Voice, stream: Stream) -> Writer<'a> {
        Writer { setup, voice, next: stream.end(), stream, sizes: Vec::new() }
    }

    fn id(&self) -> u64 {
        self.stream.id().get()
    }

    fn record(&mut self, offset: u64) -> Vec<u8> {
        let record = payload(self.setup.seed, self.setup.life, self.id(), offset);
        self.sizes.push((offset, record.len() as u64));
        record
    }

    fn burst(&mut self, random: &mut Random) -> Result<Vec<(u64, Token)>> {
        let mut tokens = Vec::new();
        for _ in 0..1 + random.below(24) {
            let count = if random.chance(200) { 2 + random.below(6) } else { 1 };
            let records: Vec<_> = (0..count).map(|at| self.record(self.next + at)).collect();
            let bytes: usize = records.iter().map(Vec::len).sum();
            if count > 1 && bytes < 200 << 10 {
                let life = self.setup.life;
                self.voice.say(&format!("G {life} {} {} {count}", self.id(), self.next));
                let token = self.when_space(|stream| stream.append_batch(&records))?;
                self.next += count;
                tokens.push((self.next, Token::Group(token)));
            } else {
                for record in records {
                    let token = self.when_space(|stream| stream.append(&record))?;
                    self.next += 1;
                    tokens.push((self.next, Token::One(token)));
                }
            }
            if self.setup.early {
                self.voice.say(&format!("A {} {}", self.id(), self.next));
            }
        }
        Ok(tokens)
    }

    /// A full disk gets room by trimming everything of this stream.
    fn when_space<T>(&mut self, append: impl Fn(&Stream) -> Result<T, AppendError>) -> Result<T> {
        let deadline = Instant::now() + SPACE_LIMIT;
        loop {
            match append(&self.stream) {
                Ok(token) => return Ok(token),
                Err(AppendError::NoSpace { .. }) if Instant::now() < deadline => {
                    self.trim_to(self.stream.end())?;
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => bail!("appending: {error}"),
            }
        }
    }

    /// Says what is acknowledged as soon as it is.
    fn wait(&mut self, tokens: Vec<(u64, Token)>) -> Result<()> {
        let mut tokens = tokens.into_iter().peekable();
        while let Some((end, token)) = tokens.next() {
            let received = match token {
                Token::One(token) => token.wait()?.offset() + 1,
                Token::Group(token) => token.wait()?.offsets().end,
            };
            ensure!(received == end, "a receipt up to {received}, {end} expected");
            let more = tokens.peek().is_some_and(|(_, token)| match token {
                Token::One(token) => token.try_receipt().is_some(),
                Token::Group(token) => token.try_receipt().is_some(),
            });
            if !more {
                self.voice.say(&format!("A {} {end}", self.id()));
            }
        }
        Ok(())
    }

    fn trim(&mut self, random: &mut Random) -> Result<()> {
        let held: u64 = self.sizes.iter().map(|(_, bytes)| bytes).sum();
        if held > STREAM_BYTES_MAX {
            let least = self.stream.end() - self.stream.end().min(3 + random.below(8));
            return self.trim_to(least);
        }
        if random.chance(80) {
            let (trimmed, end) = (self.stream.trimmed(), self.stream.end());
            return self.trim_to(trimmed + random.below(end - trimmed + 1));
        }
        Ok(())
    }

    fn trim_to(&mut self, before: u64) -> Result<()> {
        if before <= self.stream.trimmed() {
            return Ok(());
        }
        self.voice.say(&format!("R {} {before}", self.id()));
        self.stream.trim(before)?;
        self.voice.say(&format!("T {} {before}", self.id()));
        self.sizes.retain(|(offset, _)| *offset >= before);
        Ok(())
    }
}
