//! What the metadata store decodes: its messages between nodes, its log, base, snapshots and records.

use bytes::Bytes;
use ringwal_raft_fallback::fuzzing::{Decoder, again, samples};

use super::corpus::Kind;
use super::targets::{Outcome, Verdict};

/// Bytes of a header with a checksum: of a snapshot over what is before it, of a base over what is behind.
const HEADER_BYTES: usize = 12;

/// What this version writes.
pub fn seeds() -> Vec<(Kind, Vec<u8>)> {
    samples().into_iter().map(|(decoder, bytes)| (Kind::Raft(decoder), bytes)).collect()
}

/// Checksums, where there are any.
pub fn fix(decoder: Decoder, bytes: &mut [u8]) {
    if bytes.len() < HEADER_BYTES {
        return;
    }
    match decoder {
        Decoder::Base => {
            let crc = crc32c::crc32c(&bytes[HEADER_BYTES..]);
            bytes[8..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
        }
        Decoder::Snapshot => fix_snapshot(bytes),
        _ => {}
    }
}

/// The header's, and those of the chunks as far as they lead from one to the next.
fn fix_snapshot(bytes: &mut [u8]) {
    let mut crc = crc32c::crc32c(&bytes[..8]);
    bytes[8..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    let mut rest = &mut bytes[HEADER_BYTES..];
    while let Some((start, behind)) = rest.split_at_mut_checked(8) {
        let length: [u8; 4] = start[..4].try_into().expect("four bytes");
        let Some((items, next)) = behind.split_at_mut_checked(u32::from_le_bytes(length) as usize)
        else {
            return;
        };
        crc = crc32c::crc32c_append(crc32c::crc32c_append(crc, &length), items);
        start[4..].copy_from_slice(&crc.to_le_bytes());
        rest = next;
    }
}

/// What is accepted is what it was when it is written and read again. Bytes that nobody writes so may be
/// accepted: fields that a newer version has are passed over, and sets have one order.
pub fn check(decoder: Decoder, bytes: &[u8]) -> Outcome {
    let encoded = again(decoder, &Bytes::copy_from_slice(bytes));
    let Some(encoded) = encoded.map_err(|error| format!("not to be encoded again: {error}"))?
    else {
        return Ok(Verdict::Refused);
    };
    let encoded = Bytes::from(encoded);
    match again(decoder, &encoded) {
        Ok(Some(same)) if same == encoded => Ok(Verdict::Accepted),
        Ok(Some(_)) => Err("decoded and encoded again it is another".into()),
        Ok(None) => Err("encoded again it is refused".into()),
        Err(error) => Err(format!("not to be encoded a second time: {error}")),
    }
}
