//! The agent's side of the maps that it shares with the programs. Each operation is one system call or a few; locks are
//! held for no longer. What the agent alone writes follows changes; it is read only where an earlier agent may have written.

mod held;

use std::{
    collections::{BTreeMap, HashSet},
    fmt, io,
    net::IpAddr,
    os::fd::AsRawFd,
    path::Path,
};

use ambit_ebpf_common::{
    Addr, Counters, FAMILY_V4, FAMILY_V6, Flow, ListenerKey, Origin, OriginKey, Pod, ProbeKey, Socket, addr,
};
use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuHashMap, PerCpuValues, SkStorage, SockHash},
};

use super::{CaptureError, pod::PodNet};
use held::{Held, Locked, Operations};

/// The maps by name that all programs of a node share; each is pinned.
pub(super) const NAMES: [&str; 9] =
    ["PODS", "DESTINATIONS", "SOCKETS", "ORIGINS", "BYPASS", "LISTENERS", "COUNTERS", "KUBELETS", "PROBES"];

/// An insertion fails where there is an entry (bpf(2)).
const BPF_NOEXIST: u64 = 1;

/// The map of one copy of the inbound program.
const NETNS: &str = "NETNS";

/// Tells a copy of the inbound program which network namespace it is for.
pub(super) fn set_netns(ebpf: &mut Ebpf, cookie: u64) -> Result<(), CaptureError> {
    let failed = |source| CaptureError::Map { map: NETNS, source };
    let map = ebpf.map_mut(NETNS).ok_or(CaptureError::NoPrograms)?;
    let mut netns = Array::try_from(map).map_err(failed)?;
    netns.set(0, cookie, 0).map_err(failed)
}

/// The agent's side of the maps.
pub(super) struct Maps {
    pods: Locked<HashMap<MapData, u64, Pod>>,
    destinations: Locked<Held<Addr, u32>>,
    sockets: Locked<SkStorage<MapData, Socket>>,
    origins: HashMap<MapData, OriginKey, Origin>,
    origins_read: Operations,
    bypass: Locked<HashMap<MapData, Flow, u32>>,
    listeners: Locked<SockHash<MapData, ListenerKey>>,
    counters: Locked<PerCpuHashMap<MapData, u64, Counters>>,
    kubelets: Locked<Held<u64, u64>>,
    probes: Locked<Held<ProbeKey, u64>>,
}

impl fmt::Debug for Maps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Maps").finish_non_exhaustive()
    }
}

impl Maps {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, CaptureError> {
        fn map<T: TryFrom<Map, Error = MapError>>(
            ebpf: &mut Ebpf,
            name: &'static str,
        ) -> Result<T, CaptureError> {
            let map = ebpf.take_map(name).ok_or(CaptureError::NoPrograms)?;
            T::try_from(map).map_err(|source| CaptureError::Map { map: name, source })
        }
        Ok(Self {
            pods: Locked::new(map(ebpf, "PODS")?),
            destinations: Locked::new(Held::new(map(ebpf, "DESTINATIONS")?)),
            sockets: Locked::new(map(ebpf, "SOCKETS")?),
            origins: map(ebpf, "ORIGINS")?,
            origins_read: Operations::default(),
            bypass: Locked::new(map(ebpf, "BYPASS")?),
            listeners: Locked::new(map(ebpf, "LISTENERS")?),
            counters: Locked::new(map(ebpf, "COUNTERS")?),
            kubelets: Locked::new(Held::new(map(ebpf, "KUBELETS")?)),
            probes: Locked::new(Held::new(map(ebpf, "PROBES")?)),
        })
    }

