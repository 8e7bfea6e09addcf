//! Buffers of one size that are kept for the next user: an idle connection holds none.

use std::{
    cell::RefCell,
    ops::{Deref, DerefMut},
};

use super::record::{RECORD_LEN, RECORDS};

/// Bytes of a buffer: a batch of full records.
pub(crate) const LEN: usize = RECORDS * RECORD_LEN;
/// Buffers that a thread keeps.
const KEPT: usize = 16;

thread_local! {
    static SPARE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of [`LEN`] bytes with anything in it.
#[derive(Debug)]
pub(crate) struct Buffer(Option<Box<[u8]>>);

impl Buffer {
    /// One that was used before, or a new one.
    pub(crate) fn take() -> Self {
        let spare = SPARE.with_borrow_mut(Vec::pop);
        Self(Some(spare.unwrap_or_else(|| vec![0; LEN].into_boxed_slice())))
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.0.as_deref_mut().unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(bytes) = self.0.take() {
            SPARE.with_borrow_mut(|spare| {
                if spare.len() < KEPT {
                    spare.push(bytes);
                }
            });
        }
    }
}
