//! Reports: the model of `report.json`, and everything that reads, draws or compares it.
//! Nothing here measures, and nothing here knows the engine.

pub mod build;
pub mod compare;
pub mod histogram_files;
pub mod model;
pub mod slo;
pub mod terminal;

mod bootstrap;
mod charts;
mod csv;
mod files;
mod html;
mod human;
mod json;
mod metadata;
mod png;
mod replication;
mod svg;
mod verdict;

#[cfg(test)]
mod sample;
#[cfg(test)]
mod schema;

pub use build::{ProbeSliceHistogram, RunBuilder, complete, new_histogram, probe_of};
pub use files::{read, redraw, to_json, write_all};
pub use histogram_files::{HistogramData, RunHistograms};
pub use model::{Report, Run};
