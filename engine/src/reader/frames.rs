//! The frames of a stream, to send them on.

use std::sync::Arc;

use super::{READ_AHEAD_BYTES_MAX, ReadAhead, Reader};
use crate::error::ReadError;
use crate::shared::Shared;
use crate::stream::StreamId;
use crate::subscription::FrameSlice;

const READ_AHEAD: ReadAhead = ReadAhead { bytes: READ_AHEAD_BYTES_MAX, entries: 1024 };

/// The durable frames of a stream from an offset on, in order and without a gap, as they are on
/// disk: for sending them to another engine, which takes them by [`crate::Stream::append_frame`].
///
/// Where the frames lie close together they are read from the device a megabyte at a time. What
/// was read is kept until the next read, so one of these is cheap to ask again; at the durable end
/// it keeps nothing.
pub struct Frames {
    reader: Reader,
}

impl Frames {
    pub(crate) fn new(shared: Arc<Shared>, stream: StreamId, from: u64) -> Self {
        Self { reader: Reader::new(shared, stream, from).with_read_ahead(READ_AHEAD) }
    }

    /// Offset of the record that comes next.
    pub fn offset(&self) -> u64 {
        self.reader.next_offset()
    }

    /// Goes on at another offset. After a cut ([`crate::Stream::truncate`]) of what was read, the
    /// caller has to go back to its start: until then nothing comes, or what follows.
    pub fn seek(&mut self, offset: u64) {
        self.reader.seek(offset);
    }

    /// The frames that come next: until their bytes, headers included, reach `bytes_max`, at least
    /// one when one is durable, none at the durable end. The last may go beyond `bytes_max`.
    ///
    /// A frame of which only a part counts, because the offset lies inside of it or a later epoch
    /// has cut its end, comes as a new frame of just those records. All others are slices of the
    /// memory that they were read into, some megabytes at most unless a frame is longer, which lives as
    /// long as a slice of it.
    ///
    /// # Errors
    /// `Trimmed`, when the next record has been trimmed, and when it cannot be read. Frames in
    /// front of that are given first, and the error by the next call.
    pub fn next_batch(&mut self, bytes_max: usize) -> Result<Vec<FrameSlice>, ReadError> {
        let (mut frames, mut bytes) = (Vec::new(), 0);
        while frames.is_empty() || bytes < bytes_max {
            match self.reader.read_next_frame() {
                Ok(Some(frame)) => {
                    bytes += frame.bytes.len();
                    frames.push(frame);
                }
                Ok(None) => break,
                Err(_) if !frames.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(frames)
    }
}
