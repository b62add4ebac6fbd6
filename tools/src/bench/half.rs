//! Half of the saturated rate, `Ack::Local`: with two live followers in processes of their own;
//! beside a control, in which two unconnected engines in processes of their own do the followers'
//! work on the same device and processors; and a leader that is alone with both. Part by part, in
//! turn.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ringwal_replication::Ack;

use super::closed_loop::Clients;
use super::data::SideDirectory;
use super::led::{Led, is_in_step, wait_until};
use super::measure::{Part, Tally, Variant, Yardstick, measure_parts};
use super::open_loop::{Load, SHARE_OF_LOADED, saturated};
use super::peer::{self, Counts, Peer};
use super::{Bench, wait_until_prepared};

/// The runs.
pub const NAMES: [&str; 3] =
    ["replicated-half", "replicated-half-control", "replicated-half-alone"];
/// Followers, and engines that do their work.
const FOLLOWERS: u64 = 2;
/// Of all six engines, so that their segments fit the disk that a bench takes.
const SEGMENT_BYTES: u64 = 16 << 20;
/// Length of a part, unless that makes too many: the medians of parts are compared.
const PART: Duration = Duration::from_millis(500);
/// Parts of a run at most.
const PARTS_MAX: f64 = 21.0;

/// What the leader and two processes have done in parts of one variant, warm-up included.
#[derive(Debug, Clone, Copy, Default)]
struct Done {
    seconds: f64,
    /// Of the leader.
    batches: u64,
    /// Of both processes together.
    theirs: Counts,
}

impl Done {
    fn add(&mut self, seconds: f64, batches: u64, theirs: Counts) {
        self.seconds += seconds;
        self.batches += batches;
        self.theirs.batches += theirs.batches;
        self.theirs.records += theirs.records;
        self.theirs.written_bytes += theirs.written_bytes;
    }