    /// How many system calls each map has taken, by the maps' names.
    pub(super) fn operations(&self) -> [(&'static str, u64); NAMES.len()] {
        [
            ("PODS", self.pods.operations()),
            ("DESTINATIONS", self.destinations.operations()),
            ("SOCKETS", self.sockets.operations()),
            ("ORIGINS", self.origins_read.count()),
            ("BYPASS", self.bypass.operations()),
            ("LISTENERS", self.listeners.operations()),
            ("COUNTERS", self.counters.operations()),
            ("KUBELETS", self.kubelets.operations()),
            ("PROBES", self.probes.operations()),
        ]
    }

    /// Another agent may have written: what the maps hold has to be read again.
    pub(super) fn forget_held(&self) {
        self.destinations.several(|held, _| held.forget());
        self.kubelets.several(|held, _| held.forget());
        self.probes.several(|held, _| held.forget());
    }

    /// Tells the programs that `socket` is the agent's own. The mark lives and dies with the socket.
    pub(super) fn mark(&self, socket: &impl AsRawFd, state: Socket) -> Result<(), MapError> {
        self.sockets.once(|sockets| sockets.insert(socket, state, 0))
    }

    pub(super) fn origin(&self, key: &OriginKey) -> Option<Origin> {
        self.origins_read.add(1);
        self.origins.get(key, 0).ok()
    }

    /// Ends the exemption of a dial that has connected.
    pub(super) fn forget_bypass(&self, flow: &Flow) {
        let _: Result<(), MapError> = self.bypass.once(|bypass| bypass.remove(flow));
    }

    /// What a dead agent's dials left: nothing of this agent's is in the map yet.
    pub(super) fn clear_bypass(&self) {
        self.bypass.several(|bypass, operations| {
            let stale: Vec<Flow> = bypass.keys().filter_map(Result::ok).collect();
            operations.add(1 + 2 * stale.len());
            for flow in stale {
                let _: Result<(), MapError> = bypass.remove(&flow);
            }
        });
    }

    /// Whether it is known which destinations are captured.
    pub(super) fn holds_destinations(&self) -> bool {
        self.destinations.several(|held, _| held.is_known())
    }

    /// Makes `destinations` the captured ones: additions first.
    pub(super) fn set_destinations(&self, destinations: &HashSet<IpAddr>) -> Result<(), CaptureError> {
        let wanted = destinations.iter().map(|ip| (addr(*ip), 1)).collect();
        self.destinations
            .several(|held, operations| held.become_equal(wanted, operations))
            .map_err(failed("DESTINATIONS"))
    }

    /// Begins and ends the capture of single destinations.
    pub(super) fn change_destinations(
        &self,
        begun: impl Iterator<Item = IpAddr>,
        ended: impl Iterator<Item = IpAddr>,
    ) -> Result<(), CaptureError> {
        self.destinations
            .several(|held, operations| {
                held.change(begun.map(|ip| (addr(ip), 1)), ended.map(addr), operations)
            })
            .map_err(failed("DESTINATIONS"))
    }

    /// Makes `kubelets` the kubelet's cgroups: id to the cookie of the kubelet's network namespace.
    pub(super) fn set_kubelets(&self, kubelets: BTreeMap<u64, u64>) -> Result<(), CaptureError> {
        self.kubelets
            .several(|held, operations| held.become_equal(kubelets, operations))
            .map_err(failed("KUBELETS"))
    }

    /// Makes `probes` the ports that the kubelet may probe: pod's port to the cookie of its network namespace.
    pub(super) fn set_probes(&self, probes: BTreeMap<ProbeKey, u64>) -> Result<(), CaptureError> {
        self.probes
            .several(|held, operations| held.become_equal(probes, operations))
            .map_err(failed("PROBES"))
    }

    /// Puts a pod's listeners where the inbound hook finds them, and its counters where all programs do.
    pub(super) fn add_listeners(&self, pod: &PodNet) -> Result<(), CaptureError> {
        let cookie = pod.cookie();
        if self.counters.once(|counters| counters.get(&cookie, 0).is_err()) {
            let cpus = aya::util::nr_cpus().map_err(|(_, source)| CaptureError::Host {
                step: "count the CPUs in",
                path: "/sys/devices/system/cpu".into(),
                source,
            })?;
            PerCpuValues::try_from(vec![Counters::default(); cpus])
                .map_err(MapError::from)
                .and_then(|zeros| self.counters.once(|counters| counters.insert(cookie, zeros, 0)))
                .map_err(failed("COUNTERS"))?;
        }
        for (v6, fd) in pod.listener_fds() {
            self.listeners
                .once(|listeners| listeners.insert(listener_key(cookie, v6), Fd(fd), 0))
                .map_err(failed("LISTENERS"))?;
        }
        Ok(())
    }

    /// Has the pod's connects captured.
    pub(super) fn add_pod(&self, pod: &PodNet) -> Result<(), CaptureError> {
        self.pods.once(|pods| pods.insert(pod.cookie(), pod.entry(), 0)).map_err(failed("PODS"))
    }

    /// Has connects of a pod that is not in the map refused: an agent with other maps has enrolled it.
    pub(super) fn close_unknown_pod(&self, cookie: u64) -> Result<(), CaptureError> {
        match self.pods.once(|pods| pods.insert(cookie, Pod::default(), BPF_NOEXIST)) {
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::AlreadyExists => {
                Ok(())
            }
            done => done.map_err(failed("PODS")),
        }
    }

    /// Has connects in the network namespace `cookie` left alone. It may not have been in the map.
    pub(super) fn remove_pod(&self, cookie: u64) {
        let _: Result<(), MapError> = self.pods.once(|pods| pods.remove(&cookie));
    }

    /// Removes what [`Self::add_listeners`] added.
    pub(super) fn remove_listeners(&self, pod: &PodNet) {
        let cookie = pod.cookie();
        for (v6, _) in pod.listener_fds() {
            let key = listener_key(cookie, v6);
            let _: Result<(), MapError> = self.listeners.once(|listeners| listeners.remove(&key));
        }
        let _: Result<(), MapError> = self.counters.once(|counters| counters.remove(&cookie));
    }

    /// What the programs did in the network namespace `cookie`, over all CPUs.
    pub(super) fn counters(&self, cookie: u64) -> Counters {
        let Ok(values) = self.counters.once(|counters| counters.get(&cookie, 0)) else {
            return Counters::default();
        };
        values.iter().fold(Counters::default(), |sum, cpu| Counters {
            captured: sum.captured + cpu.captured,
            passed: sum.passed + cpu.passed,
            received: sum.received + cpu.received,
            bypassed: sum.bypassed + cpu.bypassed,
            probes: sum.probes + cpu.probes,
            refused: sum.refused + cpu.refused,
        })
    }
}

/// Has connects in the network namespace `cookie` left alone, by the maps that an earlier agent pinned in `dir`.
pub(super) fn remove_pinned_pod(dir: &Path, cookie: u64) {
    let Ok(map) = MapData::from_pin(dir.join("PODS")) else {
        return;
    };
    if let Ok(mut pods) = HashMap::<_, u64, Pod>::try_from(Map::HashMap(map)) {
        let _: Result<(), MapError> = pods.remove(&cookie);
    }
}

fn failed(map: &'static str) -> impl Fn(MapError) -> CaptureError {
    move |source| CaptureError::Map { map, source }
}

fn listener_key(netns: u64, v6: bool) -> ListenerKey {
    ListenerKey { netns, family: if v6 { FAMILY_V6 } else { FAMILY_V4 }, _pad: 0 }
}

/// A listener's descriptor, for a map that only reads it.
struct Fd(i32);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> i32 {
        self.0
    }
}
