//! What tests put in the place of a node's streams and of the other nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use openraft::vote::leader_id_std::CommittedLeaderId;
use ringwal_engine::{EpochStart, StreamId};
use ringwal_replication::config::Member;
use ringwal_replication::node_id::{NodeId, RunId};
use ringwal_replication::promise::Promise;
use tokio::sync::{oneshot, watch};

use crate::base::Base;
use crate::command::{Command, Expected, Record};
use crate::raft::{LogId, Membership, RaftNode, StoredMembership};
use crate::replica::{AddError, Begun, Led, LedError, OutcomeError, Replica, Standing};
use crate::session::{Session, SessionId};
use crate::state::Applied;
use crate::store::peers::{NoAnswer, Peers};
use crate::store::wire::{Answer, Ask};

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term), index)
}

/// These nodes vote; node `n` has the engine `n, n, …`, and the address of the list.
pub(crate) fn membership(addresses: &[(u64, &str)]) -> StoredMembership {
    let node = |(id, address): &(u64, &str)| (*id, RaftNode::new(*address, [*id as u8; 16]));
    let voters: BTreeSet<u64> = addresses.iter().map(|(id, _)| *id).collect();
    let nodes: BTreeMap<u64, RaftNode> = addresses.iter().map(node).collect();
    let membership = Membership::new(vec![voters], nodes).expect("each voter is a node");
    StoredMembership::new(Some(log_id(1, 0)), membership)
}

/// A record that sets a key, as the one command of a session.
pub(crate) fn put(key: &str) -> Bytes {
    let id = SessionId::new(0, key.bytes().map(u64::from).sum()).expect("not 0");
    let session = Some(Session::new(id, 1).expect("not 0"));
    let command =
        Command::PutKey { key: key.into(), value: b"value".to_vec(), expected: Expected::Any };
    Record { time_ms: 7, session, command }.encode().expect("it is a command").into()
}

type Handler = dyn FnMut(NodeId, Ask) -> Result<Answer, NoAnswer> + Send;

/// Other nodes that answer as a test says.
#[derive(Clone)]
pub(crate) struct FakePeers(Arc<Mutex<Box<Handler>>>);

impl FakePeers {
    pub(crate) fn new(
        handler: impl FnMut(NodeId, Ask) -> Result<Answer, NoAnswer> + Send + 'static,
    ) -> Self {
        Self(Arc::new(Mutex::new(Box::new(handler))))
    }

    /// Nobody is to be asked.
    pub(crate) fn none() -> Self {
        Self::new(|to, ask| panic!("node {to} is asked {ask:?}"))
    }
}

impl Peers for FakePeers {
    async fn ask(&self, to: &Member, ask: Ask, _: Duration) -> Result<Answer, NoAnswer> {
        (lock(&self.0))(to.node, ask)
    }
}

/// A record in the queue, and where its receipt goes.
type Queued = (Bytes, oneshot::Sender<Result<u64, LedError>>);

/// A leadership whose receipts a test gives.
#[derive(Clone)]
pub(crate) struct FakeLed {
    pub(crate) epoch: u64,
    pub(crate) committed: watch::Sender<u64>,
    pub(crate) has_lease: Arc<AtomicBool>,
    queue: Arc<Mutex<Vec<Queued>>>,
}

impl FakeLed {
    pub(crate) fn new(epoch: u64) -> Self {
        let has_lease = Arc::new(AtomicBool::new(true));
        Self { epoch, committed: watch::Sender::new(0), has_lease, queue: Arc::default() }
    }

    /// What was appended last.
    pub(crate) fn take(&self) -> Option<Queued> {
        lock(&self.queue).pop()
    }
}

impl Led for FakeLed {
    type Pending = BoxFuture<'static, Result<u64, LedError>>;

    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn ended(&self) -> Option<String> {
        None
    }

    fn lease_until(&self, _: u64) {}

    fn holds_lease(&self) -> bool {
        self.has_lease.load(Ordering::SeqCst)
    }

    async fn append(&self, record: &[u8]) -> Result<Self::Pending, LedError> {
        let (receipt, given) = oneshot::channel();
        lock(&self.queue).push((Bytes::copy_from_slice(record), receipt));
        Ok(Box::pin(async move { given.await.expect("a receipt, or why there is none") }))
    }

