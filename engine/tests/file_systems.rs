//! The engine on file systems of every kind that it tells apart, each mounted for real: it opens
//! or refuses as designed, and what a probe says about the directory is true.

#[path = "common/mount.rs"]
mod mount;
#[path = "common/skipped.rs"]
mod skipped;
#[path = "common/watchdog.rs"]
mod watchdog;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ringwal_engine::disk::BufferMut;
use ringwal_engine::environment::{DirectoryProbe, FileSystem, probe_directory};
use ringwal_engine::{Engine, Io, OpenErrorKind, Options, StreamId};
use rustix::fs::{IFlags, ioctl_getflags};

use mount::Mounted;
use watchdog::Watchdog;

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(60);
const STREAM: StreamId = StreamId::new(7);

fn options() -> Options {
    Engine::options().shards(2).segment_bytes(MIB).pool_bytes(4 << 20)
}

/// Whether a direct write of this length, aligned in memory to as much, succeeds here.
fn can_write_direct(directory: &Path, bytes: usize) -> bool {
    let path = directory.join("direct");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path);
    let memory = BufferMut::allocate(2 * bytes);
    let from = bytes % 4096;
    let done = file
        .and_then(|file| file.write_at(&memory[from..from + bytes], bytes as u64))
        .is_ok_and(|written| written == bytes);
    std::fs::remove_file(&path).unwrap();
    done
}

/// Probes a directory, having made sure that it is as the probe says.
fn true_probe(directory: &Path, file_system: FileSystem) -> DirectoryProbe {
    let before = std::fs::read_dir(directory).unwrap().count();
    let probe = probe_directory(directory).unwrap();
    assert_eq!(std::fs::read_dir(directory).unwrap().count(), before, "it leaves something");
    assert_eq!(probe.file_system, file_system);
    assert_eq!(probe.direct, can_write_direct(directory, 4096), "{probe:?}");
    for alignment in [probe.memory_alignment, probe.offset_alignment] {
        assert!(alignment == 0 || alignment.is_power_of_two(), "{probe:?}");
    }
    // A block is enough for every device that is accepted; the least that statx names is true.
    let least = probe.offset_alignment.max(probe.memory_alignment) as usize;
    assert!(least <= 4096, "{probe:?}");
    if least > 0 && probe.direct {
        assert!(can_write_direct(directory, least), "{probe:?}");
    }
    probe
}

/// Appends, closes, reopens and reads, with both disks; each open is direct as far as the probe
/// said.
fn append_and_reopen(mounted: &Path, probe: &DirectoryProbe) {
    for io in [Io::Uring, Io::Blocking] {
        let data = mounted.join(format!("{io:?}"));
        let options = options().io(io);
        for round in 0..3u64 {
            let engine = options.open(&data).unwrap();
            let stream = engine.stream(STREAM);
            assert_eq!(stream.end(), round * 40);
            let tokens: Vec<_> = (round * 40..(round + 1) * 40)
                .map(|number| stream.append(number.to_le_bytes().repeat(7_000)).unwrap())
                .collect();
            for token in tokens {
                token.wait().unwrap();
            }
            for (number, record) in (0..).zip(stream.read(..).unwrap()) {
                let record = record.unwrap();
                assert_eq!(record.offset(), number);
                assert_eq!(record.payload()[..8], number.to_le_bytes());
            }
            for shard in engine.close().unwrap().stats.shards {
                assert_eq!(shard.disk.direct, probe.direct);
                let told = shard.disk.notes.iter().any(|note| note.contains("O_DIRECT"));
                assert_eq!(told, !probe.direct, "{:?}", shard.disk.notes);
            }
        }
    }
}

#[test]
fn ext4() {
    let _watchdog = Watchdog::new("ext4", LIMIT);
    for block in ["1024", "4096"] {
        let options = ["-q", "-F", "-b", block];
        let Some(mounted) = Mounted::image("ext4", 64 * MIB, &options) else { return };
        let probe = true_probe(mounted.path(), FileSystem::Ext4);
        assert!(probe.direct && probe.file_system.is_durable());
        append_and_reopen(mounted.path(), &probe);
    }
}

