use super::super::entry::log_id;
use super::*;

const DATA: &[u8] = b"a snapshot in parts";

fn chunk(term: u64, offset: usize, end: usize) -> Chunk {
    let last_log_id = Some(log_id(4, 9));
    let meta = SnapshotMeta { last_log_id, last_membership: Default::default() };
    Chunk {
        vote: Vote::new_committed(term, 2),
        total: DATA.len() as u64,
        checksum: crc32c::crc32c(DATA),
        offset: offset as u64,
        meta: (offset == 0).then_some(meta),
        bytes: Bytes::from_static(&DATA[offset..end]),
    }
}

fn node(id: u64) -> NodeId {
    NodeId::new(id)
}

fn not_ready(outcome: Result<(), Refusal>) -> bool {
    matches!(outcome, Err(Refusal::NotReady(_)))
}

#[test]
fn parts_come_one_after_the_other_and_a_first_one_begins_anew() {
    let mut slot = None;
    assert!(not_ready(collect(&mut slot, node(2), chunk(5, 3, 9))), "nothing has begun");
    collect(&mut slot, node(2), chunk(5, 0, 3)).unwrap();
    assert!(not_ready(collect(&mut slot, node(2), chunk(5, 4, 9))), "a gap");
    assert!(not_ready(collect(&mut slot, node(3), chunk(5, 3, 9))), "somebody else's");
    assert!(not_ready(collect(&mut slot, node(2), chunk(6, 3, 9))), "of another vote");
    let other = Chunk { checksum: 1, ..chunk(5, 3, 9) };
    assert!(not_ready(collect(&mut slot, node(2), other)), "of another snapshot");
    collect(&mut slot, node(2), chunk(5, 3, 9)).unwrap();
    assert!(not_ready(collect(&mut slot, node(2), chunk(5, 3, 9))), "twice");
    // The reply was lost: it begins anew.
    collect(&mut slot, node(2), chunk(5, 0, 10)).unwrap();
    collect(&mut slot, node(2), chunk(5, 10, DATA.len())).unwrap();
    let (vote, snapshot) = slot.take().unwrap().verified().unwrap();
    assert_eq!(vote, Vote::new_committed(5, 2));
    assert_eq!((snapshot.meta.last_log_id, &snapshot.snapshot[..]), (Some(log_id(4, 9)), DATA));
}

#[test]
fn a_later_leaders_snapshot_replaces_an_earlier_ones_only() {
    let mut slot = None;
    collect(&mut slot, node(2), chunk(5, 0, 3)).unwrap();
    let later = Chunk { vote: Vote::new_committed(6, 3), ..chunk(6, 0, 4) };
    collect(&mut slot, node(3), later.clone()).unwrap();
    assert!(not_ready(collect(&mut slot, node(2), chunk(5, 0, 3))));
    assert!(not_ready(collect(&mut slot, node(2), chunk(5, 3, 9))));
    let rest = Chunk { vote: later.vote, ..chunk(6, 4, DATA.len()) };
    collect(&mut slot, node(3), rest).unwrap();
    assert!(slot.unwrap().verified().is_ok());
}

#[test]
fn what_is_not_what_was_sent_or_cannot_be_is_not_installed() {
    let whole = |chunk: Chunk| {
        let mut slot = None;
        collect(&mut slot, node(2), chunk).unwrap();
        slot.unwrap().verified().map(|_| ())
    };
    assert_eq!(whole(chunk(4, 0, DATA.len())), Ok(()));
    let damaged = Chunk { checksum: 7, ..chunk(4, 0, DATA.len()) };
    let error = whole(damaged).unwrap_err().to_string();
    assert!(error.contains("instead of 00000007; send it again"), "{error}");
    let early = whole(chunk(3, 0, DATA.len())).unwrap_err();
    assert!(matches!(early, Refusal::NotUnderstood(_)), "an entry of term 4 in term 3: {early}");
}
