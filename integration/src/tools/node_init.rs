//! The first process of a cluster's node: gives it the paths that a node has to itself, and then reaps.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sys::wait::waitpid,
};

use super::NodeInit;

/// Below these a node sees the machine's files, and keeps what it writes to itself.
const LAYERED: [&str; 4] = ["/etc", "/opt", "/var/lib", "/var/log"];
/// Folders that the file system of layers could not serve: container layers and volumes lie in them.
const OWN: [&str; 2] = ["/var/lib/containerd", "/var/lib/kubelet"];

/// What a node's `path` holds at first: files put below this folder before the node starts.
pub(crate) fn layer(folder: &Path, path: &str) -> PathBuf {
    folder.join("layer").join(path.trim_start_matches('/'))
}

/// Runs until it is killed. Has to be the first process of new mount and process namespaces.
#[allow(clippy::print_stdout, reason = "the harness waits for this line")]
pub(super) fn run(how: &NodeInit) -> Result<()> {
    let folder = how.folder.as_path();
    special("proc", "/proc")?;
    for path in LAYERED {
        let (upper, work) = (layer(folder, path), folder.join("work").join(path.trim_start_matches('/')));
        let lower = format!("lowerdir={path},upperdir={},workdir={}", upper.display(), work.display());
        for needed in [&upper, &work] {
            fs::create_dir_all(needed).with_context(|| needed.display().to_string())?;
        }
        mount(Some("overlay"), path, Some("overlay"), MsFlags::empty(), Some(lower.as_str()))
            .with_context(|| format!("cannot mount an overlay on {path}"))?;
    }
    for path in OWN {
        let own = folder.join("own").join(path.trim_start_matches('/'));
        for needed in [own.as_path(), Path::new(path)] {
            fs::create_dir_all(needed).with_context(|| needed.display().to_string())?;
        }
        mount(Some(&own), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .with_context(|| format!("cannot mount {} on {path}", own.display()))?;
    }
    special("tmpfs", "/run")?;
    fs::create_dir("/run/netns").context("/run/netns")?;
    special("bpf", "/sys/fs/bpf")?;
    // Container runtimes hand mounts on, and pods ask for that.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>)
        .context("cannot share mounts")?;
    println!("ready");
    loop {
        if waitpid(None, None) == Err(Errno::ECHILD) {
            thread::sleep(Duration::from_millis(50));
        }
    }
}

fn special(kind: &str, path: &str) -> Result<()> {
    mount(Some(kind), path, Some(kind), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("cannot mount {kind} on {path}"))
}
