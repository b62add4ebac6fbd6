//! The file of `--receipts`: a line for every receipt, written after the receipt was received,
//! so that what it names must be found again after any crash.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context as _, Result};

/// The file.
///
/// One write(2) at a time, under a lock: if this process is killed, only the last line of the file
/// can be incomplete, and a line without its end is no receipt.
#[derive(Debug)]
pub struct ReceiptFile(Mutex<File>);

impl ReceiptFile {
    /// Opens the file to append to it; an incomplete last line of a process that was killed is cut
    /// off first.
    pub fn open(path: &Path) -> Result<ReceiptFile> {
        open_and_cut(path)
            .map(|file| ReceiptFile(Mutex::new(file)))
            .with_context(|| format!("the file of receipts {}", path.display()))
    }

    /// Appends whole lines and empties `lines`.
    pub fn write(&self, lines: &mut Lines) -> Result<()> {
        if lines.0.is_empty() {
            return Ok(());
        }
        let mut file = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        file.write_all(lines.0.as_bytes()).context("writing receipts")?;
        lines.0.clear();
        Ok(())
    }
}

fn open_and_cut(path: &Path) -> io::Result<File> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
    let length = file.seek(SeekFrom::End(0))?;
    // No line is longer than two 20-digit numbers, a checksum and what separates them.
    let from = length.saturating_sub(128);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    let whole = tail.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end as u64 + 1);
    if from + whole < length {
        file.set_len(from + whole)?;
    }
    Ok(file)
}

/// Lines that are to be written together.
#[derive(Debug, Default)]
pub struct Lines(String);

impl Lines {
    /// One receipt: stream, offset and CRC-32C of the record.
    pub fn push(&mut self, stream: u64, offset: u64, crc: u32) {
        let _ = writeln!(self.0, "{stream} {offset} {crc:08x}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_appended_and_a_torn_one_is_cut() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("receipts");
        let mut lines = Lines::default();
        lines.push(16, 0, 0xdead_beef);
        lines.push(17, 1, 5);
        ReceiptFile::open(&path).unwrap().write(&mut lines).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "16 0 deadbeef\n17 1 00000005\n");

        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"16 1 dea").unwrap();
        let receipts = ReceiptFile::open(&path).unwrap();
        lines.push(16, 1, 0xf00d);
        receipts.write(&mut lines).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "16 0 deadbeef\n17 1 00000005\n16 1 0000f00d\n"
        );
    }
}
