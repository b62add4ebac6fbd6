use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::tests::generate::any_record;

fn create() -> Record {
    let command = Command::CreateTopic {
        name: TopicName::new("orders").unwrap(),
        partitions: 3,
        replication_factor: 2,
        configuration: [("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())].into(),
    };
    let session = SessionId::new(7, 9).and_then(|id| Session::new(id, 5));
    Record { time_ms: 1000, session, command }
}

/// With some bytes changed.
fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut record = create().encode().unwrap();
    record[at..at + bytes.len()].copy_from_slice(bytes);
    record
}

#[test]
fn the_bytes_are_as_they_are_drawn() {
    let mut expected = vec![1, 0, 40, 0, 1, 0, 0, 0];
    for word in [1000u64, 7, 9, 5] {
        expected.extend_from_slice(&word.to_le_bytes());
    }
    expected.extend_from_slice(b"\x06\0orders\x03\0\0\0\x02\0\x02\0\0\0");
    expected.extend_from_slice(b"\x01\0a\x01\x001\x01\0b\x01\x002");
    assert_eq!(create().encode().unwrap(), expected);
}

#[test]
fn what_is_newer_is_refused_by_name() {
    let newer = DecodeError::NewerRecord { found: 2, known: 1 };
    assert_eq!(Record::decode(&with(0, &[2, 0])), Err(newer));
    assert_eq!(Record::decode(&with(4, &[200, 0])), Err(DecodeError::UnknownCommand { kind: 200 }));
    assert_eq!(
        Record::decode(&with(6, &[0, 128])),
        Err(DecodeError::UnknownFlags { flags: 0x8000 })
    );
}

#[test]
fn optional_fields_of_a_newer_node_are_passed_over() {
    let mut behind_the_command = create().encode().unwrap();
    behind_the_command.extend_from_slice(b"what a later version says");
    assert_eq!(Record::decode(&behind_the_command), Ok(create()));
    let mut behind_the_header = with(2, &[44, 0]);
    behind_the_header.splice(40..40, [1, 2, 3, 4]);
    assert_eq!(Record::decode(&behind_the_header), Ok(create()));
}

#[test]
fn nonsense_is_refused() {
    for (at, bytes) in [
        (0, &[0, 0][..]),
        (2, &[39, 0]),
        (2, &[255, 255]),
        (24, &[0; 8]),
        (32, &[0; 8]),
        (40, &[0, 0]),
        (40, &[255, 0]),
        (42, b"or ers"),
        (42, &[0xff]),
        (48, &[0; 4]),
        (48, &[255; 4]),
        (54, &[255; 4]),
        (60, b"b"),
    ] {
        assert!(Record::decode(&with(at, bytes)).is_err(), "{at} {bytes:?}");
    }
    let long = vec![0; RECORD_BYTES_MAX + 1];
    assert!(matches!(Record::decode(&long), Err(DecodeError::TooLong { .. })));
}

#[test]
fn every_command_within_its_limits_fits_a_record() {
    let name = TopicName::new(&"x".repeat(TOPIC_NAME_BYTES_MAX)).unwrap();
    let long_key = |number| format!("{number:0>width$}", width = CONFIGURATION_KEY_BYTES_MAX);
    let entry = |number| (long_key(number), "v".repeat(CONFIGURATION_VALUE_BYTES_MAX));
    let create = Command::CreateTopic {
        name,
        partitions: 10_000,
        replication_factor: 16,
        configuration: (0..CONFIGURATION_ENTRIES_MAX).map(entry).collect(),
    };
    let one = Watermark { topic: TopicId::new(u64::MAX), partition: 1, offset: u64::MAX };
    let watermarks = Command::UpdateWatermarks { watermarks: vec![one; WATERMARKS_MAX] };
    let expected = Expected::Any;
    let put =
        Command::PutKey { key: vec![1; KEY_BYTES_MAX], value: vec![2; VALUE_BYTES_MAX], expected };
    let addresses = vec!["a".repeat(BROKER_ADDRESS_BYTES_MAX); BROKER_ADDRESSES_MAX];
    let register = Command::RegisterBroker { broker: BrokerId::new(1), addresses, knows: 1 };
    for command in [create, watermarks, put, register] {
        let record = Record { time_ms: u64::MAX, session: None, command };
        assert_eq!(Record::decode(&record.encode().unwrap()), Ok(record));
    }
}

proptest! {
    #[test]
    fn a_record_comes_back_as_it_was(record in any_record()) {
        let bytes = record.encode().unwrap();
        prop_assert_eq!(Record::decode(&bytes), Ok(record));
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in vec(any::<u8>(), 0..300)) {
        let _ = Record::decode(&bytes);
    }

    /// What is believed at all is believed in one form only.
    #[test]
    fn damaged_records_do_no_harm(
        record in any_record(), at in any::<prop::sample::Index>(), byte: u8, cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = record.encode().unwrap();
        let length = bytes.len();
        // A damaged length may end where the cut is.
        prop_assert!(Record::decode(&bytes[..cut.index(length)]).is_err());
        bytes[at.index(length)] = byte;
        if let Ok(record) = Record::decode(&bytes) {
            let again = record.encode().unwrap();
            prop_assert_eq!(Record::decode(&again), Ok(record));
        }
    }
}
