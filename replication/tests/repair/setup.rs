//! Nodes on loopback, and ways to damage the directory of one that is stopped.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::net::TcpListener;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ringwal_engine::format::{FRAME_HEADER_BYTES, FrameHeader, FrameKind};
use ringwal_engine::offline::{self, Cut, FileState};
use ringwal_engine::{Engine, StreamId};
use ringwal_replication::config::{Config, Member, TlsConfig};
use ringwal_replication::node_id::{ClusterId, NodeId};
use ringwal_replication::promise::{FACTS_STREAM, Fact, Promise};
use ringwal_replication::repair::{RepairFrom, RepairFromError, RepairedFrom, repair_from};
use ringwal_replication::{Ack, Leadership, Node};

use crate::authority::{Authority, write};

pub const CLUSTER: ClusterId = ClusterId::new([7; 16]);
pub const STREAMS: [u64; 5] = [0, 9, 40, 41, 42];
pub const LIMIT: Duration = Duration::from_secs(20);

pub type Contents = BTreeMap<u64, Vec<(u64, u64, Vec<u8>)>>;

pub struct Cluster {
    _keep: tempfile::TempDir,
    root: PathBuf,
    addresses: Vec<String>,
    shards: u16,
    /// Each node's name in its certificate, when there is TLS.
    tls: Option<(Authority, Vec<String>)>,
}

impl Cluster {
    pub fn new(nodes: usize, shards: u16) -> Self {
        // All at once, so that they differ.
        let free = |_| TcpListener::bind("127.0.0.1:0").expect("a free port");
        let listeners: Vec<_> = (0..nodes).map(free).collect();
        let address = |listener: &TcpListener| listener.local_addr().expect("bound").to_string();
        let keep = tempfile::tempdir().expect("a directory");
        let root = keep.path().to_owned();
        let addresses = listeners.iter().map(address).collect();
        Self { _keep: keep, root, addresses, shards, tls: None }
    }

    /// With TLS, and these names beside the address in the certificates.
    pub fn secured(names: &[&str]) -> Self {
        let owned = names.iter().map(|name| (*name).to_owned()).collect();
        let mut cluster = Self::new(names.len(), 1);
        cluster.tls = Some((Authority::new(), owned));
        cluster
    }

    pub fn path(&self, node: usize) -> PathBuf {
        self.root.join(format!("node-{node}"))
    }

    pub fn address(&self, node: usize) -> &str {
        &self.addresses[node - 1]
    }

    pub fn config(&self, node: usize) -> Config {
        let members = (1..)
            .zip(&self.addresses)
            .map(|(node, address)| Member { node: NodeId::new(node), address: address.clone() });
        let mut config = Config::new(CLUSTER, NodeId::new(node as u64), members.collect());
        config.listen = self.addresses[node - 1].clone();
        if let Some((_, names)) = &self.tls {
            config.tls = Some(self.certificate_of(&[&names[node - 1], "127.0.0.1"]));
        }
        config
    }

    /// A certificate with just these names that the cluster's authority has issued.
    pub fn certificate_of(&self, names: &[&str]) -> TlsConfig {
        self.certificate(&self.tls.as_ref().expect("it has TLS").0, names)
    }

    /// Of any authority, and believing that one only.
    pub fn certificate(&self, authority: &Authority, names: &[&str]) -> TlsConfig {
        let free = (0..).map(|n| self.root.join(format!("tls-{n}")));
        let folder = free.into_iter().find(|path| !path.exists()).expect("endless");
        fs::create_dir(&folder).expect("a folder");
        let issued = authority.issue_with(names[0], |params| {
            let names = names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
            let all = rcgen::CertificateParams::new(names).expect("names");
            params.subject_alt_names = all.subject_alt_names;
        });
        write(&folder, &issued, &[authority])
    }

    pub fn start(&self, node: usize) -> Node {
        self.start_as(node, self.config(node))
    }

    pub fn start_as(&self, node: usize, config: Config) -> Node {
        let options = Engine::options().shards(self.shards).segment_bytes(1 << 20);
        let options = options.pool_bytes(4 << 20).batch_bytes_max(128 << 10).lock_wait(LIMIT);
        let engine = options.open(self.path(node)).expect("the engine opens");
        Node::start(engine, config).expect("the node starts")
    }

    /// Repairs node 2 from `from`.
    pub fn repair(&self, from: usize) -> Asked<'_> {
        let options = RepairFrom {
            config: self.config(2),
            from: self.address(from).to_owned(),
            dry_run: false,
            accept_loss_from: Vec::new(),
            backup: PathBuf::new(),
            stop_after_frames: None,
        };
        Asked { cluster: self, options }
    }

    /// The files of a running node as a kill would leave them take the place of its directory once
    /// it is stopped.
    pub fn kill(&self, node: usize, running: Node) {
        // The idle seal comes first.
        std::thread::sleep(Duration::from_millis(100));
        let (path, killed) = (self.path(node), self.root.join("killed"));
        copy(&path, &killed);
        stop(running);
        fs::remove_dir_all(&path).expect("a directory");
        fs::rename(&killed, &path).expect("the copy takes its place");
    }
}

pub struct Asked<'a> {
    cluster: &'a Cluster,
    pub options: RepairFrom,
}

