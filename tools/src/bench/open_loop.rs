//! Open loop: records come at a fixed rate, whether earlier ones are durable or not, and the
//! response is counted from the moment that was intended, so that a stall is seen by every request
//! that it delayed.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ringwal_engine::{Append, Engine, Receipt};
use ringwal_replication::{Ack, Leadership, Node, Pending};

use super::Bench;
use super::closed_loop::Clients;
use super::measure::{Measured, Part, Tally, Variant, Yardstick, joined, measure, measure_parts};
use super::receipts::ReceiptFile;
use super::writer::Writer;
use crate::probe::{histogram, record};
use crate::report::Run;

/// Without `--rate`: this share of what many clients reached.
pub const SHARE_OF_LOADED: f64 = 0.5;
/// Records that may be under way; more would mean that the rate cannot be kept.
const IN_FLIGHT_MAX: usize = 16_384;
/// How long clients run to find a rate, when no loaded run has.
const CALIBRATION: Duration = Duration::from_millis(500);
/// The sweep begins at this share of what many clients reached,
const SWEEP_FIRST: f64 = 0.1;
/// goes up by this factor,
const SWEEP_STEP: f64 = 1.3;
/// and ends here at the latest.
const SWEEP_STEPS_MAX: u32 = 16;
/// The knee is passed when p99 is so many times that of the best rate,
const KNEE_P99: f64 = 4.0;
/// or when so little of the rate is reached;
const KNEE_REACHED: f64 = 0.97;
/// so many times in a row, because one stall of the machine is no knee.
const KNEE_MISSES: u32 = 2;

/// Measures at one rate, and with `--sweep` at rising ones.
pub fn run(bench: &mut Bench) -> Result<()> {
    let mut variants = Vec::new();
    let mut capacities = Vec::new();
    for (suffix, engine) in bench.engines()? {
        let capacity = match (bench.settings.rate, bench.settings.sweep) {
            (Some(_), false) => 0.0,
            _ => capacity(bench, &suffix, &engine)?,
        };
        let rate = bench.settings.rate.unwrap_or((capacity * SHARE_OF_LOADED).max(1.0));
        variants.push(variant(bench, format!("open{suffix}"), engine.clone(), rate));
        capacities.push((suffix, engine, capacity));
    }
    let mut measured = measure(bench, variants)?;
    let mut steps = Vec::new();
    if bench.settings.sweep {
        for (one, (suffix, engine, capacity)) in measured.iter_mut().zip(capacities) {
            let (knee, more) = sweep(bench, &suffix, &engine, capacity)?;
            one.run.extra.insert("knee_records_per_second".to_owned(), knee);
            steps.extend(more);
        }
    }
    measured.extend(steps);
    bench.keep_all(measured);
    Ok(())
}

fn variant<'a>(bench: &Bench, name: String, engine: Engine, rate: f64) -> Variant<'a> {
    let load = Load {
        engine: engine.clone(),
        rate,
        streams: bench.settings.clients,
        seed: bench.settings.seed,
        record_bytes: bench.settings.record_bytes,
        receipts: bench.receipts.clone(),
        led: None,
    };
    Variant {
        run: load.run(name, format!("{rate:.0} records/s, whatever happens")),
        engine: Some(engine),
        node: None,
        yardstick: Yardstick::Slice,
        work: Box::new(move |part| load.work(part)),
    }
}

/// Records per second that many clients reach.
fn capacity(bench: &mut Bench, suffix: &str, engine: &Engine) -> Result<f64> {
    if let Some(run) = bench.result(&format!("loaded{suffix}")) {
        return Ok(run.records_per_second);
    }
    let clients = Clients {
        engine: engine.clone(),
        count: bench.settings.clients,
        seed: bench.settings.seed,
        record_bytes: bench.settings.record_bytes,
        receipts: bench.receipts.clone(),
        led: None,
    };
    saturated(bench, clients, None)
}

/// Records per second that these clients reach.
pub fn saturated(bench: &mut Bench, clients: Clients, node: Option<Arc<Node>>) -> Result<f64> {
    let variant = Variant {
        run: Run { name: "finding a rate".to_owned(), ..Run::default() },
        engine: Some(clients.engine.clone()),
        node,
        yardstick: Yardstick::Slice,
        work: Box::new(move |part| clients.work(part).map(|()| Tally::default())),
    };
    let measured = measure_parts(bench, vec![variant], 1, CALIBRATION)?;
    Ok(measured.first().map_or(0.0, |one| one.run.records_per_second))
}

/// Walks up to the knee; returns the highest rate that was kept, and the steps.
fn sweep(
    bench: &mut Bench,
    suffix: &str,
    engine: &Engine,
    capacity: f64,
) -> Result<(f64, Vec<Measured>)> {
    let length = (bench.settings.duration / 4).max(Duration::from_millis(300));
    let mut rate = (capacity * SWEEP_FIRST).max(1.0);
    let (mut knee, mut best_p99, mut misses) = (0.0, u64::MAX, 0);
    let mut steps = Vec::new();
    for _ in 0..SWEEP_STEPS_MAX {
        let name = format!("open-{rate:.0}{suffix}");
        let variant = variant(bench, name, engine.clone(), rate);
        let Some(step) = measure_parts(bench, vec![variant], 1, length)?.pop() else { break };
        let p99_ns = step.run.response.p99_ns;
        let reached = step.run.records_per_second;
        let interrupted = step.run.interrupted;
        if step.run.records > 0 {
            steps.push(step);
        }
        best_p99 = best_p99.min(p99_ns.max(1));
        let kept = reached >= rate * KNEE_REACHED && p99_ns as f64 <= best_p99 as f64 * KNEE_P99;
        if kept {
            knee = rate;
            misses = 0;
        } else {
            misses += 1;
        }
        if misses == KNEE_MISSES || interrupted {
            break;
        }
        rate *= SWEEP_STEP;
    }
    Ok((knee, steps))
}

