//! The role of `faults`: an engine that does what it is told, line by line, and answers each line
//! with all that can be seen of it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ringwal_engine::{
    Append, AppendError, CloseError, CommitError, Engine, PoisonCause, StreamId, TrimError,
};
use serde::{Deserialize, Serialize};

use super::load::segment_extents;
use super::payload::payload;
use super::role::{Setup, Voice};

/// The one stream that is written.
pub const STREAM: u64 = 10;
/// How long one append may wait for room.
const ROOM_LIMIT: Duration = Duration::from_millis(300);

/// What the parent says.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Order {
    /// Append so many records; fewer when one is refused.
    Append(u64),
    /// Wait until every record has its outcome, at most so many milliseconds.
    Wait(u64),
    /// Wait until segments are prepared and nothing is under way.
    Settle,
    /// Read every durable record.
    Read,
    /// Trim all but so many.
    Trim(u64),
    /// Make the file system notice an error, upon which it becomes read-only.
    BreakFileSystem,
    /// Close the engine.
    Close,
    /// End without closing.
    Exit,
}

/// What can be seen of the engine.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sight {
    /// Why it did not open.
    pub open_error: Option<String>,
    /// Records submitted, in all.
    pub submitted: u64,
    /// Records whose receipts have come, from the first on.
    pub acknowledged: u64,
    /// Receipts behind a record that has none.
    pub receipts_out_of_order: u64,
    /// Outcome unknown.
    pub unknown: u64,
    /// Not written.
    pub not_written: u64,
    /// No outcome yet.
    pub pending: u64,
    /// The first refusal of the last append, by its variant.
    pub refusal: Option<String>,
    /// Its message.
    pub refusal_message: Option<String>,
    /// Stage and errno of the poisoning.
    pub poison: Option<(String, Option<i32>)>,
    /// Why no segment can be prepared.
    pub no_space: Option<String>,
    /// Bytes that wait in the queue.
    pub queued_bytes: u64,
    /// Trimmed and durable end.
    pub bounds: (u64, u64),
    /// What went wrong with this order.
    pub error: Option<String>,
}

struct Obedient<'a> {
    setup: &'a Setup,
    engine: Option<Engine>,
    tokens: Vec<Append>,
    sight: Sight,
}

/// Plays it.
pub fn run(setup: &Setup, voice: &Voice) -> Result<()> {
    let mut obedient =
        Obedient { setup, engine: None, tokens: Vec::new(), sight: Sight::default() };
    match setup.options().open(setup.directory()) {
        Ok(engine) => obedient.engine = Some(engine),
        Err(error) => obedient.sight.open_error = Some(error.to_string()),
    }
    loop {
        if setup.tells_extents {
            for extent in segment_extents(&setup.directory()) {
                voice.say(&format!("E {} {}", extent.start, extent.end - extent.start));
            }
        }
        obedient.look();
        voice.say(&format!("= {}", serde_json::to_string(&obedient.sight)?));
        let Some(line) = voice.hear() else { return Ok(()) };
        let order = serde_json::from_str(&line).with_context(|| line.clone())?;
        obedient.sight.error = None;
        match order {
            Order::Exit => std::process::exit(0),
            order => obedient.obey(order),
        }
    }
}

