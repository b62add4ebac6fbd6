//! Puts durable records that are damaged back, from frames that another engine has: they are written
//! forward, as moved records are (`mover.rs`), and the damaged place counts no more. No I/O.

use crate::engine::verify_frame;
use crate::error::MendError;
use crate::format::{FrameHeader, VerifiedFrame};
use crate::index::Index;
use crate::receipt::AppendBatch;
use crate::shared::Shared;
use crate::stream::StreamId;

/// Queues a frame in the place of durable records of `stream`; never waits.
pub(crate) fn try_mend(
    shared: &Shared,
    stream: StreamId,
    frame: &VerifiedFrame<'_>,
) -> Result<AppendBatch, MendError> {
    check(&shared.index(), stream, &frame.header)?;
    Ok(shared.try_mend(frame).map(AppendBatch)?)
}

/// Believes the bytes of a data frame of `stream`, or says why not.
pub(crate) fn verify(stream: StreamId, bytes: &[u8]) -> Result<VerifiedFrame<'_>, MendError> {
    let frame = verify_frame(bytes)?;
    let found = StreamId::new(frame.header.stream.get());
    if found != stream {
        return Err(crate::error::AppendError::WrongStream { expected: stream, found }.into());
    }
    Ok(frame)
}

/// What takes the place of durable records has their offsets and epoch, and so is the same (I-17).
/// What is trimmed or cut meanwhile is looked at again when the frame is sealed.
fn check(index: &Index, stream: StreamId, header: &FrameHeader) -> Result<(), MendError> {
    let (base, end, epoch) = (header.base_offset.get(), header.end_offset(), header.epoch.get());
    let Some(state) = index.streams.get(&stream).filter(|state| end <= state.end) else {
        let durable = index.streams.get(&stream).map_or(0, |state| state.end);
        return Err(MendError::Beyond { stream, base, end, durable });
    };
    let live = base.max(state.trimmed)..end;
    if !live.is_empty() && state.epochs.clip(epoch, live.start, live.end) != live {
        return Err(MendError::OtherHistory { stream, base, end, epoch });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::SealedFrame;
    use crate::disk::FileId;
    use crate::format::FrameKind;

    #[test]
    fn only_what_is_durable_in_the_same_epoch_is_put_back() {
        let stream = StreamId::new(7);
        let mut index = Index::default();
        index.add_open_segment(1, 1, FileId(1));
        for (epoch, base) in [(1, 0), (3, 10)] {
            let frame =
                SealedFrame { stream, epoch, base, count: 10, position: 64, length: 100, crc: 0 };
            index.add_frame(1, 8192, &frame, false);
        }
        index.trim(stream, 4);
        let check = |epoch, base, count| {
            let header = FrameHeader::new(FrameKind::Data, 7, epoch, base, count, 0, b"");
            check(&index, stream, &header)
        };
        assert!(check(1, 0, 10).is_ok() && check(1, 6, 2).is_ok() && check(3, 10, 10).is_ok());
        assert!(check(2, 0, 4).is_ok(), "it is trimmed, which its token will tell");
        assert!(matches!(check(1, 0, 11), Err(MendError::OtherHistory { .. })));
        assert!(matches!(check(2, 5, 2), Err(MendError::OtherHistory { .. })));
        assert!(matches!(check(3, 15, 6), Err(MendError::Beyond { durable: 20, .. })));
    }
}
