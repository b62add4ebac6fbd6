//! Records as lines, millions of them: formatted into one buffer that is written when it is full.

use std::io::Write as _;

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::exit;

/// Bytes that are written at once.
const FULL_BYTES: usize = 256 << 10;

/// Standard output for records.
pub struct Lines {
    buffer: Vec<u8>,
    json: bool,
    escapes: Box<[Escape; 256]>,
}

/// How a byte is shown.
#[derive(Copy, Clone, Default)]
struct Escape {
    bytes: [u8; 4],
    length: u8,
}

impl Lines {
    /// Text, or one JSON object per line.
    pub fn new(json: bool) -> Lines {
        let mut escapes = Box::new([Escape::default(); 256]);
        for (byte, escape) in (0..=u8::MAX).zip(escapes.iter_mut()) {
            let text = match byte {
                b'\\' => "\\\\".to_owned(),
                b'\n' => "\\n".to_owned(),
                b'\r' => "\\r".to_owned(),
                b'\t' => "\\t".to_owned(),
                b' '..=b'~' => char::from(byte).to_string(),
                _ => format!("\\x{byte:02x}"),
            };
            escape.bytes[..text.len()].copy_from_slice(text.as_bytes());
            escape.length = text.len() as u8;
        }
        Lines { buffer: Vec::with_capacity(2 * FULL_BYTES), json, escapes }
    }

    /// Adds a record: stream, offset, CRC-32C and length of the payload, payload.
    pub fn push(&mut self, stream: u64, offset: u64, epoch: u64, payload: &[u8]) -> Result<()> {
        let crc = crc32c::crc32c(payload);
        let length = payload.len();
        // Writing to a vector cannot fail.
        if self.json {
            let _ = write!(
                self.buffer,
                "{{\"stream\":{stream},\"offset\":{offset},\"epoch\":{epoch},\
                 \"crc32c\":\"{crc:08x}\",\"length\":{length},\"payload\":\"{}\"}}",
                STANDARD.encode(payload)
            );
        } else {
            let _ = write!(self.buffer, "{stream} {offset} {crc:08x} {length} ");
            self.push_escaped(payload);
        }
        self.buffer.push(b'\n');
        if self.buffer.len() >= FULL_BYTES { self.flush() } else { Ok(()) }
    }

    /// Every escape is copied whole into room for the longest, which spares a branch per byte.
    fn push_escaped(&mut self, payload: &[u8]) {
        let mut at = self.buffer.len();
        self.buffer.resize(at + 4 * payload.len(), 0);
        for byte in payload {
            let escape = self.escapes[usize::from(*byte)];
            self.buffer[at..at + 4].copy_from_slice(&escape.bytes);
            at += usize::from(escape.length);
        }
        self.buffer.truncate(at);
    }

    /// Writes what is buffered.
    pub fn flush(&mut self) -> Result<()> {
        exit::print_bytes(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_shown_whole_on_one_line() {
        let mut lines = Lines::new(false);
        lines.push(7, 3, 0, b"a b\\\n\t\x00\xff").unwrap();
        let crc = crc32c::crc32c(b"a b\\\n\t\x00\xff");
        let expected = format!("7 3 {crc:08x} 8 a b\\\\\\n\\t\\x00\\xff\n");
        assert_eq!(String::from_utf8(lines.buffer).unwrap(), expected);

        let mut lines = Lines::new(true);
        lines.push(7, 3, 2, b"\xff\x00").unwrap();
        let value: serde_json::Value = serde_json::from_slice(&lines.buffer).unwrap();
        assert_eq!((&value["epoch"], &value["payload"]), (&2.into(), &"/wA=".into()));
    }
}
