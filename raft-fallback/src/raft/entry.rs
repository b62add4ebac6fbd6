//! The bytes of an entry: a record of stream 1. Little-endian; the engine's checksums cover them.
//!
//! ```text
//!  0  version 1     u8        1  kind           u8        2  zero           u16
//!  4  term          u64      12  index          u64
//! 20  committed: term u64, index + 1 u64 (0: none), as known when it was written
//! 36  body
//!     kind 0 blank:       nothing
//!     kind 1 membership:  count u32, of each config count u32 and ids u64; count u32, of each node
//!                         id u64, engine 16 bytes, length u32, address
//!     kind 2 extend:      epoch u64, base u64, goes on u8 (0, 1), count u32, of each record length u32, bytes
//!     kind 3 epoch start: epoch u64, leader u64, run 16 bytes, count u32, of each stream id u64, start u64
//! ```
//!
//! The committed index travels with the entries because it changes with each of them, and costs no
//! write of its own like this.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, Bytes};
use openraft::EntryPayload;
use openraft::vote::leader_id_std::CommittedLeaderId;
use ringwal_engine::StreamId;
use ringwal_replication::node_id::{NodeId, RunId};

use super::codec::{Malformed, Taker, zero};
use super::payload::Payload;
use super::types::{Entry, LogId, Membership, RaftNode};

/// Longest entry, in bytes. An engine may allow less: see
/// [`RaftLog::entry_bytes_max`](super::RaftLog::entry_bytes_max).
pub const ENTRY_BYTES_MAX: usize = 1 << 20;

const VERSION: u8 = 1;
const BLANK: u8 = 0;
const MEMBERSHIP: u8 = 1;
const EXTEND: u8 = 2;
const EPOCH_START: u8 = 3;

/// A log id.
pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId { leader_id: CommittedLeaderId::new(term), index }
}

/// A log id that need not be, as term and index + 1.
pub(super) fn put_log_id(into: &mut Vec<u8>, log_id: Option<LogId>) {
    into.put_u64_le(log_id.map_or(0, |log_id| log_id.leader_id.term));
    into.put_u64_le(log_id.map_or(0, |log_id| log_id.index + 1));
}

/// See [`put_log_id`].
pub(super) fn take_log_id(from: &mut Taker) -> Result<Option<LogId>, Malformed> {
    let (term, end) = (from.u64()?, from.u64()?);
    match end.checked_sub(1) {
        Some(index) => Ok(Some(log_id(term, index))),
        None => zero("term of no log id", term).map(|()| None),
    }
}

/// Appends the bytes of an entry to `into`, with what is known to be committed. Returns how many.
///
/// # Errors
/// When they are more than an entry may have.
pub fn encode(
    entry: &Entry,
    committed: Option<LogId>,
    into: &mut Vec<u8>,
) -> Result<usize, Malformed> {
    let start = into.len();
    let kind = match &entry.payload {
        EntryPayload::Blank => BLANK,
        EntryPayload::Membership(_) => MEMBERSHIP,
        EntryPayload::Normal(Payload::Extend { .. }) => EXTEND,
        EntryPayload::Normal(Payload::EpochStart { .. }) => EPOCH_START,
    };
    into.extend_from_slice(&[VERSION, kind, 0, 0]);
    into.put_u64_le(entry.log_id.leader_id.term);
    into.put_u64_le(entry.log_id.index);
    put_log_id(into, committed);
    match &entry.payload {
        EntryPayload::Blank => {}
        EntryPayload::Membership(membership) => put_membership(into, membership),
        EntryPayload::Normal(Payload::Extend { epoch, base, continues, records }) => {
            into.put_u64_le(*epoch);
            into.put_u64_le(*base);
            into.push(u8::from(*continues));
            put_length(into, records.len());
            for record in records {
                put_length(into, record.len());
                into.extend_from_slice(record);
            }
        }
        EntryPayload::Normal(Payload::EpochStart { epoch, leader, run, starts }) => {
            into.put_u64_le(*epoch);
            into.put_u64_le(leader.get());
            into.extend_from_slice(&run.bytes());
            put_length(into, starts.len());
            for (stream, start) in starts {
                into.put_u64_le(stream.get());
                into.put_u64_le(*start);
            }
        }
    }
    match into.len() - start {
        bytes if bytes > ENTRY_BYTES_MAX => {
            into.truncate(start);
            Err(Malformed::TooLong { bytes, max: ENTRY_BYTES_MAX })
        }
        bytes => Ok(bytes),
    }
}

