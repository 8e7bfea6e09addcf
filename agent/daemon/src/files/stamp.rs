//! What tells a file from what it was before.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

/// How a file looks from outside. A write, another file in its place, another owner or mode: each makes another stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    changed: (i64, i64),
}

impl Stamp {
    /// How the file at `path` looks now, symbolic links followed; `None` where there is none.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        let (device, inode, size) = (found.dev(), found.ino(), found.size());
        Some(Self { device, inode, size, changed: (found.ctime(), found.ctime_nsec()) })
    }
}
