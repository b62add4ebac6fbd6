//! What a kernel or its administrator refuses for real: io_uring under a seccomp filter, locked
//! memory, a directory of somebody else. A process cannot take such a refusal back, so each
//! happens in a child.
//!
//! kernel.io_uring_disabled holds for the whole machine and is left alone; its message has a unit
//! test.

#[path = "common/child.rs"]
mod child;
#[path = "common/skipped.rs"]
mod skipped;
#[path = "common/watchdog.rs"]
mod watchdog;

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::time::Duration;

use ringwal_engine::disk::uring::{UringDisk, UringOptions};
use ringwal_engine::disk::{BLOCK_BYTES, BufferMut, Disk, FileId, Operation, Wait, run};
use ringwal_engine::{Engine, Io, OpenError, Options, Stats, StreamId};

use child::{Role, say};
use skipped::skipped;
use watchdog::Watchdog;

const LIMIT: Duration = Duration::from_secs(60);
const STREAM: StreamId = StreamId::new(7);
/// `nobody`, or whoever else: not root.
const UNPRIVILEGED: u32 = 65534;
/// More than the memory that the children may lock.
const POOL_BYTES: usize = 4 << 20;

fn options() -> Options {
    Engine::options().segment_bytes(1 << 20).pool_bytes(POOL_BYTES)
}

/// Has this role's child say everything, and ends it well.
fn heard(role: &str, directory: &Path) -> Vec<String> {
    let (lines, status) = Role::start(role, directory.to_str().unwrap()).end();
    assert!(status.success(), "{role}: {status}: {lines:?}");
    lines
}

/// Whether this machine has io_uring for us; a reason is printed when not.
fn has_ring() -> bool {
    let directory = tempfile::tempdir().unwrap();
    match UringDisk::open(directory.path(), UringOptions::default(), None) {
        Ok(_) => true,
        Err(error) => {
            skipped(&error.to_string());
            false
        }
    }
}

/// A directory that an unprivileged child owns and reaches. `None` when we are not root.
fn directory_of_unprivileged() -> Option<tempfile::TempDir> {
    if !rustix::process::geteuid().is_root() {
        skipped("giving a directory to another user needs root");
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    chown(directory.path(), Some(UNPRIVILEGED), Some(UNPRIVILEGED)).unwrap();
    Some(directory)
}

/// The roles of this binary's children.
#[test]
fn child() {
    let Some((role, directory)) = child::role() else { return };
    let directory = Path::new(&directory);
    match role.as_str() {
        "seccomp EPERM" => without_ring(libc::EPERM, directory),
        "seccomp ENOSYS" => without_ring(libc::ENOSYS, directory),
        "seccomp reader" => read_without_ring(directory),
        "seccomp pwritev2" => write_without_pwritev2(directory),
        "memlock 0" => with_little_locked_memory(0, directory),
        "memlock 65536" => with_little_locked_memory(64 << 10, directory),
        "unprivileged" => open_as_unprivileged(directory),
        other => panic!("no role {other}"),
    }
}

/// Appends one record and reads them all.
fn append_and_read(options: &Options, directory: &Path) -> (usize, Stats) {
    let engine = options.open(directory).unwrap();
    let stream = engine.stream(STREAM);
    stream.append(b"one").unwrap().wait().unwrap();
    let records = stream.read(..).unwrap().inspect(|record| {
        assert_eq!(record.as_ref().unwrap().payload(), b"one");
    });
    (records.count(), engine.close().unwrap().stats)
}

/// All calls of io_uring.
const RING_CALLS: [libc::c_long; 3] =
    [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];

/// Lets these calls fail in this thread and those that it starts, as the filters of containers do.
fn refuse(calls: [libc::c_long; 3], errno: i32) {
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let jump_if_equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let statement = |code, k, jt, jf| libc::sock_filter { code: code as u16, jt, jf, k };
    // SAFETY: fills in structures that it returns; no memory of others is involved.
    let mut filter = unsafe {
        [
            // The number of the call is the first word.
            libc::BPF_STMT(load as u16, 0),
            statement(jump_if_equal, calls[0] as u32, 2, 0),
            statement(jump_if_equal, calls[1] as u32, 1, 0),
            statement(jump_if_equal, calls[2] as u32, 0, 1),
            libc::BPF_STMT(libc::BPF_RET as u16, libc::SECCOMP_RET_ERRNO | errno as u32),
            libc::BPF_STMT(libc::BPF_RET as u16, libc::SECCOMP_RET_ALLOW),
        ]
    };
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: no memory is involved.
    let bound = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(bound, 0, "{}", io::Error::last_os_error());
    // SAFETY: the kernel copies the program, whose length is right, before it returns.
    let installed =
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) };
    assert_eq!(installed, 0, "{}", io::Error::last_os_error());
}

