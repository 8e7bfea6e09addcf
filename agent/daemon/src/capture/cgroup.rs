//! Pods' network namespaces, found by the pods' UIDs in the cgroup tree of the node.
//!
//! Promises that one walk serves any number of pods, that only the kubelet's own hierarchy and the runtime's own processes are
//! believed, that the node's own namespace is never taken for a pod's, and that what is found is held open. Which pods to look
//! for is left to others: nodes may share a kernel and its tree.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{CaptureError, filesystem, netns::Netns, process::started};

/// How deep below the root a pod's group may be. Kubernetes in a container in a pod stays well under it.
const MAX_DEPTH: usize = 16;
/// Directories looked at in one walk; a node with 250 pods has about 2,000.
const MAX_DIRECTORIES: usize = 100_000;
/// Processes looked at in one pod.
const MAX_PROCESSES: usize = 4_096;
/// Who owns what is believed: the kubelet and the runtime make their groups as root. A group that is delegated belongs to whom
/// it is delegated to, who may make any directory in it.
const OWNER: u32 = 0;
/// Others than the owner who may write.
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// A group that crun makes in a container's, and puts its processes into.
const IN_CONTAINER: &str = "container";

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
            for (uid, processes) in pods_below(root, &missing, OWNER) {
                if let Some(pod) = sandbox(&processes) {
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

/// Where in the hierarchy a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Anywhere above the kubelet's pods.
    Above,
    /// What the kubelet has all its pods in.
    Kubepods,
    /// What it has the pods of one class in.
    Class,
    /// A pod.
    Pod(CgroupUid),
    /// A container of a pod, as the runtime made it.
    Container(CgroupUid),
}

impl Place {
    /// Where a directory of that name in this one is; none where nothing may be looked for. What is deeper in a container is its
    /// own, be it a whole Kubernetes.
    fn below(self, name: &str) -> Option<Self> {
        let unit = name.strip_suffix(".slice").unwrap_or(name);
        let ends_with =
            |end: &str| unit == end || unit.strip_suffix(end).is_some_and(|start| start.ends_with('-'));
        match self {
            Self::Above if ends_with("kubepods") => Some(Self::Kubepods),
            Self::Above => Some(Self::Above),
            Self::Kubepods if ends_with("burstable") || ends_with("besteffort") => Some(Self::Class),
            Self::Kubepods | Self::Class => CgroupUid::of_directory(name).map(Self::Pod),
            Self::Pod(uid) => Some(Self::Container(uid)),
            Self::Container(uid) if name == IN_CONTAINER => Some(Self::Container(uid)),
            Self::Container(_) => None,
        }
    }
}

/// The processes of the pods of `wanted` whose groups are below `root`, all the way down `owner`'s. A pod with groups in two
/// places has none that can be believed.
fn pods_below(root: &Path, wanted: &HashSet<CgroupUid>, owner: u32) -> HashMap<CgroupUid, Vec<u32>> {
    let mut pods: HashMap<CgroupUid, HashMap<PathBuf, Vec<u32>>> = HashMap::new();
    let mut stack = vec![(root.to_owned(), 0, Place::Above, PathBuf::new())];
    let mut seen = 0;
    while let Some((directory, depth, place, pod)) = stack.pop() {
        seen += 1;
        if seen > MAX_DIRECTORIES {
            tracing::warn!(root = %root.display(), "more than {MAX_DIRECTORIES} cgroups; the rest is not searched for pods");
            break;
        }
        if let Place::Pod(uid) | Place::Container(uid) = place {
            let processes = pods.entry(uid).or_default().entry(pod.clone()).or_default();
            read_processes(&directory, processes);
        }
        if depth == MAX_DEPTH {
            continue;
        }
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) || !is_kept_by(&entry, owner) {
                continue;
            }
            match entry.file_name().to_str().and_then(|name| place.below(name)) {
                Some(Place::Pod(uid)) if !wanted.contains(&uid) => {}
                Some(below @ Place::Pod(_)) => stack.push((entry.path(), depth + 1, below, entry.path())),
                Some(below) => stack.push((entry.path(), depth + 1, below, pod.clone())),
                None => {}
            }
        }
    }
    let single = |(uid, groups): (CgroupUid, HashMap<PathBuf, Vec<u32>>)| {
        let mut groups = groups.into_iter().filter(|(_, processes)| !processes.is_empty());
        let (first, processes) = groups.next()?;
        if let Some((second, _)) = groups.next() {
            let (first, second) = (first.display(), second.display());
            tracing::warn!(%first, %second, "two cgroups bear the UID of one pod; neither is believed");
            return None;
        }
        Some((uid, processes))
    };
    pods.into_iter().filter_map(single).collect()
}

/// Whether nobody but `owner` can have made anything in the directory.
fn is_kept_by(directory: &fs::DirEntry, owner: u32) -> bool {
    directory
        .metadata()
        .is_ok_and(|metadata| metadata.uid() == owner && metadata.mode() & WRITABLE_BY_OTHERS == 0)
}

fn read_processes(group: &Path, processes: &mut Vec<u32>) {
    // A group that goes meanwhile, or one of threads only, has none to show.
    let listed = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    // Processes of other pid namespaces are listed as 0.
    let listed = listed.lines().filter_map(|pid| pid.parse::<u32>().ok()).filter(|pid| *pid != 0);
    processes.extend(listed.take(MAX_PROCESSES - processes.len()));
}

/// The namespace of the pod's sandbox: of the oldest process in one that the node's own user namespace owns, as the runtime
/// makes them. Later processes are the pod's own and may be anywhere; so may be an older one where the runtime keeps no process
/// of its own in the pod, but what it makes without a privilege belongs to a user namespace of its own. So does the sandbox of a
/// pod with user namespaces: the CNI alone can tell where that is. The node's own namespace, where a runtime's helper is, does
/// not count.
fn sandbox(processes: &[u32]) -> Option<Found> {
    let mut by_age: Vec<(u64, u32)> =
        processes.iter().filter_map(|process| Some((started(*process)?, *process))).collect();
    by_age.sort_unstable();
    let mut pods_own = by_age.into_iter().filter_map(|(start, process)| pod_namespace(process, start));
    pods_own.find(|found| found.netns.is_owned_here())
}

/// The namespace of a process, unless it is the node's.
fn pod_namespace(process: u32, start: u64) -> Option<Found> {
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
}

fn netns_of(process: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{process}/ns/net"))
}

#[cfg(test)]
mod tests;