    async fn drained(&self) -> Result<(), LedError> {
        Ok(())
    }

    async fn committed(&self, end: u64) -> Result<(), LedError> {
        let mut committed = self.committed.subscribe();
        let reached = committed.wait_for(|committed| *committed >= end).await;
        reached.map(drop).map_err(|error| LedError::Unknown(error.to_string()))
    }

    fn committed_end(&self, _: StreamId) -> u64 {
        *self.committed.borrow()
    }
}

/// A node of which only this is asked.
#[derive(Clone)]
pub(crate) struct FakeReplica {
    pub(crate) id: u64,
    pub(crate) engine: [u8; 16],
    pub(crate) unfit: Option<String>,
    pub(crate) now_ns: u64,
    /// By epoch and offset: what is applied.
    pub(crate) applied: watch::Sender<BTreeMap<(u64, u64), Applied>>,
}

impl FakeReplica {
    pub(crate) fn new(id: u64) -> Self {
        let applied = watch::Sender::default();
        Self { id, engine: [id as u8; 16], unfit: None, now_ns: 1_000, applied }
    }

    pub(crate) fn applies(&self, applied: Applied) {
        let place = (applied.epoch, applied.offset);
        self.applied.send_modify(|all| all.extend([(place, applied)]));
    }
}

/// Tests with this replica ask nothing else of it.
fn not_asked() -> ! {
    unreachable!("a test asks more of its replica than that has")
}

impl Replica for FakeReplica {
    type Led = FakeLed;

    fn id(&self) -> NodeId {
        NodeId::new(self.id)
    }

    fn run(&self) -> RunId {
        RunId::new([1; 16])
    }

    fn engine(&self) -> [u8; 16] {
        self.engine
    }

    fn begun(&self) -> Option<Promise> {
        None
    }

    fn unfit(&self) -> Option<String> {
        self.unfit.clone()
    }

    fn has_failed(&self) -> bool {
        self.unfit.as_ref().is_some_and(|why| why.contains("failed"))
    }

    fn boottime_ns(&self) -> u64 {
        self.now_ns
    }

    async fn promise(&self, _: Promise) -> Result<Standing, String> {
        not_asked()
    }

    async fn begin(&self, _: Promise, _: Vec<(StreamId, u64)>) -> Result<Begun<FakeLed>, String> {
        not_asked()
    }

    async fn begin_known(
        &self,
        _: Promise,
        _: Vec<(StreamId, Vec<EpochStart>)>,
    ) -> Result<(), String> {
        not_asked()
    }

    fn epochs(&self) -> Vec<(StreamId, Vec<EpochStart>)> {
        not_asked()
    }

    async fn load_base(&self) -> Result<Option<Base>, String> {
        not_asked()
    }

    async fn save_base(&self, _: Base) -> Result<(), String> {
        not_asked()
    }

    async fn extend(&self, _: u64, _: u64, _: Vec<Bytes>) -> Result<(), AddError> {
        not_asked()
    }

    async fn fetch(&self, _: &Member, _: Vec<(StreamId, Range<u64>)>) -> Result<(), String> {
        not_asked()
    }

    fn now_ms(&self) -> u64 {
        1_000
    }

    fn set_members(
        &self,
        _: Vec<Member>,
        _: Vec<BTreeSet<NodeId>>,
        _: std::collections::BTreeMap<NodeId, [u8; 16]>,
    ) {
        not_asked()
    }

    fn metadata_end(&self) -> u64 {
        not_asked()
    }

    fn committed_ends(&self) -> Vec<(StreamId, u64)> {
        not_asked()
    }

    fn standing(&self) -> Standing {
        not_asked()
    }

    async fn read(&self, _: Range<u64>) -> Result<Vec<Bytes>, String> {
        not_asked()
    }

    async fn outcome(&self, epoch: u64, offset: u64) -> Result<Applied, OutcomeError> {
        let mut applied = self.applied.subscribe();
        let all = applied.wait_for(|all| all.contains_key(&(epoch, offset))).await;
        all.map(|all| all[&(epoch, offset)])
            .map_err(|error| OutcomeError::Unknown(error.to_string()))
    }
}
