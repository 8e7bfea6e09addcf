//! eBPF programs and maps, pod network namespaces, listeners. Yields captured connections and dials on the pods' behalf;
//! knows no policy, identity or tunnel. Links and maps are pinned, so that enrolled pods stay closed without an agent.
#![expect(unsafe_code, reason = "socket options and netlink that nix and socket2 do not have")]

mod cgroup;
mod check;
mod destinations;
mod filesystem;
mod footprint;
mod kernel_tls;
mod kubelet;
mod liveness;
mod maps;
mod netns;
mod parking;
mod pinned;
mod pins;
mod pod;
mod process;
mod programs;
mod queries;
mod routing;
mod segment;
mod socket;
mod spares;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use ambit_core::discovery::{Delta, Destination};
use ambit_ebpf_common::{Counters, ProbeKey, addr};
use tokio::sync::watch;

#[cfg(test)]
pub(crate) use self::liveness::segments_received;
pub(crate) use self::{
    cgroup::{CgroupUid, Cgroups, Found},
    check::{Finding, Verdict, check_host},
    footprint::{give_back_heap, let_go_of_code},
    kernel_tls::{
        attach_tls, next_opened, next_sealed, open_by_kernel, receive_record, seal_by_kernel, send_record,
        taken_by_tcp, unacknowledged,
    },
    kubelet::KubeletGroup,
    liveness::{
        Patience, acknowledge_at_once, answered_probe, failure, fall_silent, keep_alive, path,
        probe_when_idle, tune_tunnel,
    },
    netns::Netns,
    parking::{Answer, Client},
    pinned::Pinned,
    pod::{Accepted, Dial, PodNet},
    queries::{QuerySocket, RESTED},
    socket::{bound_buffers, end_cleanly, is_at_mark, reset_on_drop, wake_at},
};
use self::{destinations::Destinations, kubelet::Kubelet, programs::Programs};

/// How many probe ports of one pod count: none takes all the room for them.
const PROBE_PORTS: usize = 64;

/// Where the kernel's file systems are.
#[derive(Clone, Debug)]
pub(crate) struct CaptureSettings {
    /// The node's name: agents of several nodes may share a kernel.
    pub(crate) node: String,
    /// The bpf file system, usually `/sys/fs/bpf`; mounted if it is not.
    pub(crate) bpf_root: PathBuf,
    /// The cgroup v2 hierarchy's root; found in `/proc/mounts` if `None`.
    pub(crate) cgroup_root: Option<PathBuf>,
    /// The kubelet's cgroup; found by its process if `None`.
    pub(crate) kubelet_cgroup: Option<PathBuf>,
    /// How many entries maps have, by name, where that is not what the programs say.
    pub(crate) map_entries: BTreeMap<String, u32>,
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
    /// A map has no room for another entry.
    #[error("the eBPF map {map} is full; give the agent a larger one by --map-entries {map}=N")]
    Full {
        /// Its name.
        map: &'static str,
    },
    /// A map operation failed.
    #[error("eBPF map {map}: {source}")]
    Map {
        /// Its name.
        map: &'static str,
        /// The kernel's answer.
        source: aya::maps::MapError,
    },
    /// The pod's network namespace is that of a pod enrolled before.
    #[error("network namespace {netns} is that of the enrolled pod with UID {uid} already", netns = netns.display())]
    Shared {
        /// The namespace's path.
        netns: PathBuf,
        /// The other pod.
        uid: Arc<str>,
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
    destinations: Destinations,
    pods: HashMap<Arc<str>, Arc<PodNet>>,
    /// Pods that were let go. Their established connections need the rule and route in their namespaces until the last has
    /// ended.
    leaving: Vec<Arc<PodNet>>,
    /// Pods that are ready to be enrolled, by UID: their listeners are open, and nothing leads there yet.
    staged: HashMap<Arc<str>, (PodSpec, PodNet)>,
    /// Another agent serves, or has just stopped to, and hands over to this one.
    taking_over: bool,
    kubelet: Kubelet,
    /// The pods (UIDs) of which everything is captured.
    captures_everything: HashSet<Arc<str>>,
    /// The pods (UIDs) whose DNS is captured.
    captures_dns: HashSet<Arc<str>>,
}

impl Capture {
    /// Checks the host; nothing is attached before the first pod is enrolled.
    pub(crate) fn new(settings: CaptureSettings) -> Result<Self, CaptureError> {
        filesystem::ensure_bpffs(&settings.bpf_root)?;
        filesystem::ensure_sysctls()?;
        let kubelet = Kubelet::new(settings.cgroup_root.as_deref(), settings.kubelet_cgroup.clone())?;
        Ok(Self {
            settings,
            programs: None,
            destinations: Destinations::default(),
            pods: HashMap::new(),
            leaving: Vec::new(),
            staged: HashMap::new(),
            taking_over: false,
            kubelet,
            captures_everything: HashSet::new(),
            captures_dns: HashSet::new(),
        })
    }

