//! One seeded run: a device, one shard after another on it, and everything that can happen to
//! them. Every answer of the shard is compared with the [`Reference`].

use std::collections::BTreeMap;
use std::time::Duration;

use ringwal_engine::disk::sim::{Fault, Kind, SimDisk, SimHandle};
use ringwal_engine::disk::{BLOCK_BYTES, Disk, Pool};
use ringwal_engine::format::{FrameHeader, FrameKind, SegmentHeader};
use ringwal_engine::{AppendError, Clock, EpochStart, OpenError, Options, Shard};
use zerocopy::IntoBytes;

use super::events::{Counts, Event};
use super::reference::{Carries, Command, Reference, Token};
use super::seeds::Outcome;
use super::setup::Setup;
use super::trace;
use crate::random::Random;

/// The time that one turn of the loop may wait.
const TURN: Duration = Duration::from_millis(2);
const STALL: Duration = Duration::from_secs(10);
/// More records than one run appends to a stream.
const FAR: u64 = 1 << 20;
/// Turns in which a healthy shard does everything that was asked for.
const TURNS_MAX: usize = 20_000;

/// A device and the shard on it.
pub struct World {
    pub setup: Setup,
    pub random: Random,
    pub sim: SimHandle,
    pub reference: Reference,
    pub counts: Counts,
    shard: Option<Shard>,
    pool: Option<Pool>,
    /// A fault was made that may still come.
    fault_armed: bool,
    /// The device's room is bounded.
    full: bool,
    poisoned: bool,
    /// The next open must say that the shard was closed.
    pub closed: bool,
    /// Power cuts and kills that were looked at.
    cuts_seen: u64,
    kills_seen: u64,
    /// How the last life, or the last try to open, ended.
    last: Death,
    /// The epochs of each stream when the last life ended, if they are certain.
    pub epochs_before: Option<Vec<Vec<EpochStart>>>,
    /// Segment files by name, with the generation that they had.
    generations: BTreeMap<String, u64>,
    /// The greatest epoch that was asked for.
    epoch_max: u64,
}

