//! Tests of the real engine on a disk of our own: a FUSE file under a loop device, with a real
//! file system on it. `replay` builds the states that a loss of power could have left; `faults`
//! makes the disk fail.
//!
//! The engine that is recorded or made to fail runs in a process of its own, a *role*. The server
//! of the FUSE file never waits for that file itself, and whichever of the two processes ends, the
//! kernel takes apart what hangs on it.

pub mod device;
pub mod directory;
pub mod faults;
mod history;
mod image;
mod load;
mod obey;
mod payload;
pub mod replay;
pub mod role;
mod states;
pub mod system;
mod watchdog;