    /// What is captured from now on, whatever was captured before. While there is no room for it everything is.
    pub(crate) fn set_destinations(
        &mut self,
        destinations: HashSet<Destination>,
    ) -> Result<(), CaptureError> {
        self.destinations.replace(destinations);
        match &self.programs {
            Some(programs) => self.destinations.put(programs.maps()),
            None => Ok(()),
        }
    }

    /// Begins and ends the capture of what differs.
    pub(crate) fn change_destinations(&mut self, delta: &Delta) -> Result<(), CaptureError> {
        let maps = self.programs.as_ref().map(|programs| &**programs.maps());
        self.destinations.follow(delta, maps)
    }

    /// Has all captured that these pods (UIDs) dial from now on, be they enrolled yet or not, and of others what is to be captured
    /// of all.
    pub(crate) fn capture_everything_of(&mut self, pods: HashSet<Arc<str>>) -> Result<(), CaptureError> {
        self.captures_everything = pods;
        for (uid, pod) in &self.pods {
            if let Some(programs) = &self.programs
                && pod.set_captures_everything(self.captures_everything.contains(uid))
            {
                programs.add_pod(pod)?;
            }
        }
        Ok(())
    }

    /// Has DNS of these pods (UIDs) captured from now on, be they enrolled yet or not, and of no others. Must run inside a tokio
    /// runtime.
    pub(crate) fn capture_dns_of(&mut self, pods: HashSet<Arc<str>>) -> Result<(), CaptureError> {
        self.captures_dns = pods;
        for (uid, pod) in &self.pods {
            let dns = self.captures_dns.contains(uid);
            if let Some(programs) = &mut self.programs
                && pod.set_captures_dns(dns)?
            {
                if dns {
                    programs.attach_dns()?;
                }
                programs.add_pod(pod)?;
            }
        }
        Ok(())
    }

    /// Why all that enrolled pods dial is captured, if it is.
    pub(crate) fn shortfall(&self) -> Option<&str> {
        self.programs.as_ref().and(self.destinations.shortfall())
    }

    /// Has the kubelet's connects to these ports of enrolled pods (by UID) let through from now on, as far as they are `exempt` at
    /// the pods' addresses, and no others.
    pub(crate) fn set_probes<'a>(
        &mut self,
        ports: impl Iterator<Item = (&'a str, &'a [u16])>,
        mut exempt: impl FnMut(IpAddr, u16) -> bool,
    ) -> Result<(), CaptureError> {
        let Some(programs) = &self.programs else {
            return Ok(());
        };
        let mut probes = BTreeMap::new();
        for (uid, ports) in ports {
            let Some(pod) = self.pods.get(uid) else { continue };
            for ip in pod.ips() {
                let key = |port: u16| ProbeKey { addr: addr(ip), port: u32::from(port) };
                let exempt = ports.iter().copied().filter(|port| exempt(ip, *port)).take(PROBE_PORTS);
                probes.extend(exempt.map(|port| (key(port), pod.cookie())));
            }
        }
        let kubelet = self.kubelet.group(!probes.is_empty());
        if let Some(kubelet) = kubelet {
            programs.maps().set_kubelets([kubelet].into())?;
        }
        programs.maps().set_probes(probes)
    }

    /// Tells of every change of where the kubelet is, which [`Self::set_kubelet`] has to follow.
    pub(crate) fn kubelet(&self) -> watch::Receiver<Option<KubeletGroup>> {
        self.kubelet.subscribe()
    }

    /// Has the programs know the kubelet where it is now.
    pub(crate) fn set_kubelet(&self) -> Result<(), CaptureError> {
        match (&self.programs, self.kubelet.last()) {
            (Some(programs), Some(kubelet)) => programs.maps().set_kubelets([kubelet].into()),
            _ => Ok(()),
        }
    }

    /// Enrols a pod: its inbound connections first, then its outbound ones. What a dead agent left is adopted without
    /// a gap. Must run inside a tokio runtime.
    pub(crate) async fn enroll(&mut self, spec: &PodSpec) -> Result<Arc<PodNet>, CaptureError> {
        let staged = self.staged.remove(&spec.uid).filter(|(staged, _)| staged == spec);
        let programs = Self::loaded(&mut self.programs, &self.settings)?;
        if !programs.maps().holds_destinations() {
            self.destinations.put(programs.maps())?;
        }
        if !programs.is_attached() {
            // Of an agent that hands over, the programs serve until all pods have been admitted.
            if !self.taking_over {
                programs.maps().clear_bypass();
                programs.attach()?;
            }
        }
        let pod = match staged {
            Some((_, pod)) => pod,
            _ => PodNet::open(spec, programs.maps().clone()).await?,
        };
        pod.set_captures_everything(self.captures_everything.contains(&spec.uid));
        pod.set_captures_dns(self.captures_dns.contains(&spec.uid))?;
        programs.admit(&pod)?;
        let pod = Arc::new(pod);
        if let Some(old) = self.pods.insert(spec.uid.clone(), pod.clone()) {
            old.retire();
            self.leaving.push(old);
        }
        Ok(pod)
    }

