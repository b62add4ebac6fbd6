//! Clients: each asks whichever node it likes, one thing after another, and tells the oracle what it was
//! answered. What has no outcome it sometimes asks again, with the same session and number.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use openraft::AsyncRuntime as _;
use openraft_rt_sim::SimRuntime;
use ringwal_raft_fallback::command::{BrokerId, Command, Expected, Record, TopicName};
use ringwal_raft_fallback::limits::METADATA_VERSION;
use ringwal_raft_fallback::session::{Session, SessionId};
use ringwal_raft_fallback::simulating::{Applied, NoOutcome};
use ringwal_replication::Ack;
use tokio::sync::oneshot;

use super::cluster::{Cluster, Up};
use super::runtime::{spawn_in, true_ns};
use super::trouble::think;
use crate::history::{self, Asked, Outcome, Read, session_key};
use crate::random::Random;

/// See the module.
pub struct Client {
    cluster: Arc<Cluster>,
    number: u64,
    random: Random,
    session: u64,
    begun: u64,
    sequence: u64,
    is_stopped: Arc<AtomicBool>,
}

/// A client that runs.
pub struct Running(Arc<AtomicBool>);

impl Client {
    pub fn stop(running: &Running) {
        running.0.store(true, Ordering::SeqCst);
    }

    /// One that runs until it is stopped.
    pub fn start(cluster: Arc<Cluster>, number: u64, random: Random) -> Running {
        let mut client = Self::new(cluster, number, random);
        let is_stopped = client.is_stopped.clone();
        drop(spawn_in(None, async move {
            while !client.is_stopped.load(Ordering::SeqCst) {
                think(&mut client.random).await;
                client.act().await;
            }
        }));
        Running(is_stopped)
    }

    /// One that is asked for each thing.
    pub fn last(cluster: Arc<Cluster>) -> Self {
        Self::new(cluster, 99, Random::new(99))
    }

    fn new(cluster: Arc<Cluster>, number: u64, random: Random) -> Self {
        let is_stopped = Arc::default();
        Self { cluster, number, random, session: 0, begun: 0, sequence: 0, is_stopped }
    }

    fn any_node(&mut self) -> Option<Up> {
        let nodes = self.cluster.nodes() as u64;
        let number = self.random.below(nodes) as usize;
        self.cluster.up(number).filter(|up| up.node.is_some())
    }

    async fn act(&mut self) {
        match self.random.below(10) {
            0..7 => {
                let ack = self.random.pick(&[Ack::Local, Ack::Quorum]);
                self.execute_once(ack).await;
            }
            7 | 8 => self.read().await,
            _ => {
                if let Some(up) = self.any_node() {
                    let (progress, end) = up.place.metadata.read(|state| state.end());
                    assert_eq!(progress.end, end);
                    self.cluster.oracle(|oracle| oracle.counts.local_reads += 1);
                }
            }
        }
    }

    /// A command that no other one is the same as.
    fn command(&mut self) -> Command {
        let key = Bytes::from(format!("key-{}", self.random.below(4)));
        let topic = TopicName::new(&format!("topic-{}", self.random.below(3))).expect("a name");
        match self.random.below(12) {
            0..6 => {
                let length = self.random.pick(&[8, 40, 300]) as usize;
                let value = crate::random::payload(self.number, self.random.next(), length);
                Command::PutKey { key: key.to_vec(), value, expected: Expected::Any }
            }
            6 => Command::DeleteKey { key: key.to_vec(), expected: Expected::Any },
            7 | 8 => Command::CreateTopic {
                name: topic,
                partitions: 2,
                replication_factor: 1,
                configuration: Default::default(),
            },
            9 => Command::DeleteTopic { name: topic },
            _ => Command::RegisterBroker {
                broker: BrokerId::new(1 + self.number),
                addresses: vec![format!("broker-{}:9092", self.random.below(9))],
                knows: METADATA_VERSION,
            },
        }
    }

    /// A command, until it has an outcome or the client has lost its patience. Whether it is executed.
    pub async fn execute_once(&mut self, ack: Ack) -> bool {
        let Some(up) = self.any_node() else { return false };
        if self.session == 0 {
            self.session = self.random.next() | 1;
            self.begun = up.place.metadata.progress().end;
            self.sequence = 0;
        }
        self.sequence += 1;
        let id = SessionId::new(self.begun, self.session).expect("not 0");
        let session = Session::new(id, self.sequence).expect("not 0");
        let command = self.command();
        let record = Record { time_ms: true_ns() / 1_000_000, session: Some(session), command };
        let record = Bytes::from(record.encode().expect("a command"));
        let asked_ns = true_ns();
        let mut outcome = Outcome::NotDone;
        for _ in 0..self.random.pick(&[1, 1, 2, 3]) {
            let Some(up) = self.any_node() else { continue };
            match self.ask(up, record.clone(), ack).await {
                Some(Ok((applied, durable))) => {
                    if applied.is_retry {
                        self.cluster.oracle(|oracle| oracle.counts.executed_again += 1);
                    }
                    let place = (applied.epoch, applied.offset);
                    let now = history::outcome(place, applied.outcome, durable);
                    // What is under way of an attempt before may still be executed.
                    if !matches!((&outcome, &now), (Outcome::Unknown, Outcome::Refused)) {
                        outcome = now;
                    }
                    break;
                }
                Some(Err(NoOutcome::NotDone(_))) => {}
                Some(Err(NoOutcome::Unknown(_))) | None => outcome = Outcome::Unknown,
            }
        }
        let is_executed = matches!(outcome, Outcome::Executed { .. } | Outcome::Refused);
        if !is_executed {
            self.session = 0;
        }
        let key = session_key(&session);
        let asked = Asked { key, asked_ns, answered_ns: true_ns(), outcome };
        self.cluster.oracle(|oracle| oracle.note_asked(asked));
        is_executed
    }

    /// Asks one node; none when it dies first.
    async fn ask(
        &mut self,
        up: Up,
        record: Bytes,
        ack: Ack,
    ) -> Option<Result<(Applied, Ack), NoOutcome>> {
        let limit = Duration::from_millis(self.random.pick(&[50, 300, 1500, 4000]));
        let (answer, answered) = oneshot::channel();
        let node = up.node?;
        drop(spawn_in(Some(up.place.run.clone()), async move {
            let _ = answer.send(node.execute(record, ack, limit).await);
        }));
        // A process that is stopped answers late.
        SimRuntime::timeout(limit * 2, answered).await.ok()?.ok()
    }

    async fn read(&mut self) {
        let Some(Up { place, node: Some(node) }) = self.any_node() else { return };
        let limit = Duration::from_millis(self.random.pick(&[50, 300, 1500]));
        let (answer, answered) = oneshot::channel();
        let asked_ns = true_ns();
        drop(spawn_in(Some(place.run.clone()), async move {
            let read = node.read(limit, |state| (state.end(), state.epoch())).await;
            let _ = answer.send(read.map(|(_, seen)| seen));
        }));
        let read = SimRuntime::timeout(limit * 3, answered).await;
        self.cluster.oracle(|oracle| match read {
            Ok(Ok(Ok((end, epoch)))) => {
                oracle.note_read(Read {
                    asked_ns,
                    answered_ns: true_ns(),
                    end,
                    epoch: Some(epoch),
                });
            }
            _ => oracle.counts.reads_failed += 1,
        });
    }
}
