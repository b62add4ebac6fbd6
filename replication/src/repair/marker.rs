//! What a repair has still to do, durably, before anything is given up: a file `repairing` in the
//! engine's directory. While it is there, the node does not lead (I-15).

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use ringwal_engine::format::FrameHeader;
use ringwal_engine::{CommitError, Engine, StreamId};

use crate::promise::{Fact, Promise, is_replicated};
use crate::worker::Facts;

const MARKER_FILE: &str = "repairing";
const UNFINISHED_FILE: &str = "repairing.new";
const MAGIC: [u8; 8] = *b"ringwalR";
const VERSION: u32 = 1;
/// Magic, version, checksum of the rest, its length.
const HEADER_BYTES: usize = 24;
/// Longest file that is believed.
const FILE_BYTES_MAX: u64 = 256 << 20;
/// As the segments are.
const FILE_MODE: u32 = 0o640;

/// Why a marker cannot be read, written or taken away.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MarkerError {
    /// The file system said no.
    #[error("{what} {}: {source}; mend that and start again", path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which path.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// Its bytes are not what was written.
    #[error(
        "{} is damaged ({what}): it says what a repair has still to bring back; restore the \
         directory from a backup, or let another disk take its place", path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// What it says cannot be made durable.
    #[error("what this node has promised cannot be made durable: {0}")]
    Commit(#[from] CommitError),
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> MarkerError + use<> {
    let path = path.to_owned();
    move |source| MarkerError::Io { what, path, source }
}

/// See the module. What several repairs have left adds up.
#[derive(Clone, Eq, PartialEq, Debug, Default)]
pub struct Marker {
    /// Where streams ended before, which they must reach again.
    pub ends: BTreeMap<StreamId, u64>,
    /// Records were given up, or more may have been here than anything tells: only a leader has all that is committed, so this
    /// node has to have followed one.
    pub must_follow: bool,
    /// What was promised.
    pub promise: Option<Promise>,
    /// What was known to be committed.
    pub committed: BTreeMap<StreamId, u64>,
    /// What streams had trimmed.
    pub trimmed: BTreeMap<StreamId, u64>,
    /// Where records of another history come back with the loss, to be cut again: their epoch was
    /// begun behind it.
    pub returned: BTreeMap<StreamId, u64>,
    /// Frames of streams 1 and 2, which no other node has.
    pub own: Vec<Bytes>,
}

impl Marker {
    /// What a directory is marked with.
    ///
    /// # Errors
    /// When there is a marker and it cannot be read, or is damaged.
    pub fn load(directory: &Path) -> Result<Option<Self>, MarkerError> {
        let path = directory.join(MARKER_FILE);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(failed("open", &path))?,
        };
        let mut bytes = Vec::new();
        let read = file.take(FILE_BYTES_MAX).read_to_end(&mut bytes);
        read.map_err(failed("read", &path))?;
        Self::decode(&bytes).map(Some).map_err(|what| MarkerError::Damaged { path, what })
    }

    /// Marks a directory, durably, in the place of what it was marked with.
    ///
    /// # Errors
    /// When the file system says no; then it is as before.
    pub fn store(&self, directory: &Path) -> Result<(), MarkerError> {
        let (path, unfinished) = (directory.join(MARKER_FILE), directory.join(UNFINISHED_FILE));
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(FILE_MODE);
        let written = options.open(&unfinished).and_then(|mut file| {
            file.write_all(&self.encode())?;
            file.sync_all()
        });
        written.map_err(failed("write", &unfinished))?;
        fs::rename(&unfinished, &path).map_err(failed("rename", &unfinished))?;
        sync_folder(directory)
    }

    /// Takes the marker away, durably.
    ///
    /// # Errors
    /// When the file system says no.
    pub fn remove(directory: &Path) -> Result<(), MarkerError> {
        let path = directory.join(MARKER_FILE);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(failed("remove", &path)),
        }?;
        sync_folder(directory)
    }

    /// What is not back, in words; `None` when all is.
    pub fn lacking(&self, engine: &Engine) -> Option<String> {
        if let Some(short) = self.short(engine, |_| true) {
            return Some(short);
        }
        let untold = "records were given up, or nothing tells how much the damaged end of its \
                      journal held, and it has not caught up with a leader since";
        self.must_follow.then(|| untold.to_owned())
    }

    /// What is not back of what was told; the only member of a cluster has nobody to follow.
    pub(crate) fn lacking_alone(&self, engine: &Engine) -> Option<String> {
        self.short(engine, |_| true)
    }

    /// What is not back of this node's own streams, which no leader brings.
    pub(crate) fn lacking_own(&self, engine: &Engine) -> Option<String> {
        self.short(engine, |stream| !is_replicated(stream))
    }

    fn short(&self, engine: &Engine, counts: impl Fn(StreamId) -> bool) -> Option<String> {
        let short = self.ends.iter().filter(|(stream, _)| counts(**stream));
        let short = short.map(|(stream, end)| (engine.stream(*stream).end(), *end, stream));
        let short: Vec<_> = short.filter(|(now, end, _)| now < end).collect();
        let (now, end, stream) = short.first()?;
        let more = match short.len() - 1 {
            0 => String::new(),
            more => format!(", and {more} more of the kind"),
        };
        Some(format!("stream {stream} ends at {now} and was durable up to {end}{more}"))
    }

    /// What `earlier`, which a repair has left that did not come to its end, says too.
    pub(super) fn join(&mut self, earlier: Self) {
        let raise = |to: &mut BTreeMap<StreamId, u64>, from: BTreeMap<StreamId, u64>| {
            for (stream, offset) in from {
                let known = to.entry(stream).or_default();
                *known = offset.max(*known);
            }
        };
        raise(&mut self.ends, earlier.ends);
        raise(&mut self.committed, earlier.committed);
        raise(&mut self.trimmed, earlier.trimmed);
        for (stream, offset) in earlier.returned {
            let known = self.returned.entry(stream).or_insert(offset);
            *known = offset.min(*known);
        }
        self.must_follow |= earlier.must_follow;
        self.promise = greater(self.promise, earlier.promise);
        // What this one found in the journal is newer; where both have a record, it is the same.
        self.own = [earlier.own, std::mem::take(&mut self.own)].concat();
    }

    /// What was promised and known, durably in the journal again, if it is not.
    pub(crate) fn settle_facts(&self, engine: &Engine, facts: Facts) -> Result<Facts, MarkerError> {
        let mut settled = facts.clone();
        settled.promise = greater(facts.promise, self.promise);
        for (stream, end) in &self.committed {
            let known = settled.committed.entry(*stream).or_default();
            *known = (*end).max(*known);
        }
        if settled != facts {
            settled.save(engine)?;
        }
        Ok(settled)
    }

    fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let word = |body: &mut Vec<u8>, word: u64| body.extend_from_slice(&word.to_le_bytes());
        word(&mut body, u64::from(self.must_follow));
        for pairs in [&self.ends, &self.committed, &self.trimmed, &self.returned] {
            word(&mut body, pairs.len() as u64);
            for (stream, offset) in pairs {
                word(&mut body, stream.get());
                word(&mut body, *offset);
            }
        }
        let promise = self.promise.map(|promise| Bytes::from(Fact::Promise(promise).encode()));
        for list in [&promise.into_iter().collect::<Vec<_>>(), &self.own] {
            word(&mut body, list.len() as u64);
            for bytes in list {
                word(&mut body, bytes.len() as u64);
                body.extend_from_slice(bytes);
            }
        }
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
        bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
        bytes.append(&mut body);
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let (header, body) = bytes.split_at_checked(HEADER_BYTES).ok_or("it is too short")?;
        if header[..8] != MAGIC {
            return Err("it is no such file");
        }
        if header[8..12] != VERSION.to_le_bytes() {
            return Err("a newer version has written it");
        }
        if header[16..] != (body.len() as u64).to_le_bytes() {
            return Err("it has another length than it says");
        }
        if header[12..16] != crc32c::crc32c(body).to_le_bytes() {
            return Err("its checksum is wrong");
        }
        Parts(body).marker().ok_or("its parts do not fit together")
    }
}

