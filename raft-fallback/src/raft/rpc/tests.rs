use std::collections::{BTreeMap, BTreeSet};

use openraft::{EntryPayload, Membership};
use proptest::prelude::*;

use super::super::entry::log_id;
use super::super::payload::Payload;
use super::*;

const ENGINE: [u8; 16] = [7; 16];

fn given() -> Vote {
    Vote::new(5, 2)
}

fn granted() -> Vote {
    Vote::new_committed(5, 2)
}

fn entry(index: u64, length: usize) -> Entry {
    let records = vec![Bytes::from(vec![index as u8; length])];
    let payload =
        EntryPayload::Normal(Payload::Extend { epoch: 4, base: 9, continues: false, records });
    Entry { log_id: log_id(4, index), payload }
}

fn append(start: u64, lengths: &[usize]) -> Append {
    let entries = (start..).zip(lengths).map(|(index, length)| entry(index, *length)).collect();
    let previous = start.checked_sub(1).map(|index| log_id(3, index));
    Append { vote: granted(), previous, entries, committed: Some(log_id(3, 1)) }
}

fn chunk(total: u64, offset: u64, length: usize) -> Chunk {
    let configs = vec![BTreeSet::from([1, 2]), BTreeSet::from([2, 3])];
    let nodes: BTreeMap<u64, RaftNode> =
        (1..5).map(|id| (id, RaftNode::new(format!("node{id}:9291"), [id as u8; 16]))).collect();
    let membership = Membership::new(configs, nodes).unwrap();
    let last_membership = StoredMembership::new(Some(log_id(2, 8)), membership);
    let meta = SnapshotMeta { last_log_id: Some(log_id(4, 20)), last_membership };
    let bytes = Bytes::from(vec![3; length]);
    let meta = (offset == 0).then_some(meta);
    Chunk { vote: granted(), total, checksum: 0xdead_beef, offset, meta, bytes }
}

fn requests() -> Vec<Request> {
    let candidacy = Candidacy { vote: given(), last: Some(log_id(4, 9)), is_transfer: true };
    let asks = vec![
        Ask::Append(append(0, &[])),
        Ask::Append(append(0, &[1])),
        Ask::Append(append(30, &[0, 5, 300])),
        Ask::Vote(candidacy),
        Ask::PreVote(Candidacy { last: None, is_transfer: false, ..candidacy }),
        Ask::TransferLeader(Transfer { vote: granted(), to: 3, last: Some(log_id(4, 9)) }),
        Ask::Snapshot(chunk(0, 0, 0)),
        Ask::Snapshot(chunk(1000, 0, 100)),
        Ask::Snapshot(chunk(1000, 990, 10)),
    ];
    asks.into_iter().map(|ask| Request { to_engine: ENGINE, ask }).collect()
}

fn replies() -> Vec<Reply> {
    let voted = Voted { vote: given(), is_granted: true, last: None };
    vec![
        Reply::Append(Appended::Success),
        Reply::Append(Appended::InPart(Some(log_id(4, 3)))),
        Reply::Append(Appended::Conflict),
        Reply::Append(Appended::HigherVote(granted())),
        Reply::Vote(voted),
        Reply::PreVote(Voted { vote: granted(), is_granted: false, last: Some(log_id(1, 0)) }),
        Reply::TransferLeader(Transferred::Done),
        Reply::TransferLeader(Transferred::VoteChanged { expected: granted(), actual: given() }),
        Reply::TransferLeader(Transferred::NotFlushed { expected: None, actual: None }),
        Reply::Snapshot(SnapshotTaken::More(77)),
        Reply::Snapshot(SnapshotTaken::Installed(granted())),
        Reply::Refused(Refusal::OtherDisk { engine: ENGINE }),
        Reply::Refused(Refusal::NoVote("too early".to_owned())),
        Reply::Refused(Refusal::NotReady(String::new())),
        Reply::Refused(Refusal::NotUnderstood("ü".to_owned())),
    ]
}

#[test]
fn requests_come_back_and_nothing_shorter_or_longer_does() {
    for request in requests() {
        let bytes = Bytes::from(request.encode().unwrap());
        assert_eq!(Request::decode(bytes.clone()), Ok(request.clone()));
        for length in 0..bytes.len() {
            let short = Request::decode(bytes.slice(..length));
            assert!(matches!(short, Err(Malformed::Short { .. })), "{short:?} of {request:?}");
        }
        let longer: Bytes = bytes.iter().copied().chain([0]).collect();
        assert_eq!(Request::decode(longer), Err(Malformed::Trailing { bytes: 1 }));
    }
}

