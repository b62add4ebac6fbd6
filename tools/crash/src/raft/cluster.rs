//! The nodes of a run, as far as they are up, what is between them, and what is known of all of them.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use openraft::AsyncRuntime as _;
use openraft_rt_sim::SimRuntime;
use ringwal_engine::StreamId;
use ringwal_engine::format::VerifiedFrame;
use ringwal_raft_fallback::raft::Transport;
use ringwal_raft_fallback::simulating::Simulated;
use ringwal_replication::config::Member;
use ringwal_replication::history::Held;
use ringwal_replication::node_id::NodeId;
use ringwal_replication::requests::RequestError;
use ringwal_replication::simulating::frame_of;
use ringwal_replication::wire::Hello;
use tokio::sync::oneshot;

use super::links::{Class, Connection, Links};
use super::oracle::Oracle;
use super::place::Place;
use super::replica::SimReplica;
use super::runtime::{NodeRuntime, lock, spawn_in};

/// A node as the product puts it together.
pub type Node = Simulated<NodeRuntime, SimReplica, SimTransport>;

/// How long records are fetched.
const FETCH_LIMIT: Duration = Duration::from_secs(2);
/// Frames that are read for another node at once, in bytes.
const FETCH_BYTES: usize = 16 << 10;
/// How long nobody hears of a request that was lost.
const LOST_FOR: Duration = Duration::from_secs(20);

/// One that is up.
#[derive(Clone)]
pub struct Up {
    pub place: Arc<Place>,
    /// When it has started.
    pub node: Option<Arc<Node>>,
}

/// See the module.
pub struct Cluster {
    pub links: Arc<Links>,
    up: Mutex<Vec<Option<Up>>>,
    oracle: Mutex<Oracle>,
}

impl Cluster {
    pub fn new(nodes: usize, links: Arc<Links>, oracle: Oracle) -> Arc<Self> {
        let up = Mutex::new((0..nodes).map(|_| None).collect());
        Arc::new(Self { links, up, oracle: Mutex::new(oracle) })
    }

    pub fn nodes(&self) -> usize {
        lock(&self.up).len()
    }

    pub fn oracle<T>(&self, look: impl FnOnce(&mut Oracle) -> T) -> T {
        look(&mut lock(&self.oracle))
    }

    pub fn up(&self, number: usize) -> Option<Up> {
        lock(&self.up)[number].clone()
    }

    /// Who is up, and has started.
    pub fn node(&self, number: usize) -> Option<Arc<Node>> {
        self.up(number)?.node
    }

    pub fn set(&self, number: usize, up: Option<Up>) -> Option<Up> {
        std::mem::replace(&mut lock(&self.up)[number], up)
    }

    pub fn rouse(&self, number: usize) {
        if let Some(up) = self.up(number) {
            up.place.rouse();
        }
    }

    /// A leader reaches for a follower.
    pub fn dial(self: &Arc<Self>, connection: Arc<Connection>, hello: Hello) {
        let cluster = self.clone();
        let (from, to) = (connection.leader, connection.follower);
        self.links.send(from, to, Class::Stream, move || match cluster.up(to) {
            None => connection.break_it(),
            Some(up) => {
                up.place.lock().arrived.push_back((connection, hello));
                up.place.rouse();
            }
        });
    }

    /// What another node holds of a stream, and frames of a range of it.
    pub async fn fetch(
        self: &Arc<Self>,
        me: usize,
        from: NodeId,
        stream: StreamId,
        range: Range<u64>,
    ) -> Result<(Held, Vec<Bytes>), String> {
        let (answer, answered) = oneshot::channel();
        let (cluster, other) = (self.clone(), (from.get() - 1) as usize);
        self.links.send(me, other, Class::Request, move || {
            let Some(up) = cluster.up(other) else { return };
            let mut state = up.place.lock();
            let held = state.held(stream);
            let mut frames = state.shard().frames(stream, range.start);
            let mut taken = Vec::new();
            while frames.offset() < range.end {
                let batch = frames.next_batch(FETCH_BYTES).expect("the disk is sound");
                if batch.is_empty() {
                    break;
                }
                taken.extend(batch.iter().filter_map(|frame| until(&frame.bytes, range.end)));
            }
            let taken = (held, taken);
            cluster.links.send(other, me, Class::Reply, move || drop(answer.send(taken)));
        });
        match NodeRuntime::timeout(FETCH_LIMIT, answered).await {
            Ok(Ok(frames)) => Ok(frames),
            _ => Err(format!("node {from} gives no records")),
        }
    }

    /// A request on its way to a node.
    fn request(self: &Arc<Self>, me: usize, to: usize, bytes: Bytes, reply: Replying) {
        let cluster = self.clone();
        self.links.send(me, to, Class::Request, move || {
            let Some(Up { place, node: Some(node) }) = cluster.up(to) else { return };
            let from = NodeId::new(me as u64 + 1);
            let links = cluster.links.clone();
            drop(spawn_in(Some(place.run.clone()), async move {
                let bytes = node.serve(from, bytes).await;
                links.send(to, me, Class::Reply, move || reply.send(bytes));
            }));
        });
    }
}

/// The records of a frame below an offset, as a frame.
fn until(frame: &[u8], end: u64) -> Option<Bytes> {
    let frame = VerifiedFrame::verify(frame).expect("the disk is sound");
    let (stream, epoch) = (frame.header.stream.get(), frame.header.epoch.get());
    let base = frame.header.base_offset.get();
    let count = end.checked_sub(base).filter(|count| *count > 0)?;
    let records: Vec<&[u8]> = frame.records().take(count as usize).collect();
    Some(frame_of(StreamId::new(stream), epoch, base, &records, usize::MAX))
}

/// Where a reply goes. Nobody is told when it is lost, for a while.
struct Replying(Option<oneshot::Sender<Bytes>>);

impl Replying {
    fn send(mut self, bytes: Bytes) {
        let _ = self.0.take().map(|reply| reply.send(bytes));
    }
}

impl Drop for Replying {
    fn drop(&mut self) {
        let Some(reply) = self.0.take() else { return };
        if openraft_rt_sim::SimInstant::try_now().is_some() && !reply.is_closed() {
            drop(spawn_in(None, async move {
                SimRuntime::sleep(LOST_FOR).await;
                drop(reply);
            }));
        }
    }
}

/// A node's way to the others.
pub struct SimTransport {
    pub me: usize,
    pub cluster: Arc<Cluster>,
}

impl Transport for SimTransport {
    async fn ask(&self, to: &Member, bytes: Bytes, limit: Duration) -> Result<Bytes, RequestError> {
        let (reply, replied) = oneshot::channel();
        let other = (to.node.get() - 1) as usize;
        self.cluster.request(self.me, other, bytes, Replying(Some(reply)));
        match NodeRuntime::timeout(limit, replied).await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(_)) => Err(RequestError::NoReply { node: to.node }),
            Err(_) => Err(RequestError::Late { node: to.node, limit, is_sent: true }),
        }
    }
}
