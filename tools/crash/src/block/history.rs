//! What was submitted, acknowledged and trimmed at each point of a run, and the judgement over
//! what an open brings back: acknowledged ⊆ recovered ⊆ submitted, a contiguous prefix, one
//! content per place, batches whole.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail, ensure};
use ringwal_engine::{Engine, StreamId};

use super::load::STREAMS;
use super::payload::{difference, payload};

/// What one stream must and may hold.
#[derive(Clone, Debug, Default)]
pub struct StreamHistory {
    /// Every offset before it is acknowledged, or was there after an open.
    pub acknowledged: u64,
    /// A trim that is durable.
    pub trimmed: u64,
    /// From which offset on which life wrote, ascending.
    lives: Vec<(u64, u32)>,
}

impl StreamHistory {
    /// Who wrote the record at an offset.
    fn life_of(&self, offset: u64) -> Option<u32> {
        self.lives.iter().rev().find(|(start, _)| *start <= offset).map(|(_, life)| *life)
    }
}

/// All streams at one point of a run.
#[derive(Clone, Debug, Default)]
pub struct History {
    streams: BTreeMap<u64, StreamHistory>,
}

/// What was ever asked for, at any point of a run.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    submitted: BTreeMap<u64, u64>,
    trims: BTreeMap<u64, BTreeSet<u64>>,
    /// Stream, life, first offset and count of records that belong together.
    groups: BTreeSet<(u64, u32, u64, u64)>,
    /// Blocks of the device that held a segment's data.
    pub data_blocks: BTreeSet<u64>,
}

/// What an open has brought back: trimmed and end of each stream.
pub type Found = BTreeMap<u64, (u64, u64)>;

fn numbers(rest: &str) -> Result<Vec<u64>> {
    rest.split(' ').map(|word| word.parse().with_context(|| format!("{rest:?}"))).collect()
}

impl Asked {
    /// Takes in a line of the load, wherever it stands.
    pub fn note(&mut self, line: &str) -> Result<()> {
        let Some((kind, rest)) = line.split_once(' ') else { return Ok(()) };
        match (kind, numbers(rest)?.as_slice()) {
            ("S" | "A", [stream, end]) => {
                let submitted = self.submitted.entry(*stream).or_default();
                *submitted = (*submitted).max(*end);
            }
            ("R", [stream, before]) => {
                self.trims.entry(*stream).or_default().insert(*before);
            }
            ("G", [life, stream, start, count]) => {
                self.groups.insert((*stream, *life as u32, *start, *count));
            }
            ("E", [start, length]) => {
                self.data_blocks.extend(start / 4096..(start + length) / 4096);
            }
            _ => {}
        }
        Ok(())
    }
}

impl History {
    /// Takes in a line of the load, in its place.
    ///
    /// # Errors
    /// When an open within the run has lost something.
    pub fn note(&mut self, line: &str, asked: &Asked) -> Result<()> {
        let Some((kind, rest)) = line.split_once(' ') else { return Ok(()) };
        match (kind, numbers(rest)?.as_slice()) {
            ("A", [stream, end]) => {
                let stream = self.streams.entry(*stream).or_default();
                stream.acknowledged = stream.acknowledged.max(*end);
            }
            ("T", [stream, before]) => {
                let stream = self.streams.entry(*stream).or_default();
                stream.trimmed = stream.trimmed.max(*before);
            }
            ("O", [life, stream, trimmed, end]) => {
                self.check_bounds(*stream, *trimmed, *end, asked)
                    .with_context(|| format!("open {life} within the run"))?;
                self.begin(*stream, *life as u32, *trimmed, *end);
            }
            _ => {}
        }
        Ok(())
    }

    /// An open has returned: what it found is durable, and `life` goes on from there.
    pub fn begin(&mut self, stream: u64, life: u32, trimmed: u64, end: u64) {
        let stream = self.streams.entry(stream).or_default();
        stream.acknowledged = end;
        stream.trimmed = trimmed;
        stream.lives.retain(|(start, _)| *start < end);
        stream.lives.push((end, life));
    }

    /// Records appended by the present life and acknowledged.
    pub fn acknowledge(&mut self, stream: u64, end: u64) {
        self.streams.entry(stream).or_default().acknowledged = end;
    }

    /// Whether an open has ever returned.
    pub fn has_begun(&self) -> bool {
        !self.streams.is_empty()
    }

    /// What one stream must hold.
    fn stream(&self, stream: u64) -> StreamHistory {
        self.streams.get(&stream).cloned().unwrap_or_default()
    }

    fn check_bounds(&self, id: u64, trimmed: u64, end: u64, asked: &Asked) -> Result<()> {
        let stream = self.stream(id);
        ensure!(
            end >= stream.acknowledged,
            "stream {id}: ends at {end}, acknowledged up to {}",
            stream.acknowledged
        );
        let submitted = asked.submitted.get(&id).copied().unwrap_or(0).max(stream.acknowledged);
        ensure!(end <= submitted, "stream {id}: ends at {end}, submitted up to {submitted}");
        let was_asked = trimmed == stream.trimmed
            || asked.trims.get(&id).is_some_and(|trims| trims.contains(&trimmed));
        ensure!(
            trimmed >= stream.trimmed && was_asked && trimmed <= end,
            "stream {id}: trimmed up to {trimmed} of {end}; {} is durable, {:?} were asked for",
            stream.trimmed,
            asked.trims.get(&id)
        );
        for (_, life, start, count) in asked.groups.range((id, 0, 0, 0)..(id + 1, 0, 0, 0)) {
            let inside = *start < end && end < start + count;
            if inside && stream.life_of(*start) == Some(*life) {
                bail!("stream {id}: ends at {end}, within a batch of {count} from {start} on");
            }
        }
        Ok(())
    }

    /// Judges what an open engine holds, byte for byte.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn check(&self, engine: &Engine, seed: u64, asked: &Asked) -> Result<Found> {
        let mut found = Found::new();
        for summary in engine.streams() {
            let id = summary.stream.get();
            ensure!(STREAMS.contains(&id), "stream {id} was never written");
        }
        for id in STREAMS {
            let handle = engine.stream(StreamId::new(id));
            let (trimmed, end) = (handle.trimmed(), handle.end());
            self.check_bounds(id, trimmed, end, asked)?;
            let stream = self.stream(id);
            let mut next = trimmed;
            for record in handle.read(trimmed..end)? {
                let record = record.with_context(|| format!("stream {id}, offset {next}"))?;
                ensure!(record.offset() == next, "stream {id}: {} for {next}", record.offset());
                let life = stream.life_of(next).context("a record that no life wrote")?;
                let expected = payload(seed, life, id, next);
                if *record.payload() != *expected {
                    let difference = difference(record.payload(), &expected);
                    bail!("stream {id}, offset {next}, life {life}: {difference}");
                }
                next += 1;
            }
            ensure!(next == end, "stream {id}: records up to {next}, the end is {end}");
            found.insert(id, (trimmed, end));
        }
        Ok(found)
    }
}
