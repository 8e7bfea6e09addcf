//! Finds the kubelet's cgroup, by which the programs know its probes: that of a process of root's in the agent's own network and
//! pid namespace, outside every pod's cgroup. A thread looks all the while, as kubelets restart into new cgroups.
//!
//! Promises that a kubelet which comes back where it was is known within [`LOOK`], by its place, and elsewhere within [`SEARCH`],
//! by its process: sooner than it can have begun to probe. Telling the programs is left to the owner.

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use tokio::sync::watch;

use super::{CaptureError, filesystem, process, socket};

/// What a process that serves as kubelet calls itself: alone, or inside the one binary of k3s, RKE2 and MicroK8s.
const NAMES: [&str; 5] = ["kubelet", "k3s-server", "k3s-agent", "rke2", "kubelite"];
/// The part of a cgroup's name that marks it as the pods'.
const PODS: &str = "kubepods";
/// How many folders of the cgroup tree are looked into, and how deep.
const MAX_FOLDERS: usize = 20_000;
const MAX_DEPTH: usize = 12;
/// How often the place of the kubelet is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// While there is no kubelet, how often processes are looked at that are new, and how often all of them.
const SEARCH: Duration = Duration::from_millis(300);
const FULL_SEARCH: Duration = Duration::from_secs(3);

/// The kubelet as the programs know it: the id of its cgroup, and the cookie of the network namespace that its probes come from.
pub(crate) type KubeletGroup = (u64, u64);

/// Follows the kubelet of this host until it is dropped.
#[derive(Debug)]
pub(super) struct Kubelet {
    group: watch::Receiver<Option<KubeletGroup>>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    search: Mutex<Search>,
    group: watch::Sender<Option<KubeletGroup>>,
    /// The network namespace of the agent, which is the kubelet's.
    netns: u64,
    /// Somebody declares probes.
    wanted: AtomicBool,
    stopped: AtomicBool,
}

impl Shared {
    fn look(&self) {
        // A panic leaves nothing half done that the next look would not put right.
        let mut search = self.search.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(id) = search.group(Instant::now()) {
            let found = Some((id, self.netns));
            self.group.send_if_modified(|told| std::mem::replace(told, found) != found);
        }
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
    }
}

impl Kubelet {
    /// Follows the kubelet in the cgroup `given`, a path in the hierarchy or in the file system, or finds it.
    pub(super) fn new(cgroup_root: Option<&Path>, given: Option<PathBuf>) -> Result<Self, CaptureError> {
        let failed = |step, path: &str, source| CaptureError::Host { step, path: path.into(), source };
        let netns = socket::tcp(false)
            .and_then(|socket| socket::netns_cookie(&socket))
            .map_err(|source| failed("tell the network namespace of", "/proc/self", source))?;
        let (tell, group) = watch::channel(None);
        let shared = Arc::new(Shared {
            search: Mutex::new(Search::new(filesystem::cgroup_root(cgroup_root)?, given)),
            group: tell,
            netns,
            wanted: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
        });
        let looking = shared.clone();
        let follow = move || {
            while !looking.stopped.load(Ordering::Relaxed) {
                if looking.wanted.load(Ordering::Relaxed) {
                    looking.look();
                }
                thread::sleep(LOOK);
            }
        };
        let thread = thread::Builder::new().name("ambit-kubelet".into()).spawn(follow);
        thread.map_err(|source| failed("start a thread to look through", "/proc", source))?;
        Ok(Self { group, shared })
    }

    /// The kubelet as it was last seen, which is looked for from now on if `wanted`.
    pub(super) fn group(&self, wanted: bool) -> Option<KubeletGroup> {
        let first = wanted && !self.shared.wanted.load(Ordering::Relaxed);
        self.shared.wanted.store(wanted, Ordering::Relaxed);
        if first {
            self.shared.look();
        }
        self.last()
    }

    /// The kubelet as it was last seen.
    pub(super) fn last(&self) -> Option<KubeletGroup> {
        *self.group.borrow()
    }

    /// Tells of every change of it.
    pub(super) fn subscribe(&self) -> watch::Receiver<Option<KubeletGroup>> {
        self.group.clone()
    }
}

