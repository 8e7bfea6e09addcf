//! Network namespaces: opening them, and running short pieces of code inside.

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use nix::sched::{CloneFlags, setns};

use super::socket;

/// A network namespace held open: it stays in being, and itself, while a clone lives. Two are equal if they are the same
/// namespace, however they were found.
#[derive(Clone, Debug)]
pub(crate) struct Netns(Arc<Open>);

#[derive(Debug)]
struct Open {
    path: PathBuf,
    fd: OwnedFd,
    inode: (u64, u64),
    cookie: u64,
}

impl Netns {
    /// Opens the namespace at `path`.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Self::held(File::open(path)?.into(), path.to_owned())
    }

    /// Takes a descriptor of a namespace, which was opened from `path` by somebody else. Fails if it is of anything else.
    pub(crate) fn held(fd: OwnedFd, path: PathBuf) -> io::Result<Self> {
        let file = File::from(fd);
        let metadata = file.metadata()?;
        let inode = (metadata.dev(), metadata.ino());
        let mut open = Open { path, fd: file.into(), inode, cookie: 0 };
        open.cookie = open.run(|| {
            let probe = socket::tcp(false)?;
            socket::netns_cookie(&probe)
        })?;
        Ok(Self(Arc::new(open)))
    }

    /// Whether what is at `path` now is this namespace.
    pub(crate) fn is_at(&self, path: &Path) -> bool {
        inode(path) == Some(self.0.inode)
    }

    /// Whether it is the agent's own, which is the node's: never a pod's.
    pub(crate) fn is_own(&self) -> bool {
        inode(Path::new("/proc/thread-self/ns/net")) == Some(self.0.inode)
    }

    /// Whether the agent's own user namespace owns it, which is the node's: no process without privileges on the node has made it.
    pub(super) fn is_owned_here(&self) -> bool {
        socket::owning_user_namespace(self.0.fd.as_fd())
            .and_then(|owner| File::from(owner).metadata())
            .is_ok_and(|owner| {
                inode(Path::new("/proc/thread-self/ns/user")) == Some((owner.dev(), owner.ino()))
            })
    }

    /// The namespaces whose cookies are among `cookies`, as far as a container runtime has given them names: it takes the name
    /// away with the sandbox.
    pub(super) fn named(cookies: &HashSet<u64>) -> Vec<Self> {
        let named = fs::read_dir("/run/netns").into_iter().flatten().flatten();
        let open = named.filter_map(|entry| Self::open(&entry.path()).ok());
        open.filter(|netns| cookies.contains(&netns.cookie()) && !netns.is_own()).collect()
    }

    /// The namespaces whose cookies are among `cookies`, as far as a name under `/run/netns` or a process leads to them.
    pub(super) fn find(cookies: &HashSet<u64>) -> Vec<Self> {
        let named = fs::read_dir("/run/netns").into_iter().flatten().flatten().map(|entry| entry.path());
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            Some(PathBuf::from(format!("/proc/{pid}/ns/net")))
        });
        let mut seen = HashSet::new();
        let mut found = Vec::new();
        for path in named.chain(processes) {
            let Ok(metadata) = fs::metadata(&path) else {
                continue;
            };
            if seen.insert((metadata.dev(), metadata.ino()))
                && let Ok(netns) = Self::open(&path)
                && cookies.contains(&netns.cookie())
            {
                found.push(netns);
            }
        }
        found
    }

    /// The kernel's number for it, never used twice until the next boot (`SO_NETNS_COOKIE`).
    pub(crate) fn cookie(&self) -> u64 {
        self.0.cookie
    }

    /// Where it was found; there may be something else by now.
    pub(crate) fn path(&self) -> &Path {
        &self.0.path
    }

    /// Runs `work` with the calling thread inside the namespace. `work` must not block for long; that it is no future
    /// keeps a task from being moved to another thread in between.
    pub(super) fn run<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.0.run(work)
    }
}

impl Open {
    fn run<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let home = home()?;
        setns(&self.fd, CloneFlags::CLONE_NEWNET)?;
        let result = work();
        if let Err(errno) = setns(home, CloneFlags::CLONE_NEWNET) {
            // Going on would mean to do the host's work inside a pod.
            tracing::error!(%errno, netns = %self.path.display(), "cannot return from a network namespace");
            std::process::abort();
        }
        result
    }
}

impl PartialEq for Netns {
    fn eq(&self, other: &Self) -> bool {
        self.0.inode == other.0.inode
    }
}

impl Eq for Netns {}

impl AsFd for Netns {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

impl AsRawFd for Netns {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.fd.as_raw_fd()
    }
}

/// What makes a namespace itself and not another at the same path, as long as somebody holds it open.
fn inode(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// The agent's own namespace. No thread is ever left in another one, so whichever asks first is right.
fn home() -> io::Result<&'static OwnedFd> {
    static HOME: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(home) = HOME.get() {
        return Ok(home);
    }
    let fd: OwnedFd = File::open("/proc/thread-self/ns/net")?.into();
    Ok(HOME.get_or_init(|| fd))
}
