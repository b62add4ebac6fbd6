//! The thread `ringwal-raft`: openraft, what it applies, the control of a leadership, and whatever waits
//! for them. One runtime of one thread; nothing in it waits for a disk.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft_rt_tokio::TokioRuntime;
use ringwal_replication::requests::{Asked, Replies};
use ringwal_replication::{Ack, Requests};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::control::{Order, RaftHandle};
use crate::lease::LeaseKeeper;
use crate::metadata::Progress;
use crate::node::{Operator, StartError};
use crate::raft::EngineJournal;
use crate::raft::rpc::Reply;
use crate::raft::serve::Served;
use crate::replica::product::NodeReplica;
use crate::store::executing::{Answered, Executor, Origin, Unanswered};
use crate::store::peers::NodePeers;
use crate::store::wire::{Answer, Ask};
use crate::wiring::{self, Parts, Wired, WiredAnswering, WiredServing, wire};

/// Tasks that wait for the thread: requests of other nodes, and commands that do not go the fast way.
pub(crate) const TASKS_MAX: usize = 4096;
/// What is under way gets its outcome within this, when the node closes.
const LAST_WORDS: Duration = Duration::from_millis(200);

type NodeAnswering = WiredAnswering<TokioRuntime, NodeReplica, Requests>;
type NodeServing = WiredServing<TokioRuntime, NodeReplica, Requests>;

/// Something for the thread to do.
pub(crate) enum Task {
    /// A command that did not go the fast way.
    Execute {
        record: Bytes,
        ack: Ack,
        limit: Duration,
        done: oneshot::Sender<Result<Answered, Unanswered>>,
    },
    /// Up to where a read has to see.
    ReadEnd { limit: Duration, done: oneshot::Sender<Result<Progress, Unanswered>> },
    /// Another node asks.
    Serve(Asked),
}

/// What other nodes ask comes to the thread; what has no place gets no reply.
pub(crate) struct Inbox(pub(crate) mpsc::Sender<Task>);

impl Replies for Inbox {
    fn handle(&self, asked: Asked) {
        // Dropping it says that there will be no reply.
        let _ = self.0.try_send(Task::Serve(asked));
    }
}

/// What the thread is started with.
pub(crate) struct Setup {
    pub(crate) parts: Parts<NodeReplica, Requests, EngineJournal>,
    pub(crate) tasks: mpsc::Receiver<Task>,
    pub(crate) operator: Arc<Operator>,
    /// It is to end.
    pub(crate) closing: Arc<Notify>,
    pub(crate) started: std::sync::mpsc::Sender<Result<Started, StartError>>,
}

/// What others need of the thread.
pub(crate) struct Started {
    pub(crate) executor: Executor<NodeReplica, NodePeers>,
    pub(crate) orders: mpsc::Sender<Order>,
    pub(crate) lease: Arc<LeaseKeeper>,
    pub(crate) raft: RaftHandle<TokioRuntime, NodeReplica, NodePeers>,
}

/// Runs until it is told to close.
pub(crate) fn run(setup: Setup) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = setup.started.send(Err(StartError::Thread(error)));
            return;
        }
    };
    runtime.block_on(async move {
        let Setup { started, mut tasks, operator, closing, parts } = setup;
        match wire(parts).await {
            Err(error) => drop(started.send(Err(error))),
            Ok(Wired { executor, orders, lease, raft, answering, serving }) => {
                let begun = Started { executor, orders, lease, raft };
                let raft = begun.raft.clone();
                let _ = started.send(Ok(begun));
                let work = turn(&mut tasks, Arc::new(answering), Arc::new(serving), operator);
                tokio::select! {
                    () = work => {}
                    () = closing.notified() => {}
                }
                if let Err(error) = raft.shutdown().await {
                    tracing::error!(%error, "Raft has panicked");
                }
                tokio::time::sleep(LAST_WORDS).await;
            }
        }
    });
    // What waits for a disk is not waited for.
    runtime.shutdown_background();
}

/// Does whatever comes, side by side, begun in the order in which it came.
async fn turn(
    tasks: &mut mpsc::Receiver<Task>,
    answering: Arc<NodeAnswering>,
    serving: Arc<NodeServing>,
    operator: Arc<Operator>,
) {
    while let Some(task) = tasks.recv().await {
        match task {
            Task::Execute { record, ack, limit, done } => {
                let executor = answering.executor.clone();
                tokio::spawn(async move {
                    let origin = Origin::Here;
                    let outcome =
                        executor.execute::<TokioRuntime>(record, ack, limit, origin).await;
                    let _ = done.send(outcome);
                });
            }
            Task::ReadEnd { limit, done } => {
                let answering = answering.clone();
                tokio::spawn(async move {
                    let _ = done.send(wiring::read_end(&answering, limit).await);
                });
            }
            Task::Serve(Asked { from, bytes, reply }) => {
                let (answering, serving) = (answering.clone(), serving.clone());
                let operator = operator.clone();
                tokio::spawn(async move {
                    let bytes = match serving.serve(from, bytes).await {
                        Served::Reply(bytes) => bytes,
                        Served::Store(bytes) => {
                            let answer = match Ask::decode(&bytes) {
                                Ok(Ask::Operator(ask)) => operator.answer(ask).await,
                                Ok(_) if from.is_client() => {
                                    Answer::Refused("only nodes ask that".to_owned())
                                }
                                Ok(ask) => answering.answer(from, ask).await,
                                Err(error) => Answer::Refused(error.to_string()),
                            };
                            Reply::Store(answer.encode().into()).encode().into()
                        }
                    };
                    reply.send(bytes);
                });
            }
        }
    }
}
