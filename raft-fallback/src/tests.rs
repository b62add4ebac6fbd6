//! What the tests of several files need, and those that go through all of them.

pub(crate) mod generate;
mod model;