fn without_ring(errno: i32, directory: &Path) {
    refuse(RING_CALLS, errno);
    let Err(error) = options().open(directory) else { panic!("the filter does nothing") };
    assert!(matches!(error, OpenError::Ring(_)), "{error:?}");
    say(&format!("{:?}: {error}", error.kind()));
    let Err(error) = options().open_shard(directory) else { panic!("the filter does nothing") };
    assert!(matches!(error, OpenError::Ring(_)), "{error:?}");
    for (expected, options) in [(1, options().io_fallback(true)), (2, options().io(Io::Blocking))] {
        let (records, stats) = append_and_read(&options, directory);
        let disk = &stats.shards[0].disk;
        assert_eq!((records, disk.name), (expected, "blocking"));
        // Whoever did not ask for it is told why.
        let told = disk.notes.iter().any(|note| note.contains("Seccomp: 2"));
        assert_eq!(told, expected == 1, "{:?}", disk.notes);
    }
}

#[test]
fn a_seccomp_filter_is_named_and_the_blocking_disk_works() {
    let _watchdog = Watchdog::new("seccomp", LIMIT);
    if !has_ring() {
        return;
    }
    for role in ["seccomp EPERM", "seccomp ENOSYS"] {
        let directory = tempfile::tempdir().unwrap();
        let lines = heard(role, directory.path());
        assert_eq!(lines.len(), 1, "{lines:?}");
        for part in ["Environment: ", "io_uring_setup", "seccomp filter", "Seccomp: 2", "blocking"]
        {
            assert!(lines[0].contains(part), "{part}: {}", lines[0]);
        }
        // Without the filter the same directory is opened with a ring again.
        let (records, stats) = append_and_read(&options(), directory.path());
        assert_eq!((records, stats.shards[0].disk.name), (3, "uring"));
    }
}

/// The shard has its ring; whoever reads has none, and reads all the same.
fn read_without_ring(directory: &Path) {
    let options = options().segment_bytes(8 << 20).pool_bytes(16 << 20);
    let engine = options.open(directory).unwrap();
    let stream = engine.stream(STREAM);
    let record = |number: u64| vec![number as u8; 100_000];
    for number in 0..60 {
        stream.append(record(number)).unwrap().wait().unwrap();
    }
    refuse(RING_CALLS, libc::EPERM);
    let mut records = stream.read(..).unwrap();
    for number in 0..60 {
        assert_eq!(records.next().unwrap().unwrap().payload(), record(number));
    }
    assert!(records.next().is_none());
}

/// A record that comes alone is written by a plain call; where that is refused, by the ring.
fn write_without_pwritev2(directory: &Path) {
    refuse([libc::SYS_pwritev2; 3], libc::EPERM);
    let plain = std::fs::File::create(directory.join("plain")).unwrap();
    let bytes = [io::IoSlice::new(b"bytes")];
    let refused = rustix::io::pwritev2(&plain, &bytes, 0, rustix::io::ReadWriteFlags::DSYNC);
    assert_eq!(refused.unwrap_err().raw_os_error(), libc::EPERM);
    let mut disk = UringDisk::open(directory, UringOptions::default(), None).unwrap();
    let open = Operation::Open { name: "a".into(), create: true };
    let file = FileId(run(&mut disk, open).unwrap().0 as u32);
    let buffer = BufferMut::allocate(BLOCK_BYTES).freeze();
    let write =
        Operation::Write { file, offset: 0, buffer, from: 0, length: BLOCK_BYTES, durable: true };
    disk.submit_alone(1, write);
    let mut completions = Vec::new();
    while completions.is_empty() {
        disk.reap(&mut completions, Wait::Forever).unwrap();
    }
    assert_eq!(*completions[0].result.as_ref().unwrap(), BLOCK_BYTES as u64);
    drop(disk);
    let directory = directory.join("engine");
    let mut shard = options().open_shard(&directory).unwrap();
    for number in 0..20u8 {
        let token = shard.append(STREAM, [number]).unwrap();
        while token.try_receipt().is_none() {
            shard.run_once(None).unwrap();
        }
        token.wait().unwrap();
    }
    shard.close().unwrap();
    let engine = options().open(&directory).unwrap();
    assert_eq!(engine.stream(STREAM).read(..).unwrap().map(Result::unwrap).count(), 20);
}

#[test]
fn a_filter_that_refuses_a_part_leaves_the_rest_at_work() {
    let _watchdog = Watchdog::new("seccomp", LIMIT);
    if !has_ring() {
        return;
    }
    for role in ["seccomp reader", "seccomp pwritev2"] {
        let directory = tempfile::tempdir().unwrap();
        heard(role, directory.path());
    }
}