    fn extra(&self) -> [(&'static str, f64); 3] {
        let per_second = |count: u64| count as f64 / FOLLOWERS as f64 / self.seconds.max(1e-9);
        [
            ("peer_batches_per_second", per_second(self.theirs.batches)),
            ("peer_records_per_second", per_second(self.theirs.records)),
            ("peer_written_bytes_per_second", per_second(self.theirs.written_bytes)),
        ]
    }
}

/// Measures it.
pub fn run(bench: &mut Bench) -> Result<()> {
    bench.progress.show("starting nodes");
    let directories: Vec<SideDirectory> =
        (0..2 * FOLLOWERS).map(|index| bench.data.side(&format!("peer-{index}"))).collect();
    let start = |index: u64, part: peer::Part| {
        let directory = directories[index as usize].path();
        Peer::start(&bench.settings, &bench.interrupt, directory, SEGMENT_BYTES, &part)
    };
    let follower = |index: u64| peer::Part::Follower {
        node: index + 2,
        members: FOLLOWERS + 1,
        listen: "127.0.0.1:0".to_owned(),
        await_records: None,
    };
    let followers =
        (0..FOLLOWERS).map(|index| start(index, follower(index))).collect::<Result<Vec<_>>>()?;
    let writers = (FOLLOWERS..2 * FOLLOWERS)
        .map(|index| start(index, peer::Part::Writer))
        .collect::<Result<Vec<_>>>()?;
    if bench.interrupt.is_asked() {
        return Ok(());
    }
    let addresses: Vec<String> = followers.iter().map(|peer| peer.address.clone()).collect();
    let led = Led::start(bench, "leader", SEGMENT_BYTES, &addresses)?;
    let side = bench.data.side("alone");
    let alone = bench.open_at(bench.settings.io[0], side.path(), Some(SEGMENT_BYTES))?;
    wait_until_prepared(&alone);
    let outcome = measure_all(bench, &led, &alone, followers, writers);
    let closed = led.close();
    let alone = alone.close().context("closing the engine without followers");
    outcome.and(closed).and(alone.map(drop))
}

fn measure_all(
    bench: &mut Bench,
    led: &Led,
    alone: &ringwal_engine::Engine,
    followers: Vec<Peer>,
    writers: Vec<Peer>,
) -> Result<()> {
    bench.progress.show("waiting for followers");
    if !wait_until(&led.node, &bench.interrupt, is_in_step)? {
        return Ok(());
    }
    let saturated = match bench.settings.rate {
        Some(_) => None,
        None => {
            let clients = clients(bench, led);
            Some(saturated(bench, clients, Some(led.node.clone()))?)
        }
    };
    let rate = bench.settings.rate.or(saturated.map(|rate| rate * SHARE_OF_LOADED));
    let rate = rate.unwrap_or(0.0).max(1.0);

    let interrupt = bench.interrupt.clone();
    let (followers, writers) = (Mutex::new(followers), Mutex::new(writers));
    let (with, control) = (Mutex::new(Done::default()), Mutex::new(Done::default()));
    let load = |engine: &ringwal_engine::Engine, leads: bool| Load {
        engine: engine.clone(),
        rate,
        streams: bench.settings.clients,
        seed: bench.settings.seed,
        record_bytes: bench.settings.record_bytes,
        receipts: None,
        led: leads.then(|| led.leadership.clone()),
    };
    let leading = load(led.node.engine(), true);
    let unled = Arc::new(load(alone, false));
    let leads = |text: &str| format!("{rate:.0} records/s, Ack::Local, {text}");
    let mut with_followers =
        leading.run(NAMES[0].to_owned(), leads("two followers in processes of their own"));
    (with_followers.followers, with_followers.ack) = (FOLLOWERS as u32, "local".to_owned());
    let (unled_control, unled_alone) = (unled.clone(), unled.clone());
    let variants = vec![
        Variant {
            run: with_followers,
            engine: Some(led.node.engine().clone()),
            node: Some(led.node.clone()),
            yardstick: Yardstick::Slice,
            work: Box::new(|part| {
                let mut followers = followers.lock().unwrap_or_else(PoisonError::into_inner);
                counted(&leading, &mut followers, &with, part, |_| {
                    wait_until(&led.node, &interrupt, is_in_step).map(drop)
                })
            }),
        },
        Variant {
            run: unled.run(
                NAMES[1].to_owned(),
                format!(
                    "{rate:.0} records/s, alone; two unconnected engines in processes of their \
                     own write what the followers did"
                ),
            ),
            engine: Some(alone.clone()),
            node: None,
            yardstick: Yardstick::Slice,
            work: Box::new(|part| {
                let mut writers = writers.lock().unwrap_or_else(PoisonError::into_inner);
                // As many bursts as the leader has sealed batches for its followers just before.
                let done = *with.lock().unwrap_or_else(PoisonError::into_inner);
                let bursts = (done.batches as f64 / done.seconds.max(1e-9)).max(1.0);
                for writer in &mut *writers {
                    writer.ask(&format!("write {rate} {bursts}"))?;
                }
                counted(&unled_control, &mut writers, &control, part, |writers| {
                    writers.iter_mut().try_for_each(|writer| writer.ask("stop").map(drop))
                })
            }),
        },
        Variant {
            run: unled.run(NAMES[2].to_owned(), format!("{rate:.0} records/s, nobody else")),
            engine: Some(alone.clone()),
            node: None,
            yardstick: Yardstick::Slice,
            work: Box::new(move |part| unled_alone.work(part)),
        },
    ];
    let (parts, length) = parts(bench.settings.duration);
    let mut measured = measure_parts(bench, variants, parts, length)?;

    let of_parts: Vec<(f64, f64)> = measured.iter().map(|one| one.of_parts(length)).collect();
    for (one, (p50, p99)) in measured.iter_mut().zip(&of_parts) {
        one.run.extra.insert("part_p50_ns".to_owned(), *p50);
        one.run.extra.insert("part_p99_ns".to_owned(), *p99);
    }
    for (one, done) in measured.iter_mut().zip([&with, &control]) {
        let done = *done.lock().unwrap_or_else(PoisonError::into_inner);
        one.run.extra.extend(done.extra().map(|(name, value)| (name.to_owned(), value)));
    }
    if let [(p50, p99), others @ ..] = &of_parts[..] {
        let extra = &mut measured[0].run.extra;
        if let Some(saturated) = saturated {
            extra.insert("saturated_records_per_second".to_owned(), saturated);
        }
        for ((other_p50, other_p99), other) in others.iter().zip(["control", "alone"]) {
            if *other_p50 > 0.0 {
                extra.insert(format!("p50_ratio_to_{other}"), p50 / other_p50);
                extra.insert(format!("p99_ratio_to_{other}"), p99 / other_p99);
            }
        }
    }
    bench.keep_all(measured);
    Ok(())
}

/// In how many parts so much time is measured, and their length.
pub fn parts(duration: Duration) -> (u32, Duration) {
    let parts = duration.div_duration_f64(PART).ceil().clamp(1.0, PARTS_MAX) as u32;
    (parts, duration / parts)
}

/// Many clients of a leader.
pub fn clients(bench: &Bench, led: &Led) -> Clients {
    Clients {
        engine: led.node.engine().clone(),
        count: bench.settings.clients,
        seed: bench.settings.seed,
        record_bytes: bench.settings.record_bytes,
        receipts: None,
        led: Some((led.leadership.clone(), Ack::Local)),
    }
}

/// One part, and what the leader and the processes beside it did meanwhile: `settle` waits until they
/// have done all of it.
fn counted(
    load: &Load,
    peers: &mut [Peer],
    done: &Mutex<Done>,
    part: &Part<'_>,
    settle: impl Fn(&mut [Peer]) -> Result<()>,
) -> Result<Tally> {
    let batches = || load.engine.stats().shards.iter().map(|shard| shard.batches).sum::<u64>();
    let before = peers.iter_mut().map(Peer::counts).collect::<Result<Vec<_>>>()?;
    let (start, batches_before) = (Instant::now(), batches());
    let tally = load.work(part)?;
    let (seconds, more) = (start.elapsed().as_secs_f64(), batches() - batches_before);
    settle(peers)?;
    let mut theirs = Counts::default();
    for (peer, before) in peers.iter_mut().zip(before) {
        let since = peer.counts()?.since(before);
        theirs.batches += since.batches;
        theirs.records += since.records;
        theirs.written_bytes += since.written_bytes;
    }
    done.lock().unwrap_or_else(PoisonError::into_inner).add(seconds, more, theirs);
    Ok(tally)
}
