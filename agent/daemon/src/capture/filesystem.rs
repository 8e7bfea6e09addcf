//! The bpf and cgroup v2 file systems of the host.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, statfs},
};

use super::CaptureError;

/// Mounts the bpf file system at `root` unless it is there.
pub(super) fn ensure_bpffs(root: &Path) -> Result<(), CaptureError> {
    let failed = |step| move |source| CaptureError::Host { step, path: root.to_owned(), source };
    fs::create_dir_all(root).map_err(failed("create"))?;
    if statfs(root).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC) {
        return Ok(());
    }
    mount(Some("bpf"), root, Some("bpf"), MsFlags::empty(), None::<&str>)
        .map_err(|errno| failed("mount the bpf file system at")(errno.into()))
}

/// The root of the cgroup v2 hierarchy: the one given, else the first in `/proc/mounts` (hybrid hosts have it at
/// `/sys/fs/cgroup/unified`).
pub(super) fn cgroup_root(given: Option<&Path>) -> Result<PathBuf, CaptureError> {
    if let Some(root) = given {
        let is_cgroup2 = statfs(root).is_ok_and(|stat| stat.filesystem_type() == CGROUP2_SUPER_MAGIC);
        return if is_cgroup2 { Ok(root.to_owned()) } else { Err(CaptureError::NoCgroup) };
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
