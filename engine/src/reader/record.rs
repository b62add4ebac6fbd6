//! A record, as it was read.

use bytes::Bytes;

use crate::stream::StreamId;

/// A durable record. Its payload is a slice of the block that was read; nothing is copied.
#[derive(Clone, Debug)]
pub struct Record {
    pub(super) stream: StreamId,
    pub(super) epoch: u64,
    pub(super) offset: u64,
    pub(super) timestamp_ns: u64,
    pub(super) payload: Bytes,
}

impl Record {
    /// Its stream.
    pub fn stream(&self) -> StreamId {
        self.stream
    }

    /// The epoch that wrote it.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Its offset in the stream.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Wall clock when its batch was sealed, nanoseconds since 1970. Information only.
    pub fn timestamp_ns(&self) -> u64 {
        self.timestamp_ns
    }

    /// Its bytes.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Its bytes, to keep. They keep what was read together with them, mostly a megabyte: where few of many
    /// records are kept for long, copy those.
    pub fn into_bytes(self) -> Bytes {
        self.payload
    }
}
