//! One file of the folder: what it is, and its bytes.
//!
//! Promises never to block and never to read more than a manifest may hold, whatever stands at the path.

use std::{
    fs::{File, Metadata, OpenOptions},
    io::{self, Read},
    os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    path::Path,
    time::{Duration, SystemTime},
};

use nix::libc::{ELOOP, O_CLOEXEC, O_NOCTTY, O_NONBLOCK};

/// The largest manifest, in bytes.
const MAX_BYTES: u64 = 4 << 20;

/// What stands at a path.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::discovery) enum Found {
    /// A regular file, or a link to one.
    File(Stamp),
    /// Anything else, and why it cannot be taken.
    Unusable(String),
}

/// Tells two contents of a path apart.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::discovery) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// When content or attributes changed last; unlike the time of modification nobody can set it.
    pub(in crate::discovery) fn changed(&self) -> SystemTime {
        let (seconds, nanoseconds) = self.changed;
        let since =
            Duration::new(seconds.try_into().unwrap_or_default(), nanoseconds.try_into().unwrap_or_default());
        SystemTime::UNIX_EPOCH + since
    }
}

/// What stands at `path`, links followed; nothing if the path is gone.
pub(in crate::discovery) fn inspect(path: &Path) -> Option<Found> {
    match std::fs::metadata(path) {
        Ok(metadata) => Some(match refusal(&metadata) {
            Some(reason) => Found::Unusable(reason),
            None => Found::File(Stamp::of(&metadata)),
        }),
        Err(error) => {
            let link = std::fs::symlink_metadata(path).ok()?.is_symlink();
            Some(Found::Unusable(match error.kind() {
                io::ErrorKind::NotFound if link => "is a link to nothing".to_owned(),
                _ if error.raw_os_error() == Some(ELOOP) => "is a link that leads back to itself".to_owned(),
                _ => format!("cannot be read: {error}"),
            }))
        }
    }
}

/// The bytes at `path` and what the file looked like before they were read; else why not.
pub(in crate::discovery) fn read(path: &Path) -> Result<(Vec<u8>, Stamp), String> {
    let failed = |error: io::Error| format!("cannot be read: {error}");
    // Should a FIFO or terminal have taken the file's place since it was looked at, opening must not wait for a writer.
    let file: File = OpenOptions::new()
        .read(true)
        .custom_flags(O_NONBLOCK | O_NOCTTY | O_CLOEXEC)
        .open(path)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if let Some(reason) = refusal(&metadata) {
        return Err(reason);
    }
    let mut bytes = Vec::with_capacity(metadata.size().min(MAX_BYTES) as usize);
    // The size is no promise: a file may grow, and those under /proc have none.
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(too_large());
    }
    Ok((bytes, Stamp::of(&metadata)))
}

fn refusal(metadata: &Metadata) -> Option<String> {
    let kind = metadata.file_type();
    if kind.is_file() {
        return (metadata.size() > MAX_BYTES).then(too_large);
    }
    let kind = match kind {
        _ if kind.is_dir() => "a directory",
        _ if kind.is_fifo() => "a FIFO",
        _ if kind.is_socket() => "a socket",
        _ => "a device",
    };
    Some(format!("is {kind}, not a file"))
}

fn too_large() -> String {
    format!("is larger than {} MiB; split it", MAX_BYTES >> 20)
}
