//! The yardstick: bare durable writes by plain system calls on a pre-written file, in slices
//! spread over the whole measurement, because one probe before a run is no reference.

mod buffer;

use std::fs::File;
use std::io::{self, IoSlice};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hdrhistogram::Histogram;
use rustix::io::{Errno, ReadWriteFlags};

pub use buffer::AlignedBuffer;

use crate::environment::scratch_file;
use crate::interrupt::Interrupt;
use crate::report::{ProbeSliceHistogram, probe_of};

/// What one write of the yardstick holds.
const BLOCK_BYTES: usize = 4096;
/// What one write of the sequential writer holds.
const SEQUENTIAL_BLOCK_BYTES: usize = 1 << 20;
/// Writes at the start of a slice that do not count.
const WARM_UP_WRITES: usize = 8;

/// A histogram of nanoseconds: three digits, nothing finer than 64 ns, so that one per client
/// and interval stays small; it grows as it must.
pub fn histogram() -> Histogram<u64> {
    let mut histogram = Histogram::new_with_bounds(64, 128, 3).expect("the bounds are valid");
    histogram.auto(true);
    histogram
}

/// Records a time in a histogram that grows: `saturating_record` would cut it to what fits now.
pub fn record(histogram: &mut Histogram<u64>, time: Duration) {
    histogram.record(time.as_nanos() as u64).expect("a growing histogram takes every value");
}

/// How a bare write is made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// pwritev2(2) with RWF_DSYNC.
    Dsync,
    /// pwritev2(2), then fdatasync(2).
    Fdatasync,
}

impl Method {
    fn name(self) -> &'static str {
        match self {
            Method::Dsync => "dsync",
            Method::Fdatasync => "fdatasync",
        }
    }

    fn write(self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        match self {
            Method::Dsync => write_at(file, bytes, offset, true),
            Method::Fdatasync => {
                write_at(file, bytes, offset, false)?;
                Ok(rustix::fs::fdatasync(file)?)
            }
        }
    }
}

/// Bare writes of one size.
#[derive(Debug)]
pub struct Bare {
    /// Latency of each.
    pub latency: Histogram<u64>,
    /// How long they took together.
    pub duration: Duration,
}

impl Bare {
    /// Writes per second, one at a time, back to back.
    pub fn per_second(&self) -> f64 {
        self.latency.len() as f64 / self.duration.as_secs_f64().max(1e-9)
    }
}

/// A pre-written file without a name, and what was measured on it so far.
#[derive(Debug)]
pub struct DeviceProbe {
    file: File,
    methods: Vec<Method>,
    bytes: u64,
    position: u64,
    buffer: AlignedBuffer,
    started: Instant,
    slices: Vec<ProbeSliceHistogram>,
    sequential: Vec<f64>,
}

impl DeviceProbe {
    /// Writes a file of `bytes` in `directory`; times in slices count from `started`.
    pub fn prepare(directory: &Path, bytes: u64, started: Instant) -> io::Result<DeviceProbe> {
        let file = scratch_file(directory, true).or_else(|_| scratch_file(directory, false))?;
        let buffer =
            AlignedBuffer::filled(SEQUENTIAL_BLOCK_BYTES, started.elapsed().as_nanos() as u64);
        for offset in (0..bytes).step_by(SEQUENTIAL_BLOCK_BYTES) {
            write_at(&file, buffer.bytes(), offset, false)?;
        }
        rustix::fs::fsync(&file)?;
        let mut methods = vec![Method::Dsync, Method::Fdatasync];
        methods.retain(|method| {
            !matches!(
                method.write(&file, &buffer.bytes()[..BLOCK_BYTES], 0),
                Err(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error())
            )
        });
        Ok(DeviceProbe {
            file,
            methods,
            bytes,
            position: 0,
            buffer,
            started,
            slices: Vec::new(),
            sequential: Vec::new(),
        })
    }

    /// One slice of each method; whoever comes first changes from time to time.
    pub fn slice(&mut self, duration: Duration, interrupt: &Interrupt) -> Result<()> {
        let share = duration / self.methods.len().max(1) as u32;
        for index in 0..self.methods.len() {
            let method = self.methods[index];
            let start_ns = self.started.elapsed().as_nanos() as u64;
            let bare = self.bare_by(method, BLOCK_BYTES, share, interrupt)?;
            self.slices.push(ProbeSliceHistogram {
                method: method.name().to_owned(),
                start_ns,
                duration_ns: bare.duration.as_nanos() as u64,
                latency: bare.latency,
            });
        }
        self.methods.reverse();
        Ok(())
    }

    /// Bare writes of `bytes` each by the method that is better so far.
    pub fn bare(
        &mut self,
        bytes: usize,
        duration: Duration,
        interrupt: &Interrupt,
    ) -> Result<Bare> {
        let method = self.better_method();
        self.bare_by(method, bytes, duration, interrupt)
    }

