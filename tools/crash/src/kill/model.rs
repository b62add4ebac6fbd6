//! What the parent heard of each stream, and what may be there after a kill.

use std::collections::BTreeMap;

use ringwal_engine::{Engine, ReadError, StreamId};

use super::child::streams;
use crate::random::{Random, mix};

/// The record of a stream at an offset and in an epoch: the same wherever it is asked for.
pub fn payload(contents: u64, stream: u64, offset: u64, epoch: u64) -> Vec<u8> {
    let seed = mix(mix(mix(contents ^ stream) ^ offset) ^ epoch);
    let mut random = Random::new(seed);
    let length = match random.below(8) {
        0 => random.below(16),
        1..5 => random.below(2_000),
        5..7 => random.below(12_000),
        _ => random.below(40_000),
    } as usize;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A stream as the parent knows it.
#[derive(Clone, Debug)]
struct Known {
    /// Offset after the last record with a receipt.
    acknowledged: u64,
    /// Offset after the last record that may have been handed over.
    submitted: u64,
    /// Records handed over that are kept all or none.
    together: Vec<(u64, u64)>,
    /// A trim with a receipt, and the furthest that was asked for.
    trimmed: u64,
    trim_asked: u64,
    /// (epoch, start) of each, oldest first.
    epochs: Vec<(u64, u64)>,
    /// A cut that was asked for and has no receipt.
    cut_asked: Option<(u64, u64)>,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            acknowledged: 0,
            submitted: 0,
            together: Vec::new(),
            trimmed: 0,
            trim_asked: 0,
            epochs: vec![(0, 0)],
            cut_asked: None,
        }
    }
}

impl Known {
    fn epoch(&self) -> u64 {
        self.epochs.last().map_or(0, |(epoch, _)| *epoch)
    }

    fn epoch_at(&self, offset: u64) -> u64 {
        let entry = self.epochs.iter().rev().find(|(_, start)| *start <= offset);
        entry.or(self.epochs.first()).map_or(0, |(epoch, _)| *epoch)
    }

    fn begin_epoch(&mut self, epoch: u64, start: u64) {
        self.epochs.retain(|(_, other)| *other < start);
        self.epochs.push((epoch, start));
        self.acknowledged = start;
        self.submitted = start;
        self.together.clear();
    }
}

/// All streams of a directory.
#[derive(Clone, Debug)]
pub struct Model {
    contents: u64,
    streams: BTreeMap<u64, Known>,
    /// Nothing was ever acknowledged, and no open has come to its end.
    pub is_new: bool,
    /// Receipts heard.
    pub receipts: u64,
    /// Records read back and compared.
    pub compared: u64,
}

impl Model {
    /// Of a directory that is not there yet.
    pub fn new(contents: u64) -> Self {
        let streams = streams().map(|id| (id, Known::default())).collect();
        Self { contents, streams, is_new: true, receipts: 0, compared: 0 }
    }

    /// What the records are made of.
    pub fn contents(&self) -> u64 {
        self.contents
    }

    /// Takes a line of the child in.
    ///
    /// # Errors
    /// When it says something that cannot be.
    pub fn hear(&mut self, line: &str) -> Result<(), String> {
        let words: Vec<&str> = line.split(' ').collect();
        let (name, rest) = match words[..] {
            ["begin" | "end", phase @ ("trim" | "cut"), ..] => (phase, &words[2..]),
            ["end", "open"] => {
                self.is_new = false;
                return Ok(());
            }
            ["begin" | "end", ..] => return Ok(()),
            _ => (words[0], &words[1..]),
        };
        let numbers: Vec<u64> = rest.iter().filter_map(|word| word.parse().ok()).collect();
        let stream = numbers.first().and_then(|id| self.streams.get_mut(id));
        let known = stream.ok_or_else(|| format!("the child said {line:?}"))?;
        let is_end = words[0] == "end";
        match (name, &numbers[1..]) {
            ("opened", [trimmed, end, epoch]) => {
                let told = (*trimmed, *end, *epoch);
                let checked = (known.trimmed, known.acknowledged, known.epoch());
                if told != checked {
                    return Err(format!(
                        "stream {}: opened with (trimmed, end, epoch) {told:?}, and the check \
                         before found {checked:?}",
                        numbers[0]
                    ));
                }
            }
            ("submit", [_, until]) => known.submitted = *until,
            ("together", [from, until]) => {
                known.submitted = *until;
                known.together = vec![(*from, *until)];
            }
            ("receipt", [from, until]) => {
                if *from != known.acknowledged || *until > known.submitted {
                    return Err(format!("a receipt out of order: {line:?} after {known:?}"));
                }
                known.acknowledged = *until;
                self.receipts += 1;
            }
            ("trim", [before]) if is_end => known.trimmed = known.trimmed.max(*before),
            ("trim", [before]) => known.trim_asked = known.trim_asked.max(*before),
            ("cut", [start, epoch]) if is_end => {
                known.cut_asked = None;
                known.begin_epoch(*epoch, *start);
            }
            ("cut", [start, epoch]) => known.cut_asked = Some((*epoch, *start)),
            _ => return Err(format!("the child said {line:?}")),
        }
        Ok(())
    }

