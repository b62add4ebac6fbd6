//! What the kernel's io_uring can do: a small ring is set up and asked.

use io_uring::{IoUring, Probe, opcode};

use super::read_line;

/// Name of the set-up flag of Linux 6.0.
pub const SINGLE_ISSUER: &str = "single_issuer";
/// Name of the set-up flag of Linux 6.1 that the engine uses.
pub const DEFER_TASKRUN: &str = "defer_taskrun";
/// Name of the operation that the engine writes with.
pub const WRITE_FIXED: &str = "write_fixed";

/// The kernel's io_uring.
#[derive(Debug, Clone, Default)]
pub struct Ring {
    /// Names of features, set-up flags and operations that the engine uses and that are there.
    pub features: Vec<&'static str>,
    /// Why no ring could be set up.
    pub error: Option<RingError>,
    /// `/proc/sys/kernel/io_uring_disabled`, where the kernel has it (6.6).
    pub disabled: Option<u32>,
}

/// What io_uring_setup(2) said.
#[derive(Debug, Clone)]
pub struct RingError {
    /// errno.
    pub number: i32,
    /// In words.
    pub message: String,
}

/// Sets up a ring and asks it.
pub fn look() -> Ring {
    let disabled = read_line("/proc/sys/kernel/io_uring_disabled").and_then(|v| v.parse().ok());
    let ring = match IoUring::new(8) {
        Ok(ring) => ring,
        Err(error) => {
            let number = error.raw_os_error().unwrap_or(0);
            let error = Some(RingError { number, message: error.to_string() });
            return Ring { features: Vec::new(), error, disabled };
        }
    };
    let mut features = features_of(&ring);
    features.extend(operations_of(&ring));
    drop(ring);
    features.extend(set_up_flags());
    Ring { features, error: None, disabled }
}

fn features_of(ring: &IoUring) -> Vec<&'static str> {
    let parameters = ring.params();
    [
        ("nodrop", parameters.is_feature_nodrop()),
        ("submit_stable", parameters.is_feature_submit_stable()),
        ("ext_arg", parameters.is_feature_ext_arg()),
        ("native_workers", parameters.is_feature_native_workers()),
        ("rsrc_tags", parameters.is_feature_resource_tagging()),
        ("cqe_skip", parameters.is_feature_skip_cqe_on_success()),
        ("linked_file", parameters.is_feature_linked_file()),
    ]
    .into_iter()
    .filter_map(|(name, there)| there.then_some(name))
    .collect()
}

fn operations_of(ring: &IoUring) -> Vec<&'static str> {
    let mut probe = Probe::new();
    if ring.submitter().register_probe(&mut probe).is_err() {
        return Vec::new();
    }
    [
        (WRITE_FIXED, opcode::WriteFixed::CODE),
        ("write", opcode::Write::CODE),
        ("read", opcode::Read::CODE),
        ("fsync", opcode::Fsync::CODE),
        ("msg_ring", opcode::MsgRingData::CODE),
        ("futex_wait", opcode::FutexWait::CODE),
    ]
    .into_iter()
    .filter_map(|(name, code)| probe.is_supported(code).then_some(name))
    .collect()
}

fn set_up_flags() -> Vec<&'static str> {
    let mut flags = Vec::new();
    let mut builder: io_uring::Builder = IoUring::builder();
    if builder.setup_single_issuer().build(8).is_ok() {
        flags.push(SINGLE_ISSUER);
    }
    if builder.setup_defer_taskrun().build(8).is_ok() {
        flags.push(DEFER_TASKRUN);
    }
    flags
}
