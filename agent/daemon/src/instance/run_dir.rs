//! The claim on a run directory: a lock file that the kernel releases when the process ends, however it ends.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::{fs::OpenOptionsExt, net::UnixListener},
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg, OFlag},
};

use super::{
    InstanceError,
    socket::{SocketFile, listen},
};

const LOCK_FILE: &str = "ambit.lock";
/// Held by the agent that is about to claim the directory, so that there is one at a time.
const NEXT_FILE: &str = "ambit.next.lock";
const HANDOVER_FILE: &str = "ambit.handover.sock";
const SOCKET_FILE: &str = "ambit.sock";

/// How an agent finds its run directory.
#[derive(Debug)]
pub(crate) enum Claim {
    /// It is this process's.
    Free(RunDir),
    /// An agent of the same node serves it, and may hand it over.
    Held(Successor),
}

/// The right to be next in a run directory that another agent serves.
#[derive(Debug)]
pub(crate) struct Successor {
    path: PathBuf,
    node: String,
    _next: Flock<File>,
}

impl Successor {
    /// Where the agent that serves listens for successors.
    pub(super) fn socket_path(&self) -> PathBuf {
        self.path.join(HANDOVER_FILE)
    }

    /// Claims the directory once the agent that served it has let go of it.
    pub(super) fn claim(&self) -> Result<RunDir, InstanceError> {
        RunDir::claim_for(&self.path, &self.node)
    }
}

/// A run directory that this process alone serves for as long as a clone of this value lives.
#[derive(Clone, Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    _lock: Arc<Flock<File>>,
}

impl RunDir {
    /// Claims `path`, a directory that exists. Fails with [`InstanceError::Claimed`] while another process holds it.
    pub(crate) fn claim(path: &Path) -> Result<Self, InstanceError> {
        Self::claim_for(path, "")
    }

    /// Claims `path` for the agent of `node`, or the right to be the next one there if an agent of that node serves it.
    /// Fails with [`InstanceError::Claimed`] while another process holds it, or is about to.
    pub(crate) fn claim_or_succeed(path: &Path, node: &str) -> Result<Claim, InstanceError> {
        let next = lock(path, NEXT_FILE)?
            .map_err(|holder| InstanceError::Claimed { dir: path.to_owned(), pid: holder.pid })?;
        match lock(path, LOCK_FILE)? {
            Ok(lock) => Ok(Claim::Free(Self::held(path, lock, node)?)),
            Err(holder) if holder.node.as_deref() == Some(node) => {
                let mut next = next;
                sign(path, NEXT_FILE, &mut next, node)?;
                Ok(Claim::Held(Successor { path: path.to_owned(), node: node.to_owned(), _next: next }))
            }
            Err(holder) => Err(InstanceError::Claimed { dir: path.to_owned(), pid: holder.pid }),
        }
    }

    fn claim_for(path: &Path, node: &str) -> Result<Self, InstanceError> {
        let lock = lock(path, LOCK_FILE)?
            .map_err(|holder| InstanceError::Claimed { dir: path.to_owned(), pid: holder.pid })?;
        Self::held(path, lock, node)
    }

    fn held(path: &Path, mut lock: Flock<File>, node: &str) -> Result<Self, InstanceError> {
        sign(path, LOCK_FILE, &mut lock, node)?;
        Ok(Self { path: path.to_owned(), _lock: Arc::new(lock) })
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where an agent in `run_dir` listens for status requests.
    pub(crate) fn socket_path(run_dir: &Path) -> PathBuf {
        run_dir.join(SOCKET_FILE)
    }

    /// Where the agent that calls itself `instance` listens for status requests from its start to its end, whoever serves the
    /// directory; none for a name that no file can have.
    pub(crate) fn own_socket_path(run_dir: &Path, instance: &str) -> Option<PathBuf> {
        let fits = (1..=64).contains(&instance.len())
            && instance.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        fits.then(|| run_dir.join(format!("ambit.agent-{instance}.sock")))
    }

    /// Listens on the status socket, which only this user may connect to. A socket left by a dead agent is replaced: the
    /// claim proves that it is dead.
    pub(crate) fn listen(&self) -> Result<(UnixListener, SocketFile), InstanceError> {
        listen(Self::socket_path(&self.path))
    }

    /// Listens for the agent that is to be next.
    pub(super) fn listen_for_successors(&self) -> Result<(UnixListener, SocketFile), InstanceError> {
        listen(self.path.join(HANDOVER_FILE))
    }
}

/// Who holds a lock, as it said itself.
struct Holder {
    pid: Option<u32>,
    node: Option<String>,
}

/// Takes the lock `name` in `dir`, or tells who has it.
fn lock(dir: &Path, name: &str) -> Result<Result<Flock<File>, Holder>, InstanceError> {
    let path = dir.join(name);
    let unusable = |source| InstanceError::RunDir { path: path.clone(), source };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
        .open(&path)
        .map_err(unusable)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Ok(lock)),
        Err((file, Errno::EWOULDBLOCK)) => Ok(Err(holder(file))),
        Err((_, errno)) => Err(unusable(errno.into())),
    }
}

/// Writes into a lock who holds it.
fn sign(dir: &Path, name: &str, lock: &mut Flock<File>, node: &str) -> Result<(), InstanceError> {
    let unusable = |source| InstanceError::RunDir { path: dir.join(name), source };
    lock.set_len(0).map_err(unusable)?;
    writeln!(lock, "{}\n{node}", std::process::id()).map_err(unusable)
}

fn holder(file: File) -> Holder {
    let mut text = String::new();
    // What cannot be read is not known.
    let _: io::Result<usize> = file.take(512).read_to_string(&mut text);
    let mut lines = text.lines();
    Holder {
        pid: lines.next().and_then(|line| line.trim().parse().ok()),
        node: lines.next().filter(|node| !node.is_empty()).map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

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
        drop(UnixListener::bind(&path).unwrap());
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
        assert!(matches!(error, InstanceError::InTheWay { .. }), "{error:?}");
        let link = dir.path().join("elsewhere");
        fs::create_dir(&link).unwrap();
        std::os::unix::fs::symlink("/dev/null", link.join(LOCK_FILE)).unwrap();
        assert!(matches!(RunDir::claim(&link), Err(InstanceError::RunDir { .. })));
    }
}
