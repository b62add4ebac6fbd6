//! Rot, lost and misdirected writes: what was acknowledged comes back right, or is named as
//! damaged. The one exception is the newest batches, which nothing that is still valid declares
//! durable: to lose them looks like a torn tail. Those losses are counted, and nothing else is.

use ringwal_engine::disk::sim::{Fault, Kind, SimDisk, SimHandle};
use ringwal_engine::{Clock, OpenError, ReadError, Shard};

use super::driver::World;
use super::events::Event;
use super::journal::{Segment, describe, segments};
use super::mending;
use super::seeds::Outcome;
use super::setup::Setup;
use super::trace;
use crate::random::Random;

const BLOCK: u64 = 4096;

/// What became of a damage.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Verdict {
    /// Everything was there and right.
    Harmless,
    /// Opening named it.
    Refused,
    /// Opening went on, and reading named it.
    Read,
    /// Records are silently gone, as the exception allows.
    Excepted,
}

/// Where it was damaged.
#[derive(Clone, Debug)]
struct Damaged {
    file: String,
    offset: u64,
    /// Byte at which the batch starts that was hit, its sequence and its length.
    batch: Option<(u64, u64, u64)>,
    /// Stream, epoch, first offset and offset behind the last of each data frame in it.
    frames: Vec<(u64, u64, u64, u64)>,
    /// Something that is still valid says that this batch was durable.
    covered: bool,
}

/// Rot in a journal at rest.
pub fn rot(seed: u64) -> Outcome {
    let mut world = lived(seed);
    world.drain();
    world.end();
    let mut random = Random::new(seed ^ 0xdead);
    trace::tell(|| describe(&world.sim, world.setup.segment_bytes));
    let damaged = flip(&world, &mut random);
    trace::tell(|| format!("{damaged:?}"));
    world.counts.note(Event::Rots);
    let event = match judge(&mut world, Some(&damaged)) {
        Verdict::Harmless => Event::RotsHarmless,
        Verdict::Refused => Event::RotsRefused,
        Verdict::Read => Event::RotsRead,
        Verdict::Excepted => Event::RotsExcepted,
    };
    world.counts.note(event);
    if event == Event::RotsRead {
        let (missing, _) = look(&world, false, Some(&damaged));
        mending::mend(&mut world, &missing, &mut random);
    }
    world.into_outcome()
}

/// A write that the device lost, or put in another place, and acknowledged all the same; what
/// comes after it declares it durable.
pub fn astray(seed: u64) -> Outcome {
    let mut world = lived(seed);
    let mut random = Random::new(seed ^ 0xbeef);
    world.drain();
    let blocks = world.setup.segment_bytes / BLOCK;
    let fault = match random.below(2) {
        0 => Fault::Lost,
        _ => Fault::Misdirected(random.below(blocks) * BLOCK),
    };
    world.sim.fault_next(Kind::Write, fault);
    for _ in 0..random.within(4..=60) {
        world.append();
        assert!(world.drain());
    }
    // The last batches say of those before them that they were durable.
    world.idle_until_sealed();
    world.end();
    let event = match judge(&mut world, None) {
        Verdict::Harmless => Event::AstrayHarmless,
        Verdict::Refused => Event::AstrayRefused,
        Verdict::Read => Event::AstrayRead,
        Verdict::Excepted => panic!("what went astray is never excepted"),
    };
    world.counts.note(event);
    world.into_outcome()
}

/// A world without faults, with a few lives behind it, open.
fn lived(seed: u64) -> World {
    let mut random = Random::new(seed);
    let setup = Setup { wild: false, faulty: false, ..Setup::new(seed, &mut random) };
    let mut world = World::with(seed, setup, random);
    world.lives(1 + seed % 4);
    world.open();
    world.never_die();
    for _ in 0..40 {
        world.append();
        world.turn();
    }
    world
}

/// Turns one or more bits of one block over.
fn flip(world: &World, random: &mut Random) -> Damaged {
    let before = segments(&world.sim, world.setup.segment_bytes);
    let used: Vec<&Segment> = before.iter().filter(|s| !s.batches.is_empty()).collect();
    let (file, offset) = if used.is_empty() || random.chance(50) {
        let files = world.sim.list();
        let entry = &files[random.below(files.len() as u64) as usize];
        (entry.name.clone(), random.below(entry.length))
    } else {
        let segment = used[random.below(used.len() as u64) as usize];
        let last = segment.batches.last().expect("it has one");
        let offset = match random.below(10) {
            // Headers, and the index and footer.
            0 => random.below(2 * BLOCK),
            1 => world.setup.segment_bytes - 1 - random.below(4 * BLOCK),
            // The newest batches.
            2 | 3 => last.offset + random.below(last.length),
            _ => 2 * BLOCK + random.below(last.offset + last.length - 2 * BLOCK),
        };
        (segment.name.clone(), offset)
    };
    world.sim.flip(&file, offset, random.below(8) as u32);
    for _ in 0..random.pick(&[0, 0, 1, 40]) {
        let other = offset / BLOCK * BLOCK + random.below(BLOCK);
        world.sim.flip(&file, other, random.below(8) as u32);
    }
    let after = segments(&world.sim, world.setup.segment_bytes);
    let hit = before.iter().find(|segment| segment.name == file).and_then(|segment| {
        segment.batches.iter().find(|b| b.offset <= offset && offset < b.offset + b.length)
    });
    let covered = hit.is_some_and(|batch| is_covered(&after, batch.sequence));
    let frames = hit.map_or_else(Vec::new, |batch| batch.frames.clone());
    let batch = hit.map(|batch| (batch.offset, batch.sequence, batch.length));
    Damaged { file, offset, batch, frames, covered }
}

