//! A clone of a directory goes its own way: the same engine, generations, sequences and places,
//! with other records in them. Then one segment file of the clone stands in its twin, as after a
//! restore from the wrong backup. What opens must be one history, or the mixture is named.
//!
//! Every checksum is right here, so that only the chain of batches can tell, and the checkpoints,
//! which name the last batch of every segment that counts.

use std::collections::BTreeMap;

use ringwal_engine::disk::sim::{SimDisk, SimHandle};
use ringwal_engine::{Clock, OpenError, Shard};

use super::corruption::is_covered;
use super::driver::World;
use super::events::Event;
use super::journal::{Segment, describe, segments};
use super::seeds::Outcome;
use super::setup::Setup;
use crate::random::Random;

/// Record numbers that the clone leaves out, so that none of its own is one of its twin's.
const NUMBERS_SKIPPED: usize = 50_000;

/// Epoch and number of each record, by stream and offset.
type Shown = BTreeMap<(usize, u64), (u64, u64)>;

/// One pair of twins and one file that changes its place.
pub fn run(seed: u64) -> Outcome {
    let mut random = Random::new(seed);
    let base = Setup::new(seed, &mut random);
    let setup = Setup { wild: false, faulty: false, record_bytes: 900, ..base };
    let mut twin = World::with(seed, setup, random);
    twin.lives(seed / 20 % 3);
    let mut clone = twin.fork();
    clone.reference.skip_numbers(NUMBERS_SKIPPED);
    for life in 0..=seed / 60 % 2 {
        for world in [&mut twin, &mut clone] {
            live(world, seed ^ life);
        }
    }
    let length = twin.setup.segment_bytes;
    let (mine, theirs) = (segments(&twin.sim, length), segments(&clone.sim, length));
    for segment in &mine {
        let other = theirs.iter().find(|other| other.name == segment.name);
        let other = other.filter(|other| other.generation == segment.generation);
        if let Some(first) = other.and_then(|other| first_difference(segment, other)) {
            transplant(&mut twin, &clone, &segment.name, first);
        }
    }
    twin.into_outcome()
}

/// Both twins do the same, from the same random numbers, with other bytes.
fn live(world: &mut World, seed: u64) {
    world.open();
    world.never_die();
    let mut random = Random::new(seed);
    for _ in 0..random.within(30..=150) {
        world.act_if_healthy();
        world.append();
    }
    assert!(world.drain());
    world.idle_until_sealed();
    world.end();
}

/// Puts one file of the clone into a copy of its twin; from batch `first` on it is another.
fn transplant(twin: &mut World, clone: &World, name: &str, first: u64) {
    let length = twin.setup.segment_bytes;
    let sim = twin.sim.fork();
    sim.put(name, &clone.sim.bytes(name).expect("the clone has it"));
    twin.counts.note(Event::Clones);
    super::trace::tell(|| describe(&twin.sim, length));
    let told = format!("{name} of the clone, which is another from batch {first} on");
    super::trace::tell(|| told.clone());
    let found = segments(&sim, length);
    let outcome = match open(&sim, twin) {
        Err(OpenError::Corrupt(corruption)) => {
            assert!(!corruption.damages.is_empty(), "{told}");
            Event::ClonesRefused
        }
        Err(error) => panic!("{error}: {told}"),
        Ok(shard) => {
            let shown = shown(twin, &shard);
            let (own, other) = (acknowledged(twin), acknowledged(clone));
            let one_history = shown == own || shown == other;
            assert!(
                one_history || is_excepted(&found, &shard, &shown, [&own, &other]),
                "two histories are mixed: {told}: {:?}",
                shard.recovery()
            );
            shard.abandon();
            if one_history { Event::ClonesWhole } else { Event::ClonesExcepted }
        }
    };
    twin.counts.note(outcome);
}

/// Sequence of the first batch that is not the same in both.
fn first_difference(mine: &Segment, theirs: &Segment) -> Option<u64> {
    let mut pairs = mine.batches.iter().zip(&theirs.batches);
    pairs.find(|(mine, theirs)| mine.crc != theirs.crc).map(|(mine, _)| mine.sequence)
}

/// One history without its newest batches, which nothing that is there declares durable: that
/// looks like a torn tail, whoever's they are.
fn is_excepted(found: &[Segment], shard: &Shard, shown: &Shown, histories: [&Shown; 2]) -> bool {
    let is_part = |all: &Shown| shown.iter().all(|(place, record)| all.get(place) == Some(record));
    histories.into_iter().any(is_part)
        && shard.recovery().torn.is_some()
        && !is_covered(found, shard.recovery().end.sequence + 1)
}

fn open(sim: &SimHandle, world: &World) -> Result<Shard, OpenError> {
    let options = world.setup.options(&mut Random::new(1));
    let disk = Box::new(SimDisk::new(sim.clone()));
    let clock = Clock::Manual(sim.clock());
    options.open_on(disk, world.setup.engine_id, world.setup.segment_bytes, clock)
}

fn shown(world: &World, shard: &Shard) -> Shown {
    let mut shown = Shown::new();
    for (stream, id) in world.reference.ids.iter().enumerate() {
        for record in shard.read(*id, ..).expect("from its start it can be read") {
            let record = record.expect("every checksum is right");
            let number = record.payload().first_chunk().map_or(0, |id| u64::from_le_bytes(*id));
            shown.insert((stream, record.offset()), (record.epoch(), number));
        }
    }
    shown
}

fn acknowledged(world: &World) -> Shown {
    let mut all = Shown::new();
    for (stream, facts) in world.reference.streams.iter().enumerate() {
        for (offset, written) in &facts.records {
            let number = if world.reference.length(written.id) < 8 { 0 } else { written.id };
            all.insert((stream, *offset), (written.epoch, number));
        }
    }
    all
}