/// What is left of a body.
struct Parts<'a>(&'a [u8]);

impl Parts<'_> {
    fn marker(mut self) -> Option<Marker> {
        let must_follow = self.word()? != 0;
        let (ends, committed) = (self.pairs()?, self.pairs()?);
        let (trimmed, returned) = (self.pairs()?, self.pairs()?);
        let promise = match self.list()?.as_slice() {
            [] => None,
            [promise] => match Fact::decode(promise)? {
                Fact::Promise(promise) => Some(promise),
                Fact::Committed(_) | Fact::Member(..) | Fact::Begun(_) => return None,
            },
            _ => return None,
        };
        let own = self.list()?;
        let marker = Marker { ends, must_follow, promise, committed, trimmed, returned, own };
        self.0.is_empty().then_some(marker)
    }

    fn word(&mut self) -> Option<u64> {
        let (word, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*word))
    }

    fn pairs(&mut self) -> Option<BTreeMap<StreamId, u64>> {
        let count = self.word()?;
        (0..count).map(|_| Some((StreamId::new(self.word()?), self.word()?))).collect()
    }

    fn list(&mut self) -> Option<Vec<Bytes>> {
        let count = self.word()?;
        let mut one = || {
            let length = usize::try_from(self.word()?).ok()?;
            let (bytes, rest) = self.0.split_at_checked(length)?;
            self.0 = rest;
            Some(Bytes::copy_from_slice(bytes))
        };
        (0..count).map(|_| one()).collect()
    }
}

