//! The way to the stores of other nodes: the one that Raft's messages take.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ringwal_replication::Requests;
use ringwal_replication::config::Member;
use ringwal_replication::requests::RequestError;

use super::wire::{Answer, Ask};
use crate::raft::{Transport, rpc};

/// Why there is no answer.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{why}")]
pub(crate) struct NoAnswer {
    /// What happened.
    pub(crate) why: String,
    /// Whether the other node may have done what was asked.
    pub(crate) may_be_done: bool,
}

/// See the module.
pub(crate) trait Peers: Clone + Send + Sync + 'static {
    /// Asks a node, once; the outcome is there within `limit`, about.
    fn ask(
        &self,
        to: &Member,
        ask: Ask,
        limit: Duration,
    ) -> impl Future<Output = Result<Answer, NoAnswer>> + Send;
}

/// Peers that are asked as Raft asks: the product's, and those of a simulation.
#[derive(Debug)]
pub(crate) struct NodePeers<T = Requests>(pub(crate) Arc<T>);

impl<T> Clone for NodePeers<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// The bytes of a question, for any node's engine.
pub(crate) fn request(ask: &Ask) -> Result<Bytes, NoAnswer> {
    let ask = rpc::Ask::Store(ask.encode().into());
    let bytes = rpc::Request { to_engine: [0; 16], ask }.encode();
    bytes.map(Bytes::from).map_err(|error| NoAnswer { why: error.to_string(), may_be_done: false })
}

/// What a node has replied.
pub(crate) fn answer(replied: Result<Bytes, RequestError>) -> Result<Answer, NoAnswer> {
    let lost = |why: String| NoAnswer { why, may_be_done: true };
    let bytes = replied
        .map_err(|error| NoAnswer { why: error.to_string(), may_be_done: error.may_be_done() })?;
    match rpc::Reply::decode(bytes).map_err(|error| lost(error.to_string()))? {
        rpc::Reply::Store(bytes) => Answer::decode(&bytes).map_err(|error| lost(error.to_string())),
        rpc::Reply::Refused(refusal) => {
            Err(NoAnswer { why: refusal.to_string(), may_be_done: false })
        }
        _ => Err(lost("it replies something else than was asked".to_owned())),
    }
}

impl<T: Transport> Peers for NodePeers<T> {
    async fn ask(&self, to: &Member, ask: Ask, limit: Duration) -> Result<Answer, NoAnswer> {
        answer(Transport::ask(&*self.0, to, request(&ask)?, limit).await)
    }
}
