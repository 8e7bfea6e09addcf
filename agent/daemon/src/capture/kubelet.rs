//! Finds the kubelet's cgroup, by which the programs know its probes: a process of root's in the agent's own network and
//! pid namespace, outside every pod's cgroup. Looked at again and again, as kubelets restart into new cgroups.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::{CaptureError, filesystem, process, socket};

/// What a process that serves as kubelet calls itself: alone, or inside the one binary of k3s, RKE2 and MicroK8s.
const NAMES: [&str; 5] = ["kubelet", "k3s-server", "k3s-agent", "rke2", "kubelite"];
/// The part of a cgroup's name that marks it as the pods'.
const PODS: &str = "kubepods";
/// How many folders of the cgroup tree are looked into, and how deep.
const MAX_FOLDERS: usize = 20_000;
const MAX_DEPTH: usize = 12;
/// How long after a search that found nothing the next one begins.
const SEARCH_PAUSE: Duration = Duration::from_secs(3);

/// Follows the kubelet of this host.
#[derive(Debug)]
pub(super) struct Kubelet {
    cgroup_root: PathBuf,
    /// The cgroup that the operator names, in the place of what is found.
    given: Option<PathBuf>,
    /// The cookie of the agent's own network namespace, which is the kubelet's.
    netns: u64,
    found: Option<Found>,
    last_miss: Option<Instant>,
    /// What the log last heard of the search: the same is not logged again.
    logged: Option<String>,
}

#[derive(Debug)]
struct Found {
    pid: u32,
    started: u64,
    folder: PathBuf,
}

impl Kubelet {
    /// Follows the kubelet in the cgroup `given`, a path in the hierarchy or in the file system, or finds it.
    pub(super) fn new(cgroup_root: Option<&Path>, given: Option<PathBuf>) -> Result<Self, CaptureError> {
        let cgroup_root = filesystem::cgroup_root(cgroup_root)?;
        let netns =
            socket::tcp(false).and_then(|socket| socket::netns_cookie(&socket)).map_err(|source| {
                CaptureError::Host {
                    step: "tell the network namespace of",
                    path: "/proc/self".into(),
                    source,
                }
            })?;
        Ok(Self { cgroup_root, given, netns, found: None, last_miss: None, logged: None })
    }

    /// The id of the kubelet's cgroup as it is now, and the cookie of the network namespace that its probes come from.
    pub(super) fn cgroup(&mut self) -> Option<(u64, u64)> {
        if self.last_miss.is_some_and(|last_miss| last_miss.elapsed() < SEARCH_PAUSE) {
            return None;
        }
        self.last_miss = None;
        let folder = match self.look() {
            Ok(folder) => folder,
            Err(why) => {
                self.last_miss = self.given.is_none().then(Instant::now);
                if self.logged.as_ref() != Some(&why) {
                    tracing::warn!("{why}; probes are treated as any plaintext until then");
                    self.logged = Some(why);
                }
                return None;
            }
        };
        let id = fs::metadata(&folder).ok()?.ino();
        let text = format!("{} {id}", folder.display());
        if self.logged.as_ref() != Some(&text) {
            tracing::info!(cgroup = %folder.display(), "the kubelet's probes are let through");
            self.logged = Some(text);
        }
        Some((id, self.netns))
    }

    fn look(&mut self) -> Result<PathBuf, String> {
        if let Some(given) = &self.given {
            let below = given.strip_prefix("/").unwrap_or(given);
            let folder = if given.starts_with(&self.cgroup_root) {
                given.clone()
            } else {
                self.cgroup_root.join(below)
            };
            return if is_cgroup(&folder) {
                Ok(folder)
            } else {
                Err(format!("--kubelet-cgroup {}: there is no such cgroup at the moment", given.display()))
            };
        }
        if let Some(found) = &self.found
            && process::started(found.pid) == Some(found.started)
            && contains(&found.folder, found.pid)
        {
            return Ok(found.folder.clone());
        }
        self.found = None;
        let (started, pid) = processes()
            .filter_map(|pid| is_kubelet(pid).then(|| Some((process::started(pid)?, pid)))?)
            .min()
            .ok_or(
                "no kubelet is seen on this host; the agent needs the host's process namespace and CAP_SYS_PTRACE to see \
                 one, or --kubelet-cgroup",
            )?;
        let folder = self.folder_of(pid).ok_or_else(|| {
            format!("the cgroup of the kubelet, process {pid}, is not below {}", self.cgroup_root.display())
        })?;
        if folder == self.cgroup_root {
            return Err(format!(
                "the kubelet, process {pid}, shares the root cgroup with others; run it in a cgroup of its own, or \
                 name one by --kubelet-cgroup"
            ));
        }
        self.found = Some(Found { pid, started, folder: folder.clone() });
        Ok(folder)
    }

    /// The folder of the process's cgroup. What /proc tells is seen from the agent's own cgroup namespace, which may not
    /// be the one that the hierarchy is mounted from; then the tree is searched.
    fn folder_of(&self, pid: u32) -> Option<PathBuf> {
        let path = process::cgroup(pid)?;
        let told = self.cgroup_root.join(path.trim_start_matches('/'));
        if !path.contains("..") && contains(&told, pid) {
            return Some(told);
        }
        let mut left = vec![(self.cgroup_root.clone(), 0)];
        let mut seen = 0;
        while let Some((folder, depth)) = left.pop() {
            if contains(&folder, pid) {
                return Some(folder);
            }
            seen += 1;
            if depth == MAX_DEPTH || seen > MAX_FOLDERS {
                continue;
            }
            let below = fs::read_dir(&folder).into_iter().flatten().flatten();
            left.extend(
                below
                    .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                    .filter(|entry| !entry.file_name().to_string_lossy().contains(PODS))
                    .map(|entry| (entry.path(), depth + 1)),
            );
        }
        None
    }
}

fn is_cgroup(folder: &Path) -> bool {
    folder.is_dir() && statfs(folder).is_ok_and(|stat| stat.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Whether the process may be this host's kubelet. A pod may call a process so, and share the host's namespaces; but it is
/// in a pod's cgroup.
fn is_kubelet(pid: u32) -> bool {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let named = fs::read_to_string(proc.join("comm")).is_ok_and(|comm| NAMES.contains(&comm.trim_end()));
    // Another's namespaces are shown to who might trace it: an agent with fewer capabilities needs CAP_SYS_PTRACE.
    let same = |namespace: &str| {
        let of = |proc: &Path| {
            fs::metadata(proc.join("ns").join(namespace)).ok().map(|found| (found.dev(), found.ino()))
        };
        of(&proc).is_some_and(|found| of(Path::new("/proc/self")) == Some(found))
    };
    named
        && fs::metadata(&proc).is_ok_and(|owner| owner.uid() == 0)
        && same("net")
        && same("pid")
        && process::cgroup(pid).is_some_and(|path| !path.contains(PODS))
}

/// Whether the process is in the cgroup `folder` itself, not below it.
fn contains(folder: &Path, pid: u32) -> bool {
    let listed = fs::read_to_string(folder.join("cgroup.procs"));
    listed.is_ok_and(|text| text.lines().any(|line| line.parse() == Ok(pid)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_every_process_is_a_kubelet() {
        assert!(!is_kubelet(std::process::id()), "this test is none");
    }
}
