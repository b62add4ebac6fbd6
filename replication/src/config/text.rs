//! How the values of a configuration are written: sizes, durations, ids.

use std::fmt;
use std::time::Duration;

use bytesize::ByteSize;
use serde::de::{self, Deserialize, Deserializer, Visitor};

use crate::node_id::{ClusterId, NodeId};

/// 32 hexadecimal digits, or the same as a UUID.
pub fn cluster<'de, D: Deserializer<'de>>(from: D) -> Result<ClusterId, D::Error> {
    let text = String::deserialize(from)?;
    cluster_id(&text).ok_or_else(|| {
        de::Error::custom(format!(
            "{text:?} is no cluster id; write 32 hexadecimal digits or a UUID, made once with \
             `uuidgen` and the same on all nodes"
        ))
    })
}

fn cluster_id(text: &str) -> Option<ClusterId> {
    let digits = match text.len() {
        32 => text.to_owned(),
        36 => {
            let dash_at = |at: usize| text.as_bytes()[at] == b'-';
            if ![8, 13, 18, 23].into_iter().all(dash_at) {
                return None;
            }
            text.replace('-', "")
        }
        _ => return None,
    };
    // A sign would be taken by `from_str_radix`.
    if digits.len() != 32 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    Some(ClusterId::new(u128::from_str_radix(&digits, 16).ok()?.to_be_bytes()))
}

/// A number; that it is not 0 is for `Config::check`, which nodes built in Rust need as well.
pub fn node<'de, D: Deserializer<'de>>(from: D) -> Result<NodeId, D::Error> {
    u64::deserialize(from).map(NodeId::new)
}

/// `"100ms"`, `"2s"`, `"1m 30s"`.
pub fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    humantime::parse_duration(&text).map_err(|error| {
        de::Error::custom(format!("{text:?} is no duration ({error}); write it like \"100ms\""))
    })
}

/// `"8 MiB"`, or a number of bytes.
pub fn bytes<'de, D: Deserializer<'de>, T: TryFrom<u64>>(from: D) -> Result<T, D::Error> {
    let bytes = from.deserialize_any(BytesVisitor)?;
    T::try_from(bytes).map_err(|_| de::Error::custom(format!("{bytes} bytes are too many")))
}

struct BytesVisitor;

impl Visitor<'_> for BytesVisitor {
    type Value = u64;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a size like \"8 MiB\", or a number of bytes")
    }

    fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<u64, E> {
        u64::try_from(bytes).map_err(|_| E::custom(format!("{bytes} bytes are less than none")))
    }

    fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<u64, E> {
        Ok(bytes)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
        let size: ByteSize = text.parse().map_err(|error| {
            E::custom(format!("{text:?} is no size ({error}); write it like \"8 MiB\""))
        })?;
        Ok(size.0)
    }
}
