//! A short sequence without an allocation: states are copied and hashed millions of times.

use std::fmt;
use std::ops::{Deref, DerefMut};

/// At most `N` items. What is behind the length is always the default, so that equal sequences are
/// equal bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sequence<T, const N: usize> {
    length: u8,
    items: [T; N],
}

impl<T: Copy + Default, const N: usize> Sequence<T, N> {
    pub fn new() -> Self {
        Self { length: 0, items: [T::default(); N] }
    }

    /// Panics when it is full: a configuration must not ask for more than the arrays hold.
    pub fn push(&mut self, item: T) {
        assert!(self.len() < N, "a sequence of {N} is full: the configuration is too large");
        self.items[self.len()] = item;
        self.length += 1;
    }

    pub fn extend(&mut self, items: &[T]) {
        for item in items {
            self.push(*item);
        }
    }

    pub fn truncate(&mut self, length: usize) {
        for item in self.items.iter_mut().skip(length) {
            *item = T::default();
        }
        self.length = self.length.min(length as u8);
    }
}

impl<T, const N: usize> Deref for Sequence<T, N> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.items[..usize::from(self.length)]
    }
}

impl<T, const N: usize> DerefMut for Sequence<T, N> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.items[..usize::from(self.length)]
    }
}

impl<T: fmt::Debug, const N: usize> fmt::Debug for Sequence<T, N> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(self.iter()).finish()
    }
}
