//! `faults`.
use anyhow::Result;

use super::role::{Setup, Voice};

pub fn obey(_setup: &Setup, _voice: &Voice) -> Result<()> {
    Ok(())
}