/// Where a frame begins and ends; `None` when it is damaged.
pub(super) fn offsets(frame: &[u8]) -> Option<(StreamId, std::ops::Range<u64>)> {
    let (header, _) = FrameHeader::verify(frame).ok()?;
    Some((StreamId::new(header.stream.get()), header.base_offset.get()..header.end_offset()))
}

/// Of two promises the one of the greater epoch; of the same one, whose leader is known.
pub(super) fn greater(one: Option<Promise>, other: Option<Promise>) -> Option<Promise> {
    one.into_iter().chain(other).max_by_key(|promise| (promise.epoch, promise.leader))
}

fn sync_folder(directory: &Path) -> Result<(), MarkerError> {
    let synced = File::open(directory).and_then(|folder| folder.sync_all());
    synced.map_err(failed("sync", directory))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::node_id::{NodeId, RunId};

    fn marker() -> Marker {
        let pairs = |offset| BTreeMap::from([(StreamId::new(9), offset), (StreamId::new(40), 3)]);
        let promise = Promise { epoch: 4, leader: NodeId::new(2), run: RunId::new([7; 16]) };
        Marker {
            ends: pairs(30),
            must_follow: true,
            promise: Some(promise),
            committed: pairs(20),
            trimmed: pairs(10),
            returned: pairs(25),
            own: vec![Bytes::from_static(b"a frame"), Bytes::new()],
        }
    }

    #[test]
    fn it_comes_back_as_it_was_and_no_bit_of_it_may_flip() {
        for marker in [marker(), Marker::default()] {
            let mut bytes = marker.encode();
            assert_eq!(Marker::decode(&bytes), Ok(marker));
            for bit in 0..bytes.len() * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(Marker::decode(&bytes).is_err(), "bit {bit}");
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            for length in 0..bytes.len() {
                assert!(Marker::decode(&bytes[..length]).is_err(), "{length} bytes");
            }
        }
    }

    #[test]
    fn it_is_durable_or_as_it_was_and_goes_for_good() {
        let directory = tempfile::tempdir().expect("a directory");
        let load = || Marker::load(directory.path()).expect("readable");
        assert_eq!(load(), None);
        marker().store(directory.path()).expect("room");
        assert_eq!(load(), Some(marker()));
        Marker::default().store(directory.path()).expect("room");
        assert_eq!(load(), Some(Marker::default()));
        std::fs::write(directory.path().join(MARKER_FILE), b"rot").expect("room");
        let error = Marker::load(directory.path()).expect_err("damaged");
        assert!(error.to_string().contains("is damaged"), "{error}");
        Marker::remove(directory.path()).expect("it is there");
        Marker::remove(directory.path()).expect("it may be gone");
        assert_eq!(load(), None);
    }

    #[test]
    fn what_two_repairs_have_left_adds_up() {
        let mut later = marker();
        let (ends, returned) = (BTreeMap::from([(StreamId::new(9), 40)]), later.returned.clone());
        later.ends = ends.clone();
        later.promise = later.promise.map(|promise| Promise { epoch: 3, ..promise });
        later.must_follow = false;
        later.join(marker());
        assert_eq!(later.ends, BTreeMap::from([(StreamId::new(9), 40), (StreamId::new(40), 3)]));
        assert_eq!((later.promise, later.returned), (marker().promise, returned));
        assert!(later.must_follow);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Parts(&body).marker();
            let _ = Marker::decode(&body);
        }
    }
}