/// Whether a batch behind `sequence`, a footer or the start of an incarnation that is still valid
/// says that it was durable.
pub fn is_covered(segments: &[Segment], sequence: u64) -> bool {
    segments.iter().any(|segment| {
        let by_batch = segment
            .batches
            .iter()
            .any(|batch| batch.sequence > sequence && batch.durable_sequence >= sequence);
        let by_footer =
            segment.footer.is_some_and(|(first, last, _)| first <= sequence && sequence <= last);
        let by_open = segment.predecessor.is_some_and(|(_, _, end)| end >= sequence);
        by_batch || by_footer || by_open
    })
}

fn judge(world: &mut World, damaged: Option<&Damaged>) -> Verdict {
    let (missing, named) = look(world, true, damaged);
    let records: usize = world.reference.streams.iter().map(|facts| facts.records.len()).sum();
    world.counts.add(Event::Readable, (records - missing.len()) as u64);
    world.counts.add(Event::Unreadable, missing.len() as u64);
    check_rest(world, damaged, &missing);
    let looked = open(&world.sim, world, false);
    let shard = match looked {
        Ok(shard) => shard,
        Err(OpenError::Corrupt(corruption)) => {
            for damage in &corruption.damages {
                assert!(!damage.file.is_empty() && !damage.what.is_empty(), "{damage:?}");
            }
            check_named(&corruption.damages, damaged);
            return Verdict::Refused;
        }
        Err(error) => panic!("{damaged:?}: {error}"),
    };
    assert!(missing.is_empty() || named || is_excepted(damaged), "{damaged:?} {missing:?}");
    trace::tell(|| format!("it opens: {:?}", shard.recovery()));
    shard.abandon();
    trace::tell(|| describe(&world.sim, world.setup.segment_bytes));
    let (missing, named) = look(world, false, damaged);
    if missing.is_empty() {
        return Verdict::Harmless;
    }
    if named {
        return Verdict::Read;
    }
    assert!(is_excepted(damaged), "silently lost: {missing:?} after {damaged:?}");
    Verdict::Excepted
}

/// Rot in a batch that is known to have been durable takes no record of another batch with it.
fn check_rest(world: &World, damaged: Option<&Damaged>, missing: &[(usize, u64)]) {
    let Some(damaged) = damaged.filter(|damaged| damaged.covered) else { return };
    for (stream, offset) in missing {
        let id = world.reference.ids[*stream].get();
        let is_hit = |frame: &&(u64, u64, u64, u64)| {
            frame.0 == id && frame.2 <= *offset && *offset < frame.3
        };
        let hit = damaged.frames.iter().find(is_hit);
        assert!(
            hit.is_some(),
            "offset {offset} of stream {id} is gone too: {damaged:?}\n{}",
            describe(&world.sim, world.setup.segment_bytes)
        );
    }
}

/// The exception: a batch that nothing valid behind it declares durable.
fn is_excepted(damaged: Option<&Damaged>) -> bool {
    damaged.is_some_and(|damaged| damaged.batch.is_some() && !damaged.covered)
}

/// Rot in a batch is named by its file, and by bytes that touch it.
fn check_named(damages: &[ringwal_engine::Damage], damaged: Option<&Damaged>) {
    let Some(damaged) = damaged else { return };
    let Some((start, _, length)) = damaged.batch else { return };
    let touches = damages.iter().any(|damage| {
        damage.file == damaged.file
            && damage.bytes.start < start + length
            && damaged.offset / BLOCK * BLOCK < damage.bytes.end.max(start + 1)
            || damage.bytes.is_empty() && damage.file == damaged.file
    });
    assert!(touches, "{damages:?} do not name {damaged:?}");
}

fn open(sim: &SimHandle, world: &World, read_only: bool) -> Result<Shard, OpenError> {
    let mut random = Random::new(1);
    let options = world.setup.options(&mut random).read_only(read_only);
    let disk = Box::new(SimDisk::new(sim.clone()));
    let clock = Clock::Manual(sim.clock());
    options.open_on(disk, world.setup.engine_id, world.setup.segment_bytes, clock)
}

/// Reads every acknowledged record, one by one. What is not right, and whether errors name all of
/// it.
fn look(world: &World, read_only: bool, damaged: Option<&Damaged>) -> (Vec<(usize, u64)>, bool) {
    let shard = open(&world.sim, world, read_only);
    let shard = shard.unwrap_or_else(|error| panic!("{damaged:?}: {error}"));
    let reported = !shard.recovery().damages.is_empty();
    let (mut missing, mut named) = (Vec::new(), true);
    for (stream, facts) in world.reference.streams.iter().enumerate() {
        for offset in facts.records.keys() {
            match world.reference.read_one(&shard, stream, *offset) {
                Ok(true) => {}
                Ok(false) => {
                    missing.push((stream, *offset));
                    named &= reported;
                }
                Err(ReadError::Corrupt { file, .. }) => {
                    assert!(damaged.is_none_or(|damaged| damaged.file == file));
                    missing.push((stream, *offset));
                }
                Err(ReadError::Missing { .. } | ReadError::Trimmed { .. }) => {
                    missing.push((stream, *offset));
                    named &= reported;
                }
                Err(error) => panic!("{damaged:?}: {error}"),
            }
        }
    }
    shard.abandon();
    (missing, named)
}
