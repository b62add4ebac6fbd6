//! `ringwal tail`: the newest records of one stream, and, with `-f`, those that come.
//!
//! Another process writes them, so there is no event to wait for: the files are looked at every
//! [`POLL`]. What is new in the open segment is read and nothing else, so waiting costs little.

use std::io;
use std::time::Duration;

use anyhow::Result;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::TailArgs;
use super::lines::Lines;
use super::stream_reader::StreamReader;
use crate::exit::Exit;

/// Time between two looks; a record shows at most this much later than it was written.
const POLL: Duration = Duration::from_millis(200);
/// Records shown before the end when no offset is named.
const RECORDS_BEFORE_END: u64 = 10;

/// Runs the subcommand.
pub fn run(args: &TailArgs) -> Result<Exit> {
    let mut reader = StreamReader::open(&args.directory, args.stream, |summary| {
        let newest = summary.map_or(0, |summary| {
            summary.end.saturating_sub(RECORDS_BEFORE_END).max(summary.trimmed)
        });
        args.from.unwrap_or(newest)
    })?;
    if !args.follow {
        reader.check_exists()?;
    }
    let mut lines = Lines::new(args.json);
    loop {
        reader.read(|record| {
            lines.push(args.stream, record.offset(), record.epoch(), record.payload())?;
            Ok(true)
        })?;
        lines.flush()?;
        if !args.follow {
            reader.finish()?;
            return Ok(Exit::Success);
        }
        while !reader.refresh()? {
            if reader_has_gone(POLL)? {
                return Ok(Exit::Success);
            }
        }
    }
}

/// Waits, and says whether nobody reads standard output any more.
fn reader_has_gone(time: Duration) -> io::Result<bool> {
    let stdout = io::stdout();
    let mut outputs = [PollFd::new(&stdout, PollFlags::empty())];
    let time = Timespec { tv_sec: 0, tv_nsec: i64::from(time.subsec_nanos()) };
    match poll(&mut outputs, Some(&time)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(outputs[0].revents().intersects(PollFlags::ERR | PollFlags::NVAL))
}
