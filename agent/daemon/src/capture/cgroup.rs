//! Pods' network namespaces, found by the pods' UIDs in the cgroup tree of the node.
//!
//! Promises that one walk serves any number of pods, that the node's own namespace is never taken for a pod's, and that what
//! is found is held open. Which pods to look for is left to others: nodes may share a kernel and its tree.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
};

use super::{CaptureError, filesystem, netns::Netns, process::started};

/// How deep below the root a pod's group may be. Kubernetes in a container in a pod stays well under it.
const MAX_DEPTH: usize = 16;
/// Directories looked at in one walk; a node with 250 pods has about 2,000.
const MAX_DIRECTORIES: usize = 100_000;
/// Processes looked at in one pod.
const MAX_PROCESSES: usize = 4_096;

/// A pod's UID as the names of cgroups bear it: 128 bits, however they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CgroupUid(u128);

impl CgroupUid {
    /// Reads `metadata.uid`, or the hash without dashes that the kubelet gives to static pods.
    pub(crate) fn parse(uid: &str) -> Option<Self> {
        let digits: String = match uid.len() {
            32 => uid.to_owned(),
            36 => {
                let dashes =
                    |(at, c): (usize, char)| matches!(at, 8 | 13 | 18 | 23) == matches!(c, '-' | '_');
                if !uid.char_indices().all(dashes) {
                    return None;
                }
                uid.chars().filter(char::is_ascii_hexdigit).collect()
            }
            _ => return None,
        };
        let hexadecimal = digits.len() == 32 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        hexadecimal.then(|| u128::from_str_radix(&digits, 16).ok().map(Self)).flatten()
    }

    /// The pod whose group the directory `name` is. The kubelet names it `pod<uid>` with its cgroupfs driver,
    /// `[<prefix>-]kubepods[-<qos>]-pod<uid with _>.slice` with its systemd driver.
    fn of_directory(name: &str) -> Option<Self> {
        let name = name.strip_suffix(".slice").unwrap_or(name);
        let uid = match name.strip_prefix("pod") {
            Some(uid) => uid,
            None => name.rsplit_once("-pod")?.1,
        };
        Self::parse(uid)
    }
}

/// A network namespace and the process that led to it.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// The namespace.
    pub(crate) netns: Netns,
    process: u32,
}

impl Found {
    /// Whether the process is still there and in that namespace: if not, the pod may have got another one.
    pub(crate) fn is_current(&self) -> bool {
        self.netns.is_at(&netns_of(self.process))
    }
}

/// The cgroup hierarchies of the node.
#[derive(Clone, Debug)]
pub(crate) struct Cgroups {
    roots: Vec<PathBuf>,
}

impl Cgroups {
    /// The cgroup v2 hierarchy at `root`, or where /proc/mounts says. On hybrid hosts one of version 1 as well: there a
    /// container runtime may leave version 2 alone.
    pub(crate) fn new(root: Option<&Path>) -> Result<Self, CaptureError> {
        let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
        let roots = [Some(filesystem::cgroup_root(root)?), version_one(&mounts)];
        Ok(Self { roots: roots.into_iter().flatten().collect() })
    }

    /// The namespaces of those pods of `wanted` that have a process. Blocks on file systems in memory only.
    pub(crate) fn find(&self, wanted: &HashSet<CgroupUid>) -> HashMap<CgroupUid, Found> {
        let mut found = HashMap::new();
        let mut missing = wanted.clone();
        for root in &self.roots {
            if missing.is_empty() {
                break;
            }
            for (uid, processes) in pods_below(root, &missing) {
                if let Some(pod) = oldest(&processes) {
                    missing.remove(&uid);
                    found.insert(uid, pod);
                }
            }
        }
        found
    }
}

/// A hierarchy of version 1 that every container runtime puts its containers into.
fn version_one(mounts: &str) -> Option<PathBuf> {
    ["pids", "memory", "name=systemd"].into_iter().find_map(|controller| {
        mounts.lines().find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (path, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
            let has = options.split(',').any(|option| option == controller);
            (kind == "cgroup" && has).then(|| PathBuf::from(path))
        })
    })
}

/// The processes of the pods of `wanted` whose groups are below `root`.
fn pods_below(root: &Path, wanted: &HashSet<CgroupUid>) -> HashMap<CgroupUid, Vec<u32>> {
    let mut pods: HashMap<CgroupUid, Vec<u32>> = HashMap::new();
    let mut stack = vec![(root.to_owned(), 0, None)];
    let mut seen = 0;
    while let Some((directory, depth, pod)) = stack.pop() {
        seen += 1;
        if seen > MAX_DIRECTORIES {
            tracing::warn!(root = %root.display(), "more than {MAX_DIRECTORIES} cgroups; the rest is not searched for pods");
            break;
        }
        if let Some(uid) = pod {
            let processes = pods.entry(uid).or_default();
            // A group that goes meanwhile, or one of threads only, has none to show.
            let listed = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            let room = MAX_PROCESSES - processes.len();
            // Processes of other pid namespaces are listed as 0.
            let listed = listed.lines().filter_map(|pid| pid.parse::<u32>().ok());
            processes.extend(listed.filter(|pid| *pid != 0).take(room));
        }
        if depth == MAX_DEPTH {
            continue;
        }
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let of = entry.file_name().to_str().and_then(CgroupUid::of_directory);
            match (pod, of) {
                // A whole Kubernetes may run in a pod: what is below it is the pod's own.
                (Some(_), _) => stack.push((entry.path(), depth + 1, pod)),
                (None, Some(uid)) if !wanted.contains(&uid) => {}
                (None, of) => stack.push((entry.path(), depth + 1, of)),
            }
        }
    }
    pods
}