    /// Holds an open directory against what was heard: every record with a receipt is there, none
    /// is there that was not handed over, they follow one another, and each byte is right. What is
    /// there becomes what must be there from now on.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&mut self, engine: &Engine) -> Result<(), String> {
        for summary in engine.streams() {
            if !self.streams.contains_key(&summary.stream.get()) {
                return Err(format!("stream {} was never written", summary.stream));
            }
        }
        for (id, known) in &mut self.streams {
            self.compared += check_stream(engine, self.contents, *id, known)
                .map_err(|what| format!("stream {id}: {what}; heard {known:?}"))?;
        }
        Ok(())
    }

    /// Nothing was opened that has an engine: only right when none was ever there.
    pub fn may_be_missing(&self) -> bool {
        self.is_new
    }
}

fn check_stream(engine: &Engine, contents: u64, id: u64, known: &mut Known) -> Result<u64, String> {
    let stream = engine.stream(StreamId::new(id));
    let (trimmed, end) = (stream.trimmed(), stream.end());
    let epochs: Vec<_> = stream.epochs().iter().map(|entry| (entry.epoch, entry.start)).collect();
    let epoch = epochs.last().map_or(0, |(epoch, _)| *epoch);
    if let Some((asked, start)) = known.cut_asked.take()
        && epoch == asked
    {
        // The cut has happened, without a receipt.
        known.begin_epoch(asked, start);
    }
    if epoch != known.epoch() {
        return Err(format!("epoch {epoch} instead of {}", known.epoch()));
    }
    if end < known.acknowledged || end > known.submitted {
        return Err(format!(
            "ends at {end}; acknowledged up to {}, handed over up to {}",
            known.acknowledged, known.submitted
        ));
    }
    if let Some((from, until)) =
        known.together.iter().find(|(from, until)| *from < end && end < *until)
    {
        return Err(format!("ends at {end}, inside {from}..{until}, which was handed over as one"));
    }
    if trimmed < known.trimmed || trimmed > known.trimmed.max(known.trim_asked) {
        return Err(format!(
            "trimmed to {trimmed}; {} was acknowledged and {} asked for",
            known.trimmed, known.trim_asked
        ));
    }
    // What the trim left of the table.
    known.epochs.retain(|entry| epochs.contains(entry) || entry.1 > trimmed);
    if epochs != known.epochs {
        return Err(format!("epochs {epochs:?} instead of {:?}", known.epochs));
    }
    let failed = |error: ReadError| format!("cannot be read: {error}");
    let mut expected = trimmed;
    for record in stream.read(trimmed..end).map_err(failed)? {
        let record = record.map_err(failed)?;
        let (offset, epoch) = (record.offset(), record.epoch());
        if offset != expected || epoch != known.epoch_at(offset) {
            return Err(format!(
                "record {offset} of epoch {epoch} comes where record {expected} of epoch {} must",
                known.epoch_at(expected)
            ));
        }
        if *record.payload() != *payload(contents, id, offset, epoch) {
            return Err(format!("record {offset} of epoch {epoch} is not what was appended"));
        }
        expected += 1;
    }
    if expected != end {
        return Err(format!("its records end at {expected} and not at {end}"));
    }
    (known.acknowledged, known.submitted) = (end, end);
    (known.trimmed, known.trim_asked) = (trimmed, trimmed);
    known.together.clear();
    Ok(end - trimmed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_without_its_record_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let engine = super::super::child::options("blocking").open(directory.path()).unwrap();
        let mut model = Model::new(3);
        assert_eq!(model.check(&engine), Ok(()));
        let stream = engine.stream(StreamId::new(10));
        model.hear("submit 10 0 2").unwrap();
        stream.append(payload(3, 10, 0, 0)).unwrap().wait().unwrap();
        model.hear("receipt 10 0 1").unwrap();
        assert_eq!(model.clone().check(&engine), Ok(()));
        model.hear("receipt 10 1 2").unwrap();
        assert!(model.clone().check(&engine).unwrap_err().contains("acknowledged up to 2"));
        stream.append(b"something else").unwrap().wait().unwrap();
        assert!(model.clone().check(&engine).unwrap_err().contains("not what was appended"));
        stream.append(b"never handed over").unwrap().wait().unwrap();
        assert!(model.clone().check(&engine).unwrap_err().contains("handed over up to 2"));
        let mut model = Model::new(3);
        assert!(model.hear("opened 10 0 1 0").is_err());
        assert!(model.hear("receipt 10 4 5").is_err());
    }
}
