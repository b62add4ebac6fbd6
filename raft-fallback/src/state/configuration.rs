//! What else is known of a topic: text to text.

use std::collections::BTreeMap;
use std::fmt;

use crate::codec::{Malformed, Reader};
use crate::command::codec;

/// The configuration of a topic, by ascending key.
///
/// As bytes, in one piece: a map would take a hundred times the memory for an entry or two, and there are
/// very many topics. Looking for a key goes through all, of which there are few.
#[derive(Clone, Eq, PartialEq, Default)]
pub struct Configuration(Box<[u8]>);

impl Configuration {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.iter().find(|(one, _)| *one == key).map(|(_, value)| value)
    }

    /// All keys and values, by ascending key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut left = Reader(&self.0);
        std::iter::from_fn(move || {
            let mut text = || left.text(usize::from(u16::MAX), "what was checked").ok();
            Some((text()?, text()?))
        })
    }

    /// Its bytes behind the count.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Reads and checks what [`codec::put_configuration`] has put.
    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        codec::configuration_bytes(reader, |_, _| {}).map(|bytes| Self(bytes.into()))
    }
}

impl From<&BTreeMap<String, String>> for Configuration {
    fn from(entries: &BTreeMap<String, String>) -> Self {
        let mut bytes = Vec::new();
        codec::put_texts(&mut bytes, entries);
        Self(bytes.into())
    }
}

impl fmt::Debug for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_in_is_there() {
        let entries = [("a", "1"), ("b", ""), ("c", "three")];
        let owned = entries.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let configuration = Configuration::from(&BTreeMap::from(owned));
        assert!(configuration.iter().eq(entries));
        assert_eq!(configuration.get("c"), Some("three"));
        assert_eq!(configuration.get("d"), None);
        assert_eq!(format!("{configuration:?}"), r#"{"a": "1", "b": "", "c": "three"}"#);
        assert_eq!(Configuration::default().iter().count(), 0);
    }
}
