use super::*;

fn entry(index: u64, payload: EntryPayload<Payload, u64, RaftNode>) -> Entry {
    Entry { log_id: log_id(7, index), payload }
}

fn all() -> Vec<Entry> {
    let configs = vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([2, 3, 4])];
    let nodes: BTreeMap<u64, RaftNode> =
        (1..6).map(|id| (id, RaftNode::new(format!("node{id}:9291"), [id as u8; 16]))).collect();
    let records = vec![Bytes::from_static(b"one"), Bytes::new(), Bytes::from(vec![9; 300])];
    let starts = vec![(StreamId::new(0), 9), (StreamId::new(u64::MAX), 0)];
    [
        EntryPayload::Blank,
        EntryPayload::Membership(Membership::default()),
        EntryPayload::Membership(Membership::new(configs, nodes).unwrap()),
        EntryPayload::Normal(Payload::Extend {
            epoch: 3,
            base: u64::MAX,
            continues: false,
            records,
        }),
        EntryPayload::Normal(Payload::Extend {
            epoch: 0,
            base: 0,
            continues: true,
            records: Vec::new(),
        }),
        EntryPayload::Normal(Payload::EpochStart {
            epoch: 3,
            leader: NodeId::new(9),
            run: RunId::new([7; 16]),
            starts,
        }),
    ]
    .into_iter()
    .zip(0..)
    .map(|(payload, index)| entry(index, payload))
    .collect()
}

#[test]
fn entries_come_back_as_they_were() {
    for entry in all() {
        for committed in [None, Some(log_id(0, 0)), Some(log_id(6, 41))] {
            let mut bytes = Vec::new();
            assert_eq!(encode(&entry, committed, &mut bytes), Ok(bytes.len()));
            assert_eq!(decode(bytes.into()), Ok((entry.clone(), committed)));
        }
    }
}

#[test]
fn every_beginning_of_an_entry_is_refused_and_so_is_more() {
    for entry in all() {
        let mut bytes = Vec::new();
        encode(&entry, None, &mut bytes).unwrap();
        let mut longer = bytes.clone();
        longer.push(0);
        let bytes = Bytes::from(bytes);
        for length in 0..bytes.len() {
            let short = decode(bytes.slice(..length));
            assert!(matches!(short, Err(Malformed::Short { .. })), "{short:?} of {entry:?}");
        }
        assert_eq!(decode(longer.into()), Err(Malformed::Trailing { bytes: 1 }));
    }
}

#[test]
fn a_newer_version_and_an_unknown_kind_are_refused_by_name() {
    let mut bytes = Vec::new();
    encode(&all()[0], None, &mut bytes).unwrap();
    let changed = |at: usize, value| {
        let mut bytes = bytes.clone();
        bytes[at] = value;
        decode(bytes.into())
    };
    assert!(matches!(changed(0, 2), Err(Malformed::Version { found: 2, .. })));
    assert!(matches!(changed(1, 4), Err(Malformed::Unknown { value: 4, .. })));
    assert!(matches!(changed(2, 1), Err(Malformed::Unknown { .. })));
}

#[test]
fn a_count_is_believed_only_as_far_as_there_are_bytes() {
    let records = Vec::new();
    let bomb = Payload::Extend { epoch: 0, base: 0, continues: false, records };
    let mut bytes = Vec::new();
    encode(&entry(0, EntryPayload::Normal(bomb)), None, &mut bytes).unwrap();
    let at = bytes.len() - 4;
    bytes[at..].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(decode(bytes.into()), Err(Malformed::Short { .. })));
}

#[test]
fn an_entry_that_is_too_long_is_not_written() {
    let records = vec![Bytes::from(vec![0; ENTRY_BYTES_MAX])];
    let long = entry(
        0,
        EntryPayload::Normal(Payload::Extend { epoch: 1, base: 0, continues: false, records }),
    );
    let mut bytes = vec![1, 2];
    assert!(matches!(encode(&long, None, &mut bytes), Err(Malformed::TooLong { .. })));
    assert_eq!(bytes, [1, 2]);
}
