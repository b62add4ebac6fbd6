//! Somebody insists on an earlier end of a journal, as `repair --accept-data-loss-from` does. The
//! engine then shows what it showed when it ended there, or refuses and changes nothing; and what
//! was given up never comes back.

use ringwal_engine::{JournalEnd, OpenError, Shard};

use super::driver::World;
use super::events::Event;
use super::seeds::Outcome;
use super::setup::Setup;
use crate::random::Random;

/// Record numbers that are not given again, so that a record that was given up is known.
const NUMBERS_SKIPPED: usize = 50_000;

/// Lives, of which all but the first are given up, and more lives.
pub fn run(seed: u64) -> Outcome {
    let mut random = Random::new(seed);
    let setup = Setup { wild: false, faulty: false, ..Setup::new(seed, &mut random) };
    let mut world = World::with(seed, setup, random);
    world.lives(seed / 20 % 4);
    world.open();
    world.never_die();
    let (end, kept) = (world.shard().recovery().end, world.reference.fork());
    let epochs = world.epochs();
    assert!(world.drain());
    world.end();
    let lives = world.random.within(1..=4);
    world.lives(lives);
    match insist(&mut world, end) {
        Some(shard) => {
            world.never_die();
            world.counts.note(Event::InsistedTaken);
            world.closed = false;
            world.reference = kept;
            world.epochs_before = Some(epochs);
            world.reference.skip_numbers(NUMBERS_SKIPPED);
            world.adopt(shard);
            world.end();
        }
        None => world.counts.note(Event::InsistedRefused),
    }
    world.run(6);
    world.into_outcome()
}

/// Opens at that end, however often the machine goes down meanwhile; `None` when what would stay is
/// not whole, or not there.
fn insist(world: &mut World, end: JournalEnd) -> Option<Shard> {
    let options = world.setup.options(&mut world.random).accept_loss_from(0, end);
    let before = world.sim.list();
    let is_whole = match world.try_open(&options.clone().read_only(true)) {
        Ok(look) => look.recovery().damages.is_empty(),
        Err(OpenError::Option { .. }) => false,
        Err(error) => panic!("{error}"),
    };
    if !is_whole {
        assert_eq!(before, world.sim.list(), "it was refused and something has changed");
        return None;
    }
    for attempt in 0.. {
        world.never_die();
        if attempt < 3 && world.random.chance(400) {
            world.die_within(60);
        }
        world.counts.note(Event::Insisted);
        match world.try_open(&options) {
            Ok(shard) => return Some(shard),
            Err(error) => {
                let (cuts, kills) = world.note_deaths();
                assert!(cuts + kills > 0, "{error}");
                world.counts.add(Event::InsistedCrashes, cuts + kills);
            }
        }
    }
    unreachable!("the machine goes down three times at most")
}