/// Gives up root, for all threads of this process.
fn become_unprivileged() {
    // SAFETY: no memory is involved but an empty list.
    let done = unsafe {
        libc::setgroups(0, std::ptr::null()) == 0
            && libc::setgid(UNPRIVILEGED) == 0
            && libc::setuid(UNPRIVILEGED) == 0
    };
    assert!(done, "{}", io::Error::last_os_error());
}

fn with_little_locked_memory(bytes: u64, directory: &Path) {
    let limit = rustix::process::Rlimit { current: Some(bytes), maximum: Some(bytes) };
    rustix::process::setrlimit(rustix::process::Resource::Memlock, limit).unwrap();
    become_unprivileged();
    match options().shards(2).open(directory) {
        Ok(engine) => {
            drop(engine);
            let (records, stats) = append_and_read(&options().shards(2), directory);
            assert_eq!(records, 1);
            for shard in stats.shards {
                assert!(!shard.disk.buffers_registered);
                say(&format!("unregistered: {}", shard.disk.notes.join(" | ")));
            }
        }
        // Kernels before 5.12 count the ring itself.
        Err(error) => {
            assert!(matches!(error, OpenError::Ring(_)), "{error:?}");
            say(&format!("refused: {error}"));
        }
    }
}

#[test]
fn a_memlock_limit_is_a_note_with_the_need_and_the_fix() {
    let _watchdog = Watchdog::new("memlock", LIMIT);
    if !has_ring() {
        return;
    }
    for (role, limit) in [("memlock 0", 0), ("memlock 65536", 64 << 10)] {
        let Some(directory) = directory_of_unprivileged() else { return };
        let lines = heard(role, directory.path());
        for line in &lines {
            for part in [&format!("RLIMIT_MEMLOCK is {limit} bytes"), "ulimit -l"] {
                assert!(line.contains(part), "{part}: {line}");
            }
        }
        match lines.as_slice() {
            [first, second] => {
                assert_eq!(first, second);
                assert!(first.contains(&format!("{POOL_BYTES} bytes are needed")), "{first}");
                assert!(!first.contains(" | "), "one note: {first}");
            }
            [only] => assert!(only.starts_with("refused: "), "{only}"),
            _ => panic!("{lines:?}"),
        }
    }
}

fn open_as_unprivileged(directory: &Path) {
    become_unprivileged();
    for io in [Io::Uring, Io::Blocking] {
        match options().io(io).open(directory) {
            Ok(_) => say("opened"),
            Err(error) => say(&format!("{:?}: {error}", error.kind())),
        }
    }
    match options().read_only(true).open(directory) {
        Ok(engine) => {
            let records = engine.stream(STREAM).read(..).unwrap().map(Result::unwrap);
            say(&format!("{} records", records.count()));
        }
        Err(error) => say(&format!("{:?}: {error}", error.kind())),
    }
}

/// Sets the permissions of everything below, folders with `x` as far as `r`.
fn permit(path: &Path, mode: u32) {
    if path.is_dir() {
        std::fs::set_permissions(path, Permissions::from_mode(mode | (mode & 0o444) >> 2)).unwrap();
        for entry in std::fs::read_dir(path).unwrap() {
            permit(&entry.unwrap().path(), mode);
        }
    } else {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }
}

#[test]
fn what_may_not_be_written_is_named_and_may_be_read() {
    let _watchdog = Watchdog::new("not writable", LIMIT);
    if !rustix::process::geteuid().is_root() {
        return skipped("taking a right away from somebody needs root");
    }
    let directory = tempfile::tempdir().unwrap();
    let (new, used) = (directory.path().join("new"), directory.path().join("used"));
    std::fs::create_dir(&new).unwrap();
    append_and_read(&options().io(Io::Blocking), &used);
    let refused = |line: &str, path: &Path| {
        assert!(line.starts_with("Io: "), "{line}");
        assert!(line.contains(path.to_str().unwrap()), "{line}");
        assert!(line.contains("Permission denied"), "{line}");
    };
    permit(directory.path(), 0o644);
    let lines = heard("unprivileged", &new);
    refused(&lines[0], &new);
    refused(&lines[1], &new);
    assert!(lines[2].contains("holds no engine"), "{lines:?}");
    let lines = heard("unprivileged", &used);
    refused(&lines[0], &used);
    refused(&lines[1], &used);
    assert_eq!(lines[2], "1 records");
    // A file within may be somebody else's too.
    permit(&used, 0o666);
    permit(&used.join("shard-00"), 0o644);
    let lines = heard("unprivileged", &used);
    refused(&lines[0], &used.join("shard-00"));
    refused(&lines[1], &used.join("shard-00"));
    assert_eq!(lines[2], "1 records");
    permit(&used, 0o600);
    let lines = heard("unprivileged", &used);
    lines.iter().for_each(|line| refused(line, &used));
    // Nothing was changed by all that.
    let (records, _) = append_and_read(&options().io(Io::Blocking), &used);
    assert_eq!(records, 2);
}
