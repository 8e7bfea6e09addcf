//! What this process may hold at most, file descriptors and memory, and how much of its memory it has used up.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::sys::resource::{Resource, getrlimit};

/// The limits that are set for this process from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capacity {
    /// Open files, by RLIMIT_NOFILE.
    pub(crate) files: u64,
    /// Bytes of memory, by the cgroup; a quarter of the host's where none is set.
    pub(crate) memory: u64,
}

/// Where the root of the hierarchy is that a process sees, in version 2 and version 1: in a container it is its own group.
const ROOTS: [(&str, Version); 2] =
    [("/sys/fs/cgroup", Version::Two), ("/sys/fs/cgroup/memory", Version::One)];
/// Where nothing can be read: the usual soft limit, and what the chart gives.
const FILES: u64 = 1024;
const MEMORY: u64 = 1 << 30;

impl Capacity {
    /// As it is at this moment.
    pub(crate) fn of_this_process() -> Self {
        let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(FILES, |(soft, _)| soft);
        let host = fs::read_to_string("/proc/meminfo").ok().and_then(|text| total(&text));
        let host = host.map_or(MEMORY, |total| total / 4);
        Self { files, memory: MemoryUse::of_this_process().map_or(host, |group| group.limit) }
    }
}

/// How much a cgroup with a limit of memory has used of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemoryUse {
    group: PathBuf,
    version: Version,
    limit: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl MemoryUse {
    /// Of the group of this process whose limit is lowest; `None` where none has one.
    pub(crate) fn of_this_process() -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let roots = ROOTS.map(|(root, version)| (PathBuf::from(root), version));
        let limited = |(group, version): (PathBuf, Version)| {
            let file = match version {
                Version::One => "memory.limit_in_bytes",
                Version::Two => "memory.max",
            };
            // No limit is a huge number in version 1.
            let limit = number(&group.join(file)).filter(|limit| *limit < 1 << 50)?;
            Some(Self { group, version, limit })
        };
        own_groups(&groups, "memory")
            .into_iter()
            .chain(roots)
            .filter_map(limited)
            .min_by_key(|group| group.limit)
    }

    /// What is used, in percent; socket buffers are in it.
    pub(crate) fn percent(&self) -> Option<u64> {
        let used = match self.version {
            Version::One => {
                let sockets = number(&self.group.join("memory.kmem.tcp.usage_in_bytes")).unwrap_or(0);
                number(&self.group.join("memory.usage_in_bytes"))? + sockets
            }
            Version::Two => number(&self.group.join("memory.current"))?,
        };
        (used * 100).checked_div(self.limit)
    }
}

/// Whether the cgroup of this process may use the processors only for a part of the time.
pub(crate) fn has_processor_limit() -> bool {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let roots = [("/sys/fs/cgroup".into(), Version::Two), ("/sys/fs/cgroup/cpu".into(), Version::One)];
    own_groups(&groups, "cpu").iter().chain(&roots).any(|(group, version)| limits_processors(group, *version))
}

fn limits_processors(group: &Path, version: Version) -> bool {
    let (file, unlimited) = match version {
        Version::One => ("cpu.cfs_quota_us", "-1"),
        Version::Two => ("cpu.max", "max"),
    };
    let quota = fs::read_to_string(group.join(file)).unwrap_or_default();
    quota.split_whitespace().next().is_some_and(|quota| quota != unlimited)
}

/// The groups that a process that sees the host's hierarchy is in, of version 1 that of this controller.
fn own_groups(groups: &str, controller: &str) -> Vec<(PathBuf, Version)> {
    let own = groups.lines().filter_map(|line| match line.splitn(3, ':').collect::<Vec<_>>()[..] {
        [_, "", path] => Some((format!("/sys/fs/cgroup{path}").into(), Version::Two)),
        [_, controllers, path] if controllers.split(',').any(|one| one == controller) => {
            Some((format!("/sys/fs/cgroup/{controllers}{path}").into(), Version::One))
        }
        _ => None,
    });
    own.collect()
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// `MemTotal` of /proc/meminfo, in bytes.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_limits() {
        let capacity = Capacity::of_this_process();
        assert!(capacity.files > 0 && capacity.memory > 1 << 20, "{capacity:?}");
    }

    #[test]
    fn what_the_kernel_writes_is_read() {
        assert_eq!(total("MemTotal:       24683740 kB\nMemFree: 1 kB\n"), Some(24_683_740 * 1024));
        assert_eq!(total("nonsense"), None);
        let groups = "5:cpu:/y\n4:memory:/x\n0::/kubepods.slice/cri-1.scope\n";
        let own = [
            ("/sys/fs/cgroup/memory/x".into(), Version::One),
            ("/sys/fs/cgroup/kubepods.slice/cri-1.scope".into(), Version::Two),
        ];
        assert_eq!(own_groups(groups, "memory"), own);
        assert!(own_groups("nonsense", "memory").is_empty());
        let cpu = PathBuf::from("/sys/fs/cgroup/cpu,cpuacct/y");
        assert_eq!(own_groups("5:cpu,cpuacct:/y\n4:memory:/x\n", "cpu"), [(cpu, Version::One)]);
    }

    #[test]
    fn a_limit_of_processor_time_is_told_from_none() {
        let folder = tempfile::TempDir::new().unwrap();
        for (version, file, text, limits) in [
            (Version::Two, "cpu.max", "max 100000\n", false),
            (Version::Two, "cpu.max", "50000 100000\n", true),
            (Version::One, "cpu.cfs_quota_us", "-1\n", false),
            (Version::One, "cpu.cfs_quota_us", "20000\n", true),
        ] {
            fs::write(folder.path().join(file), text).unwrap();
            assert_eq!(limits_processors(folder.path(), version), limits, "{file}: {text}");
        }
        assert!(!limits_processors(Path::new("/nowhere"), Version::Two));
    }

    #[test]
    fn what_a_group_uses_is_told_in_percent() {
        let folder = tempfile::TempDir::new().unwrap();
        let group = |version| MemoryUse { group: folder.path().to_owned(), version, limit: 1000 };
        assert_eq!(group(Version::Two).percent(), None);
        for (file, used) in
            [("memory.current", 750), ("memory.usage_in_bytes", 500), ("memory.kmem.tcp.usage_in_bytes", 100)]
        {
            fs::write(folder.path().join(file), format!("{used}\n")).unwrap();
        }
        assert_eq!(
            [Version::Two, Version::One].map(|version| group(version).percent()),
            [Some(75), Some(60)]
        );
    }
}
