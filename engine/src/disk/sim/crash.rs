//! What is left after a power cut, and after the death of the process alone.

use super::super::Operation;
use super::device::{Device, InFlight, apply_change};
use super::inode::{Fate, Inode};
use super::random::Random;

impl Device {
    /// Power cut. Each sector of each write that no flush has covered, and each change of the
    /// directory, is there afterwards or not. Some cuts keep all or nothing, so that long writes
    /// are also seen whole.
    pub fn crash(&mut self) {
        self.happened.power_cuts += 1;
        let fate = match self.random.below(8) {
            0 => Some(Fate::Lost),
            1 => Some(Fate::Whole),
            _ => None,
        };
        for inode in &mut self.inodes {
            inode.cut_power(&mut self.random, fate, &mut self.happened);
        }
        for in_flight in self.take_in_flight() {
            self.cut_in_flight(in_flight, fate);
        }
        self.cut_directory(fate);
        for inode in &mut self.inodes {
            inode.settle(&mut self.random, &mut self.happened);
        }
        self.die();
        self.trace(&[u64::MAX, self.generation]);
    }

    /// Death of the process: the kernel keeps what has completed, and finishes what is in flight
    /// or not. Nothing becomes durable by it.
    pub fn kill(&mut self) {
        for in_flight in self.take_in_flight() {
            if self.random.coin() {
                self.finish_in_flight(in_flight);
            }
        }
        self.die();
        self.trace(&[u64::MAX - 1, self.generation]);
    }

    /// In the order of their submission, whatever order the completions had made.
    fn take_in_flight(&mut self) -> Vec<InFlight> {
        let mut in_flight = std::mem::take(&mut self.in_flight);
        in_flight.sort_unstable_by_key(InFlight::number);
        in_flight
    }

    fn die(&mut self) {
        self.generation += 1;
        self.stalled_until_ns = 0;
        self.faults.clear();
        self.close_all();
    }

    fn cut_in_flight(&mut self, in_flight: InFlight, fate: Option<Fate>) {
        if let Operation::Write { offset, buffer, from, length, .. } = &in_flight.operation {
            let fate = fate.unwrap_or_else(|| Fate::draw(&mut self.random));
            let bytes = &buffer[*from..*from + *length];
            let inode = &mut self.inodes[in_flight.inode];
            if !matches!(fate, Fate::Lost) {
                inode.tear(*offset as usize, bytes, fate, &mut self.random, &mut self.happened);
            }
        } else if happens(fate, &mut self.random) {
            self.finish_in_flight(in_flight);
        }
    }

    /// Lets an operation happen that nobody will hear of. A flush in flight does nothing.
    fn finish_in_flight(&mut self, in_flight: InFlight) {
        let inode = in_flight.inode;
        match in_flight.operation {
            Operation::Write { offset, buffer, from, length, .. } => {
                self.sequence += 1;
                let bytes = &buffer[from..from + length];
                self.inodes[inode].write(self.sequence, offset as usize, bytes);
            }
            Operation::Allocate { length, .. } => {
                let _ = self.allocate(inode, length as usize);
            }
            Operation::Open { name, create } => {
                let _ = self.open(name, create);
            }
            Operation::Remove { name } => {
                let _ = self.remove(name);
            }
            Operation::Read { .. }
            | Operation::Sync { .. }
            | Operation::SyncAll { .. }
            | Operation::SyncDirectory => {}
        }
    }

    fn cut_directory(&mut self, fate: Option<Fate>) {
        for change in std::mem::take(&mut self.directory_log) {
            if happens(fate, &mut self.random) {
                apply_change(&mut self.durable_entries, &change);
            } else {
                self.happened.names_lost += 1;
            }
        }
        self.entries = self.durable_entries.clone();
    }

    /// The bytes of a file that a power cut would keep for certain; `None` when the name could
    /// vanish.
    pub fn durable_bytes(&self, name: &str) -> Option<Vec<u8>> {
        let inode = self.durable_entries.get(name)?;
        Some(Inode::durable(&self.inodes[*inode]).to_vec())
    }
}

fn happens(fate: Option<Fate>, random: &mut Random) -> bool {
    match fate {
        None => random.coin(),
        Some(fate) => matches!(fate, Fate::Whole),
    }
}