#[test]
fn xfs() {
    let _watchdog = Watchdog::new("xfs", LIMIT);
    let Some(mounted) = Mounted::image("xfs", 300 * MIB, &["-q"]) else { return };
    let probe = true_probe(mounted.path(), FileSystem::Xfs);
    assert!(probe.direct && probe.file_system.is_durable());
    append_and_reopen(mounted.path(), &probe);
}

#[test]
fn btrfs_writes_segments_in_place() {
    let _watchdog = Watchdog::new("btrfs", LIMIT);
    let Some(mounted) = Mounted::image("btrfs", 256 * MIB, &["-q"]) else { return };
    let probe = true_probe(mounted.path(), FileSystem::Btrfs);
    assert!(probe.file_system.is_durable());
    append_and_reopen(mounted.path(), &probe);
    let in_place = |path: &Path| {
        let flags = ioctl_getflags(File::open(path).unwrap()).unwrap();
        assert!(flags.contains(IFlags::NOCOW), "{}: {flags:?}", path.display());
    };
    for shard in ["shard-00", "shard-01"] {
        let shard = mounted.path().join("Uring").join(shard);
        in_place(&shard);
        let files: Vec<_> = std::fs::read_dir(&shard).unwrap().collect();
        assert!(files.len() > 2);
        for file in files {
            in_place(&file.unwrap().path());
        }
    }
}

#[test]
fn tmpfs_works_and_is_not_durable() {
    let _watchdog = Watchdog::new("tmpfs", LIMIT);
    let Some(mounted) = Mounted::virtual_one("tmpfs", |_| "size=64m".into()) else { return };
    let probe = true_probe(mounted.path(), FileSystem::Tmpfs);
    assert!(!probe.file_system.is_durable());
    append_and_reopen(mounted.path(), &probe);
}

#[test]
fn overlay_is_as_good_as_what_is_below() {
    let _watchdog = Watchdog::new("overlay", LIMIT);
    let Some(below) = Mounted::image("ext4", 64 * MIB, &["-q", "-F"]) else { return };
    let options = |_: &Path| {
        for name in ["lower", "upper", "work"] {
            std::fs::create_dir(below.path().join(name)).unwrap();
        }
        let path = below.path().display();
        format!("lowerdir={path}/lower,upperdir={path}/upper,workdir={path}/work")
    };
    let Some(mounted) = Mounted::virtual_one("overlay", options) else { return };
    let probe = true_probe(mounted.path(), FileSystem::Overlay);
    assert!(probe.direct && probe.file_system.is_durable());
    append_and_reopen(mounted.path(), &probe);
    let written = below.path().join("upper/Uring/shard-00/segment-00000000");
    assert_eq!(std::fs::metadata(written).unwrap().len(), MIB);
}

#[test]
fn a_read_only_mount_is_refused_for_writing_and_read() {
    let _watchdog = Watchdog::new("read-only mount", LIMIT);
    let Some(mounted) = Mounted::image("ext4", 64 * MIB, &["-q", "-F"]) else { return };
    let probe = true_probe(mounted.path(), FileSystem::Ext4);
    append_and_reopen(mounted.path(), &probe);
    let remount = ["-o", "remount,ro"];
    assert!(Command::new("mount").args(remount).arg(mounted.path()).status().unwrap().success());
    for io in [Io::Uring, Io::Blocking] {
        let data = mounted.path().join(format!("{io:?}"));
        let error = options().io(io).open(&data).err().unwrap();
        assert_eq!(error.kind(), OpenErrorKind::Io);
        let message = error.to_string();
        assert!(message.contains("Read-only file system"), "{message}");
        assert!(message.contains(data.to_str().unwrap()), "{message}");
        let engine = options().io(io).read_only(true).open(&data).unwrap();
        assert_eq!(engine.stream(STREAM).read(..).unwrap().map(Result::unwrap).count(), 120);
    }
    assert!(probe_directory(mounted.path()).is_err());
}
