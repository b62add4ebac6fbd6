//! What sealing a batch computes per frame, and what reading it back checks.

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use ringwal_engine::format::{FRAME_HEADER_BYTES, FrameHeader, FrameKind, VerifiedFrame};
use zerocopy::IntoBytes as _;

const PAYLOAD_BYTES: [usize; 4] = [128, 4 << 10, 64 << 10, 1 << 20];

fn main() {
    divan::main();
}

/// A payload of one record.
fn payload(length: usize) -> Vec<u8> {
    let mut payload = vec![0xA5; length];
    payload[..4].copy_from_slice(&(length as u32 - 4).to_le_bytes());
    payload
}

fn write_frame(frame: &mut [u8]) {
    let (header, payload) = frame.split_at_mut(FRAME_HEADER_BYTES);
    let made = FrameHeader::new(FrameKind::Data, 7, 1, 1000, 1, 0, payload);
    header.copy_from_slice(made.as_bytes());
}

#[divan::bench(args = PAYLOAD_BYTES, max_time = 0.5)]
fn checksum(bencher: Bencher<'_, '_>, length: usize) {
    let payload = payload(length);
    bencher.counter(BytesCount::new(length)).bench(|| crc32c::crc32c(black_box(&payload)));
}

/// The header of a frame whose payload is in its place already.
#[divan::bench(args = PAYLOAD_BYTES, max_time = 0.5)]
fn encode_frame(bencher: Bencher<'_, '_>, length: usize) {
    let mut frame = [vec![0; FRAME_HEADER_BYTES], payload(length)].concat();
    bencher.counter(BytesCount::new(length)).bench_local(|| write_frame(black_box(&mut frame)));
}

/// Both checksums and every length.
#[divan::bench(args = PAYLOAD_BYTES, max_time = 0.5)]
fn verify_frame(bencher: Bencher<'_, '_>, length: usize) {
    let mut frame = [vec![0; FRAME_HEADER_BYTES], payload(length)].concat();
    write_frame(&mut frame);
    bencher
        .counter(BytesCount::new(length))
        .bench(|| VerifiedFrame::verify(black_box(&frame)).is_ok());
}
