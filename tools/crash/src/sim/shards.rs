//! Several shards on one machine: they live side by side, and go down at the same moment. Nothing
//! that one of them holds may show in another, and each keeps its own promise.

use super::driver::World;
use super::events::{Counts, Event};
use super::seeds::Outcome;
use crate::random::Random;

/// Lives of the group.
const LIVES: u64 = 10;

/// A group of two to four.
pub fn run(seed: u64) -> Outcome {
    let mut random = Random::new(seed ^ 0x5eed);
    let count = random.within(2..=4);
    let mut worlds: Vec<World> = (0..count).map(|shard| World::new(seed << 8 | shard)).collect();
    for _ in 0..LIVES {
        for world in &mut worlds {
            world.open();
            world.never_die();
        }
        live(&mut worlds, &mut random);
        let power = random.chance(600);
        for world in &mut worlds {
            world.end_with(power);
        }
        worlds[0].counts.note(Event::ShardCrashes);
    }
    worlds[0].counts.note(Event::ShardGroups);
    let mut group = Outcome { trace: 0, counts: Counts::default() };
    for mut world in worlds {
        world.run(1);
        let outcome = world.into_outcome();
        group.trace = group.trace.rotate_left(17) ^ outcome.trace;
        group.counts.merge(&outcome.counts);
    }
    group
}

/// Each acts a little in turn; a stall is one for all of them.
fn live(worlds: &mut [World], random: &mut Random) {
    for _ in 0..random.below(60) {
        if random.chance(10) {
            worlds.iter_mut().for_each(World::stall);
        }
        for world in &mut *worlds {
            world.act_if_healthy();
        }
    }
}
