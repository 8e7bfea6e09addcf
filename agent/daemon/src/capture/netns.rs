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
    sync::OnceLock,
};

use nix::sched::{CloneFlags, setns};

use super::socket;

/// An open network namespace.
#[derive(Debug)]
pub(super) struct Netns {
    path: PathBuf,
    fd: OwnedFd,
    cookie: u64,
}

impl Netns {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let fd: OwnedFd = File::open(path)?.into();
        let mut netns = Self { path: path.to_owned(), fd, cookie: 0 };
        netns.cookie = netns.run(|| {
            let probe = socket::tcp(false)?;
            socket::netns_cookie(&probe)
        })?;
        Ok(netns)
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
                && cookies.contains(&netns.cookie)
            {
                found.push(netns);
            }
        }
        found
    }

    /// The kernel's number for it, never used twice until the next boot (`SO_NETNS_COOKIE`).
    pub(super) fn cookie(&self) -> u64 {
        self.cookie
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` with the calling thread inside the namespace. `work` must not block for long; that it is no future
    /// keeps a task from being moved to another thread in between.
    pub(super) fn run<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
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

impl AsFd for Netns {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Netns {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
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
