//! Everything about a shard's streams and segments at one point, as facts. No I/O.

use std::collections::BTreeMap;

use crate::control::Control;
use crate::stream::StreamTable;

/// A checkpoint as payloads of at most `bytes_max`, in order; one batch each.
pub(crate) fn payloads(
    streams: &StreamTable,
    live: &BTreeMap<u64, u64>,
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
    for (generation, number) in live {
        put(Control::CheckpointSegment { number: *number, generation: *generation });
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
            streams.append(StreamId::new(id), 1).unwrap();
        }
        let payloads = payloads(&streams, &BTreeMap::from([(3, 1)]), 1000);
        assert!(payloads.len() > 4);
        let controls: Vec<_> =
            payloads.iter().flat_map(|payload| Control::decode_all(payload).unwrap()).collect();
        assert_eq!(controls.len(), 103);
        assert_eq!(controls.first(), Some(&Control::CheckpointBegin));
        assert_eq!(controls.last(), Some(&Control::CheckpointEnd));
    }
}