/// The namespace of the oldest process, which the container runtime started: later ones are the pod's own and may be
/// anywhere. One in the node's own namespace, as a runtime's helper is, does not count.
fn oldest(processes: &[u32]) -> Option<Found> {
    let mut by_age: Vec<(u64, u32)> =
        processes.iter().filter_map(|process| Some((started(*process)?, *process))).collect();
    by_age.sort_unstable();
    by_age.into_iter().find_map(|(start, process)| {
        let netns = Netns::open(&netns_of(process))
            .inspect_err(|error| {
                if error.kind() == io::ErrorKind::PermissionDenied {
                    tracing::warn!(
                        process,
                        "may not enter a pod's network namespace; CAP_SYS_PTRACE and CAP_SYS_ADMIN are needed"
                    );
                }
            })
            .ok()?;
        // The same number may be another process by now.
        let same = started(process) == Some(start);
        let own = netns.is_own() || netns.is_at(&netns_of(1));
        (same && !own).then_some(Found { netns, process })
    })
}

fn netns_of(process: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{process}/ns/net"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0f6ec1ec-66c5-4ae3-9c29-9e1d0b2f2a51";
    const UNDERLINED: &str = "0f6ec1ec_66c5_4ae3_9c29_9e1d0b2f2a51";
    const PLAIN: &str = "0f6ec1ec66c54ae39c299e1d0b2f2a51";

    fn wanted() -> HashSet<CgroupUid> {
        HashSet::from([CgroupUid::parse(UID).unwrap()])
    }

    #[test]
    fn a_pod_is_known_by_its_directory_in_every_layout() {
        let uid = CgroupUid::parse(UID);
        assert!(uid.is_some() && uid == CgroupUid::parse(PLAIN));
        for name in [
            format!("pod{UID}"),
            format!("pod{PLAIN}"),
            format!("kubepods-pod{UNDERLINED}.slice"),
            format!("kubepods-burstable-pod{UNDERLINED}.slice"),
            format!("kubepods-besteffort-pod{UNDERLINED}.slice"),
            format!("kubepods-burstable-pod{PLAIN}.slice"),
            format!("kubelet-kubepods-burstable-pod{UNDERLINED}.slice"),
            format!("kube_a-kubepods-pod{UNDERLINED}.slice"),
        ] {
            assert_eq!(CgroupUid::of_directory(&name), uid, "{name}");
        }
    }

    #[test]
    fn other_directories_are_no_pods() {
        for name in [
            "",
            "pod",
            "kubepods",
            "kubepods.slice",
            "kubepods-burstable.slice",
            "pod0f6ec1ec",
            "podman-123.scope",
            "machine-libpod_pod_0f6ec1ec.slice",
            &format!("pod{UID}x"),
            &format!("pod+{}", &PLAIN[1..]),
            &format!("pod{}", UID.replace("66c5-", "66c5x")),
            &format!("cri-containerd-{PLAIN}{PLAIN}.scope"),
            &format!("xpod{UID}"),
        ] {
            assert_eq!(CgroupUid::of_directory(name), None, "{name}");
        }
    }

    #[test]
    fn processes_come_from_the_whole_subtree_of_every_layout() {
        for path in [
            format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UNDERLINED}.slice"),
            format!("kubepods.slice/kubepods-pod{UNDERLINED}.slice"),
            format!("kubepods/burstable/pod{UID}"),
            format!("kubepods/pod{UID}"),
            format!("kube-a/kubepods/besteffort/pod{UID}"),
            format!("kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{UNDERLINED}.slice"),
            format!(
                "system.slice/docker-{PLAIN}{PLAIN}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{UNDERLINED}.slice"
            ),
        ] {
            let root = tempfile::tempdir().unwrap();
            let pod = root.path().join(&path);
            for (container, processes) in
                [("", ""), ("sandbox", "70\n"), ("app", "0\n71\n"), ("app/nested/kubepods/pod1", "72\n")]
            {
                fs::create_dir_all(pod.join(container)).unwrap();
                fs::write(pod.join(container).join("cgroup.procs"), processes).unwrap();
            }
            let other = pod.with_file_name("podffffffff-66c5-4ae3-9c29-9e1d0b2f2a51");
            fs::create_dir_all(&other).unwrap();
            fs::write(other.join("cgroup.procs"), "99\n").unwrap();
            let mut found = pods_below(root.path(), &wanted());
            let mut processes = found.remove(&CgroupUid::parse(UID).unwrap()).unwrap();
            processes.sort_unstable();
            assert_eq!((processes, found.len()), (vec![70, 71, 72], 0), "{path}");
        }
    }

    #[test]
    fn a_pod_in_a_pod_is_not_looked_for() {
        let root = tempfile::tempdir().unwrap();
        let outer = root.path().join("kubepods/podffffffff-66c5-4ae3-9c29-9e1d0b2f2a51/app/kubepods");
        fs::create_dir_all(outer.join(format!("pod{UID}"))).unwrap();
        assert!(pods_below(root.path(), &wanted()).is_empty());
    }

    #[test]
    fn the_hierarchy_of_version_one_is_found_on_hybrid_hosts_only() {
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n\
                      cgroup /sys/fs/cgroup/pids cgroup rw,relatime,pids 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(version_one(hybrid).as_deref(), Some(Path::new("/sys/fs/cgroup/pids")));
        assert_eq!(version_one("cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n"), None);
    }

    #[test]
    fn the_node_s_own_namespace_is_no_pod_s() {
        assert!(oldest(&[std::process::id()]).is_none(), "the node's own namespace was taken");
    }
}
