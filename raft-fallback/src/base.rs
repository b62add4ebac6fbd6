//! What takes the place of the beginning of Raft's log: who is in the cluster, which epoch has begun, and all
//! epochs of each stream. A file `raft-base` in the engine's directory, and what a node gets that is too far
//! behind.
//!
//! ```text
//!  0  "RWRB", version u16 = 1, zero u16, CRC32C of all that follows u32
//! 12  last entry: term u64, index u64
//!     entry of the membership: 0, or 1 and term u64, index u64; its bytes as in the log (length u32, bytes)
//!     epoch that has begun: epoch u64 (0: none), leader u64, run 16
//!     starts of that epoch: count u32, (stream u64, start u64)
//!     the last Extend of the epoch that started last: epoch u64, end u64 (both 0: none)
//!     streams: count u32, (stream u64, committed u64, epochs: count u32, (epoch u64, start u64))
//! ```
//!
//! The records themselves are not in it: whoever takes it fetches what is committed of them, before it says
//! that it has applied anything.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use openraft::EntryPayload;
use ringwal_engine::{EpochStart, StreamId};
use ringwal_replication::node_id::{NodeId, RunId};
use ringwal_replication::promise::Promise;

use crate::codec::{Malformed, Put, Reader};
use crate::raft::{Entry, LogId, StoredMembership, decode_entry, encode_entry};

const MAGIC: &[u8; 4] = b"RWRB";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 12;
const FILE: &str = "raft-base";
/// As many as an epoch can start.
const STREAMS_MAX: usize = 120_000;
const EPOCHS_MAX: usize = 4 << 20;
const ENTRY_BYTES_MAX: usize = 1 << 20;
/// Longest base that a node sends.
pub(crate) const BASE_BYTES_MAX: usize = 64 << 20;

/// A stream, as far as Raft says what it is.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct StreamBase {
    /// Which.
    pub stream: StreamId,
    /// Up to where it is committed.
    pub committed: u64,
    /// All of its epochs that are not trimmed.
    pub epochs: Vec<EpochStart>,
}

/// The last `Extend` of an epoch: those that go on where it ends count.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Chain {
    /// Which epoch.
    pub epoch: u64,
    /// Where it ends.
    pub end: u64,
}

/// See the module.
#[derive(Clone, PartialEq, Debug)]
pub struct Base {
    /// The last entry that is in it.
    pub last: LogId,
    /// Who is in the cluster.
    pub membership: StoredMembership,
    /// The epoch that has begun last.
    pub begun: Option<Promise>,
    /// Where that starts.
    pub starts: Vec<(StreamId, u64)>,
    /// The last `Extend` of the epoch that started last.
    pub chain: Option<Chain>,
    /// All replicated streams.
    pub streams: Vec<StreamBase>,
}

/// Why there is no base.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BaseError {
    /// The file cannot be read or written.
    #[error("the base of Raft's log, {path}: {source}", path = .path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is damaged, or of another version.
    #[error(
        "the base of Raft's log is not sound: {0}; let the node join again with a blank directory"
    )]
    Malformed(String),
}

impl From<Malformed> for BaseError {
    fn from(error: Malformed) -> Self {
        Self::Malformed(error.to_string())
    }
}

fn malformed(why: impl ToString) -> BaseError {
    BaseError::Malformed(why.to_string())
}

