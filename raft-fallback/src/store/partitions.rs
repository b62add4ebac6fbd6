//! Where a topic's partitions are written: on the node that leads, in the present epoch.

use ringwal_engine::{Append, AppendBatch, StreamId};
use ringwal_replication::{Ack, Leadership, LedAppendError, Pending};

use crate::state::{FIRST_STREAM, TopicId};

/// Why a record is not appended to a partition. Nothing of it was written.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProduceError {
    /// No topic has this id: its stream is the system's.
    #[error(
        "stream {stream} is the system's, and no partition; topics have ids from {FIRST_STREAM} on"
    )]
    NoPartition {
        /// Which stream it would be.
        stream: StreamId,
    },
    /// This node does not take it, now or any more.
    #[error(transparent)]
    Led(#[from] LedAppendError),
}

/// The right to append to the streams of partitions, in one epoch: see
/// [`MetadataStore::partitions`](crate::MetadataStore::partitions). Clones share it. It takes nothing while
/// this leader has no lease, and never again when its epoch is over.
///
/// Whether a topic is there, and has that partition, is for the caller to look up, once for many records:
/// the metadata is not looked at here.
#[derive(Clone, Debug)]
pub struct Partitions {
    leadership: Leadership,
}

impl Partitions {
    pub(super) fn new(leadership: Leadership) -> Self {
        Self { leadership }
    }

    /// In which epoch.
    pub fn epoch(&self) -> u64 {
        self.leadership.epoch()
    }

    /// Why it is over, if it is: ask the store again, or the node that leads now.
    pub fn ended(&self) -> Option<String> {
        self.leadership.ended()
    }

    /// Appends to the stream of a partition ([`TopicId::stream`]); waits for room when too much is under
    /// way. The token tells when the record is durable as `ack` asks, and its offset.
    ///
    /// # Errors
    /// See [`ProduceError`]. The token's are [`LedCommitError`](ringwal_replication::LedCommitError)s.
    pub fn append(
        &self,
        topic: TopicId,
        partition: u32,
        record: impl AsRef<[u8]>,
        ack: Ack,
    ) -> Result<Pending<Append>, ProduceError> {
        Ok(self.leadership.append(stream(topic, partition)?, record, ack)?)
    }

    /// As [`Partitions::append`], but waits for room without blocking the thread.
    ///
    /// # Errors
    /// See [`ProduceError`].
    pub async fn append_async(
        &self,
        topic: TopicId,
        partition: u32,
        record: impl AsRef<[u8]>,
        ack: Ack,
    ) -> Result<Pending<Append>, ProduceError> {
        Ok(self.leadership.append_async(stream(topic, partition)?, record, ack).await?)
    }

    /// Appends records that follow one another, and of which a crash of this node keeps all or none.
    ///
    /// # Errors
    /// See [`ProduceError`].
    pub fn append_batch<I>(
        &self,
        topic: TopicId,
        partition: u32,
        records: I,
        ack: Ack,
    ) -> Result<Pending<AppendBatch>, ProduceError>
    where
        I: IntoIterator,
        I::Item: AsRef<[u8]>,
    {
        Ok(self.leadership.append_batch(stream(topic, partition)?, records, ack)?)
    }

    /// Offset below which a majority has the stream of a partition, as far as this leader knows.
    pub fn committed_end(&self, topic: TopicId, partition: u32) -> u64 {
        self.leadership.committed_end(topic.stream(partition))
    }
}

/// Streams below the first that topics get are Raft's and the metadata's: their order is not the embedder's.
fn stream(topic: TopicId, partition: u32) -> Result<StreamId, ProduceError> {
    let stream = topic.stream(partition);
    match stream.get() >= FIRST_STREAM {
        true => Ok(stream),
        false => Err(ProduceError::NoPartition { stream }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_the_systems_is_no_partition() {
        let first = TopicId::new(FIRST_STREAM);
        assert_eq!(stream(first, 2).unwrap(), StreamId::new(FIRST_STREAM + 2));
        for (topic, partition) in [(0, 0), (2, 1), (FIRST_STREAM - 1, 0), (u64::MAX, 1)] {
            let refused = stream(TopicId::new(topic), partition).unwrap_err();
            assert!(matches!(refused, ProduceError::NoPartition { .. }), "{topic}: {refused}");
        }
    }
}