/// A load at a fixed rate.
pub struct Load {
    /// Where it goes.
    pub engine: Engine,
    /// Records per second.
    pub rate: f64,
    /// Streams that get them in turn.
    pub streams: usize,
    /// Seed of their bytes.
    pub seed: u64,
    /// Payload of each.
    pub record_bytes: usize,
    /// Where receipts are noted.
    pub receipts: Option<Arc<ReceiptFile>>,
    /// It is appended through this, with `Ack::Local`.
    pub led: Option<Leadership>,
}

/// What tells that a record is durable here.
enum Token {
    Own(Append),
    Led(Pending<Append>),
}

impl Token {
    fn wait(self) -> Result<Receipt> {
        const WAITING: &str = "waiting for a receipt";
        match self {
            Token::Own(append) => append.wait().context(WAITING),
            Token::Led(append) => Ok(append.wait().context(WAITING)?.receipt),
        }
    }
}

/// An append on its way from the sending to the receiving thread.
struct InFlight {
    append: Token,
    intended: Instant,
    start: Instant,
    stream: usize,
    crc: Option<u32>,
}

impl Load {
    /// The run of this load, before it is made.
    pub fn run(&self, name: String, description: String) -> Run {
        Run {
            name,
            description,
            clients: self.streams as u64,
            in_flight: IN_FLIGHT_MAX as u64,
            rate: Some(self.rate),
            record_bytes: self.record_bytes as u64,
            ..Run::default()
        }
    }

    /// One part of it.
    pub fn work(&self, part: &Part<'_>) -> Result<Tally> {
        part.begin();
        let (sender, receiver) = sync_channel(IN_FLIGHT_MAX);
        let (receiving, sending) = (self.writers(), self.writers());
        thread::scope(|scope| {
            let receiver = scope.spawn(move || self.receive(part, receiver, receiving));
            let sent = self.send(part, &sender, sending);
            drop(sender);
            let service = joined(receiver)?;
            let lag_ns = sent?;
            let extra = vec![("generator_lag_p99_ns", lag_ns as f64)];
            Ok(Tally { service: Some(service), extra, ..Tally::default() })
        })
    }

    fn writers(&self) -> Vec<Writer> {
        (0..self.streams)
            .map(|stream| {
                let receipts = self.receipts.clone();
                Writer::new(&self.engine, stream, self.seed, self.record_bytes, receipts)
            })
            .collect()
    }

    /// Appends on time; returns by how much the 99th percentile was late.
    fn send(
        &self,
        part: &Part<'_>,
        sender: &SyncSender<InFlight>,
        mut writers: Vec<Writer>,
    ) -> Result<u64> {
        // Sleeps end when they should, not up to 50 µs later.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        let begin = Instant::now();
        let mut lag = histogram();
        for index in 0_u64.. {
            let intended = begin + Duration::from_secs_f64(index as f64 / self.rate);
            let mut now = Instant::now();
            while now < intended && !part.is_over(now) {
                // A low rate has long gaps, in which the end may come.
                thread::sleep((intended - now).min(Duration::from_millis(50)));
                now = Instant::now();
            }
            if part.is_over(now) {
                break;
            }
            let stream = (index % self.streams as u64) as usize;
            let crc = writers[stream].make();
            let start = Instant::now();
            let append = match &self.led {
                None => Token::Own(writers[stream].append()?),
                Some(led) => Token::Led(writers[stream].append_led(led, Ack::Local)?),
            };
            record(&mut lag, start - intended);
            let in_flight = InFlight { append, intended, start, stream, crc };
            // The receiver only goes when it has met an error, which it will report.
            if sender.send(in_flight).is_err() {
                break;
            }
        }
        Ok(lag.value_at_quantile(0.99))
    }

    /// Takes the receipts in the order of the appends; with several shards one may wait behind
    /// an earlier one of another shard. Latencies belong to the moment of the intended start.
    fn receive(
        &self,
        part: &Part<'_>,
        receiver: Receiver<InFlight>,
        mut writers: Vec<Writer>,
    ) -> Result<hdrhistogram::Histogram<u64>> {
        let window = part.begin();
        let mut recorder = part.recorder(0, 1);
        let mut service = histogram();
        for one in receiver {
            let receipt = one.append.wait()?;
            let now = Instant::now();
            recorder.record(one.intended, now - one.intended);
            if one.intended >= window.from && one.intended < window.until {
                record(&mut service, now - one.start);
            }
            writers[one.stream].received(receipt, one.crc)?;
            writers[one.stream].note()?;
        }
        Ok(service)
    }
}
