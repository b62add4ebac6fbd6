//! mrecordlog: several queues in one log, each held in memory; one writer at a time.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, anyhow};
use mrecordlog::error::MissingQueue;
use mrecordlog::{MultiRecordLog, SyncPolicy};
use tokio::runtime::Runtime;

use crate::checker::Checker;
use crate::engine::{Contender, Kind, Opened, Shared, Writer};

const QUEUE: &str = "records";

/// mrecordlog.
pub fn contender() -> Contender {
    Contender {
        name: "mrecordlog",
        how: "mrecordlog 0.4: its SyncPolicy::OnAppend does not flush, so the adapter adds an fdatasync; one queue, a mutex",
        kind: Kind::Peer,
        is_looped: false,
        open: |directory, _| Ok(Opened::Threads(Box::new(open(directory)?))),
        replay: Some(replay),
    }
}

struct Queue {
    /// Its files are those of tokio.
    runtime: Runtime,
    log: Mutex<Log>,
    directory: PathBuf,
}

struct Log {
    records: MultiRecordLog,
    /// The newest file, and how large all were when it was.
    newest: Option<(usize, File)>,
    /// Position of the last record.
    last: Option<u64>,
}

fn open(directory: &Path) -> Result<Queue> {
    let runtime = runtime()?;
    let mut records = runtime.block_on(open_log(directory))?;
    runtime.block_on(records.create_queue(QUEUE))?;
    let log = Mutex::new(Log { records, newest: None, last: None });
    Ok(Queue { runtime, log, directory: directory.to_path_buf() })
}

fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(1).build()?)
}

async fn open_log(directory: &Path) -> Result<MultiRecordLog> {
    Ok(MultiRecordLog::open_with_prefs(directory, SyncPolicy::OnAppend).await?)
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    /// Flushes the file that is written to. It is the newest one, which changes when their sizes do.
    fn flush(&mut self, directory: &Path) -> Result<()> {
        let bytes = self.records.on_disk_size();
        let newest = match &self.newest {
            Some((then, file)) if *then == bytes => file,
            _ => {
                // What was written before it changed is in the one before.
                if let Some((_, previous)) = self.newest.take() {
                    previous.sync_data()?;
                }
                File::open(directory)?.sync_all()?;
                let names = std::fs::read_dir(directory)?.flatten().map(|entry| entry.path());
                let is_log = |path: &PathBuf| {
                    path.file_name()
                        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"wal-"))
                };
                let newest = names.filter(is_log).max().context("it has no file")?;
                &self.newest.insert((bytes, File::open(newest)?)).1
            }
        };
        Ok(newest.sync_data()?)
    }
}

impl Shared for Queue {
    fn writer(&self, _: usize) -> Result<Box<dyn Writer + Send + '_>> {
        Ok(Box::new(self))
    }

    fn tidy(&self) -> Result<()> {
        let mut log = self.lock();
        if let Some(last) = log.last {
            self.runtime.block_on(log.records.truncate(QUEUE, last))?;
            // It may have gone on in another file, and removed as many.
            if let Some((bytes, _)) = &mut log.newest {
                *bytes = 0;
            }
        }
        Ok(())
    }
}

impl Writer for &Queue {
    fn append(&mut self, record: &[u8]) -> Result<()> {
        self.append_batch(&[record])
    }

    fn append_batch(&mut self, records: &[&[u8]]) -> Result<()> {
        let mut log = self.lock();
        let records = records.iter().copied();
        log.last = self.runtime.block_on(log.records.append_records(QUEUE, None, records))?;
        log.flush(&self.directory)
    }
}

fn replay(directory: &Path, mut checker: Checker) -> Result<Checker> {
    let log = runtime()?.block_on(open_log(directory))?;
    for (_, record) in log.range(QUEUE, ..).map_err(missing)? {
        checker.check(&record)?;
    }
    Ok(checker)
}

fn missing(error: MissingQueue) -> anyhow::Error {
    anyhow!("the queue `{}` is missing", error.0)
}