/// What is known of the kubelet, and of who is not.
#[derive(Debug)]
struct Search {
    cgroup_root: PathBuf,
    /// The cgroup that the operator names, in the place of what is found.
    given: Option<PathBuf>,
    /// The kubelet that was seen last. When it has ended, its place is where the next one is expected.
    found: Option<Found>,
    /// Processes that were no kubelet in the last full search.
    others: HashSet<u32>,
    searched: Option<Instant>,
    searched_fully: Option<Instant>,
    /// What the log last heard of the search: the same is not logged again.
    logged: Option<String>,
}

#[derive(Debug)]
struct Found {
    pid: u32,
    started: u64,
    folder: PathBuf,
}

impl Search {
    fn new(cgroup_root: PathBuf, given: Option<PathBuf>) -> Self {
        let others = HashSet::new();
        Self { cgroup_root, given, found: None, others, searched: None, searched_fully: None, logged: None }
    }

    /// The id of the kubelet's cgroup as it is now, if there is one.
    fn group(&mut self, now: Instant) -> Option<u64> {
        let folder = match self.look(now) {
            Ok(folder) => folder?,
            Err(why) => {
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
        Some(id)
    }

    /// The folder of the kubelet's cgroup; none if it is not the time to look for it.
    fn look(&mut self, now: Instant) -> Result<Option<PathBuf>, String> {
        if let Some(given) = &self.given {
            let below = given.strip_prefix("/").unwrap_or(given);
            let folder = if given.starts_with(&self.cgroup_root) {
                given.clone()
            } else {
                self.cgroup_root.join(below)
            };
            return if is_cgroup(&folder) {
                Ok(Some(folder))
            } else {
                Err(format!("--kubelet-cgroup {}: there is no such cgroup at the moment", given.display()))
            };
        }
        if let Some(found) = &self.found
            && process::started(found.pid) == Some(found.started)
            && contains(&found.folder, found.pid)
        {
            return Ok(Some(found.folder.clone()));
        }
        let due = |last: Option<Instant>, pause| last.is_none_or(|last| now.duration_since(last) >= pause);
        if due(self.searched, SEARCH) {
            self.searched = Some(now);
            let fully = due(self.searched_fully, FULL_SEARCH);
            match self.find(fully.then_some(now)) {
                Ok(found) => return Ok(Some(self.found.insert(found).folder.clone())),
                // Only a search through all of them shows that there is none.
                Err(why) if fully && self.found.is_none() => return Err(why),
                Err(_) => {}
            }
        }
        // Whoever made that group made it for the kubelet, which may be about to start there.
        Ok(self.found.as_ref().map(|found| found.folder.clone()).filter(|folder| folder.is_dir()))
    }

    /// The kubelet among the processes that are new, or among all if `fully`.
    fn find(&mut self, fully: Option<Instant>) -> Result<Found, String> {
        let all: Vec<u32> = processes().collect();
        let looked_at = all.iter().filter(|pid| fully.is_some() || !self.others.contains(pid));
        let found = looked_at
            .filter_map(|pid| is_kubelet(*pid).then(|| Some((process::started(*pid)?, *pid)))?)
            .min();
        if fully.is_some() {
            self.searched_fully = fully;
            self.others = all.into_iter().collect();
        }
        let (started, pid) = found.ok_or(
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
        Ok(Found { pid, started, folder })
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

    #[test]
    fn a_kubelet_that_has_gone_is_expected_where_it_was() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("system.slice/kubelet.service");
        let mut search = Search::new(root.path().to_owned(), None);
        let place = |search: &mut Search, now| search.look(now).ok().flatten();
        let start = Instant::now();
        assert_eq!(place(&mut search, start), None, "there never was one");
        search.found = Some(Found { pid: u32::MAX, started: 1, folder: folder.clone() });
        assert_eq!(place(&mut search, start + LOOK), None, "its service is stopped");
        for again in 1..4_u32 {
            fs::create_dir_all(&folder).unwrap();
            assert_eq!(place(&mut search, start + LOOK * 2 * again), Some(folder.clone()));
            fs::remove_dir(&folder).unwrap();
        }
        assert_eq!(place(&mut search, start + FULL_SEARCH * 2), None);
    }
}
