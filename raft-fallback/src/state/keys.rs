//! The keys of the embedder: bytes to bytes.

use std::collections::BTreeMap;
use std::ops::Bound as RangeBound;

use crate::command::Expected;
use crate::limits::KEYS_BYTES_TOTAL_MAX;
use crate::state::{Bound, Done, Outcome, Rejection};

/// Which record set a value. Both parts are needed: after a cut another record may have the offset,
/// in a later epoch.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub struct KeyVersion {
    /// Its epoch.
    pub epoch: u64,
    /// Its offset.
    pub offset: u64,
}

/// What a key has.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct KeyValue {
    /// The value.
    pub value: Vec<u8>,
    /// Which record set it.
    pub version: KeyVersion,
}

#[derive(Clone, Eq, PartialEq, Debug, Default)]
pub(crate) struct Keys {
    keys: BTreeMap<Vec<u8>, KeyValue>,
    /// Of all keys and values.
    bytes: u64,
}

impl Keys {
    pub(crate) fn get(&self, key: &[u8]) -> Option<&KeyValue> {
        self.keys.get(key)
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = (&[u8], &KeyValue)> {
        self.keys.iter().map(|(key, value)| (key.as_slice(), value))
    }

    pub(crate) fn with_prefix<'a>(
        &'a self,
        prefix: &'a [u8],
    ) -> impl Iterator<Item = (&'a [u8], &'a KeyValue)> {
        let from = (RangeBound::Included(prefix), RangeBound::Unbounded);
        let all = self.keys.range::<[u8], _>(from);
        all.take_while(move |(key, _)| key.starts_with(prefix))
            .map(|(key, value)| (&key[..], value))
    }

    /// A value that is put again is a new version of it.
    pub(crate) fn put(&mut self, key: Vec<u8>, new: KeyValue, expected: Expected) -> Outcome {
        self.check(&key, expected)?;
        let old = self.keys.get(&key).map(|old| entry_bytes(&key, old));
        let bytes = self.bytes - old.unwrap_or(0) + entry_bytes(&key, &new);
        if bytes > KEYS_BYTES_TOTAL_MAX {
            return Err(Rejection::Full { bound: Bound::KeyBytes });
        }
        self.bytes = bytes;
        self.keys.insert(key, new);
        Ok(if old.is_some() { Done::Changed } else { Done::Created })
    }

    pub(crate) fn delete(&mut self, key: &[u8], expected: Expected) -> Outcome {
        self.check(key, expected)?;
        let Some(old) = self.keys.remove(key) else { return Ok(Done::Unchanged) };
        self.bytes -= entry_bytes(key, &old);
        Ok(Done::Changed)
    }

    fn check(&self, key: &[u8], expected: Expected) -> Result<(), Rejection> {
        let found = self.keys.get(key).map(|value| value.version);
        let is_expected = match expected {
            Expected::Any => true,
            Expected::Absent => found.is_none(),
            Expected::Version(version) => found == Some(version),
        };
        if is_expected { Ok(()) } else { Err(Rejection::KeyVersion { found }) }
    }

    /// Takes one from a snapshot, in ascending order; false when it cannot be there.
    pub(crate) fn restore(&mut self, key: Vec<u8>, value: KeyValue) -> bool {
        let is_last = self.keys.last_key_value().is_none_or(|(last, _)| *last < key);
        self.bytes += entry_bytes(&key, &value);
        is_last && self.bytes <= KEYS_BYTES_TOTAL_MAX && self.keys.insert(key, value).is_none()
    }
}

fn entry_bytes(key: &[u8], value: &KeyValue) -> u64 {
    (key.len() + value.value.len()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(offset: u64, value: &[u8]) -> KeyValue {
        KeyValue { value: value.to_vec(), version: KeyVersion { epoch: 1, offset } }
    }

    #[test]
    fn a_key_changes_only_from_what_is_expected() {
        let mut keys = Keys::default();
        let version = |offset| KeyVersion { epoch: 1, offset };
        let other = |found| Err(Rejection::KeyVersion { found });
        let at = |offset| Expected::Version(version(offset));
        assert_eq!(keys.put(b"k".into(), value(1, b"a"), at(0)), other(None));
        assert_eq!(keys.put(b"k".into(), value(1, b"a"), Expected::Absent), Ok(Done::Created));
        let found = Some(version(1));
        assert_eq!(keys.put(b"k".into(), value(2, b"b"), Expected::Absent), other(found));
        assert_eq!(keys.put(b"k".into(), value(2, b"b"), at(2)), other(found));
        let of_a_cut_epoch = Expected::Version(KeyVersion { epoch: 0, offset: 1 });
        assert_eq!(keys.put(b"k".into(), value(2, b"b"), of_a_cut_epoch), other(found));
        assert_eq!(keys.put(b"k".into(), value(2, b"b"), at(1)), Ok(Done::Changed));
        assert_eq!(keys.get(b"k"), Some(&value(2, b"b")));
        assert_eq!(keys.delete(b"k", at(1)), other(Some(version(2))));
        assert_eq!(keys.delete(b"k", at(2)), Ok(Done::Changed));
        assert_eq!(keys.delete(b"k", Expected::Any), Ok(Done::Unchanged));
        assert_eq!(keys, Keys::default());
    }

    #[test]
    fn prefixes_are_in_order() {
        let mut keys = Keys::default();
        for key in [&b"a"[..], b"ab", b"b", b"ab\xff", b"ac"] {
            keys.put(key.to_vec(), value(1, b""), Expected::Any).unwrap();
        }
        let with = |prefix| keys.with_prefix(prefix).map(|(key, _)| key).collect::<Vec<_>>();
        assert_eq!(with(b"ab"), [&b"ab"[..], b"ab\xff"]);
        assert_eq!(with(b"").len(), 5);
        assert!(with(b"z").is_empty());
    }

    #[test]
    fn all_together_are_bounded() {
        let mut keys = Keys { bytes: KEYS_BYTES_TOTAL_MAX - 4, ..Keys::default() };
        assert_eq!(keys.put(b"k".into(), value(1, b"abc"), Expected::Any), Ok(Done::Created));
        let full = Err(Rejection::Full { bound: Bound::KeyBytes });
        assert_eq!(keys.put(b"l".into(), value(2, b""), Expected::Any), full);
        assert_eq!(keys.put(b"k".into(), value(2, b"abcd"), Expected::Any), full);
        assert_eq!(keys.put(b"k".into(), value(2, b""), Expected::Any), Ok(Done::Changed));
        assert_eq!(keys.put(b"l".into(), value(2, b""), Expected::Any), Ok(Done::Created));
    }
}
