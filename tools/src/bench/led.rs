//! A leader in this process whose followers are processes of their own, in a directory of one run.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use ringwal_engine::{Append, StreamId};
use ringwal_replication::stats::FollowerStats;
use ringwal_replication::{Ack, Leadership, Node, Pending};

use super::data::SideDirectory;
use super::replicated::{cannot_lead, milliseconds_since_1970};
use super::{Bench, peer, wait_until_prepared};
use crate::interrupt::Interrupt;
use crate::nodes;
use crate::payload::Records;

/// How long followers may take to connect, and to get what they lack.
const PATIENCE: Duration = Duration::from_secs(300);
/// Between two looks at them.
const LOOK: Duration = Duration::from_millis(20);
/// Appends in flight while records are written that a follower is to lack.
const IN_FLIGHT: u64 = 2048;

/// A node that leads. Its directory goes with it.
pub struct Led {
    /// The node.
    pub node: Arc<Node>,
    /// Its right to append.
    pub leadership: Leadership,
    directory: SideDirectory,
}

impl Led {
    /// Opens an engine, and leads with it followers at these addresses.
    pub fn start(
        bench: &Bench,
        name: &str,
        segment_bytes: u64,
        followers: &[String],
    ) -> Result<Led> {
        let directory = bench.data.side(name);
        let io = bench.settings.io[0];
        let engine = bench.open_at(io, directory.path(), Some(segment_bytes))?;
        wait_until_prepared(&engine);
        let node = nodes::start(engine, peer::leader(followers))?;
        let leadership = node.lead(milliseconds_since_1970()).map_err(cannot_lead)?;
        Ok(Led { node: Arc::new(node), leadership, directory })
    }

    /// Where its engine is.
    pub fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// Appends `count` records to `streams` from `first` on, in turn; `together` are in flight, or as
    /// many as the engine takes. Stops when interrupted.
    pub fn write(
        &self,
        bench: &Bench,
        first: u64,
        streams: u64,
        record_bytes: usize,
        count: u64,
        together: Option<u64>,
    ) -> Result<()> {
        let together = together.unwrap_or(IN_FLIGHT);
        let seed = bench.settings.seed;
        let mut records: Vec<Records> = (first..first + streams)
            .map(|stream| Records::new(seed, stream, record_bytes, 1))
            .collect();
        let mut last: Option<Pending<Append>> = None;
        for index in 0..count {
            if index % together == 0 {
                wait(last.take())?;
                if bench.interrupt.is_asked() {
                    return Ok(());
                }
                bench.progress.show("writing what a follower will lack");
            }
            let (stream, offset) = (index % streams, index / streams);
            let record = records[stream as usize].make(offset);
            let append = self.leadership.append(StreamId::new(first + stream), record, Ack::Local);
            last = Some(append.context("writing what a follower will lack")?);
        }
        wait(last)
    }

    /// Ends it: followers first, so that nobody dials them any more.
    pub fn close(self) -> Result<()> {
        let Led { node, leadership, directory } = self;
        drop(leadership);
        let node = Arc::into_inner(node).context("the leader is still in use")?;
        let engine = node.engine().clone();
        node.close();
        engine.close().context("closing the engine of a leader")?;
        directory.clear()
    }
}

fn wait(append: Option<Pending<Append>>) -> Result<()> {
    match append {
        Some(append) => append.wait().map(drop).context("writing what a follower will lack"),
        None => Ok(()),
    }
}

/// Waits until all followers of a leader are as they should be; `false` when interrupted before.
pub fn wait_until(
    node: &Node,
    interrupt: &Interrupt,
    is_right: impl Fn(&FollowerStats) -> bool,
) -> Result<bool> {
    let start = Instant::now();
    loop {
        let stats = node.stats();
        // The first pictures are from before it led.
        if !stats.followers.is_empty() && stats.followers.iter().all(&is_right) {
            return Ok(true);
        }
        if interrupt.is_asked() {
            return Ok(false);
        }
        if start.elapsed() > PATIENCE {
            bail!("followers are not in step after {PATIENCE:?}: {:?}", stats.followers);
        }
        thread::sleep(LOOK);
    }
}

/// It has all that its leader has sealed.
pub fn is_in_step(follower: &FollowerStats) -> bool {
    follower.is_connected && follower.lag_records == 0 && follower.streams_behind == 0
}
