//! Reading a file that is not trusted to be small, or to be a file at all.

use std::{
    fmt,
    fs::{Metadata, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use nix::libc::O_NONBLOCK;
use zeroize::Zeroizing;

/// Why a file cannot be read. The text names the file, and its bound where that is the trouble.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub(crate) struct ReadError {
    path: PathBuf,
    problem: io::Error,
}

impl ReadError {
    /// What is wrong, for those who name the file in words of their own.
    pub(crate) fn into_problem(self) -> io::Error {
        self.problem
    }
}

/// The content of the regular file at `path`, `limit` bytes at most; wiped from memory when dropped, as it may be a key.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Zeroizing<Vec<u8>>, ReadError> {
    read_if(path, limit, |_| Ok(()))
}

/// The same as text, which must be UTF-8.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<Zeroizing<String>, ReadError> {
    let content = read(path, limit)?;
    match str::from_utf8(&content) {
        Ok(text) => Ok(Zeroizing::new(text.to_owned())),
        Err(_) => Err(ReadError { path: path.to_owned(), problem: io::Error::other("not UTF-8 text") }),
    }
}

/// The same as [`read`], if `check` has nothing against the owner and mode of the file that was opened.
pub(crate) fn read_if(
    path: &Path,
    limit: u64,
    check: impl FnOnce(&Metadata) -> io::Result<()>,
) -> Result<Zeroizing<Vec<u8>>, ReadError> {
    let content = || {
        // Opening a FIFO must not wait for somebody to write into it.
        let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        check(&metadata)?;
        // Room for all of it at once: a buffer that grows would leave pieces of a key behind. The size is no promise, though:
        // files grow, and those under /proc have none.
        let expected = usize::try_from(metadata.len().min(limit)).unwrap_or_default();
        let mut content = Zeroizing::new(Vec::with_capacity(expected + 1));
        match file.take(limit + 1).read_to_end(&mut content)? as u64 > limit {
            true => Err(io::Error::other(format!("larger than {}", Size(limit)))),
            false => Ok(content),
        }
    };
    content().map_err(|problem| ReadError { path: path.to_owned(), problem })
}

/// A number of bytes as an operator reads it.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const KIB: u64 = 1024;
        const MIB: u64 = 1024 * KIB;
        match self.0 {
            bytes if bytes >= MIB && bytes.is_multiple_of(MIB) => write!(f, "{} MiB", bytes / MIB),
            bytes if bytes >= KIB && bytes.is_multiple_of(KIB) => write!(f, "{} KiB", bytes / KIB),
            bytes => write!(f, "{bytes} bytes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    #[test]
    fn a_file_is_read_up_to_its_bound_and_not_past_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for (length, limit, expected) in [
            (0, 4, None),
            (4, 4, None),
            (5, 4, Some("larger than 4 bytes")),
            (2048, 1024, Some("larger than 1 KiB")),
            (3 << 20, 2 << 20, Some("larger than 2 MiB")),
        ] {
            fs::write(&path, vec![b'x'; length]).unwrap();
            match (read(&path, limit), expected) {
                (Ok(content), None) => assert_eq!(content.len(), length),
                (outcome, expected) => {
                    let expected = format!("{}: {}", path.display(), expected.unwrap());
                    assert_eq!(outcome.unwrap_err().to_string(), expected);
                }
            }
        }
    }

    #[test]
    fn what_is_no_file_or_no_text_is_an_error_and_keeps_nobody_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let (fifo, text) = (dir.path().join("fifo"), dir.path().join("text"));
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        fs::write(&text, [0xff]).unwrap();
        for path in [&fifo, Path::new("/dev/zero"), dir.path()] {
            assert!(read(path, 10).unwrap_err().to_string().ends_with("not a regular file"));
        }
        assert!(read_text(&text, 10).unwrap_err().to_string().ends_with("not UTF-8 text"));
        assert_eq!(
            read(&dir.path().join("missing"), 10).unwrap_err().into_problem().kind(),
            io::ErrorKind::NotFound
        );
        let never = |_: &Metadata| Err(io::Error::other("not for you"));
        assert!(read_if(&text, 10, never).unwrap_err().to_string().ends_with("not for you"));
    }
}