impl Base {
    /// Its bytes.
    ///
    /// # Errors
    /// When it has too much in it.
    pub fn encode(&self) -> Result<Vec<u8>, BaseError> {
        let mut bytes = Vec::with_capacity(1024);
        put_log_id(&mut bytes, self.last);
        match self.membership.log_id() {
            None => bytes.put_u8(0),
            Some(log_id) => {
                bytes.put_u8(1);
                put_log_id(&mut bytes, *log_id);
            }
        }
        let payload = EntryPayload::Membership(self.membership.membership().clone());
        let mut entry = Vec::new();
        encode_entry(&Entry { log_id: self.last, payload }, None, &mut entry).map_err(malformed)?;
        bytes.put_bytes(&entry);
        bytes.put_u64(self.begun.map_or(0, |begun| begun.epoch));
        bytes.put_u64(self.begun.map_or(0, |begun| begun.leader.get()));
        bytes.put(&self.begun.map_or([0; 16], |begun| begun.run.bytes()));
        bytes.put_count(self.starts.len());
        for (stream, start) in &self.starts {
            bytes.put_u64(stream.get());
            bytes.put_u64(*start);
        }
        let (epoch, end) = self.chain.map_or((0, 0), |chain| (chain.epoch, chain.end));
        bytes.put_u64(epoch);
        bytes.put_u64(end);
        bytes.put_count(self.streams.len());
        for StreamBase { stream, committed, epochs } in &self.streams {
            bytes.put_u64(stream.get());
            bytes.put_u64(*committed);
            bytes.put_count(epochs.len());
            for EpochStart { epoch, start } in epochs {
                bytes.put_u64(*epoch);
                bytes.put_u64(*start);
            }
        }
        if bytes.len() > BASE_BYTES_MAX - HEADER_BYTES {
            let length = bytes.len();
            return Err(malformed(format!("{length} bytes; at most {BASE_BYTES_MAX} are sent")));
        }
        let mut whole = Vec::with_capacity(HEADER_BYTES + bytes.len());
        whole.put(MAGIC);
        whole.put_u16(VERSION);
        whole.put_u16(0);
        whole.put_u32(crc32c::crc32c(&bytes));
        whole.put(&bytes);
        Ok(whole)
    }

    /// Reads and checks them.
    ///
    /// # Errors
    /// When they are not one whole base.
    pub fn decode(bytes: &[u8]) -> Result<Self, BaseError> {
        let mut reader = Reader(bytes);
        if reader.take(4, "the beginning")? != MAGIC {
            return Err(malformed("it begins with something else"));
        }
        let version = reader.u16("the version")?;
        if version != VERSION {
            return Err(malformed(format!(
                "version {version}, and this program reads {VERSION}: run the one that wrote it"
            )));
        }
        reader.u16("the header")?;
        let (expected, found) =
            (reader.u32("the checksum")?, crc32c::crc32c(&bytes[HEADER_BYTES..]));
        if expected != found {
            return Err(malformed(format!("checksum {found:08x} instead of {expected:08x}")));
        }
        let last = log_id(&mut reader)?;
        let of_membership = match reader.u8("a flag")? {
            0 => None,
            _ => Some(log_id(&mut reader)?),
        };
        let entry = reader.bytes(ENTRY_BYTES_MAX, "a membership")?;
        let (entry, _) = decode_entry(Bytes::copy_from_slice(entry)).map_err(malformed)?;
        let EntryPayload::Membership(membership) = entry.payload else {
            return Err(malformed("there is no membership in it"));
        };
        let epoch = reader.u64("an epoch")?;
        let leader = NodeId::new(reader.u64("a leader")?);
        let run = reader.take(16, "a run")?.try_into().expect("as many were taken");
        let begun = (epoch > 0).then_some(Promise { epoch, leader, run: RunId::new(run) });
        let count = reader.count(STREAMS_MAX, 16, "starts")?;
        let mut starts = Vec::with_capacity(count);
        for _ in 0..count {
            starts.push((StreamId::new(reader.u64("a stream")?), reader.u64("a start")?));
        }
        let (epoch, end) = (reader.u64("an epoch")?, reader.u64("an end")?);
        let chain = (epoch > 0).then_some(Chain { epoch, end });
        let count = reader.count(STREAMS_MAX, 20, "streams")?;
        let mut streams = Vec::with_capacity(count);
        for _ in 0..count {
            let (stream, committed) = (reader.u64("a stream")?, reader.u64("an end")?);
            let count = reader.count(EPOCHS_MAX, 16, "epochs")?;
            let mut epochs = Vec::with_capacity(count);
            for _ in 0..count {
                let (epoch, start) = (reader.u64("an epoch")?, reader.u64("a start")?);
                epochs.push(EpochStart { epoch, start });
            }
            streams.push(StreamBase { stream: StreamId::new(stream), committed, epochs });
        }
        if !reader.0.is_empty() {
            return Err(malformed(format!("{} bytes are left behind its end", reader.0.len())));
        }
        let membership = StoredMembership::new(of_membership, membership);
        Ok(Self { last, membership, begun, starts, chain, streams })
    }

