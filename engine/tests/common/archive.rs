//! A directory in one small file: names, lengths, and the pieces of 64 bytes that are not zero.
//!
//! ```text
//! "RWDIR1\n\0"
//! u32 files
//!   u16 length of the name, the name
//!   u64 length of the file
//!   u32 runs
//!     u64 offset, u32 length, bytes
//! ```

use std::collections::BTreeMap;

/// Files by name; names may have folders in them.
pub type Files = BTreeMap<String, Vec<u8>>;

const MAGIC: &[u8; 8] = b"RWDIR1\n\0";
const PIECE_BYTES: usize = 64;
/// Longest file that is believed.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Files as an archive.
pub fn pack(files: &Files) -> Vec<u8> {
    let mut archive = MAGIC.to_vec();
    archive.extend_from_slice(&(files.len() as u32).to_le_bytes());
    for (name, bytes) in files {
        archive.extend_from_slice(&(name.len() as u16).to_le_bytes());
        archive.extend_from_slice(name.as_bytes());
        archive.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for (at, piece) in bytes.chunks(PIECE_BYTES).enumerate() {
            if piece.iter().all(|byte| *byte == 0) {
                continue;
            }
            let start = at * PIECE_BYTES;
            match runs.last_mut() {
                Some((from, length)) if *from + *length == start => *length += piece.len(),
                _ => runs.push((start, piece.len())),
            }
        }
        archive.extend_from_slice(&(runs.len() as u32).to_le_bytes());
        for (from, length) in runs {
            archive.extend_from_slice(&(from as u64).to_le_bytes());
            archive.extend_from_slice(&(length as u32).to_le_bytes());
            archive.extend_from_slice(&bytes[from..from + length]);
        }
    }
    archive
}

/// The files of an archive; `None` when it is none.
pub fn unpack(archive: &[u8]) -> Option<Files> {
    let mut rest = archive.strip_prefix(MAGIC)?;
    let mut take = |length: usize| {
        let (taken, left) = rest.split_at_checked(length)?;
        rest = left;
        Some(taken)
    };
    let mut files = Files::new();
    for _ in 0..u32::from_le_bytes(take(4)?.try_into().ok()?) {
        let length = u16::from_le_bytes(take(2)?.try_into().ok()?);
        let name = String::from_utf8(take(length.into())?.to_vec()).ok()?;
        let length = u64::from_le_bytes(take(8)?.try_into().ok()?);
        let mut bytes = vec![0; usize::try_from(length.min(FILE_BYTES_MAX)).ok()?];
        for _ in 0..u32::from_le_bytes(take(4)?.try_into().ok()?) {
            let from = usize::try_from(u64::from_le_bytes(take(8)?.try_into().ok()?)).ok()?;
            let length = u32::from_le_bytes(take(4)?.try_into().ok()?) as usize;
            let until = from.checked_add(length)?;
            bytes.get_mut(from..until)?.copy_from_slice(take(length)?);
        }
        files.insert(name, bytes);
    }
    Some(files)
}
