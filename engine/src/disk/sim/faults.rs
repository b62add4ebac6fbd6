//! What tests can make go wrong, and when.

use super::super::Operation;

/// The kinds of [`Operation`].
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub enum Kind {
    /// A write, durable or not.
    Write,
    /// fdatasync.
    Sync,
    /// fsync.
    SyncAll,
    /// A read through the disk.
    Read,
    /// Opening or creating.
    Open,
    /// fallocate.
    Allocate,
    /// Removing.
    Remove,
    /// fsync of the directory.
    SyncDirectory,
}

impl Kind {
    /// The kind of an operation.
    pub fn of(operation: &Operation) -> Self {
        match operation {
            Operation::Write { .. } => Self::Write,
            Operation::Sync { .. } => Self::Sync,
            Operation::SyncAll { .. } => Self::SyncAll,
            Operation::Read { .. } => Self::Read,
            Operation::Open { .. } => Self::Open,
            Operation::Allocate { .. } => Self::Allocate,
            Operation::Remove { .. } => Self::Remove,
            Operation::SyncDirectory => Self::SyncDirectory,
        }
    }
}

/// Something that goes wrong with one operation.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Fault {
    /// It fails with this errno. A failed write or flush leaves unknown contents in what it
    /// covered.
    Errno(i32),
    /// A write stops after this many bytes, or a read; the result says so.
    Short(usize),
    /// A write goes to this offset of the file, and reports success.
    Misdirected(u64),
    /// A write goes nowhere, and reports success.
    Lost,
}

/// Faults that wait for their operation.
#[derive(Debug, Default)]
pub(super) struct Faults {
    next: Vec<(Kind, Fault)>,
    at: Vec<(u64, Fault)>,
    always: Vec<(Kind, i32)>,
}

impl Faults {
    pub fn on_next(&mut self, kind: Kind, fault: Fault) {
        self.next.push((kind, fault));
    }

    pub fn at(&mut self, operation: u64, fault: Fault) {
        self.at.push((operation, fault));
    }

    pub fn always(&mut self, kind: Kind, errno: i32) {
        self.always.push((kind, errno));
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// The fault of the operation with this number; what it was scheduled for is used up.
    pub fn take(&mut self, number: u64, kind: Kind) -> Option<Fault> {
        if let Some(index) = self.at.iter().position(|&(at, _)| at == number) {
            return Some(self.at.swap_remove(index).1);
        }
        if let Some(index) = self.next.iter().position(|&(next, _)| next == kind) {
            return Some(self.next.remove(index).1);
        }
        let always = self.always.iter().find(|&&(always, _)| always == kind);
        always.map(|&(_, errno)| Fault::Errno(errno))
    }
}