/// What the shard that comes next has behind it.
#[derive(Copy, Clone, Default)]
struct Death {
    killed: bool,
    /// The last open cut a torn tail.
    torn: bool,
    /// Crashes in a row while opening.
    while_opening: u64,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let setup = Setup::new(seed, &mut random);
        Self::with(seed, setup, random)
    }

    pub fn with(seed: u64, setup: Setup, random: Random) -> Self {
        Self {
            sim: SimHandle::with_options(setup.sim.clone()),
            reference: Reference::new(seed, setup.wild, setup.streams.clone()),
            setup,
            random,
            counts: Counts::default(),
            shard: None,
            pool: None,
            fault_armed: false,
            full: false,
            poisoned: false,
            closed: false,
            cuts_seen: 0,
            kills_seen: 0,
            last: Death::default(),
            epochs_before: None,
            generations: BTreeMap::new(),
            epoch_max: 0,
        }
    }

    /// A copy of the device and of all that is known about it; between two lives only.
    pub fn fork(&mut self) -> Self {
        assert!(self.shard.is_none(), "a shard cannot be copied");
        let sim = self.sim.fork();
        Self {
            setup: self.setup.clone(),
            random: self.random.clone(),
            reference: self.reference.fork(),
            counts: Counts::default(),
            shard: None,
            pool: None,
            fault_armed: self.fault_armed,
            full: self.full,
            poisoned: self.poisoned,
            closed: self.closed,
            cuts_seen: sim.crashes(),
            kills_seen: sim.kills(),
            last: self.last,
            epochs_before: self.epochs_before.clone(),
            generations: self.generations.clone(),
            epoch_max: self.epoch_max,
            sim,
        }
    }

    fn tell(&self, what: impl FnOnce() -> String) {
        trace::tell(|| format!("{:>8} {}", self.sim.operations(), what()));
    }

    /// Lives, each with its open and its end.
    pub fn lives(&mut self, lives: u64) {
        for _ in 0..lives {
            self.open();
            self.live();
            self.end();
        }
    }

    /// The whole run: lives, then healing.
    pub fn run(&mut self, lives: u64) {
        self.lives(lives);
        self.heal();
    }

    /// What the run was.
    pub fn into_outcome(mut self) -> Outcome {
        self.finish_counts();
        Outcome { trace: self.sim.trace_hash(), counts: self.counts }
    }

    /// Adds what the reference and the device have counted.
    fn finish_counts(&mut self) {
        let happened = self.sim.happened();
        for (event, count) in [
            (Event::Acknowledged, self.reference.acknowledged),
            (Event::Refused, self.reference.refused),
            (Event::EpochsBegun, self.reference.begun),
            (Event::OutOfOrder, happened.overtaking_writes),
            (Event::LoneWrites, happened.lone_writes),
            (Event::Stalls, happened.stalls),
            (Event::ErrorsWrite, happened.errors_write),
            (Event::ErrorsSync, happened.errors_sync),
            (Event::ErrorsSyncAll, happened.errors_sync_all),
            (Event::ErrorsRead, happened.errors_read),
            (Event::ErrorsOther, happened.errors_other),
            (Event::NoSpace, happened.no_space),
            (Event::ShortReads, happened.short_reads),
            (Event::ShortWrites, happened.short_writes),
            (Event::TornWrites, happened.torn_writes),
            (Event::ShornSectors, happened.shorn_sectors),
            (Event::NamesLost, happened.names_lost),
            (Event::LengthsLost, happened.lengths_lost),
            (Event::LostWrites, happened.lost_writes),
            (Event::MisdirectedWrites, happened.misdirected_writes),
        ] {
            self.counts.add(event, count);
        }
    }

    pub fn shard(&mut self) -> &mut Shard {
        self.shard.as_mut().expect("the shard is open")
    }

    /// The epochs of each stream.
    pub fn epochs(&self) -> Vec<Vec<EpochStart>> {
        self.reference.epochs(self.shard.as_ref().expect("the shard is open"))
    }

    // Opening.

    /// Opens, however often the machine goes down meanwhile, and checks what is there.
    pub fn open(&mut self) {
        self.tell(|| super::journal::describe(&self.sim, self.setup.segment_bytes));
        for attempt in 0.. {
            let unlucky = attempt < 5 && self.random.chance(300);
            self.never_die();
            if unlucky {
                let after = self.random.pick(&[6, 30, 60]);
                self.die_within(after);
            } else if attempt < 5 && self.setup.faulty && self.random.chance(60) {
                let at = self.sim.operations() + self.random.below(40);
                let fault = match self.random.below(2) {
                    0 => Fault::Errno(libc::EIO),
                    _ => Fault::Short(self.random.pick(&[0, 512, 4096, 8192])),
                };
                self.sim.fault_at(at, fault);
                self.fault_armed = true;
            }
            if !unlucky && !self.fault_armed && self.random.chance(100) {
                self.open_read_only();
            }
            let options = self.setup.options(&mut self.random);
            match self.try_open(&options) {
                Ok(shard) => return self.adopt(shard),
                Err(error) => self.open_failed(&error),
            }
        }
    }

    /// Opens once.
    pub fn try_open(&mut self, options: &Options) -> Result<Shard, OpenError> {
        let (id, length) = (self.setup.engine_id, self.setup.segment_bytes);
        let disk = SimDisk::new(self.sim.clone());
        self.pool = Some(disk.pool());
        options.open_on(Box::new(disk), id, length, Clock::Manual(self.sim.clock()))
    }

    fn open_failed(&mut self, error: &OpenError) {
        let (cuts, kills) = self.note_deaths();
        let crashed = cuts + kills;
        self.tell(|| format!("open failed after {cuts} power cuts, {kills} kills: {error}"));
        self.counts.add(Event::CutsWhileOpening, cuts);
        self.counts.add(Event::KillsWhileOpening, kills);
        if crashed > 0 {
            let again = u64::from(self.last.while_opening > 0);
            self.counts.add(Event::CrashesTwiceWhileOpening, again);
            self.last.while_opening += 1;
        }
        self.closed = false;
        match error {
            OpenError::Io { .. } if crashed > 0 || self.fault_armed => {}
            OpenError::NoSpace { .. } if self.fault_armed && !self.full => {}
            OpenError::NoSpace { .. } if self.full => {
                self.counts.note(Event::Full);
                self.heal_device();
            }
            other => panic!("open failed: {other}"),
        }
        self.sim.clear_faults();
        self.fault_armed = false;
    }

    /// Power cuts and kills that happened since the last look.
    pub fn note_deaths(&mut self) -> (u64, u64) {
        let cuts = self.sim.crashes() - self.cuts_seen;
        let kills = self.sim.kills() - self.kills_seen;
        self.cuts_seen += cuts;
        self.kills_seen += kills;
        self.counts.add(Event::CrashPoints, cuts + kills);
        self.counts.add(Event::PowerCuts, cuts);
        self.counts.add(Event::Kills, kills);
        (cuts, kills)
    }

    /// Counts the files that hold another life than before.
    fn note_recycled(&mut self) {
        for entry in self.sim.list() {
            let header = self.sim.head(&entry.name, BLOCK_BYTES);
            let header = header.and_then(|block| SegmentHeader::verify(&block).ok());
            let Some(header) = header else { continue };
            let generation = header.generation.get();
            let before = self.generations.insert(entry.name, generation);
            let again = before.is_some_and(|before| before < generation);
            self.counts.add(Event::Recycled, u64::from(again));
        }
    }

    /// Goes on with a shard that was opened, and checks what is there.
    pub fn adopt(&mut self, shard: Shard) {
        assert_eq!(self.note_deaths(), (0, 0), "a dead machine was opened");
        self.counts.note(Event::Opens);
        self.last.while_opening = 0;
        let report = shard.recovery();
        self.tell(|| format!("open: {report:?}"));
        self.counts.add(Event::TornTails, u64::from(report.torn.is_some()));
        self.last.torn = report.torn.is_some();
        if std::mem::take(&mut self.closed) {
            assert!(report.clean, "it was closed: {report:?}");
        }
        let shown = self.reference.show(&shard);
        let kept = self.reference.recover(&shown) as u64;
        self.counts.add(Event::Doubtful, kept);
        self.reference.forget_epochs();
        if let Some(before) = self.epochs_before.take() {
            assert_eq!(self.reference.epochs(&shard), before, "another history");
            self.counts.note(Event::Histories);
        }
        self.poisoned = false;
        self.shard = Some(shard);
    }

    /// A look without a write shows the same as the open that follows.
    fn open_read_only(&mut self) {
        self.counts.note(Event::Looks);
        let options = self.setup.options(&mut self.random).read_only(true);
        let before = self.sim.list();
        let mut look = || {
            let shard = self.try_open(&options).expect("it can be read");
            assert!(shard.recovery().damages.is_empty(), "{:?}", shard.recovery());
            self.reference.show(&shard)
        };
        let shown = look();
        assert_eq!(shown, look(), "two looks differ");
        assert_eq!(before, self.sim.list(), "a look changed something");
        self.reference.recover(&shown);
    }

    // Living.

    /// Random actions until they are done or the shard is dead.
    fn live(&mut self) {
        if self.random.chance(400) {
            let after = self.random.pick(&[20, 100, 400]);
            self.die_within(after);
        }
        if self.random.chance(200) {
            self.set_epoch();
        }
        for _ in 0..self.random.below(self.setup.actions) {
            if self.poisoned {
                break;
            }
            self.act();
        }
        if self.poisoned && !self.is_down() {
            self.look_at_poisoned();
        }
    }

    fn is_down(&self) -> bool {
        self.sim.crashes() > self.cuts_seen || self.sim.kills() > self.kills_seen
    }

    /// Goes down at one of the next operations.
    pub fn die_within(&mut self, operations: u64) {
        let at = self.sim.operations() + self.random.below(operations);
        if self.random.chance(300) {
            self.sim.kill_at(at);
        } else {
            self.sim.crash_at(at);
        }
    }

    /// Takes back a death that was planned.
    pub fn never_die(&self) {
        self.sim.crash_at(u64::MAX);
        self.sim.kill_at(u64::MAX);
    }

    /// One action, unless the shard is poisoned.
    pub fn act_if_healthy(&mut self) {
        if !self.poisoned {
            self.act();
        }
    }

    fn act(&mut self) {
        match self.random.below(1000) {
            0..330 => self.append(),
            330..450 => self.append_batch(),
            450..700 => self.turn(),
            700..780 => self.trim(),
            780..790 => self.cut(),
            790..794 => self.skip(),
            794..798 => self.set_epoch(),
            798..800 => self.give_up_epoch(),
            800..880 => self.read(),
            880..920 => drop(self.drain()),
            920..950 => self.idle(),
            950..955 => self.stall(),
            955..970 => self.check(),
            970..975 => self.begin_anew(),
            975..990 => self.append_foreign(),
            _ if self.setup.faulty => self.make_fault(),
            _ => self.turn(),
        }
    }

    /// The device stops answering: no receipt comes, and nothing is lost by it.
    pub fn stall(&mut self) {
        if self.poisoned {
            return;
        }
        self.tell(|| "a stall".into());
        let until_ns = self.sim.now_ns() + STALL.as_nanos() as u64;
        self.sim.stall(STALL);
        // What had completed before is told now.
        self.turn();
        if !self.poisoned {
            self.turn();
        }
        let acknowledged = self.reference.acknowledged;
        for _ in 0..self.random.below(8) {
            if self.poisoned {
                return;
            }
            self.append();
            if !self.poisoned {
                self.turn();
            }
            let silent = self.reference.acknowledged == acknowledged;
            assert!(silent || self.sim.now_ns() >= until_ns, "a receipt during a stall");
        }
    }

    pub fn turn(&mut self) {
        let patience = (!self.random.chance(300)).then_some(TURN);
        let result = self.shard().run_once(patience);
        self.reference.settle();
        if let Err(error) = result {
            self.tell(|| format!("{error}"));
            if !self.poisoned {
                let by_fault = u64::from(!self.is_down());
                self.counts.add(Event::Poisoned, by_fault);
            }
            assert!(self.is_down() || self.fault_armed, "poisoned without a fault: {error}");
            self.poisoned = true;
        } else {
            assert!(!self.poisoned, "poison was forgotten");
        }
    }

    fn length(&mut self) -> usize {
        let max = self.setup.payload_bytes_max() as u64;
        match self.random.below(100) {
            0..3 if !self.setup.wild => 0,
            3..5 => self.random.within(8..=max - 100) as usize,
            _ => self.random.within(8..=self.setup.record_bytes) as usize,
        }
    }

    pub fn append(&mut self) {
        let stream = self.reference.pick_stream(&mut self.random);
        if !self.setup.wild && self.reference.busy(stream).1 {
            return self.turn();
        }
        let length = self.length();
        self.append_to(stream, &[length]);
    }

    fn append_batch(&mut self) {
        let stream = self.reference.pick_stream(&mut self.random);
        if !self.setup.wild && self.reference.busy(stream).1 {
            return self.turn();
        }
        let max = self.setup.payload_bytes_max();
        let mut room = max;
        let mut lengths = Vec::new();
        for _ in 0..self.random.within(2..=20) {
            let length = self.length();
            if length + 4 > room {
                break;
            }
            room -= length + 4;
            lengths.push(length);
        }
        if !lengths.is_empty() {
            self.append_to(stream, &lengths);
        }
    }

    /// Appends records; false when they were not taken.
    pub fn append_to(&mut self, stream: usize, lengths: &[usize]) -> bool {
        let id = self.reference.ids[stream];
        let (ids, payloads) = self.reference.make_records(lengths);
        let outcome = match &payloads[..] {
            [one] => self.shard().append(id, one).map(Token::One),
            many => self.shard().append_batch(id, many).map(Token::Many),
        };
        let epoch = if self.reference.closed && !id.is_local() {
            Carries::Never
        } else {
            self.lead_again();
            Carries::AtLeast(self.reference.own_epoch())
        };
        self.begin(Command::Append { stream, ids, epoch }, outcome)
    }

    /// A node that was given an epoch leads in the greatest that there is, when it has something to
    /// append.
    fn lead_again(&mut self) {
        let own = self.reference.own_epoch();
        if own > 0 && own < self.epoch_max && !self.reference.closed {
            self.give_epoch(self.epoch_max);
        }
    }

    /// The node does not lead any more, or leads again.
    fn give_up_epoch(&mut self) {
        if !self.reference.is_settled() {
            return self.turn();
        }
        if self.reference.closed {
            return self.give_epoch(self.epoch_max + 1);
        }
        self.tell(|| "no epoch".into());
        self.counts.note(Event::EpochsClosed);
        self.shard().close_epoch();
        self.reference.closed = true;
        let outcome = self.shard().barrier().map(Token::Barrier);
        self.begin(Command::Barrier, outcome);
    }

    /// The node gets an epoch; now and then one that is no news.
    fn set_epoch(&mut self) {
        if self.reference.closed && !self.reference.is_settled() {
            return self.turn();
        }
        let known = self.reference.streams.iter().map(|facts| facts.epoch).max().unwrap_or(0);
        let epoch = (known + self.random.below(4)).saturating_sub(1);
        // Records that wait would be refused in one that is behind: where nothing races, no news.
        let is_behind = epoch > self.reference.own_epoch() && epoch < self.epoch_max;
        let epoch = if is_behind && !self.setup.wild { self.epoch_max } else { epoch };
        self.give_epoch(epoch);
    }

    fn give_epoch(&mut self, epoch: u64) {
        self.tell(|| format!("epoch {epoch}"));
        self.counts.note(Event::EpochsSet);
        self.epoch_max = self.epoch_max.max(epoch);
        self.shard().set_epoch(epoch);
        self.reference.set_epoch(epoch);
    }

    /// A frame that continues a stream, in its epoch or a later one.
    fn append_foreign(&mut self) {
        let stream = self.reference.pick_stream(&mut self.random);
        if self.reference.busy(stream) != (false, false) {
            return self.turn();
        }
        let facts = &self.reference.streams[stream];
        let (base, epoch) = (facts.end(), facts.epoch + self.random.below(3));
        self.epoch_max = self.epoch_max.max(epoch);
        let lengths = [self.length().min(900), self.length().min(900)];
        let (ids, payloads) = self.reference.make_records(&lengths);
        let payload: Vec<u8> = payloads
            .iter()
            .flat_map(|record| [&(record.len() as u32).to_le_bytes()[..], record].concat())
            .collect();
        let id = self.reference.ids[stream];
        let kind = FrameKind::Data;
        let header = FrameHeader::new(kind, id.get(), epoch, base, 2, 0, &payload);
        let frame = [header.as_bytes(), &payload].concat();
        let outcome = self.shard().append_frame(&frame).map(Token::Many);
        let epoch = Carries::Exactly(epoch);
        if self.begin(Command::Append { stream, ids, epoch }, outcome) {
            self.counts.note(Event::Foreign);
        }
    }

    fn begin(&mut self, command: Command, outcome: Result<Token, AppendError>) -> bool {
        self.tell(|| format!("{command:?} {:?}", outcome.as_ref().err()));
        match outcome {
            Ok(token) => {
                match command {
                    Command::Append { .. } | Command::Barrier => {}
                    Command::Trim { .. } => self.counts.note(Event::Trims),
                    Command::Cut { .. } => self.counts.note(Event::Cuts),
                    Command::BeginAnew { .. } => self.counts.note(Event::Anew),
                }
                self.reference.begin(command, token);
                return true;
            }
            Err(AppendError::Full { .. }) => {
                assert!(!self.reference.is_settled(), "full of nothing");
                self.turn();
            }
            Err(AppendError::NoSpace { .. }) => {
                assert!(self.full || self.fault_armed, "no space on a wide disk");
                self.counts.note(Event::Full);
                self.turn();
            }
            Err(AppendError::Poisoned(_)) => assert!(self.poisoned),
            Err(error) => panic!("{command:?}: {error}"),
        }
        false
    }

    fn trim(&mut self) {
        let stream = self.random.below(self.reference.ids.len() as u64) as usize;
        // The first stream is seldom trimmed, so that its records keep segments alive.
        let cold = stream == 0 && self.reference.ids.len() > 1 && !self.random.chance(50);
        if cold || (!self.setup.wild && self.reference.busy(stream).1) {
            return self.turn();
        }
        let facts = &self.reference.streams[stream];
        let (from, end) = (facts.trimmed, facts.end());
        let before = match self.random.below(3) {
            0 => end,
            1 => self.random.within(end - (end - from).min(5)..=end),
            _ => self.random.within(from..=end),
        };
        self.trim_to(stream, before);
    }

    pub fn trim_to(&mut self, stream: usize, before: u64) -> bool {
        let id = self.reference.ids[stream];
        let outcome = self.shard().trim(id, before).map(Token::Change);
        self.begin(Command::Trim { stream, before }, outcome)
    }

    fn skip(&mut self) {
        let stream = self.random.below(self.reference.ids.len() as u64) as usize;
        if !self.setup.wild && self.reference.busy(stream) != (false, false) {
            return self.turn();
        }
        let before = self.reference.streams[stream].end() + self.random.within(1..=20);
        let id = self.reference.ids[stream];
        let outcome = self.shard().skip_to(id, before).map(Token::Change);
        if self.begin(Command::Trim { stream, before }, outcome) {
            self.counts.note(Event::Skips);
        }
    }

    fn cut(&mut self) {
        let stream = self.random.below(self.reference.ids.len() as u64) as usize;
        if !self.setup.wild && self.reference.busy(stream) != (false, false) {
            return self.turn();
        }
        let facts = &self.reference.streams[stream];
        let (from, end, epoch) = (facts.trimmed, facts.end(), facts.epoch);
        let start = match self.random.below(3) {
            0 => end,
            1 => self.random.within(end - (end - from).min(5)..=end),
            _ => self.random.within(from..=end),
        };
        // Greater than any that may be under way: an epoch is written once.
        self.epoch_max = self.epoch_max.max(epoch) + self.random.within(1..=3);
        let start = EpochStart { epoch: self.epoch_max, start };
        let id = self.reference.ids[stream];
        let outcome = self.shard().truncate(id, start.start, start.epoch).map(Token::Change);
        self.begin(Command::Cut { stream, start }, outcome);
    }

    /// A stream goes on elsewhere and in another epoch, with nothing of what it held.
    fn begin_anew(&mut self) {
        let stream = self.random.below(self.reference.ids.len() as u64) as usize;
        let is_busy = self.reference.busy(stream) != (false, false);
        if !self.setup.wild && is_busy {
            return self.turn();
        }
        let facts = &self.reference.streams[stream];
        let (from, end, epoch) = (facts.trimmed, facts.end(), facts.epoch);
        let is_older = !self.setup.wild && epoch > 0 && self.random.chance(300);
        let start = if is_older {
            // Further than any record was: an epoch is written once at each offset.
            let epoch = epoch - self.random.within(1..=epoch.min(3));
            EpochStart { epoch, start: end + FAR }
        } else {
            let start = match self.random.below(3) {
                0 => self.random.within(from..=end),
                1 => end,
                _ => end + self.random.within(1..=20),
            };
            self.epoch_max = self.epoch_max.max(epoch) + self.random.within(1..=3);
            EpochStart { epoch: self.epoch_max, start }
        };
        let id = self.reference.ids[stream];
        let outcome = self.shard().begin_anew(id, start.start, start.epoch).map(Token::Change);
        if self.begin(Command::BeginAnew { stream, start }, outcome) {
            self.counts.add(Event::AnewOlder, u64::from(is_older));
            self.counts.add(Event::AnewInside, u64::from(start.start < end));
        }
    }

    fn read(&mut self) {
        let stream = self.random.below(self.reference.ids.len() as u64) as usize;
        let facts = &self.reference.streams[stream];
        let (low, end) = (facts.trimmed.saturating_sub(2), facts.end());
        let from = self.random.within(low..=end);
        let until = from + self.random.within(0..=20);
        // A reader's read can meet a read error that was meant for the shard.
        if !self.fault_armed && !self.is_down() {
            let bytes_max = self.random.pick(&[1, 2_000, 100_000]);
            let shard = self.shard.as_ref().expect("the shard is open");
            self.reference.check_read(shard, stream, from..until);
            self.reference.check_frames(shard, stream, from, bytes_max);
            self.reference.check_walk(shard, stream, from, bytes_max);
        }
    }

    pub fn check(&mut self) {
        let shard = self.shard.as_ref().expect("the shard is open");
        self.reference.check_ends(shard);
    }

    /// Lets the shard do what it was asked for. False when it died or has no space.
    pub fn drain(&mut self) -> bool {
        for _ in 0..TURNS_MAX {
            if self.poisoned {
                return false;
            }
            if self.reference.is_settled() {
                self.check_memory();
                return true;
            }
            if (self.full || self.fault_armed) && self.random.chance(5) {
                return false;
            }
            self.turn();
        }
        let stats = self.shard().stats();
        panic!("no progress: {:?} {:?}", stats.segments, stats.no_space);
    }

    /// Nothing is under way, so every slot is back.
    fn check_memory(&self) {
        let pool = self.pool.as_ref().expect("the shard is open");
        assert_eq!(pool.slots_free(), pool.slots(), "a batch buffer leaked");
    }

    /// Long enough for an idle seal, and for footers.
    pub fn idle_until_sealed(&mut self) {
        for _ in 0..30 {
            self.turn();
        }
    }

    fn idle(&mut self) {
        for _ in 0..self.random.within(1..=30) {
            if self.poisoned {
                return;
            }
            self.turn();
        }
    }

    fn make_fault(&mut self) {
        self.tell(|| "a fault is armed".into());
        self.fault_armed = true;
        let kinds = [Kind::Write, Kind::Sync, Kind::SyncAll, Kind::Allocate, Kind::Open];
        let more = [Kind::Remove, Kind::SyncDirectory, Kind::Read];
        match self.random.below(7) {
            0 | 1 => {
                let blocks = self.random.below(3) as usize;
                let bytes = blocks * 4096 + self.random.pick(&[0, 0, 0, 512]);
                self.sim.fault_next(Kind::Write, Fault::Short(bytes));
            }
            2 => self.sim.fail_next(self.random.pick(&kinds), libc::EIO),
            3 => self.sim.fail_next(self.random.pick(&more), libc::EIO),
            4 => self.sim.fail_next(Kind::Allocate, libc::ENOSPC),
            5 => self.sim.fault_next(Kind::Read, Fault::Short(self.random.pick(&[0, 512, 4096]))),
            _ => {
                let used: u64 = self.sim.list().iter().map(|entry| entry.length).sum();
                let more = self.random.below(3) * self.setup.segment_bytes;
                self.sim.set_capacity_bytes(Some(used + more));
                self.full = true;
            }
        }
    }

    /// I-3: it takes nothing more, and what was durable can still be read.
    fn look_at_poisoned(&mut self) {
        self.sim.clear_faults();
        self.check();
        for stream in 0..self.reference.ids.len() {
            let shard = self.shard.as_ref().expect("the shard is open");
            let facts = &self.reference.streams[stream];
            self.reference.check_read(shard, stream, facts.trimmed..facts.end());
        }
        assert!(!self.append_to(0, &[10]), "a poisoned shard takes a record");
        self.turn();
        assert!(self.reference.is_settled(), "a poisoned shard leaves nobody waiting");
    }

    // Dying.

    /// The life ends, one way or another.
    pub fn end(&mut self) {
        let way = self.random.below(10);
        self.end_by(way);
    }

    /// The life ends by a power cut, or by a kill.
    pub fn end_with(&mut self, power: bool) {
        self.end_by(if power { 9 } else { 5 });
    }

    fn end_by(&mut self, way: u64) {
        self.epochs_before = self.reference.is_certain().then(|| self.epochs());
        let shard = self.shard.take().expect("the shard is open");
        let stats = shard.stats();
        self.counts.add(Event::Moved, stats.moved_records);
        self.counts.add(Event::Rolls, stats.rotations);
        self.counts.add(Event::IdleSeals, stats.idle_seals);
        self.note_recycled();
        self.tell(|| format!("end {way}: {:?} down {}", stats.segments, self.is_down()));
        match way {
            _ if self.is_down() => shard.abandon(),
            0..3 => self.close(shard),
            3..6 => {
                self.sim.kill();
                shard.abandon();
                if self.random.chance(300) {
                    // The machine goes down before the next process has synced anything.
                    self.sim.crash();
                    self.counts.note(Event::CutsAfterKills);
                }
            }
            _ => {
                self.sim.crash();
                shard.abandon();
            }
        }
        self.reference.die();
        let (before, (cuts, kills)) = (self.last, self.note_deaths());
        if cuts + kills > 0 {
            self.counts.add(Event::CrashesAfterTornTails, u64::from(before.torn));
            let after_kill = before.killed && cuts > 0 && kills == 0;
            self.counts.add(Event::CutsAfterKillsAndOpens, u64::from(after_kill));
        }
        self.last = Death { killed: kills > 0 && cuts == 0, ..Death::default() };
        self.never_die();
        self.sim.clear_faults();
        self.fault_armed = false;
        if self.random.chance(500) {
            self.heal_device();
        }
        self.check_memory();
    }

    fn close(&mut self, shard: Shard) {
        self.counts.note(Event::Closes);
        if self.random.chance(200) {
            self.die_within(40);
        }
        let outcome = shard.close();
        self.counts.add(Event::CrashesWhileClosing, u64::from(self.is_down()));
        self.reference.settle();
        assert!(self.is_down() || self.reference.is_settled(), "closing leaves nobody waiting");
        match outcome {
            Ok(_) => self.closed = !self.full && !self.fault_armed,
            Err(error) => {
                let excused = self.is_down() || self.fault_armed || self.poisoned;
                assert!(excused, "closing failed: {error}");
            }
        }
        if !self.is_down() && self.random.chance(500) {
            self.sim.crash();
        }
    }

    fn heal_device(&mut self) {
        self.sim.set_capacity_bytes(None);
        self.full = false;
    }

    /// Without any more faults there is progress, and space comes back.
    pub fn heal(&mut self) {
        self.heal_device();
        self.sim.clear_faults();
        self.fault_armed = false;
        self.never_die();
        self.setup.faulty = false;
        self.open();
        self.never_die();
        for stream in 0..self.reference.ids.len() {
            assert!(self.append_to(stream, &[100]));
        }
        assert!(self.drain());
        for stream in 0..self.reference.ids.len() {
            let end = self.reference.streams[stream].end();
            assert!(self.trim_to(stream, end) || self.trim_to(stream, end));
            assert!(self.drain());
        }
        for _ in 0..200 {
            self.turn();
        }
        let segments = self.shard().stats().segments;
        assert!(segments.live <= 3, "space does not come back: {segments:?}");
        self.check();
        self.end();
        self.open();
        self.end();
    }
}
