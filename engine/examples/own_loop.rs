//! A shard in the caller's own loop: no thread, no hop. Run it on any directory:
//! `cargo run --release -p ringwal-engine --example own_loop -- DIRECTORY`

use std::collections::VecDeque;

use ringwal_engine::{AppendError, Engine, StreamId};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = std::env::args().nth(1).unwrap_or_else(|| "ringwal-data-own-loop".into());
    let mut shard = Engine::options().open_shard(&directory)?;
    let stream = StreamId::new(7);
    let mut tokens = VecDeque::new();
    let mut receipts = 0;
    for number in 0..10_000u32 {
        // Full is back-pressure: turn the loop until receipts make room.
        loop {
            match shard.append(stream, number.to_le_bytes()) {
                Ok(token) => break tokens.push_back(token),
                Err(AppendError::Full { .. }) => drop(shard.run_once(None)?),
                Err(error) => return Err(error.into()),
            }
        }
        if tokens.len() >= 1_000 {
            shard.run_once(None)?;
        }
        while let Some(receipt) = tokens.front().and_then(|token| token.try_receipt()) {
            receipt?;
            tokens.pop_front();
            receipts += 1;
        }
    }
    while let Some(token) = tokens.pop_front() {
        while token.try_receipt().is_none() {
            shard.run_once(None)?;
        }
        receipts += 1;
    }
    let stats = shard.close()?;
    println!("{receipts} receipts, {} records in {} batches", stats.records, stats.batches);
    Ok(())
}
