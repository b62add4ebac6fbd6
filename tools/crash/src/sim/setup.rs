//! What one seed is run with.

use std::time::Duration;

use ringwal_engine::disk::sim::SimOptions;
use ringwal_engine::{Options, StreamId, SyncMode};

use crate::random::Random;

/// Fixed for the life of the device.
#[derive(Clone, Debug)]
pub struct Setup {
    pub engine_id: [u8; 16],
    pub segment_bytes: u64,
    pub batch_bytes: usize,
    pub sim: SimOptions,
    pub streams: Vec<StreamId>,
    /// Cuts race with appends.
    pub wild: bool,
    /// Errors, short writes and a full disk happen.
    pub faulty: bool,
    /// Actions between two deaths, at most.
    pub actions: u64,
    /// Longest record that is usual.
    pub record_bytes: u64,
}

impl Setup {
    pub fn new(seed: u64, random: &mut Random) -> Self {
        let segment_bytes = random.pick(&[64, 64, 64, 96, 128, 256]) << 10;
        let quarter = segment_bytes as usize / 4;
        let batch_bytes = random.pick(&[8usize << 10, 16 << 10, 32 << 10]).min(quarter);
        let slots = random.within(8..=12) as usize;
        let sim = SimOptions {
            seed,
            pool_bytes: slots * batch_bytes,
            slot_bytes: batch_bytes,
            ..SimOptions::default()
        };
        let streams = [4, 5, 3, 7, 900, u64::MAX - 1, 12];
        let count = random.within(1..=streams.len() as u64) as usize;
        let mut engine_id = [0; 16];
        engine_id[..8].copy_from_slice(&random.next().to_le_bytes());
        Self {
            engine_id,
            segment_bytes,
            batch_bytes,
            sim,
            streams: streams[..count].iter().map(|id| StreamId::new(*id)).collect(),
            wild: random.chance(250),
            faulty: random.chance(350),
            actions: random.pick(&[15, 40, 80, 200]),
            record_bytes: random.pick(&[100, 900, 3000]),
        }
    }

    /// What may differ from one open to the next.
    pub fn options(&self, random: &mut Random) -> Options {
        let idle = random.pick(&[None, Some(Duration::from_millis(5)), Some(Duration::ZERO)]);
        let linger = random.pick(&[0, 0, 0, 300]);
        Options::new()
            .sync(random.pick(&[SyncMode::Dsync, SyncMode::Fdatasync]))
            .flush_slots(random.within(1..=4) as usize)
            .linger(Duration::from_micros(linger))
            .idle_seal(idle)
            .batch_bytes_max(self.batch_bytes)
            .segments_ahead(random.within(1..=2) as usize)
            .segments_reserved(random.within(1..=2) as usize)
            .segments_free_max(random.within(0..=3) as usize)
    }

    /// Bytes that one batch has for records.
    pub fn payload_bytes_max(&self) -> usize {
        self.batch_bytes - 128
    }
}
