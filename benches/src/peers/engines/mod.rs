//! One adapter per engine. Each is set to "durable before it returns", with what its makers recommend for that.

mod device;
#[cfg(feature = "peers")]
mod fjall;
mod keys;
mod mrecordlog;
mod no_flush;
mod okaywal;
#[cfg(feature = "peers")]
mod raft_engine;
mod redb;
mod ringwal;
mod ringwal_loop;
mod ringwal_tasks;
#[cfg(feature = "rocksdb")]
mod rocksdb;
#[cfg(feature = "peers")]
mod sqlite;
pub mod walrus;

use anyhow::{Result, bail};

use crate::engine::Contender;

/// All that are compiled in, this engine first.
pub fn all() -> Vec<Contender> {
    vec![
        ringwal::contender(),
        ringwal_tasks::contender(),
        ringwal_loop::contender(),
        ringwal::blocking(),
        ringwal::spinning(),
        ringwal::four_slots(),
        ringwal::fdatasync(),
        #[cfg(feature = "peers")]
        raft_engine::contender(),
        okaywal::contender(),
        #[cfg(feature = "rocksdb")]
        rocksdb::contender(),
        walrus::contender(),
        #[cfg(feature = "peers")]
        fjall::contender(),
        #[cfg(feature = "peers")]
        sqlite::contender(),
        mrecordlog::contender(),
        redb::contender(),
        device::dsync(),
        device::fdatasync(),
        no_flush::contender(),
    ]
}

/// One of them.
///
/// # Errors
/// When there is none of that name.
pub fn by_name(name: &str) -> Result<Contender> {
    let names: Vec<_> = all().iter().map(|contender| contender.name).collect();
    match all().into_iter().find(|contender| contender.name == name) {
        Some(contender) => Ok(contender),
        None => bail!("there is no engine `{name}` in this build: {}", names.join(", ")),
    }
}
