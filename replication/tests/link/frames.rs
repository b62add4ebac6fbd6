//! Many frames, there and back, over plain sockets and TLS; how fast that is.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ringwal_engine::StreamId;
use ringwal_engine::format::{FrameHeader, FrameKind};
use ringwal_replication::link::tls::Tls;
use ringwal_replication::link::{Link, Listener, Received};
use ringwal_replication::wire::Message;
use zerocopy::IntoBytes;

use super::{LIMIT, run};
use crate::authority::{Authority, write};

const FRAME_BYTES_MAX: usize = 1 << 20;
const REPORT_EVERY: usize = 500;

fn frame(payload_bytes: usize, seed: u32) -> Bytes {
    let mut state = seed;
    let payload: Vec<u8> = (0..payload_bytes)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect();
    let header = FrameHeader::new(FrameKind::Data, 7, 1, seed.into(), 1, 0, &payload);
    [header.as_bytes(), &payload].concat().into()
}

/// So many bytes of frames in an order that looks like chance, and is the same on both sides.
fn sequence(frames: &[Bytes], bytes: usize) -> Vec<Bytes> {
    let (mut sequence, mut length, mut state) = (Vec::new(), 0, 1_u32);
    while length < bytes {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let frame = frames[(state >> 16) as usize % frames.len()].clone();
        length += frame.len();
        sequence.push(frame);
    }
    sequence
}

fn mixed() -> Vec<Bytes> {
    let sizes = [1, 20, 100, 100, 1000, 4096, 65_536, 65_536, 300_000, 65_535];
    sizes.into_iter().zip(0..).map(|(bytes, seed)| frame(bytes, seed)).collect()
}

/// Receives so many bytes of frames, and calls back for each.
fn receiver(
    listener: Listener,
    tls: Option<Arc<Tls>>,
    mut handle: impl FnMut(Bytes) + Send + 'static,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        run(async {
            let (stream, _) = listener.accept().await.expect("accepted");
            let link = Link::accept(stream, tls.as_deref(), LIMIT).await.expect("a link");
            let (mut reader, mut writer) = link.split();
            let mut count = 0;
            loop {
                while let Some(item) = reader.next_item(FRAME_BYTES_MAX).expect("items") {
                    let Received::Frame(frame) = item else { panic!("{item:?}") };
                    handle(frame);
                    count += 1;
                    if count % REPORT_EVERY == 0 {
                        let ends = vec![(StreamId::new(7), count as u64)];
                        let report = Message::Durable { took_ns: 0, ends }.encode();
                        writer.write_all(vec![report.into()]).await.expect("written");
                    }
                }
                if reader.receive().await.expect("bytes") == 0 {
                    break;
                }
            }
            writer.shutdown().await;
        });
    })
}

/// Sends, a few slices at a time, while reports are received; returns how many came.
fn send(address: &str, tls: Option<&Tls>, frames: Vec<Bytes>, at_once: usize) -> usize {
    run(async {
        let link = Link::dial(address, tls, LIMIT).await.expect("a link");
        let (mut reader, mut writer) = link.split();
        let reports = tokio_uring::spawn(async move {
            let mut reports = 0;
            loop {
                while let Some(item) = reader.next_item(0).expect("items") {
                    assert!(matches!(item, Received::Message(Message::Durable { .. })));
                    reports += 1;
                }
                if reader.receive().await.expect("bytes") == 0 {
                    return reports;
                }
            }
        });
        for slices in frames.chunks(at_once) {
            let bytes: usize = slices.iter().map(Bytes::len).sum();
            let counts = writer.write_all(slices.to_vec()).await.expect("written");
            assert!(counts.bytes == bytes as u64 && counts.calls > 0);
        }
        writer.shutdown().await;
        reports.await.expect("no panic")
    })
}

fn there_and_back(sender: Option<&Tls>, accepts: Option<Arc<Tls>>, host: &str) {
    let frames = sequence(&mixed(), 100_000_000);
    let count = frames.len();
    let listener = Listener::bind(&format!("{host}:0")).expect("bound");
    let address = format!("{host}:{}", listener.local_address().port());
    let mut expected = frames.clone().into_iter();
    let (done, received) = std::sync::mpsc::channel();
    let receiving = receiver(listener, accepts, move |frame| {
        assert!(frame == expected.next().expect("no more than were sent"));
        if expected.len() == 0 {
            done.send(()).expect("awaited");
        }
    });
    let reports = send(&address, sender, frames, 37);
    received.recv_timeout(Duration::from_secs(60)).expect("all frames");
    receiving.join().expect("no panic");
    // Those that were still on their way when the sender shut down may be missing.
    assert!(reports > 0 && reports <= count / REPORT_EVERY, "{reports} reports");
}

#[test]
fn a_hundred_megabytes_without_tls() {
    there_and_back(None, None, "127.0.0.1");
}

#[test]
fn a_hundred_megabytes_with_tls() {
    let directory = tempfile::tempdir().expect("a directory");
    let authority = Authority::new();
    let issued = authority.issue("localhost");
    let tls = Tls::load(&write(directory.path(), &issued, &[&authority])).expect("loaded");
    let tls = Arc::new(tls);
    there_and_back(Some(&tls), Some(tls.clone()), "localhost");
}