impl Asked<'_> {
    pub fn accept(mut self, cuts: &[Cut]) -> Self {
        self.options.accept_loss_from = cuts.to_vec();
        self
    }

    pub fn stop_after(mut self, frames: u64) -> Self {
        self.options.stop_after_frames = Some(frames);
        self
    }

    pub fn run(mut self) -> Result<RepairedFrom, RepairFromError> {
        let free = (0..).map(|n| self.cluster.root.join(format!("backup-{n}")));
        self.options.backup = free.into_iter().find(|path| !path.exists()).expect("endless");
        repair_from(self.cluster.path(2), &self.options)
    }

    /// A dry run, which must not change anything.
    pub fn dry(&self) -> Result<RepairedFrom, RepairFromError> {
        let before = files(&self.cluster.path(2));
        let mut options = self.options.clone();
        options.dry_run = true;
        let outcome = repair_from(self.cluster.path(2), &options);
        assert!(files(&self.cluster.path(2)) == before, "a dry run has changed something");
        outcome
    }
}

pub fn stop(node: Node) {
    let engine = node.engine().clone();
    node.close();
    engine.close().expect("a sound disk");
}

pub fn record(number: u64) -> Vec<u8> {
    let mut record = number.to_le_bytes().to_vec();
    record.resize(8 + (number % 700) as usize, number as u8);
    record
}

/// Appends to every stream in turn.
pub fn append(leadership: &Leadership, numbers: Range<u64>, ack: Ack) {
    let append = |number: u64| {
        let stream = StreamId::new(STREAMS[(number % STREAMS.len() as u64) as usize]);
        leadership.append(stream, record(number), ack).expect("it leads")
    };
    for chunk in numbers.collect::<Vec<_>>().chunks(200) {
        let pending: Vec<_> = chunk.iter().map(|number| append(*number)).collect();
        for pending in pending {
            pending.wait().expect("a receipt");
        }
    }
}

pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn wait_equal(one: &Node, other: &Node) {
    wait_until("both end alike", || {
        STREAMS.map(StreamId::new).iter().all(|stream| {
            one.engine().stream(*stream).end() == other.engine().stream(*stream).end()
        })
    });
}

pub fn contents(engine: &Engine) -> Contents {
    let of = |stream: u64| {
        let records = engine.stream(StreamId::new(stream)).read(..).expect("from its start");
        let records = records.map(|record| record.expect("sound"));
        records.map(|r| (r.epoch(), r.offset(), r.payload().to_vec())).collect()
    };
    STREAMS.iter().map(|stream| (*stream, of(*stream))).collect()
}

/// Of a directory that no engine has open.
pub fn contents_of(path: &Path) -> Contents {
    let engine = Engine::options().read_only(true).open(path).expect("readable");
    let contents = contents(&engine);
    engine.close().expect("nothing is written");
    contents
}

/// What a node has promised, by its directory.
pub fn promised(path: &Path) -> Option<Promise> {
    let engine = Engine::options().read_only(true).open(path).expect("readable");
    let records = engine.stream(FACTS_STREAM).read(..).expect("from its start");
    let facts = records.filter_map(|record| Fact::decode(record.expect("sound").payload()));
    let promise = facts.filter_map(|fact| match fact {
        Fact::Promise(promise) => Some(promise),
        Fact::Committed(_) | Fact::Member(..) | Fact::Begun(_) => None,
    });
    promise.last()
}

/// Every file, but the one that only its lock counts of.
pub fn files(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(path).expect("a folder").flatten() {
        match entry.path() {
            path if path.is_dir() => files.extend(self::files(&path)),
            path if path.ends_with("lock") => {}
            path => drop(files.insert(path.clone(), fs::read(&path).expect("readable"))),
        }
    }
    files
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a new folder");
    for entry in fs::read_dir(from).expect("a folder").flatten() {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            fs::copy(&from, &to).expect("room");
        }
    }
}

/// Segment files in a state, oldest first, of the shard that has most of them.
pub fn segments(path: &Path, state: FileState) -> Vec<PathBuf> {
    let inspection = offline::inspect(path).expect("readable");
    let of = |shard: &offline::ShardInspection| {
        let mut files: Vec<_> =
            shard.files.iter().filter(|file| file.state == state && file.records > 0).collect();
        files.sort_by_key(|file| file.generation);
        let folder = path.join(format!("shard-{:02}", shard.shard));
        files.iter().map(|file| folder.join(&file.name)).collect::<Vec<_>>()
    };
    inspection.shards.iter().map(of).max_by_key(Vec::len).expect("a shard")
}

/// A bit of the first frame of a replicated stream at or behind a byte is another one now.
pub fn spoil(file: &Path, from: usize) {
    let mut bytes = fs::read(file).expect("readable");
    let is_one_of_ours = |at: &usize| {
        let header = FrameHeader::verify(&bytes[*at..]);
        header.is_ok_and(|(h, kind)| kind == FrameKind::Data && STREAMS.contains(&h.stream.get()))
    };
    let found = (from..bytes.len()).find(is_one_of_ours).expect("a frame");
    bytes[found + FRAME_HEADER_BYTES + 9] ^= 4;
    fs::write(file, bytes).expect("room");
}

/// Four blocks that were written are something else now.
pub fn rot(file: &Path, from: u64) {
    let file = OpenOptions::new().write(true).open(file).expect("there");
    file.write_all_at(&[7; 16 << 10], from).expect("room");
}

#[track_caller]
pub fn assert_damaged(path: &Path) {
    let found = offline::verify(path).expect("readable");
    assert!(found.is_corrupt(), "{:?}", found.findings);
}

#[track_caller]
pub fn assert_whole(path: &Path) {
    let found = offline::verify(path).expect("readable");
    assert!(!found.is_damaged(), "{:?}", found.findings);
    assert!(!path.join("repairing").exists(), "it is marked as unfinished");
}
