//! Judging one state of a disk: it is mounted from memory, the engine opens it, and what it brings
//! back is checked, also after more appends and another open.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use ringwal_engine::{Append, Engine, StreamId};

use super::history::{Asked, Found, History};
use super::image::Image;
use super::load::STREAMS;
use super::payload::payload;
use super::role::{mount_options, options};
use super::system::{Loop, Mount, Private, memory_file};
use crate::random::Random;

/// The engine's directory on the disk.
pub const DIRECTORY: &str = "data";
/// The life that appends after a crash, to see that there is progress.
const LIFE_AFTER: u32 = 1 << 20;
const RECEIPT_LIMIT: Duration = Duration::from_secs(30);

/// A loop device over memory, used for one state after another.
#[derive(Debug)]
pub struct StateDisk {
    memory: File,
    device: Loop,
    place: PathBuf,
    kind: String,
}

/// A state, and all that is known about it.
#[derive(Debug)]
pub struct State<'a> {
    /// What the run's payloads come from.
    pub seed: u64,
    /// What was acknowledged by then.
    pub history: &'a History,
    /// What was ever asked for.
    pub asked: &'a Asked,
    /// Of the engine.
    pub shards: u16,
    /// One of [`super::role::BACKENDS`].
    pub backend: usize,
}

impl StateDisk {
    /// For images of so many bytes.
    ///
    /// # Errors
    /// Without loop devices.
    pub fn new(private: &Private, kind: &str, name: &str, bytes: usize) -> Result<StateDisk> {
        let memory = memory_file(bytes as u64)?;
        let device = Loop::attach(&memory)?;
        let place = private.directory(name)?;
        Ok(StateDisk { memory, device, place, kind: kind.to_owned() })
    }

    /// Whether the promise holds in this state.
    ///
    /// # Errors
    /// Says what does not.
    pub fn check(&self, image: &Image, state: &State<'_>, random: &mut Random) -> Result<()> {
        image.store(&self.memory)?;
        let options = mount_options(&self.kind);
        let mount = Mount::new(&self.kind, self.device.path(), &self.place, options)?;
        let outcome = check_directory(&mount.path().join(DIRECTORY), state, random);
        let unmounted = mount.unmount();
        self.device.forget_cache()?;
        outcome?;
        unmounted
    }
}

/// Whether the promise holds for a directory.
///
/// # Errors
/// Says what does not.
pub fn check_directory(directory: &Path, state: &State<'_>, random: &mut Random) -> Result<()> {
    let options = options(state.shards, state.backend);
    let (seed, asked) = (state.seed, state.asked);
    let mut looked = None;
    // Until the first open has returned, there may be nothing yet to be looked at.
    if random.chance(100) && state.history.has_begun() {
        let engine = options.clone().read_only(true).open(directory);
        let engine = engine.context("the first open, read-only")?;
        looked = Some(state.history.check(&engine, seed, asked).context("read-only open")?);
        engine.close()?;
    }
    let engine = options.open(directory).context("the first open")?;
    let found = state.history.check(&engine, seed, asked).context("first open")?;
    if let Some(looked) = looked {
        same(&looked, &found).context("read-only and then for writing")?;
    }

    let mut history = state.history.clone();
    for (stream, (trimmed, end)) in &found {
        history.begin(*stream, LIFE_AFTER, *trimmed, *end);
    }
    let expected = append_after(&engine, seed, &found, &mut history, random)?;
    if random.chance(700) {
        engine.close().context("closing after a crash")?;
    } else {
        drop(engine);
    }
    let again = options.open(directory).context("the second open")?;
    let found = history.check(&again, seed, asked).context("second open")?;
    same(&expected, &found).context("first and second open")?;
    again.close().context("closing the second time")?;
    Ok(())
}

/// There is progress: some records get their receipts.
fn append_after(
    engine: &Engine,
    seed: u64,
    found: &Found,
    history: &mut History,
    random: &mut Random,
) -> Result<Found> {
    let mut expected = found.clone();
    let stream = STREAMS.start + random.below(STREAMS.end - STREAMS.start);
    let (_, end) = expected.get_mut(&stream).context("all streams were looked at")?;
    let count = random.below(4);
    let mut tokens = Vec::new();
    for offset in *end..*end + count {
        let record = payload(seed, LIFE_AFTER, stream, offset);
        tokens.push(engine.stream(StreamId::new(stream)).append(record)?);
    }
    for token in tokens {
        let receipt = receipt_within(token, RECEIPT_LIMIT)?;
        ensure!(receipt == *end, "a receipt for {receipt}, {end} expected");
        *end += 1;
    }
    history.acknowledge(stream, *end);
    Ok(expected)
}

fn receipt_within(token: Append, limit: Duration) -> Result<u64> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(receipt) = token.try_receipt() {
            return Ok(receipt.context("no receipt after a crash")?.offset());
        }
        if Instant::now() > deadline {
            bail!("no receipt within {limit:?}");
        }
        std::thread::sleep(Duration::from_micros(20));
    }
}

fn same(first: &Found, second: &Found) -> Result<()> {
    ensure!(first == second, "{first:?} and {second:?} (stream: trimmed, end)");
    Ok(())
}
