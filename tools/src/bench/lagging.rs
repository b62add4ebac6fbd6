//! What a follower that does not keep up costs its leader: half of the saturated rate, `Ack::Local`,
//! with one follower that is gone, that has joined blank and lacks what the leader holds, or that is
//! stopped (SIGSTOP). Part by part, in turn. The follower is a process of its own, started for each
//! part and killed at its end.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use ringwal_replication::Node;
use ringwal_replication::stats::FollowerStats;
use rustix::process::Signal;

use super::Bench;
use super::cpu::Growth;
use super::data::SideDirectory;
use super::half::{clients, parts};
use super::led::{Led, is_in_step, wait_until};
use super::measure::{Part, Tally, Variant, Yardstick, measure_parts};
use super::open_loop::{Load, SHARE_OF_LOADED, saturated};
use super::peer::{self, Peer};
use super::settings::Settings;
use crate::interrupt::Interrupt;

/// The runs, in turn; the first is what the others are compared with.
pub const NAMES: [&str; 3] = ["replicated-gone", "replicated-behind", "replicated-stopped"];
/// Of both engines.
const SEGMENT_BYTES: u64 = 32 << 20;
/// The stream that a new follower lacks. No load goes to it, so that it is not trimmed.
pub const LACKED_STREAM: u64 = 8;
/// Its records.
pub const LACKED_RECORD_BYTES: usize = 4096;

/// Streams of the load: few, so that a part with a stopped follower, which begins when that has caught
/// up, begins soon.
const STREAMS_MAX: usize = 8;

/// What the follower does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Follower {
    Gone,
    Behind,
    Stopped,
}

/// A follower that is started for each part.
struct Restarted {
    settings: Settings,
    interrupt: Interrupt,
    directory: SideDirectory,
    listen: String,
    node: Arc<Node>,
    load: Load,
    /// What it lacks when it joins blank.
    lacked_bytes: u64,
    /// Parts at whose end it had got all of that.
    caught_up: AtomicU32,
    /// Growth of this process, of each follower by its place in [`NAMES`].
    growth: Mutex<[u64; 3]>,
}

/// Measures it.
pub fn run(bench: &mut Bench) -> Result<()> {
    bench.progress.show("starting nodes");
    let listen = peer::free_address()?;
    let led = Led::start(bench, "leader", SEGMENT_BYTES, std::slice::from_ref(&listen))?;
    let outcome = measure_all(bench, &led, listen);
    let closed = led.close();
    outcome.and(closed)
}

