//! Alone in its process: the most memory that it has held is what is measured.

use std::fs;

use ringwal_engine::offline::{self, OrphanState};
use ringwal_engine::{Engine, StreamId};
use ringwal_replication::node_id::{NodeId, RunId};
use ringwal_replication::orphans::{Reason, keep};

const STREAM: StreamId = StreamId::new(7);

/// Of several reads, in steps, and without holding all of it.
#[test]
fn a_long_suffix_is_copied_in_steps() {
    let mebibytes = 80;
    let directory = tempfile::tempdir().unwrap();
    let options = Engine::options().segment_bytes(16 << 20).pool_bytes(8 << 20);
    let engine = options.open(directory.path()).unwrap();
    let record = |offset: u64| offset.to_le_bytes().repeat(8 << 10);
    let tokens: Vec<_> = (0..16 * mebibytes)
        .map(|offset| engine.stream(STREAM).append(record(offset)).unwrap())
        .collect();
    let until = tokens.into_iter().map(|token| token.wait().unwrap().offset() + 1).max().unwrap();
    let reason = Reason { epoch: 3, leader: NodeId::new(2), run: RunId::new([7; 16]) };
    let held_before = peak_bytes();
    keep(&engine, STREAM, 1, until, reason).unwrap().unwrap();
    let grown = peak_bytes() - held_before;
    assert!(grown < 48 << 20, "{grown} bytes more were held");
    let mut next = 1;
    let kept = offline::visit_orphan(directory.path(), "orphans/7-1-0.orphan", |visited| {
        assert!(visited.offset == next && visited.payload == record(next));
        next += 1;
        std::ops::ControlFlow::Continue(())
    });
    assert_eq!((kept.unwrap().state, next), (OrphanState::Whole, until));
}

/// The most memory that this process has held.
fn peak_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() << 10
}