    /// Opens what [`Self::enroll`] will need for a pod, beside an agent that still serves it. Until [`Self::settle`] that
    /// agent's programs are left in place.
    pub(crate) async fn stage(&mut self, spec: &PodSpec) -> Result<(), CaptureError> {
        self.taking_over = true;
        let programs = Self::loaded(&mut self.programs, &self.settings)?;
        if self.staged.get(&spec.uid).is_some_and(|(staged, _)| staged == spec) {
            return Ok(());
        }
        let pod = PodNet::open(spec, programs.maps().clone()).await?;
        self.staged.insert(spec.uid.clone(), (spec.clone(), pod));
        Ok(())
    }

    /// Ends the first round of enrolments: the programs are this process's from now on, and what was staged in vain or left
    /// by agents with other maps is gone.
    pub(crate) fn settle(&mut self) -> Result<(), CaptureError> {
        self.staged.clear();
        self.taking_over = false;
        let Some(programs) = &mut self.programs else {
            return Ok(());
        };
        if self.pods.is_empty() {
            programs.forget();
            self.programs = None;
            return Ok(());
        }
        if !programs.is_attached() {
            programs.attach()?;
        }
        if self.captures_dns.is_empty() {
            programs.detach_dns();
        }
        programs.forget_other_maps();
        Ok(())
    }

    /// Leads everything back here: an agent that wanted to take over has died on the way.
    pub(crate) fn take_back(&mut self) -> Result<(), CaptureError> {
        let Some(programs) = &mut self.programs else {
            return Ok(());
        };
        programs.maps().forget_held();
        self.destinations.put(programs.maps())?;
        for pod in self.pods.values() {
            programs.admit(pod)?;
        }
        programs.attach()
    }

    fn loaded<'a>(
        programs: &'a mut Option<Programs>,
        settings: &CaptureSettings,
    ) -> Result<&'a mut Programs, CaptureError> {
        match programs {
            Some(programs) => Ok(programs),
            None => Ok(programs.insert(Programs::load(settings)?)),
        }
    }

    /// Lets a pod go: new connections are untouched, established ones finish; [`Self::tidy`] takes the last of it off. With
    /// the last pod, all programs come off.
    pub(crate) fn release(&mut self, uid: &str) {
        let Some(pod) = self.pods.remove(uid) else {
            return;
        };
        if let Some(programs) = &self.programs {
            programs.dismiss(&pod);
        }
        pod.retire();
        self.leaving.push(pod);
        if self.pods.is_empty() {
            self.programs = None;
        }
    }

    /// Takes rule, route and sysctls off the namespaces of pods that were let go and carry nothing any more.
    /// Of the others what they keep for connections that do not come goes.
    pub(crate) async fn tidy(&mut self) {
        let now = Instant::now();
        self.pods.values().for_each(|pod| pod.tidy(now));
        let in_use = |pod: &Arc<PodNet>| Arc::strong_count(pod) > 1;
        // One that has come back, or has connections from an earlier stay, keeps them.
        let kept: HashSet<u64> =
            self.leaving.iter().filter(|pod| in_use(pod)).map(|pod| pod.cookie()).collect();
        let enrolled: HashSet<u64> = self.pods.values().map(|pod| pod.cookie()).collect();
        for pod in self.leaving.extract_if(.., |pod| !in_use(pod)) {
            if !kept.contains(&pod.cookie()) && !enrolled.contains(&pod.cookie()) {
                routing::restore(pod.netns()).await;
            }
        }
    }

    /// The same at the agent's end, whatever they still carry; not where a successor has them in the mesh again.
    pub(crate) async fn end(&mut self) {
        let node = pins::node_dir(&self.settings.bpf_root, &self.settings.node);
        let enrolled: HashSet<u64> = pins::pinned_pods(&node).iter().map(|pin| pin.cookie).collect();
        for pod in self.leaving.drain(..).filter(|pod| !enrolled.contains(&pod.cookie())) {
            routing::restore(pod.netns()).await;
        }
    }

    /// Takes off what an earlier agent left for pods that are not in `expected` (UIDs), and everything if none is.
    /// Answers how many pods were released.
    pub(crate) async fn sweep(&self, expected: &HashSet<Arc<str>>) -> usize {
        let node = pins::node_dir(&self.settings.bpf_root, &self.settings.node);
        let gone = pins::sweep(&node, &pins::maps_dir(&node, &self.settings.map_entries), expected);
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

    /// How many system calls each map has taken since the programs were loaded; none if they are not.
    pub(crate) fn map_operations(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.programs.iter().flat_map(|programs| programs.maps().operations())
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
