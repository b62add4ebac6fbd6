//! The offline tools: `inspect`, `verify`, `dump`, `tail` and `repair`. They print; what they
//! print is found by `ringwal_engine::offline`, and with `repair --from` by
//! `ringwal_replication::repair`. Only `repair` opens anything for writing.

mod args;
mod dump;
mod inspect;
mod lines;
mod orphans;
mod repair;
mod repair_from;
mod stream_reader;
mod tail;
mod verify;

pub use args::{DumpArgs, InspectArgs, RepairArgs, TailArgs, VerifyArgs};
pub use dump::run as dump;
pub use inspect::run as inspect;
pub use repair::run as repair;
pub use tail::run as tail;
pub use verify::run as verify;

use anyhow::{Context as _, Result};
use bytesize::ByteSize;
use ringwal_engine::offline::StreamRange;
use serde_json::{Value, json};

use crate::exit;

/// Prints a JSON value as the last thing.
fn print_json(value: &Value) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).context("the findings")?;
    text.push('\n');
    exit::print_last(&text)
}

fn range_json(range: &StreamRange) -> Value {
    json!({
        "stream": range.stream.get(),
        "epoch": range.epoch,
        "from": range.offsets.start,
        "until": range.offsets.end,
    })
}

/// Bytes as people read them.
fn size(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `one segment`, `2 segments`.
fn count(number: u64, what: &str, plural: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {plural}") }
}