    fn bare_by(
        &mut self,
        method: Method,
        bytes: usize,
        duration: Duration,
        interrupt: &Interrupt,
    ) -> Result<Bare> {
        assert!(bytes <= SEQUENTIAL_BLOCK_BYTES, "a bare write comes from one buffer");
        let mut latency = histogram();
        for _ in 0..WARM_UP_WRITES {
            self.write_next(method, bytes)?;
        }
        let start = Instant::now();
        let mut before = start;
        while before - start < duration && !interrupt.is_asked() {
            self.write_next(method, bytes)?;
            let after = Instant::now();
            record(&mut latency, after - before);
            before = after;
        }
        Ok(Bare { latency, duration: before - start })
    }

    fn write_next(&mut self, method: Method, bytes: usize) -> Result<()> {
        if self.position + bytes as u64 > self.bytes {
            self.position = 0;
        }
        // Another piece of the buffer each time, so that no block is written with what it holds.
        let room = self.buffer.bytes().len() - bytes;
        let from = (self.position as usize / BLOCK_BYTES * 7 * BLOCK_BYTES) % (room + BLOCK_BYTES);
        let from = from.min(room);
        method
            .write(&self.file, &self.buffer.bytes()[from..from + bytes], self.position)
            .context("a bare write of the probe")?;
        self.position += bytes as u64;
        Ok(())
    }

    fn better_method(&self) -> Method {
        let (probe, _) = probe_of(&self.slices, 0);
        let named = self.methods.iter().find(|method| method.name() == probe.method);
        named.or(self.methods.first()).copied().unwrap_or(Method::Fdatasync)
    }

    /// Writes 1 MiB blocks one behind the other, round and round the file, for `duration`, then
    /// flushes once; returns bytes per second.
    pub fn sequential(&mut self, duration: Duration, interrupt: &Interrupt) -> Result<f64> {
        let start = Instant::now();
        let mut written = 0;
        while (start.elapsed() < duration && !interrupt.is_asked()) || written == 0 {
            write_at(&self.file, self.buffer.bytes(), written % self.bytes, false)
                .context("a sequential write of the probe")?;
            written += SEQUENTIAL_BLOCK_BYTES as u64;
        }
        rustix::fs::fdatasync(&self.file).context("flushing the probe's file")?;
        let rate = written as f64 / start.elapsed().as_secs_f64().max(1e-9);
        self.sequential.push(rate);
        Ok(rate)
    }

    /// Median of one write of the better method in slices since `from_slice`.
    pub fn median_ns_since(&self, from_slice: usize) -> u64 {
        probe_of(&self.slices[from_slice.min(self.slices.len())..], 0).0.p50_ns
    }

    /// Slices so far.
    pub fn slice_count(&self) -> usize {
        self.slices.len()
    }

    /// All of it as `report.json` holds it, and the yardstick's latencies.
    pub fn finish(&self) -> (crate::report::model::Probe, Histogram<u64>) {
        let (mut probe, latency) = probe_of(&self.slices, median(&self.sequential) as u64);
        // One slice on a device that still works off what a run has left would weigh more in a
        // mean than all the others, and make the engine look better than it is.
        let slices = probe.slices.iter().filter(|slice| slice.method == probe.method);
        let rates: Vec<f64> = slices.map(|slice| slice.operations_per_second).collect();
        probe.operations_per_second = median(&rates);
        (probe, latency)
    }
}

/// The middle value; 0 when there is none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

/// One pwritev2(2), whole or an error, with RWF_DSYNC when `dsync`.
pub fn write_at(file: &File, bytes: &[u8], offset: u64, dsync: bool) -> io::Result<()> {
    let flags = if dsync { ReadWriteFlags::DSYNC } else { ReadWriteFlags::empty() };
    let written = rustix::io::retry_on_intr(|| {
        rustix::io::pwritev2(file, &[IoSlice::new(bytes)], offset, flags)
    })?;
    if written != bytes.len() {
        let message = format!("short write: {written} of {} bytes", bytes.len());
        return Err(io::Error::new(io::ErrorKind::WriteZero, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_methods_are_sliced_and_the_file_has_no_name() {
        let directory = tempfile::tempdir().unwrap();
        let mut probe = DeviceProbe::prepare(directory.path(), 4 << 20, Instant::now()).unwrap();
        let interrupt = Interrupt::default();
        probe.slice(Duration::from_millis(20), &interrupt).unwrap();
        probe.slice(Duration::from_millis(20), &interrupt).unwrap();
        assert!(probe.sequential(Duration::from_millis(5), &interrupt).unwrap() > 0.0);
        let bare = probe.bare(131_072, Duration::from_millis(10), &interrupt).unwrap();
        assert!(bare.per_second() > 0.0);
        let (model, latency) = probe.finish();
        assert_eq!(model.slices.len(), 4);
        assert_eq!(model.operations, latency.len());
        assert!(model.p50_ns > 0 && model.sequential_bytes_per_second > 0);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[]), 0.0);
    }
}
