//! Names of topics.

use std::fmt;
use std::sync::Arc;

use crate::limits::TOPIC_NAME_BYTES_MAX;

/// The name of a topic: 1 to 249 characters of `a-z A-Z 0-9 . _ -`, and neither `.` nor `..`, as in
/// Kafka. Names that begin with `__` are reserved: they can be asked for, and no command makes or
/// drops such a topic.
///
/// A clone shares the text.
#[derive(Clone, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct TopicName(Arc<str>);

/// Why a text is no name of a topic.
#[derive(Clone, Eq, PartialEq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Empty, or longer than any may be.
    #[error("a topic name of {bytes} bytes; it must have 1 to {TOPIC_NAME_BYTES_MAX}")]
    Length {
        /// How long it is.
        bytes: usize,
    },
    /// A character that no name has.
    #[error("a topic name with {character:?}; only a-z, A-Z, 0-9, '.', '_' and '-' are taken")]
    Character {
        /// The first such.
        character: char,
    },
    /// `.` or `..`, which mean something else in paths.
    #[error("a topic cannot be called \".\" or \"..\"; choose another name")]
    Dots,
}

impl TopicName {
    /// Checks a name.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(name: &str) -> Result<Self, NameError> {
        if name.is_empty() || name.len() > TOPIC_NAME_BYTES_MAX {
            return Err(NameError::Length { bytes: name.len() });
        }
        let is_taken =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if let Some(place) = name.bytes().position(|byte| !is_taken(byte)) {
            // All before it are ASCII, so that a character begins there.
            let character = name[place..].chars().next().expect("there is a byte");
            return Err(NameError::Character { character });
        }
        if matches!(name, "." | "..") {
            return Err(NameError::Dots);
        }
        Ok(Self(name.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it begins with `__`: no command makes or drops a topic of this name.
    pub fn is_reserved(&self) -> bool {
        self.0.starts_with("__")
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_in_kafka() {
        for good in ["a", "A-9_z.x", "...", "__metadata", &"x".repeat(249)] {
            assert_eq!(TopicName::new(good).unwrap().as_str(), good);
        }
        assert_eq!(TopicName::new(""), Err(NameError::Length { bytes: 0 }));
        assert_eq!(TopicName::new(&"x".repeat(250)), Err(NameError::Length { bytes: 250 }));
        for dots in [".", ".."] {
            assert_eq!(TopicName::new(dots), Err(NameError::Dots));
        }
        for (bad, character) in [("a b", ' '), ("a/b", '/'), ("ä", 'ä'), ("a\0", '\0')] {
            assert_eq!(TopicName::new(bad), Err(NameError::Character { character }));
        }
    }

    #[test]
    fn two_underscores_are_reserved() {
        let is_reserved = |name| TopicName::new(name).unwrap().is_reserved();
        assert!(is_reserved("__metadata") && is_reserved("__"));
        assert!(!is_reserved("_metadata") && !is_reserved("a__"));
    }
}
