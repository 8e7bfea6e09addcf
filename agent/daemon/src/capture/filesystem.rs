//! The bpf and cgroup v2 file systems of the host.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sys::{
        statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, statfs},
        statvfs::{FsFlags, statvfs},
    },
};

use super::CaptureError;

/// Whether the bpf file system is mounted at `root`.
pub(super) fn is_bpffs(root: &Path) -> bool {
    statfs(root).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}

/// Mounts the bpf file system at `root` unless it is there.
pub(super) fn ensure_bpffs(root: &Path) -> Result<(), CaptureError> {
    let failed = |step| move |source| CaptureError::Host { step, path: root.to_owned(), source };
    fs::create_dir_all(root).map_err(failed("create"))?;
    if is_bpffs(root) {
        return Ok(());
    }
    mount(Some("bpf"), root, Some("bpf"), MsFlags::empty(), None::<&str>)
        .map_err(|errno| failed("mount the bpf file system at")(errno.into()))
}

/// Makes the kernel's settings writable for this process if its runtime mounted them read-only, as it does for containers
/// that are not privileged. CAP_SYS_ADMIN, which entering pods' namespaces needs anyhow, allows it.
pub(super) fn ensure_sysctls() -> Result<(), CaptureError> {
    let root = Path::new("/proc/sys");
    if !statvfs(root).is_ok_and(|stat| stat.flags().contains(FsFlags::ST_RDONLY)) {
        return Ok(());
    }
    let flags =
        MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(None::<&str>, root, None::<&str>, flags, None::<&str>).map_err(|errno| CaptureError::Host {
        step: "make writable",
        path: root.to_owned(),
        source: errno.into(),
    })
}

/// The root of the cgroup v2 hierarchy: the one given, or `unified` in it, else the first in `/proc/mounts` (hybrid hosts
/// have it at `/sys/fs/cgroup/unified`).
pub(super) fn cgroup_root(given: Option<&Path>) -> Result<PathBuf, CaptureError> {
    if let Some(root) = given {
        let is_cgroup2 =
            |path: &PathBuf| statfs(path).is_ok_and(|stat| stat.filesystem_type() == CGROUP2_SUPER_MAGIC);
        let places = [root.to_owned(), root.join("unified")];
        return places.into_iter().find(is_cgroup2).ok_or(CaptureError::NoCgroup);
    }
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (path, kind) = (fields.next()?, fields.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(path))
        })
        .next()
        .ok_or(CaptureError::NoCgroup)
}