#[test]
fn replies_come_back_and_nothing_shorter_or_longer_does() {
    for reply in replies() {
        let bytes = Bytes::from(reply.encode());
        assert_eq!(Reply::decode(bytes.clone()), Ok(reply.clone()));
        for length in 0..bytes.len() {
            let short = Reply::decode(bytes.slice(..length));
            assert!(matches!(short, Err(Malformed::Short { .. })), "{short:?} of {reply:?}");
        }
        let longer: Bytes = bytes.iter().copied().chain([0]).collect();
        assert_eq!(Reply::decode(longer), Err(Malformed::Trailing { bytes: 1 }));
    }
}

#[test]
fn what_is_the_stores_comes_back_of_any_length() {
    for store in [Bytes::new(), Bytes::from_static(b"put")] {
        let request = Request { to_engine: [0; 16], ask: Ask::Store(store.clone()) };
        assert_eq!(Request::decode(request.encode().unwrap().into()), Ok(request));
        let reply = Reply::Store(store);
        assert_eq!(Reply::decode(reply.encode().into()), Ok(reply));
    }
    let long = Ask::Store(Bytes::from(vec![0; REQUEST_BYTES_MAX]));
    let refused = Request { to_engine: ENGINE, ask: long }.encode();
    assert!(matches!(refused, Err(Malformed::TooMuch { .. })), "{refused:?}");
    let long = Request::decode(vec![0; REQUEST_BYTES_MAX + 1].into());
    assert!(matches!(long, Err(Malformed::TooMuch { .. })), "{long:?}");
}

#[test]
fn versions_kinds_and_flags_that_are_not_known_are_refused_by_name() {
    let changed = |request: usize, at: usize, value: u8| {
        let mut bytes = requests()[request].encode().unwrap();
        bytes[at] = value;
        Request::decode(bytes.into()).unwrap_err().to_string()
    };
    for (request, at, value, expected) in [
        (0, 0, 2, "version 2 of a request"),
        (0, 1, 7, "7 is no kind of request"),
        (0, 2, 1, "1 is no reserved field"),
        (0, 20, 3, "3 is no kind of vote"),
        (0, 20, 1, "no vote of a leader or candidate"),
        (3, 20, 2, "no vote of a leader or candidate"),
        (3, 53, 2, "2 is no transfer flag"),
        // The first entry's index: it is not 0.
        (1, 89, 1, "the entry of index 1 lies at 0"),
    ] {
        let error = changed(request, at, value);
        assert!(error.contains(expected), "{request}, {at}: {error}");
    }
    for (reply, at, value, expected) in [
        (0, 0, 9, "version 9 of a reply"),
        (0, 1, 9, "9 is no kind of reply"),
        (0, 4, 4, "4 is no outcome of an Append"),
        (4, 21, 2, "2 is no granted flag"),
        (6, 4, 3, "3 is no outcome of a transfer"),
        (9, 4, 2, "2 is no outcome of a part of a snapshot"),
        (12, 4, 4, "4 is no reason of a refusal"),
        (12, 9, 0xff, "not UTF-8"),
    ] {
        let mut bytes = replies()[reply].encode();
        bytes[at] = value;
        let error = Reply::decode(bytes.into()).unwrap_err().to_string();
        assert!(error.contains(expected), "{reply}, {at}: {error}");
    }
}

#[test]
fn counts_and_lengths_are_believed_only_as_far_as_there_are_bytes() {
    let mut bytes = requests()[0].encode().unwrap();
    let count_at = bytes.len() - 4;
    bytes[count_at..].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(Request::decode(bytes.into()), Err(Malformed::Short { .. })));
    // The length of the first entry is behind the count.
    let mut bytes = requests()[1].encode().unwrap();
    bytes[count_at + 4..count_at + 8].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(Request::decode(bytes.into()), Err(Malformed::TooMuch { .. })));
    for wrong in [
        chunk(SNAPSHOT_BYTES_MAX as u64 + 1, 0, 10),
        chunk(100, 101, 0),
        chunk(100, 95, 10),
        chunk(2 << 20, 0, SNAPSHOT_CHUNK_BYTES + 1),
    ] {
        let request = Request { to_engine: ENGINE, ask: Ask::Snapshot(wrong) };
        let refused = Request::decode(request.encode().unwrap().into());
        assert!(matches!(refused, Err(Malformed::TooMuch { .. })), "{refused:?}");
    }
    let empty = Request { to_engine: ENGINE, ask: Ask::Snapshot(chunk(100, 50, 0)) };
    let refused = Request::decode(empty.encode().unwrap().into());
    assert!(matches!(refused, Err(Malformed::Unknown { .. })), "{refused:?}");
}