/// What does not fit a u32 does not fit an entry either, which is looked at when it is whole.
pub(super) fn put_length(into: &mut Vec<u8>, length: usize) {
    into.put_u32_le(u32::try_from(length).unwrap_or(u32::MAX));
}

pub(super) fn put_membership(into: &mut Vec<u8>, membership: &Membership) {
    let configs = membership.get_joint_config();
    put_length(into, configs.len());
    for config in configs {
        put_length(into, config.len());
        config.iter().for_each(|node| into.put_u64_le(*node));
    }
    put_length(into, membership.nodes().count());
    for (id, node) in membership.nodes() {
        into.put_u64_le(*id);
        into.extend_from_slice(&node.engine);
        put_length(into, node.address.len());
        into.extend_from_slice(node.address.as_bytes());
    }
}

/// The entry of these bytes, and what was committed when it was written. Its records are slices of them.
///
/// # Errors
/// When the bytes are not exactly one entry of a version that is known.
pub fn decode(bytes: Bytes) -> Result<(Entry, Option<LogId>), Malformed> {
    if bytes.len() > ENTRY_BYTES_MAX {
        return Err(Malformed::TooLong { bytes: bytes.len(), max: ENTRY_BYTES_MAX });
    }
    let mut from = Taker::new(bytes);
    let found = from.u8()?;
    if found != VERSION {
        return Err(Malformed::Version { what: "log entry", found, known: VERSION });
    }
    let kind = from.u8()?;
    zero("reserved field", from.u16()?.into())?;
    let log_id = log_id(from.u64()?, from.u64()?);
    let committed = take_log_id(&mut from)?;
    let payload = match kind {
        BLANK => EntryPayload::Blank,
        MEMBERSHIP => EntryPayload::Membership(take_membership(&mut from)?),
        EXTEND => EntryPayload::Normal(take_extend(&mut from)?),
        EPOCH_START => EntryPayload::Normal(take_epoch_start(&mut from)?),
        kind => return Err(Malformed::Unknown { what: "kind of entry", value: kind.into() }),
    };
    from.end()?;
    Ok((Entry { log_id, payload }, committed))
}

fn take_extend(from: &mut Taker) -> Result<Payload, Malformed> {
    let (epoch, base) = (from.u64()?, from.u64()?);
    let continues = match from.u8()? {
        0 => false,
        1 => true,
        value => {
            return Err(Malformed::Unknown { what: "whether it goes on", value: value.into() });
        }
    };
    let record = |from: &mut Taker| {
        let length = from.u32()? as usize;
        from.bytes(length)
    };
    let records = (0..from.count(4)?).map(|_| record(from)).collect::<Result<_, _>>()?;
    Ok(Payload::Extend { epoch, base, continues, records })
}

fn take_epoch_start(from: &mut Taker) -> Result<Payload, Malformed> {
    let (epoch, leader) = (from.u64()?, NodeId::new(from.u64()?));
    let run = RunId::new(from.id()?);
    let start = |from: &mut Taker| Ok((StreamId::new(from.u64()?), from.u64()?));
    let starts = (0..from.count(16)?).map(|_| start(from)).collect::<Result<_, _>>()?;
    Ok(Payload::EpochStart { epoch, leader, run, starts })
}

pub(super) fn take_membership(from: &mut Taker) -> Result<Membership, Malformed> {
    let mut configs = Vec::new();
    for _ in 0..from.count(4)? {
        let count = from.count(8)?;
        let ids: BTreeSet<u64> = (0..count).map(|_| from.u64()).collect::<Result<_, _>>()?;
        if ids.len() < count {
            return Err(Malformed::Membership("a voter is named twice".to_owned()));
        }
        configs.push(ids);
    }
    let mut nodes = BTreeMap::new();
    for _ in 0..from.count(28)? {
        let (id, engine) = (from.u64()?, from.id()?);
        let length = from.u32()? as usize;
        let address = String::from_utf8(from.bytes(length)?.to_vec())
            .map_err(|error| Malformed::Membership(error.to_string()))?;
        if nodes.insert(id, RaftNode { address, engine }).is_some() {
            return Err(Malformed::Membership(format!("node {id} is named twice")));
        }
    }
    if configs.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, nodes).map_err(|error| Malformed::Membership(error.to_string()))
}

#[cfg(test)]
mod tests;
