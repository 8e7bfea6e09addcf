//! The claim on a run directory: a lock file that the kernel releases when the process ends, however it ends.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg, OFlag},
    sys::stat::{Mode, fchmod},
};
use socket2::{Domain, SockAddr, Socket, Type};

use super::AdminError;

const LOCK_FILE: &str = "ambit.lock";
const SOCKET_FILE: &str = "ambit.sock";

/// A run directory that this process alone serves for as long as a clone of this value lives.
#[derive(Clone, Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    _lock: Arc<Flock<File>>,
}

impl RunDir {
    /// Claims `path`, a directory that exists. Fails with [`AdminError::Claimed`] while another process holds it.
    pub(crate) fn claim(path: &Path) -> Result<Self, AdminError> {
        let lock_path = path.join(LOCK_FILE);
        let unusable = |source| AdminError::RunDir { path: lock_path.clone(), source };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
            .open(&lock_path)
            .map_err(unusable)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                lock.set_len(0).map_err(unusable)?;
                writeln!(lock, "{}", std::process::id()).map_err(unusable)?;
                Ok(Self { path: path.to_owned(), _lock: Arc::new(lock) })
            }
            Err((file, Errno::EWOULDBLOCK)) => {
                Err(AdminError::Claimed { dir: path.to_owned(), pid: holder(file) })
            }
            Err((_, errno)) => Err(unusable(errno.into())),
        }
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where an agent in `run_dir` listens for status requests.
    pub(crate) fn socket_path(run_dir: &Path) -> PathBuf {
        run_dir.join(SOCKET_FILE)
    }

    /// Listens on the status socket, which only this user may connect to. A socket left by a dead agent is replaced: the
    /// claim proves that it is dead.
    pub(super) fn listen(&self) -> Result<(std::os::unix::net::UnixListener, SocketFile), AdminError> {
        let path = Self::socket_path(&self.path);
        match fs::symlink_metadata(&path) {
            Ok(found) if !found.file_type().is_socket() => return Err(AdminError::InTheWay { path }),
            Ok(_) => {
                fs::remove_file(&path).map_err(|source| AdminError::RunDir { path: path.clone(), source })?
            }
            Err(_) => {}
        }
        let listener = bind(&path).map_err(|source| AdminError::RunDir { path: path.clone(), source })?;
        Ok((listener, SocketFile(path)))
    }
}

/// Listens at `path` on a UNIX socket that only this user may connect to.
pub(crate) fn bind(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.cloexec().nonblocking(), None)?;
    // The file takes over the mode that the socket has when it is bound (unix(7)), so there is no moment in which others
    // could connect.
    fchmod(&socket, Mode::from_bits_truncate(0o600))?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(128)?;
    Ok(socket.into())
}

fn holder(file: File) -> Option<u32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Removes the socket's file when dropped.
#[derive(Debug)]
pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn one_claim_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let claim = RunDir::claim(dir.path()).unwrap();
        let error = RunDir::claim(dir.path()).unwrap_err().to_string();
        assert!(error.starts_with("another agent runs in this --run-dir: "), "{error}");
        assert!(error.ends_with(&format!("(process {})", std::process::id())), "{error}");
        let clone = claim.clone();
        drop(claim);
        assert!(RunDir::claim(dir.path()).is_err());
        drop(clone);
        RunDir::claim(dir.path()).unwrap();
    }

    #[test]
    fn the_socket_is_private_and_a_stale_one_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = RunDir::socket_path(dir.path());
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a dead listener leaves its file");
        let claim = RunDir::claim(dir.path()).unwrap();
        let (_listener, file) = claim.listen().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::os::unix::net::UnixStream::connect(&path).unwrap();
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn only_a_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(RunDir::socket_path(dir.path()), "precious").unwrap();
        let error = RunDir::claim(dir.path()).unwrap().listen().unwrap_err();
        assert!(matches!(error, AdminError::InTheWay { .. }), "{error:?}");
        let link = dir.path().join("elsewhere");
        fs::create_dir(&link).unwrap();
        std::os::unix::fs::symlink("/dev/null", link.join(LOCK_FILE)).unwrap();
        assert!(matches!(RunDir::claim(&link), Err(AdminError::RunDir { .. })));
    }
}
