//! What an engine says of all its shards, with shards on simulated disks.

use super::*;
use crate::disk::Wait;
use crate::disk::sim::{Kind, SimDisk, SimHandle};
use crate::format::EngineHeader;
use crate::opening::{Driven, Opened, open_shard};
use crate::shard::ShardLoop;

const SEGMENT_BYTES: u64 = 256 << 10;

/// An engine without threads, and the loops of its shards.
fn engine(disks: &[SimHandle]) -> (Engine, Vec<ShardLoop>) {
    let path = Path::new("simulated");
    let header = EngineHeader::new([4; 16], disks.len() as u32, SEGMENT_BYTES);
    let directory = Arc::new(Directory::held(path, None, &header));
    let options = Options::new().batch_bytes_max(16 << 10).idle_seal(None);
    let (mut shards, mut loops) = (Vec::new(), Vec::new());
    for (shard, sim) in (0..).zip(disks) {
        let disk = Box::new(SimDisk::new(sim.clone()));
        let clock = Clock::Manual(sim.clock());
        let opened = open_shard(disk, path, shard, &directory.identity(), &options, clock).unwrap();
        let Opened { shared, driven: Driven::Loop(turning), .. } = opened else {
            panic!("it may write")
        };
        shards.push(shared);
        loops.push(*turning);
    }
    let inner = Inner {
        directory,
        shards,
        reports: Vec::new(),
        threads: Mutex::default(),
        thread_ids: Vec::new(),
    };
    (Engine { inner: Arc::new(inner) }, loops)
}

fn turn(turning: &mut ShardLoop) {
    for _ in 0..20 {
        turning.step(Wait::For(std::time::Duration::from_millis(5)), false);
    }
}

fn stream_of(engine: &Engine, shard: u16) -> Stream {
    let id = (8..).map(StreamId::new).find(|id| id.shard(2) == shard).unwrap();
    engine.stream(id)
}

#[test]
fn the_first_failure_of_any_shard_is_the_engines() {
    let disks = [SimHandle::new(1), SimHandle::new(2)];
    let (engine, mut loops) = engine(&disks);
    loops.iter_mut().for_each(turn);
    assert!(engine.poisoned().is_none());
    for (shard, errno) in [(1, 5), (0, 28)] {
        disks[usize::from(shard)].fail_next(Kind::Write, errno);
        let token = stream_of(&engine, shard).append(b"x").unwrap();
        let other = engine.clone();
        let mut token = std::pin::pin!(token.into_future());
        let waker = Waker::from(Arc::new(AsksWhenWoken(other)));
        assert!(token.as_mut().poll(&mut std::task::Context::from_waker(&waker)).is_pending());
        turn(&mut loops[usize::from(shard)]);
        let told = token.poll(&mut std::task::Context::from_waker(Waker::noop()));
        assert!(matches!(told, Poll::Ready(Err(_))));
        let cause = engine.poisoned().unwrap();
        assert_eq!((cause.cause().shard, cause.cause().errno), (1, Some(5)), "the first stays");
    }
    assert!(engine.stats().shards.iter().all(|shard| shard.poisoned.is_some()));
}

/// Nobody learns of a failure that the engine does not know.
struct AsksWhenWoken(Engine);

impl std::task::Wake for AsksWhenWoken {
    fn wake(self: Arc<Self>) {
        assert!(self.0.poisoned().is_some());
    }
}

#[test]
fn the_length_of_the_journal_is_that_of_all_segments() {
    let disks = [SimHandle::new(1), SimHandle::new(2)];
    let (engine, mut loops) = engine(&disks);
    let mut lengths = Vec::new();
    for round in 0..40 {
        for (shard, turning) in loops.iter_mut().enumerate() {
            // The shards differ.
            if round % (shard + 1) == 0 {
                drop(stream_of(&engine, shard as u16).append([round as u8; 15_000]).unwrap());
            }
            turn(turning);
        }
        let stats = engine.stats();
        let bytes = stats.shards.iter().map(|shard| shard.segments.bytes);
        assert_eq!(engine.journal_bytes(), bytes.sum::<u64>());
        lengths.push(engine.journal_bytes());
    }
    assert!(lengths.is_sorted() && lengths[0] >= 4 * SEGMENT_BYTES, "{lengths:?}");
    assert!(lengths[39] >= lengths[0] + 3 * SEGMENT_BYTES, "{lengths:?}");
    for (shard, turning) in loops.iter_mut().enumerate() {
        let stream = stream_of(&engine, shard as u16);
        drop(stream.trim_async(stream.end()).unwrap());
        turn(turning);
    }
    let files: usize = disks.iter().map(|sim| segments(sim).count()).sum();
    assert_eq!(engine.journal_bytes(), files as u64 * SEGMENT_BYTES);
}

fn segments(sim: &SimHandle) -> impl Iterator<Item = String> {
    let names = sim.list().into_iter().map(|entry| entry.name);
    names.filter(|name| name.starts_with("segment-"))
}
