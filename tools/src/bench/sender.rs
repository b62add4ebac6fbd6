//! The sender alone: a leader's core and a connection over loopback, fed from memory; a thread reads
//! and drops. No engine and no disk.

use std::io::Read as _;
use std::net::TcpListener;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result};
use ringwal_replication::sending::{self, Load};

use super::Bench;
use super::measure::{Part, Tally, Variant, Yardstick, joined, measure};
use crate::report::Run;

/// The runs.
pub const NAMES: [&str; 2] = ["sender", "sender-small"];
/// Frames that show how many bytes it takes, a megabyte to a batch.
const LARGE: Load = Load { frame_bytes: 64 << 10, frames_per_batch: 16 };
/// Frames that show how many calls it takes: those of 64 clients with a record of 128 bytes each.
const SMALL: Load = Load { frame_bytes: 200, frames_per_batch: 64 };
/// What is read at once.
const READ_BYTES: usize = 1 << 20;

/// Measures both.
pub fn run(bench: &mut Bench) -> Result<()> {
    let variants = NAMES.into_iter().zip([LARGE, SMALL]).map(|(name, load)| Variant {
        run: Run {
            name: name.to_owned(),
            description: format!(
                "frames of {} bytes from memory over loopback, {} to a batch; no disk",
                load.frame_bytes, load.frames_per_batch
            ),
            clients: 1,
            followers: 1,
            record_bytes: load.frame_bytes as u64,
            ..Run::default()
        },
        engine: None,
        node: None,
        yardstick: Yardstick::Slice,
        work: Box::new(move |part| work(part, load)),
    });
    let measured = measure(bench, variants.collect())?;
    bench.keep_all(measured);
    Ok(())
}

fn work(part: &Part<'_>, load: Load) -> Result<Tally> {
    let listener = TcpListener::bind("127.0.0.1:0").context("listening on loopback")?;
    let address = listener.local_addr().context("listening on loopback")?.to_string();
    thread::scope(|scope| {
        let receiver = scope.spawn(move || receive(&listener));
        let mut recorder = part.recorder(0, 1);
        // From the hand-over to the connection until it was written.
        let mut note = |begin: Instant, frames| {
            recorder.record_many(begin, begin.elapsed(), frames);
        };
        let sent = sending::run(&address, load, &mut note, &|now| part.is_over(now));
        // When nobody has connected, nobody would.
        if sent.is_err() {
            let _ = std::net::TcpStream::connect(&address);
        }
        let received = joined(receiver);
        let sent = sent.context("the sender")?;
        received?;
        // Of all parts the one with the most stays.
        let calls_per_frame = sent.calls as f64 / (sent.frames as f64).max(1.0);
        let extra = vec![("send_calls_per_frame", calls_per_frame)];
        Ok(Tally { extra, ..Tally::default() })
    })
}

fn receive(listener: &TcpListener) -> Result<()> {
    let (mut stream, _) = listener.accept().context("accepting the sender")?;
    let mut buffer = vec![0; READ_BYTES];
    while stream.read(&mut buffer).context("reading from the sender")? > 0 {}
    Ok(())
}
