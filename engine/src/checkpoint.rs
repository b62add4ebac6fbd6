//! Everything about a shard's streams and segments at one point, as facts. No I/O.

use std::collections::BTreeMap;

use crate::control::Control;
use crate::stream::StreamTable;

/// A segment that counts.
#[derive(Copy, Clone, Debug)]
pub(crate) struct LiveSegment {
    pub(crate) number: u64,
    /// CRC of its last batch's header; 0 as long as it is written.
    pub(crate) last_crc: u32,
}

/// A checkpoint as payloads of at most `bytes_max`, in order; one batch each.
pub(crate) fn payloads(
    streams: &StreamTable,
    live: &BTreeMap<u64, LiveSegment>,
    bytes_max: usize,
) -> Vec<Vec<u8>> {
    let mut payloads = vec![Vec::new()];
    let mut put = |control: Control| {
        let mut bytes = Vec::new();
        control.encode(&mut bytes);
        let current = payloads.last_mut().expect("never empty");
        if current.len() + bytes.len() > bytes_max {
            payloads.push(bytes);
        } else {
            current.extend_from_slice(&bytes);
        }
    };
    put(Control::CheckpointBegin);
    let mut ordered: Vec<_> = streams.iter().collect();
    ordered.sort_unstable_by_key(|(stream, _)| *stream);
    for (stream, state) in ordered {
        put(Control::CheckpointStream {
            stream,
            trimmed: state.trimmed,
            next: state.next,
            epochs: state.epochs.clone(),
        });
    }
    for (generation, LiveSegment { number, last_crc }) in live {
        let (number, generation, last_crc) = (*number, *generation, *last_crc);
        put(Control::CheckpointSegment { number, generation, last_crc });
    }
    put(Control::CheckpointEnd);
    payloads
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::StreamId;

    #[test]
    fn a_long_checkpoint_is_cut_between_facts() {
        let mut streams = StreamTable::new(Default::default(), 1000);
        for id in 0..100 {
            streams.append(StreamId::new(id), 0, 1).unwrap();
        }
        let live = BTreeMap::from([(3, LiveSegment { number: 1, last_crc: 9 })]);
        let payloads = payloads(&streams, &live, 1000);
        assert!(payloads.len() > 4);
        let controls: Vec<_> =
            payloads.iter().flat_map(|payload| Control::decode_all(payload).unwrap()).collect();
        assert_eq!(controls.len(), 103);
        assert_eq!(controls.first(), Some(&Control::CheckpointBegin));
        assert_eq!(controls.last(), Some(&Control::CheckpointEnd));
    }
}