    /// Writes it aside, makes it durable, and puts it in the place of the one before. Waits for the disk.
    ///
    /// # Errors
    /// When it is not durable. The one before is then.
    pub fn save(&self, directory: &Path) -> Result<(), BaseError> {
        let bytes = self.encode()?;
        let (path, aside) = (directory.join(FILE), directory.join(format!("{FILE}.new")));
        let write = || -> io::Result<()> {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).open(&aside)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            std::fs::rename(&aside, &path)?;
            File::open(directory)?.sync_all()
        };
        write().map_err(|source| BaseError::File { path: path.clone(), source })
    }

    /// The one of a directory, if there is one.
    ///
    /// # Errors
    /// When it cannot be read, or is not sound.
    pub fn load(directory: &Path) -> Result<Option<Self>, BaseError> {
        let path = directory.join(FILE);
        let failed = |source| BaseError::File { path: path.clone(), source };
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mut bytes = Vec::new();
        Read::by_ref(&mut file)
            .take(BASE_BYTES_MAX as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        Self::decode(&bytes).map(Some)
    }
}

fn put_log_id(bytes: &mut Vec<u8>, log_id: LogId) {
    bytes.put_u64(log_id.leader_id.term);
    bytes.put_u64(log_id.index);
}

fn log_id(reader: &mut Reader<'_>) -> Result<LogId, Malformed> {
    let (term, index) = (reader.u64("a term")?, reader.u64("an index")?);
    Ok(crate::raft::log_id(term, index))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::raft::{Membership, RaftNode, log_id};

    fn base() -> Base {
        let nodes: BTreeMap<u64, RaftNode> =
            (1..4).map(|id| (id, RaftNode::new(format!("node{id}:1"), [id as u8; 16]))).collect();
        let membership = Membership::new(vec![BTreeSet::from([1, 2, 3])], nodes).unwrap();
        let epochs = vec![EpochStart { epoch: 1, start: 0 }, EpochStart { epoch: 4, start: 70 }];
        let leader = NodeId::new(2);
        Base {
            last: log_id(4, 90),
            membership: StoredMembership::new(Some(log_id(2, 5)), membership),
            begun: Some(Promise { epoch: 4, leader, run: RunId::new([7; 16]) }),
            starts: vec![(StreamId::new(0), 70)],
            chain: Some(Chain { epoch: 4, end: 75 }),
            streams: vec![StreamBase { stream: StreamId::new(0), committed: 80, epochs }],
        }
    }

    #[test]
    fn it_comes_back_as_it_was_and_no_part_or_change_of_it_does() {
        let bytes = base().encode().unwrap();
        assert_eq!(Base::decode(&bytes).unwrap(), base());
        for length in 0..bytes.len() {
            assert!(Base::decode(&bytes[..length]).is_err());
        }
        for place in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[place] ^= 4;
            let is_zero_field = (6..8).contains(&place);
            assert!(Base::decode(&changed).is_err() || is_zero_field, "{place}");
        }
    }

    #[test]
    fn a_file_takes_the_place_of_the_one_before_at_once() {
        let folder = tempfile::TempDir::new().unwrap();
        assert!(Base::load(folder.path()).unwrap().is_none());
        base().save(folder.path()).unwrap();
        let later = Base { last: log_id(4, 91), begun: None, ..base() };
        later.save(folder.path()).unwrap();
        assert_eq!(Base::load(folder.path()).unwrap(), Some(later));
        std::fs::write(folder.path().join(FILE), b"RWRB").unwrap();
        assert!(matches!(Base::load(folder.path()), Err(BaseError::Malformed(_))));
    }
}
