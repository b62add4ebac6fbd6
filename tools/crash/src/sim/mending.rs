//! What reading has named as damaged is put back from what another engine has, through power cuts and
//! kills: in the end every record is there and right, also in the next life, and no life in between
//! has lost one that could be read.

use std::time::Duration;

use ringwal_engine::disk::sim::SimDisk;
use ringwal_engine::format::{FrameHeader, FrameKind};
use ringwal_engine::{
    AppendError, Clock, DamagedFrame, EpochTable, MendError, Salvaged, Shard, StreamId,
};
use zerocopy::IntoBytes as _;

use super::driver::World;
use super::events::Event;
use crate::random::Random;

/// Turns that one life has.
const TURNS_MAX: u32 = 20_000;

/// Mends a journal at rest, of which only `missing` cannot be read.
pub fn mend(world: &mut World, missing: &[(usize, u64)], random: &mut Random) {
    world.sim.set_capacity_bytes(None);
    for _ in 0..random.below(4) {
        let at = world.sim.operations() + random.below(120);
        if random.one_in(3) {
            world.sim.kill_at(at)
        } else {
            world.sim.crash_at(at)
        }
        let is_whole = open(world).is_some_and(|mut shard| {
            let is_whole = put_back(world, &mut shard, missing).is_some();
            shard.abandon();
            is_whole
        });
        world.counts.add(Event::MendsInterrupted, u64::from(!is_whole));
        world.sim.kill();
        world.sim.kill_at(u64::MAX);
        world.sim.crash_at(u64::MAX);
        let shard = open(world).expect("nothing but the damage is wrong");
        let left = unreadable(world, &shard);
        assert!(left.iter().all(|record| missing.contains(record)), "{left:?} of {missing:?}");
        assert!(!is_whole || left.is_empty(), "{left:?} were durable again");
        shard.abandon();
    }
    let mut shard = open(world).expect("nothing but the damage is wrong");
    put_back(world, &mut shard, missing).expect("nothing ends it");
    assert_eq!(unreadable(world, &shard), []);
    if random.one_in(2) {
        shard.close().expect("a sound disk");
    } else {
        shard.abandon();
    }
    world.sim.kill();
    let shard = open(world).expect("it is mended");
    assert_eq!(unreadable(world, &shard), []);
    shard.abandon();
    world.counts.note(Event::Mends);
}

fn open(world: &World) -> Option<Shard> {
    let options = world.setup.options(&mut Random::new(1));
    let disk = Box::new(SimDisk::new(world.sim.clone()));
    let clock = Clock::Manual(world.sim.clock());
    options.open_on(disk, world.setup.engine_id, world.setup.segment_bytes, clock).ok()
}

/// Every record that is not there as it was acknowledged.
fn unreadable(world: &World, shard: &Shard) -> Vec<(usize, u64)> {
    let streams = world.reference.streams.iter().enumerate();
    let records =
        streams.flat_map(|(stream, facts)| facts.records.keys().map(move |o| (stream, *o)));
    let is_there = |(stream, offset): &(usize, u64)| {
        matches!(world.reference.read_one(shard, *stream, *offset), Ok(true))
    };
    records.filter(|record| !is_there(record)).collect()
}

/// Empties the segments of what cannot be read. `None` when the machine went down.
fn put_back(world: &World, shard: &mut Shard, missing: &[(usize, u64)]) -> Option<()> {
    let mut turns = 0;
    for (stream, offset) in missing {
        if matches!(world.reference.read_one(shard, *stream, *offset), Ok(true)) {
            continue;
        }
        let parts = shard.salvage(world.reference.ids[*stream], *offset).ok()?;
        let mut tokens = Vec::new();
        for part in parts.collect::<Vec<_>>() {
            let frames = match part {
                Salvaged::Sound(frame) => vec![(frame.stream, frame.bytes.to_vec())],
                Salvaged::Damaged(part) => elsewhere(world, shard, &part),
            };
            for (stream, frame) in frames {
                loop {
                    match shard.mend(stream, &frame) {
                        Ok(token) => break tokens.push(token),
                        Err(MendError::Append(AppendError::Full { .. })) => {
                            turn(shard, &mut turns)?;
                        }
                        Err(MendError::Append(AppendError::Poisoned(_))) => return None,
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        }
        while tokens.iter().any(|token| token.try_receipt().is_none()) {
            turn(shard, &mut turns)?;
        }
        for token in tokens {
            token.wait().ok()?;
        }
    }
    Some(())
}

fn turn(shard: &mut Shard, turns: &mut u32) -> Option<()> {
    *turns += 1;
    assert!(*turns < TURNS_MAX, "it does not come to an end");
    shard.run_once(Some(Duration::from_millis(1))).ok().map(drop)
}

/// The same records as another engine has them: each in a frame of its own.
fn elsewhere(world: &World, shard: &Shard, part: &DamagedFrame) -> Vec<(StreamId, Vec<u8>)> {
    let Some(stream) = world.reference.ids.iter().position(|id| *id == part.stream) else {
        return Vec::new();
    };
    let epochs = EpochTable::from_entries(shard.epochs(part.stream)).expect("in order");
    let frame = |offset: u64| {
        let written = world.reference.streams[stream].records.get(&offset)?;
        let record = world.reference.bytes_of(written.id);
        let payload = [&(record.len() as u32).to_le_bytes(), &record[..]].concat();
        let (id, epoch) = (part.stream.get(), epochs.epoch_at(offset));
        let header = FrameHeader::new(FrameKind::Data, id, epoch, offset, 1, 0, &payload);
        Some((part.stream, [header.as_bytes(), &payload].concat()))
    };
    part.offsets.clone().filter_map(frame).collect()
}