fn measure_all(bench: &mut Bench, led: &Led, listen: String) -> Result<()> {
    let lacked = bench.settings.behind_bytes / LACKED_RECORD_BYTES as u64;
    led.write(bench, LACKED_STREAM, 1, LACKED_RECORD_BYTES, lacked, None)?;
    let rate = match bench.settings.rate {
        Some(rate) => rate,
        None => {
            let clients = clients(bench, led);
            saturated(bench, clients, Some(led.node.clone()))? * SHARE_OF_LOADED
        }
    };
    let restarted = Restarted {
        settings: bench.settings.clone(),
        interrupt: bench.interrupt.clone(),
        directory: bench.data.side("follower"),
        listen,
        node: led.node.clone(),
        load: Load {
            engine: led.node.engine().clone(),
            rate: rate.max(1.0),
            streams: bench.settings.clients.min(STREAMS_MAX),
            seed: bench.settings.seed,
            record_bytes: bench.settings.record_bytes,
            receipts: None,
            led: Some(led.leadership.clone()),
        },
        lacked_bytes: lacked * LACKED_RECORD_BYTES as u64,
        caught_up: AtomicU32::new(0),
        growth: Mutex::default(),
    };
    let lacks = bench.settings.behind_bytes >> 20;
    let about = [
        "the follower is gone".to_owned(),
        format!("the follower has joined blank and lacks {lacks} MiB"),
        "the follower is stopped (SIGSTOP)".to_owned(),
    ];
    let kinds = [Follower::Gone, Follower::Behind, Follower::Stopped];
    let variants = NAMES.into_iter().zip(about).zip(kinds).map(|((name, about), kind)| {
        let description = format!("{rate:.0} records/s, Ack::Local, {about}");
        let mut run = restarted.load.run(name.to_owned(), description);
        (run.followers, run.ack) = (1, "local".to_owned());
        let restarted = &restarted;
        Variant {
            run,
            engine: Some(led.node.engine().clone()),
            node: Some(led.node.clone()),
            yardstick: Yardstick::Slice,
            work: Box::new(move |part| restarted.work(part, kind)),
        }
    });
    let (parts, length) = parts(bench.settings.duration);
    let mut measured = measure_parts(bench, variants.collect(), parts, length)?;

    let (gone_p50, gone_p99) = measured[0].of_parts(length);
    let growth = *restarted.growth.lock().unwrap_or_else(PoisonError::into_inner);
    for (index, one) in measured.iter_mut().enumerate() {
        let (p50, p99) = one.of_parts(length);
        let extra = &mut one.run.extra;
        extra.insert("part_p50_ns".to_owned(), p50);
        extra.insert("part_p99_ns".to_owned(), p99);
        extra.insert("resident_growth_bytes".to_owned(), growth[index] as f64);
        if index > 0 && gone_p50 > 0.0 {
            extra.insert("p50_ratio_to_gone".to_owned(), p50 / gone_p50);
            extra.insert("p99_ratio_to_gone".to_owned(), p99 / gone_p99);
        }
    }
    let lacked_bytes = restarted.lacked_bytes as f64;
    measured[1].run.extra.insert("lacked_bytes".to_owned(), lacked_bytes);
    let caught_up = restarted.caught_up.load(Ordering::Relaxed);
    if caught_up > 0 {
        bench.warn(format!(
            "replicated-behind: the follower had got the {lacks} MiB before the end of {caught_up} \
             of {parts} parts; --behind with more keeps it behind."
        ));
    }
    bench.keep_all(measured);
    Ok(())
}

impl Restarted {
    fn work(&self, part: &Part<'_>, kind: Follower) -> Result<Tally> {
        let resent_before = self.resent_bytes();
        let peer = match kind {
            Follower::Gone => None,
            Follower::Behind => {
                self.directory.clear()?;
                self.start(|follower| follower.is_connected)?
            }
            Follower::Stopped => {
                let peer = self.start(is_in_step)?;
                peer.as_ref().map_or(Ok(()), |peer| peer.signal(Signal::STOP))?;
                peer
            }
        };
        if kind != Follower::Gone && peer.is_none() {
            return Ok(Tally::default());
        }
        let growth = Growth::begin();
        let tally = self.load.work(part)?;
        let mut largest = self.growth.lock().unwrap_or_else(PoisonError::into_inner);
        largest[kind as usize] = largest[kind as usize].max(growth.bytes());
        if kind == Follower::Behind && self.resent_bytes() - resent_before >= self.lacked_bytes {
            self.caught_up.fetch_add(1, Ordering::Relaxed);
        }
        drop(peer);
        Ok(tally)
    }

    /// Bytes that were read from segments for it, in all sessions.
    fn resent_bytes(&self) -> u64 {
        self.node.stats().followers.iter().map(|follower| follower.bytes_resent).sum()
    }

    /// Starts it, in a new session, and waits; nothing when interrupted before.
    fn start(&self, is_right: impl Fn(&FollowerStats) -> bool) -> Result<Option<Peer>> {
        let connects = |node: &Node| node.stats().followers.first().map_or(0, |f| f.connects);
        let before = connects(&self.node);
        let follower = peer::Part::Follower {
            node: 2,
            members: 2,
            listen: self.listen.clone(),
            await_records: None,
        };
        let (settings, interrupt) = (&self.settings, &self.interrupt);
        let directory = self.directory.path();
        let peer = Peer::start(settings, interrupt, directory, SEGMENT_BYTES, &follower)?;
        let is_new = |follower: &FollowerStats| follower.connects > before && is_right(follower);
        Ok(wait_until(&self.node, interrupt, is_new)?.then_some(peer))
    }
}
