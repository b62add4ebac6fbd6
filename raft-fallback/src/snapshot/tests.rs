use proptest::prelude::*;

use super::*;
use crate::command::{BrokerId, Command, Expected, Record, TopicName};
use crate::limits::VALUE_BYTES_MAX;
use crate::tests::generate::{Placed, related_records};

fn bytes(state: &State) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(state, &mut bytes).unwrap();
    bytes
}

fn applied(records: impl IntoIterator<Item = Placed>) -> State {
    let mut state = State::default();
    for ((epoch, record), offset) in records.into_iter().zip(0..) {
        state.apply(offset, epoch, record).unwrap();
    }
    state
}

fn of(commands: impl IntoIterator<Item = Command>) -> State {
    let record = |command| (1, Record { time_ms: 0, session: None, command });
    applied(commands.into_iter().map(record))
}

fn register(broker: u64) -> Command {
    Command::RegisterBroker { broker: BrokerId::new(broker), addresses: vec![], knows: 1 }
}

fn create(name: &str, partitions: u32) -> Command {
    Command::CreateTopic {
        name: TopicName::new(name).unwrap(),
        partitions,
        replication_factor: 1,
        configuration: [("a".to_owned(), "b".to_owned())].into(),
    }
}

/// Computes every checksum anew.
fn mended(mut bytes: Vec<u8>) -> Vec<u8> {
    let mut crc = crc32c::crc32c(&bytes[..8]);
    bytes[8..12].copy_from_slice(&crc.to_le_bytes());
    let mut at = HEADER_BYTES;
    while at + 8 <= bytes.len() {
        let length = word(&bytes, at);
        let end = (at + 8).saturating_add(u32::from_le_bytes(length) as usize);
        let Some(items) = bytes.get(at + 8..end) else { break };
        crc = chunk_crc(crc, length, items);
        bytes[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
        at = end;
    }
    bytes
}

#[test]
fn an_empty_state_has_bytes_too() {
    let empty = bytes(&State::default());
    assert_eq!(empty.len(), HEADER_BYTES + 8 + 37 + 8);
    assert_eq!(read(&mut &empty[..]).unwrap(), State::default());
}

#[test]
fn a_large_state_goes_in_pieces() {
    let value = vec![7; VALUE_BYTES_MAX];
    let put =
        |key| Command::PutKey { key: vec![key], value: value.clone(), expected: Expected::Any };
    let commands = [register(1), create("large", 10_000), create("small", 1)];
    let state = of(commands.into_iter().chain((1..8).map(put)));
    let bytes = bytes(&state);
    /// Counts the longest write.
    struct Longest(usize);
    impl Write for Longest {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.max(bytes.len());
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut longest = Longest(0);
    write(&state, &mut longest).unwrap();
    assert!(bytes.len() > 3 << 20 && longest.0 <= CHUNK_BYTES_MAX, "{}", longest.0);
    assert_eq!(read(&mut &bytes[..]).unwrap(), state);
}

#[test]
fn nothing_behind_it_is_read() {
    let mut bytes = bytes(&of([register(1)]));
    bytes.extend_from_slice(b"behind");
    let mut reader = &bytes[..];
    read(&mut reader).unwrap();
    assert_eq!(reader, b"behind");
}

#[test]
fn what_is_newer_is_refused_by_name() {
    let whole = bytes(&of([register(1)]));
    let with = |at: usize, byte| {
        let mut bytes = whole.clone();
        bytes[at] = byte;
        mended(bytes)
    };
    let error = |bytes: Vec<u8>| read(&mut &bytes[..]).unwrap_err();
    assert!(matches!(error(with(4, 2)), SnapshotError::Format { found: 2, known: 1 }));
    assert!(matches!(error(with(21, 9)), SnapshotError::NewerVersion { found: 9 }));
    assert!(matches!(error(with(0, b'X')), SnapshotError::Magic(_)));
    let said = error(with(21, 9)).to_string();
    assert_eq!(
        said,
        "the snapshot has metadata version 9, and this build knows 1: run a newer one"
    );
}

#[test]
fn a_length_is_not_believed() {
    let mut bytes = bytes(&State::default());
    bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    let error = read(&mut &bytes[..]).unwrap_err();
    assert!(matches!(error, SnapshotError::TooLong { chunk: 1, .. }), "{error}");
}

#[test]
fn chunks_have_their_places() {
    let value = vec![7; CHUNK_BYTES];
    let put =
        |key| Command::PutKey { key: vec![key], value: value.clone(), expected: Expected::Any };
    let whole = bytes(&of((1..4).map(put)));
    let mut chunks = vec![];
    let mut at = HEADER_BYTES;
    while at < whole.len() {
        let end = at + 8 + u32::from_le_bytes(word(&whole, at)) as usize;
        chunks.push(&whole[at..end]);
        at = end;
    }
    assert_eq!(chunks.len(), 4);
    let header = &whole[..HEADER_BYTES];
    for order in [&[0, 2, 1, 3][..], &[0, 2, 3], &[0, 3], &[3], &[0, 1, 1, 2, 3]] {
        let parts = order.iter().flat_map(|chunk| chunks[*chunk].iter().copied());
        let moved: Vec<u8> = header.iter().copied().chain(parts).collect();
        let error = read(&mut &moved[..]).unwrap_err();
        assert!(matches!(error, SnapshotError::Checksum { .. }), "{order:?}: {error}");
    }
}

proptest! {
    #[test]
    fn a_state_comes_back_as_it_was(records in related_records(200)) {
        let state = applied(records);
        let first = bytes(&state);
        let again = read(&mut &first[..]).unwrap();
        prop_assert_eq!(&again, &state);
        prop_assert_eq!(bytes(&again), first);
    }

    #[test]
    fn any_damage_is_noticed(
        records in related_records(60), at in any::<prop::sample::Index>(), bit in 0u8..8,
        cut in any::<prop::sample::Index>(),
    ) {
        let whole = bytes(&applied(records));
        let short = &whole[..cut.index(whole.len())];
        let is_short = matches!(read(&mut &short[..]), Err(SnapshotError::Short { .. }));
        prop_assert!(is_short);
        let mut damaged = whole.clone();
        damaged[at.index(whole.len())] ^= 1 << bit;
        prop_assert!(read(&mut &damaged[..]).is_err());
    }

    /// Also where the checksums are right: what is believed comes back in the same form.
    #[test]
    fn no_content_does_harm(
        records in related_records(60), at in any::<prop::sample::Index>(), byte: u8,
    ) {
        let mut bytes_ = bytes(&applied(records));
        let length = bytes_.len();
        bytes_[at.index(length)] = byte;
        let bytes_ = mended(bytes_);
        if let Ok(state) = read(&mut &bytes_[..]) {
            prop_assert_eq!(&read(&mut &bytes(&state)[..]).unwrap(), &state);
        }
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(read(&mut &bytes[..]).is_err());
    }
}
