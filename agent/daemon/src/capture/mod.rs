//! eBPF programs and maps, pod network namespaces, listeners. Yields captured connections and dials on the pods' behalf;
//! knows no policy, identity or tunnel. Links and maps are pinned, so that enrolled pods stay closed without an agent.
#![expect(unsafe_code, reason = "socket options and netlink that nix and socket2 do not have")]

mod cgroup;
mod filesystem;
mod maps;
mod netns;
mod pins;
mod pod;
mod programs;
mod routing;
mod socket;

use std::{
    collections::{HashMap, HashSet},
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use ambit_ebpf_common::Counters;

use self::programs::Programs;
pub(crate) use self::{
    cgroup::{CgroupUid, Cgroups, Found},
    netns::Netns,
    pod::{Accepted, PodNet},
    socket::end_cleanly,
};

/// Where the kernel's file systems are.
#[derive(Clone, Debug)]
pub(crate) struct CaptureSettings {
    /// The node's name: agents of several nodes may share a kernel.
    pub(crate) node: String,
    /// The bpf file system, usually `/sys/fs/bpf`; mounted if it is not.
    pub(crate) bpf_root: PathBuf,
    /// The cgroup v2 hierarchy's root; found in `/proc/mounts` if `None`.
    pub(crate) cgroup_root: Option<PathBuf>,
}

/// A pod to capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodSpec {
    /// The pod's UID.
    pub(crate) uid: Arc<str>,
    /// Its network namespace.
    pub(crate) netns: Netns,
    /// Its IPv4 address.
    pub(crate) v4: Option<std::net::Ipv4Addr>,
    /// Its IPv6 address.
    pub(crate) v6: Option<std::net::Ipv6Addr>,
}

/// Why capture failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaptureError {
    /// This binary was built without the programs.
    #[error("this build of ambit has no eBPF programs in it; build it with `cargo xtask build`")]
    NoPrograms,
    /// No cgroup v2 hierarchy is mounted.
    #[error("no cgroup v2 hierarchy is mounted (looked in /proc/mounts); mount one, or give --cgroup-root")]
    NoCgroup,
    /// A step on the host failed.
    #[error("{step} {path}: {source}", path = path.display())]
    Host {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel did not take the programs or maps.
    #[error(
        "cannot load the eBPF programs: {0} (root, or CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN, and Linux 5.18 or later are needed)"
    )]
    Load(#[from] aya::EbpfError),
    /// The kernel did not take one program.
    #[error("cannot attach the eBPF program {program}: {source}")]
    Program {
        /// Its name.
        program: &'static str,
        /// The kernel's answer.
        source: aya::programs::ProgramError,
    },
    /// A link could not be pinned.
    #[error("cannot pin {path}: {message}", path = path.display())]
    Pin {
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        message: String,
    },
    /// A map operation failed.
    #[error("eBPF map {map}: {source}")]
    Map {
        /// Its name.
        map: &'static str,
        /// The kernel's answer.
        source: aya::maps::MapError,
    },
    /// The pod's network namespace cannot be prepared.
    #[error("network namespace {netns}: {step}: {source}", netns = netns.display())]
    Netns {
        /// The namespace's path.
        netns: PathBuf,
        /// What was tried.
        step: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Everything that is captured on this node. One owner; what it hands out can be shared.
#[derive(Debug)]
pub(crate) struct Capture {
    settings: CaptureSettings,
    /// Loaded while at least one pod is enrolled.
    programs: Option<Programs>,
    destinations: HashSet<IpAddr>,
    pods: HashMap<Arc<str>, Arc<PodNet>>,
}

impl Capture {
    /// Checks the host; nothing is attached before the first pod is enrolled.
    pub(crate) fn new(settings: CaptureSettings) -> Result<Self, CaptureError> {
        filesystem::ensure_bpffs(&settings.bpf_root)?;
        filesystem::cgroup_root(settings.cgroup_root.as_deref())?;
        Ok(Self { settings, programs: None, destinations: HashSet::new(), pods: HashMap::new() })
    }

    /// The addresses whose connections are captured from now on.
    pub(crate) fn set_destinations(&mut self, destinations: HashSet<IpAddr>) -> Result<(), CaptureError> {
        if let Some(programs) = &self.programs {
            programs.maps().set_destinations(&destinations)?;
        }
        self.destinations = destinations;
        Ok(())
    }

    /// Enrols a pod: its inbound connections first, then its outbound ones. What a dead agent left is adopted without
    /// a gap. Must run inside a tokio runtime.
    pub(crate) async fn enroll(&mut self, spec: &PodSpec) -> Result<Arc<PodNet>, CaptureError> {
        let programs = match &mut self.programs {
            Some(programs) => programs,
            None => {
                let programs = Programs::attach(&self.settings)?;
                programs.maps().set_destinations(&self.destinations)?;
                self.programs.insert(programs)
            }
        };
        let pod = PodNet::open(spec, programs.maps().clone()).await?;
        programs.admit(&pod)?;
        let pod = Arc::new(pod);
        if let Some(old) = self.pods.insert(spec.uid.clone(), pod.clone()) {
            old.retire();
        }
        Ok(pod)
    }

    /// Lets a pod go: new connections are untouched, established ones finish. With the last pod, everything comes off.
    pub(crate) async fn release(&mut self, uid: &str) {
        let Some(pod) = self.pods.remove(uid) else {
            return;
        };
        if let Some(programs) = &self.programs {
            programs.dismiss(&pod);
        }
        pod.close().await;
        if self.pods.is_empty() {
            self.programs = None;
        }
    }

    /// Takes off what an earlier agent left for pods that are not in `expected` (UIDs), and everything if none is.
    /// Answers how many pods were released.
    pub(crate) async fn sweep(&self, expected: &HashSet<Arc<str>>) -> usize {
        let node = pins::node_dir(&self.settings.bpf_root, &self.settings.node);
        let gone = pins::sweep(&node, expected);
        restore(gone.iter().map(|pin| pin.cookie).collect()).await;
        gone.len()
    }

    /// What the programs did in a pod so far.
    pub(crate) fn counters(&self, uid: &str) -> Counters {
        match (&self.programs, self.pods.get(uid)) {
            (Some(programs), Some(pod)) => programs.maps().counters(pod.cookie()),
            _ => Counters::default(),
        }
    }
}

/// Takes off everything that agents of `node` (of all nodes, if `None`) left on this kernel; what was removed is named.
pub(crate) async fn uninstall(bpf_root: &Path, node: Option<&str>) -> io::Result<Vec<String>> {
    let nodes = pins::node_dirs(bpf_root, node)?;
    let cookies = nodes.iter().flat_map(|node| pins::pinned_pods(node)).map(|pin| pin.cookie).collect();
    let removed = nodes.iter().flat_map(|node| pins::remove_node(node)).collect();
    restore(cookies).await;
    Ok(removed)
}

/// Takes rules, routes and sysctls off the network namespaces with these cookies, as far as they can be found.
async fn restore(cookies: HashSet<u64>) {
    if !cookies.is_empty() {
        for netns in Netns::find(&cookies) {
            routing::restore(&netns).await;
        }
    }
}

/// The path of a network namespace given as a path or as a name under `/run/netns`.
pub(crate) fn netns_path(name: &str) -> PathBuf {
    if name.contains('/') { PathBuf::from(name) } else { Path::new("/run/netns").join(name) }
}