impl Obedient<'_> {
    fn obey(&mut self, order: Order) {
        let Some(engine) = self.engine.clone() else {
            self.sight.error = Some("there is no engine".into());
            return;
        };
        let outcome = match order {
            Order::Append(count) => {
                self.append(&engine, count);
                Ok(())
            }
            Order::Wait(limit) => {
                let deadline = Instant::now() + Duration::from_millis(limit);
                while Instant::now() < deadline
                    && self.tokens.iter().any(|token| token.try_receipt().is_none())
                {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Ok(())
            }
            Order::Settle => settle(&engine, self.setup),
            Order::Read => self.read(&engine),
            Order::Trim(left) => {
                let stream = engine.stream(StreamId::new(STREAM));
                stream.trim(stream.end() - left).map_err(|error| {
                    if let TrimError::Append(AppendError::Poisoned(poisoned)) = &error {
                        self.note_poison(poisoned.cause());
                    }
                    error.to_string()
                })
            }
            Order::BreakFileSystem => break_file_system(self.setup),
            Order::Close => {
                self.look();
                self.engine = None;
                engine.close().map(|_| ()).map_err(|error| {
                    if let CloseError::Poisoned(poisoned) = &error {
                        self.note_poison(poisoned.cause());
                    }
                    error.to_string()
                })
            }
            Order::Exit => Ok(()),
        };
        self.sight.error = outcome.err();
    }

    fn append(&mut self, engine: &Engine, count: u64) {
        let stream = engine.stream(StreamId::new(STREAM));
        (self.sight.refusal, self.sight.refusal_message) = (None, None);
        for _ in 0..count {
            let offset = self.tokens.len() as u64;
            let record = payload(self.setup.seed, self.setup.life, STREAM, offset);
            let deadline = Instant::now() + ROOM_LIMIT;
            let error = loop {
                match stream.try_append(&record) {
                    Ok(token) => {
                        self.tokens.push(token);
                        break None;
                    }
                    Err(AppendError::Full { .. }) if Instant::now() < deadline => {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    Err(error) => break Some(error),
                }
            };
            if let Some(error) = error {
                if let AppendError::Poisoned(poisoned) = &error {
                    self.note_poison(poisoned.cause());
                }
                let shown = format!("{error:?}");
                let variant = shown.split([' ', '(', '{']).next().unwrap_or_default();
                self.sight.refusal = Some(variant.to_owned());
                self.sight.refusal_message = Some(error.to_string());
                return;
            }
        }
    }

    fn read(&self, engine: &Engine) -> Result<(), String> {
        let stream = engine.stream(StreamId::new(STREAM));
        let (mut next, end) = (stream.trimmed(), stream.end());
        for record in stream.read(next..end).map_err(|error| error.to_string())? {
            let record = record.map_err(|error| error.to_string())?;
            let expected = payload(self.setup.seed, self.setup.life, STREAM, next);
            if record.offset() != next || *record.payload() != *expected {
                return Err(format!("offset {next} is not what was appended"));
            }
            next += 1;
        }
        if next < end { Err(format!("records up to {next} of {end}")) } else { Ok(()) }
    }

    fn note_poison(&mut self, cause: &PoisonCause) {
        self.sight.poison = Some((cause.stage.to_owned(), cause.errno));
    }

    fn look(&mut self) {
        let sight = &mut self.sight;
        sight.submitted = self.tokens.len() as u64;
        (sight.acknowledged, sight.receipts_out_of_order) = (0, 0);
        (sight.unknown, sight.not_written, sight.pending) = (0, 0, 0);
        let mut cause = None;
        for (offset, token) in (0..).zip(&self.tokens) {
            match token.try_receipt() {
                Some(Ok(receipt)) if offset == sight.acknowledged && receipt.offset() == offset => {
                    sight.acknowledged += 1;
                }
                Some(Ok(_)) => sight.receipts_out_of_order += 1,
                Some(Err(CommitError::Unknown(poisoned))) => {
                    sight.unknown += 1;
                    cause = Some(poisoned);
                }
                Some(Err(_)) => sight.not_written += 1,
                None => sight.pending += 1,
            }
        }
        if let Some(engine) = &self.engine {
            let stream = engine.stream(StreamId::new(STREAM));
            sight.bounds = (stream.trimmed(), stream.end());
            let stats = &engine.stats().shards[0];
            sight.no_space = stats.no_space.clone();
            sight.queued_bytes = stats.queue_bytes;
        }
        if let Some(cause) = cause {
            self.note_poison(cause.cause());
        }
    }
}

/// The reserve and the segment ahead are there, nothing has been written for a while, and the file
/// system has nothing of its own to write.
fn settle(engine: &Engine, setup: &Setup) -> Result<(), String> {
    for _ in 0..1000 {
        let stats = &engine.stats().shards[0];
        if stats.segments.prepared >= 3 {
            std::thread::sleep(Duration::from_millis(30));
            let directory = std::fs::File::open(&setup.place).map_err(|error| error.to_string())?;
            return rustix::fs::syncfs(&directory).map_err(|error| error.to_string());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Err("segments are not prepared within 5 s".into())
}

fn break_file_system(setup: &Setup) -> Result<(), String> {
    let device = setup.device_name().map_err(|error| error.to_string())?;
    let path = format!("/sys/fs/ext4/{device}/trigger_fs_error");
    std::fs::write(&path, "ringwal-crash").map_err(|error| format!("{path}: {error}"))
}
