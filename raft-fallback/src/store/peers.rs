//! The way to the stores of other nodes. The product has replication's requests behind it; a simulation its
//! own.

use std::future::Future;
use std::time::Duration;

use ringwal_replication::config::Member;

use super::wire::{Answer, Ask};

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
