//! Tells Raft what is durable: one task, which waits for the engine's tokens in the order of the writes.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use openraft::AsyncRuntime;
use openraft::alias::{MpscReceiverOf, OneshotSenderOf};
use openraft::async_runtime::{MpscReceiver, OneshotSender};
use openraft::storage::IOFlushed;
use ringwal_engine::AppendBatch;

use super::log_store::Shared;
use super::types::Types;

/// What the task is told.
pub(super) enum Written<R: AsyncRuntime> {
    /// These entries are on their way. Who asked to be told is told after the last of them.
    Entries { token: AppendBatch, indexes: Range<u64>, callback: Option<IOFlushed<Types<R>>> },
    /// Tell when everything before has its outcome.
    Settle(OneshotSenderOf<Types<R>, io::Result<()>>),
}

/// Runs until the log is dropped. After the first failure nothing is reported durable any more: what
/// follows a gap is worth nothing.
pub(super) async fn complete<R: AsyncRuntime>(
    mut written: MpscReceiverOf<Types<R>, Written<R>>,
    shared: Arc<Shared>,
) {
    while let Some(next) = written.recv().await {
        match next {
            Written::Entries { token, indexes, callback } => {
                match token.await {
                    Err(error) => shared.fail(&error),
                    Ok(receipts) if receipts.offsets() != indexes => {
                        let placed = receipts.offsets();
                        shared.fail(&format!(
                            "entries {indexes:?} of Raft's log came to lie at {placed:?}"
                        ));
                    }
                    Ok(_) => shared.durable(indexes.end),
                }
                if let Some(callback) = callback {
                    callback.io_completed(shared.check());
                }
            }
            Written::Settle(answer) => {
                let _ = answer.send(shared.check());
            }
        }
    }
}