#[test]
fn a_long_text_is_cut_between_characters() {
    let refusal = Refusal::NotReady("ü".repeat(REFUSAL_TEXT_BYTES_MAX));
    let Ok(Reply::Refused(Refusal::NotReady(text))) =
        Reply::decode(Reply::Refused(refusal).encode().into())
    else {
        panic!("it is a refusal");
    };
    assert_eq!(text, "ü".repeat(REFUSAL_TEXT_BYTES_MAX / 2));
    let odd = Refusal::NoVote(format!("-{}", "ü".repeat(REFUSAL_TEXT_BYTES_MAX)));
    assert!(Reply::decode(Reply::Refused(odd).encode().into()).is_ok());
}

/// The pieces of an Append, decoded.
fn pieces(whole: &Append, bytes_max: usize) -> Vec<(usize, Append)> {
    let mut pieces = Vec::new();
    let mut done = 0;
    loop {
        let (bytes, taken) = encode_append(ENGINE, whole, done, bytes_max).unwrap();
        assert!(bytes.len() <= REQUEST_BYTES_MAX);
        let length = bytes.len();
        let Ok(Request { ask: Ask::Append(piece), .. }) = Request::decode(bytes.into()) else {
            panic!("a piece is an Append");
        };
        assert_eq!(piece.entries.len(), taken);
        pieces.push((length, piece));
        done += taken;
        if done == whole.entries.len() {
            return pieces;
        }
        assert!(taken > 0, "it goes on");
    }
}

#[test]
fn long_appends_go_in_pieces_of_which_each_names_what_is_before_it() {
    let longest = ENTRY_BYTES_MAX - 61;
    let whole = append(10, &[longest, 1, longest, longest, 2, 3]);
    let pieces = pieces(&whole, APPEND_BYTES_MAX);
    let counts: Vec<usize> = pieces.iter().map(|(_, piece)| piece.entries.len()).collect();
    assert_eq!(counts, [1, 1, 1, 1, 2]);
    assert_eq!(pieces[0].1.previous, Some(log_id(3, 9)));
    assert_eq!(pieces[3].1.previous, Some(log_id(4, 12)));
    let unsent = Request { to_engine: ENGINE, ask: Ask::Append(append(0, &[longest; 5])) };
    assert!(matches!(unsent.encode(), Err(Malformed::TooMuch { value: 2, .. })));
}

proptest! {
    #[test]
    fn pieces_together_are_the_whole(
        lengths in prop::collection::vec(0usize..3000, 0..20),
        start in 0u64..5,
        bytes_max in 0usize..5000,
    ) {
        let whole = append(start, &lengths);
        let mut entries = Vec::new();
        let mut previous = whole.previous;
        for (length, piece) in pieces(&whole, bytes_max) {
            prop_assert!(length <= bytes_max || piece.entries.len() <= 1);
            prop_assert_eq!(piece.previous, previous);
            prop_assert_eq!((piece.vote, piece.committed), (whole.vote, whole.committed));
            previous = piece.entries.last().map_or(previous, |last| Some(last.log_id));
            entries.extend(piece.entries);
        }
        prop_assert_eq!(entries, whole.entries);
    }

    #[test]
    fn bytes_of_any_kind_are_read_without_a_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        kind in 0u8..9,
    ) {
        let mut bytes = bytes;
        for (at, value) in [1, kind, 0, 0].into_iter().enumerate() {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        let bytes = Bytes::from(bytes);
        if let Ok(request) = Request::decode(bytes.clone()) {
            prop_assert_eq!(request.encode().unwrap(), &bytes[..]);
        }
        let _ = Reply::decode(bytes);
    }

    #[test]
    fn a_changed_byte_is_refused_or_another_request(which in 0usize..9, at in 0usize..2000, value: u8) {
        let mut bytes = requests()[which].encode().unwrap();
        let at = at % bytes.len();
        bytes[at] = value;
        let bytes = Bytes::from(bytes);
        if let Ok(Request { ask, .. }) = Request::decode(bytes.clone()) {
            // Only the committed id that an entry has by the way is not kept.
            if !matches!(ask, Ask::Append(_)) {
                let again = Request { to_engine: bytes[4..20].try_into().unwrap(), ask };
                prop_assert_eq!(again.encode().unwrap().len(), bytes.len());
            }
        }
    }
}
