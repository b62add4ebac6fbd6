//! What a node holds: its shards, each on a simulated disk of its own, side by side as in one
//! directory. They go down at the same moment.

use std::collections::BTreeMap;
use std::time::Duration;

use ringwal_engine::disk::sim::{SimDisk, SimHandle, SimOptions};
use ringwal_engine::{Clock, EpochTable, OpenError, Options, Shard, StreamId, StreamSummary};
use ringwal_replication::history::Held;
use ringwal_replication::promise::is_replicated;

use super::oracle::{Written, payload};

const SEGMENT_BYTES: u64 = 64 << 10;
const BATCH_BYTES: usize = 8 << 10;
/// The time that one turn of a shard may wait.
const TURN: Duration = Duration::from_micros(300);

/// A disk for each shard, empty.
pub fn blank_disks(shards: u64, seed: u64) -> Vec<SimHandle> {
    let blank = |shard| {
        SimHandle::with_options(SimOptions {
            seed: seed ^ (shard << 4),
            pool_bytes: 24 * BATCH_BYTES,
            slot_bytes: BATCH_BYTES,
            ..SimOptions::default()
        })
    };
    (0..shards).map(blank).collect()
}

/// See the module.
pub struct Store {
    shards: Vec<Shard>,
}

impl Store {
    /// Opens what is on these disks.
    pub fn open(disks: &[SimHandle], engine: [u8; 16]) -> Result<Self, OpenError> {
        let open = |sim: &SimHandle| {
            let options = Options::new().batch_bytes_max(BATCH_BYTES);
            let disk = Box::new(SimDisk::new(sim.clone()));
            options.open_on(disk, engine, SEGMENT_BYTES, Clock::Manual(sim.clock()))
        };
        Ok(Self { shards: disks.iter().map(open).collect::<Result<_, _>>()? })
    }

    /// Nothing more is written: the process is gone.
    pub fn abandon(self) {
        self.shards.into_iter().for_each(Shard::abandon);
    }

    /// The number of a stream's shard.
    pub fn number_of(&self, stream: StreamId) -> u16 {
        stream.shard(self.shards.len() as u16)
    }

    /// A stream's shard, to read.
    pub fn at(&self, stream: StreamId) -> &Shard {
        &self.shards[usize::from(self.number_of(stream))]
    }

    /// A stream's shard, to write.
    pub fn of(&mut self, stream: StreamId) -> &mut Shard {
        let number = usize::from(self.number_of(stream));
        &mut self.shards[number]
    }

    pub fn shards(&mut self) -> &mut [Shard] {
        &mut self.shards
    }

    /// One turn of every shard's loop.
    pub fn turn(&mut self) {
        for shard in &mut self.shards {
            shard.run_once(Some(TURN)).expect("the disk is sound");
        }
    }

    fn summaries(&self) -> BTreeMap<StreamId, StreamSummary> {
        let all = self.shards.iter().flat_map(Shard::streams);
        all.map(|summary| (summary.stream, summary)).collect()
    }

    /// What is held of a stream.
    pub fn held(&self, stream: StreamId) -> Held {
        let shard = self.at(stream);
        if !shard.streams().iter().any(|summary| summary.stream == stream) {
            return Held::default();
        }
        let epochs =
            EpochTable::from_entries(shard.epochs(stream)).expect("the engine's own table");
        Held { trimmed: shard.trimmed(stream), end: shard.end(stream), epochs }
    }

    /// What is held of every stream that is replicated.
    pub fn all_held(&self) -> BTreeMap<StreamId, Held> {
        let all = self.summaries().into_keys().filter(|stream| is_replicated(*stream));
        all.map(|stream| (stream, self.held(stream))).collect()
    }

    /// Offsets with epoch and number of a range of records; each is as it was made.
    pub fn records(&self, stream: StreamId, from: u64, end: u64) -> Vec<(u64, Written)> {
        if from >= end {
            return Vec::new();
        }
        let records = self.at(stream).read(stream, from..end).expect("it is not trimmed");
        let all: Vec<_> = records
            .map(|record| {
                let record = record.unwrap_or_else(|error| panic!("stream {stream}: {error}"));
                let bytes: &[u8] = record.payload();
                let number = u64::from_le_bytes(*bytes.first_chunk().expect("a number"));
                assert_eq!(*bytes, *payload(number, bytes.len()), "record {number} is damaged");
                (record.offset(), (record.epoch(), number))
            })
            .collect();
        assert_eq!(all.len() as u64, end - from, "stream {stream} {from}..{end} has a hole");
        all
    }
}
